//! The rows of idle connections: what a client costs a broker that does nothing but keep alive, and to let it in.

use crate::carrier::Over;
use crate::crowd::{CrowdPlan, Reach};
use crate::peer::Peer;
use crate::result::{IdleResult, Machine};
use crate::run::{Options, child, wanted};

/// Bytes of the broker a plain connection that are aimed at.
const BYTES_MAX: f64 = 700.0;
/// Bytes a TLS connection: what rustls keeps for one, and a connection. rustls' own buffered connection has some 20 KB.
const TLS_BYTES_MAX: f64 = 12.0 * 1024.0;

/// What all clients of a row do: a process here opens 20,000 files; with a keep alive of 20 s each pings every 15 s.
#[must_use]
pub fn plan(quick: bool) -> CrowdPlan {
    CrowdPlan {
        addr: Vec::new(),
        over: Over::Tcp,
        proxy_header: false,
        clients: if quick { 100 } else { 15_000 },
        connecting: 64,
        source: Vec::new(),
        ports: (10_000, 65_535),
        keep_alive: if quick { 1 } else { 20 },
        hold: if quick { 0.0 } else { 20.0 },
        reach: Reach::Own,
        qos: 0,
        window: 1_000,
        timeout: 20.0,
        prefix: "idle".to_owned(),
        watch: None,
    }
}

/// Every row with every peer, once each: memory does not scatter as times do. A row that fails is kept with its error.
/// `peers` gives who can do a carrier, `proxied` who takes a PROXY header.
pub fn run(
    options: &Options,
    machine: &Machine,
    peers: impl Fn(Over) -> Vec<Peer>,
    proxied: Option<Peer>,
    mut said: impl FnMut(&str),
) -> Vec<IdleResult> {
    let plan = plan(options.quick);
    let mut results = Vec::new();
    for (over, what, bytes_max) in [
        (Over::Tcp, "idle connections", Some(BYTES_MAX)),
        (Over::Tls, "idle TLS connections", Some(TLS_BYTES_MAX)),
        (Over::Ws, "idle WebSocket connections", None),
    ] {
        let row = format!("{} {what}", if options.quick { "100" } else { "15,000" });
        if !wanted(options, &row) {
            continue;
        }
        let plain = peers(over).into_iter().map(|peer| (peer, false));
        let proxied = proxied.iter().filter(|_| over == Over::Tcp).map(|peer| (peer.clone(), true));
        for (peer, proxy_header) in plain.chain(proxied) {
            said(&format!("{row}, {}", peer.name));
            let plan = CrowdPlan { over, proxy_header, ..plan.clone() };
            let (outcome, error) = match one(options, machine, &plan, &peer) {
                Ok(outcome) => (Some(outcome), None),
                Err(error) => (None, Some(error)),
            };
            results.push(IdleResult {
                row: row.clone(),
                peer: peer.name,
                load: plan.to_args().join(" "),
                bytes_max,
                outcome,
                error,
            });
        }
    }
    results
}

fn one(
    options: &Options,
    machine: &Machine,
    plan: &CrowdPlan,
    peer: &Peer,
) -> Result<crate::crowd::CrowdOutcome, String> {
    let running = peer.start(machine.broker_core).map_err(|error| error.to_string())?;
    let plan = CrowdPlan { addr: vec![running.addr()], watch: Some(running.pid()), ..plan.clone() };
    child(&options.generator, machine.load_core, std::iter::once("crowd".to_owned()).chain(plan.to_args()))
}
