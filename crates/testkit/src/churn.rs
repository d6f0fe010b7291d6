//! Thousands of clients that come and go, driven by few threads.
//!
//! # Design
//! - **A client is a state machine over a non-blocking socket**: away, connecting, waiting for CONNACK, open, or left to be thrown
//!   out after it sent garbage. Each thread has one epoll instance and one heap of deadlines for its share of the clients.
//! - **Characters are drawn once**, by the client's number: version (3.1.1 or 5), session (clean or persistent), a will or none, and
//!   one in twenty shares its client identifier with its neighbour, so that they take over from one another.
//! - **All manners of leaving**: DISCONNECT, DISCONNECT with will, end of stream, reset, garbage, and a wait without reading.
//!   Those of a persistent session come back with it, and finish by DUP and PUBREL what they had begun, as long as the server
//!   still has it.
//! - **The ledger is the publisher's**: of each message whether it was acknowledged (PUBACK; PUBREC, by which the server takes a QoS 2
//!   message over). [`Watch`] is what a subscriber that stays saw; [`compare`] holds one against the other.
//!
//! Messages go to `soak/m/GROUP/CLIENT`; their payload begins with `CLIENT SEQ QOS`. A client publishes ascending numbers over all of
//! its connections, and never a number under two packet ids: what a clean session left unacknowledged is not sent again.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::fmt::Write as _;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ferrule_mqtt::{
    AckType, Connect, Disconnect, Packet, Properties, PropertiesBuf, Property, Publish, QoS, ReasonCode,
    Subscribe, SubscribeFiltersBuf, SubscribeOptions, Unsubscribe, UnsubscribeFiltersBuf, Version, Will,
    decode, encode_ack,
};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::random::Random;
use crate::wire::{Client, Options};

/// Clients of one group, which some of them listen to.
const GROUP: u32 = 20;
/// Unacknowledged publishes of a client.
const WINDOW: usize = 4;
/// How long a server may take to accept or to close: a fault beyond it.
const PATIENCE: Duration = Duration::from_secs(30);
/// A client that sent nothing for this long pings.
const KEEP_ALIVE_S: u16 = 30;

/// What the clients do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How many.
    pub clients: u32,
    /// Draws their characters and deeds.
    pub seed: u64,
    /// Threads that drive them.
    pub threads: u32,
    /// Session expiry that those with a persistent session ask for, in seconds (MQTT 5).
    pub expiry_s: u32,
    /// Between two deeds of an open client, on average.
    pub pace: Duration,
    /// How long a client stays, and then is away, on average.
    pub stay: Duration,
}

/// What was done, by all clients.
#[derive(Debug, Default)]
pub struct Tally {
    /// Connections accepted.
    pub connects: AtomicU64,
    /// Messages published, at any quality of service.
    pub published: AtomicU64,
    /// Of them, acknowledged.
    pub acknowledged: AtomicU64,
    /// Messages received by the churning clients.
    pub received: AtomicU64,
    /// Connections that ended since another one took their session over.
    pub taken_over: AtomicU64,
    /// Connections ended by a reset.
    pub resets: AtomicU64,
    /// Connections ended by garbage.
    pub garbage: AtomicU64,
    /// Sessions found again.
    pub resumed: AtomicU64,
    /// Whatever a server must not do to a client that keeps to the rules, with how often it happened.
    faults: Mutex<BTreeMap<String, u64>>,
}

impl Tally {
    fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn fault(&self, what: String) {
        *self.faults.lock().unwrap_or_else(PoisonError::into_inner).entry(what).or_default() += 1;
    }

    /// What went wrong; empty when nothing did.
    #[must_use]
    pub fn faults(&self) -> BTreeMap<String, u64> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A message in a ledger: its quality of service in the low two bits, and this when it was acknowledged.
const ACKNOWLEDGED: u8 = 4;

/// What the clients published: by client, by number.
pub type Ledger = HashMap<u32, Vec<u8>>;

/// Running clients. Ended when dropped.
#[derive(Debug)]
pub struct Churn {
    tally: Arc<Tally>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Ledger>>,
}

impl Churn {
    /// Starts them.
    #[must_use]
    pub fn start(addr: SocketAddr, plan: &Plan) -> Self {
        let tally = Arc::new(Tally::default());
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..plan.threads)
            .map(|thread| {
                let (plan, tally, stop) = (plan.clone(), Arc::clone(&tally), Arc::clone(&stop));
                std::thread::spawn(move || Driver::new(addr, plan, thread, tally).run(&stop))
            })
            .collect();
        Self { tally, stop, threads }
    }

    /// What they have done so far.
    #[must_use]
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Ends them where they are, half of them without a word, and returns what they published.
    ///
    /// # Panics
    /// When a thread did.
    #[must_use]
    pub fn stop(mut self) -> Ledger {
        self.stop.store(true, Ordering::Relaxed);
        let mut ledger = Ledger::new();
        for thread in std::mem::take(&mut self.threads) {
            ledger.extend(thread.join().expect("a thread of churning clients does not panic"));
        }
        ledger
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in std::mem::take(&mut self.threads) {
            let _ = thread.join(); // the test panics already
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Away,
    /// The socket connects; CONNECT is in the output.
    Connecting,
    AwaitConnack,
    Open,
    /// It has sent garbage and waits to be thrown out.
    Outcast,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Awaits {
    Ack,
    Pubcomp,
}

#[derive(Debug, Clone, Copy)]
struct Flight {
    packet_id: u16,
    seq: u32,
    qos: QoS,
    awaits: Awaits,
}

#[derive(Debug)]
struct Churner {
    number: u32,
    client_id: String,
    version: Version,
    persistent: bool,
    shared_id: bool,
    will: bool,
    phase: Phase,
    stream: Option<TcpStream>,
    /// Of this connection: it asked for a clean session.
    clean: bool,
    input: Vec<u8>,
    output: Vec<u8>,
    reads: bool,
    /// When it acts next.
    next: Instant,
    leaves: Instant,
    sent: Instant,
    packet_id: u16,
    flights: VecDeque<Flight>,
    ledger: Vec<u8>,
}

struct Driver {
    addr: SocketAddr,
    plan: Plan,
    tally: Arc<Tally>,
    poll: Poll,
    random: Random,
    clients: Vec<Churner>,
    /// (when, index): stale ones are recognised by the client's own `next`.
    timers: BinaryHeap<Reverse<(Instant, usize)>>,
}

impl Driver {
    fn new(addr: SocketAddr, plan: Plan, thread: u32, tally: Arc<Tally>) -> Self {
        let mut random = Random(plan.seed ^ (u64::from(thread) << 32));
        let now = Instant::now();
        // All of them within the first tenth of a stay, but not all at once.
        let spread = plan.stay;
        let clients: Vec<_> = (0..plan.clients)
            // Neighbours share a thread: by pairs.
            .filter(|number| (number / 2) % plan.threads == thread)
            .map(|number| {
                let shared_id = number % 40 < 2;
                let persistent = !shared_id && random.below(2) == 0;
                let name = if shared_id { number / 2 * 2 } else { number };
                Churner {
                    number,
                    client_id: format!("churn-{name}"),
                    version: if random.below(2) == 0 { Version::V5 } else { Version::V3_1_1 },
                    persistent,
                    shared_id,
                    will: random.below(4) == 0,
                    phase: Phase::Away,
                    stream: None,
                    clean: true,
                    input: Vec::new(),
                    output: Vec::new(),
                    reads: true,
                    next: now + spread.mul_f64(random.below(1_000) as f64 / 1_000.0),
                    leaves: now,
                    sent: now,
                    packet_id: 0,
                    flights: VecDeque::new(),
                    ledger: Vec::new(),
                }
            })
            .collect();
        let timers = clients.iter().enumerate().map(|(at, client)| Reverse((client.next, at))).collect();
        let poll = Poll::new().expect("an epoll instance can be made");
        Self { addr, plan, tally, poll, random, clients, timers }
    }

    fn run(mut self, stop: &AtomicBool) -> Ledger {
        let mut events = Events::with_capacity(1_024);
        let mut buffer = vec![0; 64 * 1_024];
        while !stop.load(Ordering::Relaxed) {
            let now = Instant::now();
            let wait = self.timers.peek().map_or(Duration::from_millis(100), |Reverse((at, _))| {
                at.saturating_duration_since(now).clamp(Duration::from_millis(1), Duration::from_millis(100))
            });
            match self.poll.poll(&mut events, Some(wait)) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                result => result.expect("epoll works"),
            }
            for event in &events {
                let Token(at) = event.token();
                if event.is_writable() {
                    self.flush(at);
                }
                self.read(at, &mut buffer);
            }
            let now = Instant::now();
            while let Some(&Reverse((due, at))) = self.timers.peek()
                && due <= now
            {
                self.timers.pop();
                if self.clients[at].next == due {
                    self.act(at, now, &mut buffer);
                }
            }
        }
        for at in 0..self.clients.len() {
            if self.clients[at].phase == Phase::Open && at % 2 == 0 {
                self.disconnect(at, ReasonCode::SUCCESS);
            }
            self.clients[at].stream = None;
        }
        self.clients.into_iter().map(|client| (client.number, client.ledger)).collect()
    }

    fn later(&mut self, at: usize, next: Instant) {
        self.clients[at].next = next;
        self.timers.push(Reverse((next, at)));
    }

    // --- sockets ---

    fn read(&mut self, at: usize, buffer: &mut [u8]) {
        loop {
            let client = &mut self.clients[at];
            if !client.reads || matches!(client.phase, Phase::Away | Phase::Connecting) {
                return;
            }
            let Some(stream) = &mut client.stream else { return };
            match stream.read(buffer) {
                Ok(0) => return self.closed_by_server(at),
                Ok(size) => {
                    client.input.extend_from_slice(&buffer[..size]);
                    self.packets(at);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return self.closed_by_server(at),
            }
        }
    }

    fn flush(&mut self, at: usize) {
        let client = &mut self.clients[at];
        let Some(stream) = &mut client.stream else { return };
        if client.phase == Phase::Connecting {
            match stream.take_error() {
                Ok(None) => {}
                Ok(Some(error)) | Err(error) => return self.no_connection(at, &error),
            }
            if stream.peer_addr().is_err() {
                return; // not yet
            }
            client.phase = Phase::AwaitConnack;
        }
        while !client.output.is_empty() {
            match stream.write(&client.output) {
                Ok(0) => return,
                Ok(size) => drop(client.output.drain(..size)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // What the server said last is still to be read.
                Err(_) => return,
            }
        }
    }

    fn no_connection(&mut self, at: usize, error: &io::Error) {
        // This machine has no more ports just now: not the server's doing.
        if error.kind() != ErrorKind::AddrNotAvailable {
            self.tally.fault(format!("no connection: {:?}", error.kind()));
        }
        self.away(at);
    }

    /// The connection has ended; the client comes back.
    fn away(&mut self, at: usize) {
        let mean = self.plan.stay / 4;
        let next = Instant::now() + self.random.about(mean);
        let client = &mut self.clients[at];
        client.stream = None;
        client.phase = Phase::Away;
        client.input = Vec::new();
        client.output = Vec::new();
        client.reads = true;
        if client.clean {
            client.flights.clear();
        }
        self.later(at, next);
    }

    fn closed_by_server(&mut self, at: usize) {
        let client = &self.clients[at];
        match client.phase {
            Phase::Outcast => Tally::add(&self.tally.garbage),
            // MQTT 3.1.1 has no word for it, and the one of MQTT 5 may have been read before.
            _ if client.shared_id => Tally::add(&self.tally.taken_over),
            phase => {
                let version = client.version;
                self.tally.fault(format!("closed by the server while {phase:?}, MQTT {version}"));
            }
        }
        self.away(at);
    }

    // --- deeds ---

    fn act(&mut self, at: usize, now: Instant, buffer: &mut [u8]) {
        match self.clients[at].phase {
            Phase::Away => self.connect(at, now),
            Phase::Connecting | Phase::AwaitConnack | Phase::Outcast => {
                let phase = self.clients[at].phase;
                self.tally.fault(format!("nothing came of {phase:?} within {PATIENCE:?}"));
                self.away(at);
            }
            Phase::Open if now >= self.clients[at].leaves => self.leave(at, now),
            Phase::Open => {
                self.deed(at, now, buffer);
                let mean = self.plan.pace;
                let pause = self.random.about(mean);
                if self.clients[at].phase == Phase::Open {
                    self.later(at, now + pause);
                }
            }
        }
    }

    fn connect(&mut self, at: usize, now: Instant) {
        let mut stream = match TcpStream::connect(self.addr) {
            Ok(stream) => stream,
            Err(error) => return self.no_connection(at, &error),
        };
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll
            .registry()
            .register(&mut stream, Token(at), interest)
            .expect("a new socket can be registered");
        let expiry = self.plan.expiry_s;
        let fresh = self.random.below(8) == 0;
        let client = &mut self.clients[at];
        client.stream = Some(stream);
        client.phase = Phase::Connecting;
        // In 3.1.1 the flag is also what the session's end is.
        client.clean = !client.persistent || (fresh && client.version != Version::V5);
        let mut properties = PropertiesBuf::new();
        if client.version == Version::V5 && client.persistent {
            properties.push(Property::SessionExpiryInterval(expiry)).expect("a number");
        }
        let topic = format!("soak/will/{}", client.number);
        let will = client.will.then_some(Will {
            qos: QoS::AtLeastOnce,
            retain: client.number.is_multiple_of(64),
            properties: Properties::EMPTY,
            topic: &topic,
            payload: b"gone",
        });
        let connect = Packet::Connect(Connect {
            version: client.version,
            clean_start: client.clean || fresh,
            bridge: false,
            keep_alive: KEEP_ALIVE_S,
            properties: properties.as_properties(),
            client_id: &client.client_id,
            will,
            username: None,
            password: None,
        });
        connect.encode(client.version, &mut client.output).expect("a client's CONNECT can be encoded");
        client.sent = now;
        self.later(at, now + PATIENCE);
    }

    fn send(&mut self, at: usize, packet: &Packet<'_>) {
        let client = &mut self.clients[at];
        packet.encode(client.version, &mut client.output).expect("a client's packet can be encoded");
        client.sent = Instant::now();
        self.flush(at);
    }

    fn next_id(&mut self, at: usize) -> u16 {
        let client = &mut self.clients[at];
        loop {
            client.packet_id = client.packet_id.checked_add(1).unwrap_or(1);
            if client.flights.iter().all(|flight| flight.packet_id != client.packet_id) {
                return client.packet_id;
            }
        }
    }

    fn deed(&mut self, at: usize, now: Instant, buffer: &mut [u8]) {
        if !self.clients[at].reads {
            // It reads again.
            self.clients[at].reads = true;
            self.read(at, buffer);
            return;
        }
        match self.random.below(100) {
            0..60 => self.publish(at),
            60..63 => self.retain(at),
            63..75 => self.subscribe(at),
            75..82 => self.unsubscribe(at),
            82..84 => {
                self.clients[at].reads = false;
            }
            _ if self.clients[at].sent + Duration::from_secs(5) < now => self.send(at, &Packet::Pingreq),
            _ => self.publish(at),
        }
    }

    fn publish(&mut self, at: usize) {
        let qos = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::AtLeastOnce, QoS::ExactlyOnce]
            [self.random.below(4) as usize];
        if qos > QoS::AtMostOnce && self.clients[at].flights.len() >= WINDOW {
            return;
        }
        let packet_id = if qos == QoS::AtMostOnce { 0 } else { self.next_id(at) };
        let client = &mut self.clients[at];
        let seq = u32::try_from(client.ledger.len()).expect("fewer messages than 2^32");
        client.ledger.push(u8::from(qos));
        if qos > QoS::AtMostOnce {
            client.flights.push_back(Flight { packet_id, seq, qos, awaits: Awaits::Ack });
        }
        Tally::add(&self.tally.published);
        self.send_message(at, Flight { packet_id, seq, qos, awaits: Awaits::Ack }, false);
    }

    fn send_message(&mut self, at: usize, flight: Flight, dup: bool) {
        let Flight { packet_id, seq, qos, .. } = flight;
        let number = self.clients[at].number;
        let topic = format!("soak/m/{}/{number}", number / GROUP);
        let mut payload = format!("{number} {seq} {qos} ");
        let _ = write!(payload, "{:>1$}", "", 40 + (seq as usize * 37) % 200);
        let (properties, payload) = (Properties::EMPTY, payload.as_bytes());
        let publish = Publish { dup, qos, retain: false, topic: &topic, packet_id, properties, payload };
        self.send(at, &Packet::Publish(publish));
    }

    /// Of few topics, so that the retained messages are bounded; every other one clears.
    fn retain(&mut self, at: usize) {
        let topic = format!("soak/kept/{}", self.random.below(64));
        let payload: &[u8] = if self.random.below(2) == 0 { b"" } else { b"kept" };
        let (qos, properties) = (QoS::AtMostOnce, Properties::EMPTY);
        let publish =
            Publish { dup: false, qos, retain: true, topic: &topic, packet_id: 0, properties, payload };
        self.send(at, &Packet::Publish(publish));
    }

    fn filter(&mut self, at: usize) -> String {
        let number = self.clients[at].number;
        let group = number / GROUP;
        match self.random.below(8) {
            0..4 => format!("soak/m/{group}/{number}"),
            4 => format!("soak/m/{group}/+"),
            5 => "soak/kept/#".to_owned(),
            6 => format!("soak/+/{group}/{number}/#"),
            _ => format!("soak/will/{}", number ^ 1),
        }
    }

    fn subscribe(&mut self, at: usize) {
        let filter = self.filter(at);
        let qos = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce][self.random.below(3) as usize];
        let packet_id = self.next_id(at);
        let mut filters = SubscribeFiltersBuf::new();
        filters.push(&filter, SubscribeOptions::new(qos)).expect("a short filter");
        let (properties, filters) = (Properties::EMPTY, filters.as_filters());
        self.send(at, &Packet::Subscribe(Subscribe { packet_id, properties, filters }));
    }

    fn unsubscribe(&mut self, at: usize) {
        let filter = self.filter(at);
        let packet_id = self.next_id(at);
        let mut filters = UnsubscribeFiltersBuf::new();
        filters.push(&filter).expect("a short filter");
        let (properties, filters) = (Properties::EMPTY, filters.as_filters());
        self.send(at, &Packet::Unsubscribe(Unsubscribe { packet_id, properties, filters }));
    }

    fn disconnect(&mut self, at: usize, reason: ReasonCode) {
        self.send(at, &Packet::Disconnect(Disconnect { reason, properties: Properties::EMPTY }));
    }

    fn leave(&mut self, at: usize, now: Instant) {
        let v5 = self.clients[at].version == Version::V5;
        match self.random.below(10) {
            0..4 => self.disconnect(at, ReasonCode::SUCCESS),
            4 if v5 => self.disconnect(at, ReasonCode::DISCONNECT_WITH_WILL),
            // In the midst of what it was about to send.
            4..6 => {
                if let Some(stream) = &self.clients[at].stream {
                    let reset = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
                    reset.expect("a socket can be told to reset");
                }
                Tally::add(&self.tally.resets);
            }
            6 | 7 => {
                let garbage = self.random.number().to_le_bytes();
                let client = &mut self.clients[at];
                client.reads = true;
                client.phase = Phase::Outcast;
                // Packet type 0 is none, whatever follows.
                client.output.push(0);
                client.output.extend_from_slice(&garbage);
                self.flush(at);
                self.later(at, now + PATIENCE);
                return;
            }
            8 => {
                if let Some(stream) = &self.clients[at].stream {
                    let _ = stream.shutdown(Shutdown::Write); // gone already: then it is ended too
                }
            }
            _ => {}
        }
        self.away(at);
    }

    // --- the server's packets ---

    fn packets(&mut self, at: usize) {
        let input = std::mem::take(&mut self.clients[at].input);
        let mut used = 0;
        loop {
            let version = self.clients[at].version;
            match decode(&input[used..], Some(version), 1 << 20) {
                Ok(Some((packet, size))) => {
                    self.packet(at, &packet);
                    used += size;
                }
                Ok(None) => break,
                Err(error) => {
                    self.tally.fault(format!("the server sent no MQTT: {error}"));
                    used = input.len();
                    break;
                }
            }
        }
        // Nothing is kept for the next connection.
        if self.clients[at].stream.is_some() {
            self.clients[at].input = input[used..].to_vec();
        }
    }

    fn packet(&mut self, at: usize, packet: &Packet<'_>) {
        let version = self.clients[at].version;
        match *packet {
            Packet::Connack(connack) => {
                if connack.reason != ReasonCode::SUCCESS {
                    return self.tally.fault(format!("refused: {:?}", connack.reason));
                }
                Tally::add(&self.tally.connects);
                let (now, stay, pace) = (Instant::now(), self.plan.stay, self.plan.pace);
                let (leaves, next) = (now + self.random.about(stay), now + self.random.about(pace));
                let client = &mut self.clients[at];
                client.phase = Phase::Open;
                client.leaves = leaves;
                if connack.session_present {
                    Tally::add(&self.tally.resumed);
                    let flights: Vec<_> = client.flights.iter().copied().collect();
                    for flight in flights {
                        match flight.awaits {
                            Awaits::Ack => self.send_message(at, flight, true),
                            Awaits::Pubcomp => self.ack(at, AckType::Pubrel, flight.packet_id),
                        }
                    }
                } else {
                    client.flights.clear();
                }
                self.later(at, next);
            }
            Packet::Publish(publish) => {
                Tally::add(&self.tally.received);
                match publish.qos {
                    QoS::AtMostOnce => {}
                    QoS::AtLeastOnce => self.ack(at, AckType::Puback, publish.packet_id),
                    QoS::ExactlyOnce => self.ack(at, AckType::Pubrec, publish.packet_id),
                }
            }
            Packet::Pubrel(pubrel) => self.ack(at, AckType::Pubcomp, pubrel.packet_id),
            Packet::Puback(ack) => self.acknowledged(at, ack.packet_id, ack.reason, QoS::AtLeastOnce),
            Packet::Pubrec(ack) => {
                self.acknowledged(at, ack.packet_id, ack.reason, QoS::ExactlyOnce);
                self.ack(at, AckType::Pubrel, ack.packet_id);
            }
            Packet::Pubcomp(ack) => {
                let flights = &mut self.clients[at].flights;
                flights.retain(|f| f.packet_id != ack.packet_id || f.awaits != Awaits::Pubcomp);
            }
            Packet::Suback(suback) => {
                if let Some(reason) = suback.reasons.iter().find(|reason| **reason >= 0x80) {
                    self.tally.fault(format!("subscription refused: {reason:02x}"));
                }
            }
            Packet::Disconnect(disconnect) => {
                let client = &self.clients[at];
                let expected = (client.shared_id && disconnect.reason == ReasonCode::SESSION_TAKEN_OVER)
                    || client.phase == Phase::Outcast;
                if !expected {
                    self.tally.fault(format!("disconnected, MQTT {version}: {:?}", disconnect.reason));
                }
            }
            _ => {}
        }
    }

    fn ack(&mut self, at: usize, kind: AckType, packet_id: u16) {
        let client = &mut self.clients[at];
        if client.phase != Phase::Open {
            return; // nothing follows garbage
        }
        encode_ack(&mut client.output, client.version, kind, packet_id, ReasonCode::SUCCESS);
        self.flush(at);
    }

    fn acknowledged(&mut self, at: usize, packet_id: u16, reason: ReasonCode, qos: QoS) {
        let client = &mut self.clients[at];
        let Some(index) = client.flights.iter().position(|f| f.packet_id == packet_id && f.qos == qos) else {
            return self.tally.fault(format!("QoS {qos}: acknowledged what is not in flight"));
        };
        if reason.is_error() {
            return self.tally.fault(format!("QoS {qos} refused: {reason:?}"));
        }
        let flight = client.flights[index];
        if flight.awaits == Awaits::Ack {
            client.ledger[flight.seq as usize] |= ACKNOWLEDGED;
            Tally::add(&self.tally.acknowledged);
        }
        if qos == QoS::ExactlyOnce {
            client.flights[index].awaits = Awaits::Pubcomp;
        } else {
            client.flights.remove(index);
        }
    }
}

// === the subscribers that stay ===

/// What one of them saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// By client, by number: how often, up to 255.
    counts: HashMap<u32, Vec<u8>>,
    /// By client and quality of service: the highest number that came first.
    highest: HashMap<(u32, u8), u32>,
    /// Messages.
    pub messages: u64,
    /// Broken promises, in words.
    pub faults: Vec<String>,
}

impl Seen {
    fn count(&self, client: u32, seq: usize) -> u8 {
        self.counts.get(&client).and_then(|counts| counts.get(seq)).copied().unwrap_or(0)
    }

    fn add(&mut self, payload: &[u8]) {
        let text = String::from_utf8_lossy(payload);
        let mut words = text.split(' ').map_while(|word| word.parse::<u32>().ok());
        let (Some(client), Some(seq), Some(qos)) = (words.next(), words.next(), words.next()) else {
            return self.fault(format!("not a client's message: {text:?}"));
        };
        self.messages += 1;
        let counts = self.counts.entry(client).or_default();
        let at = seq as usize;
        if counts.len() <= at {
            counts.resize(at + 1, 0);
        }
        counts[at] = counts[at].saturating_add(1);
        let times = counts[at];
        let first = times == 1;
        if !first && qos != 1 {
            return self.fault(format!("client {client} message {seq}, QoS {qos}: came {times} times"));
        }
        let qos = u8::try_from(qos).unwrap_or(u8::MAX);
        if first
            && let Some(before) = self.highest.insert((client, qos), seq)
            && before > seq
        {
            self.fault(format!("client {client}, QoS {qos}: {seq} came first after {before}"));
        }
    }

    fn fault(&mut self, what: String) {
        if self.faults.len() < 20 {
            self.faults.push(what);
        }
    }
}

/// A subscriber to all messages, connected from beginning to end.
#[derive(Debug)]
pub struct Watch {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    name: String,
}

impl Watch {
    /// Connects and subscribes.
    ///
    /// # Panics
    /// When it is not let in.
    #[must_use]
    pub fn start(addr: SocketAddr, options: &Options, qos: QoS) -> Self {
        let mut client = Client::connect(addr, options);
        assert_eq!(client.subscribe("soak/m/#", qos), u8::from(qos));
        let seen = Arc::new(Mutex::new(Seen::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let name = options.client_id.clone();
        let thread = {
            let (seen, stop) = (Arc::clone(&seen), Arc::clone(&stop));
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    match client.recv_message(Duration::from_millis(100)) {
                        Ok(message) => lock(&seen).add(&message.payload),
                        Err(error) if error.kind() == ErrorKind::TimedOut => {}
                        Err(error) => {
                            lock(&seen).fault(format!("its connection broke: {error}"));
                            return;
                        }
                    }
                }
                client.disconnect();
            })
        };
        Self { seen, stop, thread: Some(thread), name }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it saw so far.
    pub fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        lock(&self.seen)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // what it saw says how it ended
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Acknowledged messages that `seen` lacks: their number, and the first of them in words.
#[must_use]
pub fn compare(ledger: &Ledger, seen: &Seen) -> (u64, Option<String>) {
    let mut missing = 0;
    let mut first = None;
    for (&client, entries) in ledger {
        for (seq, entry) in entries.iter().enumerate() {
            if entry & ACKNOWLEDGED != 0 && seen.count(client, seq) == 0 {
                missing += 1;
                first.get_or_insert_with(|| format!("client {client} message {seq}, QoS {}", entry & 3));
            }
        }
    }
    (missing, first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(messages: &[&str]) -> Seen {
        let mut seen = Seen::default();
        messages.iter().for_each(|message| seen.add(message.as_bytes()));
        seen
    }

    #[test]
    fn the_comparison_finds_what_is_missing() {
        let ledger = Ledger::from([(7, vec![1 | ACKNOWLEDGED, 2 | ACKNOWLEDGED, 1])]);
        assert_eq!(compare(&ledger, &seen(&["7 0 1 ", "7 1 2 "])), (0, None));
        let (missing, first) = compare(&ledger, &seen(&["7 0 1 ", "7 2 1 "]));
        assert_eq!((missing, first.as_deref()), (1, Some("client 7 message 1, QoS 2")));
    }

    #[test]
    fn a_subscriber_notices_disorder_and_second_copies() {
        for (messages, faults) in [
            (&["1 0 1 x", "1 1 1 x", "2 0 1 x", "1 0 1 x"][..], 0),
            // Each quality of service is an order of its own.
            (&["1 1 2 x", "1 0 1 x"][..], 0),
            (&["1 1 1 x", "1 0 1 x"][..], 1),
            (&["1 0 2 x", "1 0 2 x"][..], 1),
            (&["hello"][..], 1),
        ] {
            assert_eq!(seen(messages).faults.len(), faults, "{messages:?}");
        }
    }
}
