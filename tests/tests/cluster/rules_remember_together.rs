//! A rule that remembers something sees the messages of all nodes, and what it remembers outlives the node that ran it; each node runs its share of such rules.

use crate::{Cluster, config, is_whole};
use ferrule_mqtt::{Packet, QoS};
use ferrule_testkit::wire::{Options, Outgoing};
use ferrule_testkit::{Client, Node, Postgres, until};
use ferrule_tests::PATIENCE;
use serde_json::Value;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

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
    // Here a rule moves only when its node is gone.
    let stays = "spread_rules_after = \"1h\"";
    let start = |n| Node::start(&config(&postgres, &folder, &format!("node-{n}")).extra(stays).rules(RULES));
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

/// Rules that each sum up what is published to a topic of their own.
const SUMS: usize = 12;

/// What has become of the messages to one of them; each counts 1.
#[derive(Default)]
struct Sum {
    acknowledged: AtomicU64,
    /// Sent again, since nobody said that they had arrived: they may have.
    again: AtomicU64,
}

#[derive(Default)]
struct World {
    /// Where clients connect.
    nodes: Mutex<Vec<SocketAddr>>,
    sums: [Sum; SUMS],
    stop: AtomicBool,
}

impl World {
    /// Publishes to a rule's topic, one message at a time, each until it is acknowledged.
    fn publish(&self, rule: usize) {
        let mut connection: Option<(SocketAddr, Client)> = None;
        let (mut connections, mut is_new) = (0, true);
        while !self.stop.load(Ordering::Relaxed) || !is_new {
            let nodes = self.nodes.lock().unwrap().clone();
            let to = nodes[rule % nodes.len()];
            if connection.as_ref().is_none_or(|(at, _)| *at != to) {
                connections += 1;
                let name = format!("p{rule}-{connections}");
                connection =
                    Client::try_connect(to, &Options::v5(&name)).ok().map(|(client, _)| (to, client));
            }
            let Some((_, client)) = &mut connection else { continue };
            if !is_new {
                self.sums[rule].again.fetch_add(1, Ordering::Relaxed);
            }
            is_new = false;
            if publishes(client, rule, b"{\"n\":1}") {
                self.sums[rule].acknowledged.fetch_add(1, Ordering::Relaxed);
                is_new = true;
            } else {
                connection = None;
            }
        }
    }

    fn all(&self, count: fn(&Sum) -> &AtomicU64) -> u64 {
        self.sums.iter().map(|sum| count(sum).load(Ordering::Relaxed)).sum()
    }

    /// Each rule gets so many more.
    fn wait_acknowledged(&self, more: u64) {
        let count = |sum: &Sum| sum.acknowledged.load(Ordering::Relaxed);
        let wanted: Vec<u64> = self.sums.iter().map(|sum| count(sum) + more).collect();
        until(PATIENCE, "messages are acknowledged", || {
            self.sums.iter().zip(&wanted).all(|(sum, wanted)| count(sum) >= *wanted).then_some(())
        });
    }

    /// While publishers publish.
    fn while_published(&self, work: impl FnOnce()) {
        /// Also when something is wrong.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        self.stop.store(false, Ordering::Relaxed);
        std::thread::scope(|scope| {
            let _stop = Stop(&self.stop);
            for rule in 0..SUMS {
                scope.spawn(move || self.publish(rule));
            }
            work();
        });
    }

    /// All that was acknowledged is in the sums, and nothing twice but what was sent again.
    fn check(&self, node: &Node, exactly: bool) {
        let mut subscriber = Client::connect(node.addr(), &Options::v5("sums"));
        subscriber.subscribe("sum/#", QoS::AtLeastOnce);
        for (rule, sum) in self.sums.iter().enumerate() {
            // It may be on its way to another node still: then its message is to be sent again.
            until(PATIENCE, "a rule takes a message", || {
                let (mut publisher, _) = Client::try_connect(node.addr(), &Options::v5("asks")).ok()?;
                publishes(&mut publisher, rule, b"{\"n\":0}").then_some(())
            });
            let topic = format!("sum/{rule}");
            let message = until(PATIENCE, "it says its sum", || {
                Some(subscriber.expect_message()).filter(|message| message.topic == topic)
            });
            let found = serde_json::from_str::<Value>(message.text()).unwrap()["sum"].as_u64().unwrap();
            let [acknowledged, again] = [&sum.acknowledged, &sum.again].map(|n| n.load(Ordering::Relaxed));
            let most = if exactly { acknowledged } else { acknowledged + again };
            assert!(
                (acknowledged..=most).contains(&found),
                "rule {rule} has summed up {found}; {acknowledged} were acknowledged, {again} sent again"
            );
        }
    }
}

/// Publishes to a rule's topic; whether that is acknowledged.
fn publishes(client: &mut Client, rule: usize, payload: &[u8]) -> bool {
    let (packet_id, topic) = (client.next_id(), format!("in/{rule}"));
    let (qos, retain, dup) = (QoS::AtLeastOnce, false, false);
    let message = Outgoing { topic: &topic, payload, qos, retain, dup, packet_id };
    let answer = client.send_publish(message).and_then(|()| client.recv(PATIENCE));
    answer.is_ok_and(|frame| matches!(frame.packet(), Packet::Puback(ack) if ack.packet_id == packet_id))
}

/// How many rules each of these nodes keeps.
fn kept(nodes: &[&Node]) -> Vec<u64> {
    nodes.iter().map(|node| node.status()["counters"]["rules_kept"].as_u64().unwrap()).collect()
}

/// Until each has its share.
fn wait_spread(nodes: &[&Node]) {
    until(PATIENCE, "each node keeps some of the rules", || {
        let kept = kept(nodes);
        (kept.iter().sum::<u64>() == SUMS as u64 && kept.iter().all(|count| *count > 0)).then_some(())
    });
}

#[test]
fn each_node_gets_its_share_of_the_rules_under_load() {
    let postgres = Postgres::start();
    let folder = tempfile::tempdir().unwrap();
    let rules: String = (0..SUMS)
        .map(|n| {
            format!(
                "CREATE RULE sum{n} AS INSERT INTO local.\"sum/{n}\"
                 SELECT state_put('sum', state_get('sum', 0) + payload.n) AS sum FROM \"in/{n}\";\n"
            )
        })
        .collect();
    let soon = "spread_rules_after = \"1s\"";
    let configs =
        [1, 2, 3].map(|n| config(&postgres, &folder, &format!("node-{n}")).extra(soon).rules(&rules));
    let mut nodes = vec![Node::start(&configs[0])];
    let world = World::default();
    let addrs =
        |nodes: &[&Node]| *world.nodes.lock().unwrap() = nodes.iter().map(|node| node.addr()).collect();
    addrs(&[&nodes[0]]);

    // The first has all of them, until others come.
    world.while_published(|| {
        world.wait_acknowledged(3);
        assert_eq!(kept(&[&nodes[0]]), [SUMS as u64]);
        nodes.extend(configs[1..].iter().map(Node::start));
        // They know only then who keeps what.
        for node in &nodes {
            node.wait_status(PATIENCE, "the cluster is whole", |status| is_whole(status, 3));
        }
        addrs(&nodes.iter().collect::<Vec<_>>());
        wait_spread(&nodes.iter().collect::<Vec<_>>());
        world.wait_acknowledged(3);
    });
    let mut cluster = Cluster { nodes, postgres, _folder: folder };
    cluster.wait_whole();
    // A link that breaks leaves publishers without an answer, and a member that is taken for dead leaves its rules. What a turn has done
    // at whose end a node may not acknowledge, as happens when another one joins, is done again.
    let is_calm = |node: &Node| {
        let status = node.status();
        status["cluster"]["links_down"] == 0
            && status["cluster"]["joins"] == 1
            && status["counters"]["publishes_withdrawn"] == 0
    };
    let exactly = cluster.nodes.iter().all(is_calm);
    eprintln!(
        "spread while {} were acknowledged, {} sent again; exactly: {exactly}",
        world.all(|s| &s.acknowledged),
        world.all(|s| &s.again)
    );
    world.check(&cluster.nodes[1], exactly);

    // One dies: the others have its share, until it is back.
    world.while_published(|| {
        let [one, two, three] = &mut cluster.nodes[..] else { unreachable!() };
        addrs(&[one, three]);
        two.kill9();
        until(PATIENCE, "the others keep all", || {
            (kept(&[one, three]).iter().sum::<u64>() == SUMS as u64).then_some(())
        });
        world.wait_acknowledged(3);
        two.restart();
        addrs(&[one, two, three]);
        wait_spread(&[one, two, three]);
        world.wait_acknowledged(3);
    });
    cluster.wait_whole();
    world.check(&cluster.nodes[2], false);
}
