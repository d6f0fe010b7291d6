//! MQTT 3.1, which has no numbered clauses: what its clients see, on the port of the other two.

use ferrule_mqtt::{QoS, Version};
use ferrule_testkit::Client;

use crate::common::Broker;
use crate::frames::{
    self, CLEAN, DUP, NAME, PASSWORD, Peer, WILL, bytes, next_publish, packet, peer, unique,
};

fn old() -> (Broker, Peer) {
    let broker = Broker::v3_1_1();
    let peer = Peer { version: Version::V3_1, ..peer(&broker) };
    (broker, peer)
}

/// CONNECT of "MQIsdp" with this level.
fn isdp(level: u8, flags: u8, payload: &[&[u8]]) -> Vec<u8> {
    packet(0x10, &[b"\0\x06MQIsdp", &[level, flags, 0, 0], &payload.concat()])
}

/// Connects and is accepted: the client and the two bytes of its CONNACK.
fn accepted(peer: Peer, connect: &[u8]) -> (Client, [u8; 2]) {
    let (client, connack) = peer.accepted(connect);
    let [0x20, 2, first, code] = *connack.bytes() else { panic!("{connack:?}") };
    (client, [first, code])
}

#[test]
fn it_is_accepted_and_answered_in_its_form() {
    let (_broker, peer) = old();
    let me = bytes(unique().as_bytes());
    // The first byte is unused: 0 with and without a session.
    for flags in [CLEAN, 0, 0] {
        let (mut client, connack) = accepted(peer, &isdp(3, flags, &[&me]));
        assert_eq!(connack, [0, 0]);
        let topic = unique();
        assert_eq!(client.subscribe(&topic, QoS::ExactlyOnce), 2);
        for qos in frames::ALL_QOS {
            client.publish(&topic, b"x", qos, false);
            assert_eq!(client.expect_message().qos, qos);
        }
        client.unsubscribe(&topic);
        client.ping();
        client.disconnect();
    }
}

#[test]
fn its_session_is_kept() {
    let (_broker, peer) = old();
    let (me, topic) = (unique(), unique());
    let (mut client, _) = accepted(peer, &isdp(3, 0, &[&bytes(me.as_bytes())]));
    client.subscribe(&topic, QoS::AtLeastOnce);
    client.disconnect();
    peer.publish(&topic, b"queued", QoS::AtLeastOnce, false);
    let (mut client, _) = accepted(peer, &isdp(3, 0, &[&bytes(me.as_bytes())]));
    assert_eq!(client.expect_message().text(), "queued");
}

#[test]
fn ids_of_1_to_23_characters_are_accepted_and_longer_ones_too() {
    let (_broker, peer) = old();
    for length in [1, 2, 22, 23, 24, 100] {
        accepted(peer, &isdp(3, CLEAN, &[&bytes("-".repeat(length).as_bytes())]));
    }
    for flags in [0, CLEAN] {
        assert_eq!(peer.refusal(&isdp(3, flags, &[&bytes(b"")])), Some(2), "no id");
    }
}

#[test]
fn the_remaining_length_outweighs_flags_and_unused_bits_are_ignored() {
    let (_broker, peer) = old();
    let id = bytes(unique().as_bytes());
    accepted(peer, &isdp(3, CLEAN | NAME | PASSWORD, &[&id]));
    accepted(peer, &isdp(3, CLEAN | NAME | PASSWORD, &[&id, &bytes(b"name")]));
    accepted(peer, &isdp(3, CLEAN | 1, &[&id]));
    accepted(peer, &isdp(3, CLEAN | 0x08, &[&id]));
    // DUP of a SUBSCRIBE that is sent again.
    let (mut client, _) = accepted(peer, &isdp(3, CLEAN, &[&id]));
    let topic = unique();
    let mut again = peer.subscribe_bytes(1, &[], &[(&topic, 1)]);
    again[0] |= DUP;
    client.send_raw(&again).unwrap();
    assert_eq!(frames::next_suback(&mut client), (1, vec![1]));
}

#[test]
fn its_will_is_published() {
    let (_broker, peer) = old();
    let topic = unique();
    let mut reader = accepted(peer, &isdp(3, CLEAN, &[&bytes(unique().as_bytes())])).0;
    reader.subscribe(&topic, QoS::AtLeastOnce);
    let payload: [&[u8]; 3] = [&bytes(unique().as_bytes()), &bytes(topic.as_bytes()), &bytes(b"will")];
    drop(accepted(peer, &isdp(3, CLEAN | WILL, &payload)));
    assert_eq!(next_publish(&mut reader).text(), "will");
}

#[test]
fn versions_are_told_apart_on_one_port() {
    let (broker, old) = old();
    let [mut three, mut four, mut five] =
        [old, peer(&broker), peer(&Broker::v5())].map(|peer| match peer.version {
            Version::V3_1 => accepted(peer, &isdp(3, CLEAN, &[&bytes(unique().as_bytes())])).0,
            _ => peer.clean(&unique()),
        });
    let topic = unique();
    for client in [&mut three, &mut four, &mut five] {
        client.subscribe(&topic, QoS::AtLeastOnce);
    }
    for client in [&mut three, &mut four, &mut five] {
        client.publish(&topic, b"x", QoS::AtLeastOnce, false);
    }
    for client in [&mut three, &mut four, &mut five] {
        for _ in 0..3 {
            assert_eq!(client.expect_message().text(), "x");
        }
    }
    // Each with the level of its name: others are refused with 1.
    for level in [0, 1, 2, 4, 5] {
        assert_eq!(old.refusal(&isdp(level, CLEAN, &[&bytes(b"id")])), Some(1), "MQIsdp {level}");
    }
    // And it has no MQTT 5: AUTH is no packet, PUBACK has no reason.
    for wrong in [&[0xF0, 0][..], &[0x40, 3, 0, 1, 0]] {
        let (mut client, _) = accepted(old, &isdp(3, CLEAN, &[&bytes(unique().as_bytes())]));
        client.send_raw(wrong).unwrap();
        assert_eq!(client.expect_closed(), None);
    }
    three.ping();
}
