//! The SQLite sink, from the outbox's side of its channel to the file.
#![allow(clippy::unwrap_used, reason = "tests")]

use ferrule_sinks::harness::{Harness, REFUSED, YES, entry, row};
use ferrule_sinks::{Connector, Delivered, Options, OutRow, Reason, Sqlite};
use rusqlite::Connection;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

fn start(path: &Path, options: &[(&str, &str)]) -> Harness {
    let path = [("path", path.to_str().unwrap())];
    Harness::start(&Sqlite, &[&path, options].concat())
}

fn file() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.db");
    (dir, path)
}

/// Every row as texts: what SQLite's `quote` writes.
fn table(path: &Path, sql: &str) -> Vec<String> {
    let connection = Connection::open(path).unwrap();
    let mut statement = connection.prepare(sql).unwrap();
    let columns = statement.column_count();
    let rows = statement.query_map([], |row| {
        let values = (0..columns).map(|i| {
            Ok(match row.get::<_, rusqlite::types::Value>(i)? {
                rusqlite::types::Value::Null => "NULL".to_owned(),
                rusqlite::types::Value::Integer(n) => n.to_string(),
                rusqlite::types::Value::Real(n) => format!("{n:?}"),
                rusqlite::types::Value::Text(t) => format!("'{t}'"),
                rusqlite::types::Value::Blob(b) => format!("{b:?}"),
            })
        });
        Ok(values.collect::<rusqlite::Result<Vec<_>>>()?.join("|"))
    });
    rows.unwrap().collect::<rusqlite::Result<_>>().unwrap()
}

#[tokio::test]
async fn rows_that_come_twice_stand_once() {
    let (_dir, path) = file();
    let mut sink = start(&path, &[("table", "t"), ("columns", "n integer")]);
    let rows =
        |from: u64, to: u64| (from..to).map(|n| row(n, "", format!("{{\"n\":{n}}}"))).collect::<Vec<_>>();
    sink.send(rows(0, 1_500)).await;
    sink.until_answered(1_500).await;
    assert!(sink.stop().await.values().all(|d| *d == YES));
    // The process died before it could forget them; a part is new.
    let mut sink = start(&path, &[("table", "t"), ("columns", "n integer")]);
    sink.send(rows(1_000, 2_000)).await;
    sink.until_answered(1_000).await;
    assert!(sink.downs.is_empty());
    sink.stop().await;
    assert_eq!(table(&path, "SELECT count(*), count(DISTINCT n) FROM t"), ["2000|2000"]);
    assert_eq!(table(&path, "SELECT * FROM t WHERE n = 1999"), ["1999|'edge-1'|7|0|1999|11|0"]);
}

#[tokio::test]
async fn a_foreign_table_is_left_alone_and_its_keys_go_beside_it() {
    let (_dir, path) = file();
    let connection = Connection::open(&path).unwrap();
    connection
        .execute_batch(
            "CREATE TABLE t (id integer PRIMARY KEY, n integer NOT NULL CHECK (n < 100), at text DEFAULT 'now', \
             twice integer GENERATED ALWAYS AS (n * 2))",
        )
        .unwrap();
    let mut sink = start(&path, &[("table", "t")]);
    let rows = || {
        vec![
            row(1, "", r#"{"n":1}"#),
            row(2, "", r#"{"n":100}"#),
            row(3, "", r#"{"N":3,"at":null}"#),
            row(4, "", r#"{"n":null}"#),
            row(1, "t", r#"{"n":1}"#),
        ]
    };
    let mut first = rows();
    first[4].seq = 5;
    sink.send(first).await;
    sink.until_answered(5).await;
    assert_eq!(sink.verdicts(), [YES, REFUSED, YES, REFUSED, YES]);
    sink.stop().await;
    let mut sink = start(&path, &[("table", "t")]);
    sink.send(rows()[..4].to_vec()).await;
    sink.until_answered(4).await;
    sink.stop().await;
    assert_eq!(table(&path, "SELECT id, n, at, twice FROM t"), ["1|1|'now'|2", "2|3|NULL|6"]);
    assert_eq!(table(&path, "SELECT _seq FROM t_ferrule_seen ORDER BY 1"), ["1", "3"]);
}

#[tokio::test]
async fn rows_go_in_whole_without_columns() {
    let (_dir, path) = file();
    let mut sink = start(&path, &[("table", "whole")]);
    let mut bytes = entry(2, "", "");
    (bytes.payload, bytes.edge) = (bytes::Bytes::from_static(b"\xff\0"), None);
    sink.send(vec![
        row(1, "", r#"{"a": 1}"#),
        OutRow { seq: 2, entry: Arc::new(bytes), again: false, late: false },
    ])
    .await;
    sink.until_answered(2).await;
    sink.stop().await;
    // And after a restart, when the table is read rather than made.
    let mut sink = start(&path, &[("table", "whole")]);
    sink.send(vec![row(3, "", r#"{"row":"x","edge":"y"}"#)]).await;
    sink.until_answered(1).await;
    sink.stop().await;
    assert_eq!(
        table(&path, "SELECT received_at, edge, clientid, topic, row, _seq FROM whole"),
        [
            "'2025-11-24T22:07:50.123Z'|'edge-1'|'dev'|'a/b'|'{\"a\": 1}'|1",
            "'2025-11-24T22:07:50.123Z'|NULL|'dev'|'a/b'|'{\"$bytes\":\"ff00\"}'|2",
            "'2025-11-24T22:07:50.123Z'|'edge-1'|'dev'|'a/b'|'{\"row\":\"x\",\"edge\":\"y\"}'|3",
        ]
    );
}

#[tokio::test]
async fn values_are_converted_by_column() {
    let (_dir, path) = file();
    let columns = "i bigint, r double precision, t text, b boolean, ts timestamptz, j jsonb, x blob";
    let mut sink = start(&path, &[("table", "t"), ("columns", columns)]);
    sink.send(vec![
        row(1, "", r#"{"i":21.0,"r":21,"t":21.50,"b":true,"ts":0,"j":{"a":[1, 2]},"x":"y"}"#),
        row(2, "", r#"{"i":"7","r":"x","t":true,"b":0,"ts":"2026-01-01T00:00:00Z","j":"s","x":1.5}"#),
        row(3, "", r#"{"i":9223372036854775807,"r":null,"t":{"a":1},"j":null}"#),
        row(4, "", r#"{"i":1,"i":2,"t":"\u00e4\n"}"#),
        row(5, "", "[1]"),
        row(6, "", r#"{"i":1,"nope":2}"#),
    ])
    .await;
    sink.until_answered(6).await;
    assert_eq!(sink.verdicts(), [YES, YES, YES, YES, REFUSED, REFUSED]);
    sink.stop().await;
    assert_eq!(
        table(&path, "SELECT i, r, t, b, ts, j, x FROM t ORDER BY _seq"),
        [
            r#"21|21.0|'21.50'|1|'1970-01-01T00:00:00.000Z'|'{"a":[1, 2]}'|'y'"#,
            r#"7|'x'|'true'|0|'2026-01-01T00:00:00Z'|'"s"'|1.5"#,
            r#"9223372036854775807|NULL|'{"a":1}'|NULL|NULL|NULL|NULL"#,
            "2|NULL|'ä\n'|NULL|NULL|NULL|NULL",
        ]
    );
}

#[tokio::test]
async fn tables_come_from_templates_and_bad_names_stop_nobody() {
    let (_dir, path) = file();
    let mut sink = start(&path, &[("table", "dev_${clientid}"), ("columns", "n int")]);
    let targets = ["dev_10.0.0.1", "a\"; DROP TABLE x", "", "sqlite_x", "x_ferrule_seen", "dev_10.0.0.1"];
    let rows = targets.iter().zip(1..).map(|(target, seq)| row(seq, target, r#"{"n":1}"#)).collect();
    sink.send(rows).await;
    sink.until_answered(6).await;
    let target = Delivered::Discarded(Reason::Target);
    assert_eq!(sink.verdicts(), [YES, YES, target.clone(), target.clone(), target, YES]);
    assert!(sink.downs.is_empty());
    sink.stop().await;
    assert_eq!(table(&path, "SELECT count(*) FROM \"dev_10.0.0.1\""), ["2"]);
    assert_eq!(table(&path, "SELECT count(*) FROM \"a\"\"; DROP TABLE x\""), ["1"]);
}

#[tokio::test]
async fn a_poison_row_among_many_is_found() {
    let (_dir, path) = file();
    let connection = Connection::open(&path).unwrap();
    connection.execute_batch("CREATE TABLE t (n int UNIQUE CHECK (n NOT IN (333, 334)))").unwrap();
    let mut sink = start(&path, &[("table", "t")]);
    let mut rows: Vec<_> = (0..1_000).map(|n| row(n, "", format!("{{\"n\":{n}}}"))).collect();
    // Another message with a value that the user's own constraint admits once.
    rows.push(row(1_000, "", r#"{"n":5}"#));
    sink.send(rows).await;
    sink.until_answered(1_001).await;
    let refused: Vec<u64> =
        sink.answers.iter().filter(|(_, d)| **d == REFUSED).map(|(seq, _)| *seq).collect();
    assert_eq!(refused, [333, 334, 1_000]);
    sink.stop().await;
    assert_eq!(table(&path, "SELECT count(*) FROM t"), ["998"]);
}

#[tokio::test]
async fn another_programs_lock_is_waited_for() {
    let (_dir, path) = file();
    let mut sink = start(&path, &[("table", "t"), ("columns", "n int")]);
    sink.until_up().await;
    let locker = Connection::open(&path).unwrap();
    locker.execute_batch("BEGIN IMMEDIATE").unwrap();
    sink.send(vec![row(1, "", r#"{"n":1}"#)]).await;
    assert!(sink.until_down().await.contains("locked"));
    assert!(sink.answers.is_empty());
    locker.execute_batch("COMMIT").unwrap();
    sink.until_answered(1).await;
    assert_eq!(sink.downs.len(), 1, "said once, not with every attempt");
    assert_eq!(sink.stop().await.get(&1), Some(&YES));
    assert_eq!(table(&path, "SELECT n FROM t"), ["1"]);
}

#[tokio::test]
async fn a_missing_folder_is_down_until_it_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("later/out.db");
    let mut sink = start(&path, &[("table", "t"), ("columns", "n int")]);
    sink.send(vec![row(1, "", r#"{"n":1}"#)]).await;
    assert!(sink.until_down().await.contains("out.db"));
    std::fs::create_dir(dir.path().join("later")).unwrap();
    sink.until_answered(1).await;
    assert_eq!(sink.stop().await.get(&1), Some(&YES));
}

#[tokio::test]
async fn a_file_that_is_no_database_is_down_and_stopping_does_not_hang() {
    let (_dir, path) = file();
    std::fs::write(&path, [b'x'; 4096]).unwrap();
    let mut sink = start(&path, &[("table", "t")]);
    sink.send(vec![row(1, "", "1")]).await;
    assert!(sink.until_down().await.contains("not a database"));
    sink.abandon();
    // The rows are the outbox's; the sink's time is bounded by `finish_within`, which other tests cover.
}

#[tokio::test]
async fn a_dropped_table_is_made_again_and_a_changed_one_is_read_again() {
    let (_dir, path) = file();
    let mut sink = start(&path, &[("table", "t"), ("columns", "n int")]);
    sink.send(vec![row(1, "", r#"{"n":1}"#)]).await;
    sink.until_answered(1).await;
    let other = Connection::open(&path).unwrap();
    other.execute_batch("DROP TABLE t").unwrap();
    sink.send(vec![row(2, "", r#"{"n":2}"#)]).await;
    sink.until_answered(2).await;
    assert_eq!(table(&path, "SELECT n FROM t"), ["2"]);
    // A table that cannot be used holds up its own rows only.
    other.execute_batch("CREATE VIEW v AS SELECT n FROM t").unwrap();
    sink.send(vec![row(3, "v", r#"{"n":3}"#), row(4, "", r#"{"n":4}"#)]).await;
    sink.until_answered(3).await;
    assert_eq!(sink.answers.get(&4), Some(&YES));
    other.execute_batch("DROP VIEW v").unwrap();
    sink.until_answered(4).await;
    assert_eq!(sink.answers.get(&3), Some(&YES));
    sink.stop().await;
    assert_eq!(table(&path, "SELECT n FROM v"), ["3"]);
}

#[tokio::test]
async fn what_is_at_hand_is_finished_when_the_rows_close() {
    let (_dir, path) = file();
    let sink = start(&path, &[("table", "t"), ("columns", "n int"), ("batch", "7")]);
    sink.send((0..100).map(|n| row(n, "", r#"{"n":1}"#)).collect()).await;
    let answers = sink.stop().await;
    assert_eq!(answers.len(), 100);
    assert_eq!(table(&path, "SELECT count(*) FROM t"), ["100"]);
}

#[test]
fn mistakes_in_options_are_found_by_check() {
    let check = |options: &[(&str, &str)]| {
        let given: Vec<_> = options.iter().map(|&(n, v)| (n.to_owned(), v.to_owned())).collect();
        Sqlite.check(&Options::parse(Sqlite.schema(), &given).unwrap())
    };
    let mistakes =
        check(&[("path", ":memory:"), ("table", "x_ferrule_seen"), ("columns", "a"), ("batch", "0")])
            .unwrap_err();
    assert_eq!(mistakes.len(), 4, "{mistakes:?}");
    let declared = check(&[("path", "x.db"), ("columns", "a int, b text")]).unwrap();
    assert_eq!(declared.columns, Some(vec!["a".into(), "b".into()]));
    assert_eq!(declared.dedupe_for, Some(Duration::from_secs(30 * 86_400)));
}

#[tokio::test]
async fn a_full_disk_is_down_until_there_is_room() {
    let Some(disk) = ferrule_testkit::disk::SmallDisk::new(1_024) else { return };
    let path = disk.path().join("out.db");
    let mut sink = start(&path, &[("table", "t"), ("columns", "n int, pad text")]);
    let pad = "x".repeat(1_000);
    let rows = |from, to| {
        (from..to).map(|n| row(n, "", format!("{{\"n\":{n},\"pad\":\"{pad}\"}}"))).collect::<Vec<_>>()
    };
    sink.send(rows(0, 50)).await;
    sink.until_answered(50).await;
    disk.fill();
    sink.send(rows(50, 100)).await;
    let error = sink.until_down().await;
    assert!(error.contains("out.db") && error.contains("full"), "{error}");
    disk.free();
    sink.until_answered(100).await;
    assert!(sink.stop().await.values().all(|d| *d == YES));
    assert_eq!(table(&path, "SELECT count(*), count(DISTINCT n) FROM t"), ["100|100"]);
}

#[tokio::test]
async fn a_blocked_table_stops_no_other_one_even_while_the_sink_is_down() {
    let (_dir, path) = file();
    let other = Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE v (x int)").unwrap();
    let mut sink = start(&path, &[("table", "v"), ("columns", "n int")]);
    // It says how many rows it takes, so that there are any, and that its own table is of no use.
    sink.until_up().await;
    assert!(sink.until_down().await.contains("without the column"));
    // A row of the blocked table, then one of a good table that comes when the sink is down again.
    for n in 0..3 {
        sink.send(vec![row(2 * n, "", r#"{"n":1}"#)]).await;
        sink.send(vec![row(2 * n + 1, "good", r#"{"n":2}"#)]).await;
        sink.until_answered(n as usize + 1).await;
        sink.until_down().await;
    }
    assert!(sink.answers.keys().all(|seq| seq % 2 == 1));
    other.execute_batch("ALTER TABLE v ADD COLUMN n int").unwrap();
    sink.until_answered(6).await;
    assert!(sink.stop().await.values().all(|d| *d == YES));
    assert_eq!(table(&path, "SELECT (SELECT count(*) FROM v), (SELECT count(*) FROM good)"), ["3|3"]);
}

#[tokio::test]
async fn a_blocked_table_of_its_own_is_tried_without_rows() {
    let (_dir, path) = file();
    let other = Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE v (x int)").unwrap();
    let mut sink = start(&path, &[("table", "v"), ("columns", "n int")]);
    sink.until_down().await;
    other.execute_batch("ALTER TABLE v ADD COLUMN n int").unwrap();
    sink.until_up().await;
    sink.stop().await;
}

#[test]
fn a_stop_while_a_table_waits_is_quiet_even_without_the_nodes_runtime() {
    let (_dir, path) = file();
    let other = Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE base (n int); CREATE VIEW v AS SELECT n FROM base").unwrap();
    let node = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let sink = node.block_on(async {
        let mut sink = start(&path, &[("table", "t"), ("columns", "n int")]);
        sink.send(vec![row(1, "v", r#"{"n":1}"#)]).await;
        sink.until_down().await;
        sink
    });
    node.shutdown_timeout(Duration::from_secs(1));
    // Its time is as long as the test's: it ends at once, since what waits for a table is the outbox's.
    let end = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    assert!(end.block_on(sink.stop()).is_empty());
}
