//! Events of the broker as rules see them: the columns that EMQX gives them.

use super::Hub;
use super::rules::HOPS_MAX;
use super::source::Source;
use ferrule_broker::{Ends, Event, EventKind, Message, Publisher, Role, Told};
use ferrule_mqtt::{PacketType, Properties, Property, PropertyScope, QoS, Version};
use ferrule_store::Now;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// The topic that stands for an event, and what the column `event` says.
const fn names(kind: EventKind) -> (&'static str, &'static str) {
    match kind {
        EventKind::ClientConnected => ("$events/client/connected", "client.connected"),
        EventKind::ClientDisconnected => ("$events/client/disconnected", "client.disconnected"),
        EventKind::ClientConnack => ("$events/client/connack", "client.connack"),
        EventKind::ClientPing => ("$events/client/ping", "client.ping"),
        EventKind::Authenticated => ("$events/auth/check_authn_complete", "client.check_authn_complete"),
        EventKind::Authorized => ("$events/auth/check_authz_complete", "client.check_authz_complete"),
        EventKind::Subscribed => ("$events/session/subscribed", "session.subscribed"),
        EventKind::Unsubscribed => ("$events/session/unsubscribed", "session.unsubscribed"),
        EventKind::MessageDelivered => ("$events/message/delivered", "message.delivered"),
        EventKind::MessageAcked => ("$events/message/acked", "message.acked"),
        EventKind::MessageDropped => ("$events/message/dropped", "message.dropped"),
        EventKind::DeliveryDropped => ("$events/message/delivery_dropped", "delivery.dropped"),
    }
}

/// The event of a name that `FROM` may have.
pub(super) fn named(name: &str) -> Option<EventKind> {
    EventKind::ALL.into_iter().find(|kind| names(*kind).1 == name)
}

impl Hub {
    /// Runs the rules that asked for an event.
    pub(super) fn run_event(&mut self, event: &Event, ends: &mut Ends<'_>, now: Now) {
        let Some(kind) = event.kind else { return };
        let matched = self.rules.listeners(kind);
        if matched.is_empty() {
            return;
        }
        let columns = columns(kind, event, now);
        let told = event.message.as_ref();
        let host = event.peer.map(|peer| peer.to_string().into());
        let publisher = Publisher {
            client_id: Arc::clone(&event.client_id),
            username: event.username.clone(),
            host,
            role: Role::Device,
        };
        let (topic, name) = names(kind);
        let message = Message {
            topic,
            payload: told.map_or(&[], |told| &told.payload),
            qos: QoS::AtMostOnce,
            retain: false,
            dup: false,
            properties: Properties::EMPTY,
            publisher: &publisher,
            received: now.stamp(),
            // A rule that makes another message of each that was delivered is a loop like any other.
            hops: told.and_then(|told| told.source.as_ref()).map_or(0, |source| source.hops),
            path: 0,
            attachment: None,
            hold: false,
        };
        let own = Arc::clone(&self.node.origin);
        let source = Source::of(&message, &own, self.next_id());
        if source.hops >= HOPS_MAX {
            self.rules.loops += 1;
            return;
        }
        if !self.node.edge {
            self.next_seq += u64::from(self.node.place.of);
        }
        self.run(&message, source, Some((name, &columns)), &matched, ends, now);
    }
}

/// The columns of an event but those that every row has.
fn columns(kind: EventKind, event: &Event, now: Now) -> Map<String, Value> {
    let mut columns = Map::new();
    let mut put = |name: &str, value: Value| {
        if !value.is_null() {
            columns.insert(name.to_owned(), value);
        }
    };
    put("clientid", json!(&*event.client_id));
    put("username", json!(event.username.as_deref()));
    let peer = event.peer.map(|peer| peer.to_string());
    put("peername", json!(peer));
    if let Some(told) = &event.message {
        message_columns(kind, told, &mut put);
    }
    if let Some(connection) = event.connection.filter(|_| {
        use EventKind::{ClientConnack, ClientConnected, ClientDisconnected, ClientPing};
        matches!(kind, ClientConnected | ClientDisconnected | ClientConnack | ClientPing)
    }) {
        put("proto_name", json!(if connection.version == Version::V3_1 { "MQIsdp" } else { "MQTT" }));
        put("proto_ver", json!(connection.version as u8));
        put(
            "connected_at",
            (connection.connected_s > 0).then(|| i64::from(connection.connected_s) * 1_000).into(),
        );
        if kind != EventKind::ClientDisconnected {
            put("keepalive", json!(connection.keep_alive_s));
            put("clean_start", json!(connection.clean_start));
            put("expiry_interval", json!(connection.expiry_s));
            put("is_bridge", json!(false));
        }
    }
    let packet = match kind {
        EventKind::ClientDisconnected => PacketType::Disconnect,
        EventKind::Subscribed => PacketType::Subscribe,
        EventKind::Unsubscribed => PacketType::Unsubscribe,
        EventKind::MessageAcked => PacketType::Puback,
        _ => PacketType::Connect,
    };
    let properties = || read(&event.properties, packet);
    match kind {
        EventKind::ClientConnected | EventKind::ClientPing => put("conn_props", properties()),
        EventKind::ClientConnack => {
            put("conn_props", properties());
            put("reason_code", json!(event.reason));
        }
        EventKind::ClientDisconnected => {
            put("reason", json!(event.reason));
            put("disconnected_at", json!(now.wall_ms));
            put("disconn_props", properties());
        }
        EventKind::Authenticated => {
            put("reason_code", json!(event.reason));
            put("is_superuser", json!(false));
            put("is_anonymous", json!(event.username.is_none()));
        }
        EventKind::Authorized => {
            put("peerhost", json!(peer));
            put("topic", json!(event.topic.as_deref()));
            put("action", json!(event.action));
            put("authz_source", json!("acl"));
            put("result", json!(if event.allowed { "allow" } else { "deny" }));
        }
        EventKind::Subscribed | EventKind::Unsubscribed => {
            put("peerhost", json!(peer));
            put("topic", json!(event.topic.as_deref()));
            put("qos", json!(event.qos));
            let name = if kind == EventKind::Subscribed { "sub_props" } else { "unsub_props" };
            put(name, properties());
        }
        EventKind::MessageDropped | EventKind::DeliveryDropped => put("reason", json!(event.reason)),
        EventKind::MessageAcked => put("puback_props", properties()),
        EventKind::MessageDelivered => {}
    }
    columns
}

fn message_columns(kind: EventKind, told: &Told, put: &mut impl FnMut(&str, Value)) {
    put("topic", json!(&*told.topic));
    put("qos", json!(told.qos));
    put("flags", json!({"retain": told.retain, "dup": false}));
    put("pub_props", read(&told.properties, PacketType::Publish));
    put(
        "payload",
        match std::str::from_utf8(&told.payload) {
            Ok(text) => json!(text),
            Err(_) => json!({ "$bytes": hex(&told.payload) }),
        },
    );
    let Some(source) = &told.source else { return };
    put("publish_received_at", json!(source.received_wall_ms));
    put("peerhost", json!(source.host.as_deref()));
    if kind != EventKind::MessageDropped {
        put("from_clientid", json!(&*source.client_id));
        put("from_username", json!(source.username.as_deref()));
    }
}

/// Properties that were kept; nothing of what is damaged.
fn read(encoded: &[u8], packet: PacketType) -> Value {
    properties(Properties::checked(encoded, PropertyScope::Packet(packet)).unwrap_or(Properties::EMPTY))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut out, byte| {
        // Writing to a string cannot fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// MQTT 5 properties by the names of the specification, with hyphens, as EMQX has them.
pub(super) fn properties(all: Properties<'_>) -> Value {
    let mut out = Map::new();
    let mut user = Map::new();
    let mut pairs = Vec::new();
    for property in all.iter() {
        let (name, value) = match property {
            Property::UserProperty(name, value) => {
                user.entry(name).or_insert_with(|| json!(value));
                pairs.push(json!({"key": name, "value": value}));
                continue;
            }
            Property::PayloadFormatIndicator(text) => ("Payload-Format-Indicator", json!(u8::from(text))),
            Property::MessageExpiryInterval(seconds) => ("Message-Expiry-Interval", json!(seconds)),
            Property::ContentType(text) => ("Content-Type", json!(text)),
            Property::ResponseTopic(topic) => ("Response-Topic", json!(topic)),
            Property::CorrelationData(data) => ("Correlation-Data", json!(String::from_utf8_lossy(data))),
            Property::SubscriptionIdentifier(id) => ("Subscription-Identifier", json!(id)),
            Property::SessionExpiryInterval(seconds) => ("Session-Expiry-Interval", json!(seconds)),
            Property::AuthenticationMethod(method) => ("Authentication-Method", json!(method)),
            Property::RequestProblemInformation(wants) => {
                ("Request-Problem-Information", json!(u8::from(wants)))
            }
            Property::RequestResponseInformation(wants) => {
                ("Request-Response-Information", json!(u8::from(wants)))
            }
            Property::WillDelayInterval(seconds) => ("Will-Delay-Interval", json!(seconds)),
            Property::ReceiveMaximum(most) => ("Receive-Maximum", json!(most)),
            Property::TopicAliasMaximum(most) => ("Topic-Alias-Maximum", json!(most)),
            Property::MaximumPacketSize(most) => ("Maximum-Packet-Size", json!(most)),
            Property::ReasonString(text) => ("Reason-String", json!(text)),
            // Of a server, or between a client and its broker.
            _ => continue,
        };
        out.insert(name.to_owned(), value);
    }
    if !pairs.is_empty() {
        out.insert("User-Property".to_owned(), user.into());
        out.insert("User-Property-Pairs".to_owned(), pairs.into());
    }
    out.into()
}
