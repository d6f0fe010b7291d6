//! The functions of EMQX's dialect: what their descriptions say is run, and docs/rules-emqx.md is made of them.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use ferrule_rules::{EMQX_FUNCTIONS_TOML, cli, emqx_function_names};
use serde_json::{Value, json};

#[path = "common/worker.rs"]
mod worker;

struct Function {
    name: String,
    signature: String,
    meaning: String,
    examples: Vec<(String, String)>,
}

/// Of each group its title and its functions.
fn groups() -> Vec<(String, Vec<Function>)> {
    EMQX_FUNCTIONS_TOML
        .iter()
        .map(|(title, text)| {
            let toml: toml::Table = text.parse().unwrap();
            let text = |value: &toml::Value| value.as_str().unwrap().to_owned();
            let functions = toml["function"].as_array().unwrap().iter().map(|f| Function {
                name: text(&f["name"]),
                signature: text(&f["signature"]),
                meaning: text(&f["meaning"]),
                examples: f["examples"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|example| (text(&example[0]), text(&example[1])))
                    .collect(),
            });
            ((*title).to_owned(), functions.collect())
        })
        .collect()
}

/// What expressions give, as JSON; `error` where the rule fails or cannot be loaded.
fn values(expressions: &[&str]) -> Vec<String> {
    worker::offer();
    let case = |expression: &&str| {
        let sql = format!("SELECT {expression} AS r FROM \"t/#\"");
        let input = json!([{"topic": "t/1", "payload": "{\"x\":1}"}]);
        json!({"id": 0, "dialect": "emqx", "clock_ms": 1_600_000_000_123_i64, "sql": sql, "input": input})
            .to_string()
    };
    let cases: Vec<String> = expressions.iter().map(case).collect();
    let mut out = Vec::new();
    cli::eval(&mut (cases.join("\n") + "\n").as_bytes(), &mut out).unwrap();
    let lines = String::from_utf8(out).unwrap();
    lines
        .lines()
        .map(|line| {
            let result: Value = serde_json::from_str(line).unwrap();
            match result["results"].get(0) {
                Some(emitted) => emitted["rows"][0]["r"].to_string(),
                None => "error".to_owned(),
            }
        })
        .collect()
}

#[test]
fn each_function_is_described_and_its_examples_are_so() {
    let mut named = BTreeSet::new();
    let mut wrong = Vec::new();
    for (_, functions) in groups() {
        for f in functions {
            assert!(named.insert(f.name.clone()), "{} is described twice", f.name);
            assert!(f.signature.starts_with(&f.name), "{}: {}", f.name, f.signature);
            assert!(f.meaning.ends_with('.') && !f.examples.is_empty(), "{}", f.name);
            let expressions: Vec<&str> =
                f.examples.iter().map(|(expression, _)| expression.as_str()).collect();
            for ((expression, expected), got) in f.examples.iter().zip(values(&expressions)) {
                if got != *expected {
                    wrong.push(format!("{expression}: {got}, not {expected}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let there: BTreeSet<String> = emqx_function_names().map(str::to_owned).collect();
    assert_eq!(named, there);
}

const HEAD: &str = "# Functions of EMQX's dialect

For rules `WITH (dialect = 'emqx')`. Names are in lower case; an error ends the rule for this message. Made of `rules/src/functions/emqx/*.toml` by
`FERRULE_WRITE_REPORT=1 cargo test -p ferrule-rules --test functions`; a test runs every example. How the dialect differs from the default one is in
[rules-compatibility.md](rules-compatibility.md). In the SELECT list and in DO there are also the functions of the message: `msgid()`, `qos()`, `topic()`,
`topic(n)`, `flags()`, `flag(name)`, `clientid()`, `username()`, `clientip()`, `peerhost()`, `payload()`, `payload('path')`.
";

fn page() -> String {
    let mut page = HEAD.to_owned();
    for (title, functions) in groups() {
        let _ = write!(page, "\n## {title}\n| function | meaning | examples |\n|---|---|---|\n");
        let cell = |text: &str| text.replace('|', "\\|").replace('\n', " ");
        for f in functions {
            let examples: Vec<String> =
                f.examples.iter().map(|(e, v)| format!("`{}` = `{}`", cell(e), cell(v))).collect();
            let (signature, meaning) = (cell(&f.signature), cell(&f.meaning));
            let _ = writeln!(page, "| `{signature}` | {meaning} | {} |", examples.join("<br>"));
        }
    }
    page
}

#[test]
fn the_page_of_functions_is_made_of_their_descriptions() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/rules-emqx.md");
    if std::env::var_os("FERRULE_WRITE_REPORT").is_some() {
        std::fs::write(&path, page()).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(there, page(), "type: FERRULE_WRITE_REPORT=1 cargo test -p ferrule-rules --test functions");
}
