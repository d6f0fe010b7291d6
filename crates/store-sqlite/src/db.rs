//! The file: one connection, its pragmas, and the transactions that the writer needs.
//!
//! After any error the connection is of no further use: drop it, which leaves the WAL as it is, and open anew.

use crate::block::Packer;
use crate::error::DbError;
use crate::journal::{self, Journal, side_from_byte};
use crate::net::{Net, REMOVED_ROWS_MAX};
use crate::read::Reading;
use crate::{Options, fold, schema, sum};
use bytes::Bytes;
use ferrule_store::{Op, QueueId, QueueSummary, Restored, SessionId, StoredRow};
use rusqlite::config::DbConfig;
use rusqlite::{CachedStatement, Connection, OpenFlags, OptionalExtension, TransactionBehavior, params};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a leaf page of a rowid table needs beside a slot's bytes for the one row to fill the page: 35 bytes that
/// the format reserves before a payload spills over, and the record's own header.
const SLOT_OVERHEAD: usize = 43;
/// A block that is removed counts as so many rows: it has about as many pages as these.
const BLOCK_ROWS: u64 = 16;
/// Files up to this size are checked in whole at a start (SD card, 20 MB/s: under a second). Damage in larger ones is
/// found when it is read, and salvaged then.
const CHECK_BYTES_MAX: u64 = 16 << 20;
/// Free pages given back to the file system per idle turn, and how many bytes of them a file may keep.
const VACUUM_PAGES: u32 = 512;
const FREE_BYTES_KEPT: u64 = 4 << 20;

/// An open file and what is in its journal.
#[derive(Debug)]
pub(crate) struct Db {
    conn: Connection,
    file: PathBuf,
    page_bytes: usize,
    journal: Journal,
    /// The journal's ops, folded onto each other.
    net: Net,
    packer: Packer,
    /// The net removes so many rows that the next commit should fold.
    fold_due: bool,
    /// About how many frames were written to the WAL since it was last copied into the file.
    wal_frames: u64,
}

/// What one commit did.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Done {
    pub(crate) folded: bool,
}

impl Db {
    /// Opens or creates `file` and takes its lock. The tables may lag behind the journal: call [`Db::recover`].
    pub(crate) fn open(file: &Path, options: &Options) -> Result<Self, DbError> {
        let conn = connect(file, options.vfs.as_deref())?;
        if conn.is_readonly("main")? {
            return Err(DbError::ReadOnly);
        }
        // Another connection that closes, or a tool that looks, may take a moment.
        conn.busy_timeout(Duration::from_millis(500))?;
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        conn.set_prepared_statement_cache_capacity(64);
        conn.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        conn.pragma_update(None, "page_size", options.page_bytes)?;
        conn.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        let mode: String = conn.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
        if mode != "wal" {
            return Err(DbError::Check(format!("journal mode is {mode} where WAL was asked for")));
        }
        conn.pragma_update(None, "synchronous", "FULL")?;
        // Twice what is let grow: truncating a WAL of normal size would make each commit extend it again, and every
        // extension is one more write of the file system's own.
        conn.pragma_update(None, "journal_size_limit", u64::from(options.wal_bytes) * 2)?;
        // An automatic checkpoint swallows its errors.
        conn.pragma_update(None, "wal_autocheckpoint", 0)?;
        conn.pragma_update(None, "cache_size", -i64::from(options.cache_bytes / 1024))?;
        conn.pragma_update(None, "temp_store", "MEMORY")?;
        conn.pragma_update(None, "cell_size_check", "ON")?;
        conn.pragma_update(None, "trusted_schema", "OFF")?;
        let page_bytes: usize = conn.pragma_query_value(None, "page_size", |row| row.get(0))?;
        let slot_bytes = page_bytes - SLOT_OVERHEAD;
        let slots = (options.journal_bytes as usize).div_ceil(slot_bytes).max(8);
        let mut db = Self {
            conn,
            file: file.to_owned(),
            page_bytes,
            journal: Journal::new(slot_bytes, slots, 1),
            net: Net::default(),
            packer: Packer::new()?,
            fold_due: false,
            wal_frames: 0,
        };
        db.truncate_wal()?;
        db.upgrade()?;
        Ok(db)
    }

    /// Brings the schema to today's version.
    fn upgrade(&mut self) -> Result<(), DbError> {
        let application: i32 = self.conn.pragma_query_value(None, "application_id", |row| row.get(0))?;
        let found: u32 = self.conn.pragma_query_value(None, "user_version", |row| row.get(0))?;
        let tables: i64 = self.conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        // Both numbers are in the file's head, where a changed byte looks like another program, or like a newer release.
        let again: Option<u32> = self
            .conn
            .query_row("SELECT version FROM control", [], |row| row.get(0))
            .optional()
            .ok()
            .flatten();
        if application != schema::APPLICATION_ID && tables > 0 {
            return Err(match again {
                Some(_) => DbError::Check("the application's id has changed".into()),
                None => DbError::Foreign,
            });
        }
        if again.is_some_and(|version| version != found) {
            return Err(DbError::Check("the schema's version has changed".into()));
        }
        if found > schema::VERSION {
            return Err(DbError::Newer(found));
        }
        if (tables == 0) != (found == 0) {
            return Err(DbError::Check("the schema is missing".into()));
        }
        for (version, sql) in (1..=schema::VERSION).zip(schema::UPGRADES).skip(found as usize) {
            let tx = self.conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
            tx.execute_batch(sql)?;
            tx.pragma_update(None, "application_id", schema::APPLICATION_ID)?;
            tx.pragma_update(None, "user_version", version)?;
            if version >= schema::SUMS_FROM {
                tx.execute("UPDATE control SET version = ?1", [version])?;
            }
            tx.commit()?;
        }
        Ok(())
    }

    /// For whoever looks through it.
    pub(crate) fn conn(&self) -> &Connection {
        &self.conn
    }

    /// Reads the whole file when it is small, and of a larger one what a start needs in memory; damage is an error.
    pub(crate) fn check(&self) -> Result<(), DbError> {
        let whole = self.file_bytes()? <= CHECK_BYTES_MAX;
        if whole {
            let said: String = self.conn.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
            if said != "ok" {
                return Err(DbError::Check(said));
            }
        }
        let none = |table: &str, rows: i64| match rows {
            0 => Ok(()),
            rows => Err(DbError::Check(format!("{rows} rows of {table} are not what was written"))),
        };
        for table in schema::TABLES.iter().filter(|table| whole || table.small) {
            none(table.name, schema::changed_rows(&self.conn, table)?)?;
        }
        schema::COUNTED
            .iter()
            .try_for_each(|(table, holds)| none(table, schema::not_so(&self.conn, table, holds)?))
    }

    /// Folds what the journal holds into the tables. `tolerant`: damage ends the journal instead of being an error.
    pub(crate) fn recover(&mut self, tolerant: bool) -> Result<(), DbError> {
        let generation = generation(&self.conn)?;
        let found: Vec<Vec<u8>> = self
            .conn
            .prepare("SELECT data FROM journal ORDER BY slot")?
            .query_map([], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        let (slot_bytes, slots) = (self.journal.slot_bytes(), self.journal.slots());
        let (ops, result) = match found.first().map(Vec::len) {
            Some(length) if length > 0 => journal::replay(&found.concat(), length, generation),
            _ => (Vec::new(), Ok(())),
        };
        if !tolerant {
            result?;
        }
        self.journal.restart(generation);
        let laid_out = found.len() == slots && found.iter().all(|data| data.len() == slot_bytes);
        if ops.is_empty() && laid_out {
            return Ok(());
        }
        // Beside the net of this life, which may already hold later ops than the file does.
        let mut net = Net::default();
        ops.into_iter().for_each(|op| net.apply(op));
        let tx = self.conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        self.wal_frames += fold::apply(&tx, &net, &mut self.packer, self.page_bytes)?;
        set_generation(&tx, generation.wrapping_add(1).max(1))?;
        if !laid_out {
            tx.execute("DELETE FROM journal", [])?;
            let mut insert = tx.prepare("INSERT INTO journal (slot, data) VALUES (?1, zeroblob(?2))")?;
            for slot in 0..slots {
                insert.execute(params![slot as i64, slot_bytes as i64])?;
            }
            drop(insert);
            self.wal_frames += slots as u64;
        }
        tx.commit()?;
        self.journal.restart(generation.wrapping_add(1).max(1));
        self.checkpoint_if_due(0)
    }

    /// Runs `body` as one transaction.
    pub(crate) fn transact<T>(
        &mut self,
        body: impl FnOnce(&Connection) -> Result<T, DbError>,
    ) -> Result<T, DbError> {
        let tx = self.conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let value = body(&tx)?;
        tx.commit()?;
        Ok(value)
    }

    /// Takes over ops that an earlier connection had committed. Ops are idempotent, so it does no harm where the
    /// file has them, and mends it where it lost them. They reach the file with the next fold.
    pub(crate) fn adopt(&mut self, net: Net) {
        self.net = net;
    }

    /// Gives up the connection as it is; the WAL stays.
    pub(crate) fn abandon(self) -> Net {
        self.net
    }

    /// Commits `ops`: one entry of the journal, or a fold of everything when `fold` asks for it or the journal has
    /// no room. After an error the file has all of them or none.
    pub(crate) fn commit<'a>(
        &mut self,
        ops: impl Iterator<Item = &'a Op> + Clone,
        fold: bool,
    ) -> Result<Done, DbError> {
        let planned = if fold || self.fold_due { None } else { self.plan(ops.clone()) };
        if let Some(planned) = planned {
            let tx = self.conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
            {
                let mut update = tx.prepare_cached("UPDATE journal SET data = ?2 WHERE slot = ?1")?;
                for (slot, data) in &planned.slots {
                    update.execute(params![*slot as i64, data])?;
                }
            }
            tx.commit()?;
            self.wal_frames += planned.slots.len() as u64;
            self.journal.commit(planned);
            ops.for_each(|op| self.net.apply(op.clone()));
            self.fold_due = self.net.is_count_due() && self.removes_many()?;
            return Ok(Done { folded: false });
        }
        ops.for_each(|op| self.net.apply(op.clone()));
        let generation = self.journal.generation().wrapping_add(1).max(1);
        let tx = self.conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let frames = fold::apply(&tx, &self.net, &mut self.packer, self.page_bytes)?;
        set_generation(&tx, generation)?;
        tx.commit()?;
        self.wal_frames += frames;
        self.net = Net::default();
        self.fold_due = false;
        self.journal.restart(generation);
        Ok(Done { folded: true })
    }

    /// Whether a fold would remove so many rows that it should not wait for more.
    fn removes_many(&self) -> Result<bool, DbError> {
        let mut rows = self.conn.prepare_cached(
            "SELECT count(*) FROM
             (SELECT 1 FROM queue_row WHERE queue = ?1 AND seq BETWEEN ?2 AND ?3 LIMIT ?4)",
        )?;
        let mut blocks = self.conn.prepare_cached(
            "SELECT count(*) FROM
             (SELECT 1 FROM queue_block WHERE queue = ?1 AND first BETWEEN ?2 AND ?3 LIMIT ?4)",
        )?;
        let mut left = REMOVED_ROWS_MAX;
        for (&queue, ranges) in &self.net.removed {
            for (first, last) in ranges.iter() {
                let count = |count: &mut CachedStatement<'_>, least: u64| {
                    let params = params![sql(queue.0), sql(first), sql(last), least as i64];
                    count.query_row(params, |row| row.get::<_, i64>(0)).map(|n| n as u64)
                };
                left -= count(&mut rows, left)?;
                left = left.saturating_sub(count(&mut blocks, left.div_ceil(BLOCK_ROWS))? * BLOCK_ROWS);
                if left == 0 {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Moves the journal's net into the tables.
    pub(crate) fn fold(&mut self) -> Result<(), DbError> {
        self.commit(std::iter::empty(), true).map(|_| ())
    }

    /// Folds when that is due, while nobody waits.
    pub(crate) fn fold_if_due(&mut self) -> Result<(), DbError> {
        if self.fold_due {
            self.fold()?;
        }
        Ok(())
    }

    /// A group of more than half the journal would only be written twice.
    fn plan<'a>(&mut self, ops: impl Iterator<Item = &'a Op> + Clone) -> Option<journal::Planned> {
        let most = self.journal.slot_bytes() * self.journal.slots() / 2;
        if ops.clone().map(Op::size).sum::<usize>() > most {
            return None;
        }
        let payload = self.journal.encode(ops);
        self.journal.plan(&payload)
    }

    /// Copies the WAL into the file when about `wal_bytes` were written to it.
    pub(crate) fn checkpoint_if_due(&mut self, wal_bytes: u32) -> Result<(), DbError> {
        if self.wal_frames * self.page_bytes as u64 <= u64::from(wal_bytes) {
            return Ok(());
        }
        self.checkpoint("PASSIVE")
    }

    /// Copies the WAL into the file and empties it.
    pub(crate) fn truncate_wal(&mut self) -> Result<(), DbError> {
        self.checkpoint("TRUNCATE")
    }

    fn checkpoint(&mut self, mode: &str) -> Result<(), DbError> {
        let busy: i64 =
            self.conn.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| row.get(0))?;
        if busy != 0 {
            return Err(DbError::Locked);
        }
        self.wal_frames = 0;
        Ok(())
    }

    /// Gives free pages back to the file system when there are many; true while there is more to do.
    pub(crate) fn vacuum_some(&mut self) -> Result<bool, DbError> {
        let free: u64 = self.conn.pragma_query_value(None, "freelist_count", |row| row.get(0))?;
        let free_bytes = free * self.page_bytes as u64;
        if free_bytes <= FREE_BYTES_KEPT.max(self.file_bytes()? / 4) {
            return Ok(false);
        }
        self.conn.pragma(None, "incremental_vacuum", VACUUM_PAGES, |_| Ok(()))?;
        self.wal_frames += u64::from(VACUUM_PAGES);
        Ok(true)
    }

    /// Folds, empties the WAL and closes.
    pub(crate) fn close(mut self) -> Result<(), DbError> {
        self.commit(std::iter::empty(), true)?;
        self.truncate_wal()?;
        self.conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
        self.conn.close().map_err(|(_, e)| DbError::from(e))
    }

    /// Bytes of the file as SQLite counts them, the WAL's included once they are copied.
    pub(crate) fn file_bytes(&self) -> Result<u64, DbError> {
        let pages: u64 = self.conn.pragma_query_value(None, "page_count", |row| row.get(0))?;
        Ok(pages * self.page_bytes as u64)
    }

    /// Bytes of the WAL.
    pub(crate) fn wal_bytes(&self) -> u64 {
        std::fs::metadata(crate::beside(&self.file, "-wal")).map_or(0, |m| m.len())
    }

    /// Rows of `queue` from `from` on, out of tables and journal. See [`ferrule_store::Store::read`].
    pub(crate) fn read(
        &self,
        queue: QueueId,
        from: u64,
        max_rows: u32,
        max_bytes: u32,
    ) -> Result<Vec<StoredRow>, DbError> {
        Reading::new(&self.conn, &self.net, &self.packer, queue).read(from, max_rows, max_bytes)
    }

    /// What a start needs in memory. The journal must be folded.
    pub(crate) fn restored(&self) -> Result<Restored, DbError> {
        let conn = &self.conn;
        let all = |sql: &str| conn.prepare(sql);
        let mut restored = Restored {
            sessions: all("SELECT session, record FROM session ORDER BY session")?
                .query_map([], |r| Ok((SessionId(r.get::<_, i64>(0)? as u64), blob(r, 1)?)))?
                .collect::<Result<_, _>>()?,
            subscriptions: all("SELECT session, filter, record FROM subscription ORDER BY session, filter")?
                .query_map([], |r| Ok((SessionId(r.get::<_, i64>(0)? as u64), r.get(1)?, blob(r, 2)?)))?
                .collect::<Result<_, _>>()?,
            retained: all("SELECT topic, record FROM retained ORDER BY topic")?
                .query_map([], |r| Ok((r.get(0)?, 0, blob(r, 1)?)))?
                .collect::<Result<_, _>>()?,
            state: all("SELECT rule, key, value FROM state ORDER BY rule, key")?
                .query_map([], |r| Ok((r.get::<_, i64>(0)? as u64, blob(r, 1)?, blob(r, 2)?)))?
                .collect::<Result<_, _>>()?,
            meta: all("SELECT key, value FROM meta ORDER BY key")?
                .query_map([], |r| Ok((r.get(0)?, blob(r, 1)?)))?
                .collect::<Result<_, _>>()?,
            last_body: conn.query_row("SELECT coalesce(max(id), 0) FROM body", [], |r| {
                r.get::<_, i64>(0).map(|id| id as u64)
            })?,
            ..Restored::default()
        };
        let mut select =
            all("SELECT session, side, packet_id, record FROM inflight ORDER BY session, side, packet_id")?;
        let mut rows = select.query([])?;
        while let Some(r) = rows.next()? {
            let side =
                side_from_byte(r.get(1)?).ok_or_else(|| DbError::Check("side of a packet id".into()))?;
            restored.inflight.push((SessionId(r.get::<_, i64>(0)? as u64), side, r.get(2)?, blob(r, 3)?));
        }
        restored.queues = self.queues()?;
        Ok(restored)
    }

    /// What each queue that is not empty holds, by the tables.
    pub(crate) fn queues(&self) -> Result<Vec<QueueSummary>, DbError> {
        let mut queues = Vec::new();
        // Lowest and highest number are a seek each; the two in one statement would be a scan.
        let mut select = self.conn.prepare(
            "SELECT queue, count, size, (SELECT min(seq) FROM queue_row r WHERE r.queue = q.queue),
                    (SELECT max(seq) FROM queue_row r WHERE r.queue = q.queue),
                    (SELECT min(first) FROM queue_block b WHERE b.queue = q.queue),
                    (SELECT last FROM queue_block b WHERE b.queue = q.queue ORDER BY first DESC LIMIT 1)
             FROM queue q ORDER BY queue",
        )?;
        let mut rows = select.query([])?;
        while let Some(r) = rows.next()? {
            let number = |i: usize| r.get::<_, Option<i64>>(i).map(|n| n.map(|n| n as u64));
            queues.push(QueueSummary {
                queue: QueueId(number(0)?.unwrap_or(0)),
                rows: number(1)?.unwrap_or(0),
                bytes: number(2)?.unwrap_or(0),
                first: [number(3)?, number(5)?].into_iter().flatten().min().unwrap_or(0),
                last: number(4)?.max(number(6)?).unwrap_or(0),
            });
        }
        Ok(queues)
    }
}

/// Opens without any pragma.
pub(crate) fn connect(file: &Path, vfs: Option<&str>) -> Result<Connection, DbError> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = match vfs {
        Some(vfs) => Connection::open_with_flags_and_vfs(file, flags, vfs)?,
        None => Connection::open_with_flags(file, flags)?,
    };
    sum::register(&conn)?;
    Ok(conn)
}

/// SQL's integers are signed. Numbers of rows, rules and bodies have 63 bits; only an open end is more.
pub(crate) fn sql(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

pub(crate) fn blob(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<Bytes> {
    Ok(Bytes::copy_from_slice(row.get_ref(column)?.as_blob()?))
}

fn set_generation(conn: &Connection, generation: u32) -> Result<(), DbError> {
    conn.prepare_cached("UPDATE control SET generation = ?1, sum = ferrule_sum(?1) WHERE id = 0")?
        .execute([generation])?;
    Ok(())
}

/// The journal's, of the slots that count.
pub(crate) fn generation(conn: &Connection) -> Result<u32, DbError> {
    let (generation, whole): (u32, bool) = conn.query_row(
        "SELECT generation, sum IS ferrule_sum(generation) FROM control WHERE id = 0",
        [],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    if whole { Ok(generation) } else { Err(DbError::Check("the journal's generation has changed".into())) }
}
