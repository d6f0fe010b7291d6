//! CPU time and memory of other processes, from `/proc`.
//!
//! # Design
//! CPU time has two sources, each a lower bound that never falls, so the larger is taken:
//! - `task/*/schedstat`: nanoseconds, but of threads that still live;
//! - `stat` (utime + stime): all threads that ever were, in ticks of 10 ms. Both are of the same clock: since Linux 3.
//!   the kernel scales the two to the precise run time.
//!
//! Loopback TCP does the receiver's protocol work in the sender's system call, so a broker's CPU time holds the delivery
//! to its peers and theirs holds the delivery to it. That is alike for all brokers.

use std::fs;

/// Nanoseconds of one tick of `/proc/PID/stat`: USER_HZ is 100 on every Linux that Rust knows.
const TICK_NS: u64 = 10_000_000;

/// CPU time of `pid`, all threads, user and kernel, in nanoseconds; 0 when it has gone.
#[must_use]
pub fn cpu_ns(pid: u32) -> u64 {
    threads_ns(pid).max(process_ns(pid))
}

fn threads_ns(pid: u32) -> u64 {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    tasks
        .flatten()
        .filter_map(|task| {
            let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
            text.split_ascii_whitespace().next()?.parse::<u64>().ok()
        })
        .sum()
}

fn process_ns(pid: u32) -> u64 {
    fs::read_to_string(format!("/proc/{pid}/stat")).ok().and_then(|stat| ticks(&stat)).unwrap_or_default()
        * TICK_NS
}

/// utime + stime: fields 14 and 15; the name (field 2) may hold spaces and parentheses, so count from its end.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

/// The processes whose parent is `pid`.
#[must_use]
pub fn children(pid: u32) -> Vec<u32> {
    let of = parents();
    of.into_iter().filter(|(_, parent)| *parent == pid).map(|(child, _)| child).collect()
}

/// CPU time of `pid` and of all its descendants that live, in nanoseconds (PostgreSQL is a process a connection).
#[must_use]
pub fn tree_cpu_ns(pid: u32) -> u64 {
    let parents = parents();
    let mut family = vec![pid];
    let mut at = 0;
    while let Some(&one) = family.get(at) {
        family.extend(parents.iter().filter(|(_, parent)| *parent == one).map(|(child, _)| *child));
        at += 1;
    }
    family.into_iter().map(cpu_ns).sum()
}

/// (process, its parent) of every process that there is.
fn parents() -> Vec<(u32, u32)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((pid, parent(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?)))
        .collect()
}

fn parent(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Resident memory of `pid`, in bytes; 0 when it has gone.
#[must_use]
pub fn rss_bytes(pid: u32) -> u64 {
    kib_of(&format!("/proc/{pid}/status"), "VmRSS:") * 1024
}

/// What the kernel has allocated for its own objects, sockets among them, in bytes.
#[must_use]
pub fn slab_bytes() -> u64 {
    kib_of("/proc/meminfo", "Slab:") * 1024
}

/// The number of a line `name   1234 kB`; 0 when there is none.
fn kib_of(path: &str, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let kib =
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix("kB")?.trim().parse().ok());
    kib.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn stat_with_an_ugly_name() {
        let stat = "42 (a) b (c) S 7 1 1 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 1 0 100 1 1";
        assert_eq!(ticks(stat), Some(300));
        assert_eq!(parent(stat), Some(7));
        assert_eq!(ticks("42 (x"), None);
    }

    #[test]
    fn own_figures() {
        let pid = std::process::id();
        let before = cpu_ns(pid);
        let mut x = 1_u64;
        while cpu_ns(pid) == before {
            x = std::hint::black_box(x.wrapping_mul(31));
        }
        assert!(tree_cpu_ns(pid) >= before);
        assert!(rss_bytes(pid) > 100_000 && slab_bytes() > 100_000);
        assert_eq!((cpu_ns(u32::MAX), rss_bytes(u32::MAX)), (0, 0));
    }
}
