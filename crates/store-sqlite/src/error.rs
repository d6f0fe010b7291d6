//! What can go wrong, typed by what the caller does next, in words for the person at the gateway.

use rusqlite::ErrorCode;
use std::path::{Path, PathBuf};

/// The store could not be opened. Every message says what, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process holds the file: do not start.
    #[error(
        "another ferrule is running on the data folder {}: stop it first (`fuser -v {}` shows it), or give this \
         one a data_dir of its own",
        .folder.display(), .folder.join(crate::FILE).display()
    )]
    Locked {
        /// The data folder.
        folder: PathBuf,
    },
    /// The folder or the file system refuses writes: a person must change it.
    #[error(
        "cannot write in the data folder {}: {reason}. Give it to the user that ferrule runs as \
         (`chown -R ferrule {}`), or, when its file system is mounted read-only, mount it with `rw`",
        .folder.display(), .folder.display()
    )]
    NotWritable {
        /// The data folder.
        folder: PathBuf,
        /// The system's words.
        reason: String,
    },
    /// No space: a person must free some.
    #[error(
        "no space left for the data folder {}: free some (`du -xh {} | sort -h | tail` shows what is large) and \
         start again",
        .folder.display(), .folder.display()
    )]
    Full {
        /// The data folder.
        folder: PathBuf,
    },
    /// Written by a later release, whose data this one would damage: a person must install that release.
    #[error(
        "{} was written by a newer ferrule (schema {found}, this one knows up to {supported}): install the newer \
         release again, or give this one another data_dir",
        .file.display()
    )]
    Newer {
        /// The file.
        file: PathBuf,
        /// Its schema version.
        found: u32,
        /// The highest that this program reads.
        supported: u32,
    },
    /// An SQLite file of some other program: a person must move it.
    #[error(
        "{} is a database of another program: move it away, or give ferrule another data_dir",
        .file.display()
    )]
    Foreign {
        /// The file.
        file: PathBuf,
    },
    /// Something else that the medium said. Trying again may help.
    #[error("cannot open the store {}: {reason}", .file.display())]
    Failed {
        /// The file.
        file: PathBuf,
        /// SQLite's or the system's words.
        reason: String,
    },
}

/// What a failed call to SQLite means for the writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Full,
    ReadOnly,
    Locked,
    /// The file's content is wrong, and stays so.
    Corrupt,
    /// A page cannot be read: a loose contact or a dead sector.
    Unreadable,
    Other,
}

/// A failed call to SQLite, or to the file system beside it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DbError {
    #[error("{0}")]
    Sqlite(#[from] rusqlite::Error),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Journal(#[from] crate::journal::Damaged),
    /// What a check found.
    #[error("{0}")]
    Check(String),
    #[error("schema {0} is newer than this program")]
    Newer(u32),
    #[error("the file belongs to another program")]
    Foreign,
    #[error("the file is read-only")]
    ReadOnly,
    #[error("it is held by another process")]
    Locked,
}

impl DbError {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            // A number in the file's head that no SQLite has written yet; the only error of its kind without a code.
            Self::Sqlite(rusqlite::Error::SqliteFailure(_, Some(said)))
                if said == "unsupported file format" =>
            {
                Kind::Corrupt
            }
            Self::Sqlite(rusqlite::Error::SqliteFailure(e, _)) => match e.code {
                ErrorCode::DiskFull => Kind::Full,
                ErrorCode::ReadOnly | ErrorCode::PermissionDenied => Kind::ReadOnly,
                ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => Kind::Locked,
                ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => Kind::Corrupt,
                ErrorCode::SystemIoFailure
                    if matches!(
                        e.extended_code,
                        rusqlite::ffi::SQLITE_IOERR_READ | rusqlite::ffi::SQLITE_IOERR_SHORT_READ
                    ) =>
                {
                    Kind::Unreadable
                }
                _ => Kind::Other,
            },
            // A type or text that no op can have written, or `control` without its row.
            Self::Sqlite(_) => Kind::Corrupt,
            Self::Journal(_) | Self::Check(_) => Kind::Corrupt,
            Self::Io(e) => match e.kind() {
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Kind::Full,
                std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
                    Kind::ReadOnly
                }
                _ => Kind::Other,
            },
            Self::ReadOnly => Kind::ReadOnly,
            Self::Locked => Kind::Locked,
            Self::Newer(_) | Self::Foreign => Kind::Other,
        }
    }

    /// As an answer to `open`.
    pub(crate) fn into_open(self, folder: &Path) -> OpenError {
        let (folder, file) = (folder.to_owned(), folder.join(crate::FILE));
        match (&self, self.kind()) {
            (Self::Newer(found), _) => {
                OpenError::Newer { file, found: *found, supported: crate::schema::VERSION }
            }
            (Self::Foreign, _) => OpenError::Foreign { file },
            (_, Kind::Full) => OpenError::Full { folder },
            (_, Kind::ReadOnly) => OpenError::NotWritable { folder, reason: self.to_string() },
            (_, Kind::Locked) => OpenError::Locked { folder },
            _ => OpenError::Failed { file, reason: self.to_string() },
        }
    }

    /// As the message of `StoreEvent::Failing`. Holds no figure that changes by itself, since a changed message is
    /// told again.
    pub(crate) fn describe(&self, folder: &Path) -> String {
        let folder = folder.display();
        let file = crate::FILE;
        match self.kind() {
            Kind::Full => format!(
                "no space left for {folder}/{file}: free some (`du -xh {folder} | sort -h | tail` shows what is \
                 large); acknowledgements wait until then and go on by themselves"
            ),
            Kind::ReadOnly => format!(
                "cannot write {folder}/{file}: {self}; mount its file system with `rw` (a worn SD card turns \
                 read-only: see `dmesg`); acknowledgements wait until then and go on by themselves"
            ),
            Kind::Locked => format!(
                "another process has opened {folder}/{file} (`fuser -v {folder}/{file}` shows it): close it; \
                 acknowledgements wait until then"
            ),
            _ => format!(
                "cannot store in {folder}/{file}: {self}; look at the medium (`dmesg`); acknowledgements wait, and \
                 ferrule goes on trying"
            ),
        }
    }
}
