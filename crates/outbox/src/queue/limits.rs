//! Limits: what a queue gives up when its owner would rather lose rows than hold publishers back.
//!
//! # Constraints
//! A limit concerns the disk, and is looked at before anything is written: while the destination answers in time no row needs
//! room there, and none is given up. Nor is one that its consumer has, while it can deliver it: what is counted as given up has
//! not arrived, but for the case below.
//!
//! # Operation
//! When rows are due on disk and have no room, [`Queue::make_room`] gives up as much as they need:
//! - [`Full::DropOldest`]: the oldest that wait on disk; when there are none, and the destination is down, the oldest that the
//!   consumer has (it may deliver them all the same); at last the oldest of those without room.
//! - [`Full::DropNewest`]: those that have no room, newest first.
//!
//! Rows inside the gap are not in memory: those before them go first, then the gap is read, 256 rows at a time. Until then
//! acknowledgements are withheld as with [`Full::Withhold`].

use super::backlog::Gave;
use super::{Disk, Queue, Row, Slot};
use crate::receipt::{End, Outcome, Reason};
use ferrule_store::Now;
use std::time::Duration;

/// What happens to rows that must be written and have no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Full {
    /// Their acknowledgements are withheld until there is room: publishers keep their messages.
    #[default]
    Withhold,
    /// The oldest rows are given up.
    DropOldest,
    /// They are given up.
    DropNewest,
}

/// Whether it is to be handed out.
fn waits<R>(slot: &Slot<R>) -> bool {
    slot.row.is_some() && slot.sent_us.is_none()
}

impl<R: Row> Queue<R> {
    /// When rows that have no room are due; none while nothing can be given up for them.
    pub(super) fn next_full_us(&self) -> Option<u64> {
        if self.policy.full == Full::Withhold || !self.admitted || self.stuck {
            return None;
        }
        // Not earlier because a publisher's window is full: the destination may still be in time.
        self.write_due_us(false, Duration::ZERO)
    }

    /// Gives up what [`Policy::full`] says for rows that are due and have no room; says how many. Numbers of those that the consumer
    /// still holds go to `taken`.
    ///
    /// [`Policy::full`]: super::Policy::full
    pub fn make_room(&mut self, now: Now, taken: &mut Vec<u64>, ended: &mut Vec<(End, Outcome)>) -> u64 {
        let is_due = self.next_full_us().is_some_and(|due_us| due_us <= now.mono_us);
        if !is_due || self.excess() == (0, 0) {
            return 0;
        }
        let chosen = match self.policy.full {
            Full::Withhold => Vec::new(),
            Full::DropOldest => self.oldest(),
            Full::DropNewest => self.newest(),
        };
        let mut given_up = 0;
        for seq in chosen {
            let Some(spot) = self.spot(seq) else { continue };
            if let Gave::Up { sent, .. } = self.give_up_at(spot, !self.up, Reason::Limit, now, ended) {
                given_up += 1;
                taken.extend(sent.then_some(seq));
            }
        }
        self.stuck = self.excess() != (0, 0);
        given_up
    }

    /// Gives up rows that wait in memory, oldest first, while `may` says so, at most `rows`: says how many. The consumer's are
    /// left to it.
    pub fn give_up_while(
        &mut self,
        may: impl Fn(&R) -> bool,
        rows: usize,
        reason: Reason,
        now: Now,
        ended: &mut Vec<(End, Outcome)>,
    ) -> usize {
        let old = |s: &&Slot<R>| s.row.as_ref().is_some_and(&may);
        let head = self.head.iter().filter(|s| waits(s)).take_while(old);
        let ahead = self.ahead().filter(|s| waits(s)).take_while(old);
        let chosen: Vec<u64> = head.chain(ahead).map(|s| s.seq).take(rows).collect();
        for &seq in &chosen {
            if let Some(spot) = self.spot(seq) {
                self.give_up_at(spot, false, reason, now, ended);
            }
        }
        chosen.len()
    }

    /// The lowest number that is not answered.
    #[must_use]
    pub fn first(&self) -> Option<u64> {
        let head = self.head.iter().find(|s| s.row.is_some()).map(|s| s.seq);
        let line = head.or(self.gap.map(|gap| gap.first)).or_else(|| self.fresh.front().map(|s| s.seq));
        line.into_iter().chain(self.ahead().next().map(|s| s.seq)).min()
    }

    /// Whether a row waits in memory to be handed out.
    #[must_use]
    pub fn waits_in_memory(&self) -> bool {
        let head = self.head.range(self.cursor..).find(|s| waits(s));
        head.is_some_and(Slot::may_leave) || self.next_ahead().is_some()
    }

    /// The oldest row that waits in memory.
    #[must_use]
    pub fn oldest_waiting(&self) -> Option<&R> {
        let head = self.head.iter().find(|s| waits(s));
        let ahead = self.ahead().find(|s| waits(s));
        head.into_iter().chain(ahead).min_by_key(|s| s.seq)?.row.as_ref()
    }

    /// What is over the limits when all that waits for the disk is there: bytes, rows.
    fn excess(&self) -> (u64, u64) {
        let (bytes, rows) =
            self.unsubmitted().fold((0, 0), |(bytes, rows), s| (bytes + s.size as u64, rows + 1));
        let bytes = (self.disk_bytes + bytes).saturating_sub(self.policy.disk_bytes);
        (bytes, (self.counters.stored + rows).saturating_sub(self.policy.disk_rows))
    }

    /// Rows to give up, oldest first.
    fn oldest(&self) -> Vec<u64> {
        let mut excess = self.excess();
        let mut chosen = Vec::new();
        let mut choose = |(seq, size): (u64, usize)| {
            if excess != (0, 0) {
                excess = (excess.0.saturating_sub(size as u64), excess.1.saturating_sub(1));
                chosen.push(seq);
            }
        };
        let rows = || self.head.iter().filter(|s| s.row.is_some());
        let known = |s: &Slot<R>| (s.seq, s.size);
        rows().filter(|s| s.disk != Disk::No && s.sent_us.is_none()).map(known).for_each(&mut choose);
        if self.gap.is_none() {
            // The head is all that there is, but for what is set apart and what is fresh.
            self.ahead().filter(|s| s.sent_us.is_none()).map(known).for_each(&mut choose);
            if !self.up {
                let sent = self.in_memory(0).filter(|s| s.row.is_some() && s.sent_us.is_some());
                sent.map(known).for_each(&mut choose);
            }
            self.unsubmitted().filter(|s| s.sent_us.is_none()).map(known).for_each(&mut choose);
        } else if !self.up
            && rows().all(|s| s.sent_us.is_some())
            && self.head_bytes >= self.policy.head_bytes / 2
        {
            // Nothing more can be read before these are gone.
            rows().map(known).for_each(&mut choose);
        }
        chosen
    }

    /// Rows to give up: those without room, newest first, so that each costs no step over the others.
    fn newest(&self) -> Vec<u64> {
        let (mut bytes, mut rows) = (self.disk_bytes, self.counters.stored);
        let mut chosen = Vec::new();
        for slot in self.unsubmitted() {
            if self.policy.fits(slot.size, bytes, rows) {
                bytes += slot.size as u64;
                rows += 1;
            } else if slot.sent_us.is_none() || !self.up {
                chosen.push(slot.seq);
            }
        }
        chosen.reverse();
        chosen
    }
}
