//! Which side may send what.
//!
//! [`decode`](crate::decode) serves both sides of a connection and does not ask which one it runs on. The rules that
//! depend on it need nothing but the packet, so they stand here; what needs the session is elsewhere.

use crate::{AckType, DecodeError, Packet, PacketType, PropertyId, ReasonCode, Version};

/// A side of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The one that sent CONNECT.
    Client,
    /// The one that answered it.
    Server,
}

impl Packet<'_> {
    /// Checks that `sender` may send this packet.
    ///
    /// # Errors
    ///
    /// A protocol error: a packet type of the other side, a subscription identifier in a PUBLISH from a client, a
    /// DISCONNECT from a server before MQTT 5, session expiry in one since, server reference from a client, and
    /// an AUTH step of the other side.
    ///
    /// ```
    /// use ferrule_mqtt::{Packet, Side, Version};
    ///
    /// assert!(Packet::Pingreq.check_sender(Side::Client, Version::V5).is_ok());
    /// assert!(Packet::Pingresp.check_sender(Side::Client, Version::V5).is_err());
    /// ```
    pub fn check_sender(&self, sender: Side, version: Version) -> Result<(), DecodeError> {
        let fault = match (sender, self) {
            (Side::Client, Self::Connack(_) | Self::Suback(_) | Self::Unsuback(_) | Self::Pingresp) => {
                "packet type that only a server sends, from a client [2.1.2]"
            }
            (Side::Server, Self::Connect(_) | Self::Subscribe(_) | Self::Unsubscribe(_) | Self::Pingreq) => {
                "packet type that only a client sends, from a server [2.1.2]"
            }
            (Side::Client, Self::Publish(publish))
                if publish.properties.contains(PropertyId::SubscriptionIdentifier) =>
            {
                "subscription identifier in a PUBLISH from a client [MQTT-3.3.4-6]"
            }
            (Side::Server, Self::Disconnect(_)) if version < Version::V5 => {
                "DISCONNECT from a server before MQTT 5 [3.1.1, 3.14]"
            }
            (Side::Server, Self::Disconnect(disconnect))
                if disconnect.properties.contains(PropertyId::SessionExpiryInterval) =>
            {
                "session expiry interval in a DISCONNECT from a server [MQTT-3.14.2-2]"
            }
            (Side::Client, Self::Disconnect(disconnect))
                if disconnect.properties.contains(PropertyId::ServerReference) =>
            {
                "server reference in a DISCONNECT from a client [3.14.2.2.5]"
            }
            (Side::Client, Self::Auth(auth)) if auth.reason == ReasonCode::SUCCESS => {
                "AUTH with success from a client [3.15.2.1]"
            }
            (Side::Server, Self::Auth(auth)) if auth.reason == ReasonCode::REAUTHENTICATE => {
                "AUTH with re-authenticate from a server [3.15.2.1]"
            }
            _ => return Ok(()),
        };
        Err(DecodeError::Protocol(fault))
    }
}

impl AckType {
    /// The acknowledgement that a packet type is, if it is one.
    pub const fn from_packet_type(packet: PacketType) -> Option<Self> {
        match packet {
            PacketType::Puback => Some(Self::Puback),
            PacketType::Pubrec => Some(Self::Pubrec),
            PacketType::Pubrel => Some(Self::Pubrel),
            PacketType::Pubcomp => Some(Self::Pubcomp),
            _ => None,
        }
    }
}
