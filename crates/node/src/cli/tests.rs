#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;

pub(super) fn flavor() -> Flavor {
    Flavor {
        name: "ferrule-edge",
        version: "1.2.3",
        about: "A broker",
        connectors: || vec![std::sync::Arc::new(ferrule_sinks::Sqlite)],
        store: None,
        cluster: None,
        run: Run::Edge(|_, _| Ok(())),
    }
}

fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once(&"ferrule-edge").chain(args))
}

#[test]
fn the_commands_are_sound() {
    Cli::command().debug_assert();
}

#[test]
fn arguments() {
    for (args, ok) in [
        (&["run"][..], true),
        (&["init"], false),
        (&["init", "d", "--id", "a", "--uplink", "mqtts://c", "--listen", "0.0.0.0:1883"], true),
        (&["pub", "-h", "h", "-p", "1", "-t", "t", "-m", "-1", "-q1", "-r", "-V", "5"], true),
        (
            &[
                "pub",
                "-t",
                "t",
                "-m",
                "x",
                "-D",
                "publish",
                "user-property",
                "a",
                "b",
                "-D",
                "publish",
                "topic-alias",
                "1",
            ],
            true,
        ),
        (&["pub", "-t", "t"], false),
        (&["pub", "-t", "t", "-m", "x", "-l"], false),
        (
            &[
                "sub", "-t", "a", "-t", "b", "-v", "-C", "1", "-W", "1", "-F", "%p", "-T", "c", "-U", "d",
                "-N", "-R", "-E",
            ],
            true,
        ),
        (&["sub", "-C", "0"], false),
        (&["sub", "-V", "6"], false),
        (&["outbox", "list", "--json"], true),
        (&["outbox", "show", "cloud", "--limit", "3"], true),
        (&["outbox", "export", "cloud", "--file", "f", "--config", "c"], true),
        (&["outbox", "purge", "cloud"], false),
        (&["outbox", "purge", "cloud", "--all", "--older-than", "7d"], false),
        (&["outbox", "purge", "cloud", "--older-than", "7d", "--yes"], true),
        (&["outbox", "purge", "cloud", "--older-than", "soon"], false),
        (&["run", "--config", "f", "--listen", "0.0.0.0:1", "--data-dir", "d", "--log", "debug"], true),
        (&["run", "--listen", "somewhere"], false),
        (&["check"], false),
        (&["check", "-c", "f", "--all"], true),
        (&["status", "--json"], true),
        (&["status", "--config", "f", "--data-dir", "d"], false),
        (&["rules", "check"], false),
        (&["rules", "check", "a", "b", "--format", "json"], true),
        (&["rules", "test", "a", "--topic", "t", "--payload", "{}", "--clientid", "c", "--qos", "1"], true),
        (&["rules", "test", "a", "--topic", "t", "--payload", "-1"], false),
        (&["rules", "test", "a", "--topic", "t", "--payload=-1", "--user-property", "a=b=c"], true),
        (&["rules", "test", "a", "--topic", "t", "--user-property", "a"], false),
        (&["rules", "test", "a", "--topic", "t", "--qos", "3"], false),
        (&["rules", "test", "a"], false),
        (&["rules", "test", "a", "--message", "{}", "--message", "{}"], true),
        (&["rules", "test", "a", "--topic", "t", "--messages", "-"], true),
        (&["rules", "test", "a", "--message", "{}", "--messages", "-"], false),
        (&["rules", "eval"], true),
        (&["rules", "explain", "a"], true),
        (&["passwd"], true),
        (&["passwd", "secret"], false),
        (&["cert"], true),
        (&["cert", "--server", "a,b", "--client", "c", "--client", "d,e", "--days", "30", "--renew"], true),
        (&["cert", "--dir", "d", "--revoke", "c"], true),
        (&["cert", "--days", "0"], false),
        (&[], false),
    ] {
        assert_eq!(parse(args).is_ok(), ok, "{args:?}");
    }
}

#[test]
fn a_message_for_rules_test() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("payload");
    std::fs::write(&file, b"\xff\x00").unwrap();
    let at = format!("@{}", file.display());
    for (payload, bytes) in [("{}", &b"{}"[..]), (&at, b"\xff\x00")] {
        let args =
            ["rules", "test", "r.sql", "--topic", "t", "--timestamp=-5", "--retain", "--payload", payload];
        let Command::Rules(RulesCommand::Test(args)) = parse(&args).unwrap().command else { panic!() };
        let Ok(message) = message(*args) else { panic!("it can be read") };
        assert_eq!((message.payload.as_slice(), message.topic.as_str()), (bytes, "t"));
        assert_eq!((message.timestamp_ms, message.retain, message.clientid.as_str()), (-5, true, "test"));
    }
}

#[test]
fn messages_for_rules_test() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("messages.jsonl");
    let read = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let file = file.display().to_string();
        let args = ["rules", "test", "r.sql", "--topic", "t", "--timestamp=5", "--messages", &file];
        let Command::Rules(RulesCommand::Test(args)) = parse(&args).unwrap().command else { panic!() };
        messages(*args)
    };
    let Ok(all) = read("{\"payload\":1}\n\n{\"topic\":\"u\",\"at\":\"+1s\"}\n") else {
        panic!("two can be read")
    };
    let seen: Vec<_> = all.iter().map(|m| (m.topic.as_str(), m.timestamp_ms, m.payload.as_slice())).collect();
    assert_eq!(seen, [("t", 5, &b"1"[..]), ("u", 1_005, b"")]);
    let Err(Failure::Text(error)) = read("{}\n{\"qos\":3}\n") else { panic!("the second is none") };
    assert_eq!(error, format!("{}:2: `qos` takes 0, 1 or 2", file.display()));
}

#[test]
fn settings_and_their_sources() {
    let mut overrides = Overrides::from_env([("FERRULE__MQTT__RECEIVE_MAX", "9")]);
    overrides.option("--data-dir", &["edge", "data_dir"], "d");
    let text = "[[listener]]\nbind = \"127.0.0.1:0\"\nanonymous = true\n[uplink]\nurl = \"mqtt://a\"\n";
    let broker = EdgeConfig::parse("edge.toml", text, Path::new(""), &overrides).unwrap().broker;
    let mut args = CheckArgs { config: "edge.toml".into(), all: false };
    let expected = "\
edge.data_dir = \"d\"            # --data-dir
listener.0.bind = \"127.0.0.1:0\"  # edge.toml:2
listener.0.anonymous = true    # edge.toml:3
mqtt.receive_max = 9           # FERRULE__MQTT__RECEIVE_MAX
uplink.url = [\"mqtt://a\"]      # edge.toml:5";
    // The longest sets the width.
    let expected: Vec<(&str, &str)> = expected
        .lines()
        .map(|line| line.split_once("  # ").unwrap())
        .map(|(a, b)| (a.trim_end(), b))
        .collect();
    let shown = settings(&broker, &args);
    let found: Vec<(&str, &str)> =
        shown.iter().map(|line| line.split_once("  # ").unwrap()).map(|(a, b)| (a.trim_end(), b)).collect();
    assert_eq!(found, expected);
    assert_eq!(
        shown.iter().map(|l| l.find("  # ")).collect::<std::collections::HashSet<_>>().len(),
        1,
        "aligned"
    );
    args.all = true;
    let all = settings(&broker, &args);
    assert!(all.iter().any(|l| l.starts_with("edge.id = (not set) ") && l.ends_with("# default")), "{all:?}");
    assert!(all.iter().any(|l| l.starts_with("outbox.ack_deadline = \"800ms\" ")), "{all:?}");
}

#[test]
fn check_reads_configuration_and_rules() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("edge.toml");
    std::fs::write(&config, "[[listener]]\nbind = \"127.0.0.1:0\"\nanonymous = true\n").unwrap();
    let args = CheckArgs { config: config.clone(), all: false };
    assert!(matches!(check(&flavor(), &args), Ok(0)));
    std::fs::write(&config, "[listener]\n").unwrap();
    assert!(matches!(check(&flavor(), &args), Err(Failure::Config(_))));
}

#[test]
fn status_says_when_nothing_runs() {
    let dir = tempfile::tempdir().unwrap();
    let args = StatusArgs {
        ask: AskArgs { data_dir: Some(dir.path().to_owned()), config: None, json: false },
        settings: false,
    };
    let Err(Failure::Text(text)) = show_status(&flavor(), &args) else { panic!("nothing runs there") };
    assert!(
        text.starts_with("no ferrule runs on ") && text.ends_with("start it with `ferrule-edge run`"),
        "{text}"
    );
}

#[test]
fn rules_check_finds_what_run_finds() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("r.sql");
    let text = "-- two sinks\nCREATE SINK a WITH (connector = 'sqlite', path = '', table = 't');\n\
                CREATE SINK b WITH (connector = 'sqlite', path = ':memory:', table = 't');\n";
    std::fs::write(&file, text).unwrap();
    let run = |format| {
        let mut out = Vec::new();
        let (code, sinks) = check::rules(&flavor(), std::slice::from_ref(&file), format, &mut out).unwrap();
        assert_eq!(sinks, if code == 0 { 2 } else { 0 });
        (code, String::from_utf8(out).unwrap())
    };
    let (code, out) = run(Format::Text);
    let name = file.display().to_string();
    assert_eq!(code, 1);
    assert!(out.contains(&format!("{name}:2:1: error: sink `a`: option `path` = '': ")), "{out}");
    assert!(out.contains(&format!("{name}:3:1: error: sink `b`: option `path` = ':memory:': ")), "{out}");
    assert!(out.ends_with("2 errors in 1 file\n"), "{out}");
    let (code, out) = run(Format::Json);
    let lines: Vec<Value> = out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!((code, lines.len()), (1, 2), "{out}");
    assert_eq!((&lines[1]["line"], &lines[1]["column"]), (&json!(3), &json!(1)));
    assert_eq!(lines[1]["file"], name);

    // `check --config` looks through the same eyes.
    let config = dir.path().join("edge.toml");
    std::fs::write(
        &config,
        "[edge]\nrules = \"r.sql\"\n[[listener]]\nbind = \"127.0.0.1:0\"\nanonymous = true\n",
    )
    .unwrap();
    let args = CheckArgs { config, all: false };
    assert!(matches!(check(&flavor(), &args), Ok(1)));
    std::fs::write(&file, text.replace("''", "'x'").replace(":memory:", "y")).unwrap();
    assert_eq!(run(Format::Text), (0, "1 file, 0 rules, 2 sinks: no errors\n".to_owned()));
    assert!(matches!(check(&flavor(), &args), Ok(0)));
}
