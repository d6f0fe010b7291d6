//! Programs that are not run for a while, because they were stopped [`PATIENCE`] times in a row.
//!
//! Each try of such a program costs its whole time and a worker. The pause doubles from [`PAUSE_MIN`] to [`PAUSE_MAX`], then comes one try. A program is known by its
//! text. Of [`KNOWN_MAX`] programs that is kept; beyond them all others share one record, so that programs which messages bring, each another, cannot
//! go around it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How often in a row a program may be stopped.
pub(super) const PATIENCE: u32 = 3;
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(300);
/// Records; one is forgotten when its program was not stopped for [`KEPT`].
const KNOWN_MAX: usize = 64;
const KEPT: Duration = Duration::from_secs(600);

/// One program's failures in a row.
#[derive(Debug, Clone, Copy)]
struct Record {
    stopped: u32,
    last: Instant,
    until: Option<Instant>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    known: HashMap<Box<str>, Record>,
    others: Option<Record>,
}

impl Pauses {
    /// How long `program` is not to be run yet.
    pub(super) fn left(&self, program: &str, now: Instant) -> Option<Duration> {
        if self.known.is_empty() {
            return None;
        }
        let full = self.known.len() >= KNOWN_MAX;
        let record = self.known.get(program).or(self.others.as_ref().filter(|_| full))?;
        record.until?.checked_duration_since(now).filter(|left| !left.is_zero())
    }

    /// It was stopped.
    pub(super) fn stopped(&mut self, program: &str, now: Instant) {
        if self.known.len() >= KNOWN_MAX && !self.known.contains_key(program) {
            self.known.retain(|_, record| now.duration_since(record.last) < KEPT);
        }
        let fresh = Record { stopped: 0, last: now, until: None };
        let record = match self.known.len() {
            KNOWN_MAX.. if !self.known.contains_key(program) => self.others.get_or_insert(fresh),
            _ => self.known.entry(program.into()).or_insert(fresh),
        };
        record.stopped = record.stopped.saturating_add(1);
        record.last = now;
        if let Some(beyond) = record.stopped.checked_sub(PATIENCE) {
            let pause = PAUSE_MIN.saturating_mul(1 << beyond.min(16)).min(PAUSE_MAX);
            record.until = now.checked_add(pause);
        }
    }

    /// It ended by itself.
    pub(super) fn ended(&mut self, program: &str) {
        if !self.known.is_empty() {
            self.known.remove(program);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_doubles_and_one_end_ends_it() {
        let (mut pauses, start) = (Pauses::default(), Instant::now());
        pauses.stopped("p", start);
        pauses.stopped("p", start);
        assert_eq!(pauses.left("p", start), None);
        let mut now = start;
        for seconds in [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
            pauses.stopped("p", now);
            assert_eq!(pauses.left("p", now), Some(Duration::from_secs(seconds)));
            assert_eq!(pauses.left("q", now), None);
            now += Duration::from_secs(seconds);
            assert_eq!(pauses.left("p", now), None);
        }
        pauses.ended("p");
        pauses.stopped("p", now);
        assert_eq!(pauses.left("p", now), None);
    }

    #[test]
    fn programs_that_are_always_others_share_a_pause() {
        let (mut pauses, now) = (Pauses::default(), Instant::now());
        for n in 0..KNOWN_MAX + 3 {
            pauses.stopped(&format!("p{n}"), now);
        }
        assert!(pauses.left("fresh", now).is_some());
        assert_eq!(pauses.left("p1", now), None);
        assert_eq!(pauses.known.len(), KNOWN_MAX);
        pauses.stopped("later", now + KEPT);
        assert_eq!(pauses.known.len(), 1);
        assert_eq!(pauses.left("fresh", now), None);
    }
}
