//! Receive Maximum, Maximum Packet Size, topic aliases.

use ferrule_mqtt::{AckType, Connack, Packet, Properties, QoS};
use ferrule_testkit::wire::{Frame, PATIENCE};
use ferrule_testkit::{Client, Config, Node};

use crate::common::Broker;
use crate::frames::{
    self, EXPIRY, PUBACK, PUBCOMP, PUBREC, PUBREL, Peer, ack, ack_with, next_ack, next_publish,
    next_publish_frame, next_suback, peer, unique,
};

clause!(mqtt_3_1_2_24, "MQTT-3.1.2-24", [v5], |broker| {
    // A SUBACK of 47 bytes to one that takes 40: it is not sent, and what cannot be said ends the connection.
    let peer = peer(broker);
    let (mut reader, _) = peer.connect_session(&unique(), true, &[0x27, 0, 0, 0, 40]);
    let subscribe = peer.subscribe_bytes(1, &[], &[("a", 0); 40]);
    reader.send_raw(&subscribe).unwrap();
    peer.closed(&mut reader, &[0x95], &subscribe);
});
clause!(mqtt_3_1_2_25, "MQTT-3.1.2-25", [v5], |broker| {
    let peer = peer(broker);
    let (topic, me) = (unique(), unique());
    let properties = [EXPIRY, &[0x27, 0, 0, 0, 64], &[0x21, 0, 1]].concat();
    let (mut reader, _) = peer.connect_session(&me, false, &properties);
    reader.subscribe(&topic, QoS::AtLeastOnce);
    peer.publish(&topic, &[b'l'; 200], QoS::AtLeastOnce, false);
    peer.publish(&topic, b"short", QoS::AtLeastOnce, false);
    assert_eq!(reader.expect_message().text(), "short");
    reader.ping();
    drop(reader);
    assert_eq!(peer.rest(&mut peer.back(&me)), [], "it counts as sent");
});
clause!(mqtt_3_1_2_26, "MQTT-3.1.2-26", [v5], |broker| aliases_out(peer(broker), 2));
clause!(mqtt_3_1_2_27, "MQTT-3.1.2-27", [v5], |broker| aliases_out(peer(broker), 0));
clause!(mqtt_3_3_2_11, "MQTT-3.3.2-11", [v5], |broker| aliases_out(peer(broker), 2));
clause!(mqtt_3_2_2_15, "MQTT-3.2.2-15", [v5], |broker| {
    let node = Node::start(&Config::edge().extra("[mqtt]\nmax_packet_size = \"1KiB\"\n"));
    let peer = Peer { addr: node.addr(), version: broker.version };
    let (mut writer, connack) = announced(peer);
    let Packet::Connack(Connack { properties, .. }) = connack.packet() else { unreachable!() };
    assert_eq!(properties.maximum_packet_size(), Some(1024));
    // 3 bytes of header, 3 of topic, 2 of packet id, 1 of properties.
    let longest = peer.publish_bytes(0x32, b"t", 1, &[], &[0; 1024 - 9]);
    assert_eq!(longest.len(), 1024);
    writer.send_raw(&longest).unwrap();
    writer.expect_ack(AckType::Puback, 1);
    writer.send_raw(&[0x32, 0xFE, 0x07]).unwrap(); // 1022 bytes follow
    peer.closed(&mut writer, &[0x95], &[0x32, 0xFE, 0x07]);
});
clause!(mqtt_3_2_2_17, "MQTT-3.2.2-17", [v5], aliases_in);
clause!(mqtt_3_3_2_9, "MQTT-3.3.2-9", [v5], aliases_in);
clause!(mqtt_3_3_2_12, "MQTT-3.3.2-12", [v5], aliases_in);
clause!(mqtt_3_2_2_18, "MQTT-3.2.2-18", [v5], |broker| {
    let node = Node::start(&Config::edge().extra("[mqtt]\ntopic_alias_max = 0\n"));
    let peer = Peer { addr: node.addr(), version: broker.version };
    assert_eq!(alias_maximum(&announced(peer).1), 0);
    peer.refuses(&peer.publish_bytes(0x30, b"t", 0, &alias(1), b""), &[0x94]);
});
clause!(mqtt_3_3_2_7, "MQTT-3.3.2-7", [v5], |broker| {
    let peer = peer(broker);
    let me = unique();
    let mut writer = peer.persistent(&me);
    writer.send_raw(&peer.publish_bytes(0x32, unique().as_bytes(), 1, &alias(1), b"")).unwrap();
    writer.expect_ack(AckType::Puback, 1);
    drop(writer);
    let mut writer = peer.back(&me);
    let unknown = peer.publish_bytes(0x32, b"", 2, &alias(1), b"");
    writer.send_raw(&unknown).unwrap();
    peer.closed(&mut writer, &[0x82, 0x94], &unknown);
});
clause!(mqtt_3_3_2_8, "MQTT-3.3.2-8", [v5], |broker| {
    let peer = peer(broker);
    peer.refuses(&peer.publish_bytes(0x30, b"t", 0, &alias(0), b""), &[0x94]);
});
clause!(mqtt_3_3_4_7, "MQTT-3.3.4-7", [v5], |broker| {
    let node = Node::start(&Config::edge().extra("[mqtt]\nreceive_max = 4\n"));
    let peer = Peer { addr: node.addr(), version: broker.version };
    let (mut writer, connack) = announced(peer);
    let Packet::Connack(Connack { properties, .. }) = connack.packet() else { unreachable!() };
    assert_eq!(properties.receive_maximum(), Some(4));
    for id in 1..=4 {
        writer.send_raw(&peer.publish_bytes(0x34, b"t", id, &[], b"")).unwrap();
        writer.expect_ack(AckType::Pubrec, id);
    }
    let fifth = peer.publish_bytes(0x34, b"t", 5, &[], b"");
    writer.send_raw(&fifth).unwrap();
    peer.closed(&mut writer, &[0x93], &fifth);
    // QoS 1 and 2 count together, and each that is acknowledged makes room; QoS 0 does not count.
    let mut writer = peer.clean("mix");
    for round in 0..10 {
        for id in 1..=3 {
            writer.send_raw(&peer.publish_bytes(0x34, b"t", id, &[], b"")).unwrap();
            writer.expect_ack(AckType::Pubrec, id);
            writer.send_raw(&peer.publish_bytes(0x32, b"t", 4, &[], b"")).unwrap();
            writer.expect_ack(AckType::Puback, 4);
            writer.send_raw(&peer.publish_bytes(0x30, b"t", 0, &[], b"")).unwrap();
        }
        // The one place that is left.
        writer.send_raw(&peer.publish_bytes(0x34, b"t", 4, &[], b"")).unwrap();
        writer.expect_ack(AckType::Pubrec, 4);
        if round == 9 {
            break;
        }
        for id in 1..=4 {
            writer.send_raw(&ack(PUBREL, id)).unwrap();
            writer.expect_ack(AckType::Pubcomp, id);
        }
    }
    let fifth = peer.publish_bytes(0x32, b"t", 5, &[], b"");
    writer.send_raw(&fifth).unwrap();
    peer.closed(&mut writer, &[0x93], &fifth);
});
clause!(mqtt_3_3_4_9, "MQTT-3.3.4-9", [v5], window_out);
clause!(mqtt_4_9_0_1, "MQTT-4.9.0-1", [v5], window_out);
clause!(mqtt_4_9_0_2, "MQTT-4.9.0-2", [v5], window_out);
clause!(mqtt_3_3_4_10, "MQTT-3.3.4-10", [v5], others_pass);
clause!(mqtt_4_9_0_3, "MQTT-4.9.0-3", [v5], others_pass);

/// The property Topic Alias.
fn alias(number: u16) -> Vec<u8> {
    [&[0x23][..], &number.to_be_bytes()].concat()
}

/// A client and its CONNACK.
fn announced(peer: Peer) -> (Client, Frame) {
    let mut client = peer.open();
    client.send_raw(&frames::connect(peer.version, &unique(), true, &[])).unwrap();
    let connack = client.recv(PATIENCE).unwrap();
    (client, connack)
}

fn alias_maximum(connack: &Frame) -> u16 {
    let Packet::Connack(Connack { properties, .. }) = connack.packet() else { panic!("{connack:?}") };
    properties.topic_alias_maximum().unwrap_or(0)
}

/// Messages on several topics to a client that takes so many aliases: none is above it, and each means its topic.
fn aliases_out(peer: Peer, maximum: u8) {
    let base = unique();
    let (mut reader, _) = peer.connect_session(&unique(), true, &[0x22, 0, maximum]);
    reader.subscribe(&format!("{base}/+"), QoS::AtMostOnce);
    let mut known = vec![String::new(); usize::from(maximum) + 1];
    for n in 0..50 {
        let topic = format!("{base}/{}", n % 5);
        peer.publish(&topic, topic.as_bytes(), QoS::AtMostOnce, false);
        let frame = next_publish_frame(&mut reader);
        let publish = frames::publish(&frame);
        let mut name = publish.topic.to_owned();
        if let Some(alias) = publish.properties.topic_alias() {
            assert!((1..=u16::from(maximum)).contains(&alias), "alias {alias} of {maximum}");
            let kept = &mut known[usize::from(alias)];
            if name.is_empty() {
                name.clone_from(kept);
            }
            kept.clone_from(&name);
        }
        assert_eq!((name.as_bytes(), publish.payload), (topic.as_bytes(), topic.as_bytes()));
    }
}

fn aliases_in(broker: &Broker) {
    let peer = peer(broker);
    let base = unique();
    let mut reader = peer.clean(&unique());
    reader.subscribe(&format!("{base}/+"), QoS::AtMostOnce);
    let (mut writer, connack) = announced(peer);
    let maximum = alias_maximum(&connack);
    assert!(maximum > 0);
    for round in 0..2 {
        for number in 1..=maximum {
            let topic = format!("{base}/{round}-{number}");
            writer.send_raw(&peer.publish_bytes(0x30, topic.as_bytes(), 0, &alias(number), b"")).unwrap();
        }
        for number in 1..=maximum {
            writer.send_raw(&peer.publish_bytes(0x30, b"", 0, &alias(number), b"")).unwrap();
        }
        for _ in 0..2 {
            for number in 1..=maximum {
                assert_eq!(next_publish(&mut reader).topic, format!("{base}/{round}-{number}"));
            }
        }
    }
    let over = peer.publish_bytes(0x30, b"t", 0, &alias(maximum + 1), b"");
    writer.send_raw(&over).unwrap();
    peer.closed(&mut writer, &[0x94], &over);
}

fn window_out(broker: &Broker) {
    let peer = peer(broker);
    for window in [1, 2] {
        let topic = unique();
        let (mut reader, _) = peer.connect_session(&unique(), true, &[0x21, 0, window]);
        reader.subscribe(&topic, QoS::ExactlyOnce);
        for n in 0..6 {
            let qos = if n < 3 { QoS::AtLeastOnce } else { QoS::ExactlyOnce };
            peer.publish(&topic, n.to_string().as_bytes(), qos, false);
        }
        // What is open, and how many came in all: never more at a time than the window, one more for each that is ended.
        let mut open = Vec::new();
        for ended in 0..=6 {
            let came = frames::messages(&peer.frames(&mut reader));
            assert_eq!(
                came.len(),
                if ended == 0 { window.into() } else { usize::from(ended + window <= 6) },
                "{window}"
            );
            open.extend(came);
            if ended == 6 {
                break;
            }
            let message = open.remove(0);
            assert_eq!(message.text(), ended.to_string());
            let id = message.packet_id;
            if message.qos == QoS::AtLeastOnce {
                reader.send_raw(&ack(PUBACK, id)).unwrap();
            } else if ended == 4 {
                reader.send_raw(&ack_with(PUBREC, id, 0x80)).unwrap();
            } else {
                reader.send_raw(&ack(PUBREC, id)).unwrap();
                next_ack(&mut reader, AckType::Pubrel);
                assert!(frames::messages(&peer.frames(&mut reader)).is_empty(), "PUBREC makes no room");
                reader.send_raw(&ack(PUBCOMP, id)).unwrap();
            }
        }
    }
}

/// A client whose window is full, and that has filled the server's but for one place, is answered all the same.
fn others_pass(broker: &Broker) {
    let peer = peer(broker);
    let (topic, other) = (unique(), unique());
    let (mut client, _) = peer.connect_session(&unique(), true, &[0x21, 0, 1]);
    client.subscribe(&topic, QoS::AtLeastOnce);
    for _ in 0..2 {
        peer.publish(&topic, b"", QoS::AtLeastOnce, false);
    }
    next_publish(&mut client);
    client.send_raw(&peer.subscribe_bytes(9, &[], &[(&other, 0)])).unwrap();
    assert_eq!(next_suback(&mut client), (9, vec![0]));
    client.ping();
    client.publish(&other, b"1", QoS::AtLeastOnce, false);
    client.publish(&other, b"2", QoS::ExactlyOnce, false);
    assert_eq!([(); 2].map(|()| next_publish(&mut client).text().to_owned()), ["1", "2"]);
    client.unsubscribe(&other);
    // And one that has filled the server's window.
    let (mut writer, connack) = announced(peer);
    let Packet::Connack(Connack { properties, .. }) = connack.packet() else { unreachable!() };
    assert_ne!(properties, Properties::EMPTY);
    let window = properties.receive_maximum().unwrap_or(u16::MAX);
    for id in 1..=window {
        writer.send_raw(&peer.publish_bytes(0x34, topic.as_bytes(), id, &[], b"")).unwrap();
        writer.expect_ack(AckType::Pubrec, id);
    }
    writer.ping();
    writer.send_raw(&peer.subscribe_bytes(9, &[], &[(&other, 0)])).unwrap();
    assert_eq!(next_suback(&mut writer), (9, vec![0]));
    writer.send_raw(&ack(PUBREL, 1)).unwrap();
    writer.expect_ack(AckType::Pubcomp, 1);
}
