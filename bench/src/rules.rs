//! What rules cost, without sockets: the engine alone, and with rules in a shard of the broker.
//!
//! # Design
//! - **The engine**: one rule on the bytes of one 190-byte payload whose field is in its last third, matching and not, in both dialects; FOREACH over 100
//!   elements. Beside them what serde_json needs to parse the payload into a tree.
//! - **In a shard**: the hub with its rules as the shard's hook, a memory store, clients without sockets (as [`crate::scale`]): a rule that republishes
//!   against a second subscriber; 10,000 rules of which 5 match against those 5 alone.
//! - **Loading**: text to checked, compiled rules, and how long a worker is taken up by a reload.
//! - Each round is a process of its own on one core; CPU time of the process, medians of the rounds.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use ferrule_broker::Place;
use ferrule_mqtt::{Properties, PublishFlags, QoS, Version, encode_publish};
use ferrule_net::WorkerStats;
use ferrule_node::hub::{Hub, HubMessage, Load, Node};
use ferrule_outbox::Policy;
use ferrule_rules::{Host, Message, Now, Rows, RuleState, Scratch, Source, load, step};
use ferrule_store::Boot;
use serde::{Deserialize, Serialize};

use crate::procfs;
use crate::result::median;
use crate::run::{Options, child, wanted};
use crate::scale::{connect, ensure, subscribe};
use crate::shard::{Client, Driven};

/// The options of `ferrule-bench rules`.
#[derive(Debug, Default, Args)]
pub struct RulesArgs {
    /// Fewer repetitions: a smoke test.
    #[arg(long)]
    pub quick: bool,
    /// Only figures whose name contains this.
    #[arg(long, default_value = "")]
    pub only: String,
}

/// One figure of all rounds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// What it is of.
    pub name: String,
    /// One a round.
    pub values: Vec<f64>,
}

/// The figures, and why there are fewer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RulesResult {
    /// In the order of [`FIGURES`].
    pub figures: Vec<Figure>,
    /// Of rounds that failed.
    pub errors: Vec<String>,
}

const SECOND: &str = "publish to two subscribers";
const REPUBLISH: &str = "publish to one, and a rule republishes to the other";
const FEW: &str = "publish, 5 rules of which 5 match";
const MANY: &str = "publish, 10,000 rules of which 5 match";
const LOAD: &str = "5,000 rules loaded, checked, compiled";
const RELOAD_ONE: &str = "reload of 5,000 rules, one changed: a worker's pause";
const RELOAD_ALL: &str = "reload of 5,000 rules, all changed: a worker's pause";

/// Names, units, and what is aimed at: at most.
pub const FIGURES: [(&str, &str, Option<f64>); 17] = [
    ("one rule, match", "ns", Some(400.0)),
    ("one rule, no match", "ns", Some(250.0)),
    ("one rule of EMQX's dialect, match", "ns", Some(400.0)),
    ("one rule of EMQX's dialect, no match", "ns", Some(250.0)),
    ("serde_json's whole parse", "ns", None),
    ("FOREACH over 100 elements, a row", "ns", Some(150.0)),
    ("FOREACH of EMQX's dialect, a row", "ns", Some(150.0)),
    (SECOND, "ns", None),
    (REPUBLISH, "ns", None),
    // In a shard alone, beside which reading and writing a message's bytes cost nothing: the row of whole brokers has the target.
    ("republish to second subscriber", "ratio", None),
    (FEW, "ns", None),
    (MANY, "ns", None),
    ("10,000 rules to 5", "ratio", Some(1.5)),
    ("memory of a rule", "bytes", Some(4096.0)),
    (LOAD, "ms", Some(1000.0)),
    (RELOAD_ONE, "ms", Some(5.0)),
    (RELOAD_ALL, "ms", None),
];

impl RulesResult {
    /// The median of a figure.
    #[must_use]
    pub fn median(&self, name: &str) -> Option<f64> {
        median(self.figures.iter().find(|figure| figure.name == name)?.values.clone())
    }
}

/// All rounds, each in a child; none when it is not asked for.
pub fn rounds(options: &Options, core: Option<usize>, mut said: impl FnMut(&str)) -> Option<RulesResult> {
    if !wanted(options, "rules in one process") {
        return None;
    }
    let mut result = RulesResult::default();
    for (name, ..) in FIGURES {
        result.figures.push(Figure { name: name.to_owned(), values: Vec::new() });
    }
    // The figures are small, and medians of five were asked for.
    let rounds = if options.quick { 1 } else { options.rounds.max(5) };
    for round in 1..=rounds {
        said(&format!("rules in one process, round {round} of {rounds}"));
        let quick = options.quick.then(|| "--quick".to_owned());
        let args = std::iter::once("rules".to_owned()).chain(quick);
        match child::<Vec<(String, f64)>>(&options.generator, core, args) {
            Ok(found) => {
                for (name, value) in found {
                    result.figures.iter_mut().filter(|f| f.name == name).for_each(|f| f.values.push(value));
                }
            }
            Err(error) => result.errors.push(error),
        }
    }
    Some(result)
}

/// One round in this process: names and values, of those figures whose name contains `only`.
///
/// # Errors
/// When something does not do what it has to, in words.
pub fn measure(quick: bool, only: &str) -> Result<Vec<(String, f64)>, String> {
    let times = if quick { 1_000 } else { 400_000 };
    let publishes = if quick { 2_000 } else { 400_000 };
    let (many, few) = (if quick { 500 } else { 10_000 }, 5);
    let again = "CREATE RULE again AS INSERT INTO local.\"b/x\" SELECT * FROM \"a/#\";";
    let rules = |count| (0..few).map(matching_rule).chain((few..count).map(other_rule)).collect::<String>();
    let mut found: Vec<(&str, f64)> = Vec::new();
    for (name, ..) in FIGURES.iter().filter(|(name, ..)| name.contains(only)) {
        let of = |name: &str| found.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
        let ratio = |a: &str, b: &str| Ok(of(a).zip(of(b)).map_or(f64::NAN, |(a, b)| a / b));
        let value = match *name {
            "one rule, match" => one_rule("ferrule", "72.5", times),
            "one rule, no match" => one_rule("ferrule", "21.5", times),
            "one rule of EMQX's dialect, match" => one_rule("emqx", "72.5", times),
            "one rule of EMQX's dialect, no match" => one_rule("emqx", "21.5", times),
            "serde_json's whole parse" => {
                let payload = payload("72.5");
                Ok(each_ns(times / 4, || {
                    black_box(serde_json::from_str::<serde_json::Value>(black_box(&payload)).is_ok());
                }))
            }
            "FOREACH over 100 elements, a row" => foreach("ferrule", times / 100),
            "FOREACH of EMQX's dialect, a row" => foreach("emqx", times / 100),
            SECOND => publish_ns("", &["a/#", "a/+"], publishes),
            REPUBLISH => publish_ns(again, &["a/#", "b/#"], publishes),
            "republish to second subscriber" => ratio(REPUBLISH, SECOND),
            FEW => publish_ns(&rules(few), &["out/#"], publishes / 5),
            MANY => publish_ns(&rules(many), &["out/#"], publishes / 5),
            "10,000 rules to 5" => ratio(MANY, FEW),
            "memory of a rule" => rule_bytes(many),
            _ => loading(if quick { 100 } else { 5_000 }, name),
        };
        found.push((name, value?));
    }
    Ok(found.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

const REST: &str = r#""device":"press-7","line":"north","seq":1234567,"ts":1541152486013,"humidity":41.25,"pressure":1013.2,"state":"running","flags":[1,0,1],"fw":"2.14.1","rssi":-61,"uptime":8640000"#;

fn payload(temp: &str) -> String {
    format!(r#"{{{REST},"temp":{temp}}}"#)
}

fn matching_rule(n: usize) -> String {
    format!(
        "CREATE RULE r{n} AS INSERT INTO local.\"out/{n}\" SELECT payload.temp AS t, clientid FROM \"a/+\" WHERE payload.temp > {n};\n"
    )
}

/// Another topic each, and by wildcards as users write them.
fn other_rule(n: usize) -> String {
    let filter = match n % 3 {
        0 => format!("line/{n}/temp"),
        1 => format!("line/{n}/+"),
        _ => format!("+/{n}/#"),
    };
    format!(
        "CREATE RULE r{n} AS INSERT INTO log SELECT payload.temp AS t, clientid, payload.f{} AS f FROM \"{filter}\" WHERE payload.temp > {n};\n",
        n % 50
    )
}

/// CPU time of one call, in nanoseconds; the first tenth is for what is allocated at first.
fn each_ns(times: usize, mut work: impl FnMut()) -> f64 {
    (0..times.div_ceil(10)).for_each(|_| work());
    let before = procfs::cpu_ns(std::process::id());
    (0..times).for_each(|_| work());
    procfs::cpu_ns(std::process::id()).saturating_sub(before) as f64 / times as f64
}

fn loaded(text: &str) -> Result<ferrule_rules::RuleSet, String> {
    load(&[Source { name: "rules.sql", text }], &Host::cloud(Vec::new()))
        .map_err(|diagnostics| diagnostics.first().map_or_else(String::new, |d| d.message.clone()))
}

fn step_ns(rule: &str, payload: &str, times: usize) -> Result<(f64, u64), String> {
    let set = loaded(rule)?;
    let rule = set.rules.first().ok_or("no rule")?;
    let (mut scratch, mut state, mut rows) = (Scratch::new(1), RuleState::default(), Rows::default());
    let message =
        Message { topic: "s/1/t", payload: payload.as_bytes(), clientid: "press-7-a", ..Message::default() };
    let ns = each_ns(times, || {
        scratch.begin();
        let mut fuel = 100_000;
        let now = Now { wall_ms: 1 };
        black_box(step(rule, &mut state, black_box(&message), &mut scratch, now, &mut fuel, &mut rows));
    });
    Ok((ns, state.counters.rows_out))
}

fn one_rule(dialect: &str, temp: &str, times: usize) -> Result<f64, String> {
    let rule = format!(
        "CREATE RULE hot WITH (dialect = '{dialect}') AS INSERT INTO local.\"out\"
         SELECT payload.temp AS t, clientid FROM \"s/+/t\" WHERE payload.temp > 50;"
    );
    let (ns, rows) = step_ns(&rule, &payload(temp), times)?;
    if (rows > 0) == (temp == "72.5") { Ok(ns) } else { Err(format!("{rows} rows of {temp}")) }
}

fn foreach(dialect: &str, times: usize) -> Result<f64, String> {
    let elements: Vec<String> = (0..100).map(|n| format!(r#"{{"name":"s{n}","value":{n}.5}}"#)).collect();
    let payload = format!(r#"{{"sensors":[{}]}}"#, elements.join(","));
    let rule = format!(
        "CREATE RULE each WITH (dialect = '{dialect}') AS INSERT INTO local.\"out\"
         FOREACH payload.sensors AS s DO s.name AS name, s.value AS value FROM \"s/+/t\";"
    );
    let (ns, rows) = step_ns(&rule, &payload, times)?;
    if rows % 100 == 0 && rows > 0 { Ok(ns / 100.0) } else { Err(format!("{rows} rows")) }
}

fn hub(rules: &str) -> Result<(Driven<Hub>, Load), String> {
    let place = Place::ALONE;
    let node = Node {
        origin: "bench".into(),
        boot: Boot::new(1),
        edge: false,
        outboxes: Policy::CLOUD.into(),
        clustered: false,
        place,
    };
    let driven = Driven::with(8, |now| Hub::new(node, Vec::new(), &[], 1, now));
    let rules = loaded(rules)?.rules.into_iter().map(Arc::new).collect();
    Ok((driven, Load { rules, files: vec!["rules.sql".into()], outboxes: Vec::new() }))
}

fn put(driven: &mut Driven<Hub>, load: Load) {
    driven.direct(|shard, now| {
        Hub::message(shard, &WorkerStats::default(), HubMessage::Load(Box::new(load)), now);
    });
}

/// CPU time of a publish to `a/t` with all that comes of it, in nanoseconds; each filter has a subscriber of its own.
fn publish_ns(rules: &str, filters: &[&str], publishes: usize) -> Result<f64, String> {
    const TURN: usize = 32;
    let (mut driven, load) = hub(rules)?;
    let rule_count = load.rules.len();
    put(&mut driven, load);
    for (n, filter) in filters.iter().enumerate() {
        let client = connect(&mut driven, &format!("reader-{n}"))?;
        subscribe(&mut driven, client, filter)?;
    }
    let publisher: Client = connect(&mut driven, "press-7-a")?;
    let flags = PublishFlags { qos: QoS::AtMostOnce, retain: false, dup: false };
    let mut turn = Vec::new();
    for _ in 0..TURN {
        encode_publish(
            &mut turn,
            Version::V3_1_1,
            flags,
            "a/t",
            0,
            &[Properties::EMPTY],
            payload("72.5").as_bytes(),
        )
        .map_err(|error| error.to_string())?;
    }
    let mut bytes = 0;
    let mut taken = true;
    let ns = each_ns(publishes / TURN, || {
        taken &= driven.receive(publisher, &turn);
        driven.turn(|_, out| bytes += out.len());
    });
    ensure(taken)?;
    if bytes == 0 {
        return Err(format!("nothing was delivered with {rule_count} rules"));
    }
    Ok(ns / TURN as f64)
}

/// Resident memory of a rule without state, in bytes.
fn rule_bytes(count: usize) -> Result<f64, String> {
    // What the compiler needs and gives back is not the rules'.
    let warm: String = (0..count).map(other_rule).collect();
    drop(loaded(&warm)?);
    let before = procfs::rss_bytes(std::process::id());
    let text: String = (0..count).map(other_rule).collect();
    let (mut driven, load) = hub(&text)?;
    drop(text);
    put(&mut driven, load);
    let after = procfs::rss_bytes(std::process::id());
    drop(driven);
    Ok(after.saturating_sub(before) as f64 / count as f64)
}

/// Milliseconds of one of the figures about loading.
fn loading(count: usize, figure: &str) -> Result<f64, String> {
    let ms = |start: Instant| start.elapsed().as_secs_f64() * 1e3;
    let text: String = (0..count).map(other_rule).collect();
    let start = Instant::now();
    let set = loaded(&text)?;
    let load_ms = ms(start);
    if set.rules.len() != count {
        return Err(format!("{} rules of {count}", set.rules.len()));
    }
    if figure == LOAD {
        return Ok(load_ms);
    }
    let (mut driven, first) = hub(&text)?;
    put(&mut driven, first);
    let changed = match figure {
        RELOAD_ONE => text.replacen("payload.temp > 7;", "payload.temp > 8;", 1),
        _ => text.replace("FROM \"", "FROM \"other/"),
    };
    let rules = loaded(&changed)?.rules.into_iter().map(Arc::new).collect();
    let load = Load { rules, files: vec!["rules.sql".into()], outboxes: Vec::new() };
    let start = Instant::now();
    put(&mut driven, load);
    Ok(ms(start))
}
