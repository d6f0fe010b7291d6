//! Edge and cloud as processes: started from the files in `examples/demo`, asked over their control sockets.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ferrule_testkit::proc::{Launch, Process};
use serde_json::Value;

use crate::demo::DemoError;

/// How long a start may take.
const START: Duration = Duration::from_secs(20);
/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(2);
/// How long an orderly stop may take.
const STOP: Duration = Duration::from_secs(5);

/// A running node. Killed when dropped, or when this process ends.
#[derive(Debug)]
pub struct Node {
    name: &'static str,
    process: Process,
    socket: PathBuf,
}

/// The released binary `name`: beside this program, or in `$FERRULE_BIN_DIR`.
///
/// # Errors
/// When it is not built: with what to type.
pub fn binary(name: &str) -> Result<PathBuf, DemoError> {
    let folder = match std::env::var_os("FERRULE_BIN_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => {
            let own = std::env::current_exe().map_err(|error| DemoError::new("find this program", error))?;
            own.parent().unwrap_or(Path::new(".")).to_owned()
        }
    };
    let path = folder.join(name);
    if path.is_file() { Ok(path) } else { Err(DemoError::NotBuilt(path)) }
}

impl Node {
    /// Starts `name` with a configuration file, keys of which `overrides` replaces, and waits until it answers.
    ///
    /// # Errors
    /// When it ends or does not answer within 20 s: with its last words.
    pub fn start(
        name: &'static str,
        config: &Path,
        data_dir: &Path,
        overrides: &[(&str, &str)],
        log: &Path,
    ) -> Result<Self, DemoError> {
        // setsid: a Ctrl-C on the terminal is for the demo, which then ends in order; its children must still serve.
        let mut launch =
            Launch::new(name, "setsid", log).arg(binary(name)?).args(["run", "--config"]).arg(config);
        for (key, value) in overrides {
            launch = launch.env(key, value);
        }
        let mut node = Self { name, process: launch.start(), socket: data_dir.join("ferrule.sock") };
        let deadline = Instant::now() + START;
        while node.status().is_none() {
            node.check()?;
            if Instant::now() > deadline {
                return Err(node.dead("does not answer"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(node)
    }

    /// # Errors
    /// When it has ended: with its last words.
    pub fn check(&mut self) -> Result<(), DemoError> {
        match self.process.exited() {
            Some(status) => Err(self.dead(&format!("has ended ({status})"))),
            None => Ok(()),
        }
    }

    fn dead(&self, what: &str) -> DemoError {
        DemoError::Node { name: self.name, what: what.to_owned(), said: self.process.tail(20) }
    }

    /// Its status, `None` when it does not answer in time.
    #[must_use]
    pub fn status(&self) -> Option<Value> {
        let mut socket = UnixStream::connect(&self.socket).ok()?;
        socket.set_read_timeout(Some(ANSWER)).ok()?;
        socket.write_all(b"{\"do\":\"status\"}\n").ok()?;
        let mut line = String::new();
        BufReader::new(socket).read_line(&mut line).ok()?;
        serde_json::from_str(&line).ok()
    }

    /// SIGTERM, and SIGKILL when that is not enough.
    pub fn stop(mut self) {
        self.process.signal("TERM");
        let deadline = Instant::now() + STOP;
        while self.process.exited().is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// One outbox of a status.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outbox {
    /// Its name: `cloud`, or the sink's.
    pub name: String,
    /// Rows that came in since the process began.
    pub entered: u64,
    /// Rows found on disk at its start.
    pub recovered: u64,
    /// Rows that the destination has acknowledged.
    pub delivered: u64,
    /// Rows given up after an error, and by choice.
    pub failed: u64,
    /// See `failed`.
    pub discarded: u64,
    /// Rows sent and not acknowledged.
    pub in_flight: u64,
    /// Rows not sent yet.
    pub queued: u64,
    /// Rows on this node's disk.
    pub stored: u64,
    /// `up` or `down`.
    pub state: String,
    /// What the destination said last.
    pub last_error: Option<String>,
}

/// The outboxes of a status.
#[must_use]
pub fn outboxes(status: &Value) -> Vec<Outbox> {
    let list = status["outboxes"].as_array().map_or(&[][..], Vec::as_slice);
    list.iter()
        .map(|outbox| {
            let number = |name: &str| outbox[name].as_u64().unwrap_or_default();
            let text = |name: &str| outbox[name].as_str().map(str::to_owned);
            Outbox {
                name: text("name").unwrap_or_default(),
                entered: number("entered"),
                recovered: number("recovered"),
                delivered: number("delivered"),
                failed: number("failed"),
                discarded: number("discarded"),
                in_flight: number("in_flight"),
                queued: number("queued"),
                stored: number("stored"),
                state: text("state").unwrap_or_default(),
                last_error: text("last_error"),
            }
        })
        .collect()
}

/// Whether nothing waits in any outbox of a status.
#[must_use]
pub fn is_empty(status: &Value) -> bool {
    outboxes(status).iter().all(|outbox| outbox.in_flight == 0 && outbox.queued == 0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_status_is_read() {
        let status = json!({"role": "edge", "outboxes": [
            {"name": "cloud", "entered": 5, "recovered": 0, "delivered": 3, "failed": 0, "in_flight": 1, "queued": 1,
             "discarded": 0, "stored": 2, "state": "down", "last_error": "refused"}]});
        let all = outboxes(&status);
        assert_eq!(all.len(), 1);
        assert_eq!((all[0].name.as_str(), all[0].entered, all[0].stored), ("cloud", 5, 2));
        assert_eq!(all[0].last_error.as_deref(), Some("refused"));
        assert!(!is_empty(&status));
        assert!(is_empty(&json!({"outboxes": [{"name": "x", "in_flight": 0, "queued": 0}]})));
        assert_eq!(outboxes(&json!({"outboxes": "?"})), []);
    }

    #[test]
    fn a_missing_binary_says_what_to_type() {
        let error = binary("ferrule-nothing").map_err(|error| error.to_string());
        assert!(error.as_ref().is_err_and(|text| text.contains("make demo")), "{error:?}");
    }
}
