//! Exclusive subscriptions: `$exclusive/{filter}`, an extension that EMQX made known. One client at a time has one.
//!
//! # Operation
//! A filter's text belongs to one shard ([`crate::peers::Place::owner`]), which alone says who has it. A client of another shard claims
//! it by a parcel, and is not heard until the answer; then its SUBSCRIBE goes on, with the filters that somebody else has refused.
//! What is held is given back with UNSUBSCRIBE, or with the end of the session. For all else it is a subscription to the filter
//! behind the prefix, beside a plain one that the session may have to the same.
//!
//! # Invariants
//! - A claim is granted again to the client that has it: whoever asks twice, or on a new connection, keeps it.
//! - A claim that comes back to nobody is given back, unless its client has the subscription by now or has asked again.
//! - Sessions that the store brings back have what they had: they claim it before anybody can connect.
//!
//! # Bounds
//! What is held is somebody's subscription, of which there is a bound; a connection has one SUBSCRIBE waiting.

use crate::ConnId;
use crate::hook::Hook;
use crate::parcel::Parcel;
use crate::session::Publishing;
use crate::shard::Shard;
use ferrule_mqtt::{Packet, Subscribe, decode, topic};
use ferrule_store::Store;
use foldhash::{HashMap, HashMapExt};
use std::collections::hash_map::Entry;
use std::sync::Arc;

/// A shard's part of it.
#[derive(Debug)]
pub(crate) struct Exclusive {
    /// Who has a filter, of those that this shard decides on.
    holders: HashMap<Box<str>, Arc<str>>,
    /// Claims whose answer is due, by number.
    asked: HashMap<u64, Asked>,
    last: u64,
}

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
        Self { holders: HashMap::new(), asked: HashMap::new(), last: 0 }
    }

    /// Whether the client has it now.
    fn grant(&mut self, filter: &str, client_id: &str) -> bool {
        match self.holders.entry(filter.into()) {
            Entry::Occupied(held) => **held.get() == *client_id,
            Entry::Vacant(free) => {
                free.insert(client_id.into());
                true
            }
        }
    }

    fn free(&mut self, filter: &str, client_id: &str) {
        if self.holders.get(filter).is_some_and(|holder| **holder == *client_id) {
            self.holders.remove(filter);
        }
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
            if owner == place.index {
                if !self.exclusive.grant(&meant, &client_id) {
                    refused.push((*meant).into());
                }
                continue;
            }
            self.exclusive.last += 1;
            let number = self.exclusive.last;
            let asked = Asked { conn: id, client_id: Arc::clone(&client_id), filter: (*meant).into() };
            self.exclusive.asked.insert(number, asked);
            self.peers.send(owner, &Parcel::Claim { number, filter: &meant, client_id: &client_id });
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
        let granted = self.exclusive.grant(filter, client_id);
        if number != 0 {
            self.peers.send(from, &Parcel::ClaimAck { number, granted });
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

    /// What a session had before the start.
    pub(crate) fn claim_again(&mut self, filter: &str, client_id: &str) {
        let owner = self.peers.place.owner(filter);
        if owner == self.peers.place.index {
            self.exclusive.grant(filter, client_id);
        } else {
            self.peers.send(owner, &Parcel::Claim { number: 0, filter, client_id });
        }
    }
}
