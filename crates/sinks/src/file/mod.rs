//! Rows as lines of a file that grows and is rotated.
//!
//! # Constraints
//! An answer means that the line survives a power cut: written, and fsynced with its folder's entry. Files block, so
//! the sink
//! has a thread of its own. The file is in a folder that other programs look at and move files in: what they do must
//! never cost
//! a row that was answered, and never stop the sink.
//!
//! # Data
//! ```text
//! readings.ndjson                             being written: whole lines, but for the last after a crash
//! readings-000042-20261129T121800Z.ndjson     rotated: number, ascending; when (UTC, of this machine's clock)
//! readings-000041-20261128T000000Z.ndjson.gz  and compressed
//! readings-000042-20261129T121800Z.ndjson.gz.tmp   being compressed
//! ```
//! Files are ordered by their numbers: a gateway's clock may be wrong when it starts.
//!
//! # Operation
//! [`task`] takes all rows that wait, at most 1 MiB, into one write and one fsync of [`output::Output`]. Any error
//! closes the file:
//! before the next attempt it is cut back to what was answered, so that nothing is built upon pages that the kernel
//! gave up, and
//! that a full disk leaves no half line. After a crash the length is not known, and a last line without an end is cut
//! off: its
//! row was not answered and comes again. Before and after each write the path is looked at: a file that was moved away
//! is closed
//! and a new one made; rows in one that was removed meanwhile are written again.
//! [`janitor`] compresses rotated files and removes those that are too many, on a thread that lives as long as there is
//! work.
//!
//! # Invariants
//! - Rows are answered only after the fsync, and stand in order. After a crash or an error some may stand twice.
//! - A rotated file is never written again and never overwritten.

mod janitor;
mod output;
mod task;

use crate::{
    Connector, ConnectorSchema, Declared, OptionKind, OptionSchema, Options, Running, SinkContext, Target,
};
use std::path::PathBuf;
use std::time::Duration;

/// The connector `file`.
#[derive(Debug, Clone, Copy, Default)]
pub struct File;

static SCHEMA: ConnectorSchema = ConnectorSchema {
    name: "file",
    summary: "Rows as lines of a file, fsynced, with rotation.",
    options: &[
        OptionSchema::required(
            "path",
            OptionKind::Text,
            "The file; made when it is not there. Its folder must be there.",
        ),
        OptionSchema::optional(
            "format",
            OptionKind::Enum(&["ndjson", "lines"]),
            Some("ndjson"),
            "ndjson: a row is one line of JSON. lines: the payload as it is, and a line break if it ends with none.",
        ),
        OptionSchema::optional(
            "envelope",
            OptionKind::Bool,
            Some("false"),
            "ndjson: each line says where its row comes from: id, received_at, edge, clientid, topic, row.",
        ),
        OptionSchema::optional(
            "rotate_size",
            OptionKind::Size,
            Some("64MiB"),
            "A file that would grow beyond it is rotated first. 64 MiB are copied in seconds; '0': never.",
        ),
        OptionSchema::optional(
            "rotate_every",
            OptionKind::Duration,
            None,
            "A new file at each whole multiple since 1970 in UTC, '1d' at midnight; a file without rows stays.",
        ),
        OptionSchema::optional(
            "keep",
            OptionKind::Int,
            Some("0"),
            "Rotated files that stay, the oldest are removed. 0: all; what was delivered is not ours to remove unasked.",
        ),
        OptionSchema::optional(
            "compress",
            OptionKind::Bool,
            Some("false"),
            "Rotated files are compressed by gzip.",
        ),
    ],
    passthrough: None,
    target: Target::None,
    key: None,
};

/// The smallest `rotate_size`, in bytes: below it a folder fills with files faster than with rows.
const ROTATE_SIZE_MIN: u64 = 4 << 10;

/// The shortest `rotate_every`.
const ROTATE_EVERY_MIN: Duration = Duration::from_secs(60);

/// What stands in a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Ndjson { envelope: bool },
    Lines,
}

/// The options, checked.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    path: PathBuf,
    format: Format,
    /// In bytes.
    rotate_size: Option<u64>,
    rotate_every: Option<Duration>,
    keep: Option<usize>,
    compress: bool,
}

impl Settings {
    fn read(options: &Options) -> Result<Self, Vec<String>> {
        let mut mistakes = Vec::new();
        let path = options.text("path");
        if path.is_empty() || path.ends_with('/') {
            mistakes.push(format!(
                "option `path` = '{path}': the path of a file is wanted, as in 'readings.ndjson'"
            ));
        }
        if path.contains("${") {
            mistakes.push(format!(
                "option `path` = '{path}': one sink writes one file; for files by day write `rotate_every = '1d'`, and what \
                 a row is about into the row"
            ));
        }
        let envelope = options.flag("envelope") == Some(true);
        let lines = options.text("format") == "lines";
        if lines && envelope {
            mistakes.push("option `envelope`: raw lines have none; leave out `format = 'lines'`".into());
        }
        let rotate_size = options.size("rotate_size").filter(|&bytes| bytes > 0);
        if rotate_size.is_some_and(|bytes| bytes < ROTATE_SIZE_MIN) {
            mistakes.push(format!(
                "option `rotate_size`: at least {ROTATE_SIZE_MIN} bytes are wanted, or '0' for never"
            ));
        }
        let rotate_every = options.duration("rotate_every").filter(|every| !every.is_zero());
        if rotate_every.is_some_and(|every| every < ROTATE_EVERY_MIN) {
            mistakes.push("option `rotate_every`: at least '1m' is wanted".into());
        }
        let keep = options.int("keep").and_then(|keep| usize::try_from(keep).ok()).filter(|&keep| keep > 0);
        let compress = options.flag("compress") == Some(true);
        if rotate_size.is_none() && rotate_every.is_none() {
            for (name, given) in [("keep", keep.is_some()), ("compress", compress)] {
                if given {
                    mistakes.push(format!(
                        "option `{name}` is of no use without `rotate_size` or `rotate_every`"
                    ));
                }
            }
        }
        let format = if lines { Format::Lines } else { Format::Ndjson { envelope } };
        let settings = Self { path: path.into(), format, rotate_size, rotate_every, keep, compress };
        if mistakes.is_empty() { Ok(settings) } else { Err(mistakes) }
    }
}

impl Connector for File {
    fn schema(&self) -> &'static ConnectorSchema {
        &SCHEMA
    }

    fn check(&self, options: &Options) -> Result<Declared, Vec<String>> {
        Settings::read(options).map(|_| Declared::default())
    }

    fn start(&self, name: &str, options: &Options, context: SinkContext) -> Result<Running, Vec<String>> {
        let settings = Settings::read(options)?;
        let (running, ended) = Running::new();
        let name = name.to_owned();
        // Timers of its own: the node's runtime may be gone while the disk still blocks this thread.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(|e| vec![format!("cannot make the thread's timers: {e}")])?;
        // A thread's name holds 15 bytes.
        std::thread::Builder::new()
            .name(format!("file-{name}"))
            .spawn(move || {
                runtime.block_on(task::run(settings, &name, context));
                let _ = ended.send(());
            })
            .map_err(|e| vec![format!("cannot start a thread: {e}")])?;
        Ok(running)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn options_are_checked() {
        for (pairs, wanted) in [
            (&[][..], None),
            (&[("rotate_size", "0"), ("rotate_every", "1d"), ("keep", "7"), ("compress", "true")][..], None),
            (&[("rotate_size", "1KiB")][..], Some("at least 4096 bytes")),
            (&[("rotate_every", "5s")][..], Some("at least '1m'")),
            (&[("rotate_size", "0"), ("keep", "7")][..], Some("`keep` is of no use")),
            (&[("format", "lines"), ("envelope", "true")][..], Some("raw lines have none")),
            (&[("format", "csv")][..], Some("ndjson, lines")),
            (&[("rotate_siz", "1MiB")][..], Some("did you mean")),
        ] {
            let given =
                [("path", "x.ndjson")].iter().chain(pairs).map(|&(n, v)| (n.to_owned(), v.to_owned()));
            let checked = Options::parse(&SCHEMA, &given.collect::<Vec<_>>()).and_then(|o| File.check(&o));
            match (checked, wanted) {
                (Ok(_), None) => {}
                (Err(mistakes), Some(wanted)) => assert!(mistakes[0].contains(wanted), "{mistakes:?}"),
                other => panic!("{pairs:?}: {other:?}"),
            }
        }
        for path in ["", "data/", "data/${clientid}.ndjson"] {
            let options = Options::parse(&SCHEMA, &[("path".into(), path.into())]).unwrap();
            assert!(File.check(&options).is_err(), "{path}");
        }
    }
}
