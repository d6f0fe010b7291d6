//! Thousands of clients that come and go, for as long as is wanted: nothing is lost, nothing grows.
//!
//! `SOAK_SECONDS` (30) and `SOAK_CLIENTS` (600, which common limits of open files allow); `SOAK_RESULTS=FOLDER` keeps the result, which
//! `make soak` does for ten minutes of 5,000 clients.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ferrule_mqtt::QoS;
use ferrule_testkit::churn::{Churn, Plan, Watch, compare};
use ferrule_testkit::node::count;
use ferrule_testkit::soak::{self, Curve};
use ferrule_testkit::wire::Options;
use ferrule_testkit::{Config, Node, until};
use serde_json::json;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|error| panic!("{name}: {error}")))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

#[test]
fn clients_come_and_go_and_nothing_grows() {
    let results = std::env::var_os("SOAK_RESULTS");
    // Of the beginning: the checkout may go on while this runs.
    let stamp = results.as_ref().map(|_| soak::day_and_commit(&root()));
    let seconds = number("SOAK_SECONDS", 30);
    let clients = u32::try_from(number("SOAK_CLIENTS", 600)).unwrap();
    // Short enough that sessions end all the time, also in the warm-up third of a short run.
    let expiry_s = u32::try_from((seconds / 15).clamp(2, 20)).unwrap();
    let mut node =
        Node::start(&Config::edge().extra(&format!("[mqtt]\nsession_expiry_max = \"{expiry_s}s\"")));
    let pid = node.process().pid();
    let files_before = soak::open_files(pid);

    let watches = [
        Watch::start(node.addr(), &Options::v4("watch-4"), QoS::AtLeastOnce),
        Watch::start(node.addr(), &Options::v5("watch-5"), QoS::ExactlyOnce),
        Watch::start(node.addr(), &Options::v5("watch-5-persistent").persistent(), QoS::ExactlyOnce),
    ];
    let plan = Plan {
        clients,
        seed: number("FERRULE_SEED", 1),
        threads: 2,
        expiry_s,
        pace: Duration::from_secs(2),
        stay: Duration::from_secs((seconds / 5).clamp(5, 12)),
    };
    let churn = Churn::start(node.addr(), &plan);
    let (mut rss, mut files) = (Curve::default(), Curve::default());
    let started = Instant::now();
    // A fault ends the run at once: what comes after it says nothing.
    let mut next = started;
    while started.elapsed() < Duration::from_secs(seconds) {
        next += soak::SAMPLE;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        let status = node.status();
        assert_eq!(count(&status["counters"], "lost_ends"), 0, "ends lost to a bug");
        rss.0.push(soak::rss_kib(pid));
        files.0.push(soak::open_files(pid));
        let faults = churn.tally().faults();
        assert!(faults.is_empty(), "the clients met: {faults:#?}");
        for watch in &watches {
            assert!(watch.seen().faults.is_empty(), "{} saw: {:#?}", watch.name(), watch.seen().faults);
        }
    }
    let tally = {
        let tally = churn.tally();
        let get = |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
        json!({
            "connects": get(&tally.connects), "published": get(&tally.published),
            "acknowledged": get(&tally.acknowledged), "received": get(&tally.received),
            "taken_over": get(&tally.taken_over), "resets": get(&tally.resets),
            "garbage": get(&tally.garbage), "resumed": get(&tally.resumed),
        })
    };
    let ledger = churn.stop();

    // Nothing that was acknowledged is missing.
    for watch in &watches {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let (missing, first) = compare(&ledger, &watch.seen());
            if missing == 0 {
                break;
            }
            assert!(
                Instant::now() < deadline,
                "{} lacks {missing} acknowledged messages, such as {first:?}",
                watch.name()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        assert!(watch.seen().faults.is_empty(), "{} saw: {:#?}", watch.name(), watch.seen().faults);
    }
    let watched: Vec<u64> = watches.iter().map(|watch| watch.seen().messages).collect();
    let sent = count(&node.status()["counters"], "sent");
    drop(watches);

    // Nobody is left, and nothing of them.
    let limit = Duration::from_secs(u64::from(expiry_s) + 30);
    let status = node.wait_status(limit, "all have gone and expired", |status| {
        ["connections", "sessions", "subscriptions"].iter().all(|name| count(status, name) == 0)
    });
    let counters = &status["counters"];
    assert_eq!(count(counters, "lost_ends"), 0);
    assert_eq!(count(&status, "waiting"), 0, "publishes that wait: {status:#}");
    until(Duration::from_secs(10), "the sockets of the last clients are closed", || {
        (soak::open_files(pid) <= files_before).then_some(())
    });

    let (before, after) = rss.growth();
    let (files_second, files_last) = files.growth();
    let result = json!({
        "machine": soak::machine(), "seconds": seconds, "clients": clients, "session_expiry_s": expiry_s,
        "connects": tally["connects"], "published": tally["published"], "acknowledged": tally["acknowledged"],
        "received": tally["received"], "taken_over": tally["taken_over"], "resets": tally["resets"],
        "garbage": tally["garbage"], "resumed": tally["resumed"],
        "sent": sent, "watched": watched, "missing": 0,
        "sessions_after": count(&status, "sessions"), "subscriptions_after": count(&status, "subscriptions"),
        "rss_kib": {
            "second_third": before, "last_fifth": after, "most": rss.0.iter().max(),
            "after": soak::rss_kib(pid), "curve": rss.thinned(20),
        },
        "files": {
            "before": files_before, "second_third": files_second, "last_fifth": files_last,
            "most": files.0.iter().max(), "after": soak::open_files(pid),
        },
        "counters": counters,
    });
    eprintln!("{result:#}");
    let enough = u64::from(clients) / 2;
    assert!(
        count(&tally, "connects") > enough && count(&tally, "acknowledged") > enough,
        "too little was done"
    );
    let most = before + soak::GROWTH_KIB.max(before * soak::GROWTH_PERCENT / 100);
    assert!(after <= most, "resident memory grew from {before} to {after} KiB: {:?}", rss.thinned(20));
    let most = files_second + files_second * soak::FILES_PERCENT / 100 + 20;
    assert!(files_last <= most, "open files grew from {files_second} to {files_last}");

    if let (Some(folder), Some((day, commit))) = (results, stamp) {
        let mut result = result;
        (result["date"], result["commit"]) = (day.clone().into(), commit.clone().into());
        let path = Path::new(&folder).join(format!("soak-{day}-{commit}.json"));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(&path, format!("{result:#}\n")).unwrap();
        eprintln!("written to {}", path.display());
    }
}

/// `FERRULE_WRITE_REPORT=1` writes the page; without it this says when the page is not that of the results.
#[test]
fn the_page_of_faults_is_that_of_the_results() {
    let page = soak::report(&root().join("tests/results"));
    let path = root().join("docs/faults.md");
    if std::env::var_os("FERRULE_WRITE_REPORT").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    assert!(std::fs::read_to_string(&path).is_ok_and(|text| text == page), "run `make faults-report`");
}
