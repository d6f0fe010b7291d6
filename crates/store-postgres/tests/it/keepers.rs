//! Rules that remember something, and who keeps them.

use crate::faults::address;
use crate::owners::{NOW_US, Node};
use crate::support::{seqs, server};
use ferrule_store::{Kept, Op, QueueId, Store, StoreEvent};
use ferrule_store_postgres::Reach;
use ferrule_testkit::Relay;

impl Node {
    /// What changes when it names these rules.
    fn keep(&mut self, rules: &[u64]) -> Kept {
        self.client.store.keep(rules.to_vec());
        self.wait_for_kept()
    }

    fn wait_for_kept(&mut self) -> Kept {
        self.client.wait_for(|event| match event {
            StoreEvent::Kept(kept) => Some((*kept).clone()),
            _ => None,
        })
    }

    /// Names them, and nothing changes.
    fn keep_in_vain(&mut self, rules: &[u64]) {
        self.client.store.keep(rules.to_vec());
        // What is asked for behind it.
        seqs(&mut self.client, QueueId::outbox("x", 0));
        assert!(!self.client.events.try_iter().any(|event| matches!(event, StoreEvent::Kept(_))));
    }

    async fn adopts(&mut self) {
        let view = self.view().await;
        self.client.store.adopt(view);
    }
}

fn put(rule: u64, key: &str, value: &str) -> Op {
    Op::StatePut { rule, key: key.to_owned().into(), value: value.to_owned().into() }
}

/// In order.
fn told(kept: &Kept) -> Vec<(u64, Vec<String>)> {
    let text = |bytes: &bytes::Bytes| String::from_utf8_lossy(bytes).into_owned();
    let of = |rows: &[(bytes::Bytes, bytes::Bytes)]| {
        let mut rows: Vec<String> = rows.iter().map(|(k, v)| format!("{}={}", text(k), text(v))).collect();
        rows.sort();
        rows
    };
    kept.rules.iter().map(|(rule, rows)| (*rule, of(rows))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_has_one_keeper_and_what_it_remembers_goes_to_the_next() {
    let (_postgres, place) = server();
    let (mut a, mut b) = (Node::start(&place, "a").await, Node::start(&place, "b").await);
    let none = Vec::<String>::new;
    assert_eq!(told(&a.keep(&[0, 7, 8])), [(0, none()), (7, none()), (8, none())]);
    b.keep_in_vain(&[7, 8]);
    assert_eq!(told(&b.keep(&[7, 8, 9])), [(9, none())]);
    a.client.commit(vec![put(7, "k", "1"), put(7, "l", "2"), put(8, "k", "3"), put(0, "s", "4")]);
    b.client.commit(vec![put(9, "k", "5")]);

    // The rule is not in its files any more: whoever names it next begins anew, as its keeper has removed what it remembered.
    a.client.commit(vec![Op::StateDelete { rule: 8, key: "k".into() }]);
    let kept = a.keep(&[0, 7]);
    assert_eq!((kept.rules.len(), kept.lost), (0, vec![8]));
    assert_eq!(told(&b.keep(&[7, 8, 9])), [(8, none())]);

    // Its keeper is gone, and another that names it goes on. Nobody names 0.
    b.members.remove(b.me, a.me, NOW_US).await.unwrap();
    b.adopts().await;
    assert_eq!(told(&b.wait_for_kept()), [(7, vec!["k=1".to_owned(), "l=2".to_owned()])]);
    b.client.commit(vec![put(7, "k", "10")]);

    // It was only cut off: what it writes nobody reads, and it finds out.
    a.client.commit(vec![put(7, "k", "2"), put(7, "m", "x")]);
    let reach = Reach { shards: 1, addresses: vec!["host:1".into()] };
    let (me, joined) = a.members.join(&reach, NOW_US).await.unwrap();
    a.adopts().await;
    let mut lost = a.wait_for_kept().lost;
    lost.sort_unstable();
    assert_eq!(lost, [0, 7], "none is kept by who is no live member");
    a.members.go_live(me, joined.view.number, NOW_US).await.unwrap();
    a.adopts().await;
    assert_eq!(told(&a.wait_for_kept()), [(0, vec!["s=4".to_owned()])]);

    // And back.
    a.members.remove(me, b.me, NOW_US).await.unwrap();
    a.adopts().await;
    assert_eq!(told(&a.wait_for_kept()), [(7, vec!["k=10".to_owned(), "l=2".to_owned()])]);
}

/// A keeper that starts again before the others have noticed is the keeper still.
#[tokio::test(flavor = "multi_thread")]
async fn a_keeper_that_starts_again_goes_on() {
    let (_postgres, place) = server();
    let mut a = Node::start(&place, "a").await;
    a.keep(&[7]);
    a.client.commit(vec![put(7, "k", "1")]);
    a.writer.shutdown().unwrap();
    let mut a = Node::start(&place, "a").await;
    assert_eq!(told(&a.keep(&[7])), [(7, vec!["k=1".to_owned()])]);
}

/// A connection that is lost in between delays the answer, and no more.
#[tokio::test(flavor = "multi_thread")]
async fn a_rule_gets_its_keeper_although_connections_are_lost() {
    let (postgres, place) = server();
    let relay = Relay::start(address(&postgres));
    let mut a = Node::start(&place.through(&relay), "a").await;
    for round in 0..20 {
        a.client.store.keep(vec![7, 8][..round % 2 + 1].to_vec());
        for _ in 0..round {
            std::thread::yield_now();
        }
        relay.cut();
        let kept = a.wait_for_kept();
        // The first time one is new; then the second comes and goes.
        assert_eq!(
            (kept.rules.len(), kept.lost.len()),
            if round > 0 && round % 2 == 0 { (0, 1) } else { (1, 0) }
        );
    }
}

/// Of those that are left each has its share.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_keeper_had_is_shared_among_those_who_are_left() {
    let (_postgres, place) = server();
    let (mut a, mut b) = (Node::start(&place, "a").await, Node::start(&place, "b").await);
    let mut c = Node::start(&place, "c").await;
    let rules: Vec<u64> = (1..=40).collect();
    assert_eq!(c.keep(&rules).rules.len(), 40);
    a.keep_in_vain(&rules);
    b.keep_in_vain(&rules);
    a.members.remove(a.me, c.me, NOW_US).await.unwrap();
    a.adopts().await;
    b.adopts().await;
    let mut all: Vec<u64> = Vec::new();
    for node in [&mut a, &mut b] {
        let kept = node.wait_for_kept();
        assert_eq!(kept.rules.len(), 20);
        all.extend(kept.rules.iter().map(|(rule, _)| *rule));
    }
    all.sort_unstable();
    assert_eq!(all, rules, "each once");
}
