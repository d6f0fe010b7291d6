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
//! # Not yet
//! A persistent session stays with its node: its connection is closed, it is not moved.

use crate::ConnId;
use crate::hook::Hook;
use crate::parcel::Parcel;
use crate::shard::Shard;
use ferrule_mqtt::ReasonCode;
use ferrule_store::{Now, Store};
use std::collections::HashMap;

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
    fn next(&mut self, now: Now) -> u64 {
        let clock = (now.wall_ms.max(0) as u64) << STAMP_BITS;
        self.stamp = (self.stamp + 1).max(clock);
        self.stamp
    }

    /// It has ended.
    pub(crate) fn forget(&mut self, id: ConnId) {
        self.since.remove(&id);
    }
}

impl<H: Hook, S: Store> Shard<H, S> {
    /// A client is connected here: the other nodes are told.
    pub(crate) fn tell_presence(&mut self, id: ConnId, client_id: &str) {
        if !self.peers.clustered {
            return;
        }
        let since = (self.presence.next(self.now), self.peers.place.seed);
        self.presence.since.insert(id, since);
        self.peers.tell_all(|version| Parcel::Present { version, since, client_id });
    }

    /// All of them, to a node that knows none.
    pub(crate) fn tell_all_presence(&mut self, peer: u16) {
        let version = self.peers.version();
        for (id, since) in &self.presence.since {
            let session = self.conns.get(*id).and_then(|conn| self.sessions.get(conn.session?));
            if let Some(session) = session {
                let client_id = &*session.client_id;
                self.peers.send(peer, &Parcel::Present { version, since: *since, client_id });
            }
        }
    }

    /// A client is connected at another node.
    pub(crate) fn present_elsewhere(&mut self, since: Since, client_id: &str) {
        self.presence.stamp = self.presence.stamp.max(since.0);
        let here = self.by_client(client_id).and_then(|key| self.sessions.get(key)?.conn);
        let Some(id) = here else { return };
        // One from before this node was in a cluster is older than all.
        if self.presence.since.get(&id).is_none_or(|mine| *mine < since) {
            self.stats.taken_elsewhere += 1;
            self.disconnect(id, ReasonCode::SESSION_TAKEN_OVER);
        }
    }
}
