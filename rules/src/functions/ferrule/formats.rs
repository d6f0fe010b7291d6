//! Payload formats: [`crate::formats`].

use super::*;
use crate::formats::{Budget, Codec, NODES_MAX};

pub(super) const FUNCTIONS: &[Function] = &[strict("decode", 2, 3, decode), strict("encode", 2, 3, encode)];

/// The format of the first argument, of Protobuf for the message of the third.
fn codec(args: &[Value<'_>], around: &Surroundings) -> Result<Codec, TypeError> {
    let (_, codec) = around.schemas.find(text_of(arg(args, 0))?).ok_or(TypeError::BadArgument)?;
    codec.for_message(args.get(2)).ok_or(TypeError::BadArgument)
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
