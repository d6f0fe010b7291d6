//! What a reload makes of each setting, and of configurations that differ.

use super::*;
use crate::config::changes::{Changes, FIELDS, Takes, Whole, takes};
use std::collections::BTreeSet;
use std::fmt::Write;

const LISTS: &str = "[[rewrite]]\nsource_topic = \"x/#\"\nre = \"^x/(.+)$\"\ndest_topic = \"z/$1\"\n\
                     [[auto_subscribe]]\ntopic = \"to/${clientid}\"\n";

/// A folder with what the examples name.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in ["uplink.pass", "proxy.pass", "device.key", "user.pass", "cluster.token"] {
        std::fs::write(dir.path().join(file), "secret").unwrap();
    }
    dir
}

fn whole(edge: bool, text: &str, base: &Path, overrides: &Overrides) -> Result<Whole, ConfigErrors> {
    if edge {
        let config = EdgeConfig::parse("f", text, base, overrides)?;
        return Ok(Whole { broker: config.broker, uplink: config.uplink });
    }
    Ok(Whole { broker: CloudConfig::parse("f", text, base, overrides)?.broker, uplink: None })
}

/// All settings of a program, each with a value.
fn everything(edge: bool) -> String {
    let file = if edge { EDGE_DEFAULT_FILE } else { CLOUD_DEFAULT_FILE };
    let text = examples_that_agree(file).replace("role = \"device\"", "role = \"edge\"");
    // A cluster needs it.
    text.replace("backend = \"sqlite\"", "backend = \"postgres\"") + LISTS
}

/// A path without the numbers of lists.
fn field(path: &str) -> String {
    path.split('.').filter(|part| part.parse::<usize>().is_err()).collect::<Vec<_>>().join(".")
}

#[test]
fn each_setting_is_decided_on_once() {
    let dir = folder();
    let mut read = BTreeSet::new();
    for edge in [true, false] {
        let whole = whole(edge, &everything(edge), dir.path(), &Overrides::default());
        let whole = whole.unwrap_or_else(|errors| panic!("{errors}"));
        read.extend(whole.broker.settings.iter().map(|setting| field(&setting.path)));
    }
    let mut named: Vec<String> = Vec::new();
    for (section, _, keys) in FIELDS {
        named.extend(keys.iter().map(|key| format!("{section}.{key}")));
    }
    named.sort_unstable();
    assert_eq!(named, read.into_iter().collect::<Vec<_>>());
    assert_eq!(
        takes("uplink.a_new_one"),
        Takes::Restart,
        "what nobody decided on is not said to be in force"
    );
}

/// Values of all forms: some setting takes each of them.
const VALUES: [&str; 37] = [
    "postgres",
    "127.0.0.1:7",
    "[\"10.9.0.0:7883\"]",
    "3GiB",
    "0",
    "2KiB",
    "20KiB",
    "/other",
    "^y/(.+)$",
    "3",
    "7s",
    "70ms",
    "5MiB",
    "true",
    "false",
    "other",
    "user.pass",
    "ws",
    "mqtt",
    "san",
    "password",
    "optional",
    "0600",
    "random",
    "publish",
    "drop_oldest",
    "live_first",
    "properties",
    "4",
    "[\"other/#\"]",
    "[\"10.9.0.0/16\"]",
    "other/#",
    "2",
    "1",
    "mqtts://other.example",
    "http://other.example:1",
    "unix:other.sock",
];

/// Each setting is given another value from outside, whatever the reader takes: what is said then is what the table says.
#[test]
fn what_the_table_says_is_what_becomes_of_a_change() {
    // Values that others have to fit: each is a case of the table below.
    let apart = [
        "user.scram",
        "user.password",
        "user.password_file",
        "user.role",
        "user.edge",
        // Not shown, so not seen to change either: as a whole, below.
        "store.url",
        // A cluster needs PostgreSQL.
        "store.backend",
        "uplink.preset",
        "uplink.shared_key_file",
        "uplink.batch",
        "listener.protocol",
        "listener.anonymous",
    ];
    let dir = folder();
    for edge in [true, false] {
        let text = everything(edge);
        let running = whole(edge, &text, dir.path(), &Overrides::default()).unwrap_or_else(|e| panic!("{e}"));
        // From outside a path is relative to the process.
        let file = dir.path().join("device.key").to_string_lossy().into_owned();
        let mut unchanged = Vec::new();
        for setting in &running.broker.settings {
            let name = format!("FERRULE__{}", setting.path.replace('.', "__").to_uppercase());
            let other = VALUES.into_iter().chain([&*file]).find_map(|value| {
                let wanted = whole(edge, &text, dir.path(), &env(&[(&name, value)])).ok()?;
                let now = wanted.broker.settings.iter().find(|s| s.path == setting.path)?;
                (now.value != setting.value).then_some(wanted)
            });
            let Some(wanted) = other else {
                unchanged.push(field(&setting.path));
                continue;
            };
            let (_, changes) = Changes::between(&running, wanted);
            let is_restart = takes(&setting.path) == Takes::Restart;
            let (told, not) = match is_restart {
                true => (&changes.restart, &changes.taken),
                false => (&changes.taken, &changes.restart),
            };
            assert!(!told.is_empty() && not.is_empty(), "{}: {changes:?}", setting.path);
        }
        unchanged.retain(|field| !apart.contains(&field.as_str()));
        assert_eq!(unchanged, Vec::<String>::new());
    }
}

/// One after the other, each compared with what is in force after the one before.
#[test]
fn one_configuration_after_the_other() {
    let dir = folder();
    let user = |name: &str| format!("[[user]]\nname = \"{name}\"\npassword_file = \"user.pass\"\n");
    let listener = |port: u16| format!("[[listener]]\nbind = \"127.0.0.1:{port}\"\nanonymous = true\n");
    let limited = listener(1) + "[listener.limits]\nreceive_max = 9\n";
    let uplink = "[uplink]\nurl = \"mqtt://a\"\nusername = \"u\"\npassword_file = \"uplink.pass\"\n";
    let down = "[[downlink]]\nfilter = \"a/#\"\n";
    let edge = |workers: u16| format!("[edge]\nid = \"e\"\nworkers = {workers}\n");
    let steps: Vec<(String, &[&str], &[&str])> = vec![
        (edge(1) + &listener(1) + &listener(2), &[], &[]),
        // The order of the file says nothing.
        (edge(1) + &listener(2) + &listener(1), &[], &[]),
        (
            edge(1) + &listener(2) + &limited,
            &["listener 127.0.0.1:1: limits.receive_max = 9, was (not set)"],
            &[],
        ),
        (
            edge(2) + &limited + &listener(3),
            &["listener 127.0.0.1:3 is new", "listener 127.0.0.1:2 is not there any more"],
            &["edge.workers = 2 needs a restart; until then it is 1"],
        ),
        // Still, beside what is new.
        (
            edge(2) + &limited + &listener(3) + "[outbox]\nmax_age = \"1h\"\n",
            &["outbox.max_age = \"1h\", was \"0s\""],
            &["edge.workers = 2 needs a restart; until then it is 1"],
        ),
        (
            edge(1) + &limited + &listener(2),
            &[
                "outbox.max_age = \"0s\", was \"1h\"",
                "listener 127.0.0.1:2 is new",
                "listener 127.0.0.1:3 is not there any more",
            ],
            &[],
        ),
        (
            edge(1) + &listener(1) + &listener(2) + &user("ann"),
            &["listener 127.0.0.1:1: limits.receive_max is not there any more, was 9", "user \"ann\" is new"],
            &[],
        ),
        (
            edge(1) + &listener(1) + &listener(2) + &user("bob") + &user("ann") + "deny = [\"x\"]\n",
            &["user \"bob\" is new", "user \"ann\""],
            &[],
        ),
        (
            edge(1) + &listener(1) + &listener(2) + &user("ann") + "deny = [\"x\"]\n" + uplink,
            &["user \"bob\" is not there any more", "[uplink] is new"],
            &[],
        ),
        (
            edge(1) + &listener(1) + &listener(2) + uplink + down,
            &["user \"ann\" is not there any more", "[[downlink]]"],
            &[],
        ),
        (
            edge(1) + &listener(1) + &listener(2) + &uplink.replace("//a", "//b") + down,
            &["uplink.url = [\"mqtt://b\"], was [\"mqtt://a\"]"],
            &[],
        ),
        (
            edge(1) + &listener(1) + &listener(2) + LISTS,
            &["[[rewrite]]", "[[auto_subscribe]]", "[uplink] is not there any more: its rows are kept"],
            &[],
        ),
    ];
    let read = |text: &str| {
        whole(true, text, dir.path(), &Overrides::default()).unwrap_or_else(|e| panic!("{text}\n{e}"))
    };
    let mut running = read(&steps[0].0);
    for (text, taken, restart) in steps {
        let (next, changes) = Changes::between(&running, read(&text));
        let lines = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect();
        assert_eq!(changes, Changes { taken: lines(taken), restart: lines(restart) }, "{text}");
        running = next;
        // What is in force is as it was where it has to be, and says so.
        assert_eq!(running.broker.node.workers, 1);
        let setting = |path: &str| {
            let setting = running.broker.settings.iter().find(|setting| setting.path == path);
            setting.unwrap_or_else(|| panic!("{path}")).value.clone().unwrap()
        };
        assert_eq!(setting("edge.workers"), "1");
        for (at, listener) in running.broker.listeners.iter().enumerate() {
            assert_eq!(setting(&format!("listener.{at}.bind")), format!("\"{}\"", listener.bind), "{text}");
        }
        assert_eq!(running.broker.listeners.len(), text.matches("[[listener]]").count());
    }
}

/// The ports of each configuration, and the numbers of the listeners then.
#[test]
fn a_listener_keeps_its_number_and_no_other_gets_it() {
    let dir = folder();
    let read = |ports: &[u16]| {
        let listener = |port: &u16| format!("[[listener]]\nbind = \"127.0.0.1:{port}\"\nanonymous = true\n");
        let text: String = ports.iter().map(listener).collect();
        whole(true, &text, dir.path(), &Overrides::default()).unwrap_or_else(|e| panic!("{text}\n{e}"))
    };
    let mut running = read(&[1, 2]);
    for (ports, numbers) in [
        (&[1, 2][..], &[0, 1][..]),
        (&[2, 1], &[1, 0]),
        (&[2], &[1]),
        (&[1, 2], &[2, 1]),
        // Of two that take any port, each is one.
        (&[0, 2, 0], &[3, 1, 4]),
        (&[0, 0, 5], &[3, 4, 5]),
        (&[0, 5], &[3, 5]),
    ] {
        (running, _) = Changes::between(&running, read(ports));
        let got: Vec<u16> = running.broker.listeners.iter().map(|listener| listener.number).collect();
        assert_eq!(got, numbers, "{ports:?}");
    }
    running.broker.listener_numbers = u16::MAX;
    let (next, changes) = Changes::between(&running, read(&[0, 7, 5]));
    assert_eq!((next.broker.listeners, changes.taken), (running.broker.listeners, Vec::new()));
    assert_eq!(changes.restart.len(), 1);
    assert!(changes.restart[0].starts_with("listener 127.0.0.1:7 is new and needs a restart: "));
    assert!(next.broker.settings.iter().any(|s| s.path == "listener.1.bind"));
}

/// What is in the files that a configuration names is part of it.
#[test]
fn another_password_is_another_configuration() {
    let dir = folder();
    let text = format!(
        "{LISTENER}[[user]]\nname = \"ann\"\npassword_file = \"user.pass\"\n[uplink]\nurl = \"mqtt://a\"\n\
         username = \"u\"\npassword_file = \"uplink.pass\"\n"
    );
    let read = || whole(true, &text, dir.path(), &Overrides::default()).unwrap();
    let running = read();
    for (file, told) in [("user.pass", "user \"ann\""), ("uplink.pass", "[uplink]")] {
        std::fs::write(dir.path().join(file), "another").unwrap();
        let (_, changes) = Changes::between(&running, read());
        assert_eq!(changes.taken, [told]);
        std::fs::write(dir.path().join(file), "secret").unwrap();
    }
}

/// The table of docs/configuration.md.
fn table() -> String {
    let mut table = String::from("| section | in force | keys |\n|---|---|---|\n");
    for (section, takes, keys) in FIELDS {
        let when = match takes {
            Takes::AtOnce => "at once",
            Takes::NextConnection => "with the next connection",
            Takes::Uplink => "at once; the uplink connects anew",
            Takes::Restart => "**after a restart**",
        };
        let keys: Vec<String> = keys.iter().map(|key| format!("`{key}`")).collect();
        let _ = writeln!(table, "| `{section}` | {when} | {} |", keys.join(", "));
    }
    table
}

/// `FERRULE_WRITE_REPORT=1` writes the table; without it this says when it is not that of the source.
#[test]
fn the_table_of_the_documentation_is_that_of_the_source() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let begin = "| section | in force | keys |\n";
    let (before, rest) = page.split_once(begin).expect("the page has the table");
    let after = rest.split_once("\n\n").map_or("", |(_, after)| after);
    let wanted = format!("{before}{}\n{after}", table());
    if std::env::var_os("FERRULE_WRITE_REPORT").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    }
    assert!(
        page == wanted || std::env::var_os("FERRULE_WRITE_REPORT").is_some(),
        "run `FERRULE_WRITE_REPORT=1 cargo test --release -p ferrule-node changes`"
    );
}

/// What is not shown is compared all the same.
#[test]
fn another_server_of_the_store_needs_a_restart() {
    let dir = folder();
    let store = |url: &str| {
        format!(
            "[node]\nid = \"a\"\n[store]\nbackend = \"postgres\"\nurl = \"{url}\"\npassword_file = \"user.pass\"\n{LISTENER}"
        )
    };
    let read = |text: &str| whole(false, text, dir.path(), &Overrides::default()).unwrap();
    let running = read(&store("host=one"));
    let (now, changes) = Changes::between(&running, read(&store("host=two")));
    assert_eq!(now.broker.store, running.broker.store);
    assert_eq!(changes.restart, ["[store] needs a restart; until then it is as it was"]);
    let (_, changes) = Changes::between(&running, read(&store("host=one")));
    assert_eq!(changes, Changes::default());
}
