//! The control packets of MQTT 3.1, 3.1.1 and 5 as borrowed views of a frame.
//!
//! A packet borrows the receive buffer it was decoded from: whoever keeps anything longer than the turn
//! copies it (a slice of a shared buffer would pin its whole block). Properties stay encoded: they are
//! checked once, when the packet is decoded, and walked when somebody asks.

use crate::{Properties, QoS, ReasonCode, Version};

/// One control packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packet<'a> {
    /// Client to server: the first packet of a connection.
    Connect(Connect<'a>),
    /// Server to client: the answer to CONNECT.
    Connack(Connack<'a>),
    /// Both ways: an application message.
    Publish(Publish<'a>),
    /// QoS 1: the receiver has taken responsibility.
    Puback(Ack<'a>),
    /// QoS 2, step 1: received.
    Pubrec(Ack<'a>),
    /// QoS 2, step 2: release.
    Pubrel(Ack<'a>),
    /// QoS 2, step 3: complete.
    Pubcomp(Ack<'a>),
    /// Client to server: subscribe to one or more filters.
    Subscribe(Subscribe<'a>),
    /// Server to client: one reason code for each filter of the SUBSCRIBE.
    Suback(Suback<'a>),
    /// Client to server: end subscriptions.
    Unsubscribe(Unsubscribe<'a>),
    /// Server to client: MQTT 5 has one reason code a filter, 3.1.1 none.
    Unsuback(Suback<'a>),
    /// Client to server: keep alive.
    Pingreq,
    /// Server to client: alive.
    Pingresp,
    /// The last packet of a connection (server to client in MQTT 5 only).
    Disconnect(Disconnect<'a>),
    /// MQTT 5: enhanced authentication.
    Auth(Auth<'a>),
}

/// CONNECT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connect<'a> {
    /// The protocol version that the client speaks; all later packets of the connection are of it.
    pub version: Version,
    /// Clean Session (3.x) or Clean Start (5).
    pub clean_start: bool,
    /// Bridges (mosquitto's) set the top bit of the protocol level of 3.x: loops are theirs to avoid.
    pub bridge: bool,
    /// Seconds; 0 means that keep alive is off.
    pub keep_alive: u16,
    /// CONNECT properties (empty before MQTT 5).
    pub properties: Properties<'a>,
    /// May be empty: the server then assigns one, where the version and flags allow it.
    pub client_id: &'a str,
    /// The message to publish when the connection ends without a DISCONNECT.
    pub will: Option<Will<'a>>,
    /// User name.
    pub username: Option<&'a str>,
    /// Password: binary.
    pub password: Option<&'a [u8]>,
}

/// The will part of a CONNECT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Will<'a> {
    /// Quality of service to publish it with.
    pub qos: QoS,
    /// Whether it is published as a retained message.
    pub retain: bool,
    /// Will properties (empty before MQTT 5).
    pub properties: Properties<'a>,
    /// Topic name, already checked.
    pub topic: &'a str,
    /// Payload.
    pub payload: &'a [u8],
}

/// CONNACK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connack<'a> {
    /// Whether the server holds a session of this client.
    pub session_present: bool,
    /// In 3.x the return code is translated to and from MQTT 5's reason codes.
    pub reason: ReasonCode,
    /// Empty before MQTT 5.
    pub properties: Properties<'a>,
}

/// PUBLISH.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publish<'a> {
    /// Sent before (QoS > 0).
    pub dup: bool,
    /// Quality of service.
    pub qos: QoS,
    /// Retain flag.
    pub retain: bool,
    /// Topic name, already checked. Empty in MQTT 5 when a topic alias stands for it.
    pub topic: &'a str,
    /// Packet identifier; 0 when QoS is 0.
    pub packet_id: u16,
    /// Empty before MQTT 5.
    pub properties: Properties<'a>,
    /// Payload.
    pub payload: &'a [u8],
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack<'a> {
    /// Packet identifier, never 0.
    pub packet_id: u16,
    /// `SUCCESS` before MQTT 5.
    pub reason: ReasonCode,
    /// Empty before MQTT 5.
    pub properties: Properties<'a>,
}

/// SUBSCRIBE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subscribe<'a> {
    /// Packet identifier, never 0.
    pub packet_id: u16,
    /// Empty before MQTT 5.
    pub properties: Properties<'a>,
    /// At least one (filter, options) pair, checked when decoded except for the filter's own grammar:
    /// an invalid filter is answered in its place in SUBACK (0x8F), it does not end the connection.
    pub filters: crate::SubscribeFilters<'a>,
}

/// SUBACK or UNSUBACK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suback<'a> {
    /// Packet identifier of the request.
    pub packet_id: u16,
    /// Empty before MQTT 5.
    pub properties: Properties<'a>,
    /// One byte for each filter of the request (a `ReasonCode`; in 3.x the granted QoS or 0x80).
    pub reasons: &'a [u8],
}

/// UNSUBSCRIBE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsubscribe<'a> {
    /// Packet identifier, never 0.
    pub packet_id: u16,
    /// Empty before MQTT 5.
    pub properties: Properties<'a>,
    /// At least one filter.
    pub filters: crate::UnsubscribeFilters<'a>,
}

/// DISCONNECT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disconnect<'a> {
    /// `SUCCESS` (normal disconnection) before MQTT 5.
    pub reason: ReasonCode,
    /// Empty before MQTT 5.
    pub properties: Properties<'a>,
}

/// AUTH (MQTT 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Auth<'a> {
    /// Success, continue or re-authenticate.
    pub reason: ReasonCode,
    /// Method and data.
    pub properties: Properties<'a>,
}

/// The options of one subscription [MQTT 5, 3.8.3.1]. In 3.x only `qos` is ever set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubscribeOptions {
    /// Maximum quality of service that the subscriber wants.
    pub qos: QoS,
    /// Do not send this client its own messages.
    pub no_local: bool,
    /// Forward the retain flag as published, instead of clearing it.
    pub retain_as_published: bool,
    /// 0: send retained messages; 1: only when the subscription is new; 2: never.
    pub retain_handling: u8,
}
