//! A worker over real sockets: what the kernel does to packets, and what one connection does to others.

#![allow(clippy::unwrap_used, reason = "tests")]

use bytes::Bytes;
use ferrule_broker::hook::{Everything, NoHook};
use ferrule_broker::shard::Parts;
use ferrule_broker::{
    ClientLimits, ConnId, ConnectRequest, Gate, Grant, Limits, Place, Refusal, Role, Shard, Stats,
};
use ferrule_cluster::{Order, Shards, Standing, Token};
use ferrule_mqtt::{
    Connect, Packet, Properties, PropertiesBuf, Publish, QoS, ReasonCode, Subscribe, SubscribeFiltersBuf,
    SubscribeOptions, Version, decode,
};
use ferrule_net::{Abroad, Clock, Inbox, Lane, Letter, Links, Listener, Mail, Post, Worker};
use ferrule_outbox::Policy;
use ferrule_store::{MemoryStore, Op, QueueId, Restored, Store, Ticket};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Nothing here takes this long; what does has failed.
const DEADLINE: Duration = Duration::from_secs(30);

type Ask = mpsc::Sender<(Stats, [usize; 6])>;

/// Commits at once, and answers as a writer thread does: through the inbox.
struct PromptStore(MemoryStore, Inbox<Ask>);

impl Store for PromptStore {
    fn submit(&mut self, ops: Vec<Op>) -> Ticket {
        let ticket = self.0.submit(ops);
        self.0.commit();
        self.0.take_events().into_iter().for_each(|event| self.1.post(Mail::Store(event)));
        ticket
    }
    fn read(&mut self, queue: QueueId, from: u64, max_rows: u32, max_bytes: u32) {
        self.0.read(queue, from, max_rows, max_bytes);
        self.0.take_events().into_iter().for_each(|event| self.1.post(Mail::Store(event)));
    }
    fn pending_bytes(&self) -> usize {
        0
    }
}

/// Refuses `no`, keeps `later` waiting, admits all others.
#[derive(Default, Clone)]
struct TestGate(Arc<Mutex<Vec<ConnId>>>);

fn grant() -> Grant {
    Grant {
        role: Role::Device,
        username: None,
        access: Arc::new(Everything),
        properties: PropertiesBuf::new(),
        life: None,
    }
}

impl Gate for TestGate {
    fn admit(&mut self, conn: ConnId, request: &ConnectRequest<'_>) -> Option<Result<Grant, Refusal>> {
        match request.client_id {
            "no" => Some(Err(Refusal { reason: ReasonCode::NOT_AUTHORIZED, message: "no".into() })),
            "later" => {
                self.0.lock().unwrap().push(conn);
                None
            }
            _ => Some(Ok(grant())),
        }
    }
}

/// To a node that answers nothing.
struct Nowhere;

impl Lane for Nowhere {
    fn control(&self, _: u16, _: u16, _: Vec<u8>) {}
    fn data(&self, _: u16, _: u16, _: Vec<u8>) {}
    fn queued(&self) -> usize {
        0
    }
}

struct Node {
    address: SocketAddr,
    inbox: Inbox<Ask>,
    gate: TestGate,
    post: Post,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

impl Node {
    fn start(limits: Limits) -> Self {
        Self::start_in(limits, None)
    }

    /// The same, in a cluster, where this says whether it may acknowledge.
    fn start_in(limits: Limits, standing: Option<Arc<ferrule_cluster::Gate>>) -> Self {
        let (tell, told) = mpsc::channel();
        let gate = TestGate::default();
        let gate_of_shard = gate.clone();
        let thread = std::thread::spawn(move || {
            let (poll, inbox) = Worker::<NoHook, PromptStore, Ask>::poll()?;
            let clock = Clock::start();
            let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), Arc::default())?;
            let post = Post::beside(&inbox);
            tell.send((listener.address().tcp().unwrap(), inbox.clone(), post.clone())).unwrap();
            let parts = Parts {
                hook: NoHook,
                store: PromptStore(MemoryStore::new(), inbox.clone()),
                gate: Box::new(gate_of_shard),
                limits,
                features: Arc::default(),
                policy: Policy::EDGE,
                seed: 1,
                place: Place::ALONE,
            };
            let shard = Shard::new(parts, &Restored::default(), clock.now());
            let links = Links::mesh(std::slice::from_ref(&inbox), None).remove(0);
            let mut worker = Worker::new(poll, inbox, links, clock, vec![listener], shard)?;
            if let Some(standing) = standing {
                worker = worker.with_abroad(Abroad::new(post, standing, Arc::new(|_| {})));
            }
            worker.run(|shard, _, ask: Ask, _| {
                let _ = ask.send((shard.stats(), shard.sizes()));
            })
        });
        let (address, inbox, post) = told.recv_timeout(DEADLINE).unwrap();
        Self { address, inbox, gate, post, thread: Some(thread) }
    }

    fn ask(&self) -> (Stats, [usize; 6]) {
        let (tell, told) = mpsc::channel();
        self.inbox.post(Mail::App(tell));
        told.recv_timeout(DEADLINE).unwrap()
    }

    /// Asks until `right`.
    fn wait_for(&self, what: &str, right: impl Fn(&Stats, &[usize; 6]) -> bool) {
        let start = Instant::now();
        loop {
            let (stats, sizes) = self.ask();
            if right(&stats, &sizes) {
                return;
            }
            assert!(start.elapsed() < DEADLINE, "{what}: {stats:?} {sizes:?}");
            std::thread::yield_now();
        }
    }

    fn client(&self, id: &str) -> Client {
        let mut client = self.stranger();
        client.send(&connect(id));
        assert_eq!(client.next(), "connack 0");
        client
    }

    fn stranger(&self) -> Client {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        Client { stream, bytes: Vec::new(), at: 0 }
    }

    fn order(&self, order: Order) {
        let lane = matches!(order, Order::Linked(..)).then(|| Box::new(Nowhere) as Box<dyn Lane>);
        self.post.put(Letter::Order(order, lane));
    }

    fn stop(&mut self) {
        self.inbox.post(Mail::Stop);
        self.thread.take().unwrap().join().unwrap().unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.thread.is_some() && !std::thread::panicking() {
            let [.., lost_ends] = self.ask().1;
            assert_eq!(lost_ends, 0);
            self.stop();
        }
    }
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

    /// The next packet, `end` at the end of the stream.
    fn next(&mut self) -> String {
        loop {
            if let Some((packet, size)) =
                decode(&self.bytes[self.at..], Some(Version::V5), usize::MAX).unwrap()
            {
                let text = match packet {
                    Packet::Connack(p) => format!("connack {}", p.reason.0),
                    Packet::Publish(p) => {
                        let payload = Bytes::copy_from_slice(p.payload);
                        match (p.packet_id, payload.len()) {
                            (0, 0..30) => {
                                format!("publish {} {}", p.topic, String::from_utf8_lossy(&payload))
                            }
                            (id, len) => format!("publish {} {id} {len} {}", p.topic, sum(&payload)),
                        }
                    }
                    Packet::Puback(p) => format!("puback {}", p.packet_id),
                    Packet::Suback(p) => format!("suback {:?}", p.reasons),
                    Packet::Pingresp => "pong".into(),
                    Packet::Disconnect(p) => format!("disconnect {:02x}", p.reason.0),
                    other => format!("{other:?}"),
                };
                self.at += size;
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
        self.ask_for(filter, qos);
        assert_eq!(self.next(), format!("suback [{}]", qos as u8));
    }

    fn ask_for(&mut self, filter: &str, qos: QoS) {
        let mut filters = SubscribeFiltersBuf::new();
        let options =
            SubscribeOptions { qos, no_local: false, retain_as_published: false, retain_handling: 0 };
        filters.push(filter, options).unwrap();
        let filters = filters.as_filters();
        let subscribe = Subscribe { packet_id: 1, properties: Properties::EMPTY, filters };
        self.send(&encode(&Packet::Subscribe(subscribe)));
    }
}

fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |sum, b| sum * 31 % 1_000_003 + u64::from(*b))
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

fn publish(topic: &str, packet_id: u16, payload: &[u8]) -> Vec<u8> {
    let qos = if packet_id == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce };
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

#[test]
fn large_packets_in_pieces_arrive_whole() {
    let node = Node::start(ClientLimits { packet_bytes: 8 << 20, ..ClientLimits::default() }.into());
    let mut subscriber = node.client("s");
    subscriber.subscribe("x", QoS::AtMostOnce);
    let mut publisher = node.client("p");
    for size in [30, 70_000, 1 << 20, 7 << 20] {
        let payload: Vec<u8> = (0..size).map(|i: usize| (i * 7 % 251) as u8).collect();
        let packet = publish("x", 0, &payload);
        for (n, piece) in packet.chunks(packet.len() / 50 + 1).enumerate() {
            publisher.send(piece);
            if n % 10 == 0 {
                // The worker has read what came before it answers another.
                subscriber.send(&PING);
                assert_eq!(subscriber.next(), "pong");
            }
        }
        assert_eq!(subscriber.next(), format!("publish x 0 {size} {}", sum(&payload)));
    }
}

#[test]
fn a_slow_reader_loses_qos_0_and_holds_up_nobody() {
    let node = Node::start(Limits::default());
    let mut slow = node.client("slow");
    slow.subscribe("x", QoS::AtMostOnce);
    let mut quick = node.client("quick");
    quick.subscribe("x", QoS::AtMostOnce);
    let mut publisher = node.client("p");
    let payload = vec![7; 100_000];
    let packet = publish("x", 0, &payload);
    // Far above what sockets and the output buffer hold.
    for _ in 0..400 {
        publisher.send(&packet);
        assert_eq!(quick.next(), format!("publish x 0 100000 {}", sum(&payload)));
    }
    let (stats, _) = node.ask();
    assert!(stats.dropped_slow > 100, "{stats:?}");
    let mut got = 0;
    slow.send(&PING);
    loop {
        match slow.next().as_str() {
            "pong" => break,
            _ => got += 1,
        }
    }
    assert_eq!(got + stats.dropped_slow, 400);
    publisher.send(&publish("x", 0, b"now"));
    assert_eq!((slow.next(), quick.next()), ("publish x now".into(), "publish x now".into()));
}

#[test]
fn a_slow_reader_gets_all_of_qos_1_when_it_reads_again() {
    let node = Node::start(Limits::default());
    let mut slow = node.client("slow");
    slow.subscribe("x", QoS::AtLeastOnce);
    let mut publisher = node.client("p");
    let payload = vec![7; 50_000];
    let mut acknowledged = 0;
    let reader = std::thread::spawn(move || {
        for id in 1..=600 {
            assert_eq!(slow.next(), format!("publish x {id} 50000 {}", sum(&[7; 50_000])));
            let [high, low] = (id as u16).to_be_bytes();
            slow.send(&[0x40, 2, high, low]);
        }
    });
    // 30 MB, past all buffers: acknowledgements of the publisher may be late, none is missing.
    for id in 1..=600_u16 {
        publisher.send(&publish("x", id, &payload));
        if id - acknowledged >= 200 {
            acknowledged += 1;
            assert_eq!(publisher.next(), format!("puback {acknowledged}"));
        }
    }
    while acknowledged < 600 {
        acknowledged += 1;
        assert_eq!(publisher.next(), format!("puback {acknowledged}"));
    }
    reader.join().unwrap();
    node.wait_for("all receipts are closed", |_, sizes| sizes[4] == 0);
}

#[test]
fn five_hundred_connections() {
    let node = Node::start(Limits::default());
    let mut clients: Vec<Client> = (0..500).map(|n| node.client(&format!("c{n}"))).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        client.subscribe(&format!("to/{n}"), QoS::AtMostOnce);
        client.subscribe("all", QoS::AtMostOnce);
    }
    for n in 0..500 {
        let to = (n * 7 + 3) % 500;
        clients[n].send(&publish(&format!("to/{to}"), 0, format!("from {n}").as_bytes()));
        assert_eq!(clients[to].next(), format!("publish to/{to} from {n}"));
    }
    clients[0].send(&publish("all", 0, b"hello"));
    clients.iter_mut().for_each(|c| assert_eq!(c.next(), "publish all hello"));
    drop(clients);
    node.wait_for("all are gone", |_, sizes| sizes[..3] == [0, 0, 0]);
}

#[test]
fn garbage_closes_its_own_connection_alone() {
    let node = Node::start(Limits::default());
    let mut good = node.client("good");
    let mut bad = node.client("bad");
    let mut stranger = node.stranger();
    stranger.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(stranger.next(), "end");
    bad.send(&[0xFF; 1_000]);
    assert!(bad.next().starts_with("disconnect 8"));
    assert_eq!(bad.next(), "end");
    good.send(&PING);
    assert_eq!(good.next(), "pong");
    node.wait_for("one is left", |_, sizes| sizes[0] == 1);
}

#[test]
fn a_refusal_arrives_although_more_was_sent_than_read() {
    let node = Node::start(Limits::default());
    for _ in 0..20 {
        let mut client = node.stranger();
        let mut bytes = connect("no");
        // What the worker never reads would make its close a reset, and a reset destroys the answer.
        bytes.extend(publish("x", 0, &[7; 600_000]));
        client.send(&bytes);
        assert_eq!((client.next(), client.next()), ("connack 135".into(), "end".into()));
    }
}

#[test]
fn a_held_connection_that_ends_is_noticed() {
    let node = Node::start(Limits::default());
    let mut client = node.stranger();
    client.send(&connect("later"));
    client.send(&publish("x", 0, &[7; 400_000]));
    node.wait_for("it waits", |_, sizes| sizes[0] == 1 && node.gate.0.lock().unwrap().len() == 1);
    client.stream.shutdown(Shutdown::Write).unwrap();
    let conn = node.gate.0.lock().unwrap().pop().unwrap();
    node.inbox.post(Mail::Admitted(conn, Ok(grant())));
    assert_eq!((client.next(), client.next()), ("connack 0".into(), "end".into()));
    node.wait_for("what it sent ahead was heard", |stats, sizes| stats.received == 1 && sizes[0] == 0);
}

#[test]
fn a_late_verdict_releases_what_was_sent_ahead() {
    let node = Node::start(Limits::default());
    let mut client = node.stranger();
    client.send(&connect("later"));
    (0..2_000).for_each(|_| client.send(&PING));
    node.wait_for("it waits", |_, _| node.gate.0.lock().unwrap().len() == 1);
    let conn = node.gate.0.lock().unwrap().pop().unwrap();
    node.inbox.post(Mail::Admitted(conn, Ok(grant())));
    assert_eq!(client.next(), "connack 0");
    (0..2_000).for_each(|_| assert_eq!(client.next(), "pong"));
}

#[test]
fn stop_tells_clients_and_returns() {
    let mut node = Node::start(Limits::default());
    let mut client = node.client("a");
    node.stop();
    assert_eq!((client.next(), client.next()), ("disconnect 8b".into(), "end".into()));
}

#[test]
fn a_connection_too_many_is_closed() {
    let node = Node::start(Limits { connections: 2, ..Limits::default() });
    let (_a, b) = (node.client("a"), node.client("b"));
    assert_eq!(node.stranger().next(), "end");
    drop(b);
    node.wait_for("one has gone", |_, sizes| sizes[0] == 1);
    node.client("c");
}

/// The lease of a node that is silent ends a moment before it is given up, and its worker may sleep in between.
#[test]
fn what_waits_for_a_node_that_is_given_up_waits_on_until_the_node_may_acknowledge() {
    let may = Standing { since_us: 0, until_us: u64::MAX };
    let standing = Arc::new(ferrule_cluster::Gate::default());
    standing.set(may);
    let node = Node::start_in(Limits::default(), Some(Arc::clone(&standing)));
    let other = Shards { first: 1, count: 1 };
    let mut client = node.client("s");
    node.order(Order::Live(true));
    node.order(Order::Linked(other, 1, Token::default()));
    node.order(Order::Wait(other, Token::default()));
    node.ask();
    client.ask_for("x", QoS::AtLeastOnce);
    client.send(&PING);
    assert_eq!(client.next(), "pong", "its SUBACK waits");
    standing.set(Standing::NONE);
    node.order(Order::WaitNot(other));
    // The turn that heard of it is over when another one answers.
    node.ask();
    node.ask();
    client.send(&PING);
    assert_eq!(client.next(), "pong", "it waits on");
    standing.set(may);
    node.post.put(Letter::Standing);
    assert_eq!(client.next(), "suback [1]");
}
