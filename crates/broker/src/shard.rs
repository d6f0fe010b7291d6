//! The shard's state, and what its worker calls.

use crate::config::{self, FLOOR, GROWTH, Limits, SLOWEST};
use crate::delayed::Delayed;
use crate::ending::Why;
use crate::events::{EventKind, Events};
use crate::exclusive::Exclusive;
use crate::features::Features;
use crate::hook::{Access, Everything, Gate, Hook, Publisher, Role};
use crate::peers::{Owner, Peers, Place};
use crate::pool::Pool;
use crate::publish::LOCAL_PER_TURN;
use crate::retained::RetainedIndex;
use crate::retaining::Retaining;
use crate::routes::{self, Routes};
use crate::session::{Conn, Kind, LateWill, Phase, Received, Session, Will, session_id};
use crate::share::Shares;
use crate::slots::Slots;
use crate::steady::Steady;
use crate::turn::Batch;
use crate::wheel::Wheel;
use crate::wills::Wills;
use crate::{ConnId, SessionKey, marker};
use ferrule_mqtt::{DecodeError, PINGRESP, Packet, QoS, ReasonCode, Version, decode, topic};
use ferrule_outbox::{End, Outcome, Policy, Queue, Receipts};
use ferrule_store::record::{self, Record, Subscription};
use ferrule_store::{Now, Op, QueueId, Restored, SESSIONS, SessionId, Side, Store};
use foldhash::fast::FixedState;
use foldhash::{HashMap, HashMapExt, HashSet, HashSetExt};
use hashbrown::HashTable;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// Where a matching filter leads.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Destination {
    /// Whether it keeps messages beyond its connection.
    Session(SessionKey, Subscription, bool),
    Hook(u32),
    /// Another shard has subscribers: as it said when it told all that it had for this time ([`crate::telling`]).
    Peer(u16, u8),
    /// A group that shares a subscription.
    Share(u32),
}

impl Destination {
    pub(crate) fn hook_key(hook: u32) -> u64 {
        u64::from(hook)
    }

    /// Between those of hooks and of peers.
    pub(crate) fn share_key(group: u32) -> u64 {
        (1 << 30) + u64::from(group)
    }

    /// Below the ids of sessions, which have a generation, and above those of hooks, of which there are some thousands.
    pub(crate) fn peer_key(peer: u16) -> u64 {
        u64::from(u32::MAX - u32::from(peer))
    }
}

impl routes::Destination for Destination {
    fn key(&self) -> u64 {
        match self {
            Self::Session(key, ..) => key.to_bits(),
            Self::Hook(hook) => Self::hook_key(*hook),
            Self::Peer(peer, _) => Self::peer_key(*peer),
            Self::Share(group) => Self::share_key(*group),
        }
    }

    fn is_local(&self) -> bool {
        matches!(self, Self::Session(..))
    }
}

/// What the worker has to do for the shard beside writing output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Write what can be written now, close the socket, call [`Shard::closed`].
    Close(ConnId),
    /// Bytes that were left over may be offered again, and reading goes on.
    Resume(ConnId),
    /// The connection belongs to another shard, which gets the socket and the bytes that were left over; here call
    /// [`Shard::closed`].
    Move(ConnId, u16),
}

/// Counts since the shard started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Connections accepted.
    pub connected: u64,
    /// CONNECTs refused, for whatever reason.
    pub refused: u64,
    /// Connections closed at once, since there were too many.
    pub connections_refused: u64,
    /// CONNECTs refused while the process had too little memory.
    pub overload_refused: u64,
    /// CONNECTs refused whose session would have been one too many.
    pub sessions_refused: u64,
    /// Connections closed that did not say CONNECT in time.
    pub connect_timeouts: u64,
    /// Connections closed that said nothing for one and a half keep alives.
    pub keep_alive_timeouts: u64,
    /// Connections closed whose packet had begun and did not grow.
    pub packet_timeouts: u64,
    /// Connections closed for a packet larger than its bound.
    pub oversized: u64,
    /// Connections closed for more unacknowledged publishes than their window.
    pub window_exceeded: u64,
    /// Connections closed that took too little of their output while it was long, or while publishers waited for their room.
    pub slow_closed: u64,
    /// Connections closed whose half-received packet found no room beside all that waits.
    pub pool_closed: u64,
    /// Publishes, subscriptions and wills whose topic had too many levels or bytes.
    pub topics_refused: u64,
    /// Exclusive subscriptions that another client has.
    pub exclusive_refused: u64,
    /// Exclusive subscriptions that were taken from their clients: somebody else had them, in a partition.
    pub exclusive_lost: u64,
    /// Subscriptions beyond a client's bound, or beyond that of all.
    pub subscriptions_refused: u64,
    /// Times that a client was not heard, since it had published more than its rate.
    pub throttled: u64,
    /// Publishes that were not acknowledged at once, since a receiver had no room.
    pub held_back: u64,
    /// Batches of gateways received; their messages are among the publishes received.
    pub batches: u64,
    /// Batches that could not be read: their gateways send the messages one at a time.
    pub batches_refused: u64,
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
    /// Publishes and wills whose payload is not the UTF-8 text that it was said to be.
    pub payloads_refused: u64,
    /// Publishes and subscriptions that were not allowed.
    pub denied: u64,
    /// QoS 0 messages dropped for consumers that are too slow.
    pub dropped_slow: u64,
    /// QoS 0 messages dropped since there was no room beside all that waits for others.
    pub dropped_pool: u64,
    /// Messages dropped since a session's queue had as many as it may.
    pub dropped_full: u64,
    /// Messages dropped since a session's queue had as many bytes as it may.
    pub dropped_full_bytes: u64,
    /// Messages larger than their receiver takes.
    pub dropped_too_large: u64,
    /// Messages that expired in a queue.
    pub dropped_expired: u64,
    /// Messages of shared subscriptions that a member left behind, sent to another.
    pub shared_again: u64,
    /// Messages of shared subscriptions that no member was left for.
    pub dropped_shared: u64,
    /// Of QoS 0, to subscribers of a node that was out of reach.
    pub dropped_partitioned: u64,
    /// Of QoS 0, to subscribers of a node to which too much was under way.
    pub dropped_link: u64,
    /// Publishes that wait for their time.
    pub delayed: u64,
    /// Those whose time has come.
    pub delayed_published: u64,
    /// Those that a bound refused.
    pub delayed_refused: u64,
    /// Retained messages that a bound refused.
    pub retained_refused: u64,
    /// Retained messages of QoS 0 that found the link to another node full, and were sent when it had room.
    pub retained_behind: u64,
    /// Wills of other nodes' connections, and of own ones that ended while the node might not acknowledge, that were too many to keep.
    pub wills_not_kept: u64,
    /// Wills of connections of other nodes, which are gone, that were published here.
    pub wills_inherited: u64,
    /// Retained messages that another node may have missed and was sent.
    pub retained_caught_up: u64,
    /// Connections closed for a broken rule of the protocol.
    pub protocol_errors: u64,
    /// Publishes that passed too many rules.
    pub loops: u64,
    /// Times that a client was not heard, since it did not read what it had asked for.
    pub blocked: u64,
    /// Times that a client was not heard, since this node might not acknowledge what it publishes.
    pub parked: u64,
    /// Publishes that were routed and not acknowledged, since this node might not.
    pub withdrawn: u64,
    /// Connections closed since too much waited for other nodes to confirm it.
    pub late_closed: u64,
    /// Connections closed since their client connected to another node.
    pub taken_elsewhere: u64,
    /// Connections closed since the node is drained.
    pub moved_off: u64,
    /// Publishes sent to other shards, each counted once a shard.
    pub forwarded_out: u64,
    /// Publishes that came from other shards.
    pub forwarded_in: u64,
}

/// A shard. See the crate's header for how it is driven.
pub struct Shard<H, S> {
    pub(crate) limits: Limits,
    pub(crate) rows: config::Rows,
    pub(crate) features: Arc<Features>,
    pub(crate) pool: Pool,
    /// Of `limits.filter_bytes`.
    pub(crate) filter_bytes: usize,
    pub(crate) policy: Policy,
    pub(crate) hook: H,
    pub(crate) events: Events,
    pub(crate) store: S,
    pub(crate) gate: Box<dyn Gate>,
    pub(crate) conns: Slots<marker::Conn, Conn>,
    pub(crate) sessions: Slots<marker::Session, Session>,
    /// Sessions by client id.
    by_client: HashTable<SessionKey>,
    pub(crate) by_store_id: HashMap<SessionId, SessionKey>,
    pub(crate) routes: Routes<Destination>,
    pub(crate) shares: Shares,
    pub(crate) peers: Peers,
    pub(crate) standing: crate::standing::Standing,
    pub(crate) presence: crate::presence::Presence,
    pub(crate) parting: crate::drain::Parting,
    pub(crate) owners: crate::owners::Owners,
    pub(crate) retained: RetainedIndex,
    /// The last values of `$SYS` topics: never stored, and nobody's but this node's.
    pub(crate) sys: RetainedIndex,
    pub(crate) delayed: Delayed,
    pub(crate) exclusive: Exclusive,
    pub(crate) retaining: Retaining,
    pub(crate) wills: Wills,
    pub(crate) receipts: Receipts<Owner>,
    pub(crate) wheel: Wheel<Timer>,
    pub(crate) dirty: Vec<ConnId>,
    pub(crate) buffers: Buffers,
    /// Connections whose publishes wait, and since when they bring nothing more.
    pub(crate) waiters: Vec<(ConnId, u64)>,
    /// When the last turn ended.
    pub(crate) last_turn_us: u64,
    /// When the first of `waiters` has been quiet for long enough.
    pub(crate) quiet_at_us: u64,
    pub(crate) commands: Vec<Command>,
    /// Connections that a packet is due to that is larger than they take.
    pub(crate) speechless: Vec<ConnId>,
    pub(crate) touched: Vec<SessionKey>,
    pub(crate) batch: Batch,
    pub(crate) ended: Vec<(End, Outcome)>,
    /// Publishes of rules that this turn still routes.
    pub(crate) local_left: usize,
    pub(crate) smoothed_commit: Duration,
    pub(crate) next_session: u64,
    pub(crate) next_body: u64,
    pub(crate) next_routed: u64,
    pub(crate) scratch: crate::publish::Scratch,
    /// Its buffers are made with the first batch.
    pub(crate) batches: ferrule_batch::Decoder,
    pub(crate) batch_text: String,
    pub(crate) hasher: FixedState,
    pub(crate) random: u64,
    /// Of connections that are not admitted yet: they share one.
    everything: Arc<dyn Access>,
    pub(crate) now: Now,
    /// By what things run out.
    pub(crate) steady: Steady,
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
    /// What is switched on.
    pub features: Arc<Features>,
    /// Of sessions' queues.
    pub policy: Policy,
    /// Seeds hashes and assigned client ids; random.
    pub seed: u64,
    /// Which of how many shards.
    pub place: Place,
}

/// The longest fixed header and variable header up to the protocol level, MQTT 3.1's: what tells a CONNECT's version.
const CONNECT_HEAD: usize = 5 + 2 + 6 + 1;

/// `$SYS` topics and their bytes: a dozen times what a node publishes.
const SYS_TOPICS: usize = 1_000;
const SYS_BYTES: usize = 1 << 20;

/// Output buffers between a turn and the next: a connection has one of its own only while it has output.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    kept: Vec<Vec<u8>>,
    bytes: usize,
}

/// Buffers kept, by number and by bytes: what a busy turn uses. Large ones above all are worth it: one that grows from nothing to
/// the burst of a connection is copied and paged in anew each time.
const BUFFERS: usize = 1_024;
const BUFFERS_BYTES: usize = 4 << 20;
/// The largest that is kept: what a turn writes to one connection.
const BUFFER_BYTES: usize = 256 << 10;

impl Buffers {
    /// Readies a connection's output for a packet.
    pub(crate) fn ready(&mut self, out: &mut Vec<u8>) {
        if out.capacity() == 0
            && let Some(buffer) = self.kept.pop()
        {
            self.bytes -= buffer.capacity();
            *out = buffer;
        }
    }

    fn give_back(&mut self, out: &mut Vec<u8>) {
        let mut buffer = std::mem::take(out);
        let bytes = buffer.capacity();
        if self.kept.len() < BUFFERS && bytes <= BUFFER_BYTES && self.bytes + bytes <= BUFFERS_BYTES {
            buffer.clear();
            self.bytes += bytes;
            self.kept.push(buffer);
        }
    }
}

impl<H: Hook, S: Store> Shard<H, S> {
    /// A shard with what the store remembers. Rows of queues that are not sessions' are the hook's affair.
    pub fn new(parts: Parts<H, S>, restored: &Restored, now: Now) -> Self {
        let Parts { hook, store, gate, mut limits, features, policy, seed, place } = parts;
        if limits.clients.is_empty() {
            limits.clients = [config::ClientLimits::default()].into();
        }
        let hasher = FixedState::with_seed(seed);
        let mut shard = Self {
            pool: Pool::new(limits.buffer_bytes),
            filter_bytes: 0,
            policy,
            hook,
            store,
            gate,
            conns: Slots::new(),
            sessions: Slots::new(),
            by_client: HashTable::new(),
            by_store_id: HashMap::new(),
            routes: Routes::new(hasher.clone()),
            shares: Shares::new(),
            peers: Peers::new(place),
            standing: crate::standing::Standing::default(),
            presence: crate::presence::Presence::default(),
            parting: crate::drain::Parting::default(),
            owners: crate::owners::Owners::default(),
            retained: RetainedIndex::new(limits.retained_messages, limits.retained_bytes),
            sys: RetainedIndex::new(SYS_TOPICS, SYS_BYTES),
            rows: config::Rows::new(&limits),
            limits,
            features,
            delayed: Delayed::new(place, &restored.queues),
            exclusive: Exclusive::new(),
            retaining: Retaining::default(),
            wills: Wills::default(),
            receipts: Receipts::new(),
            wheel: Wheel::new(),
            dirty: Vec::new(),
            buffers: Buffers::default(),
            waiters: Vec::new(),
            last_turn_us: 0,
            quiet_at_us: u64::MAX,
            commands: Vec::new(),
            speechless: Vec::new(),
            touched: Vec::new(),
            batch: Batch::default(),
            ended: Vec::new(),
            local_left: LOCAL_PER_TURN,
            smoothed_commit: Duration::ZERO,
            // Numbers of the store are drawn by every shard: each has those of its residue.
            next_session: restored.first_session + u64::from(place.index),
            next_body: restored.last_body,
            next_routed: 1,
            scratch: crate::publish::Scratch::default(),
            batches: ferrule_batch::Decoder::new(),
            batch_text: String::new(),
            hasher,
            random: seed ^ u64::from(place.index),
            everything: Arc::new(Everything),
            now,
            steady: Steady::new(restored, now),
            events: Events::default(),
            stats: Stats::default(),
            failing: None,
            admitted: true,
        };
        shard.restore(restored);
        shard.advertise();
        shard
    }

    /// The next number after `last` that is this shard's to draw.
    pub(crate) fn draw(place: Place, last: &mut u64) -> u64 {
        let (of, index) = (u64::from(place.of), u64::from(place.index));
        *last = (*last / of + 1) * of + index;
        *last
    }

    /// Sessions with their subscriptions become routable, retained messages findable. A record that cannot be
    /// read is left out and left where it is.
    fn restore(&mut self, restored: &Restored) {
        self.restore_sessions(restored, false);
        self.delete_orphans(restored);
        for (topic, stamp, record) in &restored.retained {
            self.restore_retained(topic, *stamp, record);
        }
    }

    /// Sessions of this shard's clients become routable. `tell`: peers are told of them one by one, and not of all at once.
    pub(crate) fn restore_sessions(&mut self, restored: &Restored, tell: bool) {
        // Nobody knows where its client comes in: nothing that any listener would keep is dropped until it does.
        let (clients, roomy) =
            (&self.limits.clients, |c: &config::ClientLimits| (c.queue_messages, c.queue_bytes));
        let row = (0..clients.len()).max_by_key(|at| roomy(&clients[*at])).unwrap_or(0) as u16;
        let queues: HashMap<QueueId, _> = restored.queues.iter().map(|q| (q.queue, *q)).collect();
        for (id, bytes) in &restored.sessions {
            let Ok(record) = record::Session::from_bytes(bytes) else { continue };
            if self.belongs_elsewhere(&record.client_id).is_some() {
                continue;
            }
            let queue_id = QueueId::session(*id);
            let mut queue = Queue::new(queue_id, self.policy, queues.get(&queue_id).copied());
            record.handed_to.into_iter().for_each(|seq| queue.set_handed_to(seq));
            let client_id: Arc<str> = record.client_id.into();
            // Connected when the process died: its life begins to run out now.
            let away_ms =
                record.ended_wall_ms.map_or(0, |ended| self.steady.ms(self.now).saturating_sub(ended).max(0));
            let life_us = u64::from(record.expiry_s) * 1_000_000;
            let mut left_us = life_us.saturating_sub(away_ms as u64 * 1_000);
            if left_us == 0 && record.will.is_some() {
                // Its end is when its will is published: by its timer, when all others are there.
                left_us = 1;
            }
            if left_us == 0 {
                // It ended with its connection, or since.
                self.op(Op::SessionDelete { session: *id }, false);
                continue;
            }
            let kind = Kind::Persistent { queue: Box::new(queue) };
            let username: Option<Arc<str>> = record.username.map(Into::into);
            let mut session = Session::new(client_id, username, kind, record.expiry_s);
            session.will_stored = record.will.is_some();
            session.late_will = record.will.map(|will| Box::new(self.restored_will(&session, will)));
            session.limits = row;
            if record.expiry_s != u32::MAX {
                // The monotonic clock may be younger than the session: its life is what is left of it.
                session.expires_us = self.now.mono_us + left_us;
            }
            let key = self.sessions.insert(session);
            self.arm_session(key);
            self.add_client(key);
            self.by_store_id.insert(*id, key);
        }
        let own = restored.epochs.iter().filter(|(id, _)| self.by_store_id.contains_key(id));
        self.owners.epochs.extend(own.copied());
        for (id, filter, bytes) in &restored.subscriptions {
            let (Some(&key), Ok(subscription)) = (self.by_store_id.get(id), Subscription::from_bytes(bytes))
            else {
                continue;
            };
            if let Some(session) = self.sessions.get_mut(key) {
                let filter: Arc<str> = filter.as_ref().into();
                session.subscribe(Arc::clone(&filter), subscription);
                self.filter_bytes += config::FILTER + filter.len();
                self.add_route(key, &filter, subscription, tell);
                if topic::exclusive(&filter).is_some()
                    && let Some(session) = self.sessions.get(key)
                {
                    let client_id = Arc::clone(&session.client_id);
                    self.claim_again(&filter, &client_id);
                }
            }
        }
        for (id, side, packet_id, bytes) in &restored.inflight {
            let Some(session) = self.by_store_id.get(id).and_then(|key| self.sessions.get_mut(*key)) else {
                continue;
            };
            match (side, record::Inflight::from_bytes(bytes)) {
                (Side::Inbound, Ok(record::Inflight::Received)) => {
                    let answered = Received::Answered(ReasonCode::SUCCESS, None);
                    session.received.make().insert(*packet_id, answered);
                }
                (Side::Outbound, Ok(record::Inflight::Sent(seq))) => {
                    session.inflight.restore(*packet_id, seq)
                }
                (Side::Outbound, Ok(record::Inflight::Released)) => session.inflight.restore(*packet_id, 0),
                _ => {}
            }
        }
    }

    /// A will that the store kept: what was its connection has ended, at the latest now. Never later than its whole delay from
    /// now, whatever the clock says.
    fn restored_will(&self, session: &Session, will: record::Will) -> LateWill {
        let whole_ms = u64::from(will.delay_s) * 1_000;
        let left_ms = will
            .due_wall_ms
            .map_or(whole_ms, |due| due.saturating_sub(self.steady.ms(self.now)).max(0) as u64);
        let publisher = Arc::new(Publisher {
            client_id: Arc::clone(&session.client_id),
            username: session.username.clone(),
            host: None,
            role: Role::Device,
        });
        // Timers come up in a turn: by then the shards know each other's routes ([`crate::introduce`]).
        let due_us = self.now.mono_us + left_ms.min(whole_ms) * 1_000;
        LateWill { will: Will::from_record(will), publisher, due_us }
    }

    /// What the store holds of sessions that it does not know must not become another session's: it goes, and no id in use is
    /// drawn again.
    fn delete_orphans(&mut self, restored: &Restored) {
        let own = restored.first_session..restored.first_session + SESSIONS;
        let known: HashSet<SessionId> = restored.sessions.iter().map(|(id, _)| *id).collect();
        let subscriptions = restored.subscriptions.iter().map(|(id, ..)| *id);
        let queues = restored.queues.iter().filter_map(|q| q.queue.as_session());
        let used = restored.inflight.iter().map(|(id, ..)| *id).chain(subscriptions).chain(queues);
        let orphans: HashSet<SessionId> = used.filter(|id| !known.contains(id)).collect();
        let last = known.iter().chain(&orphans).map(|id| id.0).filter(|id| own.contains(id)).max();
        self.next_session = self.next_session.max(last.unwrap_or_default()).max(restored.last_session);
        for session in orphans {
            if self.peers.place.index == 0 {
                self.op(Op::SessionDelete { session }, false);
            }
        }
    }

    /// The hook, for whoever made it.
    pub fn hook(&mut self) -> &mut H {
        &mut self.hook
    }

    /// Makes `filters` lead to a hook. A hook has each filter once.
    pub fn add_hook_filter(&mut self, filter: &str, hook: u32) {
        self.routes.insert(&filter.into(), Destination::Hook(hook));
    }

    /// Ends that.
    pub fn remove_hook_filter(&mut self, filter: &str, hook: u32) {
        self.routes.remove(filter, Destination::hook_key(hook));
    }

    /// Events that were not told, since there were too many at once.
    pub fn events_dropped(&self) -> u64 {
        self.events.dropped
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
            self.routes.len(),
            self.retained.len(),
            self.receipts.open_count(),
            self.receipts.lost_ends() as usize,
        ]
    }

    /// Messages that wait for their time.
    pub fn delayed_count(&self) -> usize {
        self.delayed.len()
    }

    /// What the store last said of a failure that goes on.
    pub fn store_failure(&self) -> Option<&str> {
        self.failing.as_deref()
    }

    // --- the rim's side ---

    /// A connection came. None when there are too many: close it.
    pub fn open(&mut self, peer: IpAddr, listener: u16, now: Now) -> Option<ConnId> {
        self.now = now;
        if self.conns.len() >= self.limits.connections {
            self.stats.connections_refused += 1;
            return None;
        }
        let access = Arc::clone(&self.everything);
        let row = self.rows.row(listener);
        let id = self.conns.insert(Conn::new(peer, row, access, now.mono_us));
        let timeout = config::client(&self.limits.clients, row).connect_timeout;
        self.arm_conn(id, now.mono_us + timeout.as_micros() as u64);
        Some(id)
    }

    /// Takes packets from the front of `buf` and returns how many bytes it took. What is left is an incomplete packet, or
    /// the connection is held ([`Shard::is_held`]); offer it again, longer or after [`Command::Resume`].
    pub fn receive(&mut self, id: ConnId, buf: &[u8], now: Now) -> usize {
        self.now = now;
        let mut at = 0;
        if self.conns.get(id).is_some_and(Conn::is_claiming) {
            return self.keep(id, at, buf, false);
        }
        loop {
            let Some(conn) = self.conns.get_mut(id) else { return buf.len() };
            let limits = config::client(&self.limits.clients, conn.limits);
            let (version, packet_bytes) = match conn.phase {
                Phase::Closing => return buf.len(),
                Phase::AwaitConnect => (None, limits.connect_bytes.min(limits.packet_bytes)),
                Phase::AwaitAuth => (Some(conn.version), limits.connect_bytes.min(limits.packet_bytes)),
                Phase::Open if conn.throttled || conn.is_parked() => return self.keep(id, at, buf, false),
                Phase::Open if conn.out.len() >= 2 * self.pool.bound(limits.output_bytes) => {
                    self.block(id);
                    return self.keep(id, at, buf, false);
                }
                Phase::Open => (Some(conn.version), limits.packet_bytes),
                Phase::AwaitGate | Phase::AwaitStore | Phase::Moving => return self.keep(id, at, buf, false),
            };
            match decode(&buf[at..], version, packet_bytes) {
                Ok(None) => {
                    if at == buf.len() && conn.publishing.get().is_none_or(|p| p.kept == 0) {
                        return at;
                    }
                    return self.keep(id, at, buf, true);
                }
                Ok(Some((packet, size))) => {
                    if let Err(error) = packet.check_sender(ferrule_mqtt::Side::Client, conn.version) {
                        self.refuse_bytes(id, &error, &[]);
                        return buf.len();
                    }
                    if conn.phase == Phase::AwaitAuth
                        && !matches!(packet, Packet::Auth(_) | Packet::Disconnect(_))
                    {
                        // [MQTT-3.1.2-30]
                        self.protocol_error(id, "nothing but AUTH and DISCONNECT before the CONNACK");
                        return buf.len();
                    }
                    if version.is_some() {
                        if self.standing.parks()
                            && matches!(&packet, Packet::Publish(publish) if publish.qos > QoS::AtMostOnce)
                        {
                            self.park(id);
                            return self.keep(id, at, buf, false);
                        }
                        if self.owners.has_orphans()
                            && let Packet::Publish(publish) = &packet
                            && publish.qos > QoS::AtMostOnce
                            && self.owners.are_concerned(&mut self.routes, publish.topic)
                        {
                            self.park_for_owner(id);
                            return self.keep(id, at, buf, false);
                        }
                        let Some(conn) = self.conns.get_mut(id) else { return buf.len() };
                        let paced = matches!(
                            packet,
                            Packet::Publish(_) | Packet::Subscribe(_) | Packet::Unsubscribe(_)
                        );
                        if paced
                            && limits.is_paced()
                            && let Err(due_us) = conn.publishing.make().pace.take(limits, size, now.mono_us)
                        {
                            self.throttle(id, due_us);
                            return self.keep(id, at, buf, false);
                        }
                        conn.heard_us = now.mono_us;
                    } else if let Packet::Connect(connect) = &packet
                        && conn.publishing.get().is_none_or(|p| p.refusal.is_none())
                        && let Some(to) = self.belongs_elsewhere(connect.client_id)
                    {
                        self.move_to(id, to);
                        return self.keep(id, at, buf, false);
                    }
                    at += size;
                    let may_wait = matches!(packet, Packet::Subscribe(_));
                    self.packet(id, packet);
                    if may_wait && self.conns.get(id).is_some_and(Conn::is_claiming) {
                        return self.keep(id, at, buf, false);
                    }
                }
                // A few bytes more, and the answer is one that its sender knows.
                Err(DecodeError::TooLarge { .. }) if version.is_none() && buf.len() - at < CONNECT_HEAD => {
                    return self.keep(id, at, buf, true);
                }
                Err(error) => {
                    self.refuse_bytes(id, &error, &buf[at..]);
                    return buf.len();
                }
            }
        }
    }

    /// What the worker keeps of a connection's input from `at` on: a packet that has begun, or what came while the connection
    /// is held. Returns what `receive` does. A packet that is new or has grown has its time again.
    fn keep(&mut self, id: ConnId, at: usize, buf: &[u8], begun: bool) -> usize {
        let now_us = self.now.mono_us;
        let left = buf.len() - at;
        let Some(conn) = self.conns.get_mut(id) else { return at };
        if left == 0 && conn.publishing.get().is_none_or(|p| p.kept == 0) {
            return at;
        }
        let publishing = conn.publishing.make();
        let before = publishing.kept;
        let is_same = begun && at == 0 && publishing.begun_us != 0;
        if is_same && left < before + GROWTH {
            return at;
        }
        publishing.kept = left;
        publishing.begun_us = if begun && left > 0 { now_us } else { 0 };
        self.pool.change(before, left);
        if left > FLOOR && left > before && left > self.pool.free() {
            self.stats.pool_closed += 1;
            let text = "the server has no room for a packet of this size now";
            self.disconnect(id, Why::new(ReasonCode::QUOTA_EXCEEDED, text));
            return buf.len();
        }
        if conn.phase == Phase::Open && publishing.begun_us != 0 {
            if is_same {
                conn.heard_us = now_us;
            }
            let deadline_us = now_us + conn.packet_us(config::client(&self.limits.clients, conn.limits));
            self.arm_conn(id, deadline_us);
        }
        at
    }

    /// Whether the worker should stop reading from a connection for now.
    pub fn is_held(&self, id: ConnId) -> bool {
        let waits = |c: &Conn| matches!(c.phase, Phase::AwaitGate | Phase::AwaitStore | Phase::Moving);
        self.conns.get(id).is_some_and(|c| !c.is_heard() || waits(c))
    }

    pub(crate) fn refusal(&self, id: ConnId) -> Option<ReasonCode> {
        self.conns.get(id)?.publishing.get()?.refusal
    }

    /// It asks and does not read the answers, which alone go beyond the bound for deliveries: not heard until it has.
    fn block(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(id).filter(|c| !c.blocked) {
            conn.blocked = true;
            self.stats.blocked += 1;
        }
    }

    /// It has published more than its rate: not heard until that is paid for. Nothing is lost, and its keep alive does not run.
    fn throttle(&mut self, id: ConnId, due_us: u64) {
        self.stats.throttled += 1;
        if let Some(conn) = self.conns.get_mut(id) {
            conn.throttled = true;
            conn.publishing.make().pace.due_us = due_us;
            self.arm_conn(id, due_us);
        }
    }

    /// It is heard again.
    pub(crate) fn hear(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(id) {
            conn.heard_us = self.now.mono_us;
            self.commands.push(Command::Resume(id));
        }
    }

    /// The process has too little memory, or has enough again: meanwhile CONNECTs are refused (0x97; 3.x: 3), and clients get no
    /// more than the floor of the pool.
    pub fn set_overloaded(&mut self, overloaded: bool) {
        self.pool.overloaded = overloaded;
    }

    /// Other bounds, features and times of sessions' queues from now on. What a client was told stays until its next connection.
    pub fn configure(&mut self, limits: Limits, features: Arc<Features>, policy: Policy) {
        let mut used = HashSet::new();
        used.extend(self.conns.ids().into_iter().filter_map(|id| Some(self.conns.get(id)?.limits)));
        for key in self.sessions.ids() {
            let Some(session) = self.sessions.get_mut(key) else { continue };
            used.insert(session.limits);
            if let Kind::Persistent { queue } = &mut session.kind {
                queue.set_policy(policy);
            }
        }
        let clients = match limits.clients.is_empty() {
            true => Arc::clone(&self.limits.clients),
            false => self.rows.change(&self.limits.clients, &limits, |row| used.contains(&row)),
        };
        self.pool.set_bytes(limits.buffer_bytes);
        self.retained.set_bounds(limits.retained_messages, limits.retained_bytes);
        self.limits = Limits { clients, ..limits };
        self.features = features;
        self.policy = policy;
    }

    /// Bytes that clients have waiting in memory, of `Limits::buffer_bytes`.
    pub fn buffered(&self) -> usize {
        self.pool.used()
    }

    /// The connection's CONNECT is another shard's to answer.
    fn move_to(&mut self, id: ConnId, to: u16) {
        if let Some(conn) = self.conns.get_mut(id) {
            conn.phase = Phase::Moving;
            self.commands.push(Command::Move(id, to));
        }
    }

    /// Who is at the other end, as what lies under MQTT says, before any of its bytes are offered: the address that a proxy names, a
    /// name of its verified certificate.
    pub fn identify(&mut self, id: ConnId, peer: Option<IpAddr>, certificate: Option<Box<str>>) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.peer = peer.unwrap_or(conn.peer);
        if certificate.is_some() {
            conn.publishing.make().certificate = certificate;
        }
    }

    /// The connection's CONNECT will be answered with this reason, whatever it says: a bound of its listener.
    pub fn refuse_on_connect(&mut self, id: ConnId, reason: ReasonCode) {
        if let Some(conn) = self.conns.get_mut(id) {
            conn.publishing.make().refusal = Some(reason);
        }
    }

    /// What lies under MQTT broke: nothing more comes, and nothing can be said.
    pub fn abort(&mut self, id: ConnId, now: Now) {
        self.now = now;
        self.close(id);
    }

    /// Where a connection came from, to which listener, and the name of its certificate.
    pub fn describe(&self, id: ConnId) -> Option<(IpAddr, u16, Option<Box<str>>)> {
        let certificate = |conn: &Conn| conn.publishing.get()?.certificate.clone();
        self.conns.get(id).map(|conn| (conn.peer, self.rows.listener(conn.limits), certificate(conn)))
    }

    /// The socket ended, from either side.
    pub fn closed(&mut self, id: ConnId, now: Now) {
        self.now = now;
        let was_open = self.conns.get(id).is_some_and(|conn| conn.phase == Phase::Open);
        self.detach(id, was_open);
        if let Some(mut conn) = self.conns.remove(id) {
            self.buffers.give_back(&mut conn.out);
            conn.count_output(&mut self.pool);
            self.pool.change(conn.publishing.get().map_or(0, |p| p.kept), 0);
        }
    }

    /// Output of a connection: the worker removes from the front what it has written.
    pub fn output(&mut self, id: ConnId) -> Option<&mut Vec<u8>> {
        self.conns.get_mut(id).map(|c| &mut c.out)
    }

    /// Some or all of the output has been written.
    pub fn wrote(&mut self, id: ConnId, now: Now) {
        self.now = now;
        let Some(conn) = self.conns.get_mut(id) else { return };
        let limits = config::client(&self.limits.clients, conn.limits);
        let taken = conn.count_output(&mut self.pool);
        let bound = self.pool.bound(limits.output_bytes);
        if conn.out.len() <= bound / 2 {
            conn.is_drained(now.mono_us);
        } else {
            conn.took_output(taken, limits.output_bytes / SLOWEST, now.mono_us);
        }
        if conn.out.is_empty() {
            self.buffers.give_back(&mut conn.out);
        }
        if conn.out.len() >= bound {
            return;
        }
        let session = conn.session;
        if std::mem::take(&mut conn.blocked) {
            self.hear(id);
        }
        if let Some(key) = session {
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
        let why = Why::elsewhere(ReasonCode::SERVER_SHUTTING_DOWN, "");
        for id in self.conns.ids() {
            if self.conns.get(id).is_some_and(|c| c.phase == Phase::Open) {
                self.write_disconnect(id, &why);
            }
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
            Packet::Pingreq => {
                if self.events.wants(EventKind::ClientPing)
                    && let Some(key) = self.session_of(id)
                {
                    let event = self.client_event(Some(key), Some(id));
                    self.events.tell(EventKind::ClientPing, event);
                }
                self.write(id, |out, _| out.extend_from_slice(&PINGRESP));
            }
            Packet::Connect(connect) => self.connect(id, &connect),
            Packet::Disconnect(disconnect) => self.client_disconnects(id, &disconnect),
            Packet::Auth(auth) => self.auth(id, &auth),
            // Packets that only a server sends.
            Packet::Connack(_) | Packet::Suback(_) | Packet::Unsuback(_) | Packet::Pingresp => {
                self.protocol_error(id, "a packet that only a server sends");
            }
        }
    }

    /// Appends a packet to a connection's output; whether its receiver takes one as large.
    pub(crate) fn write(&mut self, id: ConnId, encode: impl FnOnce(&mut Vec<u8>, Version)) -> bool {
        // Nothing follows the last packet.
        if let Some(conn) = self.conns.get_mut(id).filter(|c| c.phase != Phase::Closing) {
            if conn.out.is_empty() {
                conn.is_drained(self.now.mono_us);
                self.buffers.ready(&mut conn.out);
            }
            let before = conn.out.len();
            encode(&mut conn.out, conn.version);
            if conn.out.len() - before > conn.peer_packet_bytes as usize {
                // Larger than its receiver takes [MQTT-3.1.2-24]: what cannot be said cannot be owed either.
                conn.out.truncate(before);
                self.speechless.push(id);
                return false;
            }
            conn.count_output(&mut self.pool);
            if !conn.dirty {
                conn.dirty = true;
                self.dirty.push(id);
            }
        }
        true
    }

    /// The session of a client id.
    pub(crate) fn by_client(&self, client_id: &str) -> Option<SessionKey> {
        let hash = self.hasher.hash_one(client_id);
        let is = |key: &SessionKey| self.sessions.get(*key).is_some_and(|s| *s.client_id == *client_id);
        self.by_client.find(hash, is).copied()
    }

    /// Makes a session findable by its client id, which no other has.
    pub(crate) fn add_client(&mut self, key: SessionKey) {
        let (hasher, sessions) = (&self.hasher, &self.sessions);
        // A key that is in the table names a session.
        let hash = |key: &SessionKey| sessions.get(*key).map_or(0, |s| hasher.hash_one(&*s.client_id));
        self.by_client.insert_unique(hash(&key), key, hash);
    }

    /// Before the session goes.
    pub(crate) fn remove_client(&mut self, key: SessionKey) {
        let Some(session) = self.sessions.get(key) else { return };
        let hash = self.hasher.hash_one(&*session.client_id);
        if let Ok(entry) = self.by_client.find_entry(hash, |known| *known == key) {
            entry.remove();
        }
    }

    /// A client as a publisher; made with its first publish.
    pub(crate) fn publisher(&mut self, id: ConnId) -> Option<Arc<Publisher>> {
        let conn = self.conns.get_mut(id)?;
        let publishing = conn.publishing.make();
        if publishing.publisher.is_none() {
            let session = self.sessions.get(conn.session?)?;
            publishing.publisher = Some(Arc::new(Publisher {
                client_id: Arc::clone(&session.client_id),
                username: session.username.clone(),
                host: Some(conn.peer.to_canonical().to_string().into()),
                role: publishing.edge.clone().map_or(Role::Device, Role::Edge),
            }));
        }
        publishing.publisher.clone()
    }

    /// A session as it is now, for the store; `ended_wall_ms`: its connection has ended. Whether somebody waits for it: a will that is
    /// in the store and is not to be published any more.
    pub(crate) fn session_op(&mut self, key: SessionKey, ended_wall_ms: Option<i64>) -> Option<(Op, bool)> {
        let (steady, now) = (self.steady, self.now);
        let session = self.sessions.get_mut(key)?;
        let Kind::Persistent { queue } = &session.kind else { return None };
        let id = session_id(queue);
        let late = session.late_will.as_ref().map(|late| {
            let left_ms = late.due_us.saturating_sub(now.mono_us) / 1_000;
            late.will.to_record(Some(steady.ms(now).saturating_add_unsigned(left_ms)))
        });
        let will = late.or_else(|| Some(session.will.as_ref()?.to_record(None)));
        let is_gone = std::mem::replace(&mut session.will_stored, will.is_some()) && will.is_none();
        let record = record::Session {
            client_id: (&*session.client_id).into(),
            username: session.username.as_deref().map(Into::into),
            expiry_s: session.expiry_s,
            ended_wall_ms,
            handed_to: ended_wall_ms.map(|_| queue.handed_to()),
            will,
        };
        Some((Op::SessionPut { session: id, record: record.to_bytes() }, is_gone))
    }
}
