//! The file sink, from the outbox's side of its channel to the disk.
#![allow(clippy::unwrap_used, reason = "tests")]

use ferrule_sinks::harness::{Harness, YES, row};
use ferrule_sinks::{File, OutRow};
use ferrule_testkit::disk::SmallDisk;
use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

fn start(path: &Path, options: &[(&str, &str)]) -> Harness {
    Harness::start(&File, &[&[("path", path.to_str().unwrap())], options].concat())
}

fn file() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.ndjson");
    (dir, path)
}

fn rows(numbers: std::ops::Range<u64>) -> Vec<OutRow> {
    numbers.map(|n| row(n, "", format!("{{\"n\":{n}}}"))).collect()
}

/// `n` of each line.
fn numbers(text: &str) -> Vec<u64> {
    text.lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["n"].as_u64().unwrap())
        .collect()
}

/// Names of the rotated files, in order.
fn rotated(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(dir).unwrap().map(|f| f.unwrap().path()).collect();
    found.retain(|path| path.file_name().unwrap().to_str().unwrap().starts_with("out-"));
    found.sort();
    found
}

/// Waits for what another thread does.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn rows_are_lines_in_order_and_go_on_after_a_restart() {
    let (_dir, path) = file();
    for part in [0..1_500, 1_500..3_000] {
        let mut sink = start(&path, &[]);
        sink.send(rows(part)).await;
        sink.until_answered(1_500).await;
        assert!(sink.downs.is_empty());
        assert!(sink.stop().await.values().all(|d| *d == YES));
    }
    assert_eq!(numbers(&fs::read_to_string(&path).unwrap()), (0..3_000).collect::<Vec<_>>());
}

#[tokio::test]
async fn formats() {
    for (options, payload, line) in [
        (&[][..], "{\n\"a\": 1}", "{ \"a\": 1}\n"),
        (&[][..], "a,b", "{\"$bytes\":\"612c62\"}\n"),
        (&[("format", "lines")][..], "a,b", "a,b\n"),
        (&[("format", "lines")][..], "a\nb\n", "a\nb\n"),
        (
            &[("envelope", "true")][..],
            "21.5",
            "{\"id\":\"edge-1.7.0.1.b.0\",\"received_at\":\"2025-11-24T22:07:50.123Z\",\"edge\":\"edge-1\",\"clientid\":\"dev\",\
             \"topic\":\"a/b\",\"row\":21.5}\n",
        ),
    ] {
        let (_dir, path) = file();
        let mut sink = start(&path, options);
        sink.send(vec![row(1, "", payload)]).await;
        sink.until_answered(1).await;
        assert_eq!(fs::read_to_string(&path).unwrap(), line);
        sink.stop().await;
    }
}

#[tokio::test]
async fn a_line_torn_by_a_crash_is_cut_off_and_its_row_comes_again() {
    let (_dir, path) = file();
    fs::write(&path, "{\"n\":0}\n{\"n\":1}\n{\"n\"").unwrap();
    let mut sink = start(&path, &[]);
    sink.send(rows(2..4)).await;
    sink.until_answered(2).await;
    assert_eq!(sink.counted["cut_bytes"], 4);
    sink.stop().await;
    assert_eq!(numbers(&fs::read_to_string(&path).unwrap()), [0, 1, 2, 3]);
}

#[tokio::test]
async fn files_are_rotated_by_size_and_kept_compressed() {
    let (dir, path) = file();
    let options = [("rotate_size", "4KiB"), ("keep", "3"), ("compress", "true")];
    let mut sink = start(&path, &options);
    // 10 B a line: 409 in a file, so that ten are rotated.
    let mut sent = 0;
    while sent < 4_500 {
        sink.send(rows(10_000 + sent..10_000 + sent + 100)).await;
        sent += 100;
        sink.until_answered(sent as usize).await;
    }
    assert!(sink.downs.is_empty(), "{:?}", sink.downs);
    let gz = |path: &PathBuf| path.extension().is_some_and(|e| e == "gz");
    until("three rotated files, compressed", || {
        let found = rotated(dir.path());
        found.len() == 3 && found.iter().all(gz)
    })
    .await;
    sink.stop().await;
    let mut text = String::new();
    for file in rotated(dir.path()) {
        let mut plain = String::new();
        flate2::read::GzDecoder::new(fs::File::open(file).unwrap()).read_to_string(&mut plain).unwrap();
        assert!(plain.len() <= 4 << 10, "{}", plain.len());
        text.push_str(&plain);
    }
    text.push_str(&fs::read_to_string(&path).unwrap());
    let kept = numbers(&text);
    let first = kept[0];
    assert_eq!(kept, (first..14_500).collect::<Vec<_>>(), "the newest, without a gap");
    assert!(first > 10_000 && first < 13_500, "{first}");
}

#[tokio::test]
async fn yesterdays_file_is_rotated_without_a_row() {
    let (dir, path) = file();
    fs::write(&path, "{\"n\":1}\n").unwrap();
    let yesterday = ferrule_clock::system_time() - Duration::from_secs(86_400);
    fs::File::options().append(true).open(&path).unwrap().set_modified(yesterday).unwrap();
    let mut sink = start(&path, &[("rotate_every", "1d")]);
    sink.until_up().await;
    let found = rotated(dir.path());
    assert_eq!((found.len(), fs::read_to_string(&found[0]).unwrap().as_str()), (1, "{\"n\":1}\n"));
    assert_eq!(fs::read_to_string(&path).unwrap(), "");
    sink.stop().await;
}

#[tokio::test]
async fn a_file_that_is_taken_away_costs_no_row() {
    let (dir, path) = file();
    let mut sink = start(&path, &[]);
    let moved = |n: u64| dir.path().join(format!("moved-{n}"));
    for n in 0..20_u64 {
        sink.send(rows(n * 100..n * 100 + 50)).await;
        // As logrotate does it, in the middle of writing or not.
        if path.exists() {
            fs::rename(&path, moved(n)).unwrap();
        }
        sink.send(rows(n * 100 + 50..n * 100 + 100)).await;
        sink.until_answered((n as usize + 1) * 100).await;
    }
    assert!(sink.downs.is_empty(), "{:?}", sink.downs);
    sink.stop().await;
    let mut found = BTreeSet::new();
    for file in fs::read_dir(dir.path()).unwrap() {
        found.extend(numbers(&fs::read_to_string(file.unwrap().path()).unwrap()));
    }
    assert_eq!(found, (0..2_000).collect());
}

#[tokio::test]
async fn what_is_wrong_with_a_path_is_said_and_mended() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sub/out.ndjson");
    let mut sink = start(&path, &[]);
    let error = sink.until_down().await;
    assert!(error.contains(&format!("mkdir -p {}", dir.path().join("sub").display())), "{error}");
    fs::create_dir(dir.path().join("sub")).unwrap();
    sink.until_up().await;
    // A second sink with the same file, a mistake in the rules.
    let mut twin = start(&path, &[]);
    let error = twin.until_down().await;
    assert!(error.contains("a file of its own"), "{error}");
    sink.stop().await;
    twin.until_up().await;
    twin.send(rows(1..2)).await;
    twin.until_answered(1).await;
    twin.stop().await;
}

#[tokio::test]
async fn a_full_disk_loses_nothing_and_leaves_no_half_line() {
    let Some(disk) = SmallDisk::new(1024) else { return };
    let path = disk.path().join("out.ndjson");
    let mut sink = start(&path, &[]);
    let big = |n: u64| row(n, "", format!("{{\"n\":{n},\"x\":\"{}\"}}", "x".repeat(10_000)));
    sink.send((0..10).map(big).collect()).await;
    sink.until_answered(10).await;
    disk.fill();
    sink.send((10..40).map(big).collect()).await;
    let error = sink.until_down().await;
    assert!(error.contains("the disk is full"), "{error}");
    disk.free();
    sink.until_answered(40).await;
    assert!(sink.stop().await.values().all(|d| *d == YES));
    assert_eq!(numbers(&fs::read_to_string(&path).unwrap()), (0..40).collect::<Vec<_>>());
}
