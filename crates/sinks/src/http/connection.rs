//! One connection: dialled, with TLS or without, and one request at a time on it.

use super::bounds::{ANSWER_BYTES, ANSWER_SHOWN, IDLE_MAX};
use super::request::Endpoint;
use super::verdict;
use bytes::Bytes;
use ferrule_transport::files::Files;
use ferrule_transport::tls::{ALPN_HTTP, ClientFiles};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::RETRY_AFTER;
use hyper::rt::{Read, Write};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

/// Makes connections to one server.
pub(super) struct Dialer {
    host: String,
    port: u16,
    tls: Option<Tls>,
    /// Of a dial, and of an answer.
    bound: Duration,
}

struct Tls {
    name: ServerName<'static>,
    files: ClientFiles,
    /// Read anew when the files have changed; the system's authorities, once.
    loaded: Arc<Mutex<(Files, Option<Arc<ClientConfig>>)>>,
}

/// An answer, read to its end or to the bound.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) retry_after: Option<Duration>,
    /// Its beginning, for people.
    pub(super) text: String,
}

/// A request without an answer.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) error: String,
    /// The server closed a connection that had been idle before it had said a word: not worth a back-off.
    pub(super) was_stale: bool,
}

impl Dialer {
    pub(super) fn new(
        endpoint: &Endpoint,
        ca: Option<PathBuf>,
        certificate: Option<(PathBuf, PathBuf)>,
        bound: Duration,
    ) -> Result<Self, String> {
        let host = endpoint.host().to_owned();
        let tls = if endpoint.is_tls() {
            let name = ServerName::try_from(host.clone())
                .map_err(|_| format!("option `url`: no certificate can be for the name '{host}'"))?;
            let files = ClientFiles { ca, certificate, alpn: vec![ALPN_HTTP.to_vec()] };
            let loaded = Arc::new(Mutex::new((Files::new(files.paths()), None)));
            Some(Tls { name, files, loaded })
        } else {
            None
        };
        Ok(Self { host, port: endpoint.port(), tls, bound })
    }

    /// Cancel-safe: a connection that is not returned is closed.
    ///
    /// # Errors
    /// Why there is none, without the server's address.
    pub(super) async fn dial(&self) -> Result<Connection, String> {
        let dialled = timeout(self.bound, async {
            let stream = TcpStream::connect((&*self.host, self.port)).await;
            let stream = stream.map_err(|error| format!("it cannot be reached: {error}"))?;
            // Requests leave whole.
            let _ = stream.set_nodelay(true);
            match &self.tls {
                None => Connection::new(TokioIo::new(stream), self.bound).await,
                Some(tls) => {
                    let connector = TlsConnector::from(tls.config().await?);
                    let stream = connector.connect(tls.name.clone(), stream).await;
                    Connection::new(TokioIo::new(stream.map_err(|e| explain(&e))?), self.bound).await
                }
            }
        });
        dialled.await.unwrap_or_else(|_| Err(format!("no connection within {:?} (`timeout`)", self.bound)))
    }
}

impl Tls {
    async fn config(&self) -> Result<Arc<ClientConfig>, String> {
        let (loaded, files) = (Arc::clone(&self.loaded), self.files.clone());
        let load = move || {
            let mut loaded = loaded.lock().unwrap_or_else(PoisonError::into_inner);
            let changed = loaded.0.have_changed();
            if let Some(config) = loaded.1.as_ref().filter(|_| !changed) {
                return Ok(Arc::clone(config));
            }
            let config = files.load().map_err(|error| error.to_string()).map(|(config, _)| config);
            // Files half written must not cost the connection that the earlier ones would make.
            match (config, &loaded.1) {
                (Ok(config), _) => {
                    loaded.1 = Some(Arc::clone(&config));
                    Ok(config)
                }
                (Err(error), Some(earlier)) => {
                    tracing::warn!("certificates stay as they were: {error}");
                    Ok(Arc::clone(earlier))
                }
                (Err(error), None) => Err(error),
            }
        };
        // Files block.
        tokio::task::spawn_blocking(load).await.map_err(|error| error.to_string())?
    }
}

/// What went wrong in a TLS handshake, and what to do.
fn explain(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(why)) => {
            format!(
                "its certificate is not trusted ({why:?}): is its authority in `tls_ca`, and this clock right?"
            )
        }
        Some(rustls::Error::InvalidMessage(_)) => "it speaks no TLS at this port: write http://".into(),
        Some(other) => format!("TLS: {other}"),
        None => format!("the TLS handshake broke: {error}"),
    }
}

/// A connection. Dropping it closes it.
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
    used_at: Instant,
    was_used: bool,
    /// An error, or an answer that was not read to its end.
    is_spent: bool,
    bound: Duration,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    async fn new<S: Read + Write + Unpin + Send + 'static>(
        stream: S,
        bound: Duration,
    ) -> Result<Self, String> {
        let (sender, connection) = handshake(stream).await.map_err(|error| error.to_string())?;
        let driver = tokio::spawn(async move {
            // How it ended is heard by whoever waits for an answer.
            let _ = connection.await;
        });
        Ok(Self { sender, driver, used_at: Instant::now(), was_used: false, is_spent: false, bound })
    }

    /// Whether another request may be made on it.
    pub(super) fn is_good(&self) -> bool {
        !self.is_spent && !self.sender.is_closed() && self.used_at.elapsed() < IDLE_MAX
    }

    /// Makes a request and reads its answer. After an error, or an answer that was not read to its end, the connection
    /// is
    /// closed: [`Connection::is_good`] says so. Not cancel-safe: the connection is to be dropped then.
    pub(super) async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Answer, Failed> {
        let was_used = std::mem::replace(&mut self.was_used, true);
        let answer = timeout(self.bound, self.exchange(request)).await;
        self.used_at = Instant::now();
        let failed = match answer {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => {
                let quiet = error.is_canceled() || error.is_incomplete_message() || error.is_closed();
                Failed {
                    error: format!("the request failed: {}", chain(&error)),
                    was_stale: was_used && quiet,
                }
            }
            Err(_) => {
                Failed { error: format!("no answer within {:?} (`timeout`)", self.bound), was_stale: false }
            }
        };
        self.is_spent = true;
        Err(failed)
    }

    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Answer> {
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        let status = response.status();
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after =
            retry_after.and_then(|value| verdict::retry_after(value, ferrule_clock::system_time()));
        let text = match read(response).await {
            Ok((text, true)) => text,
            // The status stands, whatever became of the rest.
            Ok((text, false)) => {
                self.is_spent = true;
                text
            }
            Err(error) => {
                self.is_spent = true;
                tracing::debug!(%error, %status, "an answer broke off after its status");
                String::new()
            }
        };
        Ok(Answer { status, retry_after, text })
    }
}

/// The beginning of an answer's body, and whether it was read to its end.
async fn read(response: Response<Incoming>) -> hyper::Result<(String, bool)> {
    let mut body = response.into_body();
    let (mut bytes, mut whole) = (Vec::new(), true);
    while let Some(frame) = body.frame().await {
        if let Some(data) = frame?.data_ref() {
            bytes.extend_from_slice(&data[..data.len().min(ANSWER_BYTES)]);
        }
        if bytes.len() > ANSWER_BYTES {
            whole = false;
            break;
        }
    }
    let text = String::from_utf8_lossy(&bytes);
    let shown = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(ANSWER_SHOWN);
    Ok((shown.collect::<String>().trim().to_owned(), whole))
}

/// An error with what is behind it.
fn chain(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
