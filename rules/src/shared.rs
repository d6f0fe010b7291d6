//! Parts of WHERE that several rules have in common: each is evaluated once a message.
//!
//! A part is a conjunct of a rule's WHERE. Two are the same when they say the same in the same dialect, read nothing that their rule's list makes, and
//! would give the same twice: nothing random, nothing remembered. [`number`] gives such parts numbers when a set is loaded; while a
//! message's rules run, [`Known`] has what each was. A part that met a type error is evaluated for each rule, which counts it.
//!
//! With EMQX's dialect WHERE is one part, of rules whose WHERE comes first ([`crate::emqx`]).

use std::collections::HashMap;

use crate::functions;
use crate::program::{Code, Column, EmqxOp, Op, Program};
use crate::{Dialect, Rule};

/// What the parts of the message in hand were.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Which message; the slots of others are old.
    message: u32,
    slots: Vec<(u32, Option<bool>)>,
}

impl Known {
    /// Another message comes.
    #[inline]
    pub(crate) fn forget(&mut self) {
        self.message = self.message.wrapping_add(1);
        if self.message == 0 {
            self.slots.clear();
            self.message = 1;
        }
    }

    /// What a part was.
    #[inline]
    pub(crate) fn get(&self, part: u32) -> Option<Option<bool>> {
        let (message, truth) = self.slots.get(part as usize)?;
        (*message == self.message).then_some(*truth)
    }

    pub(crate) fn put(&mut self, part: u32, truth: Option<bool>) {
        let place = part as usize;
        if place >= self.slots.len() {
            self.slots.resize(place + 1, (0, None));
        }
        self.slots[place] = (self.message, truth);
    }
}

/// Whether a part gives the same whoever asks, for one message.
fn is_plain(program: &Program, code: &Code) -> bool {
    program.ops.get(code.clone()).is_some_and(|ops| {
        ops.iter().all(|op| match op {
            Op::Register(_) | Op::Element | Op::ElementSlot { .. } => false,
            // It names the rule.
            Op::Column(Column::Metadata) | Op::Emqx(EmqxOp::Column(Column::Metadata)) => false,
            Op::Call { function, .. } => {
                let name = functions::function_of(*function as usize).map_or("", |f| f.name);
                !functions::is_own(name) && !NOT_TWICE.iter().any(|prefix| name.starts_with(prefix))
            }
            _ => true,
        })
    })
}

/// Functions that give another value each time, or look at what is outside of the message.
const NOT_TWICE: [&str; 6] = ["random", "uuid", "kv_store_", "proc_dict_", "getenv", "jq"];

/// The parts of a rule that others may have, too.
fn parts(rule: &Rule) -> Vec<(usize, &str)> {
    let program = &rule.program;
    let own = |name: &String| name.starts_with(crate::events::PREFIX);
    if program.format.is_some() || program.keeps.is_some() || rule.filters.iter().any(own) {
        return Vec::new();
    }
    match (&program.emqx, &program.condition) {
        (None, _) => {
            let parts = program.condition_parts.iter().enumerate();
            parts
                .filter(|(_, part)| is_plain(program, &part.code))
                .map(|(at, p)| (at, p.text.as_str()))
                .collect()
        }
        (Some(plan), Some(condition)) if plan.where_first && is_plain(program, condition) => {
            vec![(0, plan.condition_text.as_str())]
        }
        _ => Vec::new(),
    }
}

/// Numbers the parts that several rules have.
pub(crate) fn number(rules: &mut [Rule]) {
    let mut known: HashMap<(Dialect, &str), (usize, Option<u32>)> = HashMap::new();
    for rule in rules.iter() {
        for (_, text) in parts(rule) {
            known.entry((rule.dialect, text)).or_insert((0, None)).0 += 1;
        }
    }
    known.retain(|_, (count, _)| *count > 1);
    let mut next = 0;
    let mut given: Vec<Vec<Option<u32>>> = Vec::with_capacity(rules.len());
    for rule in rules.iter() {
        let mut numbers = Vec::new();
        for (at, text) in parts(rule) {
            let Some((_, number)) = known.get_mut(&(rule.dialect, text)) else { continue };
            let number = *number.get_or_insert_with(|| {
                next += 1;
                next - 1
            });
            numbers.resize(at + 1, None);
            numbers[at] = Some(number);
        }
        given.push(numbers);
    }
    for (rule, numbers) in rules.iter_mut().zip(given) {
        rule.program.shared = numbers;
    }
}
