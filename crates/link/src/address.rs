//! Where an uplink goes: the values of `[uplink] url` and `proxy`.
//!
//! A host ends up in a DNS query, in the `Host` of an HTTP request and in the authority of a CONNECT; a path in a request
//! line. So neither holds anything that ends a line or a field there: what is accepted needs no escaping anywhere.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

/// Path of a WebSocket broker whose URL names none: what brokers have agreed on, no standard says it.
pub const WS_PATH: &str = "/mqtt";

/// The longest DNS name, in characters of its text form (RFC 1035, 2.3.4).
const HOST_CHARS_MAX: usize = 253;

/// The longest path, in bytes: a request line that every server takes (RFC 9112, 3 asks for 8,000).
const PATH_BYTES_MAX: usize = 4_096;

/// What MQTT is carried by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// TCP.
    Mqtt,
    /// TLS.
    Mqtts,
    /// WebSocket.
    Ws,
    /// WebSocket over TLS.
    Wss,
}

/// Where a broker listens: the value of `[uplink] url`.
///
/// ```
/// use ferrule_link::Server;
///
/// let server: Server = "wss://cloud.example".parse()?;
/// assert_eq!((server.host(), server.port(), server.path()), ("cloud.example", 443, "/mqtt"));
/// assert_eq!("mqtts://[fd00::1]".parse::<Server>()?.to_string(), "mqtts://[fd00::1]:8883");
/// # Ok::<(), ferrule_link::UrlError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Server {
    scheme: Scheme,
    host: Box<str>,
    port: u16,
    /// With its query; empty without WebSocket.
    path: Box<str>,
}

/// An HTTP proxy that opens tunnels (CONNECT): the value of `[uplink] proxy`.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    host: Box<str>,
    port: u16,
    /// User name and password.
    pub credentials: Option<(String, String)>,
}

/// Why a text is not an address that this program can dial. Each text says what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// What other programs call one of our schemes.
    #[error("'{found}://' is another client's name for it, write '{write}://'")]
    Alias {
        /// As written.
        found: String,
        /// Ours.
        write: &'static str,
    },
    /// No scheme, or one that does not carry MQTT.
    #[error(
        "'{0}' is not an MQTT address, expected 'mqtts://host' (TLS), 'mqtt://host' (plain TCP), 'wss://host/mqtt' or \
         'ws://host/mqtt' (WebSocket)"
    )]
    Scheme(String),
    /// Not an HTTP proxy.
    #[error("'{0}' is not an HTTP proxy's address, expected 'http://host:port'")]
    NotHttp(String),
    /// User name or password in the address: it would be shown wherever the address is.
    #[error("the address holds a user name: write `{username}` and `{password_file}` beside it instead")]
    UserInfo {
        /// The key for the name.
        username: &'static str,
        /// The key for the password.
        password_file: &'static str,
    },
    /// A path, query or fragment where there can be none.
    #[error("'{0}' after the host means nothing here: only 'ws://' and 'wss://' have a path")]
    Path(String),
    /// A path with characters that a request cannot carry.
    #[error("'{0}' is not a path: percent-encode what is not a visible ASCII character, leave out '#...'")]
    PathCharacters(String),
    /// No host, or one that DNS cannot know.
    #[error(
        "'{0}' names no host: a name of letters, digits, '-', '_' and '.', or an address, IPv6 in [brackets]"
    )]
    Host(String),
    /// The port is not a number from 1 to 65535.
    #[error("'{0}' is not a port (1 to 65535)")]
    Port(String),
    /// A proxy without a port: programs differ in what they would take (80, 1080, 3128, 8080).
    #[error("the proxy needs a port, as in 'http://{0}:3128'")]
    NoPort(String),
}

// === impl Scheme ===

impl Scheme {
    /// As in a URL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mqtt => "mqtt",
            Self::Mqtts => "mqtts",
            Self::Ws => "ws",
            Self::Wss => "wss",
        }
    }

    /// The port of a URL that names none, as registered with IANA.
    #[must_use]
    pub fn port(self) -> u16 {
        match self {
            Self::Mqtt => 1883,
            Self::Mqtts => 8883,
            Self::Ws => 80,
            Self::Wss => 443,
        }
    }

    /// Whether TLS is below.
    #[must_use]
    pub fn is_tls(self) -> bool {
        matches!(self, Self::Mqtts | Self::Wss)
    }

    /// Whether MQTT is in WebSocket frames.
    #[must_use]
    pub fn is_ws(self) -> bool {
        matches!(self, Self::Ws | Self::Wss)
    }
}

// === impl Server ===

impl Server {
    /// A broker over plain TCP: a host name or address (IPv6 without brackets) and a port.
    #[must_use]
    pub fn new(host: &str, port: u16) -> Self {
        Self::with_scheme(Scheme::Mqtt, host, port)
    }

    /// The same with any scheme, at its default path.
    #[must_use]
    pub fn with_scheme(scheme: Scheme, host: &str, port: u16) -> Self {
        let path = if scheme.is_ws() { WS_PATH } else { "" };
        Self { scheme, host: host.into(), port, path: path.into() }
    }

    /// What MQTT is carried by.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        self.scheme
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

    /// Path of the WebSocket with its query; empty without one.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// `host:port`, IPv6 in brackets.
    #[must_use]
    pub fn authority(&self) -> String {
        authority(&self.host, self.port)
    }
}

impl FromStr for Server {
    type Err = UrlError;

    fn from_str(url: &str) -> Result<Self, UrlError> {
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err(UrlError::Scheme(url.to_owned()));
        };
        let alias = |write| Err(UrlError::Alias { found: scheme.to_owned(), write });
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "mqtt" => Scheme::Mqtt,
            "mqtts" => Scheme::Mqtts,
            "ws" => Scheme::Ws,
            "wss" => Scheme::Wss,
            "tcp" => return alias("mqtt"),
            "ssl" | "tls" | "mqtt+ssl" | "mqtt+tls" => return alias("mqtts"),
            "http" => return alias("ws"),
            "https" => return alias("wss"),
            _ => return Err(UrlError::Scheme(url.to_owned())),
        };
        let (before, path) = split_path(rest);
        let user_info = UrlError::UserInfo { username: "username", password_file: "password_file" };
        let (host, port) = host_and_port(url, before, user_info)?;
        let mut server = Self::with_scheme(scheme, host, port.unwrap_or(scheme.port()));
        if scheme.is_ws() {
            if path.len() > PATH_BYTES_MAX
                || path.contains('#')
                || !path.bytes().all(|byte| byte.is_ascii_graphic())
            {
                return Err(UrlError::PathCharacters(path.to_owned()));
            }
            match path.chars().next() {
                None => {}
                // A query alone asks the root (RFC 3986, 6.2.3).
                Some('?') => server.path = format!("/{path}").into(),
                Some(_) => server.path = path.into(),
            }
        } else if !matches!(path, "" | "/") {
            return Err(UrlError::Path(path.to_owned()));
        }
        Ok(server)
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme.as_str(), self.authority(), self.path)
    }
}

// === impl Proxy ===

impl Proxy {
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

impl FromStr for Proxy {
    type Err = UrlError;

    fn from_str(url: &str) -> Result<Self, UrlError> {
        let rest = match url.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            _ => return Err(UrlError::NotHttp(url.to_owned())),
        };
        let (before, path) = split_path(rest);
        let user_info =
            UrlError::UserInfo { username: "proxy_username", password_file: "proxy_password_file" };
        let (host, port) = host_and_port(url, before, user_info)?;
        if !matches!(path, "" | "/") {
            return Err(UrlError::Path(path.to_owned()));
        }
        match port {
            Some(port) => Ok(Self { host: host.into(), port, credentials: None }),
            None => Err(UrlError::NoPort(before.to_owned())),
        }
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", authority(&self.host, self.port))
    }
}

/// Without the password.
impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.credentials.as_ref().map(|(user, _)| user);
        f.debug_struct("Proxy").field("url", &self.to_string()).field("user", &user).finish()
    }
}

// === the parts of a URL ===

/// What stands before the path, and the path with all that follows.
fn split_path(rest: &str) -> (&str, &str) {
    rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()))
}

/// Host (IPv6 without brackets) and port of `authority`, which is a part of `url`; `user_info` when it has one.
fn host_and_port<'a>(
    url: &str,
    authority: &'a str,
    user_info: UrlError,
) -> Result<(&'a str, Option<u16>), UrlError> {
    if authority.contains('@') {
        return Err(user_info);
    }
    let bad_host = || UrlError::Host(url.to_owned());
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']').ok_or_else(bad_host)?;
            host.parse::<Ipv6Addr>().map_err(|_| bad_host())?;
            match (after, after.strip_prefix(':')) {
                ("", _) => (host, None),
                (_, Some(port)) => (host, Some(port)),
                _ => return Err(bad_host()),
            }
        }
        None => {
            let (host, port) = match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            };
            let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            if host.is_empty() || host.len() > HOST_CHARS_MAX || !host.bytes().all(known) {
                return Err(bad_host());
            }
            (host, port)
        }
    };
    let port = port.map(|text| match text.parse::<u16>() {
        Ok(port) if port != 0 && text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(port),
        _ => Err(UrlError::Port(text.to_owned())),
    });
    Ok((host, port.transpose()?))
}

fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn addresses_are_read() {
        for (url, scheme, host, port, path, shown) in [
            ("mqtt://cloud", Scheme::Mqtt, "cloud", 1883, "", "mqtt://cloud:1883"),
            ("MQTT://cloud:1884/", Scheme::Mqtt, "cloud", 1884, "", "mqtt://cloud:1884"),
            ("mqtt://[::1]", Scheme::Mqtt, "::1", 1883, "", "mqtt://[::1]:1883"),
            ("mqtts://cloud", Scheme::Mqtts, "cloud", 8883, "", "mqtts://cloud:8883"),
            ("mqtts://[fd00::1]:99", Scheme::Mqtts, "fd00::1", 99, "", "mqtts://[fd00::1]:99"),
            ("ws://10.0.0.1", Scheme::Ws, "10.0.0.1", 80, "/mqtt", "ws://10.0.0.1:80/mqtt"),
            (
                "wss://a_b.c-d.example",
                Scheme::Wss,
                "a_b.c-d.example",
                443,
                "/mqtt",
                "wss://a_b.c-d.example:443/mqtt",
            ),
            ("wss://c/", Scheme::Wss, "c", 443, "/", "wss://c:443/"),
            ("wss://c:1/a/b%20c?x=1", Scheme::Wss, "c", 1, "/a/b%20c?x=1", "wss://c:1/a/b%20c?x=1"),
            ("ws://c?x", Scheme::Ws, "c", 80, "/?x", "ws://c:80/?x"),
        ] {
            let server: Server = url.parse().unwrap();
            assert_eq!(
                (server.scheme(), server.host(), server.port(), server.path()),
                (scheme, host, port, path),
                "{url}"
            );
            assert_eq!(server.to_string(), shown);
            assert_eq!(shown.parse(), Ok(server), "{url}");
        }
    }

    #[test]
    fn addresses_are_refused_with_what_to_write() {
        let long = format!("mqtt://{}", "a".repeat(254));
        for (url, part) in [
            ("tcp://cloud", "write 'mqtt://'"),
            ("ssl://cloud:8883", "write 'mqtts://'"),
            ("TLS://cloud", "write 'mqtts://'"),
            ("https://cloud/mqtt", "write 'wss://'"),
            ("http://cloud/mqtt", "write 'ws://'"),
            ("quic://cloud", "'quic://cloud' is not an MQTT address"),
            ("cloud:1883", "'cloud:1883' is not an MQTT address"),
            ("mqtt://me:secret@cloud", "write `username` and `password_file`"),
            ("mqtt://cloud/mqtt", "'/mqtt' after the host"),
            ("mqtts://cloud?x=1", "'?x=1' after the host"),
            ("wss://cloud/a#b", "'/a#b' is not a path"),
            ("wss://cloud/a b", "'/a b' is not a path"),
            ("wss://cloud/\r\nX: y", "is not a path"),
            ("wss://cloud/ä", "percent-encode"),
            ("mqtt://", "names no host"),
            ("mqtt://:1883", "names no host"),
            ("mqtt://[::1", "names no host"),
            ("mqtt://[::1]1883", "names no host"),
            ("mqtt://[cloud]:1", "names no host"),
            ("mqtt://clo ud", "names no host"),
            ("mqtt://clo\r\nud", "names no host"),
            ("mqtt://wölke", "names no host"),
            (&long, "names no host"),
            ("mqtt://cloud:0", "'0' is not a port"),
            ("mqtt://cloud:+1", "'+1' is not a port"),
            ("mqtt://cloud:", "'' is not a port"),
            ("mqtt://cloud:70000", "'70000' is not a port"),
            ("mqtt://::1", "names no host"),
        ] {
            let error = url.parse::<Server>().unwrap_err().to_string();
            assert!(error.contains(part), "{url}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn proxies() {
        let proxy: Proxy = "HTTP://proxy.example:3128/".parse().unwrap();
        assert_eq!((proxy.host(), proxy.port()), ("proxy.example", 3128));
        assert_eq!("http://[::1]:8080".parse::<Proxy>().unwrap().to_string(), "http://[::1]:8080");
        for (url, part) in [
            ("proxy:3128", "expected 'http://host:port'"),
            ("https://proxy:3128", "expected 'http://host:port'"),
            ("socks5://proxy:1080", "expected 'http://host:port'"),
            ("http://proxy", "needs a port, as in 'http://proxy:3128'"),
            ("http://me:secret@proxy:3128", "write `proxy_username` and `proxy_password_file`"),
            ("http://proxy:3128/x", "'/x' after the host"),
        ] {
            let error = url.parse::<Proxy>().unwrap_err().to_string();
            assert!(error.contains(part), "{url}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
        let mut proxy = proxy;
        proxy.credentials = Some(("me".to_owned(), "hunter2".to_owned()));
        assert!(!format!("{proxy:?}").contains("hunter2"), "{proxy:?}");
    }
}
