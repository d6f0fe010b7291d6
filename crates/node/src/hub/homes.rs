//! Where rules that remember something run, in a cluster: each on one node, whose store says that it keeps them (contract 5).
//!
//! # Data
//! Entities: a rule's id, or [`SHARED`] for what all rules share, which is one thing.
//!
//! # Operation
//! The store says which this node keeps, with what they remember ([`Hub::keep`]). Of those the shard that has the rule here tells all other nodes, so that each
//! shard knows which shard elsewhere to send a message to; they tell it anew on each link. A message whose rule nobody is known to keep, since
//! its keeper is gone and the next one has not said so yet, is not acknowledged: its publisher has it still. At QoS 0 it passes that rule by, and is counted.
//!
//! Each node is to keep its share. So the store asks for one that is another living node's ([`Hub::give_away`]): from then on nobody is known to have it.
//! What it remembers is written in that turn, whether anybody waits for it or not, and those who wait are answered with that commit; behind it the shard that
//! has it answers the store ([`Hub::given_away`]), which gives it away, or back ([`Hub::keep`]). The other node is told that it is not here any more, looks,
//! and tells all that it is there.
//!
//! # Invariants
//! - Nothing is changed of what an entity remembers between the answer and the store's next word of it: in between nobody has it.

use super::Hub;
use super::memory::SHARED;
use ferrule_broker::Shard;
use ferrule_outbox::{End, Outcome};
use ferrule_rules::Keeps;
use ferrule_store::{Kept, Store};
use std::collections::{BTreeSet, HashMap};

/// Where an entity's messages go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Home {
    /// To the shard of this process that has it.
    Here,
    /// To this shard of another node.
    Peer(u16),
    /// Nobody is known to have it.
    Unknown,
}

/// See the module's header.
#[derive(Debug, Default)]
pub(super) struct Homes {
    /// The node is one of a cluster.
    clustered: bool,
    here: BTreeSet<u64>,
    elsewhere: HashMap<u64, u16>,
    /// The one that the store asked for, in which round, and whether this shard has answered: it is nobody's until the store says whose.
    giving: Option<(u64, u64, bool)>,
    /// Messages that passed a rule by.
    pub(super) unkept: u64,
}

/// What a rule's memory belongs to.
pub(super) fn entity(rule: u64, keeps: Keeps) -> u64 {
    match keeps {
        Keeps::Own => rule,
        Keeps::Shared => SHARED,
    }
}

impl Homes {
    pub(super) fn new(clustered: bool) -> Self {
        Self { clustered, ..Self::default() }
    }

    pub(super) fn of(&self, entity: u64) -> Home {
        if !self.clustered || self.here.contains(&entity) {
            Home::Here
        } else if self.giving.is_some_and(|(of, ..)| of == entity) {
            Home::Unknown
        } else {
            self.elsewhere.get(&entity).map_or(Home::Unknown, |peer| Home::Peer(*peer))
        }
    }

    /// See [`ferrule_broker::Hook::kept_elsewhere`].
    pub(super) fn kept_elsewhere(&mut self, peer: u16, rule: Option<(u64, bool)>) {
        match rule {
            Some((rule, true)) => drop(self.elsewhere.insert(rule, peer)),
            Some((rule, false)) => self.elsewhere.retain(|of, at| (*of, *at) != (rule, peer)),
            None => self.elsewhere.retain(|_, at| *at != peer),
        }
    }
}

impl Hub {
    /// Rules have come or gone: says which there are that remember something.
    pub(super) fn name_keepers<S: Store>(shard: &mut Shard<Self, S>) {
        let hub = shard.hook();
        if !hub.homes.clustered {
            return;
        }
        if hub.node.place.index == 0 {
            let rules: BTreeSet<u64> = hub.rules.entities().map(|(entity, _)| entity).collect();
            shard.keep_rules(rules.into_iter().collect());
        }
        shard.tell_kept();
    }

    /// See [`ferrule_broker::Hook::kept`].
    pub(super) fn keep(&mut self, kept: &Kept, ended: &mut Vec<(End, Outcome)>) {
        let said = kept.lost.iter().chain(&kept.given).chain(kept.rules.iter().map(|(entity, _)| entity));
        if said.copied().any(|of| self.homes.giving.is_some_and(|(entity, ..)| entity == of)) {
            self.homes.giving = None;
        }
        for entity in kept.lost.iter().chain(&kept.given) {
            self.homes.here.remove(entity);
            self.rules.drop_memory(*entity);
        }
        if !kept.lost.is_empty() {
            self.rules.memory.give_up(ended);
        }
        for (entity, remembered) in &kept.rules {
            self.homes.here.insert(*entity);
            self.rules.remember(*entity, remembered.clone(), self.node.place);
        }
    }

    /// See [`ferrule_broker::Hook::giving`].
    pub(super) fn give_away(&mut self, entity: u64, round: u64) {
        // In the order of events it is here, unless it has been lost: then the store does not wait for an answer.
        self.homes.here.remove(&entity);
        self.homes.giving = Some((entity, round, false));
        self.rules.memory.hurry();
    }

    /// See [`ferrule_broker::Hook::given`]. The rule may come with a load that this shard has yet to see.
    pub(super) fn given_away(&mut self) -> Option<(u64, u64)> {
        let (entity, round, false) = self.homes.giving? else { return None };
        let index = self.node.place.index;
        let has_it = self.rules.entities().any(|(of, owner)| of == entity && owner == index);
        if !has_it || !self.rules.is_written() {
            return None;
        }
        self.homes.giving = Some((entity, round, true));
        Some((entity, round))
    }

    /// See [`ferrule_broker::Hook::keeps`].
    pub(super) fn kept_here(&self) -> Vec<u64> {
        let here = self
            .rules
            .entities()
            .filter(|(entity, owner)| *owner == self.node.place.index && self.homes.here.contains(entity));
        let here: BTreeSet<u64> = here.map(|(entity, _)| entity).collect();
        here.into_iter().collect()
    }
}
