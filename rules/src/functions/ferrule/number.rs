//! Numbers: rounding, mathematics, ranges, bits.
//!
//! An integer stays one where that is exact; what is not finite is an error.

use super::*;
use crate::functions::emqx::number::integer_of;
use crate::functions::{random_float, splitmix64};
use crate::sql::ast::Binary;
use crate::value::{arithmetic, finite};

pub(super) const FUNCTIONS: &[Function] = &[
    strict("abs", 1, 1, abs),
    strict("acos", 1, 1, |args, _| real(args, f64::acos)),
    strict("asin", 1, 1, |args, _| real(args, f64::asin)),
    strict("atan", 1, 1, |args, _| real(args, f64::atan)),
    strict("atan2", 2, 2, |args, _| finite(float_of(arg(args, 0))?.atan2(float_of(arg(args, 1))?))),
    strict("bit_and", 2, 2, |args, _| bitwise(args, |a, b| a & b)),
    strict("bit_count", 1, 1, |args, _| Ok(Value::Int(i64::from(int_of(arg(args, 0))?.count_ones())))),
    strict("bit_not", 1, 1, |args, _| Ok(Value::Int(!int_of(arg(args, 0))?))),
    strict("bit_or", 2, 2, |args, _| bitwise(args, |a, b| a | b)),
    strict("bit_xor", 2, 2, |args, _| bitwise(args, |a, b| a ^ b)),
    strict("bits", 3, 3, bits),
    strict("cbrt", 1, 1, |args, _| real(args, f64::cbrt)),
    strict("ceil", 1, 1, |args, _| rounded(args, f64::ceil)),
    strict("ceiling", 1, 1, |args, _| rounded(args, f64::ceil)),
    strict("clamp", 3, 3, clamp),
    strict("cos", 1, 1, |args, _| real(args, f64::cos)),
    strict("cosh", 1, 1, |args, _| real(args, f64::cosh)),
    strict("cot", 1, 1, |args, _| real(args, |x| x.tan().recip())),
    strict("degrees", 1, 1, |args, _| real(args, f64::to_degrees)),
    strict("div", 2, 2, |args, _| arithmetic(Binary::IntDivide, arg(args, 0), arg(args, 1))),
    strict("exp", 1, 1, |args, _| real(args, f64::exp)),
    strict("floor", 1, 1, |args, _| rounded(args, f64::floor)),
    strict("get_bit", 2, 2, get_bit),
    lenient("greatest", 1, MANY, |args, _| most(args, Ordering::Greater)),
    lenient("least", 1, MANY, |args, _| most(args, Ordering::Less)),
    strict("ln", 1, 1, |args, _| real(args, f64::ln)),
    strict("log", 2, 2, log),
    strict("log10", 1, 1, |args, _| real(args, f64::log10)),
    strict("log2", 1, 1, |args, _| real(args, f64::log2)),
    strict("mod", 2, 2, |args, _| arithmetic(Binary::Modulo, arg(args, 0), arg(args, 1))),
    strict("pi", 0, 0, |_, _| Ok(Value::Float(std::f64::consts::PI))),
    strict("pow", 2, 2, power),
    strict("power", 2, 2, power),
    strict("radians", 1, 1, |args, _| real(args, f64::to_radians)),
    strict("random", 0, 2, random),
    strict("round", 1, 2, |args, _| rounded(args, f64::round)),
    strict("scale", 5, 5, scale),
    strict("set_bit", 3, 3, set_bit),
    strict("shift_left", 2, 2, shift_left),
    strict("shift_right", 2, 2, |args, _| Ok(Value::Int(int_of(arg(args, 0))? >> bit_number(arg(args, 1))?))),
    strict("sign", 1, 1, sign),
    strict("sin", 1, 1, |args, _| real(args, f64::sin)),
    strict("sinh", 1, 1, |args, _| real(args, f64::sinh)),
    strict("sqrt", 1, 1, |args, _| real(args, f64::sqrt)),
    strict("tan", 1, 1, |args, _| real(args, f64::tan)),
    strict("tanh", 1, 1, |args, _| real(args, f64::tanh)),
    strict("trunc", 1, 2, |args, _| rounded(args, f64::trunc)),
];

/// A number as a float. Integers beyond 64 bits are not calculated with.
pub(super) fn float_of(value: &Value<'_>) -> Result<f64, TypeError> {
    match value {
        Value::Int(int) => Ok(*int as f64),
        Value::Float(float) => Ok(*float),
        Value::Big(_) => Err(TypeError::IntegerOverflow),
        _ => Err(TypeError::TypeMismatch),
    }
}

/// The integer that a whole float is.
pub(super) fn whole<'a>(whole: f64) -> Given<'a> {
    match integer_of(whole)? {
        Value::Big(_) => Err(TypeError::IntegerOverflow),
        int => Ok(int),
    }
}

fn real<'a>(args: &[Value<'a>], of: fn(f64) -> f64) -> Given<'a> {
    finite(of(float_of(arg(args, 0))?))
}

// === rounding ===

/// Without a number of decimals an integer, with one a float.
fn rounded<'a>(args: &mut [Value<'a>], of: fn(f64) -> f64) -> Given<'a> {
    let decimals = match args.get(1) {
        None => None,
        Some(n) => Some(u8::try_from(int_of(n)?).ok().filter(|&n| n <= 15).ok_or(TypeError::BadArgument)?),
    };
    match (take(args, 0), decimals) {
        (int @ (Value::Int(_) | Value::Big(_)), None) => Ok(int),
        (Value::Int(int), Some(_)) => Ok(Value::Float(int as f64)),
        (Value::Float(float), None) => whole(of(float)),
        (Value::Float(float), Some(decimals)) => {
            let scale = 10f64.powi(i32::from(decimals));
            // 2.345 * 100 is 234.49999999999997: nudged by an ulp, decimals count as they are written.
            let scaled = float * scale;
            let nudged = if scaled < 0.0 { scaled.next_down() } else { scaled.next_up() };
            // Beyond 2^53 a float has no decimals to round.
            let small = scaled.abs() < 9_007_199_254_740_992.0;
            finite(if small { of(nudged) / scale } else { float })
        }
        (Value::Big(_), Some(_)) => Err(TypeError::IntegerOverflow),
        _ => Err(TypeError::TypeMismatch),
    }
}

fn abs<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    match take(args, 0) {
        Value::Int(int) => int.checked_abs().map(Value::Int).ok_or(TypeError::IntegerOverflow),
        Value::Float(float) => Ok(Value::Float(float.abs())),
        Value::Big(Cow::Borrowed(digits)) => Ok(Value::Big(Cow::Borrowed(digits.trim_start_matches('-')))),
        Value::Big(Cow::Owned(digits)) => {
            Ok(Value::Big(Cow::Owned(digits.trim_start_matches('-').to_owned())))
        }
        _ => Err(TypeError::TypeMismatch),
    }
}

fn sign<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    Ok(Value::Int(match arg(args, 0) {
        Value::Int(int) => int.signum(),
        Value::Big(digits) => {
            if digits.starts_with('-') {
                -1
            } else {
                1
            }
        }
        Value::Float(float) => i64::from(*float > 0.0) - i64::from(*float < 0.0),
        _ => return Err(TypeError::TypeMismatch),
    }))
}

// === mathematics ===

fn log<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let (base, x) = (float_of(arg(args, 0))?, float_of(arg(args, 1))?);
    // The quotient of two logarithms is off by an ulp where these are exact.
    finite(match base {
        2.0 => x.log2(),
        10.0 => x.log10(),
        base => x.log(base),
    })
}

fn power<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    finite(float_of(arg(args, 0))?.powf(float_of(arg(args, 1))?))
}

/// Without bounds a float below 1, with two an integer between them, both included.
fn random<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    match args {
        [] => Ok(Value::Float(random_float(around))),
        [low, high] => {
            let (low, high) = (int_of(low)?, int_of(high)?);
            let size = u128::from(low.abs_diff(high)) + 1;
            if low > high {
                return Err(TypeError::BadArgument);
            }
            // The high part of a product: Lemire's way, off by at most 2^-64 of the size.
            let above = (u128::from(splitmix64(&mut around.random[0])) * size) >> 64;
            let int = i128::from(low) + i128::try_from(above).unwrap_or(0);
            i64::try_from(int).map(Value::Int).map_err(|_| TypeError::IntegerOverflow)
        }
        _ => Err(TypeError::BadArgument),
    }
}

// === ranges ===

/// The greatest or the least; NULLs are left out.
fn most<'a>(args: &mut [Value<'a>], wanted: Ordering) -> Given<'a> {
    let mut best = Value::Null;
    for value in args.iter_mut().filter(|value| !matches!(value, Value::Null)) {
        let better = match &best {
            Value::Null => ordered(value, value)?,
            best => ordered(value, best)?,
        };
        if better == wanted || matches!(best, Value::Null) {
            best = std::mem::take(value);
        }
    }
    Ok(best)
}

fn clamp<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let is = |a: usize, b: usize| ordered(arg(args, a), arg(args, b));
    let (low, high, bounds) = (is(0, 1)?, is(0, 2)?, is(1, 2)?);
    if bounds == Ordering::Greater {
        return Err(TypeError::BadArgument);
    }
    let chosen = if low == Ordering::Less {
        1
    } else if high == Ordering::Greater {
        2
    } else {
        0
    };
    Ok(take(args, chosen))
}

/// A straight line through two points: `scale(x, in_low, in_high, out_low, out_high)`.
fn scale<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let at = |index: usize| float_of(arg(args, index));
    let (x, in_low, in_high, out_low, out_high) = (at(0)?, at(1)?, at(2)?, at(3)?, at(4)?);
    if in_low == in_high {
        return Err(TypeError::DivisionByZero);
    }
    // Exact at both ends, which `low + part * (high - low)` is not at the upper one.
    let part = (x - in_low) / (in_high - in_low);
    finite(out_low * (1.0 - part) + out_high * part)
}

// === bits: bit n is the one that counts 2^n ===

fn bitwise<'a>(args: &[Value<'a>], of: fn(i64, i64) -> i64) -> Given<'a> {
    Ok(Value::Int(of(int_of(arg(args, 0))?, int_of(arg(args, 1))?)))
}

/// The number of one of 64 bits.
fn bit_number(value: &Value<'_>) -> Result<u32, TypeError> {
    u32::try_from(int_of(value)?).ok().filter(|n| *n < 64).ok_or(TypeError::BadArgument)
}

fn get_bit<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    Ok(Value::Int(int_of(arg(args, 0))? >> bit_number(arg(args, 1))? & 1))
}

fn set_bit<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let (int, mask) = (int_of(arg(args, 0))?, 1_i64 << bit_number(arg(args, 1))?);
    match arg(args, 2) {
        Value::Int(1) | Value::Bool(true) => Ok(Value::Int(int | mask)),
        Value::Int(0) | Value::Bool(false) => Ok(Value::Int(int & !mask)),
        Value::Int(_) => Err(TypeError::BadArgument),
        _ => Err(TypeError::TypeMismatch),
    }
}

/// So many bits from a bit on, as a number without a sign.
fn bits<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let (int, from, count) = (int_of(arg(args, 0))?, bit_number(arg(args, 1))?, int_of(arg(args, 2))?);
    let count = u32::try_from(count).ok().filter(|n| (1..64).contains(n) && from + n <= 64);
    let mask = (1_i64 << count.ok_or(TypeError::BadArgument)?).wrapping_sub(1);
    Ok(Value::Int(int >> from & mask))
}

/// What is shifted out or into the sign has overflowed.
fn shift_left<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let (int, by) = (int_of(arg(args, 0))?, bit_number(arg(args, 1))?);
    let shifted = int << by;
    if shifted >> by == int { Ok(Value::Int(shifted)) } else { Err(TypeError::IntegerOverflow) }
}

#[cfg(test)]
mod tests {
    use super::super::tests::check;

    #[test]
    fn rounding() {
        check(&[
            ("abs", "-9223372036854775808", "integer_overflow"),
            ("abs", "-123456789012345678901", "123456789012345678901"),
            ("abs", r#""1""#, "type_mismatch"),
            ("abs", "-0.0", "0.0"),
            ("round", "0.5", "1"),
            ("round", "-0.5", "-1"),
            ("round", "1e300", "integer_overflow"),
            ("round", "0.5, 16", "bad_argument"),
            ("round", "-0.125, 2", "-0.13"),
            ("round", "123456789.987, 2", "123456789.99"),
            ("round", "5, 2", "5.0"),
            ("round", "123456789012345678901", "123456789012345678901"),
            ("round", "123456789012345678901, 1", "integer_overflow"),
            ("round", "1.5, -1", "bad_argument"),
            ("round", "1.5, 1.0", "type_mismatch"),
            ("trunc", "0.29, 2", "0.29"),
            ("trunc", "-0.999", "0"),
            ("trunc", "-2.349, 2", "-2.34"),
            ("ceil", "-0.5", "0"),
            ("ceil", "9.3e18", "integer_overflow"),
            ("floor", "-0.5", "-1"),
            ("floor", "true", "type_mismatch"),
            ("sign", "-123456789012345678901", "-1"),
            ("sign", "-0.0", "0"),
            ("sign", r#""1""#, "type_mismatch"),
        ]);
    }

    #[test]
    fn mathematics() {
        check(&[
            ("sqrt", "2.25", "1.5"),
            ("sqrt", "-1", "not_finite"),
            ("ln", "-1", "not_finite"),
            ("log", "10, 0", "not_finite"),
            ("log", "1, 5", "not_finite"),
            ("log", "3, 81", "4.0"),
            ("power", "0, -1", "not_finite"),
            ("power", "10, 400", "not_finite"),
            ("exp", r#""1""#, "type_mismatch"),
            ("exp", "123456789012345678901", "integer_overflow"),
            ("acos", "1.1", "not_finite"),
            ("atan2", "0, 0", "0.0"),
            ("cot", "0", "not_finite"),
            ("tanh", "1000", "1.0"),
            ("div", "7, 0", "division_by_zero"),
            ("div", "7.0, 2", "type_mismatch"),
            ("mod", "7, 0", "division_by_zero"),
            ("mod", "-7.5, 2", "-1.5"),
            ("div", "-9223372036854775808, -1", "integer_overflow"),
        ]);
    }

    #[test]
    fn ranges() {
        check(&[
            ("greatest", "null, null", "null"),
            ("greatest", r#""b", "a""#, r#""b""#),
            ("greatest", "1, 1.0", "1"),
            ("greatest", "[1], [2]", "type_mismatch"),
            ("greatest", r#"1, "a""#, "type_mismatch"),
            ("greatest", "true, false", "true"),
            ("least", "9007199254740993, 9007199254740992.0", "9007199254740992.0"),
            ("clamp", "5, 1, 9", "5"),
            ("clamp", r#""b", "c", "d""#, r#""c""#),
            ("clamp", "5, 9, 1", "bad_argument"),
            ("clamp", "5, 1, null", "null"),
            ("clamp", r#"5, "1", 9"#, "type_mismatch"),
            ("scale", "20, 4, 20, 0, 100", "100.0"),
            ("scale", "24, 4, 20, 0, 100", "125.0"),
            ("scale", "0, 10, 0, 0, 1", "1.0"),
            ("scale", "1, 0, 0, 0, 1", "division_by_zero"),
            ("scale", "1e308, -1e308, 1e308, 0, 1", "not_finite"),
            ("random", "-9223372036854775808, -9223372036854775808", "-9223372036854775808"),
            ("random", "2, 1", "bad_argument"),
            ("random", "1", "bad_argument"),
            ("random", "1.0, 2", "type_mismatch"),
        ]);
    }

    #[test]
    fn bits() {
        check(&[
            ("bit_and", "-1, 255", "255"),
            ("bit_or", "1.0, 1", "type_mismatch"),
            ("bit_xor", "null, 1", "null"),
            ("bit_not", "-9223372036854775808", "9223372036854775807"),
            ("bit_count", "0", "0"),
            ("get_bit", "-1, 63", "1"),
            ("get_bit", "1, 64", "bad_argument"),
            ("get_bit", "1, -1", "bad_argument"),
            ("set_bit", "0, 63, 1", "-9223372036854775808"),
            ("set_bit", "1, 0, 2", "bad_argument"),
            ("set_bit", r#"1, 0, "1""#, "type_mismatch"),
            ("bits", "-1, 60, 4", "15"),
            ("bits", "-1, 0, 63", "9223372036854775807"),
            ("bits", "-1, 60, 5", "bad_argument"),
            ("bits", "1, 0, 0", "bad_argument"),
            ("shift_left", "1, 62", "4611686018427387904"),
            ("shift_left", "1, 63", "integer_overflow"),
            ("shift_left", "-1, 63", "-9223372036854775808"),
            ("shift_left", "1, 64", "bad_argument"),
            ("shift_right", "-1, 63", "-1"),
            ("shift_right", "1, -1", "bad_argument"),
        ]);
    }
}
