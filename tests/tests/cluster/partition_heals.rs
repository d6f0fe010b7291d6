//! Promise 6: a partition heals by itself, and a side that cannot reach the store withholds acknowledgements rather than lie.

use crate::Cluster;
use ferrule_mqtt::{AckType, QoS};
use ferrule_testkit::Client;
use ferrule_testkit::wire::Options;
use ferrule_tests::PATIENCE;

/// All at once, in any order.
#[test]
fn a_cluster_that_was_killed_comes_back_in_any_order() {
    let mut cluster = Cluster::start(3);
    cluster.nodes.iter_mut().for_each(ferrule_testkit::Node::kill9);
    for n in [2, 0, 1] {
        cluster.nodes[n].restart();
    }
    cluster.wait_whole();
    let mut subscriber = Client::connect(cluster.nodes[2].addr(), &Options::v5("subscriber"));
    subscriber.subscribe("a", QoS::AtLeastOnce);
    let mut publisher = Client::connect(cluster.nodes[1].addr(), &Options::v5("publisher"));
    publisher.publish("a", b"1", QoS::AtLeastOnce, false);
    subscriber.expect_message();
}

/// The database is gone for longer than a lease: who is a member does not change meanwhile, and what needs no store goes on.
#[test]
fn without_the_database_the_members_go_on() {
    let mut cluster = Cluster::start(2);
    let mut subscriber = Client::connect(cluster.nodes[0].addr(), &Options::v5("subscriber"));
    subscriber.subscribe("a", QoS::AtLeastOnce);
    let mut publisher = Client::connect(cluster.nodes[1].addr(), &Options::v5("publisher"));
    cluster.postgres.kill9();
    cluster.nodes[1].wait_status(PATIENCE, "the members cannot be read", |status| {
        status["cluster"]["trouble"].is_string()
    });
    for n in 0..100 {
        let id = publisher.publish_nowait("a", n.to_string().as_bytes(), QoS::AtLeastOnce, false);
        publisher.expect_ack(AckType::Puback, id);
        assert_eq!(subscriber.expect_message().text(), n.to_string());
    }
    cluster.postgres.restart();
    for node in &cluster.nodes {
        let status = node.wait_status(PATIENCE, "the members can be read", |status| {
            status["cluster"]["trouble"].is_null()
        });
        assert_eq!(status["cluster"]["joins"], 1, "nobody had to join again");
    }
    cluster.wait_whole();
}
