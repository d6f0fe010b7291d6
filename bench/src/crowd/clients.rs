//! The clients themselves: connections, pings, the publisher (the design is in the module above).

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Protocol, Socket, Type};

use super::outcome::{CrowdError, CrowdOutcome, CrowdWatched};
use super::plan::{CrowdPlan, Reach};
use crate::carrier::{Carrier, PROXY_HEADER};
use crate::procfs;
use crate::tally::Latency;
use crate::wire::{self, Hello, Incoming, Template, Version};

/// `connect` of a socket that does not block: on its way (Linux).
const EINPROGRESS: i32 = 115;
/// Payload: send time in nanoseconds (u64), the receiver's index (u64), both little-endian.
const PAYLOAD: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Connecting,
    /// CONNECT sent.
    Greeting,
    Ready,
    /// Ready, and answered a ping.
    Pinged,
    /// The message has come.
    Reached,
    Closed,
}

struct Conn {
    /// None once it has ended.
    socket: Option<TcpStream>,
    carrier: Carrier,
    phase: Phase,
}

/// The one that publishes is the connection behind the last client.
#[derive(Default)]
struct Publisher {
    out: Vec<u8>,
    /// Messages appended to its output.
    sent: u64,
}

pub(super) struct Crowd {
    plan: CrowdPlan,
    poll: Poll,
    epoch: Instant,
    conns: Vec<Conn>,
    /// Starts of frames whose rest has not come: seldom any.
    partial: HashMap<usize, Vec<u8>>,
    /// What layers that are not open yet could not take: at most a CONNECT each.
    greetings: HashMap<usize, Vec<u8>>,
    /// When who pings next, in nanoseconds; in order.
    pings: VecDeque<(u64, u32)>,
    /// Pairs of local and remote address that were tried.
    dealt: u64,
    ready: u64,
    closed: u64,
    why: Option<String>,
    pinged: u64,
    reached: u64,
    /// When the last message came.
    last_ns: u64,
    latency: Latency,
    publisher: Publisher,
}

impl Crowd {
    pub(super) fn new(plan: &CrowdPlan) -> Result<Self, CrowdError> {
        let poll = Poll::new().map_err(|error| CrowdError::Socket { at: 0, error })?;
        Ok(Self {
            poll,
            epoch: Instant::now(),
            conns: Vec::new(),
            partial: HashMap::new(),
            greetings: HashMap::new(),
            pings: VecDeque::new(),
            dealt: 0,
            ready: 0,
            closed: 0,
            why: None,
            pinged: 0,
            reached: 0,
            last_ns: 0,
            latency: Latency::default(),
            publisher: Publisher::default(),
            plan: plan.clone(),
        })
    }

    pub(super) fn run(mut self, mut said: impl FnMut(&str)) -> Result<CrowdOutcome, CrowdError> {
        let clients = u64::from(self.plan.clients);
        let watch = |watch: Option<u32>| {
            watch.map_or((0, 0), |pid| (procfs::rss_bytes(pid), procfs::tree_cpu_ns(pid)))
        };
        let (rss_bytes_before, cpu_start) = watch(self.plan.watch);
        let slab_bytes_before = procfs::slab_bytes();

        self.until("ready", &mut said, None, |crowd| (crowd.ready + crowd.closed, clients))?;
        let connect_ns = self.now_ns();
        let (_, cpu_connected) = watch(self.plan.watch);

        let hold_ns = (self.plan.hold * 1e9) as u64;
        let latest_ns = connect_ns + hold_ns + 3_000_000_000 * u64::from(self.plan.keep_alive);
        let (pings, pause) = (self.plan.keep_alive > 0, Some(latest_ns));
        self.until("pinged", &mut said, pause, |crowd| {
            let enough = !pings || crowd.pinged + crowd.closed >= clients;
            (crowd.pinged, if enough && crowd.now_ns() >= connect_ns + hold_ns { 0 } else { u64::MAX })
        })?;
        let hold_end_ns = self.now_ns();
        let (rss_bytes_held, cpu_held) = watch(self.plan.watch);
        let slab_bytes_held = procfs::slab_bytes();
        let (there, pinged) = (self.ready, self.pinged);

        let mut reach_seconds = 0.0;
        if self.plan.reach != Reach::None {
            self.connect()?;
            let phase = |crowd: &Self| crowd.conns[clients as usize].phase;
            self.until("publishers", &mut said, None, |crowd| {
                (u64::from(matches!(phase(crowd), Phase::Ready | Phase::Closed)), 1)
            })?;
            if phase(&self) != Phase::Ready {
                return Err(CrowdError::Publisher(self.why.unwrap_or_else(|| "no answer".to_owned())));
            }
            let start_ns = self.now_ns();
            self.until("reached", &mut said, None, |crowd| (crowd.reached + crowd.closed, clients))?;
            reach_seconds = self.last_ns.saturating_sub(start_ns) as f64 / 1e9;
        }
        let (rss_bytes_reached, cpu_reached) = watch(self.plan.watch);
        Ok(CrowdOutcome {
            clients,
            ready: there,
            closed: self.closed,
            why: self.why,
            connect_seconds: connect_ns as f64 / 1e9,
            hold_seconds: (hold_end_ns - connect_ns) as f64 / 1e9,
            pinged,
            reached: self.reached,
            lost: if self.plan.reach == Reach::None { 0 } else { clients - self.reached },
            reach_seconds,
            latency: self.latency.summary(),
            watched: self.plan.watch.map(|_| CrowdWatched {
                rss_bytes_before,
                rss_bytes_held,
                rss_bytes_reached,
                cpu_ns_connect: cpu_connected.saturating_sub(cpu_start),
                cpu_ns_hold: cpu_held.saturating_sub(cpu_connected),
                cpu_ns_reach: cpu_reached.saturating_sub(cpu_held),
            }),
            slab_bytes_before,
            slab_bytes_held,
        })
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Turns until the first number that `progress` gives has reached the second, or does not change for `timeout` (and, where
    /// there is a `pause_ns`, that moment has passed).
    fn until(
        &mut self,
        what: &str,
        said: &mut impl FnMut(&str),
        pause_ns: Option<u64>,
        progress: impl Fn(&Self) -> (u64, u64),
    ) -> Result<(), CrowdError> {
        let mut events = Events::with_capacity(1024);
        let mut buffer = vec![0; 64 * 1024];
        let timeout_ns = (self.plan.timeout * 1e9) as u64;
        let (mut count, mut since_ns, mut told_ns) = (0, self.now_ns(), self.now_ns());
        loop {
            let (now, enough) = progress(self);
            if now >= enough {
                return Ok(());
            }
            let now_ns = self.now_ns();
            if now != count {
                (count, since_ns) = (now, now_ns);
            } else if now_ns - since_ns > timeout_ns && pause_ns.is_none_or(|pause_ns| now_ns > pause_ns) {
                return Ok(());
            }
            if now_ns - told_ns > 1_000_000_000 {
                told_ns = now_ns;
                said(&format!("{now} {what}, {} closed", self.closed));
            }
            let clients = self.plan.clients as usize;
            while self.conns.len() < clients
                && (self.conns.len() as u64) < self.ready + self.closed + u64::from(self.plan.connecting)
            {
                self.connect()?;
            }
            self.ping(now_ns);
            self.publish();
            match self.poll.poll(&mut events, Some(Duration::from_millis(5))) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(CrowdError::Socket { at: self.conns.len(), error }),
                Ok(()) => {
                    for event in &events {
                        let index = event.token().0;
                        if event.is_writable() && self.conns[index].phase == Phase::Connecting {
                            self.greet(index);
                        }
                        if event.is_readable() || event.is_read_closed() || event.is_error() {
                            self.read(index, &mut buffer);
                        }
                    }
                }
            }
        }
    }

    fn connect(&mut self) -> Result<(), CrowdError> {
        let at = self.conns.len();
        let failed = |error| CrowdError::Socket { at, error };
        let mut socket = self.dial().map_err(failed)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut socket, Token(at), interest).map_err(failed)?;
        let carrier = Carrier::new(self.plan.over);
        self.conns.push(Conn { socket: Some(socket), carrier, phase: Phase::Connecting });
        Ok(())
    }

    /// The next connection, on its way; with sources, from the next local address that is free.
    fn dial(&mut self) -> io::Result<TcpStream> {
        loop {
            let turn = self.dealt;
            self.dealt += 1;
            let (addrs, sources) = (self.plan.addr.len() as u64, self.plan.source.len() as u64);
            let addr = self.plan.addr[(turn % addrs) as usize];
            if sources == 0 {
                return TcpStream::connect(addr);
            }
            let source = self.plan.source[(turn / addrs % sources) as usize];
            let port = u64::from(self.plan.ports.0) + turn / addrs / sources;
            let Some(port) = u16::try_from(port).ok().filter(|&port| port <= self.plan.ports.1) else {
                return Err(io::Error::other("no local ports are left: give more --source or --addr"));
            };
            let socket =
                Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
            // A port may serve several destinations: what has to be unlike is the whole pair of addresses.
            socket.set_reuse_address(true)?;
            match socket.bind(&SocketAddr::new(source, port).into()) {
                Err(error) if error.kind() == ErrorKind::AddrInUse => continue,
                other => other?, // not available: the address is not this machine's
            }
            match socket.connect(&addr.into()) {
                Err(error) if error.raw_os_error() == Some(EINPROGRESS) => {}
                // This very pair is still there, closed a moment ago.
                Err(error) if error.kind() == ErrorKind::AddrNotAvailable => continue,
                other => other?,
            }
            return Ok(TcpStream::from_std(socket.into()));
        }
    }

    fn is_publisher(&self, index: usize) -> bool {
        index == self.plan.clients as usize
    }

    fn greet(&mut self, index: usize) {
        let who = if self.is_publisher(index) { "publisher".to_owned() } else { index.to_string() };
        let hello = Hello {
            version: Version::V3,
            client_id: &format!("{}-{who}", self.plan.prefix),
            clean: true,
            keep_alive: if self.is_publisher(index) { 0 } else { self.plan.keep_alive },
            user: None,
        };
        let mut out = Vec::with_capacity(64);
        wire::connect(&mut out, &hello);
        self.conns[index].phase = Phase::Greeting;
        if self.plan.proxy_header {
            let Some(socket) = &mut self.conns[index].socket else { return };
            if let Err(error) = socket.write(&PROXY_HEADER) {
                return self.ended(index, error); // 28 bytes that a fresh socket always takes
            }
        }
        self.send(index, &out);
    }

    /// Writes a few bytes: a socket that does not take them has a peer that does not read. What a WebSocket does not take before it
    /// is open is kept as its greeting.
    fn send(&mut self, index: usize, bytes: &[u8]) {
        let conn = &mut self.conns[index];
        let Some(socket) = &mut conn.socket else { return };
        match conn.carrier.write(socket, bytes) {
            Ok(wrote) if wrote == bytes.len() => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock && conn.carrier.is_layer() => {
                self.greetings.entry(index).or_default().extend_from_slice(bytes);
            }
            Ok(_) => self.ended(index, "the broker does not read"),
            Err(error) => self.ended(index, error),
        }
    }

    /// Writes what a layer could not take before its peer had answered.
    fn go_on(&mut self, index: usize) {
        let conn = &self.conns[index];
        if conn.carrier.wants_write() || self.greetings.contains_key(&index) {
            let greeting = self.greetings.remove(&index).unwrap_or_default();
            self.send(index, &greeting);
        }
    }

    fn ended(&mut self, index: usize, why: impl ToString) {
        let conn = &mut self.conns[index];
        if let Some(mut socket) = conn.socket.take() {
            let why =
                socket.take_error().ok().flatten().map_or_else(|| why.to_string(), |error| error.to_string());
            // Dropping the socket takes it out of epoll as well.
            let _ = self.poll.registry().deregister(&mut socket);
            self.why.get_or_insert(why);
            if !matches!(conn.phase, Phase::Connecting | Phase::Greeting) {
                self.ready -= 1;
            }
            // A part waits for the sum of those that are there and those that are gone.
            if conn.phase == Phase::Reached {
                self.reached -= 1;
            }
            if conn.phase == Phase::Pinged {
                self.pinged -= 1; // likewise
            }
            conn.phase = Phase::Closed;
            self.closed += 1;
            self.partial.remove(&index);
            self.greetings.remove(&index);
        }
    }

    /// Pings everyone who is due.
    fn ping(&mut self, now_ns: u64) {
        while let Some(&(due_ns, index)) = self.pings.front().filter(|due| due.0 <= now_ns) {
            self.pings.pop_front();
            let mut out = Vec::with_capacity(2);
            wire::ping(&mut out);
            self.send(index as usize, &out);
            if self.conns[index as usize].phase != Phase::Closed {
                self.pings.push_back((due_ns + self.ping_ns(), index));
            }
        }
    }

    fn ping_ns(&self) -> u64 {
        u64::from(self.plan.keep_alive) * 750_000_000
    }

    /// Appends what the window allows to the publisher's output, and writes it.
    fn publish(&mut self) {
        let index = self.plan.clients as usize;
        let Some(conn) = self.conns.get(index).filter(|conn| conn.phase == Phase::Ready) else { return };
        if conn.socket.is_none() {
            return;
        }
        let clients = u64::from(self.plan.clients);
        let common = self.plan.reach == Reach::Common;
        let messages = if common { 1 } else { clients };
        let mut now_ns = self.now_ns();
        let mut fresh = 0;
        while self.publisher.sent < messages
            && (common || self.publisher.sent < self.reached + self.closed + u64::from(self.plan.window))
        {
            let number = self.publisher.sent;
            let topic = if common { "all".to_owned() } else { number.to_string() };
            let topic = format!("{}/{topic}", self.plan.prefix);
            let template = Template::new(Version::V3, &topic, self.plan.qos, PAYLOAD, "");
            let mut head = [0; PAYLOAD];
            head[..8].copy_from_slice(&now_ns.to_le_bytes());
            head[8..].copy_from_slice(&number.to_le_bytes());
            template.write(&mut self.publisher.out, (number % 65_535) as u16 + 1, &head);
            self.publisher.sent += 1;
            fresh += 1;
            if fresh % 256 == 0 {
                now_ns = self.now_ns();
            }
        }
        while !self.publisher.out.is_empty() {
            let conn = &mut self.conns[index];
            let Some(socket) = &mut conn.socket else { return };
            match conn.carrier.write(socket, &self.publisher.out) {
                Ok(wrote) => drop(self.publisher.out.drain(..wrote)),
                // Turns are 5 ms at the longest: it is tried again then.
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => return self.ended(index, error),
            }
        }
    }

    /// Reads a socket until it is empty.
    fn read(&mut self, index: usize, buffer: &mut [u8]) {
        loop {
            let kept = self.partial.remove(&index).unwrap_or_default();
            buffer[..kept.len()].copy_from_slice(&kept);
            let conn = &mut self.conns[index];
            let Some(socket) = &mut conn.socket else { return };
            let got = match conn.carrier.read(socket, &mut buffer[kept.len()..]) {
                Ok(got) => got.bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if !kept.is_empty() {
                        self.partial.insert(index, kept);
                    }
                    return self.go_on(index);
                }
                Err(error) => return self.ended(index, error),
            };
            let bytes = &buffer[..kept.len() + got];
            let mut at = 0;
            loop {
                match wire::next(&bytes[at..], Version::V3) {
                    Ok(Some((packet, used))) => {
                        at += used;
                        self.packet(index, &packet);
                    }
                    Ok(None) => break,
                    Err(error) => return self.ended(index, error),
                }
            }
            if at < bytes.len() && self.conns[index].socket.is_some() {
                self.partial.insert(index, bytes[at..].to_vec());
            }
        }
    }

    fn packet(&mut self, index: usize, packet: &Incoming<'_>) {
        match *packet {
            Incoming::Connack { reason: 0, .. } if self.is_publisher(index) => self.now_ready(index),
            Incoming::Connack { reason: 0, .. } => {
                let mut out = Vec::with_capacity(64);
                let prefix = &self.plan.prefix;
                wire::subscribe(&mut out, Version::V3, &format!("{prefix}/{index}"), self.plan.qos);
                if self.plan.reach == Reach::Common {
                    wire::subscribe(&mut out, Version::V3, &format!("{prefix}/all"), self.plan.qos);
                }
                self.send(index, &out);
            }
            Incoming::Connack { reason, .. } => self.ended(index, format!("CONNACK {reason}")),
            Incoming::Suback { reason } if reason == self.plan.qos => self.now_ready(index),
            Incoming::Suback { reason } => self.ended(index, format!("SUBACK {reason:#04x}")),
            Incoming::Pingresp if self.conns[index].phase == Phase::Ready && !self.is_publisher(index) => {
                self.conns[index].phase = Phase::Pinged;
                self.pinged += 1;
            }
            Incoming::Publish { qos, packet_id, payload } => {
                if qos > 0 {
                    let mut out = Vec::with_capacity(4);
                    wire::ack(&mut out, wire::Ack::Puback, packet_id);
                    self.send(index, &out);
                }
                self.arrived(index, payload);
            }
            _ => {}
        }
    }

    fn now_ready(&mut self, index: usize) {
        if self.conns[index].phase == Phase::Greeting {
            self.conns[index].phase = Phase::Ready;
            self.ready += 1;
            if self.plan.keep_alive > 0 && !self.is_publisher(index) {
                self.pings.push_back((self.now_ns() + self.ping_ns(), index as u32));
            }
        }
    }

    fn arrived(&mut self, index: usize, payload: &[u8]) {
        let number = |at: usize| Some(u64::from_le_bytes(*payload.get(at..)?.first_chunk()?));
        let (Some(sent_ns), Some(to)) = (number(0), number(8)) else { return };
        let mine = self.plan.reach == Reach::Common || to == index as u64;
        if mine && matches!(self.conns[index].phase, Phase::Ready | Phase::Pinged) {
            if self.conns[index].phase == Phase::Pinged {
                self.pinged -= 1;
            }
            self.conns[index].phase = Phase::Reached;
            self.reached += 1;
            self.last_ns = self.now_ns();
            self.latency.record(self.last_ns.saturating_sub(sent_ns));
        }
    }
}
