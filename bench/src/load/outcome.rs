//! What a run found, or why it found nothing.

use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::tally::Summary;
use crate::wire::WireError;

/// How long connecting and subscribing may take.
pub(super) const SETUP: Duration = Duration::from_secs(30);

/// What came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Messages sent, over the whole run.
    pub published: u64,
    /// Of those, acknowledged (PUBACK, PUBREC; QoS 0: sent) without a refusal.
    pub acknowledged: u64,
    /// Acknowledged with a reason of 0x80 or more.
    pub refused: u64,
    /// Deliveries, duplicates included, over the whole run.
    pub delivered: u64,
    /// Deliveries owed and never made.
    pub lost: u64,
    /// Deliveries beyond the first of the same message.
    pub duplicates: u64,
    /// Deliveries after one of a later message of the same publisher.
    pub order_breaks: u64,
    /// Deliveries of what was not asked for: wrong receiver, foreign payload.
    pub strays: u64,
    /// How often what was out was given up.
    pub stalls: u64,
    /// Length of the measured part, in seconds.
    pub seconds: f64,
    /// Ends in the measured part: deliveries, or acknowledgements when there are no subscribers.
    pub ends: u64,
    /// Send (or due) time to delivery, in the measured part.
    pub latency: Summary,
    /// Send (or due) time to PUBACK or PUBREC, in the measured part.
    pub ack_latency: Summary,
    /// CPU time of the generator in the measured part, in nanoseconds.
    pub own_cpu_ns: u64,
    /// The watched processes, in the order asked for.
    pub watched: Vec<Watched>,
}

/// A watched process over the measured part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watched {
    /// Its pid.
    pub pid: u32,
    /// CPU time at the start of the measured part, in nanoseconds since the process began.
    pub cpu_ns_start: u64,
    /// The same at its end.
    pub cpu_ns_end: u64,
    /// Resident memory at its end, in bytes.
    pub rss_bytes: u64,
}

/// Why a run gives no outcome.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The plan makes no sense; the text says why.
    #[error("{0}")]
    Plan(String),
    /// Not all clients were connected and subscribed within 30 s.
    #[error("only {ready} of {all} clients were ready after {SETUP:?}")]
    Setup {
        /// Clients that were ready.
        ready: usize,
        /// All of them.
        all: usize,
    },
    /// The broker refused a client.
    #[error("client {client}: {packet} with reason {reason:#04x}")]
    Refused {
        /// Its client id.
        client: String,
        /// The answer that refused it.
        packet: &'static str,
        /// Its code.
        reason: u8,
    },
    /// A connection ended.
    #[error("client {client}: the connection ended: {why}")]
    Closed {
        /// Its client id.
        client: String,
        /// What the socket said.
        why: String,
    },
    /// The broker does not speak MQTT.
    #[error("client {client}: {error}")]
    Wire {
        /// Its client id.
        client: String,
        /// What is wrong.
        error: WireError,
    },
    /// epoll itself failed.
    #[error("poll: {0}")]
    Poll(#[from] io::Error),
}
