//! PostgreSQL 15, as a user that is not root, with `fsync` on.
//!
//! Reading goes through `psql`: an oracle that shares no code with the client that wrote.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use super::INSTALL;
use crate::proc::{Launch, Process, children, output, send_signal};
use crate::{is_root, port};

/// Debian's folder of the server's programs; they are not on the PATH.
const BIN: &str = "/usr/lib/postgresql/15/bin";
/// The database's user and database, made by `initdb`.
const USER: &str = "postgres";

/// A running server. Killed, and its folder removed, when dropped.
#[derive(Debug)]
pub struct Postgres {
    process: Process,
    /// Owns the data folder.
    _folder: TempDir,
    port: u16,
}

impl Postgres {
    /// Makes an empty cluster and starts a server on it.
    ///
    /// # Panics
    /// When it does not serve within 30 s, or PostgreSQL is not installed.
    #[must_use]
    pub fn start() -> Self {
        Self::start_at(&[])
    }

    /// The same, also for everyone in the /24 of each of these addresses of the machine.
    ///
    /// # Panics
    /// As [`Self::start`].
    #[must_use]
    pub fn start_at(also: &[IpAddr]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let log = folder.path().join("output.log");
        let data = folder.path().join("data");
        let port = port::free();
        if is_root() {
            // The server refuses to run as root, and wants a folder of its own user's.
            output(Command::new("chown").arg(USER).arg(folder.path()));
        }
        let run = |name: &str, program: &str| {
            let path = PathBuf::from(BIN).join(program);
            assert!(path.exists(), "{} is not there: {INSTALL}", path.display());
            let launch = Launch::new(name, path, &log).arg("-D").arg(&data);
            if is_root() { launch.user(USER) } else { launch }
        };
        let mut initdb = run("initdb", "initdb")
            .args(["-U", USER, "-A", "trust", "-E", "UTF8", "--locale", "C", "--no-sync"])
            .start();
        assert!(initdb.wait(Duration::from_secs(60)).success(), "initdb failed:\n{}", initdb.tail(20));
        let port_text = port.to_string();
        let mut listen = "listen_addresses=127.0.0.1".to_owned();
        let path = data.join("pg_hba.conf");
        let mut rules = std::fs::read_to_string(&path).expect("initdb makes it");
        for addr in also {
            let _ = write!(listen, ",{addr}");
            let _ = writeln!(rules, "host all all {addr}/24 trust");
        }
        std::fs::write(&path, rules).expect("it can be written");
        let process = run("postgres", "postgres")
            .args(["-p", &port_text, "-c", &listen, "-c", "unix_socket_directories="])
            // Off, so that rows stay where they were inserted; and small, for many servers on one machine.
            .args(["-c", "autovacuum=off", "-c", "shared_buffers=32MB", "-c", "max_connections=50"])
            .start();
        let mut postgres = Self { process, _folder: folder, port };
        postgres.wait_ready();
        postgres
    }

    /// Until it answers a query: a server in recovery already accepts connections. A start right after a kill -9 may end
    /// at once because the old server's last process still holds the shared memory; then it is started again.
    fn wait_ready(&mut self) {
        let end = std::time::Instant::now() + Duration::from_secs(30);
        while self.try_query("select 1").is_none() {
            assert!(std::time::Instant::now() < end, "postgres is not ready:\n{}", self.process.tail(20));
            if self.process.exited().is_some() {
                self.process.restart();
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The connection's URL, for `url = '...'`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgres://{USER}@127.0.0.1:{}/postgres", self.port)
    }

    /// The same at another address, one of [`Self::start_at`]'s.
    #[must_use]
    pub fn url_at(&self, addr: SocketAddr) -> String {
        format!("postgres://{USER}@{addr}/postgres")
    }

    /// The port that it listens at, on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Runs SQL and returns its rows: columns separated by `|`, one row a line.
    ///
    /// # Panics
    /// When it fails.
    #[must_use]
    pub fn query(&self, sql: &str) -> Vec<String> {
        output(&mut self.psql(sql)).lines().map(str::to_owned).collect()
    }

    /// Runs SQL for its effect.
    ///
    /// # Panics
    /// When it fails.
    pub fn execute(&self, sql: &str) {
        output(&mut self.psql(sql));
    }

    /// As [`Self::query`]; None when the server does not answer or the query fails.
    #[must_use]
    pub fn try_query(&self, sql: &str) -> Option<Vec<String>> {
        let output = self.psql(sql).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout);
        output.status.success().then(|| text.lines().map(str::to_owned).collect())
    }

    fn psql(&self, sql: &str) -> Command {
        let mut command = Command::new("psql");
        command.env("PGCONNECT_TIMEOUT", "5").env("PGOPTIONS", "-c client_min_messages=warning").args([
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            &self.url(),
            "-c",
            sql,
        ]);
        command
    }

    /// SIGKILL to the whole server, as the kernel's memory killer or a power switch would: the postmaster first, so that
    /// it cannot start recovery by itself, then its backends.
    pub fn kill9(&mut self) {
        let backends = children(self.process.pid());
        self.process.kill9();
        for pid in backends {
            if std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.starts_with(BIN)) {
                let _ = Command::new("sh")
                    .args(["-c", "kill -s KILL \"$0\" 2>/dev/null", &pid.to_string()])
                    .status();
            }
        }
    }

    /// What `pg_ctl stop -m immediate` does: no checkpoint, connections just end, and the next start recovers.
    ///
    /// # Panics
    /// When it takes longer than 10 s.
    pub fn stop_immediately(&mut self) {
        self.process.signal("QUIT");
        self.process.wait(Duration::from_secs(10));
    }

    /// The same server again, same port and data; kills it first if it runs.
    ///
    /// # Panics
    /// When it does not serve within 30 s.
    pub fn restart(&mut self) {
        self.kill9();
        self.process.restart();
        self.wait_ready();
    }

    /// SIGSTOP to the server and its backends: connections stay, queries hang.
    pub fn pause(&mut self) {
        let postmaster = self.process.pid();
        self.process.pause();
        for pid in children(postmaster) {
            send_signal("STOP", pid);
        }
    }

    /// SIGCONT.
    pub fn resume(&mut self) {
        for pid in children(self.process.pid()) {
            send_signal("CONT", pid);
        }
        self.process.resume();
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.kill9();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn committed_rows_survive_a_kill_and_a_pause() {
        let mut postgres = Postgres::start();
        assert_eq!(postgres.query("show fsync"), ["on"]);
        postgres.execute("create table t(id bigserial, x text); insert into t(x) values ('a'), ('b')");
        postgres.kill9();
        assert!(postgres.try_query("select 1").is_none());
        postgres.restart();
        assert_eq!(postgres.query("select id, x from t order by id"), ["1|a", "2|b"]);
        postgres.stop_immediately();
        assert!(postgres.try_query("select 1").is_none());
        postgres.restart();
        postgres.pause();
        postgres.resume();
        assert_eq!(postgres.query("select count(*) from t"), ["2"]);
    }
}
