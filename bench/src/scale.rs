//! What one process can hold without sockets: a shard of the broker, driven in memory.
//!
//! # Design
//! - **Sessions**: N clients, each with one subscription of its own: memory for each (the difference of resident memory, so
//!   with what the allocator needs), time until all are there. Then each subscribes to a topic that all have in common, and
//!   one publish to it reaches all. Flat growth is the same bytes and microseconds in every row.
//! - **Filters**: a million, of which one in a hundred matches what is published, against only those: CPU time a publish. The
//!   topics are `a/<i>/t`, each matched by one filter, half of them exact, half `a/<i>/+`. Of the others half are exact
//!   (`z/<i>/q/t`), a quarter `z/<i>/+/t`, and a quarter `+/<i>/x/#`, which share their first levels with what is published
//!   and must be ruled out on the third. 1,000 filters a client, the bound of the broker; only those of the one in a hundred
//!   have 100, so that deliveries go to 100 clients. The order of the topics is scattered: neighbours would stay in the cache.
//! - Each size is a process of its own: memory that one has given back does not serve the next.

use std::path::Path;
use std::time::Instant;

use clap::Args;
use ferrule_broker::Hook;
use serde::{Deserialize, Serialize};

use crate::procfs;
use crate::run::{Options, child, wanted};
use crate::shard::{Client, Driven};
use crate::wire::{self, Hello, Template, Version};

/// At most this ratio of CPU time a publish is aimed at, all filters to only those that match.
pub const FILTERS_RATIO_MAX: f64 = 1.5;
/// Clients that are let in within one turn: what a busy worker accepts.
const TURN_CLIENTS: usize = 256;
/// Messages within one turn: what a busy worker reads of one connection.
const TURN_MESSAGES: usize = 32;
/// Subscriptions of one client, at most: the broker's bound.
const CLIENT_FILTERS: usize = 1_000;
/// Topics and matching filters of one client in the filters' row.
const CLIENT_TOPICS: usize = 100;
const PAYLOAD: usize = 64;

/// The options of `ferrule-bench scale`.
#[derive(Debug, Default, Args)]
pub struct ScaleArgs {
    /// Only this many sessions, in this process; prints JSON.
    #[arg(long, conflicts_with = "filters")]
    pub sessions: Option<u32>,
    /// Only this many filters, in this process; prints JSON.
    #[arg(long, requires = "topics")]
    pub filters: Option<u32>,
    /// Topics published to, each matched by one of the filters.
    #[arg(long)]
    pub topics: Option<u32>,
    /// Small sizes: a smoke test.
    #[arg(long)]
    pub quick: bool,
}

/// One number of sessions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sessions {
    /// How many.
    pub sessions: u64,
    /// Resident memory of the process before them, in bytes.
    pub rss_bytes_before: u64,
    /// With all of them, each subscribed once.
    pub rss_bytes_after: u64,
    /// Time until all were connected and subscribed, in seconds.
    pub accept_seconds: f64,
    /// Time until all were subscribed to the common topic as well, in seconds.
    pub common_seconds: f64,
    /// Time of one publish to all, until the output of each was there, in seconds.
    pub reach_seconds: f64,
    /// Clients that got it.
    pub reached: u64,
}

/// One number of filters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Filters {
    /// How many.
    pub filters: u64,
    /// Messages published.
    pub publishes: u64,
    /// Messages delivered.
    pub delivered: u64,
    /// CPU time of the process for them, in nanoseconds.
    pub cpu_ns: u64,
    /// Resident memory with all filters, in bytes.
    pub rss_bytes: u64,
}

/// All filters and only those that match.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FiltersResult {
    /// Only those that match: several rounds.
    pub few: Vec<Filters>,
    /// All.
    pub all: Vec<Filters>,
    /// Why there are no rounds, or fewer.
    pub errors: Vec<String>,
}

/// A row of sessions, or why there is none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SessionsResult {
    /// How many.
    pub sessions: u64,
    /// What was found.
    pub found: Option<Sessions>,
    /// Why nothing.
    pub error: Option<String>,
}

impl Sessions {
    /// Resident memory of one, in bytes.
    #[must_use]
    pub fn bytes_each(&self) -> f64 {
        self.rss_bytes_after.saturating_sub(self.rss_bytes_before) as f64 / self.sessions as f64
    }
}

impl Filters {
    /// CPU time of one publish with its delivery, in microseconds.
    #[must_use]
    pub fn cpu_us(&self) -> f64 {
        self.cpu_ns as f64 / 1e3 / self.publishes as f64
    }
}

impl FiltersResult {
    /// CPU time a publish, all filters to only those that match; of each the best round, since everything else that
    /// happens can only add to it.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        Some(Self::best(&self.all)? / Self::best(&self.few)?)
    }

    /// The least CPU time a publish of the rounds, in microseconds.
    #[must_use]
    pub fn best(rounds: &[Filters]) -> Option<f64> {
        rounds.iter().map(Filters::cpu_us).min_by(f64::total_cmp)
    }
}

/// The rows of sessions that are asked for, each in a child.
pub fn sessions(options: &Options, core: Option<usize>, mut said: impl FnMut(&str)) -> Vec<SessionsResult> {
    let sizes: &[u64] = if options.quick { &[100, 1_000] } else { &[10_000, 100_000, 1_000_000] };
    let rows = sizes.iter().filter(|_| wanted(options, "sessions in one process")).map(|&sessions| {
        said(&format!("{sessions} sessions in one process"));
        let found = in_child(&options.generator, core, &[("sessions", sessions)]);
        let (found, error) = match found {
            Ok(found) => (Some(found), None),
            Err(error) => (None, Some(error)),
        };
        SessionsResult { sessions, found, error }
    });
    rows.collect()
}

/// The row of filters, each round in a child; none when it is not asked for.
pub fn filters(options: &Options, core: Option<usize>, mut said: impl FnMut(&str)) -> Option<FiltersResult> {
    let name = "filters in one process";
    if !wanted(options, name) {
        return None;
    }
    let (all, topics) = if options.quick { (1_000, 100) } else { (1_000_000, 10_000) };
    let mut result = FiltersResult { few: Vec::new(), all: Vec::new(), errors: Vec::new() };
    for round in 1..=options.rounds {
        for (count, into) in [(topics, &mut result.few), (all, &mut result.all)] {
            said(&format!("{count} {name}, round {round} of {}", options.rounds));
            match in_child(&options.generator, core, &[("filters", count), ("topics", topics)]) {
                Ok(found) => into.push(found),
                Err(error) => result.errors.push(error),
            }
        }
    }
    Some(result)
}

fn in_child<T: serde::de::DeserializeOwned>(
    program: &Path,
    core: Option<usize>,
    options: &[(&str, u64)],
) -> Result<T, String> {
    let options = options.iter().map(|(name, value)| format!("--{name}={value}"));
    child(program, core, std::iter::once("scale".to_owned()).chain(options))
}

/// `count` sessions in this process.
///
/// # Errors
/// When the shard does not do what it has to: the text says what.
pub fn measure_sessions(count: u32) -> Result<Sessions, String> {
    let mut driven = Driven::new(count as usize + 1);
    let mut clients: Vec<Client> = Vec::with_capacity(count as usize);
    let mut out = Vec::new();
    // What the driver itself needs is not the sessions': its one list is touched before.
    clients.resize(count as usize, driven.open().ok_or("the first client is refused")?);
    clients.clear();
    let pid = std::process::id();
    let rss_bytes_before = procfs::rss_bytes(pid);
    let start = Instant::now();
    let mut answers = 0;
    for from in (0..count).step_by(TURN_CLIENTS) {
        let batch = from..count.min(from + TURN_CLIENTS as u32);
        for index in batch.clone() {
            let client = driven.open().ok_or("a client is refused")?;
            clients.push(client);
            out.clear();
            hello(&mut out, &format!("device-{index:07}"));
            ensure(driven.receive(client, &out))?;
        }
        driven.turn(|_, bytes| answers += count_of(bytes, 0x20));
        for index in batch {
            out.clear();
            wire::subscribe(&mut out, Version::V3, &format!("device/{index:07}/commands"), 1);
            ensure(driven.receive(clients[index as usize], &out))?;
        }
        driven.turn(|_, bytes| answers += count_of(bytes, 0x90));
    }
    let accept_seconds = start.elapsed().as_secs_f64();
    let rss_bytes_after = procfs::rss_bytes(pid);
    if answers != 2 * u64::from(count) {
        return Err(format!("{answers} CONNACK and SUBACK for {count} clients"));
    }
    let start = Instant::now();
    for part in clients.chunks(TURN_CLIENTS) {
        for &client in part {
            out.clear();
            wire::subscribe(&mut out, Version::V3, "all/devices", 0);
            ensure(driven.receive(client, &out))?;
        }
        driven.turn(|_, _| {});
    }
    let common_seconds = start.elapsed().as_secs_f64();
    out.clear();
    Template::new(Version::V3, "all/devices", 0, PAYLOAD, "").write(&mut out, 0, &[]);
    let start = Instant::now();
    ensure(driven.receive(clients[0], &out))?;
    let mut reached = 0;
    driven.turn(|_, bytes| reached += count_of(bytes, 0x30));
    let reach_seconds = start.elapsed().as_secs_f64();
    if reached != u64::from(count) {
        return Err(format!("{reached} of {count} clients were reached"));
    }
    Ok(Sessions {
        sessions: u64::from(count),
        rss_bytes_before,
        rss_bytes_after,
        accept_seconds,
        common_seconds,
        reach_seconds,
        reached,
    })
}

/// `count` filters in this process, of which `topics` match what is published.
///
/// # Errors
/// As [`measure_sessions`].
pub fn measure_filters(count: u32, topics: u32) -> Result<Filters, String> {
    let others = count.checked_sub(topics).filter(|_| topics > 0).ok_or("fewer filters than topics")?;
    let mut driven = Driven::new(count as usize);
    let matching =
        (0..topics).map(|index| if index % 2 == 0 { topic(index) } else { format!("a/{index}/+") });
    subscribe_all(&mut driven, "matching", CLIENT_TOPICS, matching)?;
    let others = (0..others).map(|index| match index % 4 {
        0 | 2 => format!("z/{index}/q/t"),
        1 => format!("z/{index}/+/t"),
        // 10,000 topics, 247,500 such filters: each topic's second level is among them.
        _ => format!("+/{}/x/#", index / 4),
    });
    subscribe_all(&mut driven, "other", CLIENT_FILTERS, others)?;
    let rss_bytes = procfs::rss_bytes(std::process::id());

    let publisher = driven.open().ok_or("the publisher is refused")?;
    let mut out = Vec::new();
    hello(&mut out, "publisher");
    ensure(driven.receive(publisher, &out))?;
    driven.turn(|_, _| {});
    let templates: Vec<Template> =
        (0..topics).map(|index| Template::new(Version::V3, &topic(index), 0, PAYLOAD, "")).collect();
    // A stride without a common divisor with the number of topics comes to each of them once.
    let stride =
        (0..).map(|n| topics as usize * 5 / 8 + 1 + n).find(|&stride| gcd(stride, topics as usize) == 1);
    let stride = stride.unwrap_or(1);
    let mut at = 0;
    // Publishes to each topic so many times; how many messages that was.
    let mut publish = |driven: &mut Driven, times: usize| -> Result<u64, String> {
        let turns = (times * templates.len()).div_ceil(TURN_MESSAGES);
        let mut delivered = 0;
        for _ in 0..turns {
            out.clear();
            for _ in 0..TURN_MESSAGES {
                templates[at].write(&mut out, 0, &[]);
                at = (at + stride) % templates.len();
            }
            ensure(driven.receive(publisher, &out))?;
            driven.turn(|_, bytes| delivered += count_of(bytes, 0x30));
        }
        let sent = (turns * TURN_MESSAGES) as u64;
        if delivered == sent {
            Ok(sent)
        } else {
            Err(format!("{delivered} of {sent} messages were delivered"))
        }
    };
    publish(&mut driven, 5)?; // what is allocated at first is there then
    let before = procfs::cpu_ns(std::process::id());
    let publishes = publish(&mut driven, if topics < 10_000 { 10 } else { 50 })?;
    let cpu_ns = procfs::cpu_ns(std::process::id()).saturating_sub(before);
    Ok(Filters { filters: u64::from(count), publishes, delivered: publishes, cpu_ns, rss_bytes })
}

fn topic(index: u32) -> String {
    format!("a/{index}/t")
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Subscribes clients to all filters, `each` of them a client.
fn subscribe_all(
    driven: &mut Driven,
    name: &str,
    each: usize,
    filters: impl Iterator<Item = String>,
) -> Result<(), String> {
    let mut filters = filters.peekable();
    let mut out = Vec::new();
    for client in 0.. {
        if filters.peek().is_none() {
            break;
        }
        let conn = driven.open().ok_or("a client is refused")?;
        out.clear();
        hello(&mut out, &format!("{name}-{client}"));
        ensure(driven.receive(conn, &out))?;
        driven.turn(|_, _| {});
        out.clear();
        let mut asked = 0;
        for filter in filters.by_ref().take(each) {
            wire::subscribe(&mut out, Version::V3, &filter, 0);
            asked += 1;
        }
        ensure(driven.receive(conn, &out))?;
        let mut granted = 0;
        driven.turn(|_, bytes| granted += count_of(bytes, 0x90));
        if granted != asked {
            return Err(format!("{granted} of {asked} subscriptions were granted"));
        }
    }
    Ok(())
}

fn hello(out: &mut Vec<u8>, client_id: &str) {
    // A keep alive arms each client's timer, as devices do; nothing here lasts so long.
    wire::connect(
        out,
        &Hello { version: Version::V3, client_id, clean: true, keep_alive: 3_600, user: None },
    );
}

/// A client that is connected.
pub(crate) fn connect<H: Hook>(driven: &mut Driven<H>, client_id: &str) -> Result<Client, String> {
    let client = driven.open().ok_or("a client is refused")?;
    let mut out = Vec::new();
    hello(&mut out, client_id);
    ensure(driven.receive(client, &out))?;
    driven.turn(|_, _| {});
    Ok(client)
}

/// Subscribes a client at QoS 0.
pub(crate) fn subscribe<H: Hook>(driven: &mut Driven<H>, client: Client, filter: &str) -> Result<(), String> {
    let mut out = Vec::new();
    wire::subscribe(&mut out, Version::V3, filter, 0);
    ensure(driven.receive(client, &out))?;
    driven.turn(|_, _| {});
    Ok(())
}

pub(crate) fn ensure(taken: bool) -> Result<(), String> {
    if taken { Ok(()) } else { Err("the shard did not take a packet".to_owned()) }
}

/// How many frames of type `first` (without flags) `bytes` holds that are no refusals.
fn count_of(mut bytes: &[u8], first: u8) -> u64 {
    let mut count = 0;
    while let Ok(Some((packet, used))) = wire::next(bytes, Version::V3) {
        let refused = matches!(
            packet,
            wire::Incoming::Suback { reason: 0x80.. } | wire::Incoming::Connack { reason: 1.., .. }
        );
        count += u64::from(bytes[0] & 0xf0 == first && !refused);
        bytes = &bytes[used..];
    }
    count
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn sessions_are_all_there_and_reached() {
        let found = measure_sessions(600).unwrap();
        assert_eq!((found.sessions, found.reached), (600, 600));
        assert!(found.rss_bytes_after > 0 && found.accept_seconds > 0.0);
    }

    #[test]
    fn only_the_filters_of_a_topic_match() {
        for count in [200, 5_000] {
            let found = measure_filters(count, 200).unwrap();
            assert_eq!((found.filters, found.publishes, found.delivered), (u64::from(count), 2016, 2016));
        }
        assert!(measure_filters(5, 10).is_err());
    }
}
