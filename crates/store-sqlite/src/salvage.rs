//! A damaged file is moved aside and what can be read of it is kept.
//!
//! A row that is not what was written (`sum.rs`) is not kept: it stays in the old file, for whoever wants to look.
//! A WAL with a changed byte in it would end there for SQLite, which takes it for the end of a commit that a power cut
//! interrupted; it is mended first (`wal.rs`), so that only the changed page is in question.
//!
//! Steps, in an order that a kill between any two of them does not hurt:
//! 1. copy the readable rows into `ferrule.db.salvage` (begun anew when killed here);
//! 2. rename that to `ferrule.db.salvaged`: from here on the decision stands, and a start finishes the rest;
//! 3. move the old file's `-wal` and `-shm` aside, then the old file (a new file beside an old WAL would be damage
//!    made by ourselves);
//! 4. rename `ferrule.db.salvaged` to `ferrule.db`.

use crate::db::{Db, connect, generation};
use crate::error::{DbError, Kind};
use crate::net::Net;
use crate::{FILE, Options, beside, journal, schema, wal};
use rusqlite::types::Value;
use rusqlite::{Connection, config::DbConfig, params_from_iter};
use std::fmt;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// What was found damaged, and what is left of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Damage {
    /// What SQLite or the journal's checksum said.
    pub reason: String,
    /// Where the damaged file lies now.
    pub aside: PathBuf,
    /// Rows kept, by table.
    pub kept: Vec<(&'static str, u64)>,
    /// Tables that could not be read to their end, with what was said: rows of these are lost.
    pub incomplete: Vec<(&'static str, String)>,
    /// Rows that were not what was written, by table: lost.
    pub changed: Vec<(&'static str, u64)>,
    /// Queue rows given up because the body that they share is gone.
    pub without_body: u64,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the store was damaged ({}); it lies at {} now; kept:", self.reason, self.aside.display())?;
        for (table, rows) in self.kept.iter().filter(|(_, rows)| *rows > 0) {
            write!(f, " {rows} of {table},")?;
        }
        if self.incomplete.is_empty() && self.changed.is_empty() && self.without_body == 0 {
            return f.write_str(" nothing was found missing");
        }
        for (table, rows) in &self.changed {
            write!(f, " {rows} of {table} were not what was written and are lost,")?;
        }
        for (table, said) in &self.incomplete {
            write!(f, " {table} could not be read to its end ({said}),")?;
        }
        write!(f, " {} queue rows had lost their body", self.without_body)
    }
}

/// Finishes a move that a kill interrupted. Call before the file is opened.
pub(crate) fn finish_move(folder: &Path) -> Result<Option<PathBuf>, DbError> {
    let file = folder.join(FILE);
    let salvaged = beside(&file, ".salvaged");
    if !salvaged.exists() {
        return Ok(None);
    }
    let seconds = ferrule_clock::wall_s();
    let mut aside = beside(&file, &format!(".corrupt-{seconds}"));
    let mut n = 1;
    while aside.exists() {
        aside = beside(&file, &format!(".corrupt-{seconds}-{n}"));
        n += 1;
    }
    for suffix in [wal::AS_FOUND, "-wal", "-shm", ""] {
        move_if_there(&beside(&file, suffix), &beside(&aside, suffix))?;
    }
    fs::rename(&salvaged, &file)?;
    File::open(folder)?.sync_all()?;
    Ok(Some(aside))
}

fn move_if_there(from: &Path, to: &Path) -> Result<(), DbError> {
    match fs::rename(from, to) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e.into()),
        _ => Ok(()),
    }
}

/// Replaces the damaged file by one with what can be read of it; with nothing when `empty`.
pub(crate) fn salvage(
    folder: &Path,
    options: &Options,
    reason: String,
    empty: bool,
) -> Result<Damage, DbError> {
    let file = folder.join(FILE);
    let fresh = beside(&file, ".salvage");
    for suffix in ["-wal", "-shm", ""] {
        match fs::remove_file(beside(&fresh, suffix)) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e.into()),
            _ => {}
        }
    }
    let mut damage = Damage { reason, ..Damage::default() };
    let mut new = Db::open(&fresh, options)?;
    new.recover(false)?;
    if empty {
        damage.incomplete.push(("everything", "what was kept could not be used".into()));
    } else {
        let old = connect_alone(&file, options)?;
        copy_all(&old, &mut new, &mut damage)?;
    }
    new.close()?;
    File::open(&fresh)?.sync_all()?;
    fs::rename(&fresh, beside(&file, ".salvaged"))?;
    File::open(folder)?.sync_all()?;
    damage.aside = finish_move(folder)?.unwrap_or(file);
    Ok(damage)
}

fn copy_all(old: &Connection, new: &mut Db, damage: &mut Damage) -> Result<(), DbError> {
    // By the columns that there are: the version in the file's head may be what has changed.
    let has_sums = old.prepare("SELECT version, sum FROM control").is_ok();
    new.transact(|tx| {
        for table in schema::TABLES {
            let copied = copy_table(old, tx, table, has_sums)?;
            damage.kept.push((table.name, copied.kept));
            damage.incomplete.extend(copied.said.map(|said| (table.name, said)));
            damage.changed.extend((copied.changed > 0).then_some((table.name, copied.changed)));
        }
        Ok(())
    })?;
    match read_journal(old) {
        Ok((ops, result)) => {
            damage.incomplete.extend(result.err().map(|said| ("journal", said.to_string())));
            damage.kept.push(("journal", ops.len() as u64));
            let mut net = Net::default();
            ops.into_iter().for_each(|op| net.apply(op));
            new.adopt(net);
            new.commit(std::iter::empty(), true)?;
        }
        Err(e) => damage.incomplete.push(("journal", e.to_string())),
    }
    damage.without_body = new.transact(|tx| {
        let lost = tx.execute(
            "DELETE FROM queue_row WHERE shared IS NOT NULL AND shared NOT IN (SELECT id FROM body)",
            [],
        )?;
        tx.execute_batch(&format!(
            "CREATE TEMP TABLE refs AS SELECT shared AS id, count(*) AS n FROM queue_row
                 WHERE shared IS NOT NULL GROUP BY shared;
             DELETE FROM body WHERE id NOT IN (SELECT id FROM refs);
             UPDATE body SET refs = (SELECT n FROM refs WHERE refs.id = body.id);
             UPDATE body SET refs_again = refs;
             DROP TABLE refs;
             DELETE FROM queue;
             INSERT INTO queue (queue, count, size) {};
             UPDATE queue SET sum = ferrule_sum(queue, count, size);",
            schema::COUNT
        ))?;
        Ok(lost as u64)
    })?;
    Ok(())
}

/// What came of one table.
#[derive(Default)]
struct Copied {
    kept: u64,
    /// Rows that were not what was written: left out.
    changed: u64,
    /// Why its end was not reached from one side.
    said: Option<String>,
}

/// Walks a table from its low end, and when that meets damage, from its high end. The error is the new file's.
fn copy_table(
    old: &Connection,
    new: &Connection,
    table: &schema::Table,
    has_sums: bool,
) -> Result<Copied, DbError> {
    let &schema::Table { name, key, summed, beside, .. } = table;
    let columns = [summed, beside].into_iter().filter(|c| !c.is_empty()).collect::<Vec<_>>().join(", ");
    let places = |columns: &str| {
        (1..=columns.split(',').count()).map(|i| format!("?{i}")).collect::<Vec<_>>().join(", ")
    };
    let mut insert = new.prepare(&format!(
        "INSERT OR IGNORE INTO {name} ({columns}, sum) VALUES ({}, ferrule_sum({}))",
        places(&columns),
        places(summed)
    ))?;
    let count = columns.split(',').count();
    // The sum of a file of before sums is not asked for: there is no such column.
    let whole = if has_sums { format!("sum IS ferrule_sum({summed})") } else { "1".into() };
    let mut copied = Copied::default();
    for direction in ["ASC", "DESC"] {
        let order: Vec<String> = key.iter().map(|k| format!("{k} {direction}")).collect();
        let select = format!("SELECT {columns}, {whole} FROM {name} ORDER BY {}", order.join(", "));
        // Those that the walk from the other end has met are met again where it meets no damage.
        let mut changed = 0;
        let mut walk = || -> Result<rusqlite::Result<()>, DbError> {
            let mut select = match old.prepare(&select) {
                Ok(select) => select,
                Err(e) => return Ok(Err(e)),
            };
            let mut rows = match select.query([]) {
                Ok(rows) => rows,
                Err(e) => return Ok(Err(e)),
            };
            loop {
                match rows.next() {
                    Ok(Some(row)) => match row.get(count) {
                        Ok(true) => {
                            let values: rusqlite::Result<Vec<Value>> =
                                (0..count).map(|i| row.get(i)).collect();
                            match values {
                                Ok(values) => copied.kept += insert.execute(params_from_iter(values))? as u64,
                                Err(e) => return Ok(Err(e)),
                            }
                        }
                        Ok(false) => changed += 1,
                        Err(e) => return Ok(Err(e)),
                    },
                    Ok(None) => return Ok(Ok(())),
                    Err(e) => return Ok(Err(e)),
                }
            }
        };
        let walked = walk()?;
        copied.changed += changed;
        match walked {
            Ok(()) => return Ok(copied),
            Err(e) => copied.said = Some(e.to_string()),
        }
    }
    Ok(copied)
}

/// The journal up to its first unreadable slot.
fn read_journal(old: &Connection) -> Result<(Vec<ferrule_store::Op>, Result<(), DbError>), DbError> {
    let mut select = old.prepare("SELECT data FROM journal ORDER BY slot")?;
    let mut rows = select.query([])?;
    let mut slots: Vec<Vec<u8>> = Vec::new();
    let mut result = Ok(());
    loop {
        match rows.next() {
            Ok(Some(row)) => slots.push(row.get(0)?),
            Ok(None) => break,
            Err(e) => {
                result = Err(DbError::from(e));
                break;
            }
        }
    }
    let Some(length) = slots.first().map(Vec::len).filter(|&n| n > 0) else {
        return Ok((Vec::new(), result));
    };
    // Without `control` what the first slot says: if that was folded already, applying it again changes nothing.
    let generation = generation(old).ok().or_else(|| {
        let first = slots.first()?.first_chunk()?;
        Some(u32::from_le_bytes(*first))
    });
    let (ops, replayed) = journal::replay(&slots.concat(), length, generation.unwrap_or_default());
    Ok((ops, replayed.map_err(DbError::from).and(result)))
}

/// Opens the damaged file to read it, without an index of the WAL in shared memory.
fn connect_alone(file: &Path, options: &Options) -> Result<Connection, DbError> {
    let old = connect(file, options.vfs.as_deref())?;
    old.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    old.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    Ok(old)
}

/// Whether the schema can be read, without which nothing can.
fn is_readable(file: &Path, options: &Options) -> bool {
    connect_alone(file, options)
        .is_ok_and(|old| old.query_row("SELECT generation FROM control", [], |_| Ok(())).is_ok())
}

/// Opens the store of `folder`, ready for use: checked, recovered, and salvaged when damaged (or `force`d).
pub(crate) fn open(
    folder: &Path,
    options: &Options,
    force: Option<String>,
) -> Result<(Db, Option<Damage>), DbError> {
    let file = folder.join(FILE);
    let mut damage = None;
    if let Some(aside) = finish_move(folder)? {
        damage = Some(Damage {
            reason: "found in the last run, which did not end in order".into(),
            aside,
            incomplete: vec![("some tables", "see the log of the last run".into())],
            ..Damage::default()
        });
    }
    // Before SQLite opens the WAL, copies what it takes for whole, and empties it.
    let mended = wal::mend(&file)?;
    if mended.is_some() && !is_readable(&file, options) {
        wal::put_back(&file)?;
    }
    if let Some(reason) = force.or(mended) {
        damage = Some(salvage(folder, options, reason, false)?);
    }
    let attempt = || {
        let mut db = Db::open(&file, options)?;
        db.check()?;
        db.recover(false)?;
        // Reading all small tables is part of being usable.
        db.restored()?;
        Ok::<_, DbError>(db)
    };
    for empty in [false, true] {
        match attempt() {
            Err(e) if e.kind() == Kind::Corrupt => {
                damage = Some(salvage(folder, options, e.to_string(), empty)?);
            }
            other => return Ok((other?, damage)),
        }
    }
    Ok((attempt()?, damage))
}
