//! A schema from what `protoc --include_imports --descriptor_set_out=FILE` writes: a `FileDescriptorSet`, itself a
//! message of protobuf's `descriptor.proto`, of which the few fields that matter are read.

use std::collections::HashMap;

use super::wire::{Raw, field};
use super::{Enumeration, Field, Kind, Message, Schema, Shape};
use crate::formats::FormatError;

/// How deep declarations may be in each other.
const NESTED_MAX: usize = 32;

/// How a file's syntax has its fields.
#[derive(Clone, Copy, PartialEq)]
enum Syntax {
    Proto2,
    Proto3,
    /// Presence as in proto2, lists as in proto3. What `features` change of it is not read.
    Editions,
}

/// A message as it is declared; types are names yet.
struct Declared<'t> {
    name: String,
    fields: Vec<DeclaredField<'t>>,
    is_entry: bool,
}

#[derive(Default)]
struct DeclaredField<'t> {
    name: &'t str,
    number: u32,
    label: u64,
    kind: u64,
    type_name: &'t str,
    in_oneof: bool,
    packed: Option<bool>,
}

// Numbers of `descriptor.proto`.
const LABEL_REQUIRED: u64 = 2;
const LABEL_REPEATED: u64 = 3;

struct Reader<'t> {
    messages: Vec<(Declared<'t>, Syntax)>,
    enums: Vec<Enumeration>,
}

/// Reads a set of files.
///
/// # Errors
/// A sentence on what is wrong with it.
pub(super) fn read(bytes: &[u8]) -> Result<Schema, String> {
    let mut reader = Reader { messages: Vec::new(), enums: Vec::new() };
    reader
        .files(bytes)
        .map_err(|_| "it is no descriptor set (write one with `protoc --descriptor_set_out`)")?;
    if reader.messages.is_empty() {
        return Err("it describes no message".to_owned());
    }
    reader.schema()
}

fn text(raw: Raw<'_>) -> Result<&str, FormatError> {
    match raw {
        Raw::Sized(bytes) => std::str::from_utf8(bytes).map_err(|_| FormatError::Malformed),
        _ => Err(FormatError::Malformed),
    }
}

fn number(raw: Raw<'_>) -> Result<u64, FormatError> {
    match raw {
        Raw::Varint(number) => Ok(number),
        _ => Err(FormatError::Malformed),
    }
}

fn sized(raw: Raw<'_>) -> Result<&[u8], FormatError> {
    match raw {
        Raw::Sized(bytes) => Ok(bytes),
        _ => Err(FormatError::Malformed),
    }
}

/// Whether a message of options has a flag set.
fn flag(mut options: &[u8], wanted: u32) -> Result<Option<bool>, FormatError> {
    let mut found = None;
    while let Some((at, raw)) = field(&mut options)? {
        if at == wanted {
            found = Some(number(raw)? != 0);
        }
    }
    Ok(found)
}

impl<'t> Reader<'t> {
    fn files(&mut self, mut set: &'t [u8]) -> Result<(), FormatError> {
        while let Some((at, raw)) = field(&mut set)? {
            if at == 1 {
                self.file(sized(raw)?)?;
            }
        }
        Ok(())
    }

    fn file(&mut self, file: &'t [u8]) -> Result<(), FormatError> {
        let (mut package, mut syntax) = ("", Syntax::Proto2);
        let mut rest = file;
        while let Some((at, raw)) = field(&mut rest)? {
            match at {
                2 => package = text(raw)?,
                12 => {
                    syntax = match text(raw)? {
                        "proto3" => Syntax::Proto3,
                        "editions" => Syntax::Editions,
                        _ => Syntax::Proto2,
                    }
                }
                _ => {}
            }
        }
        let mut rest = file;
        while let Some((at, raw)) = field(&mut rest)? {
            match at {
                4 => self.message(sized(raw)?, package, syntax, 0)?,
                5 => self.enumeration(sized(raw)?, package)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Recursion is bounded by [`NESTED_MAX`].
    fn message(
        &mut self,
        message: &'t [u8],
        scope: &str,
        syntax: Syntax,
        depth: usize,
    ) -> Result<(), FormatError> {
        if depth > NESTED_MAX {
            return Err(FormatError::TooDeep);
        }
        let name = named(message, scope)?;
        let mut declared = Declared { name: name.clone(), fields: Vec::new(), is_entry: false };
        let mut rest = message;
        while let Some((at, raw)) = field(&mut rest)? {
            match at {
                2 => declared.fields.push(declared_field(sized(raw)?)?),
                3 => self.message(sized(raw)?, &name, syntax, depth + 1)?,
                4 => self.enumeration(sized(raw)?, &name)?,
                7 => declared.is_entry = flag(sized(raw)?, 7)? == Some(true),
                _ => {}
            }
        }
        self.messages.push((declared, syntax));
        Ok(())
    }

    fn enumeration(&mut self, declared: &'t [u8], scope: &str) -> Result<(), FormatError> {
        let mut values = Vec::new();
        let mut rest = declared;
        while let Some((at, raw)) = field(&mut rest)? {
            if at != 2 {
                continue;
            }
            let (mut name, mut value) = ("", 0);
            let mut rest = sized(raw)?;
            while let Some((at, raw)) = field(&mut rest)? {
                match at {
                    1 => name = text(raw)?,
                    2 => value = number(raw)? as i32,
                    _ => {}
                }
            }
            values.push((value, name.to_owned()));
        }
        self.enums.push(Enumeration { name: named(declared, scope)?, values });
        Ok(())
    }

    fn schema(self) -> Result<Schema, String> {
        let message_at: HashMap<&str, usize> =
            self.messages.iter().enumerate().map(|(at, (m, _))| (m.name.as_str(), at)).collect();
        let enum_at: HashMap<&str, usize> =
            self.enums.iter().enumerate().map(|(at, e)| (e.name.as_str(), at)).collect();
        let mut messages = Vec::new();
        for (declared, syntax) in &self.messages {
            let mut fields = Vec::new();
            for of in &declared.fields {
                let type_name = of.type_name.trim_start_matches('.');
                let missing = || {
                    format!(
                        "`{}.{}` is of type `{type_name}`, which it does not describe (write it with \
                         `--include_imports`)",
                        declared.name, of.name
                    )
                };
                let kind = match of.kind {
                    11 => Kind::Message(*message_at.get(type_name).ok_or_else(missing)?),
                    14 => Kind::Enum(*enum_at.get(type_name).ok_or_else(missing)?),
                    kind => match scalar(kind) {
                        Some(kind) => kind,
                        // A group: passed over.
                        None => continue,
                    },
                };
                let is_message = matches!(kind, Kind::Message(_));
                let is_entry = |at: &usize| self.messages.get(*at).is_some_and(|(m, _)| m.is_entry);
                let shape = match (of.label, &kind) {
                    (LABEL_REPEATED, Kind::Message(at)) if is_entry(at) => Shape::Map,
                    (LABEL_REPEATED, _) => Shape::Many,
                    _ => Shape::One,
                };
                let implicit = declared.is_entry || (*syntax == Syntax::Proto3 && !of.in_oneof);
                fields.push(Field {
                    number: of.number,
                    name: of.name.to_owned(),
                    shape,
                    packed: of.packed.unwrap_or(*syntax != Syntax::Proto2),
                    implicit: implicit && shape == Shape::One && !is_message,
                    required: of.label == LABEL_REQUIRED,
                    kind,
                });
            }
            fields.sort_by_key(|field| field.number);
            messages.push(Message { name: declared.name.clone(), fields, is_entry: declared.is_entry });
        }
        drop((message_at, enum_at));
        Ok(Schema { messages, enums: self.enums })
    }
}

/// The full name of a declaration.
fn named(declaration: &[u8], scope: &str) -> Result<String, FormatError> {
    let mut rest = declaration;
    let mut name = "";
    while let Some((at, raw)) = field(&mut rest)? {
        if at == 1 {
            name = text(raw)?;
        }
    }
    Ok(if scope.is_empty() { name.to_owned() } else { format!("{scope}.{name}") })
}

fn declared_field(mut rest: &[u8]) -> Result<DeclaredField<'_>, FormatError> {
    let mut declared = DeclaredField::default();
    while let Some((at, raw)) = field(&mut rest)? {
        match at {
            1 => declared.name = text(raw)?,
            3 => declared.number = u32::try_from(number(raw)?).map_err(|_| FormatError::Malformed)?,
            4 => declared.label = number(raw)?,
            5 => declared.kind = number(raw)?,
            6 => declared.type_name = text(raw)?,
            8 => declared.packed = flag(sized(raw)?, 2)?,
            // Of `optional` in proto3, too.
            9 => declared.in_oneof = true,
            _ => {}
        }
    }
    Ok(declared)
}

fn scalar(kind: u64) -> Option<Kind> {
    Some(match kind {
        1 => Kind::Double,
        2 => Kind::Float,
        3 => Kind::Int64,
        4 => Kind::Uint64,
        5 => Kind::Int32,
        6 => Kind::Fixed64,
        7 => Kind::Fixed32,
        8 => Kind::Bool,
        9 => Kind::Text,
        12 => Kind::Bytes,
        13 => Kind::Uint32,
        15 => Kind::Sfixed32,
        16 => Kind::Sfixed64,
        17 => Kind::Sint32,
        18 => Kind::Sint64,
        _ => return None,
    })
}
