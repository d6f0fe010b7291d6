//! What a run leaves behind: `bench/results/<date>-<commit>.json`.
//!
//! A figure is only worth what stands beside it: the machine, the versions, the command lines, every single round.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::crowd::CrowdOutcome;
use crate::handshakes::HandshakesOutcome;
use crate::load::Outcome;
use crate::rows::Target;
use crate::rules::RulesResult;
use crate::scale::{FiltersResult, SessionsResult};
use crate::stored::StoredResult;

/// A whole run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Run {
    /// When it began, in RFC 3339, UTC.
    pub at: String,
    /// The commit that was built; `-dirty` behind it when there were changes.
    pub commit: String,
    /// How to have it again.
    pub command: String,
    /// True when it was a smoke test: its figures mean nothing.
    pub quick: bool,
    /// Where.
    pub machine: Machine,
    /// The brokers side by side.
    pub peers: Vec<PeerInfo>,
    /// One entry a row and peer.
    pub rows: Vec<RowResult>,
    /// Rows over TLS and WebSocket.
    pub carried: Vec<RowResult>,
    /// Ferrule plainly, and with rules, access filters, sessions.
    pub variants: Vec<RowResult>,
    /// One worker and several.
    pub workers: Vec<RowResult>,
    /// Idle connections, one entry a peer.
    pub idle: Vec<IdleResult>,
    /// TLS handshakes, one entry a row and peer.
    pub handshakes: Vec<HandshakesResult>,
    /// Others in a storm, one entry a row and peer.
    pub storms: Vec<StormResult>,
    /// Sessions in one process without sockets.
    pub sessions: Vec<SessionsResult>,
    /// Starts on a store with many sessions.
    #[serde(default)]
    pub stored: Vec<StoredResult>,
    /// Filters in one process without sockets.
    pub filters: Option<FiltersResult>,
    /// What rules cost.
    #[serde(default)]
    pub rules: Option<RulesResult>,
    /// Edge, cloud, sink.
    pub pipeline: Vec<PipelineResult>,
}

/// The machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    /// CPU model.
    pub cpu: String,
    /// Logical CPUs.
    pub cores: usize,
    /// Kernel release.
    pub kernel: String,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// The core of the broker, when it is pinned.
    pub broker_core: Option<usize>,
    /// The core of the load generator, when it is pinned.
    pub load_core: Option<usize>,
    /// Load average over one minute when the run began: above 0.5 somebody else was working.
    pub load_average: f64,
}

/// A broker of the table.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PeerInfo {
    /// Its name.
    pub name: String,
    /// What it says of itself.
    pub version: String,
    /// How it was started.
    pub command: String,
}

/// One row with one peer, all rounds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RowResult {
    /// The row's name.
    pub row: String,
    /// The peer's name.
    pub peer: String,
    /// How it was started.
    pub command: String,
    /// The generator's options.
    pub load: String,
    /// What is aimed at, for Ferrule.
    pub target: Option<Target>,
    /// The rounds that came to an end.
    pub rounds: Vec<Outcome>,
    /// Why others did not.
    pub errors: Vec<String>,
}

/// The row of idle connections with one peer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct IdleResult {
    /// The row's name.
    pub row: String,
    /// The peer's name.
    pub peer: String,
    /// The generator's options.
    pub load: String,
    /// Bytes a connection that are aimed at, for Ferrule.
    pub bytes_max: Option<f64>,
    /// The generator's outcome.
    pub outcome: Option<CrowdOutcome>,
    /// Why there is none.
    pub error: Option<String>,
}

/// A row of handshakes with one peer, all rounds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HandshakesResult {
    /// The row's name.
    pub row: String,
    /// The peer's name.
    pub peer: String,
    /// The generator's options.
    pub load: String,
    /// The rounds that came to an end.
    pub rounds: Vec<HandshakesOutcome>,
    /// Why others did not.
    pub errors: Vec<String>,
}

/// A storm with one peer, all rounds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StormResult {
    /// The row's name.
    pub row: String,
    /// The peer's name.
    pub peer: String,
    /// The others alone.
    pub quiet: Vec<Outcome>,
    /// The others in the storm.
    pub storm: Vec<Outcome>,
    /// How many of the storm were served a second.
    pub served: Vec<f64>,
    /// Why other rounds did not come to an end.
    pub errors: Vec<String>,
}

/// One row through edge, cloud and sink.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PipelineResult {
    /// What it goes through.
    pub row: String,
    /// The generator's options.
    pub load: String,
    /// Messages acknowledged to the devices.
    pub messages: u64,
    /// From the first message until every outbox was empty, in seconds.
    pub seconds: f64,
    /// CPU time a message of each process, in microseconds, in the order of the way.
    pub cpu_us: Vec<(String, f64)>,
    /// The generator's outcome.
    pub outcome: Option<Outcome>,
    /// Why there is none.
    pub error: Option<String>,
}

/// Why a result file is not read or written.
#[derive(Debug, Error)]
pub enum ResultError {
    /// The folder holds none.
    #[error("no result file in {0}: `make bench` writes one")]
    None(PathBuf),
    /// The file system says no.
    #[error("{path}: {error}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is not a result file of this version.
    #[error("{path}: {error}")]
    Json {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: serde_json::Error,
    },
}

impl Run {
    /// Writes it into `folder`; the file's path.
    ///
    /// # Errors
    /// [`ResultError::Io`]
    pub fn write(&self, folder: &Path) -> Result<PathBuf, ResultError> {
        let day = self.at.get(..10).unwrap_or("undated");
        let path = folder.join(format!("{day}-{}.json", self.commit));
        let failed = |error| ResultError::Io { path: path.clone(), error };
        fs::create_dir_all(folder).map_err(failed)?;
        let mut text = serde_json::to_string_pretty(self).map_err(|error| failed(error.into()))?;
        text.push('\n');
        fs::write(&path, text).map_err(failed)?;
        Ok(path)
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`ResultError::Io`], [`ResultError::Json`]
    pub fn read(path: &Path) -> Result<Self, ResultError> {
        let text =
            fs::read_to_string(path).map_err(|error| ResultError::Io { path: path.to_owned(), error })?;
        serde_json::from_str(&text).map_err(|error| ResultError::Json { path: path.to_owned(), error })
    }

    /// The result in `folder` that was begun last and was no smoke test, and its path.
    ///
    /// # Errors
    /// [`ResultError`]
    pub fn newest(folder: &Path) -> Result<(PathBuf, Self), ResultError> {
        let io = |error| ResultError::Io { path: folder.to_owned(), error };
        let mut newest: Option<(PathBuf, Self)> = None;
        for entry in fs::read_dir(folder).map_err(io)? {
            let path = entry.map_err(io)?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            // One of another version is none of this one's: it may lack what the tables need.
            let Ok(run) = Self::read(&path) else { continue };
            if !run.quick && newest.as_ref().is_none_or(|(_, other)| other.at < run.at) {
                newest = Some((path, run));
            }
        }
        newest.ok_or_else(|| ResultError::None(folder.to_owned()))
    }
}

impl IdleResult {
    /// Resident memory of the broker for one connection, in bytes.
    #[must_use]
    pub fn bytes_each(&self) -> Option<f64> {
        let outcome = self.outcome.as_ref()?;
        let watched = outcome.watched?;
        let grown = watched.rss_bytes_held.saturating_sub(watched.rss_bytes_before);
        (outcome.ready > 0).then(|| grown as f64 / outcome.ready as f64)
    }
}

impl HandshakesResult {
    /// CPU time of the server for one handshake, in microseconds: median of the rounds.
    #[must_use]
    pub fn cpu_us(&self) -> Option<f64> {
        median(self.rounds.iter().filter_map(HandshakesOutcome::cpu_us).collect())
    }
}

impl StormResult {
    /// The others' p99 alone and in the storm, in microseconds: medians of the rounds.
    #[must_use]
    pub fn p99_us(&self) -> Option<(f64, f64)> {
        let p99 = |rounds: &[Outcome]| median(rounds.iter().map(|round| round.latency.p99_us).collect());
        Some((p99(&self.quiet)?, p99(&self.storm)?))
    }

    /// Messages of the others that were lost in the storm, over all rounds.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.storm.iter().map(|round| round.lost).sum()
    }
}

impl RowResult {
    /// CPU time of the broker for one end, in microseconds: median of the rounds.
    #[must_use]
    pub fn cpu_us(&self) -> Option<f64> {
        self.median(|round| {
            let watched = round.watched.first()?;
            Some(watched.cpu_ns_end.saturating_sub(watched.cpu_ns_start) as f64 / 1e3 / round.ends as f64)
        })
    }

    /// The generator's own CPU time for one end, in microseconds: median of the rounds.
    #[must_use]
    pub fn own_cpu_us(&self) -> Option<f64> {
        self.median(|round| Some(round.own_cpu_ns as f64 / 1e3 / round.ends as f64))
    }

    /// Ends a second: median of the rounds.
    #[must_use]
    pub fn rate(&self) -> Option<f64> {
        self.median(|round| Some(round.ends as f64 / round.seconds))
    }

    /// Median over the rounds of what `figure` takes from each.
    pub fn median(&self, figure: impl Fn(&Outcome) -> Option<f64>) -> Option<f64> {
        median(self.rounds.iter().filter(|round| round.ends > 0).filter_map(figure).collect())
    }

    /// Sum over the rounds.
    pub fn sum(&self, figure: impl Fn(&Outcome) -> u64) -> u64 {
        self.rounds.iter().map(figure).sum()
    }
}

/// The middle one; of an even number the mean of the two in the middle.
#[must_use]
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    let upper = *values.get(half)?;
    Some(if values.len() % 2 == 1 { upper } else { f64::midpoint(values[half - 1], upper) })
}

impl Machine {
    /// This one; cores are chosen when there are two and `taskset` to pin to them.
    #[must_use]
    pub fn here() -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| -> Option<String> {
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let pinned = cores > 1 && crate::peer::find("taskset").is_some();
        let memory = field(&text("/proc/meminfo"), "MemTotal");
        let kib: u64 = memory.and_then(|kib| kib.split_whitespace().next()?.parse().ok()).unwrap_or_default();
        Self {
            cpu: field(&text("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".to_owned()),
            cores,
            kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
            memory_mib: kib / 1024,
            broker_core: pinned.then_some(0),
            load_core: pinned.then_some(1),
            load_average: text("/proc/loadavg")
                .split(' ')
                .next()
                .and_then(|word| word.parse().ok())
                .unwrap_or(0.0),
        }
    }
}

/// The commit of the checkout that `folder` is in, short, with `-dirty` behind it when files differ.
#[must_use]
pub fn commit(folder: &Path) -> String {
    let git = |args: &[&str]| -> Option<String> {
        let output = Command::new("git").arg("-C").arg(folder).args(args).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=10", "HEAD"]) else { return "unknown".to_owned() };
    // The run's own products do not make the build another one.
    let changes = git(&[
        "status",
        "--porcelain",
        "--",
        ".",
        ":!bench/results",
        ":!docs/benchmarks.md",
        ":!docs/wire.md",
    ]);
    if changes.is_none_or(|changes| changes.is_empty()) { commit } else { format!("{commit}-dirty") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0]), Some(3.0));
        assert_eq!(median(vec![9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 9.0]), Some(3.0));
    }

    #[test]
    fn the_machine_is_known() {
        let machine = Machine::here();
        assert!(machine.cores > 0 && machine.memory_mib > 0 && !machine.kernel.is_empty(), "{machine:?}");
    }
}
