//! Rows to a Ferrule cloud as batches ([`ferrule_batch`]): which rows go together, and what becomes of each.
//!
//! # Operation
//! A batch is made when its first row has waited for `delay`, or at once when there is no reason to wait: what waits fills one, or the
//! outbox has handed out all that it may and can add nothing ([`crate::gathering`]). So a backlog is sent as fast as without batches. A
//! row that fits into no batch goes alone, in its place.
//!
//! # Answers
//! The PUBACK of a batch answers all its rows; those that it names ([`REFUSED_NAME`]) were refused, as by a PUBACK of their own with
//! that reason. A batch that is refused whole (another version, a dictionary that is gone) costs nothing: from then on, on this
//! connection, rows go one by one. Rows of QoS 0 are done when the bytes have left, as they are alone.

use crate::client::{Accepted, Client, Outgoing, Sent, Verdict};
use crate::flow::{Flight, Flow, Held};
use crate::forward::Forwarder;
use crate::gathering::Gathering;
use ferrule_batch::{Encoder, MESSAGES_MAX, PLAIN_MAX, REFUSED_NAME, TOPIC};
use ferrule_mqtt::{Properties, QoS, ReasonCode};
use ferrule_outbox::Delivered;
use ferrule_store::Stamp;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of a PUBLISH around its payload: fixed header, topic, packet id, no properties.
const AROUND: usize = 5 + 2 + TOPIC.len() + 2 + 1;

/// Of one connection.
#[derive(Debug)]
pub struct Batching {
    encoder: Encoder,
    /// When one is made.
    pub(crate) gathering: Gathering,
    retain: bool,
}

impl Batching {
    /// For what a cloud agreed to; none if it knows no batches. `delay`: how long a row may wait for others; `window`: how many
    /// rows may be unanswered.
    ///
    /// # Errors
    /// When zstd has no memory.
    pub fn new(accepted: &Accepted, delay: Duration, window: usize) -> io::Result<Option<Self>> {
        if !accepted.ferrule || !accepted.batch {
            return Ok(None);
        }
        let payload_max = accepted.max_packet_size.saturating_sub(AROUND);
        let encoder = Encoder::new(payload_max, accepted.dictionary)?;
        let gathering = Gathering::of_batches(delay, window, MESSAGES_MAX, PLAIN_MAX);
        Ok(Some(Self { encoder, gathering, retain: accepted.retain_available }))
    }
}

impl Flow {
    /// Encodes one batch, or the row that goes alone. False: nothing more can be sent now.
    pub(crate) fn send_batch(
        &mut self,
        batching: &mut Batching,
        client: &mut Client<Flight>,
        forwarder: &mut Forwarder,
        now_us: u64,
        stamp: &Stamp,
        out: &mut Vec<u8>,
    ) -> bool {
        let mut rows = Vec::new();
        let mut unanswered = Vec::new();
        while let Some(row) = self.next_row() {
            let entry = Arc::clone(&row.row.entry);
            let mut item = match forwarder.item(&entry, row.row.late, stamp) {
                Ok(item) => item,
                Err(reason) => {
                    self.settle(row, Delivered::Discarded(reason));
                    continue;
                }
            };
            item.retain &= batching.retain;
            if batching.encoder.push(&item) {
                if item.acknowledged {
                    rows.push((batching.encoder.count() - 1, row));
                } else {
                    unanswered.push(row);
                }
                continue;
            }
            if batching.encoder.count() > 0 {
                self.queue.push_front(row);
                break;
            }
            // Larger than a batch, or none of MQTT's: alone it is sent, or told why not.
            return match self.send(row, client, forwarder, now_us, stamp, out) {
                Some(row) => {
                    self.queue.push_front(row);
                    false
                }
                None => true,
            };
        }
        if batching.encoder.count() == 0 {
            return false;
        }
        let qos = if rows.is_empty() { QoS::AtMostOnce } else { QoS::AtLeastOnce };
        let sent = (rows.len() + unanswered.len()) as u64;
        let payload = batching.encoder.finish();
        let message = Outgoing { qos, retain: false, topic: TOPIC, properties: &[], payload };
        match client.publish(Flight::Batch(rows), &message, now_us, out) {
            Sent::Awaiting | Sent::Unanswered(_) => {
                self.sent += sent;
                self.batches += 1;
                self.unacked_qos_0 |= !unanswered.is_empty();
                for row in unanswered {
                    self.unwritten.push(row.row.seq);
                    self.release(&row);
                }
                true
            }
            Sent::NoRoom(flight) | Sent::TooLarge(flight) | Sent::Invalid(flight, _) => {
                // There was room, and the encoder keeps to the size: but a row is never lost over it.
                debug_assert!(false, "a batch that cannot be sent");
                unanswered.into_iter().chain(flight.into_rows()).for_each(|row| self.back(row));
                false
            }
        }
    }

    /// The cloud's word on a batch.
    pub(crate) fn batch_acked(
        &mut self,
        rows: Vec<(usize, Held)>,
        reason: ReasonCode,
        properties: Properties<'_>,
        now_us: u64,
    ) {
        if reason.is_error() {
            match Verdict::of(reason) {
                Verdict::Later if reason != ReasonCode::IMPLEMENTATION_SPECIFIC_ERROR => {
                    rows.into_iter().for_each(|(_, row)| self.row_acked(row, reason, now_us));
                }
                _ => {
                    tracing::warn!(%reason, "the cloud refuses a batch: its messages, and those after them, are sent one by one");
                    self.batching = None;
                    rows.into_iter().for_each(|(_, row)| self.back(row));
                }
            }
            return;
        }
        let refused = properties.user_properties().find(|(name, _)| *name == REFUSED_NAME);
        let mut refused: Vec<(usize, ReasonCode)> = refused.map_or_else(Vec::new, |(_, text)| parse(text));
        refused.sort_unstable_by_key(|(place, _)| *place);
        for (place, row) in rows {
            let reason = match refused.binary_search_by_key(&place, |(place, _)| *place) {
                Ok(at) => refused[at].1,
                Err(_) => reason,
            };
            self.row_acked(row, reason, now_us);
        }
    }
}

/// Reads [`REFUSED_NAME`]. What is no place and reason refuses nothing.
fn parse(text: &str) -> Vec<(usize, ReasonCode)> {
    let pair = |pair: &str| {
        let (place, reason) = pair.split_once(':')?;
        Some((place.parse().ok()?, ReasonCode(reason.parse().ok()?)))
    };
    text.split(',').filter_map(pair).collect()
}
