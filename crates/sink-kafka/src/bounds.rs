//! All bounds of librdkafka that are not its defaults, each with its reason, in one place.

/// A setting of librdkafka.
#[derive(Debug, Clone, Copy)]
pub struct Bound {
    /// As in its CONFIGURATION.md.
    pub name: &'static str,
    /// The value.
    pub value: &'static str,
}

const fn bound(name: &'static str, value: &'static str) -> Bound {
    Bound { name, value }
}

/// Rows that may be unanswered. At 200,000 records/s (this client's own bound) and 5 ms of linger 1,000 are under way to one
/// broker; ten times that rides out a round trip of 50 ms, and is what is sent again after a fatal error.
pub const WINDOW: usize = 10_000;

/// What every producer gets, before the sink's own options.
pub const BOUNDS: &[Bound] = &[
    // The promise itself: every in-sync replica has it, once, in order.
    bound("enable.idempotence", "true"),
    bound("acks", "all"),
    // Infinite: librdkafka keeps and retries a record in its place. A time-out would hand it back while later ones of its
    // partition go through.
    bound("message.timeout.ms", "0"),
    // Twice WINDOW: the outbox hands out no more, so a full queue is one of bytes.
    bound("queue.buffering.max.messages", "20000"),
    // 64 MiB. Beyond it rows wait on our side, in order; the outbox holds their memory to its own bound.
    bound("queue.buffering.max.kbytes", "65536"),
    // The key's hash is that of Java's producers, so that a record of a key lands where theirs do; no key: any partition.
    bound("partitioner", "murmur2_random"),
    // A broker that comes back is found within half a second (default: up to 10 s). A refused connection costs nothing.
    bound("reconnect.backoff.ms", "50"),
    bound("reconnect.backoff.max.ms", "500"),
    // A paused broker or a silent network is noticed after 10 s (default 60), and the broker gives up on its replicas before
    // that, so that its answer is not taken for silence.
    bound("socket.timeout.ms", "10000"),
    bound("request.timeout.ms", "8000"),
    bound("socket.connection.setup.timeout.ms", "10000"),
    // An idle connection through a firewall that forgot it.
    bound("socket.keepalive.enable", "true"),
    // A topic that is not there is told after 5 s (default 30), time enough for a new one to be known to all brokers.
    bound("topic.metadata.propagation.max.ms", "5000"),
    // New partitions are used within a minute (default 5).
    bound("topic.metadata.refresh.interval.ms", "60000"),
    // All brokers moved to new addresses: the given ones are asked again after a minute (default 5).
    bound("metadata.recovery.rebootstrap.trigger.ms", "60000"),
    // Brokers close idle connections; that is no news.
    bound("log.connection.close", "false"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_holds_the_window_twice() {
        let messages = BOUNDS.iter().find(|b| b.name == "queue.buffering.max.messages");
        assert_eq!(messages.map(|b| b.value.parse()), Some(Ok(2 * WINDOW)));
    }
}
