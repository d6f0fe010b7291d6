//! Many clients whose sessions live on, each with a topic of its own: made, sent away, back again, and reached.
//!
//! A client is known by its number: client id `PREFIX-N`, subscription to the topic `PREFIX/N` with QoS 1. Threads share the numbers between them and do one step after
//! the other for each of theirs; so a hundred thousand need no more threads than some hundred, and those that stay connected one file each.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ferrule_mqtt::{Packet, QoS, ReasonCode};

use crate::wire::{Client, Options, Outgoing};

/// Threads at work.
const THREADS: usize = 100;
/// Unacknowledged publishes of a client.
const WINDOW: usize = 100;

/// So many clients.
#[derive(Debug, Clone)]
pub struct Sessions {
    /// What their ids and topics begin with.
    pub prefix: String,
    /// How many.
    pub count: usize,
}

impl Sessions {
    fn options(&self, n: usize) -> Options {
        Options::v5(&format!("{}-{n}", self.prefix)).persistent()
    }

    fn topic(&self, n: usize) -> String {
        format!("{}/{n}", self.prefix)
    }

    /// Does something for each number, in order within each thread; what it made.
    fn each<T: Send>(&self, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
        let threads = THREADS.min(self.count);
        std::thread::scope(|scope| {
            let work = &work;
            let parts = (0..threads).map(|first| {
                scope.spawn(move || (first..self.count).step_by(threads).map(work).collect::<Vec<_>>())
            });
            let parts: Vec<_> = parts.collect();
            parts.into_iter().flat_map(|part| part.join().expect("a client's thread")).collect()
        })
    }

    /// Makes them at this node; those that are connected.
    ///
    /// # Panics
    /// When one is not let in.
    #[must_use]
    pub fn connected(&self, addr: SocketAddr) -> Vec<Client> {
        self.each(|n| self.make(addr, n))
    }

    /// Makes them at this node, and has each leave.
    ///
    /// # Panics
    /// When one is not let in.
    pub fn offline(&self, addr: SocketAddr) {
        self.each(|n| self.make(addr, n).disconnect());
    }

    fn make(&self, addr: SocketAddr, n: usize) -> Client {
        let mut client = Client::connect(addr, &self.options(n));
        assert!(client.subscribe(&self.topic(n), QoS::AtLeastOnce) < 0x80, "{n}: its filter was refused");
        client
    }

    /// All connect, to the nodes in turn, each until it is let in; those whose session was not there, and how long it took.
    ///
    /// # Panics
    /// When one is not let in within `limit`.
    #[must_use]
    pub fn come_back(&self, addrs: &[SocketAddr], limit: Duration) -> (u64, Duration, Vec<Client>) {
        let begun = Instant::now();
        let forgotten = AtomicU64::new(0);
        let clients = self.each(|n| {
            loop {
                let found = Client::try_connect(addrs[n % addrs.len()], &self.options(n));
                if let Ok((client, connack)) = found {
                    let (reason, is_present) = connack.connack();
                    if reason == ReasonCode::SUCCESS {
                        forgotten.fetch_add(u64::from(!is_present), Ordering::Relaxed);
                        return client;
                    }
                }
                assert!(begun.elapsed() < limit, "{} {n} is not let in within {limit:?}", self.prefix);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        (forgotten.into_inner(), begun.elapsed(), clients)
    }

    /// A message to each, by way of these nodes, each until it is acknowledged; those to whom nobody passed it on (a PUBACK that says so), and how long it took.
    ///
    /// # Panics
    /// When one is not acknowledged within `limit`.
    #[must_use]
    pub fn reach(&self, addrs: &[SocketAddr], limit: Duration) -> (u64, Duration) {
        let begun = Instant::now();
        let publishers = 10.min(self.count);
        let unmatched = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for publisher in 0..publishers {
                let (addr, unmatched) = (addrs[publisher % addrs.len()], &unmatched);
                scope.spawn(move || {
                    let mut due: Vec<usize> = (publisher..self.count).step_by(publishers).rev().collect();
                    while !due.is_empty() {
                        assert!(
                            begun.elapsed() < limit,
                            "{} messages are not acknowledged within {limit:?}",
                            due.len()
                        );
                        let name = format!("{}-publisher-{publisher}", self.prefix);
                        if self.publish_to(addr, &name, &mut due, unmatched).is_err() {
                            std::thread::sleep(Duration::from_millis(20));
                        }
                    }
                });
            }
        });
        (unmatched.into_inner(), begun.elapsed())
    }

    /// Publishes to all that are due on one connection; those are left that were not acknowledged.
    fn publish_to(
        &self,
        addr: SocketAddr,
        name: &str,
        due: &mut Vec<usize>,
        unmatched: &AtomicU64,
    ) -> io::Result<()> {
        let (mut client, connack) = Client::try_connect(addr, &Options::v5(name))?;
        if connack.connack().0 != ReasonCode::SUCCESS {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        // By packet identifier, in the order of sending.
        let mut out: Vec<(u16, usize)> = Vec::new();
        let result = loop {
            while out.len() < WINDOW
                && let Some(n) = due.pop()
            {
                let packet_id = client.next_id();
                out.push((packet_id, n));
                let (topic, qos) = (self.topic(n), QoS::AtLeastOnce);
                let message = Outgoing {
                    topic: &topic,
                    payload: b"reached",
                    qos,
                    retain: false,
                    dup: false,
                    packet_id,
                };
                if client.send_publish(message).is_err() {
                    break; // the next read says why
                }
            }
            if out.is_empty() {
                break Ok(());
            }
            let frame = match client.recv(crate::wire::PATIENCE) {
                Ok(frame) => frame,
                Err(error) => break Err(error),
            };
            match frame.packet() {
                Packet::Puback(ack) if ack.reason.0 < 0x80 => {
                    out.retain(|(packet_id, _)| *packet_id != ack.packet_id);
                    unmatched.fetch_add(u64::from(ack.reason != ReasonCode::SUCCESS), Ordering::Relaxed);
                }
                _ => break Err(io::ErrorKind::ConnectionAborted.into()),
            }
        };
        due.extend(out.into_iter().map(|(_, n)| n));
        result
    }
}
