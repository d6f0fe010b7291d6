//! `live_first`: which row leaves when, which is late, and what is written.

use super::*;

/// A queue and what is around it.
struct Bench {
    q: Queue<Text>,
    store: MemoryStore,
    receipts: Receipts<u64>,
    ended: Vec<(End, Outcome)>,
    number: u64,
    ms: u64,
}

impl Bench {
    fn new(policy: Policy) -> Self {
        Self {
            q: queue(Policy { order: Order::LiveFirst, ..policy }),
            store: MemoryStore::new(),
            receipts: Receipts::new(),
            ended: Vec::new(),
            number: 0,
            ms: 10_000,
        }
    }

    /// Rows of 10 bytes that somebody waits for.
    fn push(&mut self, count: u64) {
        for _ in 0..count {
            self.number += 1;
            let end = self.receipts.open(self.number);
            self.q.push(Text(self.number, 10), Some(end), at(self.ms)).unwrap();
        }
    }

    fn commit(&mut self) {
        let mut batch = Vec::new();
        self.q.write(at(self.ms), &mut batch);
        let ticket = self.store.submit(batch);
        self.q.submitted(ticket);
        self.store.commit();
        self.events();
    }

    fn events(&mut self) {
        for event in self.store.take_events() {
            match event {
                StoreEvent::Committed { ticket, .. } => self.q.committed(ticket, &mut self.ended),
                StoreEvent::Rows { rows, .. } => self.q.loaded(rows, at(self.ms)),
                _ => {}
            }
        }
        for (end, outcome) in self.ended.drain(..) {
            let _ = self.receipts.resolve(end, outcome);
        }
    }

    fn read(&mut self) {
        while let Some(from) = self.q.want_read() {
            self.store.read(QueueId(1), from, 4, 1_000);
            self.events();
        }
    }

    /// What is handed out of so many: number, and whether it is late.
    fn take(&mut self, window: usize) -> Vec<(u64, bool)> {
        let mut rows = Vec::new();
        self.q.hand_out(window, at(self.ms), |seq, row, mark| {
            assert_eq!(seq, row.0);
            rows.push((seq, mark.late));
        });
        rows
    }

    fn answer(&mut self, rows: &[(u64, bool)]) {
        for (seq, _) in rows {
            self.q.answer(*seq, Outcome::Delivered, at(self.ms), &mut self.ended);
        }
        self.events();
    }

    /// A hundred rows on disk, of which forty are in head; the destination has come back.
    fn behind() -> Self {
        let mut bench = Self::new(SMALL);
        bench.push(100);
        bench.commit();
        bench.q.set_up(true, at(bench.ms));
        bench
    }
}

#[test]
fn live_rows_pass_a_backlog_that_keeps_its_share() {
    let mut bench = Bench::behind();
    bench.push(6);
    let taken = bench.take(12);
    let expected = [101, 102, 103, 1, 104, 105, 106, 2, 3, 4, 5, 6];
    assert_eq!(taken, expected.map(|seq| (seq, seq <= 100)));
    assert_eq!(bench.q.counters().ahead, 6);
    // Nothing is handed out twice, and the backlog goes on to its end, all of it late.
    let mut came: BTreeSet<u64> = BTreeSet::new();
    let mut rows = taken;
    while !rows.is_empty() {
        for row in &rows {
            assert!(came.insert(row.0) && row.1 == (row.0 <= 100), "{row:?}");
        }
        bench.answer(&rows);
        bench.read();
        rows = bench.take(12);
    }
    assert_eq!(came, (1..=106).collect());
    // Without a backlog it is as it was before.
    bench.push(3);
    assert_eq!(bench.take(9), [(107, false), (108, false), (109, false)]);
    assert_eq!(bench.q.counters().ahead, 6);
}

#[test]
fn a_row_that_went_ahead_and_is_answered_in_time_is_not_written() {
    let mut bench = Bench::behind();
    let written = bench.q.counters().written;
    for _ in 0..50 {
        bench.push(2);
        let rows = bench.take(4);
        assert!(!bench.q.due(at(bench.ms), false, Duration::ZERO));
        assert!(!bench.q.takes_along(at(bench.ms), true, Duration::ZERO));
        bench.ms += 40;
        assert!(!bench.q.due(at(bench.ms), true, Duration::ZERO));
        bench.answer(&rows);
        bench.read();
    }
    assert_eq!(bench.q.counters().written, written);
    // What is not answered is due as ever.
    bench.push(1);
    bench.take(4);
    bench.ms += 1_000;
    assert!(bench.q.due(at(bench.ms), false, Duration::ZERO));
}

/// It stays in memory, though what lies around it is on disk alone, and comes again before what comes now.
#[test]
fn a_row_ahead_that_is_written_is_not_read_back() {
    let mut bench = Bench::behind();
    bench.push(2);
    let first = bench.take(2);
    assert_eq!(first, [(101, false), (102, false)]);
    bench.commit();
    // Down: what comes is backlog, behind what went ahead.
    bench.q.set_up(false, at(bench.ms));
    bench.push(2);
    bench.commit();
    let page = shown(&bench.q, &bench.store);
    assert_eq!(page.iter().map(|row| row.0).collect::<Vec<_>>(), (1..=104).collect::<Vec<_>>());
    bench.q.set_up(true, at(bench.ms));
    bench.q.reset();
    bench.push(1);
    let mut came = bench.take(4);
    assert_eq!(came, [(101, false), (102, false), (105, false), (1, true)]);
    let mut rows = came.clone();
    while !rows.is_empty() {
        bench.answer(&rows);
        bench.read();
        rows = bench.take(4);
        came.extend(&rows);
    }
    let rest: Vec<u64> = came[3..].iter().map(|row| row.0).collect();
    assert_eq!(rest, (1..=100).chain(103..=104).collect::<Vec<_>>());
    bench.commit();
    assert!(bench.q.is_empty() && bench.store.rows(QueueId(1)).is_empty());
}

#[test]
fn a_live_row_that_is_held_goes_ahead_once_it_is_on_disk() {
    let mut bench = Bench::behind();
    bench.push(1);
    bench.push(1);
    bench.q.hold();
    bench.push(1);
    assert_eq!(bench.take(2), [(101, false), (1, true)]);
    bench.commit();
    assert_eq!(bench.take(4), [(102, false), (103, false)]);
}

/// More than memory has room for: it becomes backlog, and what comes then goes ahead of it.
#[test]
fn live_rows_that_find_no_room_become_backlog() {
    let mut bench = Bench::behind();
    bench.push(60);
    bench.commit();
    bench.push(1);
    let rows = bench.take(100);
    let live: Vec<u64> = rows.iter().map(|row| row.0).filter(|seq| *seq > 100).collect();
    assert_eq!(live, (101..=140).chain([161]).collect::<Vec<_>>());
    assert!(rows.iter().all(|row| row.1 == (row.0 <= 100)));
}

#[test]
fn after_a_start_all_that_was_there_is_late() {
    for (order, late) in [(Order::LiveFirst, true), (Order::InOrder, false)] {
        let mut bench = Bench::behind();
        let summary = bench.store.crash().queues.first().copied();
        bench.q = Queue::new(QueueId(1), Policy { order, ..SMALL }, summary);
        bench.q.set_up(true, at(bench.ms));
        bench.read();
        assert_eq!(bench.take(2), [(1, late), (2, late)]);
        std::mem::take(&mut bench.ended).into_iter().for_each(|(end, _)| std::mem::forget(end));
    }
}

#[test]
fn the_order_may_change_while_rows_wait() {
    let mut bench = Bench::behind();
    bench.q.set_policy(SMALL);
    bench.push(2);
    assert_eq!(bench.take(1), [(1, false)]);
    // Those two came when nothing went ahead.
    bench.q.set_policy(Policy { order: Order::LiveFirst, ..SMALL });
    bench.push(2);
    assert_eq!(bench.take(3), [(103, false), (104, false)]);
    bench.push(1);
    bench.q.set_policy(SMALL);
    bench.push(1);
    let mut all = vec![1, 103, 104];
    let mut given = vec![(1, false), (103, false), (104, false)];
    for _ in 0..200 {
        bench.answer(&given);
        bench.read();
        bench.commit();
        given = bench.take(8);
        all.extend(given.iter().map(|(seq, _)| seq));
        assert!(given.iter().all(|(seq, late)| *late == (*seq < 103)), "{given:?}");
    }
    let rest = (2..=102).chain(105..=106);
    assert_eq!(all, [1, 103, 104].into_iter().chain(rest).collect::<Vec<_>>());
    assert_eq!(bench.q.counters().delivered, 106);
    assert!(bench.q.ahead().next().is_none());
}
