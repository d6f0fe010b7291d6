//! A damaged file is moved aside and what can be read of it is kept.
//!
//! Steps, in an order that a kill between any two of them does not hurt:
//! 1. copy the readable rows into `ferrule.db.salvage` (begun anew when killed here);
//! 2. rename that to `ferrule.db.salvaged`: from here on the decision stands, and a start finishes the rest;
//! 3. move the old file's `-wal` and `-shm` aside, then the old file (a new file beside an old WAL would be damage
//!    made by ourselves);
//! 4. rename `ferrule.db.salvaged` to `ferrule.db`.

use crate::db::{Db, connect};
use crate::error::{DbError, Kind};
use crate::net::Net;
use crate::{FILE, Options, beside, journal, schema};
use rusqlite::types::Value;
use rusqlite::{Connection, config::DbConfig, params_from_iter};
use std::fmt;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// What was found damaged, and what is left of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// What SQLite or the journal's checksum said.
    pub reason: String,
    /// Where the damaged file lies now.
    pub aside: PathBuf,
    /// Rows kept, by table.
    pub kept: Vec<(&'static str, u64)>,
    /// Tables that could not be read to their end, with what was said: rows of these are lost.
    pub incomplete: Vec<(&'static str, String)>,
    /// Queue rows given up because the body that they share is gone.
    pub without_body: u64,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the store was damaged ({}); it lies at {} now; kept:", self.reason, self.aside.display())?;
        for (table, rows) in self.kept.iter().filter(|(_, rows)| *rows > 0) {
            write!(f, " {rows} of {table},")?;
        }
        if self.incomplete.is_empty() && self.without_body == 0 {
            return f.write_str(" nothing was found missing");
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
    for suffix in ["-wal", "-shm", ""] {
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
    let mut damage =
        Damage { reason, aside: PathBuf::new(), kept: Vec::new(), incomplete: Vec::new(), without_body: 0 };
    let mut new = Db::open(&fresh, options)?;
    new.recover(false)?;
    if empty {
        damage.incomplete.push(("everything", "what was kept could not be used".into()));
    } else {
        let old = connect(&file, options.vfs.as_deref())?;
        old.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
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
    new.transact(|tx| {
        for &(table, columns, key) in schema::SALVAGED {
            let (rows, result) = copy_table(old, tx, table, columns, key)?;
            damage.kept.push((table, rows));
            damage.incomplete.extend(result.err().map(|said| (table, said)));
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
        tx.execute_batch(
            "CREATE TEMP TABLE refs AS SELECT shared AS id, count(*) AS n FROM queue_row
                 WHERE shared IS NOT NULL GROUP BY shared;
             DELETE FROM body WHERE id NOT IN (SELECT id FROM refs);
             UPDATE body SET refs = (SELECT n FROM refs WHERE refs.id = body.id);
             DROP TABLE refs;
             DELETE FROM queue;
             INSERT INTO queue SELECT queue, count(*), sum(size) FROM queue_row GROUP BY queue;",
        )?;
        Ok(lost as u64)
    })?;
    Ok(())
}

/// Walks a table from its low end, and when that meets damage, from its high end. The inner error is the old
/// file's, the outer one the new file's.
fn copy_table(
    old: &Connection,
    new: &Connection,
    table: &str,
    columns: &str,
    key: &[&str],
) -> Result<(u64, Result<(), String>), DbError> {
    let count = columns.split(',').count();
    let places: Vec<String> = (1..=count).map(|i| format!("?{i}")).collect();
    let mut insert =
        new.prepare(&format!("INSERT OR IGNORE INTO {table} ({columns}) VALUES ({})", places.join(", ")))?;
    let mut kept = 0;
    let mut said = String::new();
    for direction in ["ASC", "DESC"] {
        let order: Vec<String> = key.iter().map(|k| format!("{k} {direction}")).collect();
        let select = format!("SELECT {columns} FROM {table} ORDER BY {}", order.join(", "));
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
                    Ok(Some(row)) => {
                        let values: rusqlite::Result<Vec<Value>> = (0..count).map(|i| row.get(i)).collect();
                        match values {
                            Ok(values) => kept += insert.execute(params_from_iter(values))? as u64,
                            Err(e) => return Ok(Err(e)),
                        }
                    }
                    Ok(None) => return Ok(Ok(())),
                    Err(e) => return Ok(Err(e)),
                }
            }
        };
        match walk()? {
            Ok(()) => return Ok((kept, if said.is_empty() { Ok(()) } else { Err(said) })),
            Err(e) => said = e.to_string(),
        }
    }
    Ok((kept, Err(said)))
}

/// The journal up to its first unreadable slot.
fn read_journal(old: &Connection) -> Result<(Vec<ferrule_store::Op>, Result<(), DbError>), DbError> {
    let generation: u32 =
        old.query_row("SELECT generation FROM control WHERE id = 0", [], |row| row.get(0))?;
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
    let (ops, replayed) = journal::replay(&slots.concat(), length, generation);
    Ok((ops, replayed.map_err(DbError::from).and(result)))
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
            kept: Vec::new(),
            incomplete: vec![("some tables", "see the log of the last run".into())],
            without_body: 0,
        });
    }
    if let Some(reason) = force {
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
