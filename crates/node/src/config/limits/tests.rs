#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use crate::config::document::{Document, Overrides};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

/// What the readers made of a text.
#[derive(Debug)]
struct Read {
    mqtt: MqttLimits,
    clients: ClientLimits,
    own: EntranceLimits,
    settings: Vec<(String, String)>,
}

/// `[listener]` is read as a listener. The mistakes, if there are any.
fn read(product: Product, text: &str) -> Result<Read, Vec<String>> {
    let (document, errors) = Document::parse(text, &Overrides::default()).unwrap();
    let mut r = Reader { document: &document, base: Path::new(""), errors, settings: Vec::new() };
    let mut root = r.root();
    let mqtt = read_mqtt(product, root.section(&mut r, "mqtt"), &mut r);
    let mut listener = root.section(&mut r, "listener");
    let (clients, own) = read_limits(&mut listener, &mqtt.clients, &mut r);
    if !r.errors.is_empty() {
        return Err(r.errors.iter().map(|e| e.message.clone()).collect());
    }
    let settings = r.settings.iter().map(|s| (s.path.clone(), s.value.clone().unwrap_or_default())).collect();
    Ok(Read { mqtt, clients, own, settings })
}

#[test]
fn a_listeners_clients_are_as_mqtt_says_unless_the_listener_says_otherwise() {
    let text = "[mqtt]\nreceive_max = 9\nkeep_alive_max = \"60s\"\nsession_expiry_max = \"0s\"\n";
    let Read { mqtt, clients, own, .. } = read(Product::Edge, text).unwrap();
    assert_eq!((mqtt.clients, own), (clients, EntranceLimits::default()));
    assert_eq!(
        (clients.receive_max, clients.keep_alive_max, clients.session_expiry_max_s),
        (9, Some(60), u32::MAX)
    );

    let more = "[listener.limits]\nmax_publish_rate = 7\nmax_packet_size = \"4KiB\"\nmax_connections = 3\nkeep_alive_max = \"0s\"\n";
    let Read { mqtt, clients, own, settings } = read(Product::Edge, &format!("{text}{more}")).unwrap();
    let expected =
        ClientLimits { publish_rate: 7, packet_bytes: 4_096, keep_alive_max: None, ..mqtt.clients };
    assert_eq!((clients, own), (expected, EntranceLimits { connections: 3, ..EntranceLimits::default() }));
    assert!(settings.contains(&("listener.limits.receive_max".to_owned(), "9".to_owned())), "{settings:?}");
}

#[test]
fn mistakes() {
    for (text, message) in [
        (
            "[mqtt]\nconnect_timeout = \"0s\"",
            "`connect_timeout` is 0s: it must be more than 0s and at most 1d",
        ),
        ("[mqtt]\nstall_timeout = \"2d\"", "`stall_timeout` is 2d: it must be more than 0s and at most 1d"),
        ("[mqtt]\nmax_topic_levels = 129", "`mqtt.max_topic_levels` is 129: it must be from 1 to 128"),
        (
            "[mqtt]\nmax_topic_length = \"64KiB\"",
            "`max_topic_length` is 65536 bytes: it must be from 1 to 65535",
        ),
        (
            "[mqtt]\nmax_connect_size = \"10B\"",
            "`max_connect_size` is 10 bytes: it must be from 128 to 268435460",
        ),
        (
            "[mqtt]\nmax_stored_bytes = \"1KiB\"",
            "`max_stored_bytes` = 1KiB is less than `mqtt.max_packet_size` = 1MiB: the largest packet never fits",
        ),
        (
            "[mqtt]\nmax_buffered_bytes = \"1MiB\"",
            "`max_buffered_bytes` is 1MiB: all clients together need 2MiB, two of `max_packet_size` and 1MiB",
        ),
        ("[mqtt]\nmax_connections = 1", "unknown key `max_connections` in `mqtt`"),
        ("[listener.limits]\nmax_sessions = 1", "unknown key `max_sessions` in `listener`"),
        (
            "[listener.limits]\nreceive_max = 0",
            "`listener.limits.receive_max` is 0: it must be from 1 to 65535",
        ),
    ] {
        assert_eq!(read(Product::Edge, text).unwrap_err(), [message], "{text}");
    }
}

/// The defaults of all keys that the readers ask for, with the section of each.
fn defaults(product: Product) -> BTreeMap<String, String> {
    read(product, "[listener.limits]\n").unwrap().settings.into_iter().collect()
}

#[test]
fn the_list_names_each_key_that_is_read_and_no_other() {
    let read = defaults(Product::Edge);
    let mut named: Vec<String> = Vec::new();
    for limit in LIMITS {
        let (mqtt, listener) = (format!("mqtt.{}", limit.key), format!("listener.limits.{}", limit.key));
        match limit.scope {
            Scope::Client => named.extend([mqtt, listener]),
            Scope::Listener => named.push(listener),
            Scope::Node => named.push(mqtt),
            Scope::Process => {}
        }
    }
    named.sort_unstable();
    assert_eq!(named, read.into_keys().collect::<Vec<_>>());
}

#[test]
fn what_is_counted_is_shown() {
    let (hub, listeners) = (include_str!("../../hub/status.rs"), include_str!("../../control/status.rs"));
    for limit in LIMITS {
        for counter in limit.counter.split(", ").filter(|counter| !counter.is_empty()) {
            let is_shown = match limit.scope {
                Scope::Listener => listeners.contains(&format!("pub {counter}: u64")),
                _ => hub.contains(&format!("(\"{counter}\", ")),
            };
            assert!(is_shown, "{counter} is not in the status");
        }
    }
}

const HEAD: &str = "# Limits

Everything that a client can use has a bound, a reason for it, an answer and a count. This page is made from the source of the
configuration (`crates/node/src/config/limits.rs`) by `FERRULE_WRITE_REPORT=1 cargo test --release -p ferrule-node`; a test compares.

- Where a default differs, the edge's is before the cloud's. How sizes and times are written: [configuration.md](configuration.md).
- Answers are reason codes of MQTT 5. For 3.1 and 3.1.1, who have none, what they see is said after `3.x`.
- Counts are in `counters` of `status --json`, sums over all workers; a listener's in `listeners`.

";

const LISTENERS: &str =
    "A listener's own stand below its `[[listener]]`; what is not written there is as `[mqtt]` says.

```toml
[[listener]]
bind = \"0.0.0.0:1883\"

[listener.limits]
max_packet_size = \"16KiB\"
max_publish_rate = 50
max_connections_per_address = 100
```

";

const MEMORY: &str = "## Memory
At the start, and with `check --all`, a node says how much memory it would use if all clients went to all their limits at once, with the
largest parts; and which keys to lower where the machine (its control group, if that has a bound) has less.

| part | at most |
|---|---|
| connections | connections (`max_connections` of each listener, in all no more than open files less 256) x 5 KiB: 1 KiB each costs, and 4 KiB each may have waiting whatever the others have. With TLS or WebSocket 76 KiB more: 12 KiB for the layers, 64 KiB encoded for the socket |
| buffers | `max_buffered_bytes`: half-received packets, input of connections that are not heard, output, messages that wait in memory |
| sessions | `max_sessions` x 193 KiB: 1 KiB each costs, 128 KiB of its queue are in memory, and 64 KiB more while it is read back |
| subscriptions | workers x `subscriptions_max_bytes`: each worker may come to know all filters |
| retained messages | workers x `retained_max_bytes` |
| delayed messages | `delayed_max_bytes` |
| outboxes | sinks, and an edge's uplink, each: 18 MiB (cloud: 288 MiB); with `order = \"live_first\"` 20 MiB (cloud: 320 MiB) |
| the broker itself | workers x 8 MiB; 4 MiB between each two, in each direction; 144 MiB for the store; 32 MiB for the program; with users 38 MiB for passwords |

A message that waits for several clients is in memory once and counted for each. What is not in the sum: one packet that each
connection may be given past its bound, since the largest must have a way; rows of sessions' queues that cannot be written while the
disk is full or fails (16 MiB each at most, and no more than publishers have in flight); the kernel's socket buffers. `memory_max` is for what no sum foresees.

As `max_buffered_bytes` fills, a client may have as much as is still free. So those that have most get nothing more first, and one that has
little is served however many others are stuck. Those that are stuck are disconnected after `stall_timeout`.

## Slow consumers
1. More than `max_output_bytes` behind: QoS 0 is dropped (`dropped_slow`).
2. QoS 1 and 2 waits: for a session that outlives its connection in its queue, on disk; for others in memory. Past `max_queued_bytes` of that the
   publishers are not acknowledged (`held_back`), and slow down.
3. More than half of `max_output_bytes` behind, or at `max_queued_bytes`, it must take a 256th of that in each `stall_timeout`: at the defaults
   16 KiB in 30 s. Else it is disconnected with 0x97 (`slow_closed`). A byte now and then does not count.

## Slow senders
A connection has `connect_timeout` for all up to its CONNECT. After that a packet that has begun must be whole, or have grown by 4 KiB,
within `packet_timeout` or one and a half keep alives, whichever is less; bytes alone do not count for the keep alive, packets and
such growth do. A client that is not read, since it publishes too fast or does not take its answers, is not cut off for its silence.
";

/// The page.
fn page() -> String {
    let (edge, cloud) = (defaults(Product::Edge), defaults(Product::Cloud));
    let mut page = HEAD.to_owned();
    for (scope, title, text) in [
        (Scope::Client, "`[mqtt]` and `[listener.limits]`: what one client may use", LISTENERS),
        (Scope::Listener, "`[listener.limits]`: what a listener's connections may use", ""),
        (Scope::Node, "`[mqtt]`: what all clients may use", ""),
        (Scope::Process, "`[edge]`, `[node]`", ""),
    ] {
        let _ = writeln!(
            page,
            "## {title}\n{text}| key | default | bounds | why | what a client sees | counted as |\n|---|---|---|---|---|---|"
        );
        for limit in LIMITS.iter().filter(|limit| limit.scope == scope) {
            let path = match scope {
                Scope::Client | Scope::Node => format!("mqtt.{}", limit.key),
                Scope::Listener => format!("listener.limits.{}", limit.key),
                Scope::Process => String::new(),
            };
            let of = |all: &BTreeMap<String, String>| {
                all.get(&path).map_or("`\"0B\"`".to_owned(), |value| format!("`{value}`"))
            };
            let default =
                if of(&edge) == of(&cloud) { of(&edge) } else { format!("{}, {}", of(&edge), of(&cloud)) };
            let counters: Vec<String> =
                limit.counter.split(", ").filter(|c| !c.is_empty()).map(|c| format!("`{c}`")).collect();
            let Limit { key, bounds, reason, answer, .. } = limit;
            let _ = writeln!(
                page,
                "| `{key}` | {default} | {bounds} | {reason} | {answer} | {} |",
                counters.join(", ")
            );
        }
        page.push('\n');
    }
    page + MEMORY
}

/// `FERRULE_WRITE_REPORT=1` writes the page; without it this says when the page is not that of the source.
#[test]
fn the_page_of_limits_is_that_of_the_source() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/limits.md");
    if std::env::var_os("FERRULE_WRITE_REPORT").is_some() {
        std::fs::write(&path, page()).unwrap();
    }
    assert!(
        std::fs::read_to_string(&path).is_ok_and(|text| text == page()),
        "run `FERRULE_WRITE_REPORT=1 cargo test --release -p ferrule-node limits`"
    );
}
