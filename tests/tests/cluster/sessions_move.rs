//! Promises 2, 3 and 4 for sessions that outlive their connections: they move with their clients, survive their nodes, and stay routable while their
//! clients are away.

use crate::Cluster;
use ferrule_mqtt::{AckType, Packet, QoS};
use ferrule_testkit::wire::{Frame, Options};
use ferrule_testkit::{Client, until};
use ferrule_tests::PATIENCE;
use std::collections::BTreeSet;
use std::time::Duration;

/// With a session that lives on.
fn stored(name: &str) -> Options {
    Options { clean_start: false, session_expiry: Some(3_600), ..Options::v5(name) }
}

fn is_present(connack: &Frame) -> bool {
    matches!(connack.packet(), Packet::Connack(connack) if connack.session_present)
}

/// Connects, if need be again and again, until the session is there.
fn returns(cluster: &Cluster, node: usize, name: &str) -> Client {
    until(PATIENCE, "its session is there", || {
        let (client, connack) = Client::try_connect(cluster.nodes[node].addr(), &stored(name)).ok()?;
        assert!(is_present(&connack), "{name} finds its session, or waits for it");
        Some(client)
    })
}

/// Publishes until it is acknowledged, on a new connection each time that it is sent away.
fn publish(cluster: &Cluster, node: usize, topic: &str, payload: &str) {
    until(PATIENCE, "it is acknowledged", || {
        let address = cluster.nodes[node].addr();
        let (mut client, _) =
            Client::try_connect(address, &Options::v5(&format!("publisher-{node}"))).ok()?;
        let id = client.publish_nowait(topic, payload.as_bytes(), QoS::AtLeastOnce, false);
        let answer = client.recv_where(PATIENCE, |packet| !matches!(packet, Packet::Publish(_))).ok()?;
        matches!(answer.packet(), Packet::Puback(ack) if ack.packet_id == id).then_some(())
    });
}

/// What comes to a client, until all that is wanted has.
fn receives(client: &mut Client, wanted: impl IntoIterator<Item = String>) {
    let mut wanted: BTreeSet<String> = wanted.into_iter().collect();
    while !wanted.is_empty() {
        wanted.remove(client.expect_message().text());
    }
}

#[test]
fn a_session_is_there_wherever_its_client_connects() {
    let cluster = Cluster::start(3);
    let mut client = Client::connect(cluster.nodes[0].addr(), &stored("roamer"));
    client.subscribe("a", QoS::AtLeastOnce);
    for round in 0..12 {
        let (here, next) = (round % 3, (round + 1) % 3);
        // While it is away, on each node; and while it comes.
        let away = round % 2 == 0;
        if away {
            drop(client);
            (0..3).for_each(|node| publish(&cluster, node, "a", &format!("{round}-{node}")));
        } else {
            publish(&cluster, here, "a", &format!("{round}-here"));
        }
        let connecting = std::thread::scope(|scope| {
            let publishing =
                scope.spawn(|| (0..20).for_each(|n| publish(&cluster, here, "a", &format!("{round}-m{n}"))));
            let client = returns(&cluster, next, "roamer");
            publishing.join().unwrap();
            client
        });
        client = connecting;
        let meanwhile = (0..20).map(|n| format!("{round}-m{n}"));
        let before = if away {
            (0..3).map(|node| format!("{round}-{node}")).collect()
        } else {
            vec![format!("{round}-here")]
        };
        receives(&mut client, meanwhile.chain(before));
    }
    // Nobody has kept anything of it.
    publish(&cluster, 1, "a", "last");
    receives(&mut client, ["last".into()]);
    client.ping();
}

#[test]
fn who_begins_anew_elsewhere_has_nothing_of_before() {
    let cluster = Cluster::start(2);
    let mut client = Client::connect(cluster.nodes[0].addr(), &stored("x"));
    client.subscribe("a", QoS::AtLeastOnce);
    drop(client);
    let (mut client, connack) = Client::try_connect(cluster.nodes[1].addr(), &Options::v5("x")).unwrap();
    assert!(!is_present(&connack));
    let mut publisher = Client::connect(cluster.nodes[0].addr(), &Options::v5("publisher"));
    let id = publisher.publish_nowait("a", b"", QoS::AtLeastOnce, false);
    publisher.expect_ack(AckType::Puback, id);
    client.ping();
    drop(client);
    let (_client, connack) = Client::try_connect(cluster.nodes[0].addr(), &stored("x")).unwrap();
    assert!(!is_present(&connack));
}

#[test]
fn sessions_of_a_killed_node_go_on_elsewhere() {
    let mut cluster = Cluster::start(3);
    const CLIENTS: usize = 40;
    let name = |n: usize| format!("client-{n}");
    for n in 0..CLIENTS {
        let mut client = Client::connect(cluster.nodes[2].addr(), &stored(&name(n)));
        client.subscribe(&format!("c/{n}"), QoS::AtLeastOnce);
    }
    // One of them has a will, which the store has too, and is connected when its node dies.
    let will = ("wills".into(), b"gone".to_vec(), QoS::AtLeastOnce, false);
    let options = Options { will: Some(will), ..stored("mortal") };
    let _mortal = Client::connect(cluster.nodes[2].addr(), &options);
    let mut heir = Client::connect(cluster.nodes[0].addr(), &Options::v5("heir"));
    heir.subscribe("wills", QoS::AtLeastOnce);
    cluster.nodes[2].kill9();
    // At once: nobody acknowledges it before somebody has their sessions.
    for n in 0..CLIENTS {
        publish(&cluster, n % 2, &format!("c/{n}"), &format!("for {n}"));
    }
    for n in 0..CLIENTS {
        let mut client = returns(&cluster, (n + 1) % 2, &name(n));
        receives(&mut client, [format!("for {n}")]);
    }
    assert_eq!(heir.expect_message().text(), "gone");
    cluster.nodes[2].restart();
    cluster.wait_whole();
    // Not once more by the node that had it, and it has no sessions that are others' now.
    assert_eq!(heir.recv(Duration::from_millis(300)).ok().map(|_| ()), None, "the will came twice");
    let mut client = returns(&cluster, 2, &name(0));
    publish(&cluster, 1, "c/0", "again");
    receives(&mut client, ["again".into()]);
}

/// Of all nodes at once, in any order: sessions are there, and routable, whoever had them.
#[test]
fn sessions_are_there_after_all_nodes_were_killed() {
    let mut cluster = Cluster::start(3);
    for node in 0..3 {
        let mut client = Client::connect(cluster.nodes[node].addr(), &stored(&format!("client-{node}")));
        client.subscribe(&format!("c/{node}"), QoS::AtLeastOnce);
        drop(client);
        publish(&cluster, (node + 1) % 3, &format!("c/{node}"), "before");
    }
    cluster.nodes.iter_mut().for_each(ferrule_testkit::Node::kill9);
    for node in [1, 2, 0] {
        cluster.nodes[node].restart();
    }
    cluster.wait_whole();
    for node in 0..3 {
        publish(&cluster, (node + 2) % 3, &format!("c/{node}"), "after");
        let mut client = returns(&cluster, (node + 1) % 3, &format!("client-{node}"));
        receives(&mut client, ["before".into(), "after".into()]);
    }
}
