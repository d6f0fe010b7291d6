//! Counters of an uplink: written by its task, read by anyone.

use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// What the uplink is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum LinkState {
    /// Not started, or stopped.
    #[default]
    Stopped = 0,
    /// Looking up, connecting or waiting for CONNACK.
    Connecting = 1,
    /// Connected and accepted.
    Up = 2,
    /// Waiting before the next try.
    Waiting = 3,
}

impl LinkState {
    /// The word that status shows.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Connecting => "connecting",
            Self::Up => "up",
            Self::Waiting => "waiting",
        }
    }
}

/// Counters since the process started. Each is exact; a snapshot is not one instant.
#[derive(Debug, Default)]
pub struct UplinkStats {
    pub(crate) state: AtomicU8,
    pub(crate) connected_since_wall_ms: AtomicI64,
    pub(crate) connects: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) sent: AtomicU64,
    pub(crate) acknowledged: AtomicU64,
    pub(crate) discarded: AtomicU64,
    pub(crate) deferred: AtomicU64,
    pub(crate) in_flight: AtomicU64,
    pub(crate) waiting: AtomicU64,
    pub(crate) bytes_out: AtomicU64,
    pub(crate) bytes_in: AtomicU64,
    pub(crate) writes: AtomicU64,
    pub(crate) last_error: Mutex<Option<String>>,
    /// [`NEVER`]: there is no certificate.
    pub(crate) certificate_expires_s: AtomicI64,
    pub(crate) certificate_error: Mutex<Option<String>>,
}

/// No time: that of no certificate.
const NEVER: i64 = 0;

/// One reading of [`UplinkStats`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UplinkSnapshot {
    /// What it is doing.
    pub state: LinkState,
    /// Since when it is up, milliseconds since 1970; none while it is not.
    pub connected_since_wall_ms: Option<i64>,
    /// Connections accepted by CONNACK; the first one included.
    pub connects: u64,
    /// Tries that failed and connections that were lost.
    pub failures: u64,
    /// PUBLISH packets sent, a row sent twice counted twice.
    pub sent: u64,
    /// Rows answered with *delivered*.
    pub acknowledged: u64,
    /// Rows answered with *discarded*.
    pub discarded: u64,
    /// Acknowledgements that said "not now" (quota and the like): the row was kept and is tried again.
    pub deferred: u64,
    /// Rows sent and not acknowledged.
    pub in_flight: u64,
    /// Rows taken from the outbox and not sent on this connection.
    pub waiting: u64,
    /// Bytes written to the socket.
    pub bytes_out: u64,
    /// Bytes read from the socket.
    pub bytes_in: u64,
    /// System calls that wrote: `bytes_out / writes` is the batching.
    pub writes: u64,
    /// What went wrong last; none since the last success.
    pub last_error: Option<String>,
    /// When the certificate that is shown ends, in seconds since 1970; none without one.
    pub certificate_expires_s: Option<i64>,
    /// Why the certificates on disk are not those in force, if they are not.
    pub certificate_error: Option<String>,
}

impl UplinkStats {
    /// Reads all counters.
    #[must_use]
    pub fn snapshot(&self) -> UplinkSnapshot {
        let state = match self.state.load(Relaxed) {
            1 => LinkState::Connecting,
            2 => LinkState::Up,
            3 => LinkState::Waiting,
            _ => LinkState::Stopped,
        };
        UplinkSnapshot {
            state,
            connected_since_wall_ms: (state == LinkState::Up)
                .then(|| self.connected_since_wall_ms.load(Relaxed)),
            connects: self.connects.load(Relaxed),
            failures: self.failures.load(Relaxed),
            sent: self.sent.load(Relaxed),
            acknowledged: self.acknowledged.load(Relaxed),
            discarded: self.discarded.load(Relaxed),
            deferred: self.deferred.load(Relaxed),
            in_flight: self.in_flight.load(Relaxed),
            waiting: self.waiting.load(Relaxed),
            bytes_out: self.bytes_out.load(Relaxed),
            bytes_in: self.bytes_in.load(Relaxed),
            writes: self.writes.load(Relaxed),
            last_error: read(&self.last_error),
            certificate_expires_s: Some(self.certificate_expires_s.load(Relaxed)).filter(|s| *s != NEVER),
            certificate_error: read(&self.certificate_error),
        }
    }

    pub(crate) fn set_state(&self, state: LinkState) {
        self.state.store(state as u8, Relaxed);
    }

    pub(crate) fn set_error(&self, error: Option<String>) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }

    pub(crate) fn set_certificate(&self, expires_s: Option<i64>, error: Option<String>) {
        self.certificate_expires_s.store(expires_s.unwrap_or(NEVER), Relaxed);
        *self.certificate_error.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }
}

fn read(text: &Mutex<Option<String>>) -> Option<String> {
    text.lock().unwrap_or_else(PoisonError::into_inner).clone()
}
