//! What a shard keeps of a client: its session, and its connection while it has one.

use crate::hook::{Access, Publisher};
use crate::{ConnId, SessionKey};
use bytes::Bytes;
use ferrule_mqtt::{QoS, ReasonCode, Version};
use ferrule_outbox::{End, Queue, ReceiptId, Row};
use ferrule_store::record::{Delivery, Record, RecordError, Subscription};
use ferrule_store::{Body, BodyId, SessionId};
use foldhash::HashMap;
use std::collections::VecDeque;
use std::sync::Arc;

/// A message in a session's queue.
#[derive(Debug, Clone)]
pub(crate) struct Queued {
    pub(crate) delivery: Arc<Delivery>,
    /// When several queues hold the message, its body is stored once.
    pub(crate) shared: Option<BodyId>,
}

impl Row for Queued {
    fn encode(&self) -> (Bytes, Body) {
        let payload = self.delivery.payload.clone();
        let body = match self.shared {
            Some(id) => Body::Shared(id, payload),
            None => Body::Inline(payload),
        };
        (self.delivery.to_bytes(), body)
    }

    fn decode(head: &[u8], body: Bytes) -> Result<Self, RecordError> {
        let mut delivery = Delivery::from_bytes(head)?;
        delivery.payload = body;
        Ok(Self { delivery: Arc::new(delivery), shared: None })
    }

    fn size(&self) -> usize {
        delivery_size(&self.delivery)
    }
}

/// Bytes that a queued delivery costs, the body counted whole.
pub(crate) fn delivery_size(delivery: &Delivery) -> usize {
    // Slot, Arc and allocations.
    const FIXED: usize = 160;
    FIXED + delivery.topic.len() + delivery.payload.len() + delivery.properties.len()
}

/// A delivery under a packet id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outbound {
    pub(crate) packet_id: u16,
    /// Row of the session's queue; 0 in a session that has none.
    pub(crate) seq: u64,
    pub(crate) state: OutboundState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OutboundState {
    /// QoS 1, PUBACK due.
    Puback,
    /// QoS 2, PUBREC due.
    Pubrec,
    /// QoS 2, PUBREL sent, PUBCOMP due.
    Pubcomp,
    /// Over: kept until all earlier ones are, so that the deque stays in order of packet ids.
    Done,
}

/// Packet ids in flight to one client, in the order in which they were drawn.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    sent: VecDeque<Outbound>,
    last_id: u16,
    open: usize,
}

impl InFlight {
    /// Deliveries that are not over.
    pub(crate) fn len(&self) -> usize {
        self.open
    }

    /// Draws the next packet id; none while all 65,535 are in use.
    pub(crate) fn push(&mut self, seq: u64, qos: QoS) -> Option<u16> {
        let id = if self.last_id == u16::MAX { 1 } else { self.last_id + 1 };
        // Ids are drawn in turn, so that the next one can only be in use by the oldest.
        if self.sent.front().is_some_and(|o| o.packet_id == id) {
            return None;
        }
        self.last_id = id;
        self.open += 1;
        let state = if qos == QoS::ExactlyOnce { OutboundState::Pubrec } else { OutboundState::Puback };
        self.sent.push_back(Outbound { packet_id: id, seq, state });
        Some(id)
    }

    /// The delivery under a packet id, unless it is over. Acknowledgements come in order almost always: the
    /// search begins at the oldest.
    pub(crate) fn get_mut(&mut self, packet_id: u16) -> Option<&mut Outbound> {
        self.sent.iter_mut().find(|o| o.packet_id == packet_id && o.state != OutboundState::Done)
    }

    /// Ends a delivery.
    pub(crate) fn finish(&mut self, packet_id: u16) {
        if let Some(outbound) = self.get_mut(packet_id) {
            outbound.state = OutboundState::Done;
            self.open -= 1;
            while self.sent.front().is_some_and(|o| o.state == OutboundState::Done) {
                self.sent.pop_front();
            }
        }
    }

    /// Those that are not over, oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Outbound> {
        self.sent.iter().filter(|o| o.state != OutboundState::Done)
    }

    pub(crate) fn clear(&mut self) {
        self.sent.clear();
        self.open = 0;
    }
}

/// A QoS 2 publish from the client, by packet id, until its PUBREL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    /// Its PUBREC waits for this receipt.
    Waiting,
    /// PUBREC sent with this reason.
    Answered(ReasonCode),
}

#[derive(Debug)]
pub(crate) struct Will {
    pub(crate) topic: Box<str>,
    pub(crate) payload: Bytes,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    /// To forward, as encoded, without will delay.
    pub(crate) properties: Bytes,
}

/// A message for which a client's window has no room.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) delivery: Arc<Delivery>,
    /// Taken past the session's bound: its publisher waits until there is room.
    pub(crate) end: Option<End>,
}

/// How a session keeps what its client cannot take yet.
#[derive(Debug)]
pub(crate) enum Kind {
    /// Ends with its connection. Messages that do not fit the client's window wait in memory.
    Clean { pending: VecDeque<Pending>, pending_bytes: usize },
    /// Lives on; messages wait in a queue over the store.
    Persistent { id: SessionId, queue: Box<Queue<Queued>> },
}

#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) client_id: Arc<str>,
    pub(crate) username: Option<Arc<str>>,
    pub(crate) version: Version,
    pub(crate) conn: Option<ConnId>,
    pub(crate) kind: Kind,
    pub(crate) expiry_s: u32,
    /// When its connection ended (monotonic); meaningless while it has one.
    pub(crate) ended_us: u64,
    pub(crate) subscriptions: HashMap<Box<str>, Subscription>,
    pub(crate) inflight: InFlight,
    /// Deliveries that may be in flight at once.
    pub(crate) window: usize,
    pub(crate) received: HashMap<u16, Received>,
    pub(crate) will: Option<Will>,
    /// The number of the publish that was routed to it last, and its place among that one's destinations.
    pub(crate) routed: (u64, usize),
    /// In the list of sessions whose queue has to be looked at when this turn ends.
    pub(crate) touched: bool,
}

impl Session {
    pub(crate) fn is_persistent(&self) -> bool {
        matches!(self.kind, Kind::Persistent { .. })
    }

    pub(crate) fn store_id(&self) -> Option<SessionId> {
        match self.kind {
            Kind::Persistent { id, .. } => Some(id),
            Kind::Clean { .. } => None,
        }
    }
}

/// An acknowledgement that waits, in the order of arrival.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Waiting {
    pub(crate) serial: u64,
    pub(crate) packet_id: u16,
    pub(crate) qos2: bool,
    /// None once it is due and only its elders hold it back.
    pub(crate) receipt: Option<ReceiptId>,
    pub(crate) reason: ReasonCode,
    /// Of topic, payload and flags: tells a repetition from a reuse of the packet id.
    pub(crate) content: u64,
}

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Nothing but CONNECT is accepted.
    AwaitConnect,
    /// The gate has not answered yet: what arrives waits.
    AwaitGate,
    /// The CONNACK waits for the store: what arrives waits.
    AwaitStore,
    /// CONNACK sent.
    Open,
    /// Output is flushed, then the socket is closed.
    Closing,
}

#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) peer: std::net::SocketAddr,
    pub(crate) listener: usize,
    pub(crate) phase: Phase,
    pub(crate) version: Version,
    pub(crate) session: Option<SessionKey>,
    pub(crate) publisher: Arc<Publisher>,
    pub(crate) access: Arc<dyn Access>,
    pub(crate) out: Vec<u8>,
    pub(crate) dirty: bool,
    /// Bytes arrived in this turn.
    pub(crate) heard: bool,
    pub(crate) came_us: u64,
    pub(crate) heard_us: u64,
    /// When its output last moved, or was empty.
    pub(crate) drained_us: u64,
    /// 0: off.
    pub(crate) keep_alive_us: u64,
    pub(crate) peer_packet_bytes: usize,
    /// Topic aliases that the client has set.
    pub(crate) aliases: Vec<Option<Arc<str>>>,
    pub(crate) waiting: VecDeque<Waiting>,
    pub(crate) next_serial: u64,
    /// Acknowledgements may leave in any order: a gateway's.
    pub(crate) unordered: bool,
    /// CONNACK due when the gate and the store have answered.
    pub(crate) connecting: Option<Box<crate::connect::Connecting>>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn packet_ids_are_never_zero_and_never_in_use_twice() {
        let mut inflight = InFlight::default();
        let first: Vec<u16> = (0..65_535).map(|_| inflight.push(0, QoS::AtLeastOnce).unwrap()).collect();
        assert_eq!((first[0], first[65_534]), (1, 65_535));
        assert_eq!(inflight.push(0, QoS::AtLeastOnce), None);
        inflight.finish(2);
        assert_eq!(inflight.push(0, QoS::AtLeastOnce), None, "id 1 is still in use");
        inflight.finish(1);
        assert_eq!(inflight.push(0, QoS::AtLeastOnce), Some(1));
        assert_eq!(inflight.push(0, QoS::AtLeastOnce), Some(2));
        assert_eq!(inflight.len(), 65_535);
    }
}
