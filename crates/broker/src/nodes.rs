//! Shards of other nodes.
//!
//! # Constraints
//! A shard of this process is there as long as we are, and what it is sent arrives. One of another node may be out of reach, be gone for good,
//! or come back as another; and it takes no part in our commits.
//!
//! # Operation
//! Who drives the shard knows the members of the cluster and has a link to each of their shards. It calls [`Shard::add_peer`] for each, and then as
//! the link comes and goes [`Shard::peer_linked`] and [`Shard::peer_unlinked`]; [`Shard::peer_waits`] as the member is *in* or *out*
//! (`ferrule-cluster`), which is not the same: a member that is out of reach may still be one that new routes wait for.
//! [`Shard::peer_gone`] ends it; [`Shard::set_view`] says which members there are from then on. [`Shard::set_live`] says whether the node itself is one that others know. Parcels pass as between shards of one process.
//!
//! # Invariants
//! - On a link all routes are sent, in pieces, and each change ([`crate::telling`]). What the other side knew stays in force until it has all of them: subscribers
//!   have been promised that it is.
//! - What waits for an answer of a shard that is out of reach is to be tried again by whoever sent it: the message may have arrived or not.
//! - A peer's number is never given to another.
//!
//! # Not yet
//! Joint commits stay within the process.

use crate::hook::Hook;
use crate::parcel::Parcel;
use crate::peers::Peers;
use crate::routes::Cursor;
use crate::shard::{Destination, Shard};
use ferrule_outbox::Outcome;
use ferrule_store::{Kept, Now, Store};
use std::ops::Range;
use std::sync::Arc;

/// The protocol that knows whose rules are.
const KEEPS: u32 = 3;

/// Whether what a shard is sent arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Reach {
    /// It is one of this process.
    #[default]
    Here,
    /// It is sent all routes, and each change.
    Told,
    /// It is sent nothing.
    Away,
}

/// Who is at the other end of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Speaks {
    /// The version of the protocol that both know: 1 has no retained messages of other nodes.
    pub version: u32,
    /// It is the first shard of its node.
    pub first: bool,
}

impl Peers {
    pub(crate) fn is_full(&self, peer: u16) -> bool {
        self.links.get(usize::from(peer)).is_some_and(|link| link.full)
    }

    pub(crate) fn is_away(&self, peer: u16) -> bool {
        self.links.get(usize::from(peer)).is_none_or(|link| link.reach == Reach::Away)
    }
}

impl<H: Hook, S: Store> Shard<H, S> {
    /// A shard of another node, out of reach; its index from now on. None: there have been 65,535 of them in the life of this process.
    pub fn add_peer(&mut self) -> Option<u16> {
        self.peers.add()
    }

    /// Shards that this one knows, itself and those of its process among them: their indices end here.
    #[must_use]
    pub fn peers(&self) -> usize {
        self.peers.links.len()
    }

    /// A link to it is there, with nothing of an earlier one on its way: it is sent everything that it understands.
    pub fn peer_linked(&mut self, peer: u16, speaks: Speaks, now: Now) {
        self.now = now;
        self.away(peer);
        let before = peer.checked_sub(1).and_then(|before| self.peers.links.get(usize::from(before)));
        let node = if speaks.first { peer } else { before.map_or(peer, |link| link.node) };
        let Some(link) = self.peers.links.get_mut(usize::from(peer)) else { return };
        (link.reach, link.member, link.version, link.node) = (Reach::Told, true, speaks.version, node);
        self.tell_all(peer, !speaks.first);
        self.tell_owned(peer);
        for rule in self.peers.unkept.clone() {
            self.tell_keeps(peer, rule, false);
        }
        for rule in self.peers.kept.clone() {
            self.tell_keeps(peer, rule, true);
        }
        self.retained_linked(peer, speaks);
        // Of clients that came while there was no link to anybody who is waited for.
        self.copy_wills();
        self.ask_unsettled();
        self.settle();
    }

    /// Its link is gone.
    pub fn peer_unlinked(&mut self, peer: u16, now: Now) {
        self.now = now;
        self.away(peer);
        self.settle();
    }

    fn away(&mut self, peer: u16) {
        let Some(link) = self.peers.links.get_mut(usize::from(peer)).filter(|link| link.reach == Reach::Told)
        else {
            return;
        };
        link.reach = Reach::Away;
        (link.stale, link.telling) = (None, None);
        self.peers.unsaid(peer);
        self.ended.extend(self.peers.unanswered(peer).into_iter().map(|end| (end, Outcome::Retry)));
        self.owner_away(peer);
        self.hook.kept_elsewhere(peer, None);
        self.retained_unlinked(peer);
        self.wills.unlinked(peer);
    }

    /// Names the rules of this node that remember something, all of them (0: what they share): in a cluster each runs on one node ([`Store::keep`]).
    pub fn keep_rules(&mut self, rules: Vec<u64>) {
        self.peers.named.clone_from(&rules);
        self.store.keep(rules);
    }

    /// The first shard tells other nodes which rules this node has given up, behind the commit of it: it may be theirs, and they look.
    pub(crate) fn tell_unkept(&mut self, kept: &Kept) {
        if self.peers.place.index != 0 {
            return;
        }
        self.peers.unkept.retain(|rule| !kept.rules.iter().any(|(of, _)| of == rule));
        for rule in kept.lost.iter().chain(&kept.given) {
            self.peers.unkept.insert(*rule);
            for peer in self.peers.place.of..self.peers.links.len() as u16 {
                self.tell_keeps(peer, *rule, false);
            }
        }
    }

    /// Tells other nodes which rules are run here on the messages of all, when that has changed.
    pub fn tell_kept(&mut self) {
        let now = self.hook.keeps();
        let before = std::mem::replace(&mut self.peers.kept, now.clone());
        for peer in self.peers.place.of..self.peers.links.len() as u16 {
            let lost = before.iter().filter(|rule| !now.contains(rule)).map(|rule| (*rule, false));
            let new = now.iter().filter(|rule| !before.contains(rule)).map(|rule| (*rule, true));
            lost.chain(new).for_each(|(rule, keeps)| self.tell_keeps(peer, rule, keeps));
        }
    }

    fn tell_keeps(&mut self, peer: u16, rule: u64, keeps: bool) {
        if self.peers.links.get(usize::from(peer)).is_some_and(|link| link.version >= KEEPS) {
            self.peers.send(peer, &Parcel::Keeps { rule, keeps });
        }
    }

    /// Whether SUBACKs wait for it.
    pub fn peer_waits(&mut self, peer: u16, waits: bool, now: Now) {
        self.now = now;
        let version = self.peers.version();
        if let Some(link) = self.peers.links.get_mut(usize::from(peer)) {
            (link.waits, link.waits_from) = (waits, version);
        }
        self.release_retained();
        if waits {
            self.copy_wills();
        }
        self.release_late();
        self.settle();
    }

    /// They are a live member's: it and each other live member know one another.
    pub fn peers_serve(&mut self, peers: Range<u16>, now: Now) {
        self.now = now;
        for peer in peers {
            if let Some(link) = self.peers.links.get_mut(usize::from(peer)) {
                link.serves = true;
            }
        }
        self.copy_wills();
        self.settle();
    }

    /// Whether it has confirmed all that was there when it began to be waited for: from then on it knows what is promised, whatever links do.
    #[must_use]
    pub fn peer_knows(&self, peer: u16) -> bool {
        self.peers
            .links
            .get(usize::from(peer))
            .is_some_and(|link| link.waits && link.acked >= link.waits_from)
    }

    /// Whether so much waits to be sent to it that messages of QoS 0 are dropped.
    pub fn peer_full(&mut self, peer: u16, full: bool) {
        if let Some(link) = self.peers.links.get_mut(usize::from(peer)) {
            link.full = full;
        }
        if !full {
            self.retained_has_room(peer);
        }
    }

    /// It is no member any more: what it had is forgotten as soon as all members have adopted its sessions ([`Shard::set_view`]). That it is
    /// waited for is another matter: it may not know yet.
    pub fn peer_gone(&mut self, peer: u16, now: Now) {
        self.now = now;
        self.away(peer);
        self.orphaned(peer);
        self.wills_orphaned(peer);
        self.settle();
    }

    /// Its routes lead nowhere.
    pub(crate) fn forget_routes(&mut self, peer: u16) {
        let mut filters: Vec<Box<str>> = Vec::new();
        self.routes.filters_of(Destination::peer_key(peer), |filter| filters.push(filter.into()));
        for filter in filters {
            self.routes.remove(&filter, Destination::peer_key(peer));
        }
        let groups: Vec<Arc<str>> = self.shares.of_shard(peer).map(|group| Arc::clone(&group.text)).collect();
        groups.iter().for_each(|text| self.members_elsewhere(text, peer, 0, 0));
    }

    /// Whether this node serves: before it does, and when it has been removed, nobody is told that he has subscribed.
    pub fn set_live(&mut self, live: bool, now: Now) {
        self.now = now;
        if self.peers.clustered && !live {
            self.claim_last();
        }
        (self.peers.clustered, self.peers.hidden) = (true, !live);
        if live {
            self.copy_wills();
            self.claim_anew();
        } else {
            self.give_up_wills();
        }
        self.release_late();
        self.settle();
    }

    /// A peer begins to tell all that it has.
    pub(crate) fn routes_begin(&mut self, peer: u16) {
        let groups = self.shares.of_shard(peer).map(|group| Box::from(&*group.text)).collect();
        self.peers.sweeps.retain(|(of, _)| *of != peer);
        if let Some(link) = self.peers.links.get_mut(usize::from(peer)) {
            // The first time there is nothing of before.
            (link.life, link.stale) = (link.life.checked_add(1).unwrap_or(2), Some(groups));
        }
    }

    /// That was all: what has not come up is no more.
    pub(crate) fn routes_end(&mut self, peer: u16) {
        let Some(link) = self.peers.links.get_mut(usize::from(peer)) else { return };
        let Some(stale) = link.stale.take() else { return };
        if link.life > 1 {
            self.peers.sweeps.push_back((peer, Cursor::default()));
        }
        for text in stale {
            self.members_elsewhere(&text.into(), peer, 0, 0);
        }
    }

    /// How many members of a group another shard has.
    pub(crate) fn members_elsewhere(&mut self, text: &Arc<str>, shard: u16, online: u32, away: u32) {
        let turned = self.shares.set_elsewhere(text, shard, online, away);
        self.route_group(text, &turned);
    }
}
