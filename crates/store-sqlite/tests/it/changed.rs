//! Bytes that change in the files: nothing that was stored comes back as something else, and nothing is missing without a word.

use crate::model::queues;
use crate::support::{Client, Rng, open, small};
use bytes::Bytes;
use ferrule_store::{Body, BodyId, Op, QueueId, Restored, SessionId};
use ferrule_store_sqlite::{FILE, Opened};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// What was ever stored under a name, the last being what is there; none: nothing is.
type History = BTreeMap<String, Vec<Option<Vec<u8>>>>;

/// Ops that tell what they are about in every byte, and what they come to.
struct Writing {
    rng: Rng,
    history: History,
    next: [u64; 3],
    removed: [u64; 3],
}

fn row_name(queue: QueueId, seq: u64) -> String {
    format!("row {} {seq}", queue.0)
}

impl Writing {
    fn put(&mut self, name: String, value: Option<Vec<u8>>) {
        self.history.entry(name).or_default().push(value);
    }

    fn bytes(&mut self, size: u64) -> Bytes {
        (0..size).map(|_| self.rng.draw() as u8).collect()
    }

    fn op(&mut self) -> Op {
        let at = self.rng.below(3) as usize;
        let queue = queues()[at];
        let session = SessionId(1 + self.rng.below(2));
        let size = [0, 5, 40, 300][self.rng.below(4) as usize];
        let record = self.bytes(size + 1);
        let name: Box<str> = format!("a/{}", self.rng.below(20)).into();
        match self.rng.below(10) {
            0..=5 => {
                let seq = self.next[at];
                self.next[at] += 1;
                let body = if self.rng.below(3) == 0 {
                    let id = 1 + self.rng.below(4);
                    Body::Shared(BodyId(id), vec![id as u8; 200 * id as usize].into())
                } else {
                    Body::Inline(self.bytes(size))
                };
                self.put(row_name(queue, seq), Some([&record[..], b"|", body.bytes()].concat()));
                Op::Append { queue, seq, head: record, body }
            }
            6 => {
                let first = self.removed[at];
                let last = (first + self.rng.below(6)).min(self.next[at].saturating_sub(1));
                self.removed[at] = last + 1;
                for seq in first..=last {
                    self.put(row_name(queue, seq), None);
                }
                Op::Remove { queue, first, last }
            }
            7 => {
                self.put(format!("session {}", session.0), Some(record.to_vec()));
                Op::SessionPut { session, record }
            }
            8 => {
                self.put(format!("retained {name}"), Some(record.to_vec()));
                Op::RetainPut { topic: name, stamp: 0, record }
            }
            _ => {
                self.put(format!("state {name}"), Some(record.to_vec()));
                Op::StatePut { rule: 7, key: Bytes::from(name.to_string()), value: record }
            }
        }
    }
}

fn found(restored: &Restored, client: &mut Client) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for queue in queues() {
        for row in client.rows(queue, 256, u32::MAX) {
            all.insert(row_name(queue, row.seq), [&row.head[..], b"|", &row.body].concat());
        }
    }
    all.extend(restored.sessions.iter().map(|(id, record)| (format!("session {}", id.0), record.to_vec())));
    all.extend(
        restored.retained.iter().map(|(name, _, record)| (format!("retained {name}"), record.to_vec())),
    );
    let state = restored.state.iter();
    all.extend(
        state.map(|(_, key, value)| (format!("state {}", String::from_utf8_lossy(key)), value.to_vec())),
    );
    all
}

/// Some bytes at a few places of a file.
fn change(path: &Path, rng: &mut Rng) -> Vec<(u64, usize)> {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let length = file.metadata().unwrap().len();
    let size = [1, 1, 8, 600][rng.below(4) as usize].min(length as usize);
    (0..1 + rng.below(3))
        .map(|_| {
            let from = rng.below(length - size as u64 + 1);
            let mut bytes = vec![0; size];
            file.read_exact_at(&mut bytes, from).unwrap();
            bytes.iter_mut().for_each(|byte| *byte ^= 1 + rng.below(255) as u8);
            file.write_all_at(&bytes, from).unwrap();
            (from, size)
        })
        .collect()
}

/// Whether something was missing.
fn run(seed: u64) -> bool {
    let mut writing = Writing { rng: Rng(seed), history: History::new(), next: [1; 3], removed: [1; 3] };
    let folder = tempfile::tempdir().unwrap();
    let (writer, _) = open(folder.path());
    let mut client = Client::new(&writer);
    for _ in 0..10 + writing.rng.below(40) {
        let ops = (0..1 + writing.rng.below(30)).map(|_| writing.op()).collect();
        client.commit(ops);
    }
    // The last commit in the log cannot be told from one that a power cut interrupted, and one run of bytes may be in two.
    for _ in 0..3 {
        client.commit(vec![Op::MetaPut { key: "last".into(), value: Bytes::from_static(b"commit") }]);
    }
    let killed = tempfile::tempdir().unwrap();
    let mut files = vec![FILE.to_owned()];
    if writing.rng.below(2) == 0 {
        writer.shutdown().unwrap();
    } else {
        files.push(format!("{FILE}-wal"));
    }
    for file in &files {
        fs::copy(folder.path().join(file), killed.path().join(file)).unwrap();
    }
    let file = &files[writing.rng.below(files.len() as u64) as usize];
    let places = change(&killed.path().join(file), &mut writing.rng);
    let seed = format!("seed {seed}: {file} at {places:?}");

    let Opened { writer, restored, .. } = ferrule_store_sqlite::open(killed.path(), small()).expect(&seed);
    let mut client = Client::new(&writer);
    let found = found(&restored, &mut client);
    let mut missing = BTreeSet::new();
    for (name, values) in &writing.history {
        let now = found.get(name);
        assert!(
            now.is_none_or(|now| values.iter().any(|value| value.as_ref() == Some(now))),
            "{seed}: {name} is what it never was"
        );
        if now != values.last().unwrap().as_ref() {
            missing.insert(name);
        }
    }
    let strangers: Vec<_> = found.keys().filter(|name| !writing.history.contains_key(*name)).collect();
    assert!(strangers.is_empty(), "{seed}: {strangers:?} were never stored");
    let status = writer.status();
    assert!(missing.is_empty() || status.damage.is_some(), "{seed}: nobody says that {missing:?} are gone");
    // What is there is whole, for good.
    client.commit(vec![Op::MetaPut { key: "after".into(), value: Bytes::from_static(b"it") }]);
    writer.shutdown().unwrap();
    let (writer, again) = open(killed.path());
    assert_eq!(again.queues, restored.queues, "{seed}");
    writer.shutdown().unwrap();
    !missing.is_empty()
}

/// `FERRULE_CHANGED_SEEDS` for more of them.
#[test]
fn nothing_changes_and_nothing_is_missing_without_a_word() {
    let seeds = std::env::var("FERRULE_CHANGED_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    let ran: Vec<_> = (0..seeds).map(|seed| (seed, std::panic::catch_unwind(|| run(seed)))).collect();
    let failed: Vec<u64> = ran.iter().filter(|(_, ran)| ran.is_err()).map(|(seed, _)| *seed).collect();
    assert!(failed.is_empty(), "seeds {failed:?}");
    let missing = ran.iter().filter(|(_, ran)| matches!(ran, Ok(true))).count();
    assert!(missing > 0, "no change did anything");
}
