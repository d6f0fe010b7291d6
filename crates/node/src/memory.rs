//! Memory: what the machine has, what the process uses, and the most that the limits let clients make it use.
//!
//! # What the worst case counts
//! Each part is the product of its limits, as if all clients went to theirs at once; docs/limits.md shows the formulas. A message
//! that waits for several is in memory once and counted for each. Not counted, since it passes: the packet that each
//! connection may be given past its bound, and what is on its way from hand to hand within a turn; and the kernel's
//! socket buffers. `memory_max` is there for what no sum foresees.

use crate::config::{BrokerConfig, show_size};
use ferrule_broker::config::FLOOR;
use std::fmt;

/// What a node is made of, beside its configuration.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Threads that serve clients.
    pub workers: u64,
    /// Connections that the process may have.
    pub connections: u64,
    /// Of them, by TLS or WebSocket.
    pub layered: u64,
    /// Sinks and the uplink.
    pub outboxes: u64,
    /// Bytes of one outbox in memory, at most.
    pub outbox_bytes: u64,
    /// Bytes of one session's queue in memory, at most, while the disk takes rows.
    pub session_bytes: u64,
    /// Bytes that the machine has, or may be used of it.
    pub machine: Option<u64>,
}

/// One part of the worst case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// What it is.
    pub name: &'static str,
    /// Bytes.
    pub bytes: u64,
    /// The key to lower; none: there is none.
    pub key: Option<&'static str>,
}

/// The most memory that the limits let clients make the process use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorstCase {
    /// The largest first.
    pub parts: Vec<Part>,
    /// What the machine has.
    pub machine: Option<u64>,
}

/// A connection that does nothing: shard, socket, session, one subscription. Measured: 614 bytes.
const CONNECTION: u64 = 1 << 10;
/// What TLS and WebSocket need in addition: a quiet TLS connection keeps 12 KiB at most; encoded and not taken by the
/// socket, 64 KiB.
const LAYERS: u64 = (12 + 64) << 10;
/// A session without a connection and its queue, empty.
const SESSION: u64 = 1 << 10;
/// Read buffer, output buffers kept for the next turn, vectors.
const WORKER: u64 = 8 << 20;
/// Between each two workers, in each direction.
const RING: u64 = 4 << 20;
/// Rows on their way to the disk, twice: as rows and as SQLite has them; its cache.
const STORE: u64 = 2 * (64 << 20) + (16 << 20);
/// Argon2's ordinary memory, for each of the node's two threads.
const PASSWORDS: u64 = 2 * (19 << 20);
/// The program, its rules and threads.
const PROGRAM: u64 = 32 << 20;

/// `max_buffered_bytes` as it is in force.
#[must_use]
pub fn buffered_max(config: &BrokerConfig, machine: Option<u64>) -> u64 {
    /// Where nothing is known of the machine.
    const UNKNOWN: u64 = 256 << 20;
    match (config.mqtt.max_buffered_bytes, machine) {
        (0, Some(machine)) => machine / 2,
        (0, None) => UNKNOWN,
        (bytes, _) => bytes,
    }
}

/// `memory_max` as it is in force; none where nothing is known of the machine and nothing is configured.
#[must_use]
pub fn memory_max(config: &BrokerConfig, machine: Option<u64>) -> Option<u64> {
    match config.node.memory_max {
        0 => machine.map(|machine| machine / 4 * 3),
        bytes => Some(bytes),
    }
}

impl WorstCase {
    /// Of a node.
    #[must_use]
    pub fn new(config: &BrokerConfig, shape: &Shape) -> Self {
        let mqtt = &config.mqtt;
        let of = shape.workers;
        let part =
            |name, bytes, key: &'static str| Part { name, bytes, key: Some(key).filter(|k| !k.is_empty()) };
        let sessions = mqtt.max_sessions.saturating_mul(SESSION.saturating_add(shape.session_bytes));
        let passwords = if config.users.is_empty() { 0 } else { PASSWORDS };
        let own = WORKER * of + STORE + RING * of * of.saturating_sub(1) + passwords + PROGRAM;
        let layers = shape.layered.saturating_mul(LAYERS);
        let connections = shape.connections.saturating_mul(CONNECTION + FLOOR as u64).saturating_add(layers);
        let mut parts = vec![
            part("connections", connections, "max_connections"),
            part("buffers", buffered_max(config, shape.machine), "max_buffered_bytes"),
            part("sessions", sessions, "max_sessions"),
            // Each worker knows all filters, in the end, and all retained messages.
            part("subscriptions", mqtt.subscriptions_max_bytes.saturating_mul(of), "subscriptions_max_bytes"),
            part("retained messages", mqtt.retained_max_bytes.saturating_mul(of), "retained_max_bytes"),
            part("delayed messages", mqtt.delayed_max_bytes, "delayed_max_bytes"),
            part("outboxes", shape.outboxes.saturating_mul(shape.outbox_bytes), ""),
            part("the broker itself", own, ""),
        ];
        parts.sort_by_key(|part| std::cmp::Reverse(part.bytes));
        Self { parts, machine: shape.machine }
    }

    /// All parts together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.parts.iter().fold(0, |sum, part| sum.saturating_add(part.bytes))
    }

    /// The keys that would have to be lowered for it to fit the machine, the largest first; none when it does.
    #[must_use]
    pub fn too_high(&self) -> Vec<&'static str> {
        let Some(machine) = self.machine else { return Vec::new() };
        let mut rest = self.total();
        let is_over = |part: &&Part| {
            let over = rest > machine;
            rest -= part.bytes;
            over
        };
        self.parts.iter().take_while(is_over).filter_map(|part| part.key).collect()
    }
}

/// One line: the sum, its largest parts, and what to lower where it is more than the machine has.
impl fmt::Display for WorstCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LARGEST: usize = 4;
        write!(f, "at most {} if all clients went to their limits:", rough(self.total()))?;
        for (n, part) in self.parts.iter().take(LARGEST).enumerate() {
            write!(f, "{} {} {}", if n == 0 { "" } else { "," }, part.name, rough(part.bytes))?;
        }
        match (self.machine, self.too_high()) {
            (None, _) => Ok(()),
            (Some(machine), keys) if keys.is_empty() => write!(f, "; of {}", rough(machine)),
            (Some(machine), keys) => {
                write!(f, "; here are {}: to make sure, lower {}", rough(machine), keys.join(", "))
            }
        }
    }
}

/// A size as one says it: three digits at most.
fn rough(bytes: u64) -> String {
    let unit = [1 << 30, 1 << 20, 1 << 10].into_iter().find(|unit| bytes >= 10 * unit).unwrap_or(1);
    show_size(bytes / unit * unit)
}

/// Bytes of memory that this process may use: the machine's, or what its control groups leave it.
#[must_use]
pub fn machine() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let total = read("/proc/meminfo").and_then(|text| mem_total(&text));
    let groups = read("/proc/self/cgroup").unwrap_or_default();
    // Each level above bounds it too; in a container its own group is the root of what it sees.
    let bounds = |controller: &str, root: &str, file: &str| {
        let path = group_path(&groups, controller).unwrap_or("/").trim_end_matches('/');
        let levels = path.match_indices('/').map(|(at, _)| &path[..at]).chain([path]);
        levels.filter_map(|level| read(&format!("{root}{level}/{file}"))?.trim().parse::<u64>().ok()).min()
    };
    let second = bounds("", "/sys/fs/cgroup", "memory.max");
    let first = bounds("memory", "/sys/fs/cgroup/memory", "memory.limit_in_bytes");
    [total, second, first].into_iter().flatten().min()
}

/// `MemTotal` of /proc/meminfo, in bytes.
fn mem_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

/// The path of the group of a controller, from /proc/self/cgroup; of version 2, whose only group has none, with an empty name.
fn group_path<'a>(groups: &'a str, controller: &str) -> Option<&'a str> {
    groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        controllers.split(',').any(|name| name == controller).then_some(path)
    })
}

/// Bytes of memory that this process has: resident set size.
#[must_use]
pub fn resident() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Whether the process has more memory than it may. Back under nine tenths it has enough again: at the line itself it would
/// change its mind with every look.
#[derive(Debug)]
pub struct Gauge {
    max: u64,
    over: bool,
}

impl Gauge {
    /// Not over yet.
    #[must_use]
    pub fn new(max: u64) -> Self {
        Self { max, over: false }
    }

    /// Another bound from now on.
    pub fn set_max(&mut self, max: u64) {
        self.max = max;
    }

    /// A look at what it has: whether it is over, if that is new.
    pub fn look(&mut self, resident: u64) -> Option<bool> {
        let over = if self.over { resident >= self.max / 10 * 9 } else { resident >= self.max };
        (over != std::mem::replace(&mut self.over, over)).then_some(over)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::config::EdgeConfig;

    fn worst(change: impl FnOnce(&mut BrokerConfig, &mut Shape)) -> WorstCase {
        let mut config = EdgeConfig::plain("127.0.0.1:1".parse().unwrap(), "d").broker;
        let mut shape = Shape {
            workers: 2,
            connections: 1_000,
            layered: 100,
            outboxes: 3,
            outbox_bytes: 18 << 20,
            session_bytes: 192 << 10,
            machine: Some(4 << 30),
        };
        change(&mut config, &mut shape);
        WorstCase::new(&config, &shape)
    }

    #[test]
    fn the_sum_and_its_parts() {
        let case = worst(|_, _| {});
        let bytes = |name| case.parts.iter().find(|part| part.name == name).unwrap().bytes;
        assert_eq!(bytes("connections"), (1_000 * 5 + 100 * 76) << 10);
        assert_eq!(bytes("buffers"), 2 << 30);
        assert_eq!(bytes("sessions"), 10_000 * 193 * 1_024);
        assert_eq!((bytes("subscriptions"), bytes("retained messages")), (128 << 20, 128 << 20));
        assert_eq!(bytes("outboxes"), 54 << 20);
        assert_eq!(case.total(), case.parts.iter().map(|part| part.bytes).sum::<u64>());
        assert!(case.parts.is_sorted_by(|a, b| a.bytes >= b.bytes));
    }

    #[test]
    fn what_is_too_high_is_named_as_far_as_it_must_be_lowered() {
        let text = worst(|_, _| {}).to_string();
        let expected = "at most 4519MiB if all clients went to their limits: buffers 2GiB, sessions 1884MiB, \
                        the broker itself 200MiB, subscriptions 128MiB; here are 4GiB: to make sure, lower max_buffered_bytes";
        assert_eq!(text, expected);
        let small = worst(|_, shape| shape.machine = Some(512 << 20));
        assert_eq!(small.too_high(), ["max_sessions", "max_buffered_bytes"]);
        let fits = worst(|config, _| config.mqtt.max_sessions = 1_000);
        assert!(fits.too_high().is_empty());
        assert!(fits.to_string().ends_with("; of 4GiB"), "{fits}");
        let unknown = worst(|_, shape| shape.machine = None);
        assert!(unknown.too_high().is_empty() && unknown.to_string().contains("buffers 256MiB"), "{unknown}");
        let huge = worst(|config, _| config.mqtt.max_sessions = 1 << 50);
        assert_eq!(huge.total(), u64::MAX);
    }

    #[test]
    fn a_gauge_changes_its_mind_once() {
        let mut gauge = Gauge::new(100);
        let looks = [50, 99, 100, 120, 95, 90, 89, 99, 100].map(|resident| gauge.look(resident));
        assert_eq!(looks, [None, None, Some(true), None, None, None, Some(false), None, Some(true)]);
    }

    #[test]
    fn what_the_machine_has() {
        assert_eq!(mem_total("MemTotal:       16384 kB\nMemFree: 1 kB\n"), Some(16 << 20));
        assert_eq!(mem_total("nonsense"), None);
        let groups = "5:cpu,memory:/a/b\n1:name=systemd:/x\n0::/system.slice/f.service\n";
        assert_eq!(group_path(groups, ""), Some("/system.slice/f.service"));
        assert_eq!((group_path(groups, "memory"), group_path(groups, "io")), (Some("/a/b"), None));
        let (machine, resident) = (machine().unwrap(), resident().unwrap());
        assert!(resident > 100_000 && machine > resident, "{resident} of {machine}");
    }
}
