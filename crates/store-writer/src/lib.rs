//! What the writers of the store share, whatever they write to.
//!
//! # Data
//! - [`Handle`], one a shard: the [`Store`] that the shard sees. The same type for every medium, so that what is above
//!   need not know which one a node has.
//! - [`Front`]: what handles and the writer's thread share. Drawing a ticket and sending its batch are under one lock:
//!   tickets ascend in the order of the channel.
//! - [`Back`]: the thread's side: what was submitted and not committed, who is to be told.
//! - [`net::Net`]: the ops of a commit folded onto each other.
//!
//! # Invariants
//! Nothing submitted is dropped: a batch leaves [`Back`] with [`Back::committed`] alone.

#![forbid(unsafe_code)]

#[cfg(feature = "harness")]
pub mod harness;
pub mod net;

use bytes::Bytes;
use ferrule_store::{JointPart, Op, QueueId, SessionId, Store, StoreEvent, Taken, Ticket};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a part of a joint commit waits for its other part, which comes a turn of two shards later; past it, it is committed
/// alone.
const JOINT_MAX: Duration = Duration::from_secs(1);

/// Called on the writer's thread, between commits: it must not block and must not call into the writer; push to the shard's
/// inbox and wake it.
pub type Notify = Box<dyn Fn(StoreEvent) + Send>;

/// How a writer is.
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

/// A writer's figures that all of them have; counts are of this process life.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// How it is.
    pub state: State,
    /// Commits.
    pub commits: u64,
    /// Batches committed.
    pub batches: u64,
    /// Ops committed.
    pub ops: u64,
    /// How long the last commit took.
    pub last_commit: Duration,
}

/// A running writer, whatever it writes to. Dropping it stops it too, without telling whether all was stored.
pub trait Writing: fmt::Debug + Send + Sync {
    /// A handle for one shard.
    fn handle(&self, notify: Notify) -> Handle;

    /// The figures as of the last commit.
    fn figures(&self) -> Figures;

    /// Commits what waits and closes the medium. What handles submit later never resolves.
    ///
    /// # Errors
    /// When the medium still refuses: what was not acknowledged is not stored.
    fn stop(&mut self) -> Result<(), ShutdownError>;
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

impl ShutdownError {
    /// The thread has ended without an answer.
    #[must_use]
    pub fn panicked() -> Self {
        Self { batches: 0, message: "the writer's thread has panicked: this is a bug".into() }
    }
}

/// What the writer's thread is asked for.
enum Command {
    Attach { handle: u32, notify: Notify },
    Detach { handle: u32 },
    Batch(Batch),
    Read(Read),
    Take(Take),
    Adopt { handle: u32, view: u64, behind: Ticket },
    Keep { rules: Vec<u64>, behind: Ticket },
    Give { rule: u64, round: u64, behind: Ticket },
    Wake,
    Shutdown { reply: Sender<Result<(), ShutdownError>> },
}

/// Ops that were submitted together.
#[derive(Debug)]
pub struct Batch {
    /// By whom.
    pub handle: u32,
    /// Its place in the order of commits.
    pub ticket: Ticket,
    /// What it changes.
    pub ops: Vec<Op>,
    /// As [`Op::size`] counts them.
    pub bytes: usize,
    parts: Vec<JointPart>,
    /// Of those with parts alone.
    came: Option<Instant>,
}

/// A read that was asked for: the arguments of [`Store::read`].
#[derive(Debug, Clone, Copy)]
pub struct Read {
    /// By whom.
    pub handle: u32,
    /// Of which queue.
    pub queue: QueueId,
    /// From which number on.
    pub from: u64,
    /// At most so many rows.
    pub max_rows: u32,
    /// At most about so many bytes.
    pub max_bytes: u32,
}

/// A session that was asked for: the arguments of [`Store::take`].
#[derive(Debug, Clone)]
pub struct Take {
    /// By whom.
    pub handle: u32,
    /// Whose.
    pub client_id: Box<str>,
    /// What its owner gave up, and with which epoch.
    pub given_up: Option<(SessionId, u64)>,
    /// The one that is made when there is none.
    pub new: Option<(SessionId, Bytes)>,
    /// Everything up to this one was submitted before, whoever submitted it.
    behind: Ticket,
}

/// What handles and thread share.
#[derive(Debug)]
pub struct Front {
    line: Mutex<Line>,
    pending_bytes: AtomicUsize,
    low_on_space: AtomicBool,
}

#[derive(Debug)]
struct Line {
    last_ticket: u64,
    last_handle: u32,
    commands: Sender<Command>,
}

impl Front {
    /// A line before a writer, and the writer's end of it.
    #[must_use]
    pub fn new() -> (Arc<Self>, Back) {
        let (commands, received) = channel();
        let front = Arc::new(Self {
            line: Mutex::new(Line { last_ticket: 0, last_handle: 0, commands }),
            pending_bytes: AtomicUsize::new(0),
            low_on_space: AtomicBool::new(false),
        });
        let back = Back {
            front: Arc::clone(&front),
            received,
            handles: BTreeMap::new(),
            batches: Vec::new(),
            reads: VecDeque::new(),
            takes: VecDeque::new(),
            adopt: None,
            keep: None,
            give: None,
            owners: BTreeSet::new(),
            unheard: BTreeSet::new(),
            failing: None,
            stopping: None,
        };
        (front, back)
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        // Nothing under the lock can panic half way.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A handle for one shard.
    #[must_use]
    pub fn handle(self: &Arc<Self>, notify: Notify) -> Handle {
        let mut line = self.line();
        line.last_handle += 1;
        let handle = line.last_handle;
        // A send fails only when the thread has ended; then nothing resolves, as after a shutdown.
        let _ = line.commands.send(Command::Attach { handle, notify });
        Handle { handle, front: Arc::clone(self) }
    }

    /// Wakes the thread: there is something beside the line.
    pub fn wake(&self) {
        let _ = self.line().commands.send(Command::Wake);
    }

    /// Asks the thread to commit what waits and to end; its last words come by the channel.
    #[must_use]
    pub fn shutdown(&self) -> Receiver<Result<(), ShutdownError>> {
        let (reply, answer) = channel();
        let _ = self.line().commands.send(Command::Shutdown { reply });
        answer
    }

    /// Whether admission should stop; returns what was said before.
    pub fn set_low_on_space(&self, low: bool) -> bool {
        self.low_on_space.swap(low, Ordering::Relaxed)
    }

    /// As was said last.
    #[must_use]
    pub fn is_low_on_space(&self) -> bool {
        self.low_on_space.load(Ordering::Relaxed)
    }
}

/// One shard's handle to a writer.
#[derive(Debug)]
pub struct Handle {
    handle: u32,
    front: Arc<Front>,
}

impl Store for Handle {
    fn low_on_space(&self) -> bool {
        self.front.is_low_on_space()
    }

    fn submit(&mut self, ops: Vec<Op>) -> Ticket {
        self.submit_joint(ops, Vec::new())
    }

    fn submit_joint(&mut self, ops: Vec<Op>, parts: Vec<JointPart>) -> Ticket {
        let bytes = ops.iter().map(Op::size).sum();
        let came = (!parts.is_empty()).then(Instant::now);
        self.front.pending_bytes.fetch_add(bytes, Ordering::Relaxed);
        let mut line = self.front.line();
        line.last_ticket += 1;
        let ticket = Ticket(line.last_ticket);
        let batch = Batch { handle: self.handle, ticket, ops, bytes, parts, came };
        let _ = line.commands.send(Command::Batch(batch));
        ticket
    }

    fn read(&mut self, queue: QueueId, from: u64, max_rows: u32, max_bytes: u32) {
        let read = Read { handle: self.handle, queue, from, max_rows, max_bytes };
        let _ = self.front.line().commands.send(Command::Read(read));
    }

    fn take(&mut self, client_id: &str, given_up: Option<(SessionId, u64)>, new: Option<(SessionId, Bytes)>) {
        let line = self.front.line();
        let behind = Ticket(line.last_ticket);
        let take = Take { handle: self.handle, client_id: client_id.into(), given_up, new, behind };
        let _ = line.commands.send(Command::Take(take));
    }

    fn adopt(&mut self, view: u64) {
        let line = self.front.line();
        let behind = Ticket(line.last_ticket);
        let _ = line.commands.send(Command::Adopt { handle: self.handle, view, behind });
    }

    fn keep(&mut self, rules: Vec<u64>) {
        let line = self.front.line();
        let behind = Ticket(line.last_ticket);
        let _ = line.commands.send(Command::Keep { rules, behind });
    }

    fn give(&mut self, rule: u64, round: u64) {
        let line = self.front.line();
        let behind = Ticket(line.last_ticket);
        let _ = line.commands.send(Command::Give { rule, round, behind });
    }

    /// Of all handles together: what bounds the writer's memory.
    fn pending_bytes(&self) -> usize {
        self.front.pending_bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let _ = self.front.line().commands.send(Command::Detach { handle: self.handle });
    }
}

/// The thread's side of the line.
pub struct Back {
    front: Arc<Front>,
    received: Receiver<Command>,
    handles: BTreeMap<u32, Notify>,
    /// Submitted and not committed: bounded by the shards' back-pressure, which looks at `pending_bytes`.
    pub batches: Vec<Batch>,
    /// Asked and not answered: bounded by the shards, which have one read of a queue under way.
    pub reads: VecDeque<Read>,
    /// The same: at most one for each connection that waits. Of a writer whose store is one node's alone nobody takes anything.
    takes: VecDeque<Take>,
    /// The view in which sessions are to be adopted, and what was submitted before.
    adopt: Option<(u64, Ticket)>,
    /// The rules that are to be kept, and what was submitted before.
    keep: Option<(Vec<u64>, Ticket)>,
    /// The last rule that a shard has given up, in which round, and what was submitted before. One is asked for at a time.
    give: Option<(u64, u64, Ticket)>,
    /// Handles that have written of sessions: the shards, of all that have a handle.
    owners: BTreeSet<u32>,
    /// Those of them that have not answered yet to sessions that were lost.
    unheard: BTreeSet<u32>,
    /// The message that was told last, while failing.
    failing: Option<String>,
    stopping: Option<Sender<Result<(), ShutdownError>>>,
}

impl fmt::Debug for Back {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Back").field("batches", &self.batches.len()).finish_non_exhaustive()
    }
}

/// What ended a wait for commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// One came.
    Came,
    /// None came in time.
    Idle,
    /// None will come.
    Ended,
}

impl Back {
    /// What it shares with the handles.
    #[must_use]
    pub fn front(&self) -> &Arc<Front> {
        &self.front
    }

    /// Waits for one command, at most `idle`; less when a part of a joint commit waits, which must not be forgotten.
    pub fn wait(&mut self, idle: Duration) -> Waited {
        match self.received.recv_timeout(if self.batches.is_empty() { idle } else { JOINT_MAX }) {
            Ok(command) => {
                self.take(command);
                Waited::Came
            }
            Err(RecvTimeoutError::Timeout) => Waited::Idle,
            Err(RecvTimeoutError::Disconnected) => Waited::Ended,
        }
    }

    /// Takes in all that came meanwhile.
    pub fn take_all(&mut self) {
        while let Ok(command) = self.received.try_recv() {
            self.take(command);
        }
    }

    /// Waits while the medium has a rest; what comes is taken in, and a shutdown ends it.
    pub fn pause(&mut self, pause: Duration) {
        let until = Instant::now() + pause;
        while self.stopping.is_none() {
            match self.received.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(command) => self.take(command),
                Err(_) => return,
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
                self.owners.remove(&handle);
                self.unheard.remove(&handle);
            }
            Command::Batch(batch) => {
                if batch.ops.iter().any(|op| op.session().is_some()) {
                    self.owners.insert(batch.handle);
                }
                self.batches.push(batch);
            }
            Command::Read(read) => self.reads.push_back(read),
            Command::Take(take) => self.takes.push_back(take),
            Command::Keep { rules, behind } => self.keep = Some((rules, behind)),
            Command::Give { rule, round, behind } => self.give = Some((rule, round, behind)),
            Command::Adopt { handle, view, behind } => {
                self.unheard.remove(&handle);
                let (known, before) = self.adopt.unwrap_or((view, behind));
                self.adopt = Some((known.max(view), before.max(behind)));
            }
            Command::Wake => {}
            Command::Shutdown { reply } => self.stopping = Some(reply),
        }
    }

    /// Whether a shutdown was asked for.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    /// Who asked for the shutdown.
    pub fn take_stopping(&mut self) -> Option<Sender<Result<(), ShutdownError>>> {
        self.stopping.take()
    }

    /// The message that was told last, while failing.
    #[must_use]
    pub fn failing(&self) -> Option<&str> {
        self.failing.as_deref()
    }

    /// Brings the batches that can be committed now to the front, and counts them. All can, but parts of joint commits whose
    /// other part is not there yet, and what was submitted behind them on the same handle.
    pub fn whole(&mut self) -> usize {
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

    /// Of `whole` batches at the front how many to commit, that are about `bytes` and no half of a joint commit: at least one.
    #[must_use]
    pub fn up_to(&self, whole: usize, bytes: usize) -> usize {
        let (mut sum, mut open) = (0, BTreeSet::new());
        for (index, batch) in self.batches[..whole].iter().enumerate() {
            sum += batch.bytes;
            for JointPart::Opens(joint) | JointPart::Closes(joint) in &batch.parts {
                if !open.remove(joint) {
                    open.insert(*joint);
                }
            }
            if sum >= bytes && open.is_empty() {
                return index + 1;
            }
        }
        whole
    }

    /// The first `whole` batches are on stable storage: they are taken out, and who submitted them is told. Returns them, and
    /// whether this ended a failure.
    pub fn committed(&mut self, whole: usize, took: Duration) -> (Vec<Batch>, bool) {
        let batches: Vec<Batch> = self.batches.drain(..whole).collect();
        let bytes: usize = batches.iter().map(|batch| batch.bytes).sum();
        self.front.pending_bytes.fetch_sub(bytes, Ordering::Relaxed);
        let recovered = self.failing.take().is_some();
        if recovered {
            self.handles.values().for_each(|notify| notify(StoreEvent::Recovered));
        }
        // Of each handle the last.
        let told: BTreeMap<u32, Ticket> = batches.iter().map(|b| (b.handle, b.ticket)).collect();
        for (handle, ticket) in told {
            self.tell(handle, StoreEvent::Committed { ticket, took });
        }
        (batches, recovered)
    }

    /// Whether nothing is asked for beside commits, or nothing that can be answered before some of them.
    #[must_use]
    pub fn asks_nothing(&self) -> bool {
        self.reads.is_empty()
            && self.takes(1).is_empty()
            && self.adopts().is_none()
            && !self.keeps()
            && self.gives().is_none()
    }

    /// Whether everything up to this one is committed. What was submitted of a session before it was taken or adopted is of an earlier life of it:
    /// it must have been written or handed back by then, or it would be written into the next one.
    fn is_committed(&self, behind: Ticket) -> bool {
        self.oldest().is_none_or(|oldest| behind < oldest)
    }

    fn oldest(&self) -> Option<Ticket> {
        self.batches.iter().map(|batch| batch.ticket).min()
    }

    /// The first takes, at most so many, which may be answered now.
    #[must_use]
    pub fn takes(&self, most: usize) -> Vec<Take> {
        let oldest = self.oldest();
        let ready = self.takes.iter().take_while(|take| oldest.is_none_or(|oldest| take.behind < oldest));
        ready.take(most).cloned().collect()
    }

    /// The first takes, so many, are answered: each is told.
    pub fn taken(&mut self, answers: Vec<Taken>) {
        for taken in answers {
            let Some(take) = self.takes.pop_front() else { return };
            self.tell(take.handle, StoreEvent::Taken(Box::new(taken)));
        }
    }

    /// The view in which sessions are to be adopted now: not before the shards know which they have lost.
    #[must_use]
    pub fn adopts(&self) -> Option<u64> {
        let (view, behind) = self.adopt?;
        (self.unheard.is_empty() && self.is_committed(behind)).then_some(view)
    }

    fn keeps(&self) -> bool {
        self.keep.as_ref().is_some_and(|(_, behind)| self.is_committed(*behind))
    }

    /// The rules that are to be kept from now on, once.
    pub fn take_keep(&mut self) -> Option<Vec<u64>> {
        if self.keeps() { self.keep.take().map(|(rules, _)| rules) } else { None }
    }

    /// The rule that a shard has given up, and in which round, once all that it remembers is committed.
    #[must_use]
    pub fn gives(&self) -> Option<(u64, u64)> {
        self.give.filter(|(.., behind)| self.is_committed(*behind)).map(|(rule, round, _)| (rule, round))
    }

    /// That has been seen to.
    pub fn given(&mut self) {
        self.give = None;
    }

    /// All that is to be adopted in the view has been.
    pub fn adopted(&mut self) {
        self.adopt = None;
    }

    /// Sessions that this node had are another's: the shards are told, and nothing is adopted until each has said, by asking again, that it
    /// writes nothing of them any more.
    pub fn lost(&mut self, sessions: Arc<[SessionId]>) {
        self.unheard = self.owners.clone();
        self.tell_all(&StoreEvent::Lost { sessions });
    }

    /// Tells all handles.
    pub fn tell_all(&self, event: &StoreEvent) {
        self.handles.values().for_each(|notify| notify(event.clone()));
    }

    /// Tells one handle, when it is still there.
    pub fn tell(&self, handle: u32, event: StoreEvent) {
        if let Some(notify) = self.handles.get(&handle) {
            notify(event);
        }
    }

    /// Tells all that the medium refuses; false when that message was the last one.
    pub fn fail(&mut self, message: &str) -> bool {
        if self.failing.as_deref() == Some(message) {
            return false;
        }
        for notify in self.handles.values() {
            notify(StoreEvent::Failing { message: message.to_owned() });
        }
        self.failing = Some(message.to_owned());
        true
    }
}
