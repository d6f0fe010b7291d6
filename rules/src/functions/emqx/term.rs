//! Erlang's external term format: <https://www.erlang.org/doc/apps/erts/erl_ext_dist.html>.

use num_bigint::{BigInt, Sign};

use super::{Given, bytes_of, cut, cut_array, owned, take, within};
use crate::functions::Surroundings;
use crate::value::{Map, Value};
use crate::{TypeError, big, json};

const VERSION: u8 = 131;
const NEW_FLOAT: u8 = 70;
const SMALL_INTEGER: u8 = 97;
const INTEGER: u8 = 98;
const ATOM: u8 = 100;
const NIL: u8 = 106;
const STRING: u8 = 107;
const LIST: u8 = 108;
const BINARY: u8 = 109;
const SMALL_BIG: u8 = 110;
const LARGE_BIG: u8 = 111;
const SMALL_ATOM: u8 = 115;
const MAP: u8 = 116;
const ATOM_UTF8: u8 = 118;
const SMALL_ATOM_UTF8: u8 = 119;

pub(super) fn term_encode<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let mut out = vec![VERSION];
    put_term(&take(args, 0), 0, &mut out, around)?;
    Ok(Value::binary(out))
}

/// A length as 32 bits.
fn put_length(length: usize, out: &mut Vec<u8>) -> Result<(), TypeError> {
    let length = u32::try_from(length).map_err(|_| TypeError::BadArgument)?;
    out.extend_from_slice(&length.to_be_bytes());
    Ok(())
}

fn put_binary(bytes: &[u8], out: &mut Vec<u8>, around: &Surroundings) -> Result<(), TypeError> {
    within(out.len().saturating_add(bytes.len()), around)?;
    out.push(BINARY);
    put_length(bytes.len(), out)?;
    out.extend_from_slice(bytes);
    Ok(())
}

fn put_atom(name: &[u8], out: &mut Vec<u8>) {
    out.push(SMALL_ATOM_UTF8);
    out.push(u8::try_from(name.len()).unwrap_or(0));
    out.extend_from_slice(name);
}

fn put_big(integer: &BigInt, out: &mut Vec<u8>) -> Result<(), TypeError> {
    let (sign, bytes) = integer.to_bytes_le();
    match u8::try_from(bytes.len()) {
        Ok(length) => out.extend_from_slice(&[SMALL_BIG, length]),
        Err(_) => {
            out.push(LARGE_BIG);
            put_length(bytes.len(), out)?;
        }
    }
    out.push(u8::from(sign == Sign::Minus));
    out.extend_from_slice(&bytes);
    Ok(())
}

fn put_term(
    value: &Value<'_>,
    depth: usize,
    out: &mut Vec<u8>,
    around: &Surroundings,
) -> Result<(), TypeError> {
    if depth > json::MAX_DEPTH {
        return Err(TypeError::BadArgument);
    }
    match value {
        Value::Null => put_atom(b"null", out),
        Value::Missing => put_atom(b"undefined", out),
        Value::Bool(true) => put_atom(b"true", out),
        Value::Bool(false) => put_atom(b"false", out),
        Value::Int(i) => match (u8::try_from(*i), i32::try_from(*i)) {
            (Ok(small), _) => out.extend_from_slice(&[SMALL_INTEGER, small]),
            (_, Ok(i)) => {
                out.push(INTEGER);
                out.extend_from_slice(&i.to_be_bytes());
            }
            _ => put_big(&BigInt::from(*i), out)?,
        },
        Value::Big(_) => put_big(&big::integer(value)?, out)?,
        Value::Float(f) => {
            out.push(NEW_FLOAT);
            out.extend_from_slice(&f.to_be_bytes());
        }
        Value::Text(text) => put_binary(text.as_bytes(), out, around)?,
        Value::Bytes(bytes) => put_binary(bytes, out, around)?,
        Value::Json(_) => put_term(&value.share().open(), depth, out, around)?,
        Value::List(items) => put_list(items, depth, out, around)?,
        Value::Map(members) => {
            out.push(MAP);
            put_length(members.len(), out)?;
            // As Erlang keeps them.
            let mut members: Vec<_> = members.iter().collect();
            members.sort_unstable_by_key(|(key, _)| key.as_str());
            for (key, value) in members {
                put_binary(key.as_bytes(), out, around)?;
                put_term(value, depth + 1, out, around)?;
            }
        }
    }
    within(out.len(), around)
}

/// A list; one of bytes alone has a form of its own.
fn put_list(
    items: &[Value<'_>],
    depth: usize,
    out: &mut Vec<u8>,
    around: &Surroundings,
) -> Result<(), TypeError> {
    let byte = |item: &Value<'_>| match item {
        Value::Int(i) => u8::try_from(*i).ok(),
        _ => None,
    };
    match u16::try_from(items.len()) {
        Ok(0) => {}
        Ok(length) if items.iter().all(|item| byte(item).is_some()) => {
            out.push(STRING);
            out.extend_from_slice(&length.to_be_bytes());
            out.extend(items.iter().filter_map(byte));
            return Ok(());
        }
        _ => {
            out.push(LIST);
            put_length(items.len(), out)?;
            for item in items {
                put_term(item, depth + 1, out, around)?;
            }
        }
    }
    out.push(NIL);
    Ok(())
}

/// Terms that have no place here are refused: tuples, functions, process ids, references, maps with keys that are
/// no text, what is compressed. An atom that is no word of JSON is text. What follows the term is left unread.
pub(super) fn term_decode<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let bytes = take(args, 0);
    let mut terms = Terms { rest: bytes_of(&bytes)?, left: around.max_text };
    if terms.byte()? != VERSION {
        return Err(TypeError::BadArgument);
    }
    terms.term(0)
}

/// Reads terms.
struct Terms<'t> {
    rest: &'t [u8],
    /// How many bytes of JSON what comes may be, about.
    left: usize,
}

impl<'t> Terms<'t> {
    fn take(&mut self, count: usize) -> Result<&'t [u8], TypeError> {
        cut(&mut self.rest, count)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], TypeError> {
        cut_array(&mut self.rest)
    }

    fn byte(&mut self) -> Result<u8, TypeError> {
        self.array().map(|[byte]| byte)
    }

    fn short(&mut self) -> Result<usize, TypeError> {
        self.array().map(|bytes| usize::from(u16::from_be_bytes(bytes)))
    }

    fn length(&mut self) -> Result<usize, TypeError> {
        let length = u32::from_be_bytes(self.array()?);
        usize::try_from(length).map_err(|_| TypeError::BadArgument)
    }

    /// Counts bytes of the result.
    fn spend(&mut self, bytes: usize) -> Result<(), TypeError> {
        self.left = self.left.checked_sub(bytes).ok_or(TypeError::BadArgument)?;
        Ok(())
    }

    fn binary(&mut self, length: usize) -> Result<Value<'static>, TypeError> {
        self.spend(length.saturating_add(2))?;
        Ok(Value::binary(self.take(length)?.to_vec()))
    }

    fn atom(&mut self, length: usize, latin1: bool) -> Result<Value<'static>, TypeError> {
        self.spend(length.saturating_add(2))?;
        let name = self.take(length)?;
        let name: String = if latin1 {
            name.iter().map(|&byte| char::from(byte)).collect()
        } else {
            std::str::from_utf8(name).map_err(|_| TypeError::BadArgument)?.to_owned()
        };
        Ok(match name.as_str() {
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            "null" => Value::Null,
            "undefined" => Value::Missing,
            _ => owned(name),
        })
    }

    fn big(&mut self, length: usize) -> Result<Value<'static>, TypeError> {
        let sign = if self.byte()? == 0 { Sign::Plus } else { Sign::Minus };
        self.spend(length.saturating_mul(3))?;
        // Longer than any integer that is calculated with.
        if length > 1_024 {
            return Err(TypeError::IntegerOverflow);
        }
        big::value(&BigInt::from_bytes_le(sign, self.take(length)?))
    }

    fn list(&mut self, length: usize, depth: usize) -> Result<Value<'static>, TypeError> {
        // Each element is a byte at least: no more are made than are there.
        let mut items = Vec::new();
        for _ in 0..length {
            self.spend(1)?;
            items.push(self.term(depth + 1)?);
        }
        if self.byte()? == NIL { Ok(Value::list(items)) } else { Err(TypeError::BadArgument) }
    }

    fn map(&mut self, length: usize, depth: usize) -> Result<Value<'static>, TypeError> {
        let mut members = Map::new();
        for _ in 0..length {
            self.spend(2)?;
            let key = match self.term(depth + 1)? {
                Value::Text(key) => key.into_owned(),
                Value::Bool(true) => "true".to_owned(),
                Value::Bool(false) => "false".to_owned(),
                Value::Null => "null".to_owned(),
                Value::Missing => "undefined".to_owned(),
                _ => return Err(TypeError::BadArgument),
            };
            let value = self.term(depth + 1)?;
            members.insert(key, value);
        }
        Ok(Value::map(members))
    }

    fn term(&mut self, depth: usize) -> Result<Value<'static>, TypeError> {
        if depth > json::MAX_DEPTH {
            return Err(TypeError::BadArgument);
        }
        self.spend(1)?;
        match self.byte()? {
            SMALL_INTEGER => Ok(Value::Int(i64::from(self.byte()?))),
            INTEGER => Ok(Value::Int(i64::from(i32::from_be_bytes(self.array()?)))),
            SMALL_BIG => {
                let length = usize::from(self.byte()?);
                self.big(length)
            }
            LARGE_BIG => {
                let length = self.length()?;
                self.big(length)
            }
            NEW_FLOAT => crate::value::finite(f64::from_be_bytes(self.array()?)),
            ATOM => {
                let length = self.short()?;
                self.atom(length, true)
            }
            SMALL_ATOM => {
                let length = usize::from(self.byte()?);
                self.atom(length, true)
            }
            ATOM_UTF8 => {
                let length = self.short()?;
                self.atom(length, false)
            }
            SMALL_ATOM_UTF8 => {
                let length = usize::from(self.byte()?);
                self.atom(length, false)
            }
            BINARY => {
                let length = self.length()?;
                self.binary(length)
            }
            NIL => Ok(Value::list(Vec::new())),
            STRING => {
                let length = self.short()?;
                self.spend(length.saturating_mul(2))?;
                let bytes = self.take(length)?;
                Ok(Value::list(bytes.iter().map(|&byte| Value::Int(i64::from(byte))).collect()))
            }
            LIST => {
                let length = self.length()?;
                self.list(length, depth)
            }
            MAP => {
                let length = self.length()?;
                self.map(length, depth)
            }
            _ => Err(TypeError::BadArgument),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::tests::{call, check};
    use super::*;

    #[test]
    fn terms() {
        check(&[
            ("term_encode", "[1]", r#"{"$bytes":"836101"}"#),
            ("term_encode", "[-1]", r#"{"$bytes":"8362ffffffff"}"#),
            ("term_encode", "[4294967296]", r#"{"$bytes":"836e05000000000001"}"#),
            ("term_encode", "[1.5]", r#"{"$bytes":"83463ff8000000000000"}"#),
            ("term_encode", r#"["ab"]"#, r#"{"$bytes":"836d000000026162"}"#),
            ("term_encode", "[[1,2]]", r#"{"$bytes":"836b00020102"}"#),
            ("term_encode", "[[]]", r#"{"$bytes":"836a"}"#),
            ("term_encode", r#"[["a"]]"#, r#"{"$bytes":"836c000000016d00000001616a"}"#),
            ("term_encode", r#"[{"a":1}]"#, r#"{"$bytes":"8374000000016d00000001616101"}"#),
            ("term_encode", "[true]", r#"{"$bytes":"83770474727565"}"#),
            ("term_decode", r#"[{"$bytes":"83640004747275650000"}]"#, "true"),
            ("term_decode", r#"[{"$bytes":"8377026f6b"}]"#, r#""ok""#),
            ("term_decode", r#"[{"$bytes":"8374000000017701616101"}]"#, r#"{"a":1}"#),
            ("term_decode", r#"[{"$bytes":"836b00020102"}]"#, "[1,2]"),
            // A tuple, a list that does not end in nil, a list that claims more than there is, not finite, version.
            ("term_decode", r#"[{"$bytes":"8368016101"}]"#, "error"),
            ("term_decode", r#"[{"$bytes":"836c00000001610161016a"}]"#, "error"),
            ("term_decode", r#"[{"$bytes":"836cffffffff6101"}]"#, "error"),
            ("term_decode", r#"[{"$bytes":"836dffffffff61"}]"#, "error"),
            ("term_decode", r#"[{"$bytes":"83467ff0000000000000"}]"#, "error"),
            ("term_decode", r#"[{"$bytes":"826101"}]"#, "error"),
            ("term_decode", r#"[{"$bytes":"83"}]"#, "error"),
            ("term_decode", r#"[""]"#, "error"),
            ("term_decode", "[1]", "error"),
            ("term_decode", "[null]", "error"),
            ("term_decode", r#"[{"$undefined":true}]"#, "error"),
        ]);
        let deep = format!("[{{\"$bytes\":\"83{}\"}}]", "6c00000001".repeat(5_000));
        assert_eq!(call("term_decode", &deep), "error");
    }

    #[test]
    fn terms_there_and_back() {
        let mut around = Surroundings::new([1, 2]);
        let text = r#"{"a":[0,255,256,-1,2147483648,-9223372036854775808,123456789012345678901234567890,-1.25e100],
            "b":{"c":null,"d":true,"e":[],"f":{},"g":"é"}}"#;
        let plain = |value: Value<'_>| {
            let mut out = Vec::new();
            value.write_json(&mut out);
            serde_json::from_slice::<serde_json::Value>(&out).unwrap()
        };
        let packed = term_encode(&mut [Value::Json(text.into()).open()], &mut around).unwrap();
        let whole = packed.as_bytes().unwrap().to_vec();
        let unpacked = term_decode(&mut [packed], &mut around).unwrap();
        assert_eq!(plain(unpacked), plain(Value::Json(text.into())));
        for end in 0..whole.len() {
            let cut = Value::Bytes(whole[..end].to_vec().into());
            assert!(term_decode(&mut [cut], &mut around).is_err(), "{end}");
        }
        let missing = term_encode(&mut [Value::Missing], &mut around).unwrap();
        assert_eq!(term_decode(&mut [missing], &mut around).unwrap(), Value::Missing);
    }
}
