//! Promise 1: once a client has its SUBACK, a publish that starts afterwards and is acknowledged by any node reaches it.

use crate::{Cluster, members};
use ferrule_mqtt::{AckType, QoS};
use ferrule_testkit::Client;
use ferrule_testkit::node::count;
use ferrule_testkit::wire::Options;
use ferrule_tests::PATIENCE;

/// A client of a node.
fn at(cluster: &Cluster, node: usize, name: &str) -> Client {
    Client::connect(cluster.nodes[node].addr(), &Options::v5(name))
}

#[test]
fn at_once_and_from_each_node_to_each() {
    let cluster = Cluster::start(3);
    let mut publishers: Vec<Client> = (0..3).map(|n| at(&cluster, n, &format!("publisher-{n}"))).collect();
    let mut subscribers: Vec<Client> = (0..3).map(|n| at(&cluster, n, &format!("subscriber-{n}"))).collect();
    for round in 0..100 {
        let subscriber = &mut subscribers[round % 3];
        let filter = format!("round/{round}/+");
        assert_eq!(subscriber.subscribe(&filter, QoS::AtLeastOnce), 1);
        // With its SUBACK in hand: each of the nodes knows it.
        for (n, publisher) in publishers.iter_mut().enumerate() {
            let topic = format!("round/{round}/{n}");
            publisher.publish(&topic, topic.as_bytes(), QoS::AtLeastOnce, false);
            assert_eq!(subscriber.expect_message().text(), topic);
        }
        if round % 2 == 0 {
            subscriber.unsubscribe(&filter);
        }
    }
    // What matches nowhere else costs no link traffic.
    let forwarded = |n: usize| count(&cluster.nodes[n].status()["counters"], "forwarded_out");
    let before = forwarded(0);
    publishers[0].publish("nowhere", b"", QoS::AtLeastOnce, false);
    assert_eq!(forwarded(0), before);
}

/// A node that is stopped for longer than a lease, and goes on, must not acknowledge by what it knew before.
#[test]
fn a_node_that_was_stopped_knows_what_happened_meanwhile() {
    let mut cluster = Cluster::start(3);
    let mut publisher = at(&cluster, 0, "publisher");
    publisher.publish("a", b"before", QoS::AtLeastOnce, false);
    for round in 0..3 {
        cluster.nodes[0].pause();
        // Its SUBACK waits until the one that is stopped is out.
        let mut subscriber = at(&cluster, 1, &format!("subscriber-{round}"));
        assert_eq!(subscriber.subscribe("a", QoS::AtLeastOnce), 1);
        let payload = format!("after {round}");
        let id = publisher.publish_nowait("a", payload.as_bytes(), QoS::AtLeastOnce, false);
        cluster.nodes[0].resume();
        // It waits, or is sent away: then it has to be sent again.
        let answered = publisher.recv_where(PATIENCE, |packet| {
            matches!(packet, ferrule_mqtt::Packet::Puback(_) | ferrule_mqtt::Packet::Disconnect(_))
        });
        let acknowledged = answered.is_ok_and(
            |frame| matches!(frame.packet(), ferrule_mqtt::Packet::Puback(ack) if ack.packet_id == id),
        );
        if !acknowledged {
            publisher = at(&cluster, 0, "publisher");
            publisher.publish("a", payload.as_bytes(), QoS::AtLeastOnce, false);
        }
        assert_eq!(subscriber.expect_message().text(), payload);
        cluster.wait_whole();
    }
}

/// One death stops nobody for long.
#[test]
fn a_node_that_is_killed_is_waited_for_no_longer_than_its_lease() {
    let mut cluster = Cluster::start(3);
    let mut there = at(&cluster, 2, "there");
    there.subscribe("a", QoS::AtLeastOnce);
    let mut subscriber = at(&cluster, 1, "subscriber");
    subscriber.subscribe("a", QoS::AtLeastOnce);
    let mut publisher = at(&cluster, 0, "publisher");
    cluster.nodes[2].kill9();
    // It may be sent away, for the one that it was on its way to: then once more.
    let mut sent = 0;
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let id = publisher.publish_nowait("a", b"after", QoS::AtLeastOnce, false);
        sent += 1;
        let answer = publisher.recv(PATIENCE);
        let acknowledged = answer.is_ok_and(
            |frame| matches!(frame.packet(), ferrule_mqtt::Packet::Puback(ack) if ack.packet_id == id),
        );
        if acknowledged {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "nobody acknowledges any more");
        publisher = at(&cluster, 0, &format!("publisher-{sent}"));
    }
    subscriber.expect_message();
    cluster.nodes[0].wait_status(PATIENCE, "it is removed", |status| members(status).len() == 2);
    // New ones do not wait for it either.
    let mut late = at(&cluster, 0, "late");
    late.subscribe("b", QoS::AtLeastOnce);
    let id = subscriber.publish_nowait("b", b"", QoS::AtLeastOnce, false);
    subscriber.expect_ack(AckType::Puback, id);
    late.expect_message();
    cluster.nodes[2].restart();
    cluster.wait_whole();
    let mut again = at(&cluster, 2, "again");
    again.subscribe("c", QoS::AtLeastOnce);
    publisher.publish("c", b"", QoS::AtLeastOnce, false);
    again.expect_message();
}
