//! Free space: the ballast that a full disk is answered with, and the reserve at which admission stops.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const BALLAST: &str = "ferrule.ballast";

/// Bytes that an unprivileged process can still write beside `folder`; `None` when the system does not say.
pub(crate) fn free_bytes(folder: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(folder).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// A preallocated file. Giving it up makes room for the deletes that a full disk needs to get going again.
#[derive(Debug)]
pub(crate) struct Ballast {
    folder: PathBuf,
    file: PathBuf,
    bytes: u64,
    held: bool,
}

impl Ballast {
    pub(crate) fn new(folder: &Path, bytes: u64) -> Self {
        let file = folder.join(BALLAST);
        let held = bytes > 0 && fs::metadata(&file).is_ok_and(|m| m.len() == bytes);
        Self { folder: folder.to_owned(), file, bytes, held }
    }

    pub(crate) fn held_bytes(&self) -> u64 {
        if self.held { self.bytes } else { 0 }
    }

    /// Whether there is something to take that is not held.
    pub(crate) fn is_wanted(&self) -> bool {
        self.bytes > 0 && !self.held
    }

    /// Takes the space when there is twice as much of it beyond `reserve_bytes`: taken back at the first free byte,
    /// it would fill the disk anew. Returns whether it was taken now.
    pub(crate) fn take(&mut self, reserve_bytes: u64) -> io::Result<bool> {
        let needed = self.bytes.saturating_mul(2).saturating_add(reserve_bytes);
        if !self.is_wanted() || free_bytes(&self.folder).is_none_or(|free| free < needed) {
            return Ok(false);
        }
        let result = self.allocate();
        if result.is_err() {
            // A part of it is worse than none: it takes space and is not known to be held.
            let _ = fs::remove_file(&self.file);
        }
        result?;
        self.held = true;
        Ok(true)
    }

    fn allocate(&self) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&self.file)?;
        match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, self.bytes) {
            Ok(()) => {}
            Err(rustix::io::Errno::OPNOTSUPP) => {
                let block = [0x5a; 64 << 10];
                let mut left = self.bytes;
                while left > 0 {
                    let n = left.min(block.len() as u64);
                    file.write_all(&block[..n as usize])?;
                    left -= n;
                }
            }
            Err(e) => return Err(e.into()),
        }
        file.sync_all()
    }

    /// Frees the space; returns whether there was any.
    pub(crate) fn give_up(&mut self) -> bool {
        if !self.held {
            return false;
        }
        self.held = false;
        fs::remove_file(&self.file).is_ok()
    }
}
