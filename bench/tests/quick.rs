//! The program as one runs it, in its smoke-test form, against a real mosquitto where there is one.
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::print_stdout, reason = "a skipped test says so")]

use std::path::Path;
use std::process::Command;

use ferrule_bench::crowd::CrowdOutcome;
use ferrule_bench::peer::Peer;
use ferrule_bench::result::Run;
use ferrule_bench::{load, report};

const BENCH: &str = env!("CARGO_BIN_EXE_ferrule-bench");

/// `ferrule-bench run --quick` with only those rows, and without a broker of ours: the table, and the result file.
fn quick_run(only: &str, folder: &Path) -> (String, Run) {
    let output = Command::new(BENCH)
        .args(["run", "--quick", "--no-pipeline", "--only", only, "--out"])
        .arg(folder)
        // No broker of ours there: this test is about the benchmark.
        .env("FERRULE_BIN_DIR", folder)
        .output()
        .unwrap();
    let (table, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    let file = std::fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    let run = Run::read(&file).unwrap();
    assert!(run.quick);
    assert!(Run::newest(folder).is_err(), "a smoke test is no result");
    (table.into_owned(), run)
}

#[test]
fn a_quick_run_writes_a_table_and_a_result() {
    let folder = tempfile::tempdir().unwrap();
    let (table, run) = quick_run("10 pairs, QoS 1", folder.path());
    assert!(table.contains("10 pairs, QoS 1, 2,000/s") && table.contains("floor"), "{table}");
    let peers = if Peer::mosquitto().is_some() { 2 } else { 1 };
    assert_eq!((run.peers.len(), run.rows.len()), (peers, 3 * peers), "{run:?}");
    for row in &run.rows {
        assert_eq!(row.errors, [""; 0], "{}", row.row);
        let round = &row.rounds[0];
        // Whether anything fell into the short measured part is up to the machine.
        assert!(round.delivered > 0 && round.delivered == round.published, "{round:?}");
        assert!(round.watched[0].cpu_ns_end > 0 && round.watched[0].rss_bytes > 0, "{round:?}");
        assert_eq!(
            (round.lost, round.duplicates, round.order_breaks, round.strays),
            (0, 0, 0, 0),
            "{}",
            row.row
        );
    }
    assert!(report::markdown(&run, "x").contains("| 10 pairs, QoS 1 | floor |"));
}

#[test]
fn a_quick_run_of_the_idle_row() {
    let folder = tempfile::tempdir().unwrap();
    let (table, run) = quick_run("idle", folder.path());
    assert!(table.contains("Idle connections") && !table.contains("FAILED"), "{table}");
    for row in &run.idle {
        let outcome = row.outcome.as_ref().unwrap();
        assert_eq!((outcome.ready, outcome.pinged, outcome.reached), (100, 100, 100), "{row:?}");
        assert_eq!((outcome.closed, outcome.lost), (0, 0), "{row:?}");
        assert!(outcome.watched.unwrap().rss_bytes_held > 0, "{row:?}");
    }
}

#[test]
fn a_quick_run_of_one_process_without_sockets() {
    let output = Command::new(BENCH).args(["scale", "--quick"]).output().unwrap();
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(table.contains("Sessions in one process") && table.contains("Filters in one process"), "{table}");
    assert!(!table.contains("FAILED"), "{table}");
}

/// The script of docs/million.md, small.
#[test]
fn the_way_to_a_million() {
    let port = ferrule_testkit::port::free().to_string();
    let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/million/run.sh"))
        .args(["here", "60"])
        .env("FERRULE_BIN_DIR", Path::new(BENCH).parent().unwrap())
        .envs([("PORT", port.as_str()), ("KEEP_ALIVE", "1"), ("HOLD", "0"), ("CONNECTING", "20")])
        .output()
        .unwrap();
    let outcome: CrowdOutcome =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    assert_eq!(
        (outcome.ready, outcome.pinged, outcome.reached, outcome.closed),
        (60, 60, 60, 0),
        "{outcome:?}"
    );
}

#[test]
fn load_prints_json_or_says_what_is_wrong() {
    // A port that nobody listens on: it was free a moment ago and belongs to this test's own range.
    let addr = ferrule_testkit::port::free_addr().to_string();
    let output = Command::new(BENCH).args(["load", "--addr", &addr, "-n", "1"]).output().unwrap();
    assert!(!output.status.success() && output.stdout.is_empty());
    assert!(String::from_utf8_lossy(&output.stderr).contains("the connection ended"), "{output:?}");

    let Some(peer) = Peer::mosquitto() else {
        println!("skipped: needs mosquitto (tests/servers/install.sh)");
        return;
    };
    let broker = peer.start(None).unwrap();
    let addr = broker.addr().to_string();
    let args = [
        "--shape",
        "fan-out",
        "-n",
        "7",
        "--qos",
        "2",
        "--messages",
        "50",
        "--v5",
        "--json",
        "--size",
        "100",
    ];
    let output = Command::new(BENCH).args(["load", "--addr", &addr]).args(args).output().unwrap();
    let outcome: load::Outcome = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((outcome.acknowledged, outcome.delivered, outcome.lost), (50, 350, 0), "{outcome:?}");
}
