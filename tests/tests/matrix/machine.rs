//! Faults of the edge's own machine: its medium, its clock, its data folder, its memory; and several faults together.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ferrule_mqtt::{AckType, QoS};
use ferrule_testkit::clock::Clock;
use ferrule_testkit::node::{count, outbox, uplink_is_up};
use ferrule_testkit::power::{Disk, Order};
use ferrule_testkit::proc::output;
use ferrule_testkit::random::Random;
use ferrule_testkit::wire::Options;
use ferrule_testkit::{Client, Fleet, Node, Plan, until};
use ferrule_tests::PATIENCE;

use crate::link::locked;
use crate::rig::{Outcome, Rig, Seed, at, drained, withheld};

/// Messages of a seed.
const MESSAGES: u32 = 900;
/// Seconds of a week.
const WEEK_S: i64 = 7 * 86_400;

/// An SD card that is busy with itself: 20 ms for each sync, half a second for one in 32.
fn slow(disk: &Disk) {
    disk.order(Order::SyncFloorUs, 20_000);
    disk.order(Order::SyncSpikeUs, 500_000);
}

/// Power cut of the edge.
fn cut(disk: &mut Disk, edge: &mut Node, random: &mut Random) {
    edge.kill9();
    disk.cut(random);
    slow(disk);
    edge.restart();
}

pub(crate) fn slow_media(seed: &mut Seed) -> Option<Outcome> {
    let mut disk = Disk::new();
    slow(&disk);
    let mut rig = Rig::start(seed, "stored", |config| disk.config(config));
    let mut outcome = Outcome::default();
    let fleet = Fleet::start(rig.edge.addr(), seed.plan(MESSAGES));
    for round in 0..1 + seed.random.below(2) {
        at(&fleet, 5 + 40 * round + seed.random.below(10));
        // Without a cloud every acknowledgement is the medium's.
        rig.relay.refuse();
        at(&fleet, 20 + 40 * round + seed.random.below(20));
        cut(&mut disk, &mut rig.edge, &mut seed.random);
        outcome.times += 1;
        outcome.withheld += withheld(&fleet);
        rig.relay.heal();
    }
    rig.settle(fleet, &mut outcome);
    Some(outcome)
}

/// The edge's clock, and the cloud's backlog in it: rows that were received in 1970 or next week are rows.
pub(crate) fn clock_jumps(seed: &mut Seed) -> Option<Outcome> {
    let clock = Clock::new()?;
    if seed.random.one_in(2) {
        // Without a battery, until somebody sets it.
        clock.set(i64::try_from(seed.random.below(100)).unwrap());
    }
    let mut rig = Rig::start(seed, "stored", |config| clock.config(config));
    let mut outcome = Outcome::default();
    let fleet = Fleet::start(rig.edge.addr(), seed.plan(MESSAGES));
    for round in 0..4 {
        at(&fleet, 5 + 20 * round + seed.random.below(15));
        if seed.random.one_in(2) {
            rig.relay.refuse();
        }
        match seed.random.below(4) {
            0 => clock.ahead(WEEK_S),
            1 => clock.ahead(-WEEK_S),
            2 => clock.set(0),
            _ => clock.ahead(0),
        }
        seed.last(50, 800);
        if seed.random.one_in(3) {
            rig.edge.kill9();
            rig.edge.restart();
        }
        outcome.times += 1;
        outcome.withheld += withheld(&fleet);
        rig.relay.heal();
    }
    rig.settle(fleet, &mut outcome);
    Some(outcome)
}

/// All of a backlog is in the file; then some of its bytes are not what they were.
pub(crate) fn corrupt_pages(seed: &mut Seed) -> Option<Outcome> {
    let mut rig = Rig::start(seed, "stored", |config| config);
    let mut outcome = Outcome { times: 1, ..Outcome::default() };
    rig.relay.refuse();
    let fleet = Fleet::start(rig.edge.addr(), seed.plan(MESSAGES));
    let ledger = fleet.finish(PATIENCE);
    let mut file = "ferrule.db";
    if seed.random.one_in(2) {
        assert!(rig.edge.terminate().success());
    } else {
        // Then most of it is in the log, whose last commit cannot be told from one that a power cut interrupted; and a run of bytes
        // may be in two. Each of these is a commit.
        let mut client = Client::connect(rig.edge.addr(), &Options::v5("last"));
        for n in 0..4_u8 {
            let id = client.publish_nowait("last", &[n], QoS::AtLeastOnce, true);
            client.expect_ack(AckType::Puback, id);
        }
        rig.edge.kill9();
        file = ["ferrule.db", "ferrule.db-wal"][seed.random.below(2) as usize];
    }
    damage(&rig.edge.data_dir().join(file), &mut seed.random);
    rig.edge.restart();
    rig.relay.heal();
    // What is new goes its way.
    let plan = Plan { prefix: "e", ..seed.plan(200) };
    let after = Fleet::start(rig.edge.addr(), plan).finish(PATIENCE);
    rig.drain(&mut outcome);
    let told = rig.edge.status()["store"]["damage"].is_string();
    outcome.check(&after, &rig.sqlite());
    outcome.check_damaged(&ledger, &after, &rig.sqlite(), told);
    Some(outcome)
}

/// Some single bytes, or a run of them, or a whole page of nonsense.
fn damage(path: &Path, random: &mut Random) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let length = file.metadata().unwrap().len();
    let places = 1 + random.below(8);
    let bytes = [1, 16, 1_024, 4_096][random.below(4) as usize];
    for _ in 0..places {
        let from = random.below(length.saturating_sub(bytes).max(1));
        let mut old = vec![0; usize::try_from(bytes).unwrap().min(usize::try_from(length - from).unwrap())];
        file.read_exact_at(&mut old, from).unwrap();
        old.iter_mut().for_each(|byte| *byte ^= 1 + random.below(255) as u8);
        file.write_all_at(&old, from).unwrap();
    }
}

fn copy(from: &Path, to: &Path) {
    output(Command::new("cp").arg("--archive").arg(from).arg(to));
}

/// An SD card is copied with a backlog on it, and both gateways run, with one name. Each has devices of its own. The cloud lets in one of them, and the other says why
/// it waits; when the first is switched off, the second comes. Rows that both have are one each.
pub(crate) fn cloned_folder(seed: &mut Seed) -> Option<Outcome> {
    let mut rig = Rig::start(seed, "stored", |config| config);
    let mut outcome = Outcome { times: 1, ..Outcome::default() };
    rig.relay.refuse();
    let before =
        Fleet::start(rig.edge.addr(), Plan { prefix: "a", ..seed.plan(MESSAGES / 2) }).finish(PATIENCE);
    rig.edge.kill9();
    let copied = rig.folder().join("copied");
    copy(rig.edge.data_dir(), &copied);
    rig.edge.restart();
    let twin = Node::start(&seed.edge().uplink(rig.relay.addr()).data_dir(&copied));
    rig.relay.heal();
    let first = Fleet::start(rig.edge.addr(), Plan { prefix: "b", ..seed.plan(MESSAGES / 2) });
    let second = Fleet::start(twin.addr(), Plan { prefix: "c", ..seed.plan(MESSAGES / 2) });
    seed.last(500, 3_000);
    outcome.withheld += withheld(&first) + withheld(&second);
    let (first, second) = (first.finish(PATIENCE), second.finish(PATIENCE));

    let sqlite = rig.sqlite();
    let Rig { edge, cloud, .. } = rig;
    let mut pair = [edge, twin];
    until(PATIENCE, "one of the two is let in", || {
        pair.iter().any(|edge| uplink_is_up(&edge.status())).then_some(())
    });
    if uplink_is_up(&pair[1].status()) {
        pair.reverse();
    }
    outcome.given_up += drained(&pair[0]);
    pair[1].wait_status(PATIENCE, "the other one says why it is not", |status| {
        status["uplink"]["last_error"]
            .as_str()
            .is_some_and(|said| said.contains("another process of this client id"))
    });
    assert!(pair[0].terminate().success());
    outcome.given_up += drained(&pair[1]) + drained(&cloud);
    for ledger in [&before, &first, &second] {
        outcome.check(ledger, &sqlite);
    }
    Some(outcome)
}

/// An older copy of the folder is put back, in which there is a backlog that was delivered long ago.
pub(crate) fn restored_backup(seed: &mut Seed) -> Option<Outcome> {
    let mut rig = Rig::start(seed, "stored", |config| config);
    let mut outcome = Outcome { times: 1, ..Outcome::default() };
    rig.relay.refuse();
    let before =
        Fleet::start(rig.edge.addr(), Plan { prefix: "a", ..seed.plan(MESSAGES / 2) }).finish(PATIENCE);
    rig.edge.kill9();
    let backup = rig.folder().join("backup");
    copy(rig.edge.data_dir(), &backup);
    rig.edge.restart();
    rig.relay.heal();
    let between =
        Fleet::start(rig.edge.addr(), Plan { prefix: "b", ..seed.plan(MESSAGES / 2) }).finish(PATIENCE);
    // What is on no other medium than the one that is thrown away is lost with it: here nothing.
    rig.drain(&mut outcome);
    rig.edge.kill9();
    std::fs::remove_dir_all(rig.edge.data_dir()).unwrap();
    copy(&backup, rig.edge.data_dir());
    rig.edge.restart();
    assert!(count(outbox(&rig.edge.status(), "cloud"), "recovered") > 0, "the backup had no backlog");
    let after = Fleet::start(rig.edge.addr(), Plan { prefix: "c", ..seed.plan(MESSAGES / 2) });
    rig.settle(after, &mut outcome);
    for ledger in [&before, &between] {
        outcome.check(ledger, &rig.sqlite());
    }
    Some(outcome)
}

/// The edge may have 64 MiB of writable memory (`RLIMIT_DATA`: heap and stacks), and gets a backlog above that.
pub(crate) fn little_memory(seed: &mut Seed) -> Option<Outcome> {
    let limited = ["prlimit", "--data=67108864", "--"];
    let mut rig = Rig::start(seed, "stored", |config| config.through(limited));
    let mut outcome = Outcome { times: 1, ..Outcome::default() };
    rig.relay.refuse();
    // 80 MiB.
    let plan = Plan {
        devices: 40,
        messages: 500,
        window: 16,
        pad: 4_096,
        v5: seed.random.one_in(2),
        ..Plan::default()
    };
    let fleet = Fleet::start(rig.edge.addr(), plan);
    at(&fleet, 50 + seed.random.below(40));
    if seed.random.one_in(2) {
        rig.edge.kill9();
        rig.edge.restart();
    }
    outcome.withheld += withheld(&fleet);
    rig.relay.heal();
    rig.settle(fleet, &mut outcome);
    outcome.peak_kib = rig.edge.peak() / 1_024;
    Some(outcome)
}

/// Faults that come before others have ended.
pub(crate) fn combination(seed: &mut Seed) -> Option<Outcome> {
    let mut disk = Disk::new();
    slow(&disk);
    let mut rig = Rig::start(seed, "stored", |config| disk.config(config));
    let mut outcome = Outcome::default();
    let fleet = Fleet::start(rig.edge.addr(), seed.plan(2 * MESSAGES));
    for round in 0..4 {
        at(&fleet, 5 + 20 * round + seed.random.below(10));
        for _ in 0..1 + seed.random.below(3) {
            one(seed, &mut rig, &mut disk);
            outcome.times += 1;
            seed.last(10, 700);
        }
        outcome.withheld += withheld(&fleet);
        rig.relay.heal();
    }
    rig.edge.wait_status(PATIENCE, "the uplink comes back by itself", uplink_is_up);
    rig.settle(fleet, &mut outcome);
    Some(outcome)
}

/// One fault of a combination; those of the link stay until they are healed. (The edge's end is always a power cut: the disk's log is that of one process.)
fn one(seed: &mut Seed, rig: &mut Rig, disk: &mut Disk) {
    match seed.random.below(10) {
        0 => rig.relay.blackhole(),
        1 => rig.relay.refuse(),
        2 => rig.relay.half_open(),
        3 => rig.relay.throttle(1_000),
        4 => rig.relay.delay(Duration::from_millis(300)),
        5 => rig.relay.cut(),
        6 => rig.relay.answer(0x97),
        7 => locked(&rig.sqlite(), seed.time(100, 2_000)),
        8 => {
            rig.cloud.kill9();
            seed.last(1, 500);
            rig.cloud.restart();
        }
        _ => cut(disk, &mut rig.edge, &mut seed.random),
    }
}
