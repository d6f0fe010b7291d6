//! The reference model: a store that keeps everything in maps and commits when told to; alone, or of several nodes.

use crate::record::{self, Record};
use crate::{
    Body, BodyId, Found, Joint, JointPart, Op, QueueId, QueueSummary, Restored, SESSIONS, SessionId, Side,
    Store, StoreEvent, StoredRow, Taken, Ticket,
};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What the ops mean, in the plainest form. Tests compare writers with it and drive shards with it.
#[derive(Debug, Default)]
pub struct MemoryStore {
    table: MemoryTable,
    node: u32,
    /// Of the sessions that are ours, as we know them.
    epochs: BTreeMap<SessionId, u64>,
    /// Those that were.
    lost: BTreeSet<SessionId>,
    waiting: VecDeque<(Ticket, Vec<Op>, Vec<JointPart>)>,
    next: u64,
    takes: VecDeque<Take>,
    adopts: Option<u64>,
    events: Vec<StoreEvent>,
}

/// What several nodes share.
#[derive(Debug, Clone, Default)]
pub struct MemoryTable(Arc<Mutex<State>>);

#[derive(Debug, Clone, Default)]
struct State {
    /// Of a session's queue the node is 0.
    rows: BTreeMap<(u32, QueueId, u64), Row>,
    bodies: BTreeMap<(u32, BodyId), u64>,
    sessions: BTreeMap<SessionId, Bytes>,
    /// Owner and epoch.
    owners: BTreeMap<SessionId, (u32, u64)>,
    subscriptions: BTreeMap<(SessionId, Box<str>), Bytes>,
    inflight: BTreeMap<(SessionId, Side, u16), Bytes>,
    /// Stamp and record, which is empty where the topic was cleared.
    retained: BTreeMap<Box<str>, (u64, Bytes)>,
    state: BTreeMap<(u32, u64, Bytes), Bytes>,
    meta: BTreeMap<(u32, Box<str>), Bytes>,
    /// Its number, and its members: whether they are live.
    view: (u64, BTreeMap<u32, bool>),
}

type Take = (Box<str>, Option<(SessionId, u64)>, Option<(SessionId, Bytes)>);

type Row = (Bytes, Bytes, Option<(u32, BodyId)>);

impl MemoryTable {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The members of the cluster, and whether they are live.
    pub fn set_view(&self, number: u64, members: BTreeMap<u32, bool>) {
        self.lock().view = (number, members);
    }

    /// Whether a node owns sessions.
    #[must_use]
    pub fn owns(&self, node: u32) -> bool {
        self.lock().owners.values().any(|(owner, _)| *owner == node)
    }

    /// Who owns the session of a client.
    #[must_use]
    pub fn owner(&self, client_id: &str) -> Option<u32> {
        let state = self.lock();
        state.of_client(client_id).and_then(|session| Some(state.owners.get(&session)?.0))
    }
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The store as a node sees it, from 1 on. Its sessions, if it has been there before, are in [`MemoryStore::restored`].
    #[must_use]
    pub fn of(table: &MemoryTable, node: u32) -> Self {
        let mut store = Self { table: table.clone(), node, ..Self::default() };
        store.epochs = table.lock().epochs(node);
        store
    }

    /// Commits what waits, and tells it: all up to the last batch behind which no joint commit is open. Then does what else was asked for.
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
        let table = self.table.clone();
        let mut state = table.lock();
        for (ticket, ops, _) in self.waiting.drain(..whole) {
            last = Some(ticket);
            let mut fenced = Vec::new();
            for op in ops {
                let ours = op.session().is_none_or(|session| {
                    match (state.owners.get(&session), self.epochs.get(&session)) {
                        // One that is new: nobody can have taken it.
                        (None, None) => !self.lost.contains(&session),
                        (known, Some(epoch)) => known == Some(&(self.node, *epoch)),
                        (Some(_), None) => false,
                    }
                });
                if !ours {
                    self.lost.extend(op.session());
                    fenced.push(op);
                    continue;
                }
                match &op {
                    Op::SessionPut { session, .. } if !self.epochs.contains_key(session) => {
                        state.owners.insert(*session, (self.node, 1));
                        self.epochs.insert(*session, 1);
                    }
                    Op::SessionDelete { session } => {
                        state.owners.remove(session);
                        self.epochs.remove(session);
                    }
                    _ => {}
                }
                state.apply(op, self.node);
            }
            if !fenced.is_empty() {
                self.events.push(StoreEvent::Fenced { ops: fenced });
            }
        }
        self.events.extend(last.map(|ticket| StoreEvent::Committed { ticket, took: Duration::ZERO }));
        let is_member = state.view.1.get(&self.node) == Some(&true);
        for (client_id, given_up, new) in std::mem::take(&mut self.takes) {
            let mut restored = Restored::default();
            let session = state.of_client(&client_id);
            let owner = session.and_then(|session| state.owners.get(&session).copied());
            let may =
                owner.is_none_or(|(owner, epoch)| owner == self.node || given_up == session.zip(Some(epoch)));
            let found = match (session, new) {
                _ if !is_member || !may => {
                    Found::Refused(session.zip(owner.map(|(_, epoch)| epoch)).filter(|_| is_member))
                }
                (Some(session), _) => {
                    let (owner, epoch) = state.owners.entry(session).or_default();
                    (*owner, *epoch) = (self.node, *epoch + 1);
                    self.epochs.insert(session, *epoch);
                    self.lost.remove(&session);
                    restored = state.gather(&BTreeSet::from([session]), self.node);
                    Found::Session(session)
                }
                (None, Some((session, record))) => {
                    state.sessions.insert(session, record);
                    state.owners.insert(session, (self.node, 1));
                    self.epochs.insert(session, 1);
                    Found::Made(session)
                }
                (None, None) => Found::Nothing,
            };
            self.events.push(StoreEvent::Taken(Box::new(Taken { client_id, found, restored })));
        }
        if let Some(view) = self.adopts.take() {
            self.adopt_in(&mut state, view);
        }
    }

    fn adopt_in(&mut self, state: &mut State, view: u64) {
        let (number, members) = state.view.clone();
        if number != view {
            return;
        }
        let ours = state.epochs(self.node);
        let lost: Vec<_> = self
            .epochs
            .iter()
            .filter(|(id, epoch)| ours.get(*id) != Some(*epoch))
            .map(|(id, _)| *id)
            .collect();
        self.epochs.retain(|id, _| !lost.contains(id));
        self.lost.extend(&lost);
        if !lost.is_empty() {
            self.events.push(StoreEvent::Lost { sessions: lost.into() });
            return;
        }
        // When nobody is live, who joins does.
        let none = !members.values().any(|live| *live);
        let live: Vec<u32> =
            members.iter().filter(|(_, live)| **live || none).map(|(node, _)| *node).collect();
        let mut adopted = BTreeSet::new();
        if let Some(rank) = live.iter().position(|node| *node == self.node) {
            for (id, (owner, epoch)) in &mut state.owners {
                if !members.contains_key(owner) && id.0 % live.len() as u64 == rank as u64 {
                    (*owner, *epoch) = (self.node, *epoch + 1);
                    self.epochs.insert(*id, *epoch);
                    self.lost.remove(id);
                    adopted.insert(*id);
                }
            }
        }
        let mut restored = state.gather(&adopted, self.node);
        if members.get(&self.node) == Some(&false) {
            restored.retained = state.all_retained();
        }
        let restored = Arc::new(restored);
        self.events.push(StoreEvent::Adopted { view, restored, done: true });
    }

    /// Whether a commit would do nothing, and nobody has to be told anything.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.takes.is_empty() && self.adopts.is_none() && self.events.is_empty()
    }

    /// What the shard has to be told.
    pub fn take_events(&mut self) -> Vec<StoreEvent> {
        std::mem::take(&mut self.events)
    }

    /// Power cut: what was not committed is gone. Returns what a start would find.
    pub fn crash(&mut self) -> Restored {
        self.waiting.clear();
        self.events.clear();
        self.takes.clear();
        self.adopts = None;
        self.epochs = self.table.lock().epochs(self.node);
        self.restored()
    }

    /// How many distinct shared bodies are kept.
    #[must_use]
    pub fn shared_bodies(&self) -> usize {
        self.table.lock().bodies.len()
    }

    /// Committed rows of a queue.
    #[must_use]
    pub fn rows(&self, queue: QueueId) -> Vec<StoredRow> {
        self.table.lock().rows(home(queue, self.node), queue, 0, usize::MAX, usize::MAX)
    }

    /// What a start would find.
    #[must_use]
    pub fn restored(&self) -> Restored {
        let s = self.table.lock();
        let ours = s.epochs(self.node).into_keys().collect();
        let mut restored = s.gather(&ours, self.node);
        // What is nobody's, of a store that is a node's alone.
        if self.node == 0 {
            let of = |k: &SessionId| !ours.contains(k);
            let subscriptions = s.subscriptions.iter().filter(|((k, _), _)| of(k));
            restored.subscriptions.extend(subscriptions.map(|((k, f), v)| (*k, f.clone(), v.clone())));
            restored.subscriptions.sort_unstable_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
            let inflight = s.inflight.iter().filter(|((k, ..), _)| of(k));
            restored.inflight.extend(inflight.map(|(&(k, side, id), v)| (k, side, id, v.clone())));
            restored.inflight.sort_unstable_by_key(|i| (i.0, i.1, i.2));
        }
        restored.queues = s.summaries(|node, queue| match queue.as_session() {
            Some(session) => self.node == 0 || ours.contains(&session),
            None => node == self.node,
        });
        restored.retained = s.all_retained();
        let state = s.state.iter().filter(|((node, ..), _)| *node == self.node);
        restored.state = state.map(|((_, rule, k), v)| (*rule, k.clone(), v.clone())).collect();
        let meta = s.meta.iter().filter(|((node, _), _)| *node == self.node);
        restored.meta = meta.map(|((_, k), v)| (k.clone(), v.clone())).collect();
        let own = SessionId(restored.first_session)..SessionId(restored.first_session + SESSIONS);
        let last = s.sessions.range(own).next_back().filter(|_| self.node != 0);
        restored.last_session = last.map_or(0, |(id, _)| id.0);
        let bodies = s.bodies.keys().filter(|(node, _)| *node == self.node);
        restored.last_body = bodies.max().map_or(0, |(_, body)| body.0);
        restored
    }
}

/// The node that a queue's rows are kept under.
fn home(queue: QueueId, node: u32) -> u32 {
    if queue.as_session().is_some() { 0 } else { node }
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
        let home = home(queue, self.node);
        let rows = self.table.lock().rows(home, queue, from, max_rows as usize, max_bytes as usize);
        self.events.push(StoreEvent::Rows { queue, rows });
    }

    fn pending_bytes(&self) -> usize {
        self.waiting.iter().flat_map(|(_, ops, _)| ops).map(Op::size).sum()
    }

    fn take(&mut self, client_id: &str, given_up: Option<(SessionId, u64)>, new: Option<(SessionId, Bytes)>) {
        self.takes.push_back((client_id.into(), given_up, new));
    }

    fn adopt(&mut self, view: u64) {
        self.adopts = self.adopts.max(Some(view));
    }
}

impl State {
    fn all_retained(&self) -> Vec<(Box<str>, u64, Bytes)> {
        self.retained.iter().map(|(topic, (stamp, record))| (topic.clone(), *stamp, record.clone())).collect()
    }

    fn retain(&mut self, topic: Box<str>, new: (u64, Bytes)) {
        let kept = self.retained.entry(topic).or_default();
        if *kept < new {
            *kept = new;
        }
    }

    fn epochs(&self, node: u32) -> BTreeMap<SessionId, u64> {
        self.owners
            .iter()
            .filter(|(_, (owner, _))| *owner == node)
            .map(|(id, (_, epoch))| (*id, *epoch))
            .collect()
    }

    fn of_client(&self, client_id: &str) -> Option<SessionId> {
        let is_its = |record: &Bytes| {
            record::Session::from_bytes(record).is_ok_and(|session| *session.client_id == *client_id)
        };
        self.sessions.iter().find(|(_, record)| is_its(record)).map(|(id, _)| *id)
    }

    /// These sessions with all that belongs to them.
    fn gather(&self, of: &BTreeSet<SessionId>, node: u32) -> Restored {
        let s = self;
        let sessions = s.sessions.iter().filter(|(k, _)| of.contains(k));
        let subscriptions = s.subscriptions.iter().filter(|((k, _), _)| of.contains(k));
        let inflight = s.inflight.iter().filter(|((k, ..), _)| of.contains(k));
        Restored {
            sessions: sessions.map(|(&k, v)| (k, v.clone())).collect(),
            subscriptions: subscriptions.map(|((k, f), v)| (*k, f.clone(), v.clone())).collect(),
            inflight: inflight.map(|(&(k, side, id), v)| (k, side, id, v.clone())).collect(),
            queues: s.summaries(|_, queue| queue.as_session().is_some_and(|session| of.contains(&session))),
            epochs: if node == 0 {
                Vec::new()
            } else {
                of.iter().filter_map(|id| Some((*id, s.owners.get(id)?.1))).collect()
            },
            first_session: u64::from(node) * SESSIONS,
            ..Restored::default()
        }
    }

    fn summaries(&self, of: impl Fn(u32, QueueId) -> bool) -> Vec<QueueSummary> {
        let mut queues: Vec<QueueSummary> = Vec::new();
        for (&(node, queue, seq), (head, body, _)) in &self.rows {
            if !of(node, queue) {
                continue;
            }
            let bytes = (head.len() + body.len()) as u64;
            match queues.last_mut() {
                Some(q) if q.queue == queue => (q.last, q.rows, q.bytes) = (seq, q.rows + 1, q.bytes + bytes),
                _ => queues.push(QueueSummary { queue, first: seq, last: seq, rows: 1, bytes }),
            }
        }
        queues.sort_unstable_by_key(|q| q.queue);
        queues
    }

    fn rows(
        &self,
        home: u32,
        queue: QueueId,
        from: u64,
        max_rows: usize,
        max_bytes: usize,
    ) -> Vec<StoredRow> {
        let mut bytes = 0;
        self.rows
            .range((home, queue, from)..=(home, queue, u64::MAX))
            .take(max_rows.max(1))
            .take_while(|(_, (head, body, _))| {
                // The first row comes whatever it weighs, or a reader with a small limit would never go on.
                let room = bytes < max_bytes.max(1);
                bytes += head.len() + body.len();
                room
            })
            .map(|(&(.., seq), (head, body, _))| StoredRow { seq, head: head.clone(), body: body.clone() })
            .collect()
    }

    fn remove_rows(&mut self, home: u32, queue: QueueId, first: u64, last: u64) {
        let range = (home, queue, first)..=(home, queue, last);
        let gone: Vec<_> = self.rows.range(range).map(|(&k, _)| k).collect();
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

    fn apply(&mut self, op: Op, node: u32) {
        match op {
            Op::Append { queue, seq, head, body } => {
                let key = (home(queue, node), queue, seq);
                if self.rows.contains_key(&key) {
                    return;
                }
                let (bytes, shared) = match body {
                    Body::Inline(bytes) => (bytes, None),
                    Body::Shared(id, bytes) => {
                        *self.bodies.entry((node, id)).or_insert(0) += 1;
                        (bytes, Some((node, id)))
                    }
                };
                self.rows.insert(key, (head, bytes, shared));
            }
            Op::Remove { queue, first, last } if first <= last => {
                self.remove_rows(home(queue, node), queue, first, last);
            }
            Op::Remove { .. } => {}
            Op::SessionPut { session, record } => drop(self.sessions.insert(session, record)),
            Op::SessionDelete { session } => {
                self.sessions.remove(&session);
                self.subscriptions.retain(|(s, _), _| *s != session);
                self.inflight.retain(|(s, _, _), _| *s != session);
                self.remove_rows(0, QueueId::session(session), 0, u64::MAX);
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
            Op::RetainPut { topic, stamp, record } => self.retain(topic, (stamp, record)),
            Op::RetainDelete { topic, stamp } => self.retain(topic, (stamp, Bytes::new())),
            Op::StatePut { rule, key, value } => drop(self.state.insert((node, rule, key), value)),
            Op::StateDelete { rule, key } => drop(self.state.remove(&(node, rule, key))),
            Op::MetaPut { key, value } => drop(self.meta.insert((node, key), value)),
        }
    }
}
