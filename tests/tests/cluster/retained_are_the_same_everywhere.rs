//! Promise 5: what was retained and acknowledged on one node is found on every other, what was cleared is gone there, and it stays so whichever
//! nodes die.

use crate::Cluster;
use ferrule_mqtt::{Packet, QoS};
use ferrule_testkit::wire::Options;
use ferrule_testkit::{Client, until};
use ferrule_tests::PATIENCE;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Sets (or clears) the message of a topic until that is acknowledged.
fn retain(cluster: &Cluster, node: usize, topic: &str, payload: &str) {
    until(PATIENCE, "it is acknowledged", || {
        let address = cluster.nodes[node].addr();
        let (mut client, _) = Client::try_connect(address, &Options::v5(&format!("retainer-{node}"))).ok()?;
        let id = client.publish_nowait(topic, payload.as_bytes(), QoS::AtLeastOnce, true);
        let answer = client.recv(PATIENCE).ok()?;
        matches!(answer.packet(), Packet::Puback(ack) if ack.packet_id == id).then_some(())
    });
}

/// What somebody who subscribes there is sent: by topic.
fn found(cluster: &Cluster, node: usize, filter: &str) -> BTreeMap<String, String> {
    let name = format!("reader-{node}");
    let mut reader = Client::connect(cluster.nodes[node].addr(), &Options::v5(&name));
    reader.subscribe(filter, QoS::AtMostOnce);
    // It follows the SUBACK at once.
    reader.ping();
    let mut found = BTreeMap::new();
    while let Ok(frame) = reader.recv(Duration::ZERO) {
        if let Packet::Publish(publish) = frame.packet() {
            assert!(publish.retain, "nobody publishes but who retains");
            let text = String::from_utf8_lossy(publish.payload).into_owned();
            found.insert(publish.topic.to_owned(), text);
        }
    }
    found
}

#[test]
fn what_is_retained_on_one_node_is_found_on_all() {
    let cluster = Cluster::start(3);
    for round in 0..30 {
        let (here, there) = (round % 3, (round + 1 + round % 2) % 3);
        let cleared = round % 5 == 4;
        let text = if cleared { String::new() } else { round.to_string() };
        retain(&cluster, here, "r/a", &text);
        let found = found(&cluster, there, "r/+");
        assert_eq!(found.get("r/a"), Some(&text).filter(|_| !cleared), "round {round}");
    }
}

/// Who retains goes on while a node is killed and comes back; then all are killed.
#[test]
fn what_is_retained_outlives_its_nodes() {
    let mut cluster = Cluster::start(3);
    retain(&cluster, 0, "r/kept", "from before");
    retain(&cluster, 1, "r/cleared", "not for long");
    for (killed, alive) in [(0, 1), (1, 2)] {
        let ends = AtomicBool::new(false);
        // What is cleared while a node is away is the one that it must not bring back.
        cluster.nodes[killed].kill9();
        let last = std::thread::scope(|scope| {
            let retaining = scope.spawn(|| {
                let mut n = 0;
                while !ends.load(Ordering::Relaxed) {
                    retain(&cluster, alive, "r/counted", &n.to_string());
                    n += 1;
                }
                n - 1
            });
            retain(&cluster, 3 - killed - alive, "r/cleared", "");
            ends.store(true, Ordering::Relaxed);
            retaining.join().unwrap()
        });
        cluster.nodes[killed].restart();
        cluster.wait_whole();
        let wanted = [("r/counted", last.to_string()), ("r/kept", "from before".to_owned())];
        let wanted = BTreeMap::from(wanted.map(|(topic, text)| (topic.to_owned(), text)));
        for node in 0..3 {
            assert_eq!(found(&cluster, node, "r/+"), wanted, "node {node}, {killed} was killed");
        }
    }
    let before = found(&cluster, 0, "r/+");
    cluster.nodes.iter_mut().for_each(ferrule_testkit::Node::kill9);
    cluster.nodes.iter_mut().for_each(ferrule_testkit::Node::restart);
    cluster.wait_whole();
    (0..3).for_each(|node| assert_eq!(found(&cluster, node, "r/+"), before, "node {node}"));
}
