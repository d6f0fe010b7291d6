//! CONNECT: what is one, and what it asks.

use ferrule_mqtt::QoS;
use ferrule_testkit::Config;
use ferrule_testkit::Node;
use ferrule_testkit::node::EDGE_PASSWORD;

use crate::common::{Broker, USER, closed};
use crate::frames::{
    self, CLEAN, EXPIRY, NAME, PASSWORD, Peer, WILL, Will, bytes, connect_of, next_publish, packet, peer,
    property, unique,
};

clause!(mqtt_3_1_0_1, "MQTT-3.1.0-1", [v3_1_1, v5], |broker| {
    let peer = peer(broker);
    let topic = unique();
    let mut reader = peer.clean(&unique());
    reader.subscribe(&topic, QoS::AtMostOnce);
    let connect = frames::connect(peer.version, &unique(), true, &[]);
    for first in [
        peer.publish_bytes(0x30, topic.as_bytes(), 0, &[], b"x"),
        peer.subscribe_bytes(1, &[], &[("t", 0)]),
        vec![0x40, 2, 0, 1],
        vec![0xC0, 0],
        vec![0xE0, 0],
        vec![0xF0, 0],
        vec![0x20, 2, 0, 0],
    ] {
        // A CONNECT behind it makes nothing good.
        assert_eq!(peer.refusal(&[&first[..], &connect].concat()), None, "{first:02x?}");
    }
    assert_eq!(peer.rest(&mut reader), []);
});
clause!(mqtt_3_1_0_2, "MQTT-3.1.0-2", [v3_1_1, v5], |broker| {
    let peer = peer(broker);
    let (me, other) = (unique(), unique());
    let mut client = peer.persistent(&me);
    let again = frames::connect(peer.version, &other, false, EXPIRY);
    client.send_raw(&again).unwrap();
    peer.closed(&mut client, &[0x82], &again);
    peer.back(&me);
    assert!(!peer.connect_session(&other, false, &[]).1, "the second one has made a session");
});
clause!(mqtt_3_1_2_1, "MQTT-3.1.2-1", [v3_1_1, v5], |broker| {
    let peer = peer(broker);
    for name in ["", "MQT", "MQTTX", "mqtt", "MQTt", "HTTP", "\u{FEFF}MQTT"] {
        let field = peer.properties(&[]);
        let head = [&bytes(name.as_bytes())[..], &[peer.version as u8, CLEAN, 0, 0], &field].concat();
        let code = peer.refusal(&packet(0x10, &[&head, &bytes(b"id")]));
        assert!([None, Some(0x84), Some(1)].contains(&code), "{name:?}: {code:?}");
    }
});
clause!(mqtt_3_1_2_2_of_3, "MQTT-3.1.2-2", [v3_1_1], |broker| {
    let peer = peer(broker);
    for level in 0..=3 {
        assert_eq!(peer.refusal(&of_level(level)), Some(1), "level {level}");
    }
});
clause!(mqtt_3_1_2_2, "MQTT-3.1.2-2", [v5], |broker| {
    let peer = peer(broker);
    for level in [6, 7, 0x7F, 0x85, 0xFF] {
        assert_eq!(peer.refusal(&of_level(level)), Some(0x84), "level {level}");
    }
});
clause!(mqtt_3_1_2_3, "MQTT-3.1.2-3", [v3_1_1, v5], |broker| {
    let peer = peer(broker);
    peer.rejects(&connect_of(peer.version, CLEAN | 1, 0, &[], &[&bytes(b"id")]), &[0x81, 0x82]);
});
clause!(mqtt_3_1_2_18, "MQTT-3.1.2-18", [v3_1_1], |broker| flag_and_field(peer(broker), 0, &[USER]));
clause!(mqtt_3_1_2_16, "MQTT-3.1.2-16", [v5], |broker| flag_and_field(peer(broker), 0, &[USER]));
clause!(mqtt_3_1_2_19, "MQTT-3.1.2-19", [v3_1_1], |broker| name_and_password(peer(broker)));
clause!(mqtt_3_1_2_17, "MQTT-3.1.2-17", [v5], |broker| name_and_password(peer(broker)));
clause!(mqtt_3_1_2_20, "MQTT-3.1.2-20", [v3_1_1], |broker| flag_and_field(peer(broker), NAME, &[USER, "p"]));
clause!(mqtt_3_1_2_18_of_5, "MQTT-3.1.2-18", [v5], |broker| flag_and_field(peer(broker), NAME, &[USER, "p"]));
clause!(mqtt_3_1_2_21, "MQTT-3.1.2-21", [v3_1_1], |broker| name_and_password(peer(broker)));
clause!(mqtt_3_1_2_19_of_5, "MQTT-3.1.2-19", [v5], |broker| name_and_password(peer(broker)));
clause!(mqtt_3_1_2_22, "MQTT-3.1.2-22", [v3_1_1], |broker| flag_and_field(peer(broker), PASSWORD, &["p"]));
clause!(mqtt_3_1_3_1, "MQTT-3.1.3-1", [v3_1_1, v5], |broker| in_their_order(broker));
clause!(mqtt_3_1_3_3, "MQTT-3.1.3-3", [v3_1_1, v5], |broker| {
    let peer = peer(broker);
    peer.rejects(&connect_of(peer.version, CLEAN, 0, &[], &[]), &[0x81, 0x82]);
    in_their_order(broker);
});
clause!(mqtt_3_1_3_4, "MQTT-3.1.3-4", [v3_1_1, v5], |broker| {
    let peer = peer(broker);
    for wrong in [&b"\xFF"[..], b"a\0", b"\xED\xA0\x80"] {
        peer.rejects(&connect_of(peer.version, CLEAN, 0, &[], &[&bytes(wrong)]), &[0x81, 0x85]);
    }
    for wrong in [&b"\0"[..], b"\0\x03id"] {
        peer.rejects(&connect_of(peer.version, CLEAN, 0, &[], &[wrong]), &[0x81, 0x85]);
    }
    // Any string will do.
    for id in [format!("ü/+#$ \u{10FFFF}{}", unique()), format!("{}{}", "l".repeat(60_000), unique())] {
        peer.persistent(&id).disconnect();
        peer.back(&id);
        peer.clean(&id);
    }
});
clause!(mqtt_3_1_3_5, "MQTT-3.1.3-5", [v3_1_1, v5], |broker| {
    let node = Node::start(&Config::edge());
    let peer = Peer { addr: node.addr(), version: broker.version };
    let letters = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    let singly = (0..letters.len()).map(|at| &letters[at..=at]);
    let by_length = (2..=23).map(|length| &letters[length..2 * length]);
    let ids: Vec<&str> = singly.chain(by_length).collect();
    for id in &ids {
        assert!(!peer.connect_session(id, false, EXPIRY).1, "{id} is taken for another");
    }
    for id in ids {
        peer.back(id);
    }
});
clause!(mqtt_3_1_3_6, "MQTT-3.1.3-6", [v3_1_1, v5], |broker| {
    let peer = peer(broker);
    // Neither takes over from the other, and both do what any client does.
    let topic = unique();
    let mut two = [peer.clean(""), peer.clean("")];
    for client in &mut two {
        client.subscribe(&topic, QoS::AtLeastOnce);
    }
    for client in &mut two {
        client.publish(&topic, b"x", QoS::AtLeastOnce, false);
    }
    for client in &mut two {
        assert_eq!(peer.texts(client), ["x", "x"]);
    }
});
clause!(mqtt_3_1_3_7_of_3, "MQTT-3.1.3-7", [v3_1_1], |broker| no_id_no_session(peer(broker)));
clause!(mqtt_3_1_3_8_of_3, "MQTT-3.1.3-8", [v3_1_1], |broker| no_id_no_session(peer(broker)));
clause!(mqtt_3_1_3_9_of_3, "MQTT-3.1.3-9", [v3_1_1], |broker| no_id_no_session(peer(broker)));
clause!(mqtt_3_1_3_8, "MQTT-3.1.3-8", [v5], |broker| {
    // All strings that fit a CONNECT are ids to us: what does not fit is the nearest to an id that is refused.
    let peer = peer(broker);
    let connect = frames::connect(peer.version, &"l".repeat(65_535), true, &[]);
    assert!([Some(0x85), Some(0x95)].contains(&peer.refusal(&connect)));
});
clause!(mqtt_3_1_3_11, "MQTT-3.1.3-11", [v3_1_1], |broker| names_are_strings(peer(broker)));
clause!(mqtt_3_1_3_12, "MQTT-3.1.3-12", [v5], |broker| names_are_strings(peer(broker)));
clause!(mqtt_3_1_4_1, "MQTT-3.1.4-1", [v3_1_1, v5], |broker| {
    let peer = peer(broker);
    let (v, id, none) = (peer.version, bytes(b"id"), peer.properties(&[]));
    for (flags, payload) in [
        (CLEAN, vec![]),                                          // no id
        (CLEAN, vec![&id[..], b"x"]),                             // more than there should be
        (CLEAN | WILL, vec![&id[..]]),                            // no will
        (CLEAN | WILL, vec![&id[..], &none, &id]),                // no will message
        (CLEAN | WILL | 0x18, vec![&id[..], &none, &id, &id]),    // QoS 3
        (CLEAN | 0x08, vec![&id[..]]),                            // QoS without a will
        (CLEAN | NAME, vec![&id[..]]),                            // no name
        (CLEAN | NAME, vec![&id[..], &[0, 9, b'x']]),             // a short name
        (CLEAN | NAME | PASSWORD, vec![&id[..], &id]),            // no password
        (CLEAN | NAME | PASSWORD, vec![&id[..], &id, &id, &[0]]), // and one byte
    ] {
        peer.rejects(&connect_of(v, flags, 0, &[], &payload), &[0x81, 0x82]);
    }
    // Cut off before and within its head.
    for head in [&b""[..], b"\0", b"\0\x04MQ", b"\0\x04MQTT"] {
        assert_eq!(peer.refusal(&packet(0x10, &[head])), None, "{head:02x?}");
    }
    for length in 7..10 {
        let whole = frames::connect(v, "id", true, &[]);
        peer.rejects(&packet(0x10, &[&whole[2..2 + length]]), &[0x81, 0x82]);
    }
});
clause!(mqtt_3_1_4_2_of_5, "MQTT-3.1.4-2", [v5], |broker| {
    let node = closed();
    let peer = Peer { addr: node.addr(), version: broker.version };
    assert_eq!(peer.refusal(&frames::connect(peer.version, "id", true, &[])), Some(0x87));
    assert_eq!(peer.refusal(&login(peer, USER, "wrong")), Some(0x86));
    assert_eq!(peer.refusal(&login(peer, "nobody", EDGE_PASSWORD)), Some(0x86));
    peer.accepted(&login(peer, USER, EDGE_PASSWORD));
});
clause!(mqtt_3_1_4_5_of_3, "MQTT-3.1.4-5", [v3_1_1], after_a_refusal);
clause!(mqtt_3_1_4_6, "MQTT-3.1.4-6", [v5], after_a_refusal);

/// A CONNECT of "MQTT" with this level, as 3.1.1 and what came before and after would write it.
fn of_level(level: u8) -> Vec<u8> {
    let properties: &[u8] = if level > 4 { &[0] } else { &[] };
    packet(0x10, &[b"\0\x04MQTT", &[level, CLEAN, 0, 0], properties, &bytes(b"id")])
}

/// CONNECT with user name and password.
fn login(peer: Peer, name: &str, password: &str) -> Vec<u8> {
    let payload: [&[u8]; 3] =
        [&bytes(unique().as_bytes()), &bytes(name.as_bytes()), &bytes(password.as_bytes())];
    connect_of(peer.version, CLEAN | NAME | PASSWORD, 0, &[], &payload)
}

/// Fields behind the id that these flags do not announce, or a flag that may not stand alone.
fn flag_and_field(peer: Peer, flags: u8, fields: &[&str]) {
    let mut payload = bytes(b"id");
    for field in fields {
        payload.extend(bytes(field.as_bytes()));
    }
    peer.rejects(&connect_of(peer.version, CLEAN | flags, 0, &[], &[&payload]), &[0x81, 0x82]);
}

/// With their flags they are read and decide; without the fields the CONNECT is none.
fn name_and_password(peer: Peer) {
    let id = bytes(b"id");
    let name = bytes(USER.as_bytes());
    peer.rejects(&connect_of(peer.version, CLEAN | NAME, 0, &[], &[&id]), &[0x81, 0x82]);
    peer.rejects(&connect_of(peer.version, CLEAN | NAME | PASSWORD, 0, &[], &[&id, &name]), &[0x81, 0x82]);
    let node = closed();
    let peer = Peer { addr: node.addr(), ..peer };
    peer.accepted(&login(peer, USER, EDGE_PASSWORD));
    let refused = if peer.is_v5() { 0x86 } else { 4 };
    assert_eq!(peer.refusal(&login(peer, USER, "")), Some(refused));
    assert_eq!(peer.refusal(&login(peer, "", EDGE_PASSWORD)), Some(refused));
    assert_eq!(peer.refusal(&connect_of(peer.version, CLEAN | NAME, 0, &[], &[&id, &name])), Some(refused));
}

/// Id, will properties, will topic, will message, user name, password: each is what stands in its place.
fn in_their_order(broker: &Broker) {
    let node = closed();
    let peer = Peer { addr: node.addr(), version: broker.version };
    let mut reader = peer.accepted(&login(peer, USER, EDGE_PASSWORD)).0;
    reader.subscribe("the will's topic", QoS::AtMostOnce);
    let will = property(0x26, b"k").into_iter().chain(bytes(b"v")).collect::<Vec<_>>();
    let payload: Vec<u8> = [
        bytes(b"the id"),
        peer.properties(&will),
        bytes(b"the will's topic"),
        bytes(b"the will"),
        bytes(USER.as_bytes()),
        bytes(EDGE_PASSWORD.as_bytes()),
    ]
    .concat();
    let connect = |flags| connect_of(peer.version, NAME | PASSWORD | WILL | flags, 0, EXPIRY, &[&payload]);
    drop(peer.accepted(&connect(0)).0);
    let message = next_publish(&mut reader);
    assert_eq!(message.text(), "the will");
    assert_eq!(message.user_properties.len(), usize::from(peer.is_v5()));
    assert!(peer.accepted(&connect(0)).1.connack().1, "the session of that id");
}

fn no_id_no_session(peer: Peer) {
    let topic = unique();
    let mut reader = peer.clean(&unique());
    reader.subscribe(&topic, QoS::AtMostOnce);
    assert_eq!(peer.refusal(&frames::connect(peer.version, "", false, &[])), Some(2));
    let will = Will { clean: false, ..Will::on(&topic) };
    assert_eq!(peer.refusal(&will.bytes(peer.version, "")), Some(2));
    assert_eq!(peer.rest(&mut reader), [], "the will of a refused client");
}

fn names_are_strings(peer: Peer) {
    for wrong in [&b"\xFF"[..], b"a\0", b"\xED\xA0\x80"] {
        let payload: [&[u8]; 2] = [&bytes(b"id"), &bytes(wrong)];
        peer.rejects(&connect_of(peer.version, CLEAN | NAME, 0, &[], &payload), &[0x81]);
    }
    // A password is any bytes.
    let payload: [&[u8]; 3] = [&bytes(unique().as_bytes()), &bytes(b"name"), &bytes(b"\xFF\0\xED\xA0\x80")];
    peer.accepted(&connect_of(peer.version, CLEAN | NAME | PASSWORD, 0, &[], &payload));
}

/// What was written together with a CONNECT that is refused, at once or after a password was looked at, has no effect.
fn after_a_refusal(broker: &Broker) {
    let node = closed();
    let peer = Peer { addr: node.addr(), version: broker.version };
    let mut reader = peer.accepted(&login(peer, USER, EDGE_PASSWORD)).0;
    reader.subscribe("t", QoS::AtMostOnce);
    for connect in [
        login(peer, USER, "wrong"),
        frames::connect(peer.version, "id", true, &[]),
        frames::connect(peer.version, "", peer.is_v5(), &[]),
    ] {
        let publish = peer.publish_bytes(0x31, b"t", 0, &[], b"x");
        let subscribe = peer.subscribe_bytes(1, &[], &[("t", 0)]);
        assert!(peer.refusal(&[connect, publish, subscribe, vec![0xC0, 0]].concat()).is_some());
    }
    reader.publish("t", b"fence", QoS::AtMostOnce, false);
    let message = next_publish(&mut reader);
    assert_eq!(message.text(), "fence");
    reader.subscribe("t", QoS::AtMostOnce);
    reader.publish("t", b"nothing is retained", QoS::AtMostOnce, false);
    assert_eq!(next_publish(&mut reader).text(), "nothing is retained");
}
