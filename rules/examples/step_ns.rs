//! Measures one step of the reference rules in nanoseconds: `cargo run --release -p ferrule-rules --example step_ns`.
//!
//! The rule and its budget (400 ns with a match, 250 ns without): 200 bytes of JSON, one field compared, two columns; in both dialects.
//! FOREACH over 100 elements (150 ns a row). Beside them what serde_json needs to parse the same payload into a tree.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement")]

use std::hint::black_box;
use std::time::Instant;

use ferrule_rules::{Host, Message, Now, Rows, RuleState, Scratch, Source, load, step};

const REST: &str = r#""device":"press-7","line":"north","seq":1234567,"ts":1541152486013,"humidity":41.25,"pressure":1013.2,"state":"running","flags":[1,0,1],"fw":"2.14.1","rssi":-61,"uptime":8640000"#;

/// The best of many short samples: what the code costs when nothing else runs.
fn best(mut work: impl FnMut()) -> f64 {
    let rounds = 200;
    let mut best = f64::MAX;
    for _ in 0..3_000 {
        let start = Instant::now();
        (0..rounds).for_each(|_| work());
        best = best.min(start.elapsed().as_nanos() as f64 / f64::from(rounds));
    }
    best
}

/// One step of a rule on a payload.
fn measure(rule: &str, payload: &str) -> f64 {
    let set = load(&[Source { name: "rules.sql", text: rule }], &Host::edge(Vec::new())).unwrap();
    let mut scratch = Scratch::new(1);
    let mut state = RuleState::default();
    let mut rows = Rows::default();
    let message =
        Message { topic: "s/1/t", payload: payload.as_bytes(), clientid: "press-7-a", ..Message::default() };
    best(|| {
        scratch.begin();
        let mut fuel = 100_000;
        let (rule, message) = (&set.rules[0], black_box(&message));
        black_box(step(rule, &mut state, message, &mut scratch, Now { wall_ms: 1 }, &mut fuel, &mut rows));
    })
}

fn main() {
    let payload = |temp: &str, last: bool| {
        if last { format!(r#"{{{REST},"temp":{temp}}}"#) } else { format!(r#"{{"temp":{temp},{REST}}}"#) }
    };
    let payloads = [
        ("match, first", payload("72.5", false)),
        ("match, last", payload("72.5", true)),
        ("no match, first", payload("21.5", false)),
        ("no match, last", payload("21.5", true)),
        ("no such field", payload("21.5", true).replace("temp", "tamp")),
    ];
    for dialect in ["ferrule", "emqx"] {
        let rule = format!(
            "CREATE RULE hot WITH (dialect = '{dialect}') AS INSERT INTO cloud
             SELECT payload.temp AS t, clientid FROM \"s/+/t\" WHERE payload.temp > 50;"
        );
        for (name, payload) in &payloads {
            println!("{dialect:8} {name:16} {:6.1} ns  ({} bytes)", measure(&rule, payload), payload.len());
        }
    }
    let text = &payloads[1].1;
    let parse = best(|| {
        black_box(serde_json::from_str::<serde_json::Value>(black_box(text)).unwrap());
    });
    println!("serde_json's parse        {parse:6.1} ns  ({} bytes)", text.len());
    let elements: Vec<String> = (0..100).map(|n| format!(r#"{{"name":"s{n}","value":{n}.5}}"#)).collect();
    let batch = format!(r#"{{"sensors":[{}]}}"#, elements.join(","));
    for dialect in ["ferrule", "emqx"] {
        let rule = format!(
            "CREATE RULE each WITH (dialect = '{dialect}') AS INSERT INTO cloud
             FOREACH payload.sensors AS s DO s.name AS name, s.value AS value FROM \"s/+/t\";"
        );
        println!("{dialect:8} FOREACH          {:6.1} ns  (a row of 100)", measure(&rule, &batch) / 100.0);
    }
}
