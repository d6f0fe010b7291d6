//! Rows into tables of a SQLite file, each exactly once.
//!
//! # Constraints
//! SQLite blocks, so the sink has a thread of its own. The file is the user's: other programs read it while we write (WAL),
//! and may lock it (we wait, then say so). An answer means the row survives a power cut: `synchronous=FULL`.
//!
//! # Operation
//! [`crate::sql::engine`] drives [`File`] on that thread. Every I/O error closes the connection without a checkpoint;
//! after the next one is opened the log must go into the file before anything is written: the kernel may have given up
//! pages of a failed fsync and call them clean, and commits that follow would stand behind a hole.
//!
//! # Values
//! SQLite's columns take any type (but in STRICT tables), so what does not convert is kept as it came, not refused:
//! numbers as integer or real, times as ISO 8601 text, JSON as text, true and false as 1 and 0 (`'true'` in a text column).

use crate::sql::{BATCH, COLUMNS, DEDUPE_FOR, TABLE};
use crate::sql::{
    Column, Fault, Insert, KEY_COLUMNS, Key, Kind, Layout, Settings, Table, Value, engine, key_list, quote,
};
use crate::{
    Connector, ConnectorSchema, Declared, OptionKind, OptionSchema, Options, Running, SinkContext, Target,
};
use rusqlite::config::DbConfig;
use rusqlite::ffi::ErrorCode;
use rusqlite::types::{ToSqlOutput, Value as Owned, ValueRef};
use rusqlite::{Connection, ToSql, params_from_iter};
use std::fmt::Write as _;
use std::time::Duration;

/// The connector `sqlite`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sqlite;

static SCHEMA: ConnectorSchema = ConnectorSchema {
    name: "sqlite",
    summary: "Rows into tables of a SQLite file, each exactly once.",
    options: &[
        OptionSchema {
            name: "path",
            kind: OptionKind::Text,
            required: true,
            default: None,
            help: "The file; made when it is not there.",
        },
        TABLE,
        COLUMNS,
        OptionSchema {
            name: "synchronous",
            kind: OptionKind::Enum(&["full", "normal"]),
            required: false,
            default: Some("full"),
            help: "full: an acknowledged row survives a power cut. normal: the last ones may be lost by it; spares the \
                   flash one sync a transaction.",
        },
        DEDUPE_FOR,
        BATCH,
    ],
    passthrough: None,
    target: Target::Name("table"),
    key: None,
};

impl Connector for Sqlite {
    fn schema(&self) -> &'static ConnectorSchema {
        &SCHEMA
    }

    fn check(&self, options: &Options) -> Result<Declared, Vec<String>> {
        let mut mistakes = Vec::new();
        let path = options.text("path");
        if path.is_empty() || path.starts_with(":memory:") || path.starts_with("file:") {
            mistakes.push(format!("option `path` = '{path}': the path of a file is wanted"));
        }
        match Settings::read(options) {
            Ok(settings) if mistakes.is_empty() => Ok(settings.declared()),
            Ok(_) => Err(mistakes),
            Err(more) => Err([mistakes, more].concat()),
        }
    }

    fn start(&self, name: &str, options: &Options, context: SinkContext) -> Result<Running, Vec<String>> {
        self.check(options)?;
        let settings = Settings::read(options)?;
        let file = File {
            path: options.text("path").to_owned(),
            synchronous: if options.text("synchronous") == "normal" { "NORMAL" } else { "FULL" },
            settings: settings.clone(),
            connection: None,
            log_is_suspect: false,
        };
        let (running, ended) = Running::new();
        let name = name.to_owned();
        // Timers of its own: the node's runtime may be gone while the database still blocks this thread.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(|e| vec![format!("cannot make the thread's timers: {e}")])?;
        // A thread's name holds 15 bytes.
        std::thread::Builder::new()
            .name(format!("sqlite-{name}"))
            .spawn(move || {
                runtime.block_on(engine::run(file, &name, settings, context));
                let _ = ended.send(());
            })
            .map_err(|e| vec![format!("cannot start a thread: {e}")])?;
        Ok(running)
    }
}

/// How long another program's lock is waited for before the sink says that it is down.
const BUSY: Duration = Duration::from_secs(2);

/// Keys deleted in one step: some milliseconds.
const SWEEP_ROWS: usize = 1_000;

/// Statements kept compiled.
const STATEMENTS: usize = 64;

struct File {
    path: String,
    synchronous: &'static str,
    settings: Settings,
    connection: Option<Connection>,
    /// An I/O error has come since the log last went into the file.
    log_is_suspect: bool,
}

impl engine::Database for File {
    async fn connect(&mut self) -> Result<(), String> {
        self.close();
        let opened = self.open().map_err(|e| format!("{}: {e}", self.path))?;
        self.connection = Some(opened);
        self.log_is_suspect = false;
        Ok(())
    }

    async fn lost(&mut self) -> String {
        std::future::pending().await
    }

    async fn layout(&mut self, table: &Table) -> Result<Layout, Fault> {
        let settings = self.settings.clone();
        self.with(|connection| {
            let mut found = columns(connection, table)?;
            if found.is_empty() {
                connection.execute_batch(&settings.create_table(table, ("text", "text")))?;
                found = columns(connection, table)?;
            }
            let layout = Layout::new(table.clone(), found, &settings).map_err(Error::Layout)?;
            if !layout.key_inside {
                connection.execute_batch(&Settings::create_seen(table, "integer"))?;
            }
            Ok(layout)
        })
    }

    async fn write(&mut self, inserts: &[Insert<'_>]) -> Result<(), Fault> {
        self.with(|connection| {
            // Immediate: a transaction that turns from reading to writing can find itself locked out half-way.
            connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
            let written = inserts.iter().try_for_each(|insert| write(connection, *insert));
            let committed = written.and_then(|()| {
                connection.prepare_cached("COMMIT")?.execute([])?;
                Ok(())
            });
            if committed.is_err() && !connection.is_autocommit() {
                connection.execute_batch("ROLLBACK")?;
            }
            committed
        })
    }

    async fn begin(&mut self) -> Result<(), Fault> {
        self.with(|connection| Ok(connection.execute_batch("BEGIN IMMEDIATE")?))
    }

    async fn insert(&mut self, insert: Insert<'_>) -> Result<(), Fault> {
        self.with(|connection| {
            connection.execute_batch("SAVEPOINT part")?;
            let written = write(connection, insert);
            let undo = if written.is_err() { "ROLLBACK TO part; RELEASE part" } else { "RELEASE part" };
            connection.execute_batch(undo)?;
            written
        })
    }

    async fn commit(&mut self) -> Result<(), Fault> {
        self.with(|connection| Ok(connection.execute_batch("COMMIT")?))
    }

    async fn sweep(&mut self, table: &Table, dedupe_for: Duration) -> Result<bool, Fault> {
        let before = ferrule_clock::wall_ms()
            .saturating_sub(i64::try_from(dedupe_for.as_millis()).unwrap_or(i64::MAX));
        let seen = table.seen().quoted();
        self.with(|connection| {
            // Row ids ascend with the time, so the oldest are found without an index on it.
            let sql = format!(
                "DELETE FROM {seen} WHERE rowid IN (SELECT rowid FROM {seen} ORDER BY rowid LIMIT {SWEEP_ROWS}) AND seen_at < ?"
            );
            Ok(connection.prepare_cached(&sql)?.execute([before])? == SWEEP_ROWS)
        })
    }
}

/// Also at the end a suspect log is not put into the file by the way.
impl Drop for File {
    fn drop(&mut self) {
        self.close();
    }
}

impl File {
    fn open(&self) -> rusqlite::Result<Connection> {
        let connection = Connection::open(&self.path)?;
        connection.busy_timeout(BUSY)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DML, false)?;
        let mode: String =
            connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
        if !mode.eq_ignore_ascii_case("wal") {
            tracing::warn!(path = self.path, mode, "no write-ahead log here; readers will block writes");
        }
        connection.pragma_update(None, "synchronous", self.synchronous)?;
        if self.log_is_suspect {
            let busy: i64 = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
            if busy != 0 {
                let message =
                    "after an I/O error the log must go into the file, and another program is reading";
                return Err(rusqlite::Error::SqliteFailure(
                    rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY),
                    Some(message.into()),
                ));
            }
        }
        Ok(connection)
    }

    fn close(&mut self) {
        if let Some(connection) = self.connection.take()
            && self.log_is_suspect
        {
            // Best effort: the flag only spares a checkpoint that `open` makes anyway.
            let _ = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
        }
    }

    fn with<T>(&mut self, work: impl FnOnce(&Connection) -> Result<T, Error>) -> Result<T, Fault> {
        let Some(connection) = &self.connection else { return Err(Fault::Lost("not connected".into())) };
        work(connection).map_err(|error| {
            let fault = error.fault(&self.path);
            self.log_is_suspect |= matches!(fault, Fault::Lost(_)) && !error.is_busy();
            fault
        })
    }
}

enum Error {
    Sqlite(rusqlite::Error),
    Layout(String),
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl Error {
    fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Sqlite(error) => error.sqlite_error_code(),
            Self::Layout(_) => None,
        }
    }

    fn is_busy(&self) -> bool {
        matches!(self.code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
    }

    fn fault(&self, path: &str) -> Fault {
        let text = match self {
            Self::Sqlite(error) => format!("{path}: {error}"),
            Self::Layout(why) => format!("{path}: {why}"),
        };
        match self.code() {
            Some(ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch) => Fault::Row(text),
            Some(ErrorCode::TooBig) => Fault::TooLarge(text),
            // A general SQL error: no such table or column, no matching unique constraint, not a table.
            None
            | Some(
                ErrorCode::Unknown | ErrorCode::SchemaChanged | ErrorCode::AuthorizationForStatementDenied,
            ) => Fault::Table(text),
            Some(_) => Fault::Lost(text),
        }
    }
}

fn columns(connection: &Connection, table: &Table) -> Result<Vec<Column>, Error> {
    let schema = table.schema.as_deref().unwrap_or("main");
    let mut statement =
        connection.prepare(&format!("PRAGMA {}.table_xinfo({})", quote(schema), quote(&table.name)))?;
    let mut rows = statement.query([])?;
    let mut columns = Vec::new();
    while let Some(row) = rows.next()? {
        let (name, sql_type): (String, String) = (row.get("name")?, row.get("type")?);
        let (not_null, in_key, hidden): (bool, i64, i64) =
            (row.get("notnull")?, row.get("pk")?, row.get("hidden")?);
        let default: Option<String> = row.get("dflt_value")?;
        // Hidden columns are generated, or belong to a virtual table's inside.
        if hidden == 0 {
            let optional = not_null || in_key != 0 || default.is_some();
            columns.push(Column { name, kind: Kind::of(&sql_type), sql_type, optional });
        }
    }
    Ok(columns)
}

/// Writes the rows one by one with a compiled statement: in SQLite a call is no round trip.
fn write(connection: &Connection, insert: Insert<'_>) -> Result<(), Error> {
    let layout = insert.layout;
    let mut statement = connection.prepare_cached(&insert_sql(layout, insert.columns))?;
    if layout.key_inside {
        for row in insert.rows {
            let values = bind(insert, &row.values);
            statement.execute(params_from_iter(values.chain(key(&row.key))))?;
        }
    } else {
        let mut seen = connection.prepare_cached(&seen_sql(&layout.table))?;
        let now = ferrule_clock::wall_ms();
        for row in insert.rows {
            let key = key(&row.key).into_iter().chain([Bound(ToSqlOutput::Owned(Owned::Integer(now)))]);
            if seen.execute(params_from_iter(key))? == 1 {
                statement.execute(params_from_iter(bind(insert, &row.values)))?;
            }
        }
    }
    Ok(())
}

fn insert_sql(layout: &Layout, columns: &[usize]) -> String {
    let key = if layout.key_inside { &KEY_COLUMNS[..] } else { &[] };
    let names = columns.iter().map(|&c| &*layout.columns[c].name).chain(key.iter().map(|(name, _)| *name));
    let names: Vec<String> = names.map(quote).collect();
    let mut sql = format!("INSERT INTO {} ", layout.table.quoted());
    if names.is_empty() {
        sql.push_str("DEFAULT VALUES");
        return sql;
    }
    let _ = write!(sql, "({}) VALUES (?{})", names.join(", "), ", ?".repeat(names.len() - 1));
    if layout.key_inside {
        let _ = write!(sql, " ON CONFLICT ({}) DO NOTHING", key_list());
    }
    sql
}

fn seen_sql(table: &Table) -> String {
    let key = key_list();
    format!(
        "INSERT INTO {} ({key}, \"seen_at\") VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT ({key}) DO NOTHING",
        table.seen().quoted()
    )
}

struct Bound<'a>(ToSqlOutput<'a>);

impl ToSql for Bound<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.0.clone())
    }
}

fn key<'a>(key: &Key<'a>) -> [Bound<'a>; 6] {
    let integer = |n: i64| Bound(ToSqlOutput::Owned(Owned::Integer(n)));
    [
        Bound(ToSqlOutput::Borrowed(ValueRef::Text(key.origin.as_bytes()))),
        integer(key.boot),
        integer(key.class.into()),
        integer(key.seq),
        integer(key.rule),
        integer(key.row.into()),
    ]
}

fn bind<'a>(insert: Insert<'a>, values: &'a [Value<'_>]) -> impl Iterator<Item = Bound<'a>> {
    let kinds = insert.columns.iter().map(move |&c| insert.layout.columns[c].kind);
    values.iter().zip(kinds).map(|(value, kind)| {
        let text = |t: &'a str| ToSqlOutput::Borrowed(ValueRef::Text(t.as_bytes()));
        Bound(match value {
            Value::Null => ToSqlOutput::Owned(Owned::Null),
            Value::Bool(b) if kind == Kind::Text => text(if *b { "true" } else { "false" }),
            Value::Bool(b) => ToSqlOutput::Owned(Owned::Integer((*b).into())),
            // What is no number of SQLite's would lose digits: as text it keeps them where the column lets it.
            Value::Number(n) if kind == Kind::Text => text(n),
            Value::Number(n) => match (n.parse::<i64>(), n.parse::<f64>()) {
                (Ok(integer), _) => ToSqlOutput::Owned(Owned::Integer(integer)),
                (_, Ok(real)) if real.is_finite() => ToSqlOutput::Owned(Owned::Real(real)),
                _ => text(n),
            },
            Value::Text(t) | Value::Json(t) => text(t),
        })
    })
}
#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::sql::engine::Database;

    #[tokio::test]
    async fn old_keys_are_deleted_in_steps() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.db");
        let other = Connection::open(&path).unwrap();
        other.execute_batch("CREATE TABLE t (n int)").unwrap();
        let settings = Settings { table: None, columns: None, dedupe_for: Duration::ZERO, batch_rows: 1 };
        let path = path.to_str().unwrap().to_owned();
        let mut file = File { path, synchronous: "FULL", settings, connection: None, log_is_suspect: true };
        file.connect().await.unwrap();
        let table = Table::rendered("t").unwrap();
        file.layout(&table).await.unwrap();
        let day = Duration::from_secs(86_400);
        other
            .execute_batch(&format!(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2500) INSERT INTO t_ferrule_seen \
                 SELECT 'o', 1, 0, i, 1, 0, {} + i / 2001 * 86400000 FROM n",
                ferrule_clock::wall_ms() - 86_400_000
            ))
            .unwrap();
        assert_eq!(file.sweep(&table, day).await, Ok(true));
        assert_eq!(file.sweep(&table, day).await, Ok(true));
        assert_eq!(file.sweep(&table, day).await, Ok(false));
        let left: i64 = other.query_row("SELECT count(*) FROM t_ferrule_seen", [], |row| row.get(0)).unwrap();
        assert_eq!(left, 500);
    }
}
