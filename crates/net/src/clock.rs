//! The one place where a worker reads the clocks.

use ferrule_store::Now;
use std::time::Instant;

/// Both clocks; all users of one process share its start.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// Starts the monotonic clock of this process.
    #[must_use]
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// Reads the monotonic one, in microseconds.
    #[must_use]
    pub fn mono_us(self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }

    /// Reads both.
    #[must_use]
    pub fn now(self) -> Now {
        // 584,000 years of microseconds.
        Now { mono_us: self.mono_us(), wall_ms: ferrule_clock::wall_ms() }
    }
}
