//! Nothing is lost, and formatting twice is formatting once.
#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::*;
use crate::{Host, RuleSet, load};

fn formatted(text: &str) -> String {
    format(&Source { name: "f", text }).text
}

/// Statements before, how they are written.
const CASES: [(&str, &str); 18] = [
    ("create  schema s with(format='x',path='y')", "CREATE SCHEMA s WITH (format = 'x', path = 'y')\n"),
    (
        "create rule r as insert into log select * from \"t\"",
        "CREATE RULE r AS\nINSERT INTO log\nSELECT *\nFROM \"t\"\n",
    ),
    (
        "-- first\n\n\n\ncreate sink k with(connector='kafka',idempotent=true,brokers='b');create sink s with ();",
        "-- first\n\nCREATE SINK k WITH (connector = 'kafka', idempotent = TRUE, brokers = 'b');\nCREATE SINK s WITH ();\n",
    ),
    (
        "CREATE SINK k WITH (connector = 'kafka', brokers = 'k1.example:9092,k2.example:9092', topic = 'a', key = '${clientid}');",
        "CREATE SINK k WITH (\n  connector = 'kafka',\n  brokers = 'k1.example:9092,k2.example:9092',\n  topic = 'a',\n  key = '${clientid}');\n",
    ),
    (
        "CREATE RULE r WITH (ack='none') AS INSERT INTO cloud . \"a/${x}\" with (qos=1,retain=false), log SELECT payload . a [1] AS x,-1 AS y, 1-2 AS z, - - payload.n AS w, coalesce (a , 'b') AS v FROM \"t\" , \"u\" WHERE not a>1 and b in(1,-2) or c between 1 and 2 ;",
        "CREATE RULE r WITH (ack = 'none') AS\nINSERT INTO cloud.\"a/${x}\" WITH (qos = 1, retain = FALSE), log\nSELECT payload.a[1] AS x, -1 AS y, 1 - 2 AS z, - -payload.n AS w, coalesce(a, 'b') AS v\nFROM \"t\", \"u\"\nWHERE NOT a > 1 AND b IN (1, -2) OR c BETWEEN 1 AND 2;\n",
    ),
    (
        "create rule r as insert into log select payload.a_rather_long_name as one, payload.another_rather_long_name as two, case when payload.x > 1 then 'more than one, which is a lot' when payload.x < 0 then 'less than nothing' else 'fine' end as three from \"t\" where payload.a_rather_long_name > 1 and (payload.x = 1 or payload.y = 2) and payload.b between 1 and 2 or payload.c is null;",
        "CREATE RULE r AS\nINSERT INTO log\nSELECT\n  payload.a_rather_long_name AS one,\n  payload.another_rather_long_name AS two,\n  CASE\n    WHEN payload.x > 1 THEN 'more than one, which is a lot'\n    WHEN payload.x < 0 THEN 'less than nothing'\n    ELSE 'fine'\n  END AS three\nFROM \"t\"\nWHERE payload.a_rather_long_name > 1\n  AND (payload.x = 1 OR payload.y = 2)\n  AND payload.b BETWEEN 1 AND 2\n  OR payload.c IS NULL;\n",
    ),
    (
        "create rule r as -- what\ninsert into log -- where to\n-- the row\nselect a /* one */ as b, -- first\n  -- and\n  c\nfrom \"t\"; -- done\n-- end",
        "CREATE RULE r AS -- what\nINSERT INTO log -- where to\n-- the row\nSELECT\n  a /* one */ AS b, -- first\n  -- and\n  c\nFROM \"t\"; -- done\n-- end\n",
    ),
    (
        "set dialect='emqx';create rule r as insert into log foreach payload.s as s do s.a as a,s.b as b incase s.a>1 from \"t\";",
        "SET dialect = 'emqx';\nCREATE RULE r AS\nINSERT INTO log\nFOREACH payload.s AS s\nDO s.a AS a, s.b AS b\nINCASE s.a > 1\nFROM \"t\";\n",
    ),
    // The name of `1+1` is its text; a range is one word.
    (
        "set dialect='emqx'; create rule r as insert into log select 1+1, payload.a[ 1 .. 2 ] as b, topic=~'a/#' as c, [1,2] as d from \"t\" where payload.end=1;",
        "SET dialect = 'emqx';\nCREATE RULE r AS\nINSERT INTO log\nSELECT 1+1, payload.a[1 .. 2] AS b, topic =~ 'a/#' AS c, [1, 2] AS d\nFROM \"t\"\nWHERE payload.end = 1;\n",
    ),
    // Mistakes stay as they are.
    (
        "create rule a as  insert into log select from \"t\";\ncreate  rule b as insert into log select * from \"t\";",
        "create rule a as  insert into log select from \"t\";\nCREATE RULE b AS\nINSERT INTO log\nSELECT *\nFROM \"t\";\n",
    ),
    ("set  dialect='no';\ncreate  rule b as x", "set  dialect='no';\ncreate  rule b as x\n"),
    ("select  * from \"t\";", "select  * from \"t\";\n"),
    ("create rule  x as 'open", "create rule  x as 'open"),
    ("", ""),
    ("\n\n-- alone\n\n", "-- alone\n"),
    (
        "/* a\n  b */ set dialect = 'ferrule' /* c */ ; /* d */ /* e */\n",
        "/* a\n  b */\nSET dialect = 'ferrule' /* c */; /* d */ /* e */\n",
    ),
    ("set dialect = 'ferrule' -- c\n;", "SET dialect = 'ferrule' -- c\n  ;\n"),
    (
        "create rule r as insert into log select 'a\n  b' as x, \"A b\".'c d'.x as y from \"t\";",
        "CREATE RULE r AS\nINSERT INTO log\nSELECT 'a\n  b' AS x, \"A b\".'c d'.x AS y\nFROM \"t\";\n",
    ),
];

#[test]
fn the_shape() {
    for (text, expected) in CASES {
        let got = formatted(text);
        assert_eq!(got, expected, "\n{got}");
        assert_eq!(formatted(&got), got, "twice");
    }
}

/// All words and comments, words in lower case.
fn words(text: &str) -> Vec<String> {
    let (tokens, _) = lex(text);
    let comments = Comments::of(text, &tokens);
    let mut all: Vec<String> = tokens.iter().map(|t| t.span.of(text).to_ascii_lowercase()).collect();
    let mut own = String::new();
    (0..tokens.len()).for_each(|at| {
        comments.trail(at, &mut own);
        own.push('\n');
        comments.lead(at, &mut own);
    });
    all.extend(own.split_whitespace().map(str::to_owned));
    all
}

fn any_text(text: &str) {
    let once = formatted(text);
    assert_eq!(words(text), words(&once), "{text}\n---\n{once}");
    assert_eq!(once, formatted(&once), "{text}");
}

/// What the rules of a set do, but for the words in which `rules test` says it and places.
fn programs(set: &RuleSet) -> Vec<String> {
    let of = |rule: &crate::Rule| {
        let mut program = rule.program.clone();
        let mut parts: Vec<_> = program.condition_parts.iter_mut().collect();
        if let Some(each) = &mut program.each {
            each.text.clear();
            parts.extend(&mut each.incase_parts);
        }
        for part in parts {
            part.text.clear();
            part.reads.iter_mut().for_each(|(text, _)| text.clear());
        }
        if let Some(plan) = &mut program.emqx {
            plan.places = Default::default();
            plan.condition_text.clear();
        }
        format!("{} {:?} {:?} {:?}", rule.name, rule.filters, rule.inserts, program)
    };
    set.rules.iter().map(of).collect()
}

fn compiles_to_the_same(text: &str, host: &Host) {
    any_text(text);
    let once = formatted(text);
    let load = |text: &str| load(&[Source { name: "f", text }], host);
    match (load(text), load(&once)) {
        (Ok(before), Ok(after)) => {
            assert_eq!(programs(&before), programs(&after), "{once}");
            let sinks = |set: &RuleSet| {
                set.sinks.iter().map(|s| format!("{} {:?}", s.name, s.options)).collect::<Vec<_>>()
            };
            assert_eq!(sinks(&before), sinks(&after), "{once}");
        }
        (Err(before), Err(after)) => {
            let said = |found: &[Diagnostic]| found.iter().map(|d| d.message.clone()).collect::<Vec<_>>();
            assert_eq!(said(&before).len(), said(&after).len(), "{text}\n{once}");
        }
        (before, after) => panic!("{text}\n---\n{once}\n{before:?}\n{after:?}"),
    }
}

#[test]
fn files_and_cases_compile_to_the_same_programs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let host = Host::edge(Vec::new());
    let mut files = rule_files(&root.join("../examples/rules")).unwrap();
    files.extend(rule_files(&root.join("tests/import")).unwrap());
    assert!(files.len() > 10);
    for file in files {
        compiles_to_the_same(&std::fs::read_to_string(file).unwrap(), &host);
    }
    for file in ["tests/eval.jsonl", "tests/emqx.jsonl"] {
        for line in std::fs::read_to_string(root.join(file)).unwrap().lines() {
            let Ok(case) = serde_json::from_str::<serde_json::Value>(line) else { continue };
            let (Some(sql), dialect) = (case["sql"].as_str(), case["dialect"].as_str().unwrap_or("ferrule"))
            else {
                continue;
            };
            let sql = sql.trim().trim_end_matches(';');
            let head = if sql.starts_with("CREATE") { "" } else { "CREATE RULE r AS INSERT INTO log " };
            compiles_to_the_same(&format!("SET dialect = '{dialect}'; {head}{sql}\n;"), &host);
        }
    }
    for file in ["tests/diagnostics.txt", "tests/test.txt"] {
        for case in std::fs::read_to_string(root.join(file)).unwrap().split("=== ") {
            compiles_to_the_same(case.split("---\n").next().unwrap(), &host);
        }
    }
}

fn soup() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec![
        "create",
        "rule",
        "sink",
        "r",
        "as",
        "insert",
        "into",
        "log",
        ".",
        "\"a/${x}\"",
        "with",
        "(",
        ")",
        "=",
        "'kafka'",
        ",",
        "select",
        "*",
        "payload",
        ".a",
        "[1]",
        "[",
        "]",
        "-",
        "+",
        "1",
        "2.5",
        "from",
        "\"t/#\"",
        "where",
        "and",
        "or",
        "not",
        "in",
        "between",
        "case",
        "when",
        "then",
        "else",
        "end",
        "'s\n'",
        "<",
        ">=",
        "=~",
        "..",
        "1..3",
        "div",
        ";",
        "-- x\n",
        "\n-- y\n",
        "/* z */",
        "\n/* u\n v */",
        "\n",
        "\n\n\n",
        " ",
        "set",
        "dialect",
        "'emqx'",
        "true",
        "\u{e9}",
        "foreach",
        "do",
        "incase",
        "payload.a as x,",
        "~",
        "%",
        "||",
        "/",
    ]);
    let space = prop::sample::select(vec!["", " ", " ", " ", "\n"]);
    proptest::collection::vec((word, space), 0..60)
        .prop_map(|words| words.iter().map(|(word, space)| format!("{word}{space}")).collect())
}

/// A rule that can be read, with comments at every place.
fn rule() -> impl Strategy<Value = String> {
    let gap = prop::sample::select(vec![
        " ",
        " ",
        " ",
        "\n",
        " -- c\n",
        "\n-- own\n",
        " /* b */ ",
        "\n/* own */ ",
        "\n\n\n",
    ]);
    let base = "create rule r with ( ack = 'none' ) as insert into log , cloud . \"x\" with ( qos = 1 ) select a . b [ 1 ] as \
                c , case when a . b > - 1 then f ( x , 'y' ) else 2 end as d , payload . long_long_long_name as \
                another_long_name from \"t\" , \"u\" where not a = 1 and b in ( 1 , 2 ) or c ;";
    let words: Vec<String> = base.split_whitespace().map(str::to_owned).collect();
    let count = words.len();
    (proptest::collection::vec(gap, count), any::<bool>()).prop_map(move |(gaps, emqx)| {
        let mut text = String::from(if emqx { "set dialect = 'emqx';" } else { "" });
        let last = if emqx { "= 1" } else { "between 1 and 2" };
        for (word, gap) in words.iter().zip(gaps) {
            text.push_str(if word == ";" { last } else { "" });
            text.push_str(word);
            text.push_str(gap);
        }
        text
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn any_words(text in soup()) {
        any_text(&text);
        any_text(&format!("create rule r as insert into log select {text} from \"t\";"));
        any_text(&format!("set dialect = 'emqx'; create rule r as insert into log select a from \"t\" where {text}\n; create sink s with (a = 1);"));
    }

    #[test]
    fn any_characters(text in "\\PC{0,60}") {
        any_text(&text);
    }

    #[test]
    fn comments_everywhere(text in rule()) {
        let once = formatted(&text);
        prop_assert!(once.contains("SELECT"), "left as it was: {}", once);
        any_text(&text);
    }
}
