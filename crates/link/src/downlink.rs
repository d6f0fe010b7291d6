//! Messages from the broker down to here: which are asked for, and what their topics become.
//!
//! # Operation
//! ```text
//! SUBSCRIBE (No Local) --> PUBLISH --map--> the broker here --said safe--> PUBACK
//! ```
//! The session at the broker outlives the connection (`session_expiry`), so what is said to a gateway that is away waits there. A PUBACK
//! leaves when the message is safe here; before that a lost connection brings it again. How many wait is bounded by the Receive
//! Maximum that we tell ([`WINDOW`]).
//!
//! # Topics
//! A filter's `+` and `#` are captures, in order: `$1` is what the first of them stood for, `#` the rest with its slashes. Without a
//! template the topic stays. What then is no topic name is acknowledged, counted and goes nowhere, and so does what no filter
//! of ours asked for (a session remembers filters that were ours once).

use ferrule_mqtt::{
    PropertiesBuf, Property, PropertyId, Publish, QoS, SubscribeFiltersBuf, SubscribeOptions, Version, topic,
};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Messages from the broker that may wait for their acknowledgement.
pub const WINDOW: u16 = 64;

/// A filter at the broker, and what its topics are called here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Downlink {
    filter: String,
    /// None: as at the broker.
    topic: Option<Vec<Part>>,
    qos: QoS,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    /// From 0.
    Capture(usize),
}

/// Why there is no such downlink.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DownlinkError {
    /// Not a topic filter, or a shared one: of those No Local cannot be asked.
    #[error("`filter`: {0:?} is no topic filter (a shared one cannot be asked for)")]
    Filter(String),
    /// A capture that there is not.
    #[error("`topic` uses ${number}, and `filter` has {captures} of `+` and `#`")]
    Capture {
        /// As written, from 1.
        number: usize,
        /// How many there are.
        captures: usize,
    },
    /// A `$` without a number.
    #[error(
        "`topic`: behind `$` there must be the number of a `+` or `#` of `filter`, as in \"commands/$1\""
    )]
    Dollar,
    /// Not a topic name, whatever is captured.
    #[error("`topic`: {0:?} is no topic name: it must not be empty or hold `+` or `#`")]
    Topic(String),
}

/// A message for the broker here.
#[derive(Debug)]
pub struct Received {
    /// What it is called here.
    pub topic: String,
    /// Payload.
    pub payload: Vec<u8>,
    /// At most 1.
    pub qos: QoS,
    /// Retain flag: of a message that was retained when we subscribed.
    pub retain: bool,
    /// Its properties, without those that are between a client and its broker, and without `ferrule-*`.
    pub properties: PropertiesBuf,
    /// Brokers that it has passed.
    pub hops: u8,
    /// What to say when it is safe; none at QoS 0.
    pub number: Option<u64>,
}

/// Where messages go. Called on the uplink's task; must not block.
pub type OnMessage = Arc<dyn Fn(Received) + Send + Sync>;

/// The two sides of a downlink at the broker here.
pub struct Ends {
    /// Takes messages.
    pub on_message: OnMessage,
    /// Says of a [`Received::number`] whether the message is safe; if not, the connection is made anew and it comes again.
    pub said: mpsc::UnboundedReceiver<(u64, bool)>,
    /// The number of connections begins here: what is said of messages of another uplink, before this one, is none of its own.
    pub connections_from: u64,
}

/// A message as it came.
#[derive(Debug)]
pub(crate) struct Arrived {
    topic: String,
    payload: Vec<u8>,
    qos: QoS,
    retain: bool,
    properties: PropertiesBuf,
    hops: u8,
    pub(crate) packet_id: u16,
}

impl Downlink {
    /// Reads a filter and the template of a topic.
    ///
    /// # Errors
    /// See [`DownlinkError`].
    pub fn new(filter: &str, topic: Option<&str>, acknowledged: bool) -> Result<Self, DownlinkError> {
        if topic::validate_filter(filter).is_err() || filter.starts_with(topic::SHARED_PREFIX) {
            return Err(DownlinkError::Filter(filter.to_owned()));
        }
        let captures = filter.split('/').filter(|level| matches!(*level, "+" | "#")).count();
        let topic = topic.map(|text| parse(text, captures)).transpose()?;
        let qos = if acknowledged { QoS::AtLeastOnce } else { QoS::AtMostOnce };
        Ok(Self { filter: filter.to_owned(), topic, qos })
    }

    /// What a topic is called here; none: the filter does not match.
    #[must_use]
    pub fn map(&self, topic: &str) -> Option<String> {
        let mut captures = Vec::new();
        let mut rest = Some(topic);
        for level in self.filter.split('/') {
            if level == "#" {
                captures.push(rest.unwrap_or_default());
                rest = None;
                break;
            }
            let (first, more) = match rest?.split_once('/') {
                Some((first, more)) => (first, Some(more)),
                None => (rest?, None),
            };
            match level {
                "+" => captures.push(first),
                level if level == first => {}
                _ => return None,
            }
            rest = more;
        }
        if rest.is_some() {
            return None;
        }
        let Some(parts) = &self.topic else { return Some(topic.to_owned()) };
        let text = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Capture(number) => captures.get(*number).copied().unwrap_or_default().to_owned(),
        };
        Some(parts.iter().map(text).collect())
    }

    /// All filters, as they are subscribed to.
    pub(crate) fn filters(links: &[Self], version: Version) -> SubscribeFiltersBuf {
        let knows_options = version == Version::V5;
        let mut filters = SubscribeFiltersBuf::new();
        for Self { filter, qos, .. } in links {
            // What we publish does not come back; what is retained comes when a filter is new, not with each connection.
            let options = SubscribeOptions {
                qos: *qos,
                no_local: knows_options,
                retain_as_published: false,
                retain_handling: u8::from(knows_options),
            };
            // It is a filter: it encodes.
            let _ = filters.push(filter, options);
        }
        filters
    }
}

fn parse(text: &str, captures: usize) -> Result<Vec<Part>, DownlinkError> {
    let bad = || DownlinkError::Topic(text.to_owned());
    let mut parts = Vec::new();
    let mut pieces = text.split('$');
    let first = pieces.next().unwrap_or_default();
    if !first.is_empty() {
        parts.push(Part::Text(first.to_owned()));
    }
    for piece in pieces {
        let digits = piece.bytes().take_while(u8::is_ascii_digit).count();
        let number: usize = piece[..digits].parse().map_err(|_| DownlinkError::Dollar)?;
        if number == 0 || number > captures {
            return Err(DownlinkError::Capture { number, captures });
        }
        parts.push(Part::Capture(number - 1));
        if digits < piece.len() {
            parts.push(Part::Text(piece[digits..].to_owned()));
        }
    }
    let example: String = parts
        .iter()
        .map(|part| match part {
            Part::Text(text) => text.as_str(),
            Part::Capture(_) => "x",
        })
        .collect();
    if topic::validate_name(&example).is_err() {
        return Err(bad());
    }
    Ok(parts)
}

impl Arrived {
    pub(crate) fn of(publish: &Publish<'_>) -> Self {
        let mut properties = PropertiesBuf::new();
        let mut hops = 0u8;
        properties.extend(publish.properties, |id| {
            !matches!(
                id,
                PropertyId::TopicAlias | PropertyId::SubscriptionIdentifier | PropertyId::UserProperty
            )
        });
        for (name, value) in publish.properties.user_properties() {
            if name == "ferrule-hops" {
                hops = value.parse().unwrap_or(u8::MAX);
            } else if !name.starts_with("ferrule-") {
                // It was a property before: it encodes.
                let _ = properties.push(Property::UserProperty(name, value));
            }
        }
        Self {
            topic: publish.topic.to_owned(),
            payload: publish.payload.to_vec(),
            qos: publish.qos,
            retain: publish.retain,
            properties,
            // The broker that it came from is one more, where that did not count itself.
            hops: hops.max(1),
            packet_id: publish.packet_id,
        }
    }

    /// For the broker here; none when it goes nowhere. `connection` tells its acknowledgement from another connection's.
    pub(crate) fn mapped(self, links: &[Downlink], connection: u64) -> Option<Received> {
        let topic = links.iter().find_map(|link| link.map(&self.topic))?;
        if topic::validate_name(&topic).is_err() || topic.starts_with('$') {
            return None;
        }
        let number = (self.qos > QoS::AtMostOnce).then_some(connection << 16 | u64::from(self.packet_id));
        let Self { payload, qos, retain, properties, hops, .. } = self;
        Some(Received { topic, payload, qos, retain, properties, hops, number })
    }
}

/// Of a number: its connection, its packet id.
pub(crate) fn split(number: u64) -> (u64, u16) {
    // The low 16 bits are meant.
    (number >> 16, (number & 0xffff) as u16)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn topics_are_mapped() {
        for (filter, template, topic, expected) in [
            (
                "commands/press-7/#",
                Some("commands/$1"),
                "commands/press-7/line/1/start",
                Some("commands/line/1/start"),
            ),
            ("commands/press-7/#", Some("c/$1"), "commands/press-7", Some("c/")),
            ("commands/press-7/#", None, "commands/press-7/a", Some("commands/press-7/a")),
            ("commands/press-7/#", None, "commands/press-8/a", None),
            ("+/b/+/#", Some("$3/$1/$2$2"), "a/b/c/d/e", Some("d/e/a/cc")),
            ("+/b", Some("x$1"), "a/b/c", None),
            ("a/+", Some("x/$1"), "a", None),
            ("a/+", Some("x/$1"), "a/", Some("x/")),
            ("#", Some("down/$1"), "a/b", Some("down/a/b")),
            ("a", Some("b"), "a", Some("b")),
        ] {
            let link = Downlink::new(filter, template, true).unwrap();
            assert_eq!(link.map(topic).as_deref(), expected, "{filter} {template:?} {topic}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let refused = |filter: &str, topic: &str| Downlink::new(filter, Some(topic), true).unwrap_err();
        assert_eq!(refused("a/#/b", "x"), DownlinkError::Filter("a/#/b".into()));
        assert_eq!(refused("", "x"), DownlinkError::Filter(String::new()));
        assert_eq!(refused("$share/g/a", "x"), DownlinkError::Filter("$share/g/a".into()));
        assert_eq!(refused("a/+", "x/$2"), DownlinkError::Capture { number: 2, captures: 1 });
        assert_eq!(refused("a/+", "x/$0"), DownlinkError::Capture { number: 0, captures: 1 });
        assert_eq!(refused("a/+", "$SYS/x"), DownlinkError::Dollar);
        assert_eq!(refused("a/+", "x/$99999999999999999999"), DownlinkError::Dollar);
        for topic in ["", "x/+", "#"] {
            assert_eq!(refused("a/+", topic), DownlinkError::Topic(topic.into()));
        }
    }
}
