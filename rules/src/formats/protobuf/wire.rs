//! The wire format: fields of a message, one after the other, each with a number and one of four shapes.
//!
//! Groups, which nobody writes any more, are passed over.

use crate::formats::FormatError;
use crate::formats::varint::{put_varint, varint};

const VARINT: u64 = 0;
const FIXED_64: u64 = 1;
const SIZED: u64 = 2;
const GROUP: u64 = 3;
const GROUP_END: u64 = 4;
const FIXED_32: u64 = 5;

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Raw<'t> {
    Varint(u64),
    Fixed64([u8; 8]),
    Sized(&'t [u8]),
    Fixed32([u8; 4]),
}

fn take<'t>(rest: &mut &'t [u8], count: usize) -> Result<&'t [u8], FormatError> {
    let (taken, behind) = rest.split_at_checked(count).ok_or(FormatError::Malformed)?;
    *rest = behind;
    Ok(taken)
}

pub(super) fn array<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], FormatError> {
    take(rest, N)?.try_into().map_err(|_| FormatError::Malformed)
}

fn raw<'t>(rest: &mut &'t [u8], wire: u64) -> Result<Raw<'t>, FormatError> {
    Ok(match wire {
        VARINT => Raw::Varint(varint(rest)?),
        FIXED_64 => Raw::Fixed64(array(rest)?),
        FIXED_32 => Raw::Fixed32(array(rest)?),
        SIZED => {
            let size = usize::try_from(varint(rest)?).map_err(|_| FormatError::Malformed)?;
            Raw::Sized(take(rest, size)?)
        }
        _ => return Err(FormatError::Malformed),
    })
}

/// The next field; none at the end.
pub(super) fn field<'t>(rest: &mut &'t [u8]) -> Result<Option<(u32, Raw<'t>)>, FormatError> {
    let mut groups = 0usize;
    loop {
        if rest.is_empty() {
            return if groups == 0 { Ok(None) } else { Err(FormatError::Malformed) };
        }
        let tag = varint(rest)?;
        let number = u32::try_from(tag >> 3).map_err(|_| FormatError::Malformed)?;
        match tag & 7 {
            _ if number == 0 => return Err(FormatError::Malformed),
            GROUP => groups += 1,
            GROUP_END => groups = groups.checked_sub(1).ok_or(FormatError::Malformed)?,
            wire => {
                let raw = raw(rest, wire)?;
                if groups == 0 {
                    return Ok(Some((number, raw)));
                }
            }
        }
    }
}

pub(super) fn put(number: u32, raw: Raw<'_>, out: &mut Vec<u8>) {
    let wire = match raw {
        Raw::Varint(_) => VARINT,
        Raw::Fixed64(_) => FIXED_64,
        Raw::Sized(_) => SIZED,
        Raw::Fixed32(_) => FIXED_32,
    };
    put_varint(u64::from(number) << 3 | wire, out);
    put_bare(raw, out);
}

/// Without number, as in a packed list.
pub(super) fn put_bare(raw: Raw<'_>, out: &mut Vec<u8>) {
    match raw {
        Raw::Varint(number) => put_varint(number, out),
        Raw::Fixed64(bytes) => out.extend_from_slice(&bytes),
        Raw::Fixed32(bytes) => out.extend_from_slice(&bytes),
        Raw::Sized(bytes) => {
            put_varint(bytes.len() as u64, out);
            out.extend_from_slice(bytes);
        }
    }
}
