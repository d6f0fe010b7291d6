//! Objects, read and made as JSON text. Of two members of one name in a text the first counts.

use indexmap::IndexMap;

use super::*;
use crate::functions::emqx::jq;

/// The most members of an object that is put together from others.
const MEMBERS_MAX: usize = 1 << 16;

pub(super) const FUNCTIONS: &[Function] = &[
    strict("entries", 1, 1, entries),
    strict("from_entries", 1, 1, from_entries),
    strict("has_key", 2, 2, has_key),
    strict("jq", 2, 3, |args, around| Ok(Value::Json(jq::outputs(args, around)?.into()))),
    strict("keys", 1, 1, keys),
    strict("merge", 1, MANY, merge),
    lenient("object", 0, MANY, object),
    strict("pick", 2, MANY, |args, around| picked(args, around, true)),
    strict("remove_key", 2, MANY, |args, around| picked(args, around, false)),
    lenient("set_key", 3, 3, set_key),
    strict("values", 1, 1, values),
];

/// Keys and values, in turn.
fn object<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    if !args.len().is_multiple_of(2) {
        return Err(TypeError::BadArgument);
    }
    let mut seen = Vec::new();
    let mut out = Json::open(b'{', around);
    for pair in args.chunks_exact(2) {
        let key = text_of(arg(pair, 0))?;
        if seen.contains(&key) {
            return Err(TypeError::BadArgument);
        }
        seen.push(key);
        out.key(key)?;
        out.value(arg(pair, 1), 1)?;
    }
    Ok(out.close())
}

fn keys<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let mut out = Json::open(b'[', around);
    members(object_of(arg(args, 0))?).try_for_each(|(key, _)| out.text(&key))?;
    Ok(out.close())
}

fn values<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let object = object_of(arg(args, 0))?;
    let mut out = Json::open(b'[', around);
    members(object).try_for_each(|(_, found)| out.raw(raw(object, found)))?;
    Ok(out.close())
}

fn has_key<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let (object, key) = (object_of(arg(args, 0))?, text_of(arg(args, 1))?);
    Ok(Value::Bool(json::member(object.as_bytes(), key).is_some()))
}

/// Members that have been chosen, or all others.
fn picked<'a>(args: &mut [Value<'a>], around: &mut Surroundings, chosen: bool) -> Given<'a> {
    let object = object_of(arg(args, 0))?;
    let keys = args.iter().skip(1).map(text_of).collect::<Result<Vec<_>, _>>()?;
    let mut out = Json::open(b'{', around);
    for (key, found) in members(object) {
        if keys.contains(&&*key) == chosen {
            out.key(&key)?;
            out.raw(raw(object, found))?;
        }
    }
    Ok(out.close())
}

/// The member is set in its place, or becomes the last.
fn set_key<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let (object, key, value) = (arg(args, 0), arg(args, 1), arg(args, 2));
    if matches!(object, Value::Null) || matches!(key, Value::Null) {
        return Ok(Value::Null);
    }
    let (object, key) = (object_of(object)?, text_of(key)?);
    let mut out = Json::open(b'{', around);
    let mut is_set = false;
    for (known, found) in members(object) {
        out.key(&known)?;
        if known == key {
            is_set = true;
            out.value(value, 1)?;
        } else {
            out.raw(raw(object, found))?;
        }
    }
    if !is_set {
        out.key(key)?;
        out.value(value, 1)?;
    }
    Ok(out.close())
}

/// The members of all; of one name the last one's value, in the first one's place.
fn merge<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let mut merged: IndexMap<Cow<'_, str>, &str> = IndexMap::new();
    for arg in args.iter() {
        let object = object_of(arg)?;
        for (key, found) in members(object) {
            if merged.len() >= MEMBERS_MAX {
                return Err(TypeError::BadArgument);
            }
            merged.insert(key, raw(object, found));
        }
    }
    let mut out = Json::open(b'{', around);
    for (key, text) in &merged {
        out.key(key)?;
        out.raw(text)?;
    }
    Ok(out.close())
}

fn entries<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let object = object_of(arg(args, 0))?;
    let mut out = Json::open(b'[', around);
    for (key, found) in members(object) {
        out.raw("{")?;
        out.key("key")?;
        out.text(&key)?;
        out.key("value")?;
        out.raw(raw(object, found))?;
        out.end_object();
    }
    Ok(out.close())
}

/// `entries` back: of one key the last value counts.
fn from_entries<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let mut made: IndexMap<Cow<'_, str>, &str> = IndexMap::new();
    for element in elements(array_of(arg(args, 0))?) {
        let (_, entry) = element?;
        let part = |name: &str| json::member(entry.as_bytes(), name).ok_or(TypeError::BadArgument);
        let (key, value) = (part("key")?, part("value")?);
        let Value::Text(key) = Value::found(entry.as_bytes(), key)? else {
            return Err(TypeError::TypeMismatch);
        };
        if made.len() >= MEMBERS_MAX {
            return Err(TypeError::BadArgument);
        }
        made.insert(key, raw(entry, value));
    }
    let mut out = Json::open(b'{', around);
    for (key, text) in &made {
        out.key(key)?;
        out.raw(text)?;
    }
    Ok(out.close())
}

#[cfg(test)]
mod tests {
    use super::super::tests::check;

    #[test]
    fn looked_into() {
        check(&[
            ("has_key", r#"{"a\"b":null}, "a\"b""#, "true"),
            ("has_key", r#"[], "a""#, "type_mismatch"),
            ("keys", "{}", "[]"),
            ("keys", r#"{"a":1,"é":2}"#, r#"["a","é"]"#),
            ("values", "{}", "[]"),
            ("keys", "[1]", "type_mismatch"),
        ]);
    }

    #[test]
    fn objects_made() {
        check(&[
            ("object", r#""a", null"#, r#"{"a":null}"#),
            ("object", r#""a", 1, "a", 2"#, "bad_argument"),
            ("object", "1, 2", "type_mismatch"),
            ("object", "null, 2", "type_mismatch"),
            ("object", r#""a""#, "bad_argument"),
            ("object", r#""a\"", "b""#, r#"{"a\"":"b"}"#),
            ("merge", "{}", "{}"),
            ("merge", r#"{"a":1,"b":2}, {"c":3,"a":4}"#, r#"{"a":4,"b":2,"c":3}"#),
            ("merge", "{}, []", "type_mismatch"),
            ("pick", r#"{"a":1}, 1"#, "type_mismatch"),
            ("pick", r#"{"b":1,"a":2}, "a", "b""#, r#"{"b":1,"a":2}"#),
            ("remove_key", r#"{"a":1}, "b""#, r#"{"a":1}"#),
            ("set_key", r#"null, "a", 1"#, "null"),
            ("set_key", "{}, null, 1", "null"),
            ("set_key", r#"{}, "a", {"b":1}"#, r#"{"a":{"b":1}}"#),
            ("set_key", r#"{"a":1}, "a", null"#, r#"{"a":null}"#),
            ("set_key", r#"[], "a", 1"#, "type_mismatch"),
            ("entries", "{}", "[]"),
            ("entries", r#"{"a":[1],"b":null}"#, r#"[{"key":"a","value":[1]},{"key":"b","value":null}]"#),
            ("from_entries", "[]", "{}"),
            ("from_entries", r#"[{"key":"a","value":1},{"value":2,"key":"a"}]"#, r#"{"a":2}"#),
            ("from_entries", r#"[{"key":1,"value":1}]"#, "type_mismatch"),
            ("from_entries", r#"[{"key":"a"}]"#, "bad_argument"),
        ]);
    }

    /// Of duplicate keys in text the first counts.
    #[test]
    fn members_of_one_name() {
        use super::*;
        let twice = || Value::Json(r#"{"a":1,"b":2,"a":3}"#.into());
        let mut around = Surroundings::new([1, 2]);
        let json = |text: &'static str| Ok(Value::Json(text.into()));
        assert_eq!(merge(&mut [twice()], &mut around), json(r#"{"a":1,"b":2}"#));
        let mut args = [twice(), Value::Text("a".into()), Value::Int(9)];
        assert_eq!(set_key(&mut args, &mut around), json(r#"{"a":9,"b":2}"#));
    }
}
