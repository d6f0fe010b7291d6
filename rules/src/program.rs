//! The flat program of a rule, which [`crate::machine`] runs.
//!
//! Code is one vector of operations over a stack of values; an expression is a range of it that leaves one value.
//! No operation goes back, so a program ends; FOREACH runs a part of one for each element. `fuel` bounds both.
//! Numbers, booleans and text from the message are borrowed: only operations that make new text allocate.
//!
//! A type error leaves NULL and is counted; only what makes going on pointless is a [`Failure`].

use std::ops::Range;
use std::sync::Arc;

use crate::TargetKind;
use crate::foreach::Each;
use crate::formats::{Codec, Payload, Schemas};
use crate::json;
use crate::paths::{NodeId, Paths};
use crate::properties::PropertyCode;
use crate::ruleset::Keeps;
use crate::sql::ast::Binary;
use crate::value::{self, Value};

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

/// Where a column's JSON text stands, if it is as a row would have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// At a node of the payload.
    Payload(NodeId),
    /// At a node of FOREACH's element.
    Element(NodeId),
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
    /// Whether columns are put into what a register holds. Recursion is bounded by the length of an alias.
    pub(crate) fn reads(&self, register: ItemId) -> bool {
        let inside = |node: &Node| matches!(node, Node::Object(inner) if inner.reads(register));
        matches!(self.base, Base::Register { item, .. } if item == register)
            || self.children.iter().any(|(_, node)| inside(node))
    }

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
    /// Where the items are that nothing reads but the row.
    pub(crate) sources: Vec<Option<Source>>,
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

    /// Where a field's text stands: it is one place of the payload or the element, and no operation reads its register. What else reads registers
    /// the dialect knows.
    pub(crate) fn source(&self, code: &Code, register: ItemId) -> Option<Source> {
        if self.ops.contains(&Op::Register(number(register))) {
            return None;
        }
        match self.ops.get(code.clone())? {
            [Op::Slot(node) | Op::Emqx(EmqxOp::Slot { node, .. })] => Some(Source::Payload(*node)),
            [Op::ElementSlot { node, .. } | Op::Emqx(EmqxOp::ElementSlot { node, .. })] => {
                Some(Source::Element(*node))
            }
            _ => None,
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
