//! Servers that are killed, paused, cut off, full, or refuse writes.

use crate::support::{Client, Place, append, own, queues, seqs, server};
use bytes::Bytes;
use ferrule_store::{Body, BodyId, MemoryStore, Op, Store, StoreEvent};
use ferrule_store_postgres::State;
use ferrule_store_writer::harness::{DEADLINE, Medium, Rng, random_op};
use ferrule_testkit::{Postgres, Relay, until};
use std::net::SocketAddr;
use std::time::Duration;

pub(crate) fn address(postgres: &Postgres) -> SocketAddr {
    postgres.url()["postgres://postgres@".len()..].trim_end_matches("/postgres").parse().unwrap()
}

#[test]
fn a_server_that_is_killed_and_comes_back_loses_nothing() {
    let (mut postgres, place) = server();
    let (writer, _) = place.open();
    let mut client = Client::new(&writer);
    let queue = queues()[2];
    let mut seq = 0;
    for _ in 0..3 {
        // Amid commits.
        for _ in 0..200 {
            seq += 1;
            client.submit(vec![append(queue, seq, 100)]);
        }
        postgres.kill9();
        seq += 1;
        let last = client.submit(vec![append(queue, seq, 100)]);
        let message = client.wait_failing();
        assert!(message.contains("PostgreSQL at 127.0.0.1") && message.contains("runs"), "{message}");
        assert!(matches!(writer.status().state, State::Failing(_)));
        assert!(client.store.pending_bytes() > 0);
        postgres.restart();
        client.wait_recovered();
        client.wait(last);
        assert_eq!(client.store.pending_bytes(), 0);
        assert_eq!(seqs(&mut client, queue), (1..=seq).collect::<Vec<_>>());
    }
    // A read that was asked for meanwhile is answered afterwards.
    postgres.kill9();
    client.submit(vec![append(queue, 0, 1)]);
    client.wait_failing();
    client.store.read(queue, 0, 1, 1);
    postgres.restart();
    let rows = client.wait_for(|event| match event {
        StoreEvent::Rows { rows, .. } => Some(rows),
        _ => None,
    });
    assert_eq!(rows[0].seq, 0);
    writer.shutdown().unwrap();
}

/// A connection that is lost at rest is made anew without a word.
#[test]
fn a_connection_that_was_lost_at_rest_is_nobodys_business() {
    let (postgres, place) = server();
    let relay = Relay::start(address(&postgres));
    let (writer, _) = place.through(&relay).open();
    let mut client = Client::new(&writer);
    for seq in 0..5 {
        relay.cut();
        let ticket = client.submit(vec![append(queues()[2], seq, 10)]);
        client.wait_for(|event| match event {
            StoreEvent::Committed { ticket: at, .. } if at >= ticket => Some(()),
            StoreEvent::Failing { message } => panic!("{message}"),
            _ => None,
        });
    }
    assert_eq!(seqs(&mut client, queues()[2]), [0, 1, 2, 3, 4]);
}

/// Cut at any moment, also between COMMIT and its answer: what is there is what the model has, once.
#[test]
fn a_commit_whose_answer_was_lost_is_made_once() {
    let (postgres, place) = server();
    let relay = Relay::start(address(&postgres));
    let (writer, _) = place.through(&relay).open();
    let mut client = Client::new(&writer);
    let mut model = MemoryStore::new();
    let seed = std::process::id().into();
    let mut rng = Rng(seed);
    for round in 0..60 {
        let mut last = None;
        for _ in 0..4 {
            let ops: Vec<Op> = (0..6).map(|_| random_op(&mut rng)).collect();
            model.submit(ops.clone());
            last = Some(client.submit(ops));
        }
        model.commit();
        // From before it has come to after it was answered.
        std::thread::sleep(Duration::from_micros(rng.below(4000)));
        relay.cut();
        client.wait(last.unwrap());
        for queue in queues() {
            assert_eq!(client.rows(queue, 256, u32::MAX), model.rows(queue), "seed {seed} round {round}");
        }
    }
    assert!(writer.status().failures > 0, "no cut met a commit");
    writer.shutdown().unwrap();
    assert_eq!(own(place.open().1), own(model.restored()), "seed {seed}");
}

/// Between COMMIT and its answer, for sure: the rows are there while the answer is still on its way, and is cut off.
#[test]
fn an_answer_is_lost_after_the_commit() {
    let (postgres, place) = server();
    let relay = Relay::start(address(&postgres));
    let (writer, _) = place.through(&relay).open();
    let mut client = Client::new(&writer);
    let queue = queues()[2];
    let shared = |seq| Op::Append {
        queue,
        seq,
        head: Bytes::new(),
        body: Body::Shared(BodyId(1), vec![1; 3000].into()),
    };
    client.commit(vec![shared(0), append(queue, 1, 10)]);
    let there = format!("SELECT string_agg(seq::text, ',' ORDER BY seq) FROM {}.queue_row", place.0.schema);
    for round in 0..3 {
        let (old, new) = (round * 2, round * 2 + 2);
        relay.delay(Duration::from_secs(1));
        let ticket = client.submit(vec![
            shared(new),
            append(queue, new + 1, 10),
            Op::Remove { queue, first: old, last: old + 1 },
            Op::MetaPut { key: "round".into(), value: vec![round as u8].into() },
        ]);
        let wanted = format!("{new},{}", new + 1);
        until(DEADLINE, "it is committed", || (postgres.query(&there) == [&*wanted]).then_some(()));
        assert!(
            !client.events.try_iter().any(|event| matches!(event, StoreEvent::Committed { .. })),
            "the answer was not on its way any more"
        );
        relay.cut();
        relay.heal();
        client.wait(ticket);
        assert_eq!(postgres.query(&there), [&*wanted]);
        let bodies = format!("SELECT count(*), sum(refs) FROM {}.body", place.0.schema);
        assert_eq!(postgres.query(&bodies), ["1|1"]);
    }
    assert!(writer.status().failures >= 3);
}

/// Nothing comes through, and nobody says so.
#[test]
fn a_server_behind_a_black_hole() {
    let (postgres, place) = server();
    let relay = Relay::start(address(&postgres));
    let (writer, _) = place.through(&relay).impatient().open();
    let mut client = Client::new(&writer);
    client.commit(vec![append(queues()[2], 0, 10)]);
    relay.blackhole();
    let ticket = client.submit(vec![append(queues()[2], 1, 10)]);
    let message = client.wait_failing();
    assert!(message.contains("127.0.0.1"), "{message}");
    relay.heal();
    client.wait(ticket);
    assert_eq!(seqs(&mut client, queues()[2]), [0, 1]);
}

#[test]
fn a_paused_server_withholds_and_goes_on() {
    let (mut postgres, place) = server();
    let (writer, _) = place.impatient().open();
    let mut client = Client::new(&writer);
    client.commit(vec![append(queues()[2], 0, 10)]);
    postgres.pause();
    let ticket = client.submit(vec![append(queues()[2], 1, 10)]);
    let message = client.wait_failing();
    assert!(message.contains("no answer"), "{message}");
    postgres.resume();
    client.wait_recovered();
    client.wait(ticket);
    assert_eq!(seqs(&mut client, queues()[2]), [0, 1]);
}

#[test]
fn what_the_server_refuses_is_kept_and_said() {
    let (postgres, place) = server();
    let (writer, _) = place.open();
    let mut client = Client::new(&writer);
    let queue = queues()[2];
    client.commit(vec![append(queue, 0, 10)]);
    let schema = &place.0.schema;
    let mut seq = 0;
    // A standby, or a database that somebody set read-only; rights taken away; a table gone.
    let database = "ALTER DATABASE postgres SET default_transaction_read_only";
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = 'postgres'";
    for (harm, mend, wanted) in [
        (
            format!("{database} = on; {cut}"),
            format!("SET TRANSACTION READ WRITE; {database} = off"),
            "read-only",
        ),
        (
            format!("ALTER TABLE {schema}.queue_row RENAME TO gone"),
            format!("ALTER TABLE {schema}.gone RENAME TO queue_row"),
            "tables are gone",
        ),
        (
            format!("ALTER TABLE {schema}.queue_row ADD CONSTRAINT no CHECK (seq < 1) NOT VALID"),
            format!("ALTER TABLE {schema}.queue_row DROP CONSTRAINT no"),
            "23514",
        ),
    ] {
        let _ = postgres.query(&format!("{harm};"));
        seq += 1;
        let ticket = client.submit(vec![append(queue, seq, 10)]);
        let message = client.wait_failing();
        assert!(message.contains(wanted), "{message}");
        postgres.execute(&mend);
        client.wait_recovered();
        client.wait(ticket);
        assert_eq!(seqs(&mut client, queue), (0..=seq).collect::<Vec<_>>());
    }
}

/// The server cancels a statement that takes too long; the next time it gets longer, or it would never be done.
#[test]
fn a_statement_that_takes_long_gets_longer() {
    let (postgres, place) = server();
    let (writer, _) = place.impatient().open();
    let mut client = Client::new(&writer);
    let schema = &place.0.schema;
    client.commit(vec![append(queues()[2], 0, 10)]);
    postgres.execute(&format!(
        "CREATE FUNCTION {schema}.slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(3); RETURN NULL; END'; \
         CREATE TRIGGER slow AFTER DELETE ON {schema}.queue_row EXECUTE FUNCTION {schema}.slow()"
    ));
    let ticket = client.submit(vec![Op::Remove { queue: queues()[2], first: 0, last: 9 }]);
    let message = client.wait_failing();
    assert!(message.contains("57014") && message.contains("timeout"), "{message}");
    client.wait(ticket);
    assert_eq!(seqs(&mut client, queues()[2]), [0; 0]);
}

#[test]
fn a_shutdown_while_it_fails_says_what_is_not_stored() {
    let (mut postgres, place) = server();
    let (writer, _) = place.open();
    let mut client = Client::new(&writer);
    postgres.kill9();
    client.submit(vec![append(queues()[0], 1, 2000)]);
    client.wait_failing();
    let error = writer.shutdown().unwrap_err();
    assert_eq!(error.batches, 1);
    assert!(error.to_string().contains("PostgreSQL at"), "{error}");
}

/// Through everything at once, for some while: nothing is lost, nothing comes twice.
#[test]
fn a_server_that_is_cut_and_killed_in_turn() {
    let (mut postgres, place) = server();
    let relay = Relay::start(address(&postgres));
    let (writer, _) = Place(place.through(&relay).0).open();
    let mut client = Client::new(&writer);
    let mut model = MemoryStore::new();
    let mut rng = Rng(std::process::id().into());
    for round in 0..12 {
        for _ in 0..40 {
            let ops: Vec<Op> = (0..4).map(|_| random_op(&mut rng)).collect();
            model.submit(ops.clone());
            client.submit(ops);
        }
        model.commit();
        match round % 4 {
            0 => postgres.restart(),
            1 => relay.cut(),
            2 => relay.half_open(),
            _ => {
                relay.refuse();
                client.submit(vec![]);
                relay.heal();
            }
        }
    }
    let ticket = client.submit(vec![]);
    client.wait(ticket);
    until(DEADLINE, "it works", || (writer.status().state == State::Running).then_some(()));
    writer.shutdown().unwrap();
    assert_eq!(own(place.open().1), own(model.restored()));
}
