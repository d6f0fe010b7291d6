//! Messages as lines of JSON, for `rules test`: a rule that remembers is tried with several, one after the other.
//!
//! ```text
//! {"topic":"plant/press-7/temp","payload":{"temp":81.5},"clientid":"press-7","at":"+10s"}
//! ```
//! What a line leaves out is as the flags say it, and `at` as in the line before: time does not go by itself.
//! A payload that is text is sent as it is, `{"$bytes":"hex"}` as bytes, any other value as its JSON.

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::test::TestMessage;
use crate::check::option_value;
use crate::diagnostic::nearest;
use crate::functions::rfc3339_ms;
use crate::sql::ast::Literal;
use crate::value::unhex;
use crate::{OptionKind, OptionValue};

/// What a message may say of itself.
const KEYS: [&str; 10] =
    ["topic", "payload", "qos", "retain", "clientid", "username", "edge", "at", "user_properties", "columns"];

/// Reads messages, each with the place that errors name; `base` is what they leave out.
///
/// # Errors
/// What is wrong with the first that is none, and where.
pub fn messages<'t>(
    lines: impl Iterator<Item = (String, &'t str)>,
    base: &TestMessage,
) -> Result<Vec<TestMessage>, String> {
    let mut all: Vec<TestMessage> = Vec::new();
    for (place, line) in lines.filter(|(_, line)| !line.trim().is_empty()) {
        let before = all.last().map(|before| before.timestamp_ms);
        let message = message(line, base, before).map_err(|problem| format!("{place}: {problem}"))?;
        all.push(message);
    }
    Ok(all)
}

fn message(line: &str, base: &TestMessage, before_ms: Option<i64>) -> Result<TestMessage, String> {
    // A payload keeps its text: numbers of any length, in the form that they have.
    let members: BTreeMap<String, Box<RawValue>> = serde_json::from_str(line)
        .map_err(|error| format!("a message is an object, {{\"topic\":\"...\",\"payload\":...}}: {error}"))?;
    let mut message = TestMessage { timestamp_ms: before_ms.unwrap_or(base.timestamp_ms), ..base.clone() };
    for (key, raw) in members {
        let value: Value = serde_json::from_str(raw.get()).map_err(|error| format!("`{key}`: {error}"))?;
        let wrong = |expected: &str| Err(format!("`{key}` takes {expected}"));
        match (key.as_str(), value) {
            ("topic", Value::String(topic)) => message.topic = topic,
            ("payload", payload) => message.payload = payload_of(payload, raw.get()),
            ("qos", Value::Number(qos)) if qos.as_u64().is_some_and(|qos| qos <= 2) => {
                message.qos = qos.as_u64().and_then(|qos| u8::try_from(qos).ok()).unwrap_or_default();
            }
            ("qos", _) => return wrong("0, 1 or 2"),
            ("retain", Value::Bool(retain)) => message.retain = retain,
            ("retain", _) => return wrong("true or false"),
            ("clientid", Value::String(clientid)) => message.clientid = clientid,
            ("username", Value::String(username)) => message.username = Some(username),
            ("edge", Value::String(edge)) => message.edge = Some(edge),
            ("topic" | "clientid" | "username" | "edge", _) => return wrong("text"),
            ("at", at) => message.timestamp_ms = time(&at, message.timestamp_ms, before_ms)?,
            ("user_properties", Value::Object(properties)) => {
                message.user_properties = pairs(properties).ok_or("`user_properties` takes texts by name")?;
            }
            ("user_properties", _) => return wrong("texts by name"),
            ("columns", Value::Object(columns)) => message.columns = Some(columns),
            ("columns", _) => return wrong("an object"),
            _ => {
                let near = nearest(&key, KEYS).map(|near| format!("; did you mean `{near}`?"));
                let known = KEYS.join(", ");
                return Err(format!("a message has no `{key}`{}; it has {known}", near.unwrap_or_default()));
            }
        }
    }
    if message.topic.is_empty() {
        return Err("a message needs a `topic`, or --topic for all of them".to_owned());
    }
    Ok(message)
}

fn payload_of(payload: Value, raw: &str) -> Vec<u8> {
    match payload {
        Value::String(text) => text.into_bytes(),
        other => {
            let bytes = other.get("$bytes").and_then(Value::as_str).and_then(unhex);
            bytes.unwrap_or_else(|| raw.as_bytes().to_vec())
        }
    }
}

/// ms since 1970, RFC 3339, or `+10s` behind the message before.
fn time(at: &Value, now_ms: i64, before_ms: Option<i64>) -> Result<i64, String> {
    let expected = || {
        "`at` takes ms since 1970, a time as \"2026-11-25T06:17:14Z\", or how long after the message before: \"+10s\""
            .to_owned()
    };
    let at_ms = match at {
        Value::Number(ms) => ms.as_i64().ok_or_else(expected)?,
        Value::String(text) => match text.strip_prefix('+') {
            None => rfc3339_ms(text).ok_or_else(expected)?,
            Some(wait) => match option_value(OptionKind::Duration, &Literal::Text(wait.to_owned())) {
                Ok(OptionValue::DurationMs(wait)) => {
                    now_ms.saturating_add(i64::try_from(wait).unwrap_or(i64::MAX))
                }
                _ => return Err(expected()),
            },
        },
        _ => return Err(expected()),
    };
    match before_ms {
        Some(before) if at_ms < before => Err(format!("`at` is {at_ms}, before the message in front of it")),
        _ => Ok(at_ms),
    }
}

fn pairs(properties: Map<String, Value>) -> Option<Vec<(String, String)>> {
    let pair = |(name, value): (String, Value)| Some((name, value.as_str()?.to_owned()));
    properties.into_iter().map(pair).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn read(lines: &[&str]) -> Result<Vec<TestMessage>, String> {
        let base = TestMessage { clientid: "c".to_owned(), timestamp_ms: 1_000, ..TestMessage::default() };
        messages(lines.iter().enumerate().map(|(n, line)| (format!("m:{}", n + 1), *line)), &base)
    }

    #[test]
    fn what_is_left_out_is_as_before() {
        let all = read(&[
            r#"{"topic":"a","payload":{"x":1.50}}"#,
            "",
            r#"{"topic":"b","payload":"{","at":"+1500ms","clientid":"d","qos":1,"retain":true}"#,
            r#"{"topic":"c","payload":{"$bytes":"00ff"},"user_properties":{"k":"v"},"username":"u","edge":"e"}"#,
            r#"{"topic":"$events/client/ping","columns":{"clientid":"x"},"at":"1970-01-01T00:00:02.5Z"}"#,
        ])
        .unwrap();
        let times: Vec<i64> = all.iter().map(|message| message.timestamp_ms).collect();
        assert_eq!(times, [1_000, 2_500, 2_500, 2_500]);
        let payloads: Vec<&[u8]> = all.iter().map(|message| message.payload.as_slice()).collect();
        assert_eq!(payloads, [&b"{\"x\":1.50}"[..], b"{", &[0, 255], b""]);
        assert_eq!((all[0].clientid.as_str(), all[1].clientid.as_str()), ("c", "d"));
        assert_eq!((all[1].qos, all[1].retain, all[2].qos), (1, true, 0));
        assert_eq!(all[2].user_properties, [("k".to_owned(), "v".to_owned())]);
        assert_eq!((all[2].username.as_deref(), all[2].edge.as_deref()), (Some("u"), Some("e")));
        assert_eq!(all[3].columns.as_ref().unwrap()["clientid"], "x");
    }

    #[test]
    fn what_is_none_is_told_with_its_place() {
        for (line, expected) in [
            ("{", "m:2: a message is an object"),
            ("[]", "m:2: a message is an object"),
            ("{}", "m:2: a message needs a `topic`"),
            (r#"{"topic":1}"#, "m:2: `topic` takes text"),
            (r#"{"topic":"a","qos":3}"#, "m:2: `qos` takes 0, 1 or 2"),
            (r#"{"topic":"a","clientId":"x"}"#, "m:2: a message has no `clientId`; did you mean `clientid`?"),
            (r#"{"topic":"a","at":"10s"}"#, "m:2: `at` takes ms since 1970"),
            (r#"{"topic":"a","at":"+1x"}"#, "m:2: `at` takes ms since 1970"),
            (r#"{"topic":"a","at":999}"#, "m:2: `at` is 999, before the message in front of it"),
            (r#"{"topic":"a","user_properties":{"k":1}}"#, "m:2: `user_properties` takes texts by name"),
        ] {
            let error = read(&[r#"{"topic":"a"}"#, line]).unwrap_err();
            assert!(error.starts_with(expected), "{line}: {error}");
        }
    }
}
