//! The thread that owns the file, and the handles that feed it.

use crate::db::Db;
use crate::error::{DbError, Kind, OpenError};
use crate::look::{self, Cursor, Page};
use crate::net::Net;
use crate::salvage::{self, Damage};
use crate::space::{Ballast, free_bytes};
use crate::{FILE, Options};
use ferrule_store::{JointPart, Op, QueueId, Restored, Store, StoreEvent, Ticket};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tracing::{error, info, warn};

/// First pause after a failure; doubled up to the last. A full disk is looked at again within seconds of being freed,
/// and a dead one costs nothing.
const BACK_OFF_FIRST: Duration = Duration::from_millis(100);
const BACK_OFF_LAST: Duration = Duration::from_secs(5);
/// How long nothing must have been submitted before housekeeping, and how often it is tried while there is some.
const IDLE_BUSY: Duration = Duration::from_secs(1);
/// How often housekeeping looks whether there is any.
const IDLE_REST: Duration = Duration::from_secs(60);
/// How often the free space is looked at.
const SPACE_INTERVAL: Duration = Duration::from_secs(1);
/// A page that could not be read after so many reopenings is lost: salvage the others.
const UNREADABLE_MAX: u32 = 3;
/// A medium that damages files as fast as they are salvaged would fill itself with copies.
const SALVAGE_INTERVAL: Duration = Duration::from_secs(3600);

/// What `open` found and made.
#[derive(Debug)]
pub struct Opened {
    /// The running writer.
    pub writer: Writer,
    /// What the shards need in memory.
    pub restored: Restored,
    /// Set when the file was damaged: to be shown to a person, since something may be lost.
    pub damage: Option<Damage>,
}

/// How the writer is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum State {
    /// Commits work.
    #[default]
    Running,
    /// The medium refuses; the message is for people.
    Failing(String),
    /// Shut down, or ended by a bug: nothing is stored any more.
    Stopped,
}

/// A snapshot of the writer's figures; counts are of this process life.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// How it is.
    pub state: State,
    /// Commits, folds included.
    pub commits: u64,
    /// Commits that moved the journal's net into the tables.
    pub folds: u64,
    /// Batches committed.
    pub batches: u64,
    /// Ops committed.
    pub ops: u64,
    /// Bytes of ops committed, as [`Op::size`] counts them.
    pub bytes: u64,
    /// Rows read.
    pub rows_read: u64,
    /// How long the last commit took.
    pub last_commit: Duration,
    /// Failures since the start; each reopens the file.
    pub failures: u64,
    /// Size of the file.
    pub file_bytes: u64,
    /// Size of the WAL.
    pub wal_bytes: u64,
    /// Size of the ballast; 0 while it is given up.
    pub ballast_bytes: u64,
    /// Bytes free beside the file, when the system says.
    pub free_bytes: Option<u64>,
    /// Less than the reserve is free: admission should stop.
    pub low_on_space: bool,
    /// Damage found while running.
    pub damage: Option<Damage>,
}

/// The writer could not store everything before it ended.
#[derive(Debug, thiserror::Error)]
#[error("{batches} batches were not stored when ferrule stopped: {message}")]
pub struct ShutdownError {
    /// Batches whose tickets never resolved.
    pub batches: usize,
    /// For people.
    pub message: String,
}

/// How long a part of a joint commit waits for its other part, which comes a turn of two shards later; past it, it is committed
/// alone.
const JOINT_MAX: Duration = Duration::from_secs(1);

type Notify = Box<dyn Fn(StoreEvent) + Send>;

enum Command {
    Attach { handle: u32, notify: Notify },
    Detach { handle: u32 },
    Batch(Batch),
    Read(Read),
    Look(Looking),
    Shutdown { reply: Sender<Result<(), ShutdownError>> },
}

struct Batch {
    handle: u32,
    ticket: Ticket,
    ops: Vec<Op>,
    bytes: usize,
    parts: Vec<JointPart>,
    /// Of those with parts alone.
    came: Option<Instant>,
}

struct Read {
    handle: u32,
    queue: QueueId,
    from: u64,
    max_rows: u32,
    max_bytes: u32,
}

/// Somebody looks through the store.
struct Looking {
    after: Option<Cursor>,
    reply: Sender<Result<Page, String>>,
}

/// What handles and thread share.
#[derive(Debug)]
struct Shared {
    /// The ticket is drawn and the batch sent under one lock: tickets ascend in the order of the channel.
    line: Mutex<Line>,
    pending_bytes: AtomicUsize,
    low_on_space: AtomicBool,
    status: Mutex<Status>,
}

#[derive(Debug)]
struct Line {
    last_ticket: u64,
    last_handle: u32,
    commands: Sender<Command>,
}

impl Shared {
    fn line(&self) -> MutexGuard<'_, Line> {
        // Nothing under the lock can panic half way.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Owner of the writer's thread. Dropping it shuts the writer down too, without telling whether all was stored.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Opens or creates the store in `folder` and starts its thread.
///
/// Blocks: it waits for the medium, and reads the whole file when that is small (up to 16 MiB). A damaged file is
/// moved aside and its readable part kept; that is not an error but [`Opened::damage`].
///
/// # Errors
/// When the file is held by another process, was written by a newer release, is another program's, or the medium
/// does not let it be created or read.
pub fn open(folder: &Path, options: Options) -> Result<Opened, OpenError> {
    let fail = |e: DbError| e.into_open(folder);
    fs::create_dir_all(folder).map_err(|e| fail(e.into()))?;
    let mut ballast = Ballast::new(folder, options.ballast_bytes);
    let (db, damage) = match salvage::open(folder, &options, None) {
        // A disk that was full when the last process ended is full at the start too.
        Err(e) if e.kind() == Kind::Full && ballast.give_up() => salvage::open(folder, &options, None),
        other => other,
    }
    .map_err(|e| fail(explain(folder, e)))?;
    if let Some(damage) = &damage {
        error!("{damage}");
    }
    let restored = db.restored().map_err(fail)?;
    if let Err(e) = ballast.take(options.reserve_bytes) {
        warn!("no ballast in {}: {e}", folder.display());
    }
    let (commands, received) = channel();
    let shared = Arc::new(Shared {
        line: Mutex::new(Line { last_ticket: 0, last_handle: 0, commands }),
        pending_bytes: AtomicUsize::new(0),
        low_on_space: AtomicBool::new(false),
        status: Mutex::new(Status::default()),
    });
    let mut worker = Worker {
        folder: folder.to_owned(),
        options,
        received,
        shared: shared.clone(),
        db: Ok(db),
        ballast,
        handles: BTreeMap::new(),
        batches: Vec::new(),
        reads: VecDeque::new(),
        looks: VecDeque::new(),
        failing: None,
        damaged: None,
        unreadable: 0,
        last_salvage: None,
        last_space: None,
        stopping: None,
    };
    worker.look_at_space();
    worker.note_sizes();
    let thread = std::thread::Builder::new()
        .name("ferrule-store".into())
        .spawn(move || worker.run())
        .map_err(|e| fail(e.into()))?;
    Ok(Opened { writer: Writer { shared, thread: Some(thread) }, restored, damage })
}

/// SQLite's "unable to open" hides the reason; the system tells it when asked for the same thing.
fn explain(folder: &Path, error: DbError) -> DbError {
    let cannot_open = matches!(
        &error,
        DbError::Sqlite(rusqlite::Error::SqliteFailure(e, _)) if e.code == rusqlite::ErrorCode::CannotOpen
    );
    let probe = folder.join(".ferrule-probe");
    if cannot_open && let Err(e) = fs::write(&probe, b"") {
        return DbError::Io(e);
    }
    let _ = fs::remove_file(probe);
    error
}

impl Writer {
    /// A handle for one shard. `notify` is called on the writer's thread, between commits: it must not block and must
    /// not call into this crate; push to the shard's inbox and wake it.
    #[must_use]
    pub fn handle(&self, notify: Box<dyn Fn(StoreEvent) + Send>) -> SqliteStore {
        let mut line = self.shared.line();
        line.last_handle += 1;
        let handle = line.last_handle;
        // A send fails only when the thread has ended; then nothing resolves, as after `shutdown`.
        let _ = line.commands.send(Command::Attach { handle, notify });
        SqliteStore { handle, shared: self.shared.clone() }
    }

    /// The figures as of the last commit.
    #[must_use]
    pub fn status(&self) -> Status {
        self.shared.status().clone()
    }

    /// Asks for a page of what is in the store; the answer comes between two commits.
    #[must_use]
    pub fn look(&self, after: Option<Cursor>) -> Receiver<Result<Page, String>> {
        let (reply, answer) = channel();
        let _ = self.shared.line().commands.send(Command::Look(Looking { after, reply }));
        answer
    }

    /// Commits what waits, copies the WAL into the file, and closes it. What handles submit later never resolves.
    ///
    /// # Errors
    /// When the medium still refuses: what was not acknowledged is not stored.
    pub fn shutdown(mut self) -> Result<(), ShutdownError> {
        self.stop()
    }

    fn stop(&mut self) -> Result<(), ShutdownError> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        let (reply, answer) = channel();
        let _ = self.shared.line().commands.send(Command::Shutdown { reply });
        let result = answer.recv();
        let joined = thread.join();
        result.ok().filter(|_| joined.is_ok()).unwrap_or_else(|| {
            Err(ShutdownError {
                batches: 0,
                message: "the writer's thread has panicked: this is a bug".into(),
            })
        })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Err(e) = self.stop() {
            error!("{e}");
        }
    }
}

/// One shard's handle to the writer.
#[derive(Debug)]
pub struct SqliteStore {
    handle: u32,
    shared: Arc<Shared>,
}

impl Store for SqliteStore {
    fn low_on_space(&self) -> bool {
        self.shared.low_on_space.load(Ordering::Relaxed)
    }

    fn submit(&mut self, ops: Vec<Op>) -> Ticket {
        self.submit_joint(ops, Vec::new())
    }

    fn submit_joint(&mut self, ops: Vec<Op>, parts: Vec<JointPart>) -> Ticket {
        let bytes = ops.iter().map(Op::size).sum();
        let came = (!parts.is_empty()).then(Instant::now);
        self.shared.pending_bytes.fetch_add(bytes, Ordering::Relaxed);
        let mut line = self.shared.line();
        line.last_ticket += 1;
        let ticket = Ticket(line.last_ticket);
        let _ = line.commands.send(Command::Batch(Batch {
            handle: self.handle,
            ticket,
            ops,
            bytes,
            parts,
            came,
        }));
        ticket
    }

    fn read(&mut self, queue: QueueId, from: u64, max_rows: u32, max_bytes: u32) {
        let read = Read { handle: self.handle, queue, from, max_rows, max_bytes };
        let _ = self.shared.line().commands.send(Command::Read(read));
    }

    /// Of all handles together: what bounds the writer's memory.
    fn pending_bytes(&self) -> usize {
        self.shared.pending_bytes.load(Ordering::Relaxed)
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        let _ = self.shared.line().commands.send(Command::Detach { handle: self.handle });
    }
}

// === the thread ===

struct Worker {
    folder: PathBuf,
    options: Options,
    received: Receiver<Command>,
    shared: Arc<Shared>,
    /// The open file, or after a failure what its journal held.
    db: Result<Db, Net>,
    ballast: Ballast,
    handles: BTreeMap<u32, Notify>,
    /// Submitted and not committed: bounded by the shards' back-pressure, which looks at `pending_bytes`.
    batches: Vec<Batch>,
    /// Asked and not answered: bounded by the shards, which have one read of a queue under way.
    reads: VecDeque<Read>,
    /// The same of whoever looks through it: bounded by the connections of the control socket.
    looks: VecDeque<Looking>,
    /// The message that was told last, while failing.
    failing: Option<String>,
    /// Salvage at the next reopening, and why.
    damaged: Option<String>,
    unreadable: u32,
    last_salvage: Option<Instant>,
    last_space: Option<Instant>,
    stopping: Option<Sender<Result<(), ShutdownError>>>,
}

/// Says `Stopped` however the thread ends.
struct StopSign(Arc<Shared>);

impl Drop for StopSign {
    fn drop(&mut self) {
        self.0.status().state = State::Stopped;
        if std::thread::panicking() {
            error!(
                "the store's writer has panicked: nothing is stored any more; restart ferrule and report this"
            );
        }
    }
}

impl Worker {
    fn run(mut self) {
        let _sign = StopSign(self.shared.clone());
        let mut idle = IDLE_BUSY;
        let mut back_off = BACK_OFF_FIRST;
        loop {
            if self.whole() == 0 && self.reads.is_empty() && self.looks.is_empty() && self.stopping.is_none()
            {
                // A part that waits for its other must not be forgotten.
                let wait = if self.batches.is_empty() { idle } else { JOINT_MAX };
                match self.received.recv_timeout(wait) {
                    Ok(command) => {
                        self.take(command);
                        idle = IDLE_BUSY;
                    }
                    Err(RecvTimeoutError::Timeout) => match self.keep_house() {
                        Ok(more) => idle = if more { IDLE_BUSY } else { IDLE_REST },
                        Err(e) => self.fail(e),
                    },
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
            // Everything that came meanwhile goes into this commit.
            while let Ok(command) = self.received.try_recv() {
                self.take(command);
            }
            let result = match &self.db {
                Ok(_) => self.turn(),
                Err(_) => self.reopen().and_then(|()| self.turn()),
            };
            match result {
                Ok(()) => back_off = BACK_OFF_FIRST,
                Err(e) => {
                    for looking in self.looks.drain(..) {
                        // Who asked may have gone.
                        let _ = looking.reply.send(Err(e.to_string()));
                    }
                    self.fail(e);
                    if self.stopping.is_none() {
                        self.pause(back_off);
                        back_off = (back_off * 2).min(BACK_OFF_LAST);
                        continue;
                    }
                }
            }
            if self.stopping.is_some()
                && (self.db.is_err() || (self.batches.is_empty() && self.reads.is_empty()))
            {
                return self.stop();
            }
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Attach { handle, notify } => {
                if let Some(message) = &self.failing {
                    notify(StoreEvent::Failing { message: message.clone() });
                }
                self.handles.insert(handle, notify);
            }
            Command::Detach { handle } => {
                self.handles.remove(&handle);
            }
            Command::Batch(batch) => self.batches.push(batch),
            Command::Read(read) => self.reads.push_back(read),
            Command::Look(looking) => self.looks.push_back(looking),
            Command::Shutdown { reply } => self.stopping = Some(reply),
        }
    }

    fn pause(&mut self, pause: Duration) {
        let until = Instant::now() + pause;
        while self.stopping.is_none() {
            match self.received.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(command) => self.take(command),
                Err(_) => return,
            }
        }
    }

    /// One commit of all that waits, then one read.
    fn turn(&mut self) -> Result<(), DbError> {
        if self.db.is_err() {
            return Ok(());
        }
        let mending = self.failing.is_some();
        let whole = self.whole();
        let Ok(db) = &mut self.db else { return Ok(()) };
        if whole > 0 || mending {
            let started = Instant::now();
            let ops = self.batches[..whole].iter().flat_map(|batch| &batch.ops);
            let mut done = None;
            // A barrier alone needs no commit: all before it is on stable storage. After a failure even nothing is
            // committed, to see whether it can be.
            if mending || ops.clone().next().is_some() {
                done = Some(db.commit(ops, mending)?);
            }
            self.committed(whole, done.map(|d| d.folded), started.elapsed());
        }
        self.read_one()?;
        self.look_once()?;
        let Ok(db) = &mut self.db else { return Ok(()) };
        db.checkpoint_if_due(self.options.wal_bytes)?;
        if self.last_space.is_none_or(|at| at.elapsed() >= SPACE_INTERVAL) {
            self.look_at_space();
        }
        Ok(())
    }

    /// Brings the batches that can be committed now to the front, and counts them. All can, but parts of joint commits whose
    /// other part is not there yet, and what was submitted behind them on the same handle.
    fn whole(&mut self) -> usize {
        if self.stopping.is_some() || self.batches.iter().all(|batch| batch.parts.is_empty()) {
            return self.batches.len();
        }
        // From which of its batches on a handle waits.
        let mut waits = BTreeMap::<u32, Ticket>::new();
        loop {
            let ready = |b: &Batch| waits.get(&b.handle).is_none_or(|from| b.ticket < *from);
            let (mut opened, mut closed) = (BTreeSet::new(), BTreeSet::new());
            for part in self.batches.iter().filter(|b| ready(b)).flat_map(|b| &b.parts) {
                match part {
                    JointPart::Opens(joint) => opened.insert(*joint),
                    JointPart::Closes(joint) => closed.insert(*joint),
                };
            }
            let other = |part: &JointPart| match part {
                JointPart::Opens(joint) => closed.contains(joint),
                JointPart::Closes(joint) => opened.contains(joint),
            };
            // Its other part will not come any more: the worst is that a power cut now makes a message twice.
            let given_up = |b: &Batch| b.came.is_some_and(|came| came.elapsed() >= JOINT_MAX);
            let half = self.batches.iter().find(|b| ready(b) && !given_up(b) && !b.parts.iter().all(other));
            let Some(half) = half else { break };
            let (handle, ticket) = (half.handle, half.ticket);
            waits.insert(handle, ticket);
        }
        // A stable sort: each handle's batches stay in order.
        self.batches.sort_by_key(|b| waits.get(&b.handle).is_some_and(|from| b.ticket >= *from));
        self.batches.iter().filter(|b| waits.get(&b.handle).is_none_or(|from| b.ticket < *from)).count()
    }

    fn committed(&mut self, whole: usize, folded: Option<bool>, took: Duration) {
        let batches: Vec<Batch> = self.batches.drain(..whole).collect();
        let bytes: usize = batches.iter().map(|batch| batch.bytes).sum();
        self.shared.pending_bytes.fetch_sub(bytes, Ordering::Relaxed);
        if self.failing.take().is_some() {
            info!("the store in {} works again", self.folder.display());
            self.handles.values().for_each(|notify| notify(StoreEvent::Recovered));
        }
        {
            let mut status = self.shared.status();
            status.state = State::Running;
            if let Some(folded) = folded {
                status.commits += 1;
                status.folds += u64::from(folded);
                status.last_commit = took;
            }
            status.batches += batches.len() as u64;
            status.ops += batches.iter().map(|batch| batch.ops.len() as u64).sum::<u64>();
            status.bytes += bytes as u64;
        }
        if folded == Some(true) {
            self.note_sizes();
        }
        // Of each handle the last.
        let told: BTreeMap<u32, Ticket> = batches.iter().map(|b| (b.handle, b.ticket)).collect();
        for (handle, ticket) in told {
            if let Some(notify) = self.handles.get(&handle) {
                notify(StoreEvent::Committed { ticket, took });
            }
        }
    }

    /// Answers the oldest read; those behind it wait until the next commit is done.
    fn read_one(&mut self) -> Result<(), DbError> {
        let (Ok(db), Some(read)) = (&self.db, self.reads.front()) else { return Ok(()) };
        let rows = db.read(read.queue, read.from, read.max_rows, read.max_bytes)?;
        self.unreadable = 0;
        self.shared.status().rows_read += rows.len() as u64;
        if let Some(notify) = self.handles.get(&read.handle) {
            notify(StoreEvent::Rows { queue: read.queue, rows });
        }
        self.reads.pop_front();
        Ok(())
    }

    /// A page for whoever looks through the store; of the first one the tables are what was committed by now.
    fn look_once(&mut self) -> Result<(), DbError> {
        let (Ok(db), Some(looking)) = (&mut self.db, self.looks.front()) else { return Ok(()) };
        if looking.after.is_none() {
            db.fold()?;
        }
        let page = look::page(db.conn(), looking.after.as_ref())?;
        if let Some(looking) = self.looks.pop_front() {
            let _ = looking.reply.send(Ok(page));
        }
        Ok(())
    }

    /// Takes note of a failure: the connection is given up, and who waits is told once.
    fn fail(&mut self, e: DbError) {
        self.db = match std::mem::replace(&mut self.db, Err(Net::default())) {
            Ok(db) => Err(db.abandon()),
            net => net,
        };
        match e.kind() {
            Kind::Full if self.ballast.give_up() => {
                warn!("no space left in {}: gave up the ballast", self.folder.display());
            }
            Kind::Corrupt => self.damaged = Some(e.to_string()),
            Kind::Unreadable => {
                self.unreadable += 1;
                if self.unreadable >= UNREADABLE_MAX {
                    self.damaged = Some(e.to_string());
                }
            }
            _ => {}
        }
        let message = e.describe(&self.folder);
        let mut status = self.shared.status();
        status.failures += 1;
        if self.failing.as_ref() == Some(&message) {
            return;
        }
        error!("{message}");
        status.state = State::Failing(message.clone());
        drop(status);
        for notify in self.handles.values() {
            notify(StoreEvent::Failing { message: message.clone() });
        }
        self.failing = Some(message);
    }

    /// Opens the file anew. The WAL is copied and synced before anything else: what the kernel may have forgotten of
    /// a failed fsync is written again from it.
    fn reopen(&mut self) -> Result<(), DbError> {
        let may_salvage = self.last_salvage.is_none_or(|at| at.elapsed() >= SALVAGE_INTERVAL);
        let (mut db, damage) = if may_salvage {
            salvage::open(&self.folder, &self.options, self.damaged.clone())?
        } else {
            let mut db = Db::open(&self.folder.join(FILE), &self.options)?;
            db.recover(false)?;
            (db, None)
        };
        self.damaged = None;
        if let Some(damage) = damage {
            error!("{damage}");
            self.last_salvage = Some(Instant::now());
            self.unreadable = 0;
            self.shared.status().damage = Some(damage);
        }
        if let Err(net) = &mut self.db {
            db.adopt(std::mem::take(net));
        }
        self.db = Ok(db);
        Ok(())
    }

    /// What is done while nothing else is: true when there is more of it.
    fn keep_house(&mut self) -> Result<bool, DbError> {
        self.look_at_space();
        match self.ballast.take(self.options.reserve_bytes) {
            Ok(true) => info!("took back the ballast in {}", self.folder.display()),
            Ok(false) => {}
            Err(e) => warn!("no ballast in {}: {e}", self.folder.display()),
        }
        let Ok(db) = &mut self.db else { return Ok(true) };
        db.fold_if_due()?;
        let more = db.vacuum_some()?;
        db.checkpoint_if_due(self.options.wal_bytes)?;
        self.note_sizes();
        Ok(more || self.shared.low_on_space.load(Ordering::Relaxed))
    }

    fn look_at_space(&mut self) {
        self.last_space = Some(Instant::now());
        let free = free_bytes(&self.folder);
        let low = free.is_some_and(|free| free < self.options.reserve_bytes);
        if low != self.shared.low_on_space.swap(low, Ordering::Relaxed) {
            if low {
                warn!(
                    "less than {} MiB free for {}: nothing new is admitted that has to be stored; free some",
                    self.options.reserve_bytes >> 20,
                    self.folder.display()
                );
            } else {
                info!("enough space again for {}", self.folder.display());
            }
        }
        let mut status = self.shared.status();
        (status.free_bytes, status.low_on_space) = (free, low);
    }

    fn note_sizes(&self) {
        let Ok(db) = &self.db else { return };
        let mut status = self.shared.status();
        status.file_bytes = db.file_bytes().unwrap_or(status.file_bytes);
        status.wal_bytes = db.wal_bytes();
        status.ballast_bytes = self.ballast.held_bytes();
    }

    fn stop(mut self) {
        let Some(reply) = self.stopping.take() else { return };
        let result = match self.db {
            Ok(db) => db.close().map_err(|e| ShutdownError { batches: 0, message: e.describe(&self.folder) }),
            Err(_) => Err(ShutdownError {
                batches: self.batches.len(),
                message: self.failing.clone().unwrap_or_default(),
            }),
        };
        // Only after the file is closed: whoever waits may open it again at once.
        let _ = reply.send(result);
    }
}
