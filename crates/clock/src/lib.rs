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
//!
//! # What is known of the time
//! A gateway without a battery starts in 1970. [`known_s`] is a time that has passed for certain: this code was written, and certificates
//! were issued whose chain was verified ([`learn`]). It is not the latest time that the clock showed: a clock that was a year ahead once would
//! make every certificate expire a year early. A clock that shows less is wrong, and then certificates are judged by what is known.
#![forbid(unsafe_code)]

use rustix::time::{ClockId, clock_gettime};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

/// 2026-01-01T00:00:00Z: no clock that is right shows less.
pub const WRITTEN_S: u32 = 1_767_225_600;

/// Seconds since 1970, up to 2106.
static KNOWN_S: AtomicU32 = AtomicU32::new(WRITTEN_S);

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

/// Microseconds since the machine started, also while it was suspended: what a lease is measured by.
#[must_use]
pub fn boot_us() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    // Never negative, by the call's definition; 584,000 years.
    let (seconds, nanos) = (time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs());
    #[allow(clippy::useless_conversion, reason = "32 bits wide on some machines")]
    let nanos = u64::from(nanos);
    seconds * 1_000_000 + nanos / 1_000
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

/// Seconds since 1970 that have passed for certain.
#[must_use]
pub fn known_s() -> u32 {
    KNOWN_S.load(Ordering::Relaxed)
}

/// Somebody who can be believed says that `seconds` since 1970 have passed.
pub fn learn(seconds: u32) {
    KNOWN_S.fetch_max(seconds, Ordering::Relaxed);
}

/// Whether the wall clock shows a time that is over for certain: it has not been set.
#[must_use]
pub fn is_behind() -> bool {
    since_epoch().as_secs() < u64::from(known_s())
}

/// The time that certificates are judged by: the wall clock's, and never less than what is known.
#[must_use]
pub fn for_certificates() -> Duration {
    since_epoch().max(Duration::from_secs(known_s().into()))
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
