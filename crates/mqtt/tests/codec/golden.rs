//! One frame or more of every packet type and version, written by hand from the standard.

use crate::{V5, V31, V311, check_decode, encoded};
use ferrule_mqtt::*;

/// Both directions.
fn check(version: Version, bytes: &[u8], packet: Packet<'_>) {
    check_decode(bytes, &packet, version);
    assert_eq!(encoded(&packet, version), bytes);
}

/// A frame that is valid but not the one that the encoder chooses.
fn check_decode_only(version: Version, bytes: &[u8], packet: Packet<'_>) {
    check_decode(bytes, &packet, version);
    assert!(encoded(&packet, version) != bytes);
}

fn properties(list: &[Property<'_>]) -> PropertiesBuf {
    let mut buf = PropertiesBuf::new();
    for property in list {
        buf.push(*property).unwrap();
    }
    buf
}

const CONNECT: Connect<'_> = Connect {
    version: V311,
    clean_start: true,
    bridge: false,
    keep_alive: 60,
    properties: Properties::EMPTY,
    client_id: "c1",
    will: None,
    username: None,
    password: None,
};

#[test]
fn connect() {
    check(V311, b"\x10\x0E\0\x04MQTT\x04\x02\0\x3C\0\x02c1", Packet::Connect(CONNECT));
    check(
        V31,
        b"\x10\x10\0\x06MQIsdp\x03\x02\0\x3C\0\x02c1",
        Packet::Connect(Connect { version: V31, ..CONNECT }),
    );
    check(
        V5,
        b"\x10\x0F\0\x04MQTT\x05\x02\0\x3C\0\0\x02c1",
        Packet::Connect(Connect { version: V5, ..CONNECT }),
    );
    // mosquitto's bridge bit.
    check(
        V311,
        b"\x10\x0E\0\x04MQTT\x84\x02\0\x3C\0\x02c1",
        Packet::Connect(Connect { bridge: true, ..CONNECT }),
    );
    check(
        V31,
        b"\x10\x10\0\x06MQIsdp\x83\x02\0\x3C\0\x02c1",
        Packet::Connect(Connect { version: V31, bridge: true, ..CONNECT }),
    );
}

#[test]
fn connect_with_everything() {
    let will = Will {
        qos: QoS::ExactlyOnce,
        retain: true,
        properties: Properties::EMPTY,
        topic: "w",
        payload: b"\x00bye",
    };
    let full = Connect {
        clean_start: false,
        will: Some(will),
        username: Some("u"),
        password: Some(b"\xFFp"),
        ..CONNECT
    };
    check(
        V311,
        b"\x10\x1E\0\x04MQTT\x04\xF4\0\x3C\0\x02c1\0\x01w\0\x04\0bye\0\x01u\0\x02\xFFp",
        Packet::Connect(full),
    );

    let connect_properties = properties(&[
        Property::SessionExpiryInterval(3600),
        Property::ReceiveMaximum(20),
        Property::MaximumPacketSize(65536),
        Property::TopicAliasMaximum(10),
        Property::RequestResponseInformation(true),
        Property::RequestProblemInformation(false),
        Property::UserProperty("k", "v"),
        Property::AuthenticationMethod("m"),
        Property::AuthenticationData(b"\x01"),
    ]);
    let will_properties = properties(&[
        Property::WillDelayInterval(5),
        Property::PayloadFormatIndicator(false),
        Property::MessageExpiryInterval(9),
        Property::ContentType("t"),
        Property::ResponseTopic("r"),
        Property::CorrelationData(b"\x02"),
        Property::UserProperty("", ""),
    ]);
    let full = Connect {
        version: V5,
        properties: connect_properties.as_properties(),
        will: Some(Will { properties: will_properties.as_properties(), ..will }),
        ..full
    };
    #[rustfmt::skip]
    let bytes = [
        0x10, 96,
        0, 4, b'M', b'Q', b'T', b'T', 5, 0xF4, 0, 60,
        35, // properties
        0x11, 0, 0, 0x0E, 0x10,
        0x21, 0, 20,
        0x27, 0, 1, 0, 0,
        0x22, 0, 10,
        0x19, 1,
        0x17, 0,
        0x26, 0, 1, b'k', 0, 1, b'v',
        0x15, 0, 1, b'm',
        0x16, 0, 1, 1,
        0, 2, b'c', b'1',
        29, // will properties
        0x18, 0, 0, 0, 5,
        0x01, 0,
        0x02, 0, 0, 0, 9,
        0x03, 0, 1, b't',
        0x08, 0, 1, b'r',
        0x09, 0, 1, 2,
        0x26, 0, 0, 0, 0,
        0, 1, b'w',
        0, 4, 0, b'b', b'y', b'e',
        0, 1, b'u',
        0, 2, 0xFF, b'p',
    ];
    check(V5, &bytes, Packet::Connect(full));
    let Ok(Some((Packet::Connect(decoded), _))) = decode(&bytes, None, 1024) else { panic!() };
    assert_eq!(decoded.properties.session_expiry_interval(), Some(3600));
    assert_eq!(decoded.properties.request_problem_information(), Some(false));
    assert_eq!(decoded.properties.authentication_data(), Some(&b"\x01"[..]));
    assert_eq!(decoded.properties.server_keep_alive(), None);
    assert_eq!(decoded.will.unwrap().properties.will_delay_interval(), Some(5));

    // Since MQTT 5 a password may come without a user name.
    check(
        V5,
        b"\x10\x12\0\x04MQTT\x05\x42\0\x3C\0\0\x02c1\0\x01p",
        Packet::Connect(Connect { version: V5, password: Some(b"p"), ..CONNECT }),
    );
}

/// What MQTT 3.1 leaves open.
#[test]
fn laxness_of_3_1() {
    let connect = Packet::Connect(Connect { version: V31, ..CONNECT });
    // User name and password flags without the fields: the remaining length outweighs the flags.
    check_decode_only(V31, b"\x10\x10\0\x06MQIsdp\x03\xC2\0\x3C\0\x02c1", connect);
    // Reserved bit, will QoS and will retain without a will.
    check_decode_only(V31, b"\x10\x10\0\x06MQIsdp\x03\x2B\0\x3C\0\x02c1", connect);
    // Unused flags of the fixed header.
    check_decode_only(V31, b"\x1F\x10\0\x06MQIsdp\x03\x02\0\x3C\0\x02c1", connect);
    let ack = Ack { packet_id: 1, reason: ReasonCode::SUCCESS, properties: Properties::EMPTY };
    check_decode_only(V31, b"\x6A\x02\0\x01", Packet::Pubrel(ack));
    // The first byte of CONNACK is unused.
    let connack =
        Connack { session_present: false, reason: ReasonCode::SUCCESS, properties: Properties::EMPTY };
    check_decode_only(V31, b"\x20\x02\x01\0", Packet::Connack(connack));
}

#[test]
fn connack() {
    let accepted =
        Connack { session_present: true, reason: ReasonCode::SUCCESS, properties: Properties::EMPTY };
    check(V311, b"\x20\x02\x01\x00", Packet::Connack(accepted));
    check(V31, b"\x20\x02\x00\x00", Packet::Connack(Connack { session_present: false, ..accepted }));
    check(V5, b"\x20\x03\x01\x00\x00", Packet::Connack(accepted));
    for (code, reason) in [
        (1, ReasonCode::UNSUPPORTED_PROTOCOL_VERSION),
        (2, ReasonCode::CLIENT_IDENTIFIER_NOT_VALID),
        (3, ReasonCode::SERVER_UNAVAILABLE),
        (4, ReasonCode::BAD_USER_NAME_OR_PASSWORD),
        (5, ReasonCode::NOT_AUTHORIZED),
    ] {
        let refused = Connack { session_present: false, reason, properties: Properties::EMPTY };
        check(V31, &[0x20, 2, 0, code], Packet::Connack(refused));
        check(V311, &[0x20, 2, 0, code], Packet::Connack(refused));
        check(V5, &[0x20, 3, 0, reason.0, 0], Packet::Connack(refused));
    }

    let all = properties(&[
        Property::SessionExpiryInterval(1),
        Property::ReceiveMaximum(2),
        Property::MaximumQoS(QoS::AtLeastOnce),
        Property::RetainAvailable(true),
        Property::MaximumPacketSize(3),
        Property::AssignedClientIdentifier("a"),
        Property::TopicAliasMaximum(4),
        Property::ReasonString("b"),
        Property::UserProperty("c", "d"),
        Property::WildcardSubscriptionAvailable(true),
        Property::SubscriptionIdentifierAvailable(false),
        Property::SharedSubscriptionAvailable(true),
        Property::ServerKeepAlive(5),
        Property::ResponseInformation("e"),
        Property::ServerReference("f"),
        Property::AuthenticationMethod("g"),
        Property::AuthenticationData(b"h"),
    ]);
    #[rustfmt::skip]
    let bytes = [
        0x20, 63, 0, 0, 60,
        0x11, 0, 0, 0, 1,
        0x21, 0, 2,
        0x24, 1,
        0x25, 1,
        0x27, 0, 0, 0, 3,
        0x12, 0, 1, b'a',
        0x22, 0, 4,
        0x1F, 0, 1, b'b',
        0x26, 0, 1, b'c', 0, 1, b'd',
        0x28, 1,
        0x29, 0,
        0x2A, 1,
        0x13, 0, 5,
        0x1A, 0, 1, b'e',
        0x1C, 0, 1, b'f',
        0x15, 0, 1, b'g',
        0x16, 0, 1, b'h',
    ];
    let connack = Connack { session_present: false, properties: all.as_properties(), ..accepted };
    check(V5, &bytes, Packet::Connack(connack));
    let properties = connack.properties;
    assert_eq!(properties.receive_maximum(), Some(2));
    assert_eq!(properties.maximum_qos(), Some(QoS::AtLeastOnce));
    assert_eq!(properties.maximum_packet_size(), Some(3));
    assert_eq!(properties.assigned_client_identifier(), Some("a"));
    assert_eq!(properties.topic_alias_maximum(), Some(4));
    assert_eq!(properties.reason_string(), Some("b"));
    assert_eq!(properties.user_properties().collect::<Vec<_>>(), [("c", "d")]);
    assert_eq!(properties.server_keep_alive(), Some(5));
    assert_eq!(properties.subscription_identifier_available(), Some(false));
    assert_eq!(properties.authentication_method(), Some("g"));
}

#[test]
fn publish() {
    let message = Publish {
        dup: false,
        qos: QoS::AtMostOnce,
        retain: false,
        topic: "a/b",
        packet_id: 0,
        properties: Properties::EMPTY,
        payload: b"hi",
    };
    for version in [V31, V311] {
        check(version, b"\x30\x07\0\x03a/bhi", Packet::Publish(message));
        check(
            version,
            b"\x3D\x09\0\x03a/b\x12\x34hi",
            Packet::Publish(Publish {
                dup: true,
                qos: QoS::ExactlyOnce,
                retain: true,
                packet_id: 0x1234,
                ..message
            }),
        );
        check(
            version,
            b"\x31\x05\0\x03a/b",
            Packet::Publish(Publish { retain: true, payload: b"", ..message }),
        );
    }
    check(V5, b"\x30\x08\0\x03a/b\0hi", Packet::Publish(message));
    let all = properties(&[
        Property::PayloadFormatIndicator(true),
        Property::MessageExpiryInterval(60),
        Property::TopicAlias(7),
        Property::ResponseTopic("r/t"),
        Property::CorrelationData(b"\xFF\0"),
        Property::UserProperty("k", "v"),
        Property::UserProperty("k", "v"),
        Property::SubscriptionIdentifier(127),
        Property::SubscriptionIdentifier(268_435_455),
        Property::ContentType("text"),
    ]);
    #[rustfmt::skip]
    let bytes = [
        0x32, 56,
        0, 0,
        0, 1,
        49, // properties
        0x01, 1,
        0x02, 0, 0, 0, 60,
        0x23, 0, 7,
        0x08, 0, 3, b'r', b'/', b't',
        0x09, 0, 2, 0xFF, 0,
        0x26, 0, 1, b'k', 0, 1, b'v',
        0x26, 0, 1, b'k', 0, 1, b'v',
        0x0B, 0x7F,
        0x0B, 0xFF, 0xFF, 0xFF, 0x7F,
        0x03, 0, 4, b't', b'e', b'x', b't',
        b'h', b'i',
    ];
    let full = Publish {
        qos: QoS::AtLeastOnce,
        topic: "",
        packet_id: 1,
        properties: all.as_properties(),
        payload: b"hi",
        ..message
    };
    check(V5, &bytes, Packet::Publish(full));
    assert_eq!(full.properties.topic_alias(), Some(7));
    assert_eq!(full.properties.subscription_identifiers().collect::<Vec<_>>(), [127, 268_435_455]);
    assert_eq!(full.properties.message_expiry_interval(), Some(60));
    assert_eq!(full.properties.content_type(), Some("text"));
    assert_eq!(full.properties.response_topic(), Some("r/t"));
    assert_eq!(full.properties.correlation_data(), Some(&b"\xFF\0"[..]));
    assert_eq!(full.properties.user_properties().count(), 2);
    assert!(full.payload_format_ok());
    assert!(!Publish { payload: b"\xFF", ..full }.payload_format_ok());
    assert!(Publish { payload: b"\xFF", ..message }.payload_format_ok());
}

/// The remaining length at the borders of its sizes [MQTT 5, table 1-1].
#[test]
fn remaining_lengths() {
    for (len, header) in [
        (127, &[0x30, 0x7F][..]),
        (128, &[0x30, 0x80, 0x01]),
        (16_383, &[0x30, 0xFF, 0x7F]),
        (16_384, &[0x30, 0x80, 0x80, 0x01]),
        (2_097_151, &[0x30, 0xFF, 0xFF, 0x7F]),
        (2_097_152, &[0x30, 0x80, 0x80, 0x80, 0x01]),
    ] {
        let payload = vec![0x55; len - 3];
        let mut expected = [header, b"\0\x01t"].concat();
        expected.extend_from_slice(&payload);
        let mut out = Vec::new();
        encode_publish(&mut out, V311, PublishFlags::default(), "t", 0, &[], &payload).unwrap();
        assert!(out == expected, "remaining length {len}");
        assert_eq!(frame_len(header, crate::ANY), Ok(Some(expected.len())));
        let (packet, used) = decode(&out, Some(V311), crate::ANY).unwrap().unwrap();
        assert!(used == out.len() && matches!(packet, Packet::Publish(p) if p.payload == payload));
    }
    assert_eq!(frame_len(&[0x30, 0xFF, 0xFF, 0xFF, 0x7F], crate::ANY), Ok(Some(268_435_460)));
}

#[test]
fn acknowledgements() {
    let ack = Ack { packet_id: 0x0102, reason: ReasonCode::SUCCESS, properties: Properties::EMPTY };
    let why = properties(&[Property::ReasonString("no"), Property::UserProperty("a", "b")]);
    for (first, wrap, kind, failure) in [
        (0x40, Packet::Puback as fn(Ack<'static>) -> Packet<'static>, AckType::Puback, 0x97),
        (0x50, Packet::Pubrec, AckType::Pubrec, 0x87),
        (0x62, Packet::Pubrel, AckType::Pubrel, 0x92),
        (0x70, Packet::Pubcomp, AckType::Pubcomp, 0x92),
    ] {
        for version in [V31, V311, V5] {
            check(version, &[first, 2, 1, 2], wrap(ack));
            let mut out = Vec::new();
            encode_ack(&mut out, version, kind, 0x0102, ReasonCode::SUCCESS);
            assert_eq!(out, [first, 2, 1, 2]);
        }
        let failed = Ack { reason: ReasonCode(failure), ..ack };
        check(V5, &[first, 3, 1, 2, failure], wrap(failed));
        let mut out = Vec::new();
        encode_ack(&mut out, V5, kind, 0x0102, ReasonCode(failure));
        encode_ack(&mut out, V311, kind, 0x0102, ReasonCode(failure));
        assert_eq!(out, [first, 3, 1, 2, failure, first, 2, 1, 2]);

        check_decode_only(V5, &[first, 3, 1, 2, 0], wrap(ack));
        check_decode_only(V5, &[first, 4, 1, 2, failure, 0], wrap(failed));
        let bytes = [&[first, 16, 1, 2, failure, 12][..], b"\x1F\0\x02no\x26\0\x01a\0\x01b"].concat();
        let rich = why.as_properties();
        let packet = Ack { properties: rich, ..failed };
        let packet = match kind {
            AckType::Puback => Packet::Puback(packet),
            AckType::Pubrec => Packet::Pubrec(packet),
            AckType::Pubrel => Packet::Pubrel(packet),
            AckType::Pubcomp => Packet::Pubcomp(packet),
        };
        check(V5, &bytes, packet);
    }
}

#[test]
fn subscribe() {
    let mut filters = SubscribeFiltersBuf::new();
    filters.push("a/#", SubscribeOptions::new(QoS::AtLeastOnce)).unwrap();
    filters.push("+", SubscribeOptions::new(QoS::ExactlyOnce)).unwrap();
    let subscribe = Subscribe { packet_id: 10, properties: Properties::EMPTY, filters: filters.as_filters() };
    for version in [V31, V311] {
        check(version, b"\x82\x0C\0\x0A\0\x03a/#\x01\0\x01+\x02", Packet::Subscribe(subscribe));
    }
    let id = properties(&[Property::SubscriptionIdentifier(300)]);
    filters
        .push(
            "$share/g/x",
            SubscribeOptions {
                qos: QoS::AtMostOnce,
                no_local: false,
                retain_as_published: true,
                retain_handling: 2,
            },
        )
        .unwrap();
    let no_local =
        SubscribeOptions { no_local: true, retain_handling: 1, ..SubscribeOptions::new(QoS::AtMostOnce) };
    filters.push("", no_local).unwrap();
    let subscribe =
        Subscribe { packet_id: 10, properties: id.as_properties(), filters: filters.as_filters() };
    check(
        V5,
        b"\x82\x20\0\x0A\x03\x0B\xAC\x02\0\x03a/#\x01\0\x01+\x02\0\x0A$share/g/x\x28\0\0\x14",
        Packet::Subscribe(subscribe),
    );
    assert_eq!(subscribe.filters.len(), 4);
    assert_eq!(subscribe.filters.iter().last(), Some(("", no_local)));
    // In 3.x only the QoS is left of the options.
    assert_eq!(
        encoded(&Packet::Subscribe(subscribe), V311),
        b"\x82\x1C\0\x0A\0\x03a/#\x01\0\x01+\x02\0\x0A$share/g/x\0\0\0\0"
    );
}

#[test]
fn suback_and_unsuback() {
    let suback = Suback { packet_id: 10, properties: Properties::EMPTY, reasons: &[0, 1, 2, 0x80] };
    for version in [V31, V311] {
        check(version, b"\x90\x06\0\x0A\0\x01\x02\x80", Packet::Suback(suback));
        check(version, b"\xB0\x02\0\x0A", Packet::Unsuback(Suback { reasons: &[], ..suback }));
    }
    check(V5, b"\x90\x07\0\x0A\0\0\x01\x02\x80", Packet::Suback(suback));
    let why = properties(&[Property::ReasonString("x")]);
    let unsuback = Suback { properties: why.as_properties(), reasons: &[0x00, 0x11, 0x87], ..suback };
    check(V5, b"\xB0\x0A\0\x0A\x04\x1F\0\x01x\0\x11\x87", Packet::Unsuback(unsuback));

    let refused = Suback { reasons: &[0x8F, 0x97, 0x02], ..suback };
    assert_eq!(encoded(&Packet::Suback(refused), V311), b"\x90\x05\0\x0A\x80\x80\x02");
    assert_eq!(encoded(&Packet::Unsuback(unsuback), V311), b"\xB0\x02\0\x0A");
}

#[test]
fn unsubscribe() {
    let mut filters = UnsubscribeFiltersBuf::new();
    filters.push("a/#").unwrap();
    filters.push("+").unwrap();
    let unsubscribe =
        Unsubscribe { packet_id: 10, properties: Properties::EMPTY, filters: filters.as_filters() };
    for version in [V31, V311] {
        check(version, b"\xA2\x0A\0\x0A\0\x03a/#\0\x01+", Packet::Unsubscribe(unsubscribe));
    }
    check(V5, b"\xA2\x0B\0\x0A\0\0\x03a/#\0\x01+", Packet::Unsubscribe(unsubscribe));
    assert_eq!(unsubscribe.filters.iter().collect::<Vec<_>>(), ["a/#", "+"]);
    let who = properties(&[Property::UserProperty("a", "b")]);
    let unsubscribe = Unsubscribe { properties: who.as_properties(), ..unsubscribe };
    check(V5, b"\xA2\x12\0\x0A\x07\x26\0\x01a\0\x01b\0\x03a/#\0\x01+", Packet::Unsubscribe(unsubscribe));
}

#[test]
fn ping_disconnect_auth() {
    let normal = Disconnect { reason: ReasonCode::NORMAL_DISCONNECTION, properties: Properties::EMPTY };
    for version in [V31, V311, V5] {
        check(version, &PINGREQ, Packet::Pingreq);
        check(version, &PINGRESP, Packet::Pingresp);
        check(version, b"\xE0\0", Packet::Disconnect(normal));
    }
    let with_will = Disconnect { reason: ReasonCode::DISCONNECT_WITH_WILL, ..normal };
    check(V5, b"\xE0\x01\x04", Packet::Disconnect(with_will));
    check_decode_only(V5, b"\xE0\x02\x04\0", Packet::Disconnect(with_will));
    let moved = properties(&[Property::ServerReference("s"), Property::SessionExpiryInterval(0)]);
    check(
        V5,
        b"\xE0\x0B\x9D\x09\x1C\0\x01s\x11\0\0\0\0",
        Packet::Disconnect(Disconnect {
            reason: ReasonCode::SERVER_MOVED,
            properties: moved.as_properties(),
        }),
    );

    check(V5, b"\xF0\0", Packet::Auth(Auth { reason: ReasonCode::SUCCESS, properties: Properties::EMPTY }));
    let method = properties(&[Property::AuthenticationMethod("m"), Property::AuthenticationData(b"\0")]);
    check(
        V5,
        b"\xF0\x0A\x18\x08\x15\0\x01m\x16\0\x01\0",
        Packet::Auth(Auth {
            reason: ReasonCode::CONTINUE_AUTHENTICATION,
            properties: method.as_properties(),
        }),
    );
}

#[test]
fn template() {
    let own = properties(&[Property::ContentType("t")]);
    let receiver = properties(&[Property::SubscriptionIdentifier(3)]);
    let parts = [own.as_properties(), receiver.as_properties()];
    let acknowledged = PublishTemplate::new(V5, true, "a", &parts, b"p").unwrap();
    let mut out = Vec::new();
    acknowledged.write(&mut out, PublishFlags { dup: true, qos: QoS::ExactlyOnce, retain: true }, 0xABCD);
    assert_eq!(out, b"\x3D\x0D\0\x01a\xAB\xCD\x06\x03\0\x01t\x0B\x03p");
    assert_eq!(acknowledged.size(), out.len());
    out.clear();
    let plain = PublishTemplate::new(V311, false, "a", &parts, b"p").unwrap();
    plain.write(&mut out, PublishFlags { retain: true, ..PublishFlags::default() }, 99);
    assert_eq!(out, b"\x31\x04\0\x01ap");
}

#[test]
#[should_panic(expected = "layout")]
fn template_of_another_layout() {
    let plain = PublishTemplate::new(V311, false, "a", &[], b"").unwrap();
    plain.write(&mut Vec::new(), PublishFlags { qos: QoS::AtLeastOnce, ..PublishFlags::default() }, 1);
}

/// What the encoder refuses leaves no trace.
#[test]
fn encode_errors() {
    let long = "x".repeat(65_536);
    let publish = Publish {
        dup: false,
        qos: QoS::AtMostOnce,
        retain: false,
        topic: "t",
        packet_id: 0,
        properties: Properties::EMPTY,
        payload: b"",
    };
    let ack = Ack { packet_id: 0, reason: ReasonCode::SUCCESS, properties: Properties::EMPTY };
    let auth = Auth { reason: ReasonCode::SUCCESS, properties: Properties::EMPTY };
    let connack =
        Connack { session_present: false, reason: ReasonCode::PROTOCOL_ERROR, properties: Properties::EMPTY };
    let suback = Suback { packet_id: 1, properties: Properties::EMPTY, reasons: &[] };
    let will =
        Will { qos: QoS::AtMostOnce, retain: false, properties: Properties::EMPTY, topic: "#", payload: b"" };
    let none = SubscribeFiltersBuf::new();
    let none = Subscribe { packet_id: 1, properties: Properties::EMPTY, filters: none.as_filters() };
    for (version, packet) in [
        (V5, Packet::Publish(Publish { topic: &long, ..publish })),
        (V5, Packet::Publish(Publish { topic: "", ..publish })),
        (V311, Packet::Publish(Publish { topic: "", ..publish })),
        (V311, Packet::Publish(Publish { topic: "a/+", ..publish })),
        (V311, Packet::Publish(Publish { topic: "a\0", ..publish })),
        (V311, Packet::Publish(Publish { dup: true, ..publish })),
        (V311, Packet::Publish(Publish { qos: QoS::AtLeastOnce, ..publish })),
        (V5, Packet::Puback(ack)),
        (V311, Packet::Auth(auth)),
        (V311, Packet::Connack(connack)),
        (V5, Packet::Suback(suback)),
        (V5, Packet::Unsuback(suback)),
        (V311, Packet::Suback(suback)),
        (V5, Packet::Subscribe(none)),
        (V311, Packet::Connect(Connect { client_id: &long, ..CONNECT })),
        (V311, Packet::Connect(Connect { client_id: "a\0", ..CONNECT })),
        (V311, Packet::Connect(Connect { password: Some(b""), ..CONNECT })),
        (V311, Packet::Connect(Connect { will: Some(will), ..CONNECT })),
        (V5, Packet::Connect(Connect { version: V5, bridge: true, ..CONNECT })),
    ] {
        let mut out = b"before".to_vec();
        assert!(packet.encode(version, &mut out).is_err(), "{:?}", packet.packet_type());
        assert_eq!(out, b"before");
    }

    let mut buf = PropertiesBuf::new();
    buf.push(Property::ContentType("kept")).unwrap();
    for property in [
        Property::ReasonString(&long),
        Property::UserProperty("a", &long),
        Property::UserProperty("a", "\0"),
        Property::CorrelationData(long.as_bytes()),
        Property::ResponseTopic("a/#"),
        Property::ResponseTopic(""),
        Property::SubscriptionIdentifier(0),
        Property::SubscriptionIdentifier(268_435_456),
        Property::ReceiveMaximum(0),
        Property::TopicAlias(0),
        Property::MaximumPacketSize(0),
        Property::MaximumQoS(QoS::ExactlyOnce),
    ] {
        assert!(buf.push(property).is_err(), "{:?}", property.id());
        assert_eq!(buf.as_properties().as_bytes(), b"\x03\0\x04kept");
    }
}

/// The longest packet is not allocated: its parts are counted first.
#[test]
fn packet_too_large() {
    let payload = vec![0; MAX_REMAINING_LENGTH - 2];
    let mut out = Vec::new();
    assert_eq!(
        encode_publish(&mut out, V311, PublishFlags::default(), "t", 0, &[], &payload),
        Err(EncodeError::PacketTooLarge(MAX_REMAINING_LENGTH + 1))
    );
    assert!(out.is_empty());
}

#[test]
fn reason_codes() {
    assert_eq!(ReasonCode::QUOTA_EXCEEDED.to_string(), "Quota exceeded (0x97)");
    assert_eq!(ReasonCode(0x7F).name(), "Unknown");
    assert!(ReasonCode(0x80).is_error() && !ReasonCode(0x7F).is_error());
    for code in 0..=u8::MAX {
        let translated = ReasonCode::from_connack_v3(code);
        assert_eq!(translated.is_some(), code <= 5);
        if let Some(reason) = translated {
            assert_eq!(reason.to_connack_v3(), Some(code));
        }
        // A code that some packet may carry has a name.
        let packets = (1..=15_u8).filter_map(|packet| PacketType::from_first_byte(packet << 4));
        if packets.into_iter().any(|packet| ReasonCode(code).allowed_in(packet)) {
            assert_ne!(ReasonCode(code).name(), "Unknown", "0x{code:02X}");
        }
    }
}
