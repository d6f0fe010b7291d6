#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use mio::{Events, Poll, Token};
use std::time::Duration;

type Told = Arc<Mutex<Vec<(u16, Vec<u8>)>>>;

#[derive(Clone, Default)]
struct Heard(Told);

impl Lane for Heard {
    fn control(&self, _: u16, _: u16, _: Vec<u8>) {}
    fn data(&self, _: u16, to: u16, parcels: Vec<u8>) {
        self.0.lock().unwrap().push((to, parcels));
    }
    fn queued(&self) -> usize {
        0
    }
}

fn post() -> (Post, Poll) {
    let poll = Poll::new().unwrap();
    let waker = Arc::new(mio::Waker::new(poll.registry(), Token(0)).unwrap());
    (Post { letters: Arc::default(), waker }, poll)
}

/// Linked to a node with this many shards, whose lane this is.
fn abroad(count: u16) -> (Abroad, Heard) {
    let lane = Heard::default();
    let mut abroad = Abroad::new(post().0, Arc::default(), Arc::new(|_| {}));
    let held = (0..count).map(|_| Held::default()).collect();
    let lane_of = Box::new(lane.clone());
    abroad.neighbours.push(Neighbour { shards: Shards { first: 1, count }, lane: lane_of, held });
    (abroad, lane)
}

fn say(abroad: &mut Abroad, to: usize, parcels: &[u8], now_us: u64) {
    abroad.gathered.add(&mut abroad.neighbours[0].held[to], parcels, now_us);
}

fn is_woken(poll: &mut Poll) -> bool {
    let mut events = Events::with_capacity(1);
    poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
    !events.is_empty()
}

#[test]
fn who_posts_wakes_a_worker_that_sleeps_once_and_one_that_is_awake_not_at_all() {
    let (post, mut poll) = post();
    post.put(Letter::Standing);
    assert!(!is_woken(&mut poll));
    assert!(!post.rest(), "a letter is there");
    let mut letters = Vec::new();
    post.take(&mut letters);
    assert_eq!(letters.len(), 1);
    assert!(post.rest());
    post.put(Letter::Standing);
    assert!(is_woken(&mut poll));
    post.put(Letter::Standing);
    assert!(!is_woken(&mut poll), "it is on its way");
    letters.clear();
    post.take(&mut letters);
    assert_eq!(letters.len(), 2);
}

#[test]
fn a_worker_that_is_posted_to_while_it_falls_asleep_misses_nothing() {
    const LETTERS: usize = 20_000;
    let (post, mut poll) = post();
    let sender = post.clone();
    let sending = std::thread::spawn(move || (0..LETTERS).for_each(|_| sender.put(Letter::Standing)));
    let (mut events, mut letters, mut count) = (Events::with_capacity(1), Vec::new(), 0);
    while count < LETTERS {
        if post.rest() {
            poll.poll(&mut events, Some(Duration::from_secs(30))).unwrap();
            assert!(!events.is_empty(), "asleep with {count} of {LETTERS}");
        }
        post.take(&mut letters);
        count += letters.drain(..).count();
    }
    sending.join().unwrap();
}

#[test]
fn what_turns_say_goes_as_one_and_in_order() {
    let (mut abroad, lane) = abroad(2);
    assert!(!abroad.may_gather(0), "nothing is held");
    abroad.hand_over(0);
    say(&mut abroad, 0, b"ab", 10);
    say(&mut abroad, 1, b"x", 20);
    say(&mut abroad, 0, b"c", 30);
    assert!(abroad.may_gather(40));
    assert!(lane.0.lock().unwrap().is_empty());
    abroad.hand_over(0);
    assert_eq!(*lane.0.lock().unwrap(), [(0, b"abc".to_vec()), (1, b"x".to_vec())]);
    abroad.hand_over(0);
    assert_eq!(lane.0.lock().unwrap().len(), 2);
}

#[test]
fn it_waits_for_so_long_and_so_much_at_most() {
    let (mut abroad, _) = abroad(1);
    say(&mut abroad, 0, b"a", 1_000);
    say(&mut abroad, 0, b"b", 1_400);
    assert!(abroad.may_gather(1_000 + HELD_US - 1));
    assert!(!abroad.may_gather(1_000 + HELD_US), "the first has waited");
    abroad.hand_over(0);
    say(&mut abroad, 0, b"c", 9_000);
    assert!(abroad.may_gather(9_000));
    say(&mut abroad, 0, &vec![0; HELD_BYTES], 9_000);
    assert!(!abroad.may_gather(9_000));
}

#[test]
fn who_finds_nothing_more_to_do_looks_more_seldom_and_begins_anew_when_there_is_something() {
    let (mut abroad, _) = abroad(1);
    let mut looks_of = |turns: u32| {
        let mut looks = 0;
        for _ in 0..turns {
            say(&mut abroad, 0, b"a", 0);
            if abroad.may_gather(0) {
                looks += 1;
                abroad.gathers(false);
            }
            abroad.hand_over(0);
        }
        looks
    };
    assert_eq!(looks_of(LOOKS), LOOKS);
    assert_eq!(looks_of(10 * LOOKS_AGAIN), 10);
    say(&mut abroad, 0, &[0; FEW_BYTES], 0);
    assert!(abroad.may_gather(0), "behind a turn that said more");
    abroad.gathers(false);
    abroad.hand_over(0);
    say(&mut abroad, 0, b"a", 0);
    abroad.gathers(true);
    for _ in 0..100 {
        assert!(abroad.may_gather(0));
        abroad.gathers(true);
    }
}

#[test]
fn what_was_held_for_a_link_that_has_ended_is_not_for_the_next() {
    let (mut abroad, lane) = abroad(1);
    say(&mut abroad, 0, b"a", 0);
    abroad.part_with(Shards { first: 1, count: 1 });
    abroad.hand_over(0);
    assert!(lane.0.lock().unwrap().is_empty());
}
