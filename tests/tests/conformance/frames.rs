//! Packets made by hand and clients that answer only what they are told to.
//!
//! Everything here takes the address and the version, so that it serves the shared node and nodes of a test's own alike.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};

use ferrule_mqtt::{AckType, Packet, Properties, QoS, Suback, Version};
use ferrule_testkit::Client;
use ferrule_testkit::wire::{self, Frame, Message, Options, PATIENCE};

/// MQTT 5: Session Expiry Interval of an hour.
pub(crate) const EXPIRY: &[u8] = &[0x11, 0, 0, 0x0E, 0x10];

/// PUBLISH of QoS 0, 1 and 2: first bytes.
pub(crate) const PUBLISH: [u8; 3] = [0x30, 0x32, 0x34];
/// First byte of an acknowledgement.
pub(crate) const PUBACK: u8 = 0x40;
/// First byte of an acknowledgement.
pub(crate) const PUBREC: u8 = 0x50;
/// First byte of an acknowledgement.
pub(crate) const PUBREL: u8 = 0x62;
/// First byte of an acknowledgement.
pub(crate) const PUBCOMP: u8 = 0x70;
/// The flag DUP.
pub(crate) const DUP: u8 = 8;

/// All three.
pub(crate) const ALL_QOS: [QoS; 3] = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];

/// Where a broker is, and the version it is spoken to in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer {
    /// Its listener.
    pub(crate) addr: SocketAddr,
    /// Protocol version.
    pub(crate) version: Version,
}

impl Peer {
    /// Whether that is MQTT 5.
    pub(crate) fn is_v5(self) -> bool {
        self.version == Version::V5
    }

    /// A connection without CONNECT.
    pub(crate) fn open(self) -> Client {
        Client::open(self.addr, self.version).unwrap()
    }

    /// Connects and is accepted; `properties` are MQTT 5's, encoded. Says whether there was a session.
    pub(crate) fn connect_session(self, id: &str, clean: bool, properties: &[u8]) -> (Client, bool) {
        let (client, connack) = self.accepted(&connect(self.version, id, clean, properties));
        (client, connack.connack().1)
    }

    /// Sends a CONNECT and is accepted: the CONNACK.
    pub(crate) fn accepted(self, connect: &[u8]) -> (Client, Frame) {
        let mut client = self.open();
        client.send_raw(connect).unwrap();
        let connack = client.recv(PATIENCE).unwrap();
        assert_eq!(connack.connack().0.0, 0, "refused; after {connect:02x?}");
        (client, connack)
    }

    /// Sends a first packet, and perhaps more behind it, that a broker does not accept: the code of its CONNACK if there is one.
    /// Session present is 0, nothing else comes, and the connection is closed.
    pub(crate) fn refusal(self, sent: &[u8]) -> Option<u8> {
        let mut client = self.open();
        client.send_raw(sent).unwrap();
        let mut code = None;
        loop {
            match client.recv(PATIENCE) {
                Ok(frame) => {
                    assert!(code.is_none(), "{frame:?} follows a refusal; after {sent:02x?}");
                    let [0x20, _, flags, refused, ..] = *frame.bytes() else {
                        panic!("{frame:?} instead of a CONNACK; after {sent:02x?}")
                    };
                    assert_eq!(flags, 0, "of a refusal");
                    assert_ne!(refused, 0, "accepted; after {sent:02x?}");
                    code = Some(refused);
                }
                Err(error) => {
                    let closed = [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset];
                    assert!(closed.contains(&error.kind()), "{error}; after {sent:02x?}");
                    return code;
                }
            }
        }
    }

    /// A CONNECT that does not conform: MQTT 5 says one of `reasons`, 3.1.1 closes without a CONNACK [MQTT-3.1.4-1].
    pub(crate) fn rejects(self, connect: &[u8], reasons: &[u8]) {
        match self.refusal(connect) {
            Some(reason) => {
                assert!(self.is_v5(), "CONNACK {reason}; after {connect:02x?}");
                assert!(
                    reasons.contains(&reason),
                    "{reason:#04x}, wanted {reasons:02x?}; after {connect:02x?}"
                );
            }
            None => assert!(!self.is_v5(), "closed without CONNACK after {connect:02x?}"),
        }
    }

    /// Connects with a session that ends with the connection.
    pub(crate) fn clean(self, id: &str) -> Client {
        self.connect_session(id, true, &[]).0
    }

    /// Connects to a session that outlives the connection, new or found again.
    pub(crate) fn persistent(self, id: &str) -> Client {
        self.connect_session(id, false, EXPIRY).0
    }

    /// Connects to a session that must be there.
    pub(crate) fn back(self, id: &str) -> Client {
        let (client, present) = self.connect_session(id, false, EXPIRY);
        assert!(present, "the session of {id} is gone");
        client
    }

    /// Publishes from a client of its own, through to the last acknowledgement.
    pub(crate) fn publish(self, topic: &str, payload: &[u8], qos: QoS, retain: bool) {
        Client::connect(self.addr, &Options::v4("")).publish(topic, payload, qos, retain);
    }

    /// PUBLISH in this version; `properties` are MQTT 5's, encoded; the packet id is left out at QoS 0.
    pub(crate) fn publish_bytes(
        self,
        first: u8,
        topic: &[u8],
        id: u16,
        properties: &[u8],
        payload: &[u8],
    ) -> Vec<u8> {
        let id = id.to_be_bytes();
        let id: &[u8] = if first & 6 == 0 { &[] } else { &id };
        packet(first, &[&bytes(topic), id, &self.properties(properties), payload])
    }

    /// SUBSCRIBE with filters and their options.
    pub(crate) fn subscribe_bytes(self, id: u16, properties: &[u8], filters: &[(&str, u8)]) -> Vec<u8> {
        let mut body = Vec::new();
        for (filter, options) in filters {
            body.extend_from_slice(&bytes(filter.as_bytes()));
            body.push(*options);
        }
        packet(0x82, &[&id.to_be_bytes(), &self.properties(properties), &body])
    }

    /// UNSUBSCRIBE.
    pub(crate) fn unsubscribe_bytes(self, id: u16, filters: &[&str]) -> Vec<u8> {
        let body: Vec<u8> = filters.iter().flat_map(|filter| bytes(filter.as_bytes())).collect();
        packet(0xA2, &[&id.to_be_bytes(), &self.properties(&[]), &body])
    }

    /// The property field: nothing before MQTT 5.
    pub(crate) fn properties(self, properties: &[u8]) -> Vec<u8> {
        if !self.is_v5() {
            return Vec::new();
        }
        let mut field = Vec::new();
        variable(&mut field, properties.len());
        field.extend_from_slice(properties);
        field
    }

    /// Sends bytes that a broker must not stand, from an accepted client: MQTT 5 closes with one of `reasons`, 3.1.1 closes.
    pub(crate) fn refuses(self, packet: &[u8], reasons: &[u8]) {
        let mut client = self.clean(&unique());
        client.send_raw(packet).unwrap();
        self.closed(&mut client, reasons, packet);
    }

    /// The broker closes: MQTT 5 with one of `reasons`, 3.1.1 without a word.
    pub(crate) fn closed(self, client: &mut Client, reasons: &[u8], after: &[u8]) {
        match client.expect_closed() {
            Some(reason) => {
                assert!(self.is_v5(), "a server's DISCONNECT is MQTT 5's; after {after:02x?}");
                assert!(reasons.contains(&reason.0), "{reason:?}, wanted {reasons:02x?}; after {after:02x?}");
            }
            None => assert!(!self.is_v5(), "closed without DISCONNECT after {after:02x?}"),
        }
    }

    /// Leaves with DISCONNECT, which the broker has seen when this returns: what is published then waits for the session's next
    /// connection and was not sent before.
    pub(crate) fn leave(self, mut client: Client) {
        client.send_raw(&[0xE0, 0]).unwrap();
        self.closed_silently(&mut client);
    }

    /// The broker closes and sends nothing more.
    pub(crate) fn closed_silently(self, client: &mut Client) {
        let error = client.recv(PATIENCE).expect_err("nothing follows");
        assert!([ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset].contains(&error.kind()), "{error}");
    }

    /// The messages that have come to `client` up to now, acknowledged.
    pub(crate) fn rest(self, client: &mut Client) -> Vec<Message> {
        let fence = format!("fence/{}", unique());
        assert!(client.subscribe(&fence, QoS::AtLeastOnce) < 0x80);
        self.publish(&fence, b"", QoS::ExactlyOnce, false);
        let messages = client.messages_until(&fence);
        client.unsubscribe(&fence);
        messages
    }

    /// Texts of these.
    pub(crate) fn texts(self, client: &mut Client) -> Vec<String> {
        self.rest(client).iter().map(|message| message.text().to_owned()).collect()
    }

    /// All packets that have come to `client` up to now, none answered. The fence is of QoS 0: it passes a full window.
    pub(crate) fn frames(self, client: &mut Client) -> Vec<Frame> {
        let fence = format!("fence/{}", unique());
        assert!(client.subscribe(&fence, QoS::AtMostOnce) < 0x80);
        self.publish(&fence, b"", QoS::ExactlyOnce, false);
        let mut frames = Vec::new();
        loop {
            let frame = client.recv(PATIENCE).unwrap();
            if let Packet::Publish(publish) = frame.packet()
                && publish.topic == fence
            {
                client.unsubscribe(&fence);
                return frames;
            }
            frames.push(frame);
        }
    }
}

/// The shared broker as a peer.
pub(crate) fn peer(broker: &crate::common::Broker) -> Peer {
    Peer { addr: broker.node.addr(), version: broker.version }
}

/// A name that no other test uses: of clients, topics, groups.
pub(crate) fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("u{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A packet: first byte, remaining length, parts.
pub(crate) fn packet(first: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = vec![first];
    variable(&mut bytes, parts.iter().map(|part| part.len()).sum());
    for part in parts {
        bytes.extend_from_slice(part);
    }
    bytes
}

fn variable(out: &mut Vec<u8>, mut value: usize) {
    loop {
        let low = u8::try_from(value % 128).unwrap();
        value /= 128;
        out.push(if value == 0 { low } else { low | 0x80 });
        if value == 0 {
            return;
        }
    }
}

/// Length and bytes: a string or binary data.
pub(crate) fn bytes(content: &[u8]) -> Vec<u8> {
    let mut out = u16::try_from(content.len()).unwrap().to_be_bytes().to_vec();
    out.extend_from_slice(content);
    out
}

/// A property with a string or binary data.
pub(crate) fn property(id: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![id];
    out.extend_from_slice(&bytes(content));
    out
}

/// Connect flag: Clean Session, Clean Start.
pub(crate) const CLEAN: u8 = 2;
/// Connect flag: there is a will.
pub(crate) const WILL: u8 = 4;
/// Connect flag: there is a password.
pub(crate) const PASSWORD: u8 = 0x40;
/// Connect flag: there is a user name.
pub(crate) const NAME: u8 = 0x80;

/// CONNECT in its parts, which may be wrong: `payload` is all that follows the properties.
pub(crate) fn connect_of(
    version: Version,
    flags: u8,
    keep_alive: u16,
    properties: &[u8],
    payload: &[&[u8]],
) -> Vec<u8> {
    let field = Peer { addr: SocketAddr::from(([127, 0, 0, 1], 0)), version }.properties(properties);
    let head = [&b"\0\x04MQTT"[..], &[version as u8, flags], &keep_alive.to_be_bytes(), &field].concat();
    packet(0x10, &[&head, &payload.concat()])
}

/// CONNECT without will, name and password.
pub(crate) fn connect(version: Version, id: &str, clean: bool, properties: &[u8]) -> Vec<u8> {
    connect_of(version, if clean { CLEAN } else { 0 }, 0, properties, &[&bytes(id.as_bytes())])
}

/// A will, and how the client that has it connects.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Will<'a> {
    /// Its topic, which may be none.
    pub(crate) topic: &'a [u8],
    /// Quality of service, as a number: 3 is wrong.
    pub(crate) qos: u8,
    /// To be retained.
    pub(crate) retain: bool,
    /// MQTT 5's properties of the will, encoded.
    pub(crate) properties: &'a [u8],
    /// Clean Session, Clean Start.
    pub(crate) clean: bool,
    /// Seconds.
    pub(crate) keep_alive: u16,
    /// MQTT 5's properties of CONNECT, encoded.
    pub(crate) connect: &'a [u8],
}

impl<'a> Will<'a> {
    /// On this topic, of QoS 0 and not retained, of a client whose session ends with its connection.
    pub(crate) fn on(topic: &'a str) -> Self {
        let topic = topic.as_bytes();
        Self { topic, qos: 0, retain: false, properties: &[], clean: true, keep_alive: 0, connect: &[] }
    }

    /// CONNECT with this will, whose message is "will".
    pub(crate) fn bytes(self, version: Version, id: &str) -> Vec<u8> {
        let flags =
            WILL | if self.clean { CLEAN } else { 0 } | self.qos << 3 | if self.retain { 0x20 } else { 0 };
        let field = Peer { addr: SocketAddr::from(([127, 0, 0, 1], 0)), version }.properties(self.properties);
        let payload: [&[u8]; 4] = [&bytes(id.as_bytes()), &field, &bytes(self.topic), &bytes(b"will")];
        connect_of(version, flags, self.keep_alive, self.connect, &payload)
    }

    /// Connects with it and is accepted.
    pub(crate) fn connect(self, peer: Peer, id: &str) -> Client {
        peer.accepted(&self.bytes(peer.version, id)).0
    }
}

/// An acknowledgement in its short form.
pub(crate) fn ack(first: u8, id: u16) -> Vec<u8> {
    packet(first, &[&id.to_be_bytes()])
}

/// An acknowledgement with a reason code.
pub(crate) fn ack_with(first: u8, id: u16, reason: u8) -> Vec<u8> {
    packet(first, &[&id.to_be_bytes(), &[reason]])
}

/// The next acknowledgement of this kind, as it is: id and reason.
pub(crate) fn next_ack(client: &mut Client, kind: AckType) -> (u16, u8) {
    let frame =
        client.expect(&format!("{kind:?}"), |packet| wire::ack(packet).is_some_and(|(k, _)| k == kind));
    let packet = frame.packet();
    let (_, ack) = wire::ack(&packet).unwrap();
    (ack.packet_id, ack.reason.0)
}

/// The next PUBLISH, not acknowledged.
pub(crate) fn next_publish(client: &mut Client) -> Message {
    Message::from(publish(&next_publish_frame(client)))
}

/// The next PUBLISH as its frame, not acknowledged.
pub(crate) fn next_publish_frame(client: &mut Client) -> Frame {
    client.expect("PUBLISH", |packet| matches!(packet, Packet::Publish(_)))
}

/// The PUBLISH in a frame.
pub(crate) fn publish(frame: &Frame) -> ferrule_mqtt::Publish<'_> {
    match frame.packet() {
        Packet::Publish(publish) => publish,
        other => panic!("wanted a PUBLISH, got {other:?}"),
    }
}

/// The messages among frames.
pub(crate) fn messages(frames: &[Frame]) -> Vec<Message> {
    let publishes = frames.iter().filter(|frame| matches!(frame.packet(), Packet::Publish(_)));
    publishes.map(|frame| Message::from(publish(frame))).collect()
}

/// The next SUBACK: id and codes.
pub(crate) fn next_suback(client: &mut Client) -> (u16, Vec<u8>) {
    let frame = client.expect("SUBACK", |packet| matches!(packet, Packet::Suback(_)));
    let Packet::Suback(suback) = frame.packet() else { unreachable!("selected above") };
    assert_said_for_a_refusal(&suback);
    (suback.packet_id, suback.reasons.to_vec())
}

/// A SUBACK or UNSUBACK says more than its codes only where one of them refuses.
fn assert_said_for_a_refusal(suback: &Suback<'_>) {
    let is_refused = suback.reasons.iter().any(|&reason| reason >= 0x80);
    assert!(is_refused || suback.properties == Properties::EMPTY, "{suback:?}");
}

/// The next UNSUBACK: id and codes.
pub(crate) fn next_unsuback(client: &mut Client) -> (u16, Vec<u8>) {
    let frame = client.expect("UNSUBACK", |packet| matches!(packet, Packet::Unsuback(_)));
    let Packet::Unsuback(unsuback) = frame.packet() else { unreachable!("selected above") };
    assert_said_for_a_refusal(&unsuback);
    (unsuback.packet_id, unsuback.reasons.to_vec())
}

/// SUBSCRIBE of these filters, and the codes of its SUBACK.
pub(crate) fn subscribe(peer: Peer, client: &mut Client, filters: &[(&str, u8)]) -> Vec<u8> {
    let id = client.next_id();
    client.send_raw(&peer.subscribe_bytes(id, &[], filters)).unwrap();
    let (its, codes) = next_suback(client);
    assert_eq!(its, id, "the SUBACK's packet id");
    assert_eq!(codes.len(), filters.len(), "a code for each filter");
    codes
}
