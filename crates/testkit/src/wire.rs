//! A small blocking MQTT client over `ferrule-mqtt`'s codec: one packet at a time, under the test's control.
//!
//! It does what the test says and nothing else: it never reconnects, never pings, never sends again. What it does by itself,
//! unless [`Options::auto_ack`] is off, is to acknowledge what it receives. Packets that arrive while another one is waited for
//! are kept in order, so a delivery that overtakes a SUBACK is not lost.
//!
//! Two layers: functions that return [`io::Result`] (a device that meets dead brokers), and functions that panic with what came
//! instead (a test that wants one thing). Time-outs are [`io::ErrorKind::TimedOut`], an end of stream is
//! [`io::ErrorKind::UnexpectedEof`].

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use ferrule_mqtt::{
    Ack, AckType, Connack, Connect, Disconnect, Packet, Properties, PropertiesBuf, Property, PropertyId,
    Publish, QoS, ReasonCode, Subscribe, SubscribeFiltersBuf, SubscribeOptions, Unsubscribe,
    UnsubscribeFiltersBuf, Version, Will, decode,
};

use crate::dial::Channel;

/// How long the panicking functions wait for a packet, and every write for room.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// The longest packet accepted: far above what a test sends.
const MAX_PACKET: usize = 16 * 1024 * 1024;

/// What a client connects with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Protocol version.
    pub version: Version,
    /// Client identifier.
    pub client_id: String,
    /// Clean Session or Clean Start.
    pub clean_start: bool,
    /// Seconds; 0 (the default) is off, since this client sends no ping by itself.
    pub keep_alive: u16,
    /// MQTT 5: Session Expiry Interval in seconds.
    pub session_expiry: Option<u32>,
    /// MQTT 5: Receive Maximum.
    pub receive_maximum: Option<u16>,
    /// User name and password.
    pub login: Option<(String, String)>,
    /// Will: topic, payload, quality of service, retain.
    pub will: Option<(String, Vec<u8>, QoS, bool)>,
    /// Whether received messages are acknowledged when they are handed out (QoS 2 through all its steps).
    pub auto_ack: bool,
}

impl Options {
    /// MQTT 3.1.1 with a clean session.
    #[must_use]
    pub fn v4(client_id: &str) -> Self {
        Self {
            version: Version::V3_1_1,
            client_id: client_id.to_owned(),
            clean_start: true,
            keep_alive: 0,
            session_expiry: None,
            receive_maximum: None,
            login: None,
            will: None,
            auto_ack: true,
        }
    }

    /// MQTT 5 with Clean Start.
    #[must_use]
    pub fn v5(client_id: &str) -> Self {
        Self { version: Version::V5, ..Self::v4(client_id) }
    }

    /// A session that outlives the connection: Clean Session 0, or no Clean Start and an expiry of an hour.
    #[must_use]
    pub fn persistent(mut self) -> Self {
        self.clean_start = false;
        self.session_expiry = Some(3600);
        self
    }

    /// With a will.
    #[must_use]
    pub fn will(mut self, topic: &str, payload: &[u8], qos: QoS, retain: bool) -> Self {
        self.will = Some((topic.to_owned(), payload.to_vec(), qos, retain));
        self
    }

    /// With user name and password.
    #[must_use]
    pub fn login(mut self, name: &str, password: &str) -> Self {
        self.login = Some((name.to_owned(), password.to_owned()));
        self
    }

    /// Leaves acknowledging to the test.
    #[must_use]
    pub fn manual_ack(mut self) -> Self {
        self.auto_ack = false;
        self
    }

    /// The bytes of its CONNECT.
    ///
    /// # Errors
    /// `InvalidData` when it cannot be encoded.
    pub fn connect(&self) -> io::Result<Vec<u8>> {
        let mut properties = PropertiesBuf::new();
        if self.version == Version::V5 {
            if let Some(seconds) = self.session_expiry {
                properties.push(Property::SessionExpiryInterval(seconds)).map_err(invalid)?;
            }
            if let Some(maximum) = self.receive_maximum {
                properties.push(Property::ReceiveMaximum(maximum)).map_err(invalid)?;
            }
        }
        let will = self.will.as_ref().map(|(topic, payload, qos, retain)| Will {
            qos: *qos,
            retain: *retain,
            properties: Properties::EMPTY,
            topic,
            payload,
        });
        let connect = Packet::Connect(Connect {
            version: self.version,
            clean_start: self.clean_start,
            bridge: false,
            keep_alive: self.keep_alive,
            properties: properties.as_properties(),
            client_id: &self.client_id,
            will,
            username: self.login.as_ref().map(|(name, _)| name.as_str()),
            password: self.login.as_ref().map(|(_, password)| password.as_bytes()),
        });
        encoded(&connect, self.version)
    }
}

/// A received packet, kept: decoded again when looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    version: Version,
    bytes: Vec<u8>,
}

impl Frame {
    /// The packet.
    #[must_use]
    pub fn packet(&self) -> Packet<'_> {
        match decode(&self.bytes, Some(self.version), MAX_PACKET) {
            Ok(Some((packet, _))) => packet,
            other => unreachable!("decoded when it was received: {other:?}"),
        }
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What a CONNACK says: its reason, and whether there was a session.
    ///
    /// # Panics
    /// When it is another packet.
    #[must_use]
    pub fn connack(&self) -> (ReasonCode, bool) {
        match self.packet() {
            Packet::Connack(Connack { reason, session_present, .. }) => (reason, session_present),
            other => panic!("wanted a CONNACK, got {other:?}"),
        }
    }
}

/// A received application message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Topic name.
    pub topic: String,
    /// Payload.
    pub payload: Vec<u8>,
    /// Quality of service it was delivered with.
    pub qos: QoS,
    /// Retain flag.
    pub retain: bool,
    /// DUP flag.
    pub dup: bool,
    /// Packet identifier; 0 for QoS 0.
    pub packet_id: u16,
    /// MQTT 5: its user properties.
    pub user_properties: Vec<(String, String)>,
}

impl Message {
    /// The payload as text.
    ///
    /// # Panics
    /// When it is not UTF-8.
    #[must_use]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.payload).expect("a test's payload is text")
    }
}

/// A message to publish.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing<'a> {
    /// Topic name.
    pub topic: &'a str,
    /// Payload.
    pub payload: &'a [u8],
    /// Quality of service.
    pub qos: QoS,
    /// Retain flag.
    pub retain: bool,
    /// DUP flag.
    pub dup: bool,
    /// Packet identifier; ignored for QoS 0.
    pub packet_id: u16,
}

/// A connection.
#[derive(Debug)]
pub struct Client {
    channel: Box<dyn Channel>,
    version: Version,
    auto_ack: bool,
    received: Vec<u8>,
    kept: VecDeque<Frame>,
    next_id: u16,
}

impl Client {
    /// A TCP connection without CONNECT, for raw bytes.
    ///
    /// # Errors
    /// Those of connecting, within 10 s.
    pub fn open(addr: SocketAddr, version: Version) -> io::Result<Self> {
        let socket = TcpStream::connect_timeout(&addr, PATIENCE)?;
        socket.set_nodelay(true)?;
        Self::over(Box::new(socket), version)
    }

    /// A connection that stands already, without CONNECT: whatever [`crate::dial`] makes.
    ///
    /// # Errors
    /// Those of setting a time-out.
    pub fn over(channel: Box<dyn Channel>, version: Version) -> io::Result<Self> {
        channel.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { channel, version, auto_ack: true, received: Vec::new(), kept: VecDeque::new(), next_id: 0 })
    }

    /// Connects, and returns the CONNACK whatever it says.
    ///
    /// # Errors
    /// Those of connecting; `InvalidData` when something else than a CONNACK came.
    pub fn try_connect(addr: SocketAddr, options: &Options) -> io::Result<(Self, Frame)> {
        Self::open(addr, options.version)?.try_login(options)
    }

    /// Sends the CONNECT of `options`, and returns the CONNACK whatever it says.
    ///
    /// # Errors
    /// Those of the connection; `InvalidData` when something else than a CONNACK came.
    pub fn try_login(mut self, options: &Options) -> io::Result<(Self, Frame)> {
        self.auto_ack = options.auto_ack;
        self.send_raw(&options.connect()?)?;
        let frame = self.recv(PATIENCE)?;
        match frame.packet() {
            Packet::Connack(_) => Ok((self, frame)),
            other => Err(invalid(format!("wanted a CONNACK, got {other:?}"))),
        }
    }

    /// Connects and is accepted; also says whether the broker had a session.
    ///
    /// # Panics
    /// When it is not.
    #[must_use]
    pub fn connect_session(addr: SocketAddr, options: &Options) -> (Self, bool) {
        let (client, frame) =
            Self::try_connect(addr, options).unwrap_or_else(|error| panic!("{addr} {options:?}: {error}"));
        let (reason, session_present) = frame.connack();
        assert_eq!(reason, ReasonCode::SUCCESS, "{addr} refused {options:?}");
        (client, session_present)
    }

    /// Sends the CONNECT of `options` and is accepted.
    ///
    /// # Panics
    /// When it is not.
    #[must_use]
    pub fn login(self, options: &Options) -> Self {
        let (client, frame) = self.try_login(options).unwrap_or_else(|error| panic!("{options:?}: {error}"));
        assert_eq!(frame.connack().0, ReasonCode::SUCCESS, "refused {options:?}");
        client
    }

    /// Connects and is accepted.
    ///
    /// # Panics
    /// When it is not.
    #[must_use]
    pub fn connect(addr: SocketAddr, options: &Options) -> Self {
        Self::connect_session(addr, options).0
    }

    /// Writes one packet.
    ///
    /// # Errors
    /// Those of the socket; `InvalidData` when it cannot be encoded.
    pub fn send(&mut self, packet: &Packet<'_>) -> io::Result<()> {
        self.send_raw(&encoded(packet, self.version)?)
    }

    /// Writes bytes as they are.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.channel.write_all(bytes)?;
        self.channel.flush()
    }

    /// Closes the sending direction; what the broker sends can still be read.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn half_close(&mut self) -> io::Result<()> {
        self.channel.shutdown_write()
    }

    /// The next packet, of those kept first.
    ///
    /// # Errors
    /// `TimedOut` after `limit`, `UnexpectedEof` at the end of the stream, `InvalidData` for what is no MQTT.
    pub fn recv(&mut self, limit: Duration) -> io::Result<Frame> {
        match self.kept.pop_front() {
            Some(frame) => Ok(frame),
            None => self.read_frame(limit),
        }
    }

    /// Reads on until a whole packet is there.
    fn read_frame(&mut self, limit: Duration) -> io::Result<Frame> {
        let deadline = Instant::now() + limit;
        loop {
            let used = decode(&self.received, Some(self.version), MAX_PACKET)
                .map_err(invalid)?
                .map(|(_, used)| used);
            if let Some(used) = used {
                let rest = self.received.split_off(used);
                let bytes = std::mem::replace(&mut self.received, rest);
                return Ok(Frame { version: self.version, bytes });
            }
            // A time-out of zero would mean none.
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.channel.set_read_timeout(Some(left))?;
            let mut chunk = [0; 16 * 1024];
            match self.channel.read(&mut chunk) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.received.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The next packet that `wanted` accepts; the others before it are kept in their order.
    ///
    /// # Errors
    /// Those of [`Self::recv`].
    pub fn recv_where(&mut self, limit: Duration, wanted: impl Fn(&Packet<'_>) -> bool) -> io::Result<Frame> {
        if let Some(at) = self.kept.iter().position(|frame| wanted(&frame.packet())) {
            return Ok(self.kept.remove(at).expect("found at this place"));
        }
        let deadline = Instant::now() + limit;
        loop {
            let frame = self.read_frame(deadline.saturating_duration_since(Instant::now()))?;
            if wanted(&frame.packet()) {
                return Ok(frame);
            }
            self.kept.push_back(frame);
        }
    }

    /// The next packet that `wanted` accepts, within 10 s.
    ///
    /// # Panics
    /// When none comes: with what came instead.
    pub fn expect(&mut self, what: &str, wanted: impl Fn(&Packet<'_>) -> bool) -> Frame {
        self.recv_where(PATIENCE, wanted).unwrap_or_else(|error| {
            let kept: Vec<_> = self.kept.iter().map(Frame::packet).collect();
            panic!("wanted {what}: {error}; instead came {kept:?}")
        })
    }

    /// A packet identifier not used lately.
    pub fn next_id(&mut self) -> u16 {
        self.next_id = self.next_id.checked_add(1).unwrap_or(1);
        self.next_id
    }

    /// Writes a PUBLISH.
    ///
    /// # Errors
    /// Those of [`Self::send`].
    pub fn send_publish(&mut self, message: Outgoing<'_>) -> io::Result<()> {
        let Outgoing { topic, payload, qos, retain, dup, packet_id } = message;
        let packet_id = if qos == QoS::AtMostOnce { 0 } else { packet_id };
        let properties = Properties::EMPTY;
        self.send(&Packet::Publish(Publish { dup, qos, retain, topic, packet_id, properties, payload }))
    }

    /// Publishes and returns the packet identifier, without waiting for an acknowledgement.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn publish_nowait(&mut self, topic: &str, payload: &[u8], qos: QoS, retain: bool) -> u16 {
        let packet_id = self.next_id();
        let message = Outgoing { topic, payload, qos, retain, dup: false, packet_id };
        self.send_publish(message).unwrap_or_else(|error| panic!("publish to {topic}: {error}"));
        packet_id
    }

    /// Publishes and waits for PUBACK, or PUBREC, PUBREL and PUBCOMP.
    ///
    /// # Panics
    /// When no acknowledgement of success comes within 10 s.
    pub fn publish(&mut self, topic: &str, payload: &[u8], qos: QoS, retain: bool) {
        let id = self.publish_nowait(topic, payload, qos, retain);
        match qos {
            QoS::AtMostOnce => {}
            QoS::AtLeastOnce => self.expect_ack(AckType::Puback, id),
            QoS::ExactlyOnce => {
                self.expect_ack(AckType::Pubrec, id);
                self.send_ack(AckType::Pubrel, id).expect("PUBREL can be written");
                self.expect_ack(AckType::Pubcomp, id);
            }
        }
    }

    /// Waits for one acknowledgement of success.
    ///
    /// # Panics
    /// When it does not come within 10 s, or refuses.
    pub fn expect_ack(&mut self, kind: AckType, packet_id: u16) {
        let frame = self.expect(&format!("{kind:?} {packet_id}"), |packet| {
            ack(packet).is_some_and(|(k, ack)| k == kind && ack.packet_id == packet_id)
        });
        let (_, Ack { reason, .. }) = ack(&frame.packet()).expect("selected above");
        assert!(reason.0 < 0x80, "{kind:?} {packet_id} refuses: {reason:?}");
    }

    /// Writes one acknowledgement.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn send_ack(&mut self, kind: AckType, packet_id: u16) -> io::Result<()> {
        let ack = Ack { packet_id, reason: ReasonCode::SUCCESS, properties: Properties::EMPTY };
        self.send(&match kind {
            AckType::Puback => Packet::Puback(ack),
            AckType::Pubrec => Packet::Pubrec(ack),
            AckType::Pubrel => Packet::Pubrel(ack),
            AckType::Pubcomp => Packet::Pubcomp(ack),
        })
    }

    /// Subscribes to one filter and returns the reason code of the SUBACK (the granted QoS, or 0x80 and above).
    ///
    /// # Panics
    /// When no SUBACK comes within 10 s.
    pub fn subscribe(&mut self, filter: &str, qos: QoS) -> u8 {
        self.subscribe_with(filter, SubscribeOptions::new(qos))
    }

    /// The same with MQTT 5's options.
    ///
    /// # Panics
    /// As [`Self::subscribe`].
    pub fn subscribe_with(&mut self, filter: &str, options: SubscribeOptions) -> u8 {
        let packet_id = self.next_id();
        let mut filters = SubscribeFiltersBuf::new();
        filters.push(filter, options).expect("a test's filter can be encoded");
        let filters = filters.as_filters();
        self.send(&Packet::Subscribe(Subscribe { packet_id, properties: Properties::EMPTY, filters }))
            .unwrap_or_else(|error| panic!("subscribe to {filter}: {error}"));
        let frame = self.expect(
            &format!("SUBACK {packet_id}"),
            |packet| matches!(packet, Packet::Suback(suback) if suback.packet_id == packet_id),
        );
        match frame.packet() {
            Packet::Suback(suback) => suback.reasons[0],
            other => unreachable!("selected above: {other:?}"),
        }
    }

    /// Ends a subscription.
    ///
    /// # Panics
    /// When no UNSUBACK comes within 10 s.
    pub fn unsubscribe(&mut self, filter: &str) {
        let packet_id = self.next_id();
        let mut filters = UnsubscribeFiltersBuf::new();
        filters.push(filter).expect("a test's filter can be encoded");
        let filters = filters.as_filters();
        self.send(&Packet::Unsubscribe(Unsubscribe { packet_id, properties: Properties::EMPTY, filters }))
            .unwrap_or_else(|error| panic!("unsubscribe from {filter}: {error}"));
        self.expect(
            &format!("UNSUBACK {packet_id}"),
            |packet| matches!(packet, Packet::Unsuback(unsuback) if unsuback.packet_id == packet_id),
        );
    }

    /// The next application message, acknowledged unless [`Options::auto_ack`] is off.
    ///
    /// # Errors
    /// Those of [`Self::recv`]: `TimedOut` when none comes within `limit`.
    pub fn recv_message(&mut self, limit: Duration) -> io::Result<Message> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let frame =
                self.recv_where(left, |packet| matches!(packet, Packet::Publish(_) | Packet::Pubrel(_)))?;
            match frame.packet() {
                Packet::Publish(publish) => {
                    let message = Message::from(publish);
                    if self.auto_ack {
                        match message.qos {
                            QoS::AtMostOnce => {}
                            QoS::AtLeastOnce => self.send_ack(AckType::Puback, message.packet_id)?,
                            QoS::ExactlyOnce => self.send_ack(AckType::Pubrec, message.packet_id)?,
                        }
                    }
                    return Ok(message);
                }
                Packet::Pubrel(pubrel) if self.auto_ack => {
                    self.send_ack(AckType::Pubcomp, pubrel.packet_id)?
                }
                _ => {}
            }
        }
    }

    /// The next application message, within 10 s.
    ///
    /// # Panics
    /// When none comes.
    pub fn expect_message(&mut self) -> Message {
        self.recv_message(PATIENCE).unwrap_or_else(|error| {
            let kept: Vec<_> = self.kept.iter().map(Frame::packet).collect();
            panic!("wanted a message: {error}; instead came {kept:?}")
        })
    }

    /// All messages up to and without the one on topic `fence`: whoever publishes it last knows by that what has *not* come,
    /// without waiting for silence.
    ///
    /// # Panics
    /// When the fence does not come within 10 s of the message before it.
    pub fn messages_until(&mut self, fence: &str) -> Vec<Message> {
        let mut messages = Vec::new();
        loop {
            let message = self.expect_message();
            if message.topic == fence {
                return messages;
            }
            messages.push(message);
        }
    }

    /// PINGREQ and its PINGRESP.
    ///
    /// # Panics
    /// When none comes within 10 s.
    pub fn ping(&mut self) {
        self.send(&Packet::Pingreq).expect("PINGREQ can be written");
        self.expect("PINGRESP", |packet| matches!(packet, Packet::Pingresp));
    }

    /// Waits until the broker has closed the connection; returns the reason code of its DISCONNECT (MQTT 5), if it sent one.
    ///
    /// # Panics
    /// When it is still open after 10 s.
    pub fn expect_closed(&mut self) -> Option<ReasonCode> {
        let mut reason = None;
        loop {
            match self.read_frame(PATIENCE) {
                Ok(frame) => {
                    if let Packet::Disconnect(disconnect) = frame.packet() {
                        reason = Some(disconnect.reason);
                    }
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::TimedOut => panic!("the broker has not closed the connection"),
                    io::ErrorKind::InvalidData => panic!("the broker's last words are no MQTT: {error}"),
                    _ => return reason,
                },
            }
        }
    }

    /// DISCONNECT: an ordinary end, without the will.
    pub fn disconnect(mut self) {
        let disconnect = Disconnect { reason: ReasonCode::SUCCESS, properties: Properties::EMPTY };
        let _ = self.send(&Packet::Disconnect(disconnect)); // the broker has gone: then it is disconnected too
    }
}

/// The bytes of a packet.
///
/// # Errors
/// `InvalidData` when it cannot be encoded.
pub fn encoded(packet: &Packet<'_>, version: Version) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    packet.encode(version, &mut bytes).map_err(invalid)?;
    Ok(bytes)
}

/// The acknowledgement in a packet.
#[must_use]
pub fn ack<'a>(packet: &Packet<'a>) -> Option<(AckType, Ack<'a>)> {
    Some(match *packet {
        Packet::Puback(ack) => (AckType::Puback, ack),
        Packet::Pubrec(ack) => (AckType::Pubrec, ack),
        Packet::Pubrel(ack) => (AckType::Pubrel, ack),
        Packet::Pubcomp(ack) => (AckType::Pubcomp, ack),
        _ => return None,
    })
}

impl From<Publish<'_>> for Message {
    fn from(publish: Publish<'_>) -> Self {
        debug_assert!(
            !publish.properties.contains(PropertyId::TopicAlias),
            "this client announces no alias maximum"
        );
        Self {
            topic: publish.topic.to_owned(),
            payload: publish.payload.to_vec(),
            qos: publish.qos,
            retain: publish.retain,
            dup: publish.dup,
            packet_id: publish.packet_id,
            user_properties: publish
                .properties
                .user_properties()
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
        }
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::servers::Mosquitto;

    /// The client against a broker that is not ours, so that a fault of both codecs alike cannot hide here.
    #[test]
    fn speaks_both_versions_with_mosquitto() {
        let mosquitto = Mosquitto::start();
        for (version, options) in [("4", Options::v4 as fn(&str) -> Options), ("5", Options::v5)] {
            let topic = format!("t/{version}");
            let mut reader = Client::connect(mosquitto.addr(), &options("reader"));
            assert_eq!(reader.subscribe(&format!("{topic}/#"), QoS::ExactlyOnce), 2);
            let will = options("writer").will(&format!("{topic}/will"), b"gone", QoS::AtLeastOnce, false);
            let mut writer = Client::connect(mosquitto.addr(), &will);
            for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
                writer.publish(&topic, qos.to_string().as_bytes(), qos, false);
                let message = reader.expect_message();
                assert_eq!((message.text(), message.qos), (qos.to_string().as_str(), qos));
            }
            writer.publish(&format!("{topic}/kept"), b"k", QoS::AtLeastOnce, true);
            writer.ping();
            drop(writer);
            assert_eq!(reader.expect_message().text(), "k");
            assert_eq!(reader.expect_message().text(), "gone");
            reader.unsubscribe(&format!("{topic}/#"));
            reader.subscribe(&format!("{topic}/+"), QoS::AtMostOnce);
            let kept = reader.expect_message();
            assert_eq!((kept.text(), kept.retain), ("k", true));
            reader.disconnect();
        }
    }

    #[test]
    fn a_persistent_session_is_found_again() {
        let mosquitto = Mosquitto::start();
        for options in [Options::v4("s4").persistent(), Options::v5("s5").persistent()] {
            let (mut client, present) = Client::connect_session(mosquitto.addr(), &options);
            assert!(!present);
            client.subscribe("q/#", QoS::AtLeastOnce);
            client.disconnect();
            let mut writer = Client::connect(mosquitto.addr(), &Options::v4("w"));
            writer.publish("q/1", b"1", QoS::AtLeastOnce, false);
            writer.publish("fence", b"", QoS::AtLeastOnce, false);
            let (mut client, present) = Client::connect_session(mosquitto.addr(), &options);
            assert!(present);
            assert_eq!(client.expect_message().text(), "1");
        }
    }

    #[test]
    fn rubbish_is_answered_by_the_end_of_the_connection() {
        let mosquitto = Mosquitto::start();
        let mut client = Client::open(mosquitto.addr(), Version::V5).expect("it listens");
        client.send_raw(&[0xFF; 16]).expect("it can be written");
        assert_eq!(client.expect_closed(), None);
    }
}
