//! A node that joins serves when it knows what the others have retained: as of the links that there are, not of those that broke.

use ferrule_cluster::{Config, Deed, Member, Message, NodeId, Order, PeerId, Site, State, View, Word};

const MS: u64 = 1_000;
const ME: PeerId = PeerId { node: NodeId(1), incarnation: 2 };
const OTHER: PeerId = PeerId { node: NodeId(2), incarnation: 1 };
/// Of this node.
const SHARDS: u16 = 2;
const VIEW: u64 = 3;

/// A node that joins one that serves, and what the two say to each other.
struct Joining {
    site: Site,
    now_us: u64,
    /// That the other one has offered last.
    epoch: u64,
    /// Links that there have been.
    links: u64,
}

impl Joining {
    fn new() -> Self {
        let mut joining =
            Self { site: Site::new(Config::default(), ME, SHARDS, 0), now_us: 0, epoch: 0, links: 0 };
        let member = |id, state| Member { id, state, owns: false };
        let members = vec![member(ME, State::Joining), member(OTHER, State::Live)];
        joining.site.view(View { number: VIEW, members }, 0, 0);
        joining.link();
        joining
    }

    fn link(&mut self) {
        assert!(self.site.link_up(OTHER, (1, 4), self.now_us));
        self.links += 1;
        self.epoch += 1;
        self.site.message(OTHER, Message::Offer { epoch: self.epoch }, self.now_us);
    }

    /// Three leases pass, in which the two hear of each other and all routes are sent; whether the node is to go live at the end.
    fn goes_live(&mut self) -> bool {
        let mut goes = false;
        for beat in 0..15 {
            self.now_us += 200 * MS;
            self.site.message(OTHER, Message::Heartbeat { number: beat, view: VIEW }, self.now_us);
            self.site.tick(self.now_us);
            goes = false;
            loop {
                let deeds = self.site.deeds();
                if deeds.is_empty() {
                    break;
                }
                for deed in deeds {
                    goes |= deed == Deed::GoLive(VIEW);
                    self.answer(deed);
                }
            }
        }
        goes
    }

    fn answer(&mut self, deed: Deed) {
        let now_us = self.now_us;
        match deed {
            Deed::Tell(Order::Linked(_, _, token), _) => {
                (0..SHARDS).for_each(|_| self.site.said(Word::Told(token), now_us));
            }
            Deed::Tell(Order::Wait(_, token), _) => {
                (0..SHARDS).for_each(|_| self.site.said(Word::Waits(token), now_us));
            }
            Deed::Send(_, Message::Offer { epoch }) => {
                self.site.message(OTHER, Message::Accept { epoch }, now_us);
            }
            Deed::Send(_, Message::Heartbeat { number, .. }) => {
                self.site.message(OTHER, Message::Echo { number, epoch: self.epoch }, now_us);
            }
            _ => {}
        }
    }

    /// One of the shards knows all there is to know, as of so many links.
    fn settles(&mut self, links: u64) {
        self.site.said(Word::Settled(VIEW, links), self.now_us);
    }
}

#[test]
fn who_joins_serves_when_each_shard_knows_what_others_retained() {
    let mut joining = Joining::new();
    assert!(!joining.goes_live());
    joining.settles(1);
    assert!(!joining.goes_live(), "the other shard does not know yet");
    joining.settles(1);
    assert!(joining.goes_live());
}

/// Found by seed 9005440 of the simulation: what is retained while there is no link is acknowledged without a node that joins.
#[test]
fn what_was_known_before_a_link_broke_is_not_enough() {
    for known in [1, 2] {
        let mut joining = Joining::new();
        assert!(!joining.goes_live());
        (0..known).for_each(|_| joining.settles(1));
        joining.site.link_down(OTHER);
        joining.link();
        assert!(!joining.goes_live(), "{known} of 2 knew, on the link that broke");
        // It was on its way.
        (known..SHARDS).for_each(|_| joining.settles(1));
        assert!(!joining.goes_live(), "{known} of 2 knew, on the link that broke");
        joining.settles(2);
        assert!(!joining.goes_live(), "the other shard does not know yet");
        joining.settles(2);
        assert!(joining.goes_live());
    }
}
