//! `live_first`: what comes while the destination is up leaves ahead of the backlog. See decision 0025.
//!
//! # Constraints
//! A value of now must not wait for a day's backlog; the backlog must go on, too. A row that went ahead is written only as a row is
//! without a backlog: when it is due. What receives rows can tell which came late ([`Mark::late`]).
//!
//! # Data
//! Two lanes leave in turn, each in the order of its numbers: the **backlog** (head, filled from the gap) and the **live** rows. A live
//! row is in `fresh` while it is not on disk, and then, since it must not be read back with the gap, in [`Live::ahead`]: in memory until
//! it is answered. Numbers of both that are set apart are in `purged`, which the gap's reads leave out.
//!
//! # Invariants
//! - Live is what came since the destination was last up and has been in memory since ([`Live::from`]). What the commit of a row moves
//!   into the gap makes it, and all before it, backlog.
//! - A row that is set apart never enters the gap: it leaves `fresh` by its answer, for `ahead`, or, without a gap, for head.
//! - All numbers in `ahead` are below those in `fresh`; those of either are above what the live lane has passed, or in flight.
//! - While rows of both lanes wait in memory, one in [`SHARE`] is of the backlog.
//! - `ahead` holds a window of rows that were handed out, and others up to [`Policy::head_bytes`]. Without room there, or among the
//!   ranges of `purged`, rows wait in line: live rows become backlog.
//!
//! [`Policy::head_bytes`]: super::Policy::head_bytes

use super::{Disk, Queue, Row, Slot};
use std::collections::BTreeMap;

/// Of so many rows that leave one is of the backlog: enough that it ends, and little enough that live rows hardly notice.
const SHARE: u8 = 4;

/// In which order rows leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// As they came.
    #[default]
    InOrder,
    /// What comes while the destination is up goes ahead of what waits.
    LiveFirst,
}

/// What is to be known of a row that is handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// It may have been handed out before.
    pub again: bool,
    /// A row that came after it was handed out before it, or may have been by an earlier process life.
    pub late: bool,
    /// It goes ahead of others.
    pub ahead: bool,
}

/// Of a queue with [`Order::LiveFirst`].
#[derive(Debug)]
pub(super) struct Live<R> {
    /// Rows from this number on are live, while the destination is up.
    pub(super) from: u64,
    /// Rows that are on disk and not part of the gap, by number.
    pub(super) ahead: BTreeMap<u64, Slot<R>>,
    /// Bytes of those.
    bytes: usize,
    /// The live lane has nothing left up to this number.
    passed: u64,
    /// Rows that left ahead since the last one of the backlog.
    streak: u8,
    /// The highest number that was handed out.
    handed_max: u64,
}

/// Where a row is in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spot {
    Head(usize),
    Ahead(u64),
    Fresh(usize),
}

impl<R> Live<R> {
    /// Rows below `handed_max` are late, unless they were handed out.
    pub(super) fn new(handed_max: u64) -> Self {
        Self { from: 0, ahead: BTreeMap::new(), bytes: 0, passed: 0, streak: 0, handed_max }
    }

    /// Whether a row is late that is handed out now.
    pub(super) fn is_late(&self, slot: &Slot<R>) -> bool {
        slot.late || !slot.handed && slot.seq < self.handed_max
    }

    /// A row was handed out.
    pub(super) fn handed(&mut self, seq: u64, ahead: bool) {
        self.handed_max = self.handed_max.max(seq);
        if ahead {
            self.passed = seq;
            self.streak = self.streak.saturating_add(1);
        } else {
            self.streak = 0;
        }
    }

    pub(super) fn keep(&mut self, slot: Slot<R>) {
        self.bytes += slot.size;
        self.ahead.insert(slot.seq, slot);
    }

    pub(super) fn remove(&mut self, seq: u64) -> Option<Slot<R>> {
        let slot = self.ahead.remove(&seq)?;
        self.bytes -= slot.size;
        Some(slot)
    }

    /// The live lane begins again.
    pub(super) fn reset(&mut self) {
        (self.passed, self.streak) = (0, 0);
    }
}

impl<R: Row> Queue<R> {
    /// Whether a row may go ahead of a backlog.
    pub(super) fn is_live(&self, seq: u64) -> bool {
        self.has_live_lane() && self.live.as_ref().is_some_and(|live| seq >= live.from)
    }

    fn has_live_lane(&self) -> bool {
        self.up && self.policy.order == Order::LiveFirst
    }

    /// Whether head has a row that waits and is not live.
    pub(super) fn has_backlog_in_head(&self) -> bool {
        let waits = |s: &&Slot<R>| s.row.is_some() && s.sent_us.is_none();
        self.live.is_some()
            && self.head.range(self.cursor..).find(waits).is_some_and(|s| !self.is_live(s.seq))
    }

    /// The next row to hand out. The cursor is at the next one of head.
    pub(super) fn next_out(&mut self) -> Option<Spot> {
        if let Some((seq, spot)) = self.next_ahead()
            && self.is_its_turn(seq, spot)
            && self.set_apart(spot)
        {
            return Some(spot);
        }
        self.head.get(self.cursor).filter(|s| s.may_leave()).map(|_| Spot::Head(self.cursor))
    }

    /// The next row of the live lane.
    pub(super) fn next_ahead(&self) -> Option<(u64, Spot)> {
        let live = self.live.as_ref()?;
        let mut kept = live.ahead.range(live.passed + 1..);
        if let Some((&seq, _)) = kept.find(|(_, slot)| slot.sent_us.is_none()) {
            return Some((seq, Spot::Ahead(seq)));
        }
        let at = self.fresh.partition_point(|s| s.seq <= live.passed);
        let waits = |s: &Slot<R>| s.sent_us.is_none() && (s.apart || self.is_live(s.seq));
        let (index, slot) = self.fresh.range(at..).enumerate().find(|(_, slot)| waits(slot))?;
        slot.may_leave().then_some((slot.seq, Spot::Fresh(at + index)))
    }

    /// Rows of `fresh` that the live lane will never have are not looked at again.
    pub(super) fn pass_backlog(&mut self) {
        let has_lane = self.has_live_lane();
        let Some(live) = &mut self.live else { return };
        let at = self.fresh.partition_point(|s| s.seq <= live.passed);
        let gone = |s: &&Slot<R>| s.sent_us.is_some() || !(s.apart || has_lane && s.seq >= live.from);
        let last = self.fresh.range(at..).take_while(gone).last().map(|s| s.seq);
        // Not past rows of `ahead` that wait: their turn comes first.
        if live.ahead.range(live.passed + 1..).all(|(_, slot)| slot.sent_us.is_some()) {
            live.passed = last.unwrap_or(live.passed);
        }
    }

    fn is_its_turn(&self, seq: u64, spot: Spot) -> bool {
        let streak = self.live.as_ref().map_or(0, |live| live.streak);
        match self.head.get(self.cursor) {
            Some(head) if head.seq < seq => {
                !self.is_live(head.seq) && (streak < SHARE - 1 || !head.may_leave())
            }
            Some(_) => true,
            // With nothing to pass it waits for its place in head.
            None => matches!(spot, Spot::Ahead(_)) || self.passes(seq),
        }
    }

    /// Whether a row leaves before another one that came earlier.
    pub(super) fn passes(&self, seq: u64) -> bool {
        self.head.get(self.cursor).is_some_and(|s| s.seq < seq)
            || self.gap.is_some_and(|gap| gap.first < seq)
            || self.fresh.front().is_some_and(|s| s.seq < seq && s.sent_us.is_none())
    }

    /// Keeps a row out of the gap. False: there are too many ranges.
    fn set_apart(&mut self, spot: Spot) -> bool {
        let Spot::Fresh(index) = spot else { return true };
        let (seq, apart) = (self.fresh[index].seq, self.fresh[index].apart);
        if !apart && !self.note_apart(seq) {
            return false;
        }
        self.fresh[index].apart = true;
        true
    }

    fn note_apart(&mut self, seq: u64) -> bool {
        if self.note_purged(seq) {
            return true;
        }
        self.forget_purged();
        self.note_purged(seq)
    }

    /// Takes a row that was committed, or gives it back to become a part of the gap.
    pub(super) fn keep_ahead(&mut self, mut slot: Slot<R>) -> Option<Slot<R>> {
        let room = self.live.as_ref().map_or(0, |live| self.policy.head_bytes.saturating_sub(live.bytes));
        slot.apart = slot.apart || self.is_live(slot.seq) && slot.size <= room && self.note_apart(slot.seq);
        match &mut self.live {
            Some(live) if slot.apart => {
                slot.disk = Disk::Yes;
                live.keep(slot);
                None
            }
            Some(live) => {
                live.from = live.from.max(slot.seq + 1);
                Some(slot)
            }
            None => Some(slot),
        }
    }

    /// Where a row is, if it is in memory.
    pub(super) fn spot(&self, seq: u64) -> Option<Spot> {
        if let Ok(index) = self.head.binary_search_by_key(&seq, |s| s.seq) {
            return Some(Spot::Head(index));
        }
        if self.live.as_ref().is_some_and(|live| live.ahead.contains_key(&seq)) {
            return Some(Spot::Ahead(seq));
        }
        self.fresh.binary_search_by_key(&seq, |s| s.seq).ok().map(Spot::Fresh)
    }

    pub(super) fn at(&self, spot: Spot) -> Option<&Slot<R>> {
        match spot {
            Spot::Head(index) => self.head.get(index),
            Spot::Ahead(seq) => self.live.as_ref()?.ahead.get(&seq),
            Spot::Fresh(index) => self.fresh.get(index),
        }
    }

    pub(super) fn at_mut(&mut self, spot: Spot) -> Option<&mut Slot<R>> {
        match spot {
            Spot::Head(index) => self.head.get_mut(index),
            Spot::Ahead(seq) => self.live.as_mut()?.ahead.get_mut(&seq),
            Spot::Fresh(index) => self.fresh.get_mut(index),
        }
    }

    /// Rows that are set apart and on disk, in their order.
    pub(super) fn ahead(&self) -> impl Iterator<Item = &Slot<R>> {
        self.live.iter().flat_map(|live| live.ahead.values())
    }
}
