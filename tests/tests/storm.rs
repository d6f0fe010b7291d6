//! Devices that send every unacknowledged message again and again while the cloud is slow.
//!
//! A PUBLISH with a waiting packet id, on the same connection and with the same content, joins the wait. Without that a slow
//! cloud becomes a storm of duplicates, which make it slower. One that crosses its PUBACK is a message of its own (decision 0019).
#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use ferrule_testkit::node::uplink_is_up;
use ferrule_testkit::oracle::Copies;
use ferrule_testkit::{Config, Fleet, Node, Plan, node, until};
use ferrule_tests::{EDGE_RULES, PATIENCE, check_rows, cloud_rules, make_sqlite_table, sqlite_rows};

/// A fleet that sends again after `resend_after`, a cloud that stands still until it has done so 200 times.
fn storm(edge_rules: &str, resend_after: Duration) {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = folder.path().join("sink.db");
    make_sqlite_table(&sqlite);
    let mut cloud = Node::start(&Config::cloud().rules(cloud_rules(None, None, Some(&sqlite))));
    let edge = Node::start(&Config::edge().rules(edge_rules).uplink(cloud.addr()));
    edge.wait_status(PATIENCE, "the uplink is up", uplink_is_up);

    let plan = Plan {
        devices: 10,
        messages: 100,
        window: 10,
        per_second: Some(50.0),
        resend_after: Some(resend_after),
        ..Plan::default()
    };
    cloud.pause();
    let fleet = Fleet::start(edge.addr(), plan);
    until(PATIENCE, "messages are sent again", || {
        let ledger = fleet.ledger();
        (ledger.sent() >= ledger.published() + 200).then_some(())
    });
    assert_eq!(fleet.connects(), 10);
    cloud.resume();
    let connects = fleet.connects();
    let ledger = fleet.finish(PATIENCE);
    assert_eq!(connects, 10, "all on the first connections: a resend on a new one is a new message");
    node::assert_accounts(&edge.wait_drained(PATIENCE));
    cloud.wait_drained(PATIENCE);
    assert_eq!((ledger.acknowledged(), ledger.published()), (1000, 1000));
    let rows = sqlite_rows(&sqlite);
    check_rows("SQLite", &ledger, &rows, Copies::AsSent);
    // Each packet that was sent again joined the wait of its message, or had crossed its PUBACK and is a row of its own.
    let joined = edge.status()["counters"]["joined"].as_u64().unwrap();
    assert_eq!(ledger.sent() as u64, rows.len() as u64 + joined);
    assert!(joined > 0, "no repetition joined");
}

#[test]
fn while_the_edge_waits_for_its_disk() {
    // Sooner than the edge acknowledges from its disk with a cloud that does not answer.
    storm(EDGE_RULES, Duration::from_millis(20));
}

#[test]
fn while_the_edge_waits_for_the_cloud() {
    // `ack = 'sink'`: no PUBACK before the cloud's own. Each second, as common device libraries do.
    let rules =
        "CREATE RULE everything WITH (ack = 'sink') AS INSERT INTO cloud SELECT * FROM \"factory/#\";";
    storm(rules, Duration::from_secs(1));
}
