//! Counters of an uplink: written by its task, read by anyone.

use ferrule_transport::tls::CertificateInfo;
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
    pub(crate) batches: AtomicU64,
    pub(crate) received: AtomicU64,
    pub(crate) received_unmatched: AtomicU64,
    pub(crate) acknowledged: AtomicU64,
    pub(crate) discarded: AtomicU64,
    pub(crate) deferred: AtomicU64,
    pub(crate) in_flight: AtomicU64,
    pub(crate) waiting: AtomicU64,
    pub(crate) bytes_out: AtomicU64,
    pub(crate) bytes_in: AtomicU64,
    pub(crate) writes: AtomicU64,
    pub(crate) last_error: Mutex<Option<String>>,
    pub(crate) certificates: Mutex<Vec<CertificateInfo>>,
    pub(crate) certificate_error: Mutex<Option<String>>,
}

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
    /// Rows sent, a row sent twice counted twice.
    pub sent: u64,
    /// Batches sent; their rows are among `sent`.
    pub batches: u64,
    /// Messages received from the broker.
    pub received: u64,
    /// Those that no filter of ours asked for, or whose topic here would be none.
    pub received_unmatched: u64,
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
    /// Certificates in force for the next connection: our own, then its chain.
    pub certificates: Vec<CertificateInfo>,
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
            batches: self.batches.load(Relaxed),
            received: self.received.load(Relaxed),
            received_unmatched: self.received_unmatched.load(Relaxed),
            acknowledged: self.acknowledged.load(Relaxed),
            discarded: self.discarded.load(Relaxed),
            deferred: self.deferred.load(Relaxed),
            in_flight: self.in_flight.load(Relaxed),
            waiting: self.waiting.load(Relaxed),
            bytes_out: self.bytes_out.load(Relaxed),
            bytes_in: self.bytes_in.load(Relaxed),
            writes: self.writes.load(Relaxed),
            last_error: read(&self.last_error),
            certificates: read(&self.certificates),
            certificate_error: read(&self.certificate_error),
        }
    }

    pub(crate) fn set_state(&self, state: LinkState) {
        self.state.store(state as u8, Relaxed);
    }

    pub(crate) fn set_error(&self, error: Option<String>) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }

    pub(crate) fn set_certificates(&self, infos: &[CertificateInfo], error: Option<String>) {
        *self.certificates.lock().unwrap_or_else(PoisonError::into_inner) = infos.to_vec();
        *self.certificate_error.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }
}

fn read<T: Clone>(value: &Mutex<T>) -> T {
    value.lock().unwrap_or_else(PoisonError::into_inner).clone()
}
