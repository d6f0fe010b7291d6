//! Topic names, filters, and what matches.

use ferrule_mqtt::QoS;
use ferrule_testkit::{Config, Node};

use crate::common::Broker;
use crate::frames::{Peer, Will, peer, subscribe, unique};

clause!(mqtt_3_3_2_2, "MQTT-3.3.2-2", [v3_1_1, v5], |broker| no_wildcards(peer(broker)));
clause!(mqtt_4_7_1_1_of_3, "MQTT-4.7.1-1", [v3_1_1], |broker| no_wildcards(peer(broker)));
clause!(mqtt_4_7_0_1, "MQTT-4.7.0-1", [v5], |broker| no_wildcards(peer(broker)));
clause!(mqtt_3_3_2_3, "MQTT-3.3.2-3", [v3_1_1, v5], |broker| {
    let near = ["a/b/c", "a//c", "a/b", "a/b/c/d", "b/b/c", "d", "d/", "d/e/f", "da", "e/d", "A/b/c", "/d"];
    matches(peer(broker), &["a/+/c", "d/#"], &near, &["a/b/c", "a//c", "d", "d/", "d/e/f"]);
});
clause!(mqtt_4_7_1_2_of_3, "MQTT-4.7.1-2", [v3_1_1], number_sign);
clause!(mqtt_4_7_1_1, "MQTT-4.7.1-1", [v5], number_sign);
clause!(mqtt_4_7_1_3_of_3, "MQTT-4.7.1-3", [v3_1_1], plus);
clause!(mqtt_4_7_1_2, "MQTT-4.7.1-2", [v5], plus);
clause!(mqtt_4_7_2_1, "MQTT-4.7.2-1", [v3_1_1, v5], |broker| {
    // A node of its own: without lists nobody may use a topic that begins with $.
    let lists = "[anonymous]\npublish = [\"#\", \"$x/#\"]\nsubscribe = [\"#\", \"$x/#\"]\n";
    let node = Node::start(&Config::edge().extra(lists));
    let peer = Peer { addr: node.addr(), version: broker.version };
    for retain in [true, false] {
        let mut wild = peer.clean("wild");
        let mut named = peer.clean("named");
        if !retain {
            peer.publish("$x/x", b"", QoS::AtLeastOnce, true); // what the first round kept
            subscribe(peer, &mut wild, &[("#", 1), ("+/x", 1), ("+/#", 1)]);
            subscribe(peer, &mut named, &[("$x/#", 1)]);
        }
        peer.publish("$x/x", b"x", QoS::AtLeastOnce, retain);
        if retain {
            subscribe(peer, &mut wild, &[("#", 1), ("+/x", 1), ("+/#", 1)]);
            subscribe(peer, &mut named, &[("$x/#", 1)]);
        }
        assert_eq!(peer.texts(&mut named), ["x"]);
        let came: Vec<_> =
            peer.rest(&mut wild).into_iter().filter(|m| !m.topic.starts_with("fence/")).collect();
        assert_eq!(came, []);
    }
});
clause!(mqtt_4_7_3_1, "MQTT-4.7.3-1", [v3_1_1, v5], |broker| {
    let peer = peer(broker);
    peer.refuses(&peer.publish_bytes(0x30, b"", 0, &[], b"x"), &[0x81, 0x82, 0x90]);
    refused(peer, "");
    will_refused(peer, b"");
});
clause!(mqtt_4_7_3_2, "MQTT-4.7.3-2", [v3_1_1, v5], |broker| {
    let peer = peer(broker);
    peer.refuses(&peer.publish_bytes(0x30, b"a\0b", 0, &[], b"x"), &[0x81]);
    peer.refuses(&peer.subscribe_bytes(1, &[], &[("a\0b", 0)]), &[0x81]);
    peer.refuses(&peer.unsubscribe_bytes(1, &["a\0b"]), &[0x81]);
    will_refused(peer, b"a\0b");
});
clause!(mqtt_4_7_3_3, "MQTT-4.7.3-3", [v3_1_1, v5], |broker| {
    let node = Node::start(&Config::edge().extra("[mqtt]\nmax_topic_length = \"65535B\"\n"));
    let peer = Peer { addr: node.addr(), version: broker.version };
    let longest = "l".repeat(65_535);
    matches(peer, &[&longest], &[&longest], &[&longest]);
});
clause!(mqtt_4_7_3_4, "MQTT-4.7.3-4", [v3_1_1, v5], |broker| {
    let names = ["\u{e9}", "e\u{301}", "A", "a", "a//b", "a/b", "a/b/", " a", "a ", "%41", "/a"];
    let peer = peer(broker);
    let base = unique();
    for (n, filter) in names.iter().enumerate() {
        let mut reader = peer.clean(&unique());
        let filter = format!("{base}{n}-{filter}");
        assert_eq!(subscribe(peer, &mut reader, &[(&filter, 1)]), [1]);
        for name in names {
            peer.publish(&format!("{base}{n}-{name}"), b"", QoS::AtLeastOnce, false);
        }
        let got: Vec<_> = peer.rest(&mut reader).into_iter().map(|message| message.topic).collect();
        assert_eq!(got, [filter]);
    }
});

fn no_wildcards(peer: Peer) {
    let base = unique();
    let mut reader = peer.clean(&unique());
    reader.subscribe(&format!("{base}/#"), QoS::AtMostOnce);
    for name in [format!("{base}/+"), format!("{base}/#"), format!("{base}/a+b"), "#".to_owned()] {
        peer.refuses(&peer.publish_bytes(0x30, name.as_bytes(), 0, &[], b"x"), &[0x81, 0x82, 0x90]);
        will_refused(peer, name.as_bytes());
    }
    assert_eq!(peer.rest(&mut reader), []);
}

/// A CONNECT with such a will topic is refused.
fn will_refused(peer: Peer, topic: &[u8]) {
    peer.rejects(&Will { topic, ..Will::on("") }.bytes(peer.version, &unique()), &[0x81, 0x82, 0x90]);
}

/// A filter that is none: refused in its place, or by the end of the connection.
fn refused(peer: Peer, filter: &str) {
    let mut client = peer.clean(&unique());
    client.send_raw(&peer.subscribe_bytes(1, &[], &[(filter, 0)])).unwrap();
    let frame = client.recv(ferrule_testkit::wire::PATIENCE);
    match frame.as_ref().map(ferrule_testkit::wire::Frame::packet) {
        Ok(ferrule_mqtt::Packet::Suback(suback)) => {
            assert_eq!(suback.reasons, [if peer.is_v5() { 0x8F } else { 0x80 }], "{filter}");
        }
        Ok(ferrule_mqtt::Packet::Disconnect(disconnect)) => {
            assert!(peer.is_v5() && [0x81, 0x82].contains(&disconnect.reason.0), "{filter}");
            client.expect_closed();
        }
        other => assert!(
            !peer.is_v5() && matches!(other, Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof)
        ),
    }
}

/// What comes to these filters of all names published (below a name of their own): each once, as it was published.
fn matches(peer: Peer, filters: &[&str], names: &[&str], expected: &[&str]) {
    let mut reader = peer.clean(&unique());
    // A name as long as can be has no room for another before it.
    let base = if names[0].len() > 1000 { String::new() } else { unique() };
    for filter in filters {
        assert_eq!(subscribe(peer, &mut reader, &[(&format!("{base}{filter}"), 1)]), [1]);
    }
    for name in names {
        peer.publish(&format!("{base}{name}"), b"", QoS::AtLeastOnce, false);
    }
    let got: Vec<_> =
        peer.rest(&mut reader).into_iter().map(|message| message.topic[base.len()..].to_owned()).collect();
    assert_eq!(got, expected);
}

fn number_sign(broker: &Broker) {
    let peer = peer(broker);
    for filter in ["a#", "#/a", "a/#/b", "##"] {
        refused(peer, filter);
    }
    let mut client = peer.clean(&unique());
    assert_eq!(subscribe(peer, &mut client, &[("#", 0), ("a/#", 0), ("/#", 0)]), [0, 0, 0]);
    matches(peer, &["/a/#"], &["/a", "/a/", "/a/b/c", "/ab", "/b/a"], &["/a", "/a/", "/a/b/c"]);
}

fn plus(broker: &Broker) {
    let peer = peer(broker);
    for filter in ["a+", "+a/b", "a/+b", "++"] {
        refused(peer, filter);
    }
    let mut client = peer.clean(&unique());
    assert_eq!(subscribe(peer, &mut client, &[("+", 0), ("+/b", 0), ("a/+/c", 0), ("/+", 0)]), [0; 4]);
    matches(peer, &["/a/+"], &["/a/", "/a/b", "/a", "/a/b/c"], &["/a/", "/a/b"]);
}
