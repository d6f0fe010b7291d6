//! The rim: a worker is a thread that drives one shard in turns.
//!
//! # Constraints
//! Connections are not tasks: they live in a slab behind one epoll instance. A worker has no runtime either: what is
//! slow and rare (look-ups, the uplink, sinks, password hashes) lives on other threads and posts to its
//! [`Inbox`] (docs/decisions/0002).
//!
//! # One turn
//! What other workers sent, and other nodes; new connections; up to 1,024 ready sockets: read each into the worker's one 256 KiB buffer and let the shard take packets from it; a partial
//! packet alone is copied to its connection. Then the inbox, then [`Shard::end_turn`](ferrule_broker::Shard::end_turn)
//! with the turn's one batch for the store, then other workers get what the turn said, then each connection with output is
//! written once. What is for other nodes is gathered until there is nothing more to do at once ([`Abroad`]). epoll is edge-triggered: a
//! socket that was not drained is in a list of its own.
//!
//! # Listeners and layers
//! A connection may have layers under MQTT ([`ferrule_transport::stack`]): what it sends is decrypted and unmasked in the worker's buffer,
//! and what goes to it is encoded when it is written. Plain MQTT over TCP pays for none of it. A TLS handshake is dear, so its steps have a
//! budget of their own at the end of a turn's reading. What a listener asks before the protocol does is its [`Entrance`].
//!
//! # Several workers
//! All workers accept from the same listeners. The one that accepted reads the CONNECT; if the client id belongs to another
//! shard, socket, layers and bytes move there, and that one answers. Shards reach each other by bounded [`Links`], and those of other nodes by
//! [`Abroad`].
//!
//! # Bounds
//! A turn ends reading after 2 ms: the rest has the next one. A connection is read 256 KiB and written 256 KiB a turn at most; a connection that is held (its CONNECT
//! waits for an answer) keeps 64 KiB of what arrives and is not read further; a closing one is flushed and then
//! listened to for a second, so that its last packet is not destroyed by a reset.

#![forbid(unsafe_code)]

mod abroad;
mod clock;
mod inbox;
mod listener;
mod ring;
mod socket;
mod worker;

pub use abroad::{Abroad, Lane, Letter, Parcels, Post};
pub use clock::Clock;
pub use inbox::{Inbox, Mail};
pub use listener::{Address, Entrance, EntranceLimits, EntranceStats, Listener};
pub use ring::Links;
pub use worker::{Worker, WorkerStats};
