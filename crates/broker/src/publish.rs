//! One publish: in, to its destinations, and its acknowledgement.

use crate::deliver::{Outgoing, delivering, qos as record_qos};
use crate::hook::{Ends, Hook, LocalPublish, Message, Publisher};
use crate::session::{Conn, Received, Session, Waiting, Will};
use crate::shard::{Destination, Owner, Shard};
use crate::turn::Wait;
use crate::{ConnId, SessionKey};
use bytes::Bytes;
use ferrule_mqtt::{
    AckType, PacketType, Properties, PropertiesBuf, PropertyId, PropertyScope, Publish, QoS, ReasonCode,
    Version, encode_ack, topic,
};
use ferrule_outbox::{Outcome, Reason, ReceiptId};
use ferrule_store::record::{self, Record, Retained};
use ferrule_store::{BodyId, Op, Side, Stamp, Store};
use foldhash::fast::FixedState;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

/// A message that has passed more rules and brokers than this is a loop.
pub(crate) const HOPS_MAX: u8 = 8;

/// Publishes that rules make in one turn: more wait for the next one, so that input is not starved.
const LOCAL_PER_TURN: usize = 1_024;

/// A session that a publish reaches.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    pub(crate) session: SessionKey,
    pub(crate) qos: QoS,
    pub(crate) retain_as_published: bool,
}

/// Vectors kept for their capacity.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    matches: Vec<Destination>,
    targets: Vec<Target>,
    /// (index of a target, subscription identifier).
    ids: Vec<(usize, u32)>,
    hooks: Vec<u32>,
    /// Connections whose publishes wait, looked at when a turn brings nothing more of them.
    pub(crate) quiet: Vec<(ConnId, u64)>,
}

/// What became of a publish when it was routed.
struct Routed {
    matched: bool,
    receipt: Option<(ReceiptId, Option<ferrule_outbox::End>)>,
}

pub(crate) fn expired(expires_wall_ms: Option<i64>, now_wall_ms: i64) -> bool {
    expires_wall_ms.is_some_and(|expires| expires <= now_wall_ms)
}

impl<H: Hook, S: Store> Shard<H, S> {
    pub(crate) fn publish(&mut self, id: ConnId, publish: &Publish<'_>) {
        self.stats.received += 1;
        let limits = &self.limits;
        let Some(conn) = self.conns.get_mut(id) else { return };
        let Some(key) = conn.session else { return };
        let aliased: Arc<str>;
        let mut topic = publish.topic;
        if let Some(alias) = publish.properties.topic_alias() {
            match resolve_alias(conn, alias, topic, limits.topic_alias_max) {
                Ok(None) => {}
                Ok(Some(known)) => {
                    aliased = known;
                    topic = &aliased;
                }
                Err(reason) => {
                    self.stats.protocol_errors += 1;
                    self.disconnect(id, reason);
                    return;
                }
            }
        }
        let publisher = Arc::clone(&conn.publisher);
        let version = conn.version;
        let refusal = if topic.len() > topic::MAX_LEVELS && topic::levels(topic).count() > topic::MAX_LEVELS {
            Some(ReasonCode::TOPIC_NAME_INVALID)
        } else if !conn.access.publish(topic) {
            Some(ReasonCode::NOT_AUTHORIZED)
        } else {
            None
        };
        let owner = if publish.qos == QoS::AtMostOnce {
            None
        } else {
            match self.admit_acknowledged(id, key, publish, topic) {
                Some(owner) => Some(owner),
                None => return,
            }
        };
        if let Some(reason) = refusal {
            self.stats.denied += 1;
            if let Some(owner) = owner {
                // Before MQTT 5 there is no way to say no: it is acknowledged and goes nowhere [MQTT-3.3.5-2].
                let reason = if version == Version::V5 { reason } else { ReasonCode::SUCCESS };
                self.acknowledge(owner, reason, publish, topic);
            }
            return;
        }
        let hold =
            publish.qos == QoS::ExactlyOnce && self.sessions.get(key).is_some_and(Session::is_persistent);
        let message = Message {
            topic,
            payload: publish.payload,
            qos: publish.qos,
            retain: publish.retain,
            dup: publish.dup,
            properties: publish.properties,
            publisher: &publisher,
            received: Stamp { wall_ms: self.now.wall_ms, mono_us: self.now.mono_us, synced: true },
            hops: 0,
            path: 0,
            attachment: None,
            hold,
        };
        let routed = self.route(&message, Some(key), owner, None);
        if let Some(owner) = owner {
            self.await_or_acknowledge(owner, publish, topic, routed);
        }
    }

    /// What a QoS 1 or 2 publish must pass before it is routed. None: it has been dealt with.
    fn admit_acknowledged(
        &mut self,
        id: ConnId,
        key: SessionKey,
        publish: &Publish<'_>,
        topic: &str,
    ) -> Option<Owner> {
        let packet_id = publish.packet_id;
        let conn = self.conns.get_mut(id)?;
        if let Some(waiting) = conn.waiting.iter().find(|w| w.packet_id == packet_id) {
            if waiting.content == content(&self.hasher, publish, topic) {
                // Common device libraries send again after a second: it joins the wait.
                self.stats.joined += 1;
            } else {
                self.protocol_error(id);
            }
            return None;
        }
        let qos2 = publish.qos == QoS::ExactlyOnce;
        if publish.dup && !qos2 && conn.recent.iter().any(|(known, _)| *known == packet_id) {
            // Sent again while its PUBACK was under way: a new message under this id would not be a duplicate.
            let content = content(&self.hasher, publish, topic);
            if conn.recent.contains(&(packet_id, content)) {
                self.stats.joined += 1;
                self.write_ack(id, packet_id, false, ReasonCode::SUCCESS);
                return None;
            }
        }
        let session = self.sessions.get_mut(key)?;
        if qos2 {
            match session.received.get_mut(&packet_id) {
                None => {}
                Some(Received::Waiting(on)) => {
                    // Sent again on a new connection: that one is told.
                    *on = id;
                    self.stats.joined += 1;
                    return None;
                }
                Some(&mut Received::Answered(reason)) => {
                    // Until its PUBREL a PUBLISH under this packet id is never routed again [MQTT-4.3.3-10].
                    self.stats.joined += 1;
                    self.write(id, |out, version| {
                        encode_ack(out, version, AckType::Pubrec, packet_id, reason)
                    });
                    return None;
                }
            }
        }
        let window = match conn.version {
            Version::V5 => usize::from(self.limits.receive_max),
            Version::V3_1 | Version::V3_1_1 => self.limits.waiting_max,
        };
        // A session keeps its QoS 2 packet ids until PUBREL; those that wait are among them.
        if conn.waiting.len().max(session.received.len()) >= window {
            self.stats.protocol_errors += 1;
            self.disconnect(id, ReasonCode::RECEIVE_MAXIMUM_EXCEEDED);
            return None;
        }
        if qos2 {
            session.received.insert(packet_id, Received::Waiting(id));
        }
        let serial = conn.next_serial;
        conn.next_serial += 1;
        Some(Owner { conn: id, session: key, serial, packet_id, qos2 })
    }

    fn await_or_acknowledge(&mut self, owner: Owner, publish: &Publish<'_>, topic: &str, routed: Routed) {
        let Owner { conn: id, serial, packet_id, qos2, .. } = owner;
        let reason = if routed.matched { ReasonCode::SUCCESS } else { ReasonCode::NO_MATCHING_SUBSCRIBERS };
        let Some((receipt, guard)) = routed.receipt else {
            self.stats.acknowledged += 1;
            self.acknowledge(owner, reason, publish, topic);
            return;
        };
        let content = content(&self.hasher, publish, topic);
        if let Some(conn) = self.conns.get_mut(id) {
            conn.waiting.push_back(Waiting {
                serial,
                packet_id,
                qos2,
                receipt: Some(receipt),
                reason: ReasonCode::SUCCESS,
                content,
            });
        }
        if let Some(done) = guard.and_then(|guard| self.receipts.resolve(guard, Outcome::Delivered)) {
            self.complete(done.owner, done.outcome);
        }
    }

    /// A publish that waits for nothing.
    fn acknowledge(&mut self, owner: Owner, reason: ReasonCode, publish: &Publish<'_>, topic: &str) {
        let Owner { conn: id, session, serial, packet_id, qos2 } = owner;
        if qos2 && let Some(session) = self.sessions.get_mut(session) {
            if reason.is_error() {
                // The exchange ends here: no PUBREL follows [MQTT-4.3.3-9].
                session.received.remove(&packet_id);
            } else {
                session.received.insert(packet_id, Received::Answered(reason));
            }
        }
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.waiting.is_empty() || conn.unordered {
            self.write_ack(id, packet_id, qos2, reason);
        } else {
            let content = content(&self.hasher, publish, topic);
            conn.waiting.push_back(Waiting { serial, packet_id, qos2, receipt: None, reason, content });
        }
    }

    fn write_ack(&mut self, id: ConnId, packet_id: u16, qos2: bool, reason: ReasonCode) {
        let kind = if qos2 { AckType::Pubrec } else { AckType::Puback };
        self.write(id, |out, version| encode_ack(out, version, kind, packet_id, reason));
    }

    /// The last end of a publish was said.
    pub(crate) fn complete(&mut self, owner: Owner, outcome: Outcome) {
        let Owner { conn: id, session: key, serial, packet_id, qos2 } = owner;
        // A QoS 2 packet id belongs to the session: its PUBREC is due where it was last sent.
        let mut to = id;
        if qos2
            && let Some(session) = self.sessions.get_mut(key)
            && let Some(&Received::Waiting(on)) = session.received.get(&packet_id)
        {
            to = on;
            if outcome == Outcome::Retry {
                session.received.remove(&packet_id);
                if let Some(session) = session.store_id() {
                    // Or, after a kill, its repetition would be answered and go nowhere.
                    self.op(Op::InflightDelete { session, side: Side::Inbound, packet_id }, true);
                }
            } else {
                session.received.insert(packet_id, Received::Answered(ReasonCode::SUCCESS));
            }
        }
        match outcome {
            Outcome::Delivered => self.stats.acknowledged += 1,
            Outcome::Discarded(_) => self.stats.acked_discarded += 1,
            Outcome::Retry => {
                // Nobody has it: the client keeps it and sends it again on its next connection.
                self.disconnect(to, ReasonCode::SERVER_BUSY);
                return;
            }
        }
        let Some(conn) = self.conns.get_mut(to) else { return };
        if to != id {
            self.write_ack(to, packet_id, true, ReasonCode::SUCCESS);
            return;
        }
        let Ok(index) = conn.waiting.binary_search_by_key(&serial, |w| w.serial) else { return };
        if conn.unordered {
            if let Some(acknowledged) = conn.waiting.remove(index) {
                conn.remember(acknowledged);
            }
            self.write_ack(to, packet_id, qos2, ReasonCode::SUCCESS);
            return;
        }
        conn.waiting[index].receipt = None;
        loop {
            let Some(conn) = self.conns.get_mut(to) else { return };
            let Some(front) = conn.waiting.front().copied().filter(|w| w.receipt.is_none()) else { return };
            conn.waiting.pop_front();
            conn.remember(front);
            self.write_ack(to, front.packet_id, front.qos2, front.reason);
        }
    }

    pub(crate) fn pubrel(&mut self, id: ConnId, packet_id: u16) {
        let Some(key) = self.session_of(id) else { return };
        let Some(session) = self.sessions.get_mut(key) else { return };
        let reason = match session.received.get(&packet_id) {
            Some(Received::Waiting(_)) => {
                // PUBREL before its PUBREC.
                self.protocol_error(id);
                return;
            }
            Some(Received::Answered(_)) => ReasonCode::SUCCESS,
            None => ReasonCode::PACKET_IDENTIFIER_NOT_FOUND,
        };
        session.received.remove(&packet_id);
        let store_id = session.store_id();
        if let Some(session) = store_id.filter(|_| reason == ReasonCode::SUCCESS) {
            // A packet id that came back after a kill would swallow the next message under it: freed before PUBCOMP.
            self.op(Op::InflightDelete { session, side: Side::Inbound, packet_id }, true);
        }
        // An id that is unknown may have been freed a moment ago.
        if store_id.is_some() && self.batch.is_awaited() {
            let version = self.conns.get(id).map_or(Version::V3_1_1, |c| c.version);
            let mut pubcomp = Vec::with_capacity(5);
            encode_ack(&mut pubcomp, version, AckType::Pubcomp, packet_id, reason);
            self.wait(Wait::Reply(id, pubcomp, Vec::new()));
        } else {
            self.write(id, |out, version| encode_ack(out, version, AckType::Pubcomp, packet_id, reason));
        }
    }

    /// To everyone whom it concerns: sessions, rules, the retained index.
    fn route(
        &mut self,
        message: &Message<'_>,
        from: Option<SessionKey>,
        owner: Option<Owner>,
        joined: Option<&ferrule_outbox::End>,
    ) -> Routed {
        let number = self.next_routed;
        self.next_routed += 1;
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.matches.clear();
        scratch.targets.clear();
        scratch.ids.clear();
        scratch.hooks.clear();
        self.trie.matches(message.topic, |destination| scratch.matches.push(*destination));
        let mut keepers = 0;
        for destination in &scratch.matches {
            match *destination {
                Destination::Hook(hook) if !scratch.hooks.contains(&hook) => scratch.hooks.push(hook),
                Destination::Hook(_) => {}
                Destination::Session(session, subscription) => {
                    if subscription.no_local && from == Some(session) {
                        continue;
                    }
                    let Some(state) = self.sessions.get_mut(session) else { continue };
                    let qos = record_qos(subscription.qos).min(message.qos);
                    let index = if state.routed.0 == number {
                        // Overlapping subscriptions: once, at the highest QoS [MQTT-3.3.5-1].
                        let target = &mut scratch.targets[state.routed.1];
                        target.qos = target.qos.max(qos);
                        target.retain_as_published |= subscription.retain_as_published;
                        state.routed.1
                    } else {
                        state.routed = (number, scratch.targets.len());
                        keepers += usize::from(state.is_persistent());
                        let retain_as_published = subscription.retain_as_published;
                        scratch.targets.push(Target { session, qos, retain_as_published });
                        state.routed.1
                    };
                    scratch.ids.extend(subscription.id.map(|id| (index, id)));
                }
            }
        }
        let matched = !scratch.matches.is_empty();
        self.stats.unmatched += u64::from(!matched);

        // A topic alias is between a client and us; all else is forwarded [MQTT-3.3.2-17].
        let mut forward = PropertiesBuf::new();
        let properties = if message.properties.contains(PropertyId::TopicAlias) {
            forward.extend(message.properties, |p| p != PropertyId::TopicAlias);
            forward.as_properties()
        } else {
            message.properties
        };
        let expires_wall_ms = properties
            .message_expiry_interval()
            .map(|seconds| message.received.wall_ms.saturating_add(i64::from(seconds) * 1_000));
        let message = &Message { properties, ..*message };
        let mut ends = match joined {
            Some(_) => Ends::joined(&mut self.receipts, joined),
            None => Ends::new(&mut self.receipts, owner),
        };
        if !scratch.targets.is_empty() {
            let mut outgoing = Outgoing {
                message,
                properties,
                expires_wall_ms,
                many: scratch.targets.len() > 1,
                shared: (keepers > 1).then_some(BodyId(self.next_body)),
                templates: [const { None }; 4],
                kept: None,
            };
            self.next_body += u64::from(keepers > 1);
            let mut delivering = delivering!(self);
            let mut ids = Vec::new();
            for (index, target) in scratch.targets.iter().enumerate() {
                ids.clear();
                if !scratch.ids.is_empty() {
                    ids.extend(scratch.ids.iter().filter(|(i, _)| *i == index).map(|(_, id)| *id));
                }
                delivering.deliver(&mut outgoing, target, &ids, &mut ends);
            }
        }
        if !scratch.hooks.is_empty() {
            self.hook.publish(message, &scratch.hooks, &mut ends, self.now);
        }
        // From a publisher with a persistent session the packet id is durable before PUBREC.
        if let Some(owner) = owner.filter(|o| o.qos2)
            && let Some(store_id) = self.sessions.get(owner.session).and_then(Session::store_id)
        {
            let record = record::Inflight::Received.to_bytes();
            let op = Op::InflightPut {
                session: store_id,
                side: Side::Inbound,
                packet_id: owner.packet_id,
                record,
            };
            self.batch.received.extend(ends.end().map(|end| (op, end)));
            self.batch.due = true;
        }
        let mut retain_end = None;
        if message.retain && message.qos > QoS::AtMostOnce {
            retain_end = ends.end();
        }
        let receipt = ends.finish();
        self.scratch = scratch;
        if message.retain {
            self.retain(message, expires_wall_ms, retain_end);
        }
        Routed { matched, receipt }
    }

    fn retain(
        &mut self,
        message: &Message<'_>,
        expires_wall_ms: Option<i64>,
        end: Option<ferrule_outbox::End>,
    ) {
        let topic = message.topic;
        if message.payload.is_empty() {
            // [MQTT-3.3.1-6]: an empty payload clears it.
            self.retained.clear(topic);
        } else {
            let mut properties = PropertiesBuf::new();
            properties.extend(message.properties, |p| p != PropertyId::MessageExpiryInterval);
            let kept = Arc::new(Retained {
                qos: message.qos.into(),
                expires_wall_ms,
                at_wall_ms: self.now.wall_ms,
                properties: Bytes::copy_from_slice(properties.as_properties().as_bytes()),
                payload: Bytes::copy_from_slice(message.payload),
            });
            if !self.retained.set(topic, kept) {
                self.stats.retained_refused += 1;
                if let Some(end) = end {
                    self.ended.push((end, Outcome::Discarded(Reason::Limit)));
                }
                return;
            }
        }
        if message.qos == QoS::AtMostOnce {
            self.retain_later(topic);
            return;
        }
        self.retained_lazy.remove(topic);
        let op = match self.retained.get(topic) {
            Some(kept) => Op::RetainPut { topic: topic.into(), record: kept.to_bytes() },
            None => Op::RetainDelete { topic: topic.into() },
        };
        self.op(op, true);
        self.batch.waits.extend(end.map(Wait::End));
    }

    /// The last value of a topic is written within 1 s.
    pub(crate) fn retain_later(&mut self, topic: &str) {
        if self.retained_lazy.is_empty() {
            self.retained_lazy_since_us = self.now.mono_us;
        }
        self.retained_lazy.insert(topic.into());
    }

    pub(crate) fn publish_will(&mut self, publisher: &Publisher, will: &Will) {
        let scope = PropertyScope::Packet(PacketType::Publish);
        let message = Message {
            topic: &will.topic,
            payload: &will.payload,
            qos: will.qos,
            retain: will.retain,
            dup: false,
            properties: Properties::checked(&will.properties, scope).unwrap_or(Properties::EMPTY),
            publisher,
            received: Stamp { wall_ms: self.now.wall_ms, mono_us: self.now.mono_us, synced: true },
            hops: 0,
            path: 0,
            attachment: None,
            hold: false,
        };
        self.route(&message, None, None, None);
    }

    /// Routes what rules published.
    pub(crate) fn route_local(&mut self) {
        self.local.extend(self.hook.take_local());
        for _ in 0..LOCAL_PER_TURN {
            let Some(publish) = self.local.pop_front() else { break };
            self.route_one_local(publish);
            self.local.extend(self.hook.take_local());
        }
        self.settle();
    }

    fn route_one_local(&mut self, publish: LocalPublish) {
        if publish.hops > HOPS_MAX {
            self.stats.loops += 1;
            if let Some(end) = publish.end {
                self.ended.push((end, Outcome::Discarded(Reason::Loop)));
            }
            return;
        }
        let message = Message {
            topic: &publish.topic,
            payload: &publish.payload,
            qos: publish.qos,
            retain: publish.retain,
            dup: false,
            properties: publish.properties.as_properties(),
            publisher: &publish.publisher,
            received: publish.received,
            hops: publish.hops,
            path: publish.path,
            attachment: publish.attachment.as_ref(),
            hold: publish.hold,
        };
        self.route(&message, None, None, publish.end.as_ref());
        if let Some(end) = publish.end {
            self.ended.push((end, Outcome::Delivered));
        }
    }
}

/// Tells a repetition from another message under the same packet id, which alone are compared: 64 bits are plenty.
fn content(hasher: &FixedState, publish: &Publish<'_>, topic: &str) -> u64 {
    let mut hasher = hasher.build_hasher();
    topic.hash(&mut hasher);
    publish.payload.hash(&mut hasher);
    (u8::from(publish.qos), publish.retain).hash(&mut hasher);
    hasher.finish()
}

/// The topic behind an alias: `Ok(None)` when the packet names its topic itself.
fn resolve_alias(conn: &mut Conn, alias: u16, topic: &str, max: u16) -> Result<Option<Arc<str>>, ReasonCode> {
    if alias == 0 || alias > max {
        return Err(ReasonCode::TOPIC_ALIAS_INVALID);
    }
    let index = usize::from(alias) - 1;
    if topic.is_empty() {
        return match conn.aliases.get(index) {
            Some(Some(known)) => Ok(Some(Arc::clone(known))),
            _ => Err(ReasonCode::PROTOCOL_ERROR),
        };
    }
    if conn.aliases.len() <= index {
        conn.aliases.resize(index + 1, None);
    }
    conn.aliases[index] = Some(topic.into());
    Ok(None)
}
