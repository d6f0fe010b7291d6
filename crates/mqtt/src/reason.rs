//! Reason codes of MQTT 5 and the return codes of 3.x.

use crate::PacketType;

/// A reason code of MQTT 5 [2.4]. Below 0x80 is success.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReasonCode(pub u8);

macro_rules! reason_codes {
    ($($code:literal $constant:ident $name:literal,)*) => {
        impl ReasonCode {
            $(#[doc = concat!("`", stringify!($code), "`: ", $name, ".")]
            pub const $constant: Self = Self($code);)*

            /// The standard's name of the code; `"Unknown"` for a number that it does not define.
            pub const fn name(self) -> &'static str {
                match self.0 {
                    $($code => $name,)*
                    _ => "Unknown",
                }
            }
        }
    };
}

reason_codes! {
    0x00 SUCCESS "Success",
    0x01 GRANTED_QOS_1 "Granted QoS 1",
    0x02 GRANTED_QOS_2 "Granted QoS 2",
    0x04 DISCONNECT_WITH_WILL "Disconnect with Will Message",
    0x10 NO_MATCHING_SUBSCRIBERS "No matching subscribers",
    0x11 NO_SUBSCRIPTION_EXISTED "No subscription existed",
    0x18 CONTINUE_AUTHENTICATION "Continue authentication",
    0x19 REAUTHENTICATE "Re-authenticate",
    0x80 UNSPECIFIED_ERROR "Unspecified error",
    0x81 MALFORMED_PACKET "Malformed Packet",
    0x82 PROTOCOL_ERROR "Protocol Error",
    0x83 IMPLEMENTATION_SPECIFIC_ERROR "Implementation specific error",
    0x84 UNSUPPORTED_PROTOCOL_VERSION "Unsupported Protocol Version",
    0x85 CLIENT_IDENTIFIER_NOT_VALID "Client Identifier not valid",
    0x86 BAD_USER_NAME_OR_PASSWORD "Bad User Name or Password",
    0x87 NOT_AUTHORIZED "Not authorized",
    0x88 SERVER_UNAVAILABLE "Server unavailable",
    0x89 SERVER_BUSY "Server busy",
    0x8A BANNED "Banned",
    0x8B SERVER_SHUTTING_DOWN "Server shutting down",
    0x8C BAD_AUTHENTICATION_METHOD "Bad authentication method",
    0x8D KEEP_ALIVE_TIMEOUT "Keep Alive timeout",
    0x8E SESSION_TAKEN_OVER "Session taken over",
    0x8F TOPIC_FILTER_INVALID "Topic Filter invalid",
    0x90 TOPIC_NAME_INVALID "Topic Name invalid",
    0x91 PACKET_IDENTIFIER_IN_USE "Packet Identifier in use",
    0x92 PACKET_IDENTIFIER_NOT_FOUND "Packet Identifier not found",
    0x93 RECEIVE_MAXIMUM_EXCEEDED "Receive Maximum exceeded",
    0x94 TOPIC_ALIAS_INVALID "Topic Alias invalid",
    0x95 PACKET_TOO_LARGE "Packet too large",
    0x96 MESSAGE_RATE_TOO_HIGH "Message rate too high",
    0x97 QUOTA_EXCEEDED "Quota exceeded",
    0x98 ADMINISTRATIVE_ACTION "Administrative action",
    0x99 PAYLOAD_FORMAT_INVALID "Payload format invalid",
    0x9A RETAIN_NOT_SUPPORTED "Retain not supported",
    0x9B QOS_NOT_SUPPORTED "QoS not supported",
    0x9C USE_ANOTHER_SERVER "Use another server",
    0x9D SERVER_MOVED "Server moved",
    0x9E SHARED_SUBSCRIPTIONS_NOT_SUPPORTED "Shared Subscriptions not supported",
    0x9F CONNECTION_RATE_EXCEEDED "Connection rate exceeded",
    0xA0 MAXIMUM_CONNECT_TIME "Maximum connect time",
    0xA1 SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED "Subscription Identifiers not supported",
    0xA2 WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED "Wildcard Subscriptions not supported",
}

impl ReasonCode {
    /// Also `0x00`: the name of [`SUCCESS`](Self::SUCCESS) in DISCONNECT.
    pub const NORMAL_DISCONNECTION: Self = Self(0x00);
    /// Also `0x00`: the name of [`SUCCESS`](Self::SUCCESS) in SUBACK.
    pub const GRANTED_QOS_0: Self = Self(0x00);

    /// Whether the operation failed.
    pub const fn is_error(self) -> bool {
        self.0 >= 0x80
    }

    /// The SUBACK code that grants a quality of service.
    pub const fn granted(qos: crate::QoS) -> Self {
        Self(qos as u8)
    }

    /// From the return code of a 3.x CONNACK; `None` for the numbers that 3.1.1 reserves (6 to 255).
    pub const fn from_connack_v3(return_code: u8) -> Option<Self> {
        Some(match return_code {
            0 => Self::SUCCESS,
            1 => Self::UNSUPPORTED_PROTOCOL_VERSION,
            2 => Self::CLIENT_IDENTIFIER_NOT_VALID,
            3 => Self::SERVER_UNAVAILABLE,
            4 => Self::BAD_USER_NAME_OR_PASSWORD,
            5 => Self::NOT_AUTHORIZED,
            _ => return None,
        })
    }

    /// To the return code of a 3.x CONNACK. `None` where none of the six applies: the server then closes the
    /// connection without a CONNACK [MQTT 3.1.1, MQTT-3.2.2-6].
    pub const fn to_connack_v3(self) -> Option<u8> {
        Some(match self {
            Self::SUCCESS => 0,
            Self::UNSUPPORTED_PROTOCOL_VERSION => 1,
            Self::CLIENT_IDENTIFIER_NOT_VALID => 2,
            // All of these mean "not now or not here": 3.x clients retry later, as they should.
            Self::SERVER_UNAVAILABLE
            | Self::SERVER_BUSY
            | Self::SERVER_SHUTTING_DOWN
            | Self::QUOTA_EXCEEDED
            | Self::USE_ANOTHER_SERVER
            | Self::SERVER_MOVED
            | Self::CONNECTION_RATE_EXCEEDED => 3,
            Self::BAD_USER_NAME_OR_PASSWORD => 4,
            Self::NOT_AUTHORIZED | Self::BANNED | Self::BAD_AUTHENTICATION_METHOD => 5,
            _ => return None,
        })
    }

    /// Whether the standard lists the code for this packet type [MQTT 5, 2.4], whichever side sends it.
    pub const fn allowed_in(self, packet: PacketType) -> bool {
        match packet {
            PacketType::Connack => matches!(
                self.0,
                0 | 0x80..=0x8A | 0x8C | 0x90 | 0x95 | 0x97 | 0x99..=0x9D | 0x9F
            ),
            PacketType::Puback | PacketType::Pubrec => {
                matches!(self.0, 0 | 0x10 | 0x80 | 0x83 | 0x87 | 0x90 | 0x91 | 0x97 | 0x99)
            }
            PacketType::Pubrel | PacketType::Pubcomp => matches!(self.0, 0 | 0x92),
            PacketType::Suback => {
                matches!(self.0, 0..=2 | 0x80 | 0x83 | 0x87 | 0x8F | 0x91 | 0x97 | 0x9E | 0xA1 | 0xA2)
            }
            PacketType::Unsuback => matches!(self.0, 0 | 0x11 | 0x80 | 0x83 | 0x87 | 0x8F | 0x91),
            PacketType::Disconnect => matches!(
                self.0,
                0 | 0x04 | 0x80..=0x83 | 0x87 | 0x89 | 0x8B..=0x90 | 0x93..=0xA2
            ),
            PacketType::Auth => matches!(self.0, 0 | 0x18 | 0x19),
            _ => false,
        }
    }
}

impl std::fmt::Display for ReasonCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (0x{:02X})", self.name(), self.0)
    }
}

impl std::fmt::Debug for ReasonCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ReasonCode({self})")
    }
}
