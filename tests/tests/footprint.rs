//! How much memory a gateway takes: idle, and with 200 rules, 500 clients and a backlog.
//!
//! The goals are 8 MiB idle, and 32 MiB with a backlog of a million. The second is held. Of the first it is held what there is today, so that it does
//! not grow: five sixths of it are pages of the program's file, which the kernel may drop, and of which it maps more or fewer around one that is used,
//! as they lie in its cache. What is its own has a bound of its own.
//!
//! Of the static file for x86_64 of `make cross`, which has ARM's allocator and C library and runs here without an emulator, whose own memory would be
//! counted; without it, skipped. `FERRULE_BACKLOG` (50,000) is the backlog in messages; `make faults` and `make footprint` have a million.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use ferrule_testkit::node::{count, outbox};
use ferrule_testkit::{Config, Fleet, Node, Plan};
use ferrule_tests::{PATIENCE, skipped};

const MIB: u64 = 1 << 20;
/// Idle; of the file nearly all is mapped then.
const IDLE_MAX: u64 = 21 * MIB / 2;
/// Of that, what is no page of the file.
const IDLE_OWN_MAX: u64 = 2 * MIB;
/// With a backlog of a million: the goal.
const LOADED_MAX: u64 = 32 * MIB;
const RULES: u64 = 200;
const CLIENTS: u64 = 500;
/// A second for so many messages at the least, on a busy machine.
const SLOWEST: u64 = 500;

fn small() -> Option<Config> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let binary = root.join("dist/x86_64-unknown-linux-musl/ferrule-edge");
    if !binary.is_file() {
        skipped(&format!("{} is not there; type: make cross", binary.display()));
        return None;
    }
    // A gateway has one worker, whatever a test run has.
    Some(Config::edge().program(binary).env("FERRULE__EDGE__WORKERS", "1"))
}

/// A line of docs/footprint.md (`cross/footprint.py`).
fn tell(what: &str, node: &Node) {
    eprintln!("footprint: {what}: {} KiB, {} KiB its own", node.resident() / 1024, node.own() / 1024);
}

#[test]
fn idle_it_takes_10_and_a_half_mib_at_most() {
    let Some(config) = small() else { return };
    let node = Node::start(
        &config.rules("CREATE RULE everything AS INSERT INTO cloud SELECT * FROM \"factory/#\";"),
    );
    let (resident, own) = (node.resident(), node.own());
    tell("idle", &node);
    let parts = node.parts().map(|(part, bytes)| format!("{part} {} KiB", bytes / 1024)).join(", ");
    eprintln!("footprint of idle: {parts}");
    assert!(resident <= IDLE_MAX && own <= IDLE_OWN_MAX, "{resident} bytes, {own} its own: {parts}");
}

#[test]
fn with_rules_clients_and_a_backlog_it_takes_32_mib_at_most() {
    let Some(config) = small() else { return };
    let backlog: u64 = std::env::var("FERRULE_BACKLOG").map_or(50_000, |text| text.parse().unwrap());
    let mut rules =
        String::from("CREATE RULE everything AS INSERT INTO cloud SELECT * FROM \"factory/#\";\n");
    for n in 1..RULES {
        let _ = writeln!(
            rules,
            "CREATE RULE r{n} AS INSERT INTO cloud.\"alerts/{n}\" SELECT clientid, topic[2] AS machine, payload.n * {n} AS value, timestamp \
             FROM \"factory/+/data\", \"line/{n}/#\" WHERE payload.temp > {n} AND payload.device > 'press';"
        );
    }
    // There is no uplink, so that everything for the cloud stays.
    let node = Node::start(&config.rules(rules));
    tell(&format!("{RULES} rules"), &node);
    let messages = u32::try_from(backlog.div_ceil(CLIENTS)).unwrap();
    let plan = Plan { devices: CLIENTS as usize, messages, window: 16, ..Plan::default() };
    let fleet = Fleet::start(node.addr(), plan);
    let total = fleet.total();
    fleet.wait_acknowledged(total * 9 / 10, PATIENCE + Duration::from_secs(total / SLOWEST));
    // While they are still there.
    let loaded = node.resident();
    tell(&format!("{RULES} rules, {CLIENTS} clients, {backlog} messages come in"), &node);
    let ledger = fleet.finish(PATIENCE + Duration::from_secs(total / SLOWEST));
    assert_eq!(ledger.acknowledged(), total);
    let status = node.status();
    assert!(count(outbox(&status, "cloud"), "entered") >= total, "{status:#}");
    let after = node.resident();
    tell(&format!("{RULES} rules, {backlog} messages wait"), &node);
    assert!(loaded.max(after) <= LOADED_MAX, "{loaded} and {after} bytes");
}
