//! A long run of [`churn`](crate::churn) against one node: what is sampled, what must be flat, and the report.
//!
//! # What is flat
//! Each second the node's resident memory and open files are read from /proc. The first third of the run warms up: clients
//! arrive, sessions with an expiry reach their steady number, vectors and SQLite's cache their sizes. The median of the last
//! fifth is then held against that of the second third ([`Curve::growth`]). Medians, since one batch more or less moves a single sample by megabytes.
//!
//! [`GROWTH_KIB`] says how much is flat. Between the middles of the two windows lie two fifths of the run. In the run of
//! `make soak` (600 s, 5,000 clients; 340 connects and 1,250 messages a second) that is 240 s, 81,000 connects and 300,000
//! messages: 4 MiB are 52 bytes a connect or 14 bytes a message, less than the smallest thing that could be forgotten for each
//! (a session is some hundred bytes, a receipt 40). And they are more than what the allocator's fragments and a growing map move
//! by themselves: a map of 5,000 entries doubles at once, by less than 1 MiB, and the first such run grew by 0.6 MiB, less each
//! minute. [`GROWTH_PERCENT`] is for a node whose steady memory is itself large.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::proc::output;

/// Growth of resident memory that counts as none, in KiB.
pub const GROWTH_KIB: u64 = 4 * 1_024;
/// The same in percent of what it was.
pub const GROWTH_PERCENT: u64 = 5;
/// Growth of open files that counts as none: connections that happen to be open at the sample, in percent.
pub const FILES_PERCENT: u64 = 10;

/// Resident memory of a process, in KiB.
///
/// # Panics
/// When the process has gone.
#[must_use]
pub fn rss_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))
        .unwrap_or_else(|error| panic!("process {pid}: {error}"));
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    number.unwrap_or_else(|| panic!("process {pid} has no VmRSS"))
}

/// Open files of a process.
///
/// # Panics
/// When the process has gone.
#[must_use]
pub fn open_files(pid: u32) -> u64 {
    let folder =
        std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap_or_else(|error| panic!("process {pid}: {error}"));
    folder.count() as u64
}

/// Samples at an even pace.
#[derive(Debug, Clone, Default)]
pub struct Curve(pub Vec<u64>);

impl Curve {
    /// The medians of the second third and of the last fifth.
    ///
    /// # Panics
    /// When there are too few samples for that.
    #[must_use]
    pub fn growth(&self) -> (u64, u64) {
        let n = self.0.len();
        assert!(n >= 15, "{n} samples are too few");
        (median(&self.0[n / 3..n * 2 / 3]), median(&self.0[n * 4 / 5..]))
    }

    /// At most `count` samples, evenly spread, the last one included.
    #[must_use]
    pub fn thinned(&self, count: usize) -> Vec<u64> {
        let n = self.0.len();
        (0..count.min(n)).map(|at| self.0[(at + 1) * n / count.min(n) - 1]).collect()
    }
}

fn median(samples: &[u64]) -> u64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() / 2]
}

/// The machine, in words that name no place: processors, memory, kernel version.
#[must_use]
pub fn machine() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let memory = field(&read("/proc/meminfo"), "MemTotal");
    let kib: u64 = memory.and_then(|text| text.split(' ').next()?.parse().ok()).unwrap_or(0);
    let release = read("/proc/sys/kernel/osrelease");
    let version: String = release.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    json!({
        "processors": std::thread::available_parallelism().map_or(0, usize::from),
        "model": field(&cpuinfo, "model name").unwrap_or_default(),
        "memory_gib": (kib + (1 << 19)) >> 20,
        "kernel": format!("Linux {}", version.trim_end_matches('.')),
    })
}

/// The day, and the commit of the checkout in `root`.
///
/// # Panics
/// When there is no git, or no checkout.
#[must_use]
pub fn day_and_commit(root: &Path) -> (String, String) {
    let day = output(Command::new("date").args(["-u", "+%F"]));
    let commit = output(Command::new("git").current_dir(root).args(["rev-parse", "--short=12", "HEAD"]));
    (day.trim().to_owned(), commit.trim().to_owned())
}

/// The results in `folder` whose file names begin with `prefix`, newest first.
///
/// # Panics
/// When a result cannot be read.
pub(crate) fn results(folder: &Path, prefix: &str) -> Vec<Value> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
        .unwrap_or_default();
    files.retain(|path: &std::path::PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(prefix) && name.ends_with(".json")
    });
    files.sort();
    files.reverse();
    let read = |path: std::path::PathBuf| {
        let text =
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    files.into_iter().map(read).collect()
}

/// A value of a result as it stands on a page.
pub(crate) fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The page that tells of all results in `folder`, newest first.
///
/// # Panics
/// When a result cannot be read.
#[must_use]
pub fn report(folder: &Path) -> String {
    let mut page = String::from(
        "<!-- Generated from tests/results by `make faults-report`. Do not edit. -->\n\n# Faults and long runs: what was done, and what came\n\n\
         The tests with faults (power cuts, kill -9, failing disks, a network that swallows everything, storms of repetitions, bad input) run in `make test`, and pass\n\
         or fail there; `make faults` runs them at length. `make fuzz` feeds arbitrary bytes to the codecs and to a whole shard, `make soak` is the long run.\n",
    );
    page.push_str(&crate::faults::report(folder));
    page.push_str(&crate::flash::report(folder));
    page.push_str(
        "\n## Soak\n\n\
         Clients that come and go in all manners (MQTT 3.1.1 and 5, clean and persistent sessions, wills, QoS 0, 1 and 2, take-overs, resets, garbage, not\n\
         reading for a while) on one `ferrule-edge`; three subscribers that stay see every acknowledged message, in order, QoS 2 exactly once, or the run fails.\n\
         Memory is the median of the second third of the run against that of the last fifth.\n",
    );
    let results = results(folder, "soak-");
    if results.is_empty() {
        page.push_str("\nNo result yet.\n");
    }
    results.iter().for_each(|result| section(&mut page, result));
    page
}

fn section(page: &mut String, result: &Value) {
    let machine = &result["machine"];
    let _ = write!(
        page,
        "\n### {}, commit {}\n\n{} processors ({}), {} GiB, {}.\n\n| | |\n|---|---|\n",
        text(&result["date"]),
        text(&result["commit"]),
        machine["processors"],
        text(&machine["model"]),
        machine["memory_gib"],
        text(&machine["kernel"]),
    );
    let rows = [
        ("duration", format!("{} s", result["seconds"])),
        ("clients", result["clients"].to_string()),
        ("connections made", result["connects"].to_string()),
        ("of them, sessions found again", result["resumed"].to_string()),
        ("ended by take-over, reset, garbage", {
            format!("{}, {}, {}", result["taken_over"], result["resets"], result["garbage"])
        }),
        ("messages published, acknowledged", format!("{}, {}", result["published"], result["acknowledged"])),
        ("messages delivered", result["sent"].to_string()),
        ("acknowledged and not delivered", result["missing"].to_string()),
        ("resident memory, then and at the end", {
            format!("{}, {} KiB", result["rss_kib"]["second_third"], result["rss_kib"]["last_fifth"])
        }),
        ("resident memory when all had gone", format!("{} KiB", result["rss_kib"]["after"])),
        ("open files before, at most, and when all had gone", {
            let files = &result["files"];
            format!("{}, {}, {}", files["before"], files["most"], files["after"])
        }),
        ("sessions and subscriptions when all had gone and expired", {
            format!("{}, {}", result["sessions_after"], result["subscriptions_after"])
        }),
    ];
    for (name, value) in rows {
        let _ = writeln!(page, "| {name} | {value} |");
    }
    let curve = result["rss_kib"]["curve"].as_array().cloned().unwrap_or_default();
    let curve: Vec<String> =
        curve.iter().map(|kib| format!("{:.1}", kib.as_f64().unwrap_or(0.0) / 1_024.0)).collect();
    let _ = writeln!(page, "\nResident memory over the run, MiB: {}.", curve.join(", "));
}

/// How often the node is sampled.
pub const SAMPLE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leak_is_growth_and_noise_is_none() {
        let flat = Curve((0..60).map(|n| if n < 15 { n * 100 } else { 2_000 + n % 7 }).collect());
        let (before, after) = flat.growth();
        assert!(before.abs_diff(after) <= 3);
        let leak = Curve((0..60).map(|n| 1_000 + n * 10).collect());
        assert_eq!(leak.growth(), (1_300, 1_540));
        assert_eq!(leak.thinned(3), [1_190, 1_390, 1_590]);
    }

    #[test]
    fn this_process_has_memory_and_files() {
        let pid = std::process::id();
        assert!(rss_kib(pid) > 100 && open_files(pid) > 2);
        assert!(machine()["processors"].as_u64().is_some_and(|count| count > 0));
    }
}
