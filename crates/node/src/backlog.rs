//! What waits in outboxes, for the control socket: rows in pages, and rows given up by hand.
//!
//! # Operation
//! A page is at most [`PAGE_ROWS`] rows and about [`PAGE_BYTES`] of payloads. The outbox's shard shows what it has in memory and says
//! where on disk its backlog goes on; that part is read here, through the store's writer, so that looking neither blocks a
//! worker nor fills its memory. Between two pages everything goes on: a row that is delivered meanwhile is not shown. An
//! outbox that no rule names is no shard's: its rows are read from the store alone.

use crate::hub::HubMessage;
use crate::hub::backlog::{Ask, PAGE_BYTES, PAGE_ROWS, Shown};
use crate::hub::outbox::{queue_of, split_name};
use crate::store::Writer;
use bytes::Bytes;
use ferrule_broker::Place;
use ferrule_net::{Inbox, Mail};
use ferrule_outbox::{GivenUp, Next, Place as RowPlace, Row};
use ferrule_store::record::Entry;
use ferrule_store::{Op, QueueId, QueueSummary, Store, StoreEvent, StoredRow};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// How long the store may take: shorter than whoever asks waits.
const PATIENCE: Duration = Duration::from_secs(20);

/// Which rows are given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pick {
    /// Only rows received before this, in milliseconds since 1970; none: all.
    pub before_ms: Option<i64>,
    /// Only rows numbered up to this: what came later is not meant.
    pub until: u64,
}

/// A row of a page.
pub struct Line {
    /// Its number.
    pub seq: u64,
    /// Bytes, as its outbox counts them.
    pub size: usize,
    /// Where it is.
    pub place: RowPlace,
    /// What it is, or why it cannot be read.
    pub entry: Result<Arc<Entry>, String>,
}

/// Some rows of an outbox, oldest first.
pub struct Part {
    /// They.
    pub rows: Vec<Line>,
    /// The number after which to go on; none: that was all.
    pub next: Option<u64>,
    /// The highest number that a row has.
    pub last: u64,
    /// Rows in the consumer's hands are about to be answered.
    pub up: bool,
}

/// Where the rows are.
#[derive(Clone, Copy)]
pub struct Backlog<'a> {
    /// The store.
    pub writer: &'a Writer,
    /// Of every worker.
    pub inboxes: &'a [Inbox<HubMessage>],
    /// Any worker's.
    pub place: Place,
}

/// The outbox that a name means: of itself, or of 16 hexadecimal digits, as `store dump` and `outbox list` print one that
/// no rule names.
#[must_use]
pub fn queue_id(name: &str) -> QueueId {
    let hex = name.len() == 16 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    match u64::from_str_radix(name, 16) {
        Ok(id) if hex && QueueId(id).is_outbox() => QueueId(id),
        _ => queue_of(name),
    }
}

/// As [`queue_id`] reads it.
#[must_use]
pub fn show_id(queue: QueueId) -> String {
    format!("{:016x}", queue.0)
}

impl Line {
    /// Of a stored row.
    #[must_use]
    pub fn stored(seq: u64, head: &[u8], body: Option<Bytes>) -> Self {
        let raw = head.len() + body.as_ref().map_or(0, Bytes::len);
        let entry = match body {
            Some(body) => <Arc<Entry> as Row>::decode(head, body).map_err(|e| e.to_string()),
            None => Err("its body is not there".to_owned()),
        };
        let size = entry.as_ref().map_or(raw, Row::size);
        Self { seq, size, place: RowPlace::Stored, entry }
    }

    /// Whether it is one of those to give up. What cannot be read has no age.
    #[must_use]
    pub fn is_picked(&self, pick: &Pick) -> bool {
        let old = |before| self.entry.as_ref().is_ok_and(|entry| entry.received.wall_ms < before);
        self.seq <= pick.until && pick.before_ms.is_none_or(old)
    }

    /// All of it, so that nothing is lost when the row is given up: what is not UTF-8 is in hexadecimal under another name.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let place = match self.place {
            RowPlace::Memory => "memory",
            RowPlace::Stored => "stored",
            RowPlace::InFlight => "in_flight",
        };
        let mut row = Map::new();
        row.insert("seq".into(), json!(self.seq));
        row.insert("place".into(), json!(place));
        match &self.entry {
            Err(fault) => drop(row.insert("fault".into(), json!(fault))),
            Ok(e) => {
                let fields = json!({
                    "message_id": e.identity.to_string(),
                    "origin": e.identity.origin,
                    "boot": e.identity.boot.get(),
                    "class": e.identity.class,
                    "number": e.identity.seq,
                    "rule": e.rule,
                    "row": e.row,
                    "target": e.target,
                    "key": e.key,
                    "passthrough": e.passthrough,
                    "qos": e.qos,
                    "retain": e.retain,
                    "client_id": e.client_id,
                    "username": e.username,
                    "topic": e.topic,
                    "edge": e.edge,
                    "received_ms": e.received.wall_ms,
                    "received_mono_us": e.received.mono_us,
                    "clock_synced": e.received.synced,
                    "hops": e.hops,
                    "properties_hex": hex(&e.properties),
                });
                if let Value::Object(fields) = fields {
                    row.extend(fields);
                }
                match std::str::from_utf8(&e.payload) {
                    Ok(text) => row.insert("payload".into(), json!(text)),
                    Err(_) => row.insert("payload_hex".into(), json!(hex(&e.payload))),
                };
            }
        }
        Value::Object(row)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Part {
    /// As the control socket sends it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let rows: Vec<Value> = self.rows.iter().map(Line::to_json).collect();
        json!({ "rows": rows, "next": self.next, "last": self.last })
    }
}

impl Backlog<'_> {
    /// Outboxes that the store has and no rule names, as `outbox.list` tells them.
    ///
    /// # Errors
    /// When the node is stopping.
    pub async fn unclaimed(&self) -> Result<Vec<QueueSummary>, String> {
        let (reply, answer) = oneshot::channel();
        // All shards know of all of them.
        let inbox = self.inboxes.first().ok_or_else(stopping)?;
        inbox.post(Mail::App(HubMessage::Backlog(Box::new(Ask::Unclaimed(reply)))));
        answer.await.map_err(|_| stopping())
    }

    async fn shown(&self, name: &str, after: u64) -> Result<Option<Shown>, String> {
        let (reply, answer) = oneshot::channel();
        self.tell(name, Ask::Page { name: name.into(), after, reply });
        answer.await.map_err(|_| stopping())
    }

    fn tell(&self, name: &str, ask: Ask) {
        if let Some(inbox) = self.inboxes.get(usize::from(self.place.owner(split_name(name).0))) {
            inbox.post(Mail::App(HubMessage::Backlog(Box::new(ask))));
        }
    }

    /// A page; `after` is the last one's `next`, 0 at first.
    ///
    /// # Errors
    /// When there is no such outbox, or the node is stopping.
    pub async fn page(&self, name: &str, after: u64) -> Result<Part, String> {
        let queue = queue_id(name);
        let Some(shown) = self.shown(name, after).await? else {
            let unclaimed = self.unclaimed().await?;
            let summary = unclaimed.iter().find(|s| s.queue == queue);
            let summary = summary.ok_or_else(|| {
                format!("there is no outbox `{name}`: `outbox list` shows all that there are")
            })?;
            let rows = self.read(queue, summary.first.max(after + 1), summary.last).await?;
            let next = rows.last().map(|row| row.seq).filter(|seq| *seq < summary.last);
            return Ok(Part { rows, next, last: summary.last, up: false });
        };
        let mut rows: Vec<Line> = (shown.rows.into_iter())
            .map(|(seq, entry, place)| Line { seq, size: entry.size(), place, entry: Ok(entry) })
            .collect();
        let next = match shown.next {
            Next::End => None,
            Next::Memory => rows.last().map(|row| row.seq),
            // What memory has before the gap may be a whole page: then the gap is the next one's.
            Next::Disk { .. } if rows.len() >= PAGE_ROWS / 2 => rows.last().map(|row| row.seq),
            Next::Disk { from, to, without } => {
                let stored = self.read(queue, from, to).await?;
                let reached = stored.last().map_or(to, |row| row.seq);
                let gone = |seq: u64| without.iter().any(|&(first, last)| first <= seq && seq <= last);
                rows.extend(stored.into_iter().filter(|row| !gone(row.seq)));
                Some(reached)
            }
        };
        Ok(Part { rows, next, last: shown.last, up: shown.up })
    }

    /// Rows that are on disk.
    async fn read(&self, queue: QueueId, from: u64, to: u64) -> Result<Vec<Line>, String> {
        let (sender, mut events) = mpsc::unbounded_channel();
        let mut store = self.writer.handle(Box::new(move |event| drop(sender.send(event))));
        store.read(queue, from, PAGE_ROWS as u32, PAGE_BYTES as u32);
        loop {
            match next(&mut events).await? {
                StoreEvent::Rows { rows, .. } => {
                    let rows = rows.into_iter().filter(|row| row.seq <= to);
                    let line = |row: StoredRow| Line::stored(row.seq, &row.head, Some(row.body));
                    return Ok(rows.map(line).collect());
                }
                StoreEvent::Failing { message } => return Err(message),
                _ => {}
            }
        }
    }

    /// Gives up what `pick` says of the page after `after`; `dry` only counts. The answer has counts and where to go on.
    ///
    /// # Errors
    /// As [`Backlog::page`].
    pub async fn give_up(&self, name: &str, after: u64, pick: &Pick, dry: bool) -> Result<Value, String> {
        let part = self.page(name, after).await?;
        let meant: Vec<&Line> = part.rows.iter().filter(|row| row.is_picked(pick)).collect();
        let (kept, picked): (Vec<&Line>, Vec<&Line>) =
            meant.into_iter().partition(|row| part.up && row.place == RowPlace::InFlight);
        let rows: Vec<(u64, usize)> = picked.iter().map(|row| (row.seq, row.size)).collect();
        let bytes = rows.iter().map(|row| row.1 as u64).sum();
        let done = if dry {
            let in_flight = picked.iter().filter(|row| row.place == RowPlace::InFlight).count() as u64;
            GivenUp { rows: rows.len() as u64, bytes, in_flight, left: 0 }
        } else if rows.is_empty() {
            GivenUp::default()
        } else {
            let (reply, answer) = oneshot::channel();
            self.tell(name, Ask::GiveUp { name: name.into(), rows: rows.clone(), reply });
            match answer.await.map_err(|_| stopping())? {
                Some(done) => done,
                None => self.remove(queue_id(name), &rows, bytes).await?,
            }
        };
        let next = part.next.filter(|next| *next < pick.until);
        Ok(json!({
            "rows": done.rows,
            "bytes": done.bytes,
            "in_flight": done.in_flight,
            "left": done.left,
            "kept": kept.len(),
            "next": next,
            "last": part.last,
        }))
    }

    /// Removes rows of an outbox that no rule names. Only then is it forgotten what the store had: a rule that names it
    /// meanwhile begins behind the highest number that there was.
    async fn remove(&self, queue: QueueId, rows: &[(u64, usize)], bytes: u64) -> Result<GivenUp, String> {
        let (sender, mut events) = mpsc::unbounded_channel();
        let mut store = self.writer.handle(Box::new(move |event| drop(sender.send(event))));
        let ticket = store.submit(removals(queue, rows.iter().map(|row| row.0)));
        loop {
            match next(&mut events).await? {
                StoreEvent::Committed { ticket: reached, .. } if reached >= ticket => break,
                StoreEvent::Failing { message } => return Err(message),
                _ => {}
            }
        }
        tracing::warn!(outbox = show_id(queue), rows = rows.len(), "an operator gave rows up");
        let rows = rows.len() as u64;
        for inbox in self.inboxes {
            inbox.post(Mail::App(HubMessage::Backlog(Box::new(Ask::Removed { queue, rows, bytes }))));
        }
        Ok(GivenUp { rows, bytes, in_flight: 0, left: 0 })
    }
}

/// Removals of ascending numbers, as few as there are runs of them.
pub fn removals(queue: QueueId, seqs: impl Iterator<Item = u64>) -> Vec<Op> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for seq in seqs {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == seq => *last = seq,
            _ => runs.push((seq, seq)),
        }
    }
    runs.into_iter().map(|(first, last)| Op::Remove { queue, first, last }).collect()
}

/// What the store says next; while its medium refuses it may say nothing.
async fn next(events: &mut mpsc::UnboundedReceiver<StoreEvent>) -> Result<StoreEvent, String> {
    match tokio::time::timeout(PATIENCE, events.recv()).await {
        Ok(event) => event.ok_or_else(stopping),
        Err(_) => Err("the store does not answer: `status` says what is wrong".to_owned()),
    }
}

fn stopping() -> String {
    "the node is stopping".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_runs() {
        let cloud = QueueId::outbox("cloud", 0);
        assert_eq!((queue_id("cloud"), queue_id(&show_id(cloud))), (cloud, cloud));
        // Sixteen digits that no outbox has are a name.
        assert_eq!(queue_id("0000000000000001"), QueueId::outbox("0000000000000001", 0));
        let runs = removals(cloud, [1, 2, 3, 5, 7, 8].into_iter());
        let run = |first, last| Op::Remove { queue: cloud, first, last };
        assert_eq!(runs, [run(1, 3), run(5, 5), run(7, 8)]);
    }

    #[test]
    fn what_cannot_be_read_is_told_and_has_no_age() {
        let line = Line::stored(7, b"\xff", Some(Bytes::from_static(b"abc")));
        let json = line.to_json();
        assert_eq!((json["seq"].as_u64(), json["fault"].is_string(), line.size), (Some(7), true, 4));
        assert!(line.is_picked(&Pick { before_ms: None, until: 7 }));
        assert!(!line.is_picked(&Pick { before_ms: None, until: 6 }));
        assert!(!line.is_picked(&Pick { before_ms: Some(i64::MAX), until: 7 }));
        assert!(Line::stored(1, b"", None).entry.is_err());
    }
}
