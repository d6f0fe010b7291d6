//! Retained messages.

use ferrule_mqtt::QoS;
use ferrule_testkit::Client;

use crate::common::Broker;
use crate::frames::{Peer, peer, subscribe, unique};

clause!(mqtt_3_1_2_7, "MQTT-3.1.2-7", [v3_1_1], |broker| {
    let peer = peer(broker);
    let (topic, me) = (unique(), unique());
    let mut writer = peer.clean(&unique());
    writer.publish(&topic, b"x", QoS::AtLeastOnce, true);
    writer.disconnect();
    assert_eq!(kept(peer, &topic), ["x"]);
    let mut writer = peer.persistent(&me);
    writer.publish(&topic, b"y", QoS::AtLeastOnce, true);
    writer.disconnect();
    peer.clean(&me).disconnect(); // that session is discarded
    assert_eq!(kept(peer, &topic), ["y"]);
});
clause!(mqtt_3_3_1_5_of_3, "MQTT-3.3.1-5", [v3_1_1], |broker| {
    let peer = peer(broker);
    let topic = unique();
    peer.publish(&topic, b"x", QoS::ExactlyOnce, true);
    for granted in [QoS::ExactlyOnce, QoS::AtMostOnce] {
        let mut reader = peer.clean(&unique());
        reader.subscribe(&topic, granted);
        let message = reader.expect_message();
        assert_eq!((message.text(), message.qos, message.retain), ("x", granted, true));
    }
});
clause!(mqtt_3_3_1_5, "MQTT-3.3.1-5", [v5], the_last_one_is_kept);
clause!(mqtt_3_3_1_7_of_3, "MQTT-3.3.1-7", [v3_1_1], the_last_one_is_kept);
clause!(mqtt_3_3_1_6_of_3, "MQTT-3.3.1-6", [v3_1_1], all_that_match_come);
clause!(mqtt_3_3_1_8_of_3, "MQTT-3.3.1-8", [v3_1_1], all_that_match_come);
clause!(mqtt_3_3_1_9, "MQTT-3.3.1-9", [v5], all_that_match_come);
clause!(mqtt_3_3_1_9_of_3, "MQTT-3.3.1-9", [v3_1_1], |broker| forwarded(peer(broker), 1, false));
clause!(mqtt_3_3_1_12, "MQTT-3.3.1-12", [v5], |broker| forwarded(peer(broker), 1, false));
clause!(mqtt_3_3_1_13, "MQTT-3.3.1-13", [v5], |broker| forwarded(peer(broker), 9, true));
clause!(mqtt_3_3_1_10_of_3, "MQTT-3.3.1-10", [v3_1_1], an_empty_one_removes);
clause!(mqtt_3_3_1_6, "MQTT-3.3.1-6", [v5], an_empty_one_removes);
clause!(mqtt_3_3_1_11_of_3, "MQTT-3.3.1-11", [v3_1_1], an_empty_one_is_not_kept);
clause!(mqtt_3_3_1_7, "MQTT-3.3.1-7", [v5], an_empty_one_is_not_kept);
clause!(mqtt_3_3_1_12_of_3, "MQTT-3.3.1-12", [v3_1_1], without_the_flag_nothing_changes);
clause!(mqtt_3_3_1_8, "MQTT-3.3.1-8", [v5], without_the_flag_nothing_changes);
clause!(mqtt_3_3_1_10, "MQTT-3.3.1-10", [v5], |broker| {
    let peer = peer(broker);
    let (topic, me) = (unique(), unique());
    peer.publish(&topic, b"kept", QoS::AtLeastOnce, true);
    let mut reader = peer.persistent(&me);
    let asks = |reader: &mut Client| {
        assert_eq!(subscribe(peer, reader, &[(&topic, 0x11)]), [1]);
        peer.texts(reader)
    };
    assert_eq!(asks(&mut reader), ["kept"], "new");
    assert!(asks(&mut reader).is_empty(), "there already");
    reader.unsubscribe(&topic);
    assert_eq!(asks(&mut reader), ["kept"], "new again");
    reader.disconnect();
    assert!(asks(&mut peer.back(&me)).is_empty(), "there already, in the session");
});
clause!(mqtt_3_3_1_11, "MQTT-3.3.1-11", [v5], |broker| {
    let peer = peer(broker);
    let topic = unique();
    peer.publish(&topic, b"kept", QoS::AtLeastOnce, true);
    let mut reader = peer.clean(&unique());
    assert_eq!(subscribe(peer, &mut reader, &[(&topic, 0x21)]), [1]);
    assert_eq!(peer.rest(&mut reader), []);
});

/// What a new subscriber gets of the topic, each with RETAIN.
fn kept(peer: Peer, filter: &str) -> Vec<String> {
    let mut reader = peer.clean(&unique());
    reader.subscribe(filter, QoS::ExactlyOnce);
    let messages = peer.rest(&mut reader);
    assert!(messages.iter().all(|message| message.retain));
    let mut texts: Vec<_> = messages.iter().map(|message| message.text().to_owned()).collect();
    texts.sort();
    texts
}

fn the_last_one_is_kept(broker: &Broker) {
    let peer = peer(broker);
    for before in [QoS::AtLeastOnce, QoS::ExactlyOnce, QoS::AtMostOnce] {
        for after in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
            let topic = unique();
            let mut writer = peer.clean(&unique());
            writer.publish(&topic, b"x", before, true);
            writer.publish(&topic, b"y", after, true);
            writer.ping();
            assert_eq!(kept(peer, &topic), ["y"], "{before:?} {after:?}");
        }
    }
}

fn all_that_match_come(broker: &Broker) {
    let peer = peer(broker);
    let base = unique();
    for (topic, text) in [("a/1", "old"), ("a/1", "1"), ("a/2", "2"), ("b", "3"), ("a/x/y", "4")] {
        peer.publish(&format!("{base}/{topic}"), text.as_bytes(), QoS::AtLeastOnce, true);
    }
    let filter = format!("{base}/a/+");
    let mut reader = peer.clean(&unique());
    for _ in 0..2 {
        reader.subscribe(&filter, QoS::AtLeastOnce);
        let mut messages = peer.rest(&mut reader);
        messages.sort_by(|a, b| a.topic.cmp(&b.topic));
        let got: Vec<_> = messages.iter().map(|message| (message.text(), message.retain)).collect();
        assert_eq!(got, [("1", true), ("2", true)]);
    }
}

/// To a subscription that is there, connected and away: RETAIN as it was published, or never.
fn forwarded(peer: Peer, options: u8, as_published: bool) {
    let (topic, me) = (unique(), unique());
    let mut reader = peer.persistent(&me);
    subscribe(peer, &mut reader, &[(&topic, options)]);
    for round in 0..2 {
        for retain in [true, false] {
            peer.publish(&topic, b"x", QoS::AtLeastOnce, retain);
        }
        if round == 1 {
            reader = peer.back(&me);
        }
        let flags: Vec<_> = peer.rest(&mut reader).iter().map(|message| message.retain).collect();
        assert_eq!(flags, [as_published, false]);
        drop(std::mem::replace(&mut reader, peer.clean(&unique())));
    }
}

fn an_empty_one_removes(broker: &Broker) {
    let peer = peer(broker);
    let topic = unique();
    peer.publish(&topic, b"x", QoS::AtLeastOnce, true);
    let mut reader = peer.clean(&unique());
    reader.subscribe(&topic, QoS::AtLeastOnce);
    assert_eq!(peer.texts(&mut reader), ["x"]);
    peer.publish(&topic, b"", QoS::AtLeastOnce, true);
    let message = reader.expect_message();
    assert_eq!((message.text(), message.retain), ("", false));
    assert!(kept(peer, &topic).is_empty());
}

fn an_empty_one_is_not_kept(broker: &Broker) {
    let peer = peer(broker);
    for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
        let topic = unique();
        let mut writer = peer.clean(&unique());
        writer.publish(&topic, b"", qos, true);
        writer.ping();
        assert!(kept(peer, &topic).is_empty());
    }
}

fn without_the_flag_nothing_changes(broker: &Broker) {
    let peer = peer(broker);
    let topic = unique();
    for (text, retain) in [("x", true), ("y", false), ("", false)] {
        peer.publish(&topic, text.as_bytes(), QoS::AtLeastOnce, retain);
    }
    assert_eq!(kept(peer, &topic), ["x"]);
    let fresh = unique();
    peer.publish(&fresh, b"y", QoS::AtLeastOnce, false);
    assert!(kept(peer, &fresh).is_empty());
}
