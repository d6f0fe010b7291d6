//! Rounds of faults under load, with an oracle: on each node a publisher and a subscriber with a clean session, all of whom publish and get everything.
//!
//! Held after each round: what was acknowledged to a publisher on whichever node reached every subscriber that had its SUBACK before it was published, was
//! connected until after it was acknowledged, and whose node was not removed from the cluster meanwhile. `FERRULE_CLUSTER_ROUNDS=100` for more of them; with
//! `FERRULE_FAULT_RESULTS=folder` the counts go there.

use crate::{Cluster, config};
use ferrule_mqtt::{Packet, Properties, QoS, Subscribe, SubscribeFiltersBuf, SubscribeOptions};
use ferrule_testkit::node::count;
use ferrule_testkit::random::Random;
use ferrule_testkit::wire::{Options, Outgoing};
use ferrule_testkit::{Client, Node, Postgres, Relay, port, soak};
use ferrule_tests::PATIENCE;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const NODES: usize = 3;
/// How long a client waits before it looks whether it is to end.
const LOOK: Duration = Duration::from_millis(100);

/// A message that was acknowledged.
struct Sent {
    began: Instant,
    acknowledged: Instant,
}

/// A subscriber from its SUBACK to the end of its connection.
struct Span {
    node: usize,
    from: Instant,
    until: Option<Instant>,
    got: BTreeMap<u64, u32>,
}

#[derive(Default)]
struct World {
    stop: AtomicBool,
    next: AtomicU64,
    /// Publishes that were not acknowledged, and were sent again as others.
    withheld: AtomicU64,
    sent: Mutex<BTreeMap<u64, Sent>>,
    /// By number.
    spans: Mutex<BTreeMap<u64, Span>>,
}

impl World {
    fn stops(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn publish_from(&self, address: SocketAddr, name: &str) {
        let mut client: Option<Client> = None;
        while !self.stops() {
            let Some(connected) = &mut client else {
                client = Client::try_connect(address, &Options::v5(name)).ok().map(|(client, _)| client);
                if client.is_none() {
                    std::thread::sleep(LOOK);
                }
                continue;
            };
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let began = Instant::now();
            if self.publish(connected, number) {
                let sent = Sent { began, acknowledged: Instant::now() };
                self.sent.lock().unwrap().insert(number, sent);
                // A few hundred a second: it is the faults that are to be seen.
                std::thread::sleep(Duration::from_millis(3));
            } else {
                self.withheld.fetch_add(1, Ordering::Relaxed);
                client = None;
            }
        }
    }

    /// Whether it was acknowledged.
    fn publish(&self, client: &mut Client, number: u64) -> bool {
        let sent = client.send_publish(Outgoing {
            topic: "load/all",
            payload: number.to_string().as_bytes(),
            qos: QoS::AtLeastOnce,
            retain: false,
            dup: false,
            packet_id: (number % 60_000) as u16 + 1,
        });
        while sent.is_ok() && !self.stops() {
            match client.recv(LOOK) {
                Ok(frame) => return matches!(frame.packet(), Packet::Puback(_)),
                Err(error) if error.kind() == ErrorKind::TimedOut => {}
                Err(_) => return false,
            }
        }
        false
    }

    fn subscribe_at(&self, node: usize, address: SocketAddr, name: &str) {
        while !self.stops() {
            let Some(mut client) = subscribed(address, name) else {
                std::thread::sleep(LOOK);
                continue;
            };
            let id = self.next.fetch_add(1, Ordering::Relaxed);
            let span = Span { node, from: Instant::now(), until: None, got: BTreeMap::new() };
            self.spans.lock().unwrap().insert(id, span);
            loop {
                match client.recv_message(LOOK) {
                    Ok(message) => {
                        let number = message.text().parse().unwrap();
                        let mut spans = self.spans.lock().unwrap();
                        *spans.get_mut(&id).unwrap().got.entry(number).or_default() += 1;
                    }
                    Err(error) if error.kind() == ErrorKind::TimedOut && !self.stops() => {}
                    Err(_) => break,
                }
            }
            self.spans.lock().unwrap().get_mut(&id).unwrap().until = Some(Instant::now());
        }
    }
}

/// A client with its SUBACK.
fn subscribed(address: SocketAddr, name: &str) -> Option<Client> {
    let (mut client, _) = Client::try_connect(address, &Options::v5(name)).ok()?;
    let mut filters = SubscribeFiltersBuf::new();
    filters.push("load/#", SubscribeOptions::new(QoS::AtLeastOnce)).unwrap();
    let filters = filters.as_filters();
    client
        .send(&Packet::Subscribe(Subscribe { packet_id: 1, properties: Properties::EMPTY, filters }))
        .ok()?;
    client.recv_where(PATIENCE, |packet| matches!(packet, Packet::Suback(_))).ok()?;
    Some(client)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Kill,
    Stop,
    Blackhole,
}

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Self::Kill => "a node is killed (kill -9)",
            Self::Stop => "a node is stopped (SIGSTOP, 0.1 to 3 s)",
            Self::Blackhole => "a node hears nothing of the others (0.3 to 4 s)",
        }
    }
}

/// What the rounds of one fault came to.
#[derive(Default)]
struct Sums {
    times: u64,
    removed: u64,
    acknowledged: u64,
    checked: u64,
    lost: u64,
    twice: u64,
    withheld: u64,
}

/// A cluster whose last node is reached through a relay, which can be turned into a hole: all its links are dialled to it.
fn start() -> (Cluster, Relay) {
    let postgres = Postgres::start();
    let folder = tempfile::tempdir().unwrap();
    let mut nodes: Vec<Node> =
        (1..NODES).map(|n| Node::start(&config(&postgres, &folder, &format!("node-{n}")))).collect();
    let bind = port::free_addr();
    let relay = Relay::start(bind);
    let last = config(&postgres, &folder, &format!("node-{NODES}"))
        .env("FERRULE__CLUSTER__BIND", &bind.to_string())
        .env("FERRULE__CLUSTER__ADVERTISE", &format!("[\"{}\"]", relay.addr()));
    nodes.push(Node::start(&last));
    let cluster = Cluster { nodes, postgres, _folder: folder };
    cluster.wait_whole();
    (cluster, relay)
}

/// How often each node has joined in its process's life.
fn joins(cluster: &Cluster) -> Vec<u64> {
    cluster.nodes.iter().map(|node| count(&node.status()["cluster"], "joins")).collect()
}

#[test]
fn what_is_acknowledged_reaches_who_had_subscribed_whatever_happens_to_a_node() {
    let rounds: u64 = std::env::var("FERRULE_CLUSTER_ROUNDS").map_or(2, |text| text.parse().unwrap());
    let seed: u64 = std::env::var("FERRULE_CLUSTER_SEED").map_or(1, |text| text.parse().unwrap());
    let mut random = Random(seed);
    let (mut cluster, relay) = start();
    let world = Arc::new(World::default());
    let addresses: Vec<SocketAddr> = cluster.nodes.iter().map(Node::addr).collect();
    let mut threads = Vec::new();
    for (n, address) in addresses.into_iter().enumerate() {
        let (publishing, subscribing) = (Arc::clone(&world), Arc::clone(&world));
        threads.push(std::thread::spawn(move || publishing.publish_from(address, &format!("publisher-{n}"))));
        threads.push(std::thread::spawn(move || {
            subscribing.subscribe_at(n, address, &format!("subscriber-{n}"));
        }));
    }
    let mut sums: BTreeMap<Fault, Sums> = BTreeMap::new();
    for _ in 0..rounds {
        for fault in [Fault::Kill, Fault::Stop, Fault::Blackhole] {
            round(&mut cluster, &relay, &world, fault, &mut random, sums.entry(fault).or_default());
        }
    }
    world.stop.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    tell(&sums);
    let lost: u64 = sums.values().map(|sum| sum.lost).sum();
    assert_eq!(lost, 0, "FERRULE_CLUSTER_SEED={seed}");
    assert!(sums.values().all(|sum| sum.checked > 0), "nothing was looked at");
}

/// One fault, until everything is well again, and what was promised meanwhile.
fn round(
    cluster: &mut Cluster,
    relay: &Relay,
    world: &World,
    fault: Fault,
    random: &mut Random,
    sum: &mut Sums,
) {
    let from = Instant::now();
    let withheld = world.withheld.load(Ordering::Relaxed);
    let before = joins(cluster);
    // Some load without any fault, too.
    std::thread::sleep(Duration::from_millis(random.below(300)));
    let node = random.below(NODES as u64) as usize;
    match fault {
        Fault::Kill => {
            cluster.nodes[node].kill9();
            std::thread::sleep(Duration::from_millis(random.below(2_500)));
            cluster.nodes[node].restart();
        }
        Fault::Stop => {
            cluster.nodes[node].pause();
            std::thread::sleep(Duration::from_millis(100 + random.below(2_900)));
            cluster.nodes[node].resume();
        }
        Fault::Blackhole => {
            relay.blackhole();
            std::thread::sleep(Duration::from_millis(300 + random.below(3_700)));
            relay.heal();
        }
    }
    cluster.wait_whole();
    let healed = Instant::now();
    // A whole cluster passes messages: what each subscriber gets now is behind all that it was to get before.
    wait_for(|| settled(world, healed), "messages pass again");
    let after = joins(cluster);
    let removed: BTreeSet<usize> =
        (0..NODES).filter(|n| after[*n] != before[*n] || (fault == Fault::Kill && *n == node)).collect();
    sum.times += 1;
    sum.removed += removed.len() as u64;
    sum.withheld += world.withheld.load(Ordering::Relaxed) - withheld;
    let mut sent = world.sent.lock().unwrap();
    let mut spans = world.spans.lock().unwrap();
    let due: Vec<(u64, Sent)> = sent.extract_if(.., |_, sent| sent.acknowledged < healed).collect();
    sum.acknowledged += due.len() as u64;
    for (number, sent) in due {
        for span in spans.values_mut() {
            let was_there =
                span.from < sent.began && span.until.is_none_or(|until| until > sent.acknowledged);
            let is_promised = was_there && (!removed.contains(&span.node) || sent.acknowledged < from);
            let got = span.got.remove(&number).unwrap_or(0);
            sum.checked += u64::from(is_promised);
            sum.twice += u64::from(got > 1);
            if is_promised && got == 0 {
                sum.lost += 1;
                eprintln!(
                    "{fault:?} of node {node}: {number}, acknowledged {:.3} s into the round, never came to the subscriber on node {}; removed: {removed:?}",
                    (sent.acknowledged - from).as_secs_f64(),
                    span.node
                );
            }
        }
    }
    spans.retain(|_, span| span.until.is_none());
}

/// Each subscriber that is there has got something that was published after `healed`, from each node.
fn settled(world: &World, healed: Instant) -> bool {
    let sent = world.sent.lock().unwrap();
    let late: Vec<u64> =
        sent.iter().filter(|(_, sent)| sent.began > healed).map(|(number, _)| *number).collect();
    let spans = world.spans.lock().unwrap();
    let there: Vec<&Span> = spans.values().filter(|span| span.until.is_none()).collect();
    let nodes: BTreeSet<usize> = there.iter().map(|span| span.node).collect();
    late.len() > 30
        && nodes.len() == NODES
        && there.iter().all(|span| late.iter().filter(|number| span.got.contains_key(*number)).count() > 30)
}

fn wait_for(mut condition: impl FnMut() -> bool, what: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn tell(sums: &BTreeMap<Fault, Sums>) {
    let rows: Vec<_> = sums
        .iter()
        .map(|(fault, sum)| {
            json!({
                "fault": fault.name(),
                "times": sum.times,
                "removed": sum.removed,
                "acknowledged": sum.acknowledged,
                "promised": sum.checked,
                "lost": sum.lost,
                "duplicated": sum.twice,
                "withheld": sum.withheld,
            })
        })
        .collect();
    eprintln!("{rows:#?}");
    let Some(folder) = std::env::var_os("FERRULE_FAULT_RESULTS") else { return };
    let (day, commit) = soak::day_and_commit(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap());
    let result = json!({"date": day, "commit": commit, "machine": soak::machine(), "rows": rows});
    std::fs::create_dir_all(&folder).unwrap();
    let file = Path::new(&folder).join(format!("cluster-{day}-{commit}.json"));
    std::fs::write(&file, format!("{result:#}\n")).unwrap();
}
