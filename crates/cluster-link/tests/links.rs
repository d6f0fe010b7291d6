//! Links over real sockets: what passes, in which order, and what happens when something is in the way.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{Event, Node, config, heartbeat, id, numbered, parcels, until, until_up};
use ferrule_cluster::Message;
use ferrule_cluster_link::{Config, Parcels};
use ferrule_testkit::Relay;
use std::net::TcpListener;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Two nodes with a link.
fn two() -> (Node, Node) {
    let (a, b) = (Node::start(config(id(1, 7))), Node::start(config(id(2, 8))));
    a.connect(&b);
    until_up(&a, &b);
    (a, b)
}

/// Two nodes, the first of which reaches the second by way of a relay.
fn two_apart() -> (Node, Node, Relay) {
    let (a, b) = (Node::start(config(id(1, 7))), Node::start(config(id(2, 8))));
    let relay = Relay::start(b.links().address());
    a.connect_by(b.id, relay.addr());
    until_up(&a, &b);
    (a, b, relay)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_keeps_its_order_both_ways() {
    let (a, b) = two();
    for (from, to) in [(&a, &b), (&b, &a)] {
        let mut expected = Vec::new();
        let sender = from.to(to.id);
        for number in 0..2_000 {
            sender.message(heartbeat(number));
            expected.push(Event::Message(from.id, heartbeat(number)));
            // Some longer than a frame.
            let length = if number % 500 == 0 { 300_000 } else { 20 };
            let routes = numbered(number, length);
            sender.routes(routes.clone());
            expected.push(Event::Routes(from.id, routes));
        }
        for message in
            [Message::Offer { epoch: 9 }, Message::Accept { epoch: 3 }, Message::Echo { number: 4, epoch: 5 }]
        {
            sender.message(message);
            expected.push(Event::Message(from.id, message));
        }
        until("all of it came", || to.events().len() > expected.len());
        let events =
            to.events().into_iter().filter(|event| matches!(event, Event::Message(..) | Event::Routes(..)));
        assert!(events.eq(expected), "another order");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_comes_whole_whatever_its_length() {
    let (a, b) = two();
    let lengths = [8, 1000, 128 << 10, (128 << 10) + 1, 5 << 20, 20 << 20, 8];
    let sender = a.to(b.id);
    for (number, length) in (0..).zip(lengths) {
        sender.data(numbered(number, length));
    }
    sender.data(Parcels { from: 0, to: 1, bytes: bytes::Bytes::new() });
    until("all of it came", || b.data().len() == lengths.len() + 1);
    let data = |number: usize| Event::Data(a.id, lengths[number], number as u64);
    let mut expected: Vec<_> = (0..lengths.len()).map(data).collect();
    expected.push(Event::Data(a.id, 0, 0));
    assert_eq!(b.events()[1..], expected);
    assert_eq!(sender.queued(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_passes_while_the_receiver_has_no_room_for_data() {
    let (a, b) = two();
    b.room(false);
    let sender = a.to(b.id);
    // 32 MiB: many times what the network and both sides take before the receiver reads.
    for number in 0..512 {
        sender.data(numbered(number, 64 << 10));
    }
    for number in 0..100 {
        sender.message(heartbeat(number));
        until("a heartbeat came", || b.heartbeats().last() == Some(&number));
    }
    assert!(b.data().is_empty());
    assert!(sender.queued() > 16 << 20, "{} bytes wait", sender.queued());
    // For longer than a connection may leave a PING without an answer: no room is not a dead peer.
    let (began, mut number) = (Instant::now(), 100);
    while began.elapsed() < Duration::from_secs(4) {
        sender.message(heartbeat(number));
        until("a heartbeat came", || b.heartbeats().last() == Some(&number));
        number += 1;
    }
    assert_eq!((a.ups(), a.downs()), (1, 0));
    b.room(true);
    until("all data came", || b.data().len() == 512);
    assert!(b.data().into_iter().eq(0..512));
    until("nothing waits", || sender.queued() == 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_ends_the_link_and_the_next_one_begins_anew() {
    let a = Node::start(Config { data_max: 4 << 20, ..config(id(1, 7)) });
    let b = Node::start(Config { control_max: 1 << 20, ..config(id(2, 8)) });
    a.connect(&b);
    until_up(&a, &b);
    b.room(false);
    let sender = a.to(b.id);
    let mut sent = 0;
    while !sender.is_closed() {
        sender.data(numbered(sent, 64 << 10));
        sent += 1;
        assert!(sent < 10_000, "the queue has no bound");
    }
    until("both ends saw it end", || a.downs() == 1 && b.downs() == 1);
    until("and begin", || a.ups() == 2 && b.ups() == 2);
    assert_eq!(a.links().counters().full_data, 1);
    b.room(true);
    let sender = b.to(a.id);
    sender.routes(parcels(vec![0; 2 << 20]));
    assert!(sender.is_closed());
    until("once more", || a.ups() == 3 && b.ups() == 3);
    assert_eq!(b.links().counters().full_control, 1);
    a.to(b.id).data(numbered(77, 8));
    until("it is of use", || b.data().last() == Some(&77));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_link_comes_back() {
    let (a, b, relay) = two_apart();
    for round in 1..=5 {
        relay.cut();
        until("it ended", || a.downs() == round && b.downs() == round);
        until("it came back", || a.ups() == round + 1 && b.ups() == round + 1);
        b.to(a.id).message(heartbeat(round as u64));
        until("it is of use", || a.heartbeats().last() == Some(&(round as u64)));
    }
    relay.refuse();
    until("it ended", || a.downs() == 6 && b.downs() == 6);
    until("there is a reason", || a.links().trouble(b.id).is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_network_ends_a_link_that_has_nothing_to_say() {
    let (a, b, relay) = two_apart();
    relay.blackhole();
    until("it ended", || a.downs() == 1 && b.downs() == 1);
    assert_eq!((a.ups(), b.ups()), (1, 1));
    relay.heal();
    until("it came back", || a.is_up(b.id) && b.is_up(a.id));
    a.to(b.id).message(heartbeat(1));
    until("it is of use", || b.heartbeats() == [1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_link_waits_until_the_end_of_the_last_has_been_taken_note_of() {
    let (a, b, relay) = two_apart();
    b.may_end(false);
    relay.cut();
    until("it ended", || a.downs() == 1 && b.downs() == 1);
    let accepted = relay.accepted();
    until("it is tried again", || relay.accepted() >= accepted + 2);
    assert_eq!(b.ups(), 1);
    b.may_end(true);
    until("it came back", || a.is_up(b.id) && b.is_up(a.id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_is_one_link_however_often_it_is_asked_for() {
    let (a, b) = (Node::start(config(id(1, 7))), Node::start(config(id(2, 8))));
    for _ in 0..10 {
        a.connect(&b);
        b.connect(&a);
    }
    until_up(&a, &b);
    for (from, to) in [(&a, &b), (&b, &a)] {
        from.connect(to);
        from.to(to.id).message(heartbeat(1));
        until("it is of use", || to.heartbeats() == [1]);
    }
    assert_eq!((a.ups(), b.ups(), a.downs(), b.downs()), (1, 1, 0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_have_a_link_each() {
    let nodes: Vec<_> = (1..=3).map(|node| Node::start(config(id(node, node)))).collect();
    for from in &nodes {
        for to in nodes.iter().filter(|to| to.id != from.id) {
            from.connect(to);
        }
    }
    for from in &nodes {
        for to in nodes.iter().filter(|to| to.id != from.id) {
            until_up(from, to);
        }
        assert_eq!(from.ups(), 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_node_takes_the_place_of_what_it_was() {
    // Who dials has been restarted, and its old connections are there still.
    let (a, mut b, relay) = two_apart();
    relay.blackhole();
    let again = Node::start(config(id(1, 9)));
    again.connect(&b);
    until_up(&again, &b);
    let changes = |event: &Event| matches!(event, Event::Up(_) | Event::Down(_));
    let events: Vec<_> = b.events().into_iter().filter(changes).collect();
    assert_eq!(events, [Event::Up(a.id), Event::Down(a.id), Event::Up(again.id)]);
    // What it was is not let in any more.
    relay.heal();
    until("the old one is told", || {
        a.links().trouble(b.id).is_some_and(|text| text.contains("it has been restarted since"))
    });
    assert!(b.is_up(again.id));
    drop(a);

    // Who is dialled has been: its address is that of another incarnation.
    let address = b.links().address();
    let old = b.id;
    b.stop().await;
    until("it ended", || again.downs() == 1);
    let b = Node::start_at(config(id(2, 12)), TcpListener::bind(address).unwrap());
    until("whoever is there is another", || {
        again.links().trouble(old).is_some_and(|text| text.contains("node 2 (incarnation 12)"))
    });
    again.links().forget(old);
    again.connect(&b);
    until_up(&again, &b);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_wanted_is_tried_again() {
    let (a, b) = (Node::start(config(id(1, 7))), Node::start(config(id(2, 8))));
    b.seen.welcome.store(false, Ordering::SeqCst);
    a.connect(&b);
    until("it was refused, twice", || b.links().counters().refused >= 2);
    assert!(a.links().trouble(b.id).unwrap().contains("does not take it for a member"));
    assert_eq!((a.ups(), b.ups()), (0, 0));
    b.seen.welcome.store(true, Ordering::SeqCst);
    until_up(&a, &b);
    assert_eq!(a.links().trouble(b.id), None);

    // The same on the side that dials: for the other one it was up.
    a.seen.welcome.store(false, Ordering::SeqCst);
    b.to(a.id).close();
    until("it was refused", || a.links().counters().refused >= 1);
    assert_eq!(a.ups(), 1);
    a.seen.welcome.store(true, Ordering::SeqCst);
    until("it came back", || a.is_up(b.id) && b.is_up(a.id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_is_closed_comes_back_and_one_that_is_forgotten_does_not() {
    let (a, b) = two();
    for (round, closes) in (1..).zip([&a, &b]) {
        let other = if closes.id == a.id { &b } else { &a };
        closes.to(other.id).close();
        until("it ended", || a.downs() == round && b.downs() == round);
        until("it came back", || a.ups() == round + 1 && b.ups() == round + 1);
    }
    a.links().forget(b.id);
    until("it ended", || a.downs() == 3 && b.downs() == 3);
    assert_eq!(a.links().trouble(b.id), None);
    a.connect(&b);
    until("it is wanted again", || a.is_up(b.id) && b.is_up(a.id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_ends_everything_and_frees_the_port() {
    let (mut a, mut b) = two();
    let address = b.links().address();
    b.stop().await;
    assert_eq!(b.downs(), 1);
    drop(TcpListener::bind(address).unwrap());
    until("the other side saw it", || a.downs() == 1);
    a.stop().await;
    assert_eq!(a.downs(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_joins_anew_has_new_links() {
    let (mut a, mut b) = two();
    a.rejoin(id(1, 20));
    until("it ended", || a.downs() == 1 && b.downs() == 1);
    a.connect(&b);
    until_up(&a, &b);
    b.rejoin(id(2, 21));
    until("it ended", || a.downs() == 2 && b.downs() == 2);
    a.connect(&b);
    until_up(&a, &b);
    let ups: Vec<_> = b.events().into_iter().filter(|event| matches!(event, Event::Up(_))).collect();
    assert_eq!(ups, [Event::Up(id(1, 7)), Event::Up(id(1, 20)), Event::Up(id(1, 20))]);
}
