//! The list of clauses held against the tests that there are, and the page that is made of both.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use crate::OPEN;

/// Every clause of both documents.
const CLAUSES: &str = include_str!("../../conformance/clauses.toml");

/// Where tests are.
const MODULES: [(&str, &str); 20] = [
    ("acks", include_str!("acks.rs")),
    ("auth", include_str!("auth.rs")),
    ("connack", include_str!("connack.rs")),
    ("connect", include_str!("connect.rs")),
    ("disconnect", include_str!("disconnect.rs")),
    ("errors", include_str!("errors.rs")),
    ("flow", include_str!("flow.rs")),
    ("framing", include_str!("framing.rs")),
    ("ping", include_str!("ping.rs")),
    ("publish", include_str!("publish.rs")),
    ("qos", include_str!("qos.rs")),
    ("retain", include_str!("retain.rs")),
    ("session", include_str!("session.rs")),
    ("shared", include_str!("shared.rs")),
    ("subscribe", include_str!("subscribe.rs")),
    ("topics", include_str!("topics.rs")),
    ("unsubscribe", include_str!("unsubscribe.rs")),
    ("uplink", include_str!("uplink.rs")),
    ("websocket", include_str!("websocket.rs")),
    ("will", include_str!("will.rs")),
];

#[derive(Debug)]
struct Clause {
    id: String,
    version: String,
    /// `server`, `client` or `both`.
    side: String,
    says: String,
    why_not: String,
}

/// (id, version).
type Key = (String, String);

fn clauses() -> Vec<Clause> {
    let table: toml::Table = CLAUSES.parse().unwrap();
    let clause = |value: &toml::Value| {
        let text = |key: &str| value.get(key).and_then(toml::Value::as_str).unwrap_or_default().to_owned();
        Clause {
            id: text("id"),
            version: text("version"),
            side: text("side"),
            says: text("says"),
            why_not: text("why_not"),
        }
    };
    table["clause"].as_array().unwrap().iter().map(clause).collect()
}

/// The tests of each clause, from the text of the modules: `clause!(name, "ID", [versions], ...)`.
fn tests() -> BTreeMap<Key, Vec<String>> {
    let mut found: BTreeMap<Key, Vec<String>> = BTreeMap::new();
    for (module, source) in MODULES {
        for call in source.split("clause!(").skip(1) {
            let (name, rest) = call.split_once(',').unwrap();
            let id = rest.split('"').nth(1).unwrap();
            let (_, rest) = rest.split_once('[').unwrap();
            let (versions, _) = rest.split_once(']').unwrap();
            for version in versions.split(',').map(str::trim) {
                let shown = match version {
                    "v3_1_1" => "3.1.1",
                    "v5" => "5.0",
                    other => panic!("{module}: {other} in {name}"),
                };
                let key = (id.to_owned(), shown.to_owned());
                found.entry(key).or_default().push(format!("{module}::{}::{version}", name.trim()));
            }
        }
    }
    found
}

fn page() -> String {
    let (clauses, tests) = (clauses(), tests());
    let mut page = HEAD.to_owned();
    for version in ["3.1.1", "5.0"] {
        let of: Vec<&Clause> = clauses.iter().filter(|clause| clause.version == version).collect();
        let key = |clause: &Clause| (clause.id.clone(), clause.version.clone());
        let ours: Vec<&&Clause> = of.iter().filter(|clause| clause.side != "client").collect();
        let tested = ours.iter().filter(|clause| tests.contains_key(&key(clause))).count();
        let _ = write!(
            page,
            "\n## MQTT {version}\n{} clauses, {} of them a server's; {tested} have a test.\n\n| clause | what it asks | test |\n|---|---|---|\n",
            of.len(),
            ours.len()
        );
        for clause in of {
            let open = OPEN.iter().find(|(id, of, _)| *id == clause.id && *of == version);
            let test = match (tests.get(&key(clause)), open) {
                (_, Some((.., why))) => format!("**not so:** {why}"),
                (Some(names), _) => format!("`{}`", names.join("`, `")),
                (None, None) if clause.side == "client" => format!("a client's: {}", clause.why_not),
                (None, None) => "none".to_owned(),
            };
            let _ = writeln!(page, "| {} | {} | {test} |", clause.id, clause.says);
        }
    }
    page
}

const HEAD: &str = "# Conformance

Every numbered clause of MQTT 3.1.1 and 5.0, what it asks in our words, and the test that shows it over a socket
(`make e2e E2E=conformance`; in `tests/tests/conformance`). Made of `tests/conformance/clauses.toml` and the tests' names by
`FERRULE_WRITE_REPORT=1 cargo test --release --workspace --test conformance list`; a test compares.

What the numbers do not cover (reasons, wills and expiries in each case, MQTT 3.1) is tested in the same place.
";

#[test]
fn tests_are_named_after_clauses_that_there_are() {
    let clauses = clauses();
    let known: BTreeSet<Key> = clauses.iter().map(|c| (c.id.clone(), c.version.clone())).collect();
    assert_eq!(known.len(), clauses.len(), "a clause stands twice");
    for (key, names) in tests() {
        assert!(known.contains(&key), "{names:?}: there is no clause {key:?}");
        assert!(
            !OPEN.iter().any(|(id, of, _)| (*id, *of) == (&*key.0, &*key.1)),
            "{key:?} is said to be open"
        );
    }
    for (id, version, _) in OPEN {
        assert!(known.contains(&(id.to_owned(), version.to_owned())), "there is no clause {id} of {version}");
    }
    assert!(
        clauses.iter().all(|c| c.side != "client" || !c.why_not.is_empty()),
        "a client's clause without its reason"
    );
}

#[test]
fn every_clause_of_a_server_has_a_test_or_says_why_it_does_not_hold() {
    let tests = tests();
    for Clause { id, version, side, .. } in clauses() {
        let is_open = OPEN.iter().any(|(open, of, _)| (*open, *of) == (&*id, &*version));
        let is_tested = tests.contains_key(&(id.clone(), version.clone()));
        assert!(side == "client" || is_open || is_tested, "{id} of {version} has no test");
    }
}

#[test]
fn the_page_of_clauses_is_that_of_the_list_and_the_tests() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/conformance.md");
    if std::env::var_os("FERRULE_WRITE_REPORT").is_some() {
        std::fs::write(&path, page()).unwrap();
    }
    assert!(
        std::fs::read_to_string(&path).is_ok_and(|text| text == page()),
        "run `FERRULE_WRITE_REPORT=1 cargo test --release --workspace --test conformance list`"
    );
}
