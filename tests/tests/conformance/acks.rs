//! PUBACK, PUBREC, PUBREL, PUBCOMP: identifiers, reasons, order, DUP.

use ferrule_mqtt::{AckType, QoS};

use crate::common::Broker;
use crate::frames::{
    self, DUP, PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL, Peer, ack, ack_with, next_ack, next_publish, packet,
    peer,
};

clause!(mqtt_2_3_1_6, "MQTT-2.3.1-6", [v3_1_1], identifiers_are_echoed);
clause!(mqtt_2_2_1_5, "MQTT-2.2.1-5", [v5], identifiers_are_echoed);
clause!(mqtt_3_3_1_1, "MQTT-3.3.1-1", [v3_1_1, v5], |broker| {
    let peer = peer(broker);
    let (topic, me) = (frames::unique(), frames::unique());
    let mut reader = peer.persistent(&me);
    reader.subscribe(&topic, QoS::ExactlyOnce);
    peer.publish(&topic, b"1", QoS::AtLeastOnce, false);
    peer.publish(&topic, b"2", QoS::ExactlyOnce, false);
    let first = [next_publish(&mut reader), next_publish(&mut reader)];
    assert!(first.iter().all(|message| !message.dup));
    drop(reader);
    let mut reader = peer.back(&me);
    for before in first {
        let again = next_publish(&mut reader);
        assert!(again.dup);
        assert_eq!((again.packet_id, again.payload), (before.packet_id, before.payload));
    }
});
clause!(mqtt_3_3_4_1, "MQTT-3.3.4-1", [v3_1_1, v5], |broker| {
    let peer = peer(broker);
    let topic = frames::unique();
    let mut writer = peer.clean(&frames::unique());
    for first in PUBLISH {
        writer.send_raw(&peer.publish_bytes(first, topic.as_bytes(), u16::from(first), &[], b"")).unwrap();
    }
    let mut firsts = Vec::new();
    for frame in peer.frames(&mut writer) {
        firsts.push((frame.bytes()[0], u16::from_be_bytes([frame.bytes()[2], frame.bytes()[3]])));
    }
    assert_eq!(firsts, [(0x40, 0x32), (0x50, 0x34)]);
});
clause!(mqtt_3_3_5_2, "MQTT-3.3.5-2", [v3_1_1], |broker| {
    // "$" topics are closed to whoever has no list.
    let peer = peer(broker);
    let mut writer = peer.clean(&frames::unique());
    for qos in frames::ALL_QOS {
        writer.publish("$closed/t", b"x", qos, false);
    }
    writer.ping();
    let long = vec![b'l'; 2000];
    peer.refuses(&peer.publish_bytes(0x32, &long, 1, &[], b""), &[]);
});
clause!(mqtt_3_6_1_1, "MQTT-3.6.1-1", [v3_1_1, v5], |broker| {
    let peer = peer(broker);
    peer.refuses(&ack(0x60, 1), &[0x81]);
    peer.refuses(&ack(0x6A, 1), &[0x81]);
    let (_reader, frame) = pubrel(peer);
    assert_eq!(frame[0], 0x62);
});
clause!(mqtt_4_6_0_2, "MQTT-4.6.0-2", [v3_1_1], |broker| in_order(peer(broker), 0x32, AckType::Puback));
clause!(mqtt_4_6_0_3, "MQTT-4.6.0-3", [v3_1_1], |broker| in_order(peer(broker), 0x34, AckType::Pubrec));
clause!(mqtt_4_6_0_4, "MQTT-4.6.0-4", [v3_1_1], |broker| {
    let peer = peer(broker);
    let topic = frames::unique();
    let mut reader = peer.clean(&frames::unique());
    reader.subscribe(&topic, QoS::ExactlyOnce);
    for _ in 0..3 {
        peer.publish(&topic, b"", QoS::ExactlyOnce, false);
    }
    let ids: Vec<u16> = (0..3).map(|_| next_publish(&mut reader).packet_id).collect();
    let order = [ids[1], ids[2], ids[0]];
    reader.send_raw(&order.map(|id| ack(PUBREC, id)).concat()).unwrap();
    assert_eq!([(); 3].map(|()| next_ack(&mut reader, AckType::Pubrel).0), order);
    // And again on a new connection, in the order of the PUBRECs before it.
    let (topic, me) = (frames::unique(), frames::unique());
    let mut reader = peer.persistent(&me);
    reader.subscribe(&topic, QoS::ExactlyOnce);
    for _ in 0..5 {
        peer.publish(&topic, b"", QoS::ExactlyOnce, false);
    }
    let ids: Vec<u16> = (0..5).map(|_| next_publish(&mut reader).packet_id).collect();
    let order = [ids[3], ids[0], ids[4], ids[1]];
    reader.send_raw(&order.map(|id| ack(PUBREC, id)).concat()).unwrap();
    assert_eq!([(); 4].map(|()| next_ack(&mut reader, AckType::Pubrel).0), order);
    for _ in 0..2 {
        drop(reader);
        reader = peer.back(&me);
        assert_eq!([(); 4].map(|()| next_ack(&mut reader, AckType::Pubrel).0), order);
    }
});

clause!(mqtt_3_4_2_1, "MQTT-3.4.2-1", [v5], |broker| reasons(peer(broker), PUBACK));
clause!(mqtt_3_5_2_1, "MQTT-3.5.2-1", [v5], |broker| reasons(peer(broker), PUBREC));
clause!(mqtt_3_6_2_1, "MQTT-3.6.2-1", [v5], |broker| {
    let peer = peer(broker);
    let mut client = peer.clean(&frames::unique());
    client.send_raw(&ack(PUBREC, 77)).unwrap();
    assert_eq!(next_ack(&mut client, AckType::Pubrel), (77, 0x92));
    let (_reader, frame) = pubrel(peer);
    assert!(frame.len() == 4 || frame[4] == 0, "{frame:02x?}");
    peer.refuses(&ack_with(PUBREL, 1, 0x80), &[0x81, 0x82]);
});
clause!(mqtt_3_7_2_1, "MQTT-3.7.2-1", [v5], |broker| {
    let peer = peer(broker);
    let mut client = peer.clean(&frames::unique());
    client.send_raw(&ack(PUBREL, 77)).unwrap();
    assert_eq!(next_ack(&mut client, AckType::Pubcomp), (77, 0x92));
    client.send_raw(&peer.publish_bytes(0x34, frames::unique().as_bytes(), 5, &[], b"")).unwrap();
    client.expect_ack(AckType::Pubrec, 5);
    client.send_raw(&ack(PUBREL, 5)).unwrap();
    assert_eq!(next_ack(&mut client, AckType::Pubcomp), (5, 0));
    peer.refuses(&ack_with(PUBCOMP, 1, 0x80), &[0x81, 0x82]);
});
clause!(mqtt_3_4_2_2, "MQTT-3.4.2-2", [v5], |broker| bare_refusal(peer(broker), PUBACK));
clause!(mqtt_3_4_2_3, "MQTT-3.4.2-3", [v5], |broker| bare_refusal(peer(broker), PUBACK));
clause!(mqtt_3_5_2_2, "MQTT-3.5.2-2", [v5], |broker| bare_refusal(peer(broker), PUBREC));
clause!(mqtt_3_5_2_3, "MQTT-3.5.2-3", [v5], |broker| bare_refusal(peer(broker), PUBREC));
clause!(mqtt_3_6_2_2, "MQTT-3.6.2-2", [v5], |broker| bare_refusal(peer(broker), PUBREL));
clause!(mqtt_3_6_2_3, "MQTT-3.6.2-3", [v5], |broker| bare_refusal(peer(broker), PUBREL));
clause!(mqtt_3_7_2_2, "MQTT-3.7.2-2", [v5], |broker| bare_refusal(peer(broker), PUBCOMP));
clause!(mqtt_3_7_2_3, "MQTT-3.7.2-3", [v5], |broker| bare_refusal(peer(broker), PUBCOMP));
clause!(mqtt_4_4_0_2, "MQTT-4.4.0-2", [v5], |broker| {
    let peer = peer(broker);
    let (topic, me) = (frames::unique(), frames::unique());
    let mut reader = peer.persistent(&me);
    reader.subscribe(&topic, QoS::ExactlyOnce);
    for (qos, kind, reason) in [(QoS::AtLeastOnce, PUBACK, 0x80), (QoS::ExactlyOnce, PUBREC, 0x97)] {
        peer.publish(&topic, b"", qos, false);
        let id = next_publish(&mut reader).packet_id;
        reader.send_raw(&ack_with(kind, id, reason)).unwrap();
    }
    reader.ping();
    drop(reader);
    let mut reader = peer.back(&me);
    assert_eq!(peer.rest(&mut reader), []);
});

clause!(mqtt_3_3_1_3, "MQTT-3.3.1-3", [v3_1_1, v5], |broker| {
    let peer = peer(broker);
    let topic = frames::unique();
    let mut reader = peer.clean(&frames::unique());
    reader.subscribe(&topic, QoS::ExactlyOnce);
    let mut writer = peer.clean(&frames::unique());
    for first in [PUBLISH[1], PUBLISH[2]] {
        let again = peer.publish_bytes(first | DUP, topic.as_bytes(), u16::from(first), &[], b"x");
        writer.send_raw(&again).unwrap();
        assert!(!next_publish(&mut reader).dup);
    }
    // Queued for one who is away.
    let me = frames::unique();
    let mut away = peer.persistent(&me);
    away.subscribe(&topic, QoS::ExactlyOnce);
    peer.leave(away);
    for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
        peer.publish(&topic, b"y", qos, false);
    }
    let mut away = peer.back(&me);
    for _ in 0..2 {
        assert!(!next_publish(&mut away).dup);
    }
    // Retained.
    let kept = peer.publish_bytes(PUBLISH[1] | DUP | 1, topic.as_bytes(), 0x100, &[], b"z");
    writer.send_raw(&kept).unwrap();
    assert!(!next_publish(&mut away).dup);
    let mut late = peer.clean(&frames::unique());
    late.subscribe(&topic, QoS::AtLeastOnce);
    assert!(!next_publish(&mut late).dup);
    // With what comes again there is what comes for the first time.
    peer.leave(away);
    peer.publish(&topic, b"new", QoS::AtLeastOnce, false);
    let mut away = peer.back(&me);
    let came: Vec<_> = peer.frames(&mut away);
    let dups: Vec<_> =
        frames::messages(&came).iter().map(|message| (message.text().to_owned(), message.dup)).collect();
    let wanted = [("y", true), ("y", true), ("z", true), ("new", false)];
    assert_eq!(dups, wanted.map(|(text, dup)| (text.to_owned(), dup)));
});

fn identifiers_are_echoed(broker: &Broker) {
    let peer = peer(broker);
    let topic = frames::unique();
    let mut writer = peer.clean(&frames::unique());
    for id in [0x1234, 0xFFFF] {
        writer.send_raw(&peer.publish_bytes(0x32, topic.as_bytes(), id, &[], b"")).unwrap();
        assert_eq!(next_ack(&mut writer, AckType::Puback).0, id);
        writer.send_raw(&peer.publish_bytes(0x34, topic.as_bytes(), id, &[], b"")).unwrap();
        assert_eq!(next_ack(&mut writer, AckType::Pubrec).0, id);
        writer.send_raw(&ack(PUBREL, id)).unwrap();
        assert_eq!(next_ack(&mut writer, AckType::Pubcomp).0, id);
    }
    let _ = pubrel(peer); // that of the broker
}

/// A reader that has a QoS 2 message and has its PUBREL, which has the packet id of the PUBLISH.
fn pubrel(peer: Peer) -> (ferrule_testkit::Client, Vec<u8>) {
    let topic = frames::unique();
    let mut reader = peer.clean(&frames::unique());
    reader.subscribe(&topic, QoS::ExactlyOnce);
    peer.publish(&topic, b"", QoS::ExactlyOnce, false);
    let id = next_publish(&mut reader).packet_id;
    reader.send_raw(&ack(PUBREC, id)).unwrap();
    let frame = reader.recv(ferrule_testkit::wire::PATIENCE).unwrap();
    assert_eq!(frame.bytes()[2..4], id.to_be_bytes());
    (reader, frame.bytes().to_vec())
}

/// Acknowledgements of what must wait (for an absent session's queue) and of what need not, in turns.
fn in_order(peer: Peer, first: u8, kind: AckType) {
    let topic = frames::unique();
    let mut away = peer.persistent(&frames::unique());
    away.subscribe(&topic, QoS::ExactlyOnce);
    away.disconnect();
    let mut writer = peer.clean(&frames::unique());
    let mut sent = Vec::new();
    for id in 1..=60 {
        let topic = if id % 3 == 0 { topic.clone() } else { frames::unique() };
        sent.extend(peer.publish_bytes(first, topic.as_bytes(), id, &[], b"x"));
    }
    writer.send_raw(&sent).unwrap();
    let ids: Vec<u16> = (1..=60).map(|_| next_ack(&mut writer, kind).0).collect();
    assert_eq!(ids, (1..=60).collect::<Vec<u16>>());
}

/// What a publish can be answered with, and what a subscriber may not answer.
fn reasons(peer: Peer, kind: u8) {
    let (first, answer) = if kind == PUBACK { (0x32, AckType::Puback) } else { (0x34, AckType::Pubrec) };
    let topic = frames::unique();
    let mut reader = peer.clean(&frames::unique());
    reader.subscribe(&topic, QoS::AtMostOnce);
    let mut writer = peer.clean(&frames::unique());
    let long = "l".repeat(2000);
    let nobody = frames::unique();
    for (id, (topic, reason)) in
        (1..).zip([(topic.as_str(), 0), (&nobody, 0x10), ("$closed/t", 0x87), (&long, 0x90)])
    {
        writer.send_raw(&peer.publish_bytes(first, topic.as_bytes(), id, &[], b"")).unwrap();
        assert_eq!(next_ack(&mut writer, answer), (id, reason), "{topic}");
    }
    peer.refuses(&ack_with(kind, 1, 0x01), &[0x81, 0x82]);
}

/// To a client that takes short packets alone: an acknowledgement that refuses, with nothing behind its reason code.
fn bare_refusal(peer: Peer, kind: u8) {
    let (ask, reason) = match kind {
        PUBACK => (peer.publish_bytes(0x32, b"$closed/t", 9, &[], b""), 0x87),
        PUBREC => (peer.publish_bytes(0x34, b"$closed/t", 9, &[], b""), 0x87),
        PUBREL => (ack(PUBREC, 9), 0x92),
        _ => (ack(PUBREL, 9), 0x92),
    };
    let (mut client, _) = peer.connect_session(&frames::unique(), true, &[0x27, 0, 0, 0, 32]);
    client.send_raw(&ask).unwrap();
    let frame = client.recv(ferrule_testkit::wire::PATIENCE).unwrap();
    assert_eq!(frame.bytes(), packet(kind, &[&[0, 9, reason]]));
}
