//! Who may come in, what they may do, and whose word on a message's identity is believed.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::SocketAddr;

use ferrule_mqtt::{Connack, Packet, PropertiesBuf, Property, Publish, QoS, ReasonCode};
use ferrule_testkit::node::{EDGE_ID, EDGE_PASSWORD, uplink_is_up};
use ferrule_testkit::wire::Options;
use ferrule_testkit::{Client, Config, Node, until};
use ferrule_tests::{EDGE_RULES, PATIENCE, cloud_rules, make_sqlite_table, sqlite_rows};

/// A user who may publish under its own client id and read commands, but no secrets.
const SENSORS: &str = "[[user]]
name = \"sensors\"
password_file = \"edge.pass\"
publish = [\"line/${clientid}/#\"]
subscribe = [\"commands/#\", \"line/#\"]
deny = [\"+/secret/#\"]
";

/// The reason code with which a CONNECT is answered.
fn answer(addr: SocketAddr, options: &Options) -> ReasonCode {
    let (_client, frame) = Client::try_connect(addr, options).unwrap();
    match frame.packet() {
        Packet::Connack(Connack { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn only_known_users_come_in() {
    for config in [Config::edge(), Config::cloud()] {
        let node = Node::start(&config.closed().extra(SENSORS));
        for options in [Options::v4, Options::v5] {
            let right = options("a").login("sensors", EDGE_PASSWORD);
            assert_eq!(answer(node.addr(), &right), ReasonCode::SUCCESS);
            for wrong in [
                options("a"),
                options("a").login("sensors", "wrong"),
                options("a").login("sensors", ""),
                options("a").login("nobody", EDGE_PASSWORD),
            ] {
                let reason = answer(node.addr(), &wrong);
                // Bad User Name or Password, or Not authorized.
                assert!([0x86, 0x87].contains(&reason.0), "{wrong:?}: {reason:?}");
            }
        }
    }
}

#[test]
fn users_do_what_their_lists_say() {
    let edge = Node::start(&Config::edge().closed().extra(SENSORS));
    let login = |id: &str| Options::v5(id).login("sensors", EDGE_PASSWORD);
    let mut client = Client::connect(edge.addr(), &login("a"));
    for (filter, granted) in [
        ("commands/a", true),
        ("commands/#", true),
        ("line/#", true),
        ("#", false),
        ("+/a", false),
        ("other", false),
        ("$SYS/#", false),
        ("$ferrule/#", false),
    ] {
        let code = client.subscribe(filter, QoS::AtLeastOnce);
        assert_eq!(code < 0x80, granted, "{filter}: {code:#x}");
    }
    let mut publish = |topic: &str| {
        let id = client.publish_nowait(topic, b"x", QoS::AtLeastOnce, false);
        let frame =
            client.expect("PUBACK", |packet| matches!(packet, Packet::Puback(ack) if ack.packet_id == id));
        match frame.packet() {
            Packet::Puback(ack) => ack.reason,
            other => unreachable!("{other:?}"),
        }
    };
    for (topic, allowed) in [
        ("line/a/t", true),
        ("line/b/t", false),
        ("commands/a", false),
        ("line/secret/t", false),
        ("$ferrule/x", false),
        ("$SYS/x", false),
    ] {
        let reason = publish(topic);
        assert_eq!(reason == ReasonCode(0x87), !allowed, "{topic}: {reason:?}");
    }
    // A client id with a wildcard fills in nothing.
    let mut sly = Client::connect(edge.addr(), &login("+"));
    let id = sly.publish_nowait("line/a/t", b"x", QoS::AtLeastOnce, false);
    let frame = sly.expect("PUBACK", |packet| matches!(packet, Packet::Puback(ack) if ack.packet_id == id));
    assert!(matches!(frame.packet(), Packet::Puback(ack) if ack.reason == ReasonCode(0x87)));
}

#[test]
fn identity_is_believed_from_edges_alone() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = folder.path().join("sink.db");
    make_sqlite_table(&sqlite);
    let cloud = Node::start(&Config::cloud().rules(cloud_rules(None, None, Some(&sqlite))));
    let mut reader = Client::connect(cloud.addr(), &Options::v5("reader"));
    reader.subscribe("factory/#", QoS::AtLeastOnce);

    // A stranger who dresses up as an edge's message.
    let mut stranger = Client::connect(cloud.addr(), &Options::v5("stranger"));
    let mut properties = PropertiesBuf::new();
    for (name, value) in [("ferrule-id", "1f.0.7"), ("ferrule-client", "somebody else"), ("mine", "kept")] {
        properties.push(Property::UserProperty(name, value)).unwrap();
    }
    for packet_id in [1, 2] {
        let publish = Publish {
            dup: false,
            qos: QoS::AtLeastOnce,
            retain: false,
            topic: "factory/x",
            packet_id,
            properties: properties.as_properties(),
            payload: br#"{"device":"stranger","n":1}"#,
        };
        stranger.send(&Packet::Publish(publish)).unwrap();
        stranger
            .expect("PUBACK", |packet| matches!(packet, Packet::Puback(ack) if ack.packet_id == packet_id));
    }
    // Two messages under "one id" are two rows, with identities of the cloud's own.
    let rows = until(PATIENCE, "both rows", || {
        let rows = sqlite_rows(&sqlite);
        (rows.len() >= 2).then_some(rows)
    });
    assert!(rows.iter().all(|row| row.message_id.starts_with("cloud-1.")), "{rows:?}");
    // And what it said is passed on unaltered.
    let message = reader.expect_message();
    let has = |name: &str, value: &str| message.user_properties.iter().any(|(n, v)| n == name && v == value);
    assert!(has("ferrule-id", "1f.0.7") && has("ferrule-client", "somebody else") && has("mine", "kept"));

    // An edge's message carries the device's identity to the rows.
    let edge = Node::start(&Config::edge().rules(EDGE_RULES).uplink(cloud.addr()));
    let mut device = Client::connect(edge.addr(), &Options::v5("device"));
    device.publish("factory/y", br#"{"device":"device","n":2}"#, QoS::AtLeastOnce, false);
    let rows = until(PATIENCE, "the edge's row", || {
        let rows = sqlite_rows(&sqlite);
        (rows.len() >= 3).then_some(rows)
    });
    assert!(rows[2].message_id.starts_with(&format!("{EDGE_ID}.")), "{rows:?}");
}

#[test]
fn an_edge_speaks_for_its_own_id_and_once() {
    let cloud = Node::start(&Config::cloud());
    let first = Node::start(&Config::edge().rules(EDGE_RULES).uplink(cloud.addr()));
    first.wait_status(PATIENCE, "the first edge's uplink is up", uplink_is_up);

    // Another id under the same login, and a second live boot of the same id (a cloned card): both are kept out, say why, and
    // the first one stays.
    for (config, code) in [(Config::edge().id("press-8"), "0x87"), (Config::edge(), "0x97")] {
        let second = Node::start(&config.rules(EDGE_RULES).uplink(cloud.addr()));
        let status = second.wait_status(PATIENCE, "the uplink tells why it is not up", |status| {
            status["uplink"]["last_error"].is_string()
        });
        let why = status["uplink"]["last_error"].as_str().unwrap();
        assert!(why.to_lowercase().contains(code), "{why}");
        assert!(!uplink_is_up(&second.status()));
        // Not kept from serving its devices.
        Client::connect(second.addr(), &Options::v4("d")).ping();
    }
    assert!(uplink_is_up(&first.status()));
    assert_eq!(first.status()["uplink"]["connects"], 1, "the first edge was thrown out for a while");
}
