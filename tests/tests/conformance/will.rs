//! Wills: kept with the connection, published when it is lost.

use ferrule_mqtt::{PropertyId, QoS};
use ferrule_testkit::wire::Message;
use ferrule_testkit::{Client, Config, Node};

use crate::common::Broker;
use crate::frames::{
    self, ALL_QOS, CLEAN, EXPIRY, Peer, WILL, Will, bytes, connect_of, next_publish, next_publish_frame,
    peer, property, unique,
};

clause!(mqtt_3_1_2_8_of_3, "MQTT-3.1.2-8", [v3_1_1], |broker| published_when_lost(peer(broker)));
clause!(mqtt_3_1_2_7, "MQTT-3.1.2-7", [v5], |broker| {
    // Over a kill, with the rest of the session: its delay is not over yet.
    let mut node = Node::start(&Config::edge());
    let peer = Peer { addr: node.addr(), version: broker.version };
    let mut reader = peer.persistent("reader");
    reader.subscribe("t", QoS::ExactlyOnce);
    let will = Will { clean: false, connect: EXPIRY, qos: 1, properties: &delay(2), ..Will::on("t") };
    drop(will.connect(peer, "me"));
    node.wait_status(ferrule_testkit::wire::PATIENCE, "it is gone", |status| {
        ferrule_testkit::node::count(status, "connections") == 1
    });
    drop(reader);
    node.kill9();
    node.restart();
    assert_eq!(peer.back("reader").expect_message().text(), "will");
});
clause!(mqtt_3_1_2_8, "MQTT-3.1.2-8", [v5], |broker| {
    let peer = peer(broker);
    published_when_lost(peer);
    // After its delay, or with its session's end if that is earlier; not when its client is back.
    let base = unique();
    let mut reader = watch(peer, &format!("{base}/+"));
    let lost = |name: &str, delay_s: u32, expiry_s: u8| {
        let topic = format!("{base}/{name}");
        let properties = delay(delay_s);
        let expiry = [0x11, 0, 0, 0, expiry_s];
        let will = Will { properties: &properties, connect: &expiry, clean: false, ..Will::on(&topic) };
        drop(will.connect(peer, &topic));
        topic
    };
    let (back, none, late, short) =
        (lost("back", 1, 100), lost("none", 1000, 0), lost("late", 1, 100), lost("short", 1000, 1));
    peer.connect_session(&back, false, &[0x11, 0, 0, 0, 100]);
    // One without a session has its will at once, whatever its delay is.
    assert_eq!(next_publish(&mut reader).topic, none);
    let mut both = [next_publish(&mut reader).topic, next_publish(&mut reader).topic];
    both.sort();
    assert_eq!(both, [late, short]);
    assert_eq!(peer.rest(&mut reader), []);
});
clause!(mqtt_3_1_2_9, "MQTT-3.1.2-9", [v3_1_1, v5], |broker| {
    let peer = peer(broker);
    let (id, none, topic) = (bytes(b"id"), peer.properties(&[]), bytes(b"t"));
    for payload in [vec![&id[..]], vec![&id[..], &none], vec![&id[..], &none, &topic]] {
        peer.rejects(&connect_of(peer.version, CLEAN | WILL, 0, &[], &payload), &[0x81, 0x82]);
    }
    if peer.is_v5() {
        // Properties, of a will and no others.
        peer.rejects(&connect_of(peer.version, CLEAN | WILL, 0, &[], &[&id, &topic, &topic]), &[0x81, 0x82]);
        let wrong = Will { properties: &[0x23, 0, 1], ..Will::on("t") };
        peer.rejects(&wrong.bytes(peer.version, "id"), &[0x81, 0x82]);
    }
    qualities(peer);
});
clause!(mqtt_3_1_2_10, "MQTT-3.1.2-10", [v3_1_1, v5], |broker| {
    let peer = peer(broker);
    let (topic, me) = (unique(), unique());
    let mut reader = watch(peer, &topic);
    let will = Will { clean: false, connect: EXPIRY, ..Will::on(&topic) };
    drop(will.connect(peer, &me));
    assert_eq!(next_publish(&mut reader).text(), "will");
    drop(peer.back(&me));
    peer.back(&me).disconnect();
    will.connect(peer, &me).disconnect();
    drop(peer.back(&me));
    assert_eq!(after_all_ended(peer, &mut reader), []);
});
clause!(mqtt_3_1_2_11_of_3, "MQTT-3.1.2-11", [v3_1_1], |broker| no_flag(
    peer(broker),
    &[0x08, 0x10, 0x18, 0x20]
));
clause!(mqtt_3_1_2_11, "MQTT-3.1.2-11", [v5], |broker| no_flag(peer(broker), &[0x08, 0x10, 0x18]));
clause!(mqtt_3_1_2_13_of_3, "MQTT-3.1.2-13", [v3_1_1], |broker| no_flag(peer(broker), &[0x08, 0x10, 0x18]));
clause!(mqtt_3_1_2_13, "MQTT-3.1.2-13", [v5], |broker| no_flag(peer(broker), &[0x20]));
clause!(mqtt_3_1_2_15_of_3, "MQTT-3.1.2-15", [v3_1_1], |broker| no_flag(peer(broker), &[0x20]));
clause!(mqtt_3_1_2_12_of_3, "MQTT-3.1.2-12", [v3_1_1], |broker| {
    let peer = peer(broker);
    let (topic, me) = (unique(), unique());
    let mut reader = watch(peer, &topic);
    // The connection before had one, and it was taken over.
    let will = Will { clean: false, ..Will::on(&topic) };
    let mut first = will.connect(peer, &me);
    let second = peer.back(&me);
    first.expect_closed();
    assert_eq!(next_publish(&mut reader).text(), "will");
    drop(second);
    assert_eq!(after_all_ended(peer, &mut reader), []);
});
clause!(mqtt_3_1_2_14_of_3, "MQTT-3.1.2-14", [v3_1_1], no_qos_3);
clause!(mqtt_3_1_2_12, "MQTT-3.1.2-12", [v5], no_qos_3);
clause!(mqtt_3_1_2_16, "MQTT-3.1.2-16", [v3_1_1], |broker| retained(peer(broker), false));
clause!(mqtt_3_1_2_17, "MQTT-3.1.2-17", [v3_1_1], |broker| retained(peer(broker), true));
clause!(mqtt_3_1_2_14, "MQTT-3.1.2-14", [v5], |broker| retained(peer(broker), false));
clause!(mqtt_3_1_2_15, "MQTT-3.1.2-15", [v5], |broker| retained(peer(broker), true));
clause!(mqtt_3_1_3_9, "MQTT-3.1.3-9", [v5], |broker| {
    let peer = peer(broker);
    let (base, watched) = (unique(), unique());
    let mut reader = watch(peer, &format!("{base}/+"));
    let topic = format!("{base}/will");
    let will = Will { clean: false, connect: EXPIRY, properties: &delay(1), ..Will::on(&topic) };
    let mut first = will.connect(peer, &watched);
    // Taken over, lost and back: each time before the delay is over.
    let second = will.connect(peer, &watched);
    first.expect_closed();
    drop(second);
    let third = peer.back(&watched);
    // The clock alone shows that it does not come after its delay.
    std::thread::sleep(std::time::Duration::from_millis(1500));
    assert_eq!(peer.rest(&mut reader), []);
    drop(third);
    assert_eq!(after_all_ended(peer, &mut reader), [], "given up for good");
});
clause!(mqtt_3_1_3_10, "MQTT-3.1.3-10", [v5], |broker| {
    let peer = peer(broker);
    let topic = unique();
    let mut reader = watch(peer, &topic);
    let pairs = [("b", "1"), ("a", "2"), ("b", "1"), ("", ""), ("a", "0")];
    let field = pairs.map(|(name, value)| user(name, value)).concat();
    for more in [delay(0), delay(1)] {
        let properties = [more, field.clone()].concat();
        let will = Will { properties: &properties, connect: EXPIRY, ..Will::on(&topic) };
        drop(will.connect(peer, &unique()));
        let got = next_publish(&mut reader).user_properties;
        let got: Vec<_> = got.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(got, pairs);
    }
});
clause!(mqtt_3_1_3_10_of_3, "MQTT-3.1.3-10", [v3_1_1], |broker| topic_is_a_string(peer(broker)));
clause!(mqtt_3_1_3_11, "MQTT-3.1.3-11", [v5], |broker| topic_is_a_string(peer(broker)));
clause!(mqtt_3_2_2_12, "MQTT-3.2.2-12", [v5], |broker| {
    // There is no QoS that we do not support but 3.
    qualities(peer(broker));
    no_qos_3(broker);
});
clause!(mqtt_3_2_2_13, "MQTT-3.2.2-13", [v5], |broker| {
    // Retained messages are supported, and CONNACK does not say otherwise.
    let peer = peer(broker);
    let will = Will { retain: true, ..Will::on("t") };
    let (client, connack) = peer.accepted(&will.bytes(peer.version, &unique()));
    assert!(!crate::connack::properties(&connack).contains(PropertyId::RetainAvailable));
    client.disconnect();
    retained(peer, true);
});

/// The property Will Delay Interval.
fn delay(seconds: u32) -> Vec<u8> {
    [&[0x18][..], &seconds.to_be_bytes()].concat()
}

/// A user property.
fn user(name: &str, value: &str) -> Vec<u8> {
    [property(0x26, name.as_bytes()), bytes(value.as_bytes())].concat()
}

/// A reader of wills.
fn watch(peer: Peer, filter: &str) -> Client {
    let mut reader = peer.clean(&unique());
    reader.subscribe(filter, QoS::ExactlyOnce);
    reader
}

/// What has come to `reader` by the time that one more client is lost, whose will is the fence: a worker sees
/// ends in their order. (With several it is no proof, and nothing fails for that.)
fn after_all_ended(peer: Peer, reader: &mut Client) -> Vec<Message> {
    let fence = unique();
    reader.subscribe(&fence, QoS::AtLeastOnce);
    drop(Will::on(&fence).connect(peer, &unique()));
    let messages = reader.messages_until(&fence);
    reader.unsubscribe(&fence);
    messages
}

/// For each way to lose a connection; not on DISCONNECT.
fn published_when_lost(peer: Peer) {
    let topic = unique();
    let mut reader = watch(peer, &topic);
    let will = Will { keep_alive: 1, qos: 1, ..Will::on(&topic) };
    let mut expect = |how: &str| {
        let message = next_publish(&mut reader);
        assert_eq!((message.text(), message.retain), ("will", false), "{how}");
    };
    drop(will.connect(peer, &unique()));
    expect("closed");
    let mut half = will.connect(peer, &unique());
    half.half_close().unwrap();
    expect("closed on one side");
    let mut rude = will.connect(peer, &unique());
    rude.send_raw(&[0x00, 0x00]).unwrap();
    expect("a packet that is none");
    let _silent = will.connect(peer, &unique());
    expect("silence");
    let me = unique();
    let _first = will.connect(peer, &me);
    let second = peer.clean(&me);
    expect("taken over");
    second.disconnect();
    let mut polite = will.connect(peer, &unique());
    polite.send_raw(&[0xE0, 0]).unwrap();
    peer.closed_silently(&mut polite);
    assert_eq!(after_all_ended(peer, &mut reader), []);
}

/// Each QoS, as it comes to one who has subscribed with 2.
fn qualities(peer: Peer) {
    let topic = unique();
    let mut reader = watch(peer, &topic);
    for qos in ALL_QOS {
        drop(Will { qos: qos as u8, ..Will::on(&topic) }.connect(peer, &unique()));
        let message = next_publish(&mut reader);
        assert_eq!((message.text(), message.qos, &message.topic), ("will", qos, &topic));
    }
}

fn no_flag(peer: Peer, flags: &[u8]) {
    for flag in flags {
        for clean in [0, CLEAN] {
            peer.rejects(&connect_of(peer.version, clean | flag, 0, &[], &[&bytes(b"id")]), &[0x81, 0x82]);
        }
    }
    // Nor topic and message.
    let (none, topic) = (peer.properties(&[]), bytes(b"t"));
    let payload: [&[u8]; 4] = [&bytes(b"id"), &none, &topic, &topic];
    peer.rejects(&connect_of(peer.version, CLEAN, 0, &[], &payload), &[0x81, 0x82]);
}

fn no_qos_3(broker: &Broker) {
    let peer = peer(broker);
    for retain in [false, true] {
        let wrong = Will { qos: 3, retain, ..Will::on("t") };
        peer.rejects(&wrong.bytes(peer.version, "id"), &[0x81, 0x9B]);
    }
}

fn retained(peer: Peer, retain: bool) {
    let topic = unique();
    peer.publish(&topic, b"before", QoS::AtLeastOnce, true);
    let mut reader = watch(peer, &topic);
    assert_eq!(next_publish(&mut reader).text(), "before");
    drop(Will { retain, qos: 1, ..Will::on(&topic) }.connect(peer, &unique()));
    let message = next_publish(&mut reader);
    assert_eq!((message.text(), message.retain), ("will", false), "to who was there");
    let message = next_publish(&mut watch(peer, &topic));
    assert_eq!((message.text(), message.retain), (if retain { "will" } else { "before" }, true));
}

fn topic_is_a_string(peer: Peer) {
    for topic in [&b"\xFF"[..], b"a\0", b"\xED\xA0\x80", b""] {
        peer.rejects(&Will { topic, ..Will::on("") }.bytes(peer.version, "id"), &[0x81, 0x90]);
    }
}

// === what the numbers do not cover ===

#[test]
fn properties_of_a_will_come_with_it_and_its_delay_does_not() {
    let broker = Broker::v5();
    let peer = peer(&broker);
    let topic = unique();
    let mut reader = watch(peer, &topic);
    let own = [&[0x01, 1][..], &property(0x03, b"text"), &property(0x08, b"answer"), &property(0x09, b"c")];
    let own = own.concat();
    let properties = [delay(0), own.clone()].concat();
    drop(Will { properties: &properties, ..Will::on(&topic) }.connect(peer, &unique()));
    let frame = next_publish_frame(&mut reader);
    assert_eq!(frames::publish(&frame).properties.as_bytes(), own);
}

#[test]
fn a_will_expires_like_any_message() {
    let broker = Broker::v5();
    let peer = peer(&broker);
    let (topic, me) = (unique(), unique());
    let mut away = peer.persistent(&me);
    away.subscribe(&topic, QoS::AtLeastOnce);
    away.disconnect();
    let mut here = watch(peer, &topic);
    for seconds in [1, 100] {
        let expiry = [0x02, 0, 0, 0, seconds];
        let will = Will { qos: 1, properties: &expiry, ..Will::on(&topic) };
        drop(will.connect(peer, &unique()));
        assert_eq!(next_publish(&mut here).text(), "will");
    }
    // The clock alone makes it expire.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let mut back = peer.back(&me);
    let frame = next_publish_frame(&mut back);
    let left = frames::publish(&frame).properties.message_expiry_interval();
    assert!(left.is_some_and(|left| (1..100).contains(&left)), "{left:?}");
    back.ping();
}

#[test]
fn whoever_leaves_with_0x04_leaves_its_will() {
    let broker = Broker::v5();
    let peer = peer(&broker);
    let topic = unique();
    let mut reader = watch(peer, &topic);
    // At once, or after its delay; at once as well when the session ends with the DISCONNECT.
    for (wait, expiry, leave) in [
        (0, EXPIRY, &[0xE0, 1, 0x04][..]),
        (1, EXPIRY, &[0xE0, 1, 0x04]),
        (1000, EXPIRY, &[0xE0, 7, 0x04, 5, 0x11, 0, 0, 0, 0]),
        (1000, &[][..], &[0xE0, 1, 0x04]),
        (0, &[], &[0xE0, 1, 0x80]),
    ] {
        let properties = delay(wait);
        let will = Will { properties: &properties, connect: expiry, ..Will::on(&topic) };
        let mut client = will.connect(peer, &unique());
        client.send_raw(leave).unwrap();
        assert_eq!(next_publish(&mut reader).text(), "will");
        peer.closed_silently(&mut client);
    }
}

#[test]
fn a_delayed_will_is_published_when_its_session_is_discarded() {
    let broker = Broker::v5();
    let peer = peer(&broker);
    let (topic, me) = (unique(), unique());
    let mut reader = watch(peer, &topic);
    let will = Will { connect: EXPIRY, clean: false, properties: &delay(1000), ..Will::on(&topic) };
    // By Clean Start, after the connection's end and instead of it.
    drop(will.connect(peer, &me));
    assert_eq!(after_all_ended(peer, &mut reader), []);
    let clean = Will { clean: true, ..will };
    let second = clean.connect(peer, &me);
    assert_eq!(next_publish(&mut reader).text(), "will");
    let third = peer.clean(&me);
    assert_eq!(next_publish(&mut reader).text(), "will");
    drop(second);
    third.disconnect();
    assert_eq!(after_all_ended(peer, &mut reader), []);
}
