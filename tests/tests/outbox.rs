//! `outbox list|show|export|purge`: of a running edge, of one that does not run, and of a sink that no rule names any more.
#![allow(clippy::unwrap_used, reason = "tests")]

use ferrule_mqtt::QoS;
use ferrule_testkit::node::{assert_accounts, binary, count, outbox};
use ferrule_testkit::proc::output;
use ferrule_testkit::wire::Options;
use ferrule_testkit::{Client, Config, Node, port};
use ferrule_tests::{EDGE_RULES, PATIENCE};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

fn command(data_dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(binary("ferrule-edge"));
    command.arg("outbox").args(args).arg("--data-dir").arg(data_dir);
    command
}

fn run(data_dir: &Path, args: &[&str]) -> String {
    output(&mut command(data_dir, args))
}

fn purge(data_dir: &Path, args: &[&str]) -> Output {
    let mut line = vec!["purge"];
    line.extend(args);
    command(data_dir, &line).output().unwrap()
}

fn exported(data_dir: &Path, name: &str) -> Vec<Value> {
    run(data_dir, &["export", name]).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn publish(node: &Node, rows: std::ops::Range<usize>, size: usize) {
    let mut device = Client::connect(node.addr(), &Options::v5("press"));
    for n in rows {
        let payload = format!("{{\"n\":{n},\"fill\":\"{}\"}}", "x".repeat(size));
        device.publish("factory/press", payload.as_bytes(), QoS::AtLeastOnce, false);
    }
}

/// A backlog larger than memory keeps of it: part of it is only on disk.
#[test]
fn a_backlog_is_listed_shown_exported_and_given_up() {
    const ROWS: usize = 600;
    let config = Config::edge().rules(EDGE_RULES).uplink(port::free_addr());
    let mut node = Node::start(&config);
    publish(&node, 0..ROWS, 8_000);
    node.wait_status(PATIENCE, "a backlog", |status| count(outbox(status, "cloud"), "queued") == ROWS as u64);
    let dir = node.data_dir().to_owned();

    let list = run(&dir, &["list"]);
    let cloud: Vec<&str> = list.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(cloud[..4], ["cloud", "down", "600", "0"], "{list}");
    let show = run(&dir, &["show", "cloud", "--limit", "3"]);
    assert_eq!(show.lines().count(), 3, "{show}");
    assert!(show.lines().all(|line| line.contains("factory/press") && line.ends_with("...")), "{show}");

    // While it runs and when it does not, the same rows, whole and in order.
    let rows = exported(&dir, "cloud");
    assert_eq!(rows.len(), ROWS);
    for (n, row) in rows.iter().enumerate() {
        let payload: Value = serde_json::from_str(row["payload"].as_str().unwrap()).unwrap();
        assert_eq!((payload["n"].as_u64(), row["client_id"].as_str()), (Some(n as u64), Some("press")));
    }
    assert_eq!(count(outbox(&node.status(), "cloud"), "queued"), ROWS as u64, "looking removes nothing");
    assert!(node.terminate().success());
    let without_place = |mut row: Value| {
        row.as_object_mut().unwrap().remove("place");
        row
    };
    let stored: Vec<Value> = exported(&dir, "cloud").into_iter().map(without_place).collect();
    assert_eq!(stored, rows.into_iter().map(without_place).collect::<Vec<_>>());
    assert!(run(&dir, &["list"]).contains("not running"));

    // Nobody is there to be asked; nothing is older than an hour; then everything.
    node.restart();
    let refused = purge(&dir, &["cloud", "--all"]);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("--yes"));
    assert!(purge(&dir, &["cloud", "--older-than", "1h", "--yes"]).status.success());
    assert_eq!(count(outbox(&node.status(), "cloud"), "queued"), ROWS as u64);
    let done = purge(&dir, &["cloud", "--all", "--yes"]);
    assert!(done.status.success());
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(said.contains("gave up 600 rows"), "{said}");
    let status = node.status();
    let cloud = outbox(&status, "cloud");
    assert_eq!((count(cloud, "queued"), count(cloud, "bytes")), (0, 0), "{cloud:#}");
    assert_eq!((count(cloud, "discarded"), cloud["discarded_by"]["purged"].as_u64()), (600, Some(600)));
    assert_accounts(&status);

    // And for good.
    publish(&node, 0..5, 10);
    assert!(node.terminate().success());
    node.restart();
    assert_eq!(exported(&dir, "cloud").len(), 5);
    node.kill9();
    let done = purge(&dir, &["cloud", "--all", "--yes"]);
    assert!(String::from_utf8_lossy(&done.stderr).contains("gave up 5 rows"));
    node.restart();
    assert_eq!(exported(&dir, "cloud").len(), 0);
}

/// What was given up is not delivered when the cloud comes, and what came afterwards is.
#[test]
fn what_was_given_up_stays_away() {
    let addr = port::free_addr();
    let edge = Node::start(&Config::edge().rules(EDGE_RULES).uplink(addr));
    publish(&edge, 0..50, 10);
    let done = purge(edge.data_dir(), &["cloud", "--older-than", "0s", "--yes"]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    publish(&edge, 50..60, 10);
    let rules = "CREATE RULE back AS INSERT INTO local.\"seen\" SELECT * FROM \"factory/#\";";
    let cloud = Node::start(&Config::cloud().listen(addr).rules(rules));
    let status = edge.wait_drained(PATIENCE);
    assert_eq!(count(outbox(&status, "cloud"), "delivered"), 10);
    assert_accounts(&status);
    assert_eq!(count(&cloud.status()["counters"], "received"), 10);
}

/// Rows of a sink that the rules name no more wait under its number, and its name still means it.
#[test]
fn rows_that_no_rule_claims_are_seen_and_given_up() {
    // A table in a folder that is not there: its sink waits.
    let sink = "CREATE SINK s WITH (connector = 'sqlite', path = 'missing/s.db', table = 't');
        CREATE RULE r AS INSERT INTO s SELECT topic FROM \"factory/#\";";
    let mut node = Node::start(&Config::edge().rules(sink));
    publish(&node, 0..20, 10);
    node.wait_status(PATIENCE, "rows", |status| {
        let s = outbox(status, "s");
        count(s, "queued") + count(s, "in_flight") == 20
    });
    assert!(node.terminate().success());
    node.write_rules(EDGE_RULES);
    node.restart();
    let list: Value = serde_json::from_str(&run(node.data_dir(), &["list", "--json"])).unwrap();
    let number = list["unclaimed"][0]["name"].as_str().unwrap().to_owned();
    assert_eq!(list["unclaimed"][0]["queued"], 20, "{list:#}");
    assert_eq!(exported(node.data_dir(), &number), exported(node.data_dir(), "s"));
    assert_eq!(exported(node.data_dir(), "s").len(), 20);
    assert!(purge(node.data_dir(), &["s", "--all", "--yes"]).status.success());
    assert_eq!(count(&node.status()["counters"], "unclaimed_rows"), 0);
    assert!(!purge(node.data_dir(), &["s", "--all", "--yes"]).status.success(), "there is none any more");
    assert!(!purge(node.data_dir(), &["s", "--all", "--older-than", "1h"]).status.success());
    // The rules name it again: it begins anew.
    node.write_rules(sink);
    node.wait_status(PATIENCE, "the sink", |status| {
        status["outboxes"].as_array().unwrap().iter().any(|o| o["name"] == "s" && o["queued"] == 0)
    });
}
