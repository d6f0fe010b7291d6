//! CBOR, RFC 8949.
//!
//! Read is all of it: indefinite lengths, half floats, bignums up to 4,096 bits. Tags but those of bignums are passed
//! over for what they hold; `undefined` and simple values without a meaning are NULL. Written is the preferred
//! serialization (section 4.1): the shortest head, the shortest float that is the same number, definite lengths.

use num_bigint::{BigInt, Sign};

use super::{Budget, DEPTH_MAX, FormatError, Input, Output, float, key_text, opened, unsigned};
use crate::big;
use crate::value::{Map, Value};

// Major types, in the upper three bits of the first byte.
const UNSIGNED: u8 = 0;
const NEGATIVE: u8 = 1;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const ARRAY: u8 = 4;
const MAP: u8 = 5;
const TAG: u8 = 6;
const SIMPLE: u8 = 7;

const POSITIVE_BIGNUM: u64 = 2;
const NEGATIVE_BIGNUM: u64 = 3;

/// Ends what has no length.
const BREAK: u8 = 0xff;

/// As many bytes has the longest integer that is calculated with.
const BIGNUM_MAX: usize = 512;

/// The first byte of an item and the number that follows from it.
struct Head {
    major: u8,
    info: u8,
    /// None: the length is not known.
    number: Option<u64>,
}

pub(super) fn decode(bytes: &[u8], budget: Budget) -> Result<Value<'static>, FormatError> {
    Input { rest: bytes, budget }.whole(|input| input.item(0))
}

impl Input<'_> {
    fn head(&mut self) -> Result<Head, FormatError> {
        let first = self.byte()?;
        let (major, info) = (first >> 5, first & 31);
        let number = match info {
            0..=23 => Some(u64::from(info)),
            24 => Some(u64::from(self.byte()?)),
            25 => Some(u64::from(u16::from_be_bytes(self.array()?))),
            26 => Some(u64::from(u32::from_be_bytes(self.array()?))),
            27 => Some(u64::from_be_bytes(self.array()?)),
            31 if matches!(major, BYTES | TEXT | ARRAY | MAP) => None,
            _ => return Err(FormatError::Malformed),
        };
        Ok(Head { major, info, number })
    }

    /// One item; recursion is bounded by [`DEPTH_MAX`].
    fn item(&mut self, depth: usize) -> Result<Value<'static>, FormatError> {
        self.budget.node()?;
        let mut head = self.head()?;
        while head.major == TAG {
            let tag = head.number;
            head = self.head()?;
            if let (Some(POSITIVE_BIGNUM | NEGATIVE_BIGNUM), BYTES) = (tag, head.major) {
                return self.bignum(&head, tag == Some(NEGATIVE_BIGNUM));
            }
        }
        match (head.major, head.number) {
            (UNSIGNED, Some(n)) => Ok(unsigned(n)),
            (NEGATIVE, Some(n)) => {
                let negative = -1 - i128::from(n);
                Ok(i64::try_from(negative)
                    .map_or_else(|_| Value::Big(negative.to_string().into()), Value::Int))
            }
            (BYTES, _) => self.pieces(&head).map(|bytes| Value::Bytes(bytes.into())),
            (TEXT, _) => {
                // Each piece must be UTF-8 of its own: `pieces` has seen to it.
                let text = String::from_utf8(self.pieces(&head)?);
                text.map(|text| Value::Text(text.into())).map_err(|_| FormatError::Malformed)
            }
            (ARRAY | MAP, _) if depth >= DEPTH_MAX => Err(FormatError::TooDeep),
            (ARRAY, count) => {
                let mut items = Vec::new();
                while self.more(count, items.len())? {
                    items.push(self.item(depth + 1)?);
                }
                Ok(Value::list(items))
            }
            (MAP, count) => {
                let (mut members, mut read) = (Map::new(), 0);
                while self.more(count, read)? {
                    read += 1;
                    let key = key_text(self.item(depth + 1)?)?;
                    let value = self.item(depth + 1)?;
                    members.entry(key).or_insert(value);
                }
                Ok(Value::map(members))
            }
            (SIMPLE, Some(n)) => simple(head.info, n),
            _ => Err(FormatError::Malformed),
        }
    }

    /// Whether another item comes.
    fn more(&mut self, count: Option<u64>, read: usize) -> Result<bool, FormatError> {
        match count {
            Some(count) => Ok((read as u64) < count),
            None if self.rest.first() == Some(&BREAK) => self.byte().map(|_| false),
            None => Ok(true),
        }
    }

    /// The bytes of a string, of its pieces if it has no length.
    fn pieces(&mut self, head: &Head) -> Result<Vec<u8>, FormatError> {
        let Some(length) = head.number else {
            let mut whole = Vec::new();
            while self.more(None, 0)? {
                let piece = self.head()?;
                let length = piece.number.filter(|_| piece.major == head.major);
                whole.extend_from_slice(self.piece(head.major, length.ok_or(FormatError::Malformed)?)?);
            }
            return Ok(whole);
        };
        self.piece(head.major, length).map(<[u8]>::to_vec)
    }

    fn piece(&mut self, major: u8, length: u64) -> Result<&[u8], FormatError> {
        let length = usize::try_from(length).map_err(|_| FormatError::Malformed)?;
        if major == TEXT { self.text(length).map(str::as_bytes) } else { self.bytes(length) }
    }

    fn bignum(&mut self, head: &Head, negative: bool) -> Result<Value<'static>, FormatError> {
        let bytes = self.pieces(head)?;
        let first = bytes.iter().position(|&byte| byte != 0).unwrap_or(bytes.len());
        let magnitude = bytes.get(first..).unwrap_or(&[]);
        if magnitude.len() > BIGNUM_MAX {
            return Err(FormatError::TooLarge);
        }
        let mut number = BigInt::from_bytes_be(Sign::Plus, magnitude);
        if negative {
            number = -1 - number;
        }
        // -1 - n may have a bit more than n.
        big::value(&number).map_err(|_| FormatError::TooLarge)
    }
}

fn simple(info: u8, number: u64) -> Result<Value<'static>, FormatError> {
    Ok(match info {
        20 => Value::Bool(false),
        21 => Value::Bool(true),
        // Two bytes for what fits one are not allowed.
        24 if number < 32 => return Err(FormatError::Malformed),
        25 => float(from_half(number as u16)),
        26 => float(f64::from(f32::from_bits(number as u32))),
        27 => float(f64::from_bits(number)),
        _ => Value::Null,
    })
}

/// RFC 8949 appendix D.
fn from_half(half: u16) -> f64 {
    let exponent = i32::from(half >> 10 & 0x1f);
    let mantissa = f64::from(half & 0x3ff);
    let magnitude = match exponent {
        0 => mantissa * 2f64.powi(-24),
        31 if mantissa == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (mantissa + 1024.0) * 2f64.powi(exponent - 25),
    };
    if half & 0x8000 == 0 { magnitude } else { -magnitude }
}

/// The half float that is the same number, if there is one.
fn to_half(f: f32) -> Option<u16> {
    let bits = f.to_bits();
    let sign = (bits >> 16) as u16 & 0x8000;
    let (exponent, mantissa) = ((bits >> 23 & 0xff) as i32 - 127, bits & 0x7f_ffff);
    let half = match exponent {
        -14..=15 => ((exponent + 15) as u16) << 10 | (mantissa >> 13) as u16,
        // Subnormal: the hidden one is shifted in.
        -24..=-15 => ((mantissa | 0x80_0000) >> (-1 - exponent)) as u16,
        _ if f == 0.0 => 0,
        _ => return None,
    };
    let half = sign | half;
    (from_half(half) == f64::from(f)).then_some(half)
}

fn put_head(major: u8, number: u64, out: &mut Output) -> Result<(), FormatError> {
    let major = major << 5;
    if number < 24 {
        return out.put(&[major | number as u8]);
    }
    if let Ok(n) = u8::try_from(number) {
        return out.put(&[major | 24, n]);
    }
    if let Ok(n) = u16::try_from(number) {
        out.put(&[major | 25])?;
        return out.put(&n.to_be_bytes());
    }
    if let Ok(n) = u32::try_from(number) {
        out.put(&[major | 26])?;
        return out.put(&n.to_be_bytes());
    }
    out.put(&[major | 27])?;
    out.put(&number.to_be_bytes())
}

pub(super) fn encode(value: &Value<'_>, depth: usize, out: &mut Output) -> Result<(), FormatError> {
    if depth > DEPTH_MAX {
        return Err(FormatError::TooDeep);
    }
    match &opened(value) {
        Value::Null | Value::Missing | Value::Json(_) => out.put(&[0xf6]),
        Value::Bool(false) => out.put(&[0xf4]),
        Value::Bool(true) => out.put(&[0xf5]),
        Value::Int(i) => match u64::try_from(*i) {
            Ok(n) => put_head(UNSIGNED, n, out),
            // -1 - i, without overflow.
            Err(_) => put_head(NEGATIVE, !i.cast_unsigned(), out),
        },
        big @ Value::Big(_) => {
            let number = big::integer(big).map_err(|_| FormatError::TooLarge)?;
            let (major, tag, magnitude) = match number.sign() {
                Sign::Minus => (NEGATIVE, NEGATIVE_BIGNUM, -1 - number),
                _ => (UNSIGNED, POSITIVE_BIGNUM, number),
            };
            if let Ok(n) = u64::try_from(&magnitude) {
                return put_head(major, n, out);
            }
            let (_, bytes) = magnitude.to_bytes_be();
            put_head(TAG, tag, out)?;
            put_head(BYTES, bytes.len() as u64, out)?;
            out.put(&bytes)
        }
        Value::Float(f) => {
            let single = *f as f32;
            if f64::from(single) != *f {
                out.put(&[0xfb])?;
                return out.put(&f.to_be_bytes());
            }
            match to_half(single) {
                Some(half) => {
                    out.put(&[0xf9])?;
                    out.put(&half.to_be_bytes())
                }
                None => {
                    out.put(&[0xfa])?;
                    out.put(&single.to_be_bytes())
                }
            }
        }
        Value::Text(text) => {
            put_head(TEXT, text.len() as u64, out)?;
            out.put(text.as_bytes())
        }
        Value::Bytes(bytes) => {
            put_head(BYTES, bytes.len() as u64, out)?;
            out.put(bytes)
        }
        Value::List(items) => {
            put_head(ARRAY, items.len() as u64, out)?;
            items.iter().try_for_each(|item| encode(item, depth + 1, out))
        }
        Value::Map(members) => {
            let there = || members.iter().filter(|(_, value)| !matches!(value, Value::Missing));
            put_head(MAP, there().count() as u64, out)?;
            for (key, value) in there() {
                put_head(TEXT, key.len() as u64, out)?;
                out.put(key.as_bytes())?;
                encode(value, depth + 1, out)?;
            }
            Ok(())
        }
    }
}
