//! Power cuts, kills and failing disks: what was acknowledged is there, and QoS 2 is once.
//!
//! A *seed* is one cut. Seeds come in chains of [`CHAIN`] over one data folder, so that what one cut left is what the next one hits; a chain begins with an empty
//! folder. `FERRULE_FAULT_SEEDS=n` runs n of each kind (20 in `make test`, 1,000 in `make faults`), `FERRULE_FAULT_SEED=s` the chain up to
//! seed s alone: a failure says so. `FERRULE_FAULT_RESULTS=FOLDER` keeps the counts for docs/faults.md.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ferrule_mqtt::{Packet, QoS};
use ferrule_testkit::power::{Disk, EIO, ENOSPC, EROFS, Order, Remains};
use ferrule_testkit::promises::{Tally, World};
use ferrule_testkit::random::Random;
use ferrule_testkit::wire::Options;
use ferrule_testkit::{Client, Config, Node, soak, until};
use serde_json::json;

/// Cuts over one data folder.
const CHAIN: u64 = 5;
/// Chains side by side.
const JOBS: usize = 2;

/// What ends the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// SIGKILL, and the folder as a disk holds it that forgets what was not synced.
    Power,
    /// SIGKILL alone.
    Kill,
    /// A power cut of a disk whose syncs do nothing: no broker can keep its word on it.
    Lies,
    /// Some syncs fail while it runs, and what they were to write is lost; then mostly a power cut.
    FailedSync,
    /// The disk is full for a while; then mostly a power cut.
    Full,
    /// The file system is read-only for a while; then mostly a power cut.
    ReadOnly,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Power => "power cut",
            Self::Kill => "kill -9",
            Self::Lies => "power cut of a disk whose syncs do nothing",
            Self::FailedSync => "failed fsync, then a power cut",
            Self::Full => "full disk, then a power cut",
            Self::ReadOnly => "read-only disk, then a power cut",
        }
    }

    /// Whether the disk fails while the node runs: then it says so in its log.
    fn fails(self) -> bool {
        matches!(self, Self::FailedSync | Self::Full | Self::ReadOnly)
    }
}

/// What came of a chain.
#[derive(Debug, Default, Clone)]
struct Outcome {
    cuts: u64,
    /// Calls that failed by order.
    failed: u64,
    /// Of the cuts, before the node was ready.
    at_start: u64,
    tally: Tally,
    remains: Remains,
    faults: Vec<String>,
}

impl Outcome {
    fn to_json(&self, kind: Kind, workers: u64) -> serde_json::Value {
        let Tally {
            connects, resumed, published, acknowledged, delivered, promised, lost, duplicated, ..
        } = self.tally;
        json!({
            "fault": kind.name(), "workers": workers, "times": self.cuts, "at_start": self.at_start, "failed": self.failed,
            "connects": connects, "resumed": resumed, "published": published, "acknowledged": acknowledged,
            "delivered": delivered, "promised": promised, "lost": lost, "duplicated": duplicated,
            "again": self.tally.again, "wills": self.tally.wills, "taken_over": self.tally.taken_over,
            "sectors": {"unsynced": self.remains.unsynced, "dropped": self.remains.dropped, "torn": self.remains.torn},
            "names": {"unsynced": self.remains.names, "dropped": self.remains.names_dropped},
            "faults": self.faults,
        })
    }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}: {error}")))
}

/// The node of a chain, with its disk.
struct Rig {
    kind: Kind,
    disk: Disk,
    node: Node,
}

impl Rig {
    fn start(kind: Kind, workers: Option<u64>, random: &mut Random) -> Self {
        let disk = Disk::new();
        let mut config = Config::edge().data_dir(disk.folder());
        if let Some(workers) = workers {
            config = config.env("FERRULE__EDGE__WORKERS", &workers.to_string());
        }
        if kind != Kind::Kill {
            config = disk.config(config);
        }
        let mut rig = Self { kind, node: Node::start(&config), disk };
        rig.orders(random);
        rig
    }

    fn orders(&mut self, random: &mut Random) {
        let delay = [0, 1_000, 5_000][random.below(3) as usize];
        self.disk.order(Order::SyncDelayUs, delay);
        self.disk.order(Order::SyncLies, i64::from(self.kind == Kind::Lies));
    }

    /// The disk fails, in the kind's way.
    fn fail(&self, random: &mut Random) {
        match self.kind {
            Kind::FailedSync => {
                let (after, times) = (random.below(30) as i64, 1 + random.below(3) as i64);
                self.disk.fail(Order::SyncErrno, EIO, after, times);
            }
            Kind::Full => self.disk.fail(Order::WriteErrno, ENOSPC, random.below(60) as i64, -1),
            _ => self.disk.fail(Order::WriteErrno, EROFS, random.below(60) as i64, -1),
        }
    }

    /// It fails no more; how many calls did.
    fn mend(&self) -> u64 {
        self.disk.order(Order::SyncErrno, 0);
        self.disk.order(Order::WriteErrno, 0);
        let failed = self.disk.told(Order::Failed);
        self.disk.order(Order::Failed, 0);
        failed as u64
    }

    /// Cuts into the very first start, while the store is made: from an empty folder. Returns how many.
    fn cut_while_made(&mut self, random: &mut Random, remains: &mut Remains) -> u64 {
        self.node.kill9();
        match self.kind {
            Kind::Kill => std::fs::remove_dir_all(self.disk.folder()).unwrap(),
            _ => self.disk.empty(),
        }
        let times = 1 + random.below(3);
        for _ in 0..times {
            self.orders(random);
            if self.kind != Kind::Kill {
                self.kill_after(1 + random.below(150));
            }
            self.node.relaunch();
            let (started, limit) = (Instant::now(), Duration::from_millis(1 + random.below(60)));
            while started.elapsed() < limit && self.node.process().exited().is_none() {
                std::thread::sleep(Duration::from_millis(1));
            }
            add(remains, &self.cut(random));
        }
        self.orders(random);
        self.node.relaunch();
        times
    }

    /// From here on so many changes of the disk are made, then it is killed.
    fn kill_after(&self, changes: u64) {
        let so_far = self.disk.told(Order::Records);
        self.disk.order(Order::KillAt, so_far + changes as i64);
    }

    fn cut(&mut self, random: &mut Random) -> Remains {
        self.node.kill9();
        match self.kind {
            // The folder as it is, on whatever it is.
            Kind::Kill => Remains::default(),
            _ => self.disk.cut(random),
        }
    }
}

/// Runs the chain of `seed` from its beginning up to it.
fn chain(kind: Kind, workers: Option<u64>, seed: u64) -> Outcome {
    let begin = seed / CHAIN * CHAIN;
    let mut outcome = Outcome::default();
    let mut random = Random(begin.wrapping_mul(0x1_0000_0001) ^ kind as u64);
    let mut rig = Rig::start(kind, workers, &mut random);
    let mut world = World::new(rig.node.addr(), random.number());
    if random.one_in(2) {
        outcome.at_start += rig.cut_while_made(&mut random, &mut outcome.remains);
        outcome.cuts += outcome.at_start;
    }
    let heavy = random.one_in(4);
    // Everyone is connected and subscribed: from here on there are promises to break.
    world.settle();
    let mut log_lines = 0;
    for seed in begin..=seed {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9) ^ kind as u64);
        let started = Instant::now();
        let mut limit = Duration::from_millis(60 + random.below(if heavy { 1_500 } else { 600 }));
        let at_change = matches!(kind, Kind::Power | Kind::Lies) && random.one_in(2);
        if at_change {
            rig.kill_after(1 + random.below(if heavy { 2_000 } else { 400 }));
        }
        if kind.fails() {
            // A start on a disk that fails is refused, rightly.
            world.run(|_| rig.node.try_status().is_ok() || started.elapsed() >= MENDED);
            let before = started.elapsed() + Duration::from_millis(random.below(100));
            world.run(|_| started.elapsed() >= before);
            rig.fail(&mut random);
            limit += before;
        }
        world.run(|world| started.elapsed() >= limit || !world.faults.is_empty());
        let recovers = kind.fails() && random.one_in(2);
        if recovers {
            outcome.failed += rig.mend();
            let (started, limit) = (Instant::now(), Duration::from_millis(random.below(300)));
            world.run(|world| started.elapsed() >= limit || !world.faults.is_empty());
        }
        if recovers && random.one_in(3) {
            world.settle();
        }
        let mut cut = |rig: &mut Rig, world: &mut World, random: &mut Random| {
            outcome.failed += rig.mend();
            let remains = rig.cut(random);
            world.cut();
            outcome.cuts += 1;
            add(&mut outcome.remains, &remains);
        };
        cut(&mut rig, &mut world, &mut random);
        // Some starts are cut, too: into the recovery, or the clients' return.
        let at_start = random.one_in(4);
        if at_start {
            rig.orders(&mut random);
            if at_change {
                rig.kill_after(1 + random.below(60));
            }
            rig.node.relaunch();
            let (started, limit) = (Instant::now(), Duration::from_millis(random.below(60)));
            world.run(|_| started.elapsed() >= limit);
            cut(&mut rig, &mut world, &mut random);
            outcome.at_start += 1;
        }
        rig.orders(&mut random);
        rig.node.relaunch();
        if random.one_in(2) || seed % CHAIN == CHAIN - 1 {
            world.settle();
        }
        let log = rig.node.log();
        for line in log.lines().skip(log_lines) {
            if line.contains("ERROR") && !kind.fails()
                || line.contains("damaged")
                || line.contains("panicked")
            {
                world.faults.push(format!("the node wrote: {line}"));
            }
        }
        log_lines = log.lines().count();
        if !world.faults.is_empty() {
            let what = |fault: &String| format!("seed {seed}: {fault}");
            outcome.faults = world.faults.iter().map(what).collect();
            let ended = rig.node.process().exited();
            outcome.faults.push(format!("the node ({ended:?}) wrote last:\n{}", rig.node.process().tail(20)));
            break;
        }
    }
    outcome.tally = world.tally;
    outcome
}

fn add(sum: &mut Remains, more: &Remains) {
    sum.unsynced += more.unsynced;
    sum.dropped += more.dropped;
    sum.torn += more.torn;
    sum.names += more.names;
    sum.names_dropped += more.names_dropped;
}

/// How many workers a chain's nodes have: as the whole test run asks, else 1 and 3 in turns.
fn workers_of(seed: u64) -> Option<u64> {
    if std::env::var_os("FERRULE_TEST_WORKERS").is_some() {
        return None;
    }
    Some([1, 3][(seed / CHAIN % 2) as usize])
}

fn campaign(kind: Kind) {
    let name = kind.name();
    if let Some(seed) = number("FERRULE_FAULT_SEED") {
        let outcome = chain(kind, workers_of(seed), seed);
        assert!(outcome.faults.is_empty(), "{:#?}", outcome.faults);
        return;
    }
    // Of the beginning: the checkout may go on while this runs.
    let stamp = std::env::var_os("FERRULE_FAULT_RESULTS")
        .map(|_| soak::day_and_commit(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()));
    let seeds = number("FERRULE_FAULT_SEEDS").unwrap_or(20);
    let next = AtomicU64::new(0);
    let sums: Mutex<BTreeMap<u64, Outcome>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..JOBS {
            scope.spawn(|| {
                loop {
                    let first = next.fetch_add(CHAIN, Ordering::Relaxed);
                    if first >= seeds {
                        return;
                    }
                    let last = (first + CHAIN).min(seeds) - 1;
                    let workers = workers_of(first);
                    let outcome = chain(kind, workers, last);
                    if !outcome.faults.is_empty() {
                        let faults = outcome.faults.join("\n  ");
                        eprintln!(
                            "{name}, workers {workers:?}:\n  {faults}\n  replay: FERRULE_FAULT_SEED={last}"
                        );
                    }
                    let mut sums = sums.lock().unwrap();
                    let sum = sums.entry(workers.unwrap_or(0)).or_default();
                    sum.cuts += outcome.cuts;
                    sum.at_start += outcome.at_start;
                    sum.failed += outcome.failed;
                    sum.tally.add(&outcome.tally);
                    add(&mut sum.remains, &outcome.remains);
                    sum.faults.extend(outcome.faults);
                }
            });
        }
    });
    let sums = sums.into_inner().unwrap();
    if let (Some(folder), Some((day, commit))) = (std::env::var_os("FERRULE_FAULT_RESULTS"), stamp) {
        let rows: Vec<_> = sums.iter().map(|(workers, sum)| sum.to_json(kind, *workers)).collect();
        let result = json!({"date": day, "commit": commit, "machine": soak::machine(), "fault": kind.name(), "rows": rows});
        let file = kind.name().split(',').next().unwrap().replace(" -", "-").replace(' ', "-");
        let path = Path::new(&folder).join(format!("faults-{day}-{commit}-{file}.json"));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(&path, format!("{result:#}\n")).unwrap();
        eprintln!("written to {}", path.display());
    }
    for (workers, sum) in &sums {
        eprintln!("{name}, workers {workers}: {sum:?}");
    }
    assert!(!kind.fails() || sums.values().any(|sum| sum.failed > 0), "the disk never failed");
    let faults: Vec<&str> = sums.values().flat_map(|sum| &sum.faults).map(String::as_str).collect();
    // They are told above; of a long log the end is read first.
    let first_lines: Vec<&str> = faults.iter().filter_map(|fault| fault.lines().next()).collect();
    assert!(faults.is_empty(), "{}", first_lines.join("\n"));
}

#[test]
fn power_cuts_lose_nothing_acknowledged() {
    campaign(Kind::Power);
}

#[test]
fn kills_lose_nothing_acknowledged() {
    campaign(Kind::Kill);
}

#[test]
fn failed_syncs_lose_nothing_acknowledged() {
    campaign(Kind::FailedSync);
}

#[test]
fn full_disks_lose_nothing_acknowledged() {
    campaign(Kind::Full);
}

#[test]
fn read_only_disks_lose_nothing_acknowledged() {
    campaign(Kind::ReadOnly);
}

/// The rig has teeth: a disk that only says that it has synced costs acknowledged messages, and the clients notice.
#[test]
fn a_disk_that_lies_about_its_syncs_is_found_out() {
    let found = (0..10).any(|n| {
        let seed = n * CHAIN + CHAIN - 1;
        let outcome = chain(Kind::Lies, workers_of(seed), seed);
        !outcome.faults.is_empty()
    });
    assert!(found, "10 chains on a disk that forgets everything, and nothing was missed");
}

/// How long the store may take to notice that its medium works again (it looks every 5 s at the most) on a busy machine.
const MENDED: Duration = Duration::from_secs(30);

/// While the disk fails, what has to be stored is not acknowledged and the rest goes on; afterwards it is acknowledged, and there after a power cut.
fn withholds(first: Order, errno: i64, says: &str) {
    let mut disk = Disk::new();
    let mut node = Node::start(&disk.config(Config::edge()));
    let away = Options::v5("away").persistent();
    let mut reader = Client::connect(node.addr(), &away);
    reader.subscribe("kept/#", QoS::ExactlyOnce);
    reader.disconnect();
    let mut here = Client::connect(node.addr(), &Options::v4("here"));
    here.subscribe("plain", QoS::AtLeastOnce);
    let mut writer = Client::connect(node.addr(), &Options::v5("writer"));
    writer.publish("kept/before", b"1", QoS::AtLeastOnce, false);

    disk.fail(first, errno, 0, -1);
    // Longer than what the log has room for: a full disk stops growth alone.
    let id = writer.publish_nowait("kept/while", &[b'2'; 600_000], QoS::AtLeastOnce, false);
    let what = format!("the store fails and says {says:?}");
    node.wait_status(MENDED, &what, |status| {
        let store = &status["store"];
        store["state"] == "failing" && store["last_error"].as_str().is_some_and(|said| said.contains(says))
    });
    // Whoever needs no disk is served.
    let mut other = Client::connect(node.addr(), &Options::v4("other"));
    other.publish("plain", b"live", QoS::AtLeastOnce, false);
    assert_eq!(here.expect_message().text(), "live");
    writer.ping();
    let is_its = |packet: &Packet<'_>| matches!(packet, Packet::Puback(ack) if ack.packet_id == id);
    let early = writer.recv_where(Duration::from_millis(1), is_its);
    assert!(early.is_err(), "acknowledged while the disk fails: {early:?}");

    disk.order(first, 0);
    let answer = writer.recv_where(MENDED, is_its);
    assert!(answer.is_ok(), "not acknowledged when the disk works again: {answer:?}\n{}", node.log());
    node.wait_status(MENDED, "the store works again", |status| status["store"]["state"] == "ok");
    node.kill9();
    disk.cut(&mut Random(errno as u64));
    node.restart();
    let (mut reader, present) = Client::connect_session(node.addr(), &away);
    assert!(present);
    let got = [reader.expect_message(), reader.expect_message()].map(|message| message.topic);
    assert_eq!(got, ["kept/before", "kept/while"]);
}

#[test]
fn a_full_disk_withholds_what_has_to_be_stored() {
    withholds(Order::WriteErrno, ENOSPC, "no space left");
}

#[test]
fn a_disk_that_turns_read_only_withholds_what_has_to_be_stored() {
    withholds(Order::WriteErrno, EROFS, "rw");
}

#[test]
fn a_failing_sync_withholds_what_has_to_be_stored() {
    withholds(Order::SyncErrno, EIO, "dmesg");
}

/// A sync fails, so the log is written again and copied into the file; and wherever in that the power is cut, the store is whole:
/// the kernel holds pages for written that the medium never got, and a copy must not be ahead of its log.
#[test]
fn a_cut_in_the_copy_after_a_failed_sync_damages_nothing() {
    let mut failed = 0;
    for changes in 1..=40 {
        let mut disk = Disk::new();
        let mut node = Node::start(&disk.config(Config::edge()));
        let away = Options::v5("away").persistent();
        let mut reader = Client::connect(node.addr(), &away);
        reader.subscribe("kept/#", QoS::AtLeastOnce);
        reader.disconnect();
        let mut writer = Client::connect(node.addr(), &Options::v5("writer"));
        writer.publish("kept/before", b"1", QoS::AtLeastOnce, false);
        // Many pages of one commit, of which none is durable.
        disk.fail(Order::SyncErrno, EIO, 0, 1);
        for _ in 0..6 {
            writer.publish_nowait("kept/while", &[b'2'; 20_000], QoS::AtLeastOnce, false);
        }
        until(MENDED, "the sync fails", || (disk.told(Order::Failed) > 0).then_some(()));
        failed += disk.told(Order::Failed);
        disk.order(Order::KillAt, disk.told(Order::Records) + changes);
        let works = |node: &Node| node.log().contains("works again");
        until(MENDED, "it was killed, or is done", || {
            (node.process().exited().is_some() || works(&node)).then_some(())
        });
        node.kill9();
        disk.cut(&mut Random(changes as u64));
        node.restart();
        assert!(!node.log().contains("damaged"), "cut at change {changes}:\n{}", node.log());
        let (mut reader, present) = Client::connect_session(node.addr(), &away);
        assert!(present);
        assert_eq!(reader.expect_message().topic, "kept/before", "cut at change {changes}");
    }
    assert_eq!(failed, 40);
}

/// A damaged file is moved aside, its readable part is kept, the loss is reported, and the broker starts.
#[test]
fn a_damaged_store_is_salvaged_and_reported() {
    let mut node = Node::start(&Config::edge());
    let away = Options::v5("away").persistent();
    let mut reader = Client::connect(node.addr(), &away);
    reader.subscribe("kept/#", QoS::AtLeastOnce);
    reader.disconnect();
    let mut writer = Client::connect(node.addr(), &Options::v5("writer"));
    // Payloads that no compressor changes: they tell where in the file they are.
    let mut random = Random(7);
    let payloads: Vec<Vec<u8>> =
        (0..200).map(|_| (0..700).map(|_| random.number() as u8).collect()).collect();
    for (n, payload) in payloads.iter().enumerate() {
        writer.publish(&format!("kept/{n}"), payload, QoS::AtLeastOnce, false);
    }
    // Everything is in its table, where damage costs rows.
    assert!(node.terminate().success());
    let file = node.data_dir().join("ferrule.db");
    let mut bytes = std::fs::read(&file).unwrap();
    // A page in the midst of the rows; the first half of what is found is what the journal has left behind.
    let begins = |page: &[u8]| page.windows(16).any(|window| payloads.iter().any(|p| p[..16] == *window));
    let rows: Vec<usize> =
        bytes.chunks(1024).enumerate().filter(|(_, page)| begins(page)).map(|(at, _)| at).collect();
    let page = rows[rows.len() * 3 / 4] * 1024;
    bytes[page..page + 1024].fill(0xff);
    std::fs::write(&file, &bytes).unwrap();

    node.restart();
    let damage = node.status()["store"]["damage"].as_str().map(str::to_owned);
    let damage = damage.expect("the status tells of the damage");
    assert!(damage.contains("ferrule.db.corrupt-"), "{damage}");
    assert!(node.log().contains("the store was damaged"), "{}", node.log());
    let aside = std::fs::read_dir(node.data_dir()).unwrap();
    let aside = aside.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(aside.filter(|name| name.starts_with("ferrule.db.corrupt-")).count() > 0);
    // The session and its subscription are among what is kept, with nearly all messages.
    let (mut reader, present) = Client::connect_session(node.addr(), &away);
    assert!(present);
    Client::connect(node.addr(), &Options::v5("writer")).publish("kept/end", b"", QoS::AtLeastOnce, false);
    let got = reader.messages_until("kept/end");
    assert!((150..200).contains(&got.len()), "{} of 200 rows are left", got.len());
}
