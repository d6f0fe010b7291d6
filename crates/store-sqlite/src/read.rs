//! Reading a queue: rows of their own, blocks and what is in the journal, in the order of their numbers.

use crate::block::{Packer, Wanted};
use crate::db::{blob, sql};
use crate::error::DbError;
use crate::net::Net;
use ferrule_store::{QueueId, StoredRow};
use rusqlite::{Connection, Row, params};
use std::time::{Duration, Instant};

/// A read is at most this long, so that commits never wait for a drain.
const READ_TIME: Duration = Duration::from_millis(2);
/// A read is at most this many rows.
const READ_ROWS: usize = 256;

/// Blocks of queue ?1 with rows of numbers ?2 to ?3, and it may be one before them.
pub(crate) const BLOCKS: &str = "
    SELECT id, first, last, count, size, sum IS ferrule_sum(queue, first, last, count, size, gone, data), gone, data
    FROM queue_block WHERE queue = ?1 AND first <= ?3
    AND first >= coalesce((SELECT max(first) FROM queue_block WHERE queue = ?1 AND first <= ?2), 0) ORDER BY first";

/// A row of `queue_block`.
pub(crate) struct Block<'a> {
    pub(crate) id: i64,
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) count: i64,
    pub(crate) size: i64,
    pub(crate) gone: &'a [u8],
    pub(crate) data: &'a [u8],
}

impl<'a> Block<'a> {
    /// Of [`BLOCKS`]; one that is not what was written is an error.
    pub(crate) fn read(queue: QueueId, row: &'a Row<'_>) -> Result<Self, DbError> {
        let first = row.get::<_, i64>(1)? as u64;
        if !row.get(5)? {
            return Err(DbError::Check(format!(
                "the block of rows from {first} of queue {} is not what was written",
                queue.0
            )));
        }
        let blob = |column: usize| row.get_ref(column)?.as_blob().map_err(|e| DbError::Check(e.to_string()));
        Ok(Self {
            id: row.get(0)?,
            first,
            last: row.get::<_, i64>(2)? as u64,
            count: row.get(3)?,
            size: row.get(4)?,
            gone: blob(6)?,
            data: blob(7)?,
        })
    }
}

/// One read.
pub(crate) struct Reading<'a> {
    conn: &'a Connection,
    /// What the journal appends and removes.
    net: &'a Net,
    packer: &'a Packer,
    queue: QueueId,
    until: Instant,
}

/// Rows of one place.
struct Part {
    rows: Vec<StoredRow>,
    /// Whether they are all that there are.
    complete: bool,
}

impl Part {
    /// Up to which number nothing is missing.
    fn end(&self) -> u64 {
        if self.complete { u64::MAX } else { self.rows.last().map_or(0, |row| row.seq) }
    }
}

/// How much is wanted still.
struct Room {
    rows: usize,
    bytes: usize,
}

impl Room {
    /// Whether a row of so many bytes is the last.
    fn take(&mut self, bytes: usize) -> bool {
        (self.rows, self.bytes) = (self.rows.saturating_sub(1), self.bytes.saturating_sub(bytes));
        self.is_full()
    }

    fn is_full(&self) -> bool {
        self.rows == 0 || self.bytes == 0
    }
}

impl<'a> Reading<'a> {
    pub(crate) fn new(conn: &'a Connection, net: &'a Net, packer: &'a Packer, queue: QueueId) -> Self {
        Self { conn, net, packer, queue, until: Instant::now() + READ_TIME }
    }

    pub(crate) fn read(&self, from: u64, max_rows: u32, max_bytes: u32) -> Result<Vec<StoredRow>, DbError> {
        let room =
            || Room { rows: (max_rows as usize).clamp(1, READ_ROWS), bytes: (max_bytes as usize).max(1) };
        let single = self.single(from, room())?;
        let packed = self.packed(from, room())?;
        if single.complete && packed.complete {
            self.check_count()?;
        }
        // Behind an unfinished part there may be rows that come before those of the others.
        let end = single.end().min(packed.end());
        let young =
            self.net.appended.get(&self.queue).into_iter().flat_map(|rows| rows.range(from, end)).map(
                |(seq, head, body)| StoredRow { seq: *seq, head: head.clone(), body: body.bytes().clone() },
            );
        let mut rows = match (single.rows.is_empty(), packed.rows.is_empty()) {
            (false, true) => single.rows,
            (true, _) => packed.rows,
            (false, false) => {
                let mut rows = single.rows;
                rows.extend(packed.rows);
                rows
            }
        };
        rows.extend(young);
        // Stable: an append to a number that is there does nothing. Mostly it is in order already.
        rows.sort_by_key(|row| row.seq);
        rows.dedup_by_key(|row| row.seq);
        let mut room = room();
        let enough = rows.iter().position(|row| row.seq > end || room.take(row.head.len() + row.body.len()));
        if let Some(at) = enough {
            rows.truncate(at + usize::from(rows[at].seq <= end));
        }
        Ok(rows)
    }

    /// The end of the range that the journal removes from the tables, if `seq` is in one.
    fn removed_to(&self, seq: u64) -> Option<u64> {
        self.net.removed.get(&self.queue).and_then(|ranges| ranges.end_of(seq))
    }

    /// From `queue_row`.
    fn single(&self, from: u64, mut room: Room) -> Result<Part, DbError> {
        let mut select = self.conn.prepare_cached(
            "SELECT r.seq, r.head, coalesce(r.body, b.data),
                    r.sum IS ferrule_sum(r.queue, r.seq, r.size, r.shared, r.head, r.body)
                    AND (r.shared IS NULL OR b.sum IS ferrule_sum(b.id, b.data))
             FROM queue_row r LEFT JOIN body b ON b.id = r.shared
             WHERE r.queue = ?1 AND r.seq >= ?2 ORDER BY r.seq",
        )?;
        let (mut rows, mut at) = (Vec::new(), from);
        'seek: loop {
            if let Some(end) = self.removed_to(at) {
                // What the journal removes is jumped over: it may be a million rows.
                let Some(next) = end.checked_add(1) else { return Ok(Part { rows, complete: true }) };
                at = next;
                continue;
            }
            let mut found = select.query(params![sql(self.queue.0), sql(at)])?;
            while let Some(row) = found.next()? {
                let seq = row.get::<_, i64>(0)? as u64;
                if self.removed_to(seq).is_some() {
                    at = seq;
                    continue 'seek;
                }
                if !row.get(3)? {
                    return Err(DbError::Check(format!(
                        "row {seq} of queue {} is not what was written",
                        self.queue.0
                    )));
                }
                let (head, body) = (blob(row, 1)?, blob(row, 2)?);
                let full = room.take(head.len() + body.len());
                rows.push(StoredRow { seq, head, body });
                if full || Instant::now() >= self.until {
                    return Ok(Part { rows, complete: false });
                }
            }
            return Ok(Part { rows, complete: true });
        }
    }

    /// From `queue_block`.
    fn packed(&self, from: u64, mut room: Room) -> Result<Part, DbError> {
        let mut select = self.conn.prepare_cached(BLOCKS)?;
        let (mut rows, mut at) = (Vec::new(), from);
        'seek: loop {
            if let Some(end) = self.removed_to(at) {
                let Some(next) = end.checked_add(1) else { return Ok(Part { rows, complete: true }) };
                at = next;
                continue;
            }
            let mut found = select.query(params![sql(self.queue.0), sql(at), i64::MAX])?;
            while let Some(block) = found.next()? {
                let first = block.get::<_, i64>(1)? as u64;
                if first > at && self.removed_to(first).is_some() {
                    at = first;
                    continue 'seek;
                }
                let block = Block::read(self.queue, block)?;
                let unpacked = self.packer.unpack(block.data)?;
                let removed = self.net.removed.get(&self.queue);
                rows.extend(unpacked.rows(block.gone, |seq, bytes| {
                    if seq < at || removed.is_some_and(|ranges| ranges.end_of(seq).is_some()) {
                        Wanted::No
                    } else if room.take(bytes) {
                        Wanted::Last
                    } else {
                        Wanted::Yes
                    }
                }));
                if room.is_full() || (Instant::now() >= self.until && !rows.is_empty()) {
                    return Ok(Part { rows, complete: false });
                }
            }
            return Ok(Part { rows, complete: true });
        }
    }

    /// An index whose entries changed may hide rows: whether there are as many as were counted.
    fn check_count(&self) -> Result<(), DbError> {
        let mut count = self.conn.prepare_cached(
            "SELECT (SELECT count(*) FROM queue_row WHERE queue = ?1)
                  + (SELECT coalesce(sum(count), 0) FROM queue_block WHERE queue = ?1)
                  = coalesce((SELECT count FROM queue WHERE queue = ?1), 0)",
        )?;
        if count.query_row([sql(self.queue.0)], |row| row.get(0))? {
            return Ok(());
        }
        Err(DbError::Check(format!("queue {} has not as many rows as were counted", self.queue.0)))
    }
}
