//! Promise 2 for connections: a client that connects to another node is connected there, and the old connection is told.

use crate::Cluster;
use ferrule_mqtt::{QoS, ReasonCode};
use ferrule_testkit::Client;
use ferrule_testkit::wire::Options;
use ferrule_tests::PATIENCE;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

#[test]
fn the_old_connection_is_told_and_the_new_one_goes_on() {
    let cluster = Cluster::start(3);
    let mut old = Client::connect(cluster.nodes[0].addr(), &Options::v5("roamer"));
    old.subscribe("a/#", QoS::AtLeastOnce);
    for round in 1..30 {
        let node = &cluster.nodes[round % 3];
        let mut new = Client::connect(node.addr(), &Options::v5("roamer"));
        // With its CONNACK all nodes know.
        assert_eq!(old.expect_closed(), Some(ReasonCode::SESSION_TAKEN_OVER), "round {round}");
        new.subscribe(&format!("a/{round}"), QoS::AtLeastOnce);
        let mut other = Client::connect(cluster.nodes[(round + 1) % 3].addr(), &Options::v5("other"));
        other.publish(&format!("a/{round}"), b"", QoS::AtLeastOnce, false);
        new.expect_message();
        old = new;
    }
    old.ping();
}

/// The same client from three sides at once: one of them is left.
#[test]
fn of_several_at_once_one_is_left() {
    let cluster = Cluster::start(3);
    for round in 0..10 {
        let name = format!("roamer-{round}");
        let tried: Vec<Option<Client>> = std::thread::scope(|scope| {
            let threads: Vec<_> = cluster
                .nodes
                .iter()
                .map(|node| {
                    let (address, name) = (node.addr(), &name);
                    // One that loses before it has its CONNACK is closed without.
                    scope.spawn(move || {
                        Client::try_connect(address, &Options::v5(name)).ok().map(|(client, _)| client)
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let mut open: Vec<Client> = tried.into_iter().flatten().collect();
        // Who has lost is told or closed; who is left stays, and answers.
        let deadline = Instant::now() + PATIENCE;
        while open.len() > 1 {
            assert!(Instant::now() < deadline, "round {round}: {} are left", open.len());
            open.retain_mut(|client| {
                let said = client.recv(Duration::from_millis(20));
                said.is_err_and(|error| error.kind() == ErrorKind::TimedOut)
            });
        }
        open.first_mut().expect("one of them is left").ping();
    }
}
