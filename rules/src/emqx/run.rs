//! A rule of EMQX's dialect on one message: the list, WHERE, the loop, the rows.

use crate::Failure;
use crate::TypeError;
use crate::emqx::values;
use crate::emqx::why::Places;
use crate::foreach::{self, LookInside};
use crate::json::{self, JsonError};
use crate::machine::{Machine, constant, topic_level};
use crate::paths::NodeId;
use crate::program::{Code, Column, EmqxOp, ItemId, Op, Source, Walk};
use crate::row::{Rows, bounded, emit_all};
use crate::sql::ast::{Binary, Put};
use crate::value::{Map, Value};

/// What a rule does, beside its operations.
#[derive(Debug, Clone, Default)]
pub(crate) struct Plan {
    /// The rule's name: the column `metadata` has it.
    pub(crate) rule: String,
    /// The SELECT list, or what stands after FOREACH, in order.
    pub(crate) fields: Vec<Field>,
    pub(crate) registers: usize,
    /// WHERE reads nothing that the list makes, and the list cannot fail where WHERE does not: a message that WHERE rejects costs nothing more.
    pub(crate) where_first: bool,
    /// WHERE as written.
    pub(crate) condition_text: String,
    pub(crate) row: RowPlan,
    pub(crate) foreach: Option<Loop>,
    /// For `rules test` and `explain`.
    pub(crate) places: Places,
}

/// One field: its value, and where that goes.
#[derive(Debug, Clone)]
pub(crate) struct Field {
    pub(crate) code: Code,
    pub(crate) register: ItemId,
    /// Put into what the register holds; empty: instead of it.
    pub(crate) path: Vec<Put>,
    /// Text in the register is JSON: it is the payload.
    pub(crate) decode: bool,
    /// Where it is, if nothing reads it but the row.
    pub(crate) source: Option<Source>,
}

/// What each turn of FOREACH does.
#[derive(Debug, Clone)]
pub(crate) struct Loop {
    pub(crate) item: ItemId,
    /// Somebody reads the element from its register.
    pub(crate) whole: bool,
    pub(crate) make: Vec<Field>,
    /// The first of its own registers: those of DO.
    pub(crate) own: ItemId,
}

/// The columns of a row.
#[derive(Debug, Clone, Default)]
pub(crate) struct RowPlan {
    /// All columns of the message, but those that are named as well.
    pub(crate) message: bool,
    pub(crate) names: Vec<(String, ItemId)>,
    /// [`crate::program::label`] of each name.
    pub(crate) labels: Vec<Box<[u8]>>,
}

/// The most values in a tree that a rule makes. Parts are shared, so that a list of lists of lists may stand for far more than was
/// ever made: what is written is bounded by counting before.
const NODES_MAX: usize = 1 << 16;
/// The deepest such tree: what walks one calls itself.
pub(crate) const DEPTH_MAX: usize = 128;

/// Runs the rule. `Ok(false)`: WHERE was not true.
pub(crate) fn evaluate(
    m: &mut Machine<'_, '_>,
    plan: &Plan,
    traced: bool,
    out: &mut Rows,
) -> Result<bool, Failure> {
    if !plan.where_first {
        m.make_room(plan.registers, &Value::Missing);
        make(m, &plan.fields)?;
    }
    if let Some(condition) = &m.program.condition {
        let number = m.program.shared.first().copied().flatten();
        if m.part(number, |m| holds(m, condition).map(Some))? != Some(true) {
            return Ok(false);
        }
    }
    if plan.where_first {
        m.make_room(plan.registers, &Value::Missing);
        make(m, &plan.fields)?;
    }
    let (Some(each), Some(round)) = (&m.program.each, &plan.foreach) else {
        if traced {
            trace(m, &plan.row, out);
        }
        emit_all(m, 0, out)?;
        return Ok(true);
    };
    let collection = m.eval(&each.collection)?;
    let made = foreach::each(m, &each.paths, collection, out, |m, out| {
        if round.whole {
            let whole = m.whole_element();
            m.registers[round.item] = m.or_fail(whole, || "an element".to_owned())?;
        }
        if let Some(incase) = &each.incase
            && !holds(m, incase)?
        {
            return Ok(false);
        }
        m.registers[round.own..].fill(Value::Missing);
        make(m, &round.make)?;
        if traced {
            trace(m, &plan.row, out);
        }
        Ok(true)
    })?;
    if made.is_some_and(|rows| rows > 0) { Ok(true) } else { Err(Failure::NoResult) }
}

pub(crate) fn make(m: &mut Machine<'_, '_>, fields: &[Field]) -> Result<(), Failure> {
    for field in fields {
        if let Some(source) = field.source
            && m.copy(source, field.register)?
        {
            continue;
        }
        let value = m.eval(&field.code)?;
        m.forget_copy(field.register);
        let Some(register) = m.registers.get_mut(field.register) else { continue };
        if field.path.is_empty() {
            *register = value;
            continue;
        }
        let into = std::mem::replace(register, Value::Missing);
        let into = match into {
            Value::Text(text) if field.decode => values::decoded(text).unwrap_or(Value::Missing),
            other => other,
        };
        let put = values::put(into, &field.path, value.into_owned());
        let put = m.weighed(put)?;
        if let Some(register) = m.registers.get_mut(field.register) {
            *register = put;
        }
    }
    Ok(())
}

fn holds(m: &mut Machine<'_, '_>, code: &Code) -> Result<bool, Failure> {
    let program = m.program;
    // The commonest condition of all does not need the stack.
    if let Some([Op::Emqx(EmqxOp::Slot { node, walk }), Op::Const(right), Op::Emqx(EmqxOp::Compare(op))]) =
        program.ops.get(code.clone())
        && *op != Binary::Match
    {
        *m.fuel = m.fuel.checked_sub(3).ok_or(Failure::OutOfFuel)?;
        let left = m.payload(*node, *walk)?;
        let Some(right) = program.constants.get(*right as usize) else { return Ok(false) };
        return m.compared_strictly(*op, &left, right);
    }
    match m.eval(code)? {
        Value::Bool(truth) => Ok(truth),
        other => {
            m.error(TypeError::TypeMismatch, || format!("a condition that is {}", other.type_name()));
            Err(Failure::Exception)
        }
    }
}

// === the row ===

/// The row as an object.
fn row(m: &mut Machine<'_, '_>, plan: &RowPlan) -> Map {
    let mut row = if plan.message { message(m) } else { Map::new() };
    for (name, register) in &plan.names {
        let value = match m.copied(*register).and_then(|text| std::str::from_utf8(text).ok()) {
            Some(text) => Value::Json(text.into()),
            None => m.registers.get(*register).cloned().unwrap_or(Value::Missing),
        };
        row.insert(name.clone(), value.into_owned());
    }
    row
}

/// Appends the row as JSON.
pub(crate) fn write_row(m: &mut Machine<'_, '_>, plan: &RowPlan, out: &mut Vec<u8>) -> Result<(), Failure> {
    if plan.message {
        let row = row(m, plan);
        Value::map(row).write_json(out);
        return bounded(out);
    }
    let mut before = b'{';
    for ((_, register), label) in plan.names.iter().zip(&plan.labels) {
        out.push(before);
        before = b',';
        out.extend_from_slice(label);
        m.write_column(*register, &Value::Missing, out);
        bounded(out)?;
    }
    if plan.names.is_empty() {
        out.push(before);
    }
    out.push(b'}');
    Ok(())
}

/// The row for `rules eval` and `test`.
fn trace(m: &mut Machine<'_, '_>, plan: &RowPlan, out: &mut Rows) {
    if !out.row.is_empty() {
        out.row.push(b',');
    }
    write_case(&Value::map(row(m, plan)), &mut out.row);
}

/// A value as cases have it: floats with a point, bytes in hex, members that are missing not there.
fn write_case(value: &Value<'_>, out: &mut Vec<u8>) {
    match value {
        Value::Missing => out.extend_from_slice(b"null"),
        Value::List(items) => {
            out.push(b'[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                write_case(item, out);
            }
            out.push(b']');
        }
        Value::Map(members) => {
            out.push(b'{');
            let there = members.iter().filter(|(_, value)| !matches!(value, Value::Missing));
            for (at, (key, value)) in there.enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                crate::value::write_json_text(key, out);
                out.push(b':');
                write_case(value, out);
            }
            out.push(b'}');
        }
        other => other.write_json(out),
    }
}

/// All columns of the message.
fn message(m: &mut Machine<'_, '_>) -> Map {
    let mut columns = Map::new();
    if m.input.event.is_none() {
        for column in Column::EMQX_PUBLISH {
            let value = column_of(m, column);
            if !matches!(value, Value::Missing) {
                columns.insert(column.name().to_owned(), value.into_owned());
            }
        }
    }
    for column in [Column::Event, Column::Timestamp, Column::Node, Column::Metadata] {
        let value = column_of(m, column);
        columns.insert(column.name().to_owned(), value.into_owned());
    }
    for (name, value) in m.input.columns.into_iter().flatten() {
        columns.insert(name.clone(), Value::from_case(value).into_owned());
    }
    columns
}

/// A column; missing where the message has none.
pub(crate) fn column_of<'a>(m: &mut Machine<'a, '_>, column: Column) -> Value<'a> {
    if let Some(value) = m.input.columns.and_then(|c| c.get(column.name())) {
        return Value::from_case(value);
    }
    if m.input.event.is_some() && !column.is_general() {
        return Value::Missing;
    }
    if column == Column::Metadata {
        let rule = m.program.emqx.as_ref().map_or("", |plan| plan.rule.as_str());
        return Value::map(
            [("rule_id".to_owned(), Value::Text(rule.to_owned().into()))].into_iter().collect(),
        );
    }
    match m.column(column) {
        Value::Null => Value::Missing,
        value => value,
    }
}

// === operations ===

impl<'a> Machine<'a, '_> {
    /// One operation; where to go on, if not behind it.
    pub(crate) fn emqx(&mut self, op: EmqxOp) -> Result<Option<u32>, Failure> {
        let program = self.program;
        let value = match op {
            EmqxOp::Walk(walk) => {
                let value = self.pop();
                self.walk(value, walk)?
            }
            EmqxOp::Slot { node, walk } => self.payload(node, walk)?,
            EmqxOp::ElementSlot { node, walk } => self.member_of_element(node, walk)?,
            EmqxOp::Index => {
                let index = self.pop();
                let base = self.pop();
                let step = match index {
                    Value::Int(index) => Some(Walk::Index(index)),
                    Value::Text(key) => Some(Walk::Key(key.into_owned())),
                    _ => None,
                };
                match step {
                    Some(step) => {
                        let value = values::walk(base, &step);
                        self.or_fail(value, || "a path".to_owned())?
                    }
                    None => Value::Missing,
                }
            }
            EmqxOp::Column(column) => column_of(self, column),
            EmqxOp::Extra(name) => match constant(program, name) {
                Value::Text(name) => {
                    self.input.columns.and_then(|c| c.get(&*name)).map_or(Value::Missing, Value::from_case)
                }
                _ => Value::Missing,
            },
            EmqxOp::TopicLevel => {
                let level = match self.pop() {
                    Value::Int(index @ 1..) => {
                        topic_level(self.input.topic, index).ok_or(TypeError::BadArgument)
                    }
                    _ => Err(TypeError::BadArgument),
                };
                self.or_fail(level.map(|level| Value::Text(level.into())), || "topic()".to_owned())?
            }
            EmqxOp::Compare(Binary::Match) => {
                let (filter, topic) = (self.pop(), self.pop());
                let matched = match (&topic, &filter) {
                    (Value::Text(topic), Value::Text(filter)) => {
                        Ok(crate::check::filter_matches(filter, topic))
                    }
                    (Value::Missing, _) | (_, Value::Missing) => Ok(false),
                    _ => Err(TypeError::TypeMismatch),
                };
                self.or_fail(matched.map(Value::Bool), || "=~".to_owned())?
            }
            EmqxOp::Compare(op) => {
                let (right, left) = (self.pop(), self.pop());
                Value::Bool(self.compared_strictly(op, &left, &right)?)
            }
            EmqxOp::Arithmetic(op) => {
                let (right, left) = (self.pop(), self.pop());
                let value = values::arithmetic(op, &left, &right);
                self.or_fail(value, || format!("{} {} {}", left.type_name(), op.symbol(), right.type_name()))?
            }
            EmqxOp::Negate => {
                let of = self.pop();
                let value = values::negate(&of);
                self.or_fail(value, || format!("`-` of {}", of.type_name()))?
            }
            EmqxOp::Not => Value::Bool(matches!(self.pop(), Value::Bool(false))),
            EmqxOp::Condition => {
                let truth = match self.pop() {
                    truth @ Value::Bool(_) => Ok(truth),
                    _ => Err(TypeError::TypeMismatch),
                };
                self.or_fail(truth, || "a condition that is no boolean".to_owned())?
            }
            EmqxOp::Same => {
                let (right, left) = (self.pop(), self.pop());
                Value::Bool(values::same(&left, &right))
            }
            EmqxOp::In { count, negated } => {
                let first = self.stack.len().saturating_sub(count as usize);
                let (rest, items) = self.stack.split_at(first);
                let of = rest.last().unwrap_or(&Value::Missing);
                let found = items.iter().any(|item| values::same(of, item));
                self.stack.truncate(first.saturating_sub(1));
                Value::Bool(found != negated)
            }
            EmqxOp::JumpIfPresent(to) => {
                if !matches!(self.stack.last(), Some(Value::Missing)) {
                    return Ok(Some(to));
                }
                self.pop();
                return Ok(None);
            }
            EmqxOp::JumpUnless(to) => {
                return match self.pop() {
                    Value::Bool(truth) => Ok((!truth).then_some(to)),
                    _ => {
                        self.error(TypeError::TypeMismatch, || "a condition that is no boolean".to_owned());
                        Err(Failure::Exception)
                    }
                };
            }
            EmqxOp::Integers(walk) => match program.walks.get(walk as usize).map(Vec::as_slice) {
                Some([Walk::Range(from, to)]) => {
                    let list = values::integers(*from, *to);
                    self.or_fail(list, || format!("[{from}..{to}]"))?
                }
                _ => Value::Missing,
            },
            EmqxOp::List(count) => {
                let first = self.stack.len().saturating_sub(count as usize);
                let list = Value::list(self.stack.drain(first..).map(Value::into_owned).collect());
                self.weighed(list)?
            }
        };
        self.stack.push(value);
        Ok(None)
    }

    #[inline]
    fn compared_strictly(
        &mut self,
        op: Binary,
        left: &Value<'_>,
        right: &Value<'_>,
    ) -> Result<bool, Failure> {
        values::compare(op, left, right).map_err(|error| {
            self.error(error, || format!("{} {} {}", left.type_name(), op.symbol(), right.type_name()));
            Failure::Exception
        })
    }

    /// A value that was made, if it is not too large to be written.
    pub(crate) fn weighed(&mut self, value: Value<'a>) -> Result<Value<'a>, Failure> {
        if !matches!(value, Value::List(_) | Value::Map(_)) {
            return Ok(value);
        }
        let mut nodes = NODES_MAX;
        let weighed = value.weigh(&mut nodes, DEPTH_MAX);
        *self.fuel = self.fuel.checked_sub((NODES_MAX - nodes) as u64).ok_or(Failure::OutOfFuel)?;
        self.or_fail(weighed.map(|()| value), || "an array or object".to_owned())
    }

    fn walk(&mut self, mut value: Value<'a>, walk: u32) -> Result<Value<'a>, Failure> {
        for step in self.program.walks.get(walk as usize).into_iter().flatten() {
            let inner = values::walk(value, step);
            value = self.or_fail(inner, || "a range `[a..b]`".to_owned())?;
        }
        Ok(value)
    }

    /// What the element has down a path.
    pub(crate) fn member_of_element(&mut self, node: NodeId, walk: u32) -> Result<Value<'a>, Failure> {
        let Some(each) = &self.program.each else { return Ok(Value::Missing) };
        match self.element_slot(&each.paths, node) {
            Ok(None) => Ok(Value::Missing),
            Ok(Some(value)) => self.or_fail(value, || "a number in the payload".to_owned()),
            Err(LookInside) => {
                let whole = self.whole_element();
                let whole = self.or_fail(whole, || "an element".to_owned())?;
                self.walk(whole, walk)
            }
        }
    }

    /// What the payload has down a path. The shared scan finds it, or what is on its way: text that is JSON itself, a list
    /// that is counted from its end.
    pub(crate) fn payload(&mut self, node: NodeId, walk: u32) -> Result<Value<'a>, Failure> {
        let payload = self.input.payload;
        if self.input.event.is_some() && payload.is_empty() {
            return Ok(Value::Missing);
        }
        let found = match self.scan.find(&self.program.paths, payload, node) {
            Ok(found) => found,
            Err(JsonError::Invalid) => {
                self.unreadable();
                return Err(Failure::Exception);
            }
            Err(JsonError::TooDeep) => return Err(Failure::TooDeep),
        };
        if let Some(found) = found {
            let value = self.read(payload, found);
            return self.or_fail(value, || "a number in the payload".to_owned());
        }
        // Only in text is there more than the scan has seen.
        let above = self.scan.above(&self.program.paths, node);
        if !above.is_some_and(|found| matches!(found.kind, json::Kind::Text | json::Kind::Escaped)) {
            return Ok(Value::Missing);
        }
        let whole = json::document(payload).ok().and_then(|found| Value::found(payload, found).ok());
        self.walk(whole.unwrap_or(Value::Missing), walk)
    }
}
