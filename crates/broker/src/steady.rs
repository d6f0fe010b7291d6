//! The time by which things run out: expiry of messages and sessions, delays.
//!
//! # Constraints
//! The wall clock of a gateway may be 1970 at its start, be set hours later, or jump a week either way; nothing may run out early
//! because of it, nor stay for ever (contract 3). Of a time while the node did not run only the wall clock can tell, if anything.
//!
//! # Operation
//! Milliseconds since 1970 as the wall clock had them at the start, or as the store says that they were when it was last asked, whichever is
//! later; from then on the monotonic clock. So within a process life no jump is seen, and across a start the time that passed is what the
//! clock says, never less than none. The store learns of it with what is written anyway, once in [`EVERY_MS`] by each
//! shard: no write is made for it.
//!
//! Times of records named `*_wall_ms` that say when something ends are of this clock.

use ferrule_store::{Now, Op, Restored};

/// Its name in the store.
const KEY: &str = "steady_ms";

/// What a clock that is wrong at the start costs at most: as much longer things live.
const EVERY_MS: i64 = 60_000;

/// See the module's header.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Steady {
    /// When the monotonic clock was 0.
    zero_ms: i64,
    /// As the store knows it.
    stored_ms: i64,
}

impl Steady {
    pub(crate) fn new(restored: &Restored, now: Now) -> Self {
        let stored = restored.meta.iter().find(|(key, _)| &**key == KEY);
        let stored_ms = stored.and_then(|(_, value)| Some(i64::from_le_bytes(value[..].try_into().ok()?)));
        let start_ms = now.wall_ms.max(stored_ms.unwrap_or(0));
        Self { zero_ms: start_ms - (now.mono_us / 1_000) as i64, stored_ms: start_ms }
    }

    /// What time it is.
    pub(crate) fn ms(self, now: Now) -> i64 {
        self.zero_ms.saturating_add((now.mono_us / 1_000) as i64)
    }

    /// When something was that the wall clock has at `wall_ms`: now, if that is still to come.
    pub(crate) fn since(self, wall_ms: i64, now: Now) -> i64 {
        self.ms(now).saturating_sub(now.wall_ms.saturating_sub(wall_ms).max(0))
    }

    /// Goes with what is written.
    pub(crate) fn write(&mut self, now: Now, batch: &mut Vec<Op>) {
        let ms = self.ms(now);
        if ms - self.stored_ms >= EVERY_MS {
            self.stored_ms = ms;
            batch.push(Op::MetaPut { key: KEY.into(), value: ms.to_le_bytes().to_vec().into() });
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const DAY_MS: i64 = 86_400_000;

    fn at(mono_s: u64, wall_ms: i64) -> Now {
        Now { mono_us: mono_s * 1_000_000, wall_ms }
    }

    /// (wall clock at the start, what the store has) -> the time then.
    #[test]
    fn a_start_takes_the_later_of_clock_and_store() {
        let stored = |ms: i64| Restored {
            meta: vec![(KEY.into(), ms.to_le_bytes().to_vec().into())],
            ..Restored::default()
        };
        for (wall_ms, store, starts_ms) in [
            (100 * DAY_MS, Restored::default(), 100 * DAY_MS),
            (100 * DAY_MS, stored(99 * DAY_MS), 100 * DAY_MS),
            (0, stored(99 * DAY_MS), 99 * DAY_MS),
            (92 * DAY_MS, stored(99 * DAY_MS), 99 * DAY_MS),
            (-5, Restored { meta: vec![(KEY.into(), vec![1].into())], ..Restored::default() }, 0),
        ] {
            let steady = Steady::new(&store, at(3, wall_ms));
            assert_eq!(steady.ms(at(3, wall_ms)), starts_ms);
            // Whatever the wall clock says later.
            for jump in [-7 * DAY_MS, 0, 7 * DAY_MS] {
                assert_eq!(steady.ms(at(13, wall_ms + jump)), starts_ms + 10_000);
            }
        }
    }

    #[test]
    fn the_store_learns_of_it_once_a_minute() {
        let mut steady = Steady::new(&Restored::default(), at(0, DAY_MS));
        let mut batch = Vec::new();
        (0..300).for_each(|s| steady.write(at(s, 0), &mut batch));
        assert_eq!(batch.len(), 4);
        let Op::MetaPut { key, value } = batch.pop().unwrap() else { panic!() };
        let again = Steady::new(&Restored { meta: vec![(key, value)], ..Restored::default() }, at(0, 0));
        assert_eq!(again.ms(at(0, 0)), DAY_MS + 240_000);
    }
}
