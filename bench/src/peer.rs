//! A broker under test: how it is started, and what it is told.
//!
//! A [`Peer`] is data, so that a further one is a further value: a name, a command line and files, in which `{port}` and
//! `{dir}` stand for what each start gets. All peers listen on the loopback and keep nothing on disk that the work does
//! not ask for. Their configuration files are in `bench/peers/`.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use ferrule_testkit::port;
use ferrule_testkit::proc::{Launch, Process};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tempfile::TempDir;
use thiserror::Error;

use crate::carrier::Over;

/// How long a broker may take until it accepts a connection.
const START: Duration = Duration::from_secs(10);

/// The user of the peers that know users, and the password.
pub const USER: (&str, &str) = ("bench", "correct horse battery staple");

/// A broker, not yet started.
#[derive(Debug, Clone)]
pub struct Peer {
    /// What tables call it.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its environment, beside ours.
    pub env: Vec<(String, String)>,
    /// Files that are written into `{dir}` before: name and content.
    pub files: Vec<(String, String)>,
}

/// Why a broker does not run.
#[derive(Debug, Error)]
pub enum PeerError {
    /// Its folder or files cannot be written.
    #[error("cannot prepare: {0}")]
    Prepare(#[from] io::Error),
    /// It ended, or does not accept connections.
    #[error("{name} does not serve: {why}")]
    Start {
        /// The peer.
        name: String,
        /// Its last lines of output.
        why: String,
    },
}

/// A running broker. Killed, and its folder removed, when dropped.
#[derive(Debug)]
pub struct Running {
    process: Process,
    _folder: TempDir,
    addr: SocketAddr,
}

impl Peer {
    /// Ferrule's edge as a plain broker.
    #[must_use]
    pub fn ferrule_edge(program: PathBuf) -> Self {
        Self::new(
            "ferrule",
            program,
            &["run", "--config", "{dir}/ferrule.toml"],
            &[("ferrule.toml", include_str!("../peers/ferrule.toml"))],
        )
    }

    /// Ferrule's edge whose listener is of the kind that `over` needs.
    #[must_use]
    pub fn ferrule_over(program: PathBuf, over: Over) -> Self {
        let conf = match over {
            Over::Tcp => return Self::ferrule_edge(program),
            Over::Tls => include_str!("../peers/ferrule-tls.toml"),
            Over::Ws => include_str!("../peers/ferrule-ws.toml"),
        };
        Self::new("ferrule", program, &["run", "--config", "{dir}/ferrule.toml"], &[("ferrule.toml", conf)])
            .with_certificate()
    }

    /// Ferrule's edge behind a proxy that says so in a PROXY header.
    #[must_use]
    pub fn ferrule_proxied(program: PathBuf) -> Self {
        Self::new(
            "ferrule, PROXY header",
            program,
            &["run", "--config", "{dir}/ferrule-proxy.toml"],
            &[("ferrule-proxy.toml", include_str!("../peers/ferrule-proxy.toml"))],
        )
    }

    /// The same with rules.
    #[must_use]
    pub fn ferrule_rule(program: PathBuf, name: &str, rules: &str) -> Self {
        Self::new(
            name,
            program,
            &["run", "--config", "{dir}/ferrule-rules.toml"],
            &[("ferrule-rules.toml", include_str!("../peers/ferrule-rules.toml")), ("rules.sql", rules)],
        )
    }

    /// The same with the one user [`USER`], whose topics are restricted.
    #[must_use]
    pub fn ferrule_access(program: PathBuf) -> Self {
        Self::new(
            "ferrule, access filters",
            program,
            &["run", "--config", "{dir}/ferrule-access.toml"],
            &[("ferrule-access.toml", include_str!("../peers/ferrule-access.toml")), ("user.pass", USER.1)],
        )
    }

    /// Eclipse Mosquitto with `bench/peers/mosquitto.conf`; `None` when it is not installed.
    #[must_use]
    pub fn mosquitto() -> Option<Self> {
        let conf = include_str!("../peers/mosquitto.conf");
        let args = ["-c", "{dir}/mosquitto.conf"];
        Some(Self::new("mosquitto", find("mosquitto")?, &args, &[("mosquitto.conf", conf)]))
    }

    /// Mosquitto whose listener is of the kind that `over` needs; `None` when it is not installed.
    #[must_use]
    pub fn mosquitto_over(over: Over) -> Option<Self> {
        let mut peer = Self::mosquitto()?.with_certificate();
        let more = match over {
            Over::Tcp => "",
            Over::Tls => "certfile {dir}/server.crt\nkeyfile {dir}/server.key\n",
            // 2.0.11 ends at its start when it has no listener but WebSocket ones.
            Over::Ws => "protocol websockets\nlistener 0 {dir}/mosquitto.sock\n",
        };
        peer.files[0].1.push_str(more);
        Some(peer)
    }

    /// A bare rustls acceptor ([`crate::handshakes`]), which is this program itself.
    #[must_use]
    pub fn acceptor(program: PathBuf) -> Self {
        let args = [
            "acceptor",
            "--listen",
            "127.0.0.1:{port}",
            "--cert",
            "{dir}/server.crt",
            "--key",
            "{dir}/server.key",
        ];
        Self::new("bare rustls", program, &args, &[]).with_certificate()
    }

    /// With [`certificate`] in `server.crt` and `server.key`.
    fn with_certificate(mut self) -> Self {
        let (cert, key) = certificate();
        self.files
            .extend([("server.crt".to_owned(), cert.to_owned()), ("server.key".to_owned(), key.to_owned())]);
        self
    }

    /// The floor ([`crate::floor`]), which is this program itself.
    #[must_use]
    pub fn floor(program: PathBuf) -> Self {
        Self::new("floor", program, &["floor", "--listen", "127.0.0.1:{port}"], &[])
    }

    fn new(name: &str, program: PathBuf, args: &[&str], files: &[(&str, &str)]) -> Self {
        Self {
            name: name.to_owned(),
            program,
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            env: Vec::new(),
            files: files.iter().map(|&(name, content)| (name.to_owned(), content.to_owned())).collect(),
        }
    }

    /// The same under another name and with one more environment variable.
    #[must_use]
    pub fn with_env(mut self, name: &str, variable: &str, value: &str) -> Self {
        self.name = name.to_owned();
        self.env.push((variable.to_owned(), value.to_owned()));
        self
    }

    /// Its command line, for people: without the folder, which is another one on each machine.
    #[must_use]
    pub fn command(&self) -> String {
        let program = self.program.file_name().unwrap_or(self.program.as_os_str());
        let env: String = self.env.iter().map(|(name, value)| format!("{name}={value} ")).collect();
        format!("{env}{} {}", program.display(), self.args.join(" "))
    }

    /// What `--version` or `-h` says, its first line: a figure without a version is no figure.
    #[must_use]
    pub fn version(&self) -> String {
        for flag in ["--version", "-h"] {
            let Ok(output) = std::process::Command::new(&self.program).arg(flag).output() else { continue };
            let text = String::from_utf8_lossy(&output.stdout);
            if let Some(line) = text.lines().find(|line| line.contains(|c: char| c.is_ascii_digit())) {
                return line.trim().to_owned();
            }
        }
        String::new()
    }

    /// Starts it on a free port, on `core` alone when one is given, and waits until it accepts.
    ///
    /// # Errors
    /// [`PeerError`]
    pub fn start(&self, core: Option<usize>) -> Result<Running, PeerError> {
        let folder = tempfile::tempdir()?;
        let port = port::free();
        let dir = folder.path().display().to_string();
        let fill = |text: &str| text.replace("{port}", &port.to_string()).replace("{dir}", &dir);
        for (name, content) in &self.files {
            std::fs::write(folder.path().join(name), fill(content))?;
        }
        let log = folder.path().join("output.log");
        let launch = match core {
            Some(core) => {
                Launch::new(&self.name, "taskset", log).args(["-c", &core.to_string()]).arg(&self.program)
            }
            None => Launch::new(&self.name, &self.program, log),
        };
        let launch = self.env.iter().fold(launch, |launch, (name, value)| launch.env(name, value));
        let process = launch.args(self.args.iter().map(|arg| fill(arg))).start();
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut running = Running { process, _folder: folder, addr };
        let deadline = Instant::now() + START;
        while TcpStream::connect(addr).is_err() {
            if running.process.exited().is_some() || Instant::now() > deadline {
                return Err(PeerError::Start { name: self.name.clone(), why: running.process.tail(10) });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(running)
    }
}

impl Running {
    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
}

/// The one certificate of this process and its key (ECDSA, P-256), in PEM: all peers have the same.
#[must_use]
pub fn certificate() -> (&'static str, &'static str) {
    static PEM: OnceLock<(String, String)> = OnceLock::new();
    let (cert, key) = PEM.get_or_init(|| {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()])
            .unwrap_or_else(|error| unreachable!("a certificate for localhost: {error}"));
        (cert.pem(), signing_key.serialize_pem())
    });
    (cert, key)
}

/// A program on the PATH, or in the folders of system programs that a user's PATH lacks.
#[must_use]
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.into_iter().map(|folder| folder.join(name)).find(|file: &PathBuf| Path::is_file(file))
}
