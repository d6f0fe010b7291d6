//! Measures one step of the reference rule in nanoseconds: `cargo run --release -p ferrule-rules --example step_ns`.
//!
//! The rule and its budget (400 ns with a match, 250 ns without): 200 bytes of JSON, one field compared, two columns.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement")]

use std::hint::black_box;
use std::time::Instant;

use ferrule_rules::{Host, Message, Now, Rows, RuleState, Scratch, Source, load, step};

fn main() {
    let text = r#"CREATE RULE hot AS INSERT INTO cloud
        SELECT payload.temp AS t, clientid FROM "s/+/t" WHERE payload.temp > 50;"#;
    let set = load(&[Source { name: "rules.sql", text }], &Host::edge(Vec::new())).unwrap();
    let payload = |temp: &str, last: bool| {
        let rest = r#""device":"press-7","line":"north","seq":1234567,"ts":1541152486013,"humidity":41.25,"pressure":1013.2,"state":"running","flags":[1,0,1],"fw":"2.14.1","rssi":-61,"uptime":8640000"#;
        if last { format!(r#"{{{rest},"temp":{temp}}}"#) } else { format!(r#"{{"temp":{temp},{rest}}}"#) }
    };
    let mut scratch = Scratch::new(1);
    let mut state = RuleState::default();
    let mut rows = Rows::default();
    for (name, payload) in [
        ("match, first", payload("72.5", false)),
        ("match, last", payload("72.5", true)),
        ("no match, first", payload("21.5", false)),
        ("no match, last", payload("21.5", true)),
        ("no such field", payload("21.5", true).replace("temp", "tamp")),
    ] {
        let message = Message {
            topic: "s/1/t",
            payload: payload.as_bytes(),
            clientid: "press-7-a",
            ..Message::default()
        };
        let mut best = f64::MAX;
        // Short samples, the best of many: what the code costs when nothing else runs.
        for _ in 0..5_000 {
            let rounds = 200;
            let start = Instant::now();
            for _ in 0..rounds {
                scratch.begin();
                let mut fuel = 10_000;
                black_box(step(
                    &set.rules[0],
                    &mut state,
                    black_box(&message),
                    &mut scratch,
                    Now { wall_ms: 1 },
                    &mut fuel,
                    &mut rows,
                ));
            }
            best = best.min(start.elapsed().as_nanos() as f64 / f64::from(rounds));
        }
        println!("{name:16} {best:6.1} ns  ({} bytes)", payload.len());
    }
}
