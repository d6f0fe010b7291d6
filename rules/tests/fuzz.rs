//! Nothing panics: any rules text, any payload.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod common;

use common::host;
use ferrule_rules::*;
use proptest::prelude::*;

/// Text made of the language's own words, which gets deeper into the parser than noise does.
fn soup() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        8 => prop::sample::select(vec![
            "CREATE", "RULE", "SINK", "r", "AS", "INSERT", "INTO", "log", "cloud", ".", "\"a/${x}\"", "WITH", "(", ")",
            "connector", "=", "'kafka'", ",", "SELECT", "*", "payload", ".a", "[1]", "[", "]", "-", "1", "2.5", "1e9",
            "FROM", "\"t/#\"", "WHERE", "AND", "OR", "NOT", "IN", "IS", "NULL", "BETWEEN", "CASE", "WHEN", "THEN", "ELSE",
            "END", "'s'", "''", "<", ">=", "<>", "+", "/", "div", "mod", "%", "topic", "round", "concat", "left", "join", "split", "object", "format", "date_trunc", ";", "--x\n",
            "/*", "*/", "SET", "dialect", "'ferrule'", "TRUE", "\u{e9}", "\"", "'", "${", "}", "FOREACH", "GROUP", "BY",
        ]).prop_map(str::to_owned),
        1 => "\\PC{0,4}",
    ];
    proptest::collection::vec(word, 0..60).prop_map(|words| words.join(" "))
}

fn any_load(text: &str) {
    let source = Source { name: "f", text };
    match load(&[source], &host()) {
        Ok(_) => {}
        Err(diagnostics) => {
            assert!(!diagnostics.is_empty());
            for d in diagnostics {
                assert!(d.span.start <= d.span.end && d.span.end as usize <= text.len());
                assert!(d.render(&source).contains(&d.message));
            }
        }
    }
}

/// One case of `rules eval`: an answer comes, and it is JSON.
fn any_case(dialect: &str, sql: &str, payload: &str) {
    let case = serde_json::json!({"id": 1, "dialect": dialect, "sql": sql, "input": [{"topic": "t/1", "payload": payload}]});
    let mut out = Vec::new();
    cli::eval(&mut (case.to_string() + "\n").as_bytes(), &mut out).unwrap();
    if let Err(error) = serde_json::from_slice::<serde_json::Value>(&out) {
        assert!(error.to_string().contains("out of range"), "{error}: {}", String::from_utf8_lossy(&out));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_text(text in "\\PC{0,80}") {
        any_load(&text);
    }

    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        any_load(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn any_words(text in soup()) {
        any_load(&text);
        any_load(&format!("CREATE RULE r AS INSERT INTO log SELECT {text} FROM t;"));
        any_load(&format!("CREATE RULE r AS INSERT INTO log SELECT * FROM t WHERE {text};"));
    }

    /// What loads in EMQX's dialect runs.
    #[test]
    fn any_words_in_emqx_s_dialect(text in soup(), payload in "(\\{\"a\":)?[0-9\\[\\]{}\",:ab]{0,12}\\}?") {
        any_load(&format!("SET dialect = 'emqx'; CREATE RULE r AS INSERT INTO log {text};"));
        any_case("emqx", &format!("SELECT {text} FROM \"#\""), &payload);
        any_case("emqx", &format!("FOREACH payload.a AS x, [1..3] AS y DO {text} INCASE y > 1 FROM \"#\" WHERE 1 = 1"), &payload);
        any_case("emqx", &format!("SELECT payload.a AS {text} FROM \"#\""), &payload);
    }

    /// Every function, with whatever arguments.
    #[test]
    fn any_call_in_emqx_s_dialect(
        name in prop::sample::select(emqx_function_names().collect::<Vec<_>>()),
        args in proptest::collection::vec(prop::sample::select(vec![
            "payload.a", "payload", "null", "1", "0", "-1", "2.5", "99999999999999999999", "'a'", "''", "'{\"a\":1}'",
            "'%Y-%m-%d %H:%M:%S'", "'second'", "'Z'", "'1~p~s~B'", "[1, 'b']", "[]", "[[]]", "map_new()", "true",
            "hexstr2bin('ff00')", "4096", "9223372036854775807", "'(a+)+$'", "'leading'", "'md5'", "'+08:00'", "1e300",
        ]), 0..6),
        payload in "(\\{\"a\":)?[0-9\\[\\]{}\",:ab]{0,12}\\}?",
    ) {
        any_case("emqx", &format!("SELECT {name}({}) AS r FROM \"#\"", args.join(", ")), &payload);
    }

    #[test]
    fn any_call(
        name in prop::sample::select(function_names().collect::<Vec<_>>()),
        args in proptest::collection::vec(prop::sample::select(vec![
            "payload.a", "payload", "NULL", "1", "0", "-1", "2.5", "99999999999999999999", "'a'", "''", "'{\"a\":1}'",
            "'%Y-%m-%d %H:%M:%S'", "'day'", "'Z'", "'%s %5.1f'", "[1, 'b']", "[]", "[[]]", "object('a', payload.a)", "TRUE",
            "hex_decode('ff00')", "4096", "9223372036854775807", "-9223372036854775808", "'(a+)+$'", "'little'", "'+08:00'", "1e300",
            "from_entries(payload)", "json_decode(payload)",
        ]), 0..6),
        payload in "(\\{\"a\":)?[0-9\\[\\]{}\",:ab]{0,12}\\}?",
    ) {
        any_case("ferrule", &format!("SELECT {name}({}) AS r FROM \"#\"", args.join(", ")), &payload);
    }

    #[test]
    fn any_payload(
        noise in proptest::collection::vec(any::<u8>(), 0..40),
        words in proptest::collection::vec(prop::sample::select(vec![
            "{", "}", "[", "]", ",", ":", "\"a\"", "\"b\"", "1", "-1.5", "1e400", "99999999999999999999", "null", "true",
            "\"\\ud800\"", "\"\\u00e9\"", " ", "\n",
        ]), 0..40),
    ) {
        let set = common::rules(
            "CREATE RULE r AS INSERT INTO log, cloud.\"x/${a}\" WITH (payload = '${.} ${p.q} ${payload}')
             SELECT *, payload.a AS a, payload.a.b[2].c AS c, payload[-1] AS l, payload.b + 1 AS p.q, payload.b AS b,
               2 AS b.z, round(payload.a, 2) AS r, substr(payload, -3, 2) AS s, length(payload.a) AS n,
               payload.a[payload.b] AS e, timestamp_ms(payload.a) AS t, abs(payload.b) div payload.a AS d
             FROM \"#\" WHERE payload.a IS NULL OR NOT payload.a = payload.b OR payload.b IN (payload.a, 1) OR TRUE;",
        );
        let text = words.concat();
        for payload in [&noise[..], text.as_bytes(), format!("{{\"a\":{text},\"b\":1}}").as_bytes()] {
            let message = common::message(payload);
            let (_, rows, _) = common::run(&set, &message);
            for row in rows.rows {
                if let Body::Json(json) = row.body {
                    // A number may be out of serde_json's range where the payload's was.
                    if let Err(e) = serde_json::from_slice::<serde_json::Value>(&json) {
                        prop_assert!(e.to_string().contains("out of range"), "{e}: {}", String::from_utf8_lossy(&json));
                    }
                }
            }
        }
    }
}

#[test]
fn deep_and_long_texts() {
    for text in [
        "(".repeat(100_000),
        "SELECT ".to_owned() + &"(".repeat(50_000),
        "SELECT ".to_owned() + &"NOT ".repeat(50_000),
        "SELECT ".to_owned() + &"- ".repeat(50_000) + "1 FROM t",
        "SELECT ".to_owned() + &"1 + ".repeat(10_000) + "1 FROM t",
        "SELECT ".to_owned() + &"CASE WHEN ".repeat(10_000),
        "SELECT a".to_owned() + &"[a".repeat(20_000),
        "SELECT a".to_owned() + &".b".repeat(20_000) + " AS b FROM t",
        "SELECT ".to_owned() + &"[".repeat(20_000),
        "SELECT ".to_owned() + &"f(".repeat(20_000),
        "/*".repeat(50_000),
        "'".repeat(50_001),
        ";".repeat(100_000),
        "SELECT 1 AS a".to_owned() + &".a".repeat(20_000) + " FROM t",
        "x;".repeat(10_000),
    ] {
        any_load(&text);
        any_load(&format!("CREATE RULE r AS INSERT INTO log {text};"));
    }
    // A long chain of AND or OR is one level.
    let chain = "payload.a = 1 OR ".repeat(1000) + "TRUE";
    common::rules(&format!("CREATE RULE r AS INSERT INTO log SELECT * FROM t WHERE {chain};"));
}
