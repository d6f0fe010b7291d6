//! Power cuts: a node's data folder as a disk would hold it that forgets what was not synced.
//!
//! # How
//! The shim (`shim/disk.c`, preloaded into the node) writes down each change of a file in the folder before it is done, and each sync after
//! it returned. A cut is SIGKILL; then the log is played onto the folder as it was at the process's start, and what was not
//! durable by then is kept, dropped or torn by a seed. The shim also takes orders to fail ([`Order`]).
//!
//! # What is durable, and what becomes of the rest
//! | change | durable with | else |
//! |---|---|---|
//! | bytes of a file | a sync of it that began after the write and returned 0 | of each 512-byte sector (or 4,096-byte page: the seed says which) any version since the last sync, each sector for itself, so later writes may be there and earlier ones not; one in sixteen is torn: its first bytes of one version, the rest of an earlier one |
//! | a longer file | the same | any length since; what has a length and no bytes reads as zeros |
//! | a shorter file | the same | there or not; when not, what was written after it is not there either (its blocks are others) |
//! | a name made, changed, removed | a sync of the folder | either a beginning of all such changes (a journal, as ext4 and XFS keep it), or each for itself (nothing promises more): the seed says which |
//! | a name made | also with a sync of the file itself, with all changes of names before it (ext4 and XFS commit their journal up to there) | as above |
//!
//! After a **failed sync** what it was to write stays readable and is never written: the kernel has marked the pages clean. Only
//! bytes that are written again are synced again.
//!
//! # What it does not see
//! Calls that do not go through the C library (`rustix`): the store's ballast, whose space is its only content. Writes through
//! shared mappings are refused loudly.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::Config;
use crate::proc::output;
use crate::random::Random;

/// Files by their path in the folder.
pub type Image = BTreeMap<String, Vec<u8>>;

/// Errno of a file system without space.
pub const ENOSPC: i64 = 28;
/// Errno of a file system that is read-only.
pub const EROFS: i64 = 30;
/// Errno of a medium that fails.
pub const EIO: i64 = 5;

/// A word of the control file; `disk.c` says what each does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "disk.c says it")]
pub enum Order {
    SyncErrno,
    SyncAfter,
    SyncTimes,
    WriteErrno,
    WriteAfter,
    WriteTimes,
    SyncDelayUs,
    SyncLies,
    SyncFloorUs,
    SyncSpikeUs,
    KillAt,
    Records,
    Failed,
}

/// How many there are.
const ORDERS: u64 = Order::Failed as u64 + 1;

/// The disk's shim.
fn shim() -> &'static Path {
    static SHIM: OnceLock<PathBuf> = OnceLock::new();
    SHIM.get_or_init(|| compiled("disk", include_str!("../shim/disk.c")))
}

/// A library of this C source, made when there is none of it yet.
///
/// # Panics
/// When the C compiler refuses.
pub(crate) fn compiled(name: &str, source: &str) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    source.hash(&mut hasher);
    // Beside the test itself, in the build folder; the name says which source it is of.
    let own = std::env::current_exe().expect("Linux knows a process's executable");
    let folder = own.parent().expect("an executable is in a folder");
    let library = folder.join(format!("{name}-shim-{:016x}.so", hasher.finish()));
    if !library.is_file() {
        let scratch = tempfile::tempdir_in(folder).expect("the build folder can be written");
        let (file, made) = (scratch.path().join("shim.c"), scratch.path().join("shim.so"));
        fs::write(&file, source).expect("the build folder can be written");
        let flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"];
        output(Command::new("cc").args(flags).arg(&made).arg(&file).args(["-ldl", "-lpthread"]));
        fs::rename(&made, &library).expect("the same folder");
    }
    library
}

/// A data folder with the shim's log and orders beside it.
#[derive(Debug)]
pub struct Disk {
    scratch: TempDir,
    control: File,
    /// What was durable when the process that runs now was started.
    image: Image,
}

impl Disk {
    /// An empty folder.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new() -> Self {
        // In memory where there is such a place: the medium is the log, and a real disk would only make it slow.
        let memory = Path::new("/dev/shm");
        let scratch = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let scratch = scratch.expect("a temporary folder can be made");
        fs::create_dir(scratch.path().join("data")).expect("an empty folder");
        let control =
            OpenOptions::new().read(true).write(true).create_new(true).open(scratch.path().join("control"));
        let disk = Self { scratch, control: control.expect("an empty folder"), image: Image::new() };
        disk.clear_orders();
        disk
    }

    /// The data folder.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        self.scratch.path().join("data")
    }

    fn log(&self) -> PathBuf {
        self.scratch.path().join("log")
    }

    /// `config` with its data on this disk.
    #[must_use]
    pub fn config(&self, config: Config) -> Config {
        let text = |path: PathBuf| path.to_str().expect("a temporary folder's name is text").to_owned();
        config
            .data_dir(self.folder())
            .env("LD_PRELOAD", &text(shim().to_owned()))
            .env("FERRULE_SHIM_FOLDER", &text(self.folder()))
            .env("FERRULE_SHIM_LOG", &text(self.log()))
            .env("FERRULE_SHIM_CONTROL", &text(self.scratch.path().join("control")))
    }

    /// Gives an order, to the process that runs or to the next one.
    ///
    /// # Panics
    /// When the control file cannot be written.
    pub fn order(&self, order: Order, value: i64) {
        self.control.write_all_at(&value.to_ne_bytes(), order as u64 * 8).expect("the control file is there");
    }

    /// Lets the next syncs, or changes, fail with `errno`: `times` of them (-1: all) after `after` others.
    pub fn fail(&self, first: Order, errno: i64, after: i64, times: i64) {
        let (after_word, times_word) = match first {
            Order::SyncErrno => (Order::SyncAfter, Order::SyncTimes),
            _ => (Order::WriteAfter, Order::WriteTimes),
        };
        self.order(after_word, after);
        self.order(times_word, times);
        self.order(first, errno);
    }

    /// What a word holds now.
    ///
    /// # Panics
    /// When the control file cannot be read.
    #[must_use]
    pub fn told(&self, order: Order) -> i64 {
        let mut bytes = [0; 8];
        self.control.read_exact_at(&mut bytes, order as u64 * 8).expect("the control file is there");
        i64::from_ne_bytes(bytes)
    }

    /// Takes all orders back.
    ///
    /// # Panics
    /// When the control file cannot be written.
    pub fn clear_orders(&self) {
        self.control.write_all_at(&[0; ORDERS as usize * 8], 0).expect("the control file is there");
    }

    /// After the process was killed: the folder becomes what a power cut left, by `random`; orders are taken back.
    ///
    /// # Panics
    /// When the log cannot be followed.
    pub fn cut(&mut self, random: &mut Random) -> Remains {
        let log = match fs::read(self.log()) {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            log => log.expect("the log can be read"),
        };
        let mut medium = Medium::new(std::mem::take(&mut self.image));
        medium.play(&log);
        let (image, remains) = medium.cut(random);
        self.become_as(image);
        remains
    }

    /// Begins anew with an empty folder, no process having it.
    pub fn empty(&mut self) {
        self.become_as(Image::new());
    }

    fn become_as(&mut self, image: Image) {
        self.image = image;
        let _ = fs::remove_file(self.log()); // there is none when it was killed before its first record
        fs::remove_dir_all(self.folder()).expect("the killed process's folder can be removed");
        fs::create_dir(self.folder()).expect("just removed");
        for (name, bytes) in &self.image {
            let path = self.folder().join(name);
            fs::create_dir_all(path.parent().expect("below the folder")).expect("a folder can be made");
            fs::write(&path, bytes).expect("a file can be written");
        }
        self.clear_orders();
    }

    /// Keeps the folder as it is (for whoever looks into a failure), and says where.
    #[must_use]
    pub fn keep(self) -> PathBuf {
        self.scratch.keep()
    }
}

impl Default for Disk {
    fn default() -> Self {
        Self::new()
    }
}

/// What a cut did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Remains {
    /// Sectors that were not synced.
    pub unsynced: u64,
    /// Of them, those that are not as the process left them.
    pub dropped: u64,
    /// Of those, torn ones.
    pub torn: u64,
    /// Changes of names that were not durable.
    pub names: u64,
    /// Of them, those that did not happen.
    pub names_dropped: u64,
}

// === the medium ===

mod kind {
    pub(super) const OPEN: u32 = 1;
    pub(super) const WRITE: u32 = 2;
    pub(super) const LENGTH: u32 = 3;
    pub(super) const SYNC_BEGIN: u32 = 4;
    pub(super) const SYNC_END: u32 = 5;
    pub(super) const SYNC_FAILED: u32 = 6;
    pub(super) const RENAME: u32 = 7;
    pub(super) const UNLINK: u32 = 8;
    pub(super) const CLOSE: u32 = 9;
    pub(super) const DUP: u32 = 10;
    pub(super) const TAKEN_BACK: u32 = 11;
}

#[derive(Debug, Clone, Copy)]
struct Record<'a> {
    /// 1, 2, 3, ...
    number: i64,
    kind: u32,
    a: i64,
    b: i64,
    data: &'a [u8],
}

/// The records of a log; one that a kill cut off is none.
fn records(mut log: &[u8]) -> Vec<Record<'_>> {
    fn word<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
        bytes[at..at + N].try_into().expect("N bytes")
    }
    let mut found = Vec::new();
    while log.len() >= 24 {
        let bytes = u32::from_ne_bytes(word(log, 4)) as usize;
        let Some(data) = log.get(24..24 + bytes) else { break };
        found.push(Record {
            number: found.len() as i64 + 1,
            kind: u32::from_ne_bytes(word(log, 0)),
            a: i64::from_ne_bytes(word(log, 8)),
            b: i64::from_ne_bytes(word(log, 16)),
            data,
        });
        log = &log[24 + bytes..];
    }
    found
}

#[derive(Debug, Clone)]
enum Change {
    Write {
        at: usize,
        bytes: Vec<u8>,
    },
    /// At least so long: of a write whose bytes are lost.
    Extend(usize),
    Length(usize),
}

#[derive(Debug, Default)]
struct Content {
    durable: Vec<u8>,
    /// (number of the record, change), not durable yet.
    pending: Vec<(i64, Change)>,
}

/// A file is known by a number for good; names come and go.
type FileNumber = usize;

#[derive(Debug, Clone)]
enum Naming {
    Make { name: String, file: FileNumber },
    Move { from: String, to: String, file: FileNumber },
    Remove { name: String, file: FileNumber },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Handle {
    File(FileNumber),
    Folder,
}

#[derive(Debug, Default)]
struct Medium {
    contents: Vec<Content>,
    durable: BTreeMap<String, FileNumber>,
    /// As the process sees them.
    names: BTreeMap<String, FileNumber>,
    pending: Vec<(i64, Naming)>,
    handles: BTreeMap<i64, Handle>,
}

fn set_bytes(content: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if content.len() < at + bytes.len() {
        content.resize(at + bytes.len(), 0);
    }
    content[at..at + bytes.len()].copy_from_slice(bytes);
}

impl Content {
    /// What was changed before the record `until` is durable.
    fn synced(&mut self, until: i64) {
        let still = self.pending.partition_point(|(number, _)| *number < until);
        for (_, change) in self.pending.drain(..still) {
            match change {
                Change::Write { at, bytes } => set_bytes(&mut self.durable, at, &bytes),
                Change::Extend(length) => {
                    let length = self.durable.len().max(length);
                    self.durable.resize(length, 0);
                }
                Change::Length(length) => self.durable.resize(length, 0),
            }
        }
    }

    /// The bytes of what waits are lost; lengths are not bytes.
    fn doomed(&mut self) {
        for (_, change) in &mut self.pending {
            if let Change::Write { at, bytes } = change {
                *change = Change::Extend(*at + bytes.len());
            }
        }
    }

    fn cut(&self, sector: usize, random: &mut Random, remains: &mut Remains) -> Vec<u8> {
        // Of the times that it became shorter a beginning is there, and nothing that was written after the first that is not.
        let mut changes: Vec<&Change> = self.pending.iter().map(|(_, change)| change).collect();
        let mut length = self.durable.len();
        let mut shortened = Vec::new();
        for (n, change) in changes.iter().enumerate() {
            match change {
                Change::Length(to) if *to < length => {
                    shortened.push(n);
                    length = *to;
                }
                Change::Length(to) | Change::Extend(to) => length = length.max(*to),
                Change::Write { at, bytes } => length = length.max(*at + bytes.len()),
            }
        }
        let there = random.below(shortened.len() as u64 + 1) as usize;
        if let Some(&first_missing) = shortened.get(there) {
            changes.truncate(first_missing);
        }
        let since = shortened[..there].last().map_or(0, |last| last + 1);

        // The length: any since then.
        let upto = since + random.below((changes.len() - since) as u64 + 1) as usize;
        let mut length = self.durable.len();
        let mut longest = length;
        let mut final_length = length;
        for (n, change) in changes.iter().enumerate() {
            match change {
                Change::Length(to) => length = *to,
                Change::Extend(to) => length = length.max(*to),
                Change::Write { at, bytes } => length = length.max(*at + bytes.len()),
            }
            longest = longest.max(length);
            if n + 1 == upto {
                final_length = length;
            }
        }

        // Each sector: which changes touch it, and how many of those are there.
        let mut content = self.durable.clone();
        content.resize(longest, 0);
        let mut touched: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (n, change) in changes.iter().enumerate() {
            match change {
                Change::Write { at, bytes } if !bytes.is_empty() => {
                    for number in at / sector..=(at + bytes.len() - 1) / sector {
                        touched.entry(number).or_default().push(n);
                    }
                }
                Change::Length(to) if n < since => {
                    for number in to / sector..longest.div_ceil(sector) {
                        touched.entry(number).or_default().push(n);
                    }
                }
                _ => {}
            }
        }
        for (number, list) in touched {
            let begin = number * sector;
            let end = (begin + sector).min(longest);
            if begin >= end {
                continue;
            }
            // What was cut off is cut off.
            let least =
                list.iter().rposition(|n| matches!(changes[*n], Change::Length(_))).map_or(0, |at| at + 1);
            let most = list.len();
            let pick = |random: &mut Random| match random.below(8) {
                0..3 => least,
                3..6 => most,
                _ => least + random.below((most - least) as u64 + 1) as usize,
            };
            let version = |count: usize| {
                let mut bytes = content[begin..end].to_vec();
                for n in &list[..count] {
                    match changes[*n] {
                        Change::Write { at, bytes: written } => {
                            let (from, to) = ((*at).max(begin), (*at + written.len()).min(end));
                            bytes[from - begin..to - begin].copy_from_slice(&written[from - at..to - at]);
                        }
                        Change::Length(to) => bytes[(*to).clamp(begin, end) - begin..].fill(0),
                        Change::Extend(_) => {}
                    }
                }
                bytes
            };
            let count = pick(random);
            let mut bytes = version(count);
            if count > least && random.one_in(16) {
                let earlier = version(least + random.below((count - least) as u64) as usize);
                let from = random.below((end - begin) as u64) as usize;
                bytes[from..].copy_from_slice(&earlier[from..]);
                remains.torn += 1;
                remains.dropped += 1;
            } else {
                remains.dropped += u64::from(count < most);
            }
            remains.unsynced += u64::from(most > least);
            content[begin..end].copy_from_slice(&bytes);
        }
        content.resize(final_length, 0);
        content
    }
}

impl Medium {
    fn new(image: Image) -> Self {
        let mut medium = Self::default();
        for (name, durable) in image {
            medium.durable.insert(name, medium.contents.len());
            medium.contents.push(Content { durable, pending: Vec::new() });
        }
        medium.names = medium.durable.clone();
        medium
    }

    fn play(&mut self, log: &[u8]) {
        let records = records(log);
        // What failed did not happen, or only in part: known before it is played.
        let taken_back: BTreeMap<i64, usize> = records
            .iter()
            .filter(|record| record.kind == kind::TAKEN_BACK)
            .map(|record| (record.a, usize::try_from(record.b).unwrap_or(0)))
            .collect();
        for record in records {
            match taken_back.get(&record.number) {
                Some(0) => {}
                Some(&part) => self.step(Record { data: &record.data[..part], ..record }),
                None => self.step(record),
            }
        }
    }

    fn file(&self, handle: i64) -> Option<FileNumber> {
        match self.handles.get(&handle) {
            Some(Handle::File(file)) => Some(*file),
            _ => None,
        }
    }

    fn step(&mut self, record: Record<'_>) {
        let Record { number, kind, a, b, data } = record;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("names in the folder are text");
        let size = |value: i64| usize::try_from(value).expect("a length is not negative");
        match kind {
            kind::OPEN if b == 1 => {
                let (name, file) = (text(data), self.contents.len());
                self.contents.push(Content::default());
                self.names.insert(name.clone(), file);
                self.pending.push((number, Naming::Make { name, file }));
            }
            kind::OPEN => {
                let handle = match self.names.get(&text(data)) {
                    Some(file) => Handle::File(*file),
                    None => Handle::Folder,
                };
                self.handles.insert(a, handle);
            }
            kind::WRITE => {
                let file = self.file(a).unwrap_or_else(|| panic!("record {number} writes what is not open"));
                let change = Change::Write { at: size(b), bytes: data.to_vec() };
                self.contents[file].pending.push((number, change));
            }
            kind::LENGTH => {
                let file = self.file(a).unwrap_or_else(|| panic!("record {number} cuts what is not open"));
                self.contents[file].pending.push((number, Change::Length(size(b))));
            }
            kind::SYNC_BEGIN => {}
            kind::SYNC_END => match self.handles.get(&a) {
                Some(Handle::File(file)) => {
                    let file = *file;
                    self.contents[file].synced(b);
                    let made = |(at, naming): &(i64, Naming)| {
                        *at < b && matches!(naming, Naming::Make { file: made, .. } if *made == file)
                    };
                    if let Some(last) = self.pending.iter().rposition(made) {
                        self.names_synced(last + 1);
                    }
                }
                Some(Handle::Folder) => {
                    self.names_synced(self.pending.partition_point(|(at, _)| *at < b));
                }
                None => panic!("record {number} syncs what is not open"),
            },
            kind::SYNC_FAILED => {
                if let Some(file) = self.file(a) {
                    self.contents[file].doomed();
                }
            }
            kind::RENAME => {
                let at = data.iter().position(|byte| *byte == 0).expect("two names");
                let (from, to) = (text(&data[..at]), text(&data[at + 1..]));
                // A socket or folder is none of the files.
                if let Some(file) = self.names.remove(&from) {
                    self.names.insert(to.clone(), file);
                    self.pending.push((number, Naming::Move { from, to, file }));
                }
            }
            kind::UNLINK => {
                let name = text(data);
                if let Some(file) = self.names.remove(&name) {
                    self.pending.push((number, Naming::Remove { name, file }));
                }
            }
            kind::CLOSE => drop(self.handles.remove(&a)),
            kind::DUP => {
                if let Some(handle) = self.handles.get(&a).copied() {
                    self.handles.insert(b, handle);
                }
            }
            kind::TAKEN_BACK => {}
            _ => panic!(
                "record {number} is of something that the rig cannot follow: {}, {a}, {b}, of {:?}",
                String::from_utf8_lossy(data),
                self.file(a).map(|file| self.names.iter().find(|(_, of)| **of == file)),
            ),
        }
    }

    fn names_synced(&mut self, count: usize) {
        for (_, naming) in self.pending.drain(..count) {
            apply(&mut self.durable, &naming);
        }
    }

    fn cut(mut self, random: &mut Random) -> (Image, Remains) {
        let mut remains = Remains { names: self.pending.len() as u64, ..Remains::default() };
        let sector = if random.one_in(2) { 512 } else { 4_096 };
        let ordered = random.one_in(2);
        let first = random.below(self.pending.len() as u64 + 1) as usize;
        for (n, (_, naming)) in std::mem::take(&mut self.pending).into_iter().enumerate() {
            if if ordered { n < first } else { random.one_in(2) } {
                apply(&mut self.durable, &naming);
            } else {
                remains.names_dropped += 1;
            }
        }
        let image = self
            .durable
            .iter()
            .map(|(name, file)| (name.clone(), self.contents[*file].cut(sector, random, &mut remains)))
            .collect();
        (image, remains)
    }
}

fn apply(names: &mut BTreeMap<String, FileNumber>, naming: &Naming) {
    match naming {
        Naming::Make { name, file } => drop(names.insert(name.clone(), *file)),
        Naming::Move { from, to, file } => {
            if names.get(from) == Some(file) {
                names.remove(from);
            }
            names.insert(to.clone(), *file);
        }
        Naming::Remove { name, file } => {
            if names.get(name) == Some(file) {
                names.remove(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::proc::Launch;
    use std::collections::BTreeSet;
    use std::time::Duration;

    /// What a log of (kind, a, b, data) leaves of `image` over many seeds: all the different folders.
    fn outcomes(image: &[(&str, &[u8])], log: &[(u32, i64, i64, &[u8])]) -> BTreeSet<Vec<(String, Vec<u8>)>> {
        let mut bytes = Vec::new();
        for (kind, a, b, data) in log {
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(u32::try_from(data.len()).unwrap().to_ne_bytes());
            bytes.extend(a.to_ne_bytes());
            bytes.extend(b.to_ne_bytes());
            bytes.extend(*data);
        }
        let image: Image = image.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect();
        (0..400)
            .map(|seed| {
                let mut medium = Medium::new(image.clone());
                medium.play(&bytes);
                medium.cut(&mut Random(seed)).0.into_iter().collect()
            })
            .collect()
    }

    fn folder(files: &[(&str, &[u8])]) -> Vec<(String, Vec<u8>)> {
        files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect()
    }

    use kind::*;

    #[test]
    fn what_is_synced_stays_and_the_rest_may_go() {
        let old: &[u8] = &[0; 600];
        let open = (OPEN, 3, 0, &b"f"[..]);
        let bytes = [b'n'; 500];
        let write = (WRITE, 3, 0, &bytes[..]);
        let synced = outcomes(&[("f", old)], &[open, write, (SYNC_BEGIN, 3, 0, b""), (SYNC_END, 3, 3, b"")]);
        let mut new = old.to_vec();
        new[..500].copy_from_slice(&bytes);
        assert_eq!(synced, BTreeSet::from([folder(&[("f", &new)])]));
        // Without the sync: as before, as after, or torn within the word.
        let open_end = outcomes(&[("f", old)], &[open, write]);
        assert!(open_end.contains(&folder(&[("f", old)])) && open_end.contains(&folder(&[("f", &new)])));
        assert!(open_end.len() > 2, "never torn: {}", open_end.len());
        // A sync that began before the write does not cover it, nor one that failed.
        let early = [open, (SYNC_BEGIN, 3, 0, b""), write, (SYNC_END, 3, 2, b"")];
        assert!(outcomes(&[("f", old)], &early).contains(&folder(&[("f", old)])));
        let failed = [open, write, (SYNC_FAILED, 3, 0, b""), (SYNC_BEGIN, 3, 0, b""), (SYNC_END, 3, 4, b"")];
        assert_eq!(outcomes(&[("f", old)], &failed), BTreeSet::from([folder(&[("f", old)])]));
        // A call that failed has done nothing, or a part.
        let part = [open, write, (TAKEN_BACK, 2, 1, b""), (SYNC_BEGIN, 3, 0, b""), (SYNC_END, 3, 4, b"")];
        let mut n = old.to_vec();
        n[0] = b'n';
        assert_eq!(outcomes(&[("f", old)], &part), BTreeSet::from([folder(&[("f", &n)])]));
    }

    #[test]
    fn sectors_are_kept_each_for_itself() {
        let (a, b) = ([b'a'; 4096], [b'b'; 4096]);
        let old = [0; 8192];
        let log = [(OPEN, 3, 0, &b"f"[..]), (WRITE, 3, 0, &a[..]), (WRITE, 3, 4096, &b[..])];
        let found: BTreeSet<(u8, u8)> = outcomes(&[("f", &old)], &log)
            .into_iter()
            .map(|files| (files[0].1[0], files[0].1[8191]))
            .collect();
        assert_eq!(found, BTreeSet::from([(0, 0), (0, b'b'), (b'a', 0), (b'a', b'b')]));
    }

    #[test]
    fn what_was_cut_off_takes_with_it_what_was_written_after() {
        let log = [(OPEN, 3, 0, &b"f"[..]), (LENGTH, 3, 0, b""), (WRITE, 3, 0, b"n")];
        let found = outcomes(&[("f", b"old")], &log);
        let expect = [&b"old"[..], b"", b"n", b"\0"].map(|bytes| folder(&[("f", bytes)]));
        assert_eq!(found, BTreeSet::from(expect));
    }

    #[test]
    fn names_are_durable_with_their_folder() {
        let make =
            [(OPEN, -1, 1, &b"t"[..]), (OPEN, 3, 0, b"t"), (WRITE, 3, 0, b"x"), (SYNC_BEGIN, 3, 0, b"")];
        let sync = [make[0], make[1], make[2], make[3], (SYNC_END, 3, 4, b"")];
        assert!(outcomes(&[], &make).contains(&folder(&[])), "not synced, not there");
        assert_eq!(outcomes(&[], &sync), BTreeSet::from([folder(&[("t", b"x")])]));
        let mut moved = sync.to_vec();
        moved.push((RENAME, 0, 0, b"t\0f"));
        let both = BTreeSet::from([folder(&[("f", b"old"), ("t", b"x")]), folder(&[("f", b"x")])]);
        assert_eq!(outcomes(&[("f", b"old")], &moved), both);
        moved.extend([(OPEN, 4, 0, &b""[..]), (SYNC_BEGIN, 4, 0, b""), (SYNC_END, 4, 8, b"")]);
        assert_eq!(outcomes(&[("f", b"old")], &moved), BTreeSet::from([folder(&[("f", b"x")])]));
    }

    /// A process under the shim: what it did is in the log, in its order, and nothing of other folders is.
    #[test]
    fn the_shim_follows_a_process() {
        let mut disk = Disk::new();
        let script = r#"
            use IO::Handle;
            sub put { open(my $f, $_[0], $_[1]) or die "$_[1]: $!"; syswrite($f, $_[2]); $f->sync if $_[3]; }
            chdir($ARGV[0]);
            put(">", "$ARGV[0]/a", "one\n");
            put(">>", "$ARGV[0]/a", "two\n");
            rename("$ARGV[0]/a", "$ARGV[0]/b");
            put(">", "$ARGV[0]/c", "gone");
            unlink("$ARGV[0]/c");
            put(">", "$ARGV[0]-other", "elsewhere", 1);
            put(">", "$ARGV[0]/d", "x" x 300, 1);
            put(">", "$ARGV[0]/e", "end");
            kill(9, $$);
        "#;
        let log = disk.scratch.path().join("output");
        let mut launch = Launch::new("perl", "perl", &log).args(["-e", script]).arg(disk.folder());
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        for (name, value) in [
            ("LD_PRELOAD", text(shim().to_owned())),
            ("FERRULE_SHIM_FOLDER", text(disk.folder())),
            ("FERRULE_SHIM_LOG", text(disk.log())),
            ("FERRULE_SHIM_CONTROL", text(disk.scratch.path().join("control"))),
        ] {
            launch = launch.env(name, value);
        }
        let mut perl = launch.start();
        perl.wait(Duration::from_secs(10));
        let bytes = fs::read(disk.log()).unwrap_or_else(|error| panic!("{error}: {}", perl.log()));
        let mut medium = Medium::new(Image::new());
        medium.play(&bytes);
        let names: Vec<&str> = medium.names.keys().map(String::as_str).collect();
        assert_eq!(names, ["b", "d", "e"], "{}", perl.log());
        let mut as_left = |name: &str| {
            let mut content = std::mem::take(&mut medium.contents[medium.names[name]]);
            content.synced(i64::MAX);
            content.durable
        };
        assert_eq!(as_left("b"), b"one\ntwo\n");
        assert_eq!(as_left("d"), [b'x'; 300]);
        // The synced one is there after any cut.
        let remains = disk.cut(&mut Random(1));
        assert_eq!(remains.names, 1, "the last file's; all others came before the sync: {remains:?}");
        assert_eq!(fs::read(disk.folder().join("d")).unwrap(), [b'x'; 300]);
    }
}
