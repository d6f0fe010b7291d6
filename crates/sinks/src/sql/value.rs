//! From an entry to the values of a table's columns.
//!
//! | JSON | integer | number | boolean | text | time | json | array, other |
//! |---|---|---|---|---|---|---|---|
//! | number | itself; `21.0` is 21 | itself, all digits | itself | its digits | ms since 1970 | itself | its digits |
//! | true, false | the database's to refuse | so too | itself | `true` | refused by the database | itself | `true` |
//! | string | its text, the database's to understand | so too | so too | its text | its text | itself | its text |
//! | object, array | its JSON text | so too | so too | so too | so too | itself | its JSON text |
//! | null, absent | NULL | NULL | NULL | NULL | NULL | NULL | NULL |
//!
//! Numbers keep the digits that the device sent: nothing passes through a float on its way.

use super::{Kind, Layout};
use crate::Reason;
use crate::text::{bytes_json, iso_utc};
use ferrule_store::record::Entry;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

/// One value to be bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value<'a> {
    /// NULL.
    Null,
    /// True or false.
    Bool(bool),
    /// A number's digits, in JSON's grammar.
    Number(Cow<'a, str>),
    /// Text.
    Text(Cow<'a, str>),
    /// JSON text.
    Json(Cow<'a, str>),
}

/// What makes a row unique, as SQL's integers hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key<'a> {
    /// `_origin`.
    pub origin: &'a str,
    /// `_boot`.
    pub boot: i64,
    /// `_class`.
    pub class: i16,
    /// `_seq`.
    pub seq: i64,
    /// `_rule`.
    pub rule: i64,
    /// `_row`.
    pub row: i32,
}

/// An entry as values for one layout.
#[derive(Debug, Clone)]
pub struct Row<'a> {
    /// Where it stands in the batch: what its outcome is filed under.
    pub place: usize,
    /// Its identity.
    pub key: Key<'a>,
    /// One for each column of the [`super::Insert`].
    pub values: Vec<Value<'a>>,
    /// For layouts that take rows whole: the payload, should the database refuse it as JSON.
    pub payload: Option<&'a [u8]>,
}

/// Why an entry cannot become a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// For the answer.
    pub reason: Reason,
    /// For the log.
    pub why: String,
    /// True: the row has a column that the layout does not know, which a fresh look at the table may mend.
    pub unknown_column: bool,
}

impl Refused {
    fn new(why: impl Into<String>) -> Self {
        Self { reason: Reason::Refused, why: why.into(), unknown_column: false }
    }
}

impl<'a> Key<'a> {
    fn new(entry: &'a Entry) -> Result<Self, Refused> {
        let id = &entry.identity;
        let out_of_range = |_| Refused::new(format!("identity {id} does not fit SQL's integers"));
        Ok(Self {
            origin: &id.origin,
            boot: i64::try_from(id.boot.get()).map_err(out_of_range)?,
            class: i16::try_from(id.class).map_err(out_of_range)?,
            seq: i64::try_from(id.seq).map_err(out_of_range)?,
            rule: i64::try_from(entry.rule).map_err(out_of_range)?,
            row: i32::try_from(entry.row).map_err(out_of_range)?,
        })
    }
}

impl<'a> Row<'a> {
    /// The values of `entry`, and which columns they are for.
    ///
    /// # Errors
    /// When the entry has no JSON object to fill columns from, or a column that the table has not.
    pub fn new(place: usize, entry: &'a Entry, layout: &Layout) -> Result<(Self, Vec<usize>), Refused> {
        let key = Key::new(entry)?;
        if layout.whole {
            let values = layout.columns.iter().map(|column| whole_value(entry, &column.name));
            let values = values.collect::<Result<_, _>>()?;
            let row = Self { place, key, values, payload: Some(&entry.payload) };
            return Ok((row, (0..layout.columns.len()).collect()));
        }
        let Fields(fields) = serde_json::from_slice(&entry.payload)
            .map_err(|e| Refused::new(format!("the row is no JSON object: {e}")))?;
        let mut found: Vec<Option<&RawValue>> = vec![None; layout.columns.len()];
        for (name, value) in &fields {
            match layout.column(name) {
                // Of a name that is there twice the last one counts, as in JavaScript.
                Some(column) => found[column] = Some(value),
                // What a device sends besides is its own affair; what a rule selects was meant for the table.
                None if entry.passthrough => {}
                None => {
                    let why = format!("table {} has no column `{name}`", layout.table.quoted());
                    return Err(Refused { unknown_column: true, ..Refused::new(why) });
                }
            }
        }
        let (mut columns, mut values) = (Vec::with_capacity(found.len()), Vec::with_capacity(found.len()));
        for (i, (column, raw)) in layout.columns.iter().zip(found).enumerate() {
            match raw {
                None if column.optional => continue,
                None => values.push(Value::Null),
                Some(raw) => values.push(
                    Value::of_json(raw.get(), column.kind)
                        .map_err(|why| Refused::new(format!("column `{}`: {why}", column.name)))?,
                ),
            }
            columns.push(i);
        }
        Ok((Self { place, key, values, payload: None }, columns))
    }

    /// The row with its payload as `{"$bytes":"hex"}`, when that is a way out that was not taken.
    #[must_use]
    pub fn as_bytes(&self, layout: &Layout) -> Option<Self> {
        let (payload, column) = (self.payload?, layout.column("row")?);
        let mut row = Self { payload: None, ..self.clone() };
        row.values[column] = Value::Json(Cow::Owned(bytes_json(payload)));
        Some(row)
    }
}

fn whole_value<'a>(entry: &'a Entry, column: &str) -> Result<Value<'a>, Refused> {
    let text = |text: &'a str| Ok(Value::Text(Cow::Borrowed(text)));
    match column {
        "received_at" => iso_utc(entry.received.wall_ms)
            .map(|time| Value::Text(Cow::Owned(time)))
            .ok_or_else(|| Refused::new("received_at is no time of the years 1 to 9999")),
        "edge" => entry.edge.as_ref().map_or(Ok(Value::Null), |edge| text(edge)),
        "clientid" => text(&entry.client_id),
        "topic" => text(&entry.topic),
        _ => Ok(Value::Json(row_json(&entry.payload))),
    }
}

/// The payload if it is JSON that JSONB takes, else `{"$bytes":"hex"}`.
fn row_json(payload: &[u8]) -> Cow<'_, str> {
    match serde_json::from_slice::<&RawValue>(payload) {
        Ok(json) if !has_nul_escape(json.get()) => Cow::Borrowed(json.get()),
        _ => Cow::Owned(bytes_json(payload)),
    }
}

/// Whether valid JSON holds the escape `\u0000` (and not `\\u0000`, which is a backslash and five characters).
fn has_nul_escape(json: &str) -> bool {
    json.match_indices("\\u0000").any(|(at, _)| {
        let backslashes = json.as_bytes()[..at].iter().rev().take_while(|&&b| b == b'\\').count();
        backslashes % 2 == 0
    })
}

impl<'a> Value<'a> {
    /// The value of a JSON text for a column of this kind.
    ///
    /// # Errors
    /// For people: why there is none.
    pub fn of_json(json: &'a str, kind: Kind) -> Result<Self, String> {
        let first = json.as_bytes().first().copied().unwrap_or(b'n');
        if first == b'n' {
            return Ok(Self::Null);
        }
        if kind == Kind::Json {
            return Ok(Self::Json(Cow::Borrowed(json)));
        }
        Ok(match first {
            b't' | b'f' => Self::Bool(first == b't'),
            b'"' => {
                let Text(text) = serde_json::from_str(json).map_err(|e| e.to_string())?;
                Self::Text(text)
            }
            b'{' | b'[' => Self::Json(Cow::Borrowed(json)),
            _ => match kind {
                Kind::Time => Self::Text(Cow::Owned(time_of_ms(json)?)),
                Kind::Integer => Self::Number(whole_number(json)),
                _ => Self::Number(Cow::Borrowed(json)),
            },
        })
    }
}

/// `21.0` and `1e3`, as many JSON writers put whole numbers, without fraction and exponent. Others, and those that a float
/// would not hold exactly, are left for the database to refuse.
fn whole_number(json: &str) -> Cow<'_, str> {
    if !json.contains(['.', 'e', 'E']) {
        return Cow::Borrowed(json);
    }
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match json.parse::<f64>() {
        Ok(n) if n.fract() == 0.0 && n.abs() <= EXACT => Cow::Owned(format!("{n:.0}")),
        _ => Cow::Borrowed(json),
    }
}

fn time_of_ms(json: &str) -> Result<String, String> {
    let ms = json.parse::<i64>().or_else(|_| {
        let ms = json.parse::<f64>().map_err(|e| e.to_string())?.round();
        if ms.abs() < 1e18 { Ok(ms as i64) } else { Err(String::new()) }
    });
    ms.ok().and_then(iso_utc).ok_or_else(|| format!("{json} is no time in ms since 1970"))
}

/// The fields of a JSON object, in order, not looked into.
struct Fields<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Fields<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields = Vec::new();
                while let Some((Text(name), value)) = map.next_entry()? {
                    fields.push((name, value));
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(V)
    }
}

/// A string, borrowed where it has no escapes (`Cow`'s own implementation never borrows).
struct Text<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(V)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn json_becomes_values_by_the_kind_of_column() {
        let number = |n: &'static str| Value::Number(n.into());
        let text = |t: &'static str| Value::Text(t.into());
        for (json, kind, value) in [
            ("null", Kind::Json, Value::Null),
            ("true", Kind::Integer, Value::Bool(true)),
            ("21", Kind::Integer, number("21")),
            ("21.0", Kind::Integer, number("21")),
            ("-1.5e1", Kind::Integer, number("-15")),
            ("21.5", Kind::Integer, number("21.5")),
            ("1e300", Kind::Integer, number("1e300")),
            ("123456789012345678901234567890.5", Kind::Number, number("123456789012345678901234567890.5")),
            ("1764022070123", Kind::Time, text("2025-11-24T22:07:50.123Z")),
            ("1764022070123.4", Kind::Time, text("2025-11-24T22:07:50.123Z")),
            ("\"2026-01-01\"", Kind::Time, text("2026-01-01")),
            (r#""a\n\u00e4""#, Kind::Text, text("a\nä")),
            (r#"{"a":[1]}"#, Kind::Text, Value::Json(r#"{"a":[1]}"#.into())),
            (r#""a""#, Kind::Json, Value::Json(r#""a""#.into())),
        ] {
            assert_eq!(Value::of_json(json, kind), Ok(value), "{json}");
        }
        assert!(Value::of_json("1e30", Kind::Time).is_err());
        assert!(Value::of_json(r#""\ud800""#, Kind::Text).is_err());
    }

    #[test]
    fn what_jsonb_refuses_goes_in_as_bytes() {
        for (payload, json) in [
            (&b"21.5"[..], "21.5"),
            (b" {\"a\": 1} ", "{\"a\": 1}"),
            (b"", "{\"$bytes\":\"\"}"),
            (b"\xff\x00", "{\"$bytes\":\"ff00\"}"),
            (b"abc", "{\"$bytes\":\"616263\"}"),
            (br#""\u0000""#, "{\"$bytes\":\"225c753030303022\"}"),
            (br#""\\u0000""#, r#""\\u0000""#),
        ] {
            assert_eq!(row_json(payload), json);
        }
    }
}
