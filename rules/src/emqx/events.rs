//! The events that EMQX's rules name in FROM: `$events/client/connected`, and as they were called before, `$events/client_connected`.

use serde_json::{Map, Value, json};

/// Topic, the topic's older spelling, and the event's name in the column `event`.
const EVENTS: [(&str, &str, &str); 17] = [
    ("$events/message/delivered", "$events/message_delivered", "message.delivered"),
    ("$events/message/acked", "$events/message_acked", "message.acked"),
    ("$events/message/dropped", "$events/message_dropped", "message.dropped"),
    ("$events/message/delivery_dropped", "$events/delivery_dropped", "delivery.dropped"),
    ("$events/client/connected", "$events/client_connected", "client.connected"),
    ("$events/client/disconnected", "$events/client_disconnected", "client.disconnected"),
    ("$events/client/connack", "$events/client_connack", "client.connack"),
    ("$events/client/ping", "$events/client_ping", "client.ping"),
    (
        "$events/auth/check_authz_complete",
        "$events/client_check_authz_complete",
        "client.check_authz_complete",
    ),
    (
        "$events/auth/check_authn_complete",
        "$events/client_check_authn_complete",
        "client.check_authn_complete",
    ),
    ("$events/session/subscribed", "$events/session_subscribed", "session.subscribed"),
    ("$events/session/unsubscribed", "$events/session_unsubscribed", "session.unsubscribed"),
    ("$events/sys/alarm_activated", "$events/alarm_activated", "alarm.activated"),
    ("$events/sys/alarm_deactivated", "$events/alarm_deactivated", "alarm.deactivated"),
    ("$events/schema_validation/failed", "$events/schema_validation_failed", "schema.validation_failed"),
    (
        "$events/message_transformation/failed",
        "$events/message_transformation_failed",
        "message.transformation_failed",
    ),
    ("$events/message/publish", "$events/message_publish", "message.publish"),
];

/// Whether a source in FROM is this event.
pub(crate) fn filter_matches(filter: &str, event: &str) -> bool {
    let Some((topic, older, _)) = EVENTS.iter().find(|(.., name)| *name == event) else { return false };
    filter.starts_with("$events/") && (crate::check::filter_matches(filter, topic) || filter == *older)
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
