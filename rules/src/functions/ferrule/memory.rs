//! What a rule remembers between messages: its own table ([`crate::state`]), by keys that it names.
//!
//! `state_...` name the key alone. The others keep what they need under the key *and* their place in the rule, which the planner gives as the
//! first argument: two `lag()`s of one device do not disturb each other.

use super::equal::canonical;
use super::*;
use crate::state::Table;

pub(in crate::functions) const FUNCTIONS: &[Function] = &[
    lenient("changed", 2, 2, changed),
    lenient("deadband", 3, 3, deadband),
    lenient("every", 2, 2, every),
    lenient("hysteresis", 4, 4, hysteresis),
    lenient("lag", 2, 3, lag),
    lenient("smooth", 3, 3, smooth),
    lenient("state_delete", 1, 1, state_delete),
    lenient("state_get", 1, 2, state_get),
    lenient("state_put", 2, 2, state_put),
];

/// Whether a function remembers under its place.
pub(crate) fn is_placed(name: &str) -> bool {
    FUNCTIONS.iter().any(|f| f.name == name) && !name.starts_with("state_")
}

/// Whether a function remembers at all.
pub(crate) fn is_own(name: &str) -> bool {
    FUNCTIONS.iter().any(|f| f.name == name)
}

fn table(around: &mut Surroundings) -> &mut Table {
    around.state.get_or_insert_default()
}

/// A key: text, a number or a boolean. NULL names nothing.
fn key<'a>(value: Value<'a>) -> Result<Option<Value<'a>>, TypeError> {
    match value {
        Value::Null => Ok(None),
        Value::Text(_) | Value::Int(_) | Value::Float(_) | Value::Bool(_) => Ok(Some(value)),
        _ => Err(TypeError::TypeMismatch),
    }
}

/// The key of a place.
fn placed(place: Value<'_>, of: Value<'_>) -> Result<Option<Value<'static>>, TypeError> {
    Ok(key(of)?.map(|of| Value::list(vec![place.into_owned(), of.into_owned()])))
}

fn state_get<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let default = take(args, 1);
    let Some(key) = key(take(args, 0))? else { return Ok(default) };
    Ok(table(around).get(&key).unwrap_or(default))
}

fn state_put<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let Some(key) = key(take(args, 0))? else { return Ok(Value::Null) };
    let value = take(args, 1);
    table(around).put(&key, value.clone())?;
    Ok(value)
}

fn state_delete<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let Some(key) = key(take(args, 0))? else { return Ok(Value::Null) };
    Ok(table(around).remove(&key).unwrap_or_default())
}

fn lag<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let default = take(args, 3);
    let Some(key) = placed(take(args, 0), take(args, 2))? else { return Ok(Value::Null) };
    Ok(table(around).put(&key, take(args, 1))?.unwrap_or(default))
}

fn changed<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let Some(key) = placed(take(args, 0), take(args, 2))? else { return Ok(Value::Null) };
    let value = take(args, 1).into_owned();
    let before = table(around).get(&key);
    let is_same = before.as_ref().is_some_and(|before| canonical(before) == canonical(&value));
    if !is_same {
        table(around).put(&key, value)?;
    }
    Ok(Value::Bool(!is_same))
}

fn deadband<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let Some(key) = placed(take(args, 0), take(args, 3))? else { return Ok(Value::Null) };
    let (Some(value), Some(width)) = (optional(arg(args, 1))?, optional(arg(args, 2))?) else {
        return Ok(Value::Null);
    };
    if width < 0.0 {
        return Err(TypeError::BadArgument);
    }
    let before = table(around).get(&key).and_then(|before| optional(&before).ok().flatten());
    let passes = before.is_none_or(|before| (value - before).abs() >= width);
    if passes {
        table(around).put(&key, Value::Float(value))?;
    }
    Ok(Value::Bool(passes))
}

fn every<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let Some(key) = placed(take(args, 0), take(args, 2))? else { return Ok(Value::Null) };
    let interval = match arg(args, 1) {
        Value::Int(ms @ 0..) => *ms,
        Value::Null => return Ok(Value::Null),
        Value::Int(_) => return Err(TypeError::BadArgument),
        _ => return Err(TypeError::TypeMismatch),
    };
    let now = around.wall_ms;
    let is_due = match table(around).get(&key) {
        // A clock that was set back must not silence it for long.
        Some(Value::Int(last)) => now < last || now - last >= interval,
        _ => true,
    };
    if is_due {
        table(around).put(&key, Value::Int(now))?;
    }
    Ok(Value::Bool(is_due))
}

fn hysteresis<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let Some(key) = placed(take(args, 0), take(args, 4))? else { return Ok(Value::Null) };
    let (Some(low), Some(high)) = (optional(arg(args, 2))?, optional(arg(args, 3))?) else {
        return Ok(Value::Null);
    };
    if low > high {
        return Err(TypeError::BadArgument);
    }
    let was = table(around).get(&key) == Some(Value::Bool(true));
    let is = match optional(arg(args, 1))? {
        Some(value) if value >= high => true,
        Some(value) if value <= low => false,
        _ => was,
    };
    if is != was {
        table(around).put(&key, Value::Bool(is))?;
    }
    Ok(Value::Bool(is))
}

fn smooth<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let Some(key) = placed(take(args, 0), take(args, 3))? else { return Ok(Value::Null) };
    let Some(factor) = optional(arg(args, 2))? else { return Ok(Value::Null) };
    if !(0.0..=1.0).contains(&factor) {
        return Err(TypeError::BadArgument);
    }
    let before = table(around).get(&key).and_then(|before| optional(&before).ok().flatten());
    let Some(value) = optional(arg(args, 1))? else { return Ok(before.map_or(Value::Null, Value::Float)) };
    let smooth = before.map_or(value, |before| before + factor * (value - before));
    if !smooth.is_finite() {
        return Err(TypeError::NotFinite);
    }
    table(around).put(&key, Value::Float(smooth))?;
    Ok(Value::Float(smooth))
}

/// A number; none of NULL.
fn optional(value: &Value<'_>) -> Result<Option<f64>, TypeError> {
    match value {
        Value::Int(i) => Ok(Some(*i as f64)),
        Value::Float(f) => Ok(Some(*f)),
        Value::Null => Ok(None),
        _ => Err(TypeError::TypeMismatch),
    }
}
