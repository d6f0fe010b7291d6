//! A real browser: Chromium without a window, on a page with MQTT.js and a script of the test's.
//!
//! The page and its scripts come from a small HTTP server in this process. What the script POSTs to `/say`, a line each, is what the test
//! waits for; `failed` at its beginning ends the test. Whether a server's certificate is good is decided by Chromium itself: it is told
//! of the authority, and of nothing to pass over.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tempfile::TempDir;

use super::{INSTALL, client};
use crate::Certs;
use crate::proc::{Launch, Process, output};

/// The longest request taken.
const REQUEST_MAX: u64 = 64 * 1024;
/// How long a request may take to come.
const REQUEST: Duration = Duration::from_secs(10);

const PAGE: &str = "<!doctype html><meta charset=utf-8><title>MQTT.js</title><script src=/mqtt.min.js></script>\
    <script src=/test.js></script>";

/// A running browser. Killed with all of its processes, and its folder removed, when dropped.
#[derive(Debug)]
pub struct Browser {
    process: Process,
    server: Server,
    _folder: TempDir,
}

impl Browser {
    /// Opens the page with `script`, which finds `query` in `location.search`. Servers' certificates are good if they are of `certs`.
    ///
    /// # Panics
    /// When Chromium, certutil or MQTT.js are not installed.
    #[must_use]
    pub fn open(script: &Path, query: &str, certs: &Certs) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let read = |path: &Path| {
            std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        let server = Server::start([
            ("/", "text/html", PAGE.to_owned()),
            (
                "/mqtt.min.js",
                "text/javascript",
                read(&client("mqttjs", "node_modules/mqtt/dist/mqtt.min.js")),
            ),
            ("/test.js", "text/javascript", read(script)),
        ]);
        let program = Path::new("/usr/bin/chromium");
        assert!(program.exists(), "{} is not there: {INSTALL}", program.display());
        trust(folder.path(), certs);
        let process = Launch::new("chromium", program, folder.path().join("output.log"))
            .with_children()
            .env("HOME", folder.path())
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--disable-dev-shm-usage",
            ])
            // It would otherwise look for its maker's servers at every start.
            .args(["--no-first-run", "--disable-background-networking", "--disable-component-update"])
            .args(["--disable-sync", "--no-default-browser-check", "--disable-extensions"])
            .arg(format!("--user-data-dir={}", folder.path().join("profile").display()))
            .arg(format!("http://{}/?{query}", server.addr))
            .start();
        Self { process, server, _folder: folder }
    }

    /// Waits until the script has said `line`.
    ///
    /// # Panics
    /// When it has not within `limit`, has said that it failed, or the browser has ended: with all that was said.
    pub fn wait_said(&mut self, limit: Duration, line: &str) {
        crate::until(limit, &format!("the page says {line:?}"), || {
            let said = self.said();
            assert!(self.process.exited().is_none(), "the browser ended; the page had said {said:?}");
            let failed = said.iter().find(|line| line.starts_with("failed"));
            assert!(failed.is_none(), "the page {}; before it {said:?}", failed.map_or("", String::as_str));
            said.iter().any(|each| each == line).then_some(())
        });
    }

    /// What the script has said so far.
    #[must_use]
    pub fn said(&self) -> Vec<String> {
        self.server.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What Chromium itself has written.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- the page has said ----\n{}\n----", self.said().join("\n"));
        }
        // It writes into the folder until it has ended.
        self.process.kill9();
    }
}

/// Makes the database in `home` where Chromium looks for authorities, with that of `certs` in it.
fn trust(home: &Path, certs: &Certs) {
    let database = home.join(".pki/nssdb");
    std::fs::create_dir_all(&database).expect("the temporary folder can be written");
    let database = format!("sql:{}", database.display());
    output(Command::new("certutil").args(["-N", "--empty-password", "-d", &database]));
    let add = ["-A", "-n", "ferrule", "-t", "C,,", "-d", &database, "-i"];
    output(Command::new("certutil").args(add).arg(certs.path("ca.crt")));
}

/// An HTTP server for one page; ends when dropped.
#[derive(Debug)]
struct Server {
    addr: SocketAddr,
    said: Arc<Mutex<Vec<String>>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves these: path, type, content.
    fn start<const N: usize>(files: [(&'static str, &'static str, String); N]) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("there is a free port");
        let addr = listener.local_addr().expect("a bound socket has an address");
        let (said, ended) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let thread = {
            let (said, ended) = (Arc::clone(&said), Arc::clone(&ended));
            std::thread::spawn(move || {
                // One request after the other: lines stay in the order in which they were said.
                for socket in listener.incoming().flatten() {
                    if ended.load(Ordering::Relaxed) {
                        return;
                    }
                    // A connection that the browser opens beforehand and does not use fails here: nobody's loss.
                    let _ = answer(socket, &files, &said);
                }
            })
        };
        Self { addr, said, ended, thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.addr); // wakes it
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Takes one request and answers it.
fn answer(
    mut socket: TcpStream,
    files: &[(&'static str, &'static str, String)],
    said: &Mutex<Vec<String>>,
) -> io::Result<()> {
    socket.set_read_timeout(Some(REQUEST))?;
    let mut reader = BufReader::new(socket.try_clone()?.take(REQUEST_MAX));
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut len = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            len = value.trim().parse().unwrap_or(0);
        }
    }
    let path = request.split([' ', '?']).nth(1).unwrap_or_default();
    let (status, kind, content) = if request.starts_with("POST /say ") {
        let mut line = vec![0; len];
        reader.read_exact(&mut line)?;
        let line = String::from_utf8_lossy(&line).into_owned();
        said.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        ("204 No Content", "text/plain", "")
    } else {
        match files.iter().find(|(known, ..)| *known == path) {
            Some((_, kind, content)) => ("200 OK", *kind, content.as_str()),
            None => ("404 Not Found", "text/plain", ""),
        }
    };
    write!(
        socket,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{content}",
        content.len()
    )
}
