//! What the SQL sinks share: options, table layouts, values, and the consumer that writes batches exactly once.
//!
//! # Constraints
//! Rows come at least once (a commit whose answer was lost is sent again) and must stand in the table once: each
//! insert carries the identity (origin, boot, class, seq, rule, row), unique and never NULL, and a second one does
//! nothing. Values are bound, never put into SQL text; identifiers are quoted. What a device can choose (a table name
//! from a template, a value) must not be able to stop the sink.
//!
//! # Data
//! - [`Settings`]: the options that all SQL sinks have.
//! - [`Layout`]: what a table looks like, read from the database: its columns, whether the key is in it or in
//!   `<table>_ferrule_seen`, and whether a row goes in whole (`received_at, edge, clientid, topic, row`) or by column.
//! - [`Row`]: the values of one entry for one layout. [`Insert`]: rows of one layout and one set of columns.
//! - [`Database`]: what differs between SQLite and PostgreSQL.
//!
//! # Operation
//! [`engine::run`] takes all rows that wait (at most [`Settings::batch_rows`] and 1 MiB) into one transaction. When that
//! fails it is done again with savepoints: tables one by one, and within a table by halves, until the row that is refused
//! stands alone. Every [`Fault`] says who is to blame, and with that what happens: the row is discarded, the table waits
//! (other tables go on: a table is a lane), or the connection is made anew.
//!
//! # Invariants
//! - Rows are answered only after the COMMIT that holds them returned.
//! - Rows of one table are written in order, but for this: within one commit, rows with different sets of
//!   columns of a table with column defaults are grouped by set.

mod columns;
pub mod engine;
mod layout;
mod value;

pub use columns::ColumnSpec;
pub use engine::Database;
pub use layout::{Column, KEY_COLUMNS, Kind, Layout, Table};
pub use value::{Key, Row, Value};

use crate::{Declared, OptionKind, OptionSchema, Options};
use std::fmt::Write as _;
use std::time::Duration;

/// Why a statement failed, by what is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The connection or the server cannot go on; what was being committed may be there or not. Connect anew, try again.
    Lost(String),
    /// This table cannot be used (missing, not permitted, changed). Look at it again, try again.
    Table(String),
    /// A value in these rows is refused. Trying again would change nothing.
    Row(String),
    /// A row is larger than the database takes.
    TooLarge(String),
}

impl Fault {
    /// The database's words.
    #[must_use]
    pub fn message(&self) -> &str {
        match self {
            Self::Lost(m) | Self::Table(m) | Self::Row(m) | Self::TooLarge(m) => m,
        }
    }
}

/// Rows of one table with one set of columns, written by one statement.
#[derive(Debug, Clone, Copy)]
pub struct Insert<'a> {
    /// The table.
    pub layout: &'a Layout,
    /// Which of `layout.columns` the rows have, ascending; each row's values are in this order.
    pub columns: &'a [usize],
    /// In order.
    pub rows: &'a [Row<'a>],
}

/// The options that all SQL sinks have, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `table`, when it has no template: the table of rows without a target, looked at (or made) at the start.
    pub table: Option<String>,
    /// `columns`: what a new table gets, and what an existing one must have.
    pub columns: Option<Vec<ColumnSpec>>,
    /// `dedupe_for`: how long `_ferrule_seen` keeps a key.
    pub dedupe_for: Duration,
    /// `batch`: most rows in one transaction.
    pub batch_rows: usize,
}

/// `table`.
pub const TABLE: OptionSchema = OptionSchema {
    name: "table",
    kind: OptionKind::Template,
    required: false,
    default: None,
    help: "The table of rows whose rule names none; made when it is not there. May be a template.",
};

/// `columns`.
pub const COLUMNS: OptionSchema = OptionSchema {
    name: "columns",
    kind: OptionKind::Text,
    required: false,
    default: None,
    help: "Columns of a new table, as in CREATE TABLE: 'ts timestamptz, temp double precision'. Filled by name. Without \
           it a new table is (received_at, edge, clientid, topic, row) and takes each row whole.",
};

/// `dedupe_for`.
pub const DEDUPE_FOR: OptionSchema = OptionSchema {
    name: "dedupe_for",
    kind: OptionKind::Duration,
    required: false,
    default: Some("30d"),
    help: "How long the keys of rows in a table without key columns are kept in <table>_ferrule_seen: longer than any \
           edge may be away.",
};

/// `batch`.
pub const BATCH: OptionSchema = OptionSchema {
    name: "batch",
    kind: OptionKind::Int,
    required: false,
    default: Some("500"),
    help: "Most rows in one transaction. 500 already make the commit a small part of a row's cost, and a poison row is \
           found among them in 18 steps.",
};

impl Settings {
    /// Reads them.
    ///
    /// # Errors
    /// Every mistake, a sentence each.
    pub fn read(options: &Options) -> Result<Self, Vec<String>> {
        let mut mistakes = Vec::new();
        let columns = options.get("columns").map(columns::parse).and_then(|parsed| match parsed {
            Ok(columns) => Some(columns),
            Err(mut wrong) => {
                mistakes.append(&mut wrong);
                None
            }
        });
        let table = options.get("table").filter(|t| !t.contains("${")).map(str::to_owned);
        if let Some(table) = &table
            && let Err(why) = Table::configured(table)
        {
            mistakes.push(format!("option `table` = '{table}': {why}"));
        }
        let batch_rows = options.int("batch").unwrap_or(500);
        if !(1..=10_000).contains(&batch_rows) {
            mistakes.push(format!("option `batch` = '{batch_rows}': 1 to 10000 is wanted"));
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        Ok(Self {
            table,
            columns,
            dedupe_for: options.duration("dedupe_for").unwrap_or(Duration::from_secs(30 * 86_400)),
            batch_rows: batch_rows as usize,
        })
    }

    /// What rules are checked against.
    #[must_use]
    pub fn declared(&self) -> Declared {
        Declared {
            columns: self.columns.as_ref().map(|c| c.iter().map(|c| c.name.clone()).collect()),
            dedupe_for: Some(self.dedupe_for),
        }
    }

    /// `CREATE TABLE IF NOT EXISTS`, with the key. `types`: the database's names for received_at's and row's type.
    #[must_use]
    pub fn create_table(&self, table: &Table, types: (&str, &str)) -> String {
        let mut sql = format!("CREATE TABLE IF NOT EXISTS {} (", table.quoted());
        match &self.columns {
            Some(columns) => {
                for column in columns {
                    let _ = write!(sql, "{} {}, ", quote(&column.name), column.sql_type);
                }
            }
            None => {
                let _ = write!(
                    sql,
                    "\"received_at\" {} NOT NULL, \"edge\" text, \"clientid\" text NOT NULL, ",
                    types.0
                );
                let _ = write!(sql, "\"topic\" text NOT NULL, \"row\" {} NOT NULL, ", types.1);
            }
        }
        for (name, sql_type) in KEY_COLUMNS {
            let _ = write!(sql, "\"{name}\" {sql_type} NOT NULL, ");
        }
        let _ = write!(sql, "UNIQUE ({}))", key_list());
        sql
    }

    /// `CREATE TABLE IF NOT EXISTS` of the keys of a table that has no room for them. `seen_at_type`: the database's name for
    /// the type of the time at which a key came.
    #[must_use]
    pub fn create_seen(table: &Table, seen_at_type: &str) -> String {
        let mut sql = format!("CREATE TABLE IF NOT EXISTS {} (", table.seen().quoted());
        for (name, sql_type) in KEY_COLUMNS {
            let _ = write!(sql, "\"{name}\" {sql_type} NOT NULL, ");
        }
        let _ = write!(sql, "\"seen_at\" {seen_at_type} NOT NULL, UNIQUE ({}))", key_list());
        sql
    }
}

/// The key columns, quoted, with commas.
#[must_use]
pub fn key_list() -> String {
    KEY_COLUMNS.map(|(name, _)| quote(name)).join(", ")
}

/// An identifier in double quotes, those within doubled (SQL-92 5.2, `<delimited identifier>`).
#[must_use]
pub fn quote(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn settings(columns: Option<&str>) -> Settings {
        Settings {
            table: None,
            columns: columns.map(|c| columns::parse(c).unwrap()),
            dedupe_for: Duration::ZERO,
            batch_rows: 1,
        }
    }

    const KEY: &str = "\"_origin\" text NOT NULL, \"_boot\" bigint NOT NULL, \"_class\" smallint NOT NULL, \
                       \"_seq\" bigint NOT NULL, \"_rule\" bigint NOT NULL, \"_row\" integer NOT NULL, ";
    const UNIQUE: &str = "UNIQUE (\"_origin\", \"_boot\", \"_class\", \"_seq\", \"_rule\", \"_row\"))";

    #[test]
    fn tables_are_created_with_the_key() {
        let table = Table::configured("lab.a\"b").unwrap();
        assert_eq!(
            settings(Some("ts timestamptz, \"max t\" numeric(5,2) NOT NULL"))
                .create_table(&table, ("x", "y")),
            format!(
                "CREATE TABLE IF NOT EXISTS \"lab\".\"a\"\"b\" (\"ts\" timestamptz, \"max t\" numeric(5,2) NOT NULL, {KEY}{UNIQUE}"
            )
        );
        assert_eq!(
            settings(None).create_table(&Table::rendered("t").unwrap(), ("timestamptz", "jsonb")),
            format!(
                "CREATE TABLE IF NOT EXISTS \"t\" (\"received_at\" timestamptz NOT NULL, \"edge\" text, \"clientid\" text \
                 NOT NULL, \"topic\" text NOT NULL, \"row\" jsonb NOT NULL, {KEY}{UNIQUE}"
            )
        );
        assert_eq!(
            Settings::create_seen(&Table::rendered("t").unwrap(), "integer"),
            format!(
                "CREATE TABLE IF NOT EXISTS \"t_ferrule_seen\" ({KEY}\"seen_at\" integer NOT NULL, {UNIQUE}"
            )
        );
    }
}
