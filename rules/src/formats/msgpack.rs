//! MessagePack.
//!
//! Read is all of it. A timestamp (extension -1) is an integer, ms since 1970; of other extensions the bytes are
//! taken and the type is not. Written are the shortest forms of integers and lengths, floats in 64 bits; an integer
//! beyond 64 bits has no form there.

use super::{Budget, DEPTH_MAX, FormatError, Input, Output, float, key_text, opened, unsigned};
use crate::value::{Map, Value};

/// The type of the extension that is a timestamp.
const TIMESTAMP: i8 = -1;

pub(super) fn decode(bytes: &[u8], budget: Budget) -> Result<Value<'static>, FormatError> {
    Input { rest: bytes, budget }.whole(|input| input.object(0))
}

impl Input<'_> {
    /// A length of so many bytes.
    fn length(&mut self, size: u8) -> Result<usize, FormatError> {
        Ok(match size {
            1 => usize::from(self.byte()?),
            2 => usize::from(u16::from_be_bytes(self.array()?)),
            _ => usize::try_from(u32::from_be_bytes(self.array()?)).map_err(|_| FormatError::TooLarge)?,
        })
    }

    /// One object; recursion is bounded by [`DEPTH_MAX`].
    fn object(&mut self, depth: usize) -> Result<Value<'static>, FormatError> {
        self.budget.node()?;
        let first = self.byte()?;
        Ok(match first {
            0x00..=0x7f => Value::Int(i64::from(first)),
            0xe0..=0xff => Value::Int(i64::from(first.cast_signed())),
            0x80..=0x8f => self.members(usize::from(first & 0x0f), depth)?,
            0x90..=0x9f => self.elements(usize::from(first & 0x0f), depth)?,
            0xa0..=0xbf => self.str_object(usize::from(first & 0x1f))?,
            0xc0 => Value::Null,
            0xc1 => return Err(FormatError::Malformed),
            0xc2 => Value::Bool(false),
            0xc3 => Value::Bool(true),
            0xc4..=0xc6 => {
                let length = self.length(1 << (first - 0xc4))?;
                Value::Bytes(self.bytes(length)?.to_vec().into())
            }
            0xc7..=0xc9 => {
                let length = self.length(1 << (first - 0xc7))?;
                self.extension(length)?
            }
            0xca => float(f64::from(f32::from_be_bytes(self.array()?))),
            0xcb => float(f64::from_be_bytes(self.array()?)),
            0xcc => Value::Int(i64::from(self.byte()?)),
            0xcd => Value::Int(i64::from(u16::from_be_bytes(self.array()?))),
            0xce => Value::Int(i64::from(u32::from_be_bytes(self.array()?))),
            0xcf => unsigned(u64::from_be_bytes(self.array()?)),
            0xd0 => Value::Int(i64::from(self.byte()?.cast_signed())),
            0xd1 => Value::Int(i64::from(i16::from_be_bytes(self.array()?))),
            0xd2 => Value::Int(i64::from(i32::from_be_bytes(self.array()?))),
            0xd3 => Value::Int(i64::from_be_bytes(self.array()?)),
            0xd4..=0xd8 => self.extension(1 << (first - 0xd4))?,
            0xd9..=0xdb => {
                let length = self.length(1 << (first - 0xd9))?;
                self.str_object(length)?
            }
            0xdc | 0xdd => {
                let count = self.length(2 << (first - 0xdc))?;
                self.elements(count, depth)?
            }
            0xde | 0xdf => {
                let count = self.length(2 << (first - 0xde))?;
                self.members(count, depth)?
            }
        })
    }

    fn str_object(&mut self, length: usize) -> Result<Value<'static>, FormatError> {
        Ok(Value::Text(self.text(length)?.to_owned().into()))
    }

    fn elements(&mut self, count: usize, depth: usize) -> Result<Value<'static>, FormatError> {
        if depth >= DEPTH_MAX {
            return Err(FormatError::TooDeep);
        }
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(self.object(depth + 1)?);
        }
        Ok(Value::list(items))
    }

    fn members(&mut self, count: usize, depth: usize) -> Result<Value<'static>, FormatError> {
        if depth >= DEPTH_MAX {
            return Err(FormatError::TooDeep);
        }
        let mut members = Map::new();
        for _ in 0..count {
            let key = key_text(self.object(depth + 1)?)?;
            let value = self.object(depth + 1)?;
            members.entry(key).or_insert(value);
        }
        Ok(Value::map(members))
    }

    fn extension(&mut self, length: usize) -> Result<Value<'static>, FormatError> {
        let kind = self.byte()?.cast_signed();
        let bytes = self.bytes(length)?;
        if kind != TIMESTAMP {
            return Ok(Value::Bytes(bytes.to_vec().into()));
        }
        let mut input = Input { rest: bytes, budget: self.budget };
        let (seconds, nanoseconds) = match length {
            4 => (i64::from(u32::from_be_bytes(input.array()?)), 0),
            8 => {
                let both = u64::from_be_bytes(input.array()?);
                // 34 bits of seconds below 30 of nanoseconds.
                ((both & 0x3_ffff_ffff).cast_signed(), both >> 34)
            }
            12 => {
                let nanoseconds = u64::from(u32::from_be_bytes(input.array()?));
                (i64::from_be_bytes(input.array()?), nanoseconds)
            }
            _ => return Err(FormatError::Malformed),
        };
        if nanoseconds > 999_999_999 {
            return Err(FormatError::Malformed);
        }
        let ms =
            seconds.checked_mul(1000).and_then(|ms| ms.checked_add((nanoseconds / 1_000_000).cast_signed()));
        ms.map(Value::Int).ok_or(FormatError::TooLarge)
    }
}

/// The head of something with a length: short forms of `short` lengths from `base` on, then those of 8 (if there are
/// any), 16 and 32 bits.
fn put_length(
    length: usize,
    (base, short): (u8, usize),
    eight: Option<u8>,
    sixteen: u8,
    out: &mut Output,
) -> Result<(), FormatError> {
    if length < short {
        return out.put(&[base | length as u8]);
    }
    if let (Some(eight), Ok(n)) = (eight, u8::try_from(length)) {
        return out.put(&[eight, n]);
    }
    if let Ok(n) = u16::try_from(length) {
        out.put(&[sixteen])?;
        return out.put(&n.to_be_bytes());
    }
    let n = u32::try_from(length).map_err(|_| FormatError::TooLarge)?;
    out.put(&[sixteen + 1])?;
    out.put(&n.to_be_bytes())
}

fn put_text(text: &str, out: &mut Output) -> Result<(), FormatError> {
    put_length(text.len(), (0xa0, 32), Some(0xd9), 0xda, out)?;
    out.put(text.as_bytes())
}

fn put_unsigned(n: u64, out: &mut Output) -> Result<(), FormatError> {
    if n < 0x80 {
        return out.put(&[n as u8]);
    }
    if let Ok(n) = u8::try_from(n) {
        return out.put(&[0xcc, n]);
    }
    if let Ok(n) = u16::try_from(n) {
        out.put(&[0xcd])?;
        return out.put(&n.to_be_bytes());
    }
    if let Ok(n) = u32::try_from(n) {
        out.put(&[0xce])?;
        return out.put(&n.to_be_bytes());
    }
    out.put(&[0xcf])?;
    out.put(&n.to_be_bytes())
}

fn put_negative(i: i64, out: &mut Output) -> Result<(), FormatError> {
    if let Ok(n) = i8::try_from(i) {
        // -32 to -1 are a byte of their own.
        return if n >= -32 { out.put(&n.to_be_bytes()) } else { out.put(&[0xd0, n.cast_unsigned()]) };
    }
    if let Ok(n) = i16::try_from(i) {
        out.put(&[0xd1])?;
        return out.put(&n.to_be_bytes());
    }
    if let Ok(n) = i32::try_from(i) {
        out.put(&[0xd2])?;
        return out.put(&n.to_be_bytes());
    }
    out.put(&[0xd3])?;
    out.put(&i.to_be_bytes())
}

pub(super) fn encode(value: &Value<'_>, depth: usize, out: &mut Output) -> Result<(), FormatError> {
    if depth > DEPTH_MAX {
        return Err(FormatError::TooDeep);
    }
    match &opened(value) {
        Value::Null | Value::Missing | Value::Json(_) => out.put(&[0xc0]),
        Value::Bool(false) => out.put(&[0xc2]),
        Value::Bool(true) => out.put(&[0xc3]),
        Value::Int(i) => match u64::try_from(*i) {
            Ok(n) => put_unsigned(n, out),
            Err(_) => put_negative(*i, out),
        },
        Value::Big(digits) => put_unsigned(digits.parse().map_err(|_| FormatError::Unfit)?, out),
        Value::Float(f) => {
            out.put(&[0xcb])?;
            out.put(&f.to_be_bytes())
        }
        Value::Text(text) => put_text(text, out),
        Value::Bytes(bytes) => {
            put_length(bytes.len(), (0, 0), Some(0xc4), 0xc5, out)?;
            out.put(bytes)
        }
        Value::List(items) => {
            put_length(items.len(), (0x90, 16), None, 0xdc, out)?;
            items.iter().try_for_each(|item| encode(item, depth + 1, out))
        }
        Value::Map(members) => {
            let there = || members.iter().filter(|(_, value)| !matches!(value, Value::Missing));
            put_length(there().count(), (0x80, 16), None, 0xde, out)?;
            for (key, value) in there() {
                put_text(key, out)?;
                encode(value, depth + 1, out)?;
            }
            Ok(())
        }
    }
}
