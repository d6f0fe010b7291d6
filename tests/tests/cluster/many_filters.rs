//! A node joins however many filters the others have: they are sent to it in pieces, and whoever is served meanwhile does not notice.
//!
//! `FERRULE_CLUSTER_CLIENTS=1000` for a million of them, `FERRULE_CLUSTER_WORKERS` for other nodes; how long it took is written to stderr.

use crate::{Cluster, config};
use ferrule_mqtt::{
    Packet, Properties, QoS, Subscribe, SubscribeFiltersBuf, SubscribeOptions, Unsubscribe,
    UnsubscribeFiltersBuf,
};
use ferrule_testkit::wire::Options;
use ferrule_testkit::{Client, Node, Postgres};
use ferrule_tests::PATIENCE;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A client has a thousand of them, in bytes some 60 each: more than may wait on a link for the node's four workers together.
const CLIENTS: usize = 200;
const EACH: usize = 1_000;

#[test]
fn a_node_joins_those_that_have_many_filters() {
    let count = |name: &str, else_count| std::env::var(name).map_or(else_count, |text| text.parse().unwrap());
    let (clients, workers) = (count("FERRULE_CLUSTER_CLIENTS", CLIENTS), count("FERRULE_CLUSTER_WORKERS", 4));
    let (postgres, folder) = (Postgres::start(), tempfile::tempdir().unwrap());
    let nodes = (1..=2).map(|n| {
        let config = config(&postgres, &folder, &format!("node-{n}"));
        Node::start(&config.env("FERRULE__NODE__WORKERS", &workers.to_string()))
    });
    let mut cluster = Cluster { nodes: nodes.collect(), postgres, _folder: folder };
    cluster.wait_whole();
    let began = Instant::now();
    let subscribers: Vec<Client> = (0..clients).map(|n| subscriber(&cluster.nodes[0], n)).collect();
    eprintln!("{clients} x {EACH} filters are subscribed to in {:.1?}", began.elapsed());
    cluster.nodes[1].kill9();
    cluster.nodes[0].wait_status(PATIENCE, "the other is removed", |status| crate::is_whole(status, 1));
    let addr = cluster.nodes[0].addr();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let served = scope.spawn(|| serve(addr, &is_over));
        let ended = Ended(&is_over);
        let began = Instant::now();
        cluster.nodes[1].restart();
        cluster.wait_whole();
        let joined = began.elapsed();
        drop(ended);
        let served = served.join().unwrap();
        let [here, there] = [0, 1].map(|n| cluster.nodes[n].resident() >> 20);
        eprintln!("it is live after {joined:.1?}, resident: {here} and {there} MB; meanwhile {served:?}");
        assert!(served.publishes > 0);
    });
    // Each of its workers knows the filters of each of the other's.
    let mut publisher = Client::connect(cluster.nodes[1].addr(), &Options::v5("publisher"));
    for (n, mut subscriber) in subscribers.into_iter().enumerate() {
        publisher.publish(&filter(n, n * 7 % EACH), b"", QoS::AtLeastOnce, false);
        subscriber.expect_message();
    }
}

/// Says so, also when the test fails.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What a client has seen that subscribes and publishes, one after the other, until it is over.
#[derive(Debug, Default)]
struct Served {
    publishes: u64,
    longest: Duration,
    /// It was told to send a publish again: this node did not know for a moment whether the other had a say already.
    sent_away: u64,
}

fn serve(addr: SocketAddr, is_over: &AtomicBool) -> Served {
    let connect = || Client::connect(addr, &Options::v5("served"));
    let (mut client, mut served) = (connect(), Served::default());
    while !is_over.load(Ordering::Relaxed) {
        let began = Instant::now();
        let topic = format!("served/{}", served.publishes);
        if !subscribes_and_publishes(&mut client, &topic) {
            served.sent_away += 1;
            client = connect();
        }
        served.longest = served.longest.max(began.elapsed());
        served.publishes += 1;
    }
    served
}

/// False: it was sent away.
fn subscribes_and_publishes(client: &mut Client, topic: &str) -> bool {
    let mut filters = SubscribeFiltersBuf::new();
    filters.push(topic, SubscribeOptions::new(QoS::AtMostOnce)).unwrap();
    let (packet_id, properties) = (client.next_id(), Properties::EMPTY);
    let subscribe = Subscribe { packet_id, properties, filters: filters.as_filters() };
    let mut is_sent = client.send(&Packet::Subscribe(subscribe)).is_ok();
    // SUBACK; PUBACK and the message; UNSUBACK.
    let mut due = 1;
    while is_sent {
        let frame = match client.recv(PATIENCE) {
            Ok(frame) => frame,
            Err(error) if error.kind() == ErrorKind::TimedOut => panic!("{error}"),
            // Its DISCONNECT was overtaken.
            Err(_) => return false,
        };
        match frame.packet() {
            Packet::Suback(_) => {
                client.publish_nowait(topic, b"", QoS::AtLeastOnce, false);
                due = 2;
            }
            Packet::Puback(_) | Packet::Publish(_) if due > 1 => due -= 1,
            Packet::Puback(_) | Packet::Publish(_) => {
                let mut filters = UnsubscribeFiltersBuf::new();
                filters.push(topic).unwrap();
                let packet_id = client.next_id();
                let unsubscribe = Unsubscribe { packet_id, properties, filters: filters.as_filters() };
                is_sent = client.send(&Packet::Unsubscribe(unsubscribe)).is_ok();
            }
            Packet::Unsuback(_) => return true,
            Packet::Disconnect(_) => return false,
            other => panic!("{other:?}"),
        }
    }
    false
}

fn filter(client: usize, n: usize) -> String {
    format!("a-customer/plants/of-many/lines/line-{client:04}/sensors/{n:04}")
}

fn subscriber(node: &Node, client: usize) -> Client {
    let mut connected = Client::connect(node.addr(), &Options::v5(&format!("subscriber-{client}")));
    for first in (0..EACH).step_by(100) {
        let mut filters = SubscribeFiltersBuf::new();
        for n in first..first + 100 {
            filters.push(&filter(client, n), SubscribeOptions::new(QoS::AtMostOnce)).unwrap();
        }
        let packet_id = connected.next_id();
        let (properties, filters) = (Properties::EMPTY, filters.as_filters());
        connected.send(&Packet::Subscribe(Subscribe { packet_id, properties, filters })).unwrap();
        connected
            .expect("a SUBACK", |packet| matches!(packet, Packet::Suback(ack) if ack.packet_id == packet_id));
    }
    connected
}
