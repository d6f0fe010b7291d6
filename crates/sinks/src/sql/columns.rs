//! The option `columns`: `'ts timestamptz, temp double precision'`.

use super::KEY_COLUMNS;

/// A column of a table that is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnSpec {
    /// Its name, without quotes.
    pub name: String,
    /// Type and constraints, as they stand in CREATE TABLE.
    pub sql_type: String,
}

/// PostgreSQL's limit (1,600) less the key.
const COLUMNS_MAX: usize = 1_594;

/// Reads the list. It goes into a CREATE TABLE, so its types may hold only what types and simple constraints consist of:
/// words, numbers, `()[],.`.
///
/// # Errors
/// Every mistake, a sentence each.
pub(super) fn parse(text: &str) -> Result<Vec<ColumnSpec>, Vec<String>> {
    let mut columns: Vec<ColumnSpec> = Vec::new();
    let mut mistakes = Vec::new();
    for item in split(text) {
        match column(item) {
            Ok(column) if columns.iter().any(|c| c.name.eq_ignore_ascii_case(&column.name)) => {
                mistakes.push(format!("option `columns`: `{}` is there twice", column.name));
            }
            Ok(column) => columns.push(column),
            Err(why) => mistakes.push(format!("option `columns`, at '{}': {why}", item.trim())),
        }
    }
    if columns.len() > COLUMNS_MAX {
        mistakes.push(format!("option `columns`: {} columns, a table takes {COLUMNS_MAX}", columns.len()));
    }
    if mistakes.is_empty() { Ok(columns) } else { Err(mistakes) }
}

/// Splits at commas outside parentheses and quotes.
fn split(text: &str) -> impl Iterator<Item = &str> {
    let (mut depth, mut quoted) = (0_i32, false);
    text.split(move |c| {
        match c {
            '"' => quoted = !quoted,
            '(' if !quoted => depth += 1,
            ')' if !quoted => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0 && !quoted
    })
}

fn column(item: &str) -> Result<ColumnSpec, String> {
    let item = item.trim();
    let (name, rest) = if let Some(quoted) = item.strip_prefix('"') {
        let end = quoted.find('"').ok_or("the quote is not closed")?;
        (&quoted[..end], &quoted[end + 1..])
    } else {
        let end = item.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(item.len());
        item.split_at(end)
    };
    if name.is_empty() {
        return Err("a column's name is wanted, then its type".into());
    }
    if KEY_COLUMNS.iter().any(|(key, _)| key.eq_ignore_ascii_case(name)) {
        return Err(format!("`{name}` is one of the key columns, which every table gets by itself"));
    }
    if name.len() > super::layout::IDENTIFIER_MAX {
        return Err(format!(
            "the name has {} bytes, {} are possible",
            name.len(),
            super::layout::IDENTIFIER_MAX
        ));
    }
    let sql_type = rest.trim();
    if sql_type.is_empty() {
        return Err(format!("`{name}` has no type"));
    }
    if !rest.starts_with(char::is_whitespace) {
        return Err("between name and type a space is wanted".into());
    }
    if let Some(bad) = sql_type.chars().find(|&c| !(c.is_alphanumeric() || "_ ()[],.".contains(c))) {
        return Err(format!("`{bad}` cannot stand in a type"));
    }
    let balance = sql_type.chars().try_fold(0_i32, |depth, c| match c {
        '(' => Some(depth + 1),
        ')' => (depth > 0).then_some(depth - 1),
        _ => Some(depth),
    });
    if balance != Some(0) {
        return Err("a parenthesis is not closed".into());
    }
    Ok(ColumnSpec { name: name.to_owned(), sql_type: sql_type.to_owned() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn lists_are_read() {
        let read = |text| parse(text).unwrap().into_iter().map(|c| (c.name, c.sql_type)).collect::<Vec<_>>();
        let own = |n: &str, t: &str| (n.to_owned(), t.to_owned());
        assert_eq!(
            read("ts timestamptz, temp double precision"),
            [own("ts", "timestamptz"), own("temp", "double precision")]
        );
        assert_eq!(
            read(" a numeric(5,2) NOT NULL ,\"b, c\" int[] "),
            [own("a", "numeric(5,2) NOT NULL"), own("b, c", "int[]")]
        );
    }

    #[test]
    fn mistakes_are_found() {
        for (text, wanted) in [
            ("", "a column's name is wanted"),
            ("a", "`a` has no type"),
            ("a int,", "a column's name is wanted"),
            ("a int, A text", "`A` is there twice"),
            ("_seq int", "one of the key columns"),
            ("a int); DROP TABLE x", "cannot stand"),
            ("a int) x (y", "not closed"),
            ("a int DEFAULT 'x'", "cannot stand"),
            ("a numeric(5", "not closed"),
            ("\"a int", "not closed"),
            ("\"a\"int", "a space is wanted"),
        ] {
            let mistakes = parse(text).unwrap_err();
            assert!(mistakes.iter().any(|m| m.contains(wanted)), "{text}: {mistakes:?}");
        }
    }
}
