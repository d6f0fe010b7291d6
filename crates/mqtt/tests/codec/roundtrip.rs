//! What holds for all packets: encode then decode is the identity, and no bytes make the decoder panic.

use crate::{ANY, V5, V31, V311, cases, check_decode, encoded};
use ferrule_mqtt::*;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

fn version() -> impl Strategy<Value = Version> {
    prop_oneof![Just(V31), Just(V311), Just(V5)]
}

fn qos() -> impl Strategy<Value = QoS> {
    prop_oneof![Just(QoS::AtMostOnce), Just(QoS::AtLeastOnce), Just(QoS::ExactlyOnce)]
}

/// Mostly short, some beyond one byte of length; with characters of 1 to 4 bytes.
fn text() -> impl Strategy<Value = String> {
    let chars =
        prop_oneof![8 => proptest::char::range('!', '~'), 1 => proptest::char::range('\u{1}', '\u{10FFFF}')];
    prop_oneof![9 => vec(chars.clone(), 0..12), 1 => vec(chars, 120..300)]
        .prop_map(|chars| chars.into_iter().collect())
}

fn name() -> impl Strategy<Value = String> {
    text().prop_map(|text| format!("t{}", text.replace(['+', '#'], "/")))
}

fn binary() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![9 => vec(any::<u8>(), 0..12), 1 => vec(any::<u8>(), 120..300)]
}

/// A property that owns its strings.
#[derive(Debug, Clone)]
enum Owned {
    Fixed(Property<'static>),
    Text(PropertyId, String),
    Binary(PropertyId, Vec<u8>),
    User(String, String),
}

impl Owned {
    fn as_property(&self) -> Property<'_> {
        use PropertyId as P;
        match self {
            Self::Fixed(property) => *property,
            Self::User(name, value) => Property::UserProperty(name, value),
            Self::Binary(P::CorrelationData, data) => Property::CorrelationData(data),
            Self::Binary(_, data) => Property::AuthenticationData(data),
            Self::Text(P::ContentType, text) => Property::ContentType(text),
            Self::Text(P::ResponseTopic, text) => Property::ResponseTopic(text),
            Self::Text(P::AssignedClientIdentifier, text) => Property::AssignedClientIdentifier(text),
            Self::Text(P::AuthenticationMethod, text) => Property::AuthenticationMethod(text),
            Self::Text(P::ResponseInformation, text) => Property::ResponseInformation(text),
            Self::Text(P::ServerReference, text) => Property::ServerReference(text),
            Self::Text(_, text) => Property::ReasonString(text),
        }
    }
}

/// Any valid property of any packet.
fn property() -> impl Strategy<Value = Owned> {
    use PropertyId as P;
    let flag = (0..6_usize, any::<bool>()).prop_map(|(which, value)| {
        [
            Property::PayloadFormatIndicator,
            Property::RequestProblemInformation,
            Property::RequestResponseInformation,
            Property::RetainAvailable,
            Property::WildcardSubscriptionAvailable,
            Property::SharedSubscriptionAvailable,
        ][which](value)
    });
    let short = (0..4_usize, 1..=u16::MAX).prop_map(|(which, value)| {
        [
            Property::ServerKeepAlive,
            Property::ReceiveMaximum,
            Property::TopicAliasMaximum,
            Property::TopicAlias,
        ][which](value)
    });
    let long = (0..4_usize, 1..=u32::MAX).prop_map(|(which, value)| {
        [
            Property::MessageExpiryInterval,
            Property::SessionExpiryInterval,
            Property::WillDelayInterval,
            Property::MaximumPacketSize,
        ][which](value)
    });
    let identifier = prop_oneof![1..300_u32, 1..=268_435_455_u32].prop_map(Property::SubscriptionIdentifier);
    let maximum_qos =
        prop_oneof![Just(QoS::AtMostOnce), Just(QoS::AtLeastOnce)].prop_map(Property::MaximumQoS);
    let which = proptest::sample::select(vec![
        P::ContentType,
        P::AssignedClientIdentifier,
        P::AuthenticationMethod,
        P::ResponseInformation,
        P::ServerReference,
        P::ReasonString,
    ]);
    prop_oneof![
        flag.prop_map(Owned::Fixed),
        short.prop_map(Owned::Fixed),
        long.prop_map(Owned::Fixed),
        identifier.prop_map(Owned::Fixed),
        maximum_qos.prop_map(Owned::Fixed),
        any::<bool>().prop_map(|value| Owned::Fixed(Property::SubscriptionIdentifierAvailable(value))),
        (which, text()).prop_map(|(id, text)| Owned::Text(id, text)),
        name().prop_map(|text| Owned::Text(P::ResponseTopic, text)),
        (prop_oneof![Just(P::CorrelationData), Just(P::AuthenticationData)], binary())
            .prop_map(|(id, data)| Owned::Binary(id, data)),
        (text(), text()).prop_map(|(name, value)| Owned::User(name, value)),
    ]
}

/// The properties of `list` that keep a packet of this scope valid, each by the check that the decoder uses.
fn valid(list: &[Owned], scope: PropertyScope) -> PropertiesBuf {
    let mut buf = PropertiesBuf::new();
    if scope == PropertyScope::Packet(PacketType::Auth) {
        buf.push(Property::AuthenticationMethod("m")).unwrap();
    }
    for owned in list {
        let mut longer = buf.clone();
        longer.push(owned.as_property()).unwrap();
        if Properties::checked(longer.as_properties().as_bytes(), scope).is_ok() {
            buf = longer;
        }
    }
    buf
}

fn reason_of(packet: PacketType) -> impl Strategy<Value = ReasonCode> {
    let codes: Vec<u8> = (0..=u8::MAX).filter(|&code| ReasonCode(code).allowed_in(packet)).collect();
    proptest::sample::select(codes).prop_map(ReasonCode)
}

/// Properties for a version: none before MQTT 5.
fn put<'a>(buf: &'a PropertiesBuf, version: Version) -> Properties<'a> {
    if version == V5 { buf.as_properties() } else { Properties::EMPTY }
}

fn round_trip(packet: &Packet<'_>, version: Version) {
    check_decode(&encoded(packet, version), packet, version);
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn connect(
        version in version(),
        (clean_start, bridge, keep_alive, client_id) in (any::<bool>(), any::<bool>(), any::<u16>(), text()),
        (list, will_list) in (vec(property(), 0..20), vec(property(), 0..20)),
        will in option::of((qos(), any::<bool>(), name(), binary())),
        (username, password) in (option::of(text()), option::of(binary())),
    ) {
        let properties = valid(&list, PropertyScope::Packet(PacketType::Connect));
        let will_properties = valid(&will_list, PropertyScope::Will);
        let packet = Packet::Connect(Connect {
            version,
            clean_start,
            bridge: bridge && version < V5,
            keep_alive,
            properties: put(&properties, version),
            client_id: &client_id,
            will: will.as_ref().map(|(qos, retain, topic, payload)| Will {
                qos: *qos,
                retain: *retain,
                properties: put(&will_properties, version),
                topic,
                payload,
            }),
            username: username.as_deref(),
            password: password.as_deref().filter(|_| version == V5 || username.is_some()),
        });
        round_trip(&packet, version);
    }

    #[test]
    fn connack(version in version(), session_present: bool, code in 0..6_u8, reason in reason_of(PacketType::Connack),
               list in vec(property(), 0..30)) {
        let properties = valid(&list, PropertyScope::Packet(PacketType::Connack));
        let reason = if version == V5 { reason } else { ReasonCode::from_connack_v3(code).unwrap() };
        let packet = Packet::Connack(Connack {
            session_present: session_present && version > V31 && !reason.is_error(),
            reason,
            properties: put(&properties, version),
        });
        round_trip(&packet, version);
    }

    #[test]
    fn publish(version in version(), dup: bool, qos in qos(), retain: bool, topic in name(), id in 1..=u16::MAX,
               list in vec(property(), 0..20), payload in binary(), aliased: bool) {
        let properties = valid(&list, PropertyScope::Packet(PacketType::Publish));
        let acknowledged = qos > QoS::AtMostOnce;
        let properties = put(&properties, version);
        let alias = aliased && properties.topic_alias().is_some();
        let publish = Publish {
            dup: dup && acknowledged,
            qos,
            retain,
            topic: if alias { "" } else { &topic },
            packet_id: if acknowledged { id } else { 0 },
            properties,
            payload: &payload,
        };
        round_trip(&Packet::Publish(publish), version);

        // The template writes the same bytes.
        let template =
            PublishTemplate::new(version, acknowledged, publish.topic, &[properties], &payload).unwrap();
        let mut out = Vec::new();
        let flags = PublishFlags { dup: publish.dup, qos, retain };
        template.write(&mut out, flags, id);
        prop_assert_eq!(out, encoded(&Packet::Publish(publish), version));

        // As does a split of the properties into parts.
        let mut parts = (PropertiesBuf::new(), PropertiesBuf::new());
        let mut index = 0;
        parts.0.extend(properties, |_| { index += 1; index <= 2 });
        index = 0;
        parts.1.extend(properties, |_| { index += 1; index > 2 });
        let mut out = Vec::new();
        let both = [parts.0.as_properties(), parts.1.as_properties()];
        encode_publish(&mut out, version, flags, publish.topic, id, &both, &payload).unwrap();
        prop_assert_eq!(out, encoded(&Packet::Publish(publish), version));
    }

    #[test]
    fn acknowledgement(version in version(), packet_id in 1..=u16::MAX, reason in reason_of(PacketType::Puback),
                       release in reason_of(PacketType::Pubrel), list in vec(property(), 0..8)) {
        let properties = valid(&list, PropertyScope::Packet(PacketType::Puback));
        let properties = put(&properties, version);
        let of = |reason| Ack { packet_id, reason: if version == V5 { reason } else { ReasonCode::SUCCESS }, properties };
        round_trip(&Packet::Puback(of(reason)), version);
        round_trip(&Packet::Pubrec(of(reason)), version);
        round_trip(&Packet::Pubrel(of(release)), version);
        round_trip(&Packet::Pubcomp(of(release)), version);
    }

    #[test]
    fn subscribe(version in version(), packet_id in 1..=u16::MAX, list in vec(property(), 0..8),
                 filters in vec((text(), qos(), any::<bool>(), any::<bool>(), 0..3_u8), 1..10)) {
        let properties = valid(&list, PropertyScope::Packet(PacketType::Subscribe));
        let mut subscribes = SubscribeFiltersBuf::new();
        let mut unsubscribes = UnsubscribeFiltersBuf::new();
        for (filter, qos, no_local, retain_as_published, retain_handling) in &filters {
            let options = if version == V5 {
                SubscribeOptions {
                    qos: *qos,
                    no_local: *no_local,
                    retain_as_published: *retain_as_published,
                    retain_handling: *retain_handling,
                }
            } else {
                SubscribeOptions::new(*qos)
            };
            prop_assert_eq!(SubscribeOptions::from_byte(options.to_byte()), Ok(options));
            subscribes.push(filter, options).unwrap();
            unsubscribes.push(filter).unwrap();
        }
        round_trip(&Packet::Subscribe(Subscribe {
            packet_id,
            properties: put(&properties, version),
            filters: subscribes.as_filters(),
        }), version);
        let expected: Vec<&str> = filters.iter().map(|filter| filter.0.as_str()).collect();
        prop_assert_eq!(subscribes.as_filters().iter().map(|(filter, _)| filter).collect::<Vec<_>>(), expected.clone());
        prop_assert_eq!(unsubscribes.as_filters().iter().collect::<Vec<_>>(), expected);
        let properties = valid(&list, PropertyScope::Packet(PacketType::Unsubscribe));
        round_trip(&Packet::Unsubscribe(Unsubscribe {
            packet_id,
            properties: put(&properties, version),
            filters: unsubscribes.as_filters(),
        }), version);
    }

    #[test]
    fn suback(version in version(), packet_id in 1..=u16::MAX, list in vec(property(), 0..8),
              granted in vec(reason_of(PacketType::Suback), 1..10), ended in vec(reason_of(PacketType::Unsuback), 1..10)) {
        let properties = valid(&list, PropertyScope::Packet(PacketType::Suback));
        let properties = put(&properties, version);
        let top = if version == V5 { u8::MAX } else { 0x80 };
        let reasons: Vec<u8> = granted.iter().map(|reason| reason.0.min(top)).collect();
        round_trip(&Packet::Suback(Suback { packet_id, properties, reasons: &reasons }), version);
        let reasons: Vec<u8> = ended.iter().filter(|_| version == V5).map(|reason| reason.0).collect();
        round_trip(&Packet::Unsuback(Suback { packet_id, properties, reasons: &reasons }), version);
    }

    #[test]
    fn disconnect_and_auth(version in version(), reason in reason_of(PacketType::Disconnect),
                           step in reason_of(PacketType::Auth), list in vec(property(), 0..8)) {
        let properties = valid(&list, PropertyScope::Packet(PacketType::Disconnect));
        let reason = if version == V5 { reason } else { ReasonCode::SUCCESS };
        round_trip(&Packet::Disconnect(Disconnect { reason, properties: put(&properties, version) }), version);
        let properties = valid(&list, PropertyScope::Packet(PacketType::Auth));
        round_trip(&Packet::Auth(Auth { reason: step, properties: properties.as_properties() }), V5);
    }

    /// The builder and the view agree, property by property.
    #[test]
    fn properties(list in vec(property(), 0..30)) {
        for scope in [PropertyScope::Will, PropertyScope::Packet(PacketType::Connack)] {
            let buf = valid(&list, scope);
            let view = buf.as_properties();
            let mut copy = PropertiesBuf::new();
            for property in view.iter() {
                if property.id() != PropertyId::UserProperty {
                    prop_assert_eq!(view.get(property.id()), Some(property));
                }
                prop_assert!(view.contains(property.id()));
                copy.push(property).unwrap();
            }
            prop_assert_eq!(&copy, &buf);
            let mut copy = PropertiesBuf::new();
            copy.extend(view, |_| true);
            prop_assert_eq!(&copy, &buf);
        }
    }
}

/// Decodes, and checks whatever a success promises: views walk to their end, and the packet encodes to one that
/// decodes to the same.
fn probe(bytes: &[u8], version: Option<Version>, max: usize) {
    let _ = (frame_len(bytes, max), connect_version(bytes));
    let Ok(Some((packet, used))) = decode(bytes, version, max) else { return };
    assert!(used <= bytes.len() && used <= max);
    match packet {
        Packet::Subscribe(subscribe) => {
            assert_eq!(subscribe.filters.iter().count(), subscribe.filters.len());
        }
        Packet::Unsubscribe(unsubscribe) => {
            assert_eq!(unsubscribe.filters.iter().count(), unsubscribe.filters.len());
        }
        _ => {}
    }
    let version = match packet {
        Packet::Connect(connect) => connect.version,
        _ => version.unwrap(),
    };
    check_decode(&encoded(&packet, version), &packet, version);
}

proptest! {
    #![proptest_config(cases(20_000))]

    #[test]
    fn arbitrary_bytes(bytes in vec(any::<u8>(), 0..64), version in option::of(version()), max in 0..80_usize) {
        probe(&bytes, version, max);
    }

    /// A plausible fixed header and a body of few distinct bytes: reaches deeper than noise.
    #[test]
    fn plausible_frames(first in any::<u8>(), version in option::of(version()), body in vec(prop_oneof![
        4 => 0..5_u8, 2 => 0..0x30_u8, 1 => any::<u8>(), 1 => Just(b'M'), 1 => Just(b'+'),
    ], 0..40)) {
        let mut frame = vec![first, u8::try_from(body.len()).unwrap()];
        frame.extend_from_slice(&body);
        probe(&frame, version, ANY);
    }

    /// A valid frame with one byte changed.
    #[test]
    fn damaged_frames(which in 0..SEEDS.len(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let (version, seed) = SEEDS[which];
        let mut frame = seed.to_vec();
        let at = at.index(frame.len());
        frame[at] = byte;
        probe(&frame, version, ANY);
    }
}

const SEEDS: &[(Option<Version>, &[u8])] = &[
    (None, b"\x10\x1E\0\x04MQTT\x04\xF4\0\x3C\0\x02c1\0\x01w\0\x04\0bye\0\x01u\0\x02\xFFp"),
    (None, b"\x10\x20\0\x06MQIsdp\x03\xF4\0\x3C\0\x02c1\0\x01w\0\x04\0bye\0\x01u\0\x02\xFFp"),
    (None, b"\x10\x17\0\x04MQTT\x05\x02\0\x3C\x08\x21\0\x14\x11\0\0\0\x05\0\x02c1"),
    (Some(V5), b"\x20\x0B\0\0\x08\x21\0\x14\x11\0\0\0\x05"),
    (Some(V311), b"\x3D\x09\0\x03a/b\x12\x34hi"),
    (Some(V5), b"\x32\x16\0\x03a/b\0\x01\x0C\x23\0\x01\x26\0\x01k\0\x01v\x0B\x01hi"),
    (Some(V5), b"\x40\x10\0\x01\x97\x0C\x1F\0\x02no\x26\0\x01a\0\x01b"),
    (Some(V5), b"\x82\x20\0\x0A\x03\x0B\xAC\x02\0\x03a/#\x01\0\x01+\x02\0\x0A$share/g/x\x28\0\0\x14"),
    (Some(V311), b"\x82\x0C\0\x0A\0\x03a/#\x01\0\x01+\x02"),
    (Some(V5), b"\x90\x07\0\x0A\0\0\x01\x02\x80"),
    (Some(V5), b"\xA2\x12\0\x0A\x07\x26\0\x01a\0\x01b\0\x03a/#\0\x01+"),
    (Some(V5), b"\xB0\x0A\0\x0A\x04\x1F\0\x01x\0\x11\x87"),
    (Some(V5), b"\xE0\x0B\x9D\x09\x1C\0\x01s\x11\0\0\0\0"),
    (Some(V5), b"\xF0\x0A\x18\x08\x15\0\x01m\x16\0\x01\0"),
];
