//! From a URL to a connection, and every reason for which there is none.
//!
//! # Operation
//! ```text
//! dial:   look up -> TCP -> [proxy: CONNECT] -> [TLS] -> [WebSocket]      enter:   CONNECT -> CONNACK
//! ```
//! Each step is bounded by `connect_timeout`, whatever the peer sends meanwhile. The two halves are apart because a connection that is
//! made beside a living one must not CONNECT before that one is quiet ([`crate::uplink`]).
//!
//! Through a proxy the broker's name is looked up by the proxy: networks that have one often have no other DNS.

use crate::address::Server;
use crate::channel::{Broken, Channel, Outgoing};
use crate::client::{Accepted, Client, ClientConfig, Event, Fault, Retry};
use crate::config::{IdentityMode, TlsConfig, UplinkConfig};
use crate::credentials::Credentials;
use crate::downlink::{Arrived, WINDOW};
use crate::preset;
use crate::session::Session;
use crate::stats::UplinkStats;
use ferrule_transport::http::HttpError;
use ferrule_transport::stack::{self, ClientLayers, Stack, Step};
use ferrule_transport::tls::TlsError;
use rustls::CertificateError;
use socket2::{SockRef, TcpKeepalive};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep_until, timeout};

/// "No such device", on every Linux.
const ENODEV: i32 = 19;

/// Largest packet accepted from the broker, in bytes: acknowledgements, and some day commands.
const PACKET_MAX: u32 = 1024 * 1024;

/// Why a connection ended or never came to be.
#[derive(Debug)]
pub(crate) struct LinkError {
    /// None when there is none to dial.
    server: Option<Box<Server>>,
    pub(crate) cause: Cause,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Cause {
    #[error("{0} cannot be looked up: {1}")]
    LookUp(String, io::Error),
    #[error("{0} cannot be reached: {1}")]
    Connect(String, io::Error),
    #[error("{}", no_interface(.0, .1))]
    Interface(String, io::Error),
    #[error("{} within {bound:?} (`connect_timeout`)", late(*.step))]
    Late { step: Step, bound: Duration },
    #[error("{0}")]
    Certificates(String),
    #[error("{}", explain(*.0, .1))]
    Layer(Step, stack::Fault),
    #[error("the connection broke: {0}")]
    Socket(io::Error),
    #[error("{}", closed(*.0))]
    Closed(Step),
    #[error("the broker asks and does not read the answers")]
    Unread,
    #[error("the broker speaks {0} at this port: write '{1}'")]
    Speaks(&'static str, &'static str),
    #[error("{0}")]
    Mqtt(Fault),
    #[error("a message from the broker found no room here: it is to be sent again")]
    NoRoom,
    #[error("the uplink's configuration cannot be used: {0}")]
    Config(String),
}

// === impl LinkError ===

impl LinkError {
    pub(crate) fn new(server: &Server, cause: Cause) -> Self {
        Self { server: Some(Box::new(server.clone())), cause }
    }

    /// [`UplinkConfig::servers`] is empty.
    pub(crate) fn no_server() -> Self {
        Self { server: None, cause: Cause::Config("it names no server".to_owned()) }
    }

    /// What to do about it.
    pub(crate) fn retry(&self) -> Retry {
        match &self.cause {
            Cause::Mqtt(fault) => fault.retry(),
            Cause::Layer(_, fault) => retry(fault),
            Cause::Config(_) | Cause::Certificates(_) | Cause::Speaks(..) => Retry::Operator,
            Cause::Unread | Cause::NoRoom => Retry::Slowly,
            Cause::LookUp(..)
            | Cause::Connect(..)
            // A modem's comes and goes.
            | Cause::Interface(..)
            | Cause::Late { .. }
            | Cause::Socket(_)
            | Cause::Closed(_) => Retry::Soon,
        }
    }
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.server {
            Some(server) => write!(f, "{server}: {}", self.cause),
            None => self.cause.fmt(f),
        }
    }
}

impl From<Broken> for Cause {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Socket(error) => Self::Socket(error),
            Broken::Closed(step) => Self::Closed(step),
            Broken::Layer(step, fault) => Self::Layer(step, fault),
            Broken::Unread => Self::Unread,
        }
    }
}

/// What a layer has to say, and whom it is about.
fn explain(step: Step, fault: &stack::Fault) -> String {
    match (step, fault) {
        (Step::Connect, stack::Fault::Http(error)) => {
            let keys = match error {
                HttpError::NoTunnel { status: 407, .. } => " (`proxy_username`, `proxy_password_file`)",
                _ => "",
            };
            format!("no tunnel through the proxy: {error}{keys}")
        }
        (_, stack::Fault::Http(error)) => format!("no WebSocket: {error}"),
        (_, stack::Fault::Tls(error @ TlsError::Certificate { problem, .. })) => {
            let hint = match problem {
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    "; if one of its names is the broker's, write it as `server_name`"
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    "; is this machine's clock right?"
                }
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    ": the broker needs a new one, or this machine's clock is wrong"
                }
                _ => "",
            };
            format!("{error}{hint}")
        }
        (_, fault) => fault.to_string(),
    }
}

/// What to do when a layer ended a connection.
fn retry(fault: &stack::Fault) -> Retry {
    match fault {
        // Not trusted, not the one, not a speaker of it: time changes nothing.
        stack::Fault::Tls(
            TlsError::NotTls { .. } | TlsError::Certificate { .. } | TlsError::Refused { .. },
        ) => Retry::Operator,
        // A gateway whose broker is just away, or busy.
        stack::Fault::Http(
            HttpError::Declined { status: 429 | 500..=599, .. }
            | HttpError::NoTunnel { status: 429 | 500..=599, .. },
        ) => Retry::Slowly,
        stack::Fault::Http(_) => Retry::Operator,
        stack::Fault::Tls(_) | stack::Fault::WebSocket(_) | stack::Fault::Proxy(_) => Retry::Slowly,
    }
}

/// Why nothing can leave by the interface, and what to do about it.
fn no_interface(name: &str, error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(ENODEV) => format!(
            "this machine has no network interface '{name}' (`interface`) now; `ip link` lists those that there are"
        ),
        _ if error.kind() == io::ErrorKind::PermissionDenied => format!(
            "this process may not bind to the interface '{name}' (`interface`): before Linux 5.7 it needs CAP_NET_RAW, in the unit: \
             AmbientCapabilities=CAP_NET_RAW"
        ),
        _ => format!("connections cannot be bound to the interface '{name}' (`interface`): {error}"),
    }
}

/// What the peer did not do.
fn late(step: Step) -> &'static str {
    match step {
        Step::Connect => "the proxy did not answer CONNECT",
        Step::Tls => "the TLS handshake was not finished",
        Step::Upgrade => "the WebSocket request was not answered",
        Step::ProxyHeader | Step::Open => "the connection did not open",
    }
}

/// What the peer did instead of an answer.
fn closed(step: Step) -> &'static str {
    match step {
        Step::Connect => "the proxy closed the connection without an answer to CONNECT",
        Step::Tls => "the broker closed the connection in the TLS handshake: is this its port for TLS?",
        Step::Upgrade => "the broker closed the connection without an answer to the WebSocket request",
        Step::ProxyHeader | Step::Open => "the broker closed the connection without a word",
    }
}

// === dialling ===

/// Brings a connection up to where MQTT begins. Cancel-safe: a connection that is not returned is closed.
pub(crate) async fn dial(
    config: &UplinkConfig,
    server: &Server,
    credentials: Option<&Credentials>,
    stats: &UplinkStats,
) -> Result<Channel, LinkError> {
    let error = |cause| LinkError::new(server, cause);
    let layers = layers(config, server, credentials).map_err(error)?;
    let stream = connect(config, server).await.map_err(error)?;
    let mut random = [0; 24];
    getrandom::fill(&mut random)
        .map_err(|e| error(Cause::Config(format!("the system has no random numbers: {e}"))))?;
    let mut wire = Vec::new();
    let stack =
        Stack::client(&layers, random, &mut wire).map_err(|fault| error(Cause::Layer(Step::Tls, fault)))?;
    let mut channel = Channel::new(stream, stack, wire);
    loop {
        let step = channel.step();
        match timeout(config.connect_timeout, channel.pass(step, stats)).await {
            Ok(Ok(())) if step == Step::Open => break,
            Ok(Ok(())) => {}
            Ok(Err(broken)) => return Err(error(broken.into())),
            Err(_) => return Err(error(Cause::Late { step, bound: config.connect_timeout })),
        }
    }
    Ok(channel)
}

/// What is between the socket and MQTT.
fn layers(
    config: &UplinkConfig,
    server: &Server,
    credentials: Option<&Credentials>,
) -> Result<ClientLayers, Cause> {
    let scheme = server.scheme();
    let tls = if scheme.is_tls() {
        let current = credentials.and_then(|c| c.current.as_ref()).ok_or_else(|| {
            let problem = credentials.and_then(|c| c.problem.clone());
            Cause::Certificates(problem.unwrap_or_else(|| "the certificates are not loaded yet".to_owned()))
        })?;
        let name = config.tls.server_name.clone().or_else(|| TlsConfig::server_name(server.host()));
        let name = name.ok_or_else(|| {
            let host = server.host();
            Cause::Config(format!("no certificate can be for the name '{host}': write `server_name`"))
        })?;
        let tls = if scheme.is_ws() { &current.websocket } else { &current.mqtt };
        Some((Arc::clone(tls), name))
    } else {
        None
    };
    Ok(ClientLayers {
        connect: config.proxy.as_ref().map(|proxy| (server.authority(), proxy.credentials.clone())),
        tls,
        websocket: scheme.is_ws().then(|| (host_field(server), server.path().to_owned())),
    })
}

/// The `Host` of a request: without the scheme's own port (RFC 6455, 4.1).
fn host_field(server: &Server) -> String {
    let authority = server.authority();
    if server.port() == server.scheme().port() {
        let own = format!(":{}", server.port());
        authority.strip_suffix(&own).unwrap_or(&authority).to_owned()
    } else {
        authority
    }
}

/// Looks the proxy or the server up anew and connects to one of its addresses.
async fn connect(config: &UplinkConfig, server: &Server) -> Result<TcpStream, Cause> {
    let late = || io::Error::new(io::ErrorKind::TimedOut, "timed out");
    let (what, host, port) = match &config.proxy {
        Some(proxy) => (format!("the proxy {proxy}"), proxy.host(), proxy.port()),
        None => ("the broker".to_owned(), server.host(), server.port()),
    };
    let found = timeout(config.connect_timeout, tokio::net::lookup_host((host, port))).await;
    let addresses: Vec<SocketAddr> = match found {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(error)) => return Err(Cause::LookUp(what, error)),
        Err(_) => return Err(Cause::LookUp(what, late())),
    };
    let mut first_error = None;
    for address in addresses {
        let socket = open(address, config.interface.as_deref())?;
        let stream = match timeout(config.connect_timeout, socket.connect(address)).await {
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
        if let Err(error) = tune(&stream, config.keep_alive, config.metered.is_none()) {
            // Not every platform and socket has all of these; the pings find a dead link too.
            tracing::debug!(%error, "socket options");
        }
        return Ok(stream);
    }
    Err(match first_error {
        Some((address, error)) => Cause::Connect(format!("{what} ({address})"), error),
        None => Cause::LookUp(what, io::Error::new(io::ErrorKind::NotFound, "it has no address")),
    })
}

/// A socket that leaves by `interface`, if there is one.
fn open(address: SocketAddr, interface: Option<&str>) -> Result<TcpSocket, Cause> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = socket.map_err(Cause::Socket)?;
    if let Some(name) = interface {
        #[cfg(target_os = "linux")]
        let bound = socket.bind_device(Some(name.as_bytes()));
        #[cfg(not(target_os = "linux"))]
        let bound: io::Result<()> = Err(io::Error::new(io::ErrorKind::Unsupported, "only Linux can"));
        bound.map_err(|error| Cause::Interface(name.to_owned(), error))?;
    }
    Ok(socket)
}

/// Batching is ours (no Nagle); what was written and not acknowledged by the peer's kernel ends the connection after
/// 1.5 keep alives, as silence does, instead of after the kernel's 15 minutes. With `probes` the kernel asks, too, whether the peer is
/// there: 80 to 104 bytes each time that nobody wants to pay for twice.
fn tune(stream: &TcpStream, keep_alive: Duration, probes: bool) -> io::Result<()> {
    stream.set_nodelay(true)?;
    if keep_alive.is_zero() {
        return Ok(());
    }
    let socket = SockRef::from(stream);
    if probes {
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(keep_alive).with_interval(keep_alive))?;
    }
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(keep_alive + keep_alive / 2))?;
    Ok(())
}

// === entering ===

/// Says CONNECT and waits for CONNACK. `expires_s` is when the certificate ends that was shown, or the token that is, `start` the zero of the client's clock. Cancel-safe as [`dial`].
pub(crate) async fn enter(
    config: &UplinkConfig,
    server: &Server,
    channel: Channel,
    expires_s: Option<i64>,
    start: Instant,
    stats: &UplinkStats,
) -> Result<(Session, Accepted), LinkError> {
    let error = |cause| LinkError::new(server, cause);
    let mut session = Session {
        server: server.clone(),
        channel,
        client: Client::new(client_config(config, server, expires_s).map_err(error)?),
        out: Outgoing::default(),
        expires_s,
        arrived: Vec::new(),
    };
    session
        .client
        .connect(micros(start), &mut session.out.bytes)
        .map_err(|e| error(Cause::Config(format!("CONNECT: {e}"))))?;
    let mut accepted = None;
    let mut arrived = Vec::new();
    loop {
        session.write(stats)?;
        session.read(micros(start), stats, |event| {
            match event {
                Event::Connected(answer) => accepted = Some(answer),
                // What waited in the session may come with CONNACK.
                Event::Message(publish) => arrived.push(Arrived::of(&publish)),
                _ => {}
            }
        })?;
        session.arrived.append(&mut arrived);
        if let Some(accepted) = accepted {
            return Ok((session, accepted));
        }
        if let Err(fault) = session.client.tick(micros(start), &mut session.out.bytes) {
            return Err(session.fault(fault));
        }
        let deadline = start + session.client.deadline_us().map_or(Duration::ZERO, Duration::from_micros);
        tokio::select! {
            ready = session.ready() => ready?,
            () = sleep_until(deadline) => {}
        }
    }
}

fn client_config(
    config: &UplinkConfig,
    server: &Server,
    expires_s: Option<i64>,
) -> Result<ClientConfig, Cause> {
    let client_id = config.client_id();
    let username = config.username.clone().or_else(|| config.preset?.username(server.host(), &client_id));
    let token = config.shared_key.as_ref().zip(expires_s);
    let token = token.map(|(key, until_s)| preset::token(server.host(), &client_id, key, until_s));
    let keep_alive_s = u16::try_from(config.keep_alive.as_secs())
        .map_err(|_| Cause::Config(format!("keep_alive {:?} is over 65535 s", config.keep_alive)))?;
    if keep_alive_s == 0 && !config.keep_alive.is_zero() {
        return Err(Cause::Config(format!("keep_alive {:?} is under 1 s", config.keep_alive)));
    }
    let mut user_properties = Vec::new();
    // To a broker that must not be told of us nothing is said of batches either, or they would be agreed on.
    if config.identity != IdentityMode::Never {
        user_properties.extend([
            ("ferrule".to_owned(), "1".to_owned()),
            ("ferrule-edge".to_owned(), config.edge.to_string()),
            ("ferrule-boot".to_owned(), config.boot.to_string()),
        ]);
        if config.batch {
            user_properties.push((ferrule_batch::NAME.to_owned(), ferrule_batch::VERSION_TEXT.to_owned()));
            user_properties
                .push((ferrule_batch::DICTIONARY_NAME.to_owned(), ferrule_batch::dictionary::name()));
        }
    }
    Ok(ClientConfig {
        version: config.version,
        client_id,
        username,
        password: token.map(String::into_bytes).or_else(|| config.password.clone()),
        // For rows the outbox is the memory: a session in the broker would only keep packet ids of what is sent anew. For what comes
        // down the session is.
        clean_start: config.downlinks.is_empty(),
        keep_alive_s,
        connack_timeout_us: u64::try_from(config.connect_timeout.as_micros()).unwrap_or(u64::MAX),
        window_max: config.window_max,
        max_packet_size: PACKET_MAX,
        session_expiry_s: if config.downlinks.is_empty() {
            0
        } else {
            u32::try_from(config.session_expiry.as_secs()).unwrap_or(u32::MAX)
        },
        receive_max: if config.downlinks.is_empty() { 0 } else { WINDOW },
        user_properties,
    })
}

/// Microseconds since `start`.
pub(crate) fn micros(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX)
}
