//! Where a message comes from, and what a row keeps of it.

use bytes::Bytes;
use ferrule_broker::{Message, Role};
use ferrule_mqtt::{Properties, PropertiesBuf, Property, PropertyId};
use ferrule_rules::{PublishProperty, UserProperties};
use ferrule_store::{Identity, MessageId, Origin, Stamp};
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// A name, borrowed: most messages match no rule, or no rule that keeps it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Name<'a> {
    /// Somebody keeps it.
    Kept(&'a Arc<str>),
    /// It is in the message alone.
    Said(&'a str),
}

impl Name<'_> {
    pub(super) fn to_arc(self) -> Arc<str> {
        match self {
            Self::Kept(name) => Arc::clone(name),
            Self::Said(name) => name.into(),
        }
    }
}

impl Deref for Name<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Kept(name) => name,
            Self::Said(name) => name,
        }
    }
}

/// Where a message comes from, gateway and all.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    /// Who gave it its identity.
    pub(super) origin: &'a Origin,
    /// The rest of its identity.
    pub(super) id: MessageId,
    /// The identity was given here.
    pub(super) own_identity: bool,
    pub(super) client_id: Name<'a>,
    pub(super) username: Option<Name<'a>>,
    pub(super) edge: Option<&'a Origin>,
    pub(super) received: Stamp,
    pub(super) hops: u8,
}

/// The same, kept: what a rule publishes has it as its attachment.
pub(super) struct KeptSource {
    identity: Identity,
    own_identity: bool,
    client_id: Arc<str>,
    username: Option<Arc<str>>,
    edge: Option<Origin>,
    received: Stamp,
    hops: u8,
}

impl<'a> Source<'a> {
    /// Reads a gateway's properties (docs/contracts.md, 3); only a gateway's are believed. `origin` and `id`: for a message that has no identity.
    pub(super) fn of(message: &Message<'a>, origin: &'a Origin, id: MessageId) -> Self {
        if let Some(kept) = message.attachment.and_then(|a| a.downcast_ref::<KeptSource>()) {
            return Self {
                origin: &kept.identity.origin,
                id: kept.identity.id(),
                own_identity: kept.own_identity,
                client_id: Name::Kept(&kept.client_id),
                username: kept.username.as_ref().map(Name::Kept),
                edge: kept.edge.as_ref(),
                received: kept.received,
                hops: kept.hops.saturating_add(1),
            };
        }
        let publisher = message.publisher;
        let mut source = Self {
            origin,
            id,
            own_identity: true,
            client_id: Name::Kept(&publisher.client_id),
            username: publisher.username.as_ref().map(Name::Kept),
            edge: None,
            received: message.received,
            hops: message.hops,
        };
        let Role::Edge(edge) = &publisher.role else { return source };
        source.edge = Some(edge);
        for (name, value) in message.properties.user_properties() {
            match name {
                "ferrule-id" => {
                    if let Ok(id) = value.parse() {
                        (source.origin, source.id) = (edge, id);
                        source.own_identity = false;
                    }
                }
                "ferrule-client" => source.client_id = Name::Said(value),
                "ferrule-user" => source.username = Some(Name::Said(value)),
                "ferrule-at" => {
                    if let Ok(ms) = value.trim_end_matches('?').parse() {
                        source.received.wall_ms = ms;
                        source.received.synced = !value.ends_with('?');
                    }
                }
                "ferrule-hops" => source.hops = source.hops.saturating_add(value.parse().unwrap_or(0)),
                _ => {}
            }
        }
        source
    }

    pub(super) fn identity(&self) -> Identity {
        let MessageId { boot, class, seq } = self.id;
        Identity { origin: Arc::clone(self.origin), boot, class, seq }
    }

    pub(super) fn keep(&self) -> KeptSource {
        KeptSource {
            identity: self.identity(),
            own_identity: self.own_identity,
            client_id: self.client_id.to_arc(),
            username: self.username.map(Name::to_arc),
            edge: self.edge.cloned(),
            received: self.received,
            hops: self.hops,
        }
    }
}

/// As [`Identity`] shows itself: the column `message_id`.
impl fmt::Display for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.origin, self.id)
    }
}

/// What a row keeps of a message's properties: all but what is between a client and its broker, and what only
/// gateways may say.
pub(super) fn forwardable(properties: Properties<'_>) -> Bytes {
    if properties.is_empty() {
        return Bytes::new();
    }
    let mut kept = PropertiesBuf::new();
    kept.extend(properties, |id| !matches!(id, PropertyId::TopicAlias | PropertyId::UserProperty));
    for (name, value) in properties.user_properties().filter(|(name, _)| !name.starts_with("ferrule-")) {
        // It was a property before: it encodes.
        let _ = kept.push(Property::UserProperty(name, value));
    }
    Bytes::copy_from_slice(kept.as_properties().as_bytes())
}

/// The properties that a rule's INSERT asks for.
pub(super) fn asked_properties(asked: &[PublishProperty]) -> PropertiesBuf {
    let mut out = PropertiesBuf::new();
    for property in asked {
        let property = match property {
            PublishProperty::PayloadFormat(utf8) => Property::PayloadFormatIndicator(*utf8),
            PublishProperty::MessageExpiry(seconds) => Property::MessageExpiryInterval(*seconds),
            PublishProperty::ContentType(text) => Property::ContentType(text),
            PublishProperty::ResponseTopic(topic) => Property::ResponseTopic(topic),
            PublishProperty::CorrelationData(data) => Property::CorrelationData(data.as_bytes()),
            PublishProperty::User(name, value) => Property::UserProperty(name, value),
        };
        // What a device wrote may hold what MQTT forbids in text (NUL): that property is left out.
        let _ = out.push(property);
    }
    out
}

/// The same, of a publish in this broker. What came from a gateway may go down to one again, which has to know of the way that it
/// has made: or it would go up and down for ever.
pub(super) fn local_properties(asked: &[PublishProperty], source: &Source) -> PropertiesBuf {
    let mut out = asked_properties(asked);
    if source.edge.is_some() {
        let hops = source.hops.saturating_add(1).to_string();
        // A short string: it encodes.
        let _ = out.push(Property::UserProperty("ferrule-hops", &hops));
    }
    out
}

/// User properties for rules.
pub(super) struct Pairs<'a>(pub(super) Properties<'a>);

impl UserProperties for Pairs<'_> {
    fn pair(&self, index: usize) -> Option<(&str, &str)> {
        self.0.user_properties().nth(index)
    }

    fn all(&self) -> Option<String> {
        Some(super::events::properties(self.0).to_string())
    }
}
