//! The file that is being written: opened and repaired, written and fsynced, rotated.

use super::janitor::Names;
use crate::text::iso_utc;
use serde::de::IgnoredAny;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// What is read at a time when the end of the last whole line is looked for, in bytes.
const LOOK_BYTES: u64 = 64 << 10;

/// Most bytes of one write, unless it is one line: what a power cut may leave in pieces.
pub(super) const WRITE_BYTES_MAX: u64 = 1 << 20;

/// Which file it is, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    fn of(metadata: &fs::Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// How much of which file is answered for: what a file is cut back to after an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answered {
    id: FileId,
    len: u64,
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    /// It is on the disk, in a file that has a name.
    Safe,
    /// The file was removed meanwhile, and the batch with it.
    Removed,
}

/// An open file.
#[derive(Debug)]
pub(super) struct Output {
    path: PathBuf,
    file: File,
    answered: Answered,
    /// When it was last written, in ms since 1970.
    written_ms: i64,
}

impl Output {
    /// Opens the file, or makes it; cuts off what is not answered, if `answered` is of this file, else a last line
    /// without
    /// an end, and of a file of JSON all from a line on that is none, if it is in the last write. Returns also how many
    /// bytes were cut off.
    pub(super) fn open(path: &Path, answered: Option<Answered>, is_json: bool) -> io::Result<(Self, u64)> {
        // A pipe would block in `open`, and a folder's error says less.
        if let Ok(found) = fs::metadata(path)
            && !found.is_file()
        {
            return Err(other("it is there, and is not a file"));
        }
        let file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(other(
                    "another sink or another program has it locked: give each sink a file of its own",
                ));
            }
            // A file system without locks.
            Err(TryLockError::Error(error)) => {
                tracing::debug!(%error, path = %path.display(), "no lock on the file")
            }
        }
        let found = file.metadata()?;
        let id = FileId::of(&found);
        let keep = match answered {
            // A shorter one was emptied by somebody.
            Some(answered) if answered.id == id => answered.len.min(found.len()),
            _ => {
                let whole = line_start(&file, found.len())?;
                if is_json { lines_of_json(&file, whole)? } else { whole }
            }
        };
        let cut = found.len() - keep;
        // After an error it may have been cut back already, and the disk not know: under its next name nobody would cut it again.
        if cut > 0 || answered.is_some_and(|answered| answered.id == id) {
            file.set_len(keep)?;
            file.sync_all()?;
        }
        // The name of a new file, or of one that somebody else has just made.
        sync_folder(path)?;
        let written_ms = found.modified().map_or_else(|_| now_ms(), ms_of);
        Ok((Self { path: path.to_owned(), file, answered: Answered { id, len: keep }, written_ms }, cut))
    }

    /// How much is answered for.
    pub(super) fn answered(&self) -> Answered {
        self.answered
    }

    /// Bytes of whole lines.
    pub(super) fn len(&self) -> u64 {
        self.answered.len
    }

    /// Whether the path still names this file. One that was emptied in place is begun anew.
    pub(super) fn is_there(&mut self) -> bool {
        match fs::metadata(&self.path) {
            Ok(found) if FileId::of(&found) == self.answered.id => {
                self.answered.len = self.answered.len.min(found.len());
                true
            }
            _ => false,
        }
    }

    /// Writes whole lines and waits for the disk. After an error the file is to be closed; what of `lines` is in it is
    /// cut off when it is
    /// opened again with [`Output::answered`], and here already if that is possible, for the room.
    pub(super) fn write(&mut self, lines: &[u8]) -> io::Result<Written> {
        let written = self.file.write_all(lines).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // Best effort: the next open does it too.
            let _ = self.file.set_len(self.answered.len);
            return Err(error);
        }
        if self.file.metadata()?.nlink() == 0 {
            return Ok(Written::Removed);
        }
        self.answered.len += lines.len() as u64;
        self.written_ms = now_ms();
        Ok(Written::Safe)
    }

    /// Whether its rows are of an earlier period than now. A clock that was set back begins no new file.
    pub(super) fn is_over(&self, every: Duration) -> bool {
        let every_ms = i64::try_from(every.as_millis()).unwrap_or(i64::MAX);
        self.len() > 0 && now_ms().div_euclid(every_ms) > self.written_ms.div_euclid(every_ms)
    }

    /// Gives the file its name among the rotated ones, and closes it.
    pub(super) fn rotate(self, names: &Names) -> io::Result<PathBuf> {
        let at = iso_utc(now_ms()).unwrap_or_default();
        // `2026-11-29T12:18:00.123Z` without what some file systems and shells do not like.
        let at: String =
            at.split('.').next().unwrap_or_default().chars().filter(|c| !"-:".contains(*c)).collect();
        let rotated = names.next(&at)?;
        if rotated.exists() {
            return Err(other(&format!("{} is there already", rotated.display())));
        }
        fs::rename(&self.path, &rotated)?;
        sync_folder(&self.path)?;
        Ok(rotated)
    }
}

/// Where the line begins that byte `end` belongs to: behind the last line break before it.
fn line_start(mut file: &File, mut end: u64) -> io::Result<u64> {
    let mut block = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(LOOK_BYTES);
        file.seek(SeekFrom::Start(start))?;
        block.clear();
        file.take(end - start).read_to_end(&mut block)?;
        if let Some(at) = block.iter().rposition(|&b| b == b'\n') {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

/// Where the first line begins that is no JSON, of those in the last write before `end`; else `end`. A power cut may
/// leave of
/// a write that was not synced any of its sectors, and zeros for the others; what is before it was synced.
fn lines_of_json(mut file: &File, end: u64) -> io::Result<u64> {
    let start = line_start(file, end.saturating_sub(WRITE_BYTES_MAX))?;
    file.seek(SeekFrom::Start(start))?;
    let mut lines = BufReader::new(file.take(end - start));
    let (mut line, mut at) = (Vec::new(), start);
    while lines.read_until(b'\n', &mut line)? > 0 {
        if serde_json::from_slice::<IgnoredAny>(&line).is_err() {
            return Ok(at);
        }
        at += line.len() as u64;
        line.clear();
    }
    Ok(at)
}

/// Makes a name in the folder of `path` survive a power cut.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

fn other(text: &str) -> io::Error {
    io::Error::other(text.to_owned())
}

fn ms_of(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

pub(super) fn now_ms() -> i64 {
    ferrule_clock::wall_ms()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_torn_last_line_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let long = "x".repeat(LOOK_BYTES as usize * 2 + 7);
        for (text, whole) in [
            (String::new(), 0),
            ("a\nb\n".into(), 4),
            ("a\nb".into(), 2),
            ("torn from the start".into(), 0),
            (format!("a\n{long}"), 2),
            (format!("{long}\n{long}"), long.len() + 1),
            (format!("{long}\n"), long.len() + 1),
        ] {
            fs::write(&path, &text).unwrap();
            let (mut output, cut) = Output::open(&path, None, false).unwrap();
            assert_eq!((output.len(), cut), (whole as u64, (text.len() - whole) as u64));
            assert_eq!(output.write(b"new\n").unwrap(), Written::Safe);
            drop(output);
            assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}new\n", &text[..whole]));
        }
    }

    #[test]
    fn a_write_in_pieces_is_cut_off_and_nothing_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let big = format!("\"{}\"\n", "x".repeat(2 * WRITE_BYTES_MAX as usize));
        let many = "{\"a\":1}\n".repeat(300_000);
        for (before, after) in [
            ("1\n2\n", "\0\0\0\n4\n"),
            ("1\n", "{\"a\":\0\0}\n"),
            ("1\n2\n", ""),
            // Far behind, where everything was synced: whatever it is, it is not ours to judge.
            (&*format!("not ours\n{many}"), "\"\0\n"),
            (&*big, "\0\n"),
            ("1\n", &*big.replacen('x', "\0", 1)),
        ] {
            fs::write(&path, format!("{before}{after}torn")).unwrap();
            let (output, cut) = Output::open(&path, None, true).unwrap();
            assert_eq!((output.len(), cut), (before.len() as u64, after.len() as u64 + 4));
        }
    }

    #[test]
    fn what_is_not_answered_for_is_cut_off_after_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let (mut output, _) = Output::open(&path, None, false).unwrap();
        output.write(b"a\n").unwrap();
        let answered = output.answered();
        // As if its fsync had failed: written, and not answered for.
        output.write(b"b\n").unwrap();
        drop(output);
        let (output, cut) = Output::open(&path, Some(answered), false).unwrap();
        assert_eq!((output.len(), cut), (2, 2));
        drop(output);
        // Of another file of that name nothing is known.
        fs::remove_file(&path).unwrap();
        fs::write(dir.path().join("g"), "x\ny\nz\n").unwrap();
        fs::rename(dir.path().join("g"), &path).unwrap();
        let (output, cut) =
            Output::open(&path, Some(Answered { id: FileId { device: 0, inode: 0 }, len: 2 }), false)
                .unwrap();
        assert_eq!((output.len(), cut), (6, 0));
    }

    #[test]
    fn a_file_that_is_moved_emptied_or_removed_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let (mut output, _) = Output::open(&path, None, false).unwrap();
        output.write(b"a\n").unwrap();
        assert!(output.is_there());
        File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
        assert!(output.is_there());
        assert_eq!(output.len(), 0);
        fs::rename(&path, dir.path().join("g")).unwrap();
        assert!(!output.is_there());
        // In a moved file rows are safe, in a removed one they are not.
        assert_eq!(output.write(b"b\n").unwrap(), Written::Safe);
        fs::remove_file(dir.path().join("g")).unwrap();
        assert_eq!(output.write(b"c\n").unwrap(), Written::Removed);
    }

    #[test]
    fn a_file_is_locked_and_what_is_no_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let (_output, _) = Output::open(&path, None, false).unwrap();
        let error = Output::open(&path, None, false).unwrap_err().to_string();
        assert!(error.contains("a file of its own"), "{error}");
        let error = Output::open(dir.path(), None, false).unwrap_err().to_string();
        assert!(error.contains("is not a file"), "{error}");
    }

    #[test]
    fn periods_begin_at_whole_multiples() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let day = Duration::from_secs(86_400);
        fs::write(&path, "a\n").unwrap();
        let modified = |days_ago: u32| {
            let file = File::options().append(true).open(&path).unwrap();
            file.set_modified(ferrule_clock::system_time() - day * days_ago).unwrap();
            drop(file);
            Output::open(&path, None, false).unwrap().0.is_over(day)
        };
        assert!(modified(1));
        let file = File::options().append(true).open(&path).unwrap();
        file.set_modified(ferrule_clock::system_time() + day).unwrap();
        assert!(!Output::open(&path, None, false).unwrap().0.is_over(day), "a clock that was set back");
    }
}
