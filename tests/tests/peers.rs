//! Against RMQTT's broker, a third party's that runs for real: rows up, commands down, over a restart of it, and what MQTT 5 says of a message.
//!
//! Skipped without it: its build takes half an hour (`make peers`).
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::time::Duration;

use ferrule_mqtt::{Packet, PropertiesBuf, Property, Publish, QoS};
use ferrule_testkit::wire::Options;
use ferrule_testkit::{Client, Config, Node, Rmqttd, node, until};
use ferrule_tests::{EDGE_RULES, PATIENCE, skipped};

/// One that is started.
fn rmqttd() -> Option<Rmqttd> {
    if let Err(why) = Rmqttd::program() {
        skipped(&why);
        return None;
    }
    Some(Rmqttd::start())
}

#[test]
fn rows_arrive_once_each_and_in_order_though_rmqttd_is_restarted_in_between() {
    let Some(mut rmqttd) = rmqttd() else { return };
    for (version, options) in [("5", Options::v5 as fn(&str) -> Options), ("4", Options::v4)] {
        let mut reader = Client::connect(rmqttd.addr(), &options("reader").persistent());
        assert_eq!(reader.subscribe("factory/#", QoS::AtLeastOnce), 1);
        let uplink = format!("version = {version}");
        let mut edge = Node::start(&Config::edge().rules(EDGE_RULES).uplink(rmqttd.addr()).extra(&uplink));
        let mut device = Client::connect(edge.addr(), &Options::v5("d"));
        let mut publish = |range: std::ops::Range<u32>| {
            for n in range {
                device.publish("factory/d", n.to_string().as_bytes(), QoS::AtLeastOnce, false);
            }
        };
        publish(0..100);
        edge.wait_drained(PATIENCE);
        let mut got: Vec<String> = Vec::new();
        while got.len() < 100 {
            got.push(reader.expect_message().text().to_owned());
        }
        rmqttd.terminate();
        // What is acknowledged now is on the edge's disk.
        publish(100..200);
        // RMQTT writes its sessions down half a second later: the reader has to be there again before the rows come.
        edge.pause();
        rmqttd.restart();
        reader = Client::connect(rmqttd.addr(), &options("reader").persistent());
        assert_eq!(reader.subscribe("factory/#", QoS::AtLeastOnce), 1);
        edge.resume();
        publish(200..301);
        while got.last().is_none_or(|last| last != "300") {
            let message = reader.expect_message();
            assert!(message.user_properties.is_empty(), "identity told to a stranger: {message:?}");
            got.push(message.text().to_owned());
        }
        let expected: Vec<String> = (0..=300).map(|n| n.to_string()).collect();
        assert_eq!(got, expected, "version {version}");
        assert_eq!(node::count(node::outbox(&edge.wait_drained(PATIENCE), "cloud"), "delivered"), 301);
        reader.disconnect();
    }
}

#[test]
fn what_mqtt_5_says_of_a_message_is_there_behind_rmqttd() {
    let Some(rmqttd) = rmqttd() else { return };
    let rules = "CREATE RULE everything AS INSERT INTO cloud SELECT * FROM \"factory/#\";";
    let identity = "identity = \"properties\"";
    let edge = Node::start(&Config::edge().rules(rules).uplink(rmqttd.addr()).extra(identity));
    let mut device = Client::connect(edge.addr(), &Options::v5("press-7"));
    let said = [
        Property::PayloadFormatIndicator(true),
        Property::MessageExpiryInterval(3_600),
        Property::ContentType("application/json"),
        Property::ResponseTopic("answers/press-7"),
        Property::CorrelationData(b"\x00\x01\xff"),
        Property::UserProperty("site", "north"),
        Property::UserProperty("site", "hall 2"),
    ];
    let mut properties = PropertiesBuf::new();
    for property in said {
        properties.push(property).unwrap();
    }
    let publish = |topic, packet_id, properties| {
        let (dup, retain, qos) = (false, false, QoS::AtLeastOnce);
        Packet::Publish(Publish { dup, qos, retain, topic, packet_id, properties, payload: b"{}" })
    };
    let mut reader = Client::connect(rmqttd.addr(), &Options::v5("reader"));
    reader.subscribe("factory/#", QoS::AtLeastOnce);
    let id = device.next_id();
    device.send(&publish("factory/press-7", id, properties.as_properties())).unwrap();
    device.expect_ack(ferrule_mqtt::AckType::Puback, id);
    let frame = reader.expect("the message", |packet| matches!(packet, Packet::Publish(_)));
    let Packet::Publish(got) = frame.packet() else { unreachable!("asked for one") };
    let all: Vec<Property<'_>> = got.properties.iter().collect();
    for property in said {
        let there = all.iter().any(|there| match (there, property) {
            // What is left of it.
            (Property::MessageExpiryInterval(left), Property::MessageExpiryInterval(said)) => *left <= said,
            (there, property) => *there == property,
        });
        assert!(there, "{property:?} is not in {all:?}");
    }
    let identity: Vec<_> =
        got.properties.user_properties().filter(|(name, _)| name.starts_with("ferrule-")).collect();
    assert!(!identity.is_empty(), "no identity in {all:?}");
}

#[test]
fn commands_come_down_from_rmqttd_and_wait_there_for_an_edge_that_is_away() {
    let Some(mut rmqttd) = rmqttd() else { return };
    for version in ["5", "4"] {
        let down = format!(
            "version = {version}\nclient_id = \"press-{version}\"\n[[downlink]]\nfilter = \"commands/{version}/#\"\ntopic = \"commands/$1\""
        );
        let mut edge = Node::start(&Config::edge().uplink(rmqttd.addr()).extra(&down));
        edge.wait_status(PATIENCE, "the uplink", node::uplink_is_up);
        let mut device = Client::connect(edge.addr(), &Options::v5("device").persistent());
        device.subscribe("commands/#", QoS::AtLeastOnce);
        let mut operator = Client::connect(rmqttd.addr(), &Options::v5("operator"));
        // Until the edge has subscribed, nobody keeps anything for it.
        let until_one_comes = |operator: &mut Client, device: &mut Client, name: &str| {
            let wanted = format!("commands/{name}");
            until(PATIENCE, &wanted, || {
                operator.publish(&format!("commands/{version}/{name}"), b"", QoS::AtLeastOnce, false);
                // Others may come twice.
                let came = device.recv_message(Duration::from_millis(200)).ok()?;
                (came.topic == wanted).then_some(())
            });
        };
        until_one_comes(&mut operator, &mut device, "first");
        edge.kill9();
        for n in 0..20 {
            operator.publish(&format!("commands/{version}/{n}"), b"", QoS::AtLeastOnce, false);
        }
        edge.restart();
        let mut device = Client::connect(edge.addr(), &Options::v5("device").persistent());
        let mut missing: BTreeSet<String> = (0..20).map(|n| format!("commands/{n}")).collect();
        while !missing.is_empty() {
            missing.remove(&device.expect_message().topic);
        }
        // Whether or not its session is there afterwards, the edge is subscribed.
        rmqttd.terminate();
        rmqttd.restart();
        let mut operator = Client::connect(rmqttd.addr(), &Options::v5("operator"));
        until_one_comes(&mut operator, &mut device, "again");
    }
}
