//! The program as one runs it, in its smoke-test form, against a real mosquitto where there is one.
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::print_stdout, reason = "a skipped test says so")]

use std::process::Command;

use ferrule_bench::peer::Peer;
use ferrule_bench::result::Run;
use ferrule_bench::{load, report};

const BENCH: &str = env!("CARGO_BIN_EXE_ferrule-bench");

#[test]
fn a_quick_run_writes_a_table_and_a_result() {
    if Peer::mosquitto().is_none() {
        println!("skipped: needs mosquitto (tests/servers/install.sh)");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(BENCH)
        .args(["run", "--quick", "--no-pipeline", "--only", "10 pairs, QoS 1", "--out"])
        .arg(folder.path())
        // No broker of ours there: this test is about the benchmark.
        .env("FERRULE_BIN_DIR", folder.path())
        .output()
        .unwrap();
    let (table, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    assert!(table.contains("10 pairs, QoS 1") && table.contains("mosquitto"), "{table}");

    let file = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    let run = Run::read(&file).unwrap();
    assert!(run.quick && run.peers[0].version.contains("mosquitto"), "{run:?}");
    for row in &run.rows {
        assert_eq!(row.errors, [""; 0], "{}", row.row);
        let round = &row.rounds[0];
        assert!(round.ends > 0 && round.watched[0].cpu_ns_end > round.watched[0].cpu_ns_start, "{round:?}");
        assert_eq!(
            (round.lost, round.duplicates, round.order_breaks, round.strays),
            (0, 0, 0, 0),
            "{}",
            row.row
        );
    }
    assert!(report::markdown(&run, "x").contains("| 10 pairs, QoS 1 | mosquitto |"));
    assert!(Run::newest(folder.path()).is_err(), "a smoke test is no result");
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
