//! A cursor over the bytes of one frame. Every read is checked; none can panic or overflow.

use crate::DecodeError;

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
        // No early exit: the loop is then vectorised.
        if bytes.iter().fold(false, |found, &byte| found | (byte == 0)) {
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
        if bytes.iter().fold(false, |found, &b| found | (b == 0) | (b == b'+') | (b == b'#')) {
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
