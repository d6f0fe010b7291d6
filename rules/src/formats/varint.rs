//! Integers of variable length, seven bits a byte, the lowest first: protobuf's and Avro's.

use super::FormatError;

/// At most ten bytes; bits beyond 64 are dropped, as protobuf has it.
pub(crate) fn varint(rest: &mut &[u8]) -> Result<u64, FormatError> {
    let mut number = 0u64;
    for shift in (0..70).step_by(7) {
        let (&byte, behind) = rest.split_first().ok_or(FormatError::Malformed)?;
        *rest = behind;
        number |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte < 0x80 {
            return Ok(number);
        }
    }
    Err(FormatError::Malformed)
}

pub(crate) fn put_varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push((number & 0x7f) as u8);
}

/// The sign as the lowest bit, so that small negative numbers are short.
pub(super) fn zigzag(n: i64) -> u64 {
    (n << 1 ^ n >> 63).cast_unsigned()
}

pub(super) fn unzigzag(n: u64) -> i64 {
    (n >> 1).cast_signed() ^ -(n & 1).cast_signed()
}
