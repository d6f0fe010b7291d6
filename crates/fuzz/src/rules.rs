//! Arbitrary text as rules, and what compiles on an arbitrary payload: lexer, parser, checker, both planners, the machine, functions, templates.
//!
//! An input is a byte (which dialect, whether a whole file or a query that is given its statement), the text up to a line that is `---`, and payloads behind further such
//! lines.
//!
//! | invariant | check |
//! |---|---|
//! | no panic | of the loader or of a step: what the engine catches counts as well |
//! | a mistake has a place | the span of each diagnostic lies in the text, and the diagnostic can be shown |
//! | what was asked before does not matter | rules of a set say the same in either order |
//! | an end | fuel and the bounds of rows end every step; rows of a message stay within theirs |

use std::cell::RefCell;

use ferrule_rules::{
    Body, Failure, Host, Message, Now, Rows, RuleSet, RuleState, Scratch, Source, Step, load, step,
};

/// Operations of a step: enough to come everywhere.
const FUEL: u64 = 20_000;

/// One text and its payloads.
///
/// # Panics
/// When an invariant is broken.
pub fn rules(bytes: &[u8]) {
    let Some((&choice, rest)) = bytes.split_first() else { return };
    let text = String::from_utf8_lossy(rest);
    let mut parts = text.split("\n---\n");
    let given = parts.next().unwrap_or_default();
    let dialect = if choice & 1 == 0 { "ferrule" } else { "emqx" };
    let file = match choice & 2 {
        0 => given.to_owned(),
        _ => format!(
            "CREATE RULE a WITH (dialect = '{dialect}') AS INSERT INTO local.\"x/${{.}}\" {given};\n\
             CREATE RULE b WITH (dialect = '{dialect}') AS INSERT INTO log {given};"
        ),
    };
    let source = Source { name: "f", text: &file };
    match load(&[source], &Host::edge(Vec::new())) {
        Ok(set) => parts.take(3).for_each(|payload| run(&set, payload.as_bytes())),
        Err(diagnostics) => {
            assert!(!diagnostics.is_empty(), "refused without a reason");
            for diagnostic in diagnostics {
                let span = diagnostic.span;
                assert!(
                    span.start <= span.end && span.end as usize <= file.len(),
                    "a place outside of the text"
                );
                assert!(diagnostic.render(&source).contains(&diagnostic.message));
            }
        }
    }
}

thread_local! {
    static SCRATCH: RefCell<[Scratch; 2]> = RefCell::new([Scratch::new(1), Scratch::new(1)]);
}

/// Each rule of a set on a payload, forwards and backwards.
fn run(set: &RuleSet, payload: &[u8]) {
    SCRATCH.with_borrow_mut(|scratches| {
        let forwards: Vec<usize> = (0..set.rules.len().min(8)).collect();
        let backwards: Vec<usize> = forwards.iter().rev().copied().collect();
        let mut said = Vec::new();
        for (order, scratch) in [forwards, backwards].iter().zip(scratches) {
            scratch.begin();
            let mut ends = vec![None; order.len()];
            for &at in order {
                ends[at] = Some(one(set, at, payload, scratch));
            }
            said.push(ends);
        }
        // What is drawn or remembered differs; so does what runs out of fuel by having asked first.
        let differs = |rule: usize| {
            let rule = &set.rules[rule];
            let text = rule.text.to_lowercase();
            rule.keeps().is_some()
                || ["random", "uuid", "proc_dict", "now"].iter().any(|name| text.contains(name))
        };
        for (at, pair) in said[0].iter().zip(&said[1]).enumerate() {
            let is_out = |end: &Option<String>| end.as_ref().is_some_and(|end| end.starts_with("OutOfFuel"));
            if !differs(at) && !is_out(pair.0) && !is_out(pair.1) {
                assert_eq!(pair.0, pair.1, "rule {at} depends on who asked before");
            }
        }
    });
}

/// How a rule ended, in words.
fn one(set: &RuleSet, at: usize, payload: &[u8], scratch: &mut Scratch) -> String {
    let message = Message { topic: "t/1/x", payload, clientid: "c", timestamp_ms: 1, ..Message::default() };
    let (mut state, mut rows, mut fuel) = (RuleState::default(), Rows::default(), FUEL);
    let now = Now { wall_ms: 1_700_000_000_000 };
    let ended = step(&set.rules[at], &mut state, &message, scratch, now, &mut fuel, &mut rows);
    assert_ne!(ended, Step::Failed(Failure::Panicked), "{}", set.rules[at].text);
    let body = |body: &Body| match body {
        Body::Payload => 0,
        Body::Json(bytes) | Body::Text(bytes) | Body::Encoded(bytes) => bytes.len(),
    };
    let bytes: usize = rows.rows.iter().map(|row| body(&row.body)).sum();
    let bound = (Scratch::MAX_OUTPUT + (1 << 16)) * set.rules[at].inserts.len().max(1);
    assert!(bytes <= bound, "{bytes} bytes of rows");
    format!("{ended:?} {:?} {:?}", rows.rows, state.counters.type_errors)
}
