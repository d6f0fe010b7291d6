//! Vectors of the specifications, there and back, and what must be refused.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;

const BUDGET: Budget = Budget { nodes: 1 << 16, bytes: 1 << 20 };

fn bytes(hex: &str) -> Vec<u8> {
    unhex(&hex.replace(' ', "")).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn json(value: &Value<'_>) -> String {
    let mut out = Vec::new();
    value.write_json(&mut out);
    String::from_utf8(out).unwrap()
}

/// What the bytes are as JSON, or why not.
pub(super) fn read(codec: &Codec, bytes: &[u8]) -> String {
    match codec.decode(bytes, BUDGET) {
        Ok(value) => json(&value),
        Err(error) => format!("{error:?}"),
    }
}

/// The bytes of a JSON text, in hexadecimal, or why there are none.
pub(super) fn written(codec: &Codec, text: &str) -> String {
    match codec.encode(&Value::Json(text.into()), 1 << 20) {
        Ok(bytes) => hex(&bytes),
        Err(error) => format!("{error:?}"),
    }
}

fn value(text: &str) -> Value<'_> {
    Value::found(text.as_bytes(), crate::json::document(text.as_bytes()).unwrap()).unwrap()
}

/// Bytes, their JSON, and whether that is written as the same bytes.
fn check(codec: &Codec, cases: &[(&str, &str, bool)]) {
    for (given, expected, back) in cases {
        assert_eq!(read(codec, &bytes(given)), *expected, "{given}");
        if *back {
            let encoded = codec.encode(&value(expected), 1 << 20).unwrap();
            assert_eq!(hex(&encoded), *given, "{expected}");
        }
    }
}

/// RFC 8949 appendix A.
#[test]
fn cbor_of_the_specification() {
    check(
        &Codec::Cbor,
        &[
            ("00", "0", true),
            ("01", "1", true),
            ("0a", "10", true),
            ("17", "23", true),
            ("1818", "24", true),
            ("1819", "25", true),
            ("1864", "100", true),
            ("1903e8", "1000", true),
            ("1a000f4240", "1000000", true),
            ("1b000000e8d4a51000", "1000000000000", true),
            ("1bffffffffffffffff", "18446744073709551615", true),
            ("c249010000000000000000", "18446744073709551616", true),
            ("3bffffffffffffffff", "-18446744073709551616", true),
            ("c349010000000000000000", "-18446744073709551617", true),
            ("20", "-1", true),
            ("29", "-10", true),
            ("3863", "-100", true),
            ("3903e7", "-1000", true),
            ("f90000", "0.0", true),
            ("f98000", "-0.0", true),
            ("f93c00", "1.0", true),
            ("fb3ff199999999999a", "1.1", true),
            ("f93e00", "1.5", true),
            ("f97bff", "65504.0", true),
            ("fa47c35000", "100000.0", true),
            ("fa7f7fffff", "3.4028234663852886e+38", true),
            ("fb7e37e43c8800759c", "1e+300", true),
            ("f90001", "5.960464477539063e-8", true),
            ("f90400", "0.00006103515625", true),
            ("f9c400", "-4.0", true),
            ("fbc010666666666666", "-4.1", true),
            ("f97c00", "null", false),
            ("f97e00", "null", false),
            ("f9fc00", "null", false),
            ("fa7f800000", "null", false),
            ("fb7ff8000000000000", "null", false),
            ("f4", "false", true),
            ("f5", "true", true),
            ("f6", "null", true),
            ("f7", "null", false),
            ("f0", "null", false),
            ("f8ff", "null", false),
            ("c074323031332d30332d32315432303a30343a30305a", "\"2013-03-21T20:04:00Z\"", false),
            ("c11a514b67b0", "1363896240", false),
            ("c1fb41d452d9ec200000", "1363896240.5", false),
            ("d74401020304", "{\"$bytes\":\"01020304\"}", false),
            ("d818456449455446", "{\"$bytes\":\"6449455446\"}", false),
            ("40", "{\"$bytes\":\"\"}", true),
            ("4401020304", "{\"$bytes\":\"01020304\"}", true),
            ("60", "\"\"", true),
            ("6161", "\"a\"", true),
            ("62225c", "\"\\\"\\\\\"", true),
            ("62c3bc", "\"\u{fc}\"", true),
            ("64f0908591", "\"\u{10151}\"", true),
            ("80", "[]", true),
            ("83010203", "[1,2,3]", true),
            ("8301820203820405", "[1,[2,3],[4,5]]", true),
            (
                "98190102030405060708090a0b0c0d0e0f101112131415161718181819",
                "[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25]",
                true,
            ),
            ("a0", "{}", true),
            ("a201020304", "{\"1\":2,\"3\":4}", false),
            ("a26161016162820203", "{\"a\":1,\"b\":[2,3]}", true),
            ("826161a161626163", "[\"a\",{\"b\":\"c\"}]", true),
            ("5f42010243030405ff", "{\"$bytes\":\"0102030405\"}", false),
            ("7f657374726561646d696e67ff", "\"streaming\"", false),
            ("9fff", "[]", false),
            ("9f018202039f0405ffff", "[1,[2,3],[4,5]]", false),
            ("83018202039f0405ff", "[1,[2,3],[4,5]]", false),
            ("bf61610161629f0203ffff", "{\"a\":1,\"b\":[2,3]}", false),
            ("bf6346756ef563416d7421ff", "{\"Fun\":true,\"Amt\":-2}", false),
        ],
    );
}

#[test]
fn cbor_that_is_refused() {
    for (given, expected) in [
        ("", "Malformed"),
        ("18", "Malformed"),
        ("0000", "Malformed"),
        ("1c", "Malformed"),
        ("1f", "Malformed"),
        ("ff", "Malformed"),
        ("62ff", "Malformed"),
        ("61ff", "Malformed"),
        // Lengths that lie.
        ("5bffffffffffffffff", "Malformed"),
        ("7b7fffffffffffffff00", "Malformed"),
        ("9bffffffffffffffff00", "Malformed"),
        ("bbffffffffffffffff6161", "Malformed"),
        ("9f00", "Malformed"),
        // Pieces of another kind, pieces without a length, half a character in each of two pieces.
        ("5f6161ff", "Malformed"),
        ("5f5f4100ffff", "Malformed"),
        ("7f61c361bcff", "Malformed"),
        ("f818", "Malformed"),
        ("c2", "Malformed"),
        ("a1a001", "Malformed"),
        ("a1f601", "Malformed"),
    ] {
        assert_eq!(read(&Codec::Cbor, &bytes(given)), expected, "{given}");
    }
    // Of two members of one name the first counts.
    assert_eq!(read(&Codec::Cbor, &bytes("a2616101616102")), "{\"a\":1}");
    assert_eq!(read(&Codec::Cbor, &[0x81; 1_000_000]), "TooDeep");
    assert_eq!(read(&Codec::Cbor, &[0x9f; 1_000_000]), "TooDeep");
    assert_eq!(read(&Codec::Cbor, &[0xc1; 1_000_000]), "Malformed");
    let many = [&[0x9a, 0, 1, 0x86, 0xa0][..], &[0; 100_000]].concat();
    assert_eq!(read(&Codec::Cbor, &many), "TooLarge");
    // A bignum of 4,104 bits.
    let long = [&[0xc2, 0x59, 0x02, 0x01][..], &[1; 513]].concat();
    assert_eq!(read(&Codec::Cbor, &long), "TooLarge");
}

/// The formats of the specification, each at its bounds.
#[test]
fn messagepack_of_the_specification() {
    check(
        &Codec::MessagePack,
        &[
            ("c0", "null", true),
            ("c2", "false", true),
            ("c3", "true", true),
            ("00", "0", true),
            ("7f", "127", true),
            ("cc80", "128", true),
            ("ccff", "255", true),
            ("cd0100", "256", true),
            ("cdffff", "65535", true),
            ("ce00010000", "65536", true),
            ("ceffffffff", "4294967295", true),
            ("cf0000000100000000", "4294967296", true),
            ("cfffffffffffffffff", "18446744073709551615", true),
            ("ff", "-1", true),
            ("e0", "-32", true),
            ("d0df", "-33", true),
            ("d080", "-128", true),
            ("d1ff7f", "-129", true),
            ("d18000", "-32768", true),
            ("d2ffff7fff", "-32769", true),
            ("d280000000", "-2147483648", true),
            ("d3ffffffff7fffffff", "-2147483649", true),
            ("d38000000000000000", "-9223372036854775808", true),
            ("ca3fc00000", "1.5", false),
            ("cb3ff199999999999a", "1.1", true),
            ("ca7fc00000", "null", false),
            ("a0", "\"\"", true),
            ("a161", "\"a\"", true),
            ("d90161", "\"a\"", false),
            ("da000161", "\"a\"", false),
            ("db0000000161", "\"a\"", false),
            ("c400", "{\"$bytes\":\"\"}", true),
            ("c402ff00", "{\"$bytes\":\"ff00\"}", true),
            ("c50001ff", "{\"$bytes\":\"ff\"}", false),
            ("c600000001ff", "{\"$bytes\":\"ff\"}", false),
            ("90", "[]", true),
            ("9301ffa161", "[1,-1,\"a\"]", true),
            ("dc000101", "[1]", false),
            ("dd0000000101", "[1]", false),
            ("80", "{}", true),
            ("82a16101a16291c0", "{\"a\":1,\"b\":[null]}", true),
            ("8101c3", "{\"1\":true}", false),
            ("de0001a16101", "{\"a\":1}", false),
            ("df00000001a16101", "{\"a\":1}", false),
            ("d405ff", "{\"$bytes\":\"ff\"}", false),
            ("c70205ff00", "{\"$bytes\":\"ff00\"}", false),
            ("d6ff514b67b0", "1363896240000", false),
            // 0.5 s: 30 bits of nanoseconds above 34 of seconds.
            ("d7ff77359400514b67b0", "1363896240500", false),
            ("c70cff1dcd6500ffffffffffffffff", "-500", false),
        ],
    );
    let long = format!("\"{}\"", "x".repeat(32));
    assert!(written(&Codec::MessagePack, &format!("[{long}]")).starts_with("91d920"));
}

#[test]
fn messagepack_that_is_refused() {
    for given in [
        "",
        "c1",
        "cd00",
        "a2ff",
        "a1ff",
        "0000",
        "dbffffffff00",
        "ddffffffff",
        "dfffffffff",
        "c6ffffffff",
        "d7ffffffffffffffffff",
        "d6ff",
        "c701",
        "c703ff010203",
        "9101c0",
        "81c001",
    ] {
        assert_eq!(read(&Codec::MessagePack, &bytes(given)), "Malformed", "{given}");
    }
    assert_eq!(read(&Codec::MessagePack, &[0x91; 1_000_000]), "TooDeep");
    assert_eq!(written(&Codec::MessagePack, "[18446744073709551616]"), "Unfit");
}

fn csv_of(columns: &str, header: bool, many: bool) -> Codec {
    let columns = if columns.is_empty() { Vec::new() } else { schemas::columns(columns).unwrap() };
    Codec::Csv(Arc::new(csv::Layout { columns, delimiter: b';', header, many }))
}

#[test]
fn csv_lines() {
    let plain = Codec::builtin("csv").unwrap();
    for (text, expected, back) in [
        ("", "[]", true),
        ("a,b", "[[\"a\",\"b\"]]", true),
        ("a,b\nc,d", "[[\"a\",\"b\"],[\"c\",\"d\"]]", true),
        ("a,b\r\nc,d\r\n", "[[\"a\",\"b\"],[\"c\",\"d\"]]", false),
        ("\"a,\"\"b\",\"\n\"", "[[\"a,\\\"b\",\"\\n\"]]", true),
        (",\n", "[[\"\",\"\"]]", false),
        ("\"\"", "[[\"\"]]", true),
        ("a\"b,c", "[[\"a\\\"b\",\"c\"]]", false),
        ("\"a\"b", "Malformed", false),
        ("\"a", "Malformed", false),
    ] {
        assert_eq!(read(&plain, text.as_bytes()), expected, "{text}");
        if back {
            assert_eq!(written(&plain, expected), hex(text.as_bytes()), "{text}");
        }
    }
    assert_eq!(read(&plain, b"\xff"), "Malformed");
    let one = csv_of("ts integer, temp number, ok boolean, unit", false, false);
    assert_eq!(read(&one, b"5; 21.5;true;C\n"), "{\"ts\":5,\"temp\":21.5,\"ok\":true,\"unit\":\"C\"}");
    assert_eq!(read(&one, b"5;;"), "{\"ts\":5,\"temp\":null,\"ok\":null}");
    for text in ["x", "5;6;7", "5;6;0;C;more", "1\n2", "", "5;nan"] {
        assert_eq!(read(&one, text.as_bytes()), "Malformed", "{text}");
    }
    let text = |hex: String| String::from_utf8(bytes(&hex)).unwrap();
    assert_eq!(text(written(&one, "{\"unit\":\"a;b\",\"ts\":1,\"other\":2}")), "1;;;\"a;b\"");
    for text in ["[{\"ts\":1},{\"ts\":2}]", "{\"ts\":1.5}", "{\"ok\":7}", "{\"temp\":[1]}", "[1,2,true,3,4]"]
    {
        assert_eq!(written(&one, text), "Unfit", "{text}");
    }
    let headed = csv_of("", true, true);
    assert_eq!(read(&headed, b"a;b\n1;2\n3"), "[{\"a\":\"1\",\"b\":\"2\"},{\"a\":\"3\"}]");
    assert_eq!(text(written(&headed, "[{\"a\":1,\"b\":[2]},{\"a\":3,\"b\":null}]")), "a;b\n1;[2]\n3;");
    assert_eq!(text(written(&plain, "[1,\"x\",true]")), "1,x,true");
    assert_eq!(plain.encode(&Value::Int(5), 100), Err(FormatError::Unfit));
}

#[test]
fn what_is_written_is_bounded() {
    for codec in [Codec::Cbor, Codec::MessagePack, Codec::Json, Codec::Text] {
        assert_eq!(codec.encode(&value("[1,2,3]"), 2), Err(FormatError::TooLarge));
    }
    let deep = "[".repeat(110) + &"]".repeat(110);
    for codec in [Codec::Cbor, Codec::MessagePack] {
        assert_eq!(written(&codec, &deep), "TooDeep");
    }
}
