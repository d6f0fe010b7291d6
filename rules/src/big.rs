//! Integers of any size up to 4,096 bits: EMQX's dialect calculates with them.

use std::borrow::Cow;

use num_bigint::BigInt;

use crate::TypeError;
use crate::value::Value;

/// The most bits of an integer that is calculated with: a bound on time, far beyond what identifiers need.
const BITS_MAX: u64 = 4_096;
/// As many decimal digits have no more bits than that, and some do that have one more.
const DIGITS_MAX: usize = 1_233;

/// The integer that a value is.
///
/// # Errors
/// [`TypeError::TypeMismatch`]: it is none; [`TypeError::IntegerOverflow`]: it is longer than is calculated with.
pub(crate) fn integer(value: &Value<'_>) -> Result<BigInt, TypeError> {
    match value {
        Value::Int(i) => Ok(BigInt::from(*i)),
        Value::Big(digits) if digits.len() > DIGITS_MAX => Err(TypeError::IntegerOverflow),
        Value::Big(digits) => digits.parse().map_err(|_| TypeError::TypeMismatch),
        _ => Err(TypeError::TypeMismatch),
    }
}

/// The value of an integer: 64 bits where it fits.
///
/// # Errors
/// [`TypeError::IntegerOverflow`]: it has more than 4,096 bits.
pub(crate) fn value<'a>(integer: &BigInt) -> Result<Value<'a>, TypeError> {
    if let Ok(small) = i64::try_from(integer) {
        return Ok(Value::Int(small));
    }
    if integer.bits() > BITS_MAX {
        return Err(TypeError::IntegerOverflow);
    }
    Ok(Value::Big(Cow::Owned(integer.to_string())))
}
