//! One node's part.

use std::collections::{BTreeMap, VecDeque};

/// A node, for as long as its data folder lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u64);

/// A node in one of its lives: what joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId {
    /// The node.
    pub node: NodeId,
    /// The number of the view that it joined with: no other has it, and whoever has a view with this number or a higher one knows
    /// whether it is a member.
    pub incarnation: u64,
}

/// What a member is in the view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It exchanges routes and serves nobody yet.
    Joining,
    /// It serves.
    Live,
}

/// A row of the view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Who.
    pub id: PeerId,
    /// What.
    pub state: State,
    /// It has stored sessions.
    pub owns: bool,
}

/// The members; whoever is not in it has been removed, or has never joined.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct View {
    /// Counted up with each change.
    pub number: u64,
    /// At most one incarnation of each node.
    pub members: Vec<Member>,
}

impl View {
    /// Whether it was a member before this view, and is none any more.
    fn is_past(&self, id: PeerId) -> bool {
        self.number >= id.incarnation && self.state(id).is_none()
    }

    fn state(&self, id: PeerId) -> Option<State> {
        self.members.iter().find(|member| member.id == id).map(|member| member.state)
    }
}

/// Times in microseconds, of the clock that also runs while the machine is suspended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// How long a member may be silent.
    pub lease_us: u64,
    /// How much earlier the silent one stops. Two clocks may differ in their rate by `margin_us / lease_us`.
    pub margin_us: u64,
    /// How often a heartbeat is sent.
    pub heartbeat_us: u64,
    /// How long a member that is not live yet may be silent: nobody waits for it.
    pub join_us: u64,
    /// How often the view is read though nobody says that it has changed.
    pub read_us: u64,
    /// How long a member may acknowledge that has not been seen by the store. After this and [`Config::seen_us`] together whoever joins may
    /// remove it there.
    pub store_us: u64,
    /// How much older than the reading what the store has written down may be: it is not written each time.
    pub seen_us: u64,
}

impl Default for Config {
    fn default() -> Self {
        // Five heartbeats a lease: one lost by a link that is made anew, or late by a busy loop, stops nobody. Clocks of PCs differ by 0.02 %.
        Self {
            lease_us: 1_000_000,
            margin_us: 100_000,
            heartbeat_us: 200_000,
            join_us: 10_000_000,
            read_us: 1_000_000,
            // A restart of a database, or its failover, stops nobody.
            store_us: 50_000_000,
            seen_us: 10_000_000,
        }
    }
}

/// Since when and until when a node may acknowledge, by its own clock: while each member that counts leases to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Without a gap since then.
    pub since_us: u64,
    /// Up to, and not including.
    pub until_us: u64,
}

impl Standing {
    /// It may not.
    pub const NONE: Self = Self { since_us: u64::MAX, until_us: 0 };

    /// Whether what was routed at `routed_us` may be acknowledged in the turn that ends now. Who had no lease for a while in between
    /// may have looked up routes that were not those of the others.
    #[must_use]
    pub fn allows(self, routed_us: u64, now_us: u64) -> bool {
        self.since_us <= routed_us && now_us < self.until_us
    }
}

/// What nodes tell each other, in order, on the control stream. Routes travel on the same stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// I live.
    Heartbeat {
        /// Ascends on a link.
        number: u64,
        /// Of the sender's view.
        view: u64,
    },
    /// It came.
    Echo {
        /// Of the heartbeat.
        number: u64,
        /// In which the one that is answered is in; 0: it is out.
        epoch: u64,
    },
    /// You are to be in: all routes of mine are on their way.
    Offer {
        /// Ascends.
        epoch: u64,
    },
    /// I count you as a member.
    Accept {
        /// Of the offer.
        epoch: u64,
    },
}

/// What is to be done. Answers of the store come back by [`Node::view`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Send it on the control stream.
    Send(PeerId, Message),
    /// Send all routes on the control stream, and from here on each change. When all are there, and not
    /// before, they replace what the other side had. When all have been sent, [`Node::routes_sent`] is due.
    SendRoutes(PeerId),
    /// Forget its routes: it is a member no more.
    ForgetRoutes(PeerId),
    /// New routes wait for it from here on. When all who make routes know that, [`Node::in_force`] is due with the token.
    In(PeerId, u64),
    /// New routes wait for it no more.
    Out(PeerId),
    /// Connect to it, or go on trying to.
    Connect(PeerId),
    /// Read the view.
    Read,
    /// If I am in the view and its number is this: make me live.
    GoLive {
        /// Of the view.
        view: u64,
    },
    /// If I am in the view as live: remove it, whatever the number. If I am joining: if the store has not seen it for
    /// [`Config::store_us`] and [`Config::seen_us`].
    Remove(PeerId),
    /// I have been removed: nothing of this incarnation is of use any more.
    Removed,
}

/// How many heartbeats may be under way; older ones are answered too late to renew anything.
const SENT: usize = 16;

/// What is known of another one.
#[derive(Debug, Default)]
struct Peer {
    linked: bool,
    /// All of our routes are being sent on this link, and each change.
    asked: bool,
    /// They have been sent.
    routes_sent: bool,
    /// It was a member and is none: it is kept while it may have a lease of ours.
    past: bool,
    /// The last epoch that was offered to it.
    offered: u64,
    /// In which it is in; 0: out.
    granted: u64,
    /// Of the last [`Action::In`].
    token: u64,
    /// All who make routes wait for it: it may be told that it is in.
    in_force: bool,
    /// When something came from it last, while it is or was in.
    heard_us: u64,
    /// And whether or not.
    spoke_us: u64,
    /// The epoch whose routes we have; 0: none.
    accepted: u64,
    /// It has had our accept in its present life: it counts, whatever the view that we have.
    counts: bool,
    /// Since when it has leased to us without a gap.
    leased_since_us: u64,
    /// Until when it has leased to us.
    lease_until_us: u64,
    /// Heartbeats that wait for an echo: number, when they were sent.
    sent: VecDeque<(u64, u64)>,
    number: u64,
    heartbeat_due_us: u64,
    /// When it was last found silent, to be removed.
    remove_due_us: u64,
    /// Since when it is known to know a view that has us, and so who had been removed before; 0: not yet.
    knows_us: u64,
}

/// A node in one incarnation.
#[derive(Debug)]
pub struct Node {
    config: Config,
    me: PeerId,
    view: View,
    removed: bool,
    joined_us: u64,
    live_since_us: u64,
    /// The last view in which all stored sessions are known.
    settled: u64,
    /// When the last reading began whose answer we have.
    seen_us: u64,
    peers: BTreeMap<PeerId, Peer>,
    /// By which epochs are told apart: they ascend over links and lives.
    epoch: u64,
    read_due_us: u64,
    /// When [`Node::tick`] is to be called.
    tick_due_us: u64,
    actions: Vec<Action>,
}

impl Node {
    /// A node that has just been written into the view as joining.
    #[must_use]
    pub fn new(config: Config, me: PeerId, now_us: u64) -> Self {
        Self {
            config,
            me,
            view: View::default(),
            removed: false,
            joined_us: now_us,
            live_since_us: 0,
            settled: 0,
            seen_us: now_us,
            peers: BTreeMap::new(),
            epoch: 0,
            read_due_us: now_us,
            tick_due_us: now_us,
            actions: Vec::new(),
        }
    }

    /// What is to be done since the last call, in order.
    pub fn actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Whether it serves.
    #[must_use]
    pub fn is_live(&self) -> bool {
        !self.removed && self.view.state(self.me) == Some(State::Live)
    }

    /// Since when and until when it may acknowledge; it changes with every call that takes `&mut self`.
    #[must_use]
    pub fn standing(&self) -> Standing {
        if !self.is_live() {
            return Standing::NONE;
        }
        let until_us = self.seen_us + self.config.store_us - self.config.margin_us;
        let alone = Standing { since_us: self.live_since_us, until_us };
        self.peers.iter().filter(|(id, peer)| self.counts(**id, peer)).fold(alone, |standing, (_, peer)| {
            Standing {
                since_us: standing.since_us.max(peer.leased_since_us),
                until_us: standing.until_us.min(peer.lease_until_us),
            }
        })
    }

    /// Whether its lease is asked for. Of one that was removed it is not.
    fn counts(&self, id: PeerId, peer: &Peer) -> bool {
        !peer.past && (peer.counts || self.view.state(id) == Some(State::Live))
    }

    /// The view as the store has it, which was asked for at that time and has seen us since.
    pub fn view(&mut self, view: View, asked_us: u64, now_us: u64) {
        if view.number < self.view.number || self.removed {
            return;
        }
        if self.seen_us + self.config.store_us <= now_us && self.is_live() {
            // There was a time without.
            self.live_since_us = now_us;
        }
        self.seen_us = self.seen_us.max(asked_us);
        self.read_due_us = now_us + self.config.read_us;
        if view.is_past(self.me) {
            self.removed = true;
            self.actions.push(Action::Removed);
            return;
        }
        let was_live = self.is_live();
        self.view = view;
        if !was_live && self.is_live() {
            self.live_since_us = now_us;
        }
        for member in &self.view.members {
            if member.id != self.me {
                self.peers.entry(member.id).or_default();
            }
        }
        // Who has been removed does not count any more, but may have a lease of ours still, and not know.
        let view = &self.view;
        for (id, peer) in self.peers.iter_mut().filter(|(id, peer)| !peer.past && view.is_past(**id)) {
            peer.past = true;
            peer.linked = false;
            self.actions.push(Action::ForgetRoutes(*id));
        }
        self.forget();
        for (id, peer) in &self.peers {
            if !peer.linked && !peer.past {
                self.actions.push(Action::Connect(*id));
            }
        }
        self.go_live(now_us);
    }

    /// A link to a peer has come up, in both directions. False: it is of no use, since one of the two is no member any more.
    pub fn link_up(&mut self, id: PeerId, now_us: u64) -> bool {
        if self.removed || self.view.is_past(id) {
            return false;
        }
        if self.view.state(id).is_none() {
            // It has joined since: the link is of use when we know of it.
            self.read(now_us);
        }
        let peer = self.peers.entry(id).or_default();
        peer.linked = true;
        (peer.asked, peer.routes_sent) = (false, false);
        peer.sent.clear();
        peer.heartbeat_due_us = now_us;
        self.offer(id);
        self.tick(now_us);
        true
    }

    /// It is gone. Nothing is concluded from it: silence is.
    pub fn link_down(&mut self, id: PeerId) {
        if let Some(peer) = self.peers.get_mut(&id).filter(|peer| peer.linked) {
            peer.linked = false;
            peer.offered = 0;
            // Changes of routes may be lost: only all of them anew will do. Until the lease runs out what we have is in force: what
            // came later has no SUBACK yet.
            peer.accepted = 0;
            self.actions.push(Action::Connect(id));
        }
    }

    /// All who make routes wait for it: what [`Action::In`] asked for with this token is done.
    pub fn in_force(&mut self, id: PeerId, token: u64, now_us: u64) {
        if let Some(peer) = self.peers.get_mut(&id).filter(|peer| peer.granted != 0 && peer.token == token) {
            peer.in_force = true;
            self.go_live(now_us);
        }
    }

    /// All of our routes have been sent on the link to it.
    pub fn routes_sent(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id).filter(|peer| peer.linked && peer.asked) else { return };
        peer.routes_sent = true;
        if peer.granted == 0 && peer.offered == 0 {
            self.offer(id);
        }
    }

    fn offer(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if !std::mem::replace(&mut peer.asked, true) {
            self.actions.push(Action::SendRoutes(id));
        }
        // Who has accepted counts on our lease: not for as long as it takes to send them. Who is in knows what has been promised.
        if peer.granted == 0 && !peer.routes_sent {
            return;
        }
        self.epoch += 1;
        peer.offered = self.epoch;
        self.actions.push(Action::Send(id, Message::Offer { epoch: self.epoch }));
    }

    /// Something came on the link of a peer.
    pub fn message(&mut self, from: PeerId, message: Message, now_us: u64) {
        if self.removed {
            return;
        }
        let Some(peer) = self.peers.get_mut(&from).filter(|peer| peer.linked) else { return };
        peer.spoke_us = now_us;
        if peer.granted != 0 {
            peer.heard_us = now_us;
        }
        match message {
            Message::Heartbeat { number, view } => {
                let epoch = if peer.in_force { peer.granted } else { 0 };
                let is_out = peer.granted == 0 && peer.offered == 0;
                self.actions.push(Action::Send(from, Message::Echo { number, epoch }));
                if view >= self.me.incarnation && peer.knows_us == 0 {
                    peer.knows_us = now_us;
                }
                if view > self.view.number {
                    self.read(now_us);
                }
                if is_out {
                    self.offer(from);
                }
            }
            Message::Echo { number, epoch } => {
                while let Some((sent, at_us)) = peer.sent.front().copied().filter(|(sent, _)| *sent <= number)
                {
                    peer.sent.pop_front();
                    if sent == number && epoch != 0 && epoch == peer.accepted {
                        if peer.lease_until_us <= now_us {
                            peer.leased_since_us = now_us;
                        }
                        let until_us = at_us + self.config.lease_us - self.config.margin_us;
                        peer.lease_until_us = peer.lease_until_us.max(until_us);
                    }
                }
                self.go_live(now_us);
            }
            Message::Offer { epoch } => {
                peer.accepted = epoch;
                peer.counts = true;
                self.actions.push(Action::Send(from, Message::Accept { epoch }));
            }
            Message::Accept { epoch } => {
                if epoch == peer.offered && peer.granted != epoch {
                    let was = std::mem::replace(&mut peer.granted, epoch);
                    peer.offered = 0;
                    peer.heard_us = now_us;
                    // Who was in all the time has missed nothing that has its SUBACK.
                    if was == 0 {
                        peer.token = epoch;
                        self.actions.push(Action::In(from, epoch));
                    }
                }
                self.go_live(now_us);
            }
        }
    }

    /// Time has passed; the next call is due at the time that comes back.
    pub fn tick(&mut self, now_us: u64) -> u64 {
        if self.removed {
            return u64::MAX;
        }
        let late_us = now_us.saturating_sub(self.tick_due_us);
        if late_us > self.config.heartbeat_us {
            // Nobody looked: that is not the others' silence, and what they said meanwhile has not been read yet.
            for peer in self.peers.values_mut() {
                peer.heard_us = if peer.heard_us > 0 { now_us.min(peer.heard_us + late_us) } else { 0 };
                peer.spoke_us = if peer.spoke_us > 0 { now_us.min(peer.spoke_us + late_us) } else { 0 };
                peer.remove_due_us += if peer.remove_due_us > 0 { late_us } else { 0 };
            }
        }
        if self.read_due_us <= now_us {
            self.read(now_us);
        }
        let mut next_us = self.read_due_us;
        if self.view.state(self.me) == Some(State::Joining) {
            self.go_live(now_us);
            let waits = self.peers.values().map(|peer| peer.knows_us).chain([self.joined_us]);
            let due = waits.map(|since_us| since_us + self.config.lease_us).filter(|due_us| *due_us > now_us);
            next_us = next_us.min(due.min().unwrap_or(u64::MAX));
        }
        let is_live = self.is_live();
        let (lease_us, view) = (self.config.lease_us, self.view.number);
        for (id, peer) in &mut self.peers {
            if peer.linked && peer.heartbeat_due_us <= now_us {
                peer.heartbeat_due_us = now_us + self.config.heartbeat_us;
                peer.number += 1;
                if peer.sent.len() == SENT {
                    peer.sent.pop_front();
                }
                peer.sent.push_back((peer.number, now_us));
                self.actions.push(Action::Send(*id, Message::Heartbeat { number: peer.number, view }));
            }
            if peer.linked {
                next_us = next_us.min(peer.heartbeat_due_us);
            }
            let silent_at_us = peer.heard_us + lease_us;
            if peer.granted != 0 && silent_at_us <= now_us {
                peer.granted = 0;
                peer.in_force = false;
                self.actions.push(Action::Out(*id));
            } else if peer.granted != 0 {
                next_us = next_us.min(silent_at_us);
            }
            // Not only who was put out: also who has never been in, and is in the view.
            if peer.granted != 0 || peer.past {
                peer.remove_due_us = 0;
                continue;
            }
            let matters = is_live && (peer.counts || self.view.state(*id) == Some(State::Live));
            // Routes may take long to be sent. Who is heard all the while, and holds nobody up, is not silent.
            let silent_at_us = if peer.linked { peer.spoke_us + lease_us } else { 0 };
            if peer.spoke_us > 0 && silent_at_us > now_us && (!matters || peer.lease_until_us > now_us) {
                peer.remove_due_us = 0;
                let lease_until_us = if matters { peer.lease_until_us } else { u64::MAX };
                next_us = next_us.min(silent_at_us).min(lease_until_us);
                continue;
            }
            let patience_us = if matters { lease_us } else { self.config.join_us };
            if peer.remove_due_us == 0 {
                peer.remove_due_us = if peer.heard_us == 0 { now_us + patience_us } else { now_us };
            }
            if peer.remove_due_us <= now_us {
                peer.remove_due_us = now_us + patience_us;
                self.actions.push(Action::Remove(*id));
            }
            next_us = next_us.min(peer.remove_due_us);
        }
        self.forget();
        self.tick_due_us = next_us.max(now_us);
        next_us
    }

    /// Forgets who is no member and has no lease of ours any more.
    fn forget(&mut self) {
        self.peers.retain(|_, peer| !peer.past || peer.granted != 0);
    }

    fn read(&mut self, now_us: u64) {
        self.read_due_us = now_us + self.config.read_us;
        self.actions.push(Action::Read);
    }

    /// Whoever keeps routes knows all sessions that are stored: each member, also who is joining, has told its own, and no session is without one, in the
    /// view of this number.
    pub fn settled(&mut self, view: u64, now_us: u64) {
        self.settled = view;
        self.go_live(now_us);
    }

    /// It is not known any more: there is a new link.
    pub fn unsettled(&mut self) {
        self.settled = 0;
    }

    /// Asks to be made live, when all stored sessions are known, each live member waits for us and we may rely on each; and when whoever was removed before and
    /// does not know it has no lease any more: neither of them, nor of our own former life.
    fn go_live(&mut self, now_us: u64) {
        let lease_us = self.config.lease_us;
        if self.view.state(self.me) != Some(State::Joining) || now_us < self.joined_us + lease_us {
            return;
        }
        let is_ready = |peer: &Peer| {
            let knows = peer.knows_us != 0 && peer.knows_us + lease_us <= now_us;
            knows && peer.in_force && peer.lease_until_us > now_us
        };
        let others = self.view.members.iter().filter(|member| member.id != self.me);
        let ready = others
            .filter(|member| member.state == State::Live)
            .all(|member| self.peers.get(&member.id).is_some_and(is_ready));
        if ready && self.settled == self.view.number {
            self.actions.push(Action::GoLive { view: self.view.number });
        }
    }
}
