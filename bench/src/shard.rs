//! A shard of the broker without sockets, for [`crate::scale`]: all that this package knows of the broker's code.
//!
//! The transport is memory: what a client sends is handed to the shard, what the shard has for a client is shown to whoever asks and
//! then forgotten, as a worker forgets what it has written. No rules, no store on a disk, everyone is let in. The clock is
//! the real one.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ferrule_broker::hook::Everything;
use ferrule_broker::shard::Parts;
use ferrule_broker::{
    ConnId, ConnectRequest, Ends, Gate, Grant, Hook, Limits, LocalPublish, Message, Place, Refusal, Role,
    Shard,
};
use ferrule_mqtt::PropertiesBuf;
use ferrule_outbox::{End, Outcome, Policy};
use ferrule_store::{MemoryStore, Now, Op, QueueId, Restored, StoredRow, Ticket};

/// A client of a [`Driven`] shard.
pub(crate) type Client = ConnId;

/// A shard and who drives it.
pub(crate) struct Driven {
    shard: Shard<NoHook, MemoryStore>,
    epoch: Instant,
    dirty: Vec<ConnId>,
}

impl Driven {
    /// An empty one that lets in so many clients.
    pub(crate) fn new(clients: usize) -> Self {
        let limits = Limits { connections: clients, ..Limits::default() };
        let (hook, store, gate) = (NoHook, MemoryStore::new(), Box::new(Open));
        let parts = Parts { hook, store, gate, limits, policy: Policy::EDGE, seed: 1, place: Place::ALONE };
        let shard = Shard::new(parts, &Restored::default(), Now { mono_us: 1, wall_ms: 1 });
        Self { shard, epoch: Instant::now(), dirty: Vec::new() }
    }

    fn now(&self) -> Now {
        let past = self.epoch.elapsed();
        Now { mono_us: past.as_micros() as u64 + 1, wall_ms: past.as_millis() as i64 + 1 }
    }

    /// A connection; none when there are too many.
    pub(crate) fn open(&mut self) -> Option<Client> {
        let now = self.now();
        self.shard.open(Ipv4Addr::LOCALHOST.into(), 0, now)
    }

    /// Hands over whole packets; whether the shard took them all.
    pub(crate) fn receive(&mut self, client: Client, packets: &[u8]) -> bool {
        let now = self.now();
        self.shard.receive(client, packets, now) == packets.len()
    }

    /// Ends a turn and shows the output of each client that has some.
    pub(crate) fn turn(&mut self, mut show: impl FnMut(Client, &[u8])) {
        let now = self.now();
        self.shard.end_turn(now);
        let mut dirty = std::mem::take(&mut self.dirty);
        self.shard.take_dirty(&mut dirty);
        for client in dirty.drain(..) {
            if let Some(out) = self.shard.output(client) {
                show(client, out);
                out.clear();
                self.shard.wrote(client, now);
            }
        }
        self.dirty = dirty;
    }
}

struct NoHook;

impl Hook for NoHook {
    fn publish(&mut self, _: &Message<'_>, _: &[u32], _: &mut Ends<'_>, _: Now) {}
    fn take_local(&mut self) -> Vec<LocalPublish> {
        Vec::new()
    }
    fn due(&self, _: Now, _: bool, _: Duration) -> bool {
        false
    }
    fn next_due_us(&self, _: bool, _: Duration) -> Option<u64> {
        None
    }
    fn write(&mut self, _: Now, _: &mut Vec<Op>) {}
    fn submitted(&mut self, _: Ticket) {}
    fn committed(&mut self, _: Ticket, _: &mut Vec<(End, Outcome)>) {}
    fn rows(&mut self, _: QueueId, _: Vec<StoredRow>, _: Now) {}
    fn turn(&mut self, _: Now, _: &mut Vec<(End, Outcome)>, _: &mut Vec<(QueueId, u64)>) {}
}

struct Open;

impl Gate for Open {
    fn admit(&mut self, _: ConnId, _: &ConnectRequest<'_>) -> Option<Result<Grant, Refusal>> {
        Some(Ok(Grant {
            role: Role::Device,
            username: None,
            access: Arc::new(Everything),
            properties: PropertiesBuf::new(),
            life: None,
        }))
    }
}
