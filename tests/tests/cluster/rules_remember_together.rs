//! A rule that remembers something sees the messages of all nodes, and what it remembers outlives the node that ran it.

use crate::{Cluster, config};
use ferrule_mqtt::{Packet, QoS};
use ferrule_testkit::wire::Options;
use ferrule_testkit::{Client, Node, Postgres, until};
use ferrule_tests::PATIENCE;
use serde_json::Value;

const RULES: &str = "
    CREATE RULE chain AS INSERT INTO local.\"chain\" SELECT payload.n AS n, lag(payload.n, 'all', 0) AS before FROM \"in\";
    CREATE RULE sum AS INSERT INTO local.\"sum\" SELECT state_put('sum', state_get('sum', 0) + payload.n) AS sum FROM \"in\";
";

/// Whether the rule's memory is at this node.
fn keeps(node: &Node, rule: &str) -> bool {
    let status = node.status();
    let rules = status["rules"].as_array().map_or(&[][..], Vec::as_slice);
    rules.iter().any(|r| r["name"] == rule && r["state_bytes"].as_u64().is_some_and(|bytes| bytes > 0))
}

/// Publishes until it is acknowledged, as a client with a queue does. How often it was sent.
fn publish(node: &Node, publisher: &mut Client, n: u64) -> u32 {
    let payload = format!("{{\"n\":{n}}}");
    let mut sent = 0;
    until(PATIENCE, "it is acknowledged", || {
        sent += 1;
        let id = publisher.publish_nowait("in", payload.as_bytes(), QoS::AtLeastOnce, false);
        let answer = publisher.recv(PATIENCE);
        let acknowledged =
            answer.is_ok_and(|frame| matches!(frame.packet(), Packet::Puback(ack) if ack.packet_id == id));
        if !acknowledged {
            *publisher = Client::connect(node.addr(), &Options::v5(&format!("again-{n}-{sent}")));
        }
        acknowledged.then_some(())
    });
    sent
}

fn object(client: &mut Client) -> Value {
    serde_json::from_str(client.expect_message().text()).unwrap()
}

#[test]
fn a_rule_that_remembers_sees_the_messages_of_all_nodes_and_outlives_its_keeper() {
    let postgres = Postgres::start();
    let folder = tempfile::tempdir().unwrap();
    let start = |n| Node::start(&config(&postgres, &folder, &format!("node-{n}")).rules(RULES));
    let nodes = (1..=3).map(start).collect();
    let mut cluster = Cluster { nodes, postgres, _folder: folder };
    cluster.wait_whole();
    let connect = |cluster: &Cluster, n: usize, name: &str| {
        Client::connect(cluster.nodes[n].addr(), &Options::v5(name))
    };
    let mut publishers: Vec<Client> = (0..3).map(|n| connect(&cluster, n, &format!("p{n}"))).collect();
    // Sent anywhere, it is one sequence and one sum.
    let mut subscriber = connect(&cluster, 0, "first");
    subscriber.subscribe("chain", QoS::AtLeastOnce);
    let mut sums = connect(&cluster, 1, "sums");
    sums.subscribe("sum", QoS::AtLeastOnce);
    let mut last = 0;
    let mut sum = 0;
    for n in 1..=30 {
        let at = n as usize % 3;
        assert_eq!(publish(&cluster.nodes[at], &mut publishers[at], n), 1);
        let row = object(&mut subscriber);
        assert_eq!((&row["n"], &row["before"]), (&n.into(), &last.into()));
        (last, sum) = (n, sum + n);
        assert_eq!(object(&mut sums)["sum"], sum);
    }

    // Its keeper dies: another one goes on where it was, whatever becomes of that node.
    for _ in 0..2 {
        let keeper = (0..3).find(|n| keeps(&cluster.nodes[*n], "chain")).unwrap();
        let others = [(keeper + 1) % 3, (keeper + 2) % 3];
        let mut subscriber = connect(&cluster, others[0], &format!("after-{last}"));
        subscriber.subscribe("chain", QoS::AtLeastOnce);
        cluster.nodes[keeper].kill9();
        for round in 0..6 {
            let (n, at) = (last + 1, others[round % 2]);
            publishers[at] = connect(&cluster, at, &format!("p{at}-{n}"));
            let sent = publish(&cluster.nodes[at], &mut publishers[at], n);
            // What was sent again may have been taken before.
            let row = until(PATIENCE, "it comes", || {
                let row = object(&mut subscriber);
                (row["n"] == n).then_some(row)
            });
            let before = row["before"].as_u64().unwrap();
            assert!(before == last || (sent > 1 && before == n), "{row} behind {last}, sent {sent} times");
            last = n;
            if round == 2 {
                cluster.nodes[keeper].restart();
                cluster.wait_whole();
            }
        }
        assert!(!keeps(&cluster.nodes[keeper], "chain"), "it is the other's now");
    }
}
