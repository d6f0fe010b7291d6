//! CONNACK: when it comes, and what it says.

use ferrule_mqtt::{Connack, Packet, PacketType, Properties, PropertyId, QoS, ReasonCode, Version};
use ferrule_testkit::wire::{Frame, PATIENCE};
use ferrule_testkit::{Config, Node};

use crate::common::closed;
use crate::frames::{
    self, CLEAN, EXPIRY, NAME, Peer, Will, bytes, connect_of, next_publish, peer, property, unique,
};

clause!(mqtt_3_1_4_4_of_3, "MQTT-3.1.4-4", [v3_1_1], |broker| accepts(peer(broker)));
clause!(mqtt_3_1_4_5, "MQTT-3.1.4-5", [v5], |broker| accepts(peer(broker)));
clause!(mqtt_3_2_0_1, "MQTT-3.2.0-1", [v3_1_1, v5], |broker| {
    let peer = peer(broker);
    let (me, topic) = (unique(), unique());
    let mut client = peer.persistent(&me);
    client.subscribe(&topic, QoS::AtLeastOnce);
    peer.leave(client);
    peer.publish(&topic, b"queued", QoS::AtLeastOnce, false);
    // The client does not wait: with its CONNECT come packets that have answers, and a message is there for it.
    let mut client = peer.open();
    let mut sent = frames::connect(peer.version, &me, false, EXPIRY);
    sent.extend(peer.subscribe_bytes(1, &[], &[("t", 0)]));
    sent.extend(peer.publish_bytes(0x32, unique().as_bytes(), 2, &[], b"x"));
    sent.extend([0xC0, 0]);
    client.send_raw(&sent).unwrap();
    assert_eq!(client.recv(PATIENCE).unwrap().bytes()[0], 0x20);
    let mut after: Vec<u8> = (0..4).map(|_| client.recv(PATIENCE).unwrap().bytes()[0]).collect();
    after.sort_unstable();
    assert_eq!(after, [0x32, 0x40, 0x90, 0xD0]);
});
clause!(mqtt_3_2_0_2, "MQTT-3.2.0-2", [v5], |broker| {
    let peer = peer(broker);
    let mut client = peer.persistent(&unique());
    client.ping();
    client.send_raw(&frames::connect(peer.version, &unique(), true, &[])).unwrap();
    assert_eq!(client.recv(PATIENCE).unwrap().bytes()[0], 0xE0, "the next packet after all");
    peer.closed_silently(&mut client);
});
clause!(mqtt_3_2_2_1, "MQTT-3.2.2-1", [v5], |broker| {
    let peer = peer(broker);
    let me = unique();
    for (clean, present) in [(false, 0), (false, 1), (true, 0)] {
        let (_, connack) = peer.accepted(&frames::connect(peer.version, &me, clean, EXPIRY));
        assert_eq!(connack.bytes()[2], present);
    }
    peer.refusal(&frames::connect(peer.version, &me, true, &method())).unwrap(); // looks at them
});
clause!(mqtt_3_2_2_1_of_3, "MQTT-3.2.2-1", [v3_1_1], |broker| session_present(peer(broker)));
clause!(mqtt_3_2_2_2_of_3, "MQTT-3.2.2-2", [v3_1_1], |broker| session_present(peer(broker)));
clause!(mqtt_3_2_2_3_of_3, "MQTT-3.2.2-3", [v3_1_1], |broker| session_present(peer(broker)));
clause!(mqtt_3_2_2_2, "MQTT-3.2.2-2", [v5], |broker| session_present(peer(broker)));
clause!(mqtt_3_2_2_3, "MQTT-3.2.2-3", [v5], |broker| session_present(peer(broker)));
clause!(mqtt_3_2_2_4, "MQTT-3.2.2-4", [v3_1_1], |broker| refusals(broker.version));
clause!(mqtt_3_2_2_5, "MQTT-3.2.2-5", [v3_1_1], |broker| refusals(broker.version));
clause!(mqtt_3_2_2_6, "MQTT-3.2.2-6", [v5], |broker| refusals(broker.version));
clause!(mqtt_3_2_2_7, "MQTT-3.2.2-7", [v5], |broker| refusals(broker.version));
clause!(mqtt_3_2_2_8, "MQTT-3.2.2-8", [v5], |broker| refusals(broker.version));
clause!(mqtt_3_2_2_6_of_3, "MQTT-3.2.2-6", [v3_1_1], |broker| {
    // Too long a topic for a will, and too long a CONNECT: the five codes have no word for either.
    let peer = peer(broker);
    let long = "l".repeat(2000);
    assert_eq!(peer.refusal(&Will::on(&long).bytes(peer.version, "id")), None);
    let connect = frames::connect(peer.version, &"l".repeat(65_535), true, &[]);
    assert_eq!(peer.refusal(&connect), None);
});
clause!(mqtt_3_1_2_28, "MQTT-3.1.2-28", [v5], |broker| {
    let node = Node::start(&Config::edge().extra("[protocol]\nresponse_information = \"to/${clientid}\"\n"));
    let peer = Peer { addr: node.addr(), version: broker.version };
    for (asked, told) in [(&[][..], None), (&[0x19, 0], None), (&[0x19, 1], Some("to/me"))] {
        let (_, connack) = peer.accepted(&frames::connect(peer.version, "me", true, asked));
        assert_eq!(properties(&connack).response_information(), told, "{asked:?}");
    }
});
clause!(mqtt_3_1_3_7, "MQTT-3.1.3-7", [v5], |broker| {
    let peer = peer(broker);
    let (mut client, connack) = peer.accepted(&frames::connect(peer.version, "", false, EXPIRY));
    let id = assigned(&connack).expect("an Assigned Client Identifier");
    let topic = unique();
    client.subscribe(&topic, QoS::AtLeastOnce);
    client.disconnect();
    peer.publish(&topic, b"for the one without a name", QoS::AtLeastOnce, false);
    let mut client = peer.back(&id);
    assert_eq!(client.expect_message().text(), "for the one without a name");
    // And it is that client whom another one of that id takes over from.
    peer.clean(&id);
    assert_eq!(client.expect_closed().map(|reason| reason.0), Some(0x8E));
});
clause!(mqtt_3_2_2_16, "MQTT-3.2.2-16", [v5], |broker| {
    let peer = peer(broker);
    let connacks: Vec<_> =
        (0..50).map(|_| peer.accepted(&frames::connect(peer.version, "", false, EXPIRY))).collect();
    let mut ids: Vec<String> = connacks.iter().map(|(_, connack)| assigned(connack).unwrap()).collect();
    assert!(connacks.iter().all(|(_, connack)| !connack.connack().1), "another's session");
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 50);
    assert!(ids.iter().all(|id| !id.is_empty()));
    // Whoever has an id is not given one.
    let (_, connack) = peer.accepted(&frames::connect(peer.version, &unique(), true, &[]));
    assert_eq!(assigned(&connack), None);
});
clause!(mqtt_3_2_2_9, "MQTT-3.2.2-9", [v5], |broker| {
    // We lack nothing: so no Maximum QoS, and QoS 2 works, in and out.
    let peer = peer(broker);
    let (mut client, connack) = peer.accepted(&frames::connect(peer.version, &unique(), true, &[]));
    let limits = [
        PropertyId::MaximumQoS,
        PropertyId::RetainAvailable,
        PropertyId::WildcardSubscriptionAvailable,
        PropertyId::SubscriptionIdentifierAvailable,
        PropertyId::SharedSubscriptionAvailable,
    ];
    assert!(!limits.into_iter().any(|limit| properties(&connack).contains(limit)));
    let topic = unique();
    assert_eq!(client.subscribe(&topic, QoS::ExactlyOnce), 2);
    client.publish(&topic, b"", QoS::ExactlyOnce, false);
    assert_eq!(next_publish(&mut client).qos, QoS::ExactlyOnce);
});
clause!(mqtt_3_2_2_19, "MQTT-3.2.2-19", [v5], |broker| short(peer(broker), PropertyId::ReasonString));
clause!(mqtt_3_2_2_20, "MQTT-3.2.2-20", [v5], |broker| short(peer(broker), PropertyId::UserProperty));

/// The properties of a CONNACK.
pub(crate) fn properties(connack: &Frame) -> Properties<'_> {
    let Packet::Connack(Connack { properties, .. }) = connack.packet() else { panic!("{connack:?}") };
    properties
}

fn assigned(connack: &Frame) -> Option<String> {
    properties(connack).assigned_client_identifier().map(str::to_owned)
}

/// CONNECT's property with an authentication method that nobody knows.
fn method() -> Vec<u8> {
    property(0x15, b"no such method")
}

fn accepts(peer: Peer) {
    for (clean, expiry) in [(true, &[][..]), (true, EXPIRY), (false, EXPIRY), (false, &[])] {
        let (mut client, connack) = peer.accepted(&frames::connect(peer.version, &unique(), clean, expiry));
        assert_eq!(connack.bytes()[..4], [0x20, connack.bytes()[1], 0, 0]);
        assert!(peer.is_v5() || connack.bytes().len() == 4);
        client.ping();
    }
}

fn session_present(peer: Peer) {
    let me = unique();
    let present = |clean| peer.connect_session(&me, clean, EXPIRY).1;
    assert!(!present(false), "there was none");
    assert!(present(false));
    assert!(!present(true), "it is discarded");
    // With MQTT 5 this one has an expiry: it is kept. With 3.1.1 it ended with its connection.
    assert_eq!(present(false), peer.is_v5());
    assert!(present(false));
}

/// Every way to be refused that there is here: `refusal` sees to it that the flag is 0, that nothing follows, that it is closed.
fn refusals(version: Version) {
    let (open, closed) = (Node::start(&Config::edge().extra("[mqtt]\nmax_sessions = 0\n")), closed());
    let of = |node: &Node| Peer { addr: node.addr(), version };
    let (open, closed) = (of(&open), of(&closed));
    let id = bytes(b"id");
    let name = connect_of(version, CLEAN | NAME, 0, &[], &[&id, &bytes(b"nobody")]);
    let mut asked = vec![
        (closed, frames::connect(version, "id", true, &[]), if open.is_v5() { 0x87 } else { 5 }),
        (closed, name, if open.is_v5() { 0x86 } else { 4 }),
        (open, frames::connect(version, "id", false, EXPIRY), if open.is_v5() { 0x97 } else { 3 }),
        (open, Will::on("$closed/t").bytes(version, "id"), if open.is_v5() { 0x87 } else { 5 }),
    ];
    if open.is_v5() {
        asked.extend([
            (open, frames::connect(version, "id", true, &method()), 0x8C),
            (open, connect_of(version, CLEAN | 1, 0, &[], &[&id]), 0x81),
            (open, frames::connect(version, "id", true, &[0x21, 0, 0]), 0x82),
            (open, frames::connect(version, &"l".repeat(65_535), true, &[]), 0x95),
            (open, Will::on(&"l".repeat(2000)).bytes(version, "id"), 0x90),
        ]);
    } else {
        asked.push((open, frames::connect(version, "", false, &[]), 2));
    }
    for (peer, connect, code) in asked {
        assert_eq!(peer.refusal(&connect), Some(code), "{connect:02x?}");
        assert!(!peer.is_v5() || ReasonCode(code).allowed_in(PacketType::Connack));
    }
}

/// To a client that takes short packets alone: no CONNACK is longer, and what we may leave out is left out.
fn short(peer: Peer, left_out: PropertyId) {
    for maximum in [64, 40] {
        let size = [0x27, 0, 0, 0, maximum];
        let (_, connack) = peer.accepted(&frames::connect(peer.version, "", true, &size));
        assert!(connack.bytes().len() <= usize::from(maximum), "{connack:?}");
        assert!(!properties(&connack).contains(left_out));
    }
    // A refusal says why where that fits to the byte, and its code where it does not.
    let refusal = |maximum: usize| {
        let maximum = u32::try_from(maximum).unwrap().to_be_bytes();
        let asked = [&[0x27][..], &maximum, &[0x19, 1]].concat();
        let mut client = peer.open();
        client
            .send_raw(&Will { connect: &asked, ..Will::on("$closed/t") }.bytes(peer.version, "id"))
            .unwrap();
        client.recv(PATIENCE).map(|frame| frame.bytes().to_vec()).ok()
    };
    let whole = refusal(1000).expect("a CONNACK");
    assert!(whole.len() > 10 && whole[5] == 0x1F, "a Reason String: {whole:02x?}");
    assert_eq!(refusal(whole.len()).as_ref(), Some(&whole));
    for maximum in [whole.len() - 1, 5] {
        assert_eq!(refusal(maximum), Some(vec![0x20, 3, 0, 0x87, 0]));
    }
    // For whom no CONNACK is short enough there is none.
    assert_eq!(refusal(4), None);
    assert_eq!(peer.refusal(&frames::connect(peer.version, "id", true, &[0x27, 0, 0, 0, 5])), None);
}

#[test]
fn limits_are_told() {
    let node =
        Node::start(&Config::edge().extra("[mqtt]\nsession_expiry_max = \"60s\"\nkeep_alive_max = \"9s\"\n"));
    let peer = Peer { addr: node.addr(), version: Version::V5 };
    let told = |clean, keep_alive, asked: &[u8]| {
        let flags = if clean { CLEAN } else { 0 };
        let connect = connect_of(peer.version, flags, keep_alive, asked, &[&bytes(b"id")]);
        let (_, connack) = peer.accepted(&connect);
        let properties = properties(&connack);
        (properties.session_expiry_interval(), properties.server_keep_alive())
    };
    // What holds is said where it is not what was asked for.
    assert_eq!(told(true, 5, &[]), (None, None));
    assert_eq!(told(true, 9, &[0x11, 0, 0, 0, 60]), (None, None));
    assert_eq!(told(true, 10, &[0x11, 0, 0, 0, 61]), (Some(60), Some(9)));
    assert_eq!(told(true, 0, &[0x11, 0xFF, 0xFF, 0xFF, 0xFF]), (Some(60), Some(9)));
}
