//! A rule's payload in a format of its own.
//!
//! The payload is decoded once per message and format, to JSON text, which the rule reads in the payload's place: by
//! the same paths, with a scan of its own. So nothing else in the evaluator knows of formats; a rule on JSON pays for
//! one test of an option. Bytes are `{"$bytes":"hex"}` in that text, and bytes again where they are read.

use super::{Budget, Codec, FormatError, NODES_MAX, tagged_bytes};
use crate::json::JsonError;
use crate::paths::{Paths, Scan};
use crate::step::Scratch;
use crate::value::Value;

/// More memory than this is given back once its message is done.
const KEPT: usize = 256 << 10;

/// `WITH (format = '...')` of a rule.
#[derive(Debug, Clone)]
pub(crate) struct Payload {
    /// The same for rules of one set that have the same format.
    pub(crate) id: usize,
    pub(crate) codec: Codec,
}

/// The payload of the message in hand, decoded.
#[derive(Debug, Default)]
pub(crate) struct Document {
    id: usize,
    text: Vec<u8>,
    readable: bool,
    pub(crate) scan: Scan,
}

impl Document {
    /// JSON text; none where the payload is not of the format.
    pub(crate) fn text(&self) -> Option<&[u8]> {
        self.readable.then_some(self.text.as_slice())
    }
}

/// The documents of the message in hand, one for each format that a rule asked for, and the memory of earlier ones.
#[derive(Debug, Default)]
pub(crate) struct Documents {
    all: Vec<Document>,
    /// So many, from the first, are of this message.
    used: usize,
}

impl Documents {
    /// Another message comes.
    #[inline]
    pub(crate) fn forget(&mut self) {
        self.used = 0;
    }

    /// The document of a format, decoded unless it is there; it must be [given back](Self::give_back).
    pub(crate) fn take(&mut self, format: &Payload, payload: &[u8], paths: &Paths) -> Document {
        let known = self.all.iter().take(self.used).position(|document| document.id == format.id);
        if let Some(at) = known {
            self.used -= 1;
            self.all.swap(at, self.used);
            return self.all.remove(self.used);
        }
        let fresh = if self.all.len() > self.used { self.all.pop() } else { None };
        let mut document = fresh.unwrap_or_default();
        document.id = format.id;
        document.text.clear();
        document.text.shrink_to(KEPT);
        document.scan.begin(paths);
        let budget = Budget { nodes: NODES_MAX, bytes: Scratch::MAX_OUTPUT };
        let decoded = format.codec.decode(payload, budget);
        let written = decoded.and_then(|value| {
            value.write_json(&mut document.text);
            // Escapes make text longer.
            if document.text.len() > Scratch::MAX_OUTPUT { Err(FormatError::TooLarge) } else { Ok(()) }
        });
        document.readable = written.is_ok();
        match written {
            Ok(()) => {}
            Err(FormatError::TooDeep) => document.scan.fail(JsonError::TooDeep),
            Err(_) => document.scan.fail(JsonError::Invalid),
        }
        document
    }

    /// Keeps a document for the message's other rules.
    pub(crate) fn give_back(&mut self, document: Document) {
        self.all.insert(self.used, document);
        self.used += 1;
    }
}

/// A value of a decoded payload: bytes where it stands for some.
#[cold]
#[inline(never)]
pub(crate) fn untagged(value: Value<'_>) -> Value<'_> {
    if let Value::Json(text) = &value
        && text.starts_with("{\"$bytes\":")
        && let Value::Map(members) = value.share().open()
        && let Some(bytes) = tagged_bytes(members.iter().map(|(key, value)| (key.as_str(), value)))
    {
        return Value::Bytes(bytes.into());
    }
    value
}
