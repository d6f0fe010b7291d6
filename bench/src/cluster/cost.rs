//! What a delivery, a subscribe and a route cost.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ferrule_mqtt::{Packet, Properties, QoS, Subscribe, SubscribeFiltersBuf, SubscribeOptions};
use ferrule_testkit::wire::Options as ClientOptions;
use ferrule_testkit::{Client, Config, Node};

use super::site::{Site, pinned};
use super::{Found, NOWHERE_BYTES_MAX, RATIO_MAX, SUBACK_MS_MAX};
use crate::load::{Outcome, Plan};
use crate::procfs;
use crate::result::Machine;
use crate::rows::base;
use crate::run::{Options, generate};
use crate::tally::Latency;

/// The nodes' CPU time for a delivery, in microseconds.
fn cpu_us(outcome: &Outcome) -> Result<f64, String> {
    if outcome.lost > 0 || outcome.ends == 0 {
        return Err(format!("{} deliveries, {} lost", outcome.ends, outcome.lost));
    }
    let ns: u64 = outcome.watched.iter().map(|one| one.cpu_ns_end.saturating_sub(one.cpu_ns_start)).sum();
    Ok(ns as f64 / 1e3 / outcome.ends as f64)
}

pub(super) fn deliveries(options: &Options, machine: &Machine) -> Result<Found, String> {
    let core = machine.broker_core;
    let plans = [
        ("10 pairs, QoS 0", Plan { qos: 0, ..base(options.quick) }),
        ("10 pairs, QoS 1", Plan { qos: 1, ..base(options.quick) }),
        (
            "10 pairs, QoS 1, 20,000/s",
            Plan { qos: 1, window: 256, rate: Some(20_000.0), ..base(options.quick) },
        ),
    ];
    let mut alone = Node::start(&pinned(Config::cloud(), core));
    let mut site = Site::start(2, core);
    let (addrs, pids) = (site.addrs(), site.pids());
    let mut found = Found::new();
    for (name, plan) in plans {
        let measure = |what: &str, plan: Plan| {
            let outcome = generate(&options.generator, machine.load_core, &plan)?;
            cpu_us(&outcome).map_err(|error| format!("{name}, {what}: {error}"))
        };
        let one = Plan { addr: alone.addr(), watch: vec![alone.process().pid()], ..plan.clone() };
        let within = Plan { addr: addrs[0], watch: pids.clone(), prefix: "within".into(), ..plan.clone() };
        let across = Plan { subscribers_at: Some(addrs[1]), prefix: "across".into(), ..within.clone() };
        let one = measure("one node", one)?;
        let within = measure("at one node of two", within)?;
        let across = measure("from one node to another", across)?;
        found.push((format!("{name}: a node without a cluster"), "us", None, one));
        found.push((format!("{name}: all at one node of two"), "us", None, within));
        found.push((format!("{name}: from one node to another"), "us", None, across));
        found.push((format!("{name}: two nodes to one"), "ratio", Some(RATIO_MAX), across / one));
    }
    Ok(found)
}

pub(super) fn subacks(options: &Options, _: &Machine) -> Result<Found, String> {
    let site = Site::start(3, None);
    let addrs = site.addrs();
    let count = if options.quick { 20 } else { 2_000 };
    let quiet = barrier(addrs[0], count, "quiet");
    // From each to the next.
    let plan = Plan { size: 16 * 1_024, clients: 4, window: 64, rate: Some(200.0), ..base(options.quick) };
    let seconds = if options.quick { 1.0 } else { 15.0 };
    let (flowing, outcomes) = std::thread::scope(|scope| {
        let flows: Vec<_> = (0..3)
            .map(|n| {
                let (addr, subscribers_at) = (addrs[n], Some(addrs[(n + 1) % 3]));
                let plan =
                    Plan { addr, subscribers_at, seconds, prefix: format!("flow-{n}"), ..plan.clone() };
                scope.spawn(move || generate(&options.generator, None, &plan))
            })
            .collect();
        // They connect and warm up.
        std::thread::sleep(Duration::from_secs_f64(seconds / 5.0));
        let flowing = barrier(addrs[0], count, "flowing");
        let outcomes: Result<Vec<Outcome>, String> = flows
            .into_iter()
            .map(|flow| flow.join().map_err(|_| "the generator's thread panicked".to_owned())?)
            .collect();
        (flowing, outcomes)
    });
    let mib: f64 = outcomes?.iter().map(|one| one.ends as f64 / one.seconds * 16.0 / 1_024.0).sum();
    let p99 = |latency: &Latency| latency.summary().p99_us / 1e3;
    let p50 = |latency: &Latency| latency.summary().p50_us / 1e3;
    Ok(vec![
        ("SUBACK with three nodes, p50, nothing else".into(), "ms", None, p50(&quiet)),
        ("SUBACK with three nodes, p99, nothing else".into(), "ms", None, p99(&quiet)),
        ("what flows between the three nodes".into(), "MiB/s", None, mib),
        ("SUBACK with three nodes, p50, while it flows".into(), "ms", None, p50(&flowing)),
        ("SUBACK with three nodes, p99, while it flows".into(), "ms", Some(SUBACK_MS_MAX), p99(&flowing)),
    ])
}

/// SUBSCRIBE to SUBACK, one after the other, of filters that no node knows.
fn barrier(addr: SocketAddr, count: usize, prefix: &str) -> Latency {
    let mut latency = Latency::default();
    // Of a client at most a thousand.
    for part in 0..count.div_ceil(500) {
        let mut client = Client::connect(addr, &ClientOptions::v5(&format!("{prefix}-{part}")));
        for n in 0..count.min(500) {
            let begun = Instant::now();
            client.subscribe(&format!("{prefix}/{part}/{n}"), QoS::AtLeastOnce);
            latency.record(begun.elapsed().as_nanos() as u64);
        }
    }
    latency
}

pub(super) fn routes(options: &Options, _: &Machine) -> Result<Found, String> {
    let mut found = Found::new();
    for workers in [1, 4] {
        let mut site = Site::start_with(2, None, workers);
        let (addrs, pids) = (site.addrs(), site.pids());
        let (clients, each) = (if options.quick { 2 } else { 100 }, 1_000);
        // So that neither's first client counts.
        drop(many(addrs[0], "warm", each));
        drop(many(addrs[1], "warm", each));
        let rss = || pids.iter().map(|pid| procfs::rss_bytes(*pid)).collect::<Vec<_>>();
        let before = rss();
        let connected: Vec<Client> =
            (0..clients).map(|n| many(addrs[0], &format!("route/{n}"), each)).collect();
        let with_routes = rss();
        let count = clients * each;
        // Their connections are ours: as many files.
        let present = count / 10;
        let here: Vec<Client> = (0..present)
            .map(|n| Client::connect(addrs[0], &ClientOptions::v5(&format!("a-device-of-many-{n:07}"))))
            .collect();
        let with_clients = rss();
        let each_of = |before: &[u64], after: &[u64], node: usize, count: usize| {
            after[node].saturating_sub(before[node]) as f64 / count as f64
        };
        let with = if workers == 1 { "a worker".to_owned() } else { format!("{workers} workers") };
        let name = |what: &str| format!("{count} filters, nodes with {with}: {what}");
        let at = |node| each_of(&before, &with_routes, node, count);
        found.push((name("a route at the node that learns of it"), "bytes", None, at(1)));
        found.push((name("a subscription at its own node"), "bytes", None, at(0)));
        let name = |what: &str| format!("{present} connected clients, nodes with {with}: {what}");
        let there = each_of(&with_routes, &with_clients, 1, present);
        found.push((name("one at the other node"), "bytes", None, there));
        drop((connected, here));
    }
    Ok(found)
}

/// A client with so many subscriptions of some 20 bytes, a hundred in a SUBSCRIBE.
fn many(addr: SocketAddr, prefix: &str, count: usize) -> Client {
    let mut client = Client::connect(addr, &ClientOptions::v5(prefix));
    for first in (0..count).step_by(100) {
        let mut filters = SubscribeFiltersBuf::new();
        for n in first..count.min(first + 100) {
            let filter = format!("plant/{prefix}/{n}");
            filters.push(&filter, SubscribeOptions::new(QoS::AtMostOnce)).expect("a short filter");
        }
        let packet_id = client.next_id();
        let (properties, filters) = (Properties::EMPTY, filters.as_filters());
        client
            .send(&Packet::Subscribe(Subscribe { packet_id, properties, filters }))
            .expect("it can be written");
        client
            .expect("a SUBACK", |packet| matches!(packet, Packet::Suback(ack) if ack.packet_id == packet_id));
    }
    client
}

pub(super) fn link(options: &Options, _: &Machine) -> Result<Found, String> {
    // It says that it is skipped.
    let Some(mut site) = Site::apart(2) else { return Ok(Found::new()) };
    let (addrs, pids) = (site.addrs(), site.pids());
    let seconds = if options.quick { 1.0 } else { 10.0 };
    let both = || {
        let (sent, received) = site.plugs[0].bytes();
        (sent + received) as f64
    };
    // Bytes a second while something is done for some time, and what it came to.
    let during = |work: &dyn Fn() -> Result<u64, String>| {
        let (before, begun) = (both(), Instant::now());
        let count = work()?;
        Ok::<_, String>((both() - before, begun.elapsed().as_secs_f64(), count))
    };
    let (bytes, took, cpu_ns) = during(&|| {
        let before = procfs::cpu_ns(pids[0]);
        std::thread::sleep(Duration::from_secs_f64(seconds));
        Ok(procfs::cpu_ns(pids[0]).saturating_sub(before))
    })?;
    let (idle, idle_cpu) = (bytes / took, cpu_ns as f64 / 1e3 / took);
    let load = |subscribers_at, prefix: &str| {
        let rate = Some(20_000.0);
        let plan = Plan {
            addr: addrs[0],
            subscribers_at,
            qos: 1,
            window: 256,
            rate,
            seconds,
            prefix: prefix.into(),
            ..base(options.quick)
        };
        let outcome = generate(&options.generator, None, &plan)?;
        if outcome.lost == 0 { Ok(outcome.published) } else { Err(format!("{} lost", outcome.lost)) }
    };
    // With routes and clients that come and go: some thousand bytes among two hundred thousand messages.
    let (bytes, took, count) = during(&|| load(None, "here"))?;
    let here = (bytes - idle * took).max(0.0) / count as f64;
    let (bytes, took, count) = during(&|| load(Some(addrs[1]), "there"))?;
    let there = (bytes - idle * took) / count as f64;
    Ok(vec![
        ("a link of two nodes, idle".into(), "bytes/s", None, idle),
        ("a node of two, idle: CPU a second".into(), "us", None, idle_cpu),
        ("a publish that matches here alone: on the link".into(), "bytes", Some(NOWHERE_BYTES_MAX), here),
        ("64 bytes, QoS 1, 20,000/s, delivered elsewhere: on the link".into(), "bytes", None, there),
    ])
}
