//! HTTP/1.1, as far as a WebSocket and a proxy need it: upgrade (RFC 6455, 4) and CONNECT (RFC 9110, 9.3.6).
//!
//! # Constraints
//! - A connection carries one request and one response, then another protocol; the bytes behind the head are that one's.
//!   There is no keep-alive, no body, no pipelining, so nothing is kept between calls but a client's key.
//! - The head is parsed anew whenever bytes come (by httparse, which allocates nothing), within a bound: [`REQUEST_BYTES_MAX`],
//!   [`RESPONSE_BYTES_MAX`], [`HEADERS_MAX`]. A head that comes byte by byte costs its square, 32 MB of parsing in 8,192
//!   packets, less than the packets do. How long it may take is for the caller's timer.
//! - What cannot become a head is refused at the first byte that shows it.
//!
//! # Answers of the server
//! | status | when |
//! |---|---|
//! | 101 | the upgrade |
//! | 400 | no HTTP; not one Host; a body; a key that is not 16 bytes of base64; no subprotocol `mqtt` offered |
//! | 404 | another path; its query does not count, since clients carry tokens for gateways in it |
//! | 405 | not GET |
//! | 426 | no upgrade to `websocket` asked for, or of another version than 13 |
//! | 431 | a head over the bounds |
//! | 505 | not HTTP/1.1 |
//!
//! A refusal has a line of text for the person who sees it, and ends the connection. No extension is accepted: a frame that
//! is compressed could be a thousand times larger than it looks. `Origin` is not looked at: what authenticates is in the
//! CONNECT packet, and a page of another site has no part in that. A browser's client certificate is the exception: a listener
//! that takes certificates for user names is not for browsers.

use base64::Engine as _;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use httparse::{EMPTY_HEADER, Error, Request, Response, Status};
use sha1::{Digest as _, Sha1};

use crate::proxy::Opening;

/// The longest head of a request that is taken, in bytes: a browser's with its cookies has one or two thousand; servers
/// commonly allow 8 KiB.
pub const REQUEST_BYTES_MAX: usize = 8 * 1024;
/// The longest head of a response that is taken, in bytes: proxies add headers of their own to ours.
pub const RESPONSE_BYTES_MAX: usize = 16 * 1024;
/// The most header fields of a head; a browser sends some 20.
pub const HEADERS_MAX: usize = 64;

/// The subprotocols that are accepted, the preferred one first. [MQTT-6.0.0-3] wants `mqtt` offered; clients of MQTT 3.1 that
/// are older than that sentence offer the other, and would not take an answer that they did not offer.
const SUBPROTOCOLS: [&str; 2] = ["mqtt", "mqttv3.1"];
/// Appended to a key before it is hashed (RFC 6455, 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Keys from clients whose last character carries stray bits are good: the text is hashed, not what it stands for.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);
const HTTP_VERSION: &str = "This listener speaks HTTP/1.1 (behind nginx: proxy_http_version 1.1;).";
/// How much of a response's reason an error quotes.
const QUOTE_CHARS_MAX: usize = 100;
/// A TLS server answers HTTP with a record of this type.
const TLS_ALERT: u8 = 0x15;

/// Why HTTP did not lead to the other protocol. In each case the connection is to be closed, a server's once the answer is out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// Server: the request was refused with this status and this line.
    #[error("answered {status}: {why}")]
    Refused {
        /// Of the response.
        status: u16,
        /// Its text.
        why: String,
    },
    /// Client: the server did not change the protocol.
    #[error("the server answered `{line}`{hint}", hint = no_upgrade(*.status))]
    Declined {
        /// Of the response.
        status: u16,
        /// Status and reason, which is shortened.
        line: String,
    },
    /// Client: the proxy did not open the tunnel.
    #[error("the HTTP proxy answered `{line}`{hint}", hint = no_tunnel(*.status))]
    NoTunnel {
        /// Of the response.
        status: u16,
        /// Status and reason, which is shortened.
        line: String,
    },
    /// Client: the server agrees, but a header of its 101 is missing or wrong: it is no WebSocket server for MQTT, or something
    /// in between answers in its place.
    #[error("the server's answer is no WebSocket handshake for MQTT: {0}")]
    Handshake(&'static str),
    /// Client: the peer does not speak HTTP, or says too much.
    #[error("the answer is no HTTP response: {0}")]
    NotHttp(&'static str),
}

/// What a person can do when the server declines.
fn no_upgrade(status: u16) -> &'static str {
    match status {
        300..=399 => ": redirections are not followed; name the place where this one points",
        401 | 403 => ": the server, or a gateway before it, wants other credentials",
        404 => ": there is no WebSocket at this path; brokers commonly have it at /mqtt",
        502..=504 => ": the gateway does not reach the broker behind it",
        _ => ": is it the WebSocket listener of an MQTT broker?",
    }
}

/// What a person can do when the proxy declines.
fn no_tunnel(status: u16) -> &'static str {
    match status {
        403 => ": the proxy does not allow this destination; most allow port 443 only",
        407 => ": the proxy wants a user name and a password, or other ones",
        502..=504 => ": the proxy does not reach the destination",
        _ => ": is it an HTTP proxy that allows CONNECT?",
    }
}

// === server ===

/// Takes the request for an upgrade from the front of `bytes` and appends the answer to `out`. Returns the length of the
/// request: WebSocket frames follow. `None` asks for more bytes, and nothing was answered.
///
/// `path` is compared byte by byte, without decoding; a query is ignored.
///
/// # Errors
/// [`HttpError::Refused`]: the refusal was appended to `out`; flush it and close.
pub fn upgrade(bytes: &[u8], path: &str, out: &mut Vec<u8>) -> Result<Option<usize>, HttpError> {
    let head = &bytes[..bytes.len().min(REQUEST_BYTES_MAX)];
    let mut headers = [EMPTY_HEADER; HEADERS_MAX];
    let mut request = Request::new(&mut headers);
    let handshake = match request.parse(head) {
        Ok(Status::Complete(used)) => check(&request, path).map(|accepted| (used, accepted)),
        Ok(Status::Partial) if bytes.len() < REQUEST_BYTES_MAX => return Ok(None),
        Ok(Status::Partial) => {
            Err(Refusal::new(431, format!("The request's head is longer than {REQUEST_BYTES_MAX} bytes.")))
        }
        Err(error) => Err(unparsed(error, bytes)),
    };
    match handshake {
        Ok((used, Accepted { key, subprotocol })) => {
            let accept = accept(key);
            let response = format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: {subprotocol}\r\n\r\n"
            );
            out.extend_from_slice(response.as_bytes());
            Ok(Some(used))
        }
        Err(refusal) => {
            refusal.write(out);
            Err(HttpError::Refused { status: refusal.status, why: refusal.why })
        }
    }
}

struct Accepted<'a> {
    key: &'a [u8],
    subprotocol: &'static str,
}

#[derive(Debug)]
struct Refusal {
    status: u16,
    why: String,
}

impl Refusal {
    fn new(status: u16, why: impl Into<String>) -> Self {
        Self { status, why: why.into() }
    }

    fn write(&self, out: &mut Vec<u8>) {
        let (reason, fields) = match self.status {
            404 => ("Not Found", ""),
            405 => ("Method Not Allowed", "Allow: GET\r\n"),
            // Both are asked for: RFC 9110, 15.5.22, and RFC 6455, 4.4.
            426 => ("Upgrade Required", "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"),
            431 => ("Request Header Fields Too Large", ""),
            505 => ("HTTP Version Not Supported", ""),
            _ => ("Bad Request", ""),
        };
        let connection = if self.status == 426 { "Upgrade, close" } else { "close" };
        let Self { status, why } = self;
        let response = format!(
            "HTTP/1.1 {status} {reason}\r\n{fields}Connection: {connection}\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Content-Length: {}\r\n\r\n{why}\n",
            why.len() + 1
        );
        out.extend_from_slice(response.as_bytes());
    }
}

/// What a head is that does not parse.
fn unparsed(error: Error, bytes: &[u8]) -> Refusal {
    let speaks = "This listener speaks MQTT over WebSocket";
    match (Opening::of(bytes), error) {
        (Opening::ProxyHeader, _) => Refusal::new(
            400,
            format!(
                "{speaks} and was sent a PROXY protocol header: name the proxy among its trusted proxies."
            ),
        ),
        (opening @ (Opening::MqttConnect | Opening::TlsHello), _) => Refusal::new(
            400,
            format!("{speaks}, without TLS here, and was sent {opening}: ask for ws:// at this port."),
        ),
        (_, Error::TooManyHeaders) => {
            Refusal::new(431, format!("The request has more than {HEADERS_MAX} header fields."))
        }
        (Opening::HttpRequest, Error::Version) => Refusal::new(505, HTTP_VERSION),
        (_, error) => Refusal::new(400, format!("{speaks}, and this is not HTTP/1.1: {error}.")),
    }
}

fn check<'a>(request: &Request<'_, 'a>, path: &str) -> Result<Accepted<'a>, Refusal> {
    let fields = Fields(request.headers);
    if request.version != Some(1) {
        return Err(Refusal::new(505, HTTP_VERSION));
    }
    if request.method != Some("GET") {
        return Err(Refusal::new(405, "A WebSocket begins with GET."));
    }
    if path_of(request.path.unwrap_or_default()) != path {
        return Err(Refusal::new(
            404,
            format!("This listener speaks MQTT over WebSocket at {path} and has nothing else."),
        ));
    }
    if fields.one("Host").is_none() {
        return Err(Refusal::new(400, "The request needs one Host header."));
    }
    if fields.all("Transfer-Encoding").next().is_some()
        || fields.all("Content-Length").any(|length| length != b"0")
    {
        return Err(Refusal::new(400, "The request has a body, and the handshake of a WebSocket has none."));
    }
    if !fields.has_token("Upgrade", "websocket") || !fields.has_token("Connection", "upgrade") {
        let why = "This is a WebSocket listener for MQTT clients: the request needs `Upgrade: websocket` and \
                   `Connection: Upgrade`. A proxy passes neither on unless it is told to (nginx: proxy_http_version 1.1; \
                   proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection \"upgrade\";).";
        return Err(Refusal::new(426, why));
    }
    if fields.one("Sec-WebSocket-Version") != Some(b"13") {
        return Err(Refusal::new(426, "This listener speaks version 13 of WebSocket (RFC 6455)."));
    }
    let key =
        fields.one("Sec-WebSocket-Key").filter(|key| LENIENT.decode(key).is_ok_and(|key| key.len() == 16));
    let Some(key) = key else {
        return Err(Refusal::new(400, "The request needs one Sec-WebSocket-Key of 16 bytes in base64."));
    };
    let offered =
        |name: &&&str| fields.tokens("Sec-WebSocket-Protocol").any(|token| token == name.as_bytes());
    let Some(subprotocol) = SUBPROTOCOLS.iter().find(offered) else {
        return Err(Refusal::new(
            400,
            "The request needs `Sec-WebSocket-Protocol: mqtt`: ask for the subprotocol mqtt.",
        ));
    };
    Ok(Accepted { key, subprotocol })
}

/// The path of a request's target, which is either that or a whole URL (RFC 9112, 3.2.2).
fn path_of(target: &str) -> &str {
    let path = match target.split_once("://") {
        Some((scheme, rest)) if !scheme.contains(['/', '?']) => {
            rest.find(['/', '?']).map_or("/", |at| &rest[at..])
        }
        _ => target,
    };
    path.split_once('?').map_or(path, |(path, _)| path)
}

fn accept(key: &[u8]) -> String {
    STANDARD.encode(Sha1::new().chain_update(key).chain_update(GUID).finalize())
}

/// Header fields, by names whose case does not count.
#[derive(Clone, Copy)]
struct Fields<'h, 'a>(&'h [httparse::Header<'a>]);

impl<'h, 'a> Fields<'h, 'a> {
    /// The values of all fields of this name.
    fn all(self, name: &'static str) -> impl Iterator<Item = &'a [u8]> + use<'h, 'a> {
        self.0.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
    }

    /// The value of the field of this name, if there is exactly one.
    fn one(self, name: &'static str) -> Option<&'a [u8]> {
        let mut all = self.all(name);
        all.next().filter(|_| all.next().is_none())
    }

    /// The elements of a list, which may be spread over several fields (RFC 9110, 5.6.1).
    fn tokens(self, name: &'static str) -> impl Iterator<Item = &'a [u8]> + use<'h, 'a> {
        self.all(name).flat_map(|value| value.split(|&byte| byte == b',')).map(<[u8]>::trim_ascii)
    }

    /// Whether a list has this element, whose case does not count.
    fn has_token(self, name: &'static str, token: &str) -> bool {
        self.tokens(name).any(|element| element.eq_ignore_ascii_case(token.as_bytes()))
    }
}

// === client ===

/// A client's handshake that is under way.
#[derive(Debug)]
pub struct Upgrading {
    key: [u8; 16],
}

impl Upgrading {
    /// Appends the request for an upgrade to `out`. `host` is the authority, with its port unless it is the scheme's; `path`
    /// begins with a slash; neither has spaces or control characters, which the configuration sees to. `key` is random
    /// (RFC 6455, 4.1): it shows that the answer is to this request, and keeps nothing secret.
    #[must_use]
    pub fn request(host: &str, path: &str, key: [u8; 16], out: &mut Vec<u8>) -> Self {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: {}\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n",
            STANDARD.encode(key)
        );
        out.extend_from_slice(request.as_bytes());
        Self { key }
    }

    /// Takes the answer from the front of `bytes`: its length. WebSocket frames follow. `None` asks for more bytes.
    ///
    /// # Errors
    /// [`HttpError`], but not [`HttpError::Refused`]: close.
    pub fn response(&self, bytes: &[u8]) -> Result<Option<usize>, HttpError> {
        use HttpError::Handshake;
        let mut headers = [EMPTY_HEADER; HEADERS_MAX];
        let Some(answer) = answer(bytes, &mut headers)? else { return Ok(None) };
        if answer.status != 101 {
            return Err(HttpError::Declined { status: answer.status, line: answer.line() });
        }
        let fields = answer.fields;
        if !fields.has_token("Upgrade", "websocket") || !fields.has_token("Connection", "upgrade") {
            return Err(Handshake("no `Upgrade: websocket` with `Connection: Upgrade`"));
        }
        if fields.one("Sec-WebSocket-Accept") != Some(accept(STANDARD.encode(self.key).as_bytes()).as_bytes())
        {
            return Err(Handshake(
                "Sec-WebSocket-Accept does not fit the key: the answer is to another request",
            ));
        }
        // [MQTT-6.0.0-4]
        if fields.one("Sec-WebSocket-Protocol") != Some(b"mqtt") {
            return Err(Handshake("the subprotocol mqtt was not selected"));
        }
        if fields.all("Sec-WebSocket-Extensions").next().is_some() {
            return Err(Handshake("an extension was selected that was not offered"));
        }
        Ok(Some(answer.used))
    }
}

/// Appends a request to an HTTP proxy for a tunnel to `authority`, which is `host:port` without spaces or control characters;
/// with a user name, which has no colon, and a password for it (RFC 7617). The configuration sees to both.
pub fn connect_request(authority: &str, credentials: Option<(&str, &str)>, out: &mut Vec<u8>) {
    let authorization = credentials.map_or_else(String::new, |(user, password)| {
        format!("Proxy-Authorization: Basic {}\r\n", STANDARD.encode(format!("{user}:{password}")))
    });
    let request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{authorization}\r\n");
    out.extend_from_slice(request.as_bytes());
}

/// Takes the proxy's answer from the front of `bytes`: its length. The tunnel's bytes follow. `None` asks for more bytes.
///
/// # Errors
/// [`HttpError`], but not [`HttpError::Refused`]: close.
pub fn connect_response(bytes: &[u8]) -> Result<Option<usize>, HttpError> {
    let mut headers = [EMPTY_HEADER; HEADERS_MAX];
    match answer(bytes, &mut headers)? {
        None => Ok(None),
        // A 2xx to CONNECT has no body, whatever its fields say (RFC 9110, 9.3.6).
        Some(answer) if (200..300).contains(&answer.status) => Ok(Some(answer.used)),
        Some(answer) => Err(HttpError::NoTunnel { status: answer.status, line: answer.line() }),
    }
}

/// The head of a response.
struct Answer<'h, 'a> {
    used: usize,
    status: u16,
    reason: &'a str,
    fields: Fields<'h, 'a>,
}

impl Answer<'_, '_> {
    /// Status and reason for people. The parser has let no control characters in.
    fn line(&self) -> String {
        format!("{} {:.QUOTE_CHARS_MAX$}", self.status, self.reason)
    }
}

fn answer<'h, 'a>(
    bytes: &'a [u8],
    headers: &'h mut [httparse::Header<'a>],
) -> Result<Option<Answer<'h, 'a>>, HttpError> {
    let head = &bytes[..bytes.len().min(RESPONSE_BYTES_MAX)];
    let mut response = Response::new(headers);
    match response.parse(head) {
        Ok(Status::Complete(used)) => Ok(Some(Answer {
            used,
            status: response.code.unwrap_or_default(),
            reason: response.reason.unwrap_or_default(),
            fields: Fields(response.headers),
        })),
        Ok(Status::Partial) if bytes.len() < RESPONSE_BYTES_MAX => Ok(None),
        Ok(Status::Partial) => Err(HttpError::NotHttp("its head is longer than 16 KiB")),
        Err(Error::TooManyHeaders) => Err(HttpError::NotHttp("it has more than 64 header fields")),
        Err(_) if bytes.first() == Some(&TLS_ALERT) => {
            Err(HttpError::NotHttp("the port speaks TLS and was spoken to without"))
        }
        Err(_) => Err(HttpError::NotHttp("the port speaks another protocol")),
    }
}

#[cfg(test)]
mod tests;
