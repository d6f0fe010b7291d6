//! An outbox of the hub: its queue, its consumer, and rows on their way to it from other shards.

use bytes::Bytes;
use ferrule_outbox::{Delivered, End, OutRow, Outcome, Queue, Reason};
use ferrule_store::Now;
use ferrule_store::record::{Entry, Record};
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
            let room = self.window.saturating_sub(in_flight).min(BATCH_ROWS);
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
            let outcome = match delivered {
                Delivered::Yes => Outcome::Delivered,
                Delivered::Discarded(reason) => {
                    match self.discarded.iter_mut().find(|(r, _)| *r == reason) {
                        Some((_, count)) => *count += 1,
                        None => {
                            tracing::warn!(outbox = &*self.name, %reason, "a row was given up: counted from now on");
                            self.discarded.push((reason, 1));
                        }
                    }
                    Outcome::Discarded(reason)
                }
            };
            self.queue.answer(seq, outcome, now, &mut self.ended);
        }
    }

    pub(super) fn status(&self, now: Now) -> OutboxStatus {
        let c = self.queue.counters();
        let (bytes, oldest_us) = self.queue.backlog(now);
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
            oldest_ms: oldest_us / 1_000,
            last_error: self.error.clone(),
        }
    }
}
