//! The thread that owns the file, and the handles that feed it.

use crate::db::Db;
use crate::error::{DbError, Kind, OpenError};
use crate::look::{self, Cursor, Page};
use crate::net::Net;
use crate::salvage::{self, Damage};
use crate::space::{Ballast, free_bytes};
use crate::{FILE, Options};
use ferrule_store::{Restored, StoreEvent};
use ferrule_store_writer::{Back, Figures, Front, Handle, Notify, ShutdownError, State, Waited, Writing};
use std::collections::VecDeque;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
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
    /// Bytes of ops committed, as [`ferrule_store::Op::size`] counts them.
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
    /// Damage found, at the start or since.
    pub damage: Option<Damage>,
}

/// Somebody looks through the store.
struct Looking {
    after: Option<Cursor>,
    reply: Sender<Result<Page, String>>,
}

/// What the writer's owner and its thread share beside the line.
#[derive(Debug)]
struct Shared {
    front: Arc<Front>,
    status: Mutex<Status>,
}

impl Shared {
    fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Owner of the writer's thread. Dropping it shuts the writer down too, without telling whether all was stored.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    looks: Sender<Looking>,
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
    let (front, back) = Front::new();
    let (looks, looking) = channel();
    let shared = Arc::new(Shared {
        front,
        status: Mutex::new(Status { damage: damage.clone(), ..Status::default() }),
    });
    let mut worker = Worker {
        folder: folder.to_owned(),
        options,
        back,
        looking,
        shared: shared.clone(),
        db: Ok(db),
        ballast,
        looks: VecDeque::new(),
        damaged: None,
        unreadable: 0,
        last_salvage: None,
        last_space: None,
    };
    worker.look_at_space();
    worker.note_sizes();
    let thread = std::thread::Builder::new()
        .name("ferrule-store".into())
        .spawn(move || worker.run())
        .map_err(|e| fail(e.into()))?;
    Ok(Opened { writer: Writer { shared, looks, thread: Some(thread) }, restored, damage })
}

/// Writes a file's bytes over themselves, and syncs it.
///
/// After a failed fsync pages may be marked clean that never reached the medium, and the next fsync returns 0 for them. A
/// checkpoint that trusts it copies frames into the database that a power cut then takes from the WAL: half a transaction is left.
/// Pages that were written once more are dirty once more.
fn write_again(file: &Path) -> Result<(), DbError> {
    let file = match fs::OpenOptions::new().read(true).write(true).open(file) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    let mut block = vec![0; 64 << 10];
    let mut at = 0;
    loop {
        let size = file.read_at(&mut block, at)?;
        if size == 0 {
            return Ok(file.sync_all()?);
        }
        file.write_all_at(&block[..size], at)?;
        at += size as u64;
    }
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
    pub fn handle(&self, notify: Notify) -> Handle {
        self.shared.front.handle(notify)
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
        let _ = self.looks.send(Looking { after, reply });
        self.shared.front.wake();
        answer
    }

    /// Commits what waits, copies the WAL into the file, and closes it. What handles submit later never resolves.
    ///
    /// # Errors
    /// When the medium still refuses: what was not acknowledged is not stored.
    pub fn shutdown(mut self) -> Result<(), ShutdownError> {
        self.stop()
    }
}

impl Writing for Writer {
    fn handle(&self, notify: Notify) -> Handle {
        self.shared.front.handle(notify)
    }

    fn figures(&self) -> Figures {
        let Status { state, commits, batches, ops, last_commit, .. } = self.status();
        Figures { state, commits, batches, ops, last_commit }
    }

    fn stop(&mut self) -> Result<(), ShutdownError> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        let result = self.shared.front.shutdown().recv();
        let joined = thread.join();
        result.ok().filter(|_| joined.is_ok()).unwrap_or_else(|| Err(ShutdownError::panicked()))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Err(e) = self.stop() {
            error!("{e}");
        }
    }
}

// === the thread ===

struct Worker {
    folder: PathBuf,
    options: Options,
    back: Back,
    looking: Receiver<Looking>,
    shared: Arc<Shared>,
    /// The open file, or after a failure what its journal held.
    db: Result<Db, Net>,
    ballast: Ballast,
    /// Asked by whoever looks through it and not answered: bounded by the connections of the control socket.
    looks: VecDeque<Looking>,
    /// Salvage at the next reopening, and why.
    damaged: Option<String>,
    unreadable: u32,
    last_salvage: Option<Instant>,
    last_space: Option<Instant>,
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
            self.looks.extend(self.looking.try_iter());
            let nothing = self.back.whole() == 0 && self.back.reads.is_empty() && self.looks.is_empty();
            if nothing && !self.back.is_stopping() {
                match self.back.wait(idle) {
                    Waited::Came => idle = IDLE_BUSY,
                    Waited::Idle => match self.keep_house() {
                        Ok(more) => idle = if more { IDLE_BUSY } else { IDLE_REST },
                        Err(e) => self.fail(e),
                    },
                    Waited::Ended => return,
                }
            }
            // Everything that came meanwhile goes into this commit.
            self.back.take_all();
            self.looks.extend(self.looking.try_iter());
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
                    if !self.back.is_stopping() {
                        self.back.pause(back_off);
                        back_off = (back_off * 2).min(BACK_OFF_LAST);
                        continue;
                    }
                }
            }
            if self.back.is_stopping()
                && (self.db.is_err() || (self.back.batches.is_empty() && self.back.reads.is_empty()))
            {
                return self.stop();
            }
        }
    }

    /// One commit of all that waits, then one read.
    fn turn(&mut self) -> Result<(), DbError> {
        if self.db.is_err() {
            return Ok(());
        }
        let mending = self.back.failing().is_some();
        let whole = self.back.whole();
        let Ok(db) = &mut self.db else { return Ok(()) };
        if whole > 0 || mending {
            let started = Instant::now();
            let ops = self.back.batches[..whole].iter().flat_map(|batch| &batch.ops);
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

    fn committed(&mut self, whole: usize, folded: Option<bool>, took: Duration) {
        // Before who waits is told: it may look at once.
        {
            let batches = &self.back.batches[..whole];
            let mut status = self.shared.status();
            status.state = State::Running;
            if let Some(folded) = folded {
                status.commits += 1;
                status.folds += u64::from(folded);
                status.last_commit = took;
            }
            status.batches += batches.len() as u64;
            status.ops += batches.iter().map(|batch| batch.ops.len() as u64).sum::<u64>();
            status.bytes += batches.iter().map(|batch| batch.bytes as u64).sum::<u64>();
        }
        if folded == Some(true) {
            self.note_sizes();
        }
        let (_, recovered) = self.back.committed(whole, took);
        if recovered {
            info!("the store in {} works again", self.folder.display());
        }
    }

    /// Answers the oldest read; those behind it wait until the next commit is done.
    fn read_one(&mut self) -> Result<(), DbError> {
        let (Ok(db), Some(read)) = (&self.db, self.back.reads.front().copied()) else { return Ok(()) };
        let rows = db.read(read.queue, read.from, read.max_rows, read.max_bytes)?;
        self.unreadable = 0;
        self.shared.status().rows_read += rows.len() as u64;
        self.back.tell(read.handle, StoreEvent::Rows { queue: read.queue, rows });
        self.back.reads.pop_front();
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
        self.shared.status().failures += 1;
        if self.back.failing() == Some(&message) {
            return;
        }
        error!("{message}");
        self.shared.status().state = State::Failing(message.clone());
        self.back.fail(&message);
    }

    /// Opens the file anew. The WAL is written again and synced, then copied, before anything else: what the kernel may have
    /// forgotten of a failed fsync is on the medium then.
    fn reopen(&mut self) -> Result<(), DbError> {
        write_again(&crate::beside(&self.folder.join(FILE), "-wal"))?;
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
        Ok(more || self.shared.front.is_low_on_space())
    }

    fn look_at_space(&mut self) {
        self.last_space = Some(Instant::now());
        let free = free_bytes(&self.folder);
        let low = free.is_some_and(|free| free < self.options.reserve_bytes);
        if low != self.shared.front.set_low_on_space(low) {
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
        let Some(reply) = self.back.take_stopping() else { return };
        let result = match self.db {
            Ok(db) => db.close().map_err(|e| ShutdownError { batches: 0, message: e.describe(&self.folder) }),
            Err(_) => Err(ShutdownError {
                batches: self.back.batches.len(),
                message: self.back.failing().unwrap_or_default().to_owned(),
            }),
        };
        // Only after the file is closed: whoever waits may open it again at once.
        let _ = reply.send(result);
    }
}
