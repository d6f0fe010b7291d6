//! One connection as its client sees it: what the server may send, by what it was sent.
//!
//! Nothing here knows the shard. The monitor is told the bytes that the server *took* of the client's, and those that it
//! wrote, and holds both against the standard. Between the two it keeps counts and no order, since a
//! turn's output is seen after all of its input: each check is one that holds whatever the order was within a turn.
//!
//! | of the server | bound |
//! |---|---|
//! | its bytes | decode as packets that a server may send in this version; no half packet before the end |
//! | first packet | CONNACK, once; a session only where the client did not ask for a clean one |
//! | last packet | DISCONNECT, or a CONNACK that refuses: nothing follows |
//! | PUBACK, PUBREC, PUBCOMP, PINGRESP | no more than the PUBLISH, PUBREL, PINGREQ that they answer |
//! | SUBACK, UNSUBACK | one for each request, with as many reasons as it had filters |
//! | PUBREL | no more than the client's PUBRECs, and one more where a session was resumed |
//! | PUBLISH | topic name valid; not larger than the client takes; no topic alias that it did not offer; its packet id free; no more in flight than Receive Maximum |

use std::collections::{HashMap, HashSet, VecDeque};

use ferrule_mqtt::{
    Ack, AckType, Connect, Packet, PropertyId, QoS, ReasonCode, Side, Version, decode, topic,
};

/// What a client owes the server an answer for.
pub type Due = (AckType, u16);

/// The client's side of a connection.
#[derive(Debug, Default)]
pub struct Monitor {
    version: Option<Version>,
    clean_start: bool,
    receive_maximum: usize,
    packet_size: usize,
    alias_maximum: u16,
    /// Aliases that the server has set.
    aliases: HashSet<u16>,
    /// Whether its bytes end in something that is no packet: the server goes on taking them, and nothing is known of them.
    broken: bool,
    accepted: bool,
    resumed: bool,
    /// Whether the server's last packet has been seen.
    over: bool,
    /// Written and not decoded.
    output: Vec<u8>,
    due: VecDeque<Due>,
    /// Per packet id.
    publishes: HashMap<(QoS, u16), u32>,
    pubacks: HashMap<u16, u32>,
    pubrecs: HashMap<u16, u32>,
    pubrels: HashMap<u16, u32>,
    pubcomps: HashMap<u16, u32>,
    own_pubrecs: HashMap<u16, u32>,
    own_pubrels: HashMap<u16, u32>,
    deliveries: HashMap<u16, u32>,
    /// Packet ids of deliveries that the client has ended.
    frees: HashMap<u16, u32>,
    in_flight: i64,
    subscribes: VecDeque<(u16, usize)>,
    unsubscribes: VecDeque<(u16, usize)>,
    pings: i64,
}

fn add(counts: &mut HashMap<u16, u32>, id: u16) -> u32 {
    let count = counts.entry(id).or_default();
    *count += 1;
    *count
}

fn count(counts: &HashMap<u16, u32>, id: u16) -> u32 {
    counts.get(&id).copied().unwrap_or(0)
}

impl Monitor {
    /// Before its CONNECT.
    #[must_use]
    pub fn new() -> Self {
        Self { receive_maximum: usize::from(u16::MAX), packet_size: usize::MAX, ..Self::default() }
    }

    /// The version of its CONNECT, once the server has taken that.
    #[must_use]
    pub fn version(&self) -> Option<Version> {
        self.version
    }

    /// The oldest or the newest answer that the client owes.
    pub fn take_due(&mut self, newest: bool) -> Option<Due> {
        if newest { self.due.pop_back() } else { self.due.pop_front() }
    }

    /// The server took these bytes: whole packets, and perhaps something that is none.
    pub fn taken(&mut self, mut bytes: &[u8]) {
        while !self.broken && !bytes.is_empty() {
            let Ok(Some((packet, size))) = decode(bytes, self.version, usize::MAX) else {
                self.broken = true;
                return;
            };
            bytes = &bytes[size..];
            self.client(&packet);
        }
    }

    fn client(&mut self, packet: &Packet<'_>) {
        match packet {
            Packet::Connect(Connect { version, clean_start, properties, .. }) => {
                self.version = Some(*version);
                self.clean_start = *clean_start;
                self.receive_maximum = properties.receive_maximum().unwrap_or(u16::MAX).into();
                self.packet_size = properties.maximum_packet_size().map_or(usize::MAX, |size| size as usize);
                self.alias_maximum = properties.topic_alias_maximum().unwrap_or(0);
            }
            Packet::Publish(publish) if publish.qos > QoS::AtMostOnce => {
                *self.publishes.entry((publish.qos, publish.packet_id)).or_default() += 1;
            }
            Packet::Puback(Ack { packet_id, .. }) => self.free(*packet_id),
            Packet::Pubrec(Ack { packet_id, reason, .. }) => {
                add(&mut self.own_pubrecs, *packet_id);
                if reason.is_error() {
                    self.free(*packet_id);
                }
            }
            Packet::Pubcomp(Ack { packet_id, .. }) => self.free(*packet_id),
            Packet::Pubrel(Ack { packet_id, .. }) => drop(add(&mut self.own_pubrels, *packet_id)),
            Packet::Subscribe(subscribe) => {
                self.subscribes.push_back((subscribe.packet_id, subscribe.filters.len()));
            }
            Packet::Unsubscribe(unsubscribe) => {
                self.unsubscribes.push_back((unsubscribe.packet_id, unsubscribe.filters.iter().count()));
            }
            Packet::Pingreq => self.pings += 1,
            _ => {}
        }
    }

    fn free(&mut self, packet_id: u16) {
        // Only of one that was sent here: others free nothing.
        if count(&self.frees, packet_id) < count(&self.deliveries, packet_id) {
            self.in_flight -= 1;
        }
        add(&mut self.frees, packet_id);
    }

    /// The server wrote these bytes.
    ///
    /// # Panics
    /// When it may not.
    pub fn wrote(&mut self, bytes: &[u8]) {
        let mut output = std::mem::take(&mut self.output);
        output.extend_from_slice(bytes);
        let mut at = 0;
        while let Some((packet, size)) = self.decoded(&output[at..]) {
            self.server(&packet, size);
            at += size;
        }
        output.drain(..at);
        self.output = output;
    }

    /// The connection has ended and all that the server wrote has been seen.
    ///
    /// # Panics
    /// When the end is in the midst of a packet.
    pub fn ended(&self) {
        assert!(self.output.is_empty(), "the end is in the midst of a packet: {:02x?}", self.output);
    }

    fn decoded<'a>(&self, bytes: &'a [u8]) -> Option<(Packet<'a>, usize)> {
        // A CONNECT that was refused as such has no version that is known here: its answer is in one of them.
        let versions = match self.version {
            Some(version) => vec![version],
            None => vec![Version::V5, Version::V3_1_1],
        };
        let mut fault = None;
        for version in versions {
            match decode(bytes, Some(version), usize::MAX) {
                Ok(None) => return None,
                Ok(Some((packet, size))) => {
                    packet
                        .check_sender(Side::Server, version)
                        .unwrap_or_else(|error| panic!("a server sent {packet:?}: {error}"));
                    return Some((packet, size));
                }
                Err(error) => fault = Some(error),
            }
        }
        panic!("a server sent {bytes:02x?}: {fault:?}")
    }

    fn server(&mut self, packet: &Packet<'_>, size: usize) {
        assert!(!self.over, "after its last packet a server sent {packet:?}");
        // [MQTT-3.1.2-24], of every packet.
        assert!(size <= self.packet_size, "{size} bytes to who takes {}: {packet:?}", self.packet_size);
        if let Packet::Connack(connack) = packet {
            assert!(!self.accepted, "a second CONNACK");
            assert!(self.version.is_some() || self.broken, "CONNACK without CONNECT");
            if connack.reason != ReasonCode::SUCCESS {
                assert!(!connack.session_present, "refused, with a session");
                self.over = true;
                return;
            }
            assert!(self.version.is_some(), "accepted without a CONNECT that decodes");
            assert!(
                !connack.session_present || !self.clean_start,
                "a session although a clean one was asked for"
            );
            self.accepted = true;
            // MQTT 3.1 does not say whether there is a session.
            let unsaid = self.version == Some(Version::V3_1) && !self.clean_start;
            self.resumed = connack.session_present || unsaid;
            return;
        }
        assert!(self.accepted, "before CONNACK a server sent {packet:?}");
        match *packet {
            Packet::Publish(publish) => {
                let alias = publish.properties.topic_alias().unwrap_or(0);
                if publish.topic.is_empty() {
                    assert!(self.aliases.contains(&alias), "topic alias {alias} is not set: {packet:?}");
                } else {
                    let valid = topic::validate_name(publish.topic);
                    assert!(valid.is_ok(), "topic name {:?}: {valid:?}", publish.topic);
                    self.aliases.insert(alias);
                }
                assert!(alias <= self.alias_maximum, "topic alias {alias}");
                assert!(!publish.properties.contains(PropertyId::TopicAlias) || alias > 0, "topic alias 0");
                let id = publish.packet_id;
                match publish.qos {
                    QoS::AtMostOnce => return,
                    QoS::AtLeastOnce => self.due.push_back((AckType::Puback, id)),
                    QoS::ExactlyOnce => self.due.push_back((AckType::Pubrec, id)),
                }
                let deliveries = add(&mut self.deliveries, id);
                let frees = count(&self.frees, id);
                assert!(deliveries <= frees + 1, "packet id {id} is in use: {packet:?}");
                // Freed in the same turn, before this monitor saw it.
                self.in_flight += i64::from(deliveries > frees);
                assert!(
                    self.in_flight <= self.receive_maximum as i64,
                    "{} in flight to who takes {}",
                    self.in_flight,
                    self.receive_maximum
                );
            }
            Packet::Puback(Ack { packet_id, .. }) => {
                let most = self.publishes.get(&(QoS::AtLeastOnce, packet_id)).copied().unwrap_or(0);
                assert!(add(&mut self.pubacks, packet_id) <= most, "PUBACK {packet_id} for nothing");
            }
            Packet::Pubrec(Ack { packet_id, reason, .. }) => {
                let most = self.publishes.get(&(QoS::ExactlyOnce, packet_id)).copied().unwrap_or(0);
                assert!(add(&mut self.pubrecs, packet_id) <= most, "PUBREC {packet_id} for nothing");
                if !reason.is_error() {
                    self.due.push_back((AckType::Pubrel, packet_id));
                }
            }
            Packet::Pubrel(Ack { packet_id, .. }) => {
                let most = count(&self.own_pubrecs, packet_id) + u32::from(self.resumed);
                assert!(add(&mut self.pubrels, packet_id) <= most, "PUBREL {packet_id} for nothing");
                self.due.push_back((AckType::Pubcomp, packet_id));
            }
            Packet::Pubcomp(Ack { packet_id, .. }) => {
                let most = count(&self.own_pubrels, packet_id);
                assert!(add(&mut self.pubcomps, packet_id) <= most, "PUBCOMP {packet_id} for nothing");
            }
            Packet::Suback(suback) => {
                answered(&mut self.subscribes, (suback.packet_id, suback.reasons.len()), packet);
            }
            Packet::Unsuback(unsuback) if self.version == Some(Version::V5) => {
                answered(&mut self.unsubscribes, (unsuback.packet_id, unsuback.reasons.len()), packet);
            }
            Packet::Unsuback(unsuback) => {
                let at = self.unsubscribes.iter().position(|(id, _)| *id == unsuback.packet_id);
                let at = at.unwrap_or_else(|| panic!("for nothing: {packet:?}"));
                self.unsubscribes.remove(at);
            }
            Packet::Pingresp => {
                self.pings -= 1;
                assert!(self.pings >= 0, "PINGRESP for nothing");
            }
            Packet::Disconnect(_) => self.over = true,
            other => panic!("a server sent {other:?}"),
        }
    }
}

fn answered(requests: &mut VecDeque<(u16, usize)>, answer: (u16, usize), packet: &Packet<'_>) {
    let at = requests.iter().position(|request| *request == answer);
    let at = at.unwrap_or_else(|| panic!("for nothing: {packet:?}; asked: {requests:?}"));
    requests.remove(at);
}
