//! Connections over every transport that a listener has, with other people's TLS and WebSocket: rustls' own streams and
//! tungstenite, of which the product uses neither.
//!
//! A [`Dial`] says where and over what; it opens a [`Channel`], which a [`Client`] speaks MQTT on. [`ws_frame`] and
//! [`upgrade_request`] are for those who break the rules and so need the bytes themselves.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ferrule_mqtt::Version;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion, version};
use tungstenite::error::ProtocolError;
use tungstenite::{ClientRequestBuilder, HandshakeError, Message, WebSocket};

pub use rustls::{ClientConfig, HandshakeKind};

use crate::wire::{Client, Frame, Options, PATIENCE};

/// The path of a WebSocket listener that names none.
pub const WS_PATH: &str = "/mqtt";

/// A stream of bytes to a node, whatever carries it.
pub trait Channel: Read + Write + Send + fmt::Debug {
    /// Of the socket: see [`TcpStream::set_read_timeout`].
    ///
    /// # Errors
    /// Those of the socket.
    fn set_read_timeout(&self, limit: Option<Duration>) -> io::Result<()>;

    /// Of the socket: see [`TcpStream::set_write_timeout`].
    ///
    /// # Errors
    /// Those of the socket.
    fn set_write_timeout(&self, limit: Option<Duration>) -> io::Result<()>;

    /// Closes the socket's sending direction, without a farewell of the layers above it.
    ///
    /// # Errors
    /// Those of the socket.
    fn shutdown_write(&self) -> io::Result<()>;
}

macro_rules! socket_channel {
    ($socket:ty) => {
        impl Channel for $socket {
            fn set_read_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
                <$socket>::set_read_timeout(self, limit)
            }

            fn set_write_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
                <$socket>::set_write_timeout(self, limit)
            }

            fn shutdown_write(&self) -> io::Result<()> {
                self.shutdown(Shutdown::Write)
            }
        }
    };
}

socket_channel!(TcpStream);
socket_channel!(UnixStream);

impl Channel for Box<dyn Channel> {
    fn set_read_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        (**self).set_read_timeout(limit)
    }

    fn set_write_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        (**self).set_write_timeout(limit)
    }

    fn shutdown_write(&self) -> io::Result<()> {
        (**self).shutdown_write()
    }
}

/// TLS over a socket; its `conn` tells what was agreed on.
pub type TlsStream = StreamOwned<ClientConnection, Box<dyn Channel>>;

impl Channel for TlsStream {
    fn set_read_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        self.sock.set_read_timeout(limit)
    }

    fn set_write_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        self.sock.set_write_timeout(limit)
    }

    fn shutdown_write(&self) -> io::Result<()> {
        self.sock.shutdown_write()
    }
}

/// Binary frames as a stream: each write is a message of its own.
#[derive(Debug)]
struct Frames {
    websocket: WebSocket<Box<dyn Channel>>,
    /// Of the last message, what was not read yet.
    rest: tungstenite::Bytes,
}

impl Read for Frames {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.websocket.read() {
                Ok(Message::Binary(bytes)) => self.rest = bytes,
                Ok(Message::Text(text)) => return Err(invalid(format!("a text frame: {text:?}"))),
                Ok(_) => {}
                Err(tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed) => {
                    return Ok(0);
                }
                Err(error) => return Err(io_error(error)),
            }
        }
        let size = buffer.len().min(self.rest.len());
        buffer[..size].copy_from_slice(&self.rest.split_to(size));
        Ok(size)
    }
}

impl Write for Frames {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.websocket.send(Message::binary(bytes.to_vec())).map_err(io_error)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.websocket.flush().map_err(io_error)
    }
}

impl Channel for Frames {
    fn set_read_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        self.websocket.get_ref().set_read_timeout(limit)
    }

    fn set_write_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        self.websocket.get_ref().set_write_timeout(limit)
    }

    fn shutdown_write(&self) -> io::Result<()> {
        self.websocket.get_ref().shutdown_write()
    }
}

fn io_error(error: tungstenite::Error) -> io::Error {
    match error {
        tungstenite::Error::Io(error) => error,
        tungstenite::Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => {
            io::ErrorKind::ConnectionReset.into()
        }
        error => invalid(error),
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Whom a TLS client believes, and what it shows.
#[derive(Debug, Clone)]
pub struct Trust {
    authorities: Vec<PathBuf>,
    identity: Option<(PathBuf, PathBuf)>,
    versions: Vec<&'static SupportedProtocolVersion>,
    alpn: Vec<Vec<u8>>,
}

impl Trust {
    /// Servers whose certificates are this authority's.
    #[must_use]
    pub fn in_authority(file: impl Into<PathBuf>) -> Self {
        Self {
            authorities: vec![file.into()],
            identity: None,
            versions: vec![&version::TLS13, &version::TLS12],
            alpn: Vec::new(),
        }
    }

    /// And those of this one.
    #[must_use]
    pub fn and_in(mut self, file: impl Into<PathBuf>) -> Self {
        self.authorities.push(file.into());
        self
    }

    /// Shows this certificate.
    #[must_use]
    pub fn identity(mut self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.identity = Some((certificate.into(), key.into()));
        self
    }

    /// Speaks TLS 1.2 alone.
    #[must_use]
    pub fn tls12(mut self) -> Self {
        self.versions = vec![&version::TLS12];
        self
    }

    /// Speaks TLS 1.3 alone.
    #[must_use]
    pub fn tls13(mut self) -> Self {
        self.versions = vec![&version::TLS13];
        self
    }

    /// Asks for this protocol.
    #[must_use]
    pub fn alpn(mut self, protocol: &str) -> Self {
        self.alpn.push(protocol.as_bytes().to_vec());
        self
    }

    /// rustls' configuration; connections that share it resume each other's sessions.
    ///
    /// # Panics
    /// When a file cannot be used.
    #[must_use]
    pub fn config(&self) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        for certificate in self.authorities.iter().flat_map(|file| certificates(file)) {
            roots.add(certificate).expect("an authority's certificate");
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&self.versions)
            .expect("ring has suites for both versions")
            .with_root_certificates(roots);
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let key = PrivateKeyDer::from_pem_file(key)
                    .unwrap_or_else(|error| panic!("{}: {error}", key.display()));
                builder.with_client_auth_cert(certificates(certificate), key).expect("a key that fits")
            }
        };
        config.alpn_protocols.clone_from(&self.alpn);
        Arc::new(config)
    }
}

fn certificates(file: &Path) -> Vec<CertificateDer<'static>> {
    let read = || CertificateDer::pem_file_iter(file)?.collect();
    let read: Result<Vec<_>, rustls::pki_types::pem::Error> = read();
    read.unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// Where to, and over what.
#[derive(Debug, Clone)]
pub struct Dial {
    to: To,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    path: Option<String>,
    source: Option<IpAddr>,
    receive_buffer: Option<usize>,
    preface: Vec<u8>,
}

#[derive(Debug, Clone)]
enum To {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Dial {
    fn new(to: To) -> Self {
        Self { to, tls: None, path: None, source: None, receive_buffer: None, preface: Vec::new() }
    }

    /// TCP.
    #[must_use]
    pub fn tcp(addr: SocketAddr) -> Self {
        Self::new(To::Tcp(addr))
    }

    /// A Unix socket.
    #[must_use]
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Self::new(To::Unix(path.into()))
    }

    /// Of a TCP socket: the address that it comes from. All of 127.0.0.0/8 are this machine's.
    #[must_use]
    pub fn source(mut self, address: impl Into<IpAddr>) -> Self {
        self.source = Some(address.into());
        self
    }

    /// TLS with whoever proves to be `name`, which is also what is asked for (SNI) unless it is an address.
    ///
    /// # Panics
    /// When it is neither a name nor an address.
    #[must_use]
    pub fn tls(mut self, config: &Arc<ClientConfig>, name: &str) -> Self {
        let name = ServerName::try_from(name.to_owned()).unwrap_or_else(|error| panic!("{name}: {error}"));
        self.tls = Some((Arc::clone(config), name));
        self
    }

    /// WebSocket, at [`WS_PATH`].
    #[must_use]
    pub fn ws(mut self) -> Self {
        self.path = Some(WS_PATH.to_owned());
        self
    }

    /// Of a TCP socket, so that a node soon notices that nothing is read: its SO_RCVBUF in bytes.
    #[must_use]
    pub fn receive_buffer(mut self, bytes: usize) -> Self {
        self.receive_buffer = Some(bytes);
        self
    }

    /// Bytes that come before everything else: a PROXY header.
    #[must_use]
    pub fn preface(mut self, bytes: &[u8]) -> Self {
        self.preface = bytes.to_vec();
        self
    }

    /// The socket alone.
    ///
    /// # Errors
    /// Those of connecting, within 10 s.
    pub fn open_socket(&self) -> io::Result<Box<dyn Channel>> {
        let mut channel: Box<dyn Channel> = match &self.to {
            To::Unix(path) => Box::new(UnixStream::connect(path)?),
            To::Tcp(addr) => {
                let socket =
                    socket2::Socket::new(socket2::Domain::for_address(*addr), socket2::Type::STREAM, None)?;
                if let Some(bytes) = self.receive_buffer {
                    socket.set_recv_buffer_size(bytes)?;
                }
                if let Some(source) = self.source {
                    socket.bind(&SocketAddr::new(source, 0).into())?;
                }
                socket.connect_timeout(&(*addr).into(), PATIENCE)?;
                let socket = TcpStream::from(socket);
                socket.set_nodelay(true)?;
                Box::new(socket)
            }
        };
        channel.set_write_timeout(Some(PATIENCE))?;
        channel.set_read_timeout(Some(PATIENCE))?;
        channel.write_all(&self.preface)?;
        Ok(channel)
    }

    /// The socket and TLS, whose handshake is over.
    ///
    /// # Errors
    /// Those of connecting; `InvalidData` when one side does not like the other. (A TLS 1.3 server that does not like the client's
    /// certificate says so after this.)
    ///
    /// # Panics
    /// Without [`Self::tls`].
    pub fn open_tls(&self) -> io::Result<TlsStream> {
        let (config, name) = self.tls.as_ref().expect("a dial with TLS");
        let mut socket = self.open_socket()?;
        let mut conn = ClientConnection::new(Arc::clone(config), name.clone()).map_err(invalid)?;
        while conn.is_handshaking() {
            conn.complete_io(&mut socket)?;
        }
        Ok(StreamOwned::new(conn, socket))
    }

    /// The ClientHello that opens TLS, and the connection that wrote it.
    ///
    /// # Panics
    /// Without [`Self::tls`].
    #[must_use]
    pub fn client_hello(&self) -> (Vec<u8>, ClientConnection) {
        let (config, name) = self.tls.as_ref().expect("a dial with TLS");
        let mut conn =
            ClientConnection::new(Arc::clone(config), name.clone()).expect("rustls takes its configuration");
        (pending(&mut conn), conn)
    }

    /// Goes through a handshake of TLS 1.3 up to the client's last flight, which is handed over unsent.
    ///
    /// # Errors
    /// As [`Self::open_tls`].
    ///
    /// # Panics
    /// As [`Self::client_hello`].
    pub fn stop_before_finished(&self) -> io::Result<(Box<dyn Channel>, Vec<u8>)> {
        let mut socket = self.open_socket()?;
        let (hello, mut conn) = self.client_hello();
        socket.write_all(&hello)?;
        while conn.is_handshaking() {
            if conn.read_tls(&mut socket)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            conn.process_new_packets().map_err(invalid)?;
        }
        Ok((socket, pending(&mut conn)))
    }

    /// All of it: what MQTT is written to.
    ///
    /// # Errors
    /// As [`Self::open_tls`]; `InvalidData` for an upgrade that is refused.
    pub fn open(&self) -> io::Result<Box<dyn Channel>> {
        let channel: Box<dyn Channel> =
            if self.tls.is_some() { Box::new(self.open_tls()?) } else { self.open_socket()? };
        let Some(path) = &self.path else { return Ok(channel) };
        let uri = format!("ws://localhost{path}").parse().map_err(invalid)?;
        let request = ClientRequestBuilder::new(uri).with_sub_protocol("mqtt");
        let (websocket, _) = tungstenite::client(request, channel).map_err(|error| match error {
            HandshakeError::Failure(error) => io_error(error),
            HandshakeError::Interrupted(_) => io::ErrorKind::TimedOut.into(),
        })?;
        Ok(Box::new(Frames { websocket, rest: tungstenite::Bytes::new() }))
    }

    /// The same for MQTT, without CONNECT.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn client(&self, version: Version) -> io::Result<Client> {
        Client::over(self.open()?, version)
    }

    /// Connects, and returns the CONNACK whatever it says.
    ///
    /// # Errors
    /// As [`Self::open`] and [`Client::try_login`].
    pub fn try_connect(&self, options: &Options) -> io::Result<(Client, Frame)> {
        self.client(options.version)?.try_login(options)
    }

    /// Connects and is accepted.
    ///
    /// # Panics
    /// When it is not.
    #[must_use]
    pub fn connect(&self, options: &Options) -> Client {
        let client = self.client(options.version).unwrap_or_else(|error| panic!("{self:?}: {error}"));
        client.login(options)
    }
}

/// What TLS has to say.
fn pending(conn: &mut ClientConnection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while conn.wants_write() {
        conn.write_tls(&mut bytes).expect("a vector takes everything");
    }
    bytes
}

/// The request of an upgrade to MQTT over WebSocket at [`WS_PATH`], with more header lines (each with its line end).
#[must_use]
pub fn upgrade_request(more: &str) -> Vec<u8> {
    // The key is RFC 6455's example.
    format!(
        "GET {WS_PATH} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: mqtt\r\n{more}\r\n"
    )
    .into_bytes()
}

/// A client's frame: its first byte (FIN, RSV, opcode), and its payload behind a mask.
#[must_use]
pub fn ws_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = ws_head(first, payload.len() as u64);
    frame.extend(payload.iter().zip(WS_MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// The head of a client's frame that announces so many bytes, up to and with its mask, which is [`WS_MASK`].
#[must_use]
pub fn ws_head(first: u8, len: u64) -> Vec<u8> {
    let mut head = vec![first];
    match (u8::try_from(len), u16::try_from(len)) {
        (Ok(len @ 0..=125), _) => head.push(0x80 | len),
        (_, Ok(len)) => {
            head.push(0x80 | 126);
            head.extend(len.to_be_bytes());
        }
        _ => {
            head.push(0x80 | 127);
            head.extend(len.to_be_bytes());
        }
    }
    head.extend(WS_MASK);
    head
}

/// The code of the close frame that a server's bytes, from the start of a WebSocket, end in; `None` if they end otherwise.
#[must_use]
pub fn ws_close_code(mut bytes: &[u8]) -> Option<u16> {
    let mut code = None;
    while let [first, short, rest @ ..] = bytes {
        let (len, rest) = match short {
            126 => rest.split_first_chunk().map(|(len, rest)| (u64::from(u16::from_be_bytes(*len)), rest))?,
            127 => rest.split_first_chunk().map(|(len, rest)| (u64::from_be_bytes(*len), rest))?,
            short => (u64::from(*short), rest),
        };
        let (payload, rest) = rest.split_at_checked(usize::try_from(len).ok()?)?;
        code = match payload {
            [high, low, ..] if *first == 0x88 => Some(u16::from_be_bytes([*high, *low])),
            _ => None,
        };
        bytes = rest;
    }
    code
}

/// The mask of [`ws_frame`]: any will do.
pub const WS_MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];
