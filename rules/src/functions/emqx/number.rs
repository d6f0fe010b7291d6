//! Arithmetic, mathematics, bits.

use num_bigint::BigInt;

use super::{Given, bytes_of, emqx, int_of, owned, take};
use crate::emqx::values;
use crate::functions::{Function, Surroundings, random_float};
use crate::sql::ast::Binary;
use crate::value::{Value, finite};
use crate::{TypeError, big};

pub(super) const FUNCTIONS: &[Function] = &[
    emqx("abs", 1, 1, abs),
    emqx("acos", 1, 1, |args, _| real(args, f64::acos)),
    emqx("acosh", 1, 1, |args, _| real(args, f64::acosh)),
    emqx("asin", 1, 1, |args, _| real(args, f64::asin)),
    emqx("asinh", 1, 1, |args, _| real(args, f64::asinh)),
    emqx("atan", 1, 1, |args, _| real(args, f64::atan)),
    emqx("atanh", 1, 1, |args, _| real(args, f64::atanh)),
    emqx("bitand", 2, 2, |args, _| bits(args, |a, b| a & b)),
    emqx("bitnot", 1, 1, bitnot),
    emqx("bitor", 2, 2, |args, _| bits(args, |a, b| a | b)),
    emqx("bitsize", 1, 1, |args, _| size(args, 8)),
    emqx("bitsl", 2, 2, |args, _| shift(args, true)),
    emqx("bitsr", 2, 2, |args, _| shift(args, false)),
    emqx("bitxor", 2, 2, |args, _| bits(args, |a, b| a ^ b)),
    emqx("bytesize", 1, 1, |args, _| size(args, 1)),
    emqx("ceil", 1, 1, |args, _| whole(args, f64::ceil)),
    emqx("cos", 1, 1, |args, _| real(args, f64::cos)),
    emqx("cosh", 1, 1, |args, _| real(args, f64::cosh)),
    emqx("div", 2, 2, |args, _| integers(args, Binary::IntDivide)),
    emqx("eq", 2, 2, eq),
    emqx("exp", 1, 1, |args, _| real(args, f64::exp)),
    emqx("floor", 1, 1, |args, _| whole(args, f64::floor)),
    emqx("fmod", 2, 2, fmod),
    emqx("log", 1, 1, |args, _| real(args, f64::ln)),
    emqx("log10", 1, 1, |args, _| real(args, f64::log10)),
    emqx("log2", 1, 1, |args, _| real(args, f64::log2)),
    emqx("mod", 2, 2, |args, _| integers(args, Binary::Modulo)),
    emqx("power", 2, 2, power),
    emqx("random", 0, 0, |_, around| Ok(Value::Float(random_float(around)))),
    emqx("round", 1, 1, |args, _| whole(args, f64::round)),
    emqx("sin", 1, 1, |args, _| real(args, f64::sin)),
    emqx("sinh", 1, 1, |args, _| real(args, f64::sinh)),
    emqx("sqrt", 1, 1, |args, _| real(args, f64::sqrt)),
    emqx("subbits", 2, 6, subbits),
    emqx("tan", 1, 1, |args, _| real(args, f64::tan)),
    emqx("tanh", 1, 1, |args, _| real(args, f64::tanh)),
];

fn real<'a>(args: &mut [Value<'a>], of: fn(f64) -> f64) -> Given<'a> {
    // Outside of its domain a function is not a number, or infinite.
    finite(of(values::float(&take(args, 0))?))
}

/// Of an integer the integer itself.
fn whole<'a>(args: &mut [Value<'a>], of: fn(f64) -> f64) -> Given<'a> {
    match take(args, 0) {
        Value::Float(f) => integer_of(of(f)),
        int @ (Value::Int(_) | Value::Big(_)) => Ok(int),
        _ => Err(TypeError::TypeMismatch),
    }
}

/// The integer that a whole float is, however large.
pub(in crate::functions) fn integer_of<'a>(whole: f64) -> Given<'a> {
    // Both bounds are exact floats; the upper one is excluded.
    if (-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0).contains(&whole) {
        return Ok(Value::Int(whole as i64));
    }
    let digits = Value::Big(format!("{whole:.0}").into());
    if whole.is_finite() { big::value(&big::integer(&digits)?) } else { Err(TypeError::NotFinite) }
}

fn abs<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let integer = big::integer(&take(args, 0))?;
    big::value(&BigInt::from(integer.magnitude().clone()))
}

fn integers<'a>(args: &mut [Value<'a>], op: Binary) -> Given<'a> {
    match (take(args, 0), take(args, 1)) {
        (Value::Float(_), _) | (_, Value::Float(_)) => Err(TypeError::TypeMismatch),
        (a, b) => values::arithmetic(op, &a, &b),
    }
}

/// 1 is 1.0 here, and text is never a number.
fn eq<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    Ok(Value::Bool(match (take(args, 0), take(args, 1)) {
        (
            a @ (Value::Int(_) | Value::Float(_) | Value::Big(_)),
            b @ (Value::Int(_) | Value::Float(_) | Value::Big(_)),
        ) => values::compare(Binary::Eq, &a, &b)?,
        (a, b) => values::same(&a, &b),
    }))
}

fn fmod<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let (a, b) = (values::float(&take(args, 0))?, values::float(&take(args, 1))?);
    if b == 0.0 { Err(TypeError::DivisionByZero) } else { finite(a % b) }
}

fn power<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    finite(values::float(&take(args, 0))?.powf(values::float(&take(args, 1))?))
}

// === bits ===

fn bits<'a>(args: &mut [Value<'a>], of: fn(BigInt, BigInt) -> BigInt) -> Given<'a> {
    big::value(&of(big::integer(&take(args, 0))?, big::integer(&take(args, 1))?))
}

fn bitnot<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    big::value(&!big::integer(&take(args, 0))?)
}

fn shift<'a>(args: &mut [Value<'a>], left: bool) -> Given<'a> {
    let (value, by) = (big::integer(&take(args, 0))?, int_of(&take(args, 1))?);
    // A shift by a negative number goes the other way.
    let (left, by) = (left == (by >= 0), by.unsigned_abs());
    match (left, usize::try_from(by)) {
        (true, Ok(by @ 0..=4_096)) => big::value(&(value << by)),
        (true, _) if value == BigInt::ZERO => Ok(Value::Int(0)),
        (true, _) => Err(TypeError::IntegerOverflow),
        // Behind the last bit there is only the sign.
        (false, by) => big::value(&(value >> by.unwrap_or(usize::MAX).min(8_192))),
    }
}

fn size<'a>(args: &mut [Value<'a>], factor: usize) -> Given<'a> {
    let bytes = bytes_of(args.first().unwrap_or(&Value::Missing))?.len();
    i64::try_from(bytes * factor).map(Value::Int).map_err(|_| TypeError::BadArgument)
}

/// `subbits(bytes, length)`, `subbits(bytes, start, length, type, sign, endian)`: at most 4,096 bits as an integer.
fn subbits<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let data = take(args, 0);
    let bytes = bytes_of(&data)?;
    let (start, length) = match args.len() {
        2 => (1, int_of(&take(args, 1))?),
        _ => (int_of(&take(args, 1))?, int_of(&take(args, 2))?),
    };
    let word = |at: usize, default: &'static str| match args.get(at) {
        None => Ok(default.to_owned()),
        Some(Value::Text(word)) => Ok(word.to_string()),
        Some(_) => Err(TypeError::TypeMismatch),
    };
    let (kind, sign, endian) = (word(3, "integer")?, word(4, "unsigned")?, word(5, "big")?);
    let start = usize::try_from(start.checked_sub(1).ok_or(TypeError::BadArgument)?);
    let (Ok(start), Ok(length)) = (start, usize::try_from(length)) else {
        return Err(TypeError::BadArgument);
    };
    let all = bytes.len() * 8;
    if start >= all {
        return Ok(Value::Missing);
    }
    let length = length.min(all - start);
    let mut taken = vec![0; length.div_ceil(8)];
    copy_bits(bytes, start, length, &mut taken);
    let is_little = match endian.as_str() {
        "big" => false,
        "little" => true,
        _ => return Err(TypeError::BadArgument),
    };
    match kind.as_str() {
        "integer" => integer(taken, length, sign.as_str(), is_little),
        "float" => real_of(&taken, length, is_little),
        "bits" if length % 8 == 0 => Ok(Value::binary(taken)),
        _ => Err(TypeError::BadArgument),
    }
}

/// Puts so many bits from a bit on, the highest first, into whole bytes that are 0; what is left of the last one stays so.
pub(in crate::functions) fn copy_bits(bytes: &[u8], start: usize, length: usize, into: &mut [u8]) {
    let bit = |at: usize| bytes.get(at / 8).is_some_and(|byte| byte >> (7 - at % 8) & 1 == 1);
    for at in 0..length {
        if let Some(byte) = into.get_mut(at / 8).filter(|_| bit(start + at)) {
            *byte |= 0x80 >> (at % 8);
        }
    }
}

fn integer<'a>(mut taken: Vec<u8>, length: usize, sign: &str, is_little: bool) -> Given<'a> {
    if length > 4_096 {
        return Err(TypeError::IntegerOverflow);
    }
    let spare = taken.len() * 8 - length;
    let magnitude = if is_little {
        // The bits of the last, incomplete byte are its low ones.
        if let Some(last) = taken.last_mut() {
            *last >>= spare;
        }
        BigInt::from_bytes_le(num_bigint::Sign::Plus, &taken)
    } else {
        BigInt::from_bytes_be(num_bigint::Sign::Plus, &taken) >> spare
    };
    let value = match sign {
        "unsigned" => magnitude,
        "signed" if length > 0 && magnitude.bit(length as u64 - 1) => magnitude - (BigInt::from(1) << length),
        "signed" => magnitude,
        _ => return Err(TypeError::BadArgument),
    };
    big::value(&value)
}

/// The float that so many bits are: 16, 32 or 64.
pub(in crate::functions) fn real_of<'a>(taken: &[u8], length: usize, is_little: bool) -> Given<'a> {
    let add = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
    let number = if is_little { taken.iter().rfold(0, add) } else { taken.iter().fold(0, add) };
    finite(match length {
        16 => half(number as u16),
        32 => f64::from(f32::from_bits(number as u32)),
        64 => f64::from_bits(number),
        _ => return Err(TypeError::BadArgument),
    })
}

/// IEEE 754's binary16.
fn half(bits: u16) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 0x3FF));
    let magnitude = match exponent {
        0 => fraction * 2_f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1.0 + fraction / 1_024.0) * 2_f64.powi(exponent - 15),
    };
    if bits >> 15 == 1 { -magnitude } else { magnitude }
}

/// A number with at most so many decimals and no zeros behind the last one that counts; one stays (`1.0`).
pub(super) fn compact<'a>(value: f64, decimals: usize) -> Value<'a> {
    let text = format!("{value:.decimals$}");
    match text.split_once('.') {
        Some((whole, rest)) => {
            let rest = rest.trim_end_matches('0');
            owned(format!("{whole}.{}", if rest.is_empty() { "0" } else { rest }))
        }
        None => owned(format!("{text}.0")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::check;

    #[test]
    fn numbers() {
        check(&[
            ("abs", "[-5]", "5"),
            ("abs", "[-5.5]", "error"),
            ("abs", "[-9223372036854775808]", "9223372036854775808"),
            ("ceil", "[1.2]", "2"),
            ("floor", "[-1.2]", "-2"),
            ("round", "[2.5]", "3"),
            ("round", "[-2.5]", "-3"),
            ("round", "[\"2\"]", "error"),
            ("sqrt", "[4]", "2.0"),
            ("sqrt", "[-1]", "error"),
            ("log", "[0]", "error"),
            ("log10", "[1000]", "3.0"),
            ("power", "[2, 10]", "1024.0"),
            ("fmod", "[5.5, 2]", "1.5"),
            ("fmod", "[5.5, 0]", "error"),
            ("div", "[7, 2]", "3"),
            ("mod", "[-7, 2]", "-1"),
            ("mod", "[7.0, 2]", "error"),
            ("eq", "[1, 1.0]", "true"),
            ("eq", "[1, \"1\"]", "false"),
            ("ceil", "[{\"$undefined\":true}]", "error"),
            ("abs", "[null]", "error"),
        ]);
    }

    #[test]
    fn bits() {
        check(&[
            ("bitnot", "[10]", "-11"),
            ("bitand", "[6, 3]", "2"),
            ("bitor", "[6, 3]", "7"),
            ("bitxor", "[6, 3]", "5"),
            ("bitsl", "[1, 64]", "18446744073709551616"),
            ("bitsl", "[1, 5000]", "error"),
            ("bitsr", "[-8, 1]", "-4"),
            ("bitsr", "[8, -1]", "16"),
            ("bitsize", "[\"abc\"]", "24"),
            ("bytesize", "[{\"$bytes\":\"00ff\"}]", "2"),
            ("subbits", "[{\"$bytes\":\"ff01\"}, 4]", "15"),
            ("subbits", "[{\"$bytes\":\"ff01\"}, 9, 8]", "1"),
            ("subbits", "[{\"$bytes\":\"ff01\"}, 1, 8, \"integer\", \"signed\"]", "-1"),
            ("subbits", "[{\"$bytes\":\"0100\"}, 1, 16, \"integer\", \"unsigned\", \"little\"]", "1"),
            ("subbits", "[{\"$bytes\":\"3fc00000\"}, 1, 32, \"float\"]", "1.5"),
            ("subbits", "[{\"$bytes\":\"3e00\"}, 1, 16, \"float\"]", "1.5"),
            ("subbits", "[{\"$bytes\":\"3e00\"}, 1, 15, \"float\"]", "error"),
            ("subbits", "[{\"$bytes\":\"6162\"}, 9, 8, \"bits\"]", "\"b\""),
            ("subbits", "[{\"$bytes\":\"ff\"}, 1, 99]", "255"),
            ("subbits", "[{\"$bytes\":\"ff\"}, 9, 1]", "\"undefined\""),
            ("subbits", "[{\"$bytes\":\"ff\"}, 0, 1]", "error"),
            ("subbits", "[5, 1]", "error"),
        ]);
    }
}
