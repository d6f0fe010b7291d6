//! Rotated files: their names, and the thread that compresses them and removes those that are too many.

use super::output::sync_folder;
use flate2::Compression;
use flate2::write::GzEncoder;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;

/// Bytes compressed between two looks at whether to stop.
const CHUNK_BYTES: usize = 64 << 10;

/// gzip's own default: at the fast end files of readings are a third larger.
const LEVEL: u32 = 6;

/// How rotated files of one sink are called.
#[derive(Debug, Clone)]
pub(super) struct Names {
    folder: PathBuf,
    /// `readings` of `readings.ndjson`.
    stem: String,
    /// `.ndjson`, or nothing.
    extension: String,
}

/// A rotated file. Of a number there may be both forms, after a crash.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Rotated {
    number: u64,
    is_compressed: bool,
    path: PathBuf,
}

impl Names {
    pub(super) fn of(path: &Path) -> Self {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let text = |part: Option<&std::ffi::OsStr>| part.map(|p| p.to_string_lossy().into_owned());
        Self {
            folder: folder.to_owned(),
            stem: text(path.file_stem()).unwrap_or_default(),
            extension: text(path.extension()).map(|e| format!(".{e}")).unwrap_or_default(),
        }
    }

    /// The name of the next one, rotated at `at` (`20261129T121800`).
    pub(super) fn next(&self, at: &str) -> io::Result<PathBuf> {
        let number = self.all()?.last().map_or(1, |last| last.number.saturating_add(1));
        Ok(self.folder.join(format!("{}-{number:06}-{at}Z{}", self.stem, self.extension)))
    }

    /// All that are there, the oldest first.
    fn all(&self) -> io::Result<Vec<Rotated>> {
        let mut found = Vec::new();
        for file in fs::read_dir(&self.folder)? {
            let path = file?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if let Some((number, is_compressed)) = self.read(&name) {
                found.push(Rotated { number, is_compressed, path });
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Number and form of a rotated file; none of any other.
    fn read(&self, name: &str) -> Option<(u64, bool)> {
        let rest = name.strip_prefix(&self.stem)?.strip_prefix('-')?;
        let (rest, is_compressed) = rest.strip_suffix(".gz").map_or((rest, false), |rest| (rest, true));
        let (number, at) = rest.strip_suffix(&self.extension)?.split_once('-')?;
        let at = at.strip_suffix('Z')?;
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let is_time =
            at.len() == 15 && at.split_once('T').is_some_and(|(date, time)| digits(date) && digits(time));
        (number.len() >= 6 && digits(number) && is_time).then_some(())?;
        Some((number.parse().ok()?, is_compressed))
    }
}

/// What is done with rotated files, and the thread that does it.
#[derive(Debug)]
pub(super) struct Janitor {
    work: Work,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// There may be work that the thread has not seen.
    due: bool,
}

#[derive(Debug, Clone)]
struct Work {
    sink: Arc<str>,
    names: Names,
    keep: Option<usize>,
    compress: bool,
}

impl Janitor {
    /// One that looks, when it is first [polled](Self::poll), for what an earlier life has left.
    pub(super) fn new(sink: &str, names: Names, keep: Option<usize>, compress: bool) -> Self {
        let work = Work { sink: sink.into(), names, keep, compress };
        Self { due: keep.is_some() || compress, work, stop: Arc::default(), thread: None }
    }

    /// A file was rotated.
    pub(super) fn rotated(&mut self) {
        self.due = self.work.keep.is_some() || self.work.compress;
        self.poll();
    }

    /// Starts the thread, if there is work and none is running.
    pub(super) fn poll(&mut self) {
        if !self.due || self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return;
        }
        let (work, stop) = (self.work.clone(), Arc::clone(&self.stop));
        let started = std::thread::Builder::new().name(format!("gzip-{}", work.sink)).spawn(move || {
            if let Err(error) = work.tidy(&stop) {
                tracing::warn!(
                    sink = &*work.sink,
                    "rotated files stay as they are until the next rotation: {error}"
                );
            }
        });
        match started {
            Ok(thread) => (self.thread, self.due) = (Some(thread), false),
            Err(error) => {
                tracing::warn!(sink = &*self.work.sink, %error, "no thread for rotated files, trying again")
            }
        }
    }
}

/// Waits for the thread, which stops at the next chunk: what it has begun is begun anew in the next life.
impl Drop for Janitor {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Work {
    fn tidy(&self, stop: &AtomicBool) -> Result<(), String> {
        let folder = |error: io::Error| format!("{}: {error}", self.names.folder.display());
        let mut all = self.names.all().map_err(folder)?;
        if let Some(keep) = self.keep {
            let mut numbers: Vec<u64> = all.iter().map(|file| file.number).collect();
            numbers.dedup();
            let first_kept =
                numbers.len().checked_sub(keep).and_then(|at| numbers.get(at).copied()).unwrap_or(0);
            for old in all.extract_if(.., |file| file.number < first_kept) {
                fs::remove_file(&old.path).map_err(|error| format!("{}: {error}", old.path.display()))?;
                tracing::info!(sink = &*self.sink, file = %old.path.display(), keep, "rotated file removed");
            }
        }
        if !self.compress {
            return Ok(());
        }
        for file in all.iter().filter(|file| !file.is_compressed) {
            match compress(&file.path, stop) {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                // Somebody took it away: that is what it is there for.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(format!("{}: {error}", file.path.display())),
            }
        }
        Ok(())
    }
}

/// Puts `path.gz` in the place of `path`; false when stopped. Whenever it ends, one of the two is there, whole.
fn compress(path: &Path, stop: &AtomicBool) -> io::Result<bool> {
    let with = |suffix: &str| PathBuf::from([path.as_os_str(), suffix.as_ref()].concat_os());
    let (unfinished, compressed) = (with(".gz.tmp"), with(".gz"));
    let mut from = File::open(path)?;
    let mut to = GzEncoder::new(File::create(&unfinished)?, Compression::new(LEVEL));
    let mut chunk = vec![0; CHUNK_BYTES];
    let finished = loop {
        if stop.load(Relaxed) {
            break Ok(None);
        }
        match from.read(&mut chunk) {
            Ok(0) => break to.finish().map(Some),
            Ok(read) => {
                if let Err(error) = to.write_all(&chunk[..read]) {
                    break Err(error);
                }
            }
            Err(error) => break Err(error),
        }
    };
    match finished {
        Ok(Some(file)) => {
            file.sync_all()?;
            fs::rename(&unfinished, &compressed)?;
            sync_folder(path)?;
            fs::remove_file(path)?;
            Ok(true)
        }
        Ok(None) => fs::remove_file(&unfinished).map(|()| false),
        Err(error) => {
            // Its room, on a full disk.
            let _ = fs::remove_file(&unfinished);
            Err(error)
        }
    }
}

/// Names that need not be UTF-8, one behind the other.
trait ConcatOs {
    fn concat_os(&self) -> std::ffi::OsString;
}

impl ConcatOs for [&std::ffi::OsStr; 2] {
    fn concat_os(&self) -> std::ffi::OsString {
        let mut text = self[0].to_owned();
        text.push(self[1]);
        text
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn numbers_go_on_and_other_files_are_no_concern() {
        let dir = tempfile::tempdir().unwrap();
        let own = Names::of(&dir.path().join("r.ndjson"));
        let next = |own: &Names| own.next("20261129T121800").unwrap().file_name().unwrap().to_owned();
        assert_eq!(next(&own), "r-000001-20261129T121800Z.ndjson");
        for other in [
            "r.ndjson",
            "r-000007-20261129T121800Z.ndjson.gz.tmp",
            "r-000008-20261129T121800Z.csv",
            "r-x-20261129T121800Z.ndjson",
            "r-000009-notes.ndjson",
            "rr-000010-20261129T121800Z.ndjson",
        ] {
            fs::write(dir.path().join(other), "").unwrap();
        }
        assert_eq!(next(&own), "r-000001-20261129T121800Z.ndjson");
        // After a clock of 1970 the number tells which is the last.
        fs::write(dir.path().join("r-000041-20261129T121800Z.ndjson.gz"), "").unwrap();
        fs::write(dir.path().join("r-000042-19700101T000012Z.ndjson"), "").unwrap();
        assert_eq!(next(&own), "r-000043-20261129T121800Z.ndjson");
        assert_eq!(
            Names::of(Path::new("plain")).next("20261129T121800").unwrap(),
            Path::new("./plain-000001-20261129T121800Z")
        );
    }

    #[test]
    fn the_oldest_go_and_the_others_are_compressed() {
        let dir = tempfile::tempdir().unwrap();
        let text = "{\"a\":1}\n".repeat(50_000);
        for n in 1..=5 {
            fs::write(dir.path().join(format!("r-{n:06}-20261129T121800Z.ndjson")), &text).unwrap();
        }
        // A crash between the two last steps of compressing, and one in the first.
        fs::write(dir.path().join("r-000004-20261129T121800Z.ndjson.gz"), "half").unwrap();
        fs::write(dir.path().join("r-000005-20261129T121800Z.ndjson.gz.tmp"), "half").unwrap();
        let names_of = Names::of(&dir.path().join("r.ndjson"));
        let work = Work { sink: "s".into(), names: names_of, keep: Some(3), compress: true };
        work.tidy(&AtomicBool::new(false)).unwrap();
        let gz = |n: u32| format!("r-{n:06}-20261129T121800Z.ndjson.gz");
        assert_eq!(names(dir.path()), [gz(3), gz(4), gz(5)]);
        for n in 3..=5 {
            let mut read = String::new();
            let file = File::open(dir.path().join(gz(n))).unwrap();
            flate2::read::GzDecoder::new(file).read_to_string(&mut read).unwrap();
            assert_eq!(read, text);
        }
    }

    #[test]
    fn stopping_leaves_the_file_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r-000001-20261129T121800Z.ndjson");
        fs::write(&path, "a\n").unwrap();
        assert!(!compress(&path, &AtomicBool::new(true)).unwrap());
        assert_eq!(names(dir.path()), ["r-000001-20261129T121800Z.ndjson"]);
    }
}
