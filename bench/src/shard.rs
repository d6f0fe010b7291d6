//! A shard of the broker without sockets, for [`crate::scale`]: all that this package knows of the broker's code.
//!
//! The transport is memory: what a client sends is handed to the shard, what the shard has for a client is shown to whoever asks and
//! then forgotten, as a worker forgets what it has written. Without rules unless it is given some, no store on a disk, everyone is let in. The clock is
//! the real one.

use std::net::Ipv4Addr;
use std::time::Instant;

use ferrule_broker::hook::{Everyone, Hook, NoHook};
use ferrule_broker::shard::Parts;
use ferrule_broker::{ConnId, Limits, Place, Shard};
use ferrule_outbox::Policy;
use ferrule_store::{MemoryStore, Now, Restored};

/// A client of a [`Driven`] shard.
pub(crate) type Client = ConnId;

/// A shard and who drives it.
pub(crate) struct Driven<H: Hook = NoHook> {
    shard: Shard<H, MemoryStore>,
    epoch: Instant,
    dirty: Vec<ConnId>,
}

impl Driven {
    /// An empty one that lets in so many clients.
    pub(crate) fn new(clients: usize) -> Self {
        Self::with(clients, |_| NoHook)
    }
}

impl<H: Hook> Driven<H> {
    /// The same with a hook.
    pub(crate) fn with(clients: usize, hook: impl FnOnce(Now) -> H) -> Self {
        let start = Now { mono_us: 1, wall_ms: 1 };
        // What is measured is what it costs, not where the node would draw the line.
        let limits = Limits {
            connections: clients,
            filter_bytes: usize::MAX,
            buffer_bytes: usize::MAX,
            ..Limits::default()
        };
        let (hook, store, gate) = (hook(start), MemoryStore::new(), Box::new(Everyone));
        let parts = Parts {
            hook,
            store,
            gate,
            limits,
            features: std::sync::Arc::default(),
            policy: Policy::EDGE,
            seed: 1,
            place: Place::ALONE,
        };
        let shard = Shard::new(parts, &Restored::default(), start);
        Self { shard, epoch: Instant::now(), dirty: Vec::new() }
    }

    fn now(&self) -> Now {
        let past = self.epoch.elapsed();
        Now { mono_us: past.as_micros() as u64 + 1, wall_ms: past.as_millis() as i64 + 1 }
    }

    /// Does something to the shard itself.
    pub(crate) fn direct(&mut self, work: impl FnOnce(&mut Shard<H, MemoryStore>, Now)) {
        let now = self.now();
        work(&mut self.shard, now);
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
