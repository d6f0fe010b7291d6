//! `format()`: printing by a format, as C's printf.

use std::iter::Peekable;
use std::str::Chars;

use super::text::{append, byte_at, made};
use super::*;

/// `%[-+ 0#][width][.precision]` and one of [`CONTROLS`]; `%%`.
pub(super) fn format<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let mut rest = text_of(arg(args, 0))?.chars().peekable();
    let mut values = args.iter().skip(1);
    let mut out = Vec::new();
    while let Some(piece) = next(&mut rest) {
        within(out.len().saturating_add(4), around)?;
        match piece? {
            Piece::Char(c) => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            Piece::Place(place) => {
                place.print(values.next().ok_or(TypeError::BadArgument)?, &mut out, around)?;
            }
        }
    }
    if values.next().is_some() { Err(TypeError::BadArgument) } else { made(out) }
}

/// What is wrong with a format for so many values, in words.
pub(super) fn mistake(format: &str, values: usize) -> Option<String> {
    let mut rest = format.chars().peekable();
    let mut places = 0;
    while let Some(piece) = next(&mut rest) {
        match piece {
            Ok(Piece::Char(_)) => {}
            Ok(Piece::Place(_)) => places += 1,
            Err(_) => return Some(format!("behind `%` stands one of {CONTROLS}, or `%`")),
        }
    }
    let plural = |n: usize, word: &str| format!("{n} {word}{}", if n == 1 { "" } else { "s" });
    (places != values).then(|| format!("{} for {}", plural(places, "place"), plural(values, "value")))
}

/// What a place may end with.
const CONTROLS: &str = "s d i u x X o b c f F e E g";

enum Piece {
    Char(char),
    Place(Spec),
}

/// The next piece of a format.
fn next(rest: &mut Peekable<Chars<'_>>) -> Option<Result<Piece, TypeError>> {
    let c = rest.next()?;
    if c != '%' || rest.next_if_eq(&'%').is_some() {
        return Some(Ok(Piece::Char(c)));
    }
    let mut spec = Spec::default();
    while let Some(flag) = rest.next_if(|c| "-+ 0#".contains(*c)) {
        match flag {
            '-' => spec.left = true,
            '0' => spec.zeros = true,
            '#' => spec.prefix = true,
            sign => spec.sign = if spec.sign == Some('+') { spec.sign } else { Some(sign) },
        }
    }
    spec.width = digits(rest).unwrap_or(0);
    if rest.next_if_eq(&'.').is_some() {
        spec.precision = Some(digits(rest).unwrap_or(0));
    }
    spec.control = rest.next().filter(|c| *c != ' ' && CONTROLS.contains(*c)).unwrap_or_default();
    Some(if spec.control == '\0' { Err(TypeError::BadArgument) } else { Ok(Piece::Place(spec)) })
}

/// The number that comes next.
fn digits(rest: &mut Peekable<Chars<'_>>) -> Option<usize> {
    let mut number = None;
    while let Some(digit) = rest.next_if(char::is_ascii_digit).and_then(|c| c.to_digit(10)) {
        number = Some(number.unwrap_or(0_usize).saturating_mul(10).saturating_add(digit as usize));
    }
    number
}

/// A place in a format.
#[derive(Default)]
struct Spec {
    left: bool,
    zeros: bool,
    prefix: bool,
    sign: Option<char>,
    width: usize,
    precision: Option<usize>,
    control: char,
}

impl Spec {
    /// Appends a value, filled to the width.
    fn print(&self, value: &Value<'_>, out: &mut Vec<u8>, around: &Surroundings) -> Result<(), TypeError> {
        // No float has more digits than that behind its point.
        let control = self.control;
        let precision = self.precision.unwrap_or(6).min(400);
        let (sign, digits) = match (control, value) {
            ('s', value) => {
                let mut text = Vec::new();
                append(value, &mut text, around)?;
                let text = String::from_utf8(text).map_err(|_| TypeError::TypeMismatch)?;
                let end = self.precision.map_or(text.len(), |chars| byte_at(&text, chars));
                (None, text.get(..end).unwrap_or("").to_owned())
            }
            ('c', Value::Int(code)) => {
                let c = u32::try_from(*code).ok().and_then(char::from_u32);
                (None, c.ok_or(TypeError::BadArgument)?.to_string())
            }
            ('d' | 'i' | 'u', Value::Int(n)) => (self.sign_of(*n < 0), n.unsigned_abs().to_string()),
            ('d' | 'i' | 'u', Value::Big(digits)) => {
                (self.sign_of(digits.starts_with('-')), digits.trim_start_matches('-').to_owned())
            }
            // Of a negative number its 64 bits, as in C.
            ('x', Value::Int(n)) => (None, self.prefixed("0x", format!("{n:x}"))),
            ('X', Value::Int(n)) => (None, self.prefixed("0X", format!("{n:X}"))),
            ('o', Value::Int(n)) => (None, self.prefixed("0", format!("{n:o}"))),
            ('b', Value::Int(n)) => (None, self.prefixed("0b", format!("{n:b}"))),
            ('f' | 'F' | 'e' | 'E' | 'g', Value::Int(_) | Value::Float(_)) => {
                let number = match value {
                    Value::Float(f) => *f,
                    other => int_of(other)? as f64,
                };
                let size = number.abs();
                let digits = match control {
                    'f' | 'F' => format!("{size:.precision$}"),
                    'e' => scientific(size, precision),
                    'E' => scientific(size, precision).to_uppercase(),
                    // The shortest digits that are this number.
                    _ => format!("{size}"),
                };
                (self.sign_of(number.is_sign_negative()), digits)
            }
            _ => return Err(TypeError::TypeMismatch),
        };
        let length = digits.chars().count() + usize::from(sign.is_some());
        let missing = self.width.saturating_sub(length);
        within(out.len().saturating_add(missing).saturating_add(digits.len() + 1), around)?;
        let zeros = self.zeros && !self.left && !matches!(control, 's' | 'c');
        let before = if self.left || zeros { 0 } else { missing };
        out.resize(out.len() + before, b' ');
        out.extend(sign.map(|sign| sign as u8));
        out.resize(out.len() + if zeros { missing } else { 0 }, b'0');
        out.extend_from_slice(digits.as_bytes());
        out.resize(out.len() + if self.left { missing } else { 0 }, b' ');
        Ok(())
    }

    fn sign_of(&self, negative: bool) -> Option<char> {
        if negative { Some('-') } else { self.sign }
    }

    fn prefixed(&self, prefix: &str, digits: String) -> String {
        if self.prefix { format!("{prefix}{digits}") } else { digits }
    }
}

/// `1.50000e+00`: at least two digits of the exponent.
fn scientific(f: f64, decimals: usize) -> String {
    let text = format!("{f:.decimals$e}");
    let Some((number, exponent)) = text.split_once('e') else { return text };
    let (sign, digits) = match exponent.strip_prefix('-') {
        Some(digits) => ('-', digits),
        None => ('+', exponent),
    };
    format!("{number}e{sign}{digits:0>2}")
}

#[cfg(test)]
mod tests {
    use super::super::tests::check;

    #[test]
    fn formats() {
        check(&[
            ("format", r#""""#, r#""""#),
            ("format", r#""é%%""#, r#""é%""#),
            ("format", r#""%s|%s|%s", 1, true, [1]"#, r#""1|true|[1]""#),
            ("format", r#""%.2s|%5s|%-5s|", "héé", "é", "é""#, r#""hé|    é|é    |""#),
            (
                "format",
                r#""%d|%+d|% d|%5d|%-5d|%05d", 7, 7, 7, -7, -7, -7"#,
                r#""7|+7| 7|   -7|-7   |-0007""#,
            ),
            ("format", r#""%i %u", -1, 9223372036854775807"#, r#""-1 9223372036854775807""#),
            ("format", r#""%d", -9223372036854775808"#, r#""-9223372036854775808""#),
            ("format", r#""%d", 123456789012345678901"#, r#""123456789012345678901""#),
            ("format", r#""%d", 1.0"#, "type_mismatch"),
            ("format", r#""%d", "1""#, "type_mismatch"),
            (
                "format",
                r#""%x %X %#x %o %b %08b", 255, 255, 255, 8, 5, 5"#,
                r#""ff FF 0xff 10 101 00000101""#,
            ),
            ("format", r#""%x", -1"#, r#""ffffffffffffffff""#),
            ("format", r#""%x", 1.5"#, "type_mismatch"),
            (
                "format",
                r#""%f %.0f %8.3f %08.3f %f", 1.5, 2.5, -3.14159, -3.14159, 1"#,
                r#""1.500000 2   -3.142 -003.142 1.000000""#,
            ),
            ("format", r#""%e %.2E %g %g", 12345.678, 0.00012, 0.1, 1"#, r#""1.234568e+04 1.20E-04 0.1 1""#),
            ("format", r#""%c", 233"#, r#""é""#),
            ("format", r#""%c", -1"#, "bad_argument"),
            ("format", r#""%q", 1"#, "bad_argument"),
            ("format", r#""%",1"#, "bad_argument"),
            ("format", r#""%s""#, "bad_argument"),
            ("format", r#""a", 1"#, "bad_argument"),
            ("format", r#""%s", null"#, "null"),
            ("format", r#""%99999999999999999999s", "a""#, "bad_argument"),
            (
                "format",
                r#""%.99999999999999999999f", 0.5"#,
                r#""0.5000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000""#,
            ),
            ("format", r#""%.99999999999s", "a""#, r#""a""#),
            ("format", r#""%1048577d", 1"#, "bad_argument"),
            ("format", r#""%s", {"$bytes":"ff"}"#, "type_mismatch"),
            ("format", "5", "type_mismatch"),
        ]);
    }
}
