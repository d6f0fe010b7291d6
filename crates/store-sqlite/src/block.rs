//! Blocks: many small rows of a queue in one row of a table, compressed.
//!
//! # Constraints
//! A backlog is millions of rows of some hundred bytes that came one after another and leave in the same order. A row of a
//! table for each is a walk down two b-trees, a binding, a sum and 20 bytes of index; and rows of one device differ by a
//! few digits. Packed by the 16 KiB, a backlog of JSON takes a third of the flash, and fewer pages are less CPU time
//! (docs/decisions/0028-a-backlog-is-packed.md).
//!
//! # Format
//! The rows, and at the end a byte, 0: the rows are as they are; 1: they are a zstd frame. Of each row (numbers are LEB128 varints):
//!
//! | | |
//! |---|---|
//! | number | seq, less that of the row before and 1; of the first: seq |
//! | number | bytes of the head |
//! | number | bytes of the body |
//! | n | the head |
//! | n | the body |
//!
//! # Invariants
//! - Of a queue no two blocks overlap, and no row of `queue_row` has a number that is alive in a block.
//! - A block is written once. Rows that leave before the others are marked in the bitmap `gone` beside it, bit i % 8 of byte i / 8 for
//!   row i; `first`, `last`, `count` and `size` are those of the rows that are left. The last row takes the block with it.
//! - Damage to a block loses all of it: its sum covers everything, and half a frame cannot be read.

use crate::error::DbError;
use crate::journal::{number, put_number};
use bytes::Bytes;
use ferrule_store::{Body, StoredRow};
use std::cell::RefCell;
use std::ops::Range;
use zstd::bulk::{Compressor, Decompressor};

/// Bytes of rows in a block, before compression. Twice as much saves 3 % of the space; half costs 5 %, and a fifth more
/// CPU time. It is also what one bad sector may take.
const BYTES: usize = 16 << 10;
/// Rows of more bytes than this are on their own: a block of few rows saves nothing.
const ROW_BYTES_MAX: usize = 2 << 10;
/// The least rows of a block, for the same reason.
const ROWS_MIN: usize = 8;
/// A block that does not become smaller by an eighth is kept as it is: it is faster to read.
const WORTH_IT: usize = 8;
/// zstd's levels below 0 trade size for speed: this one halves what 1 costs, for a third more bytes.
const LEVEL: i32 = -1;
/// What a row has beside head and body, at most: a number of 10 bytes, and two lengths of up to [`ROW_BYTES_MAX`].
const LENGTHS_MAX: usize = 14;
/// No block is larger when unpacked: the last row may pass the limit.
const UNPACKED_MAX: usize = BYTES + ROW_BYTES_MAX + LENGTHS_MAX;

const PLAIN: u8 = 0;
const ZSTD: u8 = 1;

pub(crate) use ferrule_store_writer::net::Row;

/// Compresses and decompresses; keeps what it needs for that.
pub(crate) struct Packer {
    compressor: Compressor<'static>,
    /// Reading changes nothing but its scratch memory.
    decompressor: RefCell<Decompressor<'static>>,
    plain: Vec<u8>,
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Packer")
    }
}

/// A block to be written.
#[derive(Debug)]
pub(crate) struct Packed {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) count: usize,
    /// Bytes of heads and bodies.
    pub(crate) size: usize,
    pub(crate) data: Vec<u8>,
}

fn bytes_of((_, head, body): &Row) -> usize {
    head.len() + body.bytes().len()
}

/// Whether a row may be in a block at all.
pub(crate) fn is_packable(row: &Row) -> bool {
    matches!(row.2, Body::Inline(_)) && bytes_of(row) <= ROW_BYTES_MAX
}

/// How many of `rows` (packable, ascending) the next block takes; none: they are too few to be packed.
pub(crate) fn next_block<'a>(rows: impl Iterator<Item = &'a Row>) -> Option<usize> {
    let (mut count, mut bytes) = (0, 0);
    for row in rows {
        count += 1;
        bytes += bytes_of(row) + LENGTHS_MAX;
        if bytes >= BYTES {
            break;
        }
    }
    (count >= ROWS_MIN).then_some(count)
}

impl Packer {
    pub(crate) fn new() -> Result<Self, DbError> {
        Ok(Self {
            compressor: Compressor::new(LEVEL)?,
            decompressor: RefCell::new(Decompressor::new()?),
            plain: Vec::with_capacity(UNPACKED_MAX),
        })
    }

    /// A block of rows as [`next_block`] counted them.
    pub(crate) fn pack<'a>(&mut self, rows: impl Iterator<Item = &'a Row>) -> Result<Packed, DbError> {
        let mut packed = Packed { first: 0, last: 0, count: 0, size: 0, data: Vec::new() };
        self.plain.clear();
        for (seq, head, body) in rows {
            let (seq, body) = (*seq, body.bytes());
            if packed.count == 0 {
                packed.first = seq;
                put_number(&mut self.plain, seq);
            } else {
                put_number(&mut self.plain, seq - packed.last - 1);
            }
            packed.last = seq;
            packed.count += 1;
            packed.size += head.len() + body.len();
            put_number(&mut self.plain, head.len() as u64);
            put_number(&mut self.plain, body.len() as u64);
            self.plain.extend_from_slice(head);
            self.plain.extend_from_slice(body);
        }
        let mut frame = Vec::with_capacity(zstd::zstd_safe::compress_bound(self.plain.len()));
        self.compressor.compress_to_buffer(&self.plain, &mut frame)?;
        packed.data = if frame.len() <= self.plain.len() - self.plain.len() / WORTH_IT {
            frame.push(ZSTD);
            frame.shrink_to_fit();
            frame
        } else {
            self.plain.push(PLAIN);
            self.plain.clone()
        };
        Ok(packed)
    }

    /// The rows of a block, those that are gone too.
    pub(crate) fn unpack(&self, data: &[u8]) -> Result<Unpacked, DbError> {
        let plain = match data.split_last() {
            Some((&PLAIN, rows)) => Bytes::copy_from_slice(rows),
            Some((&ZSTD, frame)) => Bytes::from(
                self.decompressor
                    .borrow_mut()
                    .decompress(frame, UNPACKED_MAX)
                    .map_err(|e| DbError::Check(format!("a block of rows cannot be unpacked ({e})")))?,
            ),
            _ => return Err(DbError::Check("a block of rows has a form that is not known".into())),
        };
        let rows = entries(&plain).ok_or_else(|| DbError::Check("a block of rows does not decode".into()))?;
        Ok(Unpacked { plain, rows })
    }
}

/// A row of an unpacked block.
#[derive(Debug, Clone)]
struct Entry {
    seq: u64,
    head: Range<usize>,
    body: Range<usize>,
}

fn entries(plain: &[u8]) -> Option<Vec<Entry>> {
    let mut rows = Vec::new();
    let mut left = plain;
    let mut next = 0_u64;
    while !left.is_empty() {
        let seq = next.checked_add(number(&mut left)?)?;
        next = seq.checked_add(1)?;
        let (head, body) =
            (usize::try_from(number(&mut left)?).ok()?, usize::try_from(number(&mut left)?).ok()?);
        let at = plain.len() - left.len();
        left = left.get(head.checked_add(body)?..)?;
        rows.push(Entry { seq, head: at..at + head, body: at + head..at + head + body });
    }
    Some(rows)
}

/// A block that was read.
#[derive(Debug)]
pub(crate) struct Unpacked {
    plain: Bytes,
    rows: Vec<Entry>,
}

/// What is left of a block.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Left {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) count: usize,
    pub(crate) size: usize,
    pub(crate) gone: Vec<u8>,
}

fn is_gone(gone: &[u8], row: usize) -> bool {
    gone.get(row / 8).is_some_and(|byte| byte >> (row % 8) & 1 == 1)
}

impl Unpacked {
    /// Whether row `seq` is there.
    pub(crate) fn has(&self, gone: &[u8], seq: u64) -> bool {
        self.rows.binary_search_by_key(&seq, |row| row.seq).is_ok_and(|row| !is_gone(gone, row))
    }

    /// The rows that `wanted` takes by number and size, in order, until it says that it has enough. It is not asked about
    /// those that are gone.
    pub(crate) fn rows(&self, gone: &[u8], mut wanted: impl FnMut(u64, usize) -> Wanted) -> Vec<StoredRow> {
        let mut taken = Vec::new();
        for (i, row) in self.rows.iter().enumerate() {
            if is_gone(gone, i) {
                continue;
            }
            match wanted(row.seq, row.head.len() + row.body.len()) {
                Wanted::No => {}
                Wanted::Yes => taken.push(row),
                Wanted::Last => {
                    taken.push(row);
                    break;
                }
            }
        }
        let (Some(low), Some(high)) = (taken.first(), taken.last()) else { return Vec::new() };
        let span = low.head.start..high.body.end;
        // A few rows must not keep the whole block in memory.
        let (plain, base) = if span.len() * 2 < self.plain.len() {
            (Bytes::copy_from_slice(&self.plain[span.clone()]), span.start)
        } else {
            (self.plain.clone(), 0)
        };
        let part = |range: &Range<usize>| plain.slice(range.start - base..range.end - base);
        taken
            .iter()
            .map(|row| StoredRow { seq: row.seq, head: part(&row.head), body: part(&row.body) })
            .collect()
    }

    /// What is left when rows `first..=last` leave; none: nothing is.
    pub(crate) fn without(&self, gone: &[u8], first: u64, last: u64) -> Option<Left> {
        let mut now = vec![0; self.rows.len().div_ceil(8)];
        let mut left = None::<Left>;
        for (i, row) in self.rows.iter().enumerate() {
            if is_gone(gone, i) || (first..=last).contains(&row.seq) {
                now[i / 8] |= 1 << (i % 8);
                continue;
            }
            let size = row.head.len() + row.body.len();
            let left =
                left.get_or_insert(Left { first: row.seq, last: 0, count: 0, size: 0, gone: Vec::new() });
            left.last = row.seq;
            left.count += 1;
            left.size += size;
        }
        left.map(|left| Left { gone: now, ..left })
    }
}

/// What is asked of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    No,
    Yes,
    /// This one, and no more.
    Last,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use proptest::prelude::*;

    fn row(seq: u64, head: Vec<u8>, body: Vec<u8>) -> Row {
        (seq, head.into(), Body::Inline(body.into()))
    }

    /// What no compressor makes smaller.
    fn noise(size: usize) -> Vec<u8> {
        let mut n = 1_u64;
        (0..size).map(|_| (n = n.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(31), n as u8).1).collect()
    }

    proptest! {
        #[test]
        fn a_block_gives_back_what_is_left_of_it(
            rows in proptest::collection::btree_map(
                0..u64::MAX, (proptest::collection::vec(any::<u8>(), 0..40), 0_usize..300), 1..60,
            ),
            same in any::<bool>(),
            leave in proptest::collection::vec((0_usize..60, 0_usize..6), 0..8),
        ) {
            let rows: Vec<Row> = rows
                .into_iter()
                .map(|(seq, (head, body))| {
                    row(seq, head, if same { vec![7; body] } else { noise(body) })
                })
                .collect();
            let mut packer = Packer::new().unwrap();
            let packed = packer.pack(rows.iter()).unwrap();
            let size = |rows: &[&Row]| rows.iter().map(|(_, h, b)| h.len() + b.bytes().len()).sum::<usize>();
            let all: Vec<&Row> = rows.iter().collect();
            prop_assert_eq!((packed.first, packed.last), (rows[0].0, rows[rows.len() - 1].0));
            prop_assert_eq!((packed.count, packed.size), (rows.len(), size(&all)));
            let unpacked = packer.unpack(&packed.data).unwrap();
            let (mut gone, mut left) = (Vec::new(), all);
            for (from, length) in leave {
                let first = rows[from % rows.len()].0;
                let last = rows[(from + length).min(rows.len() - 1)].0.max(first);
                left.retain(|row| !(first..=last).contains(&row.0));
                let now = unpacked.without(&gone, first, last);
                prop_assert_eq!(now.is_none(), left.is_empty());
                let Some(now) = now else { return Ok(()) };
                prop_assert_eq!((now.first, now.last), (left[0].0, left[left.len() - 1].0));
                prop_assert_eq!((now.count, now.size), (left.len(), size(&left)));
                gone = now.gone;
            }
            let read = unpacked.rows(&gone, |_, _| Wanted::Yes);
            prop_assert_eq!(read.len(), left.len());
            for (read, (seq, head, body)) in read.iter().zip(&left) {
                prop_assert_eq!((read.seq, &read.head, &read.body), (*seq, head, body.bytes()));
            }
            for (seq, ..) in &rows {
                prop_assert_eq!(unpacked.has(&gone, *seq), left.iter().any(|row| row.0 == *seq));
            }
        }

        #[test]
        fn what_is_no_block_is_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Packer::new().unwrap().unpack(&bytes);
        }
    }

    #[test]
    fn a_few_rows_do_not_hold_the_block() {
        let rows: Vec<Row> = (0..60).map(|seq| row(seq, vec![1; 20], vec![seq as u8; 200])).collect();
        let mut packer = Packer::new().unwrap();
        let packed = packer.pack(rows.iter()).unwrap();
        assert!(packed.data.len() < 2_000, "{}", packed.data.len());
        let unpacked = packer.unpack(&packed.data).unwrap();
        let few = unpacked.rows(&[], |seq, _| match seq {
            0..10 => Wanted::No,
            10 => Wanted::Yes,
            _ => Wanted::Last,
        });
        assert_eq!(few.iter().map(|row| row.seq).collect::<Vec<_>>(), [10, 11]);
        let block = unpacked.plain.as_ptr_range();
        assert!(!block.contains(&few[0].head.as_ptr()));
    }

    #[test]
    fn blocks_are_neither_small_nor_large() {
        let rows: Vec<Row> = (0..200).map(|seq| row(seq, vec![0; 50], vec![0; 206])).collect();
        assert_eq!(next_block(rows.iter()), Some(61));
        assert_eq!(next_block(rows[..8].iter()), Some(8));
        assert_eq!(next_block(rows[..7].iter()), None);
        assert_eq!(next_block([].iter()), None);
        let large: Vec<Row> = (0..20).map(|seq| row(seq, vec![], vec![0; ROW_BYTES_MAX])).collect();
        assert!(large.iter().all(is_packable) && next_block(large.iter()) == Some(8));
        assert!(!is_packable(&row(1, vec![0], vec![0; ROW_BYTES_MAX])));
        // The most that a block can be is within what unpacking allows.
        let mut most: Vec<Row> = (0..2_000).map(|seq| row(seq << 50, vec![], vec![])).collect();
        let count = next_block(most.iter()).unwrap();
        assert_eq!(count, BYTES.div_ceil(LENGTHS_MAX));
        most.insert(count - 1, row(most[count - 1].0 - 1, vec![], noise(ROW_BYTES_MAX)));
        let mut packer = Packer::new().unwrap();
        let packed = packer.pack(most[..count].iter()).unwrap();
        assert_eq!(packer.unpack(&packed.data).unwrap().rows.len(), count);
    }
}
