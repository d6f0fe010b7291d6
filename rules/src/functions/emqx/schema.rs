//! Functions of schemas that rules declare: [`crate::formats`].

use std::sync::Arc;

use super::{Given, bytes_of, emqx, int_of, take, text_of};
use crate::TypeError;
use crate::formats::avro::{self, framed};
use crate::formats::{Budget, Codec, NODES_MAX};
use crate::functions::{Function, Surroundings};
use crate::value::Value;

pub(super) const FUNCTIONS: &[Function] = &[
    emqx("avro_decode", 2, 3, avro_decode),
    emqx("avro_encode", 3, 3, avro_encode),
    emqx("schema_check", 2, 3, schema_check),
    emqx("schema_decode", 2, 3, schema_decode),
    emqx("schema_decode_tagged", 2, 3, avro_decode),
    emqx("schema_encode", 2, 3, schema_encode),
    emqx("schema_encode_and_tag", 3, 4, schema_encode_and_tag),
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

/// The schema that the registry of the first argument calls `id`. Registries are not asked: CREATE SCHEMA says what they have.
fn registered(
    args: &[Value<'_>],
    id: i64,
    around: &mut Surroundings,
) -> Result<Arc<avro::Schema>, TypeError> {
    let registry = text_of(args.first().unwrap_or(&Value::Missing))?;
    let found = u32::try_from(id).ok().and_then(|id| around.schemas.of_registry(&registry, id)).cloned();
    found.ok_or_else(|| {
        around.note = Some(format!("no schema is {id} in the registry '{registry}'"));
        TypeError::BadArgument
    })
}

/// With an id the datum stands alone, without one it is in a frame that says the id.
fn avro_decode<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let data = take(args, 1);
    let bytes = bytes_of(&data)?;
    let (id, datum) = match args.get(2) {
        Some(id) => (int_of(id)?, bytes),
        None => framed(bytes).map(|(id, datum)| (i64::from(id), datum)).ok_or(TypeError::InvalidFormat)?,
    };
    let schema = registered(args, id, around)?;
    Ok(with_text(schema.decode_alone(datum, budget(around))?))
}

fn avro_encode<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let id = int_of(args.get(2).unwrap_or(&Value::Missing))?;
    let schema = registered(args, id, around)?;
    Ok(Value::binary(schema.encode_alone(&take(args, 1), around.max_text)?))
}

/// The subject, by which EMQX asks the registry for the id, is not needed: the schema has it.
fn schema_encode_and_tag<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let name = text_of(args.first().unwrap_or(&Value::Missing))?;
    let registry = text_of(args.get(1).unwrap_or(&Value::Missing))?;
    let codec = around.schemas.schema(&name).cloned().ok_or(TypeError::BadArgument)?;
    let known = match &codec {
        Codec::Avro(schema) => schema.registered(),
        _ => None,
    };
    if known.is_none_or(|(_, of)| of.is_some_and(|of| of != registry)) {
        around.note = Some(format!("the schema '{name}' is not of the registry '{registry}'"));
        return Err(TypeError::BadArgument);
    }
    Ok(Value::binary(codec.encode(&take(args, 2), around.max_text)?))
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
