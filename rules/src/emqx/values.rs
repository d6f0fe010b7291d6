//! What EMQX's dialect does with values: comparisons, arithmetic, paths, puts.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::sync::Arc;

use num_bigint::BigInt;

use crate::functions::emqx::to_str;
use crate::json;
use crate::program::{MAX_TEXT, Walk};
use crate::sql::ast::{Binary, Put};
use crate::value::{Map, Value, finite, place};
use crate::{TypeError, big};

/// A comparison. A missing value is equal to a missing one and otherwise makes every comparison false; text is compared with a number as
/// a number; booleans and null with text as their words; all else in Erlang's order of types.
///
/// # Errors
/// [`TypeError::BadArgument`]: text that is compared with a number is none.
pub(crate) fn compare(op: Binary, a: &Value<'_>, b: &Value<'_>) -> Result<bool, TypeError> {
    let order = match (a, b) {
        (Value::Int(_) | Value::Float(_), Value::Int(_) | Value::Float(_)) => {
            crate::value::order(a, b).ok().flatten().unwrap_or(Ordering::Equal)
        }
        (Value::Missing, Value::Missing) => Ordering::Equal,
        (Value::Missing, _) | (_, Value::Missing) => return Ok(false),
        (number @ (Value::Int(_) | Value::Float(_) | Value::Big(_)), Value::Text(text)) => {
            term_order(number, &number_in(text)?)
        }
        (Value::Text(text), number @ (Value::Int(_) | Value::Float(_) | Value::Big(_))) => {
            term_order(&number_in(text)?, number)
        }
        (atom @ (Value::Bool(_) | Value::Null), Value::Text(text)) => word(atom).cmp(text),
        (Value::Text(text), atom @ (Value::Bool(_) | Value::Null)) => (**text).cmp(word(atom)),
        (a, b) => term_order(a, b),
    };
    Ok(match op {
        Binary::Eq => order.is_eq(),
        Binary::NotEq => order.is_ne(),
        Binary::Less => order.is_lt(),
        Binary::LessEq => order.is_le(),
        Binary::Greater => order.is_gt(),
        Binary::GreaterEq => order.is_ge(),
        _ => return Err(TypeError::TypeMismatch),
    })
}

/// The number that a text is: an integer, or else a float with digits on both sides of its point.
///
/// # Errors
/// It is none.
pub(crate) fn number_in(text: &str) -> Result<Value<'static>, TypeError> {
    if let Ok(int) = text.parse::<i64>() {
        return Ok(Value::Int(int));
    }
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        return big::integer(&Value::Big(Cow::Borrowed(text))).and_then(|int| big::value(&int));
    }
    let is_float = digits.split_once('.').is_some_and(|(whole, rest)| {
        !whole.is_empty()
            && whole.bytes().all(|b| b.is_ascii_digit())
            && rest.starts_with(|c: char| c.is_ascii_digit())
    });
    let float = text.parse::<f64>().ok().filter(|f| is_float && f.is_finite());
    float.map(Value::Float).ok_or(TypeError::BadArgument)
}

fn word(atom: &Value<'_>) -> &'static str {
    match atom {
        Value::Bool(true) => "true",
        Value::Bool(false) => "false",
        Value::Missing => "undefined",
        _ => "null",
    }
}

/// Erlang's order of terms: numbers, atoms by name, maps, lists, text.
fn term_order(a: &Value<'_>, b: &Value<'_>) -> Ordering {
    let rank = |value: &Value<'_>| match value {
        Value::Int(_) | Value::Float(_) | Value::Big(_) => 0,
        Value::Bool(_) | Value::Null | Value::Missing => 1,
        Value::Map(_) => 2,
        Value::Json(text) if text.starts_with('{') => 2,
        Value::List(_) | Value::Json(_) => 3,
        Value::Text(_) | Value::Bytes(_) => 4,
    };
    rank(a).cmp(&rank(b)).then_with(|| match rank(a) {
        0 => crate::value::order(a, b).ok().flatten().unwrap_or(Ordering::Equal),
        1 => word(a).cmp(word(b)),
        4 => a.as_bytes().cmp(&b.as_bytes()),
        _ => match (a.share().open(), b.share().open()) {
            (Value::List(a), Value::List(b)) => {
                let first = a.iter().zip(b.iter()).map(|(a, b)| term_order(a, b)).find(|o| o.is_ne());
                first.unwrap_or_else(|| a.len().cmp(&b.len()))
            }
            (Value::Map(a), Value::Map(b)) => map_order(&a, &b),
            _ => Ordering::Equal,
        },
    })
}

/// By size, then by their keys in order, then by their values in the order of the keys.
fn map_order(a: &Map, b: &Map) -> Ordering {
    let sorted = |map: &Map| {
        let mut keys: Vec<String> = map.keys().cloned().collect();
        keys.sort_unstable();
        keys
    };
    let size = a.len().cmp(&b.len());
    if size.is_ne() {
        return size;
    }
    let (keys, others) = (sorted(a), sorted(b));
    keys.cmp(&others).then_with(|| {
        let values = keys.iter().filter_map(|key| Some(term_order(a.get(key)?, b.get(key)?)));
        values.into_iter().find(|o| o.is_ne()).unwrap_or(Ordering::Equal)
    })
}

/// Erlang's `=:=`: 1 is not 1.0, and nothing is made another type. Of IN, `contains()` and `CASE x WHEN`.
pub(crate) fn same(a: &Value<'_>, b: &Value<'_>) -> bool {
    match (a, b) {
        (Value::Int(_) | Value::Big(_), Value::Float(_))
        | (Value::Float(_), Value::Int(_) | Value::Big(_)) => false,
        (Value::List(_) | Value::Map(_) | Value::Json(_), _) => match (a.share().open(), b.share().open()) {
            (Value::List(a), Value::List(b)) => {
                a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| same(a, b))
            }
            (Value::Map(a), Value::Map(b)) => {
                a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
            }
            _ => false,
        },
        (Value::Null, Value::Missing) | (Value::Missing, Value::Null) => false,
        (a, b) => term_order(a, b).is_eq(),
    }
}

/// `+ - * / div mod`. `+` with text on either side joins.
///
/// # Errors
/// A division by zero, a result that is no finite float or has more than 4,096 bits, another type.
pub(crate) fn arithmetic<'a>(op: Binary, a: &Value<'_>, b: &Value<'_>) -> Result<Value<'a>, TypeError> {
    if let (Value::Int(a), Value::Int(b)) = (a, b) {
        let small = match op {
            Binary::Add => a.checked_add(*b),
            Binary::Subtract => a.checked_sub(*b),
            Binary::Multiply => a.checked_mul(*b),
            Binary::IntDivide | Binary::Modulo if *b == 0 => return Err(TypeError::DivisionByZero),
            Binary::IntDivide => a.checked_div(*b),
            Binary::Modulo => Some(a.checked_rem(*b).unwrap_or(0)),
            _ => None,
        };
        if let Some(small) = small {
            return Ok(Value::Int(small));
        }
    }
    let is_number = |v: &Value<'_>| matches!(v, Value::Int(_) | Value::Float(_) | Value::Big(_));
    if op == Binary::Add && (matches!(a, Value::Text(_)) || matches!(b, Value::Text(_))) {
        let mut out = Vec::new();
        to_str(a, &mut out);
        to_str(b, &mut out);
        return if out.len() > MAX_TEXT { Err(TypeError::BadArgument) } else { Ok(Value::binary(out)) };
    }
    if !is_number(a) || !is_number(b) {
        return Err(TypeError::TypeMismatch);
    }
    let is_float = matches!(a, Value::Float(_)) || matches!(b, Value::Float(_));
    if op == Binary::Divide || is_float {
        let (a, b) = (float(a)?, float(b)?);
        return match op {
            Binary::Add => finite(a + b),
            Binary::Subtract => finite(a - b),
            Binary::Multiply => finite(a * b),
            Binary::Divide if b == 0.0 => Err(TypeError::DivisionByZero),
            Binary::Divide => finite(a / b),
            _ => Err(TypeError::TypeMismatch),
        };
    }
    let (a, b) = (big::integer(a)?, big::integer(b)?);
    let zero = BigInt::ZERO;
    big::value(&match op {
        Binary::Add => a + b,
        Binary::Subtract => a - b,
        Binary::Multiply => a * b,
        _ if b == zero => return Err(TypeError::DivisionByZero),
        Binary::IntDivide => a / b,
        _ => a % b,
    })
}

/// The float of a number.
///
/// # Errors
/// It is none, or too large.
pub(crate) fn float(value: &Value<'_>) -> Result<f64, TypeError> {
    let float = match value {
        Value::Int(i) => *i as f64,
        Value::Float(f) => *f,
        Value::Big(digits) => digits.parse().map_err(|_| TypeError::TypeMismatch)?,
        _ => return Err(TypeError::TypeMismatch),
    };
    if float.is_finite() { Ok(float) } else { Err(TypeError::NotFinite) }
}

/// Unary minus.
///
/// # Errors
/// Not a number.
pub(crate) fn negate<'a>(value: &Value<'_>) -> Result<Value<'a>, TypeError> {
    match value {
        Value::Float(f) => Ok(Value::Float(-f)),
        _ => big::value(&-big::integer(value)?),
    }
}

/// One step of a path. Text on the way is read as JSON; what is not there is missing.
///
/// # Errors
/// A range of what is no list, or with an end that is 0.
pub(crate) fn walk<'a>(value: Value<'a>, step: &Walk) -> Result<Value<'a>, TypeError> {
    let value = match value {
        Value::Text(text) => match decoded(text) {
            Some(value) => value,
            None if matches!(step, Walk::Range(..)) => return Err(TypeError::TypeMismatch),
            None => return Ok(Value::Missing),
        },
        other => other,
    };
    match step {
        Walk::Key(key) => Ok(member(value, key)),
        Walk::Index(index) => Ok(element(value, *index)),
        Walk::Range(from, to) => range(value, *from, *to),
    }
}

/// JSON in text.
pub(crate) fn decoded(text: Cow<'_, str>) -> Option<Value<'_>> {
    let found = json::document(text.as_bytes()).ok()?;
    match text {
        Cow::Borrowed(text) => Value::found(text.as_bytes(), found).ok(),
        Cow::Owned(text) => Value::found(text.as_bytes(), found).ok().map(Value::into_owned),
    }
}

fn member<'a>(value: Value<'a>, key: &str) -> Value<'a> {
    match &value {
        Value::Map(members) => members.get(key).cloned().unwrap_or(Value::Missing),
        Value::Json(_) => inside(value, |text| json::member(text, key)),
        _ => Value::Missing,
    }
}

fn element<'a>(value: Value<'a>, index: i64) -> Value<'a> {
    match &value {
        Value::List(items) => {
            place(index, items.len()).and_then(|at| items.get(at)).cloned().unwrap_or(Value::Missing)
        }
        Value::Json(_) => inside(value, |text| json::element(text, index)),
        _ => Value::Missing,
    }
}

fn inside<'a>(value: Value<'a>, find: impl Fn(&[u8]) -> Option<json::Found>) -> Value<'a> {
    match value {
        Value::Json(Cow::Borrowed(text)) => match find(text.as_bytes()) {
            Some(found) => Value::found(text.as_bytes(), found).unwrap_or(Value::Missing),
            None => Value::Missing,
        },
        Value::Json(Cow::Owned(text)) => match find(text.as_bytes()) {
            Some(found) => Value::found(text.as_bytes(), found).map_or(Value::Missing, Value::into_owned),
            None => Value::Missing,
        },
        _ => Value::Missing,
    }
}

fn range<'a>(value: Value<'a>, from: i64, to: i64) -> Result<Value<'a>, TypeError> {
    if from == 0 || to == 0 {
        return Err(TypeError::BadArgument);
    }
    let Value::List(items) = value.open() else { return Err(TypeError::TypeMismatch) };
    let len = i64::try_from(items.len()).unwrap_or(i64::MAX);
    let absolute = |end: i64| if end > 0 { end } else { len.saturating_add(end).saturating_add(1) };
    let (from, to) = (absolute(from).max(1), absolute(to).min(len));
    let (from, to) = (usize::try_from(from - 1).unwrap_or(0), usize::try_from(to).unwrap_or(0));
    Ok(Value::list(items.get(from..to).unwrap_or(&[]).to_vec()))
}

/// `[a..b]`.
///
/// # Errors
/// It would be larger than a text may be.
pub(crate) fn integers<'a>(from: i64, to: i64) -> Result<Value<'a>, TypeError> {
    let count = to.checked_sub(from).ok_or(TypeError::BadArgument)?;
    if count > (MAX_TEXT / 16) as i64 {
        return Err(TypeError::BadArgument);
    }
    Ok(Value::list((from..=to).map(Value::Int).collect()))
}

/// `value` put into `into` at a path. What is no object on the way becomes one, what is no list becomes one with this element.
pub(crate) fn put(into: Value<'_>, path: &[Put], value: Value<'static>) -> Value<'static> {
    let Some((step, rest)) = path.split_first() else { return value };
    let into = into.open().into_owned();
    match step {
        Put::Key(key) => {
            let mut members = match into {
                Value::Map(members) => Arc::unwrap_or_clone(members),
                _ => Map::new(),
            };
            let inner = members.get_mut(key).map_or(Value::Missing, std::mem::take);
            members.insert(key.clone(), put(inner, rest, value));
            Value::map(members)
        }
        Put::At(_) | Put::First | Put::Last => {
            let Value::List(items) = into else {
                return Value::list(vec![put(Value::Missing, rest, value)]);
            };
            let mut items = Arc::unwrap_or_clone(items);
            match step {
                Put::First => items.insert(0, put(Value::Missing, rest, value)),
                Put::Last => items.push(put(Value::Missing, rest, value)),
                Put::At(index) => {
                    if let Some(item) = place(*index, items.len()).and_then(|at| items.get_mut(at)) {
                        let inner = std::mem::take(item);
                        *item = put(inner, rest, value);
                    }
                }
                Put::Key(_) => {}
            }
            Value::list(items)
        }
    }
}
