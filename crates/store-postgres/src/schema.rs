//! The tables, and the way from each schema version to the next.
//!
//! | table | holds |
//! |---|---|
//! | `ferrule_schema` | the version, in one row; whoever upgrades locks it |
//! | `node` | the nodes: number, and what fences their writers (`lib.rs`) |
//! | `session` | a session, its owner and epoch; `client` finds it by its client id, and is not there in rows of older releases |
//! | `subscription`, `inflight` | what is a session's |
//! | `queue_row` | rows by (node, queue, seq); `node` is 0 for queues of sessions. `shared` of `body_node` names a body |
//! | `body` | bodies that several rows hold, with their number; one without rows is removed with a later commit |
//! | `retained` | everyone's; of a topic the highest `stamp` wins, and an empty record says that it was cleared |
//! | `state`, `meta` | a node's |
//! | `rule_keeper` | which node runs a rule that remembers something (`keepers.rs`); what it remembers is in that node's `state` |
//! | `cluster_view`, `cluster_member` | who is a member of the cluster (`members.rs`), and in `rules` which rules it names (`keepers.rs`) |
//!
//! INT4 and INT8 by name: a plain INT has 8 bytes in CockroachDB.

use tokio_postgres::{Client, Error};

/// Of the tables that this program makes.
pub const VERSION: i32 = UPGRADES.len() as i32;

/// Entry i leads from version i to i + 1. Entries are never edited, only added: a server in the field has run them.
/// `IF NOT EXISTS`: not every server takes back the tables of a transaction that failed.
const UPGRADES: &[&str] = &["
    CREATE TABLE IF NOT EXISTS {s}.node (
        node TEXT PRIMARY KEY, number INT4 NOT NULL UNIQUE, incarnation INT8 NOT NULL, connection INT8 NOT NULL,
        fence INT8 NOT NULL
    );
    CREATE TABLE IF NOT EXISTS {s}.session (
        session INT8 PRIMARY KEY, owner INT4 NOT NULL, epoch INT8 NOT NULL, record BYTEA NOT NULL
    );
    CREATE INDEX IF NOT EXISTS session_by_owner ON {s}.session (owner);
    CREATE TABLE IF NOT EXISTS {s}.subscription (
        session INT8 NOT NULL, digest BYTEA NOT NULL, filter BYTEA NOT NULL, record BYTEA NOT NULL,
        PRIMARY KEY (session, digest)
    );
    CREATE TABLE IF NOT EXISTS {s}.inflight (
        session INT8 NOT NULL, side INT4 NOT NULL, packet_id INT4 NOT NULL, record BYTEA NOT NULL,
        PRIMARY KEY (session, side, packet_id)
    );
    CREATE TABLE IF NOT EXISTS {s}.queue_row (
        node INT4 NOT NULL, queue INT8 NOT NULL, seq INT8 NOT NULL, size INT8 NOT NULL, head BYTEA NOT NULL,
        body BYTEA, body_node INT4, shared INT8, PRIMARY KEY (node, queue, seq)
    );
    CREATE TABLE IF NOT EXISTS {s}.body (
        node INT4 NOT NULL, id INT8 NOT NULL, refs INT8 NOT NULL, data BYTEA NOT NULL, PRIMARY KEY (node, id)
    );
    CREATE TABLE IF NOT EXISTS {s}.retained (
        digest BYTEA PRIMARY KEY, topic BYTEA NOT NULL, record BYTEA NOT NULL
    );
    CREATE TABLE IF NOT EXISTS {s}.state (
        node INT4 NOT NULL, rule INT8 NOT NULL, digest BYTEA NOT NULL, key BYTEA NOT NULL, value BYTEA NOT NULL,
        PRIMARY KEY (node, rule, digest)
    );
    CREATE TABLE IF NOT EXISTS {s}.meta (
        node INT4 NOT NULL, key TEXT NOT NULL, value BYTEA NOT NULL, PRIMARY KEY (node, key)
    );
", "
    CREATE TABLE IF NOT EXISTS {s}.cluster_view (id INT4 PRIMARY KEY, number INT8 NOT NULL);
    CREATE TABLE IF NOT EXISTS {s}.cluster_member (
        node INT4 PRIMARY KEY, incarnation INT8 NOT NULL, state INT4 NOT NULL, seen INT8 NOT NULL,
        shards INT4 NOT NULL, addresses TEXT[] NOT NULL
    );
    INSERT INTO {s}.cluster_view VALUES (0, 0) ON CONFLICT (id) DO NOTHING;
", "
    ALTER TABLE {s}.session ADD COLUMN IF NOT EXISTS client BYTEA;
    CREATE UNIQUE INDEX IF NOT EXISTS session_by_client ON {s}.session (client);
", "
    ALTER TABLE {s}.retained ADD COLUMN IF NOT EXISTS stamp INT8 NOT NULL DEFAULT -9223372036854775808;
    CREATE INDEX IF NOT EXISTS retained_cleared ON {s}.retained (stamp) WHERE record = '';
", "
    CREATE TABLE IF NOT EXISTS {s}.rule_keeper (rule INT8 PRIMARY KEY, node INT4 NOT NULL);
", "
    ALTER TABLE {s}.cluster_member ADD COLUMN IF NOT EXISTS rules INT8[];
"];

/// What another node makes at the same moment: `IF NOT EXISTS` does not see what is not committed yet, and then meets a unique
/// index of the catalogue; or the transaction in which it was made was a moment later than ours.
const RACE_STATES: [&str; 5] = ["23505", "42P07", "42710", "42P06", "XX000"];
/// How often to lose such a race.
const RACES_MAX: u32 = 10;

/// A name that needs no quotes and leaves room for more.
pub(crate) fn is_name(name: &str) -> bool {
    (1..=48).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_')
}

/// Why the tables are not what this program needs.
#[derive(Debug)]
pub(crate) enum UpgradeError {
    Server(Error),
    Newer(i32),
    /// The database keeps text in another encoding.
    Encoding(String),
}

impl From<Error> for UpgradeError {
    fn from(error: Error) -> Self {
        Self::Server(error)
    }
}

/// Brings the tables to today's version. Safe when several nodes start at once.
pub(crate) async fn upgrade(client: &Client, schema: &str) -> Result<(), UpgradeError> {
    let mut races = 0;
    loop {
        match attempt(client, schema).await {
            Err(UpgradeError::Server(error)) if is_race(&error) && races < RACES_MAX => {
                races += 1;
                // Whatever was open.
                client.batch_execute("ROLLBACK").await?;
            }
            result => return result,
        }
    }
}

fn is_race(error: &Error) -> bool {
    error.code().is_some_and(|state| RACE_STATES.contains(&state.code()) || state.code().starts_with("40"))
}

async fn attempt(client: &Client, schema: &str) -> Result<(), UpgradeError> {
    let encoding: String = client.query_one("SHOW server_encoding", &[]).await?.try_get(0)?;
    if !encoding.eq_ignore_ascii_case("utf8") {
        return Err(UpgradeError::Encoding(encoding));
    }
    // Looked for first: who may use the schema need not be allowed to make one.
    let there = client
        .query(
            "SELECT 1 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE n.nspname = $1::text AND c.relname = 'ferrule_schema'",
            &[&schema],
        )
        .await?;
    if there.is_empty() {
        let known = client
            .query("SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = $1::text", &[&schema])
            .await?;
        if known.is_empty() {
            client.batch_execute(&format!("CREATE SCHEMA IF NOT EXISTS {schema}")).await?;
        }
        let table = format!(
            "CREATE TABLE IF NOT EXISTS {schema}.ferrule_schema (id INT4 PRIMARY KEY, version INT4 NOT NULL)"
        );
        client.batch_execute(&table).await?;
    }
    let read = format!("SELECT version FROM {schema}.ferrule_schema WHERE id = 0");
    loop {
        let found = client.query_opt(&read, &[]).await?;
        let version: i32 = found.map_or(Ok(0), |row| row.try_get(0))?;
        // One release may run with the tables of the next: entries add, and nothing that is there gets another meaning.
        if version > VERSION + 1 {
            return Err(UpgradeError::Newer(version));
        }
        if version >= VERSION {
            return Ok(());
        }
        client
            .batch_execute(&format!(
                "INSERT INTO {schema}.ferrule_schema VALUES (0, 0) ON CONFLICT (id) DO NOTHING; BEGIN"
            ))
            .await?;
        // Whoever waited here finds that it was done.
        let locked: i32 = client.query_one(&format!("{read} FOR UPDATE"), &[]).await?.try_get(0)?;
        if locked == version {
            let upgrade = UPGRADES.get(version as usize).copied().unwrap_or_default().replace("{s}", schema);
            client.batch_execute(&upgrade).await?;
            let next = version + 1;
            client
                .batch_execute(&format!("UPDATE {schema}.ferrule_schema SET version = {next} WHERE id = 0"))
                .await?;
        }
        client.batch_execute("COMMIT").await?;
    }
}
