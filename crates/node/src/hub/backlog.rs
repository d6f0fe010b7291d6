//! An outbox's rows for an operator: shown in pages, given up by hand. See [`crate::backlog`] for who asks.

use super::Hub;
use ferrule_outbox::{GivenUp, Next, Place};
use ferrule_store::record::Entry;
use ferrule_store::{Now, QueueId, QueueSummary};
use std::sync::Arc;
use tokio::sync::oneshot;

/// Rows of a page.
pub const PAGE_ROWS: usize = 256;
/// Bytes of a page's payloads, about: the row that reaches it is the last.
pub const PAGE_BYTES: usize = 1 << 20;

/// What is asked. Each answer is none when this shard has no outbox of that name.
pub enum Ask {
    /// Rows that are in memory, from the one after `after`.
    Page {
        /// The outbox.
        name: Arc<str>,
        /// The last row that was shown; 0 for none.
        after: u64,
        /// Answered with.
        reply: oneshot::Sender<Option<Shown>>,
    },
    /// Gives rows up: number and size of each. Those that the consumer has, only while its destination is down.
    GiveUp {
        /// The outbox.
        name: Arc<str>,
        /// Number and size.
        rows: Vec<(u64, usize)>,
        /// Answered with.
        reply: oneshot::Sender<Option<GivenUp>>,
    },
    /// What the store holds for outboxes that no rule names.
    Unclaimed(oneshot::Sender<Vec<QueueSummary>>),
    /// Rows of such an outbox were removed from the store.
    Removed {
        /// Which.
        queue: QueueId,
        /// Rows.
        rows: u64,
        /// Bytes of heads and bodies.
        bytes: u64,
    },
}

/// A page of what is in memory.
#[derive(Debug)]
pub struct Shown {
    /// Number, row, and where it is.
    pub rows: Vec<(u64, Arc<Entry>, Place)>,
    /// What follows.
    pub next: Next,
    /// The highest number that a row has.
    pub last: u64,
    /// The destination can be reached: rows in its consumer's hands are about to be answered.
    pub up: bool,
}

impl Hub {
    pub(super) fn asked(&mut self, ask: Ask, now: Now) {
        // Whoever asked may have gone.
        match ask {
            Ask::Page { name, after, reply } => drop(reply.send(self.page(&name, after))),
            Ask::GiveUp { name, rows, reply } => drop(reply.send(self.give_up(&name, &rows, now))),
            Ask::Unclaimed(reply) => drop(reply.send(self.unclaimed().copied().collect())),
            Ask::Removed { queue, rows, bytes } => {
                if let Some(stored) = self.stored.iter_mut().find(|s| s.queue == queue) {
                    stored.rows = stored.rows.saturating_sub(rows);
                    stored.bytes = stored.bytes.saturating_sub(bytes);
                }
                self.stored.retain(|s| s.queue != queue || s.rows > 0);
            }
        }
    }

    fn own(&mut self, name: &str) -> Option<&mut super::Outbox> {
        let index = self.node.place.index;
        self.outboxes.iter_mut().find(|o| o.owner == index && *o.name == *name)
    }

    fn page(&mut self, name: &str, after: u64) -> Option<Shown> {
        let outbox = self.own(name)?;
        let (mut rows, mut bytes) = (Vec::new(), 0);
        let next = outbox.queue.page(after, |seq, entry, place| {
            rows.push((seq, Arc::clone(entry), place));
            bytes += entry.payload.len();
            rows.len() < PAGE_ROWS && bytes < PAGE_BYTES
        });
        Some(Shown { rows, next, last: outbox.queue.last(), up: outbox.queue.is_up() })
    }

    fn give_up(&mut self, name: &str, rows: &[(u64, usize)], now: Now) -> Option<GivenUp> {
        let outbox = self.own(name)?;
        let given_up = outbox.give_up(rows, now);
        if given_up.rows > 0 {
            tracing::warn!(outbox = name, rows = given_up.rows, "an operator gave rows up");
        }
        Some(given_up)
    }
}
