//! Hashes, compression, encodings: bytes become text and text becomes bytes.
//!
//! What decompresses or decodes stops as soon as its result is larger than may be made, however small its
//! input is. None of these functions takes a number, NULL or a missing value for text, except those that encode
//! any value.

use std::borrow::Cow;
use std::io::Read;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use flate2::bufread::{DeflateEncoder, MultiGzDecoder, ZlibEncoder};
use flate2::{Compression, Decompress, FlushDecompress, GzBuilder, Status};
use sha3::digest::{Digest, ExtendableOutput};

use super::sparkplug;
use super::term::{term_decode, term_encode};
use super::{Given, bytes_of, emqx, owned, take, within};
use crate::TypeError;
use crate::functions::{Function, Surroundings};
use crate::json::{self, Found, Kind};
use crate::value::{Value, write_json_text};

pub(super) const FUNCTIONS: &[Function] = &[
    emqx("base64_decode", 1, 3, base64_decode),
    emqx("base64_encode", 1, 3, base64_encode),
    emqx("bin2hexstr", 1, 2, bin2hexstr),
    emqx("gunzip", 1, 1, gunzip),
    emqx("gzip", 1, 1, gzip),
    emqx("hash", 2, 2, hash),
    emqx("hexstr2bin", 1, 2, hexstr2bin),
    emqx("json_decode", 1, 1, json_decode),
    emqx("json_encode", 1, 1, json_encode),
    emqx("md5", 1, 1, md5),
    emqx("sha", 1, 1, sha),
    emqx("sha256", 1, 1, sha256),
    emqx("sparkplug_decode", 1, 2, sparkplug_decode),
    emqx("sparkplug_encode", 1, 2, sparkplug_encode),
    emqx("spb_decode", 1, 2, spb_decode),
    emqx("spb_encode", 1, 2, spb_encode),
    emqx("sqlserver_bin2hexstr", 1, 1, sqlserver_bin2hexstr),
    emqx("term_decode", 1, 1, term_decode),
    emqx("term_encode", 1, 1, term_encode),
    emqx("unzip", 1, 1, unzip),
    emqx("zip", 1, 1, zip),
    emqx("zip_compress", 1, 1, zip_compress),
    emqx("zip_uncompress", 1, 1, zip_uncompress),
];

// Hexadecimal text.

fn push_hex(out: &mut Vec<u8>, bytes: &[u8], digits: &[u8; 16]) {
    for byte in bytes {
        out.push(digits[usize::from(byte >> 4)]);
        out.push(digits[usize::from(byte & 15)]);
    }
}

fn upper_hex<'a>(prefix: &[u8], bytes: &[u8], around: &Surroundings) -> Given<'a> {
    let size = bytes.len().saturating_mul(2).saturating_add(prefix.len());
    within(size, around)?;
    let mut out = Vec::with_capacity(size);
    out.extend_from_slice(prefix);
    push_hex(&mut out, bytes, b"0123456789ABCDEF");
    Ok(Value::binary(out))
}

/// The prefix that is the second argument; none when it has been left out.
fn prefix_of<'v>(args: &'v [Value<'_>]) -> Result<&'v [u8], TypeError> {
    args.get(1).map_or(Ok(&[]), bytes_of)
}

fn bin2hexstr<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let bytes = take(args, 0);
    upper_hex(prefix_of(args)?, bytes_of(&bytes)?, around)
}

fn sqlserver_bin2hexstr<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    upper_hex(b"0x", bytes_of(&take(args, 0))?, around)
}

/// An odd number of digits counts as if a 0 stood before them.
fn hexstr2bin<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let text = take(args, 0);
    let digits = bytes_of(&text)?.strip_prefix(prefix_of(args)?).ok_or(TypeError::BadArgument)?;
    within(digits.len().div_ceil(2), around)?;
    let digit =
        |d: u8| (d as char).to_digit(16).and_then(|d| u8::try_from(d).ok()).ok_or(TypeError::BadArgument);
    let (first, pairs) = digits.split_at_checked(digits.len() % 2).unwrap_or((digits, &[]));
    let mut out = Vec::with_capacity(digits.len().div_ceil(2));
    for &d in first {
        out.push(digit(d)?);
    }
    for pair in pairs.chunks_exact(2) {
        let (high, low) = (pair.first().copied().unwrap_or(0), pair.get(1).copied().unwrap_or(0));
        out.push(digit(high)? << 4 | digit(low)?);
    }
    Ok(Value::binary(out))
}

// Hashes.

pub(in crate::functions) fn lower_hex<'a>(hash: impl AsRef<[u8]>) -> Value<'a> {
    let mut out = Vec::new();
    push_hex(&mut out, hash.as_ref(), b"0123456789abcdef");
    Value::binary(out)
}

pub(in crate::functions) fn md5<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    Ok(lower_hex(md5::Md5::digest(bytes_of(&take(args, 0))?)))
}

pub(in crate::functions) fn sha<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    Ok(lower_hex(sha1::Sha1::digest(bytes_of(&take(args, 0))?)))
}

pub(in crate::functions) fn sha256<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    Ok(lower_hex(sha2::Sha256::digest(bytes_of(&take(args, 0))?)))
}

fn hash<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let data = take(args, 1);
    let Value::Text(algorithm) = take(args, 0) else { return Err(TypeError::TypeMismatch) };
    let data = bytes_of(&data)?;
    Ok(match &*algorithm {
        "md4" => lower_hex(md4::Md4::digest(data)),
        "md5" => lower_hex(md5::Md5::digest(data)),
        "sha" | "sha1" => lower_hex(sha1::Sha1::digest(data)),
        "sha224" => lower_hex(sha2::Sha224::digest(data)),
        "sha256" => lower_hex(sha2::Sha256::digest(data)),
        "sha384" => lower_hex(sha2::Sha384::digest(data)),
        "sha512" => lower_hex(sha2::Sha512::digest(data)),
        "sha3_224" => lower_hex(sha3::Sha3_224::digest(data)),
        "sha3_256" => lower_hex(sha3::Sha3_256::digest(data)),
        "sha3_384" => lower_hex(sha3::Sha3_384::digest(data)),
        "sha3_512" => lower_hex(sha3::Sha3_512::digest(data)),
        // These two have no length of their own; EMQX gives as many bytes.
        "shake128" => shake::<sha3::Shake128, 16>(data),
        "shake256" => shake::<sha3::Shake256, 32>(data),
        "blake2b" => lower_hex(blake2::Blake2b512::digest(data)),
        "blake2s" => lower_hex(blake2::Blake2s256::digest(data)),
        _ => return Err(TypeError::BadArgument),
    })
}

fn shake<'a, H: ExtendableOutput + Default, const BYTES: usize>(data: &[u8]) -> Value<'a> {
    let mut out = [0; BYTES];
    H::digest_xof(data, &mut out);
    lower_hex(out)
}

// Compression.

/// All that a reader gives, if it may be made.
fn read<'a>(reader: impl Read, around: &Surroundings) -> Given<'a> {
    let mut out = Vec::new();
    let limit = u64::try_from(around.max_text).unwrap_or(u64::MAX).saturating_add(1);
    reader.take(limit).read_to_end(&mut out).map_err(|_| TypeError::BadArgument)?;
    within(out.len(), around)?;
    Ok(Value::binary(out))
}

/// One deflate stream; what follows it is left unread. A stream that does not end is refused.
fn inflate<'a>(mut input: &[u8], zlib: bool, around: &Surroundings) -> Given<'a> {
    let mut state = Decompress::new(zlib);
    let mut out = Vec::new();
    let mut buffer = [0; 4_096];
    loop {
        let (read, made) = (state.total_in(), state.total_out());
        let status = state
            .decompress(input, &mut buffer, FlushDecompress::None)
            .map_err(|_| TypeError::BadArgument)?;
        let moved = |from: u64, to: u64| usize::try_from(to.saturating_sub(from)).unwrap_or(0);
        let (read, made) = (moved(read, state.total_in()), moved(made, state.total_out()));
        within(out.len().saturating_add(made), around)?;
        out.extend_from_slice(buffer.get(..made).unwrap_or(&[]));
        if status == Status::StreamEnd {
            return Ok(Value::binary(out));
        }
        if read == 0 && made == 0 {
            return Err(TypeError::BadArgument);
        }
        input = input.get(read..).unwrap_or(&[]);
    }
}

/// Several gzip members one after the other count as one.
pub(in crate::functions) fn gunzip<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    read(MultiGzDecoder::new(bytes_of(&take(args, 0))?), around)
}

/// The header is the one that EMQX's zlib writes on Unix: no time, system 3.
pub(in crate::functions) fn gzip<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let header = GzBuilder::new().operating_system(3);
    read(header.buf_read(bytes_of(&take(args, 0))?, Compression::default()), around)
}

fn unzip<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    inflate(bytes_of(&take(args, 0))?, false, around)
}

fn zip<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    read(DeflateEncoder::new(bytes_of(&take(args, 0))?, Compression::default()), around)
}

pub(in crate::functions) fn zip_compress<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    read(ZlibEncoder::new(bytes_of(&take(args, 0))?, Compression::default()), around)
}

pub(in crate::functions) fn zip_uncompress<'a>(
    args: &mut [Value<'a>],
    around: &mut Surroundings,
) -> Given<'a> {
    inflate(bytes_of(&take(args, 0))?, true, around)
}

// Base64.

/// Whether `option` is among the arguments after the first. Options that are unknown do nothing.
fn has_option(args: &[Value<'_>], option: &str) -> bool {
    args.iter().skip(1).any(|arg| matches!(arg, Value::Text(text) if text == option))
}

fn base64_engine(args: &[Value<'_>], padding: DecodePaddingMode) -> GeneralPurpose {
    let alphabet = if has_option(args, "urlsafe") { &alphabet::URL_SAFE } else { &alphabet::STANDARD };
    let config = GeneralPurposeConfig::new()
        .with_encode_padding(!has_option(args, "no_padding"))
        // EMQX does not look at bits of the last digit that stand for nothing.
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(padding);
    GeneralPurpose::new(alphabet, config)
}

fn base64_encode<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let data = take(args, 0);
    let data = bytes_of(&data)?;
    within(data.len().div_ceil(3).saturating_mul(4), around)?;
    Ok(owned(base64_engine(args, DecodePaddingMode::Indifferent).encode(data)))
}

/// White space between the digits is skipped. With `no_padding` padding may stand there, but then all of it.
fn base64_decode<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let text = take(args, 0);
    let mut text = Cow::Borrowed(bytes_of(&text)?);
    within(text.len() / 4 * 3, around)?;
    let space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
    if text.iter().any(space) {
        text.to_mut().retain(|byte| !space(byte));
    }
    let bare = has_option(args, "no_padding") && !text.contains(&b'=');
    let padding = if bare { DecodePaddingMode::RequireNone } else { DecodePaddingMode::RequireCanonical };
    base64_engine(args, padding).decode(&*text).map(Value::binary).map_err(|_| TypeError::BadArgument)
}

// JSON.

/// What is inside of an array or object stays JSON text until it is asked for.
fn json_decode<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    match take(args, 0) {
        Value::Text(Cow::Borrowed(text)) => decoded(text.as_bytes(), around),
        Value::Bytes(Cow::Borrowed(bytes)) => decoded(bytes, around),
        other => decoded(bytes_of(&other)?, around).map(Value::into_owned),
    }
}

fn decoded<'a>(text: &'a [u8], around: &Surroundings) -> Given<'a> {
    let found = json::document(text).map_err(|_| TypeError::InvalidJson)?;
    within(found.of(text).len(), around)?;
    Ok(Value::found(text, found)?.open())
}

fn json_encode<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let mut out = Vec::new();
    encode_json(&take(args, 0), 0, &mut out, around)?;
    Ok(Value::binary(out))
}

/// Appends `value` as JSON without white space; bytes as the text they would be, what is not UTF-8 replaced.
fn encode_json(
    value: &Value<'_>,
    depth: usize,
    out: &mut Vec<u8>,
    around: &Surroundings,
) -> Result<(), TypeError> {
    if depth > json::MAX_DEPTH {
        return Err(TypeError::BadArgument);
    }
    match value {
        Value::Json(text) => compact_json(text.as_bytes(), out, around)?,
        Value::Bytes(bytes) => {
            within(out.len().saturating_add(bytes.len()), around)?;
            write_json_text(&String::from_utf8_lossy(bytes), out);
        }
        Value::Text(text) => {
            within(out.len().saturating_add(text.len()), around)?;
            write_json_text(text, out);
        }
        Value::List(items) => {
            out.push(b'[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                encode_json(item, depth + 1, out, around)?;
            }
            out.push(b']');
        }
        Value::Map(members) => {
            out.push(b'{');
            for (at, (key, value)) in members.iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                within(out.len().saturating_add(key.len()), around)?;
                write_json_text(key, out);
                out.push(b':');
                encode_json(value, depth + 1, out, around)?;
            }
            out.push(b'}');
        }
        scalar => scalar.write_json(out),
    }
    within(out.len(), around)
}

/// Appends valid JSON as EMQX would write it after reading it: without white space, with no escapes that are not
/// needed.
fn compact_json(text: &[u8], out: &mut Vec<u8>, around: &Surroundings) -> Result<(), TypeError> {
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        let start = at;
        match byte {
            b' ' | b'\t' | b'\n' | b'\r' => at += 1,
            b'"' => {
                let (kind, end) = json::string(text, at).map_err(|_| TypeError::InvalidJson)?;
                at = end;
                match (kind, u32::try_from(start), u32::try_from(end)) {
                    (Kind::Escaped, Ok(start), Ok(end)) => {
                        write_json_text(&json::content(text, Found { kind, start, end }), out);
                    }
                    _ => out.extend_from_slice(text.get(start..end).unwrap_or(&[])),
                }
            }
            b'-' | b'0'..=b'9' => {
                while let Some(b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E') = text.get(at) {
                    at += 1;
                }
                let number = text.get(start..at).unwrap_or(&[]);
                if number.iter().any(|b| matches!(b, b'.' | b'e' | b'E')) {
                    let number = std::str::from_utf8(number).ok().and_then(|n| n.parse::<f64>().ok());
                    let number = number.filter(|n| n.is_finite()).ok_or(TypeError::NotFinite)?;
                    Value::Float(number).write_json(out);
                } else {
                    out.extend_from_slice(number);
                }
            }
            other => {
                out.push(other);
                at += 1;
            }
        }
        within(out.len(), around)?;
    }
    Ok(())
}

// Sparkplug B.

fn sparkplug_decode<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    sparkplug::decode(args, false, around)
}

fn sparkplug_encode<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    sparkplug::encode(args, false, around)
}

fn spb_decode<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    sparkplug::decode(args, true, around)
}

fn spb_encode<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    sparkplug::encode(args, true, around)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::tests::{call, check};
    use super::*;

    #[test]
    fn hexadecimal_text() {
        check(&[
            ("bin2hexstr", r#"[{"$bytes":"0102ff"}]"#, r#""0102FF""#),
            ("bin2hexstr", r#"["abc","0x"]"#, r#""0x616263""#),
            ("bin2hexstr", r#"["",""]"#, r#""""#),
            ("bin2hexstr", r#"["a",{"$bytes":"ff"}]"#, r#"{"$bytes":"ff3631"}"#),
            ("bin2hexstr", r#"[5]"#, "error"),
            ("bin2hexstr", r#"["a",5]"#, "error"),
            ("bin2hexstr", r#"[null]"#, "error"),
            ("bin2hexstr", r#"[{"$undefined":true}]"#, "error"),
            ("sqlserver_bin2hexstr", r#"[{"$bytes":"0a0B"}]"#, r#""0x0A0B""#),
            ("sqlserver_bin2hexstr", r#"[""]"#, r#""0x""#),
            ("sqlserver_bin2hexstr", r#"[true]"#, "error"),
            ("hexstr2bin", r#"["6162"]"#, r#""ab""#),
            ("hexstr2bin", r#"["fFfe"]"#, r#"{"$bytes":"fffe"}"#),
            ("hexstr2bin", r#"["a"]"#, r#""\n""#),
            ("hexstr2bin", r#"["16162"]"#, r#""\u0001ab""#),
            ("hexstr2bin", r#"["0x6162","0x"]"#, r#""ab""#),
            ("hexstr2bin", r#"["6162","0x"]"#, "error"),
            ("hexstr2bin", r#"["0x6162"]"#, "error"),
            ("hexstr2bin", r#"["+1"]"#, "error"),
            ("hexstr2bin", r#"[""]"#, r#""""#),
            ("hexstr2bin", r#"[61]"#, "error"),
            ("hexstr2bin", r#"["61",null]"#, "error"),
            ("hexstr2bin", r#"[{"$undefined":true}]"#, "error"),
        ]);
        let long = "f".repeat(600_000);
        assert_eq!(call("bin2hexstr", &format!("[\"{long}\"]")), "error");
    }

    /// The hashes of "abc" are those of the standards.
    #[test]
    fn hashes() {
        check(&[
            ("md5", r#"["abc"]"#, r#""900150983cd24fb0d6963f7d28e17f72""#),
            ("sha", r#"["abc"]"#, r#""a9993e364706816aba3e25717850c26c9cd0d89d""#),
            (
                "sha256",
                r#"[{"$bytes":"616263"}]"#,
                r#""ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad""#,
            ),
            ("md5", "[1]", "error"),
            ("md5", "[true]", "error"),
            ("sha", "[null]", "error"),
            ("sha256", r#"[{"$undefined":true}]"#, "error"),
            ("sha256", r#"[["a"]]"#, "error"),
            ("hash", r#"["md4","abc"]"#, r#""a448017aaf21d8525fc10ae87aa6729d""#),
            ("hash", r#"["md5","abc"]"#, r#""900150983cd24fb0d6963f7d28e17f72""#),
            ("hash", r#"["sha","abc"]"#, r#""a9993e364706816aba3e25717850c26c9cd0d89d""#),
            ("hash", r#"["sha1","abc"]"#, r#""a9993e364706816aba3e25717850c26c9cd0d89d""#),
            ("hash", r#"["sha224","abc"]"#, r#""23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7""#),
            (
                "hash",
                r#"["sha3_224","abc"]"#,
                r#""e642824c3f8cf24ad09234ee7d3c766fc9a3a5168d0c94ad73b46fdf""#,
            ),
            (
                "hash",
                r#"["sha3_256","abc"]"#,
                r#""3a985da74fe225b2045c172d6bd390bd855f086e3e9d525b46bfe24511431532""#,
            ),
            ("hash", r#"["shake128",""]"#, r#""7f9c2ba4e88f827d616045507605853e""#),
            (
                "hash",
                r#"["shake256",""]"#,
                r#""46b9dd2b0ba88d13233b3feb743eeb243fcd52ea62b81b82b50c27646ed5762f""#,
            ),
            (
                "hash",
                r#"["blake2s","abc"]"#,
                r#""508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982""#,
            ),
            ("hash", r#"["SHA1","abc"]"#, "error"),
            ("hash", r#"["none","abc"]"#, "error"),
            ("hash", r#"[1,"abc"]"#, "error"),
            ("hash", r#"["sha1",null]"#, "error"),
            ("hash", r#"["sha1",{"$undefined":true}]"#, "error"),
            ("hash", r#"["sha1",7]"#, "error"),
        ]);
        for (name, begin, length) in [
            ("sha384", "cb00753f45a35e8b", 96),
            ("sha512", "ddaf35a193617aba", 128),
            ("sha3_384", "ec01498288516fc9", 96),
            ("sha3_512", "b751850b1a57168a", 128),
            ("blake2b", "ba80a53f981c4d0d", 128),
        ] {
            let hash = call("hash", &format!("[\"{name}\",\"abc\"]"));
            assert!(hash.starts_with(&format!("\"{begin}")) && hash.len() == length + 2, "{name}: {hash}");
        }
    }

    #[test]
    fn compression() {
        check(&[
            ("zip", r#"[""]"#, r#""\u0003\u0000""#),
            ("zip", r#"[{"$bytes":"00ff01"}]"#, r#"{"$bytes":"63f8cf0800"}"#),
            ("unzip", r#"[{"$bytes":"63f8cf0800"}]"#, r#"{"$bytes":"00ff01"}"#),
            ("unzip", r#"[{"$bytes":"0300ffff"}]"#, r#""""#),
            ("unzip", r#"[{"$bytes":"63f8cf08"}]"#, "error"),
            ("unzip", r#"[""]"#, "error"),
            ("zip_compress", r#"[{"$bytes":"00ff01"}]"#, r#"{"$bytes":"789c63f8cf080002020101"}"#),
            ("zip_uncompress", r#"[{"$bytes":"789c63f8cf080002020101"}]"#, r#"{"$bytes":"00ff01"}"#),
            ("zip_uncompress", r#"[{"$bytes":"789c63f8cf080002020102"}]"#, "error"),
            ("zip_uncompress", r#"[{"$bytes":"789c63f8cf0800020201"}]"#, "error"),
            (
                "gzip",
                r#"["hello world"]"#,
                r#"{"$bytes":"1f8b0800000000000003cb48cdc9c95728cf2fca49010085114a0d0b000000"}"#,
            ),
            (
                "gunzip",
                r#"[{"$bytes":"1f8b0800000000000003cb48cdc9c95728cf2fca49010085114a0d0b000000"}]"#,
                r#""hello world""#,
            ),
            (
                "gunzip",
                r#"[{"$bytes":"1f8b0800000000000003cb48cdc9c95728cf2fca49010085114a0d0b00"}]"#,
                "error",
            ),
            ("gunzip", r#"[{"$bytes":"1f8b0800000000000003cb48cdc9"}]"#, "error"),
            ("gunzip", r#"["text"]"#, "error"),
            ("gunzip", r#"[""]"#, "error"),
        ]);
        for name in ["gzip", "gunzip", "zip", "unzip", "zip_compress", "zip_uncompress"] {
            for wrong in ["[1]", "[null]", "[true]", "[[]]", r#"[{"$undefined":true}]"#] {
                assert_eq!(call(name, wrong), "error", "{name}({wrong})");
            }
        }
    }

    #[test]
    fn compression_there_and_back_and_bombs() {
        let mut around = Surroundings::new([1, 2]);
        let mut large = Surroundings { max_text: 100_000_000, ..Surroundings::new([1, 2]) };
        type Call = for<'a> fn(&mut [Value<'a>], &mut Surroundings) -> Given<'a>;
        let pairs: [(Call, Call); 3] = [(gzip, gunzip), (zip, unzip), (zip_compress, zip_uncompress)];
        for (pack, unpack) in pairs {
            for size in [0, 1, 4_095, 4_096, 4_097, 1 << 20] {
                let data: Vec<u8> = (0..size).map(|i: u32| (i.wrapping_mul(i) >> 3) as u8).collect();
                let packed = pack(&mut [Value::Bytes(data.clone().into())], &mut large).unwrap();
                let unpacked = unpack(&mut [packed], &mut around).unwrap();
                assert_eq!(unpacked.as_bytes(), Some(data.as_slice()), "{size}");
            }
            let bomb = pack(&mut [Value::Bytes(vec![0; (1 << 20) + 1].into())], &mut around).unwrap();
            assert!(bomb.as_bytes().unwrap().len() < 3_000);
            assert_eq!(unpack(&mut [bomb], &mut around), Err(TypeError::BadArgument));
        }
    }

    #[test]
    fn two_gzip_members_are_one() {
        let mut around = Surroundings::new([1, 2]);
        let one = gzip(&mut [owned("ab")], &mut around).unwrap();
        let one = one.as_bytes().unwrap();
        let both = Value::Bytes([one, one].concat().into());
        assert_eq!(gunzip(&mut [both], &mut around).unwrap(), owned("abab"));
        let rubbish = Value::Bytes([one, b"x".as_slice()].concat().into());
        assert!(gunzip(&mut [rubbish], &mut around).is_err());
    }

    #[test]
    fn base64_text() {
        check(&[
            ("base64_encode", r#"["a"]"#, r#""YQ==""#),
            ("base64_encode", r#"["a","no_padding"]"#, r#""YQ""#),
            ("base64_encode", r#"[{"$bytes":"fbff"}]"#, r#""+/8=""#),
            ("base64_encode", r#"[{"$bytes":"fbff"},"urlsafe"]"#, r#""-_8=""#),
            ("base64_encode", r#"[{"$bytes":"fbff"},"no_padding","urlsafe"]"#, r#""-_8""#),
            ("base64_encode", r#"["a","other",5]"#, r#""YQ==""#),
            ("base64_encode", r#"[""]"#, r#""""#),
            ("base64_encode", "[1]", "error"),
            ("base64_encode", "[null]", "error"),
            ("base64_encode", r#"[{"$undefined":true}]"#, "error"),
            ("base64_decode", r#"["YQ=="]"#, r#""a""#),
            ("base64_decode", r#"["YR=="]"#, r#""a""#),
            ("base64_decode", r#"["Y Q\n=="]"#, r#""a""#),
            ("base64_decode", r#"["YQ"]"#, "error"),
            ("base64_decode", r#"["YQ="]"#, "error"),
            ("base64_decode", r#"["YQ","no_padding"]"#, r#""a""#),
            ("base64_decode", r#"["YQ==","no_padding"]"#, r#""a""#),
            ("base64_decode", r#"["YQ=","no_padding"]"#, "error"),
            ("base64_decode", r#"["YQ","urlsafe"]"#, "error"),
            ("base64_decode", r#"["-_8","urlsafe","no_padding"]"#, r#"{"$bytes":"fbff"}"#),
            ("base64_decode", r#"["-_8="]"#, "error"),
            ("base64_decode", r#"["+/8=","urlsafe"]"#, "error"),
            ("base64_decode", r#"["YQ==","other"]"#, r#""a""#),
            ("base64_decode", r#"["a"]"#, "error"),
            ("base64_decode", r#"["!!!!"]"#, "error"),
            ("base64_decode", r#"[""]"#, r#""""#),
            ("base64_decode", "[1]", "error"),
            ("base64_decode", "[null]", "error"),
            ("base64_decode", r#"[{"$undefined":true}]"#, "error"),
        ]);
        let long = "f".repeat(800_000);
        assert_eq!(call("base64_encode", &format!("[\"{long}\"]")), "error");
    }

    #[test]
    fn json_text() {
        check(&[
            ("json_decode", r#"["{\"a\":[1,{\"b\":null}]}"]"#, r#"{"a":[1,{"b":null}]}"#),
            ("json_decode", r#"[" [1.5, true] "]"#, r#"[1.5,true]"#),
            ("json_decode", r#"["5"]"#, "5"),
            ("json_decode", r#"["123456789012345678901"]"#, "123456789012345678901"),
            ("json_decode", r#"["\"a\\u0062\""]"#, r#""ab""#),
            ("json_decode", r#"["null"]"#, "null"),
            ("json_decode", r#"["1e400"]"#, "error"),
            ("json_decode", r#"["[1"]"#, "error"),
            ("json_decode", r#"["[1] 2"]"#, "error"),
            ("json_decode", r#"[""]"#, "error"),
            ("json_decode", r#"[{"$bytes":"5b315d"}]"#, "[1]"),
            ("json_decode", r#"[{"$bytes":"22ff22"}]"#, "error"),
            ("json_decode", "[1]", "error"),
            ("json_decode", r#"[{"a":1}]"#, "error"),
            ("json_decode", "[null]", "error"),
            ("json_decode", r#"[{"$undefined":true}]"#, "error"),
            (
                "json_encode",
                r#"[{"a":[1,{"b":null}],"c":"\u0001\n\/é"}]"#,
                r#""{\"a\":[1,{\"b\":null}],\"c\":\"\\u0001\\n/é\"}""#,
            ),
            ("json_encode", "[[]]", r#""[]""#),
            ("json_encode", "[2.0]", r#""2.0""#),
            ("json_encode", "[true]", r#""true""#),
            ("json_encode", r#"["a"]"#, r#""\"a\"""#),
            ("json_encode", "[null]", r#""null""#),
            ("json_encode", r#"[{"$undefined":true}]"#, r#""\"undefined\"""#),
            ("json_encode", r#"[{"$bytes":"61ff"}]"#, r#""\"a�\"""#),
        ]);
    }

    #[test]
    fn json_within_is_written_anew() {
        let mut around = Surroundings::new([1, 2]);
        let text = r#"{ "a" : [ 1 , -1.50e1 , "\u0041\/ x" , {"b" : null}, true ] }"#;
        let given = json_encode(&mut [owned(text)], &mut around)
            .and_then(|text| json_decode(&mut [text], &mut around));
        assert_eq!(given.unwrap(), owned(text));
        for value in [Value::Json(Cow::Borrowed(text)), Value::Json(Cow::Borrowed(text)).open()] {
            let given = json_encode(&mut [value], &mut around).unwrap();
            assert_eq!(given, owned(r#"{"a":[1,-15.0,"A/ x",{"b":null},true]}"#));
        }
        assert!(json_encode(&mut [Value::Json("[1e999]".into())], &mut around).is_err());
    }

    /// Lists that hold the same list twice, many levels deep, would be without end as text.
    #[test]
    fn what_shares_its_parts_is_bounded() {
        let mut value = Value::Int(1000);
        for _ in 0..100 {
            value = Value::list(vec![value.clone(), value]);
        }
        let mut around = Surroundings::new([1, 2]);
        assert_eq!(json_encode(&mut [value.clone()], &mut around), Err(TypeError::BadArgument));
        assert_eq!(term_encode(&mut [value], &mut around), Err(TypeError::BadArgument));
        let mut deep = Value::Int(1);
        for _ in 0..200 {
            deep = Value::list(vec![deep]);
        }
        assert_eq!(json_encode(&mut [deep.clone()], &mut around), Err(TypeError::BadArgument));
        assert_eq!(term_encode(&mut [deep], &mut around), Err(TypeError::BadArgument));
    }
}
