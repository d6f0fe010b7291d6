//! The loop of a file sink: rows in, lines out.

use super::janitor::{Janitor, Names};
use super::output::{Answered, Output, WRITE_BYTES_MAX, Written};
use super::{Format, Settings};
use crate::health::{Backoff, Health};
use crate::input::{Input, WINDOW};
use crate::{Delivered, OutRow, SinkContext, text};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Most bytes of one write, unless one row is larger: what an error writes again, and what is kept in memory.
const BATCH_BYTES: usize = WRITE_BYTES_MAX as usize;

/// How soon work for the janitor that had to wait is looked at again, and a file that is gone is noticed without rows.
const LOOK_EVERY: Duration = Duration::from_secs(1);

struct Sink {
    name: Arc<str>,
    settings: Settings,
    health: Health,
    names: Names,
    output: Option<Output>,
    /// Of the file that was closed after an error.
    answered: Option<Answered>,
    janitor: Janitor,
    /// Of the last batch: its room is used again.
    lines: Vec<u8>,
}

/// Runs until the context's rows are closed and what was at hand is written, or until its time is over.
pub(super) async fn run(settings: Settings, name: &str, mut context: SinkContext) {
    let names = Names::of(&settings.path);
    let mut sink = Sink {
        name: name.into(),
        health: Health::new(name, WINDOW, Arc::clone(&context.events)),
        janitor: Janitor::new(name, names.clone(), settings.keep, settings.compress),
        names,
        settings,
        output: None,
        answered: None,
        lines: Vec::new(),
    };
    let mut input = Input::new(&mut context);
    let mut backoff = Backoff::default();
    let mut waiting: VecDeque<OutRow> = VecDeque::new();
    loop {
        input.take(&mut waiting);
        if input.deadline.is_some_and(|deadline| waiting.is_empty() || Instant::now() >= deadline) {
            return;
        }
        let until = match sink.turn(&waiting) {
            Ok(rows) => {
                backoff.reset();
                sink.health.up();
                sink.health.done(waiting.drain(..rows).map(|row| (row.seq, Delivered::Yes)).collect());
                if !waiting.is_empty() {
                    continue;
                }
                Instant::now() + LOOK_EVERY
            }
            Err(error) => {
                let error = sink.explain(&error);
                sink.health.down(error);
                sink.health.count("write_failures", 1);
                if input.deadline.is_some() {
                    return; // Stopping, and the disk does not take them: the rows are the outbox's.
                }
                Instant::now() + backoff.next_wait()
            }
        };
        let empty = waiting.is_empty();
        // After an error rows are taken meanwhile, and the wait is kept; else the first row ends it.
        loop {
            input.more(&mut waiting, until).await;
            if input.deadline.is_some()
                || Instant::now() >= until
                || (sink.health.is_up() && empty && !waiting.is_empty())
            {
                break;
            }
        }
    }
}

impl Sink {
    /// Does what is due and writes one batch; how many rows it had.
    fn turn(&mut self, waiting: &VecDeque<OutRow>) -> io::Result<usize> {
        self.janitor.poll();
        let rows = self.encode(waiting);
        let lines = std::mem::take(&mut self.lines);
        let written = self.write(&lines);
        self.lines = lines;
        match written {
            Ok(Written::Safe) => Ok(rows),
            Ok(Written::Removed) => {
                // The rows go into a new one.
                self.output = None;
                Ok(0)
            }
            Err(error) => {
                self.answered = self.output.take().map(|output| output.answered()).or(self.answered);
                Err(error)
            }
        }
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<Written> {
        self.open()?;
        let size = lines.len() as u64;
        let due = |output: &Output| {
            let full =
                self.settings.rotate_size.is_some_and(|max| output.len() > 0 && output.len() + size > max);
            full || self.settings.rotate_every.is_some_and(|every| output.is_over(every))
        };
        if self.output.as_ref().is_some_and(due)
            && let Some(output) = self.output.take()
        {
            let rotated = output.rotate(&self.names)?;
            tracing::info!(sink = &*self.name, file = %rotated.display(), "rotated");
            self.health.count("rotated", 1);
            self.janitor.rotated();
            self.open()?;
        }
        match &mut self.output {
            Some(output) if size > 0 => output.write(lines),
            _ => Ok(Written::Safe),
        }
    }

    /// Opens the file, if it is not open or not there any more.
    fn open(&mut self) -> io::Result<()> {
        if self.output.as_mut().is_some_and(Output::is_there) {
            return Ok(());
        }
        if self.output.take().is_some() {
            self.health.count("files_taken_away", 1);
            tracing::info!(sink = &*self.name, file = %self.settings.path.display(), "taken away, a new one is made");
        }
        let is_json = self.settings.format != Format::Lines;
        let (output, cut) = Output::open(&self.settings.path, self.answered, is_json)?;
        if cut > 0 {
            self.health.count("cut_bytes", cut);
            tracing::warn!(
                sink = &*self.name,
                file = %self.settings.path.display(),
                bytes = cut,
                "the end of the file was not answered for and is cut off; its rows come again"
            );
        }
        self.answered = None;
        self.output = Some(output);
        Ok(())
    }

    /// Makes lines of the rows at the front; how many.
    fn encode(&mut self, waiting: &VecDeque<OutRow>) -> usize {
        self.lines.clear();
        // One huge row must not hold its size for ever.
        self.lines.shrink_to(BATCH_BYTES);
        let room = self.settings.rotate_size.map_or(BATCH_BYTES, |max| {
            let max = usize::try_from(max).unwrap_or(usize::MAX);
            BATCH_BYTES.min(max)
        });
        let mut rows = 0;
        for row in waiting {
            let before = self.lines.len();
            match self.settings.format {
                Format::Ndjson { envelope } => text::json(&row.entry, envelope, &mut self.lines),
                Format::Lines => {
                    let payload = &row.entry.payload;
                    self.lines.extend_from_slice(payload.strip_suffix(b"\n").unwrap_or(payload));
                }
            }
            self.lines.push(b'\n');
            if before > 0 && self.lines.len() > room {
                self.lines.truncate(before);
                break;
            }
            rows += 1;
        }
        rows
    }

    /// What failed, where, and what to do.
    fn explain(&self, error: &io::Error) -> String {
        let path = self.settings.path.display();
        let folder = self.settings.path.parent().filter(|f| !f.as_os_str().is_empty());
        let folder = folder.map_or_else(|| ".".to_owned(), |folder| folder.display().to_string());
        match error.kind() {
            io::ErrorKind::NotFound => format!("{path}: its folder is not there: mkdir -p {folder}"),
            io::ErrorKind::PermissionDenied => {
                format!("{path}: it may not be written: give the node's user write access to {folder}")
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                format!("{path}: the disk is full: make room, or set `keep`")
            }
            _ => format!("{path}: {error}"),
        }
    }
}
