//! What an edge gives up by choice, and what leaves first: with the cloud away, over a kill, until all that was kept has arrived.
#![allow(clippy::unwrap_used, reason = "tests")]

use ferrule_mqtt::{AckType, Packet, QoS};
use ferrule_testkit::node::{assert_accounts, count, outbox};
use ferrule_testkit::wire::Options;
use ferrule_testkit::{Client, Config, Node, port};
use ferrule_tests::{EDGE_RULES, PATIENCE};
use serde_json::Value;

const REPORT: &str = "ferrule/press-7/given_up";

fn publish(node: &Node, topic: &str, rows: std::ops::Range<u64>) {
    let mut device = Client::connect(node.addr(), &Options::v5("press"));
    let ids: Vec<u16> = rows
        .map(|n| device.publish_nowait(topic, n.to_string().as_bytes(), QoS::AtLeastOnce, false))
        .collect();
    ids.into_iter().for_each(|id| device.expect_ack(AckType::Puback, id));
}

/// A cloud with a subscriber to everything, before anything comes.
fn cloud(addr: std::net::SocketAddr) -> (Node, Client) {
    let node = Node::start(&Config::cloud().listen(addr));
    let mut client = Client::connect(node.addr(), &Options::v5("reader"));
    client.subscribe("#", QoS::AtLeastOnce);
    (node, client)
}

/// The next messages: topic, and payload.
fn read(client: &mut Client, count: usize) -> Vec<(String, String)> {
    let mut came = Vec::new();
    for _ in 0..count {
        let frame = client.expect("a message", |packet| matches!(packet, Packet::Publish(_)));
        let Packet::Publish(message) = frame.packet() else { unreachable!() };
        came.push((message.topic.to_owned(), String::from_utf8_lossy(message.payload).into_owned()));
        client.send_ack(AckType::Puback, message.packet_id).unwrap();
    }
    came
}

fn limited(on_full: &str, kept: std::ops::Range<u64>) {
    let addr = port::free_addr();
    let extra = format!("[outbox]\nmax_messages = 50\non_full = \"{on_full}\"\n");
    let config = Config::edge().id("press-7").rules(EDGE_RULES).uplink(addr).extra(&extra);
    let mut edge = Node::start(&config);
    // Each is acknowledged, though only fifty are kept.
    publish(&edge, "factory/press", 0..200);
    let status = edge
        .wait_status(PATIENCE, "150 given up", |status| count(outbox(status, "cloud"), "discarded") == 150);
    let own = outbox(&status, "cloud");
    assert_eq!((count(own, "queued") + count(own, "in_flight"), count(own, "stored")), (50, 50), "{own:#}");
    assert_eq!(own["discarded_by"]["limit"], 150);
    assert_accounts(&status);
    // What was given up is written within a second; a stop writes it at once.
    assert!(edge.terminate().success());
    edge.restart();
    edge.kill9();
    edge.restart();
    let (_cloud, mut reader) = cloud(addr);
    let came = read(&mut reader, 51);
    let (report, came) = came.split_last().unwrap();
    let numbers: Vec<u64> = came.iter().map(|(_, payload)| payload.parse().unwrap()).collect();
    assert_eq!(numbers, kept.collect::<Vec<_>>());
    // What had been given up before the kill is told after it.
    assert_eq!(report.0, REPORT);
    let report: Value = serde_json::from_str(&report.1).unwrap();
    assert_eq!((&report["edge"], &report["limit"]), (&"press-7".into(), &150.into()), "{report:#}");
    let status = edge.wait_drained(PATIENCE);
    assert_eq!(count(outbox(&status, "cloud"), "delivered"), 51);
    assert_accounts(&status);
}

#[test]
fn the_oldest_are_given_up() {
    limited("drop_oldest", 150..200);
}

#[test]
fn the_newest_are_given_up() {
    limited("drop_newest", 0..50);
}

#[test]
fn what_is_too_old_is_given_up() {
    let addr = port::free_addr();
    let config =
        Config::edge().id("press-7").rules(EDGE_RULES).uplink(addr).extra("[outbox]\nmax_age = \"5s\"\n");
    let edge = Node::start(&config);
    publish(&edge, "factory/press", 0..20);
    edge.wait_status(PATIENCE, "all to be given up", |status| {
        outbox(status, "cloud")["discarded_by"]["age"] == 20
    });
    let (_cloud, mut reader) = cloud(addr);
    // Its pauses between attempts have grown: what comes before it is up again may grow too old as well.
    edge.wait_status(PATIENCE, "the uplink", |status| status["uplink"]["state"] == "up");
    publish(&edge, "factory/press", 20..21);
    let came = read(&mut reader, 2);
    let mut topics: Vec<&str> = came.iter().map(|(topic, _)| &**topic).collect();
    topics.sort_unstable();
    assert_eq!(topics, ["factory/press", REPORT], "{came:?}");
    assert!(came.iter().any(|(_, payload)| payload == "20"));
    let status = edge.wait_drained(PATIENCE);
    assert_eq!(outbox(&status, "cloud")["discarded_by"]["age"], 20);
    assert_accounts(&status);
}

#[test]
fn alarms_pass_a_backlog() {
    let addr = port::free_addr();
    let rules = "CREATE RULE alarms WITH (priority = 'high') AS INSERT INTO cloud SELECT * FROM \"alarm/#\";
        CREATE RULE bulk WITH (priority = 'low') AS INSERT INTO cloud SELECT * FROM \"bulk/#\";
        CREATE RULE rest AS INSERT INTO cloud SELECT * FROM \"rest/#\";";
    let mut edge = Node::start(&Config::edge().rules(rules).uplink(addr));
    publish(&edge, "bulk/b", 0..100);
    publish(&edge, "rest/r", 0..100);
    publish(&edge, "alarm/a", 0..100);
    // Nothing is in the uplink's hands after a start.
    assert!(edge.terminate().success());
    let (_cloud, mut reader) = cloud(addr);
    edge.restart();
    let came = read(&mut reader, 300);
    let order: Vec<String> = came.into_iter().map(|(topic, payload)| format!("{topic} {payload}")).collect();
    let all = |topic: &str| (0..100).map(|n| format!("{topic} {n}")).collect::<Vec<_>>();
    let expected = [all("alarm/a"), all("rest/r"), all("bulk/b")].concat();
    assert_eq!(order, expected);
    let status = edge.wait_drained(PATIENCE);
    let delivered =
        ["cloud:high", "cloud", "cloud:low"].map(|name| count(outbox(&status, name), "delivered"));
    assert_eq!(delivered, [100; 3]);
    assert_accounts(&status);
}
