//! The thread that owns the connection.

use crate::Options;
use crate::db::{self, BodyKey, Db, Who};
use crate::error::{DbError, Kind, OpenError};
use crate::keepers::Given;
use crate::owners::{Adopted, Orphans};
use crate::schema::{self, UpgradeError};
use ferrule_store::{Found, Kept, Op, Restored, SessionId, StoreEvent};
use ferrule_store_writer::net::Net;
use ferrule_store_writer::{
    Back, Figures, Front, Handle, Notify, ShutdownError, State, Take, Waited, Writing,
};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio_postgres::Config;
use tracing::{error, info, warn};

/// First pause after a failure; doubled up to the last. Each is drawn between its half and itself: many nodes lose one server
/// in the same instant.
const BACK_OFF_FIRST: Duration = Duration::from_millis(100);
const BACK_OFF_LAST: Duration = Duration::from_secs(5);
/// About so many bytes go into one transaction: more would be held in memory twice, and be done again after a failure.
const COMMIT_BYTES: usize = 32 << 20;
/// How long nothing must have been submitted before bodies without rows are swept.
const IDLE: Duration = Duration::from_secs(1);
/// Bodies to sweep that are remembered; what is beyond is found at the next start.
const DEAD_MAX: usize = 100_000;
/// Sessions that are taken in one transaction.
const TAKES: usize = 256;
/// A transaction that meets others is made again at once so often, then after a pause.
const AGAIN_MAX: u32 = 20;
/// A statement that the server cancelled gets twice as long the next time, up to so many times what is usual: removing a
/// million rows may take longer than a dead server should.
const SLOWER_MAX: u32 = 64;

/// What `open` found and made.
#[derive(Debug)]
pub struct Opened {
    /// The running writer.
    pub writer: Writer,
    /// What the shards need in memory.
    pub restored: Restored,
}

/// A snapshot of the writer's figures; counts are of this process life.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// How it is.
    pub state: State,
    /// Commits.
    pub commits: u64,
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
    /// Failures since the start; each is a new connection.
    pub failures: u64,
    /// Connections since the start.
    pub connections: u64,
    /// Ops that were handed back, since their session is another node's.
    pub fenced: u64,
}

#[derive(Debug)]
struct Shared {
    front: Arc<Front>,
    status: Mutex<Status>,
    /// For people: hosts, database and schema.
    shown: String,
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
    thread: Option<JoinHandle<()>>,
}

/// Opens the store under a node's name, making the tables when they are not there, and starts its thread. Whoever
/// wrote under that name before writes nothing any more.
///
/// Blocks: it waits for the server, up to `options.patience`, and for all that the node has in memory.
///
/// # Errors
/// When the options are wrong, the server does not answer in time or refuses, or the tables are a newer release's.
pub fn open(options: Options) -> Result<Opened, OpenError> {
    let config = options.config()?;
    let shown = options.shown(&config);
    let (front, back) = Front::new();
    let shared = Arc::new(Shared { front, status: Mutex::new(Status::default()), shown });
    let (opened, wait) = channel();
    let own = Arc::clone(&shared);
    let mut seed = [0; 8];
    // Without it all nodes draw the same pauses, no more.
    let _ = getrandom::fill(&mut seed);
    let thread = std::thread::Builder::new()
        .name("ferrule-store".into())
        .spawn(move || run(options, config, own, back, u64::from_le_bytes(seed), &opened))
        .map_err(|e| OpenError::Server(format!("cannot start the store's thread: {e}")))?;
    let restored = match wait.recv() {
        Ok(restored) => restored?,
        Err(_) => {
            return Err(OpenError::Server(format!(
                "{}: {}",
                shared.shown,
                ShutdownError::panicked().message
            )));
        }
    };
    Ok(Opened { writer: Writer { shared, thread: Some(thread) }, restored })
}

impl Writer {
    /// A handle for one shard.
    #[must_use]
    pub fn handle(&self, notify: Notify) -> Handle {
        self.shared.front.handle(notify)
    }

    /// The figures as of the last commit.
    #[must_use]
    pub fn status(&self) -> Status {
        self.shared.status().clone()
    }

    /// The server for people: hosts, database and schema, no password.
    #[must_use]
    pub fn shown(&self) -> &str {
        &self.shared.shown
    }

    /// Commits what waits and disconnects. What handles submit later never resolves.
    ///
    /// # Errors
    /// When the server still refuses: what was not acknowledged is not stored.
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

fn run(
    options: Options,
    config: Config,
    shared: Arc<Shared>,
    back: Back,
    seed: u64,
    opened: &Sender<Result<Restored, OpenError>>,
) {
    let _sign = StopSign(Arc::clone(&shared));
    // The socket is looked after while something is asked of the server; at rest there is nothing to look after.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            let _ = opened.send(Err(OpenError::Server(format!("cannot make the store's runtime: {e}"))));
            return;
        }
    };
    let mut pauses = Pauses { next: BACK_OFF_FIRST, random: seed | 1 };
    let until = Instant::now() + options.patience;
    let mut told = false;
    let (db, fence, restored, epochs) = loop {
        match runtime.block_on(start(&options, &config, &shared.shown)) {
            Ok(started) => break started,
            Err(StartError::Server(e)) if may_come(e.kind) && Instant::now() < until => {
                if !std::mem::replace(&mut told, true) {
                    warn!("waiting for {}: {}", shared.shown, e.text);
                }
                std::thread::sleep(pauses.draw());
            }
            Err(StartError::Server(e)) => {
                let _ = opened.send(Err(e.into_open(&shared.shown)));
                return;
            }
            Err(StartError::Refused(e)) => {
                let _ = opened.send(Err(e));
                return;
            }
        }
    };
    pauses.reset();
    shared.status().connections = 1;
    let worker = Worker {
        options,
        config,
        shared,
        back,
        runtime,
        who: db.who(),
        db: Some(db),
        fence,
        epochs: epochs
            .into_iter()
            .map(|(session, (_, epoch))| (session, Known { epoch, at: fence }))
            .collect(),
        fences: false,
        lost: HashSet::new(),
        compared: None,
        orphans: Orphans::default(),
        rules: None,
        keep_due: false,
        kept: BTreeSet::new(),
        not_kept: BTreeSet::new(),
        spread: Spread::default(),
        dead: Vec::new(),
        pauses,
        slower: 1,
        silent: false,
        taken: false,
    };
    if opened.send(Ok(restored)).is_ok() {
        worker.run();
    }
}

/// Whether waiting may help at a start.
fn may_come(kind: Kind) -> bool {
    matches!(kind, Kind::Lost | Kind::Again | Kind::Slow | Kind::ReadOnly)
}

enum StartError {
    Server(DbError),
    Refused(OpenError),
}

impl From<DbError> for StartError {
    fn from(error: DbError) -> Self {
        Self::Server(error)
    }
}

async fn start(
    options: &Options,
    config: &Config,
    shown: &str,
) -> Result<(Db, i64, Restored, db::Epochs), StartError> {
    let silent = || DbError::lost(format!("no answer within {:?}", options.timeout));
    let opening = async {
        let connection = db::connect(config, options.timeout).await?;
        schema::upgrade(&connection.client, &options.schema).await.map_err(|e| match e {
            UpgradeError::Server(e) => StartError::Server(e.into()),
            UpgradeError::Newer(found) => StartError::Refused(OpenError::Newer {
                server: shown.to_owned(),
                schema: options.schema.clone(),
                found,
                supported: schema::VERSION + 1,
            }),
            UpgradeError::Encoding(encoding) => {
                StartError::Refused(OpenError::Encoding { server: shown.to_owned(), encoding })
            }
        })?;
        Ok::<_, StartError>(connection.open(&options.schema, &options.node).await?)
    };
    let (db, fence) = tokio::time::timeout(options.timeout * 2, opening).await.map_err(|_| silent())??;
    // As long as it takes: a peer that has gone is noticed by the socket.
    let (restored, epochs) = db.restored().await?;
    Ok((db, fence, restored, epochs))
}

/// Pauses between attempts.
struct Pauses {
    next: Duration,
    /// State of a xorshift generator, never 0.
    random: u64,
}

impl Pauses {
    fn draw(&mut self) -> Duration {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let half = self.next / 2;
        self.next = (self.next * 2).min(BACK_OFF_LAST);
        half + half * ((self.random >> 20) as u32 & 0x3FF) / 0x3FF
    }

    fn reset(&mut self) {
        self.next = BACK_OFF_FIRST;
    }
}

/// What is known of a session of ours.
#[derive(Debug, Clone, Copy)]
struct Known {
    epoch: i64,
    /// It was ours when the fence was this.
    at: i64,
}

struct Worker {
    options: Options,
    config: Config,
    shared: Arc<Shared>,
    back: Back,
    runtime: Runtime,
    who: Who,
    db: Option<Db>,
    /// As it was read last.
    fence: i64,
    /// The sessions that are stored: those of the node.
    epochs: HashMap<SessionId, Known>,
    /// The fence has changed in this process life: from then on sessions are looked at.
    fences: bool,
    /// Sessions of ours that another node has taken; bounded by those that the node had.
    lost: HashSet<SessionId>,
    /// The fence when our sessions were compared with the store's last.
    compared: Option<i64>,
    /// Outboxes that this node looks after.
    orphans: Orphans,
    /// The rules that remember something, once they are known.
    rules: Option<Vec<u64>>,
    /// Whether it is to be found out which of them this node keeps; as long as it has not been.
    keep_due: bool,
    /// Those of them that this node keeps.
    kept: BTreeSet<u64>,
    /// Those that it kept in this process life and does not any more: what comes of them is not written, since another may be about to give them back.
    not_kept: BTreeSet<u64>,
    spread: Spread,
    /// Bodies that had no rows when they were looked at last.
    dead: Vec<BodyKey>,
    pauses: Pauses,
    /// How many times the usual a statement may take.
    slower: u32,
    /// A connection was lost, and nobody told: a new one may do.
    silent: bool,
    /// Another process writes for this node: nothing is written any more.
    taken: bool,
}

/// Rules that are handed to other members: one at a time, when the members have stayed the same for as long as the options say.
#[derive(Debug, Default)]
struct Spread {
    /// The view for which sessions were adopted last.
    view: Option<u64>,
    /// When it is looked which rules are another's share: so long after the last change, and from then on as often, since another may name a rule later than we do.
    at: Option<Instant>,
    /// Those; as many as the node keeps.
    waiting: VecDeque<u64>,
    /// The one that the shards were asked to give up, and which question that was.
    asked: Option<(u64, u64)>,
    last_round: u64,
}

impl Spread {
    /// Something has changed: what was looked up is of before.
    fn begin(&mut self, settle: Duration) {
        self.waiting.clear();
        // None: in ages.
        self.at = Instant::now().checked_add(settle);
    }

    fn is_settled(&self) -> bool {
        self.at.is_some_and(|at| at <= Instant::now())
    }

    /// There is something to do beside waiting for shards.
    fn is_due(&self) -> bool {
        self.is_settled() || (self.asked.is_none() && !self.waiting.is_empty())
    }

    /// At most so long until there is.
    fn within(&self, longest: Duration) -> Duration {
        self.at.map_or(longest, |at| at.saturating_duration_since(Instant::now()).min(longest))
    }
}

impl Worker {
    fn run(mut self) {
        loop {
            let is_idle = self.back.whole() == 0 && self.back.asks_nothing();
            let rests = self.taken || (is_idle && !self.keep_due && !self.spread.is_due());
            if rests && !self.back.is_stopping() {
                match self.back.wait(self.spread.within(IDLE)) {
                    Waited::Came => {}
                    Waited::Idle if self.spread.is_due() && !self.taken => {}
                    Waited::Idle if self.dead.is_empty() || self.taken => continue,
                    Waited::Idle => {}
                    Waited::Ended => return,
                }
            }
            // Everything that came meanwhile goes into this commit.
            self.back.take_all();
            if self.taken {
                if self.back.is_stopping() {
                    return self.stop();
                }
                continue;
            }
            match self.turn() {
                Ok(()) => {
                    self.pauses.reset();
                    self.silent = false;
                }
                Err(e) => {
                    let told = self.fail(&e);
                    if self.back.is_stopping() && told {
                        return self.stop();
                    }
                    if told && !self.taken {
                        let pause = self.pauses.draw();
                        self.back.pause(pause);
                    }
                    continue;
                }
            }
            if self.back.is_stopping() && self.back.batches.is_empty() && self.back.asks_nothing() {
                return self.stop();
            }
        }
    }

    /// One commit of all that waits, then one read.
    fn turn(&mut self) -> Result<(), DbError> {
        self.reconnect()?;
        if self.keep_due {
            // Its answer was lost: what is not kept any more must be known before anything is written of it.
            self.keep_rules()?;
        }
        let mending = self.back.failing().is_some();
        let whole = self.back.whole();
        let count = self.back.up_to(whole, COMMIT_BYTES);
        let idle = count == 0 && self.back.asks_nothing() && !self.dead.is_empty();
        if count > 0 || mending || idle {
            let started = Instant::now();
            // A barrier alone needs no commit: all before it is on stable storage. After a failure even nothing is
            // committed, to see whether it can be.
            let some = self.back.batches[..count].iter().any(|batch| !batch.ops.is_empty());
            if some || mending || idle {
                self.write(count)?;
            }
            self.committed(count, some, started.elapsed());
        }
        self.take_some()?;
        self.adopt_some()?;
        self.keep_rules()?;
        self.spread_rules()?;
        self.read_one()
    }

    /// Takes the sessions that were asked for, as many as go into one transaction.
    fn take_some(&mut self) -> Result<(), DbError> {
        let takes: Vec<Take> = self.back.takes(TAKES);
        if takes.is_empty() {
            return Ok(());
        }
        let taken = self.again(async |db| db.take(&takes).await)?;
        for taken in &taken {
            for (session, epoch) in &taken.restored.epochs {
                self.is_ours(*session, *epoch as i64);
            }
            if let Found::Made(session) = taken.found {
                self.is_ours(session, 1);
            }
        }
        self.back.taken(taken);
        Ok(())
    }

    fn is_ours(&mut self, session: SessionId, epoch: i64) {
        self.lost.remove(&session);
        self.epochs.insert(session, Known { epoch, at: self.fence });
    }

    /// Looks which of our sessions have been taken, and adopts some that have no owner.
    fn adopt_some(&mut self) -> Result<(), DbError> {
        let Some(view) = self.back.adopts() else { return Ok(()) };
        // Read before the sessions are: what is taken behind that raises it again.
        let fence = self.ask(async |db| db.fence().await)?;
        if self.compared != Some(fence) {
            let own = self.ask(async |db| db.own().await)?;
            let is_own = |(id, known): (&SessionId, &Known)| own.get(id).is_some_and(|o| o.1 == known.epoch);
            let gone = self.epochs.iter().filter(|at| !is_own(*at)).map(|(id, _)| *id);
            let sessions: Arc<[SessionId]> = gone.collect();
            for session in &*sessions {
                self.epochs.remove(session);
                self.lost.insert(*session);
            }
            self.compared = Some(fence);
            if !sessions.is_empty() {
                self.back.lost(sessions);
                return Ok(());
            }
        }
        let (restored, done) = match self.again(async |db| db.adopt(view).await)? {
            Adopted::Past => {
                // Whoever knows the next one asks again.
                self.back.adopted();
                return Ok(());
            }
            Adopted::Some(restored) => (restored, false),
            Adopted::Last(mut restored, orphans) => {
                restored.inherited = self.orphans.set(orphans);
                self.back.adopted();
                (restored, true)
            }
        };
        for (session, epoch) in &restored.epochs {
            self.is_ours(*session, *epoch as i64);
        }
        self.back.tell_all(&StoreEvent::Adopted { view, restored: Arc::from(restored), done });
        self.keep_due |= done;
        if done && self.spread.view.replace(view) != Some(view) {
            self.spread.begin(self.options.settle);
        }
        Ok(())
    }

    /// Finds out which rules this node keeps now.
    fn keep_rules(&mut self) -> Result<(), DbError> {
        if let Some(rules) = self.back.take_keep() {
            if self.rules.as_ref() != Some(&rules) {
                self.spread.begin(self.options.settle);
            }
            (self.rules, self.keep_due) = (Some(rules), true);
        }
        let Some(rules) = self.rules.as_ref().filter(|_| self.keep_due) else {
            self.keep_due = false;
            return Ok(());
        };
        let (kept, new) = self.again(async |db| db.keep(rules, &self.kept).await)?;
        let lost = self.kept.difference(&kept).copied().collect::<Vec<u64>>();
        (self.kept, self.keep_due) = (kept, false);
        self.tell_kept(Kept { rules: new, lost, given: Vec::new() });
        Ok(())
    }

    fn tell_kept(&mut self, kept: Kept) {
        self.not_kept.extend(kept.lost.iter().chain(&kept.given));
        self.not_kept.retain(|rule| !self.kept.contains(rule));
        self.spread.waiting.retain(|rule| self.kept.contains(rule));
        self.spread.asked = self.spread.asked.filter(|(rule, _)| self.kept.contains(rule));
        if kept != Kept::default() {
            self.back.tell_all(&StoreEvent::Kept(Arc::new(kept)));
        }
    }

    /// Hands over a rule that the shards have given up; asks for the next that is another's share.
    fn spread_rules(&mut self) -> Result<(), DbError> {
        if let Some(answer) = self.back.gives() {
            if self.spread.asked == Some(answer) {
                self.give(answer.0)?;
            }
            self.back.given();
        }
        if self.spread.is_settled() {
            self.spread.waiting = match self.kept.is_empty() {
                true => VecDeque::new(),
                false => self.ask(async |db| db.misplaced(&self.kept).await)?.into(),
            };
            self.spread.at = Instant::now().checked_add(self.options.settle);
        }
        if self.spread.asked.is_none()
            && let Some(rule) = self.spread.waiting.pop_front()
        {
            self.spread.last_round += 1;
            let round = self.spread.last_round;
            self.spread.asked = Some((rule, round));
            self.back.tell_all(&StoreEvent::Giving { rule, round });
        }
        Ok(())
    }

    /// Nobody runs the rule, and all that it remembers is committed.
    fn give(&mut self, rule: u64) -> Result<(), DbError> {
        match self.again(async |db| db.give(rule).await)? {
            Given::Yes => {
                self.kept.remove(&rule);
                self.tell_kept(Kept { given: vec![rule], ..Kept::default() });
            }
            Given::No => {
                // It goes on here, with what is stored; and the members are not who they were.
                self.spread.waiting.clear();
                let Some(rules) = &self.rules else { return Ok(()) };
                let mut others = self.kept.clone();
                others.remove(&rule);
                let (kept, new) = self.again(async |db| db.keep(rules, &others).await)?;
                let lost = self.kept.difference(&kept).copied().collect();
                (self.kept, self.spread.asked) = (kept, None);
                self.tell_kept(Kept { rules: new, lost, given: Vec::new() });
            }
        }
        Ok(())
    }

    /// Whether an op is of a rule that another node keeps by now. (One that is not named any more is nobody's: it is removed here.)
    fn is_anothers(&self, op: &Op) -> bool {
        let (Op::StatePut { rule, .. } | Op::StateDelete { rule, .. }) = op else { return false };
        self.not_kept.contains(rule) && self.rules.as_ref().is_some_and(|rules| rules.contains(rule))
    }

    /// As [`Worker::ask`], of a transaction that is made again when it meets others.
    fn again<T>(&self, call: impl AsyncFn(&Db) -> Result<T, DbError>) -> Result<T, DbError> {
        let mut again = 0;
        loop {
            match self.ask(async |db| call(db).await) {
                Err(e) if e.kind == Kind::Again && again < AGAIN_MAX => {
                    again += 1;
                    self.ask(async |db| db.rollback().await)?;
                }
                result => return result,
            }
        }
    }

    /// Waits for `call`, not for ever.
    fn ask<T>(&self, call: impl AsyncFnOnce(&Db) -> Result<T, DbError>) -> Result<T, DbError> {
        let Some(db) = &self.db else { return Err(DbError::lost("not connected")) };
        let limit = self.options.timeout * self.slower;
        // A transaction has several statements.
        let limited = async { tokio::time::timeout(limit * 2, call(db)).await };
        match self.runtime.block_on(limited) {
            Ok(result) => result,
            Err(_) => Err(DbError::lost(format!("no answer within {:?}", self.options.timeout))),
        }
    }

    /// Makes a connection when there is none.
    fn reconnect(&mut self) -> Result<(), DbError> {
        // What has happened to the socket since it was looked after.
        self.runtime.block_on(async {
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
        });
        if self.db.as_ref().is_some_and(|db| !db.is_closed()) {
            return Ok(());
        }
        self.db = None;
        let (config, options, who) = (&self.config, &self.options, self.who);
        let limit = options.timeout * self.slower;
        let connecting = async {
            tokio::time::timeout(limit * 2, async {
                db::connect(config, limit).await?.resume(&options.schema, &options.node, who).await
            })
            .await
        };
        let connected = self.runtime.block_on(connecting);
        let silent = |_| DbError::lost(format!("no answer within {:?}", options.timeout));
        self.db = Some(connected.map_err(silent)??);
        self.shared.status().connections += 1;
        Ok(())
    }

    /// Commits the ops of the first `count` batches; those that are not ours to write any more are handed back.
    fn write(&mut self, count: usize) -> Result<(), DbError> {
        let mut again = 0;
        loop {
            if self.fences {
                self.hand_back(count)?;
            }
            let mut net = Net::default();
            let ops = self.back.batches[..count].iter().flat_map(|batch| &batch.ops);
            ops.filter(|op| !self.is_anothers(op)).for_each(|op| net.apply(op.clone()));
            let dead = std::mem::take(&mut self.dead);
            let fence = self.fence;
            match self.ask(async |db| db.write(&net, fence, &dead, &self.orphans).await) {
                Ok(released) => {
                    self.dead = released;
                    self.dead.truncate(DEAD_MAX);
                    for session in net.sessions_deleted {
                        self.epochs.remove(&session);
                    }
                    for session in net.sessions.into_keys() {
                        // Sessions are stored with epoch 1 at first.
                        self.epochs.entry(session).or_insert(Known { epoch: 1, at: fence });
                    }
                    return Ok(());
                }
                Err(e) if matches!(e.kind, Kind::Fence | Kind::Again) && again < AGAIN_MAX => {
                    self.dead = dead;
                    again += 1;
                    if e.kind == Kind::Fence {
                        // Read before the sessions are, and compared by the transaction: nobody takes one between.
                        self.fence = self.ask(async |db| db.fence().await)?;
                        self.fences = true;
                    }
                }
                Err(e) => {
                    self.dead = dead;
                    return Err(e);
                }
            }
        }
    }

    /// Takes out of the first `count` batches the ops of sessions that another node has taken, and hands them back.
    fn hand_back(&mut self, count: usize) -> Result<(), DbError> {
        let written: BTreeSet<SessionId> =
            self.back.batches[..count].iter().flat_map(|batch| &batch.ops).filter_map(Op::session).collect();
        // Each once for each value of the fence. One that is new has not been stored, and nobody can have taken it.
        let open: Vec<SessionId> = written
            .iter()
            .copied()
            .filter(|s| {
                !self.lost.contains(s) && self.epochs.get(s).is_none_or(|known| known.at != self.fence)
            })
            .collect();
        if !open.is_empty() {
            let found = self.ask(async |db| db.epochs(&open).await)?;
            for session in open {
                let ours = match (self.epochs.get(&session), found.get(&session)) {
                    (Some(known), Some(&(owner, epoch))) => owner == self.who.number && epoch == known.epoch,
                    // Who took it has removed it.
                    (Some(_), None) => false,
                    (None, Some(&(owner, _))) => owner == self.who.number,
                    (None, None) => true,
                };
                if !ours {
                    self.lost.insert(session);
                    self.epochs.remove(&session);
                } else if let Some(known) = self.epochs.get_mut(&session) {
                    known.at = self.fence;
                }
            }
        }
        if !written.iter().any(|session| self.lost.contains(session)) {
            return Ok(());
        }
        let mut backs = BTreeMap::<u32, Vec<Op>>::new();
        for batch in &mut self.back.batches[..count] {
            let gone = batch.ops.extract_if(.., |op| op.session().is_some_and(|s| self.lost.contains(&s)));
            backs.entry(batch.handle).or_default().extend(gone);
        }
        for (handle, ops) in backs.into_iter().filter(|(_, ops)| !ops.is_empty()) {
            self.shared.status().fenced += ops.len() as u64;
            self.back.tell(handle, StoreEvent::Fenced { ops });
        }
        Ok(())
    }

    fn committed(&mut self, count: usize, some: bool, took: Duration) {
        self.slower = 1;
        {
            let batches = &self.back.batches[..count];
            let mut status = self.shared.status();
            status.state = State::Running;
            if some {
                status.commits += 1;
                status.last_commit = took;
            }
            status.batches += batches.len() as u64;
            status.ops += batches.iter().map(|batch| batch.ops.len() as u64).sum::<u64>();
            status.bytes += batches.iter().map(|batch| batch.bytes as u64).sum::<u64>();
        }
        let (_, recovered) = self.back.committed(count, took);
        if recovered {
            info!("the store works again: {}", self.shared.shown);
        }
    }

    /// Answers the oldest read; those behind it wait until the next commit is done.
    fn read_one(&mut self) -> Result<(), DbError> {
        let Some(read) = self.back.reads.front().copied() else { return Ok(()) };
        let rows = self.ask(async |db| {
            let place = match read.queue.as_inherited().map(|number| self.orphans.get(number)) {
                None => Some(db.own_queue(read.queue)),
                Some(Some(orphan)) => db.orphan(orphan).await?,
                Some(None) => None,
            };
            match place {
                Some(place) => db.read(place, read.from, read.max_rows, read.max_bytes).await,
                None => Ok(Vec::new()),
            }
        })?;
        self.shared.status().rows_read += rows.len() as u64;
        self.back.tell(read.handle, StoreEvent::Rows { queue: read.queue, rows });
        self.back.reads.pop_front();
        Ok(())
    }

    /// Takes note of a failure: the connection is given up. False when nobody need know: a connection that was lost is
    /// made anew at once, and most often that is all.
    fn fail(&mut self, e: &DbError) -> bool {
        self.db = None;
        self.shared.status().failures += 1;
        if e.kind == Kind::Lost && self.back.failing().is_none() && !std::mem::replace(&mut self.silent, true)
        {
            return false;
        }
        if e.kind == Kind::Slow {
            self.slower = (self.slower * 2).min(SLOWER_MAX);
        }
        let message = if e.kind == Kind::Taken {
            self.taken = true;
            format!(
                "{} ({}): this one stores nothing any more, and acknowledges nothing that has to be stored; stop it, and \
                 give each node an `id` of its own",
                e.text, self.shared.shown
            )
        } else {
            e.describe(&self.shared.shown)
        };
        if self.back.failing() != Some(&*message) {
            error!("{message}");
            self.shared.status().state = State::Failing(message.clone());
            self.back.fail(&message);
        }
        true
    }

    fn stop(mut self) {
        let Some(reply) = self.back.take_stopping() else { return };
        let batches = self.back.batches.len();
        let result = match self.back.failing() {
            Some(message) if self.taken || batches > 0 => {
                Err(ShutdownError { batches, message: message.to_owned() })
            }
            _ => Ok(()),
        };
        // Disconnected before: whoever waits may open it again at once.
        self.db = None;
        let _ = reply.send(result);
    }
}
