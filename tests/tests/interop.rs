//! What other people's programs do beyond `clients`: mosquitto_pub's files of lines, and a mosquitto behind an edge's uplink.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::time::Duration;

use ferrule_mqtt::QoS;
use ferrule_testkit::wire::Options;
use ferrule_testkit::{Client, Config, Mosquitto, Node, node};
use ferrule_tests::mosquitto::Reach;
use ferrule_tests::{EDGE_RULES, PATIENCE};

#[test]
fn mosquitto_pub_sends_a_file_of_lines() {
    // `-l` exits when the last of its messages is acknowledged, so acknowledgements must leave in order.
    let edge = Node::start(&Config::edge().bare());
    let folder = tempfile::tempdir().unwrap();
    let lines: String = (0..500).map(|n| format!("{n}\n")).collect();
    let file = folder.path().join("lines");
    std::fs::write(&file, lines).unwrap();
    let mut reader = Client::connect(edge.addr(), &Options::v4("away").persistent());
    reader.subscribe("lines", QoS::AtLeastOnce);
    drop(reader);
    let mut command = Reach::tcp(edge.addr()).publisher("mqttv311", "-q 1 -t lines -l");
    assert!(command.stdin(std::fs::File::open(&file).unwrap()).status().unwrap().success());
    let mut reader = Client::connect(edge.addr(), &Options::v4("away").persistent());
    for n in 0..500 {
        assert_eq!(reader.expect_message().text(), n.to_string());
    }
}

#[test]
fn an_edge_brings_its_rows_to_a_mosquitto() {
    // A broker that knows nothing of Ferrule: no identity, no batches, acknowledgements in order.
    let mut mosquitto = Mosquitto::start();
    let mut reader = Client::connect(mosquitto.addr(), &Options::v5("reader").persistent());
    reader.subscribe("factory/#", QoS::AtLeastOnce);
    let edge = Node::start(&Config::edge().rules(EDGE_RULES).uplink(mosquitto.addr()));
    let mut device = Client::connect(edge.addr(), &Options::v4("d"));
    for n in 0..50 {
        if n == 25 {
            reader.disconnect();
            mosquitto.terminate(); // saves its sessions
            mosquitto.restart();
            reader = Client::connect(mosquitto.addr(), &Options::v5("reader").persistent());
        }
        device.publish("factory/d", n.to_string().as_bytes(), QoS::AtLeastOnce, false);
    }
    edge.wait_drained(PATIENCE);
    let mut got = Vec::new();
    while got.last() != Some(&49) {
        let message = reader.expect_message();
        assert!(message.user_properties.is_empty(), "identity told to a stranger: {message:?}");
        got.push(message.text().parse::<u32>().unwrap());
    }
    got.sort_unstable();
    got.dedup();
    assert_eq!(got, (0..50).collect::<Vec<_>>());
}

#[test]
fn commands_come_down_from_a_mosquitto_in_both_versions_and_wait_there_for_an_edge_that_is_away() {
    for version in ["5", "4"] {
        let mut mosquitto = Mosquitto::start();
        let down = format!(
            "version = {version}\n[[downlink]]\nfilter = \"commands/press-7/#\"\ntopic = \"commands/$1\""
        );
        let mut edge = Node::start(&Config::edge().uplink(mosquitto.addr()).extra(&down));
        edge.wait_status(PATIENCE, "the uplink", node::uplink_is_up);
        let mut device = Client::connect(edge.addr(), &Options::v5("device").persistent());
        device.subscribe("commands/#", QoS::AtLeastOnce);
        let mut operator = Client::connect(mosquitto.addr(), &Options::v4("operator"));
        // Until the edge has subscribed, nobody keeps anything for it.
        let mut first = None;
        while first.is_none() {
            operator.publish("commands/press-7/first", b"", QoS::AtLeastOnce, false);
            first = device.recv_message(Duration::from_millis(200)).ok();
        }
        assert_eq!(first.unwrap().topic, "commands/first", "version {version}");
        for n in 0..40 {
            match n {
                10 => edge.kill9(),
                20 => {
                    mosquitto.terminate(); // saves its sessions
                    mosquitto.restart();
                    operator = Client::connect(mosquitto.addr(), &Options::v4("operator"));
                }
                30 => edge.restart(),
                _ => {}
            }
            operator.publish(&format!("commands/press-7/{n}"), b"", QoS::AtLeastOnce, false);
        }
        let mut device = Client::connect(edge.addr(), &Options::v5("device").persistent());
        let mut missing: BTreeSet<String> = (10..40).map(|n| format!("commands/{n}")).collect();
        while !missing.is_empty() {
            missing.remove(&device.expect_message().topic);
        }
    }
}
