//! The bytes of one connection: a TCP or Unix socket with TLS over it, if asked for.

use ferrule_transport::stack::{ClientLayers, Scratch, Stack};
use ferrule_transport::tls::{ALPN_MQTT, ClientFiles};
use rustls::pki_types::ServerName;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UnixStream, lookup_host};

/// Read at once.
const CHUNK: usize = 64 << 10;

/// Where to.
#[derive(Debug, Clone)]
pub(super) enum Target {
    /// Host and port, and the local address to come from.
    Tcp { host: String, port: u16, from: Option<IpAddr> },
    /// A Unix socket.
    Unix(PathBuf),
}

/// TLS.
#[derive(Debug, Clone)]
pub(super) struct Tls {
    pub(super) ca: Option<PathBuf>,
    pub(super) certificate: Option<(PathBuf, PathBuf)>,
    /// The certificate may be for any name.
    pub(super) any_name: bool,
    pub(super) alpn: Option<String>,
}

trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Socket for T {}

/// An open connection.
pub(super) struct Wire {
    socket: Box<dyn Socket>,
    layers: Option<(Stack, Scratch)>,
    chunk: Vec<u8>,
}

impl Wire {
    /// Connects, and goes through the handshake.
    ///
    /// # Errors
    /// In words.
    pub(super) async fn open(target: &Target, tls: Option<&Tls>) -> Result<Self, String> {
        let (socket, host): (Box<dyn Socket>, &str) = match target {
            Target::Unix(path) => (Box::new(UnixStream::connect(path).await.map_err(said)?), "localhost"),
            Target::Tcp { host, port, from } => (Box::new(connect(host, *port, *from).await?), host),
        };
        let mut wire = Self { socket, layers: None, chunk: vec![0; CHUNK] };
        let Some(tls) = tls else { return Ok(wire) };
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| format!("no certificate can be for the name '{host}'"))?;
        let alpn = tls.alpn.as_ref().map_or_else(|| ALPN_MQTT.to_vec(), |alpn| alpn.clone().into_bytes());
        let files =
            ClientFiles { ca: tls.ca.clone(), certificate: tls.certificate.clone(), alpn: vec![alpn] };
        let loaded = if tls.any_name { files.load_any_name() } else { files.load() };
        let (config, _) = loaded.map_err(|e| e.to_string())?;
        let mut random = [0; 24];
        getrandom::fill(&mut random).map_err(|e| e.to_string())?;
        let layers = ClientLayers { connect: None, tls: Some((config, name)), websocket: None };
        let mut hello = Vec::new();
        let stack = Stack::client(&layers, random, &mut hello).map_err(|e| e.to_string())?;
        wire.socket.write_all(&hello).await.map_err(said)?;
        wire.layers = stack.map(|stack| (stack, Scratch::default()));
        let mut plain = Vec::new();
        while wire.layers.as_ref().is_some_and(|(stack, _)| !stack.is_open()) {
            if wire.read(&mut plain).await? == 0 {
                return Err("the broker closed the connection in the TLS handshake".to_owned());
            }
        }
        Ok(wire)
    }

    /// Appends what comes; 0: the connection has ended. Cancel-safe: what was read is never lost, since layers answer in
    /// memory before anything is awaited again; an answer of theirs that is cut by a cancellation is one to a peer that
    /// is being left.
    ///
    /// # Errors
    /// In words.
    pub(super) async fn read(&mut self, plain: &mut Vec<u8>) -> Result<usize, String> {
        let got = self.socket.read(&mut self.chunk).await.map_err(said)?;
        let Some((stack, scratch)) = &mut self.layers else {
            plain.extend_from_slice(&self.chunk[..got]);
            return Ok(got);
        };
        let mut answer = Vec::new();
        let done = stack.receive(&mut self.chunk[..got], scratch, plain, &mut answer);
        if !answer.is_empty() {
            self.socket.write_all(&answer).await.map_err(said)?;
        }
        done.map_err(|e| e.to_string())?;
        Ok(if stack.is_ended() && plain.is_empty() { 0 } else { got })
    }

    /// Sends all of `bytes`. Not cancel-safe: half a packet may be out.
    ///
    /// # Errors
    /// In words.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        let Some((stack, scratch)) = &mut self.layers else {
            return self.socket.write_all(bytes).await.map_err(said);
        };
        for part in bytes.chunks(CHUNK) {
            let mut sealed = Vec::new();
            stack.send(part, scratch, &mut sealed).map_err(|e| e.to_string())?;
            self.socket.write_all(&sealed).await.map_err(said)?;
        }
        Ok(())
    }

    /// The orderly end.
    pub(super) async fn close(&mut self) {
        let mut goodbye = Vec::new();
        if let Some((stack, scratch)) = &mut self.layers {
            stack.close(scratch, &mut goodbye);
        }
        // The broker may have closed already.
        let _ = self.socket.write_all(&goodbye).await;
        let _ = self.socket.shutdown().await;
    }
}

async fn connect(host: &str, port: u16, from: Option<IpAddr>) -> Result<TcpStream, String> {
    let found = lookup_host((host, port)).await;
    let addresses: Vec<SocketAddr> = found.map_err(|e| format!("Unable to look up {host}: {e}"))?.collect();
    let mut first = None;
    for address in addresses {
        match dial(address, from).await {
            Ok(stream) => {
                // It only costs latency; a socket without the option works.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(error) => drop(first.get_or_insert(error)),
        }
    }
    Err(first.map_or_else(|| format!("{host} has no address"), said))
}

async fn dial(address: SocketAddr, from: Option<IpAddr>) -> io::Result<TcpStream> {
    let Some(from) = from else { return TcpStream::connect(address).await };
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.bind(SocketAddr::new(from, 0))?;
    socket.connect(address).await
}

/// The system's words alone, as mosquitto prints them.
#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn said(error: io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(at) => text[..at].to_owned(),
        None => text,
    }
}
