//! Outboxes of nodes that are gone.

use super::*;
use ferrule_store::record::Record;
use std::ops::RangeInclusive;

const RULE: &str = "CREATE RULE r AS INSERT INTO s SELECT * FROM \"a/#\";";

fn row(seq: u64) -> StoredRow {
    let entry = Entry {
        identity: Identity { origin: "b".into(), boot: Boot::new(3), class: 0, seq },
        rule: 1,
        row: 0,
        target: "".into(),
        key: "d".into(),
        passthrough: false,
        qos: 1,
        retain: false,
        client_id: "d".into(),
        username: None,
        topic: "a/t".into(),
        edge: None,
        received: Now::default().stamp(),
        hops: 0,
        properties: Bytes::new(),
        payload: Bytes::new(),
    };
    StoredRow { seq, head: entry.to_bytes(), body: seq.to_string().into() }
}

/// Another node's outbox of the sink with these rows, under this number.
fn left(sink: &str, number: u32, rows: RangeInclusive<u64>) -> Inherited {
    let (first, last) = (*rows.start(), *rows.end());
    let queue = QueueId::inherited(number);
    let summary = QueueSummary { queue, first, last, rows: last - first + 1, bytes: 100 };
    Inherited { summary, of: QueueId::outbox(sink, 0), node: format!("n{number}").into() }
}

impl Bench {
    /// With what the store has of them.
    fn inherit(&mut self, inherited: &[Inherited]) {
        let now = self.now;
        self.shard.hook().inherit(inherited, now);
        self.shard.end_turn(now);
        for Inherited { summary, .. } in inherited {
            let rows = (summary.first..=summary.last).map(row).collect();
            self.shard.hook().rows(summary.queue, rows, now);
        }
        self.shard.end_turn(now);
    }

    /// The rows that the store is to remove.
    fn removed(&mut self, number: u32) -> Vec<u64> {
        let mut batch = Vec::new();
        self.now.mono_us += 200_000;
        self.shard.hook().write(self.now, Which::All, &mut batch);
        let queue = QueueId::inherited(number);
        let removed = batch.into_iter().filter_map(|op| match op {
            Op::Remove { queue: of, first, last } if of == queue => Some(first..=last),
            Op::Append { queue: of, .. } if of == queue => panic!("added to {of:?}"),
            _ => None,
        });
        removed.flatten().collect()
    }

    fn shown(&mut self) -> Vec<(String, u64)> {
        let status = Hub::status(&mut self.shard, &WorkerStats::default(), self.now);
        status.outboxes.into_iter().map(|o| (o.name, o.delivered)).collect()
    }

    /// Numbers that the consumer was given, with what the rows say.
    fn given(&mut self) -> Vec<(u64, String)> {
        let rows = std::iter::from_fn(|| self.rows.try_recv().ok()).flatten();
        rows.map(|row| (row.seq, String::from_utf8_lossy(&row.entry.payload).into_owned())).collect()
    }

    fn done(&mut self, numbers: impl IntoIterator<Item = u64>) {
        let answers = numbers.into_iter().map(|number| (number, Delivered::Yes)).collect();
        self.consumer(ConsumerEvent::Done(answers));
    }
}

fn says(given: &[(u64, String)]) -> Vec<&str> {
    given.iter().map(|(_, says)| &**says).collect()
}

#[test]
fn what_is_inherited_leaves_first_and_is_removed_where_it_is() {
    let mut bench = Bench::new(false, RULE);
    let device = bench.connect("d", None);
    bench.consumer(ConsumerEvent::Up { window: 2 });
    let inherited = [left("s", 1, 7..=9)];
    bench.inherit(&inherited);
    bench.publish(device, "a/t", "own", 1, &[]);
    let first = bench.given();
    assert_eq!(says(&first), ["7", "8"]);
    // Told again, as with each view: nothing new.
    bench.inherit(&inherited);
    bench.done(first.iter().map(|(number, _)| *number));
    let then = bench.given();
    assert_eq!(says(&then), ["9", "own"]);
    assert_eq!(bench.removed(1), [7, 8]);
    bench.done(then.iter().map(|(number, _)| *number));
    assert_eq!(bench.removed(1), [9]);
    assert_eq!(bench.shown(), [("s".to_owned(), 1), ("s@n1".to_owned(), 3)]);
    // Its node was only cut off, and wrote more.
    bench.inherit(&[left("s", 1, 8..=11)]);
    assert_eq!(says(&bench.given()), ["10", "11"]);
    bench.inherit(&[]);
    assert_eq!(bench.shown(), [("s".to_owned(), 1)], "it is not shown any more");
}

/// An answer that is late is not taken for another outbox's.
#[test]
fn the_answers_of_one_that_is_not_looked_after_any_more_are_its_own() {
    let mut bench = Bench::new(false, RULE);
    bench.inherit(&[left("s", 1, 1..=3)]);
    let given = bench.given();
    assert_eq!(says(&given), ["1", "2", "3"]);
    bench.inherit(&[left("s", 2, 1..=3)]);
    let other = bench.given();
    assert_eq!(says(&other), ["1", "2", "3"]);
    bench.done(given.iter().map(|(number, _)| *number));
    assert!(bench.removed(2).is_empty());
    bench.done(other.iter().map(|(number, _)| *number));
    assert_eq!(bench.removed(2), [1, 2, 3]);
    // Its class is free again, as the first one's is.
    bench.inherit(&[left("s", 3, 4..=5)]);
    let third = bench.given();
    assert_eq!((says(&third), third[0].0 >> 56), (vec!["4", "5"], given[0].0 >> 56));
}

/// Rules that name the sink later find it; until then its rows are told.
#[test]
fn what_is_inherited_waits_for_its_sink() {
    let mut bench = Bench::new(false, RULE);
    bench.inherit(&[left("else", 1, 1..=3)]);
    assert!(bench.given().is_empty());
    assert_eq!(bench.shard.hook().unclaimed_rows(), 3);
    let (sender, rows) = mpsc::channel(BATCHES);
    let connected = Connected { name: "else".into(), generation: 1, rows: Some(sender) };
    let load = Load { rules: Vec::new(), files: Vec::new(), outboxes: vec![connected] };
    Hub::message(&mut bench.shard, &WorkerStats::default(), HubMessage::Load(Box::new(load)), bench.now);
    (bench.rows, bench.sink) = (rows, "else");
    bench.consumer(ConsumerEvent::Up { window: 100 });
    bench.shard.hook().rows(QueueId::inherited(1), (1..=3).map(row).collect(), bench.now);
    bench.shard.end_turn(bench.now);
    assert_eq!(says(&bench.given()), ["1", "2", "3"]);
    assert_eq!(bench.shard.hook().unclaimed_rows(), 0);
}
