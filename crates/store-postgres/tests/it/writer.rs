//! Group commit, barriers, handles, and how much a commit is.

use crate::support::{Client, Place, append, queues, server, session};
use bytes::Bytes;
use ferrule_store::{Body, BodyId, Op};
use ferrule_store_writer::Writing;
use ferrule_store_writer::harness::{self, Medium};
use ferrule_testkit::Postgres;
use std::time::Instant;

#[test]
fn what_all_writers_do() {
    let postgres = Postgres::start();
    let place = || Place::new(&postgres.url());
    harness::what_is_submitted_during_a_commit_is_the_next_commit(&place());
    harness::a_barrier_alone_costs_no_commit(&place());
    harness::handles_are_told_of_their_own(&place());
    harness::joint_commits_are_one(&place());
    harness::large_groups_and_bodies_are_kept(&place());
}

/// Calls of each statement, as the server counts them.
fn calls(postgres: &Postgres) -> u64 {
    let calls = postgres.query("SELECT xact_commit FROM pg_stat_database WHERE datname = 'postgres'");
    calls[0].parse().unwrap()
}

#[test]
fn a_thousand_appends_are_one_transaction() {
    let (postgres, place) = server();
    let (writer, _) = place.open();
    let mut client = Client::new(&writer);
    let queue = queues()[2];
    client.commit(vec![append(queue, 0, 10)]);
    let before = calls(&postgres);
    client.commit((1..=1000).map(|seq| append(queue, seq, 100)).collect());
    assert_eq!(writer.status().commits, 2);
    // The server's figures come late; a transaction a row would be a thousand.
    assert!(calls(&postgres) - before < 50);
    assert_eq!(client.rows(queue, 256, u32::MAX).len(), 1001);
}

/// Nothing that a client chooses makes the server refuse: topics of any length, bytes of any kind.
#[test]
fn names_may_be_long_and_strange() {
    let (_postgres, place) = server();
    let (mut writer, _) = place.open();
    let mut client = Client::new(&writer);
    // Not to be compressed: an index entry of it would be too large.
    let mut rng = harness::Rng(7);
    let long: String = (0..65_535).map(|_| char::from(b'!' + rng.below(90) as u8)).collect();
    let names: [Box<str>; 3] = [long.into(), "\u{1}\u{10ffff}'\"\\".into(), "".into()];
    let session = session(u64::from(u32::MAX) - 1);
    for name in &names {
        let record = Bytes::from_static(b"\0record");
        client.commit(vec![
            Op::RetainPut { topic: name.clone(), stamp: u64::MAX, record: record.clone() },
            Op::SubscriptionPut { session, filter: name.clone(), record: record.clone() },
            Op::StatePut { rule: u64::MAX >> 1, key: name.as_bytes().to_vec().into(), value: record },
        ]);
    }
    drop(client);
    Writing::stop(&mut writer).unwrap();
    let (_writer, restored) = place.open();
    let mut sorted = names.to_vec();
    sorted.sort();
    assert_eq!(restored.retained.iter().map(|r| r.0.clone()).collect::<Vec<_>>(), sorted);
    assert_eq!(restored.subscriptions.iter().map(|s| s.1.clone()).collect::<Vec<_>>(), sorted);
    assert_eq!(restored.state.len(), 3);
}

/// Bodies are there once, and go with the last row, whichever commit that is in.
#[test]
fn bodies_are_there_once() {
    let (postgres, place) = server();
    let (writer, _) = place.open();
    let mut client = Client::new(&writer);
    let count = format!("SELECT count(*), coalesce(sum(refs), 0) FROM {}.body", place.0.schema);
    let body = Body::Shared(BodyId(9), vec![7; 5000].into());
    let row = |queue: usize, seq| Op::Append {
        queue: queues()[queue],
        seq,
        head: Bytes::new(),
        body: body.clone(),
    };
    client.commit(vec![row(0, 1), row(1, 1), row(2, 1)]);
    // Again: as after a commit whose answer was lost.
    client.commit(vec![row(0, 1), row(1, 1), row(2, 1)]);
    assert_eq!(postgres.query(&count), ["1|3"]);
    client.commit(vec![Op::Remove { queue: queues()[0], first: 0, last: 9 }, row(0, 2)]);
    client.commit(vec![Op::SessionDelete { session: session(2) }]);
    assert_eq!(postgres.query(&count), ["1|2"]);
    client.commit(vec![Op::Remove { queue: queues()[2], first: 1, last: 1 }]);
    client.commit(vec![Op::Remove { queue: queues()[0], first: 0, last: u64::MAX }]);
    // Swept with a commit or at rest.
    ferrule_testkit::until(harness::DEADLINE, "the body is swept", || {
        (postgres.query(&count) == ["0|0"]).then_some(())
    });
}

/// For people: how long commits take here. `cargo test --release -p ferrule-store-postgres -- --ignored --nocapture measure`
#[test]
#[ignore = "prints figures"]
fn measure() {
    let (_postgres, place) = server();
    let (writer, _) = place.open();
    let mut client = Client::new(&writer);
    let queue = queues()[2];
    let mut seq = 0;
    for (batches, rows) in [(300, 1), (300, 16), (30, 1000)] {
        let start = Instant::now();
        for _ in 0..batches {
            client.commit((seq..seq + rows).map(|seq| append(queue, seq, 240)).collect());
            seq += rows;
        }
        let each = start.elapsed() / batches;
        eprintln!("{rows} rows of 240 B a commit, one after the other: {each:?} a commit");
    }
    let (start, before) = (Instant::now(), writer.status().commits);
    let mut last = None;
    for n in 0..20_000 {
        last = Some(client.submit(vec![
            append(queue, seq + n, 240),
            Op::Remove { queue, first: (seq + n).saturating_sub(100), last: (seq + n).saturating_sub(100) },
        ]));
    }
    client.wait(last.unwrap());
    let (took, commits) = (start.elapsed(), writer.status().commits - before);
    eprintln!(
        "20000 batches of one append and one removal, as fast as they go: {took:?} in {commits} commits"
    );
    let start = Instant::now();
    client.commit(vec![Op::Remove { queue, first: 0, last: u64::MAX }]);
    eprintln!("all rows removed: {:?}", start.elapsed());
}
