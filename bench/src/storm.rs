//! Storms: what others notice of a crowd at the door.
//!
//! # Design
//! - **The others** are ten pairs at an even rate, QoS 1, whose latency counts from when a message was due. First alone, then while it
//!   storms; the figure is the ratio of the two p99.
//! - **A storm of handshakes**: 5,000 TLS handshakes going on at once, and each that ends is followed by the next, over the whole
//!   measured part. The others are on the same TLS listener.
//! - **A storm of connections**: 15,000 clients that all connect at once, in the middle of the measured part, and then stay.
//! - There are two cores: the broker has one, the others' generator the other, and the storm what that leaves, in the scheduling class
//!   *idle* (`chrt -i`): it is the latency of the others that is read, not the speed of the storm. At `nice 19` the generator
//!   itself would wait for the storm's time slices: beside a busy loop at that priority, and an idle broker, it sees a p99 of 2,000 us
//!   instead of 100; beside one in the idle class 140.

use std::path::Path;
use std::process::Command;

use serde::de::DeserializeOwned;

use crate::carrier::Over;
use crate::crowd::{CrowdOutcome, CrowdPlan, Reach};
use crate::handshakes::{HandshakesOutcome, HandshakesPlan};
use crate::load::{Outcome, Plan};
use crate::peer::{Peer, Running};
use crate::result::{Machine, StormResult};
use crate::rows;
use crate::run::{Options, answer, generate, wanted};

/// Ratio of p99 that is aimed at, at most.
pub const RATIO_MAX: f64 = 2.0;
/// Messages a second of the others: a busy gateway, far from what a core can do.
const RATE: f64 = 2_000.0;

/// Which storm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Storm {
    Handshakes,
    Connections,
}

impl Storm {
    fn name(self, quick: bool) -> String {
        match (self, quick) {
            (Self::Handshakes, false) => "5,000 handshakes at once",
            (Self::Handshakes, true) => "50 handshakes at once",
            (Self::Connections, false) => "15,000 connect at once",
            (Self::Connections, true) => "100 connect at once",
        }
        .to_owned()
    }

    fn over(self) -> Over {
        if self == Self::Handshakes { Over::Tls } else { Over::Tcp }
    }
}

/// Both storms, with each of the peers that `peers` gives for what carries MQTT.
pub fn run(
    options: &Options,
    machine: &Machine,
    peers: impl Fn(Over) -> Vec<Peer>,
    mut said: impl FnMut(&str),
) -> Vec<StormResult> {
    let mut results = Vec::new();
    for storm in [Storm::Handshakes, Storm::Connections] {
        let row = storm.name(options.quick);
        if !wanted(options, &row) {
            continue;
        }
        for peer in peers(storm.over()) {
            let mut result = StormResult {
                row: row.clone(),
                peer: peer.name.clone(),
                quiet: Vec::new(),
                storm: Vec::new(),
                served: Vec::new(),
                errors: Vec::new(),
            };
            for round in 1..=options.rounds {
                said(&format!("{row}, {}, round {round} of {}", peer.name, options.rounds));
                match one_round(options, machine, storm, &peer) {
                    Ok((quiet, stormy, served)) => {
                        result.quiet.push(quiet);
                        result.storm.push(stormy);
                        result.served.push(served);
                    }
                    Err(error) => result.errors.push(error),
                }
            }
            results.push(result);
        }
    }
    results
}

/// The others alone, the others in the storm, and how many the storm's server served a second.
fn one_round(
    options: &Options,
    machine: &Machine,
    storm: Storm,
    peer: &Peer,
) -> Result<(Outcome, Outcome, f64), String> {
    let running = peer.start(machine.broker_core).map_err(|error| error.to_string())?;
    let plan = Plan {
        addr: running.addr(),
        over: storm.over(),
        qos: 1,
        window: 256,
        rate: Some(RATE),
        watch: vec![running.pid()],
        ..rows::base(options.quick)
    };
    let alone = generate(&options.generator, machine.load_core, &plan)?;
    let (stormy, served) = std::thread::scope(|scope| {
        let others = scope.spawn(|| generate(&options.generator, machine.load_core, &plan));
        let served = weather(options, machine, storm, &plan, &running);
        let stormy = others.join().map_err(|_| "the generator's thread panicked".to_owned())?;
        Ok::<_, String>((stormy?, served?))
    })?;
    Ok((alone, stormy, served))
}

/// Lets it storm; what was served, a second.
fn weather(
    options: &Options,
    machine: &Machine,
    storm: Storm,
    others: &Plan,
    running: &Running,
) -> Result<f64, String> {
    let whole = others.warmup + others.seconds;
    match storm {
        Storm::Handshakes => {
            let plan = HandshakesPlan {
                addr: running.addr(),
                connecting: if options.quick { 50 } else { 5_000 },
                // Past the others' end, so that all of the measured part is in it.
                seconds: whole + 0.5,
                resumed: false,
                watch: None,
            };
            let outcome: HandshakesOutcome =
                idle_class(&options.generator, machine, "handshakes", plan.to_args())?;
            Ok((outcome.full + outcome.resumed) as f64 / outcome.seconds)
        }
        Storm::Connections => {
            // Into the measured part: its start is not told, so by the clock; a run whose storm misses it would show a ratio of 1,
            // and the outcome says how long the storm took.
            std::thread::sleep(std::time::Duration::from_secs_f64(others.warmup + others.seconds / 6.0));
            let clients = if options.quick { 100 } else { 15_000 };
            let plan = CrowdPlan {
                addr: vec![running.addr()],
                clients,
                connecting: clients,
                hold: 0.0,
                keep_alive: 0,
                reach: Reach::None,
                prefix: "storm".to_owned(),
                ..crate::idle::plan(options.quick)
            };
            let outcome: CrowdOutcome = idle_class(&options.generator, machine, "crowd", plan.to_args())?;
            if outcome.ready < u64::from(clients) {
                return Err(format!("only {} were served: {:?}", outcome.ready, outcome.why));
            }
            Ok(outcome.ready as f64 / outcome.connect_seconds)
        }
    }
}

/// Runs this program as a child that takes what others leave of its core.
fn idle_class<T: DeserializeOwned>(
    program: &Path,
    machine: &Machine,
    command: &str,
    args: Vec<String>,
) -> Result<T, String> {
    let mut child = Command::new("chrt");
    child.args(["-i", "0"]);
    if let Some(core) = machine.load_core {
        child.args(["taskset", "-c", &core.to_string()]);
    }
    answer(child.arg(program).arg(command).args(args))
}
