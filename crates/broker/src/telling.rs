//! What another node is told when a link to it comes up: all that this shard has, in pieces.
//!
//! # Constraints
//! A shard may have a million filters. Heartbeats travel on the same stream, and decide within a second whether nodes may acknowledge: they must not
//! queue behind all of that, nor may a turn that takes it be long. And the members that are served meanwhile go on as if nothing were.
//!
//! # Data
//! [`Telling`]: how far one is. The filters' cursor is a place in the tables of [`crate::routes`], which keep the places of what does not change.
//!
//! # Operation
//! ```text
//!  RoutesBegin                          to each shard of the node at once
//!  a piece: filters, groups, exclusive ones, clients    to one of its shards after the other, the next piece when this one is confirmed
//!  ...
//!  RoutesEnd, Adopted; on data Settled
//! ```
//! What changes meanwhile is told at once, wherever the cursor is: it is told again, or for the first time, or never, and the last word of each filter is
//! the true one. When all shards of the other node are told, whoever drives this one makes it an offer (`ferrule-cluster`): it is waited for from then on, and
//! what it has not been told yet nobody has been promised that it knows. Who has been waited for all the time, over a link that broke, still knows what
//! he was told; new subscriptions wait for the end of the last piece.
//!
//! Each version of the protocol knows these parcels. What is told before the end bears the number of its piece instead of a version of the
//! routes; the answer to it says that the piece was taken. Versions begin above all such numbers ([`FIRST_VERSION`]).
//!
//! # Invariants
//! - A version is confirmed by who has everything up to it: never in the middle.
//! - What says that the other side can be relied on to know the routes of a session ([`Parcel::Moved`], [`Parcel::Adopted`]) is behind those routes: the
//!   first has them told in front of it, the second waits for the end.
//! - What the receiver knew stays in force until the end. Then routes that did not come up again are swept out, some a turn.
//!
//! # Bounds
//! One piece of [`PIECE_BYTES`], and one parcel more, from each worker to each other node.

use crate::ConnId;
use crate::hook::Hook;
use crate::nodes::Reach;
use crate::parcel::Parcel;
use crate::peers::Peers;
use crate::routes::Cursor;
use crate::shard::{Destination, Shard};
use ferrule_mqtt::topic;
use ferrule_store::Store;

/// Some thousand filters: a millisecond of the receiver's, and of a link of 1 Gbit/s half a one.
pub(crate) const PIECE_BYTES: usize = 64 << 10;

/// Below it are numbers of pieces: as many as 64 GiB have. They begin anew behind the last, since only one is under way.
pub(crate) const FIRST_VERSION: u64 = 1 << 20;

/// Routes that a turn looks at, to sweep out those that a peer has no more.
const SWEPT: usize = 20_000;

/// How far a peer has been told what is here.
#[derive(Debug, Default)]
pub(crate) struct Telling {
    /// The last piece that was sent.
    piece: u64,
    /// The last that the peer has confirmed.
    taken: u64,
    /// The peer before it is told first: it is of the same node.
    follows: bool,
    next: Next,
}

#[derive(Debug)]
enum Next {
    Filters(Cursor),
    Groups(usize),
    Exclusive(std::vec::IntoIter<Box<str>>),
    Clients(std::vec::IntoIter<ConnId>),
    End,
}

impl Default for Next {
    fn default() -> Self {
        Self::Filters(Cursor::default())
    }
}

impl Telling {
    /// What a parcel about routes bears until all is told.
    pub(crate) fn number(&self) -> u64 {
        self.piece
    }
}

impl Peers {
    fn telling(&mut self, peer: u16) -> Option<&mut Telling> {
        self.links.get_mut(usize::from(peer))?.telling.as_mut()
    }

    /// Whether a peer that is linked has been sent all that is here.
    pub(crate) fn has_told(&self, peer: u16) -> bool {
        let link = self.links.get(usize::from(peer));
        link.is_some_and(|link| link.reach == Reach::Told && link.telling.is_none())
    }

    /// The peers that are being told.
    fn being_told(&self) -> Vec<u16> {
        let links = self.links.iter().enumerate();
        links.filter(|(_, link)| link.telling.is_some()).map(|(at, _)| at as u16).collect()
    }
}

impl<H: Hook, S: Store> Shard<H, S> {
    /// Whether a peer has been sent all that is here: whoever drives the node lets it be offered that it is waited for.
    #[must_use]
    pub fn peer_told(&self, peer: u16) -> bool {
        self.peers.has_told(peer)
    }

    /// So many bytes, and one parcel more, are a piece: for tests, which have few filters.
    pub fn set_piece(&mut self, bytes: usize) {
        self.peers.piece_bytes = bytes;
    }

    /// A link is there: begins to tell a peer everything; `follows`: behind the peer before it.
    pub(crate) fn tell_all(&mut self, peer: u16, follows: bool) {
        let name = self.peers.place.name();
        if let Some(link) = self.peers.links.get_mut(usize::from(peer)) {
            link.telling = Some(Telling { follows, ..Telling::default() });
        }
        self.peers.send(peer, &Parcel::RoutesBegin { name });
        self.tell_more(peer);
    }

    /// A peer has taken a piece.
    pub(crate) fn piece_taken(&mut self, peer: u16, number: u64) {
        if let Some(telling) = self.peers.telling(peer) {
            telling.taken = number;
            self.tell_more(peer);
        }
    }

    /// Sends the next piece, if the last has been taken.
    fn tell_more(&mut self, peer: u16) {
        let waits = peer.checked_sub(1).is_some_and(|before| self.peers.telling(before).is_some());
        let Some(telling) = self.peers.telling(peer) else { return };
        if telling.piece != telling.taken || (telling.follows && waits) {
            return;
        }
        telling.piece = telling.piece % (FIRST_VERSION - 1) + 1;
        let mut next = std::mem::take(&mut telling.next);
        let most = self.peers.control_bytes(peer) + self.peers.piece_bytes;
        while !matches!(next, Next::End) && self.peers.control_bytes(peer) <= most {
            next = self.tell_next(peer, next);
        }
        if !matches!(next, Next::End) {
            if let Some(telling) = self.peers.telling(peer) {
                telling.next = next;
            }
            return;
        }
        self.tell_endings(peer);
        if let Some(link) = self.peers.links.get_mut(usize::from(peer)) {
            link.telling = None;
        }
        let version = self.peers.version();
        self.peers.send(peer, &Parcel::RoutesEnd { version });
        self.tell_settled(peer);
        if let Some(after) = peer.checked_add(1) {
            self.tell_more(after);
        }
    }

    /// Tells one thing; what comes behind it.
    fn tell_next(&mut self, peer: u16, next: Next) -> Next {
        let version = self.peers.version();
        match next {
            Next::Filters(mut cursor) => match self.routes.next_local(&mut cursor) {
                Some(filter) => {
                    self.peers.send(peer, &Parcel::RouteDelta { version, add: true, filter: &filter });
                    Next::Filters(cursor)
                }
                None => Next::Groups(0),
            },
            Next::Groups(at) => match self.shares.next(at) {
                Some((at, group)) => {
                    let (online, away) = group.count();
                    if online + away > 0 {
                        let text = &group.text;
                        self.peers.send(peer, &Parcel::ShareDelta { version, text, online, away });
                    }
                    Next::Groups(at + 1)
                }
                None => Next::Exclusive(self.exclusive.filters().into_iter()),
            },
            Next::Exclusive(mut all) => match all.next() {
                Some(filter) => {
                    self.tell_held(peer, &filter);
                    Next::Exclusive(all)
                }
                None => {
                    // In an order of their own, so that what is simulated can be repeated. Who comes later is told by himself.
                    let mut all = self.presence.connections();
                    all.sort_unstable_by_key(|id| id.to_bits());
                    Next::Clients(all.into_iter())
                }
            },
            Next::Clients(mut all) => match all.next() {
                Some(id) => {
                    self.tell_client(peer, id);
                    Next::Clients(all)
                }
                None => Next::End,
            },
            Next::End => Next::End,
        }
    }

    /// The routes of a session, to peers that may not have been told all that is here: what they are told next rests on them.
    pub(crate) fn tell_routes_of(&mut self, client_id: &str) {
        let peers = self.peers.being_told();
        let Some(session) = self.by_client(client_id).and_then(|key| self.sessions.get(key)) else { return };
        let version = self.peers.version();
        for peer in peers {
            for (text, _) in &session.subscriptions {
                let group = self.shares.find(text).and_then(|group| self.shares.get(group));
                let parcel = match (topic::shared(text), group) {
                    (Some(_), Some(group)) => {
                        let (online, away) = group.count();
                        Parcel::ShareDelta { version, text, online, away }
                    }
                    (Some(_), None) => continue,
                    (None, _) => Parcel::RouteDelta { version, add: true, filter: topic::plain(text) },
                };
                self.peers.send(peer, &parcel);
            }
        }
    }

    /// The turn's end: sweeps out some of the routes that peers have no more.
    pub(crate) fn sweep_routes(&mut self) {
        let mut left = SWEPT;
        while left > 0
            && let Some((peer, mut cursor)) = self.peers.sweeps.pop_front()
        {
            let life = self.peers.links.get(usize::from(peer)).map_or(0, |link| link.life);
            let is_stale = |to: &Destination| matches!(to, Destination::Peer(of, since) if *of == peer && *since != life);
            if !self.routes.sweep(&mut cursor, &mut left, Destination::peer_key(peer), is_stale) {
                self.peers.sweeps.push_front((peer, cursor));
            }
        }
    }
}
