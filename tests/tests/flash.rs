//! What a gateway writes to its flash while the cloud answers, slowly, and not at all.
//!
//! # What is held
//! While the cloud answers, a row is written when it is due, not before (contract 2), which depends on the round trip ([`due`]). So where no device waited as long
//! as that for its acknowledgement and nothing else had to be stored, no row was written; a machine that stood still in between is seen by the devices, and the run
//! is then none that could be judged. The devices send at a pace of their own: one that waits for acknowledgements is acknowledged sooner, at the flash's cost.
//! Where rows were written, each is there at the cloud all the same, once.
//!
//! # Runs
//! In `make test` a short share. With `FERRULE_FLASH_RESULTS=FOLDER` (`make flash`) all of it, and the figures go to docs/faults.md: sensors at
//! 20 messages a second, side by side, for a day's bytes; busy devices, one run after the other, with `FERRULE_FLASH_MESSAGES` (100,000) messages.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ferrule_mqtt::QoS;
use ferrule_testkit::node::{assert_accounts, count, outbox, uplink_is_up};
use ferrule_testkit::oracle::Copies;
use ferrule_testkit::wire::Options;
use ferrule_testkit::{Client, Config, Fleet, Node, Plan, Relay, port, proc, soak};
use ferrule_tests::{EDGE_RULES, PATIENCE, cloud_rules, make_sqlite_table, sqlite_rows};
use serde_json::{Value, json};

/// When a row is due at the earliest while the cloud answers and its publisher is not at its window (contract 2): after three times the usual time to an
/// acknowledgement, which is the round trip at the least, and after 50 ms; and at the latest two commits before 800 ms, for which 100 ms are more than enough here.
fn due(rtt_ms: u64) -> Duration {
    Duration::from_millis((3 * rtt_ms).clamp(50, 700))
}

/// Of the messages, those that do not count at the beginning: a second and more of them.
const WARM_UP_PER_CENT: u64 = 30;
/// The same in a long run.
const WARM_UP_PER_CENT_LONG: u64 = 10;
/// Nor do those after so many.
const UP_TO_PER_CENT: u64 = 90;
/// Retained messages a second beside the devices.
const RETAINED: u32 = 20;
/// Rows that the uplink has on their way at most: `max_inflight`.
const WINDOW: f64 = 1_024.0;
/// Devices of a run.
const DEVICES: usize = 20;
/// Round trips; none is a cloud that is away.
const ROUND_TRIPS: [Option<u64>; 5] = [Some(0), Some(50), Some(200), Some(600), None];

/// One run.
#[derive(Debug, Clone, Copy)]
struct Run {
    devices: &'static str,
    per_second: f64,
    messages: u32,
    rtt_ms: Option<u64>,
    retained: bool,
    warm_up_per_cent: u64,
}

/// A client beside the devices that publishes what has to be stored.
struct Beside {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<u64>>,
}

impl Beside {
    fn start(edge: &Node) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (own, addr) = (Arc::clone(&stop), edge.addr());
        let thread = std::thread::spawn(move || {
            let mut client = Client::connect(addr, &Options::v5("beside"));
            let started = Instant::now();
            let mut sent = 0;
            while !own.load(Ordering::Relaxed) {
                client.publish(&format!("state/{}", sent % 20), &[b's'; 100], QoS::AtLeastOnce, true);
                sent += 1;
                let due = started + Duration::from_secs(1) * u32::try_from(sent).unwrap() / RETAINED;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            sent
        });
        Self { stop, thread: Some(thread) }
    }

    fn finish(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

/// What the edge has done so far.
#[derive(Debug, Clone, Copy)]
struct Sample {
    bytes: u64,
    written: u64,
    commits: u64,
}

fn sample(edge: &Node) -> Sample {
    let status = edge.status();
    Sample {
        bytes: edge.write_bytes(),
        written: count(outbox(&status, "cloud"), "written"),
        commits: count(&status["store"], "commits"),
    }
}

/// The kind of file system that `path` is on.
fn file_system(path: &Path) -> String {
    // (stat says "ext2/ext3" of ext4, too.)
    let said = proc::output(Command::new("df").arg("--output=fstype").arg(path));
    said.lines().last().unwrap_or_default().trim().to_owned()
}

fn measure(run: Run) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = folder.path().join("sink.db");
    make_sqlite_table(&sqlite);
    let cloud_config = Config::cloud().rules(cloud_rules(None, None, Some(&sqlite)));
    let (mut cloud, mut relay, mut to) = (None, None, port::free_addr());
    if let Some(rtt_ms) = run.rtt_ms {
        let node = cloud.insert(Node::start(&cloud_config));
        let link = relay.insert(Relay::start(node.addr()));
        link.delay(Duration::from_millis(rtt_ms) / 2);
        to = link.addr();
    }
    let edge = Node::start(&Config::edge().rules(EDGE_RULES).uplink(to));
    if run.rtt_ms.is_some() {
        edge.wait_status(PATIENCE, "the uplink", uplink_is_up);
    }
    let beside = run.retained.then(|| Beside::start(&edge));
    // 200 bytes of payload; never more on its way than half of what the broker admits.
    let each = run.messages / u32::try_from(DEVICES).unwrap();
    let plan = Plan {
        devices: DEVICES,
        messages: each,
        window: 100,
        per_second: Some(run.per_second),
        spread: true,
        pad: 165,
        v5: true,
        ..Plan::default()
    };
    let fleet = Fleet::start(edge.addr(), plan);
    let limit = PATIENCE + Duration::from_secs_f64(f64::from(each) / run.per_second * 2.0);
    // By then each device has been heard several times, and the edge knows how long an acknowledgement takes.
    fleet.wait_acknowledged(fleet.total() * run.warm_up_per_cent / 100, limit);
    let (before, begun, started) = (sample(&edge), fleet.acknowledged(), Instant::now());
    let _ = fleet.take_slowest();
    // Before the devices end: who falls silent may be waiting for its acknowledgements.
    fleet.wait_acknowledged(fleet.total() * UP_TO_PER_CENT / 100, limit);
    let (seconds, acknowledged) = (started.elapsed().as_secs_f64(), fleet.acknowledged());
    let after = sample(&edge);
    let slowest = fleet.take_slowest();
    let ledger = fleet.finish(limit);
    let retained = beside.map_or(0, Beside::finish);

    // The cloud comes, if it was not there; everything arrives, and what was written is removed.
    let cloud = cloud.unwrap_or_else(|| Node::start(&cloud_config.listen(to)));
    edge.wait_drained(limit);
    cloud.wait_drained(limit);
    let removed = |status: &Value| count(outbox(status, "cloud"), "stored") == 0;
    assert_accounts(&edge.wait_status(limit, "nothing is stored", removed));
    // Removals go with the next commit; here is one.
    Client::connect(edge.addr(), &Options::v5("last")).publish("state/last", b"", QoS::AtLeastOnce, true);
    let drained = sample(&edge);
    let rows = sqlite_rows(&sqlite);
    ferrule_tests::assert_one_row_an_entry("SQLite", &rows);
    let rows = rows.iter().map(|row| (row.device.as_str(), row.n));
    let report = ledger.check(rows, Copies::One);
    assert!(report.faults.is_empty(), "{run:?}: {report}\n{}", report.faults.join("\n"));

    let (bytes, written, messages) =
        (after.bytes - before.bytes, after.written - before.written, acknowledged - begun);
    // (Not beside retained messages: their publisher may wait for its commits, and then rows of others are due after 50 ms, too.) A busy machine may
    // be late itself; and with a window full there is a backlog.
    let in_flight = run.per_second * DEVICES as f64 * (run.rtt_ms.unwrap_or(0) as f64 / 1_000.0);
    if let Some(due) = run.rtt_ms.filter(|_| !run.retained && in_flight < WINDOW).map(due) {
        assert!(
            slowest >= due || written == 0,
            "{run:?}: {written} rows written, none of them due before {due:?}, and no device waited longer than {slowest:?}"
        );
    }
    if run.rtt_ms.is_none() {
        // Each is counted before it is written, and acknowledged afterwards.
        let all = after.written;
        assert!(
            all >= acknowledged,
            "{run:?}: acknowledged without a cloud and without a row: {all} of {acknowledged}"
        );
    }
    json!({
        "devices": run.devices, "rtt_ms": run.rtt_ms, "retained": run.retained, "retained_messages": retained,
        "messages": messages, "seconds": seconds, "written": written, "commits": after.commits - before.commits, "bytes": bytes,
        "bytes_a_message": bytes as f64 / messages as f64,
        "gb_a_day": (run.devices == "sensors").then(|| bytes as f64 / seconds * 86_400.0 / 1e9),
        "slowest_ms": u64::try_from(slowest.as_millis()).unwrap(),
        "drained_bytes_a_message": (written > 0).then(|| (drained.bytes - after.bytes) as f64 / messages as f64),
    })
}

fn runs(devices: &'static str, per_second: f64, messages: u32) -> Vec<Run> {
    let warm_up_per_cent =
        if messages < 10_000 && devices == "busy" { WARM_UP_PER_CENT } else { WARM_UP_PER_CENT_LONG };
    let all = ROUND_TRIPS.iter().flat_map(|rtt_ms| [(*rtt_ms, false), (*rtt_ms, true)]);
    all.map(|(rtt_ms, retained)| Run { devices, per_second, messages, rtt_ms, retained, warm_up_per_cent })
        .collect()
}

/// Runs side by side: they hardly load the machine.
fn side_by_side(runs: Vec<Run>) -> Vec<Value> {
    let threads: Vec<_> = runs.into_iter().map(|run| std::thread::spawn(move || measure(run))).collect();
    threads
        .into_iter()
        .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        .collect()
}

#[test]
fn what_the_cloud_acknowledges_in_time_is_not_written() {
    let Some(folder) = std::env::var_os("FERRULE_FLASH_RESULTS") else {
        // A share: each kind of link once, a few seconds of it.
        let short = runs("busy", 40.0, 4_000);
        let some = short
            .into_iter()
            .filter(|run| run.retained == (run.rtt_ms == Some(600)) || run.rtt_ms == Some(0));
        for row in side_by_side(some.collect()) {
            eprintln!("{row}");
        }
        return;
    };
    // Of the beginning: the checkout may go on while this runs.
    let (day, commit) = soak::day_and_commit(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap());
    let on = file_system(&std::env::temp_dir());
    assert_ne!(
        on,
        "tmpfs",
        "nothing is written to {}: set TMPDIR to a folder on a disk",
        std::env::temp_dir().display()
    );
    let messages = std::env::var("FERRULE_FLASH_MESSAGES").map_or(100_000, |text| text.parse().unwrap());
    let mut rows = Vec::new();
    for pair in runs("sensors", 1.0, 1_200).chunks(5) {
        rows.extend(side_by_side(pair.to_vec()));
    }
    for run in runs("busy", 100.0, messages) {
        rows.push(measure(run));
        eprintln!("{}", rows.last().unwrap());
    }
    let result =
        json!({"date": day, "commit": commit, "machine": soak::machine(), "file_system": on, "rows": rows});
    let path = Path::new(&folder).join(format!("flash-{day}-{commit}.json"));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(&path, format!("{result:#}\n")).unwrap();
    eprintln!("written to {}", path.display());
}
