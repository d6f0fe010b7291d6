//! What is sent: where to, with which headers, and rows as a body.

use super::bounds::BATCH_BYTES;
use crate::{Options, OutRow, text};
use base64::Engine as _;
use bytes::Bytes;
use ferrule_store::path_hash;
use http_body_util::Full;
use hyper::header::{
    ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, HeaderMap, HeaderName,
    HeaderValue, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, USER_AGENT,
};
use hyper::{Method, Request, Uri};
use std::fmt::Write as _;

/// The header by which a server knows a request again.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The longest path and query, in bytes: servers take request lines of 8,000 (RFC 9112, 3).
const TARGET_BYTES_MAX: usize = 7_000;

/// Headers that say how a request is framed and where it goes, and the key.
const OURS: [HeaderName; 10] = [
    CONNECTION,
    CONTENT_LENGTH,
    EXPECT,
    HOST,
    IDEMPOTENCY_KEY,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    CONTENT_TYPE,
];

/// Where rows go.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    tls: bool,
    host: String,
    port: u16,
    /// The Host header: without the scheme's own port (RFC 9110, 7.2).
    authority: HeaderValue,
    method: Method,
    /// Without an end of `/`; encoded.
    path: String,
    /// With its `?`; encoded.
    query: String,
    /// Rows have paths of their own.
    varies: bool,
}

impl Endpoint {
    pub(super) fn read(url: &str, method: &str, varies: bool) -> Result<Self, String> {
        let mistake = |why: &str| format!("option `url`: {why}");
        let wanted = || mistake("an address like https://host:8443/path or http://host/path is wanted");
        let uri: Uri = url.parse().map_err(|_| wanted())?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wanted()),
        };
        let authority = uri.authority().ok_or_else(wanted)?;
        if authority.as_str().contains('@') {
            return Err(mistake("it holds a user name: write `username` and `password` beside it"));
        }
        if url.contains('#') {
            return Err(mistake("a fragment ('#...') is never sent: leave it out"));
        }
        let host = authority.host();
        let own_port = if tls { 443 } else { 80 };
        let port = match authority.port() {
            Some(port) => port.as_u16(),
            None if authority.as_str().ends_with(':') || authority.as_str() != host => return Err(wanted()),
            None => own_port,
        };
        if host.is_empty() || port == 0 {
            return Err(wanted());
        }
        let shown = if port == own_port { host.to_owned() } else { format!("{host}:{port}") };
        Ok(Self {
            tls,
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port,
            authority: HeaderValue::from_str(&shown).map_err(|_| wanted())?,
            method: method.parse().unwrap_or(Method::POST),
            path: uri.path().trim_end_matches('/').to_owned(),
            query: uri.query().map(|query| format!("?{query}")).unwrap_or_default(),
            varies,
        })
    }

    pub(super) fn is_tls(&self) -> bool {
        self.tls
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// For people: without what may be secret.
    pub(super) fn shown(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}", self.authority.to_str().unwrap_or(&self.host))
    }

    /// Whether an answer that there is no such place may be a row's own fault: it has a path of its own.
    pub(super) fn varies(&self, target: &str) -> bool {
        self.varies || !target.is_empty()
    }

    /// Path and query for a target.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn uri(&self, target: &str) -> Result<Uri, String> {
        let mut uri = self.path.clone();
        let target = target.trim_start_matches('/');
        if target.split('/').any(|step| matches!(step, "." | "..")) {
            return Err("a path with the step '.' or '..'".into());
        }
        if !target.is_empty() || uri.is_empty() {
            uri.push('/');
        }
        for byte in target.bytes() {
            // pchar and '/' (RFC 3986, 3.3), but '%': what came is text, not yet encoded.
            if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/".contains(&byte) {
                uri.push(char::from(byte));
            } else {
                let _ = write!(uri, "%{byte:02X}");
            }
        }
        uri.push_str(&self.query);
        if uri.len() > TARGET_BYTES_MAX {
            return Err(format!("path and query have {} bytes, {TARGET_BYTES_MAX} are possible", uri.len()));
        }
        uri.parse().map_err(|_| "a path that no request can carry".to_owned())
    }
}

/// What every request of a sink carries.
#[derive(Clone)]
pub(super) struct Headers(HeaderMap);

impl Headers {
    /// Secrets that are not resolved are left out.
    pub(super) fn read(options: &Options) -> Result<Self, String> {
        let known = |name: &str| options.get(name).filter(|_| !options.is_unresolved(name));
        let given = |name: &str| options.get(name).is_some();
        let mut headers = HeaderMap::new();
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("ferrule/", env!("CARGO_PKG_VERSION"))));
        headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
        let content_type = options.get("content_type").unwrap_or(match options.text("format") {
            "ndjson" => "application/x-ndjson",
            _ => "application/json",
        });
        let content_type = HeaderValue::from_str(content_type)
            .map_err(|_| "option `content_type`: a type like 'application/json' is wanted".to_owned())?;
        headers.insert(CONTENT_TYPE, content_type);
        for (number, line) in (1..).zip(known("headers").unwrap_or_default().lines()) {
            let line = line.trim();
            if line.is_empty() {
                continue;
            }
            let read = line.split_once(':').and_then(|(name, value)| {
                Some((HeaderName::try_from(name.trim()).ok()?, HeaderValue::from_str(value.trim()).ok()?))
            });
            // Not the line itself: it may hold a secret.
            let Some((name, mut value)) = read else {
                return Err(format!("option `headers`, line {number}: 'Name: value' is wanted"));
            };
            if OURS.contains(&name) {
                return Err(format!(
                    "option `headers`, line {number}: `{name}` is Ferrule's own; leave it out"
                ));
            }
            value.set_sensitive(true);
            headers.append(name, value);
        }
        if given("username") != given("password") {
            return Err("options `username` and `password` need each other".into());
        }
        if given("bearer_token") && given("username") {
            return Err("one of `bearer_token` and `username` says who is there, not both".into());
        }
        let authorization = match (known("bearer_token"), known("username"), known("password")) {
            (Some(token), ..) => Some(("bearer_token", format!("Bearer {token}"))),
            (None, Some(user), Some(password)) => {
                let text = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
                Some(("username", format!("Basic {text}")))
            }
            _ => None,
        };
        if let Some((option, text)) = authorization {
            let mut value = HeaderValue::from_str(&text).map_err(|_| {
                format!("option `{option}`: it holds what no header can carry, such as a line break")
            })?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        Ok(Self(headers))
    }
}

/// How rows become a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    Row,
    Ndjson { envelope: bool },
    Json { envelope: bool },
}

/// The beginning of a lane as a body.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Batch {
    /// How many rows; at least 1.
    pub(super) rows: usize,
    pub(super) bytes: Bytes,
    pub(super) key: String,
}

impl Body {
    /// Makes a body of at most `max` rows from the front, all for one target. `rows` has at least one.
    pub(super) fn batch<'a>(self, rows: impl Iterator<Item = &'a OutRow>, max: usize) -> Batch {
        let max = if self == Self::Row { 1 } else { max.max(1) };
        let (mut count, mut hash, mut bytes, mut key) = (0, 0, Vec::new(), String::new());
        let mut target = None;
        for row in rows.take(max) {
            let entry = &row.entry;
            if *target.get_or_insert(&entry.target) != &entry.target {
                break;
            }
            let before = bytes.len();
            match self {
                Self::Row => {
                    return Batch {
                        rows: 1,
                        bytes: entry.payload.clone(),
                        key: printable(&text::row_id(entry)),
                    };
                }
                Self::Ndjson { envelope } => {
                    text::json(entry, envelope, &mut bytes);
                    bytes.push(b'\n');
                }
                Self::Json { envelope } => {
                    bytes.push(if count == 0 { b'[' } else { b',' });
                    text::json(entry, envelope, &mut bytes);
                }
            }
            if count > 0 && bytes.len() > BATCH_BYTES {
                bytes.truncate(before);
                break;
            }
            let id = text::row_id(entry);
            hash = path_hash(hash, id.as_bytes());
            if count == 0 {
                key = printable(&id);
            }
            count += 1;
        }
        if matches!(self, Self::Json { .. }) {
            bytes.push(b']');
        }
        // The same rows, the same key; and a row alone has the key that it has with format = 'row'.
        if count > 1 {
            let _ = write!(key, "+{}-{hash:x}", count - 1);
        }
        Batch { rows: count, bytes: bytes.into(), key }
    }
}

/// As it can stand in a header.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_graphic() { c } else { '_' }).collect()
}

/// A request.
pub(super) fn request(
    endpoint: &Endpoint,
    headers: &Headers,
    uri: &Uri,
    batch: &Batch,
) -> Result<Request<Full<Bytes>>, String> {
    let mut request = Request::new(Full::new(batch.bytes.clone()));
    *request.method_mut() = endpoint.method.clone();
    *request.uri_mut() = uri.clone();
    let key = HeaderValue::from_str(&batch.key).map_err(|e| e.to_string())?;
    let all = request.headers_mut();
    all.clone_from(&headers.0);
    all.insert(HOST, endpoint.authority.clone());
    all.insert(IDEMPOTENCY_KEY, key);
    Ok(request)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::harness::row;

    #[test]
    fn a_path_from_a_device_stays_a_path() {
        let endpoint = Endpoint::read("https://h:8443/in/?k=s", "POST", true).unwrap();
        for (target, uri) in [
            ("", Ok("/in?k=s")),
            ("a/b", Ok("/in/a/b?k=s")),
            ("/a", Ok("/in/a?k=s")),
            ("a?x=1#y", Ok("/in/a%3Fx=1%23y?k=s")),
            ("a b\r\nHost: x", Ok("/in/a%20b%0D%0AHost:%20x?k=s")),
            ("ä%2e", Ok("/in/%C3%A4%252e?k=s")),
            ("//evil/x", Ok("/in/evil/x?k=s")),
            ("a/../../x", Err(())),
            ("..", Err(())),
            (&"x".repeat(TARGET_BYTES_MAX), Err(())),
        ] {
            assert_eq!(
                endpoint.uri(target).map(|u| u.to_string()).map_err(drop),
                uri.map(str::to_owned),
                "{target}"
            );
        }
        assert_eq!(Endpoint::read("http://h", "POST", false).unwrap().uri("").unwrap(), "/");
        assert_eq!(Endpoint::read("http://h?a", "POST", false).unwrap().uri("").unwrap(), "/?a");
    }

    #[test]
    fn addresses_are_read() {
        for (url, shown, port) in [
            ("https://h/secret?token=x", "https://h", 443),
            ("http://h:80", "http://h", 80),
            ("http://[fd00::1]:8080/x", "http://[fd00::1]:8080", 8080),
        ] {
            let endpoint = Endpoint::read(url, "PUT", false).unwrap();
            assert_eq!((endpoint.shown(), endpoint.port()), (shown.to_owned(), port));
            assert!(!endpoint.host().contains('['));
        }
    }

    #[test]
    fn batches_are_of_one_target_and_have_a_key_of_their_own() {
        let rows = [row(1, "", "1"), row(2, "", "2\n"), row(3, "x", "3"), row(4, "x", "not JSON")];
        let json = Body::Json { envelope: false };
        let batch = json.batch(rows.iter(), 10);
        assert_eq!((batch.rows, &batch.bytes[..]), (2, &b"[1,2]"[..]));
        assert_eq!(json.batch(rows.iter(), 10), batch, "the same rows, the same key");
        let one = json.batch(rows.iter(), 1);
        assert_eq!((one.rows, &one.bytes[..], &*one.key), (1, &b"[1]"[..], "edge-1.7.0.1.b.0"));
        assert_ne!(one.key, batch.key);
        let lines = Body::Ndjson { envelope: false }.batch(rows[2..].iter(), 10);
        assert_eq!((lines.rows, &lines.bytes[..]), (2, &b"3\n{\"$bytes\":\"6e6f74204a534f4e\"}\n"[..]));
        let raw = Body::Row.batch(rows[3..].iter(), 10);
        assert_eq!((raw.rows, &raw.bytes[..]), (1, &b"not JSON"[..]));
    }

    #[test]
    fn batches_are_bounded_in_bytes() {
        let big = format!("\"{}\"", "x".repeat(BATCH_BYTES / 2));
        let rows = [row(1, "", &*big), row(2, "", &*big), row(3, "", "1")];
        for body in [Body::Json { envelope: false }, Body::Ndjson { envelope: true }] {
            assert_eq!(body.batch(rows.iter(), 10).rows, 1);
            assert_eq!(body.batch(rows[1..].iter(), 10).rows, 2);
        }
    }
}
