//! What an uplink needs to know, already valid: whoever holds an [`UplinkConfig`] can run it.

use ferrule_mqtt::Version;
use ferrule_store::{Boot, Origin, Stamp};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A reading of both clocks: wall time, microseconds since this process started, and whether wall time is set.
pub type Clock = Arc<dyn Fn() -> Stamp + Send + Sync>;

/// Port of MQTT over plain TCP, as registered with IANA.
pub const MQTT_PORT: u16 = 1883;

/// Where a broker listens: the value of `[uplink] url`.
///
/// ```
/// use ferrule_link::Server;
///
/// let server: Server = "mqtt://cloud.example".parse()?;
/// assert_eq!((server.host(), server.port()), ("cloud.example", 1883));
/// assert_eq!("mqtt://[fd00::1]:11883".parse::<Server>()?.to_string(), "mqtt://[fd00::1]:11883");
/// # Ok::<(), ferrule_link::UrlError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Server {
    host: Box<str>,
    port: u16,
}

/// Why a text is not the address of a broker that this program can dial. Each text says what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// A transport that is planned.
    #[error("'{0}' is not supported yet, use 'mqtt://host:port' (plain TCP)")]
    NotYet(String),
    /// No scheme, or one that is not MQTT's.
    #[error("'{0}' is not an MQTT address, expected 'mqtt://host:port'")]
    Scheme(String),
    /// User name or password in the address: it would be shown wherever the address is.
    #[error("the address holds a user name: write `username` and `password_file` beside it instead")]
    UserInfo,
    /// A path, query or fragment: plain MQTT has none.
    #[error("'{0}' after the host means nothing to MQTT over TCP")]
    Path(String),
    /// No host.
    #[error("'{0}' names no host")]
    Host(String),
    /// The port is not a number from 1 to 65535.
    #[error("'{0}' is not a port (1 to 65535)")]
    Port(String),
}

/// When identity properties (the module `forward`) go with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IdentityMode {
    /// When the other side says in CONNACK that it is a Ferrule which believes them.
    #[default]
    Negotiated,
    /// Whenever the version has user properties: `identity = 'properties'`.
    Properties,
}

/// An uplink.
#[derive(Clone)]
pub struct UplinkConfig {
    /// Brokers, tried in this order from the first again after each loss; must not be empty.
    pub servers: Vec<Server>,
    /// User name.
    pub username: Option<String>,
    /// Password.
    pub password: Option<Vec<u8>>,
    /// Keep alive, whole seconds up to 65,535; zero turns it off. A silent loss is noticed within 1.5 of it.
    pub keep_alive: Duration,
    /// Bound of each look-up, each TCP connect and each wait for a CONNACK.
    pub connect_timeout: Duration,
    /// Longest back-off between two tries (the shortest is 100 ms, or this when it is less).
    pub backoff_max: Duration,
    /// Most rows that wait for an acknowledgement at a time; the server's Receive Maximum lowers it.
    pub window_max: u16,
    /// How long rows in flight may still be acknowledged when the uplink is stopped.
    pub drain: Duration,
    /// This edge's id: the client id is `ferrule-<edge>`.
    pub edge: Origin,
    /// This process life.
    pub boot: Boot,
    /// Protocol version: 5, or 3.1.1 for brokers that speak nothing newer.
    pub version: Version,
    /// When identity properties are sent.
    pub identity: IdentityMode,
    /// Clock for the age of rows; its `mono_us` counts from the start of the process life that is `boot`.
    pub clock: Clock,
}

// === impl Server ===

impl Server {
    /// A host name or address (IPv6 without brackets) and a port.
    #[must_use]
    pub fn new(host: &str, port: u16) -> Self {
        Self { host: host.into(), port }
    }

    /// Host name or address; IPv6 without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// TCP port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl std::str::FromStr for Server {
    type Err = UrlError;

    fn from_str(url: &str) -> Result<Self, UrlError> {
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err(UrlError::Scheme(url.to_owned()));
        };
        match scheme.to_ascii_lowercase().as_str() {
            "mqtt" | "tcp" => {}
            scheme @ ("mqtts" | "ssl" | "tls" | "ws" | "wss" | "unix" | "quic") => {
                return Err(UrlError::NotYet(format!("{scheme}://")));
            }
            _ => return Err(UrlError::Scheme(url.to_owned())),
        }
        let authority = match rest.find(['/', '?', '#']) {
            Some(at) if &rest[at..] != "/" => return Err(UrlError::Path(rest[at..].to_owned())),
            Some(at) => &rest[..at],
            None => rest,
        };
        if authority.contains('@') {
            return Err(UrlError::UserInfo);
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest.split_once(']').ok_or_else(|| UrlError::Host(url.to_owned()))?;
                host.parse::<std::net::Ipv6Addr>().map_err(|_| UrlError::Host(url.to_owned()))?;
                match (after, after.strip_prefix(':')) {
                    ("", _) => (host, None),
                    (_, Some(port)) => (host, Some(port)),
                    _ => return Err(UrlError::Host(url.to_owned())),
                }
            }
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        if host.is_empty() || host.contains(char::is_whitespace) {
            return Err(UrlError::Host(url.to_owned()));
        }
        let port = match port {
            None => MQTT_PORT,
            Some(text) => match text.parse::<u16>() {
                Ok(port) if port != 0 && text.bytes().all(|b| b.is_ascii_digit()) => port,
                _ => return Err(UrlError::Port(text.to_owned())),
            },
        };
        Ok(Self::new(host, port))
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "mqtt://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "mqtt://{}:{}", self.host, self.port)
        }
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
            keep_alive: Duration::from_secs(15),
            connect_timeout: Duration::from_secs(10),
            backoff_max: Duration::from_secs(10),
            // At 100 ms of round trip and cloud commit it carries 10,000 rows/s, above what an edge's flash
            // takes; and it bounds what a loss of the connection sends twice.
            window_max: 1024,
            drain: Duration::from_secs(1),
            edge,
            boot,
            version: Version::V5,
            identity: IdentityMode::default(),
            clock,
        }
    }
}

/// Without the password.
impl fmt::Debug for UplinkConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UplinkConfig")
            .field("servers", &self.servers)
            .field("username", &self.username)
            .field("keep_alive", &self.keep_alive)
            .field("window_max", &self.window_max)
            .field("edge", &self.edge)
            .field("boot", &self.boot)
            .field("version", &self.version)
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn addresses_are_read_or_refused_with_the_reason() {
        let path = |s: &str| Err(UrlError::Path(s.to_owned()));
        for (url, expect) in [
            ("mqtt://cloud", Ok(("cloud", 1883))),
            ("MQTT://cloud:1884/", Ok(("cloud", 1884))),
            ("tcp://10.0.0.1:1", Ok(("10.0.0.1", 1))),
            ("mqtt://[::1]", Ok(("::1", 1883))),
            ("mqtt://[fd00::1]:99", Ok(("fd00::1", 99))),
            ("mqtts://cloud:8883", Err(UrlError::NotYet("mqtts://".to_owned()))),
            ("wss://cloud/mqtt", Err(UrlError::NotYet("wss://".to_owned()))),
            ("cloud:1883", Err(UrlError::Scheme("cloud:1883".to_owned()))),
            ("http://cloud", Err(UrlError::Scheme("http://cloud".to_owned()))),
            ("mqtt://me:secret@cloud", Err(UrlError::UserInfo)),
            ("mqtt://cloud/mqtt", path("/mqtt")),
            ("mqtt://cloud?x=1", path("?x=1")),
            ("mqtt://", Err(UrlError::Host("mqtt://".to_owned()))),
            ("mqtt://:1883", Err(UrlError::Host("mqtt://:1883".to_owned()))),
            ("mqtt://[::1", Err(UrlError::Host("mqtt://[::1".to_owned()))),
            ("mqtt://[cloud]:1", Err(UrlError::Host("mqtt://[cloud]:1".to_owned()))),
            ("mqtt://cloud:0", Err(UrlError::Port("0".to_owned()))),
            ("mqtt://cloud:+1", Err(UrlError::Port("+1".to_owned()))),
            ("mqtt://::1", Err(UrlError::Host("mqtt://::1".to_owned()))),
            ("mqtt://cloud:70000", Err(UrlError::Port("70000".to_owned()))),
        ] {
            let found = url.parse::<Server>();
            assert_eq!(
                found.as_ref().map(|s| (s.host(), s.port())),
                expect.as_ref().map(|(h, p)| (*h, *p)),
                "{url}"
            );
            if let Ok(server) = found {
                assert_eq!(server.to_string().parse(), Ok(server), "{url}");
            }
        }
    }

    #[test]
    fn debug_does_not_show_the_password() {
        let mut config = UplinkConfig::new(Vec::new(), "e".into(), Boot::new(1), Arc::new(Stamp::default));
        config.password = Some(b"hunter2".to_vec());
        assert!(!format!("{config:?}").contains("104"), "{config:?}");
    }
}
