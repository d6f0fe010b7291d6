//! Delayed publish: `$delayed/{seconds}/{topic}`, an extension that EMQX made known.
//!
//! # Data
//! A message whose time has not come is in memory, within bounds, and as a row of this shard's own queue in the store, where it is durable before
//! its publisher has its acknowledgement (contract 1). The shard that its publisher is on keeps it.
//!
//! # Operation
//! `delay` takes a message while it is routed; `fire_delayed` routes it under its own topic when its time has come. Its row goes
//! when all that it became has ended, so that a kill in between publishes it again; one of QoS 2 is taken from the store in the
//! same commit as what was made of it, like the packet id of a publisher ([`crate::turn::Receiving`]), and is never published twice.
//! After a start rows are read back by and by; also those of shards that a node with more workers had. In a cluster those of a node that is gone are
//! read, published and removed by another one ([`Inherited`]), which forgets them when that node is back: what both publish meanwhile, since the first
//! was only cut off, comes twice.
//!
//! # Time
//! By the monotonic clock while the process lives, and by the wall clock over a restart: what is left then is never more than the
//! whole delay. A message expiry interval begins when the message is published under its own topic.
//!
//! # Bounds
//! Messages and bytes, for each shard its part, and beyond it what was inherited, which was within those of its node; a turn publishes so many. What is refused is told where it can be: 0x97; before MQTT 5
//! the connection is closed, since an acknowledgement would be a lie.

use crate::hook::{Ends, Hook, Message, Publisher, Role};
use crate::peers::{Owner, Place};
use crate::publish::{Refused, Routed, Scope, once};
use crate::shard::Shard;
use crate::turn::{Receiving, Wait};
use bytes::Bytes;
use ferrule_mqtt::{
    PacketType, Properties, PropertiesBuf, PropertyId, PropertyScope, QoS, ReasonCode, topic,
};
use ferrule_outbox::{Outcome, Reason};
use ferrule_store::record::{self, Record};
use ferrule_store::{Body, Inherited, Now, Op, QueueId, QueueSummary, Store, StoredRow};
use foldhash::{HashMap, HashMapExt};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The longest delay in seconds, 497 days; a larger number is a time in seconds since 1970. EMQX's.
const DELAY_MAX_S: u64 = 42_949_669;

/// Published in one turn: more wait for the next one.
const A_TURN: usize = 256;

/// One that found no room where it had to go is published again after this.
const AGAIN_US: u64 = 1_000_000;

/// What a message costs beside its texts and bytes: its record, and its places in two indexes.
const MESSAGE: usize = 320;

/// A delayed message's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    queue: QueueId,
    seq: u64,
}

impl Key {
    /// Takes it from the store.
    pub(crate) fn remove(self) -> Op {
        Op::Remove { queue: self.queue, first: self.seq, last: self.seq }
    }
}

/// All of a shard.
#[derive(Debug)]
pub(crate) struct Delayed {
    queue: QueueId,
    last: u64,
    messages: HashMap<Key, Arc<record::Delayed>>,
    /// Those that are not being published.
    due: BTreeSet<(u64, Key)>,
    bytes: usize,
    /// Queues that are not read to their end, from which row on.
    reads: Vec<(QueueId, u64)>,
    /// Those of nodes that are gone, which this one looks after.
    inherited: BTreeSet<QueueId>,
}

fn size(message: &record::Delayed) -> usize {
    MESSAGE + message.topic.len() + message.payload.len() + message.properties.len() + message.client_id.len()
}

impl Delayed {
    /// Of a shard, with what the store has.
    pub(crate) fn new(place: Place, stored: &[QueueSummary]) -> Self {
        let queue = QueueId::delayed(place.index);
        let its = |q: &&QueueSummary| q.queue.as_delayed().is_some_and(|shard| place.has(shard));
        Self {
            queue,
            last: stored.iter().find(|q| q.queue == queue).map_or(0, |q| q.last),
            messages: HashMap::new(),
            due: BTreeSet::new(),
            bytes: 0,
            reads: stored.iter().filter(its).map(|q| (q.queue, q.first)).collect(),
            inherited: BTreeSet::new(),
        }
    }

    /// Whether it is a queue of delayed messages.
    pub(crate) fn has(&self, queue: QueueId) -> bool {
        queue.as_delayed().is_some() || self.inherited.contains(&queue)
    }

    pub(crate) fn len(&self) -> usize {
        self.messages.len()
    }

    /// Rows to read, each asked for once.
    pub(crate) fn take_reads(&mut self) -> Vec<(QueueId, u64)> {
        std::mem::take(&mut self.reads)
    }

    /// These are all that are looked after from now on. What was read of others is their node's, but for what is being published.
    fn inherit(&mut self, queues: &[QueueSummary]) {
        let known = std::mem::replace(&mut self.inherited, queues.iter().map(|q| q.queue).collect());
        self.reads.extend(queues.iter().filter(|q| !known.contains(&q.queue)).map(|q| (q.queue, q.first)));
        let gone: BTreeSet<QueueId> = known.difference(&self.inherited).copied().collect();
        if !gone.is_empty() {
            let due = std::mem::take(&mut self.due);
            let (gone, due) = due.into_iter().partition(|(_, key)| gone.contains(&key.queue));
            self.due = due;
            BTreeSet::into_iter(gone).for_each(|(_, key)| drop(self.remove(key)));
        }
    }

    fn is_another_nodes(&self, queue: QueueId) -> bool {
        queue.as_inherited().is_some() && !self.inherited.contains(&queue)
    }

    fn insert(&mut self, key: Key, message: record::Delayed, due_us: u64) {
        let bytes = size(&message);
        if self.messages.insert(key, Arc::new(message)).is_none() {
            self.bytes += bytes;
            self.due.insert((due_us, key));
        }
    }

    fn remove(&mut self, key: Key) -> Option<Arc<record::Delayed>> {
        let message = self.messages.remove(&key)?;
        self.bytes -= size(&message);
        Some(message)
    }

    fn pop(&mut self, now_us: u64) -> Option<(Key, Arc<record::Delayed>)> {
        let (_, key) = self.due.first().filter(|(due_us, _)| *due_us <= now_us).copied()?;
        self.due.pop_first();
        Some((key, Arc::clone(self.messages.get(&key)?)))
    }

    /// When the next one is due.
    pub(crate) fn next_us(&self) -> Option<u64> {
        self.due.first().map(|(due_us, _)| *due_us)
    }
}

/// How many seconds from now; none: too many, or a time that is over.
fn delay_s(number: u64, now: Now) -> Option<u32> {
    let seconds = if number <= DELAY_MAX_S {
        number
    } else {
        number.checked_sub(u64::try_from(now.wall_ms).ok()? / 1_000)?
    };
    u32::try_from(seconds).ok().filter(|seconds| u64::from(*seconds) <= DELAY_MAX_S)
}

/// Whether a topic asks for a delay, rightly or not.
#[inline]
pub(crate) fn is_delayed(topic: &str) -> bool {
    // Hardly any topic begins so: one comparison.
    topic.as_bytes().first() == Some(&b'$') && topic.starts_with(topic::DELAYED_PREFIX)
}

impl<H: Hook, S: Store> Shard<H, S> {
    /// Why a publish that asks for a delay cannot have it. The topic is one that [`is_delayed`].
    pub(crate) fn delay_refusal(&self, topic: &str, bytes: usize) -> Option<Refused> {
        if topic::delayed(topic).and_then(|(number, _)| delay_s(number, self.now)).is_none() {
            return Some((ReasonCode::TOPIC_NAME_INVALID, |stats| &mut stats.topics_refused));
        }
        let is_full = self.delayed.len() >= self.limits.delayed_messages
            || self.delayed.bytes + MESSAGE + topic.len() + bytes > self.limits.delayed_bytes;
        is_full.then_some((ReasonCode::QUOTA_EXCEEDED, |stats| &mut stats.delayed_refused))
    }

    /// Keeps a message whose topic [`is_delayed`] until its time. As [`Shard::route_or_delay`] otherwise.
    #[cold]
    pub(crate) fn delay(
        &mut self,
        message: &Message<'_>,
        owner: Option<Owner>,
        joined: Option<&ferrule_outbox::End>,
    ) -> Routed {
        let parsed = topic::delayed(message.topic);
        let parsed = parsed.and_then(|(number, inner)| Some((delay_s(number, self.now)?, inner)));
        let bytes = message.payload.len() + message.properties.as_bytes().len();
        // A client's was looked at before; a will or what a rule published was not.
        if let Some((_, counter)) = self.delay_refusal(message.topic, bytes) {
            *counter(&mut self.stats) += 1;
            let mut ends = match joined {
                Some(_) => Ends::joined(&mut self.receipts, joined),
                None => Ends::new(&mut self.receipts, owner),
            };
            ends.discard(Outcome::Discarded(Reason::Limit));
            return Routed { matched: false, receipt: ends.finish() };
        }
        let Some((delay_s, inner)) = parsed else { return Routed { matched: false, receipt: None } };
        if delay_s == 0 {
            return self.route(&Message { topic: inner, ..*message }, Scope::Everyone(None), owner, joined);
        }
        self.stats.delayed += 1;
        let mut properties = PropertiesBuf::new();
        properties.extend(message.properties, |p| p != PropertyId::TopicAlias);
        let publisher = message.publisher;
        let kept = record::Delayed {
            topic: inner.into(),
            qos: message.qos.into(),
            retain: message.retain,
            properties: Bytes::copy_from_slice(properties.as_properties().as_bytes()),
            client_id: Arc::clone(&publisher.client_id),
            username: publisher.username.clone(),
            host: publisher.host.clone(),
            edge: match &publisher.role {
                Role::Device => None,
                Role::Edge(edge) => Some(Arc::clone(edge)),
            },
            hops: message.hops,
            path: message.path,
            delay_s,
            due_wall_ms: self.steady.ms(self.now).saturating_add(i64::from(delay_s) * 1_000),
            payload: Bytes::copy_from_slice(message.payload),
        };
        self.delayed.last += 1;
        let key = Key { queue: self.delayed.queue, seq: self.delayed.last };
        let body = Body::Inline(kept.payload.clone());
        let append = Op::Append { queue: key.queue, seq: key.seq, head: kept.to_bytes(), body };
        self.delayed.insert(key, kept, self.now.mono_us + u64::from(delay_s) * 1_000_000);
        let is_awaited = message.qos > QoS::AtMostOnce;
        self.op(append, is_awaited);
        let mut ends = match joined {
            Some(_) => Ends::joined(&mut self.receipts, joined),
            None => Ends::new(&mut self.receipts, owner),
        };
        if is_awaited {
            self.batch.waits.extend(ends.end().map(Wait::End));
        }
        let once = owner.filter(|_| message.hold).and_then(|owner| once(&self.sessions, owner));
        let receiving = once
            .and_then(|op| Some(Receiving { op, end: ends.end()?, awaited: Vec::new(), joined: Vec::new() }));
        let receipt = ends.finish();
        self.batch.received.extend(receiving);
        Routed { matched: true, receipt }
    }

    /// Rows of delayed messages that the store had.
    pub(crate) fn delayed_rows(&mut self, queue: QueueId, rows: Vec<StoredRow>) {
        let is_own = queue.as_delayed().is_some_and(|shard| self.peers.place.has(shard));
        let is_own = is_own || self.delayed.inherited.contains(&queue);
        let Some(last) = rows.last().filter(|_| is_own).map(|row| row.seq) else { return };
        for StoredRow { seq, head, body } in rows {
            // One that cannot be read stays where it is, as everywhere.
            let Ok(mut message) = record::Delayed::from_bytes(&head) else { continue };
            message.payload = body;
            let whole_ms = u64::from(message.delay_s) * 1_000;
            let left_ms = message.due_wall_ms.saturating_sub(self.steady.ms(self.now)).max(0) as u64;
            let due_us = self.now.mono_us + left_ms.min(whole_ms) * 1_000;
            self.delayed.insert(Key { queue, seq }, message, due_us);
        }
        self.delayed.reads.push((queue, last + 1));
    }

    /// The queues of nodes that are gone: the first shard looks after those of delayed messages.
    pub(crate) fn inherit_delayed(&mut self, inherited: &[Inherited]) {
        if self.peers.place.index == 0 {
            let delayed = inherited.iter().filter(|i| i.of.as_delayed().is_some());
            self.delayed.inherit(&delayed.map(|i| i.summary).collect::<Vec<_>>());
        }
    }

    /// Publishes what is due.
    pub(crate) fn fire_delayed(&mut self) {
        for _ in 0..A_TURN {
            let Some((key, kept)) = self.delayed.pop(self.now.mono_us) else { break };
            let publisher = Publisher {
                client_id: Arc::clone(&kept.client_id),
                username: kept.username.clone(),
                host: kept.host.clone(),
                role: kept.edge.clone().map_or(Role::Device, Role::Edge),
            };
            let scope = PropertyScope::Packet(PacketType::Publish);
            let qos = QoS::try_from(kept.qos).unwrap_or(QoS::AtMostOnce);
            let message = Message {
                qos,
                retain: kept.retain,
                properties: Properties::checked(&kept.properties, scope).unwrap_or(Properties::EMPTY),
                hops: kept.hops,
                path: kept.path,
                hold: qos == QoS::ExactlyOnce,
                ..Message::new(&kept.topic, &kept.payload, &publisher, self.now)
            };
            let owner = (qos > QoS::AtMostOnce).then_some(Owner::Delayed(key));
            let routed = self.route_or_delay(&message, None, owner, None);
            self.stats.delayed_published += 1;
            match routed.receipt {
                None => self.delayed_ended(key, Outcome::Delivered),
                Some((_, guard)) => self.ended.extend(guard.map(|guard| (guard, Outcome::Delivered))),
            }
        }
        self.settle();
    }

    /// All that a delayed message became has ended.
    pub(crate) fn delayed_ended(&mut self, key: Key, outcome: Outcome) {
        if outcome == Outcome::Retry && self.delayed.is_another_nodes(key.queue) {
            self.delayed.remove(key);
        } else if outcome == Outcome::Retry {
            self.delayed.due.insert((self.now.mono_us + AGAIN_US, key));
        } else if self.delayed.remove(key).is_some_and(|message| message.qos < 2) {
            // Nobody waits; of QoS 2 the row went with what it became.
            self.op(key.remove(), false);
        }
    }
}
