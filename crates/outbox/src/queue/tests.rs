//! The queue against its promises, on random schedules with crashes.

#![allow(clippy::unwrap_used, reason = "tests")]

mod live;

use super::*;
use crate::Receipts;
use ferrule_store::{MemoryStore, Store, StoreEvent};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone, PartialEq, Eq)]
struct Text(u64, usize);

impl Row for Text {
    fn encode(&self) -> (Bytes, Body) {
        (Bytes::copy_from_slice(&self.0.to_le_bytes()), Body::Inline(Bytes::from(vec![7; self.1])))
    }
    fn decode(head: &[u8], body: Bytes) -> Result<Self, RecordError> {
        let number = head.try_into().map_err(|_| RecordError::Damaged("head"))?;
        Ok(Self(u64::from_le_bytes(number), body.len()))
    }
    fn size(&self) -> usize {
        self.1
    }
}

const SMALL: Policy =
    Policy { head_bytes: 400, unwritten_bytes: 600, refuse_bytes: 2_000, disk_bytes: 4_000, ..Policy::EDGE };

fn at(ms: u64) -> Now {
    Now { mono_us: ms * 1_000, wall_ms: 0 }
}

fn queue(policy: Policy) -> Queue<Text> {
    Queue::new(QueueId(1), policy, None)
}

#[test]
fn a_row_answered_in_time_is_never_written() {
    let mut q = queue(Policy::EDGE);
    let mut receipts = Receipts::new();
    let mut ended = Vec::new();
    q.set_up(true, at(0));
    for i in 0..1_000 {
        q.push(Text(i, 10), Some(receipts.open(i)), at(i * 10)).unwrap();
        q.take(16, at(i * 10), |_, _, again| assert!(!again));
        assert!(!q.due(at(i * 10 + 9), true, Duration::ZERO));
        q.answer(i + 1, Outcome::Delivered, at(i * 10 + 9), &mut ended);
    }
    assert_eq!(ended.len(), 1_000);
    assert_eq!((q.counters().written, q.counters().delivered, q.is_empty()), (0, 1_000, true));
    ended.into_iter().for_each(|(end, outcome)| {
        let _ = receipts.resolve(end, outcome);
    });
}

/// Contract 2's table of when a row is due, as (up, awaited, urgent, smoothed ack ms) -> ms after it came.
#[test]
fn rows_are_due_by_the_table() {
    for (up, awaited, urgent, ack_ms, due_ms) in [
        (true, true, false, 5, 50),
        (true, true, false, 100, 300),
        (true, true, false, 600, 800),
        (true, true, true, 100, 50),
        (false, true, false, 5, 400),
        (false, true, true, 5, 0),
        (true, false, false, 5, 1_000),
        (false, false, true, 5, 1_000),
    ] {
        let mut receipts = Receipts::new();
        let mut q = queue(Policy::EDGE);
        q.smoothed_ack_us = ack_ms * 1_000;
        q.last_write_us = at(10_000).mono_us;
        q.set_up(up, at(10_000));
        let end = awaited.then(|| receipts.open(()));
        q.push(Text(1, 10), end, at(10_000)).unwrap();
        q.take(1, at(10_000), |_, _, _| {});
        let due = q.next_due_us(urgent, Duration::ZERO).unwrap();
        assert_eq!(
            due,
            at(10_000 + due_ms).mono_us,
            "up {up} awaited {awaited} urgent {urgent} ack {ack_ms}"
        );
    }
}

/// A consumer that gathers rows for a minute: they are written before their deadline, in one commit, however long ago the last answer
/// was; and a publisher that can send nothing more waits no longer than for a destination that answers at once.
#[test]
fn rows_that_a_consumer_gathers_are_written_together_at_their_deadline() {
    let mut q = queue(Policy::EDGE);
    let mut receipts = Receipts::new();
    q.set_up(true, at(0));
    q.set_held(Duration::from_secs(60));
    let minute = 50_000;
    for i in 0..8 {
        q.push(Text(i, 10), Some(receipts.open(i)), at(minute + i * 100)).unwrap();
        q.take(16, at(minute + i * 100), |_, _, _| ());
        assert!(!q.due(at(minute + i * 100), false, Duration::ZERO), "row {i} alone");
    }
    assert_eq!(q.next_due_us(false, Duration::ZERO), Some((minute + 800) * 1_000));
    assert_eq!(q.next_due_us(true, Duration::ZERO), Some((minute + 50) * 1_000));
    let mut batch = Vec::new();
    assert!(q.write(at(minute + 800), &mut batch));
    assert_eq!(batch.len(), 8);
}

#[test]
fn the_deadline_leaves_room_for_the_commit() {
    let mut receipts = Receipts::new();
    let mut q = queue(Policy::EDGE);
    q.smoothed_ack_us = 10_000_000;
    q.set_up(true, at(0));
    q.push(Text(1, 10), Some(receipts.open(())), at(0)).unwrap();
    assert_eq!(q.next_due_us(false, Duration::from_millis(100)), Some(600_000));
    assert_eq!(q.next_due_us(false, Duration::from_millis(900)), Some(0));
}

#[test]
fn a_full_disk_withholds_and_a_full_memory_refuses() {
    let mut q = queue(SMALL);
    let mut store = MemoryStore::new();
    let mut receipts = Receipts::new();
    let mut ended = Vec::new();
    let mut refused = 0;
    for i in 0..100 {
        if let Err((_, end)) = q.push(Text(i, 100), Some(receipts.open(i)), at(i)) {
            refused += 1;
            let _ = receipts.resolve(end.unwrap(), Outcome::Retry);
        }
        let mut batch = Vec::new();
        q.write(at(i), &mut batch);
        let ticket = store.submit(batch);
        q.submitted(ticket);
        store.commit();
        q.committed(ticket, &mut ended);
    }
    assert_eq!(ended.len(), 40, "4,000 bytes of disk");
    assert_eq!(refused, 40, "2,000 bytes of memory behind them");
    ended.into_iter().for_each(|(end, outcome)| {
        let _ = receipts.resolve(end, outcome);
    });
    assert_eq!(store.rows(QueueId(1)).len(), 40);
}

#[test]
fn a_full_disk_has_no_deadline_that_nothing_can_meet() {
    let mut q = queue(Policy { disk_bytes: 250, ..Policy::EDGE });
    let mut ended = Vec::new();
    q.set_up(true, at(0));
    (0..3).for_each(|i| drop(q.push(Text(i, 100), None, at(0))));
    assert!(q.due(at(2_000), false, Duration::ZERO));
    q.write(at(2_000), &mut Vec::new());
    q.submitted(Ticket(1));
    q.committed(Ticket(1), &mut ended);
    assert_eq!(
        (q.counters().stored, q.next_due_us(true, Duration::ZERO)),
        (2, None),
        "or its worker would spin"
    );
    q.take(1, at(2_000), |_, _, _| {});
    q.answer(1, Outcome::Delivered, at(2_000), &mut ended);
    assert!(q.due(at(3_000), false, Duration::ZERO), "there is room again");
}

/// The limits in rows and in bytes, with the destination away and 4 rows in its consumer's hands.
#[test]
fn what_has_no_room_is_given_up_as_the_policy_says() {
    for (full, disk_rows, disk_bytes, kept) in [
        (Full::DropNewest, 10, 4_000, (1..=10).collect::<Vec<u64>>()),
        (Full::DropNewest, u64::MAX, 100, (1..=10).collect()),
        // What the consumer has is older, and stays: it may arrive.
        (Full::DropOldest, 10, 4_000, (1..=4).chain(35..=40).collect()),
        (Full::DropOldest, u64::MAX, 100, (1..=4).chain(35..=40).collect()),
        // Unless nothing else is left.
        (Full::DropOldest, 3, 4_000, (38..=40).collect()),
    ] {
        let mut q = queue(Policy { full, disk_rows, disk_bytes, ..SMALL });
        let mut store = MemoryStore::new();
        let (mut taken, mut ended) = (Vec::new(), Vec::new());
        let mut receipts = Receipts::new();
        for number in 1..=40 {
            let now = at(number * 500);
            q.push(Text(number, 10), Some(receipts.open(number)), now).unwrap();
            q.take(4, now, |_, _, _| {});
            q.make_room(now, &mut taken, &mut ended);
            let mut batch = Vec::new();
            q.write(now, &mut batch);
            let ticket = store.submit(batch);
            q.submitted(ticket);
            store.commit();
            q.committed(ticket, &mut ended);
            assert!(!q.is_withholding(), "{full:?} {disk_rows} {number}");
        }
        let stored: Vec<u64> = store.rows(QueueId(1)).iter().map(|row| row.seq).collect();
        let c = q.counters();
        assert_eq!(stored, kept, "{full:?}, {disk_rows} rows, {disk_bytes} bytes");
        assert_eq!((c.discarded, c.stored), (40 - kept.len() as u64, kept.len() as u64));
        let given_up =
            ended.iter().filter(|(_, outcome)| *outcome == Outcome::Discarded(Reason::Limit)).count();
        assert!(ended.len() == 40 && given_up <= 40 - kept.len(), "every publisher was told");
        for (end, outcome) in ended {
            let _ = receipts.resolve(end, outcome);
        }
    }
}

/// Nothing is given up while the destination is in time: no row needs the disk.
#[test]
fn a_limit_on_disk_costs_nothing_while_the_destination_answers() {
    for full in [Full::DropOldest, Full::DropNewest] {
        let mut q = queue(Policy { full, disk_rows: 1, ..SMALL });
        q.set_up(true, at(0));
        for number in 1..=100 {
            q.push(Text(number, 10), None, at(number)).unwrap();
            q.take(100, at(number), |_, _, _| {});
            assert_eq!(q.make_room(at(number), &mut Vec::new(), &mut Vec::new()), 0);
            if number > 20 {
                q.answer(number - 20, Outcome::Delivered, at(number), &mut Vec::new());
            }
        }
        assert_eq!((q.counters().discarded, q.counters().delivered, q.counters().written), (0, 80, 0));
    }
}

#[test]
fn a_held_row_and_those_behind_it_leave_after_its_commit() {
    let mut q = queue(Policy::EDGE);
    let taken = |q: &mut Queue<Text>| {
        let mut rows = Vec::new();
        q.take(10, at(0), |seq, _, _| rows.push(seq));
        rows
    };
    q.set_up(true, at(0));
    for i in 1..=3 {
        q.push(Text(i, 10), None, at(0)).unwrap();
        if i == 2 {
            q.hold();
        }
    }
    assert_eq!(taken(&mut q), [1]);
    q.write(at(0), &mut Vec::new());
    q.submitted(Ticket(1));
    assert_eq!(taken(&mut q), []);
    q.committed(Ticket(1), &mut Vec::new());
    assert_eq!(taken(&mut q), [2, 3]);
}

/// Head has room for forty rows: a consumer that leaves the first one unanswered gets all that come after it.
#[test]
fn a_row_without_an_answer_does_not_keep_the_room_of_those_behind_it() {
    for written in [false, true] {
        let mut store = MemoryStore::new();
        let mut q = queue(SMALL);
        let mut ended = Vec::new();
        q.set_up(true, at(0));
        let mut next = 2;
        for number in 1..=1_000 {
            q.push(Text(number, 10), None, at(number)).unwrap();
            if written {
                let mut batch = Vec::new();
                q.write(at(number), &mut batch);
                let ticket = store.submit(batch);
                q.submitted(ticket);
                store.commit();
                if let Some(from) = q.want_read() {
                    store.read(QueueId(1), from, 4, 1_000);
                }
                for event in store.take_events() {
                    match event {
                        StoreEvent::Committed { ticket, .. } => q.committed(ticket, &mut ended),
                        StoreEvent::Rows { rows, .. } => q.loaded(rows, at(number)),
                        _ => {}
                    }
                }
            }
            // Four in flight, answered from the newest on, but the first one never.
            let mut given = Vec::new();
            q.take(4, at(number), |seq, row, again| {
                assert!(!again);
                assert_eq!(seq, row.0);
                given.push(seq);
            });
            if given.first() == Some(&1) {
                given.remove(0);
            }
            for seq in given.iter().rev() {
                q.answer(*seq, Outcome::Delivered, at(number), &mut ended);
            }
            for seq in given {
                assert_eq!(seq, next);
                next += 1;
            }
            assert!(q.head.len() <= 2 * (ANSWERED + 4), "{} slots", q.head.len());
        }
        assert_eq!((next, q.counters().delivered), (1_001, 999));
        assert_eq!((q.head_bytes, q.rows().next()), (10, Some(&Text(1, 10))));
        q.reset();
        let mut again = Vec::new();
        q.take(4, at(2_000), |seq, _, is_again| again.push((seq, is_again)));
        assert_eq!(again, [(1, true)]);
        q.answer(1, Outcome::Delivered, at(2_000), &mut ended);
        assert!(q.head.is_empty());
    }
}

fn batch_of_removals(q: &Queue<Text>) -> usize {
    q.removals.len()
}

/// A row that the destination may still answer in time is not written because another one's removal, or a retained message, is.
#[test]
fn a_commit_for_something_else_takes_no_row_along_that_may_be_answered() {
    let mut receipts = Receipts::new();
    let mut q = queue(Policy::EDGE);
    q.set_up(true, at(0));
    let (mut batch, mut ended) = (Vec::new(), Vec::new());
    let mut push = |q: &mut Queue<Text>, ms| {
        let end = receipts.open(());
        q.push(Text(ms, 10), Some(end), at(ms)).unwrap();
        q.take(9, at(ms), |_, _, _| {});
    };
    push(&mut q, 0);
    assert!(q.takes_along(at(50), false, Duration::ZERO));
    q.write(at(50), &mut batch);
    q.submitted(Ticket(1));
    q.committed(Ticket(1), &mut ended);
    q.answer(1, Outcome::Delivered, at(60), &mut ended);
    push(&mut q, 10_050);
    assert!(q.due(at(10_060), false, Duration::ZERO), "the removal is");
    assert!(!q.takes_along(at(10_060), false, Duration::ZERO));
    batch.clear();
    assert!(q.write_removals(&mut batch) && matches!(batch[..], [Op::Remove { first: 1, last: 1, .. }]));
    assert!(!q.due(at(10_060), false, Duration::ZERO));
    // When the destination is away, or the row is due, it goes along.
    assert!(q.takes_along(at(10_240), false, Duration::ZERO));
    q.set_up(false, at(10_060));
    assert!(q.takes_along(at(10_060), false, Duration::ZERO));
    std::mem::forget(q);
    std::mem::forget(ended);
}

#[derive(Debug, Clone)]
enum Step {
    Push(usize, bool),
    Take(usize),
    Answer(usize, bool),
    Reset,
    Up(bool),
    Write,
    /// A commit that is made for something else.
    Along(bool),
    Commit,
    Crash,
    Wait(u64),
    /// Every so many rows that a page shows, from the one after so many, in flight or not.
    GiveUp(usize, usize, bool),
    /// What came before so many others.
    Old(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (1usize..200, any::<bool>()).prop_map(|(size, wait)| Step::Push(size, wait)),
        5 => (0usize..12).prop_map(Step::Take),
        8 => (0usize..12, any::<bool>()).prop_map(|(i, ok)| Step::Answer(i, ok)),
        1 => Just(Step::Reset),
        1 => any::<bool>().prop_map(Step::Up),
        4 => Just(Step::Write),
        2 => any::<bool>().prop_map(Step::Along),
        4 => Just(Step::Commit),
        1 => Just(Step::Crash),
        2 => (0u64..900).prop_map(Step::Wait),
        1 => (1usize..4, 0usize..8, any::<bool>()).prop_map(|(of, after, all)| Step::GiveUp(of, after, all)),
        1 => (0u64..60).prop_map(Step::Old),
    ];
    prop::collection::vec(step, 0..400)
}

/// All that pages show: number, size, and the number it was pushed with.
fn shown(q: &Queue<Text>, store: &MemoryStore) -> Vec<(u64, usize, u64)> {
    let mut rows: Vec<(u64, usize, u64)> = Vec::new();
    let mut after = 0;
    loop {
        let mut room = 3;
        let next = q.page(after, |seq, row, _| {
            rows.push((seq, row.1, row.0));
            room -= 1;
            room > 0
        });
        after = match next {
            Next::End => return rows,
            Next::Memory => rows.last().map_or(0, |row| row.0),
            Next::Disk { from, to, without } => {
                let gone = |seq| without.iter().any(|&(first, last)| first <= seq && seq <= last);
                let stored = store.rows(QueueId(1));
                let stored = stored.iter().filter(|r| from <= r.seq && r.seq <= to && !gone(r.seq));
                rows.extend(
                    stored.map(|r| (r.seq, r.body.len(), u64::from_le_bytes(r.head[..].try_into().unwrap()))),
                );
                // What the disk has not is not looked for again.
                to
            }
        };
    }
}

#[test]
fn too_many_holes_in_the_backlog_are_left_for_another_call() {
    let rows = 3 * RANGES_MAX as u64;
    let summary = QueueSummary { queue: QueueId(1), first: 1, last: rows, rows, bytes: rows * 10 };
    let mut q: Queue<Text> = Queue::new(QueueId(1), SMALL, Some(summary));
    let every_other: Vec<_> = (1..=rows).step_by(2).map(|seq| (seq, 10)).collect();
    let gave = q.give_up(&every_other, true, at(0), &mut Vec::new(), &mut Vec::new());
    assert_eq!((gave.rows, gave.left), (RANGES_MAX as u64, every_other.len() as u64 - RANGES_MAX as u64));
    let c = q.counters();
    assert_eq!((c.recovered, c.queued, c.discarded), (rows, rows - gave.rows, gave.rows));
    assert_eq!(q.backlog(at(0)).0, (rows - gave.rows) * 10);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Whatever the schedule: a publisher is told *delivered* only of rows that the destination or the disk has; after a
    /// crash every such row is delivered or comes back; order holds between resets, with `live_first` of each lane, and what was passed
    /// is late; the counters add up.
    #[test]
    fn acknowledged_is_safe(
        steps in steps(),
        full in 0usize..3,
        disk_rows in prop_oneof![Just(u64::MAX), 1u64..30],
        live_first: bool,
    ) {
        let full = [Full::Withhold, Full::DropOldest, Full::DropNewest][full];
        let order = if live_first { Order::LiveFirst } else { Order::InOrder };
        let policy = Policy { full, disk_rows, order, ..SMALL };
        let mut store = MemoryStore::new();
        let mut receipts: Receipts<u64> = Receipts::new();
        let mut q = queue(policy);
        let (mut now, mut number) = (0, 0);
        let mut given: BTreeMap<u64, u64> = BTreeMap::new(); // in flight: seq -> number
        let mut last_given = [0; 2]; // of each lane
        let mut highest = 0; // handed out
        let mut known: BTreeMap<u64, bool> = BTreeMap::new(); // handed out: whether it was late
        let mut ahead = 0;
        let mut acknowledged = BTreeSet::new();
        let mut delivered = BTreeSet::new();
        let mut discarded = BTreeSet::new();
        let mut over = BTreeSet::new(); // what has its last word in this process life
        for step in steps {
            let mut ended = Vec::new();
            match step {
                Step::Push(size, wait) => {
                    number += 1;
                    let end = wait.then(|| receipts.open(number));
                    if let Err((_, Some(end))) = q.push(Text(number, size), end, at(now)) {
                        let told = receipts.resolve(end, Outcome::Retry).unwrap();
                        prop_assert_eq!(told.outcome, Outcome::Retry);
                    }
                }
                Step::Take(n) => q.hand_out(n, at(now), |seq, row, mark| {
                    let last = &mut last_given[usize::from(mark.ahead)];
                    assert!(seq > *last, "{seq} after {last}");
                    *last = seq;
                    assert_eq!(mark.late, *known.entry(seq).or_insert(live_first && seq < highest), "{seq}");
                    ahead += u64::from(mark.ahead);
                    highest = highest.max(seq);
                    assert_eq!(given.insert(seq, row.0), None);
                    assert!(!over.contains(&row.0), "twice");
                }),
                Step::Answer(i, ok) => {
                    if let Some((&seq, &n)) = given.iter().nth(i) {
                        given.remove(&seq);
                        let outcome = if ok { Outcome::Delivered } else { Outcome::Discarded(Reason::Refused) };
                        if ok { delivered.insert(n) } else { discarded.insert(n) };
                        over.insert(n);
                        q.answer(seq, outcome, at(now), &mut ended);
                    }
                }
                Step::Reset => { q.reset(); given.clear(); last_given = [0; 2]; }
                Step::Up(up) => q.set_up(up, at(now)),
                Step::Write => {
                    // Twice, as in two turns: behind one that is waited for and was written may be one that is due, and has no room.
                    for _ in 0..2 {
                        let before = shown(&q, &store);
                        let mut taken = Vec::new();
                        let given_up = q.make_room(at(now), &mut taken, &mut ended);
                        let after = shown(&q, &store);
                        prop_assert_eq!(before.len() - after.len(), given_up as usize);
                        prop_assert!(given_up == 0 || full != Full::Withhold);
                        for row in before.iter().filter(|row| !after.contains(row)) {
                            prop_assert_eq!(given.remove(&row.0).is_some(), taken.contains(&row.0));
                            discarded.insert(row.2);
                            over.insert(row.2);
                        }
                        let mut batch = Vec::new();
                        q.write(at(now), &mut batch);
                        let ticket = store.submit(batch);
                        q.submitted(ticket);
                    }
                    for urgent in [false, true] {
                        prop_assert!(!q.due(at(now), urgent, Duration::ZERO), "or its worker would spin");
                    }
                }
                Step::Along(urgent) => {
                    let mut batch = Vec::new();
                    let was_due = q.due(at(now), urgent, Duration::ZERO);
                    let removals = batch_of_removals(&q);
                    if q.takes_along(at(now), urgent, Duration::ZERO) {
                        q.write(at(now), &mut batch);
                    } else {
                        q.write_removals(&mut batch);
                        prop_assert!(batch.len() == removals && q.is_up());
                    }
                    if full == Full::Withhold {
                        prop_assert!(!q.due(at(now), urgent, Duration::ZERO), "or its worker would spin: {}", was_due);
                    }
                    let ticket = store.submit(batch);
                    q.submitted(ticket);
                }
                Step::Old(rows) => {
                    let before = shown(&q, &store);
                    let old = |row: &Text| row.0 + rows < number;
                    q.give_up_while(old, 5, Reason::Age, at(now), &mut ended);
                    let after = shown(&q, &store);
                    let gone: Vec<_> = before.iter().filter(|row| !after.contains(row)).collect();
                    prop_assert!(gone.len() <= 5);
                    for row in gone {
                        prop_assert!(old(&Text(row.2, 0)) && !given.contains_key(&row.0));
                        discarded.insert(row.2);
                        over.insert(row.2);
                    }
                }
                Step::Commit => store.commit(),
                Step::Crash => {
                    let restored = store.crash();
                    let summary = restored.queues.first().copied();
                    std::mem::forget(std::mem::replace(&mut q, Queue::new(QueueId(1), policy, summary)));
                    receipts = Receipts::new();
                    given.clear();
                    last_given = [0; 2];
                    known.clear();
                    over.clear();
                    highest = summary.map_or(0, |s| s.last + 1);
                    let left: BTreeSet<u64> = store.rows(QueueId(1)).iter().map(|r| u64::from_le_bytes(r.head[..].try_into().unwrap())).collect();
                    for n in &acknowledged {
                        prop_assert!(delivered.contains(n) || discarded.contains(n) || left.contains(n), "{} is lost", n);
                    }
                }
                Step::Wait(ms) => now += ms,
                Step::GiveUp(of, after, in_flight) => {
                    let shown = shown(&q, &store);
                    let waiting = q.counters().in_flight + q.counters().queued;
                    prop_assert_eq!(shown.len() as u64, waiting, "a page shows what there is");
                    prop_assert!(shown.is_sorted_by(|a, b| a.0 < b.0));
                    let rows: Vec<_> = shown.iter().skip(after).step_by(of).map(|&(seq, size, _)| (seq, size)).collect();
                    let mut taken = Vec::new();
                    let gave = q.give_up(&rows, in_flight, at(now), &mut taken, &mut ended);
                    prop_assert_eq!(gave.left, 0);
                    for &(seq, _, n) in shown.iter().skip(after).step_by(of) {
                        if given.contains_key(&seq) {
                            if in_flight { given.remove(&seq); prop_assert!(taken.contains(&seq)); } else { continue; }
                        }
                        discarded.insert(n);
                        over.insert(n);
                    }
                    prop_assert_eq!(q.give_up(&rows, in_flight, at(now), &mut taken, &mut ended), GivenUp::default(), "once");
                }
            }
            if let Some(from) = q.want_read() {
                store.read(QueueId(1), from, 4, 1_000);
            }
            for event in store.take_events() {
                match event {
                    StoreEvent::Committed { ticket, .. } => q.committed(ticket, &mut ended),
                    StoreEvent::Rows { rows, .. } => q.loaded(rows, at(now)),
                    _ => {}
                }
            }
            for (end, outcome) in ended {
                let told = receipts.resolve(end, outcome).unwrap();
                if told.outcome == Outcome::Delivered {
                    let on_disk = store.rows(QueueId(1)).iter().any(|r| r.head[..] == told.owner.to_le_bytes());
                    prop_assert!(delivered.contains(&told.owner) || on_disk);
                }
                acknowledged.insert(told.owner);
            }
            let c = q.counters();
            prop_assert_eq!(c.entered + c.recovered, c.delivered + c.discarded + c.in_flight + c.queued, "{:?}", c);
            prop_assert_eq!(c.in_flight as usize, given.len());
            prop_assert!(live_first || ahead == 0);
            prop_assert_eq!(q.rows().count(), q.in_memory(0).filter(|s| s.row.is_some()).count());
        }
        // Healed, everything drains, in order and without another push.
        q.set_up(true, at(now));
        q.reset();
        for _ in 0..10_000 {
            let mut ended = Vec::new();
            let mut seqs = Vec::new();
            q.take(8, at(now), |seq, _, _| seqs.push(seq));
            for seq in seqs { q.answer(seq, Outcome::Delivered, at(now), &mut ended); }
            let mut batch = Vec::new();
            q.write(at(now), &mut batch);
            let ticket = store.submit(batch);
            q.submitted(ticket);
            store.commit();
            if let Some(from) = q.want_read() { store.read(QueueId(1), from, 4, 1_000); }
            for event in store.take_events() {
                match event {
                    StoreEvent::Committed { ticket, .. } => q.committed(ticket, &mut ended),
                    StoreEvent::Rows { rows, .. } => q.loaded(rows, at(now)),
                    _ => {}
                }
            }
            ended.into_iter().for_each(|(end, outcome)| {
        let _ = receipts.resolve(end, outcome);
    });
            if q.is_empty() { break; }
        }
        prop_assert!(q.is_empty(), "{:?}", q.counters());
        prop_assert_eq!(store.rows(QueueId(1)).len(), 0);
        prop_assert_eq!((receipts.open_count(), receipts.lost_ends()), (0, 0));
    }
}
