//! The flat program of a rule and the machine that runs it.
//!
//! Code is one vector of operations over a stack of values; an expression is a range of it that leaves one value.
//! No operation goes back, so a program ends; FOREACH runs a part of one for each element. `fuel` bounds both.
//! Numbers, booleans and text from the message are borrowed: only operations that make new text allocate.
//!
//! A type error leaves NULL and is counted; only what makes going on pointless is a [`Failure`].

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::foreach::{Each, Element, Look};
use crate::formats::{self, Codec, Payload, Schemas};
use crate::functions::{self, FunctionId, Surroundings};
use crate::json::{self, Found, JsonError};
use crate::paths::{NodeId, Paths, Scan};
use crate::properties::PropertyCode;
use crate::ruleset::Keeps;
use crate::shared::Known;
use crate::sql::ast::Binary;
use crate::value::{self, Value};
use crate::{Failure, Message, TargetKind, TypeError};

/// The longest text or array that an expression may make, in bytes.
pub(crate) const MAX_TEXT: usize = 1 << 20;

/// A range of [`Program::ops`].
pub(crate) type Code = Range<usize>;

/// Index of an item of the SELECT list and of its register.
pub(crate) type ItemId = usize;

/// A column of the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Column {
    ClientId,
    Username,
    Topic,
    Payload,
    Qos,
    Retain,
    Dup,
    Flags,
    Timestamp,
    PublishReceivedAt,
    Id,
    MessageId,
    Edge,
    PeerHost,
    UserProperties,
    PubProps,
    Event,
    PeerName,
    ClientAttrs,
    Node,
    Metadata,
}

impl Column {
    /// Names as rules write them.
    pub(crate) const ALL: [(&'static str, Column); 21] = [
        ("clientid", Column::ClientId),
        ("username", Column::Username),
        ("topic", Column::Topic),
        ("payload", Column::Payload),
        ("qos", Column::Qos),
        ("retain", Column::Retain),
        ("dup", Column::Dup),
        ("flags", Column::Flags),
        ("timestamp", Column::Timestamp),
        ("publish_received_at", Column::PublishReceivedAt),
        ("id", Column::Id),
        ("message_id", Column::MessageId),
        ("edge", Column::Edge),
        ("peerhost", Column::PeerHost),
        ("user_properties", Column::UserProperties),
        ("pub_props", Column::PubProps),
        ("event", Column::Event),
        ("peername", Column::PeerName),
        ("client_attrs", Column::ClientAttrs),
        ("node", Column::Node),
        ("metadata", Column::Metadata),
    ];

    /// What EMQX's rules see of a published message, but for what every row has.
    pub(crate) const EMQX_PUBLISH: [Column; 12] = [
        Column::Id,
        Column::ClientId,
        Column::Username,
        Column::Payload,
        Column::PeerHost,
        Column::PeerName,
        Column::Topic,
        Column::Qos,
        Column::Flags,
        Column::PubProps,
        Column::PublishReceivedAt,
        Column::ClientAttrs,
    ];

    /// Whether every row has it, whatever happened.
    pub(crate) fn is_general(self) -> bool {
        matches!(self, Column::Event | Column::Timestamp | Column::Node | Column::Metadata)
    }

    /// Whether EMQX's rules have it; others are names that nothing has there.
    pub(crate) fn is_emqx(self) -> bool {
        self.is_general() || Self::EMQX_PUBLISH.contains(&self)
    }

    pub(crate) fn named(name: &str) -> Option<Column> {
        Self::ALL.iter().find(|(n, _)| *n == name).map(|&(_, column)| column)
    }

    pub(crate) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, column)| *column == self).map_or("", |(name, _)| name)
    }
}

/// A static step into an array or object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Walk {
    Key(String),
    Index(i64),
    /// Both ends included (EMQX).
    Range(i64, i64),
}

/// One operation. "Pops" and "pushes" are about the stack of values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Op {
    /// Pushes a constant.
    Const(u32),
    /// Pushes what the payload has at a node.
    Slot(NodeId),
    /// Pushes a column of the message.
    Column(Column),
    /// Pushes the column that [`Message::columns`] has under a constant's name.
    Extra(u32),
    /// Pushes the user property named by a constant.
    UserProperty(u32),
    /// Pushes a level of the topic, from 1, negative from the end.
    TopicLevel(i32),
    /// Pops an index, pushes that level of the topic.
    TopicLevelAt,
    /// Pushes an item's register.
    Register(u32),
    /// Pushes the element of FOREACH.
    Element,
    /// Pushes what the element has at a node of [`Each::paths`], which is this static path.
    ElementSlot {
        node: NodeId,
        walk: u32,
    },
    /// Pops a value, pushes what it has down a static path.
    Walk(u32),
    /// Pops an index or key and a value, pushes the element.
    Index,
    Negate,
    Not,
    /// Pops two, pushes their three-valued conjunction or disjunction.
    And,
    Or,
    /// Jump and leave the value.
    JumpIfFalse(u32),
    JumpIfTrue(u32),
    /// Pops; jumps unless it was TRUE.
    JumpUnlessTrue(u32),
    Jump(u32),
    Duplicate,
    Drop,
    Arithmetic(Binary),
    Compare(Binary),
    /// `payload.path op literal` in one, the commonest condition.
    SlotCompare {
        node: NodeId,
        op: Binary,
        constant: u32,
    },
    /// Pops two, pushes whether they are equal; unlike types are not. For CASE x WHEN.
    Same,
    IsNull {
        negated: bool,
    },
    /// Pops the items and the value before them.
    In {
        count: u32,
        negated: bool,
    },
    /// Pops high, low, value.
    Between {
        negated: bool,
    },
    Call {
        function: u32,
        args: u32,
    },
    /// Pops values, pushes an array.
    Array(u32),
    /// Of EMQX's dialect, see [`crate::emqx`].
    Emqx(EmqxOp),
}

/// An operation of EMQX's dialect. What is wrong ends the rule for this message.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum EmqxOp {
    /// Pops a value, pushes what it has down a static path; text on the way is JSON.
    Walk(u32),
    /// As [`Op::ElementSlot`].
    ElementSlot {
        node: NodeId,
        walk: u32,
    },
    /// As [`Op::Slot`]; where nothing is found, the payload is walked: there may be JSON in its text.
    Slot {
        node: NodeId,
        walk: u32,
    },
    /// Pops an index or a key and a value, pushes the element.
    Index,
    /// As [`Op::Column`] and [`Op::Extra`]; what the message does not have is missing.
    Column(Column),
    Extra(u32),
    /// Pops the number of a level, from 1, pushes that level of the topic.
    TopicLevel,
    /// Pops two, pushes whether they compare so.
    Compare(Binary),
    Arithmetic(Binary),
    Negate,
    /// Pops: whether it is `false`; of what is no boolean that is not so either.
    Not,
    /// The top must be a boolean.
    Condition,
    /// Pops two, pushes whether they are the same.
    Same,
    /// Pops the items and the value before them.
    In {
        count: u32,
        negated: bool,
    },
    /// Jumps and leaves the top if it is not missing; else pops it.
    JumpIfPresent(u32),
    /// Pops, jumps unless it was `true`, which it must be or `false`.
    JumpUnless(u32),
    /// Pushes the integers of a range, the index of its ends among the walks.
    Integers(u32),
    /// Pops values, pushes a list.
    List(u32),
}

/// A compiled template.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Template {
    pub(crate) parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Part {
    Text(String),
    Value(Code),
    /// The whole row as JSON.
    Row,
    /// An object that nested aliases make, by its path.
    Object(Vec<String>),
}

/// An object of the row.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Layout {
    pub(crate) base: Base,
    pub(crate) children: Vec<(String, Node)>,
    /// [`label`] of each child's name, once the layout is whole.
    pub(crate) labels: Vec<Box<[u8]>>,
}

/// A name as it stands before its value in a row.
pub(crate) fn label(name: &str) -> Box<[u8]> {
    let mut out = Vec::new();
    value::write_json_text(name, &mut out);
    out.push(b':');
    out.into()
}

impl Layout {
    /// Writes the labels. Recursion is bounded by the length of an alias.
    pub(crate) fn seal(&mut self) {
        self.labels = self.children.iter().map(|(name, _)| label(name)).collect();
        for (_, node) in &mut self.children {
            if let Node::Object(inner) = node {
                inner.seal();
            }
        }
    }
}

/// What an object holds before its columns are put into it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) enum Base {
    #[default]
    Nothing,
    /// `*`: the payload.
    Payload,
    /// A value that an alias like `payload` gave before `payload.x`; `decode`: JSON in text counts.
    Register { item: ItemId, decode: bool },
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Node {
    Register(ItemId),
    Object(Layout),
}

/// A target as the text has it.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    /// The same for every row, and one that may be published to.
    Fixed(Arc<str>),
    Template(Template),
}

/// What INSERT INTO and the sink say about rows.
#[derive(Debug, Clone)]
pub(crate) struct InsertCode {
    pub(crate) kind: TargetKind,
    pub(crate) qos: Option<u8>,
    pub(crate) retain: Option<bool>,
    pub(crate) target: Option<Target>,
    pub(crate) key: Option<Template>,
    pub(crate) payload: Option<Template>,
    pub(crate) options: Vec<(Arc<str>, Template)>,
    /// What the row is encoded to.
    pub(crate) format: Option<Codec>,
    pub(crate) properties: Vec<PropertyCode>,
    /// How many inserts of this rule into the same sink stand before this one.
    pub(crate) ordinal: u32,
}

/// A part of WHERE that must be true, and what it reads: for `rules test`.
#[derive(Debug, Clone)]
pub(crate) struct ConditionPart {
    pub(crate) text: String,
    pub(crate) code: Code,
    pub(crate) reads: Vec<(String, Code)>,
}

/// A compiled rule.
#[derive(Debug, Clone, Default)]
pub(crate) struct Program {
    pub(crate) ops: Vec<Op>,
    pub(crate) constants: Vec<Value<'static>>,
    pub(crate) walks: Vec<Vec<Walk>>,
    pub(crate) items: Vec<Code>,
    /// Items that WHERE needs, in order; they run first.
    pub(crate) before: Vec<ItemId>,
    pub(crate) condition: Option<Code>,
    pub(crate) condition_parts: Vec<ConditionPart>,
    /// The numbers of those parts of WHERE that other rules of the set have, too ([`crate::shared`]); empty: there are none.
    pub(crate) shared: Vec<Option<u32>>,
    /// The other items, in order.
    pub(crate) after: Vec<ItemId>,
    pub(crate) row: Layout,
    /// `SELECT *` and nothing else.
    pub(crate) payload_only: bool,
    pub(crate) inserts: Vec<InsertCode>,
    /// Payload paths in words, for `rules explain`.
    pub(crate) fields: Vec<String>,
    pub(crate) paths: Arc<Paths>,
    /// Of the rule set, as `paths`.
    pub(crate) schemas: Arc<Schemas>,
    /// What the payload is, if it is not JSON.
    pub(crate) format: Option<Payload>,
    /// What it remembers.
    pub(crate) keeps: Option<Keeps>,
    /// The loop of FOREACH, of every dialect.
    pub(crate) each: Option<Box<Each>>,
    /// What a rule of EMQX's dialect does instead of items, condition and row.
    pub(crate) emqx: Option<Box<crate::emqx::run::Plan>>,
}

/// One evaluation of one program.
pub(crate) struct Machine<'a, 's> {
    pub(crate) program: &'a Program,
    pub(crate) input: &'a Message<'a>,
    /// The payload as it came, where the one of `input` is what was decoded.
    pub(crate) raw: Option<&'a [u8]>,
    /// Of FOREACH.
    pub(crate) element: Element<'a>,
    /// What has been read of it.
    pub(crate) elements: &'s mut Scan,
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
            Err(Look::Deep) => Err(Failure::TooDeep),
            Err(Look::Whole) => {
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

/// Statements are at most 64 KiB, so nothing in a program counts beyond 32 bits.
pub(crate) fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Where a value is among others; it is put behind them if it is not there.
fn place_of<T: PartialEq>(among: &mut Vec<T>, value: T) -> usize {
    among.iter().position(|known| *known == value).unwrap_or_else(|| {
        among.push(value);
        among.len() - 1
    })
}

impl Program {
    /// Whether it looks into the payload: then one in a format of its own is decoded.
    pub(crate) fn reads_payload(&self) -> bool {
        self.payload_only || self.row.base == Base::Payload || !self.fields.is_empty()
    }

    /// Where the next operation will be.
    pub(crate) fn here(&self) -> usize {
        self.ops.len()
    }

    /// Appends an operation; where it is.
    pub(crate) fn emit(&mut self, op: Op) -> usize {
        self.ops.push(op);
        self.ops.len() - 1
    }

    /// Points the jump at `at` here.
    pub(crate) fn land(&mut self, at: usize) {
        let here = number(self.here());
        match &mut self.ops[at] {
            Op::Jump(to)
            | Op::JumpIfFalse(to)
            | Op::JumpIfTrue(to)
            | Op::JumpUnlessTrue(to)
            | Op::Emqx(EmqxOp::JumpIfPresent(to) | EmqxOp::JumpUnless(to)) => *to = here,
            _ => {}
        }
    }

    /// The index of a constant.
    pub(crate) fn constant(&mut self, value: Value<'static>) -> u32 {
        number(place_of(&mut self.constants, value))
    }

    /// The index of a static path.
    pub(crate) fn walk(&mut self, steps: Vec<Walk>) -> u32 {
        number(place_of(&mut self.walks, steps))
    }

    /// Whether a base given by a register decodes: the text of an object, if it is one.
    pub(crate) fn object_text<'v>(value: &'v Value<'_>, decode: bool) -> Option<&'v [u8]> {
        let text = match value {
            Value::Json(text) => text.as_bytes(),
            Value::Text(text) if decode => {
                let found = json::document(text.as_bytes()).ok()?;
                found.of(text.as_bytes())
            }
            _ => return None,
        };
        (text.first() == Some(&b'{')).then_some(text)
    }
}
