//! The wall clock, in 64 bits on every machine.
//!
//! # Why not `std`
//! On 32-bit musl (the static builds for ARMv7 and ARMv6) `std` asks for the time through a C structure with 32-bit seconds: from
//! 2038-01-19T03:14:08Z on that call fails and `SystemTime::now()` panics. A gateway that is installed today still runs then. The kernel has had a
//! call with 64 bits since Linux 5.1, which this crate makes on every machine alike; on an older kernel it falls back to the old one, whose
//! time ends in 2038 whoever asks.
//!
//! # Invariants
//! No other code of the product asks for the wall clock: clippy refuses `SystemTime::now` (`clippy.toml`), and what dependencies would ask for is
//! given to them (rustls, tracing-subscriber) or not used where it would be wrong ([`STD_ENDS_IN_2038`]). What still asks (a hash's seed) gets a clock that stands
//! still then (`edge/src/clock32.c`). `tests/tests/emulated.rs` runs the ARMv7
//! binary in 2040. Monotonic clocks count from the machine's start and are none of this.
#![forbid(unsafe_code)]

use rustix::time::{ClockId, clock_gettime};
use std::time::{Duration, SystemTime};

/// Whether `SystemTime::now()` is wrong from 2038 on in this build, also in a dependency.
pub const STD_ENDS_IN_2038: bool = cfg!(all(target_env = "musl", target_pointer_width = "32"));

/// What has passed since 1970-01-01T00:00:00Z, without leap seconds; zero on a machine whose clock stands before that.
#[must_use]
pub fn since_epoch() -> Duration {
    let time = clock_gettime(ClockId::Realtime);
    // Nanoseconds are 0..1e9 by the call's definition; seconds are negative before 1970 alone.
    match u64::try_from(time.tv_sec) {
        Ok(seconds) => Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0)),
        Err(_) => Duration::ZERO,
    }
}

/// The same as std has it, for what takes no other.
#[must_use]
pub fn system_time() -> SystemTime {
    SystemTime::UNIX_EPOCH + since_epoch()
}

/// The same in whole seconds.
#[must_use]
pub fn wall_s() -> i64 {
    i64::try_from(since_epoch().as_secs()).unwrap_or(i64::MAX)
}

/// The same in whole milliseconds.
#[must_use]
pub fn wall_ms() -> i64 {
    i64::try_from(since_epoch().as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::disallowed_methods, reason = "the clock that it must agree with")]
    fn agrees_with_std() {
        let std = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        // A clock that is set meanwhile is read again: a few times in a row nobody does that.
        let agrees = (0..10).any(|_| {
            let (before, ours, after) = (std(), since_epoch(), std());
            before.is_ok_and(|before| before <= ours) && after.is_ok_and(|after| ours <= after)
        });
        assert!(agrees);
        assert_eq!(wall_s(), wall_ms() / 1000);
    }
}
