//! What stands between an uplink and the scripted broker: TLS and WebSocket, ended by the transport crate's server side; an HTTP
//! proxy; peers that stop or talk nonsense. And the certificates for it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "tests; each uses a part of this")]

use ferrule_link::{Scheme, Server, TlsConfig};
use ferrule_transport::stack::{Scratch, ServerLayers, Stack};
use ferrule_transport::tls::{ALPN_HTTP, ALPN_MQTT, NameFrom, ServerFiles};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::server::Acceptor;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

pub const HOUR_S: i64 = 3_600;

// === certificates ===

pub fn now_s() -> i64 {
    ferrule_clock::wall_s()
}

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for `names` and for its common name, valid until `not_after_s`, and its key.
    pub fn sign(&self, common_name: &str, names: &[&str], not_after_s: i64) -> (String, String) {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        params.not_after = epoch + Duration::from_secs(u64::try_from(not_after_s).unwrap());
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

/// Files of one test: an authority and what it signed.
pub struct Files {
    dir: TempDir,
    pub ca: Authority,
}

impl Files {
    pub fn new() -> Self {
        Self::of("Test CA")
    }

    /// Those of this authority.
    pub fn of(name: &str) -> Self {
        let files = Self { dir: tempfile::tempdir().unwrap(), ca: Authority::new(name) };
        files.write("ca.crt", &files.ca.pem);
        files
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file as people should: beside it, then renamed.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        let beside = self.path("beside");
        std::fs::write(&beside, text).unwrap();
        std::fs::rename(beside, &path).unwrap();
        path
    }

    /// `NAME.crt` and `NAME.key`.
    pub fn pair(&self, name: &str, (cert, key): &(String, String)) -> (PathBuf, PathBuf) {
        (self.write(&format!("{name}.crt"), cert), self.write(&format!("{name}.key"), key))
    }

    /// A client's, valid until `not_after_s`.
    pub fn client(&self, common_name: &str, not_after_s: i64) -> (PathBuf, PathBuf) {
        self.pair("client", &self.ca.sign(common_name, &[], not_after_s))
    }

    /// TLS of a server for localhost.
    pub fn server(&self, change: impl FnOnce(&mut ServerFiles)) -> ServerLayers {
        let pair = self.pair("server", &self.ca.sign("server", &["localhost"], now_s() + HOUR_S));
        self.server_with(pair, change)
    }

    pub fn server_with(
        &self,
        pair: (PathBuf, PathBuf),
        change: impl FnOnce(&mut ServerFiles),
    ) -> ServerLayers {
        let mut files = ServerFiles {
            certificates: vec![pair],
            client_ca: None,
            crl: None,
            client_required: false,
            tls12: true,
            alpn: vec![ALPN_MQTT.to_vec(), ALPN_HTTP.to_vec()],
        };
        change(&mut files);
        ServerLayers { tls: Some(files.load().unwrap().0), ..ServerLayers::default() }
    }

    /// The same, for clients that show a certificate.
    pub fn mutual(&self, change: impl FnOnce(&mut ServerFiles)) -> ServerLayers {
        let layers = self.server(|files| {
            files.client_ca = Some(self.path("ca.crt"));
            files.client_required = true;
            change(files);
        });
        ServerLayers { name_from: Some(NameFrom::Cn), ..layers }
    }

    /// An uplink's that trusts the authority.
    pub fn tls(&self) -> TlsConfig {
        TlsConfig { ca: Some(self.path("ca.crt")), ..TlsConfig::default() }
    }

    pub fn tls_with(&self, pair: (PathBuf, PathBuf)) -> TlsConfig {
        TlsConfig { certificate: Some(pair), ..self.tls() }
    }
}

pub fn websocket(layers: ServerLayers) -> ServerLayers {
    ServerLayers { websocket: Some("/mqtt".into()), ..layers }
}

// === fronts ===

/// Ends the layers of each connection and passes MQTT on.
pub struct Front {
    pub server: Server,
    /// For the next connection.
    pub layers: Arc<Mutex<ServerLayers>>,
    /// Of each connection that opened, the name in its certificate.
    pub peers: Arc<Mutex<Vec<Option<String>>>>,
    /// Why connections ended in a layer.
    pub faults: Arc<Mutex<Vec<String>>>,
    /// The protocol that a client must ask for in its first message of TLS (ALPN). TLS itself takes clients that ask for none,
    /// whatever a server offers.
    pub alpn: Arc<Mutex<Option<&'static [u8]>>>,
    task: JoinHandle<()>,
}

impl Front {
    pub async fn start(layers: ServerLayers, inner: &Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scheme = match (&layers.tls, &layers.websocket) {
            (None, None) => Scheme::Mqtt,
            (Some(_), None) => Scheme::Mqtts,
            (None, Some(_)) => Scheme::Ws,
            (Some(_), Some(_)) => Scheme::Wss,
        };
        let server = Server::with_scheme(scheme, "localhost", listener.local_addr().unwrap().port());
        let (layers, peers) = (Arc::new(Mutex::new(layers)), Arc::<Mutex<Vec<_>>>::default());
        let faults = Arc::<Mutex<Vec<_>>>::default();
        let alpn = Arc::<Mutex<Option<&'static [u8]>>>::default();
        let (next, seen, ends, inner) =
            (Arc::clone(&layers), Arc::clone(&peers), Arc::clone(&faults), inner.port());
        let demanded = Arc::clone(&alpn);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let layers = next.lock().unwrap().clone();
                let alpn = *demanded.lock().unwrap();
                let (seen, ends) = (Arc::clone(&seen), Arc::clone(&ends));
                tokio::spawn(async move {
                    if let Err(fault) = terminate(stream, &layers, alpn, inner, &seen).await {
                        ends.lock().unwrap().push(fault);
                    }
                });
            }
        });
        Self { server, layers, peers, faults, alpn, task }
    }

    pub fn peers(&self) -> Vec<Option<String>> {
        self.peers.lock().unwrap().clone()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Whether a client's first message of TLS asks for `alpn`; `None` while the message is not whole.
fn asks_for(hello: &mut Acceptor, mut bytes: &[u8], alpn: &[u8]) -> Result<Option<()>, String> {
    while !bytes.is_empty() {
        hello.read_tls(&mut bytes).map_err(|error| error.to_string())?;
    }
    let Some(accepted) = hello.accept().map_err(|(error, _)| error.to_string())? else { return Ok(None) };
    let asked = accepted.client_hello();
    let mut asked = asked.alpn().into_iter().flatten();
    match asked.any(|protocol| protocol == alpn) {
        true => Ok(Some(())),
        false => Err(format!("no ALPN {}", String::from_utf8_lossy(alpn))),
    }
}

async fn terminate(
    mut outside: TcpStream,
    layers: &ServerLayers,
    alpn: Option<&[u8]>,
    inner: u16,
    seen: &Mutex<Vec<Option<String>>>,
) -> Result<(), String> {
    let Some(mut stack) = Stack::server(layers).unwrap() else { return Ok(()) };
    let (mut scratch, mut wire) = (Scratch::default(), Vec::new());
    let mut inside: Option<TcpStream> = None;
    let mut hello = alpn.map(|alpn| (Acceptor::default(), alpn));
    let (mut from_outside, mut from_inside) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    let text = |error: std::io::Error| error.to_string();
    loop {
        let reply = async {
            match &mut inside {
                Some(inside) => inside.read(&mut from_inside).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            got = outside.read(&mut from_outside) => {
                let got = got.map_err(text)?;
                if got == 0 {
                    return Ok(());
                }
                if let Some((first, alpn)) = &mut hello
                    && asks_for(first, &from_outside[..got], alpn)?.is_some()
                {
                    hello = None;
                }
                let mut plain = Vec::new();
                let result = stack.receive(&mut from_outside[..got], &mut scratch, &mut plain, &mut wire);
                if result.is_ok() && inside.is_none() && stack.is_open() {
                    seen.lock().unwrap().push(stack.peer().certificate.as_deref().map(str::to_owned));
                    inside = Some(TcpStream::connect(("127.0.0.1", inner)).await.map_err(text)?);
                }
                if let Some(inside) = &mut inside {
                    inside.write_all(&plain).await.map_err(text)?;
                }
                if let Err(fault) = result {
                    let _ = outside.write_all(&wire).await;
                    return Err(fault.to_string());
                }
            }
            got = reply => {
                let got = got.map_err(text)?;
                if got == 0 {
                    stack.close(&mut scratch, &mut wire);
                    let _ = outside.write_all(&wire).await;
                    return Ok(());
                }
                stack.send(&from_inside[..got], &mut scratch, &mut wire).unwrap();
            }
        }
        outside.write_all(&wire).await.map_err(text)?;
        wire.clear();
    }
}

// === other peers ===

/// Hands every connection to `serve`. Ends with the test's runtime.
pub async fn listen<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> u16
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(stream));
        }
    });
    port
}

/// Reads an HTTP head.
pub async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

/// An HTTP proxy that lets through to `allowed`, for whoever shows `authorization` if there is one; the port it is at. What was
/// asked of it is kept in `asked`.
pub async fn proxy(
    allowed: String,
    authorization: Option<&'static str>,
    asked: Arc<Mutex<Vec<String>>>,
) -> u16 {
    listen(move |mut stream| {
        let (allowed, asked) = (allowed.clone(), Arc::clone(&asked));
        async move {
            let head = head(&mut stream).await;
            asked.lock().unwrap().push(head.clone());
            let answer = match authorization {
                Some(value) if !head.contains(&format!("Proxy-Authorization: {value}\r\n")) => {
                    "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n"
                }
                _ if !head.starts_with(&format!("CONNECT {allowed} HTTP/1.1\r\n")) => {
                    "HTTP/1.1 403 Forbidden\r\n\r\n"
                }
                _ => "HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n",
            };
            stream.write_all(answer.as_bytes()).await.unwrap();
            if answer.contains(" 200 ")
                && let Ok(mut behind) = TcpStream::connect(&allowed).await
            {
                let _ = copy_bidirectional(&mut stream, &mut behind).await;
            }
        }
    })
    .await
}
