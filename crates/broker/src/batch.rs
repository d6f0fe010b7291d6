//! Batches of a gateway: many messages in one PUBLISH ([`ferrule_batch`]).
//!
//! Each message is treated as if it had come alone: what its gateway may publish, what topics and payloads may be, rules, sessions,
//! retained messages. What is one is the acknowledgement: it waits for the ends of all of them, and names those that were refused, so
//! that one of them costs no other.
//!
//! # Invariants
//! - All of a batch is routed, but for what is refused, or nothing is: it is decoded whole first.
//! - The bytes that decide about memory are compared with bounds before ([`ferrule_batch::Decoder`]).
//! - A batch takes one place of its gateway's window, and at most [`ferrule_batch::MESSAGES_MAX`] messages of a turn.

use crate::hook::{Hook, Message, Publisher, Role};
use crate::peers::Owner;
use crate::publish::Meant;
use crate::session::{Inbound, Waiting};
use crate::shard::Shard;
use crate::{ConnId, SessionKey};
use ferrule_batch::{DecodeError, Item, REFUSED_NAME, TOPIC};
use ferrule_mqtt::{
    Ack, AckType, Packet, Properties, PropertiesBuf, Property, Publish, QoS, ReasonCode, encode_ack,
};
use ferrule_outbox::{End, Outcome};
use ferrule_store::Store;

/// A batch that is not acknowledged yet.
#[derive(Debug)]
pub(crate) struct Batched {
    packet_id: u16,
    /// Those that were not refused, less one: an acknowledgement counts one by itself.
    more: u64,
    /// As [`REFUSED_NAME`] says it.
    refused: String,
}

/// Whether a publish is a batch.
pub(crate) fn is_batch(topic: &str, publisher: &Publisher) -> bool {
    topic == TOPIC && matches!(publisher.role, Role::Edge(_))
}

impl<H: Hook, S: Store> Shard<H, S> {
    pub(crate) fn publish_batch(
        &mut self,
        id: ConnId,
        key: SessionKey,
        publish: &Publish<'_>,
        publisher: &Publisher,
    ) {
        let owner = match publish.qos {
            QoS::AtMostOnce => None,
            QoS::AtLeastOnce | QoS::ExactlyOnce => match self.admit_acknowledged(id, key, publish, TOPIC) {
                Some(owner) => Some(owner),
                None => return,
            },
        };
        let mut decoder = std::mem::take(&mut self.batches);
        let decoded = if publish.qos == QoS::ExactlyOnce {
            // No edge does: it has nothing to gain by it.
            Err(ReasonCode::PAYLOAD_FORMAT_INVALID)
        } else {
            decoder.decode(publish.payload).map_err(|error| match error {
                DecodeError::Version(_) | DecodeError::Dictionary(_) => {
                    ReasonCode::IMPLEMENTATION_SPECIFIC_ERROR
                }
                DecodeError::TooLarge => ReasonCode::PACKET_TOO_LARGE,
                DecodeError::Memory => ReasonCode::SERVER_BUSY,
                DecodeError::Damaged(_) => ReasonCode::PAYLOAD_FORMAT_INVALID,
            })
        };
        match (decoded, owner) {
            (Err(reason), owner) => {
                self.stats.batches_refused += 1;
                if let Some(owner) = owner {
                    self.acknowledge(owner, reason, publish, TOPIC);
                }
            }
            (Ok(batch), None) => {
                self.stats.batches += 1;
                // The publish that it came in was counted.
                self.stats.received += batch.len() as u64 - 1;
                for item in batch.items() {
                    let _ = self.publish_item(id, key, publish, &item, publisher, None);
                }
            }
            (Ok(batch), Some(owner)) => {
                self.stats.batches += 1;
                // The publish that it came in was counted.
                self.stats.received += batch.len() as u64 - 1;
                let guard = self.receipts.open(Owner::Publisher(owner));
                let mut refused = String::new();
                let mut more = batch.len() as u64 - 1;
                for (place, item) in batch.items().enumerate() {
                    let published = self.publish_item(id, key, publish, &item, publisher, Some(&guard));
                    if let Err(reason) = published {
                        let comma = if refused.is_empty() { "" } else { "," };
                        refused.push_str(&format!("{comma}{place}:{}", reason.0));
                        more = more.saturating_sub(1);
                    }
                }
                let content = self.content(publish, TOPIC);
                if let Some(conn) = self.conns.get_mut(id) {
                    let publishing = conn.publishing.make();
                    publishing.batches.push(Batched { packet_id: publish.packet_id, more, refused });
                    let receipt = Some(guard.receipt());
                    let reason = ReasonCode::SUCCESS;
                    let Inbound { serial, packet_id, .. } = owner;
                    let waiting = Waiting { serial, packet_id, qos2: false, receipt, reason, content };
                    self.await_acknowledgement(id, waiting);
                }
                if let Some(done) = self.receipts.resolve(guard, Outcome::Delivered) {
                    self.complete(done.owner, done.outcome);
                }
            }
        }
        self.batches = decoder;
    }

    /// One of them, as if it had come alone. `guard`: of the receipt that the batch waits for.
    fn publish_item(
        &mut self,
        id: ConnId,
        key: SessionKey,
        batch: &Publish<'_>,
        item: &Item<'_>,
        publisher: &Publisher,
        guard: Option<&End>,
    ) -> Result<(), ReasonCode> {
        let mut properties = PropertiesBuf::new();
        item.say(&mut self.batch_text, &mut properties);
        properties.extend(item.properties, |_| true);
        let qos = if item.acknowledged { QoS::AtLeastOnce } else { QoS::AtMostOnce };
        let publish = Publish {
            dup: batch.dup,
            qos,
            retain: item.retain,
            topic: item.topic,
            packet_id: 0,
            properties: properties.as_properties(),
            payload: item.payload,
        };
        let meant = match self.admit_topic(id, &publish, item.topic, publisher) {
            Meant::Gone => return Ok(()),
            Meant::Refused(reason) => return Err(reason),
            Meant::Topic(meant) => meant,
        };
        let message = Message {
            topic: meant.as_deref().unwrap_or(item.topic),
            payload: item.payload,
            qos,
            retain: item.retain,
            dup: batch.dup,
            properties: publish.properties,
            publisher,
            received: self.now.stamp(),
            hops: 0,
            path: 0,
            attachment: None,
            hold: false,
        };
        self.route_or_delay(&message, Some(key), None, guard.filter(|_| item.acknowledged));
        Ok(())
    }

    /// The PUBACK of a batch; false when `packet_id` is none's.
    pub(crate) fn acknowledge_batch(&mut self, id: ConnId, packet_id: u16) -> bool {
        let Some(conn) = self.conns.get_mut(id) else { return false };
        let Some(publishing) = conn.publishing.get_mut() else { return false };
        let Some(at) = publishing.batches.iter().position(|b| b.packet_id == packet_id) else { return false };
        let Batched { more, refused, .. } = publishing.batches.swap_remove(at);
        let takes_properties = !publishing.terse;
        let bytes_max = conn.peer_packet_bytes as usize;
        self.stats.acknowledged += more;
        self.write(id, |out, version| {
            if refused.is_empty() {
                encode_ack(out, version, AckType::Puback, packet_id, ReasonCode::SUCCESS);
                return;
            }
            let start = out.len();
            let mut properties = PropertiesBuf::new();
            let said =
                takes_properties && properties.push(Property::UserProperty(REFUSED_NAME, &refused)).is_ok();
            let properties = if said { properties.as_properties() } else { Properties::EMPTY };
            let reason = if said { ReasonCode::SUCCESS } else { ReasonCode::IMPLEMENTATION_SPECIFIC_ERROR };
            let ack = Packet::Puback(Ack { packet_id, reason, properties });
            if ack.encode(version, out).is_err() || out.len() - start > bytes_max {
                // It cannot be told which: it sends all of them again, one at a time. Their identity makes them one.
                out.truncate(start);
                let reason = ReasonCode::IMPLEMENTATION_SPECIFIC_ERROR;
                encode_ack(out, version, AckType::Puback, packet_id, reason);
            }
        });
        true
    }
}
