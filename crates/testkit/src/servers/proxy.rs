//! nginx and HAProxy, with a configuration of an [`Example`], run the way that their service units run them: a master process that takes
//! signals, and workers that it forks.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::{Example, INSTALL};
use crate::proc::{Launch, Process, children};

/// How long a start, a reload and a stop may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the master process of HAProxy takes questions.
const MASTER: &str = "haproxy.sock";

/// A running proxy. Killed with all of its processes when dropped.
#[derive(Debug)]
pub struct Proxy {
    process: Process,
    /// What makes it read its configuration again.
    reload: &'static str,
    addr: SocketAddr,
}

impl Proxy {
    /// nginx with the configuration `file`, in which it listens at port `known`.
    ///
    /// # Panics
    /// When it does not listen within 10 s, or is not installed.
    #[must_use]
    pub fn nginx(example: &Example, file: &str, known: u16) -> Self {
        let launch = launch(example, "nginx")
            .arg("-p")
            .arg(example.folder())
            .arg("-c")
            .arg(example.path(file))
            // In the foreground, and messages before the configuration is read go to our log as well.
            .args(["-g", "daemon off;", "-e", "stderr"]);
        Self::start(launch, "HUP", example.addr(known))
    }

    /// HAProxy with the configuration `file`, in which it listens at port `known`.
    ///
    /// # Panics
    /// When it does not listen within 10 s, or is not installed.
    #[must_use]
    pub fn haproxy(example: &Example, file: &str, known: u16) -> Self {
        let launch = launch(example, "haproxy").args(["-W", "-db", "-f"]).arg(example.path(file));
        let launch = launch.arg("-S").arg(example.path(MASTER));
        Self::start(launch, "USR2", example.addr(known))
    }

    fn start(launch: Launch, reload: &'static str, addr: SocketAddr) -> Self {
        let mut proxy = Self { process: launch.start(), reload, addr };
        proxy.wait_ready();
        proxy
    }

    fn wait_ready(&mut self) {
        let what = format!("{} listens", self.process.name());
        crate::until(PATIENCE, &what, || {
            assert!(self.process.exited().is_none(), "it ended:\n{}", self.process.tail(20));
            TcpStream::connect(self.addr).ok()
        });
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The ids of its processes that serve connections, old ones that come to their end included.
    #[must_use]
    pub fn workers(&self) -> Vec<u32> {
        children(self.process.pid())
    }

    /// Waits until HAProxy has done with asking its peers for tables. Until then, which takes five seconds where there is nobody to
    /// answer, it does not pass its own tables on to the process after a reload.
    ///
    /// # Panics
    /// When it has not within 10 s.
    pub fn wait_peers(&self, example: &Example) {
        let ask = || -> std::io::Result<String> {
            let mut socket = UnixStream::connect(example.path(MASTER))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.write_all(b"@1 show peers\n")?;
            socket.shutdown(Shutdown::Write)?; // it waits for more questions otherwise
            let mut answer = String::new();
            socket.read_to_string(&mut answer)?;
            Ok(answer)
        };
        crate::until(PATIENCE, "HAProxy has asked its peers", || {
            let answer = ask().ok()?;
            let flags = answer.split("flags=0x").nth(1)?.split_whitespace().next()?;
            // Of local and of remote ones.
            (u32::from_str_radix(flags, 16).ok()? & 3 == 3).then_some(())
        });
    }

    /// Makes it read its configuration again, and waits until there are new workers. The old ones may still take a connection.
    ///
    /// # Panics
    /// When there is none within 10 s.
    pub fn reload(&mut self) {
        let before = self.workers();
        self.process.signal(self.reload);
        let name = self.process.name().to_owned();
        crate::until(PATIENCE, &format!("{name} has new workers"), || {
            assert!(self.process.exited().is_none(), "it ended:\n{}", self.process.tail(20));
            self.workers().iter().any(|pid| !before.contains(pid)).then_some(())
        });
        self.wait_ready();
    }

    /// SIGKILL, to all of its processes.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// The same proxy again, after [`Self::kill9`] (or kills it first).
    ///
    /// # Panics
    /// When it does not listen within 10 s.
    pub fn restart(&mut self) {
        self.process.restart();
        self.wait_ready();
    }
}

fn launch(example: &Example, name: &str) -> Launch {
    let program = Path::new("/usr/sbin").join(name);
    assert!(program.exists(), "{} is not there: {INSTALL}", program.display());
    Launch::new(name, program, example.path(&format!("{name}.output"))).with_children()
}
