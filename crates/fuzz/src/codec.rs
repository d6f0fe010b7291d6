//! Arbitrary bytes as a stream of packets, both directions, all versions.
//!
//! The first byte of an input says the version (none yet, 3.1, 3.1.1, 5) and the largest packet; the rest is the stream.
//!
//! | invariant | check |
//! |---|---|
//! | no panic | every function that takes bytes or a decoded packet is called |
//! | nothing behind the frame is read | the frame alone, and the frame with other bytes behind it, decode to the same |
//! | incomplete is not wrong | each proper prefix of a frame that decodes asks for more; of one that does not, asks for more or is refused, and stays refused |
//! | encoding is the inverse | decode, encode, decode gives the same packet; encoding again gives the same bytes; it is never longer than what came |
//! | nothing is allocated for a length that is not there | the encoder's buffer; for the decoder libFuzzer's bound on one allocation (it has no allocation at all) |
//! | topic matching | [`topic::matches`] against the plainest reading of the standard; what [`topic::covers`] claims holds |

use ferrule_mqtt::{
    AckType, Packet, Properties, PublishFlags, PublishTemplate, QoS, Side, Version, connect_version, decode,
    encode_ack, encode_publish, frame_len, topic,
};

/// Frames up to this many bytes are looked at prefix by prefix, which costs their square.
const PREFIXES: usize = 256;

/// The target.
///
/// # Panics
/// When an invariant of the table above is broken.
pub fn codec(data: &[u8]) {
    let Some((&head, mut bytes)) = data.split_first() else { return };
    let mut version =
        [None, Some(Version::V3_1), Some(Version::V3_1_1), Some(Version::V5)][usize::from(head & 3)];
    let max = if head & 4 == 0 { 1 << 20 } else { 64 };
    let mut topics = Vec::new();
    let mut filters = Vec::new();
    loop {
        let _ = connect_version(bytes);
        let (packet, size) = match decode(bytes, version, max) {
            Ok(Some(decoded)) => decoded,
            Ok(None) => {
                assert!(frame_len(bytes, max).is_ok_and(|len| len.is_none_or(|len| len > bytes.len())));
                break;
            }
            Err(error) => {
                let _ = (error.reason(), error.to_string());
                refused(bytes, version, max);
                break;
            }
        };
        accepted(bytes, version, max, &packet, size);
        match packet {
            Packet::Connect(connect) => {
                assert_eq!(connect_version(bytes), Some(connect.version));
                version = Some(connect.version);
            }
            Packet::Publish(publish) => topics.push(publish.topic),
            Packet::Subscribe(subscribe) => {
                filters.extend(subscribe.filters.iter().map(|(filter, _)| filter))
            }
            Packet::Unsubscribe(unsubscribe) => filters.extend(unsubscribe.filters.iter()),
            _ => {}
        }
        bytes = &bytes[size..];
    }
    matching(&topics, &filters);
}

/// A frame that decoded to `packet`.
fn accepted(bytes: &[u8], version: Option<Version>, max: usize, packet: &Packet<'_>, size: usize) {
    assert!(size <= bytes.len() && size <= max, "{size} bytes of {}", bytes.len());
    assert_eq!(frame_len(bytes, max), Ok(Some(size)));
    // In an allocation of its own size, so that a sanitizer sees a read behind it.
    let alone: Box<[u8]> = bytes[..size].into();
    assert_eq!(decode(&alone, version, max), Ok(Some((*packet, size))), "by what follows the frame");
    let mut followed = alone.to_vec();
    followed.extend([0xFF; 16]);
    assert_eq!(decode(&followed, version, max), Ok(Some((*packet, size))), "by what follows the frame");
    for len in (0..size).take(PREFIXES).chain(size.saturating_sub(PREFIXES)..size) {
        assert_eq!(decode(&alone[..len], version, max), Ok(None), "{len} of {size} bytes");
    }
    let own = match packet {
        Packet::Connect(connect) => connect.version,
        _ => version.expect("only CONNECT is decoded without a version"),
    };
    let _ = (packet.check_sender(Side::Client, own), packet.check_sender(Side::Server, own));
    walk(packet);

    let mut out = b"before".to_vec();
    packet.encode(own, &mut out).unwrap_or_else(|error| panic!("{packet:?} cannot be encoded: {error}"));
    assert!(out.capacity() <= 4 * size + 1024, "{} bytes allocated for {size}", out.capacity());
    let encoded = out.strip_prefix(b"before").expect("what was there stays");
    assert!(encoded.len() <= size, "{size} bytes became {}: {packet:?}", encoded.len());
    assert_eq!(decode(encoded, version, max), Ok(Some((*packet, encoded.len()))));
    let mut again = Vec::new();
    decode(encoded, version, max)
        .expect("decoded above")
        .expect("whole")
        .0
        .encode(own, &mut again)
        .expect("encoded above");
    assert_eq!(again, encoded);

    // For another version: refused without a trace, or a frame of that version.
    for other in [Version::V3_1, Version::V3_1_1, Version::V5] {
        let mut out = b"before".to_vec();
        let result = packet.encode(other, &mut out);
        let rest = out.strip_prefix(b"before").expect("what was there stays");
        match (result, packet) {
            (Err(_), _) => assert!(rest.is_empty()),
            // Its version is its own: what it is encoded for must be that.
            (Ok(()), Packet::Connect(_)) => {}
            (Ok(()), _) => {
                let back = decode(rest, Some(other), usize::MAX);
                assert!(
                    matches!(back, Ok(Some((_, size))) if size == rest.len()),
                    "{packet:?} for {other} became {rest:02x?}: {back:?}"
                );
            }
        }
    }
    shortcuts(own, packet, encoded);
}

/// The encoders of the hot path against the general one.
fn shortcuts(version: Version, packet: &Packet<'_>, encoded: &[u8]) {
    let mut out = Vec::new();
    match *packet {
        Packet::Publish(publish) => {
            let flags = PublishFlags { qos: publish.qos, retain: publish.retain, dup: publish.dup };
            let properties = [publish.properties, Properties::EMPTY];
            let (topic, payload) = (publish.topic, publish.payload);
            encode_publish(&mut out, version, flags, topic, publish.packet_id, &properties, payload)
                .expect("encoded in the general way");
            assert_eq!(out, encoded);
            out.clear();
            let acknowledged = publish.qos > QoS::AtMostOnce;
            let template = PublishTemplate::new(version, acknowledged, topic, &properties, payload)
                .expect("encoded in the general way");
            template.write(&mut out, flags, publish.packet_id);
            assert_eq!((out.as_slice(), template.size()), (encoded, encoded.len()));
        }
        Packet::Puback(ack) | Packet::Pubrec(ack) | Packet::Pubrel(ack) | Packet::Pubcomp(ack)
            if ack.properties == Properties::EMPTY =>
        {
            let kind = match packet {
                Packet::Puback(_) => AckType::Puback,
                Packet::Pubrec(_) => AckType::Pubrec,
                Packet::Pubrel(_) => AckType::Pubrel,
                _ => AckType::Pubcomp,
            };
            encode_ack(&mut out, version, kind, ack.packet_id, ack.reason);
            assert_eq!(out, encoded);
        }
        _ => {}
    }
}

/// Looks at everything that a packet has.
fn walk(packet: &Packet<'_>) {
    let properties = match packet {
        Packet::Connect(connect) => {
            if let Some(will) = connect.will {
                let _ = will.payload_format_ok();
                check_properties(will.properties);
            }
            connect.properties
        }
        Packet::Connack(connack) => connack.properties,
        Packet::Publish(publish) => {
            let _ = publish.payload_format_ok();
            publish.properties
        }
        Packet::Puback(ack) | Packet::Pubrec(ack) | Packet::Pubrel(ack) | Packet::Pubcomp(ack) => {
            ack.properties
        }
        Packet::Subscribe(subscribe) => {
            assert_eq!(subscribe.filters.iter().count(), subscribe.filters.len());
            subscribe.properties
        }
        Packet::Suback(suback) | Packet::Unsuback(suback) => suback.properties,
        Packet::Unsubscribe(unsubscribe) => {
            let _ = unsubscribe.filters.iter().count();
            unsubscribe.properties
        }
        Packet::Disconnect(disconnect) => disconnect.properties,
        Packet::Auth(auth) => auth.properties,
        Packet::Pingreq | Packet::Pingresp => return,
    };
    check_properties(properties);
}

fn check_properties(properties: Properties<'_>) {
    let count = properties.iter().count();
    assert_eq!(properties.encoded().count(), count);
    for (id, value) in properties.encoded() {
        assert!(properties.contains(id) && properties.get(id).is_some());
        assert!(value.len() < properties.as_bytes().len());
    }
    let _ = (properties.user_properties().count(), properties.subscription_identifiers().count());
}

/// Bytes that are refused: no prefix of them decodes, and once one is refused all longer ones are.
fn refused(bytes: &[u8], version: Option<Version>, max: usize) {
    let mut refused = false;
    for len in 0..bytes.len().min(PREFIXES) {
        match decode(&bytes[..len], version, max) {
            Ok(None) => assert!(!refused, "refused, and at {len} bytes no more"),
            Ok(Some(other)) => panic!("{len} bytes are {other:?}, more are refused"),
            Err(_) => refused = true,
        }
    }
}

/// Filters against names.
fn matching(topics: &[&str], filters: &[&str]) {
    let names: Vec<&str> = topics.iter().copied().filter(|name| !name.is_empty()).take(8).collect();
    let plain = |filter: &&str| {
        topic::validate_filter(filter).is_ok()
            && topic::shared(filter).is_none()
            && topic::exclusive(filter).is_none()
    };
    let filters: Vec<&str> = filters.iter().copied().filter(plain).take(8).collect();
    for name in &names {
        for filter in &filters {
            assert_eq!(topic::matches(filter, name), plainly(filter, name), "{filter:?} and {name:?}");
        }
    }
    for wide in &filters {
        for narrow in filters.iter().filter(|narrow| topic::covers(wide, narrow)) {
            for name in names.iter().filter(|name| plainly(narrow, name)) {
                assert!(plainly(wide, name), "{wide:?} does not cover {narrow:?}: {name:?}");
            }
        }
    }
}

/// MQTT 5, 4.7, word by word.
fn plainly(filter: &str, name: &str) -> bool {
    if name.starts_with('$') && filter.starts_with(['#', '+']) {
        return false;
    }
    let mut levels = name.split('/');
    for wanted in filter.split('/') {
        match (wanted, levels.next()) {
            ("#", _) => return true,
            ("+", Some(_)) => {}
            (wanted, Some(level)) if wanted == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}
