//! Tables of a run: plain ones for the terminal, Markdown for `docs/benchmarks.md`.

use std::fmt::Write as _;

use crate::result::{RowResult, Run};

const HEAD: [&str; 12] = [
    "row",
    "peer",
    "CPU us/msg",
    "ratio",
    "target",
    "msg/s",
    "p50 us",
    "p99 us",
    "RSS MiB",
    "lost",
    "dup",
    "order breaks",
];

/// The peer that ratios are to.
const BASE: &str = "mosquitto";

/// The rows of the side-by-side table, as text.
fn cells(run: &Run) -> Vec<[String; 12]> {
    run.rows.iter().map(|row| one(run, row)).collect()
}

fn one(run: &Run, row: &RowResult) -> [String; 12] {
    let base = run.rows.iter().find(|other| other.row == row.row && other.peer == BASE && row.peer != BASE);
    let ratio = base.and_then(|base| Some(row.cpu_us()? / base.cpu_us()?));
    let number =
        |value: Option<f64>, digits: usize| value.map_or("-".to_owned(), |value| format!("{value:.digits$}"));
    let target = row.target.filter(|_| row.peer != BASE).map(|target| {
        let verdict = ratio.map_or("", |ratio| if ratio <= target { " met" } else { " MISSED" });
        format!("{target:.2}{verdict}")
    });
    let rss = row.median(|round| Some(round.watched.first()?.rss_bytes as f64 / 1024.0 / 1024.0));
    let failed = row.rounds.is_empty() && !row.errors.is_empty();
    [
        row.row.clone(),
        if failed { format!("{} FAILED", row.peer) } else { row.peer.clone() },
        number(row.cpu_us(), 2),
        number(ratio, 2),
        target.unwrap_or_else(|| "-".to_owned()),
        number(row.rate(), 0),
        number(row.median(|round| Some(round.latency.p50_us)), 0),
        number(row.median(|round| Some(round.latency.p99_us)), 0),
        number(rss, 1),
        row.sum(|round| round.lost).to_string(),
        row.sum(|round| round.duplicates).to_string(),
        row.sum(|round| round.order_breaks).to_string(),
    ]
}

fn pipeline_cells(run: &Run) -> Vec<[String; 6]> {
    let rows = run.pipeline.iter().map(|row| {
        let cpu: Vec<String> = row.cpu_us.iter().map(|(name, us)| format!("{name} {us:.1}")).collect();
        let ack = row.outcome.as_ref().map(|outcome| outcome.ack_latency);
        [
            row.row.clone(),
            row.messages.to_string(),
            if row.seconds > 0.0 {
                format!("{:.0}", row.messages as f64 / row.seconds)
            } else {
                "-".to_owned()
            },
            cpu.join(", "),
            ack.map_or("-".to_owned(), |ack| format!("{:.0}", ack.p50_us)),
            ack.map_or("-".to_owned(), |ack| format!("{:.0}", ack.p99_us)),
        ]
    });
    rows.collect()
}

const PIPELINE_HEAD: [&str; 6] = ["way", "messages", "msg/s", "CPU us/msg", "PUBACK p50 us", "PUBACK p99 us"];

/// Both tables and all errors for a terminal.
#[must_use]
pub fn plain(run: &Run) -> String {
    let mut text = String::new();
    if run.quick {
        text.push_str("A smoke test: the figures mean nothing.\n");
    }
    aligned(&mut text, HEAD, &cells(run));
    if !run.pipeline.is_empty() {
        text.push('\n');
        aligned(&mut text, PIPELINE_HEAD, &pipeline_cells(run));
    }
    for line in errors(run) {
        let _ = writeln!(text, "{line}");
    }
    text
}

fn errors(run: &Run) -> Vec<String> {
    let rows = run.rows.iter().flat_map(|row| {
        row.errors
            .iter()
            .map(move |error| format!("{}, {}: {}", row.row, row.peer, error.replace('\n', " | ")))
    });
    let pipeline = run
        .pipeline
        .iter()
        .filter_map(|row| Some(format!("{}: {}", row.row, row.error.as_ref()?.replace('\n', " | "))));
    rows.chain(pipeline).collect()
}

fn aligned<const N: usize>(text: &mut String, head: [&str; N], rows: &[[String; N]]) {
    let head = head.map(str::to_owned);
    let width = |column: usize| {
        rows.iter().chain(std::iter::once(&head)).map(|row| row[column].chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            // The first columns are names, the rest numbers.
            let _ =
                if column < 2 { write!(line, "{cell:<width$}  ") } else { write!(line, "{cell:>width$}  ") };
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
}

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
    text.push_str(
        "\n## Brokers side by side\n\n\
         The same work, a freshly started broker each time, in turns, medians of the rounds. *CPU us/msg* is the broker's \
         user and kernel time for one delivered message; *ratio* is to mosquitto's in the same row. The loop is closed: \
         a publisher has a fixed number of messages out, so that latency at full load is mostly waiting; the row with a \
         rate has even distances instead, and counts latency from when a message was due. *lost*, *dup* and *order breaks* \
         are sums over all rounds.\n\n",
    );
    table(&mut text, HEAD, &cells(run));
    if !run.pipeline.is_empty() {
        text.push_str(
            "\n## Edge to cloud to sink\n\n\
             Devices publish QoS 1 to the edge; a rule passes everything on to the cloud, a rule there into the sink. CPU \
             time a message of each process, until every outbox was empty. Nothing is pinned. The figures of Kafka and \
             PostgreSQL are theirs, for comparison.\n\n",
        );
        table(&mut text, PIPELINE_HEAD, &pipeline_cells(run));
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

fn table<const N: usize>(text: &mut String, head: [&str; N], rows: &[[String; N]]) {
    let _ = writeln!(text, "| {} |", head.join(" | "));
    let _ = writeln!(text, "|{}|", [" --- "; N].join("|"));
    for row in rows {
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{Outcome, Watched};
    use crate::result::{Machine, PipelineResult};
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

    #[test]
    fn a_run_in_both_forms_and_through_its_file() {
        let row = |peer: &str, cpu: &[u64], errors: &[&str]| RowResult {
            row: "10 pairs, QoS 1".to_owned(),
            peer: peer.to_owned(),
            load: String::new(),
            target: Some(0.5),
            rounds: cpu.iter().map(|&cpu| outcome(cpu)).collect(),
            errors: errors.iter().map(|&error| error.to_owned()).collect(),
        };
        let run = Run {
            at: "2026-11-24T00:00:00Z".to_owned(),
            commit: "abc".to_owned(),
            command: "ferrule-bench run".to_owned(),
            quick: false,
            machine: Machine::here(),
            peers: Vec::new(),
            rows: vec![
                row("ferrule", &[1_000_000, 9_000_000, 2_000_000], &[]),
                row("mosquitto", &[8_000_000], &[]),
                row("other", &[], &["does not start"]),
            ],
            pipeline: vec![PipelineResult {
                row: "edge to SQLite".to_owned(),
                load: String::new(),
                messages: 100,
                seconds: 2.0,
                cpu_us: vec![("edge".to_owned(), 1.5)],
                outcome: None,
                error: None,
            }],
        };
        let plain = plain(&run);
        assert!(plain.contains("2.00   0.25  0.50 met"), "{plain}");
        assert!(plain.contains("other FAILED") && plain.contains("other: does not start"), "{plain}");
        let markdown = markdown(&run, "x.json");
        assert!(markdown.contains("| edge to SQLite | 100 | 50 | edge 1.5 | - | - |"), "{markdown}");
        assert!(
            markdown.contains(
                "| 10 pairs, QoS 1 | ferrule | 2.00 | 0.25 | 0.50 met | 500 | 10 | 20 | 1.0 | 3 | 0 | 0 |"
            ),
            "{markdown}"
        );

        let folder = tempfile::tempdir().expect("a temporary folder");
        assert!(Run::newest(folder.path()).is_err(), "an empty folder");
        let path = run.write(folder.path()).expect("written");
        let older = Run { at: "2026-11-23T00:00:00Z".to_owned(), ..run.clone() };
        older.write(folder.path()).expect("written");
        let smoke = Run { at: "2026-11-25T00:00:00Z".to_owned(), quick: true, ..run };
        smoke.write(folder.path()).expect("written");
        let (newest, read) = Run::newest(folder.path()).expect("there is one");
        assert_eq!((newest, read.rows[0].rounds.len()), (path, 3));
    }
}
