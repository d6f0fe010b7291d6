//! Time as an argument: nothing below the rim reads a clock.

/// One reading of both clocks, taken at the start of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Now {
    /// Microseconds of the monotonic clock since the process started. Deadlines and ages are measured on it.
    pub mono_us: u64,
    /// Milliseconds since 1970 of the wall clock, which may jump. Only for people and for data.
    pub wall_ms: i64,
}

impl Now {
    /// Microseconds since `earlier`; 0 when that is later.
    #[must_use]
    pub fn since(self, earlier_us: u64) -> u64 {
        self.mono_us.saturating_sub(earlier_us)
    }
}

/// When a message was received: by the monotonic clock of the boot it was received in, and by the wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Stamp {
    /// Milliseconds since 1970.
    pub wall_ms: i64,
    /// Microseconds since that process started; comparable only within one boot.
    pub mono_us: u64,
    /// Whether the wall clock was known to be set when it was read.
    pub synced: bool,
}
