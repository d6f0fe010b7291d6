//! Values of expressions: borrowed where they can be.
//!
//! An array or object from a payload is its JSON text ([`Value::Json`]), so passing one through copies bytes and its
//! numbers keep their digits. What functions and `AS a.b` make is a tree ([`Value::List`], [`Value::Map`]), shared, so that
//! passing it on costs a count; [`Value::open`] makes one level of the text such a tree. Integers are 64 bits; a longer one is [`Value::Big`],
//! its digits: the default dialect passes it through and compares it, EMQX's calculates with it.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::sync::Arc;

use indexmap::IndexMap;
use serde_json::Value as Tree;

use crate::TypeError;
use crate::canonical::canonical;
use crate::json::{self, Found, Kind};
use crate::program::MAX_TEXT;
use crate::sql::ast::Binary;

/// A value.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) enum Value<'a> {
    #[default]
    Null,
    Bool(bool),
    Int(i64),
    /// Finite.
    Float(f64),
    /// The digits of an integer beyond 64 bits.
    Big(Cow<'a, str>),
    Text(Cow<'a, str>),
    /// What is not text: a payload that is not UTF-8, what functions make of text.
    Bytes(Cow<'a, [u8]>),
    /// An array or object, as valid JSON text.
    Json(Cow<'a, str>),
    /// An array that was made here.
    List(Arc<Vec<Value<'static>>>),
    /// An object that was made here, its members in the order in which they came.
    Map(Arc<Map>),
    /// Nothing at all, in EMQX's dialect: other than JSON's null. The default dialect has only NULL.
    Missing,
}

/// Members of an object.
pub(crate) type Map = IndexMap<String, Value<'static>>;

impl<'a> Value<'a> {
    /// A value found in a JSON text.
    pub(crate) fn found(text: &'a [u8], found: Found) -> Result<Value<'a>, TypeError> {
        Ok(match found.kind {
            Kind::Null => Value::Null,
            Kind::True => Value::Bool(true),
            Kind::False => Value::Bool(false),
            Kind::Text | Kind::Escaped => Value::Text(json::content(text, found)),
            Kind::Int => integer(found.of(text)),
            Kind::Float => Value::Float(float(found.of(text))?),
            Kind::Array | Kind::Object => Value::Json(Cow::Borrowed(ascii(found.of(text)))),
        })
    }

    /// A value found in a text that does not outlive the expression.
    fn found_owned(text: &str, found: Found) -> Result<Value<'static>, TypeError> {
        Value::found(text.as_bytes(), found).map(Value::into_owned)
    }

    /// A list.
    pub(crate) fn list(items: Vec<Value<'static>>) -> Value<'static> {
        Value::List(Arc::new(items))
    }

    /// An object.
    pub(crate) fn map(members: Map) -> Value<'static> {
        Value::Map(Arc::new(members))
    }

    /// Text or bytes: text when it is UTF-8.
    pub(crate) fn binary(bytes: Vec<u8>) -> Value<'static> {
        match String::from_utf8(bytes) {
            Ok(text) => Value::Text(Cow::Owned(text)),
            Err(error) => Value::Bytes(Cow::Owned(error.into_bytes())),
        }
    }

    /// The bytes of text or bytes.
    pub(crate) fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Value::Text(text) => Some(text.as_bytes()),
            Value::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// One level of JSON text as a tree: what is inside stays text. Other values as they are.
    pub(crate) fn open(self) -> Value<'a> {
        let Value::Json(text) = &self else { return self };
        let bytes = text.as_bytes();
        let inner = |found: Found| Value::found(bytes, found).map_or(Value::Null, Value::into_owned);
        if bytes.first() == Some(&b'[') {
            return Value::list(json::items(bytes).map(|(_, found)| inner(found)).collect());
        }
        let mut members = Map::new();
        for (key, found) in json::items(bytes) {
            let Some(key) = key else { continue };
            // As everywhere: of two members of one name the first counts.
            members.entry(json::content(bytes, key).into_owned()).or_insert_with(|| inner(found));
        }
        Value::map(members)
    }

    /// Counts what is in a tree, as often as it is there, off `nodes`.
    ///
    /// # Errors
    /// [`TypeError::BadArgument`]: there is more, or it is deeper than `depth`.
    pub(crate) fn weigh(&self, nodes: &mut usize, depth: usize) -> Result<(), TypeError> {
        let less = nodes.checked_sub(1).filter(|_| depth > 0);
        *nodes = less.ok_or(TypeError::BadArgument)?;
        match self {
            Value::List(items) => items.iter().try_for_each(|item| item.weigh(nodes, depth - 1)),
            Value::Map(members) => members.values().try_for_each(|value| value.weigh(nodes, depth - 1)),
            // As long texts in many places as short ones.
            Value::Text(text) | Value::Json(text) | Value::Big(text) => {
                *nodes = nodes.checked_sub(text.len() / 64).ok_or(TypeError::BadArgument)?;
                Ok(())
            }
            Value::Bytes(bytes) => {
                *nodes = nodes.checked_sub(bytes.len() / 64).ok_or(TypeError::BadArgument)?;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// As [`Value::open`].
    pub(crate) fn open_in_place(&mut self) {
        if matches!(self, Value::Json(_)) {
            *self = std::mem::take(self).open();
        }
    }

    /// A value that borrows nothing.
    pub(crate) fn into_owned(self) -> Value<'static> {
        match self {
            Value::Null => Value::Null,
            Value::Bool(b) => Value::Bool(b),
            Value::Int(i) => Value::Int(i),
            Value::Float(f) => Value::Float(f),
            Value::Big(s) => Value::Big(Cow::Owned(s.into_owned())),
            Value::Text(s) => Value::Text(Cow::Owned(s.into_owned())),
            Value::Bytes(b) => Value::Bytes(Cow::Owned(b.into_owned())),
            Value::Json(s) => Value::Json(Cow::Owned(s.into_owned())),
            Value::List(items) => Value::List(items),
            Value::Map(members) => Value::Map(members),
            Value::Missing => Value::Missing,
        }
    }

    /// A borrowed copy.
    pub(crate) fn share(&self) -> Value<'_> {
        match self {
            Value::Null => Value::Null,
            Value::Bool(b) => Value::Bool(*b),
            Value::Int(i) => Value::Int(*i),
            Value::Float(f) => Value::Float(*f),
            Value::Big(s) => Value::Big(Cow::Borrowed(s)),
            Value::Text(s) => Value::Text(Cow::Borrowed(s)),
            Value::Bytes(b) => Value::Bytes(Cow::Borrowed(b)),
            Value::Json(s) => Value::Json(Cow::Borrowed(s)),
            Value::List(items) => Value::List(Arc::clone(items)),
            Value::Map(members) => Value::Map(Arc::clone(members)),
            Value::Missing => Value::Missing,
        }
    }

    /// A value of a parsed tree (cases of `rules eval`).
    pub(crate) fn from_tree(tree: &'a Tree) -> Value<'a> {
        match tree {
            Tree::Null => Value::Null,
            Tree::Bool(b) => Value::Bool(*b),
            Tree::Number(n) => match (n.as_i64(), n.as_f64()) {
                (Some(i), _) => Value::Int(i),
                (None, Some(f)) if n.is_f64() => Value::Float(f),
                _ => Value::Big(Cow::Owned(n.to_string())),
            },
            Tree::String(s) => Value::Text(Cow::Borrowed(s)),
            Tree::Array(_) | Tree::Object(_) => Value::Json(Cow::Owned(tree.to_string())),
        }
    }

    /// As [`Value::from_tree`], with what JSON cannot say as tagged objects: `{"$bytes": hex}`, `{"$undefined": true}`.
    pub(crate) fn from_case(tree: &'a Tree) -> Value<'a> {
        if let Some(members) = tree.as_object().filter(|members| members.len() == 1) {
            if let Some(hex) = members.get("$bytes").and_then(Tree::as_str) {
                return unhex(hex).map_or(Value::Missing, Value::binary);
            }
            if members.contains_key("$undefined") {
                return Value::Missing;
            }
        }
        match tree {
            Tree::Array(items) => {
                Value::list(items.iter().map(|item| Value::from_case(item).into_owned()).collect())
            }
            other => Value::from_tree(other),
        }
    }

    /// What the value is called in messages.
    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Value::Null => "NULL",
            Value::Bool(_) => "boolean",
            Value::Int(_) | Value::Big(_) => "integer",
            Value::Float(_) => "float",
            Value::Text(_) => "string",
            Value::Bytes(_) => "bytes",
            Value::Json(s) if s.starts_with('{') => "object",
            Value::Json(_) | Value::List(_) => "array",
            Value::Map(_) => "object",
            Value::Missing => "a missing value",
        }
    }

    /// The member `key`; NULL when there is none.
    pub(crate) fn member(self, key: &str) -> Result<Value<'a>, TypeError> {
        if let Value::Map(members) = &self {
            return Ok(members.get(key).cloned().unwrap_or_default());
        }
        self.inside(|text| json::member(text, key))
    }

    /// Element `index`, from 1, negative from the end; NULL when there is none.
    pub(crate) fn element(self, index: i64) -> Result<Value<'a>, TypeError> {
        if let Value::List(items) = &self {
            return Ok(place(index, items.len()).and_then(|at| items.get(at)).cloned().unwrap_or_default());
        }
        self.inside(|text| json::element(text, index))
    }

    fn inside(self, find: impl Fn(&[u8]) -> Option<Found>) -> Result<Value<'a>, TypeError> {
        match self {
            Value::Json(Cow::Borrowed(text)) => match find(text.as_bytes()) {
                Some(found) => Value::found(text.as_bytes(), found),
                None => Ok(Value::Null),
            },
            Value::Json(Cow::Owned(text)) => match find(text.as_bytes()) {
                Some(found) => Value::found_owned(&text, found),
                None => Ok(Value::Null),
            },
            _ => Ok(Value::Null),
        }
    }

    /// Appends the value as JSON.
    pub(crate) fn write_json(&self, out: &mut Vec<u8>) {
        match self {
            Value::Null => out.extend_from_slice(b"null"),
            Value::Bool(b) => out.extend_from_slice(if *b { b"true" } else { b"false" }),
            Value::Int(i) => write_int(*i, out),
            // Writing to memory cannot fail.
            Value::Float(f) => drop(serde_json::to_writer(out, f)),
            Value::Text(s) => write_json_text(s, out),
            Value::Bytes(b) => {
                out.extend_from_slice(b"{\"$bytes\":\"");
                for byte in b.iter() {
                    const HEX: &[u8; 16] = b"0123456789abcdef";
                    out.push(HEX[usize::from(byte >> 4)]);
                    out.push(HEX[usize::from(byte & 15)]);
                }
                out.extend_from_slice(b"\"}");
            }
            Value::Big(s) | Value::Json(s) => out.extend_from_slice(s.as_bytes()),
            Value::List(items) => {
                out.push(b'[');
                for (at, item) in items.iter().enumerate() {
                    if at > 0 {
                        out.push(b',');
                    }
                    item.write_json(out);
                }
                out.push(b']');
            }
            Value::Map(members) => {
                out.push(b'{');
                for (at, (key, value)) in members.iter().enumerate() {
                    if at > 0 {
                        out.push(b',');
                    }
                    write_json_text(key, out);
                    out.push(b':');
                    value.write_json(out);
                }
                out.push(b'}');
            }
            // EMQX's word for it in text that it makes.
            Value::Missing => out.extend_from_slice(b"\"undefined\""),
        }
    }

    /// Appends the value as text: strings bare, all else as JSON, NULL as nothing.
    pub(crate) fn write_text(&self, out: &mut Vec<u8>) {
        match self {
            Value::Null => {}
            Value::Text(s) => out.extend_from_slice(s.as_bytes()),
            Value::Bytes(b) => out.extend_from_slice(b),
            other => other.write_json(out),
        }
    }
}

/// The bytes of hexadecimal digits.
pub(crate) fn unhex(hex: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let byte = |pair: &[u8]| match *pair {
        [high, low] => u8::try_from(digit(high)? << 4 | digit(low)?).ok(),
        _ => None,
    };
    hex.as_bytes().chunks(2).map(byte).collect()
}

/// The place, from 0, of index `index` (from 1, negative from the end) among `len`.
pub(crate) fn place(index: i64, len: usize) -> Option<usize> {
    let len = i64::try_from(len).ok()?;
    let at = if index > 0 { index - 1 } else { len.checked_add(index)? };
    if index == 0 || at < 0 || at >= len { None } else { usize::try_from(at).ok() }
}

/// A string, as JSON.
pub(crate) fn write_json_text(text: &str, out: &mut Vec<u8>) {
    if json::is_plain(text.as_bytes()) {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
        return;
    }
    // Writing to memory cannot fail.
    drop(serde_json::to_writer(out, text));
}

fn write_int(i: i64, out: &mut Vec<u8>) {
    drop(serde_json::to_writer(out, &i));
}

/// Bytes that the scan has found to be UTF-8.
fn ascii(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or("")
}

/// A number with a point or an exponent, of JSON's grammar.
///
/// # Errors
/// [`TypeError::NotFinite`].
fn float(number: &[u8]) -> Result<f64, TypeError> {
    if let Some(value) = short_float(number) {
        return Ok(value);
    }
    let value = ascii(number).parse::<f64>().ok().filter(|f| f.is_finite());
    value.ok_or(TypeError::NotFinite)
}

/// The same of at most 15 digits without exponent, as sensors write: both the digits and the power of ten are exact floats then, and one division
/// rounds once (Clinger, "How to read floating point numbers accurately", 1990).
fn short_float(number: &[u8]) -> Option<f64> {
    const TENS: [f64; 16] =
        [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15];
    let (negative, digits) = match number.split_first() {
        Some((b'-', rest)) => (true, rest),
        _ => (false, number),
    };
    if digits.len() > 16 {
        return None;
    }
    let (mut value, mut point) = (0u64, None);
    for (at, byte) in digits.iter().enumerate() {
        match byte {
            b'0'..=b'9' => value = value * 10 + u64::from(byte - b'0'),
            b'.' => point = Some(at),
            _ => return None,
        }
    }
    let decimals = digits.len() - 1 - point?;
    let value = value as f64 / TENS.get(decimals)?;
    Some(if negative { -value } else { value })
}

fn integer(digits: &[u8]) -> Value<'_> {
    let (negative, magnitude) = match digits.split_first() {
        Some((b'-', rest)) => (true, rest),
        _ => (false, digits),
    };
    // 18 digits always fit; most integers are far shorter.
    if magnitude.len() <= 18 {
        let n = magnitude.iter().fold(0i64, |n, d| n * 10 + i64::from(d.wrapping_sub(b'0') & 15));
        return match (negative, n) {
            (true, 0) => Value::Float(-0.0),
            (true, n) => Value::Int(-n),
            (false, n) => Value::Int(n),
        };
    }
    let text = ascii(digits);
    text.parse().map(Value::Int).unwrap_or(Value::Big(Cow::Borrowed(text)))
}

/// The order of two values that are not NULL; `None` of arrays or objects, which have none.
///
/// # Errors
/// [`TypeError::TypeMismatch`] when the types are unlike.
pub(crate) fn order(a: &Value<'_>, b: &Value<'_>) -> Result<Option<Ordering>, TypeError> {
    use Value::*;
    Ok(match (a, b) {
        (Int(a), Int(b)) => Some(a.cmp(b)),
        (Float(a), Float(b)) => a.partial_cmp(b),
        (Int(a), Float(b)) => Some(order_int_float(*a, *b)),
        (Float(a), Int(b)) => Some(order_int_float(*b, *a).reverse()),
        (Text(a), Text(b)) => Some(a.as_bytes().cmp(b.as_bytes())),
        (Bool(a), Bool(b)) => Some(a.cmp(b)),
        (Big(a), Big(b)) => Some(order_digits(a, b)),
        // It is beyond every integer of 64 bits: its sign decides.
        (Big(a), Int(_)) => Some(if a.starts_with('-') { Ordering::Less } else { Ordering::Greater }),
        (Big(a), Float(b)) => Some(order_big_float(a, *b)),
        (Int(_) | Float(_), Big(_)) => return Ok(order(b, a)?.map(Ordering::reverse)),
        (Bytes(a), Bytes(b)) => Some(a.cmp(b)),
        (Json(a), Json(b)) if a.as_bytes().first() == b.as_bytes().first() => None,
        _ => return Err(TypeError::TypeMismatch),
    })
}

/// Whether two values that are not NULL are equal.
///
/// # Errors
/// As [`order`].
fn equal(a: &Value<'_>, b: &Value<'_>) -> Result<bool, TypeError> {
    if let Some(order) = order(a, b)? {
        return Ok(order.is_eq());
    }
    Ok(a == b || canonical(a) == canonical(b))
}

/// The order of two integers as JSON writes them: no zeros lead.
fn order_digits(a: &str, b: &str) -> Ordering {
    let size = |digits: &str| digits.trim_start_matches('-').len();
    match (a.starts_with('-'), b.starts_with('-')) {
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
        (false, false) => size(a).cmp(&size(b)).then_with(|| a.cmp(b)),
        (true, true) => size(b).cmp(&size(a)).then_with(|| b.cmp(a)),
    }
}

/// The float next to an integer is in the same order as the integer to every float but itself; then their digits decide.
fn order_big_float(a: &str, b: f64) -> Ordering {
    let near: f64 = a.parse().unwrap_or(f64::NAN);
    match near.partial_cmp(&b) {
        Some(Ordering::Equal) => order_digits(a, &format!("{b:.0}")),
        order => order.unwrap_or(Ordering::Equal),
    }
}

/// Exact, unlike `a as f64`, which rounds above 2^53. `b` is finite.
fn order_int_float(a: i64, b: f64) -> Ordering {
    const TWO_63: f64 = 9_223_372_036_854_775_808.0;
    if b >= TWO_63 {
        return Ordering::Less;
    }
    if b < -TWO_63 {
        return Ordering::Greater;
    }
    let whole = b.trunc();
    // In range: checked above.
    a.cmp(&(whole as i64)).then_with(|| 0.0f64.partial_cmp(&(b - whole)).unwrap_or(Ordering::Equal))
}

/// A comparison, three-valued (`None` is NULL).
///
/// # Errors
/// [`TypeError::TypeMismatch`] when the types are unlike, or arrays or objects are to be ordered.
pub(crate) fn compare(op: Binary, a: &Value<'_>, b: &Value<'_>) -> Result<Option<bool>, TypeError> {
    if matches!(a, Value::Null) || matches!(b, Value::Null) {
        return Ok(None);
    }
    Ok(Some(match op {
        Binary::NotEq => !equal(a, b)?,
        Binary::Less | Binary::LessEq | Binary::Greater | Binary::GreaterEq => {
            let order = order(a, b)?.ok_or(TypeError::TypeMismatch)?;
            match op {
                Binary::Less => order.is_lt(),
                Binary::LessEq => order.is_le(),
                Binary::Greater => order.is_gt(),
                _ => order.is_ge(),
            }
        }
        _ => equal(a, b)?,
    }))
}

/// `+ - * / div mod`.
///
/// # Errors
/// What makes the result NULL and is counted; a NULL operand makes NULL without one.
pub(crate) fn arithmetic<'a>(op: Binary, a: &Value<'_>, b: &Value<'_>) -> Result<Value<'a>, TypeError> {
    use Value::*;
    match (a, b) {
        (Null, _) | (_, Null) => Ok(Null),
        (Int(a), Int(b)) => {
            let exact = match op {
                Binary::Add => a.checked_add(*b),
                Binary::Subtract => a.checked_sub(*b),
                Binary::Multiply => a.checked_mul(*b),
                Binary::Divide => return divide(*a as f64, *b as f64),
                _ if *b == 0 => return Err(TypeError::DivisionByZero),
                Binary::IntDivide => a.checked_div(*b),
                // The remainder of MIN by -1 is 0, though their quotient does not fit.
                _ => Some(a.checked_rem(*b).unwrap_or(0)),
            };
            exact.map(Int).ok_or(TypeError::IntegerOverflow)
        }
        (Int(_) | Float(_), Int(_) | Float(_)) => {
            let wide = |value: &Value<'_>| match value {
                Int(i) => *i as f64,
                Float(f) => *f,
                _ => f64::NAN,
            };
            let (a, b) = (wide(a), wide(b));
            match op {
                Binary::Add => finite(a + b),
                Binary::Subtract => finite(a - b),
                Binary::Multiply => finite(a * b),
                Binary::Divide => divide(a, b),
                Binary::IntDivide => Err(TypeError::TypeMismatch),
                _ if b == 0.0 => Err(TypeError::DivisionByZero),
                _ => finite(a % b),
            }
        }
        (Text(a), Text(b)) if op == Binary::Add => {
            if a.len() + b.len() > MAX_TEXT {
                return Err(TypeError::BadArgument);
            }
            Ok(Text(Cow::Owned([&**a, &**b].concat())))
        }
        (Big(_), Int(_) | Float(_) | Big(_)) | (Int(_) | Float(_), Big(_)) => Err(TypeError::IntegerOverflow),
        _ => Err(TypeError::TypeMismatch),
    }
}

fn divide<'a>(a: f64, b: f64) -> Result<Value<'a>, TypeError> {
    if b == 0.0 { Err(TypeError::DivisionByZero) } else { finite(a / b) }
}

/// A float result.
pub(crate) fn finite<'a>(f: f64) -> Result<Value<'a>, TypeError> {
    if f.is_finite() { Ok(Value::Float(f)) } else { Err(TypeError::NotFinite) }
}

/// Unary minus.
pub(crate) fn negate<'a>(value: &Value<'_>) -> Result<Value<'a>, TypeError> {
    match value {
        Value::Null => Ok(Value::Null),
        Value::Int(i) => i.checked_neg().map(Value::Int).ok_or(TypeError::IntegerOverflow),
        Value::Float(f) => Ok(Value::Float(-f)),
        Value::Big(_) => Err(TypeError::IntegerOverflow),
        _ => Err(TypeError::TypeMismatch),
    }
}
