//! Two writers of one name, and sessions that another node has taken.

use crate::support::{Client, append, queues, seqs, server};
use bytes::Bytes;
use ferrule_store::{Op, QueueId, SessionId, StoreEvent};
use ferrule_store_postgres::State;
use ferrule_store_writer::harness::{DEADLINE, Medium};
use ferrule_testkit::{Relay, until};
use std::time::Duration;

#[test]
fn the_second_writer_of_a_name_ends_the_first() {
    let (_postgres, place) = server();
    let (first, _) = place.open();
    let mut old = Client::new(&first);
    let queue = queues()[2];
    old.commit(vec![append(queue, 1, 10)]);
    let (second, restored) = place.open();
    assert_eq!(restored.queues[0].rows, 1);
    let mut new = Client::new(&second);
    old.submit(vec![append(queue, 2, 10)]);
    let message = old.wait_failing();
    assert!(message.contains("another ferrule") && message.contains("node 'a'"), "{message}");
    new.commit(vec![append(queue, 3, 10)]);
    // For good: not when the other one ends either.
    second.shutdown().unwrap();
    old.submit(vec![append(queue, 4, 10)]);
    let error = first.shutdown().unwrap_err();
    assert_eq!(error.batches, 2);
    assert_eq!(seqs(&mut Client::new(&place.open().0), queue), [1, 3]);
}

/// While the first is under load: nothing of it is there that the second did not find.
#[test]
fn a_busy_writer_is_ended_too() {
    let (_postgres, place) = server();
    let (first, _) = place.open();
    let mut old = Client::new(&first);
    let queue = queues()[2];
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let busy = std::thread::spawn(move || {
        for seq in 1.. {
            old.submit(vec![append(queue, seq, 10)]);
            let failed = old.events.try_iter().any(|event| matches!(event, StoreEvent::Failing { .. }));
            if failed || stopped.recv_timeout(Duration::from_micros(200)).is_ok() {
                return failed;
            }
        }
        false
    });
    until(DEADLINE, "it is busy", || (first.status().commits > 20).then_some(()));
    let (second, restored) = place.open();
    let rows = restored.queues[0].rows;
    until(DEADLINE, "it ends", || matches!(first.status().state, State::Failing(_)).then_some(()));
    let _ = stop.send(());
    busy.join().unwrap();
    let mut new = Client::new(&second);
    new.commit(vec![append(queue, 1 << 40, 10)]);
    assert_eq!(new.rows(queue, 256, u32::MAX).len() as u64, rows + 1);
}

/// As another node will take a session: owner and epoch, and the old owner's fence, in one transaction.
fn take(schema: &str, session: u64) -> String {
    format!(
        "BEGIN; UPDATE {schema}.session SET owner = 77, epoch = epoch + 1 WHERE session & 4294967295 = {session}; \
         UPDATE {schema}.node SET fence = fence + 1 WHERE node = 'a'; COMMIT"
    )
}

#[test]
fn ops_of_a_session_that_was_taken_are_handed_back() {
    let (postgres, place) = server();
    let (writer, _) = place.open();
    let (mut client, mut other) = (Client::new(&writer), Client::new(&writer));
    let put = |n| Op::SessionPut { session: SessionId(n), record: Bytes::from_static(b"s") };
    let queue = |n| QueueId::session(SessionId(n));
    client.commit((1..=4).map(put).collect());
    client.commit((1..=4).map(|n| append(queue(n), 1, 10)).collect());
    postgres.execute(&take(&place.0.schema, 2));
    postgres.execute(&take(&place.0.schema, 3));
    let handed = |client: &Client| {
        client.wait_for(|event| match event {
            StoreEvent::Fenced { ops } => Some(ops),
            StoreEvent::Committed { .. } | StoreEvent::Failing { .. } => {
                panic!("not handed back first: {event:?}")
            }
            _ => None,
        })
    };
    // The rest of its batch is written, and its ticket resolves.
    let ticket =
        client.submit(vec![append(queue(1), 2, 10), append(queue(2), 2, 10), append(queues()[2], 2, 10)]);
    assert_eq!(handed(&client), [append(queue(2), 2, 10)]);
    client.wait(ticket);
    // The other one was taken under the same value of the fence as was read: it is noticed too, when it is written.
    let ticket = other.submit(vec![append(queue(3), 2, 10), append(queue(4), 2, 10), put(3)]);
    assert_eq!(handed(&other), [append(queue(3), 2, 10), put(3)]);
    other.wait(ticket);
    // And again, though the fence is what it was.
    let ticket = client.submit(vec![Op::Remove { queue: queue(2), first: 0, last: 9 }]);
    assert_eq!(handed(&client).len(), 1);
    client.wait(ticket);
    // One that nobody has taken, and one that is new.
    client.commit(vec![put(5), append(queue(5), 1, 10), append(queue(4), 3, 10)]);
    postgres.execute(&take(&place.0.schema, 5));
    let ticket = client.submit(vec![append(queue(5), 2, 10)]);
    assert_eq!(handed(&client).len(), 1);
    client.wait(ticket);
    assert_eq!(writer.status().fenced, 5);
    let of = |client: &mut Client, n| seqs(client, queue(n));
    assert_eq!([1, 2, 3, 4, 5].map(|n| of(&mut client, n).len()), [2, 1, 1, 3, 1]);
    writer.shutdown().unwrap();
    // What is not ours any more is not restored.
    let (_writer, restored) = place.open();
    assert_eq!(restored.sessions.iter().map(|s| s.0.0).collect::<Vec<_>>(), [1, 4]);
    assert_eq!(restored.queues.len(), 3);
}

/// A transaction that lay on the way while its writer made it again must not be done once more behind later ones.
#[test]
fn an_old_connection_cannot_come_back() {
    let (_postgres, place) = server();
    let relay = Relay::start(
        _postgres.url()["postgres://postgres@".len()..].trim_end_matches("/postgres").parse().unwrap(),
    );
    let place = place.through(&relay).impatient();
    let (writer, _) = place.open();
    let mut client = Client::new(&writer);
    let queue = queues()[2];
    client.commit(vec![append(queue, 0, 10)]);
    // What is sent now lies in the relay.
    relay.delay(Duration::from_secs(5));
    let ticket = client.submit(vec![append(queue, 1, 10)]);
    client.wait_failing();
    relay.heal();
    client.wait(ticket);
    client.commit(vec![Op::Remove { queue, first: 0, last: 1 }]);
    // Past the delay of what lay there; a barrier that goes through the server each time.
    let until = std::time::Instant::now() + Duration::from_secs(6);
    while std::time::Instant::now() < until {
        assert_eq!(seqs(&mut client, queue), [0; 0]);
    }
}
