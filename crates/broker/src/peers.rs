//! The other shards: of this process, and by the same protocol of other nodes ([`crate::parcel`]).
//!
//! # Data
//! A link to each: what this turn sends it, what of our routes it has confirmed, and the ends that wait for its answers. A
//! filter to which a peer has subscribers is a destination in our routes like a session.
//!
//! # Invariants
//! - A SUBACK or UNSUBACK leaves when each peer has confirmed the routes behind it: a publish that starts afterwards
//!   anywhere meets them.
//! - A publish goes once to each peer with a match, and at QoS 1 and 2 its publisher's acknowledgement waits for that
//!   peer's: bounds and back-pressure of its sessions are felt where the message came from.
//! - A QoS 2 publish of a persistent session and what other shards make of it are committed together: a power cut leaves its
//!   packet id and all rows, or nothing ([`ferrule_store::Joint`]).
//! - Rules run where the message came in, and there alone; their rows go to the shard that owns the outbox. Those that remember something run on one
//!   shard, in a cluster on one of one node ([`Parcel::Keeps`]).
//! - Retained messages are the same everywhere ([`crate::retaining`]). On disk too: a topic belongs to one shard, which alone writes it, whoever
//!   sets it.
//! - Within a process wills and takeover never cross: a client id belongs to one shard ([`Place::owner`]), and its shards
//!   end together. Of other nodes neither is so ([`crate::nodes`]).

use crate::delayed;
use crate::ending::Why;
use crate::exclusive;
use crate::hook::{Ends, Hook, Message, Publisher, Role, RowElsewhere};
use crate::nodes::Reach;
use crate::owners::{Stage, Take};
use crate::parcel::{Forward, Number, Parcel, ParcelError, Share};
use crate::presence::Since;
use crate::publish::{Draw, Scope};
use crate::retaining::Copies;
use crate::routes::Cursor;
use crate::session::Inbound;
use crate::shard::{Destination, Shard};
use crate::slots::{Id, Slots};
use crate::telling::{FIRST_VERSION, PIECE_BYTES, Telling};
use crate::turn::Reply;
use crate::wills::Copied;
use crate::{ConnId, marker};
use ferrule_mqtt::{PacketType, Properties, PropertyScope, ReasonCode};
use ferrule_outbox::{End, Outcome, Reason};
use ferrule_store::record::{Delivery, Record};
use ferrule_store::{Now, SessionId, Stamp, Store};
use foldhash::fast::FixedState;
use std::collections::{BTreeSet, HashSet, VecDeque};
use std::hash::BuildHasher;
use std::sync::Arc;

/// Which of how many shards this one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// From 0.
    pub index: u16,
    /// All of them, at most 256 (a stamp has 8 bits for it).
    pub of: u16,
    /// The same for all of them, and random: nobody outside can choose client ids of one shard.
    pub seed: u64,
}

impl Place {
    /// The only one.
    pub const ALONE: Self = Self { index: 0, of: 1, seed: 0 };

    /// A name of a shard of this process: no other has it, here or elsewhere.
    pub(crate) fn name_of(self, index: u16) -> u64 {
        // Not the seed's hash of the index: that of a neighbouring seed and index would be the same.
        FixedState::default().hash_one((self.seed, index))
    }

    /// This one's.
    pub(crate) fn name(self) -> u64 {
        self.name_of(self.index)
    }

    /// Whether this shard has what was that shard's, of a process that may have had more of them.
    pub(crate) fn has(self, shard: u16) -> bool {
        shard % self.of.max(1) == self.index
    }

    /// The shard that a client id, or anything else with a name, belongs to.
    #[must_use]
    pub fn owner(self, name: &str) -> u16 {
        if self.of <= 1 {
            return 0;
        }
        let hash = FixedState::with_seed(self.seed).hash_one(name);
        // The high half of the product with `of`: evenly spread, without a division.
        ((u128::from(hash) * u128::from(self.of)) >> 64) as u16
    }
}

/// Whom a receipt's last end is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// A publisher of this shard.
    Publisher(Inbound),
    /// A message that was published later.
    Delayed(delayed::Key),
    /// The node's link to another broker, by a number of its own ([`Hook::said`]).
    Link(u64),
    /// A will that the store had: nobody is told.
    Will,
    /// Another shard.
    Peer { peer: u16, number: Number },
    /// Another node, of whose retained messages all shards of this process have what it sent up to this; `done`: and all that there are, on which link
    /// to it ([`crate::retaining`]), or 0.
    Copy { peer: u16, number: Number, done: u32 },
}

/// What leaves only when all peers know the routes behind it.
#[derive(Debug)]
pub(crate) enum Late {
    Reply(Reply),
    Connack(ConnId),
    /// The session of its client is looked for.
    Take(ConnId),
    /// An exclusive subscription is claimed, since then.
    Claim(Box<str>, Since),
}

/// A link to another shard.
#[derive(Debug, Default)]
pub(crate) struct Link {
    /// Of those of this process always the same.
    pub(crate) reach: Reach,
    /// Of another node: new routes wait for it. Those of this process they always wait for.
    pub(crate) waits: bool,
    /// [`Place::name`], once it has said it.
    pub(crate) name: u64,
    /// Of another node: its first shard.
    pub(crate) node: u16,
    /// It is a live member.
    pub(crate) serves: bool,
    /// It may have sessions: one of this process, or of another node that has been linked and is a member still.
    pub(crate) member: bool,
    /// The last view in which it has adopted its share of sessions.
    pub(crate) adopted: u64,
    /// The last view in which it has heard the same of all.
    pub(crate) settled: u64,
    /// Of another node: so much waits to be sent there that what nobody is told of is dropped.
    pub(crate) full: bool,
    /// Of another node, while it is told all that is here.
    pub(crate) telling: Option<Telling>,
    /// How often another node has begun to tell all that it has: its routes of before are forgotten when it has ended.
    pub(crate) life: u8,
    /// While it does so: groups that it had before, and that have not come up since.
    pub(crate) stale: Option<HashSet<Box<str>>>,
    /// Of the protocol, of another node.
    pub(crate) version: u32,
    pub(crate) copies: Copies,
    /// Parcels of this turn.
    out: Vec<u8>,
    /// To another node, those that must not wait behind publishes.
    control: Vec<u8>,
    /// The version of our routes that it has confirmed.
    pub(crate) acked: u64,
    /// That of when it began to be waited for.
    pub(crate) waits_from: u64,
    /// The version of its routes that we have; to be confirmed when the turn ends.
    heard: u64,
    ack_due: bool,
    /// Ends that wait for it.
    awaiting: usize,
}

/// All links, and what waits for them.
#[derive(Debug)]
pub(crate) struct Peers {
    pub(crate) place: Place,
    /// By index, those of other nodes behind those of this process; our own is never used.
    pub(crate) links: Vec<Link>,
    awaiting: Slots<marker::Parcel, (u16, End)>,
    /// Bytes of what a peer is told at once.
    pub(crate) piece_bytes: usize,
    /// Peers of whose routes some are to be forgotten, and how far that is.
    pub(crate) sweeps: VecDeque<(u16, Cursor)>,
    /// Of our routes.
    version: u64,
    /// This node is one of a cluster.
    pub(crate) clustered: bool,
    /// It is one and no live member: the others need not know its routes.
    pub(crate) hidden: bool,
    /// Rules that this shard runs on the messages of all nodes, as other nodes were told.
    pub(crate) kept: Vec<u64>,
    /// Those that this node has given up in this process life and does not keep now, at its first shard: told on each link, since whoever is to keep one
    /// looks when he hears it.
    pub(crate) unkept: BTreeSet<u64>,
    /// The rules that this node names, at its first shard.
    pub(crate) named: Vec<u64>,
    /// What waits for every peer to have our routes of a version.
    late: VecDeque<(u64, Late)>,
    pub(crate) publisher: Arc<Publisher>,
}

/// What may wait for peers to confirm: those of this process do so within milliseconds, but a node that is cut off from its cluster may wait for
/// minutes. What comes then is closed, and counted `late_closed`.
const LATE_MAX: usize = 100_000;

/// What is kept of the memory of what a turn said to a peer.
const OUT_BYTES: usize = 64 << 10;

impl Peers {
    pub(crate) fn new(place: Place) -> Self {
        Self {
            place,
            links: (0..place.of)
                .map(|at| Link {
                    name: place.name_of(at),
                    member: true,
                    acked: FIRST_VERSION,
                    ..Link::default()
                })
                .collect(),
            awaiting: Slots::new(),
            piece_bytes: PIECE_BYTES,
            sweeps: VecDeque::new(),
            version: FIRST_VERSION,
            clustered: false,
            hidden: false,
            kept: Vec::new(),
            unkept: BTreeSet::new(),
            named: Vec::new(),
            late: VecDeque::new(),
            publisher: Arc::new(Publisher {
                client_id: "".into(),
                username: None,
                host: None,
                role: Role::Device,
            }),
        }
    }

    /// No other shard: nothing below happens.
    pub(crate) fn is_alone(&self) -> bool {
        self.links.len() <= 1
    }

    /// One more, of another node; none when there are no more numbers.
    pub(crate) fn add(&mut self) -> Option<u16> {
        let peer = u16::try_from(self.links.len()).ok()?;
        self.links.push(Link { reach: Reach::Away, ..Link::default() });
        Some(peer)
    }

    /// Whether a shard is one of another node.
    pub(crate) fn is_remote(&self, peer: u16) -> bool {
        peer >= self.place.of
    }

    /// Those of this process.
    pub(crate) fn others(&self) -> impl Iterator<Item = u16> + use<> {
        let me = self.place.index;
        (0..self.place.of).filter(move |peer| *peer != me)
    }

    /// Those of other nodes, too.
    fn everyone(&self) -> impl Iterator<Item = u16> + use<> {
        let me = self.place.index;
        (0..self.links.len() as u16).filter(move |peer| *peer != me)
    }

    pub(crate) fn send_to_all(&mut self, parcel: &Parcel<'_>) {
        for peer in self.everyone() {
            self.send(peer, parcel);
        }
    }

    /// What is out of reach hears nothing: it will be told everything.
    pub(crate) fn send(&mut self, to: u16, parcel: &Parcel<'_>) {
        if let Some(link) = self.links.get_mut(usize::from(to)) {
            let instead;
            let parcel = match (parcel, &link.telling) {
                // It is told so behind all routes.
                (Parcel::Adopted { .. }, Some(_)) => return,
                (Parcel::Holds { version, filter, .. }, telling)
                    if link.reach != Reach::Here && link.version < exclusive::VERSION =>
                {
                    // What it does not know it confirms all the same: this changes nothing.
                    let version = telling.as_ref().map_or(*version, Telling::number);
                    instead = Parcel::RouteDelta { version, add: false, filter };
                    &instead
                }
                (_, Some(telling)) => {
                    instead = parcel.numbered(telling.number());
                    &instead
                }
                (_, None) => parcel,
            };
            match link.reach {
                Reach::Away => {}
                Reach::Told if parcel.is_control() => parcel.encode(&mut link.control),
                Reach::Told | Reach::Here => parcel.encode(&mut link.out),
            }
        }
    }

    /// Keeps an end until the peer's answer; the number to send. 0 when nobody waits.
    pub(crate) fn number(&mut self, to: u16, end: Option<End>) -> Number {
        let Some(end) = end else { return 0 };
        if let Some(link) = self.links.get_mut(usize::from(to)) {
            link.awaiting += 1;
        }
        self.awaiting.insert((to, end)).to_bits()
    }

    /// What waits for a peer that will not answer.
    pub(crate) fn unanswered(&mut self, peer: u16) -> Vec<End> {
        let waiting = self
            .awaiting
            .ids()
            .into_iter()
            .filter(|id| self.awaiting.get(*id).is_some_and(|(of, _)| *of == peer));
        let numbers: Vec<Number> = waiting.map(Id::to_bits).collect();
        numbers.into_iter().filter_map(|number| self.answered(peer, number)).collect()
    }

    /// Forgets what this turn wanted to say to a peer.
    pub(crate) fn unsaid(&mut self, peer: u16) {
        if let Some(link) = self.links.get_mut(usize::from(peer)) {
            link.out.clear();
            link.control.clear();
            link.ack_due = false;
        }
    }

    /// Bytes that this turn has for another node's control stream.
    pub(crate) fn control_bytes(&self, peer: u16) -> usize {
        self.links.get(usize::from(peer)).map_or(0, |link| link.control.len())
    }

    /// Of our routes.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    fn answered(&mut self, from: u16, number: Number) -> Option<End> {
        let (_, end) = self.awaiting.remove_if(Id::from_bits(number)?, |(peer, _)| *peer == from)?;
        if let Some(link) = self.links.get_mut(usize::from(from)) {
            link.awaiting -= 1;
        }
        Some(end)
    }

    /// Tells all peers that a filter has its first local subscriber, or lost its last.
    pub(crate) fn route_changed(&mut self, filter: &str, add: bool) {
        if self.is_alone() {
            return;
        }
        self.version += 1;
        self.send_to_all(&Parcel::RouteDelta { version: self.version, add, filter });
    }

    /// Tells all peers how many members a group has here.
    pub(crate) fn share_changed(&mut self, text: &str, (online, away): (u32, u32)) {
        if self.is_alone() {
            return;
        }
        self.version += 1;
        self.send_to_all(&Parcel::ShareDelta { version: self.version, text, online, away });
    }

    /// Tells all peers something that they are to confirm.
    pub(crate) fn tell_all<'a>(&mut self, parcel: impl Fn(u64) -> Parcel<'a>) {
        if self.is_alone() {
            return;
        }
        self.version += 1;
        self.send_to_all(&parcel(self.version));
    }

    /// What waits for all peers waits for all that they have been told up to now.
    pub(crate) fn late_again(&mut self) {
        self.late.iter_mut().for_each(|(version, _)| *version = self.version);
    }

    fn confirmed(&self) -> u64 {
        let waited_for = |peer: usize, link: &Link| match link.reach {
            Reach::Here => peer != usize::from(self.place.index),
            Reach::Told | Reach::Away => link.waits,
        };
        let links = self.links.iter().enumerate();
        links
            .filter(|(peer, link)| waited_for(*peer, link))
            .map(|(_, link)| link.acked)
            .min()
            .unwrap_or(u64::MAX)
    }

    /// Whether all peers have all of our routes.
    fn is_confirmed(&self) -> bool {
        !self.hidden && self.confirmed() >= self.version
    }

    /// A publish for a peer's sessions, or for one member of a group there; the number of its answer.
    pub(crate) fn forward(
        &mut self,
        to: u16,
        message: &Message<'_>,
        share: Option<Share<'_>>,
        end: Option<End>,
    ) -> Number {
        let number = self.number(to, end);
        let forward = Forward {
            number,
            qos: message.qos,
            retain: message.retain,
            // There is no commit in common with another node.
            hold: message.hold && !self.is_remote(to),
            received_wall_ms: message.received.wall_ms,
            topic: message.topic,
            properties: message.properties.as_bytes(),
            payload: message.payload,
        };
        self.send(to, &share.map_or(Parcel::Forward(forward), |share| Parcel::Share(forward, share)));
        number
    }

    /// Sends on a message for a session that has moved; its end waits for the answer.
    pub(crate) fn relay(&mut self, to: u16, client_id: &str, delivery: &Delivery, end: Option<End>) {
        let number = self.number(to, end);
        let (head, payload) = (delivery.to_bytes(), &delivery.payload);
        self.send(to, &Parcel::Relay { number, client_id, head: &head, payload });
    }

    /// Whether something is to be said since the turn's parcels were taken.
    pub(crate) fn has_parcels(&self) -> bool {
        !self.sweeps.is_empty()
            || self.links.iter().any(|link| link.ack_due || !link.out.is_empty() || !link.control.is_empty())
    }
}

impl<H: Hook, S: Store> Shard<H, S> {
    /// What this turn said to a peer, to be taken after [`Shard::end_turn`]; none when nothing. A batch goes whole and in order to
    /// [`Shard::parcels`] of that peer.
    pub fn take_parcels(&mut self, to: u16) -> Option<Vec<u8>> {
        let link = self.peers.links.get_mut(usize::from(to)).filter(|link| !link.out.is_empty())?;
        Some(std::mem::take(&mut link.out))
    }

    /// The same, of which the peer is given a copy, and the memory stays: for whoever gathers what several turns say.
    pub fn read_parcels(&mut self, to: u16, take: impl FnOnce(&[u8])) {
        if let Some(link) = self.peers.links.get_mut(usize::from(to)).filter(|link| !link.out.is_empty()) {
            take(&link.out);
            link.out.clear();
            link.out.shrink_to(OUT_BYTES);
        }
    }

    /// The same, to a shard of another node: what must not wait behind publishes. It may overtake them.
    pub fn take_control(&mut self, to: u16) -> Option<Vec<u8>> {
        let link = self.peers.links.get_mut(usize::from(to)).filter(|link| !link.control.is_empty())?;
        Some(std::mem::take(&mut link.control))
    }

    /// Whether all peers have all of our routes.
    pub fn is_known_to_peers(&self) -> bool {
        self.peers.is_confirmed()
    }

    /// Takes parcels of a peer from the front of `bytes` and returns how many bytes it took; what is left is incomplete.
    ///
    /// # Errors
    /// When they are no parcels: nothing more of this peer can be read.
    pub fn parcels(&mut self, from: u16, bytes: &[u8], now: Now) -> Result<usize, ParcelError> {
        self.now = now;
        let mut at = 0;
        loop {
            // Most are these.
            if let Some((number, outcome, size)) = Parcel::ack(&bytes[at..]) {
                at += size;
                self.acknowledged(from, number, outcome);
                continue;
            }
            let Some((parcel, size)) = Parcel::decode(&bytes[at..])? else { break };
            at += size;
            self.parcel(from, parcel);
        }
        self.settle();
        Ok(at)
    }

    fn parcel(&mut self, from: u16, parcel: Parcel<'_>) {
        match parcel {
            Parcel::RoutesBegin { name } => {
                if let Some(link) = self.peers.links.get_mut(usize::from(from)) {
                    link.name = name;
                }
                self.routes_begin(from);
                self.wills_begin(from);
            }
            Parcel::RoutesEnd { version } => {
                self.routes_end(from);
                self.wills_end(from);
                self.heard(from, version);
            }
            Parcel::RouteDelta { version, add, filter } => {
                if add {
                    let life = self.peers.links.get(usize::from(from)).map_or(0, |link| link.life);
                    self.routes.insert(&filter.into(), Destination::Peer(from, life));
                } else {
                    self.routes.remove(filter, Destination::peer_key(from));
                }
                self.heard(from, version);
            }
            Parcel::ShareDelta { version, text, online, away } => {
                let link = self.peers.links.get_mut(usize::from(from));
                link.and_then(|link| link.stale.as_mut()).map(|stale| stale.remove(text));
                self.members_elsewhere(&text.into(), from, online, away);
                self.heard(from, version);
            }
            Parcel::Present { version, since, client_id } => {
                self.present_elsewhere(from, since, client_id);
                self.heard(from, version);
            }
            Parcel::WillCopy { number, record } => self.will_copied(from, number, Copied::Alone, record),
            Parcel::WillPair { number, first, record } => {
                self.will_copied(from, number, Copied::OfTwo { first }, record);
            }
            Parcel::WillsAsk { number, view, owner } => self.wills_asked(from, number, (view, owner)),
            Parcel::WillsYield { number } => self.wills_yielded(from, number),
            Parcel::WillEnded { number, answer } => self.will_ended(from, number, answer),
            Parcel::WillGone { number } => self.will_gone(from, number),
            Parcel::Owns { session, epoch, client_id } => {
                self.owns(from, Stage { session: SessionId(session), epoch }, client_id);
            }
            Parcel::Yours { epoch, client_id } => self.yours(from, epoch, client_id),
            Parcel::Moved { owner, session, epoch, gone, client_id } => {
                let stage = Stage { session: SessionId(session), epoch };
                self.moved(from, Take { owner, stage }, gone, client_id);
            }
            Parcel::Passed { session, epoch, client_id } => {
                self.passed(from, Stage { session: SessionId(session), epoch }, client_id);
            }
            Parcel::Relay { number, client_id, head, payload } => {
                self.relayed(from, number, client_id, head, payload);
            }
            Parcel::Adopted { view } => self.adopted_elsewhere(from, view),
            Parcel::Settled { view } => self.settled_elsewhere(from, view),
            Parcel::RouteAck { version } if version < FIRST_VERSION => self.piece_taken(from, version),
            Parcel::RouteAck { version } => {
                if let Some(link) = self.peers.links.get_mut(usize::from(from)) {
                    link.acked = link.acked.max(version);
                }
                self.release_late();
            }
            Parcel::Forward(forward) => self.forwarded(from, &forward, Scope::Sessions),
            Parcel::Share(forward, share) => match self.shares.find(share.text) {
                Some(group) => {
                    let draw = Draw { group, place: Some(share.place), again: share.again };
                    self.forwarded(from, &forward, Scope::Member(draw));
                }
                None => {
                    // Its last member has left everywhere.
                    self.stats.dropped_shared += 1;
                    self.acknowledge_parcel(from, forward.number, Outcome::Discarded(Reason::Removed));
                }
            },
            Parcel::RetainedPut { number, hold, stamp, topic, record } => {
                self.retained_put(from, number, hold, (stamp, topic, record));
            }
            Parcel::RetainedCopy { number, stamp, topic, record } => {
                self.retained_copy(from, number, (stamp, topic, record));
            }
            Parcel::RetainedMark { number, done } => self.retained_mark(from, number, done),
            Parcel::RetainedAck { number } => self.retained_acked(from, number),
            Parcel::RetainedRange { bucket, digest } => self.retained_range(from, bucket, digest),
            Parcel::RetainedRanges => self.retained_ranges(from),
            Parcel::RuleRow { number, hold, row } => {
                let owner = (number != 0).then_some(Owner::Peer { peer: from, number });
                let mut ends = Ends::new(&mut self.receipts, owner);
                self.hook.row(row, &mut ends, self.now);
                match ends.finish() {
                    None => self.acknowledge_parcel(from, number, Outcome::Delivered),
                    Some((_, guard)) => {
                        self.ended.extend(guard.map(|guard| (guard, Outcome::Delivered)));
                        if hold {
                            self.join(from, number);
                        }
                    }
                }
            }
            Parcel::Joined { number } => self.batch.joined(number),
            Parcel::Ack { number, outcome } => self.acknowledged(from, number, outcome),
            Parcel::Holds { version, since, filter, client_id } => {
                self.holds_elsewhere(from, since, filter, client_id);
                self.heard(from, version);
            }
            Parcel::ClaimLost { filter, client_id } => self.claim_lost(filter, client_id),
            Parcel::Claim { number, filter, client_id } => self.claimed(from, number, filter, client_id),
            Parcel::ClaimAck { number, granted } => self.claim_answered(number, granted),
            Parcel::Release { filter, client_id } => self.claim_released(filter, client_id),
            Parcel::Keeps { rule, keeps } => {
                self.hook.kept_elsewhere(from, Some((rule, keeps)));
                // It may be this node's by now.
                if !keeps && self.peers.named.contains(&rule) {
                    self.store.keep(self.peers.named.clone());
                }
            }
            Parcel::Hurry => self
                .receipts
                .set_urgent_where(|owner| matches!(owner, Owner::Peer { peer, .. } if *peer == from)),
        }
    }

    fn acknowledged(&mut self, from: u16, number: Number, outcome: Outcome) {
        // A packet id may wait for just this.
        self.batch.due |= !self.batch.received.is_empty();
        self.batch.answered(number);
        self.ended.extend(self.peers.answered(from, number).map(|end| (end, outcome)));
    }

    /// It has the peer's routes of this version.
    fn heard(&mut self, peer: u16, version: u64) {
        if let Some(link) = self.peers.links.get_mut(usize::from(peer)) {
            link.heard = version;
            link.ack_due = true;
        }
    }

    fn forwarded(&mut self, from: u16, forward: &Forward<'_>, scope: Scope) {
        self.stats.forwarded_in += 1;
        let publisher = Arc::clone(&self.peers.publisher);
        let publishes = PropertyScope::Packet(PacketType::Publish);
        let message = Message {
            qos: forward.qos,
            retain: forward.retain,
            properties: Properties::checked(forward.properties, publishes).unwrap_or(Properties::EMPTY),
            received: Stamp { wall_ms: forward.received_wall_ms, mono_us: self.now.mono_us, synced: true },
            hold: forward.hold,
            ..Message::new(forward.topic, forward.payload, &publisher, self.now)
        };
        let number = forward.number;
        let owner = (number != 0).then_some(Owner::Peer { peer: from, number });
        self.owners.sender = Some(from);
        let routed = self.route(&message, scope, owner, None);
        self.owners.sender = None;
        match routed.receipt {
            None => self.acknowledge_parcel(from, number, Outcome::Delivered),
            Some((_, guard)) => {
                self.ended.extend(guard.map(|guard| (guard, Outcome::Delivered)));
                if forward.hold {
                    self.join(from, number);
                }
            }
        }
    }

    /// What a peer's parcel led to is durable with the peer's packet id, or not at all.
    pub(crate) fn join(&mut self, peer: u16, number: Number) {
        if number != 0 {
            self.batch.opens.push((peer, number));
            self.batch.due = true;
        }
    }

    /// Tells a peer how a parcel of its ended.
    pub(crate) fn acknowledge_parcel(&mut self, peer: u16, number: Number, outcome: Outcome) {
        if number != 0 {
            self.peers.send(peer, &Parcel::Ack { number, outcome });
        }
    }

    /// Does what may be done only when all peers know our routes.
    pub(crate) fn when_routed(&mut self, late: Late) {
        if self.peers.is_confirmed() {
            self.late(late);
        } else if self.peers.late.len() >= LATE_MAX {
            self.stats.late_closed += 1;
            let conn = match late {
                Late::Reply(Reply { conn, .. }) | Late::Connack(conn) | Late::Take(conn) => conn,
                Late::Claim(filter, _) => {
                    self.claim_given_up(&filter);
                    return;
                }
            };
            let text = "too many clients wait for other nodes of the cluster";
            self.disconnect(conn, Why::new(ReasonCode::SERVER_BUSY, text));
        } else {
            let version = self.peers.version;
            self.peers.late.push_back((version, late));
        }
    }

    pub(crate) fn release_late(&mut self) {
        if self.peers.hidden {
            return;
        }
        let confirmed = self.peers.confirmed();
        while self.peers.late.front().is_some_and(|(version, _)| *version <= confirmed) {
            if let Some((_, late)) = self.peers.late.pop_front() {
                self.late(late);
            }
        }
    }

    pub(crate) fn late(&mut self, late: Late) {
        let Some(late) = self.defers(late) else { return };
        match late {
            Late::Reply(reply) => self.reply(reply),
            Late::Connack(conn) if self.waits_for_copy(conn) => self.uncopied(conn),
            Late::Connack(conn) => self.store_ready(conn),
            Late::Take(conn) => self.told_presence(conn),
            Late::Claim(filter, since) => self.claim_confirmed(&filter, since),
        }
    }

    /// All filters with local subscribers, for peers that know nothing yet.
    pub(crate) fn advertise(&mut self) {
        let peers = &mut self.peers;
        self.routes.local_filters(|filter| peers.route_changed(filter, true));
        self.shares.all().for_each(|group| peers.share_changed(&group.text, group.count()));
    }

    /// Rows of the hook for outboxes of other shards.
    pub(crate) fn send_rows(&mut self) {
        for RowElsewhere { shard, row, hold, end } in self.hook.take_rows() {
            if self.peers.is_away(shard) {
                self.ended.extend(end.map(|end| (end, Outcome::Retry)));
                continue;
            }
            // There is no commit in common with another node.
            let hold = hold && !self.peers.is_remote(shard);
            let receipt = end.as_ref().filter(|_| hold).map(End::receipt);
            let number = self.peers.number(shard, end);
            if let Some(receipt) = receipt {
                self.batch.awaits(receipt, number);
            }
            self.peers.send(shard, &Parcel::RuleRow { number, hold, row: &row });
        }
    }

    /// The turn's end: confirmations, and what is forgotten.
    pub(crate) fn end_turn_of_peers(&mut self) {
        if self.peers.is_alone() {
            return;
        }
        self.sweep_routes();
        for peer in self.peers.everyone() {
            let link = &mut self.peers.links[usize::from(peer)];
            if std::mem::take(&mut link.ack_due) {
                let version = link.heard;
                self.peers.send(peer, &Parcel::RouteAck { version });
            }
        }
    }

    /// Publishers wait with a full window: peers that have messages of ours are told.
    pub(crate) fn hurry_peers(&mut self) {
        for peer in self.peers.everyone() {
            if self.peers.links[usize::from(peer)].awaiting > 0 {
                self.peers.send(peer, &Parcel::Hurry);
            }
        }
    }

    /// Whether a CONNECT belongs to another shard, and to which.
    pub(crate) fn belongs_elsewhere(&self, client_id: &str) -> Option<u16> {
        let place = self.peers.place;
        if client_id.is_empty() {
            return None; // It gets one that belongs here.
        }
        Some(place.owner(client_id)).filter(|owner| *owner != place.index)
    }
}

/// Says what restored shards of one process have to tell each other, before any of them serves: until nobody has anything
/// to say. Each shard's turn is ended; what its connections would need is not its business here.
///
/// Each knows the others' routes before its first turn: wills that are due are published in that.
///
/// # Errors
/// When shards do not understand each other: a bug.
pub fn introduce<H: Hook, S: Store>(shards: &mut [Shard<H, S>], now: Now) -> Result<(), ParcelError> {
    exchange(shards, now)?;
    loop {
        shards.iter_mut().for_each(|shard| shard.end_turn(now));
        if !exchange(shards, now)? {
            return Ok(());
        }
    }
}

/// Hands over what shards of one process have said, if anything.
fn exchange<H: Hook, S: Store>(shards: &mut [Shard<H, S>], now: Now) -> Result<bool, ParcelError> {
    let mut any = false;
    for from in 0..shards.len() {
        for to in 0..shards.len() {
            if let Some(batch) = shards[from].take_parcels(to as u16) {
                any = true;
                shards[to].parcels(from as u16, &batch, now)?;
            }
        }
    }
    Ok(any)
}
