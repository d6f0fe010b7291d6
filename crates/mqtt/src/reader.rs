//! A cursor over the bytes of one frame. Every read is checked; none can panic or overflow.

use crate::DecodeError;

/// What a topic name must not contain [MQTT-4.7.3-2, MQTT-4.7.0-1].
pub(crate) const NOT_IN_NAMES: [u8; 3] = [0, b'+', b'#'];

/// Whether one of `needles` is among `bytes`. Eight bytes at a time: a topic is some tens of bytes long, too
/// short for a vectorised loop to pay off and too long to go byte by byte on the hot path.
#[inline]
pub(crate) fn contains_any<const N: usize>(bytes: &[u8], needles: [u8; N]) -> bool {
    const ONES: u64 = 0x0101_0101_0101_0101;
    // Nonzero if and only if a byte of `word` is one of `needles`. The subtraction borrows from a byte that is
    // zero, so bytes above a hit may be marked too; the lowest mark is always a true one.
    let hits = |word: u64| {
        needles.iter().fold(0, |hits, &needle| {
            let zeroed = word ^ (ONES * u64::from(needle));
            hits | (zeroed.wrapping_sub(ONES) & !zeroed)
        }) & (ONES << 7)
    };
    let (words, rest) = bytes.as_chunks::<8>();
    let found = words.iter().fold(0, |found, word| found | hits(u64::from_le_bytes(*word)));
    if found != 0 {
        return true;
    }
    match bytes.last_chunk::<8>() {
        // The last eight bytes cover the rest; some are looked at twice.
        Some(tail) => !rest.is_empty() && hits(u64::from_le_bytes(*tail)) != 0,
        None => rest.iter().any(|byte| needles.contains(byte)),
    }
}

/// What is left of a frame.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a>(&'a [u8]);

const TRUNCATED: DecodeError = DecodeError::Malformed("a field is longer than the packet");

impl<'a> Reader<'a> {
    #[inline]
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    #[inline]
    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[inline]
    pub(crate) const fn rest(self) -> &'a [u8] {
        self.0
    }

    #[inline]
    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        let (&value, rest) = self.0.split_first().ok_or(TRUNCATED)?;
        self.0 = rest;
        Ok(value)
    }

    #[inline]
    pub(crate) fn u16(&mut self) -> Result<u16, DecodeError> {
        let (value, rest) = self.0.split_first_chunk().ok_or(TRUNCATED)?;
        self.0 = rest;
        Ok(u16::from_be_bytes(*value))
    }

    #[inline]
    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        let (value, rest) = self.0.split_first_chunk().ok_or(TRUNCATED)?;
        self.0 = rest;
        Ok(u32::from_be_bytes(*value))
    }

    /// A variable byte integer in its shortest form [MQTT-1.5.5-1].
    #[inline]
    pub(crate) fn var_int(&mut self) -> Result<u32, DecodeError> {
        let first = self.u8()?;
        if first < 0x80 {
            return Ok(u32::from(first));
        }
        let mut value = u32::from(first & 0x7F);
        for shift in [7, 14, 21] {
            let byte = self.u8()?;
            value |= u32::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return if byte == 0 {
                    Err(DecodeError::Malformed(
                        "variable byte integer is not in its shortest form [MQTT-1.5.5-1]",
                    ))
                } else {
                    Ok(value)
                };
            }
        }
        Err(DecodeError::Malformed("variable byte integer is longer than four bytes [MQTT-1.5.5-1]"))
    }

    #[inline]
    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(TRUNCATED)?;
        self.0 = rest;
        Ok(taken)
    }

    /// Binary data: two bytes of length and as many bytes.
    #[inline]
    pub(crate) fn binary(&mut self) -> Result<&'a [u8], DecodeError> {
        let len = self.u16()?;
        self.take(usize::from(len))
    }

    /// A UTF-8 encoded string.
    #[inline]
    pub(crate) fn string(&mut self) -> Result<&'a str, DecodeError> {
        let bytes = self.binary()?;
        let text = std::str::from_utf8(bytes)
            .map_err(|_| DecodeError::Malformed("string is not UTF-8 [MQTT-1.5.4-1]"))?;
        if contains_any(bytes, [0]) {
            return Err(DecodeError::Malformed("string contains U+0000 [MQTT-1.5.4-2]"));
        }
        Ok(text)
    }

    /// A topic name: a string without wildcards. May be empty.
    #[inline]
    pub(crate) fn topic_name(&mut self) -> Result<&'a str, DecodeError> {
        let bytes = self.binary()?;
        let text = std::str::from_utf8(bytes)
            .map_err(|_| DecodeError::Malformed("topic name is not UTF-8 [MQTT-3.3.2-1]"))?;
        if contains_any(bytes, NOT_IN_NAMES) {
            return Err(if bytes.contains(&0) {
                DecodeError::Malformed("topic name contains U+0000 [MQTT-4.7.3-2]")
            } else {
                DecodeError::Malformed("topic name contains a wildcard [MQTT-3.3.2-2]")
            });
        }
        Ok(text)
    }

    /// Nothing may follow.
    #[inline]
    pub(crate) fn finish(self) -> Result<(), DecodeError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::Malformed("bytes follow the last field of the packet"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{NOT_IN_NAMES, contains_any};

    /// Every length around the size of a word, every place, and the bytes next to a needle and with the top bit
    /// set, which a wrong borrow or mask would confuse with one.
    #[test]
    fn contains_any_agrees_with_a_plain_search() {
        for len in 0..35 {
            for filler in [b'a', 0x01, 0x80, 0xFF, b'*', b',', b'"', b'$', 0x80 | b'+', 0x80 | b'#'] {
                let mut bytes = vec![filler; len];
                assert!(!contains_any(&bytes, NOT_IN_NAMES), "{filler:02X} x {len}");
                for at in 0..len {
                    for byte in 0..=u8::MAX {
                        bytes[at] = byte;
                        let expected = bytes.iter().any(|byte| NOT_IN_NAMES.contains(byte));
                        assert_eq!(contains_any(&bytes, NOT_IN_NAMES), expected, "{bytes:02X?}");
                        assert_eq!(contains_any(&bytes, [0]), bytes.contains(&0), "{bytes:02X?}");
                    }
                    bytes[at] = filler;
                }
            }
        }
    }
}
