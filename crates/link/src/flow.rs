//! Which row goes next, which waits, which is answered. Pure.
//!
//! # Data
//! ```text
//! outbox --push--> queue --pump--> Client (in flight, by packet id) --acked--> answers --> outbox
//!                    ^               | PUBACK "not now"
//!                    +--- stalls[key] <
//! ```
//! Every row is in exactly one of: queue, in flight, a stall, `unwritten` (QoS 0, until its bytes have left),
//! `answers`. The outbox bounds their sum by the window that [`ConsumerEvent::Up`] told it.
//!
//! # Order
//! Rows leave in the order in which the outbox handed them out, on every connection. A row that the broker did not want *now* (quota exceeded, a failing
//! back end) stalls its order key: it is tried again after a back-off, alone, and all later rows of its key wait
//! behind it while other keys go on. Rows of the key that were in flight at that moment may be accepted before
//! it: with a window over one MQTT offers nothing against that, and a Ferrule cloud withholds instead.
//!
//! Answers come as the broker gives them, not as a prefix of the key: whoever receives decides the order at the
//! destination by the order of arrival, which is ours, and one slow sink in the cloud never holds the uplink. So
//! for the consumer contract each row is a lane of its own.
//!
//! # Batches
//! To a Ferrule cloud that knows them rows go in batches ([`crate::batching`]); what is said here of rows holds of them, too. For a batch, and
//! on a link that is paid for by volume, they wait for each other ([`crate::gathering`]).
//!
//! # Across connections
//! Rows outlive the connection: [`Flow::lost`] puts what was in flight back in order, and the next connection
//! sends it again. Why not hand them back ([`ConsumerEvent::Reset`]): batches that the outbox sent before it saw
//! the Reset would still be on their way here, and nothing in them tells them from what is sent after it; later rows
//! would pass earlier ones. A row that is handed out again while it is still here is known by its number and taken
//! once.
//!
//! # Poison
//! Some brokers answer one message that they cannot stand by DISCONNECT. After one with a reason that speaks of a
//! message, the rows that were in flight are sent one at a time; the row that then again ends the connection alone, with
//! such a reason, is the culprit and is discarded. A connection that just breaks never costs a row.
//!
//! [`ConsumerEvent::Up`]: ferrule_outbox::ConsumerEvent::Up
//! [`ConsumerEvent::Reset`]: ferrule_outbox::ConsumerEvent::Reset

use crate::backoff::Backoff;
use crate::batching::Batching;
use crate::client::{Client, Fault, Outgoing, Sent, Verdict};
use crate::forward::Forwarder;
use crate::gathering::Gathering;
use crate::preset::Preset;
use ferrule_mqtt::{Properties, QoS, ReasonCode};
use ferrule_outbox::receipt::Reason;
use ferrule_outbox::{Delivered, OutRow};
use ferrule_store::Stamp;
use std::borrow::Cow;
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

/// The shortest back-off of a stalled key.
const STALL_MIN: Duration = Duration::from_millis(100);

/// A row that is not answered yet.
#[derive(Debug)]
pub struct Held {
    pub(crate) row: OutRow,
    /// Ascends in the order in which the outbox handed rows out (not always that of `row.seq`: `live_first`).
    pub(crate) order: u64,
    /// When the outbox handed it out.
    pub(crate) came_us: u64,
}

/// What a PUBLISH in flight carries.
#[derive(Debug)]
pub enum Flight {
    /// One row.
    One(Held),
    /// A batch's rows, each with its place there. Those of QoS 0 are not among them.
    Batch(Vec<(usize, Held)>),
}

impl Flight {
    pub(crate) fn into_rows(self) -> impl Iterator<Item = Held> {
        let (one, batch) = match self {
            Self::One(row) => (Some(row), Vec::new()),
            Self::Batch(rows) => (None, rows),
        };
        one.into_iter().chain(batch.into_iter().map(|(_, row)| row))
    }
}

/// Rows on their way.
#[derive(Debug)]
pub struct Flow {
    pub(crate) queue: VecDeque<Held>,
    /// `row.seq` of every row that is here or in flight.
    pub(crate) known: HashSet<u64, foldhash::fast::RandomState>,
    pub(crate) next_order: u64,
    stalls: HashMap<Box<str>, Stall>,
    /// Rows in stalls that are not in flight.
    stalled_rows: usize,
    /// QoS 0 rows that are encoded.
    pub(crate) unwritten: Vec<u64>,
    answers: Vec<(u64, Delivered)>,
    /// How many rows are still to be sent one at a time.
    suspects: usize,
    /// A QoS 0 row left on this connection after the last acknowledgement: it too may be what the broker could
    /// not stand.
    pub(crate) unacked_qos_0: bool,
    /// Rows encoded.
    pub(crate) sent: u64,
    /// Batches encoded.
    pub(crate) batches: u64,
    /// None: rows go one by one.
    pub(crate) batching: Option<Batching>,
    /// Whose broker it is, and what we are called there.
    preset: Option<(Preset, String)>,
    /// None: a row leaves at once, or when a batch does.
    pub(crate) metered: Option<Gathering>,
    /// Rows whose `order` is below this wait for no others.
    pub(crate) leaves_to: u64,
    /// No row waits for others.
    pub(crate) hurried: bool,
    /// PUBACKs that said "not now".
    deferred: u64,
    stall_max: Duration,
    random: u64,
}

/// An order key whose first row was not wanted.
#[derive(Debug)]
struct Stall {
    /// Ascending; the first one is tried next.
    rows: VecDeque<Held>,
    /// `order` of the row that is tried again: in flight now.
    probe: Option<u64>,
    due_us: u64,
    backoff: Backoff,
}

impl Flow {
    /// Nothing on its way. `stall_max` is the longest back-off of a row that was not wanted; `seed` its jitter.
    #[must_use]
    pub fn new(stall_max: Duration, seed: u64) -> Self {
        Self {
            queue: VecDeque::new(),
            known: HashSet::default(),
            next_order: 0,
            stalls: HashMap::new(),
            stalled_rows: 0,
            unwritten: Vec::new(),
            answers: Vec::new(),
            suspects: 0,
            unacked_qos_0: false,
            sent: 0,
            batches: 0,
            batching: None,
            preset: None,
            metered: None,
            leaves_to: 0,
            hurried: false,
            deferred: 0,
            stall_max,
            random: seed,
        }
    }

    /// From now on, until [`Flow::lost`], rows go in batches, if there is a `batching`.
    pub fn set_batching(&mut self, batching: Option<Batching>) {
        self.batching = batching;
    }

    /// From now on rows are sent as this broker takes them, to which we are the device of this name.
    pub fn set_preset(&mut self, preset: Option<(Preset, String)>) {
        self.preset = preset;
    }

    /// From now on rows wait until so many are together, on this connection and the next ones; none: they do not.
    pub fn set_metered(&mut self, gathering: Option<Gathering>) {
        self.metered = gathering;
    }

    /// From now on no row waits for others: there will be none.
    pub fn hurry(&mut self) {
        self.hurried = true;
    }

    /// Takes rows from the outbox; those that are already here or in flight are not taken twice.
    pub fn push(&mut self, rows: Vec<OutRow>, now_us: u64) {
        for row in rows {
            if self.known.insert(row.seq) {
                self.queue.push_back(Held { row, order: self.next_order, came_us: now_us });
                self.next_order += 1;
            }
        }
    }

    /// Encodes rows while the window has room and `out` is below `out_max` bytes.
    pub fn pump(
        &mut self,
        client: &mut Client<Flight>,
        forwarder: &mut Forwarder,
        now_us: u64,
        stamp: &Stamp,
        out: &mut Vec<u8>,
        out_max: usize,
    ) {
        if client.accepted().is_none() {
            return;
        }
        if !self.stalls.is_empty() {
            self.probe(client, forwarder, now_us, stamp, out);
        }
        // What is suspected goes alone, and at once.
        while out.len() < out_max && self.may_send(client) && (self.suspects > 0 || self.is_gathered(now_us))
        {
            if self.suspects == 0
                && let Some(mut batching) = self.batching.take()
            {
                let is_sent = self.send_batch(&mut batching, client, forwarder, now_us, stamp, out);
                self.batching = Some(batching);
                if is_sent {
                    continue;
                }
                break;
            }
            let Some(row) = self.next_row() else { break };
            if let Some(row) = self.send(row, client, forwarder, now_us, stamp, out) {
                self.queue.push_front(row);
                break;
            }
        }
    }

    /// The next row whose key does not stall.
    pub(crate) fn next_row(&mut self) -> Option<Held> {
        loop {
            let row = self.queue.pop_front()?;
            match self.stalls.get_mut(&row.row.entry.key) {
                Some(stall) => stall.rows.push_back(row),
                None => return Some(row),
            }
            self.stalled_rows += 1;
        }
    }

    /// The broker's word on a PUBLISH; `properties` are the PUBACK's.
    pub fn acked(&mut self, flight: Flight, reason: ReasonCode, properties: Properties<'_>, now_us: u64) {
        self.unacked_qos_0 = false;
        match flight {
            Flight::One(row) => {
                self.suspects = self.suspects.saturating_sub(1);
                self.row_acked(row, reason, now_us);
            }
            Flight::Batch(rows) => self.batch_acked(rows, reason, properties, now_us),
        }
    }

    pub(crate) fn row_acked(&mut self, row: Held, reason: ReasonCode, now_us: u64) {
        match Verdict::of(reason) {
            Verdict::Delivered => self.settle(row, Delivered::Yes),
            Verdict::Refused => {
                tracing::warn!(topic = %row.row.entry.target, %reason, "broker refuses the message, it is discarded");
                self.settle(row, Delivered::Discarded(Reason::Refused));
            }
            Verdict::Later => {
                self.deferred += 1;
                self.stall(row, now_us);
            }
        }
    }

    /// All that was encoded has left: rows of QoS 0 are done.
    pub fn written(&mut self) {
        for seq in std::mem::take(&mut self.unwritten) {
            self.answer(seq, Delivered::Yes);
        }
    }

    /// The connection has ended with `fault` (none: the transport just broke): takes back what was in flight.
    pub fn lost(&mut self, client: Client<Flight>, fault: Option<&Fault>) {
        let mut rows: Vec<Held> = client.into_in_flight().flat_map(Flight::into_rows).collect();
        self.batching = None;
        // Encoded, perhaps sent: QoS 0 is never sent twice.
        self.written();
        if let Some(reason) = fault.and_then(Fault::blames_a_message) {
            match (&rows[..], self.suspects) {
                ([_], 1..) if !self.unacked_qos_0 => {
                    // The match arm says that there is one.
                    if let Some(row) = rows.pop() {
                        tracing::warn!(topic = %row.row.entry.target, %reason, "broker ends the connection over the message, it is discarded");
                        let why = if reason == ReasonCode::PACKET_TOO_LARGE {
                            Reason::TooLarge
                        } else {
                            Reason::Refused
                        };
                        self.suspects -= 1;
                        self.answer(row.row.seq, Delivered::Discarded(why));
                    }
                }
                _ => self.suspects = self.suspects.max(rows.len()),
            }
        }
        self.unacked_qos_0 = false;
        rows.extend(self.queue.drain(..));
        for (_, stall) in self.stalls.drain() {
            rows.extend(stall.rows);
        }
        self.stalled_rows = 0;
        rows.sort_unstable_by_key(|row| row.order);
        self.queue = rows.into();
    }

    /// Answers since the last call, each row once.
    pub fn take_answers(&mut self) -> Vec<(u64, Delivered)> {
        std::mem::take(&mut self.answers)
    }

    /// When a stalled key is to be tried again, or rows leave that wait for others; none while it could not be sent: an acknowledgement comes first.
    #[must_use]
    pub fn deadline_us(&self, client: &Client<Flight>) -> Option<u64> {
        if !self.may_send(client) {
            return None;
        }
        let stalls =
            self.stalls.values().filter(|stall| stall.probe.is_none()).map(|stall| stall.due_us).min();
        let waits = self.metered.is_some() || self.batching.is_some();
        let gathered = if waits { self.gathered_us() } else { None };
        [stalls, gathered].into_iter().flatten().min()
    }

    /// Rows that are here and not in flight.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.queue.len() + self.stalled_rows + self.unwritten.len()
    }

    /// Rows encoded so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Batches encoded so far.
    #[must_use]
    pub fn batches(&self) -> u64 {
        self.batches
    }

    /// Acknowledgements so far that said "not now".
    #[must_use]
    pub fn deferred(&self) -> u64 {
        self.deferred
    }

    fn may_send(&self, client: &Client<Flight>) -> bool {
        client.room() > 0 && (self.suspects == 0 || client.in_flight() == 0)
    }

    /// Sends a row; gives it back when there is no room.
    pub(crate) fn send(
        &mut self,
        row: Held,
        client: &mut Client<Flight>,
        forwarder: &mut Forwarder,
        now_us: u64,
        stamp: &Stamp,
        out: &mut Vec<u8>,
    ) -> Option<Held> {
        let entry = std::sync::Arc::clone(&row.row.entry);
        let properties = match forwarder.properties(&entry, row.row.late, stamp) {
            Ok(properties) => properties,
            Err(reason) => {
                self.settle(row, Delivered::Discarded(reason));
                return None;
            }
        };
        let shaped = match &self.preset {
            Some((preset, device)) => preset.shape(device, &entry, properties),
            None => Ok((Cow::Borrowed(&*entry.target), entry.retain)),
        };
        let (topic, retain) = match shaped {
            Ok(shaped) => shaped,
            Err(reason) => {
                tracing::warn!(topic = %entry.target, bytes = entry.payload.len(), ?reason, "the broker would end the connection over the message, it is discarded");
                self.settle(row, Delivered::Discarded(reason));
                return None;
            }
        };
        let message = Outgoing {
            qos: QoS::try_from(entry.qos).unwrap_or(QoS::AtLeastOnce),
            retain,
            topic: &topic,
            properties: &[properties],
            payload: &entry.payload,
        };
        match client.publish(Flight::One(row), &message, now_us, out) {
            Sent::Awaiting => self.sent += 1,
            Sent::Unanswered(flight) => {
                self.sent += 1;
                self.unacked_qos_0 = true;
                for row in flight.into_rows() {
                    self.unwritten.push(row.row.seq);
                    self.release(&row);
                }
            }
            Sent::NoRoom(flight) => return flight.into_rows().next(),
            Sent::TooLarge(flight) => {
                tracing::warn!(topic = %entry.target, bytes = entry.payload.len(), "message is larger than the broker takes, it is discarded");
                flight.into_rows().for_each(|row| self.settle(row, Delivered::Discarded(Reason::TooLarge)));
            }
            Sent::Invalid(flight, error) => {
                tracing::warn!(topic = %entry.target, %error, "message cannot be said in MQTT, it is discarded");
                flight.into_rows().for_each(|row| self.settle(row, Delivered::Discarded(Reason::Target)));
            }
        }
        None
    }

    /// Sends the first row of each stalled key that is due.
    fn probe(
        &mut self,
        client: &mut Client<Flight>,
        forwarder: &mut Forwarder,
        now_us: u64,
        stamp: &Stamp,
        out: &mut Vec<u8>,
    ) {
        let due = |stall: &Stall| stall.probe.is_none() && stall.due_us <= now_us;
        let mut keys: Vec<(u64, Box<str>)> = self
            .stalls
            .iter()
            .filter(|(_, stall)| due(stall))
            .filter_map(|(key, stall)| Some((stall.rows.front()?.order, key.clone())))
            .collect();
        keys.sort_unstable();
        for (order, key) in keys {
            if !self.may_send(client) {
                return;
            }
            let Some(stall) = self.stalls.get_mut(&key) else { continue };
            let Some(row) = stall.rows.pop_front() else { continue };
            stall.probe = Some(order);
            self.stalled_rows -= 1;
            if let Some(row) = self.send(row, client, forwarder, now_us, stamp, out)
                && let Some(stall) = self.stalls.get_mut(&key)
            {
                stall.probe = None;
                stall.rows.push_front(row);
                self.stalled_rows += 1;
            }
        }
    }

    /// A row's last word.
    pub(crate) fn settle(&mut self, row: Held, answer: Delivered) {
        self.answer(row.row.seq, answer);
        self.release(&row);
    }

    fn answer(&mut self, seq: u64, answer: Delivered) {
        let known = self.known.remove(&seq);
        debug_assert!(known, "row {seq} is answered twice");
        self.answers.push((seq, answer));
    }

    /// If `row` is the one for which its key stalled, the key goes on.
    pub(crate) fn release(&mut self, row: &Held) {
        let key = &row.row.entry.key;
        if self.stalls.get(key).is_some_and(|stall| stall.probe == Some(row.order))
            && let Some(stall) = self.stalls.remove(key)
        {
            self.stalled_rows -= stall.rows.len();
            for row in stall.rows.into_iter().rev() {
                insert_sorted(&mut self.queue, row);
            }
        }
    }

    /// A row that was not sent after all.
    pub(crate) fn back(&mut self, row: Held) {
        insert_sorted(&mut self.queue, row);
    }

    fn stall(&mut self, row: Held, now_us: u64) {
        let stall = match self.stalls.get_mut(&row.row.entry.key) {
            Some(stall) => stall,
            None => {
                self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let new = Stall {
                    rows: VecDeque::new(),
                    // As if it had been the probe: the first back-off is set below.
                    probe: Some(row.order),
                    due_us: now_us,
                    backoff: Backoff::new(STALL_MIN, self.stall_max, self.random),
                };
                self.stalls.entry(row.row.entry.key.clone()).or_insert(new)
            }
        };
        if stall.probe == Some(row.order) {
            stall.probe = None;
            let delay = stall.backoff.fail(Duration::ZERO);
            stall.due_us = now_us.saturating_add(u64::try_from(delay.as_micros()).unwrap_or(u64::MAX));
        }
        insert_sorted(&mut stall.rows, row);
        self.stalled_rows += 1;
    }
}

fn insert_sorted(rows: &mut VecDeque<Held>, row: Held) {
    let at = rows.partition_point(|other| other.order < row.order);
    rows.insert(at, row);
}
