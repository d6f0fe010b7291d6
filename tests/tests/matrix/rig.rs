//! Devices, edge, relay, cloud and its table; and what is counted over a fault.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ferrule_testkit::node::{assert_accounts, count, outboxes, uplink_is_up};
use ferrule_testkit::oracle::{Copies, Ledger};
use ferrule_testkit::random::Random;
use ferrule_testkit::{Config, Fleet, Node, Plan, Relay};
use ferrule_tests::{EDGE_RULES, PATIENCE, make_sqlite_table, open_sqlite};
use serde_json::{Value, json};
use tempfile::TempDir;

/// What came of one seed, or of all of a fault's.
#[derive(Debug, Default, Clone)]
pub(crate) struct Outcome {
    /// Faults done.
    pub(crate) times: u64,
    /// Different messages sent.
    pub(crate) published: u64,
    /// Of them, acknowledged.
    pub(crate) acknowledged: u64,
    /// Of those, not in the table, and nobody said so.
    pub(crate) lost: u64,
    /// Rows beyond one of each outbox entry, and beyond what its device sent.
    pub(crate) duplicated: u64,
    /// Rows beyond the first of a message: its device had sent it again.
    pub(crate) again: u64,
    /// Messages that were sent and not acknowledged when a fault ended.
    pub(crate) withheld: u64,
    /// Publishes that were refused by a reason code.
    pub(crate) refused: u64,
    /// Rows given up and counted, and messages lost with damage that was reported.
    pub(crate) given_up: u64,
    /// The most memory of the edge, where that is the point, in KiB.
    pub(crate) peak_kib: u64,
    /// Broken promises, in words.
    pub(crate) faults: Vec<String>,
}

impl Outcome {
    /// Adds another's.
    pub(crate) fn add(&mut self, other: Self) {
        self.times += other.times;
        self.published += other.published;
        self.acknowledged += other.acknowledged;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.again += other.again;
        self.withheld += other.withheld;
        self.refused += other.refused;
        self.given_up += other.given_up;
        self.peak_kib = self.peak_kib.max(other.peak_kib);
        self.faults.extend(other.faults);
    }

    /// As it stands in a result.
    pub(crate) fn to_json(&self, fault: &str, seeds: u64) -> Value {
        json!({
            "fault": fault, "seeds": seeds, "times": self.times, "published": self.published, "acknowledged": self.acknowledged,
            "lost": self.lost, "duplicated": self.duplicated, "again": self.again, "withheld": self.withheld,
            "refused": self.refused, "given_up": self.given_up,
            "peak_kib": (self.peak_kib > 0).then_some(self.peak_kib), "faults": self.faults,
        })
    }

    /// Compares the table with what the devices of `ledger` did.
    pub(crate) fn check(&mut self, ledger: &Ledger, sqlite: &Path) {
        let rows = rows(sqlite);
        self.count_twice(rows.iter().map(|row| row.0.as_str()));
        let own = rows.iter().filter_map(|(_, device, n)| Some((device.as_deref()?, (*n)?)));
        let report =
            ledger.check(own.filter(|(device, _)| ledger.devices.contains_key(*device)), Copies::AsSent);
        self.published += report.published;
        self.acknowledged += report.acknowledged;
        self.again += report.duplicates;
        self.lost += report.lost;
        self.faults.extend(report.faults);
    }

    fn count_twice<'a>(&mut self, ids: impl Iterator<Item = &'a str>) {
        let mut ids: Vec<&str> = ids.collect();
        let rows = ids.len();
        ids.sort_unstable();
        ids.dedup();
        if rows > ids.len() {
            self.duplicated += (rows - ids.len()) as u64;
            self.faults.push(format!("{} outbox entries inserted twice", rows - ids.len()));
        }
    }

    /// The same after bytes of the store were changed. `told`: the damage was reported, and then what is missing counts as given up;
    /// `others`: whose rows are in the table, too.
    pub(crate) fn check_damaged(&mut self, ledger: &Ledger, others: &Ledger, sqlite: &Path, told: bool) {
        let mut found = HashSet::new();
        for (_, device, n) in rows(sqlite) {
            let entry =
                device.as_ref().and_then(|device| ledger.devices.get(device)?.get(usize::try_from(n?).ok()?));
            if entry.is_some_and(|entry| entry.sent > 0) {
                found.insert((device, n));
            } else if device.as_ref().is_none_or(|device| !others.devices.contains_key(device)) {
                self.faults.push(format!("{device:?} never sent {n:?}: a message has changed"));
            }
        }
        let mut missing = 0;
        for (device, entries) in &ledger.devices {
            for (n, entry) in (0u64..).zip(entries) {
                self.published += u64::from(entry.sent > 0);
                self.acknowledged += u64::from(entry.acknowledged);
                missing += u64::from(entry.acknowledged && !found.contains(&(Some(device.clone()), Some(n))));
            }
        }
        if told {
            self.given_up += missing;
        } else if missing > 0 {
            self.lost += missing;
            self.faults.push(format!("{missing} messages are gone and nobody said so"));
        }
    }
}

/// The rows of the table: message id, device, n. The latter two may be NULL, of a message that is no JSON any more.
fn rows(sqlite: &Path) -> Vec<(String, Option<String>, Option<u64>)> {
    let db = open_sqlite(sqlite);
    let mut select = db.prepare("select message_id, device, n from readings order by id").unwrap();
    let rows = select.query_map([], |row| {
        let n: Option<i64> = row.get(2)?;
        Ok((row.get(0)?, row.get(1)?, n.and_then(|n| u64::try_from(n).ok())))
    });
    rows.unwrap().collect::<Result<_, _>>().unwrap()
}

/// One seed's numbers, and how many workers its nodes have.
#[derive(Debug, Clone)]
pub(crate) struct Seed {
    /// Its numbers.
    pub(crate) random: Random,
    /// One or three in turns, unless the test run says it.
    pub(crate) workers: Option<u64>,
}

impl Seed {
    pub(crate) fn new(seed: u64) -> Self {
        let workers =
            std::env::var_os("FERRULE_TEST_WORKERS").is_none().then_some([1, 3][(seed % 2) as usize]);
        Self { random: Random(seed), workers }
    }

    /// A time between the two, in milliseconds: the length of a fault.
    pub(crate) fn time(&mut self, from_ms: u64, to_ms: u64) -> Duration {
        Duration::from_millis(from_ms + self.random.below(to_ms - from_ms))
    }

    /// Lets a fault last. Its length is the fault itself, and waits for nothing.
    pub(crate) fn last(&mut self, from_ms: u64, to_ms: u64) {
        std::thread::sleep(self.time(from_ms, to_ms));
    }

    /// What the devices do: about `messages` in all, for some seconds.
    pub(crate) fn plan(&mut self, messages: u32) -> Plan {
        let devices = 3 + self.random.below(8) as usize;
        Plan {
            devices,
            messages: messages / u32::try_from(devices).unwrap(),
            window: [1, 4, 16][self.random.below(3) as usize],
            per_second: Some(f64::from(messages) / devices as f64 / 3.0),
            resend_after: self.random.one_in(3).then_some(Duration::from_secs(1)),
            pad: [40, 400][self.random.below(2) as usize],
            v5: self.random.one_in(2),
            ..Plan::default()
        }
    }

    fn node(&self, config: Config, table: &str) -> Config {
        match self.workers {
            Some(workers) => config.env(&format!("FERRULE__{table}__WORKERS"), &workers.to_string()),
            None => config,
        }
    }

    /// An edge's configuration.
    pub(crate) fn edge(&self) -> Config {
        self.node(Config::edge().rules(EDGE_RULES), "EDGE")
    }

    /// A cloud's, with its table; `ack` is its rule's option.
    pub(crate) fn cloud(&self, sqlite: &Path, ack: &str) -> Config {
        let rules = format!(
            "CREATE SINK s WITH (connector = 'sqlite', path = '{}', table = 'readings', columns = 'message_id text, device text, n bigint');\n\
             CREATE RULE to_sql WITH (ack = '{ack}') AS INSERT INTO s SELECT message_id, payload.device AS device, payload.n AS n FROM \"factory/#\";",
            sqlite.display()
        );
        self.node(Config::cloud().rules(rules), "NODE")
    }
}

/// Edge, relay, cloud.
#[derive(Debug)]
pub(crate) struct Rig {
    pub(crate) edge: Node,
    pub(crate) relay: Relay,
    pub(crate) cloud: Node,
    folder: TempDir,
}

impl Rig {
    /// Starts all three; `edge` may change the edge's configuration.
    pub(crate) fn start(seed: &Seed, ack: &str, edge: impl FnOnce(Config) -> Config) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let sqlite = folder.path().join("sink.db");
        make_sqlite_table(&sqlite);
        let cloud = Node::start(&seed.cloud(&sqlite, ack));
        let relay = Relay::start_mqtt(cloud.addr());
        let edge = Node::start(&edge(seed.edge().uplink(relay.addr())));
        edge.wait_status(PATIENCE, "the uplink", uplink_is_up);
        Self { edge, relay, cloud, folder }
    }

    pub(crate) fn sqlite(&self) -> PathBuf {
        self.folder.path().join("sink.db")
    }

    pub(crate) fn folder(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    /// Everything heals; all messages are acknowledged, arrive, and are accounted for.
    pub(crate) fn settle(&self, fleet: Fleet, outcome: &mut Outcome) {
        let refused = fleet.refused();
        let ledger = fleet.finish(PATIENCE);
        outcome.refused += refused;
        self.drain(outcome);
        outcome.check(&ledger, &self.sqlite());
    }

    /// Nothing is on its way any more, and no row unaccounted for.
    pub(crate) fn drain(&self, outcome: &mut Outcome) {
        outcome.given_up += drained(&self.edge) + drained(&self.cloud);
    }
}

/// Waits until `node` has nothing on its way; how many rows it gave up.
pub(crate) fn drained(node: &Node) -> u64 {
    let status = node.wait_drained(PATIENCE);
    assert_accounts(&status);
    assert_eq!(count(&status["counters"], "lost_ends"), 0, "ends lost to a bug");
    outboxes(&status).iter().map(|outbox| count(outbox, "discarded") + count(outbox, "failed")).sum()
}

/// Messages that are sent and not acknowledged now.
pub(crate) fn withheld(fleet: &Fleet) -> u64 {
    let ledger = fleet.ledger();
    ledger.published() - ledger.acknowledged()
}

/// Waits until so many per cent of the fleet's messages are acknowledged.
pub(crate) fn at(fleet: &Fleet, per_cent: u64) {
    fleet.wait_acknowledged(fleet.total() * per_cent / 100, PATIENCE);
}
