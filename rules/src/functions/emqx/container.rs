//! Arrays and objects. Objects may come as JSON text.

use std::borrow::Cow;

use super::{Given, emqx, int_of, list_of, take};
use crate::TypeError;
use crate::emqx::values;
use crate::functions::{Function, Surroundings};
use crate::program::Walk;
use crate::sql::ast::Put;
use crate::value::{Map, Value};

/// The most keys of a dotted path.
const PATH_MAX: usize = 64;

pub(super) const FUNCTIONS: &[Function] = &[
    emqx("contains", 2, 2, contains),
    emqx("contains_topic", 2, 3, contains_topic),
    emqx("contains_topic_match", 2, 3, contains_topic),
    emqx("first", 1, 1, |args, _| end(args, |items| items.first())),
    emqx("last", 1, 1, |args, _| end(args, |items| items.last())),
    emqx("length", 1, 1, length),
    emqx("map_get", 2, 3, map_get),
    emqx("map_keys", 1, 1, map_keys),
    emqx("map_new", 0, 0, |_, _| Ok(Value::map(Map::new()))),
    emqx("map_put", 3, 3, map_put),
    emqx("map_size", 1, 1, |args, _| count(decoded(take(args, 0))?.len())),
    emqx("map_to_entries", 1, 1, map_to_entries),
    emqx("map_values", 1, 1, map_values),
    emqx("mget", 2, 3, mget),
    emqx("mput", 3, 3, mput),
    emqx("nth", 2, 2, nth),
    emqx("sublist", 2, 3, sublist),
];

fn count<'a>(count: usize) -> Given<'a> {
    i64::try_from(count).map(Value::Int).map_err(|_| TypeError::BadArgument)
}

/// The members of an object, or of one that is JSON text.
fn decoded(value: Value<'_>) -> Result<Map, TypeError> {
    let value = match value {
        Value::Text(text) => values::decoded(text).ok_or(TypeError::InvalidJson)?.open(),
        other => other,
    };
    match value {
        Value::Map(members) => Ok(std::sync::Arc::unwrap_or_clone(members)),
        _ => Err(TypeError::TypeMismatch),
    }
}

// === arrays, counted from 1 ===

fn nth<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let (index, list) = (int_of(&take(args, 0))?, take(args, 1));
    let at = usize::try_from(index).ok().and_then(|index| index.checked_sub(1));
    at.and_then(|at| list_of(&list).map(|items| items.get(at).cloned()).transpose())
        .transpose()?
        .ok_or(TypeError::BadArgument)
}

fn length<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    count(list_of(&take(args, 0))?.len())
}

fn sublist<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let (start, length, list) = match args.len() {
        2 => (1, int_of(&take(args, 0))?, take(args, 1)),
        _ => (int_of(&take(args, 0))?, int_of(&take(args, 1))?, take(args, 2)),
    };
    let items = list_of(&list)?;
    let start = usize::try_from(start).ok().and_then(|start| start.checked_sub(1));
    let (Some(start), Ok(length)) = (start, usize::try_from(length)) else {
        return Err(TypeError::BadArgument);
    };
    Ok(Value::list(items.iter().skip(start).take(length).cloned().collect()))
}

fn end<'a>(
    args: &mut [Value<'a>],
    of: for<'l> fn(&'l [Value<'static>]) -> Option<&'l Value<'static>>,
) -> Given<'a> {
    let list = take(args, 0);
    of(list_of(&list)?).cloned().ok_or(TypeError::BadArgument)
}

fn contains<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let (of, list) = (take(args, 0), take(args, 1));
    Ok(Value::Bool(list_of(&list)?.iter().any(|item| values::same(&of, item))))
}

/// EMQX looks for its own lists of subscriptions, which no event has had since 4.0 and no rule can make: in others there is
/// never one.
fn contains_topic<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    list_of(&take(args, 0))?;
    Ok(Value::Bool(false))
}

// === objects ===

/// The keys of a dotted path.
fn path(value: &Value<'_>) -> Result<Vec<String>, TypeError> {
    let Value::Text(text) = value else { return Err(TypeError::TypeMismatch) };
    let keys: Vec<String> = text.split('.').take(PATH_MAX + 1).map(str::to_owned).collect();
    if keys.len() > PATH_MAX { Err(TypeError::BadArgument) } else { Ok(keys) }
}

fn map_get<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let (path, map, default) = (path(&take(args, 0))?, take(args, 1), take(args, 2));
    // Where nothing can be found nothing is: of a number, too, the default.
    let mut value = map;
    for key in path {
        value = values::walk(value, &Walk::Key(key))?;
    }
    Ok(if matches!(value, Value::Missing) { default } else { value })
}

fn map_put<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let (path, value, map) = (path(&take(args, 0))?, take(args, 1), take(args, 2));
    let into = match map {
        Value::Text(text) => values::decoded(text).unwrap_or(Value::Missing),
        other => other,
    };
    let path: Vec<Put> = path.into_iter().map(Put::Key).collect();
    Ok(values::put(into, &path, value.into_owned()))
}

/// A key, as members have them: text, or a number as text.
fn key(value: &Value<'_>) -> Result<String, TypeError> {
    match value {
        Value::Text(text) => Ok(text.to_string()),
        Value::Int(int) => Ok(int.to_string()),
        _ => Err(TypeError::TypeMismatch),
    }
}

fn mget<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let (key, map, default) = (key(&take(args, 0))?, decoded(take(args, 1))?, take(args, 2));
    Ok(map.get(&key).cloned().unwrap_or(default))
}

fn mput<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let (key, value, mut map) = (key(&take(args, 0))?, take(args, 1), decoded(take(args, 2))?);
    map.insert(key, value.into_owned());
    Ok(Value::map(map))
}

fn map_keys<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let keys = decoded(take(args, 0))?.into_iter().map(|(key, _)| Value::Text(Cow::Owned(key)));
    Ok(Value::list(keys.collect()))
}

fn map_values<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    Ok(Value::list(decoded(take(args, 0))?.into_iter().map(|(_, value)| value).collect()))
}

fn map_to_entries<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let entry = |(key, value)| {
        let members = [("key".to_owned(), Value::Text(Cow::Owned(key))), ("value".to_owned(), value)];
        Value::map(members.into_iter().collect())
    };
    Ok(Value::list(decoded(take(args, 0))?.into_iter().map(entry).collect()))
}

#[cfg(test)]
mod tests {
    use super::super::tests::check;

    #[test]
    fn arrays() {
        check(&[
            ("nth", "[2, [1,2,3]]", "2"),
            ("nth", "[4, [1,2,3]]", "error"),
            ("nth", "[0, [1]]", "error"),
            ("nth", "[1, \"a\"]", "error"),
            ("length", "[[1,[2],3]]", "3"),
            ("length", "[\"abc\"]", "error"),
            ("sublist", "[2, [1,2,3]]", "[1,2]"),
            ("sublist", "[2, 1, [1,2,3]]", "[2]"),
            ("sublist", "[9, 1, [1,2,3]]", "[]"),
            ("sublist", "[0, 1, [1]]", "error"),
            ("first", "[[1,2]]", "1"),
            ("last", "[[1,2]]", "2"),
            ("last", "[[]]", "error"),
            ("contains", "[1, [1,2]]", "true"),
            ("contains", "[1.0, [1,2]]", "false"),
            ("contains", "[{\"a\":[1]}, [{\"a\":[1]}]]", "true"),
            ("contains_topic", "[[{\"topic\":\"t\",\"qos\":1}], \"t\", 1]", "false"),
            ("contains_topic_match", "[\"t\", \"t\"]", "error"),
        ]);
    }

    #[test]
    fn objects() {
        check(&[
            ("map_get", "[\"p.q\", {\"p\":{\"q\":7}}]", "7"),
            ("map_get", "[\"p.x\", {\"p\":{\"q\":7}}, 1]", "1"),
            ("map_get", "[\"p\", 5, 1]", "1"),
            ("map_get", "[1, 1]", "error"),
            ("map_put", "[\"a.b\", 1, {\"a\":{\"c\":2}}]", "{\"a\":{\"c\":2,\"b\":1}}"),
            ("map_put", "[\"a\", 1, \"{}\"]", "{\"a\":1}"),
            ("mget", "[\"a.b\", {\"a.b\":1}]", "1"),
            ("mget", "[\"a\", \"{\\\"a\\\":1}\"]", "1"),
            ("mget", "[\"b\", {\"a\":1}, 9]", "9"),
            ("mget", "[\"b\", \"no json\"]", "error"),
            ("mput", "[\"a.b\", 1, {}]", "{\"a.b\":1}"),
            ("map_keys", "[{\"a\":1,\"b\":2}]", "[\"a\",\"b\"]"),
            ("map_values", "[{\"a\":1,\"b\":[2]}]", "[1,[2]]"),
            ("map_size", "[\"{\\\"a\\\":1}\"]", "1"),
            ("map_size", "[[1]]", "error"),
            ("map_to_entries", "[{\"a\":1}]", "[{\"key\":\"a\",\"value\":1}]"),
            ("map_new", "[]", "{}"),
        ]);
    }
}
