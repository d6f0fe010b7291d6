//! `rules import`: what comes out of the files in `tests/import`, and that it passes `rules check`.
//!
//! `X` becomes `X.sql` (what is printed) and `X.txt` (what is told, and the exit code). `UPDATE_EXPECT=1` writes them anew;
//! read the difference before committing it.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use ferrule_rules::*;
use proptest::prelude::*;

/// The connectors of both programs, with the options that an import gives.
fn host() -> Host {
    let option = |name, kind| OptionSchema { name, kind, required: false, default: None, help: "" };
    let target = |option| TargetSchema { kind: TargetKind::Name, option: Some(option), required: true };
    let kafka = ConnectorSchema {
        name: "kafka",
        target: target("topic"),
        options: vec![
            OptionSchema { required: true, ..option("brokers", OptionKind::Text) },
            option("topic", OptionKind::Template),
            option("key", OptionKind::Template),
            option("compression", OptionKind::Word(&["none", "gzip", "snappy", "lz4", "zstd"])),
            option("tls", OptionKind::Bool),
            option("tls_ca", OptionKind::Text),
            option("sasl_mechanism", OptionKind::Word(&["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])),
            option("username", OptionKind::Secret),
            option("password", OptionKind::Secret),
        ],
        passthrough: Some("librdkafka."),
        help: "",
    };
    let table = |name, address, kind| ConnectorSchema {
        name,
        target: target("table"),
        options: vec![
            OptionSchema { required: true, ..option(address, kind) },
            option("table", OptionKind::Template),
        ],
        passthrough: None,
        help: "",
    };
    let sqlite = table("sqlite", "path", OptionKind::Text);
    Host::edge(vec![kafka, table("postgres", "url", OptionKind::Secret), sqlite])
}

fn import(files: &[PathBuf], host: &Host) -> (String, String, i32) {
    let (mut out, mut told) = (Vec::new(), Vec::new());
    let code = cli::import(files, host, &mut out, &mut told).unwrap();
    (String::from_utf8(out).unwrap(), String::from_utf8(told).unwrap(), code)
}

fn expect(path: &Path, got: &str) {
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(path, got).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(got, expected, "{}", path.display());
}

#[test]
fn every_file_becomes_rules_that_pass() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/import");
    let mut read = 0;
    for file in std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
        if file.extension().is_some_and(|e| e == "sql" || e == "txt") {
            continue;
        }
        let (text, told, code) = import(std::slice::from_ref(&file), &host());
        let named = |end: &str| PathBuf::from(format!("{}.{end}", file.display()));
        expect(&named("sql"), &text);
        expect(&named("txt"), &format!("{told}exit code {code}\n"));
        load(&[Source { name: "printed", text: &text }], &host()).unwrap();
        assert!(!text.contains("s3cr3t") && !text.contains("pa55word") && !text.contains("3rkUz"), "{text}");
        read += 1;
    }
    assert_eq!(read, 5);
}

#[test]
fn a_cloud_node_has_no_uplink_and_an_edge_no_kafka() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/import/emqx-bridges.hocon");
    let (text, told, code) = import(&[file], &Host::cloud(Vec::new()));
    load(&[Source { name: "printed", text: &text }], &Host::cloud(Vec::new())).unwrap();
    assert_eq!(code, cli::EXIT_INVALID);
    for line in [
        "not imported: rule r1: action kafka:old: unknown connector `kafka`",
        "not imported: rule r1: action mqtt:up: an MQTT bridge is the uplink of `ferrule-edge`",
        "not imported: rule r1: none of its actions was",
        "0 of 1 rule imported, 0 sinks made",
    ] {
        assert!(told.lines().any(|told| told.starts_with(line)), "{line}\n{told}");
    }
}

#[test]
fn several_files_are_one() {
    let folder = std::env::temp_dir().join(format!("ferrule-import-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (api, conf, none) =
        (folder.join("rules.json"), folder.join("cluster.hocon"), folder.join("none.hocon"));
    std::fs::write(&api, r#"[{"id":"r","sql":"SELECT * FROM \"t\"","actions":["kafka_producer:a"]}]"#)
        .unwrap();
    std::fs::write(
        &conf,
        "actions.kafka_producer.a {connector = c, parameters {topic = x}}
        connectors.kafka_producer.c {bootstrap_hosts = \"h:9\"}",
    )
    .unwrap();
    std::fs::write(&none, "listeners {}").unwrap();
    let (text, told, code) = import(&[api.clone(), conf], &host());
    assert_eq!((told.as_str(), code), ("1 of 1 rule imported, 1 sink made\n", cli::EXIT_OK), "{text}");
    // The same from EMQX's API.
    let (actions, connectors) = (folder.join("actions.json"), folder.join("connectors.json"));
    let action = r#"[{"type":"kafka_producer","name":"a","connector":"c","parameters":{"topic":"x"},"status":"connected"}]"#;
    std::fs::write(&actions, action).unwrap();
    std::fs::write(&connectors, r#"[{"type":"kafka_producer","name":"c","bootstrap_hosts":"h:9"}]"#).unwrap();
    let (again, _, code) = import(&[api.clone(), actions, connectors], &host());
    assert_eq!(
        (again.lines().skip(1).collect::<Vec<_>>(), code),
        (text.lines().skip(1).collect(), cli::EXIT_OK)
    );
    let (_, told, code) = import(&[api], &host());
    assert_eq!(code, cli::EXIT_INVALID);
    assert!(
        told.starts_with("not imported: rule r: action kafka_producer:a: the files do not say what it is"),
        "{told}"
    );
    let (_, told, code) = import(&[none], &host());
    assert_eq!((told.as_str(), code), ("error: no rules are in none.hocon\n", cli::EXIT_UNREADABLE));
    assert_eq!(import(&[folder.join("missing")], &host()).2, cli::EXIT_UNREADABLE);
    std::fs::write(
        folder.join("wrong"),
        r#"{"version":"4.4","rules":[{"id":"r","rawsql":"SELECT * FROM \"t\""}]}"#,
    )
    .unwrap();
    assert!(import(&[folder.join("wrong")], &host()).1.contains("EMQX 4"));
    std::fs::write(folder.join("wrong"), "a = 1\nb").unwrap();
    let (_, told, _) = import(&[folder.join("wrong")], &host());
    assert!(told.contains("line 2: expected `=`"), "{told}");
    std::fs::remove_dir_all(&folder).unwrap();
}

/// Files as people and programs damage them.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/import");
    let whole: Vec<Vec<u8>> =
        ["emqx.hocon", "emqx-bridges.hocon", "emqx-api.json", "nanomq.conf", "nanomq-old.conf"]
            .map(|name| std::fs::read(folder.join(name)).unwrap())
            .into();
    let bits = prop::sample::select(vec![
        "\"",
        "\"\"\"",
        "~",
        "{",
        "}",
        "[",
        "]",
        "=",
        "'",
        "\\",
        "${",
        "--",
        ";",
        "\n",
        "#",
        "//",
        ".",
        "\u{e9}",
        "null",
        "rule.x.1.sql=",
        "*/",
        "/*",
        "\r",
    ]);
    let edit = (any::<prop::sample::Index>(), 0_usize..40, bits);
    (prop::sample::select(whole), proptest::collection::vec(edit, 0..6)).prop_map(|(mut bytes, edits)| {
        for (at, gone, put) in edits {
            let at = at.index(bytes.len());
            let end = (at + gone).min(bytes.len());
            bytes.splice(at..end, put.bytes());
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Nothing panics, and what is printed passes.
    #[test]
    fn any_damage(bytes in damaged()) {
        let file = std::env::temp_dir().join(format!("ferrule-import-damaged-{}", std::process::id()));
        std::fs::write(&file, &bytes).unwrap();
        let (text, told, code) = import(std::slice::from_ref(&file), &host());
        std::fs::remove_file(&file).unwrap();
        if code == cli::EXIT_UNREADABLE {
            prop_assert!(text.is_empty() && told.starts_with("error: "), "{}", told);
        } else {
            let printed = load(&[Source { name: "printed", text: &text }], &host());
            prop_assert!(printed.is_ok(), "{}\n{:?}", text, printed.err());
        }
    }
}
