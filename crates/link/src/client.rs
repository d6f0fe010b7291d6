//! One connection of an MQTT client, sans I/O.
//!
//! # Constraints
//! The caller owns the socket and the clock. It hands in bytes as they come and `now` (microseconds of a monotonic
//! clock of its choice); bytes to send are appended to a buffer of its own, so that many packets leave in one
//! write. A connection is one [`Client`] value: after a [`Fault`] it is dropped, and what was in flight is taken back
//! with [`Client::into_in_flight`].
//!
//! # Data
//! ```text
//! window = min(Receive Maximum of the server, window_max)        packets of QoS 1 in flight <= window
//! packet ids: 1..=window for PUBLISH, each with a slot for the caller's item T; free ones queue up (FIFO),
//!             FIRST_REQUEST_ID.. for SUBSCRIBE, so that a subscription never waits for the window
//! ```
//! FIFO, not LIFO: a server that acknowledges twice is then caught at a free id (and the connection ended) instead
//! of answering for the next message under the same id, which would lose that one.
//!
//! # Liveness
//! ```text
//! last sent or received ------ keep_alive / 2 ----> PINGREQ due ------ keep_alive ----> dead
//! ```
//! Dead means that nothing at all was received since the ping was due: acknowledgements count as life, bytes that the
//! kernel took do not. So a blackhole is noticed 1.5 keep_alive after the last byte, and MQTT's own bound (a packet from
//! us at least every keep_alive [MQTT-3.1.2-20]) holds with half of it to spare.
//!
//! QoS 2 is a seam: it is sent as QoS 1 (identity makes rows unique where it matters, contract 3), and
//! subscriptions ask for at most 1.

use ferrule_mqtt::{
    AckType, Connack, Connect, DecodeError, Disconnect, EncodeError, PINGREQ, Packet, Properties,
    PropertiesBuf, Property, Publish, PublishFlags, QoS, ReasonCode, Subscribe, SubscribeFilters, Version,
    decode, encode_ack, encode_publish,
};
use std::collections::VecDeque;
use std::fmt;

/// Packet ids from here on are for SUBSCRIBE and UNSUBSCRIBE; the window ends below.
const FIRST_REQUEST_ID: u16 = 0xF000;

/// Receive Maximum of a server that names none [MQTT 5, 3.2.2.3.3]; there is none before MQTT 5, where more than
/// this would outgrow the packet ids.
const RECEIVE_MAXIMUM_DEFAULT: u16 = u16::MAX;

/// How to connect.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Protocol version.
    pub version: Version,
    /// Client id; not empty.
    pub client_id: String,
    /// User name.
    pub username: Option<String>,
    /// Password.
    pub password: Option<Vec<u8>>,
    /// Clean Start (5) or Clean Session (3.x).
    pub clean_start: bool,
    /// Seconds; 0 turns pings off. The server may set another (MQTT 5).
    pub keep_alive_s: u16,
    /// How long to wait for CONNACK, in microseconds.
    pub connack_timeout_us: u64,
    /// Most PUBLISH packets in flight, whatever the server allows; at least 1.
    pub window_max: u16,
    /// Largest packet that is accepted from the server, in bytes.
    pub max_packet_size: u32,
    /// How long the server keeps the session of a connection that is lost, in seconds (MQTT 5).
    pub session_expiry_s: u32,
    /// Receive Maximum that the server is told (MQTT 5); 0: none. With one, what is received is acknowledged by
    /// [`Client::acknowledge`], not at once.
    pub receive_max: u16,
    /// User properties of CONNECT (MQTT 5).
    pub user_properties: Vec<(String, String)>,
}

/// What the server agreed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// Whether it holds a session of this client.
    pub session_present: bool,
    /// PUBLISH packets that may be in flight.
    pub window: u16,
    /// Seconds; 0 is off.
    pub keep_alive_s: u16,
    /// Largest packet it takes, in bytes.
    pub max_packet_size: usize,
    /// Whether it keeps retained messages.
    pub retain_available: bool,
    /// Whether it says `ferrule: 1`: it believes identity properties and acknowledges in any order.
    pub ferrule: bool,
    /// Whether it takes batches.
    pub batch: bool,
    /// Whether it has our dictionary for them.
    pub dictionary: bool,
}

/// What the bytes said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'a, T> {
    /// CONNACK: publish from now on.
    Connected(Accepted),
    /// The server's word on a message: success below 0x80 ([`Verdict::of`]).
    Acked {
        /// What was given with the message.
        item: T,
        /// PUBACK's reason code.
        reason: ReasonCode,
        /// PUBACK's properties.
        properties: Properties<'a>,
    },
    /// A message from the server. When the callback returns, a QoS 1 message is acknowledged.
    Message(Publish<'a>),
    /// SUBACK: one reason code a filter.
    Subscribed {
        /// As [`Client::subscribe`] returned it.
        request: u16,
        /// One a filter, 0x80 and above is a refusal.
        reasons: &'a [u8],
    },
}

/// A message to send.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing<'a> {
    /// Quality of service; 2 is sent as 1.
    pub qos: QoS,
    /// Retain flag; cleared when the server keeps no retained messages, which else would end the connection.
    pub retain: bool,
    /// Topic name.
    pub topic: &'a str,
    /// Properties, written one after another (MQTT 5).
    pub properties: &'a [Properties<'a>],
    /// Payload.
    pub payload: &'a [u8],
}

/// What became of a message that was handed to [`Client::publish`].
#[derive(Debug, PartialEq, Eq)]
pub enum Sent<T> {
    /// Encoded; the answer comes as [`Event::Acked`].
    Awaiting,
    /// Encoded with QoS 0: nothing more will be heard of it.
    Unanswered(T),
    /// Nothing was encoded: not connected, or the window is full. Try again after an event.
    NoRoom(T),
    /// Nothing was encoded: larger than the server takes, now and for ever.
    TooLarge(T),
    /// Nothing was encoded: MQTT has no such message (topic with a wildcard, too long, empty).
    Invalid(T, EncodeError),
}

/// What to do about a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Retry {
    /// A passing trouble of network or server.
    Soon,
    /// The server asks for patience.
    Slowly,
    /// Somebody must change something here or there; trying again is only good to notice that.
    Operator,
}

/// A reason code from the server with what it wrote for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The code.
    pub reason: ReasonCode,
    /// Reason String.
    pub text: Option<Box<str>>,
    /// Server Reference.
    pub server: Option<Box<str>>,
}

/// The end of a connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// CONNACK says no.
    #[error("the broker refused the connection: {0}")]
    Refused(Refusal),
    /// The server sent DISCONNECT.
    #[error("the broker ended the connection: {0}")]
    Disconnected(Refusal),
    /// No CONNACK in time.
    #[error("the broker did not answer CONNECT")]
    NoConnack,
    /// Nothing was received for one and a half keep alives.
    #[error("the broker has been silent for {silent_s} s (keep alive {keep_alive_s} s)")]
    Silent {
        /// Seconds since the last byte.
        silent_s: u64,
        /// The keep alive in force.
        keep_alive_s: u16,
    },
    /// The server's bytes are no MQTT.
    #[error("the broker sent an invalid packet: {0}")]
    Malformed(#[from] DecodeError),
    /// The server's packets are MQTT, but not in their place.
    #[error("the broker broke the protocol: {0}")]
    Protocol(&'static str),
    /// The server cannot do what the promise needs.
    #[error("the broker cannot be used: {0}")]
    Unusable(&'static str),
}

/// What a PUBACK means to whoever holds the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The server took responsibility.
    Delivered,
    /// Not now: keep it and try again later.
    Later,
    /// Never: this message will be refused whenever it comes.
    Refused,
}

/// One connection.
#[derive(Debug)]
pub struct Client<T> {
    config: ClientConfig,
    state: State,
    accepted: Accepted,
    /// By packet id - 1.
    slots: Vec<Option<T>>,
    free: VecDeque<u16>,
    in_flight: usize,
    next_request: u16,
    last_sent_us: u64,
    last_received_us: u64,
    /// When the ping that is not answered yet was due.
    ping_us: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    AwaitingConnack { deadline_us: u64 },
    Up,
    Ended,
}

// === impl Client ===

impl<T> Client<T> {
    /// A connection that has not begun.
    #[must_use]
    pub fn new(config: ClientConfig) -> Self {
        let accepted = Accepted {
            session_present: false,
            window: 0,
            keep_alive_s: config.keep_alive_s,
            max_packet_size: usize::MAX,
            retain_available: true,
            ferrule: false,
            batch: false,
            dictionary: false,
        };
        Self {
            config,
            state: State::Idle,
            accepted,
            slots: Vec::new(),
            free: VecDeque::new(),
            in_flight: 0,
            next_request: FIRST_REQUEST_ID,
            last_sent_us: 0,
            last_received_us: 0,
            ping_us: None,
        }
    }

    /// Appends CONNECT. To be called once, when the transport stands.
    ///
    /// # Errors
    /// A client id, user name, password or property that is too long for MQTT.
    pub fn connect(&mut self, now_us: u64, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let config = &self.config;
        let mut properties = PropertiesBuf::new();
        if config.version == Version::V5 {
            properties.push(Property::MaximumPacketSize(config.max_packet_size.max(1)))?;
            if config.session_expiry_s > 0 {
                properties.push(Property::SessionExpiryInterval(config.session_expiry_s))?;
            }
            if config.receive_max > 0 {
                properties.push(Property::ReceiveMaximum(config.receive_max))?;
            }
            for (name, value) in &config.user_properties {
                properties.push(Property::UserProperty(name, value))?;
            }
        }
        let connect = Connect {
            version: config.version,
            clean_start: config.clean_start,
            bridge: false,
            keep_alive: config.keep_alive_s,
            properties: properties.as_properties(),
            client_id: &config.client_id,
            will: None,
            username: config.username.as_deref(),
            password: config.password.as_deref(),
        };
        Packet::Connect(connect).encode(config.version, out)?;
        self.state = State::AwaitingConnack { deadline_us: now_us.saturating_add(config.connack_timeout_us) };
        self.last_sent_us = now_us;
        self.last_received_us = now_us;
        Ok(())
    }

    /// Decodes all whole packets in `bytes`, tells `on` what they say, and appends what they demand of us to
    /// `out`. Returns the number of bytes used; the caller keeps the rest in front of what comes next.
    ///
    /// # Errors
    /// The end of this connection; events before it have been told. `out` may hold a last DISCONNECT.
    pub fn receive(
        &mut self,
        bytes: &[u8],
        now_us: u64,
        out: &mut Vec<u8>,
        mut on: impl FnMut(Event<'_, T>),
    ) -> Result<usize, Fault> {
        let mut used = 0;
        if !bytes.is_empty() {
            self.last_received_us = now_us;
            self.ping_us = None;
        }
        loop {
            match self.next_packet(&bytes[used..], now_us, out, &mut on) {
                Ok(0) => return Ok(used),
                Ok(size) => used += size,
                Err(fault) => {
                    let reason = match &fault {
                        Fault::Malformed(error) => Some(error.reason()),
                        Fault::Protocol(_) => Some(ReasonCode::PROTOCOL_ERROR),
                        Fault::Unusable(_) => Some(ReasonCode::QOS_NOT_SUPPORTED),
                        _ => None,
                    };
                    if let Some(reason) = reason {
                        self.disconnect(reason, out);
                    }
                    self.state = State::Ended;
                    return Err(fault);
                }
            }
        }
    }

    /// Appends a PUBLISH, if there is room in the window.
    pub fn publish(&mut self, item: T, message: &Outgoing<'_>, now_us: u64, out: &mut Vec<u8>) -> Sent<T> {
        if self.state != State::Up {
            return Sent::NoRoom(item);
        }
        let acknowledged = message.qos > QoS::AtMostOnce;
        let packet_id = match (acknowledged, self.free.front()) {
            (false, _) => 0,
            (true, Some(&id)) => id,
            (true, None) => return Sent::NoRoom(item),
        };
        let flags = PublishFlags {
            dup: false,
            qos: message.qos.min(QoS::AtLeastOnce),
            retain: message.retain && self.accepted.retain_available,
        };
        let start = out.len();
        let version = self.config.version;
        match encode_publish(
            out,
            version,
            flags,
            message.topic,
            packet_id,
            message.properties,
            message.payload,
        ) {
            Ok(()) => {}
            Err(EncodeError::PacketTooLarge(_)) => return Sent::TooLarge(item),
            Err(error) => return Sent::Invalid(item, error),
        }
        if out.len() - start > self.accepted.max_packet_size {
            // [MQTT-3.2.2-15]
            out.truncate(start);
            return Sent::TooLarge(item);
        }
        self.last_sent_us = now_us;
        if !acknowledged {
            return Sent::Unanswered(item);
        }
        self.free.pop_front();
        self.slots[usize::from(packet_id - 1)] = Some(item);
        self.in_flight += 1;
        Sent::Awaiting
    }

    /// Appends a SUBSCRIBE and returns its packet id, by which [`Event::Subscribed`] names it.
    ///
    /// # Errors
    /// A filter that is too long.
    pub fn subscribe(
        &mut self,
        filters: SubscribeFilters<'_>,
        now_us: u64,
        out: &mut Vec<u8>,
    ) -> Result<u16, EncodeError> {
        let packet_id = self.next_request;
        let subscribe = Subscribe { packet_id, properties: Properties::EMPTY, filters };
        Packet::Subscribe(subscribe).encode(self.config.version, out)?;
        self.next_request = self.next_request.checked_add(1).unwrap_or(FIRST_REQUEST_ID);
        self.last_sent_us = now_us;
        Ok(packet_id)
    }

    /// Appends the PUBACK of a message that was received.
    pub fn acknowledge(&mut self, packet_id: u16, now_us: u64, out: &mut Vec<u8>) {
        if self.state == State::Up {
            encode_ack(out, self.config.version, AckType::Puback, packet_id, ReasonCode::SUCCESS);
            self.last_sent_us = now_us;
        }
    }

    /// Appends DISCONNECT (before MQTT 5 only a normal one can be said) and ends the connection.
    pub fn disconnect(&mut self, reason: ReasonCode, out: &mut Vec<u8>) {
        let sayable = self.config.version == Version::V5 || reason == ReasonCode::NORMAL_DISCONNECTION;
        if self.state == State::Up && sayable {
            let packet = Packet::Disconnect(Disconnect { reason, properties: Properties::EMPTY });
            // It has no field that could be too long.
            let _ = packet.encode(self.config.version, out);
        }
        self.state = State::Ended;
    }

    /// Does what is due: PINGREQ, or the end of a connection that is dead.
    ///
    /// # Errors
    /// [`Fault::NoConnack`] and [`Fault::Silent`].
    pub fn tick(&mut self, now_us: u64, out: &mut Vec<u8>) -> Result<(), Fault> {
        match self.state {
            State::AwaitingConnack { deadline_us } if now_us >= deadline_us => {
                self.state = State::Ended;
                return Err(Fault::NoConnack);
            }
            State::Up if self.accepted.keep_alive_s > 0 => {
                let due_us = self.ping_due_us();
                match self.ping_us {
                    Some(ping_us) if now_us >= ping_us.saturating_add(self.keep_alive_us()) => {
                        self.state = State::Ended;
                        return Err(Fault::Silent {
                            silent_s: now_us.saturating_sub(self.last_received_us) / 1_000_000,
                            keep_alive_s: self.accepted.keep_alive_s,
                        });
                    }
                    None if now_us >= due_us => {
                        out.extend_from_slice(&PINGREQ);
                        // When it was due, not now: a late caller does not make a dead link live longer. But never
                        // before `now - keep_alive`, or a caller that slept (a suspended machine) would
                        // end a link that it has not asked yet.
                        self.ping_us = Some(due_us.max(now_us.saturating_sub(self.keep_alive_us() / 2)));
                        self.last_sent_us = now_us;
                    }
                    _ => {}
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// When [`Client::tick`] has something to do next, if nothing else happens before.
    #[must_use]
    pub fn deadline_us(&self) -> Option<u64> {
        match self.state {
            State::AwaitingConnack { deadline_us } => Some(deadline_us),
            State::Up if self.accepted.keep_alive_s > 0 => Some(match self.ping_us {
                Some(ping_us) => ping_us.saturating_add(self.keep_alive_us()),
                None => self.ping_due_us(),
            }),
            _ => None,
        }
    }

    /// What the server agreed to; none before CONNACK and after the end.
    #[must_use]
    pub fn accepted(&self) -> Option<&Accepted> {
        (self.state == State::Up).then_some(&self.accepted)
    }

    /// Whether CONNACK came and accepted, also after the end.
    #[must_use]
    pub fn was_accepted(&self) -> bool {
        !self.slots.is_empty()
    }

    /// How many more PUBLISH packets of QoS 1 fit into the window.
    #[must_use]
    pub fn room(&self) -> usize {
        if self.state == State::Up { self.free.len() } else { 0 }
    }

    /// PUBLISH packets that are not acknowledged.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Ends the connection and gives back what was not acknowledged, in no particular order.
    pub fn into_in_flight(self) -> impl Iterator<Item = T> {
        self.slots.into_iter().flatten()
    }

    fn keep_alive_us(&self) -> u64 {
        u64::from(self.accepted.keep_alive_s) * 1_000_000
    }

    fn ping_due_us(&self) -> u64 {
        self.last_sent_us.min(self.last_received_us).saturating_add(self.keep_alive_us() / 2)
    }

    /// Handles the packet that `bytes` begins with and returns its size; 0 when it is not whole yet.
    fn next_packet(
        &mut self,
        bytes: &[u8],
        now_us: u64,
        out: &mut Vec<u8>,
        on: &mut impl FnMut(Event<'_, T>),
    ) -> Result<usize, Fault> {
        let awaiting_connack = matches!(self.state, State::AwaitingConnack { .. });
        if awaiting_connack && self.config.version == Version::V5 {
            // A server that knows MQTT 3.1.1 only says so in its own words: a CONNACK without properties.
            if let &[0x20, 2, _, code, ..] = bytes
                && let Some(reason) = ReasonCode::from_connack_v3(code)
                && reason.is_error()
            {
                return Err(Fault::Refused(Refusal { reason, text: None, server: None }));
            }
        }
        let max = usize::try_from(self.config.max_packet_size).unwrap_or(usize::MAX);
        let Some((packet, size)) = decode(bytes, Some(self.config.version), max)? else { return Ok(0) };
        match (packet, awaiting_connack) {
            (Packet::Connack(connack), true) => self.connack(&connack, on)?,
            (_, true) => return Err(Fault::Protocol("a packet came before CONNACK")),
            (Packet::Puback(ack), false) => {
                let slot = self.slots.get_mut(usize::from(ack.packet_id).wrapping_sub(1));
                let Some(item) = slot.and_then(Option::take) else {
                    return Err(Fault::Protocol("PUBACK for a packet id that is not in flight"));
                };
                self.in_flight -= 1;
                self.free.push_back(ack.packet_id);
                on(Event::Acked { item, reason: ack.reason, properties: ack.properties });
            }
            (Packet::Publish(publish), false) => {
                if publish.topic.is_empty() {
                    return Err(Fault::Protocol("topic alias, and none was allowed [MQTT-3.3.2-9]"));
                }
                if publish.qos == QoS::ExactlyOnce {
                    return Err(Fault::Protocol("a message of QoS 2, and none was subscribed to"));
                }
                on(Event::Message(publish));
                if publish.qos == QoS::AtLeastOnce && self.config.receive_max == 0 {
                    let version = self.config.version;
                    encode_ack(out, version, AckType::Puback, publish.packet_id, ReasonCode::SUCCESS);
                    self.last_sent_us = now_us;
                }
            }
            (Packet::Suback(suback), false) => {
                on(Event::Subscribed { request: suback.packet_id, reasons: suback.reasons });
            }
            (Packet::Pingresp | Packet::Unsuback(_), false) => {}
            (Packet::Disconnect(disconnect), false) if self.config.version == Version::V5 => {
                return Err(Fault::Disconnected(Refusal::new(disconnect.reason, disconnect.properties)));
            }
            _ => return Err(Fault::Protocol("a packet that a client must not be sent")),
        }
        Ok(size)
    }

    fn connack(&mut self, connack: &Connack<'_>, on: &mut impl FnMut(Event<'_, T>)) -> Result<(), Fault> {
        if connack.reason.is_error() {
            return Err(Fault::Refused(Refusal::new(connack.reason, connack.properties)));
        }
        let mut receive_maximum = RECEIVE_MAXIMUM_DEFAULT;
        let accepted = &mut self.accepted;
        accepted.session_present = connack.session_present;
        for property in connack.properties.iter() {
            match property {
                Property::ReceiveMaximum(maximum) => receive_maximum = maximum,
                // [MQTT-3.2.2-21]: it replaces ours.
                Property::ServerKeepAlive(seconds) => accepted.keep_alive_s = seconds,
                Property::MaximumPacketSize(bytes) => {
                    accepted.max_packet_size = usize::try_from(bytes).unwrap_or(usize::MAX);
                }
                Property::RetainAvailable(available) => accepted.retain_available = available,
                Property::UserProperty("ferrule", "1") => accepted.ferrule = true,
                Property::UserProperty(ferrule_batch::NAME, ferrule_batch::VERSION_TEXT) => {
                    accepted.batch = true
                }
                Property::UserProperty(ferrule_batch::DICTIONARY_NAME, name) => {
                    accepted.dictionary = name == ferrule_batch::dictionary::name();
                }
                Property::MaximumQoS(QoS::AtMostOnce) => {
                    self.state = State::Up;
                    return Err(Fault::Unusable("it takes QoS 0 only, so it never acknowledges a message"));
                }
                _ => {}
            }
        }
        accepted.window = receive_maximum.min(self.config.window_max).clamp(1, FIRST_REQUEST_ID - 1);
        self.slots.resize_with(usize::from(accepted.window), || None);
        self.free = (1..=accepted.window).collect();
        self.state = State::Up;
        on(Event::Connected(accepted.clone()));
        Ok(())
    }
}

// === impl Refusal ===

impl Refusal {
    fn new(reason: ReasonCode, properties: Properties<'_>) -> Self {
        Self {
            reason,
            text: properties.reason_string().map(Into::into),
            server: properties.server_reference().map(Into::into),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.reason)?;
        if let Some(text) = &self.text {
            write!(f, ", \"{text}\"")?;
        }
        if let Some(server) = &self.server {
            write!(f, ", it names {server}")?;
        }
        match self.reason {
            ReasonCode::BAD_USER_NAME_OR_PASSWORD => write!(f, "; check `username` and `password_file`"),
            ReasonCode::NOT_AUTHORIZED => {
                write!(f, "; check that this user may connect under this client id (role 'edge' and edge id)")
            }
            ReasonCode::UNSUPPORTED_PROTOCOL_VERSION => {
                write!(f, "; the broker speaks another version of MQTT than the uplink is set to")
            }
            _ => Ok(()),
        }
    }
}

// === impl Fault ===

impl Fault {
    /// What to do about it.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Self::Refused(refusal) | Self::Disconnected(refusal) => Retry::of(refusal.reason),
            Self::NoConnack | Self::Silent { .. } => Retry::Soon,
            Self::Protocol(_) => Retry::Slowly,
            Self::Malformed(_) | Self::Unusable(_) => Retry::Operator,
        }
    }

    /// The reason code of a DISCONNECT that some message of ours brought about, whichever it was.
    #[must_use]
    pub fn blames_a_message(&self) -> Option<ReasonCode> {
        match self {
            Self::Disconnected(refusal) => match refusal.reason {
                ReasonCode::TOPIC_NAME_INVALID
                | ReasonCode::PACKET_TOO_LARGE
                | ReasonCode::PAYLOAD_FORMAT_INVALID
                | ReasonCode::RETAIN_NOT_SUPPORTED
                | ReasonCode::QOS_NOT_SUPPORTED => Some(refusal.reason),
                _ => None,
            },
            _ => None,
        }
    }
}

// === impl Retry ===

impl Retry {
    /// By the meaning that MQTT 5 gives to a reason code in CONNACK [3.2.2.2] and DISCONNECT [3.14.2.1].
    #[must_use]
    pub fn of(reason: ReasonCode) -> Self {
        match reason {
            ReasonCode::MALFORMED_PACKET
            | ReasonCode::PROTOCOL_ERROR
            | ReasonCode::UNSUPPORTED_PROTOCOL_VERSION
            | ReasonCode::CLIENT_IDENTIFIER_NOT_VALID
            | ReasonCode::BAD_USER_NAME_OR_PASSWORD
            | ReasonCode::NOT_AUTHORIZED
            | ReasonCode::BANNED
            | ReasonCode::BAD_AUTHENTICATION_METHOD
            | ReasonCode::SERVER_MOVED => Self::Operator,
            // 0x8E: a twin with our client id is alive; two that take over from each other must not do so in a
            // loop. 0x97: the cloud has a live connection of another boot of this edge.
            ReasonCode::SESSION_TAKEN_OVER
            | ReasonCode::QUOTA_EXCEEDED
            | ReasonCode::MESSAGE_RATE_TOO_HIGH
            | ReasonCode::CONNECTION_RATE_EXCEEDED
            | ReasonCode::ADMINISTRATIVE_ACTION
            | ReasonCode::TOPIC_NAME_INVALID
            | ReasonCode::PACKET_TOO_LARGE
            | ReasonCode::PAYLOAD_FORMAT_INVALID
            | ReasonCode::RETAIN_NOT_SUPPORTED
            | ReasonCode::QOS_NOT_SUPPORTED => Self::Slowly,
            _ => Self::Soon,
        }
    }
}

// === impl Verdict ===

impl Verdict {
    /// By PUBACK's reason code [MQTT 5, 3.4.2.1].
    #[must_use]
    pub fn of(reason: ReasonCode) -> Self {
        match reason {
            reason if !reason.is_error() => Self::Delivered,
            ReasonCode::NOT_AUTHORIZED
            | ReasonCode::TOPIC_NAME_INVALID
            | ReasonCode::PAYLOAD_FORMAT_INVALID => Self::Refused,
            // 0x80, 0x83, 0x97, and whatever a later version may add: giving up is never the guess.
            _ => Self::Later,
        }
    }
}
