//! What the ops mean, told by the model: the invariants in the crate's header.

use bytes::Bytes;
use ferrule_store::{
    Body, BodyId, MemoryStore, Op, QueueId, QueueSummary, SessionId, Side, Store, StoreEvent,
};
use proptest::prelude::*;

const SESSION: SessionId = SessionId(1);

fn queue() -> QueueId {
    QueueId::outbox("cloud", 0)
}

fn append(queue: QueueId, seq: u64, body: Body) -> Op {
    Op::Append { queue, seq, head: Bytes::from_static(b"h"), body }
}

fn committed(ops: Vec<Op>) -> MemoryStore {
    let mut store = MemoryStore::new();
    store.submit(ops);
    store.commit();
    store
}

#[test]
fn nothing_is_there_before_the_commit_and_everything_after() {
    let mut store = MemoryStore::new();
    let first = store.submit(vec![append(queue(), 1, Body::Inline("a".into()))]);
    let second = store.submit(vec![]);
    assert!(second > first && store.pending_bytes() > 0);
    assert!(store.rows(queue()).is_empty());
    store.commit();
    assert!(matches!(store.take_events()[..], [StoreEvent::Committed { ticket, .. }] if ticket == second));
    assert_eq!(store.rows(queue()).len(), 1);
    store.submit(vec![append(queue(), 2, Body::Inline("b".into()))]);
    assert_eq!(store.crash().queues[0].rows, 1);
}

#[test]
fn a_shared_body_goes_with_its_last_row() {
    let body = || Body::Shared(BodyId(9), "shared".into());
    let session = QueueId::session(SESSION);
    let mut store =
        committed(vec![append(queue(), 1, body()), append(session, 1, body()), append(session, 1, body())]);
    assert_eq!((store.shared_bodies(), store.restored().last_body), (1, 9));
    for (gone, left) in
        [(Op::Remove { queue: queue(), first: 1, last: 1 }, 1), (Op::SessionDelete { session: SESSION }, 0)]
    {
        store.submit(vec![gone]);
        store.commit();
        assert_eq!(store.shared_bodies(), left);
    }
}

#[test]
fn a_session_takes_everything_of_its_own_along() {
    let record = || Bytes::from_static(b"r");
    let other = SessionId(2);
    let of = |session| {
        vec![
            Op::SessionPut { session, record: record() },
            Op::SubscriptionPut { session, filter: "a".into(), record: record() },
            Op::InflightPut { session, side: Side::Inbound, packet_id: 1, record: record() },
            append(QueueId::session(session), 1, Body::Inline("x".into())),
        ]
    };
    let store = committed([of(SESSION), of(other), vec![Op::SessionDelete { session: SESSION }]].concat());
    assert_eq!(store.restored(), committed(of(other)).restored());
}

#[test]
fn summaries_count_rows_with_gaps() {
    let rows = [3, 5, 9].map(|seq| append(queue(), seq, Body::Inline("xyz".into())));
    let summary = QueueSummary { queue: queue(), first: 3, last: 9, rows: 3, bytes: 12 };
    assert_eq!(committed(rows.to_vec()).restored().queues, [summary]);
}

#[test]
fn a_read_is_bounded_and_never_stuck() {
    let mut store =
        committed((0..9).map(|seq| append(queue(), seq, Body::Inline("123456789".into()))).collect());
    for (from, max_rows, max_bytes, expect) in
        [(0, 3, u32::MAX, 3), (7, 9, u32::MAX, 2), (0, 9, 20, 2), (0, 9, 21, 3), (0, 0, 0, 1), (9, 9, 9, 0)]
    {
        store.take_events();
        store.read(queue(), from, max_rows, max_bytes);
        let [StoreEvent::Rows { rows, .. }] = &store.take_events()[..] else { panic!("no rows") };
        assert_eq!(rows.len(), expect, "from {from}, {max_rows} rows, {max_bytes} bytes");
    }
}

fn op() -> impl Strategy<Value = Op> {
    let (seq, session) = (0_u64..6, (1_u64..3).prop_map(SessionId));
    let body = prop_oneof![
        any::<u8>().prop_map(|b| Body::Inline(vec![b].into())),
        (1_u64..3).prop_map(|id| Body::Shared(BodyId(id), vec![id as u8].into())),
    ];
    prop_oneof![
        5 => (session.clone(), seq.clone(), body).prop_map(|(s, seq, body)| append(QueueId::session(s), seq, body)),
        4 => (session.clone(), seq.clone(), seq)
            .prop_map(|(s, first, last)| Op::Remove { queue: QueueId::session(s), first, last }),
        1 => (session.clone(), any::<u8>())
            .prop_map(|(session, b)| Op::SessionPut { session, record: vec![b].into() }),
        1 => session.prop_map(|session| Op::SessionDelete { session }),
    ]
}

proptest! {
    /// After a failure the writer applies what it kept once more, not knowing whether the file has it.
    #[test]
    fn applying_twice_is_applying_once(
        before in proptest::collection::vec(op(), 0..20),
        kept in proptest::collection::vec(op(), 0..20),
    ) {
        let once = committed([before.clone(), kept.clone()].concat());
        let twice = committed([before, kept.clone(), kept].concat());
        prop_assert_eq!(once.restored(), twice.restored());
        prop_assert_eq!(once.shared_bodies(), twice.shared_bodies());
    }
}
