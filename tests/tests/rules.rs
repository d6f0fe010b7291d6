//! Rules in a running node: what they remember over kill -9, workers and reloads, and what they are told of the broker.
#![allow(clippy::unwrap_used, reason = "tests")]

use ferrule_mqtt::QoS;
use ferrule_testkit::node::count;
use ferrule_testkit::wire::Options;
use ferrule_testkit::{Client, Config, Node};
use ferrule_tests::PATIENCE;
use serde_json::Value;

/// Devices of whom some are on each worker, wherever their rule lives.
const DEVICES: usize = 9;

fn rule(status: &Value, name: &str) -> Value {
    let rules = status["rules"].as_array().unwrap();
    rules.iter().find(|rule| rule["name"] == name).unwrap_or(&Value::Null).clone()
}

/// Of each device the steps `from..to`, each acknowledged, and what the rule makes of them: the step before.
fn steps(node: &Node, from: i64, to: i64, first: i64) {
    let mut reader = Client::connect(node.addr(), &Options::v5("reader"));
    reader.subscribe("steps/+", QoS::ExactlyOnce);
    let mut devices: Vec<Client> =
        (0..DEVICES).map(|d| Client::connect(node.addr(), &Options::v5(&format!("d{d}")))).collect();
    for n in from..to {
        for (d, device) in devices.iter_mut().enumerate() {
            device.publish(&format!("in/d{d}"), format!("{{\"n\":{n}}}").as_bytes(), QoS::AtLeastOnce, false);
        }
    }
    let mut next = [from; DEVICES];
    for _ in 0..DEVICES as i64 * (to - from) {
        let message = reader.expect_message();
        let row: Value = serde_json::from_str(message.text()).unwrap();
        let d: usize = message.topic.trim_start_matches("steps/d").parse().unwrap();
        let before = if next[d] == from { first } else { next[d] - 1 };
        assert_eq!((row["n"].as_i64(), row["before"].as_i64()), (Some(next[d]), Some(before)), "device {d}");
        next[d] += 1;
    }
}

const STEPS: &str = "CREATE RULE steps WITH (durability = 'exact') AS INSERT INTO local.\"steps/${clientid}\"
    SELECT payload.n AS n, lag(payload.n, clientid, -1) AS before FROM \"in/+\";";

#[test]
fn what_a_rule_remembers_survives_a_kill() {
    for config in [Config::edge(), Config::cloud()] {
        let mut node = Node::start(&config.rules(STEPS));
        steps(&node, 0, 10, -1);
        // Acknowledged, so remembered.
        node.kill9();
        node.restart();
        steps(&node, 10, 20, 9);
        assert!(node.terminate().success());
        node.restart();
        steps(&node, 20, 25, 19);
        assert!(count(&rule(&node.status(), "steps"), "state_bytes") > 100);
    }
}

#[test]
fn a_reload_leaves_other_rules_and_their_memory_alone_and_a_rule_that_goes_forgets() {
    let mut node = Node::start(&Config::cloud().rules(STEPS));
    steps(&node, 0, 3, -1);
    // Another rule comes, this one is written differently, and keeps what it remembers.
    let other = "CREATE RULE other AS INSERT INTO log SELECT * FROM \"other\";";
    node.write_rules(&format!("{other}\n{}", STEPS.replace("AS n,", "AS  n,")));
    node.wait_status(PATIENCE, "the second rule", |status| !rule(status, "other").is_null());
    steps(&node, 3, 6, 2);
    node.write_rules(other);
    node.wait_status(PATIENCE, "one rule alone", |status| rule(status, "steps").is_null());
    node.write_rules(STEPS);
    node.wait_status(PATIENCE, "the first rule again", |status| rule(status, "other").is_null());
    steps(&node, 6, 8, -1);
    node.kill9();
    node.restart();
    steps(&node, 8, 9, 7);
}

#[test]
fn rules_hear_of_clients_subscriptions_and_messages() {
    let rules = r#"
        CREATE RULE presence AS INSERT INTO local."presence/${clientid}" WITH (retain = TRUE)
          SELECT event = 'client.connected' AS online, reason
          FROM "$events/client/connected", "$events/client/disconnected" WHERE clientid <> 'reader';
        SET dialect = 'emqx';
        CREATE RULE subscribed AS INSERT INTO local."told" SELECT topic, qos FROM "$events/session_subscribed"
          WHERE clientid = 'd';
        CREATE RULE unwanted AS INSERT INTO local."told" SELECT topic, reason, payload.x as x
          FROM "$events/message_dropped";"#;
    let node = Node::start(&Config::cloud().rules(rules));
    let mut reader = Client::connect(node.addr(), &Options::v5("reader"));
    reader.subscribe("presence/+", QoS::AtLeastOnce);
    reader.subscribe("told", QoS::AtLeastOnce);
    let mut heard = |topic: &str, payload: &str| {
        let message = reader.expect_message();
        assert_eq!((message.topic.as_str(), message.text()), (topic, payload));
    };
    let mut device = Client::connect(node.addr(), &Options::v5("d"));
    heard("presence/d", r#"{"online":true,"reason":null}"#);
    device.subscribe("cmd/d", QoS::AtLeastOnce);
    heard("told", r#"{"topic":"cmd/d","qos":1}"#);
    device.publish("nobody/asked", br#"{"x":5}"#, QoS::AtLeastOnce, false);
    heard("told", r#"{"topic":"nobody/asked","reason":"no_subscribers","x":5}"#);
    device.disconnect();
    heard("presence/d", r#"{"online":false,"reason":"normal"}"#);
    drop(Client::connect(node.addr(), &Options::v5("d")));
    heard("presence/d", r#"{"online":true,"reason":null}"#);
    heard("presence/d", r#"{"online":false,"reason":"tcp_closed"}"#);
}
