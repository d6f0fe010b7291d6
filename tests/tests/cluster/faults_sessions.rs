//! A node with many sessions is killed: those of connected clients are found elsewhere, and those of absent ones are adopted and can be reached.
//!
//! `FERRULE_CLUSTER_CONNECTED=15000 FERRULE_CLUSTER_OFFLINE=100000` are as many as `make bench` has, which also says how long it took.

use crate::Cluster;
use ferrule_testkit::Sessions;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

fn count(name: &str, else_count: usize) -> usize {
    std::env::var(name).map_or(else_count, |text| text.parse().unwrap())
}

#[test]
fn many_sessions_of_a_killed_node_are_found_elsewhere_and_reached() {
    let mut cluster = Cluster::start(3);
    let sessions = |prefix: &str, count| Sessions { prefix: prefix.into(), count };
    let here = sessions("here", count("FERRULE_CLUSTER_CONNECTED", 300));
    let away = sessions("away", count("FERRULE_CLUSTER_OFFLINE", 2_000));
    let addresses: Vec<_> = cluster.nodes.iter().map(ferrule_testkit::Node::addr).collect();
    away.offline(addresses[2]);
    let connected = here.connected(addresses[2]);
    cluster.nodes[2].kill9();
    drop(connected);
    let survivors = &addresses[..2];
    std::thread::scope(|scope| {
        let reached = scope.spawn(|| away.reach(survivors, LIMIT));
        let (forgotten, back, clients) = here.come_back(survivors, LIMIT);
        let (unmatched, reached) = reached.join().unwrap();
        eprintln!("all back after {back:?}, all absent ones reached after {reached:?}");
        assert_eq!(
            (forgotten, unmatched),
            (0, 0),
            "sessions that were not there, messages that nobody was to get"
        );
        drop(clients);
    });
    // What was acknowledged for them has come: a few, anywhere.
    let some = Sessions { count: 50, ..away };
    let (forgotten, _, clients) = some.come_back(&addresses[..2], LIMIT);
    assert_eq!(forgotten, 0);
    for mut client in clients {
        assert_eq!(client.expect_message().text(), "reached");
    }
}
