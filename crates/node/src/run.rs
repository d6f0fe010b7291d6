//! A node, from its configuration to its end.
//!
//! # Threads
//! | thread | what runs on it |
//! |---|---|
//! | `ferrule-worker-N` | a shard, its rules and outboxes: [`crate::hub`] under [`ferrule_net::Worker`]; one or several |
//! | `ferrule-store` | the one durable writer |
//! | `ferrule-node` (tokio) | uplink, sinks, control socket, rules files, signals, reloads ([`crate::reload`]) |
//! | authentication | password hashes, two threads |
//!
//! # Order of a start
//! What can be wrong is tried before anything is changed: rules are checked, ports bound and the data folder locked before the
//! store is opened; all of it ends with one clear message and a non-zero exit.

use crate::backlog::{Backlog, Pick, show_id};
use crate::cluster::{self, Cluster, Membership, Seat};
use crate::config::changes::Whole;
use crate::config::{BrokerConfig, ClusterConfig, ListenerConfig, StoreConfig, UplinkConfig};
use crate::connectors::{self, Connectors};
use crate::control::{Control, ControlError, DataDirLock, MemberStatus, Status, UplinkStatus};
use crate::drain::{self, Drain};
use crate::gate::Gatekeeper;
use crate::hub::{BATCHES, Bounds, Hub, HubMessage, Node, OutboxBounds};
use crate::known_time;
use crate::listen::{self, Listeners};
use crate::loader::{self, Loader, UPLINK};
use crate::memory::{self, Shape, WorstCase};
use crate::reload::{self, Asked, InForce, Link, Read, Reloader, Told, lock};
use crate::store::{self, Opened, Writer};
use crate::stored;
use crate::sys::Sys;
use crate::watch::{RuleFile, RuleFiles, Watcher};
use ferrule_broker::shard::Parts;
use ferrule_broker::{Limits, Place, Shard, introduce};
use ferrule_link::UplinkStats;
use ferrule_net::{Clock, Inbox, Links, Listener, Mail, Worker};
use ferrule_outbox::{ConsumerEvent, Full, Order, OutRow, Policy};
use ferrule_store::{Boot, Op, Origin, Restored, Store, StoreEvent};
use ferrule_store_writer::Handle;
use serde_json::{Value, json};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};

/// What a binary is.
pub struct Product {
    /// `ferrule-edge` or `ferrule-cloud`.
    pub name: &'static str,
    /// Whether it has an uplink and its rows get an identity.
    pub edge: bool,
    /// What `CREATE SINK` may name.
    pub connectors: Connectors,
    /// Where its store may be but in a file.
    pub store: Option<store::Backend>,
    /// What makes it able to be one of several.
    pub cluster: Option<Cluster>,
}

/// Why a node did not start, or stopped: one message for people.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The rules are wrong.
    #[error("{0}")]
    Rules(String),
    /// A port cannot be listened on.
    #[error("cannot listen on {address}: {reason}")]
    Listen {
        /// The address.
        address: String,
        /// What the system says and what to do.
        reason: String,
    },
    /// A certificate, key or list cannot be used.
    #[error("{0}")]
    Tls(String),
    /// The data folder is another process's, or cannot be used.
    #[error(transparent)]
    DataDir(#[from] ControlError),
    /// The store cannot be opened.
    #[error("{0}")]
    Store(String),
    /// The system refuses something that every start needs.
    #[error("cannot start: {what}: {error}")]
    System {
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        error: std::io::Error,
    },
    /// It cannot be one of a cluster.
    #[error("cannot join the cluster: {0}")]
    Cluster(String),
    /// The worker ended.
    #[error("the worker ended: {0}")]
    Worker(String),
}

fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> RunError {
    move |error| RunError::System { what, error }
}

/// How long what is not a worker may take to end.
const STOP: Duration = Duration::from_secs(1);

/// Requests for a reload that wait for another one: those of all connections of the control socket.
const RELOADS: usize = crate::control::CONNECTIONS_MAX;

/// The consumer's side of the uplink's outbox.
pub struct Consumer {
    /// Which consumer of it.
    pub generation: u64,
    /// Rows come here.
    pub rows: mpsc::Receiver<Vec<OutRow>>,
    /// Is told of them.
    pub events: Arc<dyn Fn(ConsumerEvent) + Send + Sync>,
}

/// Runs until SIGTERM or SIGINT. `read` reads the configuration again.
///
/// # Errors
/// When it cannot start, or its worker ends.
pub fn run(product: &Product, whole: Whole, read: Arc<Read>) -> Result<(), RunError> {
    let Whole { broker: config, uplink } = &whole;
    let clock = Clock::start();
    let files = config.node.rules.as_ref().map(RuleFiles::new);
    let texts = match &files {
        Some(files) => files.read().map_err(|e| {
            RunError::Rules(format!("cannot read the rules in {}: {}", e.path.display(), e.problem))
        })?,
        None => Vec::new(),
    };
    let sinks = check_rules(product, &texts)?;
    let lock = DataDirLock::take(&config.node.data_dir)?;
    let (sockets, listeners) = listen::open(config)?;
    let meeting = config.cluster.as_ref().map(|cluster| meeting_place(product, cluster)).transpose()?;
    let opened = store::open(product.edge, product.store, &config.store, &config.node.data_dir)?;
    let origin = origin(product, config, &opened.writer, &opened.restored)?;
    let boot = Boot::new(random()? as u64);

    let bounds = {
        let (edge, origin) = (product.edge, Arc::clone(&origin));
        move |config: &BrokerConfig| bounds(edge, &origin, config)
    };
    let Workers { workers, inboxes, place, keeper, seat } =
        workers(product, config, clock, sockets, &opened, (&origin, boot), bounds(config))?;
    let known_s = known_time::restore(&opened.restored);
    drop(opened.restored);

    let runtime = tokio::runtime::Builder::new_multi_thread()
        // One for a gateway's uplink; a cloud's sinks encode and compress beside each other.
        .worker_threads(if product.edge { 1 } else { 2 })
        .thread_name("ferrule-node")
        .enable_all()
        .build()
        .map_err(system("the runtime"))?;
    let mut loader = Loader::new(
        product.edge,
        product.connectors.clone(),
        inboxes.clone(),
        place,
        runtime.handle().clone(),
    );
    let connect = {
        let (origin, inbox, runtime) = (Arc::clone(&origin), inboxes[0].clone(), runtime.handle().clone());
        move |uplink: &UplinkConfig, age_max, consumer: Consumer| {
            let mut config = link(uplink, &origin, boot, clock);
            config.age_max = age_max;
            let is_down = !config.downlinks.is_empty();
            let down = is_down.then(|| downlink(inbox.clone(), consumer.generation));
            let (Consumer { rows, events, .. }, stats) = (consumer, Arc::<UplinkStats>::default());
            let task = runtime.spawn(ferrule_link::run_both(config, rows, events, Arc::clone(&stats), down));
            Link { task, stats }
        }
    };
    let link = uplink.as_ref().map(|uplink| {
        let (generation, events) = loader.events(UPLINK);
        let (sender, rows) = mpsc::channel(BATCHES);
        loader.connect_uplink(generation, sender);
        (uplink, Consumer { generation, rows, events })
    });
    loader.load(&texts).map_err(RunError::Rules)?;
    // Behind the rules: what comes down meets them.
    let link = link.map(|(uplink, consumer)| connect(uplink, config.outbox.max_age, consumer));
    let told = Told::new(Mutex::new(InForce {
        settings: config.settings.clone(),
        uplink: uplink
            .as_ref()
            .zip(link.as_ref())
            .map(|(uplink, link)| (reload::urls(uplink), Arc::clone(&link.stats))),
        ..InForce::default()
    }));

    // What others say before the workers run waits in their letter boxes.
    let membership = match (&config.cluster, &config.store, seat, meeting) {
        (Some(cluster), StoreConfig::Postgres(store), Some(seat), Some((join, listener))) => {
            Some(Arc::from(join(cluster, store, listener, seat).map_err(RunError::Cluster)?))
        }
        _ => None,
    };
    let ended = Arc::new(tokio::sync::Notify::new());
    let mut threads = Vec::new();
    for (index, worker) in workers.into_iter().enumerate() {
        let ending = Arc::clone(&ended);
        let thread = std::thread::Builder::new()
            .name(format!("ferrule-worker-{index}"))
            .spawn(move || {
                let result = worker.run(Hub::message);
                ending.notify_one();
                result
            })
            .map_err(system("a worker's thread"))?;
        threads.push(thread);
    }

    let drain = Drain::new(inboxes.clone(), listeners.clone());
    let leaving = Leaving::default();
    let (sys_interval, sys_intervals) = watch::channel(config.node.sys_interval);
    let (memory_max, memory_maxes) = watch::channel(memory::memory_max(config, memory::machine()));
    let (reloads, asked) = mpsc::channel(RELOADS);
    let about = About {
        edge: product.edge,
        origin: Arc::clone(&origin),
        data_dir: config.node.data_dir.clone(),
        listeners: listeners.clone(),
        clock,
        inboxes: inboxes.clone(),
        place,
        sys_intervals,
        told: Arc::clone(&told),
        reloads,
        writer: Arc::new(opened.writer),
        membership: membership.clone(),
        drain,
        leaving: leaving.clone(),
    };
    config.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    config.notes.iter().for_each(|note| tracing::info!("{note}"));
    tracing::info!("memory: {}", worst_case(product.edge, config, sinks));
    runtime.spawn(watch_memory(memory_maxes, inboxes.clone()));
    runtime.spawn(known_time::keep(Arc::clone(&about.writer), known_s));
    let mut reloader = Reloader {
        read,
        running: whole.clone(),
        loader,
        watcher: None,
        keeper,
        listeners: listeners.clone(),
        membership: membership.clone(),
        inboxes: inboxes.clone(),
        connect: Box::new(connect),
        link,
        bounds: Box::new(bounds),
        memory_max,
        sys_interval,
        told,
    };
    let (stop_control, stops_control) = watch::channel(false);
    let mut control = None;
    let stopped = runtime.block_on(async {
        let known = about.clone();
        let answer = move |request| answer(known.clone(), request);
        control = Some(tokio::spawn(Control::bind(&lock)?.serve(answer, stops_control)));
        tracing::info!(
            id = &*origin,
            listeners = listeners.addresses().join(" "),
            version = env!("CARGO_PKG_VERSION"),
            "started"
        );
        notify(&[sd_notify::NotifyState::Ready]);
        serve(&about, files, &mut reloader, asked, &ended).await.map_err(system("signals"))
    });
    // Whoever had it leave is told when it has.
    let leaver = leaving.take();
    if leaver.is_none()
        && let Some(control) = &control
    {
        control.abort();
    }
    tracing::info!("stopping");
    notify(&[sd_notify::NotifyState::Stopping]);
    inboxes.iter().for_each(|inbox| inbox.post(Mail::Stop));
    // All of them end before any is judged.
    let ends: Vec<_> = threads.into_iter().map(std::thread::JoinHandle::join).collect();
    if let Some(link) = reloader.link.take() {
        // It sees its channel closed, and leaves with DISCONNECT; the runtime's end alone would drop it where it stands.
        let _ = runtime.block_on(async { tokio::time::timeout(STOP, link.task).await });
    }
    let left = membership.is_some_and(|membership| {
        // What others take over when it has left they find whole.
        about.writer.flush(STOP);
        membership.stop()
    });
    if let (Some(leaver), Some(control)) = (leaver, control) {
        // Who asked may have gone.
        let _ = leaver.send(left);
        stop_control.send_replace(true);
        let _ = runtime.block_on(async { tokio::time::timeout(STOP, control).await });
    }
    runtime.shutdown_timeout(STOP);
    if let Ok(mut writer) = Arc::try_unwrap(about.writer)
        && let Err(error) = writer.stop()
    {
        tracing::error!("{error}");
    }
    listeners.remove_files();
    drop(lock);
    stopped?;
    for end in ends {
        let end = end.map_err(|_| RunError::Worker("it panicked: this is a bug".into()))?;
        end.map_err(|e| RunError::Worker(e.to_string()))?;
    }
    Ok(())
}

type NodeWorker = Worker<Hub, Handle, HubMessage>;

/// What [`workers`] makes.
struct Workers {
    workers: Vec<NodeWorker>,
    /// Theirs, in the same order.
    inboxes: Vec<Inbox<HubMessage>>,
    /// Of the first.
    place: Place,
    keeper: Arc<Gatekeeper>,
    /// Of a node in a cluster.
    seat: Option<Seat>,
}

/// One worker a shard, introduced to each other.
fn workers(
    product: &Product,
    config: &BrokerConfig,
    clock: Clock,
    listeners: Vec<Listener>,
    opened: &Opened,
    (origin, boot): (&Origin, Boot),
    bounds: Bounds,
) -> Result<Workers, RunError> {
    let of = worker_count(config);
    let seed = random()? as u64;
    let stored: Vec<_> = opened.restored.queues.iter().filter(|q| q.queue.is_outbox()).copied().collect();
    let mut polls = Vec::new();
    let mut inboxes = Vec::new();
    for _ in 0..of {
        let (poll, inbox) = NodeWorker::poll().map_err(system("epoll"))?;
        polls.push(poll);
        inboxes.push(inbox);
    }
    let keeper = Gatekeeper::new(config, &inboxes).map_err(system("authentication"))?;
    let now = clock.now();
    let mut shards = Vec::new();
    for (index, inbox) in (0..of).zip(&inboxes) {
        let place = Place { index, of, seed };
        let Bounds { limits, features, sessions, outboxes } = bounds.clone();
        let node = Node {
            origin: Arc::clone(origin),
            boot,
            edge: product.edge,
            outboxes,
            clustered: config.cluster.is_some(),
            place,
        };
        let posts = inbox.clone();
        let parts = Parts {
            hook: Hub::new(node, stored.clone(), &opened.restored.state, random()?, now),
            store: opened.writer.handle(Box::new(move |event| posts.post(Mail::Store(event)))),
            gate: Box::new(keeper.gate(index)),
            limits,
            features,
            policy: sessions,
            seed,
            place,
        };
        shards.push(Shard::new(parts, &opened.restored, now));
    }
    introduce(&mut shards, clock.now()).map_err(|e| RunError::Worker(e.to_string()))?;
    let delay = Some(config.node.worker_delay).filter(|delay| !delay.is_zero());
    let links = Links::mesh(&inboxes, delay);
    let (seat, abroad) = config.cluster.as_ref().map(|_| cluster::seat(&inboxes)).unzip();
    let mut abroad = abroad.into_iter().flatten();
    let mut workers = Vec::new();
    for (((poll, inbox), links), shard) in polls.into_iter().zip(&inboxes).zip(links).zip(shards) {
        let listeners = listeners.iter().map(Listener::share).collect::<Result<_, _>>();
        let listeners = listeners.map_err(system("the listeners"))?;
        let worker = Worker::new(poll, inbox.clone(), links, clock, listeners, shard);
        let worker = worker.map_err(system("registering the listeners"))?;
        workers.push(match abroad.next() {
            Some(abroad) => worker.with_abroad(abroad),
            None => worker,
        });
    }
    Ok(Workers { workers, inboxes, place: Place { index: 0, of, seed }, keeper: Arc::new(keeper), seat })
}

/// How this program joins, and where others will connect.
fn meeting_place(
    product: &Product,
    config: &ClusterConfig,
) -> Result<(cluster::Join, TcpListener), RunError> {
    let missing = || RunError::Cluster("this program cannot be one of several nodes".into());
    let Cluster { check, join } = product.cluster.ok_or_else(missing)?;
    check(config).map_err(RunError::Cluster)?;
    let listener = TcpListener::bind(config.bind).map_err(|error| RunError::Listen {
        address: config.bind.to_string(),
        reason: format!("{error}; `bind` in [cluster] names another address"),
    })?;
    Ok((join, listener))
}

/// What each worker is bounded by.
fn bounds(edge: bool, origin: &Origin, config: &BrokerConfig) -> Bounds {
    let policy = policy(edge, config);
    let report_topic = config.outbox.report_topic.as_ref();
    Bounds {
        limits: limits(config, worker_count(config)),
        features: Arc::clone(&config.features),
        sessions: session_policy(config, policy),
        outboxes: OutboxBounds {
            policy,
            age_max: config.outbox.max_age,
            rate_max: config.outbox.max_rate,
            report_topic: report_topic.map(|topic| topic.replace("${edge}", origin).into()),
            dead_letter: config.outbox.dead_letter.as_deref().map(Arc::from),
        },
    }
}

/// Tells all workers when the process has too much memory, and when it has not any more.
async fn watch_memory(max: watch::Receiver<Option<u64>>, inboxes: Vec<Inbox<HubMessage>>) {
    /// What comes in within it is bounded by `max_buffered_bytes`.
    const LOOK_EVERY: Duration = Duration::from_secs(1);
    let mut gauge = memory::Gauge::new(u64::MAX);
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    loop {
        ticks.tick().await;
        let Some(resident) = memory::resident() else { continue };
        // None: nobody knows how much there is.
        let max = max.borrow().unwrap_or(u64::MAX);
        gauge.set_max(max);
        let Some(overloaded) = gauge.look(resident) else { continue };
        if overloaded {
            tracing::warn!(resident, memory_max = max, "too much memory in use: nobody new is let in");
        } else {
            tracing::info!(resident, memory_max = max, "enough memory again: clients are let in");
        }
        inboxes.iter().for_each(|inbox| inbox.post(Mail::App(HubMessage::Overloaded(overloaded))));
    }
}

/// Serves what is not on a message's way until a signal comes or the worker ends.
async fn serve(
    about: &About,
    files: Option<RuleFiles>,
    reloader: &mut Reloader,
    mut asked: mpsc::Receiver<Asked>,
    ended: &tokio::sync::Notify,
) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    reloader.watcher = files.map(|files| Watcher::start(files).0);
    tokio::select! {
        () = reloader.serve(&mut hangup, &mut asked) => {}
        () = about.listeners.clone().watch() => {}
        () = watchdog(about) => {}
        () = tell_sys(about) => {}
        () = cluster::watch(about.membership.clone()) => {}
        () = about.drain.clone().run() => {}
        () = about.leaving.asked() => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = ended.notified() => {}
    }
    Ok(())
}

/// Keeps the `$SYS` topics.
async fn tell_sys(about: &About) {
    let mut intervals = about.sys_intervals.clone();
    let mut sys = Sys::default();
    let ticks = |interval: Duration| (!interval.is_zero()).then(|| tokio::time::interval(interval));
    let mut timer = ticks(*intervals.borrow_and_update());
    loop {
        let tick = async {
            match &mut timer {
                Some(timer) => drop(timer.tick().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = tick => {}
            Ok(()) = intervals.changed() => {
                timer = ticks(*intervals.borrow_and_update());
                continue;
            }
        }
        // No answer: the node is stopping.
        if let Ok(status) = status(about).await {
            sys.tell(&status, about.clock.now().wall_ms, &about.inboxes);
        }
    }
}

/// Tells systemd that all workers still turn, as often as it asks to be told (`WatchdogSec=`).
async fn watchdog(about: &About) {
    let Some(period) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    let mut ticks = tokio::time::interval(period / 2);
    loop {
        ticks.tick().await;
        if status(about).await.is_ok() {
            notify(&[sd_notify::NotifyState::Watchdog]);
        }
    }
}

/// Tells systemd, where it started us and wants to be told.
fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "cannot notify systemd");
    }
}

/// What the control socket knows.
#[derive(Clone)]
struct About {
    edge: bool,
    origin: Origin,
    data_dir: PathBuf,
    listeners: Listeners,
    clock: Clock,
    inboxes: Vec<Inbox<HubMessage>>,
    place: Place,
    sys_intervals: watch::Receiver<Duration>,
    told: Told,
    reloads: mpsc::Sender<Asked>,
    writer: Arc<Writer>,
    membership: Option<Arc<dyn Membership>>,
    drain: Drain,
    leaving: Leaving,
}

/// Somebody has this node leave its cluster and stop.
#[derive(Clone, Default)]
struct Leaving(Arc<(tokio::sync::Notify, Mutex<Option<oneshot::Sender<bool>>>)>);

impl Leaving {
    fn take(&self) -> Option<oneshot::Sender<bool>> {
        self.0.1.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Asks; the answer is whether the others know that it has left.
    fn ask(&self) -> Result<oneshot::Receiver<bool>, String> {
        let mut leaver = self.0.1.lock().unwrap_or_else(PoisonError::into_inner);
        if leaver.is_some() {
            return Err("the node is leaving already".into());
        }
        let (reply, answer) = oneshot::channel();
        *leaver = Some(reply);
        self.0.0.notify_one();
        Ok(answer)
    }

    async fn asked(&self) {
        self.0.0.notified().await;
    }
}

/// Of a node that is one of several.
fn member(about: &About) -> Result<&Arc<dyn Membership>, String> {
    about.membership.as_ref().ok_or_else(|| {
        "this node is in no cluster: its configuration has no [cluster]; to stop it, stop its process"
            .to_owned()
    })
}

/// Clients that are moved off must have somewhere to go.
async fn check_others(about: &About) -> Result<(), String> {
    let cluster = member(about)?.status().await.ok_or("the node is stopping")?;
    let is_other =
        |member: &MemberStatus| member.node != cluster.node && member.linked && member.state == "live";
    if cluster.members.iter().any(is_other) {
        return Ok(());
    }
    Err("no other member of the cluster is live and linked, so its clients would have nowhere to go (`cluster status` shows the members); \
         to have it leave all the same: `cluster leave --now`"
        .into())
}

async fn answer(about: About, request: Value) -> Result<Value, String> {
    match request.get("do").and_then(Value::as_str) {
        Some("status") => serde_json::to_value(status(&about).await?).map_err(|e| e.to_string()),
        Some("reload") => {
            let (reply, answer) = oneshot::channel();
            let stopping = || "the node is stopping".to_owned();
            about.reloads.send(reply).await.map_err(|_| stopping())?;
            answer.await.map_err(|_| stopping())?
        }
        Some("cluster.drain") => {
            check_others(&about).await?;
            let rate = match request.get("rate").map(Value::as_u64) {
                None => drain::RATE,
                Some(Some(rate)) if (1..=drain::RATE_MAX.into()).contains(&rate) => rate as u32,
                Some(_) => return Err(format!("\"rate\": clients a second, 1 to {}", drain::RATE_MAX)),
            };
            Ok(json!({ "drain": about.drain.start(rate).await? }))
        }
        Some("cluster.undo") => {
            member(&about)?;
            about.drain.undo().await?;
            Ok(json!({}))
        }
        Some("cluster.leave") => {
            member(&about)?;
            if about.leaving.ask()?.await.unwrap_or(false) {
                return Ok(json!({ "left": true }));
            }
            Err("the node has stopped, but the database did not take its leave: the others remove it after a second".into())
        }
        Some("cluster.remove") => {
            let name = request.get("node").and_then(Value::as_str).ok_or("say which: \"node\"")?;
            Ok(json!({ "removed": member(&about)?.remove(name).await? }))
        }
        Some("settings") => Ok(json!({ "settings": reload::settings(&about.told) })),
        Some("rules.counters") => Ok(json!({ "rules": status(&about).await?.rules })),
        Some("outbox.list") => {
            let unclaimed = about.backlog().unclaimed().await?;
            let unclaimed = unclaimed.iter();
            let unclaimed: Vec<_> = unclaimed
                .map(|s| json!({ "name": show_id(s.queue), "queued": s.rows, "bytes": s.bytes }))
                .collect();
            Ok(json!({ "outboxes": status(&about).await?.outboxes, "unclaimed": unclaimed }))
        }
        Some("outbox.page") => {
            let (name, after) = outbox(&request)?;
            Ok(about.backlog().page(name, after).await?.to_json())
        }
        Some("outbox.purge") => {
            let (name, after) = outbox(&request)?;
            let number = |key: &str| request.get(key).and_then(Value::as_u64);
            let until = number("until").unwrap_or(u64::MAX);
            // Whoever leaves the age out must say that he means all.
            let before_ms = match request.get("before_ms").map(Value::as_i64) {
                Some(Some(before)) => Some(before),
                None if request.get("all") == Some(&Value::Bool(true)) => None,
                _ => return Err("say which rows: \"before_ms\" or \"all\": true".into()),
            };
            let dry = request.get("dry") == Some(&Value::Bool(true));
            about.backlog().give_up(name, after, &Pick { before_ms, until }, dry).await
        }
        Some("store.page") => {
            let after = stored::cursor(request.get("after").unwrap_or(&Value::Null))?;
            let answer = about.writer.look(after);
            let page = tokio::task::spawn_blocking(move || answer.recv()).await.map_err(|e| e.to_string())?;
            Ok(stored::page(&page.map_err(|_| "the store is stopping".to_owned())??))
        }
        Some(other) => Err(format!(
            "unknown request `{other}`; there are status, settings, reload, cluster.drain, cluster.undo, cluster.leave, cluster.remove, outbox.list, outbox.page, outbox.purge, rules.counters, store.page"
        )),
        None => Err("say what to do: {\"do\":\"status\"}".into()),
    }
}

/// The outbox that is meant, and the row after which to go on.
fn outbox(request: &Value) -> Result<(&str, u64), String> {
    let name = request.get("name").and_then(Value::as_str);
    let name = name.ok_or("say which outbox: \"name\"")?;
    Ok((name, request.get("after").and_then(Value::as_u64).unwrap_or(0)))
}

impl About {
    fn backlog(&self) -> Backlog<'_> {
        Backlog { writer: &self.writer, inboxes: &self.inboxes, place: self.place }
    }
}

async fn status(about: &About) -> Result<Status, String> {
    let mut hub = Status::default();
    for inbox in &about.inboxes {
        let (reply, answer) = oneshot::channel();
        inbox.post(Mail::App(HubMessage::Status(reply)));
        hub.add(answer.await.map_err(|_| "the node is stopping".to_owned())?);
    }
    let now_ms = about.clock.now().wall_ms;
    let (uplink, rules_error, reload) = {
        let told = lock(&about.told);
        (told.uplink.clone(), told.rules_error.clone(), told.reload.clone())
    };
    let uplink = uplink.map(|(url, stats)| {
        let s = stats.snapshot();
        let outbox = hub.outboxes.iter().find(|outbox| outbox.name == UPLINK).cloned().unwrap_or_default();
        let backlog = outbox.queued + outbox.in_flight;
        UplinkStatus {
            url,
            state: s.state.as_str().to_owned(),
            since_ms: s.connected_since_wall_ms.map_or(0, |since| (now_ms - since).max(0) as u64),
            connects: s.connects,
            failures: s.failures,
            sent: s.sent,
            batches: s.batches,
            received: s.received,
            received_unmatched: s.received_unmatched,
            acknowledged: s.acknowledged,
            in_flight: s.in_flight,
            backlog,
            backlog_bytes: outbox.bytes,
            lag_ms: if backlog > 0 { outbox.oldest_ms } else { 0 },
            answer_us: outbox.answer_us,
            bytes_out: s.bytes_out,
            bytes_in: s.bytes_in,
            last_error: s.last_error,
            certificates: s.certificates.iter().map(listen::certificate_status).collect(),
            certificate_error: s.certificate_error,
        }
    });
    Ok(Status {
        role: if about.edge { "edge" } else { "cloud" }.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        id: about.origin.to_string(),
        pid: std::process::id(),
        data_dir: about.data_dir.display().to_string(),
        listeners: about.listeners.status(),
        uplink,
        rules_error,
        reload,
        store: Some(about.writer.status(&about.data_dir)),
        cluster: match &about.membership {
            Some(membership) => membership.status().await,
            None => None,
        },
        drain: about.drain.status(),
        ..hub
    })
}

/// Checks the rules as a start would; how many sinks they have.
fn check_rules(product: &Product, texts: &[RuleFile]) -> Result<usize, RunError> {
    let sources = loader::sources(texts);
    let host = connectors::host(product.edge, &product.connectors);
    match loader::check(&sources, &host, &product.connectors) {
        Ok(rules) => Ok(rules.sinks.len()),
        Err(mistakes) => Err(RunError::Rules(loader::render(&sources, &mistakes))),
    }
}

/// The node's id: the configuration's, else the one drawn at the first start, which is durable before it is used.
fn origin(
    product: &Product,
    config: &BrokerConfig,
    writer: &Writer,
    restored: &Restored,
) -> Result<Origin, RunError> {
    const KEY: &str = "node_id";
    if let Some(id) = &config.node.id {
        return Ok(id.as_str().into());
    }
    let kept = restored.meta.iter().find(|(key, _)| &**key == KEY);
    if let Some(id) = kept.and_then(|(_, value)| std::str::from_utf8(value).ok()) {
        return Ok(id.into());
    }
    let id = format!("{}-{:012x}", if product.edge { "edge" } else { "node" }, random()? as u64 >> 16);
    let (committed, wait) = std::sync::mpsc::channel();
    let mut store = writer.handle(Box::new(move |event| {
        if let StoreEvent::Committed { .. } = event {
            // Nobody waits after the first.
            let _ = committed.send(());
        }
    }));
    store.submit(vec![Op::MetaPut { key: KEY.into(), value: id.clone().into_bytes().into() }]);
    wait.recv_timeout(Duration::from_secs(30))
        .map_err(|_| RunError::Store("the data folder does not take the first write within 30 s".into()))?;
    Ok(id.as_str().into())
}

fn random() -> Result<u128, RunError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|e| RunError::System {
        what: "random numbers",
        error: std::io::Error::other(e.to_string()),
    })?;
    Ok(u128::from_le_bytes(bytes))
}

/// Open files that are not clients': listeners, store, sinks, control socket, epoll of each worker; generous.
const OTHER_FILES: usize = 256;

/// Files that the process may open: the soft limit is raised to the hard one, as servers do.
fn open_files() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // What is refused stays as it is.
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok();
    let limit = if raised { maximum } else { current };
    limit.map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX))
}

/// Threads that serve clients.
fn worker_count(config: &BrokerConfig) -> u16 {
    match config.node.workers {
        0 => std::thread::available_parallelism().map_or(1, |n| n.get().min(64) as u16),
        of => of,
    }
}

/// The bounds of one of `of` shards.
fn limits(config: &BrokerConfig, of: u16) -> Limits {
    let mqtt = &config.mqtt;
    // Client ids are spread evenly, by their hash.
    let share = |all: u64| usize::try_from(all.div_ceil(of.into())).unwrap_or(usize::MAX);
    Limits {
        clients: config.listeners.iter().map(|listener| listener.clients).collect(),
        listeners: config.listeners.iter().map(|listener| listener.number).collect(),
        share: config.share,
        retained_messages: mqtt.retained_max_messages as usize,
        retained_bytes: mqtt.retained_max_bytes as usize,
        delayed_messages: share(mqtt.delayed_max_messages),
        delayed_bytes: share(mqtt.delayed_max_bytes),
        connections: connections(),
        sessions: share(mqtt.max_sessions),
        filter_bytes: share(mqtt.subscriptions_max_bytes),
        buffer_bytes: share(memory::buffered_max(config, memory::machine())),
        will_copies: config.cluster.as_ref().map_or(1, |cluster| cluster.will_copies),
    }
}

/// Connections that the process may have.
fn connections() -> usize {
    open_files().saturating_sub(OTHER_FILES).max(1)
}

/// The most memory that clients can make a node use that has so many sinks.
#[must_use]
pub fn worst_case(edge: bool, config: &BrokerConfig, sinks: usize) -> WorstCase {
    let files = connections();
    let came = |is: &dyn Fn(&ListenerConfig) -> bool| {
        let most = |listener: &ListenerConfig| match listener.entrance.connections {
            0 => files,
            connections => connections,
        };
        let listeners = config.listeners.iter().filter(|listener| is(listener));
        listeners.fold(0, |sum, listener| most(listener).saturating_add(sum)).min(files) as u64
    };
    let policy = policy(edge, config);
    let sessions = session_policy(config, policy);
    // The front in memory (and as much that is live), and as many rows as are refused when they cannot be written; of a session's queue, which has an end
    // of its own, its front alone, and half as much again that is read back.
    let front = if policy.order == Order::LiveFirst { 2 * policy.head_bytes } else { policy.head_bytes };
    let shape = Shape {
        workers: worker_count(config).into(),
        connections: came(&|_| true),
        layered: came(&|listener| listener.tls.is_some() || listener.websocket.is_some()),
        outboxes: sinks as u64 + u64::from(edge),
        outbox_bytes: (front + policy.refuse_bytes) as u64,
        session_bytes: (sessions.head_bytes + sessions.head_bytes / 2) as u64,
        machine: memory::machine(),
    };
    WorstCase::new(config, &shape)
}

/// Of sessions' queues: they are many, and each keeps little of its backlog in memory. How much of it there may be is
/// their limits' affair: at the end of those a message is dropped, where an outbox withholds acknowledgements.
fn session_policy(config: &BrokerConfig, policy: Policy) -> Policy {
    const HEAD_BYTES: usize = 128 << 10;
    const UNWRITTEN_BYTES: usize = 1 << 20;
    const REFUSE_BYTES: usize = 16 << 20;
    let largest = config.listeners.iter().map(|listener| listener.clients.packet_bytes).max().unwrap_or(0);
    Policy {
        head_bytes: HEAD_BYTES,
        unwritten_bytes: UNWRITTEN_BYTES,
        refuse_bytes: REFUSE_BYTES.max(2 * largest),
        disk_bytes: u64::MAX,
        disk_rows: u64::MAX,
        full: Full::Withhold,
        order: Order::InOrder,
        ..policy
    }
}

fn policy(edge: bool, config: &BrokerConfig) -> Policy {
    let outbox = &config.outbox;
    Policy {
        ack_deadline: outbox.ack_deadline,
        offline_interval: outbox.offline_interval,
        unwritten_bytes: outbox.mem_max as usize,
        disk_bytes: outbox.max_bytes,
        disk_rows: outbox.max_messages.unwrap_or(u64::MAX),
        full: outbox.on_full,
        order: outbox.order,
        ..if edge { Policy::EDGE } else { Policy::CLOUD }
    }
}

/// What comes down goes to the first shard, and what it says of it back.
fn downlink(inbox: Inbox<HubMessage>, generation: u64) -> ferrule_link::downlink::Ends {
    // Each message has one answer, and the broker waits for them: never more than a window for each connection.
    let (tell, said) = mpsc::unbounded_channel();
    let on_message = move |received| {
        inbox.post(Mail::App(HubMessage::Down(Box::new(received), tell.clone())));
    };
    // No uplink has so many connections in its life.
    let connections_from = generation << 24;
    ferrule_link::downlink::Ends { on_message: Arc::new(on_message), said, connections_from }
}

fn link(uplink: &UplinkConfig, origin: &Origin, boot: Boot, clock: Clock) -> ferrule_link::UplinkConfig {
    let stamp: ferrule_link::Clock = Arc::new(move || {
        let now = clock.now();
        now.stamp()
    });
    let mut link = ferrule_link::UplinkConfig::new(uplink.servers.clone(), Arc::clone(origin), boot, stamp);
    link.username = uplink.username.clone();
    link.password = uplink.password.as_ref().map(|p| p.as_str().as_bytes().to_vec());
    link.tls = uplink.tls.clone();
    link.preset = uplink.preset;
    link.client_id = uplink.client_id.clone();
    link.shared_key = uplink.shared_key.as_ref().and_then(|key| ferrule_link::preset::key(key.as_str()));
    link.proxy = uplink.proxy.clone();
    link.interface = uplink.interface.clone();
    link.keep_alive = uplink.keep_alive;
    link.connect_timeout = uplink.connect_timeout;
    link.window_max = uplink.max_inflight;
    link.version = uplink.version;
    link.identity = uplink.identity;
    link.batch = uplink.batch;
    link.batch_delay = uplink.batch_delay;
    link.metered = uplink.metered;
    link.downlinks = uplink.downlinks.clone();
    link.session_expiry = uplink.session_expiry;
    link
}
