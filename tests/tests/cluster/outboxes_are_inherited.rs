//! A rule writes to Kafka, which is down; a node dies with what it has acknowledged in its outbox, and does not come back: another delivers it.

use crate::{Cluster, config, share};
use ferrule_testkit::node::{count, outbox, outboxes};
use ferrule_testkit::oracle::{Copies, Ledger};
use ferrule_testkit::{Fleet, Kafka, Node, Plan, Postgres, until};
use ferrule_tests::{PATIENCE, TOPIC, cloud_rules, kafka_rows};

const NODES: usize = 3;
const DEVICES: usize = 5;
const MESSAGES: u32 = 150;

#[test]
fn what_a_dead_node_had_acknowledged_is_delivered_by_another() {
    if share() == 2 {
        eprintln!("skipped: the run before has it");
        return;
    }
    let (mut kafka, postgres) = (Kafka::start(), Postgres::start());
    kafka.create_topic(TOPIC, 3);
    let folder = tempfile::tempdir().unwrap();
    let start = |n| {
        let config = config(&postgres, &folder, &format!("node-{n}"));
        Node::start(&config.rules(cloud_rules(Some(&kafka), None, None)))
    };
    let nodes = (1..=NODES).map(start).collect();
    let mut cluster = Cluster { nodes, postgres, _folder: folder };
    cluster.wait_whole();
    kafka.kill9();
    let plan = Plan { devices: DEVICES, messages: MESSAGES, per_second: None, ..Plan::default() };
    let ledger = Fleet::start(cluster.nodes[0].addr(), plan).finish(PATIENCE);
    assert_eq!(ledger.acknowledged(), DEVICES as u64 * u64::from(MESSAGES));
    let status = cluster.nodes[0].status();
    assert_eq!(count(outbox(&status, "k"), "stored"), ledger.acknowledged(), "{status:#}");

    cluster.nodes[0].kill9();
    let name = "k@node-1";
    let has = |node: &Node| outboxes(&node.status()).iter().any(|outbox| outbox["name"] == name);
    let heir = until(PATIENCE, "a node has its outbox", || cluster.nodes[1..].iter().find(|node| has(node)));
    let status = heir.status();
    assert_eq!(count(outbox(&status, name), "stored"), ledger.acknowledged(), "{status:#}");
    kafka.restart();
    kafka.wait_records(TOPIC, ledger.acknowledged(), PATIENCE);
    heir.wait_drained(PATIENCE);
    // It has nothing left to deliver.
    until(PATIENCE, "its rows are removed", || {
        let status = heir.status();
        (count(outbox(&status, name), "stored") == 0).then_some(())
    });
    cluster.nodes[0].restart();
    cluster.wait_whole();
    cluster.nodes[0].wait_drained(PATIENCE);
    for node in &cluster.nodes[1..] {
        node.wait_status(PATIENCE, "nobody looks after its outbox any more", |status| {
            outboxes(status).iter().all(|outbox| outbox["name"] != name)
        });
    }
    let rows = kafka_rows(&kafka);
    let ledger = Ledger { devices: ledger.devices };
    let report = ledger.check(rows.iter().map(|(device, n)| (device.as_str(), *n)), Copies::One);
    report.assert_ok("Kafka");
    eprintln!("{report}");
}
