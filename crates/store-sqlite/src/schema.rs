//! The tables, and the way from each schema version to the next.
//!
//! | table | holds |
//! |---|---|
//! | `control` | the journal's generation |
//! | `journal` | the slots, a page each (see `journal.rs`) |
//! | `queue_row` | rows that were in the journal at a fold and still lived; a rowid table, so that a row of up to a page stays in one page, in the order of folds, with an index over (queue, seq) |
//! | `queue` | rows and bytes of each non-empty queue, kept at folds, so that a start need not count a million rows |
//! | `body` | bodies that several rows hold, with their number |
//! | `session`, `subscription`, `inflight`, `retained`, `state`, `meta` | what their ops name |

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
"];

/// What salvage copies: table, columns, key by which to walk it from either end. `queue` is counted anew.
pub(crate) const SALVAGED: &[(&str, &str, &[&str])] = &[
    ("queue_row", "id, queue, seq, size, shared, head, body", &["id"]),
    ("body", "id, refs, data", &["id"]),
    ("session", "session, record", &["session"]),
    ("subscription", "session, filter, record", &["session", "filter"]),
    ("inflight", "session, side, packet_id, record", &["session", "side", "packet_id"]),
    ("retained", "rowid, topic, record", &["rowid"]),
    ("state", "rowid, rule, key, value", &["rowid"]),
    ("meta", "key, value", &["key"]),
];
