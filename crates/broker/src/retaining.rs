//! Retained messages: the same in all shards of all nodes.
//!
//! # Constraints
//! Whoever subscribes finds what was retained and acknowledged before, on whichever node, and what was cleared stays cleared. Of two who set one topic at
//! the same time one wins, the same everywhere. A node may have missed any number of them, and must not be sent all there are to be told so.
//!
//! # Data
//! Each shard has all messages ([`RetainedIndex`]), each with a *stamp*: a hybrid of clock and counter, greater than any that its
//! giver had seen. The highest of a topic wins, of equal ones the record that compares higher; what was cleared keeps its stamp for a while
//! ([`Retaining::cleared`]).
//!
//! The first shard of a node is its *speaker*: it alone tells other nodes, and hears them. So what a node has told is what one shard has told on
//! one link, and its index alone knows the messages by their age ([`RetainedIndex::track`]), in buckets of a quarter of an hour with a digest each.
//!
//! # Operation
//! - A shard where a message is set or cleared tells all shards of its process ([`Parcel::RetainedPut`]). The topic's owner writes it. The speaker passes it on to the
//!   speakers of the other nodes ([`Parcel::RetainedCopy`]), each of which tells its shards and answers when they have it
//!   ([`Parcel::RetainedAck`]): only then has it ended for its publisher. What is for a member that is out of reach waits until
//!   that is back, or is no member.
//! - A new link begins with the digests of both sides ([`Parcel::RetainedRange`]). Of each bucket that is not the same each side sends what it has, a *batch* at a
//!   time; it ends with [`Parcel::RetainedMark`], and its answer asks for the next. What comes this way is written by the owner, too: its sender may have had no
//!   time for it. A node serves when it has heard this of all members, and has read what the store has since it is one ([`Shard::settled_in`]): what was
//!   acknowledged without it is in one of the two.
//! - QoS 0 that found a link full is sent when it has room again, as a part of what its bucket has.
//!
//! # Invariants
//! - What ends for its publisher is in the store before its node may have been removed (`standing.rs`), and known to each node that a SUBACK may come from: the others do not serve, or may not acknowledge, and
//!   then a subscription that would be sent retained messages waits (`standing.rs`).
//! - On a link, answers are in the order of what they answer: one says all before it.
//!
//! # Bounds
//! One batch of [`BATCH_BYTES`] on the way to each node. Ends that wait are those of publishers' windows. Cleared topics: [`CLEARED_MAX`].

use crate::hook::{Ends, Hook, Message};
use crate::nodes::{Reach, Speaks};
use crate::parcel::{Number, Parcel};
use crate::peers::{Link, Owner, Peers};
use crate::retained::{RetainedIndex, Set};
use crate::shard::Shard;
use crate::turn::Wait;
use bytes::Bytes;
use ferrule_mqtt::{PropertiesBuf, PropertyId, QoS};
use ferrule_outbox::{End, Outcome, Reason, ReceiptId};
use ferrule_store::record::{Record, Retained};
use ferrule_store::{Now, Op, Store};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

/// The protocol between nodes that knows of retained messages.
const VERSION: u32 = 2;

/// How long a cleared topic keeps its stamp: far longer than anything is under way between threads.
const CLEARED_US: u64 = 60_000_000;
/// In a cluster, at its speaker: as long as a node may be away and come back with what it knew.
const CLEARED_BY_NODES_US: u64 = 86_400_000_000;
/// And how many at most: the oldest is forgotten early.
const CLEARED_MAX: usize = 100_000;

/// What is sent at once of what another node may have missed: so much is what a link takes in a millisecond.
const BATCH_BYTES: usize = 256 << 10;

/// A stamp's low bits are the shard that gave it, the rest a clock of 1/16,384 ms that never goes back.
const STAMP_SHARD: u64 = 256;
const STAMP_MS: u32 = 22;
/// The clock has 42 bits: until 2109.
const CLOCK_MAX: u64 = (1 << (64 - STAMP_MS)) - 1;

/// What a shard knows beside its index.
#[derive(Debug, Default)]
pub(crate) struct Retaining {
    /// The last stamp that was given or seen.
    stamp: u64,
    /// Stamps of cleared topics: when they may be forgotten.
    cleared: VecDeque<(u64, u64, Box<str>)>,
    /// Topics that the store is told of within a second, and the stamp of those that nothing is kept of.
    lazy: HashMap<Box<str>, u64>,
    lazy_since_us: u64,
    /// Something waits for a node that is out of reach.
    waits: bool,
}

impl Retaining {
    /// The stamp of a message that is set or cleared now.
    pub(crate) fn next_stamp(&mut self, shard: u16, now: Now) -> u64 {
        let next = (self.stamp / STAMP_SHARD).saturating_add(1).saturating_mul(STAMP_SHARD);
        self.stamp = next.max(clock(now.wall_ms)).saturating_add(u64::from(shard));
        self.stamp
    }

    fn saw(&mut self, stamp: u64) {
        self.stamp = self.stamp.max(stamp);
    }

    /// Since when something is to be written that is not urgent.
    pub(crate) fn lazy_since_us(&self) -> Option<u64> {
        (!self.lazy.is_empty()).then_some(self.lazy_since_us)
    }

    /// What is to be written of it.
    pub(crate) fn take_lazy(&mut self, index: &RetainedIndex) -> impl Iterator<Item = Op> {
        self.lazy.drain().map(|(topic, stamp)| op(index, topic, stamp))
    }

    /// When a cleared topic may be forgotten.
    pub(crate) fn next_us(&self) -> Option<u64> {
        self.cleared.front().map(|(until_us, ..)| *until_us)
    }
}

fn clock(wall_ms: i64) -> u64 {
    (wall_ms.max(0) as u64).min(CLOCK_MAX) << STAMP_MS
}

/// A topic as the index has it. `stamp`: if it has nothing of it.
fn op(index: &RetainedIndex, topic: Box<str>, stamp: u64) -> Op {
    match index.known(&topic) {
        Some((stamp, Some(kept))) => Op::RetainPut { record: kept.to_bytes(), topic, stamp },
        Some((stamp, None)) => Op::RetainDelete { topic, stamp },
        None => Op::RetainDelete { topic, stamp },
    }
}

/// What the speaker of another node has been told, and what it has told us.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    /// It is one, and speaks of retained messages.
    speaks: bool,
    /// Of the last that has an answer.
    last: Number,
    /// In order.
    sent: VecDeque<(Number, End)>,
    /// Those that it has when it has been told all that it has missed.
    unsure: Vec<End>,
    /// Buckets of which it is to be sent what there is.
    missed: Vec<u64>,
    /// Of one that was taken from them, what is still to be sent.
    batch: VecDeque<Arc<str>>,
    /// The mark that ends the batch which is on its way.
    mark: Option<Number>,
    /// Its digests, while they come.
    theirs: BTreeMap<u64, u64>,
    /// It has sent all of its own that was not known here.
    told_all: bool,
    /// Which link to it this is: what was told on an earlier one says nothing of what came since.
    link: u32,
}

impl Copies {
    fn number(&mut self, end: Option<End>) -> Number {
        let Some(end) = end else { return 0 };
        self.last += 1;
        self.sent.push_back((self.last, end));
        self.last
    }

    /// It has been sent all that it had missed.
    fn knows_all(&self) -> bool {
        self.missed.is_empty() && self.batch.is_empty()
    }

    /// It may have any of what it has not answered.
    fn lose(&mut self) {
        self.unsure.extend(self.sent.drain(..).map(|(_, end)| end));
        (self.mark, self.told_all) = (None, false);
        self.link = self.link.wrapping_add(1).max(1);
        self.missed.clear();
        self.batch.clear();
        self.theirs.clear();
    }
}

/// How another node's speaker is told.
enum Way {
    Now,
    /// When it is back.
    Later,
    /// It serves nobody.
    Never,
}

impl Link {
    fn way(&self) -> Way {
        match (self.reach, self.waits) {
            (Reach::Told, _) => Way::Now,
            (_, true) => Way::Later,
            (_, false) => Way::Never,
        }
    }
}

impl Peers {
    fn is_speaker(&self) -> bool {
        self.place.index == 0
    }

    /// Those of other nodes.
    fn speakers(&self) -> impl Iterator<Item = u16> + use<> {
        let speakers = self.links.iter().enumerate().filter(|(_, link)| link.copies.speaks);
        let all: Vec<u16> =
            if self.is_speaker() { speakers.map(|(at, _)| at as u16).collect() } else { Vec::new() };
        all.into_iter()
    }

    /// Who waits for what a retained message does beside being routed: the store, the other shards, and, at the speaker, other nodes.
    pub(crate) fn retained_ends(&self) -> usize {
        usize::from(self.place.of) + self.speakers().count()
    }

    /// Tells all shards of this process of a retained message; `end` gives an end for each, or none when nobody waits. The receipt and the
    /// number that wait for the one that writes it.
    fn put_retained(
        &mut self,
        stamp: u64,
        hold: bool,
        topic: &str,
        record: &[u8],
        mut end: impl FnMut() -> Option<End>,
    ) -> Option<(ReceiptId, Number)> {
        let owner = self.place.owner(topic);
        let mut writer = None;
        for peer in self.others() {
            let end = end();
            let receipt = end.as_ref().map(End::receipt);
            let number = self.number(peer, end);
            if peer == owner {
                writer = receipt.map(|receipt| (receipt, number));
            }
            self.send(peer, &Parcel::RetainedPut { number, hold, stamp, topic, record });
        }
        writer
    }
}

impl<H: Hook, S: Store> Shard<H, S> {
    pub(crate) fn next_stamp(&mut self) -> u64 {
        self.retaining.next_stamp(self.peers.place.index, self.now)
    }

    /// What the store has kept.
    pub(crate) fn restore_retained(&mut self, topic: &str, stamp: u64, record: &[u8]) {
        if record.is_empty() {
            // Of several nodes: one that comes with an older message is told by the speaker.
            self.retaining.saw(stamp);
            let remember = self.peers.is_speaker();
            self.clear_retained(topic, stamp, remember);
        } else if let Ok(message) = Retained::from_bytes(record) {
            // One that is kept without, or was set by a release that gives none.
            let stamp = stamp.max(clock(message.at_wall_ms));
            self.retaining.saw(stamp);
            self.retained.set(topic, stamp, Arc::new(message));
        }
    }

    /// Sets or clears the retained message of a topic, here and everywhere. `ends`: as many as [`Peers::retained_ends`]; none when
    /// nobody waits.
    pub(crate) fn retain(
        &mut self,
        message: &Message<'_>,
        expires_wall_ms: Option<i64>,
        ends: Vec<Option<End>>,
    ) {
        let topic = message.topic;
        let mut ends = ends.into_iter().flatten();
        let stamp = self.next_stamp();
        let mut record = Bytes::new();
        let set = if message.payload.is_empty() {
            // [MQTT-3.3.1-6]: an empty payload clears it.
            self.clear_retained(topic, stamp, !self.peers.is_alone() || self.peers.clustered)
        } else {
            let mut properties = PropertiesBuf::new();
            properties.extend(message.properties, |p| p != PropertyId::MessageExpiryInterval);
            let message = Arc::new(Retained {
                qos: message.qos.into(),
                expires_wall_ms,
                at_wall_ms: self.now.wall_ms,
                properties: Bytes::copy_from_slice(properties.as_properties().as_bytes()),
                payload: Bytes::copy_from_slice(message.payload),
            });
            if !self.peers.is_alone() {
                record = message.to_bytes();
            }
            self.retained.set(topic, stamp, message)
        };
        if set != Set::Done {
            self.stats.retained_refused += 1;
            self.ended.extend(ends.map(|end| (end, Outcome::Discarded(Reason::Limit))));
            return;
        }
        let own = ends.next();
        if !self.peers.is_alone() {
            let writer = self.peers.put_retained(stamp, message.hold, topic, &record, || ends.next());
            if let Some((receipt, number)) = writer.filter(|_| message.hold) {
                self.batch.awaits(receipt, number);
            }
            self.tell_nodes(stamp, topic, &record, || ends.next());
        }
        if self.peers.place.owner(topic) != self.peers.place.index {
            // Its owner writes it, and answers when it is durable.
            self.ended.extend(own.map(|end| (end, Outcome::Delivered)));
        } else if message.qos == QoS::AtMostOnce {
            self.retain_later(topic, stamp);
        } else {
            self.write_retained(topic, stamp);
            self.batch.waits.extend(own.map(Wait::Retained));
        }
    }

    /// Another shard of this process set or cleared one; or, with nobody who waits, one of another node that we may not have heard of.
    pub(crate) fn retained_put(&mut self, from: u16, number: Number, hold: bool, kept: (u64, &str, &[u8])) {
        let (stamp, topic, record) = kept;
        let set = self.keep_retained(stamp, topic, record);
        if self.peers.is_remote(from) {
            if set == Set::Done {
                self.peers.put_retained(stamp, false, topic, record, || None);
                if self.peers.place.owner(topic) == self.peers.place.index {
                    self.retain_later(topic, stamp);
                }
            }
            return;
        }
        let writes = self.peers.place.owner(topic) == self.peers.place.index;
        let owner = (number != 0).then_some(Owner::Peer { peer: from, number });
        let mut ends = Ends::new(&mut self.receipts, owner);
        // Also when a later one is in force, which may not be durable, or everywhere, yet either.
        let durable = if writes { ends.end() } else { None };
        let elsewhere: Vec<_> = self.peers.speakers().filter_map(|_| ends.end()).collect();
        let receipt = ends.finish();
        self.tell_nodes(stamp, topic, record, {
            let mut elsewhere = elsewhere.into_iter();
            move || elsewhere.next()
        });
        if let Some(durable) = durable {
            self.write_retained(topic, stamp);
            self.batch.waits.push(Wait::Retained(durable));
            if hold {
                self.join(from, number);
            }
        } else if writes {
            self.retain_later(topic, stamp);
        }
        match receipt {
            None => self.acknowledge_parcel(from, number, Outcome::Delivered),
            Some((_, guard)) => self.ended.extend(guard.map(|guard| (guard, Outcome::Delivered))),
        }
    }

    fn keep_retained(&mut self, stamp: u64, topic: &str, record: &[u8]) -> Set {
        self.retaining.saw(stamp);
        let set = if record.is_empty() {
            self.clear_retained(topic, stamp, true)
        } else {
            match Retained::from_bytes(record) {
                Ok(message) => self.retained.set(topic, stamp, Arc::new(message)),
                Err(_) => Set::Refused,
            }
        };
        self.stats.retained_refused += u64::from(set == Set::Refused);
        set
    }

    /// `remember`: an older one may still be on its way.
    fn clear_retained(&mut self, topic: &str, stamp: u64, remember: bool) -> Set {
        let set = self.retained.clear(topic, stamp, remember);
        if remember && set == Set::Done {
            let long = self.peers.is_speaker() && self.peers.clustered;
            let for_us = if long { CLEARED_BY_NODES_US } else { CLEARED_US };
            self.retaining.cleared.push_back((self.now.mono_us + for_us, stamp, topic.into()));
        }
        set
    }

    /// The last value of a topic is written within 1 s.
    fn retain_later(&mut self, topic: &str, stamp: u64) {
        if self.retaining.lazy.is_empty() {
            self.retaining.lazy_since_us = self.now.mono_us;
        }
        self.retaining.lazy.insert(topic.into(), stamp);
    }

    fn write_retained(&mut self, topic: &str, stamp: u64) {
        self.retaining.lazy.remove(topic);
        let op = op(&self.retained, topic.into(), stamp);
        self.op(op, true);
    }

    /// Retained messages that have expired go, as many as a turn has time for. They have everywhere, so nobody is told; whoever
    /// owns the topic takes it from the disk, unless it is set anew before that.
    pub(crate) fn drop_expired_retained(&mut self) {
        const A_TURN: usize = 100;
        for _ in 0..A_TURN {
            let Some(topic) = self.retained.expired(self.steady.ms(self.now)) else { return };
            // Just behind the message: one that was set since, elsewhere, is not meant.
            let Some((stamp, _)) = self.retained.known(&topic) else { return };
            self.retained.clear(&topic, stamp.saturating_add(1), false);
            if self.peers.place.owner(&topic) == self.peers.place.index {
                self.retain_later(&topic, stamp.saturating_add(1));
            }
        }
    }

    pub(crate) fn forget_cleared(&mut self) {
        let now_us = self.now.mono_us;
        let cleared = &mut self.retaining.cleared;
        while cleared.len() > CLEARED_MAX || cleared.front().is_some_and(|(until_us, ..)| *until_us <= now_us)
        {
            if let Some((_, stamp, topic)) = cleared.pop_front() {
                self.retained.forget_cleared(&topic, stamp);
            }
        }
    }

    // --- other nodes ---

    /// The speaker tells those of the other nodes; `end` gives an end for each of [`Peers::speakers`], or none when nobody waits.
    fn tell_nodes(&mut self, stamp: u64, topic: &str, record: &[u8], mut end: impl FnMut() -> Option<End>) {
        for peer in self.peers.speakers() {
            let end = end();
            let Some(link) = self.peers.links.get_mut(usize::from(peer)) else { continue };
            match link.way() {
                Way::Now if end.is_none() && link.full => {
                    self.stats.retained_behind += 1;
                    let bucket = RetainedIndex::bucket(stamp);
                    if !link.copies.missed.contains(&bucket) {
                        link.copies.missed.push(bucket);
                    }
                }
                Way::Now => {
                    let number = link.copies.number(end);
                    self.peers.send(peer, &Parcel::RetainedCopy { number, stamp, topic, record });
                }
                Way::Later | Way::Never => {
                    self.retaining.waits |= end.is_some();
                    link.copies.unsure.extend(end);
                }
            }
        }
        self.release_retained();
    }

    /// Another node set or cleared one, which it writes itself. From its speaker to ours, and from ours to the others of this process.
    pub(crate) fn retained_copy(
        &mut self,
        from: u16,
        number: Number,
        (stamp, topic, record): (u64, &str, &[u8]),
    ) {
        self.keep_retained(stamp, topic, record);
        self.pass_to_siblings(from, number, false, |number| Parcel::RetainedCopy {
            number,
            stamp,
            topic,
            record,
        });
    }

    /// A node's speaker has sent all of a batch, or (`done`) all that it had to.
    pub(crate) fn retained_mark(&mut self, from: u16, number: Number, done: bool) {
        self.pass_to_siblings(from, number, done, |number| Parcel::RetainedMark { number, done: false });
    }

    /// What came from another node has ended when all shards of this process have it.
    fn pass_to_siblings<'a>(
        &mut self,
        from: u16,
        number: Number,
        done: bool,
        parcel: impl Fn(Number) -> Parcel<'a>,
    ) {
        if !self.peers.is_remote(from) {
            self.acknowledge_parcel(from, number, Outcome::Delivered);
            return;
        }
        let link = self.peers.links.get(usize::from(from)).map_or(0, |link| link.copies.link);
        let done = if done { link } else { 0 };
        let owner = (number != 0).then_some(Owner::Copy { peer: from, number, done });
        let mut ends = Ends::new(&mut self.receipts, owner);
        for peer in self.peers.others() {
            let number = self.peers.number(peer, ends.end());
            self.peers.send(peer, &parcel(number));
        }
        match ends.finish() {
            None if number != 0 => self.has_copy(from, number, done),
            None => {}
            Some((_, guard)) => self.ended.extend(guard.map(|guard| (guard, Outcome::Delivered))),
        }
    }

    /// All shards of this process have what another node sent, and all before it. `done`: it was the last of this link, or 0.
    pub(crate) fn has_copy(&mut self, from: u16, number: Number, done: u32) {
        self.peers.send(from, &Parcel::RetainedAck { number });
        if let Some(link) = self.peers.links.get_mut(usize::from(from)).filter(|_| done != 0)
            && link.copies.link == done
        {
            link.copies.told_all = link.reach == Reach::Told;
        }
    }

    /// And that node says so.
    pub(crate) fn retained_acked(&mut self, from: u16, number: Number) {
        let Some(link) = self.peers.links.get_mut(usize::from(from)) else { return };
        let copies = &mut link.copies;
        while let Some((_, end)) = copies.sent.pop_front_if(|(sent, _)| *sent <= number) {
            self.ended.push((end, Outcome::Delivered));
        }
        if copies.mark != Some(number) {
            return;
        }
        copies.mark = None;
        if copies.knows_all() {
            self.ended.extend(copies.unsure.drain(..).map(|end| (end, Outcome::Delivered)));
        } else {
            self.send_missed(from);
        }
    }

    /// There is a link to it.
    pub(crate) fn retained_linked(&mut self, peer: u16, speaks: Speaks) {
        if !self.peers.is_speaker() || !speaks.first || speaks.version < VERSION {
            return;
        }
        if let Some(link) = self.peers.links.get_mut(usize::from(peer)) {
            link.copies.lose();
            link.copies.speaks = true;
        }
        self.retained.track();
        for (bucket, digest) in self.retained.digests() {
            self.peers.send(peer, &Parcel::RetainedRange { bucket, digest });
        }
        self.peers.send(peer, &Parcel::RetainedRanges);
    }

    pub(crate) fn retained_unlinked(&mut self, peer: u16) {
        let Some(link) = self.peers.links.get_mut(usize::from(peer)) else { return };
        link.copies.lose();
        self.retaining.waits |= !link.copies.unsure.is_empty();
        self.release_retained();
    }

    /// What waits for nodes that are out of reach and are not waited for has ended, if this node may acknowledge: then they are no members, and read what is stored
    /// before they are again.
    pub(crate) fn release_retained(&mut self) {
        if !self.retaining.waits || self.standing.parks() {
            return;
        }
        self.retaining.waits = false;
        for link in &mut self.peers.links {
            if matches!(link.way(), Way::Never) {
                self.ended.extend(link.copies.unsure.drain(..).map(|end| (end, Outcome::Delivered)));
            }
            self.retaining.waits |= !link.copies.unsure.is_empty();
        }
    }

    pub(crate) fn retained_range(&mut self, from: u16, bucket: u64, digest: u64) {
        if let Some(link) = self.peers.links.get_mut(usize::from(from)) {
            link.copies.theirs.insert(bucket, digest);
        }
    }

    /// Those were all digests of another node: it is sent what is in buckets that differ.
    pub(crate) fn retained_ranges(&mut self, from: u16) {
        let Some(link) = self.peers.links.get_mut(usize::from(from)) else { return };
        let theirs = std::mem::take(&mut link.copies.theirs);
        let differs = |(bucket, digest): &(u64, u64)| theirs.get(bucket) != Some(digest);
        link.copies.missed = self.retained.digests().filter(differs).map(|(bucket, _)| bucket).collect();
        self.send_missed(from);
    }

    /// Its link has room again.
    pub(crate) fn retained_has_room(&mut self, peer: u16) {
        let copies = self.peers.links.get(usize::from(peer)).map(|link| &link.copies);
        if copies.is_some_and(|copies| !copies.knows_all() && copies.mark.is_none()) {
            self.send_missed(peer);
        }
    }

    fn send_missed(&mut self, peer: u16) {
        let Some(link) = self.peers.links.get_mut(usize::from(peer)) else { return };
        let mut copies = std::mem::take(&mut link.copies);
        let mut bytes = 0;
        while bytes < BATCH_BYTES {
            if copies.batch.is_empty() {
                let Some(bucket) = copies.missed.pop() else { break };
                copies.batch = self.retained.in_bucket(bucket).collect();
            }
            let Some(topic) = copies.batch.pop_front() else { continue };
            if let Some((stamp, kept)) = self.retained.known(&topic) {
                let record = kept.map(|kept| kept.to_bytes()).unwrap_or_default();
                bytes += topic.len() + record.len();
                self.stats.retained_caught_up += 1;
                let parcel =
                    Parcel::RetainedPut { number: 0, hold: false, stamp, topic: &topic, record: &record };
                self.peers.send(peer, &parcel);
            }
        }
        copies.last += 1;
        let (number, done) = (copies.last, copies.knows_all());
        copies.mark = Some(number);
        self.peers.send(peer, &Parcel::RetainedMark { number, done });
        if let Some(link) = self.peers.links.get_mut(usize::from(peer)) {
            link.copies = copies;
        }
    }

    /// Whether each member has told this node what it had not known.
    pub(crate) fn knows_retained(&self) -> bool {
        let knows = |link: &Link| !link.copies.speaks || !link.member || link.copies.told_all;
        !self.peers.is_speaker() || self.peers.links.iter().all(knows)
    }
}
