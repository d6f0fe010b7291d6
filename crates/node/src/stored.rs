//! What is in a store, as JSON: for the control socket, `store dump` and `store check`.
//!
//! An item is an object whose `is` says what it is. Payloads are text where they are UTF-8, else `payload_hex`. What cannot be read has
//! `fault`, which says why.

use ferrule_store::record::{
    Delayed, Delivery, Entry, Inflight, Record, RecordError, Retained, Session, Subscription,
};
use ferrule_store::{QueueId, Side};
use ferrule_store_sqlite::{Cursor, Item, Page};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fmt;

/// A page as the control socket sends it: `{"items": [...], "next": cursor or null}`.
#[must_use]
pub fn page(page: &Page) -> Value {
    let next = page.next.as_ref().map(|c| json!([c.table, c.key.0, c.key.1, c.key.2]));
    json!({ "items": page.items.iter().map(item).collect::<Vec<_>>(), "next": next })
}

/// A cursor that [`page`] made; none: from the start.
///
/// # Errors
/// When it is none.
pub fn cursor(value: &Value) -> Result<Option<Cursor>, String> {
    if value.is_null() {
        return Ok(None);
    }
    let read = || {
        let [table, first, text, last] = value.as_array()?.as_slice() else { return None };
        let key = (first.as_i64()?, text.as_str()?.to_owned(), last.as_i64()?);
        Some(Cursor { table: u8::try_from(table.as_u64()?).ok()?, key })
    };
    read().map(Some).ok_or_else(|| "`after` is not the `next` of a page".to_owned())
}

fn item(item: &Item) -> Value {
    match item {
        Item::Meta { key, value } => object("meta", [("key", json!(key)), bytes("value", value)]),
        Item::Session { session, record } => {
            let id = ("session", json!(session.0));
            told("session", [id], Session::from_bytes(record).map(|s| session_fields(&s)))
        }
        Item::Subscription { session, filter, record } => {
            let whose = [("session", json!(session.0)), ("filter", json!(filter))];
            let fields = Subscription::from_bytes(record).map(|s| {
                vec![
                    ("qos", json!(s.qos)),
                    ("no_local", json!(s.no_local)),
                    ("retain_as_published", json!(s.retain_as_published)),
                    ("retain_handling", json!(s.retain_handling)),
                    ("id", json!(s.id)),
                ]
            });
            told("subscription", whose, fields)
        }
        Item::Inflight { session, side, packet_id, record } => {
            let from = match side {
                Side::Inbound => "client",
                Side::Outbound => "server",
            };
            let whose =
                [("session", json!(session.0)), ("from", json!(from)), ("packet_id", json!(packet_id))];
            let fields = Inflight::from_bytes(record).map(|state| match state {
                Inflight::Received => vec![("state", json!("received"))],
                Inflight::Sent(seq) => vec![("state", json!("sent")), ("seq", json!(seq))],
                Inflight::Released => vec![("state", json!("released"))],
            });
            told("inflight", whose, fields)
        }
        Item::Retained { topic, record } => {
            let fields = Retained::from_bytes(record).map(|r| {
                vec![
                    ("qos", json!(r.qos)),
                    ("at_ms", json!(r.at_wall_ms)),
                    ("expires_ms", json!(r.expires_wall_ms)),
                    bytes("payload", &r.payload),
                ]
            });
            told("retained", [("topic", json!(topic))], fields)
        }
        Item::Row { queue, seq, head, body } => row(*queue, *seq, head, body.as_deref()),
        Item::State { rule, key, value } => {
            object("state", [("rule", json!(rule)), bytes("key", key), bytes("value", value)])
        }
    }
}

fn session_fields(session: &Session) -> Vec<(&'static str, Value)> {
    let will = session.will.as_ref().map(|will| json!({ "topic": will.topic, "due_ms": will.due_wall_ms }));
    vec![
        ("client_id", json!(session.client_id)),
        ("username", json!(session.username)),
        ("expiry_s", json!(session.expiry_s)),
        ("ended_ms", json!(session.ended_wall_ms)),
        ("will", json!(will)),
    ]
}

/// A row, by whose it is.
fn row(queue: QueueId, seq: u64, head: &[u8], body: Option<&[u8]>) -> Value {
    let payload = bytes("payload", body.unwrap_or_default());
    let (whose, fields) = if let Some(session) = queue.as_session() {
        let fields = Delivery::from_bytes(head).map(|d| {
            vec![
                ("topic", json!(d.topic)),
                ("qos", json!(d.qos)),
                ("retain", json!(d.retain)),
                ("expires_ms", json!(d.expires_wall_ms)),
            ]
        });
        (("session", json!(session.0)), fields)
    } else if let Some(shard) = queue.as_delayed() {
        let fields = Delayed::from_bytes(head).map(|d| {
            vec![
                ("topic", json!(d.topic)),
                ("qos", json!(d.qos)),
                ("retain", json!(d.retain)),
                ("client_id", json!(d.client_id)),
                ("due_ms", json!(d.due_wall_ms)),
            ]
        });
        (("delayed", json!(shard)), fields)
    } else {
        let fields = Entry::from_bytes(head).map(|e| {
            vec![
                ("target", json!(e.target)),
                ("topic", json!(e.topic)),
                ("client_id", json!(e.client_id)),
                ("qos", json!(e.qos)),
                ("received_ms", json!(e.received.wall_ms)),
            ]
        });
        // By the hash of its name: which it is, the rules say.
        (("outbox", json!(format!("{:016x}", queue.0))), fields)
    };
    let fields = fields.and_then(|mut fields| match body {
        None => Err(RecordError::Damaged("its body is not there")),
        Some(_) => {
            fields.push(payload);
            Ok(fields)
        }
    });
    told("row", [whose, ("seq", json!(seq))], fields)
}

fn object(is: &str, fields: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    let named = fields.into_iter().map(|(name, value)| (name.to_owned(), value));
    Value::Object([("is".to_owned(), json!(is))].into_iter().chain(named).collect::<Map<_, _>>())
}

fn told<const N: usize>(
    is: &str,
    whose: [(&'static str, Value); N],
    fields: Result<Vec<(&'static str, Value)>, RecordError>,
) -> Value {
    let fields = fields.unwrap_or_else(|e| vec![("fault", json!(e.to_string()))]);
    object(is, whose.into_iter().chain(fields))
}

/// As text, or in hexadecimal under a name that says so.
fn bytes(name: &'static str, bytes: &[u8]) -> (&'static str, Value) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return (name, json!(text));
    }
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let name = match name {
        "payload" => "payload_hex",
        "key" => "key_hex",
        _ => "value_hex",
    };
    (name, json!(hex))
}

/// What cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault(pub String);

/// Counts of items, by what they are.
#[derive(Debug, Default)]
pub struct Told {
    counts: BTreeMap<String, u64>,
    rows: BTreeMap<&'static str, u64>,
}

impl Told {
    /// Counts an item of a page.
    ///
    /// # Errors
    /// When the store could not read it.
    pub fn count(&mut self, item: &Value) -> Result<(), Fault> {
        let is = item.get("is").and_then(Value::as_str).unwrap_or("of an unknown kind");
        *self.counts.entry(is.to_owned()).or_default() += 1;
        if is == "row" {
            let whose = ["session", "delayed", "outbox"].into_iter().find(|whose| item.get(whose).is_some());
            *self.rows.entry(whose.unwrap_or("nobody")).or_default() += 1;
        }
        match item.get("fault").and_then(Value::as_str) {
            None => Ok(()),
            Some(fault) => Err(Fault(format!("a {is}: {fault}"))),
        }
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |is: &str| self.counts.get(is).copied().unwrap_or(0);
        let rows = |whose| self.rows.get(whose).copied().unwrap_or(0);
        for (name, count) in [
            ("sessions", count("session")),
            ("subscriptions", count("subscription")),
            ("packet ids in flight", count("inflight")),
            ("retained messages", count("retained")),
            ("messages waiting for sessions", rows("session")),
            ("delayed messages", rows("delayed")),
            ("rows in outboxes", rows("outbox")),
            ("rules' states", count("state")),
            ("settings", count("meta")),
        ] {
            writeln!(f, "{count:>10} {name}")?;
        }
        Ok(())
    }
}
