//! A queue as an operator sees it: its rows in pages, and rows that are given up by hand.
//!
//! # Invariants
//! - Looking changes nothing: no row is read into the queue's own memory, none moves.
//! - A row that is given up is counted as discarded, and whoever waits for it is told so: never that it was delivered.
//! - Rows inside the gap are only on disk. Those of them that are given up are kept as ranges until the gap has passed
//!   them, because a read that is already on its way, or made before the removal is committed, still returns them. There are
//!   at most [`RANGES_MAX`]; what would need more is left for another call.

use super::{Disk, Queue, Row, us};
use crate::receipt::{End, Outcome, Reason};
use ferrule_store::Now;

/// Ranges of rows given up inside the gap: 64 KiB.
pub const RANGES_MAX: usize = 4_096;

/// Where a row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In memory alone.
    Memory,
    /// On disk, too.
    Stored,
    /// In its consumer's hands, and not answered.
    InFlight,
}

/// What follows a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// More rows in memory.
    Memory,
    /// Rows that are only on disk, numbered `from..=to`, but for those in `without`, which were given up.
    Disk {
        /// Lowest number.
        from: u64,
        /// Highest number.
        to: u64,
        /// Ranges, ascending.
        without: Vec<(u64, u64)>,
    },
    /// Nothing.
    End,
}

/// What [`Queue::give_up`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GivenUp {
    /// Rows given up.
    pub rows: u64,
    /// Their bytes, as the queue counts them.
    pub bytes: u64,
    /// Of those, rows that their consumer has: they may reach the destination all the same.
    pub in_flight: u64,
    /// Rows left because [`RANGES_MAX`] was reached.
    pub left: u64,
}

/// What became of one row.
pub(super) enum Gave {
    Up {
        size: usize,
        sent: bool,
    },
    /// It was answered, or given up, since the page was made; or its consumer has it.
    Nothing,
    /// Too many ranges.
    Full,
}

impl<R: Row> Queue<R> {
    /// The highest number that was given to a row.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.next_seq - 1
    }

    /// Shows rows with numbers above `after`, oldest first, until `give` has had enough, and says what follows the last one.
    pub fn page(&self, after: u64, mut give: impl FnMut(u64, &R, Place) -> bool) -> Next {
        let head = self.head.partition_point(|s| s.seq <= after);
        let fresh = self.fresh.partition_point(|s| s.seq <= after);
        let mut show = |slot: &super::Slot<R>| {
            let Some(row) = &slot.row else { return true };
            let place = match (slot.sent_us, slot.disk) {
                (Some(_), _) => Place::InFlight,
                (None, Disk::Yes) => Place::Stored,
                (None, Disk::No | Disk::Submitted) => Place::Memory,
            };
            give(slot.seq, row, place)
        };
        if !self.head.range(head..).all(&mut show) {
            return Next::Memory;
        }
        if let Some(gap) = self.gap.filter(|gap| gap.last > after) {
            let from = gap.first.max(after + 1);
            return Next::Disk { from, to: gap.last, without: self.purged.clone() };
        }
        if self.fresh.range(fresh..).all(&mut show) { Next::End } else { Next::Memory }
    }

    /// Gives up rows, named by number and size, that a page has shown: those that still wait, and with `in_flight` those that
    /// the consumer has, too. Their numbers go to `taken` then: the consumer still holds them.
    pub fn give_up(
        &mut self,
        rows: &[(u64, usize)],
        in_flight: bool,
        now: Now,
        taken: &mut Vec<u64>,
        ended: &mut Vec<(End, Outcome)>,
    ) -> GivenUp {
        let mut done = GivenUp::default();
        for &(seq, size) in rows {
            let gap = self.gap.is_some_and(|gap| gap.first <= seq && seq <= gap.last);
            let fresh = self.fresh.front().is_some_and(|slot| slot.seq <= seq);
            let gave = match (gap, fresh) {
                (true, _) => self.give_up_stored(seq, size, now, ended),
                (false, true) => self.give_up_fresh(seq, Reason::Purged, now, ended),
                (false, false) => self.give_up_head(seq, in_flight, Reason::Purged, now, ended),
            };
            match gave {
                Gave::Up { size, sent } => {
                    done.rows += 1;
                    done.bytes += size as u64;
                    if sent {
                        done.in_flight += 1;
                        taken.push(seq);
                    }
                }
                Gave::Full => done.left += 1,
                Gave::Nothing => {}
            }
        }
        if done.rows > 0 && self.removal_since_us.is_some() {
            // Whoever gives rows up wants the room: with the next commit.
            self.removal_since_us = Some(now.mono_us.saturating_sub(us(self.policy.removal)));
        }
        done
    }

    /// Of a row that is in memory in front of the gap.
    pub(super) fn give_up_head(
        &mut self,
        seq: u64,
        in_flight: bool,
        reason: Reason,
        now: Now,
        ended: &mut Vec<(End, Outcome)>,
    ) -> Gave {
        let Ok(index) = self.head.binary_search_by_key(&seq, |s| s.seq) else { return Gave::Nothing };
        let slot = &mut self.head[index];
        let (size, sent) = (slot.size, slot.sent_us.is_some());
        if slot.row.is_none() || (sent && !in_flight) {
            return Gave::Nothing;
        }
        if sent {
            // Not an answer: it must not be taken for one in the destination's smoothed time.
            slot.sent_us = None;
            self.counters.in_flight -= 1;
            self.counters.queued += 1;
        }
        self.answer(seq, Outcome::Discarded(reason), now, ended);
        Gave::Up { size, sent }
    }

    /// Of a row that is in memory behind the gap.
    pub(super) fn give_up_fresh(
        &mut self,
        seq: u64,
        reason: Reason,
        now: Now,
        ended: &mut Vec<(End, Outcome)>,
    ) -> Gave {
        let Ok(index) = self.fresh.binary_search_by_key(&seq, |s| s.seq) else { return Gave::Nothing };
        let submitted = self.fresh[index].disk != Disk::No;
        // The commit makes it part of what a gap's read returns.
        if submitted && !self.note_purged(seq) {
            return Gave::Full;
        }
        let Some(slot) = self.fresh.remove(index) else { return Gave::Nothing };
        self.counters.queued -= 1;
        self.counters.discarded += 1;
        self.unwritten_bytes -= slot.size;
        if submitted {
            self.remove(seq, now);
            self.disk_bytes = self.disk_bytes.saturating_sub(slot.size as u64);
            self.counters.stored -= 1;
        }
        if let Some(end) = slot.end.or_else(|| self.answers.remove(&seq)) {
            ended.push((end, Outcome::Discarded(reason)));
        }
        Gave::Up { size: slot.size, sent: false }
    }

    /// Of a row that is on disk alone.
    fn give_up_stored(&mut self, seq: u64, size: usize, now: Now, ended: &mut Vec<(End, Outcome)>) -> Gave {
        if self.is_purged(seq) {
            return Gave::Nothing;
        }
        if !self.note_purged(seq) {
            return Gave::Full;
        }
        self.remove(seq, now);
        self.counters.queued = self.counters.queued.saturating_sub(1);
        self.counters.stored = self.counters.stored.saturating_sub(1);
        self.counters.discarded += 1;
        self.disk_bytes = self.disk_bytes.saturating_sub(size as u64);
        if let Some(end) = self.answers.remove(&seq) {
            ended.push((end, Outcome::Discarded(Reason::Purged)));
        }
        if let Some(gap) = &mut self.gap {
            gap.rows = gap.rows.saturating_sub(1);
        }
        Gave::Up { size, sent: false }
    }

    /// False: there are too many ranges.
    fn note_purged(&mut self, seq: u64) -> bool {
        let at = self.purged.partition_point(|&(_, last)| last < seq);
        let grows = at > 0 && self.purged[at - 1].1 + 1 == seq;
        // Rows come in ascending order, so that the range before them grows.
        if grows {
            self.purged[at - 1].1 = seq;
        } else if self.purged.len() < RANGES_MAX {
            self.purged.insert(at, (seq, seq));
        } else {
            return false;
        }
        true
    }

    /// Whether a row that was read back had been given up.
    pub(super) fn is_purged(&self, seq: u64) -> bool {
        let at = self.purged.partition_point(|&(_, last)| last < seq);
        self.purged.get(at).is_some_and(|&(first, _)| first <= seq)
    }

    /// Forgets ranges that no read can return any more: no later read begins before the gap, or the one that there may be.
    pub(super) fn forget_purged(&mut self) {
        let fresh = self.fresh.front().map_or(self.next_seq, |slot| slot.seq);
        let first = self.gap.map_or(fresh, |gap| gap.first);
        self.purged.retain(|&(_, last)| last >= first);
    }
}
