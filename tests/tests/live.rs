//! `order = "live_first"`: what comes while a backlog drains arrives ahead of it, and the backlog says that it is late.
#![allow(clippy::unwrap_used, reason = "tests")]

use ferrule_mqtt::{AckType, QoS};
use ferrule_testkit::node::{assert_accounts, count, outbox, uplink_is_up};
use ferrule_testkit::wire::{Message, Options};
use ferrule_testkit::{Client, Config, Mosquitto, Node, port};
use ferrule_tests::{EDGE_RULES, PATIENCE, cloud_rules, make_sqlite_table, open_sqlite};
use std::collections::BTreeSet;
use std::net::SocketAddr;

/// Rows on disk when the cloud comes back: they take five seconds.
const OLD: u64 = 1_500;
/// Rows that come meanwhile.
const LIVE: u64 = 10;
const LIMITS: &str = "[outbox]\norder = \"live_first\"\nmax_rate = 300\n";

/// So many at a time as a client may leave unanswered.
fn publish(node: &Node, topic: &str, rows: std::ops::Range<u64>) {
    let mut device = Client::connect(node.addr(), &Options::v5("press"));
    let rows: Vec<u64> = rows.collect();
    for rows in rows.chunks(200) {
        let payload = |n: &u64| format!(r#"{{"device":"press","n":{n}}}"#);
        let ids: Vec<u16> = rows
            .iter()
            .map(|n| device.publish_nowait(topic, payload(n).as_bytes(), QoS::AtLeastOnce, false))
            .collect();
        ids.into_iter().for_each(|id| device.expect_ack(AckType::Puback, id));
    }
}

/// An edge with a backlog for a cloud that is not there yet.
fn behind(to: SocketAddr, extra: &str) -> Node {
    let extra = format!("{extra}{LIMITS}");
    let edge = Node::start(&Config::edge().id("press-7").rules(EDGE_RULES).uplink(to).extra(&extra));
    publish(&edge, "factory/old", 0..OLD);
    edge
}

/// Live rows, one after the other, once the cloud is there.
fn live(edge: &Node) {
    edge.wait_status(PATIENCE, "the uplink", uplink_is_up);
    (OLD..OLD + LIVE).for_each(|n| publish(edge, "factory/live", n..n + 1));
}

/// All that came until the end, when nothing waits any more.
fn rest(edge: &Node, reader: &mut Client) -> Vec<Message> {
    edge.wait_drained(PATIENCE);
    publish(edge, "factory/end", OLD + LIVE..OLD + LIVE + 1);
    reader.messages_until("factory/end")
}

fn is_late(message: &Message) -> bool {
    message.user_properties.iter().any(|(name, value)| name == "ferrule-late" && value == "1")
}

/// Live rows came before most of the backlog, and what came after the first of them says that it is late.
fn check(came: &[Message]) {
    let places: Vec<usize> = (0..came.len()).filter(|at| came[*at].topic == "factory/live").collect();
    let (first, last) = (*places.first().unwrap(), *places.last().unwrap());
    assert!(last < OLD as usize / 2, "the last live row came at {last}");
    for (at, message) in came.iter().enumerate() {
        let late = message.topic == "factory/old" && at > first;
        assert_eq!(is_late(message), late, "{at}, the first live row came at {first}: {message:?}");
    }
}

/// Each once, those of a topic in order.
fn check_once(came: &[Message]) {
    for (topic, rows) in [("factory/old", 0..OLD), ("factory/live", OLD..OLD + LIVE)] {
        let came = came.iter().filter(|message| message.topic == topic).map(Message::text);
        let expected = rows.map(|n| format!(r#"{{"device":"press","n":{n}}}"#));
        assert!(came.eq(expected), "{topic}");
    }
}

#[test]
fn live_rows_arrive_ahead_of_a_backlog() {
    let addr = port::free_addr();
    let edge = behind(addr, "");
    // A rule of the cloud, too, can tell them apart.
    let rules = "CREATE RULE late AS INSERT INTO local.\"late\" SELECT * FROM \"factory/#\"
        WHERE pub_props.'User-Property'.'ferrule-late' = '1';";
    let cloud = Node::start(&Config::cloud().listen(addr).rules(rules));
    let mut reader = Client::connect(cloud.addr(), &Options::v5("reader"));
    reader.subscribe("factory/#", QoS::AtLeastOnce);
    let mut late = Client::connect(cloud.addr(), &Options::v5("late"));
    late.subscribe("late", QoS::AtLeastOnce);
    live(&edge);
    let came = rest(&edge, &mut reader);
    check(&came);
    check_once(&came);
    for message in came.iter().filter(|message| is_late(message)) {
        assert_eq!(late.expect_message().text(), message.text());
    }
    let status = edge.status();
    let own = outbox(&status, "cloud");
    assert_eq!((count(own, "ahead"), count(own, "again")), (LIVE, 0), "{own:#}");
    assert_accounts(&status);
    cloud.assert_quiet_log();
}

#[test]
fn nothing_is_lost_or_doubled_when_the_edge_is_killed_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = folder.path().join("rows.db");
    make_sqlite_table(&sqlite);
    let addr = port::free_addr();
    let mut edge = behind(addr, "");
    let cloud = Node::start(&Config::cloud().listen(addr).rules(cloud_rules(None, None, Some(&sqlite))));
    let mut reader = Client::connect(cloud.addr(), &Options::v5("reader"));
    reader.subscribe("factory/#", QoS::AtLeastOnce);
    live(&edge);
    let mut came = Vec::new();
    while came.iter().filter(|message: &&Message| message.topic == "factory/live").count() < LIVE as usize {
        came.push(reader.expect_message());
    }
    edge.kill9();
    edge.restart();
    let recovered = count(outbox(&edge.status(), "cloud"), "recovered");
    assert!(recovered > OLD / 4, "{recovered} of the backlog were left");
    came.extend(rest(&edge, &mut reader));
    // Some came twice, and are one row.
    let mut known = BTreeSet::new();
    came.retain(|message| known.insert(message.payload.clone()));
    check(&came);
    check_once(&came);
    cloud.wait_drained(PATIENCE);
    let rows: Vec<u64> = open_sqlite(&sqlite)
        .prepare("select n from readings order by n")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(rows, (0..=OLD + LIVE).collect::<Vec<_>>());
    assert_accounts(&edge.status());
}

#[test]
fn any_broker_is_sent_live_rows_first_and_told_what_is_late_if_it_is_told_identities() {
    let mut mosquitto = Mosquitto::start();
    let mut reader = Client::connect(mosquitto.addr(), &Options::v5("reader").persistent());
    reader.subscribe("factory/#", QoS::AtLeastOnce);
    reader.disconnect();
    mosquitto.terminate(); // saves its sessions
    let edge = behind(mosquitto.addr(), "identity = \"properties\"\n");
    mosquitto.restart();
    let mut reader = Client::connect(mosquitto.addr(), &Options::v5("reader").persistent());
    live(&edge);
    let came = rest(&edge, &mut reader);
    check(&came);
    check_once(&came);
    assert_accounts(&edge.status());
}
