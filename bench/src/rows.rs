//! The work that all brokers get: one row of the table each.

use std::net::SocketAddr;

use crate::load::{Plan, Shape};

/// Seconds of a quick run's measured part.
const QUICK_SECONDS: f64 = 0.3;

/// One row.
#[derive(Debug, Clone)]
pub struct Row {
    /// What tables call it.
    pub name: &'static str,
    /// What the generator does; `addr` and `watch` are filled in per start.
    pub plan: Plan,
    /// At most this ratio of CPU time a message to mosquitto's is aimed at.
    pub target: Option<f64>,
}

/// All rows. A quick run has fewer clients and a short measured part: it shows that everything works, and no figure.
///
/// Windows are such that some thousands of messages are out in all: enough to saturate a core, few enough that a
/// latency still says something. What a client may have out falls as clients get more.
#[must_use]
pub fn all(quick: bool) -> Vec<Row> {
    let row = |name, shape, clients, qos, size, window, target| {
        let clients = if quick { std::cmp::min(clients, 20) } else { clients };
        Row { name, plan: Plan { shape, clients, qos, size, window, ..base(quick) }, target }
    };
    let half = Some(0.5);
    let mut rows = vec![
        row("10 pairs, QoS 0", Shape::Pairs, 10, 0, 64, 32, half),
        row("10 pairs, QoS 1", Shape::Pairs, 10, 1, 64, 32, half),
        row("10 pairs, QoS 2", Shape::Pairs, 10, 2, 64, 32, half),
        row("100 pairs, QoS 1", Shape::Pairs, 100, 1, 64, 8, half),
        row("1,000 pairs, QoS 0", Shape::Pairs, 1000, 0, 64, 4, half),
        row("1,000 pairs, QoS 1", Shape::Pairs, 1000, 1, 64, 4, half),
        row("500 to 1, QoS 1", Shape::FanIn, 500, 1, 64, 4, None),
        row("1 to 500, QoS 0", Shape::FanOut, 500, 0, 64, 4, None),
        row("10 pairs, QoS 0, 16 KiB", Shape::Pairs, 10, 0, 16 * 1024, 8, None),
    ];
    // Latency means most where the broker is not saturated.
    let mut paced = row("10 pairs, QoS 1, 5,000/s", Shape::Pairs, 10, 1, 64, 256, None);
    paced.plan.rate = Some(5000.0);
    rows.push(paced);
    rows
}

/// A plan of defaults against nothing.
#[must_use]
pub fn base(quick: bool) -> Plan {
    Plan {
        addr: SocketAddr::from(([127, 0, 0, 1], 0)),
        shape: Shape::Pairs,
        clients: 10,
        qos: 0,
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
        prefix: "bench".to_owned(),
        watch: Vec::new(),
    }
}
