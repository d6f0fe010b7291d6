//! An HTTP server that is not ours, for sinks to meet: Python's, which answers as it is told and writes down what it was
//! sent.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::{python, scripts};
use crate::port;
use crate::proc::{Launch, Process};

/// A running server. Killed, and its folder removed, when dropped.
#[derive(Debug)]
pub struct HttpServer {
    process: Process,
    folder: TempDir,
    addr: SocketAddr,
}

impl HttpServer {
    /// Starts one on a free port of 127.0.0.1, with a certificate and its key if it is to speak TLS.
    ///
    /// # Panics
    /// When it does not listen within 10 s, or Python is not installed.
    #[must_use]
    pub fn start(tls: Option<(&Path, &Path)>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let addr = port::free_addr();
        let launch = Launch::new("http_sink", python(), folder.path().join("output.log"))
            .arg(scripts().join("http_sink.py"))
            .arg(addr.port().to_string())
            .arg(folder.path());
        let launch = match tls {
            Some((certificate, key)) => launch.arg(certificate).arg(key),
            None => launch,
        };
        let mut server = Self { process: launch.start(), folder, addr };
        server.wait_ready();
        server
    }

    fn wait_ready(&mut self) {
        crate::until(Duration::from_secs(10), "the HTTP server listens", || {
            assert!(self.process.exited().is_none(), "the HTTP server ended:\n{}", self.process.tail(20));
            TcpStream::connect(self.addr).ok()
        });
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// How it answers from now on: the entries of `answers.json`, as `tests/servers/http_sink.py` has them.
    ///
    /// # Panics
    /// When its folder cannot be written.
    pub fn answer(&self, entries: &Value) {
        let unfinished = self.folder.path().join("answers.json.tmp");
        std::fs::write(&unfinished, entries.to_string()).expect("the folder can be written");
        std::fs::rename(&unfinished, self.folder.path().join("answers.json")).expect("a file can be renamed");
    }

    /// All requests so far.
    ///
    /// # Panics
    /// When what it wrote down cannot be read.
    #[must_use]
    pub fn requests(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.folder.path().join("requests.jsonl")).unwrap_or_default();
        // The last line may be in the middle of being written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
    }

    /// Bodies of the requests that were answered by 2xx.
    #[must_use]
    pub fn taken(&self) -> Vec<String> {
        let good = |request: &Value| request["status"].as_u64().is_some_and(|s| (200..300).contains(&s));
        let body = |request: Value| request["body"].as_str().unwrap_or_default().to_owned();
        self.requests().into_iter().filter(good).map(body).collect()
    }

    /// SIGKILL.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// The same server again.
    ///
    /// # Panics
    /// When it does not listen within 10 s.
    pub fn restart(&mut self) {
        self.process.restart();
        self.wait_ready();
    }

    /// SIGSTOP.
    pub fn pause(&mut self) {
        self.process.pause();
    }

    /// SIGCONT.
    pub fn resume(&mut self) {
        self.process.resume();
    }
}
