//! JSON text, read in place.
//!
//! Values stay where they are: a [`Found`] is a kind and a range of bytes. Everything skipped is validated (RFC 8259
//! grammar, UTF-8 in strings, paired surrogates), iteratively, nested at most [`MAX_DEPTH`] deep; a number is checked
//! here and parsed by whoever needs it.

use std::borrow::Cow;

/// The deepest nesting of arrays and objects. serde_json reads the same depth, so what passes here passes there.
pub(crate) const MAX_DEPTH: usize = 127;

/// Why a text is not read further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JsonError {
    /// It is not JSON.
    Invalid,
    /// It is nested deeper than [`MAX_DEPTH`].
    TooDeep,
}

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Null,
    True,
    False,
    /// A number without point and exponent.
    Int,
    /// A number with one.
    Float,
    /// A string without escapes: its content is the text between the quotes.
    Text,
    /// A string with escapes.
    Escaped,
    Array,
    Object,
}

/// A value and the bytes `start..end` it stands in, quotes and brackets included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) kind: Kind,
    pub(crate) start: u32,
    pub(crate) end: u32,
}

impl Found {
    /// The bytes of the value in `text`, the text it was found in.
    pub(crate) fn of(self, text: &[u8]) -> &[u8] {
        text.get(self.start as usize..self.end as usize).unwrap_or(b"")
    }
}

/// The first byte at or after `at` that is no white space.
#[inline(always)]
pub(crate) fn skip_space(text: &[u8], at: usize) -> usize {
    // Machines write none.
    match text.get(at) {
        Some(..=b' ') => skip_spaces(text, at),
        _ => at,
    }
}

#[cold]
fn skip_spaces(text: &[u8], mut at: usize) -> usize {
    while let Some(b' ' | b'\n' | b'\t' | b'\r') = text.get(at) {
        at += 1;
    }
    at
}

/// Whether places in a text are numbers of 32 bits. Every walk begins with this question.
#[inline(always)]
pub(crate) fn is_readable(text: &[u8]) -> bool {
    u32::try_from(text.len()).is_ok()
}

/// The value that begins at `at` (after white space); `depth` brackets are open around it.
#[inline(always)]
pub(crate) fn value(text: &[u8], at: usize, depth: usize) -> Result<Found, JsonError> {
    let start = skip_space(text, at);
    match text.get(start) {
        Some(b'{' | b'[') => container(text, start, depth),
        _ => scalar(text, start),
    }
}

/// A whole text that is one value.
pub(crate) fn document(text: &[u8]) -> Result<Found, JsonError> {
    if !is_readable(text) {
        return Err(JsonError::Invalid);
    }
    let found = value(text, 0, 0)?;
    if skip_space(text, found.end as usize) == text.len() { Ok(found) } else { Err(JsonError::Invalid) }
}

#[inline(always)]
fn scalar(text: &[u8], start: usize) -> Result<Found, JsonError> {
    let (kind, end) = match text.get(start) {
        Some(b'"') => string(text, start)?,
        Some(b'-' | b'0'..=b'9') => number(text, start)?,
        Some(b't') => (Kind::True, word(text, start, b"true")?),
        Some(b'f') => (Kind::False, word(text, start, b"false")?),
        Some(b'n') => (Kind::Null, word(text, start, b"null")?),
        _ => return Err(JsonError::Invalid),
    };
    Ok(found(kind, start, end))
}

/// The text [is readable](is_readable).
#[inline(always)]
pub(crate) fn found(kind: Kind, start: usize, end: usize) -> Found {
    Found { kind, start: start as u32, end: end as u32 }
}

/// Where the value that begins at `start`, which nobody asks for, ends.
#[inline(always)]
pub(crate) fn skip_value(text: &[u8], start: usize, depth: usize) -> Result<usize, JsonError> {
    match text.get(start) {
        Some(b'"') => Ok(string(text, start)?.1),
        Some(b'-' | b'0'..=b'9') => Ok(number(text, start)?.1),
        Some(b'{' | b'[') => Ok(container(text, start, depth)?.end as usize),
        _ => Ok(scalar(text, start)?.end as usize),
    }
}

fn word(text: &[u8], at: usize, word: &[u8]) -> Result<usize, JsonError> {
    let end = at + word.len();
    if text.get(at..end) == Some(word) { Ok(end) } else { Err(JsonError::Invalid) }
}

/// The string whose quote is at `start`: its kind and the place after its closing quote.
#[inline(always)]
pub(crate) fn string(text: &[u8], start: usize) -> Result<(Kind, usize), JsonError> {
    let mut at = start + 1;
    while let Some(eight) = eight(text, at) {
        let stop = first_special(eight);
        if stop < 8 {
            at += stop;
            let is_end = (eight >> (8 * stop)) as u8 == b'"';
            return if is_end { Ok((Kind::Text, at + 1)) } else { string_slow(text, start, at) };
        }
        at += 8;
    }
    string_end(text, start, at)
}

/// The eight bytes from `at` on, the first the least significant.
#[inline(always)]
fn eight(text: &[u8], at: usize) -> Option<u64> {
    text.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

/// Goes on at `at`, less than eight bytes before the end of the text.
fn string_end(text: &[u8], start: usize, mut at: usize) -> Result<(Kind, usize), JsonError> {
    loop {
        match text.get(at) {
            Some(b'"') => return Ok((Kind::Text, at + 1)),
            Some(b' '..=b'!' | b'#'..=b'[' | b']'..=0x7f) => at += 1,
            Some(_) => return string_slow(text, start, at),
            None => return Err(JsonError::Invalid),
        }
    }
}

/// Whether a text is ASCII without what JSON escapes.
pub(crate) fn is_plain(text: &[u8]) -> bool {
    let (chunks, rest) = text.as_chunks::<8>();
    chunks.iter().all(|bytes| first_special(u64::from_le_bytes(*bytes)) == 8)
        && rest.iter().all(|byte| matches!(byte, b' '..=b'!' | b'#'..=b'[' | b']'..=0x7e))
}

/// How many of eight bytes (the first the least significant) stand before the first that a plain string does not
/// hold: a quote, a backslash, a control character, a byte beyond ASCII.
///
/// `(x - 1) & !x & 0x80` in each byte finds zeros; a borrow can only mark bytes above the first true one.
#[inline]
fn first_special(bytes: u64) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = ONES << 7;
    let zeros = |x: u64| x.wrapping_sub(ONES) & !x;
    let quotes = zeros(bytes ^ (ONES * b'"' as u64));
    let backslashes = zeros(bytes ^ (ONES * b'\\' as u64));
    let controls = bytes.wrapping_sub(ONES * 0x20) & !bytes;
    let special = (quotes | backslashes | controls | bytes) & HIGHS;
    special.trailing_zeros() as usize / 8
}

/// Goes on at `at` with a string that has escapes or bytes beyond ASCII.
fn string_slow(text: &[u8], start: usize, mut at: usize) -> Result<(Kind, usize), JsonError> {
    let mut kind = Kind::Text;
    let mut ascii = true;
    loop {
        match text.get(at) {
            Some(b'"') => break,
            Some(b'\\') => {
                kind = Kind::Escaped;
                at = escape(text, at)?.1;
            }
            Some(0x20..=0x7f) => at += 1,
            Some(0x80..) => {
                ascii = false;
                at += 1;
            }
            _ => return Err(JsonError::Invalid),
        }
    }
    if !ascii && std::str::from_utf8(&text[start + 1..at]).is_err() {
        return Err(JsonError::Invalid);
    }
    Ok((kind, at + 1))
}

/// The escape whose backslash is at `at`: its character and the place after it.
fn escape(text: &[u8], at: usize) -> Result<(char, usize), JsonError> {
    let plain = match text.get(at + 1) {
        Some(b'"') => '"',
        Some(b'\\') => '\\',
        Some(b'/') => '/',
        Some(b'b') => '\u{8}',
        Some(b'f') => '\u{c}',
        Some(b'n') => '\n',
        Some(b'r') => '\r',
        Some(b't') => '\t',
        Some(b'u') => {
            let high = hex4(text, at + 2)?;
            if !(0xd800..0xdc00).contains(&high) {
                let ch = char::from_u32(high).ok_or(JsonError::Invalid)?;
                return Ok((ch, at + 6));
            }
            if text.get(at + 6..at + 8) != Some(b"\\u") {
                return Err(JsonError::Invalid);
            }
            let low = hex4(text, at + 8)?;
            if !(0xdc00..0xe000).contains(&low) {
                return Err(JsonError::Invalid);
            }
            let code = 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
            return Ok((char::from_u32(code).ok_or(JsonError::Invalid)?, at + 12));
        }
        _ => return Err(JsonError::Invalid),
    };
    Ok((plain, at + 2))
}

fn hex4(text: &[u8], at: usize) -> Result<u32, JsonError> {
    let digits = text.get(at..at + 4).ok_or(JsonError::Invalid)?;
    digits.iter().try_fold(0, |n, &d| (d as char).to_digit(16).map(|d| n * 16 + d).ok_or(JsonError::Invalid))
}

#[inline(always)]
fn number(text: &[u8], start: usize) -> Result<(Kind, usize), JsonError> {
    let digits = |mut at: usize| {
        while let Some(b'0'..=b'9') = text.get(at) {
            at += 1;
        }
        at
    };
    let first = if text.get(start) == Some(&b'-') { start + 1 } else { start };
    let mut at = digits(first);
    if at == first || (text.get(first) == Some(&b'0') && at > first + 1) {
        return Err(JsonError::Invalid);
    }
    let mut kind = Kind::Int;
    if text.get(at) == Some(&b'.') {
        kind = Kind::Float;
        let end = digits(at + 1);
        if end == at + 1 {
            return Err(JsonError::Invalid);
        }
        at = end;
    }
    if let Some(b'e' | b'E') = text.get(at) {
        kind = Kind::Float;
        let first = if let Some(b'+' | b'-') = text.get(at + 1) { at + 2 } else { at + 1 };
        at = digits(first);
        if at == first {
            return Err(JsonError::Invalid);
        }
    }
    Ok((kind, at))
}

/// The array or object whose bracket is at `start`.
fn container(text: &[u8], start: usize, depth: usize) -> Result<Found, JsonError> {
    // One bit a level, 1 for an object: at most 127 levels.
    let mut objects: u128 = 0;
    let mut level = 0;
    let mut at = start;
    loop {
        // A value begins at `at`.
        match text.get(at) {
            Some(&open @ (b'{' | b'[')) => {
                if depth + level >= MAX_DEPTH {
                    return Err(JsonError::TooDeep);
                }
                level += 1;
                objects = objects << 1 | u128::from(open == b'{');
                at = skip_space(text, at + 1);
                let close = if open == b'{' { b'}' } else { b']' };
                if text.get(at) != Some(&close) {
                    if open == b'{' {
                        at = key(text, at)?.1;
                    }
                    continue;
                }
            }
            Some(b'"') => at = string(text, at)?.1,
            Some(b'-' | b'0'..=b'9') => at = number(text, at)?.1,
            _ => at = scalar(text, at)?.end as usize,
        }
        // A value ended before `at`, or an empty container is about to.
        loop {
            at = skip_space(text, at);
            let object = objects & 1 == 1;
            match text.get(at) {
                Some(b',') => {
                    // An empty container comes here only at its closing bracket, so a comma follows a value.
                    at = skip_space(text, at + 1);
                    if object {
                        at = key(text, at)?.1;
                    }
                    break;
                }
                Some(b'}') if object => {}
                Some(b']') if !object => {}
                _ => return Err(JsonError::Invalid),
            }
            at += 1;
            level -= 1;
            objects >>= 1;
            if level == 0 {
                let kind = if text.get(start) == Some(&b'{') { Kind::Object } else { Kind::Array };
                return Ok(found(kind, start, at));
            }
        }
    }
}

/// A key, and its content where that is short.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key {
    pub(crate) found: Found,
    /// [`short`] of its content; 0: look at the text.
    pub(crate) short: u64,
}

/// A name of one to seven bytes as a number, the first byte the least significant; 0 for others. No name holds NUL as it stands in a text.
pub(crate) fn short(name: &str) -> u64 {
    let bytes = name.as_bytes();
    if bytes.len() > 7 || bytes.contains(&0) {
        return 0;
    }
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

/// The key at `at`: its string, and where its value begins.
#[inline(always)]
pub(crate) fn key(text: &[u8], at: usize) -> Result<(Key, usize), JsonError> {
    if text.get(at) != Some(&b'"') {
        return Err(JsonError::Invalid);
    }
    let mut word = 0;
    let (kind, end) = match eight(text, at + 1) {
        Some(eight) => {
            let stop = first_special(eight);
            if stop < 8 && (eight >> (8 * stop)) as u8 == b'"' {
                word = eight & ((1 << (8 * stop)) - 1);
                (Kind::Text, at + stop + 2)
            } else {
                string(text, at)?
            }
        }
        None => string_end(text, at, at + 1)?,
    };
    let key = Key { found: found(kind, at, end), short: word };
    let colon = skip_space(text, end);
    if text.get(colon) != Some(&b':') {
        return Err(JsonError::Invalid);
    }
    Ok((key, skip_space(text, colon + 1)))
}

/// The content of a string found in `text`.
pub(crate) fn content(text: &[u8], found: Found) -> Cow<'_, str> {
    let inner = found.of(text);
    let inner = inner.get(1..inner.len().saturating_sub(1)).unwrap_or(b"");
    let Ok(plain) = std::str::from_utf8(inner) else { return Cow::Borrowed("") };
    if found.kind != Kind::Escaped {
        return Cow::Borrowed(plain);
    }
    let mut out = String::with_capacity(inner.len());
    let mut rest = plain;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let Ok((ch, end)) = escape(rest.as_bytes(), at) else { break };
        out.push(ch);
        rest = rest.get(end..).unwrap_or("");
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// Whether a key found in `text` is `name`.
#[inline(always)]
pub(crate) fn key_is(text: &[u8], key: Found, name: &str) -> bool {
    if key.kind == Kind::Escaped {
        return content(text, key) == name;
    }
    text.get(key.start as usize + 1..key.end as usize - 1) == Some(name.as_bytes())
}

/// The members of an object or elements of an array, one after the other. Stops at the first fault.
pub(crate) struct Items<'t> {
    text: &'t [u8],
    at: usize,
    object: bool,
}

/// Walks the container `text`, which begins with its bracket. Anything else has no items.
pub(crate) fn items(text: &[u8]) -> Items<'_> {
    let text = if is_readable(text) { text } else { &[] };
    let object = text.first() == Some(&b'{');
    let at = if object || text.first() == Some(&b'[') { 1 } else { text.len() };
    Items { text, at, object }
}

impl Iterator for Items<'_> {
    /// The key, of an object's member; the value.
    type Item = (Option<Found>, Found);

    fn next(&mut self) -> Option<Self::Item> {
        let mut at = skip_space(self.text, self.at);
        if self.text.get(at) == Some(&b',') {
            at = skip_space(self.text, at + 1);
        }
        if let Some(b'}' | b']') | None = self.text.get(at) {
            return None;
        }
        let name = if self.object {
            let (name, value_at) = key(self.text, at).ok()?;
            at = value_at;
            Some(name.found)
        } else {
            None
        };
        let found = value(self.text, at, 0).ok()?;
        self.at = found.end as usize;
        Some((name, found))
    }
}

/// The first member called `name` of the object `text`.
pub(crate) fn member(text: &[u8], name: &str) -> Option<Found> {
    items(text).find(|(key, _)| key.is_some_and(|key| key_is(text, key, name))).map(|(_, value)| value)
}

/// Element `index` (from 1, negative from the end) of the array `text`.
pub(crate) fn element(text: &[u8], index: i64) -> Option<Found> {
    if text.first() != Some(&b'[') {
        return None;
    }
    let skip = if index > 0 {
        usize::try_from(index - 1).ok()?
    } else {
        items(text).count().checked_sub(usize::try_from(index.unsigned_abs()).ok().filter(|&n| n > 0)?)?
    };
    items(text).nth(skip).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_of_every_length_with_every_byte_at_every_place() {
        for length in 0..20 {
            for at in 0..length {
                for byte in 0..=255u8 {
                    let mut text = vec![b'"'];
                    text.resize(length + 1, b'x');
                    text.extend_from_slice(b"\" ");
                    text[at + 1] = byte;
                    let ours = document(&text).map(|f| f.kind);
                    let theirs = serde_json::from_slice::<String>(&text);
                    assert_eq!(ours.is_ok(), theirs.is_ok(), "{byte:#x} at {at} of {length}");
                    if let (Ok(kind), Ok(content)) = (ours, theirs) {
                        assert_eq!(kind == Kind::Text, content.len() == length, "{text:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn items_and_elements() {
        let array = b"[1, [2,3] ,{\"a\":4}]";
        let of = |f: Option<Found>| f.map(|f| String::from_utf8_lossy(f.of(array)).into_owned());
        for (index, expected) in
            [(1, Some("1")), (-1, Some("{\"a\":4}")), (2, Some("[2,3]")), (4, None), (-4, None), (0, None)]
        {
            assert_eq!(of(element(array, index)).as_deref(), expected, "{index}");
        }
        assert_eq!(
            items(b"5").count() + items(b"[]").count() + items(b"{ }").count() + items(b"").count(),
            0
        );
        assert!(element(b"[1]", i64::MIN).is_none());
    }
}
