//! A node with several shards: what its shards are told, and what they have to say before another node is.
//!
//! # Constraints
//! Routes are made by threads that never wait for each other or for us. Each is told by a queue of its own that keeps its order, and looks into it
//! at the beginning of a turn, behind the reading of the clock: what was put there before the standing changed is known in
//! every turn that the standing allows.
//!
//! # Data
//! A shard of another node goes by an index, as those of this process do: theirs follow ours, a run of them for each incarnation of a
//! node, and no index is given twice. So the 65,536 that there are are used up by some thousand rejoins of others; then the
//! process has to be started anew.

use crate::node::{Action, Config, Member, Message, Node, PeerId, Standing, State, View};
use std::collections::BTreeMap;

/// The shards of a node, by the indices that ours know them by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shards {
    /// Of its first shard.
    pub first: u16,
    /// How many it has.
    pub count: u16,
}

/// By what a shard says that it has done what it was told.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Token(u64);

/// What one of our shards says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// It has sent all that [`Order::Linked`] asked for, to each of the peer's shards.
    Told(Token),
    /// It waits, as [`Order::Wait`] asked, and each of the peer's shards has confirmed what it had then.
    Waits(Token),
    /// In the view of this number each member, itself among them, has adopted what it has to, and it knows the routes of all, and what they had retained when the
    /// last of so many links came up ([`Order::Linked`]): what was known before one broke says nothing of what has been acknowledged since.
    Settled(u64, u64),
}

/// What each of our shards is told, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// A link to it is up, on which this version of the protocol is spoken, with nothing of an earlier one on its way: it is to be sent everything, which is
    /// to be confirmed.
    Linked(Shards, u32, Token),
    /// What is for it leads nowhere.
    Unlinked(Shards),
    /// SUBACKs wait for it from now on: to be confirmed.
    Wait(Shards, Token),
    /// SUBACKs do not wait for it any more.
    WaitNot(Shards),
    /// It is no member any more: what it had is forgotten when its sessions have other owners.
    Forget(Shards),
    /// It is a live member: it serves, and each other live member knows it.
    Serves(Shards),
    /// The members are those of the view of this number. Whether there has been a link to each of them that may have sessions; if not, it is said again when there
    /// has.
    View(u64, bool),
    /// Whether this node serves: while it does not SUBACKs wait. *No* is said whenever an incarnation is over, also one that never served.
    Live(bool),
}

/// What is to be done, in order; before any of it the standing is put in force ([`Site::standing`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// Tell each of our shards; with the member that it is about, if it is about one.
    Tell(Order, Option<PeerId>),
    /// Send it on the control stream.
    Send(PeerId, Message),
    /// Connect to it, or go on trying to.
    Connect(PeerId),
    /// It is a member no more: end its link, and try no further.
    Disconnect(PeerId),
    /// Read the view; [`Site::view`] is due.
    Read,
    /// Go live in the view of this number; [`Site::view`] is due.
    GoLive(u64),
    /// Remove it from the view; [`Site::view`] is due.
    Remove(PeerId),
    /// This incarnation is over: join anew ([`Site::rejoin`]).
    Rejoin,
}

#[derive(Debug, Default)]
struct Known {
    shards: Option<Shards>,
    /// What our shards confirm that are sending it everything, and how many of them have not yet.
    telling: Option<(Token, u16)>,
    /// How many of our shards have to confirm that they wait for it.
    unconfirmed: u16,
    /// What they confirm, and the node's word for that; none: nobody waits for it.
    waits: Option<(Token, u64)>,
    /// It is a member no more: kept while it is waited for.
    gone: bool,
    /// Our shards have been told of a link to it.
    linked: bool,
    /// And that it is live.
    serves: bool,
    /// Of the protocol, on its last link.
    version: u32,
}

/// This node, for those who drive it.
#[derive(Debug)]
pub struct Site {
    node: Node,
    me: PeerId,
    config: Config,
    /// Shards of our own.
    shards: u16,
    /// The index that the next shard of another node has.
    next: u16,
    tokens: u64,
    known: BTreeMap<PeerId, Known>,
    live: bool,
    /// The newest that this incarnation is in, and what the shards were told of it.
    view: View,
    told: Option<(u64, bool)>,
    /// How many of them have settled in it, on the links that there are.
    settled: u16,
    /// Links that they have been told of.
    links: u64,
    deeds: Vec<Deed>,
}

impl Site {
    /// A node that has just been written into the view as joining, with so many shards.
    #[must_use]
    pub fn new(config: Config, me: PeerId, shards: u16, now_us: u64) -> Self {
        Self {
            node: Node::new(config, me, now_us),
            me,
            config,
            shards,
            next: shards,
            tokens: 0,
            known: BTreeMap::new(),
            live: false,
            view: View::default(),
            told: None,
            settled: 0,
            links: 0,
            deeds: Vec::new(),
        }
    }

    /// Who this is.
    #[must_use]
    pub fn me(&self) -> PeerId {
        self.me
    }

    /// Since when and until when it may acknowledge.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.node.standing()
    }

    /// Whether it serves.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.node.is_live()
    }

    /// What is to be done since the last call, in order.
    pub fn deeds(&mut self) -> Vec<Deed> {
        self.settle();
        std::mem::take(&mut self.deeds)
    }

    /// It has been written into the view anew, as `me`. The shards keep what they have; the others are strangers.
    pub fn rejoin(&mut self, me: PeerId, now_us: u64) {
        // Also if it never served: what others have entrusted to it is not its any more.
        self.deeds.push(Deed::Tell(Order::Live(false), None));
        for (id, known) in std::mem::take(&mut self.known) {
            self.deeds.push(Deed::Disconnect(id));
            let Some(shards) = known.shards else { continue };
            for order in [Order::Unlinked(shards), Order::Forget(shards), Order::WaitNot(shards)] {
                self.deeds.push(Deed::Tell(order, Some(id)));
            }
        }
        self.me = me;
        self.node = Node::new(self.config, me, now_us);
        (self.view, self.told, self.settled) = (View::default(), None, 0);
    }

    /// The view as the store has it, which was asked for at that time and has seen us since.
    pub fn view(&mut self, view: View, asked_us: u64, now_us: u64) {
        let is_in = view.members.iter().any(|member| member.id == self.me);
        if is_in && view.number > self.view.number {
            (self.view, self.settled) = (view.clone(), 0);
        }
        self.node.view(view, asked_us, now_us);
        self.settle();
    }

    /// A link to a node with so many shards, on which this version of the protocol is spoken, is up in both directions. False: it is of no use. One of the two is no member any more, or
    /// all indices are used up.
    pub fn link_up(&mut self, id: PeerId, (count, version): (u16, u32), now_us: u64) -> bool {
        let shards = self.known.get(&id).and_then(|known| known.shards);
        let shards = shards.unwrap_or(Shards { first: self.next, count });
        let Some(next) = shards.first.checked_add(shards.count).filter(|_| shards.count == count) else {
            return false;
        };
        // Its routes are sent by the indices that it has.
        let known = self.known.entry(id).or_default();
        (known.shards, known.version) = (Some(shards), version);
        let is_of_use = self.node.link_up(id, now_us);
        if is_of_use {
            self.next = self.next.max(next);
        } else if let Some(known) = self.known.get_mut(&id)
            && known.waits.is_none()
            // What our shards have been told of is theirs to forget first.
            && !known.linked
        {
            self.known.remove(&id);
        }
        self.settle();
        is_of_use
    }

    /// It is gone.
    pub fn link_down(&mut self, id: PeerId) {
        self.node.link_down(id);
        if let Some(known) = self.known.get_mut(&id) {
            known.telling = None;
        }
        if let Some(shards) = self.known.get(&id).and_then(|known| known.shards) {
            self.deeds.push(Deed::Tell(Order::Unlinked(shards), Some(id)));
        }
        self.settle();
    }

    /// Something came on a link's control stream.
    pub fn message(&mut self, from: PeerId, message: Message, now_us: u64) {
        self.node.message(from, message, now_us);
        self.settle();
    }

    /// One of our shards says something.
    pub fn said(&mut self, word: Word, now_us: u64) {
        match word {
            Word::Told(token) => self.told(token),
            Word::Waits(token) => self.confirmed(token, now_us),
            Word::Settled(view, links) if (view, links) == (self.view.number, self.links) => {
                self.settled += 1;
                if self.settled == self.shards {
                    self.node.settled(view, now_us);
                    self.settle();
                }
            }
            Word::Settled(..) => {}
        }
    }

    fn told(&mut self, token: Token) {
        let is_its = |known: &Known| known.telling.is_some_and(|(of, _)| of == token);
        let Some((id, known)) = self.known.iter_mut().find(|(_, known)| is_its(known)) else { return };
        let Some((_, left)) = &mut known.telling else { return };
        *left = left.saturating_sub(1);
        if *left == 0 {
            known.telling = None;
            self.node.routes_sent(*id);
            self.settle();
        }
    }

    fn confirmed(&mut self, token: Token, now_us: u64) {
        let its = self.known.iter_mut().find_map(|(id, known)| {
            let (_, epoch) = known.waits.filter(|(of, _)| *of == token)?;
            Some((*id, epoch, &mut known.unconfirmed))
        });
        let Some((id, epoch, unconfirmed)) = its else {
            return; // It is waited for no more.
        };
        *unconfirmed = unconfirmed.saturating_sub(1);
        if *unconfirmed == 0 {
            self.node.in_force(id, epoch, now_us);
            self.settle();
        }
    }

    /// Time has passed; the next call is due at the time that comes back.
    pub fn tick(&mut self, now_us: u64) -> u64 {
        let next_us = self.node.tick(now_us);
        self.settle();
        next_us
    }

    /// The index of a shard of another node; none: there has been no link to it.
    #[must_use]
    pub fn index(&self, id: PeerId, shard: u16) -> Option<u16> {
        let shards = self.known.get(&id)?.shards?;
        (shard < shards.count).then(|| shards.first + shard)
    }

    /// Makes deeds of the node's actions.
    fn settle(&mut self) {
        for action in self.node.actions() {
            self.act(action);
        }
        if self.live != self.node.is_live() {
            self.live = !self.live;
            self.deeds.push(Deed::Tell(Order::Live(self.live), None));
        }
        let live = self.view.members.iter().filter(|member| member.state == State::Live);
        for Member { id, .. } in live {
            let Some(known) = self.known.get_mut(id).filter(|known| known.linked && !known.gone) else {
                continue;
            };
            if let Some(shards) = known.shards
                && !std::mem::replace(&mut known.serves, true)
            {
                self.deeds.push(Deed::Tell(Order::Serves(shards), Some(*id)));
            }
        }
        // Behind the orders about who is none of them any more. Who joins and has no sessions may never be one: nobody waits for it, unless there are
        // only such.
        let any_live = self.view.members.iter().any(|member| member.state == State::Live);
        let is_known = |member: &Member| {
            let counts = member.state == State::Live || member.owns || !any_live;
            !counts || member.id == self.me || self.known.get(&member.id).is_some_and(|known| known.linked)
        };
        let told = (self.view.number, self.view.members.iter().all(is_known));
        if told.0 > 0 && self.told != Some(told) {
            self.told = Some(told);
            self.deeds.push(Deed::Tell(Order::View(told.0, told.1), None));
        }
    }

    fn act(&mut self, action: Action) {
        let shards_of = |id: &PeerId| self.known.get(id).and_then(|known| known.shards);
        match action {
            Action::Send(id, message) => self.deeds.push(Deed::Send(id, message)),
            Action::SendRoutes(id) => {
                let Some(known) = self.known.get_mut(&id) else { return };
                let Some(shards) = known.shards else { return };
                self.tokens += 1;
                let token = Token(self.tokens);
                (known.linked, known.telling) = (true, Some((token, self.shards)));
                self.deeds.push(Deed::Tell(Order::Linked(shards, known.version, token), Some(id)));
                (self.links, self.settled) = (self.links + 1, 0);
                self.node.unsettled();
            }
            Action::ForgetRoutes(id) => {
                self.deeds.push(Deed::Disconnect(id));
                if let Some(shards) = shards_of(&id) {
                    self.deeds.push(Deed::Tell(Order::Unlinked(shards), Some(id)));
                    self.deeds.push(Deed::Tell(Order::Forget(shards), Some(id)));
                }
                if let Some(known) = self.known.get_mut(&id) {
                    known.gone = true;
                }
                self.known.retain(|_, known| !known.gone || known.waits.is_some());
            }
            Action::In(id, epoch) => {
                self.tokens += 1;
                let token = Token(self.tokens);
                // Who is in has had a link, and so indices.
                let Some(known) = self.known.get_mut(&id) else { return };
                let Some(shards) = known.shards else { return };
                (known.waits, known.unconfirmed) = (Some((token, epoch)), self.shards);
                self.deeds.push(Deed::Tell(Order::Wait(shards, token), Some(id)));
            }
            Action::Out(id) => {
                let Some(known) = self.known.get_mut(&id) else { return };
                known.waits = None;
                if let Some(shards) = known.shards {
                    self.deeds.push(Deed::Tell(Order::WaitNot(shards), Some(id)));
                }
                self.known.retain(|_, known| !known.gone || known.waits.is_some());
            }
            Action::Connect(id) => self.deeds.push(Deed::Connect(id)),
            Action::Read => self.deeds.push(Deed::Read),
            Action::GoLive { view } => self.deeds.push(Deed::GoLive(view)),
            Action::Remove(id) => self.deeds.push(Deed::Remove(id)),
            Action::Removed => self.deeds.push(Deed::Rejoin),
        }
    }
}
