//! Contract 1 in code: an acknowledgement passes responsibility, so it waits for every end of its message.
//!
//! A publish with nothing pending never takes a receipt. One that must wait opens a [`Receipts`] entry owned
//! by whoever is to be told (`T`: for the shard, connection and packet id), and each destination takes an
//! [`End`]. The worst end decides: *retry* over *discarded* over *delivered*.
//!
//! An end is linear: it is handed back through [`Receipts::resolve`]. One that is dropped without a word is
//! *retry* (its publisher keeps the message) and raises [`Receipts::lost_ends`], which is a bug counter.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// Why a row was given up: a stable word for counters and reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Larger than the destination takes.
    TooLarge,
    /// The destination's schema or a constraint refuses it.
    Refused,
    /// The rule failed on the message.
    Rule,
    /// It passed too many brokers.
    Loop,
    /// It expired before it could be sent.
    Expired,
    /// A limit that is set to drop was reached.
    Limit,
    /// The rule's target could not be used (an invalid topic, a table name that is empty).
    Target,
    /// The stored row cannot be read.
    Damaged,
    /// The destination was removed from the rules.
    Removed,
    /// An operator gave it up.
    Purged,
    /// It waited longer than rows may.
    Age,
}

impl Reason {
    /// All of them. Shards tell each other places of this list: new ones go to its end.
    pub const ALL: [Self; 11] = [
        Self::TooLarge,
        Self::Refused,
        Self::Rule,
        Self::Loop,
        Self::Expired,
        Self::Limit,
        Self::Target,
        Self::Damaged,
        Self::Removed,
        Self::Purged,
        Self::Age,
    ];

    /// The word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::Refused => "refused",
            Self::Rule => "rule",
            Self::Loop => "loop",
            Self::Expired => "expired",
            Self::Limit => "limit",
            Self::Target => "target",
            Self::Damaged => "damaged",
            Self::Removed => "removed",
            Self::Purged => "purged",
            Self::Age => "age",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How an end ended. Ordered by severity: the worst end decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// The destination, or the store, has it.
    Delivered,
    /// Given up by choice or because it can never succeed; acknowledged all the same, and counted.
    Discarded(Reason),
    /// Nobody has it: it must not be acknowledged, the publisher keeps it.
    Retry,
}

/// Names a receipt. The generation keeps a late answer from meeting another publish in a reused place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ReceiptId {
    index: u32,
    generation: u32,
}

/// Receipts whose ends were dropped without a word.
#[derive(Debug, Default)]
struct Orphans(Mutex<Vec<ReceiptId>>);

/// One end of a publish: whoever holds it decides its fate. Not `Clone`: each end is said once.
#[derive(Debug)]
#[must_use = "an end that is dropped counts as retry and as a bug"]
pub struct End {
    receipt: ReceiptId,
    /// Taken when the end is resolved.
    orphans: Option<Arc<Orphans>>,
}

impl End {
    /// The receipt that this end belongs to.
    #[must_use]
    pub fn receipt(&self) -> ReceiptId {
        self.receipt
    }
}

impl Drop for End {
    fn drop(&mut self) {
        if let Some(orphans) = self.orphans.take() {
            orphans.0.lock().unwrap_or_else(PoisonError::into_inner).push(self.receipt);
        }
    }
}

/// A receipt whose last end was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completed<T> {
    /// The receipt.
    pub id: ReceiptId,
    /// Who is to be told.
    pub owner: T,
    /// The worst of its ends.
    pub outcome: Outcome,
}

#[derive(Debug)]
struct Receipt<T> {
    owner: T,
    pending: u32,
    worst: Outcome,
    /// Set by the owner when its publisher can send nothing more until this is acknowledged.
    urgent: bool,
}

/// All receipts of a shard that are open.
#[derive(Debug)]
pub struct Receipts<T> {
    slots: Vec<(u32, Option<Receipt<T>>)>,
    free: Vec<u32>,
    orphans: Arc<Orphans>,
    urgent: usize,
    lost_ends: u64,
}

impl<T> Default for Receipts<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new(), orphans: Arc::default(), urgent: 0, lost_ends: 0 }
    }
}

impl<T: Copy> Receipts<T> {
    /// No receipts.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens a receipt with its first end.
    pub fn open(&mut self, owner: T) -> End {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            // 2^32 publishes in waiting would be past any memory bound.
            (self.slots.len() - 1) as u32
        });
        let (generation, slot) = &mut self.slots[index as usize];
        *slot = Some(Receipt { owner, pending: 1, worst: Outcome::Delivered, urgent: false });
        End {
            receipt: ReceiptId { index, generation: *generation },
            orphans: Some(Arc::clone(&self.orphans)),
        }
    }

    /// Adds an end to an open receipt.
    ///
    /// # Panics
    /// When the receipt is closed: ends are added while the publish is routed, before any can be said.
    pub fn add_end(&mut self, id: ReceiptId) -> End {
        let receipt = self.get_mut(id).expect("ends are added while the receipt is open");
        receipt.pending += 1;
        End { receipt: id, orphans: Some(Arc::clone(&self.orphans)) }
    }

    /// Says how an end ended. Returns the receipt when it was the last.
    pub fn resolve(&mut self, mut end: End, outcome: Outcome) -> Option<Completed<T>> {
        end.orphans = None;
        self.settle(end.receipt, outcome)
    }

    /// Takes the ends that were dropped without a word, as *retry*. To be called once a turn.
    pub fn sweep(&mut self) -> Vec<Completed<T>> {
        let lost = std::mem::take(&mut *self.orphans.0.lock().unwrap_or_else(PoisonError::into_inner));
        self.lost_ends += lost.len() as u64;
        lost.into_iter().filter_map(|id| self.settle(id, Outcome::Retry)).collect()
    }

    /// Ends dropped without a word since the start: each one is a bug.
    #[must_use]
    pub fn lost_ends(&self) -> u64 {
        self.lost_ends
    }

    /// Receipts that are open.
    #[must_use]
    pub fn open_count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Ends of an open receipt that nobody has said yet, and the worst of those that were.
    #[must_use]
    pub fn pending(&self, id: ReceiptId) -> Option<(u32, Outcome)> {
        let (generation, slot) = self.slots.get(id.index as usize)?;
        let receipt = slot.as_ref().filter(|_| *generation == id.generation)?;
        Some((receipt.pending, receipt.worst))
    }

    /// Marks that the publisher can send nothing more until this receipt completes (contract 2: its window is
    /// full).
    pub fn set_urgent(&mut self, id: ReceiptId) {
        if let Some(receipt) = self.get_mut(id).filter(|r| !r.urgent) {
            receipt.urgent = true;
            self.urgent += 1;
        }
    }

    /// The same for all of some owners.
    pub fn set_urgent_where(&mut self, is: impl Fn(&T) -> bool) {
        for (_, slot) in &mut self.slots {
            if let Some(receipt) = slot.as_mut().filter(|r| !r.urgent && is(&r.owner)) {
                receipt.urgent = true;
                self.urgent += 1;
            }
        }
    }

    /// Open receipts whose publisher waits with a full window.
    #[must_use]
    pub fn urgent_count(&self) -> usize {
        self.urgent
    }

    fn get_mut(&mut self, id: ReceiptId) -> Option<&mut Receipt<T>> {
        let (generation, slot) = self.slots.get_mut(id.index as usize)?;
        if *generation == id.generation { slot.as_mut() } else { None }
    }

    fn settle(&mut self, id: ReceiptId, outcome: Outcome) -> Option<Completed<T>> {
        let receipt = self.get_mut(id)?;
        receipt.worst = receipt.worst.max(outcome);
        receipt.pending -= 1;
        if receipt.pending > 0 {
            return None;
        }
        let completed = Completed { id, owner: receipt.owner, outcome: receipt.worst };
        let urgent = receipt.urgent;
        self.urgent -= usize::from(urgent);
        let (generation, slot) = &mut self.slots[id.index as usize];
        *slot = None;
        *generation = generation.wrapping_add(1);
        self.free.push(id.index);
        Some(completed)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_worst_end_decides() {
        let (d, x, r) = (Outcome::Delivered, Outcome::Discarded(Reason::TooLarge), Outcome::Retry);
        for (ends, worst) in [
            (vec![d], d),
            (vec![d, x], x),
            (vec![x, d], x),
            (vec![d, r, x], r),
            (vec![r, d], r),
            (vec![x, x], x),
        ] {
            let mut receipts = Receipts::new();
            let first = receipts.open(7);
            let mut open = vec![first];
            for _ in 1..ends.len() {
                let id = open[0].receipt();
                open.push(receipts.add_end(id));
            }
            let last = ends.len() - 1;
            for (i, (end, outcome)) in open.into_iter().zip(&ends).enumerate() {
                let done = receipts.resolve(end, *outcome);
                assert_eq!(done.map(|c| (c.owner, c.outcome)), (i == last).then_some((7, worst)), "{ends:?}");
            }
            assert_eq!((receipts.open_count(), receipts.lost_ends()), (0, 0));
        }
    }

    #[test]
    fn an_end_dropped_without_a_word_is_retry_and_counted() {
        let mut receipts = Receipts::new();
        let first = receipts.open(1);
        let second = receipts.add_end(first.receipt());
        assert_eq!(receipts.pending(second.receipt()), Some((2, Outcome::Delivered)));
        drop(first);
        assert_eq!(receipts.resolve(second, Outcome::Delivered), None);
        let swept = receipts.sweep();
        assert_eq!(swept.iter().map(|c| (c.owner, c.outcome)).collect::<Vec<_>>(), [(1, Outcome::Retry)]);
        assert_eq!(receipts.lost_ends(), 1);
    }

    #[test]
    fn a_late_end_never_meets_another_publish() {
        let mut receipts = Receipts::new();
        let first = receipts.open(1);
        let id = first.receipt();
        receipts.resolve(first, Outcome::Delivered).unwrap();
        let second = receipts.open(2);
        assert_eq!(second.receipt().index, id.index);
        receipts.set_urgent(id);
        assert_eq!(receipts.urgent_count(), 0);
        assert_eq!(receipts.resolve(second, Outcome::Delivered).unwrap().owner, 2);
    }
}
