//! How a worker and the nodes of its cluster reach each other.
//!
//! # Constraints
//! Links are other threads' affair. A worker never waits for one, and one that is slow or gone must not stop what is local. What the other nodes say has to be
//! known in the turn in which this node may acknowledge again: a turn reads the clock, then takes what is in its [`Post`], then reads its
//! clients; and whoever changes the node's standing has posted before what that relies on (`ferrule-cluster`).
//!
//! # Operation
//! [`Post`] is the worker's letter box: orders of whoever drives the node ([`Order`]), and parcels of other nodes' shards, in one order. What the worker's
//! shard has for another node's goes into that link's [`Lane`]: control at the end of its turn, data when the worker has nothing more to do.
//!
//! # Wake-ups
//! To wake another thread costs more than to route a message. So a worker that has more to do at once (its sockets are looked at, without waiting) gathers what its
//! turns said, and a lane gets it as one; at a low rate there is nothing more to do, and nothing waits. It is bounded by time and bytes, and looking ceases where
//! it was in vain. Who posts a letter wakes the worker only if it sleeps: one that is awake looks into its box before it does.
//!
//! # Bounds
//! Inward, a [`Parcels::room`] that its receiver gives back bounds what is under way. Outward, past [`LANE_BYTES`] that a lane has not sent messages of QoS 0
//! are dropped and counted; those of QoS 1 and 2 are bounded by their publishers' windows, and the lane itself breaks the link when that is too much
//! for it.

use crate::Inbox;
use ferrule_broker::{Hook, Shard, Speaks};
use ferrule_cluster::{Gate, Order, Shards, Word};
use ferrule_store::{Now, Store};
use std::any::Any;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a lane may have unsent before messages that nobody is told of are dropped: some 100 ms of a fast link.
const LANE_BYTES: usize = 16 << 20;

/// While a worker has more to do at once it gathers data for other nodes for so long at most: some hundred messages of a busy worker. With twice
/// or four times as much the CPU time of a message was the same.
const HELD_US: u64 = 500;
/// or until there is so much: half a frame of the link.
const HELD_BYTES: usize = 64 << 10;
/// A look is a system call: when so many in a row found nothing to do, there is one only behind a turn that said more than a message or two,
const LOOKS: u32 = 2;
const FEW_BYTES: usize = 256;
/// and behind each of so many others.
const LOOKS_AGAIN: u32 = 16;

/// To one other node. Nothing waits.
pub trait Lane: Send {
    /// Parcels that must not wait behind publishes: from our shard to that of the other node.
    fn control(&self, from: u16, to: u16, parcels: Vec<u8>);
    /// The rest.
    fn data(&self, from: u16, to: u16, parcels: Vec<u8>);
    /// Bytes of data that are not sent yet.
    fn queued(&self) -> usize;
}

/// Parcels of a shard of another node.
pub struct Parcels {
    /// The index that it has here.
    pub from: u16,
    /// Whole parcels.
    pub bytes: Box<dyn AsRef<[u8]> + Send>,
    /// Dropped when they have been taken.
    pub room: Option<Box<dyn Any + Send>>,
}

/// What arrives.
pub enum Letter {
    /// From whoever drives the node; with [`Order::Linked`] the lane to it.
    Order(Order, Option<Box<dyn Lane>>),
    /// From a shard of another node.
    Parcels(Parcels),
    /// The node's standing has changed: nothing but a turn is due.
    Standing,
}

impl fmt::Debug for Letter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Order(order, _) => write!(f, "{order:?}"),
            Self::Parcels(parcels) => write!(f, "parcels from {}", parcels.from),
            Self::Standing => f.write_str("standing"),
        }
    }
}

/// A worker's letter box. Posting never blocks.
#[derive(Debug, Clone)]
pub struct Post {
    letters: Arc<Mutex<Letters>>,
    waker: Arc<mio::Waker>,
}

#[derive(Debug, Default)]
struct Letters {
    waiting: Vec<Letter>,
    /// The worker waits for events, or is about to: it has to be woken, once. One that is in a turn looks here before it sleeps.
    asleep: bool,
}

impl Post {
    /// Of the worker with this inbox.
    #[must_use]
    pub fn beside<M>(inbox: &Inbox<M>) -> Self {
        Self { letters: Arc::default(), waker: inbox.waker() }
    }

    /// Posts, and wakes the worker if it sleeps.
    pub fn put(&self, letter: Letter) {
        let mut letters = self.lock();
        letters.waiting.push(letter);
        let wake = std::mem::take(&mut letters.asleep);
        drop(letters);
        if wake {
            // A worker that is gone needs no waking.
            let _ = self.waker.wake();
        }
    }

    fn is_empty(&self) -> bool {
        self.lock().waiting.is_empty()
    }

    /// The worker wants to sleep: whether it may. Who posts from then on wakes it.
    fn rest(&self) -> bool {
        let mut letters = self.lock();
        letters.asleep = letters.waiting.is_empty();
        letters.asleep
    }

    fn take(&self, into: &mut Vec<Letter>) {
        let mut letters = self.lock();
        letters.asleep = false;
        std::mem::swap(&mut letters.waiting, into);
    }

    fn lock(&self) -> MutexGuard<'_, Letters> {
        self.letters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Another node that there is a link to.
struct Neighbour {
    shards: Shards,
    lane: Box<dyn Lane>,
    /// For each of its shards.
    held: Vec<Held>,
}

/// What is held back for all of them together.
#[derive(Debug, Default)]
struct Gathered {
    since_us: Option<u64>,
    bytes: usize,
    /// Times in a row that there was nothing more to do.
    misses: u32,
}

/// Data for a shard of another node that the lane does not have yet.
#[derive(Debug, Default)]
struct Held {
    bytes: Vec<u8>,
    /// How much the lane got last: as much is likely to come, so that it does not grow step by step.
    last: usize,
}

impl Gathered {
    fn add(&mut self, held: &mut Held, parcels: &[u8], now_us: u64) {
        self.since_us.get_or_insert(now_us);
        self.bytes += parcels.len();
        if held.bytes.capacity() == 0 {
            held.bytes.reserve_exact(held.last.max(parcels.len()));
        }
        held.bytes.extend_from_slice(parcels);
    }

    fn may_wait(&mut self, now_us: u64) -> bool {
        let Some(since_us) = self.since_us else { return false };
        if self.bytes >= HELD_BYTES || now_us >= since_us + HELD_US {
            return false;
        }
        if self.bytes >= FEW_BYTES || self.misses < LOOKS || self.misses.is_multiple_of(LOOKS_AGAIN) {
            return true;
        }
        self.misses = self.misses.wrapping_add(1);
        false
    }

    fn looked(&mut self, more: bool) {
        self.misses = if more { 0 } else { self.misses.wrapping_add(1) };
    }
}

/// What a worker of a node in a cluster has to do with it.
pub struct Abroad {
    /// Of this worker.
    pub post: Post,
    /// Whether the node may acknowledge.
    pub gate: Arc<Gate>,
    /// Told what the worker has to say to whoever drives the node.
    pub say: Arc<dyn Fn(Word) + Send + Sync>,
    neighbours: Vec<Neighbour>,
    gathered: Gathered,
    /// What is to be said as soon as it is so.
    due: Vec<(Shards, Word)>,
    letters: Vec<Letter>,
    /// When this turn began, by the clock that runs while the machine is suspended.
    began_us: u64,
    /// All that is to be asked for was routed later, by the same clock.
    routed_us: u64,
    /// The last view in which its shard has settled, and with how many links.
    settled: (u64, u64),
    /// Those that it has been told of.
    links: u64,
}

impl Abroad {
    /// Of a node that has just started.
    pub fn new(post: Post, gate: Arc<Gate>, say: Arc<dyn Fn(Word) + Send + Sync>) -> Self {
        Self {
            post,
            gate,
            say,
            neighbours: Vec::new(),
            gathered: Gathered::default(),
            due: Vec::new(),
            letters: Vec::new(),
            began_us: 0,
            routed_us: 0,
            settled: (0, 0),
            links: 0,
        }
    }

    /// A turn begins. The shard's last one may have been long ago: what it is told now would be released by that turn's answer, and be withdrawn at the end
    /// of this one, with its connection. So it is with a SUBACK that waits for a node which is given up just now.
    pub(crate) fn begin<H: Hook, S: Store>(&mut self, shard: &mut Shard<H, S>, now: Now) {
        self.began_us = ferrule_clock::boot_us();
        if !self.gate.allows(self.began_us, self.began_us) {
            shard.begin_turn(false, now.mono_us);
        }
    }

    /// Takes what has come.
    pub(crate) fn hear<H: Hook, S: Store>(&mut self, shard: &mut Shard<H, S>, now: Now) {
        let began_us = self.began_us;
        self.post.take(&mut self.letters);
        for letter in std::mem::take(&mut self.letters).drain(..) {
            match letter {
                Letter::Order(order, lane) => self.obey(shard, order, lane, now),
                Letter::Parcels(parcels) => {
                    if let Err(error) = shard.parcels(parcels.from, (*parcels.bytes).as_ref(), now) {
                        // The nodes have agreed on a version: a bug of one of them. The rest of the batch is lost, and its
                        // publishers are not acknowledged.
                        tracing::error!(from = parcels.from, %error, "this is a bug");
                    }
                }
                Letter::Standing => {}
            }
        }
        if !shard.has_unjudged() {
            self.routed_us = began_us;
        }
        shard.begin_turn(self.gate.allows(began_us, began_us), now.mono_us);
    }

    /// Whether what was routed since may be acknowledged.
    pub(crate) fn may(&self) -> bool {
        self.gate.allows(self.routed_us, ferrule_clock::boot_us())
    }

    fn obey<H: Hook, S: Store>(
        &mut self,
        shard: &mut Shard<H, S>,
        order: Order,
        lane: Option<Box<dyn Lane>>,
        now: Now,
    ) {
        let each = |shards: Shards| shards.first..shards.first + shards.count;
        match order {
            Order::Linked(shards, version, token) => {
                // Indices are given in order, to all workers alike.
                while shard.peers() < usize::from(shards.first + shards.count) && shard.add_peer().is_some() {
                }
                self.part_with(shards);
                let held = each(shards).map(|_| Held::default()).collect();
                self.neighbours.extend(lane.map(|lane| Neighbour { shards, lane, held }));
                each(shards).for_each(|peer| {
                    let speaks = Speaks { version, first: peer == shards.first };
                    shard.peer_linked(peer, speaks, now);
                });
                self.due.push((shards, Word::Told(token)));
                self.links += 1;
            }
            Order::Unlinked(shards) => {
                self.due.retain(|(of, word)| *of != shards || !matches!(word, Word::Told(_)));
                self.part_with(shards);
                each(shards).for_each(|peer| shard.peer_unlinked(peer, now));
            }
            Order::Wait(shards, token) => {
                each(shards).for_each(|peer| shard.peer_waits(peer, true, now));
                self.due.push((shards, Word::Waits(token)));
            }
            Order::WaitNot(shards) => {
                self.due.retain(|(of, word)| *of != shards || !matches!(word, Word::Waits(_)));
                each(shards).for_each(|peer| shard.peer_waits(peer, false, now));
            }
            Order::Forget(shards) => each(shards).for_each(|peer| shard.peer_gone(peer, now)),
            Order::Serves(shards) => shard.peers_serve(each(shards), now),
            Order::View(view, complete) => shard.set_view(view, complete, now),
            Order::Live(live) => shard.set_live(live, now),
        }
    }

    /// What was held back for it is lost with the link.
    fn part_with(&mut self, shards: Shards) {
        self.neighbours.retain(|known| known.shards != shards);
    }

    /// A turn ends: what it has to say to other nodes. Data is held back until [`Self::hand_over`].
    pub(crate) fn tell<H: Hook, S: Store>(&mut self, shard: &mut Shard<H, S>, me: u16, now: Now) {
        for Neighbour { shards, lane, held } in &mut self.neighbours {
            let is_full = lane.queued() > LANE_BYTES;
            for (to, held) in (0..).zip(held) {
                let peer = shards.first + to;
                if let Some(parcels) = shard.take_control(peer) {
                    lane.control(me, to, parcels);
                }
                shard.read_parcels(peer, |parcels| self.gathered.add(held, parcels, now.mono_us));
                shard.peer_full(peer, is_full);
            }
        }
        // Behind what is said to the other nodes: what is concluded from it goes there, too.
        self.due.retain(|(shards, word)| {
            let is_so = (shards.first..shards.first + shards.count).all(|peer| match word {
                Word::Told(_) => shard.peer_told(peer),
                _ => shard.peer_knows(peer),
            });
            if is_so {
                (self.say)(*word);
            }
            !is_so
        });
        if let Some(view) = shard.settled_in().filter(|view| (*view, self.links) != self.settled) {
            self.settled = (view, self.links);
            (self.say)(Word::Settled(view, self.links));
        }
    }

    /// Whether something is held back that may wait for another turn, if there is one at once.
    pub(crate) fn may_gather(&mut self, now_us: u64) -> bool {
        self.gathered.may_wait(now_us)
    }

    /// Whether there was one.
    pub(crate) fn gathers(&mut self, more: bool) {
        self.gathered.looked(more);
    }

    /// Gives the lanes what was held back.
    pub(crate) fn hand_over(&mut self, me: u16) {
        if self.gathered.since_us.take().is_none() {
            return;
        }
        self.gathered.bytes = 0;
        for Neighbour { lane, held, .. } in &mut self.neighbours {
            for (to, held) in (0..).zip(held) {
                if !held.bytes.is_empty() {
                    held.last = held.bytes.len().min(HELD_BYTES);
                    lane.data(me, to, std::mem::take(&mut held.bytes));
                }
            }
        }
    }

    /// Whether a letter is there.
    pub(crate) fn has_letters(&self) -> bool {
        !self.post.is_empty()
    }

    /// The worker wants to sleep: whether it may, since no letter is there.
    pub(crate) fn rest(&self) -> bool {
        self.post.rest()
    }
}

#[cfg(test)]
mod tests;
