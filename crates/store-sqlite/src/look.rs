//! Looking through a store: what `store check` and `store dump` read.
//!
//! # Operation
//! Pages of items, table by table, each page from where the last one ended. Of a running process the writer's thread answers, a page
//! between two commits, after the journal was folded into the tables for the first one; what changes meanwhile may be in it or not.
//! Of a process that does not run, [`Look`] has the file to itself: the journal is folded as at a start, nothing is salvaged or moved aside.

use crate::block::{Packer, Wanted};
use crate::db::Db;
use crate::error::{DbError, OpenError};
use crate::{FILE, Options, schema};
use bytes::Bytes;
use ferrule_store::{Op, QueueId, QueueSummary, SessionId, Side, StoredRow};
use rusqlite::{Connection, Row, ToSql, params};
use std::path::Path;

/// One thing that is in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A setting or fact.
    Meta {
        /// Its name.
        key: String,
        /// Opaque.
        value: Bytes,
    },
    /// [`ferrule_store::record::Session`].
    Session {
        /// Its number.
        session: SessionId,
        /// The record.
        record: Bytes,
    },
    /// [`ferrule_store::record::Subscription`].
    Subscription {
        /// Whose.
        session: SessionId,
        /// The filter.
        filter: String,
        /// The record.
        record: Bytes,
    },
    /// [`ferrule_store::record::Inflight`].
    Inflight {
        /// Whose.
        session: SessionId,
        /// Who gave the id.
        side: Side,
        /// The id.
        packet_id: u16,
        /// The record.
        record: Bytes,
    },
    /// [`ferrule_store::record::Retained`].
    Retained {
        /// The topic.
        topic: String,
        /// The record.
        record: Bytes,
    },
    /// A row of a queue.
    Row {
        /// Which.
        queue: QueueId,
        /// Its number there.
        seq: u64,
        /// A record, by the kind of queue.
        head: Bytes,
        /// The payload; none: it names a body that is not there.
        body: Option<Bytes>,
    },
    /// A rule's.
    State {
        /// The rule.
        rule: u64,
        /// Its key.
        key: Bytes,
        /// Its value.
        value: Bytes,
    },
}

/// Parts of a table's key, in order: numbers and a text; those that it has not are the least there are.
pub type Key = (i64, String, i64);

/// Where a page ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cursor {
    /// Index of the table.
    pub table: u8,
    /// The key of the last item: as many of its parts as the table has.
    pub key: Key,
}

/// Some items.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// In the order of their keys.
    pub items: Vec<Item>,
    /// Where to go on; none: that was all.
    pub next: Option<Cursor>,
}

/// Items of a page: a few milliseconds between two commits.
const ITEMS: usize = 256;
/// Bytes of a page, about.
const BYTES: usize = 1 << 20;

/// In the order in which they are read: whose they are before what is theirs.
const TABLES: [&str; 8] = [
    "SELECT key, value FROM meta WHERE key > ?2 ORDER BY key",
    "SELECT session, record FROM session WHERE session > ?1 ORDER BY session",
    "SELECT session, filter, record FROM subscription WHERE (session, filter) > (?1, ?2) ORDER BY session, filter",
    "SELECT session, side, packet_id, record FROM inflight
     WHERE (session, side * 65536 + packet_id) > (?1, ?3) ORDER BY session, side, packet_id",
    "SELECT rowid, topic, record FROM retained WHERE rowid > ?1 ORDER BY rowid",
    "SELECT r.id, r.queue, r.seq, r.head, CASE WHEN r.shared IS NULL THEN r.body ELSE b.data END
     FROM queue_row r LEFT JOIN body b ON b.id = r.shared WHERE r.id > ?1 ORDER BY r.id",
    "SELECT id, queue, gone, data FROM queue_block WHERE id > ?1 ORDER BY id",
    "SELECT rowid, rule, key, value FROM state WHERE rowid > ?1 ORDER BY rowid",
];

/// The one of [`TABLES`] of which each row is many items.
const BLOCKS: u8 = 6;

/// Before the first key of any table.
const START: i64 = i64::MIN;

impl Cursor {
    fn of(table: u8) -> Self {
        Self { table, key: (START, String::new(), START) }
    }
}

pub(crate) fn page(conn: &Connection, after: Option<&Cursor>) -> Result<Page, DbError> {
    let mut at = after.cloned().unwrap_or_else(|| Cursor::of(0));
    let mut items = Vec::new();
    let mut bytes = 0;
    while let Some(sql) = TABLES.get(usize::from(at.table)) {
        let mut select = conn.prepare_cached(sql)?;
        let (first, second, third) = at.key.clone();
        let key: [&dyn ToSql; 3] = [&first, &second, &third];
        let count = select.parameter_count();
        let mut rows = select.query(&key[..count])?;
        while let Some(row) = rows.next()? {
            if at.table == BLOCKS {
                at.key = (row.get(0)?, String::new(), START);
                bytes += read_block(row, &mut items)?;
            } else {
                let (key, item, size) = read(at.table, row)?;
                at.key = key;
                items.push(item);
                bytes += size;
            }
            if items.len() >= ITEMS || bytes >= BYTES {
                return Ok(Page { items, next: Some(at) });
            }
        }
        at = Cursor::of(at.table + 1);
    }
    Ok(Page { items, next: None })
}

/// The rows of a block; about how many bytes they have.
fn read_block(row: &Row<'_>, items: &mut Vec<Item>) -> Result<usize, DbError> {
    let blob = |column: usize| row.get_ref(column)?.as_blob().map_err(|e| DbError::Check(e.to_string()));
    let queue = QueueId(row.get::<_, i64>(1)? as u64);
    let rows = Packer::new()?.unpack(blob(3)?)?.rows(blob(2)?, |_, _| Wanted::Yes);
    let size = rows.iter().map(|row| row.head.len() + row.body.len()).sum();
    items.extend(rows.into_iter().map(|StoredRow { seq, head, body }| Item::Row {
        queue,
        seq,
        head,
        body: Some(body),
    }));
    Ok(size)
}

/// Its key, itself, and about how many bytes it has.
fn read(table: u8, row: &Row<'_>) -> Result<(Key, Item, usize), DbError> {
    let blob = |column: usize| -> Result<Bytes, DbError> {
        Ok(Bytes::copy_from_slice(
            row.get_ref(column)?
                .as_blob_or_null()
                .map_err(|e| DbError::Check(e.to_string()))?
                .unwrap_or_default(),
        ))
    };
    let session =
        |column: usize| -> Result<SessionId, DbError> { Ok(SessionId(row.get::<_, i64>(column)? as u64)) };
    Ok(match table {
        0 => {
            let (key, value): (String, Bytes) = (row.get(0)?, blob(1)?);
            let size = key.len() + value.len();
            ((START, key.clone(), START), Item::Meta { key, value }, size)
        }
        1 => {
            let record = blob(1)?;
            let size = record.len();
            ((row.get(0)?, String::new(), START), Item::Session { session: session(0)?, record }, size)
        }
        2 => {
            let (filter, record): (String, Bytes) = (row.get(1)?, blob(2)?);
            let size = filter.len() + record.len();
            let item = Item::Subscription { session: session(0)?, filter: filter.clone(), record };
            ((row.get(0)?, filter, START), item, size)
        }
        3 => {
            let byte: u8 = row.get(1)?;
            let packet_id: u16 = row.get(2)?;
            let side = crate::journal::side_from_byte(byte)
                .ok_or_else(|| DbError::Check("side of a packet id".into()))?;
            let item = Item::Inflight { session: session(0)?, side, packet_id, record: blob(3)? };
            ((row.get(0)?, String::new(), i64::from(byte) * 65_536 + i64::from(packet_id)), item, 32)
        }
        4 => {
            let (topic, record): (String, Bytes) = (row.get(1)?, blob(2)?);
            let size = topic.len() + record.len();
            ((row.get(0)?, String::new(), START), Item::Retained { topic, record }, size)
        }
        5 => {
            let head = blob(3)?;
            let body = row.get::<_, Option<Vec<u8>>>(4)?.map(Bytes::from);
            let size = head.len() + body.as_ref().map_or(0, Bytes::len);
            let (queue, seq) = (row.get::<_, i64>(1)? as u64, row.get::<_, i64>(2)? as u64);
            let item = Item::Row { queue: QueueId(queue), seq, head, body };
            ((row.get(0)?, String::new(), START), item, size)
        }
        _ => {
            let (key, value) = (blob(2)?, blob(3)?);
            let size = key.len() + value.len();
            let item = Item::State { rule: row.get::<_, i64>(1)? as u64, key, value };
            ((row.get(0)?, String::new(), START), item, size)
        }
    })
}

/// A store that nobody has open.
pub struct Look {
    db: Db,
}

impl Look {
    /// Opens the store of `folder`, as a start does, but that damage is an error. None: there is none.
    ///
    /// # Errors
    /// When it is held by a process, was written by a newer release, is damaged or cannot be read.
    pub fn open(folder: &Path, options: &Options) -> Result<Option<Self>, OpenError> {
        let file = folder.join(FILE);
        if !file.exists() {
            return Ok(None);
        }
        let attempt = || {
            let mut db = Db::open(&file, options)?;
            db.recover(false)?;
            Ok::<_, DbError>(db)
        };
        attempt().map(|db| Some(Self { db })).map_err(|e| e.into_open(folder))
    }

    /// Some items.
    ///
    /// # Errors
    /// What the medium says.
    pub fn page(&self, after: Option<&Cursor>) -> Result<Page, String> {
        page(self.db.conn(), after).map_err(|e| e.to_string())
    }

    /// What each queue that is not empty holds.
    ///
    /// # Errors
    /// What the medium says.
    pub fn queues(&self) -> Result<Vec<QueueSummary>, String> {
        self.db.queues().map_err(|e| e.to_string())
    }

    /// Rows of a queue with numbers from `from` on, ascending: a page's worth, none at the end.
    ///
    /// # Errors
    /// What the medium says.
    pub fn rows(&self, queue: QueueId, from: u64) -> Result<Vec<StoredRow>, String> {
        self.db.read(queue, from, ITEMS as u32, BYTES as u32).map_err(|e| e.to_string())
    }

    /// Makes changes, all of them or none: the one thing here that is not looking, for who mends a store by hand.
    ///
    /// # Errors
    /// What the medium says.
    pub fn commit(&mut self, ops: &[Op]) -> Result<(), String> {
        self.db.commit(ops.iter(), true).map(|_| ()).map_err(|e| e.to_string())
    }

    /// What SQLite finds wrong with the file, and what does not fit together in it: all of it.
    ///
    /// # Errors
    /// What the medium says.
    pub fn faults(&self) -> Result<Vec<String>, String> {
        faults(self.db.conn()).map_err(|e| e.to_string())
    }

    /// Closes it.
    ///
    /// # Errors
    /// What the medium says.
    pub fn close(self) -> Result<(), String> {
        self.db.close().map_err(|e| e.to_string())
    }
}

/// How many of each fault are told.
const FAULTS: i64 = 20;

fn faults(conn: &Connection) -> Result<Vec<String>, DbError> {
    let mut faults: Vec<String> = Vec::new();
    let mut check = conn.prepare(&format!("PRAGMA integrity_check({FAULTS})"))?;
    let said = check.query_map([], |row| row.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()?;
    faults.extend(said.into_iter().filter(|said| said != "ok"));
    for table in schema::TABLES {
        let rows = schema::changed_rows(conn, table)?;
        if rows > 0 {
            faults.push(format!("rows of {} that are not what was written: {rows}", table.name));
        }
    }
    for (sql, what) in [
        (
            "SELECT session FROM subscription s WHERE NOT EXISTS (SELECT 1 FROM session WHERE session = s.session)",
            "a subscription of a session that is not there",
        ),
        (
            "SELECT session FROM inflight i WHERE NOT EXISTS (SELECT 1 FROM session WHERE session = i.session)",
            "a packet id of a session that is not there",
        ),
        (
            "SELECT id FROM queue_row r WHERE shared IS NOT NULL AND NOT EXISTS (SELECT 1 FROM body WHERE id = r.shared)",
            "a row whose body is not there",
        ),
        (
            "SELECT id FROM body b WHERE refs IS NOT refs_again OR refs <> (SELECT count(*) FROM queue_row WHERE shared = b.id)",
            "a body with a wrong count of rows",
        ),
        (
            &format!(
                "WITH counted (queue, count, size) AS ({})
                 SELECT q.queue FROM queue q LEFT JOIN counted c USING (queue)
                 WHERE sum IS NOT ferrule_sum(q.queue, q.count, q.size) OR q.count IS NOT c.count OR q.size IS NOT c.size",
                schema::COUNT
            ),
            "a queue with a wrong count of rows",
        ),
        (
            &format!("SELECT queue FROM ({}) c WHERE NOT EXISTS (SELECT 1 FROM queue WHERE queue = c.queue)", schema::COUNT),
            "rows of a queue that is not counted",
        ),
    ] {
        let mut select = conn.prepare(&format!("{sql} LIMIT ?1"))?;
        let found = select.query_map(params![FAULTS], |row| row.get::<_, i64>(0))?;
        for number in found {
            faults.push(format!("{what}: {}", number?));
        }
    }
    Ok(faults)
}
