//! What an answer means for the rows of its request.

use super::bounds::RETRY_AFTER_MAX;
use crate::Reason;
use hyper::StatusCode;
use std::time::{Duration, SystemTime};

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The server has the rows.
    Delivered,
    /// The same again, later.
    Again,
    /// The same again, and all other lanes wait too: the server asks for patience.
    Patience,
    /// It would go on for ever unless a person acts.
    Operator,
    /// One of the rows is not wanted.
    Row(Reason),
}

/// By the status (RFC 9110, 15). `own_path`: the rows have a path of their own.
pub(super) fn of(status: StatusCode, own_path: bool) -> Verdict {
    match status.as_u16() {
        200..=299 => Verdict::Delivered,
        429 | 503 => Verdict::Patience,
        408 | 425 | 500.. => Verdict::Again,
        // Not followed: a redirected POST becomes a GET, and the headers are for this server.
        300..=399 | 401 | 403 | 407 => Verdict::Operator,
        // With one path for all rows it is the path in the rules that is wrong, and all rows would be lost by it.
        404 | 405 | 410 | 421 if own_path => Verdict::Row(Reason::Target),
        404 | 405 | 410 | 421 => Verdict::Operator,
        413 => Verdict::Row(Reason::TooLarge),
        400..=499 => Verdict::Row(Reason::Refused),
        // 1xx are no answers.
        _ => Verdict::Again,
    }
}

/// For people: what to do about it.
pub(super) fn hint(status: StatusCode) -> &'static str {
    match status.as_u16() {
        300..=399 => ": write the address that it names (Location) as `url`",
        401 => ": mend `bearer_token`, `username` and `password`, or `headers`",
        403 => ": give this user the right to write there",
        404 | 405 | 410 | 421 => ": mend the path of `url`, or `method`",
        407 => ": a proxy stands between and asks who is there",
        429 | 503 => ": it asks for patience",
        _ => "",
    }
}

/// Retry-After: seconds, or a date by the server's clock (RFC 9110, 10.2.3).
pub(super) fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    let wait = match value.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(value).ok()?.duration_since(now).unwrap_or_default(),
    };
    Some(wait.min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn statuses_have_a_meaning() {
        for (status, own_path, verdict) in [
            (200, false, Verdict::Delivered),
            (204, false, Verdict::Delivered),
            (301, false, Verdict::Operator),
            (400, false, Verdict::Row(Reason::Refused)),
            (401, true, Verdict::Operator),
            (403, true, Verdict::Operator),
            (404, false, Verdict::Operator),
            (404, true, Verdict::Row(Reason::Target)),
            (408, false, Verdict::Again),
            (409, false, Verdict::Row(Reason::Refused)),
            (413, false, Verdict::Row(Reason::TooLarge)),
            (422, false, Verdict::Row(Reason::Refused)),
            (425, false, Verdict::Again),
            (429, false, Verdict::Patience),
            (500, false, Verdict::Again),
            (503, false, Verdict::Patience),
            (599, false, Verdict::Again),
            (999, false, Verdict::Again),
        ] {
            assert_eq!(of(StatusCode::from_u16(status).unwrap(), own_path), verdict, "{status}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Sun, 29 Nov 2026 12:00:00 GMT").unwrap();
        for (value, seconds) in [
            ("7", Some(7)),
            (" 0 ", Some(0)),
            ("31536000", Some(300)),
            ("Sun, 29 Nov 2026 12:00:20 GMT", Some(20)),
            ("Sun, 29 Nov 2026 11:00:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
        ] {
            assert_eq!(retry_after(value, now), seconds.map(Duration::from_secs), "{value}");
        }
    }
}
