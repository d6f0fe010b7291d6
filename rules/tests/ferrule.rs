//! Cases of the default dialect and of how it differs, written from docs/rules.md and docs/rules-functions.md: `tests/ferrule/*.jsonl`.
//!
//! A line is a case of `rules eval` with `expect`, the result that its text makes one expect: `results` to the letter; `errors` in their
//! order, by what is said of each (its `message` is nobody's to rely on); `invalid` with its place, and perhaps a part of its message.
//! `rules eval` itself ignores `expect`: the files can be piped into it as they are.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod common;
#[path = "common/worker.rs"]
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use common::{rules, value};
use ferrule_rules::cli;
use serde_json::Value;
use serde_json::value::RawValue;

/// Members whose text stays as it is: the order of columns and the point of a float count.
type Members = BTreeMap<String, Box<RawValue>>;

fn members(text: &str) -> Members {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn tree(members: &Members, key: &str) -> Value {
    members.get(key).map_or(Value::Null, |raw| serde_json::from_str(raw.get()).unwrap())
}

/// Whether a result is what a case expects.
fn is_as_expected(got: &Members, expected: &Members) -> bool {
    let text = |members: &Members, key: &str| members.get(key).map(|raw| raw.get().to_owned());
    let said = |got: &Value, expected: &Value| {
        let expected = expected.as_object().unwrap();
        expected.iter().all(|(key, value)| match value.as_str() {
            Some(part) if key == "message" => got[key].as_str().unwrap().contains(part),
            _ => got[key] == *value,
        })
    };
    let none = Vec::new();
    let (errors, wanted) = (tree(got, "errors"), tree(expected, "errors"));
    let (errors, wanted) = (errors.as_array().unwrap_or(&none), wanted.as_array().unwrap_or(&none));
    let (invalid, refused) = (tree(got, "invalid"), tree(expected, "invalid"));
    text(got, "results") == text(expected, "results")
        && errors.len() == wanted.len()
        && errors.iter().zip(wanted).all(|(got, expected)| said(got, expected))
        && invalid.is_null() == refused.is_null()
        && (refused.is_null() || said(&invalid, &refused))
}

#[test]
fn cases_of_the_default_dialect() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ferrule");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let (mut ids, mut wrong) = (BTreeSet::new(), Vec::new());
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let cases: Vec<&str> =
            text.lines().filter(|line| !line.is_empty() && !line.starts_with("//")).collect();
        let mut out = Vec::new();
        assert_eq!(cli::eval(&mut (cases.join("\n") + "\n").as_bytes(), &mut out).unwrap(), cli::EXIT_OK);
        let out = String::from_utf8(out).unwrap();
        assert_eq!(out.lines().count(), cases.len());
        for (case, result) in cases.iter().zip(out.lines()) {
            let case = members(case);
            let id = tree(&case, "id").as_str().unwrap().to_owned();
            assert!(
                id.starts_with(&format!("{}/", file.file_stem().unwrap().display())),
                "{id} in {}",
                file.display()
            );
            let expected = case["expect"].get();
            if !is_as_expected(&members(result), &members(expected)) {
                wrong.push(format!("{id}: {}\n  expected {expected}\n  got      {result}", case["sql"]));
            }
            assert!(ids.insert(id.clone()), "{id} is there twice");
        }
    }
    assert!(ids.len() >= 800, "{} cases", ids.len());
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), ids.len(), wrong.join("\n"));
}

/// The page of the language: its table of expressions is true, its rules load.
#[test]
fn the_page_of_the_language() {
    worker::offer();
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/rules.md");
    let page = std::fs::read_to_string(page).unwrap();
    let (_, rest) = page.split_once("<!-- examples: expression = value; payload ").unwrap();
    let (payload, table) = rest.split_once(" -->\n").unwrap();
    let table: Vec<&str> = table.lines().take_while(|line| line.starts_with('|')).skip(2).collect();
    assert!(table.len() > 10);
    for line in table {
        let (expression, expected) = line.split_once("` | `").unwrap();
        let (expression, expected) = (expression.trim_start_matches("| `"), expected.trim_end_matches("` |"));
        assert_eq!(value(expression, payload).0, expected, "{expression}");
    }
    let blocks: Vec<&str> =
        page.split("```sql\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(blocks.len() > 5);
    for block in blocks {
        rules(block);
    }
}
