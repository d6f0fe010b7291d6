//! What hangs on a worker's shard: rules, and an outbox for each of their sinks.
//!
//! # Data
//! Rules of the files that are in force, each with its counters. An [`Outbox`] is a [`Queue`] and the channel to its
//! consumer (the uplink, a sink) on the node's runtime; answers come back as [`HubMessage::Consumer`]. All of it
//! is the worker's own: no lock on a message's way.
//!
//! # Invariants
//! - A row that a rule made is either in a queue with its end, or its end was said.
//! - An outbox belongs to one shard ([`Place::owner`] of its name), and rows of all others go there: a destination has one
//!   order and one window, however many workers there are.
//! - An outbox outlives its consumer: a sink that a reload changes or removes leaves its rows in the store, and what is
//!   not answered is handed out again to the next consumer, in order, with the same identities.
//! - Identity (contract 3): at the edge each row gets a number of its own when it enters an outbox; in the cloud a row keeps
//!   that of the forwarded message it was made from, and a direct client's message gets one here.

use crate::control::{OutboxStatus, RuleStatus, Status};
use crate::sys::Topic;
use bytes::Bytes;
use ferrule_broker::{
    Attachment, Ends, Hook, LocalPublish, Message, Place, Publisher, Role, RowElsewhere, Shard,
};
use ferrule_mqtt::{Properties, PropertiesBuf, PropertyId, QoS};
use ferrule_net::WorkerStats;
use ferrule_outbox::{ConsumerEvent, Delivered, End, OutRow, Outcome, Policy, Queue, Reason};
use ferrule_rules::{
    Ack, Body, Failure, Qos0, Rows, Rule, RuleState, Scratch, Step, UserProperties, extend_rule_path, step,
};
use ferrule_store::record::{Entry, Record};
use ferrule_store::{
    Boot, Identity, MessageId, Now, Op, Origin, QueueId, QueueSummary, Stamp, Store, StoredRow, Ticket,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Operations of a rule's program on one message: 100,000 are some 5 ms, far above any sane rule.
const FUEL: u64 = 100_000;

/// Batches on their way to a consumer.
pub const BATCHES: usize = 64;

/// Rows in one batch: small enough that a consumer begins early, large enough that channels cost nothing.
const BATCH_ROWS: usize = 512;

/// A message that has passed more brokers and rules than this is a loop (docs/contracts.md, 3).
const HOPS_MAX: u8 = 8;

/// What other threads tell the hub.
pub enum HubMessage {
    /// A consumer has something to say. Words of a consumer that was replaced are not heard.
    Consumer {
        /// The outbox.
        outbox: Arc<str>,
        /// Which consumer of it.
        generation: u64,
        /// What it says.
        event: ConsumerEvent,
    },
    /// New rules and sinks.
    Load(Box<Load>),
    /// The process has too much memory, or not any more.
    Overloaded(bool),
    /// What `$SYS` topics say now.
    Sys(Arc<[Topic]>),
    /// A snapshot for people and programs.
    Status(oneshot::Sender<Status>),
}

/// Rules and the sinks they use, checked and started; every worker gets them.
#[derive(Clone)]
pub struct Load {
    /// All rules.
    pub rules: Vec<Rule>,
    /// Names of the files that they are from.
    pub files: Vec<Arc<str>>,
    /// All outboxes that have a consumer now. An outbox that is not named keeps its rows and has none.
    pub outboxes: Vec<Connected>,
}

/// An outbox and its consumer. Only the outbox's own shard sends rows.
#[derive(Clone)]
pub struct Connected {
    /// The sink's name.
    pub name: Arc<str>,
    /// Which consumer; a new number resets the outbox.
    pub generation: u64,
    /// Where rows go; none: the consumer that is there goes on.
    pub rows: Option<mpsc::Sender<Vec<OutRow>>>,
}

/// Who the node is.
#[derive(Debug, Clone)]
pub struct Node {
    /// Edge id or node id.
    pub origin: Origin,
    /// This process life.
    pub boot: Boot,
    /// Whether rows get an identity of their own (edge) or keep their message's (cloud).
    pub edge: bool,
    /// Bounds and times of outboxes.
    pub policy: Policy,
    /// Which of the node's shards this hub hangs on: an outbox belongs to the one that owns its name.
    pub place: Place,
}

/// Where a row goes.
#[derive(Debug, Clone, Copy)]
enum Target {
    Outbox(usize),
    Local,
    Log,
}

struct Loaded {
    rule: Rule,
    file: Arc<str>,
    state: RuleState,
    targets: Vec<Target>,
    publisher: Publisher,
}

struct Outbox {
    name: Arc<str>,
    /// Its shard. Of another's only the name is used.
    owner: u16,
    queue: Queue<Arc<Entry>>,
    generation: u64,
    rows: Option<mpsc::Sender<Vec<OutRow>>>,
    window: usize,
    error: Option<String>,
    discarded: Vec<(Reason, u64)>,
    /// Ends to be said when the turn ends, where the shard listens.
    ended: Vec<(End, Outcome)>,
}

/// The hub. It is the shard's [`Hook`].
pub struct Hub {
    node: Node,
    rules: Vec<Loaded>,
    outboxes: Vec<Outbox>,
    stored: Vec<QueueSummary>,
    scratch: Scratch,
    rows: Rows,
    local: Vec<LocalPublish>,
    /// For outboxes of other shards.
    elsewhere: Vec<RowElsewhere>,
    next_seq: u64,
    loops: u64,
    started: Now,
}

impl Hub {
    /// A hub without rules. `stored` is what the store holds of outboxes.
    #[must_use]
    pub fn new(node: Node, stored: Vec<QueueSummary>, seed: u128, now: Now) -> Self {
        Self {
            rules: Vec::new(),
            outboxes: Vec::new(),
            stored,
            scratch: Scratch::new(seed),
            rows: Rows::default(),
            local: Vec::new(),
            elsewhere: Vec::new(),
            // Each shard draws every `of`-th number.
            next_seq: u64::from(node.place.index) + 1,
            loops: 0,
            started: now,
            node,
        }
    }

    /// Rows in the store of outboxes that no rule names any more: kept, and told, until a rule names their sink again.
    fn unclaimed_rows(&self) -> u64 {
        let claimed = |id| self.outboxes.iter().any(|o| o.queue.id() == id);
        self.stored.iter().filter(|s| !claimed(s.queue)).map(|s| s.rows).sum()
    }

    fn outbox(&mut self, name: &Arc<str>) -> usize {
        if let Some(index) = self.outboxes.iter().position(|o| o.name == *name) {
            return index;
        }
        let id = QueueId::outbox(name, 0);
        let owner = self.node.place.owner(name);
        let mine = owner == self.node.place.index;
        let stored = self.stored.iter().find(|s| mine && s.queue == id).copied();
        self.outboxes.push(Outbox {
            name: Arc::clone(name),
            owner,
            queue: Queue::new(id, self.node.policy, stored),
            generation: 0,
            rows: None,
            window: 0,
            error: None,
            discarded: Vec::new(),
            ended: Vec::new(),
        });
        self.outboxes.len() - 1
    }

    /// Handles a message of another thread.
    pub fn message<S: Store>(
        shard: &mut Shard<Self, S>,
        worker: &WorkerStats,
        message: HubMessage,
        now: Now,
    ) {
        match message {
            HubMessage::Consumer { outbox, generation, event } => {
                shard.hook().consumer(&outbox, generation, event, now)
            }
            HubMessage::Load(load) => Self::load(shard, *load, now),
            HubMessage::Overloaded(overloaded) => shard.set_overloaded(overloaded),
            HubMessage::Sys(topics) => shard.publish_sys(&topics, now),
            HubMessage::Status(reply) => {
                let status = Self::status(shard, worker, now);
                // Whoever asked may have gone.
                let _ = reply.send(status);
            }
        }
    }

    fn load<S: Store>(shard: &mut Shard<Self, S>, load: Load, now: Now) {
        for index in 0..shard.hook().rules.len() {
            for filter in shard.hook().rules[index].rule.filters.clone() {
                shard.remove_hook_filter(&filter, index as u32);
            }
        }
        let hub = shard.hook();
        for connected in &load.outboxes {
            let index = hub.outbox(&connected.name);
            let outbox = &mut hub.outboxes[index];
            if let Some(rows) = &connected.rows {
                outbox.rows = Some(rows.clone());
                outbox.generation = connected.generation;
                outbox.window = 0;
                outbox.error = None;
                outbox.queue.reset();
                outbox.queue.set_up(false, now);
            }
        }
        for outbox in &mut hub.outboxes {
            if !load.outboxes.iter().any(|c| c.name == outbox.name) && outbox.rows.take().is_some() {
                outbox.generation += 1;
                outbox.window = 0;
                outbox.error = Some("its sink is not in the rules any more; its rows are kept".into());
                outbox.queue.reset();
                outbox.queue.set_up(false, now);
            }
        }
        // A rule that did not change keeps its counters.
        let mut old: Vec<Loaded> = std::mem::take(&mut hub.rules);
        for rule in load.rules {
            let known = old.iter().position(|l| l.rule.name == rule.name && l.rule.text == rule.text);
            let state = known.map(|i| old.swap_remove(i).state).unwrap_or_default();
            let targets = (rule.inserts.iter())
                .map(|insert| match insert.sink.as_str() {
                    "local" => Target::Local,
                    "log" => Target::Log,
                    sink => Target::Outbox(hub.outbox(&sink.into())),
                })
                .collect();
            let publisher = Publisher {
                client_id: format!("rule:{}", rule.name).into(),
                username: None,
                host: None,
                role: Role::Device,
            };
            let file = load.files.get(rule.file).cloned().unwrap_or_default();
            hub.rules.push(Loaded { rule, file, state, targets, publisher });
        }
        let unclaimed = hub.unclaimed_rows();
        if unclaimed > 0 && hub.node.place.index == 0 {
            tracing::warn!(
                rows = unclaimed,
                "the store holds rows of sinks that the rules do not name: they are kept"
            );
        }
        for index in 0..shard.hook().rules.len() {
            let rule = &shard.hook().rules[index].rule;
            for filter in rule.filters.iter().filter(|_| rule.enabled).cloned().collect::<Vec<_>>() {
                shard.add_hook_filter(&filter, index as u32);
            }
        }
    }

    fn consumer(&mut self, name: &str, generation: u64, event: ConsumerEvent, now: Now) {
        let Some(outbox) = self.outboxes.iter_mut().find(|o| *o.name == *name && o.generation == generation)
        else {
            return;
        };
        match event {
            ConsumerEvent::Up { window } => {
                if let Some(error) = outbox.error.take() {
                    tracing::info!(outbox = name, after = error, "works again");
                }
                outbox.window = window;
                outbox.queue.set_up(true, now);
            }
            ConsumerEvent::Down { error } => {
                if outbox.error.is_none() {
                    tracing::warn!(outbox = name, error, "cannot deliver: what comes is kept");
                }
                outbox.error = Some(error);
                outbox.queue.set_up(false, now);
            }
            ConsumerEvent::Reset => outbox.queue.reset(),
            ConsumerEvent::Done(answers) => {
                outbox.answers(answers, now);
            }
        }
    }

    /// What the worker knows; the rest of the snapshot is the node's.
    fn status<S: Store>(shard: &mut Shard<Self, S>, worker: &WorkerStats, now: Now) -> Status {
        let [connections, sessions, subscriptions, retained, waiting, lost_ends] =
            shard.sizes().map(|n| n as u64);
        let (stats, buffered) = (shard.stats(), shard.buffered() as u64);
        let hub = shard.hook();
        let own = hub.outboxes.iter().filter(|o| o.owner == hub.node.place.index);
        let counters = [
            ("received", stats.received),
            ("sent", stats.sent),
            ("unmatched", stats.unmatched),
            ("acknowledged", stats.acknowledged),
            ("acked_discarded", stats.acked_discarded),
            ("joined", stats.joined),
            ("denied", stats.denied),
            ("dropped_slow", stats.dropped_slow),
            ("dropped_pool", stats.dropped_pool),
            ("dropped_full", stats.dropped_full),
            ("dropped_full_bytes", stats.dropped_full_bytes),
            ("dropped_too_large", stats.dropped_too_large),
            ("dropped_expired", stats.dropped_expired),
            ("shared_again", stats.shared_again),
            ("dropped_shared", stats.dropped_shared),
            ("delayed", stats.delayed),
            ("delayed_published", stats.delayed_published),
            ("delayed_refused", stats.delayed_refused),
            ("exclusive_refused", stats.exclusive_refused),
            ("payloads_refused", stats.payloads_refused),
            ("retained_refused", stats.retained_refused),
            ("loops", stats.loops + hub.loops),
            ("clients_connected", stats.connected),
            ("clients_refused", stats.refused),
            ("protocol_errors", stats.protocol_errors),
            ("clients_blocked", stats.blocked),
            ("connections_refused", stats.connections_refused),
            ("overload_refused", stats.overload_refused),
            ("sessions_refused", stats.sessions_refused),
            ("connect_timeouts", stats.connect_timeouts),
            ("keep_alive_timeouts", stats.keep_alive_timeouts),
            ("packet_timeouts", stats.packet_timeouts),
            ("oversized", stats.oversized),
            ("window_exceeded", stats.window_exceeded),
            ("slow_closed", stats.slow_closed),
            ("pool_closed", stats.pool_closed),
            ("topics_refused", stats.topics_refused),
            ("subscriptions_refused", stats.subscriptions_refused),
            ("throttled", stats.throttled),
            ("held_back", stats.held_back),
            // What clients have waiting now, of `max_buffered_bytes`.
            ("buffered_bytes", buffered),
            ("forwarded_out", stats.forwarded_out),
            ("forwarded_in", stats.forwarded_in),
            ("moved_in", worker.moved_in),
            ("rings_full", worker.rings_full),
            ("turns_cut", worker.turns_cut),
            ("handshakes_put_off", worker.handshakes_put_off),
            // All shards know of all rows.
            ("unclaimed_rows", if hub.node.place.index == 0 { hub.unclaimed_rows() } else { 0 }),
            // Bugs, when they are not 0.
            ("lost_ends", lost_ends),
            ("turns", worker.turns),
            ("turn_us_max", worker.turn_us_max),
            ("bytes_in", worker.bytes_in),
            ("bytes_out", worker.bytes_out),
            ("accept_failures", worker.accept_failures),
        ];
        Status {
            uptime_ms: now.since(hub.started.mono_us) / 1_000,
            connections,
            sessions,
            subscriptions,
            retained,
            waiting,
            outboxes: own.map(|o| o.status(now)).collect(),
            rules: hub.rules.iter().map(Loaded::status).collect(),
            counters: counters.into_iter().map(|(name, count)| (name.to_owned(), count.into())).collect(),
            ..Status::default()
        }
    }

    /// The message as rules see it, and what a row keeps of it.
    fn run_rules(&mut self, message: &Message<'_>, matched: &[u32], ends: &mut Ends<'_>, now: Now) {
        let origin = Source::of(message, &self.node, self.next_seq);
        if origin.hops > HOPS_MAX {
            self.loops += 1;
            ends.discard(Outcome::Discarded(Reason::Loop));
            return;
        }
        if origin.own_identity && message.attachment.is_none() && !self.node.edge {
            self.next_seq += u64::from(self.node.place.of);
        }
        let properties = Pairs(message.properties);
        let input = ferrule_rules::Message {
            topic: message.topic,
            payload: message.payload,
            qos: message.qos.into(),
            retain: message.retain,
            dup: message.dup,
            clientid: &origin.client_id,
            username: origin.username.as_deref(),
            peerhost: message.publisher.host.as_deref(),
            edge: origin.edge.as_deref(),
            // A device's message has no identity at the edge: its rows get one each.
            message_id: (!self.node.edge).then_some(&origin.identity as &dyn std::fmt::Display),
            timestamp_ms: origin.received.wall_ms,
            user_properties: (!message.properties.is_empty()).then_some(&properties as &dyn UserProperties),
            node: Some(&self.node.origin),
            event: None,
            columns: None,
        };
        self.scratch.begin();
        let mut payload: Option<Bytes> = None;
        let mut kept_properties: Option<Bytes> = None;
        // What a rule publishes keeps the identity of what it was made from, through as many rules as there are.
        let mut attached: Option<Attachment> = None;
        for &index in matched {
            let Some(loaded) = self.rules.get_mut(index as usize) else { continue };
            let mut fuel = FUEL;
            let rule_now = ferrule_rules::Now { wall_ms: now.wall_ms };
            let outcome = step(
                &loaded.rule,
                &mut loaded.state,
                &input,
                &mut self.scratch,
                rule_now,
                &mut fuel,
                &mut self.rows,
            );
            match outcome {
                Step::Emit => {}
                Step::NoMatch => continue,
                // Counted by its rule, acknowledged, and counted there too.
                Step::Failed(_) | Step::OutOfFuel => {
                    ends.discard(Outcome::Discarded(Reason::Rule));
                    continue;
                }
            }
            let rule = &loaded.rule;
            for row in self.rows.rows.drain(..) {
                let passthrough = row.body == Body::Payload;
                let body = match row.body {
                    Body::Payload => {
                        payload.get_or_insert_with(|| Bytes::copy_from_slice(message.payload)).clone()
                    }
                    Body::Json(bytes) | Body::Text(bytes) | Body::Encoded(bytes) => Bytes::from(bytes),
                };
                let path = if message.path == 0 {
                    rule.id
                } else {
                    extend_rule_path(message.path, row.row, rule.id)
                };
                match loaded.targets[row.insert] {
                    Target::Log => {
                        tracing::info!(target: "rules", rule = rule.name, "{}", String::from_utf8_lossy(&body));
                    }
                    Target::Local => self.local.push(LocalPublish {
                        // What another rule makes of it has its own row number: this one's must be in the path.
                        path: if row.row == 0 {
                            path
                        } else {
                            extend_rule_path(message.path, row.row, rule.id)
                        },
                        topic: row.target,
                        payload: body,
                        qos: row.qos.and_then(|q| QoS::try_from(q).ok()).unwrap_or(message.qos),
                        retain: row.retain.unwrap_or(false),
                        properties: PropertiesBuf::new(),
                        publisher: loaded.publisher.clone(),
                        received: origin.received,
                        hops: message.hops + 1,
                        attachment: Some(Arc::clone(
                            attached.get_or_insert_with(|| Arc::new(origin.clone())),
                        )),
                        hold: message.hold,
                        end: if rule.ack == Ack::None { None } else { ends.end() },
                    }),
                    Target::Outbox(index) => {
                        let mut identity = origin.identity.clone();
                        if self.node.edge {
                            identity.seq = self.next_seq;
                            self.next_seq += u64::from(self.node.place.of);
                        }
                        let properties =
                            kept_properties.get_or_insert_with(|| forwardable(message.properties)).clone();
                        let entry = Arc::new(Entry {
                            identity,
                            rule: path,
                            row: row.row,
                            target: row.target.into(),
                            key: row.key.unwrap_or_else(|| origin.client_id.to_string()).into(),
                            passthrough,
                            qos: row.qos.unwrap_or(1),
                            retain: row.retain.unwrap_or(false),
                            client_id: Arc::clone(&origin.client_id),
                            username: origin.username.clone(),
                            topic: message.topic.into(),
                            edge: origin.edge.clone(),
                            received: origin.received,
                            hops: origin.hops,
                            properties,
                            payload: body,
                        });
                        let how = How {
                            until_answered: rule.ack == Ack::Sink,
                            hold: message.hold,
                            droppable: message.qos == QoS::AtMostOnce && rule.qos0 == Qos0::Drop,
                        };
                        let end = if rule.ack == Ack::None { None } else { ends.end() };
                        let outbox = &mut self.outboxes[index];
                        if outbox.owner != self.node.place.index {
                            let (shard, hold) = (outbox.owner, how.hold);
                            let row = parcel(&outbox.name, how, &entry);
                            self.elsewhere.push(RowElsewhere { shard, row, hold, end });
                        } else if let Err(end) = outbox.push(entry, how, end, now) {
                            // Memory is full of rows that cannot be written: the publisher keeps the message.
                            ends.resolve(end, Outcome::Retry);
                        }
                    }
                }
            }
        }
    }
}

impl Hook for Hub {
    fn publish(&mut self, message: &Message<'_>, matched: &[u32], ends: &mut Ends<'_>, now: Now) {
        self.run_rules(message, matched, ends, now);
    }

    fn take_local(&mut self) -> Vec<LocalPublish> {
        std::mem::take(&mut self.local)
    }

    fn take_rows(&mut self) -> Vec<RowElsewhere> {
        std::mem::take(&mut self.elsewhere)
    }

    fn row(&mut self, row: &[u8], end: Option<End>, now: Now) -> Result<(), Option<End>> {
        let Some((name, how, entry)) = unpack(row) else { return Err(end) };
        // Rules may have reached the other shard first: the outbox is there from now on.
        let index = match self.outboxes.iter().position(|o| *o.name == *name) {
            Some(index) => index,
            None => self.outbox(&name.into()),
        };
        self.outboxes[index].push(entry, how, end, now)
    }

    fn due(&self, now: Now, urgent: bool, smoothed_commit: Duration) -> bool {
        self.outboxes.iter().any(|o| o.queue.due(now, urgent, smoothed_commit))
    }

    fn next_due_us(&self, urgent: bool, smoothed_commit: Duration) -> Option<u64> {
        self.outboxes.iter().filter_map(|o| o.queue.next_due_us(urgent, smoothed_commit)).min()
    }

    fn write(&mut self, now: Now, batch: &mut Vec<Op>) {
        for outbox in &mut self.outboxes {
            outbox.queue.write(now, batch);
        }
    }

    fn set_admitted(&mut self, admitted: bool) {
        self.outboxes.iter_mut().for_each(|o| o.queue.set_admitted(admitted));
    }

    fn withholds(&self) -> bool {
        self.outboxes.iter().any(|o| o.queue.is_withholding())
    }

    fn submitted(&mut self, ticket: Ticket) {
        self.outboxes.iter_mut().for_each(|o| o.queue.submitted(ticket));
    }

    fn committed(&mut self, ticket: Ticket, ended: &mut Vec<(End, Outcome)>) {
        self.outboxes.iter_mut().for_each(|o| o.queue.committed(ticket, ended));
    }

    fn rows(&mut self, queue: QueueId, rows: Vec<StoredRow>, now: Now) {
        if let Some(outbox) = self.outboxes.iter_mut().find(|o| o.queue.id() == queue) {
            outbox.queue.loaded(rows, now);
        }
    }

    fn turn(&mut self, now: Now, ended: &mut Vec<(End, Outcome)>, reads: &mut Vec<(QueueId, u64)>) {
        for outbox in &mut self.outboxes {
            outbox.hand_out(now);
            ended.append(&mut outbox.ended);
            reads.extend(outbox.queue.want_read().map(|from| (outbox.queue.id(), from)));
        }
    }
}

/// How a row enters its outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct How {
    /// Its end is the destination's answer, not the store's commit.
    until_answered: bool,
    /// It must not leave before this turn's batch is durable.
    hold: bool,
    /// Not kept while the destination is down.
    droppable: bool,
}

/// A row for another shard: flags, the outbox's name, the entry's record with their lengths before them, the payload.
fn parcel(name: &str, how: How, entry: &Entry) -> Vec<u8> {
    let head = entry.to_bytes();
    let mut parcel = Vec::with_capacity(9 + name.len() + head.len() + entry.payload.len());
    let flags = [how.until_answered, how.hold, how.droppable];
    parcel.push(flags.iter().enumerate().fold(0, |bits, (at, set)| bits | u8::from(*set) << at));
    for part in [name.as_bytes(), &head] {
        // Names and records are far shorter than 4 GiB.
        parcel.extend_from_slice(&(part.len() as u32).to_le_bytes());
        parcel.extend_from_slice(part);
    }
    parcel.extend_from_slice(&entry.payload);
    parcel
}

fn unpack(parcel: &[u8]) -> Option<(&str, How, Arc<Entry>)> {
    fn part(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
        let (len, rest) = bytes.split_first_chunk::<4>()?;
        rest.split_at_checked(u32::from_le_bytes(*len) as usize)
    }
    let (flags, rest) = parcel.split_first()?;
    let (name, rest) = part(rest)?;
    let (head, payload) = part(rest)?;
    let mut entry = Entry::from_bytes(head).ok()?;
    entry.payload = Bytes::copy_from_slice(payload);
    let flag = |at: u8| flags & 1 << at != 0;
    let how = How { until_answered: flag(0), hold: flag(1), droppable: flag(2) };
    Some((std::str::from_utf8(name).ok()?, how, Arc::new(entry)))
}

impl Outbox {
    /// Puts a row in. An end comes back when memory is full of rows that cannot be written.
    fn push(&mut self, entry: Arc<Entry>, how: How, end: Option<End>, now: Now) -> Result<(), Option<End>> {
        if how.droppable && !self.queue.is_up() {
            self.queue.count_dropped();
            self.ended.extend(end.map(|end| (end, Outcome::Delivered)));
            return Ok(());
        }
        let pushed = match how.until_answered {
            true => self.queue.push_until_answered(entry, end, now),
            false => self.queue.push(entry, end, now),
        };
        pushed.map_err(|(_, end)| end)?;
        if how.hold {
            self.queue.hold();
        }
        Ok(())
    }

    fn hand_out(&mut self, now: Now) {
        let Some(channel) = &self.rows else { return };
        // Also while it is down: a sink that waits for one table goes on with the others, and keeps what it cannot deliver.
        loop {
            let in_flight = self.queue.counters().in_flight as usize;
            let room = self.window.saturating_sub(in_flight).min(BATCH_ROWS);
            if room == 0 || self.queue.counters().queued == 0 {
                return;
            }
            // Without a place in the channel nothing is taken: an answer, which must come, brings the next turn.
            let Ok(place) = channel.try_reserve() else { return };
            let mut batch = Vec::new();
            self.queue.take(in_flight + room, now, |seq, entry, again| {
                batch.push(OutRow { seq, entry: Arc::clone(entry), again });
            });
            if batch.is_empty() {
                return; // The rest is on disk and being read.
            }
            place.send(batch);
        }
    }

    fn answers(&mut self, answers: Vec<(u64, Delivered)>, now: Now) {
        for (seq, delivered) in answers {
            let outcome = match delivered {
                Delivered::Yes => Outcome::Delivered,
                Delivered::Discarded(reason) => {
                    match self.discarded.iter_mut().find(|(r, _)| *r == reason) {
                        Some((_, count)) => *count += 1,
                        None => {
                            tracing::warn!(outbox = &*self.name, %reason, "a row was given up: counted from now on");
                            self.discarded.push((reason, 1));
                        }
                    }
                    Outcome::Discarded(reason)
                }
            };
            self.queue.answer(seq, outcome, now, &mut self.ended);
        }
    }

    fn status(&self, now: Now) -> OutboxStatus {
        let c = self.queue.counters();
        let (bytes, oldest_us) = self.queue.backlog(now);
        let state = match (&self.rows, self.queue.is_up()) {
            // No [uplink], or its sink is not in the rules any more.
            (None, _) => "unconnected",
            (Some(_), true) => "up",
            (Some(_), false) => "down",
        };
        OutboxStatus {
            name: self.name.to_string(),
            state: state.to_owned(),
            entered: c.entered,
            recovered: c.recovered,
            delivered: c.delivered,
            // What a destination refuses is discarded with a reason, all else is tried until it is delivered.
            failed: 0,
            in_flight: c.in_flight,
            queued: c.queued,
            discarded: c.discarded,
            discarded_by: self.discarded.iter().map(|(r, count)| (r.to_string(), (*count).into())).collect(),
            stored: c.stored,
            written: c.written,
            again: c.again,
            refused: c.refused,
            window: self.window as u64,
            answer_us: self.queue.smoothed_ack().as_micros() as u64,
            bytes,
            oldest_ms: oldest_us / 1_000,
            last_error: self.error.clone(),
        }
    }
}

impl Loaded {
    fn status(&self) -> RuleStatus {
        let c = &self.state.counters;
        let failed_by = (Failure::ALL.iter().zip(c.failed))
            .filter(|(_, count)| *count > 0)
            .map(|(failure, count)| (failure.name().to_owned(), count.into()));
        RuleStatus {
            name: self.rule.name.clone(),
            file: self.file.to_string(),
            state: if self.rule.enabled { "running" } else { "disabled" }.to_owned(),
            matched: c.matched,
            passed: c.passed,
            filtered: c.filtered,
            failed: c.failed.iter().sum(),
            failed_by: failed_by.collect(),
            rows_out: c.rows_out,
            last_error: self.state.last_failure.as_ref().map(|f| format!("{} on {}", f.reason, f.topic)),
        }
    }
}

/// Where a message comes from, gateway and all.
#[derive(Clone)]
struct Source {
    identity: Identity,
    /// The identity was given here.
    own_identity: bool,
    client_id: Arc<str>,
    username: Option<Arc<str>>,
    edge: Option<Origin>,
    received: Stamp,
    hops: u8,
}

impl Source {
    /// Reads a gateway's properties (docs/contracts.md, 3); only a gateway's are believed.
    fn of(message: &Message<'_>, node: &Node, next_seq: u64) -> Self {
        if let Some(source) = message.attachment.and_then(|a| a.downcast_ref::<Self>()) {
            return Self { hops: source.hops.saturating_add(1), ..source.clone() };
        }
        let publisher = message.publisher;
        let mut source = Self {
            identity: Identity { origin: Arc::clone(&node.origin), boot: node.boot, class: 0, seq: next_seq },
            own_identity: true,
            client_id: Arc::clone(&publisher.client_id),
            username: publisher.username.clone(),
            edge: None,
            received: message.received,
            hops: message.hops,
        };
        let Role::Edge(edge) = &publisher.role else { return source };
        source.edge = Some(Arc::clone(edge));
        for (name, value) in message.properties.user_properties() {
            match name {
                "ferrule-id" => {
                    if let Ok(MessageId { boot, class, seq }) = value.parse() {
                        source.identity = Identity { origin: Arc::clone(edge), boot, class, seq };
                        source.own_identity = false;
                    }
                }
                "ferrule-client" => source.client_id = value.into(),
                "ferrule-user" => source.username = Some(value.into()),
                "ferrule-at" => {
                    if let Ok(ms) = value.trim_end_matches('?').parse() {
                        source.received.wall_ms = ms;
                        source.received.synced = !value.ends_with('?');
                    }
                }
                "ferrule-hops" => source.hops = source.hops.saturating_add(value.parse().unwrap_or(0)),
                _ => {}
            }
        }
        source
    }
}

/// What a row keeps of a message's properties: all but what is between a client and its broker, and what only
/// gateways may say.
fn forwardable(properties: Properties<'_>) -> Bytes {
    if properties.is_empty() {
        return Bytes::new();
    }
    let mut kept = PropertiesBuf::new();
    kept.extend(properties, |id| !matches!(id, PropertyId::TopicAlias | PropertyId::UserProperty));
    for (name, value) in properties.user_properties().filter(|(name, _)| !name.starts_with("ferrule-")) {
        // It was a property before: it encodes.
        let _ = kept.push(ferrule_mqtt::Property::UserProperty(name, value));
    }
    Bytes::copy_from_slice(kept.as_properties().as_bytes())
}

/// User properties for rules.
struct Pairs<'a>(Properties<'a>);

impl UserProperties for Pairs<'_> {
    fn pair(&self, index: usize) -> Option<(&str, &str)> {
        self.0.user_properties().nth(index)
    }
}

#[cfg(test)]
mod tests;
