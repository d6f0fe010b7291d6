//! Functions of schemas that rules declare: [`crate::formats`].

use super::{Given, bytes_of, emqx, take, text_of};
use crate::TypeError;
use crate::formats::{Budget, Codec, NODES_MAX};
use crate::functions::{Function, Surroundings};
use crate::value::Value;

pub(super) const FUNCTIONS: &[Function] = &[
    emqx("schema_check", 2, 3, schema_check),
    emqx("schema_decode", 2, 3, schema_decode),
    emqx("schema_encode", 2, 3, schema_encode),
];

/// The schema of the first argument, for the message of the third.
fn schema(args: &[Value<'_>], around: &Surroundings) -> Result<Codec, TypeError> {
    let name = text_of(args.first().unwrap_or(&Value::Missing))?;
    let codec = around.schemas.schema(&name).ok_or(TypeError::BadArgument)?;
    codec.for_message(args.get(2)).ok_or(TypeError::BadArgument)
}

fn budget(around: &Surroundings) -> Budget {
    Budget { nodes: NODES_MAX, bytes: around.max_text }
}

fn schema_decode<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let codec = schema(args, around)?;
    let value = codec.decode(bytes_of(&take(args, 1))?, budget(around))?;
    Ok(with_text(value))
}

fn schema_encode<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let codec = schema(args, around)?;
    Ok(Value::binary(codec.encode(&take(args, 1), around.max_text)?))
}

fn schema_check<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
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
