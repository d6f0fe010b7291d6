//! RMQTT's broker: another one that is not ours, written in Rust by others, for uplinks to meet.
//!
//! Its build takes half an hour, so it is there only after `make peers`.

use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::port;
use crate::proc::{Launch, Process};

/// A running broker. Killed, and its folder removed, when dropped.
#[derive(Debug)]
pub struct Rmqttd {
    process: Process,
    _folder: TempDir,
    addr: SocketAddr,
}

impl Rmqttd {
    /// Where its program is, or what to type to have it.
    ///
    /// # Errors
    /// When it is not built.
    ///
    /// # Panics
    /// When the script that knows cannot be run.
    pub fn program() -> Result<PathBuf, String> {
        let script = super::scripts().join("rmqttd.sh");
        let said = Command::new(&script)
            .arg("--find")
            .output()
            .unwrap_or_else(|error| panic!("{}: {error}", script.display()));
        match said.status.success() {
            true => Ok(PathBuf::from(String::from_utf8_lossy(&said.stdout).trim())),
            false => Err(String::from_utf8_lossy(&said.stderr).trim().to_owned()),
        }
    }

    /// Starts one on a free port of 127.0.0.1, open to everyone, its sessions kept on disk.
    ///
    /// # Panics
    /// When it does not listen within 30 s, or is not built.
    #[must_use]
    pub fn start() -> Self {
        let program = Self::program().unwrap_or_else(|error| panic!("{error}"));
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let addr = port::free_addr();
        let path = |name: &str| folder.path().join(name);
        // Its nodes' own port would be 5363 of every address, and its HTTP interface 6060. The rate at which a queue empties is
        // limited by default.
        let conf = format!(
            "[node]\nid = 1\nbusy.check_enable = false\n[rpc]\nserver_addr = \"127.0.0.1:0\"\n[log]\nto = \"console\"\nlevel = \"info\"\n\
             [plugins]\ndir = {plugins:?}\ndefault_startups = [\"rmqtt-session-storage\", \"rmqtt-retainer\"]\n\
             disabled_default_startups = [\"rmqtt-http-api\"]\n\
             [listener.tcp.external]\naddr = \"{addr}\"\nallow_anonymous = true\nmax_mqueue_len = 100000\n\
             max_session_expiry_interval = \"0s\"\nmax_topic_aliases = 32\n",
            plugins = path("plugins").display().to_string(),
        );
        let sessions = format!(
            "[storage]\ntype = \"sled\"\nsled.path = {:?}\nsled.cache_capacity = \"16M\"\n",
            path("sessions").display().to_string()
        );
        std::fs::create_dir(path("plugins")).expect("the temporary folder can be written");
        for (name, text) in [
            ("rmqtt.toml", conf.as_str()),
            ("plugins/rmqtt-session-storage.toml", &sessions),
            ("plugins/rmqtt-retainer.toml", "[storage]\ntype = \"ram\"\n"),
        ] {
            std::fs::write(path(name), text).expect("the temporary folder can be written");
        }
        let process = Launch::new("rmqttd", program, path("output.log"))
            .arg("--config")
            .arg(path("rmqtt.toml"))
            .start();
        let mut rmqttd = Self { process, _folder: folder, addr };
        rmqttd.wait_ready();
        rmqttd
    }

    fn wait_ready(&mut self) {
        crate::until(Duration::from_secs(30), "rmqttd listens", || {
            assert!(self.process.exited().is_none(), "rmqttd ended:\n{}", self.process.tail(40));
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

    /// SIGTERM: it ends.
    ///
    /// # Panics
    /// When it takes longer than 10 s.
    pub fn terminate(&mut self) {
        self.process.terminate(Duration::from_secs(10));
    }

    /// The same broker again.
    ///
    /// # Panics
    /// When it does not listen within 30 s.
    pub fn restart(&mut self) {
        self.process.restart();
        self.wait_ready();
    }
}
