//! PUBLISH: its header, its packet identifier, its properties.

use std::collections::HashSet;

use ferrule_mqtt::QoS;

use crate::common::Broker;
use crate::frames::{
    self, DUP, PUBACK, PUBLISH, Peer, ack, next_publish, next_publish_frame, packet, peer, property,
};

clause!(mqtt_2_2_1_2, "MQTT-2.2.1-2", [v5], no_identifier_at_qos_0);
clause!(mqtt_2_3_1_5, "MQTT-2.3.1-5", [v3_1_1], no_identifier_at_qos_0);
clause!(mqtt_2_2_1_4, "MQTT-2.2.1-4", [v5], identifiers_are_unused);
clause!(mqtt_2_3_1_4, "MQTT-2.3.1-4", [v3_1_1], identifiers_are_unused);
clause!(mqtt_3_3_1_2, "MQTT-3.3.1-2", [v3_1_1, v5], no_dup_at_qos_0);
clause!(mqtt_3_3_1_4, "MQTT-3.3.1-4", [v3_1_1, v5], |broker| {
    let peer = peer(broker);
    peer.refuses(&peer.publish_bytes(0x36, b"t", 1, &[], b""), &[0x81]);
});
clause!(mqtt_3_3_2_1, "MQTT-3.3.2-1", [v3_1_1, v5], |broker| {
    let peer = peer(broker);
    peer.refuses(&[0x30, 0], &[0x81]);
    peer.refuses(&[0x30, 1, 0], &[0x81]);
    peer.refuses(&peer.publish_bytes(0x30, b"\xC3\x28", 0, &[], b""), &[0x81]);
});
clause!(mqtt_3_3_2_13, "MQTT-3.3.2-13", [v5], |broker| is_a_string(peer(broker), 0x08));
clause!(mqtt_3_3_2_19, "MQTT-3.3.2-19", [v5], |broker| is_a_string(peer(broker), 0x03));
clause!(mqtt_3_3_2_14, "MQTT-3.3.2-14", [v5], |broker| {
    let peer = peer(broker);
    for topic in ["a/+", "#"] {
        let response = property(0x08, topic.as_bytes());
        peer.refuses(&peer.publish_bytes(0x30, b"t", 0, &response, b""), &[0x81, 0x82]);
    }
});
clause!(mqtt_3_3_2_4, "MQTT-3.3.2-4", [v5], |broker| {
    passes_on(peer(broker), &[&[0x01, 0], &[0x01, 1], &[]]);
});
clause!(mqtt_3_3_2_15, "MQTT-3.3.2-15", [v5], |broker| {
    passes_on(peer(broker), &[&property(0x08, b"answers/here"), &property(0x08, "a\u{e9}/ ".as_bytes())]);
});
clause!(mqtt_3_3_2_16, "MQTT-3.3.2-16", [v5], |broker| {
    let all: Vec<u8> = (0..=255).collect();
    passes_on(peer(broker), &[&property(0x09, &all), &property(0x09, b"")]);
});
clause!(mqtt_3_3_2_17, "MQTT-3.3.2-17", [v5], |broker| {
    let pairs = [user("k", "1"), user("", ""), user("k", "1"), user("K", "2")].concat();
    passes_on(peer(broker), &[&pairs]);
});
clause!(mqtt_3_3_2_18, "MQTT-3.3.2-18", [v5], |broker| {
    let peer = peer(broker);
    let topic = frames::unique();
    let mut reader = peer.clean(&frames::unique());
    reader.subscribe(&topic, QoS::AtMostOnce);
    let mixed =
        [user("b", "1"), property(0x03, b"text"), user("a", "2"), property(0x09, b"c"), user("b", "3")];
    let mut writer = peer.clean(&frames::unique());
    writer.send_raw(&peer.publish_bytes(0x30, topic.as_bytes(), 0, &mixed.concat(), b"")).unwrap();
    let pairs = next_publish(&mut reader).user_properties;
    let pairs: Vec<_> = pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(pairs, [("b", "1"), ("a", "2"), ("b", "3")]);
});
clause!(mqtt_3_3_2_20, "MQTT-3.3.2-20", [v5], |broker| {
    passes_on(peer(broker), &[&property(0x03, b"application/json"), &property(0x03, b"")]);
});
clause!(mqtt_3_3_4_6, "MQTT-3.3.4-6", [v5], |broker| {
    let peer = peer(broker);
    let topic = frames::unique();
    let mut reader = peer.clean(&frames::unique());
    reader.subscribe(&topic, QoS::AtMostOnce);
    peer.refuses(&peer.publish_bytes(0x30, topic.as_bytes(), 0, &[0x0B, 1], b"x"), &[0x82]);
    assert_eq!(peer.rest(&mut reader), []);
});

fn user(name: &str, value: &str) -> Vec<u8> {
    [property(0x26, name.as_bytes()), frames::bytes(value.as_bytes())].concat()
}

fn is_a_string(peer: Peer, id: u8) {
    peer.refuses(&peer.publish_bytes(0x30, b"t", 0, &property(id, b"\xC3\x28"), b""), &[0x81]);
}

fn no_identifier_at_qos_0(broker: &Broker) {
    let peer = peer(broker);
    let topic = frames::unique();
    let mut reader = peer.clean(&frames::unique());
    reader.subscribe(&topic, QoS::AtMostOnce);
    for qos in frames::ALL_QOS {
        peer.publish(&topic, b"payload", qos, false);
        let parts: [&[u8]; 3] = [&frames::bytes(topic.as_bytes()), &peer.properties(&[]), b"payload"];
        assert_eq!(next_publish_frame(&mut reader).bytes(), packet(0x30, &parts));
    }
}

/// More messages than there are identifiers, of which some stay open.
fn identifiers_are_unused(broker: &Broker) {
    let peer = peer(broker);
    let topic = frames::unique();
    let mut reader = peer.clean(&frames::unique());
    reader.subscribe(&topic, QoS::AtLeastOnce);
    let mut writer = peer.clean(&frames::unique());
    let mut open = HashSet::new();
    for round in 0..700_u16 {
        let mut sent = Vec::new();
        for id in 1..=100 {
            sent.extend(peer.publish_bytes(0x32, topic.as_bytes(), id, &[], b""));
        }
        writer.send_raw(&sent).unwrap();
        let mut answers = Vec::new();
        for n in 0..100 {
            let id = next_publish(&mut reader).packet_id;
            assert_ne!(id, 0);
            assert!(!open.contains(&id), "{id} is not acknowledged yet");
            if round == 0 && n % 10 == 0 {
                open.insert(id);
            } else {
                answers.extend(ack(PUBACK, id));
            }
        }
        reader.send_raw(&answers).unwrap();
        for _ in 1..=100 {
            frames::next_ack(&mut writer, ferrule_mqtt::AckType::Puback);
        }
    }
    assert_eq!(open.len(), 10);
}

fn no_dup_at_qos_0(broker: &Broker) {
    let peer = peer(broker);
    peer.refuses(&peer.publish_bytes(0x30 | DUP, b"t", 0, &[], b""), &[0x81]);
    let topic = frames::unique();
    let mut reader = peer.clean(&frames::unique());
    reader.subscribe(&topic, QoS::AtMostOnce);
    let mut writer = peer.clean(&frames::unique());
    for first in [PUBLISH[0], PUBLISH[1] | DUP, PUBLISH[2] | DUP] {
        writer
            .send_raw(&peer.publish_bytes(first, topic.as_bytes(), 1 + u16::from(first), &[], b""))
            .unwrap();
        assert_eq!(next_publish_frame(&mut reader).bytes()[0], 0x30);
    }
}

/// What is published with these properties comes with them and no others: directly, from a session's queue, and retained.
fn passes_on(peer: Peer, cases: &[&[u8]]) {
    for properties in cases {
        let topic = frames::unique();
        let (away_id, mut direct) = (frames::unique(), peer.clean(&frames::unique()));
        let mut away = peer.persistent(&away_id);
        for reader in [&mut direct, &mut away] {
            reader.subscribe(&topic, QoS::AtLeastOnce);
        }
        away.disconnect();
        let mut writer = peer.clean(&frames::unique());
        writer.send_raw(&peer.publish_bytes(0x33, topic.as_bytes(), 1, properties, b"p")).unwrap();
        writer.expect_ack(ferrule_mqtt::AckType::Puback, 1);
        let mut late = peer.clean(&frames::unique());
        late.subscribe(&topic, QoS::AtLeastOnce);
        for (way, mut reader) in [("directly", direct), ("queued", peer.back(&away_id)), ("retained", late)] {
            let frame = next_publish_frame(&mut reader);
            let publish = frames::publish(&frame);
            assert_eq!((publish.payload, publish.properties.as_bytes()), (&b"p"[..], *properties), "{way}");
        }
    }
}
