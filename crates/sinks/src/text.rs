//! A row as text: a line of NDJSON, an element of a JSON array, and what identifies it.
//!
//! | payload | as JSON |
//! |---|---|
//! | JSON | itself, in one line: line breaks between its tokens become spaces |
//! | anything else | `{"$bytes":"hex"}` |
//!
//! In an *envelope* the row says where it comes from, in members of this order:
//! `{"id":"edge-1.7.0.3.11.0","received_at":"2026-11-24T22:07:50.123Z","edge":"edge-1","clientid":"dev","topic":"a/b","row":...}`.
//! `id` is [`row_id`]; `received_at` and `edge` are null where there is none.

use ferrule_store::record::Entry;
use serde_json::value::RawValue;

/// Appends the row as JSON in one line, without its end.
pub(crate) fn json(entry: &Entry, envelope: bool, out: &mut Vec<u8>) {
    if envelope {
        let mut member = |name: &str, text: Option<&str>| {
            out.extend_from_slice(name.as_bytes());
            // Text always has a JSON form.
            let _ = serde_json::to_writer(&mut *out, &text);
        };
        member("{\"id\":", Some(&row_id(entry)));
        member(",\"received_at\":", iso_utc(entry.received.wall_ms).as_deref());
        member(",\"edge\":", entry.edge.as_deref());
        member(",\"clientid\":", Some(&entry.client_id));
        member(",\"topic\":", Some(&entry.topic));
        out.extend_from_slice(b",\"row\":");
    }
    match serde_json::from_slice::<&RawValue>(&entry.payload) {
        // Within a string a line break is written `\n`, so these stand between tokens.
        Ok(json) => out.extend(json.get().bytes().map(|b| if matches!(b, b'\n' | b'\r') { b' ' } else { b })),
        Err(_) => out.extend_from_slice(bytes_json(&entry.payload).as_bytes()),
    }
    if envelope {
        out.push(b'}');
    }
}

/// What identifies a row everywhere and for ever: `origin.boot.class.seq.rule.row`, rule in hex.
pub(crate) fn row_id(entry: &Entry) -> String {
    format!("{}.{:x}.{}", entry.identity, entry.rule, entry.row)
}

/// What stands for bytes that are no JSON: `{"$bytes":"hex"}`.
pub(crate) fn bytes_json(payload: &[u8]) -> String {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(payload.len() * 2 + 13);
    text.push_str("{\"$bytes\":\"");
    for byte in payload {
        text.push(char::from(HEX[usize::from(byte >> 4)]));
        text.push(char::from(HEX[usize::from(byte & 15)]));
    }
    text.push_str("\"}");
    text
}

/// `2026-11-24T22:07:50.123Z`, for the years 1 to 9999.
pub(crate) fn iso_utc(ms: i64) -> Option<String> {
    const DAY_MS: i64 = 86_400_000;
    let (days, of_day) = (ms.div_euclid(DAY_MS), ms.rem_euclid(DAY_MS));
    // From days to a civil date in years of 400 that begin in March, so that the leap day is the last.
    let days = days + 719_468;
    if !(306..=3_652_364).contains(&days) {
        return None;
    }
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (h, m, s, milli) = (of_day / 3_600_000, of_day / 60_000 % 60, of_day / 1_000 % 60, of_day % 1_000);
    Some(format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{milli:03}Z"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::harness::entry;

    #[test]
    fn rows_are_one_line_whatever_came() {
        for (payload, line) in [
            (&b"{\n \"a\": 1.50,\r\n \"b\": \"x\\ny\" }\n"[..], r#"{  "a": 1.50,   "b": "x\ny" }"#),
            (b"21.5", "21.5"),
            (b"not JSON\n", r#"{"$bytes":"6e6f74204a534f4e0a"}"#),
            (b"\xff", r#"{"$bytes":"ff"}"#),
            (b"", r#"{"$bytes":""}"#),
        ] {
            let mut out = Vec::new();
            json(&entry(3, "", payload), false, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), line);
        }
    }

    #[test]
    fn an_envelope_says_where_a_row_comes_from() {
        let mut entry = entry(3, "", "{}");
        entry.edge = None;
        entry.topic = "a/\"\n".into();
        entry.row = 2;
        let mut out = Vec::new();
        json(&entry, true, &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            r#"{"id":"edge-1.7.0.3.b.2","received_at":"2025-11-24T22:07:50.123Z","edge":null,"clientid":"dev","topic":"a/\"\n","row":{}}"#
        );
    }

    #[test]
    fn times_are_written_in_utc() {
        for (ms, text) in [
            (0, Some("1970-01-01T00:00:00.000Z")),
            (-1, Some("1969-12-31T23:59:59.999Z")),
            (951_782_400_000, Some("2000-02-29T00:00:00.000Z")),
            (4_107_542_399_999, Some("2100-02-28T23:59:59.999Z")),
            (-62_135_596_800_000, Some("0001-01-01T00:00:00.000Z")),
            (-62_135_596_800_001, None),
            (253_402_300_799_999, Some("9999-12-31T23:59:59.999Z")),
            (253_402_300_800_000, None),
            (i64::MIN, None),
        ] {
            assert_eq!(iso_utc(ms).as_deref(), text, "{ms}");
        }
    }
}
