//! Every configuration and rule file in this folder loads; those in `rules/` pass the message that they name themselves.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};

use ferrule_node::config::{CloudConfig, EdgeConfig, Overrides};
use ferrule_rules::{
    ConnectorSchema, Host, Message, Now, OptionKind, OptionSchema, Rows, RuleSet, RuleState, Scratch, Source,
    Step, TargetKind, TargetSchema, cli, load, step,
};

#[path = "../../rules/tests/common/worker.rs"]
mod worker;

fn here() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The options that the examples use, no more: a new one in an example is added here and thought about.
fn connectors() -> Vec<ConnectorSchema> {
    let option = |name, kind, required| OptionSchema { name, kind, required, default: None, help: "" };
    let table = TargetSchema { kind: TargetKind::Name, option: Some("table"), required: true };
    let topic = TargetSchema { kind: TargetKind::Name, option: Some("topic"), required: true };
    let (text, template) = (OptionKind::Text, OptionKind::Template);
    let connector =
        |name, target, options| ConnectorSchema { name, target, options, passthrough: None, help: "" };
    let columns = option("columns", OptionKind::Columns, false);
    vec![
        connector(
            "sqlite",
            table,
            vec![option("path", text, true), option("table", template, false), columns.clone()],
        ),
        connector(
            "postgres",
            table,
            vec![option("url", OptionKind::Secret, true), option("table", template, false), columns],
        ),
        connector(
            "kafka",
            topic,
            vec![
                option("brokers", text, true),
                option("topic", template, false),
                option("key", template, false),
            ],
        ),
    ]
}

fn loaded(path: &Path, text: &str, host: &Host) -> RuleSet {
    worker::offer();
    let name = path.display().to_string();
    let source = Source { name: &name, text };
    load(&[source], host).unwrap_or_else(|errors| {
        let all: Vec<String> =
            errors.iter().map(|error| error.render(&Source { name: &name, text })).collect();
        panic!("{}", all.join("\n"))
    })
}

fn sql_files(folder: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(here().join(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "sql"));
    files.sort();
    assert!(!files.is_empty(), "{folder}");
    files
}

/// The value of an option in a `-- try:` line; a payload stands in single quotes.
fn option<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = line.split_once(&format!("{name} "))?;
    match rest.strip_prefix('\'') {
        Some(quoted) => quoted.split_once('\'').map(|(value, _)| value),
        None => rest.split(' ').next(),
    }
}

#[test]
fn each_rule_passes_the_message_of_its_file() {
    for path in sql_files("rules") {
        let text = fs::read_to_string(&path).unwrap();
        // Events come from a broker: their rules load, and that is all that can be tried here.
        if text.contains("FROM \"$events/") {
            assert!(!loaded(&path, &text, &Host::edge(Vec::new())).rules.is_empty(), "{}", path.display());
            continue;
        }
        // The cookbook's are tried in rules/tests/cookbook.rs, which knows what must come.
        if text.contains("\n-- => ") {
            continue;
        }
        let line = text.lines().nth(1).filter(|line| line.starts_with("-- try: ferrule-")).unwrap();
        let name = format!("examples/rules/{}", path.file_name().unwrap().to_string_lossy());
        assert!(line.contains(&format!(" rules test {name} ")), "{line}");
        // An edge's are few and light: those that it has.
        let host = if line.contains("ferrule-edge") {
            ferrule_node::connectors::host(true, &ferrule_sinks::light())
        } else {
            Host::cloud(connectors())
        };
        let host = Host { files: Some(cli::files()), ..host };
        let set = loaded(&path, &text, &host);
        let message = Message {
            topic: option(line, "--topic").unwrap(),
            payload: option(line, "--payload").unwrap().as_bytes(),
            clientid: option(line, "--clientid").unwrap_or("press-7-sensor"),
            qos: 1,
            timestamp_ms: 1_795_558_634_000,
            ..Message::default()
        };
        for rule in &set.rules {
            let (mut scratch, mut state, mut rows) = (Scratch::new(1), RuleState::default(), Rows::default());
            let now = Now { wall_ms: 1_795_558_634_000 };
            scratch.begin();
            let step = step(rule, &mut state, &message, &mut scratch, now, &mut 100_000, &mut rows);
            assert!(matches!(step, Step::Emit), "{name}: rule {}: {step:?}", rule.name);
            // FOREACH makes as many for each element that it takes.
            assert_eq!(rows.rows.len() % rule.inserts.len(), 0, "{name}: rule {}", rule.name);
            assert!(!rows.rows.is_empty(), "{name}: rule {}", rule.name);
            assert_eq!(state.counters.type_errors.iter().sum::<u64>(), 0, "{name}: rule {}", rule.name);
        }
    }
}

#[test]
fn rules_of_the_set_ups_load() {
    for folder in ["demo", "edge-to-cloud"] {
        for path in sql_files(folder) {
            let edge = path.file_name().is_some_and(|name| name == "edge.sql");
            let host = if edge { Host::edge(Vec::new()) } else { Host::cloud(connectors()) };
            let set = loaded(&path, &fs::read_to_string(&path).unwrap(), &host);
            assert!(!set.rules.is_empty(), "{}", path.display());
        }
    }
    for folder in ["nginx", "haproxy"] {
        let path = here().join(folder).join("who.sql");
        loaded(&path, &fs::read_to_string(&path).unwrap(), &Host::edge(Vec::new()));
    }
    let path = here().join("cluster/who.sql");
    loaded(&path, &fs::read_to_string(&path).unwrap(), &Host::cloud(connectors()));
    // The demo puts these two together.
    let both = ["cloud.sql", "cloud-kafka.sql"]
        .map(|name| fs::read_to_string(here().join("demo").join(name)).unwrap());
    loaded(Path::new("both"), &both.join("\n"), &Host::cloud(connectors()));
}

#[test]
fn configurations_load() {
    let overrides = Overrides::default();
    for folder in ["demo", "edge-to-cloud"] {
        let folder = here().join(folder);
        let edge = EdgeConfig::load(&folder.join("edge.toml"), &overrides)
            .unwrap_or_else(|errors| panic!("{errors}"));
        let cloud = CloudConfig::load(&folder.join("cloud.toml"), &overrides)
            .unwrap_or_else(|errors| panic!("{errors}"));
        for rules in [edge.broker.node.rules.unwrap(), cloud.broker.node.rules.unwrap()] {
            assert!(rules.is_file(), "{}", rules.display());
        }
        assert!(edge.uplink.is_some());
    }
    // What is behind a proxy: they run in tests/tests/proxies.rs, too.
    for folder in ["nginx", "haproxy"] {
        for name in ["tls", "passthrough", "node-1", "node-2", "websocket"] {
            let file = here().join(folder).join(name).with_extension("toml");
            let edge = EdgeConfig::load(&file, &overrides).unwrap_or_else(|errors| panic!("{errors}"));
            assert!(edge.broker.node.rules.unwrap().is_file(), "{}", file.display());
        }
    }
    // Of a cluster: it runs in tests/tests/cluster.
    let cloud = CloudConfig::load(&here().join("cluster/ferrule.toml"), &overrides)
        .unwrap_or_else(|errors| panic!("{errors}"));
    assert!(cloud.broker.node.rules.unwrap().is_file());
}
