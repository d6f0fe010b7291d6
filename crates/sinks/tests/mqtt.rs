//! The MQTT sink and mosquitto.
#![allow(clippy::unwrap_used, reason = "tests")]

use ferrule_mqtt::QoS;
use ferrule_sinks::harness::{Harness, YES, entry};
use ferrule_sinks::{Mqtt, OutRow};
use ferrule_testkit::wire::Options;
use ferrule_testkit::{Client, Mosquitto};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

fn start(broker: &Mosquitto, options: &[(&str, &str)]) -> Harness {
    let url = format!("mqtt://{}", broker.addr());
    Harness::start(&Mqtt, &[&[("url", &*url)], options].concat())
}

fn row(seq: u64, qos: u8, retain: bool) -> OutRow {
    let mut entry = entry(seq, &format!("up/{}", seq % 3), format!("{seq}"));
    (entry.qos, entry.retain) = (qos, retain);
    OutRow { seq, entry: Arc::new(entry), again: false, late: false }
}

/// A door before `broker`, at which CONNECTs of MQTT 5 are refused in the words of 3.1.1, as brokers before it do.
fn without_mqtt_5(broker: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        while let Ok((mut client, _)) = listener.accept() {
            // Fixed header of two bytes, the name MQTT, the level.
            let mut head = [0; 9];
            if client.read_exact(&mut head).is_err() {
                continue;
            }
            if head[8] == 5 {
                let _ = client.write_all(&[0x20, 2, 0, 1]);
                continue;
            }
            let mut server = TcpStream::connect(broker).unwrap();
            server.write_all(&head).unwrap();
            let (mut from_server, mut to_client) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut from_server, &mut to_client));
            std::thread::spawn(move || std::io::copy(&mut client, &mut server));
        }
    });
    addr
}

#[tokio::test]
async fn messages_arrive_in_order_and_as_they_are() {
    let broker = Mosquitto::start();
    for version in ["auto", "3.1.1"] {
        let mut reader = Client::connect(broker.addr(), &Options::v5("reader"));
        reader.subscribe("up/#", QoS::AtLeastOnce);
        let mut sink = start(&broker, &[("version", version)]);
        sink.send((0..500).map(|n| row(n, (n % 2) as u8, false)).collect()).await;
        sink.until_answered(500).await;
        assert!(sink.downs.is_empty());
        assert!(sink.stop().await.values().all(|d| *d == YES));
        // mosquitto lets messages of QoS 0 pass those of QoS 1 that wait for its reader: the order is of each.
        let mut seen: [Vec<u64>; 2] = Default::default();
        for _ in 0..500 {
            let message = reader.expect_message();
            let n: u64 = message.text().parse().unwrap();
            assert_eq!(message.topic, format!("up/{}", n % 3));
            seen[n as usize % 2].push(n);
        }
        assert!(seen.iter().all(|seen| seen.len() == 250 && seen.is_sorted()), "{version}: {seen:?}");
        reader.disconnect();
    }
}

#[tokio::test]
async fn a_retained_message_stays() {
    let broker = Mosquitto::start();
    let mut sink = start(&broker, &[]);
    sink.send(vec![row(3, 1, true)]).await;
    sink.until_answered(1).await;
    sink.stop().await;
    let mut reader = Client::connect(broker.addr(), &Options::v5("reader"));
    reader.subscribe("up/0", QoS::AtLeastOnce);
    assert_eq!(reader.expect_message().text(), "3");
}

#[tokio::test]
async fn a_broker_without_mqtt_5_is_spoken_to_in_3_1_1() {
    let broker = Mosquitto::start();
    let url = format!("mqtt://{}", without_mqtt_5(broker.addr()));
    let mut sink = Harness::start(&Mqtt, &[("url", &url)]);
    sink.send((0..10).map(|n| row(n, 1, false)).collect()).await;
    sink.until_answered(10).await;
    assert!(sink.downs.is_empty(), "{:?}", sink.downs);
    sink.stop().await;
    let mut strict = Harness::start(&Mqtt, &[("url", &url), ("version", "5")]);
    let error = strict.until_down().await;
    assert!(error.contains("another version of MQTT"), "{error}");
    strict.stop().await;
}

#[tokio::test]
async fn a_broker_that_is_killed_and_comes_back_gets_every_message() {
    let mut broker = Mosquitto::start();
    let persistent = Options::v4("reader").persistent();
    let mut reader = Client::connect(broker.addr(), &persistent);
    reader.subscribe("up/#", QoS::AtLeastOnce);
    reader.disconnect();
    let mut sink = start(&broker, &[("window", "16")]);
    sink.send((0..1_000).map(|n| row(n, 1, false)).collect()).await;
    sink.until_answered(200).await;
    // In order: what mosquitto has acknowledged and not yet on its disk would be its loss, not ours.
    broker.terminate();
    sink.until_down().await;
    broker.restart();
    sink.until_answered(1_000).await;
    assert!(sink.stop().await.values().all(|d| *d == YES));
    let mut reader = Client::connect(broker.addr(), &persistent);
    let mut seen = BTreeSet::new();
    while seen.len() < 1_000 {
        seen.insert(reader.expect_message().text().parse::<u64>().unwrap());
    }
}

#[tokio::test]
async fn the_brokers_receive_maximum_is_the_window() {
    // A broker that ends the connection when more are under way.
    let broker = Mosquitto::start_with("max_inflight_messages 5");
    let mut sink = start(&broker, &[]);
    let window = loop {
        if let ferrule_sinks::ConsumerEvent::Up { window } = sink.event().await {
            break window;
        }
    };
    assert_eq!(window, 5);
    sink.send((0..200).map(|n| row(n, 1, false)).collect()).await;
    sink.until_answered(200).await;
    assert!(sink.downs.is_empty());
    sink.stop().await;
}
