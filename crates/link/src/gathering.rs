//! Rows that wait for others, to leave with them. Pure.
//!
//! # Constraints
//! What a message costs on a link is mostly what is around it: headers of IP, TCP and TLS, an acknowledgement of each. Rows that
//! leave together share all of that. But somebody may wait for a row, so there is a longest time; and a row that waits keeps its place
//! among those that the outbox has handed out, so when those are all that it may hand out nothing more can come.
//!
//! # Operation
//! Two who wait: a batch to a Ferrule cloud ([`crate::batching`]; 20 ms, one batch at a time), and a link that is paid for by volume
//! ([`Metered`]; a minute, all that is there at once, in as many packets or batches as that takes). With both the second decides.

use crate::flow::{Flow, Held};
use std::time::Duration;

/// Bytes that a row takes beside its texts and payload, at most about.
const ROW: usize = 40;

/// The most that rows may wait for, in bytes: an edge's outbox hands out 2 MiB of rows at most, and the smallest ones cost it six
/// times what they are counted with here.
pub const METERED_BYTES_MAX: usize = 256 * 1024;

/// Keep alive on a link that is paid for, unless one is written: a ping after 150 s without a word. Carriers and load
/// balancers forget a silent connection after 4 minutes at the earliest, as far as they publish it; and a ping with all around it is some 170
/// bytes, at 15 s of keep alive 2 MB a day.
pub const METERED_KEEP_ALIVE: Duration = Duration::from_secs(300);

/// A link that is paid for by volume: rows wait until there are so many bytes of them, or so long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metered {
    /// Bytes of payloads, properties and what is counted for each row beside them; at most [`METERED_BYTES_MAX`].
    pub bytes: usize,
    /// The longest time.
    pub time: Duration,
}

impl Default for Metered {
    /// A minute, or the bytes that a batch is compressed well at.
    fn default() -> Self {
        Self { bytes: 16 * 1024, time: Duration::from_secs(60) }
    }
}

impl Metered {
    /// Rows that the outbox has to hand out at least, or their number would end the wait and not their bytes.
    #[must_use]
    pub fn window(&self) -> usize {
        self.bytes / ROW + 1
    }
}

/// When rows that wait leave.
#[derive(Debug, Clone, Copy)]
pub struct Gathering {
    /// The longest wait.
    delay_us: u64,
    /// So many rows, or so many bytes, wait for no more.
    rows: usize,
    bytes: usize,
    /// Rows that the outbox hands out at most.
    window: usize,
    /// Whether all that waits leaves then, or one batch of it.
    all: bool,
}

impl Gathering {
    /// For batches of at most so many `rows` and `bytes`; `window` rows may be unanswered.
    pub(crate) fn of_batches(delay: Duration, window: usize, rows: usize, bytes: usize) -> Self {
        Self { delay_us: micros(delay), rows, bytes, window, all: false }
    }

    /// For a link that is paid for; `window` rows may be unanswered.
    #[must_use]
    pub fn of_metered(metered: &Metered, window: usize) -> Self {
        Self { delay_us: micros(metered.time), rows: usize::MAX, bytes: metered.bytes, window, all: true }
    }
}

impl Flow {
    /// Whether rows may leave now.
    pub(crate) fn is_gathered(&mut self, now_us: u64) -> bool {
        let (Some(due_us), Some(first)) = (self.gathered_us(), self.queue.front()) else { return false };
        let leaves = due_us <= now_us;
        // Not of a row that leaves already: what comes while a burst is under way waits for the next.
        let is_next = first.order >= self.leaves_to;
        if leaves && is_next && self.gathering().is_some_and(|gathering| gathering.all) {
            self.leaves_to = self.next_order;
        }
        leaves
    }

    /// When the row leaves that waits longest, if none comes; none: no row waits.
    pub(crate) fn gathered_us(&self) -> Option<u64> {
        let first = self.queue.front()?;
        let Some(gathering) = self.gathering() else { return Some(0) };
        if self.hurried || first.order < self.leaves_to || self.is_full(&gathering) {
            return Some(0);
        }
        Some(first.came_us.saturating_add(gathering.delay_us))
    }

    fn gathering(&self) -> Option<Gathering> {
        self.metered.or_else(|| self.batching.as_ref().map(|batching| batching.gathering))
    }

    fn is_full(&self, gathering: &Gathering) -> bool {
        let mut bytes = 0;
        self.known.len() >= gathering.window
            || self.queue.len() >= gathering.rows
            || self.queue.iter().any(|row| {
                bytes += size(row);
                bytes >= gathering.bytes
            })
    }
}

/// What a row takes on the way, about.
fn size(row: &Held) -> usize {
    let entry = &row.row.entry;
    entry.payload.len() + entry.properties.len() + ROW
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
