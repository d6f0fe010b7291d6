//! Tables of a run: plain ones for the terminal, Markdown for `docs/benchmarks.md`.

mod tables;

use std::fmt::Write as _;

use crate::result::Run;
use tables::{Table, targets, verdict};

/// All tables and all errors for a terminal.
#[must_use]
pub fn plain(run: &Run) -> String {
    let mut text = String::new();
    if run.quick {
        text.push_str("A smoke test: the figures mean nothing.\n");
    }
    for table in tables::all(run) {
        let _ = writeln!(text, "\n{}", table.title);
        aligned(&mut text, &table);
    }
    for line in errors(run) {
        let _ = writeln!(text, "{line}");
    }
    let all = targets(run).rows.concat();
    let count = |word: &str| all.iter().filter(|cell| cell.ends_with(word)).count();
    let _ = writeln!(text, "\nTargets: {} met, {} MISSED", count(verdict(true)), count(verdict(false)));
    text
}

fn errors(run: &Run) -> Vec<String> {
    let rows = [&run.rows, &run.carried, &run.variants, &run.workers]
        .into_iter()
        .flatten()
        .flat_map(|row| row.errors.iter().map(move |error| (format!("{}, {}", row.row, row.peer), error)));
    let handshakes = run
        .handshakes
        .iter()
        .flat_map(|row| row.errors.iter().map(move |error| (format!("{}, {}", row.row, row.peer), error)));
    let storms = run
        .storms
        .iter()
        .flat_map(|row| row.errors.iter().map(move |error| (format!("{}, {}", row.row, row.peer), error)));
    let closed = run.idle.iter().filter_map(|row| {
        let why = row.error.as_ref().or_else(|| row.outcome.as_ref()?.why.as_ref())?;
        Some((format!("{}, {}", row.row, row.peer), why))
    });
    let sessions = run
        .sessions
        .iter()
        .filter_map(|row| Some((format!("{} sessions", row.sessions), row.error.as_ref()?)));
    let stored = run
        .stored
        .iter()
        .filter_map(|row| Some((format!("{} stored sessions", row.sessions), row.error.as_ref()?)));
    let filters = run
        .filters
        .iter()
        .flat_map(|filters| filters.errors.iter().map(|error| ("filters".to_owned(), error)));
    let pipeline = run.pipeline.iter().filter_map(|row| Some((row.row.clone(), row.error.as_ref()?)));
    let rules =
        run.rules.iter().flat_map(|rules| rules.errors.iter().map(|error| ("rules".to_owned(), error)));
    let all = rows
        .chain(closed)
        .chain(handshakes)
        .chain(storms)
        .chain(sessions)
        .chain(stored)
        .chain(filters)
        .chain(rules)
        .chain(pipeline);
    all.map(|(row, error)| format!("{row}: {}", error.replace('\n', " | "))).collect()
}

fn aligned(text: &mut String, table: &Table) {
    let head: Vec<String> = table.head.iter().map(|&cell| cell.to_owned()).collect();
    let lines = || std::iter::once(&head).chain(&table.rows);
    let width = |column: usize| lines().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    for row in lines() {
        let mut line = String::new();
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            let _ = if column < table.names {
                write!(line, "{cell:<width$}  ")
            } else {
                write!(line, "{cell:>width$}  ")
            };
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
}

/// Why a peer that people ask for has no row.
const NO_NANOMQ: &str = "\nNanoMQ has no row: none of the registries that everything here is built from has it \
    (Debian 12, PyPI, npm, crates.io; asked on 29 November 2026).\n";

/// `docs/benchmarks.md`, whole; `source` is the result file's name.
#[must_use]
pub fn markdown(run: &Run, source: &str) -> String {
    let machine = &run.machine;
    let mut text = format!(
        "# Benchmarks\n\n\
         Generated from `bench/results/{source}` by `cargo run --release -p ferrule-bench -- report`; do not edit. \
         Run it yourself: `make bench`.\n\n\
         Commit {}, {}, on {} ({} cores, {} MiB), Linux {}, load average {:.2} at the start.",
        run.commit,
        run.at,
        machine.cpu,
        machine.cores,
        machine.memory_mib,
        machine.kernel,
        machine.load_average
    );
    if let (Some(broker), Some(load)) = (machine.broker_core, machine.load_core) {
        let _ = write!(text, " The broker has core {broker}, the load generator core {load}.");
    }
    text.push_str("\n\n");
    for peer in &run.peers {
        let _ = writeln!(text, "- {}: {} (`{}`)", peer.name, peer.version, peer.command);
    }
    text.push_str("\nConfiguration files and rules: `bench/peers/`. A million real sockets: [million.md](million.md).\n");
    text.push_str(NO_NANOMQ);
    for table in tables::all(run) {
        let _ = writeln!(text, "\n## {}\n\n{}\n", table.title, table.text);
        let _ = writeln!(text, "| {} |", table.head.join(" | "));
        let _ = writeln!(text, "|{}", " --- |".repeat(table.head.len()));
        for row in &table.rows {
            let _ = writeln!(text, "| {} |", row.join(" | "));
        }
    }
    let errors = errors(run);
    if !errors.is_empty() {
        text.push_str("\n## What failed\n\n");
        for line in errors {
            let _ = writeln!(text, "- {line}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crowd::{CrowdOutcome, CrowdWatched};
    use crate::handshakes::HandshakesOutcome;
    use crate::load::{Outcome, Watched};
    use crate::result::{HandshakesResult, IdleResult, Machine, PipelineResult, RowResult, StormResult};
    use crate::rows::Target;
    use crate::scale::{Filters, FiltersResult, Sessions, SessionsResult};
    use crate::stored::{Stored, StoredResult};
    use crate::tally::Summary;

    fn outcome(cpu_ns_end: u64) -> Outcome {
        Outcome {
            published: 1000,
            acknowledged: 1000,
            refused: 0,
            delivered: 1000,
            lost: 1,
            duplicates: 0,
            order_breaks: 0,
            strays: 0,
            stalls: 0,
            seconds: 2.0,
            ends: 1000,
            latency: Summary { count: 1000, p50_us: 10.0, p99_us: 20.0, max_us: 30.0 },
            ack_latency: Summary::default(),
            own_cpu_ns: 0,
            watched: vec![Watched { pid: 1, cpu_ns_start: 0, cpu_ns_end, rss_bytes: 1 << 20 }],
        }
    }

    fn row(peer: &str, cpu: &[u64], errors: &[&str]) -> RowResult {
        RowResult {
            row: "10 pairs, QoS 1".to_owned(),
            peer: peer.to_owned(),
            command: String::new(),
            load: String::new(),
            target: Some(Target { cpu_ratio: 0.5, p50: true }),
            rounds: cpu.iter().map(|&cpu| outcome(cpu)).collect(),
            errors: errors.iter().map(|&error| error.to_owned()).collect(),
        }
    }

    fn everything() -> Run {
        let watched = CrowdWatched { rss_bytes_held: 1_000_000, ..CrowdWatched::default() };
        let crowd = CrowdOutcome {
            clients: 1000,
            ready: 1000,
            closed: 0,
            why: None,
            connect_seconds: 1.0,
            hold_seconds: 1.0,
            pinged: 1000,
            reached: 1000,
            lost: 0,
            reach_seconds: 1.0,
            latency: Summary::default(),
            watched: Some(watched),
            slab_bytes_before: 0,
            slab_bytes_held: 0,
        };
        let filters = |count, cpu_ns| Filters {
            filters: count,
            publishes: 1000,
            delivered: 1000,
            cpu_ns,
            rss_bytes: 0,
        };
        let mut stormy = outcome(1);
        stormy.latency.p99_us = 50.0;
        Run {
            at: "2026-11-24T00:00:00Z".to_owned(),
            commit: "abc".to_owned(),
            command: "ferrule-bench run".to_owned(),
            quick: false,
            machine: Machine::here(),
            peers: Vec::new(),
            rows: vec![
                row("ferrule", &[1_000_000, 9_000_000, 2_000_000], &[]),
                row("mosquitto", &[8_000_000], &[]),
                row("floor", &[1_000_000], &[]),
                row("other", &[], &["does not start"]),
            ],
            carried: vec![row("ferrule", &[3_000_000], &[]), row("mosquitto", &[6_000_000], &[])],
            variants: vec![row("ferrule", &[1_000_000], &[]), row("ferrule, a rule", &[1_500_000], &[])],
            workers: vec![
                row("ferrule, 1 worker", &[1_000_000], &[]),
                row("ferrule, 3 workers", &[2_000_000], &[]),
            ],
            idle: vec![IdleResult {
                row: "1,000 idle connections".to_owned(),
                peer: "ferrule".to_owned(),
                load: String::new(),
                bytes_max: Some(700.0),
                outcome: Some(crowd),
                error: None,
            }],
            handshakes: [("ferrule", 500_000_000), ("bare rustls", 450_000_000)]
                .map(|(peer, cpu_ns)| HandshakesResult {
                    row: "TLS 1.3 handshake".to_owned(),
                    peer: peer.to_owned(),
                    load: String::new(),
                    rounds: vec![HandshakesOutcome {
                        full: 1000,
                        resumed: 0,
                        failed: 0,
                        why: None,
                        seconds: 1.0,
                        cpu_ns,
                        latency: Summary::default(),
                    }],
                    errors: Vec::new(),
                })
                .into(),
            storms: vec![StormResult {
                row: "5,000 handshakes at once".to_owned(),
                peer: "ferrule".to_owned(),
                quiet: vec![outcome(1)],
                storm: vec![stormy],
                served: vec![3000.0],
                errors: vec!["one round broke".to_owned()],
            }],
            sessions: vec![SessionsResult {
                sessions: 1000,
                found: Some(Sessions {
                    sessions: 1000,
                    rss_bytes_before: 0,
                    rss_bytes_after: 512_000,
                    accept_seconds: 0.01,
                    common_seconds: 0.02,
                    reach_seconds: 0.001,
                    reached: 1000,
                }),
                error: None,
            }],
            stored: vec![StoredResult {
                sessions: 1000,
                found: Some(Stored {
                    open_seconds: 0.5,
                    empty_seconds: 0.1,
                    rss_bytes: 600_000,
                    empty_rss_bytes: 100_000,
                    file_bytes: 1 << 20,
                    waiting_bytes: 102_400,
                }),
                error: None,
            }],
            rules: None,
            filters: Some(FiltersResult {
                few: vec![filters(10, 2_000_000), filters(10, 1_000_000)],
                all: vec![filters(1000, 1_200_000)],
                errors: Vec::new(),
            }),
            pipeline: vec![PipelineResult {
                row: "edge to SQLite".to_owned(),
                load: String::new(),
                messages: 100,
                seconds: 2.0,
                cpu_us: vec![("edge".to_owned(), 1.5)],
                outcome: None,
                error: None,
            }],
        }
    }

    #[test]
    fn all_tables_in_both_forms() {
        let run = everything();
        let plain = plain(&run);
        assert!(plain.contains("other FAILED") && plain.contains("other: does not start"), "{plain}");
        // Lost messages; the idle connections' 1,000 bytes; the others' p99 in the storm; everything else is met: CPU, p50, p99, RSS,
        // order, rounds, handshakes, filters.
        assert!(plain.contains("Targets: 9 met, 3 MISSED"), "{plain}");
        assert!(plain.contains("5,000 handshakes at once, ferrule: one round broke"), "{plain}");
        let markdown = markdown(&run, "x.json");
        for line in [
            "| 10 pairs, QoS 1 | ferrule | 2.00 | 0.250 | 2.00 | 500 | 10 | 20 | 1.0 | 3 | 0 | 0 |",
            "| 10 pairs, QoS 1 | mosquitto | 8.00 | - | 8.00 | 500 | 10 | 20 | 1.0 | 1 | 0 | 0 |",
            "| 10 pairs, QoS 1 | 0.250 <= 0.500 met | 10 <= 10 met | 20 <= 20 met | 1.0 <= 40.0 met | 3 MISSED | 0 met | 0 met |",
            "| 1,000 idle connections: bytes each | 1000 <= 700 MISSED | - | - | - | - | - | - |",
            "| filters: all to those that match | 1.20 <= 1.50 met | - | - | - | - | - | - |",
            "| 10 pairs, QoS 1 | ferrule | 3.00 | 0.500 |",
            "| TLS 1.3 handshake | ferrule | 500.0 | 2000 | 0.90 | 1000 | 0 | 0 | 0 |",
            "| TLS 1.3 handshake: to bare rustls | 0.90 >= 0.80 met |",
            "| 5,000 handshakes at once | ferrule | 20 | 50 | 2.50 | 1 | 3000 |",
            "| 5,000 handshakes at once: the others' p99 | 2.50 <= 2.00 MISSED |",
            "| 10 pairs, QoS 1 | ferrule, a rule | 1.50 | 1.50 | 500 | 10 | 20 | 1.0 | 1 |",
            "| 10 pairs, QoS 1 | ferrule, 3 workers | 2.00 | 1.00 | 0.67 | 1.50 | 500 | 10 | 20 | 1.0 | 1 |",
            "| 1,000 idle connections | ferrule | 1000 | 0.0 | 1.0 | 0.0 | 0.00 | 0.0 | 0.0 | 1000 | 0 | 0 |",
            "| 1000 | 512 | 0.5 | 0.01 | 10.00 | 0.02 | 20.00 | 1.0 | 1.000 |",
            "| 1000 | 1000 | 1.200 | 833333 | 1.20 | 0.0 |",
            "| edge to SQLite | 100 | 50 | edge 1.5 | - | - |",
            "- 10 pairs, QoS 1, other: does not start",
        ] {
            assert!(markdown.contains(line), "{line}\n{markdown}");
        }
    }

    #[test]
    fn a_run_through_its_file() {
        let run = everything();
        let folder = tempfile::tempdir().expect("a temporary folder");
        assert!(Run::newest(folder.path()).is_err(), "an empty folder");
        let path = run.write(folder.path()).expect("written");
        let older = Run { at: "2026-11-23T00:00:00Z".to_owned(), ..run.clone() };
        older.write(folder.path()).expect("written");
        let smoke = Run { at: "2026-11-25T00:00:00Z".to_owned(), quick: true, ..run.clone() };
        smoke.write(folder.path()).expect("written");
        let (newest, read) = Run::newest(folder.path()).expect("there is one");
        assert_eq!((newest, read.rows[0].rounds.len()), (path, 3));
        assert_eq!(markdown(&read, "x"), markdown(&run, "x"));
    }
}
