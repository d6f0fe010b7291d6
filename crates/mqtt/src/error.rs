//! Errors of the codec.

use crate::ReasonCode;

/// Why a frame was refused. All of them end the connection: after a bad frame the stream has no next boundary
/// that could be trusted. The texts name the clause of MQTT 5 unless they say 3.1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes cannot be parsed by the rules of the standard.
    #[error("malformed packet: {0}")]
    Malformed(&'static str),
    /// The packet parses, but the standard forbids what it says.
    #[error("protocol error: {0}")]
    Protocol(&'static str),
    /// The whole frame would be larger than the receiver allows. Known as soon as the length is.
    #[error("packet of {size} bytes is larger than the limit of {max}")]
    TooLarge {
        /// Size of the frame including its fixed header, in bytes.
        size: usize,
        /// The receiver's limit, in bytes.
        max: usize,
    },
    /// A CONNECT of a protocol level that we do not speak. A 3.1.1 answer (return code 1) is understood by
    /// clients of a level up to 4, an MQTT 5 one by the others.
    #[error("unsupported protocol level {0}")]
    UnsupportedVersion(u8),
    /// Topic alias 0 [MQTT-3.3.2-8].
    #[error("topic alias 0 is not permitted [MQTT-3.3.2-8]")]
    TopicAliasInvalid,
}

impl DecodeError {
    /// The reason code for the CONNACK or DISCONNECT that closes the connection (MQTT 5), or for the translation
    /// to a 3.x return code.
    pub const fn reason(&self) -> ReasonCode {
        match self {
            Self::Malformed(_) => ReasonCode::MALFORMED_PACKET,
            Self::Protocol(_) => ReasonCode::PROTOCOL_ERROR,
            Self::TooLarge { .. } => ReasonCode::PACKET_TOO_LARGE,
            Self::UnsupportedVersion(_) => ReasonCode::UNSUPPORTED_PROTOCOL_VERSION,
            Self::TopicAliasInvalid => ReasonCode::TOPIC_ALIAS_INVALID,
        }
    }
}

/// Why a packet could not be encoded. Nothing was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// A string or binary field is longer than its two length bytes can say.
    #[error("field of {0} bytes is longer than 65535")]
    FieldTooLong(usize),
    /// The packet is longer than its remaining length can say.
    #[error("packet with a remaining length of {0} bytes is longer than 268435455")]
    PacketTooLarge(usize),
    /// The connection's version has no such packet (AUTH before MQTT 5) or no way to say this (a CONNACK whose
    /// reason has no 3.x return code: the standard then wants a close without CONNACK [3.1.1, MQTT-3.2.2-6]).
    #[error("{0} cannot be said in MQTT 3.x")]
    NotInVersion(&'static str),
    /// A value that the standard forbids, and that [`decode`](crate::decode) would refuse: packet id 0 where one
    /// is needed, subscription identifier 0 or over 268,435,455, and the like.
    #[error("invalid value: {0}")]
    Invalid(&'static str),
}
