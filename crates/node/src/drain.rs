//! Clients are moved off, a few at a time.
//!
//! # Operation
//! [`Drain::start`] has all workers let nobody in any more ([`ferrule_broker::Left`]), then closes the listeners. A task ([`Drain::run`]) then has workers move off as
//! many clients in each [`TICK`] as the rate allows, each an even share of those who are left there, until the drain is undone or the process
//! ends. It goes on while wills of those who were moved off wait for news of them.
//!
//! Undone, workers let clients in first and the listeners open then: whoever gets through is not refused.
//!
//! A reload changes nothing of it; a start takes clients, whatever was before.

use crate::control::DrainStatus;
use crate::hub::HubMessage;
use crate::listen::Listeners;
use ferrule_broker::Left;
use ferrule_net::{Inbox, Mail};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex as Turn, Notify, oneshot};

/// Clients a second, unless another rate is asked for: ten thousand are elsewhere within 34 s, and each of two other nodes gets 150 connections a second. A handshake
/// of TLS takes up to 1 ms of a core, so a sixth of one at most; passwords take longer, and have threads of their own. (EMQX moves 500.)
pub const RATE: u32 = 300;

/// More than any machine accepts.
pub const RATE_MAX: u32 = 1_000_000;

/// How often some are moved off: so few at a time that a turn is short.
const TICK: Duration = Duration::from_millis(100);

/// Moves the clients of a node off.
#[derive(Clone)]
pub struct Drain(Arc<Shared>);

struct Shared {
    inboxes: Vec<Inbox<HubMessage>>,
    listeners: Listeners,
    /// Held by whoever asks the workers for something.
    turn: Turn<()>,
    state: Mutex<State>,
    woken: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Clients a second; none: clients are let in.
    rate: Option<u32>,
    /// Of each worker.
    left: Vec<Left>,
    /// Since the drain began.
    moved: u64,
}

impl Drain {
    /// Of these workers and listeners. Nothing is drained.
    #[must_use]
    pub fn new(inboxes: Vec<Inbox<HubMessage>>, listeners: Listeners) -> Self {
        Self(Arc::new(Shared {
            inboxes,
            listeners,
            turn: Turn::default(),
            state: Mutex::default(),
            woken: Notify::new(),
        }))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // What it guards is whole whatever happened to whoever held it.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins, or goes on at another rate.
    ///
    /// # Errors
    /// A listener cannot be closed, or the node is stopping: then clients are let in as before.
    pub async fn start(&self, rate: u32) -> Result<DrainStatus, String> {
        let _turn = self.0.turn.lock().await;
        let was = self.state().rate;
        let left = self.ask(true, |_| 0).await?;
        if let Err(error) = self.0.listeners.suspend() {
            let _ = self.0.listeners.resume();
            self.ask(false, |_| 0).await?;
            return Err(error);
        }
        {
            let mut state = self.state();
            if was.is_none() {
                state.moved = 0;
            }
            (state.rate, state.left) = (Some(rate), left);
        }
        self.0.woken.notify_one();
        let status = self.status().unwrap_or_default();
        if was.is_none() {
            tracing::info!(
                clients = status.clients,
                rate,
                "drained: clients are moved off, and nobody is let in"
            );
        }
        Ok(status)
    }

    /// Takes clients again.
    ///
    /// # Errors
    /// A listener cannot listen again, or the node is stopping.
    pub async fn undo(&self) -> Result<(), String> {
        let _turn = self.0.turn.lock().await;
        let left = self.ask(false, |_| 0).await?;
        {
            let mut state = self.state();
            (state.rate, state.left) = (None, left);
        }
        tracing::info!("not drained any more: clients are let in");
        self.0.listeners.resume()
    }

    /// How it goes; none: clients are let in, and no will waits for news of a client that was moved off.
    #[must_use]
    pub fn status(&self) -> Option<DrainStatus> {
        let state = self.state();
        let sum = |count: fn(&Left) -> usize| state.left.iter().map(count).sum::<usize>() as u64;
        let (clients, wills) = (sum(|left| left.clients), sum(|left| left.wills));
        (state.rate.is_some() || wills > 0).then(|| DrainStatus {
            draining: state.rate.is_some(),
            rate: state.rate.unwrap_or(0).into(),
            clients,
            moved: state.moved,
            wills,
        })
    }

    /// Moves clients off while that is asked for. Ends when the workers have.
    pub async fn run(self) {
        let mut allowance = Allowance::default();
        loop {
            if self.status().is_none() {
                allowance = Allowance::default();
                self.0.woken.notified().await;
            }
            {
                let _turn = self.0.turn.lock().await;
                let (rate, left) = {
                    let state = self.state();
                    (state.rate, state.left.clone())
                };
                let budget = rate.map_or(0, |rate| allowance.now(rate, Instant::now()));
                let shares = shares(budget, &left);
                let share = |worker: usize| shares.get(worker).copied().unwrap_or(0);
                let Ok(left) = self.ask(rate.is_some(), share).await else { return };
                let moved = left.iter().map(|left| left.moved as u64).sum();
                allowance.spend(moved);
                let mut state = self.state();
                state.moved += moved;
                state.left = left;
            }
            tokio::time::sleep(TICK).await;
        }
    }

    /// Each worker, how many it is to move off; what is left at each.
    async fn ask(&self, draining: bool, most: impl Fn(usize) -> usize) -> Result<Vec<Left>, String> {
        let ask = |(worker, inbox): (usize, &Inbox<HubMessage>)| {
            let (reply, answer) = oneshot::channel();
            inbox.post(Mail::App(HubMessage::Drain(draining, most(worker), reply)));
            answer
        };
        let answers: Vec<_> = self.0.inboxes.iter().enumerate().map(ask).collect();
        let mut left = Vec::new();
        for answer in answers {
            left.push(answer.await.map_err(|_| "the node is stopping".to_owned())?);
        }
        Ok(left)
    }
}

/// How many clients may be moved off: a second's worth at most is saved up.
#[derive(Debug, Default)]
struct Allowance {
    since: Option<Instant>,
    /// Millionths of a client.
    saved: u64,
}

const MILLION: u64 = 1_000_000;

impl Allowance {
    fn now(&mut self, rate: u32, now: Instant) -> u64 {
        let rate = u64::from(rate);
        let elapsed = self.since.map_or(TICK, |since| now.saturating_duration_since(since));
        self.since = Some(now);
        let more = rate.saturating_mul(elapsed.as_micros().min(u128::from(MILLION)) as u64);
        self.saved = (self.saved + more).min(rate.max(1) * MILLION);
        self.saved / MILLION
    }

    fn spend(&mut self, clients: u64) {
        self.saved = self.saved.saturating_sub(clients * MILLION);
    }
}

/// Shares of so many clients among workers: each that has some gets as many as the others, or all that it has.
fn shares(mut budget: u64, left: &[Left]) -> Vec<usize> {
    let mut shares = vec![0; left.len()];
    let mut order: Vec<usize> = (0..left.len()).filter(|worker| left[*worker].clients > 0).collect();
    // Those with the fewest first: what they leave is the others'.
    order.sort_by_key(|worker| left[*worker].clients);
    for (done, worker) in order.iter().enumerate() {
        let even = budget.div_ceil((order.len() - done) as u64);
        let share = even.min(left[*worker].clients as u64).min(budget);
        shares[*worker] = share as usize;
        budget -= share;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_worker_gets_a_share_and_nothing_is_left_over() {
        let check = |budget, clients: &[usize], expected: &[usize]| {
            let left: Vec<Left> =
                clients.iter().map(|&clients| Left { clients, ..Left::default() }).collect();
            assert_eq!(shares(budget, &left), expected, "{budget} of {clients:?}");
        };
        check(30, &[100, 100, 100], &[10, 10, 10]);
        check(30, &[100, 2, 0], &[28, 2, 0]);
        check(30, &[5, 5, 5], &[5, 5, 5]);
        check(1, &[7, 7], &[1, 0]);
        check(0, &[7, 7], &[0, 0]);
        check(30, &[], &[]);
    }

    #[test]
    fn the_rate_holds_over_ticks_of_any_length() {
        for rate in [1, 7, 300] {
            let (mut allowance, start) = (Allowance::default(), Instant::now());
            let mut moved = 0;
            for tick in 0..100_u64 {
                let most = allowance.now(rate, start + Duration::from_millis(tick * 130));
                allowance.spend(most);
                moved += most;
            }
            // 12.87 s, and the first tick.
            let expected = u64::from(rate) * 12_970 / 1_000;
            assert!(moved == expected, "{rate}: {moved}, {expected}");
        }
        let (mut allowance, start) = (Allowance::default(), Instant::now());
        allowance.now(10, start);
        assert_eq!(allowance.now(10, start + Duration::from_secs(60)), 10, "a second's worth");
    }
}
