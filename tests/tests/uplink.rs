//! The link between edge and cloud: what goes over it, and what becomes of it there.
#![allow(clippy::unwrap_used, reason = "tests")]

use ferrule_mqtt::QoS;
use ferrule_testkit::clock::Clock;
use ferrule_testkit::node::{Role, run_to_exit};
use ferrule_testkit::oracle::Copies;
use ferrule_testkit::wire::Options;
use ferrule_testkit::{Certs, Client, Config, Fleet, Node, Plan, node, until};
use ferrule_tests::{
    EDGE_RULES, PATIENCE, check_rows, cloud_rules, make_sqlite_table, open_sqlite, sqlite_rows,
};
use serde_json::Value;

/// A counter of the edge's uplink.
fn uplink(status: &Value, name: &str) -> u64 {
    node::count(&status["uplink"], name)
}

/// A counter of the node.
fn counter(status: &Value, name: &str) -> u64 {
    node::count(&status["counters"], name)
}

#[test]
fn batches_are_few_packets_and_each_message_is_a_row_once() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = folder.path().join("rows.db");
    make_sqlite_table(&sqlite);
    let cloud = Node::start(&Config::cloud().rules(cloud_rules(None, None, Some(&sqlite))));
    let edge = Node::start(&Config::edge().rules(EDGE_RULES).uplink(cloud.addr()));
    let fleet = Fleet::start(edge.addr(), Plan { devices: 20, messages: 200, window: 16, ..Plan::default() });
    let ledger = fleet.finish(PATIENCE);
    let status = edge.wait_drained(PATIENCE);
    let cloud_status = cloud.wait_drained(PATIENCE);
    check_rows("sqlite", &ledger, &sqlite_rows(&sqlite), Copies::One);

    let batches = uplink(&status, "batches");
    assert!((1..=1_000).contains(&batches), "{batches} batches");
    assert_eq!(uplink(&status, "sent"), 4_000);
    assert_eq!(counter(&cloud_status, "batches"), batches);
    assert_eq!(counter(&cloud_status, "received"), 4_000);
    // A PUBLISH of one, with its topic and identity, has more than 200 bytes.
    let each = uplink(&status, "bytes_out") / 4_000;
    assert!(each < 80, "{each} bytes a message");
    edge.assert_quiet_log();
    cloud.assert_quiet_log();
}

#[test]
fn to_a_cloud_that_is_sent_none_it_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = folder.path().join("rows.db");
    make_sqlite_table(&sqlite);
    let cloud = Node::start(&Config::cloud().rules(cloud_rules(None, None, Some(&sqlite))));
    // The last table of its configuration is [uplink].
    let edge = Node::start(&Config::edge().rules(EDGE_RULES).uplink(cloud.addr()).extra("batch = false"));
    let ledger =
        Fleet::start(edge.addr(), Plan { devices: 4, messages: 50, ..Plan::default() }).finish(PATIENCE);
    let status = edge.wait_drained(PATIENCE);
    cloud.wait_drained(PATIENCE);
    check_rows("sqlite", &ledger, &sqlite_rows(&sqlite), Copies::One);
    assert_eq!((uplink(&status, "batches"), uplink(&status, "sent")), (0, 200));
}

#[test]
fn what_the_cloud_refuses_of_a_batch_is_given_up_alone() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = folder.path().join("rows.db");
    make_sqlite_table(&sqlite);
    // The last table of its configuration is the edge's [[user]].
    let cloud = Config::cloud().rules(cloud_rules(None, None, Some(&sqlite)));
    let cloud = Node::start(&cloud.extra("deny = [\"factory/secret\"]"));
    let config = Config::edge().rules(EDGE_RULES).uplink(cloud.addr());
    let edge = Node::start(&config.extra("[outbox]\ndead_letter = \"dead\""));
    let mut device = Client::connect(edge.addr(), &Options::v5("press-1"));
    let mut reader = Client::connect(edge.addr(), &Options::v5("reader"));
    reader.subscribe("dead/#", QoS::AtLeastOnce);
    for n in 0..40 {
        let topic = if n % 4 == 0 { "factory/secret" } else { "factory/d" };
        let payload = format!(r#"{{"device":"d","n":{n}}}"#);
        device.publish(topic, payload.as_bytes(), QoS::AtLeastOnce, false);
    }
    let status = edge.wait_drained(PATIENCE);
    cloud.wait_drained(PATIENCE);
    let outbox = node::outbox(&status, "cloud");
    assert_eq!((node::count(outbox, "delivered"), node::count(outbox, "discarded")), (30, 10));
    assert_eq!(node::count(&outbox["discarded_by"], "refused"), 10);
    assert_eq!(counter(&cloud.status(), "denied"), 10);
    let rows: Vec<i64> = open_sqlite(&sqlite)
        .prepare("select n from readings order by n")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(rows, (0..40).filter(|n| n % 4 != 0).collect::<Vec<_>>());
    // Each of the others is a letter here.
    for n in (0..40).step_by(4) {
        let letter = reader.expect_message();
        assert_eq!(
            (&*letter.topic, letter.text()),
            ("dead/cloud/factory/secret", &*format!(r#"{{"device":"d","n":{n}}}"#))
        );
        let why = [("ferrule-reason", "refused"), ("ferrule-target", "factory/secret")];
        let why = why.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(letter.user_properties, why);
    }
}

const DOWN: &str = "[[downlink]]\nfilter = \"commands/press-7/#\"\ntopic = \"commands/$1\"";

#[test]
fn commands_come_down_under_their_name_here() {
    let cloud = Node::start(&Config::cloud());
    let edge = Node::start(&Config::edge().uplink(cloud.addr()).extra(DOWN));
    edge.wait_status(PATIENCE, "the uplink", node::uplink_is_up);
    let mut device = Client::connect(edge.addr(), &Options::v5("device"));
    device.subscribe("#", QoS::AtLeastOnce);
    let mut operator = Client::connect(cloud.addr(), &Options::v5("operator"));
    operator.publish("commands/press-8/start", b"not for us", QoS::AtLeastOnce, false);
    for n in 0..200 {
        let payload = n.to_string();
        operator.publish("commands/press-7/line/start", payload.as_bytes(), QoS::AtLeastOnce, false);
    }
    for n in 0..200 {
        let message = device.expect_message();
        assert_eq!(
            (message.topic.as_str(), message.payload),
            ("commands/line/start", n.to_string().into_bytes())
        );
    }
    assert_eq!(uplink(&edge.status(), "received"), 200);
    edge.assert_quiet_log();
    cloud.assert_quiet_log();
}

#[test]
fn a_command_to_a_gateway_that_is_away_waits_in_the_cloud() {
    let cloud = Node::start(&Config::cloud());
    let mut edge = Node::start(&Config::edge().uplink(cloud.addr()).extra(DOWN));
    edge.wait_status(PATIENCE, "the uplink", node::uplink_is_up);
    let mut device = Client::connect(edge.addr(), &Options::v5("device").persistent());
    device.subscribe("commands/#", QoS::AtLeastOnce);
    let mut operator = Client::connect(cloud.addr(), &Options::v5("operator"));
    // Its session is there: this one came down.
    operator.publish("commands/press-7/0", b"", QoS::AtLeastOnce, false);
    assert_eq!(device.expect_message().topic, "commands/0");
    for n in 1..=50 {
        if n == 10 {
            edge.kill9();
        }
        operator.publish(&format!("commands/press-7/{n}"), b"", QoS::AtLeastOnce, false);
    }
    edge.restart();
    let mut device = Client::connect(edge.addr(), &Options::v5("device").persistent());
    let mut missing: std::collections::BTreeSet<String> =
        (10..=50).map(|n| format!("commands/{n}")).collect();
    while !missing.is_empty() {
        missing.remove(&device.expect_message().topic);
    }
}

#[test]
fn what_goes_up_and_down_does_not_run_in_a_circle() {
    // What the edge says to the cloud comes back under another name, and goes up again as what it was.
    let rules = "CREATE RULE up AS INSERT INTO cloud.\"commands/press-7/x\" SELECT * FROM \"commands/x\";\n";
    let turn = "CREATE RULE turn AS INSERT INTO local.\"commands/press-7/x\" SELECT * FROM \"circle\";\n";
    let cloud = Node::start(&Config::cloud().rules(turn));
    let circle = "CREATE RULE up AS INSERT INTO cloud.\"circle\" SELECT * FROM \"commands/x\";\n";
    for (rules, entered, discarded) in [(rules, 1, 0), (circle, 5, 1)] {
        let edge = Node::start(&Config::edge().rules(rules).uplink(cloud.addr()).extra(DOWN));
        edge.wait_status(PATIENCE, "the uplink", node::uplink_is_up);
        let mut device = Client::connect(edge.addr(), &Options::v5("device"));
        device.subscribe("commands/#", QoS::AtMostOnce);
        device.publish("commands/x", b"{}", QoS::AtLeastOnce, false);
        // Each turn is two brokers more, and the last one would be more than eight.
        let seen = |status: &Value| {
            let outbox = node::outbox(status, "cloud");
            (node::count(outbox, "entered"), node::count(outbox, "discarded"))
        };
        edge.wait_status(PATIENCE, "the circle's end", |status| seen(status) == (entered, discarded));
        // What was under way has come before this.
        let mut operator = Client::connect(cloud.addr(), &Options::v5("operator"));
        operator.publish("commands/press-7/fence", b"", QoS::AtLeastOnce, false);
        while device.expect_message().topic != "commands/fence" {}
        assert_eq!(seen(&edge.wait_drained(PATIENCE)), (entered, discarded));
    }
}

/// What may be acknowledged is on disk meanwhile; enough bytes, or the end of the edge, send it.
#[test]
fn on_a_link_that_is_paid_for_devices_do_not_wait_for_the_burst() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = folder.path().join("rows.db");
    make_sqlite_table(&sqlite);
    let cloud = Node::start(&Config::cloud().rules(cloud_rules(None, None, Some(&sqlite))));
    let metered = "metered = { bytes = \"4KiB\", time = \"1h\" }";
    let edge = Config::edge().rules(EDGE_RULES).uplink(cloud.addr()).extra(metered);
    let mut edge = Node::start(&edge);
    edge.wait_status(PATIENCE, "the uplink", node::uplink_is_up);
    let mut device = Client::connect(edge.addr(), &Options::v5("d"));
    let mut publish = |n: u32| {
        let payload = format!(r#"{{"device":"d","n":{n},"text":"{}"}}"#, "x".repeat(100));
        // Returns when it is acknowledged.
        device.publish("factory/d", payload.as_bytes(), QoS::AtLeastOnce, false);
    };
    (0..10).for_each(&mut publish);
    let status = edge.status();
    assert_eq!((uplink(&status, "sent"), uplink(&status, "backlog")), (0, 10), "{status:#}");
    assert_eq!(node::count(node::outbox(&status, "cloud"), "stored"), 10);
    // Each counts 170 bytes and more.
    (10..30).for_each(&mut publish);
    edge.wait_status(PATIENCE, "a burst", |status| uplink(status, "acknowledged") >= 20);
    (30..35).for_each(&mut publish);
    let status = edge.status();
    assert!(uplink(&status, "sent") < 35 && uplink(&status, "batches") == 1, "{status:#}");
    edge.terminate();
    cloud.wait_drained(PATIENCE);
    let rows: Vec<i64> = open_sqlite(&sqlite)
        .prepare("select n from readings order by n")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(rows, (0..35).collect::<Vec<_>>());
}

/// A gateway without a battery, and nobody there who knows the time. The cloud's certificate is of today.
#[test]
fn in_1970_it_reaches_its_cloud_by_tls_and_keeps_what_that_tells_of_the_time() {
    let Some(clock) = Clock::new() else { return };
    clock.set(1_000);
    let certs = Certs::local(&[]);
    let tls = format!("[[listener]]\nbind = \"127.0.0.1:0\"\nanonymous = true\n{}\n", certs.tls(""));
    let cloud = Node::start(&Config::cloud().extra(&tls));
    let mut reader = Client::connect(cloud.addr(), &Options::v5("reader"));
    reader.subscribe("factory/#", QoS::AtLeastOnce);
    let ca = format!("tls = {{ ca = {:?} }}", certs.path("ca.crt"));
    let config =
        Config::edge().rules(EDGE_RULES).uplink_tls("localhost", cloud.listener(1).port()).extra(&ca);
    let mut edge = Node::start(&clock.config(config));
    for _ in 0..2 {
        let mut device = Client::connect(edge.addr(), &Options::v5("press-7"));
        device.publish("factory/press", b"{}", QoS::AtLeastOnce, false);
        edge.wait_drained(PATIENCE);
        assert_eq!(reader.expect_message().topic, "factory/press");
        until(PATIENCE, "it is stored", || {
            let folder = edge.data_dir().to_str().unwrap();
            let dump = run_to_exit(Role::Edge, &["store", "dump", "--data-dir", folder]).output;
            dump.contains("known_time_s").then_some(())
        });
        edge.kill9();
        edge.restart();
    }
}
