//! Equality of many values with each other: each is looked at once, however large it is.
//!
//! It is `=`, but between unlike types FALSE, as for IN.

use serde_json::Value as Tree;

use super::*;
use crate::sql::ast::Binary;
use crate::value::{compare, write_json_text};

/// A value that others are compared with.
pub(super) struct Wanted<'v> {
    value: &'v Value<'v>,
    /// Of an array or object.
    canonical: Option<Vec<u8>>,
}

impl<'v> Wanted<'v> {
    pub(super) fn new(value: &'v Value<'v>) -> Self {
        Wanted { value, canonical: matches!(value, Value::Json(_)).then(|| canonical(value)) }
    }

    /// Whether a value is equal; NULL is equal to nothing.
    pub(super) fn is(&self, other: &Value<'_>) -> bool {
        match (&self.canonical, other) {
            (Some(wanted), Value::Json(_)) => *wanted == canonical(other),
            (Some(_), _) => false,
            (None, other) => same(self.value, other),
        }
    }
}

/// Whether two values are equal.
pub(super) fn same(a: &Value<'_>, b: &Value<'_>) -> bool {
    compare(Binary::Eq, a, b) == Ok(Some(true))
}

/// Bytes that equal values have in common and no others, NULLs too: numbers by value, members by name.
pub(super) fn canonical(value: &Value<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    match value {
        Value::Json(text) => match serde_json::from_str(text) {
            Ok(tree) => put_tree(&tree, &mut out),
            // Nested too deep: equal only to itself.
            Err(_) => out.extend_from_slice(text.as_bytes()),
        },
        other => put_scalar(other, &mut out),
    }
    out
}

fn put_scalar(value: &Value<'_>, out: &mut Vec<u8>) {
    match value {
        // A float that is an integer is equal to that.
        Value::Float(float) => match number::whole(*float) {
            Ok(int) if float.fract() == 0.0 => int.write_json(out),
            _ if float.fract() == 0.0 => out.extend_from_slice(format!("{float:.0}").as_bytes()),
            _ => out.extend_from_slice(format!("{float:e}").as_bytes()),
        },
        other => other.write_json(out),
    }
}

/// At most 127 deep: serde_json read it.
fn put_tree(tree: &Tree, out: &mut Vec<u8>) {
    match tree {
        Tree::Array(items) => {
            out.push(b'[');
            for item in items {
                put_tree(item, out);
                out.push(b',');
            }
            out.push(b']');
        }
        Tree::Object(members) => {
            let mut members: Vec<(&String, &Tree)> = members.iter().collect();
            members.sort_unstable_by_key(|(key, _)| *key);
            out.push(b'{');
            for (key, value) in members {
                write_json_text(key, out);
                out.push(b':');
                put_tree(value, out);
                out.push(b',');
            }
            out.push(b'}');
        }
        scalar => put_scalar(&Value::from_tree(scalar), out),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_canonical_form_is_the_same_where_values_are_equal() {
        let texts = [
            "null",
            "true",
            "false",
            "0",
            "-0.0",
            "1",
            "1.0",
            "1e0",
            "1.5",
            "9007199254740993",
            "9007199254740992.0",
            "9223372036854775807",
            "9.3e18",
            "123456789012345678901",
            "123456789012345678902",
            "123456789012345683968",
            "1.2345678901234568e20",
            "\"1\"",
            "\"\"",
            "\"\\u0031\"",
            "[]",
            "[ ]",
            "[1]",
            "[1.0]",
            "[\"1\"]",
            "[[1],2]",
            "[[1,2]]",
            "{}",
            "{\"a\":1,\"b\":[2]}",
            "{\"b\":[2.0],\"a\":1}",
            "{\"a\":1}",
            "{\"a\":null}",
            "[null]",
        ];
        let value = |text: &'static str| {
            let found = json::document(text.as_bytes()).ok();
            found.and_then(|found| Value::found(text.as_bytes(), found).ok()).unwrap_or_default()
        };
        for a in texts {
            for b in texts {
                let (x, y) = (value(a), value(b));
                let equal = same(&x, &y) || a == "null" && b == "null";
                assert_eq!(canonical(&x) == canonical(&y), equal, "{a} and {b}");
                assert_eq!(Wanted::new(&x).is(&y), same(&x, &y), "{a} is {b}");
            }
        }
    }
}
