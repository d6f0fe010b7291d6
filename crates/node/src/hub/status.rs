//! What a hub says of itself.

use super::Hub;
use crate::control::Status;
use ferrule_broker::Shard;
use ferrule_net::WorkerStats;
use ferrule_store::{Now, Store};

impl Hub {
    /// What the worker knows; the rest of the snapshot is the node's.
    pub(super) fn status<S: Store>(shard: &mut Shard<Self, S>, worker: &WorkerStats, now: Now) -> Status {
        let [connections, sessions, subscriptions, retained, waiting, lost_ends] =
            shard.sizes().map(|n| n as u64);
        let (stats, buffered, events_dropped) =
            (shard.stats(), shard.buffered() as u64, shard.events_dropped());
        let hub = shard.hook();
        let own = hub.outboxes.iter().filter(|o| o.owner == hub.node.place.index && !o.retired);
        let counters = [
            ("received", stats.received),
            ("sent", stats.sent),
            ("unmatched", stats.unmatched),
            ("acknowledged", stats.acknowledged),
            ("acked_discarded", stats.acked_discarded),
            ("joined", stats.joined),
            ("denied", stats.denied),
            ("dropped_slow", stats.dropped_slow),
            ("dropped_pool", stats.dropped_pool),
            ("dropped_full", stats.dropped_full),
            ("dropped_full_bytes", stats.dropped_full_bytes),
            ("dropped_too_large", stats.dropped_too_large),
            ("dropped_expired", stats.dropped_expired),
            ("shared_again", stats.shared_again),
            ("dropped_shared", stats.dropped_shared),
            ("dropped_partitioned", stats.dropped_partitioned),
            ("delayed", stats.delayed),
            ("delayed_published", stats.delayed_published),
            ("delayed_refused", stats.delayed_refused),
            ("exclusive_refused", stats.exclusive_refused),
            ("exclusive_lost", stats.exclusive_lost),
            ("payloads_refused", stats.payloads_refused),
            ("batches", stats.batches),
            ("batches_refused", stats.batches_refused),
            ("retained_refused", stats.retained_refused),
            ("retained_behind", stats.retained_behind),
            ("wills_not_kept", stats.wills_not_kept),
            ("wills_inherited", stats.wills_inherited),
            ("retained_caught_up", stats.retained_caught_up),
            ("events_dropped", events_dropped),
            ("loops", stats.loops + hub.rules.loops),
            ("clients_connected", stats.connected),
            ("clients_refused", stats.refused),
            ("protocol_errors", stats.protocol_errors),
            ("clients_blocked", stats.blocked),
            ("dropped_link", stats.dropped_link),
            ("clients_late_closed", stats.late_closed),
            ("clients_taken_elsewhere", stats.taken_elsewhere),
            ("clients_moved_off", stats.moved_off),
            ("clients_parked", stats.parked),
            ("publishes_withdrawn", stats.withdrawn),
            ("connections_refused", stats.connections_refused),
            ("overload_refused", stats.overload_refused),
            ("sessions_refused", stats.sessions_refused),
            ("connect_timeouts", stats.connect_timeouts),
            ("keep_alive_timeouts", stats.keep_alive_timeouts),
            ("packet_timeouts", stats.packet_timeouts),
            ("oversized", stats.oversized),
            ("window_exceeded", stats.window_exceeded),
            ("slow_closed", stats.slow_closed),
            ("pool_closed", stats.pool_closed),
            ("topics_refused", stats.topics_refused),
            ("subscriptions_refused", stats.subscriptions_refused),
            ("throttled", stats.throttled),
            ("held_back", stats.held_back),
            // What clients have waiting now, of `max_buffered_bytes`.
            ("buffered_bytes", buffered),
            ("forwarded_out", stats.forwarded_out),
            ("forwarded_in", stats.forwarded_in),
            ("moved_in", worker.moved_in),
            ("rings_full", worker.rings_full),
            ("turns_cut", worker.turns_cut),
            ("handshakes_put_off", worker.handshakes_put_off),
            // All shards know of all rows.
            ("rules_unkept", hub.homes.unkept),
            // Those that remember something, and are run here on the messages of all nodes.
            ("rules_kept", hub.kept_here().len() as u64),
            ("unclaimed_rows", if hub.node.place.index == 0 { hub.unclaimed_rows() } else { 0 }),
            // Bugs, when they are not 0.
            ("lost_ends", lost_ends),
            ("turns", worker.turns),
            ("turn_us_max", worker.turn_us_max),
            ("bytes_in", worker.bytes_in),
            ("bytes_out", worker.bytes_out),
            ("accept_failures", worker.accept_failures),
        ];
        Status {
            uptime_ms: now.since(hub.started.mono_us) / 1_000,
            connections,
            sessions,
            subscriptions,
            retained,
            waiting,
            outboxes: own.map(|o| o.status(now)).collect(),
            rules: hub.rules.status(now),
            counters: counters.into_iter().map(|(name, count)| (name.to_owned(), count.into())).collect(),
            ..Status::default()
        }
    }
}
