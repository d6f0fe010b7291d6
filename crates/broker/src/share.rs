//! Shared subscriptions [MQTT 5, 4.8.2]: a message to one member of each group.
//!
//! # Data
//! A group is a subscription's whole text, `$share/name/filter`. In the routes it is one destination of its filter. Of its members
//! the shard knows its own sessions one by one, and of every other shard how many it has that are connected and how many
//! that are away.
//!
//! # The choice
//! Where the publish came in a place is drawn among all members that are connected, wherever they are; among those that are
//! away only when nobody is connected. Shards stand in the order of their indices, so that a hash means the same member
//! everywhere. What falls on another shard goes there with its place; there, and for the shard's own, the place is where the search
//! begins: a member whose window or output is full, or that may not receive the topic, is passed over while another can take
//! it. When all are full the message waits for the one that was drawn.
//!
//! # Who leaves
//! A QoS 1 message that a member had not acknowledged when its session ended goes to another (`Shard::share_again`), also one
//! that its queue still held in memory; rows that are on disk alone go with their session. A QoS 2 message stays with its session, and ends with it
//! [MQTT-4.8.2-4, MQTT-4.8.2-5].

use crate::SessionKey;
use crate::config;
use crate::hook::{Hook, Message};
use crate::publish::{Draw, Scope, expired};
use crate::session::Kind;
use crate::shard::{Destination, Shard};
use ferrule_mqtt::{PacketType, Properties, PropertiesBuf, Property, PropertyScope, QoS, topic};
use ferrule_store::record::{Delivery, Subscription};
use ferrule_store::{Store, path_hash};
use foldhash::{HashMap, HashMapExt};
use std::hash::BuildHasher;
use std::sync::Arc;

/// How a group's member is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Strategy {
    /// In turn; each shard that messages come in at has its own turn.
    #[default]
    RoundRobin,
    /// Any.
    Random,
    /// The same one as long as it is connected and can take it.
    Sticky,
    /// Any of this node, as long as it has one.
    Local,
    /// By the publisher's client id.
    HashClientId,
    /// By the topic.
    HashTopic,
}

/// A member of this shard.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Member {
    pub(crate) session: SessionKey,
    pub(crate) subscription: Subscription,
    /// Its session outlives its connection.
    pub(crate) keeps: bool,
}

/// Members of another shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Elsewhere {
    shard: u16,
    online: u32,
    away: u32,
}

/// A message's place in a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pick {
    /// A member of this shard, by its place among them.
    Here(usize),
    /// A place among the members of another shard.
    There(u16, u32),
}

/// What a strategy goes by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct By {
    pub(crate) strategy: Strategy,
    /// A random number.
    pub(crate) random: u64,
    /// Hash of what the strategy hashes.
    pub(crate) hash: u64,
}

#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) text: Arc<str>,
    /// Those that are connected first.
    members: Vec<Member>,
    online: usize,
    /// By shard.
    elsewhere: Vec<Elsewhere>,
    turn: u64,
    stuck: Option<Stuck>,
}

#[derive(Debug, Clone, Copy)]
enum Stuck {
    Here(SessionKey),
    There(u16),
}

impl Group {
    fn is_empty(&self) -> bool {
        self.members.is_empty() && self.elsewhere.is_empty()
    }

    /// How many of this shard are connected, and how many are away.
    pub(crate) fn count(&self) -> (u32, u32) {
        (self.online as u32, (self.members.len() - self.online) as u32)
    }

    pub(crate) fn member(&self, at: usize) -> Option<&Member> {
        self.members.get(at)
    }

    /// Those of this shard that are connected.
    pub(crate) fn online(&self) -> &[Member] {
        &self.members[..self.online]
    }

    /// The place of a message that came in here; none when the group has nobody.
    pub(crate) fn draw(&mut self, own: u16, by: By) -> Option<Pick> {
        let all = |of: fn(&Elsewhere) -> u32, here: usize| {
            self.elsewhere.iter().map(|e| u64::from(of(e))).sum::<u64>() + here as u64
        };
        let online = all(|e| e.online, self.online);
        if online == 0 {
            let away = all(|e| e.away, self.members.len() - self.online);
            let at = self.turned(away, by)?;
            return Some(match self.locate(own, at, |e| e.away, self.members.len() - self.online) {
                Pick::Here(at) => Pick::Here(self.online + at),
                there => there,
            });
        }
        if by.strategy == Strategy::Sticky {
            match self.stuck {
                Some(Stuck::Here(session)) => {
                    if let Some(at) = self.online().iter().position(|m| m.session == session) {
                        return Some(Pick::Here(at));
                    }
                }
                Some(Stuck::There(shard))
                    if self.elsewhere.iter().any(|e| e.shard == shard && e.online > 0) =>
                {
                    return Some(Pick::There(shard, 0));
                }
                _ => {}
            }
        }
        let at = self.turned(online, by)?;
        let pick = self.locate(own, at, |e| e.online, self.online);
        self.stick(by.strategy, pick);
        Some(pick)
    }

    /// Remembers whom a strategy that sticks has chosen.
    pub(crate) fn stick(&mut self, strategy: Strategy, pick: Pick) {
        if strategy == Strategy::Sticky {
            self.stuck = match pick {
                Pick::Here(at) => self.members.get(at).map(|m| Stuck::Here(m.session)),
                Pick::There(shard, _) => Some(Stuck::There(shard)),
            };
        }
    }

    /// The place of a message that another shard sent here: of its own members alone; none when there is none any more.
    pub(crate) fn draw_here(&self, strategy: Strategy, place: u32) -> Option<usize> {
        let among = if self.online > 0 { 0..self.online } else { 0..self.members.len() };
        if let (Strategy::Sticky, Some(Stuck::Here(session))) = (strategy, self.stuck)
            && let Some(at) = self.members[among.clone()].iter().position(|m| m.session == session)
        {
            return Some(at);
        }
        (!among.is_empty()).then(|| place as usize % among.len())
    }

    /// A place with connected members of other shards, when this one's cannot take it.
    pub(crate) fn draw_elsewhere(&self, by: By) -> Option<Pick> {
        let online: u64 = self.elsewhere.iter().map(|e| u64::from(e.online)).sum();
        let at = (online > 0).then(|| by.random % online)?;
        Some(self.locate(u16::MAX, at, |e| e.online, 0))
    }

    fn turned(&mut self, of: u64, by: By) -> Option<u64> {
        if of == 0 {
            return None;
        }
        Some(match by.strategy {
            Strategy::RoundRobin => {
                self.turn += 1;
                (self.turn - 1) % of
            }
            Strategy::Random | Strategy::Sticky | Strategy::Local => by.random % of,
            Strategy::HashClientId | Strategy::HashTopic => by.hash % of,
        })
    }

    /// Whose place `at` is when shards stand in the order of their indices.
    fn locate(&self, own: u16, mut at: u64, of: impl Fn(&Elsewhere) -> u32, here: usize) -> Pick {
        let mut passed = false;
        for one in &self.elsewhere {
            if !passed && own < one.shard {
                passed = true;
                if at < here as u64 {
                    return Pick::Here(at as usize);
                }
                at -= here as u64;
            }
            let count = u64::from(of(one));
            if at < count {
                return Pick::There(one.shard, at as u32);
            }
            at -= count;
        }
        Pick::Here(at as usize)
    }

    fn put(&mut self, member: Member, is_online: bool) {
        self.remove(member.session);
        self.members.push(member);
        if is_online {
            let last = self.members.len() - 1;
            self.members.swap(self.online, last);
            self.online += 1;
        }
    }

    fn remove(&mut self, session: SessionKey) -> Option<(Member, bool)> {
        let mut at = self.members.iter().position(|m| m.session == session)?;
        let was_online = at < self.online;
        if was_online {
            // Connected ones stay first.
            self.online -= 1;
            self.members.swap(at, self.online);
            at = self.online;
        }
        Some((self.members.swap_remove(at), was_online))
    }
}

/// All groups that this shard knows.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    groups: Vec<Option<Group>>,
    free: Vec<u32>,
    by_text: HashMap<Arc<str>, u32>,
}

/// What a change of a group leads to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Turned {
    pub(crate) group: u32,
    /// It is new, or gone: its filter is to be routed, or not any more.
    pub(crate) routed: bool,
}

impl Shares {
    pub(crate) fn new() -> Self {
        Self { groups: Vec::new(), free: Vec::new(), by_text: HashMap::new() }
    }

    pub(crate) fn find(&self, text: &str) -> Option<u32> {
        self.by_text.get(text).copied()
    }

    pub(crate) fn get(&self, group: u32) -> Option<&Group> {
        self.groups.get(group as usize)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, group: u32) -> Option<&mut Group> {
        self.groups.get_mut(group as usize)?.as_mut()
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Group> {
        self.groups.iter().flatten()
    }

    /// The first at this place or behind it, and its place.
    pub(crate) fn next(&self, at: usize) -> Option<(usize, &Group)> {
        let mut rest = self.groups.iter().enumerate().skip(at);
        rest.find_map(|(at, group)| Some((at, group.as_ref()?)))
    }

    /// Groups of which a shard has members.
    pub(crate) fn of_shard(&self, shard: u16) -> impl Iterator<Item = &Group> {
        self.all().filter(move |group| group.elsewhere.iter().any(|e| e.shard == shard))
    }

    fn make(&mut self, text: &Arc<str>) -> Turned {
        if let Some(group) = self.find(text) {
            return Turned { group, routed: false };
        }
        let new = Group {
            text: Arc::clone(text),
            members: Vec::new(),
            online: 0,
            elsewhere: Vec::new(),
            turn: 0,
            stuck: None,
        };
        let group = self.free.pop().unwrap_or(self.groups.len() as u32);
        match self.groups.get_mut(group as usize) {
            Some(place) => *place = Some(new),
            None => self.groups.push(Some(new)),
        }
        self.by_text.insert(Arc::clone(text), group);
        Turned { group, routed: true }
    }

    /// Forgets a group that has nobody anywhere; whether it has.
    fn tidy(&mut self, group: u32) -> bool {
        let Some(place) = self.groups.get_mut(group as usize) else { return false };
        let Some(empty) = place.take_if(|g| g.is_empty()) else { return false };
        self.by_text.remove(&empty.text);
        self.free.push(group);
        true
    }

    /// Adds a member of this shard, or replaces it.
    pub(crate) fn put(&mut self, text: &Arc<str>, member: Member, is_online: bool) -> Turned {
        let turned = self.make(text);
        if let Some(group) = self.get_mut(turned.group) {
            group.put(member, is_online);
        }
        turned
    }

    /// A member of this shard is none any more.
    pub(crate) fn remove(&mut self, text: &str, session: SessionKey) -> Option<Turned> {
        let group = self.find(text)?;
        self.get_mut(group)?.remove(session)?;
        Some(Turned { group, routed: self.tidy(group) })
    }

    /// A member has its connection, or has lost it; whether that is new.
    pub(crate) fn set_online(&mut self, text: &str, session: SessionKey, is_online: bool) -> bool {
        let Some(group) = self.find(text).and_then(|group| self.get_mut(group)) else { return false };
        let Some((member, was)) = group.remove(session) else { return false };
        group.put(member, is_online);
        was != is_online
    }

    /// What another shard has.
    pub(crate) fn set_elsewhere(&mut self, text: &Arc<str>, shard: u16, online: u32, away: u32) -> Turned {
        let Turned { group, mut routed } = self.make(text);
        if let Some(known) = self.get_mut(group) {
            known.elsewhere.retain(|e| e.shard != shard);
            if online + away > 0 {
                let at = known.elsewhere.partition_point(|e| e.shard < shard);
                known.elsewhere.insert(at, Elsewhere { shard, online, away });
            }
        }
        // One that comes and goes in one step was never routed.
        routed ^= self.tidy(group);
        Turned { group, routed }
    }
}

impl<H: Hook, S: Store> Shard<H, S> {
    /// A group has other members here than before.
    pub(crate) fn share_changed(&mut self, text: &str, turned: &Turned, tell: bool) {
        self.route_group(text, turned);
        if tell {
            let count =
                self.shares.get(turned.group).filter(|g| *g.text == *text).map_or((0, 0), Group::count);
            self.peers.share_changed(text, count);
        }
    }

    /// A group that is new becomes a destination of its filter, and one that is gone is none any more.
    pub(crate) fn route_group(&mut self, text: &str, turned: &Turned) {
        let Some((_, filter)) = topic::shared(text).filter(|_| turned.routed) else { return };
        if self.shares.find(text).is_some() {
            self.routes.insert(&filter.into(), Destination::Share(turned.group));
        } else {
            self.routes.remove(filter, Destination::share_key(turned.group));
        }
    }

    /// A session has its connection, or has lost it: its groups choose it, or do not.
    pub(crate) fn share_online(&mut self, key: SessionKey, is_online: bool) {
        let Some(session) = self.sessions.get(key).filter(|s| s.shares) else { return };
        for (text, _) in session.shared() {
            if self.shares.set_online(text, key, is_online)
                && let Some(group) = self.shares.find(text).and_then(|group| self.shares.get(group))
            {
                self.peers.share_changed(text, group.count());
            }
        }
    }

    /// Whom a message of a group is for.
    pub(crate) fn draw_member(&mut self, message: &Message<'_>, draw: Draw) -> Option<Pick> {
        let strategy = self.limits.share;
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let by = By {
            strategy,
            random: self.hasher.hash_one(self.random),
            hash: match strategy {
                Strategy::HashTopic => path_hash(0, message.topic.as_bytes()),
                Strategy::HashClientId => path_hash(0, message.publisher.client_id.as_bytes()),
                _ => 0,
            },
        };
        let own = self.peers.place.index;
        let group = self.shares.get_mut(draw.group)?;
        let drawn = match draw.place {
            None => group.draw(own, by)?,
            Some(place) => match group.draw_here(strategy, place) {
                Some(at) => Pick::Here(at),
                // They have left meanwhile. Where everybody leaves it would go round for ever.
                None if draw.again < AGAIN => group.draw(own, by)?,
                None => return None,
            },
        };
        let Pick::Here(first) = drawn else { return Some(drawn) };
        let group = self.shares.get(draw.group)?;
        let online = group.online();
        // Those that are away take what they can keep.
        if first >= online.len() {
            return Some(drawn);
        }
        let order = (first..online.len()).chain(0..first);
        let able = order.clone().find(|&at| self.can_take(&online[at], message) == Some(true));
        let mut pick = able.map(Pick::Here);
        // Once from a shard that it was drawn for, or it would go round where all are full.
        if pick.is_none() && draw.again <= 1 {
            pick = group.draw_elsewhere(by);
        }
        // All are full: it waits for the first that may have it.
        let allowed =
            || order.clone().find(|&at| self.can_take(&online[at], message).is_some()).map(Pick::Here);
        let pick = pick.or_else(allowed)?;
        self.shares.get_mut(draw.group)?.stick(strategy, pick);
        Some(pick)
    }

    /// Whether a member that is connected has room for a message; none when it may not have it.
    fn can_take(&self, member: &Member, message: &Message<'_>) -> Option<bool> {
        let session = self.sessions.get(member.session)?;
        let conn = self.conns.get(session.conn?)?;
        if !conn.access.receive(message.topic) {
            return None;
        }
        let bound = config::client(&self.limits.clients, conn.limits).output_bytes;
        let size = message.topic.len() + message.payload.len();
        let room = self.pool.fits(bound, conn.out.len(), size);
        let is_sent_at_once = member.subscription.qos == 0 || message.qos == QoS::AtMostOnce;
        let is_behind = match &session.kind {
            Kind::Clean(waiters) => waiters.get().is_some_and(|waiters| !waiters.pending.is_empty()),
            Kind::Persistent { queue } => queue.counters().queued > 0,
            Kind::Moved(_) => return None,
        };
        Some(room && (is_sent_at_once || (session.has_room() && !is_behind)))
    }

    /// What a member left behind goes to others of its groups.
    pub(crate) fn share_again(&mut self, left: Vec<Arc<Delivery>>) {
        for delivery in left {
            let Some(group) = delivery.share.as_ref().and_then(|text| self.shares.find(text)) else {
                self.stats.dropped_shared += 1;
                continue;
            };
            if expired(delivery.expires_wall_ms, self.steady.ms(self.now)) {
                self.stats.dropped_expired += 1;
                continue;
            }
            let mut properties = PropertiesBuf::new();
            let scope = PropertyScope::Packet(PacketType::Publish);
            let own = Properties::checked(&delivery.properties, scope).unwrap_or(Properties::EMPTY);
            properties.extend(own, |_| true);
            if let Some(expires) = delivery.expires_wall_ms {
                let left_s = (expires - self.steady.ms(self.now)).max(0).div_euclid(1_000);
                let left_s = u32::try_from(left_s).unwrap_or(u32::MAX).max(1);
                let _ = properties.push(Property::MessageExpiryInterval(left_s));
            }
            let publisher = Arc::clone(&self.peers.publisher);
            let message = Message {
                qos: QoS::AtLeastOnce,
                retain: delivery.retain,
                properties: properties.as_properties(),
                ..Message::new(&delivery.topic, &delivery.payload, &publisher, self.now)
            };
            self.stats.shared_again += 1;
            self.route(&message, Scope::Member(Draw { group, place: None, again: 0 }), None, None);
        }
    }
}

/// How many shards a message may be sent on by whose members have just left: past it they leave faster than it travels.
const AGAIN: u8 = 8;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::marker;
    use crate::slots::Slots;

    fn by(strategy: Strategy, random: u64) -> By {
        By { strategy, random, hash: random }
    }

    fn member(session: SessionKey) -> Member {
        let subscription = Subscription {
            qos: 1,
            no_local: false,
            retain_as_published: false,
            retain_handling: 0,
            id: None,
        };
        Member { session, subscription, keeps: false }
    }

    fn keys(count: usize) -> Vec<SessionKey> {
        let mut slots = Slots::<marker::Session, ()>::new();
        (0..count).map(|_| slots.insert(())).collect()
    }

    #[test]
    fn members_come_and_go_and_the_group_with_them() {
        let mut shares = Shares::new();
        let text: Arc<str> = "$share/g/a/+".into();
        let keys = keys(3);
        let first = shares.put(&text, member(keys[0]), true);
        assert!(first.routed);
        assert!(!shares.put(&text, member(keys[1]), false).routed);
        assert!(!shares.put(&text, member(keys[2]), true).routed);
        let group = |shares: &Shares| shares.get(first.group).unwrap().count();
        assert_eq!(group(&shares), (2, 1));
        assert!(shares.set_online(&text, keys[0], false) && !shares.set_online(&text, keys[0], false));
        assert!(shares.set_online(&text, keys[1], true));
        assert_eq!(group(&shares), (2, 1));
        assert!(!shares.put(&text, member(keys[1]), true).routed, "again");
        assert_eq!(group(&shares), (2, 1));
        assert!(!shares.remove(&text, keys[2]).unwrap().routed);
        assert!(!shares.remove(&text, keys[0]).unwrap().routed);
        assert_eq!(group(&shares), (1, 0));
        assert!(shares.remove(&text, keys[1]).unwrap().routed);
        assert!(shares.find(&text).is_none() && shares.remove(&text, keys[1]).is_none());
        // Another takes its place.
        let other: Arc<str> = "$share/h/#".into();
        assert_eq!(shares.set_elsewhere(&other, 2, 1, 0), Turned { group: first.group, routed: true });
        assert_eq!(shares.set_elsewhere(&other, 2, 0, 0), Turned { group: first.group, routed: true });
        assert!(!shares.set_elsewhere(&other, 2, 0, 0).routed, "nothing was, nothing is");
    }

    /// Shard 1 of three: two members here, three on shard 0, one on shard 2.
    fn spread() -> (Shares, u32) {
        let mut shares = Shares::new();
        let text: Arc<str> = "$share/g/a".into();
        let keys = keys(3);
        shares.put(&text, member(keys[0]), true);
        shares.put(&text, member(keys[1]), true);
        shares.put(&text, member(keys[2]), false);
        shares.set_elsewhere(&text, 2, 1, 5);
        let turned = shares.set_elsewhere(&text, 0, 3, 0);
        (shares, turned.group)
    }

    #[test]
    fn in_turn_everyone_gets_as_much() {
        let (mut shares, group) = spread();
        let group = shares.get_mut(group).unwrap();
        let drawn: Vec<Pick> = (0..12).map(|n| group.draw(1, by(Strategy::RoundRobin, n)).unwrap()).collect();
        use Pick::{Here, There};
        let round = [There(0, 0), There(0, 1), There(0, 2), Here(0), Here(1), There(2, 0)];
        assert_eq!(drawn, [round, round].concat());
        // A hash means the same for every shard: the places stand in the shards' order.
        assert_eq!(group.draw(1, by(Strategy::HashTopic, 9)), Some(Here(0)));
        assert_eq!(group.draw(1, by(Strategy::Random, 5)), Some(There(2, 0)));
    }

    #[test]
    fn the_absent_get_something_when_nobody_is_there() {
        let (mut shares, group) = spread();
        let text: Arc<str> = "$share/g/a".into();
        let there: Vec<_> = shares.get(group).unwrap().online().iter().map(|m| m.session).collect();
        there.into_iter().for_each(|key| {
            shares.set_online(&text, key, false);
        });
        shares.set_elsewhere(&text, 0, 0, 0);
        assert_eq!(shares.get_mut(group).unwrap().draw(1, by(Strategy::Random, 0)), Some(Pick::There(2, 0)));
        shares.set_elsewhere(&text, 2, 0, 1);
        let picks: Vec<_> = (0..4)
            .map(|n| shares.get_mut(group).unwrap().draw(1, by(Strategy::Random, n)).unwrap())
            .collect();
        assert_eq!(picks, [Pick::Here(0), Pick::Here(1), Pick::Here(2), Pick::There(2, 0)]);
        assert_eq!(shares.get(group).unwrap().draw_here(Strategy::Random, 7), Some(1));
    }

    #[test]
    fn a_sticky_group_keeps_to_one() {
        let (mut shares, group) = spread();
        let text: Arc<str> = "$share/g/a".into();
        let drawn = |shares: &mut Shares, random| {
            shares.get_mut(group).unwrap().draw(1, by(Strategy::Sticky, random)).unwrap()
        };
        assert_eq!(drawn(&mut shares, 4), Pick::Here(1));
        assert_eq!(drawn(&mut shares, 0), Pick::Here(1));
        let stuck = shares.get(group).unwrap().member(1).unwrap().session;
        shares.set_online(&text, stuck, false);
        assert_eq!(drawn(&mut shares, 0), Pick::There(0, 0));
        assert_eq!(drawn(&mut shares, 3), Pick::There(0, 0));
        shares.set_elsewhere(&text, 0, 0, 1);
        assert_eq!(drawn(&mut shares, 0), Pick::Here(0));
    }
}
