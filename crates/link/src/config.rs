//! What an uplink needs to know, already valid: whoever holds an [`UplinkConfig`] can run it.

use crate::address::{Proxy, Server};
use crate::downlink::Downlink;
use crate::gathering::Metered;
use crate::preset::{Preset, TOKEN_LIFE};
use ferrule_mqtt::Version;
use ferrule_store::{Boot, Origin, Stamp};
use ferrule_transport::tls::ClientFiles;
use rustls::pki_types::ServerName;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A reading of both clocks: wall time, microseconds since this process started, and whether wall time is set.
pub type Clock = Arc<dyn Fn() -> Stamp + Send + Sync>;

/// When identity properties (the module `forward`) go with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IdentityMode {
    /// When the other side says in CONNACK that it is a Ferrule which believes them.
    #[default]
    Negotiated,
    /// Whenever the version has user properties: `identity = 'properties'`.
    Properties,
    /// Never, and nor does CONNECT say what we are: a sink to another broker.
    Never,
}

/// The protocol that is named in a TLS handshake for MQTT (RFC 7301).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Alpn {
    /// `mqtt`, as registered.
    #[default]
    Mqtt,
    /// Another one.
    Named(&'static [u8]),
    /// None.
    Off,
}

/// Certificates. The default trusts the system's authorities and shows none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TlsConfig {
    /// Certificates of the authorities that are trusted, instead of the system's.
    pub ca: Option<PathBuf>,
    /// The chain of certificates that is shown, and its key.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// The name that the server's certificate must be for, instead of the URL's host.
    pub server_name: Option<ServerName<'static>>,
    /// What is asked for where MQTT is right in TLS.
    pub alpn: Alpn,
}

/// How long a row waits for others of its batch by default: what a second of 1,000 rows becomes 50 packets by, and less than a device
/// that sends one message at a time notices, or that makes a row due on disk (50 ms).
pub const BATCH_DELAY: Duration = Duration::from_millis(20);

/// How long commands wait in the broker's session by default: a gateway is seldom away for more than a week.
pub const SESSION_EXPIRY: Duration = Duration::from_secs(7 * 86_400);

/// An uplink.
#[derive(Clone)]
pub struct UplinkConfig {
    /// Brokers, tried in this order from the first again after each loss; must not be empty.
    pub servers: Vec<Server>,
    /// User name.
    pub username: Option<String>,
    /// Password.
    pub password: Option<Vec<u8>>,
    /// Certificates, for servers over TLS.
    pub tls: TlsConfig,
    /// Whose broker it is, when that is one which demands more than MQTT does.
    pub preset: Option<Preset>,
    /// The key that tokens are signed with, which are the password then (Azure).
    pub shared_key: Option<Vec<u8>>,
    /// How long a token is good for; over [`RENEW_AHEAD_S`](crate::uplink::RENEW_AHEAD_S).
    pub token_life: Duration,
    /// Through what all servers are reached.
    pub proxy: Option<Proxy>,
    /// The network interface that connections leave by, whatever the routes say (Linux: `SO_BINDTODEVICE`); none: the routes decide.
    /// Names are looked up as the system does.
    pub interface: Option<String>,
    /// Keep alive, whole seconds up to 65,535; zero turns it off. A silent loss is noticed within 1.5 of it.
    pub keep_alive: Duration,
    /// Bound of each step of a dial: look-up, each TCP connect, proxy, TLS, WebSocket, CONNACK.
    pub connect_timeout: Duration,
    /// Longest back-off between two tries (the shortest is 100 ms, or this when it is less).
    pub backoff_max: Duration,
    /// Most rows that wait for an acknowledgement at a time; the server's Receive Maximum lowers it.
    pub window_max: u16,
    /// How long rows in flight may still be acknowledged when the uplink is stopped.
    pub drain: Duration,
    /// This edge's id.
    pub edge: Origin,
    /// The client id; none: `ferrule-<edge>`, with a preset the edge's id.
    pub client_id: Option<String>,
    /// This process life.
    pub boot: Boot,
    /// Protocol version: 5, or 3.1.1 for brokers that speak nothing newer.
    pub version: Version,
    /// From MQTT 5 to 3.1.1, when the broker refuses a connection for its version.
    pub falls_back: bool,
    /// When identity properties are sent.
    pub identity: IdentityMode,
    /// Whether a Ferrule cloud is sent batches.
    pub batch: bool,
    /// How long a row may wait for others of its batch.
    pub batch_delay: Duration,
    /// Rows that have waited longer are given up instead of sent.
    pub age_max: Option<Duration>,
    /// Set on a link that is paid for by volume: rows wait for each other, and idle connections are not probed.
    pub metered: Option<Metered>,
    /// What the broker is asked for.
    pub downlinks: Vec<Downlink>,
    /// How long the broker keeps for us what it is asked for while we are away; whole seconds.
    pub session_expiry: Duration,
    /// Clock for the age of rows; its `mono_us` counts from the start of the process life that is `boot`.
    pub clock: Clock,
}

// === impl TlsConfig ===

impl TlsConfig {
    /// A DNS name or an address; none when `name` is neither.
    #[must_use]
    pub fn server_name(name: &str) -> Option<ServerName<'static>> {
        ServerName::try_from(name.to_owned()).ok()
    }

    /// The files. Which protocol is asked for (ALPN) is decided for each connection.
    #[must_use]
    pub fn files(&self) -> ClientFiles {
        ClientFiles { ca: self.ca.clone(), certificate: self.certificate.clone(), alpn: Vec::new() }
    }
}

// === impl UplinkConfig ===

impl UplinkConfig {
    /// The defaults for one server: MQTT 5, keep alive 15 s, connect timeout 10 s, back-off up to 10 s, a window
    /// of 1,024 rows, 1 s to drain.
    #[must_use]
    pub fn new(servers: Vec<Server>, edge: Origin, boot: Boot, clock: Clock) -> Self {
        Self {
            servers,
            username: None,
            password: None,
            tls: TlsConfig::default(),
            preset: None,
            shared_key: None,
            token_life: TOKEN_LIFE,
            proxy: None,
            interface: None,
            keep_alive: Duration::from_secs(15),
            connect_timeout: Duration::from_secs(10),
            backoff_max: Duration::from_secs(10),
            // At 100 ms of round trip and cloud commit it carries 10,000 rows/s, above what an edge's flash
            // takes; and it bounds what a loss of the connection sends twice.
            window_max: 1024,
            drain: Duration::from_secs(1),
            edge,
            client_id: None,
            boot,
            version: Version::V5,
            falls_back: false,
            identity: IdentityMode::default(),
            batch: true,
            batch_delay: BATCH_DELAY,
            age_max: None,
            metered: None,
            downlinks: Vec::new(),
            session_expiry: SESSION_EXPIRY,
            clock,
        }
    }

    /// The client id.
    #[must_use]
    pub fn client_id(&self) -> String {
        match (&self.client_id, self.preset) {
            (Some(id), _) => id.clone(),
            // A thing's or a device's name, which is what policies there are about.
            (None, Some(_)) => self.edge.to_string(),
            (None, None) => format!("ferrule-{}", self.edge),
        }
    }
}

/// Without password and key.
impl fmt::Debug for UplinkConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UplinkConfig")
            .field("servers", &self.servers)
            .field("username", &self.username)
            .field("tls", &self.tls)
            .field("preset", &self.preset)
            .field("proxy", &self.proxy)
            .field("interface", &self.interface)
            .field("keep_alive", &self.keep_alive)
            .field("window_max", &self.window_max)
            .field("edge", &self.edge)
            .field("boot", &self.boot)
            .field("version", &self.version)
            .field("identity", &self.identity)
            .field("batch", &self.batch)
            .field("batch_delay", &self.batch_delay)
            .field("metered", &self.metered)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn debug_does_not_show_the_password() {
        let mut config = UplinkConfig::new(Vec::new(), "e".into(), Boot::new(1), Arc::new(Stamp::default));
        config.password = Some(b"hunter2".to_vec());
        assert!(!format!("{config:?}").contains("104"), "{config:?}");
    }
}
