//! Functions that read and write payload formats: [`crate::formats`].

use super::{Function, Surroundings, take};
use crate::TypeError;
use crate::formats::{Budget, Codec, NODES_MAX};
use crate::value::Value;

/// Those of the default dialect.
pub(super) const DECODE: Function = super::function("decode", 2, 3, true, decode);
pub(super) const ENCODE: Function = super::function("encode", 2, 3, true, encode);

/// The format of the first argument, of Protobuf for the message of the third.
fn codec(args: &[Value<'_>], around: &Surroundings) -> Result<Codec, TypeError> {
    let Some(Value::Text(name)) = args.first() else { return Err(TypeError::TypeMismatch) };
    of_message(around.schemas.find(name).map(|(_, codec)| codec), args)
}

fn of_message(codec: Option<Codec>, args: &[Value<'_>]) -> Result<Codec, TypeError> {
    let codec = codec.ok_or(TypeError::BadArgument)?;
    match args.get(2) {
        None => Ok(codec),
        Some(Value::Text(message)) => codec.of_message(message).ok_or(TypeError::BadArgument),
        Some(_) => Err(TypeError::TypeMismatch),
    }
}

fn budget(around: &Surroundings) -> Budget {
    Budget { nodes: NODES_MAX, bytes: around.max_text }
}

fn decode<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Result<Value<'a>, TypeError> {
    let codec = codec(args, around)?;
    let bytes = take(args, 1);
    let value = codec.decode(bytes.as_bytes().ok_or(TypeError::TypeMismatch)?, budget(around))?;
    Ok(match value {
        // The default dialect's arrays and objects are text.
        Value::List(_) | Value::Map(_) => {
            let mut text = Vec::new();
            value.write_json(&mut text);
            if text.len() > around.max_text {
                return Err(TypeError::BadArgument);
            }
            Value::Json(String::from_utf8(text).map_err(|_| TypeError::TypeMismatch)?.into())
        }
        other => other,
    })
}

fn encode<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Result<Value<'a>, TypeError> {
    let codec = codec(args, around)?;
    let bytes = codec.encode(&take(args, 1), around.max_text)?;
    Ok(match codec {
        Codec::Json | Codec::Text | Codec::Csv(_) => Value::binary(bytes),
        _ => Value::Bytes(bytes.into()),
    })
}

// === EMQX's dialect: schemas that are declared ===

/// Those of EMQX's dialect.
pub(super) const EMQX: &[Function] = &[
    super::function("schema_check", 2, 3, false, schema_check),
    super::function("schema_decode", 2, 3, false, schema_decode),
    super::function("schema_encode", 2, 3, false, schema_encode),
];

/// What they mean.
pub(super) const EMQX_TOML: &str = include_str!("formats.toml");

/// The schema of the first argument, as above.
fn schema(args: &[Value<'_>], around: &Surroundings) -> Result<Codec, TypeError> {
    let Some(Value::Text(name)) = args.first() else { return Err(TypeError::TypeMismatch) };
    of_message(around.schemas.schema(name).cloned(), args)
}

fn schema_decode<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Result<Value<'a>, TypeError> {
    let codec = schema(args, around)?;
    let bytes = take(args, 1);
    let value = codec.decode(bytes.as_bytes().ok_or(TypeError::TypeMismatch)?, budget(around))?;
    Ok(with_text(value))
}

fn schema_encode<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Result<Value<'a>, TypeError> {
    let codec = schema(args, around)?;
    Ok(Value::binary(codec.encode(&take(args, 1), around.max_text)?))
}

fn schema_check<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Result<Value<'a>, TypeError> {
    let codec = schema(args, around)?;
    let data = take(args, 1);
    Ok(Value::Bool(match data.as_bytes() {
        Some(bytes) => codec.decode(bytes, budget(around)).is_ok(),
        None => codec.encode(&data, around.max_text).is_ok(),
    }))
}

/// A tree as EMQX has it: bytes that are UTF-8 are text. Recursion is bounded by what is decoded.
fn with_text(value: Value<'static>) -> Value<'static> {
    match value {
        Value::Bytes(bytes) => Value::binary(bytes.into_owned()),
        Value::List(items) => Value::list(items.iter().cloned().map(with_text).collect()),
        Value::Map(members) => {
            Value::map(members.iter().map(|(key, value)| (key.clone(), with_text(value.clone()))).collect())
        }
        other => other,
    }
}
