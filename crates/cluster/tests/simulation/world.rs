//! The world of a seed: nodes of two real shards each, their clients, links, a store that holds the view, and whatever goes wrong.
//!
//! A shard turns as a worker's does: it takes what its queue holds, then lets its clients speak, and at the end asks whether it may
//! acknowledge; between the two anything may happen. Each node has a clock of its own. Who publishes sends a number; who subscribes
//! keeps the numbers that it got.

mod claimers;
mod deaths;
mod keepers;
mod mortals;
mod retainers;

use crate::rig::{Rig, limits};
use claimers::{CLAIMERS, Claimer, claimer_name};
use deaths::Deaths;
use ferrule_broker::{Limits, Place, Speaks};
use ferrule_cluster::{
    Config, Deed, Member, Message, NodeId, Order, PeerId, Shards, Site, State, View, Word,
};
use ferrule_store::{MemoryStore, MemoryTable, Now, StoreEvent};
use keepers::{KEEPER, KEEPERS, Keeper, REST_US, keeper_name};
pub(crate) use mortals::Life;
use mortals::{MORTALS, Mortal, mortal_name, will_topic};
use retainers::{READER, RETAINERS, Reader, Retainer, retainer_name};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};

/// Of a world in which nodes die two at a time one more ([`deaths`]).
pub(crate) const NODES: u64 = 3;
pub(crate) const SHARDS: u16 = 2;
/// Of the protocol.
const VERSION: u32 = 4;
/// Trouble lasts so long; then everything heals.
pub(crate) const TROUBLE_US: u64 = 20_000_000;
pub(crate) const CALM_US: u64 = 30_000_000;
const MS: u64 = 1_000;
/// As always, but for what would take a minute.
const CONFIG: Config = Config {
    lease_us: 1_000_000,
    margin_us: 100_000,
    heartbeat_us: 200_000,
    join_us: 3_000_000,
    read_us: 1_000_000,
    store_us: 4_000_000,
    seen_us: 1_000_000,
};
/// Clients that connect to one node after the other, and leave no connection by themselves.
const ROAMERS: u64 = 3;
/// Filters that a subscriber has at most: the oldest is given up.
const FILTERS: usize = 12;

pub(crate) struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn chance(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }
}

/// A process: which node, and which of its lives.
type At = (NodeId, u64);
/// A link's, and as whom they are members.
type Ends = [(At, PeerId); 2];
/// When the last thing arrives at an end, on the data stream or not.
type Last = BTreeMap<(At, bool), u64>;

/// What rides a link: on one stream, or on the other.
#[derive(Debug, Clone)]
enum Frame {
    Message(Message),
    Control { from: u16, to: u16, bytes: Vec<u8> },
    Data { from: u16, to: u16, bytes: Vec<u8> },
}

/// What a shard's queue holds.
#[derive(Debug)]
enum Item {
    /// And as whom it comes; of a link, to whom, and which.
    Order(Order, PeerId, Option<(PeerId, u64)>),
    Parcels(u16, Vec<u8>),
    Store(StoreEvent),
}

/// What a client is about to do.
#[derive(Debug, Clone, Copy)]
enum Does {
    Subscribe(u64),
    Publish(u64),
    Connect,
    /// A client that is now here, now there.
    Roam(u64),
    /// One whose session lives on comes, perhaps for a new one, subscribes, acknowledges what it got, or goes without a word.
    Keep(u64, bool),
    KeepSubscribe(u64),
    KeepPuback(u64, u16),
    KeepGone(u64),
    /// One that has a will comes; goes without a word; and with one. In which of its lives.
    MortalComes(u64, u64),
    MortalGoes(u64, u64),
    MortalLeaves(u64, u64),
    /// One that retains messages comes; and does so.
    RetainerComes(u64),
    Retain(u64),
    /// One that wants to have something alone comes, claims it, gives it back, and goes.
    ClaimerComes(u64),
    Claim(u64),
    ClaimerGivesBack(u64),
    ClaimerGoes(u64),
    /// One that looks what is retained comes, subscribes, and goes.
    ReaderComes,
    ReaderSubscribes,
    ReaderGoes,
}

#[derive(Debug)]
enum Event {
    Arrive {
        link: u64,
        to: At,
        frame: Frame,
    },
    LinkUp {
        link: u64,
        at: At,
        peer: PeerId,
    },
    LinkDown {
        link: u64,
        at: At,
        peer: PeerId,
    },
    Retain,
    Mortal,
    Claim,
    Tick {
        at: At,
    },
    Turn {
        at: At,
        shard: u16,
    },
    Speak {
        at: At,
        shard: u16,
    },
    EndTurn {
        at: At,
        shard: u16,
    },
    Said {
        at: At,
        word: Word,
    },
    /// A transaction reaches the store.
    Store {
        of: At,
        deed: Deed,
        /// By its clock.
        asked_us: u64,
    },
    /// A node is told the view.
    Told {
        of: At,
        view: View,
        asked_us: u64,
    },
    /// It has been written into the view anew.
    Joined {
        of: At,
        me: PeerId,
    },
    Connect {
        of: At,
        to: PeerId,
    },
    Subscribe,
    Publish,
    Roam,
    Keep,
    /// A node's writer commits what it has.
    Commit {
        at: At,
    },
    Fault,
    Resume {
        at: At,
    },
    Start {
        node: NodeId,
    },
    /// A process dies.
    Die {
        of: At,
    },
    Reset {
        a: NodeId,
        b: NodeId,
    },
    Heal {
        a: NodeId,
        b: NodeId,
    },
    StoreBack {
        node: NodeId,
    },
}

/// A shard's thread.
#[derive(Default)]
struct Worker {
    queue: VecDeque<Item>,
    does: VecDeque<Does>,
    /// What it is to say as soon as it is so.
    due: Vec<(Shards, Word)>,
    /// A turn has begun and not ended: since when by its clock all that was routed is to be asked for.
    turning: bool,
    routed_us: u64,
    /// As whom it knew itself when the turn began, and does now.
    me: [Option<PeerId>; 2],
    may: bool,
    /// It has been told that its node is a live member.
    live: bool,
    /// The last view in which it has settled, and with how many links.
    settled: (u64, u64),
    /// Those that it has been told of.
    links: u64,
    /// A turn is due then.
    due_us: u64,
    /// What it has for others goes on the links that it has been told of.
    lanes: BTreeMap<PeerId, u64>,
    packet_id: u16,
    /// By packet id.
    publishing: BTreeMap<u16, u64>,
    subscribing: BTreeMap<u16, u64>,
    filters: VecDeque<u64>,
    /// Its publisher has sent a CONNECT then that is not answered.
    connecting_us: Option<u64>,
}

struct Process {
    life: u64,
    site: Site,
    rig: Rig,
    workers: Vec<Worker>,
    /// Names of each shard's subscriber and publisher.
    names: Vec<[String; 2]>,
    /// Its clock: an offset, and parts per million that it is faster.
    offset_us: u64,
    ppm: i64,
    paused: bool,
    /// What came while it was paused, in order.
    held: VecDeque<Event>,
    links: BTreeMap<PeerId, u64>,
    peers: BTreeMap<PeerId, Shards>,
    tick_at_us: u64,
    /// Numbers that each shard's subscriber got.
    got: Vec<BTreeSet<u64>>,
    /// Its writer is about to commit.
    commits: bool,
}

/// Somebody who has his SUBACK.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subscribed {
    pub(crate) filter: u64,
    pub(crate) at: (NodeId, u64),
    pub(crate) shard: u16,
    pub(crate) since_us: u64,
    pub(crate) me: Option<PeerId>,
}

/// A publish, from when its client sent it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Publish {
    pub(crate) number: u64,
    pub(crate) filter: u64,
    pub(crate) at: PeerId,
    pub(crate) began_us: u64,
}

/// What the invariants look at when a publish is acknowledged.
pub(crate) type Judge = fn(&World, &Publish);

pub(crate) struct World {
    rng: Rng,
    pub(crate) now_us: u64,
    order: u64,
    events: BTreeMap<u64, Event>,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    view: View,
    /// Since when a member is live, by the store.
    live_since_us: BTreeMap<PeerId, u64>,
    /// When the store has seen a member last.
    seen_us: BTreeMap<PeerId, u64>,
    /// Nodes that there are.
    nodes: u64,
    /// How many copies wills have.
    will_copies: u8,
    /// Nothing else is the matter.
    pub(crate) deaths: Option<Deaths>,
    /// Not to come back.
    lost: Option<NodeId>,
    lives: u64,
    running: BTreeMap<NodeId, Process>,
    /// Those that are up.
    links: BTreeMap<u64, (Ends, Last)>,
    next_link: u64,
    /// Pairs of nodes between which nothing passes: what was sent meanwhile arrives when it heals.
    cut: BTreeMap<(NodeId, NodeId), u64>,
    no_store: BTreeSet<NodeId>,
    /// What the nodes share beside the view.
    table: MemoryTable,
    pub(crate) keepers: Vec<Keeper>,
    pub(crate) retainers: Vec<Retainer>,
    pub(crate) reader: Reader,
    mortals: Vec<Mortal>,
    claimers: Vec<Claimer>,
    /// Since when two have what one may have.
    doubled_us: Option<u64>,
    pub(crate) granted: u64,
    /// When each roaming client moved last.
    roamed_us: [u64; ROAMERS as usize],
    pub(crate) refused: u64,
    /// From who had it.
    pub(crate) taken: u64,
    pub(crate) lived: BTreeMap<u64, Life>,
    pub(crate) subscribed: Vec<Subscribed>,
    next_filter: u64,
    publishes: BTreeMap<u64, Publish>,
    next_publish: u64,
    pub(crate) acknowledged: u64,
    /// Their publishers were sent away.
    pub(crate) withheld: u64,
    last_acknowledged_us: BTreeMap<NodeId, u64>,
    aloud: bool,
    troubled: bool,
    judge: Judge,
}

fn pair(a: NodeId, b: NodeId) -> (NodeId, NodeId) {
    (a.min(b), a.max(b))
}

fn clock(now_us: u64, offset_us: u64, ppm: i64) -> u64 {
    let rated = i128::from(now_us) * i128::from(1_000_000 + ppm) / 1_000_000;
    offset_us + rated as u64
}

/// All know the time of day.
fn wall_ms(now_us: u64) -> i64 {
    1_700_000_000_000 + (now_us / 1_000) as i64
}

impl Process {
    fn clock(&self, now_us: u64) -> u64 {
        clock(now_us, self.offset_us, self.ppm)
    }

    /// When the world's clock will show what ours shows then.
    fn world(&self, clock_us: u64) -> u64 {
        let rated = i128::from(clock_us.saturating_sub(self.offset_us)) * 1_000_000
            / i128::from(1_000_000 + self.ppm);
        rated as u64 + 1
    }

    fn at(&self) -> At {
        (self.site.me().node, self.life)
    }

    fn all_shards(&self) -> impl Iterator<Item = u16> + use<> {
        0..SHARDS
    }
}

/// A name of a client that a shard owns.
fn name_at(place: Place, shard: u16, kind: &str) -> String {
    (0..).map(|n| format!("{kind}{n}")).find(|name| place.owner(name) == shard).unwrap()
}

impl World {
    pub(crate) fn new(seed: u64, aloud: bool, judge: Judge) -> Self {
        let deaths = (seed % 4 == 3).then(Deaths::default);
        let mortals = if deaths.is_some() { 4 * MORTALS } else { MORTALS };
        let mut world = Self {
            rng: Rng(seed),
            now_us: 1,
            order: 0,
            events: BTreeMap::new(),
            queue: BinaryHeap::new(),
            view: View::default(),
            live_since_us: BTreeMap::new(),
            seen_us: BTreeMap::new(),
            nodes: NODES + u64::from(deaths.is_some()),
            // One or two, in a share of all.
            will_copies: if deaths.is_some() || seed % 4 == 1 { 2 } else { 1 },
            deaths,
            lost: None,
            lives: 0,
            running: BTreeMap::new(),
            links: BTreeMap::new(),
            next_link: 0,
            cut: BTreeMap::new(),
            no_store: BTreeSet::new(),
            table: MemoryTable::default(),
            keepers: (0..KEEPERS).map(|_| Keeper::default()).collect(),
            retainers: (0..RETAINERS).map(|_| Retainer::default()).collect(),
            reader: Reader::default(),
            mortals: (0..mortals).map(|_| Mortal::default()).collect(),
            claimers: (0..CLAIMERS).map(|_| Claimer::default()).collect(),
            doubled_us: None,
            granted: 0,
            roamed_us: [0; ROAMERS as usize],
            refused: 0,
            taken: 0,
            lived: BTreeMap::new(),
            subscribed: Vec::new(),
            next_filter: 0,
            publishes: BTreeMap::new(),
            next_publish: 0,
            acknowledged: 0,
            withheld: 0,
            last_acknowledged_us: BTreeMap::new(),
            aloud,
            troubled: true,
            judge,
        };
        for node in 0..world.nodes {
            let after_us = world.rng.below(3_000) * MS;
            world.after(after_us, Event::Start { node: NodeId(node) });
        }
        world.after(1, Event::Subscribe);
        world.after(1, Event::Publish);
        world.after(1, Event::Roam);
        world.after(1, Event::Keep);
        world.after(1, Event::Retain);
        world.after(1, Event::Mortal);
        world.after(1, Event::Claim);
        world.after(3_000 * MS, Event::Fault);
        world
    }

    fn after(&mut self, us: u64, event: Event) {
        self.order += 1;
        self.events.insert(self.order, event);
        self.queue.push(Reverse((self.now_us + us, self.order)));
    }

    fn say(&self, what: impl FnOnce() -> String) {
        if self.aloud {
            eprintln!("{:>10.3} {}", self.now_us as f64 / 1e6, what());
        }
    }

    pub(crate) fn run(&mut self) {
        while let Some(Reverse((at_us, order))) = self.queue.pop() {
            let Some(event) = self.events.remove(&order) else { continue };
            self.now_us = at_us;
            if at_us > TROUBLE_US && self.troubled {
                self.heal();
            }
            if at_us > TROUBLE_US + CALM_US {
                return;
            }
            self.event(event);
        }
    }

    fn heal(&mut self) {
        self.say(|| "everything heals".into());
        self.troubled = false;
        self.no_store.clear();
        for (a, b) in self.cut.keys().copied().collect::<Vec<_>>() {
            self.after(1, Event::Heal { a, b });
        }
        for at in self.running.values().map(Process::at).collect::<Vec<_>>() {
            self.after(1, Event::Resume { at });
        }
        for node in (0..self.nodes).map(NodeId) {
            // Of those that die at once each comes back in its own time.
            if !self.running.contains_key(&node) && self.deaths.is_none() {
                if self.lost.is_none() && self.rng.chance(2) {
                    self.say(|| format!("{node:?} is lost for good"));
                    self.lost = Some(node);
                }
                self.after(1, Event::Start { node });
            }
        }
    }

    fn process(&mut self, at: At) -> Option<&mut Process> {
        self.running.get_mut(&at.0).filter(|process| process.life == at.1)
    }

    /// What is for a process that is stopped waits.
    fn event(&mut self, event: Event) {
        let at = match &event {
            Event::Arrive { to: at, .. }
            | Event::LinkUp { at, .. }
            | Event::LinkDown { at, .. }
            | Event::Tick { at }
            | Event::Turn { at, .. }
            | Event::Speak { at, .. }
            | Event::EndTurn { at, .. }
            | Event::Said { at, .. }
            | Event::Told { of: at, .. }
            | Event::Joined { of: at, .. } => Some(*at),
            _ => None,
        };
        if let Some(at) = at {
            let Some(process) = self.process(at) else { return };
            if process.paused {
                process.held.push_back(event);
                return;
            }
        }
        self.happen(event);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive { link, to, frame } => self.arrive(link, to, frame),
            Event::LinkUp { link, at, peer } => self.link_up(link, at, peer),
            Event::LinkDown { link, at, peer } => {
                if self.process(at).is_some_and(|p| p.links.get(&peer) == Some(&link)) {
                    self.link_down(at, peer);
                    self.act(at);
                }
            }
            Event::Tick { at } => {
                let now_us = self.now_us;
                let Some(process) = self.process(at).filter(|p| p.tick_at_us <= now_us) else { return };
                process.tick_at_us = u64::MAX;
                self.act(at);
            }
            Event::Turn { at, shard } => self.begin_turn(at, shard),
            Event::Speak { at, shard } => self.speak_all(at, shard),
            Event::EndTurn { at, shard } => self.end_turn(at, shard),
            Event::Said { at, word } => {
                let now_us = self.now_us;
                let Some(process) = self.process(at) else { return };
                let clock_us = process.clock(now_us);
                process.site.said(word, clock_us);
                self.act(at);
            }
            Event::Told { of, view, asked_us } => {
                let now_us = self.now_us;
                let Some(process) = self.process(of) else { return };
                let clock_us = process.clock(now_us);
                process.site.view(view, asked_us, clock_us);
                self.act(of);
            }
            Event::Joined { of, me } => {
                let now_us = self.now_us;
                let Some(process) = self.process(of) else { return };
                let clock_us = process.clock(now_us);
                process.site.rejoin(me, clock_us);
                self.act(of);
            }
            Event::Store { of, deed, asked_us } => self.store(of, deed, asked_us),
            Event::Connect { of, to } => self.connect(of, to),
            Event::Subscribe => {
                let us = 20 * MS + self.rng.below(300 * MS);
                self.after(us, Event::Subscribe);
                self.next_filter += 1;
                self.client_does(Does::Subscribe(self.next_filter));
            }
            Event::Publish => {
                let us = MS + self.rng.below(30 * MS);
                self.after(us, Event::Publish);
                if self.rng.chance(3) {
                    let keeper = self.rng.below(KEEPERS);
                    self.client_does(Does::Publish(KEEPER + keeper));
                } else if self.next_filter > 0 {
                    // A late one is the harder: its route has just been sent.
                    let back = self.rng.below(10);
                    let back = self.rng.below(back + 1);
                    let filter = self.next_filter.saturating_sub(back).max(1);
                    self.client_does(Does::Publish(filter));
                }
            }
            Event::Roam => {
                let us = 100 * MS + self.rng.below(400 * MS);
                self.after(us, Event::Roam);
                let roamer = self.rng.below(ROAMERS);
                self.roamed_us[roamer as usize] = self.now_us;
                self.client_does(Does::Roam(roamer));
            }
            Event::Keep => {
                let us = 20 * MS + self.rng.below(500 * MS);
                self.after(us, Event::Keep);
                let keeper = self.rng.below(KEEPERS);
                if self.now_us < REST_US && self.rng.chance(4) {
                    self.keeper_goes(keeper);
                } else {
                    self.keeper_comes(keeper);
                }
            }
            Event::Mortal => {
                let us = self.mortal_again_us();
                self.after(us, Event::Mortal);
                self.mortal();
            }
            Event::Claim => {
                let us = self.claim_again_us();
                self.after(us, Event::Claim);
                self.claim();
            }
            Event::Retain => {
                let us = self.retain_again_us();
                self.after(us, Event::Retain);
                self.retain();
            }
            Event::Commit { at } => self.commit(at),
            Event::Fault => {
                if self.troubled {
                    let often = if self.deaths.is_some() { 400 } else { 2_000 };
                    let us = 100 * MS + self.rng.below(often * MS);
                    self.after(us, Event::Fault);
                    self.fault();
                }
            }
            Event::Resume { at } => {
                let Some(process) = self.process(at).filter(|process| process.paused) else { return };
                process.paused = false;
                let held = std::mem::take(&mut process.held);
                self.say(|| format!("{at:?} goes on"));
                // Its threads go on in no order.
                for event in held {
                    let us = match event {
                        Event::Turn { .. } | Event::Speak { .. } | Event::EndTurn { .. } => {
                            self.rng.below(MS)
                        }
                        _ => 0,
                    };
                    self.after(us, event);
                }
                self.after(0, Event::Tick { at });
            }
            Event::Start { node } => self.start(node),
            Event::Die { of } => self.dies(of),
            Event::Reset { a, b } => self.reset(a, b),
            Event::Heal { a, b } => {
                self.cut.remove(&pair(a, b));
            }
            Event::StoreBack { node } => {
                self.no_store.remove(&node);
            }
        }
    }

    /// A node is written into the view as joining.
    fn join(&mut self, node: NodeId) -> PeerId {
        self.view.number += 1;
        let id = PeerId { node, incarnation: self.view.number };
        self.view.members.retain(|member| member.id.node != node);
        self.view.members.push(Member { id, state: State::Joining, owns: false });
        self.seen_us.insert(id, self.now_us);
        self.say(|| format!("{id:?} joins"));
        self.share_view();
        id
    }

    /// The view is in the store that also has the sessions.
    fn share_view(&self) {
        let members = self.view.members.iter();
        let members = members.map(|member| (member.id.node.0 as u32 + 1, member.state == State::Live));
        self.table.set_view(self.view.number, members.collect());
    }

    /// A client of a node does something in some shard's next turn.
    fn does_at(&mut self, at: At, does: Does) {
        let shard = self.rng.below(SHARDS.into()) as u16;
        let Some(process) = self.process(at) else { return };
        process.workers[usize::from(shard)].does.push_back(does);
        self.wake(at, shard, 0);
    }

    /// A node's writer commits what it has, whether the node is stopped or not.
    fn commit(&mut self, at: At) {
        let is_away = self.no_store.contains(&at.0);
        let Some(process) = self.process(at) else { return };
        if is_away {
            self.after(200 * MS, Event::Commit { at });
            return;
        }
        process.commits = false;
        let store = std::rc::Rc::clone(&process.rig.store.0);
        store.borrow_mut().commit();
        for event in store.borrow_mut().take_events() {
            for shard in 0..SHARDS {
                self.put(at, shard, Item::Store(event.clone()));
            }
        }
    }

    fn start(&mut self, node: NodeId) {
        if self.running.contains_key(&node) || self.lost == Some(node) {
            return;
        }
        if self.no_store.contains(&node) {
            self.after(500 * MS, Event::Start { node });
            return;
        }
        let id = self.join(node);
        self.lives += 1;
        let store = MemoryStore::of(&self.table, node.0 as u32 + 1);
        let offset_us = self.rng.below(1_000_000_000_000);
        let ppm = self.rng.below(40_000) as i64 - 20_000;
        let now = Now { mono_us: clock(self.now_us, offset_us, ppm), wall_ms: wall_ms(self.now_us) };
        let limits = Limits { will_copies: self.will_copies, ..limits().into() };
        let mut rig = Rig::over(limits, SHARDS, self.lives, store, now);
        let place = rig.place();
        let names: Vec<_> = (0..SHARDS)
            .map(|s| ["s", "p"].map(|kind| name_at(place, s, &format!("{kind}{}-", node.0))))
            .collect();
        for name in names.iter().flatten() {
            rig.send(name, &format!("connect id={name} v=5"));
            assert_eq!(rig.peer(name).packets.pop_front().as_deref(), Some("connack sp=0"));
        }
        rig.rule("w/+");
        rig.mails_all = true;
        // What there is goes in some pieces, or in many.
        let piece = self.rng.below(200) as usize;
        rig.shards.iter_mut().for_each(|shard| shard.set_piece(piece));
        rig.mail.clear();
        let mut process = Process {
            life: self.lives,
            site: Site::new(CONFIG, id, SHARDS, 0),
            rig,
            workers: (0..SHARDS).map(|_| Worker { due_us: u64::MAX, ..Worker::default() }).collect(),
            names,
            offset_us,
            ppm,
            paused: false,
            held: VecDeque::new(),
            links: BTreeMap::new(),
            peers: BTreeMap::new(),
            tick_at_us: u64::MAX,
            got: vec![BTreeSet::new(); usize::from(SHARDS)],
            commits: false,
        };
        process.site = Site::new(CONFIG, id, SHARDS, process.clock(self.now_us));
        for worker in &mut process.workers {
            worker.queue.push_back(Item::Order(Order::Live(false), id, None));
        }
        let at = process.at();
        self.running.insert(node, process);
        for shard in 0..SHARDS {
            self.wake(at, shard, 0);
        }
        self.act(at);
    }

    fn link_up(&mut self, link: u64, at: At, peer: PeerId) {
        if !self.links.contains_key(&link) {
            return;
        }
        self.link_down(at, peer);
        let now_us = self.now_us;
        let Some(process) = self.process(at) else { return };
        process.links.insert(peer, link);
        let clock_us = process.clock(now_us);
        if !process.site.link_up(peer, (SHARDS, VERSION), clock_us) {
            process.links.remove(&peer);
            self.break_link(link);
        }
        self.act(at);
    }

    fn link_down(&mut self, at: At, peer: PeerId) {
        let Some(process) = self.process(at) else { return };
        if process.links.remove(&peer).is_some() {
            process.site.link_down(peer);
        }
    }

    /// Runs a node's timers and does what it asks for.
    fn act(&mut self, at: At) {
        let now_us = self.now_us;
        let Some(process) = self.process(at).filter(|process| !process.paused) else { return };
        let clock_us = process.clock(now_us);
        let next_us = process.site.tick(clock_us);
        if next_us < u64::MAX {
            let due_us = process.world(next_us).max(now_us + MS);
            if due_us < process.tick_at_us || process.tick_at_us <= now_us {
                process.tick_at_us = due_us;
                // A loop is late by a little, and now and then by more.
                let late_us = if self.troubled && self.rng.chance(50) {
                    self.rng.below(300 * MS)
                } else {
                    self.rng.below(2 * MS)
                };
                self.after(due_us - now_us + late_us, Event::Tick { at });
            }
        }
        let Some(process) = self.process(at) else { return };
        for deed in process.site.deeds() {
            self.deed(at, deed, clock_us);
        }
    }

    fn deed(&mut self, at: At, deed: Deed, clock_us: u64) {
        match deed {
            Deed::Tell(order, id) => {
                self.say(|| format!("{at:?}: {order:?} {id:?}"));
                let Some(process) = self.process(at) else { return };
                if let (Order::Linked(shards, ..), Some(id)) = (order, id) {
                    process.peers.insert(id, shards);
                }
                let me = process.site.me();
                let link = id.and_then(|id| Some((id, *process.links.get(&id)?)));
                for shard in process.all_shards() {
                    self.put(at, shard, Item::Order(order, me, link));
                }
            }
            Deed::Send(to, message) => self.send(at, to, Frame::Message(message)),
            Deed::Connect(to) => {
                let us = 5 * MS + self.rng.below(100 * MS);
                self.after(us, Event::Connect { of: at, to });
            }
            Deed::Disconnect(peer) => {
                if let Some(link) = self.process(at).and_then(|process| process.links.remove(&peer)) {
                    self.break_link(link);
                }
            }
            Deed::Read | Deed::GoLive(_) | Deed::Remove(_) | Deed::Rejoin => {
                let us = self.rng.below(20 * MS);
                self.after(us, Event::Store { of: at, deed, asked_us: clock_us });
            }
        }
    }

    /// Into a shard's queue: it turns soon.
    fn put(&mut self, at: At, shard: u16, item: Item) {
        let Some(process) = self.process(at) else { return };
        process.workers[usize::from(shard)].queue.push_back(item);
        // A shard is busy now and then.
        let most_us = if self.troubled && self.rng.chance(20) { 60 * MS } else { MS };
        let us = self.rng.below(most_us);
        self.wake(at, shard, us);
    }

    fn wake(&mut self, at: At, shard: u16, us: u64) {
        let now_us = self.now_us;
        let Some(process) = self.process(at) else { return };
        let worker = &mut process.workers[usize::from(shard)];
        if !worker.turning && now_us + us < worker.due_us {
            worker.due_us = now_us + us;
            self.after(us, Event::Turn { at, shard });
        }
    }

    fn begin_turn(&mut self, at: At, shard: u16) {
        let now_us = self.now_us;
        let Some(process) = self.process(at) else { return };
        let clock_us = process.clock(now_us);
        let index = usize::from(shard);
        let worker = &mut process.workers[index];
        if worker.turning || worker.due_us > now_us {
            return;
        }
        (worker.turning, worker.due_us) = (true, u64::MAX);
        process.rig.now = Now { mono_us: clock_us, wall_ms: wall_ms(now_us) };
        let now = process.rig.now;
        worker.me[0] = worker.me[1];
        if !process.site.standing().allows(clock_us, clock_us) {
            process.rig.shards[index].begin_turn(false, clock_us);
        }
        for item in std::mem::take(&mut process.workers[index].queue) {
            if let Item::Order(order, me, link) = &item {
                let worker = &mut process.workers[index];
                worker.me[1] = Some(*me);
                match (order, link) {
                    (Order::Linked(..), Some((peer, link))) => drop(worker.lanes.insert(*peer, *link)),
                    (Order::Unlinked(peers), _) => {
                        let gone = process.peers.iter().find(|(_, its)| *its == peers).map(|(id, _)| *id);
                        gone.and_then(|gone| worker.lanes.remove(&gone));
                    }
                    _ => {}
                }
            }
            let rig = &mut process.rig.shards[index];
            match item {
                Item::Parcels(from, bytes) => assert_eq!(rig.parcels(from, &bytes, now), Ok(bytes.len())),
                Item::Order(Order::Linked(peers, version, token), ..) => {
                    process.workers[index].due.push((peers, Word::Told(token)));
                    process.workers[index].links += 1;
                    while process.rig.abroad < peers.first - SHARDS + peers.count {
                        process.rig.abroad += 1;
                    }
                    // Indices are given in order.
                    let of = |at: u16| at < peers.first + peers.count;
                    while rig.peers() < usize::from(peers.first + peers.count) {
                        assert!(rig.add_peer().is_some_and(of));
                    }
                    for peer in peers.first..peers.first + peers.count {
                        rig.peer_linked(peer, Speaks { version, first: peer == peers.first }, now);
                    }
                }
                Item::Order(Order::Unlinked(peers), ..) => {
                    let due = &mut process.workers[index].due;
                    due.retain(|(of, word)| *of != peers || !matches!(word, Word::Told(_)));
                    (peers.first..peers.first + peers.count).for_each(|peer| rig.peer_unlinked(peer, now));
                }
                Item::Order(Order::Wait(peers, token), ..) => {
                    (peers.first..peers.first + peers.count).for_each(|peer| rig.peer_waits(peer, true, now));
                    process.workers[index].due.push((peers, Word::Waits(token)));
                }
                Item::Order(Order::WaitNot(peers), ..) => {
                    let due = &mut process.workers[index].due;
                    due.retain(|(of, word)| *of != peers || !matches!(word, Word::Waits(_)));
                    (peers.first..peers.first + peers.count)
                        .for_each(|peer| rig.peer_waits(peer, false, now));
                }
                Item::Order(Order::Forget(peers), ..) => {
                    (peers.first..peers.first + peers.count).for_each(|peer| rig.peer_gone(peer, now));
                }
                Item::Order(Order::Serves(peers), ..) => {
                    rig.peers_serve(peers.first..peers.first + peers.count, now);
                }
                Item::Order(Order::View(view, complete), ..) => rig.set_view(view, complete, now),
                Item::Order(Order::Live(live), ..) => {
                    process.workers[index].live = live;
                    rig.set_live(live, now);
                }
                Item::Store(event) => rig.store_event(event, now),
            }
        }
        if !process.rig.shards[index].has_unjudged() {
            process.workers[index].routed_us = clock_us;
        }
        let may = process.site.standing().allows(clock_us, clock_us);
        process.workers[index].may = may;
        process.rig.may = Some((may, may));
        process.rig.shards[index].begin_turn(may, clock_us);
        let us = self.rng.below(MS);
        self.go_on(at, us, Event::Speak { at, shard });
    }

    /// What a turn does next comes soon, unless the process is stopped just now.
    fn go_on(&mut self, at: At, us: u64, event: Event) {
        let late_us = if self.troubled && self.rng.chance(50) { self.rng.below(60 * MS) } else { 0 };
        self.after(us + late_us, event);
        if self.troubled && self.rng.chance(2_000) {
            self.pause(at);
        }
    }

    fn speak_all(&mut self, at: At, shard: u16) {
        let Some(process) = self.process(at) else { return };
        for does in std::mem::take(&mut process.workers[usize::from(shard)].does) {
            self.speak(at, shard, does);
        }
        let us = self.rng.below(3 * MS);
        self.go_on(at, us, Event::EndTurn { at, shard });
    }

    /// A client of a shard says something.
    fn speak(&mut self, at: At, shard: u16, does: Does) {
        let now_us = self.now_us;
        let number = self.next_publish + 1;
        let Some(process) = self.process(at) else { return };
        let me = process.site.me();
        let index = usize::from(shard);
        let [subscriber, publisher] = process.names[index].clone();
        let worker = &mut process.workers[index];
        worker.packet_id = worker.packet_id % 60_000 + 1;
        let packet_id = worker.packet_id;
        let (name, line) = match does {
            Does::Roam(roamer) => {
                let name = format!("roamer-{roamer}");
                if process.rig.peer(&name).conn.is_some() {
                    return;
                }
                process.rig.peer(&name).version = None;
                (name.clone(), format!("connect id={name} v=5"))
            }
            Does::Keep(keeper, anew) => {
                let name = keeper_name(keeper);
                // It knows nothing any more of a connection that it had there.
                process.rig.cut_peer(&name);
                process.rig.peer(&name).version = None;
                (name.clone(), format!("connect id={name} v=5 clean={} expiry=100000", u8::from(anew)))
            }
            Does::KeepSubscribe(keeper) => {
                let name = keeper_name(keeper);
                if process.rig.peer(&name).conn.is_none() {
                    return;
                }
                (name, format!("subscribe id={packet_id} f=k/{keeper}:1"))
            }
            Does::KeepPuback(keeper, packet_id) => {
                let name = keeper_name(keeper);
                if process.rig.peer(&name).conn.is_none() {
                    return;
                }
                (name, format!("puback {packet_id}"))
            }
            Does::KeepGone(keeper) => {
                process.rig.cut_peer(&keeper_name(keeper));
                return;
            }
            Does::MortalComes(mortal, life) => {
                let name = mortal_name(mortal);
                process.rig.cut_peer(&name);
                process.rig.peer(&name).version = None;
                (name.clone(), format!("connect id={name} v=5 will={} wq=1", will_topic(life)))
            }
            Does::MortalGoes(mortal, life) => {
                let name = mortal_name(mortal);
                if self.mortal_goes(mortal, life, false)
                    && let Some(process) = self.process(at)
                {
                    process.rig.cut_peer(&name);
                }
                return;
            }
            Does::MortalLeaves(mortal, life) => {
                let name = mortal_name(mortal);
                if process.rig.peer(&name).conn.is_none() || !self.mortal_goes(mortal, life, true) {
                    return;
                }
                (name, "disconnect".to_owned())
            }
            Does::ClaimerComes(number) => {
                let name = claimer_name(number);
                process.rig.cut_peer(&name);
                process.rig.peer(&name).version = None;
                (name.clone(), format!("connect id={name} v=5"))
            }
            Does::Claim(number) | Does::ClaimerGivesBack(number) | Does::ClaimerGoes(number) => {
                let name = claimer_name(number);
                let is_open = process.rig.peer(&name).conn.is_some();
                if !is_open || !self.is_claimer_at(at, number) {
                    return;
                }
                if let Does::ClaimerGoes(_) = does {
                    self.claimer_goes(number);
                    if let Some(process) = self.process(at) {
                        process.rig.cut_peer(&name);
                    }
                    return;
                }
                let asks = matches!(does, Does::Claim(_));
                self.claimer_does(number, asks);
                let word = if asks { "subscribe" } else { "unsubscribe" };
                let options = if asks { ":0:rh2" } else { "" };
                (name, format!("{word} id={packet_id} f=$exclusive/e{options}"))
            }
            Does::RetainerComes(_) | Does::ReaderComes => {
                let name = match does {
                    Does::RetainerComes(retainer) => retainer_name(retainer),
                    _ => READER.to_owned(),
                };
                process.rig.cut_peer(&name);
                process.rig.peer(&name).version = None;
                (name.clone(), format!("connect id={name} v=5"))
            }
            Does::Retain(retainer) => {
                let name = retainer_name(retainer);
                if process.rig.peer(&name).conn.is_none() {
                    return;
                }
                let what = self.next_retained(retainer);
                (name, format!("publish {what} q=1 r=1 id={packet_id}"))
            }
            Does::ReaderSubscribes => {
                if process.rig.peer(READER).conn.is_none() {
                    self.reader.at = None;
                    return;
                }
                self.reader_subscribes();
                (READER.to_owned(), format!("subscribe id={packet_id} f=r/+:0"))
            }
            Does::ReaderGoes => {
                process.rig.cut_peer(READER);
                self.reader.at = None;
                return;
            }
            Does::Connect => {
                worker.connecting_us = Some(now_us);
                (publisher.clone(), format!("connect id={publisher} v=5"))
            }
            Does::Subscribe(filter) => {
                worker.subscribing.insert(packet_id, filter);
                worker.filters.push_back(filter);
                if worker.filters.len() > FILTERS
                    && let Some(old) = worker.filters.pop_front()
                {
                    worker.subscribing.retain(|_, filter| *filter != old);
                    let line = format!("unsubscribe id={} f=f/{old}", packet_id + 1);
                    worker.packet_id += 1;
                    let bytes = crate::rig::parse(&line, Some(ferrule_mqtt::Version::V5)).0;
                    process.rig.bytes(&subscriber, &bytes);
                    self.subscribed.retain(|s| !(s.filter == old && s.at == at));
                }
                (subscriber, format!("subscribe id={packet_id} f=f/{filter}:0:rh2"))
            }
            Does::Publish(filter) => {
                if process.rig.peer(&publisher).conn.is_none() || worker.publishing.len() >= 4 {
                    return;
                }
                worker.publishing.insert(packet_id, number);
                self.next_publish = number;
                self.publishes.insert(number, Publish { number, filter, at: me, began_us: now_us });
                let topic = match filter.checked_sub(KEEPER) {
                    Some(keeper) => format!("k/{keeper}"),
                    None => format!("f/{filter}"),
                };
                let line = format!("publish t={topic} q=1 id={packet_id} p={number}");
                self.say(|| format!("{at:?}: {publisher} {line}"));
                (publisher, line)
            }
        };
        let bytes = crate::rig::parse(&line, Some(ferrule_mqtt::Version::V5)).0;
        let Some(process) = self.process(at) else { return };
        process.rig.bytes(&name, &bytes);
        process.rig.peer(&name).version = Some(ferrule_mqtt::Version::V5);
    }

    fn end_turn(&mut self, at: At, shard: u16) {
        let now_us = self.now_us;
        let Some(process) = self.process(at) else { return };
        let index = usize::from(shard);
        let clock_us = process.clock(now_us);
        let worker = &mut process.workers[index];
        worker.turning = false;
        let may = process.site.standing().allows(worker.routed_us, clock_us);
        process.rig.may = Some((worker.may, may));
        process.rig.now = Now { mono_us: clock_us, wall_ms: wall_ms(now_us) };
        process.rig.turn_one(shard);
        let commits = !process.commits && !process.rig.store.0.borrow().is_idle();
        process.commits |= commits;
        if commits {
            let us = MS / 2 + self.rng.below(10 * MS);
            self.after(us, Event::Commit { at });
        }
        let Some(process) = self.process(at) else { return };
        let worker = &mut process.workers[index];
        // What was routed behind the question is asked for with its time.
        worker.routed_us = clock_us;
        self.deliver(at, shard);
        self.heard(at, shard);
        let Some(process) = self.process(at) else { return };
        let rig = &process.rig.shards[index];
        let is_so = |(shards, word): &mut (Shards, Word)| {
            (shards.first..shards.first + shards.count).all(|peer| match word {
                Word::Told(_) => rig.peer_told(peer),
                _ => rig.peer_knows(peer),
            })
        };
        let said: Vec<_> = process.workers[index].due.extract_if(.., is_so).collect();
        for (_, word) in said {
            let us = self.rng.below(2 * MS);
            self.after(us, Event::Said { at, word });
        }
        let Some(process) = self.process(at) else { return };
        let settled = process.rig.shards[index].settled_in();
        let worker = &mut process.workers[index];
        if let Some(view) = settled.filter(|view| (*view, worker.links) != worker.settled) {
            worker.settled = (view, worker.links);
            let word = Word::Settled(view, worker.links);
            let us = self.rng.below(2 * MS);
            self.after(us, Event::Said { at, word });
        }
        let Some(process) = self.process(at) else { return };
        let wake = process.rig.shards[index].next_wake_us().map(|us| process.world(us));
        let soon = !process.workers[index].queue.is_empty() || !process.workers[index].does.is_empty();
        if let Some(us) = wake.or(soon.then_some(0)) {
            let us = if soon { 0 } else { us.saturating_sub(now_us) };
            let late_us = MS / 4 + self.rng.below(MS);
            self.wake(at, shard, us + late_us);
        }
    }

    /// Gives a shard's parcels to whoever carries them.
    fn deliver(&mut self, at: At, shard: u16) {
        let Some(process) = self.process(at) else { return };
        let mail = std::mem::take(&mut process.rig.mail);
        for (from, to, bytes) in mail {
            assert_eq!(from, shard);
            if to < SHARDS {
                self.put(at, to, Item::Parcels(from, bytes));
                continue;
            }
            let Some(process) = self.process(at) else { return };
            let its = process.peers.iter().find(|(_, its)| (its.first..its.first + its.count).contains(&to));
            let Some((&peer, &its)) = its else { continue };
            let to = to - its.first;
            // As the rig has it, control comes first.
            let frame = match crate::is_control(&bytes) {
                true => Frame::Control { from, to, bytes },
                false => Frame::Data { from, to, bytes },
            };
            let Some(process) = self.process(at) else { return };
            if let Some(&link) = process.workers[usize::from(shard)].lanes.get(&peer) {
                self.send_on(link, at, peer, frame);
            }
        }
    }

    /// What clients of a shard got.
    fn heard(&mut self, at: At, shard: u16) {
        let (now_us, mortals) = (self.now_us, self.mortals.len() as u64);
        let Some(process) = self.process(at) else { return };
        if !process.rig.spoke.remove(&shard) {
            // As in most turns: nobody has to be asked by name.
            self.count_wills(at);
            return;
        }
        let index = usize::from(shard);
        let [subscriber, publisher] = process.names[index].clone();
        let worker = &mut process.workers[index];
        let me = worker.me[0];
        let mut subscribed = Vec::new();
        for packet in std::mem::take(&mut process.rig.peer(&subscriber).packets) {
            let words: Vec<&str> = packet.split_whitespace().collect();
            match words[..] {
                ["suback", id, "00"] => {
                    subscribed.extend(worker.subscribing.remove(&id.parse().unwrap()));
                }
                ["unsuback", ..] => {}
                ["publish", _, "q0", number] => {
                    process.got[index].insert(number.parse().unwrap());
                }
                _ => panic!("{:.3}: {at:?}: a subscriber got {packet}", now_us as f64 / 1e6),
            }
        }
        let mut acknowledged = Vec::new();
        let peer = process.rig.peer(&publisher);
        let closed = std::mem::take(&mut peer.closed);
        for packet in std::mem::take(&mut peer.packets) {
            let words: Vec<&str> = packet.split_whitespace().collect();
            match words[..] {
                ["puback", id] | ["puback", id, "10"] => {
                    acknowledged.extend(worker.publishing.remove(&id.parse().unwrap()));
                }
                ["connack", ..] => worker.connecting_us = None,
                ["disconnect", "89"] => {}
                _ => panic!("{:.3}: {at:?}: a publisher got {packet}", now_us as f64 / 1e6),
            }
        }
        for roamer in 0..ROAMERS {
            let packets = std::mem::take(&mut process.rig.peer(&format!("roamer-{roamer}")).packets);
            for packet in packets {
                assert!(["connack sp=0", "disconnect 8e"].contains(&&*packet), "a roamer got {packet}");
            }
        }
        let kept: Vec<Vec<String>> = (0..KEEPERS)
            .map(|keeper| {
                let peer = process.rig.peer(&keeper_name(keeper));
                // Of one that is another shard's nothing is written here.
                std::mem::take(&mut peer.packets).into()
            })
            .collect();
        let mut taken = |name: &str| {
            let peer = process.rig.peer(name);
            let packets: Vec<String> = std::mem::take(&mut peer.packets).into();
            (packets, std::mem::take(&mut peer.closed))
        };
        let retained: Vec<_> = (0..RETAINERS).map(|retainer| taken(&retainer_name(retainer))).collect();
        let read = taken(READER);
        let mortal: Vec<_> = (0..mortals).map(|mortal| taken(&mortal_name(mortal))).collect();
        let claimed: Vec<_> = (0..CLAIMERS).map(|claimer| taken(&claimer_name(claimer))).collect();
        let worker = &mut process.workers[index];
        let is_live = worker.live;
        let mut withheld = 0;
        if closed {
            withheld = worker.publishing.len() as u64;
            worker.publishing.clear();
            worker.does.push_back(Does::Connect);
        }
        for filter in subscribed {
            self.subscribed.push(Subscribed { filter, at, shard, since_us: now_us, me });
        }
        self.withheld += withheld;
        for (keeper, packets) in kept.into_iter().enumerate() {
            packets.iter().for_each(|packet| self.keeper_heard(at, keeper as u64, packet));
        }
        for (retainer, (packets, closed)) in retained.into_iter().enumerate() {
            self.retainer_heard(at, retainer as u64, &packets, closed);
        }
        self.reader_heard(at, &read.0, read.1);
        for (mortal, (packets, closed)) in mortal.into_iter().enumerate() {
            self.mortal_heard(at, mortal as u64, &packets, closed, is_live);
        }
        for (claimer, (packets, closed)) in claimed.into_iter().enumerate() {
            self.claimer_heard(at, claimer as u64, &packets, closed);
        }
        self.count_wills(at);
        for number in acknowledged {
            let Some(publish) = self.publishes.remove(&number) else { continue };
            self.acknowledged += 1;
            if let Some(keeper) = publish.filter.checked_sub(KEEPER) {
                self.say(|| format!("{at:?}: {number} for client {keeper} is acknowledged"));
                let keeper = &mut self.keepers[keeper as usize];
                if keeper.since_us.is_some_and(|since_us| since_us < publish.began_us) {
                    keeper.owed.insert(number);
                }
            }
            self.last_acknowledged_us.insert(at.0, now_us);
            (self.judge)(self, &publish);
        }
    }

    /// Since when a subscriber counts: it has its SUBACK, and its node is a member; a live one, if it has come back.
    pub(crate) fn counts_since_us(&self, subscribed: &Subscribed) -> Option<u64> {
        let process = self.running.get(&subscribed.at.0).filter(|process| process.life == subscribed.at.1)?;
        let me = process.site.me();
        self.view.members.iter().find(|member| member.id == me)?;
        if Some(me) == subscribed.me {
            Some(subscribed.since_us)
        } else {
            self.live_since_us.get(&me).copied()
        }
    }

    /// Messages that subscribers got.
    pub(crate) fn deliveries(&self) -> usize {
        self.running.values().flat_map(|process| &process.got).map(BTreeSet::len).sum()
    }

    pub(crate) fn has_got(&self, subscribed: &Subscribed, number: u64) -> bool {
        self.running
            .get(&subscribed.at.0)
            .is_some_and(|process| process.got[usize::from(subscribed.shard)].contains(&number))
    }

    fn die(&mut self, node: NodeId) {
        let Some(process) = self.running.remove(&node) else { return };
        let at = process.at();
        self.mortals_lost(at);
        let links = self.links.iter().filter(|(_, (ends, _))| ends.iter().any(|(end, _)| *end == at));
        let links: Vec<u64> = links.map(|(id, _)| *id).collect();
        links.into_iter().for_each(|link| self.break_link(link));
        self.subscribed.retain(|subscribed| subscribed.at != at);
    }

    fn break_link(&mut self, link: u64) {
        let Some(([(a, a_id), (b, b_id)], _)) = self.links.remove(&link) else { return };
        for (at, peer) in [(a, b_id), (b, a_id)] {
            // Behind a cut nobody is told: a link that is gone is found out much later, or never.
            let us =
                if self.cut.contains_key(&pair(a.0, b.0)) { 5_000 * MS } else { self.rng.below(50 * MS) };
            self.after(us, Event::LinkDown { link, at, peer });
        }
    }

    fn connect(&mut self, of: At, to: PeerId) {
        let Some(me) = self.process(of).map(|process| process.site.me()) else { return };
        let joins = |ends: &Ends| {
            let [(_, a), (_, b)] = *ends;
            (a, b) == (me, to) || (a, b) == (to, me)
        };
        if self.links.values().any(|(ends, _)| joins(ends)) {
            return;
        }
        let other = self.running.get(&to.node).filter(|other| other.site.me() == to && !other.paused);
        let other = other.map(Process::at).filter(|_| !self.cut.contains_key(&pair(of.0, to.node)));
        let Some(other) = other else {
            if self.view.members.iter().any(|member| member.id == to) {
                self.after(200 * MS, Event::Connect { of, to });
            }
            return;
        };
        self.next_link += 1;
        let link = self.next_link;
        self.links.insert(link, ([(of, me), (other, to)], BTreeMap::new()));
        for (at, peer) in [(of, to), (other, me)] {
            let us = self.rng.below(2 * MS);
            self.after(us, Event::LinkUp { link, at, peer });
        }
    }

    fn send(&mut self, from: At, to: PeerId, frame: Frame) {
        if let Some(&id) = self.process(from).and_then(|process| process.links.get(&to)) {
            self.send_on(id, from, to, frame);
        }
    }

    fn send_on(&mut self, id: u64, from: At, to: PeerId, frame: Frame) {
        let delay_us = if self.troubled && self.rng.chance(30) {
            self.rng.below(400 * MS)
        } else {
            self.rng.below(5 * MS)
        };
        let healed_us = self.cut.get(&pair(from.0, to.node)).copied().unwrap_or(0);
        let now_us = self.now_us;
        let Some((ends, last)) = self.links.get_mut(&id) else { return };
        let Some((end, _)) = ends.iter().find(|(_, end)| *end == to).copied() else { return };
        let is_data = matches!(frame, Frame::Data { .. });
        let at_us = last.entry((end, is_data)).or_insert(0);
        *at_us = (now_us + delay_us).max(*at_us + 1).max(healed_us);
        let us = *at_us - now_us;
        // What arrives at an end before it knows of its link waits for that.
        self.after(us.max(2 * MS), Event::Arrive { link: id, to: end, frame });
    }

    fn arrive(&mut self, link: u64, to: At, frame: Frame) {
        let Some((ends, _)) = self.links.get(&link) else { return };
        let Some((_, from)) = ends.iter().find(|(end, _)| *end != to).copied() else { return };
        let now_us = self.now_us;
        let Some(process) = self.process(to) else { return };
        if process.links.get(&from) != Some(&link) {
            return;
        }
        match frame {
            Frame::Message(message) => {
                let clock_us = process.clock(now_us);
                process.site.message(from, message, clock_us);
                self.act(to);
            }
            Frame::Control { from: shard, to: own, bytes } | Frame::Data { from: shard, to: own, bytes } => {
                if let Some(index) = process.site.index(from, shard) {
                    self.put(to, own, Item::Parcels(index, bytes));
                }
            }
        }
    }

    fn store(&mut self, of: At, deed: Deed, asked_us: u64) {
        if self.no_store.contains(&of.0) {
            // It is tried again by who asked, but for a read, which the next tick asks for, and for joining.
            if deed == Deed::Rejoin {
                self.after(200 * MS, Event::Store { of, deed, asked_us });
            }
            return;
        }
        let Some(me) = self.process(of).map(|process| process.site.me()) else { return };
        let state = self.view.members.iter().find(|member| member.id == me).map(|member| member.state);
        match deed {
            Deed::Rejoin => {
                let me = self.join(of.0);
                let us = self.rng.below(20 * MS);
                self.after(us, Event::Joined { of, me });
                return;
            }
            Deed::GoLive(view) if self.view.number == view && state == Some(State::Joining) => {
                self.view.number += 1;
                let members = self.view.members.iter_mut().filter(|member| member.id == me);
                members.for_each(|member| member.state = State::Live);
                self.live_since_us.insert(me, self.now_us);
                self.share_view();
                self.say(|| format!("{me:?} is live"));
            }
            Deed::Remove(other) if state == Some(State::Live) || self.is_stale(other, state) => {
                let before = self.view.members.len();
                self.view.members.retain(|member| member.id != other);
                if self.view.members.len() < before {
                    self.view.number += 1;
                    self.was_removed(other);
                    self.share_view();
                    self.say(|| format!("{me:?} removes {other:?}"));
                }
            }
            _ => {}
        }
        if state.is_some() {
            self.seen_us.insert(me, self.now_us);
        }
        let (us, mut view) = (self.rng.below(20 * MS), self.view.clone());
        for member in &mut view.members {
            member.owns = self.table.owns(member.id.node.0 as u32 + 1);
        }
        self.after(us, Event::Told { of, view, asked_us });
    }

    /// Whether who is joining may remove a member.
    fn is_stale(&self, other: PeerId, state: Option<State>) -> bool {
        let seen_us = self.seen_us.get(&other).copied().unwrap_or_default();
        state == Some(State::Joining) && self.now_us - seen_us > CONFIG.store_us + CONFIG.seen_us
    }

    /// A client of some node does something in its shard's next turn.
    fn client_does(&mut self, does: Does) {
        let all: Vec<At> = self.running.values().filter(|p| !p.paused).map(Process::at).collect();
        if all.is_empty() {
            return;
        }
        let at = all[self.rng.below(all.len() as u64) as usize];
        self.does_at(at, does);
    }

    fn pause(&mut self, at: At) {
        let longest = if self.deaths.is_some() { 1 } else { 4 };
        let us = [50 * MS, 900 * MS, 1_100 * MS, 3_000 * MS][self.rng.below(longest) as usize]
            + self.rng.below(200 * MS);
        self.say(|| format!("{at:?} is stopped for {:.3} s", us as f64 / 1e6));
        if let Some(process) = self.process(at) {
            process.paused = true;
        }
        self.after(us, Event::Resume { at });
    }

    fn fault(&mut self) {
        if self.deaths.is_some() {
            self.death();
            return;
        }
        let a = NodeId(self.rng.below(NODES));
        let b = NodeId((a.0 + 1 + self.rng.below(NODES - 1)) % NODES);
        let us = [100 * MS, 900 * MS, 1_500 * MS, 4_000 * MS][self.rng.below(4) as usize]
            + self.rng.below(300 * MS);
        match self.rng.below(6) {
            0 => {
                if self.running.contains_key(&a) {
                    self.say(|| format!("{a:?} is killed"));
                    self.die(a);
                    self.after(us, Event::Start { node: a });
                }
            }
            1 | 2 => {
                self.say(|| {
                    format!("{a:?} and {b:?} hear nothing of each other for {:.3} s", us as f64 / 1e6)
                });
                self.cut.insert(pair(a, b), self.now_us + us);
                self.after(us, Event::Heal { a, b });
                if self.rng.chance(2) {
                    let us = self.rng.below(us);
                    self.after(us, Event::Reset { a, b });
                }
            }
            3 => self.reset(a, b),
            4 => {
                self.say(|| format!("{a:?} cannot reach the store for {:.3} s", us as f64 / 1e6));
                self.no_store.insert(a);
                self.after(us, Event::StoreBack { node: a });
            }
            _ => {
                if let Some(at) = self.running.get(&a).map(Process::at) {
                    self.pause(at);
                }
            }
        }
    }

    fn reset(&mut self, a: NodeId, b: NodeId) {
        let its = |ends: &Ends| pair(ends[0].0.0, ends[1].0.0) == pair(a, b);
        let links = self.links.iter().filter(|(_, (ends, _))| its(ends));
        let links: Vec<u64> = links.map(|(id, _)| *id).collect();
        self.say(|| format!("links between {a:?} and {b:?} break"));
        links.into_iter().for_each(|link| self.break_link(link));
    }

    /// At how many nodes each roaming client is connected, and when it moved last.
    pub(crate) fn roamers(&self) -> Vec<(usize, u64)> {
        let is_at = |process: &&Process, name: &String| {
            process.rig.peers.get(name).is_some_and(|peer| peer.conn.is_some())
        };
        let names = (0..ROAMERS).map(|roamer| format!("roamer-{roamer}"));
        let counts = names.map(|name| self.running.values().filter(|process| is_at(process, &name)).count());
        counts.zip(self.roamed_us).collect()
    }

    /// Everything is as if nothing had been.
    pub(crate) fn check_healed(&self) {
        assert_eq!(self.running.len() as u64, self.nodes - u64::from(self.lost.is_some()));
        for (node, process) in &self.running {
            let clock_us = process.clock(self.now_us);
            assert!(process.site.is_live(), "{node:?} is not live: {:?}", self.view);
            assert!(process.site.standing().allows(clock_us, clock_us), "{node:?} may not acknowledge");
            for (shard, worker) in process.workers.iter().enumerate() {
                // What began in the last moments may wait still.
                let late = |began_us: u64| self.now_us - began_us < 1_000 * MS;
                assert!(worker.subscribing.len() < 5, "{node:?} {shard}: {:?} wait", worker.subscribing);
                let connecting = worker.connecting_us.is_none_or(late);
                assert!(connecting, "{node:?} {shard}: a CONNECT is not answered");
                let waits = worker.publishing.values().find(|n| !late(self.publishes[n].began_us));
                assert_eq!(waits, None, "{node:?} {shard}: a publish is not acknowledged");
            }
            let last_us = self.last_acknowledged_us.get(node).copied().unwrap_or_default();
            assert!(self.now_us - last_us < 5_000 * MS, "{node:?} acknowledges nothing any more");
        }
    }
}
