//! The scripted broker, the model of an outbox, and an uplink's configuration between them.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "tests; each uses a part of this")]

use super::{BOOT, Seen, connack_of, disconnect, entry, puback, row, row_of, see};
use ferrule_link::uplink::OnEvent;
use ferrule_link::{LinkState, Server, UplinkConfig, UplinkStats};
use ferrule_mqtt::{Packet, Property, Version, decode};
use ferrule_outbox::{ConsumerEvent, Delivered, OutRow};
use ferrule_store::{Boot, Stamp};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

pub const DEADLINE: Duration = Duration::from_secs(60);
pub const WINDOW: u16 = 16;

// === the scripted broker ===

/// What the broker does with one connection.
#[derive(Debug, Clone)]
pub enum Plan {
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
pub struct Seens {
    /// By connection.
    pub messages: Vec<Vec<Seen>>,
    pub connects: Vec<Connected>,
    pub goodbyes: usize,
    /// The connection that said CONNECT last: it takes over from all others [MQTT-3.1.4-3].
    pub newest: watch::Sender<usize>,
}

#[derive(Debug, Clone)]
pub struct Connected {
    pub version: Version,
    pub clean_start: bool,
    pub client_id: String,
    pub username: Option<String>,
    pub password: Option<Vec<u8>>,
    pub user: Vec<(String, String)>,
}

pub struct Broker {
    pub server: Server,
    pub seen: Arc<Mutex<Seens>>,
    pub task: JoinHandle<()>,
}

impl Broker {
    /// Each connection takes the next plan; the last one stays.
    pub async fn start(plans: Vec<Plan>, connack: &[Property<'static>]) -> Self {
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
    pub fn check_order(&self) {
        let mut highest: BTreeMap<String, u64> = BTreeMap::new();
        let mut known = BTreeSet::new();
        for message in self.seen.lock().unwrap().messages.iter().flatten() {
            let top = highest.entry(message.topic.clone()).or_default();
            let number = message.number();
            assert!(!known.insert(number) || number > *top, "{}: {number} after {top}", message.topic);
            *top = number.max(*top);
        }
    }

    pub fn numbers(&self) -> BTreeSet<u64> {
        self.seen.lock().unwrap().messages.iter().flatten().map(Seen::number).collect()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Errors end the connection: the peer may go at any time.
pub async fn serve(
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
    let mut newest = log.lock().unwrap().newest.subscribe();
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
                    log.lock().unwrap().newest.send_replace(index);
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
            let got = tokio::select! {
                got = stream.read(&mut buf[start..]) => got.ok()?,
                () = async { drop(newest.wait_for(|newest| *newest > index).await) } => {
                    let _ = stream.write_all(&disconnect(0x8E, "")).await;
                    return None;
                }
            };
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
pub struct Outbox {
    pub sender: Option<mpsc::Sender<Vec<OutRow>>>,
    pub events: mpsc::UnboundedReceiver<ConsumerEvent>,
    pub stats: Arc<UplinkStats>,
    pub task: JoinHandle<()>,
    pub window: usize,
    pub todo: VecDeque<OutRow>,
    pub open: BTreeSet<u64>,
    pub answers: BTreeMap<u64, Delivered>,
    pub ups: usize,
    pub downs: Vec<String>,
}

impl Outbox {
    pub fn start(config: UplinkConfig, rows: impl IntoIterator<Item = OutRow>) -> Self {
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
    pub async fn until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
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

    pub async fn hand_out(&mut self) {
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

    pub fn on(&mut self, event: ConsumerEvent) {
        match event {
            ConsumerEvent::Up { window } => {
                self.ups += 1;
                self.window = window;
            }
            ConsumerEvent::Down { error } => self.downs.push(error),
            ConsumerEvent::Holds { .. } => {}
            ConsumerEvent::Reset => panic!("the uplink keeps its rows"),
            ConsumerEvent::Counted { .. } => {}
            ConsumerEvent::Done(answers) => {
                for (seq, answer) in answers {
                    assert!(self.open.remove(&seq), "row {seq} was not open");
                    assert_eq!(self.answers.insert(seq, answer), None, "row {seq} was answered twice");
                }
            }
        }
    }

    pub async fn all(&mut self, what: &str) {
        self.until(what, |outbox| outbox.open.is_empty() && outbox.todo.is_empty()).await;
    }

    /// Drops the sender and waits for the uplink's end.
    pub async fn stop(&mut self) {
        self.sender = None;
        timeout(DEADLINE, &mut self.task).await.unwrap().unwrap();
        while let Ok(event) = self.events.try_recv() {
            self.on(event);
        }
        assert_eq!(self.stats.snapshot().state, LinkState::Stopped);
    }
}

pub fn config(servers: &[&Server]) -> UplinkConfig {
    let servers = servers.iter().map(|&server| server.clone()).collect();
    let clock = Arc::new(|| Stamp { wall_ms: 7, mono_us: 0, synced: true });
    let mut config = UplinkConfig::new(servers, "press-7".into(), Boot::new(BOOT), clock);
    config.backoff_max = Duration::from_millis(20);
    config.window_max = WINDOW;
    config
}

pub fn rows(count: u64) -> impl Iterator<Item = OutRow> {
    (1..=count).map(|seq| row(seq, ["a", "b", "c"][seq as usize % 3]))
}

pub fn large(seq: u64, bytes: usize) -> OutRow {
    let mut entry = entry(seq, "a");
    entry.payload = format!("{}{seq}", "0".repeat(bytes)).into();
    row_of(entry)
}
