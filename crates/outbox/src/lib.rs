//! Receipts and queues: what an acknowledgement waits for, and store-and-forward over the store's ops.
//!
//! - [`receipt`]: a publish that must wait takes a receipt with a count of pending ends; each end is *delivered*,
//!   *retry* or *discarded*. The publish is acknowledged when its last end is safe.
//! - [`queue`]: one structure for outboxes and for sessions' queues: memory first, written only when the
//!   destination has not acknowledged in time, bounded, in order.
//! - [`consumer`]: what takes rows out of an outbox (the uplink, a sink), as messages.
//!
//! Pure: time is an argument, ops and rows come out.

#![forbid(unsafe_code)]

pub mod consumer;
pub mod queue;
pub mod receipt;

pub use consumer::{ConsumerEvent, Delivered, OutRow};
pub use queue::{Counters, Full, GivenUp, Mark, Next, Order, Place, Policy, Queue, Row};
pub use receipt::{Completed, End, Outcome, Reason, ReceiptId, Receipts};
