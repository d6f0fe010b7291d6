//! The parent's side: the executable that serves, a process of it, one question at a time.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::Signal;

/// The argument that makes a worker of the executable. It is in no help: nobody but [`Process::start`] gives it.
const WORD: &str = "jq-worker-of-ferrule";

/// The arguments that make a worker of this executable; not set: nothing does.
static OFFERED: OnceLock<Vec<String>> = OnceLock::new();

/// To be called first in `main` of a program that runs rules, before its arguments are read: without it rules with `jq()` are refused.
///
/// In a process that was started as a worker it does that work and never returns.
pub fn enter() {
    #[cfg(feature = "jq")]
    if std::env::args_os().nth(1).is_some_and(|first| first == WORD) {
        super::serve();
    }
    offer(&[WORD]);
}

/// For executables whose `main` is not their own (tests): started with these arguments, it calls `serve`.
pub fn offer(arguments: &[&str]) {
    // The first counts: an executable does not change.
    let _ = OFFERED.set(arguments.iter().map(|&argument| argument.to_owned()).collect());
}

/// Whether this executable can be started as a worker.
pub(crate) fn is_offered() -> bool {
    cfg!(feature = "jq") && OFFERED.get().is_some()
}

/// How long a worker whose pipe is closed may take to be gone.
const GONE: Duration = Duration::from_millis(100);

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Asked {
    /// The worker was gone before it had the question.
    WasGone,
    /// The worker ended over the question.
    Died,
    /// Somebody else killed it over the question: its own limits end it otherwise.
    Killed,
    /// There was no answer in time.
    Late,
    /// Another error of the socket.
    Io(io::Error),
}

/// A worker. After an error from [`Process::ask`] it is only to be dropped, which kills it and waits for its end.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    pipe: UnixStream,
}

impl Process {
    /// Starts a worker and waits until it is ready.
    pub(super) fn start(wait: Duration) -> io::Result<Process> {
        let arguments = OFFERED.get().ok_or_else(|| io::Error::other("this program offers no jq worker"))?;
        let (pipe, theirs) = UnixStream::pair()?;
        // The file that runs, also when another has been put in its place since.
        let child = Command::new("/proc/self/exe")
            .args(arguments)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let mut process = Process { child, pipe };
        let deadline = Instant::now() + wait;
        match process.answer(deadline, 0) {
            Ok(_) => Ok(process),
            Err(Asked::Io(error)) => Err(error),
            Err(_) => Err(io::Error::other("the jq worker does not start")),
        }
    }

    /// Its answer to a frame: until the program runs it has `begin`, then `wait`.
    pub(super) fn ask(
        &mut self,
        frame: &[u8],
        begin: Duration,
        wait: Duration,
        answer_max: usize,
    ) -> Result<Vec<u8>, Asked> {
        let deadline = Instant::now() + begin;
        let mut rest = frame;
        while !rest.is_empty() {
            self.pipe.set_write_timeout(Some(left(deadline)?)).map_err(Asked::Io)?;
            match self.pipe.write(rest) {
                Ok(0) => return Err(Asked::WasGone),
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => return Err(Asked::Late),
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => return Err(Asked::WasGone),
                    _ => return Err(Asked::Io(error)),
                },
            }
        }
        let answer = match self.answer(deadline, answer_max) {
            Ok(begins) if begins.is_empty() => self.answer(Instant::now() + wait, answer_max),
            other => other,
        };
        match answer {
            Err(Asked::Died) if self.was_killed() => Err(Asked::Killed),
            other => other,
        }
    }

    /// Whether a worker that has closed its pipe ended by a signal that none of its own limits sends: memory and stack
    /// end it by SIGABRT or SIGSEGV, processor time by SIGXCPU.
    fn was_killed(&mut self) -> bool {
        let deadline = Instant::now() + GONE;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => {
                    let by = status.signal();
                    return [Signal::KILL, Signal::TERM].iter().any(|&signal| by == Some(signal.as_raw()));
                }
                // The pipe closes a moment before the process is gone.
                Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
                _ => return false,
            }
        }
    }

    fn answer(&mut self, deadline: Instant, max: usize) -> Result<Vec<u8>, Asked> {
        let mut length = [0; 4];
        self.fill(&mut length, deadline)?;
        let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
        if length > max {
            return Err(Asked::Io(io::Error::other("the jq worker's answer is too long")));
        }
        let mut body = vec![0; length];
        self.fill(&mut body, deadline)?;
        Ok(body)
    }

    fn fill(&mut self, mut into: &mut [u8], deadline: Instant) -> Result<(), Asked> {
        while !into.is_empty() {
            self.pipe.set_read_timeout(Some(left(deadline)?)).map_err(Asked::Io)?;
            match self.pipe.read(into) {
                Ok(0) => return Err(Asked::Died),
                Ok(read) => into = into.get_mut(read..).unwrap_or_default(),
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => return Err(Asked::Late),
                    io::ErrorKind::ConnectionReset => return Err(Asked::Died),
                    _ => return Err(Asked::Io(error)),
                },
            }
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already; in every case there is no zombie afterwards.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The time to a deadline; a socket takes no timeout of zero.
fn left(deadline: Instant) -> Result<Duration, Asked> {
    deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()).ok_or(Asked::Late)
}
