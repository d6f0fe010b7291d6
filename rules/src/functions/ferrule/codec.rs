//! Encodings, hashes, compression, identity.

use super::*;
use crate::functions::emqx::{codec, sparkplug};
use crate::functions::{hyphens, uuid_hex};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Digest;

use crate::value::unhex;

pub(super) const FUNCTIONS: &[Function] = &[
    strict("base64_decode", 1, 1, base64_decode),
    strict("base64_encode", 1, 2, base64_encode),
    strict("crc16", 1, 1, crc16),
    strict("crc32", 1, 1, crc32),
    strict("gunzip", 1, 1, codec::gunzip),
    strict("gzip", 1, 1, codec::gzip),
    strict("hex_decode", 1, 1, hex_decode),
    strict("hex_encode", 1, 1, hex_encode),
    strict("hmac_sha256", 2, 2, hmac_sha256),
    strict("is_json", 1, 1, is_json),
    strict("json_decode", 1, 1, json_decode),
    lenient("json_encode", 1, 1, json_encode),
    strict("md5", 1, 1, codec::md5),
    strict("sha1", 1, 1, codec::sha),
    strict("sha256", 1, 1, codec::sha256),
    strict("sha512", 1, 1, |args, _| Ok(codec::lower_hex(sha2::Sha512::digest(bytes_of(arg(args, 0))?)))),
    strict("sparkplug_decode", 1, 1, sparkplug_decode),
    strict("sparkplug_encode", 1, 1, sparkplug_encode),
    strict("url_decode", 1, 1, url_decode),
    strict("url_encode", 1, 1, url_encode),
    strict("uuid", 0, 0, |_, around| Ok(owned(hyphens(&uuid_hex(around))))),
    strict("zip_compress", 1, 1, codec::zip_compress),
    strict("zip_uncompress", 1, 1, codec::zip_uncompress),
];

// === text of bytes ===

/// Either alphabet, with padding or without.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

fn base64_encode<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let (bytes, alphabet) = (bytes_of(arg(args, 0))?, text_or(args, 1, "standard")?);
    within(bytes.len().div_ceil(3).saturating_mul(4), around)?;
    match alphabet {
        "standard" => Ok(owned(STANDARD.encode(bytes))),
        "urlsafe" => Ok(owned(URL_SAFE_NO_PAD.encode(bytes))),
        _ => Err(TypeError::BadArgument),
    }
}

fn base64_decode<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let text = text_of(arg(args, 0))?;
    within(text.len() / 4 * 3, around)?;
    let digits = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).map(|byte| match byte {
        b'-' => b'+',
        b'_' => b'/',
        byte => byte,
    });
    let digits: Vec<u8> = digits.collect();
    LENIENT.decode(digits).map(Value::binary).map_err(|_| TypeError::BadArgument)
}

fn hex_encode<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let bytes = bytes_of(arg(args, 0))?;
    within(bytes.len().saturating_mul(2), around)?;
    Ok(codec::lower_hex(bytes))
}

/// Spaces may stand between the bytes, as people write frames.
fn hex_decode<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let text = text_of(arg(args, 0))?;
    within(text.len() / 2, around)?;
    let bytes = if text.contains(' ') { unhex(&text.replace(' ', "")) } else { unhex(text) };
    bytes.map(Value::binary).ok_or(TypeError::BadArgument)
}

/// RFC 3986: all but its unreserved characters become `%XX`.
fn url_encode<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let bytes = bytes_of(arg(args, 0))?;
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    within(
        bytes.len().saturating_add(bytes.iter().filter(|byte| !plain(byte)).count().saturating_mul(2)),
        around,
    )?;
    let mut out = String::with_capacity(bytes.len());
    for byte in bytes {
        if plain(byte) {
            out.push(char::from(*byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    Ok(owned(out))
}

fn url_decode<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let text = text_of(arg(args, 0))?;
    within(text.len(), around)?;
    let mut parts = text.split('%');
    let mut out = parts.next().unwrap_or("").as_bytes().to_vec();
    for part in parts {
        let (hex, plain) = part.split_at_checked(2).ok_or(TypeError::BadArgument)?;
        out.extend(unhex(hex).ok_or(TypeError::BadArgument)?);
        out.extend_from_slice(plain.as_bytes());
    }
    Ok(Value::binary(out))
}

// === checksums ===

/// CRC-16/MODBUS: the polynomial 0x8005, reflected, from 0xFFFF.
fn crc16<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let crc = bytes_of(arg(args, 0))?.iter().fold(0xFFFF_u16, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xA001 } else { crc >> 1 })
    });
    Ok(Value::Int(i64::from(crc)))
}

fn crc32<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let mut crc = flate2::Crc::new();
    crc.update(bytes_of(arg(args, 0))?);
    Ok(Value::Int(i64::from(crc.sum())))
}

/// RFC 2104 with SHA-256.
fn hmac_sha256<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    let (data, key) = (bytes_of(arg(args, 0))?, bytes_of(arg(args, 1))?);
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(key).map_err(|_| TypeError::BadArgument)?;
    mac.update(data);
    Ok(codec::lower_hex(mac.finalize().into_bytes()))
}

// === JSON ===

fn json_decode<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let text = take(args, 0);
    within(text_of(&text)?.len(), around)?;
    match text {
        Value::Text(Cow::Borrowed(text)) => found_in(text),
        text => found_in(text_of(&text)?).map(Value::into_owned),
    }
}

fn found_in(text: &str) -> Given<'_> {
    let found = json::document(text.as_bytes()).map_err(|_| TypeError::InvalidJson)?;
    Value::found(text.as_bytes(), found)
}

fn json_encode<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    let mut out = Json::new(around);
    out.value(arg(args, 0), 0)?;
    match out.end() {
        Value::Json(text) => Ok(Value::Text(text)),
        _ => Err(TypeError::TypeMismatch),
    }
}

fn is_json<'a>(args: &mut [Value<'a>], _: &mut Surroundings) -> Given<'a> {
    Ok(Value::Bool(json::document(text_of(arg(args, 0))?.as_bytes()).is_ok()))
}

// === Sparkplug B ===

fn sparkplug_decode<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    sparkplug::payload(bytes_of(arg(args, 0))?, true, around.max_text)
}

fn sparkplug_encode<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    within(object_of(arg(args, 0))?.len(), around)?;
    sparkplug::payload_bytes(&take(args, 0).open(), true, around.max_text).map(Value::binary)
}

#[cfg(test)]
mod tests {
    use super::super::tests::check;

    #[test]
    fn text_of_bytes() {
        check(&[
            ("base64_encode", r#""""#, r#""""#),
            ("base64_encode", r#"{"$bytes":"fbff"}"#, r#""+/8=""#),
            ("base64_encode", r#""a", "x""#, "bad_argument"),
            ("base64_encode", "1", "type_mismatch"),
            ("base64_decode", r#""""#, r#""""#),
            ("base64_decode", r#""Y W I\n=""#, r#""ab""#),
            ("base64_decode", r#""+/8""#, r#"{"$bytes":"fbff"}"#),
            ("base64_decode", r#""!""#, "bad_argument"),
            ("base64_decode", r#"{"$bytes":"59"}"#, "type_mismatch"),
            ("hex_encode", r#""""#, r#""""#),
            ("hex_decode", r#""""#, r#""""#),
            ("hex_decode", r#""0g""#, "bad_argument"),
            ("hex_decode", r#""0""#, "bad_argument"),
            ("hex_decode", r#""é""#, "bad_argument"),
            ("hex_decode", "5", "type_mismatch"),
            ("url_encode", r#""aZ09-._~""#, r#""aZ09-._~""#),
            ("url_encode", r#"{"$bytes":"ff"}"#, r#""%FF""#),
            ("url_decode", r#""%ff""#, r#"{"$bytes":"ff"}"#),
            ("url_decode", r#""%zz""#, "bad_argument"),
            ("url_decode", r#""%é""#, "bad_argument"),
            ("url_decode", r#""%+1""#, "bad_argument"),
            ("url_decode", r#""""#, r#""""#),
        ]);
    }

    #[test]
    fn checksums() {
        check(&[
            ("crc16", r#""""#, "65535"),
            ("crc16", r#"{"$bytes":"010300000001"}"#, "2692"),
            ("crc32", r#""""#, "0"),
            ("crc32", "1", "type_mismatch"),
            (
                "hmac_sha256",
                r#""", """#,
                r#""b613679a0814d9ec772f95d778c35fc5ff1697c493715653c6c712144292c5ad""#,
            ),
            ("hmac_sha256", r#""a", 1"#, "type_mismatch"),
            ("md5", r#""""#, r#""d41d8cd98f00b204e9800998ecf8427e""#),
            ("sha1", "null", "null"),
            ("sha256", "1", "type_mismatch"),
            ("sha512", "true", "type_mismatch"),
        ]);
    }

    #[test]
    fn json_text() {
        check(&[
            ("json_decode", r#""null""#, "null"),
            ("json_decode", r#"" 1.5 ""#, "1.5"),
            ("json_decode", r#""\"a\\n\"""#, r#""a\n""#),
            ("json_decode", r#""[1] 2""#, "invalid_json"),
            ("json_decode", r#""""#, "invalid_json"),
            ("json_decode", "5", "type_mismatch"),
            ("json_decode", r#""1e999""#, "not_finite"),
            ("json_encode", r#"{"a":[1,"b",null]}"#, r#""{\"a\":[1,\"b\",null]}""#),
            ("json_encode", r#""é\n""#, r#""\"é\\n\"""#),
            ("json_encode", r#"{"$bytes":"ff"}"#, r#""{\"$bytes\":\"ff\"}""#),
            ("is_json", r#""""#, "false"),
            ("is_json", r#""1""#, "true"),
            ("is_json", "1", "type_mismatch"),
        ]);
    }

    #[test]
    fn sparkplug() {
        check(&[
            ("sparkplug_decode", r#""no""#, "bad_argument"),
            ("sparkplug_decode", "5", "type_mismatch"),
            ("sparkplug_encode", "5", "type_mismatch"),
            ("sparkplug_encode", "[]", "type_mismatch"),
            ("sparkplug_encode", r#"{"timestamp":5}"#, r#""\b\u0005""#),
            (
                "sparkplug_decode",
                r#"{"$bytes":"120c200350ffffffffffffffff01"}"#,
                r#"{"metrics":[{"datatype":3,"int_value":-1}]}"#,
            ),
        ]);
    }
}
