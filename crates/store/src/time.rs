//! Time as an argument: nothing below the rim reads a clock.

/// One reading of both clocks, taken at the start of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Now {
    /// Microseconds of the monotonic clock since the process started. Deadlines and ages are measured on it.
    pub mono_us: u64,
    /// Milliseconds since 1970 of the wall clock, which may jump. Only for people and for data.
    pub wall_ms: i64,
}

/// 2026-01-01T00:00:00Z in milliseconds since 1970: a clock that shows less has not been set.
const SET_FROM_MS: i64 = 1_767_225_600_000;

impl Now {
    /// For a message that is received now.
    #[must_use]
    pub fn stamp(self) -> Stamp {
        Stamp { wall_ms: self.wall_ms, mono_us: self.mono_us, synced: self.wall_ms >= SET_FROM_MS }
    }

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
    /// False: the wall clock had not been set when it was read, for sure.
    pub synced: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_never_set_is_said_to_be() {
        for (wall_ms, synced) in [(0, false), (SET_FROM_MS - 1, false), (SET_FROM_MS, true)] {
            let stamp = Now { mono_us: 7, wall_ms }.stamp();
            assert_eq!(stamp, Stamp { wall_ms, mono_us: 7, synced });
        }
    }
}
