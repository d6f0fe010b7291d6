//! One publish: in, to its destinations, and its acknowledgement.

use crate::batch::is_batch;
use crate::config::{self, ClientLimits};
use crate::delayed::is_delayed;
use crate::deliver::{Outgoing, delivering, qos as record_qos};
use crate::ending::Why;
use crate::events::EventKind;
use crate::hook::{Ends, Hook, LocalPublish, Message, Publisher, SysTopic};
use crate::parcel::Share;
use crate::peers::Owner;
use crate::session::{Conn, Inbound, Publishing, Received, Session, Waiting, Will};
use crate::shard::{Destination, Shard, Stats};
use crate::share::{Member, Pick};
use crate::slots::Slots;
use crate::turn::{Receiving, Reply, Wait};
use crate::{ConnId, SessionKey, marker};
use bytes::Bytes;
use ferrule_mqtt::{
    AckType, PacketType, Properties, PropertiesBuf, PropertyId, PropertyScope, Publish, QoS, ReasonCode,
    Version, encode_ack, topic,
};
use ferrule_outbox::{Outcome, Reason, ReceiptId};
use ferrule_store::record::{self, Record, Retained};
use ferrule_store::{BodyId, Now, Op, Side, Store};
use foldhash::fast::FixedState;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

/// A message that has passed more rules and brokers than this is a loop.
pub(crate) const HOPS_MAX: u8 = 8;

/// Publishes that rules make in one turn: more wait for the next one, so that input is not starved.
pub(crate) const LOCAL_PER_TURN: usize = 1_024;

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
    ids: Vec<(u32, u32)>,
    hooks: Vec<u32>,
    peers: Vec<u16>,
    /// Groups that share a subscription.
    groups: Vec<u32>,
    /// (index of a target, the shared subscription that it is chosen for).
    shared: Vec<(u32, Arc<str>)>,
    /// (shard, place there, the shared subscription).
    elsewhere: Vec<(u16, u32, Arc<str>)>,
}

impl Scratch {
    fn clear(&mut self) {
        self.matches.clear();
        self.targets.clear();
        self.ids.clear();
        self.hooks.clear();
        self.peers.clear();
        self.groups.clear();
        self.shared.clear();
        self.elsewhere.clear();
    }
}

/// Whom a publish concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Sessions, rules, other shards, the retained index. From a session, or from none.
    Everyone(Option<SessionKey>),
    /// Sessions alone: another shard has seen to the rest.
    Sessions,
    /// Sessions, also those of other nodes: the shards of this process have been told by themselves.
    Nodes,
    /// One member of a group: it left the last one, or another shard has drawn this one's place.
    Member(Draw),
}

/// What a publish that is for one member of a group goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Draw {
    pub(crate) group: u32,
    /// Among this shard's members; none: among all.
    pub(crate) place: Option<u32>,
    /// How many shards it was sent on by.
    pub(crate) again: u8,
}

/// Why a publish is not routed, and where that is counted.
pub(crate) type Refused = (ReasonCode, fn(&mut Stats) -> &mut u64);

/// What a publish's topic comes to.
pub(crate) enum Meant {
    /// It may be routed: to this topic, where that is not the one that it names.
    Topic(Option<String>),
    /// It may not.
    Refused(ReasonCode),
    /// The connection is not there any more.
    Gone,
}

/// What became of a publish when it was routed.
pub(crate) struct Routed {
    pub(crate) matched: bool,
    pub(crate) receipt: Option<(ReceiptId, Option<ferrule_outbox::End>)>,
}

pub(crate) fn expired(expires_wall_ms: Option<i64>, now_wall_ms: i64) -> bool {
    expires_wall_ms.is_some_and(|expires| expires <= now_wall_ms)
}

impl<H: Hook, S: Store> Shard<H, S> {
    pub(crate) fn publish(&mut self, id: ConnId, publish: &Publish<'_>) {
        self.stats.received += 1;
        let Some(publisher) = self.publisher(id) else { return };
        let Some(conn) = self.conns.get_mut(id) else { return };
        let limits = config::client(&self.limits.clients, conn.limits);
        let Some(key) = conn.session else { return };
        let aliased: Arc<str>;
        let mut topic = publish.topic;
        if let Some(alias) = publish.properties.topic_alias() {
            match resolve_alias(conn.publishing.make(), alias, topic, limits) {
                Ok(None) => {}
                Ok(Some(known)) => {
                    aliased = known;
                    topic = &aliased;
                }
                Err(why) => {
                    self.stats.protocol_errors += 1;
                    self.disconnect(id, why);
                    return;
                }
            }
        }
        let version = conn.version;
        let is_answered = publish.qos > QoS::AtMostOnce;
        if topic.starts_with('$') && is_batch(topic, &publisher) {
            self.publish_batch(id, key, publish, &publisher);
            return;
        }
        let (meant, refusal) = match self.admit_topic(id, publish, topic, &publisher) {
            Meant::Gone => return,
            Meant::Topic(meant) => (meant, None),
            Meant::Refused(reason) => (None, Some(reason)),
        };
        let topic = meant.as_deref().unwrap_or(topic);
        let is_lie = matches!(refusal, Some(ReasonCode::TOPIC_NAME_INVALID | ReasonCode::QUOTA_EXCEEDED));
        if is_lie && is_answered && version < Version::V5 {
            // There is no way to say no, and an acknowledgement would be one.
            self.disconnect(id, ReasonCode::TOPIC_NAME_INVALID);
            return;
        }
        let owner = if publish.qos == QoS::AtMostOnce {
            None
        } else {
            match self.admit_acknowledged(id, key, publish, topic) {
                Some(owner) => Some(owner),
                None => return,
            }
        };
        if let Some(reason) = refusal {
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
            received: self.now.stamp(),
            hops: 0,
            path: 0,
            attachment: None,
            hold,
        };
        let routed = self.route_or_delay(&message, Some(key), owner.map(Owner::Publisher), None);
        if self.hook.has_local() {
            // While the message is at hand, and so that it is often acknowledged without a wait.
            self.route_local();
        }
        if let Some(owner) = owner {
            self.await_or_acknowledge(owner, publish, topic, routed);
        }
    }

    /// Whether a publish may go to its topic; a refusal is counted and told.
    pub(crate) fn admit_topic(
        &mut self,
        id: ConnId,
        publish: &Publish<'_>,
        topic: &str,
        publisher: &Publisher,
    ) -> Meant {
        let Some(conn) = self.conns.get(id) else { return Meant::Gone };
        let limits = config::client(&self.limits.clients, conn.limits);
        let is_special = publish.retain || topic.starts_with('$') || self.features.concern_publishes();
        let vetted = if !is_special && limits.takes_topic(topic) && conn.access.publish(topic) {
            Ok(None)
        } else {
            self.vet(conn, publish, topic, publisher)
        };
        if self.events.wants(EventKind::Authorized) {
            let allowed = !matches!(vetted, Err((ReasonCode::NOT_AUTHORIZED, _)));
            self.tell_authorized(id, "publish", topic, allowed);
        }
        match vetted {
            Ok(meant) => Meant::Topic(meant),
            Err((reason, counter)) => {
                *counter(&mut self.stats) += 1;
                Meant::Refused(reason)
            }
        }
    }

    /// Whether a publish may be routed, as far as that is seen from the packet alone; if so, the topic that is meant, where that is
    /// not the one that it names. Most need not be asked so much.
    #[cold]
    #[inline(never)]
    fn vet(
        &self,
        conn: &Conn,
        publish: &Publish<'_>,
        named: &str,
        publisher: &Publisher,
    ) -> Result<Option<String>, Refused> {
        const INVALID: Refused = (ReasonCode::TOPIC_NAME_INVALID, |stats| &mut stats.topics_refused);
        let limits = config::client(&self.limits.clients, conn.limits);
        if !limits.takes_topic(named) || (is_delayed(named) && topic::delayed(named).is_none()) {
            return Err(INVALID);
        }
        if !conn.access.publish(named) {
            return Err((ReasonCode::NOT_AUTHORIZED, |stats| &mut stats.denied));
        }
        let features = &*self.features;
        if features.check_payload_format && !is_payload_as_said(publish.properties, publish.payload) {
            return Err((ReasonCode::PAYLOAD_FORMAT_INVALID, |stats| &mut stats.payloads_refused));
        }
        let meant = features.rewrites.name(named, &publisher.client_id, publisher.username.as_deref());
        if meant.as_deref().is_some_and(|m| topic::validate_name(m).is_err() || !limits.takes_topic(m)) {
            return Err(INVALID);
        }
        let topic = meant.as_deref().unwrap_or(named);
        let bytes = publish.payload.len() + publish.properties.as_bytes().len();
        if is_delayed(topic) {
            return self.delay_refusal(topic, bytes).map_or(Ok(meant), Err);
        }
        // Earlier versions cannot be told: theirs goes to those who are there.
        let is_told = publish.qos > QoS::AtMostOnce && conn.version == Version::V5;
        if publish.retain && is_told && !publish.payload.is_empty() && !self.retained.fits(topic, bytes) {
            return Err((ReasonCode::QUOTA_EXCEEDED, |stats| &mut stats.retained_refused));
        }
        Ok(meant)
    }

    /// What a QoS 1 or 2 publish must pass before it is routed. None: it has been dealt with.
    pub(crate) fn admit_acknowledged(
        &mut self,
        id: ConnId,
        key: SessionKey,
        publish: &Publish<'_>,
        topic: &str,
    ) -> Option<Inbound> {
        let packet_id = publish.packet_id;
        let conn = self.conns.get_mut(id)?;
        let publishing = conn.publishing.make();
        if let Some(waiting) = publishing.waiting.iter().find(|w| w.packet_id == packet_id) {
            if waiting.content == content(&self.hasher, publish, topic) {
                // Common device libraries send again after a second: it joins the wait.
                self.stats.joined += 1;
            } else {
                self.protocol_error(id, "another message under a packet id that is in use");
            }
            return None;
        }
        let qos2 = publish.qos == QoS::ExactlyOnce;
        let session = self.sessions.get_mut(key)?;
        if qos2 {
            match session.received.get_mut().and_then(|received| received.get_mut(&packet_id)) {
                None => {}
                Some(Received::Waiting(on)) => {
                    // Sent again on a new connection: that one is told.
                    if std::mem::replace(on, id) != id {
                        publishing.unreleased += 1;
                    }
                    self.stats.joined += 1;
                    return None;
                }
                Some(Received::Answered(reason, on)) => {
                    let reason = *reason;
                    if on.replace(id) != Some(id) {
                        publishing.unreleased += 1;
                    }
                    // Until its PUBREL a PUBLISH under this packet id is never routed again [MQTT-4.3.3-10].
                    self.stats.joined += 1;
                    self.write(id, |out, version| {
                        encode_ack(out, version, AckType::Pubrec, packet_id, reason)
                    });
                    return None;
                }
            }
        }
        let limits = config::client(&self.limits.clients, conn.limits);
        let window = match conn.version {
            Version::V5 => usize::from(limits.receive_max),
            Version::V3_1 | Version::V3_1_1 => limits.waiting_max,
        };
        // Its send quota: QoS 1 publishes that wait for PUBACK, and QoS 2 ones of this connection whose PUBREL has not come [MQTT 5, 4.9].
        // A session keeps the latter; those that wait are among them.
        let unreleased = usize::from(publishing.unreleased);
        // Counted one by one only when both together could be too many.
        let is_full = publishing.waiting.len() + unreleased >= window
            && publishing.waiting.iter().filter(|w| !w.qos2).count() + unreleased >= window;
        // And what earlier connections left is bounded as well.
        let kept = session.received.get().map_or(0, |received| received.len());
        if is_full || kept >= 2 * window {
            self.stats.window_exceeded += 1;
            self.disconnect(id, ReasonCode::RECEIVE_MAXIMUM_EXCEEDED);
            return None;
        }
        if qos2 {
            session.received.make().insert(packet_id, Received::Waiting(id));
            publishing.unreleased += 1;
        }
        let serial = publishing.next_serial;
        publishing.next_serial += 1;
        let inbound = Inbound { conn: id, session: key, serial, packet_id, qos2 };
        self.note_routed(inbound);
        Some(inbound)
    }

    fn await_or_acknowledge(&mut self, owner: Inbound, publish: &Publish<'_>, topic: &str, routed: Routed) {
        let Inbound { conn: id, serial, packet_id, qos2, .. } = owner;
        let reason = if routed.matched { ReasonCode::SUCCESS } else { ReasonCode::NO_MATCHING_SUBSCRIBERS };
        let Some((receipt, guard)) = routed.receipt else {
            self.stats.acknowledged += 1;
            self.acknowledge(owner, reason, publish, topic);
            return;
        };
        let done = guard.and_then(|guard| self.receipts.resolve(guard, Outcome::Delivered));
        if let Some(done) = done.filter(|done| done.outcome != Outcome::Retry) {
            // All has been said already: nothing waits.
            match done.outcome {
                Outcome::Discarded(_) => self.stats.acked_discarded += 1,
                _ => self.stats.acknowledged += 1,
            }
            self.acknowledge(owner, reason, publish, topic);
            return;
        }
        let content = self.content(publish, topic);
        let (receipt, reason) = (Some(receipt), ReasonCode::SUCCESS);
        self.await_acknowledgement(id, Waiting { serial, packet_id, qos2, receipt, reason, content });
        if let Some(done) = done {
            self.complete(done.owner, done.outcome);
        }
    }

    pub(crate) fn await_acknowledgement(&mut self, id: ConnId, waiting: Waiting) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if !conn.waits {
            conn.waits = true;
            self.waiters.push((id, self.now.mono_us));
        }
        let unordered = conn.unordered;
        let publishing = conn.publishing.make();
        // A gateway's rows are somebody else's: their publishers wait behind it, whatever its own tempo.
        if !unordered {
            publishing.tempo.published(self.now.mono_us, !publishing.waiting.is_empty());
        }
        publishing.waiting.push_back(waiting);
    }

    /// See [`content`].
    pub(crate) fn content(&self, publish: &Publish<'_>, topic: &str) -> u64 {
        content(&self.hasher, publish, topic)
    }

    /// A publish that waits for nothing.
    pub(crate) fn acknowledge(
        &mut self,
        owner: Inbound,
        reason: ReasonCode,
        publish: &Publish<'_>,
        topic: &str,
    ) {
        let Inbound { conn: id, session, serial, packet_id, qos2 } = owner;
        if qos2 && let Some(session) = self.sessions.get_mut(session) {
            if reason.is_error() {
                // The exchange ends here: no PUBREL follows [MQTT-4.3.3-9].
                let of = session.release(packet_id);
                self.released(of);
            } else {
                session.received.make().insert(packet_id, Received::Answered(reason, Some(id)));
            }
        }
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.waiting() == 0 || conn.unordered {
            self.write_ack(id, packet_id, qos2, reason);
        } else {
            let content = content(&self.hasher, publish, topic);
            conn.publishing.make().waiting.push_back(Waiting {
                serial,
                packet_id,
                qos2,
                receipt: None,
                reason,
                content,
            });
        }
    }

    /// A QoS 2 publish takes no place of its connection's window any more.
    fn released(&mut self, of: Option<ConnId>) {
        if let Some(publishing) = of.and_then(|id| self.conns.get_mut(id)?.publishing.get_mut()) {
            publishing.unreleased = publishing.unreleased.saturating_sub(1);
        }
    }

    fn write_ack(&mut self, id: ConnId, packet_id: u16, qos2: bool, reason: ReasonCode) {
        let publishing = self.conns.get_mut(id).and_then(|conn| conn.publishing.get_mut());
        let mut has_batches = false;
        if let Some(publishing) = publishing {
            publishing.tempo.acknowledged(self.now.mono_us);
            has_batches = !publishing.batches.is_empty();
        }
        if has_batches && self.acknowledge_batch(id, packet_id) {
            return;
        }
        let kind = if qos2 { AckType::Pubrec } else { AckType::Puback };
        self.write(id, |out, version| encode_ack(out, version, kind, packet_id, reason));
    }

    /// The last end of a publish was said.
    pub(crate) fn complete(&mut self, owner: Owner, outcome: Outcome) {
        let Inbound { conn: id, session: key, serial, packet_id, qos2 } = match owner {
            Owner::Publisher(inbound) => inbound,
            Owner::Delayed(key) => {
                self.delayed_ended(key, outcome);
                return;
            }
            Owner::Will => return,
            Owner::Link(number) => {
                self.hook.said(number, outcome);
                return;
            }
            Owner::Peer { peer, number } => {
                self.acknowledge_parcel(peer, number, outcome);
                return;
            }
            Owner::Copy { peer, number, done } => {
                self.has_copy(peer, number, done);
                return;
            }
        };
        // A QoS 2 packet id belongs to the session: its PUBREC is due where it was last sent.
        let mut to = id;
        if qos2
            && let Some(session) = self.sessions.get_mut(key)
            && let Some(Received::Waiting(on)) = session.received(packet_id)
        {
            to = on;
            if outcome == Outcome::Retry {
                let of = session.release(packet_id);
                let store_id = session.store_id();
                self.released(of);
                if let Some(session) = store_id {
                    // Or, after a kill, its repetition would be answered and go nowhere.
                    self.op(Op::InflightDelete { session, side: Side::Inbound, packet_id }, true);
                }
            } else {
                session.received.make().insert(packet_id, Received::Answered(ReasonCode::SUCCESS, Some(on)));
            }
        }
        match outcome {
            Outcome::Delivered => self.stats.acknowledged += 1,
            Outcome::Discarded(_) => self.stats.acked_discarded += 1,
            Outcome::Retry => {
                // Nobody has it: the client keeps it and sends it again on its next connection.
                let text = "a publish found no room where it must go: it is to be sent again";
                self.disconnect(to, Why::new(ReasonCode::SERVER_BUSY, text));
                return;
            }
        }
        let Some(conn) = self.conns.get_mut(to) else { return };
        if to != id {
            self.write_ack(to, packet_id, true, ReasonCode::SUCCESS);
            return;
        }
        let unordered = conn.unordered;
        let Some(publishing) = conn.publishing.get_mut() else { return };
        // As a rule they end in order.
        let index = match publishing.waiting.front() {
            Some(front) if front.serial == serial => Ok(0),
            _ => publishing.waiting.binary_search_by_key(&serial, |w| w.serial),
        };
        let Ok(index) = index else { return };
        if unordered {
            publishing.waiting.remove(index);
            self.write_ack(to, packet_id, qos2, ReasonCode::SUCCESS);
            return;
        }
        publishing.waiting[index].receipt = None;
        loop {
            let Some(publishing) = self.conns.get_mut(to).and_then(|c| c.publishing.get_mut()) else {
                return;
            };
            let due = publishing.waiting.front().copied().filter(|w| w.receipt.is_none());
            let Some(front) = due else { return };
            publishing.waiting.pop_front();
            self.write_ack(to, front.packet_id, front.qos2, front.reason);
        }
    }

    pub(crate) fn pubrel(&mut self, id: ConnId, packet_id: u16) {
        let Some(key) = self.session_of(id) else { return };
        let Some(session) = self.sessions.get_mut(key) else { return };
        let reason = match session.received(packet_id) {
            Some(Received::Waiting(_)) => {
                self.protocol_error(id, "a PUBREL before its PUBREC");
                return;
            }
            Some(Received::Answered(..)) => ReasonCode::SUCCESS,
            None => ReasonCode::PACKET_IDENTIFIER_NOT_FOUND,
        };
        let of = session.release(packet_id);
        let store_id = session.store_id();
        self.released(of);
        if let Some(session) = store_id.filter(|_| reason == ReasonCode::SUCCESS) {
            // A packet id that came back after a kill would swallow the next message under it: freed before PUBCOMP.
            self.op(Op::InflightDelete { session, side: Side::Inbound, packet_id }, true);
        }
        // An id that is unknown may have been freed a moment ago.
        if store_id.is_some() && self.batch.is_awaited() {
            let version = self.conns.get(id).map_or(Version::V3_1_1, |c| c.version);
            let mut pubcomp = Vec::with_capacity(5);
            encode_ack(&mut pubcomp, version, AckType::Pubcomp, packet_id, reason);
            self.wait(Wait::Reply(Reply {
                conn: id,
                packet: pubcomp,
                retained: Vec::new(),
                is_exclusive: false,
            }));
        } else {
            self.write(id, |out, version| encode_ack(out, version, AckType::Pubcomp, packet_id, reason));
        }
    }

    /// To everyone whom it concerns, now or at its time. `from`: as of [`Scope::Everyone`].
    pub(crate) fn route_or_delay(
        &mut self,
        message: &Message<'_>,
        from: Option<SessionKey>,
        owner: Option<Owner>,
        joined: Option<&ferrule_outbox::End>,
    ) -> Routed {
        if is_delayed(message.topic) {
            return self.delay(message, owner, joined);
        }
        self.route(message, Scope::Everyone(from), owner, joined)
    }

    /// To everyone whom it concerns.
    pub(crate) fn route(
        &mut self,
        message: &Message<'_>,
        scope: Scope,
        owner: Option<Owner>,
        joined: Option<&ferrule_outbox::End>,
    ) -> Routed {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        let mut keepers = 0;
        let mut again = 0;
        if let Scope::Member(draw) = scope {
            again = draw.again + 1;
            keepers += self.choose_member(&mut scratch, message, draw);
        } else {
            let lists = self.routes.matches(message.topic, &mut scratch.matches);
            keepers += self.choose(&mut scratch, lists, scope, message);
            for at in 0..scratch.groups.len() {
                let draw = Draw { group: scratch.groups[at], place: None, again: 0 };
                keepers += self.choose_member(&mut scratch, message, draw);
            }
        }
        let matched = !scratch.matches.is_empty();
        let goes = !scratch.targets.is_empty() || !scratch.peers.is_empty() || !scratch.elsewhere.is_empty();
        if !goes && matches!(scope, Scope::Everyone(_)) && self.events.wants(EventKind::MessageDropped) {
            // Rules are no subscribers.
            self.tell_no_subscribers(message);
        }
        // A forwarded one was counted where it came in.
        self.stats.unmatched += u64::from(!matched && matches!(scope, Scope::Everyone(_)));

        // A topic alias is between a client and us; all else is forwarded [MQTT-3.3.2-17].
        let mut forward = PropertiesBuf::new();
        let properties = if message.properties.contains(PropertyId::TopicAlias) {
            forward.extend(message.properties, |p| p != PropertyId::TopicAlias);
            forward.as_properties()
        } else {
            message.properties
        };
        let expires_wall_ms = properties.message_expiry_interval().map(|seconds| {
            self.steady.since(message.received.wall_ms, self.now) + i64::from(seconds) * 1_000
        });
        let message = &Message { properties, ..*message };
        let mut ends = match joined {
            Some(_) => Ends::joined(&mut self.receipts, joined),
            None => Ends::new(&mut self.receipts, owner),
        };
        if !scratch.targets.is_empty() {
            let many = scratch.targets.len() > 1;
            let shared = (keepers > 1).then(|| BodyId(Self::draw(self.peers.place, &mut self.next_body)));
            let mut outgoing =
                Outgoing::new(message, expires_wall_ms, many, shared, self.events.want_sources());
            let mut delivering = delivering!(self);
            let mut ids = Vec::new();
            for (index, target) in scratch.targets.iter().enumerate() {
                ids.clear();
                if !scratch.ids.is_empty() {
                    ids.extend(scratch.ids.iter().filter(|(i, _)| *i == index as u32).map(|(_, id)| *id));
                }
                let share = scratch.shared.iter().find(|(i, _)| *i == index as u32).map(|(_, text)| text);
                delivering.deliver(&mut outgoing, target, &ids, share, &mut ends);
            }
        }
        let mut awaited = Vec::new();
        let shared = scratch
            .elsewhere
            .iter()
            .map(|(peer, place, text)| (*peer, Some(Share { text, place: *place, again })));
        for (peer, share) in scratch.peers.iter().map(|peer| (*peer, None)).chain(shared) {
            let end = if message.qos == QoS::AtMostOnce { None } else { ends.end() };
            if self.peers.is_away(peer) {
                // It has subscribers there, and nobody can be told now.
                self.stats.dropped_partitioned += u64::from(message.qos == QoS::AtMostOnce);
                self.ended.extend(end.map(|end| (end, Outcome::Retry)));
                continue;
            }
            if end.is_none() && self.peers.is_full(peer) {
                self.stats.dropped_link += 1;
                continue;
            }
            self.stats.forwarded_out += 1;
            let receipt = end.as_ref().map(ferrule_outbox::End::receipt);
            let number = self.peers.forward(peer, message, share, end);
            match (receipt.filter(|_| message.hold && !self.peers.is_remote(peer)), joined) {
                (Some(receipt), Some(_)) => self.batch.awaits(receipt, number),
                (Some(_), None) => awaited.push(number),
                (None, _) => {}
            }
        }
        if !scratch.hooks.is_empty() {
            self.hook.publish(message, &scratch.hooks, &mut ends, self.now);
        }
        let retain = message.retain && matches!(scope, Scope::Everyone(_));
        let retain_ends: Vec<_> = if retain && message.qos > QoS::AtMostOnce {
            (0..self.peers.retained_ends()).map(|_| ends.end()).collect()
        } else {
            Vec::new()
        };
        if message.hold
            && let Some(op) = owner.and_then(|owner| once(&self.sessions, owner))
        {
            // What must not be known twice is written with what was made of it.
            let receiving = ends.end().map(|end| Receiving { op, end, awaited, joined: Vec::new() });
            self.batch.received.extend(receiving);
            self.batch.due = true;
        }
        let receipt = ends.finish();
        self.scratch = scratch;
        if !self.owners.relays.is_empty() {
            self.send_relays();
        }
        if retain {
            self.retain(message, expires_wall_ms, retain_ends);
        }
        Routed { matched, receipt }
    }

    /// Sorts what matched into sessions, hooks and shards, each once. How many of the sessions keep the message beyond
    /// their connection.
    fn choose(&mut self, scratch: &mut Scratch, lists: usize, scope: Scope, message: &Message<'_>) -> usize {
        let number = self.next_routed;
        self.next_routed += 1;
        let mut keepers = 0;
        for destination in &scratch.matches {
            let (session, subscription, keeps) = match *destination {
                Destination::Session(session, subscription, keeps) => (session, subscription, keeps),
                Destination::Hook(hook) => {
                    if matches!(scope, Scope::Everyone(_)) {
                        scratch.hooks.push(hook);
                    }
                    continue;
                }
                Destination::Share(group) => {
                    if matches!(scope, Scope::Everyone(_)) {
                        scratch.groups.push(group);
                    }
                    continue;
                }
                Destination::Peer(peer, _) => {
                    let goes = match scope {
                        Scope::Everyone(_) => true,
                        Scope::Nodes => self.peers.is_remote(peer),
                        Scope::Sessions | Scope::Member(_) => false,
                    };
                    if goes && !scratch.peers.contains(&peer) {
                        scratch.peers.push(peer);
                    }
                    continue;
                }
            };
            if subscription.no_local && matches!(scope, Scope::Everyone(Some(from)) if from == session) {
                if self.events.wants(EventKind::DeliveryDropped) {
                    self.tell_no_local(session, message);
                }
                continue;
            }
            let qos = record_qos(subscription.qos).min(message.qos);
            let retain_as_published = subscription.retain_as_published;
            let at = scratch.targets.len() as u32;
            let mut index = at;
            // Of one filter's destinations all are different: no need to look.
            if lists > 1 {
                let Some(state) = self.sessions.get_mut(session) else { continue };
                if state.routed == number {
                    index = state.routed_at;
                } else {
                    (state.routed, state.routed_at) = (number, at);
                }
            }
            if index == at {
                keepers += usize::from(keeps);
                scratch.targets.push(Target { session, qos, retain_as_published });
            } else {
                // Overlapping subscriptions: once, at the highest QoS [MQTT-3.3.5-1].
                let target = &mut scratch.targets[index as usize];
                target.qos = target.qos.max(qos);
                target.retain_as_published |= retain_as_published;
            }
            scratch.ids.extend(subscription.id.map(|id| (index, id)));
        }
        if lists > 1 && scratch.hooks.len() > 1 {
            // A rule with several filters that match runs once; rules run by their numbers.
            scratch.hooks.sort_unstable();
            scratch.hooks.dedup();
        }
        keepers
    }

    /// Chooses one member of a group, here or elsewhere. How many keep the message beyond their connection: one or none.
    fn choose_member(&mut self, scratch: &mut Scratch, message: &Message<'_>, draw: Draw) -> usize {
        let Some(pick) = self.draw_member(message, draw) else {
            self.stats.dropped_shared += 1;
            return 0;
        };
        let Some(group) = self.shares.get(draw.group) else { return 0 };
        let text = Arc::clone(&group.text);
        let index = scratch.targets.len() as u32;
        let at = match pick {
            Pick::Here(at) => at,
            Pick::There(shard, place) => {
                scratch.elsewhere.push((shard, place, text));
                return 0;
            }
        };
        let Some(&Member { session, subscription, keeps }) = group.member(at) else { return 0 };
        let qos = record_qos(subscription.qos).min(message.qos);
        let retain_as_published = subscription.retain_as_published;
        // Beside what the session gets by its other subscriptions.
        scratch.targets.push(Target { session, qos, retain_as_published });
        scratch.ids.extend(subscription.id.map(|id| (index, id)));
        scratch.shared.push((index, text));
        usize::from(keeps)
    }

    /// What the node says of itself: to this shard's subscribers, and kept for later ones. Every shard is told by the node; the first also
    /// tells subscribers at other nodes, where it is not kept.
    pub fn publish_sys(&mut self, topics: &[SysTopic], now: Now) {
        self.now = now;
        let publisher = Arc::clone(&self.peers.publisher);
        let is_first = self.peers.place.index == 0;
        for SysTopic { topic, value, everywhere } in topics {
            let stamp = self.next_stamp();
            let kept = Retained {
                qos: 0,
                expires_wall_ms: None,
                at_wall_ms: now.wall_ms,
                properties: Bytes::new(),
                payload: value.clone(),
            };
            let _ = self.sys.set(topic, stamp, Arc::new(kept));
            let message = Message { retain: true, ..Message::new(topic, value, &publisher, now) };
            let scope = if *everywhere && is_first { Scope::Nodes } else { Scope::Sessions };
            self.route(&message, scope, None, None);
        }
    }

    /// `from`: the session, if it lives on: No Local holds for its will, too. `stored`: the store had it, and what is in this turn's
    /// batch takes it from there: then that and all that the will becomes are committed together, in all shards, so that no kill
    /// costs it or makes it come twice.
    pub(crate) fn publish_will(
        &mut self,
        from: Option<SessionKey>,
        publisher: &Publisher,
        will: &Will,
        stored: bool,
    ) {
        let scope = PropertyScope::Packet(PacketType::Publish);
        let meant =
            self.features.rewrites.name(&will.topic, &publisher.client_id, publisher.username.as_deref());
        let meant = meant.filter(|meant| topic::validate_name(meant).is_ok());
        let message = Message {
            qos: will.qos,
            retain: will.retain,
            properties: Properties::checked(&will.properties, scope).unwrap_or(Properties::EMPTY),
            hold: stored && will.qos > QoS::AtMostOnce,
            ..Message::new(meant.as_deref().unwrap_or(&will.topic), &will.payload, publisher, self.now)
        };
        let owner = Some(Owner::Will).filter(|_| message.hold);
        let routed = self.route_or_delay(&message, from, owner, None);
        let guard = routed.receipt.and_then(|(_, guard)| guard);
        self.ended.extend(guard.map(|guard| (guard, Outcome::Delivered)));
    }

    /// Routes a message of another broker, as a publish of this one. With a `number` the hook is told when it is safe
    /// ([`Hook::said`]); `publish.end` is none.
    pub fn publish_from_link(&mut self, publish: &LocalPublish, number: Option<u64>, now: Now) {
        self.now = now;
        if publish.hops > HOPS_MAX {
            self.stats.loops += 1;
            number.into_iter().for_each(|number| self.hook.said(number, Outcome::Discarded(Reason::Loop)));
            return;
        }
        self.stats.received += 1;
        let routed = self.route_or_delay(&local_message(publish), None, number.map(Owner::Link), None);
        match routed.receipt {
            None => number.into_iter().for_each(|number| self.hook.said(number, Outcome::Delivered)),
            Some((_, guard)) => {
                if let Some(done) = guard.and_then(|guard| self.receipts.resolve(guard, Outcome::Delivered)) {
                    self.complete(done.owner, done.outcome);
                }
            }
        }
    }

    /// Routes what rules published.
    pub(crate) fn route_local(&mut self) {
        while self.local_left > 0
            && let Some(publish) = self.hook.next_local()
        {
            self.local_left -= 1;
            self.route_one_local(publish);
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
        self.standing.routed_local();
        let message = local_message(&publish);
        self.route_or_delay(&message, None, None, publish.end.as_ref());
        if let Some(end) = publish.end {
            self.ended.push((end, Outcome::Delivered));
        }
    }
}

fn local_message(publish: &LocalPublish) -> Message<'_> {
    Message {
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
    }
}

/// What a publish that must not be known twice leaves in the store beside what it becomes; none: it is no such one. From a publisher
/// with a persistent session the packet id, durable before PUBREC; of a delayed message that its row is gone; of a will nothing
/// that its session's turn does not have in its batch already.
pub(crate) fn once(sessions: &Slots<marker::Session, Session>, owner: Owner) -> Option<Option<Op>> {
    match owner {
        Owner::Publisher(Inbound { session, packet_id, .. }) => {
            let session = sessions.get(session).and_then(Session::store_id)?;
            let record = record::Inflight::Received.to_bytes();
            Some(Some(Op::InflightPut { session, side: Side::Inbound, packet_id, record }))
        }
        Owner::Delayed(key) => Some(Some(key.remove())),
        Owner::Will => Some(None),
        Owner::Link(_) | Owner::Peer { .. } | Owner::Copy { .. } => None,
    }
}

/// Whether a payload is UTF-8, if its properties say so [MQTT 5, 3.3.2.3.2].
pub(crate) fn is_payload_as_said(properties: Properties<'_>, payload: &[u8]) -> bool {
    properties.payload_format_indicator() != Some(true) || std::str::from_utf8(payload).is_ok()
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
fn resolve_alias(
    publishing: &mut Publishing,
    alias: u16,
    topic: &str,
    limits: &ClientLimits,
) -> Result<Option<Arc<str>>, Why> {
    if alias == 0 || alias > limits.topic_alias_max {
        let text = "a topic alias of 0 or beyond the server's Topic Alias Maximum";
        return Err(Why::new(ReasonCode::TOPIC_ALIAS_INVALID, text));
    }
    let index = usize::from(alias) - 1;
    if topic.is_empty() {
        return match publishing.aliases.get(index) {
            Some(Some(known)) => Ok(Some(Arc::clone(known))),
            _ => Err(Why::new(ReasonCode::PROTOCOL_ERROR, "a topic alias that was not set")),
        };
    }
    if !limits.takes_topic(topic) {
        return Ok(None); // The publish is refused, and nothing is kept of it.
    }
    if publishing.aliases.len() <= index {
        publishing.aliases.resize(index + 1, None);
    }
    publishing.aliases[index] = Some(topic.into());
    Ok(None)
}
