//! The net effect of ops that are not in the tables yet: those of a journal, or of a commit.
//!
//! A row that was appended and removed between two of its uses is in neither list and never reaches a table: for a
//! queue that drains, nearly every row. What is left is applied in this order: sessions deleted, rows removed,
//! rows appended, everything put or deleted by name. Bounded by what it was made of: each entry here has an op there.

use bytes::Bytes;
use ferrule_store::{Body, Op, QueueId, SessionId, Side};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A row of a queue: its number, its head, its body.
pub type Row = (u64, Bytes, Body);

/// Ops folded onto each other. `None` as a value: deleted.
#[derive(Debug, Default)]
pub struct Net {
    /// Sessions that go, with all that is theirs: before anything else.
    pub sessions_deleted: BTreeSet<SessionId>,
    /// Rows that go, by queue.
    pub removed: BTreeMap<QueueId, Ranges>,
    /// Rows that come, by queue; of some there are none any more.
    pub appended: BTreeMap<QueueId, Rows>,
    /// Sessions that are put.
    pub sessions: BTreeMap<SessionId, Bytes>,
    /// By session and filter.
    pub subscriptions: BTreeMap<(SessionId, Box<str>), Option<Bytes>>,
    /// By session, side and packet id.
    pub inflight: BTreeMap<(SessionId, Side, u16), Option<Bytes>>,
    /// By topic: stamp and record, which is empty where it is cleared.
    pub retained: BTreeMap<Box<str>, (u64, Bytes)>,
    /// By rule and key.
    pub state: BTreeMap<(u64, Bytes), Option<Bytes>>,
    /// By name.
    pub meta: BTreeMap<Box<str>, Bytes>,
    /// At most so many rows of the tables are removed (numbers may have gaps, and open ends count as all).
    removed_max: u64,
    /// At which `removed_max` to count next.
    count_at: u64,
}

/// A fold that removes more rows than about this many holds up commits; fold before.
pub const REMOVED_ROWS_MAX: u64 = 8192;

impl Net {
    /// Takes in one more op.
    pub fn apply(&mut self, op: Op) {
        match op {
            Op::Append { queue, seq, head, body } => {
                self.appended.entry(queue).or_default().insert((seq, head, body));
            }
            Op::Remove { queue, first, last } if first <= last => self.remove(queue, first, last),
            Op::Remove { .. } => {}
            Op::SessionPut { session, record } => {
                self.sessions.insert(session, record);
            }
            Op::SessionDelete { session } => {
                self.sessions.remove(&session);
                let filters = (session, "".into())..(SessionId(session.0 + 1), "".into());
                self.subscriptions.extract_if(filters, |_, _| true).for_each(drop);
                let ids = (session, Side::Inbound, 0)..=(session, Side::Outbound, u16::MAX);
                self.inflight.extract_if(ids, |_, _| true).for_each(drop);
                self.remove(QueueId::session(session), 0, u64::MAX);
                self.sessions_deleted.insert(session);
            }
            Op::SubscriptionPut { session, filter, record } => {
                self.subscriptions.insert((session, filter), Some(record));
            }
            Op::SubscriptionDelete { session, filter } => {
                self.subscriptions.insert((session, filter), None);
            }
            Op::InflightPut { session, side, packet_id, record } => {
                self.inflight.insert((session, side, packet_id), Some(record));
            }
            Op::InflightDelete { session, side, packet_id } => {
                self.inflight.insert((session, side, packet_id), None);
            }
            Op::RetainPut { topic, stamp, record } => {
                self.retained.insert(topic, (stamp, record));
            }
            Op::RetainDelete { topic, stamp } => {
                self.retained.insert(topic, (stamp, Bytes::new()));
            }
            Op::StatePut { rule, key, value } => {
                self.state.insert((rule, key), Some(value));
            }
            Op::StateDelete { rule, key } => {
                self.state.insert((rule, key), None);
            }
            Op::MetaPut { key, value } => {
                self.meta.insert(key, value);
            }
        }
    }

    fn remove(&mut self, queue: QueueId, first: u64, last: u64) {
        let cancelled = self.appended.get_mut(&queue).map_or(0, |rows| rows.remove(first, last)) as u64;
        let added = self.removed.entry(queue).or_default().insert(first, last);
        self.removed_max = self.removed_max.saturating_add(added.saturating_sub(cancelled));
    }

    /// Whether it is time to count how many rows of the tables are really removed. Since the bound may be far too
    /// high, it must double before the next time.
    pub fn is_count_due(&mut self) -> bool {
        let due = self.removed_max > self.count_at.max(REMOVED_ROWS_MAX);
        if due {
            self.count_at = self.removed_max.saturating_mul(2);
        }
        due
    }
}

/// Rows that were appended to one queue, by their numbers. They come in order, or nearly, and leave from the front.
#[derive(Debug, Default)]
pub struct Rows(VecDeque<Row>);

impl Rows {
    /// Does nothing when the row is there.
    fn insert(&mut self, row: Row) {
        if self.0.back().is_none_or(|last| last.0 < row.0) {
            return self.0.push_back(row);
        }
        if let Err(at) = self.0.binary_search_by_key(&row.0, |row| row.0) {
            self.0.insert(at, row);
        }
    }

    /// How many rows of these numbers there were.
    fn remove(&mut self, first: u64, last: u64) -> usize {
        let from = self.0.partition_point(|row| row.0 < first);
        let to = self.0.partition_point(|row| row.0 <= last);
        self.0.drain(from..to.max(from)).count()
    }

    /// Ascending.
    pub fn iter(&self) -> impl Iterator<Item = &Row> + Clone {
        self.0.iter()
    }

    /// Those with numbers `first..=last`, ascending.
    pub fn range(&self, first: u64, last: u64) -> impl Iterator<Item = &Row> {
        let from = self.0.partition_point(|row| row.0 < first);
        self.0.range(from..).take_while(move |row| row.0 <= last)
    }
}

/// Disjoint, non-adjacent ranges of numbers, both ends included: first to last.
#[derive(Debug, Default)]
pub struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// Adds a range (`first <= last`) and joins it with those that it touches. Returns at most how many numbers are
    /// new.
    pub fn insert(&mut self, mut first: u64, mut last: u64) -> u64 {
        let mut had = 0_u64;
        if let Some((&f, &l)) = self.0.range(..=first).next_back()
            && l >= first.saturating_sub(1)
        {
            (first, last) = (f, l.max(last));
        }
        let touched = first..=last.saturating_add(1);
        for (f, l) in self.0.extract_if(touched, |_, _| true) {
            last = last.max(l);
            had = had.saturating_add((l - f).saturating_add(1));
        }
        self.0.insert(first, last);
        (last - first).saturating_add(1).saturating_sub(had)
    }

    /// The end of the range that holds `n`.
    pub fn end_of(&self, n: u64) -> Option<u64> {
        self.0.range(..=n).next_back().map(|(_, &last)| last).filter(|&last| last >= n)
    }

    /// Ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.0.iter().map(|(&first, &last)| (first, last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_came_and_went_leaves_only_the_removal() {
        let mut net = Net::default();
        let queue = QueueId(1);
        for seq in 1..=100 {
            net.apply(Op::Append { queue, seq, head: Bytes::new(), body: Body::Inline(Bytes::new()) });
            net.apply(Op::Remove { queue, first: seq, last: seq });
        }
        assert!(net.appended[&queue].iter().next().is_none());
        assert_eq!(net.removed[&queue].iter().collect::<Vec<_>>(), [(1, 100)]);
    }

    proptest! {
        #[test]
        fn rows_are_a_map(steps in proptest::collection::vec((any::<bool>(), 0_u64..40, 0_u64..9), 0..60)) {
            let mut map = BTreeMap::new();
            let mut rows = Rows::default();
            for (n, (append, seq, more)) in steps.into_iter().enumerate() {
                let head = Bytes::from(n.to_string());
                if append {
                    rows.insert((seq, head.clone(), Body::Inline(Bytes::new())));
                    map.entry(seq).or_insert(head);
                } else {
                    prop_assert_eq!(rows.remove(seq, seq + more), map.extract_if(seq..=seq + more, |_, _| true).count());
                }
                let all: Vec<_> = rows.iter().map(|(seq, head, _)| (*seq, head.clone())).collect();
                prop_assert_eq!(all, map.clone().into_iter().collect::<Vec<_>>());
                let some: Vec<_> = rows.range(seq, seq + more).map(|row| row.0).collect();
                prop_assert_eq!(some, map.range(seq..=seq + more).map(|(&seq, _)| seq).collect::<Vec<_>>());
            }
        }

        #[test]
        fn ranges_are_a_set(ranges in proptest::collection::vec((0_u64..60, 0_u64..8), 0..30)) {
            let mut set = BTreeSet::new();
            let mut joined = Ranges::default();
            for (first, length) in ranges {
                let had = set.len() as u64;
                set.extend(first..=first + length);
                prop_assert_eq!(joined.insert(first, first + length), set.len() as u64 - had);
            }
            let parts: Vec<_> = joined.iter().collect();
            prop_assert!(parts.windows(2).all(|w| w[0].1 + 1 < w[1].0));
            prop_assert_eq!(parts.iter().flat_map(|&(f, l)| f..=l).collect::<BTreeSet<_>>(), set.clone());
            for n in 0..70 {
                prop_assert_eq!(joined.end_of(n).is_some(), set.contains(&n));
            }
        }
    }

    #[test]
    fn ranges_reach_both_ends() {
        let mut ranges = Ranges::default();
        ranges.insert(5, u64::MAX);
        ranges.insert(0, 4);
        ranges.insert(u64::MAX, u64::MAX);
        assert_eq!(ranges.iter().collect::<Vec<_>>(), [(0, u64::MAX)]);
    }
}
