//! Rubbish at every port, and starts that must fail: one clear message, a non-zero exit, nothing else disturbed.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use ferrule_mqtt::{QoS, Version};
use ferrule_testkit::disk::SmallDisk;
use ferrule_testkit::node::{Ended, Role, assert_accounts, run_to_exit, start_to_exit, uplink_is_up};
use ferrule_testkit::oracle::Copies;
use ferrule_testkit::wire::Options;
use ferrule_testkit::{Client, Config, Fleet, Node, Plan, Relay, port, until};
use ferrule_tests::{EDGE_RULES, PATIENCE, check_rows, cloud_rules, make_sqlite_table, noise, sqlite_rows};

// === at a port ===

/// A connection that was there before the rubbish, and must not notice it.
struct Witness {
    client: Client,
    count: u32,
}

impl Witness {
    fn new(node: &Node) -> Self {
        let mut client = Client::connect(node.addr(), &Options::v5("witness"));
        client.subscribe("witness", QoS::AtLeastOnce);
        Self { client, count: 0 }
    }

    /// A message comes round on the same connection.
    fn undisturbed(&mut self) {
        self.count += 1;
        self.client.publish("witness", self.count.to_string().as_bytes(), QoS::AtLeastOnce, false);
        assert_eq!(self.client.expect_message().text(), self.count.to_string());
    }
}

/// A CONNECT of MQTT 3.1.1, client id `bad`, and what comes behind it.
fn connect_then(rest: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x10\x0f\x00\x04MQTT\x04\x02\x00\x00\x00\x03bad".to_vec();
    bytes.extend_from_slice(rest);
    bytes
}

/// Bytes after which the broker must end the connection by itself.
fn rubbish() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("HTTP", b"GET / HTTP/1.1\r\nHost: broker\r\n\r\n".to_vec()),
        ("TLS", b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03".to_vec()),
        ("zeros", vec![0; 64]),
        ("ones", vec![0xFF; 64]),
        ("a PUBLISH first", b"\x30\x05\x00\x01ahi".to_vec()),
        ("a length of five bytes", b"\x10\xff\xff\xff\xff\x7f".to_vec()),
        ("protocol level 9", b"\x10\x0f\x00\x04MQTT\x09\x02\x00\x00\x00\x03bad".to_vec()),
        ("another protocol", b"\x10\x0f\x00\x04HTTP\x04\x02\x00\x00\x00\x03bad".to_vec()),
        ("the reserved flag", b"\x10\x0f\x00\x04MQTT\x04\x03\x00\x00\x00\x03bad".to_vec()),
        (
            "a client id that is not UTF-8",
            b"\x10\x0f\x00\x04MQTT\x04\x02\x00\x00\x00\x03\xc3\x28\xff".to_vec(),
        ),
        ("a second CONNECT", connect_then(&connect_then(b""))),
        ("a PUBLISH of QoS 3", connect_then(b"\x36\x07\x00\x01a\x00\x01hi")),
        ("a PUBLISH to a wildcard", connect_then(b"\x30\x05\x00\x01#hi")),
        ("a PUBLISH without packet id", connect_then(b"\x32\x03\x00\x01a")),
        ("packet id 0", connect_then(b"\x32\x07\x00\x01a\x00\x00hi")),
        ("a SUBSCRIBE with the wrong flags", connect_then(b"\x80\x06\x00\x01\x00\x01a\x00")),
        ("a SUBSCRIBE of nothing", connect_then(b"\x82\x02\x00\x01")),
        ("a CONNACK from a client", connect_then(b"\x20\x02\x00\x00")),
        ("type 0", connect_then(b"\x00\x00")),
        ("a topic longer than its packet", connect_then(b"\x30\x05\xff\xffahi")),
    ]
}

fn rubbish_at(node: &Node) {
    let mut witness = Witness::new(node);
    for (name, bytes) in rubbish() {
        // A protocol level that nobody knows is refused in the newest version's words.
        let version = if name == "protocol level 9" { Version::V5 } else { Version::V3_1_1 };
        let mut bad = Client::open(node.addr(), version).unwrap();
        let _ = bad.send_raw(&bytes); // the broker may have closed it after the first of them
        let end = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| bad.expect_closed()));
        assert!(end.is_ok(), "{name}: not closed");
        witness.undisturbed();
    }
    for seed in 0..200 {
        let mut bad = Client::open(node.addr(), Version::V5).unwrap();
        let behind_connect = seed % 2 == 1;
        let noise = noise(seed, 300);
        let _ = bad.send_raw(&if behind_connect { connect_then(&noise) } else { noise });
    }
    // Frames that never end, and connections that say nothing, are kept or closed; either way the others go on.
    let silent: Vec<Client> = (0..100).map(|_| Client::open(node.addr(), Version::V5).unwrap()).collect();
    let mut endless = Client::open(node.addr(), Version::V5).unwrap();
    endless.send_raw(b"\x10\xff\xff\xff\x7f\x00\x04MQTT").unwrap();
    witness.undisturbed();
    drop((silent, endless));
    witness.undisturbed();
    assert!(!node.log().contains("panicked"), "{}", node.log());
}

#[test]
fn rubbish_at_the_edge_disturbs_nobody() {
    rubbish_at(&Node::start(&Config::edge().bare()));
}

#[test]
fn rubbish_at_the_cloud_disturbs_nobody() {
    rubbish_at(&Node::start(&Config::cloud()));
}

#[test]
fn rubbish_at_the_control_socket_is_answered_in_words() {
    for config in [Config::edge(), Config::cloud()] {
        let node = Node::start(&config);
        let mut witness = Witness::new(&node);
        let path = node.data_dir().join("ferrule.sock");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "whoever may connect may do anything");
        let connect = || {
            let socket = UnixStream::connect(&path).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            socket.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
            socket
        };
        for line in
            ["{}", "[]", "null", "not JSON", r#"{"do":"no such thing"}"#, r#"{"do":1}"#, "{\"do\":\"stat", ""]
        {
            let mut socket = connect();
            writeln!(socket, "{line}").unwrap();
            let mut answer = String::new();
            BufReader::new(&socket).read_line(&mut answer).unwrap();
            let answer: serde_json::Value =
                serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{line}: {error} in {answer:?}"));
            assert!(answer["error"].is_string(), "{line}: {answer}");
        }
        // A line that does not end, and one that is cut off.
        let mut socket = connect();
        let _ = socket.write_all(&vec![b'x'; 4 * 1024 * 1024]); // refused at some length, or read and thrown away
        let _ = socket.shutdown(std::net::Shutdown::Write);
        let _ = socket.read(&mut [0; 1024]);
        let mut socket = connect();
        socket.write_all(&noise(1, 1000)).unwrap();
        drop(socket);
        witness.undisturbed();
        assert!(node.status()["role"].is_string());
        assert!(!node.log().contains("panicked"), "{}", node.log());
    }
}

// === at the start ===

/// Starts an edge from these files and lets it fail.
fn failing_start(toml: &str, rules: &str) -> Ended {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("edge.toml"), toml).unwrap();
    std::fs::write(folder.path().join("rules.sql"), rules).unwrap();
    run_to_exit(Role::Edge, &["run", "--config", folder.path().join("edge.toml").to_str().unwrap()])
}

/// A configuration that is right, with its data in `data_dir`.
fn good(data_dir: &Path) -> String {
    let bind = port::free_addr();
    format!(
        "[edge]\ndata_dir = {data_dir:?}\nrules = \"rules.sql\"\n[[listener]]\nbind = \"{bind}\"\nanonymous = true\n"
    )
}

/// It failed, and said so in words: every one of `wanted`, few lines, and no traces of its insides.
fn assert_clear(ended: &Ended, wanted: &[&str]) {
    let Ended { status, output } = ended;
    assert!(status.code().is_some_and(|code| code != 0), "{status}: {output}");
    for word in wanted {
        assert!(output.contains(word), "no {word:?} in:\n{output}");
    }
    for word in ["panicked", "RUST_BACKTRACE", "stack backtrace"] {
        assert!(!output.contains(word), "{word} in:\n{output}");
    }
    assert!(output.lines().count() <= 25, "too many words:\n{output}");
}

#[test]
fn mistakes_in_the_rules_are_shown_with_line_column_and_caret() {
    let data = tempfile::tempdir().unwrap();
    let rules = "-- two mistakes, both told\nCREATE RULE a AS INSERT INTO cloud SELECT * FORM \"t\";\n\
                 CREATE RULE b AS INSERT INTO cloud SELECT no_such_function(1) AS x FROM \"t\";\n";
    let ended = failing_start(&good(data.path()), rules);
    assert_clear(&ended, &["rules.sql:2:", "rules.sql:3:", "^", "no_such_function"]);

    // The command for editors and CI says the same.
    let file = data.path().join("rules.sql");
    std::fs::write(&file, rules).unwrap();
    let ended = run_to_exit(Role::Edge, &["rules", "check", file.to_str().unwrap()]);
    assert_clear(&ended, &["rules.sql:2:", "rules.sql:3:", "^"]);
    std::fs::write(&file, EDGE_RULES).unwrap();
    let ended = run_to_exit(Role::Edge, &["rules", "check", file.to_str().unwrap()]);
    assert!(ended.status.success(), "{}", ended.output);
}

#[test]
fn a_bad_reload_keeps_the_old_rules() {
    let rule = |out: &str| format!("CREATE RULE r AS INSERT INTO local.\"{out}\" SELECT * FROM \"in\";\n");
    let edge = Node::start(&Config::edge().rules(rule("out/old")));
    let mut client = Client::connect(edge.addr(), &Options::v5("c"));
    client.subscribe("out/#", QoS::AtLeastOnce);
    let mut ask = || {
        client.publish("in", b"x", QoS::AtLeastOnce, false);
        client.expect_message().topic
    };
    assert_eq!(ask(), "out/old");
    // A good statement before a bad one: neither is taken.
    edge.write_rules(&format!("{}CREATE RULE bad AS SELECT;\n", rule("out/half")));
    until(PATIENCE, "the mistake is told", || edge.log().contains("rules.sql:2:").then_some(()));
    assert_eq!(ask(), "out/old");
    edge.write_rules(&rule("out/new"));
    until(PATIENCE, "the new rules are in force", || (ask() == "out/new").then_some(()));
}

#[test]
fn mistakes_in_the_configuration_are_told_all_at_once() {
    let data = tempfile::tempdir().unwrap();
    let good = good(data.path());
    let wrong = format!("{good}\n[mqtt]\nreceive_maxx = 3\n[uplinkk]\nurl = \"mqtt://127.0.0.1:1\"\n");
    assert_clear(&failing_start(&wrong, ""), &["edge.toml", "receive_maxx", "uplinkk"]);

    let table: [(&str, &[&str]); 5] = [
        ("[uplink]\nurl = \"gopher://127.0.0.1\"\n", &["edge.toml", "gopher"]),
        ("[[listener]]\nbind = \"0.0.0.0:0\"\nanonymous = true\n", &["anonymous"]),
        ("[[listener]]\nbind = \"nowhere\"\n", &["nowhere"]),
        ("[[user]]\nname = \"u\"\npassword_file = \"missing.pass\"\n", &["missing.pass"]),
        ("[mqtt\n", &["edge.toml"]),
    ];
    for (more, wanted) in table {
        assert_clear(&failing_start(&format!("{good}{more}"), ""), wanted);
    }
}

#[test]
fn missing_files_are_named() {
    let data = tempfile::tempdir().unwrap();
    let missing = data.path().join("no-such.toml");
    let ended = run_to_exit(Role::Edge, &["run", "--config", missing.to_str().unwrap()]);
    assert_clear(&ended, &["no-such.toml"]);
    let toml = good(data.path()).replace("rules.sql", "no-such.sql");
    assert_clear(&failing_start(&toml, ""), &["no-such.sql"]);
}

#[test]
fn the_status_command_asks_the_running_node_and_says_when_there_is_none() {
    for (config, role, name) in
        [(Config::edge(), Role::Edge, "edge"), (Config::cloud(), Role::Cloud, "cloud")]
    {
        let mut node = Node::start(&config);
        let data_dir = node.data_dir().to_str().unwrap().to_owned();
        let status = run_to_exit(role, &["status", "--data-dir", &data_dir]);
        assert!(status.status.success(), "{}", status.output);
        assert_eq!(node.status()["role"], name);
        assert!(status.output.contains(&node.addr().to_string()), "no listener in:\n{}", status.output);
        node.kill9();
        assert_clear(&run_to_exit(role, &["status", "--data-dir", &data_dir]), &[&data_dir]);
    }
    assert_clear(&run_to_exit(Role::Edge, &["no-such-command"]), &["no-such-command"]);
    assert!(run_to_exit(Role::Edge, &["--help"]).output.contains("run"));
}

#[test]
fn a_taken_port_and_a_taken_data_folder_disturb_only_the_second() {
    let first = Node::start(&Config::edge());
    let mut witness = Witness::new(&first);
    let port = first.addr().to_string();
    let ended = start_to_exit(&Config::edge().listen(first.addr()));
    assert_clear(&ended, &[&port, "in use"]);
    witness.undisturbed();
    let ended = start_to_exit(&Config::edge().data_dir(first.data_dir()));
    assert_clear(&ended, &[first.data_dir().to_str().unwrap()]);
    witness.undisturbed();
    assert!(first.try_status().is_ok(), "its control socket was taken away");
}

#[test]
fn a_full_disk_at_the_start_is_told() {
    let Some(disk) = SmallDisk::new(1024) else { return };
    let first = Node::start(&Config::edge());
    let mut witness = Witness::new(&first);
    disk.fill();
    let data_dir = disk.path().join("data");
    let ended = start_to_exit(&Config::edge().data_dir(&data_dir));
    assert_clear(&ended, &[disk.path().to_str().unwrap()]);
    assert!(
        ended.output.to_lowercase().contains("no space left"),
        "what is wrong is not told:\n{}",
        ended.output
    );
    witness.undisturbed();
}

#[test]
fn a_read_only_data_folder_is_told() {
    let Some(disk) = SmallDisk::new(1024) else { return };
    disk.read_only();
    let ended = start_to_exit(&Config::edge().data_dir(disk.path().join("data")));
    assert_clear(&ended, &[disk.path().to_str().unwrap()]);
    assert!(
        ended.output.to_lowercase().contains("read-only"),
        "what is wrong is not told:\n{}",
        ended.output
    );
}

#[test]
fn a_disk_that_fills_up_withholds_acknowledgements_and_loses_nothing() {
    let Some(disk) = SmallDisk::new(64 * 1024) else { return };
    let folder = tempfile::tempdir().unwrap();
    let sqlite = folder.path().join("sink.db");
    make_sqlite_table(&sqlite);
    let cloud = Node::start(&Config::cloud().rules(cloud_rules(None, None, Some(&sqlite))));
    let relay = Relay::start(cloud.addr());
    let config = Config::edge().rules(EDGE_RULES).uplink(relay.addr());
    let edge = Node::start(&config.data_dir(disk.path().join("data")));
    relay.refuse();
    edge.wait_status(PATIENCE, "the uplink is down", |status| !uplink_is_up(status));

    let plan =
        Plan { devices: 5, messages: 400, window: 4, per_second: Some(100.0), pad: 1000, ..Plan::default() };
    let fleet = Fleet::start(edge.addr(), plan);
    fleet.wait_acknowledged(200, PATIENCE);
    disk.fill();
    edge.wait_status(PATIENCE, "the edge notices that its disk is full", |status| {
        status["store"]["state"] != "ok"
    });
    assert!(fleet.acknowledged() < 2000, "the fleet was done before the disk was full");
    // It withholds; it does not refuse, and it does not fall over.
    Client::connect(edge.addr(), &Options::v5("other")).ping();
    assert_eq!(fleet.refused(), 0);
    disk.free();
    relay.heal();
    let ledger = fleet.finish(PATIENCE);
    assert_accounts(&edge.wait_drained(PATIENCE));
    cloud.wait_drained(PATIENCE);
    assert_eq!(ledger.acknowledged(), 2000);
    check_rows("SQLite", &ledger, &sqlite_rows(&sqlite), Copies::AsSent);
}
