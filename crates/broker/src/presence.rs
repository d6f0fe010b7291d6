//! One connection per client id, on whichever node of a cluster.
//!
//! # Operation
//! A connection that is accepted is told to all shards of other nodes with a stamp, and its CONNACK leaves when each live member has said that it knows:
//! it rides the stream of routes, and their barrier ([`crate::peers`]), of which shards of this process are a part. Who has an older connection of the same client id closes it (0x8E), as if the new one had come to
//! itself. Stamps are ordered by a clock that never goes back, and raised by those of others; of two that are equal the shard with the higher number
//! drawn at its start wins. So of two at once one is left, and both sides agree on which. On a new link each side tells all its connections,
//! behind its routes: what was doubled in a partition is resolved when it heals.
//!
//! A node that is no live member does not wait: nobody might be there to answer.
//!
//! A session that outlives its connection moves with its client ([`crate::owners`]).

use crate::ConnId;
use crate::hook::Hook;
use crate::parcel::Parcel;
use crate::shard::Shard;
use ferrule_mqtt::ReasonCode;
use ferrule_store::{Now, Store};
use std::collections::HashMap;
use std::sync::Arc;

/// When it connected, and the number of its shard.
pub(crate) type Since = (u64, u64);

/// Connections of a shard of a cluster.
#[derive(Debug, Default)]
pub(crate) struct Presence {
    since: HashMap<ConnId, Since>,
    /// The last that was given or seen.
    stamp: u64,
}

/// Below the milliseconds of a stamp: so many in one of them before the clock runs ahead.
const STAMP_BITS: u32 = 16;

impl Presence {
    pub(crate) fn next(&mut self, now: Now) -> u64 {
        let clock = (now.wall_ms.max(0) as u64) << STAMP_BITS;
        self.stamp = (self.stamp + 1).max(clock);
        self.stamp
    }

    /// All of them.
    pub(crate) fn connections(&self) -> Vec<ConnId> {
        self.since.keys().copied().collect()
    }

    /// Of another shard: what comes is later.
    pub(crate) fn saw(&mut self, since: Since) {
        self.stamp = self.stamp.max(since.0);
    }

    /// It has ended.
    pub(crate) fn forget(&mut self, id: ConnId) {
        self.since.remove(&id);
    }
}

impl<H: Hook, S: Store> Shard<H, S> {
    /// A client is connected here: the other nodes are told.
    pub(crate) fn tell_presence(&mut self, id: ConnId, client_id: &str) {
        self.parting.is_back(client_id);
        if !self.peers.clustered {
            return;
        }
        self.copy_will(id);
        let since = (self.presence.next(self.now), self.peers.place.seed);
        self.presence.since.insert(id, since);
        self.peers.tell_all(|version| Parcel::Present { version, since, client_id });
    }

    /// The same again, as it was said: whoever has its session by now is to say so.
    pub(crate) fn tell_presence_again(&mut self, id: ConnId, client_id: &str) {
        if let Some(&since) = self.presence.since.get(&id) {
            self.peers.tell_all(|version| Parcel::Present { version, since, client_id });
        }
    }

    /// The same again, behind copies that were just made of wills: what waits to be confirmed waits for that.
    pub(crate) fn announce_behind_copies(&mut self, id: ConnId) {
        let Some(client_id) = self.client_of(id) else { return };
        self.tell_presence_again(id, &client_id);
        self.peers.late_again();
    }

    fn client_of(&self, id: ConnId) -> Option<Arc<str>> {
        let conn = self.conns.get(id)?;
        let session = conn.session.and_then(|key| self.sessions.get(key));
        let client_id = session.map(|session| Arc::clone(&session.client_id));
        client_id.or_else(|| Some(conn.connecting.as_ref()?.client_id()))
    }

    /// A connection of before, with its will, to a peer that knows none.
    pub(crate) fn tell_client(&mut self, peer: u16, id: ConnId) {
        let Some(&since) = self.presence.since.get(&id) else { return };
        let Some(client_id) = &self.client_of(id) else { return };
        let version = self.peers.version();
        self.peers.send(peer, &Parcel::Present { version, since, client_id });
        self.tell_will(peer, id);
    }

    /// A client is connected at another node.
    pub(crate) fn present_elsewhere(&mut self, from: u16, since: Since, client_id: &str) {
        self.presence.stamp = self.presence.stamp.max(since.0);
        self.parting.is_back(client_id);
        let connected = self.by_client(client_id).and_then(|key| self.sessions.get(key)?.conn);
        for id in [connected, self.looking_for(client_id)].into_iter().flatten() {
            // One from before this node was in a cluster is older than all.
            if self.presence.since.get(&id).is_some_and(|mine| *mine >= since) {
                return;
            }
            self.stats.taken_elsewhere += 1;
            self.disconnect(id, ReasonCode::SESSION_TAKEN_OVER);
        }
        self.hand_over(from, client_id);
    }
}
