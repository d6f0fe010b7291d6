//! The driver over real sockets, against a scripted broker: after every fault nothing is lost, every row is answered
//! once, and at the broker what it sees first of each key ascends.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{BOOT, Seen, connack_of, disconnect, entry, puback, row, row_of, see};
use ferrule_link::uplink::OnEvent;
use ferrule_link::{IdentityMode, LinkState, Server, UplinkConfig, UplinkStats};
use ferrule_mqtt::{Packet, Property, Version, decode};
use ferrule_outbox::receipt::Reason;
use ferrule_outbox::{ConsumerEvent, Delivered, OutRow};
use ferrule_store::{Boot, Stamp};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(60);
const WINDOW: u16 = 16;

// === the scripted broker ===

/// What the broker does with one connection.
#[derive(Debug, Clone)]
enum Plan {
    /// Acknowledges everything at once.
    Ack,
    /// Gathers this many messages (or what comes within a moment), acknowledges the last first.
    AckBackwards(usize),
    /// Acknowledges every second message; closes after this many.
    DropAfter(usize),
    /// Acknowledges nothing; closes after this many.
    NeverAck(usize),
    /// Reads nothing after CONNECT.
    Blackhole,
    /// CONNACK with this code, then close.
    Refuse(u8),
    /// Closes before CONNACK.
    Close,
    /// Never says CONNACK.
    Mute,
    /// Acknowledges with this code.
    Nack(u8),
    /// DISCONNECT with this code as soon as message number `1` of the tuple is there; acknowledges the others.
    DisconnectOn(u8, u64),
    /// Reads this many bytes at a time, then yields; acknowledges everything.
    Slow(usize),
}

#[derive(Default)]
struct Seens {
    /// By connection.
    messages: Vec<Vec<Seen>>,
    connects: Vec<Connected>,
    goodbyes: usize,
}

#[derive(Debug, Clone)]
struct Connected {
    version: Version,
    clean_start: bool,
    client_id: String,
    username: Option<String>,
    password: Option<Vec<u8>>,
    user: Vec<(String, String)>,
}

struct Broker {
    server: Server,
    seen: Arc<Mutex<Seens>>,
    task: JoinHandle<()>,
}

impl Broker {
    /// Each connection takes the next plan; the last one stays.
    async fn start(plans: Vec<Plan>, connack: &[Property<'static>]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Server::new("127.0.0.1", listener.local_addr().unwrap().port());
        let seen = Arc::new(Mutex::new(Seens::default()));
        let (log, connack) = (Arc::clone(&seen), connack.to_vec());
        let task = tokio::spawn(async move {
            let mut plans = VecDeque::from(plans);
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let plan = plans.pop_front().unwrap();
                if plans.is_empty() {
                    plans.push_back(plan.clone());
                }
                let index = {
                    let mut log = log.lock().unwrap();
                    log.messages.push(Vec::new());
                    log.messages.len() - 1
                };
                tokio::spawn(serve(stream, plan, connack.clone(), Arc::clone(&log), index));
            }
        });
        Self { server, seen, task }
    }

    /// First occurrences of each key, in order; all connections.
    fn check_order(&self) {
        let mut highest: BTreeMap<String, u64> = BTreeMap::new();
        let mut known = BTreeSet::new();
        for message in self.seen.lock().unwrap().messages.iter().flatten() {
            let top = highest.entry(message.topic.clone()).or_default();
            let number = message.number();
            assert!(!known.insert(number) || number > *top, "{}: {number} after {top}", message.topic);
            *top = number.max(*top);
        }
    }

    fn numbers(&self) -> BTreeSet<u64> {
        self.seen.lock().unwrap().messages.iter().flatten().map(Seen::number).collect()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Errors end the connection: the peer may go at any time.
async fn serve(
    mut stream: TcpStream,
    plan: Plan,
    connack: Vec<Property<'static>>,
    log: Arc<Mutex<Seens>>,
    index: usize,
) -> Option<()> {
    let mut buf: Vec<u8> = Vec::new();
    let mut version = None;
    let mut count = 0;
    let mut gathered: Vec<u16> = Vec::new();
    loop {
        let mut out = Vec::new();
        let mut at = 0;
        while let Some((packet, size)) = decode(&buf[at..], version, usize::MAX).unwrap() {
            at += size;
            match packet {
                Packet::Connect(connect) => {
                    version = Some(connect.version);
                    log.lock().unwrap().connects.push(Connected {
                        version: connect.version,
                        clean_start: connect.clean_start,
                        client_id: connect.client_id.to_owned(),
                        username: connect.username.map(str::to_owned),
                        password: connect.password.map(<[u8]>::to_vec),
                        user: connect
                            .properties
                            .user_properties()
                            .map(|(name, value)| (name.to_owned(), value.to_owned()))
                            .collect(),
                    });
                    match plan {
                        Plan::Close => return None,
                        Plan::Mute => std::future::pending().await,
                        Plan::Refuse(code) => {
                            stream.write_all(&connack_of(connect.version, code, &[])).await.ok()?;
                            return None;
                        }
                        _ => out.extend(connack_of(connect.version, 0, &connack)),
                    }
                    if let Plan::Blackhole = plan {
                        stream.write_all(&out).await.ok()?;
                        std::future::pending().await
                    }
                }
                Packet::Publish(publish) => {
                    let message = see(&publish);
                    let number = message.number();
                    let id = message.packet_id;
                    log.lock().unwrap().messages[index].push(message);
                    count += 1;
                    if id == 0 {
                        continue;
                    }
                    match plan {
                        Plan::Ack | Plan::Slow(_) => out.extend(puback(id, 0)),
                        Plan::AckBackwards(_) => gathered.push(id),
                        Plan::DropAfter(last) => {
                            if count % 2 == 0 {
                                out.extend(puback(id, 0));
                            }
                            if count == last {
                                stream.write_all(&out).await.ok()?;
                                return None;
                            }
                        }
                        Plan::NeverAck(last) if count == last => return None,
                        Plan::Nack(code) => out.extend(puback(id, code)),
                        Plan::DisconnectOn(code, poison) => {
                            if number == poison {
                                out.extend(disconnect(code, "poison"));
                                stream.write_all(&out).await.ok()?;
                                return None;
                            }
                            out.extend(puback(id, 0));
                        }
                        _ => {}
                    }
                }
                Packet::Pingreq => out.extend([0xD0, 0]),
                Packet::Disconnect(_) => log.lock().unwrap().goodbyes += 1,
                other => panic!("{other:?}"),
            }
        }
        buf.drain(..at);
        if let Plan::AckBackwards(many) = plan {
            if gathered.len() >= many {
                out.extend(gathered.drain(..).rev().flat_map(|id| puback(id, 0)));
            } else if !gathered.is_empty() {
                // What is left at the end comes alone.
                match timeout(Duration::from_millis(50), stream.readable()).await {
                    Ok(ready) => ready.ok()?,
                    Err(_) => out.extend(gathered.drain(..).rev().flat_map(|id| puback(id, 0))),
                }
            }
        }
        stream.write_all(&out).await.ok()?;
        if out.is_empty() || gathered.is_empty() {
            let limit = if let Plan::Slow(bytes) = plan { bytes } else { 64 * 1024 };
            let start = buf.len();
            buf.resize(start + limit, 0);
            let got = stream.read(&mut buf[start..]).await.ok()?;
            buf.truncate(start + got);
            if got == 0 {
                return None;
            }
            tokio::task::yield_now().await;
        }
    }
}

// === the model of an outbox ===

/// Hands rows out within the window, and checks the answers.
struct Outbox {
    sender: Option<mpsc::Sender<Vec<OutRow>>>,
    events: mpsc::UnboundedReceiver<ConsumerEvent>,
    stats: Arc<UplinkStats>,
    task: JoinHandle<()>,
    window: usize,
    todo: VecDeque<OutRow>,
    open: BTreeSet<u64>,
    answers: BTreeMap<u64, Delivered>,
    ups: usize,
    downs: Vec<String>,
}

impl Outbox {
    fn start(config: UplinkConfig, rows: impl IntoIterator<Item = OutRow>) -> Self {
        let (sender, receiver) = mpsc::channel(64);
        let (tell, events) = mpsc::unbounded_channel();
        let on_event: OnEvent = Arc::new(move |event| drop(tell.send(event)));
        let stats = Arc::new(UplinkStats::default());
        let task = tokio::spawn(ferrule_link::run(config, receiver, on_event, Arc::clone(&stats)));
        Self {
            sender: Some(sender),
            events,
            stats,
            task,
            window: 0,
            todo: rows.into_iter().collect(),
            open: BTreeSet::new(),
            answers: BTreeMap::new(),
            ups: 0,
            downs: Vec::new(),
        }
    }

    /// Until `done` says so.
    async fn until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let deadline = tokio::time::Instant::now() + DEADLINE;
        loop {
            self.hand_out().await;
            if done(self) {
                return;
            }
            match tokio::time::timeout_at(deadline, self.events.recv()).await {
                Ok(Some(event)) => self.on(event),
                Ok(None) => panic!("the uplink ended: {what}"),
                Err(_) => panic!(
                    "{what}: {} answers, {} open, {} to do, downs {:?}, {:?}",
                    self.answers.len(),
                    self.open.len(),
                    self.todo.len(),
                    self.downs,
                    self.stats.snapshot()
                ),
            }
        }
    }

    async fn hand_out(&mut self) {
        let room = self.window.saturating_sub(self.open.len()).min(self.todo.len());
        if room == 0 {
            return;
        }
        let rows: Vec<OutRow> = self.todo.drain(..room).collect();
        self.open.extend(rows.iter().map(|row| row.seq));
        if let Some(sender) = &self.sender {
            sender.send(rows).await.unwrap();
        }
    }

    fn on(&mut self, event: ConsumerEvent) {
        match event {
            ConsumerEvent::Up { window } => {
                self.ups += 1;
                self.window = window;
            }
            ConsumerEvent::Down { error } => self.downs.push(error),
            ConsumerEvent::Reset => panic!("the uplink keeps its rows"),
            ConsumerEvent::Done(answers) => {
                for (seq, answer) in answers {
                    assert!(self.open.remove(&seq), "row {seq} was not open");
                    assert_eq!(self.answers.insert(seq, answer), None, "row {seq} was answered twice");
                }
            }
        }
    }

    async fn all(&mut self, what: &str) {
        self.until(what, |outbox| outbox.open.is_empty() && outbox.todo.is_empty()).await;
    }

    /// Drops the sender and waits for the uplink's end.
    async fn stop(&mut self) {
        self.sender = None;
        timeout(DEADLINE, &mut self.task).await.unwrap().unwrap();
        while let Ok(event) = self.events.try_recv() {
            self.on(event);
        }
        assert_eq!(self.stats.snapshot().state, LinkState::Stopped);
    }
}

fn config(servers: &[&Server]) -> UplinkConfig {
    let servers = servers.iter().map(|&server| server.clone()).collect();
    let clock = Arc::new(|| Stamp { wall_ms: 7, mono_us: 0, synced: true });
    let mut config = UplinkConfig::new(servers, "press-7".into(), Boot::new(BOOT), clock);
    config.backoff_max = Duration::from_millis(20);
    config.window_max = WINDOW;
    config
}

fn rows(count: u64) -> impl Iterator<Item = OutRow> {
    (1..=count).map(|seq| row(seq, ["a", "b", "c"][seq as usize % 3]))
}

fn large(seq: u64, bytes: usize) -> OutRow {
    let mut entry = entry(seq, "a");
    entry.payload = format!("{}{seq}", "0".repeat(bytes)).into();
    row_of(entry)
}

/// Runs `count` rows through the plans; all must be delivered and in order.
async fn survive(plans: Vec<Plan>, count: u64, change: impl FnOnce(&mut UplinkConfig)) -> (Outbox, Broker) {
    let what = format!("{plans:?}");
    let broker = Broker::start(plans, &[]).await;
    let mut config = config(&[&broker.server]);
    change(&mut config);
    let mut outbox = Outbox::start(config, rows(count));
    outbox.all(&what).await;
    assert_eq!(outbox.answers.len() as u64, count, "{what}");
    assert!(outbox.answers.values().all(|answer| *answer == Delivered::Yes), "{what}");
    assert_eq!(broker.numbers(), (1..=count).collect(), "{what}");
    broker.check_order();
    (outbox, broker)
}

// === tests ===

#[tokio::test]
async fn rows_arrive_in_order_and_many_leave_in_one_write() {
    let (mut outbox, broker) = survive(vec![Plan::Ack], 5_000, |config| config.window_max = 500).await;
    outbox.stop().await;
    let stats = outbox.stats.snapshot();
    assert_eq!((stats.sent, stats.acknowledged, stats.connects, stats.failures), (5_000, 5_000, 1, 0));
    assert_eq!((stats.in_flight, stats.waiting, &stats.last_error), (0, 0, &None));
    assert!(stats.bytes_out > 5_000 * 10 && stats.bytes_in >= 5_000 * 4, "{stats:?}");
    assert!(stats.writes < 2_500, "{} writes for 5000 rows", stats.writes);
    let seen = broker.seen.lock().unwrap();
    let connect = &seen.connects[0];
    assert_eq!((connect.version, connect.clean_start), (Version::V5, true));
    assert_eq!((&*connect.client_id, &connect.username), ("ferrule-press-7", &None));
    let user = [("ferrule", "1"), ("ferrule-edge", "press-7"), ("ferrule-boot", "b007")];
    assert_eq!(connect.user, user.map(|(name, value)| (name.to_owned(), value.to_owned())));
    assert!(
        seen.messages[0].iter().all(|m| m.user.is_empty() && m.qos == 1),
        "a plain broker gets no identity"
    );
}

#[tokio::test]
async fn acknowledgements_may_come_in_any_order() {
    survive(vec![Plan::AckBackwards(5)], 300, |_| ()).await;
}

#[tokio::test]
async fn a_connection_lost_in_the_middle_of_a_window_loses_nothing() {
    // Half of them stay open: below two windows, or the broker would wait for ever.
    let plans = (0..45).map(|n| Plan::DropAfter(2 * (n % 15 + 1))).chain([Plan::Ack]).collect();
    let (outbox, _broker) = survive(plans, 1_500, |_| ()).await;
    assert!(outbox.ups > 20, "{} connections", outbox.ups);
}

#[tokio::test]
async fn a_broker_that_never_acknowledges_gets_one_window() {
    let (outbox, broker) = survive(vec![Plan::NeverAck(WINDOW.into()), Plan::Ack], 100, |_| ()).await;
    assert_eq!(broker.seen.lock().unwrap().messages[0].len(), usize::from(WINDOW));
    assert_eq!((outbox.ups, outbox.downs.len()), (2, 1));
    assert!(
        outbox.downs[0].contains("closed the connection") || outbox.downs[0].contains("broke"),
        "{:?}",
        outbox.downs
    );
}

#[tokio::test]
async fn a_blackhole_is_noticed_by_its_silence() {
    // More than the socket buffers hold, so that writing stops too.
    let broker = Broker::start(vec![Plan::Blackhole, Plan::Ack], &[]).await;
    let mut config = config(&[&broker.server]);
    config.keep_alive = Duration::from_secs(1);
    let mut outbox = Outbox::start(config, rows(40));
    outbox.all("blackhole").await;
    assert_eq!(outbox.ups, 2);
    // Ours or the kernel's word, whichever is first.
    assert!(
        outbox.downs[0].contains("silent") || outbox.downs[0].contains("timed out"),
        "{:?}",
        outbox.downs
    );
    assert_eq!(broker.numbers().len(), 40);
    broker.check_order();
}

#[tokio::test]
async fn a_blackhole_with_full_buffers_is_noticed_too() {
    let broker = Broker::start(vec![Plan::Blackhole, Plan::Ack], &[]).await;
    let mut config = config(&[&broker.server]);
    config.keep_alive = Duration::from_secs(1);
    let mut outbox = Outbox::start(config, (1..=40).map(|seq| large(seq, 1_000_000)));
    outbox.all("blackhole, 40 MB").await;
    assert_eq!((outbox.ups, outbox.answers.len()), (2, 40));
    broker.check_order();
}

#[tokio::test]
async fn a_broker_that_reads_little_gets_everything() {
    let broker = Broker::start(vec![Plan::Slow(5_000)], &[]).await;
    let mut outbox = Outbox::start(config(&[&broker.server]), (1..=60).map(|seq| large(seq, 100_000)));
    outbox.all("slow").await;
    assert_eq!((outbox.ups, outbox.answers.len()), (1, 60));
    broker.check_order();
}

#[tokio::test]
async fn refusals_are_told_with_their_reason_and_tried_again() {
    for (code, word) in
        [(0x86, "Bad User Name or Password"), (0x87, "Not authorized"), (0x97, "Quota exceeded")]
    {
        let plans = vec![Plan::Refuse(code), Plan::Refuse(code), Plan::Refuse(code), Plan::Ack];
        let (outbox, broker) = survive(plans, 10, |config| {
            config.username = Some("u".to_owned());
            config.password = Some(b"p".to_vec());
        })
        .await;
        // The same error is told once.
        assert_eq!((outbox.ups, outbox.downs.len()), (1, 1), "{:?}", outbox.downs);
        assert!(
            outbox.downs[0].contains(word) && outbox.downs[0].contains("127.0.0.1"),
            "{:?}",
            outbox.downs
        );
        assert_eq!(outbox.stats.snapshot().failures, 3);
        let seen = broker.seen.lock().unwrap();
        assert_eq!(seen.connects.len(), 4);
        assert_eq!(seen.connects[3].password.as_deref(), Some(&b"p"[..]));
    }
}

#[tokio::test]
async fn silence_and_close_before_connack_are_tried_again() {
    let (outbox, _broker) = survive(vec![Plan::Mute, Plan::Close, Plan::Ack], 10, |config| {
        config.connect_timeout = Duration::from_millis(100);
    })
    .await;
    assert_eq!((outbox.ups, outbox.downs.len()), (1, 2), "{:?}", outbox.downs);
    assert!(outbox.downs[0].contains("did not answer CONNECT"), "{:?}", outbox.downs);
}

#[tokio::test]
async fn the_next_server_is_tried_when_one_fails() {
    let dead = {
        // A port that was just free.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Server::new("127.0.0.1", listener.local_addr().unwrap().port())
    };
    let broker = Broker::start(vec![Plan::Ack], &[]).await;
    let mut outbox = Outbox::start(config(&[&dead, &broker.server]), rows(10));
    outbox.all("second server").await;
    assert_eq!((outbox.ups, outbox.downs.len()), (1, 0), "{:?}", outbox.downs);
}

#[tokio::test]
async fn a_broker_that_comes_late_is_found() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let server = Server::new("localhost", address.port());
    let mut outbox = Outbox::start(config(&[&server]), rows(10));
    outbox.until("down", |outbox| !outbox.downs.is_empty()).await;
    assert!(outbox.downs[0].contains("cannot be reached"), "{:?}", outbox.downs);
    let listener = TcpListener::bind(address).await.unwrap();
    let log = Arc::new(Mutex::new(Seens { messages: vec![Vec::new()], ..Seens::default() }));
    let serving = Arc::clone(&log);
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        serve(stream, Plan::Ack, Vec::new(), serving, 0).await
    });
    outbox.all("late broker").await;
    assert_eq!(log.lock().unwrap().messages[0].len(), 10);
}

#[tokio::test]
async fn not_now_is_tried_until_it_is_taken() {
    for code in [0x97, 0x83, 0x80] {
        let broker = Broker::start(vec![Plan::Nack(code)], &[]).await;
        let mut outbox = Outbox::start(config(&[&broker.server]), rows(6));
        let stats = Arc::clone(&outbox.stats);
        let deferred = || stats.snapshot().deferred >= 20;
        // No event tells it: nothing is answered.
        outbox.until("up", |outbox| outbox.ups == 1 && outbox.todo.is_empty()).await;
        timeout(DEADLINE, async {
            while !deferred() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap();
        outbox.stop().await;
        assert_eq!((outbox.answers.len(), outbox.open.len()), (0, 6), "{code:#x}: kept");
    }
    let (_outbox, broker) = survive(vec![Plan::DropAfter(3), Plan::Nack(0), Plan::Ack], 50, |_| ()).await;
    broker.check_order();
}

#[tokio::test]
async fn a_refused_row_is_discarded_and_counted() {
    for code in [0x87, 0x90, 0x99] {
        let broker = Broker::start(vec![Plan::Nack(code)], &[]).await;
        let mut outbox = Outbox::start(config(&[&broker.server]), rows(20));
        outbox.all("refused").await;
        assert!(outbox.answers.values().all(|answer| *answer == Delivered::Discarded(Reason::Refused)));
        assert_eq!((outbox.stats.snapshot().discarded, outbox.ups), (20, 1));
    }
}

#[tokio::test]
async fn a_poison_row_costs_itself_only() {
    let broker = Broker::start(vec![Plan::DisconnectOn(0x99, 7)], &[]).await;
    let mut outbox = Outbox::start(config(&[&broker.server]), rows(40));
    outbox.all("poison").await;
    let refused: Vec<_> = outbox.answers.iter().filter(|(_, answer)| **answer != Delivered::Yes).collect();
    assert_eq!(refused, [(&7, &Delivered::Discarded(Reason::Refused))]);
    broker.check_order();
}

#[tokio::test]
async fn identity_goes_to_those_who_believe_it() {
    let ferrule = [Property::UserProperty("ferrule", "1")];
    for (connack, mode, sent) in [
        (&ferrule[..], IdentityMode::Negotiated, true),
        (&[][..], IdentityMode::Negotiated, false),
        (&[][..], IdentityMode::Properties, true),
    ] {
        let broker = Broker::start(vec![Plan::Ack], connack).await;
        let mut config = config(&[&broker.server]);
        config.identity = mode;
        let mut outbox = Outbox::start(config, rows(3));
        outbox.all("identity").await;
        let seen = broker.seen.lock().unwrap();
        let message = &seen.messages[0][2];
        assert_eq!(message.property("ferrule-id"), sent.then_some("b007.0.3"));
        assert_eq!(message.property("ferrule-client"), sent.then_some("a"));
        assert_eq!(message.property("ferrule-at"), sent.then_some("1000"));
    }
}

#[tokio::test]
async fn version_3_1_1_works_without_properties() {
    let broker = Broker::start(vec![Plan::DropAfter(4), Plan::Ack], &[]).await;
    let mut config = config(&[&broker.server]);
    config.version = Version::V3_1_1;
    config.identity = IdentityMode::Properties;
    let mut outbox = Outbox::start(config, rows(50));
    outbox.all("3.1.1").await;
    assert_eq!(broker.seen.lock().unwrap().connects[0].version, Version::V3_1_1);
    broker.check_order();
}

#[tokio::test]
async fn qos_0_rows_are_done_when_they_are_written() {
    let broker = Broker::start(vec![Plan::NeverAck(usize::MAX)], &[]).await;
    let at_most_once = |seq| {
        let mut entry = entry(seq, "a");
        entry.qos = 0;
        row_of(entry)
    };
    let mut outbox = Outbox::start(config(&[&broker.server]), (1..=100).map(at_most_once));
    outbox.all("QoS 0").await;
    assert!(outbox.answers.values().all(|answer| *answer == Delivered::Yes));
}

#[tokio::test]
async fn stopping_waits_for_what_is_in_flight_and_says_goodbye() {
    let broker = Broker::start(vec![Plan::AckBackwards(usize::MAX)], &[]).await;
    let mut outbox = Outbox::start(config(&[&broker.server]), rows(10));
    outbox.until("sent", |outbox| outbox.open.len() == 10).await;
    timeout(DEADLINE, async {
        while outbox.stats.snapshot().in_flight < 10 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .unwrap();
    outbox.stop().await;
    assert_eq!(outbox.answers.len(), 10);
    timeout(DEADLINE, async {
        while broker.seen.lock().unwrap().goodbyes == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn it_stops_whatever_it_is_doing() {
    let mute = Broker::start(vec![Plan::Mute], &[]).await;
    let never = Broker::start(vec![Plan::NeverAck(usize::MAX)], &[]).await;
    let hole = Broker::start(vec![Plan::Blackhole], &[]).await;
    let dead = Server::new("127.0.0.1", 1);
    for server in [&mute.server, &never.server, &hole.server, &dead] {
        let mut config = config(&[server]);
        config.drain = Duration::from_millis(10);
        let mut outbox = Outbox::start(config, rows(10));
        if *server != mute.server && *server != dead {
            outbox.until("up", |outbox| outbox.ups == 1).await;
        }
        outbox.stop().await;
        assert_eq!(outbox.answers.len(), 0);
    }
}

#[tokio::test]
async fn mistakes_in_the_configuration_are_told_and_do_not_end_it() {
    type Change = fn(&mut UplinkConfig);
    for (change, word) in [
        ((|config| config.servers.clear()) as Change, "no server"),
        (|config| config.keep_alive = Duration::from_secs(70_000), "keep_alive"),
        (|config| config.keep_alive = Duration::from_millis(10), "keep_alive"),
        (|config| config.username = Some("x".repeat(70_000)), "CONNECT"),
    ] {
        let broker = Broker::start(vec![Plan::Ack], &[]).await;
        let mut config = config(&[&broker.server]);
        change(&mut config);
        let mut outbox = Outbox::start(config, rows(1));
        outbox.until("told", |outbox| !outbox.downs.is_empty()).await;
        assert!(outbox.downs[0].contains(word), "{:?}", outbox.downs);
        outbox.stop().await;
    }
}
