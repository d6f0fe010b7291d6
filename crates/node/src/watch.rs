//! The rules on disk: a file, or the `*.sql` of a folder in order of names, read again when they change.
//!
//! # Design
//!
//! - Changes are found by looking, once a second ([`POLL_INTERVAL`]): it works on every file system, over NFS and
//!   through a container's mounts, and sees a ConfigMap's symlink swapped, which inotify on the file does not.
//! - What changed must look the same in two looks before it is read: an editor that writes in two steps would otherwise
//!   have its half loaded, and half a rules file can be valid.
//! - Schemas that rules name (`CREATE SCHEMA`) are read with the rules: those in the same folder are looked at as well,
//!   by their usual names ([`SCHEMA_EXTENSIONS`]). One that lies elsewhere is read again with the rules.
//! - A reload ([`crate::reload`]) reads them at once, changed or not.
//! - Looking and reading run on tokio's blocking threads: a dying SD card stalls them, not the worker.

use ferrule_rules::cli::rule_files;
use ferrule_transport::files::Stamp;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// How often the files are looked at.
pub const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The most rule files in a folder.
pub const FILES_MAX: usize = 1_000;

/// The most bytes of all rule files together.
pub const BYTES_MAX: u64 = 16 << 20;

/// What files of schemas end in: descriptor sets, Avro schemas.
const SCHEMA_EXTENSIONS: [&str; 4] = ["desc", "pb", "binpb", "avsc"];

/// Where the rules are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleFiles {
    path: PathBuf,
}

/// One file of rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleFile {
    /// Its path, for diagnostics.
    pub name: String,
    /// Its whole text.
    pub text: String,
}

/// Why the rules cannot be read. The caller keeps those it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadError {
    /// The file or folder.
    pub path: PathBuf,
    /// What is wrong.
    pub problem: String,
}

/// What the files looked like: enough to see that they changed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Look(Vec<(PathBuf, Option<Stamp>)>);

/// Tells when the rules change.
#[derive(Debug)]
pub struct Watcher {
    files: RuleFiles,
    /// As last read.
    known: Look,
    /// As last seen, when different.
    pending: Option<Look>,
    ticks: Interval,
}

// === impl RuleFiles ===

impl RuleFiles {
    /// A file or a folder; it need not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where they are.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All of them, in order. A folder without any is an empty list.
    ///
    /// # Errors
    /// The first file that cannot be read, is not UTF-8, or passes [`FILES_MAX`] or [`BYTES_MAX`].
    pub fn read(&self) -> Result<Vec<RuleFile>, ReadError> {
        let error = |path: &Path, problem: String| ReadError { path: path.to_owned(), problem };
        let paths = self.list().map_err(|e| error(&self.path, e))?;
        let mut left = BYTES_MAX;
        let mut files = Vec::with_capacity(paths.len());
        for path in paths {
            let mut bytes = Vec::new();
            let file = std::fs::File::open(&path).map_err(|e| error(&path, e.to_string()))?;
            file.take(left + 1).read_to_end(&mut bytes).map_err(|e| error(&path, e.to_string()))?;
            left = left.checked_sub(bytes.len() as u64).ok_or_else(|| {
                error(&path, format!("with it the rules are longer than {} MiB", BYTES_MAX >> 20))
            })?;
            let text =
                String::from_utf8(bytes).map_err(|_| error(&path, "it is not UTF-8 text".to_owned()))?;
            files.push(RuleFile { name: path.to_string_lossy().into_owned(), text });
        }
        Ok(files)
    }

    fn list(&self) -> Result<Vec<PathBuf>, String> {
        let paths = rule_files(&self.path).map_err(|e| e.to_string())?;
        if paths.len() > FILES_MAX {
            return Err(format!("it holds {} rule files, more than {FILES_MAX}", paths.len()));
        }
        Ok(paths)
    }

    /// Files of schemas beside the rules.
    fn schemas(&self) -> Vec<PathBuf> {
        let folder = if self.path.is_dir() { Some(self.path.as_path()) } else { self.path.parent() };
        let Some(Ok(entries)) = folder.map(std::fs::read_dir) else { return Vec::new() };
        let is_schema = |path: &PathBuf| {
            path.extension().is_some_and(|e| SCHEMA_EXTENSIONS.iter().any(|schema| e == *schema))
        };
        let paths = entries.take(FILES_MAX).filter_map(|entry| Some(entry.ok()?.path()));
        let mut paths: Vec<PathBuf> = paths.filter(is_schema).collect();
        paths.sort();
        paths
    }

    fn look(&self) -> Look {
        let mut paths = self.list().unwrap_or_else(|_| vec![self.path.clone()]);
        paths.extend(self.schemas());
        let look = |path: PathBuf| {
            let stamp = Stamp::of(&path);
            (path, stamp)
        };
        Look(paths.into_iter().map(look).collect())
    }
}

// === impl Watcher ===

impl Watcher {
    /// Reads the rules and watches them from then on. (Outside a runtime it panics, as tokio does.)
    pub fn start(files: RuleFiles) -> (Self, Result<Vec<RuleFile>, ReadError>) {
        Self::start_every(files, POLL_INTERVAL)
    }

    fn start_every(files: RuleFiles, period: Duration) -> (Self, Result<Vec<RuleFile>, ReadError>) {
        // Look, then read: what changes between the two is read again, not missed.
        let known = files.look();
        let read = files.read();
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        (Self { files, known, pending: None, ticks }, read)
    }

    /// The rules, when they have changed. An error is told once, until the files change again.
    ///
    /// Cancellation-safe: state changes only after the last await; a read that was cut off happens again.
    pub async fn next(&mut self) -> Result<Vec<RuleFile>, ReadError> {
        loop {
            self.ticks.tick().await;
            let files = self.files.clone();
            let Some(look) = blocking(move || files.look()).await else { continue };
            if look == self.known {
                self.pending = None;
                continue;
            }
            if self.pending.as_ref() != Some(&look) {
                self.pending = Some(look);
                continue;
            }
            let files = self.files.clone();
            let Some(read) = blocking(move || files.read()).await else { continue };
            self.known = look;
            self.pending = None;
            return read;
        }
    }
}

/// `None` when the runtime is shutting down.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}

// === impl ReadError ===

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot read the rules {}: {}", self.path.display(), self.problem)
    }
}

impl std::error::Error for ReadError {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn names(files: &[RuleFile]) -> Vec<&str> {
        files.iter().map(|f| f.name.rsplit('/').next().unwrap()).collect()
    }

    #[test]
    fn a_folder_is_read_in_order_of_names() {
        let dir = tempfile::tempdir().unwrap();
        let files = RuleFiles::new(dir.path());
        assert_eq!(files.read(), Ok(Vec::new()));
        for name in ["b.sql", "a.sql", "notes.txt", "c.sql"] {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        let read = files.read().unwrap();
        assert_eq!(names(&read), ["a.sql", "b.sql", "c.sql"]);
        assert_eq!(read[0].text, "a.sql");

        let one = RuleFiles::new(dir.path().join("notes.txt"));
        assert_eq!(names(&one.read().unwrap()), ["notes.txt"], "a file is one whatever its name");
        let error = RuleFiles::new(dir.path().join("none.sql")).read().unwrap_err();
        assert!(error.to_string().contains("none.sql: No such file"), "{error}");
        std::fs::write(dir.path().join("a.sql"), b"\xff").unwrap();
        assert!(files.read().unwrap_err().problem.contains("UTF-8"));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn changes_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rules.sql");
        std::fs::write(&path, "one").unwrap();
        let files = RuleFiles::new(&path);
        let (mut watcher, read) = Watcher::start_every(files, Duration::from_millis(5));
        assert_eq!(read.unwrap()[0].text, "one");

        std::fs::write(&path, "other").unwrap();
        assert_eq!(watcher.next().await.unwrap()[0].text, "other");

        std::fs::remove_file(&path).unwrap();
        assert!(watcher.next().await.is_err(), "told once");

        // Replaced by rename: what editors do.
        std::fs::write(dir.path().join("new"), "third").unwrap();
        std::fs::rename(dir.path().join("new"), &path).unwrap();
        assert_eq!(watcher.next().await.unwrap()[0].text, "third");

        // A schema beside the rules.
        std::fs::write(dir.path().join("reading.avsc"), "\"int\"").unwrap();
        assert_eq!(watcher.next().await.unwrap()[0].text, "third");
    }
}
