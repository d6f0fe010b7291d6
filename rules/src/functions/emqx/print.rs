//! Printing by a format, as Erlang's io_lib:format: <https://www.erlang.org/doc/apps/stdlib/io.html#fwrite/3>.
//!
//! `~F.P.PadModC`: a field width, a precision, a character to fill with, modifiers, and the control character. What Erlang would break
//! into lines of 80 characters (`~p` of long terms) stays in one.

use super::{Given, list_of, owned, take, text_of, within};
use crate::emqx::run::DEPTH_MAX;
use crate::functions::Surroundings;
use crate::value::Value;
use crate::{TypeError, big};

pub(super) fn sprintf<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let format = take(args, 0);
    let rest: Vec<Value<'static>> =
        args.iter_mut().skip(1).map(|arg| std::mem::take(arg).into_owned()).collect();
    print(&text_of(&format)?, &rest, around)
}

pub(super) fn sprintf_s<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let (format, list) = (take(args, 0), take(args, 1));
    print(&text_of(&format)?, list_of(&list)?, around)
}

/// What text does in a field that is too narrow.
#[derive(Clone, Copy, PartialEq)]
enum Narrow {
    /// It is cut.
    Cut,
    /// Stars stand for it.
    Stars,
    /// The width does not count.
    Ignore,
}

fn print<'a>(format: &str, args: &[Value<'static>], around: &Surroundings) -> Given<'a> {
    let mut args = args.iter();
    let mut out = String::new();
    let mut rest = format.chars().peekable();
    while let Some(c) = rest.next() {
        if c != '~' {
            out.push(c);
            continue;
        }
        let mut left = rest.next_if_eq(&'-').is_some();
        // `*` takes the number from the arguments.
        let mut number = |args: &mut std::slice::Iter<'_, Value<'static>>| -> Result<_, TypeError> {
            let mut n: Option<i64> = None;
            if rest.next_if_eq(&'*').is_some() {
                let Some(Value::Int(given)) = args.next() else { return Err(TypeError::BadArgument) };
                n = Some(*given);
            }
            while let Some(digit) = rest.next_if(char::is_ascii_digit).and_then(|c| c.to_digit(10)) {
                n = Some(n.unwrap_or(0).saturating_mul(10).saturating_add(i64::from(digit)));
            }
            Ok((n, rest.next_if_eq(&'.').is_some()))
        };
        let (width, more) = number(&mut args)?;
        let (precision, more) = if more { number(&mut args)? } else { (None, false) };
        left |= width.is_some_and(|width| width < 0);
        let width = width.map(|width| usize::try_from(width.unsigned_abs()).unwrap_or(usize::MAX));
        let precision = match precision {
            Some(n) => Some(usize::try_from(n).map_err(|_| TypeError::BadArgument)?),
            None => None,
        };
        let fill = if more { rest.next().unwrap_or(' ') } else { ' ' };
        let mut wide = false;
        while let Some(modifier) = rest.next_if(|c| matches!(c, 't' | 'l' | 'k' | 'K')) {
            wide |= modifier == 't';
        }
        let control = rest.next().ok_or(TypeError::BadArgument)?;
        if control == 'n' || control == '~' {
            let count = width.unwrap_or(1);
            within(out.len().saturating_add(count), around)?;
            out.extend(std::iter::repeat_n(if control == 'n' { '\n' } else { '~' }, count));
            continue;
        }
        let arg = args.next().ok_or(TypeError::BadArgument)?;
        let precision_or = |default: usize| precision.unwrap_or(default).min(253);
        let radix = || {
            let radix = u32::try_from(precision.unwrap_or(10)).ok().filter(|r| (2..=36).contains(r));
            radix.ok_or(TypeError::BadArgument)
        };
        let mut narrow = Narrow::Stars;
        let text = match (control, arg) {
            ('s', Value::Text(_) | Value::Bool(_) | Value::List(_)) => {
                narrow = Narrow::Cut;
                let text = String::from_utf8_lossy(&string(arg)?).into_owned();
                match precision {
                    Some(most) => text.chars().take(most).collect(),
                    None => text,
                }
            }
            ('p' | 'P' | 'w' | 'W', _) => {
                // ~P and ~W: how deep; all is written.
                if matches!(control, 'P' | 'W') && !matches!(args.next(), Some(Value::Int(_))) {
                    return Err(TypeError::BadArgument);
                }
                let words = matches!(control, 'p' | 'P');
                narrow = if words { Narrow::Ignore } else { Narrow::Stars };
                let mut term = Term { out: String::new(), words, wide, max: around.max_text };
                term.write(arg, DEPTH_MAX)?;
                term.out
            }
            ('B' | 'b', Value::Int(_) | Value::Big(_)) => {
                let text = big::integer(arg)?.to_str_radix(radix()?);
                if control == 'B' { text.to_uppercase() } else { text }
            }
            ('X' | 'x', Value::Int(_) | Value::Big(_)) => {
                let prefix = args.next().ok_or(TypeError::BadArgument)?;
                let prefix = String::from_utf8_lossy(&string(prefix)?).into_owned();
                based(&big::integer(arg)?.to_str_radix(radix()?), &prefix, control == 'X')
            }
            ('#' | '+', Value::Int(_) | Value::Big(_)) => {
                let radix = radix()?;
                based(&big::integer(arg)?.to_str_radix(radix), &format!("{radix}#"), control == '#')
            }
            ('c', Value::Int(code)) => {
                let c = u32::try_from(*code).ok().and_then(char::from_u32).ok_or(TypeError::BadArgument)?;
                narrow = Narrow::Cut;
                c.to_string().repeat(precision.or(width).unwrap_or(1).min(253))
            }
            ('f', Value::Float(f)) if precision != Some(0) => format!("{f:.*}", precision_or(6)),
            ('e', Value::Float(f)) if precision_or(6) >= 2 => scientific(*f, precision_or(6) - 1),
            ('g', Value::Float(f)) if f.abs() >= 0.1 && f.abs() < 10_000.0 => {
                significant(*f, precision_or(6))
            }
            ('g', Value::Float(f)) if precision_or(6) >= 2 => scientific(*f, precision_or(6) - 1),
            ('i', _) => {
                narrow = Narrow::Ignore;
                String::new()
            }
            _ => return Err(TypeError::BadArgument),
        };
        let length = text.chars().count();
        let width = width.filter(|_| narrow != Narrow::Ignore).unwrap_or(length);
        let missing = width.saturating_sub(length);
        within(out.len().saturating_add(missing.saturating_mul(4)).saturating_add(text.len()), around)?;
        let fill = String::from(fill).repeat(missing);
        match narrow {
            Narrow::Stars if length > width => out.push_str(&"*".repeat(width)),
            Narrow::Cut if length > width => out.extend(text.chars().take(width)),
            _ => out.push_str(&if left { text + &fill } else { fill + &text }),
        }
    }
    if args.next().is_some() { Err(TypeError::BadArgument) } else { Ok(owned(out)) }
}

/// What `~s` takes: text, an atom, code points and text in lists.
fn string(value: &Value<'_>) -> Result<Vec<u8>, TypeError> {
    let mut out = Vec::new();
    match value {
        Value::List(items) => {
            for item in items.iter() {
                match item {
                    Value::Int(code) => {
                        let c = u32::try_from(*code).ok().and_then(char::from_u32);
                        out.extend_from_slice(
                            c.ok_or(TypeError::BadArgument)?.encode_utf8(&mut [0; 4]).as_bytes(),
                        );
                    }
                    Value::Text(text) => out.extend_from_slice(text.as_bytes()),
                    _ => return Err(TypeError::BadArgument),
                }
            }
        }
        other => out.extend_from_slice(text_of(other)?.as_bytes()),
    }
    Ok(out)
}

/// Digits with what says their base, behind the sign.
fn based(digits: &str, prefix: &str, upper: bool) -> String {
    let (sign, digits) = match digits.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", digits),
    };
    let digits = if upper { digits.to_uppercase() } else { digits.to_owned() };
    format!("{sign}{prefix}{digits}")
}

/// `1.50000e+0`: the exponent has as many digits as it needs.
fn scientific(f: f64, decimals: usize) -> String {
    let text = format!("{f:.decimals$e}");
    match text.split_once('e') {
        Some((number, exponent)) if !exponent.starts_with('-') => format!("{number}e+{exponent}"),
        _ => text,
    }
}

/// With so many digits that count, at least one behind the point. `f` is at least 0.1 and less than 10,000.
fn significant(f: f64, digits: usize) -> String {
    let before = match f.abs() {
        f if f < 1.0 => 0,
        f if f < 10.0 => 1,
        f if f < 100.0 => 2,
        f if f < 1000.0 => 3,
        _ => 4,
    };
    format!("{f:.*}", digits.saturating_sub(before).max(1))
}

/// A value as Erlang writes terms.
struct Term {
    out: String,
    /// `~p`: text and lists of code points as such.
    words: bool,
    /// `~tp`: text beyond Latin-1 too.
    wide: bool,
    max: usize,
}

impl Term {
    /// Recursion is bounded by `depth`.
    fn write(&mut self, value: &Value<'_>, depth: usize) -> Result<(), TypeError> {
        if depth == 0 || self.out.len() > self.max {
            return Err(TypeError::BadArgument);
        }
        match value {
            Value::Missing => self.out.push_str("undefined"),
            Value::Null => self.out.push_str("null"),
            Value::Bool(truth) => self.out.push_str(if *truth { "true" } else { "false" }),
            Value::Int(i) => self.out.push_str(&i.to_string()),
            Value::Big(digits) => self.out.push_str(digits),
            // The shortest that reads back, with a point.
            Value::Float(f) if f.abs() < 1e16 && (f.abs() >= 1e-4 || *f == 0.0) => {
                self.out.push_str(&format!("{f:?}"));
            }
            Value::Float(f) => {
                let text = format!("{f:e}");
                let (number, exponent) = text.split_once('e').unwrap_or((&text, "0"));
                let point = if number.contains('.') { "" } else { ".0" };
                self.out.push_str(&format!("{number}{point}e{exponent}"));
            }
            Value::Text(text) => self.binary(text.as_bytes()),
            Value::Bytes(bytes) => self.binary(bytes),
            Value::Json(_) => return self.write(&value.share().open(), depth),
            Value::List(items) => {
                let code = |item: &Value<'_>| match item {
                    Value::Int(code) => u8::try_from(*code).ok().filter(|c| printable(*c)).map(char::from),
                    _ => None,
                };
                let text: Option<String> = items.iter().map(code).collect();
                if let Some(text) = text.filter(|text| self.words && !text.is_empty()) {
                    self.quoted(&text);
                    return Ok(());
                }
                self.out.push('[');
                for (at, item) in items.iter().enumerate() {
                    if at > 0 {
                        self.out.push(',');
                    }
                    self.write(item, depth - 1)?;
                }
                self.out.push(']');
            }
            Value::Map(members) => {
                let mut members: Vec<_> = members.iter().collect();
                // Erlang's order of small maps.
                members.sort_unstable_by_key(|(key, _)| *key);
                self.out.push_str("#{");
                for (at, (key, item)) in members.into_iter().enumerate() {
                    if at > 0 {
                        self.out.push(',');
                    }
                    self.binary(key.as_bytes());
                    self.out.push_str(if self.words { " => " } else { "=>" });
                    self.write(item, depth - 1)?;
                }
                self.out.push('}');
            }
        }
        Ok(())
    }

    fn binary(&mut self, bytes: &[u8]) {
        self.out.push_str("<<");
        let latin1 = bytes.iter().all(|&byte| printable(byte));
        match std::str::from_utf8(bytes) {
            Ok(text) if self.words && !bytes.is_empty() && text.is_ascii() && latin1 => self.quoted(text),
            Ok(text) if self.words && self.wide && !text.is_ascii() && !text.contains(char::is_control) => {
                self.quoted(text);
                self.out.push_str("/utf8");
            }
            _ if self.words && !bytes.is_empty() && latin1 => {
                let text: String = bytes.iter().map(|&byte| char::from(byte)).collect();
                self.quoted(&text);
            }
            _ => {
                let numbers: Vec<String> = bytes.iter().map(u8::to_string).collect();
                self.out.push_str(&numbers.join(","));
            }
        }
        self.out.push_str(">>");
    }

    fn quoted(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' | '\\' => self.out.extend(['\\', c]),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{b}' => self.out.push_str("\\v"),
                '\u{c}' => self.out.push_str("\\f"),
                '\u{1b}' => self.out.push_str("\\e"),
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// As io_lib:printable_latin1_list has it.
pub(super) fn printable(byte: u8) -> bool {
    matches!(byte, 8..=13 | 27 | 32..=126 | 160..)
}

#[cfg(test)]
mod tests {
    use super::super::tests::check;

    #[test]
    fn formats() {
        check(&[
            ("sprintf", "[\"~s is ~p\", \"a\", 2]", "\"a is 2\""),
            ("sprintf_s", "[\"~5.2f|~-4s|~4..0B\", [1.234, \"a\", 7]]", "\" 1.23|a   |0007\""),
            ("sprintf", "[\"~16.16.0B~n~~\", 255]", "\"00000000000000FF\\n~\""),
            ("sprintf", "[\"~e ~c\", 1.5, 65]", "\"1.50000e+0 A\""),
            ("sprintf", "[\"~.3e|~e|~.1e\", 12345.678, 1.0e-10, 1.0]", "error"),
            ("sprintf", "[\"~.3e|~e\", 12345.678, 1.0e-10]", "\"1.23e+4|1.00000e-10\""),
            ("sprintf", "[\"~g|~g|~g\", 1.5, 123456.0, 0.1]", "\"1.50000|1.23456e+5|0.100000\""),
            ("sprintf", "[\"~.16b|~.16B|~.2b\", 255, 255, -5]", "\"ff|FF|-101\""),
            ("sprintf", "[\"~.16x|~.16X\", 31, \"0x\", -31, \"0x\"]", "\"0x1f|-0x1F\""),
            ("sprintf", "[\"~.16+|~.16#\", 31, -31]", "\"16#1f|-16#1F\""),
            (
                "sprintf",
                "[\"~3s|~5.3s|~2B|~*s\", \"abcdef\", \"abcdef\", 1234, 3, \"a\"]",
                "\"abc|  abc|**|  a\"",
            ),
            ("sprintf", "[\"~s\", [72, \"ey\"]]", "\"Hey\""),
            ("sprintf", "[\"~3c|~4.2c\", 65, 65]", "\"AAA|  AA\""),
            (
                "sprintf",
                "[\"~p ~p\", {\"b\":1,\"a\":[\"x\",1.0]}, null]",
                "\"#{<<\\\"a\\\">> => [<<\\\"x\\\">>,1.0],<<\\\"b\\\">> => 1} null\"",
            ),
            ("sprintf", "[\"~w ~w ~w\", \"ab\", [97,98], {\"a\":1}]", "\"<<97,98>> [97,98] #{<<97>>=>1}\""),
            ("sprintf", "[\"~p ~p ~p\", [97,98], [], \"\"]", "\"\\\"ab\\\" [] <<>>\""),
            ("sprintf", "[\"~p ~tp\", \"À\", \"À\"]", "\"<<195,128>> <<\\\"À\\\"/utf8>>\""),
            ("sprintf", "[\"~p\", 1.0e22]", "\"1.0e22\""),
            ("sprintf", "[\"~P\", [1], 3]", "\"[1]\""),
            ("sprintf", "[\"~s\"]", "error"),
            ("sprintf", "[\"~s\", 1]", "error"),
            ("sprintf", "[\"none\", 1]", "error"),
            ("sprintf", "[\"~99999999s\", \"a\"]", "error"),
            ("sprintf", "[\"~99999999n\"]", "error"),
        ]);
    }
}
