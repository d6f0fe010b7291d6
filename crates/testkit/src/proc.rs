//! Child processes that end with their guard, with the test process, or by kill -9, whichever is first.
//!
//! | ending | by |
//! |---|---|
//! | the guard is dropped (a test ends or panics) | SIGKILL and wait, in [`Process::drop`] |
//! | the test process dies (SIGKILL, abort) | the kernel: `setpriv --pdeathsig KILL` set it on the child before its `exec` |
//! | the test wants it | [`Process::kill9`], [`Process::terminate`] |
//!
//! The parent-death signal belongs to the *thread* that forked, and libtest runs each test in a thread of its own: a
//! server shared by several tests would die with the first. One thread that never ends forks them all.
//!
//! What a child forks in turn ([`Launch::with_children`]: nginx and its workers, a browser and all of its processes) is in a PID
//! namespace with it, and the kernel ends the whole namespace with its first process.
//!
//! (A process that is killed within the millisecond between a fork and `setpriv`'s call leaves that child behind.)
//!
//! Both output streams of a child go to one file; its last lines are printed when a guard is dropped in a panic.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::{Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

/// What to run, and how.
#[derive(Debug, Clone)]
pub struct Launch {
    name: String,
    netns: Option<String>,
    user: Option<String>,
    children: bool,
    program: OsString,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    log: PathBuf,
}

impl Launch {
    /// `program` with its output appended to the file `log`; `name` is what messages call it.
    #[must_use]
    pub fn new(name: &str, program: impl AsRef<OsStr>, log: impl Into<PathBuf>) -> Self {
        Self {
            name: name.to_owned(),
            netns: None,
            user: None,
            children: false,
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            log: log.into(),
        }
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(self, args: impl IntoIterator<Item = A>) -> Self {
        args.into_iter().fold(self, Self::arg)
    }

    /// One environment variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Runs it in the network namespace `name` (root only).
    #[must_use]
    pub fn netns(mut self, name: &str) -> Self {
        self.netns = Some(name.to_owned());
        self
    }

    /// Runs it as `user` (root only): PostgreSQL refuses to run as root.
    #[must_use]
    pub fn user(mut self, user: &str) -> Self {
        self.user = Some(user.to_owned());
        self
    }

    /// For a program that forks and whose children would outlive it: they end when it ends, however it does.
    #[must_use]
    pub fn with_children(mut self) -> Self {
        self.children = true;
        self
    }

    /// The whole command line. Every part of it `exec`s the next, so the child's pid is the program's; but for `unshare`, which
    /// stays as the parent of the namespace's first process.
    fn command(&self) -> Command {
        let mut line: Vec<&OsStr> = Vec::new();
        if let Some(netns) = &self.netns {
            line.extend(["ip", "netns", "exec", netns].map(OsStr::new));
        }
        line.push("setpriv".as_ref());
        if let Some(user) = &self.user {
            line.extend(["--reuid", user, "--regid", user, "--clear-groups"].map(OsStr::new));
        }
        // Asked for in the same call as the change of user: a change of credentials clears it, and setpriv sets it last.
        line.extend(["--pdeathsig", "KILL", "--"].map(OsStr::new));
        if self.children {
            line.push("unshare".as_ref());
            if !crate::is_root() {
                line.extend(["--user", "--map-current-user"].map(OsStr::new));
            }
            line.extend(["--pid", "--fork", "--kill-child=KILL", "--"].map(OsStr::new));
        }
        line.push(&self.program);
        line.extend(self.args.iter().map(OsString::as_os_str));
        let mut command = Command::new(line[0]);
        command.args(&line[1..]).envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts it.
    ///
    /// # Panics
    /// When it cannot be started (a program that does not exist ends `setpriv` with 127 instead, see the log).
    #[must_use]
    pub fn start(self) -> Process {
        let log = append(&self.log);
        self.spawn(Stdio::null(), log.into())
    }

    /// Starts a program that is talked to: what is written to its input, and its output, which does not go to the log.
    ///
    /// # Panics
    /// As [`Self::start`].
    #[must_use]
    pub fn start_talking(self) -> (Process, ChildStdin, ChildStdout) {
        let mut process = self.spawn(Stdio::piped(), Stdio::piped());
        let (input, output) = (process.child.stdin.take(), process.child.stdout.take());
        let both = input.zip(output).expect("both are pipes");
        (process, both.0, both.1)
    }

    fn spawn(self, input: Stdio, output: Stdio) -> Process {
        let mut command = self.command();
        command.stdin(input).stdout(output).stderr(append(&self.log));
        let child = spawn(command).unwrap_or_else(|error| panic!("{}: cannot start: {error}", self.name));
        Process { launch: self, child, exit: None }
    }
}

fn append(path: &Path) -> File {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .unwrap_or_else(|error| panic!("cannot open {}: {error}", path.display()))
}

/// Spawns `command` from the one thread that lives as long as this process.
///
/// # Errors
/// Those of [`Command::spawn`].
fn spawn(command: Command) -> io::Result<Child> {
    type Job = (Command, mpsc::Sender<io::Result<Child>>);
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<Job>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, queue) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, answer) in queue {
                // Nobody waits for it only when the caller's thread has gone: then the child is dropped unwaited, and
                // ends with this process.
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(jobs)
    });
    let (answer, child) = mpsc::channel();
    let jobs = spawner.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    jobs.send((command, answer)).expect("the spawner's queue outlives the process's threads");
    child.recv().expect("the spawner answers every job")
}

/// A running (or ended) child.
#[derive(Debug)]
pub struct Process {
    launch: Launch,
    child: Child,
    exit: Option<ExitStatus>,
}

impl Process {
    /// Its process id, which is the program's own.
    ///
    /// # Panics
    /// With [`Launch::with_children`]: when the program has not begun within 10 s, or has ended.
    #[must_use]
    pub fn pid(&self) -> u32 {
        if !self.launch.children {
            return self.child.id();
        }
        let what = format!("{} has begun", self.launch.name);
        crate::until(Duration::from_secs(10), &what, || children(self.child.id()).first().copied())
    }

    /// What it is called in messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.launch.name
    }

    /// Another program with the same arguments, from the next [`Process::restart`] on.
    pub fn run_instead(&mut self, program: &Path) {
        self.launch.program = program.into();
    }

    /// Its exit status, when it has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        if self.exit.is_none() {
            self.exit = self.child.try_wait().unwrap_or_else(|error| panic!("{}: {error}", self.launch.name));
        }
        self.exit
    }

    /// Waits for it to end by itself.
    ///
    /// # Panics
    /// When it has not within `limit`.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.exited() {
                return status;
            }
            assert!(Instant::now() < deadline, "{} has not ended within {limit:?}", self.launch.name);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGKILL, and waits until it is gone. Nothing when it has ended.
    pub fn kill9(&mut self) {
        if self.exited().is_none() {
            // The first process of a namespace: `unshare` ends when the last one is gone. Before there is one, it is the one.
            let first = if self.launch.children { children(self.child.id()) } else { Vec::new() };
            match first[..] {
                [] => drop(self.child.kill()), // ended in between: `wait` says so
                _ => first.into_iter().for_each(|pid| drop(try_send_signal("KILL", pid))),
            }
            self.exit = self.child.wait().ok();
        }
    }

    /// SIGTERM, and waits until it has ended.
    ///
    /// # Panics
    /// When it has not within `limit`.
    pub fn terminate(&mut self, limit: Duration) -> ExitStatus {
        self.signal("TERM");
        self.wait(limit)
    }

    /// SIGSTOP: the process and its threads stand still, its sockets stay open and the kernel goes on accepting.
    pub fn pause(&mut self) {
        self.signal("STOP");
    }

    /// SIGCONT.
    pub fn resume(&mut self) {
        self.signal("CONT");
    }

    /// Sends a signal by name (`TERM`), to this child alone and only while it is unwaited, so that the pid is its own.
    ///
    /// # Panics
    /// When the signal cannot be sent.
    pub fn signal(&mut self, name: &str) {
        if self.exited().is_none() {
            send_signal(name, self.pid());
        }
    }

    /// Ends it by SIGKILL if need be, and starts the same command line again.
    pub fn restart(&mut self) {
        self.kill9();
        let again = self.launch.clone().start();
        // The old guard's child has been waited for; dropping it does nothing more.
        drop(std::mem::replace(self, again));
    }

    /// All that it has written so far, both streams.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read(&self.launch.log)
            .map_or_else(|_| String::new(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The last `lines` lines of its output.
    #[must_use]
    pub fn tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- last lines of {} ----\n{}\n----", self.launch.name, self.tail(40));
        }
        self.kill9();
    }
}

/// Sends the signal `name` to `pid`.
///
/// By the shell's builtin: there is always a shell, `kill(1)` is a package, and `kill(2)` would be unsafe code.
pub(crate) fn send_signal(name: &str, pid: u32) {
    let output = try_send_signal(name, pid);
    assert!(output.as_ref().is_ok_and(|output| output.status.success()), "kill -s {name} {pid}: {output:?}");
}

/// The same to a process that may be gone.
fn try_send_signal(name: &str, pid: u32) -> io::Result<Output> {
    Command::new("sh").args(["-c", "kill -s \"$0\" \"$1\"", name, &pid.to_string()]).output()
}

/// The pids whose parent is `parent`, from /proc.
#[must_use]
pub fn children(parent: u32) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| {
            let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // The command's name is in parentheses and may hold spaces; the parent is the second field behind it.
            let ppid: u32 = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
            (ppid == parent).then_some(pid)
        })
        .collect()
}

/// Runs a short command to its end and returns its standard output.
///
/// # Panics
/// When it cannot be started or fails: with its standard error.
pub fn output(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::io::{BufRead, BufReader, Write};

    fn sleeper(folder: &Path) -> Process {
        Launch::new("sleep", "sleep", folder.join("log")).arg("600").start()
    }

    /// Whether a process runs: one that ended and was not waited for yet does not.
    fn runs(pid: u32) -> bool {
        std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| !stat.rsplit_once(')').unwrap().1.trim_start().starts_with('Z'))
    }

    fn wait_gone(pid: u32) {
        crate::until(Duration::from_secs(10), "the child is gone", || (!runs(pid)).then_some(()));
    }

    /// Not a test of its own: the process that `a_child_ends_with_a_killed_process` kills.
    #[test]
    fn holder() {
        if std::env::var_os("TESTKIT_HOLDER").is_none() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        // From a thread that ends at once: the child must not end with it.
        let child = std::thread::scope(|scope| scope.spawn(|| sleeper(folder.path())).join().unwrap());
        // Before that `setpriv` may not have asked for the signal yet.
        let comm = format!("/proc/{}/comm", child.pid());
        let is_sleep =
            || std::fs::read_to_string(&comm).is_ok_and(|name| name.trim() == "sleep").then_some(());
        crate::until(Duration::from_secs(10), "the child runs", is_sleep);
        eprintln!("pid {}", child.pid());
        loop {
            std::thread::park();
        }
    }

    #[test]
    fn a_child_ends_with_a_killed_process() {
        let mut holder = Command::new(std::env::current_exe().unwrap())
            .args(["proc::tests::holder", "--exact", "--nocapture"])
            .env("TESTKIT_HOLDER", "1")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(holder.stderr.take().unwrap()).lines();
        let pid = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("pid ")?.parse().ok());
        holder.kill().unwrap();
        holder.wait().unwrap();
        wait_gone(pid.expect("the holder tells its child's pid"));
    }

    #[test]
    fn a_guard_kills_and_a_panic_does_too() {
        let folder = tempfile::tempdir().unwrap();
        let pid = sleeper(folder.path()).pid();
        assert!(!runs(pid), "dropped at the end of the statement");
        let child = sleeper(folder.path());
        let pid = child.pid();
        let panicked = std::thread::spawn(move || {
            let _guard = child;
            panic!("on purpose");
        });
        assert!(panicked.join().is_err());
        wait_gone(pid);
    }

    #[test]
    fn the_children_of_a_child_end_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let shell = || {
            let launch = Launch::new("sh", "sh", folder.path().join("log")).with_children();
            launch.args(["-c", "sleep 600 & trap 'kill %1; exit 3' TERM; wait"]).start()
        };
        let grandchild = |shell: &Process| {
            let what = "the shell has started its child";
            crate::until(Duration::from_secs(10), what, || children(shell.pid()).first().copied())
        };
        let mut killed = shell();
        let pid = grandchild(&killed);
        killed.kill9();
        assert!(!runs(pid), "killed before its namespace's end");

        let mut told = shell();
        let pid = grandchild(&told);
        assert_eq!(told.terminate(Duration::from_secs(10)).code(), Some(3), "the program's own status");
        assert!(!runs(pid));

        // And when this process is killed: then `unshare` gets the signal, not the program.
        let mut orphaned = shell();
        let pid = grandchild(&orphaned);
        send_signal("KILL", orphaned.child.id());
        wait_gone(pid);
        orphaned.wait(Duration::from_secs(10));
    }

    #[test]
    fn a_child_is_talked_to() {
        let folder = tempfile::tempdir().unwrap();
        let launch = Launch::new("sh", "sh", folder.path().join("log"));
        let talk = launch.args(["-c", "read line; echo \"heard $line\"; echo aside >&2; read line"]);
        let (mut shell, mut input, output) = talk.start_talking();
        writeln!(input, "hello").unwrap();
        assert_eq!(BufReader::new(output).lines().next().unwrap().unwrap(), "heard hello");
        drop(input);
        shell.wait(Duration::from_secs(10));
        assert_eq!(shell.log(), "aside\n");
    }

    #[test]
    fn output_and_exit_status_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let launch = Launch::new("sh", "sh", folder.path().join("log"));
        let mut shell = launch.args(["-c", "echo out; echo $A >&2; exit 7"]).env("A", "err").start();
        assert_eq!(shell.wait(Duration::from_secs(10)).code(), Some(7));
        assert_eq!(shell.log(), "out\nerr\n");
        assert_eq!(shell.tail(1), "err");
        shell.restart();
        shell.wait(Duration::from_secs(10));
        assert_eq!(shell.log(), "out\nerr\nout\nerr\n", "appended");
    }

    #[test]
    fn a_paused_child_stands_still_and_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = sleeper(folder.path());
        let state = |pid: u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            stat.rsplit_once(')').unwrap().1.trim_start().chars().next().unwrap()
        };
        let pid = child.pid();
        child.pause();
        crate::until(Duration::from_secs(10), "it is stopped", || (state(pid) == 'T').then_some(()));
        child.resume();
        crate::until(Duration::from_secs(10), "it sleeps again", || (state(pid) == 'S').then_some(()));
        child.pause();
        child.kill9(); // also while it is stopped
        assert!(child.exited().is_some());
    }
}
