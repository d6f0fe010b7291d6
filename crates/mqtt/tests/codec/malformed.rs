//! Frames that must be refused, and with which reason.

use crate::{ANY, V5, V31, V311};
use ferrule_mqtt::*;

const MALFORMED: ReasonCode = ReasonCode::MALFORMED_PACKET;
const PROTOCOL: ReasonCode = ReasonCode::PROTOCOL_ERROR;

/// Each entry: connection, frame, reason, and a part of the message.
fn check(table: &[(Option<Version>, &[u8], ReasonCode, &str)]) {
    for (version, bytes, reason, text) in table {
        let error = match decode(bytes, *version, ANY) {
            Err(error) => error,
            other => panic!("{bytes:02X?} ({text}): {other:?}"),
        };
        assert_eq!(error.reason(), *reason, "{bytes:02X?}: {error}");
        assert!(error.to_string().contains(text), "{bytes:02X?}: {error} lacks {text}");
    }
}

#[test]
fn fixed_header() {
    check(&[
        (Some(V5), b"\x00\x00", MALFORMED, "type 0"),
        (None, b"\x0F\x00", MALFORMED, "type 0"),
        // Refused at the first byte: nothing else has to arrive.
        (None, b"G", PROTOCOL, "not CONNECT"),
        (None, b"\x30", PROTOCOL, "not CONNECT"),
        (None, b"\xC0\x00", PROTOCOL, "not CONNECT"),
        (Some(V5), b"\x10", PROTOCOL, "second CONNECT"),
        (Some(V311), b"\xF0", MALFORMED, "type 15"),
        (Some(V31), b"\xF0", MALFORMED, "type 15"),
        (Some(V311), b"\xC1", MALFORMED, "flags"),
        (Some(V5), b"\x41\x02\0\x01", MALFORMED, "flags"),
        (Some(V5), b"\x60\x02\0\x01", MALFORMED, "flags"),
        (Some(V5), b"\x80\x06\0\x01\0\0\x01a\0", MALFORMED, "flags"),
        (Some(V311), b"\xA0\x05\0\x01\0\x01a", MALFORMED, "flags"),
        (Some(V311), b"\xE2\0", MALFORMED, "flags"),
        (Some(V5), b"\x36", MALFORMED, "QoS 3"),
        (Some(V31), b"\x37", MALFORMED, "QoS 3"),
        (Some(V5), b"\x38", MALFORMED, "DUP"),
        (Some(V5), b"\x30\xFF\xFF\xFF\xFF", MALFORMED, "four bytes"),
        (None, b"\x10\x80\x80\x80\x80\x01", MALFORMED, "four bytes"),
        (Some(V5), b"\xC0\x80\x00", MALFORMED, "shortest"),
        (Some(V5), b"\x30\x85\x00\0\x01a\0!", MALFORMED, "shortest"),
        (None, b"\x10\x8F\0\0\x04MQTT\x05\x02\0\x3C\0\0\x02c1", MALFORMED, "shortest"),
    ]);
    // 3.1.1 does not ask for the shortest form.
    assert_eq!(decode(b"\xC0\x80\x00", Some(V311), ANY), Ok(Some((Packet::Pingreq, 3))));
    // The size is judged before the body arrives.
    assert_eq!(
        decode(b"\x30\xFF\xFF\xFF\x7F", Some(V5), 1000),
        Err(DecodeError::TooLarge { size: 268_435_460, max: 1000 })
    );
    assert_eq!(DecodeError::TooLarge { size: 2, max: 1 }.reason(), ReasonCode::PACKET_TOO_LARGE);
}

#[test]
fn connect() {
    check(&[
        (None, b"\x11\x0E\0\x04MQTT\x04\x02\0\x3C\0\x02c1", MALFORMED, "flags"),
        (None, b"\x10\x0E\0\x04MQTX\x04\x02\0\x3C\0\x02c1", MALFORMED, "protocol name"),
        (None, b"\x10\x0E\0\x04mqtt\x04\x02\0\x3C\0\x02c1", MALFORMED, "protocol name"),
        (None, b"\x10\x0E\0\x04MQTT\x03\x02\0\x3C\0\x02c1", ReasonCode(0x84), "level 3"),
        (None, b"\x10\x10\0\x06MQIsdp\x04\x02\0\x3C\0\x02c1", ReasonCode(0x84), "level 4"),
        (None, b"\x10\x0E\0\x04MQTT\x06\x02\0\x3C\0\x02c1", ReasonCode(0x84), "level 6"),
        (None, b"\x10\x0F\0\x04MQTT\x85\x02\0\x3C\0\0\x02c1", ReasonCode(0x84), "level 133"),
        (None, b"\x10\x0E\0\x04MQTT\x04\x03\0\x3C\0\x02c1", MALFORMED, "reserved flag"),
        (None, b"\x10\x0F\0\x04MQTT\x05\x03\0\x3C\0\0\x02c1", MALFORMED, "reserved flag"),
        (None, b"\x10\x0E\0\x04MQTT\x04\x0A\0\x3C\0\x02c1", MALFORMED, "will QoS without"),
        (None, b"\x10\x0E\0\x04MQTT\x04\x22\0\x3C\0\x02c1", MALFORMED, "will retain without"),
        (None, b"\x10\x13\0\x04MQTT\x04\x1E\0\x3C\0\x02c1\0\x01w\0\0", MALFORMED, "will QoS is 3"),
        (None, b"\x10\x13\0\x04MQTT\x04\x06\0\x3C\0\x02c1\0\x01+\0\0", MALFORMED, "wildcard"),
        (None, b"\x10\x12\0\x04MQTT\x04\x06\0\x3C\0\x02c1\0\0\0\0", MALFORMED, "will topic is empty"),
        (None, b"\x10\x11\0\x04MQTT\x04\x42\0\x3C\0\x02c1\0\x01p", MALFORMED, "MQTT-3.1.2-22"),
        (None, b"\x10\x13\0\x06MQIsdp\x03\x42\0\x3C\0\x02c1\0\x01p", MALFORMED, "MQTT-3.1.2-22"),
        (None, b"\x10\x0F\0\x04MQTT\x04\x02\0\x3C\0\x02c1!", MALFORMED, "follow"),
        (None, b"\x10\x0D\0\x04MQTT\x04\x02\0\x3C\0\x02c", MALFORMED, "longer than the packet"),
        (None, b"\x10\x0A\0\x04MQTT\x04\x02\0\x3C", MALFORMED, "longer than the packet"),
        (None, b"\x10\x0E\0\x04MQTT\x04\x82\0\x3C\0\x02c1", MALFORMED, "longer than the packet"),
        (None, b"\x10\x0E\0\x04MQTT\x04\x02\0\x3C\0\x02c\xFF", MALFORMED, "UTF-8"),
        (None, b"\x10\x0E\0\x04MQTT\x04\x02\0\x3C\0\x02c\0", MALFORMED, "U+0000"),
        (None, b"\x10\x10\0\x04MQTT\x04\x82\0\x3C\0\0\0\x02\xC3\x28", MALFORMED, "UTF-8"),
        (None, b"\x10\0", MALFORMED, "longer than the packet"),
    ]);
}

/// Properties in CONNECT, CONNACK, PUBLISH and the others: place, number, range.
#[test]
fn properties() {
    let connect = |properties: &[u8]| {
        let mut body = b"\0\x04MQTT\x05\x02\0\x3C".to_vec();
        body.push(u8::try_from(properties.len()).unwrap());
        body.extend_from_slice(properties);
        body.extend_from_slice(b"\0\0");
        [&[0x10, u8::try_from(body.len()).unwrap()], &body[..]].concat()
    };
    for (properties, reason, text) in [
        (&b"\x21\0\0"[..], PROTOCOL, "receive maximum"),
        (b"\x27\0\0\0\0", PROTOCOL, "maximum packet size"),
        (b"\x17\x02", PROTOCOL, "neither 0 nor 1"),
        (b"\x19\xFF", PROTOCOL, "neither 0 nor 1"),
        (b"\x11\0\0\0\0\x11\0\0\0\0", PROTOCOL, "more than once"),
        (b"\x16\0\x01a", PROTOCOL, "without a method"),
        (b"\x0B\x01", MALFORMED, "not permitted"),
        (b"\x23\0\x01", MALFORMED, "not permitted"),
        (b"\x18\0\0\0\0", MALFORMED, "not permitted"),
        (b"\x00", MALFORMED, "unknown property"),
        (b"\x04\0", MALFORMED, "unknown property"),
        (b"\x7F", MALFORMED, "unknown property"),
        (b"\x80\x01", MALFORMED, "unknown property"),
        (b"\xFF\xFF\xFF\x7F", MALFORMED, "unknown property"),
        (b"\x21\0", MALFORMED, "longer than the packet"),
        (b"\x15\0\x05a", MALFORMED, "longer than the packet"),
        (b"\x26\0\x01a", MALFORMED, "longer than the packet"),
        (b"\x26\0\x01a\0\x01\xFF", MALFORMED, "UTF-8"),
        (b"\x26\0\x01\0\0\0", MALFORMED, "U+0000"),
    ] {
        check(&[(None, &connect(properties), reason, text)]);
    }
    // User properties may repeat everywhere.
    assert!(decode(&connect(b"\x26\0\0\0\0\x26\0\0\0\0"), None, ANY).is_ok());

    check(&[
        // The property length: too long for the packet, too long for the encoding, not the shortest.
        (Some(V5), b"\x30\x04\0\x01a\x01", MALFORMED, "longer than the packet"),
        (Some(V5), b"\x30\x08\0\x01a\xFF\xFF\xFF\xFF\x01", MALFORMED, "four bytes"),
        (Some(V5), b"\x30\x05\0\x01a\x80\0", MALFORMED, "shortest"),
        (Some(V5), b"\x30\x03\0\x01a", MALFORMED, "longer than the packet"),
        (Some(V5), b"\x30\x07\0\x01a\x03\x23\0\0", ReasonCode::TOPIC_ALIAS_INVALID, "alias 0"),
        (Some(V5), b"\x30\x0A\0\x01a\x06\x23\0\x01\x23\0\x01", PROTOCOL, "more than once"),
        (Some(V5), b"\x30\x06\0\x01a\x02\x0B\0", PROTOCOL, "subscription identifier is 0"),
        (Some(V5), b"\x30\x07\0\x01a\x03\x0B\x80\0", MALFORMED, "shortest"),
        (Some(V5), b"\x30\x0A\0\x01a\x06\x0B\xFF\xFF\xFF\xFF\x7F", MALFORMED, "four bytes"),
        (Some(V5), b"\x30\x06\0\x01a\x02\x01\x02", PROTOCOL, "neither 0 nor 1"),
        (Some(V5), b"\x30\x08\0\x01a\x04\x08\0\x01+", MALFORMED, "wildcard"),
        (Some(V5), b"\x30\x07\0\x01a\x03\x08\0\0", MALFORMED, "response topic is empty"),
        (Some(V5), b"\x30\x08\0\x01a\x04\x1F\0\x01x", MALFORMED, "not permitted"),
        (Some(V5), b"\x82\x0B\0\x01\x04\x0B\x01\x0B\x02\0\x01a\0", PROTOCOL, "more than once"),
        (Some(V5), b"\xA2\x08\0\x01\x02\x0B\x01\0\x01a", MALFORMED, "not permitted"),
        (Some(V5), b"\x20\x05\0\0\x02\x24\x02", PROTOCOL, "maximum QoS"),
        (Some(V5), b"\x20\x05\0\0\x02\x17\x01", MALFORMED, "not permitted"),
        (Some(V5), b"\x40\x09\0\x01\0\x05\x11\0\0\0\0", MALFORMED, "not permitted"),
        (Some(V5), b"\xF0\x02\x18\0", PROTOCOL, "without an authentication method"),
        (Some(V5), b"\xF0\x01\x18", PROTOCOL, "without an authentication method"),
        (Some(V5), b"\xF0\x06\x18\x04\x1F\0\x01x", PROTOCOL, "without an authentication method"),
    ]);
    // The same bytes from a store.
    let scope = PropertyScope::Packet(PacketType::Publish);
    assert_eq!(Properties::checked(b"\x23\0\0", scope), Err(DecodeError::TopicAliasInvalid));
    assert!(Properties::checked(b"\x0B\x01\x0B\x02", scope).is_ok());
    assert!(Properties::checked(b"\x18\0\0\0\x01", scope).is_err());
    assert!(Properties::checked(b"\x18\0\0\0\x01", PropertyScope::Will).is_ok());
    assert!(Properties::checked(b"\x18\0\0\0", PropertyScope::Will).is_err());
}

#[test]
fn publish() {
    check(&[
        (Some(V311), b"\x30\x02\0\0", MALFORMED, "topic name is empty"),
        (Some(V31), b"\x30\x02\0\0", MALFORMED, "topic name is empty"),
        (Some(V5), b"\x30\x03\0\0\0", PROTOCOL, "no topic alias"),
        (Some(V311), b"\x30\x03\0\x01+", MALFORMED, "wildcard"),
        (Some(V311), b"\x30\x05\0\x03a/#", MALFORMED, "wildcard"),
        (Some(V311), b"\x30\x03\0\x01\0", MALFORMED, "U+0000"),
        (Some(V311), b"\x30\x03\0\x01\xFF", MALFORMED, "UTF-8"),
        // A surrogate [MQTT-1.5.4-1] and an overlong form.
        (Some(V311), b"\x30\x05\0\x03\xED\xA0\x80", MALFORMED, "UTF-8"),
        (Some(V311), b"\x30\x04\0\x02\xC0\xAF", MALFORMED, "UTF-8"),
        (Some(V311), b"\x30\x03\0\x02a", MALFORMED, "longer than the packet"),
        (Some(V311), b"\x30\x01\0", MALFORMED, "longer than the packet"),
        (Some(V311), b"\x30\0", MALFORMED, "longer than the packet"),
        (Some(V311), b"\x32\x05\0\x01a\0\0", PROTOCOL, "identifier is 0"),
        (Some(V311), b"\x32\x04\0\x01a\0", MALFORMED, "longer than the packet"),
    ]);
}

#[test]
fn the_others() {
    check(&[
        (Some(V311), b"\x40\x02\0\0", PROTOCOL, "identifier is 0"),
        (Some(V311), b"\x40\x03\0\x01\0", MALFORMED, "follow"),
        (Some(V311), b"\x40\x01\0", MALFORMED, "longer than the packet"),
        (Some(V5), b"\x40\x03\0\x01\x92", PROTOCOL, "reason code"),
        (Some(V5), b"\x62\x03\0\x01\x10", PROTOCOL, "reason code"),
        (Some(V5), b"\x40\x05\0\x01\0\0\0", MALFORMED, "follow"),
        (Some(V311), b"\x20\x02\x02\0", MALFORMED, "flags of CONNACK"),
        (Some(V5), b"\x20\x03\x80\0\0", MALFORMED, "flags of CONNACK"),
        (Some(V311), b"\x20\x02\0\x06", MALFORMED, "reserved"),
        (Some(V311), b"\x20\x02\x01\x05", PROTOCOL, "session present"),
        (Some(V5), b"\x20\x03\x01\x87\0", PROTOCOL, "session present"),
        (Some(V5), b"\x20\x03\0\x01\0", PROTOCOL, "reason code"),
        (Some(V5), b"\x20\x02\0\0", MALFORMED, "longer than the packet"),
        (Some(V311), b"\x20\x03\0\0\0", MALFORMED, "follow"),
        (Some(V311), b"\x82\x02\0\x01", PROTOCOL, "MQTT-3.8.3-2"),
        (Some(V5), b"\x82\x03\0\x01\0", PROTOCOL, "MQTT-3.8.3-2"),
        (Some(V311), b"\x82\x06\0\0\0\x01a\0", PROTOCOL, "identifier is 0"),
        (Some(V311), b"\x82\x05\0\x01\0\x01a", MALFORMED, "longer than the packet"),
        (Some(V311), b"\x82\x06\0\x01\0\x01a\x03", PROTOCOL, "QoS of a subscription is 3"),
        (Some(V311), b"\x82\x06\0\x01\0\x01a\x04", MALFORMED, "MQTT-3-8.3-4"),
        (Some(V5), b"\x82\x07\0\x01\0\0\x01a\x40", MALFORMED, "MQTT-3.8.3-5"),
        (Some(V5), b"\x82\x07\0\x01\0\0\x01a\x30", PROTOCOL, "retain handling"),
        (Some(V5), b"\x82\x10\0\x01\0\0\x0A$share/g/a\x04", PROTOCOL, "MQTT-3.8.3-4"),
        (Some(V311), b"\x82\x06\0\x01\0\x01\xFF\0", MALFORMED, "UTF-8"),
        (Some(V311), b"\xA2\x02\0\x01", PROTOCOL, "MQTT-3.10.3-2"),
        (Some(V311), b"\xA2\x05\0\0\0\x01a", PROTOCOL, "identifier is 0"),
        (Some(V311), b"\xA2\x05\0\x01\0\x02a", MALFORMED, "longer than the packet"),
        (Some(V311), b"\x90\x02\0\x01", PROTOCOL, "without a reason code"),
        (Some(V311), b"\x90\x03\0\x01\x03", MALFORMED, "MQTT-3.9.3-2"),
        (Some(V5), b"\x90\x04\0\x01\0\x11", PROTOCOL, "reason code"),
        (Some(V5), b"\xB0\x03\0\x01\0", PROTOCOL, "without a reason code"),
        (Some(V5), b"\xB0\x04\0\x01\0\x01", PROTOCOL, "reason code"),
        (Some(V311), b"\xB0\x03\0\x01\0", MALFORMED, "follow"),
        (Some(V5), b"\xC0\x01\0", MALFORMED, "follow"),
        (Some(V311), b"\xD0\x01\0", MALFORMED, "follow"),
        (Some(V311), b"\xE0\x01\0", MALFORMED, "follow"),
        (Some(V5), b"\xE0\x01\x84", PROTOCOL, "reason code"),
        (Some(V5), b"\xE0\x03\0\0\0", MALFORMED, "follow"),
        (Some(V5), b"\xF0\x01\x81", PROTOCOL, "reason code"),
    ]);
}

/// Rules that depend on the side: each frame decodes, and one side may not send it.
#[test]
fn senders() {
    for (version, bytes, wrong) in [
        (V5, &b"\x20\x03\0\0\0"[..], Side::Client),
        (V5, b"\x90\x04\0\x01\0\0", Side::Client),
        (V5, b"\xB0\x04\0\x01\0\0", Side::Client),
        (V311, b"\xB0\x02\0\x01", Side::Client),
        (V311, b"\xD0\0", Side::Client),
        (V311, b"\xC0\0", Side::Server),
        (V311, b"\x82\x06\0\x01\0\x01a\0", Side::Server),
        (V311, b"\xA2\x05\0\x01\0\x01a", Side::Server),
        (V311, b"\xE0\0", Side::Server),
        (V5, b"\x30\x06\0\x01a\x02\x0B\x01", Side::Client),
        (V5, b"\xE0\x07\0\x05\x11\0\0\0\0", Side::Server),
        (V5, b"\xE0\x06\x9D\x04\x1C\0\x01s", Side::Client),
        (V5, b"\xF0\0", Side::Client),
        (V5, b"\xF0\x06\x19\x04\x15\0\x01m", Side::Server),
    ] {
        let (packet, _) = decode(bytes, Some(version), ANY).unwrap().unwrap();
        let right = if wrong == Side::Client { Side::Server } else { Side::Client };
        assert_eq!(packet.check_sender(right, version), Ok(()), "{packet:?}");
        assert_eq!(packet.check_sender(wrong, version).unwrap_err().reason(), PROTOCOL, "{packet:?}");
    }
    for (version, bytes) in [
        (V5, &b"\xE0\0"[..]),
        (V5, b"\xF0\x06\x18\x04\x15\0\x01m"),
        (V311, b"\x40\x02\0\x01"),
        (V311, b"\x62\x02\0\x01"),
        (V5, b"\x30\x04\0\x01a\0"),
    ] {
        let (packet, _) = decode(bytes, Some(version), ANY).unwrap().unwrap();
        for side in [Side::Client, Side::Server] {
            assert_eq!(packet.check_sender(side, version), Ok(()), "{packet:?}");
        }
    }
}

#[test]
fn version_of_a_refused_connect() {
    for (bytes, version) in [
        (&b"\x10\x0E\0\x04MQTT\x04\x03"[..], Some(V311)),
        (b"\x10\x0E\0\x04MQTT\x84", Some(V311)),
        (b"\x10\xFF\xFF\xFF\x7F\0\x04MQTT\x05", Some(V5)),
        (b"\x1F\x0E\0\x06MQIsdp\x03", Some(V31)),
        (b"\x10\xFF\xFF\xFF\xFF\0\x04MQTT\x05", None),
        (b"\x10\x0E\0\x04MQTT\x06", None),
        (b"\x10\x0E\0\x04MQTT", None),
        (b"\x10\x0E", None),
        (b"\x10", None),
        (b"\x30\x0E\0\x04MQTT\x05", None),
        (b"", None),
    ] {
        assert_eq!(connect_version(bytes), version, "{bytes:02X?}");
    }
}
