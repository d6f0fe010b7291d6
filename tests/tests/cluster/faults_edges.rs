//! Edges in front of a cluster whose rule writes to Kafka: a node is killed in the midst of their batches, and all that the edges had acknowledged is there.

use crate::{Cluster, config, share};
use ferrule_testkit::node::uplink_is_up;
use ferrule_testkit::oracle::{Copies, Ledger};
use ferrule_testkit::{Config, Fleet, Kafka, Node, Plan, Postgres, until};
use ferrule_tests::{EDGE_RULES, PATIENCE, TOPIC, cloud_rules, kafka_rows};
use std::collections::HashMap;
use std::net::SocketAddr;

const NODES: usize = 3;
const EDGES: usize = 2;

#[test]
fn what_edges_acknowledged_is_in_kafka_although_a_node_was_killed() {
    if share() == 2 {
        eprintln!("skipped: the run before has it");
        return;
    }
    let (kafka, postgres) = (Kafka::start(), Postgres::start());
    kafka.create_topic(TOPIC, 3);
    let folder = tempfile::tempdir().unwrap();
    let user = |n| format!("[[user]]\nname = \"edge-{n}\"\npassword_file = \"edge.pass\"\nrole = \"edge\"\n");
    let users: String = (0..EDGES).map(user).collect();
    let start = |n| {
        let config = config(&postgres, &folder, &format!("node-{n}")).extra(&users);
        Node::start(&config.rules(cloud_rules(Some(&kafka), None, None)))
    };
    let nodes = (1..=NODES).map(start).collect();
    let mut cluster = Cluster { nodes, postgres, _folder: folder };
    cluster.wait_whole();
    let addresses: Vec<SocketAddr> = cluster.nodes.iter().map(Node::addr).collect();
    // Each begins with another node.
    let edges: Vec<Node> = (0..EDGES)
        .map(|n| {
            let mut to = addresses.clone();
            to.rotate_left(n);
            let id = format!("edge-{n}");
            Node::start(&Config::edge().id(&id).login(&id).rules(EDGE_RULES).uplinks(&to))
        })
        .collect();
    for edge in &edges {
        edge.wait_status(PATIENCE, "the uplink is up", uplink_is_up);
    }
    let prefixes = ["a", "b"];
    let fleets: Vec<Fleet> = edges
        .iter()
        .zip(prefixes)
        .map(|(edge, prefix)| {
            let plan = Plan { devices: 5, messages: 400, per_second: Some(200.0), prefix, ..Plan::default() };
            Fleet::start(edge.addr(), plan)
        })
        .collect();
    // In the midst of it, the node of each.
    for (n, edge) in edges.iter().enumerate() {
        fleets[n].wait_acknowledged(500 * (n as u64 + 1), PATIENCE);
        cluster.nodes[n].kill9();
        edge.wait_status(PATIENCE, "the uplink is up at another node", uplink_is_up);
        cluster.nodes[n].restart();
        cluster.wait_whole();
    }
    let mut all = HashMap::new();
    for (edge, fleet) in edges.iter().zip(fleets) {
        all.extend(fleet.finish(PATIENCE).devices);
        edge.wait_drained(PATIENCE);
    }
    for node in &cluster.nodes {
        node.wait_drained(PATIENCE);
    }
    let ledger = Ledger { devices: all };
    kafka.wait_records(TOPIC, ledger.acknowledged(), PATIENCE);
    let rows = until(PATIENCE, "Kafka can be read", || Some(kafka_rows(&kafka)));
    // Sent to a node that was killed before it answered, they are sent again to another; what it had answered is delivered by another, while the edge goes on elsewhere.
    let report = ledger.check(rows.iter().map(|(device, n)| (device.as_str(), *n)), Copies::Inherited);
    report.assert_ok("Kafka");
    eprintln!("{report}");
}
