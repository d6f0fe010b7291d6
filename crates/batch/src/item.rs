//! One forwarded message, and the properties that it would have alone.

use ferrule_mqtt::{Properties, PropertiesBuf, Property};
use ferrule_store::MessageId;
use std::fmt::Write;

/// A forwarded message: what a row of the edge's outbox says to a Ferrule cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item<'a> {
    /// QoS 1; else 0.
    pub acknowledged: bool,
    /// Retain flag.
    pub retain: bool,
    /// A topic name.
    pub topic: &'a str,
    /// Its identity, beside the edge that sends it.
    pub id: MessageId,
    /// The device's client id.
    pub client_id: &'a str,
    /// The device's user name.
    pub username: Option<&'a str>,
    /// When the edge received it by its wall clock, milliseconds since 1970.
    pub at_ms: i64,
    /// That clock was synchronised.
    pub synced: bool,
    /// Milliseconds since then, by the boot clock.
    pub age_ms: u64,
    /// Brokers that it has passed, the edge included.
    pub hops: u8,
    /// It was sent from a backlog ahead of which live data went.
    pub late: bool,
    /// What the device itself had set, without `ferrule-*`.
    pub properties: Properties<'a>,
    /// Payload.
    pub payload: &'a [u8],
}

impl Item<'_> {
    /// Appends the user properties that carry the identity of a message that is sent alone. `text` is a buffer to write in.
    pub fn say(&self, text: &mut String, into: &mut PropertiesBuf) {
        fn put(into: &mut PropertiesBuf, name: &str, value: &str) {
            // Client id and user name came in as MQTT strings: none is too long to go out as one.
            let _ = into.push(Property::UserProperty(name, value));
        }
        let mut say = |into: &mut PropertiesBuf, name: &str, value: std::fmt::Arguments<'_>| {
            text.clear();
            // Writing to a String cannot fail.
            let _ = text.write_fmt(value);
            put(into, name, text);
        };
        say(into, "ferrule-id", format_args!("{}", self.id));
        put(into, "ferrule-client", self.client_id);
        if let Some(username) = self.username {
            put(into, "ferrule-user", username);
        }
        let unsure = if self.synced { "" } else { "?" };
        say(into, "ferrule-at", format_args!("{}{unsure}", self.at_ms));
        say(into, "ferrule-age", format_args!("{}", self.age_ms));
        say(into, "ferrule-hops", format_args!("{}", self.hops));
        if self.late {
            put(into, "ferrule-late", "1");
        }
    }
}
