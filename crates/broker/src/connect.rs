//! CONNECT: admission, takeover, the session, and the CONNACK when all of it is safe.

use crate::alias::Aliases;
use crate::config;
use crate::delayed::is_delayed;
use crate::ending::Why;
use crate::events::{Event, EventKind, reason_code};
use crate::features::{self, AutoSubscription};
use crate::hook::{ConnectRequest, Grant, Hook, Refusal, Role};
use crate::peers::Late;
use crate::publish::is_payload_as_said;
use crate::session::{Kind, Phase, Rare, Session, Will};
use crate::shard::{Command, Shard};
use crate::turn::Wait;
use crate::{ConnId, SessionKey};
use bytes::Bytes;
use ferrule_mqtt::{
    AckType, Connack, Connect, Packet, Properties, PropertiesBuf, Property, PropertyId, ReasonCode, Version,
    encode_ack, topic,
};
use ferrule_outbox::Queue;
use ferrule_store::record::{self, Record, Subscription};
use ferrule_store::{Op, QueueId, SessionId, Store};
use std::sync::Arc;

/// A CONNECT whose answer is due.
#[derive(Debug)]
pub(crate) struct Connecting {
    version: Version,
    client_id: Arc<str>,
    assigned: bool,
    clean_start: bool,
    expiry_s: u32,
    expiry_cut: bool,
    keep_alive: u16,
    keep_alive_cut: bool,
    window: u16,
    will: Option<Box<Will>>,
    session_present: bool,
    /// As the gate knows it.
    username: Option<Arc<str>>,
    /// Its session, which the store has made.
    made: Option<SessionId>,
    /// Asked for Response Information.
    wants_response: bool,
    /// Filters that it was subscribed to without its doing, whose retained messages follow the CONNACK.
    retained: Vec<(Arc<str>, Subscription)>,
    properties: PropertiesBuf,
    /// Those of the CONNECT, where somebody wants to know.
    asked: PropertiesBuf,
}

impl Connecting {
    pub(crate) fn wants_retained(&self) -> bool {
        !self.retained.is_empty()
    }

    pub(crate) fn client_id(&self) -> Arc<str> {
        Arc::clone(&self.client_id)
    }
}

impl<H: Hook, S: Store> Shard<H, S> {
    pub(crate) fn connect(&mut self, id: ConnId, connect: &Connect<'_>) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.phase != Phase::AwaitConnect {
            // [MQTT-3.1.0-2]
            self.protocol_error(id, "a second CONNECT");
            return;
        }
        conn.version = connect.version;
        let aliases = connect.properties.topic_alias_maximum().unwrap_or(0);
        // Already for a refusal.
        if connect.properties.request_problem_information() == Some(false) {
            conn.publishing.make().terse = true;
        }
        conn.peer_packet_bytes = connect.properties.maximum_packet_size().unwrap_or(u32::MAX);
        if let Some(reason) = self.refusal(id) {
            self.refuse(id, Why::elsewhere(reason, "a bound of the listener"));
            return;
        }
        let Some(conn) = self.conns.get_mut(id) else { return };
        let limits = *config::client(&self.limits.clients, conn.limits);
        let aliases = aliases.min(limits.topic_alias_max);
        if aliases > 0 {
            let own = Aliases::new(aliases, self.hasher.clone());
            conn.publishing.make().own_aliases = Some(Box::new(own));
        }
        let (peer, listener) = (conn.peer, usize::from(self.rows.listener(conn.limits)));
        let v5 = connect.version == Version::V5;
        if self.parting.is_draining() {
            self.refuse(id, Why::elsewhere(ReasonCode::USE_ANOTHER_SERVER, ""));
            return;
        }
        if self.pool.overloaded {
            self.stats.overload_refused += 1;
            self.refuse(id, Why::elsewhere(ReasonCode::QUOTA_EXCEEDED, "the server is short of memory"));
            return;
        }
        let assigned = connect.client_id.is_empty();
        if assigned && !v5 && (!connect.clean_start || connect.version == Version::V3_1) {
            // [MQTT-3.1.3-8]; MQTT 3.1 has no empty client ids.
            self.refuse(id, ReasonCode::CLIENT_IDENTIFIER_NOT_VALID);
            return;
        }
        let client_id: Arc<str> = if assigned { self.draw_client_id() } else { connect.client_id.into() };
        let properties = connect.properties;
        let takes =
            |topic| limits.takes_topic(topic) && (!is_delayed(topic) || topic::delayed(topic).is_some());
        if connect.will.is_some_and(|will| !takes(will.topic)) {
            self.stats.topics_refused += 1;
            let text = "the will's topic has more levels or bytes than the server takes, or a delay that is no number";
            self.refuse(id, Why::new(ReasonCode::TOPIC_NAME_INVALID, text));
            return;
        }
        if self.features.check_payload_format
            && let Some(will) = connect.will
            && !is_payload_as_said(will.properties, will.payload)
        {
            self.stats.payloads_refused += 1;
            self.refuse(id, Why::new(ReasonCode::PAYLOAD_FORMAT_INVALID, "the will's payload is not UTF-8"));
            return;
        }
        let expiry_asked = match (v5, connect.clean_start) {
            (true, _) => properties.session_expiry_interval().unwrap_or(0),
            (false, true) => 0,
            (false, false) => u32::MAX,
        };
        let expiry_s = expiry_asked.min(limits.session_expiry_max_s);
        let keep_alive = match limits.keep_alive_max {
            // Only MQTT 5 can be told another one.
            Some(max) if v5 && (connect.keep_alive == 0 || connect.keep_alive > max) => max,
            _ => connect.keep_alive,
        };
        let mut asked = PropertiesBuf::new();
        if self.events.wants(EventKind::ClientConnected) || self.events.wants(EventKind::ClientConnack) {
            asked.extend(properties, |id| id != PropertyId::AuthenticationData);
        }
        let connecting = Connecting {
            version: connect.version,
            client_id: Arc::clone(&client_id),
            assigned,
            clean_start: connect.clean_start,
            expiry_s,
            expiry_cut: v5 && expiry_s != expiry_asked,
            keep_alive,
            keep_alive_cut: keep_alive != connect.keep_alive,
            window: properties.receive_maximum().unwrap_or(u16::MAX).min(limits.inflight_max),
            will: connect.will.map(|will| {
                let mut forward = PropertiesBuf::new();
                forward.extend(will.properties, |p| p != PropertyId::WillDelayInterval);
                Box::new(Will {
                    topic: will.topic.into(),
                    payload: Bytes::copy_from_slice(will.payload),
                    qos: will.qos,
                    retain: will.retain,
                    properties: Bytes::copy_from_slice(forward.as_properties().as_bytes()),
                    delay_s: will.properties.will_delay_interval().unwrap_or(0),
                })
            }),
            session_present: false,
            username: None,
            made: None,
            wants_response: properties.request_response_information() == Some(true),
            retained: Vec::new(),
            properties: PropertiesBuf::new(),
            asked,
        };
        if let Some(conn) = self.conns.get_mut(id) {
            conn.connecting = Some(Box::new(connecting));
            conn.phase = Phase::AwaitGate;
        }
        let certificate = self.conns.get(id).and_then(|c| c.publishing.get()?.certificate.clone());
        let request = ConnectRequest {
            version: connect.version,
            client_id: &client_id,
            username: connect.username,
            password: connect.password,
            peer,
            listener,
            certificate: certificate.as_deref(),
            properties,
        };
        if let Some(method) = properties.authentication_method() {
            self.connect_by_method(id, &request, method);
        } else if let Some(verdict) = self.gate.admit(id, &request) {
            self.decided(id, verdict);
        }
    }

    /// The gate's late answer.
    pub fn admitted(&mut self, id: ConnId, verdict: Result<Grant, Refusal>, now: ferrule_store::Now) {
        self.now = now;
        if self.conns.get(id).is_some_and(|c| c.phase == Phase::AwaitGate) {
            self.decided(id, verdict);
            if self.conns.get(id).is_some_and(|c| c.phase == Phase::Open) {
                self.commands.push(Command::Resume(id));
            }
        }
    }

    pub(crate) fn decided(&mut self, id: ConnId, verdict: Result<Grant, Refusal>) {
        if self.events.wants(EventKind::Authenticated)
            && let Some(connecting) = self.conns.get(id).and_then(|conn| conn.connecting.as_deref())
        {
            let refused = verdict.as_ref().err();
            let event = Event {
                client_id: Arc::clone(&connecting.client_id),
                username: verdict.as_ref().ok().and_then(|grant| grant.username.clone()),
                reason: reason_code(refused.map_or(ReasonCode::SUCCESS, |refusal| refusal.reason)),
                allowed: refused.is_none(),
                ..self.client_event(None, Some(id))
            };
            self.events.tell(EventKind::Authenticated, event);
        }
        let grant = match verdict {
            Ok(grant) => grant,
            Err(refusal) => {
                self.refuse(id, refusal.reason);
                return;
            }
        };
        let Some(conn) = self.conns.get_mut(id) else { return };
        let Some(mut connecting) = conn.connecting.take() else { return };
        if connecting.will.as_ref().is_some_and(|will| !grant.access.publish(&will.topic)) {
            self.refuse(id, Why::new(ReasonCode::NOT_AUTHORIZED, "the will's topic is not allowed"));
            return;
        }
        let known = self.by_client(&connecting.client_id).and_then(|key| self.sessions.get(key));
        let is_one_more = connecting.expiry_s > 0 && !known.is_some_and(Session::is_persistent);
        let old = known.and_then(|session| session.conn);
        if is_one_more && self.by_store_id.len() >= self.limits.sessions {
            self.stats.sessions_refused += 1;
            let text = "the server has as many sessions that outlive their connection as it may";
            self.refuse(id, Why::elsewhere(ReasonCode::QUOTA_EXCEEDED, text));
            return;
        }
        let old_life = old.and_then(|old| self.conns.get(old)?.publishing.get()?.life.as_deref());
        if old_life.is_some_and(|old| grant.life.as_deref().is_some_and(|life| life != old)) {
            let text = "another process of this client id is connected";
            self.refuse(id, Why::new(ReasonCode::QUOTA_EXCEEDED, text));
            return;
        }
        let Some(conn) = self.conns.get_mut(id) else { return };
        if let Role::Edge(edge) = grant.role {
            let publishing = conn.publishing.make();
            publishing.edge = Some(edge);
            publishing.life = grant.life;
            conn.unordered = true;
        }
        conn.access = grant.access;
        conn.keep_alive_s = connecting.keep_alive;
        connecting.properties = grant.properties;
        connecting.username = grant.username;
        let client_id = Arc::clone(&connecting.client_id);
        let lives_on = connecting.expiry_s > 0;
        conn.connecting = Some(connecting);
        conn.phase = Phase::AwaitStore;
        self.stats.connected += 1;
        let is_stored = self.has_session(&client_id);
        // A node that is no live member serves those whose sessions end with their connections; the others wait until it is one.
        let is_asked = self.peers.clustered && !is_stored && (lives_on || !self.peers.hidden);
        if is_asked {
            self.look_for(id, &client_id);
        } else {
            self.tell_presence(id, &client_id);
            self.enter(id);
        }
    }

    /// The session of the client that connects is made by the store, and has this number.
    pub(crate) fn is_made(&mut self, id: ConnId, session: SessionId) {
        if let Some(connecting) = self.conns.get_mut(id).and_then(|conn| conn.connecting.as_mut()) {
            connecting.made = Some(session);
        }
    }

    /// The number and the record of a session that the store is to make for a client that connects; none: it is to have none there.
    pub(crate) fn new_record(&mut self, id: ConnId) -> Option<(SessionId, Bytes)> {
        let connecting = self.conns.get(id)?.connecting.as_deref().filter(|c| c.expiry_s > 0)?;
        let record = record::Session {
            client_id: (&*connecting.client_id).into(),
            username: connecting.username.as_deref().map(Into::into),
            expiry_s: connecting.expiry_s,
            ended_wall_ms: None,
            handed_to: None,
            will: None,
        };
        Some((SessionId(Self::draw(self.peers.place, &mut self.next_session)), record.to_bytes()))
    }

    /// A client that may connect has its session, as it is or anew.
    pub(crate) fn enter(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let row = conn.limits;
        let Some(mut connecting) = conn.connecting.take() else { return };
        // Take over: the older connection is told and ends, with its will.
        if let Some(old) = self.by_client(&connecting.client_id)
            && let Some(old_conn) = self.sessions.get(old).and_then(|s| s.conn)
        {
            self.disconnect(old_conn, ReasonCode::SESSION_TAKEN_OVER);
        }
        let mut awaits = false;
        if let Some(old) = self.by_client(&connecting.client_id) {
            // One without a delay, of a connection that a kill ended: the return comes after it, however fast.
            self.publish_due_will(old);
            // Another user's messages are not this one's, whatever the client id says.
            let other = self.sessions.get(old).is_some_and(|s| s.username != connecting.username);
            if connecting.clean_start || other {
                self.drop_session(old);
                awaits = true;
            }
        }
        let key = match self.by_client(&connecting.client_id) {
            Some(key) => {
                connecting.session_present = true;
                awaits |= self.sessions.get(key).is_some_and(|s| s.expiry_s != connecting.expiry_s);
                key
            }
            None if self.peers.clustered && connecting.expiry_s > 0 && connecting.made.is_none() => {
                // Its own was ended, or is about to be: a new one is the store's to make, or a client might have two.
                if let Some(conn) = self.conns.get_mut(id) {
                    conn.connecting = Some(connecting);
                }
                self.wait_for_new(id);
                return;
            }
            None => self.new_session(&connecting),
        };
        if let Some(session) = self.sessions.get_mut(key) {
            session.conn = Some(id);
            session.version = connecting.version;
            session.limits = row;
            session.expiry_s = connecting.expiry_s;
            session.window = connecting.window;
            session.will = connecting.will.take();
            // Its owner is back before its delay was over [MQTT-3.1.3-9].
            session.late_will = None;
            session.expires_us = 0;
            // A will is of no use that a kill forgets.
            let is_changed = !connecting.session_present || session.will.is_some();
            awaits |= session.is_persistent() && (is_changed || self.batch.is_awaited());
        }
        awaits |= self.auto_subscribe(key, &mut connecting);
        if let Some((op, due)) = self.session_op(key, None) {
            self.op(op, awaits || due);
        }
        let is_resumed = connecting.session_present;
        if let Some(conn) = self.conns.get_mut(id) {
            conn.session = Some(key);
            conn.connecting = Some(connecting);
        }
        if is_resumed {
            // What it subscribed to then it may not be sent any more now.
            self.narrow_access(id);
        }
        if awaits && self.batch.is_awaited() {
            // "A new, changed or discarded persistent session": contract 1.
            self.wait(Wait::Connack(id));
        } else {
            self.connack_when_routed(id);
        }
    }

    fn new_session(&mut self, connecting: &Connecting) -> SessionKey {
        let username = connecting.username.clone();
        let kind = if connecting.expiry_s > 0 {
            let drawn = || SessionId(Self::draw(self.peers.place, &mut self.next_session));
            let id = connecting.made.unwrap_or_else(drawn);
            let queue = Queue::new(QueueId::session(id), self.policy, None);
            Kind::Persistent { queue: Box::new(queue) }
        } else {
            Kind::Clean(Rare::default())
        };
        let client_id = Arc::clone(&connecting.client_id);
        let key = self.sessions.insert(Session::new(client_id, username, kind, connecting.expiry_s));
        self.add_client(key);
        if let Some(id) = self.sessions.get(key).and_then(Session::store_id) {
            self.by_store_id.insert(id, key);
        }
        key
    }

    /// Subscribes a client to what every client is. Whether that has to be durable before its CONNACK.
    fn auto_subscribe(&mut self, key: SessionKey, connecting: &mut Connecting) -> bool {
        let features = Arc::clone(&self.features);
        let mut durable = false;
        for AutoSubscription { filter, options } in &features.auto_subscribe {
            let Some(session) = self.sessions.get_mut(key) else { return durable };
            let filled = features::fill(filter, &session.client_id, session.username.as_deref());
            let Some(filter) = filled.filter(|filter| topic::validate_filter(filter).is_ok()) else {
                continue;
            };
            let text = session.filter(&filter).cloned().unwrap_or_else(|| filter.into());
            let store_id = session.store_id();
            let old = session.subscribe(Arc::clone(&text), *options);
            if old.is_none() {
                self.filter_bytes += config::FILTER + text.len();
            }
            if old != Some(*options) {
                self.add_route(key, &text, *options, true);
                if let Some(session) = store_id {
                    let record = options.to_bytes();
                    self.op(Op::SubscriptionPut { session, filter: (&*text).into(), record }, true);
                    durable = true;
                }
            }
            let wants = options.retain_handling == 0 || (options.retain_handling == 1 && old.is_none());
            if wants && topic::shared(&text).is_none() {
                connecting.retained.push((text, *options));
            }
        }
        durable
    }

    /// All that the CONNACK waited for is durable; what the client was subscribed to has to be known to all shards, too, and that it is here to
    /// all nodes.
    pub(crate) fn connack_when_routed(&mut self, id: ConnId) {
        let is_told = self.peers.clustered && !self.peers.hidden;
        if self.features.auto_subscribe.is_empty() && !is_told {
            self.store_ready(id);
        } else {
            self.when_routed(Late::Connack(id));
        }
    }

    pub(crate) fn store_ready(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let limits = *config::client(&self.limits.clients, conn.limits);
        if conn.phase != Phase::AwaitStore {
            return;
        }
        let (Some(connecting), Some(key)) = (conn.connecting.take(), conn.session) else { return };
        conn.phase = Phase::Open;
        // It could not be heard while it was held.
        conn.heard_us = self.now.mono_us;
        // Whether it takes what it must is looked at once in `stalled`, and the end of its time to connect may be later than that.
        let stalled_us = limits.stalled.as_micros() as u64;
        let look_us = conn.silence_us().map_or(stalled_us, |silence_us| silence_us.min(stalled_us));
        self.arm_conn(id, self.now.mono_us + look_us);
        let mut properties = connecting.properties.clone();
        if connecting.version == Version::V5 {
            let mut add = |property: Property<'_>| {
                // Numbers and an id that fits a string: these encode.
                let _ = properties.push(property);
            };
            if connecting.expiry_cut {
                add(Property::SessionExpiryInterval(connecting.expiry_s));
            }
            add(Property::ReceiveMaximum(limits.receive_max));
            add(Property::MaximumPacketSize(u32::try_from(limits.packet_bytes).unwrap_or(u32::MAX)));
            if connecting.assigned {
                add(Property::AssignedClientIdentifier(&connecting.client_id));
            }
            add(Property::TopicAliasMaximum(limits.topic_alias_max));
            if connecting.keep_alive_cut {
                add(Property::ServerKeepAlive(connecting.keep_alive));
            }
            let session = self.sessions.get(key).filter(|_| connecting.wants_response);
            let template = self.features.response_information.as_deref();
            let response = session.zip(template).and_then(|(session, template)| {
                features::fill(template, &session.client_id, session.username.as_deref())
            });
            response.iter().for_each(|response| add(Property::ResponseInformation(response)));
        }
        let session_present = connecting.session_present;
        if self.events.want_clients()
            && let Some(conn) = self.conns.get_mut(id)
        {
            let seconds = u32::try_from(self.now.wall_ms / 1_000);
            conn.publishing.make().connected_s = seconds.unwrap_or(u32::MAX);
        }
        let is_told = self.write(id, |out, version| {
            let properties =
                if version == Version::V5 { properties.as_properties() } else { Properties::EMPTY };
            let connack = Connack { session_present, reason: ReasonCode::SUCCESS, properties };
            let _ = Packet::Connack(connack).encode(version, out);
        });
        if !is_told {
            // No DISCONNECT before a CONNACK [MQTT-3.14.0-1].
            self.close(id);
            return;
        }
        if self.events.wants(EventKind::ClientConnected) || self.events.wants(EventKind::ClientConnack) {
            let mut event = self.client_event(Some(key), Some(id));
            if let Some(connection) = &mut event.connection {
                connection.clean_start = connecting.clean_start;
            }
            self.tell_connack(event, ReasonCode::SUCCESS, connecting.asked.as_properties());
        }
        self.share_online(key, true);
        self.resume(id, key);
        for (filter, subscription) in connecting.retained {
            self.send_retained(id, &filter, subscription);
        }
        self.commands.push(Command::Resume(id));
    }

    /// What was in flight goes again under its packet id [MQTT-4.4.0-1], as far as the client's window has room, then
    /// what waits.
    fn resume(&mut self, id: ConnId, key: SessionKey) {
        let now = self.now;
        let Some(session) = self.sessions.get_mut(key) else { return };
        let Kind::Persistent { queue } = &mut session.kind else {
            self.pump(key);
            return;
        };
        queue.set_up(true, now);
        let released: Vec<u16> = session.inflight.released().collect();
        for packet_id in released {
            self.write(id, |out, v| encode_ack(out, v, AckType::Pubrel, packet_id, ReasonCode::SUCCESS));
        }
        self.pump(key);
        self.touch(key);
    }

    /// An id that nobody else has, and that belongs to this shard: 64 bits from a seeded generator (splitmix64).
    fn draw_client_id(&mut self) -> Arc<str> {
        loop {
            self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.random;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let id: Arc<str> = format!("auto-{:016x}", z ^ (z >> 31)).into();
            if self.by_client(&id).is_none() && self.belongs_elsewhere(&id).is_none() {
                return id;
            }
        }
    }
}
