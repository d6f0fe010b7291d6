//! MQTT 3.1, 3.1.1 and 5: the codec, topic names and topic filters.
//!
//! No I/O, no clock, no allocation while decoding. A frame is decoded in place, both directions (a broker and a
//! client are both built on it), every MUST of the packet format is checked here and answered with the reason
//! code that the standard names; what needs a session (packet ids in use, aliases, limits) is the shard's.
//!
//! # Design
//!
//! - A [`Packet`] borrows the receive buffer. [`decode`] either returns a whole checked packet, asks for more
//!   bytes, or fails for good: there is no decoder state, so a reader may call it again from the same offset.
//! - What has a variable number of parts ([`Properties`], [`SubscribeFilters`], [`UnsubscribeFilters`]) stays
//!   encoded. The only ways to get such a view are a check of its bytes or a builder, so walking it cannot fail.
//! - [`decode`] looks at one packet. It knows neither the side it runs on nor the session, so these rules of the
//!   standard are the caller's: who may send what ([`Packet::check_sender`]), a filter's grammar
//!   ([`topic::validate_filter`], answered in SUBACK), the payload format ([`Publish::payload_format_ok`],
//!   answered in PUBACK), topic aliases above the announced maximum, and packet ids in use.
//! - Encoding never writes a frame that [`decode`] would refuse as too long: a string over 65,535 bytes or a
//!   packet over 268,435,455 is an [`EncodeError`], and the output is then as it was.
//!
//! MQTT 3.1 is older than the OASIS standard and laxer: where 3.1.1 says "MUST be 0", 3.1 says "not used". Such
//! bits are ignored for it; everything else is as strict as in 3.1.1.
//!
//! ```
//! use ferrule_mqtt::{Packet, QoS, Version, decode};
//!
//! let frame = [0x30, 0x06, 0x00, 0x03, b'a', b'/', b'b', b'!'];
//! let (packet, used) = decode(&frame, Some(Version::V3_1_1), 1024)?.expect("the frame is whole");
//! let Packet::Publish(publish) = packet else { panic!("not a PUBLISH") };
//! assert_eq!((publish.topic, publish.qos, publish.payload), ("a/b", QoS::AtMostOnce, &b"!"[..]));
//! assert_eq!(used, frame.len());
//! # Ok::<(), ferrule_mqtt::DecodeError>(())
//! ```
#![forbid(unsafe_code)]

mod decode;
mod encode;
mod error;
mod filters;
pub mod packet;
mod property;
mod reader;
mod reason;
mod sender;
pub mod topic;
mod types;

pub use decode::{connect_version, decode, frame_len};
pub use encode::{PINGREQ, PINGRESP, PublishFlags, PublishTemplate, encode_ack, encode_publish};
pub use error::{DecodeError, EncodeError};
pub use filters::{SubscribeFilters, SubscribeFiltersBuf, UnsubscribeFilters, UnsubscribeFiltersBuf};
pub use packet::{
    Ack, Auth, Connack, Connect, Disconnect, Packet, Publish, Suback, Subscribe, SubscribeOptions,
    Unsubscribe, Will,
};
pub use property::{Properties, PropertiesBuf, Property, PropertyId, PropertyScope};
pub use reason::ReasonCode;
pub use sender::Side;
pub use types::{AckType, PacketType, QoS, Version};

/// The largest remaining length that the fixed header can carry, in bytes [MQTT 5, 1.5.5].
pub const MAX_REMAINING_LENGTH: usize = 268_435_455;

/// The longest string or binary field, in bytes [MQTT 5, 1.5.4].
pub const MAX_STRING_LENGTH: usize = 65_535;
