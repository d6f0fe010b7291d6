//! `jq()`: what programs give, and that none of them harms the process that asks.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::time::{Duration, Instant};

use ferrule_rules::{Host, Message, Now, Rows, RuleSet, RuleState, Scratch, Source, Step, load, step};

#[path = "common/worker.rs"]
mod worker;

fn rules(programs: &[&str]) -> Result<RuleSet, String> {
    worker::offer();
    let rule = |(n, program): (usize, &&str)| {
        format!(
            "CREATE RULE r{n} WITH (dialect = 'emqx') AS INSERT INTO log\n\
             SELECT jq({program}) AS r FROM \"t/#\";\n"
        )
    };
    let text: String = programs.iter().enumerate().map(rule).collect();
    let found = load(&[Source { name: "r.sql", text: &text }], &Host::edge(Vec::new()));
    found.map_err(|found| found.iter().map(|d| format!("{d}\n")).collect())
}

/// With the longest time: the machine may be busy with other tests.
fn patient(call: &str) -> String {
    format!("{call}, 1000")
}

/// One shard with rules of these calls.
struct Bench {
    set: RuleSet,
    states: Vec<RuleState>,
    scratch: Scratch,
}

impl Bench {
    fn new(programs: &[&str]) -> Bench {
        let set = rules(programs).unwrap();
        let states = vec![RuleState::default(); set.rules.len()];
        Bench { set, states, scratch: Scratch::new(1) }
    }

    /// What rule `n` makes of a payload, or the reason of its failure.
    fn ask(&mut self, n: usize, payload: &str) -> String {
        let message = Message { topic: "t/1", payload: payload.as_bytes(), ..Message::default() };
        let (mut rows, mut fuel) = (Rows::default(), 1_000_000);
        let state = &mut self.states[n];
        let before = state.counters.type_errors;
        self.scratch.begin();
        let rule = &self.set.rules[n];
        match step(rule, state, &message, &mut self.scratch, Now::default(), &mut fuel, &mut rows) {
            Step::Emit => match &rows.rows[0].body {
                ferrule_rules::Body::Json(json) => String::from_utf8(json.to_vec()).unwrap(),
                other => panic!("{other:?}"),
            },
            _ => {
                let all = ferrule_rules::TypeError::ALL;
                let mut new =
                    all.iter().filter(|&&e| state.counters.type_errors[e as usize] > before[e as usize]);
                new.next().map_or("?", |error| error.name()).to_owned()
            }
        }
    }
}

/// Processes whose parent is this one, and their states: `Z` has ended and nobody has waited for it.
fn children() -> Vec<(u32, String)> {
    let parent = std::process::id().to_string();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let child = processes.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        let (state, of) = (fields.next()?, fields.next()?);
        (of == parent).then(|| (pid, state.to_owned()))
    });
    child.collect()
}

#[test]
fn programs_give_their_outputs() {
    let cases = [
        ("'.a + .b', payload", r#"{"a":1,"b":2}"#, r#"{"r":[3]}"#),
        ("'.[]', payload.l", r#"{"l":[1,"x",null,{"k":[]}]}"#, r#"{"r":[1,"x",null,{"k":[]}]}"#),
        ("'.'", "", "invalid"),
        ("'empty', payload", "{}", r#"{"r":[]}"#),
        ("'.', payload.missing", "{}", r#"{"r":["undefined"]}"#),
        // Integers keep their digits, floats without decimals are integers, as jq writes them.
        ("'.', payload.n", r#"{"n":9007199254740993}"#, r#"{"r":[9007199254740993]}"#),
        ("'.', payload", "123456789012345678901234567890", r#"{"r":[123456789012345678901234567890]}"#),
        ("'4 / 2, 1 / 4, nan, 1e1000', 0", "", r#"{"r":[2,0.25,null,1.7976931348623157e+308]}"#),
        ("'.', payload", "not json", "invalid_json"),
        ("'.a', payload", "[]", "jq_error"),
        ("'error(\"no\")', payload", "{}", "jq_error"),
        ("'try error(\"no\") catch .', 1", "", r#"{"r":["no"]}"#),
        ("'1, halt, 2', 1", "", r#"{"r":[1]}"#),
        ("'limit(10000; repeat(1))', 1", "", ""),
        ("'limit(10001; repeat(1))', 1", "", "jq_error"),
        ("'[limit(2000000; repeat(1))]', 1", "", "jq_"),
        ("'{(1): 2}', 1", "", "jq_error"),
        ("payload.p, 1", r#"{"p":". + 1"}"#, r#"{"r":[2]}"#),
        ("payload.p, 1", r#"{"p":". +"}"#, "jq_error"),
        ("'now | type', 1", "", r#"{"r":["number"]}"#),
    ];
    for (call, payload, expected) in cases {
        if expected == "invalid" {
            assert!(rules(&[call]).is_err(), "{call}");
            continue;
        }
        let got = Bench::new(&[&patient(call)]).ask(0, payload);
        assert!(
            if expected.ends_with('}') { got == expected } else { got.starts_with(expected) },
            "{call}: {got}"
        );
    }
}

#[test]
fn mistakes_point_into_the_program() {
    let cases = [
        ("'.a | nosuch', 1", "r.sql:2:17: ", "unknown filter `nosuch/0`"),
        ("'.a | (1', 1", "r.sql:2:19: ", "expected closing parenthesis"),
        ("'.a |', 1", "r.sql:2:", "expected term"),
        ("'env', 1", "r.sql:2:12: ", "unknown filter `env/0`"),
        ("'$ENV', 1", "r.sql:2:12: ", "unknown variable `$ENV`"),
        ("'input', 1", "r.sql:2:12: ", "unknown filter `input/0`"),
        ("'include \"a\"; .', 1", "r.sql:2:", "no modules to include"),
        ("'import \"a\" as $x; $x', 1", "r.sql:2:", "no files to import"),
        ("'import \"a\" as x; x::f', 1", "r.sql:2:", "no modules to include"),
    ];
    for (call, place, message) in cases {
        let found = rules(&[call]).unwrap_err();
        assert!(found.contains(place) && found.contains(message), "{call}: {found}");
    }
    // Deeper than any stack: the worker ends, not this process.
    for unit in ["(", "[", "-", "\"\\(", ".|"] {
        let _ = rules(&[&format!("'{}', 1", unit.repeat(30_000 / unit.len()))]);
    }
}

#[test]
fn hostile_programs_are_stopped_and_others_go_on() {
    let hostile = [
        "def f: f; f",
        "def f: [f]; f",
        "def f: 1 + f; f",
        "last(repeat(1))",
        "[range(1e9)]",
        "[repeat(\"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\")] | length",
        "reduce range(100) as $i (\"x\"; . + .) | length",
        "reduce range(1000000) as $i (0; [.])",
        "[limit(1000000000; repeat([1]))]",
    ];
    let calls: Vec<String> = hostile.iter().map(|program| format!("'{program}', payload, 300")).collect();
    let mut calls: Vec<&str> = calls.iter().map(String::as_str).collect();
    calls.push("'. + 1', payload, 1000");
    let mut bench = Bench::new(&calls);
    for n in 0..hostile.len() {
        assert_eq!(bench.ask(n, "1"), "jq_stopped", "{}", hostile[n]);
        assert_eq!(bench.ask(hostile.len(), "1"), r#"{"r":[2]}"#);
    }
}

#[test]
fn a_program_that_is_stopped_again_and_again_is_not_run_for_a_while() {
    let mut bench = Bench::new(&["'def f: f; f', payload, 30", "'.', payload, 1000"]);
    for _ in 0..3 {
        assert_eq!(bench.ask(0, "1"), "jq_stopped");
    }
    let start = Instant::now();
    for _ in 0..100 {
        assert_eq!(bench.ask(0, "1"), "jq_stopped");
    }
    assert!(start.elapsed() < Duration::from_secs(3), "each would take its 30 ms if it ran");
    assert_eq!(bench.ask(1, "1"), r#"{"r":[1]}"#);
}

#[test]
fn a_worker_that_was_killed_is_replaced_and_none_stays_behind() {
    // A process of its own, so that no other test's workers are among its children.
    let Some(alone) = std::env::args().position(|a| a == "--exact") else {
        let name = "a_worker_that_was_killed_is_replaced_and_none_stays_behind";
        let program = std::env::current_exe().unwrap();
        let mut alone = std::process::Command::new(program);
        let status = alone.args([name, "--exact", "--test-threads=1"]).status().unwrap();
        assert!(status.success());
        return;
    };
    assert!(alone > 0);
    let mut bench = Bench::new(&["'. + 1', payload, 1000", "'. + 2', payload, 1000"]);
    assert!(children().is_empty(), "loading leaves none");
    for _ in 0..3 {
        assert_eq!(bench.ask(0, "1"), r#"{"r":[2]}"#);
        assert_eq!(bench.ask(1, "1"), r#"{"r":[3]}"#);
        let workers = children();
        assert_eq!(workers.len(), 1, "one for all rules");
        let kill = std::process::Command::new("kill").args(["-9", &workers[0].0.to_string()]).status();
        assert!(kill.unwrap().success());
        // Its threads hold its end of the socket a moment longer than the first of them is there.
        let task = format!("/proc/{}/task", workers[0].0);
        let threads = || std::fs::read_dir(&task).map_or(0, |threads| threads.count());
        let deadline = Instant::now() + Duration::from_secs(30);
        while children().iter().any(|(_, state)| state != "Z") || threads() > 1 {
            assert!(Instant::now() < deadline, "the worker outlives its kill");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    assert_eq!(bench.ask(0, "1"), r#"{"r":[2]}"#);
    drop(bench);
    assert!(children().is_empty());
}

/// Processor time that a process has used, in the kernel's ticks.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields).split(' ');
    fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
}

#[test]
fn a_program_is_not_to_blame_for_who_kills_its_worker() {
    // A process of its own, so that no other test's workers are among its children.
    if !std::env::args().any(|a| a == "--exact") {
        let program = std::env::current_exe().unwrap();
        let name = "a_program_is_not_to_blame_for_who_kills_its_worker";
        let mut alone = std::process::Command::new(program);
        assert!(alone.args([name, "--exact", "--test-threads=1"]).status().unwrap().success());
        return;
    }
    // On a busy machine the program may be late without anybody's doing.
    let deadline = Instant::now() + Duration::from_secs(100);
    while !survives_a_kill() {
        assert!(Instant::now() < deadline, "what somebody kills counts as stopped");
    }
}

/// Whether a program whose worker is killed while it runs gives its output all the same.
fn survives_a_kill() -> bool {
    let mut bench = Bench::new(&["'last(range(.))', payload, 1000"]);
    let mut gives = |count: u64| bench.ask(0, &count.to_string()) == format!("{{\"r\":[{}]}}", count - 1);
    // As much as takes a while on this machine.
    let mut count = 1_000;
    let worker = loop {
        let before = children().first().map_or(0, |(pid, _)| ticks(*pid));
        if !gives(count) {
            return false;
        }
        let worker = children()[0].0;
        if ticks(worker) - before >= 5 {
            break worker;
        }
        count *= 2;
    };
    let before = ticks(worker);
    let killer = std::thread::spawn(move || {
        let deadline = Instant::now() + Duration::from_secs(30);
        while ticks(worker) < before + 2 {
            assert!(Instant::now() < deadline, "the worker does nothing");
            if ticks(worker) < before {
                // It was late, and is gone.
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let kill = std::process::Command::new("kill").args(["-9", &worker.to_string()]).status();
        assert!(kill.unwrap().success());
    });
    let given = gives(count);
    killer.join().unwrap();
    // Another one answered: the first was killed over the question.
    given && children().iter().any(|(pid, state)| *pid != worker && state != "Z")
}

#[test]
fn in_the_default_dialect_what_fails_is_null() {
    worker::offer();
    let cases = [
        ("JQ('.a + .b', payload)[1]", r#"{"a":1,"b":2}"#, r#"{"r":3}"#, None),
        (
            "jq('.[]', payload.l)",
            r#"{"l":[9007199254740993,{"k":[]}]}"#,
            r#"{"r":[9007199254740993,{"k":[]}]}"#,
            None,
        ),
        ("jq('.', payload.missing)", "{}", r#"{"r":null}"#, None),
        ("jq('error(\"no\")', payload)", "{}", r#"{"r":null}"#, Some("jq_error")),
        ("jq('.', 'no json')", "{}", r#"{"r":null}"#, Some("invalid_json")),
        ("jq('def f: f; f', 1, 20)", "{}", r#"{"r":null}"#, Some("jq_stopped")),
        ("jq('.', 1, -1)", "{}", r#"{"r":null}"#, Some("bad_argument")),
    ];
    for (call, payload, expected, counted) in cases {
        let text = format!("CREATE RULE r AS INSERT INTO log SELECT {call} AS r FROM \"t/#\";");
        let set = load(&[Source { name: "r.sql", text: &text }], &Host::edge(Vec::new())).unwrap();
        let mut bench = Bench { set, states: vec![RuleState::default()], scratch: Scratch::new(1) };
        assert_eq!(bench.ask(0, payload), expected, "{call}");
        let counts = bench.states[0].counters.type_errors;
        let mut named = ferrule_rules::TypeError::ALL.iter().filter(|&&e| counts[e as usize] > 0);
        assert_eq!(named.next().map(|error| error.name()), counted, "{call}");
    }
    let text = "CREATE RULE r AS INSERT INTO log\nSELECT jq('.a | nosuch', 1) AS r FROM \"t/#\";";
    let found = load(&[Source { name: "r.sql", text }], &Host::edge(Vec::new())).unwrap_err();
    assert!(found[0].to_string().starts_with("r.sql:2:17: "), "{}", found[0]);
}

#[test]
fn many_rules_share_one_worker() {
    let calls: Vec<String> = (0..150).map(|n| patient(&format!("'. + {n}', payload"))).collect();
    let calls: Vec<&str> = calls.iter().map(String::as_str).collect();
    let mut bench = Bench::new(&calls);
    for round in 0..2 {
        for n in 0..calls.len() {
            assert_eq!(bench.ask(n, &round.to_string()), format!("{{\"r\":[{}]}}", n + round));
        }
    }
}
