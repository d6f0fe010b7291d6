//! How connections and sessions end.

use crate::config;
use crate::events::{Event, EventKind, ending_reason};
use crate::hook::Hook;
use crate::session::{Kind, LateWill, Phase, Rare, Session, Waiters, session_id};
use crate::shard::{Command, Shard};
use crate::turn::WILL_US;
use crate::{ConnId, SessionKey};
use ferrule_mqtt::{
    Connack, DecodeError, Disconnect, Packet, PacketType, Properties, PropertiesBuf, Property, ReasonCode,
    Version, connect_version, frame_len, topic,
};
use ferrule_outbox::Outcome;
use ferrule_store::record::Delivery;
use ferrule_store::{Op, Store};
use std::borrow::Cow;
use std::sync::Arc;

/// Why a connection ends, for whoever is at the other end.
#[derive(Debug, Clone)]
pub(crate) struct Why {
    pub(crate) reason: ReasonCode,
    /// For the Reason String; empty: the code says it all.
    text: Cow<'static, str>,
    /// Another node may have room.
    elsewhere: bool,
}

impl Why {
    pub(crate) fn new(reason: ReasonCode, text: impl Into<Cow<'static, str>>) -> Self {
        Self { reason, text: text.into(), elsewhere: false }
    }

    /// The node is full, or stops: where else to go is told, where that is known.
    pub(crate) fn elsewhere(reason: ReasonCode, text: &'static str) -> Self {
        Self { elsewhere: true, ..Self::new(reason, text) }
    }

    /// Passes reason and properties, as far as they may be said, to what encodes a packet of MQTT 5 with them.
    /// `most`: bytes that the client takes [MQTT-3.2.2-19], [MQTT-3.14.2-3].
    fn encode(
        &self,
        server_reference: Option<&str>,
        most: u32,
        out: &mut Vec<u8>,
        packet: impl Fn(ReasonCode, Properties<'_>, &mut Vec<u8>),
    ) {
        let before = out.len();
        let mut properties = PropertiesBuf::new();
        let reference = server_reference.filter(|_| self.elsewhere);
        let reason = if reference.is_some() { ReasonCode::USE_ANOTHER_SERVER } else { self.reason };
        // What is too long for a string of MQTT is not said.
        let _ = reference.map(|reference| properties.push(Property::ServerReference(reference)));
        if !self.text.is_empty() {
            let _ = properties.push(Property::ReasonString(&self.text));
        }
        packet(reason, properties.as_properties(), out);
        if out.len() - before > most as usize {
            out.truncate(before);
            packet(reason, Properties::EMPTY, out);
        }
    }
}

impl From<ReasonCode> for Why {
    fn from(reason: ReasonCode) -> Self {
        Self::new(reason, "")
    }
}

impl<H: Hook, S: Store> Shard<H, S> {
    pub(crate) fn client_disconnects(&mut self, id: ConnId, disconnect: &Disconnect<'_>) {
        let Some(conn) = self.conns.get(id) else { return };
        let expiry_max_s = config::client(&self.limits.clients, conn.limits).session_expiry_max_s;
        if let Some(session) = conn.session.and_then(|key| self.sessions.get_mut(key)) {
            if let Some(expiry) = disconnect.properties.session_expiry_interval() {
                if session.expiry_s == 0 && expiry != 0 {
                    // [MQTT-3.14.2-2]
                    self.protocol_error(
                        id,
                        "a session that was to end with its connection cannot be kept now",
                    );
                    return;
                }
                session.expiry_s = expiry.min(expiry_max_s);
            }
            if disconnect.reason == ReasonCode::SUCCESS {
                // [MQTT-3.14.4-3]; whoever leaves for another reason leaves its will.
                session.will = None;
            }
        }
        self.events.ending = Some(disconnect.reason);
        self.close(id);
    }

    pub(crate) fn session_of(&self, id: ConnId) -> Option<SessionKey> {
        self.conns.get(id)?.session
    }

    pub(crate) fn refuse_bytes(&mut self, id: ConnId, error: &DecodeError, bytes: &[u8]) {
        match error {
            DecodeError::TooLarge { .. } => self.stats.oversized += 1,
            _ => self.stats.protocol_errors += 1,
        }
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.phase != Phase::AwaitConnect {
            self.reject(id, Why::new(error.reason(), error.to_string()));
            return;
        }
        // A CONNACK only where the bytes were a CONNECT of sorts: garbage gets no answer.
        let version = match error {
            DecodeError::UnsupportedVersion(level) if *level > 5 => Some(Version::V5),
            DecodeError::UnsupportedVersion(_) => Some(Version::V3_1_1),
            _ => {
                // What follows the frame says nothing about it.
                let frame = frame_len(bytes, usize::MAX).ok().flatten().unwrap_or(usize::MAX);
                connect_version(&bytes[..frame.min(bytes.len())])
            }
        };
        if let Some(version) = version {
            conn.version = version;
            // How large a packet its sender takes is not known: nothing that need not be said is [MQTT-3.2.2-19].
            self.write_refusal(id, &error.reason().into());
        }
        self.close(id);
    }

    pub(crate) fn protocol_error(&mut self, id: ConnId, text: &'static str) {
        self.stats.protocol_errors += 1;
        self.reject(id, Why::new(ReasonCode::PROTOCOL_ERROR, text));
    }

    /// Ends a connection with the packet that its state has for a reason: CONNACK while it authenticates, else DISCONNECT.
    pub(crate) fn reject(&mut self, id: ConnId, why: impl Into<Why>) {
        if self.conns.get(id).is_some_and(|conn| conn.phase == Phase::AwaitAuth) {
            self.refuse(id, why);
        } else {
            self.disconnect(id, why);
        }
    }

    /// Answers a CONNECT with no, and closes.
    pub(crate) fn refuse(&mut self, id: ConnId, why: impl Into<Why>) {
        self.stats.refused += 1;
        let why = why.into();
        if self.events.wants(EventKind::ClientConnack) {
            let client_id = self.conns.get(id).and_then(|c| c.connecting.as_ref()).map(|c| c.client_id());
            let event = self.client_event(None, Some(id));
            let event = Event { client_id: client_id.unwrap_or_default(), ..event };
            self.tell_connack(event, why.reason, Properties::EMPTY);
        }
        self.write_refusal(id, &why);
        self.close(id);
    }

    /// A CONNACK that refuses. MQTT 3.x has five codes; what they cannot say is closed without one.
    fn write_refusal(&mut self, id: ConnId, why: &Why) {
        let Some(conn) = self.conns.get(id) else { return };
        if conn.version != Version::V5 && why.reason.to_connack_v3().is_none() {
            return;
        }
        let most = conn.peer_packet_bytes;
        let features = Arc::clone(&self.features);
        self.write(id, |out, version| {
            let connack = |reason: ReasonCode, properties: Properties<'_>, out: &mut Vec<u8>| {
                // What is wrong with a property may be said in other packets alone.
                let reason =
                    if reason.allowed_in(PacketType::Connack) { reason } else { ReasonCode::PROTOCOL_ERROR };
                let connack = Connack { session_present: false, reason, properties };
                // Strings that fit and numbers: these encode.
                let _ = Packet::Connack(connack).encode(version, out);
            };
            if version == Version::V5 {
                why.encode(features.server_reference.as_deref(), most, out, connack);
            } else {
                connack(why.reason, Properties::EMPTY, out);
            }
        });
    }

    /// Tells the client why, where its version can be told, and closes.
    pub(crate) fn disconnect(&mut self, id: ConnId, why: impl Into<Why>) {
        let why = why.into();
        self.events.ending = Some(why.reason);
        if self.conns.get(id).is_some_and(|conn| matches!(conn.phase, Phase::Open)) {
            self.write_disconnect(id, &why);
        }
        self.close(id);
    }

    /// A DISCONNECT, for clients of MQTT 5: no other version has one from a server.
    pub(crate) fn write_disconnect(&mut self, id: ConnId, why: &Why) {
        let Some(conn) = self.conns.get(id).filter(|conn| conn.version == Version::V5) else { return };
        let most = conn.peer_packet_bytes;
        let features = Arc::clone(&self.features);
        self.write(id, |out, version| {
            why.encode(features.server_reference.as_deref(), most, out, |reason, properties, out| {
                // [MQTT-3.14.2-1]: a wrong password is a CONNACK's affair.
                let reason = if reason.allowed_in(PacketType::Disconnect) {
                    reason
                } else {
                    ReasonCode::NOT_AUTHORIZED
                };
                let _ = Packet::Disconnect(Disconnect { reason, properties }).encode(version, out);
            });
        });
    }

    /// Flushes and closes: the connection is as good as gone for its session.
    pub(crate) fn close(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let was_open = conn.phase == Phase::Open;
        if conn.phase != Phase::Closing {
            conn.phase = Phase::Closing;
            self.commands.push(Command::Close(id));
        }
        self.detach(id, was_open);
        self.events.ending = None;
    }

    /// Parts a connection from its session, which ends or waits. `was_open`: it had its CONNACK.
    pub(crate) fn detach(&mut self, id: ConnId, was_open: bool) {
        self.presence.forget(id);
        self.looks_no_more(id);
        let Some(conn) = self.conns.get_mut(id) else { return };
        if let Some(publishing) = conn.publishing.get_mut() {
            publishing.waiting.clear();
        }
        let Some(key) = conn.session else {
            self.end_will(id);
            return;
        };
        let will = self.sessions.get(key).is_some_and(|s| s.will.is_some());
        let publisher = if will { self.publisher(id) } else { None };
        if let Some(conn) = self.conns.get_mut(id) {
            conn.session = None;
        }
        let Some(session) = self.sessions.get_mut(key) else { return };
        if session.conn != Some(id) {
            self.end_will(id);
            return;
        }
        session.conn = None;
        if was_open && self.events.wants(EventKind::ClientDisconnected) {
            let reason = ending_reason(self.events.ending);
            let event = Event { reason, ..self.client_event(Some(key), Some(id)) };
            self.events.tell(EventKind::ClientDisconnected, event);
        }
        self.share_online(key, false);
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.backlog = Rare::default();
        let mut will = session.will.take().zip(publisher);
        let (expiry_s, stored) = (session.expiry_s, session.is_persistent());
        if expiry_s == 0 || !session.is_persistent() {
            self.drop_session(key);
        } else {
            if expiry_s != u32::MAX {
                session.expires_us = self.now.mono_us + u64::from(expiry_s) * 1_000_000;
            }
            let least_us = if self.standing.parks() { WILL_US } else { 0 };
            if let Some((will, publisher)) = will.take_if(|(will, _)| will.delay_s > 0 || least_us > 0) {
                let due_us = self.now.mono_us + least_us.max(u64::from(will.delay_s) * 1_000_000);
                session.late_will = Some(Box::new(LateWill { will: *will, publisher, due_us }));
            }
            session.inflight.park();
            if let Kind::Persistent { queue } = &mut session.kind {
                queue.set_up(false, self.now);
                queue.reset();
            }
            self.arm_session(key);
            self.touch(key);
            if let Some((op, due)) = self.session_op(key, Some(self.steady.ms(self.now))) {
                self.op(op, due);
            }
        }
        let Some((will, publisher)) = will else {
            self.end_will(id);
            return;
        };
        if stored {
            self.publish_will(Some(key), &publisher, &will, stored);
        } else if let Some(will) = self.end_with_will(id, &publisher, will) {
            self.publish_will(Some(key), &publisher, &will, stored);
        }
    }

    /// Takes a session out with its routes; what is the store's stays.
    pub(crate) fn remove_session(&mut self, key: SessionKey) -> Option<Session> {
        let session = self.sessions.remove(key)?;
        for (filter, _) in &session.subscriptions {
            self.filter_bytes -= config::FILTER + filter.len();
            self.remove_route(key, filter);
            if topic::exclusive(filter).is_some() {
                self.release_claim(filter, &session.client_id);
            }
        }
        Some(session)
    }

    /// Forgets a session: its subscriptions, its queue, its packet ids.
    pub(crate) fn drop_session(&mut self, key: SessionKey) {
        self.remove_client(key);
        let Some(session) = self.remove_session(key) else { return };
        let mut left: Vec<Arc<Delivery>> = session.inflight.shared().cloned().collect();
        let is_shared = |delivery: &Arc<Delivery>| delivery.share.is_some() && delivery.qos == 1;
        let stored = session.is_persistent();
        match session.kind {
            Kind::Clean(mut waiters) => {
                // A session that ends with its connection: nothing more is owed to it.
                let Waiters { pending, bytes, .. } = waiters.take();
                self.pool.change(bytes, 0);
                left.extend(pending.iter().map(|p| Arc::clone(&p.delivery)).filter(is_shared));
                self.ended
                    .extend(pending.into_iter().filter_map(|p| p.end).map(|end| (end, Outcome::Delivered)));
                self.settle();
            }
            Kind::Persistent { queue } => {
                let id = session_id(&queue);
                self.forget_stored(id);
                if session.shares {
                    left.extend(queue.rows().map(|row| Arc::clone(&row.delivery)).filter(is_shared));
                }
                // The subscriber is gone by its own wish or by its expiry: what it had not taken is nobody's.
                queue.close(ferrule_outbox::Reason::Removed, &mut self.ended);
                self.op(Op::SessionDelete { session: id }, true);
                self.settle();
            }
            Kind::Moved(_) => {}
        }
        self.share_again(left);
        if let Some(late) = session.late_will {
            let LateWill { will, publisher, .. } = *late;
            self.publish_will(None, &publisher, &will, stored);
        }
    }
}
