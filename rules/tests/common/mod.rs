//! What the tests share: a host with one connector of every kind of option, and one message through one rule.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used, reason = "tests")]

use ferrule_rules::*;

pub fn host() -> Host {
    let option = |name, kind, required, default, help| OptionSchema { name, kind, required, default, help };
    let kafka = ConnectorSchema {
        name: "kafka",
        target: TargetSchema { kind: TargetKind::Name, option: Some("topic"), required: true },
        options: vec![
            option("brokers", OptionKind::Text, true, None, "host:port, several with commas"),
            option("topic", OptionKind::Template, false, None, "the Kafka topic"),
            option("key", OptionKind::Template, false, Some("${clientid}"), "the record's key"),
            option("headers", OptionKind::Template, false, None, "name=value pairs"),
            option("linger", OptionKind::Duration, false, Some("5ms"), "how long a batch waits"),
            option("batch", OptionKind::Size, false, Some("64KiB"), "the largest batch"),
            option("retries", OptionKind::Int, false, Some("3"), "how often"),
            option("idempotent", OptionKind::Bool, false, Some("true"), "exactly once per session"),
            option("compression", OptionKind::Word(&["none", "zstd", "lz4"]), false, Some("none"), "codec"),
            option("password", OptionKind::Secret, false, None, "SASL password"),
        ],
        passthrough: Some("librdkafka."),
        help: "Apache Kafka",
    };
    let sqlite = ConnectorSchema {
        name: "sqlite",
        target: TargetSchema { kind: TargetKind::Name, option: Some("table"), required: true },
        options: vec![
            option("path", OptionKind::Text, true, None, "the database file"),
            option("table", OptionKind::Template, false, None, "the table"),
            option("columns", OptionKind::Columns, false, None, "columns of a new table"),
        ],
        passthrough: None,
        help: "a SQLite file",
    };
    Host::edge(vec![kafka, sqlite])
}

pub fn rules(text: &str) -> RuleSet {
    let source = Source { name: "rules.sql", text };
    load(&[source], &host()).unwrap_or_else(|diagnostics| {
        let shown: Vec<String> = diagnostics.iter().map(|d| d.render(&source)).collect();
        panic!("{}", shown.join("\n"))
    })
}

/// The message of most tests.
pub fn message(payload: &[u8]) -> Message<'_> {
    Message {
        topic: "factory/line-3/press",
        payload,
        qos: 1,
        retain: true,
        clientid: "press-7",
        username: Some("sensors"),
        peerhost: Some("10.0.0.7"),
        message_id: Some(&"edge-1.b.0.42"),
        timestamp_ms: 1_541_152_486_013,
        ..Message::default()
    }
}

/// One step of the first rule.
pub fn run(set: &RuleSet, message: &Message<'_>) -> (Step, Rows, RuleState) {
    let mut scratch = Scratch::new(7);
    let mut state = RuleState::default();
    let mut rows = Rows::default();
    let mut fuel = 1_000_000;
    scratch.begin();
    let now = Now { wall_ms: 1_541_152_486_100 };
    let ended = step(&set.rules[0], &mut state, message, &mut scratch, now, &mut fuel, &mut rows);
    (ended, rows, state)
}

/// The value of an expression as JSON, and the type errors that it met.
pub fn value(expr: &str, payload: &str) -> (String, Vec<&'static str>) {
    let set = rules(&format!("CREATE RULE r AS INSERT INTO log SELECT {expr} AS r FROM \"#\";"));
    let (ended, rows, state) = run(&set, &message(payload.as_bytes()));
    let Body::Json(json) = &rows.rows.first().unwrap_or_else(|| panic!("{expr}: {ended:?}")).body else {
        panic!("a row")
    };
    let json = String::from_utf8(json.to_vec()).unwrap();
    let errors = TypeError::ALL
        .iter()
        .filter(|&&e| state.counters.type_errors[e as usize] > 0)
        .map(|e| e.name())
        .collect();
    (json.strip_prefix("{\"r\":").unwrap().strip_suffix('}').unwrap().to_owned(), errors)
}
