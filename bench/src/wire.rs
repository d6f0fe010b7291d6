//! The MQTT that a load generator needs, and no more: its own framing, on purpose.
//!
//! # Design
//! - **Not the product's codec.** A fault shared by both ends of a benchmark would measure as correct.
//! - **Written once, patched per message.** A PUBLISH is a [`Template`]: fixed header, topic and properties never change,
//!   so sending costs one `memcpy` of the frame and two or three writes of integers.
//! - **Read in place.** [`next`] borrows the receive buffer and looks only at what the generator counts; what it does
//!   not know ([`Incoming::Other`]) is skipped by its length.
//!
//! Frame layout [MQTT 5, 2.1]: `type << 4 | flags`, remaining length (1 to 4 bytes, 7 bits each, low first), body.

use std::ops::Range;

use thiserror::Error;

/// Protocol version of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// 3.1.1 (protocol level 4)
    V3,
    /// 5 (protocol level 5)
    V5,
}

/// What the broker sent is not MQTT as this generator knows it. The connection is of no use after it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WireError {
    /// A remaining length of more than four bytes.
    #[error("malformed remaining length")]
    RemainingLength,
    /// A packet whose fields run past its end.
    #[error("packet type {0} is cut short")]
    Short(u8),
}

/// Which acknowledgement: its packet type [MQTT 5, 2.1.2].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ack {
    /// Of a QoS 1 PUBLISH.
    Puback = 4,
    /// Of a QoS 2 PUBLISH: responsibility has passed.
    Pubrec = 5,
    /// The sender has forgotten the message.
    Pubrel = 6,
    /// The receiver has forgotten the packet id.
    Pubcomp = 7,
}

/// One packet from the broker.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// CONNACK: `reason` 0 is success; `receive_max` is 65,535 when not said (3.1.1 cannot say it).
    Connack {
        /// Return code or reason code.
        reason: u8,
        /// How many QoS > 0 PUBLISH packets the broker takes at once.
        receive_max: u16,
    },
    /// SUBACK of one filter: below 0x80 the granted QoS.
    Suback {
        /// Granted QoS, or the refusal.
        reason: u8,
    },
    /// A delivery.
    Publish {
        /// 0, 1 or 2.
        qos: u8,
        /// 0 for QoS 0.
        packet_id: u16,
        /// The application message.
        payload: &'a [u8],
    },
    /// PUBACK, PUBREC, PUBREL or PUBCOMP.
    Ack {
        /// Which.
        kind: Ack,
        /// Of which message.
        packet_id: u16,
        /// 0 when not said.
        reason: u8,
    },
    /// DISCONNECT [MQTT 5, 3.14]: the broker closes.
    Disconnect {
        /// Why.
        reason: u8,
    },
    /// PINGRESP.
    Pingresp,
    /// Any other packet.
    Other,
}

/// What a client says of itself in its CONNECT.
#[derive(Debug, Clone, Copy)]
pub struct Hello<'a> {
    /// Protocol version.
    pub version: Version,
    /// Client identifier.
    pub client_id: &'a str,
    /// The session begins empty and ends with the connection; otherwise it outlives it by an hour (5) or until the
    /// broker forgets it (3.1.1).
    pub clean: bool,
    /// In seconds; 0: off.
    pub keep_alive: u16,
    /// User name and password.
    pub user: Option<(&'a str, &'a str)>,
}

/// Appends a CONNECT [MQTT 5, 3.1].
pub fn connect(out: &mut Vec<u8>, hello: &Hello<'_>) {
    let mut body = Vec::with_capacity(32 + hello.client_id.len());
    string(&mut body, "MQTT");
    let flags = u8::from(hello.clean) << 1 | if hello.user.is_some() { 0xc0 } else { 0 };
    body.extend([if hello.version == Version::V5 { 5 } else { 4 }, flags]);
    body.extend(hello.keep_alive.to_be_bytes());
    if hello.version == Version::V5 {
        if hello.clean {
            body.push(0);
        } else {
            body.extend([5, 0x11]); // Session Expiry Interval
            body.extend(3600_u32.to_be_bytes());
        }
    }
    string(&mut body, hello.client_id);
    if let Some((name, password)) = hello.user {
        string(&mut body, name);
        string(&mut body, password);
    }
    frame(out, 0x10, &body);
}

/// Appends a SUBSCRIBE of one filter with packet id 1.
pub fn subscribe(out: &mut Vec<u8>, version: Version, filter: &str, qos: u8) {
    let mut body = vec![0, 1];
    if version == Version::V5 {
        body.push(0);
    }
    string(&mut body, filter);
    body.push(qos);
    frame(out, 0x82, &body);
}

/// Appends an acknowledgement with reason 0: four bytes in every version.
pub fn ack(out: &mut Vec<u8>, kind: Ack, packet_id: u16) {
    let flags = if kind == Ack::Pubrel { 2 } else { 0 };
    let id = packet_id.to_be_bytes();
    out.extend([((kind as u8) << 4) | flags, 2, id[0], id[1]]);
}

/// Appends a PINGREQ.
pub fn ping(out: &mut Vec<u8>) {
    out.extend([0xc0, 0]);
}

/// Appends a DISCONNECT: normal.
pub fn disconnect(out: &mut Vec<u8>) {
    out.extend([0xe0, 0]);
}

/// A PUBLISH of fixed topic and size, ready but for its packet id and the head of its payload.
#[derive(Debug, Clone)]
pub struct Template {
    bytes: Vec<u8>,
    packet_id_at: Option<usize>,
    payload_at: usize,
}

impl Template {
    /// A PUBLISH to `topic` with a payload of `size` bytes of filler, the last ones being `end`.
    #[must_use]
    pub fn new(version: Version, topic: &str, qos: u8, size: usize, end: &str) -> Self {
        let mut body = Vec::with_capacity(topic.len() + size + 8);
        string(&mut body, topic);
        let packet_id_at = (qos > 0).then_some(body.len());
        if qos > 0 {
            body.extend([0, 0]);
        }
        if version == Version::V5 {
            body.push(0);
        }
        let payload_at = body.len();
        body.extend((0..size.saturating_sub(end.len())).map(|index| b'a' + (index % 23) as u8));
        body.extend_from_slice(end.as_bytes());
        let mut bytes = Vec::with_capacity(body.len() + 5);
        frame(&mut bytes, 0x30 | (qos << 1), &body);
        let head = bytes.len() - body.len();
        Self { bytes, packet_id_at: packet_id_at.map(|at| at + head), payload_at: payload_at + head }
    }

    /// Appends the frame with this packet id (ignored at QoS 0) and these first payload bytes.
    pub fn write(&self, out: &mut Vec<u8>, packet_id: u16, head: &[u8]) {
        let start = out.len();
        out.extend_from_slice(&self.bytes);
        if let Some(at) = self.packet_id_at {
            out[start + at..start + at + 2].copy_from_slice(&packet_id.to_be_bytes());
        }
        let at = start + self.payload_at;
        out[at..at + head.len()].copy_from_slice(head);
    }

    /// Length of one frame, in bytes.
    #[must_use]
    pub fn frame_len(&self) -> usize {
        self.bytes.len()
    }
}

/// The first packet in `bytes` and the length of its frame; `None` when it is not whole yet.
///
/// # Errors
/// The connection cannot be read further.
pub fn next(bytes: &[u8], version: Version) -> Result<Option<(Incoming<'_>, usize)>, WireError> {
    let Some(body) = body_range(bytes)? else { return Ok(None) };
    if bytes.len() < body.end {
        return Ok(None);
    }
    let used = body.end;
    let (kind, flags, body) = (bytes[0] >> 4, bytes[0] & 15, &bytes[body]);
    let packet = parse(kind, flags, body, version).ok_or(WireError::Short(kind))?;
    Ok(Some((packet, used)))
}

/// Where the body of the first frame lies; `None` when its length is not whole yet.
fn body_range(bytes: &[u8]) -> Result<Option<Range<usize>>, WireError> {
    let Some((length, used)) = varint(bytes.get(1..).unwrap_or(&[]))? else { return Ok(None) };
    Ok(Some(1 + used..1 + used + length))
}

/// A variable byte integer and its size [MQTT 5, 1.5.5]; `None` when it is cut off.
fn varint(bytes: &[u8]) -> Result<Option<(usize, usize)>, WireError> {
    let mut value = 0;
    for (index, byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Ok(Some((value, index + 1)));
        }
    }
    if bytes.len() < 4 { Ok(None) } else { Err(WireError::RemainingLength) }
}

fn parse(kind: u8, flags: u8, body: &[u8], version: Version) -> Option<Incoming<'_>> {
    let id = |at: usize| Some(u16::from_be_bytes([*body.get(at)?, *body.get(at + 1)?]));
    let acknowledgement = |kind| {
        Some(Incoming::Ack { kind, packet_id: id(0)?, reason: body.get(2).copied().unwrap_or_default() })
    };
    match kind {
        2 => {
            let receive_max = if version == Version::V5 { receive_max(body.get(2..)?) } else { None };
            Some(Incoming::Connack { reason: *body.get(1)?, receive_max: receive_max.unwrap_or(u16::MAX) })
        }
        3 => {
            let mut at = 2 + usize::from(id(0)?);
            let qos = (flags >> 1) & 3;
            let packet_id = if qos > 0 {
                at += 2;
                id(at - 2)?
            } else {
                0
            };
            if version == Version::V5 {
                let (length, used) = varint(body.get(at..)?).ok()??;
                at += length + used;
            }
            Some(Incoming::Publish { qos, packet_id, payload: body.get(at..)? })
        }
        4 => acknowledgement(Ack::Puback),
        5 => acknowledgement(Ack::Pubrec),
        6 => acknowledgement(Ack::Pubrel),
        7 => acknowledgement(Ack::Pubcomp),
        9 => Some(Incoming::Suback { reason: *body.last().filter(|_| body.len() > 2)? }),
        13 => Some(Incoming::Pingresp),
        14 => Some(Incoming::Disconnect { reason: body.first().copied().unwrap_or_default() }),
        _ => Some(Incoming::Other),
    }
}

/// Receive Maximum among the properties of a CONNACK, whose length comes first.
fn receive_max(bytes: &[u8]) -> Option<u16> {
    let (length, used) = varint(bytes).ok()??;
    let mut rest = bytes.get(used..used + length)?;
    while let Some((&identifier, value)) = rest.split_first() {
        // Sizes by identifier [MQTT 5, 3.2.2.3]; of those with a length of their own, the length and what it counts.
        let size = match identifier {
            0x21 => return Some(u16::from_be_bytes([*value.first()?, *value.get(1)?])),
            0x11 | 0x27 => 4,
            0x13 | 0x22 => 2,
            0x24 | 0x25 | 0x28 | 0x29 | 0x2a => 1,
            0x12 | 0x15 | 0x16 | 0x1a | 0x1c | 0x1f => text_len(value)?,
            0x26 => {
                let name = text_len(value)?;
                name + text_len(value.get(name..)?)?
            }
            _ => return None,
        };
        rest = value.get(size..)?;
    }
    None
}

fn text_len(value: &[u8]) -> Option<usize> {
    Some(2 + usize::from(u16::from_be_bytes([*value.first()?, *value.get(1)?])))
}

fn string(out: &mut Vec<u8>, text: &str) {
    let length = u16::try_from(text.len()).expect("the generator's own names are short");
    out.extend(length.to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn frame(out: &mut Vec<u8>, first: u8, body: &[u8]) {
    out.push(first);
    let mut rest = body.len();
    loop {
        let low = (rest & 0x7f) as u8;
        rest >>= 7;
        out.push(if rest > 0 { low | 0x80 } else { low });
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(body);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn connect_is_the_packet_of_the_standard() {
        let mut out = Vec::new();
        let hello = Hello { version: Version::V3, client_id: "a", clean: true, keep_alive: 0, user: None };
        connect(&mut out, &hello);
        assert_eq!(out, [0x10, 13, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 0, 0, 1, b'a']);
        out.clear();
        connect(&mut out, &Hello { version: Version::V5, clean: false, ..hello });
        assert_eq!(
            out,
            [0x10, 19, 0, 4, b'M', b'Q', b'T', b'T', 5, 0, 0, 0, 5, 0x11, 0, 0, 0x0e, 0x10, 0, 1, b'a']
        );
        out.clear();
        connect(&mut out, &Hello { keep_alive: 258, user: Some(("u", "pw")), ..hello });
        assert_eq!(
            out,
            [0x10, 20, 0, 4, b'M', b'Q', b'T', b'T', 4, 0xc2, 1, 2, 0, 1, b'a', 0, 1, b'u', 0, 2, b'p', b'w']
        );
    }

    #[test]
    fn what_a_template_writes_is_read_back() {
        for version in [Version::V3, Version::V5] {
            for qos in 0..=2_u8 {
                for size in [8, 64, 100, 127, 128, 16_384, 300_000] {
                    let template = Template::new(version, "bench/0", qos, size, "");
                    let mut out = Vec::new();
                    template.write(&mut out, 7, b"12345678");
                    template.write(&mut out, 8, b"abcdefgh");
                    assert_eq!(out.len(), 2 * template.frame_len());
                    let (first, used) = next(&out, version).unwrap().unwrap();
                    let Incoming::Publish { qos: read, packet_id, payload } = first else {
                        panic!("{first:?}")
                    };
                    assert_eq!((read, packet_id, payload.len()), (qos, if qos > 0 { 7 } else { 0 }, size));
                    assert_eq!(&payload[..8], b"12345678");
                    let (second, _) = next(&out[used..], version).unwrap().unwrap();
                    let Incoming::Publish { payload, .. } = second else { panic!("{second:?}") };
                    assert_eq!(&payload[..8], b"abcdefgh");
                    for cut in [0, 1, 2, used - 1] {
                        assert_eq!(next(&out[..cut], version), Ok(None), "cut at {cut}");
                    }
                }
            }
        }
    }

    #[test]
    fn answers_of_brokers() {
        let check = |bytes: &[u8], version, expect| {
            assert_eq!(next(bytes, version).unwrap(), Some((expect, bytes.len())), "{bytes:?}");
        };
        check(&[0x20, 2, 0, 5], Version::V3, Incoming::Connack { reason: 5, receive_max: 65535 });
        check(&[0x20, 3, 0, 0, 0], Version::V5, Incoming::Connack { reason: 0, receive_max: 65535 });
        check(
            &[0x20, 15, 0, 0, 12, 0x22, 0, 10, 0x12, 0, 1, b'x', 0x24, 1, 0x21, 1, 0],
            Version::V5,
            Incoming::Connack { reason: 0, receive_max: 256 },
        );
        check(
            &[0x20, 13, 0, 0, 10, 0x26, 0, 1, b'k', 0, 1, b'v', 0x21, 0, 20],
            Version::V5,
            Incoming::Connack { reason: 0, receive_max: 20 },
        );
        check(&[0x90, 3, 0, 1, 1], Version::V3, Incoming::Suback { reason: 1 });
        check(&[0x90, 4, 0, 1, 0, 0x87], Version::V5, Incoming::Suback { reason: 0x87 });
        check(&[0x40, 2, 1, 2], Version::V3, Incoming::Ack { kind: Ack::Puback, packet_id: 258, reason: 0 });
        check(
            &[0x50, 3, 0, 9, 0x97],
            Version::V5,
            Incoming::Ack { kind: Ack::Pubrec, packet_id: 9, reason: 0x97 },
        );
        check(&[0xe0, 1, 0x8e], Version::V5, Incoming::Disconnect { reason: 0x8e });
        check(&[0xd0, 0], Version::V3, Incoming::Pingresp);
        check(&[0xb0, 2, 0, 1], Version::V3, Incoming::Other);
    }

    #[test]
    fn broken_packets_are_refused() {
        assert_eq!(next(&[0x40, 1, 0], Version::V3), Err(WireError::Short(4)));
        assert_eq!(next(&[0x30, 1, 0], Version::V3), Err(WireError::Short(3)));
        assert_eq!(next(&[0x30, 0x80, 0x80, 0x80, 0x80], Version::V3), Err(WireError::RemainingLength));
    }
}
