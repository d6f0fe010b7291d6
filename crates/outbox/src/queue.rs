//! One structure for outboxes and sessions' queues: in memory first, on disk when it must be, in order.
//!
//! # Constraints
//! A row that its destination acknowledges in time is never written: flash is what a gateway wears out first. A
//! row that is late is written *with everything else that waits*, in the shard's one group commit. Memory is
//! bounded whatever the backlog; a million rows cost one summary.
//!
//! # Data
//! ```text
//!  oldest                                                                            newest
//!  head: slots in memory, ascending   | gap: on disk only (first..=last) | fresh: slots in memory, not yet
//!  (answered | in flight | unsent)    | read back 256 rows at a time     | on disk; move into the gap when
//!                                     |                                  | committed
//! ```
//! Without a backlog there is only `head`. When head is full, or while there is a gap, rows enter `fresh`. When the
//! gap has been read, fresh becomes part of head. With [`Order::LiveFirst`] rows of fresh may leave ahead of the others ([`live`]).
//!
//! # Invariants
//! - Numbers ascend from head through gap to fresh; the next number is above all of them.
//! - A row leaves for the consumer in order of its number, but for [`Order::LiveFirst`]; after [`Queue::reset`] again from the oldest
//!   unanswered.
//! - A row's end is resolved once: by its destination's answer or by its commit, whichever is first.
//! - A row that was written is removed from disk only after its answer.
//! - One row that is not answered keeps its own room in head, not that of those behind it.
//! - `entered + recovered = delivered + discarded + in_flight + queued` ([`Counters`]) after every call.
//!
//! # Operation
//! `push` takes a row; `take` hands rows out; `answer` ends them; `due` says whether what waits must be written
//! now, `write` appends it to the shard's batch, `submitted` and `committed` follow the ticket; `want_read` and
//! `loaded` bring the backlog back; `make_room` and `give_up_while` give up by limits ([`limits`]), `page` and `give_up` are an
//! operator's ([`backlog`]). All are pure: `now` is an argument.

mod backlog;
mod limits;
mod live;

pub use backlog::{GivenUp, Next, Place, RANGES_MAX};
pub use limits::Full;
pub use live::{Mark, Order};

use crate::receipt::{End, Outcome, Reason};
use bytes::Bytes;
use ferrule_store::record::{Entry, Record, RecordError};
use ferrule_store::{Body, Now, Op, QueueId, QueueSummary, StoredRow, Ticket};
use live::{Live, Spot};
use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Answered slots that may stay in head whatever else is there: a few kilobytes.
const ANSWERED: usize = 32;

/// What a queue holds.
pub trait Row: Clone {
    /// Head and body as the store keeps them.
    fn encode(&self) -> (Bytes, Body);

    /// Reads a stored row.
    ///
    /// # Errors
    /// When it is damaged or written by a newer version.
    fn decode(head: &[u8], body: Bytes) -> Result<Self, RecordError>;

    /// Bytes that it costs to keep.
    fn size(&self) -> usize;
}

impl Row for Arc<Entry> {
    fn encode(&self) -> (Bytes, Body) {
        (self.to_bytes(), Body::Inline(self.payload.clone()))
    }

    fn decode(head: &[u8], body: Bytes) -> Result<Self, RecordError> {
        let mut entry = Entry::from_bytes(head)?;
        entry.payload = body;
        Ok(Arc::new(entry))
    }

    fn size(&self) -> usize {
        // The fixed part is what the fields cost in memory, measured with the allocator's rounding.
        const FIXED: usize = 256;
        FIXED
            + self.payload.len()
            + self.target.len()
            + self.key.len()
            + self.client_id.len()
            + self.topic.len()
            + self.properties.len()
    }
}

/// Bounds and times of a queue. Contract 2 has the table behind them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// At the latest this long after a row came its publisher has its acknowledgement, as far as it depends on
    /// us. 800 ms: under the 1 s after which common device libraries send again.
    pub ack_deadline: Duration,
    /// No row is written earlier than this while the destination answers: 50 ms.
    pub linger_min: Duration,
    /// While the destination is down, commits are this far apart (edge 400 ms, for the flash; cloud 0).
    pub offline_interval: Duration,
    /// A row that nobody waits for is written after this: 1 s.
    pub unawaited: Duration,
    /// Answered rows are removed from disk with the next commit, or after this.
    pub removal: Duration,
    /// Head holds at most this many bytes; beyond it there is a gap on disk.
    pub head_bytes: usize,
    /// Rows that are not on disk hold at most this many bytes before they are written, whoever waits (4 MiB).
    pub unwritten_bytes: usize,
    /// Rows that are not on disk hold at most this many bytes at all: beyond it `push` refuses.
    pub refuse_bytes: usize,
    /// Rows on disk hold at most this many bytes: beyond it [`Policy::full`] says what happens.
    pub disk_bytes: u64,
    /// Rows on disk are at most this many: beyond it the same.
    pub disk_rows: u64,
    /// What happens to rows that must be written and have no room.
    pub full: Full,
    /// Which rows leave first.
    pub order: Order,
}

impl Policy {
    /// A gateway's.
    pub const EDGE: Self = Self {
        ack_deadline: Duration::from_millis(800),
        linger_min: Duration::from_millis(50),
        offline_interval: Duration::from_millis(400),
        unawaited: Duration::from_secs(1),
        removal: Duration::from_secs(10),
        head_bytes: 2 << 20,
        unwritten_bytes: 4 << 20,
        refuse_bytes: 16 << 20,
        disk_bytes: 1 << 30,
        disk_rows: u64::MAX,
        full: Full::Withhold,
        order: Order::InOrder,
    };

    /// Whether a row of `size` bytes is within the limits on disk, beside so many bytes and rows.
    fn fits(&self, size: usize, disk_bytes: u64, disk_rows: u64) -> bool {
        disk_bytes + size as u64 <= self.disk_bytes && disk_rows < self.disk_rows
    }

    /// A cloud node's.
    pub const CLOUD: Self = Self {
        offline_interval: Duration::ZERO,
        removal: Duration::from_secs(1),
        head_bytes: 32 << 20,
        unwritten_bytes: 16 << 20,
        refuse_bytes: 256 << 20,
        disk_bytes: 64 << 30,
        ..Self::EDGE
    };
}

/// What became of the rows of a queue in this process life. On a quiet queue
/// `entered + recovered = delivered + discarded + in_flight + queued`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Rows pushed.
    pub entered: u64,
    /// Rows found on disk at the start.
    pub recovered: u64,
    /// Rows that the destination acknowledged.
    pub delivered: u64,
    /// Rows given up, with a reason.
    pub discarded: u64,
    /// Rows handed out and not answered.
    pub in_flight: u64,
    /// Rows waiting to be handed out, in memory or on disk.
    pub queued: u64,
    /// Rows on disk that are not known to be delivered.
    pub stored: u64,
    /// Rows ever written to disk.
    pub written: u64,
    /// Rows handed out again after a reset.
    pub again: u64,
    /// Rows that were refused because memory was full.
    pub refused: u64,
    /// Rows that left before others that had come earlier.
    pub ahead: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disk {
    No,
    Submitted,
    Yes,
}

#[derive(Debug)]
struct Slot<R> {
    seq: u64,
    /// None: answered, and its room is free. It stays in its place until those before it have gone or there are many like it.
    row: Option<R>,
    size: usize,
    end: Option<End>,
    came_us: u64,
    /// When it was handed out; none while it is not.
    sent_us: Option<u64>,
    disk: Disk,
    again: bool,
    /// Not handed out before it is on disk.
    held: bool,
    /// It was handed out in this process life.
    handed: bool,
    /// Others that came after it had been handed out before it.
    late: bool,
    /// It never becomes a part of the gap.
    apart: bool,
}

impl<R> Slot<R> {
    /// Whether it may be handed out, as far as the disk is concerned.
    fn may_leave(&self) -> bool {
        !self.held || self.disk == Disk::Yes
    }
}

/// What is left of a slot whose row has its last word.
struct Over {
    seq: u64,
    size: usize,
    end: Option<End>,
    sent_us: Option<u64>,
    disk: Disk,
}

impl Over {
    fn of<R>(slot: &mut Slot<R>) -> Self {
        Self { seq: slot.seq, size: slot.size, end: slot.end.take(), sent_us: slot.sent_us, disk: slot.disk }
    }
}

#[derive(Debug, Clone, Copy)]
struct Gap {
    first: u64,
    last: u64,
    rows: u64,
}

/// A queue. See the module's header.
#[derive(Debug)]
pub struct Queue<R> {
    id: QueueId,
    policy: Policy,
    head: VecDeque<Slot<R>>,
    /// Slots of `head` before this index are in flight or answered.
    cursor: usize,
    /// Slots of `head` that are answered.
    answered: usize,
    /// Bytes of those that are not.
    head_bytes: usize,
    gap: Option<Gap>,
    reading: bool,
    fresh: VecDeque<Slot<R>>,
    next_seq: u64,
    /// The last row that was handed out, or may have been by an earlier process life.
    handed_to: u64,
    /// Every slot up to this number has been submitted (or was answered before it had to be).
    submitted_to: u64,
    /// Nobody waits for the slots up to this number that are not submitted.
    unawaited_to: Cell<u64>,
    /// Submits not committed yet: the ticket and the last number that it covers.
    tickets: VecDeque<(Ticket, u64)>,
    /// Bytes of slots that are not known to be on disk.
    unwritten_bytes: usize,
    /// Bytes of rows on disk, estimated from this process's own accounting.
    disk_bytes: u64,
    /// Ends that only the destination's answer resolves (`ack = 'sink'`), wherever their rows are.
    answers: BTreeMap<u64, End>,
    /// Answered rows that are on disk, as ranges to remove.
    removals: Vec<(u64, u64)>,
    removal_since_us: Option<u64>,
    /// Rows of the gap, or of what becomes the gap, that were given up or are set apart, as ascending ranges.
    purged: Vec<(u64, u64)>,
    /// Of [`Order::LiveFirst`] alone; it stays when the order changes.
    live: Option<Box<Live<R>>>,
    /// The medium takes new rows.
    admitted: bool,
    /// Nothing more is written: it is about to be another node's.
    frozen: bool,
    /// Nothing could be given up for rows that have no room, and nothing has changed since.
    stuck: bool,
    up: bool,
    last_answer_us: u64,
    /// How long the consumer keeps rows before they leave.
    held_us: u64,
    last_write_us: u64,
    smoothed_ack_us: u64,
    counters: Counters,
}

impl<R: Row> Queue<R> {
    /// A queue with what the store holds of it.
    #[must_use]
    pub fn new(id: QueueId, policy: Policy, stored: Option<QueueSummary>) -> Self {
        let mut queue = Self {
            id,
            policy,
            head: VecDeque::new(),
            cursor: 0,
            answered: 0,
            head_bytes: 0,
            gap: None,
            reading: false,
            fresh: VecDeque::new(),
            next_seq: 1,
            handed_to: 0,
            submitted_to: 0,
            unawaited_to: Cell::new(0),
            tickets: VecDeque::new(),
            unwritten_bytes: 0,
            disk_bytes: 0,
            answers: BTreeMap::new(),
            removals: Vec::new(),
            removal_since_us: None,
            purged: Vec::new(),
            live: None,
            admitted: true,
            frozen: false,
            stuck: false,
            up: false,
            last_answer_us: 0,
            held_us: 0,
            last_write_us: 0,
            smoothed_ack_us: 0,
            counters: Counters::default(),
        };
        let stored = stored.filter(|s| s.rows > 0);
        if policy.order == Order::LiveFirst {
            // Nobody knows what had gone ahead of what is there.
            queue.live = Some(Box::new(Live::new(stored.map_or(0, |s| s.last + 1))));
        }
        if let Some(stored) = stored {
            queue.gap = Some(Gap { first: stored.first, last: stored.last, rows: stored.rows });
            queue.next_seq = stored.last + 1;
            queue.handed_to = stored.last;
            queue.submitted_to = stored.last;
            queue.disk_bytes = stored.bytes;
            queue.counters.recovered = stored.rows;
            queue.counters.queued = stored.rows;
            queue.counters.stored = stored.rows;
        }
        queue
    }

    /// Its name in the store.
    #[must_use]
    pub fn id(&self) -> QueueId {
        self.id
    }

    /// Other bounds and times from now on. Rows that are over a new bound go as [`Policy::full`] says.
    pub fn set_policy(&mut self, policy: Policy) {
        if policy.order == Order::LiveFirst && self.policy.order != policy.order {
            // What was set apart before, and waits, stays so.
            let live = self.live.get_or_insert_with(|| Box::new(Live::new(self.handed_to)));
            live.from = self.next_seq;
        }
        self.policy = policy;
        self.stuck = false;
    }

    /// What became of its rows.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Whether nothing waits, is in flight or is left to remove.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.head.is_empty()
            && self.gap.is_none()
            && self.fresh.is_empty()
            && self.ahead().next().is_none()
            && self.removals.is_empty()
    }

    /// Whether a deadline, a commit or a read of the backlog still concerns the queue.
    #[must_use]
    pub fn is_unsettled(&self) -> bool {
        !self.tickets.is_empty()
            || self.removal_since_us.is_some()
            || self.unsubmitted().next().is_some()
            || (self.gap.is_some() && self.up)
    }

    /// A row that is in memory and not answered.
    #[must_use]
    pub fn get(&self, seq: u64) -> Option<&R> {
        self.at(self.spot(seq)?)?.row.as_ref()
    }

    /// Rows that are in memory and not answered: in their order, but for those that are set apart.
    pub fn rows(&self) -> impl Iterator<Item = &R> {
        self.head.iter().chain(self.ahead()).chain(&self.fresh).filter_map(|s| s.row.as_ref())
    }

    /// Whether the destination was said to be reachable.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.up
    }

    /// The last row that was handed out: what the store has of later ones nobody has seen.
    #[must_use]
    pub fn handed_to(&self) -> u64 {
        self.handed_to
    }

    /// Of the rows that the store gave back at the start, later ones than this were never handed out.
    pub fn set_handed_to(&mut self, seq: u64) {
        self.handed_to = self.handed_to.min(seq);
    }

    /// Bytes that wait, in memory and on disk, and for how many microseconds the oldest row in memory has.
    #[must_use]
    pub fn backlog(&self, now: Now) -> (u64, u64) {
        let oldest = self.head.front().or(self.ahead().next()).or(self.fresh.front());
        (self.disk_bytes + self.unwritten_bytes as u64, oldest.map_or(0, |slot| now.since(slot.came_us)))
    }

    /// The smoothed time from handing out to answer.
    #[must_use]
    pub fn smoothed_ack(&self) -> Duration {
        Duration::from_micros(self.smoothed_ack_us)
    }

    /// Takes a row and tells its number.
    ///
    /// # Errors
    /// Gives row and end back when memory is full of rows that cannot be written: the publisher has to keep the message.
    pub fn push(&mut self, row: R, end: Option<End>, now: Now) -> Result<u64, (R, Option<End>)> {
        let size = row.size();
        if self.unwritten_bytes + size > self.policy.refuse_bytes {
            self.counters.refused += 1;
            return Err((row, end));
        }
        let seq = self.next_seq;
        self.next_seq += 1;
        self.counters.entered += 1;
        self.counters.queued += 1;
        self.unwritten_bytes += size;
        let came_us = now.mono_us;
        let slot = Slot {
            seq,
            row: Some(row),
            size,
            end,
            came_us,
            sent_us: None,
            disk: Disk::No,
            again: false,
            held: false,
            handed: false,
            late: false,
            apart: false,
        };
        let in_line =
            self.gap.is_some() || !self.fresh.is_empty() || self.head_bytes >= self.policy.head_bytes;
        if in_line || (self.is_live(seq) && self.has_backlog_in_head()) {
            self.fresh.push_back(slot);
        } else {
            self.head_bytes += size;
            self.head.push_back(slot);
        }
        Ok(seq)
    }

    /// Takes a row whose publisher waits for the destination itself: no commit resolves `end`.
    ///
    /// # Errors
    /// As [`Queue::push`].
    pub fn push_until_answered(
        &mut self,
        row: R,
        end: Option<End>,
        now: Now,
    ) -> Result<u64, (R, Option<End>)> {
        match self.push(row, None, now) {
            Ok(seq) => {
                self.answers.extend(end.map(|end| (seq, end)));
                Ok(seq)
            }
            Err((row, _)) => Err((row, end)),
        }
    }

    /// The row that was pushed last, and so all behind it, is not handed out before it is on disk: that of a QoS 2 publish
    /// whose packet id survives a kill, or its repetition would make a second row of something that had left.
    pub fn hold(&mut self) {
        let last = if self.fresh.is_empty() { self.head.back_mut() } else { self.fresh.back_mut() };
        if let Some(slot) = last {
            slot.held = true;
        }
    }

    /// A row was given up before it entered, since its rule says so for QoS 0 while the destination is away.
    pub fn count_dropped(&mut self) {
        self.counters.entered += 1;
        self.counters.discarded += 1;
    }

    /// The destination can be reached, or cannot.
    pub fn set_up(&mut self, up: bool, now: Now) {
        if let Some(live) = self.live.as_mut().filter(|_| up && !self.up) {
            live.from = self.next_seq;
        }
        self.up = up;
        self.stuck = false;
        self.last_answer_us = now.mono_us;
    }

    /// The consumer keeps rows for so long before they leave: no sign that the destination is slow.
    pub fn set_held(&mut self, held: Duration) {
        self.held_us = us(held);
    }

    /// Hands out up to `window` rows less those in flight: number, row, and whether it may have been handed out before.
    pub fn take(&mut self, window: usize, now: Now, mut give: impl FnMut(u64, &R, bool)) {
        self.hand_out(window, now, |seq, row, mark| give(seq, row, mark.again));
    }

    /// As [`Queue::take`], with all that is to be known.
    pub fn hand_out(&mut self, window: usize, now: Now, mut give: impl FnMut(u64, &R, Mark)) {
        self.merge();
        self.pass_backlog();
        while self.counters.in_flight < window as u64 {
            self.skip_sent();
            let Some(spot) = self.next_out() else { break };
            let ahead = !matches!(spot, Spot::Head(_));
            let Some(slot) = self.at(spot) else { break };
            let late = self.live.as_ref().is_some_and(|live| live.is_late(slot));
            let (seq, again) = (slot.seq, slot.again);
            let passes = ahead && !slot.handed && self.passes(seq);
            if self.counters.in_flight == 0 {
                // Time without anything to answer is not silence.
                self.last_answer_us = now.mono_us;
            }
            self.counters.in_flight += 1;
            self.counters.queued -= 1;
            self.counters.again += u64::from(again);
            self.counters.ahead += u64::from(passes);
            if let Some(live) = &mut self.live {
                live.handed(seq, ahead);
            }
            if !ahead {
                self.handed_to = self.handed_to.max(seq);
                self.cursor += 1;
            }
            let Some(slot) = self.at_mut(spot) else { break };
            slot.sent_us = Some(now.mono_us);
            (slot.handed, slot.late) = (true, late);
            if let Some(row) = &slot.row {
                give(seq, row, Mark { again, late, ahead });
            }
            if !ahead && self.live.is_some() {
                // What is next in fresh may be of the backlog.
                self.merge();
            }
        }
    }

    /// Moves the cursor to the first row of head that waits.
    fn skip_sent(&mut self) {
        while let Some(slot) = self.head.get(self.cursor)
            && (slot.row.is_none() || slot.sent_us.is_some())
        {
            self.handed_to = self.handed_to.max(slot.seq);
            self.cursor += 1;
        }
    }

    /// The destination's last word on row `seq`. An unknown or answered number is ignored: it was answered before a reset.
    pub fn answer(&mut self, seq: u64, outcome: Outcome, now: Now, ended: &mut Vec<(End, Outcome)>) {
        let Some(spot) = self.spot(seq) else { return };
        // Of fresh only what is set apart can have been handed out.
        if !matches!(spot, Spot::Fresh(index) if !self.fresh[index].apart) {
            self.finish(spot, outcome, now, ended);
        }
    }

    /// A row has its last word.
    fn finish(&mut self, spot: Spot, outcome: Outcome, now: Now, ended: &mut Vec<(End, Outcome)>) {
        let over = match spot {
            Spot::Head(index) => {
                let slot = &mut self.head[index];
                if slot.row.take().is_none() {
                    return;
                }
                self.answered += 1;
                self.head_bytes -= slot.size;
                Some(Over::of(slot))
            }
            Spot::Ahead(seq) => {
                self.live.as_mut().and_then(|live| live.remove(seq)).map(|mut slot| Over::of(&mut slot))
            }
            Spot::Fresh(index) => self.fresh.remove(index).map(|mut slot| Over::of(&mut slot)),
        };
        let Some(over) = over else { return };
        self.stuck = false;
        match outcome {
            Outcome::Delivered => self.counters.delivered += 1,
            Outcome::Discarded(_) | Outcome::Retry => self.counters.discarded += 1,
        }
        if let Some(sent_us) = over.sent_us {
            self.counters.in_flight -= 1;
            let took = now.since(sent_us);
            // RFC 6298's gain of 1/8.
            self.smoothed_ack_us =
                if self.smoothed_ack_us == 0 { took } else { (self.smoothed_ack_us * 7 + took) / 8 };
            self.last_answer_us = now.mono_us;
        } else {
            self.counters.queued -= 1;
        }
        if let Some(end) = over.end.or_else(|| self.answers.remove(&over.seq)) {
            ended.push((end, outcome));
        }
        if over.disk == Disk::No {
            self.unwritten_bytes -= over.size;
        } else {
            self.remove(over.seq, now);
            self.disk_bytes = self.disk_bytes.saturating_sub(over.size as u64);
            self.counters.stored -= 1;
            if over.disk == Disk::Submitted {
                self.unwritten_bytes -= over.size;
            }
        }
        while self.head.pop_front_if(|s| s.row.is_none()).is_some() {
            self.answered -= 1;
            self.cursor = self.cursor.saturating_sub(1);
        }
        if self.answered > ANSWERED && self.answered > self.head.len() / 2 {
            // Behind one that is not: all at once, so that each costs no more than a few steps.
            self.cursor = self.head.range(..self.cursor).filter(|s| s.row.is_some()).count();
            self.head.retain(|s| s.row.is_some());
            self.answered = 0;
        }
        self.merge();
    }

    /// The consumer lost its rows: all that is unanswered waits again, oldest first.
    pub fn reset(&mut self) {
        let ahead = self.live.iter_mut().flat_map(|live| live.ahead.values_mut());
        for slot in self.head.iter_mut().chain(ahead).chain(&mut self.fresh).filter(|s| s.row.is_some()) {
            if slot.sent_us.take().is_some() {
                slot.again = true;
                self.counters.in_flight -= 1;
                self.counters.queued += 1;
            }
        }
        if let Some(live) = &mut self.live {
            live.reset();
        }
        self.cursor = 0;
        self.stuck = false;
    }

    // --- the store's side ---

    /// When [`Queue::due`] may next say yes, in microseconds of the monotonic clock; none when nothing waits to be written.
    #[must_use]
    pub fn next_due_us(&self, urgent: bool, smoothed_commit: Duration) -> Option<u64> {
        if self.frozen {
            return None;
        }
        let removal = self.removal_since_us.map(|since| since + us(self.policy.removal));
        if !self.has_room() {
            // Only a removal can help, or what the policy gives up; there is no deadline for what cannot be written.
            return [removal, self.next_full_us()].into_iter().flatten().min();
        }
        [removal, self.write_due_us(urgent, smoothed_commit)].into_iter().flatten().min()
    }

    /// When rows that are not on their way to the disk are due there.
    fn write_due_us(&self, urgent: bool, smoothed_commit: Duration) -> Option<u64> {
        let first = self.unsubmitted().next();
        let unawaited = first.filter(|s| s.end.is_none()).map(|s| s.came_us + us(self.policy.unawaited));
        let awaited = self.first_awaited();
        let awaited = awaited.map(|(seq, came)| self.awaited_due_us(seq, came, urgent, smoothed_commit));
        let mut due = [unawaited, awaited].into_iter().flatten().min();
        if self.unwritten_bytes >= self.policy.unwritten_bytes && first.is_some() {
            due = Some(0);
        }
        due
    }

    /// Whether what waits must be written in this turn. `urgent`: some publisher of this shard can send nothing
    /// more until it is acknowledged.
    #[must_use]
    pub fn due(&self, now: Now, urgent: bool, smoothed_commit: Duration) -> bool {
        self.next_due_us(urgent, smoothed_commit).is_some_and(|due| due <= now.mono_us)
    }

    /// Contract 2's table: when row `seq`, which came at `came` and is waited for, is due on disk.
    fn awaited_due_us(&self, seq: u64, came: u64, urgent: bool, smoothed_commit: Duration) -> u64 {
        let p = &self.policy;
        let deadline = us(p.ack_deadline).saturating_sub(2 * us(smoothed_commit));
        // A destination that has been silent for a deadline with rows in flight is not answering, whatever it says.
        let silent_from = self.last_answer_us + us(p.ack_deadline) + self.held_us;
        if !self.up || (self.is_behind() && !self.is_live(seq)) {
            return if urgent { came } else { came.max(self.last_write_us + us(p.offline_interval)) };
        }
        let linger_min = us(p.linger_min) + self.held_us;
        let linger = linger_min.max(3 * self.smoothed_ack_us).min(deadline);
        // A consumer that keeps rows for longer than that answers none in time: what is still gathered is a larger commit, and for that
        // nobody is to stand still.
        let urgent_min = if self.held_us < deadline { linger_min } else { us(p.linger_min) };
        let due = if urgent { linger.min(urgent_min) } else { linger };
        (came + due).min(silent_from.max(came))
    }

    /// Whether the oldest row that is not on its way to disk fits there.
    fn has_room(&self) -> bool {
        let fits = |slot: &Slot<R>| self.policy.fits(slot.size, self.disk_bytes, self.counters.stored);
        self.admitted && self.unsubmitted().next().is_none_or(fits)
    }

    /// Whether there is a backlog: no answer to what comes behind it, and is not live, can come in time.
    fn is_behind(&self) -> bool {
        self.gap.is_some() || !self.fresh.is_empty()
    }

    /// Whether the medium takes new rows. While it does not, rows wait in memory, their acknowledgements are withheld, and
    /// removals are written alone.
    pub fn set_admitted(&mut self, admitted: bool) {
        self.admitted = admitted;
    }

    /// Whether rows wait that are not on their way to the disk: after [`Queue::write`], those that have no room there.
    #[must_use]
    pub fn is_withholding(&self) -> bool {
        self.unsubmitted().next().is_some()
    }

    /// Slots that have not been submitted or answered, oldest first.
    fn unsubmitted(&self) -> impl Iterator<Item = &Slot<R>> {
        self.after(self.submitted_to).filter(|s| s.row.is_some())
    }

    /// The oldest row that is not submitted and that somebody waits for: its number, and when it came. Asked several times a turn, perhaps
    /// behind thousands of rows that nobody waits for: ends only ever go, so what was passed once is not looked at again.
    fn first_awaited(&self) -> Option<(u64, u64)> {
        for slot in self.after(self.submitted_to.max(self.unawaited_to.get())) {
            if slot.end.is_some() {
                return Some((slot.seq, slot.came_us));
            }
            self.unawaited_to.set(slot.seq);
        }
        None
    }

    /// Slots in memory with numbers above `seq`.
    fn after(&self, seq: u64) -> impl Iterator<Item = &Slot<R>> {
        let head = self.head.partition_point(|s| s.seq <= seq);
        let fresh = self.fresh.partition_point(|s| s.seq <= seq);
        self.head.range(head..).chain(self.fresh.range(fresh..))
    }

    /// Whether a commit takes rows along: when one is due, or must not leave before it is on disk, or when they will be written whatever
    /// happens. Of all others the destination may still answer, and then they need not be written.
    #[must_use]
    pub fn takes_along(&self, now: Now, urgent: bool, smoothed_commit: Duration) -> bool {
        if self.frozen {
            return false;
        }
        let live = self.unsubmitted().next().is_some_and(|slot| self.is_live(slot.seq));
        !self.up
            || (self.is_behind() && !live)
            || self.write_due_us(urgent, smoothed_commit).is_some_and(|due_us| due_us <= now.mono_us)
            || self.unsubmitted().any(|slot| slot.held)
    }

    /// Appends removals of rows that are answered, and no others.
    pub fn write_removals(&mut self, batch: &mut Vec<Op>) -> bool {
        self.removal_since_us = None;
        let before = batch.len();
        batch.extend(self.removals.drain(..).map(|(first, last)| Op::Remove { queue: self.id, first, last }));
        batch.len() > before
    }

    /// Appends all that waits to `batch`: rows that are not on disk and removals of rows that are answered.
    /// Returns whether it added anything; [`Queue::submitted`] must follow.
    pub fn write(&mut self, now: Now, batch: &mut Vec<Op>) -> bool {
        if self.frozen {
            return false;
        }
        let before = batch.len();
        self.write_removals(batch);
        let from = self.submitted_to;
        let start = self.head.partition_point(|s| s.seq <= from);
        let fresh = self.fresh.partition_point(|s| s.seq <= from);
        for slot in self.head.range_mut(start..).chain(self.fresh.range_mut(fresh..)) {
            if let Some(row) = &slot.row {
                let fits = self.policy.fits(slot.size, self.disk_bytes, self.counters.stored);
                if !self.admitted || !fits {
                    break; // Full: this row's acknowledgement, and all later ones', are withheld.
                }
                self.disk_bytes += slot.size as u64;
                self.counters.stored += 1;
                self.counters.written += 1;
                slot.disk = Disk::Submitted;
                let (head, body) = row.encode();
                batch.push(Op::Append { queue: self.id, seq: slot.seq, head, body });
            }
            self.submitted_to = slot.seq;
        }
        let wrote = batch.len() > before;
        if wrote {
            self.last_write_us = now.mono_us;
        }
        wrote
    }

    /// The batch that holds the last `write` went to the store under `ticket`.
    pub fn submitted(&mut self, ticket: Ticket) {
        if self.tickets.back().is_none_or(|&(_, to)| to < self.submitted_to) {
            self.tickets.push_back((ticket, self.submitted_to));
        }
    }

    /// Everything up to `ticket` is on stable storage.
    pub fn committed(&mut self, ticket: Ticket, ended: &mut Vec<(End, Outcome)>) {
        let mut to = None;
        while let Some(&(t, last)) = self.tickets.front() {
            if t > ticket {
                break;
            }
            to = Some(last);
            self.tickets.pop_front();
        }
        let Some(to) = to else { return };
        for slot in self.head.iter_mut().take_while(|s| s.seq <= to) {
            if slot.disk == Disk::Submitted && slot.row.is_some() {
                slot.disk = Disk::Yes;
                self.unwritten_bytes -= slot.size;
                if let Some(end) = slot.end.take() {
                    ended.push((end, Outcome::Delivered));
                }
            }
        }
        while self.fresh.front().is_some_and(|s| s.seq <= to) {
            let Some(mut slot) = self.fresh.pop_front() else { break };
            self.unwritten_bytes -= slot.size;
            if let Some(end) = slot.end.take() {
                ended.push((end, Outcome::Delivered));
            }
            let Some(slot) = self.keep_ahead(slot) else { continue };
            let gap = self.gap.get_or_insert(Gap { first: slot.seq, last: slot.seq, rows: 0 });
            gap.last = slot.seq;
            gap.rows += 1;
        }
    }

    /// The number from which rows should be read back now, if any. The answer goes to [`Queue::loaded`].
    pub fn want_read(&mut self) -> Option<u64> {
        let gap = self.gap.filter(|_| !self.reading && self.head_bytes < self.policy.head_bytes / 2)?;
        self.reading = true;
        Some(gap.first)
    }

    /// Whether a read is under way that has not been answered.
    #[must_use]
    pub fn is_reading(&self) -> bool {
        self.reading
    }

    /// Rows read back, at least one unless the disk holds none from the asked number on.
    pub fn loaded(&mut self, rows: Vec<StoredRow>, now: Now) {
        self.reading = false;
        self.stuck = false;
        let Some(mut gap) = self.gap else { return };
        let mut seen = 0;
        for StoredRow { seq, head, body } in rows {
            if seq < gap.first || seq > gap.last {
                continue;
            }
            seen += 1;
            gap.first = seq + 1;
            if self.is_purged(seq) {
                continue;
            }
            gap.rows = gap.rows.saturating_sub(1);
            match R::decode(&head, body) {
                Ok(row) => {
                    let size = row.size();
                    self.head_bytes += size;
                    self.head.push_back(Slot {
                        seq,
                        row: Some(row),
                        size,
                        end: None,
                        came_us: now.mono_us,
                        sent_us: None,
                        disk: Disk::Yes,
                        again: seq <= self.handed_to,
                        held: false,
                        handed: false,
                        late: false,
                        apart: false,
                    });
                }
                Err(_) => {
                    // Its end, if one waits for the answer, is dropped: retry, since nobody has the message.
                    self.answers.remove(&seq);
                    self.counters.discarded += 1;
                    self.counters.queued -= 1;
                    self.counters.stored = self.counters.stored.saturating_sub(1);
                    self.remove(seq, now);
                }
            }
        }
        if seen == 0 || gap.first > gap.last {
            // Rows that the summary counted and the disk does not have: nothing of them is left to send.
            self.counters.queued = self.counters.queued.saturating_sub(gap.rows);
            self.counters.stored = self.counters.stored.saturating_sub(gap.rows);
            self.counters.recovered = self.counters.recovered.saturating_sub(gap.rows);
            self.gap = None;
        } else {
            self.gap = Some(gap);
        }
        self.forget_purged();
        self.merge();
    }

    /// The queue is about to be another node's: all that waits is appended to `batch`, and what comes from then on stays in memory, whatever
    /// is due. What was written is its next owner's once it is committed; what was not is to be sent there ([`Queue::give_away`]).
    /// [`Queue::submitted`] must follow.
    pub fn freeze(&mut self, now: Now, batch: &mut Vec<Op>) {
        self.write(now, batch);
        self.frozen = true;
    }

    /// Whether it is about to be another node's.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// It stays here after all.
    pub fn thaw(&mut self) {
        self.frozen = false;
    }

    /// Ends the queue, which is another node's now. Returns the rows that were never written, in their order, with whoever waits for them. Of those whose
    /// commit is not known whoever waits has to try again.
    pub fn give_away(mut self, ended: &mut Vec<(End, Outcome)>) -> Vec<(R, Option<End>)> {
        let mut rows = Vec::new();
        for slot in self.head.iter_mut().chain(&mut self.fresh) {
            let Some(row) = slot.row.take() else { continue };
            let end = slot.end.take().or_else(|| self.answers.remove(&slot.seq));
            if slot.disk == Disk::No {
                rows.push((row, end));
            } else {
                ended.extend(end.map(|end| (end, Outcome::Retry)));
            }
        }
        ended.extend(self.answers.into_values().map(|end| (end, Outcome::Retry)));
        rows
    }

    /// Ends all rows: the queue's owner is gone. Rows on disk are the caller's to remove.
    pub fn close(mut self, reason: Reason, ended: &mut Vec<(End, Outcome)>) {
        for slot in self.head.iter_mut().chain(&mut self.fresh) {
            if let Some(end) = slot.end.take() {
                ended.push((end, Outcome::Discarded(reason)));
            }
        }
        ended.extend(self.answers.into_values().map(|end| (end, Outcome::Discarded(reason))));
    }

    fn remove(&mut self, seq: u64, now: Now) {
        match self.removals.last_mut() {
            Some((_, last)) if *last + 1 == seq => *last = seq,
            _ => self.removals.push((seq, seq)),
        }
        self.removal_since_us.get_or_insert(now.mono_us);
    }

    /// Without a gap, what is fresh follows head directly.
    fn merge(&mut self) {
        if self.gap.is_some() {
            return;
        }
        if self.live.is_some() {
            self.skip_sent();
        }
        while self.head_bytes < self.policy.head_bytes {
            let Some(first) = self.fresh.front() else { break };
            if self.is_live(first.seq) && self.has_backlog_in_head() {
                break; // There it would wait for its turn.
            }
            let Some(slot) = self.fresh.pop_front() else { break };
            self.head_bytes += slot.size;
            self.head.push_back(slot);
        }
    }
}

fn us(duration: Duration) -> u64 {
    duration.as_micros() as u64
}

#[cfg(test)]
mod tests;
