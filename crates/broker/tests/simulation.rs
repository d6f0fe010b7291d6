//! Seeded runs of clients, a shard, a store and power cuts against what MQTT and contract 1 promise.
//!
//! Clients are correct MQTT clients (they send again what is not acknowledged, and know QoS 2 packet ids) with bad habits:
//! they vanish, take over, answer late. What is checked:
//! - a message of QoS 1 or 2 whose publisher has its acknowledgement reaches every persistent session that was subscribed
//!   all the while, through any number of power cuts;
//! - QoS 2 reaches a persistent session once, through any number of power cuts, and a clean one once in a process life;
//! - per publisher, topic and QoS first deliveries come in the order of publishing [MQTT-4.6.0-6];
//! - a session that was acknowledged is present;
//! - no end is lost and in the end no receipt is open.
//!
//! `FERRULE_SEED=n` runs one seed, `FERRULE_SEEDS=n` that many.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
use common::{Does, Rig};
use ferrule_broker::ClientLimits;
use ferrule_mqtt::QoS;
use ferrule_outbox::{Outcome, Reason};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

struct Sent {
    publisher: usize,
    topic: String,
    qos: u8,
    acknowledged: bool,
    /// Clients that were subscribed when it was first sent, and have been since. Others may get it late, from a repetition.
    watched: BTreeSet<usize>,
    /// Persistent ones of these, with a granted QoS above 0.
    owed_to: BTreeSet<usize>,
}

/// A publish that is not over.
struct Open {
    id: u16,
    message: usize,
    released: bool,
}

#[derive(Default)]
struct Client {
    version: u8,
    persistent: bool,
    window: u16,
    peer: Option<String>,
    /// CONNACK seen.
    up: bool,
    /// A session was acknowledged.
    session: bool,
    open: VecDeque<Open>,
    last_id: u16,
    /// Acknowledgements not sent yet.
    owed: VecDeque<String>,
    /// QoS 2 packet ids between PUBLISH and PUBREL.
    held: BTreeSet<u16>,
    subscriptions: BTreeMap<String, u8>,
    asked: BTreeMap<u16, (String, Option<u8>)>,
    got: BTreeSet<usize>,
    got_once: BTreeMap<usize, u32>,
    /// By publisher, topic, QoS published and delivered: the last that was delivered for the first time.
    last: BTreeMap<(usize, String, u8, u8), usize>,
}

struct World {
    rig: Rig,
    random: Random,
    clients: Vec<Client>,
    sent: Vec<Sent>,
    peers: usize,
    trace: Vec<String>,
}

const TOPICS: [&str; 3] = ["t/0", "t/1", "t/2"];
const FILTERS: [&str; 4] = ["t/0", "t/1", "t/2", "t/#"];

fn matches(filter: &str, topic: &str) -> bool {
    filter == "t/#" || filter == topic
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rig = Rig::new(ClientLimits {
            receive_max: 16,
            waiting_max: 20,
            inflight_max: 8,
            ..ClientLimits::default()
        });
        if seed.is_multiple_of(3) {
            // A head that is soon full: backlogs go through the store.
            rig.policy.head_bytes = 1_000;
            rig.crash();
        }
        rig.rule("t/1");
        rig.hook.0.borrow_mut().does = Does::Hold;
        let clients = [(4, true, 0), (5, true, 0), (5, true, 2), (5, false, 3), (4, false, 0)]
            .map(|(version, persistent, window)| Client { version, persistent, window, ..Client::default() });
        Self {
            rig,
            random: Random(seed),
            clients: clients.into(),
            sent: Vec::new(),
            peers: 0,
            trace: Vec::new(),
        }
    }

    fn send(&mut self, c: usize, line: &str) {
        let Some(peer) = self.clients[c].peer.clone() else { return };
        self.trace.push(format!("{peer}> {line}"));
        self.rig.send(&peer, line);
        self.listen();
    }

    fn connect(&mut self, c: usize) {
        self.gone(c);
        self.peers += 1;
        let client = &mut self.clients[c];
        let peer = format!("c{c}.{}", self.peers);
        client.peer = Some(peer);
        let mut line = format!("connect id=c{c} v={}", client.version);
        if client.persistent {
            line += " clean=0 expiry=1000000";
        }
        if client.window > 0 {
            line += &format!(" rmax={}", client.window);
        }
        self.send(c, &line);
    }

    /// The connection is over, whoever ended it; it may still be open on the other side.
    fn gone(&mut self, c: usize) {
        let client = &mut self.clients[c];
        (client.peer, client.up) = (None, false);
        client.owed.clear();
        client.asked.clear();
        if !client.persistent {
            client.open.clear();
            client.held.clear();
            client.subscriptions.clear();
            client.last.clear();
            client.got.clear();
            client.got_once.clear();
            self.sent.iter_mut().for_each(|sent| _ = sent.watched.remove(&c));
        }
    }

    fn publish(&mut self, c: usize, topic: &str, qos: u8) {
        let client = &mut self.clients[c];
        if !client.up || client.open.len() >= 6 {
            return;
        }
        let message = self.sent.len();
        let mut line = format!("publish t={topic} q={qos} p={message}");
        if qos > 0 {
            client.last_id = client.last_id % 50 + 1;
            while client.open.iter().any(|o| o.id == client.last_id) {
                client.last_id = client.last_id % 50 + 1;
            }
            line += &format!(" id={}", client.last_id);
            client.open.push_back(Open { id: client.last_id, message, released: false });
        }
        let owed_to = (self.clients.iter().enumerate())
            .filter(|(_, s)| s.persistent)
            .filter(|(_, s)| s.subscriptions.iter().any(|(f, q)| *q > 0 && matches(f, topic)))
            .map(|(s, _)| s)
            .collect();
        let watched = (self.clients.iter().enumerate())
            .filter(|(_, s)| s.subscriptions.keys().any(|f| matches(f, topic)))
            .map(|(s, _)| s)
            .collect();
        let topic = topic.to_string();
        self.sent.push(Sent { publisher: c, topic, qos, acknowledged: false, watched, owed_to });
        self.send(c, &line);
    }

    /// From now on nothing of this filter is owed to a client.
    fn no_longer_owed(&mut self, c: usize, filter: &str) {
        self.clients[c].subscriptions.remove(filter);
        for sent in self.sent.iter_mut().filter(|s| matches(filter, &s.topic)) {
            sent.owed_to.remove(&c);
            sent.watched.remove(&c);
        }
    }

    fn subscribe(&mut self, c: usize, filter: &str, qos: Option<u8>) {
        if !self.clients[c].up {
            return;
        }
        if self.clients[c].subscriptions.get(filter).copied() != qos {
            self.no_longer_owed(c, filter);
        }
        self.clients[c].asked.retain(|_, (asked, _)| asked != filter);
        let id = 100 + self.random.below(1_000) as u16;
        self.clients[c].asked.insert(id, (filter.into(), qos));
        match qos {
            Some(qos) => self.send(c, &format!("subscribe id={id} f={filter}:{qos}:rh2:rap")),
            None => self.send(c, &format!("unsubscribe id={id} f={filter}")),
        }
    }

    /// Takes what came out, for all clients.
    fn listen(&mut self) {
        loop {
            let mut quiet = true;
            for c in 0..self.clients.len() {
                let Some(peer) = self.clients[c].peer.clone() else { continue };
                while let Some(packet) = self.rig.peer(&peer).packets.pop_front() {
                    quiet = false;
                    self.trace.push(format!("{peer}< {packet}"));
                    self.heard(c, &packet);
                }
                if self.rig.peer(&peer).closed && self.clients[c].peer.as_deref() == Some(&peer) {
                    self.trace.push(format!("{peer} closed"));
                    self.gone(c);
                }
            }
            if quiet {
                return;
            }
        }
    }

    fn heard(&mut self, c: usize, packet: &str) {
        let words: Vec<&str> = packet.split(' ').collect();
        let id = || words[1].parse::<u16>().unwrap();
        let client = &mut self.clients[c];
        match words[0] {
            "connack" => {
                assert!(words[1] == "sp=1" || !client.session, "the session of c{c} was lost");
                (client.up, client.session) = (true, client.persistent);
                // Again, in order [MQTT-4.4.0-1].
                let again: Vec<String> = (client.open.iter())
                    .map(|o| {
                        let Sent { topic, qos, .. } = &self.sent[o.message];
                        if o.released {
                            format!("pubrel {}", o.id)
                        } else {
                            format!("publish t={topic} q={qos} p={} id={} dup=1", o.message, o.id)
                        }
                    })
                    .collect();
                again.iter().for_each(|line| self.send(c, line));
            }
            "puback" => {
                let at = client.open.iter().position(|o| o.id == id());
                // After a repetition there may be two.
                if let Some(open) = at.and_then(|at| client.open.remove(at)) {
                    self.sent[open.message].acknowledged = true;
                }
            }
            "pubrec" => {
                if let Some(open) = client.open.iter_mut().find(|o| o.id == id()) {
                    open.released = true;
                    self.sent[open.message].acknowledged = true;
                }
                client.owed.push_back(format!("pubrel {}", id()));
            }
            "pubcomp" => client.open.retain(|o| o.id != id() || !o.released),
            "pubrel" => {
                client.held.remove(&id());
                client.owed.push_back(format!("pubcomp {}", id()));
            }
            "suback" | "unsuback" => {
                if let Some((filter, Some(qos))) = client.asked.remove(&id()) {
                    client.subscriptions.insert(filter, qos);
                }
            }
            "publish" => self.delivered(c, &words),
            "disconnect" | "pong" => {}
            other => panic!("{other}"),
        }
    }

    fn delivered(&mut self, c: usize, words: &[&str]) {
        let message: usize = words.last().unwrap().parse().unwrap();
        let qos: u8 = words[2][1..].parse().unwrap();
        let id = words.iter().find_map(|w| w.strip_prefix("id=")).map(|id| id.parse::<u16>().unwrap());
        let client = &mut self.clients[c];
        let Sent { publisher, topic, qos: published, .. } = &self.sent[message];
        assert_eq!(topic, words[1]);
        if qos > 0 {
            let kind = if qos == 1 { "puback" } else { "pubrec" };
            client.owed.push_back(format!("{kind} {}", id.unwrap()));
        }
        if qos == 2 {
            if !client.held.insert(id.unwrap()) {
                return; // A repetition: the client has it.
            }
            let times = client.got_once.entry(message).or_default();
            *times += 1;
            assert_eq!(*times, 1, "message {message} of QoS 2 came to c{c} again");
        }
        let first = client.got.insert(message);
        // At a granted QoS of 0 what came first may have been missed, and its repetition not.
        if first && self.sent[message].watched.contains(&c) && (qos > 0 || *published == 0) {
            let key = (*publisher, topic.clone(), *published, qos);
            let last = client.last.insert(key, message);
            assert!(last.is_none_or(|last| last < message), "{message} came to c{c} after {last:?}");
        }
    }

    /// Sends acknowledgements that are owed, oldest first.
    fn answer(&mut self, c: usize, most: u64) {
        for _ in 0..most {
            if !self.clients[c].up {
                return;
            }
            let Some(line) = self.clients[c].owed.pop_front() else { return };
            self.send(c, &line);
        }
    }

    fn resolve(&mut self, retry: bool) {
        let held = self.rig.hook.0.borrow_mut().held.pop_front();
        let Some((qos, end, shard)) = held else { return };
        let outcome = match self.random.below(10) {
            // What went to some destinations is routed to all again: only QoS 1 allows that.
            0 if retry && qos == QoS::AtLeastOnce => Outcome::Retry,
            1 => Outcome::Discarded(Reason::Refused),
            _ => Outcome::Delivered,
        };
        self.rig.hook.0.borrow_mut().said.extend(end.map(|end| (end, outcome, shard)));
        self.rig.turn();
        self.listen();
    }

    fn step(&mut self) {
        let c = self.random.below(self.clients.len() as u64) as usize;
        match self.random.below(100) {
            0..35 => {
                let (topic, qos) = (self.random.below(3) as usize, self.random.below(3) as u8);
                self.publish(c, TOPICS[topic], qos);
            }
            35..60 => {
                let most = 1 + self.random.below(6);
                self.answer(c, most);
            }
            60..68 if self.clients[c].peer.is_none() => self.connect(c),
            60..64 => {}
            64..68 => {
                // Taking over, or vanishing.
                match (self.clients[c].peer.clone(), self.random.below(3)) {
                    (Some(_), 0) => self.connect(c),
                    (Some(peer), 1) => {
                        self.trace.push(format!("drop {peer}"));
                        self.gone(c);
                        self.rig.drop_peer(&peer);
                    }
                    (Some(_), _) => {
                        self.send(c, "disconnect");
                        self.gone(c);
                    }
                    (None, _) => {}
                }
            }
            68..76 => {
                let filter = FILTERS[self.random.below(4) as usize];
                let qos = (!self.random.chance(20)).then(|| self.random.below(3) as u8);
                self.subscribe(c, filter, qos);
            }
            76..86 => {
                self.trace.push("commit".into());
                self.rig.commit();
            }
            86..92 => {
                let ms = self.random.below(300);
                self.trace.push(format!("wait {ms}"));
                self.rig.wait(ms);
            }
            92..99 => self.resolve(true),
            _ => {
                if self.random.chance(40) {
                    self.crash();
                }
            }
        }
        self.listen();
    }

    fn crash(&mut self) {
        self.trace.push("crash".into());
        self.rig.crash();
        self.rig.hook.0.borrow_mut().does = Does::Hold;
        for c in 0..self.clients.len() {
            self.gone(c);
        }
    }

    /// All come back, answer, and wait for what is theirs.
    fn heal(&mut self) {
        for c in 0..self.clients.len() {
            if self.clients[c].persistent {
                self.connect(c);
            }
        }
        for _ in 0..60 {
            for c in 0..self.clients.len() {
                self.answer(c, 100);
                if self.clients[c].persistent && self.clients[c].peer.is_none() {
                    self.connect(c);
                }
            }
            self.rig.commit();
            self.rig.wait(500);
            while !self.rig.hook.0.borrow().held.is_empty() {
                self.resolve(false);
            }
            self.listen();
        }
        for (c, client) in self.clients.iter().enumerate().filter(|(_, c)| c.persistent) {
            assert!(client.open.is_empty(), "c{c} is not answered");
        }
        for (message, sent) in self.sent.iter().enumerate().filter(|(_, s)| s.acknowledged && s.qos > 0) {
            for &c in &sent.owed_to {
                assert!(
                    self.clients[c].got.contains(&message),
                    "acknowledged message {message} never came to c{c}"
                );
            }
        }
        let [.., open, lost] = self.rig.shards[0].sizes();
        assert_eq!((open, lost), (0, 0), "open receipts, lost ends");
    }
}

fn run(seed: u64) -> (usize, usize) {
    struct Tell<'a>(u64, &'a mut World);
    impl Drop for Tell<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                let trace = &self.1.trace;
                let from =
                    if std::env::var("FERRULE_SEED").is_ok() { 0 } else { trace.len().saturating_sub(30) };
                eprintln!("{}\nFERRULE_SEED={}", trace[from..].join("\n"), self.0);
            }
        }
    }
    let mut world = World::new(seed);
    let tell = Tell(seed, &mut world);
    let world = &mut *tell.1;
    for _ in 0..600 {
        world.step();
    }
    world.heal();
    let acknowledged = world.sent.iter().filter(|s| s.acknowledged).count();
    let owed = world.sent.iter().filter(|s| s.acknowledged).map(|s| s.owed_to.len()).sum();
    drop(tell);
    (acknowledged, owed)
}

#[test]
fn promises_hold_on_random_schedules() {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    if let Some(seed) = number("FERRULE_SEED") {
        run(seed);
        return;
    }
    let (mut acknowledged, mut owed) = (0, 0);
    for seed in 0..number("FERRULE_SEEDS").unwrap_or(300) {
        let (a, o) = run(seed);
        (acknowledged, owed) = (acknowledged + a, owed + o);
    }
    // Schedules in which nothing happens prove nothing.
    assert!(acknowledged > 1_000 && owed > 1_000, "{acknowledged} acknowledged, {owed} owed");
}
