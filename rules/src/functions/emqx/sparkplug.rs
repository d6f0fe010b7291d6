//! Payloads of Sparkplug B: Protocol Buffers of one schema, read and written by tables.
//!
//! The schema is org.eclipse.tahu.protobuf.Payload of the specification, without its extensions. A field that is
//! not set is not in the object; what the schema does not know is skipped when reading and when writing. Numbers
//! that are not finite are the texts `nan`, `infinity` and `-infinity`, as EMQX has them.

use num_bigint::BigInt;

use super::{Given, bytes_of, cut, cut_array, list_of, map_of, owned, take};
use crate::formats::{put_varint, varint};
use crate::functions::Surroundings;
use crate::value::{Map, Value};
use crate::{TypeError, big};

/// How deep messages may be in each other: each may be two levels of JSON.
const DEPTH_MAX: usize = 50;

/// The fields of a message.
struct Message(&'static [Field]);

struct Field {
    number: u64,
    name: &'static str,
    kind: Kind,
    repeated: bool,
}

#[derive(Clone, Copy)]
enum Kind {
    Bool,
    U32,
    U64,
    Float,
    Double,
    Text,
    Bytes,
    Message(&'static Message),
}

const fn one(number: u64, name: &'static str, kind: Kind) -> Field {
    Field { number, name, kind, repeated: false }
}

const fn many(number: u64, name: &'static str, kind: Kind) -> Field {
    Field { number, name, kind, repeated: true }
}

static PAYLOAD: Message = Message(&[
    one(1, "timestamp", Kind::U64),
    many(2, "metrics", Kind::Message(&METRIC)),
    one(3, "seq", Kind::U64),
    one(4, "uuid", Kind::Text),
    one(5, "body", Kind::Bytes),
]);

static METRIC: Message = Message(&[
    one(1, "name", Kind::Text),
    one(2, "alias", Kind::U64),
    one(3, "timestamp", Kind::U64),
    one(4, "datatype", Kind::U32),
    one(5, "is_historical", Kind::Bool),
    one(6, "is_transient", Kind::Bool),
    one(7, "is_null", Kind::Bool),
    one(8, "metadata", Kind::Message(&METADATA)),
    one(9, "properties", Kind::Message(&PROPERTY_SET)),
    one(10, "int_value", Kind::U32),
    one(11, "long_value", Kind::U64),
    one(12, "float_value", Kind::Float),
    one(13, "double_value", Kind::Double),
    one(14, "boolean_value", Kind::Bool),
    one(15, "string_value", Kind::Text),
    one(16, "bytes_value", Kind::Bytes),
    one(17, "dataset_value", Kind::Message(&DATA_SET)),
    one(18, "template_value", Kind::Message(&TEMPLATE)),
]);

static METADATA: Message = Message(&[
    one(1, "is_multi_part", Kind::Bool),
    one(2, "content_type", Kind::Text),
    one(3, "size", Kind::U64),
    one(4, "seq", Kind::U64),
    one(5, "file_name", Kind::Text),
    one(6, "file_type", Kind::Text),
    one(7, "md5", Kind::Text),
    one(8, "description", Kind::Text),
]);

static PROPERTY_SET: Message =
    Message(&[many(1, "keys", Kind::Text), many(2, "values", Kind::Message(&PROPERTY_VALUE))]);

static PROPERTY_VALUE: Message = Message(&[
    one(1, "type", Kind::U32),
    one(2, "is_null", Kind::Bool),
    one(3, "int_value", Kind::U32),
    one(4, "long_value", Kind::U64),
    one(5, "float_value", Kind::Float),
    one(6, "double_value", Kind::Double),
    one(7, "boolean_value", Kind::Bool),
    one(8, "string_value", Kind::Text),
    one(9, "propertyset_value", Kind::Message(&PROPERTY_SET)),
    one(10, "propertysets_value", Kind::Message(&PROPERTY_SET_LIST)),
]);

static PROPERTY_SET_LIST: Message = Message(&[many(1, "propertyset", Kind::Message(&PROPERTY_SET))]);

static DATA_SET: Message = Message(&[
    one(1, "num_of_columns", Kind::U64),
    many(2, "columns", Kind::Text),
    many(3, "types", Kind::U32),
    many(4, "rows", Kind::Message(&ROW)),
]);

static ROW: Message = Message(&[many(1, "elements", Kind::Message(&DATA_SET_VALUE))]);

static DATA_SET_VALUE: Message = Message(&[
    one(1, "int_value", Kind::U32),
    one(2, "long_value", Kind::U64),
    one(3, "float_value", Kind::Float),
    one(4, "double_value", Kind::Double),
    one(5, "boolean_value", Kind::Bool),
    one(6, "string_value", Kind::Text),
]);

static TEMPLATE: Message = Message(&[
    one(1, "version", Kind::Text),
    many(2, "metrics", Kind::Message(&METRIC)),
    many(3, "parameters", Kind::Message(&PARAMETER)),
    one(4, "template_ref", Kind::Text),
    one(5, "is_definition", Kind::Bool),
]);

static PARAMETER: Message = Message(&[
    one(1, "name", Kind::Text),
    one(2, "type", Kind::U32),
    one(3, "int_value", Kind::U32),
    one(4, "long_value", Kind::U64),
    one(5, "float_value", Kind::Float),
    one(6, "double_value", Kind::Double),
    one(7, "boolean_value", Kind::Bool),
    one(8, "string_value", Kind::Text),
]);

/// The message that is meant: the payload, or the one that the second argument names.
fn message_of(args: &[Value<'_>]) -> Result<&'static Message, TypeError> {
    let name = match args.get(1) {
        None => return Ok(&PAYLOAD),
        Some(Value::Text(name)) => &**name,
        Some(_) => return Err(TypeError::TypeMismatch),
    };
    match name {
        "Payload" => Ok(&PAYLOAD),
        "Payload.Metric" => Ok(&METRIC),
        "Payload.MetaData" => Ok(&METADATA),
        "Payload.PropertySet" => Ok(&PROPERTY_SET),
        "Payload.PropertySetList" => Ok(&PROPERTY_SET_LIST),
        "Payload.PropertyValue" => Ok(&PROPERTY_VALUE),
        "Payload.DataSet" => Ok(&DATA_SET),
        "Payload.Template" => Ok(&TEMPLATE),
        _ => Err(TypeError::BadArgument),
    }
}

/// `signed`: integers of signed types with their signs, which the schema has as unsigned ones.
pub(super) fn decode<'a>(args: &mut [Value<'a>], signed: bool, around: &Surroundings) -> Given<'a> {
    let message = message_of(args)?;
    let bytes = take(args, 0);
    let mut reader = Reader { rest: bytes_of(&bytes)?, left: around.max_text, signed };
    reader.message(message, 0).map(Value::map)
}

/// `signed`: negative integers may stand where the type of the value has a sign.
pub(super) fn encode<'a>(args: &mut [Value<'a>], signed: bool, around: &Surroundings) -> Given<'a> {
    let message = message_of(args)?;
    let members = take(args, 0);
    let mut out = Vec::new();
    write(message, map_of(&members)?, 0, signed, &mut out, around.max_text)?;
    Ok(Value::binary(out))
}

/// A whole payload, of about `max` bytes as JSON at most.
pub(crate) fn payload(bytes: &[u8], signed: bool, max: usize) -> Result<Value<'static>, TypeError> {
    Reader { rest: bytes, left: max, signed }.message(&PAYLOAD, 0).map(Value::map)
}

/// The bytes of a payload, at most `max` of them.
pub(crate) fn payload_bytes(members: &Value<'_>, signed: bool, max: usize) -> Result<Vec<u8>, TypeError> {
    let mut out = Vec::new();
    write(&PAYLOAD, map_of(members)?, 0, signed, &mut out, max)?;
    Ok(out)
}

// What Sparkplug calls its types with a sign.
const INT8: i64 = 1;
const INT16: i64 = 2;
const INT32: i64 = 3;
const INT64: i64 = 4;

/// The type that a metric, property or parameter says it has.
fn type_of(members: &Map) -> Option<i64> {
    match members.get("datatype").or_else(|| members.get("type")) {
        Some(Value::Int(kind)) => Some(*kind),
        _ => None,
    }
}

/// Gives an integer the sign that its type has: of wider ones the low bits are meant.
fn sign(members: &mut Map) {
    let kind = type_of(members);
    if let Some(Value::Int(n)) = members.get_mut("int_value") {
        *n = match kind {
            Some(INT8) => i64::from(*n as i8),
            Some(INT16) => i64::from(*n as i16),
            Some(INT32) => i64::from(*n as i32),
            _ => *n,
        };
    }
    if let (Some(INT64), Some(value)) = (kind, members.get_mut("long_value"))
        && let Ok(long) = unsigned(value)
    {
        *value = Value::Int(long.cast_signed());
    }
}

/// An integer of 64 bits without a sign.
fn unsigned(value: &Value<'_>) -> Result<u64, TypeError> {
    match value {
        Value::Int(i) => u64::try_from(*i).map_err(|_| TypeError::BadArgument),
        other => u64::try_from(big::integer(other)?).map_err(|_| TypeError::IntegerOverflow),
    }
}

fn float(f: f64) -> Value<'static> {
    if f.is_nan() {
        owned("nan")
    } else if f.is_finite() {
        Value::Float(f)
    } else {
        owned(if f > 0.0 { "infinity" } else { "-infinity" })
    }
}

/// How a field is written: the low bits of its tag.
const VARINT: u64 = 0;
const FIXED_64: u64 = 1;
const LENGTH: u64 = 2;
const FIXED_32: u64 = 5;

impl Kind {
    fn wire(self) -> u64 {
        match self {
            Kind::Bool | Kind::U32 | Kind::U64 => VARINT,
            Kind::Float => FIXED_32,
            Kind::Double => FIXED_64,
            Kind::Text | Kind::Bytes | Kind::Message(_) => LENGTH,
        }
    }
}

struct Reader<'t> {
    rest: &'t [u8],
    /// How many bytes of JSON what comes may be, about.
    left: usize,
    signed: bool,
}

impl<'t> Reader<'t> {
    fn take(&mut self, count: usize) -> Result<&'t [u8], TypeError> {
        cut(&mut self.rest, count)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], TypeError> {
        cut_array(&mut self.rest)
    }

    fn varint(&mut self) -> Result<u64, TypeError> {
        varint(&mut self.rest).map_err(|_| TypeError::BadArgument)
    }

    fn sized(&mut self) -> Result<&'t [u8], TypeError> {
        let size = usize::try_from(self.varint()?).map_err(|_| TypeError::BadArgument)?;
        self.take(size)
    }

    /// Counts bytes of the result.
    fn spend(&mut self, bytes: usize) -> Result<(), TypeError> {
        self.left = self.left.checked_sub(bytes).ok_or(TypeError::BadArgument)?;
        Ok(())
    }

    fn skip(&mut self, wire: u64) -> Result<(), TypeError> {
        match wire {
            VARINT => self.varint().map(drop),
            FIXED_64 => self.take(8).map(drop),
            LENGTH => self.sized().map(drop),
            FIXED_32 => self.take(4).map(drop),
            // Groups, which no one writes any more.
            _ => Err(TypeError::BadArgument),
        }
    }

    /// Reads `bytes` with `read`, and comes back to what is after them.
    fn inside<T>(
        &mut self,
        bytes: &'t [u8],
        read: impl FnOnce(&mut Self) -> Result<T, TypeError>,
    ) -> Result<T, TypeError> {
        let after = std::mem::replace(&mut self.rest, bytes);
        let given = read(self);
        self.rest = after;
        given
    }

    /// Reads all that is there as one message.
    fn message(&mut self, message: &Message, depth: usize) -> Result<Map, TypeError> {
        if depth > DEPTH_MAX {
            return Err(TypeError::BadArgument);
        }
        let mut members = Map::new();
        let mut lists: Vec<(&'static str, Vec<Value<'static>>)> = Vec::new();
        while !self.rest.is_empty() {
            let tag = self.varint()?;
            let (number, wire) = (tag >> 3, tag & 7);
            let Some(field) = message.0.iter().find(|field| field.number == number) else {
                self.skip(wire)?;
                continue;
            };
            let packed = field.repeated && wire == LENGTH && field.kind.wire() != LENGTH;
            if !packed && wire != field.kind.wire() {
                return Err(TypeError::BadArgument);
            }
            if !field.repeated {
                self.spend(field.name.len().saturating_add(4))?;
                let value = self.value(field.kind, depth)?;
                members.insert(field.name.to_owned(), value);
                continue;
            }
            let list = match lists.iter().position(|(name, _)| *name == field.name) {
                Some(at) => at,
                None => {
                    self.spend(field.name.len().saturating_add(6))?;
                    // Keeps its place among the members.
                    members.insert(field.name.to_owned(), Value::Null);
                    lists.push((field.name, Vec::new()));
                    lists.len().saturating_sub(1)
                }
            };
            let Some((_, list)) = lists.get_mut(list) else { return Err(TypeError::BadArgument) };
            if packed {
                let bytes = self.sized()?;
                self.inside(bytes, |reader| {
                    while !reader.rest.is_empty() {
                        list.push(reader.value(field.kind, depth)?);
                    }
                    Ok(())
                })?;
            } else {
                list.push(self.value(field.kind, depth)?);
            }
        }
        for (name, list) in lists {
            members.insert(name.to_owned(), Value::list(list));
        }
        if self.signed {
            sign(&mut members);
        }
        Ok(members)
    }

    fn value(&mut self, kind: Kind, depth: usize) -> Result<Value<'static>, TypeError> {
        // A number or an empty message, and a comma.
        self.spend(3)?;
        Ok(match kind {
            Kind::Bool => Value::Bool(self.varint()? != 0),
            // As protobuf has it: the low 32 bits.
            Kind::U32 => Value::Int(i64::try_from(self.varint()? & 0xffff_ffff).unwrap_or(0)),
            Kind::U64 => big::value(&BigInt::from(self.varint()?))?,
            Kind::Float => float(f64::from(f32::from_le_bytes(self.array()?))),
            Kind::Double => float(f64::from_le_bytes(self.array()?)),
            Kind::Text => {
                let bytes = self.sized()?;
                self.spend(bytes.len())?;
                owned(std::str::from_utf8(bytes).map_err(|_| TypeError::BadArgument)?)
            }
            Kind::Bytes => {
                let bytes = self.sized()?;
                self.spend(bytes.len())?;
                Value::binary(bytes.to_vec())
            }
            Kind::Message(message) => {
                let bytes = self.sized()?;
                Value::map(self.inside(bytes, |reader| reader.message(message, depth + 1))?)
            }
        })
    }
}

/// Whether so many bytes may be made.
fn within(bytes: usize, max: usize) -> Result<(), TypeError> {
    if bytes <= max { Ok(()) } else { Err(TypeError::BadArgument) }
}

fn put_sized(bytes: &[u8], out: &mut Vec<u8>, max: usize) -> Result<(), TypeError> {
    within(out.len().saturating_add(bytes.len()), max)?;
    put_varint(u64::try_from(bytes.len()).unwrap_or(0), out);
    out.extend_from_slice(bytes);
    Ok(())
}

/// Writes the members that the message knows, in the order of its fields.
fn write(
    message: &Message,
    members: &Map,
    depth: usize,
    signed: bool,
    out: &mut Vec<u8>,
    max: usize,
) -> Result<(), TypeError> {
    if depth > DEPTH_MAX {
        return Err(TypeError::BadArgument);
    }
    let kind = if signed { type_of(members) } else { None };
    let tag = |field: &Field, out: &mut Vec<u8>| put_varint(field.number << 3 | field.kind.wire(), out);
    for field in message.0 {
        let value = match members.get(field.name) {
            None | Some(Value::Missing) => continue,
            Some(value) => value.share().open(),
        };
        if field.repeated {
            for item in list_of(&value)? {
                tag(field, out);
                put(field.kind, &item.share().open(), depth, signed, out, max)?;
                within(out.len(), max)?;
            }
            continue;
        }
        tag(field, out);
        match (field.name, kind, &value) {
            ("int_value", Some(INT8 | INT16 | INT32), Value::Int(n)) if *n < 0 => {
                let n = i32::try_from(*n).map_err(|_| TypeError::BadArgument)?;
                put_varint(u64::from(n.cast_unsigned()), out);
            }
            ("long_value", Some(INT64), Value::Int(n)) => put_varint(n.cast_unsigned(), out),
            _ => put(field.kind, &value, depth, signed, out, max)?,
        }
        within(out.len(), max)?;
    }
    Ok(())
}

fn put(
    kind: Kind,
    value: &Value<'_>,
    depth: usize,
    signed: bool,
    out: &mut Vec<u8>,
    max: usize,
) -> Result<(), TypeError> {
    match kind {
        Kind::Bool => match value {
            Value::Bool(b) => out.push(u8::from(*b)),
            Value::Int(i @ (0 | 1)) => out.push(u8::from(*i == 1)),
            _ => return Err(TypeError::TypeMismatch),
        },
        Kind::U32 => {
            let number = u32::try_from(unsigned(value)?).map_err(|_| TypeError::IntegerOverflow)?;
            put_varint(u64::from(number), out);
        }
        Kind::U64 => put_varint(unsigned(value)?, out),
        Kind::Float => {
            let wide = number(value)?;
            let narrow = wide as f32;
            if wide.is_finite() && !narrow.is_finite() {
                return Err(TypeError::NotFinite);
            }
            out.extend_from_slice(&narrow.to_le_bytes());
        }
        Kind::Double => out.extend_from_slice(&number(value)?.to_le_bytes()),
        Kind::Text => match value {
            Value::Text(text) => put_sized(text.as_bytes(), out, max)?,
            _ => return Err(TypeError::TypeMismatch),
        },
        Kind::Bytes => put_sized(bytes_of(value)?, out, max)?,
        Kind::Message(message) => {
            let mut inner = Vec::new();
            write(message, map_of(value)?, depth + 1, signed, &mut inner, max)?;
            put_sized(&inner, out, max)?;
        }
    }
    Ok(())
}

fn number(value: &Value<'_>) -> Result<f64, TypeError> {
    match value {
        Value::Float(f) => Ok(*f),
        Value::Int(i) => Ok(*i as f64),
        Value::Text(text) => match &**text {
            "nan" => Ok(f64::NAN),
            "infinity" => Ok(f64::INFINITY),
            "-infinity" => Ok(f64::NEG_INFINITY),
            _ => Err(TypeError::TypeMismatch),
        },
        _ => Err(TypeError::TypeMismatch),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::tests::{call, check};

    #[test]
    fn read_and_written() {
        check(&[
            // 1: 5, 2: {1: "a", 4: 2, 10: 424, 12: 1.5}, 3: 88
            (
                "sparkplug_decode",
                r#"[{"$bytes":"0805120d0a0161200250a803650000c03f1858"}]"#,
                r#"{"timestamp":5,"metrics":[{"name":"a","datatype":2,"int_value":424,"float_value":1.5}],"seq":88}"#,
            ),
            (
                "sparkplug_encode",
                r#"[{"timestamp":5,"metrics":[{"name":"a","datatype":2,"int_value":424,"float_value":1.5}],"seq":88}]"#,
                r#"{"$bytes":"0805120d0a0161200250a803650000c03f1858"}"#,
            ),
            ("sparkplug_decode", r#"[""]"#, "{}"),
            ("sparkplug_encode", r#"[{"other":1}]"#, r#""""#),
            // Unknown fields of each kind, then seq.
            (
                "sparkplug_decode",
                r#"[{"$bytes":"f80101f9010000000000000000fa0101fffd01000000001807"}]"#,
                r#"{"seq":7}"#,
            ),
            (
                "sparkplug_decode",
                r#"[{"$bytes":"18ffffffffffffffffff01"}]"#,
                r#"{"seq":18446744073709551615}"#,
            ),
            (
                "sparkplug_encode",
                r#"[{"seq":18446744073709551615}]"#,
                r#"{"$bytes":"18ffffffffffffffffff01"}"#,
            ),
            ("sparkplug_encode", r#"[{"seq":-1}]"#, "error"),
            ("sparkplug_encode", r#"[{"seq":1.5}]"#, "error"),
            ("sparkplug_encode", r#"[{"seq":null}]"#, "error"),
            ("sparkplug_encode", r#"[{"metrics":5}]"#, "error"),
            ("sparkplug_encode", r#"[{"metrics":[5]}]"#, "error"),
            ("sparkplug_encode", r#"[{"metrics":[{"name":5}]}]"#, "error"),
            ("sparkplug_encode", r#"[{"metrics":[{"int_value":4294967296}]}]"#, "error"),
            ("sparkplug_encode", r#"[{"metrics":[{"float_value":1e300}]}]"#, "error"),
            // Cut off; a length beyond the end; wrong form; a number without end; a group; text that is none.
            ("sparkplug_decode", r#"[{"$bytes":"08"}]"#, "error"),
            ("sparkplug_decode", r#"[{"$bytes":"1205"}]"#, "error"),
            ("sparkplug_decode", r#"[{"$bytes":"12ffffffffffffffffff01"}]"#, "error"),
            ("sparkplug_decode", r#"[{"$bytes":"0a0161"}]"#, "error"),
            ("sparkplug_decode", r#"[{"$bytes":"08ffffffffffffffffffff01"}]"#, "error"),
            ("sparkplug_decode", r#"[{"$bytes":"fb01fc01"}]"#, "error"),
            ("sparkplug_decode", r#"[{"$bytes":"2201ff"}]"#, "error"),
            ("sparkplug_decode", r#"[{"$bytes":"2a01ff"}]"#, r#"{"body":{"$bytes":"ff"}}"#),
            ("sparkplug_decode", "[1]", "error"),
            ("sparkplug_decode", "[null]", "error"),
            ("sparkplug_decode", r#"[{"$undefined":true}]"#, "error"),
            ("sparkplug_encode", r#"["{}"]"#, "error"),
            ("sparkplug_encode", "[null]", "error"),
            ("sparkplug_decode", r#"[{"$bytes":"0a0161"},"Payload.Metric"]"#, r#"{"name":"a"}"#),
            ("sparkplug_encode", r#"[{"name":"a"},"Payload.Metric"]"#, r#""\n\u0001a""#),
            ("sparkplug_decode", r#"["","Other"]"#, "error"),
            ("sparkplug_decode", r#"["",5]"#, "error"),
        ]);
    }

    #[test]
    fn signs() {
        // int_value 0xffffffff of each type.
        let cases = [(1, "4294967295", "-1"), (3, "4294967295", "-1"), (7, "4294967295", "4294967295")];
        for (kind, plain, with_sign) in cases {
            let args = format!("[{{\"$bytes\":\"200{kind}50ffffffff0f\"}},\"Payload.Metric\"]");
            let object = |n: &str| format!("{{\"datatype\":{kind},\"int_value\":{n}}}");
            assert_eq!(call("sparkplug_decode", &args), object(plain));
            assert_eq!(call("spb_decode", &args), object(with_sign));
            let args = format!("[{},\"Payload.Metric\"]", object(with_sign));
            let expected = format!("{{\"$bytes\":\"200{kind}50ffffffff0f\"}}");
            assert_eq!(call("spb_encode", &args), expected);
        }
        check(&[
            (
                "spb_decode",
                r#"[{"$bytes":"200458ffffffffffffffffff01"},"Payload.Metric"]"#,
                r#"{"datatype":4,"long_value":-1}"#,
            ),
            (
                "spb_encode",
                r#"[{"datatype":4,"long_value":-1},"Payload.Metric"]"#,
                r#"{"$bytes":"200458ffffffffffffffffff01"}"#,
            ),
            ("sparkplug_encode", r#"[{"datatype":4,"long_value":-1},"Payload.Metric"]"#, "error"),
            ("spb_encode", r#"[{"datatype":8,"long_value":-1},"Payload.Metric"]"#, "error"),
            ("spb_encode", r#"[{"datatype":3,"int_value":-2147483649},"Payload.Metric"]"#, "error"),
        ]);
    }

    #[test]
    fn there_and_back() {
        let whole = r#"{"timestamp":1,"metrics":[{"name":"a","alias":2,"is_null":true,"metadata":{"md5":"x"},
            "properties":{"keys":["k"],"values":[{"type":3,"int_value":7}]},"double_value":1.25},
            {"dataset_value":{"num_of_columns":1,"columns":["c"],"types":[3,4],"rows":[{"elements":[
            {"boolean_value":false},{"string_value":"é"}]}]}},{"template_value":{"version":"1",
            "metrics":[{"float_value":"nan"}],"parameters":[{"name":"p","float_value":"-infinity"}],
            "is_definition":true}}],"uuid":"u"}"#;
        let packed = call("spb_encode", &format!("[{whole}]"));
        let given = call("spb_decode", &format!("[{packed}]"));
        let tree = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(tree(&given), tree(whole));
    }

    /// `types` in one piece, as newer writers have it.
    #[test]
    fn packed_numbers() {
        check(&[(
            "sparkplug_decode",
            r#"[{"$bytes":"1a0203041805"},"Payload.DataSet"]"#,
            r#"{"types":[3,4,5]}"#,
        )]);
    }

    #[test]
    fn bounds() {
        // Templates in metrics in templates.
        let mut deep = Vec::new();
        for level in 0..120 {
            let mut outer = if level % 2 == 0 { vec![0x12] } else { vec![0x92, 0x01] };
            crate::formats::put_varint(deep.len() as u64, &mut outer);
            outer.extend_from_slice(&deep);
            deep = outer;
        }
        let bytes = |bytes: &[u8]| {
            let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
            format!("{{\"$bytes\":\"{hex}\"}}")
        };
        let deep = format!("[{},\"Payload.Metric\"]", bytes(&deep));
        assert_eq!(call("sparkplug_decode", &deep), "error");
        // Empty metrics are two bytes each, and more as JSON.
        let many = [0x12, 0].repeat(400_000);
        assert_eq!(call("sparkplug_decode", &format!("[{}]", bytes(&many))), "error");
    }
}
