//! The rows that a sink has at hand, and when it is to end.

use crate::{OutRow, SinkContext};
use std::collections::VecDeque;
use std::future::Future;
use std::time::Duration;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::time::{Instant, sleep_until, timeout_at};

/// Rows that may be unanswered. Two thousand already hide a commit of 100 ms at 20,000 rows/s; more lets one lane wait
/// longer before it holds up the others. The bytes are the outbox's to bound.
pub(crate) const WINDOW: usize = 10_000;

/// How soon a sink that is at its window sees that it is to stop.
pub(crate) const WATCH: Duration = Duration::from_millis(100);

/// The rows' channel, and since when it is closed.
pub(crate) struct Input<'a> {
    context: &'a mut SinkContext,
    pub(crate) deadline: Option<Instant>,
}

impl<'a> Input<'a> {
    pub(crate) fn new(context: &'a mut SinkContext) -> Self {
        Self { context, deadline: None }
    }

    /// Takes what has come.
    pub(crate) fn take(&mut self, into: &mut VecDeque<OutRow>) {
        while self.deadline.is_none() && into.len() < WINDOW {
            match self.context.rows.try_recv() {
                Ok(rows) => into.extend(rows),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => self.close(),
            }
        }
    }

    /// Waits for rows, until `until`, or until the deadline. Cancellation-safe.
    pub(crate) async fn more(&mut self, into: &mut VecDeque<OutRow>, until: Instant) {
        match self.deadline {
            Some(deadline) => sleep_until(deadline.min(until)).await,
            // At its bound the channel is only watched for its end, which a channel does not tell otherwise.
            None if into.len() >= WINDOW => {
                sleep_until(until.min(Instant::now() + WATCH)).await;
                if self.context.rows.is_closed() {
                    self.close();
                }
            }
            None => match timeout_at(until, self.context.rows.recv()).await {
                Ok(Some(rows)) => into.extend(rows),
                Ok(None) => self.close(),
                Err(_) => {}
            },
        }
    }

    fn close(&mut self) {
        self.deadline = Some(Instant::now() + self.context.finish_within);
    }

    /// Runs `work`, but no longer than to the deadline.
    pub(crate) async fn in_time<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        match self.deadline {
            Some(deadline) => timeout_at(deadline, work).await.ok(),
            None => Some(work.await),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::harness::row;
    use std::sync::Arc;

    #[tokio::test]
    async fn nothing_is_taken_beyond_the_window_and_the_end_is_seen_all_the_same() {
        let (sender, rows) = tokio::sync::mpsc::channel(20);
        let second = Duration::from_secs(1);
        let runtime = tokio::runtime::Handle::current();
        let mut context = SinkContext { rows, events: Arc::new(drop), runtime, finish_within: second };
        for _ in 0..12 {
            sender.send((0..1_000).map(|n| row(n, "", "")).collect()).await.unwrap();
        }
        let mut input = Input::new(&mut context);
        let mut waiting = VecDeque::new();
        input.take(&mut waiting);
        input.more(&mut waiting, Instant::now() + second).await;
        assert_eq!((waiting.len(), sender.capacity()), (WINDOW, 18), "two batches are not taken");
        assert_eq!(input.deadline, None);
        drop(sender);
        input.more(&mut waiting, Instant::now() + second).await;
        assert!(waiting.len() == WINDOW && input.deadline.is_some());
    }
}
