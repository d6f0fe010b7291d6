//! Rows to an HTTP server: one a request, or in batches as NDJSON or a JSON array.
//!
//! # Constraints
//! HTTP promises nothing about a request whose answer did not come, so rows come at least once: each request carries a
//! key that is the
//! same whenever it is made again, by which a server may know it. An answer of 2xx means that the server has the rows.
//! What a device
//! can choose (a path from a template, a payload) must not reach another server or another header, nor stop the sink.
//!
//! # Operation
//! Rows are dealt out by their order key to `concurrency` *lanes* ([`task`]). A lane has one connection, kept alive,
//! and one request under
//! way: what follows waits until it is answered, so that a retry lets no later row pass. The status decides
//! ([`verdict`]):
//!
//! | status | what happens |
//! |---|---|
//! | 2xx | delivered |
//! | 408, 425, 429, 5xx, no answer, no connection | again, with back-off; not before Retry-After |
//! | 401, 403, 407, 3xx; 404, 405, 410 and 421 when all rows go to one path | *down*: a person must act; again every 30 s |
//! | 413 | a batch in halves; a row alone is discarded (`too_large`) |
//! | 404, 405, 410, 421 of a row's own path | the same (`target`) |
//! | any other | the same (`refused`) |
//!
//! While the sink is down one request at a time asks whether it still is; the other lanes wait.
//!
//! # Invariants
//! - A row is answered only by the answer to its own request; of a lane in order.
//! - A request is bounded in bytes, in time, and in what is read of its answer.
//! - Secrets (url, headers, tokens) are in no message.

mod connection;
mod request;
mod task;
mod verdict;

use crate::{
    Connector, ConnectorSchema, Declared, OptionKind, OptionSchema, Options, Running, SinkContext, Target,
};
use connection::Dialer;
use request::{Body, Endpoint, Headers};
use std::time::Duration;

/// The connector `http`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Http;

static SCHEMA: ConnectorSchema = ConnectorSchema {
    name: "http",
    summary: "Rows to an HTTP server, at least once, each request with an idempotency key.",
    options: &[
        OptionSchema::required(
            "url",
            OptionKind::Secret,
            "https://host:port/path?query, or http://; what the query holds stays secret.",
        ),
        OptionSchema::optional(
            "path",
            OptionKind::Template,
            None,
            "Appended to the url's path, of rows whose rule names none; may be a template. What cannot stand in a path is \
             percent-encoded.",
        ),
        OptionSchema::optional(
            "method",
            OptionKind::Enum(&["POST", "PUT", "PATCH"]),
            Some("POST"),
            "How rows are sent.",
        ),
        OptionSchema::optional(
            "format",
            OptionKind::Enum(&["row", "ndjson", "json"]),
            Some("row"),
            "row: one request a row, its payload as it is. ndjson, json: batches, as lines or as an array.",
        ),
        OptionSchema::optional(
            "envelope",
            OptionKind::Bool,
            Some("false"),
            "ndjson, json: each row says where it comes from: id, received_at, edge, clientid, topic, row.",
        ),
        OptionSchema::optional(
            "batch",
            OptionKind::Int,
            Some("100"),
            "Most rows in one request (and 1 MiB). At 50 ms a request 100 rows carry 2,000 rows/s a lane.",
        ),
        OptionSchema::optional(
            "content_type",
            OptionKind::Text,
            None,
            "The requests' Content-Type; by default application/json, of ndjson application/x-ndjson.",
        ),
        OptionSchema::optional(
            "headers",
            OptionKind::Secret,
            None,
            "More headers, 'Name: value', one a line; a file may hold them.",
        ),
        OptionSchema::optional("bearer_token", OptionKind::Secret, None, "Sent as Authorization: Bearer."),
        OptionSchema::optional(
            "username",
            OptionKind::Secret,
            None,
            "Sent with password as Authorization: Basic.",
        ),
        OptionSchema::optional("password", OptionKind::Secret, None, "For username."),
        OptionSchema::optional(
            "key",
            OptionKind::Template,
            Some("${clientid}"),
            "Rows of one key keep their order.",
        ),
        OptionSchema::optional(
            "concurrency",
            OptionKind::Int,
            Some("4"),
            "Requests under way at a time, 1 to 64, each on a connection of its own; keys are spread over them.",
        ),
        OptionSchema::optional(
            "timeout",
            OptionKind::Duration,
            Some("10s"),
            "How long connecting, and then an answer, may take before it is tried again.",
        ),
        OptionSchema::optional(
            "tls_ca",
            OptionKind::Text,
            None,
            "A file of CA certificates (PEM); without it the system's.",
        ),
        OptionSchema::optional(
            "tls_cert",
            OptionKind::Text,
            None,
            "A certificate to show (PEM), with tls_key.",
        ),
        OptionSchema::optional("tls_key", OptionKind::Text, None, "Its key (PEM)."),
    ],
    passthrough: None,
    target: Target::OptionalName("path"),
    key: Some("key"),
};

/// Bounds of all that is not an option, in one place.
mod bounds {
    use std::time::Duration;

    /// Most bytes of a batch, unless one row is larger: what a retry sends again.
    pub(super) const BATCH_BYTES: usize = 1 << 20;

    /// What is read of an answer so that its connection can be used again, in bytes; beyond it the connection is
    /// closed.
    pub(super) const ANSWER_BYTES: usize = 64 << 10;

    /// What is shown of an answer, in characters.
    pub(super) const ANSWER_SHOWN: usize = 200;

    /// What Retry-After may ask for: a server that says a year has a fault, and rows are waiting.
    pub(super) const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

    /// Between two attempts when a person must act: enough to see that somebody has.
    pub(super) const OPERATOR_WAIT: Duration = Duration::from_secs(30);

    /// A lane whose requests fail while others' succeed makes the sink `down` when nothing has succeeded for so long.
    pub(super) const STALLED: Duration = Duration::from_secs(5);

    /// A connection that was idle for longer is made anew: firewalls forget those of a minute or more.
    pub(super) const IDLE_MAX: Duration = Duration::from_secs(50);
}

/// The options, checked.
struct Settings {
    endpoint: Endpoint,
    headers: Headers,
    body: Body,
    batch_rows: usize,
    lanes: usize,
    dialer: Dialer,
}

impl Settings {
    /// `options` may hold secrets that are not resolved: those are taken as right.
    fn read(options: &Options) -> Result<Self, Vec<String>> {
        let mut mistakes = Vec::new();
        let mut take = |result: Result<(), String>| mistakes.extend(result.err());
        let url = if options.is_unresolved("url") { "http://unresolved" } else { options.text("url") };
        let endpoint = Endpoint::read(url, options.text("method"), options.get("path").is_some());
        let headers = Headers::read(options);
        take(endpoint.as_ref().map(drop).map_err(Clone::clone));
        take(headers.as_ref().map(drop).map_err(Clone::clone));
        let batch_rows = options.int("batch").unwrap_or(100);
        if !(1..=10_000).contains(&batch_rows) {
            take(Err(format!("option `batch` = '{batch_rows}': 1 to 10000 is wanted")));
        }
        let lanes = options.int("concurrency").unwrap_or(4);
        if !(1..=64).contains(&lanes) {
            take(Err(format!("option `concurrency` = '{lanes}': 1 to 64 is wanted")));
        }
        let timeout = options.duration("timeout").unwrap_or(Duration::from_secs(10));
        if timeout < Duration::from_millis(100) || timeout > Duration::from_secs(600) {
            take(Err("option `timeout`: '100ms' to '10m' is wanted".into()));
        }
        let envelope = options.flag("envelope") == Some(true);
        let body = match options.text("format") {
            "ndjson" => Body::Ndjson { envelope },
            "json" => Body::Json { envelope },
            _ => Body::Row,
        };
        if body == Body::Row && envelope {
            take(Err(
                "option `envelope`: a row sent as it is has none; write `format = 'ndjson'` or 'json'".into()
            ));
        }
        let certificate = match (options.get("tls_cert"), options.get("tls_key")) {
            (Some(cert), Some(key)) => Some((cert.into(), key.into())),
            (None, None) => None,
            _ => {
                take(Err("options `tls_cert` and `tls_key` need each other".into()));
                None
            }
        };
        let ca = options.get("tls_ca");
        match (endpoint, headers) {
            (Ok(endpoint), Ok(headers)) => {
                if !options.is_unresolved("url")
                    && !endpoint.is_tls()
                    && (ca.is_some() || certificate.is_some())
                {
                    take(Err("options `tls_...` are of no use with http://: write https://".into()));
                }
                let dialer = Dialer::new(&endpoint, ca.map(Into::into), certificate, timeout);
                let dialer = dialer.map_err(|why| mistakes.push(why));
                match dialer {
                    Ok(dialer) if mistakes.is_empty() => {
                        let (batch_rows, lanes) = (batch_rows as usize, lanes as usize);
                        Ok(Self { endpoint, headers, body, batch_rows, lanes, dialer })
                    }
                    _ => Err(mistakes),
                }
            }
            _ => Err(mistakes),
        }
    }
}

impl Connector for Http {
    fn schema(&self) -> &'static ConnectorSchema {
        &SCHEMA
    }

    fn check(&self, options: &Options) -> Result<Declared, Vec<String>> {
        Settings::read(options).map(|_| Declared::default())
    }

    fn start(&self, name: &str, options: &Options, context: SinkContext) -> Result<Running, Vec<String>> {
        let settings = Settings::read(options)?;
        let (running, ended) = Running::new();
        let (name, runtime) = (name.to_owned(), context.runtime.clone());
        runtime.spawn(async move {
            task::run(settings, &name, context).await;
            let _ = ended.send(());
        });
        Ok(running)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn options_are_checked() {
        for (pairs, wanted) in [
            (&[("url", "http://h")][..], None),
            (
                &[("url", "env:URL"), ("headers", "file:h"), ("bearer_token", "env:T"), ("tls_ca", "ca.pem")]
                    [..],
                None,
            ),
            (
                &[
                    ("url", "https://h:8443/in?a=b"),
                    ("path", "d/${clientid}"),
                    ("format", "json"),
                    ("envelope", "true"),
                ][..],
                None,
            ),
            (&[("url", "https://h"), ("headers", "X-A: 1\nX-B: 2\n")][..], None),
            (&[("url", "ftp://h")][..], Some("http://")),
            (&[("url", "h/in")][..], Some("http://")),
            (&[("url", "https://u:p@h/in")][..], Some("`username`")),
            (&[("url", "https://h/in#x")][..], Some("fragment")),
            (&[("url", "http://h"), ("tls_ca", "ca.pem")][..], Some("https://")),
            (&[("url", "https://h"), ("tls_cert", "c.pem")][..], Some("need each other")),
            (&[("url", "http://h"), ("headers", "X-A 1")][..], Some("line 1")),
            (&[("url", "http://h"), ("headers", "X-A: 1\nContent-Length: 2")][..], Some("Ferrule's own")),
            (&[("url", "http://h"), ("bearer_token", "a\nb")][..], Some("`bearer_token`")),
            (
                &[("url", "http://h"), ("bearer_token", "a"), ("username", "u"), ("password", "p")][..],
                Some("one of"),
            ),
            (&[("url", "http://h"), ("username", "u")][..], Some("need each other")),
            (&[("url", "http://h"), ("envelope", "true")][..], Some("format")),
            (&[("url", "http://h"), ("concurrency", "0")][..], Some("1 to 64")),
            (&[("url", "http://h"), ("timeout", "1ms")][..], Some("100ms")),
            (&[("url", "http://h"), ("method", "GET")][..], Some("POST, PUT, PATCH")),
        ] {
            let given: Vec<_> = pairs.iter().map(|&(n, v)| (n.to_owned(), v.to_owned())).collect();
            match (Options::parse(&SCHEMA, &given).and_then(|o| Http.check(&o)), wanted) {
                (Ok(_), None) => {}
                (Err(mistakes), Some(wanted)) => assert!(mistakes[0].contains(wanted), "{mistakes:?}"),
                other => panic!("{pairs:?}: {other:?}"),
            }
        }
    }
}
