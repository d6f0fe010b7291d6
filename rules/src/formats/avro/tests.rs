//! The specification's examples, there and back, and what must be refused.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::formats::tests::{read, written};
use crate::formats::{Codec, unhex};

fn codec(schema: &str) -> Codec {
    Codec::Avro(Arc::new(Schema::new(schema.as_bytes(), None).unwrap()))
}

const ALL: &str = r#"{"type":"record","name":"All","namespace":"a.b","fields":[
    {"name":"n","type":"null"},{"name":"b","type":"boolean"},{"name":"i","type":"int"},{"name":"l","type":{"type":"long","logicalType":"timestamp-millis"}},
    {"name":"f","type":"float"},{"name":"d","type":"double"},{"name":"x","type":"bytes"},{"name":"s","type":"string"},
    {"name":"h","type":{"type":"fixed","name":"Half","size":2}},{"name":"e","type":{"type":"enum","name":"State","symbols":["OFF","ON"]}},
    {"name":"a","type":{"type":"array","items":"a.b.State"}},{"name":"m","type":{"type":"map","values":"Half"}},
    {"name":"u","type":["null","double","long","string",{"type":"array","items":"int"}]},
    {"name":"next","type":["null","All"],"default":null},{"name":"k","type":"int","default":7}]}"#;

/// The examples of the specification's section on the binary encoding.
#[test]
fn of_the_specification() {
    for (schema, hex, json) in [
        (r#""long""#, "00", "0"),
        (r#""long""#, "01", "-1"),
        (r#""long""#, "02", "1"),
        (r#""long""#, "03", "-2"),
        (r#""int""#, "7f", "-64"),
        (r#""int""#, "8001", "64"),
        (r#""string""#, "06666f6f", "\"foo\""),
        (
            r#"{"type":"record","name":"test","fields":[{"name":"a","type":"long"},{"name":"b","type":"string"}]}"#,
            "3606666f6f",
            r#"{"a":27,"b":"foo"}"#,
        ),
        (r#"{"type":"array","items":"long"}"#, "04063600", "[3,27]"),
        (r#"["null","string"]"#, "00", "null"),
        (r#"["null","string"]"#, "020261", "\"a\""),
    ] {
        let bytes = unhex(hex).unwrap();
        assert_eq!(read(&codec(schema), &bytes), json, "{schema} {hex}");
        let value = Value::found(json.as_bytes(), crate::json::document(json.as_bytes()).unwrap()).unwrap();
        assert_eq!(codec(schema).encode(&value, 1000).unwrap(), bytes, "{schema} {json}");
    }
    // Blocks, one of them with its size.
    let longs = codec(r#"{"type":"array","items":"long"}"#);
    assert_eq!(read(&longs, &[0x02, 0x06, 0x03, 0x04, 0x08, 0x36, 0x02, 0x0a, 0x00]), "[3,4,27,5]");
}

/// Confluent's frame.
#[test]
fn framed() {
    let codec = Codec::Avro(Arc::new(Schema::new(br#"{"type":"array","items":"int"}"#, Some(258)).unwrap()));
    assert_eq!(written(&codec, "[1]"), "0000000102020200");
    assert_eq!(read(&codec, &unhex("0000000102020200").unwrap()), "[1]");
    for hex in ["", "00", "00000001", "0000000103020200", "0100000102020200", "020200"] {
        assert_eq!(read(&codec, &unhex(hex).unwrap()), "Malformed", "{hex}");
    }
}

#[test]
fn there_and_back() {
    let all = codec(ALL);
    let text = r#"{"n":null,"b":true,"i":-2147483648,"l":9223372036854775807,"f":1.5,"d":-0.1,"x":{"$bytes":"ff"},"s":"é",
        "h":{"$bytes":"0001"},"e":"ON","a":["OFF","ON"],"m":{"k":{"$bytes":"0203"}},"u":5,
        "next":{"n":null,"b":false,"i":0,"l":0,"f":2,"d":1,"x":"x","s":"","h":"xy","e":"OFF","a":[],"m":{},"u":[1]}}"#;
    let given = read(&all, &unhex(&written(&all, text)).unwrap());
    let expected = r#"{"n":null,"b":true,"i":-2147483648,"l":9223372036854775807,"f":1.5,"d":-0.1,"x":{"$bytes":"ff"},"s":"é","h":{"$bytes":"0001"},"e":"ON","a":["OFF","ON"],"m":{"k":{"$bytes":"0203"}},"u":5,"next":{"n":null,"b":false,"i":0,"l":0,"f":2.0,"d":1.0,"x":{"$bytes":"78"},"s":"","h":{"$bytes":"7879"},"e":"OFF","a":[],"m":{},"u":[1],"next":null,"k":7},"k":7}"#;
    assert_eq!(given, expected);
    assert_eq!(all.members().unwrap().len(), 15);
}

#[test]
fn what_does_not_fit() {
    for (schema, text) in [
        (r#""int""#, "[]"),
        (r#"{"type":"array","items":"int"}"#, "[2147483648]"),
        (r#"{"type":"array","items":"int"}"#, "[1.5]"),
        (r#"{"type":"array","items":"long"}"#, "[9223372036854775808]"),
        (r#"{"type":"array","items":"float"}"#, "[1e300]"),
        (r#"{"type":"array","items":"string"}"#, "[1]"),
        (r#"{"type":"array","items":{"type":"enum","name":"e","symbols":["A"]}}"#, "[\"B\"]"),
        (r#"{"type":"array","items":{"type":"fixed","name":"f","size":2}}"#, "[\"abc\"]"),
        (r#"{"type":"array","items":["null","int"]}"#, "[\"x\"]"),
        (r#"{"type":"record","name":"r","fields":[{"name":"a","type":"int"}]}"#, "{}"),
        (r#"{"type":"map","values":"int"}"#, "[1]"),
    ] {
        assert_eq!(written(&codec(schema), text), "Unfit", "{schema} {text}");
    }
    // A union in a list in a union, and so on: what is tried is bounded.
    let mut schema = r#""int""#.to_owned();
    for _ in 0..30 {
        schema = format!(r#"[{{"type":"array","items":{schema}}},{{"type":"map","values":"int"}}]"#);
    }
    let text = format!("{}\"x\"{}", "[".repeat(30), "]".repeat(30));
    assert_eq!(written(&codec(&schema), &text), "Unfit");
}

#[test]
fn what_is_refused() {
    for (schema, hex) in [
        (r#""long""#, ""),
        (r#""long""#, "80"),
        (r#""long""#, "ffffffffffffffffffff01"),
        (r#""int""#, "8080808010"),
        (r#""boolean""#, "02"),
        (r#""string""#, "02ff"),
        (r#""string""#, "fffffffffffffffffe01"),
        (r#""bytes""#, "fcffffffffffffffff01ff"),
        (r#""bytes""#, "01"),
        (r#"["null"]"#, "02"),
        (r#"["null"]"#, "01"),
        (r#"{"type":"enum","name":"e","symbols":["A"]}"#, "02"),
        (r#"{"type":"array","items":"int"}"#, "02"),
        (r#"{"type":"array","items":"int"}"#, "0001"),
    ] {
        assert_eq!(read(&codec(schema), &unhex(hex).unwrap()), "Malformed", "{schema} {hex}");
    }
    // Nine bytes are a list of 2^62 nulls.
    let nulls = codec(r#"{"type":"array","items":"null"}"#);
    assert_eq!(read(&nulls, &[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]), "TooLarge");
    // A record in itself takes no bytes at all.
    let itself = codec(r#"{"type":"record","name":"r","fields":[{"name":"r","type":"r"}]}"#);
    assert_eq!(read(&itself, b""), "TooDeep");
    assert_eq!(written(&itself, r#"{"r":{}}"#), "Unfit");
}

#[test]
fn schemas_that_are_none() {
    let deep = r#"{"type":"array","items":"#.repeat(70) + r#""int""# + &"}".repeat(70);
    for (schema, expected) in [
        ("{", "it is no JSON"),
        ("5", "`5` is no type"),
        ("{}", "a type has no `type`"),
        (r#""x""#, "the type `x` is not declared before it is used"),
        ("[]", "a union has no branch"),
        (r#"[["int"]]"#, "a union stands in a union"),
        (r#"{"type":"array"}"#, "the type `array` has no `items`"),
        (r#"{"type":"record"}"#, "a type `record` has no `name`"),
        (r#"{"type":"record","name":"r"}"#, "the type `r` has no `fields`"),
        (r#"{"type":"record","name":"r","fields":[1]}"#, "a field of `r` is no object"),
        (r#"{"type":"record","name":"r","fields":[{"name":"a"}]}"#, "the field `r.a` has no `type`"),
        (
            r#"{"type":"record","name":"r","fields":[{"name":"a","type":"int"},{"name":"a","type":"int"}]}"#,
            "the field `r.a` is there twice",
        ),
        (r#"{"type":"fixed","name":"f"}"#, "the type `f` has no `size`"),
        (r#"{"type":"enum","name":"e","symbols":[1]}"#, "a symbol of `e` is no text"),
        (
            r#"[{"type":"fixed","name":"f","size":1},{"type":"fixed","name":"f","size":1}]"#,
            "the type `f` is declared twice",
        ),
        (deep.as_str(), "its types are nested deeper than 64"),
    ] {
        let error = Schema::new(schema.as_bytes(), None).unwrap_err();
        assert!(error.starts_with(expected), "{schema}: {error}");
    }
}

proptest! {
    #[test]
    fn any_bytes(noise in proptest::collection::vec(any::<u8>(), 0..60)) {
        let _ = read(&codec(ALL), &noise);
        let _ = Schema::new(&noise, None);
    }
}
