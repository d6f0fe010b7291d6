//! What all sinks share: back-off with jitter, saying `Up` and `Down` once per change, telling of discarded rows.

use crate::ConsumerEvent;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Of changing reasons why a destination is down, and of discarded rows, one is logged in this time.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Waits between attempts: doubling from 100 ms to 5 s, each drawn from its upper half, so that many nodes that lost one
/// server do not come back in step. 5 s bounds what a recovered destination waits for us.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(100);
    const MAX: Duration = Duration::from_secs(5);

    /// The next wait.
    pub fn next_wait(&mut self) -> Duration {
        let full = Self::FIRST.saturating_mul(1 << self.failures.min(16)).min(Self::MAX);
        self.failures = self.failures.saturating_add(1);
        // A hasher with fresh random keys is the standard library's only source of randomness.
        let random = RandomState::new().build_hasher().finish() >> 32;
        let half_us = full.as_micros() as u64 / 2;
        Duration::from_micros(half_us + half_us * random / u64::from(u32::MAX))
    }

    /// An attempt succeeded.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Tells the outbox, and the log, whether the destination works: once per change.
pub struct Health {
    sink: Arc<str>,
    events: Arc<dyn Fn(ConsumerEvent) + Send + Sync>,
    window: usize,
    /// The window was told: from then on rows come, also while the destination is down.
    announced: bool,
    logged_at: Option<Instant>,
    state: State,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Starting,
    Up,
    Down(String),
}

impl Health {
    /// `window`: rows that may be unanswered, told with every `Up`.
    #[must_use]
    pub fn new(sink: &str, window: usize, events: Arc<dyn Fn(ConsumerEvent) + Send + Sync>) -> Self {
        Self { sink: sink.into(), events, window, announced: false, logged_at: None, state: State::Starting }
    }

    /// The destination works.
    pub fn up(&mut self) {
        if self.state == State::Up {
            return;
        }
        tracing::info!(sink = &*self.sink, "destination reachable");
        self.state = State::Up;
        self.announced = true;
        (self.events)(ConsumerEvent::Up { window: self.window });
    }

    /// The destination does not work: said when that is new, or the reason is.
    pub fn down(&mut self, error: String) {
        if matches!(&self.state, State::Down(known) if *known == error) {
            return;
        }
        // A destination that is down for changing reasons is logged with one of them in ten seconds.
        let was_down = matches!(self.state, State::Down(_));
        if !was_down || self.logged_at.is_none_or(|at| at.elapsed() >= LOG_EVERY) {
            tracing::warn!(sink = &*self.sink, error, "destination not reachable, trying again");
            self.logged_at = Some(Instant::now());
        }
        self.state = State::Down(error.clone());
        (self.events)(ConsumerEvent::Down { error });
    }

    /// The destination answers, but a table or topic of its own cannot be used: `Down`, but after the window was told, so that
    /// rows for others come.
    pub fn blocked(&mut self, error: String) {
        if !self.announced {
            self.announced = true;
            (self.events)(ConsumerEvent::Up { window: self.window });
        }
        self.down(error);
    }

    /// Whether the last word was `Up`.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.state == State::Up
    }

    /// Counts what is the sink's own.
    pub fn count(&self, what: &'static str, by: u64) {
        (self.events)(ConsumerEvent::Counted { what, by });
    }

    /// Hands out answers.
    pub fn done(&self, answers: Vec<(u64, crate::Delivered)>) {
        if !answers.is_empty() {
            (self.events)(ConsumerEvent::Done(answers));
        }
    }
}

impl std::fmt::Debug for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Health").field("sink", &self.sink).field("state", &self.state).finish_non_exhaustive()
    }
}

/// Logs discarded rows, not each of them: a device can send as many as it likes.
#[derive(Debug, Default)]
pub(crate) struct Discards {
    logged_at: Option<Instant>,
    unlogged: u64,
}

impl Discards {
    pub(crate) fn add(&mut self, sink: &str, reason: crate::Reason, why: &str) -> crate::Delivered {
        self.unlogged += 1;
        if self.logged_at.is_none_or(|at| at.elapsed() >= LOG_EVERY) {
            tracing::warn!(sink, reason = reason.as_str(), rows = self.unlogged, why, "rows discarded");
            (self.logged_at, self.unlogged) = (Some(Instant::now()), 0);
        }
        crate::Delivered::Discarded(reason)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn waits_double_up_to_their_bound() {
        let mut backoff = Backoff::default();
        for full_ms in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
            let wait = backoff.next_wait();
            assert!(
                wait >= Duration::from_millis(full_ms / 2) && wait <= Duration::from_millis(full_ms),
                "{wait:?}"
            );
        }
        backoff.reset();
        assert!(backoff.next_wait() <= Duration::from_millis(100));
    }

    #[test]
    fn each_change_is_said_once() {
        let said = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&said);
        let mut health = Health::new("s", 7, Arc::new(move |e| into.lock().unwrap().push(e)));
        health.down("a".into());
        health.down("a".into());
        health.down("b".into());
        health.up();
        health.up();
        health.down("b".into());
        let down = |e: &str| ConsumerEvent::Down { error: e.into() };
        assert_eq!(*said.lock().unwrap(), [down("a"), down("b"), ConsumerEvent::Up { window: 7 }, down("b")]);
    }

    #[test]
    fn what_is_blocked_tells_its_window_first() {
        let said = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&said);
        let mut health = Health::new("s", 7, Arc::new(move |e| into.lock().unwrap().push(e)));
        health.blocked("a".into());
        health.blocked("b".into());
        let down = |e: &str| ConsumerEvent::Down { error: e.into() };
        assert_eq!(*said.lock().unwrap(), [ConsumerEvent::Up { window: 7 }, down("a"), down("b")]);
        assert!(!health.is_up());
    }
}
