//! The loop of FOREACH, of every dialect: one element of an array after the other.
//!
//! # Data
//! An element of an array in the payload stays where it is: one pass ([`crate::elements`]) reads the fields that the rule asks of
//! elements and finds the element's end on the way. An element of an array that was made is a value.
//!
//! # Bounds
//! [`ELEMENTS_MAX`] elements; what all rows hold together, [`Scratch::MAX_OUTPUT`]. Fuel counts the operations of every turn.

use std::borrow::Cow;

use crate::Failure;
use crate::json::{self, Kind};
use crate::machine::Machine;
use crate::paths::{NodeId, PathStep, Paths};
use crate::program::{Code, ConditionPart, Walk};
use crate::row::{Rows, emit_all};
use crate::step::Scratch;
use crate::value::Value;

/// The most elements of a FOREACH that are looked at.
pub(crate) const ELEMENTS_MAX: usize = 10_000;

/// A loop.
#[derive(Debug, Clone, Default)]
pub(crate) struct Each {
    /// Gives the array.
    pub(crate) collection: Code,
    /// The words of that.
    pub(crate) text: String,
    /// Whether an element makes a row.
    pub(crate) incase: Option<Code>,
    /// The parts of that, for `rules test`.
    pub(crate) incase_parts: Vec<ConditionPart>,
    /// What is asked of elements.
    pub(crate) paths: Paths,
}

impl Each {
    /// The node of what is asked of elements down a static path, and how many of its steps that is.
    pub(crate) fn node(&mut self, steps: &[Walk]) -> (NodeId, usize) {
        let mut path = Vec::new();
        for step in steps {
            match step {
                Walk::Key(key) => path.push(PathStep::Key(key.clone())),
                Walk::Index(index) => match u32::try_from(index - 1) {
                    Ok(from_zero) => path.push(PathStep::Element(from_zero)),
                    Err(_) => break,
                },
                Walk::Range(..) => break,
            }
        }
        (self.paths.insert(&path), path.len())
    }
}

/// The element in hand.
#[derive(Debug, Default)]
pub(crate) enum Element<'a> {
    /// There is no loop.
    #[default]
    None,
    /// It is in this array, where [`Machine::elements`] says.
    Text(&'a [u8]),
    Value(Value<'a>),
}

/// Goes through a collection; whether it is one. `one` is called for each element, with how many rows there were before it, and says whether it made one.
pub(crate) fn each<'a>(
    m: &mut Machine<'a, '_>,
    paths: &Paths,
    collection: Value<'a>,
    out: &mut Rows,
    mut one: impl FnMut(&mut Machine<'a, '_>, &mut Rows) -> Result<bool, Failure>,
) -> Result<Option<u32>, Failure> {
    let mut made = Made::default();
    match collection {
        Value::Json(Cow::Borrowed(text)) if text.starts_with('[') && json::is_readable(text.as_bytes()) => {
            let text = text.as_bytes();
            m.element = Element::Text(text);
            let mut at = json::skip_space(text, 1);
            while !matches!(text.get(at), Some(b']') | None) {
                // The whole array was read before: it is JSON.
                let Ok(end) = m.elements.read(paths, text, at) else { break };
                made.one(m, out, &mut one)?;
                at = json::skip_space(text, end);
                if text.get(at) == Some(&b',') {
                    at = json::skip_space(text, at + 1);
                }
            }
        }
        collection => {
            let Value::List(items) = collection.open() else { return Ok(None) };
            for item in items.iter() {
                m.element = Element::Value(item.clone());
                made.one(m, out, &mut one)?;
            }
        }
    }
    m.element = Element::None;
    Ok(Some(made.rows))
}

/// What a loop has come to.
#[derive(Default)]
struct Made {
    elements: usize,
    rows: u32,
    bytes: usize,
}

impl Made {
    fn one<'a>(
        &mut self,
        m: &mut Machine<'a, '_>,
        out: &mut Rows,
        one: &mut impl FnMut(&mut Machine<'a, '_>, &mut Rows) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        self.elements += 1;
        if self.elements > ELEMENTS_MAX {
            return Err(Failure::TooLarge);
        }
        if !one(m, out)? {
            return Ok(());
        }
        let before = out.rows.len();
        emit_all(m, self.rows, out)?;
        self.bytes += out.rows[before..].iter().map(crate::OutRow::bytes).sum::<usize>();
        if self.bytes + out.text.len() > Scratch::MAX_OUTPUT {
            return Err(Failure::TooLarge);
        }
        self.rows += 1;
        Ok(())
    }
}

impl<'a> Machine<'a, '_> {
    /// The whole element.
    pub(crate) fn whole_element(&mut self) -> Result<Value<'a>, crate::TypeError> {
        match &self.element {
            Element::None => Ok(Value::Missing),
            Element::Value(value) => Ok(value.clone()),
            Element::Text(text) => match self.elements.get(0) {
                Some(found) => self.read(text, found),
                None => Ok(Value::Missing),
            },
        }
    }

    /// What an element that is text has at a node; `None` when it has nothing there.
    ///
    /// # Errors
    /// The whole element has to be looked into: it is no text of the payload, or holds text in which there may be more.
    #[inline]
    pub(crate) fn element_slot(
        &mut self,
        paths: &Paths,
        node: NodeId,
    ) -> Result<Option<Result<Value<'a>, crate::TypeError>>, LookInside> {
        let Element::Text(text) = self.element else { return Err(LookInside) };
        if let Some(found) = self.elements.get(node) {
            return Ok(Some(self.read(text, found)));
        }
        let above = self.elements.above(paths, node);
        let is_text = above.is_some_and(|found| matches!(found.kind, Kind::Text | Kind::Escaped));
        if is_text { Err(LookInside) } else { Ok(None) }
    }
}

/// A node of an element gave no answer.
pub(crate) struct LookInside;
