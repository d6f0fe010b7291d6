//! The work of a run: which rows there are, who has to do each, and what is aimed at.

use std::net::SocketAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::carrier::Over;
use crate::load::{Plan, Shape};
use crate::peer::{Peer, USER};

/// Seconds of a quick run's measured part.
const QUICK_SECONDS: f64 = 0.3;
/// Workers of the row that compares one with several.
pub const WORKERS: u32 = 3;

/// What is aimed at in a row, for Ferrule; beside it in every row with one: p99 no longer than mosquitto's, nothing lost, no
/// break of order, and at most [`RSS_BYTES_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// At most this ratio of CPU time a message to mosquitto's.
    pub cpu_ratio: f64,
    /// The median latency, too, no longer than mosquitto's: where the rate is fixed, and latency is not waiting in line.
    pub p50: bool,
}

/// Resident memory aimed at in every row: 40 MB.
pub const RSS_BYTES_MAX: u64 = 40_000_000;

/// One row: the same work for several brokers.
#[derive(Debug, Clone)]
pub struct Row {
    /// What tables call it.
    pub name: &'static str,
    /// What is aimed at.
    pub target: Option<Target>,
    /// Broker and generator have a core each, where there are two; otherwise they share all.
    pub pinned: bool,
    /// Who does it, and what the generator does; `addr` and `watch` are filled in per start.
    pub entries: Vec<(Peer, Plan)>,
}

/// The brokers side by side. A quick run has fewer clients and a short measured part: it shows that everything works, and
/// no figure.
///
/// Windows (messages a publisher has out) are such that some thousands of deliveries are out in all: enough to saturate a core,
/// few enough that a latency still says something. So what a client may have out falls as clients get more. By shape:
/// - *10 pairs*: 32, a device's burst. 16 KiB: 8, so that all that is out (1.3 MB) still fits a cache, as little messages do.
/// - *1,000 pairs, 500 to 1*: 8, which is 8,000 and 4,000 in all. With 4 a turn finds one or two messages on a connection, and
///   the row measures the read and the write for each that no broker can save: the floor itself is then at 0.16.
/// - *1 to 500*: 32, which is 16,000 in all. With fewer, each turn of the broker has a message or two to fan out, and the row
///   measures the one write per message and subscriber that then no broker can save; with 32 it measures what the broker
///   makes of a burst.
/// - *at a rate*: 256, which never limits: a message that waits for its window is late, and counted so.
#[must_use]
pub fn side_by_side(quick: bool, peers: &[Peer]) -> Vec<Row> {
    let row = |name, shape, clients, qos, size, window, cpu_ratio| {
        let clients = if quick { std::cmp::min(clients, 20) } else { clients };
        let plan = Plan { shape, clients, qos, size, window, ..base(quick) };
        // QoS 2 is not the floor's business.
        let able = peers.iter().filter(|peer| qos < 2 || peer.name != "floor");
        let entries = able.map(|peer| (peer.clone(), plan.clone())).collect();
        Row { name, target: Some(Target { cpu_ratio, p50: false }), pinned: true, entries }
    };
    let paced = |name, rate, cpu_ratio| {
        let mut row = row(name, Shape::Pairs, 10, 1, 64, 256, cpu_ratio);
        row.entries.iter_mut().for_each(|(_, plan)| plan.rate = Some(rate));
        row.target = Some(Target { cpu_ratio, p50: true });
        row
    };
    vec![
        row("10 pairs, QoS 0", Shape::Pairs, 10, 0, 64, 32, 0.06),
        row("10 pairs, QoS 1", Shape::Pairs, 10, 1, 64, 32, 0.05),
        row("10 pairs, QoS 2", Shape::Pairs, 10, 2, 64, 32, 0.05),
        row("1,000 pairs, QoS 0", Shape::Pairs, 1000, 0, 64, 8, 0.17),
        row("1,000 pairs, QoS 1", Shape::Pairs, 1000, 1, 64, 8, 0.14),
        row("500 to 1, QoS 1", Shape::FanIn, 500, 1, 64, 8, 0.10),
        row("1 to 500, QoS 0", Shape::FanOut, 500, 0, 64, 32, 0.07),
        row("1 to 500, QoS 1", Shape::FanOut, 500, 1, 64, 32, 0.09),
        row("10 pairs, QoS 0, 16 KiB", Shape::Pairs, 10, 0, 16 * 1024, 8, 0.6),
        // Latency means most where the broker is not saturated.
        paced("10 pairs, QoS 1, 2,000/s", 2_000.0, 0.9),
        paced("10 pairs, QoS 1, 20,000/s", 20_000.0, 0.5),
    ]
}

/// Ten pairs as above, carried by TLS and by WebSocket; `peers` gives who can do that.
#[must_use]
pub fn carried(quick: bool, peers: impl Fn(Over) -> Vec<Peer>) -> Vec<Row> {
    let row = |name, over, qos| {
        let plan = Plan { over, qos, ..base(quick) };
        let entries = peers(over).into_iter().map(|peer| (peer, plan.clone())).collect();
        Row { name, target: None, pinned: true, entries }
    };
    vec![
        row("10 pairs, QoS 0, TLS", Over::Tls, 0),
        row("10 pairs, QoS 1, TLS", Over::Tls, 1),
        row("10 pairs, QoS 0, WebSocket", Over::Ws, 0),
        row("10 pairs, QoS 1, WebSocket", Over::Ws, 1),
    ]
}

/// What Ferrule's own functions cost: the same ten pairs, plainly and with each of them. The payload is JSON in all, because the
/// rules look into it.
#[must_use]
pub fn variants(quick: bool, edge: &Path) -> Row {
    let plan = Plan { qos: 1, json: true, size: 128, ..base(quick) };
    let persistent = Plan { persistent: true, ..plan.clone() };
    let user = Plan { username: Some(USER.0.to_owned()), password: Some(USER.1.to_owned()), ..plan.clone() };
    let mut sessions = Peer::ferrule_edge(edge.to_owned());
    sessions.name = "ferrule, persistent sessions".to_owned();
    let rule = |name, text| Peer::ferrule_rule(edge.to_owned(), name, text);
    Row {
        name: "10 pairs, QoS 1, JSON",
        target: None,
        pinned: true,
        entries: vec![
            (Peer::ferrule_edge(edge.to_owned()), plan.clone()),
            (rule("ferrule, a rule passes none", include_str!("../peers/rule-no-match.sql")), plan.clone()),
            (rule("ferrule, a rule passes all", include_str!("../peers/rule-match.sql")), plan),
            (Peer::ferrule_access(edge.to_owned()), user),
            (sessions, persistent),
        ],
    }
}

/// The row of [`republish`].
pub const REPUBLISH: &str = "1 to 2, QoS 1, JSON";

/// What the CPU time of its second entry is to the first's, at most.
pub const REPUBLISH_RATIO_MAX: f64 = 1.3;

/// A message to two subscribers, and to one of whom the other one has it from a rule.
#[must_use]
pub fn republish(quick: bool, edge: &Path) -> Row {
    let plan = Plan { shape: Shape::FanOut, clients: 2, qos: 1, json: true, size: 200, ..base(quick) };
    let again = Plan { again: Some("again".to_owned()), ..plan.clone() };
    let name = "ferrule, a rule publishes to the second";
    let rule = Peer::ferrule_rule(edge.to_owned(), name, include_str!("../peers/rule-again.sql"));
    Row {
        name: REPUBLISH,
        target: None,
        pinned: true,
        entries: vec![(Peer::ferrule_edge(edge.to_owned()), plan), (rule, again)],
    }
}

/// One worker and several. Nothing is pinned: the workers, and the generator with them, take the cores that there are.
#[must_use]
pub fn workers(quick: bool, edge: &Path) -> Row {
    let clients = if quick { 20 } else { 100 };
    let plan = Plan { clients, qos: 1, window: 8, ..base(quick) };
    let peer = |workers: u32| {
        let name = format!("ferrule, {workers} worker{}", if workers == 1 { "" } else { "s" });
        let workers = workers.to_string();
        Peer::ferrule_edge(edge.to_owned()).with_env(&name, "FERRULE__EDGE__WORKERS", &workers)
    };
    Row {
        name: "100 pairs, QoS 1, all cores",
        target: None,
        pinned: false,
        entries: vec![(peer(1), plan.clone()), (peer(WORKERS), plan)],
    }
}

/// A plan of defaults against nothing.
#[must_use]
pub fn base(quick: bool) -> Plan {
    Plan {
        addr: SocketAddr::from(([127, 0, 0, 1], 0)),
        subscribers_at: None,
        shape: Shape::Pairs,
        clients: 10,
        qos: 0,
        over: Over::Tcp,
        v5: false,
        size: 64,
        json: false,
        window: 32,
        rate: None,
        messages: None,
        seconds: if quick { QUICK_SECONDS } else { 3.0 },
        warmup: if quick { 0.1 } else { 0.5 },
        stall: 3.0,
        persistent: false,
        username: None,
        password: None,
        prefix: "bench".to_owned(),
        again: None,
        watch: Vec::new(),
    }
}
