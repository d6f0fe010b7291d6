//! Dates and times. Now is the time of the step; local time is UTC unless [`Surroundings::utc_offset_s`] says otherwise.
//!
//! A time is a count of units since 1970 in UTC, before it as well. Years before 0 are refused; after 9999 only
//! [`format_date`] goes, which then writes more than four digits.

use std::borrow::Cow;

use super::{Given, emqx, owned, take, within};
use crate::TypeError;
use crate::functions::{Function, Surroundings};
use crate::value::Value;

pub(super) const FUNCTIONS: &[Function] = &[
    emqx("date_to_unix_ts", 3, 4, date_to_unix_ts),
    emqx("format_date", 3, 4, format_date),
    emqx("mongo_date", 0, 2, mongo_date),
    emqx("now_rfc3339", 0, 1, now_rfc3339),
    emqx("now_timestamp", 0, 1, now_timestamp),
    emqx("rfc3339_to_unix_ts", 1, 2, rfc3339_to_unix_ts),
    emqx("timezone_to_offset_seconds", 1, 1, timezone_to_second),
    emqx("timezone_to_second", 1, 1, timezone_to_second),
    emqx("unix_ts_to_rfc3339", 1, 2, unix_ts_to_rfc3339),
];

const DAY: i128 = 86_400;
const NANOS: i128 = 1_000_000_000;
/// The last second of the year 9999.
const SECONDS_MAX: i128 = 253_402_300_799;
/// The first second of the year 0.
const SECONDS_MIN: i128 = -62_167_219_200;

/// How many of a unit a second has.
fn unit_of(value: &Value<'_>) -> Result<i128, TypeError> {
    match value {
        Value::Text(name) => match &**name {
            "second" => Ok(1),
            "millisecond" => Ok(1_000),
            "microsecond" => Ok(1_000_000),
            "nanosecond" => Ok(NANOS),
            _ => Err(TypeError::BadArgument),
        },
        _ => Err(TypeError::TypeMismatch),
    }
}

/// The unit that is the argument `index`, or seconds when it has been left out.
fn unit_or_second(args: &[Value<'_>], index: usize) -> Result<i128, TypeError> {
    args.get(index).map_or(Ok(1), unit_of)
}

/// A count of units, an integer of any size within reason.
fn count_of(value: &Value<'_>) -> Result<i128, TypeError> {
    match value {
        Value::Int(count) => Ok(i128::from(*count)),
        // Nanoseconds after 2262 have 20 digits.
        Value::Big(digits) if digits.len() <= 30 => digits.parse().map_err(|_| TypeError::BadArgument),
        Value::Big(_) => Err(TypeError::BadArgument),
        _ => Err(TypeError::TypeMismatch),
    }
}

/// The value of a count.
fn count<'a>(count: i128) -> Value<'a> {
    i64::try_from(count).map_or_else(|_| Value::Big(Cow::Owned(count.to_string())), Value::Int)
}

fn now_in(unit: i128, around: &Surroundings) -> i128 {
    (i128::from(around.wall_ms) * unit).div_euclid(1_000)
}

/// Digits, no signs.
fn digits(text: &[u8]) -> Option<i128> {
    text.iter().try_fold(0i128, |n, d| d.is_ascii_digit().then(|| n * 10 + i128::from(d - b'0')))
}

/// The days from 1970 to a date of the Gregorian calendar, years beginning in March; `None` when there is no such date.
pub(in crate::functions) fn days_to(year: i128, month: i128, day: i128) -> Option<i128> {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let last = match month {
        2 => 28 + i128::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if !(1..=last).contains(&day) {
        return None;
    }
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let of_era = y.rem_euclid(400);
    let day_of_year = (153 * m + 2) / 5 + day - 1;
    Some(y.div_euclid(400) * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + day_of_year - 719_468)
}

/// Year, month and day of a count of days: [`days_to`] back.
fn date_of(days: i128) -> (i128, i128, i128) {
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let m = (5 * of_year + 2) / 153;
    let month = if m < 10 { m + 3 } else { m - 9 };
    (era * 400 + year + i128::from(month <= 2), month, of_year - (153 * m + 2) / 5 + 1)
}

/// The seconds to a time of day on a date. A second 60 is a leap second: the next minute's first.
fn seconds_to(date: [i128; 3], time: [i128; 3]) -> Result<i128, TypeError> {
    let ([year, month, day], [hour, minute, second]) = (date, time);
    if hour > 23 || minute > 59 || second > 60 {
        return Err(TypeError::BadArgument);
    }
    let days = days_to(year, month, day).ok_or(TypeError::BadArgument)?;
    Ok(days * DAY + hour * 3_600 + minute * 60 + second)
}

/// What a time offset is in seconds: text as `Z`, `+08:00`, `+0800`, `+08:00:00`, `local`; a number of seconds; nothing is
/// UTC.
fn offset_of(value: &Value<'_>, around: &Surroundings) -> Result<i128, TypeError> {
    match value {
        Value::Int(seconds) => Ok(i128::from(*seconds)),
        Value::Missing => Ok(0),
        Value::Text(text) if &**text == "local" => Ok(i128::from(around.utc_offset_s)),
        Value::Text(text) => offset_in(text.as_bytes()).ok_or(TypeError::BadArgument),
        _ => Err(TypeError::TypeMismatch),
    }
}

pub(in crate::functions) fn offset_in(text: &[u8]) -> Option<i128> {
    if text == b"Z" || text == b"z" {
        return Some(0);
    }
    let (sign, rest) = text.split_first()?;
    let sign = match sign {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let parts: Vec<&[u8]> = rest.splitn(4, |b| *b == b':').collect();
    let (hour, minute, second): (&[u8], &[u8], &[u8]) = match parts[..] {
        [hhmm] if hhmm.len() == 4 => (hhmm.get(..2)?, hhmm.get(2..)?, b"0"),
        [hour, minute] => (hour, minute, b"0"),
        [hour, minute, second] => (hour, minute, second),
        _ => return None,
    };
    let part = |text: &[u8], max: i128| {
        if (1..=2).contains(&text.len()) { digits(text).filter(|n| *n <= max) } else { None }
    };
    Some(sign * (part(hour, 23)? * 3_600 + part(minute, 59)? * 60 + part(second, 59)?))
}

/// What stands in a format: a field, or text.
enum Piece<'f> {
    Field(Field),
    Literal(&'f str),
}

#[derive(Clone, Copy)]
enum Field {
    Year,
    Month,
    Day,
    Hour,
    Minute,
    Second,
    /// So many digits of the second's fraction.
    Fraction(u8),
    Offset,
    OffsetColon,
    OffsetColons,
}

/// Each field, and how many bytes it has when a date is read.
const FIELDS: [(&str, Field, usize); 12] = [
    ("%Y", Field::Year, 4),
    ("%m", Field::Month, 2),
    ("%d", Field::Day, 2),
    ("%H", Field::Hour, 2),
    ("%M", Field::Minute, 2),
    ("%S", Field::Second, 2),
    ("%N", Field::Fraction(9), 9),
    ("%6N", Field::Fraction(6), 6),
    ("%3N", Field::Fraction(3), 3),
    ("%z", Field::Offset, 5),
    ("%:z", Field::OffsetColon, 6),
    ("%::z", Field::OffsetColons, 9),
];

/// The pieces of a format, each with its size in a date that is read.
fn pieces(mut rest: &str) -> impl Iterator<Item = (Piece<'_>, usize)> {
    let field = |text: &str| FIELDS.iter().find(|(name, ..)| text.starts_with(name));
    std::iter::from_fn(move || {
        if let Some((name, field, size)) = field(rest) {
            rest = rest.strip_prefix(name)?;
            return Some((Piece::Field(*field), *size));
        }
        let next =
            rest.match_indices('%').map(|(at, _)| at).find(|at| rest.get(*at..).and_then(field).is_some());
        let (literal, after) = rest.split_at_checked(next.unwrap_or(rest.len()))?;
        rest = after;
        (!literal.is_empty()).then_some((Piece::Literal(literal), literal.len()))
    })
}

/// Writes a time, `offset` seconds east of UTC.
fn format(
    at: i128,
    unit: i128,
    offset: i128,
    format: &str,
    around: &Surroundings,
) -> Result<String, TypeError> {
    let seconds = at.div_euclid(unit) + offset;
    if seconds < SECONDS_MIN {
        return Err(TypeError::BadArgument);
    }
    let nanos = at.rem_euclid(unit) * (NANOS / unit);
    let (year, month, day) = date_of(seconds.div_euclid(DAY));
    let of_day = seconds.rem_euclid(DAY);
    let sign = if offset < 0 { '-' } else { '+' };
    let (hours, minutes) = (offset.abs() / 3_600, offset.abs() / 60 % 60);
    let mut out = String::new();
    for (piece, _) in pieces(format) {
        match piece {
            Piece::Literal(text) => out.push_str(text),
            Piece::Field(field) => out.push_str(&match field {
                Field::Year => format!("{year:04}"),
                Field::Month => format!("{month:02}"),
                Field::Day => format!("{day:02}"),
                Field::Hour => format!("{:02}", of_day / 3_600),
                Field::Minute => format!("{:02}", of_day / 60 % 60),
                Field::Second => format!("{:02}", of_day % 60),
                Field::Fraction(3) => format!("{:03}", nanos / 1_000_000),
                Field::Fraction(6) => format!("{:06}", nanos / 1_000),
                Field::Fraction(_) => format!("{nanos:09}"),
                Field::Offset => format!("{sign}{hours:02}{minutes:02}"),
                Field::OffsetColon => format!("{sign}{hours:02}:{minutes:02}"),
                Field::OffsetColons => format!("{sign}{hours:02}:{minutes:02}:{:02}", offset.abs() % 60),
            }),
        }
        within(out.len(), around)?;
    }
    Ok(out)
}

/// RFC 3339, with as many digits of the fraction as the unit has.
fn rfc3339(at: i128, unit: i128, around: &Surroundings) -> Result<String, TypeError> {
    if at.div_euclid(unit) > SECONDS_MAX {
        return Err(TypeError::BadArgument);
    }
    let pattern = match unit {
        1 => "%Y-%m-%dT%H:%M:%S%:z",
        1_000 => "%Y-%m-%dT%H:%M:%S.%3N%:z",
        1_000_000 => "%Y-%m-%dT%H:%M:%S.%6N%:z",
        _ => "%Y-%m-%dT%H:%M:%S.%N%:z",
    };
    format(at, unit, i128::from(around.utc_offset_s), pattern, around)
}

/// Fields have fixed widths; text between them is passed over unseen, and what comes after the format is left.
fn date_to_unix_ts<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let unit = unit_of(&take(args, 0))?;
    let explicit = if args.len() > 3 { offset_of(&take(args, 1), around)? } else { 0 };
    let (text, pattern) =
        (take(args, args.len().saturating_sub(1)), take(args, args.len().saturating_sub(2)));
    let (Value::Text(text), Value::Text(pattern)) = (text, pattern) else {
        return Err(TypeError::TypeMismatch);
    };
    let mut rest = text.as_bytes();
    let (mut year, mut month, mut day, mut hour, mut minute, mut second) =
        (None, None, None, None, None, None);
    let (mut nanos, mut offset) = (0, 0);
    for (piece, size) in pieces(&pattern) {
        if rest.is_empty() {
            break;
        }
        let (part, after) = rest.split_at_checked(size).ok_or(TypeError::BadArgument)?;
        rest = after;
        let Piece::Field(field) = piece else { continue };
        let number = || digits(part).ok_or(TypeError::BadArgument);
        match field {
            Field::Year => year = Some(number()?),
            Field::Month => month = Some(number()?),
            Field::Day => day = Some(number()?),
            Field::Hour => hour = Some(number()?),
            Field::Minute => minute = Some(number()?),
            Field::Second => second = Some(number()?),
            Field::Fraction(3) => nanos = number()? * 1_000_000,
            Field::Fraction(6) => nanos = number()? * 1_000,
            Field::Fraction(_) => nanos = number()?,
            Field::Offset | Field::OffsetColon | Field::OffsetColons => {
                offset = offset_in(part).ok_or(TypeError::BadArgument)?;
            }
        }
    }
    let (Some(year), Some(month), Some(day), Some(hour), Some(minute), Some(second)) =
        (year, month, day, hour, minute, second)
    else {
        return Err(TypeError::BadArgument);
    };
    let seconds = seconds_to([year, month, day], [hour, minute, second])? - offset - explicit;
    Ok(count(seconds * unit + nanos / (NANOS / unit)))
}

fn format_date<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let unit = unit_of(&take(args, 0))?;
    let offset = offset_of(&take(args, 1), around)?;
    let at = match args.get(3) {
        None => now_in(unit, around),
        Some(at) => count_of(at)?,
    };
    let Value::Text(pattern) = take(args, 2) else { return Err(TypeError::TypeMismatch) };
    format(at, unit, offset, &pattern, around).map(owned)
}

/// There is no date value here: it is the text as which EMQX's SQL tester shows one.
fn mongo_date<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let unit = args.get(1).map_or(Ok(1_000), unit_of)?;
    let at = match args.first() {
        None => now_in(unit, around),
        Some(at) => count_of(at)?,
    };
    let millis = (at * 1_000).div_euclid(unit);
    if millis.div_euclid(1_000) > SECONDS_MAX {
        return Err(TypeError::BadArgument);
    }
    format(millis, 1_000, 0, "ISODate(%Y-%m-%dT%H:%M:%S.%3NZ)", around).map(owned)
}

fn now_rfc3339<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let unit = unit_or_second(args, 0)?;
    rfc3339(now_in(unit, around), unit, around).map(owned)
}

fn now_timestamp<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let unit = unit_or_second(args, 0)?;
    Ok(count(now_in(unit, around)))
}

/// Any character may stand for the `T`; the offset must be there; digits beyond the unit are rounded, halves up.
fn rfc3339_to_unix_ts<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let unit = unit_or_second(args, 1)?;
    let text = take(args, 0);
    let Value::Text(text) = &text else { return Err(TypeError::TypeMismatch) };
    parse_rfc3339(text.as_bytes(), unit).unwrap_or(Err(TypeError::BadArgument)).map(count)
}

fn parse_rfc3339(text: &[u8], unit: i128) -> Option<Result<i128, TypeError>> {
    let number = |from: usize, to: usize| digits(text.get(from..to)?);
    let is = |at: usize, byte: u8| text.get(at) == Some(&byte);
    if !(is(4, b'-') && is(7, b'-') && is(13, b':') && is(16, b':')) {
        return None;
    }
    let date = [number(0, 4)?, number(5, 7)?, number(8, 10)?];
    let time = [number(11, 13)?, number(14, 16)?, number(17, 19)?];
    let mut rest = text.get(19..)?;
    let mut fraction = 0;
    if let Some(after) = rest.strip_prefix(b".") {
        let length = after.iter().take_while(|b| b.is_ascii_digit()).count();
        if length == 0 {
            return None;
        }
        // Digits after the tenth cannot matter to nanoseconds but as a half that the tenth has decided.
        let ten = (0..10).try_fold(0i128, |n, at| {
            let digit = if at < length { after.get(at)? - b'0' } else { 0 };
            Some(n * 10 + i128::from(digit))
        })?;
        if unit > 1 {
            let one = 10 * NANOS / unit;
            fraction = (ten + one / 2) / one;
        }
        rest = after.get(length..)?;
    }
    let offset = match rest.len() {
        1 => offset_in(rest)?,
        6 if rest.get(3) == Some(&b':') => offset_in(rest)?,
        _ => return None,
    };
    Some(seconds_to(date, time).map(|seconds| (seconds - offset) * unit + fraction))
}

fn timezone_to_second<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    offset_of(&take(args, 0), around).map(count)
}

fn unix_ts_to_rfc3339<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let unit = unit_or_second(args, 1)?;
    rfc3339(count_of(&take(args, 0))?, unit, around).map(owned)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::tests::check;
    use super::*;

    #[test]
    fn dates_are_written() {
        check(&[
            ("format_date", r#"["second","Z","%Y-%m-%dT%H:%M:%S%z"]"#, r#""2020-09-13T12:26:40+0000""#),
            ("format_date", r#"["millisecond",0,"%S.%3N %6N %N"]"#, r#""40.123 123000 123000000""#),
            ("format_date", r#"["second","+05:30","%H:%M%:z",1600000000]"#, r#""17:56+05:30""#),
            ("format_date", r#"["second","-0530","%d %H:%M%z",1600000000]"#, r#""13 06:56-0530""#),
            ("format_date", r#"["second","+00:00:07","%S%::z",0]"#, r#""07+00:00:07""#),
            ("format_date", r#"["second","local","%Y %y %% é%",0]"#, r#""1970 %y %% é%""#),
            (
                "format_date",
                r#"["millisecond",{"$undefined":true},"%Y-%m-%d %3N",-1]"#,
                r#""1969-12-31 999""#,
            ),
            ("format_date", r#"["second","Z","%Y",1600000000123]"#, r#""52671""#),
            ("format_date", r#"["second","Z","%Y-%m-%d",-62167219200]"#, r#""0000-01-01""#),
            ("format_date", r#"["second","Z","%Y",-62167219201]"#, "error"),
            ("format_date", r#"["second","Z","%Y",9223372036854775807]"#, r#""292277026596""#),
            ("format_date", r#"["second","Z","",0]"#, r#""""#),
            ("format_date", r#"["hour","Z","%Y",0]"#, "error"),
            ("format_date", r#"["second","Z","%Y",1.5]"#, "error"),
            ("format_date", r#"["second","Z","%Y",null]"#, "error"),
            ("format_date", r#"["second",null,"%Y",0]"#, "error"),
            ("format_date", r#"["second","Z",5,0]"#, "error"),
            ("format_date", r#"["second","08:00","%Y",0]"#, "error"),
            ("unix_ts_to_rfc3339", "[1600000000]", r#""2020-09-13T12:26:40+00:00""#),
            ("unix_ts_to_rfc3339", r#"[1600000000007,"millisecond"]"#, r#""2020-09-13T12:26:40.007+00:00""#),
            ("unix_ts_to_rfc3339", r#"[1,"nanosecond"]"#, r#""1970-01-01T00:00:00.000000001+00:00""#),
            ("unix_ts_to_rfc3339", r#"[1,"microsecond"]"#, r#""1970-01-01T00:00:00.000001+00:00""#),
            ("unix_ts_to_rfc3339", "[1600000000123]", "error"),
            ("unix_ts_to_rfc3339", r#"["1"]"#, "error"),
            ("unix_ts_to_rfc3339", r#"[{"$undefined":true}]"#, "error"),
            ("now_rfc3339", "[]", r#""2020-09-13T12:26:40+00:00""#),
            ("now_rfc3339", r#"["millisecond"]"#, r#""2020-09-13T12:26:40.123+00:00""#),
            ("now_rfc3339", "[null]", "error"),
            ("now_timestamp", "[]", "1600000000"),
            ("now_timestamp", r#"["millisecond"]"#, "1600000000123"),
            ("now_timestamp", r#"["nanosecond"]"#, "1600000000123000000"),
            ("now_timestamp", r#"["minute"]"#, "error"),
            ("mongo_date", "[]", r#""ISODate(2020-09-13T12:26:40.123Z)""#),
            ("mongo_date", "[1000]", r#""ISODate(1970-01-01T00:00:01.000Z)""#),
            ("mongo_date", r#"[1,"second"]"#, r#""ISODate(1970-01-01T00:00:01.000Z)""#),
            ("mongo_date", r#"["1"]"#, "error"),
            ("mongo_date", "[null]", "error"),
        ]);
    }

    #[test]
    fn dates_are_read() {
        const DASHES: &str = r#""%Y-%m-%d %H:%M:%S""#;
        for (text, expected) in [
            ("2020-09-13 12:26:40", "1600000000"),
            ("2020/09/13T12.26.40 and more", "1600000000"),
            ("0000-01-01 00:00:00", "-62167219200"),
            ("2023-02-29 00:00:00", "error"),
            ("2024-13-01 00:00:00", "error"),
            ("2024-00-01 00:00:00", "error"),
            ("2024-01-00 00:00:00", "error"),
            ("2024-01-01 24:00:00", "error"),
            ("2024-01-01 00:60:00", "error"),
            ("2024-01-01 00:00", "error"),
            ("2024-01-01 00:00:0", "error"),
            ("2024-01-01 00:00:-1", "error"),
            ("", "error"),
        ] {
            check(&[("date_to_unix_ts", &format!(r#"["second",{DASHES},"{text}"]"#), expected)]);
        }
        check(&[
            ("date_to_unix_ts", r#"["second","+08:00","%Y%m%d%H%M%S","20200913202640"]"#, "1600000000"),
            ("date_to_unix_ts", r#"["second","%Y%m%d%H%M%S%z","20200913202640+0800"]"#, "1600000000"),
            ("date_to_unix_ts", r#"["second",3600,"%Y%m%d%H%M%S%z","20200913202640+0800"]"#, "1599996400"),
            (
                "date_to_unix_ts",
                r#"["millisecond","%Y%m%d%H%M%S%6N","20200913122640123999"]"#,
                "1600000000123",
            ),
            ("date_to_unix_ts", r#"["second","%Y%m%d%H%M%S%::z","20200913202640+08:00:00"]"#, "1600000000"),
            (
                "date_to_unix_ts",
                r#"["nanosecond","%Y%m%d%H%M%S%N","99991231235959999999999"]"#,
                "253402300799999999999",
            ),
            ("date_to_unix_ts", r#"["second","%Y%m%d%H%M%S%z","20200913202640Z"]"#, "error"),
            ("date_to_unix_ts", r#"["second","%y%m%d%H%M%S","20200913202640"]"#, "error"),
            ("date_to_unix_ts", r#"["second","%Y",2020]"#, "error"),
            ("date_to_unix_ts", r#"["second",null,"x"]"#, "error"),
            ("rfc3339_to_unix_ts", r#"["2020-09-13T12:26:40Z"]"#, "1600000000"),
            ("rfc3339_to_unix_ts", r#"["2020-09-13 12:26:40.9z"]"#, "1600000000"),
            ("rfc3339_to_unix_ts", r#"["2020-09-13T12:26:40.1235Z","millisecond"]"#, "1600000000124"),
            ("rfc3339_to_unix_ts", r#"["2020-09-13T12:26:40.1-01:00","microsecond"]"#, "1600003600100000"),
            ("rfc3339_to_unix_ts", r#"["1969-12-31T23:59:59.9Z","millisecond"]"#, "-100"),
            ("rfc3339_to_unix_ts", r#"["2020-09-13T12:26:40"]"#, "error"),
            ("rfc3339_to_unix_ts", r#"["2020-09-13T12:26:40.Z"]"#, "error"),
            ("rfc3339_to_unix_ts", r#"["2020-09-13T12:26:40+0100"]"#, "error"),
            ("rfc3339_to_unix_ts", r#"["2020-02-30T12:26:40Z"]"#, "error"),
            ("rfc3339_to_unix_ts", r#"["é020-09-13T12:26:40Z"]"#, "error"),
            ("rfc3339_to_unix_ts", "[5]", "error"),
            ("rfc3339_to_unix_ts", "[null]", "error"),
            ("timezone_to_second", r#"["Z"]"#, "0"),
            ("timezone_to_second", r#"["+0130"]"#, "5400"),
            ("timezone_to_second", r#"["-02:00:05"]"#, "-7205"),
            ("timezone_to_second", r#"["local"]"#, "0"),
            ("timezone_to_second", r#"["+24:00"]"#, "error"),
            ("timezone_to_second", r#"["+08"]"#, "error"),
            ("timezone_to_second", r#"[""]"#, "error"),
            ("timezone_to_second", r#"["+-1:00"]"#, "error"),
            ("timezone_to_second", "[null]", "error"),
            ("timezone_to_second", "[1.5]", "error"),
            ("timezone_to_offset_seconds", "[42]", "42"),
            ("timezone_to_offset_seconds", r#"[{"$undefined":true}]"#, "0"),
        ]);
    }

    #[test]
    fn days_and_dates_are_inverse() {
        for days in (-719_528..3_000_000).step_by(17) {
            let (year, month, day) = date_of(days);
            assert_eq!(days_to(year, month, day), Some(days), "{year}-{month}-{day}");
        }
    }

    #[test]
    fn local_is_what_the_surroundings_say() {
        let mut around = Surroundings { utc_offset_s: -5_400, ..Surroundings::new([1, 2]) };
        assert_eq!(now_rfc3339(&mut [], &mut around), Ok(owned("1969-12-31T22:30:00-01:30")));
        let mut args = [Value::Text("local".into())];
        assert_eq!(timezone_to_second(&mut args, &mut around), Ok(Value::Int(-5_400)));
        around.max_text = 24;
        assert_eq!(now_rfc3339(&mut [], &mut around), Err(TypeError::BadArgument));
    }
}
