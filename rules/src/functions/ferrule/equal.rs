//! Equality of many values with each other: each is looked at once, however large it is.
//!
//! It is `=`, but between unlike types FALSE, as for IN.

use super::*;
pub(super) use crate::canonical::canonical;
use crate::sql::ast::Binary;
use crate::value::compare;

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
            "[123456789012345678901]",
            "[123456789012345678902]",
            "[1e400]",
            "{\"a\":1,\"a\":2}",
            "{ \"\\u0061\" : 1 }",
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
