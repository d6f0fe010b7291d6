//! Pauses between attempts: each drawn between half of a step and the whole, which doubles with each failure.
//!
//! (`ferrule-link` has one for uplinks; this one needs neither that crate nor a floor.)

use crate::limits::{PAUSE_MAX, PAUSE_MIN};
use std::time::Duration;

#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// `random`: any number.
    pub(crate) fn fail(&mut self, random: u64) -> Duration {
        let step = PAUSE_MIN.saturating_mul(1 << self.failures.min(16)).min(PAUSE_MAX);
        self.failures = self.failures.saturating_add(1);
        let half = step / 2;
        half + half * (random & 0x3FF) as u32 / 0x3FF
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_stay_between_half_and_whole() {
        for random in [0, 1, 0x1FF, 0x3FF, u64::MAX] {
            let mut backoff = Backoff::default();
            for step_ms in [50, 100, 200, 400, 800, 1000, 1000] {
                let pause = backoff.fail(random);
                let step = Duration::from_millis(step_ms);
                assert!(pause >= step / 2 && pause <= step, "{pause:?} of {step:?}");
            }
            backoff.reset();
            assert!(backoff.fail(random) <= PAUSE_MIN);
        }
    }
}
