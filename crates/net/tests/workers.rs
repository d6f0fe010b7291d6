//! Three workers of one process over real sockets: connections find their worker, messages theirs, and a ring that is full
//! loses nothing.

#![allow(clippy::unwrap_used, reason = "tests")]

use ferrule_broker::hook::{Everyone, NoHook};
use ferrule_broker::shard::Parts;
use ferrule_broker::{Limits, Place, Shard, Stats, introduce};
use ferrule_mqtt::{
    Ack, Connect, Packet, Properties, Publish, QoS, ReasonCode, Subscribe, SubscribeFiltersBuf,
    SubscribeOptions, Version, decode,
};
use ferrule_net::{Clock, Inbox, Links, Listener, Mail, Worker, WorkerStats};
use ferrule_outbox::Policy;
use ferrule_store::{MemoryStore, Op, QueueId, Restored, Store, Ticket};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Nothing here takes this long; what does has failed.
const DEADLINE: Duration = Duration::from_secs(30);
const WORKERS: u16 = 3;

type Look = (Stats, [usize; 6], WorkerStats);

enum Ask {
    Look(mpsc::Sender<Look>),
    /// The worker does nothing until the other end is gone.
    Block(mpsc::Sender<()>, mpsc::Receiver<()>),
}

/// Commits at once, and answers as a writer thread does: through the inbox. Each worker's is its own: nothing here restarts.
struct PromptStore(MemoryStore, Inbox<Ask>);

impl PromptStore {
    fn post(&mut self) {
        self.0.take_events().into_iter().for_each(|event| self.1.post(Mail::Store(event)));
    }
}

impl Store for PromptStore {
    fn submit(&mut self, ops: Vec<Op>) -> Ticket {
        let ticket = self.0.submit(ops);
        self.0.commit();
        self.post();
        ticket
    }
    fn read(&mut self, queue: QueueId, from: u64, max_rows: u32, max_bytes: u32) {
        self.0.read(queue, from, max_rows, max_bytes);
        self.post();
    }
    fn pending_bytes(&self) -> usize {
        0
    }
}

/// Each worker listens on its own port, so that a test chooses who accepts.
struct Node {
    addresses: Vec<SocketAddr>,
    inboxes: Vec<Inbox<Ask>>,
    threads: Vec<JoinHandle<std::io::Result<()>>>,
}

fn place(index: u16) -> Place {
    Place { index, of: WORKERS, seed: 7 }
}

impl Node {
    fn start(delay: Option<Duration>) -> Self {
        type Of = Worker<NoHook, PromptStore, Ask>;
        let clock = Clock::start();
        let (polls, inboxes): (Vec<_>, Vec<_>) = (0..WORKERS).map(|_| Of::poll().unwrap()).unzip();
        let shard = |index: u16| {
            let parts = Parts {
                hook: NoHook,
                store: PromptStore(MemoryStore::new(), inboxes[usize::from(index)].clone()),
                gate: Box::new(Everyone),
                limits: Limits::default(),
                features: Arc::default(),
                policy: Policy::EDGE,
                seed: 1,
                place: place(index),
            };
            Shard::new(parts, &Restored::default(), clock.now())
        };
        let mut shards: Vec<_> = (0..WORKERS).map(shard).collect();
        introduce(&mut shards, clock.now()).unwrap();
        let mut node = Self { addresses: Vec::new(), inboxes: inboxes.clone(), threads: Vec::new() };
        let links = Links::mesh(&inboxes, delay);
        for (((poll, inbox), shard), links) in polls.into_iter().zip(inboxes).zip(shards).zip(links) {
            let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), Arc::default()).unwrap();
            node.addresses.push(listener.address().tcp().unwrap());
            let worker = move || {
                let worker = Worker::new(poll, inbox, links, clock, vec![listener], shard)?;
                worker.run(|shard, stats, ask: Ask, _| match ask {
                    Ask::Look(tell) => _ = tell.send((shard.stats(), shard.sizes(), *stats)),
                    Ask::Block(blocked, until) => {
                        let _ = blocked.send(());
                        let _ = until.recv_timeout(DEADLINE);
                    }
                })
            };
            node.threads.push(std::thread::spawn(worker));
        }
        node
    }

    fn look(&self, worker: u16) -> Look {
        let (tell, told) = mpsc::channel();
        self.inboxes[usize::from(worker)].post(Mail::App(Ask::Look(tell)));
        told.recv_timeout(DEADLINE).unwrap()
    }

    /// Looks at a worker until `right`.
    fn wait_for(&self, worker: u16, what: &str, right: impl Fn(&Look) -> bool) {
        let start = Instant::now();
        loop {
            let look = self.look(worker);
            if right(&look) {
                return;
            }
            assert!(start.elapsed() < DEADLINE, "{what}: {look:?}");
            std::thread::yield_now();
        }
    }

    /// Nothing is open anywhere, and nothing was lost.
    fn wait_for_quiet(&self) {
        for worker in 0..WORKERS {
            self.wait_for(worker, "all receipts are closed", |(_, sizes, _)| sizes[4] == 0);
            assert_eq!(self.look(worker).1[5], 0, "lost ends");
        }
    }

    fn stranger(&self, accepts: u16) -> Client {
        let stream = TcpStream::connect(self.addresses[usize::from(accepts)]).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        Client { stream, bytes: Vec::new(), at: 0 }
    }

    /// A client that one worker accepts and another (or the same) serves.
    fn client(&self, accepts: u16, id: &str) -> Client {
        let mut client = self.stranger(accepts);
        client.send(&connect(id));
        assert_eq!(client.next(), "connack");
        client
    }

    fn stop(self) {
        for inbox in &self.inboxes {
            inbox.post(Mail::Stop);
        }
        for thread in self.threads {
            thread.join().unwrap().unwrap();
        }
    }
}

/// A client id that a worker's shard owns.
fn id_of(worker: u16, name: &str) -> String {
    (0..).map(|n| format!("{name}{n}")).find(|id| place(0).owner(id) == worker).unwrap()
}

struct Client {
    stream: TcpStream,
    bytes: Vec<u8>,
    at: usize,
}

impl Client {
    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The next packet, `end` at the end of the stream. Acknowledges what wants it.
    fn next(&mut self) -> String {
        loop {
            if let Some((packet, size)) =
                decode(&self.bytes[self.at..], Some(Version::V5), usize::MAX).unwrap()
            {
                let ack =
                    |packet_id| Ack { packet_id, reason: ReasonCode::SUCCESS, properties: Properties::EMPTY };
                let mut answer = None;
                let text = match packet {
                    Packet::Connack(p) if p.reason == ReasonCode::SUCCESS => "connack".into(),
                    Packet::Publish(p) => {
                        answer = match p.qos {
                            QoS::AtMostOnce => None,
                            QoS::AtLeastOnce => Some(Packet::Puback(ack(p.packet_id))),
                            QoS::ExactlyOnce => Some(Packet::Pubrec(ack(p.packet_id))),
                        };
                        let front = &p.payload[..p.payload.len().min(8)];
                        format!("publish {} q{} {}", p.topic, p.qos, String::from_utf8_lossy(front))
                    }
                    Packet::Pubrel(p) => {
                        answer = Some(Packet::Pubcomp(ack(p.packet_id)));
                        "pubrel".into()
                    }
                    Packet::Pubrec(p) => {
                        answer = Some(Packet::Pubrel(ack(p.packet_id)));
                        format!("pubrec {}", p.packet_id)
                    }
                    Packet::Puback(p) => format!("puback {}", p.packet_id),
                    Packet::Pubcomp(p) => format!("pubcomp {}", p.packet_id),
                    Packet::Suback(_) => "suback".into(),
                    Packet::Pingresp => "pong".into(),
                    Packet::Disconnect(p) => format!("disconnect {:02x}", p.reason.0),
                    other => format!("{other:?}"),
                };
                let answer = answer.map(|packet| encode(&packet));
                self.at += size;
                answer.into_iter().for_each(|bytes| self.send(&bytes));
                return text;
            }
            self.bytes.drain(..self.at);
            self.at = 0;
            let mut chunk = [0; 65_536];
            match self.stream.read(&mut chunk) {
                Ok(0) => return "end".into(),
                Ok(size) => self.bytes.extend_from_slice(&chunk[..size]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn subscribe(&mut self, filter: &str, qos: QoS) {
        self.send(&subscribe(filter, qos));
        assert_eq!(self.next(), "suback");
    }
}

fn encode(packet: &Packet<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    packet.encode(Version::V5, &mut out).unwrap();
    out
}

fn connect(id: &str) -> Vec<u8> {
    encode(&Packet::Connect(Connect {
        version: Version::V5,
        clean_start: true,
        bridge: false,
        keep_alive: 0,
        properties: Properties::EMPTY,
        client_id: id,
        will: None,
        username: None,
        password: None,
    }))
}

fn subscribe(filter: &str, qos: QoS) -> Vec<u8> {
    let mut filters = SubscribeFiltersBuf::new();
    let options = SubscribeOptions { qos, no_local: false, retain_as_published: false, retain_handling: 0 };
    filters.push(filter, options).unwrap();
    let filters = filters.as_filters();
    encode(&Packet::Subscribe(Subscribe { packet_id: 1, properties: Properties::EMPTY, filters }))
}

fn publish(topic: &str, qos: QoS, packet_id: u16, payload: &[u8]) -> Vec<u8> {
    let properties = Properties::EMPTY;
    encode(&Packet::Publish(Publish {
        dup: false,
        qos,
        retain: false,
        topic,
        packet_id,
        properties,
        payload,
    }))
}

const PING: [u8; 2] = [0xC0, 0];
const ALL_QOS: [QoS; 3] = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];

/// Without delay, and with one that lets what goes over one link overtake what goes over another.
fn on_both(test: impl Fn(Node)) {
    test(Node::start(None));
    test(Node::start(Some(Duration::from_millis(5))));
}

#[test]
fn connections_move_to_their_worker_with_all_that_they_sent() {
    on_both(|node| {
        for (accepts, serves) in (0..WORKERS).flat_map(|a| (0..WORKERS).map(move |s| (a, s))) {
            let id = id_of(serves, &format!("moves{accepts}-"));
            let mut bytes = connect(&id);
            let connect_len = bytes.len();
            // Pipelined behind CONNECT: what is published meets the subscription before it.
            bytes.extend(subscribe(&id, QoS::AtLeastOnce));
            bytes.extend(PING);
            for cuts in [&[][..], &[1], &[5, connect_len - 1], &[connect_len], &[2, 9, connect_len + 3]] {
                let mut client = node.stranger(accepts);
                let mut from = 0;
                for &cut in cuts.iter().chain([&bytes.len()]) {
                    client.send(&bytes[from..cut]);
                    from = cut;
                    // It has read what came before it answers.
                    node.look(accepts);
                }
                let mut answers = [client.next(), client.next(), client.next()];
                answers[1..].sort();
                assert_eq!(answers, ["connack", "pong", "suback"], "{accepts} to {serves}, {cuts:?}");
                client.send(&publish(&id, QoS::AtLeastOnce, 9, b"own"));
                let mut answers = [client.next(), client.next()];
                answers.sort();
                assert_eq!(answers[1], format!("publish {id} q1 own"));
                assert_eq!(answers[0], "puback 9");
            }
            // The first of those that reach their own worker directly comes after one that moved there; worker 0's does not.
            let (_, _, stats) = node.look(serves);
            assert_eq!(stats.moved_in > 0, accepts != serves || accepts > 0, "{accepts} to {serves}");
        }
        node.wait_for_quiet();
        node.stop();
    });
}

#[test]
fn messages_cross_workers_once_and_in_order() {
    on_both(|node| {
        for (serves, qos) in (0..WORKERS).flat_map(|s| ALL_QOS.map(|q| (s, q))) {
            let mut subscriber = node.client(0, &id_of(serves, "subscriber"));
            subscriber.subscribe("x/+", qos);
            for from in 0..WORKERS {
                let mut publisher = node.client(1, &id_of(from, "publisher"));
                for n in 1..=100_u16 {
                    publisher.send(&publish(
                        "x/y",
                        qos,
                        if qos as u8 > 0 { n } else { 0 },
                        n.to_string().as_bytes(),
                    ));
                }
                let mut got = 0;
                while got < 100 {
                    let said = subscriber.next();
                    if said != "pubrel" {
                        got += 1;
                        assert_eq!(said, format!("publish x/y q{qos} {got}"), "from {from} to {serves}");
                    }
                }
                // Acknowledgements in order, and each exchange to its end.
                let (mut first, mut last) = (0, 0);
                while qos as u8 > 0 && last < 100 {
                    let said = publisher.next();
                    if qos == QoS::AtLeastOnce {
                        last += 1;
                        assert_eq!(said, format!("puback {last}"));
                    } else if said.starts_with("pubrec") {
                        first += 1;
                        assert_eq!(said, format!("pubrec {first}"));
                    } else {
                        last += 1;
                        assert_eq!(said, format!("pubcomp {last}"));
                    }
                }
            }
            subscriber.send(&PING);
            while subscriber.next() != "pong" {}
        }
        node.wait_for_quiet();
        node.stop();
    });
}

#[test]
fn a_client_id_is_taken_over_from_any_worker() {
    on_both(|node| {
        for serves in 0..WORKERS {
            let id = id_of(serves, "twice");
            let mut old = node.client(0, &id);
            for accepts in [1, 2, 0, 2] {
                let mut new = node.client(accepts, &id);
                assert_eq!((old.next(), old.next()), ("disconnect 8e".into(), "end".into()));
                new.send(&PING);
                assert_eq!(new.next(), "pong");
                old = new;
            }
        }
        node.stop();
    });
}

#[test]
fn a_full_ring_loses_nothing_and_recovers() {
    let node = Node::start(None);
    let mut subscriber = node.client(0, &id_of(0, "subscriber"));
    subscriber.subscribe("x", QoS::AtLeastOnce);
    let mut publisher = node.client(1, &id_of(1, "publisher"));
    let (blocked, is_blocked) = mpsc::channel();
    let (release, until) = mpsc::channel::<()>();
    node.inboxes[0].post(Mail::App(Ask::Block(blocked, until)));
    is_blocked.recv_timeout(DEADLINE).unwrap();
    // 20 MB within the publisher's window: a ring takes 4, and sockets some more.
    let mut stream = publisher.stream.try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        for n in 1..=200_u16 {
            let mut payload = format!("{n:08}").into_bytes();
            payload.resize(100_000, b'x');
            stream.write_all(&publish("x", QoS::AtLeastOnce, n, &payload)).unwrap();
        }
    });
    node.wait_for(1, "its ring is full", |(_, _, stats)| stats.rings_full > 0);
    // Others are served meanwhile.
    let mut third = node.client(2, &id_of(2, "third"));
    third.send(&subscribe("y", QoS::AtLeastOnce));
    third.send(&PING);
    assert_eq!(third.next(), "pong");
    drop(release);
    for n in 1..=200 {
        assert_eq!(subscriber.next(), format!("publish x q1 {n:08}"));
    }
    for n in 1..=200 {
        assert_eq!(publisher.next(), format!("puback {n}"));
    }
    writer.join().unwrap();
    // Its SUBACK waited for the worker that was blocked.
    assert_eq!(third.next(), "suback");
    publisher.send(&publish("y", QoS::AtLeastOnce, 300, b"again"));
    assert_eq!(third.next(), "publish y q1 again");
    assert_eq!(publisher.next(), "puback 300");
    node.wait_for_quiet();
    node.stop();
}

#[test]
fn stop_tells_clients_of_all_workers_and_ends_all_threads() {
    on_both(|node| {
        let mut clients: Vec<_> = (0..WORKERS).map(|n| node.client(0, &id_of(n, "stays"))).collect();
        node.stop();
        for client in &mut clients {
            assert_eq!((client.next(), client.next()), ("disconnect 8b".into(), "end".into()));
        }
    });
}
