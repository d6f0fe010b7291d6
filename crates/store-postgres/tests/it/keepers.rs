//! Rules that remember something, and who keeps them.

use crate::faults::address;
use crate::owners::{NOW_US, Node};
use crate::support::{Place, seqs, server};
use ferrule_store::{Kept, Op, QueueId, Store, StoreEvent};
use ferrule_store_postgres::{Options, Reach};
use ferrule_store_writer::harness::DEADLINE;
use ferrule_testkit::{Postgres, Relay, until};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

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
        assert!((10..=30).contains(&kept.rules.len()), "{}", kept.rules.len());
        all.extend(kept.rules.iter().map(|(rule, _)| *rule));
    }
    all.sort_unstable();
    assert_eq!(all, rules, "each once");
}

// === rules are spread ===

/// A node with what its shards would have: what they know that it keeps, and the memory of that.
struct Sim {
    node: Node,
    names: Vec<u64>,
    has: BTreeMap<u64, BTreeMap<String, String>>,
    /// Asked for, and not answered yet.
    asked: Option<(u64, u64)>,
    /// Since it was looked last.
    given: usize,
}

impl Sim {
    async fn start(place: &Place, name: &str, names: &[u64]) -> Self {
        let node = Node::start(place, name).await;
        let mut sim = Self { node, names: names.to_vec(), has: BTreeMap::new(), asked: None, given: 0 };
        sim.look();
        sim.node.adopts().await;
        sim
    }

    /// Names its rules, and waits for all that comes of that.
    fn look(&mut self) {
        self.node.client.store.keep(self.names.clone());
        self.hear();
    }

    /// All that was said so far.
    fn hear(&mut self) {
        // What is asked for behind it.
        self.node.client.store.read(QueueId::outbox("x", 0), 0, 1, 1);
        self.hear_until(|event| matches!(event, StoreEvent::Rows { .. }));
    }

    /// All that is said until this is.
    fn hear_until(&mut self, is_last: impl Fn(&StoreEvent) -> bool) {
        loop {
            let event = self.node.client.wait_for(Some);
            let last = is_last(&event);
            match event {
                StoreEvent::Kept(kept) => {
                    self.given += kept.given.len();
                    for rule in kept.lost.iter().chain(&kept.given) {
                        assert!(self.has.remove(rule).is_some(), "{rule} was not its");
                        self.asked = self.asked.filter(|(of, _)| of != rule);
                    }
                    for (rule, rows) in &kept.rules {
                        let text = |bytes: &bytes::Bytes| String::from_utf8_lossy(bytes).into_owned();
                        self.has.insert(*rule, rows.iter().map(|(k, v)| (text(k), text(v))).collect());
                        self.asked = self.asked.filter(|(of, _)| of != rule);
                    }
                }
                StoreEvent::Giving { rule, round } => {
                    assert!(self.has.contains_key(&rule), "{rule} is not its to give");
                    self.asked = Some((rule, round));
                }
                _ => {}
            }
            if last {
                return;
            }
        }
    }

    /// Each rule that it runs sees one more message.
    fn count(&mut self, sums: &mut BTreeMap<u64, u64>) {
        let asked = self.asked.map(|(rule, _)| rule);
        let mut ops = Vec::new();
        for (rule, memory) in self.has.iter_mut().filter(|(rule, _)| Some(**rule) != asked) {
            let sum = sums.entry(*rule).or_default();
            let known = memory.get("sum").map_or(0, |sum| sum.parse().unwrap());
            assert_eq!(known, *sum, "what rule {rule} remembers has got lost on the way");
            *sum += 1;
            memory.insert("sum".into(), sum.to_string());
            ops.push(put(*rule, "sum", &sum.to_string()));
        }
        let ticket = self.node.client.submit(ops);
        self.hear_until(|event| matches!(event, StoreEvent::Committed { ticket: at, .. } if *at >= ticket));
    }

    /// It has one key more than anybody waits for, written at this moment: its last word of the rule.
    fn answer(&mut self) {
        if let Some((rule, round)) = self.asked {
            let last = format!("{rule}");
            self.has.get_mut(&rule).unwrap().insert("last".into(), last.clone());
            self.node.client.store.submit(vec![put(rule, "last", &last)]);
            self.node.client.store.give(rule, round);
        }
    }
}

fn settling(place: &Place) -> Place {
    Place(Options { settle: Duration::from_millis(100), ..place.0.clone() })
}

/// Whose share a rule is, of these nodes by their numbers. Written a second time: what it says must never change, since nodes of several releases have to agree.
fn share(rule: u64, nodes: impl Iterator<Item = u64>) -> u64 {
    fn mix(x: u64) -> u64 {
        let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
    nodes.max_by_key(|node| mix(mix(*node) ^ rule)).unwrap()
}

/// Until each rule is where it is to be, by what each node and the tables say; how many each has.
fn spread(
    postgres: &Postgres,
    place: &Place,
    nodes: &mut [Sim],
    sums: &mut BTreeMap<u64, u64>,
) -> Vec<usize> {
    let sql = format!("SELECT rule, node FROM {}.rule_keeper ORDER BY rule", place.0.schema);
    let number = |sim: &Sim| sim.node.me.node.0;
    let rules: BTreeSet<u64> = nodes.iter().flat_map(|sim| &sim.names).copied().collect();
    let at = |rule: u64| share(rule, nodes.iter().filter(|sim| sim.names.contains(&rule)).map(number));
    let wanted: Vec<(u64, u64)> = rules.iter().map(|rule| (*rule, at(*rule))).collect();
    until(DEADLINE, "each rule is at its node", || {
        for at in 0..nodes.len() {
            nodes[at].hear();
            nodes[at].answer();
            nodes[at].hear();
            nodes[at].count(sums);
            if std::mem::take(&mut nodes[at].given) > 0 {
                // As they do that are told.
                nodes.iter_mut().for_each(Sim::look);
            }
        }
        let has = |sim: &Sim| sim.has.keys().map(|rule| (*rule, number(sim))).collect::<Vec<_>>();
        let mut known: Vec<(u64, u64)> = nodes.iter().flat_map(has).collect();
        known.sort_unstable();
        (known == wanted).then_some(())
    });
    let told: Vec<String> = wanted.iter().map(|(rule, node)| format!("{rule}|{node}")).collect();
    assert_eq!(postgres.query(&sql), told);
    nodes.iter().map(|sim| sim.has.len()).collect()
}

/// Whoever comes gets its share of what others keep, with what is remembered; who is gone leaves its.
#[tokio::test(flavor = "multi_thread")]
async fn rules_are_spread_as_members_come_and_go() {
    let (postgres, place) = server();
    let place = settling(&place);
    let rules: Vec<u64> = (0..24).collect();
    let mut sums = BTreeMap::new();
    let mut nodes = vec![Sim::start(&place, "a", &rules).await];
    assert_eq!(spread(&postgres, &place, &mut nodes, &mut sums), [24]);
    for name in ["b", "c"] {
        nodes.push(Sim::start(&place, name, &rules).await);
        for node in &mut nodes {
            node.node.adopts().await;
        }
        let before: Vec<BTreeSet<u64>> = nodes.iter().map(|sim| sim.has.keys().copied().collect()).collect();
        let counts = spread(&postgres, &place, &mut nodes, &mut sums);
        assert!(counts.iter().all(|count| *count > 2), "{counts:?}");
        for (sim, before) in nodes.iter().zip(before).rev().skip(1) {
            assert!(sim.has.keys().all(|rule| before.contains(rule)), "only who has come gets some");
        }
    }
    // Each of them goes, and comes back; those that stay keep what they have.
    for at in [1, 0, 2] {
        let gone = nodes.remove(at);
        let kept: BTreeSet<(usize, u64)> = keeps(&nodes);
        let (name, me) = (["a", "b", "c"][at], gone.node.me);
        drop(gone);
        let me_too = nodes[0].node.me;
        nodes[0].node.members.remove(me_too, me, NOW_US).await.unwrap();
        for node in &mut nodes {
            node.node.adopts().await;
        }
        spread(&postgres, &place, &mut nodes, &mut sums);
        assert!(keeps(&nodes).is_superset(&kept));
        nodes.insert(at, Sim::start(&place, name, &rules).await);
        for node in &mut nodes {
            node.node.adopts().await;
        }
        let counts = spread(&postgres, &place, &mut nodes, &mut sums);
        assert!(counts.iter().all(|count| *count > 2), "{counts:?}");
    }
    let sql = format!(
        "SELECT count(*) FROM {0}.state AS s WHERE NOT EXISTS (SELECT 1 FROM {0}.rule_keeper AS k WHERE k.rule = s.rule AND k.node = s.node)",
        place.0.schema
    );
    assert_eq!(postgres.query(&sql), ["0"], "what is remembered is where it is run");
}

fn keeps(nodes: &[Sim]) -> BTreeSet<(usize, u64)> {
    let of = |(at, sim): (usize, &Sim)| sim.has.keys().map(|rule| (at, *rule)).collect::<Vec<_>>();
    nodes.iter().enumerate().flat_map(of).collect()
}

/// Whatever step a hand-over has come to when one of the two is gone, there is one keeper behind it, and all that was committed.
#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_ends_with_one_keeper_whoever_dies() {
    let (postgres, place) = server();
    for (step, giver_dies) in [(0, true), (0, false), (1, true), (1, false), (2, true), (2, false)] {
        let place =
            settling(&Place(Options { schema: format!("step_{step}_{giver_dies}"), ..place.0.clone() }));
        let rules: Vec<u64> = (0..24).collect();
        let mut sums = BTreeMap::new();
        let mut a = Sim::start(&place, "a", &rules).await;
        a.count(&mut sums);
        let mut b = Sim::start(&place, "b", &rules).await;
        assert!(b.has.is_empty());
        a.node.adopts().await;
        // Asked for; answered, and given; and found by the other.
        until(DEADLINE, "a rule is asked for", || {
            a.hear();
            a.asked
        });
        a.count(&mut sums);
        if step >= 1 {
            a.answer();
            until(DEADLINE, "it is given", || {
                a.hear();
                (a.given > 0).then_some(())
            });
        }
        if step >= 2 {
            b.look();
            assert_eq!(b.has.len(), 1);
            b.count(&mut sums);
        }
        let (mut left, gone) = if giver_dies { (b, a) } else { (a, b) };
        let dead = gone.node.me;
        drop(gone);
        let me = left.node.me;
        left.node.members.remove(me, dead, NOW_US).await.unwrap();
        left.node.adopts().await;
        let mut nodes = vec![left];
        assert_eq!(spread(&postgres, &place, &mut nodes, &mut sums), [24]);
        // And with another one.
        nodes.push(Sim::start(&place, "c", &rules).await);
        nodes[0].node.adopts().await;
        spread(&postgres, &place, &mut nodes, &mut sums);
    }
}

/// A rule goes to none that does not name it, and stays when the one that was to have it has left meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_rule_stays_where_nobody_else_names_it() {
    let (postgres, place) = server();
    let place = settling(&place);
    let rules: Vec<u64> = (0..24).collect();
    let mut sums = BTreeMap::new();
    let mut nodes = vec![Sim::start(&place, "a", &rules).await, Sim::start(&place, "b", &rules[..1]).await];
    nodes[0].node.adopts().await;
    let counts = spread(&postgres, &place, &mut nodes, &mut sums);
    assert!(counts[1] <= 1, "{counts:?}");
    // It names them later: it gets some all the same, though nobody comes or goes.
    nodes[1].names = rules.clone();
    nodes[1].look();
    until(DEADLINE, "one is asked for", || {
        nodes[0].hear();
        nodes[0].asked
    });
    // It is gone before the answer: the rule is given back, with its last word.
    let b = nodes.pop().unwrap();
    let (me, dead) = (nodes[0].node.me, b.node.me);
    drop(b);
    nodes[0].node.members.remove(me, dead, NOW_US).await.unwrap();
    let (rule, _) = nodes[0].asked.unwrap();
    nodes[0].answer();
    until(DEADLINE, "it is given back", || {
        nodes[0].hear();
        nodes[0].asked.is_none().then_some(())
    });
    assert_eq!(nodes[0].has[&rule]["last"], rule.to_string());
    nodes[0].node.adopts().await;
    assert_eq!(spread(&postgres, &place, &mut nodes, &mut sums), [24]);
}

/// Who was only cut off, while it kept something, writes nothing into what it is given later.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_former_keeper_writes_is_not_in_what_it_is_given() {
    let (postgres, place) = server();
    let place = settling(&place);
    let rules: Vec<u64> = (0..24).collect();
    let mut sums = BTreeMap::new();
    let mut nodes = vec![Sim::start(&place, "a", &rules).await, Sim::start(&place, "b", &rules).await];
    nodes[0].node.adopts().await;
    let counts = spread(&postgres, &place, &mut nodes, &mut sums);
    assert!(counts[1] > 2, "{counts:?}");
    // B is removed and joins again, and its shards have not heard that yet.
    let (a, b) = (nodes[0].node.me, nodes[1].node.me);
    nodes[0].node.members.remove(a, b, NOW_US).await.unwrap();
    nodes[0].node.adopts().await;
    spread(&postgres, &place, &mut nodes[..1], &mut sums);
    let b = &mut nodes[1];
    let reach = Reach { shards: 1, addresses: vec!["host:1".into()] };
    let (me, joined) = b.node.members.join(&reach, NOW_US).await.unwrap();
    b.node.me = me;
    b.node.members.go_live(me, joined.view.number, NOW_US).await.unwrap();
    b.node.adopts().await;
    let had: Vec<u64> = b.has.keys().copied().collect();
    let lost = b.node.client.wait_for(|event| match event {
        StoreEvent::Kept(kept) => Some(kept.lost.clone()),
        _ => None,
    });
    assert_eq!(lost, had);
    b.node.client.commit(had.iter().map(|rule| put(*rule, "sum", "1000000")).collect());
    b.has.clear();
    // They are given back.
    nodes[0].node.adopts().await;
    let counts = spread(&postgres, &place, &mut nodes, &mut sums);
    assert_eq!(counts[1], had.len());
}
