//! What several nodes cost, and how soon the sessions of a dead one are there again; writes a result file.
//!
//! # Design
//! - Nodes are `ferrule-cloud` with one worker each and one PostgreSQL between them, configured as users do it.
//! - **CPU a delivery** ([`cost`]): ten pairs as in the rows of brokers; all at a node without a cluster, all at one node of two, and publishers at one of two and
//!   subscribers at the other. The nodes share the broker's core, the generator has the other, in all three alike; the sum of the nodes' CPU time counts.
//! - **A subscribe's barrier** ([`cost`]): SUBACKs at one of three nodes, one after the other, while 16 KiB messages go from each node to the next. Nodes and generators share both cores.
//! - **A route's memory** ([`cost`]): resident memory of a node that learns so many filters of another, and of the other, which has them.
//! - **The link** ([`cost`]): bytes at the plug of a node in a namespace (root), its clients and database being on another cable: idle, with publishes that match here alone, and with
//!   deliveries elsewhere.
//! - **Sessions of a dead node** ([`sessions`]): kill -9 of the node that all have been at, and the time from then on.
//!
//! A figure that fails is kept with its error, and the rest goes on.

mod cost;
mod sessions;
mod site;

use std::fmt::Write as _;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::result::{Machine, commit, median};
use crate::run::Options;

/// CPU of two nodes for a delivery, to that of one: at most.
const RATIO_MAX: f64 = 2.2;
/// A SUBACK's p99 in milliseconds: at most.
const SUBACK_MS_MAX: f64 = 5.0;
/// Seconds until sessions are there again: at most.
const BACK_S_MAX: f64 = 10.0;
/// Bytes on the link of a publish that matches here alone: as good as none. What is idle is measured apart and varies by some packets.
const NOWHERE_BYTES_MAX: f64 = 1.0;

/// The options of `ferrule-bench cluster`.
#[derive(Debug, Clone, Args)]
pub struct ClusterArgs {
    /// Rounds.
    #[arg(long, default_value_t = 2)]
    pub rounds: usize,
    /// A smoke test: its result is not used by `report`.
    #[arg(long)]
    pub quick: bool,
    /// Only parts whose name contains this (cost, suback, route, link, sessions); its result is not used by `report`.
    #[arg(long)]
    pub only: Option<String>,
}

/// One figure, all rounds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// What it is.
    pub name: String,
    /// In what.
    pub unit: String,
    /// What is aimed at, at most.
    pub at_most: Option<f64>,
    /// Of each round.
    pub values: Vec<f64>,
}

/// A run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClusterRun {
    /// When it began.
    pub at: String,
    /// The commit that was built.
    pub commit: String,
    /// How to have it again.
    pub command: String,
    /// Where.
    pub machine: Machine,
    /// In the order of measuring.
    pub figures: Vec<Figure>,
    /// Why others are missing.
    pub errors: Vec<String>,
}

/// What a part finds: name, unit, target, figure.
type Found = Vec<(String, &'static str, Option<f64>, f64)>;
type Part = fn(&Options, &Machine) -> Result<Found, String>;

const PARTS: [(&str, Part); 5] = [
    ("cost", cost::deliveries),
    ("suback", cost::subacks),
    ("route", cost::routes),
    ("link", cost::link),
    ("sessions", sessions::of_a_dead_node),
];

/// Runs all parts that are asked for, and writes the result.
///
/// # Errors
/// Those of writing.
pub fn run(
    args: &ClusterArgs,
    generator: PathBuf,
    root: &Path,
    mut said: impl FnMut(&str),
) -> io::Result<(PathBuf, ClusterRun)> {
    let mut run = ClusterRun {
        at: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        commit: commit(root),
        command: format!("ferrule-bench {}", std::env::args().skip(1).collect::<Vec<_>>().join(" ")),
        machine: Machine::here(),
        figures: Vec::new(),
        errors: Vec::new(),
    };
    let rounds = if args.quick { 1 } else { args.rounds };
    let options = Options { rounds, quick: args.quick, only: None, generator };
    let machine = run.machine.clone();
    for (name, part) in PARTS {
        if args.only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
            continue;
        }
        for n in 1..=rounds {
            said(&format!("{name}, round {n} of {rounds}"));
            // Testkit panics where a set-up fails: that is this part's error.
            let found = catch_unwind(AssertUnwindSafe(|| part(&options, &machine)));
            match found.unwrap_or_else(|panic| Err(crate::pipeline::text_of(panic.as_ref()))) {
                Ok(found) => found.into_iter().for_each(|figure| run.add(figure)),
                Err(error) => run.errors.push(format!("{name}, round {n}: {error}")),
            }
        }
    }
    let part = args.quick || args.only.is_some();
    let folder = root.join(if part { "target" } else { "bench/results/cluster" });
    std::fs::create_dir_all(&folder)?;
    let day = run.at.get(..10).unwrap_or("undated");
    let path = folder.join(format!("{day}-{}{}.json", run.commit, if part { "-cluster" } else { "" }));
    std::fs::write(&path, serde_json::to_string_pretty(&run)? + "\n")?;
    Ok((path, run))
}

impl ClusterRun {
    fn add(&mut self, (name, unit, at_most, value): (String, &'static str, Option<f64>, f64)) {
        match self.figures.iter_mut().find(|figure| figure.name == name && figure.unit == unit) {
            Some(figure) => figure.values.push(value),
            None => self.figures.push(Figure { name, unit: unit.to_owned(), at_most, values: vec![value] }),
        }
    }

    /// The newest in a folder, and its file's name; none when there is none.
    #[must_use]
    pub fn newest(folder: &Path) -> Option<(String, Self)> {
        let read = |path: PathBuf| {
            let run: Self = serde_json::from_str(&std::fs::read_to_string(&path).ok()?).ok()?;
            Some((path.file_name()?.to_string_lossy().into_owned(), run))
        };
        let entries = std::fs::read_dir(folder).ok()?.flatten();
        entries.filter_map(|entry| read(entry.path())).max_by(|one, other| one.1.at.cmp(&other.1.at))
    }

    /// Its table, in Markdown.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text =
            String::from("| what | figure | unit | at most | rounds |\n| --- | --- | --- | --- | --- |\n");
        for Figure { name, unit, at_most, values } in &self.figures {
            let digits = if unit == "s" || unit == "us" || unit == "ratio" || unit == "ms" { 2 } else { 0 };
            let middle = median(values.clone()).unwrap_or(0.0);
            let bound = at_most.map_or("-".to_owned(), |most| {
                format!("{most:.digits$} {}", if middle <= most { "met" } else { "MISSED" })
            });
            let all: Vec<String> = values.iter().map(|value| format!("{value:.digits$}")).collect();
            let _ = writeln!(text, "| {name} | {middle:.digits$} | {unit} | {bound} | {} |", all.join(", "));
        }
        for error in &self.errors {
            let _ = writeln!(text, "\n{}", error.replace('\n', " | "));
        }
        text
    }

    /// The part of docs/benchmarks.md.
    #[must_use]
    pub fn section(&self, source: &str) -> String {
        format!(
            "\n## Several nodes\n\n\
             From `bench/results/cluster/{source}` by `make bench-cluster`: commit {}, {}, load average {:.2} at the start. `ferrule-cloud` with one worker a node, and one PostgreSQL. CPU a delivery: ten \
             pairs, the nodes on one core, the generator on the other; the nodes' sum. SUBACKs, one after the other, at one of three nodes, alone and while 16 KiB messages go from each node to the next. \
             Bytes of the link as one node's plug counts them, both ways, Ethernet's headers included. Sessions: seconds from the kill -9 of the node that had them all, with two others. Each client of \
             the connected ones comes back by itself, a hundred at a time, and must be told that its session is there; to each absent one a message is published until it is acknowledged. \
             Both cores serve nodes, database and clients alike.\n\n{}",
            self.commit,
            self.at,
            self.machine.load_average,
            self.table()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_the_middle_of_its_rounds_against_its_target() {
        let mut run = ClusterRun {
            at: "2026-11-30T00:00:00Z".into(),
            commit: "c".into(),
            command: String::new(),
            machine: Machine::here(),
            figures: Vec::new(),
            errors: vec!["link, round 1:\nno".into()],
        };
        for value in [3.0, 2.0, 2.1] {
            run.add(("a".into(), "ratio", Some(2.2), value));
        }
        run.add(("b".into(), "bytes", None, 104.6));
        let table = run.table();
        assert!(table.contains("| a | 2.10 | ratio | 2.20 met | 3.00, 2.00, 2.10 |"), "{table}");
        assert!(table.contains("| b | 105 | bytes | - | 105 |"), "{table}");
        assert!(table.ends_with("link, round 1: | no\n"), "{table}");
    }
}
