//! Rows that go through the whole product: devices, edge, cloud, sink.
//!
//! # Design
//! The devices are the load generator's publishers: QoS 1, JSON, a window each. Edge and cloud run as users run them,
//! configured by file, each with a rule that passes everything. A row ends when every outbox is empty: work that was put
//! off is paid for. CPU time runs from the first message to that moment, per process; nothing is pinned, because there are
//! more processes than cores.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use ferrule_testkit::{Certs, Config, Kafka, Node, Postgres};
use serde_json::Value;

use crate::load::{Outcome, Plan, Shape};
use crate::procfs;
use crate::result::PipelineResult;
use crate::rows::base;
use crate::run::{Options, generate, wanted};

/// How long the outboxes may take to empty.
const DRAIN: Duration = Duration::from_secs(60);
/// Partitions of the Kafka topic.
const PARTITIONS: u32 = 4;

/// Where the rows end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sink {
    Sqlite,
    Kafka,
    Postgres,
}

/// Name, sink, and whether the uplink is by TLS.
const ROWS: [(&str, Sink, bool); 4] = [
    ("edge, cloud, SQLite", Sink::Sqlite, false),
    ("edge, TLS, cloud, SQLite", Sink::Sqlite, true),
    ("edge, cloud, Kafka", Sink::Kafka, false),
    ("edge, cloud, PostgreSQL", Sink::Postgres, false),
];

/// Runs all rows that are asked for. A row that fails is kept with its error.
pub fn run(options: &Options, mut said: impl FnMut(&str)) -> Vec<PipelineResult> {
    let mut results = Vec::new();
    for (name, sink, tls) in ROWS.into_iter().filter(|(name, ..)| wanted(options, name)) {
        said(name);
        let plan = Plan {
            shape: Shape::Publish,
            clients: if options.quick { 10 } else { 100 },
            qos: 1,
            json: true,
            size: 200,
            window: 8,
            messages: Some(if options.quick { 500 } else { 50_000 }),
            stall: 10.0,
            ..base(options.quick)
        };
        // Testkit panics where a set-up fails (a binary or a server that is not there): that is this row's error.
        let row = catch_unwind(AssertUnwindSafe(|| one(options, &plan, sink, tls)));
        let row = row.unwrap_or_else(|panic| Err(text_of(panic.as_ref())));
        let mut result = PipelineResult {
            row: name.to_owned(),
            load: plan.to_args().join(" "),
            messages: 0,
            seconds: 0.0,
            cpu_us: Vec::new(),
            outcome: None,
            error: None,
        };
        match row {
            Ok(found) => {
                result.messages = found.outcome.acknowledged;
                result.seconds = found.seconds;
                result.cpu_us = found.cpu_us;
                result.outcome = Some(found.outcome);
            }
            Err(error) => result.error = Some(error),
        }
        results.push(result);
    }
    results
}

pub(crate) fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "panicked".to_owned())
}

struct Found {
    outcome: Outcome,
    seconds: f64,
    cpu_us: Vec<(String, f64)>,
}

/// The server behind the sink.
enum Server {
    None,
    Kafka(Kafka),
    Postgres(Postgres),
}

fn one(options: &Options, plan: &Plan, sink: Sink, tls: bool) -> Result<Found, String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let before = procfs::children(std::process::id());
    let server = match sink {
        Sink::Sqlite => Server::None,
        Sink::Kafka => Server::Kafka(Kafka::start()),
        Sink::Postgres => Server::Postgres(Postgres::start()),
    };
    // Testkit does not tell its servers' pids: it is the child that was not there before.
    let server_pid = procfs::children(std::process::id()).into_iter().find(|pid| !before.contains(pid));
    let declaration = declare(&server, folder.path());
    let cloud_rules =
        format!("{declaration}\nCREATE RULE keep AS INSERT INTO destination SELECT * FROM \"bench/#\";\n");
    let certs = tls.then(|| Certs::local(&[]));
    let mut config = Config::cloud().rules(cloud_rules);
    if let Some(certs) = &certs {
        let tls = certs.tls("");
        config = config.extra(&format!("[[listener]]\nbind = \"127.0.0.1:0\"\nanonymous = true\n{tls}\n"));
    }
    let mut cloud = Node::start(&config);
    let edge_rules = "CREATE RULE everything AS INSERT INTO cloud SELECT * FROM \"bench/#\";\n";
    let config = Config::edge().rules(edge_rules);
    let config = match &certs {
        None => config.uplink(cloud.addr()),
        Some(certs) => {
            let ca = format!("tls = {{ ca = {:?} }}", certs.path("ca.crt"));
            config.uplink_tls("localhost", cloud.listener(1).port()).extra(&ca)
        }
    };
    let mut edge = Node::start(&config);
    let mut processes = vec![("edge", edge.process().pid()), ("cloud", cloud.process().pid())];
    if let (Some(pid), Server::Kafka(_) | Server::Postgres(_)) = (server_pid, &server) {
        processes.push((if sink == Sink::Kafka { "kafka" } else { "postgres" }, pid));
    }
    let watch = processes.iter().map(|(_, pid)| *pid).collect();
    let plan = Plan { addr: edge.addr(), watch, ..plan.clone() };
    let begun = Instant::now();
    let outcome = generate(&options.generator, None, &plan)?;
    // The generator measures from its first message on; what came before (its start, its connections) is not counted.
    let generated = begun.elapsed();
    wait_empty(&edge, outcome.acknowledged)?;
    wait_empty(&cloud, outcome.acknowledged)?;
    let seconds = outcome.seconds + (begun.elapsed() - generated).as_secs_f64();
    let cpu_us = processes.iter().zip(&outcome.watched).map(|((name, pid), watched)| {
        let ns = procfs::tree_cpu_ns(*pid).saturating_sub(watched.cpu_ns_start);
        ((*name).to_owned(), ns as f64 / 1e3 / outcome.acknowledged.max(1) as f64)
    });
    let cpu_us = cpu_us.collect();
    if outcome.published != outcome.acknowledged {
        return Err(format!("{} of {} messages were acknowledged", outcome.acknowledged, outcome.published));
    }
    Ok(Found { outcome, seconds, cpu_us })
}

fn declare(server: &Server, folder: &Path) -> String {
    match server {
        Server::None => format!(
            "CREATE SINK destination WITH (connector = 'sqlite', path = '{}', table = 'readings');",
            folder.join("readings.db").display()
        ),
        Server::Kafka(kafka) => {
            kafka.create_topic("bench", PARTITIONS);
            format!(
                "CREATE SINK destination WITH (connector = 'kafka', brokers = '{}', topic = 'bench', key = '${{clientid}}');",
                kafka.brokers()
            )
        }
        Server::Postgres(postgres) => format!(
            "CREATE SINK destination WITH (connector = 'postgres', url = '{}', table = 'readings');",
            postgres.url()
        ),
    }
}

/// Waits until the node's outboxes hold nothing and have delivered at least `count` rows in all.
fn wait_empty(node: &Node, count: u64) -> Result<(), String> {
    let deadline = Instant::now() + DRAIN;
    loop {
        let status = node.try_status()?;
        if is_empty(&status, count) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!("outboxes are not empty after {DRAIN:?}: {}", status["outboxes"]));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn is_empty(status: &Value, count: u64) -> bool {
    let outboxes = status["outboxes"].as_array().map_or(&[][..], Vec::as_slice);
    let number = |outbox: &Value, name: &str| outbox[name].as_u64().unwrap_or_default();
    let waiting: u64 =
        outboxes.iter().map(|outbox| number(outbox, "queued") + number(outbox, "in_flight")).sum();
    let delivered: u64 = outboxes.iter().map(|outbox| number(outbox, "delivered")).sum();
    waiting == 0 && delivered >= count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_means_delivered_and_nothing_waiting() {
        let status = |delivered: u64, queued: u64, in_flight: u64| serde_json::json!({"outboxes": [{"delivered": delivered, "queued": queued, "in_flight": in_flight}]});
        assert!(is_empty(&status(5, 0, 0), 5));
        assert!(!is_empty(&status(4, 0, 0), 5));
        assert!(!is_empty(&status(5, 1, 0), 5));
        assert!(!is_empty(&status(5, 0, 1), 5));
        assert!(!is_empty(&Value::Null, 1));
    }
}
