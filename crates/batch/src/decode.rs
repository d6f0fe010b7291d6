//! One payload in, messages out: all of them, or an error.

use crate::{
    HAS_PROPERTIES, HAS_USER, HEAD, Item, LATE, MESSAGES_MAX, PLAIN_MAX, QOS_1, RETAIN, SAME_DEVICE,
    SAME_LIFE, SAME_TOPIC, SYNCED, TEXTS_MAX, VERSION, dictionary,
};
use ferrule_mqtt::{PacketType, Properties, PropertyId, PropertyScope, topic};
use ferrule_store::{Boot, MessageId};
use std::fmt;
use std::ops::Range;
use zstd::bulk::Decompressor;
use zstd::zstd_safe::get_frame_content_size;

/// Why a payload is no batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodeError {
    /// Of a version that this program does not know.
    Version(u8),
    /// Compressed with a dictionary that this program does not have.
    Dictionary(u8),
    /// More than [`PLAIN_MAX`], [`MESSAGES_MAX`] or [`TEXTS_MAX`].
    TooLarge,
    /// zstd has no memory.
    Memory,
    /// Not what the format says.
    Damaged(&'static str),
}

impl std::error::Error for DecodeError {}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => write!(f, "a batch of version {version}, and only 1 is known"),
            Self::Dictionary(number) => {
                write!(f, "a batch that needs dictionary {number}, which is not here")
            }
            Self::TooLarge => f.write_str("a batch larger than batches may be"),
            Self::Memory => f.write_str("no memory for a batch"),
            Self::Damaged(what) => write!(f, "a damaged batch: {what}"),
        }
    }
}

/// Reads batches. Keeps its buffers: at most [`PLAIN_MAX`] and [`TEXTS_MAX`] and what zstd needs.
#[derive(Default)]
pub struct Decoder {
    decompressor: Option<Decompressor<'static>>,
    body: Vec<u8>,
    texts: Vec<u8>,
    entries: Vec<Entry>,
}

/// The messages of one batch.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    body: &'a [u8],
    texts: &'a [u8],
    entries: &'a [Entry],
}

/// A message, by places in `texts` and `body`.
#[derive(Debug, Clone)]
struct Entry {
    flags: u8,
    id: MessageId,
    at_ms: i64,
    age_ms: u64,
    hops: u8,
    late: bool,
    topic: Range<usize>,
    client_id: Range<usize>,
    username: Option<Range<usize>>,
    properties: Range<usize>,
    payload: Range<usize>,
}

impl Decoder {
    /// With nothing allocated yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads a batch whole.
    ///
    /// # Errors
    /// See [`DecodeError`]; nothing of the batch is to be used then.
    pub fn decode(&mut self, payload: &[u8]) -> Result<Batch<'_>, DecodeError> {
        let (&[version, number], rest) =
            payload.split_first_chunk::<2>().ok_or(DecodeError::Damaged("its head is missing"))?;
        if version != VERSION {
            return Err(DecodeError::Version(version));
        }
        self.body.clear();
        if number == 0 {
            if rest.len() > PLAIN_MAX {
                return Err(DecodeError::TooLarge);
            }
            self.body.extend_from_slice(rest);
        } else {
            let (check, frame) = rest
                .split_first_chunk::<{ HEAD - 2 }>()
                .ok_or(DecodeError::Damaged("its head is missing"))?;
            if number != dictionary::NUMBER || u32::from_le_bytes(*check) != dictionary::CHECK {
                return Err(DecodeError::Dictionary(number));
            }
            self.decompress(frame)?;
        }
        self.entries.clear();
        self.texts.clear();
        read(&self.body, &mut self.texts, &mut self.entries)?;
        Ok(Batch { body: &self.body, texts: &self.texts, entries: &self.entries })
    }

    fn decompress(&mut self, frame: &[u8]) -> Result<(), DecodeError> {
        // What it says of itself is compared first; what it then holds cannot be more, or zstd ends with an error: the buffer
        // is all that it may write to.
        let size = get_frame_content_size(frame).ok().flatten();
        let size = size.ok_or(DecodeError::Damaged("its compressed size is missing"))?;
        let size =
            usize::try_from(size).ok().filter(|size| *size <= PLAIN_MAX).ok_or(DecodeError::TooLarge)?;
        let decompressor = match &mut self.decompressor {
            Some(decompressor) => decompressor,
            none => {
                let new =
                    Decompressor::with_dictionary(dictionary::BYTES).map_err(|_| DecodeError::Memory)?;
                none.insert(new)
            }
        };
        self.body.resize(size, 0);
        match decompressor.decompress_to_buffer(frame, &mut self.body[..]) {
            Ok(written) if written == size => Ok(()),
            _ => Err(DecodeError::Damaged("it does not decompress")),
        }
    }
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder").field("messages", &self.entries.len()).finish_non_exhaustive()
    }
}

impl<'a> Batch<'a> {
    /// Messages; at least one.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Never: there is no batch without messages.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The messages, in order.
    pub fn items(self) -> impl Iterator<Item = Item<'a>> {
        self.entries.iter().map(move |entry| self.item(entry))
    }

    fn item(&self, entry: &Entry) -> Item<'a> {
        // `read` has looked at all of it.
        let text = |range: &Range<usize>| std::str::from_utf8(&self.texts[range.clone()]).unwrap_or_default();
        let properties = &self.texts[entry.properties.clone()];
        Item {
            acknowledged: entry.flags & QOS_1 != 0,
            retain: entry.flags & RETAIN != 0,
            topic: text(&entry.topic),
            id: entry.id,
            client_id: text(&entry.client_id),
            username: entry.username.as_ref().map(text),
            at_ms: entry.at_ms,
            synced: entry.flags & SYNCED != 0,
            age_ms: entry.age_ms,
            hops: entry.hops,
            late: entry.late,
            properties: Properties::checked(properties, PropertyScope::Packet(PacketType::Publish))
                .unwrap_or(Properties::EMPTY),
            payload: &self.body[entry.payload.clone()],
        }
    }
}

fn read(body: &[u8], texts: &mut Vec<u8>, entries: &mut Vec<Entry>) -> Result<(), DecodeError> {
    let mut reader = Reader(body);
    let count = reader.length()?;
    if count == 0 {
        return Err(DecodeError::Damaged("there is no message in it"));
    }
    if count > MESSAGES_MAX {
        return Err(DecodeError::TooLarge);
    }
    let heads = reader.length()?;
    let mut heads = Reader(reader.bytes(heads)?);
    let mut at = body.len() - reader.0.len();
    let mut life = None;
    let (mut seq, mut last_at_ms, mut sent_ms) = (0u64, 0i64, None::<i64>);
    let (mut topic, mut client_id, mut username) = (0..0, 0..0, None);
    for _ in 0..count {
        let flags = heads.byte()?;
        if flags & SAME_LIFE == 0 {
            life = Some(heads.life()?);
        }
        let (boot, class) = life.ok_or(DecodeError::Damaged("its first message has no process life"))?;
        seq = seq.wrapping_add(heads.zigzag()? as u64).wrapping_add(1);
        if i64::try_from(seq).is_err() {
            return Err(DecodeError::Damaged("a number over 63 bits"));
        }
        let at_ms = last_at_ms.wrapping_add(heads.zigzag()?);
        let sent = sent_ms.unwrap_or(at_ms).wrapping_add(heads.zigzag()?);
        (last_at_ms, sent_ms) = (at_ms, Some(sent));
        let hops = heads.varint()?;
        let late = hops & LATE != 0;
        let hops = u8::try_from(hops & !LATE).map_err(|_| DecodeError::Damaged("too many hops"))?;
        if flags & SAME_TOPIC == 0 {
            topic = heads.front(&topic, texts)?;
            let name = std::str::from_utf8(&texts[topic.clone()]).map_err(|_| NOT_UTF8)?;
            topic::validate_name(name).map_err(|_| DecodeError::Damaged("what is no topic name"))?;
        } else if topic.is_empty() {
            return Err(DecodeError::Damaged("its first message has no topic"));
        }
        if flags & SAME_DEVICE == 0 {
            client_id = heads.front(&client_id, texts)?;
            check_text(&texts[client_id.clone()])?;
            username = None;
            if flags & HAS_USER != 0 {
                let length = heads.length()?;
                let range = keep(texts, heads.bytes(length)?)?;
                check_text(&texts[range.clone()])?;
                username = Some(range);
            }
        }
        let mut properties = 0..0;
        if flags & HAS_PROPERTIES != 0 {
            let length = heads.length()?;
            let bytes = heads.bytes(length)?;
            check_properties(bytes)?;
            properties = keep(texts, bytes)?;
        }
        let length = heads.length()?;
        let end = at.checked_add(length).filter(|end| *end <= body.len()).ok_or(CUT)?;
        entries.push(Entry {
            flags,
            id: MessageId { boot, class, seq },
            at_ms,
            age_ms: sent.wrapping_sub(at_ms) as u64,
            hops,
            late,
            topic: topic.clone(),
            client_id: client_id.clone(),
            username: username.clone(),
            properties,
            payload: at..end,
        });
        at = end;
    }
    if !heads.0.is_empty() || at != body.len() {
        return Err(DecodeError::Damaged("bytes are left over"));
    }
    Ok(())
}

const CUT: DecodeError = DecodeError::Damaged("it is cut off");
const NOT_UTF8: DecodeError = DecodeError::Damaged("a text that is not UTF-8");

fn keep(texts: &mut Vec<u8>, bytes: &[u8]) -> Result<Range<usize>, DecodeError> {
    let start = texts.len();
    if start + bytes.len() > TEXTS_MAX {
        return Err(DecodeError::TooLarge);
    }
    texts.extend_from_slice(bytes);
    Ok(start..texts.len())
}

/// A text as MQTT has them.
fn check_text(bytes: &[u8]) -> Result<(), DecodeError> {
    let text = std::str::from_utf8(bytes).map_err(|_| NOT_UTF8)?;
    if text.len() > usize::from(u16::MAX) || text.contains('\0') {
        return Err(DecodeError::Damaged("a text that MQTT forbids"));
    }
    Ok(())
}

fn check_properties(bytes: &[u8]) -> Result<(), DecodeError> {
    const BAD: DecodeError = DecodeError::Damaged("properties that no message has");
    let properties =
        Properties::checked(bytes, PropertyScope::Packet(PacketType::Publish)).map_err(|_| BAD)?;
    // These are between a client and its broker; and the names of ours are said by the fields above.
    let foreign = properties.contains(PropertyId::TopicAlias)
        || properties.contains(PropertyId::SubscriptionIdentifier)
        || properties.user_properties().any(|(name, _)| name.starts_with("ferrule-"));
    if foreign { Err(BAD) } else { Ok(()) }
}

/// What is left to read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Result<u8, DecodeError> {
        let (&byte, rest) = self.0.split_first().ok_or(CUT)?;
        self.0 = rest;
        Ok(byte)
    }

    fn bytes(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (bytes, rest) = self.0.split_at_checked(count).ok_or(CUT)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::Damaged("a number over 64 bits"))
    }

    fn zigzag(&mut self) -> Result<i64, DecodeError> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn length(&mut self) -> Result<usize, DecodeError> {
        usize::try_from(self.varint()?).map_err(|_| CUT)
    }

    fn life(&mut self) -> Result<(Boot, u16), DecodeError> {
        let boot = self.bytes(8)?.first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let class = self.varint()?;
        // What `ferrule-id` may say: SQL's numbers are signed.
        match u16::try_from(class) {
            Ok(class) if boot <= i64::MAX as u64 && class <= i16::MAX as u16 => Ok((Boot::new(boot), class)),
            _ => Err(DecodeError::Damaged("a number over 63 bits")),
        }
    }

    /// A text that begins as `last` does; where it is now.
    fn front(&mut self, last: &Range<usize>, texts: &mut Vec<u8>) -> Result<Range<usize>, DecodeError> {
        let common = self.length()?;
        let length = self.length()?;
        let rest = self.bytes(length)?;
        if common > last.len() {
            return Err(DecodeError::Damaged("it repeats more of a text than there is"));
        }
        let start = texts.len();
        if start + common + length > TEXTS_MAX {
            return Err(DecodeError::TooLarge);
        }
        texts.extend_from_within(last.start..last.start + common);
        texts.extend_from_slice(rest);
        Ok(start..texts.len())
    }
}
