//! A published message as rules see it.

use std::fmt::Display;

use serde_json::{Map, Value};

/// One message. All fields are borrowed: making one costs nothing.
#[derive(Clone, Copy, Default)]
pub struct Message<'a> {
    /// The topic it was published to.
    pub topic: &'a str,
    /// The payload, exactly as it came.
    pub payload: &'a [u8],
    /// QoS of the publish: 0, 1 or 2.
    pub qos: u8,
    /// The retain flag of the publish.
    pub retain: bool,
    /// The DUP flag of the publish.
    pub dup: bool,
    /// The device: its client id (of a forwarded message the device's, not the gateway's).
    pub clientid: &'a str,
    /// Its user name.
    pub username: Option<&'a str>,
    /// Its IP address.
    pub peerhost: Option<&'a str>,
    /// The gateway that forwarded it; `None` for direct clients.
    pub edge: Option<&'a str>,
    /// What the columns `id` and `message_id` show (`origin.boot.class.seq`).
    pub message_id: Option<&'a dyn Display>,
    /// When it was received, ms since 1970.
    pub timestamp_ms: i64,
    /// MQTT 5 user properties, in order.
    pub user_properties: Option<&'a dyn UserProperties>,
    /// The node that the rule runs on.
    pub node: Option<&'a str>,
    /// The broker event that this is, by EMQX's name (`client.connected`); its columns are in `columns`. `None`: a published message.
    pub event: Option<&'a str>,
    /// Columns that stand in for those above: cases of `rules eval` and tests.
    pub columns: Option<&'a Map<String, Value>>,
}

/// User properties, wherever they are kept.
pub trait UserProperties {
    /// The `index`th pair, `None` past the last.
    fn pair(&self, index: usize) -> Option<(&str, &str)>;

    /// All properties of the PUBLISH as a JSON object by the specification's names with hyphens, user properties under
    /// `User-Property` and `User-Property-Pairs`, where more than user properties is known.
    fn all(&self) -> Option<String> {
        None
    }

    /// The value of the first property of this name.
    fn value(&self, name: &str) -> Option<&str> {
        (0..).map_while(|i| self.pair(i)).find(|&(key, _)| key == name).map(|(_, value)| value)
    }
}

impl<K: AsRef<str>, V: AsRef<str>> UserProperties for Vec<(K, V)> {
    fn pair(&self, index: usize) -> Option<(&str, &str)> {
        self.get(index).map(|(key, value)| (key.as_ref(), value.as_ref()))
    }
}

impl UserProperties for &[(&str, &str)] {
    fn pair(&self, index: usize) -> Option<(&str, &str)> {
        self.get(index).copied()
    }
}
