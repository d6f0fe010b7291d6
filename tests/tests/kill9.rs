//! kill -9 of each process in turn, mid-stream, and its restart: nothing acknowledged is missing.
//!
//! SQL holds one row for each outbox entry, and of a message no more rows than its device sent it (a device whose PUBACK
//! was lost with the edge sends again, and rightly makes a second row). Kafka's duplicates are counted and printed.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use ferrule_testkit::oracle::Copies;
use ferrule_testkit::{Fleet, Plan};
use ferrule_tests::{PATIENCE, Rig};

/// 3,000 messages over at least 6 s, so that a restart falls into the stream.
fn plan() -> Plan {
    Plan { devices: 10, messages: 300, window: 8, per_second: Some(50.0), ..Plan::default() }
}

/// Waits until so many per cent are acknowledged.
fn at(fleet: &Fleet, per_cent: u64) {
    fleet.wait_acknowledged(fleet.total() * per_cent / 100, PATIENCE);
}

/// Streams through `faults`, and checks every destination.
fn stream(faults: impl FnOnce(&mut Rig, &Fleet)) {
    let mut rig = Rig::start();
    let fleet = Fleet::start(rig.edge.addr(), plan());
    faults(&mut rig, &fleet);
    let ledger = rig.settle(fleet);
    assert_eq!(ledger.acknowledged(), 3000);
    rig.check(&ledger, Copies::AsSent, Copies::Any);
}

#[test]
fn of_the_edge() {
    stream(|rig, fleet| {
        for per_cent in [25, 60] {
            at(fleet, per_cent);
            rig.edge.kill9();
            rig.edge.restart();
        }
        at(fleet, 65);
        assert!(fleet.connects() > 10, "every device had to connect again");
    });
}

#[test]
fn of_the_edge_with_a_backlog() {
    // The cloud stands still, so that the edge dies with rows that are on its disk alone.
    stream(|rig, fleet| {
        at(fleet, 20);
        rig.cloud.pause();
        at(fleet, 50);
        rig.edge.kill9();
        rig.edge.restart();
        let status = rig.edge.status();
        let outbox = ferrule_testkit::node::outbox(&status, "cloud");
        assert!(ferrule_testkit::node::count(outbox, "recovered") > 0, "{outbox:#}");
        rig.cloud.resume();
    });
}

#[test]
fn of_the_cloud() {
    stream(|rig, fleet| {
        for per_cent in [25, 60] {
            at(fleet, per_cent);
            rig.cloud.kill9();
            rig.cloud.restart();
        }
    });
}

#[test]
fn of_kafka() {
    stream(|rig, fleet| {
        at(fleet, 30);
        rig.kafka.kill9();
        // The others are not held up by it: the stream goes on while Kafka is away.
        at(fleet, 50);
        rig.kafka.restart();
    });
}

#[test]
fn of_postgresql() {
    stream(|rig, fleet| {
        at(fleet, 30);
        rig.postgres.kill9();
        at(fleet, 50);
        rig.postgres.restart();
    });
}

#[test]
fn of_everything_at_once() {
    stream(|rig, fleet| {
        at(fleet, 40);
        rig.edge.kill9();
        rig.cloud.kill9();
        rig.kafka.kill9();
        rig.postgres.kill9();
        // Back in an order in which each finds the next one missing for a while.
        rig.edge.restart();
        rig.cloud.restart();
        rig.postgres.restart();
        rig.kafka.restart();
    });
}

#[test]
fn a_node_that_was_stopped_in_order_starts_again() {
    stream(|rig, fleet| {
        at(fleet, 30);
        assert!(rig.edge.terminate().success());
        rig.edge.restart();
        at(fleet, 60);
        assert!(rig.cloud.terminate().success());
        rig.cloud.restart();
        fleet.wait_acknowledged(fleet.total(), Duration::from_secs(60));
    });
}
