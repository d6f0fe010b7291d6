//! Moving clients off a node that is to stop.
//!
//! # Constraints
//! All clients of a node that come to the others in one moment would knock these over, and each of them is to be told where its version can be told. A client
//! that is moved off and comes back elsewhere a moment later has not died: nobody is to be told so.
//!
//! # Operation
//! While it is drained a shard lets nobody in who says CONNECT (0x9C, and 3 in MQTT 3), and each call of [`Shard::drain`] moves so many clients off: DISCONNECT
//! 0x9C "use another server" for MQTT 5, an end of the connection for MQTT 3. What is in their output is written first, so
//! what was acknowledged to its publishers before has left. Sessions that outlive their connection stay this node's until their client comes to another one
//! ([`crate::owners`]), or this one leaves.
//!
//! # Wills
//! By the letter a will is due when a server ends a connection without the client's DISCONNECT [MQTT-3.1.2-8]; but "in the case of a server shutdown or failure,
//! the server may defer publication" (3.1.2.5, in MQTT 3.1.1 as well), and a client that connects before a will's delay is over has none
//! [MQTT-3.1.3-9]. So the will of a client that is moved off has a delay of [`GRACE_US`], if its own is not longer, and is forgotten if the client
//! is heard of meanwhile, at whatever node ([`crate::presence`]). Of a session that outlives its connection it is part of the session, as any that waits; of the
//! others it is kept here.
//!
//! # Bounds
//! Wills that are kept here were in their sessions before: a client has one at most, each for the time of its delay.

use crate::ConnId;
use crate::ending::Why;
use crate::hook::Hook;
use crate::session::{LateWill, Phase};
use crate::shard::Shard;
use ferrule_mqtt::ReasonCode;
use ferrule_store::{Now, Store};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How long a client that was moved off may take until it is elsewhere: libraries wait 1 to 10 s before they connect again, and a node that does not answer
/// takes another 10 s.
const GRACE_US: u64 = 30_000_000;

/// Those who are moved off.
#[derive(Debug, Default)]
pub(crate) struct Parting {
    is_draining: bool,
    /// Of sessions that ended with their connection, by client id.
    wills: BTreeMap<Arc<str>, LateWill>,
}

impl Parting {
    /// Nobody is to be let in.
    pub(crate) fn is_draining(&self) -> bool {
        self.is_draining
    }

    /// The client is connected again, here or elsewhere.
    pub(crate) fn is_back(&mut self, client_id: &str) {
        if !self.wills.is_empty() {
            self.wills.remove(client_id);
        }
    }
}

/// What is left to do of a drain.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Left {
    /// Clients that are connected, or about to be.
    pub clients: usize,
    /// Wills of clients that were moved off, end with their connection, and have not been heard of yet.
    pub wills: usize,
    /// Clients that this call moved off.
    pub moved: usize,
}

impl<H: Hook, S: Store> Shard<H, S> {
    /// Lets nobody in from now on, or again whoever comes.
    pub fn set_draining(&mut self, is_draining: bool) {
        self.parting.is_draining = is_draining;
    }

    /// Moves at most so many clients off, if the shard is drained, and publishes the wills of those who were and have not come back in time. To be called until
    /// nothing is left.
    pub fn drain(&mut self, most: usize, now: Now) -> Left {
        self.now = now;
        let mut left = Left::default();
        let most = if self.parting.is_draining { most } else { 0 };
        for id in self.conns.ids() {
            match self.conns.get(id).map(|conn| conn.phase) {
                Some(Phase::Open) if left.moved < most => {
                    left.moved += 1;
                    self.move_off(id);
                }
                // Who has not said who it is, is no client yet: its CONNECT is refused.
                None | Some(Phase::AwaitConnect | Phase::Closing) => {}
                Some(_) => left.clients += 1,
            }
        }
        self.publish_wills_of_the_lost();
        left.wills = self.parting.wills.len();
        left
    }

    fn move_off(&mut self, id: ConnId) {
        self.put_off_will(id);
        self.stats.moved_off += 1;
        self.disconnect(id, Why::elsewhere(ReasonCode::USE_ANOTHER_SERVER, ""));
    }

    fn put_off_will(&mut self, id: ConnId) {
        let Some(key) = self.session_of(id) else { return };
        if self.sessions.get(key).is_none_or(|session| session.will.is_none()) {
            return;
        }
        let publisher = self.publisher(id);
        let Some(session) = self.sessions.get_mut(key) else { return };
        let (Some(mut will), Some(publisher)) = (session.will.take(), publisher) else { return };
        if session.is_persistent() && session.expiry_s > 0 {
            will.delay_s = will.delay_s.max((GRACE_US / 1_000_000) as u32);
            session.will = Some(will);
        } else {
            let due_us = self.now.mono_us + GRACE_US;
            let late = LateWill { will: *will, publisher, due_us };
            self.parting.wills.insert(Arc::clone(&session.client_id), late);
        }
    }

    fn publish_wills_of_the_lost(&mut self) {
        let now_us = self.now.mono_us;
        let due: Vec<_> = self.parting.wills.extract_if(.., |_, late| late.due_us <= now_us).collect();
        for (_, LateWill { will, publisher, .. }) in due {
            self.publish_will(None, &publisher, &will, false);
        }
    }
}
