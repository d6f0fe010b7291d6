//! The uplink turns into a blackhole for 30 s, mid-stream: no byte arrives, and nothing says so.
//!
//! The edge goes on acknowledging (to its disk), notices by its own keep alive, comes back by itself, and drains its backlog
//! without a publish to wake it: the devices are done before the hole closes.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::{Duration, Instant};

use ferrule_testkit::netns::NetNs;
use ferrule_testkit::node::uplink_is_up;
use ferrule_testkit::oracle::Copies;
use ferrule_testkit::{Config, Fleet, Node, Plan, Relay, node, port};
use ferrule_tests::{EDGE_RULES, PATIENCE, check_rows, cloud_rules, make_sqlite_table, sqlite_rows};

const HOLE: Duration = Duration::from_secs(30);
/// Keep alive of the uplink in these tests is 5 s; twice that and the time to see it.
const NOTICED: Duration = Duration::from_secs(25);

/// Streams from `edge` to `cloud` through a hole that `open` makes and `heal` ends.
fn stream(edge: &Node, cloud: &Node, sqlite: &std::path::Path, open: impl FnOnce(), heal: impl FnOnce()) {
    let plan = Plan { devices: 10, messages: 200, window: 8, per_second: Some(40.0), ..Plan::default() };
    let fleet = Fleet::start(edge.addr(), plan);
    fleet.wait_acknowledged(500, PATIENCE);
    open();
    let opened = Instant::now();
    // Every message is acknowledged with the cloud out of reach.
    let ledger = fleet.finish(PATIENCE);
    let status =
        edge.wait_status(NOTICED, "the edge notices that its uplink is dead", |status| !uplink_is_up(status));
    let outbox = node::outbox(&status, "cloud");
    assert!(
        node::count(outbox, "queued") + node::count(outbox, "in_flight") > 0,
        "nothing waits: {outbox:#}"
    );
    // The hole's length is the fault itself; all the while the edge serves and the cloud gets nothing.
    let before = sqlite_rows(sqlite).len();
    while opened.elapsed() < HOLE {
        assert_eq!(edge.status()["role"], "edge");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(before < 2000 && sqlite_rows(sqlite).len() == before, "something came through");
    heal();
    edge.wait_status(PATIENCE, "the backlog drains by itself", |status| {
        let outbox = node::outbox(status, "cloud");
        node::count(outbox, "queued") + node::count(outbox, "in_flight") == 0
    });
    node::assert_accounts(&edge.status());
    node::assert_accounts(&cloud.wait_drained(PATIENCE));
    assert_eq!(ledger.sent(), 2000, "the devices noticed nothing");
    check_rows("SQLite", &ledger, &sqlite_rows(sqlite), Copies::One);
}

#[test]
fn packets_are_dropped() {
    let Some(netns) = NetNs::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let sqlite = folder.path().join("sink.db");
    make_sqlite_table(&sqlite);
    let listen = std::net::SocketAddr::new(netns.addr(), port::free());
    let config = Config::cloud().rules(cloud_rules(None, None, Some(&sqlite)));
    let cloud = Node::start(&config.listen(listen).netns(netns.name()));
    let edge = Node::start(&Config::edge().rules(EDGE_RULES).uplink(listen));
    stream(&edge, &cloud, &sqlite, || netns.blackhole(), || netns.heal());
}

#[test]
fn a_relay_stands_still() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = folder.path().join("sink.db");
    make_sqlite_table(&sqlite);
    let cloud = Node::start(&Config::cloud().rules(cloud_rules(None, None, Some(&sqlite))));
    let relay = Relay::start(cloud.addr());
    let edge = Node::start(&Config::edge().rules(EDGE_RULES).uplink(relay.addr()));
    stream(&edge, &cloud, &sqlite, || relay.blackhole(), || relay.heal());
}

#[test]
fn a_slow_and_cut_uplink_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = folder.path().join("sink.db");
    make_sqlite_table(&sqlite);
    let cloud = Node::start(&Config::cloud().rules(cloud_rules(None, None, Some(&sqlite))));
    let relay = Relay::start(cloud.addr());
    relay.delay(Duration::from_millis(150));
    let edge = Node::start(&Config::edge().rules(EDGE_RULES).uplink(relay.addr()));
    let plan = Plan { devices: 10, messages: 200, window: 8, per_second: Some(100.0), ..Plan::default() };
    let fleet = Fleet::start(edge.addr(), plan);
    for acknowledged in [300, 800, 1300, 1700] {
        fleet.wait_acknowledged(acknowledged, PATIENCE);
        relay.cut();
    }
    let ledger = fleet.finish(PATIENCE);
    node::assert_accounts(&edge.wait_drained(PATIENCE));
    cloud.wait_drained(PATIENCE);
    check_rows("SQLite", &ledger, &sqlite_rows(&sqlite), Copies::One);
    assert!(relay.accepted() >= 4, "the uplink came back after each cut");
}
