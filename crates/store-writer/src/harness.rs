//! The tests that every writer of the store has to pass, and what they are made of. Of the feature `harness`.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(missing_docs, reason = "tests")]

use crate::{Handle, State, Writing};
use bytes::Bytes;
use ferrule_store::{
    Body, BodyId, Joint, JointPart, MemoryStore, Op, QueueId, Restored, SESSIONS, SessionId, Side, Store,
    StoreEvent, StoredRow, Ticket,
};
use proptest::prelude::*;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant, UNIX_EPOCH};

/// Far beyond what anything here takes; reached only by a hang.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// What stays when a writer ends.
pub trait Medium {
    type Writer: Writing;
    fn open(&self) -> (Self::Writer, Restored);
}

/// A handle whose events can be waited for.
pub struct Client {
    pub store: Handle,
    pub events: Receiver<StoreEvent>,
}

impl Client {
    pub fn new(writer: &impl Writing) -> Self {
        let (send, events) = channel();
        let store = writer.handle(Box::new(move |event| drop(send.send(event))));
        Self { store, events }
    }

    pub fn submit(&mut self, ops: Vec<Op>) -> Ticket {
        self.store.submit(ops)
    }

    /// The next event that `pick` takes; others are passed over.
    pub fn wait_for<T>(&self, mut pick: impl FnMut(StoreEvent) -> Option<T>) -> T {
        loop {
            let event = self.events.recv_timeout(DEADLINE).expect("the event never came");
            if let Some(value) = pick(event) {
                return value;
            }
        }
    }

    pub fn wait(&self, ticket: Ticket) {
        self.wait_for(|event| match event {
            StoreEvent::Committed { ticket: at, .. } if at >= ticket => Some(()),
            _ => None,
        });
    }

    pub fn wait_failing(&self) -> String {
        self.wait_for(|event| match event {
            StoreEvent::Failing { message } => Some(message),
            _ => None,
        })
    }

    pub fn wait_recovered(&self) {
        self.wait_for(|event| matches!(event, StoreEvent::Recovered).then_some(()));
    }

    pub fn commit(&mut self, ops: Vec<Op>) {
        let ticket = self.submit(ops);
        self.wait(ticket);
    }

    pub fn read(&mut self, queue: QueueId, from: u64, max_rows: u32, max_bytes: u32) -> Vec<StoredRow> {
        self.store.read(queue, from, max_rows, max_bytes);
        self.wait_for(|event| match event {
            StoreEvent::Rows { queue: of, rows } if of == queue => Some(rows),
            _ => None,
        })
    }

    /// Pages through a queue.
    pub fn rows(&mut self, queue: QueueId, max_rows: u32, max_bytes: u32) -> Vec<StoredRow> {
        let (mut all, mut from) = (Vec::new(), 0);
        loop {
            let rows = self.read(queue, from, max_rows, max_bytes);
            let Some(last) = rows.last() else { return all };
            assert!(rows.len() <= max_rows.max(1) as usize);
            from = last.seq + 1;
            all.extend(rows);
        }
    }
}

pub fn append(queue: QueueId, seq: u64, size: usize) -> Op {
    let body = Body::Inline(vec![seq as u8; size].into());
    Op::Append { queue, seq, head: Bytes::copy_from_slice(&seq.to_le_bytes()), body }
}

/// Splitmix64: the same numbers for the same seed everywhere.
pub struct Rng(pub u64);

impl Rng {
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.draw() % n
    }
}

/// Of a retained message: each later than the one before, in a process that was killed, too.
fn next_stamp() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let now = UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos() as u64);
    LAST.fetch_max(now, Ordering::Relaxed);
    LAST.fetch_add(1, Ordering::Relaxed) + 1
}

/// A session of the first node, of a store that several share.
pub fn session(number: u64) -> SessionId {
    SessionId(SESSIONS + number)
}

/// Without what only a store has that several nodes share.
pub fn own(restored: Restored) -> Restored {
    // Nor does such a store keep what a topic was cleared by, and by which stamp it was set.
    let kept = restored.retained.into_iter().filter(|(_, _, record)| !record.is_empty());
    let retained = kept.map(|(topic, _, record)| (topic, 0, record)).collect();
    Restored { epochs: Vec::new(), first_session: 0, last_session: 0, retained, ..restored }
}

pub fn queues() -> [QueueId; 3] {
    [QueueId::session(session(1)), QueueId::session(session(2)), QueueId::outbox("cloud", 0)]
}

/// Any op over few names, so that ops meet.
pub fn random_op(rng: &mut Rng) -> Op {
    let session = session(1 + rng.below(2));
    let queue = queues()[rng.below(3) as usize];
    let seq = [rng.below(40), rng.below(400)][rng.below(2) as usize];
    let filter: Box<str> = ["a/+", "b/#", "ä"][rng.below(3) as usize].into();
    let side = if rng.below(2) == 0 { Side::Inbound } else { Side::Outbound };
    let packet_id = rng.below(4) as u16;
    let key = Bytes::from(vec![rng.below(3) as u8; rng.below(2) as usize]);
    let size = [0, 10, 300, 2000][rng.below(4) as usize];
    let record = Bytes::from(vec![rng.draw() as u8; size / 10]);
    match rng.below(20) {
        0..=4 => {
            let body = Bytes::from(vec![rng.draw() as u8; size]);
            Op::Append { queue, seq, head: record, body: Body::Inline(body) }
        }
        5..=7 => {
            let id = 1 + rng.below(5);
            // By contract the bytes of an id are always the same.
            let body = Bytes::from(vec![id as u8; id as usize * 300]);
            Op::Append { queue, seq, head: record, body: Body::Shared(BodyId(id), body) }
        }
        8..=9 => Op::Remove { queue, first: seq, last: seq },
        10 => Op::Remove { queue, first: seq, last: seq + rng.below(20) },
        11 => Op::Remove { queue, first: rng.below(10), last: [u64::MAX, 0][rng.below(2) as usize] },
        12 => Op::SessionPut { session, record },
        13 if rng.below(3) == 0 => Op::SessionDelete { session },
        13 => Op::SubscriptionDelete { session, filter },
        14 => Op::SubscriptionPut { session, filter, record },
        15 => Op::InflightPut { session, side, packet_id, record },
        16 => Op::InflightDelete { session, side, packet_id },
        17 => {
            let record = Bytes::from([b"r", &record[..]].concat());
            Op::RetainPut { topic: filter, stamp: next_stamp(), record }
        }
        18 if rng.below(2) == 0 => Op::RetainDelete { topic: filter, stamp: next_stamp() },
        18 => Op::StateDelete { rule: rng.below(2), key },
        _ if rng.below(2) == 0 => Op::StatePut { rule: rng.below(2), key, value: record },
        _ => Op::MetaPut { key: filter, value: record },
    }
}

/// What a random run does.
#[derive(Debug, Clone)]
pub enum Step {
    Batch {
        seed: u64,
        ops: u64,
        wait: bool,
    },
    /// Rows in their order, as of a backlog.
    Run {
        queue: usize,
        gap: u64,
        rows: u64,
        size: usize,
        again: u64,
    },
    Read {
        queue: usize,
        rows: u32,
        bytes: u32,
    },
    Reopen,
}

/// Any step.
pub fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (any::<u64>(), 0_u64..12, any::<bool>()).prop_map(|(seed, ops, wait)| Step::Batch { seed, ops, wait }),
        3 => (0_usize..3, 0_u64..3, 0_u64..100, prop_oneof![Just(0_usize), Just(20), Just(300), Just(3000)], 0_u64..4)
            .prop_map(|(queue, gap, rows, size, again)| Step::Run { queue, gap, rows, size, again }),
        4 => (0_usize..3, 0_u32..200, prop_oneof![Just(0_u32), Just(500), Just(u32::MAX)])
            .prop_map(|(queue, rows, bytes)| Step::Read { queue, rows, bytes }),
        1 => Just(Step::Reopen),
    ]
}

/// Random ops do to the writer what they do to the model.
pub fn the_writer_is_the_model(medium: &impl Medium, steps: Vec<Step>) {
    let mut model = MemoryStore::new();
    let start = || {
        let (writer, restored) = medium.open();
        let client = Client::new(&writer);
        (writer, client, restored)
    };
    let (mut writer, mut client, _) = start();
    for step in steps.into_iter().chain([Step::Reopen]) {
        match step {
            Step::Batch { seed, ops, wait } => {
                let mut rng = Rng(seed);
                let ops: Vec<Op> = (0..ops).map(|_| random_op(&mut rng)).collect();
                model.submit(ops.clone());
                model.commit();
                let ticket = client.submit(ops);
                if wait {
                    client.wait(ticket);
                }
            }
            Step::Run { queue, gap, rows, size, again } => {
                let queue = queues()[queue];
                let last = model.rows(queue).last().map_or(0, |row| row.seq);
                let first = (last + 1 + gap).saturating_sub(again);
                let ops: Vec<Op> = (first..first + rows).map(|seq| append(queue, seq, size)).collect();
                model.submit(ops.clone());
                model.commit();
                client.submit(ops);
            }
            Step::Read { queue, rows, bytes } => {
                let queue = queues()[queue];
                assert_eq!(client.rows(queue, rows, bytes), model.rows(queue));
            }
            Step::Reopen => {
                writer.stop().unwrap();
                let restored;
                (writer, client, restored) = start();
                assert_eq!(own(restored), own(model.restored()));
                for queue in queues() {
                    assert_eq!(client.rows(queue, 256, u32::MAX), model.rows(queue));
                }
            }
        }
    }
    let ticket = client.submit(vec![]);
    client.wait(ticket);
    assert_eq!(client.store.pending_bytes(), 0);
}

pub fn what_is_submitted_during_a_commit_is_the_next_commit(medium: &impl Medium) {
    let (mut writer, _) = medium.open();
    // The first notification holds the writer's thread until the gate opens.
    let (entered, wait_entered) = channel();
    let (gate, wait_gate) = channel::<()>();
    let mut first = writer.handle(Box::new(move |event| {
        if matches!(event, StoreEvent::Committed { .. }) {
            let _ = entered.send(());
            let _ = wait_gate.recv();
        }
    }));
    let mut second = Client::new(&writer);
    let queue = queues()[2];
    first.submit(vec![append(queue, 0, 10)]);
    wait_entered.recv().unwrap();
    let mut last = Ticket(0);
    for seq in 1..=500 {
        last = second.submit(vec![append(queue, seq, 10)]);
    }
    assert!(second.store.pending_bytes() >= 500 * 10);
    gate.send(()).unwrap();
    second.wait(last);
    let figures = writer.figures();
    assert_eq!((figures.commits, figures.batches, figures.ops, figures.state), (2, 501, 501, State::Running));
    assert_eq!(second.store.pending_bytes(), 0);
    assert_eq!(second.rows(queue, 256, u32::MAX).len(), 501);
    drop(gate);
    writer.stop().unwrap();
}

pub fn a_barrier_alone_costs_no_commit(medium: &impl Medium) {
    let (writer, _) = medium.open();
    let mut client = Client::new(&writer);
    client.commit(vec![]);
    assert_eq!(writer.figures().commits, 0);
}

pub fn handles_are_told_of_their_own(medium: &impl Medium) {
    let (mut writer, _) = medium.open();
    let (mut a, mut b) = (Client::new(&writer), Client::new(&writer));
    let first = a.submit(vec![append(queues()[0], 1, 1)]);
    a.wait(first);
    let second = b.submit(vec![append(queues()[0], 2, 1)]);
    assert!(second > first);
    b.wait(second);
    assert!(a.events.try_iter().next().is_none());
    drop(a);
    b.commit(vec![]);
    writer.stop().unwrap();
    // After the end nothing resolves, and nothing panics.
    b.submit(vec![]);
    assert!(b.events.try_iter().next().is_none());
}

/// Parts of a joint commit wait for each other, and what is behind them on their handle with them; others do not.
pub fn joint_commits_are_one(medium: &impl Medium) {
    let (mut writer, _) = medium.open();
    let (mut a, mut b) = (Client::new(&writer), Client::new(&writer));
    let joint = |shard| Joint { shard, number: 7 };
    let (opens, closes) =
        (|shard| vec![JointPart::Opens(joint(shard))], |shard| vec![JointPart::Closes(joint(shard))]);
    let queue = queues()[2];

    a.store.submit_joint(vec![append(queue, 1, 10)], opens(0));
    let behind = a.submit(vec![append(queue, 2, 10)]);
    let other = b.submit(vec![append(queue, 3, 10)]);
    b.wait(other);
    assert_eq!(b.rows(queue, 256, u32::MAX).len(), 1, "what waits is not there");
    let before = writer.figures().commits;
    let closing = b.store.submit_joint(vec![append(queue, 4, 10)], closes(0));
    a.wait(behind);
    b.wait(closing);
    assert_eq!((writer.figures().commits, b.rows(queue, 256, u32::MAX).len()), (before + 1, 4));

    // Each closes what the other opened, behind an opening of its own: neither waits for ever.
    a.store.submit_joint(vec![append(queue, 5, 10)], opens(0));
    b.store.submit_joint(vec![append(queue, 6, 10)], opens(1));
    let (last_a, last_b) = (a.store.submit_joint(vec![], closes(1)), b.store.submit_joint(vec![], closes(0)));
    a.wait(last_a);
    b.wait(last_b);

    // Nobody closes it: it does not wait for ever either, nor when the writer ends.
    let alone = a.store.submit_joint(vec![append(queue, 7, 10)], opens(2));
    a.wait(alone);
    a.store.submit_joint(vec![append(queue, 8, 10)], opens(3));
    writer.stop().unwrap();
    let (_, restored) = medium.open();
    assert_eq!(restored.queues[0].rows, 8);
}

pub fn large_groups_and_bodies_are_kept(medium: &impl Medium) {
    let (writer, _) = medium.open();
    let mut client = Client::new(&writer);
    let queue = queues()[2];
    client.commit(vec![append(queue, 1, 3_000_000)]);
    client.commit((2..1000).map(|seq| append(queue, seq, 100)).collect());
    assert_eq!(client.read(queue, 0, 10, 1)[0].body.len(), 3_000_000);
    assert_eq!(client.rows(queue, 256, u32::MAX).len(), 999);
    client.commit(vec![Op::Remove { queue, first: 0, last: u64::MAX }]);
    assert!(client.rows(queue, 256, u32::MAX).is_empty());
}

const ROUNDS: u64 = 20;

/// Batch `n` of the one endless run that all lives of the child go on with.
fn batch(n: u64) -> Vec<Op> {
    let mut rng = Rng(n);
    let mut ops: Vec<Op> = (0..rng.below(8)).map(|_| random_op(&mut rng)).collect();
    ops.push(Op::MetaPut { key: "at".into(), value: n.to_le_bytes().to_vec().into() });
    ops
}

fn at(restored: &Restored) -> u64 {
    let value = restored.meta.iter().find(|(key, _)| &**key == "at").map(|(_, value)| value.to_vec());
    value.map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().unwrap()))
}

/// The process that is killed: commits without end, and tells.
pub fn kill_child(medium: &impl Medium) {
    let (writer, restored) = medium.open();
    let start = at(&restored);
    let mut client = Client::new(&writer);
    let mut out = std::io::stdout().lock();
    for n in 1.. {
        client.submit(batch(start + n));
        // Some in flight, so that commits are groups.
        if n % 3 == 0 {
            let ticket = client.wait_for(|event| match event {
                StoreEvent::Committed { ticket, .. } => Some(ticket.0),
                _ => None,
            });
            writeln!(out, "committed {}", start + ticket).unwrap();
            out.flush().unwrap();
        }
    }
}

/// SIGKILL at any moment: what was told is there, and what is there is a prefix of what was submitted. `child` runs
/// [`kill_child`] on the same medium.
pub fn kills_lose_nothing_that_was_told(medium: &impl Medium, child: impl Fn() -> Command) {
    let mut model = MemoryStore::new();
    let mut known = 0;
    let seed = std::process::id().into();
    let mut rng = Rng(seed);
    for round in 0..ROUNDS {
        let mut child = child().stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut told = 0;
        let mut left = 1 + rng.below(60);
        let deadline = Instant::now() + DEADLINE;
        while left > 0 {
            assert!(Instant::now() < deadline, "the child hangs");
            let line = lines.next().expect("the child ended by itself").unwrap();
            if let Some(n) = line.strip_prefix("committed ") {
                told = n.parse().unwrap();
                left -= 1;
            }
        }
        // A moment after a commit, or amid the next.
        let spins = rng.below(200_000);
        (0..spins).for_each(|n| {
            std::hint::black_box(n);
        });
        child.kill().unwrap();
        child.wait().unwrap();
        for line in lines.map_while(Result::ok) {
            told = line.strip_prefix("committed ").map_or(told, |n| n.parse().unwrap());
        }

        let (mut writer, restored) = medium.open();
        let found = at(&restored);
        assert!(found >= told, "seed {seed} round {round}: {told} was told, {found} is there");
        for n in known + 1..=found {
            model.submit(batch(n));
        }
        model.commit();
        known = found;
        assert_eq!(own(restored), own(model.restored()), "seed {seed} round {round}");
        let mut client = Client::new(&writer);
        for queue in queues() {
            assert_eq!(client.rows(queue, 256, u32::MAX), model.rows(queue), "seed {seed} round {round}");
        }
        if round % 2 == 0 {
            writer.stop().unwrap();
        }
    }
}
