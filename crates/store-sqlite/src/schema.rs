//! The tables, and the way from each schema version to the next.
//!
//! | table | holds |
//! |---|---|
//! | `control` | the journal's generation, and the schema's version once more: a changed byte must not look like a newer release |
//! | `journal` | the slots, a page each (see `journal.rs`) |
//! | `queue_row` | rows that were in the journal at a fold and still lived; a rowid table, so that a row of up to a page stays in one page, in the order of folds, with an index over (queue, seq) |
//! | `queue_block` | the same, many small rows of a queue in one (`block.rs`): what a backlog is made of |
//! | `queue` | rows and bytes of each non-empty queue, kept at folds, so that a start need not count a million rows |
//! | `body` | bodies that several rows hold, with their number |
//! | `session`, `subscription`, `inflight`, `retained`, `state`, `meta` | what their ops name |
//!
//! Every row has its `sum` (`sum.rs`). A body's says nothing of `refs`, which changes without the bytes being read: that is there twice.

use rusqlite::Connection;

/// Marks the file as ours: "FrrL".
pub(crate) const APPLICATION_ID: i32 = 0x4672_724C;

/// `user_version` of the files that this program writes.
pub const VERSION: u32 = UPGRADES.len() as u32;

/// Entry i leads from version i to i + 1. Entries are never edited, only added: a file in the field has run them.
pub(crate) const UPGRADES: &[&str] = &["
    CREATE TABLE control (id INTEGER PRIMARY KEY CHECK (id = 0), generation INTEGER NOT NULL);
    INSERT INTO control VALUES (0, 1);
    CREATE TABLE journal (slot INTEGER PRIMARY KEY, data BLOB NOT NULL);
    CREATE TABLE queue_row (
        id INTEGER PRIMARY KEY, queue INTEGER NOT NULL, seq INTEGER NOT NULL, size INTEGER NOT NULL,
        shared INTEGER, head BLOB NOT NULL, body BLOB
    );
    CREATE UNIQUE INDEX queue_row_by_seq ON queue_row (queue, seq);
    CREATE TABLE queue (queue INTEGER PRIMARY KEY, count INTEGER NOT NULL, size INTEGER NOT NULL);
    CREATE TABLE body (id INTEGER PRIMARY KEY, refs INTEGER NOT NULL, data BLOB NOT NULL);
    CREATE TABLE session (session INTEGER PRIMARY KEY, record BLOB NOT NULL);
    CREATE TABLE subscription (
        session INTEGER NOT NULL, filter TEXT NOT NULL, record BLOB NOT NULL, PRIMARY KEY (session, filter)
    ) WITHOUT ROWID;
    CREATE TABLE inflight (
        session INTEGER NOT NULL, side INTEGER NOT NULL, packet_id INTEGER NOT NULL, record BLOB NOT NULL,
        PRIMARY KEY (session, side, packet_id)
    ) WITHOUT ROWID;
    CREATE TABLE retained (topic TEXT NOT NULL PRIMARY KEY, record BLOB NOT NULL);
    CREATE TABLE state (rule INTEGER NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, PRIMARY KEY (rule, key));
    CREATE TABLE meta (key TEXT NOT NULL PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
", "
    ALTER TABLE control ADD COLUMN sum INTEGER;
    ALTER TABLE control ADD COLUMN version INTEGER;
    ALTER TABLE queue_row ADD COLUMN sum INTEGER;
    ALTER TABLE queue ADD COLUMN sum INTEGER;
    ALTER TABLE body ADD COLUMN sum INTEGER;
    ALTER TABLE body ADD COLUMN refs_again INTEGER;
    ALTER TABLE session ADD COLUMN sum INTEGER;
    ALTER TABLE subscription ADD COLUMN sum INTEGER;
    ALTER TABLE inflight ADD COLUMN sum INTEGER;
    ALTER TABLE retained ADD COLUMN sum INTEGER;
    ALTER TABLE state ADD COLUMN sum INTEGER;
    ALTER TABLE meta ADD COLUMN sum INTEGER;
    UPDATE control SET sum = ferrule_sum(generation);
    UPDATE queue_row SET sum = ferrule_sum(queue, seq, size, shared, head, body);
    UPDATE queue SET sum = ferrule_sum(queue, count, size);
    UPDATE body SET sum = ferrule_sum(id, data), refs_again = refs;
    UPDATE session SET sum = ferrule_sum(session, record);
    UPDATE subscription SET sum = ferrule_sum(session, filter, record);
    UPDATE inflight SET sum = ferrule_sum(session, side, packet_id, record);
    UPDATE retained SET sum = ferrule_sum(topic, record);
    UPDATE state SET sum = ferrule_sum(rule, key, value);
    UPDATE meta SET sum = ferrule_sum(key, value);
", "
    CREATE TABLE queue_block (
        id INTEGER PRIMARY KEY, queue INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
        count INTEGER NOT NULL, size INTEGER NOT NULL, sum INTEGER, gone BLOB NOT NULL, data BLOB NOT NULL
    );
    CREATE UNIQUE INDEX queue_block_by_first ON queue_block (queue, first);
"];

/// The first version whose rows have sums.
pub(crate) const SUMS_FROM: u32 = 2;

/// A table that salvage copies.
pub(crate) struct Table {
    pub(crate) name: &'static str,
    /// By which to walk it from either end.
    pub(crate) key: &'static [&'static str],
    /// What is in the sum.
    pub(crate) summed: &'static str,
    /// What is copied beside it.
    pub(crate) beside: &'static str,
    /// So small that a start reads all of it into memory.
    pub(crate) small: bool,
}

/// All but `control` and `journal`, which salvage begins anew, and `queue`, which it counts.
#[rustfmt::skip]
pub(crate) const TABLES: &[Table] = &[
    Table { name: "queue_row", key: &["id"], summed: "queue, seq, size, shared, head, body", beside: "id", small: false },
    Table { name: "queue_block", key: &["id"], summed: "queue, first, last, count, size, gone, data", beside: "id", small: false },
    Table { name: "body", key: &["id"], summed: "id, data", beside: "refs, refs_again", small: false },
    Table { name: "session", key: &["session"], summed: "session, record", beside: "", small: true },
    Table { name: "subscription", key: &["session", "filter"], summed: "session, filter, record", beside: "", small: true },
    Table { name: "inflight", key: &["session", "side", "packet_id"], summed: "session, side, packet_id, record", beside: "", small: true },
    Table { name: "retained", key: &["rowid"], summed: "topic, record", beside: "rowid", small: true },
    Table { name: "state", key: &["rowid"], summed: "rule, key, value", beside: "rowid", small: true },
    Table { name: "meta", key: &["key"], summed: "key, value", beside: "", small: true },
];

/// How many rows of a table are not what was written.
pub(crate) fn changed_rows(conn: &Connection, table: &Table) -> rusqlite::Result<i64> {
    not_so(conn, table.name, &format!("sum IS ferrule_sum({})", table.summed))
}

/// How many rows of a table there are of which something is not so.
pub(crate) fn not_so(conn: &Connection, table: &str, holds: &str) -> rusqlite::Result<i64> {
    conn.query_row(&format!("SELECT count(*) FROM {table} WHERE NOT ({holds})"), [], |row| row.get(0))
}

/// The rows of each queue, counted: number, rows, bytes.
pub(crate) const COUNT: &str = "
    SELECT queue, sum(count), sum(size) FROM (
        SELECT queue, count(*) AS count, sum(size) AS size FROM queue_row GROUP BY queue
        UNION ALL SELECT queue, sum(count), sum(size) FROM queue_block GROUP BY queue
    ) GROUP BY queue";

/// What must be so of every row of `control` and `queue`, which are not copied.
pub(crate) const COUNTED: &[(&str, &str)] = &[
    ("control", "sum IS ferrule_sum(generation)"),
    ("queue", "sum IS ferrule_sum(queue, count, size)"),
    ("body", "refs IS refs_again"),
];
