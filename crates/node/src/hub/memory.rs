//! What rules remember, on its way to the store (docs/contracts.md, 2 and 5).
//!
//! With `durability = 'exact'` a change is in the turn's batch, and the publisher's acknowledgement waits for that commit. With `'checkpoint'`,
//! and where nobody waits (QoS 0, `ack = 'none'`), it is written within [`CHECKPOINT_US`], or with whatever else is written before, and nobody waits: a power cut loses at most that much.
//! Of a key only the last value of a turn is written. While the store takes nothing new, changes stay in the tables, whose bounds hold.

use ferrule_outbox::{End, Outcome};
use ferrule_store::{Now, Op, Ticket};

/// The longest that a change waits that nobody waits for.
const CHECKPOINT_US: u64 = 10_000_000;

/// The `rule` of the table that all rules share, in the store. No rule has this id: it is a hash of its name.
pub(super) const SHARED: u64 = 0;

/// Changes, and who waits for them.
#[derive(Default)]
pub(super) struct Memory {
    /// Numbers of rules whose table changed.
    pub(super) changed: Vec<u32>,
    /// Of rules that are gone.
    pub(super) gone: Vec<Op>,
    /// Somebody waits.
    due: bool,
    since_us: Option<u64>,
    waiting: Vec<End>,
    written: Vec<End>,
    submitted: Vec<(Ticket, End)>,
    refused: bool,
}

impl Memory {
    /// A table changed. `end`: who waits for it, if somebody does; a QoS 0 message that changes one must not cost a commit.
    pub(super) fn note(&mut self, end: Option<End>, now: Now) {
        match end {
            Some(end) => {
                self.due = true;
                self.waiting.push(end);
            }
            None => drop(self.since_us.get_or_insert(now.mono_us)),
        }
    }

    /// All is to be written in this turn, or as soon as the store takes it.
    pub(super) fn hurry(&mut self) {
        self.due = true;
    }

    /// Some of it is lost, nobody knows whose: all that wait are to try again.
    pub(super) fn give_up(&mut self, ended: &mut Vec<(End, Outcome)>) {
        let waiting = self.waiting.drain(..).chain(self.written.drain(..));
        let submitted = self.submitted.drain(..).map(|(_, end)| end);
        ended.extend(waiting.chain(submitted).map(|end| (end, Outcome::Retry)));
    }

    pub(super) fn set_admitted(&mut self, admitted: bool) {
        self.refused = !admitted;
    }

    pub(super) fn is_due(&self, now: Now) -> bool {
        let is_old = self.since_us.is_some_and(|since| now.mono_us.saturating_sub(since) >= CHECKPOINT_US);
        !self.refused && (self.due || is_old || !self.gone.is_empty())
    }

    pub(super) fn next_due_us(&self) -> Option<u64> {
        if self.refused {
            return None;
        }
        if self.due || !self.gone.is_empty() {
            return Some(0);
        }
        self.since_us.map(|since| since + CHECKPOINT_US)
    }

    /// Whether changes may be written now; they are, then.
    pub(super) fn write(&mut self, batch: &mut Vec<Op>) -> bool {
        if self.refused {
            return false;
        }
        batch.append(&mut self.gone);
        self.written.append(&mut self.waiting);
        self.due = false;
        self.since_us = None;
        true
    }

    pub(super) fn submitted(&mut self, ticket: Ticket) {
        self.submitted.extend(self.written.drain(..).map(|end| (ticket, end)));
    }

    pub(super) fn committed(&mut self, ticket: Ticket, ended: &mut Vec<(End, Outcome)>) {
        let done = self.submitted.iter().take_while(|(of, _)| *of <= ticket).count();
        ended.extend(self.submitted.drain(..done).map(|(_, end)| (end, Outcome::Delivered)));
    }
}
