//! The row of idle connections: what a client costs a broker that does nothing but keep alive.

use crate::crowd::{CrowdPlan, Reach};
use crate::peer::Peer;
use crate::result::{IdleResult, Machine};
use crate::run::{Options, child, wanted};

/// Bytes of the broker a connection that are aimed at.
pub const BYTES_MAX: f64 = 700.0;

/// What tables call the row.
#[must_use]
pub fn name(quick: bool) -> String {
    format!("{} idle connections", if quick { "100" } else { "15,000" })
}

/// The row with every peer, once each: memory does not scatter as times do. A row that fails is kept with its error.
pub fn run(
    options: &Options,
    machine: &Machine,
    peers: &[Peer],
    mut said: impl FnMut(&str),
) -> Vec<IdleResult> {
    let name = name(options.quick);
    if !wanted(options, &name) {
        return Vec::new();
    }
    // A process here opens 20,000 files. With a keep alive of 20 s each pings every 15 s.
    let plan = CrowdPlan {
        addr: Vec::new(),
        clients: if options.quick { 100 } else { 15_000 },
        connecting: 64,
        source: Vec::new(),
        ports: (10_000, 65_535),
        keep_alive: if options.quick { 1 } else { 20 },
        hold: if options.quick { 0.0 } else { 20.0 },
        reach: Reach::Own,
        qos: 0,
        window: 1_000,
        timeout: 20.0,
        prefix: "idle".to_owned(),
        watch: None,
    };
    let one = |peer: &Peer| -> Result<_, String> {
        let running = peer.start(machine.broker_core).map_err(|error| error.to_string())?;
        let plan = CrowdPlan { addr: vec![running.addr()], watch: Some(running.pid()), ..plan.clone() };
        let args = std::iter::once("crowd".to_owned()).chain(plan.to_args());
        child(&options.generator, machine.load_core, args)
    };
    let rows = peers.iter().map(|peer| {
        said(&format!("{name}, {}", peer.name));
        let (outcome, error) = match one(peer) {
            Ok(outcome) => (Some(outcome), None),
            Err(error) => (None, Some(error)),
        };
        IdleResult {
            row: name.clone(),
            peer: peer.name.clone(),
            load: plan.to_args().join(" "),
            outcome,
            error,
        }
    });
    rows.collect()
}
