//! A fold: the net of the journal's ops applied to the tables.

use crate::block::{self, Packer, Row};
use crate::db::sql;
use crate::error::DbError;
use crate::journal::side_to_byte;
use crate::net::{Net, Rows};
use crate::read::{BLOCKS, Block};
use bytes::Bytes;
use ferrule_store::{Body, BodyId, QueueId};
use rusqlite::{CachedStatement, Connection, OptionalExtension, params};
use std::collections::BTreeMap;

/// Applies a net to the tables; returns about how many pages that changes.
pub(crate) fn apply(
    conn: &Connection,
    net: &Net,
    packer: &mut Packer,
    page_bytes: usize,
) -> Result<u64, DbError> {
    let mut fold =
        Fold { conn, packer, counts: BTreeMap::new(), releases: BTreeMap::new(), bytes: 0, rows: 0 };
    for &session in &net.sessions_deleted {
        fold.run("DELETE FROM session WHERE session = ?1", params![sql(session.0)])?;
        fold.run("DELETE FROM subscription WHERE session = ?1", params![sql(session.0)])?;
        fold.run("DELETE FROM inflight WHERE session = ?1", params![sql(session.0)])?;
    }
    for (&queue, ranges) in &net.removed {
        for (first, last) in ranges.iter() {
            fold.remove(queue, first, last)?;
        }
    }
    for (&queue, rows) in &net.appended {
        fold.append(queue, rows)?;
    }
    for (&session, record) in &net.sessions {
        fold.run(
            "INSERT INTO session VALUES (?1, ?2, ferrule_sum(?1, ?2))
                 ON CONFLICT DO UPDATE SET record = excluded.record, sum = excluded.sum",
            params![sql(session.0), &record[..]],
        )?;
    }
    for ((session, filter), record) in &net.subscriptions {
        match record {
            Some(record) => fold.run(
                "INSERT INTO subscription VALUES (?1, ?2, ?3, ferrule_sum(?1, ?2, ?3))
                 ON CONFLICT DO UPDATE SET record = excluded.record, sum = excluded.sum",
                params![sql(session.0), filter, &record[..]],
            )?,
            None => fold.run(
                "DELETE FROM subscription WHERE session = ?1 AND filter = ?2",
                params![sql(session.0), filter],
            )?,
        }
    }
    for (&(session, side, packet_id), record) in &net.inflight {
        let (session, side) = (sql(session.0), side_to_byte(side));
        match record {
            Some(record) => fold.run(
                "INSERT INTO inflight VALUES (?1, ?2, ?3, ?4, ferrule_sum(?1, ?2, ?3, ?4))
                 ON CONFLICT DO UPDATE SET record = excluded.record, sum = excluded.sum",
                params![session, side, packet_id, &record[..]],
            )?,
            None => fold.run(
                "DELETE FROM inflight WHERE session = ?1 AND side = ?2 AND packet_id = ?3",
                params![session, side, packet_id],
            )?,
        }
    }
    // One node's: what comes last is the latest.
    for (topic, (_, record)) in &net.retained {
        match record.is_empty() {
            false => fold.run(
                "INSERT INTO retained VALUES (?1, ?2, ferrule_sum(?1, ?2))
                 ON CONFLICT DO UPDATE SET record = excluded.record, sum = excluded.sum",
                params![topic, &record[..]],
            )?,
            true => fold.run("DELETE FROM retained WHERE topic = ?1", params![topic])?,
        }
        fold.bytes += record.len();
    }
    for ((rule, key), value) in &net.state {
        match value {
            Some(value) => fold.run(
                "INSERT INTO state VALUES (?1, ?2, ?3, ferrule_sum(?1, ?2, ?3))
                 ON CONFLICT DO UPDATE SET value = excluded.value, sum = excluded.sum",
                params![sql(*rule), &key[..], &value[..]],
            )?,
            None => {
                fold.run("DELETE FROM state WHERE rule = ?1 AND key = ?2", params![sql(*rule), &key[..]])?
            }
        }
        fold.bytes += value.as_ref().map_or(0, Bytes::len);
    }
    for (key, value) in &net.meta {
        fold.run(
            "INSERT INTO meta VALUES (?1, ?2, ferrule_sum(?1, ?2))
                 ON CONFLICT DO UPDATE SET value = excluded.value, sum = excluded.sum",
            params![key, &value[..]],
        )?;
    }
    fold.finish(page_bytes)
}

/// A net being applied.
struct Fold<'a> {
    conn: &'a Connection,
    packer: &'a mut Packer,
    /// Change of rows and bytes, by queue.
    counts: BTreeMap<QueueId, (i64, i64)>,
    /// Rows that let go of a shared body, by body.
    releases: BTreeMap<i64, i64>,
    bytes: usize,
    rows: u64,
}

impl<'a> Fold<'a> {
    fn statement(&self, sql: &str) -> Result<CachedStatement<'a>, DbError> {
        Ok(self.conn.prepare_cached(sql)?)
    }

    fn run(&mut self, sql: &str, params: impl rusqlite::Params) -> Result<(), DbError> {
        let changed = self.statement(sql)?.execute(params)?;
        self.rows += changed as u64;
        Ok(())
    }

    fn count(&mut self, queue: QueueId, rows: i64, size: i64) {
        let count = self.counts.entry(queue).or_insert((0, 0));
        *count = (count.0 + rows, count.1 + size);
    }

    fn remove(&mut self, queue: QueueId, first: u64, last: u64) -> Result<(), DbError> {
        self.remove_rows(queue, first, last)?;
        self.remove_from_blocks(queue, first, last)
    }

    fn remove_rows(&mut self, queue: QueueId, first: u64, last: u64) -> Result<(), DbError> {
        let range = params![sql(queue.0), sql(first), sql(last)];
        let (mut rows, mut size) = (0, 0);
        {
            // A body that loses a row which was not its own would be lost to one that is.
            let mut select = self.statement(
                "SELECT size, shared, shared IS NULL OR sum IS ferrule_sum(queue, seq, size, shared, head, body)
                 FROM queue_row WHERE queue = ?1 AND seq BETWEEN ?2 AND ?3",
            )?;
            let mut found = select.query(range)?;
            while let Some(row) = found.next()? {
                rows += 1;
                size += row.get::<_, i64>(0)?;
                if !row.get(2)? {
                    return Err(DbError::Check("a row that is to go is not what was written".into()));
                }
                if let Some(body) = row.get(1)? {
                    *self.releases.entry(body).or_insert(0) += 1;
                }
            }
        }
        if rows == 0 {
            return Ok(());
        }
        self.count(queue, -rows, -size);
        self.bytes += usize::try_from(size).unwrap_or(0);
        self.run("DELETE FROM queue_row WHERE queue = ?1 AND seq BETWEEN ?2 AND ?3", range)
    }

    fn remove_from_blocks(&mut self, queue: QueueId, first: u64, last: u64) -> Result<(), DbError> {
        // Those that lose all their rows, and those that keep some: at most one at either end.
        let (mut whole, mut parts) = (Vec::new(), Vec::new());
        let (mut rows, mut size) = (0, 0);
        {
            let mut select = self.statement(BLOCKS)?;
            let mut found = select.query(params![sql(queue.0), sql(first), sql(last)])?;
            while let Some(block) = found.next()? {
                let block = Block::read(queue, block)?;
                if block.last < first {
                    continue;
                }
                (rows, size) = (rows + block.count, size + block.size);
                if block.first >= first && block.last <= last {
                    whole.push(block.id);
                } else {
                    parts.push((block.id, self.packer.unpack(block.data)?.without(block.gone, first, last)));
                }
            }
        }
        for id in whole {
            self.run("DELETE FROM queue_block WHERE id = ?1", [id])?;
        }
        for (id, left) in parts {
            let Some(left) = left else {
                self.run("DELETE FROM queue_block WHERE id = ?1", [id])?;
                continue;
            };
            (rows, size) = (rows - left.count as i64, size - left.size as i64);
            self.run(
                "UPDATE queue_block SET first = ?2, last = ?3, count = ?4, size = ?5, gone = ?6,
                        sum = ferrule_sum(queue, ?2, ?3, ?4, ?5, ?6, data) WHERE id = ?1",
                params![id, sql(left.first), sql(left.last), left.count as i64, left.size as i64, left.gone],
            )?;
        }
        if rows > 0 {
            self.count(queue, -rows, -size);
            self.bytes += usize::try_from(size).unwrap_or(0);
        }
        Ok(())
    }

    /// Many small rows that are new go into blocks, the others into rows of their own.
    fn append(&mut self, queue: QueueId, rows: &Rows) -> Result<(), DbError> {
        let packed_to =
            self.highest(queue, "SELECT last FROM queue_block WHERE queue = ?1 ORDER BY first DESC LIMIT 1")?;
        // Delayed messages leave in the order of their times: each would be one more writing of its block.
        let in_order = queue.as_delayed().is_none();
        let fits = |row: &&Row| in_order && block::is_packable(row);
        let mut small = rows.iter().filter(fits).peekable();
        let mut next = block::next_block(small.clone());
        if next.is_some() {
            // Behind all that is there, so that no row can be in two places, and no two blocks overlap.
            let rows_to = self.highest(queue, "SELECT max(seq) FROM queue_row WHERE queue = ?1")?;
            let to = rows_to.max(packed_to);
            while small.next_if(|row| to.is_some_and(|to| row.0 <= to)).is_some() {}
            next = block::next_block(small.clone());
        }
        let mut packed = Vec::new();
        while let Some(count) = next {
            let block = self.packer.pack(small.by_ref().take(count))?;
            self.run(
                "INSERT INTO queue_block (queue, first, last, count, size, gone, data, sum)
                 VALUES (?1, ?2, ?3, ?4, ?5, x'', ?6, ferrule_sum(?1, ?2, ?3, ?4, ?5, x'', ?6))",
                params![
                    sql(queue.0),
                    sql(block.first),
                    sql(block.last),
                    block.count as i64,
                    block.size as i64,
                    block.data
                ],
            )?;
            self.count(queue, block.count as i64, block.size as i64);
            self.bytes += block.data.len();
            packed.push((block.first, block.last));
            next = block::next_block(small.clone());
        }
        let (first, last) = (packed.first().map_or(0, |block| block.0), packed.last().map(|block| block.1));
        for row in rows.iter() {
            let in_new = last.is_some_and(|last| (first..=last).contains(&row.0)) && fits(&row);
            let may_be_old = packed_to.is_some_and(|to| row.0 <= to);
            if !(in_new || may_be_old && self.has_packed(queue, row.0)?) {
                self.append_row(queue, row)?;
            }
        }
        Ok(())
    }

    fn highest(&self, queue: QueueId, sql_text: &str) -> Result<Option<u64>, DbError> {
        let found = self
            .statement(sql_text)?
            .query_row([sql(queue.0)], |row| row.get::<_, Option<i64>>(0))
            .optional()?;
        Ok(found.flatten().map(|n| n as u64))
    }

    /// Whether a row is in a block: asked of those alone that came late, or once more after a failure.
    fn has_packed(&mut self, queue: QueueId, seq: u64) -> Result<bool, DbError> {
        let mut select = self.statement(BLOCKS)?;
        let mut found = select.query(params![sql(queue.0), sql(seq), sql(seq)])?;
        let Some(block) = found.next()? else { return Ok(false) };
        let block = Block::read(queue, block)?;
        Ok(block.last >= seq && self.packer.unpack(block.data)?.has(block.gone, seq))
    }

    fn append_row(&mut self, queue: QueueId, (seq, head, body): &Row) -> Result<(), DbError> {
        let size = (head.len() + body.bytes().len()) as i64;
        let (shared, inline) = match body {
            Body::Inline(bytes) => (None, Some(&bytes[..])),
            Body::Shared(BodyId(id), _) => (Some(sql(*id)), None),
        };
        let inserted = self
            .statement(
                "INSERT INTO queue_row (queue, seq, size, shared, head, body, sum)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ferrule_sum(?1, ?2, ?3, ?4, ?5, ?6))
                 ON CONFLICT (queue, seq) DO NOTHING",
            )?
            .execute(params![sql(queue.0), sql(*seq), size, shared, &head[..], inline])?;
        if inserted == 0 {
            return Ok(());
        }
        self.count(queue, 1, size);
        self.rows += 1;
        self.bytes += head.len() + inline.map_or(0, <[u8]>::len);
        if let Some(id) = shared {
            // The body is bound only when it is new: for the others the bytes would be copied for nothing.
            let known = self
                .statement("UPDATE body SET refs = refs + 1, refs_again = refs_again + 1 WHERE id = ?1")?
                .execute([id])?;
            if known == 0 {
                self.run(
                    "INSERT INTO body VALUES (?1, 1, ?2, ferrule_sum(?1, ?2), 1)",
                    params![id, &body.bytes()[..]],
                )?;
                self.bytes += body.bytes().len();
            }
        }
        Ok(())
    }

    fn finish(mut self, page_bytes: usize) -> Result<u64, DbError> {
        // After the appends: a body that loses its last row and gains one in the same fold stays where it is.
        for (body, rows) in std::mem::take(&mut self.releases) {
            let left: Option<(i64, bool)> = self
                .statement(
                    "UPDATE body SET refs = refs - ?2, refs_again = refs_again - ?2 WHERE id = ?1
                     RETURNING refs, refs IS refs_again",
                )?
                .query_row([body, rows], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            match left {
                Some((_, false)) => {
                    return Err(DbError::Check("a body's count of rows has changed".into()));
                }
                Some((..=0, true)) => self.run("DELETE FROM body WHERE id = ?1", [body])?,
                Some(_) | None => {}
            }
        }
        for (queue, (rows, size)) in std::mem::take(&mut self.counts) {
            let left: i64 = self
                .statement(
                    "INSERT INTO queue VALUES (?1, ?2, ?3, ferrule_sum(?1, ?2, ?3)) ON CONFLICT DO UPDATE
                     SET count = count + excluded.count, size = size + excluded.size,
                         sum = CASE WHEN sum IS ferrule_sum(queue, count, size)
                               THEN ferrule_sum(queue, count + excluded.count, size + excluded.size) ELSE NULL END
                     RETURNING count",
                )?
                .query_row([sql(queue.0), rows, size], |row| row.get(0))?;
            if left <= 0 {
                self.run("DELETE FROM queue WHERE queue = ?1", [sql(queue.0)])?;
            }
        }
        // Rows of a fold lie together; their index entries and the tables' inner pages come on top.
        Ok(4 + self.rows / 8 + self.bytes.div_ceil(page_bytes) as u64)
    }
}
