//! What a shard keeps of a client: its session, and its connection while it has one.

use crate::alias::{Alias, Aliases};
use crate::config::ClientLimits;
use crate::hook::{Access, Publisher};
use crate::owners::Moved;
use crate::pool::{Pace, Pool};
use crate::steady::Steady;
use crate::{ConnId, SessionKey};
use bytes::Bytes;
use ferrule_mqtt::{QoS, ReasonCode, Version, topic};
use ferrule_outbox::{End, Queue, ReceiptId, Row};
use ferrule_store::record::{self, Delivery, Record, RecordError, Subscription};
use ferrule_store::{Body, BodyId, Now, SessionId};
use foldhash::HashMap;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;

/// What few clients need, and then not for long: a pointer while it is not there.
#[derive(Debug)]
pub(crate) struct Rare<T>(Option<Box<T>>);

impl<T> Default for Rare<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Default> Rare<T> {
    pub(crate) fn get(&self) -> Option<&T> {
        self.0.as_deref()
    }

    pub(crate) fn get_mut(&mut self) -> Option<&mut T> {
        self.0.as_deref_mut()
    }

    pub(crate) fn make(&mut self) -> &mut T {
        self.0.get_or_insert_default()
    }

    pub(crate) fn take(&mut self) -> T {
        self.0.take().map_or_else(T::default, |boxed| *boxed)
    }
}

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
    /// Row of the session's queue; 0 in a session that has none, and once the row is delivered.
    pub(crate) seq: u64,
    pub(crate) state: OutboundState,
    /// Sent on an earlier connection, if at all: it goes again, under this id, when the queue hands out its row.
    pub(crate) parked: bool,
    /// Its PUBLISH was written, or may have been by an earlier process life.
    pub(crate) sent: bool,
    /// How many ids had been drawn before this one.
    draw: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OutboundState {
    /// QoS 1, PUBACK due.
    Puback,
    /// QoS 2 to a persistent session: packet id and message are on their way to the store, nothing was sent.
    Commit,
    /// QoS 2, PUBREC due.
    Pubrec,
    /// QoS 2 to a persistent session: PUBREC seen, the release is on its way to the store.
    Release,
    /// QoS 2, PUBREL sent, PUBCOMP due.
    Pubcomp,
}

/// Packet ids in flight to one client, in the order in which they were drawn. A pointer until the first is drawn.
#[derive(Debug, Default)]
pub(crate) struct InFlight(Option<Box<Drawn>>);

#[derive(Debug)]
struct Drawn {
    sent: VecDeque<Outbound>,
    /// QoS 2 ids in the order of their PUBRECs: PUBRELs go in that order [MQTT-4.6.0-4 of 3.1.1].
    released: VecDeque<u16>,
    /// In a session that ends with its connection: QoS 1 messages of shared subscriptions, which go to others then, and all of
    /// whose acknowledgement somebody wants to know.
    kept: HashMap<u16, Arc<Delivery>>,
    /// Ids drawn, and one round ahead: what the store gave back has drawn number 0.
    drawn: u64,
    parked: usize,
}

/// Packet ids are 1 to 65,535.
const IDS: u64 = 65_535;

/// An idle client's list is given back if it was longer than this.
const KEEP_SENT: usize = 64;

impl Default for Drawn {
    fn default() -> Self {
        Self {
            sent: VecDeque::new(),
            released: VecDeque::new(),
            kept: HashMap::default(),
            drawn: IDS,
            parked: 0,
        }
    }
}

impl InFlight {
    /// Deliveries that take a place in the client's window.
    pub(crate) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |drawn| drawn.sent.len() - drawn.parked)
    }

    fn sent_mut(&mut self) -> impl Iterator<Item = &mut Outbound> {
        self.0.iter_mut().flat_map(|drawn| &mut drawn.sent)
    }

    /// Draws the next packet id; none while all 65,535 are in use.
    pub(crate) fn push(&mut self, seq: u64, state: OutboundState) -> Option<u16> {
        let ids = self.0.get_or_insert_default();
        if ids.sent.len() >= IDS as usize {
            return None;
        }
        loop {
            let draw = ids.drawn;
            ids.drawn += 1;
            let packet_id = (draw % IDS) as u16 + 1;
            // Ids are drawn in turn, so that only what is a round old can still have this one.
            let mut old = ids.sent.iter().take_while(|o| o.draw + IDS <= draw);
            if !old.any(|o| o.packet_id == packet_id) {
                let sent = state != OutboundState::Commit;
                ids.sent.push_back(Outbound { packet_id, seq, state, parked: false, sent, draw });
                return Some(packet_id);
            }
        }
    }

    /// An id that the store remembers: used until its exchange is over, and by its row (0: released, none).
    pub(crate) fn restore(&mut self, packet_id: u16, seq: u64) {
        let ids = self.0.get_or_insert_default();
        let state = if seq == 0 { OutboundState::Pubcomp } else { OutboundState::Pubrec };
        let parked = seq != 0;
        ids.parked += usize::from(parked);
        if !parked {
            ids.released.push_back(packet_id);
        }
        let at = ids.sent.partition_point(|o| o.seq <= seq);
        ids.sent.insert(at, Outbound { packet_id, seq, state, parked, sent: true, draw: 0 });
    }

    /// The delivery under a packet id, if the client has it.
    pub(crate) fn get_mut(&mut self, packet_id: u16) -> Option<&mut Outbound> {
        // Acknowledgements come in order almost always: the search begins at the oldest.
        self.sent_mut().find(|o| o.packet_id == packet_id && !o.parked)
    }

    /// The delivery of a row that is handed out, as it was: it is not parked any more, and is sent.
    pub(crate) fn unpark(&mut self, seq: u64) -> Option<Outbound> {
        let ids = self.0.as_mut()?;
        let outbound = ids.sent.iter_mut().find(|o| o.seq == seq)?;
        let before = *outbound;
        if before.parked {
            (outbound.parked, outbound.sent) = (false, true);
            ids.parked -= 1;
        }
        Some(before)
    }

    /// What was sent and not answered waits for its row to be handed out again.
    pub(crate) fn park(&mut self) {
        for outbound in self.sent_mut() {
            outbound.parked |= matches!(outbound.state, OutboundState::Puback | OutboundState::Pubrec);
        }
        if let Some(ids) = &mut self.0 {
            ids.parked = ids.sent.iter().filter(|o| o.parked).count();
        }
    }

    /// Parks one that the store has now and no connection could take.
    pub(crate) fn park_one(&mut self, packet_id: u16) {
        if let Some(outbound) = self.get_mut(packet_id) {
            outbound.parked = true;
            self.0.iter_mut().for_each(|ids| ids.parked += 1);
        }
    }

    /// Ends a delivery.
    pub(crate) fn finish(&mut self, packet_id: u16) {
        self.remove(|o| o.packet_id == packet_id);
    }

    /// Ends the delivery whose answer this is, if the client has it and owes just this.
    pub(crate) fn answered(&mut self, packet_id: u16, owed: OutboundState) -> Option<Outbound> {
        self.remove(|o| o.packet_id == packet_id && o.state == owed && !o.parked)
    }

    fn remove(&mut self, is: impl Fn(&Outbound) -> bool) -> Option<Outbound> {
        let ids = self.0.as_mut()?;
        // Acknowledgements come in order almost always: the search begins at the oldest.
        let index = ids.sent.iter().position(is)?;
        let outbound = ids.sent.remove(index)?;
        ids.parked -= usize::from(outbound.parked);
        if !ids.kept.is_empty() {
            ids.kept.remove(&outbound.packet_id);
        }
        let is_released = matches!(outbound.state, OutboundState::Release | OutboundState::Pubcomp);
        if is_released && let Some(at) = ids.released.iter().position(|id| *id == outbound.packet_id) {
            ids.released.remove(at);
        }
        if ids.sent.is_empty() && ids.sent.capacity() > KEEP_SENT {
            ids.sent = VecDeque::new();
        }
        Some(outbound)
    }

    /// Its receiver has it: PUBREL comes next.
    pub(crate) fn release(&mut self, packet_id: u16, state: OutboundState) {
        let Some(ids) = &mut self.0 else { return };
        if let Some(outbound) = ids.sent.iter_mut().find(|o| o.packet_id == packet_id && !o.parked) {
            (outbound.state, outbound.seq) = (state, 0);
            ids.released.push_back(packet_id);
        }
    }

    /// Ids whose PUBREL was sent and not answered, in the order of their PUBRECs.
    pub(crate) fn released(&self) -> impl Iterator<Item = u16> {
        let is_due = |ids: &Drawn, id: u16| {
            ids.sent.iter().any(|o| o.packet_id == id && o.state == OutboundState::Pubcomp)
        };
        self.0.iter().flat_map(move |ids| ids.released.iter().copied().filter(move |id| is_due(ids, *id)))
    }

    /// Keeps a message until its delivery ends: of a shared subscription, or one of which somebody wants to know.
    pub(crate) fn keep(&mut self, packet_id: u16, delivery: Arc<Delivery>) {
        if let Some(ids) = &mut self.0 {
            ids.kept.insert(packet_id, delivery);
        }
    }

    /// The message that is kept under a packet id.
    pub(crate) fn kept(&self, packet_id: u16) -> Option<&Arc<Delivery>> {
        self.0.as_ref()?.kept.get(&packet_id)
    }

    /// Messages of shared subscriptions that are not acknowledged, oldest first.
    pub(crate) fn shared(&self) -> impl Iterator<Item = &Arc<Delivery>> {
        let ids = self.0.iter().filter(|ids| !ids.kept.is_empty());
        ids.flat_map(|ids| ids.sent.iter().filter_map(|o| ids.kept.get(&o.packet_id)))
            .filter(|delivery| delivery.share.is_some())
    }

    /// All, oldest first.
    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Outbound> {
        self.0.iter().flat_map(|ids| &ids.sent)
    }
}

/// A publish of a client whose acknowledgement is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Inbound {
    pub(crate) conn: ConnId,
    pub(crate) session: SessionKey,
    pub(crate) serial: u64,
    pub(crate) packet_id: u16,
    pub(crate) qos2: bool,
}

/// A QoS 2 publish from the client, by packet id, until its PUBREL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    /// Its PUBREC waits, and is due on this connection.
    Waiting(ConnId),
    /// PUBREC sent with this reason; and the connection whose window it takes a place of.
    Answered(ReasonCode, Option<ConnId>),
}

#[derive(Debug)]
pub(crate) struct Will {
    pub(crate) topic: Box<str>,
    pub(crate) payload: Bytes,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    /// To forward, as encoded, without will delay.
    pub(crate) properties: Bytes,
    /// How long after its connection it is published, if the session lives that long.
    pub(crate) delay_s: u32,
}

impl Will {
    /// As the store keeps it.
    pub(crate) fn to_record(&self, due_wall_ms: Option<i64>) -> record::Will {
        record::Will {
            topic: self.topic.clone(),
            payload: self.payload.clone(),
            qos: self.qos.into(),
            retain: self.retain,
            properties: self.properties.clone(),
            delay_s: self.delay_s,
            due_wall_ms,
        }
    }

    /// As the store kept it.
    pub(crate) fn from_record(will: record::Will) -> Self {
        Self {
            topic: will.topic,
            payload: will.payload,
            qos: QoS::try_from(will.qos).unwrap_or(QoS::AtMostOnce),
            retain: will.retain,
            properties: will.properties,
            delay_s: will.delay_s,
        }
    }
}

/// A will whose connection has ended and whose delay has not.
#[derive(Debug)]
pub(crate) struct LateWill {
    pub(crate) will: Will,
    pub(crate) publisher: Arc<Publisher>,
    pub(crate) due_us: u64,
}

/// A message for which a client's window has no room, or which must not leave yet.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) delivery: Arc<Delivery>,
    /// Taken past the session's bound: its publisher waits until there is room.
    pub(crate) end: Option<End>,
    /// Not before the packet id that it came under is durable, or after a kill it would come again.
    pub(crate) held: bool,
}

/// Messages that wait in memory for a session that ends with its connection.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    pub(crate) pending: VecDeque<Pending>,
    pub(crate) bytes: usize,
    /// Bytes taken since `taken_us`.
    pub(crate) taken: usize,
    /// When it had last taken what it must in each while of its limits, or since when its bound is passed. 0: the bound
    /// is not passed, nor was it since half of it was free.
    pub(crate) taken_us: u64,
}

/// How a session keeps what its client cannot take yet.
#[derive(Debug)]
pub(crate) enum Kind {
    /// Ends with its connection.
    Clean(Rare<Waiters>),
    /// Lives on; messages wait in a queue over the store, which has the number that the session has.
    Persistent { queue: Box<Queue<Queued>> },
    /// Lives on at another node: what still comes here for it is sent on ([`crate::owners`]).
    Moved(Box<Moved>),
}

/// The session whose queue this is.
pub(crate) fn session_id(queue: &Queue<Queued>) -> SessionId {
    SessionId(queue.id().0)
}

#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) client_id: Arc<str>,
    pub(crate) username: Option<Arc<str>>,
    pub(crate) conn: Option<ConnId>,
    pub(crate) kind: Kind,
    /// A few as a rule: searched from the front. The text is shared with the routes.
    pub(crate) subscriptions: Vec<(Arc<str>, Subscription)>,
    pub(crate) inflight: InFlight,
    pub(crate) received: Rare<HashMap<u16, Received>>,
    pub(crate) will: Option<Box<Will>>,
    pub(crate) late_will: Option<Box<LateWill>>,
    /// Retained messages at QoS 0 for which its connection's output had no room yet.
    pub(crate) backlog: Rare<VecDeque<Arc<Delivery>>>,
    /// When its life ends; 0: never, or not while it has a connection.
    pub(crate) expires_us: u64,
    /// When its timer comes up; 0: it has none.
    pub(crate) timer_us: u64,
    /// The number of the publish that was routed to it last, and its place among that one's destinations.
    pub(crate) routed: u64,
    pub(crate) routed_at: u32,
    /// Deliveries that may be in flight at once.
    pub(crate) window: u16,
    /// The row of its limits: those of its connection, or its last one.
    pub(crate) limits: u16,
    pub(crate) version: Version,
    /// The store has a will of it.
    pub(crate) will_stored: bool,
    /// In the list of sessions whose queue has to be looked at when this turn ends.
    pub(crate) touched: bool,
    /// Has or had a shared subscription.
    pub(crate) shares: bool,
    pub(crate) expiry_s: u32,
}

impl Session {
    pub(crate) fn new(client_id: Arc<str>, username: Option<Arc<str>>, kind: Kind, expiry_s: u32) -> Self {
        Self {
            client_id,
            username,
            conn: None,
            kind,
            subscriptions: Vec::new(),
            inflight: InFlight::default(),
            received: Rare::default(),
            will: None,
            late_will: None,
            backlog: Rare::default(),
            expires_us: 0,
            timer_us: 0,
            routed: 0,
            routed_at: 0,
            window: 0,
            limits: 0,
            version: Version::V3_1_1,
            will_stored: false,
            touched: false,
            shares: false,
            expiry_s,
        }
    }

    pub(crate) fn is_persistent(&self) -> bool {
        matches!(self.kind, Kind::Persistent { .. })
    }

    pub(crate) fn store_id(&self) -> Option<SessionId> {
        match &self.kind {
            Kind::Persistent { queue } => Some(session_id(queue)),
            Kind::Clean(_) | Kind::Moved(_) => None,
        }
    }

    /// When its connection ended, by what is left of its life.
    pub(crate) fn ended_wall_ms(&self, steady: Steady, now: Now) -> i64 {
        let life_us = u64::from(self.expiry_s) * 1_000_000;
        let left_us = self.expires_us.saturating_sub(now.mono_us);
        let lived_us = if self.expires_us == 0 { 0 } else { life_us.saturating_sub(left_us) };
        steady.ms(now).saturating_sub_unsigned(lived_us / 1_000)
    }

    /// Its shared subscriptions.
    pub(crate) fn shared(&self) -> impl Iterator<Item = &(Arc<str>, Subscription)> {
        let all = if self.shares { &self.subscriptions[..] } else { &[] };
        all.iter().filter(|(filter, _)| filter.starts_with(topic::SHARED_PREFIX))
    }

    pub(crate) fn has_room(&self) -> bool {
        self.inflight.len() < usize::from(self.window)
    }

    /// Whether something may wait for room in its window or its connection's output.
    pub(crate) fn has_waiters(&self) -> bool {
        let clean = matches!(&self.kind, Kind::Clean(waiters) if waiters.get().is_none());
        !clean || self.backlog.get().is_some()
    }

    /// Adds or replaces a subscription.
    pub(crate) fn subscribe(&mut self, filter: Arc<str>, subscription: Subscription) -> Option<Subscription> {
        match self.subscriptions.iter_mut().find(|(known, _)| *known == filter) {
            Some((_, old)) => Some(std::mem::replace(old, subscription)),
            None => {
                if self.subscriptions.is_empty() {
                    // Most have one.
                    self.subscriptions.reserve_exact(1);
                }
                self.subscriptions.push((filter, subscription));
                None
            }
        }
    }

    /// Takes a subscription away.
    pub(crate) fn unsubscribe(&mut self, filter: &str) -> Option<Subscription> {
        let at = self.subscriptions.iter().position(|(known, _)| **known == *filter)?;
        Some(self.subscriptions.swap_remove(at).1)
    }

    /// Its other subscription to the same filter, when this text is one of two: the plain and the exclusive one.
    pub(crate) fn twin(&self, text: &str) -> Option<(Arc<str>, Subscription)> {
        let is_twin = |known: &str| known != text && topic::shared(known).is_none();
        let plain = topic::plain(text);
        let twin =
            self.subscriptions.iter().find(|(known, _)| is_twin(known) && topic::plain(known) == plain)?;
        Some((Arc::clone(&twin.0), twin.1))
    }

    /// The text of a filter that it subscribes to.
    pub(crate) fn filter(&self, filter: &str) -> Option<&Arc<str>> {
        self.subscriptions.iter().map(|(known, _)| known).find(|known| ***known == *filter)
    }

    /// A QoS 2 packet id of the client's that is not released.
    pub(crate) fn received(&self, packet_id: u16) -> Option<Received> {
        self.received.get()?.get(&packet_id).copied()
    }

    /// Frees one; the connection whose window it took a place of.
    pub(crate) fn release(&mut self, packet_id: u16) -> Option<ConnId> {
        let received = self.received.get_mut()?;
        let of = match received.remove(&packet_id)? {
            Received::Waiting(on) => Some(on),
            Received::Answered(_, on) => on,
        };
        if received.is_empty() && received.capacity() > KEEP_SENT {
            self.received = Rare::default();
        }
        of
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
    /// An authentication by steps goes on: nothing but AUTH is accepted.
    AwaitAuth,
    /// The CONNACK waits for the store: what arrives waits.
    AwaitStore,
    /// CONNACK sent.
    Open,
    /// Output is flushed, then the socket is closed.
    Closing,
    /// On its way to the shard that its client id belongs to.
    Moving,
}

#[derive(Debug)]
pub(crate) struct Conn {
    /// Empty, and without memory of its own, but between a packet and its turn's end.
    pub(crate) out: Vec<u8>,
    pub(crate) access: Arc<dyn Access>,
    pub(crate) session: Option<SessionKey>,
    pub(crate) publishing: Rare<Publishing>,
    /// CONNACK due when the gate and the store have answered.
    pub(crate) connecting: Option<Box<crate::connect::Connecting>>,
    /// When a packet of it was whole, or one that has begun had grown; before CONNECT, when it came.
    pub(crate) heard_us: u64,
    /// When its timer comes up; 0: it has none.
    pub(crate) timer_us: u64,
    /// When its output was last short, or had been taken as fast as it must be: milliseconds that wrap.
    drained_ms: u32,
    /// Bytes of its output that the pool knows of.
    counted: u32,
    pub(crate) peer: IpAddr,
    /// The row of its limits, and of where it came in.
    pub(crate) limits: u16,
    pub(crate) phase: Phase,
    pub(crate) version: Version,
    pub(crate) dirty: bool,
    /// In the list of connections whose publishes wait.
    pub(crate) waits: bool,
    /// Has so much output that it is not heard.
    pub(crate) blocked: bool,
    /// Has published so much that it is not heard.
    pub(crate) throttled: bool,
    /// Acknowledgements may leave in any order: a gateway's.
    pub(crate) unordered: bool,
    /// 0: off.
    pub(crate) keep_alive_s: u16,
    pub(crate) peer_packet_bytes: u32,
}

/// What a connection needs that publishes, may speak for devices, came by more than plain TCP, is behind with its output or in the
/// middle of a packet.
#[derive(Debug, Default)]
pub(crate) struct Publishing {
    /// Made with its first publish.
    pub(crate) publisher: Option<Arc<Publisher>>,
    /// The gateway it is.
    pub(crate) edge: Option<Arc<str>>,
    /// Wants no Reason Strings but where they are the rule [MQTT-3.1.2-29].
    pub(crate) terse: bool,
    /// Topic aliases that we set for it; none when it takes none.
    pub(crate) own_aliases: Option<Box<Aliases>>,
    /// Topic aliases that the client has set.
    pub(crate) aliases: Vec<Option<Arc<str>>>,
    pub(crate) waiting: VecDeque<Waiting>,
    /// Batches among them.
    pub(crate) batches: Vec<crate::batch::Batched>,
    /// Which process life the client says it is (a gateway's boot).
    pub(crate) life: Option<Box<str>>,
    /// Its authentication by steps, if it is that.
    pub(crate) enhanced: Option<Box<crate::auth::Enhanced>>,
    /// A SUBSCRIBE that waits for another shard: nothing is heard until it goes on.
    pub(crate) claiming: Option<Box<crate::exclusive::Claiming>>,
    /// A name of the client's verified certificate.
    pub(crate) certificate: Option<Box<str>>,
    /// What its CONNECT is answered with, whatever it says.
    pub(crate) refusal: Option<ReasonCode>,
    pub(crate) next_serial: u64,
    /// It has published while this node may not acknowledge, so that it is not heard.
    pub(crate) parked: bool,
    /// Of its publishes.
    pub(crate) tempo: crate::tempo::Tempo,
    /// When it was told that it is connected, seconds since 1970, where somebody wants to know.
    pub(crate) connected_s: u32,
    /// QoS 2 publishes of this connection whose PUBREL has not come.
    pub(crate) unreleased: u16,
    pub(crate) pace: Pace,
    /// When the packet that is not whole began, or had grown; 0: there is none.
    pub(crate) begun_us: u64,
    /// Input that its worker keeps for it, as far as the pool knows of it.
    pub(crate) kept: usize,
    /// Bytes of output taken since `drained_ms`.
    taken: usize,
}

impl Conn {
    pub(crate) fn new(peer: IpAddr, limits: u16, access: Arc<dyn Access>, now_us: u64) -> Self {
        Self {
            out: Vec::new(),
            access,
            session: None,
            publishing: Rare::default(),
            connecting: None,
            heard_us: now_us,
            timer_us: 0,
            drained_ms: wrapping_ms(now_us),
            counted: 0,
            peer,
            limits,
            phase: Phase::AwaitConnect,
            version: Version::V3_1_1,
            dirty: false,
            waits: false,
            blocked: false,
            throttled: false,
            unordered: false,
            keep_alive_s: 0,
            peer_packet_bytes: u32::MAX,
        }
    }

    /// What a topic goes by; none: it is named.
    pub(crate) fn alias(&mut self, topic: &str) -> Option<Alias> {
        self.publishing.get_mut()?.own_aliases.as_mut().map(|aliases| aliases.of(topic))
    }

    /// The packet that would have set it was not written.
    pub(crate) fn unset_alias(&mut self, alias: Option<Alias>) {
        let own = self.publishing.get_mut().and_then(|p| p.own_aliases.as_mut());
        if let Some((aliases, alias)) = own.zip(alias) {
            aliases.unset(alias);
        }
    }

    /// Tells the pool of what was added to its output, or taken from it; how much was taken.
    pub(crate) fn count_output(&mut self, pool: &mut Pool) -> usize {
        let (before, after) = (self.counted as usize, self.out.len());
        pool.change(before, after);
        // Far below 4 GiB: its bound, and one packet.
        self.counted = after as u32;
        before.saturating_sub(after)
    }

    /// Its output is short, or has only now begun.
    pub(crate) fn is_drained(&mut self, now_us: u64) {
        self.drained_ms = wrapping_ms(now_us);
        if let Some(publishing) = self.publishing.get_mut() {
            publishing.taken = 0;
        }
    }

    /// So much of its output was taken, of which it must take `least` now and then.
    pub(crate) fn took_output(&mut self, bytes: usize, least: usize, now_us: u64) {
        let publishing = self.publishing.make();
        publishing.taken += bytes;
        if publishing.taken >= least {
            self.is_drained(now_us);
        }
    }

    /// Since when its output has been long and has not been taken as it must be, to a millisecond.
    pub(crate) fn drained_us(&self, now_us: u64) -> u64 {
        let ago_ms = wrapping_ms(now_us).wrapping_sub(self.drained_ms);
        now_us.saturating_sub(u64::from(ago_ms) * 1_000)
    }

    /// Whether it is read, as far as its own doing goes.
    pub(crate) fn is_heard(&self) -> bool {
        !self.blocked && !self.throttled && !self.is_kept()
    }

    /// Whether something that it said waits, and all behind it.
    fn is_kept(&self) -> bool {
        self.publishing.get().is_some_and(|p| p.parked || p.claiming.is_some())
    }

    /// Whether a publish of it waits.
    pub(crate) fn is_parked(&self) -> bool {
        self.publishing.get().is_some_and(|p| p.parked)
    }

    /// Whether a SUBSCRIBE of it waits.
    pub(crate) fn is_claiming(&self) -> bool {
        self.publishing.get().is_some_and(|p| p.claiming.is_some())
    }

    pub(crate) fn waiting(&self) -> usize {
        self.publishing.get().map_or(0, |p| p.waiting.len())
    }

    /// How long it may say nothing; none: for ever [MQTT-3.1.2-24].
    pub(crate) fn silence_us(&self) -> Option<u64> {
        (self.keep_alive_s > 0).then(|| u64::from(self.keep_alive_s) * 1_500_000)
    }

    /// How long a packet that has begun may take to be whole, or to grow.
    pub(crate) fn packet_us(&self, limits: &ClientLimits) -> u64 {
        let timeout_us = limits.packet_timeout.as_micros() as u64;
        self.silence_us().map_or(timeout_us, |silence_us| silence_us.min(timeout_us))
    }
}

/// Wraps every 49 days: for times that are looked at far more often.
fn wrapping_ms(us: u64) -> u32 {
    (us / 1_000) as u32
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn packet_ids_are_never_zero_and_never_in_use_twice() {
        let mut inflight = InFlight::default();
        let push = |inflight: &mut InFlight| inflight.push(0, OutboundState::Puback);
        let first: Vec<u16> = (0..65_535).map(|_| push(&mut inflight).unwrap()).collect();
        assert_eq!((first[0], first[65_534]), (1, 65_535));
        assert_eq!(push(&mut inflight), None);
        inflight.finish(2);
        assert_eq!(push(&mut inflight), Some(2), "id 1 is passed over: it is still in use");
        inflight.finish(1);
        assert_eq!(push(&mut inflight), Some(1));
        assert_eq!((push(&mut inflight), inflight.len()), (None, 65_535));
    }

    #[test]
    fn one_that_is_never_acknowledged_does_not_stop_the_others() {
        let mut inflight = InFlight::default();
        let stuck = inflight.push(0, OutboundState::Puback).unwrap();
        for _ in 0..200_000 {
            let id = inflight.push(0, OutboundState::Puback).unwrap();
            assert_ne!(id, stuck);
            inflight.finish(id);
        }
        assert_eq!(inflight.len(), 1);
    }

    #[test]
    fn ids_that_the_store_remembers_are_kept_for_their_rows() {
        let mut inflight = InFlight::default();
        inflight.restore(2, 9);
        inflight.restore(1, 7);
        inflight.restore(3, 0);
        let order: Vec<_> = inflight.iter().map(|o| (o.packet_id, o.state)).collect();
        use OutboundState::{Pubcomp, Pubrec};
        assert_eq!(order, [(3, Pubcomp), (1, Pubrec), (2, Pubrec)]);
        assert_eq!(inflight.len(), 1, "parked ones take no place");
        assert_eq!(inflight.push(10, OutboundState::Puback), Some(4));
        assert_eq!(inflight.unpark(7).map(|o| (o.packet_id, o.parked, o.sent)), Some((1, true, true)));
        assert_eq!(inflight.len(), 3);
    }

    #[test]
    fn what_each_client_costs() {
        // A million clients: 10 MB are 10 bytes here.
        assert!(size_of::<Session>() <= 160, "{}", size_of::<Session>());
        assert!(size_of::<Conn>() <= 120, "{}", size_of::<Conn>());
    }
}
