//! The rules of a hub: which are in force, and what they make of a message.
//!
//! A rule has a number, by which the shard's filters know it, for as long as a rule of its name is loaded. A reload changes
//! only what differs: filters of rules that stay are not touched, nor are their counters and state.

use super::homes::{Home, entity};
use super::memory::{Memory, SHARED};
use super::outbox::{How, class, parcel};
use super::source::{Name, Pairs, Source, asked_properties, forwardable, local_properties};
use super::stage::Stage;
use super::{Hub, Load, events};
use crate::control::RuleStatus;
use bytes::Bytes;
use ferrule_broker::{
    Attachment, Ends, EventKind, LocalPublish, Message, Place, Publisher, Role, RowElsewhere, Shard,
};
use ferrule_mqtt::QoS;
use ferrule_outbox::{End, Outcome, Reason};
use ferrule_rules::{
    Ack, Body, Durability, Failure, Keeps, Qos0, Rows, Rule, RuleState, Scratch, Step, UserProperties,
    extend_rule_path, step,
};
use ferrule_store::record::Entry;
use ferrule_store::{MessageId, Now, Op, Store};
use foldhash::{HashMap, HashMapExt};
use serde_json::{Map, Value};
use std::sync::Arc;

/// Operations of a rule's program on one message: 100,000 are some 5 ms, far above any sane rule.
const FUEL: u64 = 100_000;

/// A message that has passed more brokers and rules than this is a loop (docs/contracts.md, 3).
pub(super) const HOPS_MAX: u8 = 8;

/// Where a row goes.
#[derive(Debug, Clone, Copy)]
enum Target {
    Outbox(usize),
    Local,
    Log,
}

/// A rule in force.
struct Loaded {
    rule: Arc<Rule>,
    file: Arc<str>,
    /// Its place in the text.
    order: usize,
    state: RuleState,
    targets: Box<[Target]>,
    publisher: Arc<Publisher>,
    /// The shard of this process that runs it, if this node does; none: each runs it on its own messages.
    owner: Option<u16>,
    /// It is in [`Memory::changed`].
    is_noted: bool,
}

/// The rules in force, and what they work with.
pub(super) struct Rules {
    /// By number; none: the number is free.
    loaded: Vec<Option<Loaded>>,
    free: Vec<u32>,
    numbers: HashMap<String, u32>,
    listeners: Vec<(EventKind, u32)>,
    /// Numbers by rule id.
    ids: HashMap<u64, u32>,
    scratch: Scratch,
    rows: Rows,
    pub(super) memory: Memory,
    is_shared_noted: bool,
    /// What earlier process lives remembered of rules that have not come yet.
    remembered: HashMap<u64, Vec<(Bytes, Bytes)>>,
    pub(super) loops: u64,
}

impl Rules {
    pub(super) fn new(seed: u128, state: &[(u64, Bytes, Bytes)]) -> Self {
        let mut remembered: HashMap<u64, Vec<(Bytes, Bytes)>> = HashMap::new();
        for (rule, key, value) in state {
            remembered.entry(*rule).or_default().push((key.clone(), value.clone()));
        }
        Self {
            loaded: Vec::new(),
            free: Vec::new(),
            numbers: HashMap::new(),
            listeners: Vec::new(),
            ids: HashMap::new(),
            scratch: Scratch::new(seed),
            rows: Rows::default(),
            memory: Memory::default(),
            is_shared_noted: false,
            remembered,
            loops: 0,
        }
    }

    /// The rules that asked for an event.
    pub(super) fn listeners(&self, kind: EventKind) -> Vec<u32> {
        self.listeners.iter().filter(|(asked, _)| *asked == kind).map(|(_, number)| *number).collect()
    }

    /// Finds out which rules ask for which events.
    fn listen(&mut self) {
        self.listeners.clear();
        for (number, loaded) in self.loaded.iter().enumerate() {
            let Some(loaded) = loaded.as_ref().filter(|loaded| loaded.rule.enabled) else { continue };
            for kind in loaded.rule.events().filter_map(events::named) {
                if !self.listeners.contains(&(kind, number as u32)) {
                    self.listeners.push((kind, number as u32));
                }
            }
        }
    }

    /// Notes that a rule has changed what it remembers.
    fn note(&mut self, number: u32, keeps: Keeps, end: Option<End>, now: Now) {
        let is_noted = match (keeps, self.loaded.get_mut(number as usize)) {
            (Keeps::Own, Some(Some(loaded))) => std::mem::replace(&mut loaded.is_noted, true),
            (Keeps::Own, _) => true,
            (Keeps::Shared, _) => {
                self.is_shared_noted = true;
                true
            }
        };
        if !is_noted {
            self.memory.changed.push(number);
        }
        self.memory.note(end, now);
    }

    /// Adds what rules remember to the turn's batch.
    pub(super) fn write(&mut self, batch: &mut Vec<Op>) {
        if !self.memory.write(batch) {
            return;
        }
        for number in std::mem::take(&mut self.memory.changed) {
            let Some(Some(loaded)) = self.loaded.get_mut(number as usize) else { continue };
            loaded.is_noted = false;
            let rule = loaded.rule.id;
            loaded.state.take_changes(|key, value| batch.push(op(rule, key, value)));
        }
        if std::mem::take(&mut self.is_shared_noted) {
            self.scratch.take_shared_changes(|key, value| batch.push(op(SHARED, key, value)));
        }
    }

    /// Whether all that rules remember has been added to a batch.
    pub(super) fn is_written(&self) -> bool {
        self.memory.changed.is_empty() && self.memory.gone.is_empty() && !self.is_shared_noted
    }

    /// Gives a rule that comes what it remembered.
    fn restore(&mut self, place: usize, keeps: Keeps) {
        match keeps {
            Keeps::Own => {
                let Some(Some(loaded)) = self.loaded.get_mut(place) else { return };
                for (key, value) in self.remembered.remove(&loaded.rule.id).unwrap_or_default() {
                    loaded.state.restore(&key, &value);
                }
            }
            Keeps::Shared => {
                for (key, value) in self.remembered.remove(&SHARED).unwrap_or_default() {
                    self.scratch.restore_shared(&key, &value);
                }
            }
        }
    }

    /// What rules in force remember, each with the shard of this process that has it.
    pub(super) fn entities(&self) -> impl Iterator<Item = (u64, u16)> {
        let loaded = self.loaded.iter().flatten();
        loaded.filter_map(|loaded| Some((entity(loaded.rule.id, loaded.rule.keeps()?), loaded.owner?)))
    }

    /// What a rule, or all of them together, remembered at another node: this one goes on with it, now or when the rule comes.
    pub(super) fn remember(&mut self, of: u64, remembered: Vec<(Bytes, Bytes)>, place: Place) {
        self.drop_memory(of);
        self.remembered.insert(of, remembered);
        let known = self.loaded.iter().position(|loaded| {
            loaded.as_ref().is_some_and(|loaded| {
                let keeps = loaded.rule.keeps();
                loaded.owner == Some(place.index)
                    && keeps.is_some_and(|keeps| entity(loaded.rule.id, keeps) == of)
            })
        });
        if let Some(known) = known {
            self.restore(known, if of == SHARED { Keeps::Shared } else { Keeps::Own });
        }
    }

    /// Another node keeps it: what it remembers here is that one's.
    pub(super) fn drop_memory(&mut self, of: u64) {
        self.remembered.remove(&of);
        if of == SHARED {
            self.scratch.drop_shared();
        } else if let Some(Some(loaded)) =
            self.ids.get(&of).and_then(|number| self.loaded.get_mut(*number as usize))
        {
            loaded.state.drop_memory();
        }
    }

    /// In the order of the text.
    pub(super) fn status(&self, now: Now) -> Vec<RuleStatus> {
        let mut loaded: Vec<&Loaded> = self.loaded.iter().flatten().collect();
        loaded.sort_unstable_by_key(|l| l.order);
        loaded.into_iter().map(|loaded| loaded.status(now)).collect()
    }

    /// The number of a rule of this name; a new one if there is none.
    fn number(&mut self, name: &str) -> u32 {
        if let Some(&number) = self.numbers.get(name) {
            return number;
        }
        let number = self.free.pop().unwrap_or_else(|| {
            self.loaded.push(None);
            // Some thousands (`Destination::Hook`).
            self.loaded.len() as u32 - 1
        });
        self.numbers.insert(name.to_owned(), number);
        number
    }
}

impl Loaded {
    /// The filters by which messages come to it.
    fn filters(&self) -> impl Iterator<Item = &str> {
        self.rule.topic_filters().filter(|_| self.rule.enabled)
    }

    fn status(&self, now: Now) -> RuleStatus {
        let c = &self.state.counters;
        let failed_by = (Failure::ALL.iter().zip(c.failed))
            .filter(|(_, count)| *count > 0)
            .map(|(failure, count)| (failure.name().to_owned(), count.into()));
        RuleStatus {
            name: self.rule.name.clone(),
            file: self.file.to_string(),
            state: match self.state.suspended(ferrule_rules::Now { wall_ms: now.wall_ms }) {
                _ if !self.rule.enabled => "disabled",
                Some(_) => "suspended",
                None => "running",
            }
            .to_owned(),
            state_bytes: self.state.size().1 as u64,
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

impl Hub {
    /// Puts other rules in force, and connects outboxes to their consumers.
    pub(super) fn load<S: Store>(shard: &mut Shard<Self, S>, load: Load, now: Now) {
        let hub = shard.hook();
        hub.connect(&load.outboxes, now);
        let mut stays = vec![false; hub.rules.loaded.len()];
        let mut dropped: Vec<Arc<Rule>> = Vec::new();
        // Filter, rule, whether it is new.
        let mut changes: Vec<(String, u32, bool)> = Vec::new();
        for (order, rule) in load.rules.into_iter().enumerate() {
            let number = hub.rules.number(&rule.name);
            let place = number as usize;
            stays.resize(hub.rules.loaded.len(), false);
            stays[place] = true;
            let file = load.files.get(rule.file).cloned().unwrap_or_default();
            if let Some(Some(loaded)) = hub.rules.loaded.get_mut(place)
                && loaded.rule.text == rule.text
                && loaded.rule.dialect == rule.dialect
            {
                // Compiled anew with the set, since paths have other numbers; all else is as it was.
                dropped.push(std::mem::replace(&mut loaded.rule, rule));
                (loaded.order, loaded.file) = (order, file);
                continue;
            }
            let targets = (rule.inserts.iter())
                .map(|insert| match insert.sink.as_str() {
                    "local" => Target::Local,
                    "log" => Target::Log,
                    sink => Target::Outbox(hub.outbox(&sink.into(), class(rule.priority))),
                })
                .collect();
            let mut before = hub.rules.loaded[place].take();
            let publisher = before.as_ref().map_or_else(|| as_publisher(&rule), |b| Arc::clone(&b.publisher));
            let owner = rule.keeps().map(|keeps| match keeps {
                Keeps::Own => hub.node.place.owner(&rule.name),
                Keeps::Shared => hub.node.place.owner("kv_store"),
            });
            let state = RuleState::default();
            let is_noted = before.as_ref().is_some_and(|b| b.is_noted);
            let keeps = rule.keeps().filter(|_| owner == Some(hub.node.place.index));
            let id = rule.id;
            hub.rules.ids.insert(id, number);
            let mut loaded = Loaded { rule, file, order, state, targets, publisher, owner, is_noted };
            let old: Vec<&str> = before.iter().flat_map(Loaded::filters).collect();
            if !old.iter().copied().eq(loaded.filters()) {
                changes.extend(old.iter().map(|filter| ((*filter).to_owned(), number, false)));
                changes.extend(loaded.filters().map(|filter| (filter.to_owned(), number, true)));
            }
            if let Some(before) = &mut before {
                // What it remembers stays, also when it says something else now.
                loaded.state = std::mem::take(&mut before.state);
                loaded.state.start_counting();
            }
            hub.rules.loaded[place] = Some(loaded);
            dropped.extend(before.map(|before| before.rule));
            match (keeps, owner) {
                (Some(keeps), _) => hub.rules.restore(place, keeps),
                // Another shard has it.
                (None, Some(_)) => drop(hub.rules.remembered.remove(&id)),
                (None, None) => {}
            }
        }
        for (place, gone) in hub.rules.loaded.iter_mut().enumerate().filter(|(place, _)| !stays[*place]) {
            let Some(mut gone) = gone.take() else { continue };
            hub.rules.numbers.remove(&gone.rule.name);
            hub.rules.ids.remove(&gone.rule.id);
            // What it remembered goes with it.
            gone.state.forget();
            let rule = gone.rule.id;
            gone.state.take_changes(|key, value| hub.rules.memory.gone.push(op(rule, key, value)));
            hub.rules.free.push(place as u32);
            changes.extend(gone.filters().map(|filter| (filter.to_owned(), place as u32, false)));
        }
        hub.tell_unclaimed();
        hub.rules.listen();
        let heard = EventKind::ALL.into_iter().filter(|kind| !hub.rules.listeners(*kind).is_empty());
        let heard: Vec<EventKind> = heard.collect();
        shard.set_events(heard.into_iter());
        if !dropped.is_empty() {
            // Thousands of compiled rules take milliseconds to free, which messages need not wait for. Without a thread they are freed here.
            drop(std::thread::Builder::new().name("old rules".to_owned()).spawn(move || drop(dropped)));
        }
        for (filter, number, added) in changes {
            match added {
                true => shard.add_hook_filter(&filter, number),
                false => shard.remove_hook_filter(&filter, number),
            }
        }
    }

    /// The message as rules see it, and what a row keeps of it.
    pub(super) fn run_rules(
        &mut self,
        message: &Message<'_>,
        matched: &[u32],
        ends: &mut Ends<'_>,
        now: Now,
    ) {
        let own = Arc::clone(&self.node.origin);
        let origin = Source::of(message, &own, self.next_id());
        if origin.hops > HOPS_MAX {
            self.rules.loops += 1;
            ends.discard(Outcome::Discarded(Reason::Loop));
            return;
        }
        if origin.own_identity && message.attachment.is_none() && !self.node.edge {
            self.next_seq += u64::from(self.node.place.of);
        }
        self.run(message, origin, None, matched, ends, now);
    }

    /// What the next message that comes without an identity gets.
    pub(super) fn next_id(&self) -> MessageId {
        MessageId { boot: self.node.boot, class: 0, seq: self.next_seq }
    }

    /// Runs rules on a message, or on an event with its columns that a message stands for.
    pub(super) fn run(
        &mut self,
        message: &Message<'_>,
        origin: Source<'_>,
        event: Option<(&str, &Map<String, Value>)>,
        matched: &[u32],
        ends: &mut Ends<'_>,
        now: Now,
    ) {
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
            edge: origin.edge.map(|edge| &**edge),
            // A device's message has no identity at the edge: its rows get one each.
            message_id: (!self.node.edge).then_some(&origin as &dyn std::fmt::Display),
            timestamp_ms: origin.received.wall_ms,
            user_properties: (!message.properties.is_empty()).then_some(&properties as &dyn UserProperties),
            node: Some(&self.node.origin),
            event: event.map(|(name, _)| name),
            columns: event.map(|(_, columns)| columns),
        };
        let rules = &mut self.rules;
        rules.scratch.begin();
        // Rules that have changed what they remember.
        let mut noted = Vec::new();
        let mut payload: Option<Bytes> = None;
        let mut kept_properties: Option<Bytes> = None;
        let mut kept_topic: Option<Arc<str>> = None;
        // What a rule publishes keeps the identity of what it was made from, through as many rules as there are.
        let mut attached: Option<Attachment> = None;
        for &index in matched {
            let Some(Some(loaded)) = rules.loaded.get_mut(index as usize) else { continue };
            let home = match (loaded.owner, loaded.rule.keeps()) {
                (Some(owner), Some(keeps)) => match self.homes.of(entity(loaded.rule.id, keeps)) {
                    Home::Here => Some(owner),
                    Home::Peer(peer) => Some(peer),
                    Home::Unknown => {
                        self.homes.unkept += 1;
                        ends.discard(Outcome::Retry);
                        continue;
                    }
                },
                _ => None,
            };
            if let Some(shard) = home.filter(|home| *home != self.node.place.index) {
                let row = Stage::new(loaded.rule.id, message, &origin, event).parcel();
                let end = if loaded.rule.ack == Ack::None { None } else { ends.end() };
                self.elsewhere.push(RowElsewhere { shard, row, hold: message.hold, end });
                continue;
            }
            let mut fuel = FUEL;
            let rule_now = ferrule_rules::Now { wall_ms: now.wall_ms };
            let outcome = step(
                &loaded.rule,
                &mut loaded.state,
                &input,
                &mut rules.scratch,
                rule_now,
                &mut fuel,
                &mut rules.rows,
            );
            if let Some(keeps) = loaded.rule.keeps() {
                let is_changed = match keeps {
                    Keeps::Own => loaded.state.is_changed(),
                    Keeps::Shared => rules.scratch.is_shared_changed(),
                };
                if is_changed {
                    let default = if self.node.edge { Durability::Checkpoint } else { Durability::Exact };
                    let waits = loaded.rule.durability.unwrap_or(default) == Durability::Exact
                        && loaded.rule.ack != Ack::None;
                    noted.push((index, keeps, if waits { ends.end() } else { None }));
                }
            }
            match outcome {
                Step::Emit => {}
                Step::NoMatch => continue,
                // Counted by its rule, acknowledged, and counted there too.
                Step::Failed(_) | Step::OutOfFuel => {
                    if outcome != Step::Failed(Failure::Suspended)
                        && let Some(why) = loaded.state.suspended(rule_now)
                    {
                        tracing::warn!(rule = loaded.rule.name, why, "suspended: tried again later");
                    }
                    ends.discard(Outcome::Discarded(Reason::Rule));
                    continue;
                }
            }
            let rule = &loaded.rule;
            let is_only = matched.len() == 1 && rules.rows.rows.len() == 1;
            for row in rules.rows.rows.drain(..) {
                let passthrough = row.body == Body::Payload;
                let body = match row.body {
                    // One that nobody shares is not counted either.
                    Body::Payload if is_only => Bytes::copy_from_slice(message.payload),
                    Body::Payload => {
                        payload.get_or_insert_with(|| Bytes::copy_from_slice(message.payload)).clone()
                    }
                    Body::Json(bytes) | Body::Text(bytes) | Body::Encoded(bytes) => bytes,
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
                    Target::Local => self.local.push_back(LocalPublish {
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
                        properties: local_properties(&row.properties, &origin),
                        publisher: Arc::clone(&loaded.publisher),
                        received: origin.received,
                        hops: message.hops + 1,
                        attachment: Some(Arc::clone(attached.get_or_insert_with(|| Arc::new(origin.keep())))),
                        hold: message.hold,
                        end: if rule.ack == Ack::None { None } else { ends.end() },
                    }),
                    Target::Outbox(index) => {
                        let mut identity = origin.identity();
                        if self.node.edge {
                            identity.seq = self.next_seq;
                            identity.class = self.outboxes[index].class;
                            self.next_seq += u64::from(self.node.place.of);
                        }
                        let properties = if row.properties.is_empty() {
                            kept_properties.get_or_insert_with(|| forwardable(message.properties)).clone()
                        } else {
                            Bytes::copy_from_slice(
                                asked_properties(&row.properties).as_properties().as_bytes(),
                            )
                        };
                        let entry = Arc::new(Entry {
                            identity,
                            rule: path,
                            row: row.row,
                            target: row.target,
                            key: row.key.unwrap_or_else(|| origin.client_id.to_string()).into(),
                            passthrough,
                            qos: row.qos.unwrap_or(1),
                            retain: row.retain.unwrap_or(false),
                            client_id: origin.client_id.to_arc(),
                            username: origin.username.map(Name::to_arc),
                            topic: Arc::clone(kept_topic.get_or_insert_with(|| message.topic.into())),
                            edge: origin.edge.cloned(),
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
        for (number, keeps, end) in noted {
            self.rules.note(number, keeps, end, now);
        }
    }

    /// Runs a rule of this shard on a message of another.
    pub(super) fn run_stage(&mut self, parcel: &[u8], ends: &mut Ends<'_>, now: Now) {
        let stage = Stage::unpack(parcel);
        let number = stage.as_ref().and_then(|stage| self.rules.ids.get(&stage.rule)).copied();
        let (Some(stage), Some(number)) = (stage, number) else {
            // A reload reaches one shard after the other: the publisher keeps the message for now.
            ends.discard(Outcome::Retry);
            return;
        };
        let keeps = self.rules.loaded.get(number as usize).and_then(|l| l.as_ref()?.rule.keeps());
        if keeps.is_some_and(|keeps| self.homes.of(entity(stage.rule, keeps)) != Home::Here) {
            // It is another node's by now, as whoever sent this will hear.
            self.homes.unkept += 1;
            ends.discard(Outcome::Retry);
            return;
        }
        let publisher = stage.publisher();
        let columns = stage.columns();
        let event = columns.as_ref().map(|(name, columns)| (*name, columns));
        self.run(&stage.message(&publisher, now), stage.source(), event, &[number], ends, now);
    }
}

fn op(rule: u64, key: Vec<u8>, value: Option<Vec<u8>>) -> Op {
    match value {
        Some(value) => Op::StatePut { rule, key: key.into(), value: value.into() },
        None => Op::StateDelete { rule, key: key.into() },
    }
}

/// What a rule publishes in this broker comes from it.
fn as_publisher(rule: &Rule) -> Arc<Publisher> {
    Arc::new(Publisher {
        client_id: format!("rule:{}", rule.name).into(),
        username: None,
        host: None,
        role: Role::Device,
    })
}
