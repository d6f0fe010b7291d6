//! SUBSCRIBE and UNSUBSCRIBE.

use crate::config;
use crate::deliver::qos as record_qos;
use crate::events::{Event, EventKind, encoded};
use crate::hook::Hook;
use crate::peers::Late;
use crate::publish::expired;
use crate::shard::{Destination, Shard};
use crate::share::Member;
use crate::turn::{Reply, Wait};
use crate::{ConnId, SessionKey};
use ferrule_mqtt::{
    Packet, Properties, PropertiesBuf, Property, QoS, ReasonCode, Suback, Subscribe, Unsubscribe, Version,
    topic,
};
use ferrule_store::record::{Delivery, Record, Retained, Subscription};
use ferrule_store::{Op, Store};
use std::sync::Arc;

impl<H: Hook, S: Store> Shard<H, S> {
    pub(crate) fn subscribe(&mut self, id: ConnId, subscribe: &Subscribe<'_>) {
        if let Some(taken) = self.claim_all(id, subscribe) {
            self.subscribe_to(id, subscribe, &taken);
        }
    }

    /// `taken`: the exclusive subscriptions among its filters that somebody else has.
    pub(crate) fn subscribe_to(&mut self, id: ConnId, subscribe: &Subscribe<'_>, taken: &[Box<str>]) {
        let Some(conn) = self.conns.get(id) else { return };
        let (version, access) = (conn.version, Arc::clone(&conn.access));
        let terse = conn.publishing.get().is_some_and(|p| p.terse);
        let most = conn.peer_packet_bytes as usize;
        let features = Arc::clone(&self.features);
        let limits = *config::client(&self.limits.clients, conn.limits);
        let Some(key) = conn.session else { return };
        let subscription_id = subscribe.properties.subscription_identifiers().next();
        let mut reasons = Vec::with_capacity(subscribe.filters.len());
        let mut retained = Vec::new();
        let (mut durable, mut is_exclusive) = (false, false);
        let mut refused = None;
        for (named, options) in subscribe.filters.iter() {
            let Some(session) = self.sessions.get_mut(key) else { return };
            let meant = features.rewrites.filter(named, &session.client_id, session.username.as_deref());
            let filter = &*meant;
            let shared = topic::shared(filter);
            let refusal = if !limits.takes_topic(filter) {
                self.stats.topics_refused += 1;
                Some(ReasonCode::TOPIC_FILTER_INVALID)
            } else if topic::validate_filter(filter).is_err() {
                Some(ReasonCode::TOPIC_FILTER_INVALID)
            } else if !access.subscribe(named) {
                self.stats.denied += 1;
                Some(ReasonCode::NOT_AUTHORIZED)
            } else if taken.iter().any(|taken| **taken == *filter) {
                self.stats.exclusive_refused += 1;
                Some(ReasonCode::QUOTA_EXCEEDED)
            } else {
                None
            };
            if self.events.wants(EventKind::Authorized) {
                let allowed = refusal != Some(ReasonCode::NOT_AUTHORIZED);
                self.tell_authorized(id, "subscribe", filter, allowed);
            }
            let Some(session) = self.sessions.get_mut(key) else { return };
            let known = session.filter(filter).cloned();
            let client_id = Arc::clone(&session.client_id);
            let refusal = refusal.or_else(|| {
                let bytes = self.filter_bytes + config::FILTER + filter.len();
                let is_full =
                    session.subscriptions.len() >= limits.subscriptions || bytes > self.limits.filter_bytes;
                let is_one_too_many = known.is_none() && is_full;
                self.stats.subscriptions_refused += u64::from(is_one_too_many);
                is_one_too_many.then_some(ReasonCode::QUOTA_EXCEEDED)
            });
            if let Some(reason) = refusal {
                // Before MQTT 5 there is one failure code.
                reasons.push(if version == Version::V5 { reason.0 } else { 0x80 });
                refused.get_or_insert((named, reason));
                if known.is_none() && topic::exclusive(filter).is_some() {
                    // It may have been granted before something else was found to be in the way.
                    self.release_claim(filter, &client_id);
                }
                continue;
            }
            let subscription = Subscription {
                qos: options.qos.into(),
                no_local: options.no_local,
                retain_as_published: options.retain_as_published,
                retain_handling: options.retain_handling,
                id: subscription_id,
            };
            is_exclusive |= topic::exclusive(filter).is_some();
            let store_id = session.store_id();
            let text = known.unwrap_or_else(|| filter.into());
            let old = session.subscribe(Arc::clone(&text), subscription);
            if old.is_none() {
                self.filter_bytes += config::FILTER + filter.len();
            }
            self.add_route(key, &text, subscription, true);
            if self.events.wants(EventKind::Subscribed) {
                let (topic, qos) = (Some(Arc::clone(&text)), subscription.qos);
                let event = Event {
                    topic,
                    qos,
                    properties: encoded(subscribe.properties),
                    ..self.client_event(Some(key), Some(id))
                };
                self.events.tell(EventKind::Subscribed, event);
            }
            if let Some(session) = store_id {
                if old != Some(subscription) {
                    let record = subscription.to_bytes();
                    self.op(Op::SubscriptionPut { session, filter: filter.into(), record }, true);
                }
                // Even one that is there already may still be on its way to the store.
                durable |= self.batch.is_awaited();
            }
            let wants = options.retain_handling == 0 || (options.retain_handling == 1 && old.is_none());
            // A shared subscription gets no retained messages [MQTT 5, 4.8.2].
            if wants && shared.is_none() {
                retained.push((text, subscription));
            }
            reasons.push(options.qos.into());
        }
        let mut packet = Vec::with_capacity(8 + reasons.len());
        let mut properties = PropertiesBuf::new();
        if version == Version::V5
            && !terse
            && let Some((named, reason)) = refused
        {
            // Of several the first: the codes tell of all.
            let _ = properties.push(Property::ReasonString(&format!("{named}: {}", reason.name())));
        }
        for properties in [properties.as_properties(), Properties::EMPTY] {
            packet.clear();
            let suback = Suback { packet_id: subscribe.packet_id, properties, reasons: &reasons };
            if Packet::Suback(suback).encode(version, &mut packet).is_ok() && packet.len() <= most {
                // With its reason, unless that makes it larger than the client takes [MQTT-3.9.2-1].
                break;
            }
        }
        if durable {
            // Otherwise an acknowledged subscription is not routable after a kill.
            self.wait(Wait::Reply(Reply { conn: id, packet, retained, is_exclusive }));
        } else {
            self.when_routed(Late::Reply(Reply { conn: id, packet, retained, is_exclusive }));
        }
    }

    pub(crate) fn unsubscribe(&mut self, id: ConnId, unsubscribe: &Unsubscribe<'_>) {
        let Some(conn) = self.conns.get(id) else { return };
        let version = conn.version;
        let Some(key) = conn.session else { return };
        let mut reasons = Vec::with_capacity(unsubscribe.filters.len());
        let mut durable = false;
        let features = Arc::clone(&self.features);
        for named in unsubscribe.filters.iter() {
            let Some(session) = self.sessions.get_mut(key) else { return };
            let meant = features.rewrites.filter(named, &session.client_id, session.username.as_deref());
            let filter = &*meant;
            let store_id = session.store_id();
            if session.unsubscribe(filter).is_none() {
                // Its end may still be on its way to the store.
                durable |= store_id.is_some() && self.batch.is_awaited();
                reasons.push(ReasonCode::NO_SUBSCRIPTION_EXISTED.0);
                continue;
            }
            let client_id = Arc::clone(&session.client_id);
            if self.events.wants(EventKind::Unsubscribed) {
                let topic = Some(filter.into());
                let event = Event {
                    topic,
                    properties: encoded(unsubscribe.properties),
                    ..self.client_event(Some(key), Some(id))
                };
                self.events.tell(EventKind::Unsubscribed, event);
            }
            self.filter_bytes -= config::FILTER + filter.len();
            self.remove_route(key, filter);
            if topic::exclusive(filter).is_some() {
                self.release_claim(filter, &client_id);
            }
            if let Some(session) = store_id {
                durable = true;
                self.op(Op::SubscriptionDelete { session, filter: filter.into() }, true);
            }
            reasons.push(ReasonCode::SUCCESS.0);
        }
        let mut packet = Vec::with_capacity(8 + reasons.len());
        let unsuback =
            Suback { packet_id: unsubscribe.packet_id, properties: Properties::EMPTY, reasons: &reasons };
        let _ = Packet::Unsuback(unsuback).encode(version, &mut packet);
        if durable {
            self.wait(Wait::Reply(Reply { conn: id, packet, retained: Vec::new(), is_exclusive: false }));
        } else {
            self.when_routed(Late::Reply(Reply {
                conn: id,
                packet,
                retained: Vec::new(),
                is_exclusive: false,
            }));
        }
    }

    /// Makes a session's subscription lead to it. `tell`: the other shards.
    pub(crate) fn add_route(
        &mut self,
        key: SessionKey,
        text: &Arc<str>,
        subscription: Subscription,
        tell: bool,
    ) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let keeps = session.is_persistent();
        if topic::shared(text).is_none() {
            let plain = topic::exclusive(text).map_or_else(|| Arc::clone(text), Into::into);
            let changed = self.routes.insert(&plain, Destination::Session(key, subscription, keeps));
            if changed.local && tell {
                self.peers.route_changed(&plain, true);
            }
            return;
        }
        session.shares = true;
        let is_online = session.conn.is_some();
        let turned = self.shares.put(text, Member { session: key, subscription, keeps }, is_online);
        self.share_changed(text, &turned, tell);
    }

    /// Ends that.
    pub(crate) fn remove_route(&mut self, key: SessionKey, text: &str) {
        if topic::shared(text).is_none() {
            let plain = topic::plain(text);
            let twin = self.sessions.get(key).and_then(|session| session.twin(text));
            if let Some((twin, subscription)) = twin {
                // The filter is still subscribed to, as plain as it is or exclusively.
                self.add_route(key, &twin, subscription, true);
            } else if self.routes.remove(plain, key.to_bits()).local {
                self.peers.route_changed(plain, false);
            }
        } else if let Some(turned) = self.shares.remove(text, key) {
            self.share_changed(text, &turned, true);
        }
    }

    /// Sends a reply, and after a SUBACK the retained messages of its filters.
    pub(crate) fn reply(&mut self, reply: Reply) {
        let Reply { conn, packet, retained, .. } = reply;
        self.write(conn, |out, _| out.extend_from_slice(&packet));
        for (filter, subscription) in retained {
            self.send_retained(conn, &filter, subscription);
        }
    }

    pub(crate) fn send_retained(&mut self, id: ConnId, filter: &str, subscription: Subscription) {
        let Some(conn) = self.conns.get(id) else { return };
        let (Some(key), access) = (conn.session, Arc::clone(&conn.access)) else { return };
        let mut found: Vec<(Arc<str>, Arc<Retained>)> = Vec::new();
        let now_ms = self.steady.ms(self.now);
        let filter = topic::plain(filter);
        self.retained.matches(filter, |name, message| {
            if !expired(message.expires_wall_ms, now_ms) && access.receive(name) {
                found.push((Arc::clone(name), Arc::clone(message)));
            }
        });
        self.sys.matches(filter, |name, message| {
            if access.receive(name) {
                found.push((Arc::clone(name), Arc::clone(message)));
            }
        });
        for (topic, message) in found {
            let qos = record_qos(message.qos.min(subscription.qos));
            let delivery = Arc::new(Delivery {
                topic,
                qos: qos.into(),
                retain: true,
                expires_wall_ms: message.expires_wall_ms,
                subscription_ids: subscription.id.into_iter().collect(),
                properties: message.properties.clone(),
                payload: message.payload.clone(),
                share: None,
                source: None,
            });
            let Some(session) = self.sessions.get_mut(key) else { return };
            if qos > QoS::AtMostOnce {
                self.delivering().enqueue(key, &delivery, None);
            } else if session.backlog.make().len() < self.limits.retained_messages {
                session.backlog.make().push_back(delivery);
            } else {
                self.stats.dropped_slow += 1;
            }
        }
        self.pump(key);
    }
}
