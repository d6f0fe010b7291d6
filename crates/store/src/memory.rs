//! The reference model: a store that keeps everything in maps and commits when told to.

use crate::{
    Body, BodyId, Joint, JointPart, Op, QueueId, QueueSummary, Restored, SessionId, Side, Store, StoreEvent,
    StoredRow, Ticket,
};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// What the ops mean, in the plainest form. Tests compare writers with it and drive shards with it.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    state: State,
    waiting: VecDeque<(Ticket, Vec<Op>, Vec<JointPart>)>,
    next: u64,
    events: Vec<StoreEvent>,
}

#[derive(Debug, Clone, Default)]
struct State {
    rows: BTreeMap<(QueueId, u64), (Bytes, Bytes, Option<BodyId>)>,
    bodies: BTreeMap<BodyId, u64>,
    sessions: BTreeMap<SessionId, Bytes>,
    subscriptions: BTreeMap<(SessionId, Box<str>), Bytes>,
    inflight: BTreeMap<(SessionId, Side, u16), Bytes>,
    retained: BTreeMap<Box<str>, Bytes>,
    state: BTreeMap<(u64, Bytes), Bytes>,
    meta: BTreeMap<Box<str>, Bytes>,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Commits what waits, and tells it: all up to the last batch behind which no joint commit is open.
    pub fn commit(&mut self) {
        let mut open = BTreeSet::<Joint>::new();
        let mut whole = 0;
        for (index, (.., parts)) in self.waiting.iter().enumerate() {
            for part in parts {
                match part {
                    JointPart::Opens(joint) => open.insert(*joint),
                    JointPart::Closes(joint) => open.remove(joint),
                };
            }
            if open.is_empty() {
                whole = index + 1;
            }
        }
        let mut last = None;
        for (ticket, ops, _) in self.waiting.drain(..whole) {
            last = Some(ticket);
            ops.into_iter().for_each(|op| self.state.apply(op));
        }
        self.events.extend(last.map(|ticket| StoreEvent::Committed { ticket, took: Duration::ZERO }));
    }

    /// What the shard has to be told.
    pub fn take_events(&mut self) -> Vec<StoreEvent> {
        std::mem::take(&mut self.events)
    }

    /// Power cut: what was not committed is gone. Returns what a start would find.
    pub fn crash(&mut self) -> Restored {
        self.waiting.clear();
        self.events.clear();
        self.restored()
    }

    /// How many distinct shared bodies are kept.
    #[must_use]
    pub fn shared_bodies(&self) -> usize {
        self.state.bodies.len()
    }

    /// Committed rows of a queue.
    #[must_use]
    pub fn rows(&self, queue: QueueId) -> Vec<StoredRow> {
        self.state.rows(queue, 0, usize::MAX, usize::MAX)
    }

    /// What a start would find.
    #[must_use]
    pub fn restored(&self) -> Restored {
        let s = &self.state;
        let mut queues: Vec<QueueSummary> = Vec::new();
        for (&(queue, seq), (head, body, _)) in &s.rows {
            let bytes = (head.len() + body.len()) as u64;
            match queues.last_mut() {
                Some(q) if q.queue == queue => (q.last, q.rows, q.bytes) = (seq, q.rows + 1, q.bytes + bytes),
                _ => queues.push(QueueSummary { queue, first: seq, last: seq, rows: 1, bytes }),
            }
        }
        Restored {
            sessions: s.sessions.iter().map(|(&k, v)| (k, v.clone())).collect(),
            subscriptions: s.subscriptions.iter().map(|((k, f), v)| (*k, f.clone(), v.clone())).collect(),
            inflight: s.inflight.iter().map(|(&(k, side, id), v)| (k, side, id, v.clone())).collect(),
            retained: s.retained.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
            queues,
            state: s.state.iter().map(|((rule, k), v)| (*rule, k.clone(), v.clone())).collect(),
            meta: s.meta.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
            last_body: s.bodies.keys().last().map_or(0, |b| b.0),
        }
    }
}

impl Store for MemoryStore {
    fn submit(&mut self, ops: Vec<Op>) -> Ticket {
        self.submit_joint(ops, Vec::new())
    }

    fn submit_joint(&mut self, ops: Vec<Op>, parts: Vec<JointPart>) -> Ticket {
        self.next += 1;
        self.waiting.push_back((Ticket(self.next), ops, parts));
        Ticket(self.next)
    }

    fn read(&mut self, queue: QueueId, from: u64, max_rows: u32, max_bytes: u32) {
        let rows = self.state.rows(queue, from, max_rows as usize, max_bytes as usize);
        self.events.push(StoreEvent::Rows { queue, rows });
    }

    fn pending_bytes(&self) -> usize {
        self.waiting.iter().flat_map(|(_, ops, _)| ops).map(Op::size).sum()
    }
}

impl State {
    fn rows(&self, queue: QueueId, from: u64, max_rows: usize, max_bytes: usize) -> Vec<StoredRow> {
        let mut bytes = 0;
        self.rows
            .range((queue, from)..=(queue, u64::MAX))
            .take(max_rows.max(1))
            .take_while(|(_, (head, body, _))| {
                // The first row comes whatever it weighs, or a reader with a small limit would never go on.
                let room = bytes < max_bytes.max(1);
                bytes += head.len() + body.len();
                room
            })
            .map(|(&(_, seq), (head, body, _))| StoredRow { seq, head: head.clone(), body: body.clone() })
            .collect()
    }

    fn remove_rows(&mut self, queue: QueueId, first: u64, last: u64) {
        let gone: Vec<_> = self.rows.range((queue, first)..=(queue, last)).map(|(&k, _)| k).collect();
        for key in gone {
            let Some((_, _, Some(body))) = self.rows.remove(&key) else { continue };
            if let Some(refs) = self.bodies.get_mut(&body) {
                *refs -= 1;
                if *refs == 0 {
                    self.bodies.remove(&body);
                }
            }
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Append { queue, seq, head, body } => {
                if self.rows.contains_key(&(queue, seq)) {
                    return;
                }
                let (bytes, shared) = match body {
                    Body::Inline(bytes) => (bytes, None),
                    Body::Shared(id, bytes) => {
                        *self.bodies.entry(id).or_insert(0) += 1;
                        (bytes, Some(id))
                    }
                };
                self.rows.insert((queue, seq), (head, bytes, shared));
            }
            Op::Remove { queue, first, last } if first <= last => self.remove_rows(queue, first, last),
            Op::Remove { .. } => {}
            Op::SessionPut { session, record } => drop(self.sessions.insert(session, record)),
            Op::SessionDelete { session } => {
                self.sessions.remove(&session);
                self.subscriptions.retain(|(s, _), _| *s != session);
                self.inflight.retain(|(s, _, _), _| *s != session);
                self.remove_rows(QueueId::session(session), 0, u64::MAX);
            }
            Op::SubscriptionPut { session, filter, record } => {
                self.subscriptions.insert((session, filter), record);
            }
            Op::SubscriptionDelete { session, filter } => drop(self.subscriptions.remove(&(session, filter))),
            Op::InflightPut { session, side, packet_id, record } => {
                self.inflight.insert((session, side, packet_id), record);
            }
            Op::InflightDelete { session, side, packet_id } => {
                self.inflight.remove(&(session, side, packet_id));
            }
            Op::RetainPut { topic, record } => drop(self.retained.insert(topic, record)),
            Op::RetainDelete { topic } => drop(self.retained.remove(&topic)),
            Op::StatePut { rule, key, value } => drop(self.state.insert((rule, key), value)),
            Op::StateDelete { rule, key } => drop(self.state.remove(&(rule, key))),
            Op::MetaPut { key, value } => drop(self.meta.insert(key, value)),
        }
    }
}
