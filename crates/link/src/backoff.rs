//! Exponential back-off with jitter, without a clock.
//!
//! Thousands of edges lose one cloud in the same instant. If each came back after the same delay, the cloud would
//! meet all of them at once, again and again; so each delay is drawn between one half and the whole of the
//! current step ("equal jitter": it spreads the load and still never tries at once).

use std::time::Duration;

/// The step of the next delay doubles with each failure from `min` to `max`.
#[derive(Debug, Clone)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    failures: u32,
    /// State of a xorshift generator, never 0: jitter needs no quality, it needs a seed (spread over all bits first,
    /// so that neighbouring seeds differ).
    random: u64,
}

impl Backoff {
    /// No failure yet. `seed` decides the jitter; any number will do.
    #[must_use]
    pub fn new(min: Duration, max: Duration, seed: u64) -> Self {
        Self { min: min.min(max), max, failures: 0, random: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1 }
    }

    /// Counts a failure and says how long to wait: at least half of `floor` and of the current step, at most the
    /// larger of `floor` and `max`.
    pub fn fail(&mut self, floor: Duration) -> Duration {
        let step = self.min.saturating_mul(1 << self.failures.min(20)).min(self.max).max(floor);
        self.failures = self.failures.saturating_add(1);
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let half = step / 2;
        // 10 bits: a delay of 10 s is drawn in steps of 5 ms.
        half + half * ((self.random >> 20) as u32 & 0x3FF) / 0x3FF
    }

    /// It works again: the next failure starts from `min`.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Failures since the last [`Backoff::reset`].
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn delays_double_up_to_the_maximum_and_stay_within_half_and_whole() {
        for seed in 0..50 {
            let mut backoff = Backoff::new(100 * MS, 10_000 * MS, seed);
            for step in [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000] {
                let delay = backoff.fail(Duration::ZERO);
                assert!(delay >= step * MS / 2 && delay <= step * MS, "seed {seed}: {delay:?} of {step}");
            }
            backoff.reset();
            assert!(backoff.fail(Duration::ZERO) <= 100 * MS);
        }
    }

    #[test]
    fn a_floor_lifts_the_delay_and_a_small_maximum_lowers_the_first() {
        let mut backoff = Backoff::new(100 * MS, 20 * MS, 7);
        assert!(backoff.fail(Duration::ZERO) <= 20 * MS);
        assert!(backoff.fail(30_000 * MS) >= 15_000 * MS);
        for _ in 0..100 {
            backoff.fail(Duration::ZERO);
        }
        assert_eq!(backoff.failures(), 102);
    }

    #[test]
    fn seeds_spread() {
        let first = |seed| Backoff::new(10_000 * MS, 10_000 * MS, seed).fail(Duration::ZERO);
        let delays: std::collections::BTreeSet<_> = (0..64).map(first).collect();
        assert!(delays.len() > 32, "{delays:?}");
    }
}
