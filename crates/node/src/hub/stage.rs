//! A message on its way to the shard that runs a rule on it: what a rule remembers is in one place, so all its messages go there.
//!
//! The stage boundary is a record, so that the other shard may be in another process. What goes with it is all that
//! rules see of a message, and the end that its publisher waits for.

use super::source::{Name, Source};
use bytes::Bytes;
use ferrule_broker::{Message, Publisher, Role};
use ferrule_mqtt::{PacketType, Properties, PropertyScope, QoS};
use ferrule_store::record::Record;
use ferrule_store::{Identity, Now, Origin, Stamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::sync::Arc;

/// The first byte of a parcel that is a stage, and none of a row for an outbox.
pub(super) const MARK: u8 = 0x80;

/// A message for one rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Stage {
    /// The rule's id.
    pub(super) rule: u64,
    topic: Box<str>,
    payload: Bytes,
    qos: u8,
    retain: bool,
    dup: bool,
    properties: Bytes,
    publisher: Arc<str>,
    user: Option<Arc<str>>,
    host: Option<Arc<str>>,
    published: Stamp,
    passed: u8,
    path: u64,
    hold: bool,
    identity: Identity,
    own_identity: bool,
    client_id: Arc<str>,
    username: Option<Arc<str>>,
    edge: Option<Origin>,
    received: Stamp,
    hops: u8,
    /// Its name, and its columns as JSON.
    event: Option<(Box<str>, Box<str>)>,
}

impl Record for Stage {}

impl Stage {
    pub(super) fn new(
        rule: u64,
        message: &Message<'_>,
        source: &Source<'_>,
        event: Option<(&str, &Map<String, Value>)>,
    ) -> Self {
        let publisher = message.publisher;
        Self {
            rule,
            topic: message.topic.into(),
            payload: Bytes::copy_from_slice(message.payload),
            qos: message.qos.into(),
            retain: message.retain,
            dup: message.dup,
            properties: Bytes::copy_from_slice(message.properties.as_bytes()),
            publisher: Arc::clone(&publisher.client_id),
            user: publisher.username.clone(),
            host: publisher.host.clone(),
            published: message.received,
            passed: message.hops,
            path: message.path,
            hold: message.hold,
            identity: source.identity(),
            own_identity: source.own_identity,
            client_id: source.client_id.to_arc(),
            username: source.username.map(Name::to_arc),
            edge: source.edge.cloned(),
            received: source.received,
            hops: source.hops,
            event: event.map(|(name, columns)| {
                let columns = serde_json::to_string(columns).unwrap_or_default();
                (name.into(), columns.into())
            }),
        }
    }

    /// As a parcel.
    pub(super) fn parcel(&self) -> Vec<u8> {
        let record = self.to_bytes();
        let mut parcel = Vec::with_capacity(1 + record.len());
        parcel.push(MARK);
        parcel.extend_from_slice(&record);
        parcel
    }

    /// Reads a parcel that begins with [`MARK`].
    pub(super) fn unpack(parcel: &[u8]) -> Option<Self> {
        Self::from_bytes(parcel.strip_prefix(&[MARK])?).ok()
    }

    pub(super) fn publisher(&self) -> Publisher {
        Publisher {
            client_id: Arc::clone(&self.publisher),
            username: self.user.clone(),
            host: self.host.clone(),
            role: Role::Device,
        }
    }

    pub(super) fn source(&self) -> Source<'_> {
        Source {
            origin: &self.identity.origin,
            id: self.identity.id(),
            own_identity: self.own_identity,
            client_id: Name::Kept(&self.client_id),
            username: self.username.as_ref().map(Name::Kept),
            edge: self.edge.as_ref(),
            received: self.received,
            hops: self.hops,
        }
    }

    pub(super) fn columns(&self) -> Option<(&str, Map<String, Value>)> {
        let (name, columns) = self.event.as_ref()?;
        Some((name, serde_json::from_str(columns).unwrap_or_default()))
    }

    pub(super) fn message<'a>(&'a self, publisher: &'a Publisher, now: Now) -> Message<'a> {
        let publishes = PropertyScope::Packet(PacketType::Publish);
        Message {
            topic: &self.topic,
            payload: &self.payload,
            qos: QoS::try_from(self.qos).unwrap_or_default(),
            retain: self.retain,
            dup: self.dup,
            properties: Properties::checked(&self.properties, publishes).unwrap_or(Properties::EMPTY),
            publisher,
            received: Stamp { mono_us: now.mono_us, ..self.published },
            hops: self.passed,
            path: self.path,
            attachment: None,
            hold: self.hold,
        }
    }
}
