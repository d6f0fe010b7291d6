//! Avro 1.12: the binary encoding of one datum, by a schema in JSON.
//!
//! A union is the value of its branch, without a name around it; written is the first branch that fits best. Logical
//! types are what they are made of: a timestamp is its integer, a decimal its bytes. A field of a record that the row
//! lacks takes the schema's default; without one the row does not fit. Container files are not read.
//!
//! With a registry's id a datum stands in Confluent's frame: a zero, the id in four bytes, the datum. What has another
//! id was written by another schema and is refused: reading it by this one could succeed and mean something else.

use std::collections::HashMap;

use serde_json::{Map as Members, Value as Tree};

use super::varint::{put_varint, unzigzag, varint, zigzag};
use super::{Budget, DEPTH_MAX, FormatError, Input, Output, float, opened};
use crate::value::{Map, Value};

/// How deep types may be written in each other. serde_json reads about as deep.
const NESTED_MAX: usize = 64;

/// The most trials of one value in branches of unions.
const TRIALS_MAX: usize = 1 << 16;

/// The first byte of a frame.
const FRAME: u8 = 0;

/// A type's place in its schema.
type TypeId = usize;

/// A schema.
#[derive(Debug)]
pub(crate) struct Schema {
    types: Vec<Type>,
    root: TypeId,
    /// What a registry calls it: data are framed.
    registry_id: Option<u32>,
    /// The registry whose id that is, where several have to be told apart.
    registry: Option<String>,
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
    pub(super) fn new(text: &[u8], registry_id: Option<u32>) -> Result<Schema, String> {
        let tree: Tree = serde_json::from_slice(text).map_err(|e| format!("it is no JSON: {e}"))?;
        let mut reader = Reader::default();
        let root = reader.read(&tree, "", 0)?;
        Ok(Schema { types: reader.types, root, registry_id, registry: None })
    }

    /// The same schema as one of this registry's.
    pub(super) fn of_registry(self, name: Option<&str>) -> Schema {
        Schema { registry: name.map(str::to_owned), ..self }
    }

    /// What a registry calls it, and which one: none where that does not matter.
    pub(crate) fn registered(&self) -> Option<(u32, Option<&str>)> {
        Some((self.registry_id?, self.registry.as_deref()))
    }

    /// The value of a datum that stands alone, without a frame.
    pub(crate) fn decode_alone(&self, bytes: &[u8], budget: Budget) -> Result<Value<'static>, FormatError> {
        Input { rest: bytes, budget }.whole(|input| self.read(self.root, input, 0))
    }

    /// The datum of a value alone, at most `max` bytes, without a frame.
    pub(crate) fn encode_alone(&self, value: &Value<'_>, max: usize) -> Result<Vec<u8>, FormatError> {
        let mut out = Output { bytes: Vec::new(), max };
        Writer { schema: self, out: &mut out, trials: TRIALS_MAX }.write(self.root, value, 0)?;
        Ok(out.bytes)
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

/// The id in a frame, and the datum behind it.
pub(crate) fn framed(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (frame, rest) = bytes.split_first()?;
    let (id, datum) = rest.split_first_chunk()?;
    (*frame == FRAME).then(|| (u32::from_be_bytes(*id), datum))
}

pub(super) fn decode(schema: &Schema, bytes: &[u8], budget: Budget) -> Result<Value<'static>, FormatError> {
    Input { rest: bytes, budget }.whole(|input| {
        if let Some(id) = schema.registry_id
            && (input.byte()? != FRAME || input.array()? != id.to_be_bytes())
        {
            return Err(FormatError::Malformed);
        }
        schema.read(schema.root, input, 0)
    })
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
    if let Some(id) = schema.registry_id {
        out.put(&[FRAME])?;
        out.put(&id.to_be_bytes())?;
    }
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
    if let (Type::Float, Value::Float(f)) = (kind, value) {
        return f64::from(*f as f32) == *f;
    }
    matches!(
        (kind, value),
        (Type::Null, Value::Null | Value::Missing)
            | (Type::Boolean, Value::Bool(_))
            | (Type::Int | Type::Long, Value::Int(_))
            | (Type::Double, Value::Float(_))
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
mod tests;
