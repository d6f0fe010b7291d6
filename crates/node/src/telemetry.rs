//! Log lines on standard error: one event, one line.
//!
//! Client ids and topics are the clients' choice and may hold line breaks and terminal codes; what is not printable is
//! escaped where the line is written, so that nobody can forge a line.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tracing_subscriber::filter::{ParseError, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;

/// What is logged when nobody says.
pub const LEVEL_DEFAULT: &str = "info";

/// Exchanges the filter of the subscriber that [`init`] has started. Targets alone: `EnvFilter`, which also reads fields of spans, brings a
/// compiler of regular expressions along.
static FILTER: OnceLock<Box<dyn Fn(Targets) + Send + Sync>> = OnceLock::new();

/// Starts logging to standard error. `filter` is a level (`debug`) or `tracing`'s directives
/// (`info,ferrule_link=debug`). Colours on a terminal only, and not with `no_color`.
///
/// # Errors
/// When `filter` cannot be read.
pub fn init(filter: &str, no_color: bool) -> Result<(), ParseError> {
    let (filter, handle) = reload::Layer::new(filter.parse::<Targets>()?);
    let ansi = io::stderr().is_terminal() && !no_color;
    let lines = tracing_subscriber::fmt::layer()
        .compact()
        .with_target(false)
        .with_ansi(ansi)
        .with_timer(WallClock)
        .with_writer(OneLine { ansi });
    let subscriber = tracing_subscriber::registry().with(filter).with(lines);
    // A second call (tests) keeps the first subscriber.
    if subscriber.try_init().is_ok() {
        // It goes with the process.
        let _ = FILTER.set(Box::new(move |filter| drop(handle.reload(filter))));
    }
    Ok(())
}

/// Whether a filter can be read.
///
/// # Errors
/// Why not.
pub fn check(filter: &str) -> Result<(), ParseError> {
    filter.parse::<Targets>().map(drop)
}

/// Logs by another filter from now on. One that cannot be read ([`check`]) changes nothing.
pub fn set(filter: &str) {
    if let (Some(set), Ok(filter)) = (FILTER.get(), filter.parse::<Targets>()) {
        set(filter);
    }
}

/// The time of an event, in UTC and microseconds.
#[derive(Debug, Clone, Copy)]
struct WallClock;

impl FormatTime for WallClock {
    fn format_time(&self, line: &mut Writer<'_>) -> std::fmt::Result {
        write!(line, "{}", stamp(ferrule_clock::since_epoch()))
    }
}

/// `2026-11-29T12:00:00.000000Z`; beyond the year 9999, the end of that year.
fn stamp(since_epoch: Duration) -> impl std::fmt::Display {
    let time = jiff::Timestamp::from_microsecond(i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX));
    time.unwrap_or(jiff::Timestamp::MAX).strftime("%Y-%m-%dT%H:%M:%S.%6fZ")
}

/// Writes each event as one line.
#[derive(Debug, Clone, Copy)]
struct OneLine {
    /// Escape codes come from the formatter (which escapes those of values) and pass.
    ansi: bool,
}

impl<'a> MakeWriter<'a> for OneLine {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        *self
    }
}

impl Write for OneLine {
    /// The formatter hands over whole events.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        io::stderr().lock().write_all(&one_line(event, self.ansi))?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// `event` with its control characters escaped, the line break at its end apart.
fn one_line(event: &[u8], ansi: bool) -> Vec<u8> {
    let body = event.strip_suffix(b"\n").unwrap_or(event);
    let mut line = Vec::with_capacity(event.len() + 1);
    for &byte in body {
        match byte {
            b'\t' => line.push(byte),
            0x1b if ansi => line.push(byte),
            0..0x20 | 0x7f => line.extend(byte.escape_ascii()),
            _ => line.push(byte),
        }
    }
    line.push(b'\n');
    line
}

/// Lets one of many alike warnings pass in each interval, and counts the others.
///
/// ```
/// use ferrule_node::telemetry::Throttle;
/// use std::time::{Duration, Instant};
///
/// static FULL: Throttle = Throttle::new(Duration::from_secs(10));
/// let now = Instant::now();
/// assert_eq!(FULL.pass(now), Some(0), "log it");
/// assert_eq!(FULL.pass(now), None, "do not");
/// assert_eq!(FULL.pass(now + Duration::from_secs(10)), Some(1), "log it, and that one was left out");
/// ```
#[derive(Debug)]
pub struct Throttle {
    interval: Duration,
    state: Mutex<(Option<Instant>, u64)>,
}

impl Throttle {
    /// One an `interval`.
    #[must_use]
    pub const fn new(interval: Duration) -> Self {
        Self { interval, state: Mutex::new((None, 0)) }
    }

    /// Whether to log now, and how many were left out since the last time.
    pub fn pass(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, suppressed) = &mut *state;
        if last.is_some_and(|last| now.saturating_duration_since(last) < self.interval) {
            *suppressed += 1;
            return None;
        }
        *last = Some(now);
        Some(std::mem::take(suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line() {
        for (event, ansi, line) in [
            ("a\n", false, "a\n"),
            ("a", false, "a\n"),
            ("client=\"x\ny\"\n", false, "client=\"x\\ny\"\n"),
            ("x\r\x1b[2J\ty\n", false, "x\\r\\x1b[2J\ty\n"),
            ("\x1b[31mred\x1b[0m\n", true, "\x1b[31mred\x1b[0m\n"),
            ("é\n", false, "é\n"),
        ] {
            assert_eq!(String::from_utf8_lossy(&one_line(event.as_bytes(), ansi)), line);
        }
    }

    #[test]
    fn stamps() {
        for (us, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (1_795_953_600_000_042, "2026-11-29T12:00:00.000042Z"),
            (2_208_988_800_000_000, "2040-01-01T00:00:00.000000Z"),
            (u64::MAX, "9999-12-30T22:00:00.999999Z"),
        ] {
            assert_eq!(stamp(Duration::from_micros(us)).to_string(), text);
        }
    }

    #[test]
    fn directives() {
        for (filter, ok) in [
            ("info", true),
            ("off", true),
            ("debug,ferrule_link=trace", true),
            ("warn,ferrule_link::uplink=off", true),
            ("ferrule_node=loud", false),
        ] {
            assert_eq!(check(filter).is_ok(), ok, "{filter}");
        }
    }
}
