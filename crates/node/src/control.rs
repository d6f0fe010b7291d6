//! The control socket: `DATA_DIR/ferrule.sock`, one JSON object a line in, one a line out.
//!
//! # Design
//!
//! - [`DataDirLock`] is taken before anything in the data folder is opened: one process a folder. It is a `flock`, so it
//!   ends with the process however that ends. Who holds it may replace a socket file that is lying there.
//! - Only the user that runs Ferrule, and root, are served: mode 0600, and the peer's user id is checked, because the
//!   mode is set after the file is there.
//! - Everything is bounded: connections ([`CONNECTIONS_MAX`]; the next one waits to be accepted), the length of a line
//!   ([`LINE_BYTES_MAX`]), the time a client may be idle or slow ([`IDLE_MAX`]). Garbage is answered and closed.
//! - A path over 107 bytes does not fit a socket's address; the folder is then named through `/proc/self/fd`.

mod status;

pub use status::{
    CertificateStatus, ClusterStatus, DrainStatus, ListenerStatus, MemberStatus, OutboxStatus, ReloadStatus,
    RuleStatus, Status, StoreStatus, UplinkStatus,
};

use serde_json::{Value, json};
use std::fs::{File, OpenOptions, TryLockError};
use std::future::Future;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// The socket's name in the data folder.
pub const SOCKET_NAME: &str = "ferrule.sock";

/// The lock's name in the data folder.
pub const LOCK_NAME: &str = "ferrule.lock";

/// Connections served at a time: a few terminals and a live view.
pub const CONNECTIONS_MAX: usize = 16;

/// The longest request, in bytes with its line end.
pub const LINE_BYTES_MAX: u64 = 64 << 10;

/// How long a client may take over a request or an answer.
pub const IDLE_MAX: Duration = Duration::from_secs(60);

/// The longest answer that [`ask`] reads, in bytes.
const ANSWER_BYTES_MAX: u64 = 256 << 20;

/// How long [`ask`] waits for an answer: dumps read the store in steps.
const ASK_MAX: Duration = Duration::from_secs(30);

/// The longest path in a socket's address: 108 bytes with a NUL at the end.
const SOCKET_PATH_MAX: usize = 107;

/// The right to a data folder, until dropped or until the process ends.
#[derive(Debug)]
pub struct DataDirLock {
    data_dir: PathBuf,
    /// Holds the lock.
    _file: File,
}

/// Why a data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Another process has it.
    #[error("another ferrule is running on this data folder ({})", .0.display())]
    InUse(PathBuf),
    /// The system refuses.
    #[error("cannot {what} {}: {error}", .path.display())]
    Io {
        /// In "cannot ...".
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
}

/// The listening socket. Dropping it removes the file.
#[derive(Debug)]
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
    /// Whom it serves, beside root.
    uid: u32,
}

/// Why [`ask`] has no answer, for people to read.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error("no ferrule runs on {}: start it with `{program} run`", .data_dir.display())]
    NotRunning {
        /// The data folder asked about.
        data_dir: PathBuf,
        /// The binary to start.
        program: &'static str,
    },
    /// The socket is another user's.
    #[error("may not ask the ferrule on {}: do it as the user that runs it, or as root", .0.display())]
    NotAllowed(PathBuf),
    /// It answered with an error.
    #[error("{0}")]
    Refused(String),
    /// The connection failed.
    #[error("cannot ask the ferrule on {}: {error}", .data_dir.display())]
    Io {
        /// The data folder asked about.
        data_dir: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
}

// === impl DataDirLock ===

impl DataDirLock {
    /// Takes the folder, which is made when it is not there.
    ///
    /// # Errors
    /// [`ControlError::InUse`] when another process has it.
    pub fn take(data_dir: &Path) -> Result<Self, ControlError> {
        std::fs::create_dir_all(data_dir).map_err(|e| failed("make the data folder", data_dir, e))?;
        let path = data_dir.join(LOCK_NAME);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|e| failed("open", &path, e))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { data_dir: data_dir.to_owned(), _file: file }),
            Err(TryLockError::WouldBlock) => Err(ControlError::InUse(data_dir.to_owned())),
            Err(TryLockError::Error(e)) => Err(failed("lock", &path, e)),
        }
    }

    /// The folder.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }
}

fn failed(what: &'static str, path: &Path, error: io::Error) -> ControlError {
    ControlError::Io { what, path: path.to_owned(), error }
}

// === impl Control ===

impl Control {
    /// Listens in a folder that the caller has the right to. Needs a tokio runtime with I/O.
    ///
    /// # Errors
    /// When the system refuses, or somebody without the lock listens there.
    pub fn bind(lock: &DataDirLock) -> Result<Self, ControlError> {
        let path = lock.data_dir.join(SOCKET_NAME);
        let (address, _folder) = address(&lock.data_dir).map_err(|e| failed("listen on", &path, e))?;
        if StdStream::connect(&address).is_ok() {
            return Err(ControlError::InUse(lock.data_dir.clone()));
        }
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("replace", &path, e)),
            _ => {}
        }
        let listener = StdListener::bind(&address).map_err(|e| failed("listen on", &path, e))?;
        let rest = || {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
            listener.set_nonblocking(true)?;
            Ok((std::fs::metadata(&path)?.uid(), UnixListener::from_std(listener)?))
        };
        let (uid, listener) = rest().map_err(|e| failed("listen on", &path, e))?;
        Ok(Self { listener, path, uid })
    }

    /// Serves until dropped. Each request is an object; what `handler` returns is sent: an object, or the text of
    /// `{"error": ...}`. Requests of one connection are handled one after the other, those of several at once.
    ///
    /// Ends when `stop` says so, with the answers under way given. Cancellation ends all connections, in the middle of an answer if need be.
    pub async fn serve<H, F>(self, handler: H, mut stop: watch::Receiver<bool>)
    where
        H: Fn(Value) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Value, String>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut connections = JoinSet::new();
        loop {
            // Ended ones give their memory back.
            while connections.try_join_next().is_some() {}
            let accepted = async {
                let permit = Arc::clone(&permits).acquire_owned().await.ok()?;
                Some((permit, self.listener.accept().await))
            };
            let (permit, accepted) = tokio::select! {
                Some(accepted) = accepted => accepted,
                () = stops(&mut stop) => break,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "control socket: cannot accept");
                    // Out of file descriptors: the next try would fail at once, and this loop would spin.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            if !self.may_ask(&stream) {
                continue;
            }
            let (handler, stop) = (Arc::clone(&handler), stop.clone());
            connections.spawn(async move {
                // The peer went away or is too slow: nobody is left to tell.
                let _ = converse(stream, &*handler, stop).await;
                drop(permit);
            });
        }
        while connections.join_next().await.is_some() {}
    }

    fn may_ask(&self, stream: &UnixStream) -> bool {
        match stream.peer_cred() {
            Ok(peer) if peer.uid() == self.uid || peer.uid() == 0 => true,
            Ok(peer) => {
                tracing::warn!(uid = peer.uid(), "control socket: refused another user");
                false
            }
            Err(_) => false,
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // If it is gone already, so much the better.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Until that is asked for; for ever where nobody is left who could.
async fn stops(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending().await
    }
}

/// One connection, to its end, or to that of an answer after which it stops.
async fn converse<H, F>(stream: UnixStream, handler: &H, mut stop: watch::Receiver<bool>) -> io::Result<()>
where
    H: Fn(Value) -> F,
    F: Future<Output = Result<Value, String>>,
{
    let (read, mut write) = stream.into_split();
    let mut read = tokio::io::BufReader::new(read);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut bounded = (&mut read).take(LINE_BYTES_MAX);
        tokio::select! {
            read = timeout(IDLE_MAX, bounded.read_until(b'\n', &mut line)) => drop(read??),
            () = stops(&mut stop) => return Ok(()),
        }
        if line.is_empty() {
            return Ok(());
        }
        let request = match line.last() {
            Some(b'\n') => parse(&line),
            _ if line.len() as u64 == LINE_BYTES_MAX => {
                Err(format!("a request is one line of at most {LINE_BYTES_MAX} bytes"))
            }
            // The end of the stream ends a line too.
            _ => parse(&line),
        };
        let is_garbage = request.is_err();
        let answer = match request {
            Ok(request) => handler(request).await,
            Err(error) => Err(error),
        };
        let mut answer = match answer {
            Ok(answer) => answer.to_string(),
            Err(error) => json!({ "error": error }).to_string(),
        };
        answer.push('\n');
        timeout(IDLE_MAX, write.write_all(answer.as_bytes())).await??;
        if is_garbage {
            // Unread input would turn the close into a reset, and the answer might be lost.
            let _ = timeout(
                Duration::from_secs(1),
                tokio::io::copy(&mut read.take(1 << 20), &mut tokio::io::sink()),
            )
            .await;
            return Ok(());
        }
    }
}

/// serde_json bounds the nesting.
fn parse(line: &[u8]) -> Result<Value, String> {
    match serde_json::from_slice::<Value>(line) {
        Ok(request) if request.is_object() => Ok(request),
        Ok(_) => Err("a request is a JSON object like {\"do\":\"status\"}".to_owned()),
        Err(error) => Err(format!("a request is a JSON object like {{\"do\":\"status\"}}: {error}")),
    }
}

/// The path to bind or connect to, and what keeps it valid.
fn address(data_dir: &Path) -> io::Result<(PathBuf, Option<File>)> {
    let path = data_dir.join(SOCKET_NAME);
    if path.as_os_str().len() <= SOCKET_PATH_MAX {
        return Ok((path, None));
    }
    let folder = File::open(data_dir)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
    if !path.exists() {
        let message =
            format!("its path is longer than {SOCKET_PATH_MAX} bytes, and /proc is not there to shorten it");
        return Err(io::Error::other(message));
    }
    Ok((path.join(SOCKET_NAME), Some(folder)))
}

/// Asks the process that runs on `data_dir`. `program` is the binary that a hint names. Blocks for at most 30 s.
///
/// # Errors
/// See [`AskError`]; an answer `{"error": ...}` is one.
pub fn ask(data_dir: &Path, program: &'static str, request: &Value) -> Result<Value, AskError> {
    let wrap = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            AskError::NotRunning { data_dir: data_dir.to_owned(), program }
        }
        io::ErrorKind::PermissionDenied => AskError::NotAllowed(data_dir.to_owned()),
        _ => AskError::Io { data_dir: data_dir.to_owned(), error },
    };
    let (address, _folder) = address(data_dir).map_err(wrap)?;
    let mut stream = StdStream::connect(address).map_err(wrap)?;
    let mut exchange = || -> io::Result<Value> {
        stream.set_read_timeout(Some(ASK_MAX))?;
        stream.set_write_timeout(Some(ASK_MAX))?;
        stream.write_all(format!("{request}\n").as_bytes())?;
        let mut line = String::new();
        io::Read::take(BufReader::new(&stream), ANSWER_BYTES_MAX).read_line(&mut line)?;
        if line.is_empty() {
            return Err(io::Error::other("it closed the connection without an answer"));
        }
        serde_json::from_str(&line).map_err(io::Error::other)
    };
    let answer = exchange().map_err(|error| AskError::Io { data_dir: data_dir.to_owned(), error })?;
    match answer.get("error").and_then(Value::as_str) {
        Some(error) => Err(AskError::Refused(error.to_owned())),
        None => Ok(answer),
    }
}

#[cfg(test)]
mod tests;
