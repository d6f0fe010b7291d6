//! How fast rows leave an outbox (`max_rate`).
//!
//! The generic cell rate algorithm (ITU-T I.371): one moment is all that is kept. What was not used does not add up beyond
//! [`BURST_US`], so that a link that was down does not come back with a flood.

use ferrule_store::Now;

/// What may leave at once, in time: long enough that a turn has something to do, short beside what people see.
const BURST_US: u64 = 50_000;

/// So many rows a second.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    per_second: u32,
    /// When the rows that have left are paid for. Nanoseconds: at a million a second a row is 1,000 of them.
    paid_ns: u64,
}

impl Pace {
    pub(super) fn new(per_second: u32) -> Self {
        Self { per_second: per_second.max(1), paid_ns: 0 }
    }

    fn row_ns(self) -> u64 {
        1_000_000_000 / u64::from(self.per_second)
    }

    /// Rows that may leave now: at least one, once those before it are paid for.
    pub(super) fn may(self, now: Now) -> usize {
        let now_ns = now.mono_us * 1_000;
        if self.paid_ns > now_ns {
            return 0;
        }
        let saved_ns = (now_ns - self.paid_ns).min(BURST_US * 1_000);
        (saved_ns / self.row_ns().max(1)).max(1) as usize
    }

    /// Some have left.
    pub(super) fn left(&mut self, rows: usize, now: Now) {
        let since = (now.mono_us * 1_000).saturating_sub(BURST_US * 1_000);
        self.paid_ns = self.paid_ns.max(since) + rows as u64 * self.row_ns();
    }

    /// When rows may leave again, in microseconds.
    pub(super) fn next_us(self) -> u64 {
        self.paid_ns.div_ceil(1_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Over ten seconds, looked at as seldom or as often as one likes: what was asked for and one burst, and never less.
    #[test]
    fn as_many_a_second_as_were_asked_for() {
        for (per_second, look_us) in [(1, 1_000), (10, 333), (1_000, 1_000), (1_000, 170_000), (50_000, 100)]
        {
            let mut pace = Pace::new(per_second);
            let (mut rows, mut at) = (0, 0);
            while at < 10_000_000 {
                let now = Now { mono_us: at, wall_ms: 0 };
                let may = pace.may(now);
                pace.left(may, now);
                assert!(may > 0 || pace.next_us() > at, "or its worker would spin");
                rows += may as u64;
                at += look_us;
            }
            let asked = u64::from(per_second) * 10;
            let burst = u64::from(per_second) * BURST_US / 1_000_000 + 1;
            // Looked at more seldom than a burst lasts it cannot be reached.
            let least = if look_us > BURST_US { asked * BURST_US / look_us } else { asked };
            assert!((least - least / 50..=asked + burst).contains(&rows), "{per_second} {look_us}: {rows}");
        }
    }
}
