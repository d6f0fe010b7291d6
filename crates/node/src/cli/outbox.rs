//! `outbox list|show|export|purge`: of a running broker through its control socket, else from the store itself.
//!
//! # Invariants
//! - `list`, `show` and `export` change nothing. Rows come in pages, so that a backlog of any size is shown in bounded memory.
//! - `purge` says what it is about to give up and asks, unless `--yes` was given; without a terminal to ask on it refuses.
//! - What comes in while a command runs is neither exported nor given up: both end at the row that was the last when they began.

mod stopped;

use super::status::{age, bytes};
use super::{Failure, Flavor, Where, data_dir, failed};
use crate::config::parse_duration;
use crate::control::{self, AskError, ControlError, DataDirLock};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::fs::OpenOptions;
use std::io::{self, BufRead, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use stopped::Stopped;

/// What is done with outboxes.
#[derive(Debug, Subcommand)]
pub(super) enum OutboxCommand {
    /// Show what waits for each destination
    List(ListArgs),
    /// Show the oldest rows that wait
    Show(ShowArgs),
    /// Print every row that waits, whole, one JSON object a line; nothing is removed
    Export(ExportArgs),
    /// Give up rows that wait: they will not be delivered
    Purge(PurgeArgs),
}

/// Arguments of `outbox list`.
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    at: Where,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `outbox show`.
#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// The outbox: a sink's name, `cloud`, or the number that `list` shows
    name: String,
    /// Rows to show
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: usize,
    #[command(flatten)]
    at: Where,
}

/// Arguments of `outbox export`.
#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// The outbox: a sink's name, `cloud`, or the number that `list` shows
    name: String,
    /// Where to write, a new file, instead of standard output
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    at: Where,
}

/// Arguments of `outbox purge`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("which").required(true))]
pub(super) struct PurgeArgs {
    /// The outbox: a sink's name, `cloud`, or the number that `list` shows
    name: String,
    /// Rows of messages that were received longer ago than this, like 12h or 7d
    #[arg(long, value_name = "AGE", group = "which", value_parser = duration)]
    older_than: Option<Duration>,
    /// All rows
    #[arg(long, group = "which")]
    all: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    at: Where,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "expected a number and a unit (ms, s, m, h, d), like 12h".to_owned())
}

/// Where outboxes are.
enum Source {
    Running(PathBuf, &'static str),
    Stopped(Box<Stopped>),
}

/// A page of rows as JSON, and where to go on.
struct Page {
    rows: Vec<Value>,
    next: Option<u64>,
    last: u64,
}

/// Counts of `purge`.
#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    rows: u64,
    bytes: u64,
    in_flight: u64,
    kept: u64,
    left: u64,
}

impl Source {
    fn open(flavor: &Flavor, at: &Where) -> Result<Self, Failure> {
        let folder = data_dir(flavor, at.data_dir.as_ref(), at.config.as_ref())?;
        let none = || {
            let folder = folder.display();
            Failure::Text(format!(
                "there is no store in {folder}: `--data-dir` or `--config` says where it is"
            ))
        };
        if !folder.is_dir() {
            return Err(none());
        }
        match DataDirLock::take(&folder) {
            Ok(lock) => {
                let stopped = Stopped::open(flavor, lock, at.config.as_deref())?.ok_or_else(none)?;
                Ok(Self::Stopped(Box::new(stopped)))
            }
            Err(ControlError::InUse(_)) => Ok(Self::Running(folder, flavor.name)),
            Err(e) => Err(Failure::Text(e.to_string())),
        }
    }

    fn list(&self) -> Result<Value, Failure> {
        match self {
            Self::Running(folder, program) => ask(folder, program, &json!({ "do": "outbox.list" })),
            Self::Stopped(stopped) => stopped.list(),
        }
    }

    fn page(&self, name: &str, after: u64) -> Result<Page, Failure> {
        let (folder, program) = match self {
            Self::Running(folder, program) => (folder, program),
            Self::Stopped(stopped) => return stopped.page(name, after),
        };
        let mut page = ask(folder, program, &json!({ "do": "outbox.page", "name": name, "after": after }))?;
        let rows = match page.get_mut("rows").map(Value::take) {
            Some(Value::Array(rows)) => rows,
            _ => Vec::new(),
        };
        Ok(Page { rows, next: page["next"].as_u64(), last: page["last"].as_u64().unwrap_or(0) })
    }

    /// Gives up rows, or only counts them, up to row `until` if that is known; also says which was the last row.
    fn give_up(
        &mut self,
        name: &str,
        before_ms: Option<i64>,
        until: Option<u64>,
        dry: bool,
    ) -> Result<(Counts, u64), Failure> {
        let (folder, program) = match self {
            Self::Running(folder, program) => (folder, program),
            Self::Stopped(stopped) => return stopped.give_up(name, before_ms, until, dry),
        };
        let (mut counts, mut until, mut after) = (Counts::default(), until, 0);
        loop {
            let mut request = json!({ "do": "outbox.purge", "name": name, "after": after, "dry": dry });
            match before_ms {
                Some(before) => request["before_ms"] = json!(before),
                None => request["all"] = json!(true),
            }
            if let Some(until) = until {
                request["until"] = json!(until);
            }
            let answer = ask(folder, program, &request)?;
            let number = |key: &str| answer[key].as_u64().unwrap_or(0);
            counts.rows += number("rows");
            counts.bytes += number("bytes");
            counts.in_flight += number("in_flight");
            counts.kept += number("kept");
            counts.left += number("left");
            let last = *until.get_or_insert(number("last"));
            match answer["next"].as_u64() {
                Some(next) if next < last && counts.left == 0 => after = next,
                _ => return Ok((counts, last)),
            }
        }
    }
}

fn ask(folder: &Path, program: &'static str, request: &Value) -> Result<Value, Failure> {
    control::ask(folder, program, request).map_err(|e| match e {
        AskError::NotRunning { .. } => Failure::Text("it has stopped meanwhile: try again".to_owned()),
        e => Failure::Text(e.to_string()),
    })
}

pub(super) fn run(flavor: &Flavor, command: &OutboxCommand) -> Result<u8, Failure> {
    let at = match command {
        OutboxCommand::List(args) => &args.at,
        OutboxCommand::Show(args) => &args.at,
        OutboxCommand::Export(args) => &args.at,
        OutboxCommand::Purge(args) => &args.at,
    };
    let mut source = Source::open(flavor, at)?;
    let code = match command {
        OutboxCommand::List(args) => list(&source, args.json),
        OutboxCommand::Show(args) => show(&source, args),
        OutboxCommand::Export(args) => export(&source, args),
        OutboxCommand::Purge(args) => purge(flavor, &mut source, args),
    };
    match source {
        Source::Stopped(stopped) => code.and_then(|code| stopped.close().map(|()| code)),
        Source::Running(..) => code,
    }
}

fn list(source: &Source, as_json: bool) -> Result<u8, Failure> {
    let list = source.list()?;
    let mut out = io::stdout().lock();
    if as_json {
        writeln!(out, "{list:#}").map_err(failed)?;
        return Ok(0);
    }
    let empty = Vec::new();
    let rows = |key: &str| list[key].as_array().unwrap_or(&empty).iter();
    let mut table = vec![["outbox", "state", "messages", "in flight", "bytes", "oldest"].map(str::to_owned)];
    let cells = |row: &Value, state: &str| {
        let number = |key: &str| row[key].as_u64().unwrap_or(0);
        let messages = number("queued") + number("in_flight");
        let oldest = match row["oldest_ms"].as_u64() {
            Some(ms) if messages > 0 => age(ms),
            _ => "-".to_owned(),
        };
        [
            row["name"].as_str().unwrap_or_default().to_owned(),
            state.to_owned(),
            messages.to_string(),
            number("in_flight").to_string(),
            bytes(number("bytes")),
            oldest,
        ]
    };
    table.extend(rows("outboxes").map(|row| cells(row, row["state"].as_str().unwrap_or_default())));
    table.extend(rows("unclaimed").map(|row| cells(row, "no rule names it")));
    if table.len() == 1 {
        writeln!(out, "there are no outboxes: no rule has a destination").map_err(failed)?;
        return Ok(0);
    }
    let width = |column: usize| table.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    for [name, state, rest @ ..] in &table {
        write!(out, "{name:<0$}  {state:<1$}", widths[0], widths[1]).map_err(failed)?;
        for (cell, width) in rest.iter().zip(&widths[2..]) {
            write!(out, "  {cell:>width$}").map_err(failed)?;
        }
        writeln!(out).map_err(failed)?;
    }
    for row in rows("outboxes") {
        if let Some(error) = row["last_error"].as_str() {
            writeln!(out, "{}: {error}", row["name"].as_str().unwrap_or_default()).map_err(failed)?;
        }
    }
    Ok(0)
}

/// Rows up to the one that was the last at first, while `each` wants more.
fn each(
    source: &Source,
    name: &str,
    mut each: impl FnMut(&Value) -> io::Result<bool>,
) -> Result<(), Failure> {
    let (mut after, mut last) = (0, None);
    loop {
        let page = source.page(name, after)?;
        let last = *last.get_or_insert(page.last);
        for row in &page.rows {
            if row["seq"].as_u64().is_some_and(|seq| seq > last) || !each(row).map_err(failed)? {
                return Ok(());
            }
        }
        match page.next {
            Some(next) if next < last => after = next,
            _ => return Ok(()),
        }
    }
}

fn show(source: &Source, args: &ShowArgs) -> Result<u8, Failure> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut shown = 0;
    each(source, &args.name, |row| {
        if shown == args.limit {
            return Ok(false);
        }
        shown += 1;
        writeln!(out, "{}", line(row))?;
        Ok(true)
    })?;
    out.flush().map_err(failed)?;
    Ok(0)
}

/// How much of a payload is shown.
const HEAD_CHARS: usize = 60;

/// `identity  topic  at  size  head of the payload`.
fn line(row: &Value) -> String {
    let text = |key: &str| row[key].as_str().unwrap_or_default();
    if let Some(fault) = row["fault"].as_str() {
        return format!("row {}  cannot be read: {fault}", row["seq"]);
    }
    let (payload, size) = match row["payload_hex"].as_str() {
        Some(hex) => (format!("0x{hex}"), hex.len() / 2),
        None => (text("payload").escape_debug().to_string(), text("payload").len()),
    };
    let head: String = payload.chars().take(HEAD_CHARS).collect();
    let more = if head.len() < payload.len() { "..." } else { "" };
    let at = row["received_ms"].as_i64().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    let at = at.map_or_else(|| "-".to_owned(), |at| format!("{at:.3}"));
    let target =
        if text("target") == text("topic") { String::new() } else { format!(" -> {}", text("target")) };
    format!("{}  {}{target}  {at}  {}  {head}{more}", text("message_id"), text("topic"), bytes(size as u64))
}

fn export(source: &Source, args: &ExportArgs) -> Result<u8, Failure> {
    let mut out: Box<dyn Write> = match &args.file {
        None => Box::new(io::BufWriter::new(io::stdout().lock())),
        Some(path) => {
            // Messages are nobody else's business, and an earlier export may be the last copy of what was purged.
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
            let file = file.map_err(|e| Failure::Text(format!("cannot make {}: {e}", path.display())))?;
            Box::new(io::BufWriter::new(file))
        }
    };
    let mut rows = 0_u64;
    let exported = each(source, &args.name, |row| {
        rows += 1;
        writeln!(out, "{row}").map(|()| true)
    });
    let exported = exported.and_then(|()| out.flush().map_err(failed));
    if let (Err(_), Some(path)) = (&exported, &args.file) {
        // Half an export must not be taken for a whole one. Whoever cannot remove it has the error all the same.
        let _ = std::fs::remove_file(path);
    }
    exported?;
    if let Some(path) = &args.file {
        drop(out);
        // Whoever purges next relies on it.
        let synced = std::fs::File::open(path).and_then(|file| file.sync_all());
        synced.map_err(|e| Failure::Text(format!("cannot write {}: {e}", path.display())))?;
        writeln!(io::stderr(), "{rows} rows of {} are in {}", args.name, path.display()).map_err(failed)?;
    }
    Ok(0)
}

fn purge(flavor: &Flavor, source: &mut Source, args: &PurgeArgs) -> Result<u8, Failure> {
    let before_ms = args.older_than.map(|age| {
        i64::try_from(ferrule_clock::since_epoch().saturating_sub(age).as_millis()).unwrap_or(i64::MAX)
    });
    let (found, last) = source.give_up(&args.name, before_ms, None, true)?;
    if found.rows == 0 {
        tell(&format!("nothing to give up in {}{}", args.name, kept(found.kept)))?;
        return Ok(0);
    }
    if !args.yes {
        confirm(&format!(
            "{} rows ({}) of {} will not be delivered. `{} outbox export {}` keeps a copy. Give them up? [y/N] ",
            found.rows,
            bytes(found.bytes),
            args.name,
            flavor.name,
            args.name
        ))?;
    }
    let (done, _) = source.give_up(&args.name, before_ms, Some(last), false)?;
    tell(&format!("gave up {} rows ({}) of {}{}", done.rows, bytes(done.bytes), args.name, kept(done.kept)))?;
    if done.in_flight > 0 {
        tell(&format!(
            "{} of them had been handed to the destination's client: it may deliver them all the same",
            done.in_flight
        ))?;
    }
    if done.left > 0 {
        tell("there are more, between rows that stay: run it again when these have been removed")?;
        return Ok(1);
    }
    Ok(0)
}

fn kept(rows: u64) -> String {
    match rows {
        0 => String::new(),
        rows => format!("; {rows} are on their way to the destination, which is up, and stay"),
    }
}

fn tell(text: &str) -> Result<(), Failure> {
    writeln!(io::stderr(), "{text}").map_err(failed)
}

fn confirm(question: &str) -> Result<(), Failure> {
    let mut input = io::stdin().lock();
    if !input.is_terminal() {
        return Err(Failure::Text(format!(
            "{question}\nnobody can be asked here: `--yes` says it beforehand"
        )));
    }
    let mut err = io::stderr();
    write!(err, "{question}").and_then(|()| err.flush()).map_err(failed)?;
    let mut answer = String::new();
    io::Read::take(&mut input, 64).read_line(&mut answer).map_err(failed)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure::Text("nothing was given up".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_on_one_line() {
        let row = json!({
            "seq": 3, "message_id": "gw.a1.0.7", "topic": "t/1", "target": "t/1", "received_ms": 1_700_000_000_123_i64,
            "payload": "{\"a\":\n1}"
        });
        assert_eq!(line(&row), "gw.a1.0.7  t/1  2023-11-14T22:13:20.123Z  8 B  {\\\"a\\\":\\n1}");
        let mut other = row.clone();
        other["target"] = json!("alerts");
        other["payload"] = json!("x".repeat(70));
        let shown = line(&other);
        assert!(shown.contains("t/1 -> alerts") && shown.ends_with(&format!("70 B  {}...", "x".repeat(60))));
        assert_eq!(line(&json!({"seq": 9, "fault": "damaged"})), "row 9  cannot be read: damaged");
    }
}
