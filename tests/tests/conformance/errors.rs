//! What is an error, what it ends, and what it does not touch.

use ferrule_mqtt::{AckType, Packet, QoS, Version};
use ferrule_testkit::wire::PATIENCE;
use ferrule_testkit::{Config, Node};

use crate::common::Broker;
use crate::frames::{
    self, CLEAN, EXPIRY, PUBREC, PUBREL, Peer, WILL, ack, ack_with, bytes, connect_of, next_publish, packet,
    peer, property, unique,
};

clause!(mqtt_4_8_0_1, "MQTT-4.8.0-1", [v3_1_1], |broker| ends_what_is_wrong(peer(broker)));
clause!(mqtt_4_13_1_1, "MQTT-4.13.1-1", [v5], |broker| {
    let peer = peer(broker);
    ends_what_is_wrong(peer);
    let field = |properties: &[u8]| peer.properties(properties);
    let publish = |properties: &[u8]| peer.publish_bytes(0x30, b"t", 0, properties, b"");
    let subscribe = |properties: &[u8], options: u8| peer.subscribe_bytes(1, properties, &[("t", options)]);
    let (malformed, protocol): (&[u8], &[u8]) = (&[0x81], &[0x82]);
    for (wrong, reasons) in [
        (publish(&[0x01, 2]), protocol),          // a flag of 2
        (publish(&[0x01, 0, 0x01, 0]), protocol), // twice
        (publish(&[0x02, 0, 0, 0, 1, 0x02, 0, 0, 0, 1]), protocol),
        (publish(&[0x03, 0, 0, 0x03, 0, 0]), protocol),
        (publish(&[0x23, 0, 1, 0x23, 0, 1]), protocol),
        (publish(&[0x04]), malformed),                 // no such property
        (publish(&[0x11, 0, 0, 0, 1]), &[0x81, 0x82]), // another packet's
        (publish(&[0x02, 0, 0]), malformed),           // cut off
        (publish(&property(0x08, b"")), &[0x81, 0x82]),
        (subscribe(&[0x0B, 0], 0), protocol),
        (subscribe(&[0x0B, 1, 0x0B, 2], 0), protocol),
        (subscribe(&[], 0x03), &[0x81, 0x82]), // QoS 3
        (subscribe(&[], 0x30), &[0x81, 0x82]), // retain handling 3
        (subscribe(&[], 0x40), malformed),     // reserved
        (packet(0x40, &[&[0, 1, 0], &field(&[0x23, 0, 1])]), &[0x81, 0x82]),
        (packet(0x40, &[&[0, 1, 0], &field(&[0x1F, 0, 0, 0x1F, 0, 0])]), protocol),
        (peer.publish_bytes(0x30, b"", 0, &[], b""), protocol), // no topic, no alias
        (peer.publish_bytes(0x30, b"", 0, &[0x23, 0, 1], b""), &[0x82, 0x94]), // an alias that is not set
    ] {
        peer.refuses(&wrong, reasons);
    }
    for (properties, reasons) in [
        (&[0x21, 0, 0][..], protocol),
        (&[0x27, 0, 0, 0, 0], protocol),
        (&[0x17, 2], protocol),
        (&[0x19, 2], protocol),
        (&[0x21, 0, 1, 0x21, 0, 1], protocol),
        (&[0x11, 0, 0, 0, 1, 0x11, 0, 0, 0, 1], protocol),
        (&[0x22, 0, 1, 0x22, 0, 1], protocol),
        (&[0x16, 0, 1, 9], protocol), // authentication data without a method
        (&[0x18, 0, 0, 0, 1], &[0x81, 0x82]),
        (&[0x7F], malformed),
    ] {
        peer.rejects(&frames::connect(peer.version, "id", true, properties), reasons);
    }
});
clause!(mqtt_4_8_0_2, "MQTT-4.8.0-2", [v3_1_1], |broker| {
    // More at once than may wait for their acknowledgements: what cannot be kept ends that connection, and no other.
    let node = Node::start(&Config::edge().extra("[mqtt]\nmax_waiting = 4\n"));
    let peer = Peer { addr: node.addr(), version: broker.version };
    let mut away = peer.persistent("away");
    away.subscribe("t", QoS::AtLeastOnce);
    away.disconnect();
    let mut other = peer.clean("other");
    let mut writer = peer.clean("writer");
    let sent: Vec<u8> = (1..=100).flat_map(|id| peer.publish_bytes(0x32, b"t", id, &[], b"x")).collect();
    writer.send_raw(&sent).unwrap();
    assert_eq!(writer.expect_closed(), None);
    other.publish("t", b"from another", QoS::AtLeastOnce, false);
    let texts = peer.texts(&mut peer.back("away"));
    assert!(texts.len() <= 5 && texts.iter().any(|text| text == "from another"), "{texts:?}");
});
clause!(mqtt_3_1_2_29, "MQTT-3.1.2-29", [v5], |broker| {
    let peer = peer(broker);
    for (asked, is_told) in [(&[0x17, 0][..], false), (&[0x17, 1], true), (&[], true)] {
        let (mut client, _) = peer.connect_session(&unique(), true, asked);
        let ask = [
            peer.publish_bytes(0x32, b"$closed/t", 1, &[], b""),
            peer.publish_bytes(0x34, b"$closed/t", 2, &[], b""),
            ack(PUBREC, 77),
            ack(PUBREL, 77),
            peer.subscribe_bytes(3, &[], &[("a/#/b", 0), ("$closed/#", 0)]),
            peer.unsubscribe_bytes(4, &["nothing/here"]),
        ];
        client.send_raw(&ask.concat()).unwrap();
        let (mut refused, mut told) = (0, 0);
        for _ in 0..ask.len() {
            let frame = client.recv(PATIENCE).unwrap();
            let properties = match frame.packet() {
                Packet::Puback(ack) | Packet::Pubrec(ack) | Packet::Pubrel(ack) | Packet::Pubcomp(ack) => {
                    refused += usize::from(ack.reason.is_error());
                    ack.properties
                }
                Packet::Suback(suback) | Packet::Unsuback(suback) => {
                    refused += suback.reasons.iter().filter(|&&reason| reason >= 0x80).count();
                    suback.properties
                }
                other => panic!("{other:?}"),
            };
            told += usize::from(!properties.is_empty());
        }
        assert_eq!((refused, told > 0), (6, is_told), "{asked:?}");
    }
});
clause!(mqtt_4_13_2_1, "MQTT-4.13.2-1", [v5], |broker| {
    let peer = peer(broker);
    // From the server: `refusal` and `closed` wait for the end.
    assert!(peer.refusal(&frames::connect(peer.version, "id", true, &property(0x15, b"none"))).is_some());
    peer.refuses(&[0x00, 0], &[0x81]);
    // From the client, whose socket stays open; and no other session is touched.
    let (topic, me) = (unique(), unique());
    let mut other = peer.clean(&unique());
    other.subscribe(&topic, QoS::AtLeastOnce);
    let mut client = peer.persistent(&me);
    client.subscribe(&topic, QoS::AtLeastOnce);
    client.send_raw(&[0xE0, 1, 0x80]).unwrap();
    peer.closed_silently(&mut client);
    peer.publish(&topic, b"x", QoS::AtLeastOnce, false);
    assert_eq!(peer.texts(&mut other), ["x"]);
    assert_eq!(peer.texts(&mut peer.back(&me)), ["x"]);
});

/// Packets that are wrong in both versions: their connection ends, its neighbours' and its session do not.
fn ends_what_is_wrong(peer: Peer) {
    let topic = unique();
    let mut neighbour = peer.clean(&unique());
    neighbour.subscribe(&topic, QoS::AtLeastOnce);
    let none = peer.properties(&[]);
    for wrong in [
        vec![0x00, 0],
        vec![0xC0, 1, 0],
        vec![0xD0, 0],
        packet(0x20, &[&[0, 0], &none]),
        packet(0x90, &[&[0, 1], &none, &[0]]),
        packet(0xB0, &[&[0, 1], &none, if peer.is_v5() { &[0] } else { &[] }]),
        packet(0x40, &[&[1]]),
        packet(0x40, &[&[0, 0]]),
        packet(0x82, &[&[0, 1], &none]),
        packet(0x82, &[&[0, 1], &none, &bytes(b"t")]),
        packet(0x82, &[&[0, 1], &none, &[0, 9, b't', 0]]),
        packet(0xA2, &[&[0, 1], &none]),
        packet(0x30, &[&[0, 9, b't']]),
        packet(0x32, &[&bytes(b"t"), &[1]]),
    ] {
        let me = unique();
        let mut client = peer.persistent(&me);
        client.subscribe(&topic, QoS::AtLeastOnce);
        client.send_raw(&wrong).unwrap();
        peer.closed(&mut client, &[0x81, 0x82], &wrong);
        peer.publish(&topic, b"x", QoS::AtLeastOnce, false);
        assert_eq!(neighbour.expect_message().text(), "x");
        assert_eq!(peer.texts(&mut peer.back(&me)), ["x"], "after {wrong:02x?}");
        peer.clean(&me);
    }
}

// === what the numbers do not cover ===

#[test]
fn acknowledgements_of_nothing_are_no_errors() {
    let broker = Broker::v5();
    let peer = peer(&broker);
    let mut client = peer.clean(&unique());
    client.send_raw(&[ack(0x40, 5), ack(0x70, 5), ack_with(0x40, 5, 0x10)].concat()).unwrap();
    client.ping();
    for (sent, kind) in [(ack(PUBREC, 5), AckType::Pubrel), (ack(PUBREL, 5), AckType::Pubcomp)] {
        client.send_raw(&sent).unwrap();
        assert_eq!(frames::next_ack(&mut client, kind), (5, 0x92));
    }
}

#[test]
fn bounds_are_told_by_their_codes() {
    let limits = "[mqtt]\nmax_subscriptions = 2\nretained_max_messages = 1\nmax_sessions = 1\n";
    // Of several workers each would have one session as its share.
    let node = Node::start(&Config::edge().extra(limits).env("FERRULE__EDGE__WORKERS", "1"));
    let peer = Peer { addr: node.addr(), version: Version::V5 };
    let (mut client, _) = peer.connect_session("one", false, EXPIRY);
    let codes = frames::subscribe(peer, &mut client, &[("a", 0), ("b", 1), ("c", 2), ("b", 2)]);
    assert_eq!(codes, [0, 1, 0x97, 2], "one that is there can be changed");
    for (topic, qos, code) in [("r1", 0x33, 0), ("r2", 0x33, 0x97), ("r2", 0x35, 0x97), ("r1", 0x33, 0)] {
        client.send_raw(&peer.publish_bytes(qos, topic.as_bytes(), 1, &[], b"x")).unwrap();
        let kind = if qos == 0x33 { AckType::Puback } else { AckType::Pubrec };
        let reason = frames::next_ack(&mut client, kind).1;
        assert_eq!(reason & 0x80, code & 0x80, "{topic}");
        assert!(code == 0 || reason == code, "{reason:#04x}");
    }
    assert_eq!(peer.refusal(&frames::connect(peer.version, "two", false, EXPIRY)), Some(0x97));
    // Without a session of its own it may come, and the one that is there may come back.
    peer.clean("two");
    peer.back("one");
}

#[test]
fn a_payload_that_is_not_what_it_says_is_refused_where_that_is_asked_for() {
    let (wrong, right) = (&b"\xFF"[..], "\u{FF}".as_bytes());
    for check in [false, true] {
        let node =
            Node::start(&Config::edge().extra(&format!("[protocol]\ncheck_payload_format = {check}\n")));
        let peer = Peer { addr: node.addr(), version: Version::V5 };
        let mut reader = peer.clean("reader");
        reader.subscribe("t", QoS::AtMostOnce);
        let mut writer = peer.clean("writer");
        for (first, kind) in [(0x32, AckType::Puback), (0x34, AckType::Pubrec)] {
            for (said, payload, refused) in [(1, wrong, check), (0, wrong, false), (1, right, false)] {
                let id = u16::from(first);
                writer.send_raw(&peer.publish_bytes(first, b"t", id, &[0x01, said], payload)).unwrap();
                assert_eq!(frames::next_ack(&mut writer, kind), (id, if refused { 0x99 } else { 0 }));
                if !refused {
                    assert_eq!(next_publish(&mut reader).payload, payload);
                    writer.send_raw(&ack(PUBREL, id)).unwrap();
                }
            }
        }
        let will = connect_of(
            peer.version,
            CLEAN | WILL,
            0,
            &[],
            &[&bytes(b"id"), &[2, 0x01, 1], &bytes(b"t"), &bytes(wrong)],
        );
        if check {
            assert_eq!(peer.refusal(&will), Some(0x99));
        } else {
            peer.accepted(&will);
            assert_eq!(next_publish(&mut reader).payload, wrong);
        }
    }
}
