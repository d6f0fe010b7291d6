//! Functions that read and write payload formats: [`crate::formats`].

use super::{Function, Surroundings, take};
use crate::TypeError;
use crate::formats::{Budget, Codec};
use crate::value::Value;

/// As many values may a function make: what is made is walked again.
const NODES_MAX: usize = 1 << 16;

/// Those of the default dialect.
pub(super) const DECODE: Function = super::function("decode", 2, 2, true, decode);
pub(super) const ENCODE: Function = super::function("encode", 2, 2, true, encode);

fn codec(args: &[Value<'_>], around: &Surroundings) -> Result<Codec, TypeError> {
    match args.first() {
        Some(Value::Text(name)) => {
            around.schemas.find(name).map(|(_, codec)| codec).ok_or(TypeError::BadArgument)
        }
        _ => Err(TypeError::TypeMismatch),
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
