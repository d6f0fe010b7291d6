//! The functions of EMQX's dialect, as EMQX has them: names in lower case, arguments by position, and an error is the
//! rule's failure for this message.
//!
//! A function gets its arguments as values of the machine, arrays and objects opened ([`Value::open`]: a function never sees
//! [`Value::Json`] at the outermost level, but an element of an opened one may be it), and may take them. What the peer's
//! functions do with a missing value ([`Value::Missing`]) and with JSON's null ([`Value::Null`]) is said with each.
//! Context functions (`topic(2)`, `clientid()`) are not here: the planner makes columns of them.
//!
//! Bounds: a text, list or object that a function makes is at most [`super::Surroundings::max_text`] bytes as JSON; what
//! could be larger is refused before it is made ([`TypeError::BadArgument`]).

use std::borrow::Cow;

use super::{Call, Function, FunctionId, Given, Manner, bytes_of, int_of, owned, within};
use crate::TypeError;
use crate::value::{Map, Value};

pub(super) mod codec;
mod container;
pub(super) mod jq;
pub(super) mod number;
mod print;
mod schema;
pub(crate) mod sparkplug;
mod system;
mod term;
mod text;
mod time;

pub(crate) use text::to_str;
pub(super) use time::{days_to, offset_in};

/// All of them: of each file one part, each in the order of its names.
pub(super) const PARTS: [&[Function]; 8] = [
    codec::FUNCTIONS,
    container::FUNCTIONS,
    jq::FUNCTIONS,
    number::FUNCTIONS,
    system::FUNCTIONS,
    text::FUNCTIONS,
    time::FUNCTIONS,
    schema::FUNCTIONS,
];

/// How many there are.
pub(super) const COUNT: usize = super::count(&PARTS);

/// A function's place among those of this dialect: EMQX's names are in lower case only.
pub(super) fn function_id(name: &str) -> Option<FunctionId> {
    names().position(|known| known == name)
}

/// What each function means, by groups: a title, and TOML with name, signature, meaning, examples.
pub const FUNCTIONS_TOML: [(&str, &str); 7] = [
    ("Text, conversions, tests of types", include_str!("text.toml")),
    ("Arithmetic, mathematics, bits", include_str!("number.toml")),
    ("Arrays and objects", include_str!("container.toml")),
    ("Hashes, compression, encodings", include_str!("codec.toml")),
    ("Dates and times", include_str!("time.toml")),
    ("Identity, state, environment", include_str!("system.toml")),
    ("Schemas", include_str!("schema.toml")),
];

/// The names of all functions of EMQX's dialect.
pub fn names() -> impl Iterator<Item = &'static str> + Clone {
    PARTS.iter().flat_map(|part| part.iter()).map(|f| f.name)
}

/// A function of this dialect: every argument reaches it.
const fn emqx(name: &'static str, min: usize, max: usize, call: Call) -> Function {
    Function { name, min, max, manner: Manner::Emqx, call }
}

/// Takes the argument `index`; there is one, or it has been left out.
fn take<'a>(args: &mut [Value<'a>], index: usize) -> Value<'a> {
    args.get_mut(index).map_or(Value::Missing, |arg| std::mem::replace(arg, Value::Missing))
}

/// An argument that text functions take: text; numbers they do not; `true` and `false` as their words.
fn text_of<'v>(value: &'v Value<'_>) -> Result<Cow<'v, str>, TypeError> {
    match value {
        Value::Text(text) => Ok(Cow::Borrowed(text)),
        Value::Bool(true) => Ok(Cow::Borrowed("true")),
        Value::Bool(false) => Ok(Cow::Borrowed("false")),
        _ => Err(TypeError::TypeMismatch),
    }
}

/// The elements of a list.
fn list_of<'v>(value: &'v Value<'_>) -> Result<&'v [Value<'static>], TypeError> {
    match value {
        Value::List(items) => Ok(items),
        _ => Err(TypeError::TypeMismatch),
    }
}

/// The members of an object.
fn map_of<'v>(value: &'v Value<'_>) -> Result<&'v Map, TypeError> {
    match value {
        Value::Map(members) => Ok(members),
        _ => Err(TypeError::TypeMismatch),
    }
}

/// Cuts so many bytes off what is read.
fn cut<'t>(rest: &mut &'t [u8], count: usize) -> Result<&'t [u8], TypeError> {
    let (taken, behind) = rest.split_at_checked(count).ok_or(TypeError::BadArgument)?;
    *rest = behind;
    Ok(taken)
}

/// Cuts so many bytes off what is read, as an array.
fn cut_array<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], TypeError> {
    cut(rest, N)?.try_into().map_err(|_| TypeError::BadArgument)
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::{Surroundings, emqx_id, function_of};
    use super::*;
    use serde_json::Value as Tree;

    /// A value as the peers' cases have it; bytes stay bytes.
    fn value(tree: &Tree) -> Value<'static> {
        let bytes = tree.get("$bytes").and_then(Tree::as_str).and_then(crate::value::unhex);
        bytes.map_or_else(|| Value::from_case(tree).open().into_owned(), |bytes| Value::Bytes(bytes.into()))
    }

    /// What `name` makes of `args`, a JSON array, as JSON (`{"$bytes":...}`, `"undefined"`), or `error`.
    pub(in crate::functions) fn call(name: &str, args: &str) -> String {
        let args: Tree = serde_json::from_str(args).unwrap();
        let mut args: Vec<Value<'_>> = args.as_array().unwrap().iter().map(value).collect();
        let function = function_of(emqx_id(name).unwrap()).unwrap();
        if args.len() < function.min || args.len() > function.max {
            return "error".to_owned();
        }
        let mut around = Surroundings { wall_ms: 1_600_000_000_123, ..Surroundings::new([1, 2]) };
        let given = match (function.call)(&mut args, &mut around) {
            Ok(value) => value,
            Err(_) => return "error".to_owned(),
        };
        let mut out = Vec::new();
        given.write_json(&mut out);
        String::from_utf8(out).unwrap()
    }

    /// Each case: name, arguments, what comes.
    pub(in crate::functions) fn check(cases: &[(&str, &str, &str)]) {
        for (name, args, expected) in cases {
            assert_eq!(call(name, args), *expected, "{name}({args})");
        }
    }

    #[test]
    fn no_name_stands_twice() {
        let mut all: Vec<_> = names().collect();
        all.sort_unstable();
        let count = all.len();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
