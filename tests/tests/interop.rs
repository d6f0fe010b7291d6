//! Other people's clients: mosquitto_pub and mosquitto_sub, Paho (Python), rumqttc (MQTT 3.1.1 and 5), against a plain edge; and
//! other people's brokers: an edge's uplink to a mosquitto.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::{Duration, Instant};

use ferrule_mqtt::QoS;
use ferrule_testkit::wire::Options;
use ferrule_testkit::{Client, Config, Mosquitto, Node};
use ferrule_tests::mosquitto::{Reach, messages};
use ferrule_tests::{EDGE_RULES, PATIENCE, paho_round};

fn edge() -> Node {
    Node::start(&Config::edge().bare())
}

#[test]
fn mosquittos_clients_publish_and_subscribe() {
    let node = edge();
    let folder = tempfile::tempdir().unwrap();
    let edge = Reach::tcp(node.addr());
    for version in ["mqttv31", "mqttv311", "mqttv5"] {
        for qos in ["0", "1", "2"] {
            let topic = format!("t/{version}/{qos}");
            let args = format!("-v -C 2 -W 15 -q {qos} -t {topic}");
            let mut subscriber = edge.subscribe(folder.path(), version, &args);
            edge.publish(version, &format!("-q {qos} -t {topic} -m one"));
            edge.publish(version, &format!("-q {qos} -t {topic} -m two"));
            assert_eq!(messages(&mut subscriber), [format!("{topic} one"), format!("{topic} two")]);
        }
        // Retained: there for whoever comes later, and gone when cleared.
        let topic = format!("t/{version}/kept");
        edge.publish(version, &format!("-q 1 -r -t {topic} -m kept"));
        let args = format!("-v -C 1 -W 15 -q 1 -t {topic}");
        let mut subscriber = edge.subscribe_now(folder.path(), version, &args);
        assert_eq!(messages(&mut subscriber), [format!("{topic} kept")]);
        edge.publish(version, &format!("-q 1 -r -n -t {topic}"));
        // A will, of a client that is killed.
        let will = format!("t/{version}/will");
        let mut subscriber = edge.subscribe(folder.path(), version, &format!("-v -C 1 -W 15 -q 1 -t {will}"));
        let args = format!("-t other --will-topic {will} --will-payload gone --will-qos 1");
        let mut lost = edge.subscribe(folder.path(), version, &args);
        lost.kill9();
        assert_eq!(messages(&mut subscriber), [format!("{will} gone")]);
    }
}

#[test]
fn mosquitto_pub_sends_a_file_of_lines() {
    // `-l` exits when the last of its messages is acknowledged, so acknowledgements must leave in order.
    let edge = edge();
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
fn paho_speaks_all_three_versions() {
    let edge = edge();
    paho_round(&format!("tcp {}", edge.addr()));
}

/// rumqttc's two modules have the same names and different types; the steps are the same.
macro_rules! rumqttc_round {
    ($test:ident, $($module:ident)::+, $qos:path, $packet:path, $publish:ident => $topic:expr) => {
        #[test]
        fn $test() {
            use $qos as Level;
            use $packet as Incoming;
            use $($module)::+::{Client, Event, MqttOptions};

            let edge = edge();
            let mut options = MqttOptions::new("round", edge.addr().ip().to_string(), edge.addr().port());
            options.set_keep_alive(Duration::from_secs(30));
            let (client, mut connection) = Client::new(options, 100);
            client.subscribe("round/#", Level::ExactlyOnce).unwrap();
            let end = Instant::now() + PATIENCE;
            let mut got = Vec::new();
            while got.len() < 4 {
                assert!(Instant::now() < end, "only {got:?}");
                let Ok(event) = connection.recv_timeout(Duration::from_secs(1)) else { continue };
                match event.unwrap() {
                    Event::Incoming(Incoming::SubAck(_)) => {
                        for (level, retain) in [
                            (Level::AtMostOnce, false),
                            (Level::AtLeastOnce, false),
                            (Level::ExactlyOnce, false),
                            (Level::AtLeastOnce, true),
                        ] {
                            let topic = format!("round/{}", level as u8);
                            client.publish(topic, level, retain, "x".repeat(1000)).unwrap();
                        }
                    }
                    Event::Incoming(Incoming::Publish($publish)) => {
                        assert_eq!($publish.payload.len(), 1000);
                        got.push(($topic, $publish.qos as u8));
                    }
                    _ => {}
                }
            }
            // A QoS 2 message may be passed on at its PUBLISH or at its PUBREL.
            got.sort();
            let expect = [("round/0", 0), ("round/1", 1), ("round/1", 1), ("round/2", 2)];
            assert_eq!(got, expect.map(|(topic, qos)| (topic.to_owned(), qos)));
            // The last one was retained.
            let mut late = ferrule_testkit::Client::connect(edge.addr(), &Options::v5("late"));
            late.subscribe("round/+", QoS::AtLeastOnce);
            let kept = late.expect_message();
            assert_eq!((kept.topic.as_str(), kept.retain), ("round/1", true));
        }
    };
}

rumqttc_round!(rumqttc_v4_round, rumqttc, rumqttc::QoS, rumqttc::Packet, publish => publish.topic.clone());
rumqttc_round!(
    rumqttc_v5_round,
    rumqttc::v5,
    rumqttc::v5::mqttbytes::QoS,
    rumqttc::v5::mqttbytes::v5::Packet,
    publish => String::from_utf8(publish.topic.to_vec()).unwrap()
);

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
