//! MQTT 5 properties that INSERT INTO gives to a publish.
//!
//! ```sql
//! INSERT INTO local."t" WITH (content_type = 'application/json', response_topic = 'r/${clientid}', correlation_data = '${payload.id}',
//!   payload_format = TRUE, message_expiry = '60s', user_properties.line = '${line}', user_properties = '${user_properties}')
//! ```
//! A template whose value is missing leaves its property out, as EMQX's republish does. `user_properties` alone renders to a JSON object, whose members
//! become properties: text as it is, other values as JSON, of an array each element.

use crate::check::option_value;
use crate::json;
use crate::machine::Machine;
use crate::plan::Plans;
use crate::program::Template;
use crate::row::{publishable, text};
use crate::sql::ast::Literal;
use crate::value::Value;
use crate::{Failure, OptionKind, OptionValue, Span};

/// One property of a row's publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublishProperty {
    /// Whether the payload is UTF-8 text.
    PayloadFormat(bool),
    /// Lifetime in seconds.
    MessageExpiry(u32),
    /// Type of the payload.
    ContentType(String),
    /// A valid topic name.
    ResponseTopic(String),
    /// What the requester recognises the response by.
    CorrelationData(String),
    /// Name and value; may repeat.
    User(String, String),
}

impl std::fmt::Display for PublishProperty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PublishProperty::PayloadFormat(utf8) => write!(f, "payload_format {utf8}"),
            PublishProperty::MessageExpiry(seconds) => write!(f, "message_expiry {seconds}s"),
            PublishProperty::ContentType(text) => write!(f, "content_type \"{text}\""),
            PublishProperty::ResponseTopic(topic) => write!(f, "response_topic \"{topic}\""),
            PublishProperty::CorrelationData(data) => write!(f, "correlation_data \"{data}\""),
            PublishProperty::User(name, value) => write!(f, "user_properties.{name} \"{value}\""),
        }
    }
}

/// What an option says.
#[derive(Debug, Clone)]
pub(crate) enum PropertyCode {
    PayloadFormat(bool),
    /// In seconds, fixed or rendered.
    Expiry(u32),
    ExpiryOf(Template),
    ContentType(Template),
    ResponseTopic(Template),
    CorrelationData(Template),
    User(String, Template),
    Users(Template),
}

/// Options that make properties; `user_properties.NAME` beside them.
pub(crate) const OPTIONS: [&str; 6] = [
    "content_type",
    "response_topic",
    "correlation_data",
    "payload_format",
    "message_expiry",
    "user_properties",
];

/// The longest property, and the most bytes of all: a string of MQTT has no more, and no packet needs more of them.
const BYTES_MAX: usize = 65_535;

/// Names that only gateways and brokers may use among themselves.
const RESERVED: &str = "ferrule-";

/// Whether an option of INSERT INTO makes a property of the publish.
pub(crate) fn is_option(name: &str) -> bool {
    OPTIONS.contains(&name) || name.starts_with("user_properties.")
}

/// The property that an option makes, or what it takes.
pub(crate) fn option(
    name: &str,
    value: &Literal,
    span: Span,
    planner: &mut dyn Plans,
) -> Result<PropertyCode, &'static str> {
    let text = match (name, value) {
        ("payload_format", Literal::Bool(utf8)) => return Ok(PropertyCode::PayloadFormat(*utf8)),
        ("payload_format", _) => return Err("TRUE (the payload is UTF-8) or FALSE"),
        (_, Literal::Text(text)) => text,
        ("message_expiry", _) => return Err("a duration with a unit, or a template of seconds"),
        _ => return Err("a template in quotes"),
    };
    if name == "message_expiry" && !text.contains("${") {
        let seconds = match option_value(OptionKind::Duration, value) {
            Ok(OptionValue::DurationMs(ms)) => u32::try_from(ms.div_ceil(1000)).ok(),
            _ => None,
        };
        return seconds.map(PropertyCode::Expiry).ok_or("a duration with a unit, or a template of seconds");
    }
    let mut template = |of: &str| planner.template(text, span, of);
    Ok(match name {
        "content_type" => PropertyCode::ContentType(template("the content type")),
        "response_topic" => PropertyCode::ResponseTopic(template("the response topic")),
        "correlation_data" => PropertyCode::CorrelationData(template("the correlation data")),
        "message_expiry" => PropertyCode::ExpiryOf(template("the message expiry")),
        _ => match name.strip_prefix("user_properties.") {
            Some(name) if name.starts_with(RESERVED) => {
                return Err("another name: those with `ferrule-` are the brokers' own");
            }
            Some(name) => PropertyCode::User(name.to_owned(), template("a user property")),
            None => PropertyCode::Users(template("the user properties")),
        },
    })
}

/// The properties of one row.
pub(crate) fn render(
    m: &mut Machine<'_, '_>,
    codes: &[PropertyCode],
) -> Result<Vec<PublishProperty>, Failure> {
    let mut out = Vec::with_capacity(codes.len());
    let mut bytes = 0;
    for code in codes {
        let first = out.len();
        match code {
            PropertyCode::PayloadFormat(utf8) => out.push(PublishProperty::PayloadFormat(*utf8)),
            PropertyCode::Expiry(seconds) => out.push(PublishProperty::MessageExpiry(*seconds)),
            // What is no number of seconds sets no end.
            PropertyCode::ExpiryOf(template) => out.extend(
                text(m, template)?.and_then(|text| text.parse().ok()).map(PublishProperty::MessageExpiry),
            ),
            PropertyCode::ContentType(template) => {
                out.extend(text(m, template)?.map(PublishProperty::ContentType));
            }
            PropertyCode::ResponseTopic(template) => {
                if let Some(topic) = text(m, template)? {
                    if !publishable(&topic) {
                        return Err(Failure::BadTarget);
                    }
                    out.push(PublishProperty::ResponseTopic(topic));
                }
            }
            PropertyCode::CorrelationData(template) => {
                out.extend(text(m, template)?.map(PublishProperty::CorrelationData));
            }
            PropertyCode::User(name, template) => {
                out.extend(text(m, template)?.map(|value| PublishProperty::User(name.clone(), value)));
            }
            PropertyCode::Users(template) => {
                if let Some(text) = text(m, template)? {
                    users(&text, &mut out);
                }
            }
        }
        bytes += out.iter().skip(first).map(size).sum::<usize>();
        if bytes > BYTES_MAX {
            return Err(Failure::TooLarge);
        }
    }
    Ok(out)
}

fn size(property: &PublishProperty) -> usize {
    match property {
        PublishProperty::PayloadFormat(_) => 2,
        PublishProperty::MessageExpiry(_) => 5,
        PublishProperty::ContentType(text)
        | PublishProperty::ResponseTopic(text)
        | PublishProperty::CorrelationData(text) => 3 + text.len(),
        PublishProperty::User(name, value) => 5 + name.len() + value.len(),
    }
}

/// The members of a JSON object; of what is none nothing.
fn users(text: &str, out: &mut Vec<PublishProperty>) {
    if json::document(text.as_bytes()).is_err() || !text.trim_start().starts_with('{') {
        return;
    }
    let Value::Map(members) = Value::Json(text.trim().into()).open() else { return };
    for (name, value) in members.iter().filter(|(name, _)| !name.starts_with(RESERVED)) {
        let mut push = |value: &Value<'_>| {
            let mut bytes = Vec::new();
            value.write_text(&mut bytes);
            if let Ok(value) = String::from_utf8(bytes) {
                out.push(PublishProperty::User(name.clone(), value));
            }
        };
        match value.share().open() {
            Value::List(items) => items.iter().for_each(push),
            value => push(&value),
        }
    }
}
