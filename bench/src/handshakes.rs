//! TLS handshakes: what one costs a server, and a bare rustls acceptor to hold it against.
//!
//! # Design
//! - **The client** keeps `connecting` handshakes going at once, each on a connection of its own that ends with it, for so many
//!   seconds. A handshake counts as done when the first session ticket has come: in TLS 1.3 the server sends it once it has seen the
//!   client's Finished, so only then its work is done.
//! - **The acceptor** is rustls' own buffered server on epoll, one thread, with the same certificate, ticket keys and number of
//!   tickets, and nothing behind it: what the cryptography, the bytes and the sockets cost whoever does a handshake.
//! - Whole handshakes by default; `--resumed` uses the ticket of an earlier one. The first of each slot is a whole one then, and the
//!   outcome says how many of both there were.
//!
//! Connections that fail are counted with the first reason and made again.

use std::io::{self, ErrorKind, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, ServerConfig, ServerConnection};
use serde::{Deserialize, Serialize};

use crate::carrier;
use crate::peer::Peer;
use crate::procfs;
use crate::result::{HandshakesResult, Machine};
use crate::run::{Options, child, wanted};
use crate::tally::{Latency, Summary};

/// Ratio of a bare acceptor's CPU time a handshake to Ferrule's that is aimed at, at least.
pub const RATIO_MIN: f64 = 0.8;
const LISTENER: Token = Token(usize::MAX);

/// The options of `ferrule-bench handshakes`.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct HandshakesPlan {
    /// The server.
    #[arg(long, default_value = "127.0.0.1:8883")]
    pub addr: SocketAddr,
    /// Handshakes at once.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub connecting: u32,
    /// For so long, in seconds.
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
    /// With the ticket of an earlier one.
    #[arg(long)]
    pub resumed: bool,
    /// A process whose CPU time is read.
    #[arg(long)]
    pub watch: Option<u32>,
}

impl HandshakesPlan {
    /// The options that give this plan, as one types them.
    #[must_use]
    pub fn to_args(&self) -> Vec<String> {
        let mut args = vec![
            format!("--addr={}", self.addr),
            format!("--connecting={}", self.connecting),
            format!("--seconds={}", self.seconds),
        ];
        if self.resumed {
            args.push("--resumed".to_owned());
        }
        args.extend(self.watch.map(|pid| format!("--watch={pid}")));
        args
    }
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HandshakesOutcome {
    /// Whole handshakes.
    pub full: u64,
    /// Resumed ones.
    pub resumed: u64,
    /// Connections that ended before.
    pub failed: u64,
    /// The first reason.
    pub why: Option<String>,
    /// How long, in seconds.
    pub seconds: f64,
    /// CPU time of the watched process, in nanoseconds.
    pub cpu_ns: u64,
    /// From the connection's first SYN to the ticket.
    pub latency: Summary,
}

impl HandshakesOutcome {
    /// CPU time of the watched process for one handshake, in microseconds.
    #[must_use]
    pub fn cpu_us(&self) -> Option<f64> {
        let done = self.full + self.resumed;
        (done > 0).then(|| self.cpu_ns as f64 / 1e3 / done as f64)
    }
}

/// Whole and resumed handshakes with each of `peers`.
pub fn rows(
    options: &Options,
    machine: &Machine,
    peers: &[Peer],
    mut said: impl FnMut(&str),
) -> Vec<HandshakesResult> {
    let mut results = Vec::new();
    for (row, resumed) in [("TLS 1.3 handshake", false), ("TLS 1.3 handshake, resumed", true)] {
        if !wanted(options, row) {
            continue;
        }
        let plan = HandshakesPlan {
            addr: SocketAddr::from(([127, 0, 0, 1], 0)),
            connecting: 64,
            seconds: if options.quick { 0.3 } else { 3.0 },
            resumed,
            watch: None,
        };
        let result = |peer: &Peer| HandshakesResult {
            row: row.to_owned(),
            peer: peer.name.clone(),
            load: plan.to_args().join(" "),
            rounds: Vec::new(),
            errors: Vec::new(),
        };
        let mut of_row: Vec<_> = peers.iter().map(result).collect();
        for round in 1..=options.rounds {
            for (peer, result) in peers.iter().zip(&mut of_row) {
                said(&format!("{row}, {}, round {round} of {}", peer.name, options.rounds));
                match one_round(options, machine, &plan, peer) {
                    Ok(outcome) => result.rounds.push(outcome),
                    Err(error) => result.errors.push(error),
                }
            }
        }
        results.append(&mut of_row);
    }
    results
}

fn one_round(
    options: &Options,
    machine: &Machine,
    plan: &HandshakesPlan,
    peer: &Peer,
) -> Result<HandshakesOutcome, String> {
    let running = peer.start(machine.broker_core).map_err(|error| error.to_string())?;
    let plan = HandshakesPlan { addr: running.addr(), watch: Some(running.pid()), ..plan.clone() };
    let args = std::iter::once("handshakes".to_owned()).chain(plan.to_args());
    let outcome: HandshakesOutcome = child(&options.generator, machine.load_core, args)?;
    // One that fails is no cheaper handshake.
    match &outcome.why {
        Some(why) => Err(format!("{} failed: {why}", outcome.failed)),
        None => Ok(outcome),
    }
}

struct Dial {
    socket: TcpStream,
    tls: ClientConnection,
    since: Instant,
}

/// Runs `plan`.
///
/// # Errors
/// When there are no sockets to be had.
pub fn run(plan: &HandshakesPlan) -> io::Result<HandshakesOutcome> {
    let config = if plan.resumed { carrier::resuming() } else { carrier::trusting() };
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(1024);
    let mut slots = Vec::new();
    for slot in 0..plan.connecting as usize {
        slots.push(dial(&poll, plan.addr, &config, slot)?);
    }
    let cpu = |plan: &HandshakesPlan| plan.watch.map_or(0, procfs::cpu_ns);
    let (start, cpu_start) = (Instant::now(), cpu(plan));
    let end = start + Duration::from_secs_f64(plan.seconds);
    let mut latency = Latency::default();
    let mut outcome = HandshakesOutcome {
        full: 0,
        resumed: 0,
        failed: 0,
        why: None,
        seconds: 0.0,
        cpu_ns: 0,
        latency: Summary::default(),
    };
    while Instant::now() < end {
        match poll.poll(&mut events, Some(Duration::from_millis(10))) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            other => other?,
        }
        for event in &events {
            let Token(slot) = event.token();
            let one = &mut slots[slot];
            match drive(one) {
                Ok(None) => continue,
                Ok(Some(HandshakeKind::Resumed)) => outcome.resumed += 1,
                Ok(Some(_)) => outcome.full += 1,
                Err(error) => {
                    outcome.failed += 1;
                    outcome.why.get_or_insert_with(|| error.to_string());
                }
            }
            latency.record(u64::try_from(one.since.elapsed().as_nanos()).unwrap_or(u64::MAX));
            one.tls.send_close_notify();
            let _ = one.tls.write_tls(&mut one.socket);
            *one = dial(&poll, plan.addr, &config, slot)?;
        }
    }
    outcome.seconds = start.elapsed().as_secs_f64();
    outcome.cpu_ns = cpu(plan).saturating_sub(cpu_start);
    outcome.latency = latency.summary();
    Ok(outcome)
}

fn dial(poll: &Poll, addr: SocketAddr, config: &Arc<ClientConfig>, slot: usize) -> io::Result<Dial> {
    let mut socket = TcpStream::connect(addr)?;
    poll.registry().register(&mut socket, Token(slot), Interest::READABLE | Interest::WRITABLE)?;
    Ok(Dial { socket, tls: carrier::tls(config), since: Instant::now() })
}

/// As far as the socket goes; done when a ticket has come.
fn drive(dial: &mut Dial) -> io::Result<Option<HandshakeKind>> {
    let Dial { socket, tls, .. } = dial;
    loop {
        match tls.complete_io(socket) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            // The writable event that says so has not come yet.
            Err(error) if error.kind() == ErrorKind::NotConnected => return Ok(None),
            Err(error) => return Err(error),
        }
        if let Some(kind) = carrier::handshake(tls)
            && tls.tls13_tickets_received() > 0
        {
            return Ok(Some(kind));
        }
        match tls.read_tls(socket) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) => {
                tls.process_new_packets().map_err(io::Error::other)?;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

/// The options of `ferrule-bench acceptor`.
#[derive(Debug, Args)]
pub struct AcceptorArgs {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:8883")]
    pub listen: SocketAddr,
    /// Its certificate, in PEM.
    #[arg(long)]
    pub cert: PathBuf,
    /// Its key, in PEM.
    #[arg(long)]
    pub key: PathBuf,
}

/// Serves handshakes until it is killed.
///
/// # Errors
/// When the address is taken, a file cannot be used, or epoll itself fails.
pub fn accept(args: &AcceptorArgs) -> io::Result<()> {
    let config = server(args)?;
    let mut listener = TcpListener::bind(args.listen)?;
    let mut poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut events = Events::with_capacity(1024);
    let mut conns: Vec<Option<(TcpStream, ServerConnection)>> = Vec::new();
    let mut free = Vec::new();
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            other => other?,
        }
        for event in &events {
            if event.token() == LISTENER {
                while let Ok((mut socket, _)) = listener.accept() {
                    let slot = free.pop().unwrap_or_else(|| {
                        conns.push(None);
                        conns.len() - 1
                    });
                    let interest = Interest::READABLE | Interest::WRITABLE;
                    poll.registry().register(&mut socket, Token(slot), interest)?;
                    let tls = ServerConnection::new(Arc::clone(&config)).map_err(io::Error::other)?;
                    conns[slot] = Some((socket, tls));
                }
                continue;
            }
            let Token(slot) = event.token();
            if let Some((socket, tls)) = &mut conns[slot]
                && serve(socket, tls).is_err()
            {
                conns[slot] = None;
                free.push(slot);
            }
        }
    }
}

/// As far as the socket goes; an error when there is nothing more to do with it.
fn serve(socket: &mut TcpStream, tls: &mut ServerConnection) -> io::Result<()> {
    loop {
        while tls.wants_write() {
            match tls.write_tls(socket) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                other => other?,
            };
        }
        match tls.read_tls(socket) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
        tls.process_new_packets().map_err(io::Error::other)?;
        // Plain bytes are nobody's here; Ok(0) is the client's close_notify.
        if matches!(tls.reader().read(&mut [0; 1024]), Ok(0)) {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    }
}

fn server(args: &AcceptorArgs) -> io::Result<Arc<ServerConfig>> {
    let chain = CertificateDer::pem_file_iter(&args.cert).map_err(io::Error::other)?;
    let chain: Vec<_> = chain.collect::<Result<_, _>>().map_err(io::Error::other)?;
    let key = PrivateKeyDer::from_pem_file(&args.key).map_err(io::Error::other)?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(io::Error::other)?;
    config.alpn_protocols = vec![b"mqtt".to_vec()];
    // As Ferrule has it, so that both do the same work.
    config.ticketer = ring::Ticketer::new().map_err(io::Error::other)?;
    config.send_tls13_tickets = 1;
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn whole_and_resumed_handshakes_with_the_acceptor() {
        let folder = tempfile::tempdir().unwrap();
        let (cert, key) = crate::peer::certificate();
        let args = AcceptorArgs {
            listen: ferrule_testkit::port::free_addr(),
            cert: folder.path().join("cert"),
            key: folder.path().join("key"),
        };
        std::fs::write(&args.cert, cert).unwrap();
        std::fs::write(&args.key, key).unwrap();
        let addr = args.listen;
        std::thread::spawn(move || accept(&args).unwrap());
        ferrule_testkit::until(Duration::from_secs(10), "the acceptor listens", || {
            std::net::TcpStream::connect(addr).ok()
        });
        for resumed in [false, true] {
            let plan = HandshakesPlan {
                addr,
                connecting: 4,
                seconds: 0.5,
                resumed,
                watch: Some(std::process::id()),
            };
            let outcome = run(&plan).unwrap();
            assert_eq!((outcome.failed, outcome.why.clone()), (0, None), "{outcome:?}");
            assert!(outcome.full > 0 && (outcome.resumed > 0) == resumed, "{outcome:?}");
            assert!(
                outcome.cpu_us().unwrap() > 0.0 && outcome.latency.count == outcome.full + outcome.resumed
            );
        }
    }
}
