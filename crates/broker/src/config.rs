//! Bounds on everything that a client can use, each with its reason.

use std::time::Duration;

/// A shard's bounds. The defaults are the edge's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest packet in bytes: 1 MiB, as EMQX's default; larger ones are refused with 0x95.
    pub packet_bytes: usize,
    /// Unacknowledged QoS 1 and 2 publishes of one client: 256, advertised as Receive Maximum (beyond it 0x93).
    pub receive_max: u16,
    /// The same for MQTT 3.x, which cannot be told a window: past it the connection is closed.
    pub waiting_max: usize,
    /// Time from the connection to a whole CONNECT: 10 s.
    pub connect_timeout: Duration,
    /// Longest keep alive; none: no bound. A longer one is answered with Server Keep Alive.
    pub keep_alive_max: Option<u16>,
    /// Longest life of a session after its connection, in seconds. `u32::MAX`: for ever.
    pub session_expiry_max_s: u32,
    /// Topic aliases that a client may set: 32.
    pub topic_alias_max: u16,
    /// Deliveries in flight to one client: 1,024, or the client's Receive Maximum if that is lower.
    pub inflight_max: u16,
    /// Messages that wait for one client.
    pub queue_messages: u64,
    /// Bytes of messages that wait in memory for one client without a persistent session. Past it the publishers of
    /// QoS 1 and 2 are not acknowledged until there is room again.
    pub pending_bytes: usize,
    /// Bytes of output that wait for one connection. Past it QoS 0 is dropped.
    pub output_bytes: usize,
    /// A client that takes none of its output for this long while others wait for it is disconnected (0x97).
    pub stalled: Duration,
    /// Subscriptions of one client.
    pub subscriptions: usize,
    /// Retained messages.
    pub retained_messages: usize,
    /// Bytes of retained messages.
    pub retained_bytes: usize,
    /// Connections of one shard. A node sets it to what its process may open.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            packet_bytes: 1 << 20,
            receive_max: 256,
            waiting_max: 1_024,
            connect_timeout: Duration::from_secs(10),
            keep_alive_max: None,
            session_expiry_max_s: u32::MAX,
            topic_alias_max: 32,
            inflight_max: 1_024,
            queue_messages: 100_000,
            pending_bytes: 4 << 20,
            output_bytes: 4 << 20,
            stalled: Duration::from_secs(30),
            subscriptions: 1_000,
            retained_messages: 100_000,
            retained_bytes: 64 << 20,
            connections: 18_000,
        }
    }
}
