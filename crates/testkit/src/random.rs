//! Numbers of a seed.

use std::time::Duration;

/// splitmix64: the same numbers for the same seed, everywhere.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One below `count`.
    pub fn below(&mut self, count: u64) -> u64 {
        self.number() % count
    }

    /// True once in `count`.
    pub fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    /// Between half of it and one and a half.
    pub fn about(&mut self, mean: Duration) -> Duration {
        mean / 2 + mean.mul_f64(self.below(1_000) as f64 / 1_000.0)
    }
}
