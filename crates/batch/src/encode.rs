//! Messages in, one payload out.

use crate::{
    HAS_PROPERTIES, HAS_USER, HEAD, Item, LATE, MESSAGES_MAX, PLAIN_MAX, QOS_1, RETAIN, SAME_DEVICE,
    SAME_LIFE, SAME_TOPIC, SYNCED, TEXTS_MAX, VERSION, dictionary,
};
use ferrule_mqtt::topic;
use ferrule_store::MessageId;
use std::fmt;
use std::io;
use zstd::bulk::Compressor;
use zstd::zstd_safe::CParameter;

/// zstd's level: of 1 to 19 the last at which a batch costs a gateway's processor less than a millisecond (64 KiB, measured on x86-64).
const LEVEL: i32 = 6;

/// Bytes that a body has beside heads and payloads: two varints below 2^21.
const COUNTS: usize = 6;

/// Collects messages into a batch. Keeps its buffers from one to the next.
pub struct Encoder {
    plain_max: usize,
    compressor: Option<Compressor<'static>>,
    heads: Vec<u8>,
    payloads: Vec<u8>,
    count: usize,
    acknowledged: bool,
    texts: usize,
    last: Last,
    body: Vec<u8>,
    packed: Vec<u8>,
}

/// What the message before said.
#[derive(Debug, Default)]
struct Last {
    topic: String,
    client_id: String,
    username: Option<String>,
    life: Option<(u64, u16)>,
    seq: u64,
    at_ms: i64,
    sent_ms: Option<i64>,
}

impl Encoder {
    /// For a peer that takes payloads of at most `payload_max` bytes; `compressed`: with the dictionary.
    ///
    /// # Errors
    /// When zstd has no memory.
    pub fn new(payload_max: usize, compressed: bool) -> io::Result<Self> {
        let compressor = if compressed {
            let mut compressor = Compressor::with_dictionary(LEVEL, dictionary::BYTES)?;
            compressor.set_parameter(CParameter::ContentSizeFlag(true))?;
            // The head of the batch says both.
            compressor.set_parameter(CParameter::DictIdFlag(false))?;
            compressor.set_parameter(CParameter::ChecksumFlag(false))?;
            Some(compressor)
        } else {
            None
        };
        Ok(Self {
            plain_max: PLAIN_MAX.min(payload_max.saturating_sub(HEAD)),
            compressor,
            heads: Vec::new(),
            payloads: Vec::new(),
            count: 0,
            acknowledged: false,
            texts: 0,
            last: Last::default(),
            body: Vec::new(),
            packed: Vec::new(),
        })
    }

    /// Appends a message. False, and nothing appended: it does not fit, or cannot be said; if the batch is empty, it never will.
    pub fn push(&mut self, item: &Item<'_>) -> bool {
        if self.count == MESSAGES_MAX || !is_sayable(item) {
            return false;
        }
        let properties = item.properties.as_bytes();
        let texts =
            item.topic.len() + item.client_id.len() + item.username.map_or(0, str::len) + properties.len();
        let start = self.heads.len();
        self.head(item, properties);
        let size = COUNTS + self.heads.len() + self.payloads.len() + item.payload.len();
        if size > self.plain_max || self.texts + texts > TEXTS_MAX {
            self.heads.truncate(start);
            return false;
        }
        self.payloads.extend_from_slice(item.payload);
        self.count += 1;
        self.texts += texts;
        self.acknowledged |= item.acknowledged;
        self.last.now(item);
        true
    }

    /// Messages in the batch so far.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Whether one of them is of QoS 1.
    #[must_use]
    pub fn is_acknowledged(&self) -> bool {
        self.acknowledged
    }

    /// The payload; the next batch is empty.
    pub fn finish(&mut self) -> &[u8] {
        self.body.clear();
        varint(&mut self.body, self.count as u64);
        varint(&mut self.body, self.heads.len() as u64);
        self.body.extend_from_slice(&self.heads);
        self.body.extend_from_slice(&self.payloads);
        self.clear();
        self.packed.clear();
        if let Some(compressor) = &mut self.compressor {
            // Larger than the body it is not wanted, and that is an error of too little room.
            self.packed.resize(HEAD + self.body.len(), 0);
            if let Ok(size) = compressor.compress_to_buffer(&self.body, &mut self.packed[HEAD..])
                && HEAD + size < 2 + self.body.len()
            {
                self.packed.truncate(HEAD + size);
                self.packed[..2].copy_from_slice(&[VERSION, dictionary::NUMBER]);
                self.packed[2..HEAD].copy_from_slice(&dictionary::CHECK.to_le_bytes());
                return &self.packed;
            }
            self.packed.clear();
        }
        self.packed.extend_from_slice(&[VERSION, 0]);
        self.packed.extend_from_slice(&self.body);
        &self.packed
    }

    fn clear(&mut self) {
        self.heads.clear();
        self.payloads.clear();
        (self.count, self.texts, self.acknowledged) = (0, 0, false);
        self.last = Last::default();
    }

    fn head(&mut self, item: &Item<'_>, properties: &[u8]) {
        let last = &self.last;
        let out = &mut self.heads;
        let MessageId { boot, class, seq } = item.id;
        let same_topic = last.topic == item.topic;
        let same_device = last.client_id == item.client_id && last.username.as_deref() == item.username;
        let same_life = last.life == Some((boot.get(), class));
        let flags = [
            (QOS_1, item.acknowledged),
            (RETAIN, item.retain),
            (SYNCED, item.synced),
            (SAME_TOPIC, same_topic),
            (SAME_DEVICE, same_device),
            (HAS_USER, item.username.is_some()),
            (HAS_PROPERTIES, !properties.is_empty()),
            (SAME_LIFE, same_life),
        ];
        out.push(flags.iter().fold(0, |bits, (bit, set)| if *set { bits | bit } else { bits }));
        if !same_life {
            out.extend_from_slice(&boot.get().to_le_bytes());
            varint(out, u64::from(class));
        }
        zigzag(out, seq.wrapping_sub(last.seq).wrapping_sub(1) as i64);
        zigzag(out, item.at_ms.wrapping_sub(last.at_ms));
        let sent_ms = item.at_ms.wrapping_add(item.age_ms as i64);
        zigzag(out, sent_ms.wrapping_sub(last.sent_ms.unwrap_or(item.at_ms)));
        varint(out, u64::from(item.hops) | if item.late { LATE } else { 0 });
        if !same_topic {
            front(out, &last.topic, item.topic);
        }
        if !same_device {
            front(out, &last.client_id, item.client_id);
            if let Some(username) = item.username {
                varint(out, username.len() as u64);
                out.extend_from_slice(username.as_bytes());
            }
        }
        if !properties.is_empty() {
            varint(out, properties.len() as u64);
            out.extend_from_slice(properties);
        }
        varint(out, item.payload.len() as u64);
    }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder")
            .field("count", &self.count)
            .field("compressed", &self.compressor.is_some())
            .finish_non_exhaustive()
    }
}

impl Last {
    fn now(&mut self, item: &Item<'_>) {
        if self.topic != item.topic {
            self.topic.clear();
            self.topic.push_str(item.topic);
        }
        if self.client_id != item.client_id {
            self.client_id.clear();
            self.client_id.push_str(item.client_id);
        }
        if self.username.as_deref() != item.username {
            self.username = item.username.map(str::to_owned);
        }
        self.life = Some((item.id.boot.get(), item.id.class));
        self.seq = item.id.seq;
        self.at_ms = item.at_ms;
        self.sent_ms = Some(item.at_ms.wrapping_add(item.age_ms as i64));
    }
}

/// Whether a decoder would take it.
fn is_sayable(item: &Item<'_>) -> bool {
    let is_text = |text: &str| text.len() <= usize::from(u16::MAX) && !text.contains('\0');
    topic::validate_name(item.topic).is_ok()
        && is_text(item.client_id)
        && item.username.is_none_or(is_text)
        && item.id.class <= i16::MAX as u16
        && item.id.seq <= i64::MAX as u64
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn zigzag(out: &mut Vec<u8>, value: i64) {
    varint(out, ((value << 1) ^ (value >> 63)) as u64);
}

fn front(out: &mut Vec<u8>, last: &str, text: &str) {
    let common = last.bytes().zip(text.bytes()).take_while(|(a, b)| a == b).count();
    varint(out, common as u64);
    varint(out, (text.len() - common) as u64);
    out.extend_from_slice(&text.as_bytes()[common..]);
}
