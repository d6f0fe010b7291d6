//! A message that a rule does not keep costs no allocation, type errors included.
#![allow(unsafe_code, missing_docs, clippy::unwrap_used, reason = "tests; a counting allocator needs it")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use common::{message, rules};
use ferrule_rules::*;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: all calls go on to `System` unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|n| n.set(n.get() + 1));
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps `dealloc`'s contract.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn no_match_allocates_nothing() {
    let set = rules(
        "CREATE RULE a AS INSERT INTO log SELECT payload.temp AS t, clientid FROM \"#\" WHERE payload.temp > 50;
         CREATE RULE b AS INSERT INTO cloud.\"x/${t}\" SELECT payload.temp * 2 AS t FROM \"#\"
           WHERE t > 90 AND topic[2] = 'line-3' OR clientid IN ('a', 'b') OR payload.name BETWEEN 'x' AND 'y'
           OR CASE payload.list[-1] WHEN 1 THEN TRUE ELSE NULL END OR length(payload.name) > 9;
         CREATE RULE c AS INSERT INTO log SELECT clientid FROM \"#\"
           WHERE starts_with(topic, 'nowhere/') OR contains(payload.name, 'zz') OR left(trim(payload.name), 2) = 'zz'
           OR topic_matches(topic, 'x/#') OR array_contains(payload.list, 'q') OR array_sum(payload.list) > 99
           OR get_bit(round(payload.temp), 9) = 1 OR date_part('year', timestamp) = 1900 OR greatest(payload.temp, 1) > 99
           OR split_part(topic, '/', 2) = 'x' OR read_int(payload.name, 0, 8) = 0;",
    );
    nothing_allocated(&set, &[Step::NoMatch; 3]);
}

#[test]
fn no_match_allocates_nothing_in_emqx_s_dialect() {
    let set = rules(
        "CREATE RULE a WITH (dialect = 'emqx') AS INSERT INTO log
           SELECT payload.temp AS t, clientid FROM \"#\" WHERE payload.temp > 50 AND t > 1 AND payload.name = 'x';",
    );
    nothing_allocated(&set, &[Step::NoMatch]);
}

/// The steps of the rules with messages that match none of them; what is no JSON ends EMQX's rules.
fn nothing_allocated(set: &RuleSet, ends: &[Step]) {
    let payloads = [
        r#"{"temp":21.5,"name":"abc","list":[1,2,3]}"#,
        r#"{"temp":"warm","name":5}"#,
        "not json at all",
        r#"{"name":"only this"}"#,
    ];
    let mut scratch = Scratch::new(1);
    let mut states = vec![RuleState::default(); ends.len()];
    let mut rows = Rows::default();
    let mut pass = || {
        for payload in payloads {
            scratch.begin();
            let message = message(payload.as_bytes());
            for ((rule, state), end) in set.rules.iter().zip(&mut states).zip(ends) {
                let now = Now { wall_ms: 1 };
                let ended = step(rule, state, &message, &mut scratch, now, &mut 1000, &mut rows);
                let failed = rule.dialect == Dialect::Emqx && ended == Step::Failed(Failure::Exception);
                assert!(ended == *end || failed, "{payload}: {ended:?}");
            }
        }
    };
    // Buffers grow in the first pass.
    pass();
    let before = ALLOCATIONS.with(Cell::get);
    for _ in 0..100 {
        pass();
    }
    assert_eq!(ALLOCATIONS.with(Cell::get) - before, 0);
}
