//! Faults between edge and cloud, and of the cloud.

use std::path::Path;
use std::time::Duration;

use ferrule_testkit::netns::NetNs;
use ferrule_testkit::node::uplink_is_up;
use ferrule_testkit::{Fleet, Node, Relay, is_root, port, until};
use ferrule_tests::{PATIENCE, make_sqlite_table, open_sqlite};

use crate::rig::{Outcome, Rig, Seed, at, drained, withheld};

/// Messages of a seed.
const MESSAGES: u32 = 900;
/// A name that only the edge's own list of hosts has.
const NAME: &str = "cloud.ferrule.test";

/// Streams through a fault that `open` makes once or twice and [`Relay::heal`] ends; the edge is killed in half of them meanwhile.
fn stream(seed: &mut Seed, ack: &str, mut open: impl FnMut(&mut Seed, &mut Rig)) -> (Rig, Outcome) {
    let mut rig = Rig::start(seed, ack, |config| config);
    let mut outcome = Outcome::default();
    let fleet = Fleet::start(rig.edge.addr(), seed.plan(MESSAGES));
    for round in 0..1 + seed.random.below(2) {
        at(&fleet, 10 + 40 * round + seed.random.below(20));
        open(seed, &mut rig);
        outcome.times += 1;
        if seed.random.one_in(2) {
            rig.edge.kill9();
            rig.edge.restart();
        }
        outcome.withheld += withheld(&fleet);
        rig.relay.heal();
    }
    rig.settle(fleet, &mut outcome);
    (rig, outcome)
}

/// No byte arrives, for shorter and longer than the uplink's keep alive (5 s) needs to notice.
pub(crate) fn blackhole(seed: &mut Seed) -> Option<Outcome> {
    let (_, outcome) = stream(seed, "stored", |seed, rig| {
        rig.relay.blackhole();
        seed.last(200, 10_000);
    });
    Some(outcome)
}

/// The cloud's end is closed, the edge's is not: until it has noticed by itself and come anew.
pub(crate) fn half_open(seed: &mut Seed) -> Option<Outcome> {
    let (_, outcome) = stream(seed, "stored", |_, rig| {
        let before = rig.relay.accepted();
        rig.relay.half_open();
        until(Duration::from_secs(30), "the edge notices that nobody answers", || {
            (rig.relay.accepted() > before).then_some(())
        });
    });
    Some(outcome)
}

pub(crate) fn refused(seed: &mut Seed) -> Option<Outcome> {
    let (_, outcome) = stream(seed, "stored", |seed, rig| {
        rig.relay.refuse();
        seed.last(100, 4_000);
    });
    Some(outcome)
}

pub(crate) fn slow(seed: &mut Seed) -> Option<Outcome> {
    let (_, outcome) = stream(seed, "stored", |seed, rig| {
        rig.relay.throttle(1_000);
        seed.last(1_000, 6_000);
    });
    Some(outcome)
}

/// Each PUBACK of the cloud says something else than it thinks: the edge has to try again, and the cloud to know what it has.
pub(crate) fn cloud_refuses(seed: &mut Seed) -> Option<Outcome> {
    let (rig, outcome) = stream(seed, "stored", |seed, rig| {
        // Quota exceeded, unspecified error, implementation specific error.
        rig.relay.answer([0x97, 0x80, 0x83][seed.random.below(3) as usize]);
        let before = rig.relay.answers_changed();
        seed.last(100, 3_000);
        until(PATIENCE, "an answer is changed", || (rig.relay.answers_changed() > before).then_some(()));
    });
    assert!(rig.relay.answers_changed() > 0);
    Some(outcome)
}

/// Its rule waits for the table, and the table is locked.
pub(crate) fn cloud_slow(seed: &mut Seed) -> Option<Outcome> {
    let (_, outcome) = stream(seed, "sink", |seed, rig| locked(&rig.sqlite(), seed.time(500, 4_000)));
    Some(outcome)
}

/// Somebody else writes to the table for so long.
pub(crate) fn locked(sqlite: &Path, time: Duration) {
    let db = open_sqlite(sqlite);
    db.busy_timeout(PATIENCE).unwrap();
    db.execute_batch("begin immediate").unwrap();
    std::thread::sleep(time); // the fault's length
    db.execute_batch("rollback").unwrap();
}

pub(crate) fn cloud_killed(seed: &mut Seed) -> Option<Outcome> {
    let (_, outcome) = stream(seed, "stored", |seed, rig| {
        for _ in 0..1 + seed.random.below(3) {
            rig.cloud.kill9();
            seed.last(1, 1_500);
            rig.cloud.restart();
            seed.last(1, 500);
        }
    });
    Some(outcome)
}

/// Both nodes' packets are dropped by chance.
pub(crate) fn loss(seed: &mut Seed) -> Option<Outcome> {
    let netns = NetNs::new()?;
    let folder = tempfile::tempdir().unwrap();
    let sqlite = folder.path().join("sink.db");
    make_sqlite_table(&sqlite);
    let listen = std::net::SocketAddr::new(netns.addr(), port::free());
    let cloud = Node::start(&seed.cloud(&sqlite, "stored").listen(listen).netns(netns.name()));
    let mut edge = Node::start(&seed.edge().uplink(listen));
    edge.wait_status(PATIENCE, "the uplink", uplink_is_up);
    let mut outcome = Outcome::default();
    let fleet = Fleet::start(edge.addr(), seed.plan(MESSAGES));
    for round in 0..1 + seed.random.below(2) {
        at(&fleet, 10 + 40 * round + seed.random.below(20));
        if !netns.lose(30) {
            return None;
        }
        seed.last(1_000, 10_000);
        if seed.random.one_in(2) {
            edge.kill9();
            edge.restart();
        }
        outcome.times += 1;
        outcome.withheld += withheld(&fleet);
        netns.lose_none();
    }
    let ledger = fleet.finish(PATIENCE);
    outcome.given_up += drained(&edge) + drained(&cloud);
    outcome.check(&ledger, &sqlite);
    Some(outcome)
}

/// The cloud's name is in a list of hosts of the edge's own, then not, then again. Nobody else is asked: there is no name server.
pub(crate) fn name_gone(seed: &mut Seed) -> Option<Outcome> {
    if !is_root() {
        eprintln!("skipped: needs root (a mount namespace)");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let sqlite = folder.path().join("sink.db");
    make_sqlite_table(&sqlite);
    let cloud = Node::start(&seed.cloud(&sqlite, "stored"));
    let relay = Relay::start(cloud.addr());
    let hosts = folder.path().join("hosts");
    let known = format!("127.0.0.1 localhost {NAME}\n");
    std::fs::write(&hosts, &known).unwrap();
    let resolver = folder.path().join("resolv.conf");
    // One that refuses, or one that nobody answers for (TEST-NET-1).
    let server = ["127.0.0.1", "192.0.2.1"][seed.random.below(2) as usize];
    std::fs::write(&resolver, format!("nameserver {server}\noptions timeout:1 attempts:1\n")).unwrap();
    let mounts = format!(
        "mount --bind {} /etc/hosts && mount --bind {} /etc/resolv.conf && exec \"$@\"",
        hosts.display(),
        resolver.display()
    );
    let edge = seed.edge().uplink_name(NAME, relay.addr().port());
    let mut edge = Node::start(&edge.through(["unshare", "--mount", "--", "sh", "-c", &mounts, "sh"]));
    edge.wait_status(PATIENCE, "the uplink", uplink_is_up);
    let mut outcome = Outcome::default();
    let fleet = Fleet::start(edge.addr(), seed.plan(MESSAGES));
    for round in 0..1 + seed.random.below(2) {
        at(&fleet, 10 + 40 * round + seed.random.below(20));
        // In place: a new file would not be the one that is mounted.
        std::fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
        relay.cut();
        edge.wait_status(PATIENCE, "the uplink is down", |status| !uplink_is_up(status));
        seed.last(100, 4_000);
        if seed.random.one_in(2) {
            edge.kill9();
            edge.restart();
        }
        assert!(!uplink_is_up(&edge.status()), "the uplink came back without a name");
        outcome.times += 1;
        outcome.withheld += withheld(&fleet);
        std::fs::write(&hosts, &known).unwrap();
    }
    let ledger = fleet.finish(PATIENCE);
    outcome.given_up += drained(&edge) + drained(&cloud);
    outcome.check(&ledger, &sqlite);
    Some(outcome)
}
