//! One connection to the server, and the calls that the SQL engine makes on it.

use crate::fault::fault;
use crate::statement::{Parameters, sql};
use ferrule_postgres::{Call, all, chain};
use ferrule_sinks::sql::{Column, Fault, Insert, Kind, Layout, Settings, Table, engine};
use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio_postgres::{Client, Config, Error, NoTls, Statement};

/// Prepared statements kept, one for each table and set of columns; beyond it all are dropped.
const STATEMENTS_MAX: usize = 256;

/// Keys deleted in one step: some milliseconds.
const SWEEP_ROWS: i64 = 1_000;

/// A table that another node makes at the same moment: `IF NOT EXISTS` does not see what is not committed yet, and then meets
/// a unique index of the catalogue.
const RACE_STATES: [&str; 3] = ["23505", "42P07", "42710"];

pub(crate) struct Server {
    config: Config,
    shown: String,
    settings: Settings,
    timeout: Duration,
    connected: Option<Connected>,
}

struct Connected {
    client: Client,
    /// The task that reads and writes the socket, and its last words.
    task: AbortHandle,
    ended: oneshot::Receiver<String>,
    statements: HashMap<String, Statement>,
}

/// A silent peer must not keep the socket's task alive.
impl Drop for Connected {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub(crate) fn new(config: Config, settings: Settings, timeout: Duration) -> Self {
        Self { shown: ferrule_postgres::shown(&config), config, settings, timeout, connected: None }
    }

    /// A call's result in time. Takes the server apart so that the call may borrow the client meanwhile.
    async fn call<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<T, Fault> {
        match tokio::time::timeout(self.timeout, call).await {
            Ok(result) => result.map_err(|error| fault(&self.shown, &error)),
            Err(_) => Err(Fault::Lost(self.silent())),
        }
    }

    fn silent(&self) -> String {
        format!("{}: no answer within {:?}", self.shown, self.timeout)
    }

    fn client(&self) -> Result<&Client, Fault> {
        let connected = self.connected.as_ref().ok_or_else(|| Fault::Lost("not connected".into()))?;
        Ok(&connected.client)
    }

    async fn execute(&self, sql: &str) -> Result<(), Fault> {
        self.call(self.client()?.batch_execute(sql)).await
    }

    /// The prepared statement for an insert.
    async fn prepare(&mut self, insert: &Insert<'_>) -> Result<Statement, Fault> {
        let sql = sql(insert.layout, insert.columns);
        if let Some(known) = self.connected.as_ref().and_then(|c| c.statements.get(&sql)) {
            return Ok(known.clone());
        }
        let statement = self.call(self.client()?.prepare(&sql)).await?;
        if let Some(connected) = &mut self.connected {
            if connected.statements.len() >= STATEMENTS_MAX {
                connected.statements.clear();
            }
            connected.statements.insert(sql, statement.clone());
        }
        Ok(statement)
    }

    async fn columns(&self, table: &Table) -> Result<Vec<Column>, Fault> {
        // Type -1: the name without length (see `statement`). Generated columns cannot be written.
        const SQL: &str = "SELECT attname::text, format_type(atttypid, -1), attnotnull OR atthasdef OR attidentity <> '' \
                           FROM pg_catalog.pg_attribute WHERE attrelid = to_regclass($1::text) AND attnum > 0 AND NOT \
                           attisdropped AND attgenerated = '' ORDER BY attnum";
        let rows = self.call(self.client()?.query(SQL, &[&table.quoted()])).await?;
        let column = |row: tokio_postgres::Row| -> Result<Column, Error> {
            let (name, sql_type): (String, String) = (row.try_get(0)?, row.try_get(1)?);
            Ok(Column { name, kind: Kind::of(&sql_type), sql_type, optional: row.try_get(2)? })
        };
        rows.into_iter().map(column).collect::<Result<_, _>>().map_err(|e| Fault::Lost(chain(&e)))
    }

    /// Runs a `CREATE ... IF NOT EXISTS`; one that another node was quicker with is as good.
    async fn create(&self, sql: &str) -> Result<(), Fault> {
        let made = tokio::time::timeout(self.timeout, self.client()?.batch_execute(sql)).await;
        match made.map_err(|_| Fault::Lost(self.silent()))? {
            Err(error) if error.code().is_some_and(|state| RACE_STATES.contains(&state.code())) => Ok(()),
            result => result.map_err(|error| fault(&self.shown, &error)),
        }
    }
}

impl engine::Database for Server {
    async fn connect(&mut self) -> Result<(), String> {
        self.connected = None;
        let connected = tokio::time::timeout(self.timeout, self.config.connect(NoTls)).await;
        let (client, connection) = connected
            .map_err(|_| self.silent())?
            .map_err(|error| fault(&self.shown, &error).message().to_owned())?;
        let (sender, ended) = oneshot::channel();
        let shown = self.shown.clone();
        let task = tokio::spawn(async move {
            let last_words = match connection.await {
                Ok(()) => "the connection was closed".to_owned(),
                Err(error) => chain(&error),
            };
            let _ = sender.send(format!("{shown}: {last_words}"));
        });
        let task = task.abort_handle();
        self.connected = Some(Connected { client, task, ended, statements: HashMap::new() });
        // Times without a zone are UTC whatever the server is set to. What does not answer in time is cancelled there too, and
        // a transaction that we left (a lost network) does not hold its locks for ever.
        let ms = self.timeout.as_millis();
        let session = format!(
            "SET TIME ZONE 'UTC'; SET DateStyle = 'ISO'; SET client_min_messages = 'warning'; SET statement_timeout = {ms}; \
             SET idle_in_transaction_session_timeout = {ms}; SELECT set_config('synchronous_commit', 'on', false) WHERE \
             current_setting('synchronous_commit') = 'off'"
        );
        self.execute(&session).await.map_err(|fault| fault.message().to_owned())?;
        let durable = self.client().map_err(|f| f.message().to_owned())?;
        let fsync = self.call(durable.query("SELECT current_setting('fsync', true)", &[])).await;
        if let Ok(rows) = fsync
            && let Some(Ok(Some("off"))) = rows.first().map(|row| row.try_get::<_, Option<&str>>(0))
        {
            tracing::warn!(
                server = self.shown,
                "fsync is off there: acknowledged rows can be lost by a power cut"
            );
        }
        Ok(())
    }

    async fn lost(&mut self) -> String {
        match &mut self.connected {
            Some(connected) => match (&mut connected.ended).await {
                Ok(last_words) => last_words,
                Err(_) => format!("{}: the connection's task ended", self.shown),
            },
            None => std::future::pending().await,
        }
    }

    async fn layout(&mut self, table: &Table) -> Result<Layout, Fault> {
        let mut found = self.columns(table).await?;
        if found.is_empty() {
            self.create(&self.settings.create_table(table, ("timestamptz", "jsonb"))).await?;
            found = self.columns(table).await?;
            if found.is_empty() {
                return Err(Fault::Table(format!("{}: table {} was not made", self.shown, table.quoted())));
            }
        }
        let layout = Layout::new(table.clone(), found, &self.settings)
            .map_err(|why| Fault::Table(format!("{}: {why}", self.shown)))?;
        if !layout.key_inside {
            let seen = table.seen();
            if self.columns(&seen).await?.is_empty() {
                let table = Settings::create_seen(table, "timestamptz");
                self.create(&format!("{table}; CREATE INDEX ON {} (\"seen_at\")", seen.quoted())).await?;
            }
        }
        Ok(layout)
    }

    async fn write(&mut self, inserts: &[Insert<'_>]) -> Result<(), Fault> {
        let mut statements = Vec::with_capacity(inserts.len());
        for insert in inserts {
            statements.push(self.prepare(insert).await?);
        }
        let parameters: Vec<Parameters<'_>> = inserts.iter().map(|&insert| Parameters::new(insert)).collect();
        let lists: Vec<_> = parameters.iter().map(Parameters::list).collect();
        let client = self.client()?;
        if let ([statement], [list]) = (&statements[..], &lists[..]) {
            return self.call(client.execute(statement, list)).await.map(drop);
        }
        // Pipelined: polled once in order, all of them are on their way. When one fails, those behind it do ("current
        // transaction is aborted"), and COMMIT is a ROLLBACK that succeeds: the first error is the one that counts.
        let mut calls: Vec<Call<'_, ()>> = Vec::with_capacity(lists.len() + 2);
        calls.push(Box::pin(client.batch_execute("BEGIN")));
        for (statement, list) in statements.iter().zip(&lists) {
            calls.push(Box::pin(async move { client.execute(statement, list).await.map(drop) }));
        }
        calls.push(Box::pin(client.batch_execute("COMMIT")));
        self.call(async { all(calls).await.into_iter().collect() }).await
    }

    async fn begin(&mut self) -> Result<(), Fault> {
        self.execute("BEGIN").await
    }

    async fn insert(&mut self, insert: Insert<'_>) -> Result<(), Fault> {
        let statement = match self.prepare_within(&insert).await {
            Ok(statement) => statement,
            Err(fault @ Fault::Lost(_)) => return Err(fault),
            Err(fault) => {
                self.execute("ROLLBACK TO part; RELEASE part").await?;
                return Err(fault);
            }
        };
        let parameters = Parameters::new(insert);
        match self.call(self.client()?.execute(&statement, &parameters.list())).await {
            Ok(_) => self.execute("RELEASE part").await,
            Err(fault @ Fault::Lost(_)) => Err(fault),
            Err(fault) => {
                self.execute("ROLLBACK TO part; RELEASE part").await?;
                Err(fault)
            }
        }
    }

    async fn commit(&mut self) -> Result<(), Fault> {
        self.execute("COMMIT").await
    }

    async fn sweep(&mut self, table: &Table, dedupe_for: Duration) -> Result<bool, Fault> {
        let seen = table.seen().quoted();
        let sql = format!(
            "DELETE FROM {seen} WHERE ctid = ANY (ARRAY(SELECT ctid FROM {seen} WHERE \"seen_at\" < now() - $1::float8 * \
             interval '1 second' ORDER BY \"seen_at\" LIMIT {SWEEP_ROWS}))"
        );
        let deleted = self.call(self.client()?.execute(&sql, &[&dedupe_for.as_secs_f64()])).await?;
        Ok(i64::try_from(deleted).unwrap_or(i64::MAX) >= SWEEP_ROWS)
    }
}

impl Server {
    /// A savepoint, and the statement prepared under it: preparing fails too when the table has changed.
    async fn prepare_within(&mut self, insert: &Insert<'_>) -> Result<Statement, Fault> {
        self.execute("SAVEPOINT part").await?;
        self.prepare(insert).await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use engine::Database;

    #[tokio::test]
    async fn old_keys_are_deleted_in_steps() {
        let postgres = ferrule_testkit::Postgres::start();
        postgres.execute("CREATE TABLE t (n int); ALTER DATABASE postgres SET synchronous_commit = off");
        let settings = Settings { table: None, columns: None, dedupe_for: Duration::ZERO, batch_rows: 1 };
        let timeout = Duration::from_secs(30);
        let mut server =
            Server::new(ferrule_postgres::config(&postgres.url(), timeout).unwrap(), settings, timeout);
        server.connect().await.unwrap();
        let safe = server.client().unwrap().query_one("SHOW synchronous_commit", &[]).await.unwrap();
        assert_eq!(safe.get::<_, &str>(0), "on");
        let table = Table::rendered("t").unwrap();
        server.layout(&table).await.unwrap();
        postgres.execute(
            "INSERT INTO t_ferrule_seen SELECT 'o', 1, 0, i, 1, 0, now() - CASE WHEN i <= 2000 THEN interval '25 hours' ELSE \
             interval '0' END FROM generate_series(1, 2500) AS i",
        );
        let day = Duration::from_secs(86_400);
        assert_eq!(server.sweep(&table, day).await, Ok(true));
        assert_eq!(server.sweep(&table, day).await, Ok(true));
        assert_eq!(server.sweep(&table, day).await, Ok(false));
        assert_eq!(postgres.query("SELECT count(*) FROM t_ferrule_seen"), ["500"]);
    }
}
