//! Promise 3 for clients whose sessions end with their connections: their wills are published once, by their node, or by the others when it is gone, or taken for
//! that.

use crate::Cluster;
use ferrule_mqtt::QoS;
use ferrule_testkit::Client;
use ferrule_testkit::wire::Options;
use ferrule_tests::PATIENCE;
use std::collections::BTreeMap;

const CLIENTS: usize = 30;

/// Clients of a node, each with a will on a topic of its own.
fn mortals(cluster: &Cluster, node: usize) -> Vec<Client> {
    let connect = |n: usize| {
        let name = format!("mortal-{n}");
        let options = Options::v5(&name).will(&format!("w/{n}"), b"gone", QoS::AtLeastOnce, false);
        Client::connect(cluster.nodes[node].addr(), &options)
    };
    (0..CLIENTS).map(connect).collect()
}

fn observer(cluster: &Cluster, node: usize) -> Client {
    let mut observer = Client::connect(cluster.nodes[node].addr(), &Options::v5(&format!("observer-{node}")));
    observer.subscribe("w/+", QoS::AtLeastOnce);
    observer
}

/// Takes what comes until all of these wills have, and then up to a message that is published last.
fn sees(cluster: &Cluster, observer: &mut Client, node: usize, wanted: &[usize]) {
    let mut seen = BTreeMap::<String, u32>::new();
    loop {
        let mut missing = wanted.to_vec();
        missing.retain(|n| !seen.contains_key(&format!("w/{n}")));
        if missing.is_empty() {
            break;
        }
        let message = observer.recv_message(PATIENCE);
        let topic =
            message.unwrap_or_else(|e| panic!("at node {node}, still without {missing:?}: {e}")).topic;
        *seen.entry(topic).or_default() += 1;
    }
    let name = format!("last-{node}");
    let mut last = Client::connect(cluster.nodes[node].addr(), &Options::v5(&name));
    last.publish("w/last", b"last", QoS::AtLeastOnce, false);
    for message in observer.messages_until("w/last") {
        *seen.entry(message.topic).or_default() += 1;
    }
    let seen: Vec<_> = seen.into_iter().filter(|(topic, _)| topic != "w/last").collect();
    assert!(seen.iter().all(|(_, times)| *times == 1), "more than once: {seen:?}");
    assert_eq!(seen.len(), wanted.len(), "others: {seen:?}");
}

#[test]
fn wills_of_a_node_that_is_killed_are_published_by_the_others() {
    let mut cluster = Cluster::start(3);
    let mut observers = [1, 2].map(|node| observer(&cluster, node));
    let mut mortals = mortals(&cluster, 0);
    // Some leave, in one way or another, before that.
    for client in mortals.drain(..5) {
        client.disconnect();
    }
    drop(mortals.drain(..5).collect::<Vec<_>>());
    let went = |seen: usize| (seen < 5).then_some(());
    let mut early = Vec::new();
    while went(early.len()).is_some() {
        early.push(observers[0].expect_message().topic);
    }
    early.sort();
    assert_eq!(early, (5..10).map(|n| format!("w/{n}")).collect::<Vec<_>>(), "of those that vanished");
    cluster.nodes[0].kill9();
    let wanted: Vec<usize> = (10..CLIENTS).collect();
    sees(&cluster, &mut observers[0], 1, &wanted);
    let wanted: Vec<usize> = (5..CLIENTS).collect();
    sees(&cluster, &mut observers[1], 2, &wanted);
    cluster.nodes[0].restart();
    cluster.wait_whole();
}

/// It is alive, and publishes none of them a second time.
#[test]
fn a_node_that_was_taken_for_dead_leaves_its_wills_to_the_others() {
    let mut cluster = Cluster::start(3);
    let mut mortals = mortals(&cluster, 0);
    let mut observers = [1, 2].map(|node| observer(&cluster, node));
    cluster.nodes[0].pause();
    let wanted: Vec<usize> = (0..CLIENTS).collect();
    sees(&cluster, &mut observers[0], 1, &wanted);
    cluster.nodes[0].resume();
    cluster.wait_whole();
    for client in &mut mortals {
        client.expect_closed();
    }
    // Whoever subscribes there gets none now.
    let mut late = observer(&cluster, 0);
    sees(&cluster, &mut late, 0, &[]);
    sees(&cluster, &mut observers[1], 2, &wanted);
}

/// Two nodes at once: the clients' own, and one that has the first or the second copy of many of their wills. Each comes, and once, at whoever is left.
fn survives_two_deaths(count: usize) {
    let mut cluster = Cluster::start_with(count, "will_copies = 2\n");
    let mortals = mortals(&cluster, 0);
    let mut observers: Vec<_> = (2..count).map(|node| observer(&cluster, node)).collect();
    cluster.nodes[0].kill9();
    cluster.nodes[1].kill9();
    let wanted: Vec<usize> = (0..CLIENTS).collect();
    for (node, observer) in (2..).zip(&mut observers) {
        sees(&cluster, observer, node, &wanted);
    }
    drop(mortals);
    // What the dead had is not published by them when they are back.
    cluster.nodes[0].restart();
    cluster.nodes[1].restart();
    cluster.wait_whole();
    let mut late = observer(&cluster, 0);
    sees(&cluster, &mut late, 0, &[]);
}

#[test]
fn two_nodes_of_three_die_at_once_and_no_will_is_lost() {
    survives_two_deaths(3);
}

#[test]
fn two_nodes_of_four_die_at_once_and_no_will_is_lost() {
    survives_two_deaths(4);
}
