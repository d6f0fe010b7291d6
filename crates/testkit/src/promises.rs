//! Clients that take a broker at its word, over power cuts and kills.
//!
//! # Design
//! - **One thread, one order.** All clients are state machines over non-blocking sockets, driven by whoever holds the [`World`]. So "the
//!   SUBACK had come before the message was sent" is a comparison of two numbers of one clock, the count of packets.
//! - **A client's memory survives, as MQTT asks of it**: flights by packet id (PUBLISH and PUBREL are sent again, with DUP), packet ids of QoS 2 messages
//!   received and not released. Only connections end at a cut.
//! - **What was read before the cut is a promise**, and what was not is open: a CONNECT, SUBSCRIBE or PUBLISH whose answer did not
//!   come may have happened or not.
//!
//! # Promises, and how they are checked
//! | promise | a fault is |
//! |---|---|
//! | PUBACK, PUBREC: the message is safe | at a [`World::settle`], a persistent subscriber whose SUBACK came before the message was first sent, and that had not unsubscribed when it was acknowledged, never got it: *lost* |
//! | QoS 2 is exactly once | a QoS 2 message that an application of a QoS 2 subscription is handed twice in one session (by MQTT's rules for packet ids, over all its connections): *duplicated*. In the next session of a client whose session had ended it is only counted ([`Tally::again`]) |
//! | CONNACK: the session is there | session present where it was discarded or never made, none where there was one |
//! | SUBACK, UNSUBACK | lost, as above; a message first sent after the UNSUBACK |
//! | packet ids go on | another message under a packet id that the client has not released; an acknowledgement of what is not in flight; PUBCOMP 0x92 for a first PUBREL |
//! | order | of a topic and QoS, first occurrences do not ascend |
//! | retained | whoever subscribes anew gets a value older than one acknowledged, or one that was never sent |
//! | wills of persistent sessions | of a connection that ended without DISCONNECT: not published once (no delay); published twice; published though its owner left in order, or came back before its delay |
//!
//! A message is `PUBLISHER SEQ`, padded; wills are those of a publisher of their own.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ferrule_mqtt::{
    Ack, AckType, Connect, Disconnect, Packet, Properties, PropertiesBuf, Property, Publish, QoS, ReasonCode,
    Subscribe, SubscribeFiltersBuf, SubscribeOptions, Unsubscribe, UnsubscribeFiltersBuf, Version, Will,
    decode, encode_ack,
};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::random::Random;
use crate::wire::{self, Client};

/// Unacknowledged publishes of a client.
const WINDOW: usize = 6;
/// How long everything may take to come true once nothing fails any more: ends a hang, measures nothing.
const PATIENCE: Duration = Duration::from_secs(20);
/// Wills are messages of "publisher" `WILLS` + client.
const WILLS: u32 = 1_000;
/// A will's delay that never passes in a run, and one that does.
const NEVER_S: u32 = 3_000;
const SOON_S: u32 = 1;

/// Packets of a client that are told with a fault.
const TRACE: usize = 400;

/// When: a count of packets.
type Clock = u64;

/// What was done and seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Connections that were let in.
    pub connects: u64,
    /// Sessions found again.
    pub resumed: u64,
    /// Messages sent, of any quality of service.
    pub published: u64,
    /// Of them, acknowledged.
    pub acknowledged: u64,
    /// Deliveries to the applications.
    pub delivered: u64,
    /// Acknowledged messages that a subscriber should have had (each counts once a subscriber).
    pub promised: u64,
    /// Of them, those that never came.
    pub lost: u64,
    /// QoS 2 messages handed out twice.
    pub duplicated: u64,
    /// QoS 2 messages handed out once more after the client had given up its session (or had asked to, unanswered).
    pub again: u64,
    /// Wills that had to come and did.
    pub wills: u64,
    /// Connections taken over.
    pub taken_over: u64,
}

impl Tally {
    /// Adds another's.
    pub fn add(&mut self, other: &Self) {
        self.connects += other.connects;
        self.resumed += other.resumed;
        self.published += other.published;
        self.acknowledged += other.acknowledged;
        self.delivered += other.delivered;
        self.promised += other.promised;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.again += other.again;
        self.wills += other.wills;
        self.taken_over += other.taken_over;
    }
}

/// Of a publisher, the number of a message.
type Key = (u32, u32);

#[derive(Debug, Clone)]
struct Sent {
    topic: String,
    qos: QoS,
    /// Its payload is longer than the key by this.
    padding: usize,
    at: Clock,
    /// From here on it is promised.
    acknowledged: Option<Clock>,
    /// It was sent again, under the same packet id: its publisher had read no PUBREC.
    again: bool,
    /// A will that must not come.
    forbidden: bool,
    /// Found in all places at an earlier settling.
    settled: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Away,
    /// The socket connects.
    Dialing,
    /// CONNECT is sent.
    Connecting,
    Open,
    /// DISCONNECT is sent; the server closes.
    Leaving,
}

#[derive(Debug, Clone, Copy)]
struct Flight {
    packet_id: u16,
    seq: u32,
    qos: QoS,
    /// QoS 2: PUBREC has come, PUBREL is due.
    received: bool,
    /// PUBREL was written at least once.
    released: bool,
    /// It was on an earlier connection: then the server may know the packet id no more.
    released_earlier: bool,
}

#[derive(Debug, Default)]
struct Subscription {
    /// From SUBACK until UNSUBSCRIBE or the session's end was sent.
    times: Vec<(Clock, Clock)>,
    active: bool,
    /// (packet id, whether it is an UNSUBSCRIBE) of what is not answered.
    asked: Option<(u16, bool)>,
    /// Since then it is surely none.
    ended: Option<Clock>,
}

/// The will of the present or last connection.
#[derive(Debug, Clone, Copy)]
struct LastWill {
    seq: u32,
    delay_s: u32,
    /// CONNACK has come.
    armed: bool,
}

#[derive(Debug)]
struct Actor {
    number: u32,
    version: Version,
    persistent: bool,
    /// Of its subscriptions.
    granted: QoS,
    publishes: bool,
    subscribes: bool,
    wills: bool,
    /// It sees the wills, and never gives up its session.
    watches: bool,

    phase: Phase,
    stream: Option<TcpStream>,
    /// Connections that were taken over: kept, so that the server has to end them.
    old: Vec<TcpStream>,
    input: Vec<u8>,
    output: Vec<u8>,
    next: Instant,
    leaves: Instant,
    /// Of this connection: it discards the session.
    clean: bool,
    /// The last CONNECT did, and is not answered.
    discarding: bool,

    /// Whether the server has a session; None: not known.
    session: Option<bool>,
    /// What the next CONNACK has to say of it.
    expected: Option<bool>,
    packet_id: u16,
    flights: VecDeque<Flight>,
    /// QoS 2 received and not released.
    received: BTreeMap<u16, Vec<u8>>,
    /// When, what: in the order of what they answer.
    acks: VecDeque<(Instant, AckType, u16)>,
    subscriptions: BTreeMap<String, Subscription>,
    will: Option<LastWill>,
    /// One whose delay runs while its owner comes back; and whether it surely still does.
    pending: Option<(LastWill, bool)>,
    /// The will of a connection that the server closed after a DISCONNECT: gone for good once this client is let in again.
    left: Option<Key>,
    /// It stays away until its will has come.
    until_will: bool,

    seq: u32,
    will_seq: u32,
    /// Retained: (number, whether it clears), those that may be in force.
    kept: Vec<(u32, bool)>,

    /// Of this session: what the application was handed, how often.
    got: HashMap<Key, u32>,
    /// The last packets both ways, to be told with a fault.
    trace: VecDeque<String>,
    /// It had asked to discard this session, was not answered, and found it again.
    revived: bool,
    /// Of its sessions before.
    got_before: HashSet<Key>,
    first: HashMap<(String, u8), u32>,
}

/// All clients, and what they were promised.
#[derive(Debug)]
pub struct World {
    addr: SocketAddr,
    random: Random,
    poll: Poll,
    clock: Clock,
    /// When the server ended.
    cuts: Vec<Clock>,
    actors: Vec<Actor>,
    sent: HashMap<Key, Sent>,
    /// Nothing new is begun, what is open is brought to its end.
    settling: bool,
    /// Payloads are up to so long.
    padding: u64,
    pace: Duration,
    /// Counts.
    pub tally: Tally,
    /// Broken promises, in words.
    pub faults: Vec<String>,
}

/// The filter that every subscriber has, and those that come and go.
const MAIN: &str = "m/#";
const PARTS: u64 = 3;
const WILLS_FILTER: &str = "w/#";

fn matches(filter: &str, topic: &str) -> bool {
    filter.strip_suffix('#').is_some_and(|prefix| topic.starts_with(prefix))
}

impl World {
    /// Clients of a broker that will listen on `addr`.
    ///
    /// # Panics
    /// When there is no epoll instance to be had.
    #[must_use]
    pub fn new(addr: SocketAddr, seed: u64) -> Self {
        let mut random = Random(seed);
        let now = Instant::now();
        let actors = (0..12u32)
            .map(|number| {
                let watches = number < 2;
                let publishes = number >= 4;
                let persistent = watches || (if publishes { !random.one_in(3) } else { number != 3 });
                Actor {
                    number,
                    version: if random.one_in(2) { Version::V5 } else { Version::V3_1_1 },
                    persistent,
                    granted: if watches || random.one_in(2) { QoS::ExactlyOnce } else { QoS::AtLeastOnce },
                    publishes,
                    // One in three publishers listens, too.
                    subscribes: !publishes || number % 3 == 0,
                    wills: publishes && random.one_in(2),
                    watches,
                    phase: Phase::Away,
                    stream: None,
                    old: Vec::new(),
                    input: Vec::new(),
                    output: Vec::new(),
                    next: now,
                    leaves: now,
                    clean: false,
                    discarding: false,
                    session: Some(false),
                    expected: Some(false),
                    packet_id: random.below(65_000) as u16,
                    flights: VecDeque::new(),
                    received: BTreeMap::new(),
                    acks: VecDeque::new(),
                    subscriptions: BTreeMap::new(),
                    will: None,
                    pending: None,
                    left: None,
                    until_will: false,
                    seq: 0,
                    will_seq: 0,
                    // Before the first there is none.
                    kept: vec![(0, true)],
                    got: HashMap::new(),
                    trace: VecDeque::new(),
                    revived: false,
                    got_before: HashSet::new(),
                    first: HashMap::new(),
                }
            })
            .collect();
        // Most messages are small; some runs are of large ones, so that the store folds and copies its log.
        let padding = [40, 40, 400, 6_000][random.below(4) as usize];
        let pace = [2, 4, 10][random.below(3) as usize];
        Self {
            addr,
            random,
            poll: Poll::new().expect("an epoll instance can be made"),
            clock: 0,
            cuts: Vec::new(),
            actors,
            sent: HashMap::new(),
            settling: false,
            padding,
            pace: Duration::from_millis(pace),
            tally: Tally::default(),
            faults: Vec::new(),
        }
    }

    fn fault(&mut self, what: String) {
        if self.faults.len() < 20 {
            self.faults.push(what);
        }
    }

    fn tick(&mut self) -> Clock {
        self.clock += 1;
        self.clock
    }

    /// Drives all clients until `stop` says so, which is asked about every millisecond.
    pub fn run(&mut self, mut stop: impl FnMut(&Self) -> bool) {
        let mut events = Events::with_capacity(64);
        while !stop(self) {
            match self.poll.poll(&mut events, Some(Duration::from_millis(1))) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => result.expect("epoll works"),
            }
            let now = Instant::now();
            for at in 0..self.actors.len() {
                self.read(at);
                self.act(at, now);
                self.flush(at);
            }
        }
    }

    /// The server is gone: reads what it still said, and ends all connections.
    pub fn cut(&mut self) {
        for at in 0..self.actors.len() {
            self.read(at);
            self.ended(at, Ending::Cut);
            self.actors[at].old.clear();
            // What closed the connection may have been the cut.
            self.actors[at].left = None;
        }
        self.cuts.push(self.clock);
    }

    /// Brings everything that is open to its end, and checks all promises. The server has to run, and to stay.
    pub fn settle(&mut self) {
        self.settling = true;
        for actor in &mut self.actors {
            actor.next = Instant::now();
        }
        self.run_until_true();
        // What comes now comes after all that was published before.
        let fences: Vec<usize> = (0..self.actors.len()).filter(|at| self.actors[*at].publishes).collect();
        for at in fences {
            if self.actors[at].phase == Phase::Open {
                self.publish(at, QoS::ExactlyOnce, false);
            }
        }
        self.run_until_true();
        self.check_retained();
        if !self.faults.is_empty() {
            return; // it was not waited for: what is missing says nothing
        }
        let promised = self.promises().count() as u64;
        self.tally.promised += promised;
        let lost: Vec<String> = self.missing().map(|(_, what)| what).collect();
        let missing = lost.len();
        self.tally.lost += missing as u64;
        for what in lost.into_iter().take(5) {
            self.fault(format!("lost: {what}"));
        }
        if missing == 0 {
            self.tally.wills += self
                .sent
                .iter()
                .filter(|(key, sent)| key.0 >= WILLS && !sent.settled && sent.acknowledged.is_some())
                .count() as u64;
        }
        for sent in self.sent.values_mut().filter(|sent| sent.acknowledged.is_some()) {
            sent.settled = true;
        }
        let now = Instant::now();
        for at in 0..self.actors.len() {
            let leaves = now + self.random.about(Duration::from_millis(150));
            self.actors[at].leaves = leaves;
            self.actors[at].old.clear();
        }
        self.settling = false;
    }

    fn run_until_true(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        self.run(|world| {
            !world.faults.is_empty()
                || Instant::now() > deadline
                || (world.is_quiet() && world.missing().next().is_none())
        });
        if self.faults.is_empty() && !self.is_quiet() {
            let open: Vec<String> =
                self.actors.iter().filter(|actor| !actor.is_quiet()).map(Actor::in_words).collect();
            self.fault(format!("not at rest within {PATIENCE:?}: {}", open.join("; ")));
        }
    }

    fn is_quiet(&self) -> bool {
        self.actors.iter().all(Actor::is_quiet)
    }

    /// (subscriber, message) of all that has to be delivered.
    fn promises(&self) -> impl Iterator<Item = (&Actor, &Key, &Sent)> {
        self.sent.iter().filter(|(_, sent)| !sent.settled).flat_map(|(key, sent)| {
            let acknowledged = sent.acknowledged;
            self.actors.iter().filter_map(move |actor| {
                let until = acknowledged?;
                let covers = actor.persistent
                    && actor.subscriptions.iter().any(|(filter, subscription)| {
                        matches(filter, &sent.topic)
                            && subscription.times.iter().any(|(from, to)| *from < sent.at && until < *to)
                    });
                covers.then_some((actor, key, sent))
            })
        })
    }

    fn missing(&self) -> impl Iterator<Item = (Key, String)> {
        self.promises().filter(|(actor, key, _)| !actor.got.contains_key(*key)).map(|(actor, key, sent)| {
            let what = format!(
                "client {} ({:?}, QoS {}) never got message {} {} ({}, QoS {}, sent at {}, acknowledged at {:?}, \
                 the cuts were at {:?}); now {}",
                actor.number, actor.version, actor.granted, key.0, key.1, sent.topic, sent.qos, sent.at,
                sent.acknowledged, self.cuts, self.clock,
            );
            (*key, what)
        })
    }

    /// A client that comes anew finds of each retained message the last value that was acknowledged, or a later one.
    fn check_retained(&mut self) {
        if !self.faults.is_empty() {
            return;
        }
        let name = format!("late-{}", self.clock);
        let mut client = Client::connect(self.addr, &wire::Options::v5(&name));
        client.subscribe("r/#", QoS::AtLeastOnce);
        client.subscribe("late", QoS::AtLeastOnce);
        client.publish("late", b"", QoS::AtLeastOnce, false);
        let mut found: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for message in client.messages_until("late") {
            if found.insert(message.topic.clone(), message.payload).is_some() || !message.retain {
                self.fault(format!("retained {} came twice or without its flag", message.topic));
            }
        }
        client.disconnect();
        for at in 0..self.actors.len() {
            let topic = format!("r/{}", self.actors[at].number);
            let value = found.get(&topic).and_then(|payload| key_of(payload)).map(|key| key.1);
            let kept = self.actors[at].kept.clone();
            let fine =
                kept.iter().any(|(seq, clears)| if *clears { value.is_none() } else { value == Some(*seq) });
            if !fine {
                let what =
                    format!("lost: retained {topic} is {value:?}, could be any of {kept:?} (true: removed)");
                self.tally.lost += 1;
                self.fault(what);
            }
            if let Some(index) = kept
                .iter()
                .rposition(|(seq, clears)| if *clears { value.is_none() } else { value == Some(*seq) })
            {
                // It is in force: what came before it is history.
                self.actors[at].kept.drain(..index);
            }
        }
    }

    // --- sockets ---

    fn read(&mut self, at: usize) {
        let mut buffer = [0; 16 * 1024];
        loop {
            let actor = &mut self.actors[at];
            let Some(stream) = &mut actor.stream else { return };
            match stream.read(&mut buffer) {
                Ok(0) => return self.closed(at),
                Ok(size) => {
                    actor.input.extend_from_slice(&buffer[..size]);
                    self.packets(at);
                }
                Err(error)
                    if error.kind() == ErrorKind::WouldBlock || error.kind() == ErrorKind::NotConnected =>
                {
                    return;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return self.closed(at),
            }
        }
    }

    fn flush(&mut self, at: usize) {
        let now = Instant::now();
        let actor = &mut self.actors[at];
        if actor.phase == Phase::Open {
            while let Some((due, kind, packet_id)) = actor.acks.front().copied()
                && (due <= now || self.settling)
            {
                actor.acks.pop_front();
                actor.trace(self.clock, format!("> {kind:?} {packet_id}"));
                encode_ack(&mut actor.output, actor.version, kind, packet_id, ReasonCode::SUCCESS);
                if kind == AckType::Pubrel {
                    actor
                        .flights
                        .iter_mut()
                        .filter(|f| f.packet_id == packet_id)
                        .for_each(|f| f.released = true);
                }
            }
        }
        let Some(stream) = &mut actor.stream else { return };
        while !actor.output.is_empty() {
            match stream.write(&actor.output) {
                Ok(0) => return,
                Ok(size) => drop(actor.output.drain(..size)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Not connected yet, or over: what the server said last is still to be read.
                Err(_) => return,
            }
        }
    }

    /// The server has closed, or is not there.
    fn closed(&mut self, at: usize) {
        let ending = if self.actors[at].phase == Phase::Leaving { Ending::Order } else { Ending::Cut };
        self.ended(at, ending);
    }

    /// A connection has ended, when there was one.
    fn ended(&mut self, at: usize, ending: Ending) {
        if self.actors[at].stream.take().is_some() {
            self.over(at, ending);
        }
    }

    /// What is left of a connection that has ended. What its will is promised follows from how.
    fn over(&mut self, at: usize, ending: Ending) {
        let away = self.random.about(Duration::from_millis(3));
        let waits = self.random.one_in(3);
        let clock = self.clock;
        let actor = &mut self.actors[at];
        actor.trace(clock, format!("over: {ending:?}"));
        let was = std::mem::replace(&mut actor.phase, Phase::Away);
        actor.next = Instant::now() + away;
        actor.input.clear();
        actor.output.clear();
        actor.acks.clear();
        if was == Phase::Dialing {
            return;
        }
        // Not answered: open whether it happened, and asked again.
        actor.subscriptions.values_mut().for_each(|subscription| subscription.asked = None);
        actor.flights.iter_mut().for_each(|flight| flight.released_earlier |= flight.released);
        let kept_by_server = actor.persistent && (actor.version == Version::V5 || !actor.clean);
        if !kept_by_server {
            actor.forget();
        }
        let Some(will) = actor.will else { return };
        let key = (WILLS + actor.number, will.seq);
        if ending == Ending::Order {
            actor.will = None;
            actor.left = Some(key);
        } else if !kept_by_server || !will.armed {
            actor.will = None;
        } else if will.delay_s == 0 {
            actor.will = None;
            self.promise(key);
        } else if will.delay_s == SOON_S && waits && ending != Ending::TakenOver {
            // Else its owner's return decides.
            actor.until_will = true;
            self.promise(key);
        }
    }

    fn promise(&mut self, key: Key) {
        let now = self.clock;
        if let Some(sent) = self.sent.get_mut(&key) {
            sent.acknowledged = Some(now);
        }
    }

    fn forbid(&mut self, key: Key) {
        if let Some(sent) = self.sent.get_mut(&key) {
            sent.forbidden = true;
        }
        if self.actors.iter().any(|actor| actor.got.contains_key(&key)) {
            self.fault(format!("will {} {} was published, and its owner had not gone", key.0 - WILLS, key.1));
        }
    }

    // --- deeds ---

    fn act(&mut self, at: usize, now: Instant) {
        let actor = &self.actors[at];
        if now < actor.next {
            return;
        }
        match actor.phase {
            Phase::Away => {
                if !actor.until_will {
                    self.connect(at, now);
                } else if self.settling && self.will_has_come(at) {
                    self.actors[at].until_will = false;
                    self.actors[at].will = None;
                }
            }
            Phase::Dialing => self.dialed(at, now),
            Phase::Connecting | Phase::Leaving => {}
            Phase::Open => {
                self.want_subscriptions(at);
                if !self.settling {
                    if now >= self.actors[at].leaves {
                        self.leave(at, now);
                    } else {
                        self.deed(at);
                    }
                }
                let pause = self.random.about(self.pace);
                let actor = &mut self.actors[at];
                actor.next = actor.next.max(now + pause);
            }
        }
    }

    fn will_has_come(&self, at: usize) -> bool {
        let Some(will) = self.actors[at].will else { return true };
        let key = (WILLS + self.actors[at].number, will.seq);
        self.actors.iter().filter(|actor| actor.watches).all(|actor| actor.got.contains_key(&key))
    }

    fn connect(&mut self, at: usize, now: Instant) {
        let Ok(mut stream) = TcpStream::connect(self.addr) else {
            self.actors[at].next = now + Duration::from_millis(3);
            return;
        };
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll
            .registry()
            .register(&mut stream, Token(at), interest)
            .expect("a new socket can be registered");
        self.actors[at].stream = Some(stream);
        self.actors[at].phase = Phase::Dialing;
    }

    /// Says CONNECT once the socket is connected. Before that nothing was asked of the server.
    fn dialed(&mut self, at: usize, now: Instant) {
        let connected = match &self.actors[at].stream {
            Some(stream) => match stream.take_error() {
                Ok(None) => stream.peer_addr().is_ok(),
                _ => return self.ended(at, Ending::Cut),
            },
            None => false,
        };
        if !connected {
            return;
        }
        let discards = !self.actors[at].watches && self.random.one_in(25);
        let delay_s = [0, 0, NEVER_S, SOON_S][self.random.below(4) as usize];
        let clock = self.tick();
        let actor = &mut self.actors[at];
        actor.phase = Phase::Connecting;
        actor.clean = !actor.persistent || discards;
        let mut properties = PropertiesBuf::new();
        if actor.version == Version::V5 && actor.persistent {
            properties.push(Property::SessionExpiryInterval(36_000)).expect("a number");
        }
        // A will whose delay runs: taken back once this is answered, unless it discards the session.
        actor.pending = match (actor.will.take(), actor.pending) {
            (Some(will), _) => Some((will, true)),
            // An unanswered attempt may have ended it already.
            (None, Some((will, _))) if !actor.discarding => Some((will, false)),
            (None, _) => None,
        };
        actor.discarding = actor.clean;
        let topic = format!("w/{}", actor.number);
        let mut will_properties = PropertiesBuf::new();
        let mut payload = Vec::new();
        if actor.wills {
            // The delay is one of the session's that outlives its connection.
            let delay_s = if actor.version == Version::V5 && actor.persistent { delay_s } else { 0 };
            if delay_s > 0 {
                will_properties.push(Property::WillDelayInterval(delay_s)).expect("a number");
            }
            actor.will_seq += 1;
            actor.will = Some(LastWill { seq: actor.will_seq, delay_s, armed: false });
            payload = payload_of((WILLS + actor.number, actor.will_seq), 0);
        }
        let will = actor.wills.then_some(Will {
            qos: QoS::ExactlyOnce,
            retain: false,
            properties: will_properties.as_properties(),
            topic: &topic,
            payload: &payload,
        });
        let client_id = format!("promised-{}", actor.number);
        let connect = Packet::Connect(Connect {
            version: actor.version,
            clean_start: actor.clean,
            bridge: false,
            keep_alive: 0,
            properties: properties.as_properties(),
            client_id: &client_id,
            will,
            username: None,
            password: None,
        });
        connect.encode(actor.version, &mut actor.output).expect("a client's CONNECT can be encoded");
        actor.trace(clock, format!("> CONNECT clean {} will {:?}", actor.clean, actor.will));
        actor.expected = if actor.clean { Some(false) } else { actor.session };
        if actor.clean && actor.persistent {
            // From here on the server may have discarded it.
            actor.forget();
        }
        if actor.clean || actor.session != Some(true) {
            actor.session = None;
        }
        let number = actor.number;
        if let Some(will) = self.actors[at].will {
            let sent = Sent {
                topic,
                qos: QoS::ExactlyOnce,
                padding: 0,
                at: clock,
                acknowledged: None,
                again: false,
                forbidden: false,
                settled: false,
            };
            self.sent.insert((WILLS + number, will.seq), sent);
        }
        self.actors[at].next = now + PATIENCE;
    }

    fn next_id(&mut self, at: usize) -> u16 {
        let actor = &mut self.actors[at];
        loop {
            actor.packet_id = actor.packet_id.checked_add(1).unwrap_or(1);
            let id = actor.packet_id;
            let asked = actor.subscriptions.values().any(|s| s.asked.is_some_and(|(asked, _)| asked == id));
            if !asked && actor.flights.iter().all(|flight| flight.packet_id != id) {
                return id;
            }
        }
    }

    fn want_subscriptions(&mut self, at: usize) {
        let actor = &self.actors[at];
        if !actor.subscribes {
            return;
        }
        let wanted = [Some(MAIN), actor.watches.then_some(WILLS_FILTER)];
        for filter in wanted.into_iter().flatten() {
            let subscription = self.actors[at].subscriptions.get(filter);
            if subscription.is_none_or(|s| !s.active && s.asked.is_none()) {
                self.subscribe(at, filter);
            }
        }
    }

    fn subscribe(&mut self, at: usize, filter: &str) {
        let packet_id = self.next_id(at);
        self.tick();
        let actor = &mut self.actors[at];
        let subscription = actor.subscriptions.entry(filter.to_owned()).or_default();
        subscription.asked = Some((packet_id, false));
        subscription.ended = None;
        let mut filters = SubscribeFiltersBuf::new();
        filters.push(filter, SubscribeOptions::new(actor.granted)).expect("a short filter");
        let packet = Packet::Subscribe(Subscribe {
            packet_id,
            properties: Properties::EMPTY,
            filters: filters.as_filters(),
        });
        packet.encode(actor.version, &mut actor.output).expect("a SUBSCRIBE can be encoded");
    }

    fn unsubscribe(&mut self, at: usize, filter: &str) {
        let packet_id = self.next_id(at);
        let clock = self.tick();
        let actor = &mut self.actors[at];
        let subscription = actor.subscriptions.entry(filter.to_owned()).or_default();
        if subscription.active
            && let Some(time) = subscription.times.last_mut()
        {
            time.1 = clock;
        }
        subscription.active = false;
        subscription.asked = Some((packet_id, true));
        let mut filters = UnsubscribeFiltersBuf::new();
        filters.push(filter).expect("a short filter");
        let packet = Packet::Unsubscribe(Unsubscribe {
            packet_id,
            properties: Properties::EMPTY,
            filters: filters.as_filters(),
        });
        packet.encode(actor.version, &mut actor.output).expect("an UNSUBSCRIBE can be encoded");
    }

    fn deed(&mut self, at: usize) {
        let actor = &self.actors[at];
        let (publishes, subscribes) = (actor.publishes, actor.subscribes);
        if publishes {
            let qos =
                [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::AtLeastOnce, QoS::ExactlyOnce, QoS::ExactlyOnce]
                    [self.random.below(5) as usize];
            let retained = self.random.one_in(12);
            self.publish(at, qos, retained);
        }
        if subscribes && self.random.one_in(if publishes { 60 } else { 15 }) {
            let filter = format!("d/{}/#", self.random.below(PARTS));
            match self.actors[at].subscriptions.get(&filter) {
                Some(subscription) if subscription.asked.is_some() => {}
                Some(subscription) if subscription.active => self.unsubscribe(at, &filter),
                _ => self.subscribe(at, &filter),
            }
        }
    }

    fn publish(&mut self, at: usize, qos: QoS, retained: bool) {
        let actor = &self.actors[at];
        let number = actor.number;
        // One quality of service a retained topic: across two of them MQTT knows no order.
        let qos = match (retained, number % 2) {
            (true, 0) => QoS::AtLeastOnce,
            (true, _) => QoS::ExactlyOnce,
            _ => qos,
        };
        if qos > QoS::AtMostOnce && actor.flights.len() >= WINDOW && !self.settling {
            return;
        }
        let packet_id = if qos == QoS::AtMostOnce { 0 } else { self.next_id(at) };
        let topic = if retained {
            format!("r/{number}")
        } else if self.random.one_in(3) && !self.settling {
            format!("d/{}/{number}", self.random.below(PARTS))
        } else {
            format!("m/{number}/{}", self.random.below(3))
        };
        let padding = self.random.below(self.padding) as usize;
        let clears = retained && self.random.one_in(5);
        let clock = self.tick();
        let actor = &mut self.actors[at];
        actor.seq += 1;
        let seq = actor.seq;
        if retained {
            actor.kept.push((seq, clears));
        }
        // What clears has no payload.
        let padding = if clears { usize::MAX } else { padding };
        let sent = Sent {
            topic,
            qos,
            padding,
            at: clock,
            acknowledged: None,
            again: false,
            forbidden: false,
            settled: false,
        };
        self.sent.insert((number, seq), sent);
        if qos > QoS::AtMostOnce {
            let flight =
                Flight { packet_id, seq, qos, received: false, released: false, released_earlier: false };
            self.actors[at].flights.push_back(flight);
        }
        self.tally.published += 1;
        self.send(at, seq, packet_id, false);
    }

    fn send(&mut self, at: usize, seq: u32, packet_id: u16, dup: bool) {
        let actor = &mut self.actors[at];
        let key = (actor.number, seq);
        let sent = self.sent.get_mut(&key).expect("a flight's message was sent");
        sent.again |= dup;
        let payload = if sent.padding == usize::MAX { Vec::new() } else { payload_of(key, sent.padding) };
        let publish = Packet::Publish(Publish {
            dup,
            qos: sent.qos,
            retain: sent.topic.starts_with("r/"),
            topic: &sent.topic,
            packet_id,
            properties: Properties::EMPTY,
            payload: &payload,
        });
        publish.encode(actor.version, &mut actor.output).expect("a PUBLISH can be encoded");
        let what = format!("> PUBLISH {packet_id} QoS {} DUP {dup} {} {key:?}", sent.qos, sent.topic);
        actor.trace(self.clock, what);
    }

    fn leave(&mut self, at: usize, now: Instant) {
        let v5 = self.actors[at].version == Version::V5;
        let deed = self.random.below(10);
        let disconnect = |actor: &mut Actor, reason| {
            let packet = Packet::Disconnect(Disconnect { reason, properties: Properties::EMPTY });
            packet.encode(actor.version, &mut actor.output).expect("a DISCONNECT can be encoded");
        };
        match deed {
            0..3 => {
                disconnect(&mut self.actors[at], ReasonCode::SUCCESS);
                self.flush(at);
                let actor = &mut self.actors[at];
                actor.phase = Phase::Leaving;
                actor.next = now + PATIENCE;
                return;
            }
            3 if v5 => {
                disconnect(&mut self.actors[at], ReasonCode::DISCONNECT_WITH_WILL);
                self.flush(at);
            }
            4..7 => {
                // Another connection of the same client: the server ends this one.
                if let Some(mut stream) = self.actors[at].stream.take() {
                    self.poll.registry().deregister(&mut stream).expect("registered when it was opened");
                    self.actors[at].old.push(stream);
                    self.tally.taken_over += 1;
                    self.over(at, Ending::TakenOver);
                    self.actors[at].next = now;
                }
                return;
            }
            7 | 8 => {
                if let Some(stream) = &self.actors[at].stream {
                    let reset = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
                    reset.expect("a socket can be told to reset");
                }
            }
            _ => {}
        }
        self.ended(at, Ending::Dropped);
        // Away for a while: its queue fills.
        let away = self.random.about(Duration::from_millis(60));
        self.actors[at].next = now + away;
    }

    // --- the server's packets ---

    fn packets(&mut self, at: usize) {
        let input = std::mem::take(&mut self.actors[at].input);
        let version = self.actors[at].version;
        let mut used = 0;
        loop {
            match decode(&input[used..], Some(version), 1 << 20) {
                Ok(Some((packet, size))) => {
                    self.packet(at, &packet);
                    used += size;
                }
                Ok(None) => break,
                Err(error) => {
                    self.fault(format!("client {at}: the server sent no MQTT: {error}"));
                    used = input.len();
                    break;
                }
            }
        }
        if self.actors[at].stream.is_some() {
            self.actors[at].input = input[used..].to_vec();
        }
    }

    fn packet(&mut self, at: usize, packet: &Packet<'_>) {
        let clock = self.tick();
        let what = match packet {
            Packet::Publish(p) => format!(
                "< PUBLISH {} QoS {} DUP {} {} {:?}",
                p.packet_id,
                p.qos,
                p.dup,
                p.topic,
                key_of(p.payload)
            ),
            other => format!("< {other:?}"),
        };
        self.actors[at].trace(clock, what);
        match *packet {
            Packet::Connack(connack) => self.connack(at, connack.reason, connack.session_present),
            Packet::Publish(publish) => self.message(at, &publish),
            Packet::Pubrel(pubrel) => {
                self.actors[at].received.remove(&pubrel.packet_id);
                self.answer(at, AckType::Pubcomp, pubrel.packet_id);
            }
            Packet::Puback(ack) => self.acknowledged(at, ack, QoS::AtLeastOnce),
            Packet::Pubrec(ack) => {
                self.acknowledged(at, ack, QoS::ExactlyOnce);
                self.answer(at, AckType::Pubrel, ack.packet_id);
            }
            Packet::Pubcomp(ack) => self.completed(at, ack),
            Packet::Suback(suback) => {
                let refused = suback.reasons.iter().any(|reason| *reason >= 0x80);
                let actor = &mut self.actors[at];
                let found =
                    actor.subscriptions.values_mut().find(|s| s.asked == Some((suback.packet_id, false)));
                match found {
                    Some(subscription) if !refused => {
                        subscription.asked = None;
                        if !subscription.active {
                            subscription.active = true;
                            subscription.times.push((clock, Clock::MAX));
                        }
                    }
                    _ => self.fault(format!("client {at}: SUBACK {suback:?}")),
                }
            }
            Packet::Unsuback(unsuback) => {
                let actor = &mut self.actors[at];
                let found =
                    actor.subscriptions.values_mut().find(|s| s.asked == Some((unsuback.packet_id, true)));
                match found {
                    Some(subscription) => {
                        subscription.asked = None;
                        subscription.ended = Some(clock);
                    }
                    None => self.fault(format!("client {at}: UNSUBACK {unsuback:?}")),
                }
            }
            Packet::Disconnect(disconnect) => {
                self.fault(format!("client {at} was disconnected: {:?}", disconnect.reason));
            }
            ref other => self.fault(format!("client {at}: the server sent {other:?}")),
        }
    }

    fn connack(&mut self, at: usize, reason: ReasonCode, present: bool) {
        let (now, clock) = (Instant::now(), self.clock);
        if reason != ReasonCode::SUCCESS {
            return self.fault(format!("client {at} was refused: {reason:?}"));
        }
        self.tally.connects += 1;
        self.tally.resumed += u64::from(present);
        let expected = self.actors[at].expected;
        if expected.is_some_and(|expected| expected != present) {
            let actor = &self.actors[at];
            let what = format!(
                "client {at} ({:?}, clean {}): session present {present}, was promised {expected:?}",
                actor.version, actor.clean
            );
            self.fault(what);
        }
        let leaves = now + self.random.about(Duration::from_millis(150));
        let actor = &mut self.actors[at];
        actor.phase = Phase::Open;
        actor.next = now;
        actor.leaves = leaves;
        // In 3.1.1 a clean session ends with its connection.
        actor.session = Some(actor.persistent && (!actor.clean || actor.version == Version::V5));
        actor.discarding = false;
        actor.revived |= present && expected.is_none();
        let (was, left, discarded) = (actor.pending.take(), actor.left.take(), actor.clean);
        if let Some(will) = &mut actor.will {
            will.armed = true;
        }
        if !present {
            actor.flights.clear();
            actor.received.clear();
            for subscription in actor.subscriptions.values_mut().filter(|s| s.asked.is_none() && !s.active) {
                subscription.ended = Some(clock);
            }
        }
        let flights: Vec<Flight> = actor.flights.iter().copied().collect();
        for flight in flights {
            if flight.received {
                self.answer(at, AckType::Pubrel, flight.packet_id);
            } else {
                self.send(at, flight.seq, flight.packet_id, true);
            }
        }
        if let Some(key) = left {
            self.forbid(key);
        }
        if let Some((will, surely)) = was {
            let key = (WILLS + self.actors[at].number, will.seq);
            if discarded && surely {
                // The session's end is the will's time, too.
                self.promise(key);
            } else if !discarded && will.delay_s == NEVER_S {
                self.forbid(key);
            }
        }
    }

    /// Queues an acknowledgement: at once, or a little later. What was received first is acknowledged first.
    fn answer(&mut self, at: usize, kind: AckType, packet_id: u16) {
        let late = if self.random.one_in(4) { self.random.below(25) } else { 0 };
        let due = Instant::now() + Duration::from_millis(late);
        self.actors[at].acks.push_back((due, kind, packet_id));
    }

    fn message(&mut self, at: usize, publish: &Publish<'_>) {
        match publish.qos {
            QoS::AtMostOnce => {}
            QoS::AtLeastOnce => self.answer(at, AckType::Puback, publish.packet_id),
            QoS::ExactlyOnce => {
                self.answer(at, AckType::Pubrec, publish.packet_id);
                let payload = publish.payload;
                let actor = &mut self.actors[at];
                if let Some(earlier) = actor.received.get(&publish.packet_id) {
                    if *earlier != payload {
                        let texts = [earlier.as_slice(), payload].map(key_of);
                        self.fault(format!(
                            "client {at}: packet id {} is another message's, {texts:?}, and was not released",
                            publish.packet_id
                        ));
                    }
                    return;
                }
                actor.received.insert(publish.packet_id, payload.to_vec());
            }
        }
        let Some(key) = key_of(publish.payload) else {
            return self.fault(format!("client {at} got what nobody sent: {publish:?}"));
        };
        let Some(sent) = self.sent.get(&key) else {
            return self.fault(format!("client {at} got {key:?}, which nobody sent"));
        };
        self.tally.delivered += 1;
        let mut faults = Vec::new();
        let expect = payload_of(key, sent.padding);
        if sent.topic != publish.topic || expect != publish.payload {
            faults.push(format!("client {at} got {key:?} altered: {publish:?}"));
        }
        if sent.forbidden {
            faults.push(format!("client {at} got {key:?}, the will of a client that had not gone"));
        }
        let actor = &mut self.actors[at];
        let ended = actor.subscriptions.iter().find(|(filter, _)| matches(filter, publish.topic));
        if let Some((filter, subscription)) = ended
            && subscription.ended.is_some_and(|ended| ended < sent.at)
        {
            faults.push(format!("client {at} got {key:?} of {filter}, which it had unsubscribed"));
        }
        let times = actor.got.entry(key).or_default();
        *times += 1;
        if *times > 1 {
            if sent.qos == QoS::ExactlyOnce && actor.granted == QoS::ExactlyOnce {
                self.tally.duplicated += 1;
                faults.push(format!(
                    "duplicated: client {at} was handed {key:?} ({}, QoS 2) {times} times; packet id {}, DUP {}",
                    publish.topic, publish.packet_id, publish.dup
                ));
            }
        } else {
            let again = sent.qos == QoS::ExactlyOnce && actor.got_before.contains(&key);
            self.tally.again += u64::from(again);
            // What was sent again may come to a subscription of a lower QoS once more, as that one's messages may.
            if again && !actor.revived && (!sent.again || actor.granted == QoS::ExactlyOnce) {
                faults.push(format!("client {at} got {key:?} in a second session"));
            }
            // A repetition of what was sent before the subscription may come when it likes.
            let throughout = actor.subscriptions.iter().any(|(filter, subscription)| {
                matches(filter, publish.topic)
                    && subscription.active
                    && subscription.times.last().is_some_and(|(from, _)| *from < sent.at)
            });
            let order = (publish.topic.to_owned(), u8::from(sent.qos));
            if throughout
                && let Some(before) = actor.first.insert(order, key.1)
                && before > key.1
                && key.0 < WILLS
            {
                faults.push(format!(
                    "order: client {at} ({:?}, QoS {}): of {} at QoS {}, {} came first after {before}; the cuts were at {:?}, now {}",
                    actor.version, actor.granted, publish.topic, sent.qos, key.1, self.cuts, self.clock
                ));
            }
        }
        for what in faults {
            self.fault(what);
            let publisher = self.actors.iter().position(|actor| actor.number == key.0);
            for which in [Some(at), publisher].into_iter().flatten() {
                let trace = self.actors[which].trace.make_contiguous().join("\n    ");
                self.fault(format!("what client {which} sent (>) and got (<):\n    {trace}"));
            }
        }
    }

    fn acknowledged(&mut self, at: usize, ack: Ack<'_>, qos: QoS) {
        let clock = self.clock;
        let actor = &mut self.actors[at];
        let found = actor.flights.iter().position(|f| f.packet_id == ack.packet_id && f.qos == qos);
        let Some(index) = found else {
            return self
                .fault(format!("client {at}, QoS {qos}: acknowledged what is not in flight: {ack:?}"));
        };
        if ack.reason.is_error() {
            return self.fault(format!("client {at}, QoS {qos}: refused: {ack:?}"));
        }
        let flight = &mut actor.flights[index];
        let (seq, first) = (flight.seq, !flight.received);
        flight.received = true;
        if qos == QoS::AtLeastOnce {
            actor.flights.remove(index);
        }
        if first {
            self.tally.acknowledged += 1;
            let key = (self.actors[at].number, seq);
            let sent = self.sent.get_mut(&key).expect("a flight's message was sent");
            sent.acknowledged = Some(clock);
            if sent.topic.starts_with("r/") {
                // Older values are history.
                self.actors[at].kept.retain(|(kept, _)| *kept >= seq);
            }
        }
    }

    fn completed(&mut self, at: usize, ack: Ack<'_>) {
        let actor = &mut self.actors[at];
        let Some(index) = actor.flights.iter().position(|f| f.packet_id == ack.packet_id && f.released)
        else {
            return self.fault(format!("client {at}: completed what was not released: {ack:?}"));
        };
        let flight = actor.flights.remove(index);
        if ack.reason.is_error() && !flight.is_some_and(|flight| flight.released_earlier) {
            self.fault(format!("client {at}: the server knows its own packet id no more: {ack:?}"));
        }
    }
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// By DISCONNECT, and the server has answered it by closing.
    Order,
    /// By the client, without a word or with DISCONNECT 0x04.
    Dropped,
    /// By another connection of the same client, this one being open still.
    TakenOver,
    /// By the server's end.
    Cut,
}

impl Actor {
    fn trace(&mut self, clock: Clock, what: String) {
        if self.trace.len() == TRACE {
            self.trace.pop_front();
        }
        self.trace.push_back(format!("{clock} {what}"));
    }

    /// The session is given up: nothing that it was promised holds.
    fn forget(&mut self) {
        self.flights.clear();
        self.received.clear();
        self.got_before.extend(self.got.drain().map(|(key, _)| key));
        self.first.clear();
        self.revived = false;
        for subscription in self.subscriptions.values_mut() {
            subscription.active = false;
            subscription.asked = None;
            subscription.times.clear();
        }
    }

    fn is_quiet(&self) -> bool {
        (self.phase == Phase::Open
            && self.flights.is_empty()
            && self.output.is_empty()
            && self.acks.is_empty()
            && self.received.is_empty()
            && self.subscriptions.values().all(|subscription| subscription.asked.is_none())
            && (!self.subscribes || self.subscriptions.get(MAIN).is_some_and(|s| s.active)))
            && (!self.watches || self.subscriptions.get(WILLS_FILTER).is_some_and(|s| s.active))
    }

    fn in_words(&self) -> String {
        format!(
            "client {} ({:?}) {:?}, in flight {:?}, not released {:?}, to be acknowledged {:?}, asked {:?}, until will {}",
            self.number,
            self.version,
            self.phase,
            self.flights,
            self.received.keys(),
            self.acks.len(),
            self.subscriptions.values().filter_map(|s| s.asked).collect::<Vec<_>>(),
            self.until_will,
        )
    }
}

/// The payload of a message: its key in words, padded.
fn payload_of((publisher, seq): Key, padding: usize) -> Vec<u8> {
    let mut payload = format!("{publisher} {seq} ").into_bytes();
    payload.resize(payload.len() + padding, b'.');
    payload
}

fn key_of(payload: &[u8]) -> Option<Key> {
    let text = std::str::from_utf8(payload).ok()?;
    let mut words = text.split(' ').map_while(|word| word.parse().ok());
    Some((words.next()?, words.next()?))
}
