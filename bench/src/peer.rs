//! A broker under test: how it is started, and what it is told.
//!
//! A [`Peer`] is data, so that a further one is a further value: a name, a command line and files, in which `{port}` and
//! `{dir}` stand for what each start gets. All peers listen on the loopback, let everyone in and keep nothing on disk
//! that the work does not ask for.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ferrule_testkit::port;
use ferrule_testkit::proc::{Launch, Process};
use tempfile::TempDir;
use thiserror::Error;

/// How long a broker may take until it accepts a connection.
const START: Duration = Duration::from_secs(10);

/// A broker, not yet started.
#[derive(Debug, Clone)]
pub struct Peer {
    /// What tables call it.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
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
    /// Ferrule's edge as a plain broker: no uplink, no rules.
    #[must_use]
    pub fn ferrule_edge(program: PathBuf) -> Self {
        let args = ["run", "--listen", "127.0.0.1:{port}", "--data-dir", "{dir}/data"];
        Self {
            name: "ferrule".to_owned(),
            program,
            args: args.map(str::to_owned).to_vec(),
            files: Vec::new(),
        }
    }

    /// Eclipse Mosquitto with `bench/peers/mosquitto.conf`; `None` when it is not installed.
    #[must_use]
    pub fn mosquitto() -> Option<Self> {
        let conf = include_str!("../peers/mosquitto.conf");
        Some(Self {
            name: "mosquitto".to_owned(),
            program: find("mosquitto")?,
            args: ["-c", "{dir}/mosquitto.conf"].map(str::to_owned).to_vec(),
            files: vec![("mosquitto.conf".to_owned(), conf.to_owned())],
        })
    }

    /// Its command line, for people: without the folder, which is another one on each machine.
    #[must_use]
    pub fn command(&self) -> String {
        let program = self.program.file_name().unwrap_or(self.program.as_os_str());
        format!("{} {}", program.display(), self.args.join(" "))
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

/// A program on the PATH, or in the folders of system programs that a user's PATH lacks.
#[must_use]
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.into_iter().map(|folder| folder.join(name)).find(|file: &PathBuf| Path::is_file(file))
}
