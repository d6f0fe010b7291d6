//! The functions of each dialect: what their descriptions say is run, and the pages of docs are made of them.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use ferrule_rules::{
    EMQX_FUNCTIONS_TOML, FUNCTIONS_ELSEWHERE, FUNCTIONS_TOML, cli, emqx_function_names, function_names,
};
use serde_json::{Value, json};

#[path = "common/worker.rs"]
mod worker;

/// What descriptions are given as: groups by title, and TOML.
type Groups = &'static [(&'static str, &'static str)];

struct Function {
    name: String,
    also: Vec<String>,
    signature: String,
    meaning: String,
    examples: Vec<(String, String)>,
    /// How the function of this name differs in another engine.
    elsewhere: Vec<(&'static str, String)>,
}

/// Of each group its title and its functions.
fn groups(described: Groups) -> Vec<(&'static str, Vec<Function>)> {
    described
        .iter()
        .map(|(title, text)| {
            let toml: toml::Table = text.parse().unwrap();
            let text = |value: &toml::Value| value.as_str().unwrap().to_owned();
            let functions = toml["function"].as_array().unwrap().iter().map(|f| Function {
                name: text(&f["name"]),
                also: f
                    .get("also")
                    .map_or(Vec::new(), |also| also.as_array().unwrap().iter().map(text).collect()),
                signature: text(&f["signature"]),
                meaning: text(&f["meaning"]),
                examples: f["examples"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|example| (text(&example[0]), text(&example[1])))
                    .collect(),
                elsewhere: [("emqx", "EMQX"), ("ekuiper", "eKuiper")]
                    .into_iter()
                    .filter_map(|(key, engine)| Some((engine, text(f.get(key)?))))
                    .collect(),
            });
            (*title, functions.collect())
        })
        .collect()
}

/// The schemas of the examples.
const SCHEMAS: [&str; 2] = [
    r#"CREATE SCHEMA reading WITH (type = 'avro', definition = '{"type":"record","name":"reading","fields":[{"name":"t","type":"int"}]}');"#,
    r#"CREATE SCHEMA tagged WITH (type = 'avro', registry_id = 7, registry = 'hq', definition = '{"type":"record","name":"reading","fields":[{"name":"t","type":"int"}]}');"#,
];

/// What expressions give, as JSON; `error` where the rule fails or cannot be loaded.
fn values(dialect: &str, expressions: &[&str]) -> Vec<String> {
    worker::offer();
    let case = |expression: &&str| {
        let sql = format!("SELECT {expression} AS r FROM \"t/#\"");
        let input = json!([{"topic": "t/1", "payload": "{\"x\":1}"}]);
        json!({"id": 0, "dialect": dialect, "setup": SCHEMAS, "clock_ms": 1_600_000_000_123_i64, "sql": sql, "input": input})
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

fn each_is_described(dialect: &str, described: Groups, there: BTreeSet<&str>) {
    let mut named = BTreeSet::new();
    let mut wrong = Vec::new();
    for (_, functions) in groups(described) {
        for f in functions {
            for name in f.also.iter().chain([&f.name]) {
                assert!(named.insert(name.clone()), "{name} is described twice");
            }
            assert!(f.signature.starts_with(&format!("{}(", f.name)), "{}: {}", f.name, f.signature);
            assert!(f.meaning.ends_with('.') && !f.examples.is_empty(), "{}", f.name);
            assert!(f.elsewhere.iter().all(|(_, text)| text.ends_with('.')), "{}", f.name);
            let expressions: Vec<&str> =
                f.examples.iter().map(|(expression, _)| expression.as_str()).collect();
            for ((expression, expected), got) in f.examples.iter().zip(values(dialect, &expressions)) {
                if got != *expected {
                    wrong.push(format!("{expression}: {got}, not {expected}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let named: BTreeSet<&str> = named.iter().map(String::as_str).collect();
    assert_eq!(named, there);
}

#[test]
fn each_function_is_described_and_its_examples_are_so() {
    each_is_described("ferrule", &FUNCTIONS_TOML, function_names().collect());
}

#[test]
fn each_function_of_emqx_is_described_and_its_examples_are_so() {
    each_is_described("emqx", &EMQX_FUNCTIONS_TOML, emqx_function_names().collect());
}

/// Where a name means something else in EMQX's dialect, its description says so: at least where the examples say that it does.
#[test]
fn differences_to_emqx_are_told() {
    let there: BTreeSet<&str> = emqx_function_names().collect();
    let mut untold = Vec::new();
    for (_, functions) in groups(&FUNCTIONS_TOML) {
        for f in functions.iter().filter(|f| there.contains(f.name.as_str())) {
            let told = f.elsewhere.iter().any(|(engine, _)| *engine == "EMQX");
            // What fails there is seen.
            let examples = f
                .examples
                .iter()
                .filter(|(expression, value)| value != "null" && !expression.contains("NULL"));
            let examples: Vec<&(String, String)> = examples.collect();
            let expressions: Vec<&str> = examples.iter().map(|(expression, _)| expression.as_str()).collect();
            for (example, got) in examples.iter().zip(values("emqx", &expressions)) {
                if got != example.1 && got != "error" && example.1 != "error" && !told {
                    untold.push(format!("{}: {} there", example.0, got));
                }
            }
        }
    }
    assert!(untold.is_empty(), "{}", untold.join("\n"));
}

const HEAD: &str = "# Functions of the default dialect

Names are in any case. Made of `rules/src/functions/ferrule/*.toml` by `FERRULE_WRITE_REPORT=1 cargo test -p ferrule-rules --test functions`; a test runs every
example, with `{\"x\":1}` for a payload. The functions of EMQX's dialect are in [rules-emqx.md](rules-emqx.md); where one of the same name means something else, there or
in eKuiper, it is told here, and once more in [a table](#names-that-mean-something-else-elsewhere).

- A NULL argument gives NULL unless it says otherwise. An argument of another type or out of its range gives NULL, counted as `type_mismatch` or `bad_argument`;
  nothing turns text into numbers or numbers into text silently.
- What is looked into comes first: `strpos(text, part)`, `array_position(array, element)`. Places count from 1, from the end with negative numbers.
- Characters are Unicode's code points. Where bytes are asked for, text is its UTF-8; bytes that come out are text when they are UTF-8, as with payloads.
- Times are milliseconds since 1970.
- What can never be right, whatever the message is (a pattern, a filter, a format, a unit that is a mistake), is an error when the rule is loaded.
- No text, array or object is made larger than 1 MiB.
";

const HEAD_EMQX: &str = "# Functions of EMQX's dialect

For rules `WITH (dialect = 'emqx')`. Names are in lower case; an error ends the rule for this message. Made of `rules/src/functions/emqx/*.toml` by
`FERRULE_WRITE_REPORT=1 cargo test -p ferrule-rules --test functions`; a test runs every example. How the dialect differs from the default one is in
[rules-compatibility.md](rules-compatibility.md). In the SELECT list and in DO there are also the functions of the message: `msgid()`, `qos()`, `topic()`,
`topic(n)`, `flags()`, `flag(name)`, `clientid()`, `username()`, `clientip()`, `peerhost()`, `payload()`, `payload('path')`.
The schemas `reading` and `tagged` of the examples are an Avro record with the integer `t`; `tagged` is number 7 in the registry `hq`.
";

fn page(head: &str, described: Groups) -> String {
    let mut page = head.to_owned();
    for (title, functions) in groups(described) {
        let _ = write!(page, "\n## {title}\n| function | meaning | examples |\n|---|---|---|\n");
        let cell = |text: &str| text.replace('|', "\\|").replace('\n', "\\n");
        for f in functions {
            let examples: Vec<String> =
                f.examples.iter().map(|(e, v)| format!("`{}` = `{}`", cell(e), cell(v))).collect();
            let also: String = f.also.iter().map(|name| format!("<br>also `{name}`")).collect();
            let elsewhere =
                f.elsewhere.iter().map(|(engine, text)| format!("<br>*{engine}*: {}", cell(text)));
            let (signature, meaning) = (cell(&f.signature), cell(&f.meaning));
            let elsewhere: String = elsewhere.collect();
            let _ =
                writeln!(page, "| `{signature}`{also} | {meaning}{elsewhere} | {} |", examples.join("<br>"));
        }
    }
    page
}

/// Functions of the default dialect whose names eKuiper has as well, as it registers them.
const EKUIPER: &str = "abs acos array_concat array_distinct array_except array_flatten array_intersect array_max array_min
    array_position array_remove array_sort array_union asin atan atan2 cardinality ceil ceiling changed chr
    coalesce concat cos cosh cot crc32 date_diff decode degrees encode exp floor format format_time keys lag length ln log
    lower lpad ltrim md5 mod now object pi pow power radians regexp_matches regexp_replace regexp_substr repeat reverse round
    rpad rtrim sequence sha1 sha256 sha512 sign sin sinh sqrt substring tan tanh trim trunc upper values";

/// Names that several engines have, with different meanings; and names that are not here.
fn clashes() -> String {
    let mut page = "
## Names that mean something else elsewhere
EMQX's meanings are those of the dialect `'emqx'`, eKuiper's are for those who come from it. What a cell does not tell is as here, but that a NULL and an error
make NULL here, end the rule for the message in EMQX, and are nil and an error in eKuiper.

| name | here | EMQX | eKuiper |
|---|---|---|---|
"
    .to_owned();
    let emqx: BTreeSet<&str> = emqx_function_names().collect();
    let ekuiper: BTreeSet<&str> = EKUIPER.split_whitespace().collect();
    let mut rows = Vec::new();
    for (_, functions) in groups(&FUNCTIONS_TOML) {
        for f in functions.iter().filter(|f| !f.elsewhere.is_empty()) {
            let told = |engine: &str, names: &BTreeSet<&str>| {
                let told = f.elsewhere.iter().find(|(of, _)| *of == engine).map(|(_, text)| text.as_str());
                told.unwrap_or(match names.contains(f.name.as_str()) {
                    true => "as here",
                    false => "not there",
                })
                .to_owned()
            };
            let cell = |text: &str| text.replace('|', "\\|").replace('\n', "\\n");
            let (there, further) = (told("EMQX", &emqx), told("eKuiper", &ekuiper));
            let name = &f.name;
            let here = cell(&f.meaning);
            rows.push(format!("| `{name}` | {here} | {} | {} |\n", cell(&there), cell(&further)));
        }
    }
    rows.sort();
    page.extend(rows);
    page.push_str(
        "\n## Names that are not here\nOf EMQX, eKuiper and databases; `rules check` says the same.\n\n| name | write |\n|---|---|\n",
    );
    let mut names: Vec<_> = FUNCTIONS_ELSEWHERE.to_vec();
    names.sort_unstable();
    for (name, here) in names {
        let _ = writeln!(page, "| `{name}` | `{here}` |");
    }
    page
}

/// What is told of the names over which people stumble, whatever else is.
#[test]
fn clashes_are_told() {
    let page = clashes();
    for name in ["abs", "concat", "length", "log", "mod", "round", "split", "substr", "trim"] {
        assert!(page.contains(&format!("\n| `{name}` | ")), "{name}");
    }
    let there: BTreeSet<&str> = function_names().collect();
    let stray: Vec<&str> = EKUIPER.split_whitespace().filter(|name| !there.contains(name)).collect();
    assert!(stray.is_empty(), "not here: {stray:?}");
}

/// Every function for programs: what completions, hovers and signature help are made of.
#[test]
fn completions_are_made_of_descriptions() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/editors");
    let mut all = Vec::new();
    let mut snippets = serde_json::Map::new();
    for (dialect, described) in [("ferrule", &FUNCTIONS_TOML[..]), ("emqx", &EMQX_FUNCTIONS_TOML[..])] {
        for (group, functions) in groups(described) {
            for f in functions {
                let (name, signature, meaning) = (&f.name, &f.signature, &f.meaning);
                let examples: Vec<Value> =
                    f.examples.iter().map(|(e, v)| json!({ "expression": e, "value": v })).collect();
                all.push(json!({
                    "name": name, "dialect": dialect, "also": f.also, "group": group, "signature": signature,
                    "meaning": meaning, "examples": examples,
                }));
                let key = if dialect == "emqx" { format!("{name} (EMQX)") } else { name.clone() };
                let body = if signature.starts_with(&format!("{name}()")) { "()" } else { "($1)" };
                snippets.insert(
                    key,
                    json!({
                        "prefix": name, "body": format!("{name}{body}"),
                        "description": format!("{signature}\n{meaning}"),
                    }),
                );
            }
        }
    }
    for (file, fresh) in [
        ("ferrule-rules.functions.json", Value::Array(all)),
        ("ferrule-rules.code-snippets", Value::Object(snippets)),
    ] {
        let path = folder.join(file);
        let fresh = serde_json::to_string_pretty(&fresh).unwrap() + "\n";
        if std::env::var_os("FERRULE_WRITE_REPORT").is_some() {
            std::fs::write(&path, &fresh).unwrap();
        }
        let there = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(there == fresh, "type: FERRULE_WRITE_REPORT=1 cargo test -p ferrule-rules --test functions");
    }
}

#[test]
fn the_pages_of_functions_are_made_of_their_descriptions() {
    for (file, head, described) in [
        ("rules-functions.md", HEAD, &FUNCTIONS_TOML[..]),
        ("rules-emqx.md", HEAD_EMQX, &EMQX_FUNCTIONS_TOML[..]),
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(file);
        let mut page = page(head, described);
        if head == HEAD {
            page.push_str(&clashes());
        }
        if std::env::var_os("FERRULE_WRITE_REPORT").is_some() {
            std::fs::write(&path, &page).unwrap();
        }
        let there = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(there == page, "type: FERRULE_WRITE_REPORT=1 cargo test -p ferrule-rules --test functions");
    }
}
