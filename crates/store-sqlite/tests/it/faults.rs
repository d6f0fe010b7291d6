//! Media that are full, refuse writes, or return other bytes than were written.

use crate::model::queues;
use crate::support::{Client, append, append_noise, open, small};
use ferrule_store::{Op, Store, StoreEvent};
use ferrule_store_sqlite::{FILE, Opened, Options, State};
use std::fs::{self, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Command;

fn run(program: &str, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
}

/// A small file system of its own, gone with the value. None without root.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn new(size: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mounted = run(
            "mount",
            &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs", folder.path().to_str().unwrap()],
        );
        if !mounted {
            eprintln!("skipped: needs root");
        }
        mounted.then_some(Self(folder))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes all space but `left` bytes.
    fn fill(&self, left: u64) {
        let mut file = fs::File::create(self.path().join("filler")).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
        let length = file.metadata().unwrap().len();
        file.set_len(length.saturating_sub(left)).unwrap();
    }

    fn free(&self) {
        fs::remove_file(self.path().join("filler")).unwrap();
    }

    fn remount(&self, how: &str) {
        assert!(run("mount", &["-o", &format!("remount,{how}"), self.path().to_str().unwrap()]));
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        run("umount", &["-l", self.path().to_str().unwrap()]);
    }
}

#[test]
fn a_full_disk_withholds_and_goes_on() {
    let Some(disk) = Tmpfs::new("16m") else { return };
    let (writer, _) = open(disk.path());
    let mut client = Client::new(&writer);
    let queue = queues()[2];
    client.commit((0..100).map(|seq| append_noise(queue, seq, 1000)).collect());
    disk.fill(0);
    let mut tickets = Vec::new();
    for seq in 100..2000 {
        tickets.push(client.submit(vec![append_noise(queue, seq, 1000)]));
    }
    let message = client.wait_failing();
    assert!(message.contains("no space left") && message.contains("du -xh"), "{message}");
    assert!(matches!(writer.status().state, State::Failing(_)));
    assert!(client.store.pending_bytes() > 0);
    // While it fails nobody holds the file, so that the medium can even turn read-only; that is another message.
    disk.remount("ro");
    let message = client.wait_failing();
    assert!(message.contains("rw"), "{message}");
    disk.remount("rw");
    disk.free();
    client.wait_recovered();
    client.wait(*tickets.last().unwrap());
    let rows = client.rows(queue, 256, u32::MAX);
    assert_eq!(rows.iter().map(|row| row.seq).collect::<Vec<_>>(), (0..2000).collect::<Vec<_>>());
    writer.shutdown().unwrap();
}

#[test]
fn a_full_disk_has_room_for_deletes() {
    let Some(disk) = Tmpfs::new("16m") else { return };
    let options = Options { ballast_bytes: 2 << 20, ..small() };
    let Opened { writer, .. } = ferrule_store_sqlite::open(disk.path(), options.clone()).unwrap();
    let mut client = Client::new(&writer);
    let queue = queues()[2];
    client.commit((0..1000).map(|seq| append_noise(queue, seq, 1000)).collect());
    assert_eq!(writer.status().ballast_bytes, 2 << 20);
    disk.fill(0);
    // More than the WAL's present size, so that it has to grow.
    let ticket =
        client.submit(vec![Op::Remove { queue, first: 0, last: 899 }, append_noise(queue, 1000, 1_500_000)]);
    client.wait_failing();
    client.wait_recovered();
    client.wait(ticket);
    assert_eq!(client.rows(queue, 256, u32::MAX).len(), 101);
    writer.shutdown().unwrap();
    // It starts on a full disk, and takes the ballast back once there is space.
    let Opened { writer, .. } = ferrule_store_sqlite::open(disk.path(), options.clone()).unwrap();
    assert_eq!(writer.status().ballast_bytes, 0);
    writer.shutdown().unwrap();
    disk.free();
    let Opened { writer, .. } = ferrule_store_sqlite::open(disk.path(), options).unwrap();
    assert_eq!(writer.status().ballast_bytes, 2 << 20);
}

#[test]
fn a_start_on_a_read_only_medium_says_so() {
    let Some(disk) = Tmpfs::new("4m") else { return };
    disk.remount("ro");
    let error = ferrule_store_sqlite::open(disk.path(), small()).unwrap_err().to_string();
    assert!(error.contains("read-only") && error.contains("rw"), "{error}");
    disk.remount("rw");
    open(disk.path()).0.shutdown().unwrap();
    disk.remount("ro");
    let error = ferrule_store_sqlite::open(disk.path(), small()).unwrap_err().to_string();
    assert!(error.contains("read-only") && error.contains("rw"), "{error}");
}

#[test]
fn a_low_disk_stops_admission() {
    let Some(disk) = Tmpfs::new("8m") else { return };
    let options = Options { reserve_bytes: 1 << 20, ..small() };
    let Opened { writer, .. } = ferrule_store_sqlite::open(disk.path(), options.clone()).unwrap();
    let client = Client::new(&writer);
    assert!(!client.store.low_on_space());
    writer.shutdown().unwrap();
    disk.fill(512 << 10);
    let Opened { writer, .. } = ferrule_store_sqlite::open(disk.path(), options).unwrap();
    assert!(Client::new(&writer).store.low_on_space());
    assert!(writer.status().low_on_space);
}

/// Writing into the open WAL is refused, as by a card that turned read-only under us.
#[test]
fn a_medium_that_refuses_writes_withholds_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (writer, _) = open(folder.path());
    let mut client = Client::new(&writer);
    let queue = queues()[2];
    client.commit(vec![append(queue, 0, 100)]);
    let wal = folder.path().join(format!("{FILE}-wal"));
    let wal = wal.to_str().unwrap();
    if !run("chattr", &["+i", wal]) {
        eprintln!("skipped: needs root and a file system with chattr");
        return;
    }
    let ticket = client.submit(vec![append(queue, 1, 100), Op::Remove { queue, first: 0, last: 0 }]);
    client.wait_failing();
    client.store.read(queue, 0, 10, u32::MAX);
    assert!(run("chattr", &["-i", wal]));
    client.wait_recovered();
    client.wait(ticket);
    // What was asked for meanwhile is answered too.
    let rows = client.wait_for(|event| match event {
        StoreEvent::Rows { rows, .. } => Some(rows),
        _ => None,
    });
    assert_eq!(rows.len(), 1);
    assert_eq!(client.rows(queue, 256, u32::MAX).iter().map(|row| row.seq).collect::<Vec<_>>(), [1]);
    assert!(writer.status().failures > 0);
    writer.shutdown().unwrap();
}

#[test]
fn a_shutdown_while_it_fails_says_what_is_not_stored() {
    let Some(disk) = Tmpfs::new("4m") else { return };
    let (writer, _) = open(disk.path());
    let mut client = Client::new(&writer);
    disk.fill(0);
    client.submit(vec![append(queues()[0], 1, 2_000_000)]);
    client.wait_failing();
    let error = writer.shutdown().unwrap_err();
    assert_eq!(error.batches, 1);
    assert!(error.to_string().contains("no space left"), "{error}");
}

fn overwrite(folder: &Path, from: u64, bytes: &[u8]) {
    let mut file = OpenOptions::new().write(true).open(folder.join(FILE)).unwrap();
    file.seek(SeekFrom::Start(from)).unwrap();
    file.write_all(bytes).unwrap();
    file.sync_all().unwrap();
}

fn asides(folder: &Path) -> usize {
    fs::read_dir(folder)
        .unwrap()
        .filter(|entry| {
            let name = entry.as_ref().unwrap().file_name().into_string().unwrap();
            name.starts_with("ferrule.db.corrupt-") && !name.ends_with("-wal") && !name.ends_with("-shm")
        })
        .count()
}

fn filled(folder: &Path, rows: u64, size: usize) -> u64 {
    let (writer, _) = open(folder);
    let mut client = Client::new(&writer);
    client.commit(vec![Op::MetaPut { key: "id".into(), value: b"gateway".as_slice().into() }]);
    for first in (0..rows).step_by(100) {
        client.commit((first..first + 100).map(|seq| append_noise(queues()[2], seq, size)).collect());
    }
    writer.shutdown().unwrap();
    fs::metadata(folder.join(FILE)).unwrap().len()
}

#[test]
fn a_damaged_file_is_moved_aside_and_the_rest_kept() {
    let folder = tempfile::tempdir().unwrap();
    let length = filled(folder.path(), 2000, 300);
    overwrite(folder.path(), length / 2 / 1024 * 1024, &[0xff; 2048]);
    let Opened { writer, restored, damage } = ferrule_store_sqlite::open(folder.path(), small()).unwrap();
    let damage = damage.expect("no damage was found");
    assert!(damage.aside.exists() && !damage.incomplete.is_empty(), "{damage}");
    assert!(damage.to_string().contains("queue_block could not be read to its end"), "{damage}");
    assert_eq!(restored.meta.len(), 1);
    let rows = Client::new(&writer).rows(queues()[2], 256, u32::MAX);
    assert!(rows.len() > 1850 && rows.len() < 2000, "{} rows: {damage}", rows.len());
    assert!(rows.iter().all(|row| row.body.len() == 300 && row.body[0] == row.seq as u8));
    assert_eq!(writer.status().damage, Some(damage));
    let summary = restored.queues[0];
    assert_eq!((summary.rows, summary.first, summary.last), (rows.len() as u64, 0, 1999));
    writer.shutdown().unwrap();
    assert_eq!(open(folder.path()).1, restored);
    assert_eq!(asides(folder.path()), 1);
}

#[test]
fn a_file_that_is_no_database_is_moved_aside() {
    for (from, bytes) in [(0, vec![0xa5; 1024]), (0, vec![0; 200_000])] {
        let folder = tempfile::tempdir().unwrap();
        filled(folder.path(), 100, 300);
        overwrite(folder.path(), from, &bytes);
        let Opened { writer, restored, damage } = ferrule_store_sqlite::open(folder.path(), small()).unwrap();
        assert!(damage.is_some());
        assert!(restored.queues.is_empty());
        Client::new(&writer).commit(vec![append(queues()[0], 1, 1)]);
        writer.shutdown().unwrap();
        assert_eq!(open(folder.path()).1.queues.len(), 1);
        assert_eq!(asides(folder.path()), 1);
    }
}

/// A large file is not read at a start: damage in it is met later, by a read.
#[test]
fn damage_met_while_running_is_salvaged_while_running() {
    let folder = tempfile::tempdir().unwrap();
    let length = filled(folder.path(), 6000, 3000);
    assert!(length > 16 << 20);
    // Many pages, so that the leaf pages of the table or the index are among them.
    overwrite(folder.path(), length / 2 / 1024 * 1024, &[0xff; 64 << 10]);
    let (writer, restored) = open(folder.path());
    let mut client = Client::new(&writer);
    let queue = queues()[2];
    let ticket = client.submit(vec![append(queue, 6000, 10)]);
    client.wait(ticket);
    let rows = client.rows(queue, 256, u32::MAX);
    assert!(rows.len() > 5900 && rows.len() < 6001, "{}", rows.len());
    assert_eq!(rows.last().unwrap().seq, 6000);
    assert!(writer.status().damage.is_some());
    assert_eq!(writer.status().state, State::Running);
    assert_eq!(restored.queues[0].rows, 6000);
    writer.shutdown().unwrap();
    assert_eq!(open(folder.path()).1.queues[0].rows, rows.len() as u64);
}

/// A kill between the steps of a salvage: the decision was made, the rest is done at the start.
#[test]
fn an_interrupted_move_is_finished() {
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path(), 100, 300);
    let kept = tempfile::tempdir().unwrap();
    filled(kept.path(), 200, 300);
    fs::copy(kept.path().join(FILE), folder.path().join(format!("{FILE}.salvaged"))).unwrap();
    let Opened { writer, restored, damage } = ferrule_store_sqlite::open(folder.path(), small()).unwrap();
    assert!(damage.is_some());
    assert_eq!(restored.queues[0].rows, 200);
    assert_eq!(asides(folder.path()), 1);
    writer.shutdown().unwrap();
}
