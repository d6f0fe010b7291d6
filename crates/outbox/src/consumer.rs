//! The consumer's side of an outbox: the contract of the uplink and of every sink.
//!
//! The outbox hands rows to a consumer in order (with `live_first` in two, see [`crate::queue`]), at most `window` of them unanswered, and the consumer answers
//! each exactly once with [`Delivered::Yes`] or [`Delivered::Discarded`]. Inside, a consumer may deal rows out to
//! **lanes** (Kafka: a partition; SQL: a table); rows of one order key are always in one lane. In a lane
//! results are a prefix: a row is answered only after all earlier rows of its lane, so that trying again never lets a
//! later message pass an earlier one. What can be tried again is tried again *by the consumer*, with back-off,
//! for as long as it takes: it reports [`ConsumerEvent::Down`] with the reason and keeps its rows, and the outbox
//! in turn writes down what waits. A row that can never succeed (too large, constraint, schema) is *discarded* with
//! a reason, so that no poison row blocks a lane for ever. When a consumer loses its rows (its connection had
//! to be made anew and it does not keep them) it says [`ConsumerEvent::Reset`], and the outbox sends all that is
//! unanswered again, in order, with the same identities.

use crate::Reason;
use ferrule_store::record::Entry;
use std::sync::Arc;
use std::time::Duration;

/// A row handed to a consumer.
#[derive(Debug, Clone)]
pub struct OutRow {
    /// Its number in the outbox: what the answer names.
    pub seq: u64,
    /// The row.
    pub entry: Arc<Entry>,
    /// True when it may have been handed out before (by an earlier connection or process life).
    pub again: bool,
    /// True when rows that came after it were handed out before it, or may have been (`live_first`).
    pub late: bool,
}

/// The last word on one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivered {
    /// The destination has it.
    Yes,
    /// It can never be delivered.
    Discarded(Reason),
}

/// What a consumer tells its outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConsumerEvent {
    /// The destination is reachable; at most `window` rows may be unanswered from now on.
    Up {
        /// Rows.
        window: usize,
    },
    /// From now on rows may wait in the consumer for so long before they leave, to leave together: that time is none of the
    /// destination's.
    Holds {
        /// How long.
        rows: Duration,
    },
    /// The destination cannot be reached or refuses; the consumer keeps its rows and goes on trying.
    Down {
        /// For people: what failed and where.
        error: String,
    },
    /// The rows handed out and not answered are the outbox's again.
    Reset,
    /// Something of the consumer's own happened (a retry, a file rotated): for people, beside the outbox's counters.
    Counted {
        /// What: the same word for the same thing, for ever.
        what: &'static str,
        /// How many more.
        by: u64,
    },
    /// Answers, each row once.
    Done(Vec<(u64, Delivered)>),
}
