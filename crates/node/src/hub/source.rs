//! Where a message comes from, and what a row keeps of it.

use bytes::Bytes;
use ferrule_broker::{Message, Role};
use ferrule_mqtt::{Properties, PropertiesBuf, Property, PropertyId};
use ferrule_rules::{PublishProperty, UserProperties};
use ferrule_store::{Identity, MessageId, Origin, Stamp};
use std::sync::Arc;

use super::Node;

/// Where a message comes from, gateway and all.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) identity: Identity,
    /// The identity was given here.
    pub(super) own_identity: bool,
    pub(super) client_id: Arc<str>,
    pub(super) username: Option<Arc<str>>,
    pub(super) edge: Option<Origin>,
    pub(super) received: Stamp,
    pub(super) hops: u8,
}

impl Source {
    /// Reads a gateway's properties (docs/contracts.md, 3); only a gateway's are believed.
    pub(super) fn of(message: &Message<'_>, node: &Node, next_seq: u64) -> Self {
        if let Some(source) = message.attachment.and_then(|a| a.downcast_ref::<Self>()) {
            return Self { hops: source.hops.saturating_add(1), ..source.clone() };
        }
        let publisher = message.publisher;
        let mut source = Self {
            identity: Identity { origin: Arc::clone(&node.origin), boot: node.boot, class: 0, seq: next_seq },
            own_identity: true,
            client_id: Arc::clone(&publisher.client_id),
            username: publisher.username.clone(),
            edge: None,
            received: message.received,
            hops: message.hops,
        };
        let Role::Edge(edge) = &publisher.role else { return source };
        source.edge = Some(Arc::clone(edge));
        for (name, value) in message.properties.user_properties() {
            match name {
                "ferrule-id" => {
                    if let Ok(MessageId { boot, class, seq }) = value.parse() {
                        source.identity = Identity { origin: Arc::clone(edge), boot, class, seq };
                        source.own_identity = false;
                    }
                }
                "ferrule-client" => source.client_id = value.into(),
                "ferrule-user" => source.username = Some(value.into()),
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
