//! The view of the members: in which order things happen to it, and what it is when several want something at once.

use crate::support::{Place, server};
use ferrule_cluster::{Config, NodeId, PeerId, State};
use ferrule_store_postgres::{Known, Members, MembersError, Reach, SCHEMA_VERSION};
use ferrule_store_writer::harness::Medium;
use ferrule_testkit::{Postgres, Relay};
use std::time::Duration;

/// A loaded machine is no dead server.
const PATIENT: Duration = Duration::from_secs(20);

/// When everything happens, if nothing is said about it.
const NOW_US: u64 = 5_000_000;

fn reach(shards: u8) -> Reach {
    Reach { shards, addresses: vec![format!("host{shards}:7000"), "[::1]:7000".into()] }
}

/// A node that has opened its store.
fn opened(place: &Place, node: &str) -> Members {
    let place = place.node(node);
    place.open().0.shutdown().unwrap();
    Members::new(&place.0, &Config::default(), PATIENT).unwrap()
}

/// In the order of their nodes.
fn states(known: &Known) -> Vec<(PeerId, State)> {
    known.view.members.iter().map(|member| (member.id, member.state)).collect()
}

async fn live(members: &mut Members) -> PeerId {
    let (me, known) = members.join(&reach(1), NOW_US).await.unwrap();
    let known = members.go_live(me, known.view.number, NOW_US).await.unwrap();
    assert!(states(&known).contains(&(me, State::Live)));
    me
}

fn id(node: u64, incarnation: u64) -> PeerId {
    PeerId { node: NodeId(node), incarnation }
}

#[tokio::test]
async fn a_node_joins_goes_live_and_leaves() {
    let (_postgres, place) = server();
    let (mut a, mut b) = (opened(&place, "a"), opened(&place, "b"));
    assert_eq!(a.read(NOW_US).await.map(|known| known.view), Ok(Known::default().view));
    let (me, known) = a.join(&reach(3), NOW_US).await.unwrap();
    assert_eq!((me, known.view.number), (id(1, 1), 1));
    assert_eq!(states(&known), [(me, State::Joining)]);
    assert_eq!(known.reach[&me], reach(3));
    let known = a.go_live(me, 1, NOW_US).await.unwrap();
    assert_eq!((known.view.number, states(&known)), (2, vec![(me, State::Live)]));

    // The other one looks at a view that is not the last one.
    let (other, known) = b.join(&reach(255), NOW_US).await.unwrap();
    assert_eq!((other, known.view.number), (id(2, 3), 3));
    for old in [2, 4] {
        let known = b.go_live(other, old, NOW_US).await.unwrap();
        assert_eq!(states(&known), [(me, State::Live), (other, State::Joining)]);
        assert_eq!(known.view.number, 3);
    }
    let known = b.go_live(other, 3, NOW_US).await.unwrap();
    assert_eq!(states(&known), [(me, State::Live), (other, State::Live)]);
    // It is live: there is nothing to do.
    assert_eq!(b.go_live(other, 4, NOW_US).await.unwrap().view.number, 4);
    assert_eq!(a.read(NOW_US).await.unwrap(), known);

    let known = a.leave(me, NOW_US).await.unwrap();
    assert_eq!((known.view.number, states(&known)), (5, vec![(other, State::Live)]));
    assert_eq!(a.leave(me, NOW_US).await.unwrap().view.number, 5);
}

#[tokio::test]
async fn a_node_that_joins_again_takes_the_place_of_what_it_was() {
    let (_postgres, place) = server();
    let mut a = opened(&place, "a");
    let was = live(&mut a).await;
    let (me, known) = a.join(&reach(2), NOW_US).await.unwrap();
    assert_eq!(me, id(1, 3));
    assert_eq!(states(&known), [(me, State::Joining)]);
    assert_eq!(known.reach.len(), 1);
    // What it was can do nothing any more.
    for known in
        [a.go_live(was, 3, NOW_US).await, a.leave(was, NOW_US).await, a.remove(was, me, NOW_US).await]
    {
        assert_eq!(
            (known.as_ref().unwrap().view.number, states(&known.unwrap())),
            (3, vec![(me, State::Joining)])
        );
    }
}

#[tokio::test]
async fn who_is_live_removes_and_nobody_else_does() {
    let (_postgres, place) = server();
    let (mut a, mut b, mut c) = (opened(&place, "a"), opened(&place, "b"), opened(&place, "c"));
    let first = live(&mut a).await;
    let (second, _) = b.join(&reach(1), NOW_US).await.unwrap();
    let (third, known) = c.join(&reach(1), NOW_US).await.unwrap();
    // It is joining.
    assert_eq!(b.remove(second, first, NOW_US).await, Ok(known.clone()));
    // Another incarnation than there is.
    assert_eq!(a.remove(first, id(2, 1), NOW_US).await, Ok(known));
    let known = a.remove(first, second, NOW_US).await.unwrap();
    assert_eq!(states(&known), [(first, State::Live), (third, State::Joining)]);
    // It is not a member.
    assert_eq!(b.remove(second, first, NOW_US).await, Ok(known.clone()));
    assert_eq!(b.go_live(second, known.view.number, NOW_US).await, Ok(known.clone()));
    assert_eq!(a.remove(first, second, NOW_US).await, Ok(known));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_that_remove_each_other_one_is_removed() {
    let (_postgres, place) = server();
    let (mut a, mut b) = (opened(&place, "a"), opened(&place, "b"));
    for _ in 0..25 {
        let (one, other) = (live(&mut a).await, live(&mut b).await);
        let before = a.read(NOW_US).await.unwrap().view.number;
        let (first, second) = tokio::join!(a.remove(one, other, NOW_US), b.remove(other, one, NOW_US));
        let (first, second) = (first.unwrap(), second.unwrap());
        assert_eq!(first, second);
        assert_eq!((first.view.number, first.view.members.len()), (before + 1, 1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_join_and_go_live_at_once() {
    let (_postgres, place) = server();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..8 {
        let mut members = opened(&place, &format!("node {n}"));
        tasks.spawn(async move {
            let (me, mut known) = members.join(&reach(1), NOW_US).await.unwrap();
            while !states(&known).contains(&(me, State::Live)) {
                known = members.go_live(me, known.view.number, NOW_US).await.unwrap();
            }
            me
        });
    }
    let mut ids = tasks.join_all().await;
    ids.sort();
    let known = opened(&place, "one more").read(NOW_US).await.unwrap();
    assert!(states(&known).into_iter().eq(ids.iter().map(|&id| (id, State::Live))), "{known:?}");
    // Each of them changed it twice.
    assert_eq!(known.view.number, 16);
    let mut incarnations: Vec<_> = ids.iter().map(|id| id.incarnation).collect();
    incarnations.sort_unstable();
    incarnations.dedup();
    assert_eq!(incarnations.len(), 8);
}

#[tokio::test]
async fn another_process_of_the_same_name_stops_this_one() {
    let (_postgres, place) = server();
    let mut a = opened(&place, "a");
    let me = live(&mut a).await;
    let mut other = opened(&place, "a");
    let (it, _) = other.join(&reach(1), NOW_US).await.unwrap();
    assert_eq!(it.node, me.node);
    let error = a.join(&reach(1), NOW_US).await.unwrap_err();
    assert!(
        matches!(&error, MembersError::Stop(text) if text.contains("another ferrule has opened the store as node 'a'"))
    );
    assert_eq!(states(&a.read(NOW_US).await.unwrap()), [(it, State::Joining)]);
}

#[tokio::test]
async fn what_cannot_be_done_says_why_and_whether_to_try_again() {
    let (mut postgres, place) = server();
    let early = Members::new(&place.node("early").0, &Config::default(), PATIENT)
        .unwrap()
        .join(&reach(1), NOW_US)
        .await
        .unwrap_err();
    assert!(matches!(early, MembersError::Stop(_)), "{early}");
    let mut a = opened(&place, "a");
    let early = Members::new(&place.node("early").0, &Config::default(), PATIENT)
        .unwrap()
        .join(&reach(1), NOW_US)
        .await
        .unwrap_err();
    let text = "has not been opened as node 'early' yet";
    assert!(matches!(&early, MembersError::Stop(why) if why.contains(text)), "{early}");

    let me = live(&mut a).await;
    postgres.kill9();
    let error = a.read(NOW_US).await.unwrap_err();
    assert!(matches!(&error, MembersError::Retry(why) if why.contains("look whether it runs")), "{error}");
    postgres.restart();
    // By itself, with a new connection.
    let known = ask_until_it_answers(&mut a).await;
    assert_eq!(states(&known), [(me, State::Live)]);
}

/// A server that has just been started may refuse once or twice.
async fn ask_until_it_answers(members: &mut Members) -> Known {
    for _ in 0..1_000 {
        match members.read(NOW_US).await {
            Ok(known) => return known,
            Err(MembersError::Retry(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("it does not answer")
}

/// A server that says nothing does not hold up whoever asks, and what was on its way is done once at most.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_server_is_not_waited_for() {
    let (postgres, place) = server();
    let mut b = opened(&place, "b");
    let relay = relay_to(&postgres);
    let near = place.node("b").through(&relay);
    let mut a = Members::new(&near.0, &Config::default(), Duration::from_secs(1)).unwrap();
    ask_until_it_answers(&mut a).await;
    relay.blackhole();
    let error = a.join(&reach(1), NOW_US).await.unwrap_err();
    assert!(matches!(&error, MembersError::Retry(why) if why.contains("no answer within 1s")), "{error}");
    // Meanwhile, by another way.
    let (me, known) = b.join(&reach(1), NOW_US).await.unwrap();
    relay.heal();
    let found = ask_until_it_answers(&mut a).await;
    assert_eq!(states(&found), [(me, State::Joining)]);
    assert_eq!(found, known);
}

fn relay_to(postgres: &Postgres) -> Relay {
    let url = postgres.url();
    let address = url.rsplit_once('@').unwrap().1.split('/').next().unwrap();
    Relay::start(address.parse().unwrap())
}

/// The last live member is gone, and whoever comes is not live without it.
#[tokio::test]
async fn who_joins_removes_those_that_the_store_has_not_seen_for_long() {
    let (_postgres, place) = server();
    let (mut a, mut b) = (opened(&place, "a"), opened(&place, "b"));
    let gone = live(&mut a).await;
    let (me, known) = b.join(&reach(1), NOW_US).await.unwrap();
    let Config { store_us, seen_us, .. } = Config::default();
    let patience_us = store_us + seen_us;
    let is_there = Ok(known);
    // From the first call on that knows of it.
    assert_eq!(b.remove(me, gone, NOW_US + 2 * patience_us).await, is_there);
    let since_us = NOW_US + 2 * patience_us;
    assert_eq!(b.remove(me, gone, since_us + patience_us - 1).await, is_there);
    // It has been seen, and so it has to be waited for again.
    assert_eq!(a.read(NOW_US + seen_us).await, is_there);
    assert_eq!(b.remove(me, gone, since_us + patience_us).await, is_there);
    let since_us = since_us + patience_us + 1;
    assert_eq!(b.read(since_us).await, is_there);
    // Between two that it lets itself be seen with, it is not written.
    assert_eq!(a.read(NOW_US + 2 * seen_us - 1).await, is_there);
    assert_eq!(b.remove(me, gone, since_us + patience_us - 1).await, is_there);
    let known = b.remove(me, gone, since_us + patience_us).await.unwrap();
    assert_eq!(states(&known), [(me, State::Joining)]);
    assert_eq!(a.read(NOW_US + 2 * seen_us).await, Ok(known));
}

/// Tables of the release before are brought to this one's, and keep what is in them.
#[tokio::test]
async fn older_tables_get_a_view() {
    let (postgres, place) = server();
    drop(opened(&place, "a"));
    let schema = &place.0.schema;
    postgres.execute(&format!(
        "DROP TABLE {schema}.cluster_view; DROP TABLE {schema}.cluster_member; UPDATE {schema}.ferrule_schema SET version = 1"
    ));
    let mut b = opened(&place, "b");
    assert_eq!(live(&mut b).await, id(2, 1));
    assert_eq!(
        postgres.query(&format!("SELECT version FROM {schema}.ferrule_schema")),
        [SCHEMA_VERSION.to_string()]
    );
}
