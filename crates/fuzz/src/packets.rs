//! Well-formed packets out of an input, with names and ids from small tables, so that they meet again.

use ferrule_mqtt::{
    Ack, AckType, Connect, Disconnect, Packet, Properties, PropertiesBuf, Property, Publish, QoS, ReasonCode,
    Subscribe, SubscribeFiltersBuf, SubscribeOptions, Unsubscribe, UnsubscribeFiltersBuf, Version, Will,
};

use crate::Input;

/// Client identifiers. The empty one is assigned by the server.
pub(crate) const CLIENTS: [&str; 5] = ["a", "b", "c", "d", ""];
/// A name of 131 levels, three more than a server may be made to walk.
const DEEP: &str = "d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d";
/// Topic names, some of which hide from wildcards, are deeper than is allowed.
pub(crate) const TOPICS: [&str; 10] =
    ["a", "a/b", "a/b/c", "b", "/", "a//c", "$SYS/x", DEEP, "private/b", "\u{e9}/\u{1f600}"];
/// Topic filters, the last of them not valid, shared or exclusive.
pub(crate) const FILTERS: [&str; 16] = [
    "a",
    "a/b",
    "a/+",
    "a/#",
    "#",
    "+",
    "+/+",
    "+/#",
    "$SYS/#",
    "/",
    "a//+",
    "private/#",
    "a/#/b",
    "a+",
    "$share/g/a/#",
    "$exclusive/a",
];
/// Session Expiry Intervals in seconds.
const EXPIRIES: [u32; 6] = [0, 1, 60, 3_600, 864_000, u32::MAX];

fn qos(number: usize) -> QoS {
    [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce][number % 3]
}

/// A packet identifier out of few, so that they are used again while they are in use.
pub(crate) fn packet_id(input: &mut Input<'_>) -> u16 {
    input.pick(&[1, 2, 3, 4, 5, 6, 7, u16::MAX])
}

/// Of a property that an input chose: one that does not encode is left out.
fn push(properties: &mut PropertiesBuf, property: Property<'_>) {
    let _ = properties.push(property);
}

fn encoded(packet: &Packet<'_>, version: Version) -> Vec<u8> {
    let mut out = Vec::new();
    // What this version has no form for is not sent.
    let _ = packet.encode(version, &mut out);
    out
}

/// Properties of an application message.
fn message_properties(input: &mut Input<'_>, alias: bool) -> PropertiesBuf {
    let mut properties = PropertiesBuf::new();
    let which = input.byte();
    if which & 1 != 0 {
        push(&mut properties, Property::MessageExpiryInterval(input.pick(&[0, 1, 60, u32::MAX])));
    }
    if which & 2 != 0 {
        push(&mut properties, Property::PayloadFormatIndicator(which & 0x80 != 0));
    }
    if which & 4 != 0 {
        push(&mut properties, Property::UserProperty("k", "v"));
        push(&mut properties, Property::UserProperty("k", ""));
    }
    if which & 8 != 0 {
        push(&mut properties, Property::ResponseTopic("a/b"));
        push(&mut properties, Property::CorrelationData(&[0, 255]));
    }
    if alias && which & 16 != 0 {
        push(&mut properties, Property::TopicAlias(input.pick(&[1, 2, 4, 32, 33, u16::MAX])));
    }
    if which & 32 != 0 {
        push(&mut properties, Property::ContentType("text/plain"));
    }
    properties
}

/// CONNECT, and its version.
pub(crate) fn connect(input: &mut Input<'_>) -> (Vec<u8>, Version) {
    let version = input.pick(&[Version::V3_1_1, Version::V5, Version::V5, Version::V3_1]);
    let client_id = input.pick(&CLIENTS);
    let flags = input.byte();
    let mut properties = PropertiesBuf::new();
    let mut will_properties = PropertiesBuf::new();
    if version == Version::V5 {
        push(&mut properties, Property::SessionExpiryInterval(input.pick(&EXPIRIES)));
        let which = input.byte();
        if which & 1 != 0 {
            push(&mut properties, Property::ReceiveMaximum(input.pick(&[1, 2, 3, u16::MAX])));
        }
        if which & 2 != 0 {
            push(&mut properties, Property::MaximumPacketSize(input.pick(&[1, 8, 16, 40, 200])));
        }
        if which & 4 != 0 {
            push(&mut properties, Property::TopicAliasMaximum(8));
        }
        if which & 0xF0 == 0xF0 {
            push(&mut properties, Property::AuthenticationMethod("m"));
        }
        if flags & 2 != 0 {
            will_properties = message_properties(input, false);
            push(&mut will_properties, Property::WillDelayInterval(input.pick(&[0, 1, 60, u32::MAX])));
        }
    }
    let will = (flags & 2 != 0).then(|| Will {
        qos: qos(input.below(3)),
        retain: flags & 4 != 0,
        properties: will_properties.as_properties(),
        topic: input.pick(&TOPICS),
        payload: b"will",
    });
    let packet = Packet::Connect(Connect {
        version,
        clean_start: flags & 1 != 0,
        bridge: flags & 8 != 0 && version != Version::V5,
        keep_alive: if flags & 16 != 0 { input.pick(&[1, 10, u16::MAX]) } else { 0 },
        properties: properties.as_properties(),
        client_id,
        will,
        username: (flags & 32 != 0).then_some("user"),
        password: (flags & 0x60 == 0x60).then_some(b"pass"),
    });
    (encoded(&packet, version), version)
}

/// PUBLISH. `payload` is repeated as often as the input says.
pub(crate) fn publish(input: &mut Input<'_>, version: Version, packet_id: u16) -> Vec<u8> {
    let flags = input.byte();
    let topic = input.pick(&TOPICS);
    let properties =
        if version == Version::V5 { message_properties(input, true) } else { PropertiesBuf::new() };
    let len = usize::from(input.byte());
    let payload = input.bytes(len % 16).repeat(1 + (len >> 5) * 8);
    let qos = qos(usize::from(flags));
    let packet = Packet::Publish(Publish {
        dup: flags & 0x40 != 0 && qos > QoS::AtMostOnce,
        qos,
        retain: flags & 0x80 != 0,
        // Named by its alias alone, if it has one.
        topic: if flags & 0x20 != 0 && version == Version::V5 { "" } else { topic },
        packet_id: if qos == QoS::AtMostOnce { 0 } else { packet_id },
        properties: properties.as_properties(),
        payload: &payload,
    });
    encoded(&packet, version)
}

/// SUBSCRIBE to one to four filters.
pub(crate) fn subscribe(input: &mut Input<'_>, version: Version, packet_id: u16) -> Vec<u8> {
    let v5 = version == Version::V5;
    let mut filters = SubscribeFiltersBuf::new();
    for _ in 0..=input.below(4) {
        let filter = input.pick(&FILTERS);
        let flags = input.byte();
        let options = SubscribeOptions {
            qos: qos(usize::from(flags)),
            no_local: v5 && flags & 0x10 != 0,
            retain_as_published: v5 && flags & 0x20 != 0,
            retain_handling: if v5 { (flags >> 6) % 3 } else { 0 },
        };
        let _ = filters.push(filter, options);
    }
    let mut properties = PropertiesBuf::new();
    let id = input.pick(&[0, 0, 1, 127, 128, 268_435_455]);
    if v5 && id != 0 {
        push(&mut properties, Property::SubscriptionIdentifier(id));
    }
    let properties = properties.as_properties();
    encoded(&Packet::Subscribe(Subscribe { packet_id, properties, filters: filters.as_filters() }), version)
}

/// UNSUBSCRIBE from one to four filters.
pub(crate) fn unsubscribe(input: &mut Input<'_>, version: Version, packet_id: u16) -> Vec<u8> {
    let mut filters = UnsubscribeFiltersBuf::new();
    for _ in 0..=input.below(4) {
        let _ = filters.push(input.pick(&FILTERS));
    }
    let (properties, filters) = (Properties::EMPTY, filters.as_filters());
    encoded(&Packet::Unsubscribe(Unsubscribe { packet_id, properties, filters }), version)
}

/// An acknowledgement.
pub(crate) fn ack(kind: AckType, packet_id: u16, reason: ReasonCode, version: Version) -> Vec<u8> {
    let ack = Ack { packet_id, reason, properties: Properties::EMPTY };
    let packet = match kind {
        AckType::Puback => Packet::Puback(ack),
        AckType::Pubrec => Packet::Pubrec(ack),
        AckType::Pubrel => Packet::Pubrel(ack),
        AckType::Pubcomp => Packet::Pubcomp(ack),
    };
    encoded(&packet, version)
}

/// An acknowledgement of an input's choice, perhaps one that refuses.
pub(crate) fn any_ack(input: &mut Input<'_>, version: Version) -> Vec<u8> {
    let kind = input.pick(&[AckType::Puback, AckType::Pubrec, AckType::Pubrel, AckType::Pubcomp]);
    let packet_id = packet_id(input);
    let reason = match kind {
        AckType::Puback | AckType::Pubrec => input.pick(&[ReasonCode::SUCCESS, ReasonCode::QUOTA_EXCEEDED]),
        AckType::Pubrel | AckType::Pubcomp => {
            input.pick(&[ReasonCode::SUCCESS, ReasonCode::PACKET_IDENTIFIER_NOT_FOUND])
        }
    };
    ack(kind, packet_id, reason, version)
}

/// DISCONNECT.
pub(crate) fn disconnect(input: &mut Input<'_>, version: Version) -> Vec<u8> {
    let flags = input.byte();
    let mut properties = PropertiesBuf::new();
    if version == Version::V5 && flags & 1 != 0 {
        push(&mut properties, Property::SessionExpiryInterval(input.pick(&EXPIRIES)));
    }
    let will = version == Version::V5 && flags & 2 != 0;
    let reason = if will { ReasonCode::DISCONNECT_WITH_WILL } else { ReasonCode::SUCCESS };
    encoded(&Packet::Disconnect(Disconnect { reason, properties: properties.as_properties() }), version)
}
