//! An outbox of the hub: its queue, its consumer, and rows on their way to it from other shards.
//!
//! # Classes
//! Rules of one priority share an outbox; rules of another have one of their own beside it, with its own order and limits and the
//! same consumer: `cloud` and `cloud:high`. Rows of a higher class leave first, behind those that the consumer has. To the
//! consumer a row's number carries its class ([`numbered`]).

use super::dead::DeadLetters;
use super::pace::Pace;
use bytes::Bytes;
use ferrule_broker::LocalPublish;
use ferrule_outbox::{Delivered, End, GivenUp, OutRow, Outcome, Queue, Reason};
use ferrule_rules::Priority;
use ferrule_store::record::{Entry, Record};
use ferrule_store::{Boot, Now, QueueId};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

use crate::control::OutboxStatus;

/// Classes in the order in which their rows leave, with what their outboxes' names end in.
pub(crate) const CLASSES: [(u16, &str); 3] = [(1, ":high"), (0, ""), (2, ":low")];

/// Rows that are given up for their age in one turn, at most: a backlog of millions does not stop the worker.
const OLD_ROWS: usize = 1_024;

/// Rows in one batch: small enough that a consumer begins early, large enough that channels cost nothing.
const BATCH_ROWS: usize = 512;

pub(super) struct Outbox {
    pub(super) name: Arc<str>,
    /// The name of its consumer: its own, but for the class.
    pub(super) sink: Arc<str>,
    pub(super) class: u16,
    /// Its shard. Of another's only the name is used.
    pub(super) owner: u16,
    pub(super) queue: Queue<Arc<Entry>>,
    pub(super) generation: u64,
    pub(super) rows: Option<mpsc::Sender<Vec<OutRow>>>,
    pub(super) window: usize,
    pub(super) error: Option<String>,
    pub(super) discarded: Vec<(Reason, u64)>,
    /// Rows that an operator gave up while the consumer had them: they are part of its window until it answers them.
    pub(super) given_up: BTreeSet<u64>,
    /// What its consumer counts of its own.
    pub(super) counted: Vec<(&'static str, u64)>,
    /// Ends to be said when the turn ends, where the shard listens.
    pub(super) ended: Vec<(End, Outcome)>,
    /// When a row may next be too old; none: nothing waits, or rows may wait for ever.
    pub(super) old_us: Option<u64>,
    /// Of an inherited one: another node looks after it now. What the consumer has of it is still answered.
    pub(super) retired: bool,
}

/// The class of a rule's rows.
pub(super) fn class(priority: Priority) -> u16 {
    match priority {
        Priority::High => 1,
        Priority::Normal => 0,
        Priority::Low => 2,
    }
}

/// What the outbox of `sink` for a class is called.
pub(super) fn class_name(sink: &Arc<str>, class: u16) -> Arc<str> {
    match CLASSES.iter().find(|(known, _)| *known == class) {
        Some((_, "")) | None => Arc::clone(sink),
        Some((_, end)) => format!("{sink}{end}").into(),
    }
}

/// An outbox's name as its sink's and a class.
pub(crate) fn split_name(name: &str) -> (&str, u16) {
    let known = CLASSES.iter().filter(|(_, end)| !end.is_empty());
    known.into_iter().find_map(|(class, end)| Some((name.strip_suffix(end)?, *class))).unwrap_or((name, 0))
}

/// The queue of an outbox.
pub(crate) fn queue_of(name: &str) -> QueueId {
    let (sink, class) = split_name(name);
    QueueId::outbox(sink, class)
}

/// Bits of a row's number that are its queue's: 2^56 rows are enough for a million a second for two thousand years.
const NUMBER_BITS: u32 = 56;

/// A row's number as its consumer knows it.
fn numbered(class: u16, seq: u64) -> u64 {
    u64::from(class) << NUMBER_BITS | seq
}

/// Class and number.
pub(super) fn unnumbered(number: u64) -> (u16, u64) {
    ((number >> NUMBER_BITS) as u16, number & ((1 << NUMBER_BITS) - 1))
}

/// How a row enters its outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct How {
    /// Its end is the destination's answer, not the store's commit.
    pub(super) until_answered: bool,
    /// It must not leave before this turn's batch is durable.
    pub(super) hold: bool,
    /// Not kept while the destination is down.
    pub(super) droppable: bool,
}

/// A row for another shard: flags, the outbox's name, the entry's record with their lengths before them, the payload.
pub(super) fn parcel(name: &str, how: How, entry: &Entry) -> Vec<u8> {
    let head = entry.to_bytes();
    let mut parcel = Vec::with_capacity(9 + name.len() + head.len() + entry.payload.len());
    let flags = [how.until_answered, how.hold, how.droppable];
    parcel.push(flags.iter().enumerate().fold(0, |bits, (at, set)| bits | u8::from(*set) << at));
    for part in [name.as_bytes(), &head] {
        // Names and records are far shorter than 4 GiB.
        parcel.extend_from_slice(&(part.len() as u32).to_le_bytes());
        parcel.extend_from_slice(part);
    }
    parcel.extend_from_slice(&entry.payload);
    parcel
}

pub(super) fn unpack(parcel: &[u8]) -> Option<(&str, How, Arc<Entry>)> {
    fn part(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
        let (len, rest) = bytes.split_first_chunk::<4>()?;
        rest.split_at_checked(u32::from_le_bytes(*len) as usize)
    }
    let (flags, rest) = parcel.split_first()?;
    let (name, rest) = part(rest)?;
    let (head, payload) = part(rest)?;
    let mut entry = Entry::from_bytes(head).ok()?;
    entry.payload = Bytes::copy_from_slice(payload);
    let flag = |at: u8| flags & 1 << at != 0;
    let how = How { until_answered: flag(0), hold: flag(1), droppable: flag(2) };
    Some((std::str::from_utf8(name).ok()?, how, Arc::new(entry)))
}

impl Outbox {
    /// Of a shard and class, with the consumer that `beside`, of the same sink, has.
    pub(super) fn new(
        name: Arc<str>,
        sink: Arc<str>,
        (owner, class): (u16, u16),
        queue: Queue<Arc<Entry>>,
        beside: Option<&Self>,
    ) -> Self {
        Self {
            name,
            sink,
            class,
            owner,
            queue,
            generation: beside.map_or(0, |o| o.generation),
            rows: beside.and_then(|o| o.rows.clone()),
            window: beside.map_or(0, |o| o.window),
            error: beside.and_then(|o| o.error.clone()),
            discarded: Vec::new(),
            given_up: BTreeSet::new(),
            counted: Vec::new(),
            ended: Vec::new(),
            old_us: None,
            retired: false,
        }
    }

    /// Nothing is handed out any more.
    pub(super) fn retire(&mut self) {
        self.rows = None;
        self.retired = true;
    }

    /// The consumer has none of its rows, and it has none to give.
    pub(super) fn is_free(&self) -> bool {
        self.in_hand() == 0 && (self.retired || self.queue.counters().queued == 0)
    }

    /// Puts a row in. An end comes back when memory is full of rows that cannot be written.
    pub(super) fn push(
        &mut self,
        entry: Arc<Entry>,
        how: How,
        end: Option<End>,
        now: Now,
    ) -> Result<(), Option<End>> {
        if how.droppable && !self.queue.is_up() {
            self.queue.count_dropped();
            self.ended.extend(end.map(|end| (end, Outcome::Delivered)));
            return Ok(());
        }
        let pushed = match how.until_answered {
            true => self.queue.push_until_answered(entry, end, now),
            false => self.queue.push(entry, end, now),
        };
        pushed.map_err(|(_, end)| end)?;
        if how.hold {
            self.queue.hold();
        }
        Ok(())
    }

    /// Whether its consumer is the uplink.
    pub(super) fn is_uplink(&self) -> bool {
        &*self.sink == crate::loader::UPLINK
    }

    /// Rows that its consumer has.
    pub(super) fn in_hand(&self) -> usize {
        self.queue.counters().in_flight as usize + self.given_up.len()
    }

    /// Rows wait, and the consumer has room for them.
    pub(super) fn waits_for_pace(&self) -> bool {
        self.rows.is_some() && self.queue.waits_in_memory() && self.in_hand() < self.window
    }

    /// Gives rows to the consumer, which has `others` of other classes.
    pub(super) fn hand_out(&mut self, others: usize, mut pace: Option<&mut Pace>, now: Now) {
        let Some(channel) = &self.rows else { return };
        // Also while it is down: a sink that waits for one table goes on with the others, and keeps what it cannot deliver.
        loop {
            let in_flight = self.queue.counters().in_flight as usize;
            let room = self.window.saturating_sub(self.in_hand() + others).min(BATCH_ROWS);
            let room = pace.as_ref().map_or(room, |pace| room.min(pace.may(now)));
            if room == 0 || self.queue.counters().queued == 0 {
                return;
            }
            // Without a place in the channel nothing is taken: an answer, which must come, brings the next turn.
            let Ok(place) = channel.try_reserve() else { return };
            let (mut batch, class) = (Vec::new(), self.class);
            self.queue.hand_out(in_flight + room, now, |seq, entry, mark| {
                let (seq, entry) = (numbered(class, seq), Arc::clone(entry));
                batch.push(OutRow { seq, entry, again: mark.again, late: mark.late });
            });
            if batch.is_empty() {
                return; // The rest is on disk and being read.
            }
            if let Some(pace) = &mut pace {
                pace.left(batch.len(), now);
            }
            place.send(batch);
        }
    }

    /// Numbers without their class. Returns the letters of those that were refused.
    pub(super) fn answers(
        &mut self,
        answers: impl IntoIterator<Item = (u64, Delivered)>,
        dead_letters: &DeadLetters,
        now: Now,
    ) -> Vec<LocalPublish> {
        let mut letters = Vec::new();
        for (seq, delivered) in answers {
            if self.given_up.remove(&seq) {
                continue;
            }
            let outcome = match delivered {
                Delivered::Yes => Outcome::Delivered,
                Delivered::Discarded(reason) => {
                    if self.count(reason, 1) {
                        tracing::warn!(outbox = &*self.name, %reason, "a row was given up: counted from now on");
                    }
                    let entry = self.queue.get(seq);
                    letters
                        .extend(entry.and_then(|entry| dead_letters.letter(&self.name, entry, reason, now)));
                    Outcome::Discarded(reason)
                }
            };
            self.queue.answer(seq, outcome, now, &mut self.ended);
        }
        letters
    }

    /// True the first time.
    fn count(&mut self, reason: Reason, rows: u64) -> bool {
        match self.discarded.iter_mut().find(|(r, _)| *r == reason) {
            Some((_, count)) => {
                *count += rows;
                false
            }
            None => {
                self.discarded.push((reason, rows));
                true
            }
        }
    }

    /// Gives rows up for an operator: those that the consumer has, too, while it cannot deliver them.
    pub(super) fn give_up(&mut self, rows: &[(u64, usize)], now: Now) -> GivenUp {
        let mut taken = Vec::new();
        let down = !self.queue.is_up();
        let given_up = self.queue.give_up(rows, down, now, &mut taken, &mut self.ended);
        self.given_up.extend(taken);
        if given_up.rows > 0 {
            self.count(Reason::Purged, given_up.rows);
        }
        given_up
    }

    /// Gives up what limits say, and says how many: rows that are too old, and those that have no room or that make it.
    pub(super) fn limit(&mut self, age_max: Option<Duration>, boot: Boot, now: Now) -> u64 {
        let mut taken = Vec::new();
        let dropped = self.queue.make_room(now, &mut taken, &mut self.ended);
        self.given_up.extend(taken);
        self.drop_counted(Reason::Limit, dropped);
        let Some(age_max) = age_max.filter(|_| self.old_us.is_none_or(|old_us| old_us <= now.mono_us)) else {
            return dropped;
        };
        let stamp = now.stamp();
        let age_max_ms = age_max.as_millis() as u64;
        let is_old = |entry: &Arc<Entry>| entry.age_ms(boot, &stamp) > age_max_ms;
        let old = self.queue.give_up_while(is_old, OLD_ROWS, Reason::Age, now, &mut self.ended) as u64;
        self.drop_counted(Reason::Age, old);
        let oldest = self.queue.oldest_waiting().map(|entry| entry.age_ms(boot, &stamp));
        self.old_us = oldest.map(|age_ms| now.mono_us + (age_max_ms + 1).saturating_sub(age_ms) * 1_000);
        dropped + old
    }

    fn drop_counted(&mut self, reason: Reason, rows: u64) {
        if rows > 0 && self.count(reason, rows) {
            tracing::warn!(outbox = &*self.name, rows, %reason, "rows were given up by a limit of [outbox]: counted from now on");
        }
    }

    /// It has no consumer any more.
    pub(super) fn detach(&mut self, why: &str, now: Now) {
        self.rows = None;
        self.generation += 1;
        self.window = 0;
        self.error = Some(why.to_owned());
        self.reset();
        self.queue.set_up(false, now);
    }

    /// The consumer has no rows any more.
    pub(super) fn reset(&mut self) {
        self.given_up.clear();
        self.queue.reset();
    }

    pub(super) fn status(&self, now: Now) -> OutboxStatus {
        let c = self.queue.counters();
        let (bytes, oldest_us) = self.queue.backlog(now);
        // A row that was read back is older than its place in memory.
        let received = self.queue.rows().next().map(|entry| entry.received).filter(|stamp| stamp.synced);
        let since_ms =
            received.map_or(0, |stamp| now.wall_ms.saturating_sub(stamp.wall_ms).max(0)).unsigned_abs();
        let state = match (&self.rows, self.queue.is_up()) {
            // No [uplink], or its sink is not in the rules any more.
            (None, _) => "unconnected",
            (Some(_), true) => "up",
            (Some(_), false) => "down",
        };
        OutboxStatus {
            name: self.name.to_string(),
            state: state.to_owned(),
            entered: c.entered,
            recovered: c.recovered,
            delivered: c.delivered,
            // What a destination refuses is discarded with a reason, all else is tried until it is delivered.
            failed: 0,
            in_flight: c.in_flight,
            queued: c.queued,
            discarded: c.discarded,
            discarded_by: self.discarded.iter().map(|(r, count)| (r.to_string(), (*count).into())).collect(),
            counted: self.counted.iter().map(|(what, count)| ((*what).to_owned(), (*count).into())).collect(),
            stored: c.stored,
            written: c.written,
            again: c.again,
            ahead: c.ahead,
            refused: c.refused,
            window: self.window as u64,
            answer_us: self.queue.smoothed_ack().as_micros() as u64,
            bytes,
            oldest_ms: since_ms.max(oldest_us / 1_000),
            last_error: self.error.clone(),
        }
    }
}
