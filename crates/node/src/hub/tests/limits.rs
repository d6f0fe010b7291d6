//! Classes, pace, and what limits give up.

use super::*;
use crate::control::OutboxStatus;
use ferrule_outbox::{Full, Order};
use std::collections::BTreeSet;

impl Bench {
    fn wait(&mut self, ms: u64) {
        self.now = Now { mono_us: self.now.mono_us + ms * 1_000, wall_ms: self.now.wall_ms + ms as i64 };
        self.shard.end_turn(self.now);
    }

    /// Numbers and payloads of the rows handed out so far.
    fn taken(&mut self) -> Vec<(u64, String)> {
        let rows = std::iter::from_fn(|| self.rows.try_recv().ok()).flatten();
        rows.map(|row| (row.seq, String::from_utf8_lossy(&row.entry.payload).into_owned())).collect()
    }

    fn outboxes(&mut self) -> Vec<OutboxStatus> {
        let (asked, mut told) = oneshot::channel();
        Hub::message(&mut self.shard, &WorkerStats::default(), HubMessage::Status(asked), self.now);
        told.try_recv().unwrap().outboxes
    }
}

const CLASSED: &str = "CREATE RULE low WITH (priority = 'low') AS INSERT INTO s SELECT * FROM \"low\";
     CREATE RULE normal AS INSERT INTO s SELECT * FROM \"normal\";
     CREATE RULE high WITH (priority = 'high') AS INSERT INTO s SELECT * FROM \"high\";";

#[test]
fn rows_of_a_higher_class_leave_first_and_each_class_keeps_its_order() {
    let mut bench = Bench::new(true, CLASSED);
    bench.consumer(ConsumerEvent::Up { window: 2 });
    let device = bench.connect("d", None);
    for round in 0..3u16 {
        for (at, topic) in ["low", "normal", "high"].iter().enumerate() {
            bench.publish(device, topic, &format!("{topic}{round}"), 1 + round * 3 + at as u16, &[]);
        }
    }
    let mut order = Vec::new();
    for _ in 0..10 {
        let rows = bench.taken();
        order.extend(rows.iter().map(|row| row.1.clone()));
        bench.consumer(ConsumerEvent::Done(rows.into_iter().map(|row| (row.0, Delivered::Yes)).collect()));
    }
    // The first two went before there was a choice.
    assert_eq!(order, ["low0", "normal0", "high0", "high1", "high2", "normal1", "normal2", "low1", "low2"]);
    assert!((1..=9).all(|id| bench.acknowledged(device, id)));
    let told: Vec<_> = bench.outboxes().into_iter().map(|o| (o.name, o.entered, o.delivered)).collect();
    let expected = [("s", 3, 3), ("s:low", 3, 3), ("s:high", 3, 3)];
    assert_eq!(told, expected.map(|(name, entered, delivered)| (name.to_owned(), entered, delivered)));
}

/// An answer, a reset and a loss of the consumer concern the class of each row.
#[test]
fn classes_share_a_consumer_and_nothing_else() {
    let mut bench = Bench::new(true, CLASSED);
    bench.consumer(ConsumerEvent::Up { window: 10 });
    let device = bench.connect("d", None);
    for (id, topic) in [(1, "low"), (2, "high"), (3, "normal")] {
        bench.publish(device, topic, topic, id, &[]);
    }
    let rows = bench.taken();
    let numbers: BTreeSet<u64> = rows.iter().map(|row| row.0).collect();
    assert_eq!(numbers.len(), 3, "each has a number of its own");
    let of = |payload: &str| rows.iter().find(|row| row.1 == payload).unwrap().0;
    bench.consumer(ConsumerEvent::Done(vec![(
        of("high"),
        Delivered::Discarded(ferrule_outbox::Reason::Refused),
    )]));
    bench.consumer(ConsumerEvent::Reset);
    let again: Vec<_> = bench.taken().into_iter().map(|row| row.1).collect();
    assert_eq!(again, ["normal", "low"]);
    let told: Vec<_> = bench.outboxes().iter().map(|o| (o.discarded, o.again, o.in_flight)).collect();
    assert_eq!(told, [(0, 1, 1), (0, 1, 1), (1, 0, 0)]);
}

#[test]
fn rows_leave_no_faster_than_they_may() {
    let mut node = node(true);
    node.outboxes.rate_max = Some(100);
    let mut bench = Bench::with(node, "s", "CREATE RULE r AS INSERT INTO s SELECT * FROM \"a\";");
    let device = bench.connect("d", None);
    (1..=50).for_each(|id| bench.publish(device, "a", "{}", id, &[]));
    let mut left = Vec::new();
    for _ in 0..20 {
        // It wakes by itself when the next may leave.
        assert!(bench.shard.hook().next_limit_us().unwrap() > bench.now.mono_us);
        bench.wait(10);
        let rows = bench.taken();
        left.push(rows.len());
        bench.consumer(ConsumerEvent::Done(rows.into_iter().map(|row| (row.0, Delivered::Yes)).collect()));
        left.push(bench.taken().len());
    }
    let all: usize = left.iter().sum();
    assert!((18..=26).contains(&all), "a fifth of a second at 100 a second, and a burst: {left:?}");
}

#[test]
fn what_limits_give_up_is_counted_acknowledged_and_told_above() {
    let policy = Policy { full: Full::DropOldest, disk_rows: 5, ..Policy::EDGE };
    let mut node = node(true);
    node.outboxes = OutboxBounds { report_topic: Some("up/given_up".into()), ..policy.into() };
    let mut bench = Bench::with(node, "cloud", "CREATE RULE r AS INSERT INTO cloud SELECT * FROM \"a\";");
    bench.consumer(ConsumerEvent::Down { error: "away".into() });
    // None in the consumer's hands.
    bench.consumer(ConsumerEvent::Up { window: 0 });
    bench.consumer(ConsumerEvent::Down { error: "away".into() });
    let device = bench.connect("d", None);
    for id in 1..=20 {
        bench.publish(device, "a", &id.to_string(), id, &[]);
        bench.wait(500);
    }
    let told = &bench.outboxes()[0];
    assert_eq!((told.entered, told.queued, told.discarded, told.stored), (20, 5, 15, 5));
    assert_eq!(told.discarded_by.get("limit"), Some(&15.into()));
    // Each of them had been written, and would have been acknowledged by the commit.
    assert_eq!(bench.taken(), []);
    bench.consumer(ConsumerEvent::Up { window: 100 });
    let rows = bench.taken();
    let (report, kept) = rows.split_last().unwrap();
    assert_eq!(kept.iter().map(|row| &*row.1).collect::<Vec<_>>(), ["16", "17", "18", "19", "20"]);
    let report: serde_json::Value = serde_json::from_str(&report.1).unwrap();
    assert_eq!((&report["edge"], &report["limit"], &report["age"]), (&"me".into(), &15.into(), &0.into()));
    // Once.
    bench.wait(120_000);
    assert_eq!(bench.taken(), []);
    bench.consumer(ConsumerEvent::Done(rows.iter().map(|row| (row.0, Delivered::Yes)).collect()));
    bench.wait(120_000);
    assert_eq!(bench.taken(), []);
}

#[test]
fn rows_that_are_too_old_are_given_up_and_no_others() {
    let mut node = node(true);
    node.outboxes.age_max = Some(Duration::from_secs(10));
    let mut bench = Bench::with(node, "s", "CREATE RULE r AS INSERT INTO s SELECT * FROM \"a\";");
    bench.consumer(ConsumerEvent::Up { window: 0 });
    bench.consumer(ConsumerEvent::Down { error: "away".into() });
    let device = bench.connect("d", None);
    for id in 1..=20 {
        bench.publish(device, "a", &id.to_string(), id, &[]);
        bench.wait(1_000);
    }
    let told = &bench.outboxes()[0];
    assert_eq!(told.discarded_by.get("age"), Some(&10.into()), "{told:?}");
    assert_eq!((told.queued, told.discarded), (10, 10));
    // Also when nothing else happens: it wakes for them.
    for left in (0..10).rev() {
        bench.now.mono_us = bench.shard.hook().next_limit_us().unwrap();
        bench.shard.end_turn(bench.now);
        assert_eq!(bench.outboxes()[0].queued, left);
    }
    assert_eq!(bench.outboxes()[0].discarded, 20);
}

#[test]
fn what_comes_goes_ahead_of_a_backlog_which_is_told_that_it_is_late() {
    let policy = Policy { order: Order::LiveFirst, ..Policy::EDGE };
    let node = Node { outboxes: policy.into(), ..node(true) };
    let mut bench = Bench::with(node, "s", "CREATE RULE r AS INSERT INTO s SELECT * FROM \"a\";");
    bench.consumer(ConsumerEvent::Up { window: 0 });
    bench.consumer(ConsumerEvent::Down { error: "away".into() });
    let device = bench.connect("d", None);
    (1..=4).for_each(|id| bench.publish(device, "a", &id.to_string(), id, &[]));
    bench.consumer(ConsumerEvent::Up { window: 1 });
    let mut left = Vec::new();
    for id in 5..=9 {
        if id < 7 {
            bench.publish(device, "a", &id.to_string(), id, &[]);
        }
        let rows: Vec<_> = std::iter::from_fn(|| bench.rows.try_recv().ok()).flatten().collect();
        left.extend(rows.iter().map(|row| (row.seq, row.late)));
        bench.consumer(ConsumerEvent::Done(rows.iter().map(|row| (row.seq, Delivered::Yes)).collect()));
    }
    left.extend(std::iter::from_fn(|| bench.rows.try_recv().ok()).flatten().map(|row| (row.seq, row.late)));
    assert_eq!(left, [(1, false), (5, false), (6, false), (2, true), (3, true), (4, true)]);
    let told = &bench.outboxes()[0];
    assert_eq!((told.ahead, told.delivered, told.again), (2, 5, 0));
}
