//! The tables at a start, and who may not start.

use crate::support::{Client, Place, append, own, queues, seqs, server};
use bytes::Bytes;
use ferrule_store::{Op, QueueId, SESSIONS, SessionId};
use ferrule_store_postgres::{OpenError, Options, SCHEMA_VERSION};
use ferrule_store_writer::harness::Medium;
use std::time::Duration;

#[test]
fn many_nodes_start_at_once() {
    let (postgres, place) = server();
    let threads: Vec<_> = (0..8)
        .map(|n| {
            let place = place.node(&format!("node {n}"));
            std::thread::spawn(move || {
                let (writer, restored) = place.open();
                assert_eq!(own(restored), ferrule_store::Restored::default());
                // Its own: queues of sessions are no node's.
                Client::new(&writer).commit(vec![append(queues()[2], n, 10)]);
                writer.shutdown().unwrap();
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let schema = &place.0.schema;
    assert_eq!(
        postgres.query(&format!("SELECT count(*), count(DISTINCT number) FROM {schema}.node")),
        ["8|8"]
    );
    assert_eq!(
        postgres.query(&format!("SELECT id, version FROM {schema}.ferrule_schema")),
        [format!("0|{SCHEMA_VERSION}")]
    );
}

/// Each has what is its own; retained messages are everyone's.
#[test]
fn nodes_share_a_schema() {
    let (_postgres, place) = server();
    let b = Bytes::from_static;
    let batch = |n: u64| {
        // Each node has numbers of its own.
        let session = SessionId(n * SESSIONS + 1);
        vec![
            append(QueueId::session(session), n, 10),
            append(queues()[2], n, 10),
            append(QueueId::delayed(0), n, 10),
            Op::SessionPut { session, record: vec![n as u8].into() },
            Op::SubscriptionPut { session, filter: format!("f/{n}").into(), record: b(b"s") },
            Op::StatePut { rule: 1, key: b(b"k"), value: vec![n as u8].into() },
            Op::MetaPut { key: "m".into(), value: vec![n as u8].into() },
            Op::RetainPut { topic: format!("t/{n}").into(), stamp: n, record: b(b"r") },
        ]
    };
    let (first, second) = (place.node("one"), place.node("two"));
    let ((one, _), (two, _)) = (first.open(), second.open());
    let (mut a, mut z) = (Client::new(&one), Client::new(&two));
    a.commit(batch(1));
    z.commit(batch(2));
    let queue = |n: u64| QueueId::session(SessionId(n * SESSIONS + 1));
    assert_eq!((seqs(&mut a, queue(1)), seqs(&mut z, queues()[2])), (vec![1], vec![2]));
    a.commit(vec![Op::SessionDelete { session: SessionId(SESSIONS + 1) }]);
    one.shutdown().unwrap();
    two.shutdown().unwrap();
    let ((_one, one), (_two, two)) = (first.open(), second.open());
    assert_eq!((one.sessions.len(), one.subscriptions.len(), one.queues.len()), (0, 0, 2));
    assert_eq!((two.sessions.len(), two.subscriptions.len(), two.queues.len()), (1, 1, 3));
    assert_eq!((one.retained.len(), two.retained.len()), (2, 2));
    assert_eq!((&one.meta[0].1[..], &two.state[0].2[..]), (&[1][..], &[2][..]));
}

#[test]
fn a_newer_schema_is_left_alone() {
    let (postgres, place) = server();
    place.open().0.shutdown().unwrap();
    postgres.execute(&format!("UPDATE {}.ferrule_schema SET version = 99", place.0.schema));
    let error = ferrule_store_postgres::open(place.0.clone()).unwrap_err();
    assert!(matches!(error, OpenError::Newer { found: 99, .. }), "{error}");
    assert!(error.to_string().contains("newer ferrule"), "{error}");
}

/// One release works with the tables of the next: in an upgrade nodes of both run, and may have to be started.
#[test]
fn the_next_schema_will_do() {
    let (postgres, place) = server();
    place.open().0.shutdown().unwrap();
    let next = SCHEMA_VERSION + 1;
    postgres.execute(&format!("UPDATE {}.ferrule_schema SET version = {next}", place.0.schema));
    place.open().0.shutdown().unwrap();
    let found = postgres.query(&format!("SELECT version FROM {}.ferrule_schema", place.0.schema));
    assert_eq!(found, [next.to_string()]);
}

/// Whichever node's commit comes last.
#[test]
fn of_a_retained_message_the_highest_stamp_wins() {
    let (postgres, place) = server();
    let (first, second) = (place.node("one"), place.node("two"));
    let ((one, _), (two, _)) = (first.open(), second.open());
    let (mut a, mut z) = (Client::new(&one), Client::new(&two));
    let put = |stamp: u64, record: &'static [u8]| Op::RetainPut {
        topic: "t".into(),
        stamp,
        record: Bytes::from_static(record),
    };
    let clear = |stamp: u64| Op::RetainDelete { topic: "t".into(), stamp };
    let high = 1 << 63;
    let found = || {
        let (writer, restored) = place.node("three").open();
        writer.shutdown().unwrap();
        let found = |(_, stamp, record): &(Box<str>, u64, Bytes)| (*stamp, record.to_vec());
        restored.retained.iter().map(found).collect::<Vec<_>>()
    };
    a.commit(vec![put(high + 5, b"five")]);
    z.commit(vec![put(high - 1, b"older")]);
    assert_eq!(found(), [(high + 5, b"five".to_vec())], "stamps take all 64 bits");
    z.commit(vec![put(high + 5, b"even")]);
    assert_eq!(found()[0].1, b"five", "of equal ones the record that compares higher");
    z.commit(vec![clear(high + 6)]);
    a.commit(vec![put(high + 5, b"late")]);
    assert_eq!(found(), [(high + 6, Vec::new())], "what was cleared stays so");
    // For a day, in which others clear theirs.
    let day = 86_400_000 << 22;
    let other = |stamp: u64| Op::RetainDelete { topic: "other".into(), stamp };
    a.commit(vec![other(high + 6 + day)]);
    assert_eq!(found().len(), 2);
    a.commit(vec![other(high + 7 + day)]);
    assert_eq!(found(), [(high + 7 + day, Vec::new())]);
    one.shutdown().unwrap();
    two.shutdown().unwrap();
    drop(postgres);
}

#[test]
fn what_is_refused_says_why() {
    let (postgres, place) = server();
    postgres.execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0");
    postgres.execute("CREATE ROLE guest LOGIN");
    let open = |url: String| {
        let options = Options { url, patience: Duration::ZERO, ..place.0.clone() };
        ferrule_store_postgres::open(options).unwrap_err().to_string()
    };
    let url = postgres.url();
    for (url, wanted) in [
        (format!("{}/latin", url.trim_end_matches("/postgres")), "UTF8"),
        (url.replace("/postgres@", "/nobody@"), "user"),
        (url.replace("/postgres@", "/guest@"), "rights"),
        (format!("{url}?sslmode=require"), "TLS"),
        ("user=x".to_owned(), "host"),
        (format!("postgres://u:hunter2@127.0.0.1:{}/x", ferrule_testkit::port::free()), "runs"),
    ] {
        let error = open(url);
        assert!(error.contains(wanted) && !error.contains("hunter2"), "{wanted}: {error}");
    }
    let wrong = Options { schema: "a b".into(), node: String::new(), ..Options::new(&postgres.url(), "") };
    assert_eq!(wrong.check().unwrap_err().iter().map(|w| w.0).collect::<Vec<_>>(), ["schema", "node"]);
}

/// Who may only use what is there need not be allowed to make it.
#[test]
fn the_owner_of_the_tables_may_be_another() {
    let (postgres, place) = server();
    place.open().0.shutdown().unwrap();
    let schema = &place.0.schema;
    postgres.execute(&format!(
        "CREATE ROLE guest LOGIN; GRANT USAGE ON SCHEMA {schema} TO guest; \
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO guest"
    ));
    let guest = Place(Options { url: postgres.url().replace("/postgres@", "/guest@"), ..place.0.clone() });
    let (writer, _) = guest.open();
    Client::new(&writer).commit(vec![append(queues()[0], 1, 10)]);
}

/// A server that is not there yet is waited for.
#[test]
fn a_start_waits_for_its_server() {
    let (mut postgres, place) = server();
    postgres.kill9();
    let opening = std::thread::spawn(move || place.open().1);
    postgres.restart();
    assert_eq!(own(opening.join().unwrap()), ferrule_store::Restored::default());
}
