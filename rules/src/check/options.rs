//! Values of options by their kinds: durations, sizes, words, columns.

use crate::diagnostic::nearest;
use crate::sql::ast::Literal;
use crate::template;
use crate::{OptionKind, OptionSchema, OptionValue};

/// The names in `'ts timestamptz, temp numeric(10, 2)'`.
pub(super) fn column_names(columns: &str) -> Vec<String> {
    let mut names = Vec::new();
    let (mut depth, mut start, mut quoted) = (0u32, 0, false);
    let ends = columns.char_indices().chain([(columns.len(), ',')]);
    for (at, ch) in ends {
        match ch {
            '"' => quoted = !quoted,
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if (depth == 0 && !quoted) || at == columns.len() => {
                let column = columns[start..at].trim();
                let name = match column.strip_prefix('"').and_then(|c| c.split_once('"')) {
                    Some((name, _)) => name,
                    None => column.split_whitespace().next().unwrap_or(""),
                };
                if !name.is_empty() {
                    names.push(name.to_owned());
                }
                start = at + 1;
            }
            _ => {}
        }
    }
    names
}

/// A schema's default; one that does not fit its own kind is as good as none (a test of the host's finds it).
pub(super) fn default_value(option: &OptionSchema, default: &str) -> Option<OptionValue> {
    let literal = match option.kind {
        OptionKind::Int => Literal::Int(default.parse().ok()?),
        OptionKind::Bool => Literal::Bool(default.eq_ignore_ascii_case("true")),
        _ => Literal::Text(default.to_owned()),
    };
    option_value(option.kind, &literal).ok()
}

/// A value of its kind.
///
/// # Errors
/// What was expected instead.
pub(crate) fn option_value(kind: OptionKind, value: &Literal) -> Result<OptionValue, String> {
    Ok(match (kind, value) {
        (OptionKind::Text, Literal::Text(text)) => OptionValue::Text(text.clone()),
        (OptionKind::Text, _) => return Err("text in single quotes".to_owned()),
        (OptionKind::Columns, Literal::Text(text)) if !column_names(text).is_empty() => {
            OptionValue::Text(text.clone())
        }
        (OptionKind::Columns, _) => return Err("columns as 'name type, name type'".to_owned()),
        (OptionKind::Word(words), Literal::Text(text)) if words.contains(&text.as_str()) => {
            OptionValue::Text(text.clone())
        }
        (OptionKind::Word(words), value) => {
            let list = words.iter().map(|w| format!("'{w}'")).collect::<Vec<_>>().join(", ");
            let near = match value {
                Literal::Text(text) => nearest(text, words.iter().copied()),
                _ => None,
            };
            let near = near.map(|n| format!("; did you mean '{n}'?")).unwrap_or_default();
            return Err(format!("one of {list}{near}"));
        }
        (OptionKind::Int, Literal::Int(n)) => OptionValue::Int(*n),
        (OptionKind::Int, _) => return Err("a whole number".to_owned()),
        (OptionKind::Bool, Literal::Bool(b)) => OptionValue::Bool(*b),
        (OptionKind::Bool, _) => return Err("TRUE or FALSE".to_owned()),
        (OptionKind::Duration, Literal::Text(text)) => {
            let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
            OptionValue::DurationMs(with_unit(text, &units).ok_or_else(duration_expected)?)
        }
        (OptionKind::Duration, _) => return Err(duration_expected()),
        (OptionKind::Size, Literal::Text(text)) => {
            let units = [
                ("", 1),
                ("B", 1),
                ("kB", 1000),
                ("KB", 1000),
                ("MB", 1_000_000),
                ("GB", 1_000_000_000),
                ("KiB", 1 << 10),
                ("MiB", 1 << 20),
                ("GiB", 1 << 30),
            ];
            OptionValue::SizeBytes(with_unit(text, &units).ok_or_else(size_expected)?)
        }
        (OptionKind::Size, Literal::Int(n)) => {
            OptionValue::SizeBytes(u64::try_from(*n).map_err(|_| size_expected())?)
        }
        (OptionKind::Size, _) => return Err(size_expected()),
        (OptionKind::Template, Literal::Text(text)) => {
            template::parse(text).map_err(|problem| format!("a template, and {problem}"))?;
            OptionValue::Template(text.clone())
        }
        (OptionKind::Template, _) => return Err("a template in single quotes".to_owned()),
        (OptionKind::Secret, Literal::Text(text)) => OptionValue::Secret(text.clone()),
        (OptionKind::Secret, _) => return Err("'env:NAME', 'file:PATH' or text in single quotes".to_owned()),
    })
}

fn duration_expected() -> String {
    "a duration with a unit: '250ms', '5s', '10m', '2h' or '30d'".to_owned()
}

fn size_expected() -> String {
    "a size: bytes, or '64KiB', '4MiB', '1GB'".to_owned()
}

/// `12s` by a table of units; whole numbers only, so that nothing is rounded.
fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let factor = units.iter().find(|(name, _)| *name == unit.trim())?.1;
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes() {
        let value = |kind, text: &str| option_value(kind, &Literal::Text(text.to_owned())).ok();
        for (text, ms) in
            [("250ms", 250), ("5s", 5000), ("10 m", 600_000), ("2h", 7_200_000), ("30d", 2_592_000_000)]
        {
            assert_eq!(value(OptionKind::Duration, text), Some(OptionValue::DurationMs(ms)), "{text}");
        }
        for (text, bytes) in [("17", 17), ("64KiB", 65_536), ("4 MiB", 4 << 20), ("1GB", 1_000_000_000)] {
            assert_eq!(value(OptionKind::Size, text), Some(OptionValue::SizeBytes(bytes)), "{text}");
        }
        for text in ["", "5", "s", "1.5s", "-1s", "99999999999999999999s", "9999999999999999d", "5x"] {
            assert_eq!(value(OptionKind::Duration, text), None, "{text}");
        }
    }

    #[test]
    fn names_of_columns() {
        assert_eq!(
            column_names("ts timestamptz, temp numeric(10, 2),\"a, b\" text ,, x"),
            ["ts", "temp", "a, b", "x"]
        );
    }
}
