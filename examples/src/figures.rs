//! This machine's own figures, from `/proc`: what the demo's devices say.
//!
//! # Design
//! Parsing is separate from reading: every function here takes the text of a file, and [`Sampler`] alone opens files.
//! Counters that only grow (CPU time, bytes, sectors) become rates over the time since the sample before, so the first
//! sample of such a device is missing. A file that is not there (another kernel, a container) is a device less.

use std::collections::HashMap;
use std::fs;
use std::time::Instant;

use serde_json::{Map, Value, json};

/// Disks and network interfaces beyond these are left out.
const DEVICES_MAX: usize = 4;
/// CPUs beyond these are left out.
const CPUS_MAX: usize = 8;

/// What one device says at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// The topic below `host/`.
    pub topic: String,
    /// Members of the payload.
    pub values: Map<String, Value>,
}

/// Turns counters into rates.
#[derive(Debug, Default)]
pub struct Sampler {
    before: HashMap<String, Vec<u64>>,
    at: Option<Instant>,
}

impl Sampler {
    /// The figures of now.
    pub fn sample(&mut self) -> Vec<Reading> {
        let seconds = self.at.map_or(0.0, |at| at.elapsed().as_secs_f64());
        self.at = Some(Instant::now());
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let mut readings = Vec::new();
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        readings.extend(load(&text("/proc/loadavg"), cores));
        readings.extend(memory(&text("/proc/meminfo")));
        readings.extend(pressure(
            &text("/proc/pressure/cpu"),
            &text("/proc/pressure/memory"),
            &text("/proc/pressure/io"),
        ));
        for (topic, names, counters) in
            [stat(&text("/proc/stat")), disks(&text("/proc/diskstats")), interfaces(&text("/proc/net/dev"))]
                .concat()
        {
            readings.extend(self.rate(topic, names, counters, seconds));
        }
        readings
    }

    /// Counters since the last sample, a second; CPU time as the busy share instead.
    fn rate(&mut self, topic: String, names: &[&str], counters: Vec<u64>, seconds: f64) -> Option<Reading> {
        let before = self.before.insert(topic.clone(), counters.clone())?;
        let grown: Vec<f64> =
            counters.iter().zip(before).map(|(now, before)| now.saturating_sub(before) as f64).collect();
        let mut values = Map::new();
        if names == CPU {
            let all = grown[0] + grown[1];
            let busy = if all > 0.0 { grown[0] / all * 100.0 } else { 0.0 };
            values.insert("busy_percent".to_owned(), tenths(busy));
        } else if seconds > 0.0 {
            for (name, grown) in names.iter().zip(grown) {
                values.insert((*name).to_owned(), tenths(grown / seconds));
            }
        }
        Some(Reading { topic, values })
    }
}

/// (topic, names of the counters, counters)
type Counters = (String, &'static [&'static str], Vec<u64>);

const CPU: &[&str] = &["busy", "idle"];
const KERNEL: &[&str] = &["context_switches_per_s", "forks_per_s"];
const DISK: &[&str] = &["reads_per_s", "sectors_read_per_s", "writes_per_s", "sectors_written_per_s"];
const NET: &[&str] = &["rx_bytes_per_s", "rx_packets_per_s", "tx_bytes_per_s", "tx_packets_per_s"];

fn tenths(value: f64) -> Value {
    json!((value * 10.0).round() / 10.0)
}

fn object(members: &[(&str, Value)]) -> Map<String, Value> {
    members.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
}

fn numbers(text: &str) -> Vec<u64> {
    text.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// `/proc/loadavg`: `0.20 0.18 0.12 1/80 11206`
fn load(text: &str, cores: usize) -> Option<Reading> {
    let mut words = text.split_ascii_whitespace();
    let mut load = || words.next()?.parse::<f64>().ok();
    let (one, five, fifteen) = (load()?, load()?, load()?);
    let (running, threads) = words.next()?.split_once('/')?;
    let values = object(&[
        ("load1", json!(one)),
        ("load5", json!(five)),
        ("load15", json!(fifteen)),
        ("cores", json!(cores)),
        ("running", json!(running.parse::<u64>().ok()?)),
        ("threads", json!(threads.parse::<u64>().ok()?)),
    ]);
    Some(Reading { topic: "load".to_owned(), values })
}

/// `/proc/meminfo`: `MemTotal:  24684260 kB`
fn memory(text: &str) -> Option<Reading> {
    let kib = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        numbers(line).first().copied()
    };
    let (total, available) = (kib("MemTotal")?, kib("MemAvailable")?);
    let swap = kib("SwapTotal")?.saturating_sub(kib("SwapFree")?);
    let used = total.saturating_sub(available) as f64 / total.max(1) as f64;
    let values = object(&[
        ("total_mib", json!(total / 1024)),
        ("available_mib", json!(available / 1024)),
        ("used_percent", tenths(used * 100.0)),
        ("swap_used_mib", json!(swap / 1024)),
    ]);
    Some(Reading { topic: "memory".to_owned(), values })
}

/// `/proc/pressure/*`: `some avg10=0.12 avg60=0.05 avg300=0.01 total=123`
fn pressure(cpu: &str, memory: &str, io: &str) -> Option<Reading> {
    let average = |text: &str| -> Option<Value> {
        let some = text.lines().find_map(|line| line.strip_prefix("some avg10="))?;
        Some(json!(some.split_ascii_whitespace().next()?.parse::<f64>().ok()?))
    };
    let values = object(&[("cpu", average(cpu)?), ("memory", average(memory)?), ("io", average(io)?)]);
    Some(Reading { topic: "pressure".to_owned(), values })
}

/// `/proc/stat`: a line a CPU (`cpu0 user nice system idle iowait ...`), `ctxt N`, `processes N`.
fn stat(text: &str) -> Vec<Counters> {
    let mut found = Vec::new();
    let mut kernel = (None, None);
    for line in text.lines() {
        let Some((name, rest)) = line.split_once(' ') else { continue };
        let values = numbers(rest);
        match name {
            "ctxt" => kernel.0 = values.first().copied(),
            "processes" => kernel.1 = values.first().copied(),
            _ => {
                let Some(Ok(index)) = name.strip_prefix("cpu").map(str::parse::<usize>) else { continue };
                // The first eight: what guests used is in user already.
                let all: u64 = values.iter().take(8).sum();
                let idle: u64 = values.iter().skip(3).take(2).sum();
                if index < CPUS_MAX {
                    found.push((format!("cpu/{index}"), CPU, vec![all - idle, idle]));
                }
            }
        }
    }
    if let (Some(switches), Some(forks)) = kernel {
        found.push(("kernel".to_owned(), KERNEL, vec![switches, forks]));
    }
    found
}

/// `/proc/diskstats`: `major minor name reads merged sectors ms writes merged sectors ...`; a disk is in use when it was
/// ever read, and its partitions (a disk's name with something behind it) are left out.
fn disks(text: &str) -> Vec<Counters> {
    let mut found: Vec<(String, Vec<u64>)> = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, _, name, reads, _, read, _, writes, _, written, ..] = words[..] else { continue };
        let values: Vec<u64> =
            [reads, read, writes, written].into_iter().filter_map(|word| word.parse().ok()).collect();
        let virtual_one = ["loop", "ram", "zram"].iter().any(|prefix| name.starts_with(prefix));
        let partition = found.iter().any(|(disk, _)| name.starts_with(disk.as_str()));
        if values.len() == DISK.len() && values[0] > 0 && !virtual_one && !partition {
            found.push((name.to_owned(), values));
        }
    }
    found.truncate(DEVICES_MAX);
    found.into_iter().map(|(name, values)| (format!("disk/{name}"), DISK, values)).collect()
}

/// `/proc/net/dev`: two lines of heading, then `  eth0: bytes packets errs drop fifo frame compressed multicast bytes ...`
fn interfaces(text: &str) -> Vec<Counters> {
    let mut found = Vec::new();
    for line in text.lines() {
        let Some((name, rest)) = line.split_once(':') else { continue };
        let values = numbers(rest);
        if let [rx_bytes, rx_packets, _, _, _, _, _, _, tx_bytes, tx_packets, ..] = values[..] {
            found.push((
                format!("net/{}", name.trim()),
                NET,
                vec![rx_bytes, rx_packets, tx_bytes, tx_packets],
            ));
        }
    }
    found.truncate(DEVICES_MAX);
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn files_of_proc() {
        let reading = load("0.20 0.18 0.12 1/80 11206\n", 4).unwrap();
        assert_eq!(Value::from(reading.values)["threads"], 80);
        assert_eq!(load("", 4), None);

        let text =
            "MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 250 kB\nSwapTotal: 4096 kB\nSwapFree: 2048 kB\n";
        let values = Value::from(memory(text).unwrap().values);
        assert_eq!((&values["used_percent"], &values["swap_used_mib"]), (&json!(75.0), &json!(2)));

        let some = "some avg10=0.12 avg60=0.05 avg300=0.01 total=123\nfull avg10=0.00\n";
        assert_eq!(Value::from(pressure(some, some, some).unwrap().values)["io"], json!(0.12));
        assert_eq!(pressure("", some, some), None);

        let text = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 1 2 3 100 20 4 5 6 7 8\nintr 5 5\nctxt 77\nprocesses 9\n";
        assert_eq!(
            stat(text),
            [("cpu/0".to_owned(), CPU, vec![21, 120]), ("kernel".to_owned(), KERNEL, vec![77, 9])]
        );

        let text = "   7 0 loop0 5 0 5 0 0 0 0 0 0 0 0\n 254 0 vda 10 1 80 5 20 2 160 9 0 0 0\n 254 1 vda1 3 1 8 5 2 2 1 9 0 0 0\n 254 16 vdb 0 0 0 0 0 0 0 0 0 0 0\n";
        assert_eq!(disks(text), [("disk/vda".to_owned(), DISK, vec![10, 80, 20, 160])]);

        let text =
            "Inter-|   Receive  |  Transmit\n face |bytes packets\n    lo: 1 2 0 0 0 0 0 0 3 4 0 0 0 0 0 0\n";
        assert_eq!(interfaces(text), [("net/lo".to_owned(), NET, vec![1, 2, 3, 4])]);
    }

    #[test]
    fn counters_become_rates() {
        let mut sampler = Sampler::default();
        let rate = |sampler: &mut Sampler, names, counters: &[u64]| {
            sampler.rate("x".to_owned(), names, counters.to_vec(), 2.0)
        };
        assert_eq!(rate(&mut sampler, KERNEL, &[10, 20]), None);
        let values = Value::from(rate(&mut sampler, KERNEL, &[30, 21]).unwrap().values);
        assert_eq!(values, json!({"context_switches_per_s": 10.0, "forks_per_s": 0.5}));
        let mut sampler = Sampler::default();
        rate(&mut sampler, CPU, &[10, 10]);
        let values = Value::from(rate(&mut sampler, CPU, &[11, 13]).unwrap().values);
        assert_eq!(values, json!({"busy_percent": 25.0}));
    }

    #[test]
    fn this_machine_says_something() {
        let mut sampler = Sampler::default();
        sampler.sample();
        let topics: Vec<String> = sampler.sample().into_iter().map(|reading| reading.topic).collect();
        for topic in ["load", "memory", "cpu/0", "kernel"] {
            assert!(topics.iter().any(|found| found == topic), "{topic} of {topics:?}");
        }
    }
}
