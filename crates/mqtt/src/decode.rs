//! Frames to packets.
//!
//! A frame is `type and flags (1 byte) | remaining length (1 to 4 bytes) | that many bytes`. What can be refused
//! is refused at the first byte that shows it (type, flags, size), so that a peer that does not speak MQTT is
//! not waited for.

use crate::packet::{
    Ack, Auth, Connack, Connect, Disconnect, Packet, Publish, Suback, Subscribe, Unsubscribe, Will,
};
use crate::property::var_int_len;
use crate::reader::Reader;
use crate::{
    DecodeError, PacketType, Properties, PropertyId, PropertyScope, QoS, ReasonCode, SubscribeFilters,
    UnsubscribeFilters, Version,
};
use DecodeError::{Malformed, Protocol};

/// The size of the frame that `buf` begins with, in bytes, including its fixed header; `None` when its length
/// has not arrived yet.
///
/// # Errors
///
/// Packet type 0, a remaining length of more than four bytes, and a frame larger than `max_packet_size`
/// ([`DecodeError::TooLarge`]) - before the rest of it has been received.
///
/// ```
/// use ferrule_mqtt::frame_len;
///
/// assert_eq!(frame_len(&[0x30], 1024), Ok(None));
/// assert_eq!(frame_len(&[0x30, 0x80, 0x01], 1024), Ok(Some(131)));
/// assert!(frame_len(&[0x30, 0x80, 0x10], 1024).is_err());
/// ```
#[inline]
pub fn frame_len(buf: &[u8], max_packet_size: usize) -> Result<Option<usize>, DecodeError> {
    Ok(header(buf, max_packet_size)?.map(|(header, remaining)| header + remaining))
}

/// Decodes the frame that `buf` begins with: the packet and how many bytes it took, or `None` when more bytes
/// are needed.
///
/// `version` is that of the connection; `None` stands for "no CONNECT yet": then only a CONNECT is accepted,
/// which carries its own version, and with a version no CONNECT is. `max_packet_size` is in bytes and counts the
/// whole frame, including its fixed header [MQTT 5, 3.1.2.11.4].
///
/// # Errors
///
/// [`DecodeError`]: the connection must be closed, for MQTT 5 after saying [`DecodeError::reason`]. The same error
/// comes again if called again.
///
/// ```
/// use ferrule_mqtt::{DecodeError, Packet, ReasonCode, Version, decode};
///
/// assert_eq!(decode(&[0xC0], Some(Version::V5), 1024), Ok(None));
/// assert_eq!(decode(&[0xC0, 0x00], Some(Version::V5), 1024), Ok(Some((Packet::Pingreq, 2))));
/// let error = decode(&[0xC0, 0x00], None, 1024).expect_err("a PINGREQ before CONNECT");
/// assert_eq!(error.reason(), ReasonCode::PROTOCOL_ERROR);
/// ```
#[inline]
pub fn decode(
    buf: &[u8],
    version: Option<Version>,
    max_packet_size: usize,
) -> Result<Option<(Packet<'_>, usize)>, DecodeError> {
    let Some(&first) = buf.first() else { return Ok(None) };
    // The hot path first: everything else goes through one more match.
    if let (0x30, Some(version)) = (first & 0xF0, version) {
        let flags = PublishHeader::from_first_byte(first)?;
        let Some((header, remaining)) = header(buf, max_packet_size)? else { return Ok(None) };
        check_shortest(version, header, remaining)?;
        let Some((body, size)) = body(buf, header, remaining) else { return Ok(None) };
        return Ok(Some((Packet::Publish(publish(body, version, flags)?), size)));
    }
    decode_other(buf, first, version, max_packet_size)
}

/// The version that the CONNECT in `buf` names, whatever is wrong with the rest of it or not yet there: to answer
/// one that [`decode`] refused in words that its sender understands. `None` when it is no CONNECT of a version
/// we speak; the standard then wants a close without an answer, or allows it.
///
/// ```
/// use ferrule_mqtt::{Version, connect_version, decode};
///
/// let reserved_flag_set = b"\x10\x0F\0\x04MQTT\x05\x03\0\x3C\0\0\x02c1";
/// assert!(decode(reserved_flag_set, None, 1024).is_err());
/// assert_eq!(connect_version(reserved_flag_set), Some(Version::V5));
/// ```
pub fn connect_version(buf: &[u8]) -> Option<Version> {
    let (&first, rest) = buf.split_first()?;
    if PacketType::from_first_byte(first) != Some(PacketType::Connect) {
        return None;
    }
    let mut remaining_length = rest.iter().take(4);
    let length_size = remaining_length.position(|&byte| byte < 0x80)? + 1;
    let mut reader = Reader::new(rest.get(length_size..)?);
    let name = reader.binary().ok()?;
    let (version, _) = protocol(name, reader.u8().ok()?).ok()?;
    Some(version)
}

fn decode_other(
    buf: &[u8],
    first: u8,
    version: Option<Version>,
    max_packet_size: usize,
) -> Result<Option<(Packet<'_>, usize)>, DecodeError> {
    let packet = PacketType::from_first_byte(first).ok_or(TYPE_0)?;
    check_first_byte(first, packet, version)?;
    let Some((header, remaining)) = header(buf, max_packet_size)? else { return Ok(None) };
    let Some((bytes, size)) = body(buf, header, remaining) else { return Ok(None) };
    let Some(version) = version else {
        let connect = connect(bytes, first)?;
        check_shortest(connect.version, header, remaining)?;
        return Ok(Some((Packet::Connect(connect), size)));
    };
    check_shortest(version, header, remaining)?;
    // Each arm builds the result where it is returned: a copy of the largest packet would cost more than decoding
    // the smallest.
    match packet {
        // Both are handled above or by the caller.
        PacketType::Connect | PacketType::Publish => Err(SECOND_CONNECT),
        PacketType::Connack => Ok(Some((Packet::Connack(connack(bytes, version)?), size))),
        PacketType::Puback => Ok(Some((Packet::Puback(ack(bytes, version, packet)?), size))),
        PacketType::Pubrec => Ok(Some((Packet::Pubrec(ack(bytes, version, packet)?), size))),
        PacketType::Pubrel => Ok(Some((Packet::Pubrel(ack(bytes, version, packet)?), size))),
        PacketType::Pubcomp => Ok(Some((Packet::Pubcomp(ack(bytes, version, packet)?), size))),
        PacketType::Subscribe => Ok(Some((Packet::Subscribe(subscribe(bytes, version)?), size))),
        PacketType::Suback => Ok(Some((Packet::Suback(suback(bytes, version)?), size))),
        PacketType::Unsubscribe => Ok(Some((Packet::Unsubscribe(unsubscribe(bytes, version)?), size))),
        PacketType::Unsuback => Ok(Some((Packet::Unsuback(unsuback(bytes, version)?), size))),
        PacketType::Pingreq => Reader::new(bytes).finish().map(|()| Some((Packet::Pingreq, size))),
        PacketType::Pingresp => Reader::new(bytes).finish().map(|()| Some((Packet::Pingresp, size))),
        PacketType::Disconnect => Ok(Some((Packet::Disconnect(disconnect(bytes, version)?), size))),
        PacketType::Auth => Ok(Some((Packet::Auth(auth(bytes)?), size))),
    }
}

const TYPE_0: DecodeError = Malformed("packet type 0 is forbidden [2.1.2]");
const SECOND_CONNECT: DecodeError = Protocol("second CONNECT on a connection [MQTT-3.1.0-2]");
const PACKET_ID_0: DecodeError = Protocol("packet identifier is 0 [MQTT-2.2.1-3]");

// === the fixed header ===

/// Length of the fixed header and the remaining length, both in bytes.
#[inline]
fn header(buf: &[u8], max_packet_size: usize) -> Result<Option<(usize, usize)>, DecodeError> {
    let (&first, rest) = match buf.split_first() {
        Some(split) => split,
        None => return Ok(None),
    };
    if first < 0x10 {
        return Err(TYPE_0);
    }
    let mut remaining = 0_usize;
    for index in 0..4 {
        let Some(&byte) = rest.get(index) else { return Ok(None) };
        remaining |= usize::from(byte & 0x7F) << (7 * index);
        if byte < 0x80 {
            let header = index + 2;
            // At most 5 + 268,435,455.
            let size = header + remaining;
            return if size > max_packet_size {
                Err(DecodeError::TooLarge { size, max: max_packet_size })
            } else {
                Ok(Some((header, remaining)))
            };
        }
    }
    Err(Malformed("remaining length is longer than four bytes [2.1.4]"))
}

/// MQTT 5 wants the shortest form [MQTT-1.5.5-1]; 3.1.1 does not say so.
#[inline]
fn check_shortest(version: Version, header: usize, remaining: usize) -> Result<(), DecodeError> {
    if version == Version::V5 && header != 1 + var_int_len(remaining) {
        return Err(Malformed("remaining length is not in its shortest form [MQTT-1.5.5-1]"));
    }
    Ok(())
}

/// What follows the fixed header, if all of it is there, and the size of the frame.
#[inline]
fn body(buf: &[u8], header: usize, remaining: usize) -> Option<(&[u8], usize)> {
    let size = header + remaining;
    Some((buf.get(header..size)?, size))
}

/// Type and flags against the state of the connection.
fn check_first_byte(first: u8, packet: PacketType, version: Option<Version>) -> Result<(), DecodeError> {
    let Some(version) = version else {
        return if packet == PacketType::Connect {
            Ok(())
        } else {
            Err(Protocol("the first packet is not CONNECT [MQTT-3.1.0-1]"))
        };
    };
    match packet {
        PacketType::Connect => Err(SECOND_CONNECT),
        PacketType::Auth if version < Version::V5 => {
            Err(Malformed("packet type 15 is forbidden before MQTT 5"))
        }
        // 3.1 calls the flags unused, and lets a client set DUP when it repeats SUBSCRIBE or PUBREL.
        _ if version == Version::V3_1 || first == packet.first_byte() => Ok(()),
        _ => Err(Malformed("reserved flags of the fixed header are wrong [MQTT-2.1.3-1]")),
    }
}

// === PUBLISH ===

#[derive(Clone, Copy)]
struct PublishHeader {
    dup: bool,
    qos: QoS,
    retain: bool,
}

impl PublishHeader {
    #[inline]
    fn from_first_byte(first: u8) -> Result<Self, DecodeError> {
        let qos = match first & 0b0110 {
            0b0000 => QoS::AtMostOnce,
            0b0010 => QoS::AtLeastOnce,
            0b0100 => QoS::ExactlyOnce,
            _ => return Err(Malformed("PUBLISH has QoS 3 [MQTT-3.3.1-4]")),
        };
        let dup = first & 0b1000 != 0;
        if dup && qos == QoS::AtMostOnce {
            return Err(Malformed("PUBLISH has DUP with QoS 0 [MQTT-3.3.1-2]"));
        }
        Ok(Self { dup, qos, retain: first & 1 != 0 })
    }
}

#[inline]
fn publish(bytes: &[u8], version: Version, header: PublishHeader) -> Result<Publish<'_>, DecodeError> {
    let mut reader = Reader::new(bytes);
    let topic = reader.topic_name()?;
    let packet_id = if header.qos == QoS::AtMostOnce { 0 } else { packet_id(&mut reader)? };
    let properties = if version == Version::V5 {
        Properties::decode(&mut reader, PropertyScope::Packet(PacketType::Publish))?
    } else {
        Properties::EMPTY
    };
    if topic.is_empty() {
        if version < Version::V5 {
            return Err(Malformed("topic name is empty [MQTT-4.7.3-1]"));
        }
        if !properties.contains(PropertyId::TopicAlias) {
            return Err(Protocol("topic name is empty and there is no topic alias [3.3.2.1]"));
        }
    }
    let PublishHeader { dup, qos, retain } = header;
    Ok(Publish { dup, qos, retain, topic, packet_id, properties, payload: reader.rest() })
}

impl Publish<'_> {
    /// False when the payload says that it is text and is not UTF-8. A receiver may check this [MQTT 5,
    /// 3.3.2.3.2]; it is not done while decoding because the answer is a PUBACK or PUBREC with 0x99, and because
    /// it reads the whole payload.
    pub fn payload_format_ok(&self) -> bool {
        payload_format_ok(self.properties, self.payload)
    }
}

impl Will<'_> {
    /// As [`Publish::payload_format_ok`]; the answer is a CONNACK with 0x99.
    pub fn payload_format_ok(&self) -> bool {
        payload_format_ok(self.properties, self.payload)
    }
}

fn payload_format_ok(properties: Properties<'_>, payload: &[u8]) -> bool {
    properties.payload_format_indicator() != Some(true) || std::str::from_utf8(payload).is_ok()
}

// === the other packets ===

#[inline]
fn packet_id(reader: &mut Reader<'_>) -> Result<u16, DecodeError> {
    match reader.u16()? {
        0 => Err(PACKET_ID_0),
        id => Ok(id),
    }
}

#[inline]
fn properties<'a>(
    reader: &mut Reader<'a>,
    version: Version,
    scope: PropertyScope,
) -> Result<Properties<'a>, DecodeError> {
    if version == Version::V5 { Properties::decode(reader, scope) } else { Ok(Properties::EMPTY) }
}

fn reason(code: u8, packet: PacketType) -> Result<ReasonCode, DecodeError> {
    let reason = ReasonCode(code);
    if reason.allowed_in(packet) {
        Ok(reason)
    } else {
        Err(Protocol("reason code is not one of this packet's [2.4]"))
    }
}

/// CONNECT's flags [MQTT 5, 3.1.2.3].
mod flag {
    pub(super) const RESERVED: u8 = 0x01;
    pub(super) const CLEAN_START: u8 = 0x02;
    pub(super) const WILL: u8 = 0x04;
    pub(super) const WILL_QOS: u8 = 0x18;
    pub(super) const WILL_RETAIN: u8 = 0x20;
    pub(super) const PASSWORD: u8 = 0x40;
    pub(super) const USERNAME: u8 = 0x80;
}

/// The top bit of the protocol level: "I am a bridge", a habit of mosquitto's for 3.x.
pub(crate) const BRIDGE_BIT: u8 = 0x80;

/// Protocol name and level to version and bridge bit.
fn protocol(name: &[u8], level: u8) -> Result<(Version, bool), DecodeError> {
    match (name, level) {
        (b"MQTT", 5) => Ok((Version::V5, false)),
        (b"MQTT", 4) => Ok((Version::V3_1_1, false)),
        (b"MQIsdp", 3) => Ok((Version::V3_1, false)),
        (b"MQTT", level) if level == 4 | BRIDGE_BIT => Ok((Version::V3_1_1, true)),
        (b"MQIsdp", level) if level == 3 | BRIDGE_BIT => Ok((Version::V3_1, true)),
        (b"MQTT" | b"MQIsdp", level) => Err(DecodeError::UnsupportedVersion(level)),
        _ => Err(Malformed("protocol name is neither MQTT nor MQIsdp [MQTT-3.1.2-1]")),
    }
}

fn connect(bytes: &[u8], first: u8) -> Result<Connect<'_>, DecodeError> {
    let mut reader = Reader::new(bytes);
    let name = reader.binary()?;
    let level = reader.u8()?;
    let (version, bridge) = protocol(name, level)?;
    // What 3.1 calls unused is ignored there (see the crate's documentation).
    let strict = version > Version::V3_1;
    if strict && first != PacketType::Connect.first_byte() {
        return Err(Malformed("reserved flags of the fixed header are wrong [MQTT-2.1.3-1]"));
    }

    let flags = reader.u8()?;
    if strict && flags & flag::RESERVED != 0 {
        return Err(Malformed("reserved flag of CONNECT is set [MQTT-3.1.2-3]"));
    }
    let has_will = flags & flag::WILL != 0;
    if strict && !has_will && flags & flag::WILL_QOS != 0 {
        return Err(Malformed("will QoS without a will [MQTT-3.1.2-11]"));
    }
    if strict && !has_will && flags & flag::WILL_RETAIN != 0 {
        return Err(Malformed("will retain without a will [MQTT-3.1.2-13]"));
    }
    if version < Version::V5 && flags & (flag::USERNAME | flag::PASSWORD) == flag::PASSWORD {
        return Err(Malformed("password without user name [3.1.1, MQTT-3.1.2-22]"));
    }

    let keep_alive = reader.u16()?;
    let connect_properties = properties(&mut reader, version, PropertyScope::Packet(PacketType::Connect))?;
    let client_id = reader.string()?;

    let will = if has_will {
        let qos = QoS::try_from((flags & flag::WILL_QOS) >> 3)
            .map_err(|_| Malformed("will QoS is 3 [MQTT-3.1.2-12]"))?;
        let will_properties = properties(&mut reader, version, PropertyScope::Will)?;
        let topic = reader.topic_name()?;
        if topic.is_empty() {
            return Err(Malformed("will topic is empty [MQTT-4.7.3-1]"));
        }
        let retain = flags & flag::WILL_RETAIN != 0;
        Some(Will { qos, retain, properties: will_properties, topic, payload: reader.binary()? })
    } else {
        None
    };

    // In 3.1 the remaining length outweighs the flags: clients of its predecessor set them without the fields.
    let present = |reader: &Reader<'_>, bit: u8| flags & bit != 0 && (strict || !reader.is_empty());
    let username = if present(&reader, flag::USERNAME) { Some(reader.string()?) } else { None };
    let password = if present(&reader, flag::PASSWORD) { Some(reader.binary()?) } else { None };
    reader.finish()?;
    let clean_start = flags & flag::CLEAN_START != 0;
    Ok(Connect {
        version,
        clean_start,
        bridge,
        keep_alive,
        properties: connect_properties,
        client_id,
        will,
        username,
        password,
    })
}

fn connack(bytes: &[u8], version: Version) -> Result<Connack<'_>, DecodeError> {
    let mut reader = Reader::new(bytes);
    let flags = reader.u8()?;
    let code = reader.u8()?;
    // 3.1 has no session present: its first byte is unused.
    let session_present = version > Version::V3_1 && flags & 1 != 0;
    if version > Version::V3_1 && flags & !1 != 0 {
        return Err(Malformed("reserved flags of CONNACK are set [MQTT-3.2.2-1]"));
    }
    let reason = if version == Version::V5 {
        reason(code, PacketType::Connack)?
    } else {
        ReasonCode::from_connack_v3(code)
            .ok_or(Malformed("return code of CONNACK is reserved [3.1.1, 3.2.2.3]"))?
    };
    if session_present && reason.is_error() {
        return Err(Protocol("CONNACK refuses and says session present [MQTT-3.2.2-6]"));
    }
    let properties = properties(&mut reader, version, PropertyScope::Packet(PacketType::Connack))?;
    reader.finish()?;
    Ok(Connack { session_present, reason, properties })
}

#[inline]
fn ack(bytes: &[u8], version: Version, packet: PacketType) -> Result<Ack<'_>, DecodeError> {
    let mut reader = Reader::new(bytes);
    let packet_id = packet_id(&mut reader)?;
    let (reason, properties) = reason_and_properties(reader, version, packet)?;
    Ok(Ack { packet_id, reason, properties })
}

/// The tail that ends most packets of MQTT 5: nothing (success), a reason code, or a reason code and properties.
#[inline]
fn reason_and_properties(
    mut reader: Reader<'_>,
    version: Version,
    packet: PacketType,
) -> Result<(ReasonCode, Properties<'_>), DecodeError> {
    if version < Version::V5 || reader.is_empty() {
        reader.finish()?;
        return Ok((ReasonCode::SUCCESS, Properties::EMPTY));
    }
    let reason = reason(reader.u8()?, packet)?;
    if reader.is_empty() {
        return Ok((reason, Properties::EMPTY));
    }
    let properties = Properties::decode(&mut reader, PropertyScope::Packet(packet))?;
    reader.finish()?;
    Ok((reason, properties))
}

fn subscribe(bytes: &[u8], version: Version) -> Result<Subscribe<'_>, DecodeError> {
    let mut reader = Reader::new(bytes);
    let packet_id = packet_id(&mut reader)?;
    let properties = properties(&mut reader, version, PropertyScope::Packet(PacketType::Subscribe))?;
    let filters = SubscribeFilters::decode(reader, version)?;
    Ok(Subscribe { packet_id, properties, filters })
}

fn suback(bytes: &[u8], version: Version) -> Result<Suback<'_>, DecodeError> {
    let mut reader = Reader::new(bytes);
    let packet_id = packet_id(&mut reader)?;
    let properties = properties(&mut reader, version, PropertyScope::Packet(PacketType::Suback))?;
    let reasons = reader.rest();
    if reasons.is_empty() {
        return Err(Protocol("SUBACK without a reason code [3.9.3]"));
    }
    for &code in reasons {
        if version == Version::V5 {
            reason(code, PacketType::Suback)?;
        } else if !matches!(code, 0..=2 | 0x80) {
            return Err(Malformed("return code of SUBACK is reserved [3.1.1, MQTT-3.9.3-2]"));
        }
    }
    Ok(Suback { packet_id, properties, reasons })
}

fn unsubscribe(bytes: &[u8], version: Version) -> Result<Unsubscribe<'_>, DecodeError> {
    let mut reader = Reader::new(bytes);
    let packet_id = packet_id(&mut reader)?;
    let properties = properties(&mut reader, version, PropertyScope::Packet(PacketType::Unsubscribe))?;
    let filters = UnsubscribeFilters::decode(reader)?;
    Ok(Unsubscribe { packet_id, properties, filters })
}

fn unsuback(bytes: &[u8], version: Version) -> Result<Suback<'_>, DecodeError> {
    let mut reader = Reader::new(bytes);
    let packet_id = packet_id(&mut reader)?;
    if version < Version::V5 {
        reader.finish()?;
        return Ok(Suback { packet_id, properties: Properties::EMPTY, reasons: &[] });
    }
    let properties = Properties::decode(&mut reader, PropertyScope::Packet(PacketType::Unsuback))?;
    let reasons = reader.rest();
    if reasons.is_empty() {
        return Err(Protocol("UNSUBACK without a reason code [3.11.3]"));
    }
    for &code in reasons {
        reason(code, PacketType::Unsuback)?;
    }
    Ok(Suback { packet_id, properties, reasons })
}

fn disconnect(bytes: &[u8], version: Version) -> Result<Disconnect<'_>, DecodeError> {
    let (reason, properties) = reason_and_properties(Reader::new(bytes), version, PacketType::Disconnect)?;
    Ok(Disconnect { reason, properties })
}

fn auth(bytes: &[u8]) -> Result<Auth<'_>, DecodeError> {
    let (reason, properties) = reason_and_properties(Reader::new(bytes), Version::V5, PacketType::Auth)?;
    // Only the empty form (success, nothing to say) does without a method [3.15.2.1].
    if properties.is_empty() && !bytes.is_empty() {
        return Err(Protocol("AUTH without an authentication method [3.15.2.2.2]"));
    }
    Ok(Auth { reason, properties })
}
