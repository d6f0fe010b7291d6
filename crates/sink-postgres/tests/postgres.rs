//! The PostgreSQL sink against a real server, which is killed, paused and locked.
#![allow(clippy::unwrap_used, reason = "tests")]

use ferrule_sink_postgres::Postgres;
use ferrule_sinks::harness::{Harness, REFUSED, YES, entry, row};
use ferrule_sinks::{Delivered, OutRow, Reason};
use ferrule_testkit::Postgres as Server;
use std::sync::Arc;

fn start(server: &Server, options: &[(&str, &str)]) -> Harness {
    let url = server.url();
    Harness::start(&Postgres, &[&[("url", &*url)], options].concat())
}

fn numbers(from: u64, to: u64) -> Vec<OutRow> {
    (from..to).map(|n| row(n, "", format!("{{\"n\":{n}}}"))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_values_and_tables() {
    let server = Server::start();
    rows_that_come_twice_stand_once(&server).await;
    a_foreign_table_is_left_alone(&server).await;
    rows_go_in_whole(&server).await;
    values_are_converted(&server).await;
    tables_are_lanes(&server).await;
    nodes_that_race_for_a_table_both_get_it(&server).await;
}

async fn rows_that_come_twice_stand_once(server: &Server) {
    let options = [("table", "once"), ("columns", "n integer")];
    let mut sink = start(server, &options);
    sink.send(numbers(0, 1_500)).await;
    sink.until_answered(1_500).await;
    assert!(sink.stop().await.values().all(|d| *d == YES));
    let mut sink = start(server, &options);
    sink.send(numbers(1_000, 2_000)).await;
    sink.until_answered(1_000).await;
    assert!(sink.downs.is_empty());
    sink.stop().await;
    assert_eq!(server.query("SELECT count(*), count(DISTINCT n), max(n) FROM once"), ["2000|2000|1999"]);
    assert_eq!(server.query("SELECT * FROM once WHERE n = 1999"), ["1999|edge-1|7|0|1999|11|0"]);
}

async fn a_foreign_table_is_left_alone(server: &Server) {
    server.execute(
        "CREATE TABLE foreign_t (id serial PRIMARY KEY, n integer NOT NULL CHECK (n < 100), code varchar(3), \
         at timestamptz DEFAULT now(), twice integer GENERATED ALWAYS AS (n * 2) STORED)",
    );
    let mut sink = start(server, &[("table", "foreign_t")]);
    let mut rows = vec![
        row(1, "", r#"{"n":1,"code":"abc"}"#),
        row(2, "", r#"{"n":100}"#),
        row(3, "", r#"{"n":3,"at":null}"#),
        row(4, "", r#"{"n":null}"#),
        row(5, "", r#"{"n":5,"code":"abcd"}"#),
        row(6, "", r#"{"n":6,"code":"a\u0000"}"#),
        row(1, "", r#"{"n":1,"code":"abc"}"#),
    ];
    rows[6].seq = 7;
    sink.send(rows).await;
    sink.until_answered(7).await;
    assert_eq!(sink.verdicts(), [YES, REFUSED, YES, REFUSED, REFUSED, REFUSED, YES]);
    sink.stop().await;
    let mut sink = start(server, &[("table", "foreign_t")]);
    sink.send(vec![row(1, "", r#"{"n":1,"code":"abc"}"#), row(8, "", r#"{"n":8}"#)]).await;
    sink.until_answered(2).await;
    sink.stop().await;
    assert_eq!(
        server.query("SELECT n, code, at IS NULL, twice FROM foreign_t ORDER BY n"),
        ["1|abc|f|2", "3||t|6", "8||f|16"]
    );
    assert_eq!(server.query("SELECT _seq FROM foreign_t_ferrule_seen ORDER BY 1"), ["1", "3", "8"]);
}

async fn rows_go_in_whole(server: &Server) {
    let deep = format!("{}{}", "[".repeat(20_000), "]".repeat(20_000));
    let rows = || {
        let mut direct = entry(2, "", b"\xff\0".to_vec());
        direct.edge = None;
        vec![
            row(1, "", r#"{"a": 1}"#),
            OutRow { seq: 2, entry: Arc::new(direct), again: false, late: false },
            row(3, "", r#"{"a":"\u0000"}"#),
            row(4, "", "1e200000"),
            row(5, "", deep.as_bytes()),
        ]
    };
    for _ in 0..2 {
        let mut sink = start(server, &[("table", "whole")]);
        sink.send(rows()).await;
        sink.until_answered(5).await;
        assert!(sink.stop().await.values().all(|d| *d == YES));
    }
    assert_eq!(
        server.query("SELECT received_at AT TIME ZONE 'UTC', edge, clientid, topic, row FROM whole ORDER BY _seq LIMIT 4"),
        [
            "2025-11-24 22:07:50.123|edge-1|dev|a/b|{\"a\": 1}",
            "2025-11-24 22:07:50.123||dev|a/b|{\"$bytes\": \"ff00\"}",
            "2025-11-24 22:07:50.123|edge-1|dev|a/b|{\"$bytes\": \"7b2261223a225c7530303030227d\"}",
            "2025-11-24 22:07:50.123|edge-1|dev|a/b|{\"$bytes\": \"3165323030303030\"}",
        ]
    );
    assert_eq!(
        server.query("SELECT count(*) FROM whole WHERE row ? '$bytes' OR row ->> 0 IS NOT NULL OR _seq < 6"),
        ["5"]
    );
}

async fn values_are_converted(server: &Server) {
    let columns = "i bigint, r double precision, d numeric(30,2), t text, b boolean, ts timestamptz, da date, j jsonb, a \
                   integer[], u uuid";
    let mut sink = start(server, &[("table", "lab.values_t"), ("columns", columns)]);
    // The schema is not there: everything waits until it is.
    sink.send(vec![
        row(1, "", r#"{"i":21.0,"r":21,"d":1234567890123456789012345678.5,"t":21.50,"b":true,"ts":0,"da":86400000,"j":{"a":[1, 2]},"a":[1,null]}"#),
        row(2, "", r#"{"i":"7","r":"1e3","d":null,"t":true,"b":"yes","ts":"2026-01-01 00:00","j":"s","a":[]}"#),
        row(3, "", r#"{"i":21.5}"#),
        row(4, "", r#"{"i":9223372036854775808}"#),
        row(5, "", r#"{"b":17}"#),
        row(6, "", r#"{"ts":"yesterday-ish"}"#),
        row(7, "", r#"{"t":{"a":1},"u":"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"}"#),
        row(8, "", "[1]"),
        row(9, "", r#"{"nope":1}"#),
    ])
    .await;
    assert!(sink.until_down().await.contains("lab"));
    server.execute("CREATE SCHEMA lab");
    sink.until_answered(9).await;
    assert_eq!(sink.verdicts(), [YES, YES, REFUSED, REFUSED, REFUSED, REFUSED, YES, REFUSED, REFUSED]);
    sink.stop().await;
    assert_eq!(
        server.query(
            "SELECT i, r, d, t, b, ts AT TIME ZONE 'UTC', da, j, a, u FROM lab.values_t ORDER BY _seq"
        ),
        [
            r#"21|21|1234567890123456789012345678.50|21.50|t|1970-01-01 00:00:00|1970-01-02|{"a": [1, 2]}|{1,NULL}|"#,
            r#"7|1000||true|t|2026-01-01 00:00:00||"s"|{}|"#,
            r#"|||{"a":1}||||||a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"#,
        ]
    );
}

async fn tables_are_lanes(server: &Server) {
    server.execute(
        "CREATE VIEW not_writable AS SELECT 1 AS n; CREATE TABLE keyless (n int, _origin text, _boot bigint, \
        _class smallint, _seq bigint, _rule bigint, _row int)",
    );
    let mut sink = start(server, &[("columns", "n int")]);
    sink.send(vec![
        row(1, "dev_10.0.0.1", r#"{"n":1}"#),
        row(2, "not_writable", r#"{"n":2}"#),
        row(3, "keyless", r#"{"n":3}"#),
        row(4, "a\"; DROP TABLE once; --", r#"{"n":4}"#),
        row(5, "", r#"{"n":5}"#),
        row(6, "dev_10.0.0.1", r#"{"n":"x"}"#),
        row(7, "dev_10.0.0.1", r#"{"n":7}"#),
    ])
    .await;
    sink.until_answered(5).await;
    let target = Delivered::Discarded(Reason::Target);
    assert_eq!(
        sink.answers.iter().map(|(seq, d)| (*seq, d.clone())).collect::<Vec<_>>(),
        [(1, YES), (4, YES), (5, target), (6, REFUSED), (7, YES)]
    );
    server.execute(
        "ALTER TABLE keyless ADD UNIQUE (_origin, _boot, _class, _seq, _rule, _row); DROP VIEW not_writable",
    );
    sink.until_answered(7).await;
    sink.stop().await;
    assert_eq!(server.query("SELECT n FROM \"dev_10.0.0.1\" ORDER BY 1"), ["1", "7"]);
    assert_eq!(
        server.query("SELECT n FROM keyless UNION ALL SELECT n FROM not_writable ORDER BY 1"),
        ["2", "3"]
    );
}

async fn nodes_that_race_for_a_table_both_get_it(server: &Server) {
    let mut sinks: Vec<Harness> =
        (0..6).map(|_| start(server, &[("table", "raced"), ("columns", "n int")])).collect();
    for sink in &mut sinks {
        sink.send(numbers(0, 100)).await;
    }
    for mut sink in sinks {
        sink.until_answered(100).await;
        assert!(sink.downs.is_empty(), "{:?}", sink.downs);
        sink.stop().await;
    }
    assert_eq!(server.query("SELECT count(*) FROM raced"), ["100"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_and_paused_loses_and_doubles_nothing() {
    let mut server = Server::start();
    let options = [("table", "t"), ("columns", "n integer"), ("timeout", "1s"), ("batch", "100")];
    let mut sink = start(&server, &options);
    sink.until_up().await;
    let mut sent = 0;
    for round in 0..3 {
        for _ in 0..20 {
            sink.send(numbers(sent, sent + 100)).await;
            sent += 100;
        }
        // In the middle of the stream.
        sink.until_answered(sent as usize - 1_000).await;
        if round < 2 {
            server.kill9();
            sink.send(numbers(sent, sent + 100)).await;
            sent += 100;
            sink.until_down().await;
            server.restart();
        } else {
            server.pause();
            sink.send(numbers(sent, sent + 100)).await;
            sent += 100;
            sink.until_down().await;
            server.resume();
        }
        sink.until_answered(sent as usize).await;
    }
    assert!(sink.stop().await.values().all(|d| *d == YES));
    let all = format!("{sent}|{sent}");
    assert_eq!(server.query("SELECT count(*), count(DISTINCT n) FROM t"), [all]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_sink_notices_that_its_server_is_gone() {
    let mut server = Server::start();
    let mut sink = start(&server, &[("table", "t")]);
    sink.until_up().await;
    server.kill9();
    let error = sink.until_down().await;
    assert!(error.contains("PostgreSQL at 127.0.0.1"), "{error}");
    server.restart();
    sink.until_up().await;
}
