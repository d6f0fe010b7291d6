//! What the opaque heads and records of the ops hold, and how it is written.
//!
//! A record is one version byte and then postcard's encoding of the structure of that version (postcard's wire
//! format is specified and stable). A structure never changes: a new field is a new version of that record with an upgrade
//! from the old one beside it ([`Record::upgrade`]), and `tests/golden.rs` keeps the bytes of every version that was ever written.

use crate::{Boot, Identity, Origin, Stamp};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A record that cannot be read: the caller moves it aside and says so, it never guesses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Written by a later version of Ferrule.
    #[error("record has version {0}, which this program does not know: it was written by a newer one")]
    Newer(u8),
    /// Damaged.
    #[error("record is damaged: {0}")]
    Damaged(&'static str),
}

/// A structure that is kept in the store.
pub trait Record: Serialize + DeserializeOwned {
    /// The version that is written today.
    const VERSION: u8 = 1;

    /// Reads what an earlier version of this program wrote; none when there was no such version.
    fn upgrade(version: u8, bytes: &[u8]) -> Option<Result<Self, RecordError>> {
        let _ = (version, bytes);
        None
    }

    /// The bytes to keep.
    fn to_bytes(&self) -> Bytes {
        // Serialising plain data into a growing vector cannot fail.
        let bytes = postcard::to_extend(self, vec![Self::VERSION]).unwrap_or_default();
        Bytes::from(bytes)
    }

    /// Reads what [`Record::to_bytes`] wrote.
    ///
    /// # Errors
    /// When the bytes are of a newer version or damaged.
    fn from_bytes(bytes: &[u8]) -> Result<Self, RecordError> {
        match bytes.split_first() {
            None => Err(RecordError::Damaged("it is empty")),
            Some((&version, rest)) if version == Self::VERSION => decode(rest),
            Some((&version, rest)) => {
                Self::upgrade(version, rest).unwrap_or(Err(RecordError::Newer(version)))
            }
        }
    }
}

/// Reads one structure, whole.
fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, RecordError> {
    match postcard::take_from_bytes(bytes) {
        Ok((record, [])) => Ok(record),
        Ok(_) => Err(RecordError::Damaged("bytes are left over")),
        Err(_) => Err(RecordError::Damaged("it does not decode")),
    }
}

/// A row on its way to a destination: the head of an outbox row; its payload is the body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Of the message it was made from (in the cloud), or its own (at the edge, where entering the outbox gives it).
    pub identity: Identity,
    /// 63-bit id of the rule that made it, or the hash of the path of rules behind it.
    pub rule: u64,
    /// Element index, counted across all of the rule's inserts into one table.
    pub row: u32,
    /// Rendered target: a topic, a Kafka topic, a table.
    pub target: Arc<str>,
    /// Order key: rows of one key keep their order. By default the device.
    pub key: Box<str>,
    /// True: the payload is the device's, untouched. False: a JSON object of the rule's columns, or its template.
    pub passthrough: bool,
    /// Quality of service for targets that have one.
    pub qos: u8,
    /// Retain flag for targets that have one.
    pub retain: bool,
    /// Client id of the device.
    pub client_id: Arc<str>,
    /// The device's user name.
    pub username: Option<Arc<str>>,
    /// The topic that the device published to.
    pub topic: Arc<str>,
    /// The gateway it came through; none for direct clients.
    pub edge: Option<Origin>,
    /// When the first Ferrule received it.
    pub received: Stamp,
    /// How many brokers it has passed.
    pub hops: u8,
    /// MQTT 5 properties to forward, as encoded.
    pub properties: Bytes,
    /// The payload. Kept as the row's body, not in the head.
    #[serde(skip)]
    pub payload: Bytes,
}

impl Record for Entry {}

impl Entry {
    /// Milliseconds since it was received, in the process life `boot` at `now`: exact within the life that it was received in; else
    /// at least this, since it was there before this process started, and what two set wall clocks say when that is more.
    #[must_use]
    pub fn age_ms(&self, boot: Boot, now: &Stamp) -> u64 {
        if self.identity.boot == boot {
            return now.mono_us.saturating_sub(self.received.mono_us) / 1_000;
        }
        let at_least = now.mono_us / 1_000;
        if self.received.synced && now.synced {
            at_least.max(u64::try_from(now.wall_ms.saturating_sub(self.received.wall_ms)).unwrap_or(0))
        } else {
            at_least
        }
    }
}

/// A message in a session's queue: the head of a queue row; its payload is the body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// Topic name.
    pub topic: Arc<str>,
    /// The lower of published and granted.
    pub qos: u8,
    /// Retain flag as it is to be sent.
    pub retain: bool,
    /// Milliseconds since 1970 at which the message expires (message expiry interval).
    pub expires_wall_ms: Option<i64>,
    /// Subscription identifiers of the matching subscriptions.
    pub subscription_ids: Vec<u32>,
    /// MQTT 5 properties to forward, as encoded, without expiry.
    pub properties: Bytes,
    /// The payload. Kept as the row's body, not in the head.
    #[serde(skip)]
    pub payload: Bytes,
    /// The shared subscription that it came by, whole.
    pub share: Option<Arc<str>>,
    /// Where it is from, while a process knows and somebody asks: not stored.
    #[serde(skip)]
    pub source: Option<Arc<Source>>,
}

/// Where a message is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Who published it.
    pub client_id: Arc<str>,
    /// Its user name.
    pub username: Option<Arc<str>>,
    /// Its address.
    pub host: Option<Arc<str>>,
    /// When it was received, milliseconds since 1970.
    pub received_wall_ms: i64,
    /// How many brokers and rules it has passed.
    pub hops: u8,
}

impl Record for Delivery {
    const VERSION: u8 = 2;

    fn upgrade(version: u8, bytes: &[u8]) -> Option<Result<Self, RecordError>> {
        /// Before shared subscriptions.
        #[derive(Deserialize)]
        struct V1 {
            topic: Arc<str>,
            qos: u8,
            retain: bool,
            expires_wall_ms: Option<i64>,
            subscription_ids: Vec<u32>,
            properties: Bytes,
        }
        (version == 1).then(|| {
            decode(bytes).map(|v1: V1| Self {
                topic: v1.topic,
                qos: v1.qos,
                retain: v1.retain,
                expires_wall_ms: v1.expires_wall_ms,
                subscription_ids: v1.subscription_ids,
                properties: v1.properties,
                payload: Bytes::new(),
                share: None,
                source: None,
            })
        })
    }
}

/// A session that outlives its connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Client id.
    pub client_id: Box<str>,
    /// User name it last connected with: its messages are its own only.
    pub username: Option<Box<str>>,
    /// Seconds that it lives on after its connection; `u32::MAX` for ever.
    pub expiry_s: u32,
    /// Milliseconds since 1970 at which its connection ended; none while connected or when that is unknown.
    pub ended_wall_ms: Option<i64>,
    /// When its connection ended: the last row of its queue that had been handed out. Later ones were never sent.
    pub handed_to: Option<u64>,
    /// What is published when its connection ends, or has ended and the delay has not.
    pub will: Option<Will>,
}

/// A will.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Will {
    /// Topic name.
    pub topic: Box<str>,
    /// Payload.
    pub payload: Bytes,
    /// Quality of service.
    pub qos: u8,
    /// Retain flag.
    pub retain: bool,
    /// MQTT 5 properties to forward, as encoded, without will delay.
    pub properties: Bytes,
    /// Seconds after the connection.
    pub delay_s: u32,
    /// Milliseconds since 1970 at which it is due; none while connected.
    pub due_wall_ms: Option<i64>,
}

impl Record for Session {
    const VERSION: u8 = 2;

    fn upgrade(version: u8, bytes: &[u8]) -> Option<Result<Self, RecordError>> {
        /// Before wills were kept.
        #[derive(Deserialize)]
        struct V1 {
            client_id: Box<str>,
            username: Option<Box<str>>,
            expiry_s: u32,
            ended_wall_ms: Option<i64>,
        }
        (version == 1).then(|| {
            decode(bytes).map(|v1: V1| Self {
                client_id: v1.client_id,
                username: v1.username,
                expiry_s: v1.expiry_s,
                ended_wall_ms: v1.ended_wall_ms,
                handed_to: None,
                will: None,
            })
        })
    }
}

/// A subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscription {
    /// Granted quality of service.
    pub qos: u8,
    /// Not its own messages.
    pub no_local: bool,
    /// Retain flag as published.
    pub retain_as_published: bool,
    /// 0, 1 or 2.
    pub retain_handling: u8,
    /// Subscription identifier.
    pub id: Option<u32>,
}

impl Record for Subscription {}

/// The state of a packet id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Inflight {
    /// Inbound QoS 2, PUBREC due or sent, PUBREL not seen.
    Received,
    /// Outbound, sent with the queue row of this number.
    Sent(u64),
    /// Outbound QoS 2, PUBREC seen, PUBCOMP not.
    Released,
}

impl Record for Inflight {}

/// A retained message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retained {
    /// As published.
    pub qos: u8,
    /// Milliseconds since 1970 at which it expires.
    pub expires_wall_ms: Option<i64>,
    /// When it was set, milliseconds since 1970.
    pub at_wall_ms: i64,
    /// MQTT 5 properties to forward, as encoded, without expiry.
    pub properties: Bytes,
    /// Payload.
    pub payload: Bytes,
}

impl Record for Retained {}

/// A message whose time has not come: the head of a row of a queue of delayed messages; its payload is the body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delayed {
    /// The topic that it will be published to.
    pub topic: Box<str>,
    /// As published.
    pub qos: u8,
    /// As published.
    pub retain: bool,
    /// MQTT 5 properties to forward, as encoded, with expiry.
    pub properties: Bytes,
    /// Who published: client id, or a rule's name.
    pub client_id: Arc<str>,
    /// User name.
    pub username: Option<Arc<str>>,
    /// IP address, as text.
    pub host: Option<Arc<str>>,
    /// The gateway that it was.
    pub edge: Option<Arc<str>>,
    /// How many brokers and rules it has passed.
    pub hops: u8,
    /// Hash over the (rule, row) steps behind it.
    pub path: u64,
    /// Seconds from its publish on.
    pub delay_s: u32,
    /// Milliseconds since 1970 at which it is due.
    pub due_wall_ms: i64,
    /// The payload. Kept as the row's body, not in the head.
    #[serde(skip)]
    pub payload: Bytes,
}

impl Record for Delayed {}
