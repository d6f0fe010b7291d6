//! A crowd: many clients that connect, subscribe to a topic of their own and then only keep alive, until a message reaches all.
//!
//! # Design
//! - **What it measures** is the other process: its memory before anyone came, after everyone has been there for at least one
//!   round of pings, and after a message has reached all; its CPU time in each part; the kernel's own memory meanwhile.
//! - **Small.** One thread and a dozen bytes a client, so that a machine can hold as many clients as it has sockets: input is
//!   parsed in a shared buffer, output is a few bytes that a fresh socket always takes, the next ping of each is a place in one
//!   queue (all have the same interval, so the queue is in order of due times).
//! - **More than 64 Ki of them.** A connection is named by its two addresses and ports, so what bounds them is local ports
//!   times source addresses (`--source`, bound before connecting) times destinations (`--addr`, several). With sources given,
//!   ports are dealt here, from `--ports`, and not by the kernel, which would deal each only once a source.
//! - **Nobody's fault is fatal.** A connection that ends is counted, and the rest goes on; what is not there is not reached.
//!
//! # Operation
//! Connect and subscribe all, at most `connecting` at once; hold: `hold` seconds, and until each was answered a ping (3
//! keep alives at most); reach: one more client publishes to the clients' topics in turn, at most `window` undelivered, or
//! once to a topic that all have in common. Bounds: as many seconds as `timeout` without any progress end a part.

mod clients;
mod outcome;
mod plan;

pub use outcome::{CrowdError, CrowdOutcome, CrowdWatched};
pub use plan::{CrowdPlan, Reach};

use clients::Crowd;

/// Runs `plan`; `said` hears how far it is, about once a second.
///
/// # Errors
/// [`CrowdError`]: without sockets there is no crowd.
pub fn run(plan: &CrowdPlan, said: impl FnMut(&str)) -> Result<CrowdOutcome, CrowdError> {
    if plan.clients == 0 || plan.addr.is_empty() || plan.connecting == 0 {
        return Err(CrowdError::Plan("no clients, no address or none at once".to_owned()));
    }
    Crowd::new(plan)?.run(said)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use clap::Parser;

    use super::*;
    use crate::floor;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        plan: CrowdPlan,
    }

    fn parse(line: &str) -> CrowdPlan {
        Line::try_parse_from(std::iter::once("crowd").chain(line.split_whitespace())).unwrap().plan
    }

    #[test]
    fn options_survive_the_way_to_a_child() {
        for line in [
            "-n 5 --keep-alive 1 --hold 0.5 --reach none --qos 1 --window 7 --timeout 2 --prefix x --watch 1",
            "--addr 127.0.0.1:1 --addr 127.0.0.1:2 --source 127.0.0.2 --source 127.0.0.3 --ports 100-200",
        ] {
            let plan = parse(line);
            assert_eq!(plan, parse(&plan.to_args().join(" ")), "{line}");
        }
        for ports in ["0-5", "6-5", "5", "1-65536"] {
            assert!(Line::try_parse_from(["crowd", "--ports", ports]).is_err(), "{ports}");
        }
    }

    #[test]
    fn all_are_there_are_pinged_and_are_reached() {
        let addr = floor::tests::start();
        for (line, latencies) in [
            ("--reach own --window 3", 50),
            ("--reach common --qos 1", 50),
            // 50 connections from 10 ports: they take several sources.
            (
                "--reach own --qos 1 --ports 20000-20009 --source 127.0.0.2 --source 127.0.0.3 --source 127.0.0.4 --source 127.0.0.5 --source 127.0.0.6 --source 127.0.0.7 --source 127.0.0.8",
                50,
            ),
            ("--reach none", 0),
        ] {
            let plan = CrowdPlan {
                addr: vec![addr],
                clients: 50,
                connecting: 8,
                keep_alive: 1,
                hold: 0.0,
                prefix: line.replace([' ', '-'], ""),
                watch: Some(std::process::id()),
                ..parse(line)
            };
            let outcome = run(&plan, |_| {}).unwrap();
            assert_eq!((outcome.ready, outcome.closed, outcome.pinged), (50, 0, 50), "{line}: {outcome:?}");
            assert_eq!((outcome.reached, outcome.lost), (latencies, 0), "{line}: {outcome:?}");
            assert_eq!(outcome.latency.count, latencies, "{line}");
            assert!(outcome.watched.unwrap().rss_bytes_held > 0 && outcome.slab_bytes_held > 0);
        }
    }

    #[test]
    fn a_crowd_without_room_or_broker_says_so() {
        let addr = floor::tests::start();
        let plan = CrowdPlan {
            addr: vec![addr],
            clients: 20,
            ..parse("--source 127.0.0.9 --ports 20000-20009 --timeout 1")
        };
        let error = run(&plan, |_| {}).unwrap_err().to_string();
        assert!(error.contains("no local ports"), "{error}");

        let nobody = ferrule_testkit::port::free_addr();
        let plan = CrowdPlan { addr: vec![nobody], ..parse("-n 3 --hold 0 --keep-alive 0 --reach none") };
        let outcome = run(&plan, |_| {}).unwrap();
        assert_eq!((outcome.ready, outcome.closed), (0, 3), "{outcome:?}");
        assert!(outcome.why.unwrap().contains("refused"));
    }
}
