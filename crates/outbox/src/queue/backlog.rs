//! A queue as an operator sees it: its rows in pages, and rows that are given up by hand.
//!
//! # Invariants
//! - Looking changes nothing: no row is read into the queue's own memory, none moves.
//! - A row that is given up is counted as discarded, and whoever waits for it is told so: never that it was delivered.
//! - Rows inside the gap are only on disk. Those of them that are given up, or went ahead, are kept as ranges until the gap has passed
//!   them, because a read that is already on its way, or made before the removal is committed, still returns them. There are
//!   at most [`RANGES_MAX`]; what would need more is left for another call.

use super::live::Spot;
use super::{Disk, Queue, Row, Slot, us};
use crate::receipt::{End, Outcome, Reason};
use ferrule_store::Now;

/// Ranges of rows inside the gap that were given up or went ahead: 64 KiB.
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
    /// Rows that are only on disk, numbered `from..=to`, but for those in `without`, which were given up or are in memory.
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
        let mut from = after + 1;
        for slot in self.in_memory(after) {
            let Some(row) = &slot.row else { continue };
            if let Some(next) = self.on_disk(from, slot.seq - 1) {
                return next;
            }
            let place = match (slot.sent_us, slot.disk) {
                (Some(_), _) => Place::InFlight,
                (None, Disk::Yes) => Place::Stored,
                (None, Disk::No | Disk::Submitted) => Place::Memory,
            };
            if !give(slot.seq, row, place) {
                return Next::Memory;
            }
            from = slot.seq + 1;
        }
        self.on_disk(from, u64::MAX).unwrap_or(Next::End)
    }

    /// Slots with numbers above `after`, in their order.
    pub(super) fn in_memory(&self, after: u64) -> impl Iterator<Item = &Slot<R>> {
        let mut line = self.after(after).peekable();
        let mut ahead = self.ahead().skip_while(move |s| s.seq <= after).peekable();
        std::iter::from_fn(move || match (line.peek(), ahead.peek()) {
            (Some(next), Some(other)) if other.seq < next.seq => ahead.next(),
            (None, Some(_)) => ahead.next(),
            _ => line.next(),
        })
    }

    /// What of the gap is numbered `from..=to`.
    fn on_disk(&self, from: u64, to: u64) -> Option<Next> {
        let gap = self.gap?;
        let (from, to) = (from.max(gap.first), to.min(gap.last));
        let at = self.purged.partition_point(|&(_, last)| last < from);
        let is_gone = self.purged.get(at).is_some_and(|&(first, last)| first <= from && to <= last);
        (from <= to && !is_gone).then(|| Next::Disk { from, to, without: self.purged.clone() })
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
            let gave = match self.spot(seq) {
                Some(spot) => self.give_up_at(spot, in_flight, Reason::Purged, now, ended),
                None if gap => self.give_up_stored(seq, size, now, ended),
                None => Gave::Nothing,
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

    /// Of a row that is in memory.
    pub(super) fn give_up_at(
        &mut self,
        spot: Spot,
        in_flight: bool,
        reason: Reason,
        now: Now,
        ended: &mut Vec<(End, Outcome)>,
    ) -> Gave {
        let Some(slot) = self.at(spot) else { return Gave::Nothing };
        let (seq, size, sent) = (slot.seq, slot.size, slot.sent_us.is_some());
        if slot.row.is_none() || (sent && !in_flight) {
            return Gave::Nothing;
        }
        // The commit makes it part of what a gap's read returns.
        let returns = matches!(spot, Spot::Fresh(_)) && slot.disk != Disk::No && !slot.apart;
        if returns && !self.note_purged(seq) {
            return Gave::Full;
        }
        if sent {
            // Not an answer: it must not be taken for one in the destination's smoothed time.
            if let Some(slot) = self.at_mut(spot) {
                slot.sent_us = None;
            }
            self.counters.in_flight -= 1;
            self.counters.queued += 1;
        }
        self.finish(spot, Outcome::Discarded(reason), now, ended);
        Gave::Up { size, sent }
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
    pub(super) fn note_purged(&mut self, seq: u64) -> bool {
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
