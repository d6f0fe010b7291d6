//! `ferrule-edge` and `ferrule-cloud` as processes.
//!
//! A [`Config`] writes the configuration and the rules into a folder; a [`Node`] runs the released binary on it, on ports
//! and data that stay the same over [`Node::restart`]. A node counts as started when its control socket
//! (`DATA_DIR/ferrule.sock`) answers `{"do":"status"}`: by then it serves.
//!
//! With `FERRULE_TEST_WORKERS=3` (and `FERRULE_TEST_WORKER_DELAY=2ms`) in the environment every node has so many workers (and
//! what passes between them takes a random time up to that).
//!
//! The binaries are looked for in `$FERRULE_BIN_DIR`, else in the folder above the running test's own (`target/release`).

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::port;
use crate::proc::{Launch, Process};

/// How long a start may take: recovery of a large store, on a machine that compiles beside it.
const START: Duration = Duration::from_secs(20);
/// How long a status may take.
const STATUS: Duration = Duration::from_secs(5);
/// How long an orderly stop may take: the drain has a deadline of its own.
const STOP: Duration = Duration::from_secs(20);

/// Which of the two binaries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// `ferrule-edge`
    Edge,
    /// `ferrule-cloud`
    Cloud,
}

impl Role {
    /// The binary's file name.
    #[must_use]
    pub fn binary(self) -> &'static str {
        match self {
            Self::Edge => "ferrule-edge",
            Self::Cloud => "ferrule-cloud",
        }
    }

    /// The table that the node itself is configured in.
    fn table(self) -> &'static str {
        match self {
            Self::Edge => "edge",
            Self::Cloud => "node",
        }
    }
}

/// The path of a released binary.
///
/// # Panics
/// When it is not there: with the command that builds it.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let folder = std::env::var_os("FERRULE_BIN_DIR").map_or_else(
        || {
            let own = std::env::current_exe().expect("Linux knows a process's executable");
            // target/release/deps/<test>, or target/release/<binary>
            let folder = own.parent().expect("an executable is in a folder");
            if folder.ends_with("deps") {
                folder.parent().expect("deps is in target/release")
            } else {
                folder
            }
            .to_owned()
        },
        PathBuf::from,
    );
    let path = folder.join(name);
    assert!(
        path.is_file(),
        "{} is not there: run `make build` first, or set FERRULE_BIN_DIR",
        path.display()
    );
    path
}

/// The user with the role `edge` that [`Config::cloud`] knows and [`Config::uplink`] connects as; also the edge's id.
pub const EDGE_ID: &str = "press-7";
/// Their password, which also stands in the file `edge.pass` beside every configuration, for users that a test adds.
pub const EDGE_PASSWORD: &str = "test only, not a secret";

/// What a node is started with. `edge()` and `cloud()` listen on a free port of 127.0.0.1 and let everyone in.
#[derive(Debug, Clone)]
pub struct Config {
    role: Role,
    id: String,
    listen: SocketAddr,
    anonymous: bool,
    rules: String,
    uplink: Option<String>,
    extra: String,
    data_dir: Option<PathBuf>,
    netns: Option<String>,
    env: Vec<(String, String)>,
    through: Vec<OsString>,
    program: Option<PathBuf>,
    bare: bool,
    file: Option<PathBuf>,
}

impl Config {
    fn new(role: Role, id: &str) -> Self {
        Self {
            role,
            id: id.to_owned(),
            listen: port::free_addr(),
            anonymous: true,
            rules: String::new(),
            uplink: None,
            extra: String::new(),
            data_dir: None,
            netns: None,
            env: Vec::new(),
            through: Vec::new(),
            program: None,
            bare: false,
            file: None,
        }
    }

    /// An edge without an uplink.
    #[must_use]
    pub fn edge() -> Self {
        Self::new(Role::Edge, EDGE_ID)
    }

    /// A cloud node that knows the edge [`EDGE_ID`].
    #[must_use]
    pub fn cloud() -> Self {
        Self::new(Role::Cloud, "cloud-1")
    }

    /// The SQL of its rules file.
    #[must_use]
    pub fn rules(mut self, sql: impl Into<String>) -> Self {
        self.rules = sql.into();
        self
    }

    /// The edge's uplink: to a cloud, or to a relay in front of one.
    #[must_use]
    pub fn uplink(mut self, to: SocketAddr) -> Self {
        self.uplink = Some(format!("mqtt://{to}"));
        self
    }

    /// The uplink by a name that has to be looked up.
    #[must_use]
    pub fn uplink_name(mut self, host: &str, port: u16) -> Self {
        self.uplink = Some(format!("mqtt://{host}:{port}"));
        self
    }

    /// The uplink by TLS: the keys of its table's `tls` (`ca = ...`) go into [`Self::extra`].
    #[must_use]
    pub fn uplink_tls(mut self, host: &str, port: u16) -> Self {
        self.uplink = Some(format!("mqtts://{host}:{port}"));
        self
    }

    /// Where it listens, instead of a free port of 127.0.0.1; beyond the loopback only known users are let in.
    #[must_use]
    pub fn listen(mut self, bind: SocketAddr) -> Self {
        self.listen = bind;
        self.anonymous = bind.ip().is_loopback();
        self
    }

    /// Lets in known users only: [`EDGE_ID`] and whom [`Self::extra`] adds (`password_file = "edge.pass"`).
    #[must_use]
    pub fn closed(mut self) -> Self {
        self.anonymous = false;
        self
    }

    /// Its id, instead of [`EDGE_ID`] or `cloud-1`; on its uplink it still logs in as [`EDGE_ID`].
    #[must_use]
    pub fn id(mut self, id: &str) -> Self {
        self.id = id.to_owned();
        self
    }

    /// Without a configuration file: `run --listen ADDR --data-dir DIR`, a plain MQTT broker.
    #[must_use]
    pub fn bare(mut self) -> Self {
        self.bare = true;
        self
    }

    /// With a configuration file that is there already, such as an example's. [`Self::listen`] and [`Self::data_dir`] say what
    /// stands in it.
    #[must_use]
    pub fn file(mut self, path: impl Into<PathBuf>) -> Self {
        self.file = Some(path.into());
        self
    }

    /// Lines for the end of the configuration file: a table of its own (`[mqtt]`), as it is written there.
    #[must_use]
    pub fn extra(mut self, toml: &str) -> Self {
        self.extra.push_str(toml);
        self.extra.push('\n');
        self
    }

    /// A data folder of the caller's, instead of one in the node's own folder.
    #[must_use]
    pub fn data_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.data_dir = Some(path.into());
        self
    }

    /// The network namespace it runs in (root only).
    #[must_use]
    pub fn netns(mut self, name: &str) -> Self {
        self.netns = Some(name.to_owned());
        self
    }

    /// An environment variable of the process.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A command that prepares something for the process and then becomes it: it is given the process's own command line.
    #[must_use]
    pub fn through<A: AsRef<OsStr>>(mut self, command: impl IntoIterator<Item = A>) -> Self {
        self.through.extend(command.into_iter().map(|part| part.as_ref().to_owned()));
        self
    }

    /// Another file to run than [`binary`]'s, such as one for another machine [`Self::through`] an emulator.
    #[must_use]
    pub fn program(mut self, path: impl Into<PathBuf>) -> Self {
        self.program = Some(path.into());
        self
    }

    /// Writes all files into `folder` and says how to run the binary on them.
    fn write(&self, folder: &Path) -> (Launch, PathBuf) {
        let data_dir = self.data_dir.clone().unwrap_or_else(|| folder.join("data"));
        let file = self.file.clone().unwrap_or_else(|| {
            let file = folder.join(match self.role {
                Role::Edge => "edge.toml",
                Role::Cloud => "cloud.toml",
            });
            write(&folder.join("rules.sql"), &self.rules);
            write(&folder.join("edge.pass"), EDGE_PASSWORD);
            write(&file, &self.toml(&data_dir));
            file
        });
        let name = self.role.binary();
        let mut line = self.through.clone();
        line.push(self.program.clone().unwrap_or_else(|| binary(name)).into());
        let mut launch = Launch::new(name, &line[0], folder.join("output.log")).args(&line[1..]).arg("run");
        launch = if self.bare {
            launch.arg("--listen").arg(self.listen.to_string()).arg("--data-dir").arg(&data_dir)
        } else {
            launch.arg("--config").arg(&file)
        };
        if let Some(netns) = &self.netns {
            launch = launch.netns(netns);
        }
        // How a whole test run is done with several workers.
        for (asked, key) in
            [("FERRULE_TEST_WORKERS", "WORKERS"), ("FERRULE_TEST_WORKER_DELAY", "WORKER_DELAY")]
        {
            if let Some(value) = std::env::var_os(asked) {
                launch = launch.env(format!("FERRULE__{}__{key}", self.role.table().to_uppercase()), value);
            }
        }
        for (name, value) in &self.env {
            launch = launch.env(name, value);
        }
        (launch, data_dir)
    }

    fn toml(&self, data_dir: &Path) -> String {
        let mut toml = format!(
            "[{}]\nid = {:?}\ndata_dir = {:?}\nrules = \"rules.sql\"\n\n[[listener]]\nbind = \"{}\"\n",
            self.role.table(),
            self.id,
            data_dir,
            self.listen,
        );
        if self.anonymous {
            toml.push_str("anonymous = true\n");
        }
        if self.role == Role::Cloud {
            let _ = write!(
                toml,
                "\n[[user]]\nname = {EDGE_ID:?}\npassword_file = \"edge.pass\"\nrole = \"edge\"\n"
            );
        }
        if let Some(url) = &self.uplink {
            let _ = write!(
                toml,
                "\n[uplink]\nurl = {url:?}\nusername = {EDGE_ID:?}\npassword_file = \"edge.pass\"\nkeep_alive = \"5s\"\n"
            );
        }
        if !self.extra.is_empty() {
            let _ = write!(toml, "\n{}", self.extra);
        }
        toml
    }
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
}

/// A running node. Killed, and its folder removed, when dropped.
#[derive(Debug)]
pub struct Node {
    process: Process,
    folder: TempDir,
    data_dir: PathBuf,
    addr: SocketAddr,
}

impl Node {
    /// Starts a node and waits until it answers.
    ///
    /// # Panics
    /// When it does not within 20 s, or ends: with what it wrote.
    #[must_use]
    pub fn start(config: &Config) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let (launch, data_dir) = config.write(folder.path());
        let mut node = Self { process: launch.start(), folder, data_dir, addr: config.listen };
        node.wait_ready();
        node
    }

    fn wait_ready(&mut self) {
        let deadline = Instant::now() + START;
        loop {
            if let Some(status) = self.process.exited() {
                panic!("{} ended at its start ({status}):\n{}", self.process.name(), self.process.tail(40));
            }
            match self.try_status() {
                Ok(_) => return,
                Err(why) => assert!(
                    Instant::now() < deadline,
                    "{} is not ready within {START:?} ({why}):\n{}",
                    self.process.name(),
                    self.process.tail(40)
                ),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Where its MQTT listener is.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where the listener of this number is, in the order of the configuration: 0 is [`Self::addr`], the others are those of
    /// [`Config::extra`], which may have asked for port 0.
    ///
    /// # Panics
    /// When there is none, or it is no TCP port.
    #[must_use]
    pub fn listener(&self, index: usize) -> SocketAddr {
        let status = self.status();
        let bind = status["listeners"][index]["bind"].as_str();
        let addr = bind.and_then(|bind| bind.parse().ok());
        addr.unwrap_or_else(|| panic!("no TCP listener {index} in {:#}", status["listeners"]))
    }

    /// Its resident memory in bytes.
    ///
    /// # Panics
    /// When the system does not tell.
    #[must_use]
    pub fn resident(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// Of [`Self::resident`], what is its own (anonymous), in bytes; the rest are pages of its file, which the kernel may drop and read again.
    ///
    /// # Panics
    /// When the system does not tell.
    #[must_use]
    pub fn own(&self) -> u64 {
        self.memory("RssAnon:")
    }

    /// The most resident memory that it has had, in bytes.
    ///
    /// # Panics
    /// When the system does not tell.
    #[must_use]
    pub fn peak(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// What its resident memory consists of, in bytes: the program's code, its constants (unwinding tables among them), its data, stacks that the
    /// kernel made, and all else, which is anonymous.
    ///
    /// # Panics
    /// When the system does not tell.
    #[must_use]
    pub fn parts(&self) -> [(&'static str, u64); 5] {
        let path = format!("/proc/{}/smaps", self.process.pid());
        let smaps = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let mut parts = [("code", 0), ("constants", 0), ("data", 0), ("stack", 0), ("anonymous", 0)];
        let mut part = 0;
        for line in smaps.lines() {
            let mut words = line.split_ascii_whitespace();
            let (first, second) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
            if first == "Rss:" {
                parts[part].1 += second.parse::<u64>().unwrap_or(0) * 1024;
            } else if first.contains('-') {
                // A mapping's head: addresses, what is allowed, offset, device, inode, name.
                part = match words.nth(3) {
                    Some("[stack]") => 3,
                    Some(name) if name.starts_with('/') && second.contains('x') => 0,
                    Some(name) if name.starts_with('/') && second.contains('w') => 2,
                    Some(name) if name.starts_with('/') => 1,
                    _ => 4,
                };
            }
        }
        parts
    }

    fn memory(&self, name: &str) -> u64 {
        let path = format!("/proc/{}/status", self.process.pid());
        let status = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        kib.unwrap_or_else(|| panic!("no {name} in {path}")) * 1024
    }

    /// Bytes that it has caused to be written to block devices since its start: pages that it dirtied, so a page of 4 KiB that is written in
    /// part counts whole, and once however often it changes before it goes to the medium. Nothing in a folder that is kept in memory counts.
    ///
    /// # Panics
    /// When the system does not tell.
    #[must_use]
    pub fn write_bytes(&self) -> u64 {
        let path = format!("/proc/{}/io", self.process.pid());
        let io = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let line = io.lines().find_map(|line| line.strip_prefix("write_bytes:"));
        line.and_then(|line| line.trim().parse().ok()).unwrap_or_else(|| panic!("no write_bytes in {path}"))
    }

    /// Its data folder.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The folder with its configuration, rules and output.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Asks the control socket one question: a JSON object a line in, one a line out.
    ///
    /// # Errors
    /// What went wrong, in words: nobody listens, no answer within 5 s, an answer that is not JSON.
    pub fn ask(&self, question: &Value) -> Result<Value, String> {
        let path = self.data_dir.join("ferrule.sock");
        let mut socket =
            UnixStream::connect(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let timeouts = socket.set_read_timeout(Some(STATUS)).and(socket.set_write_timeout(Some(STATUS)));
        timeouts.map_err(|error| error.to_string())?;
        writeln!(socket, "{question}").map_err(|error| format!("control socket: {error}"))?;
        let mut line = String::new();
        BufReader::new(socket).read_line(&mut line).map_err(|error| format!("control socket: {error}"))?;
        serde_json::from_str(&line).map_err(|error| format!("control socket: {error} in {line:?}"))
    }

    /// Its status, or why there is none.
    ///
    /// # Errors
    /// Those of [`Self::ask`].
    pub fn try_status(&self) -> Result<Value, String> {
        self.ask(&serde_json::json!({"do": "status"}))
    }

    /// Its status.
    ///
    /// # Panics
    /// When it does not answer.
    #[must_use]
    pub fn status(&self) -> Value {
        self.try_status().unwrap_or_else(|why| panic!("{}: no status: {why}", self.process.name()))
    }

    /// Waits until its status satisfies `condition`, and returns that status.
    ///
    /// # Panics
    /// When it does not within `limit`: with the last status.
    pub fn wait_status(&self, limit: Duration, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + limit;
        loop {
            let status = self.try_status();
            if let Ok(status) = &status
                && condition(status)
            {
                return status.clone();
            }
            assert!(
                Instant::now() < deadline,
                "{}: waited {limit:?} in vain: {what}; last status: {}",
                self.process.name(),
                status.map_or_else(|why| why, |status| format!("{status:#}"))
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until nothing waits in any outbox and every entered row has its end.
    ///
    /// # Panics
    /// When that is not so within `limit`: with the last status.
    pub fn wait_drained(&self, limit: Duration) -> Value {
        self.wait_status(limit, "every outbox is empty", |status| {
            outboxes(status)
                .iter()
                .all(|outbox| count(outbox, "queued") == 0 && count(outbox, "in_flight") == 0)
        })
    }

    /// SIGKILL.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// SIGTERM and an orderly end.
    ///
    /// # Panics
    /// When it takes longer than 20 s.
    pub fn terminate(&mut self) -> ExitStatus {
        self.process.terminate(STOP)
    }

    /// The same node again, same ports and data, after [`Self::kill9`] or [`Self::terminate`] (or kills it first).
    ///
    /// # Panics
    /// When it is not ready within 20 s.
    pub fn restart(&mut self) {
        self.process.restart();
        self.wait_ready();
    }

    /// Another version's binary in the place of its own, from the next start on.
    pub fn run_instead(&mut self, program: &Path) {
        self.process.run_instead(program);
    }

    /// The same without waiting until it is ready: for a test that ends it before, or whose clients try until they are let in.
    pub fn relaunch(&mut self) {
        self.process.restart();
    }

    /// Rewrites its rules file (for the next start or reload).
    pub fn write_rules(&self, sql: &str) {
        write(&self.folder.path().join("rules.sql"), sql);
    }

    /// Rewrites its configuration file (for the next start or reload).
    ///
    /// # Panics
    /// When there is none in its folder.
    pub fn edit(&self, change: impl FnOnce(String) -> String) {
        let files = ["edge.toml", "cloud.toml"].map(|name| self.folder.path().join(name));
        let file = files.iter().find(|file| file.is_file()).expect("it runs on a file in its folder");
        let text =
            std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        write(file, &change(text));
    }

    /// Has it take its configuration over anew.
    ///
    /// # Errors
    /// The mistakes for which it did not.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn reload(&self) -> Result<Value, String> {
        let answer = self.ask(&serde_json::json!({"do": "reload"}));
        let answer = answer.unwrap_or_else(|why| panic!("{}: no reload: {why}", self.process.name()));
        match answer["error"].as_str() {
            Some(error) => Err(error.to_owned()),
            None => Ok(answer),
        }
    }

    /// SIGSTOP.
    pub fn pause(&mut self) {
        self.process.pause();
    }

    /// SIGCONT.
    pub fn resume(&mut self) {
        self.process.resume();
    }

    /// Checks that it has written no line of level WARN or ERROR: where nothing went wrong there is nothing to warn of.
    ///
    /// # Panics
    /// When it has: with those lines.
    pub fn assert_quiet_log(&self) {
        let log = self.log();
        let loud =
            |line: &&str| line.split_whitespace().take(3).any(|word| word == "WARN" || word == "ERROR");
        let lines: Vec<&str> = log.lines().filter(loud).collect();
        assert!(
            lines.is_empty(),
            "{} warned although nothing went wrong:\n{}",
            self.process.name(),
            lines.join("\n")
        );
    }

    /// All that it has written to its standard streams.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }
}

/// The outboxes in a status; empty when it names none.
#[must_use]
pub fn outboxes(status: &Value) -> &[Value] {
    status["outboxes"].as_array().map_or(&[], Vec::as_slice)
}

/// The outbox `name` in a status.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn outbox<'a>(status: &'a Value, name: &str) -> &'a Value {
    let found = outboxes(status).iter().find(|outbox| outbox["name"] == name);
    found.unwrap_or_else(|| panic!("no outbox {name} in the status {status:#}"))
}

/// A counter of a status object.
///
/// # Panics
/// When it is not there or no number: a counter that is misspelt must not read as 0.
#[must_use]
pub fn count(object: &Value, name: &str) -> u64 {
    object[name].as_u64().unwrap_or_else(|| panic!("no counter {name} in {object}"))
}

/// Whether the uplink in an edge's status is connected and accepted.
///
/// # Panics
/// When the status does not say.
#[must_use]
pub fn uplink_is_up(status: &Value) -> bool {
    let state = &status["uplink"]["state"];
    assert!(state.is_string(), "no uplink.state in {status:#}");
    state == "up"
}

/// Checks the accounting identity of every outbox: `entered + recovered = delivered + failed + in flight + queued +
/// discarded` (rows, per process life). Only meaningful on a quiet snapshot.
///
/// # Panics
/// When a row is unaccounted for.
pub fn assert_accounts(status: &Value) {
    for outbox in outboxes(status) {
        let sum = |names: &[&str]| names.iter().map(|name| count(outbox, name)).sum::<u64>();
        assert_eq!(
            sum(&["entered", "recovered"]),
            sum(&["delivered", "failed", "in_flight", "queued", "discarded"]),
            "rows unaccounted for: {outbox:#}"
        );
    }
}

/// How a run ended that was to end by itself.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// Both output streams.
    pub output: String,
}

/// Runs a binary until it ends by itself: for a start that must fail and for the short commands (`rules check`, `status`).
///
/// # Panics
/// When it has not ended within 20 s.
#[must_use]
pub fn run_to_exit(role: Role, args: &[&str]) -> Ended {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let launch =
        Launch::new(role.binary(), binary(role.binary()), folder.path().join("output.log")).args(args);
    finish(launch.start())
}

/// Starts `config` and expects it to end by itself.
///
/// # Panics
/// When it has not within 20 s.
#[must_use]
pub fn start_to_exit(config: &Config) -> Ended {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let (launch, _) = config.write(folder.path());
    finish(launch.start())
}

fn finish(mut process: Process) -> Ended {
    let status = process.wait(START);
    Ended { status, output: process.log() }
}
