//! What `rules test` says agrees with what happened.

use proptest::prelude::*;

use super::*;
use crate::{Failure, RuleSet, load};

fn expression() -> impl Strategy<Value = String> {
    let leaf = prop::sample::select(vec![
        "payload.a",
        "payload.b.c",
        "payload.gone",
        "qos",
        "clientid",
        "1",
        "'x'",
        "'12'",
        "2.5",
        "one",
        "s",
        "s.v",
        "null",
        "int(payload.a)",
        "payload.l[1]",
        "true",
    ]);
    let leaf = leaf.prop_map(str::to_owned).boxed();
    leaf.prop_recursive(3, 12, 2, |inner| {
        let op = prop::sample::select(vec!["+", "*", "div", "=", ">", "<>", "AND", "OR"]);
        prop_oneof![
            (inner.clone(), op, inner.clone()).prop_map(|(a, op, b)| format!("({a} {op} {b})")),
            inner.clone().prop_map(|a| format!("NOT ({a} = 1)")),
            (inner.clone(), inner).prop_map(|(a, b)| format!("CASE WHEN {a} = 1 THEN {b} ELSE {a} END")),
        ]
    })
}

/// What becomes of one message in the first rule.
fn outcome<'r>(set: &'r RuleSet, source: &Source<'r>, payload: &'r str) -> Outcome<'r> {
    let input =
        Message { topic: "t", payload: payload.as_bytes(), qos: 1, clientid: "c", ..Message::default() };
    Outcome::of(&set.rules[0], source, &input, &mut RuleState::default(), &mut Scratch::new(0))
}

/// All that is to be known of a case that went wrong.
fn said(outcome: &Outcome<'_>, query: &str, payload: &str) -> String {
    let mut out = Vec::new();
    outcome.print(&mut out).expect("memory");
    format!("{query}\n{payload}\n{}", String::from_utf8_lossy(&out))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// What is said agrees with what happened.
    #[test]
    fn reasons_are_those_of_the_evaluator(
        list in expression(),
        first in expression(),
        second in expression(),
        foreach in any::<bool>(),
        payload in prop::sample::select(vec![
            r#"{"a":1,"b":{"c":"12"},"l":[{"v":1},{"v":2},{}]}"#, r#"{"a":"hot","b":2,"l":[]}"#, r#"{"a":true,"l":[1]}"#,
            r#"{"l":"no"}"#, "hello", "",
        ]),
    ) {
        let query = if foreach {
            format!("FOREACH {list} AS one, payload.l AS s DO {list} AS x INCASE {first} = 1 AND {second} = 1 FROM \"t\"")
        } else {
            format!("SELECT {list} AS one, clientid FROM \"t\" WHERE {first} = 1 AND {second} = 1 AND qos = 1")
        };
        let text = format!("SET dialect = 'emqx'; CREATE RULE r AS INSERT INTO log {query};");
        let source = Source { name: "f", text: &text };
        let Ok(set) = load(&[source], &Host::edge(Vec::new())) else { return Ok(()) };
        let outcome = outcome(&set, &source, payload);
        let said = || said(&outcome, &query, payload);
        prop_assert!(outcome.json().is_object());
        match outcome.ended {
            Step::Emit => prop_assert!(outcome.fault.is_none(), "{}", said()),
            Step::NoMatch => {
                prop_assert!(outcome.fault.is_none(), "{}", said());
                prop_assert!(outcome.why.parts.iter().any(|part| part.value == "false"), "{}", said());
            }
            Step::Failed(Failure::Exception) => prop_assert!(outcome.fault.is_some(), "{}", said()),
            Step::Failed(Failure::NoResult) => {
                prop_assert!(outcome.why.each.is_some() && outcome.fault.is_none(), "{}", said());
            }
            Step::Failed(_) | Step::OutOfFuel => {}
        }
    }

    /// The same of the default dialect, where nothing fails and INCASE may be NULL.
    #[test]
    fn reasons_of_the_default_dialect(
        list in expression(),
        first in expression(),
        second in expression(),
        foreach in any::<bool>(),
        payload in prop::sample::select(vec![
            r#"{"a":1,"b":{"c":1},"l":[{"v":1},{"v":2},{}]}"#, r#"{"a":"hot","b":2,"l":[]}"#, r#"{"a":true,"l":[1]}"#,
            r#"{"l":"no"}"#, "hello", "",
        ]),
    ) {
        let [list, first, second] = [list, first, second]
            .map(|text| text.replace("one", "qos").replace("int(", "to_integer(").replace("null", "payload.null"));
        let query = if foreach {
            format!("FOREACH payload.l AS s DO ({list}) AS x INCASE typeof({first}) <> 'boolean' AND ({second}) IS NULL FROM \"t\" WHERE payload.a IS NOT NULL OR typeof(payload.l) = 'string'")
        } else {
            let [list, first, second] = [list, first, second].map(|text| text.replace("s.v", "payload.a"));
            format!("SELECT ({list}) AS x, clientid AS s FROM \"t\" WHERE typeof({first}) <> 'boolean' AND ({second}) IS NULL AND qos = 1")
        };
        let text = format!("CREATE RULE r AS INSERT INTO log {query};");
        let source = Source { name: "f", text: &text };
        let Ok(set) = load(&[source], &Host::edge(Vec::new())) else { return Ok(()) };
        let outcome = outcome(&set, &source, payload);
        let said = || said(&outcome, &query, payload);
        prop_assert!(outcome.json().is_object());
        let rejects = outcome.why.parts.iter().any(|part| part.value != "true");
        match (outcome.ended, &outcome.why.each) {
            (Step::Emit, Some(Each::Elements { count, rejected, .. })) => {
                prop_assert_eq!(count - rejected, outcome.rows.rows.len(), "{}", said());
            }
            (Step::Emit, each) => prop_assert!(!foreach && each.is_none(), "{}", said()),
            (Step::NoMatch, Some(Each::Elements { count, rejected, .. })) => {
                prop_assert!(count == rejected && !rejects, "{}", said());
            }
            (Step::NoMatch, Some(Each::NoArray { .. })) => prop_assert!(!rejects, "{}", said()),
            (Step::NoMatch, None) => prop_assert!(rejects, "{}", said()),
            (ended, _) => prop_assert!(false, "{ended:?} {}", said()),
        }
    }
}
