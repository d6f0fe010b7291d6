//! Sessions that change hands: by their client, and since their owner is gone.

use crate::faults::address;
use crate::support::{Client, Place, append, seqs, server};
use bytes::Bytes;
use ferrule_cluster::Config;
use ferrule_store::record::{self, Record};
use ferrule_store::{
    Body, BodyId, Found, Inherited, Joint, JointPart, Op, QueueId, Restored, SESSIONS, SessionId, Store,
    StoreEvent, Taken,
};
use ferrule_store_postgres::{Members, Options, Reach, Writer};
use ferrule_store_writer::harness::Medium;
use ferrule_testkit::Relay;
use std::time::Duration;

pub(crate) const NOW_US: u64 = 5_000_000;

/// A node with its writer and its place among the members.
pub(crate) struct Node {
    pub(crate) members: Members,
    pub(crate) writer: Writer,
    pub(crate) client: Client,
    pub(crate) me: ferrule_cluster::PeerId,
}

impl Node {
    /// A live member.
    pub(crate) async fn start(place: &Place, name: &str) -> Self {
        let mut node = Self::join(place, name).await;
        let view = node.view().await;
        node.members.go_live(node.me, view, NOW_US).await.unwrap();
        node
    }

    /// One that is not live yet.
    async fn join(place: &Place, name: &str) -> Self {
        let place = place.node(name);
        let (writer, _) = place.open();
        let client = Client::new(&writer);
        let mut members = Members::new(&place.0, &Config::default(), Duration::from_secs(20)).unwrap();
        let reach = Reach { shards: 1, addresses: vec!["host:1".into()] };
        let (me, _) = members.join(&reach, NOW_US).await.unwrap();
        Self { members, writer, client, me }
    }

    pub(crate) async fn view(&mut self) -> u64 {
        self.members.read(NOW_US).await.unwrap().view.number
    }

    /// `given_up`: a session and its epoch.
    fn take(&mut self, client_id: &str, given_up: Option<(u64, u64)>, new: Option<u64>) -> Taken {
        let given_up = given_up.map(|(session, epoch)| (SessionId(session), epoch));
        let new = new.map(|number| (SessionId(number), session(client_id)));
        self.client.store.take(client_id, given_up, new);
        self.client.wait_for(|event| match event {
            StoreEvent::Taken(taken) => Some(*taken),
            _ => None,
        })
    }

    /// All that it adopts in a view, and which of its own it has lost.
    fn adopt(&mut self, view: u64) -> (Vec<Restored>, Vec<SessionId>) {
        let (mut all, mut lost) = (Vec::new(), Vec::new());
        loop {
            self.client.store.adopt(view);
            let done = self.client.wait_for(|event| match event {
                StoreEvent::Adopted { view: of, restored, done } => {
                    assert_eq!(of, view);
                    all.push((*restored).clone());
                    done.then_some(true)
                }
                // It is asked again.
                StoreEvent::Lost { sessions } => {
                    lost.extend(sessions.iter().copied());
                    Some(false)
                }
                _ => None,
            });
            if done {
                return (all, lost);
            }
        }
    }
}

fn session(client_id: &str) -> Bytes {
    let record = record::Session {
        client_id: client_id.into(),
        username: None,
        expiry_s: 100,
        ended_wall_ms: None,
        handed_to: None,
        will: None,
    };
    record.to_bytes()
}

fn queue(number: u64) -> QueueId {
    QueueId::session(SessionId(number))
}

/// Paused, or cut off, while it takes a session: it holds the view of the members then, and would keep the others from removing it.
#[tokio::test(flavor = "multi_thread")]
async fn who_stops_in_the_midst_of_a_transaction_holds_nobody_up() {
    let (postgres, place) = server();
    let relay = Relay::start(address(&postgres));
    // However long it would have statements take.
    let patient = Place(Options { timeout: Duration::from_secs(3_600), ..place.0.clone() });
    let (mut a, mut b) = (Node::start(&patient.through(&relay), "a").await, Node::start(&place, "b").await);
    // (The first statement behind the one that locks the view.)
    relay.blackhole_behind(b"connection = $3::INT8 FOR SHARE");
    a.client.store.take("x", None, Some((SessionId(SESSIONS + 1), session("x"))));
    relay.wait_blackhole();
    let known = b.members.remove(b.me, a.me, NOW_US).await.unwrap();
    assert_eq!(known.view.members.iter().map(|member| member.id).collect::<Vec<_>>(), [b.me]);
    relay.heal();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_takes_its_session_along() {
    let (_postgres, place) = server();
    let (mut a, mut b) = (Node::start(&place, "a").await, Node::start(&place, "b").await);
    let id = SESSIONS + 1;
    assert_eq!(a.take("x", None, None).found, Found::Nothing);
    assert_eq!(a.take("x", None, Some(id)).found, Found::Made(SessionId(id)));
    let filter: Box<str> = "f/#".into();
    let put = Op::SubscriptionPut { session: SessionId(id), filter, record: Bytes::from_static(b"s") };
    a.client.commit(vec![put, append(queue(id), 1, 10), append(queue(id), 2, 10)]);

    // Not before its owner has given it up, and with the epoch of then.
    let refused = |epoch| Found::Refused(Some((SessionId(id), epoch)));
    assert_eq!(b.take("x", None, Some(2 * SESSIONS + 1)).found, refused(1));
    assert_eq!(b.take("x", Some((id, 2)), None).found, refused(1));
    assert_eq!(b.take("x", Some((id + 1, 1)), None).found, refused(1));
    let taken = b.take("x", Some((id, 1)), None);
    assert_eq!(taken.found, Found::Session(SessionId(id)));
    assert_eq!(taken.restored.epochs, [(SessionId(id), 2)]);
    assert_eq!((taken.restored.subscriptions.len(), taken.restored.queues[0].rows), (1, 2));
    b.client.commit(vec![append(queue(id), 3, 10)]);
    assert_eq!(seqs(&mut b.client, queue(id)), [1, 2, 3]);

    // What the old owner still writes is handed back.
    a.client.submit(vec![append(queue(id), 4, 10)]);
    let handed = a.client.wait_for(|event| match event {
        StoreEvent::Fenced { ops } => Some(ops),
        _ => None,
    });
    assert_eq!(handed, [append(queue(id), 4, 10)]);
    // And back again, and once more by itself: nobody can take it with what was given up before.
    assert_eq!(a.take("x", Some((id, 2)), None).found, Found::Session(SessionId(id)));
    assert_eq!(a.take("x", None, None).restored.epochs, [(SessionId(id), 4)]);
    assert_eq!(b.take("x", Some((id, 3)), None).found, refused(4));
    a.client.commit(vec![append(queue(id), 5, 10)]);
    assert_eq!(seqs(&mut a.client, queue(id)), [1, 2, 3, 5]);

    // Ended and made anew under another number: what was given up of the first is not given up of this one, whatever their epochs.
    a.client.commit(vec![
        Op::SessionDelete { session: SessionId(id) },
        Op::SessionPut { session: SessionId(id + 1), record: session("x") },
    ]);
    let anew = Found::Refused(Some((SessionId(id + 1), 1)));
    assert_eq!(b.take("x", Some((id, 1)), Some(2 * SESSIONS + 2)).found, anew);
    let taken = b.take("x", Some((id + 1, 1)), None);
    assert_eq!((taken.found, taken.restored.queues.len()), (Found::Session(SessionId(id + 1)), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_who_make_one_at_once_one_does() {
    let (_postgres, place) = server();
    let (mut a, mut b) = (Node::start(&place, "a").await, Node::start(&place, "b").await);
    for round in 0..20 {
        let client_id = format!("x{round}");
        for (at, node) in [&mut a, &mut b].into_iter().enumerate() {
            let number = (at as u64 + 1) * SESSIONS + round + 1;
            node.client.store.take(&client_id, None, Some((SessionId(number), session(&client_id))));
        }
        let found = [&a, &b].map(|node| {
            node.client.wait_for(|event| match event {
                StoreEvent::Taken(taken) => Some(taken.found),
                _ => None,
            })
        });
        let made = found.iter().filter(|found| matches!(found, Found::Made(_))).count();
        let refused = found.iter().filter(|found| matches!(found, Found::Refused(_))).count();
        assert_eq!((made, refused), (1, 1), "{found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_owns_is_shared_among_those_who_are_left() {
    let (_postgres, place) = server();
    let (mut a, mut b) = (Node::start(&place, "a").await, Node::start(&place, "b").await);
    let mut c = Node::start(&place, "c").await;
    let ids: Vec<u64> = (1..=2_500).map(|n| 3 * SESSIONS + n).collect();
    let puts =
        ids.iter().map(|id| Op::SessionPut { session: SessionId(*id), record: session(&format!("c{id}")) });
    c.client.commit(puts.collect());
    c.client.commit(ids.iter().map(|id| append(queue(*id), 1, 10)).collect());
    let view = a.view().await;
    assert_eq!(
        a.adopt(view).0.iter().map(|all| all.sessions.len()).sum::<usize>(),
        0,
        "its owner is a member"
    );

    a.members.remove(a.me, c.me, NOW_US).await.unwrap();
    let view = a.view().await;
    let mut adopted = Vec::new();
    for node in [&mut a, &mut b] {
        let (all, _) = node.adopt(view);
        assert!(all.len() > 1, "not all at once");
        for restored in all {
            assert_eq!(restored.queues.len(), restored.sessions.len());
            adopted.extend(restored.sessions.iter().map(|(id, _)| id.0));
        }
    }
    adopted.sort_unstable();
    assert_eq!(adopted, ids, "each once");
    let other = a.adopt(view).0;
    assert_eq!(other.iter().map(|all| all.sessions.len()).sum::<usize>(), 0, "nothing is left");

    // Who is no member takes nothing, and finds out what it has lost when it is one again.
    assert_eq!(c.take("c1", None, Some(3 * SESSIONS + 9_999)).found, Found::Refused(None));
    c.client.submit(vec![append(queue(ids[0]), 2, 10)]);
    c.client.wait_for(|event| matches!(event, StoreEvent::Fenced { .. }).then_some(()));
    let reach = Reach { shards: 1, addresses: vec!["host:1".into()] };
    let (_, known) = c.members.join(&reach, NOW_US).await.unwrap();
    let (all, lost) = c.adopt(known.view.number);
    assert_eq!((all.len(), all[0].sessions.len()), (1, 0));
    // One was lost by what it wrote.
    assert_eq!(lost.len(), ids.len() - 1);
    // A view that is past.
    a.client.store.adopt(view);
    a.client.commit(vec![append(queue(SESSIONS + 9), 1, 10)]);
    c.writer.shutdown().unwrap();
    let (_writer, restored) = place.node("c").open();
    assert_eq!(restored.sessions.len(), 0);
    assert_eq!(restored.last_session, ids[ids.len() - 1], "its numbers are used, whoever has them");
}

/// What was submitted while a session was this node's before, and waits for the other part of a joint commit, is not of its next life here.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_of_an_earlier_life_is_not_written_into_the_next() {
    let (_postgres, place) = server();
    let (mut a, mut b) = (Node::start(&place, "a").await, Node::start(&place, "b").await);
    let id = SESSIONS + 1;
    assert_eq!(a.take("x", None, Some(id)).found, Found::Made(SessionId(id)));
    a.client.commit(vec![append(queue(id), 1, 10)]);
    let half = vec![JointPart::Opens(Joint { shard: 0, number: 7 })];
    a.client.store.submit_joint(vec![append(queue(id), 2, 10)], half);
    assert_eq!(b.take("x", Some((id, 1)), None).found, Found::Session(SessionId(id)));
    // Not by another handle either: the writer is one.
    let mut other = Client::new(&a.writer);
    other.store.take("x", Some((SessionId(id), 2)), None);
    let taken = other.wait_for(|event| match event {
        StoreEvent::Taken(taken) => Some(*taken),
        _ => None,
    });
    assert_eq!(
        (taken.found, taken.restored.epochs),
        (Found::Session(SessionId(id)), vec![(SessionId(id), 3)])
    );
    let fenced = a.client.wait_for(|event| match event {
        StoreEvent::Fenced { ops } => Some(ops),
        _ => None,
    });
    assert_eq!(fenced, [append(queue(id), 2, 10)]);
    other.commit(vec![append(queue(id), 3, 10)]);
    assert_eq!(seqs(&mut other, queue(id)), [1, 3]);
}

/// Who has lost sessions adopts nothing before its shards have said that they know: what they send meanwhile is of an earlier life.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_adopted_before_all_know_what_was_lost() {
    let (_postgres, place) = server();
    let (mut a, mut b) = (Node::start(&place, "a").await, Node::start(&place, "b").await);
    let ids = [SESSIONS + 1, SESSIONS + 2];
    let put = |id: u64| Op::SessionPut { session: SessionId(id), record: session(&format!("c{id}")) };
    let mut other = Client::new(&a.writer);
    a.client.commit(vec![put(ids[0])]);
    other.commit(vec![put(ids[1])]);
    b.members.remove(b.me, a.me, NOW_US).await.unwrap();
    let view = b.view().await;
    assert_eq!(b.adopt(view).0.iter().map(|all| all.sessions.len()).sum::<usize>(), 2);
    // Now b is gone, and a comes back.
    let reach = Reach { shards: 1, addresses: vec!["host:1".into()] };
    let (me, joined) = a.members.join(&reach, NOW_US).await.unwrap();
    a.members.go_live(me, joined.view.number, NOW_US).await.unwrap();
    a.members.remove(me, b.me, NOW_US).await.unwrap();
    let view = a.view().await;
    let lost = |event| match event {
        StoreEvent::Lost { sessions } => Some(sessions.len()),
        StoreEvent::Adopted { .. } => panic!("too early"),
        _ => None,
    };
    a.client.store.adopt(view);
    assert_eq!((a.client.wait_for(lost), other.wait_for(lost)), (2, 2));
    a.client.store.adopt(view);
    // What is asked for behind it has been answered, and the other one does not know yet.
    seqs(&mut a.client, queue(ids[0]));
    let fenced = other.submit(vec![append(queue(ids[1]), 1, 10)]);
    let mut backs = 0;
    other.wait_for(|event| match event {
        StoreEvent::Fenced { ops } => {
            backs += ops.len();
            None
        }
        StoreEvent::Adopted { .. } => panic!("too early"),
        StoreEvent::Committed { ticket, .. } => (ticket >= fenced).then_some(()),
        _ => None,
    });
    assert_eq!(backs, 1);
    other.store.adopt(view);
    let adopted = other.wait_for(|event| match event {
        StoreEvent::Adopted { restored, .. } => Some(restored.sessions.len()),
        _ => None,
    });
    assert_eq!(adopted, 2);
    assert!(seqs(&mut other, queue(ids[1])).is_empty());
}

/// An outbox whose node is gone is looked after by one member, and not any more once its node has started again.
#[tokio::test(flavor = "multi_thread")]
async fn an_outbox_whose_node_is_gone_has_one_heir() {
    let (_postgres, place) = server();
    let (mut a, mut b) = (Node::start(&place, "a").await, Node::start(&place, "b").await);
    let mut c = Node::start(&place, "c").await;
    let outbox = QueueId::outbox("kafka", 0);
    let shared = |seq| Op::Append {
        queue: outbox,
        seq,
        head: Bytes::new(),
        body: Body::Shared(BodyId(9), "b".into()),
    };
    c.client.commit(vec![append(outbox, 1, 10), append(outbox, 2, 10), shared(3), shared(4)]);
    // Of its own they have one of the same name.
    a.client.commit(vec![append(outbox, 1, 10)]);
    b.client.commit(vec![append(outbox, 1, 10)]);
    let view = a.view().await;
    assert!(a.adopt(view).0.iter().all(|all| all.inherited.is_empty()), "its node is a member");

    a.members.remove(a.me, c.me, NOW_US).await.unwrap();
    let view = a.view().await;
    let mut heirs = Vec::new();
    for node in [&mut a, &mut b] {
        let all = node.adopt(view).0;
        let inherited: Vec<Inherited> = all.into_iter().flat_map(|all| all.inherited).collect();
        assert_eq!(node.adopt(view).0.last().unwrap().inherited, inherited, "the same by the same name");
        if let [inherited] = &inherited[..] {
            heirs.push((node, inherited.clone()));
        }
    }
    let [(heir, Inherited { summary, of, node })] = &mut heirs[..] else { panic!("one: {}", heirs.len()) };
    assert_eq!((*of, &**node), (outbox, "c"));
    assert_eq!((summary.first, summary.last, summary.rows), (1, 4, 4));
    let queue = summary.queue;
    assert_eq!(seqs(&mut heir.client, queue), [1, 2, 3, 4]);
    heir.client.commit(vec![Op::Remove { queue, first: 1, last: 3 }]);
    assert_eq!(seqs(&mut heir.client, queue), [4]);
    assert_eq!(heir.client.rows(queue, 256, u32::MAX)[0].body, Bytes::from_static(b"b"));
    assert_eq!(seqs(&mut heir.client, outbox), [1], "its own");

    // That node starts again: what it has is its own, whatever the numbers are.
    c.writer.shutdown().unwrap();
    let (writer, restored) = place.node("c").open();
    let left = restored.queues.iter().find(|q| q.queue == outbox).unwrap();
    assert_eq!((left.first, left.rows), (4, 1));
    let mut again = Client::new(&writer);
    again.commit(vec![Op::Remove { queue: outbox, first: 0, last: u64::MAX }]);
    again.commit(vec![append(outbox, 1, 10), append(outbox, 2, 10)]);
    assert!(seqs(&mut heir.client, queue).is_empty());
    heir.client.commit(vec![Op::Remove { queue, first: 0, last: u64::MAX }]);
    assert_eq!(seqs(&mut again, outbox), [1, 2]);
    heir.client.commit(vec![Op::Remove { queue: QueueId::inherited(77), first: 0, last: u64::MAX }]);
}

/// The rows of a long one are not counted, and all are there.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_outbox_whose_node_is_gone_is_not_counted() {
    let (_postgres, place) = server();
    let (mut a, mut c) = (Node::start(&place, "a").await, Node::start(&place, "c").await);
    let outbox = QueueId::outbox("kafka", 0);
    c.client.commit((1..=12_000).map(|n| append(outbox, 2 * n, 10)).collect());
    c.client.commit(vec![append(QueueId::outbox("other", 0), 5, 10), append(QueueId::delayed(2), 6, 10)]);
    a.members.remove(a.me, c.me, NOW_US).await.unwrap();
    let view = a.view().await;
    let inherited = a.adopt(view).0.remove(0).inherited;
    assert_eq!(inherited.len(), 3);
    let Inherited { summary, .. } = inherited.iter().find(|i| i.of == outbox).unwrap();
    assert_eq!((summary.first, summary.last, summary.rows), (2, 24_000, 23_999));
    let mut from = 0;
    let mut found = 0;
    loop {
        let rows = a.client.read(summary.queue, from, 256, u32::MAX);
        let Some(last) = rows.last() else { break };
        (from, found) = (last.seq + 1, found + rows.len());
    }
    assert_eq!(found, 12_000);
    let delayed = inherited.iter().find(|i| i.of == QueueId::delayed(2)).unwrap();
    assert_eq!((delayed.summary.first, delayed.summary.rows), (6, 1));
}

/// What was acknowledged without it may be in the store alone.
#[tokio::test(flavor = "multi_thread")]
async fn who_joins_reads_what_is_retained() {
    let (_postgres, place) = server();
    let mut a = Node::start(&place, "a").await;
    let put = |stamp| Op::RetainPut { topic: "t".into(), stamp, record: Bytes::from_static(b"r") };
    a.client.commit(vec![put(7)]);
    let view = a.view().await;
    assert!(a.adopt(view).0[0].retained.is_empty(), "a live one knows it");
    let mut z = Node::join(&place, "z").await;
    a.client.commit(vec![put(8)]);
    let view = z.view().await;
    assert_eq!(z.adopt(view).0[0].retained, [("t".into(), 8, Bytes::from_static(b"r"))]);
    a.writer.shutdown().unwrap();
    z.writer.shutdown().unwrap();
}
