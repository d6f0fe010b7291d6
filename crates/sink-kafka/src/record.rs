//! A row as a Kafka record: topic, key and headers.
//!
//! The record's timestamp is left to be that of sending: with a device's time a backlog older than the topic's retention
//! would be deleted as soon as it arrives. When it was received is in `ferrule-at`.

use ferrule_store::record::Entry;
use rdkafka::message::{Header, OwnedHeaders};

/// Longest topic name, in characters of [`check_topic`].
const TOPIC_MAX: usize = 249;

/// Whether Kafka takes such a topic name (its `Topic.validate`).
///
/// # Errors
/// Why not.
pub(crate) fn check_topic(topic: &str) -> Result<(), String> {
    match topic {
        "" => Err("the topic is empty".into()),
        "." | ".." => Err("Kafka takes no such name".into()),
        _ if topic.len() > TOPIC_MAX => {
            Err(format!("the name has {} characters, {TOPIC_MAX} are possible", topic.len()))
        }
        _ => match topic.chars().find(|c| !(c.is_ascii_alphanumeric() || "._-".contains(*c))) {
            Some(bad) => Err(format!("{bad:?} cannot stand in a topic's name")),
            None => Ok(()),
        },
    }
}

/// The headers that say where a record comes from; origin, id, rule and row together identify it.
pub(crate) fn headers(entry: &Entry) -> OwnedHeaders {
    let at_mark = if entry.received.synced { "" } else { "?" };
    let text = [
        ("ferrule-id", entry.identity.id().to_string()),
        ("ferrule-rule", entry.rule.to_string()),
        ("ferrule-row", entry.row.to_string()),
        ("ferrule-at", format!("{}{at_mark}", entry.received.wall_ms)),
        ("ferrule-hops", entry.hops.to_string()),
    ];
    let mut headers = OwnedHeaders::new_with_capacity(8);
    headers = with(headers, "ferrule-origin", &entry.identity.origin);
    for (name, value) in &text {
        headers = with(headers, name, value);
    }
    headers = with(headers, "ferrule-client", &entry.client_id);
    match &entry.username {
        Some(user) => with(headers, "ferrule-user", user),
        None => headers,
    }
}

fn with(headers: OwnedHeaders, key: &str, value: &str) -> OwnedHeaders {
    headers.insert(Header { key, value: Some(value) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use rdkafka::message::Headers;

    #[test]
    fn names_that_kafka_takes() {
        for (topic, good) in [
            ("a.B_c-1", true),
            ("", false),
            (".", false),
            ("..", false),
            ("...", true),
            ("a b", false),
            ("ä", false),
            (&"x".repeat(249), true),
            (&"x".repeat(250), false),
            ("a\0", false),
        ] {
            assert_eq!(check_topic(topic).is_ok(), good, "{topic}");
        }
    }

    #[test]
    fn headers_identify_a_record() {
        let mut entry = ferrule_sinks::harness::entry(3, "t", "");
        entry.username = Some("u".into());
        entry.received.synced = false;
        let headers = headers(&entry);
        let text = |h: Header<'_, &[u8]>| format!("{}={}", h.key, String::from_utf8_lossy(h.value.unwrap()));
        assert_eq!(
            headers.iter().map(text).collect::<Vec<_>>(),
            [
                "ferrule-origin=edge-1",
                "ferrule-id=7.0.3",
                "ferrule-rule=11",
                "ferrule-row=0",
                "ferrule-at=1764022070123?",
                "ferrule-hops=1",
                "ferrule-client=dev",
                "ferrule-user=u",
            ]
        );
    }
}
