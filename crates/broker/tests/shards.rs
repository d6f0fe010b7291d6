//! Seeded runs of several shards against what one broker promises, whatever number of shards it consists of.
//!
//! # Model
//! Clients as in `simulation.rs`: correct, with bad habits. Shards talk over links that keep their order and take a random time
//! each, so that what goes over one link overtakes what goes over another; as the seam for a second node the same links are
//! byte streams that are cut anywhere. Links lose nothing. Now and then the power fails, and the node comes back with another
//! number of shards, so that sessions live elsewhere.
//!
//! # What is checked
//! - *subscribed*: a publish that starts after SUBACK was read, anywhere, comes to the subscriber while it stays connected;
//! - *durable*: what is acknowledged (QoS 1, 2) comes to every persistent session that was subscribed, through power cuts;
//! - *once*: QoS 2 comes once to a subscriber at QoS 2, through power cuts too unless its publisher's session does not survive
//!   them;
//! - *order*: first deliveries of a publisher's messages of one QoS come in the order of publishing;
//! - *unsubscribed*: after UNSUBACK and when all is quiet nothing comes that no other filter matches, and all else comes once;
//! - *retained*: when all is quiet every shard has the same message, one of those that nothing acknowledged has followed, and
//!   a restart does not change it;
//! - *ends*: none is lost, and when all is quiet no receipt is open and nothing is under way;
//! - *live*: when clients come back and answer, they are answered.
//!
//! `FERRULE_SEED=n` runs one seed, `FERRULE_SEEDS=n` that many.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
use common::{Rig, Wire};
use ferrule_broker::ClientLimits;
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
    fn of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len() as u64) as usize]
    }
}

struct Sent {
    /// A client, or (from 100 on) a client's wills.
    publisher: usize,
    topic: &'static str,
    qos: u8,
    retain: bool,
    /// Clears the retained message of its topic.
    clear: bool,
    /// Steps from its first sending to its acknowledgement, or until it could have no effect any more.
    started: u64,
    ended: Option<u64>,
    acknowledged: bool,
    /// Power cuts before it was sent.
    life: u32,
    /// Clients that were subscribed when it was first sent, and have been since. Others may get it late, from a repetition.
    watched: BTreeSet<usize>,
    /// Persistent ones of these, with a granted QoS above 0.
    owed_to: BTreeSet<usize>,
    /// Those that have been connected since.
    live: BTreeSet<usize>,
}

/// A publish that is not over.
struct Open {
    id: u16,
    message: usize,
    released: bool,
}

#[derive(Default)]
struct Client {
    id: String,
    version: u8,
    persistent: bool,
    window: u16,
    peer: Option<String>,
    /// CONNACK seen.
    up: bool,
    /// A session was acknowledged.
    session: bool,
    will: Option<usize>,
    open: VecDeque<Open>,
    last_id: u16,
    /// Acknowledgements not sent yet.
    owed: VecDeque<String>,
    /// QoS 2 packet ids between PUBLISH and PUBREL.
    held: BTreeSet<u16>,
    subscriptions: BTreeMap<&'static str, u8>,
    asked: BTreeMap<u16, (&'static str, Option<u8>)>,
    got: BTreeMap<usize, u32>,
    got_once: BTreeSet<usize>,
    /// By publisher, topic, QoS published and delivered: the last that was delivered for the first time.
    last: BTreeMap<(usize, &'static str, u8, u8), usize>,
}

struct World {
    rig: Rig,
    random: Random,
    clients: Vec<Client>,
    sent: Vec<Sent>,
    /// Connections so far: each has a name of its own.
    peers: usize,
    step: u64,
    life: u32,
    trace: Vec<String>,
}

const TOPICS: [&str; 6] = ["t/0", "t/1", "t/2", "r/0", "r/1", "r/2"];
const FILTERS: [&str; 7] = ["t/0", "t/1", "t/2", "t/#", "+/1", "r/+", "#"];

fn matches(filter: &str, topic: &str) -> bool {
    match filter {
        "#" => true,
        "t/#" => topic.starts_with("t/"),
        "r/+" => topic.starts_with("r/"),
        "+/1" => topic.ends_with("/1"),
        _ => filter == topic,
    }
}

impl World {
    fn new(seed: u64, shards: u16, cut: bool) -> Self {
        let mut random = Random(seed);
        let limits =
            ClientLimits { receive_max: 16, waiting_max: 20, inflight_max: 8, ..ClientLimits::default() };
        let mut rig = Rig::of(limits, shards);
        rig.wire = Some(Wire::new([0, 300, 3_000][random.below(3) as usize], cut, seed));
        let kinds = [(4, true, 0), (5, true, 0), (5, true, 2), (5, false, 3), (4, false, 0), (5, true, 0)];
        let client = |(n, (version, persistent, window))| Client {
            // Hashes to any shard.
            id: format!("c{n}-{seed}"),
            version,
            persistent,
            window,
            ..Client::default()
        };
        let clients = kinds.into_iter().enumerate().map(client).collect();
        Self { rig, random, clients, sent: Vec::new(), peers: 0, step: 0, life: 0, trace: Vec::new() }
    }

    fn send(&mut self, c: usize, line: &str) {
        let Some(peer) = self.clients[c].peer.clone() else { return };
        self.step += 1;
        self.trace.push(format!("{peer}> {line}"));
        self.rig.send(&peer, line);
        self.listen();
    }

    /// A name whose length, by which the rig chooses the shard that accepts, is random.
    fn name(&mut self, of: &str) -> String {
        self.peers += 1;
        let pad = "-".repeat(self.random.below(4) as usize);
        format!("{of}.{}{pad}", self.peers)
    }

    fn add(&mut self, publisher: usize, topic: &'static str, qos: u8, retain: bool, clear: bool) -> usize {
        let subscribed = |s: &Client| s.subscriptions.keys().any(|f| matches(f, topic));
        let choose = |right: &dyn Fn(&Client) -> bool| -> BTreeSet<usize> {
            (self.clients.iter().enumerate()).filter(|(_, s)| right(s)).map(|(s, _)| s).collect()
        };
        let owed_to =
            choose(&|s| s.persistent && s.subscriptions.iter().any(|(f, q)| *q > 0 && matches(f, topic)));
        let watched = choose(&subscribed);
        let live = choose(&|s| s.up && subscribed(s));
        let (started, life) = (self.step, self.life);
        self.sent.push(Sent {
            publisher,
            topic,
            qos,
            retain,
            clear,
            started,
            ended: None,
            acknowledged: false,
            life,
            watched,
            owed_to,
            live,
        });
        self.sent.len() - 1
    }

    fn connect(&mut self, c: usize) {
        self.gone(c, true);
        let peer = self.name(&format!("c{c}"));
        let client = &mut self.clients[c];
        client.peer = Some(peer);
        let mut line = format!("connect id={} v={}", client.id, client.version);
        if client.persistent {
            line += " clean=0 expiry=1000000";
        }
        if client.window > 0 {
            line += &format!(" rmax={}", client.window);
        }
        if self.random.chance(40) {
            let (topic, qos) = (self.random.of(&TOPICS), self.random.below(3) as u8);
            let retain = topic.starts_with('r');
            let will = self.add(100 + c, topic, qos, retain, false);
            // Until the connection breaks it is nobody's.
            let sent = &mut self.sent[will];
            (sent.watched, sent.owed_to, sent.live) = Default::default();
            self.clients[c].will = Some(will);
            line += &format!(" will={topic} wq={qos} wr={} wp={will}", u8::from(retain));
        }
        self.send(c, &line);
    }

    /// The connection is over, whoever ended it; it may still be open on the other side.
    fn gone(&mut self, c: usize, will: bool) {
        let client = &mut self.clients[c];
        let was_up = std::mem::take(&mut client.up);
        client.peer = None;
        client.owed.clear();
        client.asked.clear();
        if !client.persistent {
            client.open.clear();
            client.held.clear();
            client.subscriptions.clear();
            client.last.clear();
            client.got.clear();
            client.got_once.clear();
        }
        let (persistent, published) = (client.persistent, client.will.take());
        for sent in &mut self.sent {
            sent.live.remove(&c);
            if !persistent {
                sent.watched.remove(&c);
            }
        }
        if let Some(n) = published.filter(|_| will && was_up) {
            let Sent { topic, qos, retain, .. } = self.sent[n];
            let now = self.add(100 + c, topic, qos, retain, false);
            let Sent { watched, live, started, life, .. } = self.sent.pop().unwrap();
            debug_assert_eq!(now, self.sent.len());
            let sent = &mut self.sent[n];
            (sent.watched, sent.live, sent.started, sent.life) = (watched, live, started, life);
        }
    }

    fn publish(&mut self, c: usize, topic: &'static str, qos: u8, retain: bool, clear: bool) {
        let client = &mut self.clients[c];
        if !client.up || client.open.len() >= 6 {
            return;
        }
        let mut id = 0;
        if qos > 0 {
            client.last_id = client.last_id % 50 + 1;
            while client.open.iter().any(|o| o.id == client.last_id) {
                client.last_id = client.last_id % 50 + 1;
            }
            id = client.last_id;
        }
        let message = self.add(c, topic, qos, retain, clear);
        if qos > 0 {
            self.clients[c].open.push_back(Open { id, message, released: false });
        }
        let line = self.publish_line(message, id);
        self.send(c, &line);
    }

    fn publish_line(&self, message: usize, id: u16) -> String {
        let Sent { topic, qos, retain, clear, .. } = &self.sent[message];
        let mut line = format!("publish t={topic} q={qos} r={}", u8::from(*retain));
        if *qos > 0 {
            line += &format!(" id={id}");
        }
        if !clear {
            line += &format!(" p={message}");
        }
        line
    }

    /// From now on nothing of this filter is owed to a client.
    fn no_longer_owed(&mut self, c: usize, filter: &str) {
        self.clients[c].subscriptions.remove(filter);
        for sent in self.sent.iter_mut().filter(|s| matches(filter, s.topic)) {
            sent.owed_to.remove(&c);
            sent.watched.remove(&c);
            sent.live.remove(&c);
        }
    }

    fn subscribe(&mut self, c: usize, filter: &'static str, qos: Option<u8>) {
        if !self.clients[c].up {
            return;
        }
        // One that ends may be there without our having heard its SUBACK.
        if qos.is_none() || self.clients[c].subscriptions.get(filter).copied() != qos {
            self.no_longer_owed(c, filter);
        }
        self.clients[c].asked.retain(|_, (asked, _)| *asked != filter);
        let id = 100 + self.random.below(10_000) as u16;
        self.clients[c].asked.insert(id, (filter, qos));
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
                    self.gone(c, true);
                }
            }
            if quiet {
                return;
            }
        }
    }

    fn acknowledged(&mut self, message: usize) {
        let sent = &mut self.sent[message];
        sent.acknowledged = true;
        sent.ended.get_or_insert(self.step);
    }

    fn heard(&mut self, c: usize, packet: &str) {
        let words: Vec<&str> = packet.split(' ').collect();
        let id = || words[1].parse::<u16>().unwrap();
        let client = &mut self.clients[c];
        match words[0] {
            "connack" => {
                assert!(words[1] == "sp=1" || !client.session, "durable: the session of c{c} was lost");
                (client.up, client.session) = (true, client.persistent);
                // Again, in order [MQTT-4.4.0-1].
                let open: Vec<_> = client.open.iter().map(|o| (o.id, o.message, o.released)).collect();
                for (id, message, released) in open {
                    let line = if released {
                        format!("pubrel {id}")
                    } else {
                        self.publish_line(message, id) + " dup=1"
                    };
                    self.send(c, &line);
                }
            }
            "puback" => {
                let at = client.open.iter().position(|o| o.id == id());
                // After a repetition there may be two.
                if let Some(open) = at.and_then(|at| client.open.remove(at)) {
                    self.acknowledged(open.message);
                }
            }
            "pubrec" => {
                client.owed.push_back(format!("pubrel {}", id()));
                if let Some(open) = client.open.iter_mut().find(|o| o.id == id()) {
                    open.released = true;
                    let message = open.message;
                    self.acknowledged(message);
                }
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
        let qos: u8 = words[2][1..].parse().unwrap();
        let id = words.iter().find_map(|w| w.strip_prefix("id=")).map(|id| id.parse::<u16>().unwrap());
        let keeps: Vec<bool> = self.clients.iter().map(|client| client.persistent).collect();
        let client = &mut self.clients[c];
        if qos > 0 {
            let kind = if qos == 1 { "puback" } else { "pubrec" };
            client.owed.push_back(format!("{kind} {}", id.unwrap()));
        }
        if qos == 2 && !client.held.insert(id.unwrap()) {
            return; // A repetition: the client has it.
        }
        if client.version == 4 && words.contains(&"r") {
            return; // Retained, for a new subscription: before MQTT 5 nobody can ask for none.
        }
        // What clears a retained message has no number.
        let Ok(message) = words.last().unwrap().parse::<usize>() else { return };
        let sent = &self.sent[message];
        assert_eq!(sent.topic, words[1]);
        if qos == 2 {
            let first = client.got_once.insert(message);
            assert!(
                first || (!keeps.get(sent.publisher).is_some_and(|keeps| *keeps) && sent.life < self.life),
                "once: message {message} of QoS 2 came to c{c} again"
            );
        }
        let times = client.got.entry(message).or_default();
        *times += 1;
        // At a granted QoS of 0 what came first may have been missed, and its repetition not.
        if *times == 1 && sent.watched.contains(&c) && (qos > 0 || sent.qos == 0) {
            let key = (sent.publisher, sent.topic, sent.qos, qos);
            let last = client.last.insert(key, message);
            assert!(last.is_none_or(|last| last < message), "order: {message} came to c{c} after {last:?}");
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

    fn any_client(&mut self) -> usize {
        self.random.below(self.clients.len() as u64) as usize
    }

    fn publish_any(&mut self) {
        let (c, topic, qos) = (self.any_client(), self.random.of(&TOPICS), self.random.below(3) as u8);
        let retain = topic.starts_with('r') && self.random.chance(80);
        let clear = retain && self.random.chance(20);
        self.publish(c, topic, qos, retain, clear);
    }

    fn act(&mut self) {
        let c = self.any_client();
        match self.random.below(100) {
            0..38 => self.publish_any(),
            38..58 => {
                let most = 1 + self.random.below(6);
                self.answer(c, most);
            }
            58..66 if self.clients[c].peer.is_none() => self.connect(c),
            58..63 => {}
            63..66 => {
                // Taking over, or vanishing.
                match (self.clients[c].peer.clone(), self.random.below(3)) {
                    (Some(_), 0) => self.connect(c),
                    (Some(peer), 1) => {
                        self.trace.push(format!("drop {peer}"));
                        self.gone(c, true);
                        self.rig.drop_peer(&peer);
                    }
                    (Some(_), _) => {
                        // Its will is nobody's any more.
                        self.clients[c].will = None;
                        self.send(c, "disconnect");
                        self.gone(c, false);
                    }
                    (None, _) => {}
                }
            }
            66..74 => {
                let filter = self.random.of(&FILTERS);
                let qos = (!self.random.chance(25)).then(|| self.random.below(3) as u8);
                self.subscribe(c, filter, qos);
            }
            74..84 => self.commit(),
            _ => {
                let most = [200, 2_000, 20_000][self.random.below(3) as usize];
                let us = self.random.below(most);
                self.trace.push(format!("wait {us} us"));
                self.rig.wait_us(us);
            }
        }
        self.listen();
    }

    fn commit(&mut self) {
        self.trace.push("commit".into());
        self.rig.commit_only();
        self.rig.turn();
        self.listen();
    }

    fn crash(&mut self, shards: u16) {
        self.trace.push(format!("crash, then {shards} shards"));
        self.rig.crash_into(shards);
        self.life += 1;
        for sent in &mut self.sent {
            sent.live.clear();
        }
        for c in 0..self.clients.len() {
            // The will of a session that lives on was kept.
            self.gone(c, self.clients[c].persistent);
        }
        // Timers come up within a quarter of a second.
        self.rig.wait(300);
    }

    /// All say goodbye: no will is left.
    fn part(&mut self) {
        for c in 0..self.clients.len() {
            if self.clients[c].peer.is_some() {
                self.clients[c].will = None;
                self.send(c, "disconnect");
                self.gone(c, false);
            }
        }
        self.commit();
    }

    fn is_quiet(&self) -> bool {
        let rests = |c: &Client| c.up && c.owed.is_empty() && c.asked.is_empty() && c.open.is_empty();
        self.clients.iter().all(rests)
            && self.rig.wire.as_ref().unwrap().is_idle()
            && self.rig.receipts().0 == 0
            && self.rig.shards.iter().all(|shard| shard.is_known_to_peers())
    }

    /// All come back, answer, and wait for what is theirs.
    fn heal(&mut self) {
        for c in 0..self.clients.len() {
            if self.clients[c].peer.is_none() {
                self.connect(c);
            }
        }
        for round in 0.. {
            for c in 0..self.clients.len() {
                self.answer(c, 100);
                if self.clients[c].peer.is_none() {
                    self.connect(c);
                }
            }
            self.commit();
            self.rig.wait(20);
            self.listen();
            if self.is_quiet() {
                break;
            }
            assert!(round < 400, "live: {:?}", self.restless());
        }
        // What nobody waits for is written within a second.
        for _ in 0..3 {
            self.rig.wait(1_100);
            self.commit();
        }
        let step = self.step;
        for sent in &mut self.sent {
            sent.ended.get_or_insert(step);
        }
        for will in self.clients.iter().filter_map(|c| c.will) {
            self.sent[will].ended = None;
        }
        assert_eq!(self.rig.receipts(), (0, 0), "ends: open receipts, lost ends");
        for (message, sent) in self.sent.iter().enumerate().filter(|(_, s)| !s.clear) {
            let got = |c: usize| self.clients[c].got.contains_key(&message);
            if sent.acknowledged && sent.qos > 0 {
                for &c in &sent.owed_to {
                    assert!(got(c), "durable: acknowledged message {message} never came to c{c}");
                }
            }
            for &c in &sent.live {
                assert!(got(c), "subscribed: message {message} never came to c{c}, which was there");
            }
        }
    }

    fn restless(&self) -> String {
        let client = |c: &Client| {
            format!(
                "{} up {} owes {} asked {} open {}; ",
                c.id,
                c.up,
                c.owed.len(),
                c.asked.len(),
                c.open.len()
            )
        };
        let clients: String = self.clients.iter().map(client).collect();
        let idle = self.rig.wire.as_ref().unwrap().is_idle();
        format!("{clients} receipts {:?}, wire idle {idle}", self.rig.receipts())
    }

    /// *unsubscribed*, and with nobody coming and going: everything once.
    fn probe(&mut self) {
        for c in 0..self.clients.len() {
            let filters: Vec<_> = self.clients[c].subscriptions.keys().copied().collect();
            let ended = if filters.is_empty() { "" } else { self.random.of(&filters) };
            for filter in FILTERS {
                // Also what was subscribed and never answered.
                if filter == ended || !filters.contains(&filter) {
                    self.subscribe(c, filter, None);
                }
            }
        }
        self.heal();
        let first = self.sent.len();
        for _ in 0..24 {
            let (c, topic, qos) = (self.any_client(), self.random.of(&TOPICS), self.random.below(3) as u8);
            self.publish(c, topic, qos, false, false);
            if self.random.chance(30) {
                self.rig.wait_us(500);
                self.listen();
            }
        }
        self.heal();
        for (message, sent) in self.sent.iter().enumerate().skip(first) {
            for (c, client) in self.clients.iter().enumerate() {
                let times = client.got.get(&message).copied().unwrap_or(0);
                let due = client.subscriptions.keys().any(|f| matches(f, sent.topic));
                assert_eq!(times, u32::from(due), "unsubscribed: message {message} at c{c}");
            }
        }
    }

    /// The retained messages as a client of each shard is told them; the same everywhere.
    fn retained(&mut self) -> Vec<String> {
        let place = self.rig.place();
        let mut all = Vec::new();
        for shard in 0..place.of {
            let id = (0..).map(|n| format!("o{n}")).find(|id| place.owner(id) == shard).unwrap();
            let peer = self.name("observer");
            self.rig.send(&peer, &format!("connect id={id} v=5"));
            self.rig.send(&peer, "subscribe id=1 f=r/+:0");
            for _ in 0..100 {
                self.rig.wait(10);
            }
            let mut packets: Vec<String> = self.rig.peer(&peer).packets.drain(..).collect();
            self.rig.drop_peer(&peer);
            self.rig.commit();
            let answers: Vec<_> = packets.drain(..2).collect();
            assert_eq!(answers, ["connack sp=0", "suback 1 00"], "live: an observer");
            packets.sort();
            self.trace.push(format!("shard {shard} of {} retains {packets:?}", place.of));
            all.push(packets);
        }
        assert!(all.iter().all(|packets| *packets == all[0]), "retained: differs between shards: {all:?}");
        all.swap_remove(0)
    }

    fn check_retained(&mut self, found: &[String]) {
        for topic in TOPICS.iter().filter(|t| t.starts_with('r')) {
            let said: Vec<&str> =
                found.iter().filter_map(|p| p.strip_prefix(&format!("publish {topic} "))).collect();
            assert!(said.len() <= 1, "retained: {said:?} of {topic}");
            let value =
                said.first().map(|said| said.split(' ').next_back().unwrap().parse::<usize>().unwrap());
            let writes = || self.sent.iter().enumerate().filter(|(_, s)| s.topic == *topic && s.retain);
            let followed = |ended: u64| writes().any(|(_, s)| s.acknowledged && s.started > ended);
            let may = |n: usize, s: &Sent| match value {
                Some(value) => n == value,
                None => s.clear,
            } && !s.ended.is_some_and(followed);
            let nothing_yet = value.is_none() && !followed(0);
            assert!(
                nothing_yet || writes().any(|(n, s)| may(n, s)),
                "retained: {value:?} of {topic} was followed by another that was acknowledged"
            );
        }
    }
}

fn run(seed: u64, cut: bool) -> (usize, usize) {
    struct Tell<'a>(u64, &'a mut World);
    impl Drop for Tell<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                let trace = &self.1.trace;
                let all = std::env::var("FERRULE_SEED").is_ok();
                let from = if all { 0 } else { trace.len().saturating_sub(30) };
                eprintln!(
                    "{}\nFERRULE_SEED={} cargo test -p ferrule-broker --test shards",
                    trace[from..].join("\n"),
                    self.0
                );
            }
        }
    }
    let shards = if cut { 2 } else { 1 + (seed % 4) as u16 };
    let mut world = World::new(seed, shards, cut);
    let tell = Tell(seed, &mut world);
    let world = &mut *tell.1;
    for _ in 0..3 {
        for _ in 0..200 {
            world.act();
            if world.random.below(200) == 0 {
                let shards = if cut { 2 } else { 1 + world.random.below(4) as u16 };
                world.crash(shards);
            }
        }
        world.heal();
        let found = world.retained();
        world.check_retained(&found);
        if world.random.chance(50) {
            let shards = if cut { 2 } else { 1 + world.random.below(4) as u16 };
            world.part();
            world.crash(shards);
            let again = world.retained();
            assert!(again == found, "retained: a restart made {found:?} {again:?}");
            world.heal();
        }
    }
    world.probe();
    let acknowledged = world.sent.iter().filter(|s| s.acknowledged).count();
    let owed = world.sent.iter().filter(|s| s.acknowledged).map(|s| s.owed_to.len()).sum();
    drop(tell);
    (acknowledged, owed)
}

fn run_all(cut: bool, seeds: u64) {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    if let Some(seed) = number("FERRULE_SEED") {
        run(seed, cut);
        return;
    }
    let (mut acknowledged, mut owed) = (0, 0);
    let seeds = number("FERRULE_SEEDS").unwrap_or(seeds);
    for seed in 0..seeds {
        let (a, o) = run(seed, cut);
        (acknowledged, owed) = (acknowledged + a, owed + o);
    }
    // Schedules in which nothing happens prove nothing.
    let least = seeds as usize * 10;
    assert!(acknowledged > least && owed > least, "{acknowledged} acknowledged, {owed} owed");
}

#[test]
fn several_shards_keep_the_promises_of_one() {
    run_all(false, 500);
}

/// Two shards that are joined by byte streams, as two nodes would be.
#[test]
fn shards_joined_by_cut_streams_keep_the_promises_of_one() {
    run_all(true, 500);
}
