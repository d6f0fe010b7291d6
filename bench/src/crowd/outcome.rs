//! What a crowd found, or why it found nothing.

use std::io;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::tally::Summary;

/// What came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CrowdOutcome {
    /// Clients asked for.
    pub clients: u64,
    /// Connected and subscribed.
    pub ready: u64,
    /// Connections that were refused or ended, over the whole run.
    pub closed: u64,
    /// The first reason.
    pub why: Option<String>,
    /// Time until all were ready, in seconds.
    pub connect_seconds: f64,
    /// Length of the hold, in seconds.
    pub hold_seconds: f64,
    /// Clients that were answered at least one ping.
    pub pinged: u64,
    /// Messages that came to whom they were for.
    pub reached: u64,
    /// Messages that did not come.
    pub lost: u64,
    /// From the first message to the last delivery, in seconds.
    pub reach_seconds: f64,
    /// Sending to delivery.
    pub latency: Summary,
    /// The watched process.
    pub watched: Option<CrowdWatched>,
    /// What the kernel had allocated for its own objects (`Slab` in `/proc/meminfo`) before, in bytes: sockets are among them, both ends
    /// when both are here.
    pub slab_bytes_before: u64,
    /// The same at the end of the hold.
    pub slab_bytes_held: u64,
}

/// The watched process over the parts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrowdWatched {
    /// Resident memory before the first connection, in bytes.
    pub rss_bytes_before: u64,
    /// At the end of the hold.
    pub rss_bytes_held: u64,
    /// After all were reached.
    pub rss_bytes_reached: u64,
    /// CPU time of connecting, in nanoseconds.
    pub cpu_ns_connect: u64,
    /// Of the hold.
    pub cpu_ns_hold: u64,
    /// Of reaching all.
    pub cpu_ns_reach: u64,
}

/// Why there is no outcome.
#[derive(Debug, Error)]
pub enum CrowdError {
    /// The plan makes no sense; the text says why.
    #[error("{0}")]
    Plan(String),
    /// No socket, or epoll itself failed.
    #[error("client {at}: {error}")]
    Socket {
        /// How many were there before.
        at: usize,
        /// What the system said: more open files (`ulimit -n`) are needed, as a rule.
        error: io::Error,
    },
    /// The publisher's connection ended.
    #[error("the publisher: {0}")]
    Publisher(String),
}
