//! The shard: a share of the clients and all that their packets touch, as plain `&mut` state.
//!
//! # Constraints
//! Sans-I/O: bytes of connection c in, bytes for connections out, `now` an argument. No lock and no shared
//! counter on a message's way. The shard knows no socket, no clock, no file; it does not know what a rule is beyond a
//! [`Hook`] that takes a publish and the ends of its receipt, nor how a password is checked beyond a [`Gate`].
//!
//! # Operation
//! A worker drives one shard in turns. In a turn it calls [`Shard::receive`] for what it read,
//! [`Shard::store_event`] and [`Shard::admitted`] for what other threads answered, and then
//! [`Shard::end_turn`], which runs timers and submits the turn's one batch to the store. Then it sends
//! [`Shard::take_parcels`] to the other shards, writes the output of each connection in [`Shard::take_dirty`] once and obeys
//! [`Shard::take_commands`]. What other shards sent comes in by [`Shard::parcels`].
//!
//! # Invariants
//! - What leaves a shard as an acknowledgement is owed to nobody any more: each waits for what contract 1 says, by a receipt or
//!   by a place in the turn's batch.
//! - A QoS 2 packet id of a persistent session is durable in every state that the other side may hold it in: from the
//!   publisher before PUBREC, with the rows that its message became and never before them; to the subscriber
//!   before PUBLISH, with its row; each release before PUBCOMP and PUBREL.
//! - Work that comes up after a turn's end makes [`Shard::next_wake_us`] say *now*: nothing waits for a chance event.
//! - An end is resolved once, whoever disappears meanwhile.
//!
//! # Reading order
//! [`hook`] (what hangs on a shard), [`shard`] (its state), `turn` (timers and the batch), `connect`, `auth`, `review` (rules that change), `subscribe`, `publish` (one
//! publish in), `deliver`
//! (to one session; `alias`: topic aliases), `outbound` (acknowledgements of deliveries), `ending`, `config` and `pool` (bounds), `peers` (the other shards), `nodes` (those of other nodes), `telling` (what these are told at first), `parcel` (what passes
//! between them), `routes`, `share` (groups that share a subscription), [`retained`], `wheel`, `slots`.

#![forbid(unsafe_code)]

mod alias;
mod auth;
mod batch;
pub mod config;
mod connect;
mod delayed;
mod deliver;
mod drain;
mod ending;
mod events;
mod exclusive;
pub mod features;
pub mod hook;
mod nodes;
mod outbound;
mod owners;
mod parcel;
mod peers;
mod pool;
mod presence;
mod publish;
pub mod retained;
mod retaining;
mod review;
pub mod rewrite;
mod routes;
mod session;
pub mod shard;
mod share;
mod slots;
mod standing;
mod steady;
mod subscribe;
mod telling;
mod tempo;
mod turn;
mod wheel;
mod wills;

pub use config::{ClientLimits, Limits};
pub use drain::Left;
pub use events::{Connection, Event, EventKind, Told};
pub use features::{AutoSubscription, Features};
pub use hook::{
    Access, Attachment, ConnectRequest, Ends, Exchange, Gate, Grant, Hook, LocalPublish, Message, Publisher,
    Refusal, Role, RowElsewhere, Standing, Step, SysTopic, Which,
};
pub use nodes::Speaks;
pub use parcel::ParcelError;
pub use peers::{Place, introduce};
pub use rewrite::{Action, Rewrite, Rewrites};
pub use shard::{Command, Shard, Stats};
pub use share::Strategy;
pub use slots::Id;

/// Names a connection of a shard.
pub type ConnId = Id<marker::Conn>;
/// Names a session of a shard.
pub type SessionKey = Id<marker::Session>;

/// Types that keep ids of different things apart.
pub mod marker {
    /// Of connections.
    #[derive(Debug)]
    pub enum Conn {}
    /// Of sessions.
    #[derive(Debug)]
    pub enum Session {}
    /// Of parcels whose answer is due.
    #[derive(Debug)]
    pub enum Parcel {}
}
