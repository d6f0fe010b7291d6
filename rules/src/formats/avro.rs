//! Avro 1.12: the binary encoding of one datum, by a schema in JSON.
//!
//! A union is the value of its branch, without a name around it; written is the first branch that fits best. Logical
//! types are what they are made of: a timestamp is its integer, a decimal its bytes. A field of a record that the row
//! lacks takes the schema's default; without one the row does not fit. Container files and the frames of registries
//! are not read.

use std::collections::HashMap;

use serde_json::{Map as Members, Value as Tree};

use super::varint::{put_varint, unzigzag, varint, zigzag};
use super::{Budget, DEPTH_MAX, FormatError, Input, Output, float, opened};
use crate::value::{Map, Value};

/// How deep types may be written in each other. serde_json reads about as deep.
const NESTED_MAX: usize = 64;

/// The most trials of one value in branches of unions.
const TRIALS_MAX: usize = 1 << 16;

/// A type's place in its schema.
type TypeId = usize;

/// A schema.
#[derive(Debug)]
pub(crate) struct Schema {
    types: Vec<Type>,
    root: TypeId,
}

#[derive(Debug, Clone)]
enum Type {
    /// Named, and not read yet.
    Open,
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    Text,
    Fixed(usize),
    Enum(Vec<String>),
    Array(TypeId),
    Map(TypeId),
    Record(Vec<Field>),
    Union(Vec<TypeId>),
}

#[derive(Debug, Clone)]
struct Field {
    name: String,
    kind: TypeId,
    default: Option<Value<'static>>,
}

// === the schema ===

#[derive(Default)]
struct Reader {
    types: Vec<Type>,
    names: HashMap<String, TypeId>,
}

impl Schema {
    /// Reads a schema's JSON.
    ///
    /// # Errors
    /// A sentence on what is wrong with it.
    pub(super) fn new(text: &[u8]) -> Result<Schema, String> {
        let tree: Tree = serde_json::from_slice(text).map_err(|e| format!("it is no JSON: {e}"))?;
        let mut reader = Reader::default();
        let root = reader.read(&tree, "", 0)?;
        Ok(Schema { types: reader.types, root })
    }

    /// The names of the fields, if it is of a record.
    pub(super) fn members(&self) -> Option<Vec<&str>> {
        match self.types.get(self.root) {
            Some(Type::Record(fields)) => Some(fields.iter().map(|field| field.name.as_str()).collect()),
            _ => None,
        }
    }
}

impl Reader {
    fn add(&mut self, kind: Type) -> TypeId {
        self.types.push(kind);
        self.types.len() - 1
    }

    /// Recursion is bounded by [`NESTED_MAX`].
    fn read(&mut self, tree: &Tree, space: &str, depth: usize) -> Result<TypeId, String> {
        if depth > NESTED_MAX {
            return Err(format!("its types are nested deeper than {NESTED_MAX}"));
        }
        match tree {
            Tree::String(name) => self.named(name, space),
            Tree::Array(branches) => {
                let mut union = Vec::new();
                for branch in branches {
                    if branch.is_array() {
                        return Err("a union stands in a union".to_owned());
                    }
                    union.push(self.read(branch, space, depth + 1)?);
                }
                if union.is_empty() {
                    return Err("a union has no branch".to_owned());
                }
                Ok(self.add(Type::Union(union)))
            }
            Tree::Object(members) => self.declared(members, space, depth),
            _ => Err(format!("`{tree}` is no type")),
        }
    }

    fn named(&mut self, name: &str, space: &str) -> Result<TypeId, String> {
        if let Some(kind) = primitive(name) {
            return Ok(self.add(kind));
        }
        let found = self.names.get(&full_name(name, space)).or_else(|| self.names.get(name));
        found.copied().ok_or_else(|| format!("the type `{name}` is not declared before it is used"))
    }

    fn declared(
        &mut self,
        members: &Members<String, Tree>,
        space: &str,
        depth: usize,
    ) -> Result<TypeId, String> {
        let kind = match members.get("type") {
            Some(Tree::String(kind)) => kind.as_str(),
            Some(other) => return self.read(other, space, depth + 1),
            None => return Err("a type has no `type`".to_owned()),
        };
        match kind {
            "array" | "map" => {
                let of = if kind == "array" { "items" } else { "values" };
                let inner = members.get(of).ok_or_else(|| format!("the type `{kind}` has no `{of}`"))?;
                let inner = self.read(inner, space, depth + 1)?;
                Ok(self.add(if kind == "array" { Type::Array(inner) } else { Type::Map(inner) }))
            }
            "record" | "error" | "enum" | "fixed" => {
                let name = text(members, "name").ok_or_else(|| format!("a type `{kind}` has no `name`"))?;
                let name = full_name(name, text(members, "namespace").unwrap_or(space));
                let space = name.rsplit_once('.').map_or("", |(space, _)| space).to_owned();
                let id = self.add(Type::Open);
                if self.names.insert(name.clone(), id).is_some() {
                    return Err(format!("the type `{name}` is declared twice"));
                }
                let kind = match kind {
                    "enum" => Type::Enum(symbols(members, &name)?),
                    "fixed" => {
                        let size = members.get("size").and_then(Tree::as_u64);
                        let size = size.and_then(|size| usize::try_from(size).ok());
                        Type::Fixed(size.ok_or_else(|| format!("the type `{name}` has no `size`"))?)
                    }
                    _ => Type::Record(self.fields(members, &name, &space, depth)?),
                };
                if let Some(place) = self.types.get_mut(id) {
                    *place = kind;
                }
                Ok(id)
            }
            name => self.named(name, space),
        }
    }

    fn fields(
        &mut self,
        members: &Members<String, Tree>,
        name: &str,
        space: &str,
        depth: usize,
    ) -> Result<Vec<Field>, String> {
        let given = members.get("fields").and_then(Tree::as_array);
        let mut fields: Vec<Field> = Vec::new();
        for field in given.ok_or_else(|| format!("the type `{name}` has no `fields`"))? {
            let members = field.as_object().ok_or_else(|| format!("a field of `{name}` is no object"))?;
            let field = text(members, "name").ok_or_else(|| format!("a field of `{name}` has no `name`"))?;
            let kind =
                members.get("type").ok_or_else(|| format!("the field `{name}.{field}` has no `type`"))?;
            if fields.iter().any(|known| known.name == field) {
                return Err(format!("the field `{name}.{field}` is there twice"));
            }
            let kind = self.read(kind, space, depth + 1)?;
            let default = members.get("default").map(|tree| Value::from_tree(tree).into_owned());
            fields.push(Field { name: field.to_owned(), kind, default });
        }
        Ok(fields)
    }
}

fn primitive(name: &str) -> Option<Type> {
    Some(match name {
        "null" => Type::Null,
        "boolean" => Type::Boolean,
        "int" => Type::Int,
        "long" => Type::Long,
        "float" => Type::Float,
        "double" => Type::Double,
        "bytes" => Type::Bytes,
        "string" => Type::Text,
        _ => return None,
    })
}

fn text<'m>(members: &'m Members<String, Tree>, name: &str) -> Option<&'m str> {
    members.get(name).and_then(Tree::as_str)
}

fn full_name(name: &str, space: &str) -> String {
    if name.contains('.') || space.is_empty() { name.to_owned() } else { format!("{space}.{name}") }
}

fn symbols(members: &Members<String, Tree>, name: &str) -> Result<Vec<String>, String> {
    let symbols = members.get("symbols").and_then(Tree::as_array);
    let symbols = symbols.ok_or_else(|| format!("the type `{name}` has no `symbols`"))?;
    let symbol = |tree: &Tree| tree.as_str().map(str::to_owned);
    let symbols: Option<Vec<String>> = symbols.iter().map(symbol).collect();
    symbols.ok_or_else(|| format!("a symbol of `{name}` is no text"))
}

// === decoding ===

pub(super) fn decode(schema: &Schema, bytes: &[u8], budget: Budget) -> Result<Value<'static>, FormatError> {
    Input { rest: bytes, budget }.whole(|input| schema.read(schema.root, input, 0))
}

impl Input<'_> {
    fn long(&mut self) -> Result<i64, FormatError> {
        varint(&mut self.rest).map(unzigzag)
    }

    fn size(&mut self) -> Result<usize, FormatError> {
        usize::try_from(self.long()?).map_err(|_| FormatError::Malformed)
    }

    /// How many items the next block of an array or map has; 0 at the end.
    fn block(&mut self) -> Result<u64, FormatError> {
        let count = self.long()?;
        if count < 0 {
            // How many bytes they are, for those who skip.
            self.size()?;
        }
        Ok(count.unsigned_abs())
    }
}

impl Schema {
    /// Recursion is bounded by [`DEPTH_MAX`]; items that take no bytes are counted off the budget like others.
    fn read(&self, of: TypeId, input: &mut Input<'_>, depth: usize) -> Result<Value<'static>, FormatError> {
        if depth > DEPTH_MAX {
            return Err(FormatError::TooDeep);
        }
        input.budget.node()?;
        Ok(match self.types.get(of).ok_or(FormatError::Malformed)? {
            Type::Open => return Err(FormatError::Malformed),
            Type::Null => Value::Null,
            Type::Boolean => match input.byte()? {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                _ => return Err(FormatError::Malformed),
            },
            Type::Int => {
                Value::Int(i64::from(i32::try_from(input.long()?).map_err(|_| FormatError::Malformed)?))
            }
            Type::Long => Value::Int(input.long()?),
            Type::Float => float(f64::from(f32::from_le_bytes(input.array()?))),
            Type::Double => float(f64::from_le_bytes(input.array()?)),
            Type::Bytes => {
                let length = input.size()?;
                Value::Bytes(input.bytes(length)?.to_vec().into())
            }
            Type::Text => {
                let length = input.size()?;
                Value::Text(input.text(length)?.to_owned().into())
            }
            Type::Fixed(size) => Value::Bytes(input.bytes(*size)?.to_vec().into()),
            Type::Enum(symbols) => {
                let symbol = symbols.get(input.size()?).ok_or(FormatError::Malformed)?;
                input.budget.spend(symbol.len())?;
                Value::Text(symbol.clone().into())
            }
            Type::Array(inner) => {
                let mut items = Vec::new();
                loop {
                    let count = input.block()?;
                    if count == 0 {
                        break Value::list(items);
                    }
                    for _ in 0..count {
                        items.push(self.read(*inner, input, depth + 1)?);
                    }
                }
            }
            Type::Map(inner) => {
                let mut members = Map::new();
                loop {
                    let count = input.block()?;
                    if count == 0 {
                        break Value::map(members);
                    }
                    for _ in 0..count {
                        let length = input.size()?;
                        let key = input.text(length)?.to_owned();
                        let value = self.read(*inner, input, depth + 1)?;
                        members.entry(key).or_insert(value);
                    }
                }
            }
            Type::Record(fields) => {
                let mut members = Map::new();
                for field in fields {
                    input.budget.spend(field.name.len())?;
                    members.insert(field.name.clone(), self.read(field.kind, input, depth + 1)?);
                }
                Value::map(members)
            }
            Type::Union(branches) => {
                let branch = *branches.get(input.size()?).ok_or(FormatError::Malformed)?;
                self.read(branch, input, depth + 1)?
            }
        })
    }
}

// === encoding ===

pub(super) fn encode(schema: &Schema, value: &Value<'_>, out: &mut Output) -> Result<(), FormatError> {
    Writer { schema, out, trials: TRIALS_MAX }.write(schema.root, value, 0)
}

struct Writer<'w> {
    schema: &'w Schema,
    out: &'w mut Output,
    trials: usize,
}

impl Writer<'_> {
    /// Recursion is bounded by [`DEPTH_MAX`].
    fn write(&mut self, of: TypeId, value: &Value<'_>, depth: usize) -> Result<(), FormatError> {
        if depth > DEPTH_MAX {
            return Err(FormatError::TooDeep);
        }
        let schema = self.schema;
        let kind = schema.types.get(of).ok_or(FormatError::Unfit)?;
        match (kind, &opened(value)) {
            (Type::Null, Value::Null | Value::Missing) => Ok(()),
            (Type::Boolean, Value::Bool(b)) => self.out.put(&[u8::from(*b)]),
            (Type::Int, value) => {
                self.long(i64::from(i32::try_from(whole(value)?).map_err(|_| FormatError::Unfit)?))
            }
            (Type::Long, value) => self.long(whole(value)?),
            (Type::Float, value) => {
                let narrow = number(value)? as f32;
                if narrow.is_finite() { self.out.put(&narrow.to_le_bytes()) } else { Err(FormatError::Unfit) }
            }
            (Type::Double, value) => self.out.put(&number(value)?.to_le_bytes()),
            (Type::Text, Value::Text(text)) => self.sized(text.as_bytes()),
            (Type::Bytes, Value::Text(_) | Value::Bytes(_)) => {
                self.sized(opened(value).as_bytes().ok_or(FormatError::Unfit)?)
            }
            (Type::Fixed(size), Value::Text(_) | Value::Bytes(_)) => {
                let value = opened(value);
                let bytes = value.as_bytes().filter(|bytes| bytes.len() == *size);
                self.out.put(bytes.ok_or(FormatError::Unfit)?)
            }
            (Type::Enum(symbols), Value::Text(text)) => {
                let at = symbols.iter().position(|symbol| **symbol == **text);
                self.count(at.ok_or(FormatError::Unfit)?)
            }
            (Type::Array(inner), Value::List(items)) => {
                if !items.is_empty() {
                    self.count(items.len())?;
                }
                items.iter().try_for_each(|item| self.write(*inner, item, depth + 1))?;
                self.count(0)
            }
            (Type::Map(inner), Value::Map(members)) => {
                if !members.is_empty() {
                    self.count(members.len())?;
                }
                for (key, value) in members.iter() {
                    self.sized(key.as_bytes())?;
                    self.write(*inner, value, depth + 1)?;
                }
                self.count(0)
            }
            (Type::Record(fields), Value::Map(members)) => {
                for field in fields {
                    let given = members.get(&field.name).filter(|value| !matches!(value, Value::Missing));
                    let value = given.or(field.default.as_ref()).unwrap_or(&Value::Null);
                    self.write(field.kind, value, depth + 1)?;
                }
                Ok(())
            }
            (Type::Union(branches), value) => self.branch(branches, value, depth),
            _ => Err(FormatError::Unfit),
        }
    }

    /// The branch of the value's own type, else the first that takes it.
    fn branch(&mut self, branches: &[TypeId], value: &Value<'_>, depth: usize) -> Result<(), FormatError> {
        let schema = self.schema;
        let is_own = |of: &TypeId| schema.types.get(*of).is_some_and(|kind| own(kind, value));
        for wanted in [true, false] {
            for (at, branch) in branches.iter().enumerate().filter(|(_, branch)| is_own(branch) == wanted) {
                self.trials = self.trials.checked_sub(1).ok_or(FormatError::TooLarge)?;
                let before = self.out.bytes.len();
                self.count(at)?;
                match self.write(*branch, value, depth + 1) {
                    Err(FormatError::Unfit) => self.out.bytes.truncate(before),
                    ended => return ended,
                }
            }
        }
        Err(FormatError::Unfit)
    }

    fn long(&mut self, n: i64) -> Result<(), FormatError> {
        put_varint(zigzag(n), &mut self.out.bytes);
        self.out.put(&[])
    }

    fn count(&mut self, count: usize) -> Result<(), FormatError> {
        self.long(i64::try_from(count).map_err(|_| FormatError::TooLarge)?)
    }

    fn sized(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        self.count(bytes.len())?;
        self.out.put(bytes)
    }
}

/// Whether a value is of a type as it is, not only convertible to it.
fn own(kind: &Type, value: &Value<'_>) -> bool {
    matches!(
        (kind, value),
        (Type::Null, Value::Null | Value::Missing)
            | (Type::Boolean, Value::Bool(_))
            | (Type::Int | Type::Long, Value::Int(_))
            | (Type::Float | Type::Double, Value::Float(_))
            | (Type::Text | Type::Enum(_), Value::Text(_))
            | (Type::Bytes | Type::Fixed(_), Value::Bytes(_))
            | (Type::Array(_), Value::List(_))
            | (Type::Map(_) | Type::Record(_), Value::Map(_))
    )
}

/// An integer, also one that is written as a float.
fn whole(value: &Value<'_>) -> Result<i64, FormatError> {
    match value {
        Value::Int(n) => Ok(*n),
        Value::Float(f) if f.fract() == 0.0 && f.abs() < 9_223_372_036_854_775_808.0 => Ok(*f as i64),
        _ => Err(FormatError::Unfit),
    }
}

fn number(value: &Value<'_>) -> Result<f64, FormatError> {
    match value {
        Value::Float(f) => Ok(*f),
        Value::Int(n) => Ok(*n as f64),
        _ => Err(FormatError::Unfit),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::sync::Arc;

    use proptest::prelude::*;

    use super::super::tests::{read, written};
    use super::super::{Codec, unhex};
    use super::*;

    fn codec(schema: &str) -> Codec {
        Codec::Avro(Arc::new(Schema::new(schema.as_bytes()).unwrap()))
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
            let value =
                Value::found(json.as_bytes(), crate::json::document(json.as_bytes()).unwrap()).unwrap();
            assert_eq!(codec(schema).encode(&value, 1000).unwrap(), bytes, "{schema} {json}");
        }
        // Blocks, one of them with its size.
        let longs = codec(r#"{"type":"array","items":"long"}"#);
        assert_eq!(read(&longs, &[0x02, 0x06, 0x03, 0x04, 0x08, 0x36, 0x02, 0x0a, 0x00]), "[3,4,27,5]");
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
            let error = Schema::new(schema.as_bytes()).unwrap_err();
            assert!(error.starts_with(expected), "{schema}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes(noise in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = read(&codec(ALL), &noise);
            let _ = Schema::new(&noise);
        }
    }
}
