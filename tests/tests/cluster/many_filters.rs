//! A node joins however many filters the others have: they are all sent to it at once, to each of its workers.

use crate::{Cluster, config};
use ferrule_mqtt::{Packet, Properties, QoS, Subscribe, SubscribeFiltersBuf, SubscribeOptions};
use ferrule_testkit::wire::Options;
use ferrule_testkit::{Client, Node, Postgres};

/// A client has a thousand of them, so as many as 200 clients; in bytes some 60 each.
const CLIENTS: usize = 100;
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
    let subscribers: Vec<Client> = (0..clients).map(|n| subscriber(&cluster.nodes[0], n)).collect();
    cluster.nodes[1].restart();
    cluster.wait_whole();
    let mut publisher = Client::connect(cluster.nodes[1].addr(), &Options::v5("publisher"));
    for (n, mut subscriber) in subscribers.into_iter().enumerate() {
        publisher.publish(&filter(n, EACH - 1), b"", QoS::AtLeastOnce, false);
        subscriber.expect_message();
    }
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
