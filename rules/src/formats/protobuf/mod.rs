//! Protocol Buffers by a descriptor set ([`descriptor`]).
//!
//! Members are called as in the `.proto` file. A scalar of proto3 that is not `optional` has no absence: where it is
//! not on the wire it is its zero, and lists and maps are empty; other fields that are not there are not in the
//! object. An enumeration is the name of its value, or the number where it has none. A field that the schema does not
//! know is skipped, in both directions; one that is written another way than the schema says makes the payload
//! malformed. Of a field that is there twice the last counts. Maps have text for keys.

mod descriptor;
mod wire;

use self::wire::{Raw, array, field, put, put_bare};
use super::varint::{unzigzag, varint, zigzag};
use super::{Budget, DEPTH_MAX, FormatError, Output, float, key_text, opened, unsigned};
use crate::value::{Map, Value};

/// What a descriptor set describes.
#[derive(Debug)]
pub(crate) struct Schema {
    messages: Vec<Message>,
    enums: Vec<Enumeration>,
}

/// Index of a message in its schema.
pub(crate) type MessageId = usize;

#[derive(Debug)]
struct Message {
    /// With its package, without a dot before it.
    name: String,
    /// By number.
    fields: Vec<Field>,
    /// An entry of a map: key and value.
    is_entry: bool,
}

#[derive(Debug)]
struct Field {
    number: u32,
    name: String,
    kind: Kind,
    shape: Shape,
    /// Whether a list of numbers is written in one piece.
    packed: bool,
    /// Whether its zero is not written, and what is not there is its zero.
    implicit: bool,
    required: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    One,
    Many,
    Map,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Bool,
    Int32,
    Int64,
    Uint32,
    Uint64,
    Sint32,
    Sint64,
    Fixed32,
    Fixed64,
    Sfixed32,
    Sfixed64,
    Float,
    Double,
    Text,
    Bytes,
    Enum(usize),
    Message(MessageId),
}

#[derive(Debug)]
struct Enumeration {
    name: String,
    values: Vec<(i32, String)>,
}

impl Schema {
    /// Reads a descriptor set.
    ///
    /// # Errors
    /// A sentence on what is wrong with it.
    pub(super) fn new(bytes: &[u8]) -> Result<Schema, String> {
        descriptor::read(bytes)
    }

    /// The message of a name; its package may be left out where that is clear.
    pub(super) fn message(&self, name: &str) -> Option<MessageId> {
        if let Some(at) = self.messages.iter().position(|message| message.name == name) {
            return Some(at);
        }
        let is = |message: &Message| message.name.rsplit('.').next() == Some(name);
        let mut found = self.messages.iter().enumerate().filter(|(_, message)| is(message));
        match (found.next(), found.next()) {
            (Some((at, _)), None) => Some(at),
            _ => None,
        }
    }

    /// The one message, if there is only one.
    pub(super) fn only(&self) -> Option<MessageId> {
        let mut all = self.messages.iter().enumerate().filter(|(_, message)| !message.is_entry);
        match (all.next(), all.next()) {
            (Some((at, _)), None) => Some(at),
            _ => None,
        }
    }

    /// The names of all messages.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.messages.iter().filter(|message| !message.is_entry).map(|message| message.name.as_str())
    }

    /// The names of a message's fields.
    pub(super) fn members(&self, of: MessageId) -> Vec<&str> {
        let fields = self.messages.get(of).map_or(&[][..], |message| &message.fields);
        fields.iter().map(|field| field.name.as_str()).collect()
    }
}

// === decoding ===

pub(super) fn decode(
    schema: &Schema,
    message: MessageId,
    bytes: &[u8],
    mut budget: Budget,
) -> Result<Value<'static>, FormatError> {
    schema.read(message, bytes, 0, &mut budget).map(Value::map)
}

/// What has come of a field.
enum Slot {
    One(Value<'static>),
    Many(Vec<Value<'static>>),
    Map(Map),
}

impl Schema {
    /// Recursion is bounded by [`DEPTH_MAX`].
    fn read(
        &self,
        of: MessageId,
        bytes: &[u8],
        depth: usize,
        budget: &mut Budget,
    ) -> Result<Map, FormatError> {
        if depth > DEPTH_MAX {
            return Err(FormatError::TooDeep);
        }
        let message = self.messages.get(of).ok_or(FormatError::Malformed)?;
        let fields = &message.fields;
        // A slot for each field costs something even where nothing is in it.
        budget.nodes = budget.nodes.checked_sub(1 + fields.len() / 8).ok_or(FormatError::TooLarge)?;
        let mut slots: Vec<Option<Slot>> = Vec::new();
        slots.resize_with(fields.len(), || None);
        let mut rest = bytes;
        while let Some((number, raw)) = field(&mut rest)? {
            let Ok(at) = fields.binary_search_by_key(&number, |field| field.number) else { continue };
            let (Some(field), Some(slot)) = (fields.get(at), slots.get_mut(at)) else { continue };
            match field.shape {
                Shape::One => *slot = Some(Slot::One(self.value(field.kind, raw, depth + 1, budget)?)),
                Shape::Many => {
                    let Slot::Many(items) = slot.get_or_insert_with(|| Slot::Many(Vec::new())) else {
                        continue;
                    };
                    match (raw, field.kind) {
                        (Raw::Sized(_), Kind::Text | Kind::Bytes | Kind::Message(_)) => {
                            items.push(self.value(field.kind, raw, depth + 2, budget)?);
                        }
                        (Raw::Sized(mut packed), kind) => {
                            while !packed.is_empty() {
                                let raw = bare(kind, &mut packed)?;
                                items.push(self.value(kind, raw, depth + 2, budget)?);
                            }
                        }
                        (raw, kind) => items.push(self.value(kind, raw, depth + 2, budget)?),
                    }
                }
                Shape::Map => {
                    let (Raw::Sized(entry), Kind::Message(of)) = (raw, field.kind) else {
                        return Err(FormatError::Malformed);
                    };
                    let mut entry = self.read(of, entry, depth + 1, budget)?;
                    let key = key_text(entry.swap_remove("key").unwrap_or_default())?;
                    let value = entry.swap_remove("value").unwrap_or_else(|| Value::map(Map::new()));
                    let slot = slot.get_or_insert_with(|| Slot::Map(Map::new()));
                    if let Slot::Map(members) = slot {
                        members.insert(key, value);
                    }
                }
            }
        }
        let mut members = Map::new();
        for (field, slot) in fields.iter().zip(slots) {
            let value = match slot {
                Some(Slot::One(value)) => value,
                Some(Slot::Many(items)) => Value::list(items),
                Some(Slot::Map(inner)) => Value::map(inner),
                None => match self.absent(field) {
                    Some(value) => {
                        budget.node()?;
                        value
                    }
                    None => continue,
                },
            };
            budget.spend(field.name.len())?;
            members.insert(field.name.clone(), value);
        }
        Ok(members)
    }

    /// What a field is that is not on the wire.
    fn absent(&self, field: &Field) -> Option<Value<'static>> {
        Some(match (field.shape, field.kind) {
            (Shape::Many, _) => Value::list(Vec::new()),
            (Shape::Map, _) => Value::map(Map::new()),
            _ if !field.implicit => return None,
            (_, Kind::Bool) => Value::Bool(false),
            (_, Kind::Float | Kind::Double) => Value::Float(0.0),
            (_, Kind::Text) => Value::Text("".into()),
            (_, Kind::Bytes) => Value::Bytes([].as_slice().into()),
            (_, Kind::Enum(of)) => self.enum_value(of, 0),
            _ => Value::Int(0),
        })
    }

    fn enum_value(&self, of: usize, number: i32) -> Value<'static> {
        let values = self.enums.get(of).map_or(&[][..], |e| &e.values);
        match values.iter().find(|(value, _)| *value == number) {
            Some((_, name)) => Value::Text(name.clone().into()),
            None => Value::Int(i64::from(number)),
        }
    }

    fn value(
        &self,
        kind: Kind,
        raw: Raw<'_>,
        depth: usize,
        budget: &mut Budget,
    ) -> Result<Value<'static>, FormatError> {
        budget.node()?;
        Ok(match (kind, raw) {
            (Kind::Bool, Raw::Varint(n)) => Value::Bool(n != 0),
            // As protobuf has it: the low 32 bits.
            (Kind::Int32, Raw::Varint(n)) => Value::Int(i64::from(n as i32)),
            (Kind::Uint32, Raw::Varint(n)) => Value::Int(i64::from(n as u32)),
            (Kind::Int64, Raw::Varint(n)) => Value::Int(n.cast_signed()),
            (Kind::Uint64, Raw::Varint(n)) => unsigned(n),
            (Kind::Sint32, Raw::Varint(n)) => Value::Int(i64::from(unzigzag(n & 0xffff_ffff) as i32)),
            (Kind::Sint64, Raw::Varint(n)) => Value::Int(unzigzag(n)),
            (Kind::Enum(of), Raw::Varint(n)) => {
                let value = self.enum_value(of, n as i32);
                if let Value::Text(name) = &value {
                    budget.spend(name.len())?;
                }
                value
            }
            (Kind::Fixed32, Raw::Fixed32(bytes)) => Value::Int(i64::from(u32::from_le_bytes(bytes))),
            (Kind::Sfixed32, Raw::Fixed32(bytes)) => Value::Int(i64::from(i32::from_le_bytes(bytes))),
            (Kind::Fixed64, Raw::Fixed64(bytes)) => unsigned(u64::from_le_bytes(bytes)),
            (Kind::Sfixed64, Raw::Fixed64(bytes)) => Value::Int(i64::from_le_bytes(bytes)),
            (Kind::Float, Raw::Fixed32(bytes)) => float(f64::from(f32::from_le_bytes(bytes))),
            (Kind::Double, Raw::Fixed64(bytes)) => float(f64::from_le_bytes(bytes)),
            (Kind::Text, Raw::Sized(bytes)) => {
                budget.spend(bytes.len())?;
                let text = std::str::from_utf8(bytes).map_err(|_| FormatError::Malformed)?;
                Value::Text(text.to_owned().into())
            }
            (Kind::Bytes, Raw::Sized(bytes)) => {
                budget.spend(bytes.len())?;
                Value::Bytes(bytes.to_vec().into())
            }
            (Kind::Message(of), Raw::Sized(bytes)) => Value::map(self.read(of, bytes, depth, budget)?),
            _ => return Err(FormatError::Malformed),
        })
    }
}

/// A number of a packed list.
fn bare<'t>(kind: Kind, rest: &mut &'t [u8]) -> Result<Raw<'t>, FormatError> {
    Ok(match kind {
        Kind::Fixed32 | Kind::Sfixed32 | Kind::Float => Raw::Fixed32(array(rest)?),
        Kind::Fixed64 | Kind::Sfixed64 | Kind::Double => Raw::Fixed64(array(rest)?),
        _ => Raw::Varint(varint(rest)?),
    })
}

// === encoding ===

pub(super) fn encode(
    schema: &Schema,
    message: MessageId,
    value: &Value<'_>,
    out: &mut Output,
) -> Result<(), FormatError> {
    let Value::Map(members) = opened(value) else { return Err(FormatError::Unfit) };
    let bytes = schema.write(message, &members, 0, out.max)?;
    out.put(&bytes)
}

impl Schema {
    /// Recursion is bounded by [`DEPTH_MAX`].
    fn write(&self, of: MessageId, members: &Map, depth: usize, max: usize) -> Result<Vec<u8>, FormatError> {
        if depth > DEPTH_MAX {
            return Err(FormatError::TooDeep);
        }
        let message = self.messages.get(of).ok_or(FormatError::Unfit)?;
        let mut out = Vec::new();
        for field in &message.fields {
            let value = match members.get(&field.name) {
                None | Some(Value::Null | Value::Missing) if field.required => {
                    return Err(FormatError::Unfit);
                }
                None | Some(Value::Null | Value::Missing) => continue,
                Some(value) => opened(value),
            };
            match (field.shape, &value) {
                (Shape::One, value) => {
                    self.put(field, value, field.implicit, depth, max, &mut out)?;
                }
                (Shape::Many, Value::List(items)) if field.packed && field.kind.is_number() => {
                    let mut packed = Vec::new();
                    for item in items.iter() {
                        put_bare(self.number(field.kind, &opened(item))?, &mut packed);
                    }
                    if !packed.is_empty() {
                        put(field.number, Raw::Sized(&packed), &mut out);
                    }
                }
                (Shape::Many, Value::List(items)) => {
                    for item in items.iter() {
                        self.put(field, &opened(item), false, depth, max, &mut out)?;
                    }
                }
                (Shape::Map, Value::Map(inner)) => self.put_entries(field, inner, depth, max, &mut out)?,
                _ => return Err(FormatError::Unfit),
            }
            if out.len() > max {
                return Err(FormatError::TooLarge);
            }
        }
        Ok(out)
    }

    fn put_entries(
        &self,
        field: &Field,
        members: &Map,
        depth: usize,
        max: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), FormatError> {
        let Kind::Message(of) = field.kind else { return Err(FormatError::Unfit) };
        let keys = self.messages.get(of).and_then(|entry| entry.fields.first()).map(|field| field.kind);
        for (key, value) in members {
            let key = match keys {
                Some(Kind::Text) => Value::Text(key.clone().into()),
                Some(Kind::Bool) => Value::Bool(key.parse().map_err(|_| FormatError::Unfit)?),
                _ => match key.parse() {
                    Ok(n) => Value::Int(n),
                    Err(_) => Value::Big(key.clone().into()),
                },
            };
            let entry = [("key".to_owned(), key), ("value".to_owned(), value.clone())];
            let bytes = self.write(of, &entry.into_iter().collect(), depth + 1, max)?;
            put(field.number, Raw::Sized(&bytes), out);
            if out.len() > max {
                return Err(FormatError::TooLarge);
            }
        }
        Ok(())
    }

    /// `sparse`: a zero is not written.
    fn put(
        &self,
        field: &Field,
        value: &Value<'_>,
        sparse: bool,
        depth: usize,
        max: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), FormatError> {
        let inner;
        let raw = match (field.kind, value) {
            (Kind::Text, Value::Text(text)) => Raw::Sized(text.as_bytes()),
            (Kind::Bytes, Value::Text(_) | Value::Bytes(_)) => Raw::Sized(value.as_bytes().unwrap_or(&[])),
            (Kind::Message(of), Value::Map(members)) => {
                inner = self.write(of, members, depth + 1, max)?;
                Raw::Sized(&inner)
            }
            (Kind::Text | Kind::Bytes | Kind::Message(_), _) => return Err(FormatError::Unfit),
            (kind, value) => self.number(kind, value)?,
        };
        let is_zero = matches!(raw, Raw::Varint(0) | Raw::Fixed32([0, 0, 0, 0]) | Raw::Sized([]))
            || raw == Raw::Fixed64([0; 8]);
        if !(sparse && is_zero) {
            put(field.number, raw, out);
        }
        if out.len() > max { Err(FormatError::TooLarge) } else { Ok(()) }
    }

    fn number(&self, kind: Kind, value: &Value<'_>) -> Result<Raw<'static>, FormatError> {
        let integer = || integer(value);
        Ok(match kind {
            Kind::Bool => match value {
                Value::Bool(b) => Raw::Varint(u64::from(*b)),
                _ => return Err(FormatError::Unfit),
            },
            Kind::Float => {
                let (wide, narrow) = (number(value)?, number(value)? as f32);
                if wide.is_finite() && !narrow.is_finite() {
                    return Err(FormatError::Unfit);
                }
                Raw::Fixed32(narrow.to_le_bytes())
            }
            Kind::Double => Raw::Fixed64(number(value)?.to_le_bytes()),
            Kind::Enum(of) => {
                let number = match value {
                    Value::Text(name) => {
                        let values = self.enums.get(of).map_or(&[][..], |e| &e.values);
                        values.iter().find(|(_, known)| known == name).ok_or(FormatError::Unfit)?.0
                    }
                    _ => fit::<i32>(integer()?)?,
                };
                Raw::Varint(i64::from(number).cast_unsigned())
            }
            Kind::Int32 => Raw::Varint(i64::from(fit::<i32>(integer()?)?).cast_unsigned()),
            Kind::Int64 => Raw::Varint(fit::<i64>(integer()?)?.cast_unsigned()),
            Kind::Uint32 => Raw::Varint(u64::from(fit::<u32>(integer()?)?)),
            Kind::Uint64 => Raw::Varint(fit(integer()?)?),
            Kind::Sint32 => Raw::Varint(zigzag(i64::from(fit::<i32>(integer()?)?))),
            Kind::Sint64 => Raw::Varint(zigzag(fit(integer()?)?)),
            Kind::Fixed32 => Raw::Fixed32(fit::<u32>(integer()?)?.to_le_bytes()),
            Kind::Sfixed32 => Raw::Fixed32(fit::<i32>(integer()?)?.to_le_bytes()),
            Kind::Fixed64 => Raw::Fixed64(fit::<u64>(integer()?)?.to_le_bytes()),
            Kind::Sfixed64 => Raw::Fixed64(fit::<i64>(integer()?)?.to_le_bytes()),
            Kind::Text | Kind::Bytes | Kind::Message(_) => return Err(FormatError::Unfit),
        })
    }
}

impl Kind {
    fn is_number(self) -> bool {
        !matches!(self, Kind::Text | Kind::Bytes | Kind::Message(_))
    }
}

fn fit<T: TryFrom<i128>>(n: i128) -> Result<T, FormatError> {
    T::try_from(n).map_err(|_| FormatError::Unfit)
}

/// An integer, also one that is written as a float.
fn integer(value: &Value<'_>) -> Result<i128, FormatError> {
    match value {
        Value::Int(n) => Ok(i128::from(*n)),
        Value::Big(digits) => digits.parse().map_err(|_| FormatError::Unfit),
        Value::Float(f) if f.fract() == 0.0 && f.abs() < 1e19 => Ok(*f as i128),
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
