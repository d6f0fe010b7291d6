//! A small file system of its own that can be filled and made read-only, for root.
//!
//! It is a tmpfs: permissions do not stop root and a quota needs a device, but a mount of a given size gives the true
//! `ENOSPC` and a remount the true `EROFS`.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::proc::output;

/// A mounted tmpfs. Unmounted and removed when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    folder: TempDir,
}

impl SmallDisk {
    /// Mounts one of `kib` KiB; None, with a line on standard error, when this process is not root.
    ///
    /// # Panics
    /// When it cannot be mounted.
    #[must_use]
    pub fn new(kib: u32) -> Option<Self> {
        if !crate::is_root() {
            eprintln!("skipped: needs root (mount)");
            return None;
        }
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let size = format!("size={kib}k");
        output(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "ferrule-test"]).arg(folder.path()));
        Some(Self { folder })
    }

    /// Its folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Fills it to the last byte with the file `ballast`.
    ///
    /// # Panics
    /// When something else than the end of the space stops it.
    pub fn fill(&self) {
        let mut ballast = File::create(self.path().join("ballast")).expect("the folder can be written");
        loop {
            if let Err(error) = ballast.write_all(&[0; 4096]) {
                assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}");
                return;
            }
        }
    }

    /// Gives the space that [`Self::fill`] took back.
    ///
    /// # Panics
    /// When it was not filled.
    pub fn free(&self) {
        std::fs::remove_file(self.path().join("ballast")).expect("filled before");
    }

    /// Makes it read-only.
    ///
    /// # Panics
    /// When a file in it is open for writing.
    pub fn read_only(&self) {
        output(Command::new("mount").args(["-o", "remount,ro"]).arg(self.path()));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process that still has files in it must not keep the guard from ending.
        let _ = Command::new("umount").arg("-l").arg(self.path()).status(); // what is left is a folder in /tmp
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn fills_frees_and_refuses() {
        let Some(disk) = SmallDisk::new(256) else { return };
        let file = disk.path().join("f");
        disk.fill();
        assert_eq!(std::fs::write(&file, [0; 8192]).unwrap_err().kind(), std::io::ErrorKind::StorageFull);
        disk.free();
        std::fs::write(&file, [0; 8192]).unwrap();
        disk.read_only();
        assert_eq!(std::fs::write(&file, "x").unwrap_err().kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    }
}
