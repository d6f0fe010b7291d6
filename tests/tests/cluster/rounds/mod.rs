//! Rounds of faults under load, with an oracle: what was acknowledged has come, whatever was killed, stopped, cut off or without its database.
//!
//! [`world`] is the load, and says what is promised to whom; [`site`] the three nodes and the network; [`probes`] what is asked of single clients at a certain moment.
//!
//! A round is one fault at a random moment and for a random time; then the cluster must be whole again by itself, and all that is promised is held against what came. A round's
//! seed is the campaign's and its number: `FERRULE_CLUSTER_FAULT=kill FERRULE_CLUSTER_SEED=17 FERRULE_CLUSTER_ROUNDS=1` is the 17th round of the kills alone. (What the threads of
//! nodes and clients do meanwhile no seed decides.) Without `FERRULE_CLUSTER_ROUNDS` a share of the faults has one round each: other ones in each of `make test`'s three runs. With
//! `FERRULE_FAULT_RESULTS=folder` the counts go there.

mod probes;
mod site;
mod world;

use crate::share;
use ferrule_testkit::node::count;
use ferrule_testkit::random::Random;
use ferrule_testkit::{Node, soak};
use ferrule_tests::PATIENCE;
use serde_json::json;
use site::{Hole, Site};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use world::{Load, NODES, Sent, World};

/// How long what a lasting subscriber is to get may take, once the cluster is whole.
const COMES: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Kill,
    Blackhole,
    CutOff,
    Stop,
    Resume,
    Connack,
    All,
    Power,
    Database,
}

const FAULTS: [Fault; 9] = [
    Fault::Kill,
    Fault::Resume,
    Fault::CutOff,
    Fault::Connack,
    Fault::Blackhole,
    Fault::Database,
    Fault::Stop,
    Fault::All,
    Fault::Power,
];

impl Fault {
    /// Its name in `FERRULE_CLUSTER_FAULT`.
    fn key(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    fn name(self) -> &'static str {
        match self {
            Self::Kill => "a node is killed (kill -9)",
            Self::Blackhole => {
                "packets between a node and the others are dropped, both ways or one (0.3 to 4 s)"
            }
            Self::CutOff => "packets between a node and the others and the database are dropped (0.3 to 4 s)",
            Self::Stop => "a node is stopped (SIGSTOP, 0.1 to 3 s)",
            Self::Resume => {
                "a node is stopped for 3 s, somebody subscribes elsewhere, it goes on with a publish to that"
            }
            Self::Connack => "a node is killed within 100 ms of a CONNACK",
            Self::All => "all nodes are killed, and started in any order",
            Self::Power => "all nodes and the database are killed, and started",
            Self::Database => "the database is stopped (immediate)",
        }
    }

    /// Of so many rounds of kills and blackholes each other fault has a part: they take longer.
    fn rounds(self, of: u64) -> u64 {
        match self {
            Self::Kill | Self::Blackhole => of,
            Self::Database => of.div_ceil(10),
            _ => of.div_ceil(5),
        }
    }
}

/// What was asked of single clients.
#[derive(Default)]
struct Probes {
    checked: u64,
    lost: u64,
    twice: u64,
    withheld: u64,
    forgotten: u64,
}

/// Nodes that were removed in a round, and when they had all joined again.
struct Removed {
    nodes: BTreeSet<usize>,
    over: Instant,
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
    late: u64,
    withheld: u64,
    reconnected: u64,
    forgotten: u64,
    /// Not promised because of a removal in the round before, and not delivered: told, so that nothing hides there.
    excused: u64,
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}: {error}")))
}

#[test]
fn what_is_acknowledged_reaches_who_had_subscribed_whatever_happens_to_a_node() {
    let (rounds, seed) = (number("FERRULE_CLUSTER_ROUNDS"), number("FERRULE_CLUSTER_SEED").unwrap_or(1));
    let alone = std::env::var("FERRULE_CLUSTER_FAULT").ok();
    // Of the beginning: the checkout may go on while this runs.
    let stamp = std::env::var_os("FERRULE_FAULT_RESULTS")
        .map(|_| soak::day_and_commit(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()));
    let is_in = |(at, fault): &(usize, Fault)| match &alone {
        Some(alone) => *alone == fault.key(),
        None => rounds.is_some() || at % 3 == share(),
    };
    let faults: Vec<Fault> = FAULTS.into_iter().enumerate().filter(is_in).map(|(_, fault)| fault).collect();
    assert!(!faults.is_empty(), "FERRULE_CLUSTER_FAULT is one of {:?}", FAULTS.map(Fault::key));
    let of = rounds.unwrap_or(1);
    let mut site = Site::start();
    let load = Load::start(&site.addresses(), seed);
    wait_for(|| load.world.is_settled(load.started), "messages pass");
    let mut sums: BTreeMap<Fault, Sums> = BTreeMap::new();
    let mut before = Removed { nodes: BTreeSet::new(), over: Instant::now() };
    for n in 0..of {
        for fault in faults.iter().copied().filter(|fault| n < fault.rounds(of)) {
            eprintln!(
                "FERRULE_CLUSTER_FAULT={} FERRULE_CLUSTER_SEED={} FERRULE_CLUSTER_ROUNDS=1",
                fault.key(),
                seed + n
            );
            let sum = sums.entry(fault).or_default();
            before = round(&mut site, &load.world, fault, seed + n, rounds.is_some(), &before, sum);
        }
        // What there is so far: a campaign that is ended has a result, too.
        tell(&sums, stamp.as_ref(), n + 1 == of);
    }
    load.finish();
    for (fault, sum) in &sums {
        assert_eq!((sum.lost, sum.forgotten), (0, 0), "{fault:?}; the seeds are above");
        assert!(sum.checked > 0, "{fault:?}: nothing was looked at");
    }
}

/// How often each node has joined in its process's life.
fn joins(site: &Site) -> Vec<u64> {
    site.cluster.nodes.iter().map(|node| count(&node.status()["cluster"], "joins")).collect()
}

fn sleep_ms(random: &mut Random, least: u64, below: u64) {
    std::thread::sleep(Duration::from_millis(least + random.below(below - least)));
}

/// What is done, and who is started anew.
fn inflict(
    site: &mut Site,
    fault: Fault,
    seed: u64,
    at_length: bool,
    random: &mut Random,
) -> (BTreeSet<usize>, Probes) {
    let node = random.below(NODES as u64) as usize;
    let name = format!("{}-{seed}", fault.key());
    let mut probes = Probes::default();
    let mut killed = BTreeSet::new();
    match fault {
        Fault::Kill => {
            site.cluster.nodes[node].kill9();
            sleep_ms(random, 0, 2_500);
            site.cluster.nodes[node].restart();
            killed.insert(node);
        }
        Fault::Blackhole | Fault::CutOff => {
            let hole = match fault {
                Fault::CutOff => Hole::All,
                _ => [Hole::Nodes, Hole::Nodes, Hole::FromNodes, Hole::ToNodes][random.below(4) as usize],
            };
            let node = site.open(node, hole);
            sleep_ms(random, 300, 4_000);
            site.close(node, hole);
        }
        Fault::Stop => {
            site.cluster.nodes[node].pause();
            sleep_ms(random, 100, 3_000);
            site.cluster.nodes[node].resume();
        }
        Fault::Resume => probes = probes::resumed(site, node, &name, random),
        Fault::Connack => {
            probes = probes::connack(site, node, &name, random);
            killed.insert(node);
        }
        Fault::All | Fault::Power => {
            let first = node;
            let step = 1 + random.below(NODES as u64 - 1) as usize;
            site.cluster.nodes.iter_mut().for_each(Node::kill9);
            if fault == Fault::Power {
                site.cluster.postgres.kill9();
                site.cluster.postgres.restart();
            }
            for n in 0..NODES {
                site.cluster.nodes[(first + n * step) % NODES].restart();
                sleep_ms(random, 0, 1_500);
            }
            killed.extend(0..NODES);
        }
        Fault::Database => {
            site.cluster.postgres.stop_immediately();
            std::thread::sleep(Duration::from_secs(if at_length { 30 } else { 3 }));
            site.cluster.postgres.restart();
        }
    }
    (killed, probes)
}

/// One fault, until everything is well again, and what was promised meanwhile; whose nodes were removed.
///
/// A node may be removed only after the fault: TCP sends again what was lost when its timer says so, and a second without a heartbeat ends then. What began before that was over
/// (`removed_before`) and was acknowledged after all looked well is held against that removal, and nothing else is.
fn round(
    site: &mut Site,
    world: &World,
    fault: Fault,
    seed: u64,
    at_length: bool,
    removed_before: &Removed,
    sum: &mut Sums,
) -> Removed {
    let mut random = Random(seed.wrapping_mul(16) + fault as u64);
    let from = Instant::now();
    let counts = || {
        let counts = &world.counts;
        [&counts.withheld, &counts.twice, &counts.late, &counts.connects, &counts.forgotten]
            .map(|count| count.load(Ordering::Relaxed))
    };
    let (before, counted) = (joins(site), counts());
    // Some load without any fault, too.
    sleep_ms(&mut random, 0, 300);
    let (killed, probes) = inflict(site, fault, seed, at_length, &mut random);
    site.cluster.wait_whole();
    let healed = Instant::now();
    // A whole cluster passes messages: what each subscriber gets now is behind all that it was to get before.
    let joined = joins(site);
    wait_for(|| world.is_settled(healed), "messages pass again");
    let after = joins(site);
    let over = if after == joined { healed } else { Instant::now() };
    if after != joined {
        eprintln!("{fault:?}, seed {seed}: removed after all looked well: joins {joined:?}, then {after:?}");
    }
    let removed: BTreeSet<usize> =
        (0..NODES).filter(|n| after[*n] != before[*n] || killed.contains(n)).collect();
    let deadline = Instant::now() + COMES;
    let mut missing = world.missing(healed);
    while !missing.is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
        missing = world.missing(healed);
    }
    for (n, number) in &missing {
        let sent = &world.sent.lock().unwrap()[number];
        let at = sent.acknowledged.saturating_duration_since(from).as_secs_f64();
        eprintln!(
            "{fault:?}, seed {seed}: {number}, acknowledged {at:.3} s into the round, never came to lasting-{n}; removed: {removed:?}"
        );
    }
    let [withheld, twice, late, reconnected, forgotten]: [u64; 5] =
        std::array::from_fn(|n| counts()[n] - counted[n]);
    if twice > 0 {
        eprintln!(
            "{fault:?}, seed {seed}: {twice} came twice to lasting subscribers, in {:?}",
            from.elapsed()
        );
    }
    sum.times += 1;
    sum.removed += removed.len() as u64;
    sum.withheld += withheld + probes.withheld;
    sum.twice += twice + probes.twice;
    sum.late += late;
    sum.reconnected += reconnected;
    sum.forgotten += forgotten + probes.forgotten;
    sum.lost += missing.len() as u64 + probes.lost;
    sum.checked += probes.checked;
    let mut sent = world.sent.lock().unwrap();
    let mut spans = world.spans.lock().unwrap();
    let lasting = world.lasting.lock().unwrap();
    let due: Vec<(u64, Sent)> = sent.extract_if(.., |_, sent| sent.acknowledged < healed).collect();
    sum.acknowledged += due.len() as u64;
    for (number, sent) in due {
        let had = |since: Option<Instant>| since.is_some_and(|since| since < sent.began);
        sum.checked += lasting.iter().filter(|lasting| had(lasting.since)).count() as u64;
        for span in spans.values_mut() {
            let was_there =
                span.from < sent.began && span.until.is_none_or(|until| until > sent.acknowledged);
            let is_before = sent.acknowledged < from;
            let is_removed = if is_before {
                removed_before.nodes.contains(&span.node) && sent.began < removed_before.over
            } else {
                removed.contains(&span.node)
            };
            let is_promised = was_there && !is_removed;
            let got = span.got.remove(&number).unwrap_or(0);
            sum.checked += u64::from(is_promised);
            sum.twice += u64::from(got > 1);
            let is_excused = is_before && was_there && !is_promised && got == 0;
            sum.excused += u64::from(is_excused);
            if is_excused {
                let ago = (from - sent.acknowledged).as_secs_f64();
                eprintln!(
                    "{fault:?}, seed {seed}: {number}, acknowledged {ago:.3} s before the round, excused: node {} was removed in the one before",
                    span.node
                );
            }
            if is_promised && got == 0 {
                sum.lost += 1;
                eprintln!(
                    "{fault:?}, seed {seed}: {number}, acknowledged {:.3} s into the round, never came to the subscriber on node {}; removed: {removed:?}",
                    sent.acknowledged.saturating_duration_since(from).as_secs_f64(),
                    span.node
                );
            }
        }
    }
    spans.retain(|_, span| span.until.is_none());
    Removed { nodes: removed, over }
}

fn wait_for(mut condition: impl FnMut() -> bool, what: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn tell(sums: &BTreeMap<Fault, Sums>, stamp: Option<&(String, String)>, is_last: bool) {
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
                "late": sum.late,
                "withheld": sum.withheld,
                "reconnected": sum.reconnected,
                "forgotten": sum.forgotten,
                "excused": sum.excused,
            })
        })
        .collect();
    if is_last {
        eprintln!("{rows:#?}");
    }
    let Some((folder, (day, commit))) = std::env::var_os("FERRULE_FAULT_RESULTS").zip(stamp) else { return };
    let result = json!({"date": day, "commit": commit, "machine": soak::machine(), "rows": rows});
    std::fs::create_dir_all(&folder).unwrap();
    let file = Path::new(&folder).join(format!("cluster-{day}-{commit}.json"));
    std::fs::write(&file, format!("{result:#}\n")).unwrap();
}
