//! mosquitto: a broker that is not ours, for uplinks and bridges to meet.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use tempfile::TempDir;

use super::INSTALL;
use crate::port;
use crate::proc::{Launch, Process};

/// A running broker. Killed, and its folder removed, when dropped.
#[derive(Debug)]
pub struct Mosquitto {
    process: Process,
    _folder: TempDir,
    addr: SocketAddr,
}

impl Mosquitto {
    /// Starts one on a free port of 127.0.0.1, open to everyone, its sessions kept on disk.
    ///
    /// # Panics
    /// When it does not listen within 10 s, or is not installed.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// The same with more lines of configuration (a bridge).
    ///
    /// # Panics
    /// As [`Self::start`].
    #[must_use]
    pub fn start_with(extra: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let addr = port::free_addr();
        let conf = folder.path().join("mosquitto.conf");
        // As root it would become the user `mosquitto`, who may not read the temporary folder.
        let user = if crate::is_root() { "user root\n" } else { "" };
        let text = format!(
            "{user}listener {} 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location {}/\nautosave_interval 1\nautosave_on_changes true\nmax_queued_messages 0\n{extra}\n",
            addr.port(),
            folder.path().display()
        );
        std::fs::write(&conf, text).expect("the temporary folder can be written");
        let program = ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto"]
            .into_iter()
            .find(|path| std::path::Path::new(path).exists())
            .unwrap_or_else(|| panic!("mosquitto is not there: {INSTALL}"));
        let process =
            Launch::new("mosquitto", program, folder.path().join("output.log")).arg("-c").arg(&conf).start();
        let mut mosquitto = Self { process, _folder: folder, addr };
        mosquitto.wait_ready();
        mosquitto
    }

    fn wait_ready(&mut self) {
        crate::until(Duration::from_secs(10), "mosquitto listens", || {
            assert!(self.process.exited().is_none(), "mosquitto ended:\n{}", self.process.tail(20));
            TcpStream::connect(self.addr).ok()
        });
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// SIGKILL.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// SIGTERM: it saves its sessions.
    ///
    /// # Panics
    /// When it takes longer than 10 s.
    pub fn terminate(&mut self) {
        self.process.terminate(Duration::from_secs(10));
    }

    /// The same broker again.
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
