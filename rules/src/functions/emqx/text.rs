//! Text, conversions and tests of types.
//!
//! Text functions take `true` and `false` as their words, and fail on a missing value, on null and on all else. Places and lengths count
//! grapheme clusters (Unicode Standard Annex 29), as the peer's do.

use std::borrow::Cow;

use unicode_segmentation::UnicodeSegmentation;

use super::number::{compact, integer_of};
use super::print::{printable, sprintf, sprintf_s};
use super::{Given, emqx, int_of, list_of, owned, take, text_of, within};
use crate::TypeError;
use crate::emqx::values;
use crate::functions::pattern::{self, Part};
use crate::functions::{Function, Surroundings};
use crate::value::{Map, Value, finite};

/// The most arguments of `sprintf`.
const ARGUMENTS_MAX: usize = 32;
/// The most parts of a text.
const PARTS_MAX: usize = 1 << 16;
pub(super) const FUNCTIONS: &[Function] = &[
    emqx("ascii", 1, 1, ascii),
    emqx("bool", 1, 1, boolean),
    emqx("coalesce", 1, 2, |args, _| first(args, |value| !matches!(value, Value::Missing))),
    emqx("coalesce_ne", 1, 2, |args, _| first(args, |value| !is_blank(value))),
    emqx("concat", 1, 2, concat),
    emqx("find", 2, 3, find),
    emqx("float", 1, 2, float),
    emqx("float2str", 2, 2, float2str),
    emqx("int", 1, 1, int),
    emqx("is_array", 1, 1, |args, _| is(args, |value| matches!(value, Value::List(_)))),
    emqx("is_bool", 1, 1, |args, _| is(args, |value| matches!(value, Value::Bool(_)))),
    emqx("is_empty", 1, 1, is_empty),
    emqx("is_float", 1, 1, |args, _| is(args, |value| matches!(value, Value::Float(_)))),
    emqx("is_int", 1, 1, |args, _| is(args, |value| matches!(value, Value::Int(_) | Value::Big(_)))),
    emqx("is_map", 1, 1, |args, _| is(args, |value| matches!(value, Value::Map(_)))),
    emqx("is_not_null", 1, 1, |args, _| is(args, |value| !matches!(value, Value::Missing))),
    emqx("is_not_null_var", 1, 1, |args, _| is(args, |value| !matches!(value, Value::Missing | Value::Null))),
    emqx("is_null", 1, 1, |args, _| is(args, |value| matches!(value, Value::Missing))),
    emqx("is_null_var", 1, 1, |args, _| is(args, |value| matches!(value, Value::Missing | Value::Null))),
    emqx("is_num", 1, 1, |args, _| {
        is(args, |value| matches!(value, Value::Int(_) | Value::Big(_) | Value::Float(_)))
    }),
    emqx("is_str", 1, 1, |args, _| is(args, |value| matches!(value, Value::Text(_) | Value::Bytes(_)))),
    emqx("join_to_sql_values_string", 1, 1, join_to_sql_values_string),
    emqx("join_to_string", 1, 2, join_to_string),
    emqx("lower", 1, 1, |args, _| Ok(owned(text_of(&take(args, 0))?.to_lowercase()))),
    emqx("ltrim", 1, 1, |args, _| Ok(owned(text_of(&take(args, 0))?.trim_start()))),
    emqx("map", 1, 1, map),
    emqx("map_to_redis_hset_args", 1, 1, map_to_redis_hset_args),
    emqx("null", 0, 0, |_, _| Ok(Value::Missing)),
    emqx("pad", 2, 4, pad),
    emqx("regex_extract", 2, 2, regex_extract),
    emqx("regex_match", 2, 2, regex_match),
    emqx("regex_replace", 3, 3, regex_replace),
    emqx("replace", 3, 4, replace),
    emqx("reverse", 1, 1, reverse),
    emqx("rm_prefix", 2, 2, rm_prefix),
    emqx("rtrim", 1, 2, rtrim),
    emqx("split", 2, 3, split),
    emqx("sprintf", 1, ARGUMENTS_MAX, sprintf),
    emqx("sprintf_s", 2, 2, sprintf_s),
    emqx("str", 1, 1, str),
    emqx("str_utf16_le", 1, 1, str_utf16_le),
    emqx("str_utf8", 1, 1, str),
    emqx("strlen", 1, 1, strlen),
    emqx("substr", 2, 3, substr),
    emqx("tokens", 2, 3, tokens),
    emqx("trim", 1, 1, |args, _| Ok(owned(text_of(&take(args, 0))?.trim()))),
    emqx("unescape", 1, 1, unescape),
    emqx("upper", 1, 1, |args, _| Ok(owned(text_of(&take(args, 0))?.to_uppercase()))),
];

// === conversions ===

/// What `str()` makes of a value: words for booleans, null and what is missing, at most ten decimals of a float,
/// the text that a list of code points is, JSON of the rest.
pub(crate) fn to_str(value: &Value<'_>, out: &mut Vec<u8>) {
    match value {
        Value::Missing => out.extend_from_slice(b"undefined"),
        Value::Null => out.extend_from_slice(b"null"),
        Value::Float(f) => {
            if let Value::Text(text) = compact(*f, 10) {
                out.extend_from_slice(text.as_bytes());
            }
        }
        other => match code_points(other) {
            Some(mut text) => out.append(&mut text),
            None => other.write_text(out),
        },
    }
}

/// What a list of printable code points (Latin-1, as io_lib:printable_list has it) says: a string of Erlang's.
fn code_points(value: &Value<'_>) -> Option<Vec<u8>> {
    let code = |item: &Value<'_>| match item {
        Value::Int(code) => u8::try_from(*code).ok().filter(|c| printable(*c)),
        _ => None,
    };
    match value {
        Value::List(items) => items.iter().map(code).collect(),
        Value::Json(text) if text.starts_with('[') => {
            let text = text.as_bytes();
            crate::json::items(text).map(|(_, found)| code(&Value::found(text, found).ok()?)).collect()
        }
        _ => None,
    }
}

fn text_like(value: &Value<'_>, around: &Surroundings) -> Result<Vec<u8>, TypeError> {
    let mut out = Vec::new();
    to_str(value, &mut out);
    within(out.len(), around)?;
    Ok(out)
}

fn str<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    match take(args, 0) {
        text @ (Value::Text(_) | Value::Bytes(_)) => Ok(text),
        other => text_like(&other, around).map(Value::binary),
    }
}

fn str_utf16_le<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let text = String::from_utf8(text_like(&take(args, 0), around)?).map_err(|_| TypeError::BadArgument)?;
    Ok(Value::Bytes(text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>().into()))
}

fn int<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let value = match take(args, 0) {
        Value::Text(text) => values::number_in(&text)?,
        other => other,
    };
    match value {
        int @ (Value::Int(_) | Value::Big(_)) => Ok(int),
        Value::Float(f) => integer_of(f.floor()),
        Value::Bool(truth) => Ok(Value::Int(i64::from(truth))),
        _ => Err(TypeError::TypeMismatch),
    }
}

fn float<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let value = match take(args, 0) {
        Value::Text(text) => values::number_in(&text)?,
        other => other,
    };
    let float = values::float(&value)?;
    if args.len() == 1 {
        return finite(float);
    }
    let decimals = usize::try_from(int_of(&take(args, 1))?).ok().filter(|n| (1..=253).contains(n));
    let decimals = decimals.ok_or(TypeError::BadArgument)?;
    finite(format!("{float:.decimals$}").parse().map_err(|_| TypeError::BadArgument)?)
}

fn float2str<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let Value::Float(float) = take(args, 0) else { return Err(TypeError::TypeMismatch) };
    let decimals = usize::try_from(int_of(&take(args, 1))?).ok().filter(|n| *n <= 253);
    Ok(compact(float, decimals.ok_or(TypeError::BadArgument)?))
}

fn boolean<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    Ok(Value::Bool(match take(args, 0) {
        Value::Bool(truth) => truth,
        Value::Int(1) => true,
        Value::Int(0) => false,
        Value::Float(1.0) => true,
        Value::Float(0.0) => false,
        Value::Text(text) if text == "true" => true,
        Value::Text(text) if text == "false" => false,
        _ => return Err(TypeError::BadArgument),
    }))
}

/// JSON in text, any value.
fn decoded(text: &str) -> Result<Value<'_>, TypeError> {
    values::decoded(Cow::Borrowed(text)).map(Value::open).ok_or(TypeError::InvalidJson)
}

fn map<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    match take(args, 0) {
        map @ Value::Map(_) => Ok(map),
        Value::Text(text) => match decoded(&text)? {
            map @ Value::Map(_) => Ok(map.into_owned()),
            _ => Err(TypeError::BadArgument),
        },
        // Pairs: [["a", 1], ["b", 2]].
        Value::List(items) => {
            let mut members = Map::new();
            for item in items.iter() {
                let pair = item.clone().open();
                let [Value::Text(key), value] = list_of(&pair)? else { return Err(TypeError::BadArgument) };
                members.insert(key.to_string(), value.clone());
            }
            Ok(Value::map(members))
        }
        _ => Err(TypeError::TypeMismatch),
    }
}

// === what is there, and of which type ===

fn is<'a>(args: &mut [Value<'a>], what: fn(&Value<'_>) -> bool) -> Given<'a> {
    Ok(Value::Bool(what(&take(args, 0))))
}

fn is_blank(value: &Value<'_>) -> bool {
    match value {
        Value::Missing => true,
        Value::Text(text) => text.is_empty(),
        Value::List(items) => items.is_empty(),
        _ => false,
    }
}

/// The first of two, or of a list, that is so.
fn first<'a>(args: &mut [Value<'a>], so: fn(&Value<'_>) -> bool) -> Given<'a> {
    if args.len() == 1 {
        let list = take(args, 0);
        return Ok(list_of(&list)?.iter().find(|item| so(item)).cloned().unwrap_or(Value::Missing));
    }
    let (one, other) = (take(args, 0), take(args, 1));
    Ok(if so(&one) {
        one
    } else if so(&other) {
        other
    } else {
        Value::Missing
    })
}

fn is_empty<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    Ok(Value::Bool(match take(args, 0) {
        Value::List(items) => items.is_empty(),
        Value::Map(members) => members.is_empty(),
        Value::Text(text) if text.is_empty() => true,
        Value::Text(text) => match decoded(&text)? {
            Value::Map(members) => members.is_empty(),
            _ => return Err(TypeError::BadArgument),
        },
        _ => return Err(TypeError::TypeMismatch),
    }))
}

// === text ===

fn rtrim<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let text = take(args, 0);
    let text = text_of(&text)?;
    if args.len() == 1 {
        return Ok(owned(text.trim_end()));
    }
    let chars = take(args, 1);
    let chars = text_of(&chars)?;
    Ok(owned(text.trim_end_matches(|c| chars.contains(c))))
}

/// The peer's only works within ASCII; so does this one, and fails beyond.
fn reverse<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let text = take(args, 0);
    let text = text_of(&text)?;
    if !text.is_ascii() {
        return Err(TypeError::BadArgument);
    }
    Ok(owned(text.chars().rev().collect::<String>()))
}

fn rm_prefix<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let (text, prefix) = (take(args, 0), take(args, 1));
    let (text, prefix) = (text_of(&text)?, text_of(&prefix)?);
    Ok(owned(text.strip_prefix(&*prefix).unwrap_or(&text)))
}

fn ascii<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let text = take(args, 0);
    let first = text_of(&text)?.bytes().next().ok_or(TypeError::BadArgument)?;
    Ok(Value::Int(i64::from(first)))
}

fn strlen<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let text = take(args, 0);
    let count = text_of(&text)?.graphemes(true).count();
    i64::try_from(count).map(Value::Int).map_err(|_| TypeError::BadArgument)
}

fn substr<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let (text, start) = (take(args, 0), int_of(&take(args, 1)));
    let text = text_of(&text)?;
    let start = usize::try_from(start?).map_err(|_| TypeError::BadArgument)?;
    let count = match args.len() {
        2 => usize::MAX,
        _ => usize::try_from(int_of(&take(args, 2))?).map_err(|_| TypeError::BadArgument)?,
    };
    Ok(owned(text.graphemes(true).skip(start).take(count).collect::<String>()))
}

fn split<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let (text, separator, option) = (take(args, 0), take(args, 1), take(args, 2));
    let (text, separator) = (text_of(&text)?, text_of(&separator)?);
    let option = if args.len() == 2 { Cow::Borrowed("trim") } else { text_of(&option)? };
    let once = |parts: Option<(&str, &str)>| match parts {
        Some((before, behind)) => vec![before.to_owned(), behind.to_owned()],
        None => vec![text.to_string()],
    };
    let (keep, parts) = match &*option {
        // As Erlang's string:split: nothing separates nothing.
        _ if separator.is_empty() => (option.ends_with("notrim"), vec![text.to_string()]),
        "trim" | "notrim" => {
            (option == "notrim", text.split(&*separator).take(PARTS_MAX + 1).map(str::to_owned).collect())
        }
        "leading" | "leading_notrim" => (option == "leading_notrim", once(text.split_once(&*separator))),
        "trailing" | "trailing_notrim" => (option == "trailing_notrim", once(text.rsplit_once(&*separator))),
        _ => return Err(TypeError::BadArgument),
    };
    list_of_parts(parts.iter().map(String::as_str).filter(|part| keep || !part.is_empty()))
}

fn tokens<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let (text, separators, option) = (take(args, 0), take(args, 1), take(args, 2));
    let (text, separators) = (text_of(&text)?, text_of(&separators)?);
    let line_ends = match args.len() {
        2 => "",
        _ if text_of(&option)? == "nocrlf" => "\r\n",
        _ => return Err(TypeError::BadArgument),
    };
    let parts = text.split(|c| separators.contains(c) || line_ends.contains(c));
    list_of_parts(parts.filter(|part| !part.is_empty()))
}

fn list_of_parts<'a, 'p>(parts: impl Iterator<Item = &'p str>) -> Given<'a> {
    let list: Vec<Value<'static>> = parts.take(PARTS_MAX + 1).map(owned).collect();
    if list.len() > PARTS_MAX { Err(TypeError::BadArgument) } else { Ok(Value::list(list)) }
}

fn concat<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let mut out = Vec::new();
    if args.len() == 1 {
        let list = take(args, 0);
        for item in list_of(&list)? {
            to_str(item, &mut out);
            within(out.len(), around)?;
        }
    } else {
        for arg in args.iter() {
            to_str(arg, &mut out);
            within(out.len(), around)?;
        }
    }
    Ok(Value::binary(out))
}

fn pad<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let (text, length, side, with) = (take(args, 0), int_of(&take(args, 1)), take(args, 2), take(args, 3));
    let text = text_of(&text)?;
    let length = usize::try_from(length?).map_err(|_| TypeError::BadArgument)?;
    let side = if args.len() > 2 { text_of(&side)? } else { Cow::Borrowed("trailing") };
    let with = if args.len() > 3 { text_of(&with)? } else { Cow::Borrowed(" ") };
    let missing = length.saturating_sub(text.graphemes(true).count());
    within(missing.saturating_mul(with.len()).saturating_add(text.len()), around)?;
    let (before, behind) = match &*side {
        "leading" => (missing, 0),
        "trailing" => (0, missing),
        "both" => (missing / 2, missing - missing / 2),
        _ => return Err(TypeError::BadArgument),
    };
    Ok(owned([&*with.repeat(before), &*text, &*with.repeat(behind)].concat()))
}

fn replace<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let (text, from, to, which) = (take(args, 0), take(args, 1), take(args, 2), take(args, 3));
    let (text, from, to) = (text_of(&text)?, text_of(&from)?, text_of(&to)?);
    let which = if args.len() > 3 { text_of(&which)? } else { Cow::Borrowed("all") };
    if from.is_empty() {
        return Ok(owned(text.into_owned()));
    }
    let found = text.matches(&*from).count();
    within(text.len().saturating_add(found.saturating_mul(to.len())), around)?;
    Ok(owned(match &*which {
        "all" => text.replace(&*from, &to),
        "leading" => text.replacen(&*from, &to, 1),
        "trailing" => match text.rsplit_once(&*from) {
            Some((before, behind)) => [before, &to, behind].concat(),
            None => text.into_owned(),
        },
        _ => return Err(TypeError::BadArgument),
    }))
}

fn find<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let (text, part, side) = (take(args, 0), take(args, 1), take(args, 2));
    let (text, part) = (text_of(&text)?, text_of(&part)?);
    let side = if args.len() > 2 { text_of(&side)? } else { Cow::Borrowed("leading") };
    let at = match &*side {
        _ if part.is_empty() => Some(0),
        "leading" => text.find(&*part),
        "trailing" => text.rfind(&*part),
        _ => return Err(TypeError::BadArgument),
    };
    Ok(owned(at.and_then(|at| text.get(at..)).unwrap_or("")))
}

fn join_to_string<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let (separator, list) = match args.len() {
        1 => (Value::Text(Cow::Borrowed(", ")), take(args, 0)),
        _ => (take(args, 0), take(args, 1)),
    };
    let separator = text_of(&separator)?;
    let mut out = Vec::new();
    for (at, item) in list_of(&list)?.iter().enumerate() {
        if at > 0 {
            out.extend_from_slice(separator.as_bytes());
        }
        to_str(item, &mut out);
        within(out.len(), around)?;
    }
    Ok(Value::binary(out))
}

fn join_to_sql_values_string<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let list = take(args, 0);
    let mut out = String::new();
    for (at, item) in list_of(&list)?.iter().enumerate() {
        if at > 0 {
            out.push_str(", ");
        }
        let mut text = Vec::new();
        match item {
            // Lists are JSON here, also those that are text elsewhere.
            Value::List(_) | Value::Json(_) => item.write_text(&mut text),
            other => to_str(other, &mut text),
        }
        within(text.len(), around)?;
        let text = String::from_utf8(text).map_err(|_| TypeError::BadArgument)?;
        match item {
            Value::Int(_) | Value::Big(_) | Value::Float(_) => out.push_str(&text),
            _ => {
                let quoted = text.replace('\\', "\\\\").replace('\'', "\\'");
                out.push_str(&format!("'{quoted}'"));
            }
        }
        within(out.len(), around)?;
    }
    Ok(owned(out))
}

/// A flat list of fields and their values; what is neither text nor number is left out.
fn map_to_redis_hset_args<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let members = match take(args, 0) {
        Value::Text(text) => decoded(&text).map_or(Value::Missing, Value::into_owned),
        other => other.into_owned(),
    };
    let Value::Map(members) = members else { return Ok(Value::list(Vec::new())) };
    let mut out = Vec::new();
    for (key, value) in members.iter() {
        let value = match value {
            Value::Float(f) => compact(*f, 6),
            Value::Int(_) | Value::Big(_) | Value::Bool(_) => {
                let mut text = Vec::new();
                to_str(value, &mut text);
                Value::binary(text)
            }
            Value::Text(_) => value.clone(),
            _ => continue,
        };
        out.extend([owned(key.clone()), value]);
    }
    Ok(Value::list(out))
}

fn unescape<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let text = take(args, 0);
    let text = text_of(&text)?;
    let mut out = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        out.push(match rest.next() {
            Some(c @ ('\\' | '\'' | '"' | '?')) => c,
            Some('n') => '\n',
            Some('t') => '\t',
            Some('r') => '\r',
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('v') => '\u{b}',
            Some('a') => '\u{7}',
            Some('x') => {
                let mut code: Option<u32> = None;
                while let Some(digit) = rest.peek().and_then(|c| c.to_digit(16)) {
                    rest.next();
                    let next = code.unwrap_or(0).checked_mul(16).and_then(|code| code.checked_add(digit));
                    code = Some(next.ok_or(TypeError::BadArgument)?);
                }
                code.and_then(char::from_u32).ok_or(TypeError::BadArgument)?
            }
            _ => return Err(TypeError::BadArgument),
        });
    }
    Ok(owned(out))
}

// === regular expressions ===

fn regex_match<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let (text, regex) = (take(args, 0), take(args, 1));
    let regex = pattern::compiled(&text_of(&regex)?)?;
    regex.is_match(&*text_of(&text)?).map(Value::Bool).map_err(|_| TypeError::BadArgument)
}

fn regex_extract<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let (text, regex) = (take(args, 0), take(args, 1));
    // An empty list is empty text there.
    let text = match &text {
        Value::List(items) if items.is_empty() => Cow::Borrowed(""),
        text => text_of(text)?,
    };
    let regex = pattern::compiled(&text_of(&regex)?)?;
    let found = regex.captures(&*text).map_err(|_| TypeError::BadArgument)?;
    let groups = found.iter().flat_map(|found| found.iter().skip(1));
    Ok(Value::list(groups.map(|group| owned(group.map_or("", |m| m.as_str()))).collect()))
}

/// `&` in what takes the place of a match is the match, `\1` its first group, `\&` and `\\` themselves.
fn regex_replace<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let (text, regex, with) = (take(args, 0), take(args, 1), take(args, 2));
    let (text, with) = (text_of(&text)?, text_of(&with)?);
    let regex = pattern::compiled(&text_of(&regex)?)?;
    let parts = pattern::replacement(&with, |c, next| match (c, next) {
        ('&', _) => Some((Part::Group(0), 1)),
        ('\\', Some(digit @ '0'..='9')) => Some((Part::group(digit), 2)),
        ('\\', Some(literal @ ('&' | '\\'))) => Some((Part::Literal(literal), 2)),
        _ => None,
    });
    pattern::replace(&text, &regex, &parts, around).map(owned)
}

#[cfg(test)]
mod tests {
    use super::super::tests::check;

    const MISSING: &str = "[{\"$undefined\":true}]";

    #[test]
    fn conversions() {
        check(&[
            ("str", "[1]", "\"1\""),
            ("str", "[1.0]", "\"1.0\""),
            ("str", "[0.1]", "\"0.1\""),
            ("str", "[1.123456789012]", "\"1.123456789\""),
            ("str", "[null]", "\"null\""),
            ("str", MISSING, "\"undefined\""),
            ("str", "[[72,105]]", "\"Hi\""),
            ("str", "[[]]", "\"\""),
            ("str", "[[72,1]]", "\"[72,1]\""),
            ("concat", "[\"a\",[72,105]]", "\"aHi\""),
            ("str", "[[1,\"a\"]]", "\"[1,\\\"a\\\"]\""),
            ("str_utf16_le", "[\"a\"]", "{\"$bytes\":\"6100\"}"),
            ("int", "[\"-1.5\"]", "-2"),
            ("int", "[-1.5]", "-2"),
            ("int", "[true]", "1"),
            ("int", "[\"12345678901234567890\"]", "12345678901234567890"),
            ("int", "[\"abc\"]", "error"),
            ("int", "[null]", "error"),
            ("float", "[\"1\"]", "1.0"),
            ("float", "[3.14159, 2]", "3.14"),
            ("float", "[3.14159, 0]", "error"),
            ("float2str", "[20.2, 1]", "\"20.2\""),
            ("float2str", "[20, 1]", "error"),
            ("bool", "[\"true\"]", "true"),
            ("bool", "[0.0]", "false"),
            ("bool", "[2]", "error"),
            ("map", "[\"{\\\"a\\\":1}\"]", "{\"a\":1}"),
            ("map", "[[[\"a\",1]]]", "{\"a\":1}"),
            ("map", "[1.0]", "error"),
        ]);
    }

    #[test]
    fn what_is_there() {
        check(&[
            ("is_null", MISSING, "true"),
            ("is_null", "[null]", "false"),
            ("is_null_var", "[null]", "true"),
            ("is_not_null", "[\"\"]", "true"),
            ("is_str", "[\"1\"]", "true"),
            ("is_int", "[1.0]", "false"),
            ("is_num", "[1.0]", "true"),
            ("is_array", "[[]]", "true"),
            ("is_map", "[{}]", "true"),
            ("is_empty", "[\"{}\"]", "true"),
            ("is_empty", "[\"abc\"]", "error"),
            ("coalesce", "[{\"$undefined\":true}, 1]", "1"),
            ("coalesce", "[null, 1]", "null"),
            ("coalesce", "[[]]", "\"undefined\""),
            ("coalesce_ne", "[\"\", 1]", "1"),
            ("null", "[]", "\"undefined\""),
        ]);
    }

    #[test]
    fn text() {
        check(&[
            ("upper", "[\"straße\"]", "\"STRASSE\""),
            ("lower", MISSING, "error"),
            ("lower", "[true]", "\"true\""),
            ("trim", "[\" a \\n\"]", "\"a\""),
            ("rtrim", "[\"a--\", \"-\"]", "\"a\""),
            ("reverse", "[\"你\"]", "error"),
            ("strlen", "[\"你好\"]", "2"),
            ("substr", "[\"abcdef\", 2, 3]", "\"cde\""),
            ("substr", "[\"abcdef\", 10]", "\"\""),
            ("substr", "[\"abcdef\", -1]", "error"),
            ("split", "[\"a,b,,c\", \",\"]", "[\"a\",\"b\",\"c\"]"),
            ("split", "[\"a,b,,c\", \",\", \"notrim\"]", "[\"a\",\"b\",\"\",\"c\"]"),
            ("split", "[\"a/b//c/\", \"/\", \"trailing\"]", "[\"a/b//c\"]"),
            ("split", "[\"a\", \"/\", \"other\"]", "error"),
            ("split", "[\"abc\", \"\"]", "[\"abc\"]"),
            ("split", "[\"\", \"\"]", "[]"),
            ("split", "[\"\", \"\", \"notrim\"]", "[\"\"]"),
            ("find", "[\"abc\", \"\"]", "\"abc\""),
            ("find", "[\"abc\", \"\", \"trailing\"]", "\"abc\""),
            ("tokens", "[\"a,b,c\\r\\n\", \",\", \"nocrlf\"]", "[\"a\",\"b\",\"c\"]"),
            ("concat", "[\"a\", {\"$undefined\":true}]", "\"aundefined\""),
            ("concat", "[[1, \"a\", null]]", "\"1anull\""),
            ("pad", "[\"abc\", 6, \"both\", \"-\"]", "\"-abc--\""),
            ("pad", "[\"abc\", 99999999]", "error"),
            ("replace", "[\"aXbX\", \"X\", \"-\", \"trailing\"]", "\"aXb-\""),
            ("find", "[\"abcabc\", \"c\", \"trailing\"]", "\"c\""),
            ("join_to_string", "[[\"a\", 1]]", "\"a, 1\""),
            ("join_to_sql_values_string", "[[1, \"it's\"]]", "\"1, 'it\\\\'s'\""),
            ("map_to_redis_hset_args", "[{\"a\":1,\"b\":[1],\"c\":1.5}]", "[\"a\",\"1\",\"c\",\"1.5\"]"),
            ("unescape", "[\"\\\\x0Ahej\\\\t\"]", "\"\\nhej\\t\""),
            ("unescape", "[\"\\\\q\"]", "error"),
            ("unescape", "[\"\\\\xFFFFFFFFFF\"]", "error"),
            ("rm_prefix", "[\"atom\", \"a\"]", "\"tom\""),
            ("ascii", "[\"\"]", "error"),
        ]);
    }

    #[test]
    fn regular_expressions() {
        check(&[
            ("regex_match", "[\"acbcd\", \"(ac)+\"]", "true"),
            ("regex_match", "[\"a\", \"(?=b)\"]", "false"),
            ("regex_match", "[\"a\", \"(\"]", "error"),
            ("regex_replace", "[\"accbcd\", \"c+\", \"[&]\"]", "\"a[cc]b[c]d\""),
            ("regex_replace", "[\"a1b2\", \"([a-z])([0-9])\", \"\\\\2\\\\1\"]", "\"1a2b\""),
            ("regex_extract", "[\"2021-05\", \"(\\\\d{4})-(\\\\d{2})\"]", "[\"2021\",\"05\"]"),
            // One that calls itself is written out when it is compiled.
            ("regex_match", "[\"aaabbb\", \"^(?=a)(a(?1)?(?1)?(?1)?b)$\"]", "error"),
            // Without a bound this one would not come back.
            ("regex_match", "[\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab\", \"^(?=a)(a|aa)+\\\\1$\"]", "error"),
        ]);
    }
}
