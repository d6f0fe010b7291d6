//! Every bound of a link, in one place, with its reason.
//!
//! | what | bound, and what happens past it |
//! |---|---|
//! | queue of control | [`CONTROL_MAX`], then the link is closed |
//! | queue of data | [`DATA_MAX`], then the link is closed |
//! | one `Parcels` | [`PARCELS_MAX`], then the link is closed |
//! | a gRPC message | [`MESSAGE_MAX`], then the stream fails |
//! | bytes under way on a stream | [`WINDOW`] in the network and with the receiver, [`SEND_BUFFER`] and one batch before it |
//! | connections of strangers | [`STRANGERS_MAX`] for [`HANDSHAKE`]; the next wait in the listener's backlog |

use std::time::Duration;

/// Bytes of control that wait, [`ITEM_BYTES`] of each item among them. Routes of a node go through it in pieces when a
/// link comes up; it is for changes, of which each worker of a node has as many as its clients ask for.
pub const CONTROL_MAX: usize = 16 << 20;

/// Bytes of data that wait: at 1 Gbit/s half a second's, so that a receiver that stops for its lease costs a link only under full load.
pub const DATA_MAX: usize = 64 << 20;

/// The longest bytes of one `Parcels`: a queue's. The receiver puts pieces together up to this.
pub const PARCELS_MAX: usize = 64 << 20;

/// What an item costs beside its bytes, in a queue and on the wire; above what either needs.
pub(crate) const ITEM_BYTES: usize = 64;

/// When a frame is full. Of 32, 128 and 256 KiB this one moved most on a busy machine of two cores.
pub(crate) const BATCH: usize = 128 << 10;

/// The longest piece of a `Parcels`. The last one of a batch begins below [`BATCH`].
pub(crate) const PIECE: usize = 128 << 10;

/// The longest gRPC message. Small, since strangers may send one before they have proven anything; twice the longest batch, for
/// versions to come.
pub(crate) const MESSAGE_MAX: usize = 2 * (BATCH + PIECE);

/// What may be under way to a receiver that does not read, of a stream and of its connection alike (there is one stream). At 2 ms of round trip 500 MB/s.
/// A PING waits behind it: at 4 Mbit/s it takes about [`KEEP_ALIVE_TIMEOUT`], so with less between two nodes a busy link does not hold.
pub(crate) const WINDOW: u32 = 1 << 20;

/// What h2 has taken from a stream and not written: no more than one batch.
pub(crate) const SEND_BUFFER: usize = 256 << 10;

/// An HTTP/2 frame. Larger than the default of 16 KiB, since there is nobody else on the connection to let through.
pub(crate) const FRAME: u32 = 64 << 10;

/// Names and values of a request; ours have 200 bytes.
pub(crate) const HEADERS: u32 = 8 << 10;

/// A connection is for one stream.
pub(crate) const STREAMS: u32 = 1;

/// A PING is sent this often, and
pub(crate) const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(1);

/// a connection whose answer does not come in this time has ended: about three seconds after the network did. Silence is judged by the
/// heartbeats of `ferrule-cluster`; this is so that one dials anew soon after a partition, instead of waiting for TCP to
/// resend, whose pauses grow with the partition.
pub(crate) const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// For the kernel the same (TCP_USER_TIMEOUT): it would keep what a closed socket has not sent for a quarter of an hour.
pub(crate) const USER_TIMEOUT: Duration = Duration::from_secs(3);

/// TCP's handshake with one address, and looking up a name. A lost SYN is sent again after 1 s: no sooner by TCP than by us.
pub(crate) const CONNECT: Duration = Duration::from_secs(1);

/// From a connection to the proof: a few round trips, on a machine that may be busy.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(3);

/// From the proof to Welcome: the other side ends an earlier link first, and its shards take note of both.
pub(crate) const WELCOME: Duration = Duration::from_secs(10);

/// How long a side that has refused the other waits for it to have read why.
pub(crate) const LINGER: Duration = Duration::from_secs(1);

/// Pauses between attempts grow from this
pub(crate) const PAUSE_MIN: Duration = Duration::from_millis(50);

/// to this: a partition that ends is felt within about a lease (1 s).
pub(crate) const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A link that was up so long was a good one: pauses begin anew.
pub(crate) const PROVEN: Duration = Duration::from_secs(5);

/// Addresses that a name may stand for; the others are not tried.
pub(crate) const ADDRESSES_MAX: usize = 8;

/// Connections that have proven nothing yet: each may fill a window and a message, together 96 MiB. The others wait in the backlog.
pub(crate) const STRANGERS_MAX: usize = 64;

/// After an error of the listener (too many open files): it would come again at once.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Of what another node says, this much is shown to people.
pub(crate) const TEXT_MAX: usize = 300;

/// The shortest token: with HMAC-SHA256 one tries billions a second against a recorded handshake.
pub(crate) const TOKEN_MIN: usize = 16;
