//! Where rows go: targets, keys, bodies, identities, counters, failures.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod common;

use common::{host, message, rules, run};
use ferrule_rules::*;

#[test]
fn ids_are_fixed_for_ever() {
    // FNV-1a 64 of the reference: "" cbf29ce484222325, "a" af63dc4c8601ec8c, "foobar" 85944171f73967e8; one bit down.
    assert_eq!(rule_id(""), 0xcbf2_9ce4_8422_2325 >> 1);
    assert_eq!(rule_id("a"), 0xaf63_dc4c_8601_ec8c >> 1);
    assert_eq!(rule_id("foobar"), 0x8594_4171_f739_67e8 >> 1);
    assert_eq!(rule_id("overheating"), 722_585_843_968_643_885);
    assert!(rule_id("foobar") <= i64::MAX as u64);
    let paths = [(0, 0, 1), (0, 1, 1), (1, 0, 0), (0, 0, 2)].map(|(p, r, i)| extend_rule_path(p, r, i));
    assert_eq!(paths.iter().collect::<std::collections::HashSet<_>>().len(), 4);
    assert!(paths.iter().all(|&p| p <= i64::MAX as u64));
    assert_eq!(paths[0], 0x67c5_99fa_152d_df8a);
}

#[test]
fn inserts_render_targets_keys_and_bodies() {
    let set = rules(
        r#"CREATE SINK k WITH (connector = 'kafka', brokers = 'b:1', topic = 'factory.${topic[2]}', headers = 'line=${line}');
        CREATE RULE r AS INSERT INTO
            cloud."alerts/${clientid}/${topic[-1]}" WITH (qos = 2, retain = FALSE),
            k,
            k."other" WITH (key = '${payload.none}', payload = 't=${temp} ${none} ${$} ${.}'),
            log,
            cloud
        SELECT payload.temp AS temp, payload.none AS none, topic[2] AS line FROM "factory/#";"#,
    );
    let (ended, rows, state) = run(&set, &message(br#"{"temp":81.5}"#));
    assert_eq!(ended, Step::Emit);
    let json = Body::Json(br#"{"temp":81.5,"none":null,"line":"line-3"}"#.to_vec().into());
    let headers = vec![("headers".into(), "line=line-3".to_owned())];
    let row = |insert, row, target: &str, key: Option<&str>, body: &Body| OutRow {
        insert,
        row,
        target: target.into(),
        key: key.map(str::to_owned),
        body: body.clone(),
        qos: None,
        retain: None,
        options: Vec::new(),
        properties: Vec::new(),
    };
    let text = Body::Text(br#"t=81.5 null $ {"temp":81.5,"none":null,"line":"line-3"}"#.to_vec().into());
    assert_eq!(
        rows.rows,
        [
            OutRow { qos: Some(2), retain: Some(false), ..row(0, 0, "alerts/press-7/press", None, &json) },
            OutRow { options: headers.clone(), ..row(1, 0, "factory.line-3", Some("press-7"), &json) },
            OutRow { options: headers, ..row(2, 1, "other", None, &text) },
            row(3, 0, "", None, &json),
            row(4, 1, "factory/line-3/press", None, &json),
        ]
    );
    assert_eq!((state.counters.passed, state.counters.rows_out), (1, 5));
    assert_eq!(set.rules[0].inserts[0].qos, Some(2));
    let sink = &set.sinks[0];
    assert_eq!(sink.option("linger"), Some(&OptionValue::DurationMs(5)));
    assert_eq!(sink.option("batch"), Some(&OptionValue::SizeBytes(65_536)));
    assert_eq!(sink.option("idempotent"), Some(&OptionValue::Bool(true)));
    assert_eq!(sink.option("password"), None);
}

#[test]
fn templates_read_row_then_message_then_with_star_the_payload() {
    for (sql, payload, target) in [
        // A column of the row before one of the message.
        (r#"cloud."a/${clientid}" SELECT 'x' AS clientid"#, "{}", "a/x"),
        // A device cannot pose as another by a field of its payload.
        (r#"cloud."a/${clientid}" SELECT *"#, r#"{"clientid":"evil"}"#, "a/press-7"),
        (r#"cloud."a/${line}" SELECT *"#, r#"{"line":"l1"}"#, "a/l1"),
        (r#"cloud."a/${payload.o.p}" SELECT *"#, r#"{"o":{"p":5}}"#, "a/5"),
        (r#"cloud."a/${o.p}" SELECT 1 AS o.p"#, "{}", "a/1"),
        (r#"cloud."a/${o}" SELECT 1 AS o.p"#, "{}", r#"a/{"p":1}"#),
        (r#"cloud."a/${x[-1]}" SELECT payload.x AS x"#, r#"{"x":[1,"z"]}"#, "a/z"),
    ] {
        let set = rules(&format!("CREATE RULE r AS INSERT INTO {sql} FROM \"#\";"));
        let (_, rows, _) = run(&set, &message(payload.as_bytes()));
        assert_eq!(&*rows.rows[0].target, target, "{sql}");
    }
}

#[test]
fn bad_targets_fail_that_message() {
    for (target, payload, expected) in [
        ("a/${payload.x}", "{}", Failure::NullInTarget),
        ("a/${payload.x}", r#"{"x":"+"}"#, Failure::BadTarget),
        ("${payload.x}", r#"{"x":"$SYS/broker"}"#, Failure::BadTarget),
        ("${payload.x}", r#"{"x":"$delayed/1/$delayed/2/$SYS/broker"}"#, Failure::BadTarget),
        ("${payload.x}", r#"{"x":"$ferrule/a"}"#, Failure::BadTarget),
        ("${payload.x}", r#"{"x":""}"#, Failure::BadTarget),
        ("a/${payload.x}", r#"{"x":"\u0000"}"#, Failure::BadTarget),
    ] {
        let set =
            rules(&format!("CREATE RULE r AS INSERT INTO log, local.\"{target}\" SELECT * FROM \"#\";"));
        let (ended, rows, state) = run(&set, &message(payload.as_bytes()));
        assert_eq!(ended, Step::Failed(expected), "{target} {payload}");
        assert!(rows.rows.is_empty());
        let c = state.counters;
        assert_eq!((c.matched, c.passed, c.filtered, c.failed.iter().sum()), (1, 0, 0, 1));
        assert_eq!(state.last_failure.unwrap().reason, expected.name());
    }
}

#[test]
fn counters_tell_what_happened() {
    let set = rules(
        "CREATE RULE r AS INSERT INTO log SELECT payload.x / payload.y AS q FROM \"#\" WHERE payload.x > 1;",
    );
    let mut scratch = Scratch::new(1);
    let (mut state, mut rows) = (RuleState::default(), Rows::default());
    for payload in [r#"{"x":2,"y":4}"#, r#"{"x":0}"#, r#"{"x":"a"}"#, "no", r#"{"x":2,"y":0}"#, "{}"] {
        scratch.begin();
        let m = message(payload.as_bytes());
        step(&set.rules[0], &mut state, &m, &mut scratch, Now { wall_ms: 5 }, &mut 100, &mut rows);
    }
    let c = state.counters;
    assert_eq!((c.matched, c.passed, c.filtered, c.rows_out), (6, 2, 4, 2));
    let by = |e: TypeError| c.type_errors[e as usize];
    assert_eq!(
        (by(TypeError::TypeMismatch), by(TypeError::InvalidJson), by(TypeError::DivisionByZero)),
        (1, 1, 1)
    );
    let last = state.last_failure.unwrap();
    assert_eq!(
        (last.reason, last.at_ms, last.payload.as_slice()),
        ("division_by_zero", 5, &br#"{"x":2,"y":0}"#[..])
    );
}

#[test]
fn fuel_ends_a_step() {
    let set = rules("CREATE RULE r AS INSERT INTO log SELECT 1 + 2 AS a FROM \"#\";");
    let (mut state, mut rows) = (RuleState::default(), Rows::default());
    let mut scratch = Scratch::new(1);
    scratch.begin();
    let m = message(b"");
    let mut fuel = 2;
    let ended = step(&set.rules[0], &mut state, &m, &mut scratch, Now::default(), &mut fuel, &mut rows);
    assert_eq!((ended, fuel), (Step::OutOfFuel, 0));
    assert_eq!(state.counters.failed[Failure::OutOfFuel as usize], 1);
}

#[test]
fn one_scan_serves_all_rules_and_sets_may_change() {
    let one = rules(
        "CREATE RULE a AS INSERT INTO log SELECT payload.b AS v FROM \"#\";
         CREATE RULE b AS INSERT INTO log SELECT payload.a AS v, payload.c[2] AS w FROM \"#\";",
    );
    let two = rules("CREATE RULE a AS INSERT INTO log SELECT payload.c AS v FROM \"#\";");
    let mut scratch = Scratch::new(1);
    let (mut state, mut rows) = (RuleState::default(), Rows::default());
    for payload in [r#"{"a":1,"b":2,"c":[3,4]}"#, r#"{"c":[3,4],"b":2,"a":1}"#] {
        scratch.begin();
        let m = message(payload.as_bytes());
        let rules = [&one.rules[0], &one.rules[1], &two.rules[0], &one.rules[1]];
        let got = rules.map(|rule| {
            step(rule, &mut state, &m, &mut scratch, Now::default(), &mut 100, &mut rows);
            match &rows.rows[0].body {
                Body::Json(json) => String::from_utf8(json.to_vec()).unwrap(),
                other => format!("{other:?}"),
            }
        });
        assert_eq!(got, [r#"{"v":2}"#, r#"{"v":1,"w":4}"#, r#"{"v":[3,4]}"#, r#"{"v":1,"w":4}"#]);
    }
}

#[test]
fn user_properties_are_columns() {
    let properties = vec![("site", "north"), ("a b", "x"), ("site", "south")];
    let m = Message { user_properties: Some(&properties), ..message(b"") };
    let set = rules(
        "CREATE RULE r AS INSERT INTO log SELECT user_properties.site AS s, pub_props.'User-Property'.'a b' AS ab,
         user_properties AS all_of_them FROM \"#\";",
    );
    let (_, rows, _) = run(&set, &m);
    let expected = r#"{"s":"north","ab":"x","all_of_them":{"site":"north","a b":"x"}}"#;
    assert_eq!(rows.rows[0].body, Body::Json(expected.as_bytes().to_vec().into()));
}

#[test]
fn the_readme_of_the_language_loads() {
    let text = r#"
        -- sinks other than the built-in ones are declared
        CREATE SINK telemetry WITH (
          connector = 'kafka', brokers = 'k1:9092,k2:9092', topic = 'factory.${topic[2]}', key = '${clientid}');
        SET dialect = 'ferrule';
        /* every matching message, reshaped */
        CREATE RULE overheating WITH (ack = 'sink', qos0 = 'spool', dialect = 'ferrule') AS
        INSERT INTO cloud."alerts/${clientid}", telemetry
        SELECT clientid, payload.temp AS temp, timestamp
        FROM "factory/+/temperature"
        WHERE payload.temp > 80;"#;
    let set = load(&[Source { name: "a.sql", text }], &host()).unwrap();
    assert_eq!((set.sinks.len(), set.rules.len()), (1, 1));
    let rule = &set.rules[0];
    assert_eq!((rule.ack, rule.qos0, rule.enabled), (Ack::Sink, Qos0::Spool, true));
    assert_eq!(rule.filters, ["factory/+/temperature"]);
    assert_eq!(rule.fields(), ["payload.temp"]);
    assert!(rule.text.starts_with("CREATE RULE overheating") && rule.text.ends_with("> 80"));
}

#[test]
fn inserts_give_properties_to_publishes() {
    use PublishProperty::*;
    let set = rules(
        "CREATE RULE a WITH (dialect = 'emqx') AS
         INSERT INTO local.\"x\" WITH (content_type = 'text/${payload.kind}', response_topic = 'r/${clientid}', correlation_data = '${payload.id}',
           payload_format = TRUE, message_expiry = '90s', user_properties.line = '${payload.line}', user_properties.none = '${payload.none}',
           user_properties = '${payload.props}'),
           local.\"y\" WITH (message_expiry = '${payload.ttl}', response_topic = '${payload.reply}')
         SELECT * FROM \"s/#\";",
    );
    let run = |payload: &str| {
        let message = Message { topic: "s/1", ..message(payload.as_bytes()) };
        let (mut scratch, mut state, mut rows) = (Scratch::new(1), RuleState::default(), Rows::default());
        scratch.begin();
        let mut fuel = 10_000;
        let ended =
            step(&set.rules[0], &mut state, &message, &mut scratch, Now::default(), &mut fuel, &mut rows);
        (ended, rows.rows.into_iter().map(|row| row.properties).collect::<Vec<_>>())
    };
    let user = |name: &str, value: &str| User(name.to_owned(), value.to_owned());
    let (ended, properties) = run(
        r#"{"kind":"csv","id":7,"line":"n","ttl":30,"reply":"a/b","props":{"k":"v","n":1,"l":["x","y"],"ferrule-hops":"0"}}"#,
    );
    assert_eq!(ended, Step::Emit);
    let first = vec![
        ContentType("text/csv".into()),
        ResponseTopic("r/press-7".into()),
        CorrelationData("7".into()),
        PayloadFormat(true),
        MessageExpiry(90),
        user("line", "n"),
        user("k", "v"),
        user("n", "1"),
        user("l", "x"),
        user("l", "y"),
    ];
    assert_eq!(properties, [first, vec![MessageExpiry(30), ResponseTopic("a/b".into())]]);
    // What is missing is left out; what is no topic or too long fails the rule.
    let (_, properties) = run("{}");
    assert_eq!(properties[1], []);
    assert_eq!(run(r#"{"reply":"a/+"}"#).0, Step::Failed(Failure::BadTarget));
    assert_eq!(run(&format!(r#"{{"line":"{}"}}"#, "x".repeat(70_000))).0, Step::Failed(Failure::TooLarge));
    for wrong in [
        "log WITH (content_type = 'x')",
        "local.\"x\" WITH (content_type = 1)",
        "local.\"x\" WITH (payload_format = 'yes')",
        "local.\"x\" WITH (message_expiry = '5')",
        "local.\"x\" WITH (message_expiry = 5)",
        "local.\"x\" WITH (user_properties.\"ferrule-hops\" = '0')",
        "local.\"x\" WITH (\"user_properties.ferrule-hops\" = '0')",
    ] {
        let text = format!("CREATE RULE a AS INSERT INTO {wrong} SELECT clientid FROM \"s/#\";");
        assert!(load(&[Source { name: "r", text: &text }], &host()).is_err(), "{wrong}");
    }
}

/// A part of WHERE that several rules have is evaluated by the first alone, for each message anew.
#[test]
fn what_rules_have_in_common_is_evaluated_once() {
    let set = rules(
        "CREATE RULE a AS INSERT INTO log SELECT payload.n AS n FROM \"#\" WHERE upper(payload.kind) = 'HOT' AND payload.n > 1;
         CREATE RULE b AS INSERT INTO log SELECT payload.n AS n FROM \"#\" WHERE payload.n > 2 AND upper(payload.kind) = 'HOT';
         CREATE RULE c AS INSERT INTO log SELECT payload.n AS n FROM \"#\" WHERE upper(payload.kind) = 'HOT';
         CREATE RULE d AS INSERT INTO log SELECT upper(payload.kind) AS kind FROM \"#\" WHERE kind = 'HOT';
         CREATE RULE e WITH (dialect = 'emqx') AS INSERT INTO log SELECT payload.n AS n FROM \"#\" WHERE upper(payload.kind) = 'HOT';
         CREATE RULE f WITH (dialect = 'emqx') AS INSERT INTO log SELECT payload.n AS n FROM \"#\" WHERE upper(payload.kind) = 'HOT';
         CREATE RULE g AS INSERT INTO log SELECT payload.n AS n FROM \"#\" WHERE every(1, payload.kind);
         CREATE RULE h AS INSERT INTO log SELECT payload.n AS n FROM \"#\" WHERE every(1, payload.kind);",
    );
    let mut scratch = Scratch::new(1);
    let mut states = vec![RuleState::default(); set.rules.len()];
    let mut rows = Rows::default();
    let mut run = |payload: &str, order: &[usize]| {
        scratch.begin();
        let message = message(payload.as_bytes());
        let mut ended = vec![(Step::OutOfFuel, 0); order.len()];
        for &at in order {
            let (mut fuel, now) = (1_000, Now { wall_ms: 1 });
            let end =
                step(&set.rules[at], &mut states[at], &message, &mut scratch, now, &mut fuel, &mut rows);
            ended[at] = (end, 1_000 - fuel);
        }
        ended
    };
    let there = [0, 1, 2, 3, 4, 5, 6, 7];
    let mut back = there;
    back.reverse();
    for (payload, ends) in [
        (r#"{"kind":"hot","n":3}"#, "EEEEEEEE"),
        (r#"{"kind":"cold","n":3}"#, "NNNNNNEE"),
        (r#"{"kind":"Hot","n":2}"#, "ENEEEEEE"),
        // What goes wrong is each rule's own.
        (r#"{"kind":7,"n":3}"#, "NNNNFFEE"),
        ("no JSON", "NNNNFFNN"),
    ] {
        for order in [there, back] {
            let ended = run(payload, &order);
            let said: String = ended
                .iter()
                .map(|(end, _)| match end {
                    Step::Emit => 'E',
                    Step::NoMatch => 'N',
                    _ => 'F',
                })
                .collect();
            // The last two remember, and ask at one moment: once each.
            assert_eq!(said[..6], ends[..6], "{payload}");
        }
    }
    let fuel: Vec<u64> = run(r#"{"kind":"hot","n":3}"#, &there).iter().map(|(_, fuel)| *fuel).collect();
    let alone: Vec<u64> = run(r#"{"kind":"hot","n":3}"#, &back).iter().map(|(_, fuel)| *fuel).collect();
    assert!(fuel[2] < alone[2] || fuel[2] < fuel[0], "{fuel:?} {alone:?}");
    assert!(fuel[5] < fuel[4] && alone[4] < alone[5], "{fuel:?} {alone:?}");
    let wrong: Vec<u64> = states.iter().map(|state| state.counters.type_errors.iter().sum()).collect();
    assert_eq!(wrong[2], 4, "a number and what is no JSON, in both orders: {wrong:?}");
    assert_eq!((wrong[4], wrong[5]), (4, 4));
}

/// What payloads have where a row wants it: as a row would write it, and not.
const WRITTEN: [&str; 28] = [
    "0",
    "-0",
    "7",
    "9223372036854775808",
    "0.5",
    "10.50",
    "-0.0",
    "0.000001",
    "1e3",
    "1e400",
    "12345678901234.5",
    "0.30000000000000004",
    "true",
    "null",
    "\"\"",
    "\"a b/\u{e9}\"",
    "\"\\u0061\\n\"",
    "[]",
    "[1, 2.50]",
    "{ \"b\":1e2 }",
    "{\"y\":1.50,\"y\":2}",
    "{\"y\":-0}",
    "{\"y\":\"{\\\"z\\\":1}\"}",
    "\"{\\\"y\\\":1.50}\"",
    "\"\u{7f}\"",
    "1e-9",
    "100.0",
    "1E2",
];

/// A column that only the row has is copied from the payload; one that others read is a value. The row must not tell.
#[test]
fn copied_columns_are_as_written_ones() {
    for (dialect, path) in ["ferrule", "emqx"].into_iter().flat_map(|d| [(d, "x"), (d, "x.y"), (d, "x.y.z")])
    {
        let rule = |query: &str| {
            rules(&format!("CREATE RULE r WITH (dialect = '{dialect}') AS INSERT INTO log {query};"))
        };
        let one = [
            rule(&format!("SELECT payload.{path} AS v, 1 AS w FROM \"#\"")),
            rule(&format!("SELECT payload.{path} AS v, v AS w FROM \"#\"")),
        ];
        let each = [
            rule(&format!("FOREACH payload.l AS e DO e.{path} AS v, 1 AS w FROM \"#\"")),
            rule(&format!("FOREACH payload.l AS e DO e.{path} AS v, v AS w FROM \"#\"")),
        ];
        let mut copied = 0;
        for written in WRITTEN {
            let payload = format!("{{\"x\" : {written} }}");
            let list = format!("{{\"l\" : [ {payload} ,{{}},{payload}]}}");
            for (sets, payload) in [(&one, &payload), (&each, &list)] {
                let [plain, read] = sets.each_ref().map(|set| run(set, &message(payload.as_bytes())));
                let what = format!("{dialect} {path} {payload}");
                assert_eq!((plain.0, plain.2.counters), (read.0, read.2.counters), "{what}");
                assert_eq!(plain.1.rows.len(), read.1.rows.len(), "{what}");
                for (plain, read) in plain.1.rows.iter().zip(&read.1.rows) {
                    let (Body::Json(plain), Body::Json(read)) = (&plain.body, &read.body) else {
                        panic!("{what}")
                    };
                    let plain = String::from_utf8(plain.to_vec()).unwrap();
                    let v = plain
                        .strip_prefix("{\"v\":")
                        .and_then(|rest| rest.strip_suffix(",\"w\":1}"))
                        .unwrap();
                    assert_eq!(format!("{{\"v\":{v},\"w\":{v}}}").as_bytes(), &read[..], "{what}");
                    copied += usize::from(v == written);
                }
            }
        }
        assert!(path != "x" || copied > WRITTEN.len(), "{copied}");
    }
}
