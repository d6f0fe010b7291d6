//! A form that equal values have in common: comparing two, or finding one among many, reads each value once, however large it is.
//!
//! Numbers are equal by value, whatever their type and length; members of objects by name, in any order, of one name the first.

use crate::json;
use crate::value::{Value, write_json_text};

/// Bytes that equal values have in common and no others, NULLs too.
pub(crate) fn canonical(value: &Value<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    match value {
        Value::Json(text) => {
            let text = text.as_bytes();
            if !json::is_readable(text) || put(text, 0, 0, &mut out).is_none() {
                // Nested too deep: equal only to itself.
                out.clear();
                out.extend_from_slice(text);
            }
        }
        scalar => put_scalar(scalar, &mut out),
    }
    out
}

/// Appends the value that begins at `at`; where it ends. Recursion is bounded by `level`.
fn put(text: &[u8], at: usize, level: usize, out: &mut Vec<u8>) -> Option<usize> {
    let at = json::skip_space(text, at);
    match text.get(at)? {
        b'[' | b'{' if level >= json::MAX_DEPTH => None,
        b'[' => {
            out.push(b'[');
            let mut at = at + 1;
            loop {
                at = json::skip_space(text, at);
                match text.get(at)? {
                    b']' => break,
                    b',' => at += 1,
                    _ => {
                        at = put(text, at, level + 1, out)?;
                        out.push(b',');
                    }
                }
            }
            out.push(b']');
            Some(at + 1)
        }
        b'{' => {
            let start = out.len();
            let mut members = Vec::new();
            let mut at = at + 1;
            loop {
                at = json::skip_space(text, at);
                match text.get(at)? {
                    b'}' => break,
                    b',' => at += 1,
                    _ => {
                        let (key, value_at) = json::key(text, at).ok()?;
                        let from = out.len() - start;
                        at = put(text, value_at, level + 1, out)?;
                        members.push((json::content(text, key.found), from..out.len() - start));
                    }
                }
            }
            // Stable: of one name the first stays the first.
            members.sort_by(|(a, _), (b, _)| a.cmp(b));
            members.dedup_by(|(a, _), (b, _)| a == b);
            let values = out.split_off(start);
            out.push(b'{');
            for (key, value) in members {
                write_json_text(&key, out);
                out.push(b':');
                out.extend_from_slice(values.get(value)?);
                out.push(b',');
            }
            out.push(b'}');
            Some(at + 1)
        }
        _ => {
            let found = json::value(text, at, 0).ok()?;
            match Value::found(text, found) {
                Ok(value) => put_scalar(&value, out),
                // A number beyond every float: by its digits.
                Err(_) => out.extend_from_slice(found.of(text)),
            }
            Some(found.end as usize)
        }
    }
}

fn put_scalar(value: &Value<'_>, out: &mut Vec<u8>) {
    match value {
        Value::Float(0.0) => out.push(b'0'),
        // A float that is an integer is equal to that.
        Value::Float(float) if float.fract() == 0.0 => {
            out.extend_from_slice(format!("{float:.0}").as_bytes())
        }
        Value::Float(float) => out.extend_from_slice(format!("{float:e}").as_bytes()),
        other => other.write_json(out),
    }
}
