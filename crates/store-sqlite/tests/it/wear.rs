//! Not a test: measures what the module header states. `cargo test --release -p ferrule-store-sqlite wear --
//! --ignored --nocapture`

use crate::support::{Client, append};
use ferrule_store::{Op, QueueId};
use ferrule_store_sqlite::{Opened, Options};
use std::time::Instant;

const MESSAGES_A_DAY: f64 = 20.0 * 86_400.0;

fn written() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap();
    io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).unwrap().parse().unwrap()
}

#[test]
#[ignore = "a measurement"]
fn wear() {
    let queue = QueueId::outbox("cloud", 0);
    for page_bytes in [1024, 2048, 4096] {
        for rows in [1_u64, 2, 16, 50] {
            for drained in [true, false] {
                let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
                let options = Options { page_bytes, ballast_bytes: 0, ..Options::edge() };
                let Opened { writer, .. } = ferrule_store_sqlite::open(folder.path(), options).unwrap();
                let mut client = Client::new(&writer);
                let commits = 8000 / rows.min(4);
                let before = written();
                for n in 0..commits {
                    let first = n * rows;
                    let mut ops: Vec<Op> = (first..first + rows).map(|seq| append(queue, seq, 232)).collect();
                    // Acknowledged while the next ones are appended.
                    if drained && n > 0 {
                        ops.push(Op::Remove { queue, first: first - rows, last: first - 1 });
                    }
                    client.commit(ops);
                }
                let status = writer.status();
                writer.shutdown().unwrap();
                let each = (written() - before) as f64 / (commits * rows) as f64;
                eprintln!(
                    "page {page_bytes}, {rows} rows a commit, {}: {each:.0} B a message, {:.1} GB a day at 20 a second; {} folds",
                    if drained { "drained" } else { "only appended" },
                    each * MESSAGES_A_DAY / 1e9,
                    status.folds,
                );
            }
        }
    }
}

#[test]
#[ignore = "a measurement"]
fn million() {
    let queue = QueueId::outbox("cloud", 0);
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let Opened { writer, .. } = ferrule_store_sqlite::open(folder.path(), Options::edge()).unwrap();
    let mut client = Client::new(&writer);
    let started = Instant::now();
    for first in (0..1_000_000).step_by(1000) {
        client.commit((first..first + 1000).map(|seq| append(queue, seq, 232)).collect());
    }
    eprintln!("append 1,000,000: {:?}, {:?}", started.elapsed(), writer.status());
    writer.shutdown().unwrap();
    let started = Instant::now();
    let Opened { writer, restored, .. } = ferrule_store_sqlite::open(folder.path(), Options::edge()).unwrap();
    eprintln!("open: {:?}, {:?}", started.elapsed(), restored.queues);
    let mut client = Client::new(&writer);
    let started = Instant::now();
    let (mut from, mut read) = (0, 0);
    loop {
        let rows = client.read(queue, from, 256, 1 << 20);
        let Some(last) = rows.last() else { break };
        read += rows.len();
        client.submit(vec![Op::Remove { queue, first: from, last: last.seq }]);
        from = last.seq + 1;
    }
    client.commit(vec![]);
    eprintln!("drain {read}: {:?}, {:?}", started.elapsed(), writer.status());
    let rss = std::fs::read_to_string("/proc/self/status").unwrap();
    eprintln!(
        "{}",
        rss.lines().filter(|l| l.starts_with("VmRSS") || l.starts_with("VmHWM")).collect::<String>()
    );
}
