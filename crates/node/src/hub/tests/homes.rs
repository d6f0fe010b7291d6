//! Rules that remember something, in a cluster.

use super::*;
use crate::hub::homes::{Home, Homes};
use ferrule_store::{Kept, StoreEvent, Ticket};
use std::time::Duration;

const RULE: &str =
    "CREATE RULE r AS INSERT INTO s SELECT payload.x AS x, lag(payload.x, 'k', 0) AS before FROM \"a/#\";
    CREATE RULE t WITH (durability = 'checkpoint', dialect = 'emqx') AS
        INSERT INTO s SELECT kv_store_put('n', kv_store_get('n', 0) + 1) AS ok, kv_store_get('n') AS n FROM \"b/#\";";

impl Bench {
    fn member() -> Self {
        Self::with(Node { clustered: true, ..node(false) }, "s", RULE)
    }

    /// At QoS 0: nothing is written at once.
    fn tell(&mut self, conn: ConnId, topic: &str, payload: &str) {
        let publish = Publish {
            dup: false,
            qos: QoS::AtMostOnce,
            retain: false,
            topic,
            packet_id: 0,
            properties: Properties::EMPTY,
            payload: payload.as_bytes(),
        };
        self.send(conn, &Packet::Publish(publish));
    }

    /// Whether anything but its CONNACK has been said to it that says that its first publish is safe.
    fn is_promised(&mut self, conn: ConnId) -> bool {
        self.shard.output(conn).is_some() && self.acknowledged(conn, 1)
    }

    fn kept(&mut self, rules: Vec<(u64, Vec<(Bytes, Bytes)>)>, lost: Vec<u64>) {
        self.shard.store_event(StoreEvent::Kept(Arc::new(Kept { rules, lost, given: Vec::new() })), self.now);
        self.shard.end_turn(self.now);
    }

    fn give(&mut self, rule: u64) {
        let kept = Kept { given: vec![rule], ..Kept::default() };
        self.shard.store_event(StoreEvent::Kept(Arc::new(kept)), self.now);
        self.shard.end_turn(self.now);
    }

    /// All that was submitted is stored.
    fn commit(&mut self) {
        let committed = StoreEvent::Committed { ticket: Ticket(1_000), took: Duration::ZERO };
        self.shard.store_event(committed, self.now);
        self.shard.end_turn(self.now);
    }

    fn says(&mut self) -> Vec<String> {
        self.take().iter().map(|row| String::from_utf8_lossy(&row.payload).into_owned()).collect()
    }

    /// What rules have remembered since they were asked last.
    fn remembered(&mut self, of: u64) -> Vec<(Bytes, Bytes)> {
        let mut batch = Vec::new();
        self.shard.hook().write(self.now, Which::All, &mut batch);
        let puts = batch.into_iter().filter_map(|op| match op {
            Op::StatePut { rule, key, value } if rule == of => Some((key, value)),
            _ => None,
        });
        puts.collect()
    }
}

#[test]
fn a_rule_that_nobody_keeps_lets_nothing_be_acknowledged_and_goes_on_where_another_was() {
    let rule = ferrule_rules::rule_id("r");
    let mut one = Bench::member();
    one.kept(vec![(rule, Vec::new())], Vec::new());
    assert_eq!(one.shard.hook().keeps(), [rule]);
    let device = one.connect("d", None);
    one.tell(device, "a/t", r#"{"x":1}"#);
    assert_eq!(one.says(), [r#"{"x":1,"before":0}"#]);
    let remembered = one.remembered(rule);
    assert_eq!(remembered.len(), 1);

    let mut two = Bench::member();
    assert!(two.shard.hook().keeps().is_empty());
    let device = two.connect("d", None);
    two.publish(device, "a/t", r#"{"x":2}"#, 1, &[]);
    assert!(two.says().is_empty());
    assert_eq!(two.shard.hook().homes.unkept, 1);
    assert!(!two.is_promised(device));
    two.kept(vec![(rule, remembered)], Vec::new());
    let device = two.connect("e", None);
    two.publish(device, "a/t", r#"{"x":2}"#, 1, &[]);
    assert_eq!(two.says(), [r#"{"x":2,"before":1}"#]);
    // It is another's: nothing of it is left here, nor written.
    two.kept(Vec::new(), vec![rule]);
    assert!(two.remembered(rule).is_empty());
    assert!(two.shard.hook().keeps().is_empty());
    two.kept(vec![(rule, Vec::new())], Vec::new());
    let device = two.connect("f", None);
    two.publish(device, "a/t", r#"{"x":3}"#, 1, &[]);
    assert_eq!(two.says(), [r#"{"x":3,"before":0}"#]);
}

/// What all rules share is one thing, with one keeper.
#[test]
fn what_rules_share_goes_as_one() {
    let mut one = Bench::member();
    one.kept(vec![(0, Vec::new())], Vec::new());
    let device = one.connect("d", None);
    one.tell(device, "b/t", "{}");
    one.tell(device, "b/t", "{}");
    assert_eq!(one.says(), [r#"{"ok":true,"n":1}"#, r#"{"ok":true,"n":2}"#]);
    let remembered = one.remembered(0);
    let mut two = Bench::member();
    two.kept(vec![(0, remembered)], Vec::new());
    let device = two.connect("d", None);
    two.publish(device, "b/t", "{}", 1, &[]);
    assert_eq!(two.says(), [r#"{"ok":true,"n":3}"#]);
    two.kept(vec![(0, Vec::new())], vec![0]);
    two.publish(device, "b/t", "{}", 2, &[]);
    assert_eq!(two.says(), [r#"{"ok":true,"n":1}"#]);
}

/// Who waits for a change that is lost has to try again.
#[test]
fn whoever_waits_for_what_is_lost_is_not_acknowledged() {
    let rule = ferrule_rules::rule_id("r");
    let mut bench = Bench::with(
        Node { clustered: true, ..node(false) },
        "s",
        "CREATE RULE r AS INSERT INTO s SELECT lag(payload.x, 'k') AS before FROM \"a/#\"",
    );
    bench.kept(vec![(rule, Vec::new())], Vec::new());
    let device = bench.connect("d", None);
    bench.publish(device, "a/t", r#"{"x":1}"#, 1, &[]);
    let given = bench.rows.try_recv().unwrap();
    bench.consumer(ConsumerEvent::Done(given.iter().map(|row| (row.seq, Delivered::Yes)).collect()));
    assert!(!bench.acknowledged(device, 1), "it waits for the commit of what is remembered");
    bench.kept(Vec::new(), vec![rule]);
    assert!(!bench.is_promised(device));
}

#[test]
fn the_last_who_says_so_has_it() {
    let mut homes = Homes::new(true);
    assert_eq!(homes.of(7), Home::Unknown);
    homes.kept_elsewhere(4, Some((7, true)));
    homes.kept_elsewhere(5, Some((8, true)));
    assert_eq!((homes.of(7), homes.of(8)), (Home::Peer(4), Home::Peer(5)));
    // A new one says so before the old one says that it does not any more.
    homes.kept_elsewhere(5, Some((7, true)));
    homes.kept_elsewhere(4, Some((7, false)));
    assert_eq!(homes.of(7), Home::Peer(5));
    homes.kept_elsewhere(5, None);
    assert_eq!((homes.of(7), homes.of(8)), (Home::Unknown, Home::Unknown));
    assert_eq!(Homes::new(false).of(7), Home::Here);
}

/// What is to be another's is written whether anybody waits for it or not, answered behind that, and not run meanwhile.
#[test]
fn what_is_given_away_is_written_first_and_nobody_else_is_disturbed() {
    let (rule, other) = (ferrule_rules::rule_id("r"), 0);
    let mut one = Bench::member();
    one.kept(vec![(rule, Vec::new()), (other, Vec::new())], Vec::new());
    let device = one.connect("d", None);
    one.tell(device, "a/t", r#"{"x":1}"#);
    one.tell(device, "b/t", "{}");
    assert_eq!(one.says().len(), 2);
    let hub = one.shard.hook();
    hub.giving(rule, 5);
    assert_eq!(hub.given(), None, "what it remembers is not written yet");
    assert!(hub.due(one.now, false, Duration::ZERO), "nor does that wait for anything");
    // The medium is full: it has to wait.
    hub.set_admitted(false);
    assert!(!hub.due(one.now, false, Duration::ZERO));
    assert!(one.remembered(rule).is_empty());
    assert_eq!(one.shard.hook().given(), None);
    one.shard.hook().set_admitted(true);
    let remembered = one.remembered(rule);
    assert_eq!(remembered.len(), 1);
    let hub = one.shard.hook();
    assert_eq!((hub.given(), hub.given()), (Some((rule, 5)), None));
    // Nobody has it: its publisher is to wait. What is another entity's goes on.
    let waits = one.connect("w", None);
    one.publish(waits, "a/t", r#"{"x":2}"#, 1, &[]);
    assert!(one.says().is_empty() && !one.is_promised(waits));
    assert_eq!(one.shard.hook().homes.unkept, 1);
    one.tell(device, "b/t", "{}");
    assert_eq!(one.says(), [r#"{"ok":true,"n":2}"#]);

    // It is nobody else's after all.
    one.kept(vec![(rule, remembered.clone())], Vec::new());
    one.tell(device, "a/t", r#"{"x":3}"#);
    assert_eq!(one.says(), [r#"{"x":3,"before":1}"#]);
    // An answer is asked for anew, and then it is another's.
    one.shard.hook().giving(rule, 6);
    one.remembered(rule);
    assert_eq!(one.shard.hook().given(), Some((rule, 6)));
    one.give(rule);
    assert_eq!(one.shard.hook().keeps(), [other]);
    one.tell(device, "a/t", r#"{"x":4}"#);
    one.tell(device, "b/t", "{}");
    assert_eq!(one.says(), [r#"{"ok":true,"n":3}"#], "and what it has not given goes on");
}

/// Those who wait for another entity's commit are answered by that: told to try again, they would be counted twice.
#[test]
fn whoever_waits_for_what_is_not_given_away_is_answered_by_its_commit() {
    let rules = "CREATE RULE r AS INSERT INTO s SELECT lag(payload.x, 'k') AS before FROM \"a/#\";
        CREATE RULE t AS INSERT INTO s SELECT lag(payload.x, 'k') AS before FROM \"b/#\";";
    let mut bench = Bench::with(Node { clustered: true, ..node(false) }, "s", rules);
    let [r, t] = ["r", "t"].map(ferrule_rules::rule_id);
    bench.kept(vec![(r, Vec::new()), (t, Vec::new())], Vec::new());
    let device = bench.connect("d", None);
    bench.publish(device, "b/t", r#"{"x":1}"#, 1, &[]);
    let given = bench.rows.try_recv().unwrap();
    bench.consumer(ConsumerEvent::Done(given.iter().map(|row| (row.seq, Delivered::Yes)).collect()));
    bench.give(r);
    assert!(bench.shard.output(device).is_some() && !bench.acknowledged(device, 1));
    bench.commit();
    assert!(bench.acknowledged(device, 1));
}
