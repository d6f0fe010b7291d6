//! What carries MQTT on a generator's connection: TCP itself, TLS, or WebSocket; and a PROXY header before it.
//!
//! # Design
//! - **Not the product's layers**, as [`crate::wire`] is not its codec: TLS is rustls' buffered client, WebSocket is written here.
//! - A carrier is nothing on plain TCP, so that those rows measure what they always did.
//! - **Trusts anyone.** A load generator has no secrets; so it needs no authority's file for whatever broker it meets, and its own
//!   share of a handshake is small beside the broker's.
//! - **WebSocket**: one masked binary frame for each write, with the same mask each time: the broker has to unmask all the same.
//!   Frames from the broker are never masked [RFC 6455, 5.1]; what is no data is skipped, a close ends the connection.
//!
//! Bounds: plain bytes taken in one write: [`FRAME`]; an answer to the upgrade: [`ANSWER`].

use std::io::{self, ErrorKind, Read, Write};
use std::sync::{Arc, OnceLock};

use clap::ValueEnum;
use mio::net::TcpStream;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, HandshakeKind, SignatureScheme};
use serde::{Deserialize, Serialize};

/// Most plain bytes of one write that become one frame: as much as a TLS record holds, so that the two are alike.
const FRAME: usize = 16 * 1024;
/// The longest answer to an upgrade.
const ANSWER: usize = 4096;
/// What every frame is masked with.
const MASK: [u8; 4] = [0x5a, 0xc3, 0x96, 0x0f];
/// The server's name in the ClientHello.
const NAME: &str = "localhost";

/// What lies between TCP and MQTT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Over {
    /// Nothing.
    #[default]
    Tcp,
    /// TLS 1.2 or 1.3, whatever the broker prefers.
    Tls,
    /// WebSocket, at `/mqtt`.
    Ws,
}

impl Over {
    /// The option that gives it, unless it is the default.
    #[must_use]
    pub fn to_arg(self) -> Option<String> {
        let value = self.to_possible_value()?;
        (self != Self::Tcp).then(|| format!("--over={}", value.get_name()))
    }
}

/// Begins a connection with a PROXY header, version 2, of a client at 192.0.2.1 [haproxy, proxy-protocol.txt, 2.2].
pub const PROXY_HEADER: [u8; 28] = [
    0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a, 0x21, 0x11, 0, 12, 192, 0, 2, 1,
    127, 0, 0, 1, 0xc0, 0x00, 0x07, 0x5b,
];

/// What a connection is carried by; its socket is the caller's.
#[derive(Default)]
pub struct Carrier(Layer);

#[derive(Default)]
enum Layer {
    #[default]
    None,
    Tls(Box<ClientConnection>),
    Ws(Box<Ws>),
}

/// What a read brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Got {
    /// Plain bytes.
    pub bytes: usize,
    /// The socket had no more: the caller waits for its next event.
    pub emptied: bool,
}

impl Carrier {
    /// A new one, its first bytes ready to be written.
    #[must_use]
    pub fn new(over: Over) -> Self {
        Self(match over {
            Over::Tcp => Layer::None,
            Over::Tls => Layer::Tls(Box::new(tls(&trusting()))),
            Over::Ws => Layer::Ws(Box::default()),
        })
    }

    /// Reads plain bytes into `buffer`.
    ///
    /// # Errors
    /// Those of the socket, `WouldBlock` among them; `UnexpectedEof` at its end; `InvalidData` when the layer does not
    /// understand its peer.
    pub fn read(&mut self, socket: &mut TcpStream, buffer: &mut [u8]) -> io::Result<Got> {
        match &mut self.0 {
            Layer::None => {
                let bytes = some(socket.read(buffer)?)?;
                Ok(Got { bytes, emptied: bytes < buffer.len() })
            }
            Layer::Tls(tls) => loop {
                match tls.reader().read(buffer) {
                    Ok(bytes) => return Ok(Got { bytes: some(bytes)?, emptied: false }),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
                some(tls.read_tls(socket)?)?;
                tls.process_new_packets().map_err(invalid)?;
            },
            Layer::Ws(ws) => loop {
                let got = some(socket.read(buffer)?)?;
                let bytes = ws.take(buffer, got)?;
                // Nothing plain among it is not the end, nor is the socket known to be empty.
                if bytes > 0 {
                    return Ok(Got { bytes, emptied: got < buffer.len() });
                }
            },
        }
    }

    /// Writes what the layer holds, and then takes of `plain` what it has room for: the number of those bytes.
    ///
    /// # Errors
    /// Those of the socket; `WouldBlock` when nothing was taken, also while a WebSocket is not open yet.
    pub fn write(&mut self, socket: &mut TcpStream, plain: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Layer::None => socket.write(plain),
            Layer::Tls(tls) => {
                while tls.wants_write() {
                    tls.write_tls(socket)?;
                }
                let taken = tls.writer().write(plain)?;
                while tls.wants_write() {
                    match tls.write_tls(socket) {
                        Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                        other => other?,
                    };
                }
                Ok(taken)
            }
            Layer::Ws(ws) => ws.write(socket, plain),
        }
    }

    /// Whether it has bytes of its own for the socket.
    #[must_use]
    pub fn wants_write(&self) -> bool {
        match &self.0 {
            Layer::None => false,
            Layer::Tls(tls) => tls.wants_write(),
            Layer::Ws(ws) => ws.at < ws.out.len(),
        }
    }

    /// Whether it is one: a layer opens by reading, so that a write that it refused may be taken after a read.
    #[must_use]
    pub fn is_layer(&self) -> bool {
        !matches!(self.0, Layer::None)
    }
}

/// No bytes: the peer has closed.
fn some(bytes: usize) -> io::Result<usize> {
    if bytes == 0 { Err(io::Error::new(ErrorKind::UnexpectedEof, "closed by the broker")) } else { Ok(bytes) }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error)
}

/// The one configuration of this process that trusts anyone; sessions are not resumed, so that every handshake is a whole one.
#[must_use]
pub fn trusting() -> Arc<ClientConfig> {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    Arc::clone(CONFIG.get_or_init(|| {
        let mut config = with_verifier();
        config.resumption = rustls::client::Resumption::disabled();
        Arc::new(config)
    }))
}

/// The same, but it keeps its last session for the next connection.
#[must_use]
pub fn resuming() -> Arc<ClientConfig> {
    Arc::new(with_verifier())
}

fn with_verifier() -> ClientConfig {
    let provider = Arc::new(ring::default_provider());
    let verifier = Arc::new(TrustAnyone(Arc::clone(&provider)));
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap_or_else(|error| unreachable!("ring has both versions: {error}"))
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"mqtt".to_vec()];
    config
}

/// A client's side of a new connection.
#[must_use]
pub fn tls(config: &Arc<ClientConfig>) -> ClientConnection {
    let name = ServerName::try_from(NAME).unwrap_or_else(|_| unreachable!("a valid name"));
    ClientConnection::new(Arc::clone(config), name)
        .unwrap_or_else(|error| unreachable!("nothing of the configuration can fail here: {error}"))
}

/// Whether the handshake is over, and how it was done.
#[must_use]
pub fn handshake(tls: &ClientConnection) -> Option<HandshakeKind> {
    tls.handshake_kind().filter(|_| !tls.is_handshaking())
}

#[derive(Debug)]
struct TrustAnyone(Arc<CryptoProvider>);

impl ServerCertVerifier for TrustAnyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A client's WebSocket: how far it is.
struct Ws {
    /// The answer to the upgrade has come.
    open: bool,
    /// The answer so far, then the start of a frame's head whose rest has not come.
    head: Vec<u8>,
    /// Bytes of the frame's payload that have not come.
    payload: u64,
    /// That payload is data.
    data: bool,
    /// Bytes for the socket.
    out: Vec<u8>,
    /// Of `out`, what is already written.
    at: usize,
}

impl Default for Ws {
    fn default() -> Self {
        let upgrade = format!(
            "GET /mqtt HTTP/1.1\r\nHost: {NAME}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
        );
        Self { open: false, head: Vec::new(), payload: 0, data: false, out: upgrade.into_bytes(), at: 0 }
    }
}

impl Ws {
    /// Leaves of the first `got` bytes the plain ones at the start of `buffer`; their number.
    fn take(&mut self, buffer: &mut [u8], got: usize) -> io::Result<usize> {
        let (mut from, mut to) = (0, 0);
        if !self.open {
            self.head.extend_from_slice(&buffer[..got]);
            let Some(end) = self.head.windows(4).position(|four| four == b"\r\n\r\n") else {
                return if self.head.len() > ANSWER {
                    Err(invalid("an endless answer to the upgrade"))
                } else {
                    Ok(0)
                };
            };
            if !self.head.starts_with(b"HTTP/1.1 101") {
                let line = self.head.split(|&byte| byte == b'\r').next().unwrap_or_default();
                return Err(invalid(format!("the upgrade is refused: {}", String::from_utf8_lossy(line))));
            }
            self.open = true;
            from = got - (self.head.len() - end - 4);
            self.head.clear();
        }
        while from < got {
            if self.payload == 0 {
                self.head.push(buffer[from]);
                from += 1;
                self.frame()?;
                continue;
            }
            let part = usize::try_from(self.payload).unwrap_or(usize::MAX).min(got - from);
            if self.data {
                buffer.copy_within(from..from + part, to);
                to += part;
            }
            from += part;
            self.payload -= part as u64;
        }
        Ok(to)
    }

    /// Reads a frame's head once it is whole.
    fn frame(&mut self) -> io::Result<()> {
        let &[first, second, ref rest @ ..] = self.head.as_slice() else { return Ok(()) };
        let length = match second & 0x7f {
            126 => match rest {
                &[a, b] => u64::from(u16::from_be_bytes([a, b])),
                _ => return Ok(()),
            },
            127 => match rest.first_chunk::<8>() {
                Some(bytes) => u64::from_be_bytes(*bytes),
                None => return Ok(()),
            },
            short => u64::from(short),
        };
        let opcode = first & 0x0f;
        if opcode == 8 {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, "the broker closes the WebSocket"));
        }
        self.data = opcode < 8;
        self.payload = length;
        self.head.clear();
        Ok(())
    }

    fn write(&mut self, socket: &mut TcpStream, plain: &[u8]) -> io::Result<usize> {
        self.flush(socket)?;
        if !self.open {
            return Err(ErrorKind::WouldBlock.into());
        }
        let plain = &plain[..plain.len().min(FRAME)];
        if plain.is_empty() {
            return Ok(0);
        }
        self.out.push(0x82);
        match plain.len() {
            length @ 0..126 => self.out.push(0x80 | length as u8),
            length => {
                self.out.push(0x80 | 126);
                self.out.extend((length as u16).to_be_bytes());
            }
        }
        self.out.extend(MASK);
        self.out.extend(plain.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        match self.flush(socket) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(plain.len()),
        }
    }

    fn flush(&mut self, socket: &mut TcpStream) -> io::Result<()> {
        while self.at < self.out.len() {
            self.at += socket.write(&self.out[self.at..])?;
        }
        self.out.clear();
        self.at = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn frames_in_pieces() {
        // An answer, a data frame of 3, a ping of 2, a data frame of 300, cut at every place.
        let mut bytes =
            b"HTTP/1.1 101 Switching Protocols\r\nx: y\r\n\r\n\x82\x03abc\x89\x02hi\x82\x7e\x01\x2c".to_vec();
        bytes.extend([b'z'; 300]);
        for cut in 1..bytes.len() {
            let mut ws = Ws::default();
            let mut plain = Vec::new();
            for part in [&bytes[..cut], &bytes[cut..]] {
                let mut buffer = part.to_vec();
                let got = ws.take(&mut buffer, part.len()).unwrap();
                plain.extend_from_slice(&buffer[..got]);
            }
            assert_eq!(plain.len(), 303, "{cut}");
            assert!(plain.starts_with(b"abcz") && ws.open, "{cut}");
        }
        let refused = Ws::default().take(&mut b"HTTP/1.1 404 Not Found\r\n\r\n".to_vec(), 26).unwrap_err();
        assert!(refused.to_string().contains("404 Not Found"), "{refused}");
        let mut ws = Ws { open: true, ..Ws::default() };
        assert_eq!(ws.take(&mut [0x88, 0], 2).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn tcp_is_no_layer() {
        assert!(!Carrier::new(Over::Tcp).is_layer() && !Carrier::new(Over::Tcp).wants_write());
        assert!(Carrier::new(Over::Tls).wants_write() && Carrier::new(Over::Ws).wants_write());
        assert_eq!((Over::Tcp.to_arg(), Over::Tls.to_arg().unwrap()), (None, "--over=tls".to_owned()));
    }
}
