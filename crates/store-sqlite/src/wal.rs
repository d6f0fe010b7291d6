//! A write-ahead log in which bytes have changed: told from one that a power cut ended, and mended.
//!
//! # Constraints
//! SQLite reads the log up to the first frame whose checksum is wrong and forgets the rest: that is what a power cut in the
//! middle of a commit leaves, and nobody was told that such a commit was done. One changed byte looks the same, and all the
//! commits behind it, which were acknowledged, would be gone without a word.
//!
//! # Invariant
//! A commit is synced before the next one is begun (`synchronous = FULL`), and each opening empties the log. So a power cut
//! leaves no frame of this log behind the last frame of the commit that it interrupted. If there is one, bytes have changed. A commit that
//! failed, for want of space, leaves frames too, over which a shorter one might come that is interrupted: so each opening cuts the log
//! behind its last whole commit, before anything is written.
//! (What changed in the last
//! commit of all, or hides that there was another behind it, cannot be told from a power cut.)
//!
//! # Operation
//! A frame's checksum goes on from the one that stands in the frame before, so each can be checked by itself. Where few have changed
//! [`mend`] computes the checksums anew, up to the last commit: then SQLite reads them all, and what
//! changed in a page is found by what is in the page: SQLite's own checks, the journal's, and the rows' sums. Where many have (a medium
//! that says it has synced and has not), the pages would not fit together: SQLite reads up to the first of them, as ever, and the rest is told to
//! be lost. The log as it was found is kept beside it. The format is that of <https://www.sqlite.org/fileformat2.html#the_write_ahead_log>; all
//! numbers are big-endian.

use crate::beside;
use crate::error::DbError;
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, ErrorKind, Read, Write};
use std::path::Path;

/// The log as it was found, beside the store's file.
pub(crate) const AS_FOUND: &str = "-wal.as-found";

const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;
/// Checksums over little-endian words, and over big-endian ones.
const MAGIC: [u32; 2] = [0x377f_0682, 0x377f_0683];

/// Changed frames that are mended at most, and of how many in all one.
const MENDED_MAX: usize = 16;
const MENDED_OF: usize = 4;

/// Looks through the log beside `file`, mends it when bytes of it have changed, and says so.
pub(crate) fn mend(file: &Path) -> Result<Option<String>, DbError> {
    let wal = beside(file, "-wal");
    let Some(found) = Found::read(&wal, page_bytes(file)?)? else { return Ok(None) };
    if !found.is_damaged() {
        found.cut(&wal)?;
        return Ok(None);
    }
    if found.changed <= MENDED_MAX && found.changed * MENDED_OF <= found.frames {
        fs::copy(&wal, beside(file, AS_FOUND))?;
        let mended = beside(file, "-wal.mended");
        found.write_mended(&wal, &mended)?;
        replace(&mended, &wal)?;
    }
    Ok(Some(if found.head_is_whole {
        format!("{} of {} frames of the write-ahead log have changed", found.changed, found.frames)
    } else {
        "the head of the write-ahead log has changed".to_owned()
    }))
}

/// Puts the log back as it was found, if it was mended.
pub(crate) fn put_back(file: &Path) -> Result<(), DbError> {
    let found = beside(file, AS_FOUND);
    if found.exists() { replace(&found, &beside(file, "-wal")) } else { Ok(()) }
}

fn replace(by: &Path, file: &Path) -> Result<(), DbError> {
    fs::rename(by, file)?;
    if let Some(folder) = file.parent() {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// The page size as the database's head says; none: there is no database, or that is damaged.
fn page_bytes(file: &Path) -> Result<Option<usize>, DbError> {
    let mut head = [0; 18];
    match File::open(file).and_then(|mut file| file.read_exact(&mut head)) {
        Ok(()) => {}
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof) => return Ok(None),
        Err(e) => return Err(e.into()),
    }
    Ok(match u16::from_be_bytes([head[16], head[17]]) {
        1 => Some(1 << 16),
        size if size.is_power_of_two() && size >= 512 => Some(usize::from(size)),
        _ => None,
    })
}

/// What is in a log.
struct Found {
    page_bytes: usize,
    /// As it is, or what should be there.
    head: [u8; HEADER],
    head_is_whole: bool,
    /// Frames in which something has changed.
    changed: usize,
    /// From the first of them on, the first frame that ends a commit.
    interrupted: Option<usize>,
    /// Up to the last frame of this log.
    frames: usize,
    /// Up to the last frame that ends a commit with nothing changed before it: what SQLite reads.
    sound: usize,
    /// Up to the last of them that ends a commit.
    to_commit: usize,
}

impl Found {
    /// None: there is no log with a frame in it.
    fn read(wal: &Path, page_bytes: Option<usize>) -> Result<Option<Self>, DbError> {
        let mut input = match File::open(wal) {
            Ok(file) => BufReader::with_capacity(64 << 10, file),
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let mut head = [0; HEADER];
        if !fill(&mut input, &mut head)? {
            return Ok(None);
        }
        let chain = Chain::begin(&head);
        let head_is_whole = MAGIC.contains(&number(&head)) && chain.sums == sums(&head[24..]);
        let page_bytes = if head_is_whole { Some(number(&head[8..]) as usize) } else { page_bytes };
        let Some(page_bytes) = page_bytes else { return Ok(None) };
        let mut found = Self {
            page_bytes,
            head,
            head_is_whole,
            changed: 0,
            interrupted: None,
            frames: 0,
            sound: 0,
            to_commit: 0,
        };
        found.read_frames(input, chain)?;
        Ok((found.frames > 0).then_some(found))
    }

    fn read_frames(&mut self, mut input: impl Read, mut chain: Chain) -> Result<(), DbError> {
        let mut frame = vec![0; FRAME_HEADER + self.page_bytes];
        // Frames of the log before this one may follow, or, where salts have changed, frames of this one.
        let (mut n, mut strangers) = (0, 0);
        while fill(&mut input, &mut frame)? {
            n += 1;
            if n == 1 && !self.head_is_whole {
                self.head = whole_head(self.page_bytes, &frame[8..16]);
            }
            let said = sums(&frame[16..]);
            if frame[8..16] == self.head[16..24] {
                chain.add(&frame[..8]);
                chain.add(&frame[FRAME_HEADER..]);
                // Of the first one behind another head nobody knows.
                let is_whole = chain.sums == said || (n == 1 && !self.head_is_whole);
                self.changed += std::mem::take(&mut strangers) + usize::from(!is_whole);
                self.frames = n;
                if number(&frame[4..]) != 0 {
                    self.to_commit = n;
                    if self.changed > 0 {
                        self.interrupted.get_or_insert(n);
                    } else {
                        self.sound = n;
                    }
                }
            } else {
                strangers += 1;
            }
            chain.sums = said;
        }
        Ok(())
    }

    /// Whether bytes have changed that no power cut changes.
    fn is_damaged(&self) -> bool {
        match self.head_is_whole {
            true => self.interrupted.is_some_and(|interrupted| self.frames > interrupted),
            false => self.to_commit > 0,
        }
    }

    /// Cuts off what is behind the last whole commit.
    fn cut(&self, wal: &Path) -> Result<(), DbError> {
        let bytes = (HEADER + self.sound * (FRAME_HEADER + self.page_bytes)) as u64;
        if self.head_is_whole && fs::metadata(wal)?.len() > bytes {
            let file = File::options().write(true).open(wal)?;
            file.set_len(bytes)?;
            file.sync_all()?;
        }
        Ok(())
    }

    /// The log with checksums that fit what is in it, up to its last commit.
    fn write_mended(&self, wal: &Path, mended: &Path) -> Result<(), DbError> {
        let mut input = BufReader::with_capacity(64 << 10, File::open(wal)?);
        let mut output = BufWriter::with_capacity(64 << 10, File::create(mended)?);
        let mut frame = vec![0; FRAME_HEADER + self.page_bytes];
        fill(&mut input, &mut frame[..HEADER])?;
        output.write_all(&self.head)?;
        let mut chain = Chain::begin(&self.head);
        for _ in 0..self.to_commit {
            fill(&mut input, &mut frame)?;
            // No page has the number 0: SQLite would stop there. What it was cannot be known.
            if number(&frame) == 0 {
                continue;
            }
            frame[8..16].copy_from_slice(&self.head[16..24]);
            chain.add(&frame[..8]);
            chain.add(&frame[FRAME_HEADER..]);
            put(&mut frame[16..], chain.sums);
            output.write_all(&frame)?;
        }
        output.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
        Ok(())
    }
}

/// A head for frames with these salts.
fn whole_head(page_bytes: usize, salts: &[u8]) -> [u8; HEADER] {
    let mut head = [0; HEADER];
    put(&mut head, [MAGIC[0], 3_007_000]);
    put(&mut head[8..], [page_bytes as u32, 0]);
    head[16..24].copy_from_slice(salts);
    let chain = Chain::begin(&head);
    put(&mut head[24..], chain.sums);
    head
}

/// The checksum that each frame goes on with.
struct Chain {
    little_endian: bool,
    sums: [u32; 2],
}

impl Chain {
    fn begin(head: &[u8; HEADER]) -> Self {
        let mut chain = Self { little_endian: number(head) != MAGIC[1], sums: [0; 2] };
        chain.add(&head[..24]);
        chain
    }

    /// Over a multiple of eight bytes.
    fn add(&mut self, bytes: &[u8]) {
        let [mut a, mut b] = self.sums;
        let word = |bytes: [u8; 4]| {
            if self.little_endian { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) }
        };
        for &[x0, x1, x2, x3, y0, y1, y2, y3] in bytes.as_chunks().0 {
            a = a.wrapping_add(word([x0, x1, x2, x3])).wrapping_add(b);
            b = b.wrapping_add(word([y0, y1, y2, y3])).wrapping_add(a);
        }
        self.sums = [a, b];
    }
}

fn number(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

fn sums(bytes: &[u8]) -> [u32; 2] {
    [number(bytes), number(&bytes[4..])]
}

fn put(bytes: &mut [u8], [a, b]: [u32; 2]) {
    bytes[..4].copy_from_slice(&a.to_be_bytes());
    bytes[4..8].copy_from_slice(&b.to_be_bytes());
}

/// False: the file ends before that.
fn fill(input: &mut impl Read, bytes: &mut [u8]) -> Result<bool, DbError> {
    match input.read_exact(bytes) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use rusqlite::Connection;

    fn insert(conn: &Connection, rows: u32) {
        conn.execute_batch("BEGIN").unwrap();
        for _ in 0..rows {
            conn.execute("INSERT INTO t VALUES (randomblob(4000))", ()).unwrap();
        }
        conn.execute_batch("COMMIT").unwrap();
    }

    fn rows(file: &Path) -> u32 {
        let conn = Connection::open(file).unwrap();
        conn.query_row("SELECT count(*) FROM t", (), |row| row.get(0)).unwrap()
    }

    /// A long commit fails, a short one comes over it, and the power is cut in that: nothing has changed that a power cut does not change.
    #[test]
    fn what_a_failed_commit_left_is_not_taken_for_damage() {
        let folder = tempfile::tempdir().unwrap();
        let (live, file) = (folder.path().join("live"), folder.path().join("cut"));
        let conn = Connection::open(&live).unwrap();
        conn.execute_batch("PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; CREATE TABLE t (x)")
            .unwrap();
        insert(&conn, 3);
        let wal = || fs::read(beside(&live, "-wal")).unwrap();
        let whole = wal();
        let frame = FRAME_HEADER + 4096;
        // The commit of eight pages came but for its last one and a half: the disk was full.
        insert(&conn, 8);
        let mut failed = wal();
        failed.truncate(failed.len() - frame - frame / 2);
        fs::copy(&live, &file).unwrap();
        fs::write(beside(&file, "-wal"), &failed).unwrap();
        assert_eq!(mend(&file).unwrap(), None);
        assert_eq!(fs::read(beside(&file, "-wal")).unwrap(), whole, "what failed is gone");
        assert_eq!(rows(&file), 3);
        // Without that: a short commit over it, of whose frames one is torn.
        let other = folder.path().join("other");
        fs::copy(&live, &other).unwrap();
        fs::write(beside(&other, "-wal"), &whole).unwrap();
        let conn = Connection::open(&other).unwrap();
        conn.execute_batch("PRAGMA wal_autocheckpoint = 0").unwrap();
        insert(&conn, 2);
        let mut short = fs::read(beside(&other, "-wal")).unwrap();
        assert!(short.len() < failed.len());
        short[whole.len() + frame / 2] ^= 1;
        let mut both = short.clone();
        both.extend(&failed[short.len()..]);
        fs::write(beside(&file, "-wal"), &both).unwrap();
        assert!(
            Found::read(&beside(&file, "-wal"), None).unwrap().unwrap().is_damaged(),
            "what the cut is for"
        );
        fs::write(beside(&file, "-wal"), &short).unwrap();
        assert_eq!(mend(&file).unwrap(), None);
        assert_eq!(rows(&file), 3);
    }
}
