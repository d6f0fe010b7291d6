//! The driver of an uplink: one task that dials, reads, writes and reports.
//!
//! # Operation
//! ```text
//! dial (look up ... CONNACK) --ok--> Up{window} --> serve --lost--> Down{error} --> back-off --> dial
//!   \                                               \--certificate ends--> renew --> Up{window} --> serve
//!    \--failed--> Down{error} (once per outage and whenever the error changes) --> back-off --> dial
//! ```
//! - It never ends by itself and never blocks: every step is bounded (`connect_timeout`, keep alive), every error is
//!   a back-off. It ends when the sender of rows is dropped: rows in flight get `drain` to be acknowledged, then
//!   DISCONNECT. What is not answered by then is still the outbox's.
//! - A turn: take all rows that wait, encode what the window allows into one buffer, one write; read what is there,
//!   one [`ConsumerEvent::Done`] for all answers in it. Reading never waits for writing, or two peers with full buffers
//!   would wait for each other for ever.
//! - Rows are kept across connections ([`crate::flow`]); [`ConsumerEvent::Reset`] is never said.
//!
//! # Renewal
//! A broker looks at a certificate in the handshake and never again, so new files on disk are no reason to end a connection. But
//! brokers may end those whose certificate has ended, in the middle of what is in flight. So shortly before ([`RENEW_AHEAD_S`]),
//! when there is a certificate that lasts longer, the connection moves:
//! ```text
//! Idle --due--> Dialling (beside; the old one serves) --> Draining (nothing new is sent) --> Entering (CONNECT) --> the new one
//!  ^               |                                        until all is acknowledged,          |
//!  +--failed-------+-- the old one goes on, again later --- or `connect_timeout` ---------------+
//! ```
//! The old connection is there until the broker has accepted the new one, by which it takes over the client id
//! [MQTT-3.1.4-3]. Nothing is in flight then, so nothing is sent twice; only what the broker has not acknowledged within
//! `connect_timeout` is sent again.
//!
//! The same for tokens that are the password ([`crate::preset`]), of which there is always a next one.
//!
//! `on_event` is called on this task: it must not block.

use crate::address::Server;
use crate::backoff::Backoff;
use crate::batching::Batching;
use crate::channel::Channel;
use crate::client::{Accepted, Event, Fault, Retry};
use crate::config::{IdentityMode, UplinkConfig};
use crate::credentials::{Credentials, Watcher};
use crate::dial::{Cause, LinkError, dial, enter, micros};
use crate::downlink::{self, Arrived, Downlink, Ends};
use crate::flow::Flow;
use crate::forward::Forwarder;
use crate::gathering::Gathering;
use crate::session::Session;
use crate::stats::{LinkState, UplinkStats};
use ferrule_mqtt::{ReasonCode, Version};
use ferrule_outbox::{ConsumerEvent, OutRow};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// Where answers go. Called on the uplink's task; must not block.
pub type OnEvent = Arc<dyn Fn(ConsumerEvent) + Send + Sync>;

/// Shortest back-off.
const BACKOFF_MIN: Duration = Duration::from_millis(100);

/// No more is encoded while this much waits for the socket: about what a fast link takes at once. Bytes.
const OUT_MAX: usize = 256 * 1024;

/// Batches of rows taken at once.
const BATCHES_MAX: usize = 64;

/// How long before a certificate ends its connection moves to the next: clocks of edge and broker differ by less. Seconds.
pub const RENEW_AHEAD_S: i64 = 5 * 60;

/// The longest sleep towards that moment, which is one of the wall clock: somebody may set it.
const RENEW_LOOK: Duration = Duration::from_secs(60);

/// Without a deadline: some time far away.
const NEVER: Duration = Duration::from_secs(86_400 * 365);

/// How a connection came to its end.
enum Ended {
    Lost(LinkError),
    /// The sender of rows is gone.
    Stopped,
    /// Another one has taken its place.
    Renewed(Connected),
}

/// A session, and what the broker agreed to.
type Connected = Box<(Session, Accepted)>;

type Step<T> = Pin<Box<dyn Future<Output = Result<T, LinkError>> + Send>>;

/// How far a connection is on its way to the next.
enum Renewal {
    /// Not before this.
    Idle(Instant),
    Dialling(Step<Dialled>),
    /// Until this, or until nothing is in flight.
    Draining(Dialled, Instant),
    Entering(Step<Connected>),
}

/// A connection up to where MQTT begins, and when the certificate ends that it was made with.
struct Dialled {
    channel: Channel,
    expires_s: Option<i64>,
}

/// What a renewal has come to.
enum Progress {
    Dialled(Result<Dialled, LinkError>),
    Entered(Result<Connected, LinkError>),
}

/// Everything that outlives a connection.
struct Uplink {
    config: Arc<UplinkConfig>,
    rows: mpsc::Receiver<Vec<OutRow>>,
    on_event: OnEvent,
    stats: Arc<UplinkStats>,
    /// None when no server is over TLS.
    watcher: Option<Watcher>,
    flow: Flow,
    backoff: Backoff,
    /// Zero of `now_us`.
    start: Instant,
    batches: Vec<Vec<OutRow>>,
    /// The sender of rows is gone.
    stopped: bool,
    /// The last error told: the same one is told once.
    told: Option<String>,
    down: Option<Ends>,
    /// Which one this is.
    connection: u64,
    /// Of messages from the broker: their numbers, and whether they are safe.
    said: Vec<(u64, bool)>,
}

/// Runs an uplink until the sender of `rows` is dropped.
///
/// Not to be dropped in the middle when it matters that rows in flight are acknowledged: drop the sender and await.
/// Dropping loses nothing: the rows are the outbox's until they are answered.
pub async fn run(
    config: UplinkConfig,
    rows: mpsc::Receiver<Vec<OutRow>>,
    on_event: OnEvent,
    stats: Arc<UplinkStats>,
) {
    run_both(config, rows, on_event, stats, None).await;
}

/// The same, with the side that messages from the broker come out at (`config.downlinks`).
pub async fn run_both(
    config: UplinkConfig,
    rows: mpsc::Receiver<Vec<OutRow>>,
    on_event: OnEvent,
    stats: Arc<UplinkStats>,
    down: Option<Ends>,
) {
    // Jitter has to differ between edges and between lives; the boot is random.
    let seed = config.boot.get();
    let tls = config.servers.iter().any(|server| server.scheme().is_tls());
    let mut uplink = Uplink {
        watcher: tls
            .then(|| Watcher::start(config.tls.clone(), Arc::clone(&config.clock), Arc::clone(&stats))),
        flow: Flow::new(config.backoff_max, seed),
        backoff: Backoff::new(BACKOFF_MIN, config.backoff_max, seed),
        config: Arc::new(config),
        rows,
        on_event,
        stats,
        start: Instant::now(),
        batches: Vec::new(),
        stopped: false,
        told: None,
        connection: down.as_ref().map_or(0, |down| down.connections_from),
        down,
        said: Vec::new(),
    };
    uplink.run().await;
    uplink.stats.set_state(LinkState::Stopped);
}

// === impl Uplink ===

impl Uplink {
    async fn run(&mut self) {
        while !self.stopped {
            self.stats.set_state(LinkState::Connecting);
            let error = match self.dial_any().await {
                Ok(None) => return,
                Ok(Some(connected)) => match self.serve_all(connected).await {
                    None => return,
                    Some(error) => error,
                },
                Err(error) => error,
            };
            if self.fall_back(&error) {
                continue;
            }
            self.down(&error);
            let delay = self.backoff.fail(self.floor(&error));
            self.stats.set_state(LinkState::Waiting);
            let until = Instant::now() + delay;
            self.hold(sleep_until(until)).await;
        }
    }

    /// To an earlier version of MQTT, if that is what the broker wants and we may: at once, once.
    fn fall_back(&mut self, error: &LinkError) -> bool {
        let refused = matches!(&error.cause, Cause::Mqtt(Fault::Refused(refusal))
            if refusal.reason == ReasonCode::UNSUPPORTED_PROTOCOL_VERSION);
        let falls = refused && self.config.falls_back && self.config.version == Version::V5;
        if falls {
            tracing::info!("the broker speaks no MQTT 5: 3.1.1 from now on");
            self.config =
                Arc::new(UplinkConfig { version: Version::V3_1_1, ..UplinkConfig::clone(&self.config) });
        }
        falls
    }

    /// A connection and those that take its place; the error of the last. `None` when the sender of rows went away.
    async fn serve_all(&mut self, mut connected: Connected) -> Option<LinkError> {
        loop {
            let (session, accepted) = *connected;
            match Box::pin(self.serve(session, &accepted)).await {
                Ended::Stopped => return None,
                Ended::Lost(error) => return Some(error),
                Ended::Renewed(next) => connected = next,
            }
        }
    }

    /// Waits for `work` and takes rows meanwhile; `None` when the sender of rows went away first.
    async fn hold<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return Some(done),
                // Cancel-safe: no batch is lost when `work` is first.
                taken = self.rows.recv_many(&mut self.batches, BATCHES_MAX) => {
                    if taken == 0 {
                        self.stopped = true;
                        return None;
                    }
                    self.take_batches();
                }
            }
        }
    }

    fn take_batches(&mut self) {
        let now_us = self.now_us();
        for rows in self.batches.drain(..) {
            self.flow.push(rows, now_us);
        }
        self.stats.waiting.store(self.flow.waiting() as u64, Relaxed);
    }

    /// Tries each server once, from the first; `None` when the sender of rows went away.
    async fn dial_any(&mut self) -> Result<Option<Connected>, LinkError> {
        if let Some(mut watcher) = self.watcher.take() {
            let loaded = self.hold(watcher.loaded()).await;
            self.watcher = Some(watcher);
            if loaded.is_none() {
                return Ok(None);
            }
        }
        let mut first_error = None;
        for server in self.config.servers.clone() {
            match self.connect(&server).await {
                None => return Ok(None),
                Some(Ok(connected)) => return Ok(Some(connected)),
                Some(Err(error)) => {
                    // Of several the first is the one that people expect to work.
                    first_error.get_or_insert(error);
                }
            }
        }
        Err(first_error.unwrap_or_else(LinkError::no_server))
    }

    /// `None` when the sender of rows went away.
    async fn connect(&mut self, server: &Server) -> Option<Result<Connected, LinkError>> {
        let dialling = self.dialling(server);
        match self.hold(dialling).await? {
            Ok(dialled) => {
                let entering = self.entering(server, dialled);
                self.hold(entering).await
            }
            Err(error) => Some(Err(error)),
        }
    }

    /// The way to where MQTT begins.
    fn dialling(&self, server: &Server) -> Step<Dialled> {
        let (config, stats, server) = (Arc::clone(&self.config), Arc::clone(&self.stats), server.clone());
        let credentials = self.credentials();
        Box::pin(async move {
            let channel = dial(&config, &server, credentials.as_ref(), &stats).await?;
            let expires_s = credentials.and_then(|c| c.current).and_then(|current| current.expires_s);
            Ok(Dialled { channel, expires_s: expires_s.filter(|_| server.scheme().is_tls()) })
        })
    }

    /// The way from there to CONNACK.
    fn entering(&self, server: &Server, dialled: Dialled) -> Step<Connected> {
        let (config, stats, server) = (Arc::clone(&self.config), Arc::clone(&self.stats), server.clone());
        let start = self.start;
        Box::pin(async move {
            let Dialled { channel, mut expires_s } = dialled;
            if config.shared_key.is_some() {
                let life_s = i64::try_from(config.token_life.as_secs()).unwrap_or(i64::MAX);
                let until_s = ((config.clock)().wall_ms / 1000).saturating_add(life_s);
                expires_s = Some(until_s);
            }
            enter(&config, &server, channel, expires_s, start, &stats).await.map(Box::new)
        })
    }

    fn credentials(&self) -> Option<Credentials> {
        self.watcher.as_ref().and_then(Watcher::get)
    }

    async fn serve(&mut self, mut session: Session, accepted: &Accepted) -> Ended {
        let identity = self.config.version == Version::V5
            && match self.config.identity {
                IdentityMode::Negotiated => accepted.ferrule,
                IdentityMode::Properties => true,
                IdentityMode::Never => false,
            };
        let mut forwarder = Forwarder::new(self.config.boot, identity).with_age_max(self.config.age_max);
        let batching = Batching::new(accepted, self.config.batch_delay, self.window(accepted));
        let batching = batching.unwrap_or_else(|error| {
            tracing::warn!("no batches to the cloud: {error}");
            None
        });
        self.flow.set_batching(batching);
        let window = self.window(accepted);
        self.flow.set_preset(self.config.preset.map(|preset| (preset, self.config.client_id())));
        self.flow.set_metered(self.config.metered.map(|metered| Gathering::of_metered(&metered, window)));
        self.connection += 1;
        self.said.clear();
        if let Err(error) = self.subscribe(&mut session) {
            return Ended::Lost(error);
        }
        self.up(&session.server, accepted);
        let since = Instant::now();
        let mut renewal = Renewal::Idle(since);
        let mut ended = self.serve_until(&mut session, &mut forwarder, &mut renewal).await;
        if let (Ended::Lost(_), Renewal::Entering(entering)) = (&ended, &mut renewal) {
            // The broker ends a connection when another one takes over its client id.
            match self.hold(entering).await {
                None => ended = Ended::Stopped,
                Some(Ok(next)) => ended = Ended::Renewed(next),
                Some(Err(error)) => tracing::debug!(%error, "the connection that was to be the next"),
            }
        }
        if let Ended::Renewed(_) = &ended {
            session.goodbye(&self.stats);
        }
        let fault = match &ended {
            Ended::Lost(LinkError { cause: Cause::Mqtt(fault), .. }) => Some(fault),
            _ => None,
        };
        if since.elapsed() >= self.config.backoff_max {
            self.backoff.reset();
        }
        self.flow.lost(session.client, fault);
        self.report();
        self.stats.in_flight.store(0, Relaxed);
        ended
    }

    async fn serve_until(
        &mut self,
        session: &mut Session,
        forwarder: &mut Forwarder,
        renewal: &mut Renewal,
    ) -> Ended {
        loop {
            let sending = matches!(renewal, Renewal::Idle(_) | Renewal::Dialling(_));
            if let Err(error) = self.turn(session, forwarder, sending) {
                return Ended::Lost(error);
            }
            if self.stopped {
                self.flow.hurry();
                if let Err(error) = self.turn(session, forwarder, sending) {
                    return Ended::Lost(error);
                }
                return self.drain(session).await;
            }
            let deadline = self.renew(session, renewal).min(self.deadline(session));
            tokio::select! {
                // All cancel-safe: a step of the renewal goes on where it was.
                ready = session.ready() => {
                    if let Err(error) = ready {
                        return Ended::Lost(error);
                    }
                }
                taken = self.rows.recv_many(&mut self.batches, BATCHES_MAX) => {
                    self.stopped = taken == 0;
                    self.take_batches();
                }
                progress = renewal.progress() => match progress {
                    Progress::Dialled(Ok(dialled)) => {
                        *renewal = Renewal::Draining(dialled, Instant::now() + self.config.connect_timeout);
                    }
                    Progress::Entered(Ok(next)) => return Ended::Renewed(next),
                    Progress::Dialled(Err(error)) | Progress::Entered(Err(error)) => {
                        tracing::warn!("the uplink cannot move to its new certificate or token, the connection stays: {error}");
                        self.stats.set_error(Some(error.to_string()));
                        *renewal = Renewal::Idle(Instant::now() + self.config.backoff_max);
                    }
                },
                () = changed(&mut self.watcher) => {}
                // Cancel-safe, too.
                said = said(&mut self.down) => self.said.push(said),
                () = sleep_until(deadline) => {}
            }
        }
    }

    /// Takes the renewal's next step, if it is time; else says when to look again.
    fn renew(&self, session: &Session, renewal: &mut Renewal) -> Instant {
        let now = Instant::now();
        match std::mem::replace(renewal, Renewal::Idle(now)) {
            Renewal::Idle(not_before) => {
                let due = self.until_renewal(session).map(|left| (now + left).max(not_before));
                *renewal = match due {
                    Some(due) if due <= now => {
                        tracing::info!(server = %session.server, "the uplink moves to its new certificate or token");
                        Renewal::Dialling(self.dialling(&session.server))
                    }
                    _ => Renewal::Idle(not_before),
                };
                due.map_or(now + NEVER, |due| due.min(now + RENEW_LOOK))
            }
            Renewal::Draining(dialled, until)
                if until <= now || (session.client.in_flight() == 0 && session.pending() == 0) =>
            {
                *renewal = Renewal::Entering(self.entering(&session.server, dialled));
                now + NEVER
            }
            Renewal::Draining(dialled, until) => {
                *renewal = Renewal::Draining(dialled, until);
                until
            }
            under_way => {
                *renewal = under_way;
                now + NEVER
            }
        }
    }

    /// How long until the connection should move; none: there is nothing better to move to.
    fn until_renewal(&self, session: &Session) -> Option<Duration> {
        let mine_s = session.expires_s?;
        let wall = (self.config.clock)();
        // A token there is always a next one of; a certificate only when somebody brought it.
        let is_next = self.config.shared_key.is_some()
            || self.credentials()?.current?.expires_s.is_some_and(|next_s| next_s > mine_s);
        if !is_next || !wall.synced {
            return None;
        }
        let left_ms = (mine_s - RENEW_AHEAD_S).saturating_mul(1000).saturating_sub(wall.wall_ms);
        Some(Duration::from_millis(u64::try_from(left_ms).unwrap_or(0)).min(NEVER))
    }

    /// Reads what is there, answers, sends what may be sent; rows only if `sending`.
    fn turn(
        &mut self,
        session: &mut Session,
        forwarder: &mut Forwarder,
        sending: bool,
    ) -> Result<(), LinkError> {
        let now_us = self.now_us();
        let flow = &mut self.flow;
        let mut arrived = std::mem::take(&mut session.arrived);
        let read = session.read(now_us, &self.stats, |event| match event {
            Event::Acked { item, reason, properties } => flow.acked(item, reason, properties, now_us),
            Event::Message(publish) => arrived.push(Arrived::of(&publish)),
            Event::Subscribed { reasons, .. } => subscribed(reasons),
            Event::Connected(_) => {}
        });
        // What was read before the connection broke counts.
        self.report();
        self.receive(session, arrived, now_us);
        read?;
        self.acknowledge(session, now_us)?;
        if let Err(fault) = session.client.tick(now_us, &mut session.out.bytes) {
            return Err(session.fault(fault));
        }
        let stamp = (self.config.clock)();
        loop {
            if sending {
                let limit = session.out.limit(OUT_MAX);
                let Session { client, out, .. } = session;
                self.flow.pump(client, forwarder, now_us, &stamp, &mut out.bytes, limit);
            }
            if session.pending() == 0 || !session.write(&self.stats)? {
                break;
            }
            // All went out: there may be more than OUT_MAX to say.
        }
        if session.pending() == 0 {
            self.flow.written();
        }
        self.report();
        self.stats.in_flight.store(session.client.in_flight() as u64, Relaxed);
        Ok(())
    }

    /// Asks the broker for what comes down.
    fn subscribe(&self, session: &mut Session) -> Result<(), LinkError> {
        if self.config.downlinks.is_empty() {
            return Ok(());
        }
        let filters = Downlink::filters(&self.config.downlinks, self.config.version);
        let (client, out) = (&mut session.client, &mut session.out.bytes);
        let asked = client.subscribe(filters.as_filters(), self.now_us(), out);
        asked.map(drop).map_err(|e| LinkError::new(&session.server, Cause::Config(format!("SUBSCRIBE: {e}"))))
    }

    /// Gives messages to the broker here.
    fn receive(&self, session: &mut Session, arrived: Vec<Arrived>, now_us: u64) {
        for message in arrived {
            self.stats.received.fetch_add(1, Relaxed);
            let packet_id = message.packet_id;
            match (message.mapped(&self.config.downlinks, self.connection), &self.down) {
                (Some(received), Some(down)) => (down.on_message)(received),
                _ => {
                    self.stats.received_unmatched.fetch_add(1, Relaxed);
                    // Nobody here will ever want it.
                    if packet_id > 0 && !self.config.downlinks.is_empty() {
                        session.client.acknowledge(packet_id, now_us, &mut session.out.bytes);
                    }
                }
            }
        }
    }

    /// Acknowledges what is safe here.
    fn acknowledge(&mut self, session: &mut Session, now_us: u64) -> Result<(), LinkError> {
        if let Some(down) = &mut self.down {
            // At most what one Receive Maximum let through on each connection.
            while let Ok(said) = down.said.try_recv() {
                self.said.push(said);
            }
        }
        for (number, is_safe) in self.said.drain(..) {
            let (connection, packet_id) = downlink::split(number);
            if connection != self.connection {
                continue; // It comes again.
            }
            if !is_safe {
                return Err(LinkError::new(&session.server, Cause::NoRoom));
            }
            session.client.acknowledge(packet_id, now_us, &mut session.out.bytes);
        }
        Ok(())
    }

    /// The sender of rows is gone: waits for what is in flight, says goodbye.
    async fn drain(&mut self, session: &mut Session) -> Ended {
        let until = Instant::now() + self.config.drain;
        while session.client.in_flight() > 0 || session.pending() > 0 {
            tokio::select! {
                ready = session.ready() => {
                    if ready.is_err() {
                        return Ended::Stopped;
                    }
                }
                () = sleep_until(until) => break,
            }
            let now_us = self.now_us();
            let flow = &mut self.flow;
            let read = session.read(now_us, &self.stats, |event| {
                if let Event::Acked { item, reason, properties } = event {
                    flow.acked(item, reason, properties, now_us);
                }
            });
            let wrote = read.and_then(|()| session.write(&self.stats));
            if session.pending() == 0 {
                self.flow.written();
            }
            self.report();
            if wrote.is_err() {
                return Ended::Stopped;
            }
        }
        session.goodbye(&self.stats);
        Ended::Stopped
    }

    fn deadline(&self, session: &Session) -> Instant {
        let due = [session.client.deadline_us(), self.flow.deadline_us(&session.client)]
            .into_iter()
            .flatten()
            .min();
        self.start + due.map_or(NEVER, Duration::from_micros)
    }

    fn now_us(&self) -> u64 {
        micros(self.start)
    }

    fn report(&mut self) {
        let answers = self.flow.take_answers();
        self.stats.sent.store(self.flow.sent(), Relaxed);
        self.stats.batches.store(self.flow.batches(), Relaxed);
        self.stats.deferred.store(self.flow.deferred(), Relaxed);
        self.stats.waiting.store(self.flow.waiting() as u64, Relaxed);
        if answers.is_empty() {
            return;
        }
        let delivered =
            answers.iter().filter(|(_, answer)| *answer == ferrule_outbox::Delivered::Yes).count();
        self.stats.acknowledged.fetch_add(delivered as u64, Relaxed);
        self.stats.discarded.fetch_add((answers.len() - delivered) as u64, Relaxed);
        // Progress, not CONNACK, ends a series of failures: a broker that accepts every connection and ends it at
        // once is not to be dialled ten times a second.
        self.backoff.reset();
        (self.on_event)(ConsumerEvent::Done(answers));
    }

    fn up(&mut self, server: &Server, accepted: &Accepted) {
        tracing::info!(
            %server,
            window = accepted.window,
            ferrule = accepted.ferrule,
            failures = self.backoff.failures(),
            "uplink is up"
        );
        self.told = None;
        self.stats.set_error(None);
        self.stats.connected_since_wall_ms.store((self.config.clock)().wall_ms, Relaxed);
        self.stats.connects.fetch_add(1, Relaxed);
        self.stats.set_state(LinkState::Up);
        let holds = match self.config.metered {
            Some(metered) => metered.time,
            None if accepted.ferrule && accepted.batch => self.config.batch_delay,
            None => Duration::ZERO,
        };
        (self.on_event)(ConsumerEvent::Holds { rows: holds });
        (self.on_event)(ConsumerEvent::Up { window: self.window(accepted) });
    }

    /// Rows that may be unanswered: in batches more than PUBLISH packets, and while they wait to be paid for more than may be in flight.
    fn window(&self, accepted: &Accepted) -> usize {
        let batches = accepted.ferrule && accepted.batch;
        let window = usize::from(if batches { self.config.window_max } else { accepted.window });
        window.max(self.config.metered.map_or(0, |metered| metered.window()))
    }

    fn down(&mut self, error: &LinkError) {
        let text = error.to_string();
        self.stats.failures.fetch_add(1, Relaxed);
        if self.told.as_ref() == Some(&text) {
            return;
        }
        // A lost peer is not our failure (house style); what only a person can mend is a warning.
        match self.told {
            _ if error.retry() == Retry::Operator => tracing::warn!("uplink is down: {text}"),
            None => tracing::info!("uplink is down: {text}"),
            Some(_) => tracing::debug!("uplink is still down: {text}"),
        }
        self.told = Some(text.clone());
        self.stats.set_error(Some(text.clone()));
        (self.on_event)(ConsumerEvent::Down { error: text });
    }

    fn floor(&self, error: &LinkError) -> Duration {
        match error.retry() {
            Retry::Soon => Duration::ZERO,
            Retry::Slowly => self.config.backoff_max / 4,
            Retry::Operator => self.config.backoff_max,
        }
    }
}

/// The broker here says that a message is safe, or not.
async fn said(down: &mut Option<Ends>) -> (u64, bool) {
    if let Some(down) = down
        && let Some(said) = down.said.recv().await
    {
        return said;
    }
    std::future::pending().await
}

/// The broker's answer to SUBSCRIBE.
fn subscribed(reasons: &[u8]) {
    for (place, &reason) in reasons.iter().enumerate().filter(|(_, reason)| **reason >= 0x80) {
        let reason = ReasonCode(reason);
        tracing::warn!(%reason, "the broker refuses [[downlink]] number {}: nothing comes by it", place + 1);
    }
}

/// Other certificates are there.
async fn changed(watcher: &mut Option<Watcher>) {
    match watcher {
        Some(watcher) => watcher.changed().await,
        None => std::future::pending().await,
    }
}

// === impl Renewal ===

impl Renewal {
    /// Waits for the step that is under way. Cancel-safe.
    async fn progress(&mut self) -> Progress {
        match self {
            Self::Dialling(step) => Progress::Dialled(step.await),
            Self::Entering(step) => Progress::Entered(step.await),
            Self::Idle(_) | Self::Draining(..) => std::future::pending().await,
        }
    }
}
