//! Who is a member of a cluster, and whether this node may acknowledge: decisions without input and output.
//!
//! # Constraints
//! A subscriber that has its SUBACK must get what is acknowledged to a publisher on any node afterwards (promise 1 of a cluster), though
//! each node looks up only its own copy of the others' routes, nodes pause, links drop what they like, and clocks of different nodes
//! have nothing in common. No message may wait for a death to be agreed on; one death must not stop the others for long; and two halves
//! of a cluster must not both go on as if the other were dead.
//!
//! # Data
//! - The **view**: the table of members in the shared store, with a number that each change counts up. Joining, going live and removing a
//!   member are transactions that compare that number, so that there is one order of them.
//! - To each other member a **grant**: it knows all of our routes, and our SUBACKs wait for its confirmation of new ones.
//! - From each other member a **lease**: until when, by our own clock, it will surely not go on without us.
//!
//! # Operation
//! What passes between two nodes on the control stream keeps its order; that is all that is asked of a link.
//!
//! 1. When a link to a member comes up, all routes are sent, which may take seconds, and behind them [`Message::Offer`] with a fresh epoch. It answers
//!    [`Message::Accept`]; from then on it is *in*: new routes wait for it. (Who is in already is offered at once: it knows all that has been promised.)
//! 2. Every [`Config::heartbeat_us`] a heartbeat; each is echoed with the epoch in which its sender is *in*, 0 when it is not. Routes are made by several
//!    threads: it is told that it is in only when all of them wait for it, and it has confirmed to each what that had until then
//!    ([`Node::in_force`]): what came before it was in nobody waited for, and it may have been lost with a link.
//! 3. Who hears nothing of a member for [`Config::lease_us`] puts it *out*: SUBACKs wait for it no more. Heard again, it is offered
//!    a new epoch: on the same link behind all changes that it has not read yet, on a new link behind all routes.
//!    Silence is counted only while one listens: who was stopped, or whose loop was late, does not hold that against the others.
//! 4. An echo renews our lease of its sender, if its epoch is the one whose routes we have: up to the time at which *we sent* the heartbeat
//!    plus `lease_us` less [`Config::margin_us`]. The other side counts its silence from when that heartbeat arrived, which is later: so we stop before it
//!    goes on without us, whatever the network does. The margin is for clocks that do not run equally fast.
//! 5. [`Standing::allows`] is asked with the time *after* a turn's last read and before its first write, for what was routed in
//!    that turn: all members that count have to have leased to us from the routing until beyond the asking. What was routed in a
//!    turn that ends without is routed again.
//! 6. A member that was silent for `lease_us`, or is heard and out and holds others up for as long, is removed from the view by whoever reaches the store first; who is not in the view any
//!    more can remove nobody. A node that finds itself removed is of no use in this incarnation: it joins again with a new one. Who is not live yet removes
//!    only those that the store has not seen for a minute, and nobody acknowledges for as long without being seen: so a cluster whose
//!    last live member is lost for good comes back without anybody's help.
//! 7. A new node is *joining* until every live member has accepted its routes and leases to it; then it goes live, if the view is still
//!    the one that it looked at, and if in that view all sessions that are stored are known to its shards ([`Node::settled`]): it has heard nothing of what was
//!    promised before. And not before `lease_us` have passed since it joined, and since each of them is known to know a view with it:
//!    whoever was removed before and cannot know may have a lease from one of them, or from this node's former life, till then. A member counts for [`Node::standing`] as soon as it is live in the view, or has had our [`Message::Accept`]: so
//!    nobody can be live whom a live member would not wait for.
//!
//! # Invariants
//! - *In* at A towards B ends only by B's silence of `lease_us` at A, though B may have been removed; B's lease of A has run out by then.
//! - Two live members have exchanged their routes in full, and every SUBACK of either waits for the other or for its lease.
//! - Of a pair that cannot hear each other neither acknowledges, until one of them is removed from the view.

#![forbid(unsafe_code)]

mod gate;
mod node;
mod site;

pub use gate::Gate;
pub use node::{Action, Config, Member, Message, Node, NodeId, PeerId, Standing, State, View};
pub use site::{Deed, Order, Shards, Site, Token, Word};
