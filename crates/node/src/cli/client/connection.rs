//! One MQTT connection of a command: CONNECT to DISCONNECT, 3.1, 3.1.1 and 5.
//!
//! The commands own what they send and what they have received; this keeps the socket, the undecoded bytes and the keep
//! alive. A connection that failed is dropped, and what was in flight is its command's.

use super::wire::{Target, Tls, Wire};
use super::{NoConnection, Tell};
use ferrule_mqtt::{
    AckType, Connack, Connect, Disconnect, MAX_REMAINING_LENGTH, PINGREQ, Packet, Properties, PropertiesBuf,
    Property, PublishFlags, QoS, ReasonCode, Version, Will, decode, encode_ack, encode_publish,
};
use std::fmt;
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout};

/// Room for a fixed header beside the largest remaining length.
const PACKET_MAX: usize = MAX_REMAINING_LENGTH + 5;

/// How long the broker may take over CONNACK.
const CONNACK: Duration = Duration::from_secs(30);

/// A will.
#[derive(Debug, Clone)]
pub(super) struct WillArgs {
    pub(super) topic: String,
    pub(super) payload: Vec<u8>,
    pub(super) qos: QoS,
    pub(super) retain: bool,
    pub(super) properties: PropertiesBuf,
}

/// How to connect.
#[derive(Debug, Clone)]
pub(super) struct Options {
    pub(super) target: Target,
    pub(super) tls: Option<Tls>,
    pub(super) version: Version,
    pub(super) client_id: String,
    pub(super) username: Option<String>,
    pub(super) password: Option<Vec<u8>>,
    pub(super) clean: bool,
    pub(super) keep_alive_s: u16,
    pub(super) will: Option<WillArgs>,
    /// Of CONNECT.
    pub(super) properties: PropertiesBuf,
    /// Of DISCONNECT.
    pub(super) disconnect: PropertiesBuf,
}

/// CONNACK's no.
#[derive(Debug)]
pub(super) struct Refused {
    /// The code on the wire.
    pub(super) code: u8,
    /// mosquitto's words for it.
    pub(super) text: String,
}

/// The end of a connection.
#[derive(Debug)]
pub(super) struct Lost {
    pub(super) text: String,
    /// Another connection would end so, too.
    pub(super) for_good: bool,
}

impl Lost {
    fn new(why: impl fmt::Display) -> Self {
        Self { text: why.to_string(), for_good: false }
    }

    /// What cannot be encoded, and what is no MQTT.
    pub(super) fn for_good(why: impl fmt::Display) -> Self {
        Self { text: why.to_string(), for_good: true }
    }

    /// DISCONNECT: a broker that stops or is busy may be back, whoever broke a rule would break it again.
    fn told(reason: ReasonCode) -> Self {
        const PASSING: [ReasonCode; 4] = [
            ReasonCode::NORMAL_DISCONNECTION,
            ReasonCode::SERVER_BUSY,
            ReasonCode::SERVER_SHUTTING_DOWN,
            ReasonCode::KEEP_ALIVE_TIMEOUT,
        ];
        let text = format!("the broker ended the connection: {reason}");
        Self { text, for_good: !PASSING.contains(&reason) }
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A message from the broker.
#[derive(Debug, Clone)]
pub(super) struct Message {
    pub(super) topic: String,
    pub(super) payload: Vec<u8>,
    pub(super) qos: QoS,
    pub(super) retain: bool,
    pub(super) packet_id: u16,
    pub(super) properties: PropertiesBuf,
}

/// What came.
#[derive(Debug)]
pub(super) enum Incoming {
    Message(Message),
    Ack(AckType, u16, ReasonCode),
    Subscribed(u16, Vec<u8>),
    Unsubscribed,
}

/// What is published.
pub(super) struct Outgoing<'a> {
    pub(super) topic: &'a str,
    pub(super) payload: &'a [u8],
    pub(super) qos: QoS,
    pub(super) retain: bool,
    pub(super) dup: bool,
    /// 0 with QoS 0.
    pub(super) packet_id: u16,
    pub(super) properties: Properties<'a>,
}

/// An open connection.
pub(super) struct Connection {
    wire: Wire,
    version: Version,
    name: String,
    tell: Tell,
    inbox: Vec<u8>,
    /// Packets of QoS 1 and 2 that the broker takes at a time.
    pub(super) receive_max: u16,
    /// Whether the broker had a session of this client.
    pub(super) session_present: bool,
    keep_alive: Duration,
    last_sent: Instant,
    /// When the ping that is not answered was sent.
    ping: Option<Instant>,
    next_id: u16,
}

impl Connection {
    /// Connects and waits for CONNACK.
    pub(super) async fn open(options: &Options, tell: Tell) -> Result<Self, NoConnection> {
        let failed = NoConnection::Failed;
        let wire = Wire::open(&options.target, options.tls.as_ref()).await.map_err(failed)?;
        let mut connection = Self {
            wire,
            version: options.version,
            name: if options.client_id.is_empty() { "null".to_owned() } else { options.client_id.clone() },
            tell,
            inbox: Vec::new(),
            receive_max: u16::MAX,
            session_present: false,
            keep_alive: Duration::from_secs(options.keep_alive_s.into()),
            last_sent: Instant::now(),
            ping: None,
            next_id: 0,
        };
        let will = options.will.as_ref().map(|will| Will {
            qos: will.qos,
            retain: will.retain,
            properties: will.properties.as_properties(),
            topic: &will.topic,
            payload: &will.payload,
        });
        let connect = Packet::Connect(Connect {
            version: options.version,
            clean_start: options.clean,
            bridge: false,
            keep_alive: options.keep_alive_s,
            properties: options.properties.as_properties(),
            client_id: &options.client_id,
            will,
            username: options.username.as_deref(),
            password: options.password.as_deref(),
        });
        connection.debug("sending CONNECT");
        connection.send(&connect).await.map_err(|lost| failed(lost.text))?;
        match timeout(CONNACK, connection.connack()).await {
            Ok(Ok(None)) => Ok(connection),
            Ok(Ok(Some(refused))) => Err(NoConnection::Refused(refused)),
            Ok(Err(lost)) => Err(failed(lost.text)),
            Err(_) => Err(failed("the broker did not answer CONNECT".to_owned())),
        }
    }

    fn debug(&self, text: &str) {
        self.tell.debug(|| format!("Client {} {text}", self.name));
    }

    /// None: it is accepted.
    async fn connack(&mut self) -> Result<Option<Refused>, Lost> {
        loop {
            // A broker that does not know MQTT 5 answers in its own words: without properties.
            if self.version == Version::V5
                && let &[0x20, 2, _, code, ..] = &self.inbox[..]
                && code > 0
            {
                let reason = ReasonCode::from_connack_v3(code).unwrap_or(ReasonCode::UNSPECIFIED_ERROR);
                return Ok(Some(Refused { code: reason.0, text: reason.name().to_owned() }));
            }
            let decoded = decode(&self.inbox, Some(self.version), PACKET_MAX);
            if let Some((packet, size)) = decoded.map_err(Lost::for_good)? {
                let Packet::Connack(connack) = packet else {
                    return Err(Lost::new("a packet came before CONNACK"));
                };
                let refused = refusal(self.version, &connack);
                let code = refused.as_ref().map_or(0, |refused| refused.code);
                let session_present = connack.session_present;
                let properties: Vec<_> = (connack.properties.iter())
                    .filter_map(|property| match property {
                        Property::ReceiveMaximum(max) => Some((Some(max), None)),
                        Property::ServerKeepAlive(seconds) => Some((None, Some(seconds))),
                        _ => None,
                    })
                    .collect();
                for (max, seconds) in properties {
                    self.receive_max = max.unwrap_or(self.receive_max);
                    if let Some(seconds) = seconds {
                        self.keep_alive = Duration::from_secs(seconds.into());
                    }
                }
                self.session_present = session_present;
                self.debug(&format!("received CONNACK ({code})"));
                self.inbox.drain(..size);
                return Ok(refused);
            }
            self.fill().await?;
        }
    }

    /// Reads once. Cancel-safe.
    async fn fill(&mut self) -> Result<(), Lost> {
        match self.wire.read(&mut self.inbox).await.map_err(Lost::new)? {
            0 => Err(Lost::new("The connection was lost.")),
            _ => Ok(()),
        }
    }

    /// The next packet, with pings in between. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Incoming, Lost> {
        loop {
            if let Some(incoming) = self.decode()? {
                return Ok(incoming);
            }
            if self.keep_alive.is_zero() {
                self.fill().await?;
                continue;
            }
            let due = self.ping.unwrap_or(self.last_sent) + self.keep_alive;
            tokio::select! {
                filled = self.fill() => filled?,
                () = sleep_until(due) => {
                    if self.ping.is_some() {
                        return Err(Lost::new("the broker does not answer"));
                    }
                    self.debug("sending PINGREQ");
                    self.raw(&PINGREQ).await?;
                    self.ping = Some(Instant::now());
                }
            }
        }
    }

    /// A whole packet of those that are here.
    fn decode(&mut self) -> Result<Option<Incoming>, Lost> {
        loop {
            let decoded = decode(&self.inbox, Some(self.version), PACKET_MAX).map_err(Lost::for_good)?;
            let Some((packet, size)) = decoded else { return Ok(None) };
            let incoming = match packet {
                Packet::Publish(p) => {
                    let mut properties = PropertiesBuf::new();
                    properties.extend(p.properties, |_| true);
                    Some(Incoming::Message(Message {
                        topic: p.topic.to_owned(),
                        payload: p.payload.to_vec(),
                        qos: p.qos,
                        retain: p.retain,
                        packet_id: p.packet_id,
                        properties,
                    }))
                }
                Packet::Puback(ack) => Some(Incoming::Ack(AckType::Puback, ack.packet_id, ack.reason)),
                Packet::Pubrec(ack) => Some(Incoming::Ack(AckType::Pubrec, ack.packet_id, ack.reason)),
                Packet::Pubrel(ack) => Some(Incoming::Ack(AckType::Pubrel, ack.packet_id, ack.reason)),
                Packet::Pubcomp(ack) => Some(Incoming::Ack(AckType::Pubcomp, ack.packet_id, ack.reason)),
                Packet::Suback(s) => Some(Incoming::Subscribed(s.packet_id, s.reasons.to_vec())),
                Packet::Unsuback(_) => Some(Incoming::Unsubscribed),
                Packet::Pingresp => None,
                Packet::Disconnect(d) => {
                    return Err(Lost::told(d.reason));
                }
                _ => return Err(Lost::new("a packet came that no client is sent")),
            };
            self.ping = None;
            if let Some(incoming) = &incoming {
                self.debug(&heard(incoming));
            }
            self.inbox.drain(..size);
            if incoming.is_some() {
                return Ok(incoming);
            }
        }
    }

    /// A packet id, 1 and up.
    pub(super) fn id(&mut self) -> u16 {
        self.next_id = self.next_id.checked_add(1).unwrap_or(1);
        self.next_id
    }

    /// Sends one packet. Not cancel-safe.
    pub(super) async fn send(&mut self, packet: &Packet<'_>) -> Result<(), Lost> {
        let mut bytes = Vec::new();
        packet.encode(self.version, &mut bytes).map_err(Lost::for_good)?;
        self.raw(&bytes).await
    }

    /// As [`Connection::send`].
    pub(super) async fn publish(&mut self, message: &Outgoing<'_>) -> Result<(), Lost> {
        let Outgoing { topic, payload, qos, retain, dup, packet_id, properties } = *message;
        self.debug(&format!(
            "sending PUBLISH (d{}, q{qos}, r{}, m{packet_id}, '{topic}', ... ({} bytes))",
            u8::from(dup),
            u8::from(retain),
            payload.len()
        ));
        let flags = PublishFlags { dup, qos, retain };
        let mut bytes = Vec::new();
        encode_publish(&mut bytes, self.version, flags, topic, packet_id, &[properties], payload)
            .map_err(Lost::for_good)?;
        self.raw(&bytes).await
    }

    /// As [`Connection::send`].
    pub(super) async fn ack(&mut self, kind: AckType, packet_id: u16) -> Result<(), Lost> {
        self.debug(&match kind {
            AckType::Puback => format!("sending PUBACK (m{packet_id}, rc0)"),
            AckType::Pubrec => format!("sending PUBREC (m{packet_id}, rc0)"),
            AckType::Pubrel => format!("sending PUBREL (m{packet_id})"),
            AckType::Pubcomp => format!("sending PUBCOMP (m{packet_id})"),
        });
        let mut bytes = Vec::new();
        encode_ack(&mut bytes, self.version, kind, packet_id, ReasonCode::SUCCESS);
        self.raw(&bytes).await
    }

    async fn raw(&mut self, bytes: &[u8]) -> Result<(), Lost> {
        self.wire.send(bytes).await.map_err(Lost::new)?;
        self.last_sent = Instant::now();
        Ok(())
    }

    /// DISCONNECT and the end of the connection.
    pub(super) async fn disconnect(mut self, properties: &PropertiesBuf) {
        self.debug("sending DISCONNECT");
        let properties = properties.as_properties();
        let packet = Packet::Disconnect(Disconnect { reason: ReasonCode::NORMAL_DISCONNECTION, properties });
        // A broker that has gone needs no goodbye.
        let _ = self.send(&packet).await;
        self.wire.close().await;
    }
}

/// As `-d` tells it.
fn heard(incoming: &Incoming) -> String {
    match incoming {
        Incoming::Message(m) => format!(
            "received PUBLISH (d0, q{}, r{}, m{}, '{}', ... ({} bytes))",
            m.qos,
            u8::from(m.retain),
            m.packet_id,
            m.topic,
            m.payload.len()
        ),
        Incoming::Ack(AckType::Puback, id, reason) => format!("received PUBACK (Mid: {id}, RC:{})", reason.0),
        Incoming::Ack(AckType::Pubrec, id, _) => format!("received PUBREC (Mid: {id})"),
        Incoming::Ack(AckType::Pubrel, id, _) => format!("received PUBREL (Mid: {id})"),
        Incoming::Ack(AckType::Pubcomp, id, reason) => {
            format!("received PUBCOMP (Mid: {id}, RC:{})", reason.0)
        }
        Incoming::Subscribed(..) => "received SUBACK".to_owned(),
        Incoming::Unsubscribed => "received UNSUBACK".to_owned(),
    }
}

fn refusal(version: Version, connack: &Connack<'_>) -> Option<Refused> {
    if !connack.reason.is_error() {
        return None;
    }
    if version == Version::V5 {
        return Some(Refused { code: connack.reason.0, text: connack.reason.name().to_owned() });
    }
    let code = connack.reason.to_connack_v3().unwrap_or(5);
    let words = match code {
        1 => "unacceptable protocol version",
        2 => "identifier rejected",
        3 => "broker unavailable",
        4 => "bad user name or password",
        _ => "not authorised",
    };
    Some(Refused { code, text: format!("Connection Refused: {words}.") })
}
