//! Strings, integers, flags, property lengths: what packets are made of; and what carries them.

use ferrule_mqtt::{AckType, QoS};
use ferrule_testkit::wire::{Frame, PATIENCE};

use crate::common::Broker;
use crate::frames::{
    self, CLEAN, NAME, PUBCOMP, PUBREC, PUBREL, Peer, WILL, Will, ack, bytes, connect_of, next_publish,
    next_publish_frame, packet, peer, property, unique,
};

clause!(mqtt_1_5_3_1, "MQTT-1.5.3-1", [v3_1_1], well_formed);
clause!(mqtt_1_5_4_1, "MQTT-1.5.4-1", [v5], well_formed);
clause!(mqtt_1_5_3_2, "MQTT-1.5.3-2", [v3_1_1], |broker| refuses_strings(peer(broker), &NUL));
clause!(mqtt_1_5_4_2, "MQTT-1.5.4-2", [v5], |broker| refuses_strings(peer(broker), &NUL));
clause!(mqtt_1_5_3_3, "MQTT-1.5.3-3", [v3_1_1], byte_order_mark);
clause!(mqtt_1_5_4_3, "MQTT-1.5.4-3", [v5], byte_order_mark);
clause!(mqtt_1_5_5_1, "MQTT-1.5.5-1", [v5], |broker| {
    let peer = peer(broker);
    peer.refuses(&[0xC0, 0x80, 0x00], &[0x81]);
    peer.refuses(&[0x30, 0x85, 0x00, 0, 1, b't', 0, b'x'], &[0x81]);
    peer.refuses(&[0x30, 0xFF, 0xFF, 0xFF, 0xFF, 0x01], &[0x81]);
    peer.refuses(&packet(0x30, &[&bytes(b"t"), &[0x80, 0x00], b"x"]), &[0x81]);
    peer.refuses(&peer.subscribe_bytes(1, &[0x0B, 0x81, 0x00], &[("t", 0)]), &[0x81]);
    peer.refuses(&peer.subscribe_bytes(1, &[0x0B, 0xFF, 0xFF, 0xFF, 0xFF, 0x01], &[("t", 0)]), &[0x81]);
    let connect = frames::connect(peer.version, "id", true, &[]);
    let long: [&[u8]; 3] = [&connect[..1], &[connect[1] | 0x80, 0], &connect[2..]];
    peer.rejects(&long.concat(), &[0x81]);
    // And ours, on both sides of each border.
    let topic = unique();
    let mut reader = peer.clean(&unique());
    reader.subscribe(&topic, QoS::AtMostOnce);
    for (remaining, head) in [(127, 2), (128, 3), (16_383, 3), (16_384, 4)] {
        let payload = vec![b'x'; remaining - 2 - topic.len() - 1];
        peer.publish(&topic, &payload, QoS::AtMostOnce, false);
        assert_eq!(next_publish_frame(&mut reader).bytes().len(), head + remaining);
    }
});
clause!(mqtt_1_5_7_1, "MQTT-1.5.7-1", [v5], |broker| {
    let peer = peer(broker);
    for wrong in ILL_FORMED.iter().chain(&NUL) {
        for pair in [[property(0x26, wrong), bytes(b"value")], [property(0x26, b"name"), bytes(wrong)]] {
            let pair = pair.concat();
            let field = peer.properties(&pair);
            let id = bytes(b"id");
            peer.refuses(&peer.publish_bytes(0x30, b"t", 0, &pair, b"x"), &[0x81]);
            peer.refuses(&peer.subscribe_bytes(1, &pair, &[("t", 0)]), &[0x81]);
            peer.refuses(&packet(0xA2, &[&[0, 1], &field, &bytes(b"t")]), &[0x81]);
            peer.refuses(&packet(0x40, &[&[0, 1, 0], &field]), &[0x81]);
            peer.refuses(&packet(0xE0, &[&[0], &field]), &[0x81]);
            peer.rejects(&connect_of(peer.version, CLEAN, 0, &pair, &[&id]), &[0x81]);
            let will = Will { properties: &pair, ..Will::on("t") };
            peer.rejects(&will.bytes(peer.version, "id"), &[0x81]);
        }
    }
    // A name without its value.
    peer.refuses(&peer.publish_bytes(0x30, b"t", 0, &property(0x26, b"name"), b""), &[0x81]);
});
clause!(mqtt_2_2_2_1_of_3, "MQTT-2.2.2-1", [v3_1_1], |broker| {
    flags_in(peer(broker));
    flags_out(peer(broker));
});
clause!(mqtt_2_2_2_2, "MQTT-2.2.2-2", [v3_1_1], |broker| flags_in(peer(broker)));
clause!(mqtt_2_1_3_1, "MQTT-2.1.3-1", [v5], |broker| {
    flags_in(peer(broker));
    flags_out(peer(broker));
});
clause!(mqtt_2_3_1_1, "MQTT-2.3.1-1", [v3_1_1], |broker| no_identifier_0(peer(broker)));
clause!(mqtt_2_2_1_3, "MQTT-2.2.1-3", [v5], |broker| no_identifier_0(peer(broker)));
clause!(mqtt_2_2_2_1, "MQTT-2.2.2-1", [v5], |broker| {
    let peer = peer(broker);
    // Without the length, what follows is read as one.
    peer.refuses(&packet(0x30, &[&bytes(b"t")]), &[0x81]);
    peer.refuses(&packet(0x82, &[&[0, 1], &bytes(b"t"), &[0]]), &[0x81, 0x82]);
    peer.refuses(&packet(0xA2, &[&[0, 1], &bytes(b"t")]), &[0x81, 0x82]);
    peer.rejects(&packet(0x10, &[b"\0\x04MQTT\x05\x02\0\0", &bytes(b"id")]), &[0x81, 0x82]);
    // A length beyond the packet.
    peer.refuses(&packet(0x30, &[&bytes(b"t"), &[5], b"x"]), &[0x81]);
    // And ours.
    let topic = unique();
    let mut client = peer.clean(&unique());
    client.send_raw(&peer.subscribe_bytes(1, &[], &[(&topic, 0)])).unwrap();
    assert_eq!(client.recv(PATIENCE).unwrap().bytes(), [0x90, 4, 0, 1, 0, 0]);
    peer.publish(&topic, b"x", QoS::AtMostOnce, false);
    let publish = packet(0x30, &[&bytes(topic.as_bytes()), &[0], b"x"]);
    assert_eq!(client.recv(PATIENCE).unwrap().bytes(), publish);
    client.send_raw(&peer.unsubscribe_bytes(2, &[&topic])).unwrap();
    assert_eq!(client.recv(PATIENCE).unwrap().bytes(), [0xB0, 4, 0, 2, 0, 0]);
});
clause!(mqtt_7_1_1_1, "MQTT-7.1.1-1", [v3_1_1], |broker| a_stream(peer(broker)));
clause!(mqtt_4_2_0_1, "MQTT-4.2.0-1", [v5], |broker| a_stream(peer(broker)));

/// An overlong form, both ends of the surrogates, beyond the last code point, a tail alone, a head alone, no UTF-8 at all.
const ILL_FORMED: [&[u8]; 7] =
    [b"\xC0\xAF", b"\xED\xA0\x80", b"a\xED\xBF\xBF", b"\xF4\x90\x80\x80", b"\x80", b"a\xC3", b"\xFFa"];
/// U+0000.
const NUL: [&[u8]; 3] = [b"\0", b"a\0b", b"abcdefgh\0"];

fn well_formed(broker: &Broker) {
    let peer = peer(broker);
    refuses_strings(peer, &ILL_FORMED);
    // The outermost of what is well formed: next to the surrogates, the last code point, those that are no characters.
    let topic = format!("{}/\u{D7FF}\u{E000}\u{10FFFF}\u{FFFF}\u{FDD0}\u{1}", unique());
    let mut reader = peer.clean(&topic);
    assert_eq!(reader.subscribe(&topic, QoS::AtMostOnce), 0);
    peer.publish(&topic, b"x", QoS::AtMostOnce, false);
    assert_eq!(next_publish(&mut reader).topic, topic);
}

/// Wherever a client sends a string.
fn refuses_strings(peer: Peer, wrong: &[&[u8]]) {
    let none = peer.properties(&[]);
    for wrong in wrong {
        let (id, string) = (bytes(b"id"), bytes(wrong));
        let topic = peer.publish_bytes(0x30, wrong, 0, &[], b"x");
        let filter = packet(0x82, &[&[0, 1], &none, &string, &[0]]);
        let no_more = packet(0xA2, &[&[0, 1], &none, &string]);
        for packet in [topic, filter, no_more] {
            peer.refuses(&packet, &[0x81]);
        }
        for (flags, payload) in [
            (CLEAN, vec![&string[..]]),
            (CLEAN | WILL, vec![&id[..], &none, &string, &bytes(b"will")]),
            (CLEAN | NAME, vec![&id[..], &string]),
        ] {
            peer.rejects(&connect_of(peer.version, flags, 0, &[], &payload), &[0x81]);
        }
        if peer.is_v5() {
            for text in [0x03, 0x08] {
                peer.refuses(&peer.publish_bytes(0x30, b"t", 0, &property(text, wrong), b"x"), &[0x81]);
            }
            let reason = peer.properties(&property(0x1F, wrong));
            peer.refuses(&packet(0xE0, &[&[0x04], &reason]), &[0x81]);
            let method = property(0x15, wrong);
            peer.rejects(&connect_of(peer.version, CLEAN, 0, &method, &[&id]), &[0x81]);
        }
    }
}

fn byte_order_mark(broker: &Broker) {
    let peer = peer(broker);
    let plain = unique();
    let (marked, inside) = (format!("\u{FEFF}{plain}"), format!("{plain}/\u{FEFF}a"));
    let mut reader = peer.clean(&unique());
    for filter in [&marked, &inside] {
        reader.subscribe(filter, QoS::AtMostOnce);
    }
    for topic in [&plain, &marked, &format!("{plain}/a"), &inside] {
        peer.publish(topic, b"", QoS::AtMostOnce, false);
    }
    // Each from a client of its own: between them there is no order.
    let topics: std::collections::BTreeSet<String> =
        peer.rest(&mut reader).into_iter().map(|message| message.topic).collect();
    assert_eq!(topics, [marked.clone(), inside].into());
    // Of client ids, too.
    peer.persistent(&marked).disconnect();
    assert!(!peer.connect_session(&plain, false, &[]).1, "another client's session");
    peer.back(&marked);
}

/// What a client sends but PUBLISH and CONNECT, as it should be.
fn right(peer: Peer) -> Vec<Vec<u8>> {
    let mut packets = vec![
        ack(0x40, 1),
        ack(PUBREC, 1),
        ack(PUBREL, 1),
        ack(PUBCOMP, 1),
        peer.subscribe_bytes(1, &[], &[("t", 0)]),
        peer.unsubscribe_bytes(1, &["t"]),
        vec![0xC0, 0],
        vec![0xE0, 0],
    ];
    if peer.is_v5() {
        packets.push(vec![0xF0, 0]);
    }
    packets
}

fn flags_in(peer: Peer) {
    for right in right(peer) {
        for flags in (0..16).filter(|flags| *flags != right[0] & 15) {
            let mut wrong = right.clone();
            wrong[0] = right[0] & 0xF0 | flags;
            peer.refuses(&wrong, &[0x81]);
        }
    }
    for flags in 1..16 {
        let mut wrong = frames::connect(peer.version, &unique(), true, &[]);
        wrong[0] |= flags;
        peer.rejects(&wrong, &[0x81]);
    }
}

/// All kinds of packets that a server sends in an ordinary life.
fn flags_out(peer: Peer) {
    let (topic, id) = (unique(), unique());
    let (mut client, connack) = peer.accepted(&frames::connect(peer.version, &id, true, &[]));
    let first = |frame: Frame| frame.bytes()[0];
    assert_eq!(first(connack), 0x20);
    let mut answer = |sent: &[u8]| {
        client.send_raw(sent).unwrap();
        client.recv(PATIENCE).unwrap()
    };
    assert_eq!(first(answer(&peer.subscribe_bytes(1, &[], &[(&topic, 2)]))), 0x90);
    assert_eq!(first(answer(&[0xC0, 0])), 0xD0);
    let other = unique();
    assert_eq!(first(answer(&peer.publish_bytes(0x32, other.as_bytes(), 1, &[], b""))), 0x40);
    assert_eq!(first(answer(&peer.publish_bytes(0x34, other.as_bytes(), 2, &[], b""))), 0x50);
    assert_eq!(first(answer(&ack(PUBREL, 2))), 0x70);
    peer.publish(&topic, b"", QoS::ExactlyOnce, false);
    let id = next_publish(&mut client).packet_id;
    client.send_raw(&ack(PUBREC, id)).unwrap();
    assert_eq!(first(client.recv(PATIENCE).unwrap()), 0x62);
    client.send_raw(&ack(PUBCOMP, id)).unwrap();
    client.send_raw(&peer.unsubscribe_bytes(3, &[&topic])).unwrap();
    assert_eq!(first(client.recv(PATIENCE).unwrap()), 0xB0);
    if peer.is_v5() {
        client.send_raw(&[0x00, 0]).unwrap();
        assert_eq!(first(client.recv(PATIENCE).unwrap()), 0xE0);
    }
}

fn no_identifier_0(peer: Peer) {
    for packet in [
        peer.publish_bytes(0x32, b"t", 0, &[], b"x"),
        peer.publish_bytes(0x34, b"t", 0, &[], b"x"),
        peer.subscribe_bytes(0, &[], &[("t", 0)]),
        peer.unsubscribe_bytes(0, &["t"]),
    ] {
        peer.refuses(&packet, &[0x81, 0x82]);
    }
}

/// Packets cut anywhere come whole, each once, in order, in both directions.
fn a_stream(peer: Peer) {
    let topic = unique();
    let mut reader = peer.clean(&unique());
    reader.subscribe(&topic, QoS::AtMostOnce);
    let mut writer = peer.clean(&unique());
    let (mut sent, count) = (Vec::new(), 1000_u16);
    for n in 1..=count {
        let text = format!("{n:0>width$}", width = 5 + usize::from(n) % 300);
        sent.extend(peer.publish_bytes(0x30, topic.as_bytes(), 0, &[], text.as_bytes()));
        if n % 10 == 0 {
            sent.extend(peer.publish_bytes(0x32, unique().as_bytes(), n, &[], b""));
        }
    }
    let mut rest = &sent[..];
    for size in [1, 2, 3, 5, 7, 1, 11, 997, 4099].into_iter().cycle() {
        let (chunk, after) = rest.split_at(size.min(rest.len()));
        writer.send_raw(chunk).unwrap();
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    for n in 1..=count {
        if n % 10 == 0 {
            writer.expect_ack(AckType::Puback, n);
        }
        let text = next_publish(&mut reader).text().to_owned();
        assert_eq!(text.len(), 5 + usize::from(n) % 300);
        assert_eq!(text.parse(), Ok(n));
    }
}
