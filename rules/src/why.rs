//! Why a rule made no row of a message, or fewer than it might have: for `rules test`.
//!
//! The parts of a condition are ranges of the same program that runs live ([`ConditionPart`]), so that each can be
//! evaluated alone. This is never done for live messages.

use crate::foreach::{ELEMENTS_MAX, Element};
use crate::machine::Machine;
use crate::program::ConditionPart;
use crate::state::Memory;
use crate::value::Value;
use crate::{Failure, Span, TypeError};

/// What came of a rule's conditions.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Why {
    /// The parts of WHERE.
    pub(crate) parts: Vec<PartResult>,
    /// What ended the rule (EMQX's dialect).
    pub(crate) fault: Option<Fault>,
    /// What FOREACH did.
    pub(crate) each: Option<Each>,
}

/// A part of a condition, evaluated alone.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PartResult {
    pub(crate) text: String,
    /// TRUE, FALSE, NULL or what it was instead, as JSON.
    pub(crate) value: String,
    /// What it read: the text and its value as JSON.
    pub(crate) reads: Vec<(String, String)>,
}

/// An exception.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) span: Span,
    /// The element of FOREACH, from 1.
    pub(crate) element: Option<usize>,
    /// `type_mismatch: string > integer`.
    pub(crate) words: String,
    pub(crate) reads: Vec<(String, String)>,
}

/// What FOREACH did.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Each {
    /// It had no array to go through.
    NoArray { text: String, value: String },
    /// Elements, and those that INCASE rejected; what it said of the first of these.
    Elements { count: usize, rejected: usize, first: Vec<PartResult> },
}

/// A value for people.
pub(crate) fn shown(value: &Value<'_>) -> String {
    if matches!(value, Value::Missing) {
        return "missing".to_owned();
    }
    let mut out = Vec::new();
    value.write_json(&mut out);
    String::from_utf8_lossy(&out).into_owned()
}

/// The conditions of the default dialect: what is wrong in one is NULL.
pub(crate) fn of_conditions(m: &mut Machine<'_, '_>) -> Result<Why, Failure> {
    let program = m.program;
    let mut why = Why { parts: parts(m, &program.condition_parts)?, ..Why::default() };
    let Some(each) = program.each.as_ref().filter(|_| all_true(&why.parts)) else { return Ok(why) };
    let collection = m.eval(&each.collection)?;
    let value = shown(&collection);
    let Value::List(items) = collection.open() else {
        why.each = Some(Each::NoArray { text: each.text.clone(), value });
        return Ok(why);
    };
    let (mut rejected, mut first) = (0, Vec::new());
    for item in items.iter().take(ELEMENTS_MAX) {
        m.element = Element::Value(item.clone());
        let said = parts(m, &each.incase_parts)?;
        if !all_true(&said) {
            rejected += 1;
            if rejected == 1 {
                first = said;
            }
        }
    }
    m.element = Element::None;
    why.each = Some(Each::Elements { count: items.len(), rejected, first });
    Ok(why)
}

fn parts(m: &mut Machine<'_, '_>, parts: &[ConditionPart]) -> Result<Vec<PartResult>, Failure> {
    parts
        .iter()
        .map(|part| {
            let before = m.around.memory();
            let value = shown(&m.eval(&part.code)?);
            Ok(PartResult { text: part.text.clone(), value, reads: reads(m, part, &before) })
        })
        .collect()
}

fn all_true(parts: &[PartResult]) -> bool {
    parts.iter().all(|part| part.value == "true")
}

/// What a part reads, of functions that remember what they did `before` it was evaluated.
pub(crate) fn reads(m: &mut Machine<'_, '_>, part: &ConditionPart, before: &Memory) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let after = m.around.remember(Memory::default());
    for (text, code) in &part.reads {
        m.around.remember(before.clone());
        let value = match m.eval(code) {
            Ok(value) => shown(&value),
            Err(failure) => words(m, failure),
        };
        found.push((text.clone(), value));
    }
    m.around.remember(after);
    found
}

/// A failure just met, in the words of the operation that failed.
pub(crate) fn words(m: &Machine<'_, '_>, failure: Failure) -> String {
    match m.trace.as_ref().and_then(|trace| trace.last()) {
        Some((error, what)) if failure == Failure::Exception => said(*error, what),
        _ => failure.name().to_owned(),
    }
}

/// A type error in words.
pub(crate) fn said(error: TypeError, what: &str) -> String {
    format!("{}: {what}", error.name())
}
