//! Durations and sizes as people write them: `"15s"`, `"4MiB"`.

use std::time::Duration;

/// Units of time, largest first, in milliseconds.
const TIME: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Units of size, largest first, in bytes. Binary before decimal, so that 4,194,304 is shown as `4MiB`.
const SIZE: [(&str, u64); 8] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

/// A whole number and a unit; `None` when it is not of that form or does not fit 64 bits.
fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor = units.iter().find(|(name, _)| *name == unit.trim_start())?.1;
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// In the largest unit that leaves a whole number.
fn show(value: u64, units: &[(&str, u64)], zero: &str) -> String {
    match units.iter().find(|(_, factor)| value >= *factor && value.is_multiple_of(*factor)) {
        Some((name, factor)) => format!("{}{name}", value / factor),
        None => zero.to_owned(),
    }
}

/// `"400ms"`, `"15s"`, `"10m"`, `"1h"`, `"30d"`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    parse(text, &TIME).map(Duration::from_millis)
}

/// As [`parse_duration`] reads it. What is finer than a millisecond is not shown.
pub fn show_duration(value: Duration) -> String {
    show(u64::try_from(value.as_millis()).unwrap_or(u64::MAX), &TIME, "0s")
}

/// `"512B"`, `"64KiB"`, `"4MiB"`, `"1GB"`: bytes. KiB, MiB, GiB are powers of 1,024; KB, MB, GB, TB of 1,000.
pub fn parse_size(text: &str) -> Option<u64> {
    parse(text, &SIZE)
}

/// As [`parse_size`] reads it.
pub fn show_size(bytes: u64) -> String {
    show(bytes, &SIZE, "0B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, ms, shown) in [
            ("0s", 0, "0s"),
            ("400ms", 400, "400ms"),
            ("15s", 15_000, "15s"),
            ("15 s", 15_000, "15s"),
            ("60s", 60_000, "1m"),
            ("1h", 3_600_000, "1h"),
            ("30d", 2_592_000_000, "30d"),
            ("1500ms", 1_500, "1500ms"),
        ] {
            let value = parse_duration(text);
            assert_eq!(value, Some(Duration::from_millis(ms)), "{text}");
            assert_eq!(value.map(show_duration).as_deref(), Some(shown));
        }
        for text in ["", "15", "s", "-1s", "1.5s", "1w", "1S", "99999999999999999999s", "213503982335d"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes, shown) in [
            ("0B", 0, "0B"),
            ("512B", 512, "512B"),
            ("1024B", 1_024, "1KiB"),
            ("4MiB", 4 << 20, "4MiB"),
            ("1MB", 1_000_000, "1MB"),
            ("1GiB", 1 << 30, "1GiB"),
        ] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
            assert_eq!(show_size(bytes), shown);
        }
        for text in ["", "4", "MiB", "4M", "4mib", "99999999999GiB"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }
}
