//! The task of one Kafka sink: rows out, delivery reports in.
//!
//! # Data
//! Every row has a *position*, ascending with its arrival; the producer carries it through as the record's opaque.
//! `unanswered` holds the rows by position, each topic the positions of its own and a queue of those that wait to be
//! sent: because the topic is held, because librdkafka's queue is full, or because one ahead of them is tried alone.
//!
//! # Threads
//! librdkafka's reports arrive on rdkafka's polling thread, which only puts them into [`Shared`] and wakes the task.
//! Everything else is the task's own. Making and dropping a producer blocks, and so has threads of its own.

use crate::bounds::WINDOW;
use crate::record::{check_topic, headers};
use crate::verdict::{self, Verdict};
use ferrule_sinks::health::{Backoff, Health};
use ferrule_sinks::{Delivered, OutRow, Reason, SinkContext};
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::KafkaError;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode as Code;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// Nothing delivered for so long, with rows under way: the destination is down.
const STALLED: Duration = Duration::from_secs(5);

/// How often what depends on time is looked at.
const TICK: Duration = Duration::from_millis(250);

/// How long a look at the cluster may take.
const PROBE: Duration = Duration::from_secs(5);

pub(crate) struct Settings {
    pub(crate) config: ClientConfig,
    /// For people.
    pub(crate) brokers: String,
    /// The topic of rows without a target.
    pub(crate) topic: Option<String>,
}

/// What the polling threads leave for the task.
#[derive(Default)]
struct Shared {
    reports: Mutex<Reports>,
    wake: Notify,
}

#[derive(Default)]
struct Reports {
    /// (generation, position, error).
    delivered: Vec<(u64, usize, Option<Code>)>,
    /// The latest error of the whole client, by generation.
    error: Option<(u64, Code, String)>,
}

impl Shared {
    fn put(&self, put: impl FnOnce(&mut Reports)) {
        put(&mut self.reports.lock().unwrap_or_else(PoisonError::into_inner));
        self.wake.notify_one();
    }

    fn take(&self) -> Reports {
        mem::take(&mut self.reports.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Context {
    sink: Arc<str>,
    /// Reports of an earlier producer are of rows that a later one sends again.
    generation: u64,
    shared: Arc<Shared>,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, message: &str) {
        // A broker that is away is said by `Health`, once; librdkafka says it with every attempt.
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                tracing::warn!(sink = &*self.sink, fac, "{message}");
            }
            _ => tracing::debug!(sink = &*self.sink, fac, "{message}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code().unwrap_or(Code::Fail);
        tracing::debug!(sink = &*self.sink, %error, reason);
        self.shared.put(|reports| {
            // A fatal error is never hidden by what comes after it.
            if !reports.error.as_ref().is_some_and(|(g, c, _)| *g == self.generation && *c == Code::Fatal) {
                reports.error = Some((self.generation, code, reason.to_owned()));
            }
        });
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, position: usize) {
        let error = result.as_ref().err().map(|(error, _)| error.rdkafka_error_code().unwrap_or(Code::Fail));
        self.shared.put(|reports| reports.delivered.push((self.generation, position, error)));
    }
}

type Producer = Arc<ThreadedProducer<Context>>;

struct Slot {
    row: OutRow,
    topic: Arc<str>,
    /// It has been tried, or is to be tried, as the only record under way of its topic.
    alone: bool,
    /// Found unfit; answered when it is the first of its topic.
    discarded: Option<Reason>,
}

#[derive(Default)]
struct Topic {
    unanswered: BTreeSet<usize>,
    /// Positions to be sent, ascending.
    waiting: VecDeque<usize>,
    under_way: usize,
    /// The row under way that is tried alone: nothing may join its batch.
    alone: Option<usize>,
    held: Option<Held>,
}

struct Held {
    until: Instant,
    backoff: Backoff,
    error: String,
    /// The first row is being tried; the others follow when it is delivered.
    trying: bool,
}

struct Sink {
    name: Arc<str>,
    settings: Settings,
    health: Health,
    shared: Arc<Shared>,
    producer: Option<Producer>,
    generation: u64,
    next_position: usize,
    unanswered: BTreeMap<usize, Slot>,
    topics: HashMap<Arc<str>, Topic>,
    /// Topics with rows waiting.
    waiting_topics: BTreeSet<Arc<str>>,
    answers: Vec<(u64, Delivered)>,
    progress_at: Instant,
    rebuild_at: Option<Instant>,
    rebuild_backoff: Backoff,
    probe: Option<tokio::task::JoinHandle<Result<Option<String>, String>>>,
    probe_at: Instant,
    probe_backoff: Backoff,
    last_error: String,
    discards_logged_at: Option<Instant>,
}

/// Runs until the context's rows are closed and all rows are answered, or its time is over.
pub(crate) async fn run(name: &str, settings: Settings, mut context: SinkContext) {
    let now = Instant::now();
    let mut sink = Sink {
        name: name.into(),
        last_error: format!("Kafka at {} does not answer", settings.brokers),
        settings,
        health: Health::new(name, WINDOW, Arc::clone(&context.events)),
        shared: Arc::default(),
        producer: None,
        generation: 0,
        next_position: 0,
        unanswered: BTreeMap::new(),
        topics: HashMap::new(),
        waiting_topics: BTreeSet::new(),
        answers: Vec::new(),
        progress_at: now,
        rebuild_at: Some(now),
        rebuild_backoff: Backoff::default(),
        probe: None,
        probe_at: now,
        probe_backoff: Backoff::default(),
        discards_logged_at: None,
    };
    let shared = Arc::clone(&sink.shared);
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut deadline: Option<Instant> = None;
    loop {
        match deadline {
            Some(end) if sink.unanswered.is_empty() || Instant::now() >= end => break,
            _ => {}
        }
        tokio::select! {
            // Held topics and absent brokers do not stop it, the window does: others' rows may be among what comes.
            rows = context.rows.recv(), if deadline.is_none() && sink.unanswered.len() < WINDOW => match rows {
                Some(rows) => rows.into_iter().for_each(|row| sink.take(row)),
                None => deadline = Some(Instant::now() + context.finish_within),
            },
            () = shared.wake.notified() => sink.reports(),
            _ = tick.tick() => {
                // At the window nobody else sees that the channel has ended.
                if deadline.is_none() && sink.unanswered.len() >= WINDOW && context.rows.is_closed() {
                    deadline = Some(Instant::now() + context.finish_within);
                }
                sink.tick().await;
            }
        }
        sink.pump();
        sink.flush();
    }
    sink.drop_producer().await;
}

impl Sink {
    /// Takes a row from the outbox.
    fn take(&mut self, row: OutRow) {
        let topic = match (&*row.entry.target, &self.settings.topic) {
            ("", Some(own)) => own,
            (target, _) => target,
        };
        if self.unanswered.is_empty() {
            // Idle until now: the silence was ours.
            self.progress_at = Instant::now();
        }
        let fit = check_topic(topic);
        // An unfit topic has no lane of its own.
        let name: Arc<str> = if fit.is_ok() { self.topic_name(topic) } else { "".into() };
        let position = self.next_position;
        self.next_position += 1;
        let lane = self.topics.entry(Arc::clone(&name)).or_default();
        lane.unanswered.insert(position);
        let clear = lane.waiting.is_empty() && lane.held.is_none() && lane.alone.is_none();
        self.unanswered
            .insert(position, Slot { row, topic: Arc::clone(&name), alone: false, discarded: None });
        if let Err(why) = fit {
            self.discard(position, Reason::Target, &why);
        } else if !clear || !self.send(position) {
            self.wait(&name, position);
        }
    }

    fn topic_name(&self, topic: &str) -> Arc<str> {
        self.topics.get_key_value(topic).map_or_else(|| topic.into(), |(name, _)| Arc::clone(name))
    }

    fn wait(&mut self, topic: &Arc<str>, position: usize) {
        if let Some(lane) = self.topics.get_mut(topic) {
            // Nearly always the end: rows come, and come back, in order.
            let at = lane.waiting.partition_point(|&p| p < position);
            lane.waiting.insert(at, position);
            self.waiting_topics.insert(Arc::clone(topic));
        }
    }

    /// Gives a row to the producer. False: it has to wait.
    fn send(&mut self, position: usize) -> bool {
        let (Some(producer), Some(slot)) = (&self.producer, self.unanswered.get(&position)) else {
            return false;
        };
        let entry = &slot.row.entry;
        let mut record = BaseRecord::with_opaque_to(&slot.topic, position)
            .payload(&*entry.payload)
            .headers(headers(entry));
        if !entry.key.is_empty() {
            record = record.key(&*entry.key);
        }
        let Err((error, _)) = producer.send(record) else {
            if let Some(lane) = self.topics.get_mut(&slot.topic) {
                lane.under_way += 1;
                lane.alone = slot.alone.then_some(position);
            }
            return true;
        };
        let topic = Arc::clone(&slot.topic);
        match error.rdkafka_error_code() {
            // The bytes under way are at their bound.
            Some(Code::QueueFull) => false,
            Some(code) => match verdict::of(code, &topic, &self.settings.brokers) {
                // Refused before it was in any batch: it alone is meant.
                Verdict::Suspect(reason) | Verdict::Discard(reason) => {
                    self.discard(position, reason, &error.to_string());
                    true
                }
                Verdict::Again => false,
                Verdict::Topic(why) => {
                    self.hold(&topic, why);
                    false
                }
                Verdict::Fatal => {
                    self.rebuild(error.to_string());
                    false
                }
            },
            // A NUL byte, which check_topic has excluded.
            None => {
                self.discard(position, Reason::Target, &error.to_string());
                true
            }
        }
    }

    /// Sends what waits and may go.
    fn pump(&mut self) {
        if self.waiting_topics.is_empty() || self.producer.is_none() {
            return;
        }
        let now = Instant::now();
        for topic in self.waiting_topics.clone() {
            while let Some(position) = self.may_go(&topic, now) {
                if !self.send(position) {
                    break;
                }
                if let Some(lane) = self.topics.get_mut(&topic) {
                    lane.waiting.pop_front();
                }
            }
            if self.topics.get(&topic).is_none_or(|lane| lane.waiting.is_empty()) {
                self.waiting_topics.remove(&topic);
            }
            if self.producer.is_none() {
                return;
            }
        }
    }

    /// The first waiting row of a topic, if it may be sent now.
    fn may_go(&mut self, topic: &Arc<str>, now: Instant) -> Option<usize> {
        let lane = self.topics.get_mut(topic)?;
        let position = *lane.waiting.front()?;
        if let Some(held) = &mut lane.held {
            if held.trying || now < held.until {
                return None;
            }
            held.trying = true;
            return Some(position);
        }
        // A row to be tried alone waits until the others are back, and lets none pass until it is.
        let alone = self.unanswered.get(&position).is_some_and(|slot| slot.alone);
        (lane.under_way == 0 || !(alone || lane.alone.is_some())).then_some(position)
    }

    /// Handles what the polling threads left.
    fn reports(&mut self) {
        let Reports { delivered, error } = self.shared.take();
        let mut fatal = None;
        for (generation, position, error) in delivered {
            if generation != self.generation {
                continue;
            }
            let Some(slot) = self.unanswered.get_mut(&position) else { continue };
            let topic = Arc::clone(&slot.topic);
            if let Some(lane) = self.topics.get_mut(&topic) {
                lane.under_way = lane.under_way.saturating_sub(1);
                lane.alone.take_if(|alone| *alone == position);
                if error.is_none() {
                    lane.held = None;
                }
            }
            let Some(code) = error else {
                self.progress_at = Instant::now();
                self.answer(position, Delivered::Yes);
                continue;
            };
            match verdict::of(code, &topic, &self.settings.brokers) {
                Verdict::Suspect(_) if !slot.alone => {
                    slot.alone = true;
                    self.wait(&topic, position);
                }
                Verdict::Suspect(reason) | Verdict::Discard(reason) => {
                    if let Some(lane) = self.topics.get_mut(&topic) {
                        // The topic answers, if only to refuse.
                        lane.held = None;
                    }
                    self.discard(position, reason, &code.to_string());
                }
                Verdict::Again => self.wait(&topic, position),
                Verdict::Topic(why) => {
                    self.wait(&topic, position);
                    self.hold(&topic, why);
                }
                Verdict::Fatal => {
                    self.wait(&topic, position);
                    fatal = Some(code.to_string());
                }
            }
        }
        if let Some((generation, code, reason)) = error
            && generation == self.generation
        {
            // The client counts ("0/1 brokers are down", "1/1"), many times a second: one text for one state.
            let said = if code == Code::AllBrokersDown { "no broker can be reached" } else { &*reason };
            self.last_error = format!("Kafka at {}: {said}", self.settings.brokers);
            match code {
                Code::Fatal => fatal = Some(reason),
                Code::AllBrokersDown | Code::Authentication | Code::SSL => self.down(),
                _ => {}
            }
        }
        if let Some(why) = fatal {
            self.rebuild(why);
        }
    }

    /// A topic cannot be used: its rows wait, the first one tries again.
    fn hold(&mut self, topic: &Arc<str>, error: String) {
        let now = Instant::now();
        let quiet = now.duration_since(self.progress_at) >= STALLED;
        let Some(lane) = self.topics.get_mut(topic) else { return };
        let held = lane.held.get_or_insert_with(|| Held {
            until: now,
            backoff: Backoff::default(),
            error: String::new(),
            trying: false,
        });
        // Of rows that come back together the first one sets the time.
        if held.trying || held.until <= now {
            held.until = now + held.backoff.next_wait();
        }
        held.trying = false;
        if held.error != error {
            tracing::warn!(
                sink = &*self.name,
                topic = &**topic,
                error,
                "topic cannot be written, its rows wait"
            );
            held.error.clone_from(&error);
        }
        let only_one = self.topics.values().all(|lane| lane.held.is_some() || lane.unanswered.is_empty());
        if quiet || only_one {
            self.health.down(error);
        }
    }

    fn discard(&mut self, position: usize, reason: Reason, why: &str) {
        let now = Instant::now();
        // One in ten seconds: a device can send as many as it likes.
        if self.discards_logged_at.is_none_or(|at| now.duration_since(at) >= Duration::from_secs(10)) {
            self.discards_logged_at = Some(now);
            tracing::warn!(sink = &*self.name, reason = reason.as_str(), why, "row discarded");
        }
        let Some(slot) = self.unanswered.get_mut(&position) else { return };
        slot.discarded = Some(reason);
        let topic = Arc::clone(&slot.topic);
        self.settle(&topic);
    }

    fn answer(&mut self, position: usize, delivered: Delivered) {
        let Some(slot) = self.unanswered.remove(&position) else { return };
        self.answers.push((slot.row.seq, delivered));
        if let Some(lane) = self.topics.get_mut(&slot.topic) {
            lane.unanswered.remove(&position);
        }
        self.settle(&slot.topic);
    }

    /// Answers discarded rows that have become the first of their topic, and forgets a topic without rows.
    fn settle(&mut self, topic: &Arc<str>) {
        let Some(lane) = self.topics.get_mut(topic) else { return };
        while let Some(first) = lane.unanswered.first().copied() {
            let Some(reason) = self.unanswered.get(&first).and_then(|slot| slot.discarded) else { break };
            lane.unanswered.remove(&first);
            if let Some(slot) = self.unanswered.remove(&first) {
                self.answers.push((slot.row.seq, Delivered::Discarded(reason)));
            }
        }
        if lane.unanswered.is_empty() {
            self.topics.remove(topic);
        }
    }

    fn flush(&mut self) {
        if self.answers.is_empty() {
            return;
        }
        if self.answers.iter().any(|(_, delivered)| *delivered == Delivered::Yes) {
            self.up();
        }
        self.health.done(mem::take(&mut self.answers));
    }

    fn up(&mut self) {
        self.rebuild_backoff.reset();
        self.probe_backoff.reset();
        self.health.up();
    }

    /// Says that the destination is down, by the best error at hand.
    fn down(&mut self) {
        let held = self.topics.values().find_map(|lane| lane.held.as_ref());
        let error = held.map_or_else(|| self.last_error.clone(), |held| held.error.clone());
        self.health.down(error);
    }

    /// The producer is of no use: all unanswered rows go to a new one, in order.
    fn rebuild(&mut self, why: String) {
        tracing::warn!(sink = &*self.name, why, "producer failed, rows are sent again by a new one");
        self.last_error = format!("Kafka at {}: {why}", self.settings.brokers);
        self.health.down(self.last_error.clone());
        if let Some(producer) = self.producer.take() {
            // Dropping waits for up to half a second.
            tokio::task::spawn_blocking(move || drop(producer));
        }
        self.generation += 1;
        self.rebuild_at = Some(Instant::now() + self.rebuild_backoff.next_wait());
        for lane in self.topics.values_mut() {
            lane.waiting.clear();
            lane.under_way = 0;
            (lane.alone, lane.held) = (None, None);
        }
        for (&position, slot) in &self.unanswered {
            if slot.discarded.is_none()
                && let Some(lane) = self.topics.get_mut(&slot.topic)
            {
                lane.waiting.push_back(position);
                self.waiting_topics.insert(Arc::clone(&slot.topic));
            }
        }
    }

    /// What depends on time: a producer to be made, a stall to be told, a cluster to be looked at.
    async fn tick(&mut self) {
        let now = Instant::now();
        if self.producer.is_none() && self.rebuild_at.is_some_and(|at| now >= at) {
            self.make_producer().await;
        }
        if self.unanswered.is_empty() {
            self.progress_at = now;
        } else if now.duration_since(self.progress_at) >= STALLED {
            self.down();
        }
        self.probe(now).await;
    }

    async fn make_producer(&mut self) {
        let context = Context {
            sink: Arc::clone(&self.name),
            generation: self.generation,
            shared: Arc::clone(&self.shared),
        };
        let config = self.settings.config.clone();
        // Reads certificates and starts threads.
        let made = tokio::task::spawn_blocking(move || {
            config.create_with_context::<_, ThreadedProducer<Context>>(context)
        });
        match made.await {
            Ok(Ok(producer)) => {
                self.producer = Some(Arc::new(producer));
                self.rebuild_at = None;
                self.progress_at = Instant::now();
            }
            Ok(Err(error)) => {
                self.last_error = format!("Kafka at {}: {error}", self.settings.brokers);
                self.health.down(self.last_error.clone());
                self.rebuild_at = Some(Instant::now() + self.rebuild_backoff.next_wait());
            }
            Err(_) => self.rebuild_at = Some(Instant::now() + self.rebuild_backoff.next_wait()),
        }
    }

    /// While the sink is not up and no row is under way that could tell, the cluster is asked.
    async fn probe(&mut self, now: Instant) {
        if let Some(probe) = self.probe.take_if(|probe| probe.is_finished()) {
            match probe.await {
                Ok(Ok(None)) => self.up(),
                Ok(Ok(Some(error))) => {
                    self.last_error.clone_from(&error);
                    self.health.blocked(error);
                    self.probe_at = now + self.probe_backoff.next_wait();
                }
                Ok(Err(error)) => {
                    self.last_error = error;
                    self.down();
                    self.probe_at = now + self.probe_backoff.next_wait();
                }
                Err(_) => self.probe_at = now + self.probe_backoff.next_wait(),
            }
        } else if self.probe.is_none()
            && !self.health.is_up()
            && self.unanswered.is_empty()
            && now >= self.probe_at
            && let Some(producer) = &self.producer
        {
            let (producer, topic, brokers) =
                (Arc::clone(producer), self.settings.topic.clone(), self.settings.brokers.clone());
            self.probe =
                Some(tokio::task::spawn_blocking(move || look(&producer, topic.as_deref(), &brokers)));
        }
    }

    async fn drop_producer(&mut self) {
        if let Some(producer) = self.producer.take() {
            let _ = tokio::task::spawn_blocking(move || drop(producer)).await;
        }
    }
}

/// Asks the cluster for the topic, or for all when there is no fixed one: none, or why the topic is of no use. Blocks.
///
/// # Errors
/// The cluster does not answer.
fn look(
    producer: &ThreadedProducer<Context>,
    topic: Option<&str>,
    brokers: &str,
) -> Result<Option<String>, String> {
    let metadata = producer
        .client()
        .fetch_metadata(topic, PROBE)
        .map_err(|error| format!("Kafka at {brokers}: {error}"))?;
    let Some(topic) = topic else { return Ok(None) };
    match metadata.topics().iter().find(|t| t.name() == topic).and_then(|t| t.error()) {
        None => Ok(None),
        Some(code) => match verdict::of(code.into(), topic, brokers) {
            Verdict::Topic(why) => Ok(Some(why)),
            other => Err(format!("Kafka at {brokers}, topic {topic}: {other:?}")),
        },
    }
}
