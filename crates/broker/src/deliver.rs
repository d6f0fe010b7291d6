//! One message to one session.

use crate::alias::Alias;
use crate::config::{self, Limits, SLOWEST};
use crate::events::{self, Event, EventKind, Events, Told, client_event};
use crate::hook::{Access, Ends, Hook, Message};
use crate::owners::Owners;
use crate::pool::Pool;
use crate::publish::{Target, expired};
use crate::session::{
    Conn, Kind, Outbound, OutboundState, Pending, Phase, Queued, Rare, Session, delivery_size, session_id,
};
use crate::shard::{Buffers, Shard, Stats};
use crate::slots::Slots;
use crate::steady::Steady;
use crate::turn::{Batch, Wait};
use crate::{ConnId, SessionKey, marker};
use bytes::Bytes;
use ferrule_mqtt::{
    PacketType, Properties, PropertiesBuf, Property, PropertyScope, PublishFlags, PublishTemplate, QoS,
    Version, encode_publish,
};
use ferrule_outbox::{End, Outcome, Reason};
use ferrule_store::record::{self, Delivery, Record};
use ferrule_store::{BodyId, Now, Op, Side, Store};
use std::sync::Arc;

/// The parts of a shard that a delivery touches: apart from its receipts, which the publish in hand has borrowed.
pub(crate) struct Delivering<'a> {
    pub(crate) conns: &'a mut Slots<marker::Conn, Conn>,
    pub(crate) sessions: &'a mut Slots<marker::Session, Session>,
    pub(crate) dirty: &'a mut Vec<ConnId>,
    pub(crate) buffers: &'a mut Buffers,
    pub(crate) touched: &'a mut Vec<SessionKey>,
    pub(crate) ended: &'a mut Vec<(End, Outcome)>,
    pub(crate) batch: &'a mut Batch,
    pub(crate) stats: &'a mut Stats,
    pub(crate) events: &'a mut Events,
    pub(crate) limits: &'a Limits,
    pub(crate) pool: &'a mut Pool,
    pub(crate) owners: &'a mut Owners,
    /// This shard.
    pub(crate) own: u16,
    pub(crate) now: Now,
    pub(crate) steady: Steady,
}

/// Borrows a shard's fields one by one, so that its receipts can be borrowed beside them: a method would borrow all of it.
macro_rules! delivering {
    ($shard:expr) => {
        $crate::deliver::Delivering {
            conns: &mut $shard.conns,
            sessions: &mut $shard.sessions,
            dirty: &mut $shard.dirty,
            buffers: &mut $shard.buffers,
            touched: &mut $shard.touched,
            ended: &mut $shard.ended,
            batch: &mut $shard.batch,
            stats: &mut $shard.stats,
            events: &mut $shard.events,
            limits: &$shard.limits,
            pool: &mut $shard.pool,
            owners: &mut $shard.owners,
            own: $shard.peers.place.index,
            now: $shard.now,
            steady: $shard.steady,
        }
    };
}
pub(crate) use delivering;

/// A message on its way to its subscribers: encoded once per layout, copied once for those who keep it.
pub(crate) struct Outgoing<'a> {
    message: &'a Message<'a>,
    /// To forward: as published, without topic alias.
    properties: Properties<'a>,
    expires_wall_ms: Option<i64>,
    /// More than one receiver: templates pay.
    many: bool,
    /// More than one persistent session keeps it: its body is stored once.
    shared: Option<BodyId>,
    templates: [Option<PublishTemplate>; 4],
    kept: Option<Arc<Delivery>>,
    /// What is kept says where it is from: somebody asks.
    sourced: bool,
    /// What the lists that were asked last said of the topic: many receivers have the same.
    asked: Option<(Arc<dyn Access>, bool)>,
}

impl<'a> Outgoing<'a> {
    pub(crate) fn new(
        message: &'a Message<'a>,
        expires_wall_ms: Option<i64>,
        many: bool,
        shared: Option<BodyId>,
        sourced: bool,
    ) -> Self {
        Self {
            message,
            properties: message.properties,
            expires_wall_ms,
            many,
            shared,
            templates: [const { None }; 4],
            kept: None,
            sourced,
            asked: None,
        }
    }

    /// Bytes that it costs a receiver's output, but for the fixed header and its subscription identifiers.
    fn size(&self) -> usize {
        self.message.topic.len() + self.properties.as_bytes().len() + self.message.payload.len()
    }

    /// Whether what it is delivered as must not leave before its packet id is durable: a repetition after a kill would be another
    /// message to a session that ends with its connection.
    fn is_held(&self, qos: QoS) -> bool {
        self.message.hold && qos == QoS::ExactlyOnce
    }

    /// Whether a receiver with these lists may have it.
    fn may_receive(&mut self, access: &Arc<dyn Access>) -> bool {
        if !self.many {
            return access.receive(self.message.topic);
        }
        match &self.asked {
            Some((asked, answer)) if std::ptr::addr_eq(Arc::as_ptr(asked), Arc::as_ptr(access)) => *answer,
            _ => {
                let answer = access.receive(self.message.topic);
                self.asked = Some((Arc::clone(access), answer));
                answer
            }
        }
    }

    /// The message as a queue keeps it; shared among receivers who get it alike.
    fn keep(&mut self, qos: QoS, retain: bool, ids: &[u32], share: Option<&Arc<str>>) -> Arc<Delivery> {
        if let Some(kept) = &self.kept
            && (kept.qos, kept.retain, &kept.subscription_ids[..]) == (qos.into(), retain, ids)
            && kept.share.as_ref() == share
        {
            return Arc::clone(kept);
        }
        let mut properties = PropertiesBuf::new();
        properties.extend(self.properties, |p| p != ferrule_mqtt::PropertyId::MessageExpiryInterval);
        let (topic, payload) = match &self.kept {
            Some(kept) => (Arc::clone(&kept.topic), kept.payload.clone()),
            None => (self.message.topic.into(), Bytes::copy_from_slice(self.message.payload)),
        };
        let kept = Arc::new(Delivery {
            topic,
            qos: qos.into(),
            retain,
            expires_wall_ms: self.expires_wall_ms,
            subscription_ids: ids.to_vec(),
            properties: Bytes::copy_from_slice(properties.as_properties().as_bytes()),
            payload,
            share: share.cloned(),
            source: self.sourced.then(|| events::source(self.message)),
        });
        self.kept = Some(Arc::clone(&kept));
        kept
    }

    fn encode(
        &mut self,
        out: &mut Vec<u8>,
        version: Version,
        flags: PublishFlags,
        packet_id: u16,
        ids: &[u32],
        alias: Option<Alias>,
    ) {
        let Message { topic, payload, .. } = *self.message;
        // The topic was valid when it was received, and a packet that came in is not too large to go out: none of
        // these can fail, and what did would leave `out` unchanged.
        if (!ids.is_empty() && version == Version::V5) || alias.is_some() {
            let mut extra = PropertiesBuf::new();
            let topic = named(topic, alias, &mut extra);
            ids.iter().for_each(|&id| {
                let _ = extra.push(Property::SubscriptionIdentifier(id));
            });
            let properties = [self.properties, extra.as_properties()];
            let _ = encode_publish(out, version, flags, topic, packet_id, &properties, payload);
        } else if self.many {
            let layout = usize::from(version == Version::V5) * 2 + usize::from(flags.qos > QoS::AtMostOnce);
            if self.templates[layout].is_none() {
                let acknowledged = flags.qos > QoS::AtMostOnce;
                self.templates[layout] =
                    PublishTemplate::new(version, acknowledged, topic, &[self.properties], payload).ok();
            }
            if let Some(template) = &self.templates[layout] {
                template.write(out, flags, packet_id);
            }
        } else {
            let _ = encode_publish(out, version, flags, topic, packet_id, &[self.properties], payload);
        }
    }
}

impl Delivering<'_> {
    pub(crate) fn deliver(
        &mut self,
        out: &mut Outgoing<'_>,
        target: &Target,
        ids: &[u32],
        share: Option<&Arc<str>>,
        ends: &mut Ends<'_>,
    ) {
        let Some(session) = self.sessions.get_mut(target.session) else { return };
        let qos = target.qos;
        let retain = target.retain_as_published && out.message.retain;
        let conn_id = session.conn.filter(|id| self.conns.get(*id).is_some_and(|c| c.phase == Phase::Open));
        if let Some(id) = conn_id
            && let Some(conn) = self.conns.get_mut(id)
        {
            if !out.may_receive(&conn.access) {
                self.tell_dropped(Some(target.session), Some(id), "not_authorized", || {
                    Told::message(out.message)
                });
                return;
            }
            let bound = config::client(&self.limits.clients, conn.limits).output_bytes;
            let room = self.pool.fits(bound, conn.out.len(), out.size());
            if qos == QoS::AtMostOnce {
                if !room {
                    if conn.out.len() < bound {
                        self.stats.dropped_pool += 1;
                    } else {
                        self.stats.dropped_slow += 1;
                    }
                    self.tell_dropped(Some(target.session), Some(id), "queue_full", || {
                        Told::message(out.message)
                    });
                    return;
                }
                let flags = PublishFlags { qos, retain, dup: false };
                let alias = conn.alias(out.message.topic);
                if append(conn, self.dirty, self.buffers, self.pool, self.now, id, |buf, v| {
                    out.encode(buf, v, flags, 0, ids, alias)
                }) {
                    self.stats.sent += 1;
                    self.tell_delivered(Some(target.session), Some(id), || {
                        Told::sent(out.message, qos, retain)
                    });
                } else {
                    conn.unset_alias(alias);
                    self.stats.dropped_too_large += 1;
                    self.tell_dropped(Some(target.session), Some(id), "too_large", || {
                        Told::message(out.message)
                    });
                }
                return;
            }
            if let Kind::Clean(waiters) = &session.kind
                && !out.is_held(qos)
                && waiters.get().is_none_or(|waiters| waiters.pending.is_empty())
                && room
                && session.has_room()
                && let Some(packet_id) = session.inflight.push(0, awaited(qos))
            {
                let flags = PublishFlags { qos, retain, dup: false };
                let alias = conn.alias(out.message.topic);
                if append(conn, self.dirty, self.buffers, self.pool, self.now, id, |buf, v| {
                    out.encode(buf, v, flags, packet_id, ids, alias)
                }) {
                    self.stats.sent += 1;
                    let is_shared = share.is_some() && qos == QoS::AtLeastOnce;
                    if is_shared || self.events.wants(EventKind::MessageAcked) {
                        session.inflight.keep(packet_id, out.keep(qos, retain, ids, share));
                    }
                    self.tell_delivered(Some(target.session), Some(id), || {
                        Told::sent(out.message, qos, retain)
                    });
                } else {
                    conn.unset_alias(alias);
                    session.inflight.finish(packet_id);
                    self.stats.dropped_too_large += 1;
                    self.tell_dropped(Some(target.session), Some(id), "too_large", || {
                        Told::message(out.message)
                    });
                }
                return;
            }
        } else if qos == QoS::AtMostOnce {
            return; // An effective QoS of 0 is not kept for the absent.
        }
        let shared = out.shared;
        let delivery = out.keep(qos, retain, ids, share);
        let held = out.is_held(qos) && !session.is_persistent();
        let kept = self.enqueue_with(target.session, &delivery, shared, held, Some(ends));
        if !kept {
            self.tell_dropped(Some(target.session), conn_id, "queue_full", || Told::delivery(&delivery));
        }
        if held && kept {
            // Its publisher's wait ends with this turn's commit, and so does this one's.
            self.batch.waits.extend(ends.end().map(Wait::End));
            self.batch.waits.push(Wait::Held(target.session));
            self.batch.due = true;
        } else if conn_id.is_some() {
            self.pump(target.session);
        }
    }

    /// Puts a message behind all that waits for a session.
    pub(crate) fn enqueue(&mut self, key: SessionKey, delivery: &Arc<Delivery>, ends: Option<&mut Ends<'_>>) {
        let _ = self.enqueue_with(key, delivery, None, false, ends);
    }

    /// The same; whether it waits now.
    fn enqueue_with(
        &mut self,
        key: SessionKey,
        delivery: &Arc<Delivery>,
        shared: Option<BodyId>,
        held: bool,
        mut ends: Option<&mut Ends<'_>>,
    ) -> bool {
        let Some(session) = self.sessions.get_mut(key) else { return false };
        let limits = config::client(&self.limits.clients, session.limits);
        match &mut session.kind {
            Kind::Clean(waiters) => {
                let waiters = waiters.make();
                let bound = self.pool.bound(limits.pending_bytes);
                let mut end = None;
                match ends {
                    // Past the bound its publisher waits; one that cannot wait is not kept.
                    Some(ends) if waiters.bytes >= bound => {
                        end = ends.end();
                        self.stats.held_back += u64::from(end.is_some());
                        if end.is_none() {
                            self.stats.dropped_slow += 1;
                            return false;
                        }
                    }
                    Some(_) => {}
                    // Retained: the index holds the payload anyway.
                    None if waiters.pending.len() as u64 >= limits.queue_messages => {
                        self.stats.dropped_full += 1;
                        return false;
                    }
                    None => {}
                }
                let size = delivery_size(delivery);
                waiters.bytes += size;
                self.pool.change(0, size);
                if waiters.bytes >= bound && waiters.taken_us == 0 {
                    (waiters.taken_us, waiters.taken) = (self.now.mono_us, 0);
                }
                waiters.pending.push_back(Pending { delivery: Arc::clone(delivery), end, held });
            }
            // Its next owner has it from whoever sends it.
            Kind::Persistent { queue }
                if queue.is_frozen()
                    && delivery.share.is_none()
                    && self.owners.have_passed(queue, &session.client_id, self.own) => {}
            Kind::Persistent { queue } => {
                let has_bytes = queue.backlog(self.now).0 < limits.queue_bytes;
                if queue.counters().queued >= limits.queue_messages || !has_bytes {
                    if has_bytes {
                        self.stats.dropped_full += 1;
                    } else {
                        self.stats.dropped_full_bytes += 1;
                    }
                    if let Some(ends) = ends {
                        ends.discard(Outcome::Discarded(Reason::Limit));
                    }
                    return false;
                }
                let row = Queued { delivery: Arc::clone(delivery), shared };
                let end = ends.as_deref_mut().and_then(Ends::end);
                if let Err((_, end)) = queue.push(row, end, self.now) {
                    // Memory is full of rows that cannot be written: the publisher keeps the message, or has none.
                    self.stats.dropped_full += u64::from(end.is_none());
                    if let Some(ends) = ends {
                        ends.resolve(end, Outcome::Retry);
                    }
                }
                if !session.touched {
                    session.touched = true;
                    self.touched.push(key);
                }
            }
            Kind::Moved(moved) => {
                let end = || ends.as_deref_mut().and_then(Ends::end);
                self.owners.send_on(moved, &session.client_id, delivery, self.own, end);
            }
        }
        true
    }

    /// What the oldest held message of a session waited for is durable.
    pub(crate) fn release_held(&mut self, key: SessionKey) {
        let Some(Session { kind: Kind::Clean(waiters), .. }) = self.sessions.get_mut(key) else { return };
        let pending = waiters.get_mut().map(|waiters| &mut waiters.pending);
        if let Some(held) = pending.and_then(|pending| pending.iter_mut().find(|pending| pending.held)) {
            held.held = false;
        }
        self.pump(key);
    }

    /// Sends what waits for a session, as far as its window and its output have room.
    pub(crate) fn pump(&mut self, key: SessionKey) {
        loop {
            let Some(session) = self.sessions.get_mut(key) else { return };
            let Some(id) = session.conn else { return };
            let Some(conn) = self.conns.get(id) else { return };
            let bound = config::client(&self.limits.clients, conn.limits).output_bytes;
            if conn.phase != Phase::Open || conn.out.len() >= self.pool.bound(bound) {
                return;
            }
            if let Some(backlog) = session.backlog.get_mut() {
                let Some(delivery) = backlog.pop_front() else {
                    session.backlog = Rare::default();
                    continue;
                };
                let _ = self.write_delivery(id, &delivery, 0, Sent::No);
                continue;
            }
            if !session.has_room() {
                return;
            }
            let more = match session.kind {
                Kind::Clean(_) => self.pump_clean(key, id),
                Kind::Persistent { .. } => self.pump_row(key, id),
                // It has no connection.
                Kind::Moved(_) => false,
            };
            if !more {
                return;
            }
        }
    }

    /// The next row of a session's queue. False when there is none.
    fn pump_row(&mut self, key: SessionKey, id: ConnId) -> bool {
        let Some(session) = self.sessions.get_mut(key) else { return false };
        let Kind::Persistent { queue } = &mut session.kind else { return false };
        let store_id = session_id(queue);
        let window = queue.counters().in_flight as usize + 1;
        let mut row = None;
        queue.take(window, self.now, |seq, row_, again| row = Some((seq, Arc::clone(&row_.delivery), again)));
        let Some((seq, delivery, again)) = row else { return false };
        let qos = qos(delivery.qos);
        let known = if again { session.inflight.unpark(seq) } else { None };
        let (packet_id, sent) = match known {
            Some(Outbound { packet_id, parked: true, sent, .. }) => {
                (packet_id, if sent { Sent::Yes } else { Sent::No })
            }
            // Its packet id is on its way to the store, or it has been sent since.
            Some(_) => return true,
            None if qos == QoS::ExactlyOnce => {
                let Some(packet_id) = session.inflight.push(seq, OutboundState::Commit) else { return false };
                // Packet id and message are durable before the PUBLISH: after a kill another message under this id
                // would be taken for this one and dropped.
                self.batch.op(
                    Op::InflightPut {
                        session: store_id,
                        side: Side::Outbound,
                        packet_id,
                        record: record::Inflight::Sent(seq).to_bytes(),
                    },
                    true,
                    self.now,
                );
                self.batch.waits.push(Wait::Publish(key, packet_id));
                self.touch(key);
                return true;
            }
            None => match session.inflight.push(seq, OutboundState::Puback) {
                // Handed out by an earlier process life, perhaps: DUP says no more than that.
                Some(packet_id) => (packet_id, if again { Sent::Perhaps } else { Sent::No }),
                None => return false,
            },
        };
        self.send_row(key, id, packet_id, seq, &delivery, sent);
        true
    }

    /// Sends a row under its packet id. What can never be delivered is given up.
    pub(crate) fn send_row(
        &mut self,
        key: SessionKey,
        id: ConnId,
        packet_id: u16,
        seq: u64,
        delivery: &Delivery,
        sent: Sent,
    ) {
        let reason = match self.write_delivery(id, delivery, packet_id, sent) {
            Ok(()) => return,
            Err(reason) => reason,
        };
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.inflight.finish(packet_id);
        if let Kind::Persistent { queue } = &mut session.kind {
            let session = session_id(queue);
            queue.answer(seq, Outcome::Discarded(reason), self.now, self.ended);
            if delivery.qos == 2 {
                let op = Op::InflightDelete { session, side: Side::Outbound, packet_id };
                self.batch.op(op, false, self.now);
            }
            self.touch(key);
        }
    }

    fn touch(&mut self, key: SessionKey) {
        if let Some(session) = self.sessions.get_mut(key)
            && !session.touched
        {
            session.touched = true;
            self.touched.push(key);
        }
    }

    /// The next message that waits in memory. False when there is none.
    fn pump_clean(&mut self, key: SessionKey, id: ConnId) -> bool {
        let Some(session) = self.sessions.get_mut(key) else { return false };
        let Kind::Clean(rare) = &mut session.kind else { return false };
        let Some(waiters) = rare.get_mut() else { return false };
        let Some(front) = waiters.pending.front() else {
            // Its memory was for the time of need.
            *rare = Rare::default();
            return false;
        };
        if front.held {
            return false;
        }
        let state = awaited(qos(front.delivery.qos));
        let Some(packet_id) = session.inflight.push(0, state) else { return false };
        let Some(Pending { delivery, end, .. }) = waiters.pending.pop_front() else { return false };
        let size = delivery_size(&delivery);
        waiters.bytes -= size;
        waiters.taken += size;
        self.pool.change(size, 0);
        let own = config::client(&self.limits.clients, session.limits).pending_bytes;
        if waiters.bytes < self.pool.bound(own) / 2 {
            waiters.taken_us = 0;
        } else if waiters.taken_us != 0 && waiters.taken >= own / SLOWEST {
            (waiters.taken_us, waiters.taken) = (self.now.mono_us, 0);
        }
        if let Some(end) = end {
            self.ended.push((end, Outcome::Delivered));
        }
        let written = self.write_delivery(id, &delivery, packet_id, Sent::No);
        if let Some(session) = self.sessions.get_mut(key) {
            if written.is_err() {
                session.inflight.finish(packet_id);
            } else if (delivery.share.is_some() && delivery.qos == 1)
                || self.events.wants(EventKind::MessageAcked)
            {
                session.inflight.keep(packet_id, delivery);
            }
        }
        true
    }

    /// Writes a kept message.
    ///
    /// # Errors
    /// When it expired, is larger than its receiver takes or may not be received any more. What was sent before does not
    /// expire [MQTT-4.4.0-1].
    pub(crate) fn write_delivery(
        &mut self,
        id: ConnId,
        delivery: &Delivery,
        packet_id: u16,
        sent: Sent,
    ) -> Result<(), Reason> {
        let Some(conn) = self.conns.get_mut(id) else { return Err(Reason::Removed) };
        let key = conn.session;
        if sent != Sent::Yes && expired(delivery.expires_wall_ms, self.steady.ms(self.now)) {
            self.stats.dropped_expired += 1;
            self.tell_dropped(key, Some(id), "expired", || Told::delivery(delivery));
            return Err(Reason::Expired);
        }
        if !conn.access.receive(&delivery.topic) {
            self.stats.denied += 1;
            self.tell_dropped(key, Some(id), "not_authorized", || Told::delivery(delivery));
            return Err(Reason::Refused);
        }
        let mut extra = PropertiesBuf::new();
        if let Some(expires) = delivery.expires_wall_ms {
            // [MQTT-3.3.2-6]: the time that it waited is taken off.
            let left = u32::try_from((expires - self.steady.ms(self.now)).max(0) / 1_000).unwrap_or(u32::MAX);
            let _ = extra.push(Property::MessageExpiryInterval(left));
        }
        let alias = conn.alias(&delivery.topic);
        let topic = named(&delivery.topic, alias, &mut extra);
        for &id in &delivery.subscription_ids {
            let _ = extra.push(Property::SubscriptionIdentifier(id));
        }
        // What the store gave back is checked again: a damaged record must not become a broken frame.
        let scope = PropertyScope::Packet(PacketType::Publish);
        let own = Properties::checked(&delivery.properties, scope).unwrap_or(Properties::EMPTY);
        let properties = [own, extra.as_properties()];
        let flags = PublishFlags { qos: qos(delivery.qos), retain: delivery.retain, dup: sent != Sent::No };
        let sent = append(conn, self.dirty, self.buffers, self.pool, self.now, id, |out, version| {
            let _ = encode_publish(out, version, flags, topic, packet_id, &properties, &delivery.payload);
        });
        if sent {
            self.stats.sent += 1;
            self.tell_delivered(key, Some(id), || Told::delivery(delivery));
            Ok(())
        } else {
            conn.unset_alias(alias);
            self.stats.dropped_too_large += 1;
            self.tell_dropped(key, Some(id), "too_large", || Told::delivery(delivery));
            Err(Reason::TooLarge)
        }
    }

    #[inline]
    fn tell_delivered(&mut self, key: Option<SessionKey>, id: Option<ConnId>, told: impl FnOnce() -> Told) {
        if self.events.wants(EventKind::MessageDelivered) {
            let event = Event { message: Some(told()), ..client_event(self.sessions, self.conns, key, id) };
            self.events.tell(EventKind::MessageDelivered, event);
        }
    }

    #[inline]
    fn tell_dropped(
        &mut self,
        key: Option<SessionKey>,
        id: Option<ConnId>,
        reason: &'static str,
        told: impl FnOnce() -> Told,
    ) {
        if self.events.wants(EventKind::DeliveryDropped) {
            let event = client_event(self.sessions, self.conns, key, id);
            let event = Event { message: Some(told()), reason: reason.into(), ..event };
            self.events.tell(EventKind::DeliveryDropped, event);
        }
    }
}

/// The topic as a packet names it that goes by an alias, which is added to its properties.
fn named<'t>(topic: &'t str, alias: Option<Alias>, extra: &mut PropertiesBuf) -> &'t str {
    let Some(Alias { number, is_new }) = alias else { return topic };
    let _ = extra.push(Property::TopicAlias(number));
    if is_new { topic } else { "" }
}

/// Whether a PUBLISH was written before, on another connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    No,
    /// By an earlier process life, which did not say: DUP says no more than that.
    Perhaps,
    /// Its exchange has to be finished.
    Yes,
}

/// What a delivery waits for when it was sent.
fn awaited(qos: QoS) -> OutboundState {
    if qos == QoS::ExactlyOnce { OutboundState::Pubrec } else { OutboundState::Puback }
}

/// Appends one packet, unless it is larger than the receiver takes [MQTT-3.1.2-24].
fn append(
    conn: &mut Conn,
    dirty: &mut Vec<ConnId>,
    buffers: &mut Buffers,
    pool: &mut Pool,
    now: Now,
    id: ConnId,
    encode: impl FnOnce(&mut Vec<u8>, Version),
) -> bool {
    let before = conn.out.len();
    if before == 0 {
        conn.is_drained(now.mono_us);
        buffers.ready(&mut conn.out);
    }
    encode(&mut conn.out, conn.version);
    if conn.out.len() == before || conn.out.len() - before > conn.peer_packet_bytes as usize {
        conn.out.truncate(before);
        return false;
    }
    conn.count_output(pool);
    if !conn.dirty {
        conn.dirty = true;
        dirty.push(id);
    }
    true
}

/// Quality of service from its number in a record; a damaged number counts as 0.
pub(crate) fn qos(number: u8) -> QoS {
    QoS::try_from(number).unwrap_or(QoS::AtMostOnce)
}

impl<H: Hook, S: Store> Shard<H, S> {
    pub(crate) fn delivering(&mut self) -> Delivering<'_> {
        delivering!(self)
    }

    /// Sends what waits for a session, and tells publishers who waited for room.
    pub(crate) fn pump(&mut self, key: SessionKey) {
        self.delivering().pump(key);
        if !self.ended.is_empty() {
            self.settle();
        }
    }
}
