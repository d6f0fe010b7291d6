//! Rules on payloads that are not JSON, and rows that leave as something else.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod common;

use common::*;
use ferrule_rules::*;

/// {"temp":81.5,"id":h'ff00',"list":[1,{"b":h'01'}],"n":18446744073709551615}
const CBOR: &[u8] =
    b"\xa4\x64temp\xf9\x55\x18\x62id\x42\xff\x00\x64list\x82\x01\xa1\x61b\x41\x01\x61n\x1b\xff\xff\xff\xff\xff\xff\xff\xff";

fn body(row: &OutRow) -> String {
    match &row.body {
        Body::Payload => "the payload".to_owned(),
        Body::Json(text) | Body::Text(text) => String::from_utf8_lossy(text).into_owned(),
        Body::Encoded(bytes) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

/// The bodies that a rule's text makes of a payload, or how it ended; and the type errors.
fn made(text: &str, payload: &[u8]) -> (String, Vec<&'static str>) {
    let set = rules(text);
    let (ended, rows, state) = run(&set, &message(payload));
    let errors =
        TypeError::ALL.iter().filter(|&&e| state.counters.type_errors[e as usize] > 0).map(|e| e.name());
    let made = match ended {
        Step::Emit => rows.rows.iter().map(body).collect::<Vec<_>>().join(" "),
        other => format!("{other:?}"),
    };
    (made, errors.collect())
}

#[test]
fn a_rule_reads_its_payload_s_format() {
    let rule = |rest: &str| {
        format!("CREATE RULE r WITH (format = 'cbor') AS INSERT INTO log SELECT {rest} FROM \"#\";")
    };
    for (rest, expected) in [
        ("payload.temp AS t, payload.list[1] AS l", r#"{"t":81.5,"l":1}"#),
        ("payload.id AS id, payload.list[-1].b AS b", r#"{"id":{"$bytes":"ff00"},"b":{"$bytes":"01"}}"#),
        ("payload.n AS n, payload.none AS x", r#"{"n":18446744073709551615,"x":null}"#),
        (
            "*",
            r#"{"temp":81.5,"id":{"$bytes":"ff00"},"list":[1,{"b":{"$bytes":"01"}}],"n":18446744073709551615}"#,
        ),
        ("*, 1 AS n", r#"{"temp":81.5,"id":{"$bytes":"ff00"},"list":[1,{"b":{"$bytes":"01"}}],"n":1}"#),
        (
            "encode('binary', payload.id) = encode('binary', decode('cbor', payload).id) AS same",
            r#"{"same":true}"#,
        ),
    ] {
        assert_eq!(made(&rule(rest), CBOR), (expected.to_owned(), vec![]), "{rest}");
    }
    // The payload alone is what came.
    let hex: String = CBOR.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(made(&rule("payload"), CBOR).0, format!("{{\"payload\":{{\"$bytes\":\"{hex}\"}}}}"));
    // WHERE, templates and EMQX's dialect read the same.
    let text = "CREATE RULE r WITH (format = 'cbor') AS INSERT INTO cloud.\"a/${payload.list[1]}\" WITH (payload = '${payload.temp}')
        SELECT clientid FROM \"#\" WHERE payload.temp > 80 AND payload.id IS NOT NULL;";
    assert_eq!(made(text, CBOR).0, "81.5");
    let text = "CREATE RULE r WITH (format = 'cbor', dialect = 'emqx') AS INSERT INTO log
        SELECT payload.temp as t, bin2hexstr(payload.id) as id, payload.list[2].b as b FROM \"#\" WHERE payload.temp > 80;";
    assert_eq!(made(text, CBOR).0, r#"{"t":81.5,"id":"FF00","b":{"$bytes":"01"}}"#);
}

#[test]
fn what_is_not_of_the_format() {
    let rule = |dialect: &str, rest: &str| {
        format!("CREATE RULE r WITH (format = 'cbor'{dialect}) AS INSERT INTO log SELECT {rest} FROM \"#\";")
    };
    let wrong = b"\x9f\x01".as_slice();
    assert_eq!(
        made(&rule("", "payload.a AS a, qos"), wrong),
        (r#"{"a":null,"qos":1}"#.to_owned(), vec!["invalid_format"])
    );
    assert_eq!(made(&rule("", "*"), wrong), ("the payload".to_owned(), vec!["invalid_format"]));
    assert_eq!(made(&rule("", "qos"), wrong), (r#"{"qos":1}"#.to_owned(), vec![]));
    let emqx = made(&rule(", dialect = 'emqx'", "payload.a as a"), wrong);
    assert_eq!(emqx, ("Failed(Exception)".to_owned(), vec!["invalid_format"]));
    assert_eq!(made(&rule("", "payload.a AS a"), &[0x81; 1000]).0, "Failed(TooDeep)");
    // What is kept of it is what came.
    let set = rules(&rule("", "payload.a AS a"));
    let (_, _, state) = run(&set, &message(wrong));
    assert_eq!(state.last_failure.unwrap().payload, wrong);
}

#[test]
fn a_row_leaves_in_a_format() {
    let text = "CREATE RULE r AS INSERT INTO cloud.\"a\" WITH (format = 'cbor'), cloud.\"b\" WITH (format = 'msgpack'), log
        SELECT payload.a AS a, payload.b AS b.c FROM \"#\";";
    let expected = "a2616101616 2a1616381f5 82a16101a16281a16391c3".replace("6 2a", "62a");
    let expected = format!("{} {}", expected, r#"{"a":1,"b":{"c":[true]}}"#);
    assert_eq!(made(text, br#"{"a":1,"b":[true]}"#).0, expected);
    // From one format to another; bytes stay bytes.
    let text = "CREATE RULE r WITH (format = 'cbor') AS INSERT INTO log WITH (format = 'msgpack') SELECT payload.id FROM \"#\";";
    assert_eq!(made(text, CBOR).0, "81a26964c402ff00");
    // The whole payload.
    let text = "CREATE RULE r AS INSERT INTO log WITH (format = 'cbor') SELECT * FROM \"#\";";
    assert_eq!(made(text, b" [1, 2]").0, "820102");
    assert_eq!(made(text, b"no json").0, "676e6f206a736f6e");
    // No place for it.
    let text = "CREATE RULE r AS INSERT INTO log WITH (format = 'binary') SELECT qos FROM \"#\";";
    assert_eq!(made(text, b"").0, "Failed(Unencodable)");
    let text = "CREATE SCHEMA line WITH (type = 'csv', columns = 'qos, topic', delimiter = ';');
        CREATE RULE r AS INSERT INTO log WITH (format = 'line') SELECT topic, qos FROM \"#\";";
    assert_eq!(made(text, b"").0, "313b666163746f72792f6c696e652d332f7072657373");
}

/// Rules of one set with several formats, in turn, on one scratch.
#[test]
fn each_rule_has_its_own_reading() {
    let set = rules(
        "CREATE RULE a AS INSERT INTO log SELECT payload[1] AS x FROM \"#\";
         CREATE RULE b WITH (format = 'csv') AS INSERT INTO log SELECT payload[1] AS x FROM \"#\";
         CREATE RULE c WITH (format = 'text') AS INSERT INTO log SELECT *, 1 AS y FROM \"#\";
         CREATE RULE d WITH (format = 'csv') AS INSERT INTO log SELECT payload[1][2] AS x FROM \"#\";
         CREATE RULE e AS INSERT INTO log SELECT payload[2] AS x FROM \"#\";",
    );
    let (mut scratch, mut state, mut rows) = (Scratch::new(1), RuleState::default(), Rows::default());
    for (payload, expected) in [
        (
            "[1,2]",
            [
                r#"{"x":1}"#,
                r#"{"x":["[1","2]"]}"#,
                r#"{"payload":"[1,2]","y":1}"#,
                r#"{"x":"2]"}"#,
                r#"{"x":2}"#,
            ],
        ),
        (
            "[3,4]",
            [
                r#"{"x":3}"#,
                r#"{"x":["[3","4]"]}"#,
                r#"{"payload":"[3,4]","y":1}"#,
                r#"{"x":"4]"}"#,
                r#"{"x":4}"#,
            ],
        ),
    ] {
        scratch.begin();
        let message = message(payload.as_bytes());
        // Each twice: the second time nothing is decoded again.
        for (rule, expected) in set.rules.iter().zip(expected).chain(set.rules.iter().zip(expected)) {
            step(rule, &mut state, &message, &mut scratch, Now::default(), &mut 1000, &mut rows);
            assert_eq!(body(&rows.rows[0]), expected, "{}", rule.name);
        }
    }
    // Another set, as after a reload, in the middle of a message.
    let other =
        rules("CREATE RULE a WITH (format = 'csv') AS INSERT INTO log SELECT payload[1][1] AS x FROM \"#\";");
    step(&other.rules[0], &mut state, &message(b"5,6"), &mut scratch, Now::default(), &mut 1000, &mut rows);
    assert_eq!(body(&rows.rows[0]), r#"{"x":"5"}"#);
}

/// The mistakes in a text, each at its place.
fn mistakes(text: &str) -> String {
    let source = Source { name: "f", text };
    let found = load(&[source], &host()).err().unwrap_or_default();
    let shown = found.iter().map(|d| format!("{}:{} {}", d.line, d.column, d.message));
    shown.collect::<Vec<_>>().join("\n")
}

#[test]
fn mistakes_stand_at_the_option() {
    let rule = "CREATE RULE r AS INSERT INTO log SELECT qos FROM \"#\";";
    for (text, expected) in [
        (
            "CREATE RULE r WITH (format = 'cobr') AS INSERT INTO log SELECT qos FROM \"#\";",
            "1:30 unknown format 'cobr'; did you mean 'cbor'?",
        ),
        (
            "CREATE SCHEMA line WITH (type = 'csv');\nCREATE RULE r AS INSERT INTO log WITH (format = 'lyne') SELECT qos FROM \"#\";",
            "2:49 unknown format 'lyne'; did you mean 'line'?",
        ),
        (
            "CREATE RULE r AS INSERT INTO log SELECT decode('cber', payload) AS x FROM \"#\";",
            "1:48 unknown format 'cber'; did you mean 'cbor'?",
        ),
        (&format!("CREATE SCHEMA cbor WITH (type = 'csv'); {rule}"), "1:15 `cbor` is a built-in format"),
        (
            &format!("CREATE SCHEMA a WITH (type = 'csv');\nCREATE SCHEMA a WITH (type = 'csv'); {rule}"),
            "2:15 the schema `a` exists already",
        ),
        (&format!("CREATE SCHEMA a; {rule}"), "1:15 a schema needs `type = '...'`"),
        (
            &format!("CREATE SCHEMA a WITH (type = 'cvs'); {rule}"),
            "1:30 unknown type of schema 'cvs'; did you mean 'csv'?",
        ),
        (
            &format!(
                "CREATE SCHEMA a WITH (type = 'csv', colums = 'a', delimiter = ';;', lines = 2, header = 'x'); {rule}"
            ),
            "1:37 a schema of type 'csv' has no option `colums`; did you mean `columns`?
1:63 `delimiter` takes one character of ASCII, no quote
1:77 `lines` takes 'one' or 'many'
1:89 `header` takes TRUE or FALSE",
        ),
        (
            &format!("CREATE SCHEMA a WITH (type = 'csv', columns = 'a txt'); {rule}"),
            "1:47 `txt` is no type of a column; types: text, integer, number, boolean",
        ),
        (
            "CREATE RULE r AS INSERT INTO log WITH (format = 'cbor', payload = 'x') SELECT qos FROM \"#\";",
            "1:40 `format` and `payload` are two ways to write the body",
        ),
        (
            "CREATE SINK s WITH (connector = 'sqlite', path = 'x'); CREATE RULE r AS INSERT INTO s.t WITH (format = 'cbor') SELECT qos FROM \"#\";",
            "1:95 the sink `s` stores columns, not bytes",
        ),
    ] {
        assert_eq!(mistakes(text), expected, "{text}");
    }
}

/// The schema of `reading.desc`: message plant.Reading { string line = 1; double temp = 2; repeated int32 codes = 3; bytes raw = 4; },
/// message plant.Other { int32 n = 1; }.
const PROTO: &str = "syntax = \"proto3\"; package plant;
    message Reading { string line = 1; double temp = 2; repeated int32 codes = 3; bytes raw = 4; }
    message Other { int32 n = 1; }";

/// A host that has these files beside `rules.sql`.
fn host_with_files() -> Host {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("reading.proto"), PROTO).unwrap();
    let set = protox::compile(["reading.proto"], [folder.path()]).unwrap();
    let set = prost_reflect::prost::Message::encode_to_vec(&set);
    let files = move |_: &str, path: &str| match path {
        "reading.desc" => Ok(set.clone()),
        "row.avsc" => {
            Ok(br#"{"type":"record","name":"row","fields":[{"name":"t","type":["null","double"]}]}"#.to_vec())
        }
        "text" => Ok(b"text".to_vec()),
        _ => Err("no such file".to_owned()),
    };
    Host { files: Some(Files(std::sync::Arc::new(files))), ..host() }
}

const SCHEMAS: &str =
    "CREATE SCHEMA reading WITH (type = 'protobuf', file = 'reading.desc', message = 'plant.Reading');
    CREATE SCHEMA any WITH (type = 'protobuf', file = 'reading.desc');
    CREATE SCHEMA row WITH (type = 'avro', file = 'row.avsc');\n";

fn with_schemas(text: &str, payload: &[u8]) -> (String, Vec<&'static str>) {
    let text = format!("{SCHEMAS}{text}");
    let source = Source { name: "rules.sql", text: &text };
    let set = load(&[source], &host_with_files()).unwrap_or_else(|diagnostics| {
        let shown: Vec<String> = diagnostics.iter().map(|d| d.render(&source)).collect();
        panic!("{}", shown.join("\n"))
    });
    let (ended, rows, state) = run(&set, &message(payload));
    let errors =
        TypeError::ALL.iter().filter(|&&e| state.counters.type_errors[e as usize] > 0).map(|e| e.name());
    let made = match ended {
        Step::Emit => rows.rows.iter().map(body).collect::<Vec<_>>().join(" "),
        other => format!("{other:?}"),
    };
    (made, errors.collect())
}

/// line "l-1", temp 21.5, codes 1 and 300, raw 0xff
const READING: &[u8] = b"\x0a\x03l-1\x11\0\0\0\0\0\x80\x35\x40\x1a\x03\x01\xac\x02\x22\x01\xff";

#[test]
fn schemas_from_files() {
    for (text, payload, expected) in [
        (
            "CREATE RULE r WITH (format = 'reading') AS INSERT INTO log, log WITH (format = 'row')
             SELECT payload.temp AS t FROM \"#\" WHERE payload.codes[2] = 300 AND payload.line = 'l-1';",
            READING,
            r#"{"t":21.5} 020000000000803540"#,
        ),
        // A zero is not on the wire, and yet there.
        (
            "CREATE RULE r WITH (format = 'reading') AS INSERT INTO log SELECT * FROM \"#\" WHERE payload.temp < 1;",
            b"",
            r#"{"line":"","temp":0.0,"codes":[],"raw":{"$bytes":""}}"#,
        ),
        (
            "CREATE RULE r AS INSERT INTO log WITH (format = 'reading') SELECT payload.l AS line, payload.t AS temp FROM \"#\";",
            br#"{"l":"l-1","t":21.5}"#,
            "0a036c2d31110000000000803540",
        ),
        (
            "CREATE RULE r AS INSERT INTO log SELECT decode('reading', payload).line AS l, decode('row', encode('row', decode('json', '{\"t\":1}'))) AS t FROM \"#\";",
            READING,
            r#"{"l":"l-1","t":{"t":1.0}}"#,
        ),
        (
            "CREATE RULE r AS INSERT INTO log SELECT decode('any', payload, 'Reading').codes[1] AS c, decode('any', encode('any', decode('json', '{\"n\":-1}'), 'Other'), 'Other').n AS n FROM \"#\";",
            READING,
            r#"{"c":1,"n":-1}"#,
        ),
        (
            "CREATE RULE r WITH (dialect = 'emqx') AS INSERT INTO log SELECT schema_decode('any', payload, 'Reading') as r, r.line as l,
             bin2hexstr(schema_encode('any', map_put('n', 5, map_new()), 'plant.Other')) as o, schema_check('reading', payload) as ok,
             schema_check('row', payload) as no FROM \"#\";",
            READING,
            r#"{"r":{"line":"l-1","temp":21.5,"codes":[1,300],"raw":{"$bytes":"ff"}},"l":"l-1","o":"0805","ok":true,"no":false}"#,
        ),
    ] {
        assert_eq!(with_schemas(text, payload), (expected.to_owned(), vec![]), "{text}");
    }
    let text =
        "CREATE RULE r WITH (format = 'reading') AS INSERT INTO log SELECT payload.line AS l FROM \"#\";";
    assert_eq!(with_schemas(text, b"{\"line\":1}"), (r#"{"l":null}"#.to_owned(), vec!["invalid_format"]));
}

#[test]
fn mistakes_in_schemas() {
    let rule = "CREATE RULE r AS INSERT INTO log SELECT qos FROM \"#\";";
    let insert = |select: &str, format: &str| {
        format!(
            "{SCHEMAS}CREATE RULE r AS INSERT INTO log WITH (format = '{format}') SELECT {select} FROM \"#\";"
        )
    };
    for (text, expected) in [
        (
            format!("CREATE SCHEMA a WITH (type = 'protobuf'); {rule}"),
            "1:15 a schema of type 'protobuf' needs `file = '...'`",
        ),
        (
            format!("CREATE SCHEMA a WITH (type = 'protobuf', file = 'nothing.desc'); {rule}"),
            "1:49 cannot read `nothing.desc`: no such file",
        ),
        (
            format!("CREATE SCHEMA a WITH (type = 'protobuf', file = 'text'); {rule}"),
            "1:49 the file is of no use: it is no descriptor set (write one with `protoc --descriptor_set_out`)",
        ),
        (
            format!(
                "CREATE SCHEMA a WITH (type = 'protobuf', file = 'reading.desc', message = 'Readin'); {rule}"
            ),
            "1:75 the schema has no message 'Readin'",
        ),
        (
            format!(
                "CREATE SCHEMA a WITH (type = 'protobuf', file = 'reading.desc', message = 'plant.Redding'); {rule}"
            ),
            "1:75 the schema has no message 'plant.Redding'; did you mean 'plant.Reading'?",
        ),
        (
            format!("CREATE SCHEMA a WITH (type = 'avro'); {rule}"),
            "1:15 a schema of type 'avro' needs `file = '...'` or `definition = '...'`",
        ),
        (
            format!("CREATE SCHEMA a WITH (type = 'avro', definition = '\"integer\"'); {rule}"),
            "1:51 the schema is of no use: the type `integer` is not declared before it is used",
        ),
        (
            insert("qos AS n", "any"),
            "4:49 the schema 'any' does not do: it has several messages: the schema needs `message = '...'`",
        ),
        (insert("qos AS lime", "reading"), "4:74 the schema 'reading' has no `lime`; did you mean `line`?"),
        (insert("qos AS xyz.y", "row"), "4:70 the schema 'row' has no `xyz`"),
        (
            format!(
                "{SCHEMAS}CREATE RULE r WITH (dialect = 'emqx') AS INSERT INTO log SELECT schema_decode('raeding', payload) as x FROM \"#\";"
            ),
            "4:79 unknown schema 'raeding'; did you mean 'reading'?",
        ),
        (
            format!(
                "{SCHEMAS}CREATE RULE r WITH (dialect = 'emqx') AS INSERT INTO log SELECT schema_decode('any', payload, 'Othr') as x FROM \"#\";"
            ),
            "4:95 the schema has no message 'Othr'",
        ),
        (
            format!(
                "{SCHEMAS}CREATE RULE r WITH (dialect = 'emqx') AS INSERT INTO log SELECT schema_decode('any', payload) as x FROM \"#\";"
            ),
            "4:79 the schema 'any' does not do: it has several messages: the schema needs `message = '...'`",
        ),
    ] {
        let source = Source { name: "rules.sql", text: &text };
        let found = load(&[source], &host_with_files()).err().unwrap_or_default();
        let shown: Vec<String> =
            found.iter().map(|d| format!("{}:{} {}", d.line, d.column, d.message)).collect();
        assert_eq!(shown.join("\n"), expected, "{text}");
    }
    // A program without files.
    let text = format!("CREATE SCHEMA a WITH (type = 'avro', file = 'row.avsc'); {rule}");
    assert_eq!(mistakes(&text), "1:45 cannot read `row.avsc`: files cannot be read here");
}

#[test]
fn loops_over_what_was_decoded() {
    // {"l":[{"b":h'ff',"n":1},{"b":h'00',"n":2}]}
    let payload = b"\xa1\x61l\x82\xa2\x61b\x41\xff\x61n\x01\xa2\x61b\x41\x00\x61n\x02";
    let text = "CREATE RULE r WITH (format = 'cbor', dialect = 'emqx') AS INSERT INTO log
        FOREACH payload.l AS s DO s.n as n, bin2hexstr(s.b) as b INCASE s.n > 0 FROM \"#\";";
    assert_eq!(made(text, payload), (r#"{"n":1,"b":"FF"} {"n":2,"b":"00"}"#.to_owned(), vec![]));
    let text =
        "CREATE RULE r WITH (format = 'csv', dialect = 'emqx') AS INSERT INTO log WITH (format = 'csv')
        FOREACH payload AS line DO nth(2, line) as b, nth(1, line) as a FROM \"#\";";
    assert_eq!(made(text, b"1,2\n3,4").0, "322c31 342c33");
}

/// The commands read a schema beside the rules, and show what is not text.
#[test]
fn the_commands_know_formats() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rules.sql");
    let text = "CREATE SCHEMA row WITH (type = 'avro', file = 'row.avsc');
        CREATE RULE r WITH (format = 'csv') AS INSERT INTO cloud WITH (format = 'row'), log SELECT payload[1][2] AS t FROM \"a\";
        CREATE RULE all WITH (format = 'csv') AS INSERT INTO log SELECT * FROM \"a\";";
    std::fs::write(&file, text).unwrap();
    std::fs::write(
        folder.path().join("row.avsc"),
        r#"{"type":"record","name":"r","fields":[{"name":"t","type":"string"}]}"#,
    )
    .unwrap();
    let host = Host { files: Some(cli::files()), ..host() };
    let message =
        cli::TestMessage { topic: "a".to_owned(), payload: b"x,y".to_vec(), ..cli::TestMessage::default() };
    let mut out = Vec::new();
    cli::test(std::slice::from_ref(&file), &host, &[message], cli::Format::Text, &mut out).unwrap();
    cli::explain(std::slice::from_ref(&file), &host, cli::Format::Text, &mut out).unwrap();
    let shown = String::from_utf8(out).unwrap().replace(&*file.to_string_lossy(), "rules.sql");
    let shown: Vec<&str> =
        shown.lines().filter(|line| !line.contains("state ") && !line.starts_with("rule ")).collect();
    assert_eq!(
        shown,
        [
            r#"  row {"t":"y"}"#,
            r#"  -> cloud "a": 2 bytes of avro: 0279"#,
            "  -> log: the row",
            r#"  -> log: [["x","y"]]"#,
            r#"  from      "a""#,
            "  reads     payload[1][2] (csv)",
            "  writes    rows as avro to cloud",
            "  writes    rows to log",
            r#"  from      "a""#,
            "  reads     the whole payload (csv)",
            "  writes    rows to log",
        ]
    );
}
