//! The functions of the default dialect: SQL's names, in any case.
//!
//! What holds for all of them:
//! * A NULL argument gives NULL unless the description says otherwise.
//! * Text is not taken for a number, nor a number for text: [`TypeError::TypeMismatch`]; `to_number()` and its like convert.
//!   An argument out of its range is [`TypeError::BadArgument`]. Either makes the expression NULL and is counted.
//! * What is looked into comes first: `strpos(text, part)`, `array_position(array, element)`.
//! * Places count from 1, from the end with negative numbers; bits have the numbers of their powers of two, from 0.
//! * Characters are Unicode's code points. Bytes are bytes or the UTF-8 of a text, and bytes that come out of a function are
//!   text when they are UTF-8, as it is with payloads.
//! * Integers have 64 bits ([`TypeError::IntegerOverflow`]); a longer one from a payload is passed on, not calculated with.
//! * Arrays and objects come and go as JSON text ([`Value::Json`]): parts are copied as they stand, and numbers keep their digits.
//! * Nothing larger than [`Surroundings::max_text`] is made; that is checked before.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::HashSet;
use std::ops::Range;

use super::{
    Call, Function, Given, Manner, Surroundings, bytes_of, count_value, emqx, int_of, owned, pattern, within,
};
use crate::TypeError;
use crate::json;
use crate::value::{Value, write_json_text};

mod array;
mod binary;
mod codec;
mod convert;
mod elsewhere;
mod equal;
mod formats;
mod literals;
mod memory;
mod number;
mod object;
mod print;
mod regexp;
mod text;
mod time;

pub use elsewhere::NAMES as FUNCTIONS_ELSEWHERE;
pub(crate) use elsewhere::instead_of;
pub(crate) use literals::mistake;
pub(crate) use memory::{is_own, is_placed};
pub(crate) use time::rfc3339_ms;

/// All of them: of each file one part, each in the order of its names.
pub(super) const PARTS: [&[Function]; 11] = [
    text::FUNCTIONS,
    regexp::FUNCTIONS,
    number::FUNCTIONS,
    convert::FUNCTIONS,
    array::FUNCTIONS,
    object::FUNCTIONS,
    time::FUNCTIONS,
    codec::FUNCTIONS,
    formats::FUNCTIONS,
    binary::FUNCTIONS,
    memory::FUNCTIONS,
];

/// How many there are.
pub(super) const COUNT: usize = super::count(&PARTS);

/// What each function means, by groups: a title, and TOML with name, other names, signature, meaning, examples, and how the
/// functions of that name in EMQX and eKuiper differ.
pub const FUNCTIONS_TOML: [(&str, &str); 11] = [
    ("Text", include_str!("text.toml")),
    ("Regular expressions, topics", include_str!("regexp.toml")),
    ("Numbers and bits", include_str!("number.toml")),
    ("Types and conversions", include_str!("convert.toml")),
    ("Arrays", include_str!("array.toml")),
    ("Objects", include_str!("object.toml")),
    ("Dates and times", include_str!("time.toml")),
    ("Encodings, hashes, identity", include_str!("codec.toml")),
    ("Payload formats", include_str!("formats.toml")),
    ("Binary frames", include_str!("binary.toml")),
    ("What a rule remembers", include_str!("memory.toml")),
];

/// The names of all functions of the default dialect.
pub fn names() -> impl Iterator<Item = &'static str> + Clone {
    PARTS.iter().flat_map(|part| part.iter()).map(|f| f.name)
}

/// The most arguments of any function.
const MANY: usize = 64;

/// A function that is not called with a NULL.
const fn strict(name: &'static str, min: usize, max: usize, call: Call) -> Function {
    Function { name, min, max, manner: Manner::Strict, call }
}

/// A function that takes NULLs.
const fn lenient(name: &'static str, min: usize, max: usize, call: Call) -> Function {
    Function { name, min, max, manner: Manner::Lenient, call }
}

/// A result as the dialect has it: arrays and objects as text.
pub(super) fn closed<'a>(value: Value<'a>, around: &Surroundings) -> Given<'a> {
    if !matches!(value, Value::List(_) | Value::Map(_)) {
        return Ok(value);
    }
    let mut out = Json::new(around);
    out.value(&value, 0)?;
    Ok(out.end())
}

// === arguments ===

fn take<'a>(args: &mut [Value<'a>], index: usize) -> Value<'a> {
    args.get_mut(index).map(std::mem::take).unwrap_or_default()
}

/// The argument `index`; NULL when it has been left out.
fn arg<'v, 'a>(args: &'v [Value<'a>], index: usize) -> &'v Value<'a> {
    args.get(index).unwrap_or(&Value::Null)
}

fn text_of<'v>(value: &'v Value<'_>) -> Result<&'v str, TypeError> {
    match value {
        Value::Text(text) => Ok(text),
        _ => Err(TypeError::TypeMismatch),
    }
}

/// The text that the argument `index` is, or a default when it has been left out.
fn text_or<'v>(args: &'v [Value<'_>], index: usize, default: &'static str) -> Result<&'v str, TypeError> {
    args.get(index).map_or(Ok(default), text_of)
}

/// The integer that the argument `index` is, or a default when it has been left out.
fn int_or(args: &[Value<'_>], index: usize, default: i64) -> Result<i64, TypeError> {
    args.get(index).map_or(Ok(default), int_of)
}

/// How many of something; none when it is negative.
fn count_of(value: &Value<'_>) -> Result<usize, TypeError> {
    Ok(usize::try_from(int_of(value)?.max(0)).unwrap_or(usize::MAX))
}

/// The bounds among `len` of what begins at place `from` and has at most `count`.
fn span_of(len: usize, from: i64, count: usize) -> Result<Range<usize>, TypeError> {
    let start = match from {
        0 => return Err(TypeError::BadArgument),
        1.. => usize::try_from(from - 1).unwrap_or(usize::MAX).min(len),
        _ => len.saturating_sub(usize::try_from(from.unsigned_abs()).unwrap_or(usize::MAX)),
    };
    Ok(start..start.saturating_add(count).min(len))
}

/// A part of a text, given by bytes; borrowed if the text is.
fn part_of<'a>(text: Value<'a>, range: Range<usize>) -> Given<'a> {
    match text {
        Value::Text(Cow::Borrowed(text)) => Ok(Value::Text(Cow::Borrowed(text.get(range).unwrap_or("")))),
        Value::Text(Cow::Owned(text)) => Ok(owned(text.get(range).unwrap_or(""))),
        _ => Err(TypeError::TypeMismatch),
    }
}

/// The order of two values that have one: arrays and objects do not.
fn ordered(a: &Value<'_>, b: &Value<'_>) -> Result<Ordering, TypeError> {
    if matches!(a, Value::Json(_)) {
        return Err(TypeError::TypeMismatch);
    }
    crate::value::order(a, b)?.ok_or(TypeError::TypeMismatch)
}

/// The text of an array.
fn array_of<'v>(value: &'v Value<'_>) -> Result<&'v str, TypeError> {
    match value {
        Value::Json(text) if text.starts_with('[') => Ok(text),
        _ => Err(TypeError::TypeMismatch),
    }
}

/// The text of an object.
fn object_of<'v>(value: &'v Value<'_>) -> Result<&'v str, TypeError> {
    match value {
        Value::Json(text) if text.starts_with('{') => Ok(text),
        _ => Err(TypeError::TypeMismatch),
    }
}

/// The elements of an array's text, each with the text it is.
fn elements(array: &str) -> impl Iterator<Item = Result<(Value<'_>, &str), TypeError>> {
    let bytes = array.as_bytes();
    json::items(bytes).map(move |(_, found)| Ok((Value::found(bytes, found)?, raw(array, found))))
}

/// The members of an object's text: key and value, each as the text it is. Of one name the first.
fn members(object: &str) -> impl Iterator<Item = (Cow<'_, str>, json::Found)> {
    let bytes = object.as_bytes();
    let mut seen = HashSet::new();
    json::items(bytes)
        .filter_map(move |(key, found)| Some((json::content(bytes, key?), found)))
        .filter(move |(key, _)| seen.insert(key.clone()))
}

/// The text of what has been found in a text.
fn raw(text: &str, found: json::Found) -> &str {
    text.get(found.start as usize..found.end as usize).unwrap_or("")
}

// === results ===

/// JSON text in the making, at most as large as may be made.
struct Json<'s> {
    out: Vec<u8>,
    around: &'s Surroundings,
}

impl<'s> Json<'s> {
    fn new(around: &'s Surroundings) -> Self {
        Json { out: Vec::new(), around }
    }

    /// An array or object that begins with its bracket.
    fn open(bracket: u8, around: &'s Surroundings) -> Self {
        Json { out: vec![bracket], around }
    }

    /// Appends a comma unless this is the first element or member.
    fn comma(&mut self) {
        if !matches!(self.out.last(), Some(b'[' | b'{' | b':') | None) {
            self.out.push(b',');
        }
    }

    /// Appends an element that is JSON already.
    fn raw(&mut self, text: &str) -> Result<(), TypeError> {
        within(self.out.len().saturating_add(text.len()).saturating_add(2), self.around)?;
        self.comma();
        self.out.extend_from_slice(text.as_bytes());
        Ok(())
    }

    /// Appends the elements of an array that is JSON already.
    fn inner(&mut self, array: &str) -> Result<(), TypeError> {
        let inner = array.get(1..array.len().saturating_sub(1)).unwrap_or("").trim_ascii();
        if inner.is_empty() { Ok(()) } else { self.raw(inner) }
    }

    /// Closes an object within.
    fn end_object(&mut self) {
        self.out.push(b'}');
    }

    /// Appends an element that is a text.
    fn text(&mut self, text: &str) -> Result<(), TypeError> {
        within(self.out.len().saturating_add(text.len()).saturating_add(4), self.around)?;
        self.comma();
        write_json_text(text, &mut self.out);
        within(self.out.len().saturating_add(1), self.around)
    }

    /// Appends the key of a member; its value comes next.
    fn key(&mut self, key: &str) -> Result<(), TypeError> {
        self.text(key)?;
        self.out.push(b':');
        Ok(())
    }

    /// Appends an element; `depth` is how many are around it.
    fn value(&mut self, value: &Value<'_>, depth: usize) -> Result<(), TypeError> {
        if depth > json::MAX_DEPTH {
            return Err(TypeError::BadArgument);
        }
        match value {
            Value::Text(text) => self.text(text),
            Value::Json(text) | Value::Big(text) => self.raw(text),
            Value::Bytes(bytes) => {
                within(self.out.len().saturating_add(bytes.len().saturating_mul(2)), self.around)?;
                self.comma();
                value.write_json(&mut self.out);
                within(self.out.len(), self.around)
            }
            Value::List(items) => {
                self.raw("[")?;
                items.iter().try_for_each(|item| self.value(item, depth + 1))?;
                self.out.push(b']');
                Ok(())
            }
            Value::Map(members) => {
                self.raw("{")?;
                for (key, value) in members.iter() {
                    self.key(key)?;
                    self.value(value, depth + 1)?;
                }
                self.end_object();
                Ok(())
            }
            scalar => {
                within(self.out.len().saturating_add(32), self.around)?;
                self.comma();
                scalar.write_json(&mut self.out);
                Ok(())
            }
        }
    }

    /// The array or object, whose bracket is closed.
    fn close<'a>(mut self) -> Value<'a> {
        self.out.push(if self.out.first() == Some(&b'{') { b'}' } else { b']' });
        self.end()
    }

    /// The text, which is whole.
    fn end<'a>(self) -> Value<'a> {
        String::from_utf8(self.out).map_or(Value::Null, |text| Value::Json(Cow::Owned(text)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::{call, function_id, function_of};
    use super::*;
    use serde_json::Value as Tree;

    /// A value as a case has it; bytes as `{"$bytes": hex}`.
    fn value(text: &str) -> Value<'_> {
        let found = json::document(text.as_bytes()).unwrap();
        let value = Value::found(text.as_bytes(), found).unwrap();
        let tree: Tree = serde_json::from_str(text).unwrap_or_default();
        let bytes = tree.get("$bytes").and_then(Tree::as_str).and_then(crate::value::unhex);
        bytes.map_or(value, |bytes| Value::Bytes(bytes.into()))
    }

    /// What `name` makes of `args`, a JSON array without its brackets, as JSON, or the error's name.
    fn made(name: &str, args: &str, around: &mut Surroundings) -> String {
        let args = format!("[{args}]");
        let mut args: Vec<Value<'_>> =
            json::items(args.as_bytes()).map(|(_, found)| value(raw(&args, found))).collect();
        let function = function_of(function_id(name).unwrap()).unwrap();
        assert!((function.min..=function.max).contains(&args.len()), "{name} of {} arguments", args.len());
        match call(function, &mut args, around) {
            Ok(value) => {
                let mut out = Vec::new();
                value.write_json(&mut out);
                String::from_utf8(out).unwrap()
            }
            Err(error) => error.name().to_owned(),
        }
    }

    /// Each case: name, arguments, what comes.
    pub(super) fn check(cases: &[(&str, &str, &str)]) {
        let mut around = Surroundings { wall_ms: 1_600_000_000_123, ..Surroundings::new([1, 2]) };
        let mut wrong = Vec::new();
        for (name, args, expected) in cases {
            let got = made(name, args, &mut around);
            if got != *expected {
                wrong.push(format!("{name}({args}): {got}, not {expected}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn no_name_stands_twice() {
        let mut all: Vec<_> = names().collect();
        all.sort_unstable();
        let count = all.len();
        all.dedup();
        assert_eq!(all.len(), count);
        assert!(PARTS.iter().all(|part| part.is_sorted_by_key(|f| f.name)));
    }

    /// Whatever functions are called with, they come back, with nothing larger than may be made.
    #[test]
    fn any_function_of_any_values_is_bounded() {
        let big = format!("\"{}\"", "é,".repeat(2_000));
        let list = format!("[{}]", vec!["1"; 3_000].join(","));
        let texts = [
            "null",
            "true",
            "-1",
            "0",
            "7",
            "9223372036854775807",
            "-9223372036854775808",
            "1.5",
            "-1e308",
            "\"\"",
            "\"a\"",
            "\"%d\"",
            "\"(\"",
            "\"big\"",
            "\"day\"",
            "\"%Y\"",
            "[]",
            "[1,\"a\",null]",
            "{}",
            "{\"a\":[1]}",
            "{\"$bytes\":\"00ff10\"}",
            "123456789012345678901234567890",
            &big,
            &list,
        ];
        let values: Vec<Value<'_>> = texts.iter().map(|text| value(text)).collect();
        let mut around = Surroundings { max_text: 4_096, ..Surroundings::new([1, 2]) };
        let mut seed = 7;
        for name in names() {
            let function = function_of(function_id(name).unwrap()).unwrap();
            for _ in 0..150 {
                let mut next =
                    |n: usize| usize::try_from(crate::functions::splitmix64(&mut seed)).unwrap() % n;
                let count = function.min + next(function.max.min(6) + 1 - function.min);
                let mut args: Vec<Value<'_>> =
                    (0..count).map(|_| values[next(values.len())].clone()).collect();
                let longest =
                    args.iter().map(|arg| arg.as_bytes().map_or(6_001, <[u8]>::len)).max().unwrap_or(0);
                let Ok(given) = call(function, &mut args, &mut around) else { continue };
                let size = match &given {
                    Value::Text(text) | Value::Json(text) | Value::Big(text) => text.len(),
                    Value::Bytes(bytes) => bytes.len(),
                    Value::List(_) | Value::Map(_) | Value::Missing => panic!("{name}: {given:?}"),
                    _ => 0,
                };
                assert!(size <= around.max_text.max(longest), "{name}: {size}");
                if let Value::Json(text) = &given {
                    assert!(json::document(text.as_bytes()).is_ok(), "{name}: {text}");
                }
            }
        }
    }
}
