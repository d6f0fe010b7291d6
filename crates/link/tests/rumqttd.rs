//! Against a third party's broker in process (rumqttd), read by a third party's client (rumqttc): what arrives is
//! what was sent, in order, through losses of the connection.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{BOOT, entry, row_of};
use ferrule_link::{Server, UplinkConfig, UplinkStats};
use ferrule_mqtt::{PropertiesBuf, Property, Version};
use ferrule_outbox::{ConsumerEvent, Delivered};
use ferrule_store::{Boot, Stamp};
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(60);
const ROWS: u64 = 1_000;

/// Topic, number, user properties.
type Arrived = (String, u64, Vec<(String, String)>);

/// Starts rumqttd on a port that was just free. It cannot be stopped: its threads end with the test process.
fn broker(version: Version) -> SocketAddr {
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let settings = rumqttd::ServerSettings {
        name: "test".to_owned(),
        listen: address,
        tls: None,
        next_connection_delay_ms: 1,
        connections: rumqttd::ConnectionSettings {
            connection_timeout_ms: 5_000,
            max_payload_size: 64 * 1024,
            max_inflight_count: 100,
            auth: None,
            external_auth: None,
            dynamic_filters: true,
        },
    };
    let servers = Some(HashMap::from([("1".to_owned(), settings)]));
    let router = rumqttd::RouterConfig {
        max_connections: 100,
        max_outgoing_packet_count: 200,
        max_segment_size: 16 * 1024 * 1024,
        max_segment_count: 10,
        ..rumqttd::RouterConfig::default()
    };
    let mut config = rumqttd::Config { router, ..rumqttd::Config::default() };
    match version {
        Version::V5 => config.v5 = servers,
        _ => config.v4 = servers,
    }
    std::thread::spawn(move || drop(rumqttd::Broker::new(config).start()));
    address
}

/// Subscribes to everything and tells what arrives: topic, payload, user properties.
async fn subscribe(address: SocketAddr) -> mpsc::UnboundedReceiver<Arrived> {
    use rumqttc::v5::mqttbytes::QoS;
    use rumqttc::v5::mqttbytes::v5::Packet;
    use rumqttc::v5::{AsyncClient, Event, MqttOptions};

    let mut options = MqttOptions::new("reader", address.ip().to_string(), address.port());
    options.set_keep_alive(Duration::from_secs(5));
    let (client, mut events) = AsyncClient::new(options, 10);
    client.subscribe("t/#", QoS::AtLeastOnce).await.unwrap();
    let (tell, heard) = mpsc::unbounded_channel();
    let (ready, subscribed) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let _client = client;
        let mut ready = Some(ready);
        loop {
            match events.poll().await {
                Ok(Event::Incoming(Packet::SubAck(_))) => drop(ready.take().map(|ready| ready.send(()))),
                Ok(Event::Incoming(Packet::Publish(publish))) => {
                    let topic = String::from_utf8_lossy(&publish.topic).into_owned();
                    let number = std::str::from_utf8(&publish.payload).unwrap().parse().unwrap();
                    let user = publish.properties.map(|p| p.user_properties).unwrap_or_default();
                    if tell.send((topic, number, user)).is_err() {
                        return;
                    }
                }
                Ok(_) => {}
                // The broker is not up yet.
                Err(_) if ready.is_some() => tokio::time::sleep(Duration::from_millis(10)).await,
                Err(error) => panic!("{error}"),
            }
        }
    });
    timeout(DEADLINE, subscribed).await.unwrap().unwrap();
    heard
}

/// A relay that cuts each connection after `bytes` of the uplink's, `cuts` times; then it only relays.
async fn relay(to: SocketAddr, bytes: usize, cuts: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for connection in 0.. {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = TcpStream::connect(to).await.unwrap();
            let limit = if connection < cuts { bytes as u64 } else { u64::MAX };
            tokio::spawn(async move {
                let (near_read, mut near_write) = near.split();
                let (mut far_read, mut far_write) = far.split();
                let mut near_read = tokio::io::AsyncReadExt::take(near_read, limit);
                tokio::select! {
                    _ = tokio::io::copy(&mut near_read, &mut far_write) => {}
                    _ = tokio::io::copy(&mut far_read, &mut near_write) => {}
                }
            });
        }
    });
    address
}

async fn send_all(address: SocketAddr, version: Version, user_property: bool) -> UplinkStats {
    let server = Server::new(&address.ip().to_string(), address.port());
    let clock = Arc::new(|| Stamp { wall_ms: 7, mono_us: 0, synced: true });
    let mut config = UplinkConfig::new(vec![server], "press-7".into(), Boot::new(BOOT), clock);
    config.backoff_max = Duration::from_millis(50);
    config.window_max = 50;
    config.version = version;
    let (sender, rows) = mpsc::channel(4);
    let (tell, mut events) = mpsc::unbounded_channel();
    let stats = Arc::new(UplinkStats::default());
    let on_event = Arc::new(move |event| drop(tell.send(event)));
    let task = tokio::spawn(ferrule_link::run(config, rows, on_event, Arc::clone(&stats)));

    let (mut next, mut window, mut answers) = (1, 0, BTreeMap::new());
    while answers.len() < ROWS as usize {
        let room = (window as u64).saturating_sub(next - 1 - answers.len() as u64);
        let batch: Vec<_> = (next..=ROWS)
            .take(room as usize)
            .map(|seq| {
                let mut entry = entry(seq, ["a", "b", "c"][seq as usize % 3]);
                if user_property {
                    let mut own = PropertiesBuf::new();
                    own.push(Property::UserProperty("site", "north")).unwrap();
                    entry.properties = bytes::Bytes::copy_from_slice(own.as_properties().as_bytes());
                }
                row_of(entry)
            })
            .collect();
        next += batch.len() as u64;
        if !batch.is_empty() {
            sender.send(batch).await.unwrap();
        }
        match timeout(DEADLINE, events.recv()).await {
            Ok(Some(ConsumerEvent::Up { window: rows })) => window = rows,
            Ok(Some(ConsumerEvent::Done(done))) => {
                for (seq, answer) in done {
                    assert_eq!(answer, Delivered::Yes);
                    assert_eq!(answers.insert(seq, answer), None, "row {seq} was answered twice");
                }
            }
            Ok(Some(ConsumerEvent::Down { .. } | ConsumerEvent::Holds { .. })) => {}
            other => panic!("{other:?} after {} answers, {:?}", answers.len(), stats.snapshot()),
        }
    }
    drop(sender);
    timeout(DEADLINE, task).await.unwrap().unwrap();
    Arc::into_inner(stats).unwrap()
}

/// All rows arrive; first occurrences of each topic ascend.
async fn check(mut heard: mpsc::UnboundedReceiver<Arrived>, user: &[(&str, &str)]) {
    let mut first: BTreeMap<u64, String> = BTreeMap::new();
    let mut highest: HashMap<String, u64> = HashMap::new();
    while first.len() < ROWS as usize {
        let (topic, number, found) = timeout(DEADLINE, heard.recv()).await.unwrap().unwrap();
        assert!(found.iter().map(|(name, value)| (&**name, &**value)).eq(user.iter().copied()), "{found:?}");
        if first.insert(number, topic.clone()).is_none() {
            let top = highest.entry(topic).or_default();
            assert!(number > *top, "{number} after {top}");
            *top = number;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_arrives_in_order() {
    let address = broker(Version::V5);
    let heard = subscribe(address).await;
    let stats = send_all(address, Version::V5, true).await.snapshot();
    assert_eq!((stats.acknowledged, stats.connects), (ROWS, 1), "{stats:?}");
    check(heard, &[("site", "north")]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_arrives_though_the_connection_is_cut() {
    let address = broker(Version::V5);
    let heard = subscribe(address).await;
    // About 15 bytes a row, so every cut is some 130 rows on, mostly in the middle of one.
    let near = relay(address, 2_001, 6).await;
    let stats = send_all(near, Version::V5, false).await.snapshot();
    assert_eq!(stats.acknowledged, ROWS);
    assert!(stats.connects > 3, "{stats:?}");
    check(heard, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn version_3_1_1() {
    let stats = send_all(broker(Version::V3_1_1), Version::V3_1_1, true).await.snapshot();
    assert_eq!((stats.acknowledged, stats.discarded), (ROWS, 0));
}
