//! A node's standing, for the threads that acknowledge.
//!
//! One thread drives [`crate::Node`]; each worker asks at the end of each of its turns. A lock would let a thread that is stopped hold up the others,
//! so there are two numbers, and an order in which they are written and read: a reader that sees an old end may see a newer
//! beginning, which only makes it refuse; it never sees an old beginning with a newer end.

use crate::Standing;
use std::sync::atomic::{AtomicU64, Ordering};

/// Shared between the thread that knows and those that ask.
#[derive(Debug)]
pub struct Gate {
    since_us: AtomicU64,
    until_us: AtomicU64,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            since_us: AtomicU64::new(Standing::NONE.since_us),
            until_us: AtomicU64::new(Standing::NONE.until_us),
        }
    }
}

impl Gate {
    /// Tells the others, before anything of [`crate::Node::actions`] is done: a member may rely on our counting it from our accept on. By one thread
    /// alone.
    pub fn set(&self, standing: Standing) {
        self.since_us.store(standing.since_us, Ordering::Release);
        self.until_us.store(standing.until_us, Ordering::Release);
    }

    /// [`Standing::allows`].
    #[must_use]
    pub fn allows(&self, routed_us: u64, now_us: u64) -> bool {
        let until_us = self.until_us.load(Ordering::Acquire);
        let since_us = self.since_us.load(Ordering::Acquire);
        Standing { since_us, until_us }.allows(routed_us, now_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn it_is_closed_until_it_is_told() {
        let gate = Gate::default();
        assert!(!gate.allows(0, 0) && !gate.allows(u64::MAX, u64::MAX));
        gate.set(Standing { since_us: 10, until_us: 20 });
        assert!(gate.allows(10, 19) && !gate.allows(9, 19) && !gate.allows(10, 20));
        gate.set(Standing::NONE);
        assert!(!gate.allows(10, 19));
    }

    /// Standings with a gap between any two: nothing that was routed before a gap is let through after it.
    #[test]
    fn no_reader_mixes_two_standings() {
        const LAST: u64 = 1_000_000;
        let gate = Arc::new(Gate::default());
        let writer = Arc::clone(&gate);
        let writing = std::thread::spawn(move || {
            for n in 1..=LAST {
                writer.set(Standing { since_us: 10 * n, until_us: 10 * n + 5 });
            }
        });
        let (mut n, mut allowed) = (1, 0_u64);
        while !writing.is_finished() {
            // Routed in the n-th, asked at a time of the next.
            assert!(!gate.allows(10 * n + 4, 10 * n + 11), "{n}");
            allowed += u64::from(gate.allows(10 * n, 10 * n + 4));
            n = n % LAST + 1;
        }
        writing.join().expect("the writer ended");
        assert!(gate.allows(10 * LAST, 10 * LAST + 4), "{allowed}");
    }
}
