//! Bounds on everything that a client can use.
//!
//! [`ClientLimits`] bound one client and are its listener's; the rest of [`Limits`] bounds the shard. Reasons, answers and counters
//! are the node's table (docs/limits.md); here is what each means.
//!
//! # The pool
//! What clients have waiting in memory is bounded by client, and for all of them together by `buffer_bytes`: output,
//! messages for sessions that end with their connection, half-received packets. A client may have as much of it as is free: as the
//! pool fills, those that have most get nothing more first, and there is always something left for the others (the
//! dynamic threshold of shared-memory switches: Choudhury and Hahne, 1998). [`FLOOR`] bytes each has in any case.

use crate::share::Strategy;
use ferrule_mqtt::topic;
use std::sync::Arc;
use std::time::Duration;

/// Bytes that a client may have waiting whatever the others have: a page, several small packets.
pub const FLOOR: usize = 4 << 10;

/// What a subscription costs beside the text of its filter: its places in session and routes, and allocations.
pub const FILTER: usize = 200;

/// A packet that has begun counts as alive when it has grown by this much: at 1 KB/s, a slow radio link, every 4 s.
pub const GROWTH: usize = 4 << 10;

/// A consumer over its bound must take one part in this many of it in each `stalled`: at 30 s and 4 MiB 16 KiB, the pace at
/// which the bound alone would last two hours.
pub const SLOWEST: usize = 256;

/// A shard's bounds. The defaults are the edge's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// What one client may use, by the place of its listener in `listeners`. Of a listener that is not there: the first. (In a shard:
    /// by row, see [`Rows`].)
    pub clients: Arc<[ClientLimits]>,
    /// The numbers of the listeners; of one beyond them: its place in `clients`.
    pub listeners: Arc<[u16]>,
    /// How a shared subscription chooses.
    pub share: Strategy,
    /// Retained messages.
    pub retained_messages: usize,
    /// Bytes of retained messages.
    pub retained_bytes: usize,
    /// Messages of this shard that are published later. Beyond it 0x97.
    pub delayed_messages: usize,
    /// Bytes of them.
    pub delayed_bytes: usize,
    /// Connections of this shard. A node sets it to what its process may open.
    pub connections: usize,
    /// Sessions of this shard that outlive their connection. Beyond it a new one is refused (0x97; 3.x: 3).
    pub sessions: usize,
    /// Bytes of all subscriptions of this shard's sessions, [`FILTER`] and the text each. Beyond it 0x97.
    pub filter_bytes: usize,
    /// Bytes that clients of this shard have waiting in memory, together: see the module's header.
    pub buffer_bytes: usize,
    /// Other nodes that have a copy of a will whose session ends with its connection: 1 or 2.
    pub will_copies: u8,
}

/// What one client may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientLimits {
    /// Time from the connection to a whole CONNECT; then the connection is closed.
    pub connect_timeout: Duration,
    /// Largest CONNECT in bytes, will included; larger ones are refused with 0x95.
    pub connect_bytes: usize,
    /// Longest time in which a packet that has begun must be whole or have grown by [`GROWTH`]; then 0x8D. One and a
    /// half keep alives, if that is less.
    pub packet_timeout: Duration,
    /// Largest packet in bytes; larger ones are refused with 0x95.
    pub packet_bytes: usize,
    /// Longest keep alive; none: no bound. A longer one is answered with Server Keep Alive.
    pub keep_alive_max: Option<u16>,
    /// Longest life of a session after its connection, in seconds. `u32::MAX`: for ever.
    pub session_expiry_max_s: u32,
    /// Levels of a topic, at most [`topic::MAX_LEVELS`]. Beyond it 0x90 for a name, 0x8F for a filter.
    pub topic_levels: usize,
    /// Bytes of a topic. Beyond it the same.
    pub topic_bytes: usize,
    /// Topic aliases that a client may set.
    pub topic_alias_max: u16,
    /// Subscriptions. Beyond it 0x97.
    pub subscriptions: usize,
    /// Unacknowledged QoS 1 and 2 publishes of one client, advertised as Receive Maximum (beyond it 0x93).
    pub receive_max: u16,
    /// The same for MQTT 3.x, which cannot be told a window: past it the connection is closed.
    pub waiting_max: usize,
    /// Publishes, subscribes and unsubscribes a second, on average over a second or more; 0: no bound. Beyond it the connection is
    /// not read.
    pub publish_rate: u32,
    /// Bytes of them a second; 0: no bound.
    pub publish_bytes: u64,
    /// Deliveries in flight to one client; the client's Receive Maximum may lower it.
    pub inflight_max: u16,
    /// Messages that wait for one session; what comes then is dropped.
    pub queue_messages: u64,
    /// Bytes of messages that wait for one session that outlives its connection; what comes then is dropped.
    pub queue_bytes: u64,
    /// Bytes of messages that wait in memory for one client without such a session. Past it the publishers of
    /// QoS 1 and 2 are not acknowledged until there is room again.
    pub pending_bytes: usize,
    /// Bytes of output that wait for one connection. Past it QoS 0 is dropped, and QoS 1 and 2 waits.
    pub output_bytes: usize,
    /// A client over half of its output's bound, or for whose room publishers wait, must take one part in [`SLOWEST`] of that bound
    /// in this time, or is disconnected (0x97).
    pub stalled: Duration,
}

impl Default for ClientLimits {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            connect_bytes: 64 << 10,
            packet_timeout: Duration::from_secs(60),
            packet_bytes: 1 << 20,
            keep_alive_max: None,
            session_expiry_max_s: 30 * 86_400,
            topic_levels: topic::MAX_LEVELS,
            topic_bytes: 1 << 10,
            topic_alias_max: 32,
            subscriptions: 1_000,
            receive_max: 256,
            waiting_max: 4_096,
            publish_rate: 0,
            publish_bytes: 0,
            inflight_max: 1_024,
            queue_messages: 100_000,
            queue_bytes: 64 << 20,
            pending_bytes: 4 << 20,
            output_bytes: 4 << 20,
            stalled: Duration::from_secs(30),
        }
    }
}

impl ClientLimits {
    /// Whether a topic name or filter, valid as such, is within the bounds.
    pub(crate) fn takes_topic(&self, topic: &str) -> bool {
        // Few topics are longer than they may have levels: their slashes need not be counted.
        let is_flat = topic.len() < self.topic_levels || topic::levels(topic).count() <= self.topic_levels;
        is_flat && topic.len() <= self.topic_bytes
    }

    /// Other limits for a client that has these: what it was told, or is counted by since its CONNECT, stays.
    fn kept_in(self, new: Self) -> Self {
        Self {
            packet_bytes: self.packet_bytes,
            keep_alive_max: self.keep_alive_max,
            session_expiry_max_s: self.session_expiry_max_s,
            topic_alias_max: self.topic_alias_max,
            receive_max: self.receive_max,
            inflight_max: self.inflight_max,
            ..new
        }
    }

    /// Whether a connection's publishes have to be counted against a rate.
    pub(crate) fn is_paced(&self) -> bool {
        self.publish_rate > 0 || self.publish_bytes > 0
    }
}

impl Limits {
    /// Each listener's number, and what its clients may use.
    fn by_listener(&self) -> impl Iterator<Item = (u16, &ClientLimits)> {
        let place = |at: usize| u16::try_from(at).unwrap_or(u16::MAX);
        let number = move |at: usize| self.listeners.get(at).copied().unwrap_or(place(at));
        self.clients.iter().enumerate().map(move |(at, limits)| (number(at), limits))
    }
}

impl Default for Limits {
    fn default() -> Self {
        ClientLimits::default().into()
    }
}

impl From<ClientLimits> for Limits {
    /// The same for all listeners, and the defaults for the shard.
    fn from(clients: ClientLimits) -> Self {
        Self {
            clients: [clients].into(),
            listeners: Arc::default(),
            share: Strategy::default(),
            retained_messages: 100_000,
            retained_bytes: 64 << 20,
            delayed_messages: 100_000,
            delayed_bytes: 64 << 20,
            connections: 18_000,
            sessions: 10_000,
            filter_bytes: 64 << 20,
            buffer_bytes: 256 << 20,
            will_copies: 1,
        }
    }
}

/// The limits in a row: see [`Rows`].
pub(crate) fn client(clients: &[ClientLimits], row: u16) -> &ClientLimits {
    // Never empty: see `Shard::new`.
    clients.get(usize::from(row)).unwrap_or(&clients[0])
}

/// Which limits whose clients have.
///
/// A client is told some of its limits in CONNACK, and goes by them; so they stay those of its connection when others come into
/// force, and the rest changes under it. Limits stand in rows: at the start a listener's place is its row, and when what clients are told
/// changes, its next connections get another row. A row is used again once no connection and no session has it.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    /// The listeners that there are, and the row of connections that come to each now: few.
    current: Vec<(u16, u16)>,
    /// By row: its listener.
    listeners: Vec<u16>,
}

impl Rows {
    /// For the limits of a start.
    pub(crate) fn new(limits: &Limits) -> Self {
        let listeners: Vec<u16> = limits.by_listener().map(|(listener, _)| listener).collect();
        Self { current: listeners.iter().copied().zip(0..).collect(), listeners }
    }

    /// The row of a connection that comes in at `listener`.
    pub(crate) fn row(&self, listener: u16) -> u16 {
        self.current.iter().find(|(known, _)| *known == listener).map_or(listener, |(_, row)| *row)
    }

    /// Where a row's connections came in.
    pub(crate) fn listener(&self, row: u16) -> u16 {
        self.listeners.get(usize::from(row)).copied().unwrap_or(row)
    }

    /// Puts the limits of `new` into force: all rows, as they are from now on. `rows` are those until now, `is_used` says which a
    /// connection or session has. Listeners that are not named any more have none.
    pub(crate) fn change(
        &mut self,
        rows: &[ClientLimits],
        new: &Limits,
        is_used: impl Fn(u16) -> bool,
    ) -> Arc<[ClientLimits]> {
        let mut rows = rows.to_vec();
        self.current.retain(|(known, _)| new.by_listener().any(|(listener, _)| listener == *known));
        for (listener, limits) in new.by_listener() {
            let mine = self.listeners.iter().zip(&mut rows).filter(|(known, _)| **known == listener);
            mine.for_each(|(_, row)| *row = row.kept_in(*limits));
            let same = |(row, known): (&u16, &ClientLimits)| *row == listener && known == limits;
            let numbers = || 0..u16::try_from(rows.len()).unwrap_or(u16::MAX);
            let known = self.listeners.iter().zip(&rows).position(same);
            let is_free = |row: &u16| !is_used(*row) && !self.current.iter().any(|(_, taken)| taken == row);
            let row = match known.or_else(|| numbers().find(is_free).map(usize::from)) {
                Some(row) => row,
                None if rows.len() < usize::from(u16::MAX) => rows.len(),
                // All are used: those that are there now get it too.
                None => usize::from(self.row(listener)),
            };
            if row == rows.len() {
                rows.push(*limits);
                self.listeners.push(listener);
            }
            let Some(at) = rows.get_mut(row) else { continue };
            (*at, self.listeners[row]) = (*limits, listener);
            let row = row as u16;
            match self.current.iter_mut().find(|(known, _)| *known == listener) {
                Some((_, current)) => *current = row,
                None => self.current.push((listener, row)),
            }
        }
        rows.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clients(of: &[u16]) -> Arc<[ClientLimits]> {
        of.iter()
            .map(|receive_max| ClientLimits { receive_max: *receive_max, ..ClientLimits::default() })
            .collect()
    }

    fn limits(listeners: &[u16], of: &[u16]) -> Limits {
        Limits { clients: clients(of), listeners: listeners.into(), ..Limits::default() }
    }

    /// Each step: the limits by listener, the rows that somebody has; the rows of the listeners then, and all of them.
    #[test]
    fn connections_keep_what_they_were_told() {
        let mut all = clients(&[1, 2]);
        let mut rows = Rows::new(&limits(&[], &[1, 2]));
        for (new, used, current, expected) in [
            (&[1, 2][..], &[0, 1][..], [0, 1], &[1, 2][..]),
            // A row more for what is new; and back.
            (&[1, 3], &[0, 1], [0, 2], &[1, 2, 3]),
            (&[1, 2], &[0, 1, 2], [0, 1], &[1, 2, 3]),
            // Nobody has the third any more.
            (&[4, 2], &[0, 1], [2, 1], &[1, 2, 4]),
            (&[5, 6], &[1, 2], [0, 3], &[5, 2, 4, 6]),
        ] {
            all = rows.change(&all, &limits(&[], new), |row| used.contains(&row));
            assert_eq!([rows.row(0), rows.row(1)], current, "{new:?}");
            assert_eq!(all, clients(expected), "{new:?}");
        }
        let listeners: Vec<u16> = (0..4).map(|row| rows.listener(row)).collect();
        assert_eq!(listeners, [0, 1, 0, 1]);
        // Of a listener that has no limits of its own.
        assert_eq!((rows.row(9), rows.listener(9)), (9, 9));
    }
    /// Each step: the listeners and the limits of each, the rows that somebody has; the row of each, and all of them.
    #[test]
    fn listeners_come_and_go() {
        let mut all = clients(&[1, 2]);
        let mut rows = Rows::new(&limits(&[0, 1], &[1, 2]));
        for (listeners, new, used, current, expected) in [
            (&[0, 1, 2][..], &[1, 2, 3][..], &[0, 1, 2][..], &[0, 1, 2][..], &[1, 2, 3][..]),
            // The rows of one that is gone are kept for those who came by it.
            (&[0, 2], &[1, 3], &[0, 1, 2], &[0, 2], &[1, 2, 3]),
            (&[3, 2], &[2, 3], &[0, 1, 2], &[3, 2], &[1, 2, 3, 2]),
            // Nobody has them any more.
            (&[3, 2, 4], &[2, 3, 5], &[2, 3], &[3, 2, 0], &[5, 2, 3, 2]),
        ] {
            all = rows.change(&all, &limits(listeners, new), |row| used.contains(&row));
            let at: Vec<u16> = listeners.iter().map(|listener| rows.row(*listener)).collect();
            assert_eq!((&at[..], &all), (current, &clients(expected)), "{listeners:?} {new:?}");
            assert!(listeners.iter().all(|listener| rows.listener(rows.row(*listener)) == *listener));
        }
        assert_eq!(rows.listener(1), 1, "who came by one that is gone");
    }
    /// What nobody is told holds for those who are there, too.
    #[test]
    fn what_clients_do_not_go_by_changes_under_them() {
        let with =
            |receive_max, publish_rate| ClientLimits { receive_max, publish_rate, ..ClientLimits::default() };
        let of = |limits: [ClientLimits; 2]| Limits { clients: limits.into(), ..Limits::default() };
        let first = of([with(1, 0), with(2, 0)]);
        let mut rows = Rows::new(&first);
        // Each: the limits, and all rows then.
        let mut all = first.clients;
        for (new, expected) in [
            ([with(1, 5), with(2, 0)], &[with(1, 5), with(2, 0)][..]),
            ([with(3, 6), with(2, 0)], &[with(1, 6), with(2, 0), with(3, 6)]),
            ([with(1, 7), with(2, 8)], &[with(1, 7), with(2, 8), with(3, 7)]),
        ] {
            all = rows.change(&all, &of(new), |_| true);
            assert_eq!(*all, *expected);
        }
        assert_eq!([rows.row(0), rows.row(1)], [0, 1]);
    }
}
