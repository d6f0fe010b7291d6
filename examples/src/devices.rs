//! The devices: one stock MQTT client (rumqttc) each, QoS 1.
//!
//! # Design
//! rumqttc hands out packet ids itself and reports them in the order of the requests: so the numbers that were asked for
//! wait in a queue, get their packet id from `Outgoing::Publish`, and are acknowledged by its PUBACK. A packet id that
//! already has a number is a message sent again after a reconnect. A reconnect without a session gives up what was open
//! (rumqttc forgets it then): published, and never acknowledged.
//!
//! Clients run on a runtime of their own, so that their latencies do not hold the demo's drawing and reading.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rumqttc::{AsyncClient, Event, MqttOptions, Outgoing, Packet, QoS};
use serde_json::{Map, Value, json};
use tokio::runtime::Runtime;

use crate::figures::Reading;
use crate::ledger::Ledger;

/// Requests that one client may have waiting.
const WAITING_MAX: usize = 256;
/// Devices beyond these are left out.
const DEVICES_MAX: usize = 64;

/// All devices of the demo.
#[derive(Debug)]
pub struct Fleet {
    runtime: Runtime,
    port: u16,
    /// By topic.
    devices: HashMap<String, Device>,
    ledger: Arc<Mutex<Ledger>>,
}

#[derive(Debug)]
struct Device {
    /// Its client id.
    name: String,
    client: AsyncClient,
    open: Arc<Mutex<Open>>,
}

/// What a client has been asked for and not acknowledged.
#[derive(Debug, Default)]
struct Open {
    /// Asked for, without a packet id yet.
    waiting: VecDeque<(u64, Instant)>,
    sent: HashMap<u16, (u64, Instant)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fleet {
    /// No devices yet; those to come connect to `port` of 127.0.0.1.
    ///
    /// # Errors
    /// When threads cannot be started.
    pub fn new(port: u16) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        Ok(Self { runtime, port, devices: HashMap::new(), ledger: Arc::default() })
    }

    /// The runtime.
    #[must_use]
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// What was published and acknowledged so far.
    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        lock(&self.ledger)
    }

    /// Publishes one reading as its device, which connects when it is new. Nothing is published when the client has too
    /// much waiting: the demo is a source that can hold back.
    pub fn publish(&mut self, reading: &Reading) {
        if !self.devices.contains_key(&reading.topic) {
            if self.devices.len() == DEVICES_MAX {
                return;
            }
            let device = self.connect(&reading.topic);
            self.devices.insert(reading.topic.clone(), device);
        }
        let Some(device) = self.devices.get(&reading.topic) else { return };
        let mut open = lock(&device.open);
        if open.waiting.len() == WAITING_MAX {
            return;
        }
        let n = lock(&self.ledger).publish(&device.name);
        open.waiting.push_back((n, Instant::now()));
        let payload = payload(&device.name, n, now_ms(), &reading.values);
        // Its queue is as long as ours, and all that is in it is in ours: there is room.
        if device
            .client
            .try_publish(format!("host/{}", reading.topic), QoS::AtLeastOnce, false, payload)
            .is_err()
        {
            open.waiting.pop_back();
        }
    }

    fn connect(&self, topic: &str) -> Device {
        let name = format!("host-{}", topic.replace('/', "-"));
        let mut options = MqttOptions::new(&name, "127.0.0.1", self.port);
        options.set_keep_alive(Duration::from_secs(15));
        let (client, mut events) = AsyncClient::new(options, WAITING_MAX);
        let open = Arc::new(Mutex::new(Open::default()));
        let (ledger, shared, device) = (Arc::clone(&self.ledger), Arc::clone(&open), name.clone());
        self.runtime.spawn(async move {
            loop {
                match events.poll().await {
                    Ok(event) => {
                        if let Some((n, after)) = lock(&shared).take(&event) {
                            lock(&ledger).acknowledge(&device, n, after);
                        }
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
                }
            }
        });
        Device { name, client, open }
    }
}

impl Open {
    /// Follows the client's events; what one acknowledges and how long after it was asked for.
    fn take(&mut self, event: &Event) -> Option<(u64, Duration)> {
        match event {
            Event::Outgoing(Outgoing::Publish(packet_id)) if !self.sent.contains_key(packet_id) => {
                let asked = self.waiting.pop_front()?;
                self.sent.insert(*packet_id, asked);
                None
            }
            Event::Incoming(Packet::PubAck(ack)) => {
                let (n, at) = self.sent.remove(&ack.pkid)?;
                Some((n, at.elapsed()))
            }
            Event::Incoming(Packet::ConnAck(ack)) if !ack.session_present && !self.sent.is_empty() => {
                self.sent.clear();
                self.waiting.clear();
                None
            }
            _ => None,
        }
    }
}

/// `{"device":..,"n":..,"at":..,...}`: device and number identify the message at every destination.
fn payload(device: &str, n: u64, at_ms: u64, values: &Map<String, Value>) -> String {
    let mut members = Map::new();
    members.insert("device".to_owned(), json!(device));
    members.insert("n".to_owned(), json!(n));
    members.insert("at".to_owned(), json!(at_ms));
    members.extend(values.clone());
    Value::Object(members).to_string()
}

/// Milliseconds since 1970.
#[must_use]
pub fn now_ms() -> u64 {
    u64::try_from(ferrule_clock::wall_ms()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use rumqttc::{ConnAck, ConnectReturnCode, PubAck};

    use super::*;

    #[test]
    fn a_payload_begins_with_its_key() {
        let values = Map::from_iter([("load1".to_owned(), json!(0.5))]);
        assert_eq!(payload("host-load", 3, 7, &values), r#"{"device":"host-load","n":3,"at":7,"load1":0.5}"#);
    }

    #[test]
    fn numbers_follow_packet_ids() {
        let mut open = Open::default();
        let sent = |id| Event::Outgoing(Outgoing::Publish(id));
        let acked = |id| Event::Incoming(Packet::PubAck(PubAck::new(id)));
        let session =
            |present| Event::Incoming(Packet::ConnAck(ConnAck::new(ConnectReturnCode::Success, present)));
        let take = |open: &mut Open, event: Event| open.take(&event).map(|(n, _)| n);
        open.waiting.extend((1..=5).map(|n| (n, Instant::now())));
        assert_eq!(take(&mut open, session(false)), None);
        for id in [1, 2, 3] {
            assert_eq!(take(&mut open, sent(id)), None);
        }
        assert_eq!(take(&mut open, acked(2)), Some(2));
        assert_eq!(take(&mut open, acked(2)), None, "twice");
        assert_eq!(take(&mut open, session(true)), None);
        assert_eq!(take(&mut open, sent(1)), None, "sent again");
        assert_eq!(take(&mut open, acked(1)), Some(1));
        assert_eq!(take(&mut open, sent(1)), None);
        assert_eq!(take(&mut open, acked(1)), Some(4));
        assert_eq!(take(&mut open, session(false)), None);
        assert!(open.sent.is_empty() && open.waiting.is_empty(), "given up");
    }
}
