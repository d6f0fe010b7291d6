//! SUBSCRIBE and UNSUBSCRIBE.

use crate::config;
use crate::deliver::qos as record_qos;
use crate::hook::Hook;
use crate::publish::expired;
use crate::shard::{Destination, Shard};
use crate::share::Member;
use crate::turn::{Reply, Wait};
use crate::{ConnId, SessionKey};
use ferrule_mqtt::{Packet, Properties, QoS, ReasonCode, Suback, Subscribe, Unsubscribe, Version, topic};
use ferrule_store::record::{Delivery, Record, Retained, Subscription};
use ferrule_store::{Op, Store};
use std::sync::Arc;

impl<H: Hook, S: Store> Shard<H, S> {
    pub(crate) fn subscribe(&mut self, id: ConnId, subscribe: &Subscribe<'_>) {
        let Some(conn) = self.conns.get(id) else { return };
        let (version, access) = (conn.version, Arc::clone(&conn.access));
        let limits = *config::client(&self.limits.clients, conn.listener);
        let Some(key) = conn.session else { return };
        let subscription_id = subscribe.properties.subscription_identifiers().next();
        let mut reasons = Vec::with_capacity(subscribe.filters.len());
        let mut retained = Vec::new();
        let mut durable = false;
        for (filter, options) in subscribe.filters.iter() {
            let shared = topic::shared(filter);
            let refusal = if !limits.takes_topic(filter) {
                self.stats.topics_refused += 1;
                Some(ReasonCode::TOPIC_FILTER_INVALID)
            } else if topic::validate_filter(filter).is_err() || topic::exclusive(filter).is_some() {
                Some(ReasonCode::TOPIC_FILTER_INVALID)
            } else if !access.subscribe(filter) {
                self.stats.denied += 1;
                Some(ReasonCode::NOT_AUTHORIZED)
            } else {
                None
            };
            let Some(session) = self.sessions.get_mut(key) else { return };
            let known = session.filter(filter).cloned();
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
                continue;
            }
            let subscription = Subscription {
                qos: options.qos.into(),
                no_local: options.no_local,
                retain_as_published: options.retain_as_published,
                retain_handling: options.retain_handling,
                id: subscription_id,
            };
            let store_id = session.store_id();
            let text = known.unwrap_or_else(|| filter.into());
            let old = session.subscribe(Arc::clone(&text), subscription);
            if old.is_none() {
                self.filter_bytes += config::FILTER + filter.len();
            }
            self.add_route(key, &text, subscription, true);
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
        let suback =
            Suback { packet_id: subscribe.packet_id, properties: Properties::EMPTY, reasons: &reasons };
        let _ = Packet::Suback(suback).encode(version, &mut packet);
        if durable {
            // Otherwise an acknowledged subscription is not routable after a kill.
            self.wait(Wait::Reply(Reply { conn: id, packet, retained }));
        } else {
            self.reply_when_routed(Reply { conn: id, packet, retained });
        }
    }

    pub(crate) fn unsubscribe(&mut self, id: ConnId, unsubscribe: &Unsubscribe<'_>) {
        let Some(conn) = self.conns.get(id) else { return };
        let version = conn.version;
        let Some(key) = conn.session else { return };
        let mut reasons = Vec::with_capacity(unsubscribe.filters.len());
        let mut durable = false;
        for filter in unsubscribe.filters.iter() {
            let Some(session) = self.sessions.get_mut(key) else { return };
            let store_id = session.store_id();
            if session.unsubscribe(filter).is_none() {
                // Its end may still be on its way to the store.
                durable |= store_id.is_some() && self.batch.is_awaited();
                reasons.push(ReasonCode::NO_SUBSCRIPTION_EXISTED.0);
                continue;
            }
            self.filter_bytes -= config::FILTER + filter.len();
            self.remove_route(key, filter);
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
            self.wait(Wait::Reply(Reply { conn: id, packet, retained: Vec::new() }));
        } else {
            self.reply_when_routed(Reply { conn: id, packet, retained: Vec::new() });
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
            let changed = self.routes.insert(text, Destination::Session(key, subscription, keeps));
            if changed.local && tell {
                self.peers.route_changed(text, true);
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
            if self.routes.remove(text, key.to_bits()).local {
                self.peers.route_changed(text, false);
            }
        } else if let Some(turned) = self.shares.remove(text, key) {
            self.share_changed(text, &turned, true);
        }
    }

    /// Sends a reply, and after a SUBACK the retained messages of its filters.
    pub(crate) fn reply(&mut self, reply: Reply) {
        let Reply { conn, packet, retained } = reply;
        self.write(conn, |out, _| out.extend_from_slice(&packet));
        for (filter, subscription) in retained {
            self.send_retained(conn, &filter, subscription);
        }
    }

    fn send_retained(&mut self, id: ConnId, filter: &str, subscription: Subscription) {
        let Some(conn) = self.conns.get(id) else { return };
        let (Some(key), access) = (conn.session, Arc::clone(&conn.access)) else { return };
        let mut found: Vec<(Arc<str>, Arc<Retained>)> = Vec::new();
        let now_ms = self.now.wall_ms;
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
