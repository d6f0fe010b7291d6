//! Shards of two nodes: routes over links that come and go, and what is promised meanwhile.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
use common::{Asked, Does, Rig, START, limits};
use ferrule_broker::{Limits, RowElsewhere, Speaks, Strategy, SysTopic};
use ferrule_store::{Kept, MemoryStore, MemoryTable, QueueId, Restored, StoreEvent};
use std::sync::Arc;

/// Two nodes of one shard each, with a link between them.
struct Nodes {
    /// Of the store that they share; node `n` is member `n + 1`.
    table: MemoryTable,
    rigs: [Rig; 2],
    /// The other one's index at each.
    other: [u16; 2],
    linked: bool,
    /// Of the protocol.
    version: u32,
}

const A: usize = 0;
const B: usize = 1;

impl Nodes {
    fn new() -> Self {
        Self::speaking(4, 1)
    }

    /// Of this version of the protocol, and so many copies of each will.
    fn speaking(version: u32, will_copies: u8) -> Self {
        let table = MemoryTable::default();
        let mut rigs = [A, B].map(|at| {
            let limits = Limits { share: Strategy::RoundRobin, will_copies, ..limits().into() };
            // Another process has another number.
            Rig::over(limits, 1, at as u64 + 1, MemoryStore::of(&table, at as u32 + 1), START)
        });
        let other = [A, B].map(|at| {
            rigs[at].abroad = 1;
            rigs[at].shard().add_peer().unwrap()
        });
        let mut nodes = Self { table, rigs, other, linked: false, version };
        nodes.link();
        nodes.waits(true);
        nodes
    }

    fn link(&mut self) {
        self.linked = true;
        for at in [A, B] {
            let now = self.rigs[at].now;
            let other = self.other[at];
            self.rigs[at].shard().peer_linked(other, Speaks { version: self.version, first: true }, now);
        }
        self.settle();
    }

    /// A link is there over which everything goes in pieces of so many bytes, and nothing has been taken yet.
    fn link_in_pieces(&mut self, bytes: usize) {
        self.linked = true;
        for at in [A, B] {
            let (now, other) = (self.rigs[at].now, self.other[at]);
            self.rigs[at].shard().set_piece(bytes);
            self.rigs[at].shard().peer_linked(other, Speaks { version: self.version, first: true }, now);
            self.rigs[at].turn();
        }
    }

    fn told(&mut self, from: usize) -> bool {
        let other = self.other[from];
        self.rigs[from].shard().peer_told(other)
    }

    fn unlink(&mut self) {
        self.linked = false;
        for at in [A, B] {
            let now = self.rigs[at].now;
            let other = self.other[at];
            self.rigs[at].shard().peer_unlinked(other, now);
            self.rigs[at].turn();
        }
    }

    fn waits(&mut self, waits: bool) {
        for at in [A, B] {
            let now = self.rigs[at].now;
            let other = self.other[at];
            self.rigs[at].shard().peer_waits(other, waits, now);
            self.rigs[at].turn();
        }
    }

    /// Carries what one has for the other; whether there was anything.
    fn carry(&mut self, from: usize) -> bool {
        let to = 1 - from;
        let Some((_, _, batch)) = self.rigs[from].mail.pop_front() else { return false };
        assert!(self.linked, "nothing is said to who is out of reach");
        let now = self.rigs[to].now;
        let sender = self.other[to];
        assert_eq!(self.rigs[to].shard().parcels(sender, &batch, now), Ok(batch.len()));
        self.rigs[to].turn();
        true
    }

    fn settle(&mut self) {
        self.rigs.iter_mut().for_each(Rig::turn);
        while self.carry(A) | self.carry(B) {}
    }

    /// These are the members, and live, from now on.
    fn view(&mut self, number: u64, members: &[usize]) {
        self.table.set_view(number, members.iter().map(|at| (*at as u32 + 1, true)).collect());
        for &at in members {
            let now = self.rigs[at].now;
            self.rigs[at].shard().set_view(number, true, now);
        }
        self.commit();
    }

    /// All that was submitted is committed, and everybody hears of what comes of it.
    fn commit(&mut self) {
        for _ in 0..4 {
            self.rigs.iter_mut().for_each(Rig::commit);
            if self.linked {
                self.settle();
            }
        }
    }

    /// A client of a node does something, and everybody hears of it.
    fn send(&mut self, at: usize, name: &str, line: &str) {
        self.rigs[at].send(name, line);
        self.settle();
    }

    fn took(&mut self, at: usize, name: &str) -> Vec<String> {
        std::mem::take(&mut self.rigs[at].peer(name).packets).into()
    }

    /// A subscriber with a clean session, with its SUBACK.
    fn subscriber(&mut self, at: usize, name: &str, filter: &str) {
        self.send(at, name, &format!("connect id={name} v=5"));
        self.send(at, name, &format!("subscribe id=1 f={filter}"));
        assert_eq!(self.took(at, name).len(), 2, "{name} has its SUBACK");
    }

    fn publisher(&mut self, at: usize, name: &str) {
        self.send(at, name, &format!("connect id={name} v=5"));
        self.took(at, name);
    }
}

#[test]
fn a_suback_waits_for_the_other_node_and_then_all_is_heard() {
    let mut nodes = Nodes::new();
    nodes.publisher(B, "p");
    nodes.rigs[A].send("s", "connect id=s v=5");
    nodes.rigs[A].send("s", "subscribe id=1 f=a/+:1");
    assert_eq!(nodes.took(A, "s"), ["connack sp=0"], "the other node has not confirmed");
    nodes.settle();
    assert_eq!(nodes.took(A, "s"), ["suback 1 01"]);

    nodes.rigs[B].send("p", "publish t=a/b q=1 id=7 p=one");
    assert!(nodes.took(B, "p").is_empty(), "it has not arrived there");
    nodes.settle();
    assert_eq!(nodes.took(A, "s"), ["publish a/b q1 id=1 one"]);
    assert_eq!(nodes.took(B, "p"), ["puback 7"]);
    // What matches nowhere else costs no link traffic.
    nodes.rigs[B].send("p", "publish t=other q=1 id=8 p=two");
    assert!(!nodes.carry(B));
    nodes.send(A, "s", "unsubscribe id=2 f=a/+");
    nodes.send(B, "p", "publish t=a/b q=1 id=9 p=three");
    assert_eq!(nodes.rigs[B].count("forwarded_out"), 1);
}

#[test]
fn what_a_node_says_of_itself_is_heard_at_all_nodes_if_it_names_the_node() {
    let said = |topic: &str, everywhere| SysTopic { topic: topic.into(), value: "1".into(), everywhere };
    let topics = [said("$SYS/broker/x", false), said("$SYS/brokers/a/x", true)];
    let mut nodes = Nodes::new();
    nodes.subscriber(A, "here", "$SYS/#:1");
    nodes.subscriber(B, "there", "$SYS/#:1");
    let now = nodes.rigs[A].now;
    nodes.rigs[A].shard().publish_sys(&topics, now);
    nodes.settle();
    assert_eq!(nodes.took(A, "here"), ["publish $SYS/broker/x q0 1", "publish $SYS/brokers/a/x q0 1"]);
    assert_eq!(nodes.took(B, "there"), ["publish $SYS/brokers/a/x q0 1"]);
    // What is kept for later ones is the node's own.
    nodes.subscriber(B, "late", "$SYS/x:1");
    nodes.send(B, "late", "subscribe id=2 f=$SYS/#:1");
    assert_eq!(nodes.took(B, "late"), ["suback 2 01"]);
}

#[test]
fn routes_are_in_force_while_a_link_is_gone() {
    let mut nodes = Nodes::new();
    nodes.subscriber(A, "s", "a:1");
    nodes.subscriber(A, "t", "b:1");
    nodes.publisher(B, "p");
    nodes.publisher(B, "q");
    nodes.publisher(B, "r");
    nodes.unlink();
    // Nobody can be told, and nobody is told that it is acknowledged: the client keeps it.
    nodes.rigs[B].send("p", "publish t=a q=1 id=1 p=one");
    assert_eq!(nodes.took(B, "p"), ["disconnect 89"]);
    nodes.rigs[B].send("q", "publish t=a q=0 p=two");
    assert_eq!(nodes.rigs[B].count("dropped_partitioned"), 1);
    // Meanwhile one leaves and another comes.
    nodes.rigs[A].send("s", "unsubscribe id=2 f=a");
    nodes.rigs[A].send("t", "subscribe id=3 f=c/#:1");
    assert!(nodes.took(A, "t").is_empty(), "the other node is waited for");
    assert!(nodes.took(A, "s").is_empty());
    nodes.link();
    assert_eq!(nodes.took(A, "t"), ["suback 3 01"]);
    assert_eq!(nodes.took(A, "s").len(), 1);
    for (topic, id) in [("a", 1), ("b", 2), ("c/d", 3)] {
        nodes.send(B, "r", &format!("publish t={topic} q=1 id={id} p={topic}"));
    }
    assert!(nodes.took(A, "s").is_empty());
    assert_eq!(nodes.took(A, "t"), ["publish b q1 id=1 b", "publish c/d q1 id=2 c/d"]);
    // The first has no subscriber any more.
    assert_eq!(nodes.took(B, "r"), ["puback 1 10", "puback 2", "puback 3"]);
}

#[test]
fn what_was_under_way_is_to_be_sent_again() {
    let mut nodes = Nodes::new();
    nodes.subscriber(A, "s", "a:1");
    nodes.publisher(B, "p");
    nodes.rigs[B].send("p", "publish t=a q=1 id=1 p=one");
    // It arrives, and the answer does not.
    nodes.carry(B);
    assert_eq!(nodes.took(A, "s"), ["publish a q1 id=1 one"]);
    nodes.unlink();
    assert_eq!(nodes.took(B, "p"), ["disconnect 89"]);
    assert_eq!(nodes.rigs[B].receipts().0, 0);
}

#[test]
fn a_member_that_is_out_is_not_waited_for_and_one_that_is_gone_is_forgotten() {
    let mut nodes = Nodes::new();
    nodes.subscriber(A, "s", "a:1");
    nodes.subscriber(A, "g", "$share/g/b:1");
    nodes.publisher(B, "p");
    nodes.unlink();
    nodes.rigs[B].send("t", "connect id=t v=5");
    nodes.rigs[B].send("t", "subscribe id=1 f=x:1");
    assert_eq!(nodes.took(B, "t"), ["connack sp=0"]);
    nodes.waits(false);
    assert_eq!(nodes.took(B, "t"), ["suback 1 01"]);
    let (now, other) = (nodes.rigs[B].now, nodes.other[B]);
    nodes.rigs[B].shard().peer_gone(other, now);
    nodes.rigs[B].turn();
    // Till all have adopted what it had, who publishes to it waits.
    nodes.publisher(B, "q");
    nodes.rigs[B].send("q", "publish t=a q=1 id=1 p=x");
    nodes.rigs[B].send("q", "publish t=b q=1 id=2 p=x");
    nodes.rigs[B].send("p", "publish t=other q=1 id=9 p=x");
    assert_eq!((nodes.took(B, "q").len(), nodes.took(B, "p")), (0, vec!["puback 9 10".into()]));
    nodes.view(2, &[B]);
    assert_eq!(nodes.took(B, "q"), ["puback 1 10", "puback 2 10"]);
    for (topic, id) in [("a", 1), ("b", 2)] {
        nodes.rigs[B].send("p", &format!("publish t={topic} q=1 id={id} p=x"));
    }
    assert_eq!(nodes.took(B, "p"), ["puback 1 10", "puback 2 10"]);
    // Another life of that node is another peer.
    assert_ne!(nodes.rigs[B].shard().add_peer(), Some(other));
}

#[test]
fn a_group_has_its_members_on_both_nodes() {
    let mut nodes = Nodes::new();
    for (at, name) in [(A, "one"), (A, "two"), (B, "three")] {
        nodes.subscriber(at, name, "$share/g/a:1");
    }
    nodes.publisher(B, "p");
    for id in 1..=30 {
        nodes.send(B, "p", &format!("publish t=a q=0 p=n{id}"));
    }
    let got: Vec<usize> =
        [(A, "one"), (A, "two"), (B, "three")].map(|(at, name)| nodes.took(at, name).len()).into();
    assert_eq!(got, [10, 10, 10]);
    nodes.unlink();
    nodes.link();
    for id in 1..=30 {
        nodes.send(B, "p", &format!("publish t=a q=0 p=n{id}"));
    }
    let got: Vec<usize> =
        [(A, "one"), (A, "two"), (B, "three")].map(|(at, name)| nodes.took(at, name).len()).into();
    assert_eq!(got, [10, 10, 10]);
}

/// Both nodes are live members.
fn live(nodes: &mut Nodes) {
    for at in [A, B] {
        let now = nodes.rigs[at].now;
        nodes.rigs[at].shard().set_live(true, now);
    }
    nodes.view(1, &[A, B]);
    nodes.settle();
}

#[test]
fn a_client_is_connected_to_one_node() {
    let mut nodes = Nodes::new();
    live(&mut nodes);
    nodes.subscriber(A, "x", "a:1");
    nodes.rigs[B].now.wall_ms += 5;
    nodes.rigs[B].send("x", "connect id=x v=5");
    assert!(nodes.took(B, "x").is_empty(), "the other node has not said that it knows");
    nodes.settle();
    assert_eq!(nodes.took(A, "x"), ["disconnect 8e"]);
    assert_eq!(nodes.took(B, "x"), ["connack sp=0"]);
    assert_eq!(nodes.rigs[A].count("taken_elsewhere"), 1);
    // And back, with a clock that is behind: what was seen counts.
    nodes.rigs[A].now.wall_ms -= 60_000;
    nodes.send(A, "x", "connect id=x v=5");
    assert_eq!(
        (nodes.took(A, "x"), nodes.took(B, "x")),
        (vec!["connack sp=0".into()], vec!["disconnect 8e".into()])
    );
    // Another one is another's affair.
    nodes.publisher(B, "y");
    assert!(nodes.took(A, "x").is_empty());
}

#[test]
fn of_two_at_once_one_is_left() {
    let mut nodes = Nodes::new();
    live(&mut nodes);
    for at in [A, B] {
        nodes.rigs[at].send("x", "connect id=x v=5");
    }
    nodes.settle();
    let open: Vec<bool> = [A, B].map(|at| !nodes.rigs[at].peer("x").closed).into();
    assert_eq!(open.iter().filter(|open| **open).count(), 1, "{open:?}");
    let winner = usize::from(open[B]);
    assert_eq!(nodes.took(winner, "x"), ["connack sp=0"]);
}

#[test]
fn what_was_doubled_in_a_partition_is_resolved_when_it_heals() {
    let mut nodes = Nodes::new();
    live(&mut nodes);
    nodes.publisher(A, "x");
    nodes.unlink();
    nodes.waits(false);
    nodes.rigs[B].now.wall_ms += 1_000;
    nodes.rigs[B].send("x", "connect id=x v=5");
    assert_eq!(nodes.took(B, "x"), ["connack sp=0"], "nobody is waited for");
    nodes.link();
    assert_eq!((nodes.took(A, "x"), nodes.took(B, "x").len()), (vec!["disconnect 8e".into()], 0));
    // Who is no live member lets clients in without asking.
    let now = nodes.rigs[B].now;
    nodes.rigs[B].shard().set_live(false, now);
    nodes.rigs[B].send("z", "connect id=z v=5");
    assert_eq!(nodes.took(B, "z"), ["connack sp=0"]);
}

/// A client with a session that lives on, with its SUBACK at a node.
fn stored(nodes: &mut Nodes, at: usize, filter: &str) {
    nodes.send(at, "x", "connect id=x v=5 clean=0 expiry=100");
    nodes.commit();
    nodes.send(at, "x", &format!("subscribe id=1 f={filter}"));
    nodes.commit();
    assert_eq!(nodes.took(at, "x").len(), 2, "it has its SUBACK");
}

fn returns(nodes: &mut Nodes, at: usize) {
    nodes.rigs[at].now.wall_ms += 5;
    nodes.send(at, "x", "connect id=x v=5 clean=0 expiry=100");
    nodes.commit();
}

#[test]
fn a_session_moves_with_its_client() {
    let mut nodes = Nodes::new();
    live(&mut nodes);
    stored(&mut nodes, A, "a:1");
    nodes.publisher(B, "p");
    nodes.rigs[A].drop_peer("x");
    nodes.send(B, "p", "publish t=a q=1 id=1 p=one");
    assert!(nodes.took(B, "p").is_empty());
    nodes.rigs[A].wait_only(1_000);
    nodes.rigs[A].turn();
    nodes.commit();
    assert_eq!(nodes.took(B, "p"), ["puback 1"]);
    assert_eq!(nodes.table.owner("x"), Some(1));

    returns(&mut nodes, B);
    assert_eq!(nodes.table.owner("x"), Some(2));
    assert_eq!(nodes.took(B, "x"), ["connack sp=1", "publish a q1 id=1 one"]);
    nodes.send(B, "x", "puback 1");
    nodes.publisher(A, "q");
    nodes.send(A, "q", "publish t=a q=1 id=2 p=two");
    assert_eq!(nodes.took(B, "x"), ["publish a q1 id=2 two"]);
    nodes.send(B, "x", "puback 2");
    assert_eq!(nodes.took(A, "q"), ["puback 2"]);
    // Nothing is left of it where it was.
    nodes.send(B, "p", "publish t=a q=1 id=3 p=three");
    assert_eq!(nodes.took(B, "x"), ["publish a q1 id=3 three"]);
    assert_eq!(nodes.rigs[B].count("forwarded_out"), 1, "the first one");
    assert_eq!(nodes.rigs[A].receipts(), (0, 0));

    // And back, connected: the old connection is told.
    returns(&mut nodes, A);
    assert_eq!(nodes.took(B, "x"), ["disconnect 8e"]);
    assert_eq!(nodes.took(A, "x"), ["connack sp=1", "publish a q1 id=1 dup three"]);
}

#[test]
fn what_waits_in_memory_where_a_session_was_is_sent_on() {
    let mut nodes = Nodes::new();
    live(&mut nodes);
    stored(&mut nodes, A, "a:1");
    nodes.publisher(B, "p");
    nodes.publisher(A, "q");
    nodes.rigs[A].drop_peer("x");
    nodes.commit();
    // It is on its way to B, and has not been written at A.
    nodes.send(A, "q", "publish t=a q=1 id=1 p=one");
    nodes.rigs[B].now.wall_ms += 5;
    nodes.rigs[B].send("x", "connect id=x v=5 clean=0 expiry=100");
    nodes.settle();
    nodes.send(A, "q", "publish t=a q=1 id=2 p=two");
    nodes.send(B, "p", "publish t=a q=1 id=3 p=three");
    nodes.commit();
    let mut got = nodes.took(B, "x");
    assert_eq!(got.remove(0), "connack sp=1");
    let mut words: Vec<&str> = got.iter().filter_map(|packet| packet.rsplit(' ').next()).collect();
    words.sort_unstable();
    assert_eq!(words, ["one", "three", "two"]);
    for id in 1..=3 {
        nodes.send(B, "x", &format!("puback {id}"));
    }
    assert_eq!(nodes.took(A, "q"), ["puback 1", "puback 2"]);
    assert_eq!(nodes.took(B, "p"), ["puback 3"]);
    assert_eq!([A, B].map(|at| nodes.rigs[at].receipts()), [(0, 0); 2]);
}

/// Data may be ahead of control, which is another connection: the old owner hears from whoever sends that there is a new one, and then from that one.
#[test]
fn what_comes_behind_an_early_pass_is_not_sent_on() {
    let mut nodes = Nodes::new();
    live(&mut nodes);
    stored(&mut nodes, A, "a:1");
    nodes.publisher(B, "p");
    nodes.rigs[A].drop_peer("x");
    nodes.commit();
    nodes.rigs[B].now.wall_ms += 5;
    nodes.send(B, "x", "connect id=x v=5 clean=0 expiry=100");
    nodes.rigs[A].commit();
    nodes.settle();
    nodes.rigs[B].commit();
    assert_eq!(nodes.table.owner("x"), Some(2));
    nodes.rigs[B].send("p", "publish t=a q=1 id=1 p=one");
    nodes.rigs[B].turn();
    // Control is the first of them.
    assert_eq!(nodes.rigs[B].mail.len(), 3);
    nodes.rigs[B].mail.rotate_left(1);
    nodes.settle();
    nodes.commit();
    assert_eq!(nodes.took(B, "x"), ["connack sp=1", "publish a q1 id=1 one"]);
    nodes.send(B, "x", "puback 1");
    assert_eq!(nodes.took(B, "p"), ["puback 1"]);
    assert_eq!([A, B].map(|at| nodes.rigs[at].receipts()), [(0, 0); 2]);
}

/// A has the session of a client that is away, and has had no link to a third member.
fn out_of_touch_with_a_third() -> Nodes {
    let mut nodes = Nodes::new();
    live(&mut nodes);
    stored(&mut nodes, A, "a:1");
    nodes.rigs[A].drop_peer("x");
    nodes.commit();
    let now = nodes.rigs[A].now;
    nodes.rigs[A].shard().set_view(2, false, now);
    nodes
}

/// How many sessions A knows, once it has had a link to the third, if `linked`.
fn known_to_a(nodes: &mut Nodes, linked: bool) -> usize {
    let now = nodes.rigs[A].now;
    if linked {
        nodes.rigs[A].shard().set_view(3, true, now);
    }
    nodes.rigs[A].shard().sizes()[1]
}

/// Who is a member and has not been in touch yet may never have heard of the new owner: should that die at once, the old one's routes are all there is.
#[test]
fn a_session_that_has_moved_is_not_forgotten_before_there_is_a_link_to_each_member() {
    let mut nodes = out_of_touch_with_a_third();
    returns(&mut nodes, B);
    assert_eq!((nodes.took(B, "x"), known_to_a(&mut nodes, false)), (vec!["connack sp=1".to_owned()], 1));
    assert_eq!(known_to_a(&mut nodes, true), 0);
}

/// What it had given up, and nobody has taken, has another epoch: whoever sends on to it has to hear of that, or does so for ever.
#[test]
fn an_owner_that_takes_its_session_back_is_heard_by_the_one_before() {
    let mut nodes = out_of_touch_with_a_third();
    nodes.rigs[B].now.wall_ms += 5;
    nodes.send(B, "x", "connect id=x v=5 clean=0 expiry=100");
    nodes.rigs[A].commit();
    nodes.settle();
    nodes.rigs[B].commit();
    // Control is the first; the word that it sends what it has to itself is lost.
    assert_eq!(nodes.rigs[B].mail.len(), 2);
    nodes.rigs[B].mail.truncate(1);
    nodes.commit();
    nodes.rigs[B].drop_peer("x");
    nodes.commit();
    // Its client is at A for a moment, which has not taken it when the link breaks.
    nodes.rigs[A].now.wall_ms += 9;
    nodes.send(A, "x", "connect id=x v=5 clean=0 expiry=100");
    nodes.rigs[A].drop_peer("x");
    nodes.unlink();
    nodes.rigs[B].wait_only(6_000);
    for _ in 0..4 {
        nodes.rigs[B].commit();
    }
    nodes.link();
    for _ in 0..2 {
        nodes.rigs[A].wait_only(6_000);
        nodes.commit();
    }
    assert_eq!(known_to_a(&mut nodes, false), 1, "there is a member that may not know");
    assert_eq!(known_to_a(&mut nodes, true), 0);
}

/// A client that begins anew at the node which had its session, while another one has not taken that yet.
#[test]
fn what_was_given_up_is_not_the_client_s_next_session() {
    let mut nodes = Nodes::new();
    live(&mut nodes);
    stored(&mut nodes, A, "a:1");
    nodes.rigs[B].now.wall_ms += 5;
    nodes.send(B, "x", "connect id=x v=5 clean=0 expiry=100");
    nodes.rigs[A].commit();
    nodes.settle();
    // B has asked the store for it, which does not answer. The client is back where it was.
    nodes.rigs[B].drop_peer("x");
    nodes.rigs[A].now.wall_ms += 9;
    nodes.send(A, "x", "connect id=x v=5 clean=1 expiry=100");
    for _ in 0..4 {
        nodes.rigs[A].commit();
        nodes.settle();
    }
    assert_eq!(nodes.took(A, "x"), ["connack sp=0"]);
    nodes.commit();
    assert_eq!(nodes.table.owner("x"), Some(1));
    nodes.send(A, "x", "subscribe id=1 f=a:1");
    nodes.commit();
    nodes.publisher(B, "p");
    nodes.send(B, "p", "publish t=a q=1 id=1 p=one");
    nodes.commit();
    assert_eq!(nodes.took(A, "x"), ["suback 1 01", "publish a q1 id=1 one"]);
}

/// Whoever took it has ended it and is gone, unheard: the client is back where it was before, which has it in memory still.
#[test]
fn what_was_given_up_and_ended_is_not_gone_on_with() {
    let mut nodes = Nodes::new();
    live(&mut nodes);
    stored(&mut nodes, A, "a:1");
    nodes.rigs[B].now.wall_ms += 5;
    nodes.send(B, "x", "connect id=x v=5 clean=0 expiry=100");
    nodes.rigs[A].commit();
    nodes.settle();
    nodes.unlink();
    nodes.waits(false);
    nodes.rigs[B].commit();
    assert_eq!(nodes.table.owner("x"), Some(2));
    nodes.rigs[B].send("y", "connect id=x v=5 clean=1");
    nodes.commit();
    assert_eq!(nodes.table.owner("x"), None);
    let (now, other) = (nodes.rigs[A].now, nodes.other[A]);
    nodes.rigs[A].shard().peer_gone(other, now);
    nodes.view(2, &[A]);
    nodes.rigs[A].send("y", "connect id=x v=5 clean=0 expiry=100");
    nodes.commit();
    assert_eq!(nodes.took(A, "y"), ["connack sp=0"]);
    assert_eq!(nodes.table.owner("x"), Some(1));
    // Its next session is in the store, and found there.
    nodes.rigs[A].send("y", "subscribe id=1 f=b:1");
    nodes.commit();
    assert_eq!(nodes.took(A, "y"), ["suback 1 01"]);
    let stored = nodes.rigs[A].store.0.borrow().restored();
    let filters: Vec<_> = stored.subscriptions.iter().map(|(_, filter, _)| &**filter).collect();
    assert_eq!((stored.sessions.len(), filters), (1, vec!["b"]));
}

/// The store is slow, and the client does not wait for its CONNACK.
#[test]
fn who_comes_again_while_its_session_is_being_ended_gets_a_new_one() {
    let mut nodes = Nodes::new();
    live(&mut nodes);
    stored(&mut nodes, A, "a:1");
    nodes.rigs[A].now.wall_ms += 5;
    nodes.send(A, "y", "connect id=x v=5 clean=1 expiry=100");
    nodes.rigs[A].drop_peer("y");
    nodes.rigs[A].now.wall_ms += 5;
    nodes.send(A, "z", "connect id=x v=5 clean=0 expiry=100");
    assert!(nodes.took(A, "z").is_empty(), "the end of its session is not durable");
    nodes.commit();
    assert_eq!(nodes.took(A, "z"), ["connack sp=0"]);
    assert_eq!(nodes.table.owner("x"), Some(1));
}

#[test]
fn who_begins_anew_elsewhere_has_no_session_left() {
    let mut nodes = Nodes::new();
    live(&mut nodes);
    stored(&mut nodes, A, "a:1");
    nodes.publisher(B, "p");
    nodes.rigs[B].now.wall_ms += 5;
    nodes.send(B, "x", "connect id=x v=5");
    nodes.commit();
    assert_eq!(nodes.took(A, "x"), ["disconnect 8e"]);
    assert_eq!(nodes.took(B, "x"), ["connack sp=0"]);
    assert_eq!(nodes.table.owner("x"), None);
    nodes.send(B, "p", "publish t=a q=1 id=1 p=one");
    assert_eq!(nodes.took(B, "p"), ["puback 1 10"]);
    // The same with one that lives on.
    nodes.rigs[A].now.wall_ms += 9;
    nodes.send(A, "x", "connect id=x v=5 clean=1 expiry=100");
    nodes.commit();
    assert_eq!(nodes.took(A, "x"), ["connack sp=0"]);
    assert_eq!(nodes.table.owner("x"), Some(1));
}

#[test]
fn sessions_of_a_node_that_is_gone_are_adopted() {
    let mut nodes = Nodes::new();
    live(&mut nodes);
    stored(&mut nodes, A, "a:1");
    nodes.send(A, "w", "connect id=w v=5 clean=0 expiry=100 will=w/t");
    nodes.commit();
    nodes.publisher(B, "p");
    nodes.subscriber(B, "s", "w/#:0");
    nodes.unlink();
    nodes.waits(false);
    let (now, other) = (nodes.rigs[B].now, nodes.other[B]);
    nodes.rigs[B].shard().peer_gone(other, now);
    nodes.rigs[B].send("p", "publish t=a q=1 id=1 p=one");
    assert!(nodes.took(B, "p").is_empty(), "nobody has its session");
    nodes.view(2, &[B]);
    assert_eq!(nodes.took(B, "p"), ["puback 1"]);
    nodes.rigs[B].wait_only(1_000);
    nodes.rigs[B].turn();
    assert_eq!(nodes.took(B, "s"), ["publish w/t q0 will"], "its will, once");
    returns(&mut nodes, B);
    assert_eq!(nodes.took(B, "x"), ["connack sp=1", "publish a q1 id=1 one"]);

    // Who had them finds out, and publishes no will.
    nodes.table.set_view(3, [(1, true), (2, true)].into());
    let now = nodes.rigs[A].now;
    nodes.rigs[A].shard().set_view(3, true, now);
    nodes.rigs[A].commit();
    assert_eq!(
        (nodes.took(A, "x"), nodes.took(A, "w")),
        (vec!["disconnect 8e".into()], vec!["connack sp=0".into(), "disconnect 8e".into()])
    );

    assert!(nodes.took(B, "s").is_empty());
}

/// Who retains, at each node.
const RETAINERS: [&str; 2] = ["of-a", "of-b"];

/// A publisher at a node retains something; whether it has its PUBACK.
fn retains(nodes: &mut Nodes, at: usize, id: u16, topic: &str, text: &str) -> bool {
    nodes.send(at, RETAINERS[at], &format!("publish t={topic} q=1 id={id} r=1 p={text}"));
    nodes.rigs[at].commit();
    if nodes.linked {
        nodes.commit();
    }
    let took = nodes.took(at, RETAINERS[at]);
    assert!(took.len() < 2, "{took:?}");
    took.iter().any(|packet| packet.starts_with(&format!("puback {id}")))
}

/// What somebody who subscribes at a node finds.
fn finds(nodes: &mut Nodes, at: usize, name: &str, filter: &str) -> Vec<String> {
    nodes.send(at, name, &format!("connect id={name} v=5"));
    nodes.took(at, name);
    nodes.send(at, name, &format!("subscribe id=1 f={filter}"));
    let took = nodes.took(at, name);
    let mut found: Vec<_> = took.into_iter().filter(|packet| packet.starts_with("publish")).collect();
    found.sort();
    found
}

#[test]
fn what_is_retained_is_found_at_both_nodes() {
    let mut nodes = Nodes::new();
    live(&mut nodes);
    nodes.publisher(A, RETAINERS[A]);
    assert!(retains(&mut nodes, A, 1, "r/a", "one"));
    assert!(retains(&mut nodes, A, 2, "r/b", "two"));
    let found = finds(&mut nodes, B, "x", "r/+");
    assert_eq!(found.len(), 2, "{found:?}");
    nodes.publisher(B, RETAINERS[B]);
    assert!(retains(&mut nodes, B, 3, "r/a", ""));
    let found = finds(&mut nodes, A, "y", "r/+");
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("two"), "{found:?}");
}

#[test]
fn who_retains_waits_for_a_member_that_is_out_of_reach_until_it_knows_or_is_out() {
    let mut nodes = Nodes::new();
    live(&mut nodes);
    nodes.publisher(A, RETAINERS[A]);
    nodes.unlink();
    assert!(!retains(&mut nodes, A, 1, "r/a", "one"), "B serves, and does not know");
    nodes.link();
    nodes.commit();
    assert_eq!(nodes.took(A, RETAINERS[A]).len(), 1);
    assert_eq!(finds(&mut nodes, B, "x", "r/+").len(), 1);
    nodes.send(B, "x", "disconnect");

    nodes.unlink();
    assert!(!retains(&mut nodes, A, 2, "r/a", "two"));
    nodes.waits(false);
    assert_eq!(nodes.took(A, RETAINERS[A]).len(), 1, "B does not serve");
    assert!(retains(&mut nodes, A, 3, "r/a", "three"));
}

/// A node that was removed may still write: whoever serves since has not heard it.
#[test]
fn what_is_retained_is_acknowledged_while_its_node_is_known_to_be_a_member() {
    let mut nodes = Nodes::new();
    live(&mut nodes);
    nodes.publisher(A, RETAINERS[A]);
    for (id, topic) in [(1, "r/a"), (2, "r/b")] {
        nodes.rigs[A].may = Some((true, true));
        nodes.send(A, RETAINERS[A], &format!("publish t={topic} q=1 id={id} r=1 p=x"));
        nodes.rigs[A].may = Some((false, false));
        nodes.commit();
        assert!(nodes.took(A, RETAINERS[A]).is_empty(), "{topic} was written when it may have been removed");
        nodes.rigs[A].may = Some((true, true));
        nodes.settle();
        assert_eq!(nodes.took(A, RETAINERS[A]), [format!("puback {id}")]);
    }
}

#[test]
fn two_sides_are_the_same_when_a_partition_has_healed() {
    let mut nodes = Nodes::new();
    live(&mut nodes);
    nodes.publisher(A, RETAINERS[A]);
    nodes.publisher(B, RETAINERS[B]);
    for (id, topic) in [(1, "r/old"), (2, "r/both"), (3, "r/cleared")] {
        assert!(retains(&mut nodes, A, id, topic, "before"));
    }
    nodes.unlink();
    nodes.waits(false);
    assert!(retains(&mut nodes, A, 4, "r/a", "of-a"));
    assert!(retains(&mut nodes, B, 4, "r/b", "of-b"));
    assert!(retains(&mut nodes, A, 5, "r/both", "earlier"));
    nodes.rigs[B].wait_us(5_000);
    assert!(retains(&mut nodes, B, 5, "r/both", "later"));
    assert!(retains(&mut nodes, B, 6, "r/cleared", ""));
    nodes.link();
    nodes.commit();
    let found = finds(&mut nodes, A, "x", "r/#");
    assert_eq!(found, finds(&mut nodes, B, "y", "r/#"));
    assert_eq!(found.len(), 4, "{found:?}");
    let both: Vec<_> = found.iter().filter(|packet| packet.contains("r/both")).collect();
    assert!(both[0].contains("later"), "{both:?}");
    // What was not touched was not sent again but with what is as old.
    assert!(nodes.rigs[A].count("retained_caught_up") <= 4);
}

#[test]
fn a_node_knows_its_view_when_it_knows_what_others_retained() {
    let mut nodes = Nodes::new();
    live(&mut nodes);
    nodes.view(1, &[A, B]);
    assert_eq!(nodes.rigs[B].shard().settled_in(), Some(1));
    nodes.unlink();
    assert_eq!(nodes.rigs[B].shard().settled_in(), None);
    nodes.link();
    nodes.commit();
    assert_eq!(nodes.rigs[B].shard().settled_in(), Some(1));
}

/// With one other node there is one copy, however many there are to be, and whichever version of the protocol it speaks.
#[test]
fn a_will_is_its_keepers_when_its_node_is_gone() {
    for (version, copies) in [(2, 1), (3, 1), (4, 1), (3, 2), (4, 2)] {
        is_its_keepers(Nodes::speaking(version, copies));
    }
}

fn is_its_keepers(mut nodes: Nodes) {
    live(&mut nodes);
    for at in [A, B] {
        let (other, now) = (nodes.other[at], nodes.rigs[at].now);
        nodes.rigs[at].shard().peers_serve(other..other + 1, now);
    }
    nodes.subscriber(B, "w", "w/#:1");
    for name in ["here", "there"] {
        nodes.send(A, name, &format!("connect id={name} v=5 will=w/{name} wq=1"));
        assert_eq!(nodes.took(A, name), ["connack sp=0"]);
    }
    // While all is well it is its node that publishes it, when the keeper has forgotten its copy.
    nodes.rigs[A].cut_peer("here");
    assert!(nodes.took(B, "w").is_empty());
    nodes.settle();
    assert_eq!(nodes.took(B, "w"), ["publish w/here q1 id=1 will"]);
    nodes.send(B, "w", "puback 1");

    nodes.unlink();
    let (other, now) = (nodes.other[B], nodes.rigs[B].now);
    nodes.rigs[B].shard().peer_waits(other, false, now);
    nodes.rigs[B].shard().peer_gone(other, now);
    nodes.view(2, &[B]);
    nodes.rigs[B].turn();
    assert_eq!(nodes.took(B, "w"), ["publish w/there q1 id=2 will"]);
    assert_eq!(nodes.rigs[B].count("wills_inherited"), 1);
    // The one that was taken for dead leaves it to the others.
    let now = nodes.rigs[A].now;
    nodes.rigs[A].shard().set_live(false, now);
    nodes.rigs[A].turn();
    assert_eq!(nodes.took(A, "there"), ["disconnect 89"]);
    nodes.commit();
    assert_eq!(nodes.rigs[A].receipts(), (0, 0), "nothing of it is under way");
    nodes.link();
    nodes.commit();
    assert!(nodes.took(B, "w").is_empty());
}

/// And removed: B is left.
fn a_is_killed(nodes: &mut Nodes) {
    nodes.unlink();
    nodes.waits(false);
    let (other, now) = (nodes.other[B], nodes.rigs[B].now);
    nodes.rigs[B].shard().peer_gone(other, now);
    nodes.view(2, &[B]);
    nodes.rigs[B].turn();
}

/// Its client came before its node served, which makes no copies then, and has to wait for the store until it does.
#[test]
fn a_connack_waits_for_the_copy_that_its_node_makes_when_it_goes_live() {
    let mut nodes = Nodes::new();
    live(&mut nodes);
    nodes.subscriber(B, "w", "w/#:1");
    nodes.send(A, "x", "connect id=x v=5 clean=0 expiry=100");
    nodes.commit();
    nodes.rigs[A].drop_peer("x");
    let now = nodes.rigs[A].now;
    nodes.rigs[A].shard().set_live(false, now);
    nodes.settle();
    // Its old session ends, which has to be durable.
    nodes.rigs[A].send("y", "connect id=x v=5 clean=1 will=w/y wq=1");
    nodes.settle();
    assert!(nodes.took(A, "y").is_empty());
    let now = nodes.rigs[A].now;
    nodes.rigs[A].shard().set_live(true, now);
    nodes.rigs[A].commit();
    assert!(nodes.took(A, "y").is_empty(), "the copy is on its way");
    nodes.settle();
    assert_eq!(nodes.took(A, "y"), ["connack sp=0"]);
    a_is_killed(&mut nodes);
    assert_eq!(nodes.took(B, "w"), ["publish w/y q1 id=1 will"]);
}

/// The only other node has been silent for longer than its lease: it is not waited for, but is a live member that may have the copy in a moment.
#[test]
fn a_connack_waits_for_somebody_to_have_the_copy() {
    for comes_back in [true, false] {
        let mut nodes = Nodes::new();
        live(&mut nodes);
        let (other, now) = (nodes.other[A], nodes.rigs[A].now);
        nodes.rigs[A].shard().peers_serve(other..other + 1, now);
        nodes.rigs[A].shard().peer_waits(other, false, now);
        nodes.send(A, "x", "connect id=x v=5 will=w/x wq=1");
        nodes.send(A, "y", "connect id=y v=5");
        assert_eq!((nodes.took(A, "x"), nodes.took(A, "y")), (vec![], vec!["connack sp=0".into()]));
        if comes_back {
            nodes.rigs[A].shard().peer_waits(other, true, now);
            nodes.rigs[A].turn();
            assert!(nodes.took(A, "x").is_empty(), "the copy is on its way");
            nodes.settle();
        } else {
            nodes.unlink();
            nodes.rigs[A].shard().peer_gone(other, now);
            nodes.view(2, &[A]);
        }
        assert_eq!(nodes.took(A, "x"), ["connack sp=0"]);
    }
}

/// It comes while there is no link to the only other node, which is waited for.
#[test]
fn who_comes_without_a_link_has_a_copy_made_when_there_is_one() {
    let mut nodes = Nodes::new();
    live(&mut nodes);
    nodes.subscriber(B, "w", "w/#:1");
    let (other, now) = (nodes.other[A], nodes.rigs[A].now);
    nodes.rigs[A].shard().peers_serve(other..other + 1, now);
    nodes.unlink();
    nodes.rigs[A].send("x", "connect id=x v=5 will=w/x wq=1");
    assert!(nodes.took(A, "x").is_empty());
    nodes.link();
    assert_eq!(nodes.took(A, "x"), ["connack sp=0"]);
    a_is_killed(&mut nodes);
    assert_eq!(nodes.took(B, "w"), ["publish w/x q1 id=1 will"]);
}

/// A client that is moved off and comes to the other node has not died; one that does not come has.
#[test]
fn wills_of_who_is_moved_off_wait_for_news_from_the_other_node() {
    let mut nodes = Nodes::new();
    live(&mut nodes);
    nodes.subscriber(B, "w", "w/#:1");
    for (name, session) in
        [("clean", ""), ("gone", ""), ("stored", " clean=0 expiry=100"), ("lost", " clean=0 expiry=100")]
    {
        nodes.send(A, name, &format!("connect id={name} v=5 will=w/{name} wq=1{session}"));
        nodes.commit();
        assert_eq!(nodes.took(A, name), ["connack sp=0"]);
    }
    let now = nodes.rigs[A].now;
    nodes.rigs[A].shard().set_draining(true);
    let left = nodes.rigs[A].shard().drain(3, now);
    assert_eq!((left.moved, left.clients), (3, 1));
    let left = nodes.rigs[A].shard().drain(3, now);
    assert_eq!((left.moved, left.clients, left.wills), (1, 0, 2));
    nodes.settle();
    for name in ["clean", "gone", "stored", "lost"] {
        assert_eq!(nodes.took(A, name), ["disconnect 9c"], "{name}");
    }
    nodes.commit();
    for name in ["clean", "stored"] {
        let session = if name == "clean" { "" } else { " clean=0 expiry=100" };
        nodes.send(B, name, &format!("connect id={name} v=5 will=w/{name} wq=1{session}"));
        nodes.commit();
        assert_eq!(nodes.took(B, name), [if name == "clean" { "connack sp=0" } else { "connack sp=1" }]);
    }
    assert_eq!(nodes.rigs[A].shard().drain(0, now).wills, 1, "it has heard of one");
    assert!(nodes.took(B, "w").is_empty());
    for _ in 0..32 {
        nodes.rigs.iter_mut().for_each(|rig| rig.wait_only(1_000));
        let now = nodes.rigs[A].now;
        nodes.rigs[A].shard().drain(0, now);
        nodes.settle();
        nodes.commit();
    }
    let mut told = nodes.took(B, "w");
    told.sort();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].contains("w/gone") && told[1].contains("w/lost"), "{told:?}");
}

/// A session that was another node's for a moment and is here again: rows that were asked for before that are not what there is now.
#[test]
fn rows_that_were_read_for_an_earlier_owner_are_not_taken_for_those_of_now() {
    let mut nodes = Nodes::new();
    live(&mut nodes);
    stored(&mut nodes, B, "a:1");
    nodes.rigs[B].cut_peer("x");
    nodes.commit();
    nodes.publisher(B, "p");
    for id in 1..4 {
        nodes.send(B, "p", &format!("publish t=a q=1 id={id} p=m{id}"));
        nodes.commit();
    }
    assert_eq!(nodes.took(B, "p").len(), 3);
    // It comes elsewhere, and its backlog is being read.
    nodes.rigs[A].now.wall_ms += 5;
    nodes.send(A, "x", "connect id=x v=5 clean=0 expiry=100");
    // Turn by turn, so that the store's answer is not there yet.
    while nodes.rigs[A].peer("x").packets.is_empty() {
        nodes.rigs[B].commit();
        nodes.rigs[A].commit_only();
        nodes.rigs[A].turn_one(0);
        while nodes.carry(A) {}
        while let Some((_, _, batch)) = nodes.rigs[B].mail.pop_front() {
            let (sender, now) = (nodes.other[A], nodes.rigs[A].now);
            assert_eq!(nodes.rigs[A].shard().parcels(sender, &batch, now), Ok(batch.len()));
            nodes.rigs[A].turn_one(0);
        }
    }
    let (restored, now) = (nodes.rigs[A].store.0.borrow().restored(), nodes.rigs[A].now);
    let session = restored.sessions[0].0;
    nodes.rigs[A].shard().store_event(StoreEvent::Lost { sessions: [session].into() }, now);
    let epochs = vec![(session, 3)];
    let restored = Arc::new(Restored { epochs, ..restored });
    nodes.rigs[A].shard().store_event(StoreEvent::Adopted { view: 1, restored, done: true }, now);
    // The answer to what was asked before: then there was nothing.
    let queue = QueueId::session(session);
    nodes.rigs[A].shard().store_event(StoreEvent::Rows { queue, rows: Vec::new() }, now);
    nodes.rigs[A].turn();
    nodes.rigs[A].cut_peer("x");
    returns(&mut nodes, A);
    let took = nodes.took(A, "x");
    assert_eq!(took.len(), 4, "its CONNACK, and all that waits: {took:?}");
}

/// All that a node has takes many pieces; one is under way at a time.
#[test]
fn what_a_node_has_is_told_in_pieces_and_relied_on_behind_the_last() {
    let mut nodes = Nodes::new();
    nodes.send(A, "s", "connect id=s v=5");
    for n in 0..50 {
        nodes.send(A, "s", &format!("subscribe id=1 f=a/{n}/{}:1", if n % 2 == 0 { "x" } else { "+" }));
    }
    nodes.subscriber(A, "g", "$share/g/shared/+:1");
    nodes.took(A, "s");
    nodes.publisher(B, "p");
    nodes.unlink();
    // While they hear nothing of each other: one more, which waits, and one less.
    nodes.rigs[A].send("s", "subscribe id=2 f=lost:1");
    nodes.rigs[A].send("s", "unsubscribe id=3 f=a/0/x");
    nodes.link_in_pieces(40);
    let (mut pieces, mut longest, mut took) = (0, 0, Vec::new());
    while !nodes.told(A) {
        let sent: Vec<usize> = nodes.rigs[A].mail.iter().map(|(_, _, batch)| batch.len()).collect();
        longest = longest.max(sent.iter().copied().max().unwrap_or(0));
        pieces += 1;
        let got = nodes.took(A, "s");
        assert!(got.iter().all(|packet| packet.starts_with("publish")), "nothing is promised yet: {got:?}");
        took.extend(got);
        match pieces {
            // One behind the cursor and one ahead of it go, one that has gone comes again, and one is new.
            3 => nodes.rigs[A].send("s", "unsubscribe id=4 f=a/2/x"),
            4 => nodes.rigs[A].send("s", "unsubscribe id=5 f=a/49/+"),
            5 => nodes.rigs[A].send("s", "subscribe id=6 f=a/2/x:1"),
            6 => nodes.rigs[A].send("s", "subscribe id=7 f=new/#:1"),
            _ => {}
        }
        // What was known is in force, what has been told is, too.
        if pieces == 8 {
            nodes.rigs[B].send("p", "publish t=a/47/x q=0 p=known");
        }
        if pieces == 14 {
            nodes.rigs[B].send("p", "publish t=new/x q=0 p=new");
        }
        assert!(nodes.carry(A) | nodes.carry(B), "somebody has something to say");
        assert!(pieces < 1_000);
    }
    assert!(pieces > 15 && longest < 200, "{pieces} pieces, the longest of {longest} bytes");
    nodes.settle();
    took.extend(nodes.took(A, "s"));
    for packet in ["suback 2 01", "suback 6 01", "suback 7 01"] {
        assert!(took.iter().any(|took| took == packet), "{packet}: {took:?}");
    }
    for payload in ["known", "new"] {
        assert!(took.iter().any(|took| took.ends_with(payload)), "{payload}: {took:?}");
    }
    for (topic, is_there) in [
        ("a/0/x", false),
        ("a/1/x", true),
        ("a/2/x", true),
        ("a/48/x", true),
        ("a/49/x", false),
        ("lost", true),
        ("new/y/z", true),
    ] {
        nodes.send(B, "p", &format!("publish t={topic} q=1 id=1 p=x"));
        let puback = if is_there { "puback 1" } else { "puback 1 10" };
        let got = nodes.took(A, "s");
        assert_eq!(got.len(), usize::from(is_there), "{topic}: {got:?}");
        got.iter().for_each(|packet| {
            let id = packet.split("id=").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().to_owned();
            nodes.send(A, "s", &format!("puback {id}"));
        });
        assert_eq!(nodes.took(B, "p"), [puback], "{topic}");
    }
    nodes.send(B, "p", "publish t=shared/x q=0 p=x");
    assert_eq!(nodes.took(A, "g").len(), 1);
}

#[test]
fn a_link_that_breaks_in_the_middle_begins_anew_and_what_was_known_stays() {
    let mut nodes = Nodes::new();
    nodes.send(A, "s", "connect id=s v=5");
    for n in 0..30 {
        nodes.send(A, "s", &format!("subscribe id=1 f=a/{n}:0"));
    }
    nodes.took(A, "s");
    nodes.publisher(B, "p");
    for _ in 0..3 {
        nodes.unlink();
        nodes.link_in_pieces(40);
        for _ in 0..5 {
            assert!(nodes.carry(A) | nodes.carry(B));
        }
        assert!(!nodes.told(A));
        nodes.rigs[A].mail.clear();
        nodes.rigs[B].mail.clear();
    }
    nodes.unlink();
    nodes.rigs[A].send("s", "unsubscribe id=2 f=a/3");
    nodes.link_in_pieces(40);
    nodes.settle();
    nodes.took(A, "s");
    assert!(nodes.told(A) && nodes.told(B));
    let other = nodes.other[A];
    assert!(nodes.rigs[A].shard().peer_knows(other));
    for n in 0..30 {
        nodes.send(B, "p", &format!("publish t=a/{n} q=0 p=x"));
    }
    assert_eq!(nodes.took(A, "s").len(), 29);
    assert_eq!(nodes.rigs[B].count("forwarded_out"), 29, "nothing is left of the one that is no more");
}

/// What is there when a member begins to be waited for is confirmed before that counts: it may have been lost with a link.
#[test]
fn who_is_waited_for_is_relied_on_when_it_has_confirmed_what_there_was() {
    let mut nodes = Nodes::new();
    nodes.waits(false);
    nodes.rigs[A].send("s", "connect id=s v=5");
    nodes.rigs[A].send("s", "subscribe id=1 f=a:0");
    assert_eq!(nodes.took(A, "s"), ["connack sp=0", "suback 1 00"]);
    let (other, now) = (nodes.other[A], nodes.rigs[A].now);
    nodes.rigs[A].shard().peer_waits(other, true, now);
    assert!(!nodes.rigs[A].shard().peer_knows(other), "it is on its way");
    nodes.rigs[A].mail.clear();
    nodes.unlink();
    assert!(!nodes.rigs[A].shard().peer_knows(other));
    nodes.link();
    assert!(nodes.rigs[A].shard().peer_knows(other));
}

/// Each of the two takes the other for dead: in the views of these numbers.
fn part(nodes: &mut Nodes, view: u64) {
    nodes.unlink();
    for at in [A, B] {
        let (other, now) = (nodes.other[at], nodes.rigs[at].now);
        nodes.rigs[at].shard().peer_waits(other, false, now);
        nodes.rigs[at].shard().peer_gone(other, now);
        nodes.view(view + at as u64, &[at]);
    }
}

/// They are in touch again, as members of one view.
fn join_again(nodes: &mut Nodes, view: u64) {
    nodes.link();
    nodes.waits(true);
    nodes.view(view, &[A, B]);
}

fn asks(nodes: &mut Nodes, at: usize, name: &str, id: u16) -> Vec<String> {
    nodes.send(at, name, &format!("subscribe id={id} f=$exclusive/t"));
    nodes.took(at, name)
}

#[test]
fn an_exclusive_subscription_is_one_client_s_on_all_nodes() {
    let mut nodes = Nodes::new();
    live(&mut nodes);
    for (at, name) in [(A, "a"), (A, "c"), (B, "b"), (B, "d")] {
        nodes.publisher(at, name);
    }
    nodes.rigs[A].send("a", "subscribe id=1 f=$exclusive/t f=x");
    assert!(nodes.took(A, "a").is_empty(), "the other node has not answered");
    nodes.settle();
    assert_eq!(nodes.took(A, "a"), ["suback 1 00 00"]);
    assert_eq!(asks(&mut nodes, B, "b", 1), ["suback 1 97"]);
    assert_eq!(asks(&mut nodes, A, "c", 1), ["suback 1 97"]);
    assert_eq!(asks(&mut nodes, A, "a", 2), ["suback 2 00"]);
    nodes.send(B, "d", "publish t=t q=0 p=x");
    assert_eq!((nodes.took(A, "a").len(), nodes.took(B, "b").len()), (1, 0));
    nodes.send(A, "a", "unsubscribe id=3 f=$exclusive/t");
    nodes.took(A, "a");
    assert_eq!(asks(&mut nodes, B, "b", 2), ["suback 2 00"]);
    assert_eq!(asks(&mut nodes, A, "a", 4), ["suback 4 97"]);
    // With its session.
    nodes.rigs[B].cut_peer("b");
    nodes.settle();
    assert_eq!(asks(&mut nodes, A, "c", 2), ["suback 2 00"]);
    // Over a new link.
    nodes.unlink();
    nodes.link();
    assert_eq!(asks(&mut nodes, B, "d", 3), ["suback 3 97"]);
    assert_eq!([A, B].map(|at| nodes.rigs[at].count("exclusive_lost")), [0, 0]);
}

#[test]
fn of_two_who_claim_at_once_one_has_it() {
    for late in [A, B] {
        let mut nodes = Nodes::new();
        live(&mut nodes);
        nodes.publisher(A, "a");
        nodes.publisher(B, "b");
        nodes.rigs[late].now.wall_ms += 5;
        nodes.rigs[A].send("a", "subscribe id=1 f=$exclusive/t");
        nodes.rigs[B].send("b", "subscribe id=1 f=$exclusive/t");
        nodes.settle();
        let got = [nodes.took(A, "a"), nodes.took(B, "b")];
        assert_eq!(got[late], ["suback 1 97"]);
        assert_eq!(got[1 - late], ["suback 1 00"]);
    }
}

#[test]
fn an_exclusive_subscription_that_was_doubled_in_a_partition_is_the_earlier_one_s() {
    let mut nodes = Nodes::new();
    live(&mut nodes);
    nodes.publisher(A, "a");
    nodes.publisher(B, "b");
    nodes.unlink();
    nodes.waits(false);
    // While one is out of reach and may have it, nobody gets it.
    assert!(asks(&mut nodes, A, "a", 9).is_empty());
    nodes.link();
    assert_eq!(nodes.took(A, "a"), ["suback 9 00"]);
    nodes.send(A, "a", "unsubscribe id=9 f=$exclusive/t");
    nodes.took(A, "a");
    part(&mut nodes, 2);
    nodes.rigs[B].now.wall_ms += 5;
    nodes.rigs[A].send("a", "subscribe id=1 f=$exclusive/t");
    nodes.rigs[B].send("b", "subscribe id=1 f=$exclusive/t");
    assert_eq!([nodes.took(A, "a"), nodes.took(B, "b")], [["suback 1 00"], ["suback 1 00"]]);
    join_again(&mut nodes, 4);
    assert_eq!(nodes.took(B, "b"), ["disconnect 97"]);
    assert!(nodes.took(A, "a").is_empty());
    assert_eq!([A, B].map(|at| nodes.rigs[at].count("exclusive_lost")), [0, 1]);
    // Of one that was removed meanwhile it is the other's.
    nodes.publisher(B, "b");
    nodes.send(A, "a", "unsubscribe id=2 f=$exclusive/t");
    part(&mut nodes, 5);
    nodes.rigs[A].send("a", "subscribe id=3 f=$exclusive/t");
    nodes.rigs[B].send("b", "subscribe id=3 f=$exclusive/t");
    let now = nodes.rigs[A].now;
    nodes.rigs[A].shard().set_live(false, now);
    join_again(&mut nodes, 7);
    nodes.rigs[A].shard().set_live(true, now);
    nodes.settle();
    assert_eq!(nodes.took(B, "b"), ["suback 3 00"]);
    assert_eq!(nodes.took(A, "a").last().map(String::as_str), Some("disconnect 97"));
}

#[test]
fn a_stored_session_has_its_exclusive_subscription_wherever_it_is() {
    let mut nodes = Nodes::new();
    live(&mut nodes);
    stored(&mut nodes, A, "$exclusive/t:1");
    nodes.publisher(A, "a");
    nodes.publisher(B, "b");
    // While its client is away.
    nodes.rigs[A].cut_peer("x");
    nodes.commit();
    assert_eq!(asks(&mut nodes, B, "b", 1), ["suback 1 97"]);
    // At another node, and back.
    for (n, (at, other)) in [(B, "a"), (A, "b"), (B, "a")].into_iter().enumerate() {
        returns(&mut nodes, at);
        assert_eq!(nodes.took(at, "x"), ["connack sp=1"], "{n}");
        let id = n as u16 + 2;
        assert_eq!(asks(&mut nodes, 1 - at, other, id), [format!("suback {id} 97")]);
        nodes.send(1 - at, "x", "publish t=t q=0 p=x");
        nodes.rigs[at].cut_peer("x");
        nodes.commit();
    }
    // Its node is gone, and the other adopts it: who asks meanwhile waits for that.
    nodes.unlink();
    let (other, now) = (nodes.other[A], nodes.rigs[A].now);
    nodes.rigs[A].shard().peer_waits(other, false, now);
    nodes.rigs[A].shard().peer_gone(other, now);
    nodes.rigs[A].send("a", "subscribe id=9 f=$exclusive/t");
    assert!(nodes.took(A, "a").is_empty());
    nodes.view(2, &[A]);
    assert_eq!(nodes.took(A, "a"), ["suback 9 97"]);
    returns(&mut nodes, A);
    assert_eq!(nodes.took(A, "x"), ["connack sp=1"]);
    nodes.send(A, "x", "unsubscribe id=3 f=$exclusive/t");
    nodes.commit();
    assert_eq!(asks(&mut nodes, A, "a", 10), ["suback 10 00"]);
    assert_eq!([A, B].map(|at| nodes.rigs[at].count("exclusive_lost")), [0, 0]);
}

#[test]
fn who_may_not_acknowledge_grants_no_exclusive_subscription() {
    let mut nodes = Nodes::new();
    live(&mut nodes);
    nodes.publisher(A, "a");
    nodes.rigs[A].may = Some((false, false));
    nodes.waits(false);
    assert!(asks(&mut nodes, A, "a", 1).is_empty());
    nodes.rigs[A].may = Some((true, true));
    nodes.settle();
    assert_eq!(nodes.took(A, "a"), ["suback 1 00"]);
}

#[test]
fn towards_a_node_of_before_each_has_its_own_exclusive_subscriptions() {
    let mut nodes = Nodes::new();
    live(&mut nodes);
    nodes.unlink();
    nodes.version = 2;
    nodes.link();
    nodes.publisher(A, "a");
    nodes.publisher(B, "b");
    assert_eq!(asks(&mut nodes, A, "a", 1), ["suback 1 00"]);
    assert_eq!(asks(&mut nodes, B, "b", 1), ["suback 1 00"]);
    nodes.unlink();
    nodes.version = 3;
    nodes.link();
    assert_eq!([A, B].map(|at| nodes.rigs[at].count("exclusive_lost")).iter().sum::<u64>(), 1);
}

/// Who runs a rule on the messages of all nodes is told on each link, and of who is out of reach it is not known any more.
#[test]
fn other_nodes_are_told_which_rules_run_here() {
    let mut nodes = Nodes::new();
    let heard = |nodes: &mut Nodes| std::mem::take(&mut nodes.rigs[B].hook.0.borrow_mut().kept_elsewhere);
    let keeps = |nodes: &mut Nodes, rules: &[u64]| {
        nodes.rigs[A].hook.0.borrow_mut().keeps = rules.to_vec();
        nodes.rigs[A].shard().tell_kept();
        nodes.settle();
    };
    keeps(&mut nodes, &[7, 8]);
    let a = nodes.other[B];
    assert_eq!(heard(&mut nodes), [(a, Some((7, true))), (a, Some((8, true)))]);
    keeps(&mut nodes, &[8, 9]);
    assert_eq!(heard(&mut nodes), [(a, Some((7, false))), (a, Some((9, true)))]);
    nodes.unlink();
    assert_eq!(heard(&mut nodes), [(a, None)]);
    keeps(&mut nodes, &[9]);
    nodes.link();
    assert_eq!(heard(&mut nodes), [(a, Some((9, true)))]);
    // One that does not know of it.
    nodes.unlink();
    nodes.version = 2;
    nodes.link();
    assert_eq!(heard(&mut nodes), [(a, None)]);
}

/// Who is told that a node does not run a rule any more, which he names, asks the store whether it is his; also when he hears it later, on a new link.
#[test]
fn who_is_to_have_a_rule_looks_when_it_is_given_away() {
    let mut nodes = Nodes::new();
    let asked = |nodes: &Nodes, at: usize| std::mem::take(&mut *nodes.rigs[at].store.1.borrow_mut());
    nodes.rigs[B].shard().keep_rules(vec![7, 8]);
    nodes.rigs[A].hook.0.borrow_mut().keeps = vec![7, 8, 9];
    nodes.rigs[A].shard().tell_kept();
    nodes.settle();
    assert_eq!(asked(&nodes, B), [Asked::Keep(vec![7, 8])]);
    let now = nodes.rigs[A].now;
    nodes.rigs[A].shard().store_event(StoreEvent::Giving { rule: 7, round: 3 }, now);
    nodes.settle();
    assert_eq!((asked(&nodes, A), asked(&nodes, B)), (vec![Asked::Give(7, 3)], vec![]));
    let give = |nodes: &mut Nodes, rule: u64| {
        nodes.rigs[A].hook.0.borrow_mut().keeps.retain(|of| *of != rule);
        let kept = Arc::new(Kept { given: vec![rule], ..Kept::default() });
        nodes.rigs[A].shard().store_event(StoreEvent::Kept(kept), now);
        nodes.settle();
    };
    give(&mut nodes, 7);
    assert!(asked(&nodes, B).contains(&Asked::Keep(vec![7, 8])));
    // One that it does not name.
    give(&mut nodes, 9);
    assert_eq!(asked(&nodes, B), []);
    nodes.unlink();
    give(&mut nodes, 8);
    assert_eq!(asked(&nodes, B), []);
    nodes.link();
    nodes.settle();
    assert!(asked(&nodes, B).contains(&Asked::Keep(vec![7, 8])));
    // Nothing is told of one that has come back.
    let kept = Arc::new(Kept { rules: vec![(7, vec![]), (8, vec![])], ..Kept::default() });
    nodes.rigs[A].shard().store_event(StoreEvent::Kept(kept), now);
    nodes.unlink();
    nodes.link();
    nodes.settle();
    assert_eq!(asked(&nodes, B), []);
}

/// A message for a rule that runs at another node waits for that one's answer, and without one it is its publisher's still.
#[test]
fn a_row_for_another_node_is_answered_by_it_or_tried_again() {
    for (linked, taken) in [(true, true), (true, false), (false, true)] {
        let mut nodes = Nodes::new();
        nodes.rigs[A].rule("in");
        nodes.rigs[A].hook.0.borrow_mut().does = Does::Hold;
        nodes.rigs[B].hook.0.borrow_mut().takes_rows = taken;
        nodes.rigs[A].send("p", "connect id=p v=5");
        nodes.rigs[A].send("p", "publish q=1 id=1 t=in p=x");
        nodes.settle();
        nodes.took(A, "p");
        if !linked {
            nodes.unlink();
        }
        let shard = nodes.other[A];
        let end = nodes.rigs[A].hook.0.borrow_mut().held.pop_front().and_then(|(_, end, _)| end);
        assert!(end.is_some());
        let row = RowElsewhere { shard, row: b"row".to_vec(), hold: true, end };
        nodes.rigs[A].hook.0.borrow_mut().rows.push(row);
        nodes.settle();
        nodes.rigs[A].turn();
        let took = nodes.took(A, "p");
        let acknowledged = took.iter().any(|packet| packet.starts_with("puback 1"));
        assert_eq!(acknowledged, linked && taken, "{took:?}");
        assert!(acknowledged || took.iter().any(|packet| packet.starts_with("disconnect 89")), "{took:?}");
    }
}
