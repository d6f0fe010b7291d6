//! A reload: configuration, rules and certificates are read anew, checked, and put in force.
//!
//! # Constraints
//! - Whole or nothing: with any mistake the node goes on as it was, and whoever asked is told what it is and where.
//! - Connections of clients stay, but for those that would not be let in any more, and those of a listener that is gone. No acknowledged row
//!   is lost over it.
//! - What cannot be taken without a restart is told, now and in `status`: never silently left out.
//!
//! # Operation
//! ```text
//! asked (SIGHUP, control socket) -> read and check all, bind what is new, change nothing (a blocking thread)
//!                                -> sinks and rules (the last that can fail)
//!                                -> users, bounds, listeners; who is connected is reviewed; the uplink: old one out, new one in
//!                                -> answer, once all workers have it
//! ```
//! - What is the same stays untouched: an uplink keeps its connection, a sink its rows.
//! - An uplink that changes is ended in order: it gets no more rows, has its time for the answers to those in flight, and says
//!   DISCONNECT. Its answers count. Then all that is not answered is the outbox's again, for the next one.
//! - Rules that change on disk come into force by themselves ([`crate::watch`]); the configuration only when it is asked for, since
//!   people write it in several steps. The environment and the options are those of the start: a process has no others.

use crate::cluster::{Exchange, Membership};
use crate::config::changes::{Changes, Whole};
use crate::config::{BrokerConfig, ConfigErrors, Setting, UplinkConfig};
use crate::control::ReloadStatus;
use crate::gate::{Gatekeeper, Keys};
use crate::hub::{BATCHES, Bounds, HubMessage};
use crate::listen::{self, Listeners};
use crate::loader::{Loader, UPLINK};
use crate::telemetry;
use crate::watch::{ReadError, RuleFile, RuleFiles, Watcher};
use ferrule_link::UplinkStats;
use ferrule_net::{Inbox, Mail};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

/// Reads the configuration as the start did.
pub type Read = dyn Fn() -> Result<Whole, ConfigErrors> + Send + Sync;

/// Somebody asks for a reload, and is told what came of it.
pub type Asked = oneshot::Sender<Result<Value, String>>;

/// How long an uplink may take to end: what it takes for the answers to rows in flight, and then some.
const LINK_STOP: Duration = Duration::from_secs(5);

/// What is in force, for `status` and others who ask.
#[derive(Default)]
pub struct InForce {
    /// Every setting and where it came from.
    pub settings: Vec<Setting>,
    /// The uplink: where to, and how it goes.
    pub uplink: Option<(String, Arc<UplinkStats>)>,
    /// Why the rules on disk are not those in force.
    pub rules_error: Option<String>,
    /// Of the last reload.
    pub reload: ReloadStatus,
}

/// Shared by the one who reloads and those who tell.
pub type Told = Arc<Mutex<InForce>>;

/// What it guards is whole whatever happened to whoever held it.
pub fn lock(told: &Told) -> MutexGuard<'_, InForce> {
    told.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes an uplink: its generation, rows and events, and how long a row may wait.
pub type Connect = dyn Fn(&UplinkConfig, Option<Duration>, crate::run::Consumer) -> Link + Send + Sync;

/// An uplink that runs.
pub struct Link {
    /// Ends when its rows' senders are dropped.
    pub task: JoinHandle<()>,
    /// How it goes.
    pub stats: Arc<UplinkStats>,
}

/// What can be changed while the node runs, and by what.
pub struct Reloader {
    /// Reads the configuration.
    pub read: Arc<Read>,
    /// What is in force.
    pub running: Whole,
    /// Rules and sinks.
    pub loader: Loader,
    /// Tells when the rules change; none: there are none.
    pub watcher: Option<Watcher>,
    /// Users.
    pub keeper: Arc<Gatekeeper>,
    /// Listeners.
    pub listeners: Listeners,
    /// Of a node in a cluster: the certificates of its links.
    pub membership: Option<Arc<dyn Membership>>,
    /// Workers.
    pub inboxes: Vec<Inbox<HubMessage>>,
    /// Makes uplinks.
    pub connect: Box<Connect>,
    /// The uplink.
    pub link: Option<Link>,
    /// The bounds of a worker, by a configuration.
    pub bounds: Box<dyn Fn(&BrokerConfig) -> Bounds + Send + Sync>,
    /// `memory_max`.
    pub memory_max: watch::Sender<Option<u64>>,
    /// `sys_interval`.
    pub sys_interval: watch::Sender<Duration>,
    /// What is told of it.
    pub told: Told,
}

/// All that was read, checked and loaded for a reload.
struct Prepared {
    whole: Whole,
    changes: Changes,
    files: Option<RuleFiles>,
    texts: Vec<RuleFile>,
    listeners: listen::Prepared,
    /// Of links to other nodes.
    certificates: Option<Exchange>,
    /// None: users are the same.
    keys: Option<Keys>,
}

fn prepare(
    read: &Read,
    keeper: &Gatekeeper,
    (listeners, workers): (&Listeners, usize),
    membership: Option<&dyn Membership>,
    running: &Whole,
) -> Result<Prepared, String> {
    let wanted = read().map_err(|errors| errors.to_string().trim_end().to_owned())?;
    let (whole, changes) = Changes::between(running, wanted);
    let files = whole.broker.node.rules.as_ref().map(RuleFiles::new);
    let texts = match &files {
        Some(files) => files.read().map_err(|error| error.to_string())?,
        None => Vec::new(),
    };
    let users = |broker: &BrokerConfig| {
        (broker.users.clone(), broker.anonymous.clone(), broker.certificate.clone(), broker.listeners.clone())
    };
    let keys = (users(&whole.broker) != users(&running.broker)).then(|| keeper.prepare(&whole.broker));
    let keys = keys.transpose().map_err(|error| format!("cannot take over the users: {error}"))?;
    let certificates = membership.map(Membership::read_certificates).transpose()?;
    let listeners = listeners.prepare(&whole.broker.listeners, workers)?;
    Ok(Prepared { whole, changes, files, texts, listeners, certificates, keys })
}

impl Reloader {
    /// Serves until it is dropped.
    pub async fn serve(&mut self, hangup: &mut Signal, asked: &mut mpsc::Receiver<Asked>) {
        loop {
            // All cancel-safe.
            tokio::select! {
                read = changed(&mut self.watcher) => self.rules_changed(read),
                _ = hangup.recv() => drop(self.reload().await),
                Some(asked) = asked.recv() => {
                    let answer = self.reload().await;
                    // Whoever asked may have gone.
                    let _ = asked.send(answer);
                }
            }
        }
    }

    fn rules_changed(&mut self, read: Result<Vec<RuleFile>, ReadError>) {
        let loaded = read.map_err(|error| error.to_string()).and_then(|texts| self.loader.load(&texts));
        let rules = self.running.broker.node.rules.as_deref().unwrap_or("".as_ref()).display();
        match &loaded {
            Ok(()) => tracing::info!(%rules, "new rules are in force"),
            Err(mistakes) => {
                tracing::error!("the rules in {rules} are wrong, the old ones stay:\n{mistakes}")
            }
        }
        lock(&self.told).rules_error = loaded.err();
    }

    async fn reload(&mut self) -> Result<Value, String> {
        let result = self.try_reload().await;
        match &result {
            Ok((changes, gone)) => {
                tracing::info!(changes = changes.taken.len(), disconnected = gone, "reloaded");
                changes.taken.iter().for_each(|change| tracing::info!("in force now: {change}"));
                changes.restart.iter().for_each(|change| tracing::warn!("{change}"));
            }
            Err(mistakes) => tracing::error!("nothing was reloaded, all stays as it is:\n{mistakes}"),
        }
        let mut told = lock(&self.told);
        told.reload.reloads += u64::from(result.is_ok());
        told.reload.failed += u64::from(result.is_err());
        told.reload.error = result.as_ref().err().cloned();
        let (changes, gone) = result?;
        told.rules_error = None;
        let answer =
            json!({ "changed": changes.taken, "needs_restart": changes.restart, "disconnected": gone });
        told.reload.needs_restart = changes.restart;
        Ok(answer)
    }

    /// What is different, and how many clients had to go.
    async fn try_reload(&mut self) -> Result<(Changes, usize), String> {
        const STOPPING: &str = "the node is stopping";
        let (read, keeper, running) =
            (Arc::clone(&self.read), Arc::clone(&self.keeper), self.running.clone());
        let (listeners, workers) = (self.listeners.clone(), self.inboxes.len());
        let membership = self.membership.clone();
        let prepare =
            move || prepare(&*read, &keeper, (&listeners, workers), membership.as_deref(), &running);
        let prepared = tokio::task::spawn_blocking(prepare).await;
        let Prepared { whole, changes, files, texts, listeners, certificates, keys } =
            prepared.map_err(|_| STOPPING)??;
        self.loader.load(&texts)?;
        // From here on nothing can fail.
        if let Some(exchange) = certificates {
            exchange();
        }
        let has_keys = keys.is_some();
        if let Some(keys) = keys {
            self.keeper.exchange(keys);
        }
        let bounds = (self.bounds)(&whole.broker);
        if bounds != (self.bounds)(&self.running.broker) {
            for inbox in &self.inboxes {
                inbox.post(Mail::App(HubMessage::Configure(Box::new(bounds.clone()))));
            }
        }
        // Who comes to a new listener finds its bounds, and what it asks, in force.
        let closed = self.listeners.exchange(listeners, &self.inboxes);
        let closes = closed
            .into_iter()
            .flat_map(|number| self.ask(move |reply| HubMessage::CloseListener(number, reply)));
        let mut closes: Vec<_> = closes.collect();
        if has_keys {
            closes.extend(self.ask(HubMessage::Review));
        }
        if whole.broker.node.log != self.running.broker.node.log {
            telemetry::set(&whole.broker.node.log);
        }
        self.memory_max.send_replace(crate::memory::memory_max(&whole.broker, crate::memory::machine()));
        let interval = whole.broker.node.sys_interval;
        self.sys_interval.send_if_modified(|now| std::mem::replace(now, interval) != interval);
        if whole.broker.node.rules != self.running.broker.node.rules {
            // What it reads at its start are those, or newer ones that it finds at its next look.
            self.watcher = files.map(|files| Watcher::start(files).0);
        }
        let age = |whole: &Whole| whole.broker.outbox.max_age;
        if (&whole.uplink, age(&whole)) != (&self.running.uplink, age(&self.running)) {
            self.change_uplink(whole.uplink.as_ref(), age(&whole)).await;
        }
        for warning in whole.broker.warnings.iter().filter(|w| !self.running.broker.warnings.contains(w)) {
            tracing::warn!("{warning}");
        }
        lock(&self.told).settings.clone_from(&whole.broker.settings);
        self.running = whole;
        let mut gone = 0;
        for answer in closes {
            gone += answer.await.map_err(|_| STOPPING)?;
        }
        // It has been heard by all when they answer what was asked after it.
        for answer in self.ask(HubMessage::Status) {
            answer.await.map_err(|_| STOPPING)?;
        }
        Ok((changes, gone))
    }

    /// Asks all workers.
    fn ask<T>(&self, what: impl Fn(oneshot::Sender<T>) -> HubMessage) -> Vec<oneshot::Receiver<T>> {
        let ask = |inbox: &Inbox<HubMessage>| {
            let (reply, answer) = oneshot::channel();
            inbox.post(Mail::App(what(reply)));
            answer
        };
        self.inboxes.iter().map(ask).collect()
    }

    /// Ends the uplink in order, and begins the next.
    async fn change_uplink(&mut self, uplink: Option<&UplinkConfig>, age_max: Option<Duration>) {
        if let Some(Link { mut task, .. }) = self.link.take() {
            self.loader.release_uplink();
            if tokio::time::timeout(LINK_STOP, &mut task).await.is_err() {
                task.abort();
                // Its last words come before those of the next.
                let _ = task.await;
            }
        }
        self.link = uplink.map(|uplink| {
            let (generation, events) = self.loader.events(UPLINK);
            let (sender, rows) = mpsc::channel(BATCHES);
            self.loader.exchange_uplink(generation, sender);
            (self.connect)(uplink, age_max, crate::run::Consumer { generation, rows, events })
        });
        if self.link.is_none() {
            self.loader.remove_uplink();
        }
        let told = uplink.zip(self.link.as_ref());
        lock(&self.told).uplink = told.map(|(uplink, link)| (urls(uplink), Arc::clone(&link.stats)));
    }
}

/// An uplink's URLs, for people.
pub fn urls(uplink: &UplinkConfig) -> String {
    uplink.servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// The settings that are in force, as the control socket tells them.
#[must_use]
pub fn settings(told: &Told) -> Value {
    let told = lock(told);
    let settings = told.settings.iter();
    settings.map(|s| json!({ "path": s.path, "value": s.value, "source": s.source.to_string() })).collect()
}

/// The rules, when they have changed.
async fn changed(watcher: &mut Option<Watcher>) -> Result<Vec<RuleFile>, ReadError> {
    match watcher {
        Some(watcher) => watcher.next().await,
        None => std::future::pending().await,
    }
}
