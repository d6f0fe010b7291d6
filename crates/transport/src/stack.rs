//! The layers of one connection, put together: what a worker keeps of a client that does not speak plain MQTT over plain TCP, and
//! the uplink of its broker.
//!
//! # Operation
//! ```text
//!           receive                                             send
//! socket -> rest + bytes -> [PROXY] [CONNECT] -> TLS -> inner + plaintext -> [upgrade] WebSocket -> MQTT
//! socket <- wire <------------------------------ TLS <----------------------- WebSocket frame <---- MQTT
//! ```
//! What comes is decrypted and unmasked where it lies, in the caller's buffer. Only the front of something incomplete is copied and kept:
//! a header, a record, a frame's head. So a connection that is idle between two packets keeps no buffer.
//!
//! # Bounds
//! `rest` holds less than one header, HTTP head or TLS flight and `inner` less than one HTTP head or frame head: each layer refuses what
//! is longer ([`proxy::HEADER_BYTES_MAX`], [`crate::http`], [`crate::tls`]). What is sent is encoded when it is asked for: the caller asks again when
//! the socket has taken the last.

use crate::http::{self, HttpError, Upgrading};
use crate::proxy::{self, ProxyError};
use crate::tls::{NameFrom, Tls, TlsError};
use crate::ws::{Role, WebSocket, WsError};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
use std::net::IpAddr;
use std::sync::Arc;

/// Which layers a listener's connections have.
#[derive(Debug, Clone, Default)]
pub struct ServerLayers {
    /// A PROXY header comes first.
    pub proxy: bool,
    /// Then TLS.
    pub tls: Option<Arc<ServerConfig>>,
    /// Which name of the client's certificate is asked for.
    pub name_from: Option<NameFrom>,
    /// Then WebSocket, at this path.
    pub websocket: Option<Arc<str>>,
}

/// Which layers an uplink has.
#[derive(Debug, Clone, Default)]
pub struct ClientLayers {
    /// An HTTP proxy is asked first to connect to this `host:port`, with these credentials.
    pub connect: Option<(String, Option<(String, String)>)>,
    /// Then TLS with whoever proves to have this name.
    pub tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    /// Then WebSocket: the `Host` and the path asked for.
    pub websocket: Option<(String, String)>,
}

/// Who is at the other end, as far as the layers say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peer {
    /// Where the connection comes from, by the PROXY header.
    pub address: Option<IpAddr>,
    /// A name of its certificate: TLS's, or else the PROXY header's.
    pub certificate: Option<Box<str>>,
}

/// The steps to an open connection, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A server waits for a PROXY header.
    ProxyHeader,
    /// A client waits for the HTTP proxy's answer to CONNECT.
    Connect,
    /// The TLS handshake.
    Tls,
    /// A server waits for the request of an upgrade to WebSocket, a client for the answer.
    Upgrade,
    /// MQTT.
    Open,
}

/// Why a connection ends in one of its layers. What can still be said to the peer has been appended to the output.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// In the PROXY header.
    #[error("PROXY protocol: {0}")]
    Proxy(#[from] ProxyError),
    /// In TLS.
    #[error("TLS: {0}")]
    Tls(#[from] TlsError),
    /// Before the WebSocket, or at the HTTP proxy.
    #[error("HTTP: {0}")]
    Http(#[from] HttpError),
    /// In a WebSocket frame.
    #[error("WebSocket: {0}")]
    WebSocket(#[from] WsError),
}

/// Buffers between the layers, which a thread needs once for all its connections.
#[derive(Debug, Default)]
pub struct Scratch {
    plaintext: Vec<u8>,
    out: Vec<u8>,
}

/// The layers of one connection.
#[derive(Debug)]
pub struct Stack {
    stage: Stage,
    tls: Option<Tls>,
    websocket: Option<WebSocket>,
    name_from: Option<NameFrom>,
    peer: Peer,
    /// Of the socket's bytes, the front of something incomplete.
    rest: Vec<u8>,
    /// The same of what TLS decrypted.
    inner: Vec<u8>,
}

/// What comes next. Stages are passed in this order, those that a connection does not have at once.
#[derive(Debug)]
enum Stage {
    /// A PROXY header, then what is behind it.
    Proxy(Option<Arc<str>>),
    /// The proxy's answer to CONNECT.
    Connect(Option<Box<Ask>>),
    /// The TLS handshake; then, as a server, a request for this path, as a client, to ask for this one.
    Handshake(Option<Arc<str>>, Option<Box<Ask>>),
    /// The request of an upgrade, for this path.
    Request(Arc<str>),
    /// The answer to an upgrade.
    Response(Box<Upgrading>),
    /// MQTT.
    Open,
}

/// The upgrade that a client asks for.
#[derive(Debug)]
struct Ask {
    host: String,
    path: String,
    key: [u8; 16],
}

impl Stack {
    /// Of a connection that was accepted; none for plain MQTT, which needs no layers.
    ///
    /// # Errors
    /// When rustls does not take the configuration.
    pub fn server(layers: &ServerLayers) -> Result<Option<Self>, TlsError> {
        let ServerLayers { proxy, tls, name_from, websocket } = layers;
        if !proxy && tls.is_none() && websocket.is_none() {
            return Ok(None);
        }
        let path = websocket.clone();
        let mut stack = Self {
            stage: if *proxy { Stage::Proxy(path.clone()) } else { Stage::Open },
            tls: tls.as_ref().map(Tls::server).transpose()?,
            websocket: path.is_some().then(|| WebSocket::new(Role::Server, 0)),
            name_from: *name_from,
            peer: Peer::default(),
            rest: Vec::new(),
            inner: Vec::new(),
        };
        if !proxy {
            stack.begin_server(path);
        }
        Ok(Some(stack))
    }

    fn begin_server(&mut self, path: Option<Arc<str>>) {
        self.stage = match (&self.tls, path) {
            (Some(_), path) => Stage::Handshake(path, None),
            (None, Some(path)) => Stage::Request(path),
            (None, None) => Stage::Open,
        };
    }

    /// Of a connection that was made; what opens it is appended to `wire`. None for plain MQTT. `random` is the system's: the masks of
    /// frames must not be foreseen (RFC 6455, 10.3).
    ///
    /// # Errors
    /// When rustls does not take the configuration.
    pub fn client(
        layers: &ClientLayers,
        random: [u8; 24],
        wire: &mut Vec<u8>,
    ) -> Result<Option<Self>, Fault> {
        let ClientLayers { connect, tls, websocket } = layers;
        if connect.is_none() && tls.is_none() && websocket.is_none() {
            return Ok(None);
        }
        let (mut key, mut seed) = ([0; 16], [0; 8]);
        key.copy_from_slice(&random[..16]);
        seed.copy_from_slice(&random[16..]);
        let ask = websocket.as_ref().map(|(host, path)| Ask { host: host.clone(), path: path.clone(), key });
        let mut stack = Self {
            stage: Stage::Open,
            tls: match tls {
                Some((config, name)) => Some(Tls::client(config, name.clone())?),
                None => None,
            },
            websocket: ask.is_some().then(|| WebSocket::new(Role::Client, u64::from_le_bytes(seed))),
            name_from: None,
            peer: Peer::default(),
            rest: Vec::new(),
            inner: Vec::new(),
        };
        let ask = ask.map(Box::new);
        if let Some((authority, credentials)) = connect {
            let credentials = credentials.as_ref().map(|(user, password)| (&**user, &**password));
            http::connect_request(authority, credentials, wire);
            stack.stage = Stage::Connect(ask);
        } else {
            stack.begin_client(ask, wire)?;
        }
        Ok(Some(stack))
    }

    fn begin_client(&mut self, ask: Option<Box<Ask>>, wire: &mut Vec<u8>) -> Result<(), Fault> {
        if let Some(tls) = &mut self.tls {
            // Its hello.
            tls.receive(&mut [], &mut Vec::new(), wire)?;
            self.stage = Stage::Handshake(None, ask);
        } else {
            self.ask(ask, wire);
        }
        Ok(())
    }

    /// Asks for the upgrade, if there is to be one.
    fn ask(&mut self, ask: Option<Box<Ask>>, out: &mut Vec<u8>) {
        self.stage = match ask {
            Some(ask) => Stage::Response(Box::new(Upgrading::request(&ask.host, &ask.path, ask.key, out))),
            None => Stage::Open,
        };
    }

    /// Whether MQTT may be sent.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open)
    }

    /// What it waits for; after an error, in which step it came about.
    #[must_use]
    pub fn step(&self) -> Step {
        match self.stage {
            Stage::Proxy(_) => Step::ProxyHeader,
            Stage::Connect(_) => Step::Connect,
            Stage::Handshake(..) => Step::Tls,
            Stage::Request(_) | Stage::Response(_) => Step::Upgrade,
            Stage::Open => Step::Open,
        }
    }

    /// Whether all layers have done their work: what comes and goes is MQTT's as it is.
    #[must_use]
    pub fn is_spent(&self) -> bool {
        self.is_open() && self.tls.is_none() && self.websocket.is_none()
    }

    /// Whether the next bytes may cost what a key exchange and a signature do.
    #[must_use]
    pub fn is_handshaking(&self) -> bool {
        self.tls.as_ref().is_some_and(Tls::is_handshaking)
    }

    /// Whether the peer has said that it ends: nothing more comes.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.tls.as_ref().is_some_and(Tls::is_ended)
            || self.websocket.as_ref().is_some_and(WebSocket::is_ended)
    }

    /// Who is there: whole when the stack is open.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Takes all of `bytes`, which are changed where they lie. MQTT's bytes are appended to `plain`, answers of the layers to `wire`.
    ///
    /// # Errors
    /// The connection ends: what `plain` and `wire` have got is still good.
    pub fn receive(
        &mut self,
        bytes: &mut [u8],
        scratch: &mut Scratch,
        plain: &mut Vec<u8>,
        wire: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        if self.rest.is_empty() {
            let used = self.outer(bytes, scratch, plain, wire)?;
            self.rest.extend_from_slice(&bytes[used..]);
        } else {
            let mut rest = std::mem::take(&mut self.rest);
            rest.extend_from_slice(bytes);
            let used = self.outer(&mut rest, scratch, plain, wire)?;
            if used < rest.len() {
                rest.drain(..used);
                self.rest = rest;
            }
        }
        Ok(())
    }

    fn outer(
        &mut self,
        bytes: &mut [u8],
        scratch: &mut Scratch,
        plain: &mut Vec<u8>,
        wire: &mut Vec<u8>,
    ) -> Result<usize, Fault> {
        let mut used = 0;
        match &mut self.stage {
            Stage::Proxy(path) => {
                let Some((header, size)) = proxy::parse(bytes)? else { return Ok(0) };
                let path = path.take();
                self.peer.address = header.source.map(|source| source.ip());
                self.peer.certificate = header.certificate;
                used = size;
                self.begin_server(path);
            }
            Stage::Connect(ask) => {
                let Some(size) = http::connect_response(bytes)? else { return Ok(0) };
                let ask = ask.take();
                used = size;
                self.begin_client(ask, wire)?;
            }
            _ => {}
        }
        let bytes = &mut bytes[used..];
        let Some(tls) = &mut self.tls else {
            return Ok(used + self.inner(bytes, plain, wire)?);
        };
        if self.websocket.is_none() && matches!(self.stage, Stage::Open) {
            return Ok(used + tls.receive(bytes, plain, wire)?);
        }
        let Scratch { plaintext, out } = scratch;
        plaintext.clear();
        plaintext.append(&mut self.inner);
        let result = tls.receive(bytes, plaintext, wire);
        let handshaking = tls.is_handshaking();
        if !handshaking {
            out.clear();
            self.shaken(out);
            let inside = self.inner(plaintext, plain, out);
            // What the inner layer says to its peer goes out whether it ends or not.
            if let Some(tls) = &mut self.tls
                && !out.is_empty()
            {
                tls.send(out, wire)?;
            }
            self.inner.extend_from_slice(&plaintext[inside?..]);
        }
        Ok(used + result?)
    }

    /// The handshake is over, if it was not before: who is there, and what comes next.
    fn shaken(&mut self, out: &mut Vec<u8>) {
        let Stage::Handshake(path, ask) = &mut self.stage else { return };
        let (path, ask) = (path.take(), ask.take());
        if let (Some(tls), Some(from)) = (&self.tls, self.name_from)
            && let Some(name) = tls.peer_name(from)
        {
            self.peer.certificate = Some(name);
        }
        match path {
            Some(path) => self.stage = Stage::Request(path),
            None => self.ask(ask, out),
        }
    }

    /// What is inside TLS, or all there is: the upgrade, frames, MQTT.
    fn inner(&mut self, bytes: &mut [u8], plain: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<usize, Fault> {
        let head = match &self.stage {
            Stage::Request(path) => http::upgrade(bytes, path, out)?,
            Stage::Response(upgrading) => upgrading.response(bytes)?,
            _ => Some(0),
        };
        let Some(head) = head else { return Ok(0) };
        self.stage = Stage::Open;
        match &mut self.websocket {
            Some(websocket) => Ok(head + websocket.receive(&bytes[head..], plain, out)?),
            None => {
                plain.extend_from_slice(bytes);
                Ok(bytes.len())
            }
        }
    }

    /// Encodes MQTT's bytes for the socket: as one frame, if there are frames. Only when it [is open](Self::is_open).
    ///
    /// # Errors
    /// When TLS has ended, or its keys are used up.
    pub fn send(&mut self, plain: &[u8], scratch: &mut Scratch, wire: &mut Vec<u8>) -> Result<(), Fault> {
        match (&mut self.websocket, &mut self.tls) {
            (None, None) => wire.extend_from_slice(plain),
            (Some(websocket), None) => websocket.send(plain, wire),
            (None, Some(tls)) => tls.send(plain, wire)?,
            (Some(websocket), Some(tls)) => {
                scratch.out.clear();
                websocket.send(plain, &mut scratch.out);
                tls.send(&scratch.out, wire)?;
            }
        }
        Ok(())
    }

    /// The orderly end, after the last packet: a close frame, `close_notify`.
    pub fn close(&mut self, scratch: &mut Scratch, wire: &mut Vec<u8>) {
        scratch.out.clear();
        if let (Stage::Open, Some(websocket)) = (&self.stage, &mut self.websocket) {
            websocket.close(CLOSE_NORMAL, &mut scratch.out);
        }
        match &mut self.tls {
            None => wire.extend_from_slice(&scratch.out),
            Some(tls) if !tls.is_handshaking() => {
                if scratch.out.is_empty() || tls.send(&scratch.out, wire).is_ok() {
                    tls.close(wire);
                }
            }
            Some(_) => {}
        }
    }
}

/// RFC 6455, 7.4.1. Why it ends MQTT has said already.
const CLOSE_NORMAL: u16 = 1_000;
