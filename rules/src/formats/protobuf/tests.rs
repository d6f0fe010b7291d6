//! Against another implementation, on a schema that has everything; and what must be refused.
#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;
use prost_reflect::prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};

use super::super::tests::{read, written};
use super::super::{Codec, unhex};
use super::*;
use std::sync::Arc;

const PROTO: &str = r#"
syntax = "proto3";
package plant;
import "base.proto";

message All {
  bool b = 1; int32 i32 = 2; int64 i64 = 3; uint32 u32 = 4; uint64 u64 = 5; sint32 s32 = 6; sint64 s64 = 7;
  fixed32 f32 = 8; fixed64 f64 = 9; sfixed32 sf32 = 10; sfixed64 sf64 = 11; float f = 12; double d = 13;
  string text = 14; bytes bytes = 15; State state = 16;
  optional int32 maybe = 20;
  oneof either { int32 left = 21; string right = 22; }
  All inner = 30;
  repeated int32 numbers = 31; repeated sint64 loose = 32 [packed = false]; repeated string texts = 33;
  repeated All inners = 34; repeated State states = 35; repeated double doubles = 36;
  map<string, int32> counts = 40; map<int64, All> named = 41; map<bool, bytes> flags = 42;
  base.Old old = 50;
  enum State { OFF = 0; ON = 1; FAULT = -3; }
  message Nested { string only = 1; }
  Nested nested = 51;
}
"#;

const BASE: &str = r#"
syntax = "proto2";
package base;
message Old {
  required int32 id = 1;
  optional string name = 2 [default = "x"];
  repeated int32 list = 3;
  repeated int32 packed = 4 [packed = true];
  optional group Thing = 5 { optional int32 a = 1; }
  optional bool last = 6;
}
"#;

fn set() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("all.proto"), PROTO).unwrap();
    std::fs::write(folder.path().join("base.proto"), BASE).unwrap();
    protox::compile(["all.proto"], [folder.path()]).unwrap().encode_to_vec()
}

fn codec(set: &[u8], message: &str) -> Codec {
    let schema = Arc::new(Schema::new(set).unwrap());
    let message = schema.message(message).unwrap();
    Codec::Protobuf(schema, Some(message))
}

fn bytes(hex: &str) -> Vec<u8> {
    unhex(&hex.replace(' ', "")).unwrap()
}

/// What the other implementation makes of bytes, its zeros left out.
fn theirs(pool: &DescriptorPool, bytes: &[u8]) -> Option<serde_json::Value> {
    let message = DynamicMessage::decode(pool.get_message_by_name("plant.All").unwrap(), bytes).ok()?;
    let options = SerializeOptions::new().use_proto_field_name(true).stringify_64_bit_integers(false);
    message.serialize_with_options(serde_json::value::Serializer, &options).ok()
}

/// Without zeros and what is empty, bytes as base64: as the other implementation has it.
fn bare(value: &Value<'_>) -> serde_json::Value {
    use base64::Engine as _;
    use serde_json::Value as Tree;
    match value {
        Value::Bytes(bytes) => Tree::from(base64::engine::general_purpose::STANDARD.encode(bytes)),
        Value::List(items) => items.iter().map(bare).collect(),
        Value::Map(members) => {
            Tree::Object(members.iter().map(|(key, value)| (key.clone(), bare(value))).collect())
        }
        other => {
            let mut text = Vec::new();
            other.write_json(&mut text);
            serde_json::from_slice(&text).unwrap()
        }
    }
}

#[test]
fn every_kind_of_field() {
    let set = set();
    let all = codec(&set, "All");
    let text = r#"{"b":true,"i32":-1,"i64":-9223372036854775808,"u32":4294967295,"u64":18446744073709551615,
        "s32":-2147483648,"s64":-9223372036854775808,"f32":7,"f64":18446744073709551615,"sf32":-7,"sf64":-8,"f":1.5,"d":-0.1,
        "text":"é","bytes":{"$bytes":"ff00"},"state":"FAULT","maybe":0,"right":"r","inner":{"i32":5},"numbers":[1,-1,300],
        "loose":[-1,2],"texts":["","a"],"inners":[{},{"b":true}],"states":["ON",7],"doubles":[0.5],
        "counts":{"a":1,"":0},"named":{"-5":{"i32":1}},"flags":{"true":{"$bytes":"01"}},
        "old":{"id":0,"name":"n","list":[1,2],"packed":[3,4],"last":false},"nested":{"only":"o"}}"#;
    let packed = bytes(&written(&all, text));
    let given = all.decode(&packed, Budget { nodes: 10_000, bytes: 10_000 }).unwrap();
    // Members that were written are there again; those that were not are zeros.
    let members = |value: &Value<'_>| -> Map {
        let Value::Map(members) = value else { panic!("an object") };
        (**members).clone()
    };
    let ours = members(&given);
    let wanted: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).unwrap();
    for (name, value) in &wanted {
        if ["inner", "inners", "named", "bytes", "flags"].contains(&name.as_str()) {
            continue;
        }
        assert_eq!(bare(&ours[name]), *value, "{name}");
    }
    assert_eq!(bare(&members(&ours["inner"])["i32"]), 5);
    assert_eq!(members(&ours["inner"])["text"], Value::Text("".into()));
    assert_eq!(ours.get("left"), None);
    // The other implementation reads the same.
    let pool = DescriptorPool::decode(set.as_slice()).unwrap();
    let read = theirs(&pool, &packed).unwrap();
    for (name, value) in read.as_object().unwrap() {
        if !["inner", "inners", "named"].contains(&name.as_str()) {
            assert_eq!(bare(&ours[name]), *value, "{name}");
        }
    }
    assert_eq!(read["named"]["-5"]["i32"], 1);
    assert_eq!(read["inners"][1]["b"], true);
}

#[test]
fn what_is_not_there() {
    let set = set();
    assert_eq!(
        read(&codec(&set, "plant.All"), b""),
        r#"{"b":false,"i32":0,"i64":0,"u32":0,"u64":0,"s32":0,"s64":0,"f32":0,"f64":0,"sf32":0,"sf64":0,"f":0.0,"d":0.0,"text":"","bytes":{"$bytes":""},"state":"OFF","numbers":[],"loose":[],"texts":[],"inners":[],"states":[],"doubles":[],"counts":{},"named":{},"flags":{}}"#
    );
    let old = codec(&set, "Old");
    assert_eq!(read(&old, b""), r#"{"list":[],"packed":[]}"#);
    // A group, a field that nobody knows, packed and loose in each other's place, a field twice.
    assert_eq!(
        read(&old, &bytes("2b 0801 2b 2c 2c f80101 1a020102 2001 2002 0805 0807")),
        r#"{"id":7,"list":[1,2],"packed":[1,2]}"#
    );
    for (text, expected) in [
        ("{}", "Unfit"),
        (r#"{"id":"x"}"#, "Unfit"),
        (r#"{"id":2147483648}"#, "Unfit"),
        (r#"{"id":1.5}"#, "Unfit"),
        (r#"{"id":1,"list":5}"#, "Unfit"),
        (r#"{"id":1,"list":[null]}"#, "Unfit"),
        (r#"{"id":1,"name":5}"#, "Unfit"),
        ("[]", "Unfit"),
        (r#"{"id":1.0,"other":1,"name":null}"#, "0801"),
    ] {
        assert_eq!(written(&old, text), expected, "{text}");
    }
    let all = codec(&set, "All");
    for text in [
        r#"{"state":"NONE"}"#,
        r#"{"u32":-1}"#,
        r#"{"u64":18446744073709551616}"#,
        r#"{"f":1e300}"#,
        r#"{"b":1}"#,
        r#"{"counts":{"a":"x"}}"#,
        r#"{"named":{"x":{}}}"#,
        r#"{"flags":{"1":""}}"#,
        r#"{"inner":[]}"#,
    ] {
        assert_eq!(written(&all, text), "Unfit", "{text}");
    }
}

#[test]
fn what_is_refused() {
    let all = codec(&set(), "All");
    for given in [
        "08",
        "0a00",
        "00",
        "07",
        "08ffffffffffffffffffff01",
        "0d00",
        "7205",
        "72ffffffffffffffffff01",
        "7201ff",
        "f2011f",
        "0b",
        "0c",
        "0b0801",
        "6100",
        "c2020108",
        "fa0101",
    ] {
        assert_eq!(read(&all, &bytes(given)), "Malformed", "{given}");
    }
    // Messages in messages.
    let mut deep = Vec::new();
    for _ in 0..110 {
        let mut outer = Vec::new();
        put(30, Raw::Sized(&deep), &mut outer);
        deep = outer;
    }
    assert_eq!(read(&all, &deep), "TooDeep");
    // Two bytes on the wire are an object of 25 members.
    let mut many = Vec::new();
    for _ in 0..100_000 {
        put(34, Raw::Sized(&[]), &mut many);
    }
    assert_eq!(read(&all, &many), "TooLarge");
    for text in ["", "\n", "\x12\x01x"] {
        assert!(Schema::new(text.as_bytes()).is_err(), "{text:?}");
    }
}

#[test]
fn names_of_messages() {
    let schema = Schema::new(&set()).unwrap();
    assert!(schema.message("plant.All").is_some() && schema.message("All") == schema.message("plant.All"));
    assert!(schema.message("Nested").is_some() && schema.message("All.Nested").is_none());
    assert_eq!(schema.only(), None);
    assert!(schema.names().all(|name| !name.ends_with("Entry")));
}

proptest! {
    /// Bytes that the other implementation reads are the same here; and nothing panics.
    #[test]
    fn agrees_with_another_reader(
        fields in proptest::collection::vec(
            (prop::sample::select(vec![1u32, 2, 3, 4, 5, 6, 7, 16, 20, 21, 31, 32, 35, 99]), any::<u64>(), 0u32..64),
            0..12,
        ),
    ) {
        thread_local! {
            static BOTH: (Codec, DescriptorPool) = {
                let set = set();
                (codec(&set, "plant.All"), DescriptorPool::decode(set.as_slice()).unwrap())
            };
        }
        let mut wire = Vec::new();
        for (number, value, shift) in fields {
            put(number, Raw::Varint(value >> shift), &mut wire);
        }
        BOTH.with(|(codec, pool)| {
            let budget = Budget { nodes: 10_000, bytes: 100_000 };
            let ours = codec.decode(&wire, budget).unwrap();
            let Value::Map(ours) = ours else { panic!("an object") };
            let theirs = theirs(pool, &wire).unwrap();
            let theirs = theirs.as_object().unwrap();
            for (name, value) in ours.iter() {
                if let Some(their) = theirs.get(name) {
                    prop_assert_eq!(&bare(value), their, "{}", name);
                }
            }
            prop_assert!(theirs.keys().all(|name| ours.contains_key(name)));
            Ok(())
        })?;
    }

    #[test]
    fn any_bytes(noise in proptest::collection::vec(any::<u8>(), 0..60)) {
        thread_local! {
            static ALL: Codec = codec(&set(), "plant.All");
        }
        ALL.with(|all| drop(read(all, &noise)));
        drop(Schema::new(&noise));
    }
}
