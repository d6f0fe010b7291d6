//! The three qualities of service as protocols, and the order of messages.

use ferrule_mqtt::{AckType, QoS};
use ferrule_testkit::{Config, Node};

use crate::common::Broker;
use crate::frames::{
    self, DUP, PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL, Peer, ack, ack_with, next_ack, next_publish,
    next_publish_frame, peer, unique,
};

clause!(mqtt_4_3_1_1, "MQTT-4.3.1-1", [v3_1_1, v5], |broker| {
    let peer = peer(broker);
    let (topic, me) = (unique(), unique());
    let mut reader = peer.persistent(&me);
    reader.subscribe(&topic, QoS::AtMostOnce);
    for qos in frames::ALL_QOS {
        peer.publish(&topic, b"", qos, false);
        assert_eq!(next_publish_frame(&mut reader).bytes()[0], 0x30);
    }
    drop(reader);
    assert_eq!(peer.rest(&mut peer.back(&me)), [], "not again");
});
clause!(mqtt_4_3_2_1_of_3, "MQTT-4.3.2-1", [v3_1_1], |broker| {
    qos_1_sender(peer(broker));
    backlog(broker);
});
clause!(mqtt_4_3_2_1, "MQTT-4.3.2-1", [v5], |broker| {
    qos_1_sender(peer(broker));
    backlog(broker);
});
clause!(mqtt_4_3_2_2, "MQTT-4.3.2-2", [v5], |broker| {
    qos_1_sender(peer(broker));
    backlog(broker);
});
clause!(mqtt_4_3_2_2_of_3, "MQTT-4.3.2-2", [v3_1_1], |broker| new_after_puback(peer(broker)));
clause!(mqtt_4_3_2_5, "MQTT-4.3.2-5", [v5], |broker| new_after_puback(peer(broker)));
clause!(mqtt_4_3_2_3, "MQTT-4.3.2-3", [v5], |broker| qos_1_sender(peer(broker)));
clause!(mqtt_4_3_2_4, "MQTT-4.3.2-4", [v5], |broker| owned(broker, PUBLISH[1]));
clause!(mqtt_4_3_3_1_of_3, "MQTT-4.3.3-1", [v3_1_1], |broker| qos_2_sender(peer(broker)));
clause!(mqtt_4_3_3_1, "MQTT-4.3.3-1", [v5], |broker| qos_2_sender(peer(broker)));
clause!(mqtt_4_3_3_2, "MQTT-4.3.3-2", [v5], |broker| qos_2_sender(peer(broker)));
clause!(mqtt_4_3_3_3, "MQTT-4.3.3-3", [v5], |broker| qos_2_sender(peer(broker)));
clause!(mqtt_4_3_3_4, "MQTT-4.3.3-4", [v5], |broker| {
    let peer = peer(broker);
    let topic = unique();
    let (mut reader, _) = peer.connect_session(&unique(), true, &[0x21, 0, 1]);
    reader.subscribe(&topic, QoS::ExactlyOnce);
    for _ in 0..3 {
        peer.publish(&topic, b"", QoS::ExactlyOnce, false);
    }
    for reason in [0, 0x10] {
        let id = next_publish(&mut reader).packet_id;
        reader.send_raw(&ack_with(PUBREC, id, reason)).unwrap();
        assert_eq!(next_ack(&mut reader, AckType::Pubrel), (id, 0));
        reader.send_raw(&ack(PUBCOMP, id)).unwrap();
    }
    let id = next_publish(&mut reader).packet_id;
    reader.send_raw(&ack_with(PUBREC, id, 0x80)).unwrap();
    assert!(peer.frames(&mut reader).is_empty(), "no PUBREL for what was refused");
    peer.publish(&topic, b"room again", QoS::ExactlyOnce, false);
    assert_eq!(next_publish(&mut reader).text(), "room again");
});
clause!(mqtt_4_3_3_5, "MQTT-4.3.3-5", [v5], |broker| qos_2_sender(peer(broker)));
clause!(mqtt_4_3_3_6, "MQTT-4.3.3-6", [v5], |broker| qos_2_sender(peer(broker)));
clause!(mqtt_4_3_3_7, "MQTT-4.3.3-7", [v5], |broker| out_past_its_expiry(peer(broker)));
clause!(mqtt_4_3_3_8, "MQTT-4.3.3-8", [v5], |broker| owned(broker, PUBLISH[2]));
clause!(mqtt_4_3_3_9, "MQTT-4.3.3-9", [v5], |broker| {
    let peer = peer(broker);
    let topic = unique();
    let mut reader = peer.clean(&unique());
    reader.subscribe(&topic, QoS::AtMostOnce);
    let mut writer = peer.clean(&unique());
    for (topic, reason) in [("$closed/t", 0x87), (topic.as_str(), 0)] {
        writer.send_raw(&peer.publish_bytes(0x34, topic.as_bytes(), 3, &[], b"x")).unwrap();
        assert_eq!(next_ack(&mut writer, AckType::Pubrec), (3, reason));
    }
    assert_eq!(peer.texts(&mut reader), ["x"]);
});
clause!(mqtt_4_3_3_2_of_3, "MQTT-4.3.3-2", [v3_1_1], |broker| qos_2_receiver(peer(broker)));
clause!(mqtt_4_3_3_10, "MQTT-4.3.3-10", [v5], |broker| qos_2_receiver(peer(broker)));
clause!(mqtt_4_3_3_11, "MQTT-4.3.3-11", [v5], |broker| qos_2_receiver(peer(broker)));
clause!(mqtt_4_3_3_12, "MQTT-4.3.3-12", [v5], |broker| qos_2_receiver(peer(broker)));
clause!(mqtt_4_3_3_13, "MQTT-4.3.3-13", [v5], |broker| out_past_its_expiry(peer(broker)));
clause!(mqtt_4_6_0_5, "MQTT-4.6.0-5", [v3_1_1, v5], |broker| in_order(peer(broker)));
clause!(mqtt_4_6_0_6, "MQTT-4.6.0-6", [v3_1_1, v5], |broker| in_order(peer(broker)));

fn qos_1_sender(peer: Peer) {
    let (topic, me) = (unique(), unique());
    let mut reader = peer.persistent(&me);
    reader.subscribe(&topic, QoS::AtLeastOnce);
    for n in 0..3 {
        peer.publish(&topic, &[b'0' + n], QoS::AtLeastOnce, false);
    }
    let got: Vec<_> = (0..3).map(|_| next_publish(&mut reader)).collect();
    assert!(got.iter().all(|message| !message.dup && message.packet_id != 0));
    let ids: Vec<_> = got.iter().map(|message| message.packet_id).collect();
    assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2]);
    reader.send_raw(&ack(PUBACK, ids[1])).unwrap();
    reader.ping();
    drop(reader);
    let mut reader = peer.back(&me);
    for (text, id) in [("0", ids[0]), ("2", ids[2])] {
        let again = next_publish(&mut reader);
        assert_eq!((again.text(), again.packet_id, again.dup), (text, id, true));
        reader.send_raw(&ack(PUBACK, id)).unwrap();
    }
    reader.ping();
    drop(reader);
    assert_eq!(peer.rest(&mut peer.back(&me)), []);
}

/// Far more than a session's queue keeps in memory, over a kill of a node of its own: each message comes first with DUP 0, under an
/// identifier that no other one has that is not acknowledged.
fn backlog(broker: &Broker) {
    const COUNT: usize = 3_000;
    let mut node = Node::start(&Config::edge());
    let peer = Peer { addr: node.addr(), version: broker.version };
    let mut away = peer.persistent("away");
    away.subscribe("t", QoS::AtLeastOnce);
    peer.leave(away);
    let mut writer = peer.clean("writer");
    for n in 0..COUNT {
        if n % 100 == 0 {
            writer.publish("t", &number(n), QoS::AtLeastOnce, false);
        } else {
            writer.publish_nowait("t", &number(n), QoS::AtLeastOnce, false);
        }
    }
    writer.publish("t", b"last", QoS::AtLeastOnce, false);
    node.kill9();
    node.restart();
    let mut back = peer.back("away");
    let mut open = std::collections::HashMap::new();
    for n in 0..COUNT {
        let message = next_publish(&mut back);
        assert_eq!((message.payload, message.dup), (number(n), false), "message {n}");
        let before = open.insert(message.packet_id, n);
        assert!(
            message.packet_id != 0 && before.is_none(),
            "{} is that of message {before:?}",
            message.packet_id
        );
        // A few stay open to the end: they do not hold up the others.
        if n % 500 != 7 {
            back.send_raw(&ack(PUBACK, message.packet_id)).unwrap();
            open.remove(&message.packet_id);
        }
    }
    let last = next_publish(&mut back);
    assert_eq!((last.text(), last.dup), ("last", false));
    back.ping();
    drop(back);
    let mut back = peer.back("away");
    for _ in 0..open.len() {
        let again = next_publish(&mut back);
        assert!(again.dup);
        assert_eq!(again.payload, number(open[&again.packet_id]));
    }
    let last = next_publish(&mut back);
    assert_eq!((last.text(), last.dup), ("last", true));
}

/// A payload of 1 KiB.
fn number(n: usize) -> Vec<u8> {
    format!("{n:01024}").into_bytes()
}

/// On nodes of their own: what was acknowledged is there after a kill, for who was away and as retained.
fn owned(broker: &Broker, first: u8) {
    let mut node = Node::start(&Config::edge());
    let peer = Peer { addr: node.addr(), version: broker.version };
    let mut away = peer.persistent("away");
    away.subscribe("t", QoS::ExactlyOnce);
    away.disconnect();
    let mut writer = peer.clean("writer");
    writer.send_raw(&peer.publish_bytes(first | 1, b"t", 0xABC, &[], b"owned")).unwrap();
    let kind = if first == PUBLISH[1] { AckType::Puback } else { AckType::Pubrec };
    writer.expect_ack(kind, 0xABC);
    node.kill9();
    node.restart();
    // A QoS 2 message waits for its packet id's commit: others may come before it, so it is waited for by itself.
    let mut back = peer.back("away");
    assert_eq!(back.expect_message().text(), "owned");
    assert_eq!(peer.rest(&mut back), []);
    let mut late = peer.clean("late");
    late.subscribe("t", QoS::AtMostOnce);
    assert_eq!(peer.texts(&mut late), ["owned"]);
}

/// Also where the first one had to wait for the disk: for a session that is away.
fn new_after_puback(peer: Peer) {
    let (topic, me) = (unique(), unique());
    let mut away = peer.persistent(&me);
    away.subscribe(&topic, QoS::AtLeastOnce);
    away.disconnect();
    let mut writer = peer.clean(&unique());
    for first in [PUBLISH[1], PUBLISH[1] | DUP, PUBLISH[1]] {
        writer.send_raw(&peer.publish_bytes(first, topic.as_bytes(), 7, &[], b"same")).unwrap();
        writer.expect_ack(AckType::Puback, 7);
    }
    assert_eq!(peer.texts(&mut peer.back(&me)), ["same"; 3]);
}

fn qos_2_sender(peer: Peer) {
    let (topic, me) = (unique(), unique());
    let mut reader = peer.persistent(&me);
    reader.subscribe(&topic, QoS::ExactlyOnce);
    for text in [b"a", b"b"] {
        peer.publish(&topic, text, QoS::ExactlyOnce, false);
    }
    let (a, b) = (next_publish_frame(&mut reader), next_publish_frame(&mut reader));
    assert_eq!((a.bytes()[0], b.bytes()[0]), (0x34, 0x34));
    let (a, b) = (frames::publish(&a).packet_id, frames::publish(&b).packet_id);
    assert!(a != 0 && b != 0 && a != b);
    // Before PUBREC: the PUBLISH again.
    drop(reader);
    let mut reader = peer.back(&me);
    for id in [a, b] {
        let again = next_publish(&mut reader);
        assert_eq!((again.packet_id, again.dup), (id, true));
    }
    // After PUBREC: PUBREL, and PUBREL alone when it comes to it again.
    reader.send_raw(&ack(PUBREC, a)).unwrap();
    assert_eq!(next_ack(&mut reader, AckType::Pubrel), (a, 0));
    drop(reader);
    let mut reader = peer.back(&me);
    let again = peer.frames(&mut reader);
    assert_eq!(frames::messages(&again).iter().map(|message| message.packet_id).collect::<Vec<_>>(), [b]);
    let released: Vec<_> = again.iter().filter(|frame| frame.bytes()[0] == PUBREL).collect();
    assert_eq!(released.len(), 1);
    assert_eq!(released[0].bytes()[2..4], a.to_be_bytes());
    // An identifier that is open is not drawn for another message.
    peer.publish(&topic, b"c", QoS::ExactlyOnce, false);
    let c = next_publish(&mut reader).packet_id;
    assert!(c != a && c != b);
    // After PUBCOMP: nothing.
    for id in [b, c] {
        reader.send_raw(&ack(PUBREC, id)).unwrap();
        next_ack(&mut reader, AckType::Pubrel);
    }
    for id in [a, b, c] {
        reader.send_raw(&ack(PUBCOMP, id)).unwrap();
    }
    reader.ping();
    drop(reader);
    assert!(peer.frames(&mut peer.back(&me)).is_empty());
}

fn qos_2_receiver(peer: Peer) {
    let (topic, me) = (unique(), unique());
    let mut reader = peer.clean(&unique());
    reader.subscribe(&topic, QoS::AtMostOnce);
    let mut writer = peer.persistent(&me);
    let send = |writer: &mut ferrule_testkit::Client, first: u8| {
        writer.send_raw(&peer.publish_bytes(first, topic.as_bytes(), 3, &[], b"once")).unwrap();
        assert_eq!(next_ack(writer, AckType::Pubrec).0, 3);
    };
    send(&mut writer, 0x34);
    send(&mut writer, 0x34 | DUP);
    drop(writer);
    let mut writer = peer.back(&me);
    send(&mut writer, 0x34 | DUP);
    send(&mut writer, 0x34);
    assert_eq!(peer.texts(&mut reader), ["once"]);
    for known in [true, false] {
        writer.send_raw(&ack(PUBREL, 3)).unwrap();
        let reason = if known || !peer.is_v5() { 0 } else { 0x92 };
        assert_eq!(next_ack(&mut writer, AckType::Pubcomp), (3, reason));
    }
    send(&mut writer, 0x34 | DUP);
    assert_eq!(peer.texts(&mut reader), ["once"], "a new message");
}

/// Sent before its expiry and not acknowledged, it comes again after it, and its exchange goes on to its end.
fn out_past_its_expiry(peer: Peer) {
    let (topic, me) = (unique(), unique());
    let mut reader = peer.persistent(&me);
    reader.subscribe(&topic, QoS::ExactlyOnce);
    let mut writer = peer.clean(&unique());
    writer.send_raw(&peer.publish_bytes(0x34, topic.as_bytes(), 1, &[0x02, 0, 0, 0, 1], b"x")).unwrap();
    writer.expect_ack(AckType::Pubrec, 1);
    let id = next_publish(&mut reader).packet_id;
    // The clock alone makes it expire.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    drop(reader);
    let mut reader = peer.back(&me);
    let again = next_publish(&mut reader);
    assert_eq!((again.packet_id, again.dup), (id, true));
    reader.send_raw(&ack(PUBREC, id)).unwrap();
    assert_eq!(next_ack(&mut reader, AckType::Pubrel), (id, 0));
    writer.send_raw(&ack(PUBREL, 1)).unwrap();
    assert_eq!(next_ack(&mut writer, AckType::Pubcomp), (1, 0));
}

/// Each topic and quality of service in its order: to one who is there, and to one who is away.
fn in_order(peer: Peer) {
    let base = unique();
    let (filter, me) = (format!("{base}/+"), unique());
    let mut away = peer.persistent(&me);
    away.subscribe(&filter, QoS::ExactlyOnce);
    away.disconnect();
    let mut here = peer.clean(&unique());
    here.subscribe(&filter, QoS::ExactlyOnce);
    let mut writer = peer.clean(&unique());
    for n in 0_u16..450 {
        let (topic, qos) = (format!("{base}/{}", n % 3), frames::ALL_QOS[usize::from(n / 3 % 3)]);
        if qos == QoS::ExactlyOnce {
            writer.publish(&topic, n.to_string().as_bytes(), qos, false);
        } else {
            writer.publish_nowait(&topic, n.to_string().as_bytes(), qos, false);
        }
    }
    writer.ping();
    for (kinds, mut reader) in [(0.., here), (1.., peer.back(&me))] {
        let got = peer.rest(&mut reader);
        for topic in 0..3 {
            for qos in kinds.clone().take(3).filter(|qos| *qos < 3_u16) {
                let texts: Vec<u16> = got
                    .iter()
                    .filter(|m| m.topic.ends_with(&format!("/{topic}")) && m.qos as u16 == qos)
                    .map(|m| m.text().parse().unwrap())
                    .collect();
                let expected: Vec<u16> = (0..450).filter(|n| n % 3 == topic && n / 3 % 3 == qos).collect();
                assert_eq!(texts, expected, "topic {topic}, quality of service {qos}");
            }
        }
    }
}
