//! Tells when certificates, keys and lists on disk have changed.
//!
//! Changes are found by looking: it works on every file system and sees a mounted secret's symlink swapped, which inotify on the file does not. What
//! changed must look the same in two looks before it counts, since a certificate and its key are two files, written one after the other.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Modification time (seconds, nanoseconds), size, device and inode of a file. Writing in place changes the first, replacing by rename the
/// last, even within the clock's grain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp(i64, i64, u64, u64, u64);

impl Stamp {
    /// Of the file that is there now, if one is.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        let m = std::fs::metadata(path).ok()?;
        Some(Self(m.mtime(), m.mtime_nsec(), m.size(), m.dev(), m.ino()))
    }
}

/// Files to be looked at now and then: once a second is often enough.
#[derive(Debug)]
pub struct Files {
    paths: Vec<PathBuf>,
    known: Vec<Option<Stamp>>,
    /// As last seen, when different.
    pending: Option<Vec<Option<Stamp>>>,
}

impl Files {
    /// These files, as they are now: call it before they are read, so that what changes in between is seen.
    #[must_use]
    pub fn new(paths: Vec<PathBuf>) -> Self {
        let known = look(&paths);
        Self { paths, known, pending: None }
    }

    /// Whether they are other than at the last time that this said so, and have settled. It asks the file system: not on a worker.
    pub fn have_changed(&mut self) -> bool {
        let now = look(&self.paths);
        if now == self.known {
            self.pending = None;
            return false;
        }
        if self.pending.as_ref() != Some(&now) {
            self.pending = Some(now);
            return false;
        }
        self.known = now;
        self.pending = None;
        true
    }
}

fn look(paths: &[PathBuf]) -> Vec<Option<Stamp>> {
    paths.iter().map(|path| Stamp::of(path)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_change_counts_when_it_was_seen_twice() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| folder.path().join(name));
        std::fs::write(&a, "1").unwrap();
        let mut files = Files::new(vec![a.clone(), b.clone()]);
        assert!(!files.have_changed());
        std::fs::write(&a, "22").unwrap();
        assert!(!files.have_changed(), "half of it");
        std::fs::write(&b, "1").unwrap();
        assert_eq!([(); 3].map(|()| files.have_changed()), [false, true, false]);
        std::fs::remove_file(&a).unwrap();
        assert!(!files.have_changed());
        std::fs::write(folder.path().join("c"), "22").unwrap();
        std::fs::rename(folder.path().join("c"), &a).unwrap();
        assert_eq!([(); 3].map(|()| files.have_changed()), [false, true, false]);
    }
}
