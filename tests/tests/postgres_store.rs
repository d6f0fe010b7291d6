//! A cloud node whose store is in PostgreSQL: its promises over kill -9 of the node, of the server, and a change of machine.
#![allow(clippy::unwrap_used, reason = "tests")]

use ferrule_mqtt::{AckType, QoS};
use ferrule_testkit::node::{Role, count, run_to_exit, start_to_exit};
use ferrule_testkit::wire::Options;
use ferrule_testkit::{Client, Config, Node, Postgres};
use ferrule_tests::PATIENCE;

fn config(postgres: &Postgres) -> Config {
    Config::cloud()
        .extra(&format!("[store]\nbackend = \"postgres\"\nurl = {:?}\ntimeout = \"20s\"\n", postgres.url()))
}

fn reader() -> Options {
    Options::v5("reader").persistent()
}

/// A session with a subscription, that is then away.
fn subscribe(node: &Node) {
    let mut reader = Client::connect(node.addr(), &reader());
    assert_eq!(reader.subscribe("a/#", QoS::ExactlyOnce), 2);
    reader.disconnect();
}

fn publish(node: &Node, numbers: std::ops::Range<u32>) {
    let mut writer = Client::connect(node.addr(), &Options::v5("writer"));
    for n in numbers {
        let qos = if n % 2 == 0 { QoS::AtLeastOnce } else { QoS::ExactlyOnce };
        writer.publish(&format!("a/{n}"), n.to_string().as_bytes(), qos, n % 10 == 0);
    }
    writer.disconnect();
}

/// What the session has, up to a message that is published now. Sorted: one of QoS 2 may come behind a later one of QoS 1, since its
/// packet id is stored first.
fn received(node: &Node) -> Vec<u32> {
    let (mut reader, present) = Client::connect_session(node.addr(), &reader());
    assert!(present, "the session is not there any more");
    Client::connect(node.addr(), &Options::v4("")).publish("a/end", b"end", QoS::ExactlyOnce, false);
    let messages = reader.messages_until("a/end");
    let mut messages: Vec<u32> = messages.iter().map(|m| m.text().parse().unwrap()).collect();
    messages.sort_unstable();
    reader.disconnect();
    messages
}

fn retained(node: &Node) -> usize {
    let mut other = Client::connect(node.addr(), &Options::v5("other"));
    other.subscribe("a/#", QoS::AtMostOnce);
    other.subscribe("fence", QoS::AtMostOnce);
    other.publish("fence", b"", QoS::AtMostOnce, false);
    other.messages_until("fence").len()
}

#[test]
fn all_survives_a_kill_of_the_node() {
    let postgres = Postgres::start();
    let mut node = Node::start(&config(&postgres));
    subscribe(&node);
    publish(&node, 0..100);
    node.kill9();
    node.restart();
    let status = node.status();
    assert_eq!(status["store"]["backend"], "postgres");
    assert!(status["store"]["path"].as_str().unwrap().contains("schema ferrule"), "{status:#}");
    assert_eq!(received(&node), Vec::from_iter(0..100));
    assert_eq!(retained(&node), 10);
    publish(&node, 100..120);
    node.terminate();
    node.restart();
    assert_eq!(received(&node), Vec::from_iter(100..120));
    // Nothing of it is in the data folder.
    assert!(!node.data_dir().join("ferrule.db").exists());
    // What was taken is not there any more.
    assert_eq!(postgres.query("SELECT count(*) FROM ferrule.queue_row"), ["0"]);
    node.assert_quiet_log();
}

/// Another machine, with nothing but the configuration.
#[test]
fn a_node_goes_on_elsewhere() {
    let postgres = Postgres::start();
    let mut first = Node::start(&config(&postgres));
    subscribe(&first);
    publish(&first, 0..20);
    first.kill9();
    let second = Node::start(&config(&postgres));
    assert_eq!(received(&second), Vec::from_iter(0..20));
    assert_eq!(retained(&second), 2);
}

#[test]
fn a_server_that_is_killed_withholds_and_goes_on() {
    let mut postgres = Postgres::start();
    let node = Node::start(&config(&postgres));
    subscribe(&node);
    publish(&node, 0..10);
    postgres.kill9();
    let mut writer = Client::connect(node.addr(), &Options::v5("waits"));
    let id = writer.publish_nowait("a/10", b"10", QoS::AtLeastOnce, false);
    node.wait_status(PATIENCE, "the store fails", |s| s["store"]["state"] == "failing");
    // What needs no store goes on.
    let mut clean = Client::connect(node.addr(), &Options::v5("clean"));
    clean.subscribe("b", QoS::AtLeastOnce);
    clean.publish("b", b"", QoS::AtLeastOnce, false);
    clean.expect_message();
    postgres.restart();
    writer.expect_ack(AckType::Puback, id);
    let status = node.wait_status(PATIENCE, "the store works", |s| s["store"]["state"] == "ok");
    assert!(count(&status["store"], "commits") > 0);
    assert_eq!(received(&node), Vec::from_iter(0..11));
}

#[test]
fn check_and_start_say_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cloud.toml");
    let check = |text: &str| {
        std::fs::write(&file, format!("{text}\n[[listener]]\nbind = \"127.0.0.1:1883\"\n")).unwrap();
        run_to_exit(Role::Cloud, &["check", "--config", file.to_str().unwrap(), "--all"])
    };
    let store = "[store]\nbackend = \"postgres\"\n";
    for (text, wanted) in [
        (format!("[node]\nid = \"a\"\n{store}"), "needs `url`"),
        (format!("{store}url = \"host=h\""), "needs the node's `id`"),
        (format!("[node]\nid = \"a\"\n{store}url = \"host=h port=hunter2\""), "port"),
        (format!("[node]\nid = \"a\"\n{store}url = \"host=h\"\nschema = \"A b\""), "`store.schema`"),
        ("[store]\nbackend = \"mysql\"".to_owned(), "postgres"),
    ] {
        let ended = check(&text);
        assert!(!ended.status.success() && ended.output.contains(wanted), "{text}: {ended:?}");
    }
    let ended = check(&format!("[node]\nid = \"a\"\n{store}url = \"postgres://u:hunter2@h/d\""));
    assert!(ended.status.success() && !ended.output.contains("hunter2"), "{ended:?}");

    // A table that is a newer release's.
    let postgres = Postgres::start();
    Node::start(&config(&postgres)).terminate();
    postgres.execute("UPDATE ferrule.ferrule_schema SET version = 99");
    let ended = start_to_exit(&config(&postgres));
    assert!(!ended.status.success() && ended.output.contains("newer ferrule"), "{ended:?}");
}
