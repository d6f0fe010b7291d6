//! Device -> edge -> a file, an HTTP server, another broker and SQLite, with each of them away for a while and the edge
//! killed
//! meanwhile: nothing acknowledged is missing, and no row is unaccounted for.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use ferrule_mqtt::{Packet, QoS};
use ferrule_testkit::node::{assert_accounts, count, outbox, outboxes};
use ferrule_testkit::oracle::{Copies, Ledger};
use ferrule_testkit::power::{Disk, EIO, Order};
use ferrule_testkit::random::Random;
use ferrule_testkit::wire::Options;
use ferrule_testkit::{Client, Config, Fleet, HttpServer, Mosquitto, Node, Plan, node, until};
use ferrule_tests::{EDGE_RULES, PATIENCE, device_and_n, open_sqlite};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The edge and what its rules put rows into.
struct Rig {
    edge: Node,
    http: HttpServer,
    broker: Mosquitto,
    folder: TempDir,
}

/// Whoever reads at the other broker: its session keeps what comes while it is not there.
fn reader() -> Options {
    Options::v4("reader").persistent()
}

impl Rig {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let files = folder.path().join("files");
        std::fs::create_dir(&files).unwrap();
        let http = HttpServer::start(None);
        let broker = Mosquitto::start();
        let mut reader = Client::connect(broker.addr(), &reader());
        reader.subscribe("factory/#", QoS::AtLeastOnce);
        reader.disconnect();
        let rules = format!(
            "CREATE SINK f WITH (connector = 'file', path = '{files}/out.ndjson', rotate_size = '16KiB', compress = TRUE);
             CREATE SINK h WITH (connector = 'http', url = 'http://{http}/in', format = 'ndjson', timeout = '2s');
             CREATE SINK m WITH (connector = 'mqtt', url = 'mqtt://{broker}', keep_alive = '2s');
             CREATE SINK s WITH (connector = 'sqlite', path = '{files}/out.db', table = 'readings', columns = 'device text, n bigint');
             CREATE RULE whole AS INSERT INTO f, h, m SELECT * FROM \"factory/#\";
             CREATE RULE columns AS INSERT INTO s SELECT payload.device AS device, payload.n AS n FROM \"factory/#\";",
            files = files.display(),
            http = http.addr(),
            broker = broker.addr(),
        );
        Self { edge: Node::start(&Config::edge().rules(rules)), http, broker, folder }
    }

    fn files(&self) -> PathBuf {
        self.folder.path().join("files")
    }

    /// Waits until everything is where it belongs, and looks at all of it.
    fn check(mut self, fleet: Fleet) {
        let ledger = fleet.finish(PATIENCE);
        let status = self.edge.wait_drained(PATIENCE);
        assert_accounts(&status);
        for outbox in outboxes(&status) {
            assert_eq!(count(outbox, "discarded") + count(outbox, "failed"), 0, "given up: {outbox:#}");
        }
        // The end of the process is the end of all its writing.
        assert!(self.edge.terminate().success());

        let check = |destination: &str, rows: &[(String, u64)]| {
            let rows = rows.iter().map(|(device, n)| (device.as_str(), *n));
            ledger.check(rows, Copies::Any).assert_ok(destination);
        };
        check("the file", &lines(&self.files()));
        let lines: Vec<_> =
            self.http.taken().iter().flat_map(|body| body.lines().map(device_and_n)).collect();
        check("the HTTP server", &lines);
        check("the other broker", &messages(&self.broker, &ledger));
        let db = open_sqlite(&self.files().join("out.db"));
        let mut select = db.prepare("select device, n from readings order by rowid").unwrap();
        let rows: Vec<(String, i64)> = select
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        let rows = rows.iter().map(|(device, n)| (device.as_str(), u64::try_from(*n).unwrap()));
        ledger.check(rows, Copies::AsSent).assert_ok("SQLite");
    }
}

/// All lines of the file and of those that were rotated, in order.
fn lines(folder: &Path) -> Vec<(String, u64)> {
    let mut rotated: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
    rotated.retain(|path| path.file_name().unwrap().to_str().unwrap().starts_with("out-"));
    rotated.sort();
    assert!(rotated.len() > 2, "not rotated: {rotated:?}");
    let mut text = String::new();
    for path in &rotated {
        if path.extension().is_some_and(|e| e == "gz") {
            // Not by the crate that wrote it.
            text.push_str(&ferrule_testkit::proc::output(
                std::process::Command::new("gzip").arg("-dc").arg(path),
            ));
        } else if path.extension().is_some_and(|e| e == "ndjson") {
            text.push_str(&std::fs::read_to_string(path).unwrap());
        }
    }
    text.push_str(&std::fs::read_to_string(folder.join("out.ndjson")).unwrap());
    text.lines().map(device_and_n).collect()
}

/// What the reader's session has, until nothing is missing or nothing more comes.
fn messages(broker: &Mosquitto, ledger: &Ledger) -> Vec<(String, u64)> {
    let mut reader = Client::connect(broker.addr(), &reader());
    let (mut all, mut distinct) = (Vec::new(), BTreeSet::new());
    while (distinct.len() as u64) < ledger.acknowledged() {
        let Ok(message) = reader.recv_message(std::time::Duration::from_secs(10)) else { break };
        let row = device_and_n(message.text());
        distinct.insert(row.clone());
        all.push(row);
    }
    all
}

#[test]
fn each_destination_away_and_the_edge_killed_with_its_backlog() {
    let mut rig = Rig::start();
    let plan = Plan { devices: 10, messages: 300, window: 8, per_second: Some(50.0), ..Plan::default() };
    let fleet = Fleet::start(rig.edge.addr(), plan);
    let at = |fleet: &Fleet, per_cent: u64| fleet.wait_acknowledged(fleet.total() * per_cent / 100, PATIENCE);
    at(&fleet, 15);
    rig.edge.kill9();
    rig.edge.restart();
    at(&fleet, 25);
    // All at once: what the devices say is on the edge's disk alone.
    rig.http.kill9();
    rig.broker.terminate();
    let aside = rig.folder.path().join("aside");
    std::fs::rename(rig.files(), &aside).unwrap();
    at(&fleet, 50);
    let status = rig.edge.wait_status(PATIENCE, "the edge to know that they are away", |status| {
        ["f", "h", "m"].iter().all(|name| outbox(status, name)["state"] == "down")
    });
    assert_accounts(&status);
    assert!(outbox(&status, "f")["last_error"].as_str().unwrap().contains("mkdir -p"), "{status:#}");
    rig.edge.kill9();
    rig.edge.restart();
    let status = rig.edge.status();
    for name in ["f", "h", "m"] {
        assert!(count(outbox(&status, name), "recovered") > 0, "{name}: {status:#}");
    }
    at(&fleet, 60);
    rig.http.restart();
    rig.broker.restart();
    std::fs::rename(&aside, rig.files()).unwrap();
    at(&fleet, 80);
    rig.edge.kill9();
    rig.edge.restart();
    rig.check(fleet);
}

/// An edge whose file sink writes on `disk`; with `ack = 'sink'` a PUBACK is the file's alone.
fn edge_with_a_file(disk: &Disk) -> Node {
    let rules = format!(
        "CREATE SINK f WITH (connector = 'file', path = '{}/out.ndjson', rotate_size = '64KiB');
         CREATE RULE r WITH (ack = 'sink') AS INSERT INTO f SELECT * FROM \"a/#\";",
        disk.folder().display()
    );
    Node::start(&disk.config(Config::edge().rules(rules)))
}

/// A device publishes messages, numbered from `first`, and reads the acknowledgements of the first hundred; then the node
/// is killed while more are being written. Which were acknowledged.
fn acknowledged_until_killed(
    node: &mut Node,
    disk: &Disk,
    first: u64,
    random: &mut Random,
) -> std::ops::Range<u64> {
    // So that the kill mostly meets a write that is not synced yet.
    disk.order(Order::SyncDelayUs, 100_000);
    let mut device = Client::connect(node.addr(), &Options::v5("d"));
    let mut publish = |device: &mut Client, n: u64| {
        let payload = format!("{{\"n\":{n},\"x\":\"{}\"}}", "x".repeat(random.below(3_000) as usize));
        device.publish_nowait("a/d", payload.as_bytes(), QoS::AtLeastOnce, false);
    };
    (first..first + 100).for_each(|n| publish(&mut device, n));
    // They come in the order of the publishes.
    for _ in 0..100 {
        device.expect("a PUBACK", |packet| matches!(packet, Packet::Puback(_)));
    }
    let size = || numbers_in(&disk.folder()).bytes;
    let before = size();
    (first + 100..first + 150).for_each(|n| publish(&mut device, n));
    until(PATIENCE, "the file grows", || (size() != before).then_some(()));
    node.kill9();
    first..first + 100
}

/// Each acknowledged message is a whole line of what a power cut leaves, before anything is repaired; and after the
/// next start
/// nothing but whole lines is there. In every other life a sync fails.
#[test]
fn what_a_file_has_answered_survives_power_cuts() {
    let (mut count, mut in_pieces, mut failed, mut unsynced) = (0, 0, 0, 0);
    for chain in 0..4 {
        let mut disk = Disk::new();
        let mut node = edge_with_a_file(&disk);
        let mut promised = BTreeSet::new();
        for life in 0..5_u64 {
            let mut random = Random(chain * 100 + life);
            if life % 2 == 1 {
                disk.fail(Order::SyncErrno, EIO, random.below(10) as i64, 1);
            }
            promised.extend(acknowledged_until_killed(&mut node, &disk, life * 1_000, &mut random));
            failed += disk.told(Order::Failed);
            unsynced += disk.cut(&mut random).unsynced;
            let left = numbers_in(&disk.folder());
            let missing: Vec<_> = promised.iter().filter(|n| !left.whole.contains(n)).collect();
            assert!(missing.is_empty(), "chain {chain}, life {life}: of {} lost {missing:?}", promised.len());
            in_pieces += left.in_pieces;
            node.restart();
            node.wait_drained(PATIENCE);
            let left = numbers_in(&disk.folder());
            assert!(promised.iter().all(|n| left.whole.contains(n)), "chain {chain}, life {life}");
            assert_eq!(left.in_pieces, 0, "chain {chain}, life {life}");
        }
        count += promised.len();
    }
    eprintln!(
        "{count} acknowledged, 20 cuts, {failed} syncs failed, {in_pieces} lines in pieces, {unsynced} sectors unsynced"
    );
    assert!(
        count >= 400 && failed > 0 && unsynced > 0,
        "{count}, {failed}, {unsynced}: the cuts cut nothing"
    );
}

/// The test above has teeth: on a disk whose syncs do nothing rows are lost.
#[test]
fn on_a_disk_whose_syncs_do_nothing_a_file_loses_rows() {
    let lost = (0..20).any(|seed| {
        let mut disk = Disk::new();
        disk.order(Order::SyncLies, 1);
        let mut node = edge_with_a_file(&disk);
        let mut random = Random(seed);
        let promised = acknowledged_until_killed(&mut node, &disk, 0, &mut random);
        disk.cut(&mut random);
        let left = numbers_in(&disk.folder());
        promised.into_iter().any(|n| !left.whole.contains(&n))
    });
    assert!(lost, "no row was lost in 20 cuts");
}

/// What stands in the lines of a sink's files.
struct Left {
    whole: BTreeSet<u64>,
    in_pieces: usize,
    bytes: usize,
}

fn numbers_in(folder: &Path) -> Left {
    let mut left = Left { whole: BTreeSet::new(), in_pieces: 0, bytes: 0 };
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "ndjson") {
            continue;
        }
        // One that is being rotated has two names, one after the other.
        let bytes = std::fs::read(path).unwrap_or_default();
        left.bytes += bytes.len();
        for line in bytes.split_inclusive(|&b| b == b'\n') {
            match serde_json::from_slice::<Value>(line) {
                Ok(row) if line.ends_with(b"\n") => drop(left.whole.insert(row["n"].as_u64().unwrap())),
                _ => left.in_pieces += 1,
            }
        }
    }
    left
}

#[test]
fn a_poison_row_and_a_refusing_server_are_told_apart() {
    let rig = Rig::start();
    rig.http.answer(&json!([{"contains": "poison", "status": 422, "times": 1000}]));
    let mut device = Client::connect(rig.edge.addr(), &Options::v5("d"));
    for n in 0..20 {
        let payload = if n == 7 {
            "{\"device\":\"poison\",\"n\":7}".to_owned()
        } else {
            format!("{{\"device\":\"d\",\"n\":{n}}}")
        };
        device.publish("factory/d", payload.as_bytes(), QoS::AtLeastOnce, false);
    }
    let status = rig.edge.wait_drained(PATIENCE);
    assert_accounts(&status);
    let h = outbox(&status, "h");
    assert_eq!((count(h, "delivered"), count(h, "discarded")), (19, 1), "{h:#}");
    assert_eq!(h["discarded_by"]["refused"], 1, "{h:#}");
    // Once a second.
    rig.edge.wait_status(PATIENCE, "the requests to be counted", |status| {
        outbox(status, "h")["counted"]["requests"].as_u64().is_some_and(|requests| requests >= 2)
    });
    // A server that knows us no more costs no row.
    rig.http.answer(&json!([{"status": 401, "times": 1}]));
    device.publish("factory/d", b"{\"device\":\"d\",\"n\":20}", QoS::AtLeastOnce, false);
    let status = rig
        .edge
        .wait_status(PATIENCE, "the sink to be down", |status| outbox(status, "h")["state"] == "down");
    assert!(outbox(&status, "h")["last_error"].as_str().unwrap().contains("401"), "{status:#}");
    assert_accounts(&status);
    assert_eq!(count(outbox(&status, "h"), "discarded"), 1);
}

#[test]
fn in_the_cloud_a_row_says_which_edge_and_device_it_is_from() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.ndjson");
    let http = HttpServer::start(None);
    let rules = format!(
        "CREATE SINK f WITH (connector = 'file', path = '{}', envelope = TRUE);
         CREATE SINK h WITH (connector = 'http', url = 'http://{}', path = 'of/${{clientid}}', format = 'json', envelope = TRUE);
         CREATE RULE whole AS INSERT INTO f, h SELECT * FROM \"factory/#\";",
        path.display(),
        http.addr()
    );
    let cloud = Node::start(&Config::cloud().rules(rules));
    let edge = Node::start(&Config::edge().rules(EDGE_RULES).uplink(cloud.addr()));
    let mut device = Client::connect(edge.addr(), &Options::v5("press 1"));
    for n in 0..5 {
        device.publish("factory/d", format!("{{\"n\":{n}}}").as_bytes(), QoS::AtLeastOnce, false);
    }
    edge.wait_drained(PATIENCE);
    assert_accounts(&cloud.wait_drained(PATIENCE));
    let read =
        |text: &str| -> Vec<Value> { text.lines().map(|line| serde_json::from_str(line).unwrap()).collect() };
    let of_file = read(&std::fs::read_to_string(&path).unwrap());
    let of_http: Vec<Value> =
        http.taken().iter().flat_map(|body| serde_json::from_str::<Vec<Value>>(body).unwrap()).collect();
    for rows in [&of_file, &of_http] {
        assert_eq!(rows.len(), 5);
        for (n, row) in rows.iter().enumerate() {
            assert_eq!(
                (&row["edge"], &row["clientid"], &row["topic"]),
                (&json!(node::EDGE_ID), &json!("press 1"), &json!("factory/d"))
            );
            assert_eq!(row["row"], json!({"n": n}));
            assert!(row["id"].as_str().unwrap().starts_with(&format!("{}.", node::EDGE_ID)), "{row}");
        }
    }
    let ids: BTreeSet<&str> = of_file.iter().chain(&of_http).map(|row| row["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 5, "one identity a row, whichever the sink");
    assert!(http.requests().iter().all(|request| request["path"] == "/of/press%201"));
}
