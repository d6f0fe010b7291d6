//! What people and programs see: diagnostics with carets, `rules test`, `rules explain`, `rules eval`.
//!
//! A snapshot file is a list of cases, each `=== name`, its input, `---`, what comes out. `UPDATE_EXPECT=1` writes
//! the files anew; read the difference before committing it.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod common;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use common::host;
use ferrule_rules::*;

fn snapshots(file: &str, run: impl Fn(&str, &str) -> String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    let mut fresh = String::new();
    let mut wrong = Vec::new();
    let mut cases = text.split("=== ");
    fresh.push_str(cases.next().unwrap());
    for case in cases {
        let (name, rest) = case.split_once('\n').unwrap();
        let (input, expected) = rest.split_once("---\n").unwrap_or((rest, ""));
        let got = run(name, input);
        let _ = write!(fresh, "=== {name}\n{input}---\n{}\n\n", got.trim_end());
        if got.trim_end() != expected.trim_end() {
            wrong.push(format!("{name}:\n{got}"));
        }
    }
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(&path, fresh.trim_end().to_owned() + "\n").unwrap();
    } else {
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

#[test]
fn diagnostics() {
    snapshots("diagnostics.txt", |_, input| {
        let source = Source { name: "rules.sql", text: input };
        let found = match load(&[source], &host()) {
            Ok(set) => set.warnings,
            Err(found) => found,
        };
        found.iter().map(|d| d.render(&source)).collect()
    });
}

fn with_file(name: &str, text: &str, run: impl FnOnce(PathBuf) -> String) -> String {
    let folder = std::env::temp_dir().join(format!("ferrule-rules-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("rules.sql");
    std::fs::write(&file, text).unwrap();
    let out = run(file).replace(&format!("{}/", folder.display()), "");
    std::fs::remove_dir_all(&folder).unwrap();
    out
}

/// The first line of a case's input is its topic, the second its payload, or `messages` as JSON with ` | ` between them.
#[test]
fn test_command() {
    snapshots("test.txt", |_, input| {
        let (topic, rest) = input.split_once('\n').unwrap();
        let (payload, text) = rest.split_once('\n').unwrap();
        with_file("test", text, |file| {
            let base = cli::TestMessage {
                topic: topic.to_owned(),
                clientid: "press-7".to_owned(),
                timestamp_ms: 1_541_152_486_013,
                ..Default::default()
            };
            let several = payload.strip_prefix("messages ").map(|lines| {
                let lines = lines.split(" | ").map(|line| ("messages".to_owned(), line));
                cli::messages(lines, &base).unwrap()
            });
            let one = || vec![cli::TestMessage { payload: payload.as_bytes().to_vec(), ..base.clone() }];
            let messages = several.unwrap_or_else(one);
            let mut out = Vec::new();
            cli::test(&[file], &host(), &messages, cli::Format::Text, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        })
    });
}

#[test]
fn check_and_explain_commands() {
    let good = "CREATE SINK s WITH (connector = 'sqlite', path = 'a.db', table = 't');
CREATE RULE r AS INSERT INTO s, log SELECT payload.a.b AS b, topic[2] AS line FROM \"x/#\", \"y\"
WHERE payload.n > 1 AND payload.c[1] IS NULL;
CREATE RULE all_of_it AS INSERT INTO cloud SELECT * FROM \"#\";
";
    let run = |text: &str, what: &str| {
        with_file(what, text, |file| {
            let mut out = Vec::new();
            let code = match what {
                "text" => cli::check(&[file], &host(), cli::Format::Text, &mut out),
                "json" => cli::check(&[file], &host(), cli::Format::Json, &mut out),
                _ => cli::explain(&[file], &host(), cli::Format::Text, &mut out),
            };
            format!("{}{}", String::from_utf8(out).unwrap(), code.unwrap())
        })
    };
    assert_eq!(run(good, "text"), "1 file, 2 rules, 1 sink: no errors\n0");
    assert_eq!(
        run("SELEC 1;", "json"),
        "{\"file\":\"rules.sql\",\"line\":1,\"column\":1,\"start\":0,\"end\":5,\"severity\":\"error\",\"message\":\"expected \
         `CREATE RULE`, `CREATE SINK`, `CREATE SCHEMA` or `SET`, found `SELEC`\",\"hint\":null}\n1"
    );
    let explained = run(good, "explain");
    for line in [
        "  from      \"x/#\", \"y\"",
        "  where     payload.n > 1",
        "    and     payload.c[1] IS NULL",
        "  reads     payload.a.b, payload.n, payload.c[1]",
        "  writes    rows to s",
        "  reads     nothing: the payload is not parsed",
        "  writes    the payload untouched to cloud",
    ] {
        assert!(explained.lines().any(|l| l == line), "{line}\n{explained}");
    }
    let emqx = "SET dialect = 'emqx';
CREATE RULE r AS INSERT INTO log FOREACH payload.s AS s DO s.a AS a INCASE s.a > 1 AND s.b = 2 FROM \"t\"
WHERE clientid = 'c' AND payload.n[1].m > 0;";
    assert_eq!(
        run(emqx, "explain").lines().filter(|l| !l.contains("operations")).collect::<Vec<_>>(),
        [
            "rule r (id 6319104045638289002)",
            "  from      \"t\"",
            "  where     clientid = 'c'",
            "    and     payload.n[1].m > 0",
            "  foreach   payload.s",
            "  incase    s.a > 1",
            "    and     s.b = 2",
            "  reads     payload.s, payload.n[1].m",
            "  writes    rows to log",
            "0",
        ]
    );
    let mut out = Vec::new();
    let missing = PathBuf::from("no/such/file.sql");
    let code = cli::check(&[missing], &host(), cli::Format::Text, &mut out).unwrap();
    assert_eq!(code, cli::EXIT_UNREADABLE);
    assert!(String::from_utf8(out).unwrap().starts_with("error: cannot read no/such/file.sql: "));
}

#[test]
fn test_and_explain_as_json() {
    let text = "CREATE RULE r AS INSERT INTO local.\"x/${clientid}\" WITH (qos = 1) SELECT payload.a AS a FROM \"t\" WHERE payload.a > 1;
CREATE RULE e WITH (dialect = 'emqx', enabled = FALSE) AS INSERT INTO log
FOREACH payload.s AS s INCASE s + 1 > 2 FROM \"t\";";
    let run = |payload: &str| {
        with_file("json", text, |file| {
            let message = cli::TestMessage {
                topic: "t".to_owned(),
                payload: payload.as_bytes().to_vec(),
                clientid: "c".to_owned(),
                ..Default::default()
            };
            let mut out = Vec::new();
            let code = cli::test(&[file], &host(), &[message], cli::Format::Json, &mut out).unwrap();
            assert_eq!(code, cli::EXIT_OK);
            String::from_utf8(out).unwrap()
        })
    };
    let got = run(r#"{"a":2.50,"s":[1]}"#);
    let lines: Vec<&str> = got.lines().collect();
    assert_eq!(
        lines,
        [
            r#"{"rule":"r","file":"rules.sql","line":1,"outcome":"matched","filter":"t","rows":[{"a":2.5}],"inserts":[{"sink":"local","target":"x/c","key":null,"qos":1,"retain":null,"options":{},"body":{"row":true}}],"notes":[],"input":0}"#,
            r#"{"rule":"e","file":"rules.sql","line":2,"outcome":"failed","filter":"t","enabled":false,"failure":"no_result","foreach":{"elements":1,"rejected":1,"first_rejected":[{"text":"s + 1 > 2","value":"false","reads":{"s":"1"}}]},"notes":[],"input":0}"#,
        ]
    );
    let got = run(r#"{"a":"1","s":[{}]}"#);
    let lines: Vec<&str> = got.lines().collect();
    assert_eq!(
        lines,
        [
            r#"{"rule":"r","file":"rules.sql","line":1,"outcome":"not_matched","filter":"t","where":[{"text":"payload.a > 1","value":"null","reads":{"payload.a":"\"1\""}}],"notes":[{"kind":"type_mismatch","message":"string > integer"}],"input":0}"#,
            r#"{"rule":"e","file":"rules.sql","line":2,"outcome":"failed","filter":"t","enabled":false,"failure":"exception","fault":{"line":3,"column":31,"text":"s + 1 > 2","message":"type_mismatch: object + integer","reads":{"s":"{}"},"element":1},"notes":[],"input":0}"#,
        ]
    );
    with_file("json", text, |file| {
        let mut out = Vec::new();
        cli::explain(&[file], &host(), cli::Format::Json, &mut out).unwrap();
        let got = String::from_utf8(out).unwrap();
        assert!(got.starts_with(
            r#"{"rule":"r","id":6319104045638289002,"dialect":"ferrule","enabled":true,"from":["t"],"where":["payload.a > 1"],"reads":["payload.a"],"passes_payload":false,"writes":["local"],"state_bytes":0,"operations":"#
        ), "{got}");
        assert!(
            got.contains(r#""where":[],"foreach":"payload.s","incase":["s + 1 > 2"],"reads":["payload.s"]"#),
            "{got}"
        );
        String::new()
    });
}

#[test]
fn explain_says_what_a_rule_remembers() {
    let text = "CREATE RULE r AS INSERT INTO log SELECT * FROM \"t\" WHERE changed(payload.a, topic);
        CREATE RULE e WITH (dialect = 'emqx') AS INSERT INTO log SELECT kv_store_get('a') AS a FROM \"t\";";
    with_file("state", text, |file| {
        let mut out = Vec::new();
        cli::explain(&[file], &host(), cli::Format::Text, &mut out).unwrap();
        let got = String::from_utf8(out).unwrap();
        assert!(got.contains("  state     its own (at most 16777216 bytes), "), "{got}");
        assert!(got.contains("  state     shared by all rules (at most 16777216 bytes), "), "{got}");
        String::new()
    });
}

#[test]
fn fmt_command() {
    with_file("fmt", "create rule r as insert into log select * from \"t\";", |file| {
        let fmt = |file: &Path, check: bool, input: &str| {
            let (mut out, mut told) = (Vec::new(), Vec::new());
            let code =
                cli::fmt(&[file.to_owned()], check, &mut input.as_bytes(), &mut out, &mut told).unwrap();
            (code, String::from_utf8(out).unwrap(), String::from_utf8(told).unwrap())
        };
        let name = file.display();
        let folder = file.parent().unwrap();
        let shape = "CREATE RULE r AS\nINSERT INTO log\nSELECT *\nFROM \"t\";\n";
        assert_eq!(
            fmt(&file, true, ""),
            (cli::EXIT_INVALID, String::new(), format!("{name}: not formatted\n"))
        );
        assert_eq!(fmt(folder, false, ""), (cli::EXIT_OK, String::new(), format!("{name}: formatted\n")));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), shape);
        assert_eq!(std::fs::read_dir(folder).unwrap().count(), 1);
        assert_eq!(fmt(&file, true, ""), (cli::EXIT_OK, String::new(), String::new()));
        assert_eq!(fmt(Path::new("-"), false, shape), (cli::EXIT_OK, shape.to_owned(), String::new()));
        let (code, out, told) = fmt(
            Path::new("-"),
            false,
            "create  rule x;\ncreate rule r as insert into log select * from \"t\";",
        );
        assert_eq!((code, out), (cli::EXIT_INVALID, format!("create  rule x;\n{shape}")));
        assert!(told.starts_with("-:1:15: error: expected `WITH` or `AS`, found `;`\n"), "{told}");
        assert!(told.ends_with("-: statements with mistakes are left as they are\n"), "{told}");
        let (code, _, told) = fmt(Path::new("no/such/file.sql"), false, "");
        assert_eq!(code, cli::EXIT_UNREADABLE);
        assert!(told.starts_with("error: cannot read no/such/file.sql: "), "{told}");
        String::new()
    });
}

#[test]
fn a_folder_is_its_sql_files_in_order() {
    with_file("folder", "CREATE RULE b AS INSERT INTO k SELECT * FROM \"t\";", |file| {
        let folder = file.parent().unwrap().to_owned();
        std::fs::write(folder.join("notes.txt"), "not rules").unwrap();
        std::fs::write(
            folder.join("a.sql"),
            "CREATE SINK k WITH (connector = 'kafka', brokers = 'b', topic = 't');",
        )
        .unwrap();
        let texts = cli::read_files(&[folder]).unwrap();
        let names: Vec<&str> = texts.iter().map(|(name, _)| name.rsplit('/').next().unwrap()).collect();
        assert_eq!(names, ["a.sql", "rules.sql"]);
        let set = load(&cli::sources(&texts), &host()).unwrap();
        assert_eq!((set.rule("b").unwrap().file, set.sink("k").unwrap().file), (1, 0));
        String::new()
    });
}

#[test]
fn eval_command() {
    cases("tests/eval.jsonl");
}

/// What EMQX's dialect does with names, paths, values, conditions and loops.
#[test]
fn emqx() {
    cases("tests/emqx.jsonl");
}

/// Lines in pairs: a case, its result.
fn cases(file: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().filter(|l| !l.is_empty() && !l.starts_with("//")).collect();
    let cases: Vec<&str> = lines.iter().step_by(2).copied().collect();
    let mut out = Vec::new();
    let code = cli::eval(&mut (cases.join("\n") + "\n").as_bytes(), &mut out).unwrap();
    assert_eq!(code, cli::EXIT_OK);
    let got = String::from_utf8(out).unwrap();
    assert_eq!(got.lines().count(), cases.len());
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        let mut got = got.lines();
        let mut fresh = String::new();
        let mut is_case = true;
        for line in text.lines() {
            let comment = line.is_empty() || line.starts_with("//");
            fresh.push_str(if comment || is_case { line } else { got.next().unwrap() });
            fresh.push('\n');
            is_case ^= !comment;
        }
        std::fs::write(&path, fresh).unwrap();
        return;
    }
    for (case, (got, expected)) in cases.iter().zip(got.lines().zip(lines.iter().skip(1).step_by(2))) {
        assert_eq!(got, *expected, "{case}");
    }
}
