//! Columns that go from the payload to the row as they stand there.
//!
//! Most columns are one field of the payload or of FOREACH's element, which nothing reads but the row. To make a value of its
//! JSON and JSON of that again costs more than finding it did; where both are the same text, it is copied.
//!
//! # Data
//! [`Source`] is where such a column is, known when the rule is loaded ([`crate::program::Program::source`]). For each register the
//! machine has, beside its value, the text that stands for it.
//!
//! # Invariant
//! The row is the one that values would make, byte for byte. What is not written as [`Value::write_json`] would write it is
//! evaluated.

use crate::Failure;
use crate::foreach::Element;
use crate::json::Kind;
use crate::machine::Machine;
use crate::program::{ItemId, Source};
use crate::value::Value;

impl<'a> Machine<'a, '_> {
    /// Makes the registers of what comes, with what they hold until then.
    pub(crate) fn make_room(&mut self, count: usize, empty: &Value<'static>) {
        self.registers.resize_with(count, || empty.clone());
        self.copies.resize(count, None);
    }

    /// Takes a column as it stands in the text, if the row would have it so; else it is to be evaluated.
    #[inline]
    pub(crate) fn copy(&mut self, source: Source, register: ItemId) -> Result<bool, Failure> {
        let Some(copy) = self.copies.get_mut(register) else { return Ok(false) };
        *copy = None;
        let (text, found) = match source {
            Source::Payload(node) => {
                let payload = self.input.payload;
                (payload, self.scan.find(&self.program.paths, payload, node).ok().flatten())
            }
            Source::Element(node) => match self.element {
                Element::Text(text) => (text, self.elements.get(node)),
                _ => return Ok(false),
            },
        };
        let Some(found) = found else { return Ok(false) };
        let text = found.of(text);
        // What was decoded stands in the text under tags.
        if self.program.format.is_some() || !is_as_written(found.kind, text) {
            return Ok(false);
        }
        *copy = Some(text);
        *self.fuel = self.fuel.checked_sub(1).ok_or(Failure::OutOfFuel)?;
        Ok(true)
    }

    /// The register gets a value.
    #[inline]
    pub(crate) fn forget_copy(&mut self, register: ItemId) {
        if let Some(copy) = self.copies.get_mut(register) {
            *copy = None;
        }
    }

    /// The text that stands for a register's value.
    #[inline]
    pub(crate) fn copied(&self, register: ItemId) -> Option<&'a [u8]> {
        self.copies.get(register).copied().flatten()
    }

    /// Appends a column as JSON; what no register has is `empty`.
    #[inline]
    pub(crate) fn write_column(&self, register: ItemId, empty: &Value<'_>, out: &mut Vec<u8>) {
        match self.copied(register) {
            Some(text) => out.extend_from_slice(text),
            None => self.registers.get(register).unwrap_or(empty).write_json(out),
        }
    }
}

/// Whether a value stands in JSON text as [`Value::write_json`] would write it: a row may have that text.
#[inline]
fn is_as_written(kind: Kind, text: &[u8]) -> bool {
    match kind {
        Kind::Escaped => false,
        Kind::Int => text != b"-0",
        Kind::Float => is_short(text),
        _ => true,
    }
}

/// The same of a float of JSON's grammar. Of at most 15 digits no two decimals are the same float, so that the shortest is the
/// one at hand, if no zero ends it; neither tiny nor huge, it is written without exponent.
fn is_short(number: &[u8]) -> bool {
    let digits = number.strip_prefix(b"-").unwrap_or(number);
    let Some(point) = digits.iter().position(|byte| *byte == b'.').filter(|_| digits.len() <= 16) else {
        return false;
    };
    let (whole, decimals) = (&digits[..point], &digits[point + 1..]);
    let (Some(first), Some(last)) = (decimals.first(), decimals.last()) else { return false };
    let is_below_one = whole == b"0";
    decimals.iter().all(u8::is_ascii_digit)
        && (*last != b'0' || (decimals.len() == 1 && !is_below_one))
        && !(is_below_one && *first == b'0')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::json;
    use proptest::prelude::*;

    fn written(value: &Value<'_>) -> String {
        let mut out = Vec::new();
        value.write_json(&mut out);
        String::from_utf8(out).unwrap()
    }

    fn check(text: &str) {
        let found = json::document(text.as_bytes()).unwrap();
        if is_as_written(found.kind, text.as_bytes()) {
            let value = Value::found(text.as_bytes(), found);
            assert_eq!(value.as_ref().map(written), Ok(text.to_owned()));
        }
    }

    #[test]
    fn sensors_numbers_are_as_written() {
        for text in ["0.5", "10.5", "-72.5", "1.0", "1013.25", "12345678901234.5"] {
            assert!(is_as_written(Kind::Float, text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn copied_as_it_would_be_written() {
        for text in [
            "0",
            "-0",
            "7",
            "-12",
            "9223372036854775807",
            "9223372036854775808",
            "123456789012345678901234567890",
            "0.0",
            "-0.0",
            "1.0",
            "10.0",
            "10.00",
            "1.50",
            "0.5",
            "0.05",
            "0.00001",
            "0.000001",
            "100000.5",
            "1e3",
            "1.5e3",
            "1.5E-7",
            "1e400",
            "123456789012345.0",
            "12345678901234.5",
            "1234567890123456.5",
            "123456789012345.5",
            "0.1234567890123456789",
            "1.0e16",
            "true",
            "false",
            "null",
            "\"\"",
            "\"a\"",
            "\"\\u0061\"",
            "\"\\n\"",
            "\"\u{e9}\u{7f}\u{1F600}/\"",
            "[1, 2.50]",
            "{ \"a\":1.50 }",
        ] {
            check(text);
        }
    }

    proptest! {
        #[test]
        fn decimals_copied_as_they_would_be_written(
            text in "-?(0|[1-9][0-9]{0,16})(\\.[0-9]{1,17})?([eE][+-]?[0-9]{1,2})?",
        ) {
            check(&text);
        }

        #[test]
        fn short_decimals_copied(text in "-?(0|[1-9][0-9]{0,7})\\.[0-9]{1,7}") {
            check(&text);
        }
    }
}
