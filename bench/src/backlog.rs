//! What a backlog costs: `ferrule-bench backlog`.
//!
//! # Design
//! Devices of the load generator (QoS 1, JSON, a window each) and an edge as users run it, its rule passing everything on to a cloud. Three parts a round:
//! - **offline**: there is no cloud, so each message is stored before it is acknowledged. CPU time of the edge from the first
//!   message until all are stored, a message. Beside it **bare SQLite**: the rows that the edge stored, taken from its file, inserted by
//!   this process, as many in a transaction as the edge had in a commit (WAL, `synchronous = FULL`); once into a table without an index, once into one
//!   with the edge's (queue, number).
//! - **drain**: the cloud starts; from the moment the uplink is up until the outbox is empty, messages a second.
//! - **live**: as many messages while cloud and uplink are there, from the first until the outbox is empty, messages a second.
//!
//! Nothing is pinned: there are more processes than cores. Live, the generator has its part of them; that a drain does not pay for.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use ferrule_store_sqlite::{Look, Options};
use ferrule_testkit::node::{count, outbox, uplink_is_up};
use ferrule_testkit::{Config, Node, port};
use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use crate::load::{Plan, Shape};
use crate::procfs;
use crate::result::{Machine, commit, median};
use crate::rows::base;
use crate::run::generate;

/// How long a part may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// The command line.
#[derive(Debug, Clone, Copy, Args)]
pub struct BacklogArgs {
    /// Messages of a backlog.
    #[arg(long, default_value_t = 1_000_000)]
    messages: u64,
    /// Bytes of a message.
    #[arg(long, default_value_t = 200)]
    size: u32,
    /// Rounds; medians are told.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

/// What a round found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Round {
    /// CPU time of the edge a message, in microseconds, without a cloud.
    pub offline_us: f64,
    /// Messages a commit had then.
    pub rows_per_commit: f64,
    /// CPU time a row of bare SQLite, in microseconds.
    pub sqlite_us: f64,
    /// The same with an index.
    pub indexed_us: f64,
    /// CPU time of the edge a message while it drains, in microseconds.
    pub drain_us: f64,
    /// Messages a second of the drain.
    pub drain_rate: f64,
    /// CPU time of the edge a message with a cloud, in microseconds.
    pub live_us: f64,
    /// Messages a second with a cloud.
    pub live_rate: f64,
}

/// A result file.
#[derive(Debug, Serialize, Deserialize)]
pub struct Found {
    /// When it was begun.
    pub at: String,
    /// Of the checkout.
    pub commit: String,
    /// As it was started.
    pub command: String,
    /// Where.
    pub machine: Machine,
    /// Of each backlog.
    pub messages: u64,
    /// In their order.
    pub rounds: Vec<Round>,
}

impl Found {
    /// Median of one figure.
    fn of(&self, figure: impl Fn(&Round) -> f64) -> f64 {
        median(self.rounds.iter().map(figure).collect()).unwrap_or(f64::NAN)
    }

    /// For people.
    #[must_use]
    pub fn table(&self) -> String {
        let offline = self.of(|r| r.offline_us / r.sqlite_us);
        let drain = self.of(|r| r.drain_rate / r.live_rate);
        format!(
            "offline: edge {:.2} us a message, bare SQLite {:.2} us a row, with an index {:.2} ({:.0} a commit): {offline:.2} (2)\n\
             drain:   {:.0}/s, {:.2} us a message; live {:.0}/s, {:.2} us: {drain:.2} (at least 0.8)\n",
            self.of(|r| r.offline_us),
            self.of(|r| r.sqlite_us),
            self.of(|r| r.indexed_us),
            self.of(|r| r.rows_per_commit),
            self.of(|r| r.drain_rate),
            self.of(|r| r.drain_us),
            self.of(|r| r.live_rate),
            self.of(|r| r.live_us),
        )
    }
}

/// Runs all of it and writes the result file into `bench/results/backlog`.
///
/// # Errors
/// What failed, in words.
pub fn run(
    args: &BacklogArgs,
    root: &Path,
    mut said: impl FnMut(&str),
) -> Result<(PathBuf, Found), Box<dyn std::error::Error>> {
    let mut found = Found {
        at: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        commit: commit(root),
        command: format!("ferrule-bench {}", std::env::args().skip(1).collect::<Vec<_>>().join(" ")),
        machine: Machine::here(),
        messages: args.messages,
        rounds: Vec::new(),
    };
    for n in 1..=args.rounds {
        said(&format!("round {n} of {}", args.rounds));
        found.rounds.push(round(args, &mut said)?);
    }
    let folder = root.join("bench/results/backlog");
    std::fs::create_dir_all(&folder)?;
    let path = folder.join(format!("{}-{}.json", found.at.get(..10).unwrap_or("undated"), found.commit));
    std::fs::write(&path, serde_json::to_string_pretty(&found)? + "\n")?;
    Ok((path, found))
}

fn round(args: &BacklogArgs, said: &mut impl FnMut(&str)) -> Result<Round, Box<dyn std::error::Error>> {
    let cloud_addr = port::free_addr();
    let rules = "CREATE RULE everything AS INSERT INTO cloud SELECT * FROM \"bench/#\";\n";
    let mut edge = Node::start(&Config::edge().rules(rules).uplink(cloud_addr));
    let pid = edge.process().pid();

    said("offline");
    let (begun_ns, _) = feed(args, &edge, pid)?;
    let status =
        edge.wait_status(PATIENCE, "all is stored", |s| count(outbox(s, "cloud"), "stored") == args.messages);
    let offline_us = cpu_us(pid, begun_ns, args.messages);
    let commits = count(&status["store"], "commits").max(1);
    let rows_per_commit = args.messages as f64 / commits as f64;

    said("drain");
    let mut cloud = Node::start(&Config::cloud().listen(cloud_addr));
    edge.wait_status(PATIENCE, "the uplink is up", uplink_is_up);
    let (begun, begun_ns) = (Instant::now(), procfs::tree_cpu_ns(pid));
    wait_delivered(&edge, args.messages);
    let drain_rate = args.messages as f64 / begun.elapsed().as_secs_f64();
    let drain_us = cpu_us(pid, begun_ns, args.messages);

    said("live");
    let (begun_ns, begun) = feed(args, &edge, pid)?;
    wait_delivered(&edge, 2 * args.messages);
    let live_rate = args.messages as f64 / begun.elapsed().as_secs_f64();
    let live_us = cpu_us(pid, begun_ns, args.messages);
    cloud.terminate();

    said("offline again, for the rows");
    let few = BacklogArgs { messages: args.messages.min(200_000), ..*args };
    feed(&few, &edge, pid)?;
    edge.wait_status(PATIENCE, "all is stored", |s| count(outbox(s, "cloud"), "stored") == few.messages);
    edge.terminate();
    let rows = stored(edge.data_dir())?;
    if rows.len() as u64 != few.messages {
        return Err(format!("{} of {} rows are in the edge's store", rows.len(), few.messages).into());
    }
    said("bare SQLite");
    let sqlite_us = insert(&rows, rows_per_commit as usize, "")?;
    let index = "CREATE UNIQUE INDEX row_by_seq ON row (queue, seq)";
    let indexed_us = insert(&rows, rows_per_commit as usize, index)?;
    Ok(Round { offline_us, rows_per_commit, sqlite_us, indexed_us, drain_us, drain_rate, live_us, live_rate })
}

/// Publishes all messages; the edge's CPU time when the first was sent, in nanoseconds, and when that was.
fn feed(args: &BacklogArgs, edge: &Node, pid: u32) -> Result<(u64, Instant), String> {
    let plan = Plan {
        addr: edge.addr(),
        shape: Shape::Publish,
        clients: 100,
        qos: 1,
        json: true,
        size: args.size,
        window: 32,
        messages: Some(args.messages),
        stall: 30.0,
        watch: vec![pid],
        ..base(false)
    };
    let generator = std::env::current_exe().map_err(|error| error.to_string())?;
    let outcome = generate(&generator, None, &plan)?;
    let ended = Instant::now();
    if outcome.acknowledged != args.messages {
        return Err(format!("{} of {} messages were acknowledged", outcome.acknowledged, args.messages));
    }
    let begun_ns = outcome.watched.first().map_or(0, |watched| watched.cpu_ns_start);
    Ok((begun_ns, ended.checked_sub(Duration::from_secs_f64(outcome.seconds)).unwrap_or(ended)))
}

fn cpu_us(pid: u32, since_ns: u64, messages: u64) -> f64 {
    procfs::tree_cpu_ns(pid).saturating_sub(since_ns) as f64 / 1e3 / messages as f64
}

fn wait_delivered(edge: &Node, messages: u64) {
    edge.wait_status(PATIENCE, "the outbox is empty", |s| count(outbox(s, "cloud"), "delivered") == messages);
}

/// A head and a body.
type Row = (Vec<u8>, Vec<u8>);

/// Heads and bodies, in their order, of a store that nobody has open.
fn stored(data_dir: &Path) -> Result<Vec<Row>, Box<dyn std::error::Error>> {
    let look = Look::open(data_dir, &Options::edge())?.ok_or("the edge has left no store")?;
    let mut all = Vec::new();
    for queue in look.queues()?.into_iter().filter(|summary| summary.queue.is_outbox()) {
        let mut from = queue.first;
        loop {
            let rows = look.rows(queue.queue, from)?;
            let Some(last) = rows.last() else { break };
            from = last.seq + 1;
            all.extend(rows.into_iter().map(|row| (row.head.to_vec(), row.body.to_vec())));
        }
    }
    look.close()?;
    Ok(all)
}

/// Microseconds of CPU time a row.
fn insert(rows: &[Row], per_commit: usize, index: &str) -> Result<f64, Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let mut file = Connection::open(folder.path().join("bare.db"))?;
    file.pragma_update(None, "journal_mode", "WAL")?;
    file.pragma_update(None, "synchronous", "FULL")?;
    file.execute_batch(&format!(
        "CREATE TABLE row (id INTEGER PRIMARY KEY, queue INTEGER NOT NULL, seq INTEGER NOT NULL,
                           head BLOB NOT NULL, body BLOB NOT NULL); {index}"
    ))?;
    /// As large as an outbox's.
    const QUEUE: i64 = 4_736_484_798_582_933_166;
    let mut seq = 0;
    let own = std::process::id();
    let begun_ns = procfs::cpu_ns(own);
    for some in rows.chunks(per_commit.max(1)) {
        let transaction = file.transaction()?;
        {
            let mut insert = transaction
                .prepare_cached("INSERT INTO row (queue, seq, head, body) VALUES (?1, ?2, ?3, ?4)")?;
            for (head, body) in some {
                seq += 1;
                insert.execute((QUEUE, seq, head, body))?;
            }
        }
        transaction.commit()?;
    }
    let spent = procfs::cpu_ns(own).saturating_sub(begun_ns);
    Ok(spent as f64 / 1e3 / rows.len().max(1) as f64)
}
