//! The fault matrix: one fault at a time between a device and a row in the cloud's table, and several together, by seeds.
//!
//! Devices publish QoS 1 to an edge, whose rule forwards to a cloud, whose rule stores to SQLite. Whatever fails in between, in the end each acknowledged message has its
//! row, each outbox entry one row at the most, and every row that was given up is counted.
//!
//! `FERRULE_MATRIX_SEEDS=n` runs n seeds of each fault (1 in `make test`, 40 in `make faults`), `FERRULE_MATRIX_SEED=s` that one alone: a failure says so.
//! `FERRULE_FAULT_RESULTS=FOLDER` keeps the counts for docs/faults.md.
#![allow(clippy::unwrap_used, reason = "tests")]

mod link;
mod machine;
mod rig;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use ferrule_testkit::soak;
use rig::{Outcome, Seed};
use serde_json::json;

/// Seeds side by side.
const JOBS: usize = 2;

/// A fault: what a seed of it does; None where this machine cannot do it.
type Case = fn(&mut Seed) -> Option<Outcome>;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}: {error}")))
}

/// One seed; a helper's panic is a fault as any other.
fn one(name: &str, case: Case, seed: u64) -> Option<Outcome> {
    let outcome = catch_unwind(AssertUnwindSafe(|| case(&mut Seed::new(seed))));
    let mut outcome = match outcome {
        Ok(outcome) => outcome?,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text =
                text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words");
            Outcome { faults: vec![text.to_owned()], ..Outcome::default() }
        }
    };
    for fault in &mut outcome.faults {
        *fault = format!("{name}, FERRULE_MATRIX_SEED={seed}: {fault}");
        eprintln!("{fault}");
    }
    Some(outcome)
}

fn campaign(file: &str, name: &str, case: Case) {
    // Of the beginning: the checkout may go on while this runs.
    let stamp = std::env::var_os("FERRULE_FAULT_RESULTS")
        .map(|_| soak::day_and_commit(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()));
    let alone = number("FERRULE_MATRIX_SEED");
    let seeds = number("FERRULE_MATRIX_SEEDS").unwrap_or(1);
    // A share's seed is another one for each fault, so that all runs together see both numbers of workers.
    let first = if seeds == 1 { name.len() as u64 } else { 0 };
    let range = alone.map_or(first..first + seeds, |seed| seed..seed + 1);
    let next = AtomicU64::new(range.start);
    let sum: Mutex<Option<Outcome>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..JOBS {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if !range.contains(&seed) {
                        return;
                    }
                    if let Some(outcome) = one(name, case, seed) {
                        sum.lock().unwrap().get_or_insert_default().add(outcome);
                    }
                }
            });
        }
    });
    let Some(sum) = sum.into_inner().unwrap() else { return };
    eprintln!("{name}: {sum:?}");
    if let (Some(folder), Some((day, commit))) = (std::env::var_os("FERRULE_FAULT_RESULTS"), stamp) {
        let row = sum.to_json(name, range.end - range.start);
        let result = json!({"date": day, "commit": commit, "machine": soak::machine(), "rows": [row]});
        let path = Path::new(&folder).join(format!("matrix-{day}-{commit}-{file}.json"));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(&path, format!("{result:#}\n")).unwrap();
        eprintln!("written to {}", path.display());
    }
    assert!(sum.faults.is_empty(), "{:#?}", sum.faults);
    assert!(sum.times > 0 && sum.acknowledged > 0, "nothing was done: {sum:?}");
}

/// A test of each: its name (and file of results), its name on the page, what it does.
macro_rules! faults {
    ($($test:ident, $name:literal, $case:path;)*) => {$(
        #[test]
        fn $test() {
            campaign(&stringify!($test).replace('_', "-"), $name, $case);
        }
    )*};
}

faults! {
    slow_media, "slow medium (20 ms a sync, some 500 ms), then a power cut", machine::slow_media;
    blackhole, "link: a blackhole", link::blackhole;
    half_open, "link: half open", link::half_open;
    refused, "link: refused", link::refused;
    slow_link, "link: 1 kB/s", link::slow;
    loss, "link: 30 % of packets lost, each way", link::loss;
    name_gone, "link: the cloud's name does not resolve", link::name_gone;
    clock_jumps, "clock jumps (7 days either way, 1970, set after the boot)", machine::clock_jumps;
    corrupt_pages, "bytes of the store's file changed while it was stopped", machine::corrupt_pages;
    cloned_folder, "data folder cloned, both run", machine::cloned_folder;
    restored_backup, "data folder restored from an older copy", machine::restored_backup;
    cloud_refuses, "cloud answers \"quota exceeded\" and other errors", link::cloud_refuses;
    cloud_slow, "cloud acknowledges after seconds", link::cloud_slow;
    cloud_killed, "cloud killed (kill -9)", link::cloud_killed;
    memory_64_mib, "64 MiB of memory, with a backlog", machine::little_memory;
    combination, "several of them together", machine::combination;
}
