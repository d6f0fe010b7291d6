//! One connection to the server, and the transactions that the writer needs.
//!
//! After an error a connection is of no further use, but for those of [`Kind::Again`] and [`Kind::Fence`]: drop it, and connect anew.

use crate::error::{DbError, Kind};
use crate::owners::{OrphanKey, Orphans, client_digest, inflight, subscription, summary};
use bytes::Bytes;
use ferrule_postgres::{Call, all};
use ferrule_store::{Body, QueueId, Restored, SESSIONS, SessionId, Side, StoredRow};
use ferrule_store_writer::net::Net;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::task::AbortHandle;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, Error, NoTls, Row, Statement};

/// A read is at most this many rows, so that commits never wait for a drain.
const READ_ROWS: u32 = 256;
/// Two nodes that start at once may draw the same number: so often one of them tries again.
const DRAWS_MAX: u32 = 20;

/// In `meta`: of no node, but of the store. Nodes have numbers from 1.
pub(crate) const NOBODY: i32 = 0;
/// In `meta`, of [`NOBODY`]: what tells this store from others, drawn by whoever opened it first.
pub(crate) const IDENTITY: &str = "identity";

/// Whom this writer writes for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Who {
    /// The node's number in the tables.
    pub(crate) number: i32,
    /// Raised by whoever opens the store under this node's name.
    pub(crate) incarnation: i64,
}

/// The statements, each prepared once a connection.
#[derive(Debug, Clone, Copy)]
enum S {
    Fence,
    Remove,
    RemoveOrphans,
    SessionDelete,
    SubscriptionsDelete,
    InflightsDelete,
    Append,
    AppendShared,
    SessionPut,
    SubscriptionPut,
    SubscriptionDelete,
    InflightPut,
    InflightDelete,
    Retain,
    RetainForget,
    StatePut,
    StateDelete,
    MetaPut,
    Sweep,
    Read,
    Epochs,
}

/// In the order of [`S`]; `{s}` is the schema.
const STATEMENTS: [&str; 21] = [
    // No such row is a division by zero, which ends the transaction though its end is on its way already.
    "SELECT 1 / count(*) FROM (SELECT 1 FROM {s}.node WHERE node = $1::TEXT AND incarnation = $2::INT8
         AND connection = $3::INT8 AND fence = $4::INT8 FOR SHARE) AS held",
    // A body without rows is told, and removed by a later commit: an append of this one may yet name it.
    "WITH gone AS (
         DELETE FROM {s}.queue_row AS q USING unnest($1::INT4[], $2::INT8[], $3::INT8[], $4::INT8[])
             AS r(node, queue, first, last)
         WHERE q.node = r.node AND q.queue = r.queue AND q.seq BETWEEN r.first AND r.last
         RETURNING q.body_node, q.shared
     ), released AS (
         SELECT body_node, shared, count(*) AS rows FROM gone WHERE shared IS NOT NULL GROUP BY body_node, shared
     )
     UPDATE {s}.body AS b SET refs = b.refs - r.rows FROM released AS r
     WHERE b.node = r.body_node AND b.id = r.shared RETURNING b.node, b.id, b.refs",
    // One snapshot: what sees rows of a node's next life sees that it has started again.
    "WITH gone AS (
         DELETE FROM {s}.queue_row AS q USING unnest($1::INT4[], $2::INT8[], $3::INT8[], $4::INT8[], $5::INT8[])
             AS r(node, queue, first, last, incarnation), {s}.node AS n
         WHERE q.node = r.node AND q.queue = r.queue AND q.seq BETWEEN r.first AND r.last
             AND n.number = r.node AND n.incarnation = r.incarnation
         RETURNING q.body_node, q.shared
     ), released AS (
         SELECT body_node, shared, count(*) AS rows FROM gone WHERE shared IS NOT NULL GROUP BY body_node, shared
     )
     UPDATE {s}.body AS b SET refs = b.refs - r.rows FROM released AS r
     WHERE b.node = r.body_node AND b.id = r.shared RETURNING b.node, b.id, b.refs",
    "DELETE FROM {s}.session WHERE session = ANY($1::INT8[])",
    "DELETE FROM {s}.subscription WHERE session = ANY($1::INT8[])",
    "DELETE FROM {s}.inflight WHERE session = ANY($1::INT8[])",
    "INSERT INTO {s}.queue_row (node, queue, seq, size, head, body)
     SELECT u.node, u.queue, u.seq, u.size, u.head, u.body
     FROM unnest($1::INT4[], $2::INT8[], $3::INT8[], $4::INT8[], $5::BYTEA[], $6::BYTEA[])
         AS u(node, queue, seq, size, head, body)
     ON CONFLICT (node, queue, seq) DO NOTHING",
    // Only rows that were not there are counted, so that doing it twice is doing it once.
    "WITH added AS (
         INSERT INTO {s}.queue_row (node, queue, seq, size, head, body_node, shared)
         SELECT u.node, u.queue, u.seq, u.size, u.head, $7::INT4, u.shared
         FROM unnest($1::INT4[], $2::INT8[], $3::INT8[], $4::INT8[], $5::BYTEA[], $6::INT8[])
             AS u(node, queue, seq, size, head, shared)
         ON CONFLICT (node, queue, seq) DO NOTHING RETURNING shared
     ), counted AS (SELECT shared, count(*) AS rows FROM added GROUP BY shared)
     INSERT INTO {s}.body AS b (node, id, refs, data)
     SELECT $7::INT4, c.shared, c.rows, d.data
     FROM counted AS c JOIN unnest($8::INT8[], $9::BYTEA[]) AS d(id, data) ON d.id = c.shared
     ON CONFLICT (node, id) DO UPDATE SET refs = b.refs + excluded.refs",
    // A client has one session; if there were two, the first would be the one that is found.
    "INSERT INTO {s}.session (session, owner, epoch, record, client)
     SELECT u.session, $3::INT4, 1, u.record, CASE WHEN EXISTS (
         SELECT 1 FROM {s}.session AS o WHERE o.client = u.client AND o.session <> u.session) THEN NULL ELSE u.client END
     FROM unnest($1::INT8[], $2::BYTEA[], $4::BYTEA[]) AS u(session, record, client)
     ON CONFLICT (session) DO UPDATE SET record = excluded.record",
    "INSERT INTO {s}.subscription (session, digest, filter, record)
     SELECT * FROM unnest($1::INT8[], $2::BYTEA[], $3::BYTEA[], $4::BYTEA[]) AS u
     ON CONFLICT (session, digest) DO UPDATE SET record = excluded.record",
    "DELETE FROM {s}.subscription AS t USING unnest($1::INT8[], $2::BYTEA[]) AS u(session, digest)
     WHERE t.session = u.session AND t.digest = u.digest",
    "INSERT INTO {s}.inflight (session, side, packet_id, record)
     SELECT * FROM unnest($1::INT8[], $2::INT4[], $3::INT4[], $4::BYTEA[]) AS u
     ON CONFLICT (session, side, packet_id) DO UPDATE SET record = excluded.record",
    "DELETE FROM {s}.inflight AS t USING unnest($1::INT8[], $2::INT4[], $3::INT4[]) AS u(session, side, packet_id)
     WHERE t.session = u.session AND t.side = u.side AND t.packet_id = u.packet_id",
    "INSERT INTO {s}.retained AS t (digest, topic, stamp, record)
     SELECT * FROM unnest($1::BYTEA[], $2::BYTEA[], $3::INT8[], $4::BYTEA[]) AS u
     ON CONFLICT (digest) DO UPDATE SET stamp = excluded.stamp, record = excluded.record
     WHERE (excluded.stamp, excluded.record) > (t.stamp, t.record)",
    // A few at a time: as many as there come are gone again, and no more are there than a day has.
    "DELETE FROM {s}.retained WHERE digest IN (
         SELECT digest FROM {s}.retained WHERE record = '' AND stamp < $1::INT8 ORDER BY stamp LIMIT 200)",
    "INSERT INTO {s}.state (node, rule, digest, key, value)
     SELECT $1::INT4, u.rule, u.digest, u.key, u.value
     FROM unnest($2::INT8[], $3::BYTEA[], $4::BYTEA[], $5::BYTEA[]) AS u(rule, digest, key, value)
     ON CONFLICT (node, rule, digest) DO UPDATE SET value = excluded.value",
    "DELETE FROM {s}.state AS t USING unnest($2::INT8[], $3::BYTEA[]) AS u(rule, digest)
     WHERE t.node = $1::INT4 AND t.rule = u.rule AND t.digest = u.digest",
    "INSERT INTO {s}.meta (node, key, value)
     SELECT $1::INT4, u.key, u.value FROM unnest($2::TEXT[], $3::BYTEA[]) AS u(key, value)
     ON CONFLICT (node, key) DO UPDATE SET value = excluded.value",
    "DELETE FROM {s}.body AS b USING unnest($1::INT4[], $2::INT8[]) AS u(node, id)
     WHERE b.node = u.node AND b.id = u.id AND b.refs <= 0",
    // The row that reaches the bytes is the last.
    "SELECT q.seq, q.head, coalesce(q.body, b.data) FROM (
         SELECT seq, head, body, body_node, shared, sum(size) OVER (ORDER BY seq) - size AS before FROM (
             SELECT seq, head, body, body_node, shared, size FROM {s}.queue_row
             WHERE node = $1::INT4 AND queue = $2::INT8 AND seq >= $3::INT8 ORDER BY seq LIMIT $4::INT8
         ) AS few
     ) AS q LEFT JOIN {s}.body AS b ON b.node = q.body_node AND b.id = q.shared
     WHERE q.before < $5::INT8 ORDER BY q.seq",
    "SELECT session, owner, epoch FROM {s}.session WHERE session = ANY($1::INT8[])",
];

/// Begins a transaction that holds the view of the members, and with it up those who want to change it. One that stops within (a process that is paused, a
/// network that is gone) is silent for as long as a member's lease, which makes it dead: the server then lets go of what it holds, however long its
/// statements may take.
///
/// Under READ COMMITTED a row that had to be waited for is looked at again once it is locked.
pub(crate) const BEGIN: &str =
    "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL idle_in_transaction_session_timeout = 1000";

/// What there is of sessions, with their owner and epoch.
pub(crate) type Epochs = BTreeMap<SessionId, (i32, i64)>;

/// A body of a node: its number, and the body's.
pub(crate) type BodyKey = (i32, i64);

/// An open connection that holds the fence.
pub(crate) struct Db {
    client: Client,
    /// Ends with it.
    _task: Task,
    schema: String,
    node: String,
    who: Who,
    /// Raised by each connection of this writer.
    connection: i64,
    statements: Vec<Statement>,
}

/// A connection that nobody has been named on.
pub(crate) struct Connection {
    pub(crate) client: Client,
    task: Task,
}

/// What reads and writes the socket.
struct Task(AbortHandle);

/// A silent peer must not keep it alive.
impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Connects and says how this writer wants to be treated. `limit` ends statements, and transactions that we left.
pub(crate) async fn connect(config: &Config, limit: Duration) -> Result<Connection, DbError> {
    let (client, connection) = config.connect(NoTls).await?;
    // Its end shows in what is asked of the client.
    let task = Task(tokio::spawn(async move { drop(connection.await) }).abort_handle());
    let ms = limit.as_millis();
    client
        .batch_execute(&format!(
            "SET client_min_messages = 'warning'; SET statement_timeout = {ms}; \
             SET idle_in_transaction_session_timeout = {ms}; SELECT set_config('synchronous_commit', 'on', false) WHERE \
             current_setting('synchronous_commit') = 'off'"
        ))
        .await?;
    // A plan that was made while a table was empty reads all of it for ever. Not every server knows these.
    for setting in ["SET plan_cache_mode = force_custom_plan", "SET jit = off"] {
        if let Err(error) = client.batch_execute(setting).await
            && error.as_db_error().is_none()
        {
            return Err(error.into());
        }
    }
    Ok(Connection { client, task })
}

impl Connection {
    /// Takes the name of a node: whoever had it before writes nothing any more. Returns the fence's value too.
    pub(crate) async fn open(self, schema: &str, node: &str) -> Result<(Db, i64), DbError> {
        let claim = format!(
            "INSERT INTO {schema}.node AS n (node, number, incarnation, connection, fence)
             SELECT $1::TEXT, CAST(coalesce(max(number), 0) + 1 AS INT4), 1, 1, 0 FROM {schema}.node
             ON CONFLICT (node) DO UPDATE SET incarnation = n.incarnation + 1, connection = n.connection + 1
             RETURNING number, incarnation, connection, fence"
        );
        let mut draws = 0;
        let row = loop {
            match self.client.query_one(&claim, &[&node]).await {
                Err(e)
                    if e.code().is_some_and(|s| matches!(s.code(), "23505" | "40001"))
                        && draws < DRAWS_MAX =>
                {
                    draws += 1;
                }
                row => break row?,
            }
        };
        let who = Who { number: row.try_get(0)?, incarnation: row.try_get(1)? };
        let (connection, fence) = (row.try_get(2)?, row.try_get(3)?);
        // Whoever comes first names the store.
        let name = format!(
            "INSERT INTO {schema}.meta (node, key, value) VALUES ({NOBODY}, '{IDENTITY}', $1::BYTEA)
             ON CONFLICT (node, key) DO NOTHING"
        );
        let mut drawn = [0; 16];
        // (Linux has always some; without any the database would have to be asked.)
        getrandom::fill(&mut drawn).expect("the system has random numbers");
        self.client.execute(&name, &[&&drawn[..]]).await?;
        Ok((self.into_db(schema, node, who, connection).await?, fence))
    }

    /// Goes on under a name that this writer has taken, unless another one did since.
    pub(crate) async fn resume(self, schema: &str, node: &str, who: Who) -> Result<Db, DbError> {
        let raise = format!(
            "UPDATE {schema}.node SET connection = connection + 1 WHERE node = $1::TEXT AND incarnation = $2::INT8
             RETURNING connection"
        );
        let row = self.client.query_opt(&raise, &[&node, &who.incarnation]).await?;
        let connection = row.ok_or_else(|| taken(node))?.try_get(0)?;
        self.into_db(schema, node, who, connection).await
    }

    async fn into_db(self, schema: &str, node: &str, who: Who, connection: i64) -> Result<Db, DbError> {
        let texts: Vec<String> = STATEMENTS.iter().map(|sql| sql.replace("{s}", schema)).collect();
        let calls = texts.iter().map(|sql| -> Call<'_, Statement> { Box::pin(self.client.prepare(sql)) });
        let statements = all(calls.collect()).await.into_iter().collect::<Result<_, _>>()?;
        let Self { client, task } = self;
        Ok(Db {
            client,
            _task: task,
            schema: schema.to_owned(),
            node: node.to_owned(),
            who,
            connection,
            statements,
        })
    }
}

fn taken(node: &str) -> DbError {
    DbError { kind: Kind::Taken, text: format!("another ferrule has opened the store as node '{node}'") }
}

/// SQL's integers are signed. Numbers of rows, rules and bodies have 63 bits; only an open end is more.
fn sql(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// How long a shared store remembers that a topic was cleared, as a difference of stamps: a day (a stamp's upper 42 bits are milliseconds).
const CLEARED_FOR: u64 = 86_400_000 << 22;

/// A stamp, which takes all 64 bits, as a number that the server orders likewise.
fn ordered(stamp: u64) -> i64 {
    (stamp ^ 1 << 63) as i64
}

/// And back.
fn stamp(ordered: i64) -> u64 {
    ordered as u64 ^ 1 << 63
}

/// What names are keyed by: an index takes no more than 2,700 bytes, a topic may have 65,535.
pub(crate) fn digest(name: &[u8]) -> Vec<u8> {
    Sha256::digest(name)[..16].to_vec()
}

pub(crate) fn blob(row: &Row, column: usize) -> Result<Bytes, Error> {
    Ok(Bytes::copy_from_slice(row.try_get::<_, &[u8]>(column)?))
}

pub(crate) fn text(row: &Row, column: usize) -> Result<Box<str>, DbError> {
    let bytes: &[u8] = row.try_get(column)?;
    let text = std::str::from_utf8(bytes).map_err(|_| damaged("a name is not UTF-8"))?;
    Ok(text.into())
}

pub(crate) fn damaged(what: &str) -> DbError {
    DbError { kind: Kind::Other, text: format!("{what}: somebody else has written there") }
}

/// Columns of a statement, as the arrays that it takes.
type Column<'a> = Box<dyn ToSql + Sync + 'a>;

/// Statements with their columns, in the order in which they are to run.
struct Script<'a>(Vec<(S, Vec<Column<'a>>)>);

impl<'a> Script<'a> {
    fn push(&mut self, statement: S, columns: Vec<Column<'a>>) {
        self.0.push((statement, columns));
    }
}

/// A column: of each item one value.
fn column<'a, T, V: ToSql + Sync + 'a>(items: &[T], value: impl Fn(&T) -> V) -> Column<'a> {
    Box::new(items.iter().map(value).collect::<Vec<V>>())
}

impl Who {
    /// A queue in the tables. Those of sessions are no node's.
    fn queue(self, queue: QueueId) -> (i32, i64) {
        match queue.as_session() {
            Some(session) => (0, sql(session.0)),
            None => (self.number, sql(queue.0)),
        }
    }

    /// What `net` is in SQL.
    fn script<'a>(self, net: &'a Net, dead: &'a [BodyKey], orphans: &Orphans) -> Script<'a> {
        let mut script = Script(Vec::new());
        if !net.sessions_deleted.is_empty() {
            let sessions: Vec<i64> = net.sessions_deleted.iter().map(|s| sql(s.0)).collect();
            for statement in [S::SessionDelete, S::SubscriptionsDelete, S::InflightsDelete] {
                script.push(statement, vec![Box::new(sessions.clone())]);
            }
        }
        let ranges: Vec<((i32, i64), u64, u64)> = net
            .removed
            .iter()
            .filter(|(queue, _)| queue.as_inherited().is_none())
            .flat_map(|(&queue, ranges)| {
                ranges.iter().map(move |(first, last)| (self.queue(queue), first, last))
            })
            .collect();
        if !ranges.is_empty() {
            let columns: Vec<Column<'a>> = vec![
                column(&ranges, |r| r.0.0),
                column(&ranges, |r| r.0.1),
                column(&ranges, |r| sql(r.1)),
                column(&ranges, |r| sql(r.2)),
            ];
            script.push(S::Remove, columns);
        }
        let orphaned = net.removed.iter().filter_map(|(queue, ranges)| {
            let orphan = orphans.get(queue.as_inherited()?)?;
            Some(ranges.iter().map(move |(first, last)| (orphan, first, last)))
        });
        let ranges: Vec<(OrphanKey, u64, u64)> = orphaned.flatten().collect();
        if !ranges.is_empty() {
            let columns: Vec<Column<'a>> = vec![
                column(&ranges, |r| r.0.node),
                column(&ranges, |r| r.0.queue),
                column(&ranges, |r| sql(r.1)),
                column(&ranges, |r| sql(r.2)),
                column(&ranges, |r| r.0.incarnation),
            ];
            script.push(S::RemoveOrphans, columns);
        }
        self.appends(net, &mut script);
        self.puts(net, &mut script);
        if !dead.is_empty() {
            script.push(S::Sweep, vec![column(dead, |b| b.0), column(dead, |b| b.1)]);
        }
        script
    }

    fn appends<'a>(self, net: &'a Net, script: &mut Script<'a>) {
        type New<'a> = ((i32, i64), u64, &'a Bytes, &'a Body);
        let (shared, inline): (Vec<New<'a>>, Vec<New<'a>>) = net
            .appended
            .iter()
            .flat_map(|(&queue, rows)| {
                rows.iter().map(move |(seq, head, body)| (self.queue(queue), *seq, head, body))
            })
            .partition(|(.., body)| matches!(body, Body::Shared(..)));
        let columns = |rows: &[New<'a>]| -> Vec<Column<'a>> {
            vec![
                column(rows, |r| r.0.0),
                column(rows, |r| r.0.1),
                column(rows, |r| sql(r.1)),
                column(rows, |r| (r.2.len() + r.3.bytes().len()) as i64),
                column(rows, |r| &r.2[..]),
            ]
        };
        if !inline.is_empty() {
            let mut columns = columns(&inline);
            columns.push(column(&inline, |r| &r.3.bytes()[..]));
            script.push(S::Append, columns);
        }
        if !shared.is_empty() {
            let id = |body: &Body| if let Body::Shared(id, _) = body { sql(id.0) } else { 0 };
            // Each body travels once.
            let bodies: BTreeMap<i64, &'a [u8]> =
                shared.iter().map(|r| (id(r.3), &r.3.bytes()[..])).collect();
            let bodies: Vec<(i64, &'a [u8])> = bodies.into_iter().collect();
            let mut columns = columns(&shared);
            columns.push(column(&shared, |r| id(r.3)));
            columns.push(Box::new(self.number));
            columns.push(column(&bodies, |b| b.0));
            columns.push(column(&bodies, |b| b.1));
            script.push(S::AppendShared, columns);
        }
    }

    fn puts<'a>(self, net: &'a Net, script: &mut Script<'a>) {
        if !net.sessions.is_empty() {
            let puts: Vec<_> = net.sessions.iter().collect();
            let columns: Vec<Column<'a>> = vec![
                column(&puts, |p| sql(p.0.0)),
                column(&puts, |p| &p.1[..]),
                Box::new(self.number),
                column(&puts, |p| client_digest(p.1)),
            ];
            script.push(S::SessionPut, columns);
        }
        let (puts, deletes) = split(&net.subscriptions);
        if !puts.is_empty() {
            let columns: Vec<Column<'a>> = vec![
                column(&puts, |p| sql(p.0.0.0)),
                column(&puts, |p| digest(p.0.1.as_bytes())),
                column(&puts, |p| p.0.1.as_bytes()),
                column(&puts, |p| p.1),
            ];
            script.push(S::SubscriptionPut, columns);
        }
        if !deletes.is_empty() {
            let columns: Vec<Column<'a>> =
                vec![column(&deletes, |d| sql(d.0.0)), column(&deletes, |d| digest(d.1.as_bytes()))];
            script.push(S::SubscriptionDelete, columns);
        }
        let (puts, deletes) = split(&net.inflight);
        if !puts.is_empty() {
            let columns: Vec<Column<'a>> = vec![
                column(&puts, |p| sql(p.0.0.0)),
                column(&puts, |p| side_number(p.0.1)),
                column(&puts, |p| i32::from(p.0.2)),
                column(&puts, |p| p.1),
            ];
            script.push(S::InflightPut, columns);
        }
        if !deletes.is_empty() {
            let columns: Vec<Column<'a>> = vec![
                column(&deletes, |d| sql(d.0.0)),
                column(&deletes, |d| side_number(d.1)),
                column(&deletes, |d| i32::from(d.2)),
            ];
            script.push(S::InflightDelete, columns);
        }
        let retained: Vec<_> = net.retained.iter().collect();
        if !retained.is_empty() {
            let columns: Vec<Column<'a>> = vec![
                column(&retained, |r| digest(r.0.as_bytes())),
                column(&retained, |r| r.0.as_bytes()),
                column(&retained, |r| ordered(r.1.0)),
                column(&retained, |r| &r.1.1[..]),
            ];
            script.push(S::Retain, columns);
        }
        let cleared = retained.iter().filter(|r| r.1.1.is_empty()).map(|r| r.1.0).max();
        if let Some(newest) = cleared {
            let day: Column<'a> = Box::new(ordered(newest.saturating_sub(CLEARED_FOR)));
            script.push(S::RetainForget, vec![day]);
        }
        let (puts, deletes) = split(&net.state);
        if !puts.is_empty() {
            let columns: Vec<Column<'a>> = vec![
                Box::new(self.number),
                column(&puts, |p| sql(p.0.0)),
                column(&puts, |p| digest(&p.0.1)),
                column(&puts, |p| &p.0.1[..]),
                column(&puts, |p| p.1),
            ];
            script.push(S::StatePut, columns);
        }
        if !deletes.is_empty() {
            let columns: Vec<Column<'a>> = vec![
                Box::new(self.number),
                column(&deletes, |d| sql(d.0)),
                column(&deletes, |d| digest(&d.1)),
            ];
            script.push(S::StateDelete, columns);
        }
        if !net.meta.is_empty() {
            let puts: Vec<_> = net.meta.iter().collect();
            let columns: Vec<Column<'a>> =
                vec![Box::new(self.number), column(&puts, |p| &**p.0), column(&puts, |p| &p.1[..])];
            script.push(S::MetaPut, columns);
        }
    }
}

/// What is put, with its value, and what is deleted.
fn split<K>(map: &BTreeMap<K, Option<Bytes>>) -> (Vec<(&K, &[u8])>, Vec<&K>) {
    let puts = map.iter().filter_map(|(key, value)| value.as_ref().map(|value| (key, &value[..]))).collect();
    let deletes = map.iter().filter(|(_, value)| value.is_none()).map(|(key, _)| key).collect();
    (puts, deletes)
}

fn side_number(side: Side) -> i32 {
    match side {
        Side::Inbound => 0,
        Side::Outbound => 1,
    }
}

impl Db {
    pub(crate) fn who(&self) -> Who {
        self.who
    }

    /// The node's in the tables.
    pub(crate) fn number(&self) -> i32 {
        self.who.number
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn schema(&self) -> &str {
        &self.schema
    }

    /// See [`BEGIN`].
    pub(crate) async fn begin(&self) -> Result<(), DbError> {
        Ok(self.client.batch_execute(BEGIN).await?)
    }

    pub(crate) async fn commit(&self) -> Result<(), DbError> {
        Ok(self.client.batch_execute("COMMIT").await?)
    }

    /// After an error that the connection survives.
    pub(crate) async fn rollback(&self) -> Result<(), DbError> {
        Ok(self.client.batch_execute("ROLLBACK").await?)
    }

    /// In a transaction: nobody else opens the store under this node's name, or connects for it, before its end.
    pub(crate) async fn hold(&self) -> Result<(), DbError> {
        let sql = format!(
            "SELECT 1 FROM {}.node WHERE node = $1::TEXT AND incarnation = $2::INT8 AND connection = $3::INT8 FOR SHARE",
            self.schema
        );
        let row = self.client.query_opt(&sql, &[&self.node, &self.who.incarnation, &self.connection]).await?;
        row.map(|_| ()).ok_or_else(|| DbError::lost("another connection is in use"))
    }

    /// Whether the server has closed it.
    pub(crate) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    fn statement(&self, statement: S) -> Result<&Statement, DbError> {
        self.statements.get(statement as usize).ok_or_else(|| DbError::lost("a statement was not prepared"))
    }

    /// One transaction behind the fence: `net`, and `dead` bodies swept that have no rows. Returns the bodies that have none now.
    /// After [`Kind::Fence`] nothing was written.
    pub(crate) async fn write(
        &self,
        net: &Net,
        fence: i64,
        dead: &[BodyKey],
        orphans: &Orphans,
    ) -> Result<Vec<BodyKey>, DbError> {
        let script = self.who.script(net, dead, orphans);
        let holds: [&(dyn ToSql + Sync); 4] = [&self.node, &self.who.incarnation, &self.connection, &fence];
        let client = &self.client;
        let mut calls: Vec<Call<'_, Vec<Row>>> = Vec::with_capacity(script.0.len() + 3);
        // Under READ COMMITTED a row that had to be waited for is looked at again once it is locked.
        calls.push(Box::pin(async {
            client.batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED").await.map(|()| Vec::new())
        }));
        calls.push(Box::pin(client.query(self.statement(S::Fence)?, &holds)));
        for (name, columns) in &script.0 {
            let statement = self.statement(*name)?;
            let parameters: Vec<&(dyn ToSql + Sync)> = columns.iter().map(|c| &**c as _).collect();
            calls.push(Box::pin(async move { client.query(statement, &parameters).await }));
        }
        calls.push(Box::pin(async { client.batch_execute("COMMIT").await.map(|()| Vec::new()) }));
        let mut released = Vec::new();
        // When one fails, those behind it do ("current transaction is aborted"), and COMMIT is a ROLLBACK that succeeds: the
        // first error is the one that counts.
        for rows in all(calls).await {
            for row in rows? {
                // Of the statements only that which releases bodies returns three columns.
                if row.len() == 3 && row.try_get::<_, i64>(2)? <= 0 {
                    released.push((row.try_get(0)?, row.try_get(1)?));
                }
            }
        }
        Ok(released)
    }

    /// The fence as it is now; an error when the name is another writer's.
    pub(crate) async fn fence(&self) -> Result<i64, DbError> {
        let sql =
            format!("SELECT incarnation, connection, fence FROM {}.node WHERE node = $1::TEXT", self.schema);
        let row = self.client.query_opt(&sql, &[&self.node]).await?.ok_or_else(|| taken(&self.node))?;
        if row.try_get::<_, i64>(0)? != self.who.incarnation {
            return Err(taken(&self.node));
        }
        if row.try_get::<_, i64>(1)? != self.connection {
            return Err(DbError::lost("a later connection is in use"));
        }
        Ok(row.try_get(2)?)
    }

    /// Whose these sessions are; those that are not there are left out.
    pub(crate) async fn epochs(&self, sessions: &[SessionId]) -> Result<Epochs, DbError> {
        let keys: Vec<i64> = sessions.iter().map(|s| sql(s.0)).collect();
        let rows = self.client.query(self.statement(S::Epochs)?, &[&keys]).await?;
        let mut epochs = Epochs::new();
        for row in rows {
            epochs.insert(SessionId(row.try_get::<_, i64>(0)? as u64), (row.try_get(1)?, row.try_get(2)?));
        }
        Ok(epochs)
    }

    /// A queue of this node's in the tables.
    pub(crate) fn own_queue(&self, queue: QueueId) -> (i32, i64) {
        self.who.queue(queue)
    }

    /// An outbox that this node looks after in the tables; none: its node has started again.
    pub(crate) async fn orphan(&self, orphan: OrphanKey) -> Result<Option<(i32, i64)>, DbError> {
        let sql =
            format!("SELECT 1 FROM {}.node WHERE number = $1::INT4 AND incarnation = $2::INT8", self.schema);
        let row = self.client.query_opt(&sql, &[&orphan.node, &orphan.incarnation]).await?;
        Ok(row.map(|_| (orphan.node, orphan.queue)))
    }

    /// Rows of a queue from `from` on. See [`ferrule_store::Store::read`].
    pub(crate) async fn read(
        &self,
        (node, queue): (i32, i64),
        from: u64,
        max_rows: u32,
        max_bytes: u32,
    ) -> Result<Vec<StoredRow>, DbError> {
        let (rows, bytes) = (i64::from(max_rows.clamp(1, READ_ROWS)), i64::from(max_bytes.max(1)));
        let found =
            self.client.query(self.statement(S::Read)?, &[&node, &queue, &sql(from), &rows, &bytes]).await?;
        let row = |row: Row| -> Result<StoredRow, DbError> {
            Ok(StoredRow {
                seq: row.try_get::<_, i64>(0)? as u64,
                head: blob(&row, 1)?,
                body: row
                    .try_get::<_, Option<&[u8]>>(2)?
                    .map(Bytes::copy_from_slice)
                    .ok_or_else(|| damaged("a row names a body that is not there"))?,
            })
        };
        found.into_iter().map(row).collect()
    }

    /// What a start needs in memory, and the epochs of the sessions. Nobody else writes what is this node's: it holds the fence.
    pub(crate) async fn restored(&self) -> Result<(Restored, Epochs), DbError> {
        let (s, me) = (&self.schema, self.who.number);
        let first = i64::from(me) * SESSIONS as i64;
        let last = first + (SESSIONS as i64 - 1);
        // Large tables take their time.
        self.client.batch_execute("BEGIN; SET LOCAL statement_timeout = 0").await?;
        self.client
            .execute(&format!("DELETE FROM {s}.body WHERE node = $1::INT4 AND refs <= 0"), &[&me])
            .await?;
        let mut restored = Restored { first_session: first as u64, ..Restored::default() };
        let mut epochs = Epochs::new();
        let mut nameless = (Vec::new(), Vec::new());
        let sql =
            format!("SELECT session, epoch, record, client IS NULL FROM {s}.session WHERE owner = $1::INT4");
        for row in self.client.query(&sql, &[&me]).await? {
            let (key, epoch): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
            let (session, record) = (SessionId(key as u64), blob(&row, 2)?);
            if row.try_get(3)?
                && let Some(client) = client_digest(&record)
                && !nameless.1.contains(&client)
            {
                nameless.0.push(key);
                nameless.1.push(client);
            }
            epochs.insert(session, (me, epoch));
            restored.epochs.push((session, epoch as u64));
            restored.sessions.push((session, record));
        }
        let sql = format!(
            "UPDATE {s}.session AS t SET client = u.client FROM unnest($1::INT8[], $2::BYTEA[]) AS u(session, client)
             WHERE t.session = u.session AND NOT EXISTS (SELECT 1 FROM {s}.session AS o WHERE o.client = u.client)"
        );
        if !nameless.0.is_empty() {
            self.client.execute(&sql, &[&nameless.0, &nameless.1]).await?;
        }
        // What is its own sessions', and what is left of some that are no more.
        let rows = async |what: &str, tail: &str| {
            let sql = format!(
                "{what} WHERE EXISTS (SELECT 1 FROM {s}.session AS o WHERE o.session = t.session AND o.owner = $3::INT4)
                 OR (t.session BETWEEN $1::INT8 AND $2::INT8
                     AND NOT EXISTS (SELECT 1 FROM {s}.session AS o WHERE o.session = t.session)) {tail}"
            );
            self.client.query(&sql, &[&first, &last, &me]).await
        };
        let sql = format!("SELECT session, filter, record FROM {s}.subscription AS t");
        for row in rows(&sql, "").await? {
            restored.subscriptions.push(subscription(&row)?);
        }
        let sql = format!("SELECT session, side, packet_id, record FROM {s}.inflight AS t");
        for row in rows(&sql, "").await? {
            restored.inflight.push(inflight(&row)?);
        }
        let summaries = "min(seq), max(seq), count(*), CAST(sum(size) AS INT8)";
        let of_sessions = format!(
            "SELECT session, {summaries} FROM (SELECT queue AS session, seq, size FROM {s}.queue_row WHERE node = 0) AS t"
        );
        let mut queues = rows(&of_sessions, "GROUP BY session").await?;
        let sql =
            format!("SELECT queue, {summaries} FROM {s}.queue_row WHERE node = $1::INT4 GROUP BY queue");
        queues.extend(self.client.query(&sql, &[&me]).await?);
        for row in &queues {
            restored.queues.push(summary(row)?);
        }
        let sql = format!(
            "SELECT coalesce(max(session), 0) FROM {s}.session WHERE session BETWEEN $1::INT8 AND $2::INT8"
        );
        let row = self.client.query_one(&sql, &[&first, &last]).await?;
        restored.last_session = row.try_get::<_, i64>(0)? as u64;
        restored.retained = self.retained().await?;
        let sql = format!("SELECT rule, key, value FROM {s}.state WHERE node = $1::INT4");
        for row in self.client.query(&sql, &[&me]).await? {
            restored.state.push((row.try_get::<_, i64>(0)? as u64, blob(&row, 1)?, blob(&row, 2)?));
        }
        let sql = format!("SELECT key, value FROM {s}.meta WHERE node = $1::INT4");
        for row in self.client.query(&sql, &[&me]).await? {
            restored.meta.push((row.try_get::<_, String>(0)?.into(), blob(&row, 1)?));
        }
        let sql = format!("SELECT coalesce(max(id), 0) FROM {s}.body WHERE node = $1::INT4");
        restored.last_body = self.client.query_one(&sql, &[&me]).await?.try_get::<_, i64>(0)? as u64;
        self.client.batch_execute("COMMIT").await?;
        // Here, and not there: an order of text is the database's.
        restored.sessions.sort_unstable_by_key(|s| s.0);
        restored.epochs.sort_unstable();
        restored.subscriptions.sort_unstable_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        restored.inflight.sort_unstable_by_key(|i| (i.0, i.1, i.2));
        restored.queues.sort_unstable_by_key(|q| q.queue);
        restored.retained.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        restored.state.sort_unstable_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        restored.meta.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        Ok((restored, epochs))
    }

    /// All that is retained, and what was cleared: topic, stamp, record.
    pub(crate) async fn retained(&self) -> Result<Vec<(Box<str>, u64, Bytes)>, DbError> {
        let sql = format!("SELECT topic, stamp, record FROM {}.retained", self.schema);
        let row = |row: &Row| Ok((text(row, 0)?, stamp(row.try_get(1)?), blob(row, 2)?));
        self.client.query(&sql, &[]).await?.iter().map(row).collect()
    }
}
