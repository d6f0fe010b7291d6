//! [`Why`] of a rule of this dialect: its list, WHERE and loop once more, step by step.

use super::run::{Field, Plan, make};
use crate::foreach::{ELEMENTS_MAX, Element};
use crate::machine::Machine;
use crate::program::ConditionPart;
use crate::value::Value;
use crate::why::{Each, Fault, PartResult, Why, reads, said, shown, words};
use crate::{Failure, Span, TypeError};

/// Where the parts of a query stand, in order of what they stand for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Places {
    pub(crate) fields: Vec<Span>,
    /// Of [`crate::program::Program::condition_parts`].
    pub(crate) condition: Vec<Span>,
    pub(crate) collection: Span,
    pub(crate) incase: Vec<Span>,
    pub(crate) make: Vec<Span>,
}

/// Runs the rule as far as it gets.
pub(crate) fn why(m: &mut Machine<'_, '_>, plan: &Plan) -> Why {
    let program = m.program;
    let mut why = Why::default();
    m.registers.clear();
    m.registers.resize(plan.registers, Value::Missing);
    if let Err(fault) = list(m, &plan.fields, &plan.places.fields) {
        return Why { fault: Some(fault), ..why };
    }
    match conditions(m, &program.condition_parts, &plan.places.condition) {
        Ok(parts) => why.parts = parts,
        Err(fault) => return Why { fault: Some(fault), ..why },
    }
    if why.parts.iter().any(|part| part.value != "true") {
        return why;
    }
    if plan.foreach.is_some() {
        each(m, plan, &mut why);
    }
    why
}

fn each(m: &mut Machine<'_, '_>, plan: &Plan, why: &mut Why) {
    let (Some(each), Some(round), places) = (&m.program.each, &plan.foreach, &plan.places) else { return };
    let collection = match m.eval(&each.collection) {
        Ok(collection) => collection,
        Err(failure) => {
            why.fault = Some(fault(m, places.collection, failure, Vec::new()));
            return;
        }
    };
    let value = shown(&collection);
    let Value::List(items) = collection.open() else {
        why.each = Some(Each::NoArray { text: each.text.clone(), value });
        return;
    };
    let (mut rejected, mut first) = (0, Vec::new());
    for (at, item) in items.iter().take(ELEMENTS_MAX).enumerate() {
        m.element = Element::Value(item.clone());
        if let Some(register) = m.registers.get_mut(round.item).filter(|_| round.whole) {
            *register = item.clone();
        }
        let made = match conditions(m, &each.incase_parts, &places.incase) {
            Ok(parts) if parts.iter().any(|part| part.value != "true") => {
                rejected += 1;
                if rejected == 1 {
                    first = parts;
                }
                continue;
            }
            Ok(_) => {
                m.registers.iter_mut().skip(round.own).for_each(|own| *own = Value::Missing);
                list(m, &round.make, &places.make)
            }
            Err(fault) => Err(fault),
        };
        if let Err(fault) = made {
            why.fault = Some(Fault { element: Some(at + 1), ..fault });
            return;
        }
    }
    why.each = Some(Each::Elements { count: items.len(), rejected, first });
}

/// The fields of a list, in order.
fn list(m: &mut Machine<'_, '_>, fields: &[Field], places: &[Span]) -> Result<(), Fault> {
    for (at, field) in fields.iter().enumerate() {
        make(m, std::slice::from_ref(field)).map_err(|failure| {
            let span = places.get(at).copied().unwrap_or_default();
            fault(m, span, failure, Vec::new())
        })?;
    }
    Ok(())
}

/// The parts of a condition. What follows one that is false is not evaluated live: there an exception says nothing.
fn conditions(
    m: &mut Machine<'_, '_>,
    parts: &[ConditionPart],
    places: &[Span],
) -> Result<Vec<PartResult>, Fault> {
    let mut results: Vec<PartResult> = Vec::new();
    for (at, part) in parts.iter().enumerate() {
        let decided = results.iter().any(|result| result.value == "false");
        let before = m.around.memory();
        let value = match m.eval(&part.code) {
            Ok(value @ Value::Bool(_)) => shown(&value),
            _ if decided => continue,
            other => {
                let span = places.get(at).copied().unwrap_or_default();
                let seen = reads(m, part, &before);
                return Err(match other {
                    Err(failure) => {
                        // The reads have put words of their own behind it.
                        let failed = m.eval(&part.code).err().unwrap_or(failure);
                        fault(m, span, failed, seen)
                    }
                    Ok(value) => {
                        let words = said(
                            TypeError::TypeMismatch,
                            &format!("a condition that is {}", value.type_name()),
                        );
                        Fault { span, element: None, words, reads: seen }
                    }
                });
            }
        };
        let seen = if value == "true" { Vec::new() } else { reads(m, part, &before) };
        results.push(PartResult { text: part.text.clone(), value, reads: seen });
    }
    Ok(results)
}

fn fault(m: &Machine<'_, '_>, span: Span, failure: Failure, reads: Vec<(String, String)>) -> Fault {
    Fault { span, element: None, words: words(m, failure), reads }
}
