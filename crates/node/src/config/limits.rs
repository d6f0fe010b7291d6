//! Bounds on what clients may use: which there are, their defaults, why, what a client sees and where it is counted.
//!
//! # Design
//! [`LIMITS`] is the one list: docs/limits.md is made from it, and from the defaults that the readers here hand out; tests compare
//! it with the keys that they ask for and with the counters of a node's status. What one client may use stands
//! in `[mqtt]` for all listeners and in `[listener.limits]` for one; both are read by [`read_client`].

use super::Product;
use super::reader::{Reader, Section, Size};
use super::resolve::{int, seconds};
use super::units::{show_duration, show_size};
use ferrule_broker::ClientLimits;
use ferrule_net::EntranceLimits;
use std::ops::RangeInclusive;
use std::time::Duration;

/// `[mqtt]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MqttLimits {
    /// What one client may use, unless its listener says otherwise.
    pub clients: ClientLimits,
    /// Sessions that outlive their connection.
    pub max_sessions: u64,
    /// Bytes of all subscriptions.
    pub subscriptions_max_bytes: u64,
    /// Bytes that all clients have waiting in memory. Zero: half of the machine's.
    pub max_buffered_bytes: u64,
    /// Topics that hold a retained message.
    pub retained_max_messages: u64,
    /// Bytes of all retained messages.
    pub retained_max_bytes: u64,
    /// Messages that are published later.
    pub delayed_max_messages: u64,
    /// Bytes of them.
    pub delayed_max_bytes: u64,
}

/// Where a limit is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// In `[mqtt]`, or for one listener in `[listener.limits]`.
    Client,
    /// In `[listener.limits]` alone.
    Listener,
    /// In `[mqtt]` alone.
    Node,
    /// In `[edge]` or `[node]`.
    Process,
}

/// One limit.
#[derive(Debug, Clone, Copy)]
pub struct Limit {
    /// As it is written.
    pub key: &'static str,
    /// Where.
    pub scope: Scope,
    /// What it bounds.
    pub bounds: &'static str,
    /// Why its default is what it is.
    pub reason: &'static str,
    /// What a client sees that meets it.
    pub answer: &'static str,
    /// Where it is counted, in `counters` of the status; a listener's, with the listener.
    pub counter: &'static str,
}

const fn limit(
    scope: Scope,
    key: &'static str,
    bounds: &'static str,
    reason: &'static str,
    answer: &'static str,
    counter: &'static str,
) -> Limit {
    Limit { key, scope, bounds, reason, answer, counter }
}

/// All limits, in the order of the documentation.
pub const LIMITS: &[Limit] = {
    use Scope::{Client, Listener, Node, Process};
    &[
        limit(
            Client,
            "connect_timeout",
            "from the connection to a whole CONNECT: TLS, upgrade and CONNECT together",
            "a lost packet is sent again after 1, 3 and 7 s",
            "closed; CONNACK 0x89 (3.x: 3) when only the verdict is late",
            "connect_timeouts",
        ),
        limit(
            Client,
            "max_connect_size",
            "a CONNECT, will included",
            "a long password and a will fit, and nobody has been let in yet",
            "CONNACK 0x95; 3.x: closed",
            "oversized",
        ),
        limit(
            Client,
            "packet_timeout",
            "for a packet that has begun to be whole, or to grow by 4 KiB; one and a half keep alives if that is less",
            "70 bytes a second are enough: 2G gets the largest packet through, a byte now and then does not hold one",
            "DISCONNECT 0x8D; 3.x: closed",
            "packet_timeouts",
        ),
        limit(
            Client,
            "max_packet_size",
            "a packet",
            "as EMQX: a camera frame fits",
            "told in CONNACK; DISCONNECT 0x95; 3.x: closed",
            "oversized",
        ),
        limit(
            Client,
            "keep_alive_max",
            "keep alive; `0s`: no bound",
            "3.1.1 cannot be told another one and would be cut off while it keeps its own promise",
            "Server Keep Alive in CONNACK; 3.x keeps its own. Silence of one and a half: DISCONNECT 0x8D; 3.x: closed",
            "keep_alive_timeouts",
        ),
        limit(
            Client,
            "session_expiry_max",
            "a session's life after its connection; `0s`: no bound",
            "longer than a device is away on purpose, and a lost one's queue is given back in the end",
            "Session Expiry Interval in CONNACK; 3.x: nothing",
            "",
        ),
        limit(
            Client,
            "max_topic_levels",
            "levels of a topic name or filter, at most 128",
            "real trees have fewer than 20; each level is a node of an index",
            "PUBACK, PUBREC, CONNACK 0x90, SUBACK 0x8F; 3.x: closed, SUBACK 0x80; QoS 0: dropped",
            "topics_refused",
        ),
        limit(
            Client,
            "max_topic_length",
            "bytes of a topic name or filter, at most 65,535",
            "longer than people write; a client's subscriptions are then a megabyte at most",
            "the same",
            "topics_refused",
        ),
        limit(
            Client,
            "topic_alias_max",
            "topic aliases that a client sets, and that we set for it as far as it takes them",
            "more than a sensor has topics; each costs its topic as long as the client stays",
            "told in CONNACK; DISCONNECT 0x94",
            "protocol_errors",
        ),
        limit(
            Client,
            "max_subscriptions",
            "subscriptions of a client",
            "a dashboard has some hundred",
            "SUBACK 0x97; 3.x: 0x80",
            "subscriptions_refused",
        ),
        limit(
            Client,
            "receive_max",
            "QoS 1 and 2 publishes of a client that wait for their acknowledgement",
            "at 800 ms a wait still 320 a second while the uplink is down",
            "told in CONNACK; DISCONNECT 0x93",
            "window_exceeded",
        ),
        limit(
            Client,
            "max_waiting",
            "the same for 3.1 and 3.1.1, who cannot be told",
            "common libraries send 20 to 100 ahead; those without any bound are stopped",
            "closed",
            "window_exceeded",
        ),
        limit(
            Client,
            "max_publish_rate",
            "publishes, subscribes and unsubscribes of a client a second; `0`: no bound. A second's worth may come at once",
            "what is right depends on the devices",
            "it is not read until it may send again: nothing is lost, and its keep alive does not run meanwhile",
            "throttled",
        ),
        limit(
            Client,
            "max_publish_bytes",
            "bytes of them a second; `0B`: no bound",
            "what is right depends on the devices",
            "the same",
            "throttled",
        ),
        limit(
            Client,
            "max_inflight",
            "deliveries that a client has not acknowledged; its own Receive Maximum may lower it",
            "10,000 messages a second over 100 ms",
            "the next ones wait",
            "",
        ),
        limit(
            Client,
            "max_queued_messages",
            "messages that wait for a session",
            "a day of one a second",
            "what comes then is not delivered to it; its publisher is acknowledged",
            "dropped_full",
        ),
        limit(
            Client,
            "max_stored_bytes",
            "bytes that wait for a session that outlives its connection, on disk and on the way there",
            "edge: 16 absent devices with full queues are 1 GiB; all `max_queued_messages` of 600 bytes",
            "the same",
            "dropped_full_bytes",
        ),
        limit(
            Client,
            "max_queued_bytes",
            "bytes that wait in memory for a client without such a session",
            "four of the largest packets",
            "publishers of QoS 1 and 2 are not acknowledged until it has room again",
            "held_back",
        ),
        limit(
            Client,
            "max_output_bytes",
            "output that waits for a connection",
            "four of the largest packets: a second of 30 Mbit/s",
            "QoS 0 is dropped, QoS 1 and 2 waits; with twice as much it is not read",
            "dropped_slow",
        ),
        limit(
            Client,
            "stall_timeout",
            "for a client that is more than half of `max_output_bytes` behind, or at `max_queued_bytes`, to take 1/256 of that",
            "a lost packet is sent again within it; 16 KiB in 30 s: who takes less needs two hours for what waits",
            "DISCONNECT 0x97; 3.x: closed, and so who reads nothing at all",
            "slow_closed",
        ),
        limit(
            Listener,
            "max_connections",
            "connections to a listener; `0`: as many as the process may open files, less 256",
            "the system's bound is one that its administrator has set",
            "CONNACK 0x97 (3.x: 3), 64 at a time; more are closed at once",
            "refused_full",
        ),
        limit(
            Listener,
            "max_connect_rate",
            "connections accepted by a listener a second; `0`: no bound",
            "handshakes and passwords have budgets of their own",
            "it waits in the listen queue",
            "delayed",
        ),
        limit(
            Listener,
            "max_connections_per_address",
            "connections to a listener from one address; `0`: no bound",
            "hundreds of devices may be behind one address",
            "CONNACK 0x97 (3.x: 3), 4 at a time; more are closed at once",
            "refused_address",
        ),
        limit(
            Node,
            "max_sessions",
            "sessions that outlive their connection; each worker has its share. Those that are there at a start stay",
            "each costs 1 KiB, and up to 192 KiB of its queue in memory",
            "CONNACK 0x97; 3.x: 3",
            "sessions_refused",
        ),
        limit(
            Node,
            "subscriptions_max_bytes",
            "all subscriptions, 200 bytes and its text each; each worker has its share",
            "edge: 250,000 of an ordinary length",
            "SUBACK 0x97; 3.x: 0x80",
            "subscriptions_refused",
        ),
        limit(
            Node,
            "max_buffered_bytes",
            "output, messages and half-received packets of all clients, in memory; `0B`: half of the machine's. Each worker has its share",
            "the other half is for all else",
            "a client may have as much as is free, and 4 KiB in any case: those that have most are the first whose QoS 0 is dropped, whose QoS 1 and 2 waits, or whose half packet ends with DISCONNECT 0x97",
            "dropped_pool, pool_closed",
        ),
        limit(
            Node,
            "retained_max_messages",
            "topics with a retained message",
            "a topic that is new each time must not fill the disk",
            "PUBACK, PUBREC 0x97, and it goes nowhere; 3.x and QoS 0: delivered and not kept",
            "retained_refused",
        ),
        limit(
            Node,
            "retained_max_bytes",
            "bytes of them",
            "they are in memory as well, in each worker's",
            "the same",
            "retained_refused",
        ),
        limit(
            Node,
            "delayed_max_messages",
            "messages that are published later (`$delayed/...`); each worker has its share",
            "as many as there may be retained ones",
            "PUBACK, PUBREC 0x97, and it goes nowhere; 3.x: closed; QoS 0: dropped",
            "delayed_refused",
        ),
        limit(
            Node,
            "delayed_max_bytes",
            "bytes of them",
            "they are in memory as well, until then",
            "the same",
            "delayed_refused",
        ),
        limit(
            Process,
            "memory_max",
            "memory of the process; `0B`: three quarters of the machine's",
            "what is left is the system's: page cache, socket buffers",
            "CONNACK 0x97 (3.x: 3) for new ones; those that are there get 4 KiB ahead, QoS 0 beyond it is dropped",
            "overload_refused, dropped_pool",
        ),
    ]
};

impl MqttLimits {
    /// `ferrule-edge`'s defaults.
    #[must_use]
    pub fn edge() -> Self {
        Self {
            clients: ClientLimits::default(),
            max_sessions: 10_000,
            subscriptions_max_bytes: 64 << 20,
            max_buffered_bytes: 0,
            retained_max_messages: 100_000,
            retained_max_bytes: 64 << 20,
            delayed_max_messages: 100_000,
            delayed_max_bytes: 64 << 20,
        }
    }

    /// `ferrule-cloud`'s defaults.
    #[must_use]
    pub fn cloud() -> Self {
        Self {
            clients: ClientLimits { queue_bytes: 256 << 20, ..ClientLimits::default() },
            max_sessions: 1_000_000,
            subscriptions_max_bytes: 1 << 30,
            ..Self::edge()
        }
    }
}

/// `[mqtt]`.
pub(super) fn read_mqtt(product: Product, mut s: Section<'_>, r: &mut Reader<'_>) -> MqttLimits {
    let d = match product {
        Product::Edge => MqttLimits::edge(),
        Product::Cloud => MqttLimits::cloud(),
    };
    let limits = MqttLimits {
        clients: read_client(&mut s, r, &d.clients),
        max_sessions: s.number(r, "max_sessions", d.max_sessions, 0..=COUNT_MAX),
        subscriptions_max_bytes: size(
            &mut s,
            r,
            "subscriptions_max_bytes",
            d.subscriptions_max_bytes,
            0..=BYTES_MAX,
        ),
        max_buffered_bytes: size(&mut s, r, "max_buffered_bytes", d.max_buffered_bytes, 0..=BYTES_MAX),
        retained_max_messages: s.number(r, "retained_max_messages", d.retained_max_messages, 0..=COUNT_MAX),
        retained_max_bytes: size(&mut s, r, "retained_max_bytes", d.retained_max_bytes, 0..=BYTES_MAX),
        delayed_max_messages: s.number(r, "delayed_max_messages", d.delayed_max_messages, 0..=COUNT_MAX),
        delayed_max_bytes: size(&mut s, r, "delayed_max_bytes", d.delayed_max_bytes, 0..=BYTES_MAX),
    };
    let least = u64::from(MEGABYTE).max(2 * limits.clients.packet_bytes as u64);
    if limits.max_buffered_bytes != 0 && limits.max_buffered_bytes < least {
        let (found, least) = (show_size(limits.max_buffered_bytes), show_size(least));
        let message = format!(
            "`max_buffered_bytes` is {found}: all clients together need {least}, two of `max_packet_size` and 1MiB"
        );
        s.fail(r, "max_buffered_bytes", message, None);
    }
    s.end(
        r,
        &[
            ("max_connections", ITS_LISTENERS),
            ("max_connect_rate", ITS_LISTENERS),
            ("max_connections_per_address", ITS_LISTENERS),
            ("memory_max", "it is the process's: write it in [edge] or [node]"),
        ],
    );
    limits
}

const ITS_LISTENERS: &str = "it is a listener's: below its [[listener]], write it in [listener.limits]";

/// `[listener.limits]` of a listener, where `mqtt` is what `[mqtt]` says.
pub(super) fn read_limits(
    listener: &mut Section<'_>,
    mqtt: &ClientLimits,
    r: &mut Reader<'_>,
) -> (ClientLimits, EntranceLimits) {
    let mut s = listener.section(r, "limits");
    if !s.is_present() {
        return (*mqtt, EntranceLimits::default());
    }
    let limits = (read_client(&mut s, r, mqtt), read_listener(&mut s, r));
    let all = "it is for all listeners together: write it in [mqtt]";
    let advice: Vec<(&str, &str)> =
        LIMITS.iter().filter(|l| l.scope == Scope::Node).map(|l| (l.key, all)).collect();
    s.end(r, &advice);
    limits
}

fn read_listener(s: &mut Section<'_>, r: &mut Reader<'_>) -> EntranceLimits {
    let d = EntranceLimits::default();
    let mut count =
        |s: &mut Section<'_>, key, default: usize| s.number(r, key, default as u64, 0..=COUNT_MAX) as usize;
    let connections = count(s, "max_connections", d.connections);
    let connections_per_address = count(s, "max_connections_per_address", d.connections_per_address);
    let connect_rate = int(s, r, "max_connect_rate", d.connect_rate, 0..=1_000_000);
    EntranceLimits { connections, connect_rate, connections_per_address }
}

/// What one client may use; what is not written is as `d` says.
pub(super) fn read_client(s: &mut Section<'_>, r: &mut Reader<'_>, d: &ClientLimits) -> ClientLimits {
    let keep_alive_max = Duration::from_secs(d.keep_alive_max.unwrap_or(0).into());
    let session_expiry_max = match d.session_expiry_max_s {
        u32::MAX => Duration::ZERO,
        seconds => Duration::from_secs(seconds.into()),
    };
    let limits = ClientLimits {
        connect_timeout: time(s, r, "connect_timeout", d.connect_timeout),
        connect_bytes: bytes(s, r, "max_connect_size", d.connect_bytes, PACKET_BYTES),
        packet_timeout: time(s, r, "packet_timeout", d.packet_timeout),
        packet_bytes: bytes(s, r, "max_packet_size", d.packet_bytes, PACKET_BYTES),
        keep_alive_max: match seconds(s, r, "keep_alive_max", keep_alive_max, 0..=65_535).as_secs() {
            0 => None,
            seconds => Some(seconds as u16),
        },
        session_expiry_max_s: match seconds(s, r, "session_expiry_max", session_expiry_max, 0..=0xFFFF_FFFE)
            .as_secs()
        {
            0 => u32::MAX,
            seconds => seconds as u32,
        },
        topic_levels: s.number(r, "max_topic_levels", d.topic_levels as u64, 1..=128) as usize,
        topic_bytes: bytes(s, r, "max_topic_length", d.topic_bytes, 1..=65_535),
        topic_alias_max: int(s, r, "topic_alias_max", d.topic_alias_max, 0..=65_535),
        subscriptions: s.number(r, "max_subscriptions", d.subscriptions as u64, 0..=COUNT_MAX) as usize,
        receive_max: int(s, r, "receive_max", d.receive_max, 1..=65_535),
        waiting_max: s.number(r, "max_waiting", d.waiting_max as u64, 1..=65_535) as usize,
        publish_rate: int(s, r, "max_publish_rate", d.publish_rate, 0..=1_000_000),
        publish_bytes: size(s, r, "max_publish_bytes", d.publish_bytes, 0..=BYTES_MAX),
        inflight_max: int(s, r, "max_inflight", d.inflight_max, 1..=65_535),
        queue_messages: s.number(r, "max_queued_messages", d.queue_messages, 1..=COUNT_MAX),
        queue_bytes: size(s, r, "max_stored_bytes", d.queue_bytes, 0..=BYTES_MAX),
        pending_bytes: bytes(s, r, "max_queued_bytes", d.pending_bytes, 0..=GIGABYTE),
        output_bytes: bytes(s, r, "max_output_bytes", d.output_bytes, 4_096..=GIGABYTE),
        stalled: time(s, r, "stall_timeout", d.stalled),
    };
    holds_a_packet(s, r, "max_queued_bytes", limits.pending_bytes as u64, limits.packet_bytes);
    holds_a_packet(s, r, "max_stored_bytes", limits.queue_bytes, limits.packet_bytes);
    limits
}

/// From less than which a CONNECT with a client id of 23 bytes and a will hardly fits, to fixed header and the largest remaining
/// length [MQTT 5, 1.5.5].
const PACKET_BYTES: RangeInclusive<u64> = 128..=5 + 268_435_455;
const MEGABYTE: u32 = 1 << 20;
const GIGABYTE: u64 = 1 << 30;
/// Beyond all machines; sums of several fit 64 bits.
const BYTES_MAX: u64 = 1 << 50;
const COUNT_MAX: u64 = 1 << 50;

fn size(
    s: &mut Section<'_>,
    r: &mut Reader<'_>,
    key: &'static str,
    default: u64,
    range: RangeInclusive<u64>,
) -> u64 {
    let Size(bytes) = s.or(r, key, Size(default));
    if range.contains(&bytes) {
        return bytes;
    }
    let message = format!("`{key}` is {bytes} bytes: it must be from {} to {}", range.start(), range.end());
    s.fail(r, key, message, None);
    default
}

fn bytes(
    s: &mut Section<'_>,
    r: &mut Reader<'_>,
    key: &'static str,
    default: usize,
    range: RangeInclusive<u64>,
) -> usize {
    size(s, r, key, default as u64, range) as usize
}

/// A time in which something must happen.
fn time(s: &mut Section<'_>, r: &mut Reader<'_>, key: &'static str, default: Duration) -> Duration {
    const LONGEST: Duration = Duration::from_secs(86_400);
    let value = s.or(r, key, default);
    if !value.is_zero() && value <= LONGEST {
        return value;
    }
    let message = format!("`{key}` is {}: it must be more than 0s and at most 1d", show_duration(value));
    s.fail(r, key, message, None);
    default
}

/// A queue that cannot hold the largest packet would withhold its acknowledgement for ever, or never deliver it.
pub(super) fn holds_a_packet(
    s: &Section<'_>,
    r: &mut Reader<'_>,
    key: &str,
    bytes: u64,
    packet_bytes: usize,
) {
    if bytes < packet_bytes as u64 {
        let (bytes, packet) = (show_size(bytes), show_size(packet_bytes as u64));
        let message = format!(
            "`{key}` = {bytes} is less than `mqtt.max_packet_size` = {packet}: the largest packet never fits"
        );
        s.fail(r, key, message, None);
    }
}

#[cfg(test)]
mod tests;
