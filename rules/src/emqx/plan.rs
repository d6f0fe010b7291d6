//! A query of EMQX's dialect to its program.
//!
//! Each name that a list makes has a register. What a name means is found in layers (see the module above): the list in hand,
//! the element of the loop, the list of FOREACH, the message.

use std::collections::BTreeSet;

use super::run::{Field, Loop, Plan, RowPlan};
use crate::diagnostic::nearest;
use crate::foreach::Each;
use crate::formats::Schemas;
use crate::functions;
use crate::jq::Jq;
use crate::paths::{NodeId, PathStep, Paths};
use crate::plan::{MAX_ITEMS, Mistake, Plans, leaves_of};
use crate::program::{
    Code, Column, ConditionPart, EmqxOp, ItemId, Op, Part, Program, Template, Walk, label, number,
};
use crate::sql::ast::{Access, Expr, ExprKind, Foreach, Item, Name, Put, Query};
use crate::sql::cursor::shorten;
use crate::template::{self, Piece};
use crate::value::Value;
use crate::{Keeps, Span};

/// Names with their registers.
type Names = Vec<(String, ItemId)>;

/// Which part of the query is compiled: it decides what names mean.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// The SELECT list, or the one of FOREACH.
    List,
    /// WHERE.
    Condition,
    /// INCASE.
    Incase,
    /// The list of DO.
    Make,
    /// A template.
    Template,
}

pub(crate) struct Planner<'p> {
    text: &'p str,
    schemas: &'p Schemas,
    paths: &'p mut Paths,
    jq: &'p mut Jq,
    program: Program,
    plan: Plan,
    mistakes: Vec<Mistake>,
    /// What the first list makes, what the loop calls its element, what DO makes.
    list: Names,
    item: Option<(String, ItemId)>,
    made: Names,
    each: Each,
    /// Somebody reads the whole element.
    whole: bool,
    /// Where each register got its name.
    spans: Vec<(ItemId, Span)>,
    /// `*` was in the list in hand.
    star: bool,
}

impl<'p> Planner<'p> {
    pub(crate) fn new(
        rule: &str,
        query: &Query,
        text: &'p str,
        schemas: &'p Schemas,
        paths: &'p mut Paths,
        jq: &'p mut Jq,
    ) -> Self {
        let mut p = Planner {
            text,
            schemas,
            paths,
            jq,
            program: Program::default(),
            plan: Plan { rule: rule.to_owned(), ..Plan::default() },
            mistakes: Vec::new(),
            list: Names::new(),
            item: None,
            made: Names::new(),
            each: Each::default(),
            whole: false,
            spans: Vec::new(),
            star: false,
        };
        let all = query.items.len() + query.foreach.iter().flat_map(|f| &f.make).map(Vec::len).sum::<usize>();
        if all > MAX_ITEMS {
            let span = query.items.first().map_or(Span::default(), Item::span);
            p.mistake(span, format!("a rule has at most {MAX_ITEMS} items in its lists"), None);
            return p;
        }
        (p.plan.fields, p.plan.places.fields) = p.fields(&query.items, Place::List);
        if let Some(condition) = &query.condition {
            let (code, parts, places) = p.condition_in_parts(condition, Place::Condition);
            p.program.condition = Some(code);
            p.program.condition_parts = parts;
            p.plan.places.condition = places;
            condition.span.of(text).clone_into(&mut p.plan.condition_text);
        }
        let list = RowPlan { message: p.star, names: p.list.clone(), ..RowPlan::default() };
        match &query.foreach {
            Some(foreach) => p.foreach(query, foreach),
            None => p.plan.row = list,
        }
        p
    }

    fn foreach(&mut self, query: &Query, foreach: &Foreach) {
        let Some(Item::Expr { expr, alias }) = query.items.last() else {
            let span = query.items.last().map_or(Span::default(), Item::span);
            self.mistake(span, "FOREACH needs a list to go through", None);
            return;
        };
        let start = self.here();
        match &expr.kind {
            // Text alone is no list; the payload is decoded.
            ExprKind::Column(name) if name == "payload" => self.emit_payload(&[]),
            _ => {
                let name = alias.as_ref().and_then(|a| match a.path.as_slice() {
                    [Put::Key(name)] => register(&self.list, name),
                    _ => None,
                });
                match name {
                    Some(register) => drop(self.emit(Op::Register(number(register)))),
                    None => self.emit_expr(expr, Place::List),
                }
            }
        }
        let collection = start..self.here();
        self.plan.places.collection = expr.span;
        self.each.text = expr.span.of(self.text).to_owned();
        let name = match alias.as_ref().map(|alias| alias.path.as_slice()) {
            Some([Put::Key(name)]) => name.clone(),
            Some(_) => {
                self.mistake(expr.span, "the element of the loop needs a plain name", None);
                return;
            }
            None => "item".to_owned(),
        };
        let item = self.register();
        self.spans.push((item, expr.span));
        self.item = Some((name.clone(), item));
        let incase = foreach.incase.as_ref().map(|incase| {
            let (code, parts, places) = self.condition_in_parts(incase, Place::Incase);
            self.each.incase_parts = parts;
            self.plan.places.incase = places;
            code
        });
        self.each.collection = collection;
        self.each.incase = incase;
        let own = self.plan.registers;
        let make = match &foreach.make {
            Some(items) => {
                self.star = false;
                let (make, places) = self.fields(items, Place::Make);
                self.plan.places.make = places;
                self.plan.row =
                    RowPlan { message: self.star, names: self.made.clone(), ..RowPlan::default() };
                make
            }
            None => {
                let mut names = self.list.clone();
                names.retain(|(known, _)| *known != name);
                names.push((name, item));
                self.whole = true;
                self.plan.row = RowPlan { message: true, names, ..RowPlan::default() };
                Vec::new()
            }
        };
        // Templates may read it as well: that is known when they are compiled.
        self.plan.foreach = Some(Loop { item, whole: false, make, own });
    }

    fn mistake(&mut self, span: Span, message: impl Into<String>, hint: Option<String>) {
        self.mistakes.push((span, message.into(), hint));
    }

    /// A value alone is no condition, not even when it is a boolean: there it fails for every message.
    fn condition(&mut self, condition: &Expr) {
        if matches!(condition.kind, ExprKind::Column(_) | ExprKind::Access(..)) {
            let text = shorten(condition.span.of(self.text));
            let hint = Some(format!("write `{text} = true`"));
            self.mistake(condition.span, format!("`{text}` alone is no condition in EMQX's language"), hint);
        }
    }

    /// A condition, and each part of a conjunction alone: its code, what it reads, where it stands.
    fn condition_in_parts(
        &mut self,
        condition: &Expr,
        place: Place,
    ) -> (Code, Vec<ConditionPart>, Vec<Span>) {
        self.condition(condition);
        let start = self.here();
        let parts: Vec<(&Expr, Code)> = match &condition.kind {
            ExprKind::And(parts) => {
                let codes = self.junction(parts, place, true);
                parts.iter().zip(codes).collect()
            }
            _ => {
                self.emit_expr(condition, place);
                vec![(condition, start..self.here())]
            }
        };
        let whole = start..self.here();
        let places = parts.iter().map(|(part, _)| part.span).collect();
        let parts = parts.into_iter().map(|(part, code)| {
            let mut leaves = Vec::new();
            leaves_of(part, &mut leaves);
            let mut reads: Vec<(String, Code)> = Vec::new();
            for leaf in leaves {
                let text = leaf.span.of(self.text);
                if reads.iter().all(|(known, _)| known != text) {
                    reads.push((text.to_owned(), self.expression(leaf, place)));
                }
            }
            ConditionPart { text: part.span.of(self.text).to_owned(), code, reads }
        });
        (whole, parts.collect(), places)
    }

    fn register(&mut self) -> ItemId {
        self.plan.registers += 1;
        self.plan.registers - 1
    }

    // === lists ===

    /// The fields of a list, and where each stands.
    fn fields(&mut self, items: &[Item], place: Place) -> (Vec<Field>, Vec<Span>) {
        let mut fields: Vec<Field> = Vec::new();
        let mut places = Vec::new();
        for item in items {
            match item {
                Item::Star(_) => {
                    self.star = true;
                    // The message's columns take the place of what has their names.
                    let names = if place == Place::Make { &self.made } else { &self.list };
                    let again: Vec<(Column, ItemId)> =
                        names.iter().filter_map(|(name, at)| Some((Column::named(name)?, *at))).collect();
                    for (column, register) in again {
                        let start = self.here();
                        self.emit(Op::Emqx(EmqxOp::Column(column)));
                        let code = start..self.here();
                        fields.push(Field { code, register, path: Vec::new(), decode: false, source: None });
                    }
                }
                Item::Expr { expr, alias } => {
                    let code = self.expression(expr, place);
                    let path = match alias {
                        Some(alias) => alias.path.clone(),
                        None => self.own_path(expr),
                    };
                    let Some((Put::Key(root), rest)) = path.split_first() else { continue };
                    let names = if place == Place::Make { &self.made } else { &self.list };
                    let register = match register(names, root) {
                        Some(register) => register,
                        None => {
                            let fresh = self.register();
                            self.spans.push((fresh, alias.as_ref().map_or(expr.span, |alias| alias.span)));
                            // `*, 1 AS payload.x`: into the column that `*` brought.
                            if let (true, false, Some(column)) =
                                (self.star, rest.is_empty(), Column::named(root))
                            {
                                let start = self.here();
                                self.emit(Op::Emqx(EmqxOp::Column(column)));
                                let code = start..self.here();
                                fields.push(Field {
                                    code,
                                    register: fresh,
                                    path: Vec::new(),
                                    decode: false,
                                    source: None,
                                });
                            }
                            let names = if place == Place::Make { &mut self.made } else { &mut self.list };
                            names.push((root.clone(), fresh));
                            fresh
                        }
                    };
                    fields.push(Field {
                        code,
                        register,
                        path: rest.to_vec(),
                        decode: root == "payload",
                        source: None,
                    });
                }
            }
            places.resize(fields.len(), item.span());
        }
        (fields, places)
    }

    /// Where an item without AS goes.
    fn own_path(&self, expr: &Expr) -> Vec<Put> {
        let words = || vec![Put::Key(shorten(expr.span.of(self.text)))];
        match &expr.kind {
            ExprKind::Column(name) | ExprKind::Text(name) => vec![Put::Key(name.clone())],
            ExprKind::Access(base, steps) => match &base.kind {
                ExprKind::Column(name) => {
                    let mut path = vec![Put::Key(name.clone())];
                    for step in steps {
                        match step {
                            Access::Key(key) => path.push(Put::Key(key.clone())),
                            Access::Index(0) => path.push(Put::First),
                            Access::Index(index) => path.push(Put::At(*index)),
                            Access::Range(..) => {}
                            Access::Computed(_) => return words(),
                        }
                    }
                    path
                }
                _ => words(),
            },
            _ => words(),
        }
    }

    // === expressions ===

    fn here(&self) -> usize {
        self.program.here()
    }

    fn emit(&mut self, op: Op) -> usize {
        self.program.emit(op)
    }

    fn expression(&mut self, expr: &Expr, place: Place) -> Code {
        let start = self.here();
        self.emit_expr(expr, place);
        start..self.here()
    }

    fn emit_constant(&mut self, value: Value<'static>) {
        let constant = self.program.constant(value);
        self.emit(Op::Const(constant));
    }

    /// Recursion is bounded by the expression's depth.
    fn emit_expr(&mut self, expr: &Expr, place: Place) {
        match &expr.kind {
            ExprKind::Null => self.emit_constant(Value::Missing),
            ExprKind::Bool(b) => self.emit_constant(Value::Bool(*b)),
            ExprKind::Int(i) => self.emit_constant(Value::Int(*i)),
            ExprKind::Float(f) => self.emit_constant(Value::Float(*f)),
            ExprKind::Big(digits) => self.emit_constant(Value::Big(digits.clone().into())),
            ExprKind::Text(text) => self.emit_constant(Value::Text(text.clone().into())),
            ExprKind::Column(name) => self.emit_name(name, &[], place),
            ExprKind::Access(base, steps) => match &base.kind {
                ExprKind::Column(name) => self.emit_name(name, steps, place),
                _ => {
                    self.emit_expr(base, place);
                    self.emit_walk(steps, None, place);
                }
            },
            ExprKind::Negate(of) => {
                self.emit_expr(of, place);
                self.emit(Op::Emqx(EmqxOp::Negate));
            }
            ExprKind::Not(of) => {
                self.emit_expr(of, place);
                self.emit(Op::Emqx(EmqxOp::Not));
            }
            ExprKind::And(parts) => drop(self.junction(parts, place, true)),
            ExprKind::Or(parts) => drop(self.junction(parts, place, false)),
            ExprKind::Binary(op, left, right) => {
                self.emit_expr(left, place);
                self.emit_expr(right, place);
                self.emit(Op::Emqx(match op.is_comparison() {
                    true => EmqxOp::Compare(*op),
                    false => EmqxOp::Arithmetic(*op),
                }));
            }
            ExprKind::In { of, items, negated } => {
                self.emit_expr(of, place);
                for item in items {
                    self.emit_expr(item, place);
                }
                self.emit(Op::Emqx(EmqxOp::In { count: number(items.len()), negated: *negated }));
            }
            ExprKind::Case { of, whens, otherwise } => {
                self.emit_case(of.as_deref(), whens, otherwise.as_deref(), place);
            }
            ExprKind::Call { name, args } => self.emit_call(name, args, place),
            ExprKind::Array(items) => {
                for item in items {
                    // `"topic"` in a list is the column of that name, as everywhere.
                    self.emit_expr(item, place);
                }
                self.emit(Op::Emqx(EmqxOp::List(number(items.len()))));
            }
            ExprKind::Range(from, to) => {
                let walk = self.program.walk(vec![Walk::Range(*from, *to)]);
                self.emit(Op::Emqx(EmqxOp::Integers(walk)));
            }
            ExprKind::IsNull { .. } | ExprKind::Between { .. } => {
                self.mistake(expr.span, "this is not in EMQX's language", None);
            }
        }
    }

    fn emit_case(
        &mut self,
        of: Option<&Expr>,
        whens: &[(Expr, Expr)],
        otherwise: Option<&Expr>,
        place: Place,
    ) {
        if let Some(of) = of {
            self.emit_expr(of, place);
        }
        let mut ends = Vec::new();
        for (when, then) in whens {
            if of.is_some() {
                self.emit(Op::Duplicate);
            }
            self.emit_expr(when, place);
            if of.is_some() {
                self.emit(Op::Emqx(EmqxOp::Same));
            }
            let skip = self.emit(Op::Emqx(EmqxOp::JumpUnless(0)));
            if of.is_some() {
                self.emit(Op::Drop);
            }
            self.emit_expr(then, place);
            ends.push(self.emit(Op::Jump(0)));
            self.program.land(skip);
        }
        if of.is_some() {
            self.emit(Op::Drop);
        }
        match otherwise {
            Some(otherwise) => self.emit_expr(otherwise, place),
            None => self.emit_constant(Value::Missing),
        }
        for end in ends {
            self.program.land(end);
        }
    }

    /// AND and OR end with the first operand that decides. The code of each operand alone.
    fn junction(&mut self, parts: &[Expr], place: Place, and: bool) -> Vec<Code> {
        let mut ends = Vec::new();
        let mut alone = Vec::new();
        for (at, operand) in parts.iter().enumerate() {
            if at > 0 {
                self.emit(Op::Drop);
            }
            self.condition(operand);
            alone.push(self.expression(operand, place));
            self.emit(Op::Emqx(EmqxOp::Condition));
            if at + 1 < parts.len() {
                ends.push(self.emit(if and { Op::JumpIfFalse(0) } else { Op::JumpIfTrue(0) }));
            }
        }
        for end in ends {
            self.program.land(end);
        }
        alone
    }

    fn emit_call(&mut self, name: &Name, args: &[Expr], place: Place) {
        if self.context(name, args, place) {
            return;
        }
        let found = functions::emqx_id(&name.text);
        let Some((id, function)) = found.and_then(|id| Some((id, functions::function_of(id)?))) else {
            if name.text == "ai_completion" {
                let hint = "send the rows to a service by a sink, and let it publish what comes of them";
                let message = "`ai_completion` is not there: a rule asks nobody while a publisher waits";
                self.mistake(name.span, message, Some(hint.to_owned()));
                return;
            }
            let names = functions::emqx::names();
            let message = match nearest(&name.text, names) {
                Some(near) => format!("unknown function `{}`; did you mean `{near}`?", name.text),
                None => format!("unknown function `{}`", name.text),
            };
            self.mistake(name.span, message, Some("all functions: docs/rules-emqx.md".to_owned()));
            return;
        };
        let (min, max) = (function.min, function.max);
        if args.len() < min || args.len() > max {
            let takes = if min == max { format!("{min}") } else { format!("{min} to {max}") };
            self.mistake(
                name.span,
                format!(
                    "`{}` takes {takes} argument{}, found {}",
                    name.text,
                    if takes == "1" { "" } else { "s" },
                    args.len()
                ),
                None,
            );
            return;
        }
        self.mistakes.extend(self.schemas.misnamed(function.name, args));
        if function.name.starts_with("kv_store_") {
            self.program.keeps = Some(Keeps::Shared);
        }
        if name.text == "jq" {
            self.mistakes.extend(self.jq.mistake(name, args, self.text));
        }
        for arg in args {
            self.emit_expr(arg, place);
        }
        self.emit(Op::Call { function: number(id), args: number(args.len()) });
    }

    /// Functions that read the message. In WHERE and INCASE they see none.
    fn context(&mut self, name: &Name, args: &[Expr], place: Place) -> bool {
        let column = match (name.text.as_str(), args) {
            ("msgid", []) => Column::Id,
            ("qos", []) => Column::Qos,
            ("topic", [] | [_]) => Column::Topic,
            ("flags", []) | ("flag", [_]) => Column::Flags,
            ("clientid", []) => Column::ClientId,
            ("username", []) => Column::Username,
            ("clientip" | "peerhost", []) => Column::PeerHost,
            ("payload", [] | [_]) => Column::Payload,
            _ => return false,
        };
        if matches!(place, Place::Condition | Place::Incase) {
            self.emit_constant(Value::Missing);
            return true;
        }
        match (column, args) {
            (Column::Topic, [level]) => {
                self.emit_expr(level, place);
                self.emit(Op::Emqx(EmqxOp::TopicLevel));
            }
            (Column::Payload, [path]) => match &path.kind {
                ExprKind::Text(path) => {
                    let steps: Vec<Access> = path.split('.').map(|key| Access::Key(key.to_owned())).collect();
                    self.emit_payload(&steps);
                }
                _ => self.mistake(path.span, "the path of `payload()` is a string", None),
            },
            (Column::Flags, [flag]) => {
                self.emit(Op::Emqx(EmqxOp::Column(Column::Flags)));
                self.emit_expr(flag, place);
                self.emit(Op::Emqx(EmqxOp::Index));
            }
            (column, _) => drop(self.emit(Op::Emqx(EmqxOp::Column(column)))),
        }
        true
    }

    // === names ===

    fn emit_name(&mut self, name: &str, steps: &[Access], place: Place) {
        // What is being made comes first; where it has nothing, a field looks further.
        let own = match place {
            Place::List => register(&self.list, name),
            Place::Make => register(&self.made, name),
            _ => None,
        };
        let present = own.map(|own| {
            self.emit(Op::Register(number(own)));
            self.emit_walk(steps, Some(name), place);
            self.emit(Op::Emqx(EmqxOp::JumpIfPresent(0)))
        });
        let outer = match place {
            Place::List => None,
            Place::Condition => register(&self.list, name),
            Place::Incase | Place::Make | Place::Template => {
                let made = register(&self.made, name).filter(|_| place == Place::Template);
                let item = self.item.iter().find(|(item, _)| item == name).map(|(_, at)| *at);
                made.or(item).or_else(|| register(&self.list, name))
            }
        };
        match outer {
            Some(outer) if self.item.as_ref().is_some_and(|(_, item)| *item == outer) => {
                self.emit_element(outer, steps, place);
            }
            Some(outer) => {
                self.emit(Op::Register(number(outer)));
                self.emit_walk(steps, Some(name), place);
            }
            None => self.emit_column(name, steps, place),
        }
        if let Some(present) = present {
            self.program.land(present);
        }
    }

    /// The element of the loop, or what it has down a path: as far as that is static, its own scan finds it.
    fn emit_element(&mut self, item: ItemId, steps: &[Access], place: Place) {
        let walk: Vec<Walk> = steps.iter().map_while(walk_step).collect();
        let (node, scanned) = self.each.node(&walk);
        if scanned == 0 {
            self.whole = true;
            self.emit(Op::Register(number(item)));
        } else {
            let walk = self.program.walk(walk[..scanned].to_vec());
            self.emit(Op::Emqx(EmqxOp::ElementSlot { node, walk }));
        }
        let name = self.item.as_ref().map(|(name, _)| name.clone());
        self.emit_walk(&steps[scanned..], name.as_deref(), place);
    }

    fn emit_column(&mut self, name: &str, steps: &[Access], place: Place) {
        match Column::named(name).filter(|column| column.is_emqx()) {
            Some(Column::Payload) if !steps.is_empty() => {
                let fixed =
                    steps.iter().position(|s| matches!(s, Access::Computed(_))).unwrap_or(steps.len());
                let (fixed, rest) = steps.split_at(fixed);
                self.emit_payload(fixed);
                self.emit_walk(rest, Some("payload"), place);
            }
            Some(column) => {
                self.emit(Op::Emqx(EmqxOp::Column(column)));
                self.emit_walk(steps, Some(name), place);
            }
            // Events have columns of their own: what there is not is missing.
            None => {
                let column = self.program.constant(Value::Text(name.to_owned().into()));
                self.emit(Op::Emqx(EmqxOp::Extra(column)));
                self.emit_walk(steps, Some(name), place);
            }
        }
    }

    /// A static path into the payload: by the shared scan as far as that goes.
    fn emit_payload(&mut self, steps: &[Access]) {
        let walk: Vec<Walk> = steps.iter().filter_map(walk_step).collect();
        let mut path = Vec::new();
        for step in &walk {
            match step {
                Walk::Key(key) => path.push(PathStep::Key(key.clone())),
                Walk::Index(index) => match u32::try_from(index - 1) {
                    Ok(from_zero) => path.push(PathStep::Element(from_zero)),
                    Err(_) => break,
                },
                Walk::Range(..) => break,
            }
        }
        let (scanned, rest) = (path.len(), walk.get(path.len()..).unwrap_or(&[]).to_vec());
        let mut words = String::from("payload");
        for step in &walk[..scanned] {
            match step {
                Walk::Key(key) => words.push_str(&format!(".{key}")),
                Walk::Index(index) => words.push_str(&format!("[{index}]")),
                Walk::Range(..) => {}
            }
        }
        if !self.program.fields.contains(&words) {
            self.program.fields.push(words);
        }
        let node: NodeId = self.paths.insert(&path);
        let walk = self.program.walk(walk[..scanned].to_vec());
        self.emit(Op::Emqx(EmqxOp::Slot { node, walk }));
        if !rest.is_empty() {
            let rest = self.program.walk(rest);
            self.emit(Op::Emqx(EmqxOp::Walk(rest)));
        }
    }

    /// `steps` into the value on the stack. An index that is a path is one of the same `root`.
    fn emit_walk(&mut self, steps: &[Access], root: Option<&str>, place: Place) {
        let mut fixed = Vec::new();
        for step in steps {
            if let Some(step) = walk_step(step) {
                fixed.push(step);
                continue;
            }
            self.flush(&mut fixed);
            if let Access::Computed(index) = step {
                self.emit_index(index, root, place);
                self.emit(Op::Emqx(EmqxOp::Index));
            }
        }
        self.flush(&mut fixed);
    }

    fn emit_index(&mut self, index: &Expr, root: Option<&str>, place: Place) {
        let (name, steps) = match &index.kind {
            ExprKind::Column(name) => (name, &[][..]),
            ExprKind::Access(base, steps) => match &base.kind {
                ExprKind::Column(name) => (name, steps.as_slice()),
                _ => return self.emit_expr(index, place),
            },
            _ => return self.emit_expr(index, place),
        };
        if root != Some("payload") {
            return self.emit_expr(index, place);
        }
        let mut path = vec![Access::Key(name.clone())];
        path.extend_from_slice(steps);
        self.emit_name("payload", &path, place);
    }

    fn flush(&mut self, fixed: &mut Vec<Walk>) {
        if !fixed.is_empty() {
            let walk = self.program.walk(std::mem::take(fixed));
            self.emit(Op::Emqx(EmqxOp::Walk(walk)));
        }
    }
}

/// See [`Plan::where_first`]. EMQX makes the list first; only what can fail shows it.
fn is_where_first(program: &Program, plan: &Plan) -> bool {
    let Some(condition) = program.condition.clone().and_then(|code| program.ops.get(code)) else {
        return false;
    };
    let reads_list = condition.iter().any(|op| matches!(op, Op::Register(_)));
    // What is no JSON fails in either.
    let reads_payload = matches!(condition.first(), Some(Op::Emqx(EmqxOp::Slot { .. })));
    let is_plain = |code: &Code| match program.ops.get(code.clone()) {
        Some([Op::Emqx(EmqxOp::Slot { .. })]) => reads_payload,
        Some([Op::Emqx(EmqxOp::Column(_) | EmqxOp::Extra(_)) | Op::Const(_)]) => true,
        _ => false,
    };
    !reads_list && plan.fields.iter().all(|field| field.path.is_empty() && is_plain(&field.code))
}

fn walk_step(step: &Access) -> Option<Walk> {
    match step {
        Access::Key(key) => Some(Walk::Key(key.clone())),
        Access::Index(index) => Some(Walk::Index(*index)),
        Access::Range(from, to) => Some(Walk::Range(*from, *to)),
        Access::Computed(_) => None,
    }
}

fn register(names: &Names, name: &str) -> Option<ItemId> {
    names.iter().find(|(known, _)| known == name).map(|(_, at)| *at)
}

impl Plans for Planner<'_> {
    fn pieces(&self, text: &str) -> Result<Vec<Piece>, String> {
        Ok(template::parse_lenient(text))
    }

    fn template(&mut self, text: &str, _span: Span, _of: &str) -> Template {
        let parts = template::parse_lenient(text).into_iter().map(|piece| match piece {
            Piece::Text(text) => Part::Text(text),
            Piece::Row => Part::Row,
            Piece::Path { root, steps } => {
                let start = self.here();
                self.emit_name(&root, &steps, Place::Template);
                Part::Value(start..self.here())
            }
        });
        Template { parts: parts.collect() }
    }

    fn has_star(&self) -> bool {
        self.plan.row.message
    }

    fn row_columns(&self) -> Vec<(&str, Span)> {
        let span =
            |register: &ItemId| self.spans.iter().find(|(at, _)| at == register).map(|(_, span)| *span);
        let names = self.plan.row.names.iter();
        names.map(|(name, register)| (name.as_str(), span(register).unwrap_or_default())).collect()
    }

    fn finish(self: Box<Self>) -> (Program, Vec<Mistake>) {
        let Planner { mut program, mut plan, mistakes, each, whole, .. } = *self;
        if let Some(round) = &mut plan.foreach {
            round.whole = whole;
            program.each = Some(Box::new(each));
        }
        plan.where_first = is_where_first(&program, &plan);
        let lists = || plan.fields.iter().chain(plan.foreach.iter().flat_map(|round| &round.make));
        let put_into: BTreeSet<ItemId> = lists().filter(|f| !f.path.is_empty()).map(|f| f.register).collect();
        let round = plan.foreach.iter_mut().flat_map(|round| &mut round.make);
        for field in plan.fields.iter_mut().chain(round) {
            // The message's columns are put together as values.
            if !plan.row.message && !put_into.contains(&field.register) {
                field.source = program.source(&field.code, field.register);
            }
        }
        plan.row.labels = plan.row.names.iter().map(|(name, _)| label(name)).collect();
        program.emqx = Some(Box::new(plan));
        (program, mistakes)
    }
}
