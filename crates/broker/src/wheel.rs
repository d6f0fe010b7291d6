//! Coarse timers: one bucket a quarter of a second.
//!
//! Keep alive, connect deadlines and session expiry need no better. An entry is never moved or removed: when
//! its bucket comes up, its owner looks at the real deadline and, if that has moved on, is entered again. So a packet
//! costs a timer nothing.

use std::collections::BTreeMap;

/// Microseconds in a bucket.
const BUCKET_US: u64 = 250_000;

#[derive(Debug)]
pub(crate) struct Wheel<T> {
    buckets: BTreeMap<u64, Vec<T>>,
}

impl<T> Wheel<T> {
    pub(crate) fn new() -> Self {
        Self { buckets: BTreeMap::new() }
    }

    /// Comes up at `deadline_us` or up to a bucket later.
    pub(crate) fn add(&mut self, deadline_us: u64, entry: T) {
        self.buckets.entry(deadline_us / BUCKET_US + 1).or_default().push(entry);
    }

    /// A bucket that has come up.
    pub(crate) fn pop(&mut self, now_us: u64) -> Option<Vec<T>> {
        let first = self.buckets.first_entry()?;
        (*first.key() <= now_us / BUCKET_US).then(|| first.remove())
    }

    /// When the next bucket comes up.
    pub(crate) fn next_us(&self) -> Option<u64> {
        self.buckets.keys().next().map(|bucket| bucket * BUCKET_US)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn nothing_comes_up_early_and_all_within_a_bucket() {
        let mut wheel = Wheel::new();
        for deadline in [0, 1, 249_999, 250_000, 1_000_000, 1_000_001] {
            wheel.add(deadline, deadline);
        }
        let mut seen = 0;
        for now in (0..1_500_000).step_by(1_000) {
            while let Some(entries) = wheel.pop(now) {
                for deadline in entries {
                    assert!(deadline <= now && now <= deadline + BUCKET_US, "{deadline} at {now}");
                    seen += 1;
                }
            }
            assert!(wheel.next_us().is_none_or(|next| next > now));
        }
        assert_eq!(seen, 6);
    }
}
