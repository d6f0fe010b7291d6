//! The load generator: one thread, many connections, one epoll.
//!
//! # Design
//! - **Measured, not believed.** Each payload begins with its send time, its publisher and its number (24
//!   bytes, or JSON); the subscriber's side finds latency, losses, duplicates and breaks of order from that alone.
//! - **Closed loop** (default): a publisher has at most `window` messages out, and a message is out until it is
//!   acknowledged *and* everywhere delivered. So a broker that acknowledges at once and queues is driven like one that
//!   does not, and QoS 0 is driven at the pace of its receiver instead of being thrown away.
//! - **Open loop** (`--rate`): messages have due times, evenly spread, publishers in turn. A message that is sent late,
//!   because its publisher's window is full or the generator was busy, carries the time it was *due*, so that a broker
//!   cannot hide a pause by holding up its load ("coordinated omission").
//! - **Cheap.** Sockets are read into one buffer and parsed in place; output is appended per connection and written once
//!   a turn; the clock is read once per read and once per batch of sends. One message costs well under 1 us of CPU.
//! - **Bounds.** Output of a connection: 256 KiB, past it nothing is published there. Messages out: `window`,
//!   never more than the broker's Receive Maximum. Waiting: `stall` without any progress ends a drain or, while
//!   publishing, writes off what is out (it is counted as lost unless it comes later), so a loss never stops the loop.
//!
//! # Operation
//! Connect all (at most 64 at once), subscribe all (in a shuffled order: a broker that deals connections to its workers in turn
//! must not have all partners together, or none), then publish: a warm-up that is not measured, the
//! measured part (clock, CPU time of the watched processes and counters are read at its start and its end), then publish
//! no more and drain. Losses count over the whole run, rates and latencies over the measured part.
//!
//! Edge-triggered epoll: a read shorter than its buffer has emptied the socket (epoll(7)), which saves a system call.

mod generator;
mod head;
mod outcome;
mod plan;

pub use outcome::{LoadError, Outcome, Watched};
pub use plan::{Plan, Shape};

use generator::Generator;

/// Runs `plan` against a broker.
///
/// # Errors
/// [`LoadError`]: no figure of such a run means anything.
pub fn run(plan: &Plan) -> Result<Outcome, LoadError> {
    let least = head::size_min(plan.json);
    if (plan.size as usize) < least {
        return Err(LoadError::Plan(format!("such a payload has at least {least} bytes")));
    }
    if plan.clients == 0 {
        return Err(LoadError::Plan("no clients".to_owned()));
    }
    if plan.rate.is_some_and(|rate| rate <= 0.0 || !rate.is_finite()) {
        return Err(LoadError::Plan("a rate is positive".to_owned()));
    }
    let mut generator = Generator::new(plan.clone())?;
    generator.set_up()?;
    generator.measure()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use clap::Parser;

    use super::*;
    use crate::fake::{Fake, Fault};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        plan: Plan,
    }

    fn parse(line: &str) -> Plan {
        Line::try_parse_from(std::iter::once("load").chain(line.split_whitespace())).unwrap().plan
    }

    fn run_on(fault: Fault, line: &str) -> Result<Outcome, LoadError> {
        let fake = Fake::start(fault);
        run(&Plan { addr: fake.addr(), ..parse(line) })
    }

    #[test]
    fn options_survive_the_way_to_a_child() {
        for line in [
            "--addr=127.0.0.1:1 --subscribers-at=127.0.0.1:2 --messages=5",
            "",
            "--shape fan-in -n 500 --qos 1 --window 4",
            "--shape fan-out -n 5 --v5 --size 100 --rate 10.5 --persistent --watch 1 --watch 2",
            "--shape publish --messages 5 --stall 1 --prefix x --addr 127.0.0.1:99",
            "--seconds 0.25 --warmup 0 --json --username u --password p",
        ] {
            let plan = parse(line);
            assert_eq!(plan, parse(&plan.to_args().join(" ")), "{line}");
        }
    }

    #[test]
    fn every_shape_and_qos_loses_nothing_on_a_good_broker() {
        for (shape, fan) in [("pairs", 1), ("fan-in", 1), ("fan-out", 4), ("publish", 0)] {
            for qos in 0..=2 {
                for version in ["", "--v5", "--json --size 80"] {
                    let line =
                        format!("--shape {shape} -n 4 --qos {qos} {version} --messages 403 --window 5");
                    let outcome = run_on(Fault::None, &line).unwrap();
                    let ends = if fan == 0 { 403 } else { 403 * fan };
                    assert_eq!((outcome.published, outcome.acknowledged), (403, 403), "{line}");
                    assert_eq!((outcome.delivered, outcome.ends), (403 * fan, ends), "{line}");
                    let bad = [
                        outcome.lost,
                        outcome.duplicates,
                        outcome.order_breaks,
                        outcome.strays,
                        outcome.stalls,
                    ];
                    assert_eq!(bad, [0; 5], "{line}");
                    assert_eq!(outcome.latency.count, 403 * fan, "{line}");
                    assert_eq!(outcome.ack_latency.count, if qos > 0 { 403 } else { 0 }, "{line}");
                }
            }
        }
    }

    #[test]
    fn by_time_and_at_a_rate() {
        let outcome =
            run_on(Fault::None, "-n 3 --qos 1 --rate 1000 --seconds 0.3 --warmup 0.05 --watch 1").unwrap();
        assert!((1..=400).contains(&outcome.published), "{outcome:?}");
        assert_eq!((outcome.delivered, outcome.lost), (outcome.published, 0));
        assert!(outcome.ends > 0 && outcome.ends <= outcome.delivered, "{outcome:?}");
        assert_eq!(outcome.watched.len(), 1);
        assert!(outcome.own_cpu_ns > 0);
    }

    #[test]
    fn faults_are_seen() {
        // The fake counts deliveries over all connections; with one pair, over one stream.
        let line = "-n 1 --qos 1 --messages 100 --window 4 --stall 0.2";
        let lossy = run_on(Fault::Drop(10), line).unwrap();
        assert_eq!((lossy.lost, lossy.delivered, lossy.duplicates), (10, 90, 0), "{lossy:?}");
        assert_eq!(lossy.acknowledged, 100, "they were acknowledged: that is the point");
        let twice = run_on(Fault::Repeat(10), line).unwrap();
        assert_eq!((twice.lost, twice.delivered, twice.duplicates), (0, 110, 10), "{twice:?}");
        let swapped = run_on(Fault::Swap(10), "-n 1 --qos 1 --messages 100 --window 50").unwrap();
        assert_eq!((swapped.lost, swapped.delivered, swapped.order_breaks), (0, 100, 10), "{swapped:?}");
    }

    #[test]
    fn a_broker_that_ends_or_refuses_is_an_error() {
        assert!(matches!(run_on(Fault::Close(10), "-n 1 --messages 100"), Err(LoadError::Closed { .. })));
        assert!(matches!(run_on(Fault::Refuse, "-n 1"), Err(LoadError::Refused { packet: "CONNACK", .. })));
        assert!(matches!(run(&parse("--size 3")), Err(LoadError::Plan(_))));
        assert!(matches!(run(&parse("-n 0")), Err(LoadError::Plan(_))));
        assert!(matches!(run(&parse("--rate 0")), Err(LoadError::Plan(_))));
    }
}
