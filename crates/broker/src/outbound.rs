//! Deliveries under a packet id, from their PUBLISH to their last acknowledgement.

use crate::deliver::Sent;
use crate::events::EventKind;
use crate::hook::Hook;
use crate::session::{Kind, OutboundState, Phase, Session};
use crate::shard::Shard;
use crate::turn::Wait;
use crate::{ConnId, SessionKey};
use ferrule_mqtt::{AckType, ReasonCode, encode_ack};
use ferrule_outbox::Outcome;
use ferrule_store::record::{self, Record};
use ferrule_store::{Op, Side, Store};
use std::sync::Arc;

impl<H: Hook, S: Store> Shard<H, S> {
    pub(crate) fn puback(&mut self, id: ConnId, packet_id: u16) {
        if self.events.wants(EventKind::MessageAcked) {
            self.tell_acked(id, packet_id);
        }
        self.outbound_over(id, packet_id, OutboundState::Puback);
    }

    pub(crate) fn pubrec(&mut self, id: ConnId, packet_id: u16, reason: ReasonCode) {
        let Some(key) = self.session_of(id) else { return };
        let Some(session) = self.sessions.get_mut(key) else { return };
        let state = session.inflight.get_mut(packet_id).map(|o| (o.state, o.seq));
        let is_first = matches!(state, Some((OutboundState::Pubrec, _)));
        if is_first && !reason.is_error() && self.events.wants(EventKind::MessageAcked) {
            self.tell_acked(id, packet_id);
        }
        let Some(session) = self.sessions.get_mut(key) else { return };
        match state {
            Some((OutboundState::Pubrec, seq)) => {
                if reason.is_error() {
                    // [MQTT-4.3.3-5]: the packet id is free, nothing more is sent.
                    self.outbound_over(id, packet_id, OutboundState::Pubrec);
                    return;
                }
                let store_id = session.store_id();
                let next = if store_id.is_some() { OutboundState::Release } else { OutboundState::Pubcomp };
                session.inflight.release(packet_id, next);
                let Some(session) = store_id else {
                    self.write_pubrel(id, packet_id);
                    return;
                };
                // The receiver has taken responsibility: the row leaves the store with this release.
                let record = record::Inflight::Released.to_bytes();
                self.op(Op::InflightPut { session, side: Side::Outbound, packet_id, record }, true);
                self.wait(Wait::Pubrel(key, packet_id));
                self.answer_row(key, seq);
            }
            Some((OutboundState::Release, _)) => {}
            Some((OutboundState::Pubcomp, _)) => self.write_pubrel(id, packet_id),
            _ => {
                self.write(id, |out, v| {
                    encode_ack(out, v, AckType::Pubrel, packet_id, ReasonCode::PACKET_IDENTIFIER_NOT_FOUND);
                });
            }
        }
    }

    pub(crate) fn write_pubrel(&mut self, id: ConnId, packet_id: u16) {
        self.write(id, |out, v| encode_ack(out, v, AckType::Pubrel, packet_id, ReasonCode::SUCCESS));
    }

    /// Packet id and message of a QoS 2 delivery are durable: it may be sent.
    pub(crate) fn outbound_committed(&mut self, key: SessionKey, packet_id: u16) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let Some(outbound) = session.inflight.get_mut(packet_id).filter(|o| o.state == OutboundState::Commit)
        else {
            return;
        };
        outbound.state = OutboundState::Pubrec;
        let seq = outbound.seq;
        let open = session.conn.filter(|id| self.conns.get(*id).is_some_and(|c| c.phase == Phase::Open));
        let row = match &session.kind {
            Kind::Persistent { queue } => queue.get(seq).map(|row| Arc::clone(&row.delivery)),
            Kind::Clean(_) | Kind::Moved(_) => None,
        };
        match (open, row) {
            (Some(id), Some(delivery)) => {
                outbound.sent = true;
                self.delivering().send_row(key, id, packet_id, seq, &delivery, Sent::No)
            }
            // Its client has gone: it goes out when the client is back and the queue hands its row out again.
            _ => session.inflight.park_one(packet_id),
        }
    }

    /// The release of a QoS 2 delivery is durable.
    pub(crate) fn release_committed(&mut self, key: SessionKey, packet_id: u16) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let Some(outbound) =
            session.inflight.get_mut(packet_id).filter(|o| o.state == OutboundState::Release)
        else {
            return;
        };
        outbound.state = OutboundState::Pubcomp;
        let open = session.conn.filter(|id| self.conns.get(*id).is_some_and(|c| c.phase == Phase::Open));
        if let Some(id) = open {
            self.write_pubrel(id, packet_id);
        }
    }

    pub(crate) fn pubcomp(&mut self, id: ConnId, packet_id: u16) {
        self.outbound_over(id, packet_id, OutboundState::Pubcomp);
    }

    pub(crate) fn outbound_over(&mut self, id: ConnId, packet_id: u16, expected: OutboundState) {
        let Some(key) = self.session_of(id) else { return };
        let Some(session) = self.sessions.get_mut(key) else { return };
        let Some(outbound) = session.inflight.answered(packet_id, expected) else { return };
        let waiters = session.has_waiters();
        if expected != OutboundState::Puback
            && let Some(session) = session.store_id()
        {
            // Nobody waits: after a kill one more PUBREL goes out.
            self.op(Op::InflightDelete { session, side: Side::Outbound, packet_id }, false);
        }
        if expected != OutboundState::Pubcomp {
            self.answer_row(key, outbound.seq);
        }
        if waiters {
            self.pump(key);
        }
    }

    pub(crate) fn answer_row(&mut self, key: SessionKey, seq: u64) {
        if let Some(Session { kind: Kind::Persistent { queue }, .. }) = self.sessions.get_mut(key) {
            queue.answer(seq, Outcome::Delivered, self.now, &mut self.ended);
            self.touch(key);
            self.settle();
        }
    }
}
