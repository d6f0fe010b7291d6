//! What happens in the broker, as FROM names it: `$events/client/connected`, and as EMQX called it before, `$events/client_connected`.
//!
//! The broker tells of an event as a message without topic: its columns are in [`crate::Message::columns`], and the payload of an event that
//! is about a message is the message's.

use serde_json::{Map, Value, json};

use crate::Message;

/// An event.
struct Event {
    /// The topic that FROM names it by.
    topic: &'static str,
    /// The topic's older spelling.
    older: &'static str,
    /// What the column `event` says.
    name: &'static str,
    /// Whether Ferrule's broker raises it. The others are EMQX's: a rule on them loads, and waits.
    raised: bool,
}

const fn event(topic: &'static str, older: &'static str, name: &'static str, raised: bool) -> Event {
    Event { topic, older, name, raised }
}

/// All of them.
const EVENTS: [Event; 17] = [
    event("$events/message/delivered", "$events/message_delivered", "message.delivered", true),
    event("$events/message/acked", "$events/message_acked", "message.acked", true),
    event("$events/message/dropped", "$events/message_dropped", "message.dropped", true),
    event("$events/message/delivery_dropped", "$events/delivery_dropped", "delivery.dropped", true),
    event("$events/client/connected", "$events/client_connected", "client.connected", true),
    event("$events/client/disconnected", "$events/client_disconnected", "client.disconnected", true),
    event("$events/client/connack", "$events/client_connack", "client.connack", true),
    event("$events/client/ping", "$events/client_ping", "client.ping", true),
    event(
        "$events/auth/check_authz_complete",
        "$events/client_check_authz_complete",
        "client.check_authz_complete",
        true,
    ),
    event(
        "$events/auth/check_authn_complete",
        "$events/client_check_authn_complete",
        "client.check_authn_complete",
        true,
    ),
    event("$events/session/subscribed", "$events/session_subscribed", "session.subscribed", true),
    event("$events/session/unsubscribed", "$events/session_unsubscribed", "session.unsubscribed", true),
    event("$events/sys/alarm_activated", "$events/alarm_activated", "alarm.activated", false),
    event("$events/sys/alarm_deactivated", "$events/alarm_deactivated", "alarm.deactivated", false),
    event(
        "$events/schema_validation/failed",
        "$events/schema_validation_failed",
        "schema.validation_failed",
        false,
    ),
    event(
        "$events/message_transformation/failed",
        "$events/message_transformation_failed",
        "message.transformation_failed",
        false,
    ),
    event("$events/message/publish", "$events/message_publish", "message.publish", false),
];

/// Where FROM takes events from.
pub(crate) const PREFIX: &str = "$events/";

/// Whether a source in FROM is this event.
pub(crate) fn filter_matches(filter: &str, event: &str) -> bool {
    EVENTS.iter().any(|e| e.name == event && is_event(filter, e))
}

fn is_event(filter: &str, event: &Event) -> bool {
    filter.starts_with(PREFIX) && (crate::check::filter_matches(filter, event.topic) || filter == event.older)
}

/// The events of a source in FROM that the broker raises, by name.
pub(crate) fn raised(filter: &str) -> impl Iterator<Item = &'static str> {
    EVENTS.iter().filter(move |e| e.raised && is_event(filter, e)).map(|e| e.name)
}

/// Whether a source in FROM is an event at all.
pub(crate) fn is_known(filter: &str) -> bool {
    EVENTS.iter().any(|e| is_event(filter, e))
}

/// The name of an event that a topic is, in either spelling.
pub(crate) fn named(topic: &str) -> Option<&'static str> {
    EVENTS.iter().find(|e| e.topic == topic || e.older == topic).map(|e| e.name)
}

/// What FROM may name, for errors.
pub(crate) fn topics() -> impl Iterator<Item = &'static str> + Clone {
    EVENTS.iter().flat_map(|e| [e.topic, e.older])
}

/// Columns that events have and messages have not.
pub(crate) const COLUMNS: [&str; 31] = [
    "action",
    "activated_at",
    "authz_source",
    "clean_start",
    "conn_props",
    "connected_at",
    "deactivated_at",
    "details",
    "disconn_props",
    "disconnected_at",
    "expiry_interval",
    "from_clientid",
    "from_username",
    "is_anonymous",
    "is_bridge",
    "is_superuser",
    "keepalive",
    "message",
    "mountpoint",
    "name",
    "proto_name",
    "proto_ver",
    "puback_props",
    "reason",
    "reason_code",
    "result",
    "sockname",
    "sub_props",
    "transformation",
    "unsub_props",
    "validation",
];

/// What `*` is of an event: what every one has, then its own columns.
pub(crate) fn all_columns(event: &Message<'_>) -> Map<String, Value> {
    let general = [
        ("event", json!(event.event)),
        ("timestamp", json!(event.timestamp_ms)),
        ("node", json!(event.node)),
    ];
    let mut columns: Map<String, Value> =
        general.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    columns.extend(event.columns.into_iter().flatten().map(|(name, value)| (name.clone(), value.clone())));
    columns
}

/// A column of an event as a sample has it (`rules eval`), by its name: each means the same in every event that has it.
pub(crate) fn samples(event: &str, wall_ms: i64) -> Map<String, Value> {
    let about_messages =
        ["id", "payload", "peerhost", "topic", "qos", "flags", "pub_props", "publish_received_at"];
    let about_connections = ["sockname", "proto_name", "proto_ver", "connected_at"];
    let more: &[&str] = match event {
        "message.delivered" => &["from_clientid", "from_username"],
        "message.acked" => &["from_clientid", "from_username", "puback_props"],
        "message.dropped" => &["reason"],
        "delivery.dropped" => &["reason", "from_clientid", "from_username"],
        "client.connected" | "client.ping" => &["keepalive", "clean_start", "expiry_interval", "conn_props"],
        "client.disconnected" => &["reason", "disconnected_at", "disconn_props"],
        "client.connack" => &["reason_code", "keepalive", "clean_start", "expiry_interval", "conn_props"],
        "client.check_authz_complete" => &["peerhost", "topic", "action", "authz_source", "result"],
        "client.check_authn_complete" => &["reason_code", "is_superuser", "is_anonymous"],
        "session.subscribed" => &["peerhost", "topic", "qos", "sub_props"],
        "session.unsubscribed" => &["peerhost", "topic", "qos", "unsub_props"],
        "alarm.activated" => &["name", "details", "message", "activated_at"],
        "alarm.deactivated" => &["name", "details", "message", "activated_at", "deactivated_at"],
        "schema.validation_failed" => &["validation"],
        "message.transformation_failed" => &["transformation"],
        _ => &[],
    };
    let is_alarm = event.starts_with("alarm.");
    let is_message =
        event.starts_with("message.") || matches!(event, "delivery.dropped" | "schema.validation_failed");
    let is_connection =
        matches!(event, "client.connected" | "client.disconnected" | "client.connack" | "client.ping");
    let mut names: Vec<&str> = more.to_vec();
    if !is_alarm {
        names.extend(["clientid", "username", "peername"]);
    }
    if is_message {
        names.extend(about_messages);
    }
    if is_connection {
        names.extend(about_connections);
    }
    names.into_iter().map(|name| (name.to_owned(), sample(name, wall_ms))).collect()
}

fn sample(column: &str, wall_ms: i64) -> Value {
    match column {
        "clientid" => json!("c_ferrule"),
        "username" => json!("u_ferrule"),
        "from_clientid" => json!("c_ferrule_1"),
        "from_username" => json!("u_ferrule_1"),
        "peerhost" => json!("127.0.0.1"),
        "peername" => json!("127.0.0.1:56431"),
        "sockname" => json!("0.0.0.0:1883"),
        "topic" => json!("t/a"),
        "payload" => json!("{}"),
        "qos" => json!(1),
        "id" => json!("0"),
        "reason" => json!("normal"),
        "reason_code" => json!("success"),
        "action" => json!("publish"),
        "authz_source" => json!("file"),
        "result" => json!("allow"),
        "proto_name" => json!("MQTT"),
        "proto_ver" => json!(5),
        "keepalive" => json!(60),
        "expiry_interval" => json!(0),
        "clean_start" | "is_superuser" => json!(true),
        "is_anonymous" => json!(false),
        "name" | "message" | "validation" | "transformation" => json!("sample"),
        "connected_at" | "disconnected_at" | "activated_at" | "deactivated_at" | "publish_received_at" => {
            json!(wall_ms)
        }
        _ => json!({}),
    }
}
