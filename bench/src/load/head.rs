//! What the generator writes at the head of a payload, so that it knows the message again.
//!
//! Binary, little-endian: `at_ns` u64, `seq` u64, `publisher` u32, magic u32. JSON: the same numbers as the members `at`,
//! `n` and `p` of an object, each padded with blanks to a fixed width, then a string of filler: valid JSON of known places.

use std::io::Write as _;

/// Length of the binary head.
const BINARY_LEN: usize = 24;
/// Length of the JSON head.
pub(super) const JSON_LEN: usize = 72;
/// What closes a JSON payload.
pub(super) const JSON_END: &str = "\"}";
const MAGIC: u32 = 0x6562_6672;

/// The smallest payload that holds a head, in bytes.
pub(super) fn size_min(json: bool) -> usize {
    if json { JSON_LEN + JSON_END.len() } else { BINARY_LEN }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    /// Send or due time, in nanoseconds since the generator began.
    pub(super) at_ns: u64,
    /// Number of the message with its publisher, from 0.
    pub(super) seq: u64,
    /// Index of the publisher.
    pub(super) publisher: u32,
}

impl Head {
    /// Writes it into `bytes`; the part that it took.
    pub(super) fn encode(self, json: bool, bytes: &mut [u8; JSON_LEN]) -> &[u8] {
        if json {
            // Cannot fail: the widths are those of the largest numbers, and add up to JSON_LEN (a test).
            let _ = write!(
                &mut bytes[..],
                "{{\"at\":{:20},\"n\":{:20},\"p\":{:10},\"x\":\"",
                self.at_ns,
                self.seq,
                self.publisher
            );
            return bytes;
        }
        bytes[..8].copy_from_slice(&self.at_ns.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.seq.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.publisher.to_le_bytes());
        bytes[20..24].copy_from_slice(&MAGIC.to_le_bytes());
        &bytes[..BINARY_LEN]
    }

    /// Reads it; `None` when this is nobody's payload of ours.
    pub(super) fn decode(payload: &[u8], json: bool) -> Option<Self> {
        if json {
            let number = |at: usize, len: usize| {
                std::str::from_utf8(payload.get(at..at + len)?).ok()?.trim_start().parse::<u64>().ok()
            };
            let publisher = u32::try_from(number(56, 10)?).ok()?;
            return Some(Self { at_ns: number(6, 20)?, seq: number(31, 20)?, publisher });
        }
        let (at_ns, rest) = payload.split_first_chunk()?;
        let (seq, rest) = rest.split_first_chunk()?;
        let (publisher, rest) = rest.split_first_chunk()?;
        let (magic, _) = rest.split_first_chunk()?;
        (u32::from_le_bytes(*magic) == MAGIC).then_some(Self {
            at_ns: u64::from_le_bytes(*at_ns),
            seq: u64::from_le_bytes(*seq),
            publisher: u32::from_le_bytes(*publisher),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn both_forms_are_read_back() {
        let small = Head { at_ns: 0, seq: 0, publisher: 0 };
        let large = Head { at_ns: u64::MAX, seq: u64::MAX - 1, publisher: u32::MAX };
        for head in [small, large, Head { at_ns: 123, seq: 45, publisher: 6 }] {
            for json in [false, true] {
                let mut bytes = [0; JSON_LEN];
                let payload = [head.encode(json, &mut bytes), b"abc", JSON_END.as_bytes()].concat();
                assert_eq!(Head::decode(&payload, json), Some(head));
                if json {
                    let value: serde_json::Value = serde_json::from_slice(&payload).unwrap();
                    assert_eq!((value["n"].as_u64(), value["x"].as_str()), (Some(head.seq), Some("abc")));
                }
            }
        }
        assert_eq!(Head::decode(b"0123456789012345678901234567890", false), None);
        assert_eq!(Head::decode(b"{}", true), None);
    }
}
