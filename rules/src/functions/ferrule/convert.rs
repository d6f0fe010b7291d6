//! Types: what a value is, and one type made another. Conversions are always asked for by name.

use super::*;
use crate::sql::ast::Binary;
use crate::value::{compare, finite};

pub(super) const FUNCTIONS: &[Function] = &[
    lenient("coalesce", 1, MANY, coalesce),
    lenient("if", 2, 3, choose),
    lenient("is_array", 1, 1, |args, _| is(args, "array")),
    lenient("is_boolean", 1, 1, |args, _| is(args, "boolean")),
    lenient("is_bytes", 1, 1, |args, _| is(args, "bytes")),
    lenient("is_float", 1, 1, |args, _| is(args, "float")),
    lenient("is_integer", 1, 1, |args, _| is(args, "integer")),
    lenient("is_null", 1, 1, |args, _| is(args, "null")),
    lenient("is_number", 1, 1, |args, _| {
        Ok(Value::Bool(matches!(arg(args, 0), Value::Int(_) | Value::Float(_) | Value::Big(_))))
    }),
    lenient("is_object", 1, 1, |args, _| is(args, "object")),
    lenient("is_string", 1, 1, |args, _| is(args, "string")),
    lenient("nullif", 2, 2, nullif),
    strict("to_boolean", 1, 1, to_boolean),
    strict("to_float", 1, 1, to_float),
    strict("to_integer", 1, 2, to_integer),
    strict("to_number", 1, 1, |args, _| number_in(take(args, 0))),
    strict("to_string", 1, 1, to_string),
    lenient("typeof", 1, 1, |args, _| Ok(Value::Text(Cow::Borrowed(type_of(arg(args, 0)))))),
];

// === what it is ===

/// The type's name in this dialect.
fn type_of(value: &Value<'_>) -> &'static str {
    match value {
        Value::Null | Value::Missing => "null",
        other => other.type_name(),
    }
}

fn is<'a>(args: &[Value<'a>], name: &str) -> Given<'a> {
    Ok(Value::Bool(type_of(arg(args, 0)) == name))
}

// === one of several ===

fn coalesce<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    Ok(args.iter_mut().find(|a| !matches!(a, Value::Null)).map(std::mem::take).unwrap_or_default())
}

/// What is unlike in type is not equal, as for IN.
fn nullif<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let same = compare(Binary::Eq, arg(args, 0), arg(args, 1)).unwrap_or(Some(false));
    Ok(if same == Some(true) { Value::Null } else { take(args, 0) })
}

fn choose<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    match arg(args, 0) {
        Value::Bool(true) => Ok(take(args, 1)),
        Value::Bool(false) | Value::Null => Ok(take(args, 2)),
        _ => Err(TypeError::TypeMismatch),
    }
}

// === made another ===

fn to_string<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    match take(args, 0) {
        Value::Text(s) | Value::Json(s) | Value::Big(s) => Ok(Value::Text(s)),
        Value::Bytes(_) => Err(TypeError::TypeMismatch),
        other => {
            let mut out = Vec::new();
            other.write_text(&mut out);
            String::from_utf8(out).map(owned).map_err(|_| TypeError::TypeMismatch)
        }
    }
}

/// PostgreSQL's words for truth.
fn to_boolean<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let text = match arg(args, 0) {
        Value::Bool(truth) => return Ok(Value::Bool(*truth)),
        Value::Int(0) => return Ok(Value::Bool(false)),
        Value::Int(1) => return Ok(Value::Bool(true)),
        Value::Text(text) => text.trim(),
        Value::Int(_) => return Err(TypeError::BadArgument),
        _ => return Err(TypeError::TypeMismatch),
    };
    let among = |words: &[&str]| words.iter().any(|word| word.eq_ignore_ascii_case(text));
    match () {
        () if among(&["true", "t", "yes", "y", "on", "1"]) => Ok(Value::Bool(true)),
        () if among(&["false", "f", "no", "n", "off", "0"]) => Ok(Value::Bool(false)),
        () => Err(TypeError::BadArgument),
    }
}

/// A number, also in text: digits, one point, an exponent.
fn number_in<'a>(value: Value<'a>) -> Given<'a> {
    let text = match value {
        number @ (Value::Int(_) | Value::Float(_) | Value::Big(_)) => return Ok(number),
        Value::Text(text) => text,
        _ => return Err(TypeError::TypeMismatch),
    };
    let text = text.trim();
    if let Ok(int) = text.parse() {
        return Ok(Value::Int(int));
    }
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty()
        || !digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-'))
    {
        return Err(TypeError::BadArgument);
    }
    if digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(TypeError::IntegerOverflow);
    }
    finite(text.parse().map_err(|_| TypeError::BadArgument)?)
}

fn to_float<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    match number_in(take(args, 0))? {
        Value::Int(int) => Ok(Value::Float(int as f64)),
        Value::Big(digits) => finite(digits.parse().map_err(|_| TypeError::BadArgument)?),
        float => Ok(float),
    }
}

/// Decimals are cut off; text may be of another base.
fn to_integer<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    if let Some(base) = args.get(1) {
        let base = u32::try_from(int_of(base)?).ok().filter(|base| (2..=36).contains(base));
        let (text, base) = (text_of(arg(args, 0))?.trim(), base.ok_or(TypeError::BadArgument)?);
        let text = match base {
            16 => text.strip_prefix("0x").or(text.strip_prefix("0X")).unwrap_or(text),
            _ => text,
        };
        let is_number = text.strip_prefix(['+', '-']).unwrap_or(text).chars().all(|c| c.is_digit(base));
        return match i64::from_str_radix(text, base) {
            Ok(int) => Ok(Value::Int(int)),
            Err(_) if is_number && text.len() > 1 => Err(TypeError::IntegerOverflow),
            Err(_) => Err(TypeError::BadArgument),
        };
    }
    match take(args, 0) {
        Value::Bool(truth) => Ok(Value::Int(i64::from(truth))),
        other => match number_in(other)? {
            Value::Float(float) => number::whole(float.trunc()),
            int => Ok(int),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::check;

    #[test]
    fn types() {
        check(&[
            ("typeof", "null", r#""null""#),
            ("typeof", "{}", r#""object""#),
            ("typeof", "[]", r#""array""#),
            ("typeof", "1.0", r#""float""#),
            ("typeof", "123456789012345678901", r#""integer""#),
            ("typeof", r#"{"$bytes":"00"}"#, r#""bytes""#),
            ("typeof", "false", r#""boolean""#),
            ("is_number", "123456789012345678901", "true"),
            ("is_integer", "123456789012345678901", "true"),
            ("is_string", "null", "false"),
            ("is_null", "null", "true"),
            ("is_bytes", r#"{"$bytes":"00"}"#, "true"),
        ]);
    }

    #[test]
    fn one_of_several() {
        check(&[
            ("coalesce", "null, null", "null"),
            ("coalesce", "null, false", "false"),
            ("nullif", "1, 1.0", "null"),
            ("nullif", "null, 1", "null"),
            ("nullif", "1, null", "1"),
            ("nullif", "[1], [1]", "null"),
            ("if", "true, 1, 2", "1"),
            ("if", "null, 1, 2", "2"),
            ("if", "false, 1", "null"),
            ("if", "true, null, 2", "null"),
            ("if", r#""true", 1, 2"#, "type_mismatch"),
        ]);
    }

    #[test]
    fn made_another() {
        check(&[
            ("to_string", r#""a""#, r#""a""#),
            ("to_string", "123456789012345678901", r#""123456789012345678901""#),
            ("to_string", r#"{"$bytes":"ff"}"#, "type_mismatch"),
            ("to_string", "-0.0", r#""-0.0""#),
            ("to_boolean", r#"" YES ""#, "true"),
            ("to_boolean", r#""2""#, "bad_argument"),
            ("to_boolean", "2", "bad_argument"),
            ("to_boolean", "1.0", "type_mismatch"),
            ("to_boolean", r#""""#, "bad_argument"),
            ("to_boolean", "null", "null"),
            ("to_number", r#""1""#, "1"),
            ("to_number", r#""+1""#, "1"),
            ("to_number", r#""-1.5e-3""#, "-0.0015"),
            ("to_number", r#"".5""#, "0.5"),
            ("to_number", r#""5.""#, "5.0"),
            ("to_number", r#""""#, "bad_argument"),
            ("to_number", r#""1 2""#, "bad_argument"),
            ("to_number", r#""inf""#, "bad_argument"),
            ("to_number", r#""NaN""#, "bad_argument"),
            ("to_number", r#""0x10""#, "bad_argument"),
            ("to_number", r#""1e999""#, "not_finite"),
            ("to_number", r#""-""#, "bad_argument"),
            ("to_number", r#""e""#, "bad_argument"),
            ("to_number", r#""123456789012345678901""#, "integer_overflow"),
            ("to_number", "true", "type_mismatch"),
            ("to_number", "123456789012345678901", "123456789012345678901"),
            ("to_float", "123456789012345678901", "1.2345678901234568e+20"),
            ("to_float", r#""x""#, "bad_argument"),
            ("to_integer", r#""-1.9""#, "-1"),
            ("to_integer", "true", "1"),
            ("to_integer", "1e19", "integer_overflow"),
            ("to_integer", r#""0xFF", 16"#, "255"),
            ("to_integer", r#""-101", 2"#, "-5"),
            ("to_integer", r#""8", 8"#, "bad_argument"),
            ("to_integer", r#""1", 1"#, "bad_argument"),
            ("to_integer", r#""1", 37"#, "bad_argument"),
            ("to_integer", r#""", 16"#, "bad_argument"),
            ("to_integer", r#""ffffffffffffffffff", 16"#, "integer_overflow"),
            ("to_integer", r#""-", 10"#, "bad_argument"),
            ("to_integer", "255, 16", "type_mismatch"),
            ("to_integer", r#""zz", 36"#, "1295"),
        ]);
    }
}
