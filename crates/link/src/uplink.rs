//! The driver of an uplink: one task that dials, reads, writes and reports.
//!
//! # Operation
//! ```text
//! dial (look up, connect, CONNECT, CONNACK) --ok--> Up{window} --> serve --lost--> Down{error} --> back-off --> dial
//!   \--failed--> Down{error} (once per outage and whenever the error changes) --> back-off --> dial
//! ```
//! - It never ends by itself and never blocks: every step is bounded (`connect_timeout`, keep alive), every error is
//!   a back-off. It ends when the sender of rows is dropped: rows in flight get `drain` to be acknowledged, then
//!   DISCONNECT. What is not answered by then is still the outbox's.
//! - A turn: take all rows that wait, encode what the window allows into one buffer, one write; read what is there,
//!   one [`ConsumerEvent::Done`] for all answers in it. Reading never waits for writing, or two peers with full buffers
//!   would wait for each other for ever.
//! - Rows are kept across connections ([`crate::flow`]); [`ConsumerEvent::Reset`] is never said.
//!
//! `on_event` is called on this task: it must not block.

use crate::backoff::Backoff;
use crate::client::{Accepted, Client, ClientConfig, Event, Fault, Retry};
use crate::config::{IdentityMode, Server, UplinkConfig};
use crate::flow::{Flow, Held};
use crate::forward::Forwarder;
use crate::stats::{LinkState, UplinkStats};
use ferrule_mqtt::{ReasonCode, Version};
use ferrule_outbox::{ConsumerEvent, OutRow};
use socket2::{SockRef, TcpKeepalive};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

/// Where answers go. Called on the uplink's task; must not block.
pub type OnEvent = Arc<dyn Fn(ConsumerEvent) + Send + Sync>;

/// Shortest back-off.
const BACKOFF_MIN: Duration = Duration::from_millis(100);

/// No more is encoded while this much waits for the socket: about what a fast link takes at once. Bytes.
const OUT_MAX: usize = 256 * 1024;

/// Bytes asked of the socket at once: a thousand acknowledgements are 4 KiB.
const READ_CHUNK: usize = 16 * 1024;

/// Reads in a row before writing gets its turn.
const READS_MAX: usize = 16;

/// Batches of rows taken at once.
const BATCHES_MAX: usize = 64;

/// Largest packet accepted from the broker, in bytes: acknowledgements, and some day commands.
const PACKET_MAX: u32 = 1024 * 1024;

/// Why a connection ended or never came to be.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("{0} cannot be looked up: {1}")]
    LookUp(Server, io::Error),
    #[error("{0} ({1}) cannot be reached: {2}")]
    Connect(Server, SocketAddr, io::Error),
    #[error("{0}: the connection broke: {1}")]
    Broken(Server, io::Error),
    #[error("{0}: the broker closed the connection without a word")]
    Closed(Server),
    #[error("{0}: {1}")]
    Fault(Server, Fault),
    #[error("the uplink's configuration cannot be used: {0}")]
    Config(String),
}

/// How a connection came to its end.
enum Ended {
    Lost(LinkError),
    /// The sender of rows is gone.
    Stopped,
}

/// A connection.
struct Session {
    server: Server,
    stream: TcpStream,
    client: Client<Held>,
    /// Encoded, not written: from `out_at` on.
    out: Vec<u8>,
    out_at: usize,
    /// Read, not decoded: the head of a packet.
    inbox: Vec<u8>,
}

/// Everything that outlives a connection.
struct Uplink {
    config: Arc<UplinkConfig>,
    rows: mpsc::Receiver<Vec<OutRow>>,
    on_event: OnEvent,
    stats: Arc<UplinkStats>,
    flow: Flow,
    backoff: Backoff,
    /// Zero of `now_us`.
    start: Instant,
    batches: Vec<Vec<OutRow>>,
    /// The sender of rows is gone.
    stopped: bool,
    /// The last error told: the same one is told once.
    told: Option<String>,
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
    // Jitter has to differ between edges and between lives; the boot is random.
    let seed = config.boot.get();
    let mut uplink = Uplink {
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
                Ok(Some((session, accepted))) => match self.serve(session, &accepted).await {
                    Ended::Stopped => return,
                    Ended::Lost(error) => error,
                },
                Err(error) => error,
            };
            self.down(&error);
            let delay = self.backoff.fail(self.floor(&error));
            self.stats.set_state(LinkState::Waiting);
            let until = Instant::now() + delay;
            self.hold(sleep_until(until)).await;
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
        for rows in self.batches.drain(..) {
            self.flow.push(rows);
        }
        self.stats.waiting.store(self.flow.waiting() as u64, Relaxed);
    }

    /// Tries each server once, from the first; `None` when the sender of rows went away.
    async fn dial_any(&mut self) -> Result<Option<(Session, Accepted)>, LinkError> {
        let mut first_error = None;
        for server in self.config.servers.clone() {
            let (config, stats) = (Arc::clone(&self.config), Arc::clone(&self.stats));
            match self.hold(dial(&config, server, self.start, &stats)).await {
                None => return Ok(None),
                Some(Ok(session)) => return Ok(Some(session)),
                Some(Err(error)) => {
                    // Of several the first is the one that people expect to work.
                    first_error.get_or_insert(error);
                }
            }
        }
        Err(first_error.unwrap_or_else(|| LinkError::Config("it names no server".to_owned())))
    }

    async fn serve(&mut self, mut session: Session, accepted: &Accepted) -> Ended {
        let identity = self.config.version == Version::V5
            && (accepted.ferrule || self.config.identity == IdentityMode::Properties);
        let mut forwarder = Forwarder::new(self.config.boot, identity);
        self.up(&session.server, accepted);
        let since = Instant::now();
        let ended = self.serve_until(&mut session, &mut forwarder).await;
        let fault = match &ended {
            Ended::Lost(LinkError::Fault(_, fault)) => Some(fault),
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

    async fn serve_until(&mut self, session: &mut Session, forwarder: &mut Forwarder) -> Ended {
        loop {
            if let Err(error) = self.turn(session, forwarder) {
                return Ended::Lost(error);
            }
            if self.stopped {
                return self.drain(session).await;
            }
            let interest = if session.pending() > 0 {
                Interest::READABLE | Interest::WRITABLE
            } else {
                Interest::READABLE
            };
            let deadline = self.deadline(session);
            tokio::select! {
                // Both cancel-safe.
                ready = session.stream.ready(interest) => {
                    if let Err(error) = ready {
                        return Ended::Lost(LinkError::Broken(session.server.clone(), error));
                    }
                }
                taken = self.rows.recv_many(&mut self.batches, BATCHES_MAX) => {
                    self.stopped = taken == 0;
                    self.take_batches();
                }
                () = sleep_until(deadline) => {}
            }
        }
    }

    /// Reads what is there, answers, sends what may be sent.
    fn turn(&mut self, session: &mut Session, forwarder: &mut Forwarder) -> Result<(), LinkError> {
        let now_us = self.now_us();
        let flow = &mut self.flow;
        let read = session.read(now_us, &self.stats, |event| {
            if let Event::Acked { item, reason } = event {
                flow.acked(item, reason, now_us);
            }
        });
        // What was read before the connection broke counts.
        self.report();
        read?;
        if let Err(fault) = session.client.tick(now_us, &mut session.out) {
            return Err(session.fault(fault));
        }
        let stamp = (self.config.clock)();
        loop {
            let limit = session.out_at + OUT_MAX;
            let Session { client, out, .. } = session;
            self.flow.pump(client, forwarder, now_us, &stamp, out, limit);
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

    /// The sender of rows is gone: waits for what is in flight, says goodbye.
    async fn drain(&mut self, session: &mut Session) -> Ended {
        let until = Instant::now() + self.config.drain;
        while session.client.in_flight() > 0 || session.pending() > 0 {
            let interest = if session.pending() > 0 {
                Interest::READABLE | Interest::WRITABLE
            } else {
                Interest::READABLE
            };
            tokio::select! {
                ready = session.stream.ready(interest) => {
                    if ready.is_err() {
                        return Ended::Stopped;
                    }
                }
                () = sleep_until(until) => break,
            }
            let now_us = self.now_us();
            let flow = &mut self.flow;
            let read = session.read(now_us, &self.stats, |event| {
                if let Event::Acked { item, reason } = event {
                    flow.acked(item, reason, now_us);
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
        // Behind half a packet it would be read as a part of that.
        if session.pending() == 0 {
            session.client.disconnect(ReasonCode::NORMAL_DISCONNECTION, &mut session.out);
            let _ = session.write(&self.stats);
        }
        Ended::Stopped
    }

    fn deadline(&self, session: &Session) -> Instant {
        let due = [session.client.deadline_us(), self.flow.deadline_us(&session.client)]
            .into_iter()
            .flatten()
            .min();
        // Without one: some time far away.
        self.start + due.map_or(Duration::from_secs(86_400 * 365), Duration::from_micros)
    }

    fn now_us(&self) -> u64 {
        micros(self.start)
    }

    fn report(&mut self) {
        let answers = self.flow.take_answers();
        self.stats.sent.store(self.flow.sent(), Relaxed);
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
        (self.on_event)(ConsumerEvent::Up { window: usize::from(accepted.window) });
    }

    fn down(&mut self, error: &LinkError) {
        let text = error.to_string();
        self.stats.failures.fetch_add(1, Relaxed);
        if self.told.as_ref() == Some(&text) {
            return;
        }
        // A lost peer is not our failure (house style); what only a person can mend is a warning.
        match self.told {
            _ if self.retry(error) == Retry::Operator => tracing::warn!("uplink is down: {text}"),
            None => tracing::info!("uplink is down: {text}"),
            Some(_) => tracing::debug!("uplink is still down: {text}"),
        }
        self.told = Some(text.clone());
        self.stats.set_error(Some(text.clone()));
        (self.on_event)(ConsumerEvent::Down { error: text });
    }

    fn retry(&self, error: &LinkError) -> Retry {
        match error {
            LinkError::Fault(_, fault) => fault.retry(),
            LinkError::Config(_) => Retry::Operator,
            _ => Retry::Soon,
        }
    }

    fn floor(&self, error: &LinkError) -> Duration {
        match self.retry(error) {
            Retry::Soon => Duration::ZERO,
            Retry::Slowly => self.config.backoff_max / 4,
            Retry::Operator => self.config.backoff_max,
        }
    }
}

// === impl Session ===

impl Session {
    fn fault(&self, fault: Fault) -> LinkError {
        LinkError::Fault(self.server.clone(), fault)
    }

    /// Bytes encoded and not written.
    fn pending(&self) -> usize {
        self.out.len() - self.out_at
    }

    /// Reads until the socket is empty, or for one turn's worth.
    fn read(
        &mut self,
        now_us: u64,
        stats: &UplinkStats,
        mut on: impl FnMut(Event<'_, Held>),
    ) -> Result<(), LinkError> {
        for _ in 0..READS_MAX {
            let start = self.inbox.len();
            self.inbox.resize(start + READ_CHUNK, 0);
            let got = self.stream.try_read(&mut self.inbox[start..]);
            self.inbox.truncate(start + *got.as_ref().unwrap_or(&0));
            match got {
                Ok(0) => return Err(LinkError::Closed(self.server.clone())),
                Ok(bytes) => {
                    stats.bytes_in.fetch_add(bytes as u64, Relaxed);
                    match self.client.receive(&self.inbox, now_us, &mut self.out, &mut on) {
                        Ok(used) => drop(self.inbox.drain(..used)),
                        Err(fault) => {
                            // A last DISCONNECT that says why; whether it arrives is not ours to wait for.
                            let _ = self.write(stats);
                            return Err(self.fault(fault));
                        }
                    }
                    if bytes < READ_CHUNK {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(LinkError::Broken(self.server.clone(), error)),
            }
        }
        Ok(())
    }

    /// Writes until all is out (true) or the socket is full (false).
    fn write(&mut self, stats: &UplinkStats) -> Result<bool, LinkError> {
        while self.out_at < self.out.len() {
            match self.stream.try_write(&self.out[self.out_at..]) {
                Ok(bytes) => {
                    stats.bytes_out.fetch_add(bytes as u64, Relaxed);
                    stats.writes.fetch_add(1, Relaxed);
                    self.out_at += bytes;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // The written head goes when it is the larger part: each byte is then moved at most once.
                    if self.out_at > self.out.len() / 2 {
                        self.out.drain(..self.out_at);
                        self.out_at = 0;
                    }
                    return Ok(false);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(LinkError::Broken(self.server.clone(), error)),
            }
        }
        self.out.clear();
        self.out_at = 0;
        // One huge row must not hold its size for ever.
        self.out.shrink_to(2 * OUT_MAX);
        Ok(true)
    }
}

// === dialling ===

/// Looks up `server` anew, connects to one of its addresses and brings the connection up to CONNACK. Cancel-safe: a
/// connection that is not returned is closed.
async fn dial(
    config: &UplinkConfig,
    server: Server,
    start: Instant,
    stats: &UplinkStats,
) -> Result<(Session, Accepted), LinkError> {
    let client_config = client_config(config)?;
    let stream = connect(config, &server).await?;
    let mut session = Session {
        server,
        stream,
        client: Client::new(client_config),
        out: Vec::new(),
        out_at: 0,
        inbox: Vec::new(),
    };
    session
        .client
        .connect(micros(start), &mut session.out)
        .map_err(|error| LinkError::Config(format!("CONNECT: {error}")))?;
    let mut accepted = None;
    loop {
        session.write(stats)?;
        session.read(micros(start), stats, |event| {
            if let Event::Connected(answer) = event {
                accepted = Some(answer);
            }
        })?;
        if let Some(accepted) = accepted {
            return Ok((session, accepted));
        }
        if let Err(fault) = session.client.tick(micros(start), &mut session.out) {
            return Err(session.fault(fault));
        }
        let deadline = start + session.client.deadline_us().map_or(Duration::ZERO, Duration::from_micros);
        let interest =
            if session.pending() > 0 { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        tokio::select! {
            ready = session.stream.ready(interest) => {
                ready.map_err(|error| LinkError::Broken(session.server.clone(), error))?;
            }
            () = sleep_until(deadline) => {}
        }
    }
}

async fn connect(config: &UplinkConfig, server: &Server) -> Result<TcpStream, LinkError> {
    let late = || io::Error::new(io::ErrorKind::TimedOut, "timed out");
    let found =
        timeout(config.connect_timeout, tokio::net::lookup_host((server.host(), server.port()))).await;
    let addresses: Vec<SocketAddr> = match found {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(error)) => return Err(LinkError::LookUp(server.clone(), error)),
        Err(_) => return Err(LinkError::LookUp(server.clone(), late())),
    };
    let mut first_error = None;
    for address in addresses {
        let stream = match timeout(config.connect_timeout, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                first_error.get_or_insert((address, error));
                continue;
            }
            Err(_) => {
                first_error.get_or_insert((address, late()));
                continue;
            }
        };
        if let Err(error) = tune(&stream, config.keep_alive) {
            // Not every platform and socket has all of these; the pings find a dead link too.
            tracing::debug!(%error, "socket options");
        }
        return Ok(stream);
    }
    Err(match first_error {
        Some((address, error)) => LinkError::Connect(server.clone(), address, error),
        None => {
            LinkError::LookUp(server.clone(), io::Error::new(io::ErrorKind::NotFound, "it has no address"))
        }
    })
}

/// Batching is ours (no Nagle); what was written and not acknowledged by the peer's kernel ends the connection after
/// 1.5 keep alives, as silence does, instead of after the kernel's 15 minutes.
fn tune(stream: &TcpStream, keep_alive: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    if keep_alive.is_zero() {
        return Ok(());
    }
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(keep_alive).with_interval(keep_alive))?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(keep_alive + keep_alive / 2))?;
    Ok(())
}

fn client_config(config: &UplinkConfig) -> Result<ClientConfig, LinkError> {
    let keep_alive_s = u16::try_from(config.keep_alive.as_secs())
        .map_err(|_| LinkError::Config(format!("keep_alive {:?} is over 65535 s", config.keep_alive)))?;
    if keep_alive_s == 0 && !config.keep_alive.is_zero() {
        return Err(LinkError::Config(format!("keep_alive {:?} is under 1 s", config.keep_alive)));
    }
    Ok(ClientConfig {
        version: config.version,
        client_id: format!("ferrule-{}", config.edge),
        username: config.username.clone(),
        password: config.password.clone(),
        // The outbox is the memory: a session in the broker would only keep packet ids of rows that are sent anew.
        clean_start: true,
        keep_alive_s,
        connack_timeout_us: u64::try_from(config.connect_timeout.as_micros()).unwrap_or(u64::MAX),
        window_max: config.window_max,
        max_packet_size: PACKET_MAX,
        user_properties: vec![
            ("ferrule".to_owned(), "1".to_owned()),
            ("ferrule-edge".to_owned(), config.edge.to_string()),
            ("ferrule-boot".to_owned(), config.boot.to_string()),
        ],
    })
}

fn micros(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX)
}
