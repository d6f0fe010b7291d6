//! Packets to frames.
//!
//! [`Packet::encode`] serves every packet. A PUBLISH, the only one that is large or frequent, is laid out so:
//!
//! ```text
//! first byte | remaining length | topic | packet id (QoS > 0) | properties (MQTT 5) | payload
//!      ^ DUP, QoS, RETAIN                    ^
//! ```
//!
//! The receivers of one message differ in the two marked places, if they agree in the rest (the layout: version,
//! whether there is a packet id, properties). [`PublishTemplate`] is the frame encoded once per layout; writing
//! it for a receiver is one copy and two patches.

use crate::packet::{Connack, Connect, Packet, Publish};
use crate::property::{put_binary, put_text, put_var_int, var_int_len};
use crate::reader::{NOT_IN_NAMES, contains_any};
use crate::{
    AckType, EncodeError, MAX_REMAINING_LENGTH, PacketType, Properties, QoS, ReasonCode, SubscribeOptions,
    Version,
};

/// A whole PINGREQ.
pub const PINGREQ: [u8; 2] = [0xC0, 0x00];

/// A whole PINGRESP.
pub const PINGRESP: [u8; 2] = [0xD0, 0x00];

/// The flags in the first byte of a PUBLISH.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct PublishFlags {
    /// Sent before. Must be false with QoS 0 [MQTT-3.3.1-2].
    pub dup: bool,
    /// Quality of service.
    pub qos: QoS,
    /// Retain flag.
    pub retain: bool,
}

/// A PUBLISH encoded for many receivers of one layout.
///
/// ```
/// use ferrule_mqtt::{Packet, PublishFlags, PublishTemplate, QoS, Version, decode};
///
/// let template = PublishTemplate::new(Version::V5, true, "a/b", &[], b"payload")?;
/// let mut out = Vec::new();
/// for packet_id in 1..=3 {
///     let flags = PublishFlags { qos: QoS::AtLeastOnce, ..PublishFlags::default() };
///     template.write(&mut out, flags, packet_id);
/// }
/// let Ok(Some((Packet::Publish(first), _))) = decode(&out, Some(Version::V5), 1024) else { panic!() };
/// assert_eq!((first.packet_id, first.topic, first.payload), (1, "a/b", &b"payload"[..]));
/// # Ok::<(), ferrule_mqtt::EncodeError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishTemplate {
    frame: Box<[u8]>,
    /// Offset of the packet id; 0 in a layout without one (no field stands at 0).
    packet_id_at: usize,
    version: Version,
}

// === impl PublishFlags ===

impl PublishFlags {
    #[inline]
    const fn first_byte(self) -> u8 {
        PacketType::Publish.first_byte()
            | ((self.dup as u8) << 3)
            | ((self.qos as u8) << 1)
            | (self.retain as u8)
    }
}

// === impl PublishTemplate ===

impl PublishTemplate {
    /// Encodes once. `acknowledged` is whether the layout has a packet id: whether it is for QoS 1 and 2, or for 0.
    /// `properties` are written one after another (MQTT 5 only).
    ///
    /// # Errors
    ///
    /// As [`encode_publish`].
    pub fn new(
        version: Version,
        acknowledged: bool,
        topic: &str,
        properties: &[Properties<'_>],
        payload: &[u8],
    ) -> Result<Self, EncodeError> {
        let qos = if acknowledged { QoS::AtLeastOnce } else { QoS::AtMostOnce };
        let flags = PublishFlags { qos, ..PublishFlags::default() };
        let mut frame = Vec::new();
        // A placeholder: `write` sets the real one.
        let packet_id = u16::from(acknowledged);
        let packet_id_at = put_publish(&mut frame, version, flags, topic, packet_id, properties, payload)?;
        Ok(Self { frame: frame.into(), packet_id_at: if acknowledged { packet_id_at } else { 0 }, version })
    }

    /// Appends the frame for one receiver. `packet_id` is ignored in a layout without one.
    ///
    /// # Panics
    ///
    /// When the QoS is not of the template's layout, or the packet id is 0 in a layout with one: either would
    /// be a broken frame.
    #[inline]
    pub fn write(&self, out: &mut Vec<u8>, flags: PublishFlags, packet_id: u16) {
        assert!(
            self.is_acknowledged() == (flags.qos > QoS::AtMostOnce),
            "QoS {} is not of this PUBLISH's layout",
            flags.qos
        );
        let start = out.len();
        out.extend_from_slice(&self.frame);
        let frame = &mut out[start..];
        frame[0] = flags.first_byte();
        if self.packet_id_at != 0 {
            assert!(packet_id != 0, "packet identifier is 0 [MQTT-2.2.1-4]");
            frame[self.packet_id_at..][..2].copy_from_slice(&packet_id.to_be_bytes());
        }
    }

    /// Whether the layout has a packet id (QoS 1 and 2).
    #[inline]
    pub const fn is_acknowledged(&self) -> bool {
        self.packet_id_at != 0
    }

    /// The version that it was encoded for.
    pub const fn version(&self) -> Version {
        self.version
    }

    /// Size of the frame in bytes: what a receiver's maximum packet size is compared with.
    #[inline]
    pub const fn size(&self) -> usize {
        self.frame.len()
    }
}

// === PUBLISH and acknowledgements ===

/// Appends a PUBLISH. `properties` are written one after another: a message's own, and those of the receiver. They
/// are left out before MQTT 5, and `packet_id` with QoS 0.
///
/// # Errors
///
/// [`EncodeError`]: topic too long or with wildcards or U+0000, an empty topic (before MQTT 5; since then it
/// needs a topic alias), packet id 0 or DUP where the QoS forbids it, packet too large. `out` is then unchanged.
pub fn encode_publish(
    out: &mut Vec<u8>,
    version: Version,
    flags: PublishFlags,
    topic: &str,
    packet_id: u16,
    properties: &[Properties<'_>],
    payload: &[u8],
) -> Result<(), EncodeError> {
    put_publish(out, version, flags, topic, packet_id, properties, payload).map(drop)
}

/// Returns the offset of the packet id in the frame. All checks precede the first write.
#[inline]
fn put_publish(
    out: &mut Vec<u8>,
    version: Version,
    flags: PublishFlags,
    topic: &str,
    packet_id: u16,
    properties: &[Properties<'_>],
    payload: &[u8],
) -> Result<usize, EncodeError> {
    let acknowledged = flags.qos > QoS::AtMostOnce;
    if acknowledged && packet_id == 0 {
        return Err(EncodeError::Invalid("packet identifier is 0"));
    }
    if flags.dup && !acknowledged {
        return Err(EncodeError::Invalid("DUP with QoS 0"));
    }
    if contains_any(topic.as_bytes(), NOT_IN_NAMES) {
        return Err(EncodeError::Invalid("topic name contains a wildcard or U+0000"));
    }
    if topic.is_empty()
        && (version < Version::V5 || !properties.iter().any(|part| part.topic_alias().is_some()))
    {
        return Err(EncodeError::Invalid("topic name is empty"));
    }
    let topic_len = u16::try_from(topic.len()).map_err(|_| EncodeError::FieldTooLong(topic.len()))?;
    let properties_len = properties.iter().map(|part| part.as_bytes().len()).sum::<usize>();
    let mut remaining = 2 + topic.len() + if acknowledged { 2 } else { 0 } + payload.len();
    if version == Version::V5 {
        remaining += var_int_len(properties_len) + properties_len;
    }
    if remaining > MAX_REMAINING_LENGTH {
        return Err(EncodeError::PacketTooLarge(remaining));
    }

    let header = 1 + var_int_len(remaining);
    out.reserve(header + remaining);
    out.push(flags.first_byte());
    put_var_int(out, remaining);
    out.extend_from_slice(&topic_len.to_be_bytes());
    out.extend_from_slice(topic.as_bytes());
    if acknowledged {
        out.extend_from_slice(&packet_id.to_be_bytes());
    }
    if version == Version::V5 {
        put_var_int(out, properties_len);
        for part in properties {
            out.extend_from_slice(part.as_bytes());
        }
    }
    out.extend_from_slice(payload);
    Ok(header + 2 + topic.len())
}

/// Appends a PUBACK, PUBREC, PUBREL or PUBCOMP without properties, in its shortest form: before MQTT 5 and with
/// `SUCCESS` there is no reason code.
///
/// Before MQTT 5 a negative acknowledgement cannot be said: a PUBACK always is a positive one
/// [3.1.1, MQTT-3.3.5-2]. The caller decides between it and closing the connection.
///
/// # Panics
///
/// In debug builds: packet id 0.
///
/// ```
/// use ferrule_mqtt::{AckType, ReasonCode, Version, encode_ack};
///
/// let mut out = Vec::new();
/// encode_ack(&mut out, Version::V5, AckType::Puback, 7, ReasonCode::SUCCESS);
/// encode_ack(&mut out, Version::V5, AckType::Puback, 8, ReasonCode::QUOTA_EXCEEDED);
/// assert_eq!(out, [0x40, 2, 0, 7, 0x40, 3, 0, 8, 0x97]);
/// ```
#[inline]
pub fn encode_ack(out: &mut Vec<u8>, version: Version, ack: AckType, packet_id: u16, reason: ReasonCode) {
    debug_assert!(packet_id != 0, "packet identifier is 0 [MQTT-2.2.1-3]");
    let first = PacketType::from(ack).first_byte();
    let [high, low] = packet_id.to_be_bytes();
    if version < Version::V5 || reason == ReasonCode::SUCCESS {
        out.extend_from_slice(&[first, 2, high, low]);
    } else {
        out.extend_from_slice(&[first, 3, high, low, reason.0]);
    }
}

// === impl Packet ===

impl Packet<'_> {
    /// The type.
    pub const fn packet_type(&self) -> PacketType {
        match self {
            Self::Connect(_) => PacketType::Connect,
            Self::Connack(_) => PacketType::Connack,
            Self::Publish(_) => PacketType::Publish,
            Self::Puback(_) => PacketType::Puback,
            Self::Pubrec(_) => PacketType::Pubrec,
            Self::Pubrel(_) => PacketType::Pubrel,
            Self::Pubcomp(_) => PacketType::Pubcomp,
            Self::Subscribe(_) => PacketType::Subscribe,
            Self::Suback(_) => PacketType::Suback,
            Self::Unsubscribe(_) => PacketType::Unsubscribe,
            Self::Unsuback(_) => PacketType::Unsuback,
            Self::Pingreq => PacketType::Pingreq,
            Self::Pingresp => PacketType::Pingresp,
            Self::Disconnect(_) => PacketType::Disconnect,
            Self::Auth(_) => PacketType::Auth,
        }
    }

    /// Appends the frame. What the version cannot say is left out: properties and reason codes before MQTT 5 (the
    /// failures of a SUBACK become 0x80), session present in 3.1. A CONNECT is encoded in its own version.
    ///
    /// # Errors
    ///
    /// [`EncodeError`]; `out` is then unchanged.
    ///
    /// ```
    /// use ferrule_mqtt::{Connack, Packet, Properties, ReasonCode, Version};
    ///
    /// let packet = Packet::Connack(Connack {
    ///     session_present: false,
    ///     reason: ReasonCode::NOT_AUTHORIZED,
    ///     properties: Properties::EMPTY,
    /// });
    /// let mut out = Vec::new();
    /// packet.encode(Version::V3_1_1, &mut out)?;
    /// packet.encode(Version::V5, &mut out)?;
    /// assert_eq!(out, [0x20, 2, 0, 5, 0x20, 3, 0, 0x87, 0]);
    /// # Ok::<(), ferrule_mqtt::EncodeError>(())
    /// ```
    pub fn encode(&self, version: Version, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        match self {
            Self::Publish(publish) => publish.encode(version, out),
            Self::Pingreq => {
                out.extend_from_slice(&PINGREQ);
                Ok(())
            }
            Self::Pingresp => {
                out.extend_from_slice(&PINGRESP);
                Ok(())
            }
            _ => self.encode_framed(version, out),
        }
    }

    /// Writes the body behind room for the longest header, then the header, and closes the gap. These packets are
    /// small; to compute their length first would say every field twice.
    fn encode_framed(&self, version: Version, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        const ROOM: usize = 5;
        let start = out.len();
        out.extend_from_slice(&[0; ROOM]);
        let body = start + ROOM;
        let remaining = self.put_body(version, out).and_then(|()| match out.len() - body {
            remaining if remaining > MAX_REMAINING_LENGTH => Err(EncodeError::PacketTooLarge(remaining)),
            remaining => Ok(remaining),
        });
        match remaining {
            Ok(remaining) => {
                let mut header = Vec::with_capacity(ROOM);
                header.push(self.packet_type().first_byte());
                put_var_int(&mut header, remaining);
                out.splice(start..body, header);
                Ok(())
            }
            Err(error) => {
                out.truncate(start);
                Err(error)
            }
        }
    }

    fn put_body(&self, version: Version, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        match self {
            Self::Connect(connect) => put_connect(out, connect),
            Self::Connack(connack) => put_connack(out, version, connack),
            Self::Puback(ack) | Self::Pubrec(ack) | Self::Pubrel(ack) | Self::Pubcomp(ack) => {
                put_packet_id(out, ack.packet_id)?;
                put_reason_and_properties(out, version, ack.reason, ack.properties)
            }
            Self::Subscribe(subscribe) => {
                put_packet_id(out, subscribe.packet_id)?;
                put_properties(out, version, subscribe.properties)?;
                if subscribe.filters.is_empty() {
                    return Err(EncodeError::Invalid("SUBSCRIBE without a topic filter"));
                }
                if version == Version::V5 {
                    out.extend_from_slice(subscribe.filters.as_bytes());
                } else {
                    for (filter, options) in subscribe.filters.iter() {
                        put_text(out, filter)?;
                        out.push(SubscribeOptions::new(options.qos).to_byte());
                    }
                }
                Ok(())
            }
            Self::Suback(suback) => {
                put_packet_id(out, suback.packet_id)?;
                put_properties(out, version, suback.properties)?;
                if suback.reasons.is_empty() {
                    return Err(EncodeError::Invalid("SUBACK without a reason code"));
                }
                if version == Version::V5 {
                    out.extend_from_slice(suback.reasons);
                } else {
                    out.extend(suback.reasons.iter().map(|&code| code.min(0x80)));
                }
                Ok(())
            }
            Self::Unsubscribe(unsubscribe) => {
                put_packet_id(out, unsubscribe.packet_id)?;
                put_properties(out, version, unsubscribe.properties)?;
                if unsubscribe.filters.is_empty() {
                    return Err(EncodeError::Invalid("UNSUBSCRIBE without a topic filter"));
                }
                out.extend_from_slice(unsubscribe.filters.as_bytes());
                Ok(())
            }
            Self::Unsuback(unsuback) => {
                put_packet_id(out, unsuback.packet_id)?;
                if version == Version::V5 {
                    put_properties(out, version, unsuback.properties)?;
                    if unsuback.reasons.is_empty() {
                        return Err(EncodeError::Invalid("UNSUBACK without a reason code"));
                    }
                    out.extend_from_slice(unsuback.reasons);
                }
                Ok(())
            }
            Self::Disconnect(disconnect) => {
                put_reason_and_properties(out, version, disconnect.reason, disconnect.properties)
            }
            Self::Auth(_) if version < Version::V5 => Err(EncodeError::NotInVersion("AUTH")),
            Self::Auth(auth) => put_reason_and_properties(out, version, auth.reason, auth.properties),
            Self::Publish(_) | Self::Pingreq | Self::Pingresp => Ok(()),
        }
    }
}

impl Publish<'_> {
    /// Appends the frame: [`encode_publish`] of its fields.
    ///
    /// # Errors
    ///
    /// As [`encode_publish`].
    pub fn encode(&self, version: Version, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let flags = PublishFlags { dup: self.dup, qos: self.qos, retain: self.retain };
        encode_publish(out, version, flags, self.topic, self.packet_id, &[self.properties], self.payload)
    }
}

// === bodies ===

fn put_packet_id(out: &mut Vec<u8>, packet_id: u16) -> Result<(), EncodeError> {
    if packet_id == 0 {
        return Err(EncodeError::Invalid("packet identifier is 0"));
    }
    out.extend_from_slice(&packet_id.to_be_bytes());
    Ok(())
}

fn put_properties(
    out: &mut Vec<u8>,
    version: Version,
    properties: Properties<'_>,
) -> Result<(), EncodeError> {
    if version == Version::V5 {
        let bytes = properties.as_bytes();
        if bytes.len() > MAX_REMAINING_LENGTH {
            return Err(EncodeError::PacketTooLarge(bytes.len()));
        }
        put_var_int(out, bytes.len());
        out.extend_from_slice(bytes);
    }
    Ok(())
}

/// The shortest of: nothing, a reason code, a reason code and properties.
fn put_reason_and_properties(
    out: &mut Vec<u8>,
    version: Version,
    reason: ReasonCode,
    properties: Properties<'_>,
) -> Result<(), EncodeError> {
    if version < Version::V5 || (reason == ReasonCode::SUCCESS && properties.is_empty()) {
        return Ok(());
    }
    out.push(reason.0);
    if properties.is_empty() { Ok(()) } else { put_properties(out, version, properties) }
}

fn put_connect(out: &mut Vec<u8>, connect: &Connect<'_>) -> Result<(), EncodeError> {
    let version = connect.version;
    if connect.password.is_some() && connect.username.is_none() && version < Version::V5 {
        return Err(EncodeError::NotInVersion("a password without a user name"));
    }
    if connect.bridge && version == Version::V5 {
        return Err(EncodeError::Invalid("the bridge bit is one of MQTT 3.x"));
    }
    put_text(out, if version == Version::V3_1 { "MQIsdp" } else { "MQTT" })?;
    out.push(version as u8 | if connect.bridge { crate::decode::BRIDGE_BIT } else { 0 });
    let mut flags = u8::from(connect.clean_start) << 1;
    if let Some(will) = &connect.will {
        flags |= 0x04 | ((will.qos as u8) << 3) | (u8::from(will.retain) << 5);
    }
    flags |= u8::from(connect.password.is_some()) << 6;
    flags |= u8::from(connect.username.is_some()) << 7;
    out.push(flags);
    out.extend_from_slice(&connect.keep_alive.to_be_bytes());
    put_properties(out, version, connect.properties)?;
    put_text(out, connect.client_id)?;
    if let Some(will) = &connect.will {
        put_properties(out, version, will.properties)?;
        if will.topic.is_empty() || will.topic.contains(['+', '#']) {
            return Err(EncodeError::Invalid("will topic is empty or has wildcards"));
        }
        put_text(out, will.topic)?;
        put_binary(out, will.payload)?;
    }
    if let Some(username) = connect.username {
        put_text(out, username)?;
    }
    if let Some(password) = connect.password {
        put_binary(out, password)?;
    }
    Ok(())
}

fn put_connack(out: &mut Vec<u8>, version: Version, connack: &Connack<'_>) -> Result<(), EncodeError> {
    let code = if version == Version::V5 {
        connack.reason.0
    } else {
        connack.reason.to_connack_v3().ok_or(EncodeError::NotInVersion("this CONNACK reason"))?
    };
    // [MQTT-3.2.2-6], 3.1.1 [MQTT-3.2.2-4]: no session with a refusal; and 3.1 has no such flag.
    let present = connack.session_present && !connack.reason.is_error() && version > Version::V3_1;
    out.push(u8::from(present));
    out.push(code);
    put_properties(out, version, connack.properties)
}
