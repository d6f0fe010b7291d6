//! What the tests share: rows, and the server's side of the codec.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "tests; each uses a part of this")]

pub mod broker;
pub mod front;

use bytes::Bytes;
use ferrule_link::client::ClientConfig;
use ferrule_mqtt::{
    Ack, Connack, Disconnect, Packet, Properties, PropertiesBuf, Property, ReasonCode, Suback, Version,
    decode,
};
use ferrule_outbox::OutRow;
use ferrule_store::record::Entry;
use ferrule_store::{Boot, Identity, Stamp};
use std::sync::Arc;

pub const BOOT: u64 = 0xB007;
pub const SECOND: u64 = 1_000_000;

pub fn entry(seq: u64, key: &str) -> Entry {
    Entry {
        identity: Identity { origin: "press-7".into(), boot: Boot::new(BOOT), class: 0, seq },
        rule: 1,
        row: 0,
        target: format!("t/{key}").into(),
        key: key.into(),
        passthrough: true,
        qos: 1,
        retain: false,
        client_id: key.into(),
        username: None,
        topic: "t".into(),
        edge: None,
        received: Stamp { wall_ms: 1_000, mono_us: 0, synced: true },
        hops: 0,
        properties: Bytes::new(),
        payload: Bytes::from(format!("{seq}")),
    }
}

pub fn row_of(entry: Entry) -> OutRow {
    OutRow { seq: entry.identity.seq, entry: Arc::new(entry), again: false, late: false }
}

pub fn row(seq: u64, key: &str) -> OutRow {
    row_of(entry(seq, key))
}

pub fn client_config() -> ClientConfig {
    ClientConfig {
        version: Version::V5,
        client_id: "ferrule-press-7".to_owned(),
        username: None,
        password: None,
        clean_start: true,
        keep_alive_s: 10,
        connack_timeout_us: 5 * SECOND,
        window_max: 100,
        max_packet_size: 1 << 20,
        session_expiry_s: 0,
        receive_max: 0,
        user_properties: vec![("ferrule".to_owned(), "1".to_owned())],
    }
}

pub fn connack(reason: u8, properties: &[Property<'_>]) -> Vec<u8> {
    connack_of(Version::V5, reason, properties)
}

pub fn connack_of(version: Version, reason: u8, properties: &[Property<'_>]) -> Vec<u8> {
    let mut buf = PropertiesBuf::new();
    for property in properties {
        buf.push(*property).unwrap();
    }
    let packet =
        Connack { session_present: false, reason: ReasonCode(reason), properties: buf.as_properties() };
    bytes(Packet::Connack(packet), version)
}

pub fn puback(packet_id: u16, reason: u8) -> Vec<u8> {
    let ack = Ack { packet_id, reason: ReasonCode(reason), properties: Properties::EMPTY };
    bytes(Packet::Puback(ack), Version::V5)
}

pub fn suback(packet_id: u16, reasons: &[u8]) -> Vec<u8> {
    bytes(Packet::Suback(Suback { packet_id, properties: Properties::EMPTY, reasons }), Version::V5)
}

pub fn disconnect(reason: u8, text: &str) -> Vec<u8> {
    let mut buf = PropertiesBuf::new();
    if !text.is_empty() {
        buf.push(Property::ReasonString(text)).unwrap();
    }
    let packet = Disconnect { reason: ReasonCode(reason), properties: buf.as_properties() };
    bytes(Packet::Disconnect(packet), Version::V5)
}

pub fn bytes(packet: Packet<'_>, version: Version) -> Vec<u8> {
    let mut out = Vec::new();
    packet.encode(version, &mut out).unwrap();
    out
}

/// A PUBLISH as a server reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub packet_id: u16,
    pub qos: u8,
    pub retain: bool,
    pub topic: String,
    pub payload: String,
    pub user: Vec<(String, String)>,
}

impl Seen {
    pub fn number(&self) -> u64 {
        self.payload.parse().unwrap()
    }

    pub fn property(&self, name: &str) -> Option<&str> {
        self.user.iter().find(|(n, _)| n == name).map(|(_, value)| &**value)
    }
}

/// All PUBLISH packets in `out`, which is emptied; other packets are skipped.
pub fn publishes(out: &mut Vec<u8>) -> Vec<Seen> {
    let mut seen = Vec::new();
    let mut at = 0;
    while let Some((packet, size)) = decode(&out[at..], Some(Version::V5), usize::MAX).unwrap() {
        at += size;
        if let Packet::Publish(publish) = packet {
            seen.push(see(&publish));
        }
    }
    assert_eq!(at, out.len(), "half a packet");
    out.clear();
    seen
}

pub fn see(publish: &ferrule_mqtt::Publish<'_>) -> Seen {
    Seen {
        packet_id: publish.packet_id,
        qos: publish.qos.into(),
        retain: publish.retain,
        topic: publish.topic.to_owned(),
        payload: String::from_utf8_lossy(publish.payload).into_owned(),
        user: publish
            .properties
            .user_properties()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
    }
}

/// A small generator: seeds make runs repeatable.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}
