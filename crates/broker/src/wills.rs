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
//! # Invariants
//! - A will is its connection's: published at most once, by its node or by its keeper. It is lost if both die at once, or its node in the round trip between the
//!   two after the connection has ended. (A client that says goodbye to a node which has just lost touch and is then removed gets its will published all the same.)
//! - Of a link that is made anew a node tells all copies again, so that none is left of connections that ended meanwhile.
//!
//! # Bounds
//! [`COPIES_MAX`] copies of others, [`POSTPONED_MAX`] wills of connections that ended while the node might not acknowledge; what comes beyond is not kept
//! (`wills_not_kept`). What waits for a keeper's answer had a copy there while its connection was open.

use crate::ConnId;
use crate::ending::Why;
use crate::hook::{Hook, Publisher, Role};
use crate::nodes::Reach;
use crate::parcel::{Number, Parcel};
use crate::session::Will;
use crate::shard::Shard;
use bytes::Bytes;
use ferrule_mqtt::ReasonCode;
use ferrule_store::Store;
use ferrule_store::record::{self, Record};
use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;
use std::sync::Arc;

/// The protocol between nodes that knows of copies.
const VERSION: u32 = 2;

/// As many connections as a large node has.
const COPIES_MAX: usize = 1_000_000;

type Mine = (Arc<Publisher>, Box<Will>);

/// A node that is cut off may stay so for hours, while clients come and go.
const POSTPONED_MAX: usize = 100_000;

/// What a shard knows of wills that are copied.
#[derive(Debug, Default)]
pub(crate) struct Wills {
    /// Where those of our connections are.
    at: HashMap<ConnId, u16>,
    /// Those of other shards, by the connection's number. Ordered: what is simulated can be repeated.
    of: BTreeMap<u16, BTreeMap<Number, Bytes>>,
    /// What was known of those before their shard began to tell them again.
    stale: BTreeMap<u16, BTreeMap<Number, Bytes>>,
    /// Of shards that are gone: to be published.
    due: Vec<Bytes>,
    /// Of our connections that have ended: until the keeper has answered.
    ending: BTreeMap<Number, (u16, Mine)>,
    /// And until this node may acknowledge.
    postponed: Vec<Mine>,
}

impl Wills {
    /// Nothing waits to be published.
    pub(crate) fn is_idle(&self) -> bool {
        self.due.is_empty() && self.postponed.is_empty()
    }
}

impl<H: Hook, S: Store> Shard<H, S> {
    /// A live member that a connection's will is copied to.
    fn will_keeper(&self, id: ConnId) -> Option<u16> {
        if self.peers.hidden {
            return None; // Nobody is to publish what is this node's before it serves: it is told of its removal only then.
        }
        let links = self.peers.links.iter().enumerate();
        let may =
            links.filter(|(_, link)| link.reach == Reach::Told && link.waits && link.version >= VERSION);
        let weight = |name: u64| foldhash::fast::FixedState::with_seed(name).hash_one(id.to_bits());
        may.max_by_key(|(at, link)| (weight(link.name), *at)).map(|(at, _)| at as u16)
    }

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
        if self.wills.at.contains_key(&id) {
            return;
        }
        let Some(record) = self.will_record(id) else { return };
        if let Some(peer) = self.will_keeper(id) {
            self.wills.at.insert(id, peer);
            self.peers.send(peer, &Parcel::WillCopy { number: id.to_bits(), record: &record });
        }
    }

    /// It has ended, or has no will any more.
    pub(crate) fn end_will(&mut self, id: ConnId) {
        if let Some(peer) = self.wills.at.remove(&id) {
            self.peers.send(peer, &Parcel::WillEnded { number: id.to_bits(), answer: false });
        }
    }

    /// It has ended, and its will is to be published: now, if that is given back, or when it may be.
    pub(crate) fn end_with_will(
        &mut self,
        id: ConnId,
        publisher: &Arc<Publisher>,
        will: Box<Will>,
    ) -> Option<Box<Will>> {
        if let Some(peer) = self.wills.at.remove(&id) {
            let number = id.to_bits();
            self.peers.send(peer, &Parcel::WillEnded { number, answer: true });
            self.wills.ending.insert(number, (peer, (Arc::clone(publisher), will)));
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

    /// Its keeper has no copy any more.
    pub(crate) fn will_gone(&mut self, from: u16, number: Number) {
        if self.wills.ending.get(&number).is_some_and(|(peer, _)| *peer == from)
            && let Some((_, (publisher, will))) = self.wills.ending.remove(&number)
        {
            self.publish_will(None, &publisher, &will, false);
        }
    }

    /// A link to a peer is there: it is told which of our wills it has, between the beginning and the end of all routes.
    pub(crate) fn tell_will(&mut self, peer: u16, id: ConnId) {
        if self.wills.at.get(&id) == Some(&peer)
            && let Some(record) = self.will_record(id)
        {
            self.peers.send(peer, &Parcel::WillCopy { number: id.to_bits(), record: &record });
        }
    }

    /// And which it is asked to forget.
    pub(crate) fn tell_endings(&mut self, peer: u16) {
        for (&number, (keeper, _)) in &self.wills.ending {
            if *keeper == peer {
                self.peers.send(peer, &Parcel::WillEnded { number, answer: true });
            }
        }
    }

    /// Wills that nobody has a copy of are copied: there is one more member, or one less.
    pub(crate) fn copy_wills(&mut self) {
        let mut all = self.presence.connections();
        all.retain(|id| !self.wills.at.contains_key(id));
        all.sort_unstable_by_key(|id| id.to_bits());
        all.into_iter().for_each(|id| self.copy_will(id));
    }

    pub(crate) fn will_copied(&mut self, from: u16, number: Number, record: &[u8]) {
        self.wills.stale.get_mut(&from).and_then(|stale| stale.remove(&number));
        if self.wills.of.values().map(BTreeMap::len).sum::<usize>() < COPIES_MAX {
            self.wills.of.entry(from).or_default().insert(number, Bytes::copy_from_slice(record));
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
        let of = self.wills.of.remove(&peer).unwrap_or_default();
        let stale = self.wills.stale.remove(&peer).unwrap_or_default();
        self.wills.due.extend(of.into_values().chain(stale.into_values()));
        self.wills.at.retain(|_, at| *at != peer);
        let ending = self.wills.ending.extract_if(.., |_, (keeper, _)| *keeper == peer);
        self.wills.postponed.extend(ending.map(|(_, (_, mine))| mine));
        self.copy_wills();
    }

    /// Publishes what waits, if it may.
    pub(crate) fn publish_wills(&mut self) {
        if self.wills.is_idle() || self.standing.parks() || self.peers.hidden || !self.knows_sessions() {
            return;
        }
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
        self.wills.of.clear();
        self.wills.stale.clear();
        self.wills.ending.clear();
        let mut all: Vec<ConnId> = std::mem::take(&mut self.wills.at).into_keys().collect();
        all.sort_unstable_by_key(|id| id.to_bits());
        for id in all {
            if let Some(session) = self.session_of(id).and_then(|key| self.sessions.get_mut(key)) {
                session.will = None;
            }
            let text = "this node was removed from its cluster, and others have published your will";
            self.reject(id, Why::new(ReasonCode::SERVER_BUSY, text));
        }
    }
}
