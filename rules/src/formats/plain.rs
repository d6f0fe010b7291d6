//! Formats that are what they are: JSON, text, bytes; and Sparkplug B, which EMQX's dialect reads too.

use super::{Budget, DEPTH_MAX, FormatError, Output, opened};
use crate::functions::emqx::sparkplug;
use crate::json::{self, JsonError};
use crate::value::Value;

/// Arrays and objects stay JSON text, so there is nothing to count but its length.
pub(super) fn decode_json(bytes: &[u8], mut budget: Budget) -> Result<Value<'static>, FormatError> {
    budget.spend(bytes.len())?;
    let found = json::document(bytes).map_err(|error| match error {
        JsonError::Invalid => FormatError::Malformed,
        JsonError::TooDeep => FormatError::TooDeep,
    })?;
    Value::found(bytes, found).map(Value::into_owned).map_err(|_| FormatError::Malformed)
}

pub(super) fn decode_text(bytes: &[u8], mut budget: Budget) -> Result<Value<'static>, FormatError> {
    budget.spend(bytes.len())?;
    let text = std::str::from_utf8(bytes).map_err(|_| FormatError::Malformed)?;
    Ok(Value::Text(text.to_owned().into()))
}

pub(super) fn decode_binary(bytes: &[u8], mut budget: Budget) -> Result<Value<'static>, FormatError> {
    budget.spend(bytes.len())?;
    Ok(Value::Bytes(bytes.to_vec().into()))
}

pub(super) fn decode_sparkplug(bytes: &[u8], budget: Budget) -> Result<Value<'static>, FormatError> {
    sparkplug::payload(bytes, true, budget.bytes).map_err(|_| FormatError::Malformed)
}

/// A tree is walked to its end: not one that is too deep.
pub(super) fn encode_json(value: &Value<'_>, out: &mut Output) -> Result<(), FormatError> {
    let mut nodes = out.max;
    value.weigh(&mut nodes, DEPTH_MAX).map_err(|_| FormatError::TooLarge)?;
    let mut text = Vec::new();
    value.write_json(&mut text);
    out.put(&text)
}

pub(super) fn encode_text(value: &Value<'_>, out: &mut Output) -> Result<(), FormatError> {
    match opened(value) {
        Value::Text(text) => out.put(text.as_bytes()),
        Value::Bytes(bytes) => match std::str::from_utf8(&bytes) {
            Ok(text) => out.put(text.as_bytes()),
            Err(_) => Err(FormatError::Unfit),
        },
        _ => encode_json(value, out),
    }
}

pub(super) fn encode_binary(value: &Value<'_>, out: &mut Output) -> Result<(), FormatError> {
    out.put(opened(value).as_bytes().ok_or(FormatError::Unfit)?)
}

pub(super) fn encode_sparkplug(value: &Value<'_>, out: &mut Output) -> Result<(), FormatError> {
    let bytes = sparkplug::payload_bytes(&opened(value), true, out.max).map_err(|_| FormatError::Unfit)?;
    out.put(&bytes)
}
