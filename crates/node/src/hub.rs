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

pub mod backlog;
mod dead;
mod events;
mod homes;
mod inherited;
mod memory;
pub(crate) mod outbox;
mod pace;
mod report;
mod rules;
mod source;
mod stage;
mod status;

use crate::control::Status;
use bytes::Bytes;
use dead::DeadLetters;
use ferrule_broker::{
    Ends, Event, Features, Hook, Left, Limits, LocalPublish, Message, Place, Publisher, Role, RowElsewhere,
    Shard, SysTopic, Which,
};
use ferrule_link::downlink::Received;
use ferrule_net::WorkerStats;
use ferrule_outbox::{ConsumerEvent, End, OutRow, Outcome, Policy, Queue};
use ferrule_rules::Rule;
use ferrule_store::{
    Boot, Identity, Inherited, Kept, Now, Op, Origin, QueueId, QueueSummary, Store, StoredRow, Ticket,
};
use homes::Homes;
use inherited::is_inherited;
use outbox::{CLASSES, How, Outbox, class_name, split_name, unnumbered, unpack};
use pace::Pace;
use report::Report;
use rules::Rules;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// The name of the uplink among the sinks.
const UPLINK_SINK: &str = crate::loader::UPLINK;

/// The client id that rules see of messages from the uplink's broker.
const UPLINK: &str = "uplink";

/// Batches on their way to a consumer.
pub const BATCHES: usize = 64;

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
    /// A message from the uplink's broker, and who is told that it is safe.
    Down(Box<Received>, mpsc::UnboundedSender<(u64, bool)>),
    /// New rules and sinks.
    Load(Box<Load>),
    /// Other bounds and times.
    Configure(Box<Bounds>),
    /// Other users and access lists are in force: what clients may do is as they say now. How many clients had to go.
    Review(oneshot::Sender<usize>),
    /// A listener is not there any more, nor are its connections. How many there were.
    CloseListener(u16, oneshot::Sender<usize>),
    /// Whether clients are moved off, and how many of them now; what is left to do.
    Drain(bool, usize, oneshot::Sender<Left>),
    /// The consumer of this outbox gets no more rows; what it says of those that it has is still heard.
    Release(Arc<str>),
    /// The uplink is another one; none: there is none any more.
    Uplink(Option<Connected>),
    /// The process has too much memory, or not any more.
    Overloaded(bool),
    /// What `$SYS` topics say now.
    Sys(Arc<[SysTopic]>),
    /// An operator looks at an outbox's rows, or gives some up.
    Backlog(Box<backlog::Ask>),
    /// A snapshot for people and programs.
    Status(oneshot::Sender<Status>),
}

/// Rules and the sinks they use, checked and started; every worker gets them.
#[derive(Clone)]
pub struct Load {
    /// All rules.
    pub rules: Vec<Arc<Rule>>,
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

/// What a reload may change of a worker, beside rules, sinks and who may connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounds {
    /// Of clients and the shard.
    pub limits: Limits,
    /// What is switched on.
    pub features: Arc<Features>,
    /// Bounds and times of sessions' queues.
    pub sessions: Policy,
    /// Of outboxes.
    pub outboxes: OutboxBounds,
}

/// Bounds of all outboxes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxBounds {
    /// Bounds and times.
    pub policy: Policy,
    /// How long a row may wait in an outbox; none: for ever.
    pub age_max: Option<Duration>,
    /// Rows a second that leave an outbox; none: as many as its consumer takes.
    pub rate_max: Option<u32>,
    /// Where the uplink's broker is told what limits gave up; none: it is not.
    pub report_topic: Option<Arc<str>>,
    /// Under which topic rows are published here that their destination refuses; none: they are not.
    pub dead_letter: Option<Arc<str>>,
}

impl From<Policy> for OutboxBounds {
    /// Without limits beside it.
    fn from(policy: Policy) -> Self {
        Self { policy, age_max: None, rate_max: None, report_topic: None, dead_letter: None }
    }
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
    /// Bounds of outboxes.
    pub outboxes: OutboxBounds,
    /// Whether it is one of a cluster.
    pub clustered: bool,
    /// Which of the node's shards this hub hangs on: an outbox belongs to the one that owns its name.
    pub place: Place,
}

/// The hub. It is the shard's [`Hook`].
pub struct Hub {
    node: Node,
    rules: Rules,
    homes: Homes,
    outboxes: Vec<Outbox>,
    /// Some outboxes are of a class beside the normal one.
    has_classes: bool,
    /// How fast rows leave for each consumer.
    paces: Vec<(Arc<str>, Pace)>,
    report: Report,
    stored: Vec<QueueSummary>,
    /// Of nodes that are gone, given to this one.
    inherited: Vec<Inherited>,
    local: VecDeque<LocalPublish>,
    dead_letters: DeadLetters,
    /// For outboxes of other shards.
    elsewhere: Vec<RowElsewhere>,
    next_seq: u64,
    started: Now,
    /// As whom messages of the uplink's broker are published here.
    uplink: Arc<Publisher>,
    /// Who is told that they are safe.
    said: Option<mpsc::UnboundedSender<(u64, bool)>>,
}

impl Hub {
    /// A hub without rules. `stored` is what the store holds of outboxes, `remembered` of rules' memory: (rule, key, value).
    #[must_use]
    pub fn new(
        node: Node,
        stored: Vec<QueueSummary>,
        remembered: &[(u64, Bytes, Bytes)],
        seed: u128,
        now: Now,
    ) -> Self {
        let told = remembered.iter().find(|(rule, ..)| *rule == report::rule()).map(|(.., value)| &value[..]);
        Self {
            report: Report::new(node.outboxes.report_topic.clone(), told),
            // In a cluster the store says which rules' memory is this node's.
            rules: Rules::new(seed, if node.clustered { &[] } else { remembered }),
            homes: Homes::new(node.clustered),
            outboxes: Vec::new(),
            has_classes: false,
            paces: Vec::new(),
            stored,
            inherited: Vec::new(),
            local: VecDeque::new(),
            dead_letters: DeadLetters::new(node.outboxes.dead_letter.clone()),
            elsewhere: Vec::new(),
            // Each shard draws every `of`-th number.
            next_seq: u64::from(node.place.index) + 1,
            started: now,
            uplink: Arc::new(Publisher {
                client_id: UPLINK.into(),
                username: None,
                host: None,
                role: Role::Device,
            }),
            said: None,
            node,
        }
    }

    /// Rows in the store of outboxes that no rule names any more: kept, and told, until a rule names their sink again.
    fn unclaimed_rows(&self) -> u64 {
        self.unclaimed().map(|s| s.rows).sum::<u64>() + self.inherited_unclaimed()
    }

    fn unclaimed(&self) -> impl Iterator<Item = &QueueSummary> {
        let claimed = |id| self.outboxes.iter().any(|o| o.queue.id() == id);
        self.stored.iter().filter(move |s| !claimed(s.queue))
    }

    fn tell_unclaimed(&self) {
        let unclaimed = self.unclaimed_rows();
        if unclaimed > 0 && self.node.place.index == 0 {
            tracing::warn!(
                rows = unclaimed,
                "the store holds rows of sinks that the rules do not name: they are kept"
            );
        }
    }

    /// The outbox of a sink for a class; it is made when it is not there.
    fn outbox(&mut self, sink: &Arc<str>, class: u16) -> usize {
        if let Some(index) = self.outboxes.iter().position(|o| o.class == class && o.sink == *sink) {
            return index;
        }
        let id = QueueId::outbox(sink, class);
        let owner = self.node.place.owner(sink);
        let mine = owner == self.node.place.index;
        let stored = self.stored.iter().find(|s| mine && s.queue == id).copied();
        let mut queue = Queue::new(id, self.node.outboxes.policy, stored);
        // The consumer may be there already, for another class.
        let known = self.outboxes.iter().find(|o| o.sink == *sink && !o.retired);
        queue.set_up(known.is_some_and(|o| o.queue.is_up()), self.started);
        self.has_classes |= class != 0;
        if let Some(rate_max) = self.node.outboxes.rate_max.filter(|_| known.is_none()) {
            self.paces.push((Arc::clone(sink), Pace::new(rate_max)));
        }
        let outbox = Outbox::new(class_name(sink, class), Arc::clone(sink), (owner, class), queue, known);
        self.outboxes.push(outbox);
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
            HubMessage::Down(received, said) => {
                shard.hook().said = Some(said);
                let Received { topic, payload, qos, retain, properties, hops, number } = *received;
                let publish = LocalPublish {
                    topic: topic.into(),
                    payload: payload.into(),
                    qos,
                    retain,
                    properties,
                    publisher: Arc::clone(&shard.hook().uplink),
                    received: now.stamp(),
                    hops,
                    path: 0,
                    attachment: None,
                    hold: false,
                    end: None,
                };
                shard.publish_from_link(&publish, number, now);
            }
            HubMessage::Load(load) => {
                Self::load(shard, *load, now);
                Self::name_keepers(shard);
            }
            HubMessage::Configure(bounds) => {
                let Bounds { limits, features, sessions, outboxes } = *bounds;
                shard.configure(limits, features, sessions);
                shard.hook().configure(outboxes);
            }
            HubMessage::Review(reply) => {
                // Whoever asked may have gone.
                let _ = reply.send(shard.review(now));
            }
            HubMessage::CloseListener(number, reply) => {
                let _ = reply.send(shard.close_listener(number, now));
            }
            HubMessage::Drain(draining, most, reply) => {
                shard.set_draining(draining);
                let _ = reply.send(shard.drain(most, now));
            }
            HubMessage::Release(sink) => shard.hook().of_sink(&sink).for_each(|outbox| outbox.rows = None),
            HubMessage::Uplink(Some(uplink)) => shard.hook().attach(&uplink, now),
            HubMessage::Uplink(None) => {
                let gone = "there is no [uplink] any more; its rows are kept";
                shard.hook().of_sink(UPLINK_SINK).for_each(|outbox| outbox.detach(gone, now));
            }
            HubMessage::Overloaded(overloaded) => shard.set_overloaded(overloaded),
            HubMessage::Sys(topics) => shard.publish_sys(&topics, now),
            HubMessage::Backlog(ask) => shard.hook().asked(*ask, now),
            HubMessage::Status(reply) => {
                let status = Self::status(shard, worker, now);
                // Whoever asked may have gone.
                let _ = reply.send(status);
            }
        }
    }

    /// Other bounds of outboxes from now on.
    fn configure(&mut self, bounds: OutboxBounds) {
        if bounds.rate_max != self.node.outboxes.rate_max {
            self.paces.clear();
            for outbox in &self.outboxes {
                let Some(rate_max) = bounds.rate_max else { break };
                if !self.paces.iter().any(|(sink, _)| *sink == outbox.sink) {
                    self.paces.push((Arc::clone(&outbox.sink), Pace::new(rate_max)));
                }
            }
        }
        for outbox in &mut self.outboxes {
            outbox.queue.set_policy(inherited::policy(outbox.class, bounds.policy));
            // By the old age.
            outbox.old_us = None;
        }
        self.report.set_topic(bounds.report_topic.clone());
        self.dead_letters.set_under(bounds.dead_letter.clone());
        self.node.outboxes = bounds;
    }

    fn of_sink<'a>(&'a mut self, sink: &'a str) -> impl Iterator<Item = &'a mut Outbox> {
        self.outboxes.iter_mut().filter(move |outbox| *outbox.sink == *sink)
    }

    /// Gives outboxes their consumers. Those that have none from now on keep their rows.
    fn connect(&mut self, outboxes: &[Connected], now: Now) {
        for connected in outboxes {
            self.attach(connected, now);
        }
        self.claim_inherited(now);
        for outbox in &mut self.outboxes {
            if !outboxes.iter().any(|c| c.name == outbox.sink) && outbox.rows.is_some() {
                outbox.detach("its sink is not in the rules any more; its rows are kept", now);
            }
        }
    }

    /// Gives a sink's outboxes their consumer.
    fn attach(&mut self, connected: &Connected, now: Now) {
        self.outbox(&connected.name, 0);
        for (class, _) in CLASSES {
            let id = QueueId::outbox(&connected.name, class);
            // What rules of another time left.
            if self.stored.iter().any(|s| s.queue == id) {
                self.outbox(&connected.name, class);
            }
        }
        let Some(rows) = &connected.rows else { return };
        for outbox in self.of_sink(&connected.name).filter(|outbox| !outbox.retired) {
            outbox.rows = Some(rows.clone());
            outbox.generation = connected.generation;
            outbox.window = 0;
            outbox.error = None;
            outbox.reset();
            outbox.queue.set_up(false, now);
        }
    }

    fn consumer(&mut self, sink: &str, generation: u64, mut event: ConsumerEvent, now: Now) {
        for outbox in self.outboxes.iter_mut().filter(|o| *o.sink == *sink && o.generation == generation) {
            match &mut event {
                ConsumerEvent::Up { window } => {
                    if let Some(error) = outbox.error.take() {
                        tracing::info!(outbox = &*outbox.name, after = error, "works again");
                    }
                    outbox.window = *window;
                    outbox.queue.set_up(true, now);
                }
                ConsumerEvent::Down { error } => {
                    if outbox.error.is_none() {
                        tracing::warn!(outbox = &*outbox.name, error, "cannot deliver: what comes is kept");
                    }
                    outbox.error = Some(error.clone());
                    outbox.queue.set_up(false, now);
                }
                ConsumerEvent::Holds { rows } => outbox.queue.set_held(*rows),
                ConsumerEvent::Reset => outbox.reset(),
                // Of the consumer, not of a class.
                ConsumerEvent::Counted { .. } if outbox.class != 0 => {}
                ConsumerEvent::Counted { what, by } => {
                    let count = outbox.counted.iter_mut().find(|(known, _)| *known == *what);
                    match count {
                        Some((_, count)) => *count += *by,
                        None => outbox.counted.push((*what, *by)),
                    }
                }
                ConsumerEvent::Done(answers) if self.has_classes => {
                    let class = outbox.class;
                    let mine = answers.extract_if(.., |(number, _)| unnumbered(*number).0 == class);
                    let mine = mine.map(|(number, answer)| (unnumbered(number).1, answer));
                    self.local.extend(outbox.answers(mine, &self.dead_letters, now));
                }
                ConsumerEvent::Done(answers) => {
                    self.local.extend(outbox.answers(answers.drain(..), &self.dead_letters, now));
                }
            }
        }
    }

    /// See [`report`].
    fn tell_given_up(&mut self, now: Now) {
        let (node, seq) = (&self.node, self.next_seq);
        let identity = || Identity { origin: Arc::clone(&node.origin), boot: node.boot, class: 0, seq };
        let Some((entry, counts)) = self.report.row(&self.outboxes, identity, now) else { return };
        self.next_seq += u64::from(node.place.of);
        let Some(outbox) = self.outboxes.iter_mut().find(|o| o.is_uplink() && o.class == 0) else { return };
        let how = How { until_answered: false, hold: false, droppable: false };
        if outbox.push(Arc::new(entry), how, None, now).is_ok() {
            self.report.sent(outbox.queue.last(), counts);
        }
    }

    /// Hands out rows, those of higher classes first.
    fn hand_out(&mut self, now: Now) {
        if !self.has_classes && self.paces.is_empty() {
            self.outboxes.iter_mut().for_each(|outbox| outbox.hand_out(0, None, now));
            return;
        }
        // Sinks whose rows of a higher class are not all on their way: lower ones wait, also while those are being read.
        let mut first: Vec<Arc<str>> = Vec::new();
        for class in std::iter::once(None).chain(CLASSES.map(|(class, _)| Some(class))) {
            for at in 0..self.outboxes.len() {
                let outbox = &self.outboxes[at];
                let is_of_class = match class {
                    None => is_inherited(outbox.class),
                    Some(class) => outbox.class == class,
                };
                if !is_of_class || (class.is_some() && first.contains(&outbox.sink)) {
                    continue;
                }
                let sink = Arc::clone(&outbox.sink);
                let others =
                    self.outboxes.iter().enumerate().filter(|(other, o)| *other != at && o.sink == sink);
                let others = others.map(|(_, o)| o.in_hand()).sum();
                let pace = self.paces.iter_mut().find(|(of, _)| *of == sink).map(|(_, pace)| pace);
                self.outboxes[at].hand_out(others, pace, now);
                if self.outboxes[at].queue.counters().queued > 0 {
                    first.push(sink);
                }
            }
        }
    }

    /// When rows that wait only for their pace may leave, or are too old.
    fn next_limit_us(&self) -> Option<u64> {
        let waits = |sink: &Arc<str>| self.outboxes.iter().any(|o| o.sink == *sink && o.waits_for_pace());
        let paced = self.paces.iter().filter(|(sink, _)| waits(sink)).map(|(_, pace)| pace.next_us());
        paced.chain(self.outboxes.iter().filter_map(|o| o.old_us)).min()
    }
}

impl Hook for Hub {
    fn publish(&mut self, message: &Message<'_>, matched: &[u32], ends: &mut Ends<'_>, now: Now) {
        self.run_rules(message, matched, ends, now);
    }

    fn event(&mut self, event: &Event, ends: &mut Ends<'_>, now: Now) {
        self.run_event(event, ends, now);
    }

    fn said(&mut self, number: u64, outcome: Outcome) {
        if let Some(said) = &self.said {
            // The uplink may have ended.
            let _ = said.send((number, outcome != Outcome::Retry));
        }
    }

    fn next_local(&mut self) -> Option<LocalPublish> {
        self.local.pop_front()
    }

    fn has_local(&self) -> bool {
        !self.local.is_empty()
    }

    fn take_rows(&mut self) -> Vec<RowElsewhere> {
        std::mem::take(&mut self.elsewhere)
    }

    fn row(&mut self, row: &[u8], ends: &mut Ends<'_>, now: Now) {
        if row.first() == Some(&stage::MARK) {
            self.run_stage(row, ends, now);
            return;
        }
        let Some((name, how, entry)) = unpack(row) else {
            ends.discard(Outcome::Retry);
            return;
        };
        // Rules may have reached the other shard first: the outbox is there from now on.
        let index = match self.outboxes.iter().position(|o| *o.name == *name) {
            Some(index) => index,
            None => {
                let (sink, class) = split_name(name);
                self.outbox(&sink.into(), class)
            }
        };
        let end = ends.end();
        if let Err(end) = self.outboxes[index].push(entry, how, end, now) {
            ends.resolve(end, Outcome::Retry);
        }
    }

    fn kept(&mut self, kept: &Kept, ended: &mut Vec<(End, Outcome)>) {
        self.keep(kept, ended);
    }

    fn giving(&mut self, rule: u64, round: u64) {
        self.give_away(rule, round);
    }

    fn given(&mut self) -> Option<(u64, u64)> {
        self.given_away()
    }

    fn keeps(&self) -> Vec<u64> {
        self.kept_here()
    }

    fn kept_elsewhere(&mut self, peer: u16, rule: Option<(u64, bool)>) {
        self.homes.kept_elsewhere(peer, rule);
    }

    fn inherited(&mut self, inherited: &[Inherited], now: Now) {
        self.inherit(inherited, now);
    }

    fn due(&self, now: Now, urgent: bool, smoothed_commit: Duration) -> bool {
        self.rules.memory.is_due(now)
            || self.report.next_due_us().is_some_and(|due_us| due_us <= now.mono_us)
            || self.outboxes.iter().any(|o| o.queue.due(now, urgent, smoothed_commit))
    }

    fn next_due_us(&self, urgent: bool, smoothed_commit: Duration) -> Option<u64> {
        let rows = self.outboxes.iter().filter_map(|o| o.queue.next_due_us(urgent, smoothed_commit)).min();
        let others = [self.rules.memory.next_due_us(), self.next_limit_us(), self.report.next_due_us()];
        others.into_iter().chain([rows]).flatten().min()
    }

    fn write(&mut self, now: Now, which: Which, batch: &mut Vec<Op>) {
        self.rules.write(batch);
        self.report.write(&self.outboxes, now, batch);
        for Outbox { queue, .. } in &mut self.outboxes {
            match which {
                Which::Due { urgent, smoothed_commit }
                    if !queue.takes_along(now, urgent, smoothed_commit) =>
                {
                    queue.write_removals(batch);
                }
                _ => drop(queue.write(now, batch)),
            }
        }
    }

    fn set_admitted(&mut self, admitted: bool) {
        self.rules.memory.set_admitted(admitted);
        self.outboxes.iter_mut().for_each(|o| o.queue.set_admitted(admitted));
    }

    fn withholds(&self) -> bool {
        self.outboxes.iter().any(|o| o.queue.is_withholding())
    }

    fn submitted(&mut self, ticket: Ticket) {
        self.rules.memory.submitted(ticket);
        self.outboxes.iter_mut().for_each(|o| o.queue.submitted(ticket));
    }

    fn committed(&mut self, ticket: Ticket, ended: &mut Vec<(End, Outcome)>) {
        self.rules.memory.committed(ticket, ended);
        self.outboxes.iter_mut().for_each(|o| o.queue.committed(ticket, ended));
    }

    fn rows(&mut self, queue: QueueId, rows: Vec<StoredRow>, now: Now) {
        if let Some(outbox) = self.outboxes.iter_mut().find(|o| o.queue.id() == queue) {
            outbox.queue.loaded(rows, now);
        }
    }

    fn turn(&mut self, now: Now, ended: &mut Vec<(End, Outcome)>, reads: &mut Vec<(QueueId, u64)>) {
        let limit = |outbox: &mut Outbox| outbox.limit(self.node.outboxes.age_max, self.node.boot, now);
        if self.outboxes.iter_mut().map(limit).sum::<u64>() > 0 {
            self.report.changed(now);
        }
        self.tell_given_up(now);
        self.hand_out(now);
        for outbox in &mut self.outboxes {
            ended.append(&mut outbox.ended);
            reads.extend(outbox.queue.want_read().map(|from| (outbox.queue.id(), from)));
        }
    }
}

#[cfg(test)]
mod tests;
