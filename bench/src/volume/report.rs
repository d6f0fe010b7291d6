//! `docs/wire.md`.

use std::fmt::Write as _;

use super::{BYTES_RATIO, DELAY_MS, Link, Round, WireRow, WireRun};
use crate::result::median;

/// The page, whole; `source` is the result file's name.
#[must_use]
pub fn markdown(run: &WireRun, source: &str) -> String {
    let machine = &run.machine;
    let mut text = format!(
        "# What the link to the cloud costs\n\n\
         Generated from `bench/results/wire/{source}` by `ferrule-bench wire-report`; do not edit. Run it yourself, as root: `make bench-wire`.\n\n\
         A gateway's ten devices publish messages of {} bytes of JSON at QoS 1, and the gateway forwards them to a cloud: Ferrule's edge to Ferrule's cloud, \
         or mosquitto with a bridge to another mosquitto. Counted are all bytes of IP packets between gateway and cloud, both ways, with headers and acknowledgements, \
         without the handshake. No TLS. No message is like those that the dictionary of batches was trained on. The delay is from the moment that a message was due at its device to \
         its arrival at a subscriber of the cloud. Medians of {} rounds; the cable adds no delay of its own.\n\n",
        super::PAYLOAD,
        run.rows.iter().map(|row| row.rounds.len()).max().unwrap_or_default(),
    );
    for (name, version) in &run.versions {
        let _ = writeln!(text, "- {name}: {version}");
    }
    let _ = writeln!(
        text,
        "- {}, {} cores, Linux {}; load average at the start {:.2}\n- commit {}, {}, `{}`\n",
        machine.cpu, machine.cores, machine.kernel, machine.load_average, run.commit, run.at, run.command,
    );
    for rate in rates(run) {
        let _ = writeln!(text, "## {rate} messages a second\n");
        text.push_str("| link | bytes a message | to the cloud | back | packets a message | beside mosquitto | delay p50 | p99 |\n|---|---|---|---|---|---|---|---|\n");
        let theirs = figure(run, rate, Link::Mosquitto, bytes);
        for row in run.rows.iter().filter(|row| row.rate == rate) {
            let each = |of: fn(&Round) -> u64| move |round: &Round| of(round) as f64 / round.messages as f64;
            let of = |figure: &dyn Fn(&Round) -> f64| median(row.rounds.iter().map(figure).collect());
            let Some(all) = of(&bytes) else {
                let _ = writeln!(text, "| {} | failed: {} | | | | | | |", row.link, row.errors.join("; "));
                continue;
            };
            let show = |value: Option<f64>, digits: usize| {
                value.map_or_else(String::new, |value| format!("{value:.digits$}"))
            };
            let _ = writeln!(
                text,
                "| {} | {all:.1} | {} | {} | {} | {} | {} ms | {} ms |",
                row.link,
                show(of(&each(|round| round.bytes.0)), 1),
                show(of(&each(|round| round.bytes.1)), 1),
                show(of(&each(|round| round.packets.0 + round.packets.1)), 2),
                show(theirs.map(|theirs| all / theirs), 3),
                show(of(&|round| round.delay_us.0 as f64 / 1e3), 1),
                show(of(&|round| round.delay_us.1 as f64 / 1e3), 1),
            );
        }
        text.push('\n');
    }
    text.push_str("## Targets\n\n| target | found | |\n|---|---|---|\n");
    for (what, found, is_met) in targets(run) {
        let _ = writeln!(text, "| {what} | {found} | {} |", if is_met { "met" } else { "MISSED" });
    }
    text.push_str(WHY);
    text
}

const WHY: &str = "\n## Why\n\n\
    With `batch_delay` at 20 ms a message meets no other at 10 a second. So each travels in a batch of its own: smaller than alone, and the headers of its segment, of \
    its PUBACK's, and often of a third one that only acknowledges those, 40 to 52 bytes each, are what is left. No compression takes those away; only sending several messages together does, and that is \
    to wait: `metered` ([uplink.md](uplink.md#links-that-are-paid-for)), whose delay here is the wait for 16 KiB or a minute. What waits is on disk, and its device was acknowledged.\n\n\
    Alone (`batch = false`) a message of Ferrule's is larger than mosquitto's: it carries its device's identity, by which a cloud makes it one row however often it comes.\n";

/// Bytes of a message, both ways.
fn bytes(round: &Round) -> f64 {
    (round.bytes.0 + round.bytes.1) as f64 / round.messages as f64
}

fn rates(run: &WireRun) -> Vec<u32> {
    let mut rates: Vec<u32> = run.rows.iter().map(|row| row.rate).collect();
    rates.dedup();
    rates
}

fn figure(run: &WireRun, rate: u32, link: Link, figure: impl Fn(&Round) -> f64) -> Option<f64> {
    let row: &WireRow = run.rows.iter().find(|row| row.rate == rate && row.link == link.name())?;
    median(row.rounds.iter().map(figure).collect())
}

/// What is aimed at, what was found, and whether that is it.
fn targets(run: &WireRun) -> Vec<(String, String, bool)> {
    let mut targets = Vec::new();
    for rate in rates(run) {
        for link in [Link::Batches, Link::Metered] {
            let found = figure(run, rate, link, bytes).zip(figure(run, rate, Link::Mosquitto, bytes));
            let ratio = found.map(|(ours, theirs)| ours / theirs);
            targets.push((
                format!("{rate}/s, {}: at most {BYTES_RATIO} of mosquitto's bytes", link.name()),
                ratio.map_or_else(|| "nothing".to_owned(), |ratio| format!("{ratio:.3}")),
                ratio.is_some_and(|ratio| ratio <= BYTES_RATIO),
            ));
        }
        let added = |delay: fn(&Round) -> u64| {
            let of = |link| figure(run, rate, link, |round| delay(round) as f64 / 1e3);
            Some(of(Link::Batches)? - of(Link::Alone)?)
        };
        for (name, added) in
            [("p50", added(|round| round.delay_us.0)), ("p99", added(|round| round.delay_us.1))]
        {
            targets.push((
                format!("{rate}/s: batches add at most {DELAY_MS:.0} ms ({name})"),
                added.map_or_else(|| "nothing".to_owned(), |added| format!("{added:.1} ms")),
                added.is_some_and(|added| added <= DELAY_MS),
            ));
        }
    }
    targets
}
