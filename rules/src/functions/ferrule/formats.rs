//! Payload formats: [`crate::formats`].

use super::*;
use crate::formats::{Budget, Codec};

/// As many values may a function make: what is made is walked again.
const NODES_MAX: usize = 1 << 16;

pub(super) const FUNCTIONS: &[Function] = &[strict("decode", 2, 2, decode), strict("encode", 2, 2, encode)];

fn codec(args: &[Value<'_>], around: &Surroundings) -> Result<Codec, TypeError> {
    let found = around.schemas.find(text_of(arg(args, 0))?);
    found.map(|(_, codec)| codec).ok_or(TypeError::BadArgument)
}

fn decode<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let budget = Budget { nodes: NODES_MAX, bytes: around.max_text };
    Ok(codec(args, around)?.decode(bytes_of(arg(args, 1))?, budget)?)
}

fn encode<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let codec = codec(args, around)?;
    let bytes = codec.encode(arg(args, 1), around.max_text)?;
    Ok(match codec {
        Codec::Json | Codec::Text | Codec::Csv(_) => Value::binary(bytes),
        _ => Value::Bytes(bytes.into()),
    })
}
