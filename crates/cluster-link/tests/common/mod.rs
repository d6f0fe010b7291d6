//! A node whose site writes down what it is told, and looks after the order of it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "tests; each uses a part of this")]

use bytes::Bytes;
use ferrule_cluster::{Message, NodeId, PeerId};
use ferrule_cluster_link::{Config, Links, Parcels, Sender, Site, Token, Trust};
use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;

pub const LIMIT: Duration = Duration::from_secs(30);
pub const TOKEN: &str = "a token of these tests";

pub fn id(node: u64, incarnation: u64) -> PeerId {
    PeerId { node: NodeId(node), incarnation }
}

pub fn trust() -> Trust {
    Trust::Token(Token::new(TOKEN).unwrap())
}

pub fn config(me: PeerId) -> Config {
    Config::new(me, &format!("n{}", me.node.0), 2, "tests", trust())
}

pub fn parcels(bytes: impl Into<Bytes>) -> Parcels {
    Parcels { from: 1, to: 0, bytes: bytes.into() }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Up(PeerId),
    Down(PeerId),
    Message(PeerId, Message),
    Routes(PeerId, Parcels),
    /// How many bytes, and the first eight as a number.
    Data(PeerId, usize, u64),
}

/// What a node's site was told.
pub struct Seen {
    events: Mutex<Vec<Event>>,
    senders: Mutex<HashMap<PeerId, Sender>>,
    /// Whether [`Site::data`] has room.
    room: watch::Sender<bool>,
    /// Whether [`Site::down`] may return.
    may_end: watch::Sender<bool>,
    /// Whether [`Site::up`] says yes.
    pub welcome: AtomicBool,
    broken: Mutex<Vec<String>>,
}

impl Seen {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            events: Mutex::default(),
            senders: Mutex::default(),
            room: watch::Sender::new(true),
            may_end: watch::Sender::new(true),
            welcome: AtomicBool::new(true),
            broken: Mutex::default(),
        })
    }

    fn add(&self, event: Event) {
        let senders = self.senders.lock().unwrap();
        let (Event::Message(id, _) | Event::Routes(id, _) | Event::Data(id, ..)) = &event else { return };
        if !senders.contains_key(id) {
            self.broken.lock().unwrap().push(format!("{event:?}, and the link is not up"));
        }
        self.events.lock().unwrap().push(event);
    }
}

impl Site for Seen {
    async fn up(&self, peer: PeerId, (shards, _): (u8, u32), to: Sender) -> bool {
        assert_eq!(shards, 2);
        if !self.welcome.load(Ordering::SeqCst) {
            return false;
        }
        let mut senders = self.senders.lock().unwrap();
        if let Some(other) = senders.keys().find(|id| id.node == peer.node) {
            self.broken.lock().unwrap().push(format!("{peer:?} up, and {other:?} is"));
        }
        senders.insert(peer, to);
        self.events.lock().unwrap().push(Event::Up(peer));
        true
    }

    async fn down(&self, peer: PeerId) {
        self.events.lock().unwrap().push(Event::Down(peer));
        let mut may_end = self.may_end.subscribe();
        may_end.wait_for(|may| *may).await.unwrap();
        if self.senders.lock().unwrap().remove(&peer).is_none() {
            self.broken.lock().unwrap().push(format!("{peer:?} down, and it was not up"));
        }
    }

    fn message(&self, from: PeerId, message: Message) {
        self.add(Event::Message(from, message));
    }

    fn routes(&self, from: PeerId, parcels: Parcels) {
        self.add(Event::Routes(from, parcels));
    }

    async fn data(&self, from: PeerId, parcels: Parcels) {
        let mut room = self.room.subscribe();
        room.wait_for(|room| *room).await.unwrap();
        let first = parcels.bytes.get(..8).map_or(0, |first| u64::from_le_bytes(first.try_into().unwrap()));
        self.add(Event::Data(from, parcels.bytes.len(), first));
    }
}

/// A node. Its links end when it is dropped, without being waited for.
pub struct Node {
    pub id: PeerId,
    pub seen: Arc<Seen>,
    links: Option<Links<Seen>>,
}

impl Node {
    pub fn start(config: Config) -> Self {
        Self::start_at(config, TcpListener::bind("127.0.0.1:0").unwrap())
    }

    pub fn start_at(config: Config, listener: TcpListener) -> Self {
        let (id, seen) = (config.me, Seen::new());
        let links = Links::start(config, listener, Arc::clone(&seen)).unwrap();
        Self { id, seen, links: Some(links) }
    }

    pub fn links(&self) -> &Links<Seen> {
        self.links.as_ref().unwrap()
    }

    pub fn rejoin(&mut self, id: PeerId) {
        self.id = id;
        self.links().rejoin(id);
    }

    /// Stops its links, and waits for that.
    pub async fn stop(&mut self) {
        let stopping = self.links.take().unwrap().stop();
        tokio::time::timeout(LIMIT, stopping).await.expect("the links stop");
    }

    pub fn connect(&self, to: &Node) {
        self.connect_by(to.id, to.links().address());
    }

    pub fn connect_by(&self, to: PeerId, address: SocketAddr) {
        self.links().connect(to, &[address.to_string()]);
    }

    pub fn events(&self) -> Vec<Event> {
        self.seen.events.lock().unwrap().clone()
    }

    pub fn count(&self, is: impl Fn(&Event) -> bool) -> usize {
        self.seen.events.lock().unwrap().iter().filter(|event| is(event)).count()
    }

    pub fn ups(&self) -> usize {
        self.count(|event| matches!(event, Event::Up(_)))
    }

    pub fn downs(&self) -> usize {
        self.count(|event| matches!(event, Event::Down(_)))
    }

    /// The numbers of the heartbeats that came.
    pub fn heartbeats(&self) -> Vec<u64> {
        let of = |event: &Event| match event {
            Event::Message(_, Message::Heartbeat { number, .. }) => Some(*number),
            _ => None,
        };
        self.seen.events.lock().unwrap().iter().filter_map(of).collect()
    }

    /// The first numbers of the data that came.
    pub fn data(&self) -> Vec<u64> {
        let of = |event: &Event| match event {
            Event::Data(_, _, number) => Some(*number),
            _ => None,
        };
        self.seen.events.lock().unwrap().iter().filter_map(of).collect()
    }

    pub fn is_up(&self, peer: PeerId) -> bool {
        self.seen.senders.lock().unwrap().contains_key(&peer)
    }

    /// To a peer whose link is up.
    pub fn to(&self, peer: PeerId) -> Sender {
        self.seen.senders.lock().unwrap()[&peer].clone()
    }

    pub fn room(&self, room: bool) {
        self.seen.room.send_replace(room);
    }

    pub fn may_end(&self, may: bool) {
        self.seen.may_end.send_replace(may);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.may_end(true);
        let broken = self.seen.broken.lock().unwrap();
        assert!(broken.is_empty() || std::thread::panicking(), "{broken:?}");
    }
}

/// Waits for a condition.
pub fn until(what: &str, condition: impl Fn() -> bool) {
    ferrule_testkit::until(LIMIT, what, || condition().then_some(()));
}

/// Waits until both have a link to each other.
pub fn until_up(a: &Node, b: &Node) {
    until("the link is up on both sides", || a.is_up(b.id) && b.is_up(a.id));
}

pub fn heartbeat(number: u64) -> Message {
    Message::Heartbeat { number, view: 1 }
}

/// Data of this length with a number in front.
pub fn numbered(number: u64, length: usize) -> Parcels {
    let mut bytes = vec![0; length.max(8)];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    parcels(bytes)
}
