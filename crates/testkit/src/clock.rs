//! Another wall clock for one node, which a test sets while the node runs.
//!
//! `shim/clock.c` (preloaded) adds to the real time what a file says. It changes the kernel's clock page in the process, so it is for x86_64 and for
//! programs that load libraries; monotonic clocks stay what they are.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::SystemTime;

use tempfile::TempDir;

use crate::Config;
use crate::power::compiled;

/// A clock. It goes as the machine's until it is set.
#[derive(Debug)]
pub struct Clock {
    folder: TempDir,
    file: File,
}

impl Clock {
    /// Makes one; None, with a line on standard error, on another machine than x86_64.
    ///
    /// # Panics
    /// When there is no temporary folder.
    #[must_use]
    pub fn new() -> Option<Self> {
        if !cfg!(target_arch = "x86_64") {
            eprintln!("skipped: the clock of a process can be set on x86_64 alone");
            return None;
        }
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = folder.path().join("clock");
        fs::write(&path, 0i64.to_ne_bytes()).expect("a new folder can be written");
        let file = OpenOptions::new().write(true).open(&path).expect("just made");
        Some(Self { folder, file })
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("clock")
    }

    /// `config` with this clock.
    ///
    /// # Panics
    /// When the C compiler refuses the shim.
    #[must_use]
    pub fn config(&self, config: Config) -> Config {
        let text = |path: PathBuf| path.to_str().expect("a temporary folder's name is text").to_owned();
        let shim = compiled("clock", include_str!("../shim/clock.c"));
        config.env("LD_PRELOAD", &text(shim)).env("FERRULE_SHIM_CLOCK", &text(self.path()))
    }

    /// Sets it to the machine's time and so many seconds.
    ///
    /// # Panics
    /// When its file cannot be written.
    pub fn ahead(&self, seconds: i64) {
        self.file.write_all_at(&seconds.to_ne_bytes(), 0).expect("the clock's file is there");
    }

    /// Sets it to so many seconds after 1970 began.
    ///
    /// # Panics
    /// As [`Self::ahead`].
    #[allow(clippy::disallowed_methods, reason = "a test, on this machine")]
    pub fn set(&self, seconds: i64) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.ahead(seconds - i64::try_from(now).expect("the year is below 292 billion"));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::proc::output;
    use std::process::Command;

    #[test]
    fn a_process_sees_the_clock_that_is_set() {
        let Some(clock) = Clock::new() else { return };
        let shim = compiled("clock", include_str!("../shim/clock.c"));
        let year = || {
            let mut date = Command::new("date");
            date.args(["-u", "+%Y-%m-%d"]).env("LD_PRELOAD", &shim).env("FERRULE_SHIM_CLOCK", clock.path());
            output(&mut date).trim().to_owned()
        };
        let today = output(Command::new("date").args(["-u", "+%Y-%m-%d"])).trim().to_owned();
        assert!(year() >= today);
        clock.set(0);
        assert_eq!(year(), "1970-01-01");
        clock.set(2_208_988_800);
        assert_eq!(year(), "2040-01-01");
    }
}
