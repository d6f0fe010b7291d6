//! Outboxes of nodes that are gone, which this node was given to deliver.
//!
//! # Operation
//! Each is an [`Outbox`] beside that of its sink and class here, with the same consumer, under a class of its own above all others: its rows leave
//! before those that came here, so that a device which went from that node to this one finds its rows in their order. They stay where they are in
//! the store, are read by and by, and are removed when they are delivered; nothing is added.
//!
//! # Invariants
//! A class that an outbox had is another one's only when the consumer has none of its rows: an answer is never taken for another row's.

use super::Hub;
use super::outbox::{CLASSES, Outbox, class_name};
use ferrule_outbox::{Policy, Queue};
use ferrule_store::record::Entry;
use ferrule_store::{Inherited, Now, QueueId, QueueSummary};
use std::sync::Arc;
use std::time::Duration;

/// From this one on classes are of inherited outboxes: a row's number has room for 255.
const FIRST: u16 = 16;
const LAST: u16 = u8::MAX as u16;

/// Rows that were delivered are removed so soon: until then their node, when it is back, delivers them again.
const REMOVAL: Duration = Duration::from_millis(100);

/// Whether it is the class of an inherited outbox.
pub(super) fn is_inherited(class: u16) -> bool {
    class >= FIRST
}

/// Bounds and times of an outbox.
pub(super) fn policy(class: u16, policy: Policy) -> Policy {
    if is_inherited(class) { Policy { removal: REMOVAL, ..policy } } else { policy }
}

impl Hub {
    /// All outboxes that the node looks after from now on.
    pub(super) fn inherit(&mut self, inherited: &[Inherited], now: Now) {
        self.inherited = inherited.iter().filter(|i| i.of.is_outbox()).cloned().collect();
        for outbox in self.outboxes.iter_mut().filter(|o| is_inherited(o.class)) {
            if !inherited.iter().any(|i| i.summary.queue == outbox.queue.id()) {
                outbox.retire();
            }
        }
        self.claim_inherited(now);
    }

    /// Rows of outboxes that are looked after here, and whose sink the rules do not name.
    pub(super) fn inherited_unclaimed(&self) -> u64 {
        self.inherited.iter().filter(|i| self.heir_of(i.of).is_none()).map(|i| i.summary.rows).sum()
    }

    /// The sink's outbox here, and the class, of an outbox that another node has.
    fn heir_of(&self, of: QueueId) -> Option<(usize, u16)> {
        self.outboxes.iter().enumerate().filter(|(_, o)| o.class == 0).find_map(|(index, o)| {
            let class = CLASSES.iter().map(|(class, _)| *class);
            class.into_iter().find(|class| QueueId::outbox(&o.sink, *class) == of).map(|class| (index, class))
        })
    }

    /// Makes outboxes of those that are this shard's and whose sink is known.
    pub(super) fn claim_inherited(&mut self, now: Now) {
        for at in 0..self.inherited.len() {
            let Inherited { summary, of, .. } = self.inherited[at];
            let Some((heir, class)) = self.heir_of(of) else { continue };
            if self.outboxes[heir].owner != self.node.place.index {
                continue;
            }
            if let Some(known) = self.outboxes.iter().position(|o| o.queue.id() == summary.queue) {
                self.go_on(known, summary, now);
                continue;
            }
            let used = |class| self.outboxes.iter().position(|o| o.class == class);
            let free = |class: &u16| used(*class).is_none_or(|at| self.outboxes[at].is_free());
            // They wait in the store when there are too many.
            let Some(slot) = (FIRST..=LAST).find(free) else { return };
            let heir = &self.outboxes[heir];
            let name = format!("{}@{}", class_name(&heir.sink, class), self.inherited[at].node);
            tracing::info!(
                outbox = name,
                rows = summary.rows,
                "the node that had these rows is gone: they are delivered from here"
            );
            let mut queue = self.inherited_queue(summary, slot);
            queue.set_up(heir.queue.is_up(), now);
            let place = (heir.owner, slot);
            let outbox = Outbox::new(name.into(), Arc::clone(&heir.sink), place, queue, Some(heir));
            match used(slot) {
                Some(at) => self.outboxes[at] = outbox,
                None => self.outboxes.push(outbox),
            }
            self.has_classes = true;
        }
    }

    /// Its node, which was only cut off, has written there since.
    fn go_on(&mut self, at: usize, summary: QueueSummary, now: Now) {
        let known = &self.outboxes[at];
        let last = known.queue.last();
        if summary.last > last && known.is_free() && known.queue.counters().queued == 0 {
            let summary = QueueSummary { first: summary.first.max(last + 1), ..summary };
            let (up, mut queue) = (known.queue.is_up(), self.inherited_queue(summary, known.class));
            queue.set_up(up, now);
            self.outboxes[at].queue = queue;
        }
    }

    fn inherited_queue(&self, summary: QueueSummary, class: u16) -> Queue<Arc<Entry>> {
        Queue::new(summary.queue, policy(class, self.node.outboxes.policy), Some(summary))
    }
}
