//! The load, and the oracle: who published what, who had subscribed when, and what came.
//!
//! | | is promised |
//! |---|---|
//! | a *clean* subscriber: one at each node, which connects there again | each message that was published after its SUBACK and acknowledged while it was connected, unless its node was removed from the cluster in that round |
//! | a *lasting* one: its session lives on, it connects wherever a node answers, and leaves by a DISCONNECT, by nothing, or for another node | each acknowledged message that was published after its SUBACK, and its session: `session_present` = 1 once a CONNACK had told it of one |
//!
//! A message that is not acknowledged is published again as another one, so what comes twice was delivered twice. Numbers rise in the order of publishing, for each publisher as for all.

use ferrule_mqtt::{Packet, Properties, QoS, ReasonCode, Subscribe, SubscribeFiltersBuf, SubscribeOptions};
use ferrule_testkit::Client;
use ferrule_testkit::random::Random;
use ferrule_testkit::wire::{Message, Options, Outgoing};
use ferrule_tests::PATIENCE;
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub(super) const NODES: usize = 3;
/// Subscribers whose sessions live on.
pub(super) const LASTING: usize = 3;
/// How long a client waits before it looks whether it is to end.
const LOOK: Duration = Duration::from_millis(100);

/// A message that was acknowledged.
pub(super) struct Sent {
    pub(super) began: Instant,
    pub(super) acknowledged: Instant,
}

/// The highest number that has come of each publisher.
#[derive(Default)]
struct Newest([u64; NODES]);

impl Newest {
    /// Whether one that was published later had come before it.
    fn is_late(&mut self, publisher: usize, number: u64) -> bool {
        let newest = &mut self.0[publisher];
        let late = number < *newest;
        *newest = number.max(*newest);
        late
    }
}

/// A clean subscriber from its SUBACK to the end of its connection.
pub(super) struct Span {
    pub(super) node: usize,
    pub(super) from: Instant,
    pub(super) until: Option<Instant>,
    pub(super) got: BTreeMap<u64, u32>,
    newest: Newest,
}

/// A lasting one from its first SUBACK on.
#[derive(Default)]
pub(super) struct Lasting {
    pub(super) since: Option<Instant>,
    /// Of all rounds.
    pub(super) got: BTreeSet<u64>,
    newest: Newest,
}

/// Counts that only rise.
#[derive(Default)]
pub(super) struct Counts {
    /// Publishes that were not acknowledged, and were sent again as others.
    pub(super) withheld: AtomicU64,
    /// Deliveries to lasting subscribers of what they had got before.
    pub(super) twice: AtomicU64,
    /// Deliveries behind a later message of the same publisher.
    pub(super) late: AtomicU64,
    /// Connections of lasting subscribers.
    pub(super) connects: AtomicU64,
    /// Sessions that were not there any more.
    pub(super) forgotten: AtomicU64,
}

#[derive(Default)]
pub(super) struct World {
    stop: AtomicBool,
    next: AtomicU64,
    pub(super) counts: Counts,
    pub(super) sent: Mutex<BTreeMap<u64, Sent>>,
    /// By number.
    pub(super) spans: Mutex<BTreeMap<u64, Span>>,
    pub(super) lasting: Mutex<[Lasting; LASTING]>,
}

/// The clients' threads.
pub(super) struct Load {
    pub(super) world: Arc<World>,
    pub(super) started: Instant,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    pub(super) fn start(addresses: &[SocketAddr], seed: u64) -> Self {
        let world = Arc::new(World::default());
        let mut load = Self { world, started: Instant::now(), threads: Vec::new() };
        for (n, address) in addresses.iter().copied().enumerate() {
            load.client(move |world| world.publish_from(n, address));
            load.client(move |world| world.subscribe_at(n, address));
        }
        for n in 0..LASTING {
            let (addresses, random) = (addresses.to_vec(), Random(seed ^ (n as u64 + 1) << 32));
            load.client(move |world| world.last(n, &addresses, random));
        }
        load
    }

    fn client(&mut self, run: impl FnOnce(&World) + Send + 'static) {
        let world = Arc::clone(&self.world);
        self.threads.push(std::thread::spawn(move || run(&world)));
    }

    /// Ends all clients; those that failed fail the test.
    pub(super) fn finish(mut self) {
        self.world.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.world.stop.store(true, Ordering::Relaxed);
    }
}

/// Publisher and number of a message.
fn parse(message: &Message) -> (usize, u64) {
    let (publisher, number) = message.text().split_once(' ').unwrap();
    (publisher.parse().unwrap(), number.parse().unwrap())
}

impl World {
    fn stops(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn publish_from(&self, publisher: usize, address: SocketAddr) {
        let options = Options::v5(&format!("publisher-{publisher}"));
        let mut client: Option<Client> = None;
        while !self.stops() {
            let Some(connected) = &mut client else {
                client = connected_to(address, &options).map(|(client, _)| client);
                if client.is_none() {
                    std::thread::sleep(LOOK);
                }
                continue;
            };
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let began = Instant::now();
            if self.publish(connected, publisher, number) {
                let sent = Sent { began, acknowledged: Instant::now() };
                self.sent.lock().unwrap().insert(number, sent);
                // A few hundred a second: it is the faults that are to be seen.
                std::thread::sleep(Duration::from_millis(3));
            } else {
                self.counts.withheld.fetch_add(1, Ordering::Relaxed);
                client = None;
            }
        }
    }

    /// Whether it was acknowledged.
    fn publish(&self, client: &mut Client, publisher: usize, number: u64) -> bool {
        let sent = client.send_publish(Outgoing {
            topic: "load/all",
            payload: format!("{publisher} {number}").as_bytes(),
            qos: QoS::AtLeastOnce,
            retain: false,
            dup: false,
            packet_id: (number % 60_000) as u16 + 1,
        });
        while sent.is_ok() && !self.stops() {
            match client.recv(LOOK) {
                Ok(frame) => return is_acknowledged(&frame.packet()),
                Err(error) if error.kind() == ErrorKind::TimedOut => {}
                Err(_) => return false,
            }
        }
        false
    }

    fn subscribe_at(&self, node: usize, address: SocketAddr) {
        let options = Options::v5(&format!("subscriber-{node}"));
        while !self.stops() {
            let client = connected_to(address, &options).map(|(client, _)| client);
            let Some(mut client) = client.and_then(|client| subscribed(client, "load/#")) else {
                std::thread::sleep(LOOK);
                continue;
            };
            let id = self.next.fetch_add(1, Ordering::Relaxed);
            let newest = Newest::default();
            let span = Span { node, from: Instant::now(), until: None, got: BTreeMap::new(), newest };
            self.spans.lock().unwrap().insert(id, span);
            loop {
                match client.recv_message(LOOK) {
                    Ok(message) => {
                        let (publisher, number) = parse(&message);
                        let mut spans = self.spans.lock().unwrap();
                        let span = spans.get_mut(&id).unwrap();
                        let times = span.got.entry(number).or_default();
                        *times += 1;
                        if *times == 1 && span.newest.is_late(publisher, number) {
                            self.counts.late.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::TimedOut && !self.stops() => {}
                    Err(_) => break,
                }
            }
            self.spans.lock().unwrap().get_mut(&id).unwrap().until = Some(Instant::now());
        }
    }

    fn last(&self, n: usize, addresses: &[SocketAddr], mut random: Random) {
        let options = Options::v5(&format!("lasting-{n}")).persistent();
        let (mut has_session, mut has_subscription) = (false, false);
        // Left open until it is elsewhere.
        let mut before: Option<Client> = None;
        while !self.stops() {
            let address = addresses[random.below(addresses.len() as u64) as usize];
            let Some((mut client, is_present)) = connected_to(address, &options) else {
                std::thread::sleep(LOOK);
                continue;
            };
            drop(before.take());
            self.counts.connects.fetch_add(1, Ordering::Relaxed);
            if has_session && !is_present {
                eprintln!("lasting-{n}: its session is not there any more ({address})");
                self.counts.forgotten.fetch_add(1, Ordering::Relaxed);
                has_subscription = false;
            }
            has_session = true;
            if !has_subscription {
                let Some(with) = subscribed(client, "load/#") else { continue };
                client = with;
                has_subscription = true;
                self.lasting.lock().unwrap()[n].since = Some(Instant::now());
            }
            let stays = random.about(Duration::from_millis(1_500));
            self.receive(n, &mut client, stays);
            match random.below(3) {
                0 => client.disconnect(),
                1 => drop(client),
                _ => before = Some(client),
            }
        }
    }

    /// Until its time is over, the connection is closed, or nothing has come for a second.
    fn receive(&self, n: usize, client: &mut Client, stays: Duration) {
        let (until, mut silent) = (Instant::now() + stays, 0);
        while Instant::now() < until && silent < 10 {
            match client.recv_message(LOOK) {
                Ok(message) => {
                    silent = 0;
                    let (publisher, number) = parse(&message);
                    let lasting = &mut self.lasting.lock().unwrap()[n];
                    if !lasting.got.insert(number) {
                        self.counts.twice.fetch_add(1, Ordering::Relaxed);
                    } else if lasting.newest.is_late(publisher, number) {
                        self.counts.late.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Err(error) if error.kind() == ErrorKind::TimedOut && !self.stops() => silent += 1,
                Err(_) => return,
            }
        }
    }

    /// Each subscriber has got something that was published after `healed`, from each node.
    pub(super) fn is_settled(&self, healed: Instant) -> bool {
        let sent = self.sent.lock().unwrap();
        let late: Vec<u64> =
            sent.iter().filter(|(_, sent)| sent.began > healed).map(|(number, _)| *number).collect();
        let spans = self.spans.lock().unwrap();
        let there: Vec<&Span> = spans.values().filter(|span| span.until.is_none()).collect();
        let nodes: BTreeSet<usize> = there.iter().map(|span| span.node).collect();
        late.len() > 30
            && nodes.len() == NODES
            && there
                .iter()
                .all(|span| late.iter().filter(|number| span.got.contains_key(*number)).count() > 30)
            && self.lasting.lock().unwrap().iter().all(|lasting| lasting.since.is_some())
    }

    /// What was acknowledged before `healed` and has not come to a lasting subscriber: (subscriber, number).
    pub(super) fn missing(&self, healed: Instant) -> Vec<(usize, u64)> {
        let (sent, lasting) = (self.sent.lock().unwrap(), self.lasting.lock().unwrap());
        let due = |(_, sent): &(&u64, &Sent)| sent.acknowledged < healed;
        let all = sent.iter().filter(due).flat_map(|(number, sent)| {
            let promised = |lasting: &Lasting| lasting.since.is_some_and(|since| since < sent.began);
            let lacks = move |lasting: &Lasting| promised(lasting) && !lasting.got.contains(number);
            lasting.iter().enumerate().filter(move |(_, one)| lacks(one)).map(move |(n, _)| (n, *number))
        });
        all.collect()
    }
}

/// An accepted connection, and whether there was a session.
pub(super) fn connected_to(address: SocketAddr, options: &Options) -> Option<(Client, bool)> {
    let (client, connack) = Client::try_connect(address, options).ok()?;
    let (reason, is_present) = connack.connack();
    (reason == ReasonCode::SUCCESS).then_some((client, is_present))
}

/// A client with its SUBACK.
pub(super) fn subscribed(mut client: Client, filter: &str) -> Option<Client> {
    let mut filters = SubscribeFiltersBuf::new();
    filters.push(filter, SubscribeOptions::new(QoS::AtLeastOnce)).unwrap();
    let filters = filters.as_filters();
    client
        .send(&Packet::Subscribe(Subscribe { packet_id: 1, properties: Properties::EMPTY, filters }))
        .ok()?;
    let suback = client.recv_where(PATIENCE, |packet| matches!(packet, Packet::Suback(_))).ok()?;
    matches!(suback.packet(), Packet::Suback(suback) if suback.reasons[0] < 0x80).then_some(client)
}

pub(super) fn is_acknowledged(packet: &Packet<'_>) -> bool {
    matches!(packet, Packet::Puback(ack) if ack.reason.0 < 0x80)
}
