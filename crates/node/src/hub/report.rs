//! Tells the broker above what limits gave up: `{"edge":..., "since_ms":..., "limit":..., "age":...}` to `report_topic`.
//!
//! # Constraints
//! Messages that were acknowledged are gone by somebody's choice; whoever looks at the data has to learn of it, also when the power
//! fails between the loss and the next connection.
//!
//! # Data
//! What the outboxes of the uplink count, less what was told. The rest is in the store, under [`rule`], within [`WRITE_US`].
//!
//! # Operation
//! When the uplink is there, and not more often than every [`EVERY_US`], a row of the uplink's own outbox is made: it is delivered as
//! surely as any other, behind those that it tells of. What it says is told when it has been answered: over a kill in between it is
//! said twice.

use super::outbox::Outbox;
use bytes::Bytes;
use ferrule_outbox::Reason;
use ferrule_rules::rule_id;
use ferrule_store::record::Entry;
use ferrule_store::{Identity, Now, Op};
use serde_json::{Value, json};
use std::sync::Arc;

/// Of a gateway that gives up all the time: what a person looks at.
const EVERY_US: u64 = 60_000_000;

/// What changed is in the store by then, as rows are that nobody waits for.
const WRITE_US: u64 = 1_000_000;

/// What is told of.
const REASONS: [Reason; 2] = [Reason::Limit, Reason::Age];

type Counts = [u64; REASONS.len()];

/// See the module's header.
pub(super) struct Report {
    /// None: nothing is told.
    topic: Option<Arc<str>>,
    /// Of earlier process lives, not told.
    before: Counts,
    told: Counts,
    /// Since when what is not told has been given up.
    since_ms: Option<i64>,
    /// The row on its way, and what it tells.
    sent: Option<(u64, Counts)>,
    next_us: u64,
    /// As the store has it.
    stored: Counts,
    /// Since when the store has had another.
    changed_us: Option<u64>,
}

/// Whose memory it is in the store. Names of rules have no `$`.
pub(super) fn rule() -> u64 {
    rule_id("$given_up")
}

impl Report {
    /// `remembered`: what is in the store.
    pub(super) fn new(topic: Option<Arc<str>>, remembered: Option<&[u8]>) -> Self {
        let value: Value = remembered.and_then(|text| serde_json::from_slice(text).ok()).unwrap_or_default();
        let before = REASONS.map(|reason| value[reason.as_str()].as_u64().unwrap_or(0));
        Self {
            topic,
            before,
            told: Counts::default(),
            since_ms: value["since_ms"].as_i64(),
            sent: None,
            next_us: 0,
            stored: before,
            changed_us: None,
        }
    }

    /// From now on it is told there, or not at all.
    pub(super) fn set_topic(&mut self, topic: Option<Arc<str>>) {
        self.topic = topic;
    }

    fn untold(&self, outboxes: &[Outbox]) -> Counts {
        let mut counts = self.before;
        for (at, reason) in REASONS.iter().enumerate() {
            let own = outboxes.iter().filter(|o| o.is_uplink()).flat_map(|o| &o.discarded);
            counts[at] += own.filter(|(r, _)| r == reason).map(|(_, rows)| rows).sum::<u64>();
            counts[at] = counts[at].saturating_sub(self.told[at]);
        }
        counts
    }

    /// A row to make, if there is something to tell. `outboxes`: all; `identity`: the row's, when it is made.
    pub(super) fn row(
        &mut self,
        outboxes: &[Outbox],
        identity: impl FnOnce() -> Identity,
        now: Now,
    ) -> Option<(Entry, Counts)> {
        if self.topic.is_none() || self.next_us > now.mono_us {
            return None;
        }
        let uplink = outboxes.iter().find(|o| o.is_uplink() && o.class == 0)?;
        self.see(uplink.queue.first(), now);
        if self.sent.is_some() {
            return None;
        }
        let counts = self.untold(outboxes);
        if counts == Counts::default() {
            return None;
        }
        let since_ms = *self.since_ms.get_or_insert(now.wall_ms);
        let topic = self.topic.as_ref().filter(|_| uplink.queue.is_up())?;
        self.next_us = now.mono_us + EVERY_US;
        let identity = identity();
        let mut told = json!({ "edge": identity.origin, "since_ms": since_ms, "until_ms": now.wall_ms });
        for (reason, rows) in REASONS.iter().zip(counts) {
            told[reason.as_str()] = rows.into();
        }
        let entry = Entry {
            identity,
            rule: rule(),
            row: 0,
            target: Arc::clone(topic),
            key: "".into(),
            passthrough: false,
            qos: 1,
            retain: false,
            client_id: "ferrule".into(),
            username: None,
            topic: Arc::clone(topic),
            edge: None,
            received: now.stamp(),
            hops: 0,
            properties: Bytes::new(),
            payload: told.to_string().into(),
        };
        Some((entry, counts))
    }

    /// It is in the outbox, under this number.
    pub(super) fn sent(&mut self, seq: u64, counts: Counts) {
        self.sent = Some((seq, counts));
    }

    /// `first`: the lowest number that is not answered. The row on its way has been, when it is below.
    fn see(&mut self, first: Option<u64>, now: Now) {
        let Some((_, counts)) = self.sent.take_if(|(sent, _)| first.is_none_or(|first| first > *sent)) else {
            return;
        };
        for (told, more) in self.told.iter_mut().zip(counts) {
            *told += more;
        }
        self.since_ms = None;
        self.changed(now);
    }

    /// Rows were given up.
    pub(super) fn changed(&mut self, now: Now) {
        self.changed_us.get_or_insert(now.mono_us);
    }

    /// When it has to be written, if nothing else is.
    pub(super) fn next_due_us(&self) -> Option<u64> {
        self.changed_us.map(|since_us| since_us + WRITE_US)
    }

    /// What has changed goes to the store.
    pub(super) fn write(&mut self, outboxes: &[Outbox], now: Now, batch: &mut Vec<Op>) {
        self.changed_us = None;
        let untold = self.untold(outboxes);
        if untold == self.stored {
            return;
        }
        self.stored = untold;
        let (rule, key) = (rule(), Bytes::from_static(b"cloud"));
        if untold == Counts::default() {
            batch.push(Op::StateDelete { rule, key });
            return;
        }
        let since_ms = *self.since_ms.get_or_insert(now.wall_ms);
        let mut value = json!({ "since_ms": since_ms });
        for (reason, rows) in REASONS.iter().zip(untold) {
            value[reason.as_str()] = rows.into();
        }
        batch.push(Op::StatePut { rule, key, value: value.to_string().into() });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// What was not told before a kill is told after it.
    #[test]
    fn what_was_given_up_is_known_after_a_restart() {
        let mut report = Report::new(Some("t".into()), Some(br#"{"since_ms":7,"limit":3,"age":4}"#));
        assert_eq!((report.untold(&[]), report.since_ms), ([3, 4], Some(7)));
        let mut batch = Vec::new();
        report.write(&[], Now::default(), &mut batch);
        assert_eq!(batch.len(), 0, "the store has it");
        report.sent(9, [3, 4]);
        report.see(Some(9), Now::default());
        assert_eq!(report.untold(&[]), [3, 4], "it is still on its way");
        report.see(Some(10), Now::default());
        assert_eq!(report.untold(&[]), [0, 0]);
        report.write(&[], Now::default(), &mut batch);
        assert!(matches!(batch[..], [Op::StateDelete { .. }]));
        // What is in the store may be damaged.
        assert_eq!(Report::new(None, Some(b"\xff")).untold(&[]), [0, 0]);
    }
}
