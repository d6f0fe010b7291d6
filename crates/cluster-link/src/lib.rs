//! Links between the nodes of a cluster: two gRPC streams to each other node.
//!
//! # Constraints
//! What members tell each other decides within a second whether a node may acknowledge: it must never queue behind megabytes of publishes, nor
//! may a receiver without room for those hold it up. Streams of one connection share its window and its losses, so there are two
//! connections. A worker thread never waits for a peer. A network may drop packets without a word, and whoever can reach the port may
//! talk to it.
//!
//! # Data
//! - A **link** to a node is two streams, each on a connection of its own: *control* (messages of `ferrule-cluster`, routes) and *data*
//!   (publishes). It is up when both are, and ends when either does. (`proto/link.proto` has what is said on them.)
//! - **Parcels** are bytes from one shard to another; what is in them is the broker's. Long ones go in pieces and are put together again.
//! - A **sender** has a queue for each stream. What is in them when a link ends is lost: the next link begins with all routes anew, and who
//!   waits for an answer to a publish tries again.
//!
//! # Operation
//! 1. The node with the lower number dials ([`Links::connect`]), over and over with a growing, jittered pause; the other accepts.
//! 2. On each stream: Hello both ways (version, cluster, who), then the proof of the one who dialled. The proofs are
//!    HMAC-SHA256 by the token over both Hellos as they were sent: the token does not travel, what was said of oneself cannot be changed, and a
//!    recorded proof is of no use. (Without TLS the rest can be read and changed on its way: a token alone is for networks that one trusts.)
//! 3. The accepting side joins the two streams by their link number, ends an earlier link to that node, asks [`Site::up`] and says Welcome, with
//!    its own proof, on both. The other side then does the same with its own [`Site::up`].
//! 4. Frames pass. Of one queue everything that waits goes into one frame, up to a bound; HTTP/2's flow control says when the next is taken.
//! 5. Who only asks whether it belongs to whoever is at an address ([`Seeker`]) names nobody in its Hello, on a control stream of no link, and gets the Welcome,
//!    with the proof, or the refusal.
//! 6. When a link has ended, [`Site::down`], and whoever dialled begins anew.
//!
//! tonic gives gRPC's framing; connections are hyper's, made here, since a link is about exactly one stream on exactly one connection, which its
//! channels (that hide connections, and connect again by themselves) and its server do not say. So nothing of tonic's `transport` is built.
//!
//! # Invariants
//! - What one thread gives to [`Sender::message`] and [`Sender::routes`] arrives in that order, as long as the link is up; so it is with
//!   [`Sender::data`]. Between the two there is no order.
//! - [`Site::message`], [`Site::routes`] and [`Site::data`] of a link are called after its [`Site::up`] has said yes and before its
//!   [`Site::down`] is called; the next link to that node comes up after `down` has returned, whatever their incarnations.
//! - To a node there is one link. One of the same or a later incarnation replaces the one that is there, one of an earlier is refused.
//! - Every queue, message, window and wait has a bound (`limits.rs`). A queue past its bound ends the link: both sides then begin anew, and
//!   nothing in the middle is missing.
//! - Nobody is given anything who has not shown that it has the token, a certificate of the authority, or both.
//!
//! # Threads
//! Everything runs on the runtime in which [`Links::start`] is called. Control and data of a link are read by a task each.

#![forbid(unsafe_code)]

mod accept;
mod backoff;
mod call;
mod config;
mod dial;
mod hello;
mod limits;
mod link;
mod report;
mod seek;
mod sender;
mod tls;
mod wire;

pub use config::{Config, Token, TokenError, Trust, VERSIONS};
pub use limits::{CONTROL_MAX, DATA_MAX, PARCELS_MAX};
pub use report::Counters;
pub use seek::{Seeker, Sought};
pub use sender::Sender;
pub use tls::{Tls, TlsFiles};

use bytes::Bytes;
use ferrule_cluster::{Message, PeerId};
use link::Inner;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

/// Bytes from a shard of one node to a shard of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parcels {
    /// Shard of the sending node.
    pub from: u8,
    /// Shard of the receiving one.
    pub to: u8,
    /// At most [`PARCELS_MAX`].
    pub bytes: Bytes,
}

/// What links are for. All of it is called on the runtime's threads.
pub trait Site: Send + Sync + 'static {
    /// Both streams to a peer with so many shards are up, and this version of the protocol is spoken. Nothing of the link is delivered before this returns; false: it is not wanted, and
    /// closed without [`Site::down`]. Always run to its end, also when the link ends meanwhile.
    fn up(&self, peer: PeerId, speaks: (u8, u32), to: Sender) -> impl Future<Output = bool> + Send;

    /// The link has ended: nothing of it is delivered after this is called, and no new one to this node comes up before it has returned.
    fn down(&self, peer: PeerId) -> impl Future<Output = ()> + Send;

    /// On the control stream, in order with [`Site::routes`]. Must not block.
    fn message(&self, from: PeerId, message: Message);

    /// On the control stream. Must not block.
    fn routes(&self, from: PeerId, parcels: Parcels);

    /// On the data stream. The bytes hold on to all of the frame that they came in, up to 256 KiB. While it waits, for room, the stream is not read, and the sender's queue grows. Dropped where it waits
    /// when the link ends.
    fn data(&self, from: PeerId, parcels: Parcels) -> impl Future<Output = ()> + Send;
}

/// All links of a node. Dropped, everything ends without a word; see [`Links::stop`].
pub struct Links<S: Site> {
    inner: Arc<Inner<S>>,
    address: SocketAddr,
}

impl<S: Site> Links<S> {
    /// Accepts on `listener`, on the current runtime.
    ///
    /// # Errors
    /// The listener cannot be used.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(config: Config, listener: TcpListener, site: Arc<S>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let address = listener.local_addr()?;
        let inner = Inner::new(config, site);
        inner.tasks.spawn(accept::run(Arc::clone(&inner), listener));
        Ok(Self { inner, address })
    }

    /// Has a link to this peer, and goes on trying until [`Self::forget`]. Again with other addresses: from the next attempt on those hold.
    /// If the peer is the one that dials there is nothing to do. `addresses`: `host:port`; tried in this order, each with all
    /// that its name stands for.
    pub fn connect(&self, peer: PeerId, addresses: &[String]) {
        dial::connect(&self.inner, peer, addresses);
    }

    /// Asks at addresses who is there, until the links are stopped.
    #[must_use]
    pub fn seeker(&self) -> Seeker<S> {
        Seeker::new(Arc::clone(&self.inner))
    }

    /// Ends the link to it, if there is one, and dials no more. It may come by itself, and is then asked about by [`Site::up`].
    pub fn forget(&self, peer: PeerId) {
        dial::forget(&self.inner, peer);
    }

    /// This node has joined anew, as `me`: all links end, whom it dialled is forgotten, and nothing comes up any more that
    /// began before. [`Site::down`] of a link may still be called after this has returned.
    pub fn rejoin(&self, me: PeerId) {
        dial::rejoin(&self.inner, me);
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Why there is no link to a peer that this node dials, as far as it knows: what went wrong last, for people.
    #[must_use]
    pub fn trouble(&self, peer: PeerId) -> Option<String> {
        dial::trouble(&self.inner, peer)
    }

    /// What has happened so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.inner.report.counters()
    }

    /// New certificates, for connections that are made from now on; of no effect if there was no TLS. A link whose other side would not be let in any more
    /// with the certificate that it came with (revoked, or of an authority that is not trusted any more) ends.
    pub fn set_tls(&self, tls: Tls) {
        self.inner.set_tls(tls);
    }

    /// Ends all links and returns when [`Site::down`] of each has, and the port is free.
    ///
    /// Cancellation-safe: dropped, everything still ends, but nobody waits for it.
    pub async fn stop(self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }
}

impl<S: Site> Drop for Links<S> {
    fn drop(&mut self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
    }
}

impl<S: Site> std::fmt::Debug for Links<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Links").field("address", &self.address).finish_non_exhaustive()
    }
}
