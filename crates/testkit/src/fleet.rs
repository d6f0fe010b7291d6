//! Devices: real sockets, QoS 1, a window, and the manners of common device libraries.
//!
//! Each device is a thread with one connection at a time. It publishes `{"device":"d07","n":123,...}` to
//! `factory/d07/data` with n ascending from 0, keeps at most a window of messages unacknowledged, reconnects with back-off when
//! the broker goes, and then first sends again, in their order and with DUP, all that was not acknowledged. What it did stands
//! in the [`Ledger`]: a message counts as sent before it is written, so one that was perhaps delivered is counted.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ferrule_mqtt::{AckType, QoS};

use crate::oracle::{Entry, Ledger};
use crate::wire::{Client, Options, Outgoing, ack};

/// Back-off between two tries to connect: doubled from the first to the last.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// How long a device blocks in one read before it looks at its clock again.
const TICK: Duration = Duration::from_millis(100);

/// What the devices do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How many devices; they are named d00, d01, ...
    pub devices: usize,
    /// What their names begin with instead of `d`: for a second fleet beside the first.
    pub prefix: &'static str,
    /// Messages of each.
    pub messages: u32,
    /// Unacknowledged messages of a device, at most.
    pub window: usize,
    /// Messages a second of each device; None: as fast as acknowledgements come.
    pub per_second: Option<f64>,
    /// With a pace: whether the devices' messages are spread over time; else all devices send at the same moments.
    pub spread: bool,
    /// Sends each unacknowledged message again on the same connection whenever this has passed since it was last sent.
    pub resend_after: Option<Duration>,
    /// Bytes of padding in each message.
    pub pad: usize,
    /// Connects by MQTT 5 instead of 3.1.1.
    pub v5: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            devices: 20,
            prefix: "d",
            messages: 500,
            window: 16,
            per_second: None,
            spread: false,
            resend_after: None,
            pad: 40,
            v5: false,
        }
    }
}

#[derive(Debug)]
struct Shared {
    plan: Plan,
    addr: SocketAddr,
    stop: AtomicBool,
    acknowledged: AtomicU64,
    connects: AtomicU64,
    refused: AtomicU64,
    slowest_us: AtomicU64,
}

/// Running devices. Stopped when dropped.
#[derive(Debug)]
pub struct Fleet {
    shared: Arc<Shared>,
    devices: Vec<Running>,
}

#[derive(Debug)]
struct Running {
    name: String,
    entries: Arc<Mutex<Vec<Entry>>>,
    thread: Option<JoinHandle<()>>,
}

impl Fleet {
    /// Starts the devices.
    #[must_use]
    pub fn start(addr: SocketAddr, plan: Plan) -> Self {
        let shared = Arc::new(Shared {
            plan,
            addr,
            stop: AtomicBool::new(false),
            acknowledged: AtomicU64::new(0),
            connects: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            slowest_us: AtomicU64::new(0),
        });
        let started = Instant::now();
        let plan = &shared.plan;
        let period = plan.per_second.filter(|_| plan.spread).map_or(0.0, |rate| 1.0 / rate);
        let offset = |number: usize| Duration::from_secs_f64(period * number as f64 / plan.devices as f64);
        let devices = (0..plan.devices)
            .map(|number| {
                let name = format!("{}{number:02}", shared.plan.prefix);
                let entries = Arc::new(Mutex::new(vec![Entry::default(); shared.plan.messages as usize]));
                let device = Device {
                    name: name.clone(),
                    shared: Arc::clone(&shared),
                    entries: Arc::clone(&entries),
                    open: VecDeque::new(),
                    next: 0,
                    started: started + offset(number),
                };
                Running { name, entries, thread: Some(std::thread::spawn(move || device.run())) }
            })
            .collect();
        Self { shared, devices }
    }

    /// Messages acknowledged so far.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// Connections made so far: above the number of devices by the reconnects.
    #[must_use]
    pub fn connects(&self) -> u64 {
        self.shared.connects.load(Ordering::Relaxed)
    }

    /// Messages refused by a reason code (MQTT 5): such a delivery has ended and is not sent again.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::Relaxed)
    }

    /// The longest that an acknowledged message waited since it was last sent, of those acknowledged since this was last asked: a bound on what a row can have
    /// waited, whatever the machine did meanwhile.
    #[must_use]
    pub fn take_slowest(&self) -> Duration {
        Duration::from_micros(self.shared.slowest_us.swap(0, Ordering::Relaxed))
    }

    /// All messages of the plan.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.shared.plan.devices as u64 * u64::from(self.shared.plan.messages)
    }

    /// Waits until so many messages are acknowledged, so that a fault comes mid-stream whatever the machine's speed.
    ///
    /// # Panics
    /// When they are not within `limit`.
    pub fn wait_acknowledged(&self, count: u64, limit: Duration) {
        let deadline = Instant::now() + limit;
        while self.acknowledged() < count {
            let so_far = self.acknowledged();
            assert!(Instant::now() < deadline, "{so_far} of {count} messages acknowledged within {limit:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until every message is acknowledged, ends the devices and returns what they did.
    ///
    /// # Panics
    /// When they are not within `limit`.
    #[must_use]
    pub fn finish(mut self, limit: Duration) -> Ledger {
        self.wait_acknowledged(self.total() - self.refused(), limit);
        self.stop_devices();
        self.ledger()
    }

    /// Ends the devices where they are and returns what they did.
    #[must_use]
    pub fn stop(mut self) -> Ledger {
        self.stop_devices();
        self.ledger()
    }

    /// What the devices have done so far.
    #[must_use]
    pub fn ledger(&self) -> Ledger {
        let devices: HashMap<_, _> =
            self.devices.iter().map(|device| (device.name.clone(), lock(&device.entries).clone())).collect();
        Ledger { devices }
    }

    fn stop_devices(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for device in &mut self.devices {
            if let Some(thread) = device.thread.take()
                && thread.join().is_err()
                && !std::thread::panicking()
            {
                panic!("device {} panicked", device.name);
            }
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.stop_devices();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A message that was sent and is not acknowledged.
struct Flight {
    n: u32,
    packet_id: u16,
    sent_at: Instant,
}

struct Device {
    name: String,
    shared: Arc<Shared>,
    entries: Arc<Mutex<Vec<Entry>>>,
    /// Ascending in n.
    open: VecDeque<Flight>,
    next: u32,
    started: Instant,
}

impl Device {
    fn run(mut self) {
        let mut backoff = BACKOFF.0;
        while !self.done() {
            // An error is a broker that has gone, or one that is not there yet: that is what the back-off is for.
            let before = self.shared.acknowledged.load(Ordering::Relaxed);
            let _ = self.connection();
            if self.shared.acknowledged.load(Ordering::Relaxed) > before {
                backoff = BACKOFF.0;
            }
            if !self.done() {
                std::thread::sleep(backoff);
                backoff = (backoff * 2).min(BACKOFF.1);
            }
        }
    }

    fn done(&self) -> bool {
        self.shared.stop.load(Ordering::Relaxed)
            || (self.open.is_empty() && self.next == self.shared.plan.messages)
    }

    /// One connection, until all is acknowledged or it breaks.
    fn connection(&mut self) -> io::Result<()> {
        let options = if self.shared.plan.v5 { Options::v5(&self.name) } else { Options::v4(&self.name) };
        let (mut client, _) = Client::try_connect(self.shared.addr, &options)?;
        self.shared.connects.fetch_add(1, Ordering::Relaxed);
        for at in 0..self.open.len() {
            self.send(&mut client, at, true)?;
        }
        while !self.done() {
            while self.open.len() < self.shared.plan.window
                && self.next < self.shared.plan.messages
                && self.due().is_zero()
            {
                let packet_id = u16::try_from(self.next % 0xFFFF).expect("below 65535") + 1;
                self.open.push_back(Flight { n: self.next, packet_id, sent_at: Instant::now() });
                self.next += 1;
                self.send(&mut client, self.open.len() - 1, false)?;
            }
            let mut wait = TICK.min(self.due().max(Duration::from_millis(1)));
            if let Some(after) = self.shared.plan.resend_after {
                for at in 0..self.open.len() {
                    if self.open[at].sent_at.elapsed() >= after {
                        self.send(&mut client, at, true)?;
                    }
                }
                wait = wait.min(after);
            }
            if self.open.len() >= self.shared.plan.window || self.next == self.shared.plan.messages {
                wait = TICK;
            }
            match client.recv(wait) {
                Ok(frame) => {
                    if let Some((AckType::Puback, ack)) = ack(&frame.packet()) {
                        self.acknowledged(ack.packet_id, ack.reason.0 < 0x80);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
                Err(error) => return Err(error),
            }
        }
        client.disconnect();
        Ok(())
    }

    /// How long until the next message is due.
    fn due(&self) -> Duration {
        self.shared.plan.per_second.map_or(Duration::ZERO, |rate| {
            let at = self.started + Duration::from_secs_f64(f64::from(self.next) / rate);
            at.saturating_duration_since(Instant::now())
        })
    }

    fn send(&mut self, client: &mut Client, at: usize, dup: bool) -> io::Result<()> {
        let flight = &mut self.open[at];
        lock(&self.entries)[flight.n as usize].sent += 1;
        flight.sent_at = Instant::now();
        let payload = format!(
            "{{\"device\":\"{}\",\"n\":{},\"pad\":\"{}\"}}",
            self.name,
            flight.n,
            "x".repeat(self.shared.plan.pad)
        );
        client.send_publish(Outgoing {
            topic: &format!("factory/{}/data", self.name),
            payload: payload.as_bytes(),
            qos: QoS::AtLeastOnce,
            retain: false,
            dup,
            packet_id: flight.packet_id,
        })
    }

    /// A PUBACK; one that comes again for a message that was sent again finds nothing any more.
    fn acknowledged(&mut self, packet_id: u16, success: bool) {
        let Some(at) = self.open.iter().position(|flight| flight.packet_id == packet_id) else { return };
        let flight = self.open.remove(at).expect("found at this place");
        let took_us = u64::try_from(flight.sent_at.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.shared.slowest_us.fetch_max(took_us, Ordering::Relaxed);
        if success {
            lock(&self.entries)[flight.n as usize].acknowledged = true;
            self.shared.acknowledged.fetch_add(1, Ordering::Relaxed);
        } else {
            self.shared.refused.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::servers::Mosquitto;

    #[test]
    fn every_message_is_acknowledged_once_by_a_broker_that_stays() {
        let mosquitto = Mosquitto::start();
        let plan = Plan { devices: 3, messages: 200, window: 8, ..Plan::default() };
        let mut reader = Client::connect(mosquitto.addr(), &Options::v4("reader"));
        assert_eq!(reader.subscribe("factory/#", QoS::AtLeastOnce), 1);
        let ledger = Fleet::start(mosquitto.addr(), plan).finish(Duration::from_secs(30));
        assert_eq!((ledger.published(), ledger.acknowledged(), ledger.sent()), (600, 600, 600));
        let read: Vec<(String, u64)> = (0..600)
            .map(|_| {
                let message = reader.expect_message();
                let value: serde_json::Value =
                    serde_json::from_str(message.text()).expect("a device sends JSON");
                (value["device"].as_str().expect("a name").to_owned(), value["n"].as_u64().expect("a number"))
            })
            .collect();
        let rows = read.iter().map(|(device, n)| (device.as_str(), *n));
        ledger.check(rows, crate::oracle::Copies::One).assert_ok("mosquitto");
    }

    #[test]
    fn devices_come_back_after_a_kill_and_send_again() {
        let mut mosquitto = Mosquitto::start();
        let plan = Plan {
            devices: 2,
            messages: 400,
            window: 4,
            per_second: Some(400.0),
            v5: true,
            ..Plan::default()
        };
        let fleet = Fleet::start(mosquitto.addr(), plan);
        fleet.wait_acknowledged(100, Duration::from_secs(30));
        mosquitto.kill9();
        mosquitto.restart();
        let connects = fleet.connects();
        let ledger = fleet.finish(Duration::from_secs(30));
        assert_eq!(ledger.acknowledged(), 800);
        assert!(connects >= 2 && ledger.sent() >= ledger.published());
    }

    #[test]
    fn an_unanswered_message_is_sent_again() {
        // A broker that stands still: what was sent before is sent again once a tick has passed.
        let mut mosquitto = Mosquitto::start();
        let plan = Plan {
            devices: 1,
            messages: 2000,
            window: 4,
            per_second: Some(500.0),
            resend_after: Some(Duration::from_millis(200)),
            ..Plan::default()
        };
        let fleet = Fleet::start(mosquitto.addr(), plan);
        fleet.wait_acknowledged(10, Duration::from_secs(30));
        mosquitto.pause();
        crate::until(Duration::from_secs(30), "messages are sent again", || {
            let ledger = fleet.ledger();
            (ledger.sent() >= ledger.published() + 4).then_some(())
        });
        mosquitto.resume();
        let connects = fleet.connects();
        assert_eq!(fleet.finish(Duration::from_secs(30)).acknowledged(), 2000);
        assert_eq!(connects, 1);
    }
}
