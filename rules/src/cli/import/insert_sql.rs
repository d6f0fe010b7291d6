//! `INSERT INTO table(column, ...) VALUES (${column}, ...)` of EMQX's SQL actions.
//!
//! A SQL sink here fills a table's columns by the names of the row's. So an action can be taken over when each column takes
//! the row's value of the same name, and no other is in the row; how to get there is said when it does not fit.

use super::emqx::Row;
use crate::sql::cursor::shorten;
use crate::sql::expr::unquote;
use crate::sql::lex::{Kind, Token, lex};

/// What an action inserts.
#[derive(Debug, PartialEq)]
pub(super) struct InsertSql {
    pub(super) table: String,
    /// Columns, and the row's columns that fill them.
    columns: Vec<(String, String)>,
    /// What stands behind the values: ON CONFLICT.
    pub(super) rest: Option<String>,
}

/// Reads an action's SQL.
///
/// # Errors
/// Why it cannot be taken over, a clause.
pub(super) fn read(sql: &str) -> Result<InsertSql, String> {
    // `${a.b}` becomes one word: the tokens are then those of SQL.
    let mut plain = String::with_capacity(sql.len());
    let mut places = Vec::new();
    let mut rest = sql;
    while let Some(at) = rest.find("${") {
        let inner = &rest[at + 2..];
        let Some(end) = inner.find('}') else { break };
        plain.push_str(rest[..at].trim_end_matches(['\'', '"']));
        places.push(inner[..end].trim_start_matches('.').to_owned());
        plain.push_str(&format!(" placeholder_{} ", places.len() - 1));
        rest = inner[end + 1..].trim_start_matches(['\'', '"']);
    }
    plain.push_str(rest);
    let (tokens, failed) = lex(&plain);
    let mut reader = Reader { text: &plain, tokens: &tokens };
    match reader.insert(&places) {
        Some(found) if failed.is_none() => found,
        _ => Err("its SQL is no `INSERT INTO table(columns) VALUES (values)`".to_owned()),
    }
}

struct Reader<'t> {
    text: &'t str,
    tokens: &'t [Token],
}

impl<'t> Reader<'t> {
    fn next(&mut self) -> Option<(Kind, &'t str)> {
        let (first, rest) = self.tokens.split_first()?;
        self.tokens = rest;
        Some((first.kind, first.span.of(self.text)))
    }

    fn word(&mut self, word: &str) -> Option<()> {
        let (kind, text) = self.next()?;
        (kind == Kind::Word && text.eq_ignore_ascii_case(word)).then_some(())
    }

    fn kind(&mut self, wanted: Kind) -> Option<()> {
        (self.next()?.0 == wanted).then_some(())
    }

    fn name(&mut self) -> Option<String> {
        match self.next()? {
            (Kind::Word, text) => Some(text.to_owned()),
            (Kind::Quoted, text) => Some(unquote(text)),
            _ => None,
        }
    }

    /// `None`: it is no such INSERT; the reason in it: it is one, but does what cannot be done here.
    fn insert(&mut self, places: &[String]) -> Option<Result<InsertSql, String>> {
        self.word("INSERT")?;
        self.word("INTO")?;
        let mut table = self.name()?;
        if self.tokens.first()?.kind == Kind::Dot {
            self.kind(Kind::Dot)?;
            table = format!("{table}.{}", self.name()?);
        }
        self.kind(Kind::Open)?;
        let mut names = Vec::new();
        loop {
            names.push(self.name()?);
            match self.next()?.0 {
                Kind::Comma => {}
                Kind::Close => break,
                _ => return None,
            }
        }
        self.word("VALUES")?;
        self.kind(Kind::Open)?;
        let mut columns = Vec::new();
        let mut names = names.into_iter();
        loop {
            let value = self.value()?;
            let name = names.next()?;
            let place = match value.as_slice() {
                [one] => one
                    .strip_prefix("placeholder_")
                    .and_then(|n| n.parse().ok())
                    .and_then(|n: usize| places.get(n)),
                _ => None,
            };
            let Some(place) = place else {
                return Some(Err(format!(
                    "its column `{name}` is more than a placeholder: compute it in the SELECT list"
                )));
            };
            columns.push((name, place.clone()));
            match self.next()?.0 {
                Kind::Comma => {}
                Kind::Close => break,
                _ => return None,
            }
        }
        if names.next().is_some() {
            return None;
        }
        let rest: Vec<&str> =
            self.tokens.iter().map(|t| t.span.of(self.text)).filter(|t| !matches!(*t, "" | ";")).collect();
        let rest = (!rest.is_empty()).then(|| rest.join(" "));
        Some(Ok(InsertSql { table, columns, rest }))
    }

    /// The words of a value, up to the comma or bracket behind it.
    fn value(&mut self) -> Option<Vec<&'t str>> {
        let mut words = Vec::new();
        let mut inside = 0;
        loop {
            match self.tokens.first()?.kind {
                Kind::Comma | Kind::Close if inside == 0 => return Some(words),
                Kind::Open => inside += 1,
                Kind::Close => inside -= 1,
                Kind::End => return None,
                _ => {}
            }
            words.push(self.next()?.1);
        }
    }
}

impl InsertSql {
    /// Whether a row's columns are the table's.
    ///
    /// # Errors
    /// How the rule must be changed, a clause.
    pub(super) fn fits(&self, row: &Row) -> Result<(), String> {
        let list: Vec<String> = self
            .columns
            .iter()
            .map(
                |(column, from)| {
                    if column == from { shorten(from) } else { format!("{} AS {column}", shorten(from)) }
                },
            )
            .collect();
        let all_named = self.columns.iter().all(|(column, from)| column == from && row.names(column));
        let no_other =
            !row.message && row.columns.iter().all(|name| self.columns.iter().any(|(c, _)| c == name));
        if all_named && no_other {
            return Ok(());
        }
        Err(format!(
            "a table's columns are filled by the row's of the same names: SELECT {}",
            list.join(", ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inserts_are_read_and_others_are_not() {
        let read = |sql: &str| read(sql).map(|i| (i.table, i.columns.len(), i.rest));
        assert_eq!(read("insert into t(a, b) values (${a}, '${.b}')"), Ok(("t".to_owned(), 2, None)));
        assert_eq!(
            read("INSERT INTO s.\"T\" (a) VALUES (${a}) ON CONFLICT DO NOTHING;"),
            Ok(("s.T".to_owned(), 1, Some("ON CONFLICT DO NOTHING".to_owned())))
        );
        for (sql, why) in [
            (
                "insert into t(a) values (to_timestamp(${a} / 1000))",
                "its column `a` is more than a placeholder: compute it in the SELECT list",
            ),
            (
                "insert into t(a, b) values (${a})",
                "its SQL is no `INSERT INTO table(columns) VALUES (values)`",
            ),
            ("update t set a = ${a}", "its SQL is no `INSERT INTO table(columns) VALUES (values)`"),
            ("", "its SQL is no `INSERT INTO table(columns) VALUES (values)`"),
        ] {
            assert_eq!(read(sql), Err(why.to_owned()), "{sql}");
        }
    }
}
