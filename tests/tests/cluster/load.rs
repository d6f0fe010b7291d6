//! Load on a cluster from clients that go to another node when they lose theirs, with an oracle.
//!
//! Of each publisher every message of QoS 1 that was acknowledged is known. A subscriber whose session outlives its connections gets each that was published after its first SUBACK,
//! whatever happened. One with a clean session gets those that were published after its SUBACK and acknowledged before it noticed the end of its
//! connection.

use ferrule_mqtt::{
    Packet, Properties, QoS, ReasonCode, Subscribe, SubscribeFiltersBuf, SubscribeOptions, Version,
};
use ferrule_testkit::wire::{Options, Outgoing};
use ferrule_testkit::{Client, until};
use ferrule_tests::PATIENCE;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a client waits before it looks whether it is to end, or tries the next node.
const LOOK: Duration = Duration::from_millis(50);

/// A message that was acknowledged.
struct Sent {
    began: Instant,
    acknowledged: Instant,
}

/// What a subscriber got, from its SUBACK on; of one with a clean session to the end of its connection.
struct Span {
    name: String,
    node: usize,
    from: Instant,
    until: Option<Instant>,
    got: BTreeMap<u64, u32>,
}

#[derive(Default)]
struct World {
    nodes: Vec<SocketAddr>,
    quiet: AtomicBool,
    stop: AtomicBool,
    next: AtomicU64,
    withheld: AtomicU64,
    sent: Mutex<BTreeMap<u64, Sent>>,
    spans: Mutex<Vec<Span>>,
    /// Where each client is connected.
    at: Mutex<BTreeMap<String, Option<usize>>>,
    /// DISCONNECTs, by their reason.
    told: Mutex<BTreeMap<u8, u64>>,
    /// Nodes that ended a clean session's connection without a drain, and since when: what was acknowledged later was not promised to it.
    cut: Mutex<Vec<(usize, Instant)>>,
    /// Sessions that were to be there when their client came back, and were not.
    sessions_lost: AtomicU64,
}

/// What it came to.
#[derive(Debug, Default)]
pub(crate) struct Sums {
    pub(crate) acknowledged: u64,
    pub(crate) promised: u64,
    pub(crate) lost: u64,
    pub(crate) twice: u64,
    pub(crate) withheld: u64,
    /// Connections that subscribers have made.
    pub(crate) connections: u64,
}

/// Clients that run. They end when this is dropped.
pub(crate) struct Load {
    world: Arc<World>,
    threads: Vec<JoinHandle<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Load {
    /// On each of these nodes, at first, a publisher, and of MQTT 5 and of 3.1.1 a subscriber with a clean session, which has a will, and one whose session
    /// outlives its connections.
    pub(crate) fn start(nodes: Vec<SocketAddr>) -> Self {
        let world = Arc::new(World { nodes, ..World::default() });
        let mut threads = Vec::new();
        let mut run = |work: Box<dyn FnOnce(&World) + Send>| {
            let world = Arc::clone(&world);
            threads.push(std::thread::spawn(move || work(&world)));
        };
        for n in 0..world.nodes.len() {
            run(Box::new(move |world| world.publish_from(n, &format!("publisher-{n}"))));
            for version in [Version::V5, Version::V3_1_1] {
                let kind = if version == Version::V5 { "v5" } else { "v4" };
                let base = |name: &str| match version {
                    Version::V5 => Options::v5(name),
                    _ => Options::v4(name),
                };
                let clean = base(&format!("clean-{kind}-{n}"));
                let will = format!("wills/clean-{kind}-{n}");
                let clean = clean.will(&will, b"gone", QoS::AtLeastOnce, false);
                run(Box::new(move |world| world.subscribe_at(n, &clean)));
                let expiry = (version == Version::V5).then_some(3_600);
                let stored = base(&format!("stored-{kind}-{n}"));
                let stored = Options { clean_start: false, session_expiry: expiry, ..stored };
                run(Box::new(move |world| world.keep_session_at(n, &stored)));
            }
        }
        let load = Self { world, threads };
        load.wait_elsewhere(usize::MAX);
        load
    }

    /// How many clients there are.
    pub(crate) fn clients(&self) -> usize {
        5 * self.world.nodes.len()
    }

    /// DISCONNECTs that came, by their reason.
    pub(crate) fn told(&self) -> BTreeMap<u8, u64> {
        lock(&self.world.told).clone()
    }

    /// From here on that node may end connections as it likes, until all its clients are elsewhere.
    pub(crate) fn cut(&self, node: usize) {
        lock(&self.world.cut).push((node, Instant::now()));
    }

    /// Until each client is connected, to another node than this.
    pub(crate) fn wait_elsewhere(&self, node: usize) {
        until(PATIENCE, "each client is connected, and elsewhere", || {
            let at = lock(&self.world.at);
            let is_there = |at: &Option<usize>| at.is_some_and(|at| at != node);
            (at.len() == self.clients() && at.values().all(is_there)).then_some(())
        });
    }

    /// Until so many more messages have been acknowledged.
    pub(crate) fn wait_acknowledged(&self, more: usize) {
        let before = lock(&self.world.sent).len();
        until(PATIENCE, "messages are acknowledged", || {
            (lock(&self.world.sent).len() >= before + more).then_some(())
        });
    }

    /// Ends it, when all that is promised is there; and checks that it is.
    pub(crate) fn finish(mut self) -> Sums {
        self.world.quiet.store(true, Ordering::Relaxed);
        let deadline = Instant::now() + PATIENCE;
        // Publishers first: nothing is added to what is promised.
        while lock(&self.world.at).iter().any(|(name, at)| name.starts_with("publisher") && at.is_some())
            || (!self.missing().is_empty() && Instant::now() < deadline)
        {
            std::thread::sleep(LOOK);
        }
        self.world.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        let missing = self.missing();
        for (number, name, node) in &missing {
            eprintln!("{number} was acknowledged and never came to {name} on node {node}");
        }
        assert_eq!(self.world.sessions_lost.load(Ordering::Relaxed), 0, "sessions were not there");
        // (A guard in the expression below would be held to its end.)
        let acknowledged = lock(&self.world.sent).len() as u64;
        let spans = lock(&self.world.spans);
        Sums {
            acknowledged,
            promised: self.world.promised(&spans).count() as u64,
            lost: missing.len() as u64,
            twice: spans.iter().flat_map(|span| span.got.values()).filter(|count| **count > 1).count() as u64,
            withheld: self.world.withheld.load(Ordering::Relaxed),
            connections: spans.len() as u64,
        }
    }

    /// What is promised and has not come: number, subscriber, its node.
    fn missing(&self) -> Vec<(u64, String, usize)> {
        let spans = lock(&self.world.spans);
        let missing = self.world.promised(&spans).filter(|(_, _, came)| !came);
        missing.map(|(number, span, _)| (number, span.name.clone(), span.node)).collect()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.world.stop.store(true, Ordering::Relaxed);
        // Those that panicked have told.
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

impl World {
    fn stops(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// All that is promised: its number, to whom, and whether it came.
    fn promised<'a>(&self, spans: &'a [Span]) -> impl Iterator<Item = (u64, &'a Span, bool)> {
        let cut = lock(&self.cut).clone();
        let mut promised = Vec::new();
        for (number, sent) in lock(&self.sent).iter() {
            for span in spans {
                let was_there =
                    span.from < sent.began && span.until.is_none_or(|until| until > sent.acknowledged);
                let is_cut = |(node, at): &(usize, Instant)| {
                    *node == span.node
                        && sent.acknowledged > *at
                        && span.until.is_some_and(|until| until > *at)
                };
                if was_there && !cut.iter().any(is_cut) {
                    promised.push((*number, span, span.got.contains_key(number)));
                }
            }
        }
        promised.into_iter()
    }

    fn connect(&self, node: &mut usize, options: &Options) -> Option<(Client, bool)> {
        let to = *node % self.nodes.len();
        if let Ok((client, connack)) = Client::try_connect(self.nodes[to], options) {
            let (reason, present) = connack.connack();
            if reason == ReasonCode::SUCCESS {
                *node = to;
                return Some((client, present));
            }
        }
        *node = to + 1;
        std::thread::sleep(LOOK);
        None
    }

    fn is_at(&self, name: &str, node: Option<usize>) {
        lock(&self.at).insert(name.to_owned(), node);
    }

    /// Its connection has ended.
    fn ended(&self, client: &mut Client) {
        let last = client.recv_where(LOOK, |packet| matches!(packet, Packet::Disconnect(_)));
        if let Ok(frame) = last
            && let Packet::Disconnect(disconnect) = frame.packet()
        {
            *lock(&self.told).entry(disconnect.reason.0).or_default() += 1;
        }
    }

    fn publish_from(&self, mut node: usize, name: &str) {
        let mut client: Option<Client> = None;
        while !self.quiet.load(Ordering::Relaxed) && !self.stops() {
            let Some(connected) = &mut client else {
                client = self.connect(&mut node, &Options::v5(name)).map(|(client, _)| client);
                self.is_at(name, client.is_some().then_some(node));
                continue;
            };
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let began = Instant::now();
            if self.publish(connected, number) {
                lock(&self.sent).insert(number, Sent { began, acknowledged: Instant::now() });
                // Some hundred a second: it is not how many that matters.
                std::thread::sleep(Duration::from_millis(5));
            } else {
                self.withheld.fetch_add(1, Ordering::Relaxed);
                self.is_at(name, None);
                self.ended(connected);
                client = None;
            }
        }
        self.is_at(name, None);
    }

    /// Whether it was acknowledged.
    fn publish(&self, client: &mut Client, number: u64) -> bool {
        let sent = client.send_publish(Outgoing {
            topic: "load/all",
            payload: number.to_string().as_bytes(),
            qos: QoS::AtLeastOnce,
            retain: false,
            dup: false,
            packet_id: (number % 60_000) as u16 + 1,
        });
        while sent.is_ok() && !self.stops() {
            match client.recv_where(LOOK, |packet| matches!(packet, Packet::Puback(_))) {
                Ok(_) => return true,
                Err(error) if error.kind() == ErrorKind::TimedOut => {}
                Err(_) => return false,
            }
        }
        false
    }

    fn begin(&self, name: &str, node: usize) -> usize {
        let span =
            Span { name: name.to_owned(), node, from: Instant::now(), until: None, got: BTreeMap::new() };
        let mut spans = lock(&self.spans);
        spans.push(span);
        spans.len() - 1
    }

    /// Takes what comes until the connection ends.
    fn receive(&self, client: &mut Client, span: usize) {
        loop {
            match client.recv_message(LOOK) {
                Ok(message) => {
                    let number = message.text().parse().unwrap();
                    *lock(&self.spans)[span].got.entry(number).or_default() += 1;
                }
                Err(error) if error.kind() == ErrorKind::TimedOut && !self.stops() => {}
                Err(_) => return,
            }
        }
    }

    fn subscribe_at(&self, mut node: usize, options: &Options) {
        let name = &options.client_id;
        while !self.stops() {
            let Some((mut client, _)) = self.connect(&mut node, options) else { continue };
            if !subscribed(&mut client) {
                continue;
            }
            let span = self.begin(name, node);
            self.is_at(name, Some(node));
            self.receive(&mut client, span);
            lock(&self.spans)[span].until = Some(Instant::now());
            self.is_at(name, None);
            self.ended(&mut client);
        }
    }

    fn keep_session_at(&self, mut node: usize, options: &Options) {
        let name = &options.client_id;
        let mut span = None;
        while !self.stops() {
            let Some((mut client, present)) = self.connect(&mut node, options) else { continue };
            match span {
                None if !subscribed(&mut client) => continue,
                None => span = Some(self.begin(name, node)),
                Some(_) => drop(self.sessions_lost.fetch_add(u64::from(!present), Ordering::Relaxed)),
            }
            self.is_at(name, Some(node));
            self.receive(&mut client, span.unwrap());
            self.is_at(name, None);
            self.ended(&mut client);
        }
    }
}

/// Whether it has its SUBACK.
fn subscribed(client: &mut Client) -> bool {
    let mut filters = SubscribeFiltersBuf::new();
    filters.push("load/#", SubscribeOptions::new(QoS::AtLeastOnce)).unwrap();
    let filters = filters.as_filters();
    let subscribe = Subscribe { packet_id: 1, properties: Properties::EMPTY, filters };
    client.send(&Packet::Subscribe(subscribe)).is_ok()
        && client.recv_where(PATIENCE, |packet| matches!(packet, Packet::Suback(_))).is_ok()
}
