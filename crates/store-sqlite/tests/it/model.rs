//! Random ops do to the writer what they do to the model.

use crate::support::{Client, Rng, append, open};
use bytes::Bytes;
use ferrule_store::{Body, BodyId, MemoryStore, Op, QueueId, SessionId, Side, Store};
use ferrule_store_sqlite::Writer;
use proptest::prelude::*;

pub(crate) fn queues() -> [QueueId; 3] {
    [QueueId::session(SessionId(1)), QueueId::session(SessionId(2)), QueueId::outbox("cloud", 0)]
}

/// Any op over few names, so that ops meet.
pub(crate) fn random_op(rng: &mut Rng) -> Op {
    let session = SessionId(1 + rng.below(2));
    let queue = queues()[rng.below(3) as usize];
    let seq = [rng.below(40), rng.below(400)][rng.below(2) as usize];
    let filter: Box<str> = ["a/+", "b/#", "ä"][rng.below(3) as usize].into();
    let side = if rng.below(2) == 0 { Side::Inbound } else { Side::Outbound };
    let packet_id = rng.below(4) as u16;
    let key = Bytes::from(vec![rng.below(3) as u8; rng.below(2) as usize]);
    let size = [0, 10, 300, 2000][rng.below(4) as usize];
    let record = Bytes::from(vec![rng.next() as u8; size / 10]);
    match rng.below(20) {
        0..=4 => {
            let body = Bytes::from(vec![rng.next() as u8; size]);
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
        17 => Op::RetainPut { topic: filter, record },
        18 if rng.below(2) == 0 => Op::RetainDelete { topic: filter },
        18 => Op::StateDelete { rule: rng.below(2), key },
        _ if rng.below(2) == 0 => Op::StatePut { rule: rng.below(2), key, value: record },
        _ => Op::MetaPut { key: filter, value: record },
    }
}

#[derive(Debug, Clone)]
enum Step {
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

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (any::<u64>(), 0_u64..12, any::<bool>()).prop_map(|(seed, ops, wait)| Step::Batch { seed, ops, wait }),
        3 => (0_usize..3, 0_u64..3, 0_u64..100, prop_oneof![Just(0_usize), Just(20), Just(300), Just(3000)], 0_u64..4)
            .prop_map(|(queue, gap, rows, size, again)| Step::Run { queue, gap, rows, size, again }),
        4 => (0_usize..3, 0_u32..200, prop_oneof![Just(0_u32), Just(500), Just(u32::MAX)])
            .prop_map(|(queue, rows, bytes)| Step::Read { queue, rows, bytes }),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]
    #[test]
    fn the_writer_is_the_model(steps in proptest::collection::vec(step(), 1..60)) {
        let folder = tempfile::tempdir().unwrap();
        let mut model = MemoryStore::new();
        let start = |folder: &std::path::Path| -> (Writer, Client, _) {
            let (writer, restored) = open(folder);
            let client = Client::new(&writer);
            (writer, client, restored)
        };
        let (mut writer, mut client, _) = start(folder.path());
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
                    prop_assert_eq!(client.rows(queue, rows, bytes), model.rows(queue));
                }
                Step::Reopen => {
                    writer.shutdown().unwrap();
                    let restored;
                    (writer, client, restored) = start(folder.path());
                    prop_assert_eq!(restored, model.restored());
                    for queue in queues() {
                        prop_assert_eq!(client.rows(queue, 256, u32::MAX), model.rows(queue));
                    }
                }
            }
        }
        let ticket = client.submit(vec![]);
        client.wait(ticket);
        prop_assert_eq!(client.store.pending_bytes(), 0);
    }
}
