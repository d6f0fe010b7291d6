//! Wills of connections whose session ends with them, in a cluster: their node is not there to publish them when it dies.
//!
//! (Those of sessions that live on are in the store, and are published by who adopts the session: [`crate::owners`].)
//!
//! # Operation
//! - Before its CONNACK such a will is copied to a shard of another live member, its *keeper* ([`Parcel::WillCopy`], ahead of what the CONNACK waits for anyway),
//!   drawn by the connection's number. When the connection has ended, the copy is ended ([`Parcel::WillEnded`]), and the will is published when the keeper has said
//!   that it is ([`Parcel::WillGone`]): a node that is out of touch does not know yet whether the others take it for dead.
//! - Whose member is removed from the cluster publishes the copies that it has of it, as soon as it knows the routes of all sessions again and may acknowledge.
//!   Whoever had copies there has them copied elsewhere.
//! - A node that was removed closes the connections whose wills have copies, and does not publish them: others do, or have. What it has copies of is not its to
//!   publish any more, either: those have other keepers by then.
//!
//! # Two copies
//! With [`crate::Limits::will_copies`] = 2 there are two keepers, of two nodes: a *first* and a *second*, which knows the first ([`Parcel::WillPair`]). The first
//! publishes; the second has its copy until the first has asked for it, and is the first as soon as that is removed. What the first had published before it died
//! nobody can know who did not see it, so it asks before:
//! ```text
//!  O is removed, in view v
//!  K1: WillsAsk(O, v) ----> every other member    I am about to publish what I have of O: forget what you have behind me
//!  K2: WillsYield ----> K1                        as soon as it knows view v: nothing of O comes behind that
//!  K1: publishes, when all have said so or have been removed
//! ```
//! - It asks *every* member, since it does not know who is behind it: one that was chosen a moment ago, and that O had no time to tell it of, is asked as well. For
//!   the same reason the question is about all that it has of O, and who keeps two copies of its own wills asks even if it has none: a second is left
//!   nowhere that nobody will ask for.
//! - It asks when it may publish, not before: between the answer and the publish lies a turn.
//! - A second names its first by the name of a shard ([`crate::Place::name`]). It knows it: keepers of two copies are live, and of two live members each has been
//!   linked to the other's shards. A shard whose node was removed and has joined again has its name still, but not its copies; the newest link of the name is taken, so
//!   that it is waited for in vain rather than published twice.
//! - A keeper that is gone is replaced: the second becomes the first, and a new second is chosen. With one other live member there is one copy, and the second is made
//!   when there is another.
//!
//! # Invariants
//! - A will is its connection's: published at most once, by its node or by one of its keepers. Who publishes is the only one that has it.
//! - With one copy it is lost if its node and its keeper die at once; with two, if both keepers die with it. It is lost too if its node dies in the round trip in
//!   which the copies end, after its connection has; or, with two copies, the first keeper in that in which it asks. (A client that says goodbye to a node which has
//!   just lost touch and is then removed gets its will published all the same.)
//! - Who has no copy yet, since every other live member has been silent for longer than its lease, has no CONNACK before one is heard again, or all are removed.
//! - Of a link that is made anew a node tells all copies again, so that none is left of connections that ended meanwhile.
//!
//! # Other versions
//! Two copies need version 4 of the protocol at both keepers. Where there are not two such members there is one copy, as before.
//!
//! # Bounds
//! [`COPIES_MAX`] copies of others, [`POSTPONED_MAX`] wills of connections that ended while the node might not acknowledge; what comes beyond is not kept
//! (`wills_not_kept`). What waits for a keeper's answer had a copy there while its connection was open. Questions: one for each shard that is gone, at each
//! shard. CONNACKs that wait for a copy: one a connection.

use crate::ConnId;
use crate::ending::Why;
use crate::hook::{Hook, Publisher, Role};
use crate::nodes::Reach;
use crate::parcel::{Number, Parcel};
use crate::peers::{Link, Peers};
use crate::session::Will;
use crate::shard::Shard;
use bytes::Bytes;
use ferrule_mqtt::ReasonCode;
use ferrule_store::Store;
use ferrule_store::record::{self, Record};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::BuildHasher;
use std::sync::Arc;

/// The protocol between nodes that knows of copies.
const VERSION: u32 = 2;
/// And of two of them.
const PAIRS: u32 = 4;

/// As many connections as a large node has.
const COPIES_MAX: usize = 1_000_000;

type Mine = (Arc<Publisher>, Box<Will>);

/// A node that is cut off may stay so for hours, while clients come and go.
const POSTPONED_MAX: usize = 100_000;

/// Where one of ours has copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kept {
    first: u16,
    second: Option<u16>,
}

impl Kept {
    fn peers(self) -> impl Iterator<Item = u16> {
        [Some(self.first), self.second].into_iter().flatten()
    }
}

/// A peer that a copy may go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Candidate {
    peer: u16,
    /// Its node's first shard.
    node: u16,
    /// [`crate::Place::name`].
    name: u64,
    /// It may have one of two.
    pairs: bool,
}

/// Who is to have copies of the will of the connection with this number, of whom one may have its already, in touch or not; none if nobody can.
fn keepers(number: Number, copies: u8, first: Option<Candidate>, all: &[Candidate]) -> Option<Kept> {
    let weight = |name: u64| foldhash::fast::FixedState::with_seed(name).hash_one(number);
    let best = |may: &dyn Fn(&Candidate) -> bool| {
        let may = all.iter().filter(|candidate| may(candidate));
        may.max_by_key(|candidate| (weight(candidate.name), candidate.peer)).copied()
    };
    let pairs = |candidate: &Candidate| copies > 1 && candidate.pairs;
    let first = first.or_else(|| best(&pairs)).or_else(|| best(&|_| true))?;
    let second = best(&|other| pairs(&first) && pairs(other) && other.node != first.node);
    Some(Kept { first: first.peer, second: second.map(|second| second.peer) })
}

/// What a copy that comes is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Copied {
    /// There is no other.
    Alone,
    /// There may be another one. `first`: the name of the shard that has that of the first; 0: this is it.
    OfTwo { first: u64 },
}

/// Who else may have one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rank {
    Alone,
    First,
    /// Behind that peer, which is a member.
    Behind(u16),
}

#[derive(Debug)]
struct Copy {
    rank: Rank,
    record: Bytes,
}

type Copies = BTreeMap<Number, Copy>;

/// Others are asked for what they have of a shard that is gone.
#[derive(Debug)]
struct Asking {
    number: Number,
    /// Those who have not answered.
    waits: BTreeSet<u16>,
}

/// What a shard knows of wills that are copied.
#[derive(Debug, Default)]
pub(crate) struct Wills {
    /// Where those of our connections are.
    at: HashMap<ConnId, Kept>,
    /// Those of other shards, by the connection's number. Ordered: what is simulated can be repeated.
    of: BTreeMap<u16, Copies>,
    /// What was known of those before their shard began to tell them again.
    stale: BTreeMap<u16, Copies>,
    /// Of shards that are gone, those of which another may have a copy.
    held: BTreeMap<u16, Copies>,
    /// Shards that are gone about which others are to be asked.
    to_ask: BTreeSet<u16>,
    asking: BTreeMap<u16, Asking>,
    /// The last question's number.
    asked_last: Number,
    /// What others ask that know of a later view: who, and by which number; the view, and the name of the shard that it is about.
    asked: BTreeMap<(u16, Number), (u64, u64)>,
    /// Of shards that are gone, this one's alone: to be published.
    due: Vec<Bytes>,
    /// Of our connections that have ended: until these keepers have answered.
    ending: BTreeMap<Number, (Vec<u16>, Mine)>,
    /// And until this node may acknowledge.
    postponed: Vec<Mine>,
    /// Connections whose CONNACK waits for a copy.
    uncopied: Vec<ConnId>,
}

impl Wills {
    /// Nothing waits to be published, or for others to be asked.
    pub(crate) fn is_idle(&self) -> bool {
        self.due.is_empty()
            && self.postponed.is_empty()
            && self.to_ask.is_empty()
            && self.asking.values().all(|asking| !asking.waits.is_empty())
    }

    /// What a peer has asked it will ask again.
    pub(crate) fn unlinked(&mut self, peer: u16) {
        self.asked.retain(|(from, _), _| *from != peer);
    }

    /// A peer is gone: what is behind it is this shard's to publish, and its answers are not waited for.
    fn without(&mut self, peer: u16) {
        let promote = |copies: &mut Copies| {
            let mut any = false;
            for copy in copies.values_mut().filter(|copy| copy.rank == Rank::Behind(peer)) {
                copy.rank = Rank::First;
                any = true;
            }
            any
        };
        for copies in self.of.values_mut().chain(self.stale.values_mut()) {
            promote(copies);
        }
        for (owner, held) in &mut self.held {
            if promote(held) {
                self.asking.remove(owner);
                self.to_ask.insert(*owner);
            }
        }
        for asking in self.asking.values_mut() {
            asking.waits.remove(&peer);
        }
        self.unlinked(peer);
    }

    /// Those about which all have answered are to be published.
    fn take_yielded(&mut self) {
        let yielded = self.asking.extract_if(.., |_, asking| asking.waits.is_empty());
        for (owner, _) in yielded {
            let Some(held) = self.held.get_mut(&owner) else { continue };
            let mine = held.extract_if(.., |_, copy| copy.rank == Rank::First);
            self.due.extend(mine.map(|(_, copy)| copy.record));
            if held.is_empty() {
                self.held.remove(&owner);
            }
        }
    }

    fn copies(&self) -> usize {
        self.of.values().chain(self.held.values()).map(BTreeMap::len).sum()
    }
}

impl Peers {
    /// Where copies may go.
    fn candidates(&self) -> Vec<Candidate> {
        if self.hidden {
            return Vec::new(); // Nobody is to publish what is this node's before it serves: it is told of its removal only then.
        }
        let links = self.links.iter().enumerate();
        let may =
            links.filter(|(_, link)| link.reach == Reach::Told && link.waits && link.version >= VERSION);
        may.filter_map(|(at, _)| self.candidate(at as u16)).collect()
    }

    /// A peer by itself: what it is does not depend on whether there is a link to it now.
    fn candidate(&self, peer: u16) -> Option<Candidate> {
        let link = self.links.get(usize::from(peer))?;
        let pairs = link.serves && link.version >= PAIRS;
        Some(Candidate { peer, node: link.node, name: link.name, pairs })
    }
}

impl<H: Hook, S: Store> Shard<H, S> {
    /// The will of a connection whose session ends with it, as it is copied.
    fn will_record(&self, id: ConnId) -> Option<Bytes> {
        let conn = self.conns.get(id)?;
        let (client_id, username, will) = match conn.session.and_then(|key| self.sessions.get(key)) {
            Some(session) if session.will.is_some() => {
                if session.is_persistent() {
                    return None;
                }
                (&*session.client_id, session.username.as_deref(), session.will.as_deref()?)
            }
            _ => conn.connecting.as_deref()?.will_of_its_own()?,
        };
        let record = record::Session {
            client_id: client_id.into(),
            username: username.map(Into::into),
            expiry_s: 0,
            ended_wall_ms: None,
            handed_to: None,
            will: Some(will.to_record(None)),
        };
        Some(record.to_bytes())
    }

    /// A client connects: its will is copied before all know that it is here.
    pub(crate) fn copy_will(&mut self, id: ConnId) {
        let candidates = self.peers.candidates();
        let _ = self.copy_will_to(id, &candidates); // its CONNACK waits for what comes behind
    }

    /// Makes what copies there are not, and may be; whether there were any.
    fn copy_will_to(&mut self, id: ConnId, candidates: &[Candidate]) -> bool {
        let known = self.wills.at.get(&id).copied();
        if known.is_some_and(|known| known.second.is_some()) {
            return false;
        }
        let first = known.and_then(|known| self.peers.candidate(known.first));
        let Some(kept) = keepers(id.to_bits(), self.limits.will_copies, first, candidates) else {
            return false;
        };
        if known == Some(kept) {
            return false;
        }
        let Some(record) = self.will_record(id) else { return false };
        self.wills.at.insert(id, kept);
        if known.is_none() {
            self.send_copy(kept.first, None, id, &record);
        }
        if let Some(second) = kept.second {
            self.send_copy(second, Some(kept.first), id, &record);
        }
        true
    }

    /// Sends a copy, which is behind that of another peer.
    fn send_copy(&mut self, peer: u16, behind: Option<u16>, id: ConnId, record: &[u8]) {
        let link = |peer: u16| self.peers.links.get(usize::from(peer));
        let number = id.to_bits();
        let first = behind.and_then(link).map_or(0, |link| link.name);
        let pairs = self.limits.will_copies > 1 && link(peer).is_some_and(|link| link.version >= PAIRS);
        let parcel = match pairs {
            true => Parcel::WillPair { number, first, record },
            false => Parcel::WillCopy { number, record },
        };
        self.peers.send(peer, &parcel);
    }

    /// It has ended, or has no will any more.
    pub(crate) fn end_will(&mut self, id: ConnId) {
        if let Some(kept) = self.wills.at.remove(&id) {
            for peer in kept.peers() {
                self.peers.send(peer, &Parcel::WillEnded { number: id.to_bits(), answer: false });
            }
        }
    }

    /// It has ended, and its will is to be published: now, if that is given back, or when it may be.
    pub(crate) fn end_with_will(
        &mut self,
        id: ConnId,
        publisher: &Arc<Publisher>,
        will: Box<Will>,
    ) -> Option<Box<Will>> {
        if let Some(kept) = self.wills.at.remove(&id) {
            let number = id.to_bits();
            for peer in kept.peers() {
                self.peers.send(peer, &Parcel::WillEnded { number, answer: true });
            }
            let waits = kept.peers().collect();
            self.wills.ending.insert(number, (waits, (Arc::clone(publisher), will)));
        } else if self.standing.parks() {
            if self.wills.postponed.len() < POSTPONED_MAX {
                self.wills.postponed.push((Arc::clone(publisher), will));
            } else {
                self.stats.wills_not_kept += 1;
            }
        } else {
            return Some(will);
        }
        None
    }

    /// A keeper has no copy any more.
    pub(crate) fn will_gone(&mut self, from: u16, number: Number) {
        let Some((waits, _)) = self.wills.ending.get_mut(&number) else { return };
        let before = waits.len();
        waits.retain(|peer| *peer != from);
        if waits.is_empty()
            && before > 0
            && let Some((_, (publisher, will))) = self.wills.ending.remove(&number)
        {
            self.publish_will(None, &publisher, &will, false);
        }
    }

    /// A link to a peer is there: it is told which of our wills it has, between the beginning and the end of all routes.
    pub(crate) fn tell_will(&mut self, peer: u16, id: ConnId) {
        let Some(kept) = self.wills.at.get(&id).copied() else { return };
        if kept.peers().any(|keeper| keeper == peer)
            && let Some(record) = self.will_record(id)
        {
            let behind = (kept.first != peer).then_some(kept.first);
            self.send_copy(peer, behind, id, &record);
        }
    }

    /// And which it is asked to forget: of ours, and of shards that are gone.
    pub(crate) fn tell_endings(&mut self, peer: u16) {
        for (&number, (waits, _)) in &self.wills.ending {
            if waits.contains(&peer) {
                self.peers.send(peer, &Parcel::WillEnded { number, answer: true });
            }
        }
        let view = self.owners.view;
        for (&owner, asking) in &self.wills.asking {
            if asking.waits.contains(&peer) {
                let owner = self.peers.links.get(usize::from(owner)).map_or(0, |link| link.name);
                self.peers.send(peer, &Parcel::WillsAsk { number: asking.number, view, owner });
            }
        }
    }

    /// Copies that wills do not have are made: there is one more member, or one less.
    pub(crate) fn copy_wills(&mut self) {
        let candidates = self.peers.candidates();
        if !candidates.is_empty() {
            let mut all = self.presence.connections();
            all.sort_unstable_by_key(|id| id.to_bits());
            all.retain(|id| self.copy_will_to(*id, &candidates));
            // These were announced before: what waits for the other nodes waits for their copies, too.
            if let Some(last) = all.pop() {
                self.announce_behind_copies(last);
            }
        }
        self.release_uncopied();
    }

    /// Whether a CONNACK has to wait since there is no copy of the will yet, and another node that is to have it: one that was silent for a while, and will be heard
    /// again or removed.
    pub(crate) fn waits_for_copy(&self, id: ConnId) -> bool {
        let may = |link: &Link| link.member && link.serves && link.version >= VERSION;
        !self.peers.hidden
            && !self.wills.at.contains_key(&id)
            && self.peers.links.iter().any(may)
            && self.will_record(id).is_some()
    }

    /// Its CONNACK leaves when there is one, or nobody to have it.
    pub(crate) fn uncopied(&mut self, id: ConnId) {
        self.wills.uncopied.push(id);
    }

    fn release_uncopied(&mut self) {
        for id in std::mem::take(&mut self.wills.uncopied) {
            self.connack_when_routed(id);
        }
    }

    pub(crate) fn will_copied(&mut self, from: u16, number: Number, copied: Copied, record: &[u8]) {
        self.wills.stale.get_mut(&from).and_then(|stale| stale.remove(&number));
        let rank = match copied {
            Copied::Alone => Some(Rank::Alone),
            Copied::OfTwo { first: 0 } => Some(Rank::First),
            Copied::OfTwo { first } => {
                let place = self.peers.links.iter().rposition(|link| link.name == first);
                let place = place.map(|at| (at as u16, self.peers.links[at].member));
                place.map(|(at, is_member)| if is_member { Rank::Behind(at) } else { Rank::First })
            }
        };
        if let Some(rank) = rank
            && self.wills.copies() < COPIES_MAX
        {
            let record = Bytes::copy_from_slice(record);
            self.wills.of.entry(from).or_default().insert(number, Copy { rank, record });
        } else {
            self.stats.wills_not_kept += 1;
        }
    }

    pub(crate) fn will_ended(&mut self, from: u16, number: Number, answer: bool) {
        for wills in [&mut self.wills.of, &mut self.wills.stale] {
            wills.get_mut(&from).and_then(|wills| wills.remove(&number));
        }
        if answer {
            self.peers.send(from, &Parcel::WillGone { number });
        }
    }

    /// A peer begins to tell all that it has.
    pub(crate) fn wills_begin(&mut self, from: u16) {
        let of = self.wills.of.remove(&from).unwrap_or_default();
        self.wills.stale.entry(from).or_default().extend(of);
    }

    pub(crate) fn wills_end(&mut self, from: u16) {
        self.wills.stale.remove(&from);
    }

    /// A peer is no member any more.
    pub(crate) fn wills_orphaned(&mut self, peer: u16) {
        self.without_keeper(peer);
        let of = self.wills.of.remove(&peer).unwrap_or_default();
        let stale = self.wills.stale.remove(&peer).unwrap_or_default();
        let mut held = Copies::new();
        for (number, copy) in stale.into_iter().chain(of) {
            match copy.rank {
                Rank::Alone => self.wills.due.push(copy.record),
                Rank::First | Rank::Behind(_) => drop(held.insert(number, copy)),
            }
        }
        let is_first = held.values().any(|copy| copy.rank == Rank::First);
        if !held.is_empty() {
            self.wills.held.insert(peer, held);
        }
        // Somebody may have one behind this shard that this shard does not have.
        if is_first || (self.limits.will_copies > 1 && !self.peers.hidden) {
            self.wills.to_ask.insert(peer);
        }
        self.wills.without(peer);
        self.copy_wills();
    }

    /// A keeper of our wills is gone: who was behind it is the first.
    fn without_keeper(&mut self, peer: u16) {
        let theirs = self.wills.at.iter().filter(|(_, kept)| kept.peers().any(|keeper| keeper == peer));
        let mut theirs: Vec<(ConnId, Kept)> = theirs.map(|(id, kept)| (*id, *kept)).collect();
        theirs.sort_unstable_by_key(|(id, _)| id.to_bits());
        for (id, kept) in theirs {
            let Some(left) = kept.peers().find(|keeper| *keeper != peer) else {
                self.wills.at.remove(&id);
                continue;
            };
            self.wills.at.insert(id, Kept { first: left, second: None });
            if left != kept.first
                && let Some(record) = self.will_record(id)
            {
                self.send_copy(left, None, id, &record);
            }
        }
        let answered = self.wills.ending.extract_if(.., |_, (waits, _)| {
            waits.retain(|keeper| *keeper != peer);
            waits.is_empty()
        });
        self.wills.postponed.extend(answered.map(|(_, (_, mine))| mine));
    }

    /// What others have of shards that are gone is asked for, since it could be published now.
    fn ask_for_wills(&mut self) {
        let view = self.owners.view;
        for owner in std::mem::take(&mut self.wills.to_ask) {
            let name = self.peers.links.get(usize::from(owner)).map_or(0, |link| link.name);
            let links = self.peers.links.iter().enumerate().map(|(at, link)| (at as u16, link));
            let may = links.filter(|(_, link)| link.serves && link.member && link.version >= PAIRS);
            let waits: BTreeSet<u16> = may.map(|(at, _)| at).collect();
            self.wills.asked_last += 1;
            let number = self.wills.asked_last;
            for peer in &waits {
                self.peers.send(*peer, &Parcel::WillsAsk { number, view, owner: name });
            }
            self.wills.asking.insert(owner, Asking { number, waits });
        }
    }

    /// A peer asks for what this shard has behind it.
    pub(crate) fn wills_asked(&mut self, from: u16, number: Number, about: (u64, u64)) {
        self.wills.asked.insert((from, number), about);
        self.yield_wills();
    }

    /// Answers who asked about a shard of which nothing comes any more.
    pub(crate) fn yield_wills(&mut self) {
        let view = self.owners.view;
        let known: Vec<_> = self.wills.asked.extract_if(.., |_, (of, _)| *of <= view).collect();
        for ((from, number), (_, owner)) in known {
            for (at, held) in &mut self.wills.held {
                if self.peers.links.get(usize::from(*at)).is_some_and(|link| link.name == owner) {
                    held.retain(|_, copy| copy.rank != Rank::Behind(from));
                }
            }
            self.wills.held.retain(|_, held| !held.is_empty());
            self.peers.send(from, &Parcel::WillsYield { number });
        }
    }

    /// A peer has nothing behind this shard any more.
    pub(crate) fn wills_yielded(&mut self, from: u16, number: Number) {
        let asking = self.wills.asking.values_mut().find(|asking| asking.number == number);
        if asking.is_some_and(|asking| asking.waits.remove(&from) && asking.waits.is_empty()) {
            self.publish_wills();
        }
    }

    /// Publishes what waits, if it may.
    pub(crate) fn publish_wills(&mut self) {
        if self.wills.is_idle() || self.standing.parks() || self.peers.hidden || !self.knows_sessions() {
            return;
        }
        self.ask_for_wills();
        self.wills.take_yielded();
        for record in std::mem::take(&mut self.wills.due) {
            let Ok(session) = record::Session::from_bytes(&record) else { continue };
            let Some(will) = session.will.map(Will::from_record) else { continue };
            let publisher = Publisher {
                client_id: session.client_id.into(),
                username: session.username.map(Into::into),
                host: None,
                role: Role::Device,
            };
            self.stats.wills_inherited += 1;
            self.publish_will(None, &publisher, &will, false);
        }
        for (publisher, will) in std::mem::take(&mut self.wills.postponed) {
            self.publish_will(None, &publisher, &will, false);
        }
    }

    /// This node was removed: wills that have copies are others' now, and those that it has copies of have others.
    pub(crate) fn give_up_wills(&mut self) {
        let wills = &mut self.wills;
        for copies in [&mut wills.of, &mut wills.stale, &mut wills.held] {
            copies.clear();
        }
        wills.ending.clear();
        wills.to_ask.clear();
        wills.asking.clear();
        wills.asked.clear();
        let mut all: Vec<ConnId> = std::mem::take(&mut self.wills.at).into_keys().collect();
        all.sort_unstable_by_key(|id| id.to_bits());
        for id in all {
            if let Some(session) = self.session_of(id).and_then(|key| self.sessions.get_mut(key)) {
                session.will = None;
            }
            let text = "this node was removed from its cluster, and others have published your will";
            self.reject(id, Why::new(ReasonCode::SERVER_BUSY, text));
        }
        self.release_uncopied();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two shards for each node, by what each is: live and of a version that knows pairs, or not.
    fn nodes(pairs: &[bool]) -> Vec<Candidate> {
        let shards = pairs.iter().enumerate().flat_map(|(node, pairs)| {
            let first = 2 * node as u16;
            [first, first + 1].map(|peer| Candidate {
                peer,
                node: first,
                name: 1_000 + u64::from(peer),
                pairs: *pairs,
            })
        });
        shards.collect()
    }

    fn node_of(peer: u16) -> u16 {
        peer / 2
    }

    /// Copies; nodes; a first that is known, and how many copies there are then, and at which nodes none is.
    #[test]
    fn copies_are_of_different_nodes_that_can_have_them() {
        type Case = (u8, &'static [bool], Option<u16>, usize, &'static [u16]);
        let cases: &[Case] = &[
            (1, &[], None, 0, &[]),
            (2, &[], None, 0, &[]),
            (1, &[true, true, true], None, 1, &[]),
            (1, &[false, false], None, 1, &[]),
            (2, &[true], None, 1, &[]),
            (2, &[true, true], None, 2, &[]),
            (2, &[true, true, true], None, 2, &[]),
            // Of those who can have one of two the one that there is, so that another may follow.
            (2, &[true, false, false], None, 1, &[1, 2]),
            (2, &[false, false, false], None, 1, &[]),
            (2, &[true, false, true], None, 2, &[1]),
            // One that has it keeps it.
            (2, &[true, true, true], Some(0), 2, &[]),
            (2, &[false, true, true], Some(1), 1, &[1, 2]),
            (1, &[true, true, true], Some(5), 1, &[0, 1]),
        ];
        for (copies, pairs, first, count, without) in cases {
            let all = nodes(pairs);
            let first_at = first.and_then(|first| all.iter().find(|one| one.peer == first)).copied();
            for number in 0..200 {
                let kept = keepers(number, *copies, first_at, &all);
                // Whether there is a link to who has it makes no difference.
                let others: Vec<Candidate> = all
                    .iter()
                    .filter(|one| Some(one.node) != first_at.map(|first| first.node))
                    .copied()
                    .collect();
                assert_eq!(kept, keepers(number, *copies, first_at, &others));
                let peers: Vec<u16> = kept.into_iter().flat_map(Kept::peers).collect();
                let told = format!("{copies} {pairs:?} {first:?} {number}: {peers:?}");
                assert_eq!(peers.len(), *count, "{told}");
                let at: BTreeSet<u16> = peers.iter().map(|peer| node_of(*peer)).collect();
                assert_eq!(at.len(), *count, "{told}");
                assert!(at.iter().all(|node| !without.contains(node)), "{told}");
                assert!(first.is_none() || *first == peers.first().copied(), "{told}");
            }
        }
    }

    #[test]
    fn the_second_is_who_would_be_the_first_without_the_first() {
        let all = nodes(&[true; 4]);
        let mut firsts = BTreeMap::<u16, u32>::new();
        for number in 0..4_000 {
            let kept = keepers(number, 2, None, &all).unwrap_or(Kept { first: 99, second: None });
            let without: Vec<Candidate> =
                all.iter().filter(|other| other.node != node_of(kept.first) * 2).copied().collect();
            let next = keepers(number, 1, None, &without).map(|kept| kept.first);
            assert_eq!(kept.second, next);
            *firsts.entry(kept.first).or_default() += 1;
        }
        assert!(firsts.len() == 8 && firsts.values().all(|count| *count > 300), "spread: {firsts:?}");
    }
}
