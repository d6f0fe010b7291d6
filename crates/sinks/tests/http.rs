//! The HTTP sink and Python's HTTP server.
#![allow(clippy::unwrap_used, reason = "tests")]

use ferrule_sinks::harness::{Harness, REFUSED, YES, row};
use ferrule_sinks::{Delivered, Http, OutRow, Reason};
use ferrule_testkit::HttpServer;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

fn start(server: &HttpServer, options: &[(&str, &str)]) -> Harness {
    let url = format!("http://{}/in", server.addr());
    Harness::start(&Http, &[&[("url", &*url)], options].concat())
}

fn rows(numbers: std::ops::Range<u64>) -> Vec<OutRow> {
    numbers.map(|n| row(n, "", format!("{{\"n\":{n}}}"))).collect()
}

/// A row of a device of its own.
fn of(device: &str, seq: u64, payload: &str) -> OutRow {
    let mut row = row(seq, "", payload);
    Arc::get_mut(&mut row.entry).unwrap().key = device.into();
    row
}

fn numbers(bodies: &[String]) -> Vec<u64> {
    let number = |line: &str| serde_json::from_str::<Value>(line).unwrap()["n"].as_u64().unwrap();
    bodies.iter().flat_map(|body| body.lines().map(number)).collect()
}

#[tokio::test]
async fn a_row_a_request_with_its_headers_and_key_on_one_connection() {
    let server = HttpServer::start(None);
    let options = [
        ("headers", "X-Site: 7\n"),
        ("bearer_token", "geheim"),
        ("method", "PUT"),
        ("path", "never"),
        ("content_type", "text/plain"),
    ];
    let mut sink = start(&server, &options);
    sink.send((0..20).map(|n| row(n, "a b/c", format!("r{n}"))).collect()).await;
    sink.until_answered(20).await;
    assert!(sink.downs.is_empty());
    assert!(sink.stop().await.values().all(|d| *d == YES));
    let requests = server.requests();
    assert_eq!(server.taken(), (0..20).map(|n| format!("r{n}")).collect::<Vec<_>>());
    let first = &requests[0];
    assert_eq!((first["method"].as_str(), first["path"].as_str()), (Some("PUT"), Some("/in/a%20b/c")));
    let headers = &first["headers"];
    assert_eq!(headers["authorization"], "Bearer geheim");
    assert_eq!(headers["x-site"], "7");
    assert_eq!(headers["content-type"], "text/plain");
    assert_eq!(headers["idempotency-key"], "edge-1.7.0.0.b.0");
    assert_eq!(headers["host"], server.addr().to_string());
    let connections: BTreeSet<u64> = requests.iter().map(|r| r["connection"].as_u64().unwrap()).collect();
    assert_eq!(connections.len(), 1, "kept alive");
}

#[tokio::test]
async fn batches_keep_the_order_of_each_key() {
    let server = HttpServer::start(None);
    let mut sink = start(&server, &[("format", "ndjson"), ("batch", "50")]);
    let all = (0..2_000_u64).map(|n| of(&format!("d{}", n % 7), n, &format!("{{\"n\":{n}}}"))).collect();
    sink.send(all).await;
    sink.until_answered(2_000).await;
    sink.stop().await;
    let taken = numbers(&server.taken());
    assert_eq!(taken.iter().copied().collect::<BTreeSet<_>>().len(), 2_000);
    for device in 0..7 {
        let own: Vec<u64> = taken.iter().copied().filter(|n| n % 7 == device).collect();
        assert!(own.is_sorted(), "{device}: {own:?}");
    }
    let requests = server.requests();
    assert!(requests.len() < 200, "{} requests", requests.len());
    assert_eq!(requests[0]["headers"]["content-type"], "application/x-ndjson");
}

#[tokio::test]
async fn what_passes_is_tried_again_in_order_and_with_the_same_key() {
    for answer in [
        json!({"status": 503, "times": 2, "headers": {"Retry-After": "1"}}),
        json!({"status": 429, "times": 2}),
        json!({"status": 500, "times": 2, "text": "out of\norder"}),
        json!({"status": 408, "times": 1}),
        json!({"status": 425, "times": 1}),
        json!({"close": true, "times": 2}),
        json!({"hang": 3, "times": 1}),
    ] {
        let server = HttpServer::start(None);
        server.answer(&json!([answer]));
        let mut sink = start(&server, &[("concurrency", "1"), ("timeout", "1s")]);
        sink.send(rows(0..3)).await;
        sink.until_answered(3).await;
        assert_eq!(sink.verdicts(), [YES, YES, YES], "{answer}");
        assert!(!sink.downs.is_empty(), "{answer}");
        assert_eq!(sink.counted["retries"], answer["times"], "{answer}");
        sink.stop().await;
        let keys: Vec<String> =
            server.requests().iter().map(|r| r["headers"]["idempotency-key"].to_string()).collect();
        assert!(keys.len() > 3 && keys.is_sorted(), "{answer}: {keys:?}");
    }
}

#[tokio::test]
async fn a_connection_that_the_server_closed_while_idle_is_no_fault() {
    let mut server = HttpServer::start(None);
    let mut sink = start(&server, &[]);
    sink.send(rows(0..1)).await;
    sink.until_answered(1).await;
    server.kill9();
    server.restart();
    sink.send(rows(1..2)).await;
    sink.until_answered(2).await;
    assert!(sink.downs.is_empty(), "{:?}", sink.downs);
    sink.stop().await;
}

#[tokio::test]
async fn a_server_that_is_away_is_waited_for() {
    let mut server = HttpServer::start(None);
    server.kill9();
    let mut sink = start(&server, &[("format", "json")]);
    let error = sink.until_down().await;
    assert!(error.contains("cannot be reached") && error.contains(&server.addr().to_string()), "{error}");
    server.restart();
    sink.until_up().await;
    sink.send(rows(0..10)).await;
    sink.until_answered(10).await;
    sink.stop().await;
    assert_eq!(
        server.taken(),
        [r#"[{"n":0},{"n":1},{"n":2},{"n":3},{"n":4},{"n":5},{"n":6},{"n":7},{"n":8},{"n":9}]"#]
    );
}

#[tokio::test]
async fn a_poison_row_is_found_among_many_and_the_others_go_in() {
    for (status, reason) in [(422, REFUSED), (413, Delivered::Discarded(Reason::TooLarge))] {
        let server = HttpServer::start(None);
        server.answer(&json!([{"contains": "poison", "status": status, "times": 1000}]));
        let mut sink = start(&server, &[("format", "ndjson")]);
        let payload =
            |n: u64| if n == 37 || n == 38 { "{\"n\":\"poison\"}".into() } else { format!("{{\"n\":{n}}}") };
        sink.send((0..100).map(|n| row(n, "", payload(n))).collect()).await;
        sink.until_answered(100).await;
        let answers = sink.stop().await;
        for (n, answer) in answers {
            assert_eq!(answer, if n == 37 || n == 38 { reason.clone() } else { YES }, "{n}");
        }
        let wanted: Vec<u64> = (0..100).filter(|n| !(37..39).contains(n)).collect();
        assert_eq!(numbers(&server.taken()), wanted, "in order, none twice");
        assert!(server.requests().len() < 60, "{}", server.requests().len());
    }
}

#[tokio::test]
async fn what_a_person_must_mend_stops_the_sink_and_costs_no_row() {
    for (status, hint) in
        [(401, "bearer_token"), (403, "right to write"), (404, "path of `url`"), (302, "Location")]
    {
        let server = HttpServer::start(None);
        server.answer(&json!([{"status": status, "times": 1000, "text": "not you"}]));
        let mut sink = start(&server, &[("bearer_token", "geheim")]);
        sink.send(rows(0..50)).await;
        let error = sink.until_down().await;
        assert!(error.contains(&status.to_string()) && error.contains(hint), "{error}");
        assert!(error.contains("not you") && !error.contains("geheim"), "{error}");
        assert!(sink.answers.is_empty());
        // Told to stop, it asks once more; the rows are the outbox's.
        assert!(sink.stop().await.is_empty());
        assert!(server.requests().len() <= 3, "{} requests", server.requests().len());
    }
}

#[tokio::test]
async fn a_path_of_a_rows_own_that_is_not_there_costs_that_row() {
    let server = HttpServer::start(None);
    server.answer(&json!([{"path": "/in/gone", "status": 404, "times": 1000}]));
    let mut sink = start(&server, &[("path", "x")]);
    sink.send(vec![row(1, "here", "1"), row(2, "gone", "2"), row(3, "a/../b", "3"), row(4, "here", "4")])
        .await;
    sink.until_answered(4).await;
    let target = Delivered::Discarded(Reason::Target);
    assert_eq!(sink.verdicts(), [YES, target.clone(), target, YES]);
    sink.stop().await;
}

#[tokio::test]
async fn a_lane_that_fails_holds_up_no_other() {
    let server = HttpServer::start(None);
    server.answer(&json!([{"contains": "\"stuck\"", "status": 500, "times": 1_000_000}]));
    let mut sink = start(&server, &[("concurrency", "8")]);
    // Keys are spread by a hash: of sixteen some are on other lanes than the stuck one.
    let mut all: Vec<OutRow> =
        (1..=160).map(|n| of(&format!("d{}", n % 16), n, &format!("{{\"n\":{n}}}"))).collect();
    all.insert(0, of("d0", 0, "\"stuck\""));
    sink.send(all).await;
    sink.until_answered(70).await;
    assert!(!sink.answers.contains_key(&0));
    assert!(!sink.answers.contains_key(&16), "the same key as the stuck row");
    server.answer(&json!([]));
    sink.until_answered(161).await;
    assert!(sink.stop().await.values().all(|d| *d == YES));
}

#[tokio::test]
async fn over_tls_with_a_trusted_certificate_alone() {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let (cert, key) = (dir.path().join("c.pem"), dir.path().join("k.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let server = HttpServer::start(Some((&cert, &key)));
    let url = format!("https://{}", server.addr());
    let mut sink = Harness::start(&Http, &[("url", &*url), ("tls_ca", cert.to_str().unwrap())]);
    sink.send(rows(0..5)).await;
    sink.until_answered(5).await;
    sink.stop().await;
    assert_eq!(numbers(&server.taken()), [0, 1, 2, 3, 4]);

    let mut distrusting = Harness::start(&Http, &[("url", &*url)]);
    let error = distrusting.until_down().await;
    assert!(error.contains("not trusted") && error.contains("tls_ca"), "{error}");
    distrusting.stop().await;
    let plain = HttpServer::start(None);
    let mut wrong = Harness::start(&Http, &[("url", &*format!("https://{}", plain.addr()))]);
    let error = wrong.until_down().await;
    assert!(error.contains("TLS"), "{error}");
    wrong.stop().await;
}
