//! What is told to people, and how often; and what is counted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What has happened to the links of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Links that came up.
    pub up: u64,
    /// Links that have ended.
    pub down: u64,
    /// Links that this node closed because more control waited than may; of those that ended.
    pub full_control: u64,
    /// The same for data.
    pub full_data: u64,
    /// Streams and links that this node refused.
    pub refused: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) up: AtomicU64,
    pub(crate) down: AtomicU64,
    pub(crate) full_control: AtomicU64,
    pub(crate) full_data: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) strangers: Seldom,
}

/// The same thing is said once in this time,
const SAME: Duration = Duration::from_secs(60);

/// and anything at all once in this: whoever can reach the port can be refused as often as it likes.
const ANY: Duration = Duration::from_secs(1);

/// Lets a text pass that is worth a line.
#[derive(Debug, Default)]
pub(crate) struct Seldom {
    last: Mutex<Option<(String, Instant)>>,
}

impl Report {
    pub(crate) fn counters(&self) -> Counters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            up: read(&self.up),
            down: read(&self.down),
            full_control: read(&self.full_control),
            full_data: read(&self.full_data),
            refused: read(&self.refused),
        }
    }
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Seldom {
    /// Whether `text` is to be said now.
    pub(crate) fn passes(&self, text: &str, now: Instant) -> bool {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((said, at)) = &*last {
            let least = if said == text { SAME } else { ANY };
            if now.saturating_duration_since(*at) < least {
                return false;
            }
        }
        *last = Some((text.to_owned(), now));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_passes_once_a_minute_and_anything_once_a_second() {
        let (seldom, start) = (Seldom::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert!(seldom.passes("a", at(0)));
        assert!(!seldom.passes("b", at(500)));
        assert!(!seldom.passes("a", at(59_000)));
        assert!(seldom.passes("b", at(59_000)));
        assert!(!seldom.passes("b", at(60_500)));
        assert!(seldom.passes("a", at(60_500)));
    }
}
