//! The filter lists of SUBSCRIBE and UNSUBSCRIBE: checked views of the payload, and builders.

use crate::property::put_text;
use crate::reader::Reader;
use crate::{DecodeError, EncodeError, QoS, SubscribeOptions, Version, topic};

/// The (filter, options) pairs of a SUBSCRIBE, encoded as in the packet. At least one when decoded.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SubscribeFilters<'a> {
    bytes: &'a [u8],
    len: usize,
}

/// The filters of an UNSUBSCRIBE, encoded as in the packet. At least one when decoded.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct UnsubscribeFilters<'a> {
    bytes: &'a [u8],
    len: usize,
}

/// Builds the filters of a SUBSCRIBE.
///
/// ```
/// use ferrule_mqtt::{QoS, SubscribeFiltersBuf, SubscribeOptions};
///
/// let mut filters = SubscribeFiltersBuf::new();
/// filters.push("a/+", SubscribeOptions::new(QoS::AtLeastOnce))?;
/// assert_eq!(filters.as_filters().len(), 1);
/// # Ok::<(), ferrule_mqtt::EncodeError>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct SubscribeFiltersBuf {
    bytes: Vec<u8>,
    len: usize,
}

/// Builds the filters of an UNSUBSCRIBE.
#[derive(Debug, Clone, Default)]
pub struct UnsubscribeFiltersBuf {
    bytes: Vec<u8>,
    len: usize,
}

// === impl SubscribeOptions ===

impl SubscribeOptions {
    /// These options with everything but the QoS as in MQTT 3.x.
    pub const fn new(qos: QoS) -> Self {
        Self { qos, no_local: false, retain_as_published: false, retain_handling: 0 }
    }

    /// The options byte of MQTT 5.
    ///
    /// ```text
    /// bits 7-6: 0 | bits 5-4: retain handling | bit 3: retain as published | bit 2: no local | bits 1-0: QoS
    /// ```
    pub const fn to_byte(self) -> u8 {
        (self.qos as u8)
            | ((self.no_local as u8) << 2)
            | ((self.retain_as_published as u8) << 3)
            | ((self.retain_handling & 0b11) << 4)
    }

    /// From the options byte of MQTT 5 (a store keeps it too; 3.x uses the QoS bits only).
    ///
    /// # Errors
    ///
    /// Reserved bits, and the value 3 of QoS or retain handling.
    pub const fn from_byte(byte: u8) -> Result<Self, DecodeError> {
        if byte & 0b1100_0000 != 0 {
            return Err(DecodeError::Malformed(
                "reserved bits of the subscription options are set [MQTT-3.8.3-5]",
            ));
        }
        let qos = match byte & 0b11 {
            0 => QoS::AtMostOnce,
            1 => QoS::AtLeastOnce,
            2 => QoS::ExactlyOnce,
            _ => return Err(DecodeError::Protocol("maximum QoS of a subscription is 3 [3.8.3.1]")),
        };
        let retain_handling = byte >> 4;
        if retain_handling == 3 {
            return Err(DecodeError::Protocol("retain handling of a subscription is 3 [3.8.3.1]"));
        }
        Ok(Self {
            qos,
            no_local: byte & 0b100 != 0,
            retain_as_published: byte & 0b1000 != 0,
            retain_handling,
        })
    }
}

// === impl SubscribeFilters ===

impl<'a> SubscribeFilters<'a> {
    pub(crate) fn decode(mut reader: Reader<'a>, version: Version) -> Result<Self, DecodeError> {
        let bytes = reader.rest();
        let mut len = 0_usize;
        while !reader.is_empty() {
            let filter = reader.string()?;
            let byte = reader.u8()?;
            if version < Version::V5 && byte & 0b1111_1100 != 0 {
                return Err(DecodeError::Malformed(
                    "reserved bits of the requested QoS are set [3.1.1, MQTT-3-8.3-4]",
                ));
            }
            let options = SubscribeOptions::from_byte(byte)?;
            if options.no_local && filter.starts_with(topic::SHARED_PREFIX) {
                return Err(DecodeError::Protocol("no local on a shared subscription [MQTT-3.8.3-4]"));
            }
            len = len.saturating_add(1);
        }
        if len == 0 {
            return Err(DecodeError::Protocol("SUBSCRIBE without a topic filter [MQTT-3.8.3-2]"));
        }
        Ok(Self { bytes, len })
    }

    /// The pairs in the order of the packet.
    pub fn iter(self) -> impl Iterator<Item = (&'a str, SubscribeOptions)> + Clone {
        let mut reader = Reader::new(self.bytes);
        // The bytes were checked: an error can only be the end.
        std::iter::from_fn(move || {
            let filter = reader.string().ok()?;
            let options = SubscribeOptions::from_byte(reader.u8().ok()?).ok()?;
            Some((filter, options))
        })
    }

    /// How many pairs there are.
    pub const fn len(self) -> usize {
        self.len
    }

    /// Whether there are none (never true of a decoded packet).
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    pub(crate) const fn as_bytes(self) -> &'a [u8] {
        self.bytes
    }
}

impl std::fmt::Debug for SubscribeFilters<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

// === impl UnsubscribeFilters ===

impl<'a> UnsubscribeFilters<'a> {
    pub(crate) fn decode(mut reader: Reader<'a>) -> Result<Self, DecodeError> {
        let bytes = reader.rest();
        let mut len = 0_usize;
        while !reader.is_empty() {
            reader.string()?;
            len = len.saturating_add(1);
        }
        if len == 0 {
            return Err(DecodeError::Protocol("UNSUBSCRIBE without a topic filter [MQTT-3.10.3-2]"));
        }
        Ok(Self { bytes, len })
    }

    /// The filters in the order of the packet.
    pub fn iter(self) -> impl Iterator<Item = &'a str> + Clone {
        let mut reader = Reader::new(self.bytes);
        // The bytes were checked: an error can only be the end.
        std::iter::from_fn(move || reader.string().ok())
    }

    /// How many filters there are.
    pub const fn len(self) -> usize {
        self.len
    }

    /// Whether there are none (never true of a decoded packet).
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    pub(crate) const fn as_bytes(self) -> &'a [u8] {
        self.bytes
    }
}

impl std::fmt::Debug for UnsubscribeFilters<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

// === impl builders ===

impl SubscribeFiltersBuf {
    /// An empty builder.
    pub const fn new() -> Self {
        Self { bytes: Vec::new(), len: 0 }
    }

    /// Appends a pair. The filter's grammar is not checked: see [`topic::validate_filter`].
    ///
    /// # Errors
    ///
    /// A filter over 65,535 bytes or with U+0000, retain handling over 2, no local on a shared subscription. The
    /// builder is then unchanged.
    pub fn push(&mut self, filter: &str, options: SubscribeOptions) -> Result<(), EncodeError> {
        if options.retain_handling > 2 {
            return Err(EncodeError::Invalid("retain handling is over 2"));
        }
        if options.no_local && filter.starts_with(topic::SHARED_PREFIX) {
            return Err(EncodeError::Invalid("no local on a shared subscription"));
        }
        put_text(&mut self.bytes, filter)?;
        self.bytes.push(options.to_byte());
        self.len = self.len.saturating_add(1);
        Ok(())
    }

    /// The view to put into a packet.
    pub fn as_filters(&self) -> SubscribeFilters<'_> {
        SubscribeFilters { bytes: &self.bytes, len: self.len }
    }

    /// Removes all, keeps the allocation.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.len = 0;
    }
}

impl UnsubscribeFiltersBuf {
    /// An empty builder.
    pub const fn new() -> Self {
        Self { bytes: Vec::new(), len: 0 }
    }

    /// Appends a filter. Its grammar is not checked: see [`topic::validate_filter`].
    ///
    /// # Errors
    ///
    /// A filter over 65,535 bytes or with U+0000. The builder is then unchanged.
    pub fn push(&mut self, filter: &str) -> Result<(), EncodeError> {
        put_text(&mut self.bytes, filter)?;
        self.len = self.len.saturating_add(1);
        Ok(())
    }

    /// The view to put into a packet.
    pub fn as_filters(&self) -> UnsubscribeFilters<'_> {
        UnsubscribeFilters { bytes: &self.bytes, len: self.len }
    }

    /// Removes all, keeps the allocation.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.len = 0;
    }
}
