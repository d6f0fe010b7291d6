//! Dates and times. A time is a count of milliseconds since 1970 in UTC; dates are of the Gregorian calendar, from -9999 to 9999.
//!
//! A zone is an offset from UTC: rules that ran in a zone by name would depend on files of the machine they run on.

use jiff::civil::{Date, DateTime};
use jiff::fmt::strtime;
use jiff::tz::{Offset, TimeZone};
use jiff::{Span, Timestamp, Unit};

use super::*;
use crate::functions::emqx::{days_to, offset_in};

/// The longest format, in bytes: a field may be filled to 255.
const FORMAT_MAX: usize = 256;

pub(super) const FUNCTIONS: &[Function] = &[
    strict("date_add", 3, 4, date_add),
    strict("date_diff", 3, 4, date_diff),
    strict("date_part", 2, 3, date_part),
    strict("date_trunc", 2, 3, date_trunc),
    strict("format_time", 1, 3, format_time),
    strict("now", 0, 0, |_, around| Ok(Value::Int(around.wall_ms))),
    strict("parse_time", 2, 3, parse_time),
    strict("timestamp_ms", 1, 1, timestamp_ms),
];

// === moments, zones, units ===

fn moment(value: &Value<'_>) -> Result<Timestamp, TypeError> {
    Timestamp::from_millisecond(int_of(value)?).map_err(|_| TypeError::BadArgument)
}

/// The zone that the argument `index` is: `Z`, `+01:00`, `+0100`; UTC when it has been left out.
fn zone(args: &[Value<'_>], index: usize) -> Result<Offset, TypeError> {
    let seconds = offset_in(text_or(args, index, "Z")?.as_bytes()).and_then(|s| i32::try_from(s).ok());
    seconds.and_then(|s| Offset::from_seconds(s).ok()).ok_or(TypeError::BadArgument)
}

/// The milliseconds at which a clock of a zone shows this.
fn millis<'a>(shown: DateTime, zone: Offset) -> Given<'a> {
    let moment = zone.to_timestamp(shown).map_err(|_| TypeError::BadArgument)?;
    Ok(Value::Int(moment.as_millisecond()))
}

/// Units, each by its name and in the plural.
pub(super) const UNITS: [&str; 18] = [
    "millisecond",
    "milliseconds",
    "second",
    "seconds",
    "minute",
    "minutes",
    "hour",
    "hours",
    "day",
    "days",
    "week",
    "weeks",
    "month",
    "months",
    "quarter",
    "quarters",
    "year",
    "years",
];
/// Parts of a date.
pub(super) const PARTS: [&str; 13] = [
    "year",
    "quarter",
    "month",
    "week",
    "day",
    "hour",
    "minute",
    "second",
    "millisecond",
    "isoyear",
    "doy",
    "dow",
    "isodow",
];

/// A name as it is known, in any case.
fn known(value: &Value<'_>, names: &'static [&'static str]) -> Result<&'static str, TypeError> {
    let name = text_of(value)?;
    names.iter().find(|known| known.eq_ignore_ascii_case(name)).copied().ok_or(TypeError::BadArgument)
}

/// A unit by its name.
fn unit(value: &Value<'_>) -> Result<&'static str, TypeError> {
    known(value, &UNITS).map(|name| name.strip_suffix('s').unwrap_or(name))
}

/// How many milliseconds a unit always has, or how many months.
enum Size {
    Millis(i64),
    Months(i64),
}

fn size(unit: &str) -> Result<Size, TypeError> {
    Ok(match unit {
        "millisecond" => Size::Millis(1),
        "second" => Size::Millis(1_000),
        "minute" => Size::Millis(60_000),
        "hour" => Size::Millis(3_600_000),
        "day" => Size::Millis(86_400_000),
        "week" => Size::Millis(7 * 86_400_000),
        "month" => Size::Months(1),
        "quarter" => Size::Months(3),
        "year" => Size::Months(12),
        _ => return Err(TypeError::BadArgument),
    })
}

// === dates and their parts ===

fn date_trunc<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let (unit, zone) = (unit(arg(args, 0))?, zone(args, 2)?);
    let shown = zone.to_datetime(moment(arg(args, 1))?);
    let date = shown.date();
    let month = |month: i8| Date::new(date.year(), month, 1).map_err(|_| TypeError::BadArgument);
    let at = |hour: i8, minute: i8, second: i8| date.at(hour, minute, second, 0);
    let start = match unit {
        "millisecond" => shown,
        "second" => at(shown.hour(), shown.minute(), shown.second()),
        "minute" => at(shown.hour(), shown.minute(), 0),
        "hour" => at(shown.hour(), 0, 0),
        "day" => at(0, 0, 0),
        "week" => {
            let days = Span::new().days(i64::from(date.weekday().to_monday_zero_offset()));
            date.checked_sub(days).map_err(|_| TypeError::BadArgument)?.at(0, 0, 0, 0)
        }
        "month" => month(date.month())?.at(0, 0, 0, 0),
        "quarter" => month((date.month() - 1) / 3 * 3 + 1)?.at(0, 0, 0, 0),
        "year" => month(1)?.at(0, 0, 0, 0),
        _ => return Err(TypeError::BadArgument),
    };
    millis(start, zone)
}

fn date_part<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let unit = known(arg(args, 0), &PARTS)?;
    let shown = zone(args, 2)?.to_datetime(moment(arg(args, 1))?);
    let date = shown.date();
    Ok(Value::Int(match unit {
        "year" => date.year().into(),
        "quarter" => ((date.month() - 1) / 3 + 1).into(),
        "month" => date.month().into(),
        "week" => date.iso_week_date().week().into(),
        "isoyear" => date.iso_week_date().year().into(),
        "day" => date.day().into(),
        "doy" => date.day_of_year().into(),
        "dow" => date.weekday().to_sunday_zero_offset().into(),
        "isodow" => date.weekday().to_monday_one_offset().into(),
        "hour" => shown.hour().into(),
        "minute" => shown.minute().into(),
        "second" => shown.second().into(),
        "millisecond" => shown.millisecond().into(),
        _ => return Err(TypeError::BadArgument),
    }))
}

/// Whole units that have gone by, negative when the second time is the earlier.
fn date_diff<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let (unit, zone) = (unit(arg(args, 0))?, zone(args, 3)?);
    let (from, to) = (moment(arg(args, 1))?, moment(arg(args, 2))?);
    match size(unit)? {
        Size::Millis(millis) => Ok(Value::Int((to.as_millisecond() - from.as_millisecond()) / millis)),
        Size::Months(months) => {
            let (from, to) = (zone.to_datetime(from), zone.to_datetime(to));
            let span = from.until((Unit::Month, to)).map_err(|_| TypeError::BadArgument)?;
            Ok(Value::Int(i64::from(span.get_months()) / months))
        }
    }
}

/// Months later the day is the same, or the last one of that month.
fn date_add<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let (unit, zone, count) = (unit(arg(args, 0))?, zone(args, 3)?, int_of(arg(args, 1))?);
    let from = moment(arg(args, 2))?;
    match size(unit)? {
        Size::Millis(millis) => {
            let sum = count.checked_mul(millis).and_then(|more| from.as_millisecond().checked_add(more));
            let sum = Value::Int(sum.ok_or(TypeError::IntegerOverflow)?);
            moment(&sum).map(|_| sum)
        }
        Size::Months(months) => {
            let span = count.checked_mul(months).and_then(|months| Span::new().try_months(months).ok());
            let later = span.and_then(|span| zone.to_datetime(from).checked_add(span).ok());
            millis(later.ok_or(TypeError::BadArgument)?, zone)
        }
    }
}

// === text ===

/// strftime's format; without one RFC 3339.
fn format_time<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let (moment, zone) = (moment(arg(args, 0))?, zone(args, 2)?);
    let rfc3339 = if zone == Offset::UTC { "%FT%T.%3fZ" } else { "%FT%T.%3f%:z" };
    let format = match text_or(args, 1, "")? {
        "" => rfc3339,
        format if format.len() <= FORMAT_MAX => format,
        _ => return Err(TypeError::BadArgument),
    };
    let shown = moment.to_zoned(TimeZone::fixed(zone));
    let text = strtime::format(format, &shown).map_err(|_| TypeError::BadArgument)?;
    within(text.len(), around).map(|()| owned(text))
}

/// Whether a format can be printed by.
pub(super) fn is_format(format: &str) -> bool {
    let shown = Timestamp::UNIX_EPOCH.to_zoned(TimeZone::UTC);
    format.len() <= FORMAT_MAX && strtime::format(format, &shown).is_ok()
}

/// An offset in the text counts before the zone.
fn parse_time<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let (text, format, zone) = (text_of(arg(args, 0))?, text_of(arg(args, 1))?, zone(args, 2)?);
    if format.len() > FORMAT_MAX {
        return Err(TypeError::BadArgument);
    }
    let read = strtime::parse(format, text).map_err(|_| TypeError::BadArgument)?;
    // A zone by name would have to be looked up.
    if read.iana_time_zone().is_some() {
        return Err(TypeError::BadArgument);
    }
    if read.offset().is_some() || read.timestamp().is_some() {
        let moment = read.to_timestamp().map_err(|_| TypeError::BadArgument)?;
        return Ok(Value::Int(moment.as_millisecond()));
    }
    millis(read.to_datetime().map_err(|_| TypeError::BadArgument)?, zone)
}

fn timestamp_ms<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    match arg(args, 0) {
        Value::Int(ms) => Ok(Value::Int(*ms)),
        Value::Text(text) => rfc3339_ms(text).map(Value::Int).ok_or(TypeError::BadArgument),
        _ => Err(TypeError::TypeMismatch),
    }
}

/// RFC 3339, with a space or `t` for `T` allowed, the offset optional (UTC), fractions cut at milliseconds.
pub(crate) fn rfc3339_ms(text: &str) -> Option<i64> {
    let b = text.as_bytes();
    let number = |range: Range<usize>| -> Option<i64> {
        b.get(range)?.iter().try_fold(0, |n, d| d.is_ascii_digit().then(|| n * 10 + i64::from(d - b'0')))
    };
    let is = |at: usize, any: &[u8]| b.get(at).is_some_and(|c| any.contains(c));
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let separated = is(4, b"-") && is(7, b"-") && is(10, b"Tt ") && is(13, b":") && is(16, b":");
    // 60 is a leap second; it counts as the next minute's first.
    if !separated || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let mut at = 19;
    let mut ms = 0;
    if is(at, b".") {
        at += 1;
        let mut unit = 100;
        let first = at;
        while let Some(d @ b'0'..=b'9') = b.get(at) {
            ms += i64::from(d - b'0') * unit;
            unit /= 10;
            at += 1;
        }
        if at == first {
            return None;
        }
    }
    let offset = match b.get(at) {
        None => 0,
        Some(b'Z' | b'z') if b.len() == at + 1 => 0,
        Some(sign @ (b'+' | b'-')) if b.len() == at + 6 && is(at + 3, b":") => {
            let minutes = number(at + 1..at + 3)? * 60 + number(at + 4..at + 6)?;
            if *sign == b'-' { -minutes } else { minutes }
        }
        Some(_) => return None,
    };
    let days = i64::try_from(days_to(year.into(), month.into(), day.into())?).ok()?;
    Some((((days * 24 + hour) * 60 + minute - offset) * 60 + second) * 1000 + ms)
}

#[cfg(test)]
mod tests {
    use super::super::tests::check;

    #[test]
    fn parts() {
        check(&[
            ("date_part", r#""YEAR", -1"#, "1969"),
            ("date_part", r#""quarter", 1600000000123"#, "3"),
            ("date_part", r#""doy", 1600000000123"#, "257"),
            ("date_part", r#""dow", 1600000000123"#, "0"),
            ("date_part", r#""isoyear", 1609459200000"#, "2020"),
            ("date_part", r#""week", 1609459200000"#, "53"),
            ("date_part", r#""millisecond", -1"#, "999"),
            ("date_part", r#""day", 1600000000123, "x""#, "bad_argument"),
            ("date_part", r#""age", 0"#, "bad_argument"),
            ("date_part", r#""day", 9223372036854775807"#, "bad_argument"),
            ("date_part", r#""day", 1.5"#, "type_mismatch"),
            ("date_part", "1, 0", "type_mismatch"),
            ("date_part", r#""day", null"#, "null"),
            ("date_trunc", r#""millisecond", 1600000000123"#, "1600000000123"),
            ("date_trunc", r#""second", -1"#, "-1000"),
            ("date_trunc", r#""month", 1600000000123"#, "1598918400000"),
            ("date_trunc", r#""quarter", 1600000000123"#, "1593561600000"),
            ("date_trunc", r#""year", 1600000000123"#, "1577836800000"),
            ("date_trunc", r#""week", 1600041600000"#, "1600041600000"),
            ("date_trunc", r#""week", -377705116800000"#, "bad_argument"),
            ("date_trunc", r#""dow", 0"#, "bad_argument"),
            ("date_diff", r#""year", 1582934400000, 1614470400000"#, "0"),
            ("date_diff", r#""quarter", 0, 1600000000123"#, "202"),
            ("date_diff", r#""week", 1600000000123, 0"#, "-2645"),
            ("date_diff", r#""day", -9223372036854775808, 0"#, "bad_argument"),
            ("date_add", r#""day", 9223372036854775807, 0"#, "integer_overflow"),
            ("date_add", r#""second", 9223372036854775, 0"#, "bad_argument"),
            ("date_add", r#""month", 9223372036854775807, 0"#, "bad_argument"),
            ("date_add", r#""quarter", -1, 1600000000123"#, "1592051200123"),
            ("date_add", r#""year", 1, 1582934400000"#, "1614470400000"),
            ("date_add", r#""day", 1.0, 0"#, "type_mismatch"),
        ]);
    }

    #[test]
    fn text() {
        check(&[
            ("format_time", "-1", r#""1969-12-31T23:59:59.999Z""#),
            ("format_time", r#"0, "", "+00:00""#, r#""1970-01-01T00:00:00.000Z""#),
            ("format_time", r#"0, "%Y-%j %a %b %e %I%p %z", "-0330""#, r#""1969-365 Wed Dec 31 08PM -0330""#),
            ("format_time", r#"0, "%s %3f %%""#, r#""0 000 %""#),
            ("format_time", r#"0, "%~""#, "bad_argument"),
            ("format_time", r#"0, "é""#, r#""é""#),
            ("format_time", "0, 5", "type_mismatch"),
            ("format_time", r#""0""#, "type_mismatch"),
            ("format_time", "9223372036854775807", "bad_argument"),
            ("parse_time", r#""", """#, "bad_argument"),
            ("parse_time", r#""1600000000", "%s""#, "1600000000000"),
            ("parse_time", r#""2020-09-13 24:00", "%F %H:%M""#, "bad_argument"),
            ("parse_time", r#""2020-09-13T00:00:00-01:00", "%FT%T%:z", "+05:00""#, "1599958800000"),
            ("parse_time", r#""2020-09-13 Europe/Berlin", "%F %Q""#, "bad_argument"),
            ("parse_time", r#""12:00", "%H:%M""#, "bad_argument"),
            ("parse_time", r#""x", null"#, "null"),
            ("parse_time", r#"5, "%s""#, "type_mismatch"),
            ("timestamp_ms", r#""2024-02-30T00:00:00Z""#, "bad_argument"),
            ("timestamp_ms", r#""2024-02-29 12:00:00""#, "1709208000000"),
            ("timestamp_ms", r#""1969-12-31T23:59:59.999Z""#, "-1"),
            ("timestamp_ms", "1.5", "type_mismatch"),
            ("timestamp_ms", r#""""#, "bad_argument"),
            ("now", "", "1600000000123"),
        ]);
    }
}
