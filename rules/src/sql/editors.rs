//! What editors colour: `examples/editors/ferrule-rules.tmLanguage.json`, made of the tables that the language is read by.
//!
//! `FERRULE_WRITE_REPORT=1 cargo test -p ferrule-rules --lib editors` writes it anew.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

use super::expr::{RESERVED, RESERVED_EMQX};
use crate::program::Column;
use crate::{emqx_function_names, function_names};

/// Keywords that are names elsewhere.
const MORE_KEYWORDS: [&str; 4] = ["RULE", "SCHEMA", "SINK", "dialect"];
/// Operators that are words.
const OPERATORS: [&str; 7] = ["AND", "OR", "NOT", "IN", "IS", "BETWEEN", "LIKE"];
const CONSTANTS: [&str; 3] = ["TRUE", "FALSE", "NULL"];

fn one_of<'w>(words: impl IntoIterator<Item = &'w str>) -> String {
    words.into_iter().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join("|")
}

fn grammar() -> Value {
    let other = |word: &&str| !OPERATORS.contains(word) && !CONSTANTS.contains(word);
    let keywords = one_of(RESERVED.into_iter().chain(RESERVED_EMQX).chain(MORE_KEYWORDS).filter(other));
    let operators = one_of(OPERATORS.into_iter().chain(["div", "mod"]));
    let functions = one_of(function_names().chain(emqx_function_names()));
    let columns = one_of(Column::ALL.map(|(name, _)| name));
    let name =
        |scope: &str, pattern: String| json!({ "name": format!("{scope}.ferrule-rules"), "match": pattern });
    let include = |names: &[&str]| -> Value {
        names.iter().map(|name| json!({ "include": format!("#{name}") })).collect()
    };
    json!({
        "$schema": "https://raw.githubusercontent.com/martinring/tmlanguage/master/tmlanguage.json",
        "name": "Ferrule rules",
        "scopeName": "source.ferrule-rules",
        "fileTypes": ["rules.sql"],
        "patterns": include(&["comments", "options", "expressions"]),
        "repository": {
            "comments": { "patterns": [
                name("comment.line.double-dash", "--.*$".to_owned()),
                { "name": "comment.block.ferrule-rules", "begin": "/\\*", "end": "\\*/" },
            ] },
            "options": {
                "begin": "\\b(?i:(WITH))\\s*(\\()",
                "beginCaptures": { "1": { "name": "keyword.other.ferrule-rules" } },
                "end": "\\)",
                "patterns": [
                    { "include": "#comments" },
                    name("entity.other.attribute-name", "[\\p{L}_][\\p{L}\\p{N}_$@.]*(?=\\s*=)".to_owned()),
                    { "include": "#expressions" },
                ],
            },
            "expressions": { "patterns": include(&["comments", "strings", "names", "paths", "numbers", "words", "signs"]) },
            "strings": { "name": "string.quoted.single.ferrule-rules", "begin": "'", "end": "'(?!')",
                "patterns": [name("constant.character.escape", "''".to_owned()), { "include": "#templates" }] },
            "names": { "name": "string.quoted.double.ferrule-rules", "begin": "\"", "end": "\"(?!\")",
                "patterns": [name("constant.character.escape", "\"\"".to_owned()), { "include": "#templates" }] },
            "templates": { "patterns": [name("constant.other.placeholder", "\\$\\{[^}'\"]*\\}".to_owned())] },
            "paths": { "patterns": [name("variable.other.property", "(?<=\\.)[\\p{L}_][\\p{L}\\p{N}_$@]*".to_owned())] },
            "numbers": { "patterns": [name("constant.numeric", "\\b[0-9]+(?:\\.[0-9]+)?(?:[eE][+-]?[0-9]+)?\\b".to_owned())] },
            "words": { "patterns": [
                name("keyword.operator.word", format!("\\b(?i:{operators})\\b")),
                name("constant.language", format!("\\b(?i:{})\\b", one_of(CONSTANTS))),
                name("keyword.other", format!("\\b(?i:{keywords})\\b")),
                name("support.function", format!("\\b(?i:{functions})\\b(?=\\s*\\()")),
                name("entity.name.function", "[\\p{L}_][\\p{L}\\p{N}_$@]*(?=\\()".to_owned()),
                name("variable.language", format!("\\b(?:{columns})\\b")),
            ] },
            "signs": { "patterns": [name("keyword.operator", "<>|!=|<=|>=|=~|[=<>+*/%-]".to_owned())] },
        },
    })
}

#[test]
fn the_grammar_is_that_of_the_language() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/editors/ferrule-rules.tmLanguage.json");
    let fresh = serde_json::to_string_pretty(&grammar()).unwrap() + "\n";
    if std::env::var_os("FERRULE_WRITE_REPORT").is_some() {
        std::fs::write(&path, &fresh).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(there, fresh, "type: FERRULE_WRITE_REPORT=1 cargo test -p ferrule-rules --lib editors");
}

/// All patterns of a grammar.
fn patterns<'g>(of: &'g Value, out: &mut Vec<&'g str>) {
    match of {
        Value::Array(items) => items.iter().for_each(|item| patterns(item, out)),
        Value::Object(members) => {
            for (key, value) in members {
                match value {
                    Value::String(text) if matches!(key.as_str(), "match" | "begin" | "end") => {
                        out.push(text)
                    }
                    other => patterns(other, out),
                }
            }
        }
        _ => {}
    }
}

#[test]
fn its_patterns_are_regular_expressions_that_find_what_they_should() {
    let grammar = grammar();
    let mut all = Vec::new();
    patterns(&grammar, &mut all);
    assert!(all.len() > 15);
    for pattern in all {
        fancy_regex::Regex::new(pattern).unwrap();
    }
    // The first pattern that matches at the earliest place decides, as in an editor.
    let scope_of = |line: &str, word: &str| -> Option<String> {
        let at = line.find(word).unwrap();
        let groups = ["paths", "numbers", "words", "signs"];
        let patterns =
            groups.iter().flat_map(|group| grammar["repository"][group]["patterns"].as_array().unwrap());
        patterns
            .filter(|p| {
                let regex = fancy_regex::Regex::new(p["match"].as_str().unwrap()).unwrap();
                regex
                    .find_from_pos(line, at)
                    .unwrap()
                    .is_some_and(|m| m.start() == at && m.end() == at + word.len())
            })
            .map(|p| p["name"].as_str().unwrap().trim_end_matches(".ferrule-rules").to_owned())
            .next()
    };
    for (line, word, scope) in [
        ("select payload.end from", "select", "keyword.other"),
        ("select payload.end from", "end", "variable.other.property"),
        ("select payload.end from", "payload", "variable.language"),
        ("WHERE NOT a", "NOT", "keyword.operator.word"),
        ("x = TRUE", "TRUE", "constant.language"),
        ("round(1.5e3, 2)", "round", "support.function"),
        ("round(1.5e3, 2)", "1.5e3", "constant.numeric"),
        ("rounded (1)", "1", "constant.numeric"),
        ("lenght(x)", "lenght", "entity.name.function"),
        ("a <> b", "<>", "keyword.operator"),
        ("INCASE x", "INCASE", "keyword.other"),
    ] {
        assert_eq!(scope_of(line, word).as_deref(), Some(scope), "{line}: {word}");
    }
    assert_eq!(scope_of("selection", "selection"), None);
}
