//! The rounds: every row with every peer, one after the other, several times.
//!
//! # Design
//! - Peers take turns within a row, so that what the machine does meanwhile meets them alike; medians over the rounds.
//! - A broker is started anew for every round: memory of one row does not show in the next.
//! - Broker and generator have a core each, where there are two; nothing else should run.
//! - A round that fails (a broker that refuses, closes or does not start) is kept as an error in its row; the run goes on.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::de::DeserializeOwned;

use crate::load::{Outcome, Plan};
use crate::peer::Peer;
use crate::result::{Machine, PeerInfo, RowResult, Run, commit};
use crate::rows::Row;

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Rounds a row.
    pub rounds: usize,
    /// A smoke test.
    pub quick: bool,
    /// Rows whose name does not contain it are left out.
    pub only: Option<String>,
    /// This program, which is started again as load generator.
    pub generator: PathBuf,
}

/// An empty run of here and now.
#[must_use]
pub fn begin(options: &Options, peers: &[Peer], root: &Path) -> Run {
    let info =
        |peer: &Peer| PeerInfo { name: peer.name.clone(), version: peer.version(), command: peer.command() };
    Run {
        at: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        commit: commit(root),
        command: format!("ferrule-bench {}", std::env::args().skip(1).collect::<Vec<_>>().join(" "))
            .trim()
            .to_owned(),
        quick: options.quick,
        machine: Machine::here(),
        peers: peers.iter().map(info).collect(),
        rows: Vec::new(),
        carried: Vec::new(),
        variants: Vec::new(),
        workers: Vec::new(),
        idle: Vec::new(),
        handshakes: Vec::new(),
        storms: Vec::new(),
        sessions: Vec::new(),
        stored: Vec::new(),
        filters: None,
        rules: None,
        pipeline: Vec::new(),
    }
}

/// Every row that is asked for, with everyone who has to do it; `said` hears what is being done.
pub fn rounds(
    options: &Options,
    machine: &Machine,
    rows: &[Row],
    mut said: impl FnMut(&str),
) -> Vec<RowResult> {
    let mut results = Vec::new();
    for row in rows.iter().filter(|row| wanted(options, row.name)) {
        let result = |(peer, plan): &(Peer, Plan)| RowResult {
            row: row.name.to_owned(),
            peer: peer.name.clone(),
            command: peer.command(),
            load: plan.to_args().join(" "),
            target: row.target,
            rounds: Vec::new(),
            errors: Vec::new(),
        };
        let mut of_row: Vec<RowResult> = row.entries.iter().map(result).collect();
        for round in 1..=options.rounds {
            for ((peer, plan), result) in row.entries.iter().zip(&mut of_row) {
                said(&format!("{}, {}, round {round} of {}", row.name, peer.name, options.rounds));
                let cores = if row.pinned { (machine.broker_core, machine.load_core) } else { (None, None) };
                match one_round(options, cores, plan, peer) {
                    Ok(outcome) => result.rounds.push(outcome),
                    Err(error) => result.errors.push(error),
                }
            }
        }
        results.append(&mut of_row);
    }
    results
}

/// Whether a row is asked for.
#[must_use]
pub fn wanted(options: &Options, name: &str) -> bool {
    options.only.as_ref().is_none_or(|part| name.contains(part.as_str()))
}

fn one_round(
    options: &Options,
    (broker_core, load_core): (Option<usize>, Option<usize>),
    plan: &Plan,
    peer: &Peer,
) -> Result<Outcome, String> {
    let running = peer.start(broker_core).map_err(|error| error.to_string())?;
    let plan = Plan { addr: running.addr(), watch: vec![running.pid()], ..plan.clone() };
    generate(&options.generator, load_core, &plan)
}

/// Runs the load generator as a process of its own, on `core` alone when one is given.
///
/// # Errors
/// What it said, in words.
pub fn generate(generator: &Path, core: Option<usize>, plan: &Plan) -> Result<Outcome, String> {
    let args = std::iter::once("load".to_owned()).chain(plan.to_args());
    child(generator, core, args)
}

/// Runs this program as a child, on `core` alone when one is given, and reads the JSON that it prints.
///
/// # Errors
/// What it said, in words.
pub fn child<T: DeserializeOwned>(
    program: &Path,
    core: Option<usize>,
    args: impl IntoIterator<Item = String>,
) -> Result<T, String> {
    let mut command = match core {
        Some(core) => {
            let mut command = Command::new("taskset");
            command.args(["-c", &core.to_string()]).arg(program);
            command
        }
        None => Command::new(program),
    };
    answer(command.args(args))
}

/// Runs a command and reads the JSON that it prints.
///
/// # Errors
/// What it said, in words.
pub fn answer<T: DeserializeOwned>(command: &mut Command) -> Result<T, String> {
    let output = command.output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(if said.is_empty() { output.status.to_string() } else { said });
    }
    serde_json::from_slice(&output.stdout).map_err(|error| format!("the answer of a child: {error}"))
}
