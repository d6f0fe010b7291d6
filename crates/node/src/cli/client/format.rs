//! How `sub` prints a message: mosquitto_sub's `-v`, `-N` and `-F`.

use super::connection::Message;
use ferrule_mqtt::{Property, QoS};
use jiff::Zoned;
use serde_json::{Map, Value, json};
use std::io::{self, Write};

/// A piece of a format.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(Vec<u8>),
    /// After `%`.
    Field(char),
    /// After `@`: one of strftime's.
    Time(char),
}

/// A format that was checked.
#[derive(Debug, Clone)]
pub(super) struct Format {
    parts: Vec<Part>,
    line_end: bool,
    pretty: bool,
}

/// Letters that may follow `%`.
const FIELDS: &str = "AcCDEFIjJlmpPqrRStUxX";

impl Format {
    /// `-F`.
    ///
    /// # Errors
    /// mosquitto's words.
    pub(super) fn read(text: &str, line_end: bool, pretty: bool) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut plain = Vec::new();
        let mut chars = text.chars();
        let mut push = |plain: &mut Vec<u8>, part| {
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(plain)));
            }
            parts.extend(part);
        };
        while let Some(c) = chars.next() {
            match (c, matches!(c, '%' | '@' | '\\').then(|| chars.next())) {
                ('%', Some(Some('%'))) => plain.push(b'%'),
                ('@', Some(Some('@'))) => plain.push(b'@'),
                ('%', Some(Some(field))) if FIELDS.contains(field) => {
                    push(&mut plain, Some(Part::Field(field)))
                }
                ('%', Some(Some(other))) => {
                    return Err(format!("Error: Invalid format specifier '{other}'."));
                }
                ('%', Some(None)) => return Err("Error: Incomplete format specifier.".to_owned()),
                ('@', Some(Some(letter))) => push(&mut plain, Some(Part::Time(letter))),
                ('@', Some(None)) => return Err("Error: Incomplete format specifier.".to_owned()),
                ('\\', Some(escaped)) => plain.push(match escaped {
                    Some('\\') => b'\\',
                    Some('0') => 0,
                    Some('a') => 7,
                    Some('e') => 27,
                    Some('n') => b'\n',
                    Some('r') => b'\r',
                    Some('t') => b'\t',
                    Some('v') => 11,
                    Some(other) => return Err(format!("Error: Invalid escape specifier '{other}'.")),
                    None => return Err("Error: Incomplete escape specifier.".to_owned()),
                }),
                (c, _) => plain.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        push(&mut plain, None);
        // What strftime does not know is told now, not with the first message.
        for part in &parts {
            if let Part::Time(letter) = part {
                jiff::fmt::strtime::format(format!("%{letter}"), &Zoned::now())
                    .map_err(|_| format!("Error: Invalid time format specifier '{letter}'."))?;
            }
        }
        Ok(Self { parts, line_end, pretty })
    }

    /// Without `-F`.
    pub(super) fn plain(verbose: bool, line_end: bool) -> Self {
        let mut parts = Vec::new();
        if verbose {
            parts.extend([Part::Field('t'), Part::Text(b" ".to_vec())]);
        }
        parts.push(Part::Field('p'));
        Self { parts, line_end, pretty: false }
    }

    /// # Errors
    /// When it cannot be written.
    pub(super) fn print(&self, message: &Message, now: &Zoned, out: &mut dyn Write) -> io::Result<()> {
        for part in &self.parts {
            match part {
                Part::Text(text) => out.write_all(text)?,
                Part::Time(letter) => {
                    // Checked when it was read.
                    let text = jiff::fmt::strtime::format(format!("%{letter}"), now).unwrap_or_default();
                    out.write_all(text.as_bytes())?;
                }
                Part::Field(field) => self.field(*field, message, now, out)?,
            }
        }
        if self.line_end { out.write_all(b"\n") } else { Ok(()) }
    }

    fn field(&self, field: char, m: &Message, now: &Zoned, out: &mut dyn Write) -> io::Result<()> {
        let hex = |out: &mut dyn Write, upper: bool| {
            m.payload.iter().try_for_each(|byte| match upper {
                true => write!(out, "{byte:02X}"),
                false => write!(out, "{byte:02x}"),
            })
        };
        match field {
            't' => out.write_all(m.topic.as_bytes()),
            'p' => out.write_all(&m.payload),
            'l' => write!(out, "{}", m.payload.len()),
            'q' => write!(out, "{}", m.qos),
            'r' => write!(out, "{}", u8::from(m.retain)),
            'm' => write!(out, "{}", m.packet_id),
            'x' => hex(out, false),
            'X' => hex(out, true),
            'I' => write!(out, "{}", strftime("%Y-%m-%dT%H:%M:%S%z", now)),
            'U' => {
                let at = now.timestamp();
                write!(out, "{}.{:09}", at.as_second(), at.subsec_nanosecond())
            }
            'j' => self.json(&json(m, now, false), out),
            'J' => self.json(&json(m, now, true), out),
            _ => m.properties.as_properties().iter().try_for_each(|property| match (field, property) {
                ('A', Property::TopicAlias(alias)) => write!(out, "{alias}"),
                ('C', Property::ContentType(text)) => out.write_all(text.as_bytes()),
                ('D', Property::CorrelationData(bytes)) => out.write_all(bytes),
                ('E', Property::MessageExpiryInterval(seconds)) => write!(out, "{seconds}"),
                ('F', Property::PayloadFormatIndicator(text)) => write!(out, "{}", u8::from(text)),
                ('P', Property::UserProperty(name, value)) => write!(out, "{name}:{value} "),
                ('R', Property::ResponseTopic(topic)) => out.write_all(topic.as_bytes()),
                ('S', Property::SubscriptionIdentifier(id)) => write!(out, "{id}"),
                _ => Ok(()),
            }),
        }
    }

    fn json(&self, value: &Value, out: &mut dyn Write) -> io::Result<()> {
        if self.pretty { write!(out, "{value:#}") } else { write!(out, "{value}") }
    }
}

fn strftime(format: &str, now: &Zoned) -> String {
    // These formats are known to be good.
    jiff::fmt::strtime::format(format, now).unwrap_or_default()
}

/// `parse`: the payload is JSON itself, or else null.
fn json(m: &Message, now: &Zoned, parse: bool) -> Value {
    let mut object = Map::new();
    let mut put = |name: &str, value: Value| drop(object.insert(name.to_owned(), value));
    put("tst", json!(strftime("%Y-%m-%dT%H:%M:%S.%6fZ%z", now)));
    put("topic", json!(m.topic));
    put("qos", json!(u8::from(m.qos)));
    put("retain", json!(u8::from(m.retain)));
    put("payloadlen", json!(m.payload.len()));
    if m.qos > QoS::AtMostOnce {
        put("mid", json!(m.packet_id));
    }
    if !m.properties.is_empty() {
        put("properties", properties(m));
    }
    let payload = match parse {
        true => serde_json::from_slice(&m.payload).unwrap_or(Value::Null),
        false => json!(String::from_utf8_lossy(&m.payload)),
    };
    put("payload", payload);
    Value::Object(object)
}

fn properties(m: &Message) -> Value {
    let mut object = Map::new();
    let mut user = Map::new();
    for property in m.properties.as_properties().iter() {
        let (name, value) = match property {
            Property::ContentType(text) => ("content-type", json!(text)),
            Property::CorrelationData(bytes) => ("correlation-data", json!(String::from_utf8_lossy(bytes))),
            Property::MessageExpiryInterval(seconds) => ("message-expiry-interval", json!(seconds)),
            Property::PayloadFormatIndicator(text) => ("payload-format-indicator", json!(u8::from(text))),
            Property::ResponseTopic(topic) => ("response-topic", json!(topic)),
            Property::SubscriptionIdentifier(id) => ("subscription-identifier", json!(id)),
            Property::TopicAlias(alias) => ("topic-alias", json!(alias)),
            Property::UserProperty(name, value) => {
                user.insert(name.to_owned(), json!(value));
                continue;
            }
            _ => continue,
        };
        object.insert(name.to_owned(), value);
    }
    if !user.is_empty() {
        object.insert("user-properties".to_owned(), Value::Object(user));
    }
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use ferrule_mqtt::PropertiesBuf;

    #[test]
    fn formats() {
        let mut properties = PropertiesBuf::new();
        properties.push(Property::UserProperty("a", "b")).unwrap();
        properties.push(Property::ContentType("c/d")).unwrap();
        let message = Message {
            topic: "t/1".into(),
            payload: b"{\"a\":1}".to_vec(),
            qos: QoS::AtLeastOnce,
            retain: true,
            packet_id: 7,
            properties,
        };
        let now: Zoned = "2026-11-29T12:44:24.198177005+00:00[UTC]".parse().unwrap();
        let print = |format: Format| {
            let mut out = Vec::new();
            format.print(&message, &now, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        let read = |text: &str| print(Format::read(text, false, false).unwrap());
        assert_eq!(
            read("%t|%p|%q|%r|%l|%m|%x|%X|%%@@\\n"),
            "t/1|{\"a\":1}|1|1|7|7|7b2261223a317d|7B2261223A317D|%@\n"
        );
        assert_eq!(read("%I %U @Y-@m @d"), "2026-11-29T12:44:24+0000 1795956264.198177005 2026-11 29");
        assert_eq!(read("%C %P%E"), "c/d a:b ");
        let head = r#"{"tst":"2026-11-29T12:44:24.198177Z+0000","topic":"t/1","qos":1,"retain":1,"payloadlen":7,"mid":7,"#;
        let properties = r#""properties":{"content-type":"c/d","user-properties":{"a":"b"}},"#;
        assert_eq!(read("%J"), format!("{head}{properties}\"payload\":{{\"a\":1}}}}"));
        assert_eq!(read("%j"), format!("{head}{properties}\"payload\":\"{{\\\"a\\\":1}}\"}}"));
        assert_eq!(print(Format::plain(true, true)), "t/1 {\"a\":1}\n");
        assert_eq!(print(Format::plain(false, false)), "{\"a\":1}");
        for wrong in ["%z", "%", "\\q", "\\", "@", "@!"] {
            assert!(Format::read(wrong, true, false).is_err(), "{wrong}");
        }
    }
}
