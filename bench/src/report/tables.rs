//! What each table says: cells of figures, and what one has to know to read them.

use crate::handshakes::{self, HandshakesOutcome};
use crate::result::{self, HandshakesResult, RowResult, Run};
use crate::rows::{REPUBLISH, REPUBLISH_RATIO_MAX, RSS_BYTES_MAX, WORKERS};
use crate::rules::FIGURES;
use crate::scale::{FILTERS_RATIO_MAX, FiltersResult};
use crate::{stored, storm};

/// The peer that ratios are to.
const BASE: &str = "mosquitto";
/// The peer that is the physical bound.
const FLOOR: &str = "floor";
/// Whom the targets are for.
const OURS: &str = "ferrule";
/// The TLS server that handshakes are held against.
const BARE: &str = "bare rustls";
const NOTHING: &str = "-";

/// Cells under a head; the first `names` columns are names, the rest numbers.
pub(super) struct Table {
    pub(super) title: &'static str,
    pub(super) text: String,
    pub(super) names: usize,
    pub(super) head: Vec<&'static str>,
    pub(super) rows: Vec<Vec<String>>,
}

/// All that the run has something for, in order.
pub(super) fn all(run: &Run) -> Vec<Table> {
    let tables = [
        brokers(run),
        targets(run),
        carried(run),
        variants(run),
        workers(run),
        idle(run),
        handshakes(run),
        storms(run),
        sessions(run),
        stored(run),
        filters(run),
        rules(run),
        pipeline(run),
    ];
    tables.into_iter().filter(|table| !table.rows.is_empty()).collect()
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| NOTHING.to_owned(), |value| format!("{value:.digits$}"))
}

fn mib(bytes: Option<f64>) -> String {
    number(bytes.map(|bytes| bytes / 1024.0 / 1024.0), 1)
}

/// A figure against its bound: `0.05 <= 0.06 met`; nothing where there is no figure.
fn bound(figure: Option<f64>, at_most: f64, digits: usize) -> String {
    let Some(figure) = figure else { return NOTHING.to_owned() };
    format!("{figure:.digits$} <= {at_most:.digits$} {}", verdict(figure <= at_most))
}

pub(super) fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}

/// The result of `peer` in the same row.
fn of<'a>(rows: &'a [RowResult], row: &RowResult, peer: &str) -> Option<&'a RowResult> {
    rows.iter().find(|other| other.row == row.row && other.peer == peer)
}

/// CPU time a message, `row` to `base`; none of a row to itself.
fn ratio(row: &RowResult, base: Option<&RowResult>) -> Option<f64> {
    let base = base.filter(|base| base.peer != row.peer)?;
    Some(row.cpu_us()? / base.cpu_us()?)
}

fn p50(row: &RowResult) -> Option<f64> {
    row.median(|round| Some(round.latency.p50_us))
}

fn p99(row: &RowResult) -> Option<f64> {
    row.median(|round| Some(round.latency.p99_us))
}

fn rss(row: &RowResult) -> Option<f64> {
    row.median(|round| Some(round.watched.first()?.rss_bytes as f64))
}

/// Its name, and whether it has nothing to show.
fn name(row: &RowResult) -> String {
    let failed = row.rounds.is_empty() && !row.errors.is_empty();
    if failed { format!("{} FAILED", row.peer) } else { row.peer.clone() }
}

/// One line for each row and peer, with ratios to the others of the same row.
fn lines(rows: &[RowResult]) -> Vec<Vec<String>> {
    let cells = |row: &RowResult| {
        vec![
            row.row.clone(),
            name(row),
            number(row.cpu_us(), 2),
            number(ratio(row, of(rows, row, BASE)), 3),
            number(ratio(row, of(rows, row, FLOOR)), 2),
            number(row.rate(), 0),
            number(p50(row), 0),
            number(p99(row), 0),
            mib(rss(row)),
            row.sum(|round| round.lost).to_string(),
            row.sum(|round| round.duplicates).to_string(),
            row.sum(|round| round.order_breaks).to_string(),
        ]
    };
    rows.iter().map(cells).collect()
}

/// The heads of [`lines`].
const LINES: [&str; 12] = [
    "row",
    "peer",
    "CPU us/msg",
    "to mosquitto",
    "to floor",
    "msg/s",
    "p50 us",
    "p99 us",
    "RSS MiB",
    "lost",
    "dup",
    "order breaks",
];

fn brokers(run: &Run) -> Table {
    Table {
        title: "Brokers side by side",
        text: "The same work, a freshly started broker each time, in turns, medians of the rounds. *CPU us/msg* is the broker's \
             user and kernel time for one delivered message; *to mosquitto* is its ratio to mosquitto's in the same row, *to floor* to \
             that of the floor: a bare broker on epoll of some 300 lines (`bench/src/floor.rs`), without sessions, checks or limits: what \
             the kernel and the bytes cost whoever moves them. The loop is closed: a publisher has a fixed number of messages out, so \
             that latency at full load is mostly waiting; the rows with a rate have even distances instead, and count latency from \
             when a message was due. *lost*, *dup* and *order breaks* are sums over all rounds."
            .to_owned(),
        names: 2,
        head: LINES.to_vec(),
        rows: lines(&run.rows),
    }
}

fn carried(run: &Run) -> Table {
    Table {
        title: "TLS and WebSocket",
        text: "The same ten pairs as above, carried by TLS (1.3; a certificate with an ECDSA key) and by WebSocket. The floor has neither."
            .to_owned(),
        names: 2,
        head: LINES.to_vec(),
        rows: lines(&run.carried),
    }
}

fn handshakes(run: &Run) -> Table {
    let bare =
        |row: &str| run.handshakes.iter().find(|other| other.row == row && other.peer == BARE)?.cpu_us();
    let rows = run.handshakes.iter().map(|row| {
        let cpu_us = row.cpu_us();
        let last = row.rounds.last();
        let median =
            |figure: fn(&HandshakesOutcome) -> f64| result::median(row.rounds.iter().map(figure).collect());
        vec![
            row.row.clone(),
            if last.is_none() { format!("{} FAILED", row.peer) } else { row.peer.clone() },
            number(cpu_us, 1),
            number(cpu_us.map(|us| 1e6 / us), 0),
            number(cpu_us.and_then(|us| Some(bare(&row.row)? / us)).filter(|_| row.peer != BARE), 2),
            number(median(|round| round.full as f64), 0),
            number(median(|round| round.resumed as f64), 0),
            number(median(|round| round.latency.p50_us), 0),
            number(median(|round| round.latency.p99_us), 0),
        ]
    });
    Table {
        title: "TLS handshakes",
        text: "64 handshakes at once, each on a connection of its own, one after the other; done when the client has its session ticket. *to \
             bare rustls* is what a core does of them beside a server that does nothing else (`bench/src/handshakes.rs`): the ratio of its \
             CPU time to this one's."
            .to_owned(),
        names: 2,
        head: vec![
            "row", "peer", "CPU us each", "a second and core", "to bare rustls", "whole", "resumed", "p50 us", "p99 us",
        ],
        rows: rows.collect(),
    }
}

fn storms(run: &Run) -> Table {
    let rows = run.storms.iter().map(|row| {
        let p99 = row.p99_us();
        vec![
            row.row.clone(),
            if p99.is_none() { format!("{} FAILED", row.peer) } else { row.peer.clone() },
            number(p99.map(|(quiet, _)| quiet), 0),
            number(p99.map(|(_, storm)| storm), 0),
            number(p99.map(|(quiet, storm)| storm / quiet), 2),
            row.lost().to_string(),
            number(result::median(row.served.clone()), 0),
        ]
    });
    Table {
        title: "Storms",
        text: "Ten pairs, QoS 1, 2,000 messages a second at even distances, alone and while so many clients come at once. Handshakes: \
             5,000 going on at any moment, all the time, on the listener of the pairs; connections: once, while it is measured. *served* is how \
             many of the storm's were served a second. The generators share a core, so the storm's has the scheduling class for what is left."
            .to_owned(),
        names: 2,
        head: vec!["storm", "peer", "p99 us alone", "p99 us in the storm", "ratio", "lost", "served a second"],
        rows: rows.collect(),
    }
}

pub(super) fn targets(run: &Run) -> Table {
    const HEAD: [&str; 8] =
        ["row", "CPU (or figure)", "p50 us", "p99 us", "RSS MB", "lost", "order breaks", "failed rounds"];
    let mut rows = Vec::new();
    for row in run.rows.iter().filter(|row| row.peer == OURS) {
        let Some(target) = row.target else { continue };
        let base = of(&run.rows, row, BASE);
        let latency = |figure: fn(&RowResult) -> Option<f64>| {
            base.and_then(figure).map_or_else(|| NOTHING.to_owned(), |base| bound(figure(row), base, 0))
        };
        let none = |count: u64| format!("{count} {}", verdict(count == 0));
        rows.push(vec![
            row.row.clone(),
            bound(ratio(row, base), target.cpu_ratio, 3),
            if target.p50 { latency(p50) } else { NOTHING.to_owned() },
            latency(p99),
            bound(rss(row).map(|bytes| bytes / 1e6), RSS_BYTES_MAX as f64 / 1e6, 1),
            none(row.sum(|round| round.lost)),
            none(row.sum(|round| round.order_breaks)),
            none(row.errors.len() as u64),
        ]);
    }
    let single = |row: String, text: String| {
        let mut cells = vec![NOTHING.to_owned(); HEAD.len()];
        (cells[0], cells[1]) = (row, text);
        cells
    };
    for row in run.idle.iter().filter(|row| row.peer == OURS) {
        if let Some((bytes, most)) = row.bytes_each().zip(row.bytes_max) {
            rows.push(single(format!("{}: bytes each", row.row), bound(Some(bytes), most, 0)));
        }
    }
    for row in run.handshakes.iter().filter(|row| row.peer == OURS) {
        let bare = run.handshakes.iter().find(|other| other.row == row.row && other.peer == BARE);
        if let Some((bare, ours)) = bare.and_then(HandshakesResult::cpu_us).zip(row.cpu_us()) {
            let text = format!(
                "{:.2} >= {:.2} {}",
                bare / ours,
                handshakes::RATIO_MIN,
                verdict(bare / ours >= handshakes::RATIO_MIN)
            );
            rows.push(single(format!("{}: to bare rustls", row.row), text));
        }
    }
    for row in &run.stored {
        if let Some(found) = &row.found {
            let text = bound(Some(found.open_seconds), stored::OPEN_MAX, 2);
            rows.push(single(format!("{} stored sessions: seconds to open", row.sessions), text));
        }
    }
    for row in run.storms.iter().filter(|row| row.peer == OURS) {
        if let Some((quiet, storm)) = row.p99_us() {
            rows.push(single(
                format!("{}: the others' p99", row.row),
                bound(Some(storm / quiet), storm::RATIO_MAX, 2),
            ));
        }
    }
    if let Some(ratio) = run.filters.as_ref().and_then(FiltersResult::ratio) {
        rows.push(single(
            "filters: all to those that match".to_owned(),
            bound(Some(ratio), FILTERS_RATIO_MAX, 2),
        ));
    }
    for row in run.variants.iter().filter(|row| row.row == REPUBLISH && row.peer != OURS) {
        let found = ratio(row, of(&run.variants, row, OURS));
        rows.push(single(format!("{REPUBLISH}: {}", row.peer), bound(found, REPUBLISH_RATIO_MAX, 2)));
    }
    for (name, unit, at_most) in FIGURES {
        let figure = run.rules.as_ref().and_then(|rules| rules.median(name));
        if let (Some(_), Some(at_most)) = (figure, at_most) {
            rows.push(single(format!("rules: {name}, {unit}"), bound(figure, at_most, digits(unit))));
        }
    }
    Table {
        title: "Targets",
        text: "What Ferrule aims at in each row, and whether this run met it. CPU time as a ratio to mosquitto's; latencies against \
             mosquitto's in the same row."
            .to_owned(),
        names: 1,
        head: HEAD.to_vec(),
        rows,
    }
}

fn variants(run: &Run) -> Table {
    let cells = |row: &RowResult| {
        vec![
            row.row.clone(),
            name(row),
            number(row.cpu_us(), 2),
            number(ratio(row, of(&run.variants, row, OURS)), 2),
            number(row.rate(), 0),
            number(p50(row), 0),
            number(p99(row), 0),
            mib(rss(row)),
            row.sum(|round| round.lost).to_string(),
        ]
    };
    Table {
        title: "What functions cost",
        text: "Ferrule alone, 128 bytes of JSON: plainly; with a rule that reads a field of every message and lets none pass; with one \
             that lets all pass, to a topic without subscribers; with a user whose publishes and deliveries are held against topic \
             filters; with subscribers whose sessions are kept on disk. Then 200 bytes to two subscribers, and to one of them, while a rule \
             publishes the message once more for the other (at most 1.3 is aimed at). *to plain* is the ratio of CPU time to the row's first."
            .to_owned(),
        names: 2,
        head: vec!["row", "broker", "CPU us/msg", "to plain", "msg/s", "p50 us", "p99 us", "RSS MiB", "lost"],
        rows: run.variants.iter().map(cells).collect(),
    }
}

/// The part of the messages whose subscriber is with another worker, when clients are dealt alike and partners at random.
fn crossing() -> f64 {
    1.0 - 1.0 / f64::from(WORKERS)
}

fn workers(run: &Run) -> Table {
    let one = run.workers.first().and_then(RowResult::cpu_us);
    let cells = |(index, row): (usize, &RowResult)| {
        let more = one.filter(|_| index > 0).and_then(|one| Some(row.cpu_us()? - one));
        vec![
            row.row.clone(),
            name(row),
            number(row.cpu_us(), 2),
            number(more, 2),
            number(more.map(|_| crossing()), 2),
            number(more.map(|more| more / crossing()), 2),
            number(row.rate(), 0),
            number(p50(row), 0),
            number(p99(row), 0),
            mib(rss(row)),
            row.sum(|round| round.lost).to_string(),
        ]
    };
    Table {
        title: "One worker and several",
        text: "The same load, the broker with one worker thread and with several (`node.workers`), broker and generator on all cores. \
             *more* is the CPU time a message that several cost beyond one; *share* the part of the messages whose publisher and subscriber \
             are with different workers, when clients are dealt to workers alike (partners are shuffled); *each crossing* is \
             one divided by the other."
            .to_owned(),
        names: 2,
        head: vec![
            "row", "broker", "CPU us/msg", "more", "share", "each crossing us", "msg/s", "p50 us", "p99 us", "RSS MiB", "lost",
        ],
        rows: run.workers.iter().enumerate().map(cells).collect(),
    }
}

fn idle(run: &Run) -> Table {
    let rows = run.idle.iter().map(|row| {
        let outcome = row.outcome.as_ref();
        let watched = outcome.and_then(|outcome| outcome.watched);
        let ready = outcome.map(|outcome| outcome.ready as f64).filter(|&ready| ready > 0.0);
        let connect = |ns: u64| Some(ns as f64 / 1e3 / ready?);
        vec![
            row.row.clone(),
            if outcome.is_none() { format!("{} FAILED", row.peer) } else { row.peer.clone() },
            number(row.bytes_each(), 0),
            mib(watched.map(|watched| watched.rss_bytes_before as f64)),
            mib(watched.map(|watched| watched.rss_bytes_held as f64)),
            number(watched.and_then(|watched| connect(watched.cpu_ns_connect)), 1),
            number(
                outcome.and_then(|outcome| Some(watched?.cpu_ns_hold as f64 / 1e7 / outcome.hold_seconds)),
                2,
            ),
            number(watched.and_then(|watched| connect(watched.cpu_ns_reach)), 1),
            mib(watched.map(|watched| watched.rss_bytes_reached as f64)),
            outcome.map_or(NOTHING.to_owned(), |outcome| outcome.pinged.to_string()),
            outcome.map_or(NOTHING.to_owned(), |outcome| outcome.closed.to_string()),
            outcome.map_or(NOTHING.to_owned(), |outcome| outcome.lost.to_string()),
        ]
    });
    Table {
        title: "Idle connections",
        text: "TCP connections with a client id, one subscription each to a topic of its own, and a keep alive of 20 s. *bytes each* is the \
             growth of the broker's resident memory from before the first connection until each had pinged, divided by their number; \
             the kernel's own memory for a socket, the same for every broker, comes on top. Then one message goes to each."
            .to_owned(),
        names: 2,
        head: vec![
            "row", "peer", "bytes each", "RSS MiB before", "with all", "CPU us to accept one", "CPU % idle", "CPU us to reach one",
            "RSS MiB after", "pinged", "closed", "lost",
        ],
        rows: rows.collect(),
    }
}

fn sessions(run: &Run) -> Table {
    let rows = run.sessions.iter().map(|row| {
        let found = row.found.as_ref();
        let each = |seconds: f64| seconds * 1e6 / row.sessions as f64;
        vec![
            if found.is_none() { format!("{} FAILED", row.sessions) } else { row.sessions.to_string() },
            number(found.map(|found| found.bytes_each()), 0),
            mib(found.map(|found| found.rss_bytes_after as f64)),
            number(found.map(|found| found.accept_seconds), 2),
            number(found.map(|found| each(found.accept_seconds)), 2),
            number(found.map(|found| found.common_seconds), 2),
            number(found.map(|found| each(found.common_seconds)), 2),
            number(found.map(|found| found.reach_seconds * 1e3), 1),
            number(found.map(|found| each(found.reach_seconds)), 3),
        ]
    });
    Table {
        title: "Sessions in one process",
        text: "A shard of the broker driven in memory, without sockets: clients with one subscription each to a topic of its own \
             (CONNECT and SUBSCRIBE taken and answered); then, after the memory was read, a second subscription of all to one topic, and one publish to it. \
             Growth is flat when bytes and microseconds for one are the same in every row."
            .to_owned(),
        names: 1,
        head: vec![
            "sessions", "bytes each", "RSS MiB", "accept s", "us each", "subscribe to one topic s", "us each",
            "one publish to all ms", "us each",
        ],
        rows: rows.collect(),
    }
}

fn stored(run: &Run) -> Table {
    let rows = run.stored.iter().map(|row| {
        let found = row.found.as_ref();
        vec![
            if found.is_none() { format!("{} FAILED", row.sessions) } else { row.sessions.to_string() },
            number(found.map(|found| found.open_seconds), 2),
            number(found.map(|found| found.empty_seconds), 2),
            number(row.bytes_each(), 0),
            mib(found.map(|found| found.rss_bytes as f64)),
            mib(found.map(|found| found.waiting_bytes as f64)),
            mib(found.map(|found| found.file_bytes as f64)),
        ]
    });
    Table {
        title: "Starts on a store with many sessions",
        text: "`ferrule-edge` is started on a store with so many sessions, each with one subscription, one in ten with a message of 1 KiB waiting: \
               seconds until a client that has a session is told so in its CONNACK, and resident memory then, for each session against an \
               empty store. Filters are in memory, messages stay on disk."
            .to_owned(),
        names: 1,
        head: vec![
            "sessions", "serves after s", "an empty one s", "bytes each", "RSS MiB", "messages on disk MiB", "file MiB",
        ],
        rows: rows.collect(),
    }
}

fn filters(run: &Run) -> Table {
    let rows = run.filters.iter().flat_map(|result| {
        [(&result.few, None), (&result.all, result.ratio())].map(|(rounds, ratio)| {
            let last = rounds.last();
            vec![
                last.map_or("FAILED".to_owned(), |last| last.filters.to_string()),
                last.map_or(NOTHING.to_owned(), |last| last.publishes.to_string()),
                number(FiltersResult::best(rounds), 3),
                number(FiltersResult::best(rounds).map(|us| 1e6 / us), 0),
                number(ratio, 2),
                mib(last.map(|last| last.rss_bytes as f64)),
            ]
        })
    });
    Table {
        title: "Filters in one process",
        text: "The same publishes to topics that one filter each matches, in a shard that has only those filters and in one that has a \
             hundred times as many, half of them with wildcards. CPU time of the process, QoS 0, delivery included; the best of the rounds."
            .to_owned(),
        names: 1,
        head: vec!["filters", "publishes", "CPU us/publish", "publishes/s of CPU", "ratio", "RSS MiB"],
        rows: rows.collect(),
    }
}

fn digits(unit: &str) -> usize {
    match unit {
        "ratio" => 2,
        "ms" => 1,
        _ => 0,
    }
}

fn rules(run: &Run) -> Table {
    let rows = FIGURES.iter().filter_map(|(name, unit, at_most)| {
        let figure = run.rules.as_ref()?.median(name);
        let target = at_most.map_or(NOTHING.to_owned(), |most| format!("{most:.*}", digits(unit)));
        Some(vec![(*name).to_owned(), number(figure, digits(unit)), (*unit).to_owned(), target])
    });
    Table {
        title: "Rules in one process",
        text: "One rule on the bytes of a payload of 191 bytes whose field is its last (`SELECT payload.temp AS t, clientid ... WHERE payload.temp > 50`), \
             beside serde_json's parse of it into a tree; FOREACH over 100 elements. Then publishes of it through a shard of the broker without \
             sockets, QoS 0, all that comes of one. CPU time on one core, medians of the rounds."
            .to_owned(),
        names: 1,
        head: vec!["what", "figure", "unit", "at most"],
        rows: rows.collect(),
    }
}

fn pipeline(run: &Run) -> Table {
    let rows = run.pipeline.iter().map(|row| {
        let cpu: Vec<String> = row.cpu_us.iter().map(|(name, us)| format!("{name} {us:.1}")).collect();
        let ack = row.outcome.as_ref().map(|outcome| outcome.ack_latency);
        vec![
            row.row.clone(),
            row.messages.to_string(),
            number((row.seconds > 0.0).then(|| row.messages as f64 / row.seconds), 0),
            cpu.join(", "),
            number(ack.map(|ack| ack.p50_us), 0),
            number(ack.map(|ack| ack.p99_us), 0),
        ]
    });
    Table {
        title: "Edge to cloud to sink",
        text: "Devices publish 200 bytes at QoS 1 to the edge; a rule passes everything on to the cloud, a rule there into the sink. CPU \
             time a message of each process, until every outbox was empty. Nothing is pinned. The figures of Kafka and \
             PostgreSQL are theirs, for comparison."
            .to_owned(),
        names: 1,
        head: vec!["way", "messages", "msg/s", "CPU us/msg", "PUBACK p50 us", "PUBACK p99 us"],
        rows: rows.collect(),
    }
}
