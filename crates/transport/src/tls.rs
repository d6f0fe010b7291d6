//! TLS over rustls: the layer of a connection, and what certificates, keys and revocation lists make of it.
//!
//! # Design
//!
//! - rustls' *unbuffered* connections: records are decrypted where they lie, in the caller's buffer, and encrypted into the
//!   caller's output. What stays with an idle connection are its keys and, if the peer showed one, its certificate chain.
//! - A record that has not arrived in full, and during a handshake a message spread over several records, stay with the
//!   caller: [`Tls::receive`] says how much it used, and is offered the rest again **as it left it** (it decrypts and moves
//!   bytes in it), with what came after. That rest is bounded: [`RECORD_BYTES_MAX`] of an established connection,
//!   [`HANDSHAKE_BYTES_MAX`] before.
//! - Every call runs rustls until it wants bytes from the peer. Each state on the way consumes what brought it about (a
//!   record, a queued message, a flag), so a call ends after work proportional to `bytes`. Alerts are queued in rustls like
//!   any other message; after an error one more pass fetches them.
//! - What a peer may repeat without saying anything is bounded in rustls: 32 key updates or 32 empty records without data in
//!   between, 4 warnings, one attempt at renegotiation, which does not exist here. Data ahead of the handshake (0-RTT) is
//!   never accepted: whoever recorded it could send it again, and a PUBLISH sent again is a second message.
//! - Plaintext waits for the handshake: [`Tls::send`] before its end is an error, since nobody has been proven to listen.
//!
//! | What rustls wants     | What happens                                             |
//! |-----------------------|----------------------------------------------------------|
//! | `ReadTraffic`         | plaintext is appended to `plain`                         |
//! | `EncodeTlsData`       | a message is appended to `out`, exactly as long as it is |
//! | `TransmitTlsData`     | nothing: `out` is the caller's to write                  |
//! | `PeerClosed`          | [`Tls::is_ended`]; what follows is dropped (RFC 8446, 6.1) |
//! | `BlockedHandshake`, `WriteTraffic`, `Closed` | the call ends                     |

mod certificate;
mod error;
mod files;
mod known_time;
mod resolver;

pub use self::certificate::{CertificateInfo, Kind, NameFrom, WARN_BEFORE_S, date, warnings};
pub use self::error::{Spoken, TlsError};
pub use self::files::{ALPN_HTTP, ALPN_MQTT, ClientFiles, FILE_BYTES_MAX, LoadError, ServerFiles};

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::ServerName;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use rustls::{ClientConfig, CommonState, HandshakeKind, ProtocolVersion, ServerConfig, Side};
use std::fmt;
use std::sync::Arc;

/// The longest record: header, 2^14 bytes and the most that encryption may add (RFC 5246, 6.2.3; RFC 8446, 5.2 allows less).
pub const RECORD_BYTES_MAX: usize = HEADER_BYTES + PLAIN_BYTES_MAX + 2048;

/// The most of a handshake that waits for its rest: rustls' own bound of one message is 64 KiB. A client's hello is 2 KiB
/// and a chain of four RSA-4096 certificates 8 KiB, so what is left unused is most of it slack; it is only held between the
/// records of one message.
pub const HANDSHAKE_BYTES_MAX: usize = 64 << 10;

/// Plaintext in one record (RFC 8446, 5.1).
const PLAIN_BYTES_MAX: usize = 16 << 10;

/// Content type, version, length.
const HEADER_BYTES: usize = 5;

/// What encryption adds to a record of any suite that rustls has: AES-GCM in TLS 1.2 has a nonce (8) and a tag (16), TLS 1.3
/// a content type (1) and a tag.
const RECORD_OVERHEAD_MAX: usize = HEADER_BYTES + 24;

/// One connection's TLS.
pub struct Tls {
    endpoint: Endpoint,
    state: State,
    /// Whether the peer's first bytes were seen to be TLS.
    recognized: bool,
    ended: bool,
    /// How much of the front of what the caller keeps rustls has been through already: the first records of a handshake
    /// message whose last is missing. rustls asks for them even where it reads nothing.
    kept: usize,
}

/// Boxed: 1.5 KiB each, and the layer is part of every connection, with TLS or without.
enum Endpoint {
    Server(Box<UnbufferedServerConnection>),
    Client(Box<UnbufferedClientConnection>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// Our `close_notify` went out.
    Closed,
    Failed,
}

// === impl Tls ===

impl Tls {
    /// The side that accepted the connection.
    ///
    /// # Errors
    /// [`TlsError::Protocol`]: the configuration does not work, which a configuration from [`ServerFiles::load`] does.
    pub fn server(config: &Arc<ServerConfig>) -> Result<Self, TlsError> {
        let connection = UnbufferedServerConnection::new(Arc::clone(config)).map_err(TlsError::Protocol)?;
        Ok(Self::new(Endpoint::Server(Box::new(connection))))
    }

    /// The side that connected, to a server that proves to be `name`. Its first [`receive`](Self::receive), with no bytes,
    /// appends the ClientHello.
    ///
    /// # Errors
    /// As [`server`](Self::server).
    pub fn client(config: &Arc<ClientConfig>, name: ServerName<'static>) -> Result<Self, TlsError> {
        let connection =
            UnbufferedClientConnection::new(Arc::clone(config), name).map_err(TlsError::Protocol)?;
        Ok(Self::new(Endpoint::Client(Box::new(connection))))
    }

    fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, state: State::Open, recognized: false, ended: false, kept: 0 }
    }

    /// Takes records from the front of `bytes`, which it changes: their plaintext is appended to `plain`, answers (of the
    /// handshake, key updates, alerts) to `out`. Returns how many bytes were used; the rest is offered again as it is, in
    /// front of what comes next. After the peer's `close_notify` everything is used, and nothing comes of it.
    ///
    /// # Errors
    /// The connection is to be closed once `out` was written: the alert for the peer is in it, if there is one. `plain` holds
    /// what came before the error. Every later call fails too.
    pub fn receive(
        &mut self,
        bytes: &mut [u8],
        plain: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<usize, TlsError> {
        if self.state == State::Failed {
            return Err(TlsError::NotOpen);
        }
        if self.ended {
            return Ok(bytes.len());
        }
        let spoken = if self.recognized { None } else { Spoken::of(bytes) };
        self.recognized |= bytes.len() >= HEADER_BYTES;
        let whole = records_end(bytes, self.kept);
        let result = match &mut self.endpoint {
            Endpoint::Server(connection) => drive(connection.as_mut(), bytes, &mut self.ended, plain, out),
            Endpoint::Client(connection) => drive(connection.as_mut(), bytes, &mut self.ended, plain, out),
        };
        let used = match result {
            Ok(_) if self.ended => bytes.len(),
            Ok(used) => used,
            Err(error) => {
                self.state = State::Failed;
                return Err(match spoken {
                    Some(spoken) => TlsError::NotTls { peer: self.peer(), spoken },
                    None => TlsError::of(error, self.peer()),
                });
            }
        };
        self.kept = whole.saturating_sub(used);
        let (left, max) = match (bytes.len() - used, self.is_handshaking()) {
            (left, true) => (left, HANDSHAKE_BYTES_MAX),
            (left, false) => (left, RECORD_BYTES_MAX),
        };
        if left > max {
            self.state = State::Failed;
            return Err(TlsError::TooLong { left, max });
        }
        Ok(used)
    }

    /// Encrypts `plain` to the end of `out`, in records of up to 16 KiB.
    ///
    /// # Errors
    /// [`TlsError::NotOpen`] before the handshake ended, after [`close`](Self::close) and after an error; nothing was
    /// appended. [`TlsError::Exhausted`] on a TLS 1.2 connection whose AES-GCM key has encrypted 2^24 records (RFC 8446, 5.5,
    /// whose TLS changes keys by itself): `close_notify` was appended, the connection is to be closed, its client comes again.
    pub fn send(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), TlsError> {
        if self.state != State::Open || self.is_handshaking() {
            return Err(TlsError::NotOpen);
        }
        let result = self.write(Write::Data(plain), out);
        if result.is_err() {
            self.state = State::Failed;
        }
        result
    }

    /// Appends our `close_notify`, once. During a handshake, and after an error, there is none to send: no data was promised.
    pub fn close(&mut self, out: &mut Vec<u8>) {
        if self.state == State::Open && !self.is_handshaking() {
            let closed = self.write(Write::CloseNotify, out);
            self.state = if closed.is_ok() { State::Closed } else { State::Failed };
        }
    }

    /// Whether data can not be sent yet.
    #[must_use]
    pub fn is_handshaking(&self) -> bool {
        self.common().is_handshaking()
    }

    /// Whether the peer's `close_notify` came: all its data has. Without it a closed socket may have cut some off.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// The name in the peer's verified certificate. None: it showed none (or has not yet), or there is no such name in it,
    /// or the name is empty, is not text, or contains NUL, which MQTT's strings cannot.
    #[must_use]
    pub fn peer_name(&self, from: NameFrom) -> Option<Box<str>> {
        certificate::peer_name(self.common().peer_certificates()?.first()?, from)
    }

    /// The protocol version agreed on, for status and logs.
    #[must_use]
    pub fn version(&self) -> Option<ProtocolVersion> {
        self.common().protocol_version()
    }

    /// Whether the handshake was a full one or resumed an earlier session.
    #[must_use]
    pub fn handshake_kind(&self) -> Option<HandshakeKind> {
        self.common().handshake_kind()
    }

    fn write(&mut self, what: Write<'_>, out: &mut Vec<u8>) -> Result<(), TlsError> {
        // rustls skips as many bytes as it has been through, of whatever it is given.
        let mut skipped = vec![0; self.kept];
        match &mut self.endpoint {
            Endpoint::Server(connection) => write(connection.as_mut(), &mut skipped, what, out),
            Endpoint::Client(connection) => write(connection.as_mut(), &mut skipped, what, out),
        }
    }

    fn common(&self) -> &CommonState {
        match &self.endpoint {
            Endpoint::Server(connection) => connection,
            Endpoint::Client(connection) => connection,
        }
    }

    fn peer(&self) -> Side {
        match self.endpoint {
            Endpoint::Server(_) => Side::Client,
            Endpoint::Client(_) => Side::Server,
        }
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("peer", &self.peer())
            .field("state", &self.state)
            .field("handshaking", &self.is_handshaking())
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

/// What both of rustls' connections have in common, and no trait of rustls says.
trait Connection {
    type Data;
    fn process<'c, 'i>(&'c mut self, bytes: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
    fn common(&self) -> &CommonState;
}

impl Connection for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(&'c mut self, bytes: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(bytes)
    }

    fn common(&self) -> &CommonState {
        self
    }
}

impl Connection for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(&'c mut self, bytes: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(bytes)
    }

    fn common(&self) -> &CommonState {
        self
    }
}

/// Runs `connection` until it wants more than `bytes`. Returns how many it used.
fn drive<C: Connection>(
    connection: &mut C,
    bytes: &mut [u8],
    ended: &mut bool,
    plain: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Result<usize, rustls::Error> {
    let mut used = 0;
    loop {
        let status = connection.process(&mut bytes[used..]);
        used += status.discard;
        match status.state {
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    plain.extend_from_slice(record.payload);
                    used += record.discard;
                }
            }
            Ok(ConnectionState::EncodeTlsData(mut message)) => encode(|space| message.encode(space), out)?,
            Ok(ConnectionState::TransmitTlsData(sent)) => sent.done(),
            Ok(ConnectionState::PeerClosed) => *ended = true,
            Ok(
                ConnectionState::BlockedHandshake
                | ConnectionState::WriteTraffic(_)
                | ConnectionState::Closed,
            ) => return Ok(used),
            Ok(other) => return Err(unexpected(&other)),
            Err(error) => {
                flush(connection, out)?;
                return Err(error);
            }
        }
    }
}

/// Fetches what is queued: after an error, its alert.
fn flush<C: Connection>(connection: &mut C, out: &mut Vec<u8>) -> Result<(), rustls::Error> {
    // As long as there is something, no input is looked at.
    while connection.common().wants_write() {
        match connection.process(&mut []).state {
            Ok(ConnectionState::EncodeTlsData(mut message)) => encode(|space| message.encode(space), out)?,
            Ok(other) => return Err(unexpected(&other)),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Write<'a> {
    Data(&'a [u8]),
    CloseNotify,
}

/// `skipped`: as long as the handshake records that rustls has been through and cannot let go.
fn write<C: Connection>(
    connection: &mut C,
    skipped: &mut [u8],
    what: Write<'_>,
    out: &mut Vec<u8>,
) -> Result<(), TlsError> {
    let written = match connection.process(skipped).state {
        Ok(ConnectionState::WriteTraffic(mut traffic)) => match what {
            Write::Data(plain) => {
                out.reserve(plain.len() + plain.len().div_ceil(PLAIN_BYTES_MAX) * RECORD_OVERHEAD_MAX);
                plain.chunks(PLAIN_BYTES_MAX).try_for_each(|chunk| {
                    let space = chunk.len() + RECORD_OVERHEAD_MAX;
                    encrypt(|space| traffic.encrypt(chunk, space), space, out)
                })
            }
            Write::CloseNotify => encrypt(|space| traffic.queue_close_notify(space), 0, out),
        },
        Ok(other) => return Err(TlsError::Protocol(unexpected(&other))),
        Err(error) => return Err(TlsError::Protocol(error)),
    };
    if written.is_err() {
        // rustls closes a connection whose keys are used up.
        flush(connection, out).map_err(TlsError::Protocol)?;
    }
    written
}

/// Appends one message of the handshake, or an alert.
fn encode(
    mut encode: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>,
    out: &mut Vec<u8>,
) -> Result<(), rustls::Error> {
    // rustls knows the size and tells it when there is no space.
    let required = match encode(&mut []) {
        Ok(_) => return Ok(()),
        Err(EncodeError::InsufficientSize(size)) => size.required_size,
        Err(error) => return Err(rustls::Error::General(error.to_string())),
    };
    let start = out.len();
    out.resize(start + required, 0);
    let result = encode(&mut out[start..]);
    out.truncate(start + result.as_ref().map_or(0, |written| *written));
    result.map(|_| ()).map_err(|error| rustls::Error::General(error.to_string()))
}

/// Appends one record, of about `space` bytes; more when a key update leaves before it.
fn encrypt(
    mut encrypt: impl FnMut(&mut [u8]) -> Result<usize, EncryptError>,
    space: usize,
    out: &mut Vec<u8>,
) -> Result<(), TlsError> {
    let start = out.len();
    out.resize(start + space, 0);
    let mut result = encrypt(&mut out[start..]);
    if let Err(EncryptError::InsufficientSize(size)) = &result {
        out.resize(start + size.required_size, 0);
        result = encrypt(&mut out[start..]);
    }
    out.truncate(start + result.as_ref().map_or(0, |written| *written));
    match result {
        Ok(_) => Ok(()),
        Err(EncryptError::EncryptExhausted) => Err(TlsError::Exhausted),
        Err(error) => Err(TlsError::Protocol(rustls::Error::General(error.to_string()))),
    }
}

/// A state that cannot be: early data, which is not configured, or one of a later rustls.
fn unexpected<Data>(state: &ConnectionState<'_, '_, Data>) -> rustls::Error {
    rustls::Error::General(format!("unexpected state {state:?}"))
}

/// Where the last record ends that is there in full, of those from `start` on.
fn records_end(bytes: &[u8], start: usize) -> usize {
    let mut end = start;
    while let Some(&[_, _, _, high, low]) = bytes.get(end..end + HEADER_BYTES) {
        let next = end + HEADER_BYTES + usize::from(u16::from_be_bytes([high, low]));
        if next > bytes.len() {
            break;
        }
        end = next;
    }
    end
}

#[cfg(test)]
mod tests;
