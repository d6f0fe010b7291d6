//! What happens in a shard, told to a hook that asked for it: clients that come and go, their subscriptions, and what becomes of
//! messages.
//!
//! Nothing is noted of a kind that nobody asked for ([`Shard::set_events`]): one test of a bit on a message's way. What is asked for is
//! kept in a list that the next turn's end hands to [`Hook::event`], before it takes the publishes that rules made: what rules make of an event
//! is routed in that turn. The list holds at most [`EVENTS_MAX`]; what comes then is counted as `events_dropped`.
//!
//! An event of a message carries the hops of the message, so that a rule on `message.delivered` that publishes again ends as any other loop
//! does. Of a message that was stored by an earlier process life they are not known, nor is its publisher.

use crate::hook::{Ends, Hook, Message};
use crate::session::{Conn, Kind, Session};
use crate::shard::Shard;
use crate::slots::Slots;
use crate::{ConnId, SessionKey, marker};
use bytes::Bytes;
use ferrule_mqtt::{Properties, QoS, ReasonCode, Version};
use ferrule_store::Store;
use ferrule_store::record::{Delivery, Source};
use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

/// The most events of one turn.
const EVENTS_MAX: usize = 65_536;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum EventKind {
    /// A client's CONNECT was accepted, and it was told.
    ClientConnected,
    /// A client that was connected is not any more.
    ClientDisconnected,
    /// A CONNECT was answered, with yes or no.
    ClientConnack,
    /// A PINGREQ came.
    ClientPing,
    /// Who a client is was decided.
    Authenticated,
    /// Whether a client may publish or subscribe was decided.
    Authorized,
    /// A subscription was made or changed.
    Subscribed,
    /// A subscription ended.
    Unsubscribed,
    /// A message was sent to a subscriber.
    MessageDelivered,
    /// A subscriber acknowledged a message.
    MessageAcked,
    /// A message had no subscriber.
    MessageDropped,
    /// A subscriber did not get a message.
    DeliveryDropped,
}

impl EventKind {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::ClientConnected,
        Self::ClientDisconnected,
        Self::ClientConnack,
        Self::ClientPing,
        Self::Authenticated,
        Self::Authorized,
        Self::Subscribed,
        Self::Unsubscribed,
        Self::MessageDelivered,
        Self::MessageAcked,
        Self::MessageDropped,
        Self::DeliveryDropped,
    ];

    const fn bit(self) -> u16 {
        1 << self as u8
    }
}

/// An event. What its kind does not have is empty.
#[derive(Debug, Clone, Default)]
pub struct Event {
    /// What happened.
    pub kind: Option<EventKind>,
    /// Whom it concerns; of a message that was dropped its publisher.
    pub client_id: Arc<str>,
    /// Its user name.
    pub username: Option<Arc<str>>,
    /// Its address.
    pub peer: Option<IpAddr>,
    /// Of its connection.
    pub connection: Option<Connection>,
    /// The message.
    pub message: Option<Told>,
    /// The topic or filter, where there is no message.
    pub topic: Option<Arc<str>>,
    /// Of the subscription.
    pub qos: u8,
    /// Why, in EMQX's word or the reason code's name.
    pub reason: Cow<'static, str>,
    /// `publish` or `subscribe`.
    pub action: &'static str,
    /// Whether it was allowed.
    pub allowed: bool,
    /// Of the packet that it came by, as encoded.
    pub properties: Bytes,
}

/// A connection.
#[derive(Debug, Clone, Copy)]
pub struct Connection {
    /// Of the protocol.
    pub version: Version,
    /// Seconds; 0: off.
    pub keep_alive_s: u16,
    /// As asked for.
    pub clean_start: bool,
    /// Of the session, in seconds.
    pub expiry_s: u32,
    /// Seconds since 1970; 0: not known, since nobody asked when it came.
    pub connected_s: u32,
}

/// A message of which something is told.
#[derive(Debug, Clone)]
pub struct Told {
    /// Topic name.
    pub topic: Arc<str>,
    /// Payload.
    pub payload: Bytes,
    /// Quality of service.
    pub qos: u8,
    /// Retain flag.
    pub retain: bool,
    /// Properties, as encoded.
    pub properties: Bytes,
    /// Where it is from, if that is known.
    pub source: Option<Arc<Source>>,
}

/// Where a message is from, for those who keep it.
pub(crate) fn source(message: &Message<'_>) -> Arc<Source> {
    Arc::new(Source {
        client_id: Arc::clone(&message.publisher.client_id),
        username: message.publisher.username.clone(),
        host: message.publisher.host.clone(),
        received_wall_ms: message.received.wall_ms,
        hops: message.hops,
    })
}

impl Told {
    pub(crate) fn message(message: &Message<'_>) -> Self {
        Self {
            topic: message.topic.into(),
            payload: Bytes::copy_from_slice(message.payload),
            qos: message.qos.into(),
            retain: message.retain,
            properties: Bytes::copy_from_slice(message.properties.as_bytes()),
            source: Some(source(message)),
        }
    }

    /// As it was sent to a subscriber.
    pub(crate) fn sent(message: &Message<'_>, qos: QoS, retain: bool) -> Self {
        Self { qos: qos.into(), retain, ..Self::message(message) }
    }

    pub(crate) fn delivery(delivery: &Delivery) -> Self {
        Self {
            topic: Arc::clone(&delivery.topic),
            payload: delivery.payload.clone(),
            qos: delivery.qos,
            retain: delivery.retain,
            properties: delivery.properties.clone(),
            source: delivery.source.clone(),
        }
    }
}

/// What is asked for, and what happened since it was last told.
#[derive(Debug, Default)]
pub(crate) struct Events {
    wanted: u16,
    list: Vec<Event>,
    /// Why the connection that is about to end does.
    pub(crate) ending: Option<ReasonCode>,
    pub(crate) dropped: u64,
}

impl Events {
    #[inline]
    pub(crate) fn wants(&self, kind: EventKind) -> bool {
        self.wanted & kind.bit() != 0
    }

    /// Whether what is kept for subscribers must say where it is from.
    #[inline]
    pub(crate) fn want_sources(&self) -> bool {
        use EventKind::{DeliveryDropped, MessageAcked, MessageDelivered};
        self.wanted & (MessageDelivered.bit() | MessageAcked.bit() | DeliveryDropped.bit()) != 0
    }

    /// Whether connections must know since when they are there.
    pub(crate) fn want_clients(&self) -> bool {
        use EventKind::{ClientConnack, ClientConnected, ClientDisconnected, ClientPing};
        let kinds = [ClientConnack, ClientConnected, ClientDisconnected, ClientPing];
        kinds.into_iter().any(|kind| self.wants(kind))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Notes an event that is [wanted](Self::wants).
    #[cold]
    pub(crate) fn tell(&mut self, kind: EventKind, event: Event) {
        if self.list.len() < EVENTS_MAX {
            self.list.push(Event { kind: Some(kind), ..event });
        } else {
            self.dropped += 1;
        }
    }
}

impl<H: Hook, S: Store> Shard<H, S> {
    /// From now on the hook is told of these and no others.
    pub fn set_events(&mut self, kinds: impl Iterator<Item = EventKind>) {
        self.events.wanted = kinds.fold(0, |wanted, kind| wanted | kind.bit());
    }

    /// Tells the hook what happened.
    pub(crate) fn tell_events(&mut self) {
        for event in std::mem::take(&mut self.events.list) {
            let mut ends = Ends::new(&mut self.receipts, None);
            self.hook.event(&event, &mut ends, self.now);
        }
    }

    /// An event of a client, as far as there are a session and a connection.
    pub(crate) fn client_event(&self, key: Option<SessionKey>, id: Option<ConnId>) -> Event {
        client_event(&self.sessions, &self.conns, key, id)
    }

    /// Tells of an answer to a CONNECT, and of a client that is connected by it.
    pub(crate) fn tell_connack(&mut self, event: Event, reason: ReasonCode, properties: Properties<'_>) {
        let properties = encoded(properties);
        if reason == ReasonCode::SUCCESS && self.events.wants(EventKind::ClientConnected) {
            let event = Event { properties: properties.clone(), ..event.clone() };
            self.events.tell(EventKind::ClientConnected, event);
        }
        if self.events.wants(EventKind::ClientConnack) {
            let event = Event { reason: reason_code(reason), properties, ..event };
            self.events.tell(EventKind::ClientConnack, event);
        }
    }

    /// Tells that something was allowed or not.
    pub(crate) fn tell_authorized(&mut self, id: ConnId, action: &'static str, topic: &str, allowed: bool) {
        let Some(key) = self.session_of(id) else { return };
        let event =
            Event { action, topic: Some(topic.into()), allowed, ..self.client_event(Some(key), Some(id)) };
        self.events.tell(EventKind::Authorized, event);
    }

    /// Tells of a message that nobody subscribes to.
    pub(crate) fn tell_no_subscribers(&mut self, message: &Message<'_>) {
        let event = Event {
            client_id: Arc::clone(&message.publisher.client_id),
            username: message.publisher.username.clone(),
            message: Some(Told::message(message)),
            reason: "no_subscribers".into(),
            ..Event::default()
        };
        self.events.tell(EventKind::MessageDropped, event);
    }

    /// Tells of a message that its publisher does not want back.
    pub(crate) fn tell_no_local(&mut self, key: SessionKey, message: &Message<'_>) {
        let id = self.sessions.get(key).and_then(|s| s.conn);
        let told = Some(Told::message(message));
        let event = Event { message: told, reason: "no_local".into(), ..self.client_event(Some(key), id) };
        self.events.tell(EventKind::DeliveryDropped, event);
    }

    /// Tells that a subscriber has acknowledged what it got under a packet id.
    pub(crate) fn tell_acked(&mut self, id: ConnId, packet_id: u16) {
        let Some(key) = self.session_of(id) else { return };
        let Some(session) = self.sessions.get_mut(key) else { return };
        let delivery = match &session.kind {
            Kind::Clean(_) => session.inflight.kept(packet_id).cloned(),
            Kind::Moved(_) => None,
            Kind::Persistent { queue } => {
                let seq = session.inflight.get_mut(packet_id).map(|outbound| outbound.seq);
                seq.and_then(|seq| queue.get(seq)).map(|row| Arc::clone(&row.delivery))
            }
        };
        // What another answer has ended is not acknowledged again.
        let Some(delivery) = delivery else { return };
        let event =
            Event { message: Some(Told::delivery(&delivery)), ..self.client_event(Some(key), Some(id)) };
        self.events.tell(EventKind::MessageAcked, event);
    }
}

/// An event of a client, as far as there are a session and a connection.
pub(crate) fn client_event(
    sessions: &Slots<marker::Session, Session>,
    conns: &Slots<marker::Conn, Conn>,
    key: Option<SessionKey>,
    id: Option<ConnId>,
) -> Event {
    let (session, conn) = (key.and_then(|key| sessions.get(key)), id.and_then(|id| conns.get(id)));
    Event {
        client_id: session.map(|s| Arc::clone(&s.client_id)).unwrap_or_default(),
        username: session.and_then(|s| s.username.clone()),
        peer: conn.map(|c| c.peer),
        connection: conn.map(|conn| Connection {
            version: conn.version,
            keep_alive_s: conn.keep_alive_s,
            clean_start: false,
            expiry_s: session.map_or(0, |s| s.expiry_s),
            connected_s: conn.publishing.get().map_or(0, |p| p.connected_s),
        }),
        ..Event::default()
    }
}

/// Properties of a packet, kept.
pub(crate) fn encoded(properties: Properties<'_>) -> Bytes {
    Bytes::copy_from_slice(properties.as_bytes())
}

/// A reason code as EMQX's `reason_code` has it: `success`, `not_authorized`.
pub(crate) fn reason_code(reason: ReasonCode) -> Cow<'static, str> {
    if reason == ReasonCode::SUCCESS {
        return "success".into();
    }
    reason.name().to_lowercase().replace([' ', '-'], "_").into()
}

/// Why a client is gone, in EMQX's words where it has some.
pub(crate) fn ending_reason(reason: Option<ReasonCode>) -> Cow<'static, str> {
    match reason {
        None => "tcp_closed".into(),
        Some(ReasonCode::SUCCESS) => "normal".into(),
        Some(ReasonCode::SESSION_TAKEN_OVER) => "takenover".into(),
        Some(ReasonCode::KEEP_ALIVE_TIMEOUT) => "keepalive_timeout".into(),
        Some(ReasonCode::ADMINISTRATIVE_ACTION) => "kicked".into(),
        Some(reason) => reason_code(reason),
    }
}
