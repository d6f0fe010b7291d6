//! The machine that runs a [`Program`]: a stack of values, registers, what the message's rules share.
//!
//! It knows what each operation means in the default dialect; those of EMQX's are in [`crate::emqx`]. Nothing here depends on a payload's
//! size but by the scan, and nothing allocates but operations that make new text.

use std::borrow::Cow;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::elements::Elements;
use crate::foreach::{Element, LookInside};
use crate::formats::{self, Payload};
use crate::functions::{self, FunctionId, Surroundings};
use crate::json::{Found, JsonError};
use crate::paths::{NodeId, Scan};
use crate::program::{Code, Column, EmqxOp, MAX_TEXT, Op, Program, Walk};
use crate::shared::Known;
use crate::sql::ast::Binary;
use crate::value::{self, Value};
use crate::{Failure, Message, TypeError};

/// One evaluation of one program.
pub(crate) struct Machine<'a, 's> {
    pub(crate) program: &'a Program,
    pub(crate) input: &'a Message<'a>,
    /// The payload as it came, where the one of `input` is what was decoded.
    pub(crate) raw: Option<&'a [u8]>,
    /// Of FOREACH.
    pub(crate) element: Element<'a>,
    /// What has been read of it.
    pub(crate) elements: &'s mut Elements,
    /// What parts of WHERE that several rules have were.
    pub(crate) known: &'s mut Known,
    /// The message's topic, once a row has it.
    pub(crate) topic: Option<Arc<str>>,
    pub(crate) scan: &'s mut Scan,
    pub(crate) around: &'s mut Surroundings,
    pub(crate) fuel: &'s mut u64,
    /// Deeper ones are few, and allocate.
    pub(crate) stack: SmallVec<[Value<'a>; 16]>,
    pub(crate) registers: SmallVec<[Value<'a>; 8]>,
    /// By register, see [`crate::copies`].
    pub(crate) copies: SmallVec<[Option<&'a [u8]>; 8]>,
    pub(crate) errors: [u32; TypeError::ALL.len()],
    pub(crate) first_error: Option<TypeError>,
    /// Type errors in words, where somebody reads them.
    pub(crate) trace: Option<&'s mut Vec<(TypeError, String)>>,
}

impl<'a> Machine<'a, '_> {
    /// Runs a range that leaves one value.
    #[inline]
    pub(crate) fn eval(&mut self, code: &Code) -> Result<Value<'a>, Failure> {
        let program = self.program;
        // Most fields are one operation, which does not need the stack.
        if let Some([op]) = program.ops.get(code.clone()) {
            let value = match *op {
                Op::Slot(node) => self.slot(node)?,
                Op::Column(column) => self.column(column),
                Op::Const(i) => constant(program, i),
                Op::ElementSlot { node, walk } => self.of_element(node, walk)?,
                Op::Emqx(EmqxOp::Slot { node, walk }) => self.payload(node, walk)?,
                Op::Emqx(EmqxOp::ElementSlot { node, walk }) => self.member_of_element(node, walk)?,
                Op::Emqx(EmqxOp::Column(column)) => crate::emqx::run::column_of(self, column),
                _ => return self.eval_all(code),
            };
            *self.fuel = self.fuel.checked_sub(1).ok_or(Failure::OutOfFuel)?;
            return Ok(value);
        }
        self.eval_all(code)
    }

    fn eval_all(&mut self, code: &Code) -> Result<Value<'a>, Failure> {
        let program = self.program;
        let mut at = code.start;
        while at < code.end {
            let Some(op) = program.ops.get(at) else { break };
            at += 1;
            *self.fuel = self.fuel.checked_sub(1).ok_or(Failure::OutOfFuel)?;
            match *op {
                Op::Const(i) => self.stack.push(constant(program, i)),
                Op::Slot(node) => {
                    let value = self.slot(node)?;
                    self.stack.push(value);
                }
                Op::SlotCompare { node, op, constant: i } => {
                    let left = self.slot(node)?;
                    let right = constant(program, i);
                    self.compare(op, &left, &right);
                }
                Op::Compare(op) => {
                    let right = self.pop();
                    let left = self.pop();
                    self.compare(op, &left, &right);
                }
                Op::Column(column) => {
                    let value = self.column(column);
                    self.stack.push(value);
                }
                Op::Extra(name) => {
                    let value = match constant(program, name) {
                        Value::Text(name) => {
                            self.input.columns.and_then(|c| c.get(&*name)).map(Value::from_tree)
                        }
                        _ => None,
                    };
                    self.stack.push(value.unwrap_or_default());
                }
                Op::UserProperty(name) => {
                    let properties = self.input.user_properties;
                    let value = match constant(program, name) {
                        Value::Text(name) => properties.and_then(|p| p.value(&name)),
                        _ => None,
                    };
                    self.stack.push(text(value));
                }
                Op::TopicLevel(index) => {
                    let level = topic_level(self.input.topic, i64::from(index));
                    self.stack.push(text(level));
                }
                Op::TopicLevelAt => {
                    let level = match self.pop() {
                        Value::Int(index) => text(topic_level(self.input.topic, index)),
                        Value::Null => Value::Null,
                        other => {
                            self.error(TypeError::TypeMismatch, || format!("topic[{}]", other.type_name()));
                            Value::Null
                        }
                    };
                    self.stack.push(level);
                }
                Op::Register(item) => {
                    let value = self.registers.get(item as usize).cloned().unwrap_or_default();
                    self.stack.push(value);
                }
                Op::Element => {
                    let value = self.whole_element();
                    let value = self.or_null(value, || "a number in the payload".to_owned());
                    self.stack.push(value);
                }
                Op::ElementSlot { node, walk } => {
                    let value = self.of_element(node, walk)?;
                    self.stack.push(value);
                }
                Op::Walk(steps) => {
                    let value = self.pop();
                    let value = self.down(value, steps);
                    self.stack.push(value);
                }
                Op::Index => {
                    let index = self.pop();
                    let base = self.pop();
                    let value = match index {
                        Value::Int(index) => base.element(index),
                        Value::Text(key) => base.member(&key),
                        Value::Null => Ok(Value::Null),
                        _ => Err(TypeError::TypeMismatch),
                    };
                    let value = self.or_null(value, || "an index that is no integer".to_owned());
                    self.stack.push(value);
                }
                Op::Negate => {
                    let operand = self.pop();
                    let value = value::negate(&operand);
                    let value = self.or_null(value, || format!("`-` of {}", operand.type_name()));
                    self.stack.push(value);
                }
                Op::Not => {
                    let operand = self.pop();
                    let value = self.truth(&operand, "NOT").map(|b| !b);
                    self.push_truth(value);
                }
                Op::And => {
                    let right = self.pop();
                    let left = self.pop();
                    let right = self.truth(&right, "AND");
                    let value = match (self.truth(&left, "AND"), right) {
                        (Some(false), _) | (_, Some(false)) => Some(false),
                        (Some(true), Some(true)) => Some(true),
                        _ => None,
                    };
                    self.push_truth(value);
                }
                Op::Or => {
                    let right = self.pop();
                    let left = self.pop();
                    let right = self.truth(&right, "OR");
                    let value = match (self.truth(&left, "OR"), right) {
                        (Some(true), _) | (_, Some(true)) => Some(true),
                        (Some(false), Some(false)) => Some(false),
                        _ => None,
                    };
                    self.push_truth(value);
                }
                Op::JumpIfFalse(to) => {
                    if self.stack.last() == Some(&Value::Bool(false)) {
                        at = to as usize;
                    }
                }
                Op::JumpIfTrue(to) => {
                    if self.stack.last() == Some(&Value::Bool(true)) {
                        at = to as usize;
                    }
                }
                Op::JumpUnlessTrue(to) => {
                    let condition = self.pop();
                    if self.truth(&condition, "WHEN") != Some(true) {
                        at = to as usize;
                    }
                }
                Op::Jump(to) => at = to as usize,
                Op::Duplicate => {
                    let top = self.stack.last().cloned().unwrap_or_default();
                    self.stack.push(top);
                }
                Op::Drop => drop(self.pop()),
                Op::Arithmetic(op) => {
                    let right = self.pop();
                    let left = self.pop();
                    let value = value::arithmetic(op, &left, &right);
                    let value = self.or_null(value, || {
                        format!("{} {} {}", left.type_name(), op.symbol(), right.type_name())
                    });
                    self.stack.push(value);
                }
                Op::Same => {
                    let right = self.pop();
                    let left = self.pop();
                    let same = value::compare(Binary::Eq, &left, &right).unwrap_or(Some(false));
                    self.push_truth(same);
                }
                Op::IsNull { negated } => {
                    let is = matches!(self.pop(), Value::Null);
                    self.stack.push(Value::Bool(is != negated));
                }
                Op::In { count, negated } => {
                    let first = self.stack.len().saturating_sub(count as usize);
                    let mut found = Some(false);
                    {
                        let (rest, items) = self.stack.split_at(first);
                        let of = rest.last().unwrap_or(&Value::Null);
                        for item in items {
                            match value::compare(Binary::Eq, of, item).unwrap_or(Some(false)) {
                                Some(true) => {
                                    found = Some(true);
                                    break;
                                }
                                None => found = None,
                                Some(false) => {}
                            }
                        }
                    }
                    self.stack.truncate(first.saturating_sub(1));
                    self.push_truth(found.map(|f| f != negated));
                }
                Op::Between { negated } => {
                    let high = self.pop();
                    let low = self.pop();
                    let of = self.pop();
                    self.compare(Binary::GreaterEq, &of, &low);
                    let above = self.pop();
                    self.compare(Binary::LessEq, &of, &high);
                    let below = self.pop();
                    let inside = match (above, below) {
                        (Value::Bool(false), _) | (_, Value::Bool(false)) => Some(false),
                        (Value::Bool(true), Value::Bool(true)) => Some(true),
                        _ => None,
                    };
                    self.push_truth(inside.map(|i| i != negated));
                }
                Op::Emqx(op) => {
                    if let Some(to) = self.emqx(op)? {
                        at = to as usize;
                    }
                }
                Op::Call { function, args } => {
                    let function = function as FunctionId;
                    let first = self.stack.len().saturating_sub(args as usize);
                    let Some(function) = functions::function_of(function) else { break };
                    let is_emqx = program.emqx.is_some();
                    if is_emqx {
                        self.stack[first..].iter_mut().for_each(Value::open_in_place);
                    }
                    let value = functions::call(function, &mut self.stack[first..], self.around);
                    self.stack.truncate(first);
                    let value = if is_emqx {
                        let note = self.around.note.take();
                        let value = self.or_fail(value, || match note {
                            Some(note) => format!("{}(): {note}", function.name),
                            None => format!("{}()", function.name),
                        })?;
                        self.weighed(value)?
                    } else {
                        self.or_null(value, || format!("{}()", function.name))
                    };
                    self.stack.push(value);
                }
                Op::Array(count) => {
                    let first = self.stack.len().saturating_sub(count as usize);
                    let mut out = vec![b'['];
                    for (i, value) in self.stack[first..].iter().enumerate() {
                        if i > 0 {
                            out.push(b',');
                        }
                        value.write_json(&mut out);
                        if out.len() > MAX_TEXT {
                            break;
                        }
                    }
                    out.push(b']');
                    self.stack.truncate(first);
                    let value = if out.len() > MAX_TEXT {
                        Err(TypeError::BadArgument)
                    } else {
                        String::from_utf8(out)
                            .map(|s| Value::Json(Cow::Owned(s)))
                            .map_err(|_| TypeError::TypeMismatch)
                    };
                    let value = self.or_null(value, || "an array".to_owned());
                    self.stack.push(value);
                }
            }
        }
        Ok(self.pop())
    }

    /// What a value has down a static path.
    fn down(&mut self, mut value: Value<'a>, walk: u32) -> Value<'a> {
        let program = self.program;
        for step in program.walks.get(walk as usize).into_iter().flatten() {
            let inner = match step {
                Walk::Key(key) => value.member(key),
                Walk::Index(index) => value.element(*index),
                Walk::Range(..) => Ok(Value::Null),
            };
            value = self.or_null(inner, || "a number in the payload".to_owned());
        }
        if program.format.is_some() { formats::untagged(value) } else { value }
    }

    /// What the element has down a static path.
    fn of_element(&mut self, node: NodeId, walk: u32) -> Result<Value<'a>, Failure> {
        let Some(each) = &self.program.each else { return Ok(Value::Null) };
        match self.element_slot(&each.paths, node) {
            Ok(value) => {
                let value = value.unwrap_or(Ok(Value::Null));
                Ok(self.or_null(value, || "a number in the payload".to_owned()))
            }
            Err(LookInside) => {
                let value = self.whole_element();
                let value = self.or_null(value, || "a number in the payload".to_owned());
                Ok(self.down(value, walk))
            }
        }
    }

    /// Whether WHERE is true.
    #[inline]
    pub(crate) fn holds(&mut self, code: &Code) -> Result<bool, Failure> {
        let program = self.program;
        // The commonest condition of all does not need the stack.
        if let Some([Op::SlotCompare { node, op, constant: i }]) = program.ops.get(code.clone()) {
            *self.fuel = self.fuel.checked_sub(1).ok_or(Failure::OutOfFuel)?;
            let left = self.slot(*node)?;
            let Some(right) = program.constants.get(*i as usize) else { return Ok(false) };
            return Ok(self.compared(*op, &left, right) == Some(true));
        }
        let value = self.eval(code)?;
        Ok(self.truth(&value, "WHERE") == Some(true))
    }

    /// A part of WHERE: its value, which other rules may have asked for before.
    pub(crate) fn part(
        &mut self,
        number: Option<u32>,
        evaluate: impl FnOnce(&mut Self) -> Result<Option<bool>, Failure>,
    ) -> Result<Option<bool>, Failure> {
        let Some(number) = number else { return evaluate(self) };
        if let Some(truth) = self.known.get(number) {
            *self.fuel = self.fuel.checked_sub(1).ok_or(Failure::OutOfFuel)?;
            return Ok(truth);
        }
        let before = self.errors;
        let truth = evaluate(self)?;
        // What went wrong is counted by each rule.
        if self.errors == before {
            self.known.put(number, truth);
        }
        Ok(truth)
    }

    #[inline]
    pub(crate) fn pop(&mut self) -> Value<'a> {
        self.stack.pop().unwrap_or_default()
    }

    /// What the payload has at a node; NULL, counted, when it cannot be read.
    #[inline]
    fn slot(&mut self, node: NodeId) -> Result<Value<'a>, Failure> {
        let payload = self.input.payload;
        match self.scan.find(&self.program.paths, payload, node) {
            Ok(None) => Ok(Value::Null),
            Ok(Some(found)) => {
                let value = self.read(payload, found);
                Ok(self.or_null(value, || "a number in the payload".to_owned()))
            }
            Err(JsonError::Invalid) => {
                self.unreadable();
                Ok(Value::Null)
            }
            Err(JsonError::TooDeep) => Err(Failure::TooDeep),
        }
    }

    /// A value of the payload.
    #[inline]
    pub(crate) fn read(&self, payload: &'a [u8], found: Found) -> Result<Value<'a>, TypeError> {
        let value = Value::found(payload, found);
        if self.program.format.is_some() { value.map(formats::untagged) } else { value }
    }

    /// Counts a payload that cannot be read.
    #[cold]
    pub(crate) fn unreadable(&mut self) {
        match &self.program.format {
            None => self.error(TypeError::InvalidJson, || "the payload is not JSON".to_owned()),
            Some(Payload { codec, .. }) => {
                self.error(TypeError::InvalidFormat, || format!("the payload is not {codec:?}"));
            }
        }
    }

    #[inline]
    fn compare(&mut self, op: Binary, left: &Value<'_>, right: &Value<'_>) {
        let truth = self.compared(op, left, right);
        self.push_truth(truth);
    }

    #[inline]
    fn compared(&mut self, op: Binary, left: &Value<'_>, right: &Value<'_>) -> Option<bool> {
        value::compare(op, left, right).unwrap_or_else(|error| {
            self.error(error, || format!("{} {} {}", left.type_name(), op.symbol(), right.type_name()));
            None
        })
    }

    #[inline]
    fn push_truth(&mut self, truth: Option<bool>) {
        self.stack.push(truth.map_or(Value::Null, Value::Bool));
    }

    /// A condition's value; anything but a boolean or NULL is a type error.
    pub(crate) fn truth(&mut self, value: &Value<'_>, of: &str) -> Option<bool> {
        match value {
            Value::Bool(b) => Some(*b),
            Value::Null => None,
            other => {
                self.error(TypeError::TypeMismatch, || format!("{of} of {}", other.type_name()));
                None
            }
        }
    }

    #[inline]
    fn or_null(&mut self, value: Result<Value<'a>, TypeError>, what: impl FnOnce() -> String) -> Value<'a> {
        match value {
            Ok(value) => value,
            Err(error) => {
                self.error(error, what);
                Value::Null
            }
        }
    }

    /// A value, or the end of the rule for this message.
    #[inline]
    pub(crate) fn or_fail(
        &mut self,
        value: Result<Value<'a>, TypeError>,
        what: impl FnOnce() -> String,
    ) -> Result<Value<'a>, Failure> {
        value.map_err(|error| {
            self.error(error, what);
            Failure::Exception
        })
    }

    #[cold]
    pub(crate) fn error(&mut self, error: TypeError, what: impl FnOnce() -> String) {
        self.errors[error as usize] += 1;
        self.first_error.get_or_insert(error);
        if let Some(trace) = &mut self.trace
            && trace.len() < 100
        {
            trace.push((error, what()));
        }
    }

    pub(crate) fn column(&mut self, column: Column) -> Value<'a> {
        let input = self.input;
        if let Some(value) = input.columns.and_then(|c| c.get(column.name())) {
            return Value::from_tree(value);
        }
        if input.event.is_some() && !column.is_general() {
            return Value::Null;
        }
        match column {
            Column::ClientId => Value::Text(Cow::Borrowed(input.clientid)),
            Column::Username => text(input.username),
            Column::Topic => Value::Text(Cow::Borrowed(input.topic)),
            Column::Payload => {
                let payload = self.raw.unwrap_or(input.payload);
                match std::str::from_utf8(payload) {
                    Ok(text) => Value::Text(Cow::Borrowed(text)),
                    Err(_) => Value::Bytes(Cow::Borrowed(payload)),
                }
            }
            Column::Qos => Value::Int(i64::from(input.qos)),
            Column::Retain => Value::Bool(input.retain),
            Column::Dup => Value::Bool(input.dup),
            Column::Flags => {
                let flags = format!("{{\"retain\":{},\"dup\":{}}}", input.retain, input.dup);
                Value::Json(Cow::Owned(flags))
            }
            Column::Timestamp | Column::PublishReceivedAt => Value::Int(input.timestamp_ms),
            Column::Id | Column::MessageId => match input.message_id {
                Some(id) => Value::Text(Cow::Owned(id.to_string())),
                None => Value::Null,
            },
            Column::Edge => text(input.edge),
            Column::PeerHost => text(input.peerhost),
            Column::UserProperties => Value::Json(Cow::Owned(user_properties(input))),
            Column::PubProps => {
                let all = input.user_properties.and_then(|properties| properties.all());
                let own = || format!("{{\"User-Property\":{}}}", user_properties(input));
                Value::Json(Cow::Owned(all.unwrap_or_else(own)))
            }
            Column::Event => Value::Text(Cow::Borrowed(input.event.unwrap_or("message.publish"))),
            Column::Node => text(input.node),
            // Not known of a message; `metadata` is of EMQX's dialect, which has it itself.
            Column::PeerName | Column::ClientAttrs | Column::Metadata => Value::Null,
        }
    }
}

pub(crate) fn constant(program: &Program, index: u32) -> Value<'_> {
    program.constants.get(index as usize).map(Value::share).unwrap_or_default()
}

fn text<'a>(text: Option<&'a str>) -> Value<'a> {
    text.map_or(Value::Null, |t| Value::Text(Cow::Borrowed(t)))
}

/// The first 256 user properties as a JSON object; of duplicates the first (a quadratic search, so bounded).
fn user_properties(input: &Message<'_>) -> String {
    let mut out = vec![b'{'];
    let mut seen: Vec<&str> = Vec::new();
    for (key, value) in (0..256).map_while(|i| input.user_properties.and_then(|p| p.pair(i))) {
        if seen.contains(&key) {
            continue;
        }
        if !seen.is_empty() {
            out.push(b',');
        }
        value::write_json_text(key, &mut out);
        out.push(b':');
        value::write_json_text(value, &mut out);
        seen.push(key);
    }
    out.push(b'}');
    String::from_utf8(out).unwrap_or_default()
}

/// Level `index` of a topic, from 1, negative from the end.
pub(crate) fn topic_level(topic: &str, index: i64) -> Option<&str> {
    let nth = |n: u64| usize::try_from(n.checked_sub(1)?).ok();
    match index {
        1.. => topic.split('/').nth(nth(index.unsigned_abs())?),
        _ => topic.rsplit('/').nth(nth(index.unsigned_abs())?),
    }
}
