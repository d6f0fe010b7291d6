//! Identity, state that outlives a message, the environment.

use super::{Given, bytes_of, emqx, owned, take, within};
use crate::TypeError;
use crate::functions::{Function, Surroundings, hyphens, uuid_hex};
use crate::value::Value;

pub(super) const FUNCTIONS: &[Function] = &[
    emqx("getenv", 1, 1, getenv),
    emqx("kv_store_del", 1, 1, kv_store_del),
    emqx("kv_store_get", 1, 2, kv_store_get),
    emqx("kv_store_put", 2, 2, kv_store_put),
    emqx("proc_dict_del", 1, 1, proc_dict_del),
    emqx("proc_dict_get", 1, 1, proc_dict_get),
    emqx("proc_dict_put", 2, 2, proc_dict_put),
    emqx("uuid_v4", 0, 0, uuid_v4),
    emqx("uuid_v4_no_hyphen", 0, 0, uuid_v4_no_hyphen),
];

/// Only names that begin with this can be read.
const PREFIX: &str = "EMQXVAR_";

fn getenv<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let name = take(args, 0);
    let name = std::str::from_utf8(bytes_of(&name)?).map_err(|_| TypeError::BadArgument)?;
    let found = std::env::var_os(format!("{PREFIX}{name}")).unwrap_or_default();
    within(found.len(), around)?;
    Ok(Value::binary(found.into_encoded_bytes()))
}

fn kv_store_del<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    around.kv.remove(&take(args, 0));
    Ok(Value::Bool(true))
}

fn kv_store_get<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let (key, default) = (take(args, 0), take(args, 1));
    Ok(around.kv.get(&key).unwrap_or(default))
}

fn kv_store_put<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let (key, value) = (take(args, 0), take(args, 1));
    around.kv.put(&key, value)?;
    Ok(Value::Bool(true))
}

fn proc_dict_del<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    Ok(around.dict.remove(&take(args, 0)).unwrap_or(Value::Missing))
}

fn proc_dict_get<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    Ok(around.dict.get(&take(args, 0)).unwrap_or(Value::Missing))
}

fn proc_dict_put<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let (key, value) = (take(args, 0), take(args, 1));
    Ok(around.dict.put(&key, value)?.unwrap_or(Value::Missing))
}

fn uuid_v4<'a>(_: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    Ok(owned(hyphens(&uuid_hex(around))))
}

fn uuid_v4_no_hyphen<'a>(_: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    Ok(owned(uuid_hex(around)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::tests::{call, check};
    use super::*;
    use crate::functions::{emqx_id, function_of};

    #[test]
    fn what_was_put_is_there_until_it_is_deleted() {
        let mut around = Surroundings::new([1, 2]);
        let mut run = |name: &str, mut args: Vec<Value<'static>>| {
            let function = function_of(emqx_id(name).unwrap()).unwrap();
            (function.call)(&mut args, &mut around).unwrap().into_owned()
        };
        let key = || Value::Text("k".into());
        assert_eq!(run("kv_store_get", vec![key()]), Value::Missing);
        assert_eq!(run("kv_store_get", vec![key(), Value::Int(3)]), Value::Int(3));
        assert_eq!(run("kv_store_put", vec![key(), Value::Int(1)]), Value::Bool(true));
        assert_eq!(run("kv_store_get", vec![key(), Value::Int(3)]), Value::Int(1));
        assert_eq!(run("proc_dict_get", vec![key()]), Value::Missing, "another table");
        assert_eq!(run("kv_store_del", vec![key()]), Value::Bool(true));
        assert_eq!(run("kv_store_get", vec![key()]), Value::Missing);
        assert_eq!(run("proc_dict_put", vec![key(), Value::Int(1)]), Value::Missing);
        assert_eq!(run("proc_dict_put", vec![key(), Value::Null]), Value::Int(1));
        assert_eq!(run("proc_dict_get", vec![key()]), Value::Null);
        assert_eq!(run("proc_dict_del", vec![key()]), Value::Null);
        assert_eq!(run("proc_dict_del", vec![key()]), Value::Missing);
        run("kv_store_put", vec![Value::Int(1), Value::Int(1)]);
        assert_eq!(run("kv_store_get", vec![Value::Text("1".into())]), Value::Missing, "1 is not '1'");
    }

    #[test]
    fn identity_and_environment() {
        let id = call("uuid_v4", "[]");
        assert_eq!((id.len(), &id[9..10], &id[15..16]), (38, "-", "4"), "{id}");
        assert_eq!(call("uuid_v4_no_hyphen", "[]"), id.replace('-', ""));
        check(&[
            ("getenv", r#"["no such name"]"#, r#""""#),
            ("getenv", r#"["a=b"]"#, r#""""#),
            ("getenv", r#"["a\u0000b"]"#, r#""""#),
            ("getenv", "[1]", "error"),
            ("getenv", "[null]", "error"),
            ("getenv", r#"[{"$undefined":true}]"#, "error"),
            ("uuid_v4", "[1]", "error"),
            ("kv_store_put", "[1]", "error"),
            ("kv_store_put", "[1, 2]", "true"),
            ("kv_store_del", "[1]", "true"),
        ]);
    }
}
