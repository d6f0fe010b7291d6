//! Binary frames: bytes, and the numbers in them.
//!
//! An offset says how many bits stand before, as data sheets count; a place of a byte counts from 1, as everywhere.

use super::*;
use crate::functions::emqx::number::{copy_bits, real_of};
use crate::value::place;

pub(super) const FUNCTIONS: &[Function] = &[
    strict("byte_at", 2, 2, byte_at),
    strict("byte_slice", 2, 3, byte_slice),
    strict("bytes", 1, MANY, bytes),
    strict("int_bytes", 2, 3, int_bytes),
    strict("read_float", 3, 4, read_float),
    strict("read_int", 3, 5, read_int),
];

/// Text, bytes and arrays of numbers from 0 to 255, one after the other.
fn bytes<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    if let [one @ (Value::Text(_) | Value::Bytes(_))] = args {
        return Ok(match std::mem::take(one) {
            Value::Text(Cow::Borrowed(text)) => Value::Bytes(Cow::Borrowed(text.as_bytes())),
            Value::Text(Cow::Owned(text)) => Value::Bytes(Cow::Owned(text.into_bytes())),
            bytes => bytes,
        });
    }
    let mut out = Vec::new();
    for arg in args.iter() {
        if let Some(bytes) = arg.as_bytes() {
            within(out.len().saturating_add(bytes.len()), around)?;
            out.extend_from_slice(bytes);
            continue;
        }
        for element in elements(array_of(arg)?) {
            within(out.len().saturating_add(1), around)?;
            out.push(u8::try_from(int_of(&element?.0)?).map_err(|_| TypeError::BadArgument)?);
        }
    }
    Ok(Value::Bytes(Cow::Owned(out)))
}

fn byte_at<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let (bytes, index) = (bytes_of(arg(args, 0))?, int_of(arg(args, 1))?);
    if index == 0 {
        return Err(TypeError::BadArgument);
    }
    let byte = place(index, bytes.len()).and_then(|at| bytes.get(at));
    Ok(byte.map_or(Value::Null, |byte| Value::Int(i64::from(*byte))))
}

fn byte_slice<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let count = args.get(2).map_or(Ok(usize::MAX), count_of)?;
    let (bytes, from) = (bytes_of(arg(args, 0))?, int_of(arg(args, 1))?);
    let range = span_of(bytes.len(), from, count)?;
    Ok(Value::Bytes(Cow::Owned(bytes.get(range).unwrap_or(&[]).to_vec())))
}

/// The words for [`Order`].
pub(super) const ORDERS: [&str; 6] = ["big", "little", "abcd", "dcba", "cdab", "badc"];

/// The order of the bytes of a number: A is the highest.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    Abcd,
    Dcba,
    /// The words of 16 bits the other way round.
    Cdab,
    /// The bytes of each word the other way round.
    Badc,
}

impl Order {
    fn named(word: &str) -> Option<Order> {
        Some(match word {
            "big" | "abcd" => Order::Abcd,
            "little" | "dcba" => Order::Dcba,
            "cdab" => Order::Cdab,
            "badc" => Order::Badc,
            _ => return None,
        })
    }

    /// Bytes with the highest first from bytes in this order, or the other way round.
    fn apply(self, bytes: &mut [u8]) -> Result<(), TypeError> {
        if matches!(self, Order::Cdab | Order::Badc) && !bytes.len().is_multiple_of(2) {
            return Err(TypeError::BadArgument);
        }
        if matches!(self, Order::Dcba | Order::Cdab) {
            bytes.reverse();
        }
        // Turned round in whole, the words are right and the bytes in them not.
        if matches!(self, Order::Cdab | Order::Badc) {
            bytes.chunks_exact_mut(2).for_each(<[u8]>::reverse);
        }
        Ok(())
    }
}

/// The bits that are meant, all of which must be there, in whole bytes, and how many they are.
fn window(args: &[Value<'_>], into: &mut [u8; 8]) -> Result<usize, TypeError> {
    let (bytes, offset, count) = (bytes_of(arg(args, 0))?, int_of(arg(args, 1))?, int_of(arg(args, 2))?);
    let offset = usize::try_from(offset).map_err(|_| TypeError::BadArgument)?;
    let count = usize::try_from(count).ok().filter(|n| (1..=64).contains(n)).ok_or(TypeError::BadArgument)?;
    if offset.checked_add(count).is_none_or(|end| end > bytes.len().saturating_mul(8)) {
        return Err(TypeError::BadArgument);
    }
    copy_bits(bytes, offset, count, into);
    Ok(count)
}

/// Puts bytes in order; fewer bits than whole bytes have only one.
fn ordered_bytes(taken: &mut [u8; 8], count: usize, order: Order) -> Result<&[u8], TypeError> {
    let taken = taken.get_mut(..count.div_ceil(8)).unwrap_or(&mut []);
    if order != Order::Abcd && !count.is_multiple_of(8) {
        return Err(TypeError::BadArgument);
    }
    order.apply(taken).map(|()| &*taken)
}

fn read_int<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let mut taken = [0; 8];
    let count = window(args, &mut taken)?;
    let (mut is_signed, mut order) = (false, Order::Abcd);
    for word in args.iter().skip(3) {
        match text_of(word)? {
            "signed" => is_signed = true,
            "unsigned" => is_signed = false,
            word => order = Order::named(word).ok_or(TypeError::BadArgument)?,
        }
    }
    ordered_bytes(&mut taken, count, order)?;
    // The bits stand at the top; those below them are 0.
    let spare = 64 - count;
    if is_signed {
        Ok(Value::Int(i64::from_be_bytes(taken) >> spare))
    } else {
        i64::try_from(u64::from_be_bytes(taken) >> spare)
            .map(Value::Int)
            .map_err(|_| TypeError::IntegerOverflow)
    }
}

fn read_float<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let mut taken = [0; 8];
    let count = window(args, &mut taken)?;
    let order = Order::named(text_or(args, 3, "big")?).ok_or(TypeError::BadArgument)?;
    real_of(ordered_bytes(&mut taken, count, order)?, count, false)
}

/// As many low bits of a number as bytes.
fn int_bytes<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let (int, count) = (int_of(arg(args, 0))?, int_of(arg(args, 1))?);
    let count = u32::try_from(count).ok().filter(|n| (8..=64).contains(n) && n.is_multiple_of(8));
    let count = count.ok_or(TypeError::BadArgument)?;
    let order = Order::named(text_or(args, 2, "big")?).ok_or(TypeError::BadArgument)?;
    // As a signed or as an unsigned number it must fit.
    if count < 64 && !(-(1_i64 << (count - 1))..1_i64 << count).contains(&int) {
        return Err(TypeError::IntegerOverflow);
    }
    let all = int.to_be_bytes();
    let mut out = all.get(all.len() - count as usize / 8..).unwrap_or(&[]).to_vec();
    order.apply(&mut out)?;
    Ok(Value::Bytes(Cow::Owned(out)))
}

#[cfg(test)]
mod tests {
    use super::super::tests::check;

    #[test]
    fn bytes_and_parts() {
        check(&[
            ("bytes", r#""""#, r#"{"$bytes":""}"#),
            ("bytes", r#""a", [1], {"$bytes":"ff"}"#, r#"{"$bytes":"6101ff"}"#),
            ("bytes", "[-1]", "bad_argument"),
            ("bytes", "[1.5]", "type_mismatch"),
            ("bytes", r#"{"a":1}"#, "type_mismatch"),
            ("bytes", "5", "type_mismatch"),
            ("byte_at", r#""", 1"#, "null"),
            ("byte_at", r#""a", 0"#, "bad_argument"),
            ("byte_at", r#""a", -2"#, "null"),
            ("byte_at", "[1], 1", "type_mismatch"),
            ("byte_slice", r#""abc", 2"#, r#"{"$bytes":"6263"}"#),
            ("byte_slice", r#""abc", 9"#, r#"{"$bytes":""}"#),
            ("byte_slice", r#""abc", 0"#, "bad_argument"),
            ("byte_slice", r#""abc", -2, 1"#, r#"{"$bytes":"62"}"#),
            ("byte_slice", r#""abc", 1, -1"#, r#"{"$bytes":""}"#),
        ]);
    }

    #[test]
    fn numbers() {
        check(&[
            ("read_int", r#"{"$bytes":"0102030405060708"}, 0, 64"#, "72623859790382856"),
            ("read_int", r#"{"$bytes":"ffffffffffffffff"}, 0, 64"#, "integer_overflow"),
            ("read_int", r#"{"$bytes":"ffffffffffffffff"}, 0, 64, "signed""#, "-1"),
            ("read_int", r#"{"$bytes":"0102"}, 0, 16, "little""#, "513"),
            ("read_int", r#"{"$bytes":"feff"}, 0, 16, "signed", "little""#, "-2"),
            ("read_int", r#"{"$bytes":"feff"}, 0, 16, "little", "signed""#, "-2"),
            ("read_int", r#"{"$bytes":"03040102"}, 0, 32, "cdab""#, "16909060"),
            ("read_int", r#"{"$bytes":"02010403"}, 0, 32, "badc""#, "16909060"),
            ("read_int", r#"{"$bytes":"04030201"}, 0, 32, "dcba""#, "16909060"),
            ("read_int", r#"{"$bytes":"80"}, 0, 1"#, "1"),
            ("read_int", r#"{"$bytes":"80"}, 0, 1, "signed""#, "-1"),
            ("read_int", r#"{"$bytes":"80"}, 1, 7"#, "0"),
            ("read_int", r#"{"$bytes":"ff"}, 0, 4, "little""#, "bad_argument"),
            ("read_int", r#"{"$bytes":"ffffff"}, 0, 24, "cdab""#, "bad_argument"),
            ("read_int", r#"{"$bytes":"ff"}, 8, 1"#, "bad_argument"),
            ("read_int", r#"{"$bytes":"ff"}, -1, 1"#, "bad_argument"),
            ("read_int", r#"{"$bytes":"ff"}, 0, 0"#, "bad_argument"),
            ("read_int", r#"{"$bytes":"ff"}, 0, 65"#, "bad_argument"),
            ("read_int", r#"{"$bytes":"ff"}, 9223372036854775807, 64"#, "bad_argument"),
            ("read_int", r#"{"$bytes":"ff"}, 0, 8, "middle""#, "bad_argument"),
            ("read_int", "1, 0, 8", "type_mismatch"),
            ("read_float", r#"{"$bytes":"3e00"}, 0, 16"#, "1.5"),
            ("read_float", r#"{"$bytes":"3ff8000000000000"}, 0, 64"#, "1.5"),
            ("read_float", r#"{"$bytes":"0000c03f"}, 0, 32, "little""#, "1.5"),
            ("read_float", r#"{"$bytes":"7f800000"}, 0, 32"#, "not_finite"),
            ("read_float", r#"{"$bytes":"3fc00000"}, 0, 24"#, "bad_argument"),
            ("read_float", r#"{"$bytes":"c03f0000"}, 0, 32, "badc""#, "1.5"),
            ("int_bytes", "-2, 16", r#"{"$bytes":"fffe"}"#),
            ("int_bytes", "255, 8", r#"{"$bytes":"ff"}"#),
            ("int_bytes", "-129, 8", "integer_overflow"),
            ("int_bytes", "1, 7", "bad_argument"),
            ("int_bytes", "1, 72", "bad_argument"),
            ("int_bytes", r#"16909060, 32, "cdab""#, r#"{"$bytes":"03040102"}"#),
            ("int_bytes", "-1, 64", r#"{"$bytes":"ffffffffffffffff"}"#),
        ]);
    }
}
