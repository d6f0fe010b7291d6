//! The task of one HTTP sink: rows into lanes, requests out, answers in.

use super::Settings;
use super::bounds::{OPERATOR_WAIT, STALLED};
use super::connection::{Answer, Connection};
use super::request::request;
use super::verdict::{self, Verdict};
use crate::health::{Backoff, Discards, Health};
use crate::input::{WATCH, WINDOW};
use crate::{Delivered, OutRow, Reason, SinkContext};
use ferrule_store::path_hash;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// How often the number of requests is told: each time is a message to the worker.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Rows of some keys: one request under way, the others behind it.
#[derive(Default)]
struct Lane {
    rows: VecDeque<OutRow>,
    connection: Option<Connection>,
    /// Rows of the request under way, from the front.
    sending: Option<usize>,
    /// Not before this.
    until: Option<Instant>,
    backoff: Backoff,
    /// Most rows of the next request: fewer after one of several was refused.
    limit: usize,
}

/// What a job has come to.
struct Finished {
    lane: usize,
    connection: Option<Connection>,
    outcome: Outcome,
}

enum Outcome {
    /// Nothing was to be sent: the server can be reached.
    Connected,
    NotConnected(String),
    NoAnswer(String),
    Answered(Answer),
}

struct Sink {
    name: Arc<str>,
    settings: Arc<Settings>,
    health: Health,
    lanes: Vec<Lane>,
    unanswered: usize,
    jobs: JoinSet<Finished>,
    /// No lane starts before this: the server cannot be reached, or asks for patience.
    paused_until: Instant,
    backoff: Backoff,
    /// When rows were last delivered.
    progress_at: Option<Instant>,
    answers: Vec<(u64, Delivered)>,
    discards: Discards,
    /// Where the look for a lane to start began last.
    first_lane: usize,
    /// Requests that were answered, or not, and are not told of.
    requests: u64,
    requests_told_at: Instant,
    /// The reason last shouted about.
    shouted: Option<String>,
}

/// Runs until the context's rows are closed and all rows are answered, or its time is over.
pub(super) async fn run(settings: Settings, name: &str, mut context: SinkContext) {
    let lanes = (0..settings.lanes).map(|_| Lane { limit: settings.batch_rows, ..Lane::default() }).collect();
    let mut sink = Sink {
        name: name.into(),
        settings: Arc::new(settings),
        health: Health::new(name, WINDOW, Arc::clone(&context.events)),
        lanes,
        unanswered: 0,
        jobs: JoinSet::new(),
        paused_until: Instant::now(),
        backoff: Backoff::default(),
        progress_at: None,
        answers: Vec::new(),
        discards: Discards::default(),
        first_lane: 0,
        requests: 0,
        requests_told_at: Instant::now(),
        shouted: None,
    };
    let mut deadline: Option<Instant> = None;
    loop {
        let due = sink.start(deadline.is_some());
        sink.health.done(std::mem::take(&mut sink.answers));
        let due = [due, sink.tell_requests(deadline.is_some())].into_iter().flatten().min();
        if let Some(end) = deadline
            // Stopping, and nothing is under way: what waits for another attempt is the outbox's.
            && (sink.jobs.is_empty() || Instant::now() >= end)
        {
            return;
        }
        let has_room = deadline.is_none() && sink.unanswered < WINDOW;
        let until = deadline.or_else(|| (!has_room).then(|| Instant::now() + WATCH));
        let until = [due, until].into_iter().flatten().min();
        let mut stopped = false;
        tokio::select! {
            rows = context.rows.recv(), if has_room => match rows {
                Some(rows) => rows.into_iter().for_each(|row| sink.take(row)),
                None => stopped = true,
            },
            Some(finished) = sink.jobs.join_next(), if !sink.jobs.is_empty() => match finished {
                Ok(finished) => sink.finish(finished),
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                // Jobs are cancelled by dropping them all.
                Err(_) => return,
            },
            () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {
                // At the window nobody else sees that the channel has ended.
                stopped = deadline.is_none() && !has_room && context.rows.is_closed();
            }
        }
        if stopped {
            deadline = Some(Instant::now() + context.finish_within);
            // One more attempt, at once.
            sink.paused_until = Instant::now();
            sink.lanes.iter_mut().for_each(|lane| lane.until = None);
        }
    }
}

impl Sink {
    fn take(&mut self, row: OutRow) {
        let lane = path_hash(0, row.entry.key.as_bytes()) % self.lanes.len() as u64;
        self.lanes[lane as usize].rows.push_back(row);
        self.unanswered += 1;
    }

    /// Starts what may start now; when there may be more. `stopping`: nobody asks any more whether the server is there.
    fn start(&mut self, stopping: bool) -> Option<Instant> {
        let now = Instant::now();
        if now < self.paused_until {
            return Some(self.paused_until);
        }
        if !self.health.is_up() && self.unanswered == 0 {
            if self.jobs.is_empty() && !stopping {
                self.spawn(0, None);
            }
            return None;
        }
        let mut next: Option<Instant> = None;
        // Another lane is the first each time, or one whose rows the server answers with 503 would be the only one to
        // ask.
        self.first_lane = (self.first_lane + 1) % self.lanes.len();
        for index in (self.first_lane..self.lanes.len()).chain(0..self.first_lane) {
            // While it is down one asks at a time, whether it still is.
            if !self.health.is_up() && !self.jobs.is_empty() {
                return next;
            }
            let lane = &self.lanes[index];
            if lane.sending.is_some() {
                continue;
            }
            if let Some(until) = lane.until.filter(|&until| until > now && !lane.rows.is_empty()) {
                next = Some(next.map_or(until, |next| next.min(until)));
                continue;
            }
            self.send(index);
        }
        next
    }

    /// Makes a request of the front of a lane; rows that can be in none are discarded on the way.
    fn send(&mut self, index: usize) {
        loop {
            let Some(first) = self.lanes[index].rows.front() else { return };
            let settings = &self.settings;
            let made = settings.endpoint.uri(&first.entry.target).and_then(|uri| {
                let lane = &self.lanes[index];
                let batch = settings.body.batch(lane.rows.iter(), lane.limit);
                Ok((batch.rows, request(&settings.endpoint, &settings.headers, &uri, &batch)?))
            });
            match made {
                Ok((rows, request)) => {
                    self.lanes[index].sending = Some(rows);
                    self.spawn(index, Some(request));
                    return;
                }
                Err(why) => self.discard(index, Reason::Target, &why),
            }
        }
    }

    fn spawn(&mut self, lane: usize, request: Option<hyper::Request<http_body_util::Full<bytes::Bytes>>>) {
        let settings = Arc::clone(&self.settings);
        let mut connection = self.lanes[lane].connection.take();
        self.jobs.spawn(async move {
            let finished = |connection: Option<Connection>, outcome| Finished {
                lane,
                connection: connection.filter(Connection::is_good),
                outcome,
            };
            loop {
                let mut open = match connection.take().filter(Connection::is_good) {
                    Some(open) => open,
                    None => match settings.dialer.dial().await {
                        Ok(open) => open,
                        Err(error) => return finished(None, Outcome::NotConnected(error)),
                    },
                };
                let Some(request) = &request else { return finished(Some(open), Outcome::Connected) };
                match open.send(request.clone()).await {
                    Ok(answer) => return finished(Some(open), Outcome::Answered(answer)),
                    // The next round has a new connection, which cannot be stale.
                    Err(failed) if failed.was_stale => {}
                    Err(failed) => return finished(None, Outcome::NoAnswer(failed.error)),
                }
            }
        });
    }

    fn finish(&mut self, finished: Finished) {
        let index = finished.lane;
        self.lanes[index].connection = finished.connection;
        let rows = self.lanes[index].sending.take().unwrap_or(0);
        if rows > 0 {
            self.requests += 1;
        }
        let shown = self.settings.endpoint.shown();
        match finished.outcome {
            Outcome::Connected => {
                self.backoff.reset();
                self.health.up();
            }
            Outcome::NotConnected(error) => {
                let wait = self.backoff.next_wait();
                self.pause(wait, format!("{shown}: {error}"));
            }
            Outcome::NoAnswer(error) => self.hold(index, format!("{shown}: {error}"), None),
            Outcome::Answered(answer) => self.judge(index, rows, &answer),
        }
    }

    fn judge(&mut self, index: usize, rows: usize, answer: &Answer) {
        let front = self.lanes[index].rows.front();
        let own_path = front.is_some_and(|row| self.settings.endpoint.varies(&row.entry.target));
        let (status, hint) = (answer.status, verdict::hint(answer.status));
        let said = if answer.text.is_empty() { String::new() } else { format!(" \"{}\"", answer.text) };
        let error = format!("{}: it answers {status}{said}{hint}", self.settings.endpoint.shown());
        match verdict::of(status, own_path) {
            Verdict::Delivered => {
                let lane = &mut self.lanes[index];
                let delivered = lane.rows.drain(..rows.min(lane.rows.len()));
                self.answers.extend(delivered.map(|row| (row.seq, Delivered::Yes)));
                lane.backoff.reset();
                lane.until = None;
                lane.limit = (lane.limit * 2).min(self.settings.batch_rows);
                self.unanswered -= rows;
                self.backoff.reset();
                self.progress_at = Some(Instant::now());
                self.shouted = None;
                self.health.up();
            }
            Verdict::Again => self.hold(index, error, answer.retry_after),
            Verdict::Patience => {
                let wait = self.backoff.next_wait().max(jittered(answer.retry_after));
                self.pause(wait, error);
            }
            Verdict::Operator => {
                if self.shouted.as_ref() != Some(&error) {
                    tracing::error!(sink = &*self.name, "{error}");
                    self.shouted = Some(error.clone());
                }
                self.pause(OPERATOR_WAIT.max(jittered(answer.retry_after)), error);
            }
            // One of several is the cause: found by halves.
            Verdict::Row(_) if rows > 1 => self.lanes[index].limit = rows / 2,
            Verdict::Row(reason) => {
                self.backoff.reset();
                self.discard(index, reason, &error);
                // It answers, if only to refuse.
                self.health.up();
            }
        }
    }

    /// The first row of a lane is given up.
    fn discard(&mut self, index: usize, reason: Reason, why: &str) {
        let lane = &mut self.lanes[index];
        lane.backoff.reset();
        lane.until = None;
        if let Some(row) = lane.rows.pop_front() {
            self.unanswered -= 1;
            self.answers.push((row.seq, self.discards.add(&self.name, reason, why)));
        }
    }

    /// Tells how many requests were made, once a second; when there is more to tell.
    fn tell_requests(&mut self, now: bool) -> Option<Instant> {
        if self.requests == 0 {
            return None;
        }
        let due = self.requests_told_at + TELL_EVERY;
        if !now && Instant::now() < due {
            return Some(due);
        }
        self.health.count("requests", std::mem::take(&mut self.requests));
        self.requests_told_at = Instant::now();
        None
    }

    /// A lane waits.
    fn hold(&mut self, index: usize, error: String, retry_after: Option<Duration>) {
        self.health.count("retries", 1);
        let lane = &mut self.lanes[index];
        lane.until = Some(Instant::now() + lane.backoff.next_wait().max(jittered(retry_after)));
        if self.progress_at.is_none_or(|at| at.elapsed() >= STALLED) {
            self.health.down(error);
        } else {
            tracing::debug!(sink = &*self.name, "{error}");
        }
    }

    /// All lanes wait.
    fn pause(&mut self, wait: Duration, error: String) {
        self.health.count("retries", 1);
        self.paused_until = Instant::now() + wait;
        self.health.down(error);
    }
}

/// What the server asks for, and up to a tenth more: many nodes were told the same.
fn jittered(wait: Option<Duration>) -> Duration {
    let wait = wait.unwrap_or_default();
    let mut random = [0; 4];
    // Without random numbers all come at once: not worth an error.
    let _ = getrandom::fill(&mut random);
    wait + wait.mul_f64(f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX) / 10.0)
}
