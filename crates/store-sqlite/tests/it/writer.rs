//! Group commit, barriers, handles, locks and formats.

use crate::model::queues;
use crate::support::{Client, append, on_a_folder, open, small};
use bytes::Bytes;
use ferrule_store::{Body, BodyId, MemoryStore, Op, QueueId, SessionId, Side, Store};
use ferrule_store_sqlite::{FILE, Item, Look, OpenError, SCHEMA_VERSION};
use ferrule_store_writer::harness;
use std::path::Path;
use std::process::Command;

#[test]
fn what_is_submitted_during_a_commit_is_the_next_commit() {
    on_a_folder(harness::what_is_submitted_during_a_commit_is_the_next_commit);
}

#[test]
fn a_barrier_alone_costs_no_commit() {
    on_a_folder(harness::a_barrier_alone_costs_no_commit);
}

#[test]
fn what_comes_and_goes_never_reaches_a_table() {
    let folder = tempfile::tempdir().unwrap();
    let (writer, _) = open(folder.path());
    let mut client = Client::new(&writer);
    let queue = queues()[2];
    for seq in 0..400 {
        client.commit(vec![append(queue, seq, 200), Op::Remove { queue, first: seq, last: seq }]);
    }
    let status = writer.status();
    assert!(status.folds > 3, "the journal never filled: {status:?}");
    // The file is what an empty one is: schema and journal.
    assert!(status.file_bytes < 64 << 10, "{status:?}");
}

#[test]
fn handles_are_told_of_their_own() {
    on_a_folder(harness::handles_are_told_of_their_own);
}

#[test]
fn joint_commits_are_one() {
    on_a_folder(harness::joint_commits_are_one);
}

#[test]
fn large_groups_and_bodies_are_kept() {
    on_a_folder(harness::large_groups_and_bodies_are_kept);
}

#[test]
fn large_groups_and_bodies_go_straight_to_the_tables() {
    let folder = tempfile::tempdir().unwrap();
    let (writer, _) = open(folder.path());
    let mut client = Client::new(&writer);
    let queue = queues()[2];
    client.commit(vec![append(queue, 1, 3_000_000)]);
    client.commit((2..1000).map(|seq| append(queue, seq, 100)).collect());
    assert_eq!(writer.status().folds, 2);
    assert_eq!(client.read(queue, 0, 10, 1)[0].body.len(), 3_000_000);
    assert_eq!(client.rows(queue, 256, u32::MAX).len(), 999);
    client.commit(vec![Op::Remove { queue, first: 0, last: u64::MAX }]);
    assert!(client.rows(queue, 256, u32::MAX).is_empty());
}

/// Removals are tiny in the journal: without a bound of their own, a drained backlog would be removed in one go.
#[test]
fn a_long_drain_folds_on_the_way() {
    let folder = tempfile::tempdir().unwrap();
    let (writer, _) = open(folder.path());
    let mut client = Client::new(&writer);
    let queue = queues()[2];
    let rows = 100_000;
    client.commit((0..rows).map(|seq| append(queue, seq, 250)).collect());
    let folds = writer.status().folds;
    // As a cursor, from the beginning each time: most of what it names is long gone.
    for last in (99..rows).step_by(100) {
        client.commit(vec![Op::Remove { queue, first: 0, last }]);
    }
    let folds = writer.status().folds - folds;
    assert!((2..10).contains(&folds), "{folds} folds");
    assert!(client.rows(queue, 256, u32::MAX).is_empty());
}

const LOCK_FOLDER: &str = "FERRULE_TEST_LOCK_FOLDER";

#[test]
#[ignore = "the child of one_process_at_a_time"]
fn lock_child() {
    let Ok(folder) = std::env::var(LOCK_FOLDER) else { return };
    let error = ferrule_store_sqlite::open(folder.as_ref(), small()).unwrap_err();
    assert!(matches!(error, OpenError::Locked { .. }), "{error}");
}

#[test]
fn one_process_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let (writer, _) = open(folder.path());
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["writer::lock_child", "--exact", "--ignored"])
        .env(LOCK_FOLDER, folder.path())
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
    let error = ferrule_store_sqlite::open(folder.path(), small()).unwrap_err();
    assert!(error.to_string().starts_with("another ferrule is running on the data folder"), "{error}");
    let mut client = Client::new(&writer);
    client.commit(vec![append(queues()[0], 1, 1)]);
    writer.shutdown().unwrap();
    open(folder.path());
}

#[test]
fn files_of_others_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(FILE);
    let set = |sql: &str| rusqlite::Connection::open(&file).unwrap().execute_batch(sql).unwrap();
    set("CREATE TABLE theirs (x); INSERT INTO theirs VALUES (1)");
    assert!(matches!(ferrule_store_sqlite::open(folder.path(), small()), Err(OpenError::Foreign { .. })));
    set("SELECT x FROM theirs");
    std::fs::remove_file(&file).unwrap();
    open(folder.path());
    set("PRAGMA user_version = 99; UPDATE control SET version = 99");
    let error = ferrule_store_sqlite::open(folder.path(), small()).unwrap_err();
    assert!(matches!(error, OpenError::Newer { found: 99, .. }), "{error}");
}

/// One of everything, in the tables and again in the journal; since version 3 also rows enough for a block.
fn golden_batches(version: u32) -> [Vec<Op>; 2] {
    let b = Bytes::from_static;
    let session = SessionId(7);
    let all = |n: u64| {
        let shared = Body::Shared(BodyId(3), b(b"shared body"));
        vec![
            append(queues()[2], n, 20),
            Op::Append { queue: QueueId::session(session), seq: n, head: b(b"head"), body: shared.clone() },
            Op::Append { queue: QueueId::session(SessionId(1)), seq: n, head: b(b""), body: shared },
            Op::SessionPut { session, record: b(b"session") },
            Op::SubscriptionPut { session, filter: format!("a/{n}").into(), record: b(b"subscription") },
            Op::InflightPut { session, side: Side::Outbound, packet_id: n as u16, record: b(b"inflight") },
            Op::RetainPut { topic: format!("t/{n}").into(), stamp: 0, record: b(b"retained") },
            Op::StatePut { rule: n, key: b(b"key"), value: b(b"value") },
            Op::MetaPut { key: format!("m/{n}").into(), value: b(b"meta") },
        ]
        .into_iter()
        .chain(
            (100 * n..100 * n + 20)
                .filter(|_| version >= 3)
                .map(|seq| append(QueueId::session(SessionId(2)), seq, 30)),
        )
        .chain((version >= 3).then_some(Op::Remove {
            queue: QueueId::session(SessionId(2)),
            first: 0,
            last: 103,
        }))
        .collect()
    };
    [all(1), all(2)]
}

/// Makes the files of the next version; the old ones stay as they are.
#[test]
#[ignore = "writes golden files"]
fn golden_write() {
    let Ok(to) = std::env::var("FERRULE_TEST_GOLDEN") else { return };
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = golden_batches(SCHEMA_VERSION);
    let (writer, _) = open(folder.path());
    Client::new(&writer).commit(first);
    writer.shutdown().unwrap();
    let (writer, _) = open(folder.path());
    Client::new(&writer).commit(second);
    // As after a kill: the second batch is in the journal, the journal's page in the WAL.
    for suffix in ["", "-wal"] {
        std::fs::copy(folder.path().join(format!("{FILE}{suffix}")), format!("{to}{suffix}")).unwrap();
    }
}

#[test]
fn files_of_every_version_are_read() {
    for version in 1..=SCHEMA_VERSION {
        let folder = tempfile::tempdir().unwrap();
        let golden =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("v{version}.db"));
        for suffix in ["", "-wal"] {
            let from = format!("{}{suffix}", golden.display());
            std::fs::copy(from, folder.path().join(format!("{FILE}{suffix}"))).unwrap();
        }
        let mut model = MemoryStore::new();
        for ops in golden_batches(version) {
            model.submit(ops);
        }
        model.commit();
        let (writer, restored) = open(folder.path());
        assert_eq!(restored, model.restored(), "v{version}");
        let mut client = Client::new(&writer);
        for summary in restored.queues {
            assert_eq!(client.rows(summary.queue, 256, u32::MAX), model.rows(summary.queue), "v{version}");
        }
    }
}

/// A backlog is in blocks: who looks finds each row, page after page, and each queue's own.
#[test]
fn who_looks_finds_every_row() {
    let folder = tempfile::tempdir().unwrap();
    let (writer, _) = open(folder.path());
    let mut client = Client::new(&writer);
    let queue = queues()[2];
    for first in (1..5_000).step_by(700) {
        client.commit((first..first + 700).map(|seq| append(queue, seq, 200)).collect());
    }
    client.commit(vec![Op::Remove { queue, first: 1, last: 99 }, append(queues()[0], 1, 20)]);
    let delayed = QueueId::delayed(0);
    client.commit((1..100).map(|seq| append(delayed, seq, 200)).collect());
    writer.shutdown().unwrap();
    let file = rusqlite::Connection::open(folder.path().join(FILE)).unwrap();
    let packed: Vec<u64> = file
        .prepare("SELECT DISTINCT queue FROM queue_block")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(packed, [queue.0], "delayed messages do not leave in order");
    drop(file);
    let look = Look::open(folder.path(), &small()).unwrap().unwrap();
    let summary = look.queues().unwrap().into_iter().find(|summary| summary.queue == queue).unwrap();
    let (mut from, mut found) = (summary.first, Vec::new());
    while let Some(last) = {
        let rows = look.rows(queue, from).unwrap();
        found.extend(rows.iter().map(|row| row.seq));
        rows.last().map(|row| row.seq)
    } {
        from = last + 1;
    }
    assert_eq!(found, (100..=5_600).collect::<Vec<_>>());
    assert_eq!((summary.first, summary.last, summary.rows), (100, 5_600, 5_501));
    let (mut after, mut paged) = (None, Vec::new());
    loop {
        let page = look.page(after.as_ref()).unwrap();
        paged.extend(page.items.into_iter().filter_map(|item| match item {
            Item::Row { queue: of, seq, .. } if of == queue => Some(seq),
            _ => None,
        }));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(paged, found);
    assert_eq!(look.faults().unwrap(), Vec::<String>::new());
    look.close().unwrap();
}
