//! Payload formats: bytes to values and back.
//!
//! # Constraints
//! Payloads are hostile. A decoder takes no length on trust: what it makes is counted off a [`Budget`] before it is
//! made, texts and bytes are copied only where the input has them, and nesting beyond [`DEPTH_MAX`] is refused, so
//! that no recursion here, or in what walks the tree later, is deeper. A whole payload is one value: bytes behind it
//! are an error.
//!
//! # What values become
//! | format | value |
//! |---|---|
//! | a string of bytes | [`Value::Bytes`], text or not; in JSON text `{"$bytes":"hex"}`, which is bytes again when it is read or encoded |
//! | an integer beyond 64 bits | [`Value::Big`]: passes through, is not calculated with in the default dialect |
//! | a float that is not finite | NULL, as RFC 8949 section 6.1 has it |
//! | a key that is no text | its text, where it is a number, a boolean or UTF-8 |
//! | a key that is there twice | the first counts, as everywhere |
//!
//! What a format or schema cannot hold is refused when encoding ([`FormatError::Unfit`]), never bent.
//!
//! # Names
//! A rule names a format by a word ([`BUILTINS`]) or by a schema that `CREATE SCHEMA` declared. Schemas belong to the
//! rule set ([`Schemas`]): programs share them, and nothing is global.

pub(crate) mod avro;
mod cbor;
mod csv;
mod msgpack;
mod payload;
mod plain;
mod protobuf;
mod schemas;
mod varint;

use std::fmt;
use std::sync::Arc;

use crate::TypeError;
use crate::value::{Value, unhex};

pub(crate) use payload::{Document, Documents, Payload, untagged};
pub(crate) use schemas::{Schemas, declare};
pub(crate) use varint::{put_varint, varint};

/// The deepest nesting that is decoded and encoded. JSON text of it stays readable: [`crate::json::MAX_DEPTH`] is more.
pub(crate) const DEPTH_MAX: usize = 100;

/// The most values that bytes are decoded to. An empty object is a byte on the wire and about a hundred in memory: this is
/// what keeps a payload from becoming more than some 8 MiB.
pub(crate) const NODES_MAX: usize = 1 << 16;

/// Why bytes were not decoded, or a value not encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FormatError {
    /// The bytes are not of the format, or not of the schema.
    Malformed,
    /// Nested deeper than [`DEPTH_MAX`].
    TooDeep,
    /// More values or bytes than may be made.
    TooLarge,
    /// The format or schema has no place for this value.
    Unfit,
}

impl From<FormatError> for TypeError {
    fn from(error: FormatError) -> TypeError {
        match error {
            FormatError::Malformed => TypeError::InvalidFormat,
            FormatError::TooDeep | FormatError::TooLarge => TypeError::BadArgument,
            FormatError::Unfit => TypeError::TypeMismatch,
        }
    }
}

/// What a decoder may make.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    /// Values.
    pub(crate) nodes: usize,
    /// Bytes of texts, of byte strings and of the names that a schema brings.
    pub(crate) bytes: usize,
}

impl Budget {
    /// Counts one value.
    fn node(&mut self) -> Result<(), FormatError> {
        self.nodes = self.nodes.checked_sub(1).ok_or(FormatError::TooLarge)?;
        Ok(())
    }

    /// Counts bytes of a text.
    fn spend(&mut self, bytes: usize) -> Result<(), FormatError> {
        self.bytes = self.bytes.checked_sub(bytes).ok_or(FormatError::TooLarge)?;
        Ok(())
    }
}

/// What is being decoded: the rest of the bytes, and what may still be made of them.
struct Input<'t> {
    rest: &'t [u8],
    budget: Budget,
}

impl<'t> Input<'t> {
    fn take(&mut self, count: usize) -> Result<&'t [u8], FormatError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(FormatError::Malformed)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        self.take(N)?.try_into().map_err(|_| FormatError::Malformed)
    }

    fn byte(&mut self) -> Result<u8, FormatError> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn text(&mut self, count: usize) -> Result<&'t str, FormatError> {
        let bytes = self.take(count)?;
        self.budget.spend(count)?;
        std::str::from_utf8(bytes).map_err(|_| FormatError::Malformed)
    }

    fn bytes(&mut self, count: usize) -> Result<&'t [u8], FormatError> {
        let bytes = self.take(count)?;
        self.budget.spend(count)?;
        Ok(bytes)
    }

    /// The value that all of the input is.
    fn whole<T>(mut self, read: impl FnOnce(&mut Self) -> Result<T, FormatError>) -> Result<T, FormatError> {
        let value = read(&mut self)?;
        if self.rest.is_empty() { Ok(value) } else { Err(FormatError::Malformed) }
    }
}

/// What an encoder writes to.
struct Output {
    bytes: Vec<u8>,
    max: usize,
}

impl Output {
    fn put(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        if self.bytes.len() + bytes.len() > self.max {
            return Err(FormatError::TooLarge);
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }
}

/// A float where it is finite.
fn float(f: f64) -> Value<'static> {
    if f.is_finite() { Value::Float(f) } else { Value::Null }
}

/// An integer without a sign: beyond 63 bits its digits.
fn unsigned(n: u64) -> Value<'static> {
    i64::try_from(n).map_or_else(|_| Value::Big(n.to_string().into()), Value::Int)
}

/// The text of a key.
fn key_text(key: Value<'static>) -> Result<String, FormatError> {
    match key {
        Value::Text(text) => Ok(text.into_owned()),
        Value::Bytes(bytes) => String::from_utf8(bytes.into_owned()).map_err(|_| FormatError::Malformed),
        Value::Bool(_) | Value::Int(_) | Value::Big(_) | Value::Float(_) => {
            let mut text = Vec::new();
            key.write_json(&mut text);
            String::from_utf8(text).map_err(|_| FormatError::Malformed)
        }
        _ => Err(FormatError::Malformed),
    }
}

/// A value to encode, one level of JSON text opened, `{"$bytes":"hex"}` as the bytes that it stands for.
fn opened<'v>(value: &'v Value<'_>) -> Value<'v> {
    let is_text = matches!(value, Value::Json(_));
    let value = value.share().open();
    if is_text
        && let Value::Map(members) = &value
        && let Some(bytes) = tagged_bytes(members.iter().map(|(key, value)| (key.as_str(), value)))
    {
        return Value::Bytes(bytes.into());
    }
    value
}

/// The bytes of `{"$bytes":"hex"}`.
fn tagged_bytes<'m>(mut members: impl Iterator<Item = (&'m str, &'m Value<'static>)>) -> Option<Vec<u8>> {
    match (members.next(), members.next()) {
        (Some(("$bytes", Value::Text(hex))), None) => unhex(hex),
        _ => None,
    }
}

/// Something that decodes and encodes.
#[derive(Clone)]
pub(crate) enum Codec {
    Json,
    Text,
    Binary,
    Cbor,
    MessagePack,
    Csv(Arc<csv::Layout>),
    Sparkplug,
    Avro(Arc<avro::Schema>),
    /// None: the message must be named where the schema is used.
    Protobuf(Arc<protobuf::Schema>, Option<protobuf::MessageId>),
}

/// What is there without a `CREATE SCHEMA`.
pub(crate) const BUILTINS: [&str; 7] = ["json", "text", "binary", "cbor", "msgpack", "csv", "sparkplug"];

impl Codec {
    /// The one of a word of [`BUILTINS`].
    pub(crate) fn builtin(name: &str) -> Option<Codec> {
        Some(match name {
            "json" => Codec::Json,
            "text" => Codec::Text,
            "binary" => Codec::Binary,
            "cbor" => Codec::Cbor,
            "msgpack" => Codec::MessagePack,
            "csv" => Codec::Csv(Arc::default()),
            "sparkplug" => Codec::Sparkplug,
            _ => return None,
        })
    }

    /// The value that the bytes are.
    pub(crate) fn decode(&self, bytes: &[u8], budget: Budget) -> Result<Value<'static>, FormatError> {
        match self {
            Codec::Json => plain::decode_json(bytes, budget),
            Codec::Text => plain::decode_text(bytes, budget),
            Codec::Binary => plain::decode_binary(bytes, budget),
            Codec::Cbor => cbor::decode(bytes, budget),
            Codec::MessagePack => msgpack::decode(bytes, budget),
            Codec::Csv(layout) => csv::decode(layout, bytes, budget),
            Codec::Sparkplug => plain::decode_sparkplug(bytes, budget),
            Codec::Avro(schema) => avro::decode(schema, bytes, budget),
            Codec::Protobuf(schema, message) => {
                protobuf::decode(schema, message.ok_or(FormatError::Malformed)?, bytes, budget)
            }
        }
    }

    /// The bytes of a value, at most `max` of them.
    pub(crate) fn encode(&self, value: &Value<'_>, max: usize) -> Result<Vec<u8>, FormatError> {
        let mut out = Output { bytes: Vec::new(), max };
        match self {
            Codec::Json => plain::encode_json(value, &mut out)?,
            Codec::Text => plain::encode_text(value, &mut out)?,
            Codec::Binary => plain::encode_binary(value, &mut out)?,
            Codec::Cbor => cbor::encode(value, 0, &mut out)?,
            Codec::MessagePack => msgpack::encode(value, 0, &mut out)?,
            Codec::Csv(layout) => csv::encode(layout, value, &mut out)?,
            Codec::Sparkplug => plain::encode_sparkplug(value, &mut out)?,
            Codec::Avro(schema) => avro::encode(schema, value, &mut out)?,
            Codec::Protobuf(schema, message) => {
                protobuf::encode(schema, message.ok_or(FormatError::Unfit)?, value, &mut out)?;
            }
        }
        Ok(out.bytes)
    }
}

impl Codec {
    /// The format that a function's argument makes of it: the same schema for the message that is named there.
    pub(crate) fn for_message(&self, message: Option<&Value<'_>>) -> Option<Codec> {
        match message {
            None => Some(self.clone()),
            Some(Value::Text(name)) => self.of_message(name),
            Some(_) => None,
        }
    }

    /// The same schema for another message of it; other formats have none.
    fn of_message(&self, name: &str) -> Option<Codec> {
        match self {
            Codec::Protobuf(schema, _) => {
                Some(Codec::Protobuf(Arc::clone(schema), Some(schema.message(name)?)))
            }
            _ => None,
        }
    }

    /// The members that an object may have, where that is known; others would be left out.
    pub(crate) fn members(&self) -> Option<Vec<&str>> {
        match self {
            Codec::Csv(layout) if !layout.columns.is_empty() => {
                Some(layout.columns.iter().map(|(name, _)| name.as_str()).collect())
            }
            Codec::Avro(schema) => schema.members(),
            Codec::Protobuf(schema, Some(message)) => Some(schema.members(*message)),
            _ => None,
        }
    }

    /// Why it cannot stand alone as the format of a rule or an INSERT.
    pub(crate) fn incomplete(&self) -> Option<&'static str> {
        matches!(self, Codec::Protobuf(_, None))
            .then_some("it has several messages: the schema needs `message = '...'`")
    }
}

impl fmt::Debug for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Codec::Json => "json",
            Codec::Text => "text",
            Codec::Binary => "binary",
            Codec::Cbor => "cbor",
            Codec::MessagePack => "msgpack",
            Codec::Csv(_) => "csv",
            Codec::Sparkplug => "sparkplug",
            Codec::Avro(_) => "avro",
            Codec::Protobuf(..) => "protobuf",
        })
    }
}

#[cfg(test)]
pub(super) mod tests;
