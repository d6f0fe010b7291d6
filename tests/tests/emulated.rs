//! The ARM binaries of `make cross` under qemu's user-mode emulation, with a native cloud: devices, rules, outbox, uplink, kill -9; and the
//! year 2040 on 32 bits, where std's own clock ends in 2038.
//!
//! What is not built (`dist/TARGET/ferrule-edge`) or cannot be emulated here is skipped, with a message that says what to type. An emulator
//! runs the program's own instructions on this machine's kernel: it shows nothing of a board's memory, speed or SD card
//! (docs/raspberry-pi.md lists what to look at there).
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use ferrule_mqtt::{QoS, Version};
use ferrule_testkit::dial::Trust;
use ferrule_testkit::node::{assert_accounts, count, outbox};
use ferrule_testkit::oracle::Copies;
use ferrule_testkit::wire::Options;
use ferrule_testkit::{Certs, Client, Config, Dial, Fleet, Node, Plan, until};
use ferrule_tests::{EDGE_RULES, PATIENCE, check_rows, cloud_rules, make_sqlite_table, skipped, sqlite_rows};

/// A target of `cross/build.sh`, and how it is emulated.
struct Machine {
    target: &'static str,
    emulator: &'static [&'static str],
}

const AARCH64: Machine = Machine { target: "aarch64-unknown-linux-musl", emulator: &["qemu-aarch64-static"] };
const ARMV7: Machine =
    Machine { target: "armv7-unknown-linux-musleabihf", emulator: &["qemu-arm-static", "-cpu", "cortex-a7"] };
/// A Pi Zero's core.
const ARMV6: Machine =
    Machine { target: "arm-unknown-linux-musleabihf", emulator: &["qemu-arm-static", "-cpu", "arm1176"] };
/// Emulated by an emulator that loads libraries, so that another clock can be put before it.
const ARMV7_IN_2040: Machine =
    Machine { target: "armv7-unknown-linux-musleabihf", emulator: &["qemu-arm", "-cpu", "cortex-a7"] };
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

/// An edge on `machine`, or None with a message.
fn edge(machine: &Machine) -> Option<Config> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let binary = root.join("dist").join(machine.target).join("ferrule-edge");
    if !binary.is_file() {
        skipped(&format!("{} is not there; type: make cross", binary.display()));
        return None;
    }
    if find(machine.emulator[0]).is_none() {
        skipped(&format!("no {}; type: apt-get install -y qemu-user qemu-user-static", machine.emulator[0]));
        return None;
    }
    Some(Config::edge().through(machine.emulator).program(binary))
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// Devices stream through the gateway while it is killed, once with a backlog that is on its disk alone.
fn the_whole_job(machine: &Machine) {
    let Some(config) = edge(machine) else { return };
    let folder = tempfile::tempdir().unwrap();
    let sqlite = folder.path().join("sink.db");
    make_sqlite_table(&sqlite);
    let mut cloud = Node::start(&Config::cloud().rules(cloud_rules(None, None, Some(&sqlite))));
    // A second rule that computes, and whose rows stay on the gateway.
    let rules = format!(
        "{EDGE_RULES}CREATE RULE even AS INSERT INTO local.\"even/${{clientid}}\" SELECT payload.n * 2 AS twice, round(payload.n / 3, 2) AS third FROM \"factory/#\" WHERE payload.n mod 2 = 0;"
    );
    let mut gateway = Node::start(&config.rules(rules).uplink(cloud.addr()));

    let plan = Plan { devices: 5, messages: 200, window: 8, per_second: Some(30.0), ..Plan::default() };
    let fleet = Fleet::start(gateway.addr(), plan);
    let at = |per_cent: u64| fleet.wait_acknowledged(fleet.total() * per_cent / 100, PATIENCE);
    at(20);
    gateway.kill9();
    gateway.restart();
    at(40);
    cloud.pause();
    at(60);
    gateway.kill9();
    gateway.restart();
    let status = gateway.status();
    assert!(count(outbox(&status, "cloud"), "recovered") > 0, "{status:#}");
    cloud.resume();
    at(80);
    assert!(gateway.terminate().success());
    gateway.restart();

    let ledger = fleet.finish(PATIENCE);
    assert_eq!(ledger.acknowledged(), 1000);
    let status = gateway.wait_drained(PATIENCE);
    assert_accounts(&status);
    assert_accounts(&cloud.wait_drained(PATIENCE));
    check_rows("SQLite", &ledger, &sqlite_rows(&sqlite), Copies::AsSent);

    let mut reader = Client::connect(gateway.addr(), &Options::v5("reader"));
    reader.subscribe("even/#", QoS::AtLeastOnce);
    let mut device = Client::connect(gateway.addr(), &Options::v4("one"));
    for n in 3..5 {
        device.publish("factory/one", format!("{{\"n\":{n}}}").as_bytes(), QoS::AtLeastOnce, false);
    }
    let message = reader.expect_message();
    assert_eq!((message.topic.as_str(), message.text()), ("even/one", r#"{"twice":8,"third":1.33}"#));
    let log = gateway.log();
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn aarch64_does_the_whole_job() {
    the_whole_job(&AARCH64);
}

#[test]
fn armv7_does_the_whole_job() {
    the_whole_job(&ARMV7);
}

#[test]
fn armv6_does_the_whole_job() {
    the_whole_job(&ARMV6);
}

/// Everything that asks for the time: the log, rules, rows, retained messages that expire, the store, certificates, resumed TLS sessions, `$SYS`.
#[test]
fn armv7_runs_past_2038() {
    let Some(config) = edge(&ARMV7_IN_2040) else { return };
    if !Path::new(FAKETIME).is_file() {
        skipped(&format!("no {FAKETIME}; type: apt-get install -y faketime"));
        return;
    }
    // Longer than until 2040; a list of revoked ones would not be.
    let certs = Certs::make(&["--days", "6500", "--server", "localhost,127.0.0.1", "--client", "press-7"]);
    let tls = certs.tls(&format!(", client_ca = {:?}", certs.path("ca.crt")));
    let rules = "CREATE RULE clock AS INSERT INTO local.\"clock\" SELECT now() AS now, format_time(now()) AS text FROM \"tick\";";
    let config = config
        .rules(rules)
        .env("LD_PRELOAD", FAKETIME)
        .env("FAKETIME", "@2040-01-01 00:00:00")
        .env("TZ", "UTC")
        .extra("[anonymous]\nsubscribe = [\"#\", \"$SYS/#\"]")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .env("DONT_FAKE_MONOTONIC", "1")
        .extra(&format!("[[listener]]\nbind = \"127.0.0.1:0\"\nanonymous = true\n{}\n", tls));
    let mut gateway = Node::start(&config);
    assert!(gateway.log().contains("2040-01-01T00:0"), "{}", gateway.log());

    let mut client = Client::connect(gateway.addr(), &Options::v5("reader").persistent());
    client.subscribe("clock", QoS::AtLeastOnce);
    client.publish("tick", b"{}", QoS::AtLeastOnce, false);
    let message = client.expect_message();
    let said: serde_json::Value = serde_json::from_str(message.text()).unwrap();
    assert!(said["now"].as_i64().unwrap() >= 2_208_988_800_000, "{said}");
    assert!(said["text"].as_str().unwrap().starts_with("2040-01-01T00:0"), "{said}");

    // Certificates are checked against today, and sessions are resumed, by both versions of TLS.
    for trust in [certs.trust_as("press-7").tls12(), certs.trust_as("press-7").tls13()] {
        tls_twice(&gateway, &trust);
    }
    client.publish("kept", b"1", QoS::AtLeastOnce, true);
    gateway.kill9();
    gateway.restart();
    let (mut client, present) = Client::connect_session(gateway.addr(), &Options::v5("reader").persistent());
    assert!(present);
    client.publish("tick", b"{}", QoS::AtLeastOnce, false);
    assert_eq!(client.expect_message().topic, "clock");
    client.subscribe("$SYS/brokers/+/datetime", QoS::AtMostOnce);
    let datetime =
        until(PATIENCE, "$SYS tells the time", || client.recv_message(Duration::from_secs(1)).ok());
    assert!(datetime.text().starts_with("2040-"), "{}", datetime.text());
    let log = gateway.log();
    assert!(!log.contains("panicked"), "{log}");
}

/// Two connections with one configuration: the second may resume the first one's session.
fn tls_twice(node: &Node, trust: &Trust) {
    let dial = Dial::tcp(node.listener(1)).tls(&trust.config(), "localhost");
    for _ in 0..2 {
        let mut client = dial.client(Version::V5).unwrap().login(&Options::v5("over-tls"));
        client.ping();
        client.disconnect();
    }
}
