//! A batch: many messages in one PUBLISH, between a Ferrule edge and a Ferrule cloud.
//!
//! # Constraints
//! A gateway's link may be paid by volume, and of a forwarded reading of 200 bytes more than half on the wire is names: of the
//! topic, of the device, of the properties that carry its identity. So a batch says what changes from one message to the next, is
//! compressed with a dictionary of what gateways say, and is one PUBLISH and one PUBACK. What arrives is a stranger's bytes: a
//! length is compared with what is there before anything is allocated, and nothing in them decides how much memory is taken.
//!
//! # Format
//! A PUBLISH of QoS 1 (0 if all its messages are) to [`TOPIC`], after both sides have said so ([`NAME`]). Its payload:
//! ```text
//! u8      version: 1
//! u8      0: the body follows as it is; n: compressed (zstd, one frame that tells its size), with dictionary n
//! u32 LE  only when compressed: check of that dictionary ([`dictionary::CHECK`])
//! body    at most 64 KiB uncompressed:
//!   varint  messages, 1..=1,024
//!   varint  bytes of the heads
//!   heads   one a message:
//!     u8      1 QoS 1 | 2 retain | 4 clock was synchronised | 8 topic as before | 16 device as before
//!             | 32 has a user name | 64 has properties | 128 process life as before
//!     [u64 LE boot, varint class]      unless 128
//!     zigzag  seq, less the one before and 1
//!     zigzag  received at (ms since 1970), less the one before
//!     zigzag  age (ms) and received at together, less the same of the one before; of the first: its age
//!     varint  brokers that it has passed (a byte), and 256 more when it is late ([`Item::late`])
//!     [front-coded topic]              unless 8
//!     [front-coded client id]          unless 16
//!     [varint bytes, user name]        unless 16, if 32
//!     [varint bytes, properties]       if 64: encoded as in a PUBLISH, without `ferrule-*`
//!     varint  bytes of the payload
//!   payloads  one after another
//! ```
//! A varint is LEB128 (7 bits a byte, the lowest first, at most 10 bytes); a zigzag is one of a signed number. Front-coded: varint
//! bytes in common with the one before, varint bytes that follow, those bytes. Arithmetic wraps. What a flag leaves out of the first
//! message is empty or 0. Payloads stand together because the compressor then finds one in the next.
//!
//! # Invariants
//! - [`Decoder::decode`] gives all messages of a batch or an error: none of a damaged one is acted upon.
//! - Each message that it gives could have come alone: its topic is a topic name, its texts are MQTT's, its properties a PUBLISH's.
//! - What [`Encoder::push`] accepted is decoded by a peer of the same version as it was.
//! - A dictionary never changes: another one has another number. A peer that does not know it is sent none
//!   ([`DICTIONARY_NAME`]).

#![forbid(unsafe_code)]

mod decode;
pub mod dictionary;
mod encode;
mod item;

pub use decode::{Batch, DecodeError, Decoder};
pub use encode::Encoder;
pub use item::Item;

/// Where batches go. Closed to everyone but gateways that were told [`NAME`].
pub const TOPIC: &str = "$ferrule/batch";

/// The user property of CONNECT and CONNACK by which both sides say that they know batches of [`VERSION`], which is its value.
pub const NAME: &str = "ferrule-batch";

/// Of CONNECT: the dictionary that the edge has, `number-check`; of CONNACK: the same, if the cloud has it.
pub const DICTIONARY_NAME: &str = "ferrule-dictionary";

/// Of PUBACK: which messages the cloud refused, of a batch that it took: `place:reason` in decimal, from 0, separated by commas.
pub const REFUSED_NAME: &str = "ferrule-refused";

/// The format's version.
pub const VERSION: u8 = 1;

/// [`VERSION`] as [`NAME`]'s value.
pub const VERSION_TEXT: &str = "1";

/// Bytes of a body, uncompressed: what one decoder holds, whatever it is sent.
pub const PLAIN_MAX: usize = 64 * 1024;

/// Messages in a batch: what one turn of a shard has room for.
pub const MESSAGES_MAX: usize = 1_024;

/// Topics, client ids, user names and properties of a batch, written out: front coding must not unfold into memory without bound. Bytes.
pub const TEXTS_MAX: usize = 256 * 1024;

/// Bytes in front of a compressed body.
const HEAD: usize = 6;

const QOS_1: u8 = 1;
const RETAIN: u8 = 2;
const SYNCED: u8 = 4;
const SAME_TOPIC: u8 = 8;
const SAME_DEVICE: u8 = 16;
const HAS_USER: u8 = 32;
const HAS_PROPERTIES: u8 = 64;
const SAME_LIFE: u8 = 128;

/// Beside a message's hops, which are a byte. A peer that does not know it refuses the batch, and is sent rows one by one.
const LATE: u64 = 256;
