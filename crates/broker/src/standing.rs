//! Whether a node of a cluster may acknowledge what it routes.
//!
//! # Constraints
//! What is acknowledged has to have met every route whose subscriber has its SUBACK, on whichever node. A node that others do not wait for may
//! look up routes that are old, and finds that out only when it asks (`ferrule-cluster`, its `Gate`): a process can be stopped between
//! any two instructions. No message may pay for the asking.
//!
//! # Operation
//! [`Shard::begin_turn`] says at a turn's beginning whether the node may acknowledge, and [`Shard::end_turn_if`] asks once more, behind all that the
//! turn routed and in front of all that it writes. Between the two answers lies the whole of what was routed.
//!
//! - *No* at the beginning: a connection that publishes at QoS 1 or 2 is *parked*, the publish with it, and is not read until the answer is
//!   yes. What is bounded is the input that its worker keeps for it, and the time: [`PARKED_US`] after the node began to say no, parked
//!   clients and those that come to it are sent away with 0x89. They keep their messages.
//! - *No* at the end: what was routed in this turn is withdrawn. Its publishers lose what was written to them since, and their
//!   connections with it (0x89): they send it again. Some subscribers then get it twice, none not at all. Publishes of
//!   rules may belong to messages of earlier turns, so when there were some all who wait are sent away.
//! - What waits from earlier turns was routed when the answer was yes, and goes on. A retained message alone waits for a *yes* behind its commit: a node that was
//!   removed may still write one, and who has begun to serve since has heard it neither from that node nor from the store.
//! - A SUBACK or CONNACK of a session that is stored waits for *yes*, too, and is withdrawn as a publish is: the members that do not know the session's routes are
//!   those that this node does not hear, and until one of the two is removed it cannot know which. (One whose session ends with its connection misses
//!   what is published on the other side of a partition.) So does one that retained messages follow: there may be newer ones; and that of an exclusive
//!   subscription, which somebody else may have there.
//!
//! # Not yet
//! Delayed messages are routed whatever the answer: nobody is acknowledged for them.

use crate::ConnId;
use crate::ending::Why;
use crate::hook::Hook;
use crate::peers::Late;
use crate::session::{Conn, Inbound, Session};
use crate::shard::Shard;
use crate::turn::Reply;
use ferrule_mqtt::ReasonCode;
use ferrule_outbox::{End, Outcome};
use ferrule_store::{Op, Side, Store};
use std::collections::HashSet;

/// How long clients are kept waiting for a node that may not acknowledge: longer than a death of another node is felt (a lease of 1 s and a
/// transaction), shorter than libraries wait for a PUBACK (20 s and more).
const PARKED_US: u64 = 10_000_000;

/// What is known of it in this turn.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    /// None: this node is alone.
    may: Option<bool>,
    /// Since when it may not.
    refused_us: u64,
    parked: Vec<ConnId>,
    /// What was routed in this turn and has an owner that waits, and how much output that had before.
    routed: Vec<(Inbound, usize)>,
    /// Publishes of rules were.
    local: bool,
    /// SUBACKs and CONNACKs that wait.
    deferred: Vec<Late>,
    /// Of retained messages that are durable.
    durable: Vec<End>,
    /// Connections that such were written to in this turn, and how much output they had before.
    replied: Vec<(ConnId, usize)>,
}

impl Standing {
    /// Whether publishes that are to be acknowledged have to wait.
    pub(crate) fn parks(&self) -> bool {
        self.may == Some(false)
    }

    /// Publishes of rules were routed in this turn.
    pub(crate) fn routed_local(&mut self) {
        self.local = true;
    }

    /// When clients are to be sent away, or what waits only for a turn has one.
    pub(crate) fn next_us(&self) -> Option<u64> {
        if self.may == Some(true) && !(self.deferred.is_empty() && self.durable.is_empty()) {
            return Some(0);
        }
        (!self.parked.is_empty()).then_some(self.refused_us + PARKED_US)
    }
}

impl<H: Hook, S: Store> Shard<H, S> {
    /// A turn of a shard of a cluster begins: whether what is routed in it may be acknowledged, as far as that is known. *Yes* is said behind what the
    /// shard is told at the turn's beginning, *no* in front of it, too. A node that is alone does not call it.
    pub fn begin_turn(&mut self, may: bool, now_us: u64) {
        let before = self.standing.may.replace(may);
        if may {
            self.ended.extend(self.standing.durable.drain(..).map(|end| (end, Outcome::Delivered)));
            self.release_retained();
            self.publish_wills();
            self.settle();
            for late in std::mem::take(&mut self.standing.deferred) {
                match late {
                    Late::Claim(filter, since) => self.claim_confirmed(&filter, since),
                    late => self.late(late),
                }
            }
            for id in std::mem::take(&mut self.standing.parked) {
                if let Some(conn) = self.conns.get_mut(id).filter(|conn| conn.is_parked()) {
                    conn.publishing.make().parked = false;
                    self.hear(id);
                }
            }
            return;
        }
        if before != Some(false) {
            self.standing.refused_us = now_us;
        }
        if now_us >= self.standing.refused_us + PARKED_US {
            for id in std::mem::take(&mut self.standing.parked) {
                if self.conns.get(id).is_some_and(Conn::is_parked) {
                    self.send_away(id);
                }
            }
        }
    }

    /// A retained message is in the store.
    pub(crate) fn retained_durable(&mut self, end: End) {
        match self.standing.may {
            None => self.ended.push((end, Outcome::Delivered)),
            Some(_) => self.standing.durable.push(end),
        }
    }

    /// Whether something has been routed since [`Shard::end_turn_if`] asked last: then it has to be asked with the time of that asking, or of the turn's
    /// beginning behind it.
    #[must_use]
    pub fn has_unjudged(&self) -> bool {
        self.standing.local || !self.standing.routed.is_empty() || !self.standing.replied.is_empty()
    }

    /// Whether what is due to a connection has to wait; if not, it is noted.
    pub(crate) fn defers(&mut self, late: Late) -> Option<Late> {
        let Some(may) = self.standing.may else { return Some(late) };
        let id = match &late {
            Late::Reply(Reply { conn: id, .. }) | Late::Connack(id) => *id,
            Late::Take(_) => return Some(late),
            // What this turn was told may not have been looked at yet.
            Late::Claim(..) => {
                self.standing.deferred.push(late);
                return None;
            }
        };
        let Some(conn) = self.conns.get(id) else { return Some(late) };
        let session = conn.session.and_then(|key| self.sessions.get(key));
        let retained = match &late {
            Late::Reply(reply) => reply.is_exclusive || !reply.retained.is_empty(),
            _ => conn.connecting.as_ref().is_some_and(|connecting| connecting.wants_retained()),
        };
        if !retained && !session.is_some_and(Session::is_persistent) {
            return Some(late);
        }
        if !may {
            self.standing.deferred.push(late);
            return None;
        }
        self.standing.replied.push((id, conn.out.len()));
        Some(late)
    }

    /// Clients that are not heard since this node may not acknowledge.
    #[must_use]
    pub fn parked(&self) -> usize {
        self.standing.parked.len()
    }

    /// A publish of it has to wait.
    pub(crate) fn park(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if !std::mem::replace(&mut conn.publishing.make().parked, true) {
            self.stats.parked += 1;
            self.standing.parked.push(id);
        }
    }

    /// A publish is routed in this turn.
    #[inline]
    pub(crate) fn note_routed(&mut self, inbound: Inbound) {
        if self.standing.may.is_some() {
            let out = self.conns.get(inbound.conn).map_or(0, |conn| conn.out.len());
            self.standing.routed.push((inbound, out));
        }
    }

    /// The turn's second answer: [`Shard::end_turn_if`] asks for it, and whoever lets clients speak behind that has to ask once more
    /// ([`Shard::has_unjudged`]) before anything is written. What it leads to may be commands.
    pub fn judge(&mut self, may: bool) {
        let local = std::mem::take(&mut self.standing.local);
        let mut routed = std::mem::take(&mut self.standing.routed);
        let replied = std::mem::take(&mut self.standing.replied);
        if !may {
            for (id, out) in replied {
                self.stats.withdrawn += 1;
                if let Some(conn) = self.conns.get_mut(id).filter(|conn| conn.out.len() > out) {
                    conn.out.truncate(out);
                    conn.count_output(&mut self.pool);
                }
                self.send_away(id);
            }
            if self.standing.may.replace(false) == Some(true) {
                self.standing.refused_us = self.now.mono_us;
            }
            self.withdraw(&routed);
            if local {
                for id in self.waiters.iter().map(|(id, _)| *id).collect::<Vec<_>>() {
                    self.stats.withdrawn += 1;
                    self.send_away(id);
                }
            }
        }
        routed.clear();
        self.standing.routed = routed;
    }

    #[cold]
    fn withdraw(&mut self, routed: &[(Inbound, usize)]) {
        let mut seen = HashSet::new();
        for (Inbound { conn: id, session, packet_id, qos2, .. }, out) in routed {
            self.stats.withdrawn += 1;
            if seen.insert(*id)
                && let Some(conn) = self.conns.get_mut(*id)
                && conn.out.len() > *out
            {
                conn.out.truncate(*out);
                conn.count_output(&mut self.pool);
            }
            if !*qos2 {
                continue;
            }
            let Some(session) = self.sessions.get_mut(*session) else { continue };
            session.release(*packet_id);
            let Some(of) = session.store_id() else { continue };
            // With it, its repetition would be answered and go nowhere.
            let ends: Vec<_> = self.batch.forget(of, Some(*packet_id)).collect();
            self.ended.extend(ends.into_iter().map(|end| (end, Outcome::Delivered)));
            self.op(Op::InflightDelete { session: of, side: Side::Inbound, packet_id: *packet_id }, true);
        }
        for (inbound, _) in routed {
            if seen.remove(&inbound.conn) {
                self.send_away(inbound.conn);
            }
        }
    }

    fn send_away(&mut self, id: ConnId) {
        let text = "this node has lost touch with others of its cluster: send it again";
        self.disconnect(id, Why::new(ReasonCode::SERVER_BUSY, text));
    }
}
