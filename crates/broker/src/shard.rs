//! The shard's state and its turn.

use crate::config::Limits;
use crate::hook::{Everything, Gate, Hook, LocalPublish, Publisher, Role};
use crate::retained::RetainedIndex;
use crate::session::{Conn, Kind, LateWill, OutboundState, Phase, Received, Session};
use crate::slots::Slots;
use crate::trie::Trie;
use crate::wheel::Wheel;
use crate::{ConnId, SessionKey, marker};
use ferrule_mqtt::{
    AckType, DecodeError, Disconnect, PINGRESP, Packet, Properties, QoS, ReasonCode, Version,
    connect_version, decode, encode_ack, frame_len,
};
use ferrule_outbox::{End, Outcome, Policy, Queue, Receipts};
use ferrule_store::record::{self, Record, Retained, Subscription};
use ferrule_store::{Now, Op, QueueId, Restored, SessionId, Side, Store, StoreEvent, Ticket};
use foldhash::fast::FixedState;
use foldhash::{HashMap, HashMapExt, HashSet, HashSetExt};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// Whose acknowledgement a receipt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    pub(crate) conn: ConnId,
    pub(crate) session: SessionKey,
    pub(crate) serial: u64,
    pub(crate) packet_id: u16,
    pub(crate) qos2: bool,
}

/// Where a matching filter leads.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Destination {
    Session(SessionKey, Subscription),
    Hook(u32),
}

/// What the worker has to do for the shard beside writing output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Write what can be written now, close the socket, call [`Shard::closed`].
    Close(ConnId),
    /// Bytes that were left over may be offered again, and reading goes on.
    Resume(ConnId),
}

/// What waits for a commit.
#[derive(Debug)]
pub(crate) enum Wait {
    /// An end of a receipt.
    End(End),
    /// The CONNACK of a connection.
    Connack(ConnId),
    /// A SUBACK, UNSUBACK or PUBCOMP, and the subscriptions whose retained messages follow it.
    Reply(ConnId, Vec<u8>, Vec<(Box<str>, Subscription)>),
    /// The PUBLISH of a QoS 2 delivery under this packet id.
    Publish(SessionKey, u16),
    /// The PUBREL of one.
    Pubrel(SessionKey, u16),
}

/// This turn's ops of the shard's own, and what waits for their commit.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) ops: Vec<Op>,
    /// Somebody waits for them.
    pub(crate) due: bool,
    since_us: u64,
    pub(crate) waits: Vec<Wait>,
    /// Packet ids of QoS 2 publishes, to be written with what was made of them and never before.
    pub(crate) received: Vec<(Op, End)>,
    received_us: u64,
    /// Of batches that were submitted.
    commits: VecDeque<(Ticket, Vec<Wait>)>,
}

impl Batch {
    /// Adds an op. `due`: somebody waits for it.
    pub(crate) fn op(&mut self, op: Op, due: bool, now: Now) {
        if self.ops.is_empty() {
            self.since_us = now.mono_us;
        }
        self.ops.push(op);
        self.due |= due;
    }

    /// Whether something that somebody waits for is not durable yet.
    pub(crate) fn is_awaited(&self) -> bool {
        self.due || !self.commits.is_empty()
    }
}

/// Counts since the shard started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Connections accepted.
    pub connected: u64,
    /// CONNECTs refused.
    pub refused: u64,
    /// Publishes received.
    pub received: u64,
    /// Publishes received that went nowhere.
    pub unmatched: u64,
    /// Messages written to clients.
    pub sent: u64,
    /// Acknowledgements (PUBACK, PUBREC) given for publishes that went where they must.
    pub acknowledged: u64,
    /// Acknowledgements given for publishes of which an end was given up.
    pub acked_discarded: u64,
    /// Repetitions of a publish that waits, not routed again.
    pub joined: u64,
    /// Publishes and subscriptions that were not allowed.
    pub denied: u64,
    /// QoS 0 messages dropped for consumers that are too slow.
    pub dropped_slow: u64,
    /// Messages dropped since a session's queue was full.
    pub dropped_full: u64,
    /// Messages larger than their receiver takes.
    pub dropped_too_large: u64,
    /// Messages that expired in a queue.
    pub dropped_expired: u64,
    /// Retained messages that a bound refused.
    pub retained_refused: u64,
    /// Connections closed for a broken rule of the protocol.
    pub protocol_errors: u64,
    /// Publishes that passed too many rules.
    pub loops: u64,
}

/// A shard. See the crate's header for how it is driven.
pub struct Shard<H, S> {
    pub(crate) limits: Limits,
    pub(crate) policy: Policy,
    pub(crate) hook: H,
    pub(crate) store: S,
    pub(crate) gate: Box<dyn Gate>,
    pub(crate) conns: Slots<marker::Conn, Conn>,
    pub(crate) sessions: Slots<marker::Session, Session>,
    pub(crate) by_client: HashMap<Arc<str>, SessionKey>,
    pub(crate) by_store_id: HashMap<SessionId, SessionKey>,
    pub(crate) trie: Trie<Destination>,
    pub(crate) retained: RetainedIndex,
    /// Topics whose retained message, set by QoS 0, is not in the store yet.
    pub(crate) retained_lazy: HashSet<Box<str>>,
    pub(crate) retained_lazy_since_us: u64,
    pub(crate) receipts: Receipts<Owner>,
    pub(crate) wheel: Wheel<Timer>,
    pub(crate) dirty: Vec<ConnId>,
    pub(crate) heard: Vec<ConnId>,
    pub(crate) commands: Vec<Command>,
    pub(crate) touched: Vec<SessionKey>,
    pub(crate) batch: Batch,
    pub(crate) ended: Vec<(End, Outcome)>,
    pub(crate) local: VecDeque<LocalPublish>,
    pub(crate) smoothed_commit: Duration,
    pub(crate) next_session: u64,
    pub(crate) next_body: u64,
    pub(crate) next_routed: u64,
    pub(crate) scratch: crate::publish::Scratch,
    pub(crate) hasher: FixedState,
    pub(crate) random: u64,
    pub(crate) now: Now,
    pub(crate) stats: Stats,
    pub(crate) failing: Option<String>,
    /// The store takes new rows.
    pub(crate) admitted: bool,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Timer {
    Conn(ConnId),
    Session(SessionKey),
}

/// What a shard is made with.
pub struct Parts<H, S> {
    /// Rules and outboxes.
    pub hook: H,
    /// This shard's handle of the store.
    pub store: S,
    /// Who may connect.
    pub gate: Box<dyn Gate>,
    /// Bounds.
    pub limits: Limits,
    /// Of sessions' queues.
    pub policy: Policy,
    /// Seeds hashes and assigned client ids; random.
    pub seed: u64,
}

impl<H: Hook, S: Store> Shard<H, S> {
    /// A shard with what the store remembers. Rows of queues that are not sessions' are the hook's affair.
    pub fn new(parts: Parts<H, S>, restored: &Restored, now: Now) -> Self {
        let Parts { hook, store, gate, limits, policy, seed } = parts;
        let mut shard = Self {
            limits,
            policy,
            hook,
            store,
            gate,
            conns: Slots::new(),
            sessions: Slots::new(),
            by_client: HashMap::new(),
            by_store_id: HashMap::new(),
            trie: Trie::new(),
            retained: RetainedIndex::new(limits.retained_messages, limits.retained_bytes),
            retained_lazy: HashSet::new(),
            retained_lazy_since_us: 0,
            receipts: Receipts::new(),
            wheel: Wheel::new(),
            dirty: Vec::new(),
            heard: Vec::new(),
            commands: Vec::new(),
            touched: Vec::new(),
            batch: Batch::default(),
            ended: Vec::new(),
            local: VecDeque::new(),
            smoothed_commit: Duration::ZERO,
            next_session: 1,
            next_body: restored.last_body + 1,
            next_routed: 1,
            scratch: crate::publish::Scratch::default(),
            hasher: FixedState::with_seed(seed),
            random: seed,
            now,
            stats: Stats::default(),
            failing: None,
            admitted: true,
        };
        shard.restore(restored);
        shard
    }

    /// Sessions with their subscriptions become routable, retained messages findable. A record that cannot be
    /// read is left out and left where it is.
    fn restore(&mut self, restored: &Restored) {
        let queues: HashMap<QueueId, _> = restored.queues.iter().map(|q| (q.queue, *q)).collect();
        for (id, bytes) in &restored.sessions {
            self.next_session = self.next_session.max(id.0 + 1);
            let Ok(record) = record::Session::from_bytes(bytes) else { continue };
            let queue_id = QueueId::session(*id);
            let queue = Queue::new(queue_id, self.policy, queues.get(&queue_id).copied());
            let client_id: Arc<str> = record.client_id.into();
            // Connected when the process died: its life begins to run out now.
            let away_ms =
                record.ended_wall_ms.map_or(0, |ended| self.now.wall_ms.saturating_sub(ended).max(0));
            let life_us = u64::from(record.expiry_s) * 1_000_000;
            let left_us = life_us.saturating_sub(away_ms as u64 * 1_000);
            if left_us == 0 {
                // It ended with its connection, or since.
                self.op(Op::SessionDelete { session: *id }, false);
                continue;
            }
            let kind = Kind::Persistent { id: *id, queue: Box::new(queue) };
            let username = record.username.map(Into::into);
            let mut session = Session::new(Arc::clone(&client_id), username, kind, record.expiry_s);
            if record.expiry_s != u32::MAX {
                // The monotonic clock may be younger than the session: its life is what is left of it.
                session.expires_us = self.now.mono_us + left_us;
            }
            let key = self.sessions.insert(session);
            self.arm_session(key);
            self.by_client.insert(client_id, key);
            self.by_store_id.insert(*id, key);
        }
        for (id, filter, bytes) in &restored.subscriptions {
            let (Some(&key), Ok(subscription)) = (self.by_store_id.get(id), Subscription::from_bytes(bytes))
            else {
                continue;
            };
            if let Some(session) = self.sessions.get_mut(key) {
                session.subscriptions.insert(filter.clone(), subscription);
            }
            self.trie.insert(filter, Destination::Session(key, subscription), |_| false);
        }
        for (id, side, packet_id, bytes) in &restored.inflight {
            let Some(session) = self.by_store_id.get(id).and_then(|key| self.sessions.get_mut(*key)) else {
                continue;
            };
            match (side, record::Inflight::from_bytes(bytes)) {
                (Side::Inbound, Ok(record::Inflight::Received)) => {
                    session.received.insert(*packet_id, Received::Answered(ReasonCode::SUCCESS));
                }
                (Side::Outbound, Ok(record::Inflight::Sent(seq))) => {
                    session.inflight.restore(*packet_id, seq)
                }
                (Side::Outbound, Ok(record::Inflight::Released)) => session.inflight.restore(*packet_id, 0),
                _ => {}
            }
        }
        for (topic, bytes) in &restored.retained {
            if let Ok(message) = Retained::from_bytes(bytes) {
                self.retained.set(topic, Arc::new(message));
            }
        }
    }

    /// The hook, for whoever made it.
    pub fn hook(&mut self) -> &mut H {
        &mut self.hook
    }

    /// Makes `filters` lead to a hook. A hook has each filter once.
    pub fn add_hook_filter(&mut self, filter: &str, hook: u32) {
        self.trie.insert(
            filter,
            Destination::Hook(hook),
            |d| matches!(d, Destination::Hook(h) if *h == hook),
        );
    }

    /// Ends that.
    pub fn remove_hook_filter(&mut self, filter: &str, hook: u32) {
        self.trie.remove(filter, |d| matches!(d, Destination::Hook(h) if *h == hook));
    }

    /// Counts.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Connections, sessions, subscriptions and rule filters, retained messages, open receipts, ends lost to bugs.
    pub fn sizes(&self) -> [usize; 6] {
        [
            self.conns.len(),
            self.sessions.len(),
            self.trie.len(),
            self.retained.len(),
            self.receipts.open_count(),
            self.receipts.lost_ends() as usize,
        ]
    }

    /// What the store last said of a failure that goes on.
    pub fn store_failure(&self) -> Option<&str> {
        self.failing.as_deref()
    }

    // --- the rim's side ---

    /// A connection came. None when there are too many: close it.
    pub fn open(&mut self, peer: std::net::SocketAddr, listener: usize, now: Now) -> Option<ConnId> {
        self.now = now;
        if self.conns.len() >= self.limits.connections {
            self.stats.refused += 1;
            return None;
        }
        let id = self.conns.insert(Conn {
            peer,
            listener,
            phase: Phase::AwaitConnect,
            version: Version::V3_1_1,
            session: None,
            publisher: Arc::new(Publisher {
                client_id: "".into(),
                username: None,
                peer: Some(peer),
                role: Role::Device,
            }),
            access: Arc::new(Everything),
            out: Vec::new(),
            dirty: false,
            heard: false,
            came_us: now.mono_us,
            heard_us: now.mono_us,
            drained_us: now.mono_us,
            timer_us: 0,
            keep_alive_us: 0,
            peer_packet_bytes: usize::MAX,
            aliases: Vec::new(),
            waiting: VecDeque::new(),
            recent: VecDeque::new(),
            life: None,
            next_serial: 0,
            unordered: false,
            connecting: None,
        });
        self.arm_conn(id, now.mono_us + self.limits.connect_timeout.as_micros() as u64);
        Some(id)
    }

    /// Takes packets from the front of `buf` and returns how many bytes it took. What is left is an incomplete packet, or
    /// the connection is held ([`Shard::is_held`]); offer it again, longer or after [`Command::Resume`].
    pub fn receive(&mut self, id: ConnId, buf: &[u8], now: Now) -> usize {
        self.now = now;
        let mut at = 0;
        if let Some(conn) = self.conns.get_mut(id) {
            conn.heard_us = now.mono_us;
            if !conn.heard {
                conn.heard = true;
                self.heard.push(id);
            }
        }
        loop {
            let Some(conn) = self.conns.get(id) else { return buf.len() };
            let version = match conn.phase {
                Phase::Closing => return buf.len(),
                Phase::AwaitConnect => None,
                Phase::Open => Some(conn.version),
                Phase::AwaitGate | Phase::AwaitStore => return at,
            };
            match decode(&buf[at..], version, self.limits.packet_bytes) {
                Ok(None) => return at,
                Ok(Some((packet, size))) => {
                    if let Err(error) = packet.check_sender(ferrule_mqtt::Side::Client, conn.version) {
                        self.refuse_bytes(id, &error, &[]);
                        return buf.len();
                    }
                    at += size;
                    self.packet(id, packet);
                }
                Err(error) => {
                    self.refuse_bytes(id, &error, &buf[at..]);
                    return buf.len();
                }
            }
        }
    }

    /// Whether the worker should stop reading from a connection for now.
    pub fn is_held(&self, id: ConnId) -> bool {
        self.conns.get(id).is_some_and(|c| matches!(c.phase, Phase::AwaitGate | Phase::AwaitStore))
    }

    /// The socket ended, from either side.
    pub fn closed(&mut self, id: ConnId, now: Now) {
        self.now = now;
        self.detach(id, true);
        self.conns.remove(id);
    }

    /// Output of a connection: the worker removes from the front what it has written.
    pub fn output(&mut self, id: ConnId) -> Option<&mut Vec<u8>> {
        self.conns.get_mut(id).map(|c| &mut c.out)
    }

    /// Some or all of the output has been written.
    pub fn wrote(&mut self, id: ConnId, now: Now) {
        self.now = now;
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.drained_us = now.mono_us;
        if conn.out.len() < self.limits.output_bytes
            && let Some(key) = conn.session
        {
            self.pump(key);
        }
    }

    /// Connections with output, each once.
    pub fn take_dirty(&mut self, into: &mut Vec<ConnId>) {
        for id in self.dirty.drain(..) {
            if let Some(conn) = self.conns.get_mut(id) {
                conn.dirty = false;
                into.push(id);
            }
        }
    }

    /// What else is to be done.
    pub fn take_commands(&mut self) -> Vec<Command> {
        std::mem::take(&mut self.commands)
    }

    /// The node stops: says so to clients that can be told. Connections and sessions stay as they are, so that no will
    /// is published and none is lost.
    pub fn goodbye(&mut self, now: Now) {
        self.now = now;
        for id in self.conns.ids() {
            if self.conns.get(id).is_some_and(|c| c.phase == Phase::Open && c.version == Version::V5) {
                self.write_disconnect(id, ReasonCode::SERVER_SHUTTING_DOWN);
            }
        }
    }

    // --- the store's side ---

    /// The store has something to say.
    pub fn store_event(&mut self, event: StoreEvent, now: Now) {
        self.now = now;
        match event {
            StoreEvent::Committed { ticket, took } => {
                // As RFC 6298 smooths: a gain of 1/8.
                self.smoothed_commit =
                    if self.smoothed_commit.is_zero() { took } else { (self.smoothed_commit * 7 + took) / 8 };
                self.committed(ticket);
            }
            StoreEvent::Rows { queue, rows } => match queue.as_session() {
                None => self.hook.rows(queue, rows, now),
                Some(id) => {
                    let Some(&key) = self.by_store_id.get(&id) else { return };
                    if let Some(Session { kind: Kind::Persistent { queue, .. }, .. }) =
                        self.sessions.get_mut(key)
                    {
                        queue.loaded(rows, now);
                    }
                    self.pump(key);
                    self.touch(key);
                }
            },
            StoreEvent::Failing { message } => self.failing = Some(message),
            StoreEvent::Recovered => self.failing = None,
        }
    }

    fn committed(&mut self, ticket: Ticket) {
        let mut ended = std::mem::take(&mut self.ended);
        self.hook.committed(ticket, &mut ended);
        let mut at = 0;
        while let Some(&key) = self.touched.get(at) {
            at += 1;
            if let Some(Session { kind: Kind::Persistent { queue, .. }, .. }) = self.sessions.get_mut(key) {
                queue.committed(ticket, &mut ended);
            }
        }
        self.ended = ended;
        // Their rows may be on disk now.
        self.batch.due |= !self.batch.received.is_empty();
        while self.batch.commits.front().is_some_and(|(t, _)| *t <= ticket) {
            let Some((_, waits)) = self.batch.commits.pop_front() else { break };
            for wait in waits {
                match wait {
                    Wait::End(end) => self.ended.push((end, Outcome::Delivered)),
                    Wait::Connack(conn) => self.store_ready(conn),
                    Wait::Reply(conn, packet, subscriptions) => self.reply(conn, &packet, subscriptions),
                    Wait::Publish(key, packet_id) => self.outbound_committed(key, packet_id),
                    Wait::Pubrel(key, packet_id) => self.release_committed(key, packet_id),
                }
            }
        }
        self.settle();
    }

    /// Tells publishers whose last end was said.
    pub(crate) fn settle(&mut self) {
        while !self.ended.is_empty() {
            for (end, outcome) in std::mem::take(&mut self.ended) {
                if let Some(done) = self.receipts.resolve(end, outcome) {
                    self.complete(done.owner, done.outcome);
                }
            }
        }
    }

    /// Runs timers, routes what rules published, and hands the turn's batch to the store. Call it once a turn, after all input.
    pub fn end_turn(&mut self, now: Now) {
        self.now = now;
        self.run_timers();
        let mut reads = Vec::new();
        let mut ended = std::mem::take(&mut self.ended);
        self.hook.turn(now, &mut ended, &mut reads);
        self.ended = ended;
        for done in self.receipts.sweep() {
            self.complete(done.owner, done.outcome);
        }
        self.settle();
        self.route_local();
        self.mark_full_windows();
        self.flush(&mut reads);
        for (queue, from) in reads {
            // 256 rows or 1 MiB a read: the writer serves reads between commits.
            self.store.read(queue, from, 256, 1 << 20);
        }
    }

    /// When `end_turn` must be called at the latest, in microseconds of the monotonic clock.
    pub fn next_wake_us(&self) -> Option<u64> {
        let urgent = self.receipts.urgent_count() > 0;
        let mut next = self.wheel.next_us();
        let mut at = |due: Option<u64>| next = [next, due].into_iter().flatten().min();
        at(self.hook.next_due_us(urgent, self.smoothed_commit));
        let unfinished = !self.dirty.is_empty() || !self.commands.is_empty() || !self.ended.is_empty();
        if unfinished || self.batch.due || !self.local.is_empty() {
            // What came after the turn's end has to have a turn of its own.
            at(Some(0));
        }
        if !self.admitted {
            at(Some(self.now.mono_us + ADMISSION_US));
        }
        if !self.scratch.quiet.is_empty() {
            at(Some(self.now.mono_us + QUIET_US));
        }
        if !self.batch.ops.is_empty() {
            at(Some(self.batch.since_us + LAZY_US));
        }
        if !self.batch.received.is_empty() {
            at(Some(self.batch.received_us + LAZY_US));
        }
        if !self.retained_lazy.is_empty() {
            at(Some(self.retained_lazy_since_us + LAZY_US));
        }
        for &key in &self.touched {
            if let Some(Session { kind: Kind::Persistent { queue, .. }, .. }) = self.sessions.get(key) {
                at(queue.next_due_us(urgent, self.smoothed_commit));
            }
        }
        next
    }

    fn flush(&mut self, reads: &mut Vec<(QueueId, u64)>) {
        let now = self.now;
        let urgent = self.receipts.urgent_count() > 0;
        let smoothed = self.smoothed_commit;
        let admitted = !self.store.low_on_space() && self.store.pending_bytes() < PENDING_BYTES;
        if admitted != self.admitted {
            self.admitted = admitted;
            self.hook.set_admitted(admitted);
        }
        let lazy_due = |since: u64| now.since(since) >= LAZY_US;
        let mut due = self.batch.due
            || (!self.batch.ops.is_empty() && lazy_due(self.batch.since_us))
            || (!self.batch.received.is_empty() && lazy_due(self.batch.received_us))
            || (!self.retained_lazy.is_empty() && lazy_due(self.retained_lazy_since_us))
            || self.hook.due(now, urgent, smoothed);
        for &key in &self.touched {
            if let Some(Session { kind: Kind::Persistent { queue, .. }, .. }) = self.sessions.get_mut(key) {
                queue.set_admitted(admitted);
                due = due || queue.due(now, urgent, smoothed);
                // The backlog of an absent client stays where it is.
                if queue.is_up()
                    && let Some(from) = queue.want_read()
                {
                    reads.push((queue.id(), from));
                }
            }
        }
        if due {
            let mut batch = std::mem::take(&mut self.batch.ops);
            for topic in self.retained_lazy.drain() {
                batch.push(match self.retained.get(&topic) {
                    Some(message) => Op::RetainPut { record: message.to_bytes(), topic },
                    None => Op::RetainDelete { topic },
                });
            }
            self.hook.write(now, &mut batch);
            let mut withheld = self.hook.withholds();
            for &key in &self.touched {
                if let Some(Session { kind: Kind::Persistent { queue, .. }, .. }) = self.sessions.get_mut(key)
                {
                    queue.write(now, &mut batch);
                    withheld |= queue.is_withholding();
                }
            }
            self.write_received(withheld, &mut batch);
            if !batch.is_empty() || !self.batch.waits.is_empty() {
                let ticket = self.store.submit(batch);
                self.hook.submitted(ticket);
                for &key in &self.touched {
                    if let Some(Session { kind: Kind::Persistent { queue, .. }, .. }) =
                        self.sessions.get_mut(key)
                    {
                        queue.submitted(ticket);
                    }
                }
                if !self.batch.waits.is_empty() {
                    let waits = std::mem::take(&mut self.batch.waits);
                    self.batch.commits.push_back((ticket, waits));
                }
            }
            self.batch.due = false;
        }
        // A session stays in the list while its queue has anything at all that a commit or a deadline concerns.
        let sessions = &mut self.sessions;
        self.touched.retain(|&key| match sessions.get_mut(key) {
            Some(session) => {
                session.touched =
                    matches!(&session.kind, Kind::Persistent { queue, .. } if queue.is_unsettled());
                session.touched
            }
            None => false,
        });
    }

    /// Adds the packet ids of QoS 2 publishes. One whose message has a row that found no room waits for it: alone on disk it
    /// would, after a kill, be answered and the message gone. (Its other rows may then be made twice.)
    fn write_received(&mut self, withheld: bool, batch: &mut Vec<Op>) {
        for (op, end) in std::mem::take(&mut self.batch.received) {
            match self.receipts.pending(end.receipt()) {
                Some((_, Outcome::Retry)) => self.ended.push((end, Outcome::Delivered)),
                Some((2.., _)) if withheld => {
                    self.batch.received_us = self.now.mono_us;
                    self.batch.received.push((op, end));
                }
                _ => {
                    batch.push(op);
                    self.batch.waits.push(Wait::End(end));
                }
            }
        }
    }

    /// An op of the shard's own. `due`: somebody waits for it.
    pub(crate) fn op(&mut self, op: Op, due: bool) {
        self.batch.op(op, due, self.now);
    }

    /// Waits for the commit of all that was said so far.
    pub(crate) fn wait(&mut self, wait: Wait) {
        self.batch.due = true;
        self.batch.waits.push(wait);
    }

    /// Sees to it that a connection's deadlines are looked at by then.
    pub(crate) fn arm_conn(&mut self, id: ConnId, deadline_us: u64) {
        if let Some(conn) = self.conns.get_mut(id)
            && (conn.timer_us == 0 || deadline_us < conn.timer_us)
        {
            conn.timer_us = deadline_us;
            self.wheel.add(deadline_us, Timer::Conn(id));
        }
    }

    /// Sees to it that the end of a session that has no connection, or its late will, is not missed.
    pub(crate) fn arm_session(&mut self, key: SessionKey) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let will = session.late_will.as_ref().map(|late| late.due_us);
        let expiry = (session.expires_us != 0).then_some(session.expires_us);
        let Some(deadline_us) = [will, expiry].into_iter().flatten().min() else { return };
        if session.timer_us == 0 || deadline_us < session.timer_us {
            session.timer_us = deadline_us;
            self.wheel.add(deadline_us, Timer::Session(key));
        }
    }

    /// The session's queue has to be looked at when the turn ends.
    pub(crate) fn touch(&mut self, key: SessionKey) {
        if let Some(session) = self.sessions.get_mut(key)
            && !session.touched
        {
            session.touched = true;
            self.touched.push(key);
        }
    }

    /// Contract 2: a publisher whose window is full waits no longer than it must. Its window is full when half of it
    /// waits, or when all that it sent waits and it sent nothing more in this turn.
    fn mark_full_windows(&mut self) {
        for id in std::mem::take(&mut self.heard) {
            let Some(conn) = self.conns.get_mut(id) else { continue };
            conn.heard = false;
            // Heard in this turn: it is stalled only when half its window waits. What it sent now is looked at again
            // when a turn brings nothing more.
            let half = usize::from(self.limits.receive_max) / 2;
            if conn.waiting.len() >= half.max(1) {
                for waiting in &conn.waiting {
                    if let Some(receipt) = waiting.receipt {
                        self.receipts.set_urgent(receipt);
                    }
                }
            } else if !conn.waiting.is_empty() {
                self.scratch.quiet.push((id, self.now.mono_us));
            }
        }
        let now = self.now;
        let (conns, receipts) = (&mut self.conns, &mut self.receipts);
        self.scratch.quiet.retain(|&(id, since)| {
            let Some(conn) = conns.get_mut(id) else { return false };
            if conn.waiting.is_empty() || conn.heard_us > since {
                return false;
            }
            if now.since(since) < QUIET_US {
                return true;
            }
            conn.waiting.iter().filter_map(|w| w.receipt).for_each(|r| receipts.set_urgent(r));
            false
        });
    }

    fn run_timers(&mut self) {
        while let Some(timers) = self.wheel.pop(self.now.mono_us) {
            for timer in timers {
                match timer {
                    Timer::Conn(id) => self.conn_timer(id),
                    Timer::Session(key) => self.session_timer(key),
                }
            }
        }
    }

    fn conn_timer(&mut self, id: ConnId) {
        let now = self.now;
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.timer_us == 0 || now.mono_us < conn.timer_us {
            return; // It was moved forward, and has been seen to.
        }
        conn.timer_us = 0;
        let Some(conn) = self.conns.get(id) else { return };
        let stalled_us = self.limits.stalled.as_micros() as u64;
        match conn.phase {
            Phase::Closing => {
                // The peer does not take its last bytes.
                self.commands.push(Command::Close(id));
                return;
            }
            Phase::AwaitConnect | Phase::AwaitGate => {
                if now.since(conn.came_us) >= self.limits.connect_timeout.as_micros() as u64 {
                    self.disconnect(id, ReasonCode::KEEP_ALIVE_TIMEOUT);
                    return;
                }
            }
            Phase::AwaitStore => {}
            Phase::Open => {
                // [MQTT-3.1.2-22]: one and a half times the keep alive.
                if conn.keep_alive_us > 0 && now.since(conn.heard_us) >= conn.keep_alive_us * 3 / 2 {
                    self.disconnect(id, ReasonCode::KEEP_ALIVE_TIMEOUT);
                    return;
                }
                if conn.out.len() > self.limits.output_bytes / 2 && now.since(conn.drained_us) >= stalled_us {
                    self.disconnect(id, ReasonCode::QUOTA_EXCEEDED);
                    return;
                }
                // It reads and does not acknowledge, and publishers wait for its room.
                if let Some(session) = conn.session.and_then(|key| self.sessions.get(key))
                    && let Kind::Clean { pending_bytes, taken_us, .. } = &session.kind
                    && *pending_bytes >= self.limits.pending_bytes
                    && now.since(*taken_us) >= stalled_us
                {
                    self.disconnect(id, ReasonCode::QUOTA_EXCEEDED);
                    return;
                }
            }
        }
        let next = if conn.keep_alive_us > 0 {
            (conn.heard_us + conn.keep_alive_us * 3 / 2).min(now.mono_us + stalled_us)
        } else {
            now.mono_us + stalled_us
        };
        self.arm_conn(id, next.max(now.mono_us + 1));
    }

    fn session_timer(&mut self, key: SessionKey) {
        let now_us = self.now.mono_us;
        let Some(session) = self.sessions.get_mut(key) else { return };
        if session.timer_us == 0 || now_us < session.timer_us {
            return;
        }
        session.timer_us = 0;
        if session.expires_us != 0 && session.expires_us <= now_us {
            self.drop_session(key);
            return;
        }
        let late = session.late_will.take_if(|late| late.due_us <= now_us);
        self.arm_session(key);
        if let Some(LateWill { will, publisher, .. }) = late {
            self.publish_will(&publisher, &will);
        }
    }

    // --- packets ---

    fn packet(&mut self, id: ConnId, packet: Packet<'_>) {
        match packet {
            Packet::Publish(publish) => self.publish(id, &publish),
            Packet::Puback(ack) => self.puback(id, ack.packet_id),
            Packet::Pubrec(ack) => self.pubrec(id, ack.packet_id, ack.reason),
            Packet::Pubrel(ack) => self.pubrel(id, ack.packet_id),
            Packet::Pubcomp(ack) => self.pubcomp(id, ack.packet_id),
            Packet::Subscribe(subscribe) => self.subscribe(id, &subscribe),
            Packet::Unsubscribe(unsubscribe) => self.unsubscribe(id, &unsubscribe),
            Packet::Pingreq => self.write(id, |out, _| out.extend_from_slice(&PINGRESP)),
            Packet::Connect(connect) => self.connect(id, &connect),
            Packet::Disconnect(disconnect) => self.client_disconnects(id, &disconnect),
            // No CONNECT that named a method was accepted [MQTT-4.12.0-6].
            Packet::Auth(_) => self.protocol_error(id),
            // Packets that only a server sends.
            Packet::Connack(_) | Packet::Suback(_) | Packet::Unsuback(_) | Packet::Pingresp => {
                self.protocol_error(id);
            }
        }
    }

    fn puback(&mut self, id: ConnId, packet_id: u16) {
        self.outbound_over(id, packet_id, OutboundState::Puback);
    }

    fn pubrec(&mut self, id: ConnId, packet_id: u16, reason: ReasonCode) {
        let Some(key) = self.session_of(id) else { return };
        let Some(session) = self.sessions.get_mut(key) else { return };
        let state = session.inflight.get_mut(packet_id).map(|o| (o.state, o.seq));
        match state {
            Some((OutboundState::Pubrec, seq)) => {
                if reason.is_error() {
                    // [MQTT-4.3.3-5]: the packet id is free, nothing more is sent.
                    self.outbound_over(id, packet_id, OutboundState::Pubrec);
                    return;
                }
                let store_id = session.store_id();
                if let Some(outbound) = session.inflight.get_mut(packet_id) {
                    outbound.state =
                        if store_id.is_some() { OutboundState::Release } else { OutboundState::Pubcomp };
                    outbound.seq = 0;
                }
                let Some(session) = store_id else {
                    self.write_pubrel(id, packet_id);
                    return;
                };
                // The receiver has taken responsibility: the row leaves the store with this release.
                let record = record::Inflight::Released.to_bytes();
                self.op(Op::InflightPut { session, side: Side::Outbound, packet_id, record }, true);
                self.wait(Wait::Pubrel(key, packet_id));
                self.answer_row(key, seq);
            }
            Some((OutboundState::Release, _)) => {}
            Some((OutboundState::Pubcomp, _)) => self.write_pubrel(id, packet_id),
            _ => self.write(id, |out, v| {
                encode_ack(out, v, AckType::Pubrel, packet_id, ReasonCode::PACKET_IDENTIFIER_NOT_FOUND);
            }),
        }
    }

    fn write_pubrel(&mut self, id: ConnId, packet_id: u16) {
        self.write(id, |out, v| encode_ack(out, v, AckType::Pubrel, packet_id, ReasonCode::SUCCESS));
    }

    /// Packet id and message of a QoS 2 delivery are durable: it may be sent.
    fn outbound_committed(&mut self, key: SessionKey, packet_id: u16) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let Some(outbound) = session.inflight.get_mut(packet_id).filter(|o| o.state == OutboundState::Commit)
        else {
            return;
        };
        outbound.state = OutboundState::Pubrec;
        let seq = outbound.seq;
        let open = session.conn.filter(|id| self.conns.get(*id).is_some_and(|c| c.phase == Phase::Open));
        let row = match &session.kind {
            Kind::Persistent { queue, .. } => queue.get(seq).map(|row| Arc::clone(&row.delivery)),
            Kind::Clean { .. } => None,
        };
        match (open, row) {
            (Some(id), Some(delivery)) => {
                self.delivering().send_row(key, id, packet_id, seq, &delivery, false)
            }
            // Its client has gone: it goes out when the client is back and the queue hands its row out again.
            _ => session.inflight.park_one(packet_id),
        }
    }

    /// The release of a QoS 2 delivery is durable.
    fn release_committed(&mut self, key: SessionKey, packet_id: u16) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let Some(outbound) =
            session.inflight.get_mut(packet_id).filter(|o| o.state == OutboundState::Release)
        else {
            return;
        };
        outbound.state = OutboundState::Pubcomp;
        let open = session.conn.filter(|id| self.conns.get(*id).is_some_and(|c| c.phase == Phase::Open));
        if let Some(id) = open {
            self.write_pubrel(id, packet_id);
        }
    }

    fn pubcomp(&mut self, id: ConnId, packet_id: u16) {
        self.outbound_over(id, packet_id, OutboundState::Pubcomp);
    }

    fn outbound_over(&mut self, id: ConnId, packet_id: u16, expected: OutboundState) {
        let Some(key) = self.session_of(id) else { return };
        let Some(session) = self.sessions.get_mut(key) else { return };
        let Some(outbound) = session.inflight.get_mut(packet_id).filter(|o| o.state == expected).copied()
        else {
            return;
        };
        session.inflight.finish(packet_id);
        if expected != OutboundState::Puback
            && let Some(session) = session.store_id()
        {
            // Nobody waits: after a kill one more PUBREL goes out.
            self.op(Op::InflightDelete { session, side: Side::Outbound, packet_id }, false);
        }
        if expected != OutboundState::Pubcomp {
            self.answer_row(key, outbound.seq);
        }
        self.pump(key);
    }

    fn answer_row(&mut self, key: SessionKey, seq: u64) {
        if let Some(Session { kind: Kind::Persistent { queue, .. }, .. }) = self.sessions.get_mut(key) {
            queue.answer(seq, Outcome::Delivered, self.now, &mut self.ended);
            self.touch(key);
            self.settle();
        }
    }

    fn client_disconnects(&mut self, id: ConnId, disconnect: &Disconnect<'_>) {
        if let Some(key) = self.session_of(id)
            && let Some(session) = self.sessions.get_mut(key)
        {
            if let Some(expiry) = disconnect.properties.session_expiry_interval() {
                if session.expiry_s == 0 && expiry != 0 {
                    // [MQTT-3.14.2-2]: a session that was to end with its connection cannot be kept now.
                    self.protocol_error(id);
                    return;
                }
                session.expiry_s = expiry.min(self.limits.session_expiry_max_s);
            }
            if disconnect.reason != ReasonCode::DISCONNECT_WITH_WILL {
                // [MQTT-3.14.4-3].
                session.will = None;
            }
        }
        self.close(id);
    }

    // --- endings ---

    pub(crate) fn session_of(&self, id: ConnId) -> Option<SessionKey> {
        self.conns.get(id)?.session
    }

    fn refuse_bytes(&mut self, id: ConnId, error: &DecodeError, bytes: &[u8]) {
        self.stats.protocol_errors += 1;
        let Some(conn) = self.conns.get(id) else { return };
        if conn.phase != Phase::AwaitConnect {
            self.disconnect(id, error.reason());
            return;
        }
        // A CONNACK only where the bytes were a CONNECT of sorts: garbage gets no answer.
        let version = match error {
            DecodeError::UnsupportedVersion(level) if *level > 5 => Some(Version::V5),
            DecodeError::UnsupportedVersion(_) => Some(Version::V3_1_1),
            _ => {
                // What follows the frame says nothing about it.
                let frame = frame_len(bytes, usize::MAX).ok().flatten().unwrap_or(usize::MAX);
                connect_version(&bytes[..frame.min(bytes.len())])
            }
        };
        if let Some(version) = version {
            let reason = error.reason();
            self.write(id, |out, _| crate::connect::write_refusal(out, version, reason));
        }
        self.close(id);
    }

    pub(crate) fn protocol_error(&mut self, id: ConnId) {
        self.stats.protocol_errors += 1;
        self.disconnect(id, ReasonCode::PROTOCOL_ERROR);
    }

    /// Tells the client why, where its version can be told, and closes.
    pub(crate) fn disconnect(&mut self, id: ConnId, reason: ReasonCode) {
        if let Some(conn) = self.conns.get(id)
            && conn.version == Version::V5
            && matches!(conn.phase, Phase::Open)
        {
            self.write_disconnect(id, reason);
        }
        self.close(id);
    }

    fn write_disconnect(&mut self, id: ConnId, reason: ReasonCode) {
        self.write(id, |out, version| {
            let packet = Packet::Disconnect(Disconnect { reason, properties: Properties::EMPTY });
            // Only topics and properties can be too long to encode.
            let _ = packet.encode(version, out);
        });
    }

    /// Flushes and closes: the connection is as good as gone for its session.
    pub(crate) fn close(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.phase != Phase::Closing {
            conn.phase = Phase::Closing;
            self.commands.push(Command::Close(id));
        }
        self.detach(id, true);
    }

    /// Parts a connection from its session, which ends or waits.
    pub(crate) fn detach(&mut self, id: ConnId, publish_will: bool) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.waiting.clear();
        let publisher = Arc::clone(&conn.publisher);
        let Some(key) = conn.session.take() else { return };
        let Some(session) = self.sessions.get_mut(key) else { return };
        if session.conn != Some(id) {
            return;
        }
        session.conn = None;
        session.backlog = VecDeque::new();
        let mut will = session.will.take().filter(|_| publish_will);
        let expiry_s = session.expiry_s;
        if expiry_s == 0 || !session.is_persistent() {
            self.drop_session(key);
        } else {
            if expiry_s != u32::MAX {
                session.expires_us = self.now.mono_us + u64::from(expiry_s) * 1_000_000;
            }
            if let Some(will) = will.take_if(|will| will.delay_s > 0) {
                let due_us = self.now.mono_us + u64::from(will.delay_s) * 1_000_000;
                session.late_will = Some(LateWill { will, publisher: Arc::clone(&publisher), due_us });
            }
            session.inflight.park();
            if let Kind::Persistent { queue, .. } = &mut session.kind {
                queue.set_up(false, self.now);
                queue.reset();
            }
            self.arm_session(key);
            self.touch(key);
            if let Some(op) = self.session_op(key, Some(self.now.wall_ms)) {
                self.op(op, false);
            }
        }
        if let Some(will) = will {
            self.publish_will(&publisher, &will);
        }
    }

    /// Forgets a session: its subscriptions, its queue, its packet ids.
    pub(crate) fn drop_session(&mut self, key: SessionKey) {
        let Some(session) = self.sessions.remove(key) else { return };
        self.by_client.remove(&session.client_id);
        for filter in session.subscriptions.keys() {
            self.trie.remove(filter, |d| matches!(d, Destination::Session(k, _) if *k == key));
        }
        match session.kind {
            Kind::Clean { pending, .. } => {
                // A session that ends with its connection: nothing more is owed to it.
                self.ended
                    .extend(pending.into_iter().filter_map(|p| p.end).map(|end| (end, Outcome::Delivered)));
                self.settle();
            }
            Kind::Persistent { id, queue } => {
                self.by_store_id.remove(&id);
                // The subscriber is gone by its own wish or by its expiry: what it had not taken is nobody's.
                queue.close(ferrule_outbox::Reason::Removed, &mut self.ended);
                self.op(Op::SessionDelete { session: id }, true);
                self.settle();
            }
        }
        if let Some(LateWill { will, publisher, .. }) = session.late_will {
            self.publish_will(&publisher, &will);
        }
    }

    /// Appends to a connection's output.
    pub(crate) fn write(&mut self, id: ConnId, encode: impl FnOnce(&mut Vec<u8>, Version)) {
        // Nothing follows the last packet.
        if let Some(conn) = self.conns.get_mut(id).filter(|c| c.phase != Phase::Closing) {
            if conn.out.is_empty() {
                conn.drained_us = self.now.mono_us;
            }
            encode(&mut conn.out, conn.version);
            if !conn.dirty {
                conn.dirty = true;
                self.dirty.push(id);
            }
        }
    }

    pub(crate) fn session_op(&self, key: SessionKey, ended_wall_ms: Option<i64>) -> Option<Op> {
        let session = self.sessions.get(key)?;
        let record = record::Session {
            client_id: (&*session.client_id).into(),
            username: session.username.as_deref().map(Into::into),
            expiry_s: session.expiry_s,
            ended_wall_ms,
        };
        Some(Op::SessionPut { session: session.store_id()?, record: record.to_bytes() })
    }

    /// Quality of service from its number in a record; damaged numbers count as 0.
    pub(crate) fn qos(number: u8) -> QoS {
        QoS::try_from(number).unwrap_or(QoS::AtMostOnce)
    }
}

/// Bytes on their way to the store beyond which nothing new is admitted: 64 MiB, a second of what a slow disk takes.
const PENDING_BYTES: usize = 64 << 20;

/// While the store admits nothing it is asked again this often.
const ADMISSION_US: u64 = 250_000;

/// A publisher that sent nothing for this long has sent all that its window admits: 1 ms is far above a turn and far
/// below the 50 ms that a row waits anyway.
const QUIET_US: u64 = 1_000;

/// What nobody waits for is written with the next commit, or after this: 1 s (contract 2).
const LAZY_US: u64 = 1_000_000;
