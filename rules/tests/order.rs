//! Rules of a set share one scan of the payload, which goes on where the rule before left it, and the parts of WHERE that they have in common: what a
//! rule says must not depend on who asked before.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod common;

use ferrule_rules::*;
use proptest::prelude::*;

/// What rules read: paths that begin alike, go through each other, and end in the same place.
const PATHS: [&str; 14] = [
    "payload.a",
    "payload.a.b",
    "payload.a.b.c",
    "payload.a[1]",
    "payload.a[2].b",
    "payload.a[-1]",
    "payload.b",
    "payload.b.a[1]",
    "payload[1]",
    "payload[2].a",
    "payload",
    "payload.c.'a b'",
    "payload.a[payload.b]",
    "payload.gone",
];

/// A rule's query, of the default dialect or EMQX's.
fn query() -> impl Strategy<Value = (bool, String)> {
    let path = || prop::sample::select(&PATHS[..]);
    (any::<bool>(), path(), path(), path(), 0..10usize).prop_map(|(emqx, x, y, z, form)| {
        let function = if emqx { "is_not_null" } else { "length" };
        let query = match form {
            0 => "SELECT * FROM \"#\"".to_owned(),
            1 => format!("SELECT *, {x} AS x FROM \"#\" WHERE {y} = 1"),
            2 => format!("SELECT {x} AS x, {y} AS y.z, {z} AS w FROM \"#\""),
            3 => format!("SELECT {x} AS x FROM \"#\" WHERE {y} = {z} OR {x} > 1"),
            4 => format!("SELECT {function}({x}) AS n, {y} AS y FROM \"#\" WHERE NOT {z} = 'x'"),
            5 => format!("FOREACH {x} AS e DO e AS e, e.b AS b, e[1] AS f, {y} AS y FROM \"#\""),
            6 => format!("FOREACH {x} AS e DO e.a AS a INCASE e.b = {y} FROM \"#\" WHERE {z} <> 2"),
            7 => format!("SELECT {x} AS x FROM \"#\" WHERE {y} = 1 AND {z} > 1 AND payload.a <> 'x'"),
            8 => format!("SELECT {x} AS x FROM \"#\" WHERE payload.a <> 'x' AND {y} = 1"),
            _ => format!("SELECT {x} + {y} AS s, payload AS p FROM \"#\""),
        };
        (emqx, query)
    })
}

/// JSON in which the paths end somewhere, or something like it.
fn payload() -> impl Strategy<Value = String> {
    let leaf = prop::sample::select(vec![
        "1",
        "2",
        "1.0",
        "\"x\"",
        "\"\\u0061\"",
        "true",
        "null",
        "{}",
        "[]",
        "12345678901234567890",
        "1e400",
        "\"{\\\"b\\\":1}\"",
    ]);
    let json = leaf.prop_map(str::to_owned).prop_recursive(4, 24, 4, |inner| {
        let key = prop::sample::select(vec!["a", "b", "c", "a b", "\\u0061"]);
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4)
                .prop_map(|items| format!("[{}]", items.join(" , "))),
            proptest::collection::vec((key, inner), 0..4).prop_map(|members| {
                let members: Vec<String> =
                    members.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
                format!("{{{}}}", members.join(","))
            }),
        ]
    });
    (json, 0..40usize, any::<bool>())
        .prop_map(|(json, cut, whole)| if whole { json } else { json.chars().take(cut).collect() })
}

/// What each rule says, stepped in an order: how it ended, its rows, its errors.
fn said(set: &RuleSet, order: &[usize], message: &Message<'_>) -> Vec<String> {
    let mut scratch = Scratch::new(7);
    let mut rows = Rows::default();
    let mut said = vec![String::new(); set.rules.len()];
    scratch.begin();
    for &rule in order {
        let mut state = RuleState::default();
        let mut fuel = 1_000_000;
        let now = Now { wall_ms: 1_541_152_486_100 };
        let ended = step(&set.rules[rule], &mut state, message, &mut scratch, now, &mut fuel, &mut rows);
        // How much fuel is left is no answer: what rules have in common is evaluated by the first alone.
        said[rule] = format!("{ended:?} {:?} {:?}", rows.rows, state.counters);
    }
    said
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn rules_do_not_disturb_each_other(
        (queries, order) in proptest::collection::vec(query(), 1..8).prop_flat_map(|queries| {
            let order: Vec<usize> = (0..queries.len()).collect();
            (Just(queries), Just(order).prop_shuffle())
        }),
        payload in payload(),
    ) {
        let text: String = queries.iter().enumerate().map(|(n, (emqx, query))| {
            let dialect = if *emqx { " WITH (dialect = 'emqx')" } else { "" };
            format!("CREATE RULE r{n}{dialect} AS INSERT INTO log, cloud.\"x\" {query};\n")
        }).collect();
        let set = common::rules(&text);
        let message = common::message(payload.as_bytes());
        let in_turn: Vec<usize> = (0..queries.len()).collect();
        let together = said(&set, &order, &message);
        prop_assert_eq!(&together, &said(&set, &in_turn, &message), "{} {:?}", text, order);
        for rule in in_turn {
            let alone = said(&set, &[rule], &message);
            prop_assert_eq!(&alone[rule], &together[rule], "{} {:?}", text, order);
        }
    }
}
