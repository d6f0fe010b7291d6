//! An outbox of the hub: its queue, its consumer, and rows on their way to it from other shards.

use bytes::Bytes;
use ferrule_outbox::{Delivered, End, GivenUp, OutRow, Outcome, Queue, Reason};
use ferrule_store::Now;
use ferrule_store::record::{Entry, Record};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::mpsc;

use crate::control::OutboxStatus;

/// Rows in one batch: small enough that a consumer begins early, large enough that channels cost nothing.
const BATCH_ROWS: usize = 512;

pub(super) struct Outbox {
    pub(super) name: Arc<str>,
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

    pub(super) fn hand_out(&mut self, now: Now) {
        let Some(channel) = &self.rows else { return };
        // Also while it is down: a sink that waits for one table goes on with the others, and keeps what it cannot deliver.
        loop {
            let in_flight = self.queue.counters().in_flight as usize;
            let in_hand = in_flight + self.given_up.len();
            let room = self.window.saturating_sub(in_hand).min(BATCH_ROWS);
            if room == 0 || self.queue.counters().queued == 0 {
                return;
            }
            // Without a place in the channel nothing is taken: an answer, which must come, brings the next turn.
            let Ok(place) = channel.try_reserve() else { return };
            let mut batch = Vec::new();
            self.queue.take(in_flight + room, now, |seq, entry, again| {
                batch.push(OutRow { seq, entry: Arc::clone(entry), again });
            });
            if batch.is_empty() {
                return; // The rest is on disk and being read.
            }
            place.send(batch);
        }
    }

    pub(super) fn answers(&mut self, answers: Vec<(u64, Delivered)>, now: Now) {
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
                    Outcome::Discarded(reason)
                }
            };
            self.queue.answer(seq, outcome, now, &mut self.ended);
        }
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
            refused: c.refused,
            window: self.window as u64,
            answer_us: self.queue.smoothed_ack().as_micros() as u64,
            bytes,
            oldest_ms: since_ms.max(oldest_us / 1_000),
            last_error: self.error.clone(),
        }
    }
}
