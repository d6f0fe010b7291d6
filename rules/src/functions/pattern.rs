//! Regular expressions: Perl's, groups that look round and refer back included, with bounds on size and time.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use fancy_regex::{Regex, RegexBuilder};

use super::{Surroundings, within};
use crate::TypeError;

/// The longest pattern, in bytes.
const PATTERN_MAX: usize = 4 << 10;
/// The largest compiled pattern, in bytes.
const COMPILED_MAX: usize = 1 << 20;
/// The most instructions of a pattern that has to go back: one that calls itself is written out.
const PROGRAM_MAX: usize = 16 << 10;
/// Steps of a pattern that has to go back; a few milliseconds.
const BACKTRACK_MAX: usize = 100_000;
/// Compiled patterns that a thread keeps: rules have few, and data that make patterns must not grow it.
const PATTERNS_MAX: usize = 32;

/// A pattern and what it has become; one that is none is not compiled again for each message either.
type Known = (String, Option<Rc<Regex>>);

thread_local! {
    static PATTERNS: RefCell<VecDeque<Known>> = const { RefCell::new(VecDeque::new()) };
}

/// A compiled pattern, the last used ones kept.
pub(super) fn compiled(text: &str) -> Result<Rc<Regex>, TypeError> {
    if text.len() > PATTERN_MAX {
        return Err(TypeError::BadArgument);
    }
    PATTERNS.with_borrow_mut(|known| {
        if let Some(at) = known.iter().position(|(known, _)| known == text)
            && let Some(found) = known.remove(at)
        {
            let regex = found.1.clone();
            known.push_front(found);
            return regex.ok_or(TypeError::BadArgument);
        }
        let regex = compile(text).ok().map(Rc::new);
        known.push_front((text.to_owned(), regex.clone()));
        known.truncate(PATTERNS_MAX);
        regex.ok_or(TypeError::BadArgument)
    })
}

fn compile(text: &str) -> Result<Regex, Box<fancy_regex::Error>> {
    let mut builder = RegexBuilder::new(text);
    builder.backtrack_limit(BACKTRACK_MAX).max_prog_size(PROGRAM_MAX);
    builder.delegate_size_limit(COMPILED_MAX).delegate_dfa_size_limit(COMPILED_MAX).build().map_err(Box::new)
}

/// What is wrong with a pattern, in words.
pub(super) fn problem(text: &str) -> Option<String> {
    if text.len() > PATTERN_MAX {
        return Some(format!("it has more than {PATTERN_MAX} bytes"));
    }
    let error = compile(text).err()?.to_string();
    // Some errors come with a drawing; what is wrong stands in the last line.
    Some(error.lines().last().unwrap_or("").trim_start_matches("error: ").to_owned())
}

/// A part of what takes the place of a match.
#[derive(Clone, Copy)]
pub(super) enum Part {
    Literal(char),
    /// What a group has matched, 0 the whole.
    Group(usize),
}

impl Part {
    /// The group of a digit.
    pub(super) fn group(digit: char) -> Part {
        Part::Group(digit.to_digit(10).unwrap_or(0) as usize)
    }
}

/// The parts of a replacement: `special` says what a character and the one behind it mean, and how many of them it took.
pub(super) fn replacement(
    with: &str,
    special: impl Fn(char, Option<char>) -> Option<(Part, usize)>,
) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut rest = with.chars();
    while let Some(c) = rest.next() {
        let (part, taken) = special(c, rest.clone().next()).unwrap_or((Part::Literal(c), 1));
        parts.push(part);
        if taken > 1 {
            rest.next();
        }
    }
    parts
}

/// All matches replaced.
pub(super) fn replace(
    text: &str,
    regex: &Regex,
    with: &[Part],
    around: &Surroundings,
) -> Result<String, TypeError> {
    let mut out = String::new();
    let mut end = 0;
    for found in regex.captures_iter(text) {
        let found = found.map_err(|_| TypeError::BadArgument)?;
        let Some(whole) = found.get(0) else { continue };
        out.push_str(text.get(end..whole.start()).unwrap_or(""));
        end = whole.end();
        for part in with {
            match *part {
                Part::Literal(c) => out.push(c),
                Part::Group(group) => {
                    let group = found.get(group).map_or("", |group| group.as_str());
                    within(out.len() + group.len(), around)?;
                    out.push_str(group);
                }
            }
        }
        within(out.len(), around)?;
    }
    out.push_str(text.get(end..).unwrap_or(""));
    within(out.len(), around)?;
    Ok(out)
}
