//! SIGKILL at any moment: what was told is there, and what is there is a prefix of what was submitted.

use crate::model::{queues, random_op};
use crate::support::{Client, DEADLINE, Rng, open};
use ferrule_store::{MemoryStore, Op, Restored, Store, StoreEvent};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

const FOLDER: &str = "FERRULE_TEST_KILL_FOLDER";
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

#[test]
#[ignore = "the child of kills_lose_nothing_that_was_told"]
fn child() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let (writer, restored) = open(folder.as_ref());
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

#[test]
fn kills_lose_nothing_that_was_told() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = MemoryStore::new();
    let mut known = 0;
    let seed = std::process::id().into();
    let mut rng = Rng(seed);
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["kill::child", "--exact", "--ignored", "--nocapture"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
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

        let (writer, restored) = open(folder.path());
        let found = at(&restored);
        assert!(found >= told, "seed {seed} round {round}: {told} was told, {found} is there");
        for n in known + 1..=found {
            model.submit(batch(n));
        }
        model.commit();
        known = found;
        assert_eq!(restored, model.restored(), "seed {seed} round {round}");
        let mut client = Client::new(&writer);
        for queue in queues() {
            assert_eq!(client.rows(queue, 256, u32::MAX), model.rows(queue), "seed {seed} round {round}");
        }
        if round % 2 == 0 {
            writer.shutdown().unwrap();
        }
    }
}
