//! Exclusive subscriptions: `$exclusive/{filter}`, an extension that EMQX made known. One client at a time has one, in all of a cluster.
//!
//! # Data
//! A filter's text belongs to one shard of a node ([`crate::peers::Place::owner`]), its *desk* there, which alone says who of the node's clients has it. What
//! other nodes have they say when they are asked: nobody keeps it for them, and nothing has to be handed over when members change.
//!
//! # Operation
//! ```text
//!  client's shard: Claim ----> desk                    the client is not heard meanwhile
//!  desk: Holds ----> all shards of all nodes           since when, as connections have it (`presence.rs`)
//!  another node's desk: Holds ----> desk               only if a client of its has it for longer
//!  all: RouteAck ----> desk                            behind that
//!  desk: ClaimAck ----> client's shard
//! ```
//! Then its SUBSCRIBE goes on, with the filters that somebody else has refused. What is held is given back with UNSUBSCRIBE, or with the end of the session: the
//! next one who asks finds nobody. For all else it is a subscription to the filter behind the prefix, beside a plain one that the session may have to the same.
//!
//! A desk asks only while all sessions that are stored are known to somebody who can answer (`Shard::knows_sessions`), and asks again if the
//! members have changed when it has been answered. Its client's SUBACK waits until this node may acknowledge (`standing.rs`).
//!
//! # Invariants
//! - Of two who claim, who has it for longer keeps it, at all nodes alike. Whoever asks knows the times of all that there are: each was told to all shards before
//!   it was granted. So who has been granted it loses it only by what was granted apart: in a partition.
//! - Sessions that the store brings back had it before everybody: they claim it before anybody can connect, or before their adoption is told.
//! - What a node's clients have that is no live member they have behind all others: what was granted without it stays. As it goes live, knowing all times, it takes
//!   one for what is left.
//! - Who loses what he was granted has the subscription no more, and is disconnected (0x97), so that he finds out ([`Shard::claim_lost`]).
//! - A claim is granted again to the client that has it: whoever asks twice, on a new connection, or at another node, keeps it.
//! - A claim that comes back to nobody is given back, unless its client has the subscription by now or has asked again.
//!
//! # Bounds
//! What is held is somebody's subscription, of which there is a bound; a connection has one SUBSCRIBE waiting.
//!
//! # Not yet
//! Nodes of version 2 of the protocol do not know of it: among them and towards them each has its own, until all are of version 3 and their links new.

use crate::ConnId;
use crate::config;
use crate::ending::Why;
use crate::hook::Hook;
use crate::parcel::Parcel;
use crate::peers::Late;
use crate::presence::Since;
use crate::session::Publishing;
use crate::shard::Shard;
use ferrule_mqtt::{Packet, ReasonCode, Subscribe, decode, topic};
use ferrule_store::{Op, Store};
use foldhash::{HashMap, HashMapExt};
use std::sync::Arc;

/// A shard's part of it.
#[derive(Debug)]
pub(crate) struct Exclusive {
    /// Clients of this node that have a filter or claim it, of those that this shard decides on.
    holders: HashMap<Box<str>, Held>,
    /// Filters that are to be asked for when all sessions are known.
    unsettled: Vec<Box<str>>,
    /// Claims whose answer is due, by number.
    asked: HashMap<u64, Asked>,
    last: u64,
}

#[derive(Debug)]
struct Held {
    client_id: Arc<str>,
    since: Since,
    /// All have been asked.
    is_granted: bool,
    /// The view in which they have been asked.
    view: u64,
    /// Claims that wait for that: the shard, and its number of it.
    waiting: Vec<(u16, u64)>,
}

/// The protocol between nodes that knows of it.
pub(crate) const VERSION: u32 = 3;

/// Since when those have it whom the store brings back: before all others.
const RESTORED: u64 = 1;
/// And clients of a node that is no live member, until it is one.
const LAST: u64 = u64::MAX;

#[derive(Debug)]
struct Asked {
    conn: ConnId,
    client_id: Arc<str>,
    filter: Box<str>,
}

/// A SUBSCRIBE that waits.
#[derive(Debug)]
pub(crate) struct Claiming {
    packet: Vec<u8>,
    /// Answers that are due.
    due: usize,
    refused: Vec<Box<str>>,
}

impl Exclusive {
    pub(crate) fn new() -> Self {
        Self { holders: HashMap::new(), unsettled: Vec::new(), asked: HashMap::new(), last: 0 }
    }

    fn free(&mut self, filter: &str, client_id: &str) {
        if self.holders.get(filter).is_some_and(|held| *held.client_id == *client_id) {
            self.holders.remove(filter);
        }
    }

    /// All that is held here or claimed, in an order of its own.
    pub(crate) fn filters(&self) -> Vec<Box<str>> {
        let mut all: Vec<Box<str>> = self.holders.keys().cloned().collect();
        all.sort_unstable();
        all
    }
}

impl<H: Hook, S: Store> Shard<H, S> {
    /// Claims what a SUBSCRIBE asks to have alone. The filters that somebody else has; none: that is not known yet, and the
    /// SUBSCRIBE waits.
    pub(crate) fn claim_all(&mut self, id: ConnId, subscribe: &Subscribe<'_>) -> Option<Vec<Box<str>>> {
        let mut refused = Vec::new();
        if !subscribe.filters.iter().any(|(named, _)| named.starts_with(topic::EXCLUSIVE_PREFIX)) {
            return Some(refused);
        }
        let conn = self.conns.get(id)?;
        let (version, access) = (conn.version, Arc::clone(&conn.access));
        let session = self.sessions.get(conn.session?)?;
        let (client_id, features) = (Arc::clone(&session.client_id), Arc::clone(&self.features));
        let mut due = 0;
        let place = self.peers.place;
        for (named, _) in subscribe.filters.iter().filter(|(named, _)| access.subscribe(named)) {
            let Some(session) = self.by_client(&client_id).and_then(|key| self.sessions.get(key)) else {
                break;
            };
            let meant = features.rewrites.filter(named, &client_id, session.username.as_deref());
            let is_new = topic::exclusive(&meant).is_some() && session.filter(&meant).is_none();
            if !is_new || topic::validate_filter(&meant).is_err() {
                continue;
            }
            let owner = place.owner(&meant);
            self.exclusive.last += 1;
            let number = self.exclusive.last;
            if owner == place.index {
                match self.decide((owner, number), &meant, &client_id) {
                    Some(true) => continue,
                    Some(false) => {
                        refused.push((*meant).into());
                        continue;
                    }
                    None => {}
                }
            }
            let asked = Asked { conn: id, client_id: Arc::clone(&client_id), filter: (*meant).into() };
            self.exclusive.asked.insert(number, asked);
            if owner != place.index {
                self.peers.send(owner, &Parcel::Claim { number, filter: &meant, client_id: &client_id });
            }
            due += 1;
        }
        if due == 0 {
            return Some(refused);
        }
        let mut packet = Vec::new();
        // It came as a packet: it is one again.
        let _ = Packet::Subscribe(*subscribe).encode(version, &mut packet);
        if let Some(conn) = self.conns.get_mut(id) {
            conn.publishing.make().claiming = Some(Box::new(Claiming { packet, due, refused }));
        }
        None
    }

    /// A client of another shard asks. Number 0: it had it before the start, and needs no answer.
    pub(crate) fn claimed(&mut self, from: u16, number: u64, filter: &str, client_id: &str) {
        if let Some(granted) = self.decide((from, number), filter, client_id) {
            self.answer_claim((from, number), granted);
        }
    }

    /// Whether a client has it now; none: others are asked, and the claim is answered later.
    fn decide(&mut self, claim: (u16, u64), filter: &str, client_id: &str) -> Option<bool> {
        let (_, number) = claim;
        let is_restored = number == 0;
        let since = if is_restored { (RESTORED, self.peers.place.seed) } else { self.claims_since() };
        let mut lost = false;
        match self.exclusive.holders.get_mut(filter) {
            Some(held) if *held.client_id == *client_id && held.is_granted => return Some(true),
            Some(held) if *held.client_id == *client_id && !is_restored => {
                held.waiting.push(claim);
                return None;
            }
            Some(held) if *held.client_id == *client_id => {}
            Some(held) if !is_restored || held.since <= since => {
                if is_restored {
                    self.tell_lost(filter, client_id);
                }
                return Some(false);
            }
            Some(_) => lost = true,
            None => {}
        }
        if lost {
            self.lose_claim(filter);
        }
        let is_granted = is_restored || !self.peers.clustered;
        let waiting = Vec::new();
        let held = Held { client_id: client_id.into(), since, is_granted, view: 0, waiting };
        let before = self.exclusive.holders.insert(filter.into(), held);
        before.into_iter().flat_map(|held| held.waiting).for_each(|claim| self.answer_claim(claim, true));
        if is_restored && self.peers.clustered {
            self.tell_holds(filter);
        } else if !is_granted {
            self.ask_others(filter);
        }
        let held = self.exclusive.holders.get_mut(filter)?;
        if held.is_granted {
            return Some(true);
        }
        held.waiting.push(claim);
        None
    }

    fn claims_since(&mut self) -> Since {
        let stamp = if self.peers.hidden { LAST } else { self.presence.next(self.now) };
        (stamp, self.peers.place.seed)
    }

    fn answer_claim(&mut self, (shard, number): (u16, u64), granted: bool) {
        if number == 0 {
        } else if shard == self.peers.place.index {
            self.claim_answered(number, granted);
        } else {
            self.peers.send(shard, &Parcel::ClaimAck { number, granted });
        }
    }

    fn tell_holds(&mut self, filter: &str) {
        if let Some(Held { since, client_id, .. }) = self.exclusive.holders.get(filter) {
            self.peers.tell_all(|version| Parcel::Holds { version, since: *since, filter, client_id });
        }
    }

    /// Asks all other nodes whether a client of theirs has it, when all sessions are somebody's.
    fn ask_others(&mut self, filter: &str) {
        let view = self.knows_sessions_in();
        let Some(held) = self.exclusive.holders.get_mut(filter) else { return };
        let Some(view) = view else {
            self.exclusive.unsettled.push(filter.into());
            return;
        };
        held.view = view;
        let since = held.since;
        self.tell_holds(filter);
        self.when_routed(Late::Claim(filter.into(), since));
    }

    /// All sessions are known to somebody.
    pub(crate) fn ask_unsettled(&mut self) {
        for filter in std::mem::take(&mut self.exclusive.unsettled) {
            if self.exclusive.holders.get(&filter).is_some_and(|held| !held.is_granted) {
                self.ask_others(&filter);
            }
        }
    }

    /// All who were asked have answered, or need not.
    pub(crate) fn claim_confirmed(&mut self, filter: &str, since: Since) {
        let view = self.knows_sessions_in();
        let held = self.exclusive.holders.get_mut(filter);
        let Some(held) = held.filter(|held| held.since == since && !held.is_granted) else { return };
        if view != Some(held.view) {
            // Sessions may have been adopted by who was asked before.
            self.ask_others(filter);
            return;
        }
        held.is_granted = true;
        for claim in std::mem::take(&mut held.waiting) {
            self.answer_claim(claim, true);
        }
    }

    /// Too much waits for other nodes.
    pub(crate) fn claim_given_up(&mut self, filter: &str) {
        let is_granted = self.exclusive.holders.get(filter).is_none_or(|held| held.is_granted);
        if !is_granted {
            self.lose_claim(filter);
        }
    }

    /// A client of another node has it or claims it.
    pub(crate) fn holds_elsewhere(&mut self, from: u16, since: Since, filter: &str, client_id: &str) {
        if since.0 != LAST {
            self.presence.saw(since);
        }
        let place = self.peers.place;
        if !self.peers.is_remote(from) || place.owner(filter) != place.index {
            return;
        }
        let Some(held) = self.exclusive.holders.get(filter) else { return };
        if *held.client_id == *client_id {
            return; // It has moved, and is about to give it back here, or has moved here since.
        }
        if held.since <= since {
            let (since, client_id) = (held.since, Arc::clone(&held.client_id));
            let version = self.peers.version();
            self.peers.send(from, &Parcel::Holds { version, since, filter, client_id: &client_id });
        } else {
            self.lose_claim(filter);
        }
    }

    /// Who has been told to a peer that is told all.
    pub(crate) fn tell_held(&mut self, peer: u16, filter: &str) {
        let Some(Held { since, client_id, .. }) = self.exclusive.holders.get(filter) else { return };
        let version = self.peers.version();
        self.peers.send(peer, &Parcel::Holds { version, since: *since, filter, client_id });
    }

    /// Another node's client has it for longer.
    fn lose_claim(&mut self, filter: &str) {
        let Some(held) = self.exclusive.holders.remove(filter) else { return };
        for claim in held.waiting {
            self.answer_claim(claim, false);
        }
        if held.is_granted {
            self.tell_lost(filter, &held.client_id);
        }
    }

    fn tell_lost(&mut self, filter: &str, client_id: &str) {
        match self.belongs_elsewhere(client_id) {
            Some(shard) => self.peers.send(shard, &Parcel::ClaimLost { filter, client_id }),
            None => self.claim_lost(filter, client_id),
        }
    }

    /// A client has a subscription no more that it was granted.
    pub(crate) fn claim_lost(&mut self, filter: &str, client_id: &str) {
        let Some(key) = self.by_client(client_id) else { return };
        let Some(session) = self.sessions.get_mut(key) else { return };
        let (store_id, conn) = (session.store_id(), session.conn);
        if session.unsubscribe(filter).is_none() {
            return;
        }
        self.stats.exclusive_lost += 1;
        self.filter_bytes -= config::FILTER + filter.len();
        self.remove_route(key, filter);
        if let Some(session) = store_id {
            self.op(Op::SubscriptionDelete { session, filter: filter.into() }, true);
        }
        if let Some(conn) = conn {
            let text = "another client has an exclusive subscription of yours since before you: the cluster was parted";
            self.disconnect(conn, Why::new(ReasonCode::QUOTA_EXCEEDED, text));
        }
    }

    /// This node was removed: whatever others are granted until it is a live member again is theirs.
    pub(crate) fn claim_last(&mut self) {
        let seed = self.peers.place.seed;
        self.exclusive.holders.values_mut().for_each(|held| held.since = (LAST, seed));
    }

    /// It is one: it knows what others have, and what its clients have nobody else has.
    pub(crate) fn claim_anew(&mut self) {
        for filter in self.exclusive.filters() {
            let since = self.claims_since();
            let Some(held) = self.exclusive.holders.get_mut(&filter).filter(|held| held.since.0 == LAST)
            else {
                continue;
            };
            held.since = since;
            if held.is_granted {
                self.tell_holds(&filter);
            } else {
                self.ask_others(&filter);
            }
        }
    }

    /// The answer to a claim.
    pub(crate) fn claim_answered(&mut self, number: u64, granted: bool) {
        let Some(Asked { conn: id, client_id, filter }) = self.exclusive.asked.remove(&number) else {
            return;
        };
        let publishing = self.conns.get_mut(id).and_then(|conn| conn.publishing.get_mut());
        let Some(claiming) = publishing.and_then(|p: &mut Publishing| p.claiming.as_mut()) else {
            let session = self.by_client(&client_id).and_then(|key| self.sessions.get(key));
            let is_had = session.is_some_and(|session| session.filter(&filter).is_some());
            let asks_again =
                self.exclusive.asked.values().any(|a| a.client_id == client_id && a.filter == filter);
            if granted && !is_had && !asks_again {
                self.release_claim(&filter, &client_id);
            }
            return;
        };
        claiming.due -= 1;
        if !granted {
            claiming.refused.push(filter);
        }
        if claiming.due > 0 {
            return;
        }
        let Some(conn) = self.conns.get_mut(id) else { return };
        let version = conn.version;
        let Some(claiming) = conn.publishing.make().claiming.take() else { return };
        if let Ok(Some((Packet::Subscribe(subscribe), _))) =
            decode(&claiming.packet, Some(version), usize::MAX)
        {
            self.subscribe_to(id, &subscribe, &claiming.refused);
        }
        self.hear(id);
    }

    /// A client has it no more.
    pub(crate) fn release_claim(&mut self, filter: &str, client_id: &str) {
        let owner = self.peers.place.owner(filter);
        if owner == self.peers.place.index {
            self.exclusive.free(filter, client_id);
        } else {
            self.peers.send(owner, &Parcel::Release { filter, client_id });
        }
    }

    /// Of another shard's client.
    pub(crate) fn claim_released(&mut self, filter: &str, client_id: &str) {
        self.exclusive.free(filter, client_id);
    }

    /// What a session had before the start, or at another node.
    pub(crate) fn claim_again(&mut self, filter: &str, client_id: &str) {
        let owner = self.peers.place.owner(filter);
        if owner == self.peers.place.index {
            self.claimed(owner, 0, filter, client_id);
        } else {
            self.peers.send(owner, &Parcel::Claim { number: 0, filter, client_id });
        }
    }
}
