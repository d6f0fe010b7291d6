//! Whose a stored session is, among the nodes of a cluster.
//!
//! # Constraints
//! A session that outlives its connection is in the store that the nodes share, and has one owner there: the node that its client connected to last, or that has
//! adopted it. The owner alone knows its filters, writes its queue, and counts its life. It changes while messages are under way to it: whoever
//! routes one has to reach the owner of then or that of now, and a message of QoS 2 not both. No message is to pay for that.
//!
//! # A client connects to another node
//! ```text
//!  B: Present ----> all          it is here; who has its connection ends it
//!  A: Owns, RouteAck ----> B     I have its session, and write what is left of it; what comes for it from now on waits in memory
//!  A: Yours ----> B              what I had submitted for it is durable
//!  B: takes it from the store    (Store::take: its owner and its epoch change in one transaction)
//!  B: RouteDelta..., Moved ----> all
//!  C: Passed ----> A, on data    what I send you from here on I have sent to B as well
//!  A: Relay ----> B, on data     what waited, and what others send that they routed before they knew
//!  A: forgets it, when all have passed, and there is no member that it has had no link to
//! ```
//! The CONNACK waits for the commit and for the members' RouteAck of B's routes. When nobody owns a session and none is to be made, and none can be waiting
//! for an owner, the store is not asked. An owner that is a member and silent is waited for: until it answers, or has been removed. One that has given a session
//! up and hears no more of it takes it from itself: what it had given up had another epoch.
//!
//! # A node is removed
//! Its routes stay (its peers here are *orphans*): what is published at QoS 1 or 2 and matches them is not read yet ([`Shard::park_for_owner`]), and what rules
//! make that does is to be tried again. Each live member, or if there is none each that joins, adopts its share of the sessions whose owners are no members
//! ([`Store::adopt`]), tells their routes, and then that it has ([`Parcel::Adopted`]). When all members have said so in the view that this node has,
//! orphans are forgotten. Who finds that a session of its own has been taken so keeps its routes until all have said that they know of all ([`Parcel::Settled`]): on
//! data, behind what they routed before.
//! Members that are joining say it too: a node that was restarted before it was removed has its sessions itself. And nobody goes live before: it has no
//! orphans, and could not know whom it leaves out.
//!
//! # Bounds
//! Connections that look for their session: each is one of the shard's. Sessions that are waited for or have moved: one a client. What waits in memory is bounded
//! as a queue's memory is; a hand-over that does not come is given up after [`HAND_OVER_US`], and publishers that wait for an owner are sent away
//! after [`ORPHANED_US`].
//!
//! # Not yet
//! Messages that come by way of the old owner may be overtaken by later ones. A publish of QoS 2 whose publisher moves before it is committed may be routed twice.

use crate::config;
use crate::deliver::delivering;
use crate::ending::Why;
use crate::hook::{Ends, Hook};
use crate::nodes::Reach;
use crate::parcel::{Number, Parcel};
use crate::peers::{Late, Link, Owner};
use crate::routes::Routes;
use crate::session::{Conn, Kind, Queued, Session, session_id};
use crate::shard::{Destination, Shard};
use crate::turn::Wait;
use crate::{ConnId, SessionKey};
use bytes::Bytes;
use ferrule_mqtt::{ReasonCode, topic};
use ferrule_outbox::{End, Outcome, Queue, Reason, Row};
use ferrule_store::record::{self, Delivery, Record};
use ferrule_store::{Found, Now, Op, QueueId, Restored, SessionId, Store, Taken};
use foldhash::{HashMap, HashSet};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// How long the queue of a session waits for its next owner: a transaction, and what a slow database takes.
const HAND_OVER_US: u64 = 5_000_000;
/// When a client is announced again whose session is another's who has not said so.
const AGAIN_US: u64 = 200_000;
/// The peer of a session that is at nobody knows which.
const NOWHERE: u16 = u16::MAX;
/// How long publishers wait for sessions without an owner: as for a node that may not acknowledge ([`crate::standing`]).
const ORPHANED_US: u64 = 10_000_000;

/// A session that is another node's.
#[derive(Debug)]
pub(crate) struct Moved {
    /// The shard that has it.
    to: u16,
    /// As its new owner has it.
    stage: Stage,
    /// When its new owner is asked to say once more that it has it: who passes may not have heard it, or have said so on a link that broke.
    ask_us: u64,
    /// Shards that know: what they send is not sent on.
    passed: HashSet<u16>,
}

/// A session as one of its owners has it: a client may have had others before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stage {
    pub(crate) session: SessionId,
    pub(crate) epoch: u64,
}

impl Stage {
    /// Whether it is the same session with a later owner.
    fn is_behind(self, other: Self) -> bool {
        self.session == other.session && self.epoch > other.epoch
    }
}

/// From whom a session was taken, and what it is since.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Take {
    /// By its name.
    pub(crate) owner: u64,
    pub(crate) stage: Stage,
}

/// A connection that looks for its session.
#[derive(Debug, Clone, Copy)]
struct Looking {
    conn: ConnId,
    /// Who said that it has the session, of those who did the one with the highest epoch.
    owner: Option<Claimed>,
    /// What the store has said that it is: others may have had one that is no more.
    stage: Option<Stage>,
    /// All members know that the client is here.
    is_told: bool,
    /// The store has been asked for it.
    is_asked: bool,
    /// The end of the one that its client had here is not durable: the store is asked behind that.
    awaits_end: bool,
}

impl Looking {
    fn of(conn: ConnId) -> Self {
        Self { conn, owner: None, stage: None, is_told: false, is_asked: false, awaits_end: false }
    }
}

#[derive(Debug, Clone, Copy)]
struct Claimed {
    by: u16,
    stage: Stage,
    /// It has no more to say of it.
    is_free: bool,
}

/// A session whose queue waits for its next owner. A shard's `Passed` may come before the `Moved` of that owner, by another link.
#[derive(Debug)]
struct Frozen {
    key: SessionKey,
    to: u16,
    /// When it is asked for again.
    until_us: u64,
    /// Shards that know its next owner before this one does, and of which epoch.
    passed: Vec<(u16, Stage)>,
}

/// A message for a session that has moved.
#[derive(Debug)]
pub(crate) struct Relay {
    to: u16,
    client_id: Arc<str>,
    delivery: Arc<Delivery>,
    end: Option<End>,
}

/// What a shard knows of it.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    looking: BTreeMap<Arc<str>, Looking>,
    /// Of the stored sessions of this shard: what is said of an older one is out of date.
    pub(crate) epochs: HashMap<SessionId, u64>,
    frozen: BTreeMap<Arc<str>, Frozen>,
    /// Reads that are still to be answered of queues that were lost: one a queue and life of it.
    reads_before: HashMap<QueueId, u32>,
    /// When the first of them is to be asked for.
    frozen_us: Option<u64>,
    /// Clients that are announced again then, since nobody has said yet where their sessions are.
    again: VecDeque<(u64, Arc<str>)>,
    /// Clients that have a session here which ends with its connection, and in the store one that this shard gives up, or that was asked for since.
    doubled: HashMap<Box<str>, Claimed>,
    /// Sessions that have moved and that not all know of, or that have been lost and nobody has said to whom.
    moved: BTreeMap<Arc<str>, SessionKey>,
    /// When the first of them is to be asked for.
    asks_us: Option<u64>,
    /// To be sent on.
    pub(crate) relays: Vec<Relay>,
    /// The shard that the message in hand came from; none: this one.
    pub(crate) sender: Option<u16>,
    /// The members' view that this node has, and whether all of them have been heard of.
    pub(crate) view: u64,
    complete: bool,
    /// In which this node has adopted its share.
    adopted: u64,
    /// In which it has said that it has settled.
    settled: u64,
    /// Peers that are no members any more and whose sessions may have no owner.
    orphans: Vec<u16>,
    /// Since when there are some.
    orphaned_us: u64,
    /// Connections whose publishes wait for that.
    parked: Vec<ConnId>,
}

impl Owners {
    pub(crate) fn has_orphans(&self) -> bool {
        !self.orphans.is_empty()
    }

    /// Whether a publish leads to sessions that may have no owner now.
    #[cold]
    pub(crate) fn are_concerned(&self, routes: &mut Routes<Destination>, topic: &str) -> bool {
        let mut matches = Vec::new();
        routes.matches(topic, &mut matches);
        let is_orphan = |destination: &Destination| matches!(destination, Destination::Peer(peer, _) if self.orphans.contains(peer));
        matches.iter().any(is_orphan)
    }

    /// When something is to be given up.
    pub(crate) fn next_us(&self) -> Option<u64> {
        let parked = (!self.parked.is_empty()).then_some(self.orphaned_us + ORPHANED_US);
        let frozen = self.frozen_us;
        let again = self.again.front().map(|(due_us, _)| *due_us);
        let asks = self.asks_us;
        [parked, frozen, again, asks].into_iter().flatten().min()
    }

    /// Whether whoever sends the message in hand has sent it to the next owner of this queue as well, which waits here still: it has heard of that owner
    /// first. (Of a message to a shared group one of its members is drawn; that one has it alone.)
    #[cold]
    pub(crate) fn have_passed(&self, queue: &Queue<Queued>, client_id: &str, own: u16) -> bool {
        let sender = self.sender.unwrap_or(own);
        let session = session_id(queue);
        let mine = Stage { session, epoch: self.epochs.get(&session).copied().unwrap_or(1) };
        let frozen = self.frozen.get(client_id);
        let mut passed = frozen.iter().flat_map(|frozen| &frozen.passed);
        passed.any(|(peer, stage)| *peer == sender && stage.is_behind(mine))
    }

    /// A message for a session that has moved, unless its new owner has it already.
    pub(crate) fn send_on(
        &mut self,
        moved: &Moved,
        client_id: &Arc<str>,
        delivery: &Arc<Delivery>,
        own: u16,
        end: impl FnOnce() -> Option<End>,
    ) {
        if !moved.passed.contains(&self.sender.unwrap_or(own)) {
            let (to, client_id, delivery) = (moved.to, Arc::clone(client_id), Arc::clone(delivery));
            self.relays.push(Relay { to, client_id, delivery, end: end() });
        }
    }
}

impl<H: Hook, S: Store> Shard<H, S> {
    // --- the node that a client connects to ---

    /// Looks for the session of a client that connects here, whose CONNECT may be answered otherwise.
    pub(crate) fn look_for(&mut self, id: ConnId, client_id: &Arc<str>) {
        let before = self.owners.looking.remove(client_id);
        // What was asked of the store for it is answered for this one, and what it waited for this one waits for.
        let looking = before.map_or(Looking::of(id), |before| Looking {
            conn: id,
            stage: None,
            is_told: false,
            ..before
        });
        self.owners.looking.insert(Arc::clone(client_id), looking);
        if let Some(before) = before {
            self.disconnect(before.conn, ReasonCode::SESSION_TAKEN_OVER);
        }
        self.tell_presence(id, client_id);
        self.when_routed(Late::Take(id));
    }

    /// A connection has ended, perhaps while it looked for its session.
    pub(crate) fn looks_no_more(&mut self, id: ConnId) {
        let Some(client_id) = self.connecting_id(id) else { return };
        // What the store was asked for it answers: it may have made a session.
        let is_over = |looking: &Looking| looking.conn == id && !looking.is_asked && !looking.awaits_end;
        if self.owners.looking.get(&client_id).is_some_and(is_over) {
            self.owners.looking.remove(&client_id);
        }
    }

    /// The connection that looks for a client's session.
    pub(crate) fn looking_for(&self, client_id: &str) -> Option<ConnId> {
        Some(self.owners.looking.get(client_id)?.conn)
    }

    /// All members know that its client is here.
    pub(crate) fn told_presence(&mut self, id: ConnId) {
        let Some(client_id) = self.connecting_id(id) else { return };
        if let Some(looking) = self.owners.looking.get_mut(&client_id).filter(|looking| looking.conn == id) {
            looking.is_told = true;
            self.take_if_free(&client_id);
        }
    }

    fn connecting_id(&self, id: ConnId) -> Option<Arc<str>> {
        Some(self.conns.get(id)?.connecting.as_ref()?.client_id())
    }

    fn stage(&self, session: SessionId) -> Stage {
        Stage { session, epoch: self.owners.epochs.get(&session).copied().unwrap_or(1) }
    }

    fn name_of(&self, peer: u16) -> u64 {
        self.peers.links.get(usize::from(peer)).map_or(0, |link| link.name)
    }

    /// A peer has the session of a client that is here.
    pub(crate) fn owns(&mut self, from: u16, stage: Stage, client_id: &str) {
        let session = self.by_client(client_id).and_then(|key| self.sessions.get(key)?.store_id());
        if let Some(mine) = session.map(|session| self.stage(session)).filter(|mine| mine.is_behind(stage)) {
            // It has not heard who took it.
            self.tell_moved(Take { owner: self.name_of(from), stage: mine }, false, client_id);
            if let Some(looking) = self.owners.looking.get_mut(client_id) {
                looking.owner.take_if(|known| mine.is_behind(known.stage));
                self.take_if_free(client_id);
            }
            return;
        }
        let is_here = self
            .by_client(client_id)
            .is_some_and(|key| self.sessions.get(key).is_some_and(|session| session.conn.is_some()));
        if is_here && self.has_session(client_id) && session.is_some_and(|mine| mine != stage.session) {
            // Its client has another one, so this one has ended: nothing is to be sent on for it.
            let Stage { session: SessionId(session), epoch } = stage;
            let owner = self.name_of(from);
            self.peers.send(from, &Parcel::Moved { owner, session, epoch, gone: true, client_id });
            return;
        }
        if let Some(looking) = self.owners.looking.get_mut(client_id) {
            let is_it = looking.stage.is_none_or(|known| known.session == stage.session);
            // Said again by one who has given it up: it is free with that epoch, and stays so.
            let is_said = looking.owner.is_some_and(|known| known.by == from && known.stage == stage);
            if is_it && !is_said && looking.owner.is_none_or(|known| known.stage.epoch <= stage.epoch) {
                looking.owner = Some(Claimed { by: from, stage, is_free: false });
            }
        } else if is_here && session.is_none() {
            // Two sides of a partition have had this client.
            let claimed = Claimed { by: from, stage, is_free: false };
            self.owners.doubled.insert(client_id.into(), claimed);
        }
    }

    fn tell_moved(&mut self, take: Take, gone: bool, client_id: &str) {
        if !gone {
            self.tell_routes_of(client_id);
        }
        let Take { owner, stage: Stage { session: SessionId(session), epoch } } = take;
        self.peers.send_to_all(&Parcel::Moved { owner, session, epoch, gone, client_id });
        self.pass(take, client_id);
    }

    /// Whether a client's session is here, and nobody is about to take it.
    pub(crate) fn has_session(&self, client_id: &str) -> bool {
        let session = self.by_client(client_id).and_then(|key| self.sessions.get(key));
        matches!(session.map(|session| &session.kind), Some(Kind::Persistent { queue }) if !queue.is_frozen())
    }

    /// It has no more to say of it.
    pub(crate) fn yours(&mut self, from: u16, epoch: u64, client_id: &str) {
        if let Some(looking) = self.owners.looking.get_mut(client_id) {
            let claimed = looking.owner.as_mut();
            if let Some(claimed) = claimed.filter(|known| known.by == from && known.stage.epoch == epoch) {
                claimed.is_free = true;
                self.take_if_free(client_id);
            }
            return;
        }
        let claimed = self.owners.doubled.get_mut(client_id);
        let Some(claimed) = claimed.filter(|known| known.by == from && known.stage.epoch == epoch) else {
            return;
        };
        claimed.is_free = true;
        let Stage { session, epoch } = claimed.stage;
        self.store.take(client_id, Some((session, epoch)), None);
    }

    fn take_if_free(&mut self, client_id: &str) {
        let Some(looking) = self.owners.looking.get(client_id) else { return };
        let (id, owner) = (looking.conn, looking.owner);
        let waits = !looking.is_told || looking.is_asked || looking.awaits_end;
        if waits || owner.is_some_and(|known| !known.is_free) {
            return;
        }
        let given_up = owner.map(|known| (known.stage.session, known.stage.epoch));
        let new = self.new_record(id);
        if new.is_none() && owner.is_none() && self.knows_sessions_in().is_some() {
            self.owners.looking.remove(client_id);
            self.enter(id);
            return;
        }
        if let Some(looking) = self.owners.looking.get_mut(client_id) {
            looking.is_asked = true;
        }
        self.store.take(client_id, given_up, new);
    }

    /// A client begins anew whose session was here: when the end of that is durable, it gets another one.
    pub(crate) fn wait_for_new(&mut self, id: ConnId) {
        let Some(client_id) = self.connecting_id(id) else { return };
        let looking = Looking { is_told: true, awaits_end: true, ..Looking::of(id) };
        self.owners.looking.insert(Arc::clone(&client_id), looking);
        self.wait(Wait::New(client_id));
    }

    /// The end is: whoever looks for the client's session by now may ask. If it was not written, since it was not this node's to end, the store
    /// refuses.
    pub(crate) fn ask_for_new(&mut self, client_id: &str) {
        let Some(looking) = self.owners.looking.get_mut(client_id) else { return };
        looking.awaits_end = false;
        let id = looking.conn;
        if self.connecting_id(id).is_some_and(|of| *of == *client_id) {
            self.take_if_free(client_id);
        } else {
            self.owners.looking.remove(client_id);
        }
    }

    /// Asks again where a client's session is.
    fn announce_again(&mut self, client_id: &str) {
        let Some(looking) = self.owners.looking.get_mut(client_id) else { return };
        (looking.owner, looking.is_told, looking.is_asked) = (None, false, false);
        let id = looking.conn;
        self.tell_presence_again(id, client_id);
        self.when_routed(Late::Take(id));
    }

    /// The view that this shard was told last, if it knows in it what a node has to know that serves: the routes of all sessions that are stored, and what other
    /// nodes have retained.
    #[must_use]
    pub fn settled_in(&self) -> Option<u64> {
        self.knows_sessions_in().filter(|_| self.knows_retained())
    }

    /// Whether it knows in the newest view the routes of all sessions that are stored.
    pub(crate) fn knows_sessions(&self) -> bool {
        self.knows_sessions_in().is_some()
    }

    /// The view in which all members have adopted what they have to, if it is the one that this shard was told last.
    pub(crate) fn knows_sessions_in(&self) -> Option<u64> {
        // Who is ahead has adopted what has no owner there: that may be less.
        let (view, own) = (self.owners.view, self.peers.place.index);
        let have =
            |(at, link): (usize, &Link)| at == usize::from(own) || !link.member || link.adopted == view;
        let all = self.owners.complete && self.owners.adopted == view;
        (view > 0 && all && self.peers.links.iter().enumerate().all(have)).then_some(view)
    }

    /// The store's answer.
    pub(crate) fn taken(&mut self, taken: &Taken) {
        let client_id = &*taken.client_id;
        if self.belongs_elsewhere(client_id).is_some() {
            return;
        }
        let doubled = self.owners.doubled.remove(client_id);
        if let Found::Refused(known) = taken.found {
            self.refused(known.map(|(session, epoch)| Stage { session, epoch }), client_id);
            return;
        }
        let looking = self.owners.looking.remove(client_id);
        let owner = looking.as_ref().and_then(|looking| looking.owner).or(doubled);
        let name = owner.map(|known| self.name_of(known.by));
        let conn = looking.map(|looking| looking.conn);
        let conn = conn.filter(|id| self.connecting_id(*id).is_some_and(|of| *of == *client_id));
        let epoch = taken.restored.epochs.first().map_or(1, |(_, epoch)| *epoch);
        match taken.found {
            // It was asked for, and is no more: who has taken it has ended it.
            Found::Nothing if self.owners.frozen.contains_key(client_id) => {
                if let Some(key) = self.by_client(client_id) {
                    self.lose_session(key, Outcome::Discarded(Reason::Removed));
                }
            }
            Found::Nothing | Found::Refused(_) => {}
            Found::Made(id) => {
                // What was given up here has been ended by whoever took it: the store knows one of a client.
                let ended = self.by_client(client_id);
                let is_stored =
                    |key: &SessionKey| self.sessions.get(*key).is_some_and(|s| s.store_id().is_some());
                if let Some(key) = ended.filter(is_stored) {
                    self.lose_session(key, Outcome::Discarded(Reason::Removed));
                }
                match conn {
                    Some(conn) => self.is_made(conn, id),
                    // Its client has gone.
                    None => self.op(Op::SessionDelete { session: id }, true),
                }
            }
            Found::Session(id) => {
                self.forget_moved(client_id);
                let known = self.by_client(client_id);
                let known = known.map(|key| (key, self.sessions.get(key).and_then(Session::store_id)));
                match known {
                    // Nobody has had it since.
                    Some((key, Some(of))) if of == id && self.stage(id).epoch + 1 >= epoch => {
                        self.owners.epochs.insert(id, epoch);
                        self.thaw(key);
                    }
                    // As it was before others had it, or one that is no more: the store knows one of a client.
                    Some((key, Some(_))) => {
                        self.lose_session(key, Outcome::Retry);
                        self.restore_sessions(&taken.restored, true);
                    }
                    // Another one is in force, which ends with its connection.
                    Some(_) => self.op(Op::SessionDelete { session: id }, true),
                    None => self.restore_sessions(&taken.restored, true),
                }
            }
        }
        if let Some(conn) = conn {
            self.enter(conn);
        }
        if let (Found::Session(id), Some(owner)) = (taken.found, name) {
            let gone = !self.by_store_id.contains_key(&id);
            self.tell_moved(Take { owner, stage: Stage { session: id, epoch } }, gone, client_id);
        }
        self.settle();
    }

    /// It is another's, who has not given it up.
    fn refused(&mut self, stage: Option<Stage>, client_id: &str) {
        let now_us = self.now.mono_us;
        if let Some(looking) = self.owners.looking.get_mut(client_id) {
            // Its owner was not known, or has thought better of it.
            (looking.is_asked, looking.is_told, looking.stage) = (false, false, stage);
            let id = looking.conn;
            if self.connecting_id(id).is_some_and(|of| *of == *client_id) {
                self.owners.again.push_back((now_us + AGAIN_US, client_id.into()));
            } else {
                self.owners.looking.remove(client_id);
            }
            return;
        }
        let Some(frozen) = self.owners.frozen.get_mut(client_id) else { return };
        frozen.until_us = now_us + HAND_OVER_US;
        let key = frozen.key;
        let Some(id) = self.sessions.get(key).and_then(Session::store_id) else { return };
        if stage.is_some_and(|stage| stage.session != id) {
            // Who has taken it has ended it, and its client has another one.
            self.lose_session(key, Outcome::Discarded(Reason::Removed));
            return;
        }
        // It was taken from here after all: who has it is to say so.
        let Stage { session: SessionId(session), epoch } = self.stage(id);
        self.peers.send_to_all(&Parcel::Owns { session, epoch, client_id });
    }

    // --- the node that had it ---

    /// A client whose session may be here is at another node.
    pub(crate) fn hand_over(&mut self, to: u16, client_id: &str) {
        let Some(key) = self.by_client(client_id) else { return };
        let Some(session) = self.sessions.get_mut(key) else { return };
        let Kind::Persistent { queue } = &mut session.kind else { return };
        let (id, client_id) = (session_id(queue), Arc::clone(&session.client_id));
        let mut ops = Vec::new();
        queue.freeze(self.now, &mut ops);
        ops.into_iter().for_each(|op| self.op(op, true));
        self.touch(key);
        let until_us = self.now.mono_us + HAND_OVER_US;
        let frozen = Frozen { key, to, until_us, passed: Vec::new() };
        self.owners.frozen.insert(Arc::clone(&client_id), frozen);
        self.owners.frozen_us.get_or_insert(until_us);
        let Stage { session: SessionId(session), epoch } = self.stage(id);
        self.peers.send(to, &Parcel::Owns { session, epoch, client_id: &client_id });
        self.wait(Wait::Yours(to, Stage { session: id, epoch }, client_id));
    }

    /// All that was said of it here is durable.
    pub(crate) fn is_yours(&mut self, to: u16, stage: Stage, client_id: &str) {
        let Stage { session, epoch } = stage;
        let known = self.by_client(client_id).and_then(|key| self.sessions.get(key)?.store_id());
        // It is said by its epoch, which the client's next session here may have as well: of that it has been told, or will be, by itself.
        if known.is_none_or(|known| known == session) {
            self.peers.send(to, &Parcel::Yours { epoch, client_id });
        }
    }

    /// A session has been taken.
    pub(crate) fn moved(&mut self, to: u16, take: Take, gone: bool, client_id: &str) {
        let is_from_here = take.owner == self.peers.place.name();
        if is_from_here && gone && self.sends_on(client_id, take.stage.session) {
            self.forget_moved(client_id);
            return;
        }
        if !is_from_here {
            self.pass(take, client_id);
        }
        // Whoever hears that it was taken from here passes; else they have to hear that it has been here.
        let ask_us = self.now.mono_us + if is_from_here { HAND_OVER_US } else { 0 };
        let key = self.owners.moved.get(client_id);
        let kind = key.and_then(|key| self.sessions.get_mut(*key)).map(|session| &mut session.kind);
        if let Some(Kind::Moved(moved)) = kind
            && take.stage.is_behind(moved.stage)
        {
            if gone {
                // Its client has begun another one, which is nobody's to send on to.
                self.forget_moved(client_id);
                return;
            }
            if moved.to != NOWHERE {
                // It has moved on.
                (moved.to, moved.stage, moved.ask_us) = (to, take.stage, ask_us);
                moved.passed = [self.peers.place.index].into_iter().collect();
                self.owners.asks_us = Some(self.owners.asks_us.unwrap_or(ask_us).min(ask_us));
            }
        }
        // Also one that was taken from here long ago, unheard.
        let Some(key) = self.by_client(client_id) else { return };
        let id = self.sessions.get(key).and_then(Session::store_id);
        if !id.is_some_and(|id| take.stage.is_behind(self.stage(id))) {
            return; // It is here again, or is another one of the same client.
        }
        if gone {
            self.lose_session(key, Outcome::Discarded(Reason::Removed));
            return;
        }
        // Connected still, if it was not asked for: this node was taken for gone.
        self.send_client_away(key);
        let Some(session) = self.sessions.get_mut(key) else { return };
        let frozen = self.owners.frozen.get(client_id);
        let early = frozen.iter().flat_map(|frozen| &frozen.passed);
        let early = early.filter(|(_, stage)| *stage == take.stage).map(|(peer, _)| *peer);
        let passed = early.chain([self.peers.place.index]).collect();
        self.owners.asks_us = Some(self.owners.asks_us.unwrap_or(ask_us).min(ask_us));
        let moved = Moved { to, stage: take.stage, ask_us, passed };
        let client_id = Arc::clone(&session.client_id);
        let kind = std::mem::replace(&mut session.kind, Kind::Moved(Box::new(moved)));
        (session.expires_us, session.late_will) = (0, None);
        let groups: Vec<Arc<str>> = session.shared().map(|(text, _)| Arc::clone(text)).collect();
        groups.iter().for_each(|text| self.remove_route(key, text));
        self.remove_client(key);
        if let Kind::Persistent { queue } = kind {
            self.part_with(&queue);
            for (row, end) in queue.give_away(&mut self.ended) {
                self.peers.relay(to, &client_id, &row.delivery, end);
            }
        }
        self.owners.frozen.remove(&client_id);
        self.forget_moved(&client_id);
        self.owners.moved.insert(Arc::clone(&client_id), key);
        self.forget_if_passed(&client_id);
        self.settle();
    }

    /// What this shard knows of a stored session by its number; its packet ids that are not written yet would be nobody's.
    pub(crate) fn forget_stored(&mut self, session: SessionId) {
        self.by_store_id.remove(&session);
        self.owners.epochs.remove(&session);
        let ends = self.batch.forget(session, None);
        self.ended.extend(ends.map(|end| (end, Outcome::Delivered)));
    }

    /// Tells the shard of this name that what it is sent from here on has gone to the session's new owner, too.
    fn pass(&mut self, take: Take, client_id: &str) {
        let Take { owner, stage: Stage { session: SessionId(session), epoch } } = take;
        // In an earlier life as a member it had another number.
        let is_its = |link: &Link| link.name == owner && link.reach != Reach::Away;
        if let Some(peer) = self.peers.links.iter().position(is_its) {
            self.peers.send(peer as u16, &Parcel::Passed { session, epoch, client_id });
        }
    }

    /// What a shard sends from here on it has sent to where the session is as well.
    pub(crate) fn passed(&mut self, from: u16, stage: Stage, client_id: &str) {
        let Some(key) = self.owners.moved.get(client_id) else {
            if let Some(frozen) = self.owners.frozen.get_mut(client_id) {
                frozen.passed.push((from, stage));
            }
            return;
        };
        match self.sessions.get_mut(*key).map(|session| &mut session.kind) {
            Some(Kind::Moved(moved)) if moved.stage == stage => {
                moved.passed.insert(from);
            }
            _ => return,
        }
        self.forget_if_passed(client_id);
    }

    fn forget_if_passed(&mut self, client_id: &str) {
        let Some(session) = self.owners.moved.get(client_id).and_then(|key| self.sessions.get(*key)) else {
            return;
        };
        let Kind::Moved(moved) = &session.kind else { return };
        // A member that is out of reach may not know it when it is back, nor one that there has been no link to.
        let knows = |(peer, link): (usize, &Link)| !link.member || moved.passed.contains(&(peer as u16));
        if moved.to != NOWHERE && self.owners.complete && self.peers.links.iter().enumerate().all(knows) {
            self.forget_moved(client_id);
        }
    }

    /// Whether what comes for a session is sent on from here.
    fn sends_on(&self, client_id: &str, session: SessionId) -> bool {
        let known = self.owners.moved.get(client_id).and_then(|key| self.sessions.get(*key));
        matches!(known.map(|known| &known.kind), Some(Kind::Moved(moved)) if moved.stage.session == session)
    }

    /// A session that has moved is nobody's affair here any more.
    fn forget_moved(&mut self, client_id: &str) {
        let Some(key) = self.owners.moved.remove(client_id) else { return };
        self.remove_session(key);
    }

    /// A stored session is not this node's any more, and nobody has said where it is: what waits for it ends thus. Its will is
    /// its new owner's.
    pub(crate) fn lose_session(&mut self, key: SessionKey, outcome: Outcome) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        (session.will, session.late_will) = (None, None);
        self.send_client_away(key);
        self.remove_client(key);
        let Some(session) = self.remove_session(key) else { return };
        self.owners.frozen.remove(&session.client_id);
        if let Kind::Persistent { queue } = session.kind {
            self.part_with(&queue);
            let ends = queue.give_away(&mut self.ended).into_iter().filter_map(|(_, end)| end);
            self.ended.extend(ends.map(|end| (end, outcome)));
        }
        self.settle();
    }

    /// Its session is another node's, and so is its will.
    fn send_client_away(&mut self, key: SessionKey) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let Some(id) = session.conn.take() else { return };
        session.will = None;
        if let Some(conn) = self.conns.get_mut(id) {
            conn.session = None;
        }
        self.stats.taken_elsewhere += 1;
        self.disconnect(id, ReasonCode::SESSION_TAKEN_OVER);
    }

    /// The store has not written these: their sessions are another node's.
    pub(crate) fn fenced(&mut self, ops: &[Op]) {
        let sessions: BTreeSet<SessionId> = ops.iter().filter_map(Op::session).collect();
        // Also those that were given up: what was under way then is in none of their next owners' hands.
        sessions.into_iter().for_each(|session| self.set_adrift(session));
    }

    /// The queue of a session is another node's.
    fn part_with(&mut self, queue: &Queue<Queued>) {
        if queue.is_reading() {
            *self.owners.reads_before.entry(queue.id()).or_default() += 1;
        }
        self.forget_stored(session_id(queue));
    }

    /// Whether rows of a session's queue are the answer to a read of before it was another node's, and came back: they say nothing of what it holds now.
    pub(crate) fn is_read_before(&mut self, queue: QueueId) -> bool {
        // The store answers each read, in their order.
        let Some(reads) = self.owners.reads_before.get_mut(&queue) else { return false };
        *reads -= 1;
        if *reads == 0 {
            self.owners.reads_before.remove(&queue);
        }
        true
    }

    /// A session of this node's is another's, as the store says. One that was given up is waited for: who has taken it says so, or is asked.
    pub(crate) fn lost(&mut self, session: SessionId) {
        let key = self.by_store_id.get(&session);
        let known = key.and_then(|key| self.sessions.get(*key));
        if known.is_some_and(|known| !self.owners.frozen.contains_key(&known.client_id)) {
            self.set_adrift(session);
        }
    }

    /// A session is another's, and nobody has said whose. Until all members' sessions are known again what is for it has to be sent again.
    fn set_adrift(&mut self, session: SessionId) {
        let Some(&key) = self.by_store_id.get(&session) else { return };
        let Some(session) = self.sessions.get(key) else { return };
        let stage = session.store_id().map(|session| self.stage(session));
        let Some(stage) = stage else { return };
        let (client_id, username) = (Arc::clone(&session.client_id), session.username.clone());
        let subscriptions = session.subscriptions.clone();
        self.lose_session(key, Outcome::Retry);
        let moved = Moved { to: NOWHERE, stage, ask_us: u64::MAX, passed: HashSet::default() };
        let kind = Kind::Moved(Box::new(moved));
        let key = self.sessions.insert(Session::new(Arc::clone(&client_id), username, kind, 0));
        for (filter, subscription) in subscriptions.into_iter().filter(|(f, _)| topic::shared(f).is_none()) {
            self.filter_bytes += config::FILTER + filter.len();
            self.add_route(key, &filter, subscription, true);
            if let Some(session) = self.sessions.get_mut(key) {
                session.subscribe(filter, subscription);
            }
        }
        self.forget_moved(&client_id);
        self.owners.moved.insert(client_id, key);
    }

    // --- messages on their way ---

    /// Sends on what came for sessions that have moved.
    pub(crate) fn send_relays(&mut self) {
        for Relay { to, client_id, delivery, end } in std::mem::take(&mut self.owners.relays) {
            if self.peers.is_away(to) {
                self.ended.extend(end.map(|end| (end, Outcome::Retry)));
            } else {
                self.peers.relay(to, &client_id, &delivery, end);
            }
        }
    }

    /// A message for a session that its former owner has not stored.
    pub(crate) fn relayed(
        &mut self,
        from: u16,
        number: Number,
        client_id: &str,
        head: &[u8],
        payload: &[u8],
    ) {
        let key = self.by_client(client_id).or_else(|| self.owners.moved.get(client_id).copied());
        let key = key.filter(|key| {
            self.sessions.get(*key).is_some_and(|session| !matches!(session.kind, Kind::Clean(_)))
        });
        let row = Queued::decode(head, Bytes::copy_from_slice(payload));
        let (Some(key), Ok(row)) = (key, row) else {
            // It has been taken from here, too, or was ended by its client: its publisher finds out.
            self.acknowledge_parcel(from, number, Outcome::Retry);
            return;
        };
        let owner = (number != 0).then_some(Owner::Peer { peer: from, number });
        self.owners.sender = Some(from);
        let mut ends = Ends::new(&mut self.receipts, owner);
        delivering!(self).enqueue(key, &row.delivery, Some(&mut ends));
        let receipt = ends.finish();
        self.owners.sender = None;
        self.send_relays();
        self.pump(key);
        match receipt {
            None => self.acknowledge_parcel(from, number, Outcome::Delivered),
            Some((_, guard)) => self.ended.extend(guard.map(|guard| (guard, Outcome::Delivered))),
        }
    }

    // --- members come and go ---

    /// The members of the cluster are those of this view: peers that are no members have been said to be gone ([`Shard::peer_gone`]). `complete`:
    /// all members that there are have been peers, and not yet gone.
    pub fn set_view(&mut self, view: u64, complete: bool, now: Now) {
        self.now = now;
        let is_new = view != self.owners.view;
        (self.owners.view, self.owners.complete) = (view, complete);
        if is_new && self.peers.place.index == 0 {
            self.store.adopt(view);
        }
        let moved: Vec<Arc<str>> = self.owners.moved.keys().cloned().collect();
        moved.iter().for_each(|client_id| self.forget_if_passed(client_id));
        self.yield_wills();
        self.forget_orphans();
        self.settle();
    }

    /// Says to the store that it is heard what was lost, and that it may look for sessions without an owner.
    pub(crate) fn ask_to_adopt(&mut self) {
        self.store.adopt(self.owners.view);
    }

    /// Sessions without an owner are this node's.
    pub(crate) fn adopted(&mut self, view: u64, restored: &Restored, done: bool) {
        let mut others = Vec::new();
        for (id, record) in &restored.sessions {
            let Ok(record) = record::Session::from_bytes(record) else { continue };
            self.forget_moved(&record.client_id);
            let Some(key) = self.by_client(&record.client_id) else { continue };
            if self.sessions.get(key).is_some_and(Session::is_persistent) {
                // As it was before it was lost, or one that is no more: the store knows one of a client.
                self.lose_session(key, Outcome::Retry);
            } else {
                // Another one is in force, which ends with its connection.
                others.push(*id);
            }
        }
        if others.is_empty() {
            self.restore_sessions(restored, true);
        } else {
            let mut restored = restored.clone();
            restored.sessions.retain(|(id, _)| !others.contains(id));
            others.into_iter().for_each(|session| self.op(Op::SessionDelete { session }, true));
            self.restore_sessions(&restored, true);
        }
        for (topic, stamp, record) in &restored.retained {
            self.restore_retained(topic, *stamp, record);
        }
        if done {
            self.hook.inherited(&restored.inherited, self.now);
            self.inherit_delayed(&restored.inherited);
            self.owners.adopted = self.owners.adopted.max(view);
            self.peers.send_to_all(&Parcel::Adopted { view });
            self.forget_orphans();
        }
        self.settle();
    }

    /// What a peer that has been linked has to know of sessions.
    pub(crate) fn tell_owned(&mut self, peer: u16) {
        for (client_id, frozen) in &self.owners.frozen {
            // It may have taken it on an earlier link.
            let session = self.sessions.get(frozen.key).and_then(Session::store_id);
            if let Some(session) = session {
                let epoch = self.owners.epochs.get(&session).copied().unwrap_or(1);
                self.peers.send(peer, &Parcel::Owns { session: session.0, epoch, client_id });
            }
        }
    }

    /// What it may be told only when it has been told all routes.
    pub(crate) fn tell_settled(&mut self, peer: u16) {
        let view = self.owners.adopted;
        if view > 0 {
            self.peers.send(peer, &Parcel::Adopted { view });
        }
        let view = self.owners.settled;
        if view > 0 {
            self.peers.send(peer, &Parcel::Settled { view });
        }
    }

    /// A peer knows the sessions of all members in this view.
    pub(crate) fn settled_elsewhere(&mut self, from: u16, view: u64) {
        if let Some(link) = self.peers.links.get_mut(usize::from(from)) {
            link.settled = link.settled.max(view);
        }
        self.forget_lost();
    }

    /// A peer has adopted its share in this view.
    pub(crate) fn adopted_elsewhere(&mut self, from: u16, view: u64) {
        if let Some(link) = self.peers.links.get_mut(usize::from(from)) {
            link.adopted = link.adopted.max(view);
        }
        self.forget_orphans();
    }

    /// A peer is no member any more.
    pub(crate) fn orphaned(&mut self, peer: u16) {
        if let Some(link) = self.peers.links.get_mut(usize::from(peer)) {
            link.member = false;
        }
        if !self.owners.has_orphans() {
            self.owners.orphaned_us = self.now.mono_us;
        }
        self.owners.orphans.push(peer);
        // Of the view that is without it.
        self.owners.complete = false;
    }

    fn forget_orphans(&mut self) {
        let Some(view) = self.knows_sessions_in() else { return };
        if self.owners.settled != view {
            self.owners.settled = view;
            self.peers.send_to_all(&Parcel::Settled { view });
        }
        for peer in std::mem::take(&mut self.owners.orphans) {
            self.forget_routes(peer);
        }
        self.publish_wills();
        self.forget_lost();
        self.ask_unsettled();
        for id in std::mem::take(&mut self.owners.parked) {
            if let Some(conn) = self.conns.get_mut(id).filter(|conn| conn.is_parked()) {
                conn.publishing.make().parked = false;
                self.hear(id);
            }
        }
        // Their sessions may have been adopted: sooner than by and by.
        let looking = self.owners.looking.iter();
        let looking = looking.filter(|(_, l)| l.owner.is_none() && l.is_told && !l.is_asked);
        let looking: Vec<Arc<str>> = looking.map(|(client_id, _)| Arc::clone(client_id)).collect();
        looking.iter().for_each(|client_id| self.announce_again(client_id));
    }

    /// Sessions of which nobody has said where they are, or whose new owners are gone, are known to all members otherwise: each has said that it knows
    /// the others' sessions.
    fn forget_lost(&mut self) {
        let (view, own) = (self.owners.view, usize::from(self.peers.place.index));
        let knows = |(at, link): (usize, &Link)| at == own || !link.member || link.settled == view;
        if self.owners.moved.is_empty()
            || self.owners.settled != view
            || self.knows_sessions_in().is_none()
            || !self.peers.links.iter().enumerate().all(knows)
        {
            return;
        }
        let is_member = |peer: u16| self.peers.links.get(usize::from(peer)).is_some_and(|link| link.member);
        let is_lost = |key: &SessionKey| {
            let kind = self.sessions.get(*key).map(|session| &session.kind);
            matches!(kind, Some(Kind::Moved(moved)) if !is_member(moved.to))
        };
        let lost = self.owners.moved.iter().filter(|(_, key)| is_lost(key));
        let lost: Vec<Arc<str>> = lost.map(|(client_id, _)| Arc::clone(client_id)).collect();
        lost.iter().for_each(|client_id| self.forget_moved(client_id));
    }

    /// A connection is not read until they have.
    pub(crate) fn park_for_owner(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if !std::mem::replace(&mut conn.publishing.make().parked, true) {
            self.stats.parked += 1;
            self.owners.parked.push(id);
        }
    }

    /// What a peer was to do that is out of reach now.
    pub(crate) fn owner_away(&mut self, peer: u16) {
        self.owners.doubled.retain(|_, known| known.by != peer || known.is_free);
        for looking in self.owners.looking.values_mut() {
            // What it has given up may be taken.
            looking.owner = looking.owner.filter(|known| known.by != peer || known.is_free);
        }
        let waiting: Vec<Arc<str>> = self.owners.looking.keys().cloned().collect();
        waiting.iter().for_each(|client_id| self.take_if_free(client_id));
        for frozen in self.owners.frozen.values_mut().filter(|frozen| frozen.to == peer) {
            frozen.until_us = self.now.mono_us;
            self.owners.frozen_us = Some(self.now.mono_us);
        }
    }

    /// It stays here.
    fn thaw(&mut self, key: SessionKey) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        self.owners.frozen.remove(&session.client_id);
        if let Kind::Persistent { queue } = &mut session.kind {
            queue.thaw();
            self.touch(key);
        }
    }

    /// Asks for sessions that have moved and that not all know of.
    fn ask_moved(&mut self) {
        let now_us = self.now.mono_us;
        let mut next_us = None::<u64>;
        for (client_id, key) in &self.owners.moved {
            let Some(Kind::Moved(moved)) = self.sessions.get_mut(*key).map(|session| &mut session.kind)
            else {
                continue;
            };
            if moved.to == NOWHERE {
                continue;
            }
            if moved.ask_us <= now_us {
                moved.ask_us = now_us + HAND_OVER_US;
                let Stage { session: SessionId(session), epoch } = moved.stage;
                // As it was before, which whoever has it now is to correct.
                let epoch = epoch.saturating_sub(1);
                self.peers.send(moved.to, &Parcel::Owns { session, epoch, client_id });
            }
            next_us = Some(next_us.unwrap_or(u64::MAX).min(moved.ask_us));
        }
        self.owners.asks_us = next_us;
    }

    /// The turn's end: what has waited for too long.
    pub(crate) fn end_turn_of_owners(&mut self) {
        let now_us = self.now.mono_us;
        if self.owners.frozen_us.is_some_and(|due_us| due_us <= now_us) {
            for (client_id, frozen) in &mut self.owners.frozen {
                if frozen.until_us <= now_us {
                    // With another epoch, so that what was given up cannot be taken any more.
                    frozen.until_us = now_us + HAND_OVER_US;
                    self.store.take(client_id, None, None);
                }
            }
            self.owners.frozen_us = self.owners.frozen.values().map(|frozen| frozen.until_us).min();
        }
        while let Some((_, client_id)) = self.owners.again.pop_front_if(|(due_us, _)| *due_us <= now_us) {
            self.announce_again(&client_id);
        }
        if self.owners.asks_us.is_some_and(|asks_us| asks_us <= now_us) {
            self.ask_moved();
        }
        if !self.owners.parked.is_empty() && now_us >= self.owners.orphaned_us + ORPHANED_US {
            for id in std::mem::take(&mut self.owners.parked) {
                if self.conns.get(id).is_some_and(Conn::is_parked) {
                    let text = "sessions of a node that is gone have no owner yet: send it again";
                    self.disconnect(id, Why::new(ReasonCode::SERVER_BUSY, text));
                }
            }
        }
    }
}
