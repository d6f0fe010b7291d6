//! AST to program: resolves names, numbers registers, lays the row out.

use std::collections::BTreeSet;

use crate::diagnostic::{nearest, nearest_few};
use crate::foreach::Each;
use crate::formats::Schemas;
use crate::functions;
use crate::jq::Jq;
use crate::paths::{NodeId, PathStep, Paths};
use crate::program::{
    Base, Code, Column, ConditionPart, ItemId, Layout, Node, Op, Part, Program, Template, Walk, number,
};
use crate::sql::ast::{Access, Binary, Expr, ExprKind, Foreach, Item, Name, Put, Query};
use crate::sql::cursor::shorten;
use crate::template::{self, Piece};
use crate::value::Value;
use crate::{Host, Keeps, Span, events};

/// The most items of a SELECT list.
pub(crate) const MAX_ITEMS: usize = 1024;

/// A mistake: where, what, hint.
pub(crate) type Mistake = (Span, String, Option<String>);

/// A planner as [`crate::check`] needs it.
pub(crate) trait Plans {
    /// Reads a template, as far as the dialect understands it.
    fn pieces(&self, text: &str) -> Result<Vec<Piece>, String> {
        template::parse(text)
    }
    /// Compiles a template that reads the row first, then the message.
    fn template(&mut self, text: &str, span: Span, of: &str) -> Template;
    /// Whether the row's columns are not all known by name.
    fn has_star(&self) -> bool;
    /// The first name of each column, and where it is given.
    fn row_columns(&self) -> Vec<(&str, Span)>;
    /// The program, and every mistake in the query and its templates.
    fn finish(self: Box<Self>) -> (Program, Vec<Mistake>);
}

/// Where an expression stands, which decides what names mean.
#[derive(Clone, Copy)]
enum Scope {
    Condition,
    /// This item of the SELECT list: aliases to its left are known.
    Item(ItemId),
    Template,
}

/// A named value of the row.
struct RowColumn {
    path: Vec<String>,
    item: ItemId,
    span: Span,
}

/// Compiles one query.
pub(crate) struct Planner<'p> {
    host: &'p Host,
    schemas: &'p Schemas,
    text: &'p str,
    paths: &'p mut Paths,
    jq: &'p mut Jq,
    program: Program,
    mistakes: Vec<Mistake>,
    columns: Vec<RowColumn>,
    star: bool,
    /// FROM names events: their columns are known.
    events: bool,
    /// What FOREACH calls its element.
    element: Option<String>,
    /// Of the next function that remembers by its place.
    places: i64,
    /// Where those stand that have one.
    placed: Vec<(Span, i64)>,
    /// An expression is compiled again, for `rules test`: its functions are in the places that they have.
    again: bool,
    each: Each,
    /// Items that each item reads.
    reads: Vec<BTreeSet<ItemId>>,
    /// Items that the current expression reads.
    needs: BTreeSet<ItemId>,
}

impl<'p> Planner<'p> {
    /// Compiles `query`, whose spans lie in `text`. Templates come afterwards, by [`Planner::template`].
    pub(crate) fn new(
        query: &Query,
        text: &'p str,
        host: &'p Host,
        schemas: &'p Schemas,
        paths: &'p mut Paths,
        jq: &'p mut Jq,
    ) -> Planner<'p> {
        let mut p = Planner {
            host,
            schemas,
            text,
            paths,
            jq,
            program: Program::default(),
            mistakes: Vec::new(),
            columns: Vec::new(),
            star: false,
            events: query.from.iter().any(|source| source.text.starts_with(events::PREFIX)),
            element: None,
            places: 0,
            placed: Vec::new(),
            again: false,
            each: Each::default(),
            reads: Vec::new(),
            needs: BTreeSet::new(),
        };
        if query.items.len() > MAX_ITEMS
            && let Some(first) = query.items.first()
        {
            p.mistake(first.span(), format!("a SELECT list has at most {MAX_ITEMS} items"), None);
            return p;
        }
        let list = match &query.foreach {
            None => &query.items,
            Some(foreach) => {
                p.foreach(query, foreach);
                // What is wrong without it has been said.
                foreach.make.as_ref().unwrap_or(&query.items)
            }
        };
        for item in list {
            match item {
                Item::Star(span) if p.star => p.mistake(*span, "`*` stands here twice", None),
                Item::Star(_) => p.star = true,
                Item::Expr { expr, alias } => {
                    let id = p.reads.len();
                    let code = p.expression(expr, Scope::Item(id));
                    p.program.items.push(code);
                    let needs = std::mem::take(&mut p.needs);
                    p.reads.push(needs);
                    let named = match alias {
                        Some(alias) => Some((keys(&alias.path), alias.span)),
                        None => p.own_name(expr).map(|name| (vec![name], expr.span)),
                    };
                    if let Some((path, span)) = named {
                        p.columns.push(RowColumn { path, item: id, span });
                    }
                }
            }
        }
        p.lay_out(list);
        p.program.payload_only = p.star && p.columns.is_empty();
        if let (Some(condition), None) = (&query.condition, &query.foreach) {
            p.condition(condition);
        }
        let mut before = std::mem::take(&mut p.needs);
        for id in (0..p.reads.len()).rev() {
            if before.contains(&id) {
                before.extend(p.reads[id].iter().copied());
            }
        }
        p.program.after = (0..p.reads.len()).filter(|id| !before.contains(id)).collect();
        p.program.before = before.into_iter().collect();
        p
    }

    /// What stands around the rows of a FOREACH: WHERE, which is asked once and knows no element, the array, INCASE.
    fn foreach(&mut self, query: &Query, foreach: &Foreach) {
        if let Some(condition) = &query.condition {
            self.condition(condition);
        }
        let (expr, alias) = match query.items.as_slice() {
            [Item::Expr { expr, alias }] => (expr, alias),
            items => {
                let span = items.last().map_or(Span::default(), Item::span);
                let hint = "what else a row needs stands in DO".to_owned();
                self.mistake(span, "FOREACH goes through one array", Some(hint));
                return;
            }
        };
        let collection = match &expr.kind {
            // Text is no array: what it says is meant.
            ExprKind::Column(name) if name == "payload" => {
                let start = self.here();
                self.emit_payload(&[], Scope::Condition);
                start..self.here()
            }
            _ => self.expression(expr, Scope::Condition),
        };
        let (name, span) = match alias {
            None => ("item".to_owned(), expr.span),
            Some(alias) => match alias.path.as_slice() {
                [Put::Key(name)] => (name.clone(), alias.span),
                _ => {
                    self.mistake(alias.span, "the element of the loop needs a plain name", None);
                    return;
                }
            },
        };
        if Column::named(&name).is_some() || self.is_extra(&name) {
            let hint = Some(format!("`AS {name}_1`, for example"));
            let message = format!("`{name}` is a column of the message: call the element something else");
            self.mistake(span, message, hint);
        }
        self.element = Some(name);
        if foreach.make.is_none() {
            let hint = "FOREACH payload.list AS e DO e.name AS name, e.value AS value FROM ...".to_owned();
            self.mistake(expr.span, "FOREACH needs DO with the columns of a row", Some(hint));
        }
        let incase = foreach.incase.as_ref().and_then(|incase| self.condition_in_parts(incase, "INCASE"));
        self.each.collection = collection;
        self.each.text = expr.span.of(self.text).to_owned();
        if let Some((incase, parts)) = incase {
            self.each.incase = Some(incase);
            self.each.incase_parts = parts;
        }
    }

    fn mistake(&mut self, span: Span, message: impl Into<String>, hint: Option<String>) {
        self.mistakes.push((span, message.into(), hint));
    }

    /// The name of a column without AS: a column's, a path's last key, a function's.
    fn own_name(&mut self, expr: &Expr) -> Option<String> {
        let name = match &expr.kind {
            ExprKind::Column(name) => Some(name.clone()),
            ExprKind::Access(_, steps) => match steps.last() {
                Some(Access::Key(key)) => Some(key.clone()),
                _ => None,
            },
            ExprKind::Call { name, .. } => Some(name.text.to_lowercase()),
            _ => None,
        };
        if name.is_none() {
            let hint = Some(format!("write `{} AS name`", shorten(expr.span.of(self.text))));
            self.mistake(expr.span, "this column has no name", hint);
        }
        name
    }

    // === the row ===

    fn lay_out(&mut self, list: &[Item]) {
        let mut row =
            Layout { base: if self.star { Base::Payload } else { Base::Nothing }, ..Layout::default() };
        let mut twice = Vec::new();
        let raw_payload = |item: ItemId| {
            let mut exprs = list.iter().filter_map(|i| match i {
                Item::Expr { expr, .. } => Some(expr),
                Item::Star(_) => None,
            });
            exprs.nth(item).is_some_and(|e| matches!(&e.kind, ExprKind::Column(name) if name == "payload"))
        };
        for column in &self.columns {
            if !put(&mut row, &column.path, column.item, &raw_payload) {
                twice.push((column.span, column.path.join(".")));
            }
        }
        for (span, name) in twice {
            self.mistake(
                span,
                format!("two columns are called `{name}`"),
                Some("rename one with AS".to_owned()),
            );
        }
        self.program.row = row;
    }

    /// What the row has under a path: a register and the rest of the path, or an object of nested aliases.
    fn in_row(&self, root: &str, steps: &[Access]) -> Option<Result<(ItemId, usize), Vec<String>>> {
        let mut node = self.program.row.children.iter().find(|(name, _)| name == root).map(|(_, n)| n)?;
        let mut path = vec![root.to_owned()];
        let mut used = 0;
        loop {
            match node {
                Node::Register(item) => return Some(Ok((*item, used))),
                Node::Object(layout) => match steps.get(used) {
                    None => return Some(Err(path)),
                    Some(Access::Key(key)) => match layout.children.iter().find(|(name, _)| name == key) {
                        Some((_, inner)) => {
                            node = inner;
                            path.push(key.clone());
                            used += 1;
                        }
                        // Not put there by an alias: what the object was before.
                        None => match layout.base {
                            Base::Register { item, decode: false } => return Some(Ok((item, used))),
                            _ => return None,
                        },
                    },
                    Some(_) => return None,
                },
            }
        }
    }

    // === WHERE ===

    fn condition(&mut self, condition: &Expr) {
        if let Some((code, parts)) = self.condition_in_parts(condition, "WHERE") {
            self.program.condition = Some(code);
            self.program.condition_parts = parts;
        }
    }

    /// A condition, and each part of a conjunction alone; `None` after a mistake.
    fn condition_in_parts(&mut self, condition: &Expr, word: &str) -> Option<(Code, Vec<ConditionPart>)> {
        if let Some(what) = never_true(condition) {
            let hint = matches!(condition.kind, ExprKind::Text(_))
                .then(|| "strings stand in '...', names in \"...\"".to_owned());
            self.mistake(condition.span, format!("{word} needs a condition, found {what}"), hint);
            return None;
        }
        let start = self.here();
        // Each conjunct's code is a range of its own inside the whole, so that `rules test` can run it alone.
        let parts: Vec<(&Expr, Code)> = match &condition.kind {
            ExprKind::And(parts) => self.junction(parts, Scope::Condition, true),
            _ => {
                self.emit_expr(condition, Scope::Condition);
                vec![(condition, start..self.here())]
            }
        };
        let whole = start..self.here();
        let mut alone = Vec::with_capacity(parts.len());
        for (part, code) in parts {
            let mut leaves = Vec::new();
            leaves_of(part, &mut leaves);
            self.again = true;
            let mut reads: Vec<(String, Code)> = Vec::new();
            for leaf in leaves {
                let text = leaf.span.of(self.text);
                if reads.iter().all(|(t, _)| t != text) {
                    let code = self.expression(leaf, Scope::Condition);
                    reads.push((text.to_owned(), code));
                }
            }
            self.again = false;
            let text = part.span.of(self.text).to_owned();
            alone.push(ConditionPart { text, code, reads });
        }
        Some((whole, alone))
    }

    // === templates ===

    fn template_name(&mut self, root: &str, steps: &[Access], span: Span, of: &str) {
        if self.element.as_deref() == Some(root) {
            self.emit_element(steps, Scope::Template);
        } else if let Some(column) = Column::named(root) {
            self.emit_column(column, steps, span, Scope::Template);
        } else if self.is_extra(root) {
            self.emit_extra(root, steps, Scope::Template);
        } else if self.star {
            let mut path = vec![Access::Key(root.to_owned())];
            path.extend_from_slice(steps);
            self.emit_payload(&path, Scope::Template);
        } else {
            let known = self.columns.iter().filter_map(|c| c.path.first().map(String::as_str));
            let known: Vec<&str> = known.chain(Column::ALL.iter().map(|(n, _)| *n)).collect();
            let hint = nearest(root, known.iter().copied())
                .map(|n| format!("did you mean `${{{n}}}`?"))
                .unwrap_or_else(|| {
                    format!("select it (`payload.{root} AS {root}`) or write `${{payload.{root}}}`")
                });
            self.mistake(
                span,
                format!("`${{{root}}}` in {of} is neither a column of the row nor of the message"),
                Some(hint),
            );
        }
    }

    // === expressions ===

    /// Compiles `expr` into a range of its own.
    fn expression(&mut self, expr: &Expr, scope: Scope) -> Code {
        let start = self.here();
        self.emit_expr(expr, scope);
        start..self.here()
    }

    fn here(&self) -> usize {
        self.program.here()
    }

    fn emit(&mut self, op: Op) -> usize {
        self.program.emit(op)
    }

    fn emit_constant(&mut self, value: Value<'static>) {
        let constant = self.program.constant(value);
        self.emit(Op::Const(constant));
    }

    /// Recursion is bounded by the expression's depth.
    fn emit_expr(&mut self, expr: &Expr, scope: Scope) {
        match &expr.kind {
            ExprKind::Null
            | ExprKind::Bool(_)
            | ExprKind::Int(_)
            | ExprKind::Float(_)
            | ExprKind::Big(_)
            | ExprKind::Range(..)
            | ExprKind::Text(_) => self.emit_constant(literal(&expr.kind).unwrap_or_default()),
            ExprKind::Column(name) => self.emit_name(name, &[], expr.span, scope),
            ExprKind::Access(base, steps) => match &base.kind {
                ExprKind::Column(name) => self.emit_name(name, steps, base.span, scope),
                _ => {
                    self.emit_expr(base, scope);
                    self.emit_walk(steps, scope);
                }
            },
            ExprKind::Negate(of) => {
                self.emit_expr(of, scope);
                self.emit(Op::Negate);
            }
            ExprKind::Not(of) => {
                self.emit_expr(of, scope);
                self.emit(Op::Not);
            }
            ExprKind::And(parts) => drop(self.junction(parts, scope, true)),
            ExprKind::Or(parts) => drop(self.junction(parts, scope, false)),
            ExprKind::Binary(op, left, right) => {
                if op.is_comparison()
                    && matches!((&left.kind, &right.kind), (ExprKind::Null, _) | (_, ExprKind::Null))
                {
                    let (what, form) = match op {
                        Binary::NotEq => ("<>", "IS NOT NULL"),
                        _ => (op.symbol(), "IS NULL"),
                    };
                    self.mistake(
                        expr.span,
                        format!("`{what} NULL` is never true"),
                        Some(format!("write `... {form}`")),
                    );
                }
                let start = self.here();
                self.emit_expr(left, scope);
                // One operation alone: the last of several may be a branch of a CASE.
                if op.is_comparison()
                    && self.here() == start + 1
                    && let Some(Op::Slot(node)) = self.program.ops.last().copied()
                    && let Some(value) = literal(&right.kind)
                {
                    let constant = self.program.constant(value);
                    self.program.ops.pop();
                    self.emit(Op::SlotCompare { node, op: *op, constant });
                    return;
                }
                self.emit_expr(right, scope);
                self.emit(if op.is_comparison() { Op::Compare(*op) } else { Op::Arithmetic(*op) });
            }
            ExprKind::IsNull { of, negated } => {
                self.emit_expr(of, scope);
                self.emit(Op::IsNull { negated: *negated });
            }
            ExprKind::In { of, items, negated } => {
                self.emit_expr(of, scope);
                for item in items {
                    self.emit_expr(item, scope);
                }
                self.emit(Op::In { count: number(items.len()), negated: *negated });
            }
            ExprKind::Between { of, low, high, negated } => {
                self.emit_expr(of, scope);
                self.emit_expr(low, scope);
                self.emit_expr(high, scope);
                self.emit(Op::Between { negated: *negated });
            }
            ExprKind::Case { of, whens, otherwise } => {
                if let Some(of) = of {
                    self.emit_expr(of, scope);
                }
                let mut ends = Vec::new();
                for (when, then) in whens {
                    if of.is_some() {
                        self.emit(Op::Duplicate);
                    }
                    self.emit_expr(when, scope);
                    if of.is_some() {
                        self.emit(Op::Same);
                    }
                    let skip = self.emit(Op::JumpUnlessTrue(0));
                    if of.is_some() {
                        self.emit(Op::Drop);
                    }
                    self.emit_expr(then, scope);
                    ends.push(self.emit(Op::Jump(0)));
                    self.program.land(skip);
                }
                if of.is_some() {
                    self.emit(Op::Drop);
                }
                match otherwise {
                    Some(otherwise) => self.emit_expr(otherwise, scope),
                    None => self.emit_constant(Value::Null),
                }
                for end in ends {
                    self.program.land(end);
                }
            }
            ExprKind::Call { name, args } => self.emit_call(name, args, scope),
            ExprKind::Array(items) => {
                for item in items {
                    self.emit_expr(item, scope);
                }
                self.emit(Op::Array(number(items.len())));
            }
        }
    }

    /// A chain of AND or OR: each part after the first is skipped once the result is certain.
    fn junction<'e>(&mut self, parts: &'e [Expr], scope: Scope, and: bool) -> Vec<(&'e Expr, Code)> {
        let mut skips = Vec::new();
        let mut ranges = Vec::new();
        for (i, part) in parts.iter().enumerate() {
            if let Some(what) = never_true(part) {
                let word = if and { "AND" } else { "OR" };
                self.mistake(part.span, format!("{word} needs a condition, found {what}"), None);
            }
            if i > 0 {
                skips.push(self.emit(if and { Op::JumpIfFalse(0) } else { Op::JumpIfTrue(0) }));
            }
            ranges.push((part, self.expression(part, scope)));
            if i > 0 {
                self.emit(if and { Op::And } else { Op::Or });
            }
        }
        for skip in skips {
            self.program.land(skip);
        }
        ranges
    }

    fn emit_call(&mut self, name: &Name, args: &[Expr], scope: Scope) {
        let found = functions::function_id(&name.text);
        let Some((id, function)) = found.and_then(|id| Some((id, functions::function_of(id)?))) else {
            let (message, hint) = unknown_function(&name.text);
            self.mistake(name.span, message, Some(hint));
            return;
        };
        if args.len() < function.min || args.len() > function.max {
            let takes = match (function.min, function.max) {
                (min, max) if min == max => format!("{min}"),
                (min, max) if max > 16 => format!("{min} or more"),
                (min, max) => format!("{min} to {max}"),
            };
            let plural = if takes == "1" { "" } else { "s" };
            self.mistake(
                name.span,
                format!("`{}` takes {takes} argument{plural}, found {}", function.name, args.len()),
                None,
            );
            return;
        }
        self.mistakes.extend(self.schemas.misnamed(function.name, args));
        let literals: Vec<Option<Value<'_>>> = args.iter().map(|arg| literal(&arg.kind)).collect();
        if let Some((at, message)) = functions::mistake(function.name, &literals)
            && let Some(arg) = args.get(at)
        {
            self.mistake(arg.span, message, None);
        }
        if function.name == "jq" {
            self.mistakes.extend(self.jq.mistake(name, args, self.text));
        }
        let mut count = args.len();
        if functions::is_own(function.name) {
            self.program.keeps = Some(Keeps::Own);
        }
        if functions::is_placed(function.name) {
            let had = self.placed.iter().find(|(span, _)| *span == name.span && self.again);
            let place = had.map_or(self.places, |(_, place)| *place);
            self.placed.push((name.span, place));
            self.emit_constant(Value::Int(place));
            self.places += 1;
            count += 1;
        }
        for arg in args {
            self.emit_expr(arg, scope);
        }
        self.emit(Op::Call { function: number(id), args: number(count) });
    }

    /// A name and what follows it: a column of the message, then an alias.
    fn emit_name(&mut self, name: &str, steps: &[Access], span: Span, scope: Scope) {
        if self.element.as_deref() == Some(name) {
            return self.emit_element(steps, scope);
        }
        if let Some(column) = Column::named(name) {
            return self.emit_column(column, steps, span, scope);
        }
        if self.is_extra(name) {
            return self.emit_extra(name, steps, scope);
        }
        let known = match scope {
            Scope::Item(item) => item,
            Scope::Condition | Scope::Template => usize::MAX,
        };
        let found = self.columns.iter().find_map(|column| {
            let (root, keys) = column.path.split_first()?;
            let covered = root == name
                && column.item < known
                && keys.len() <= steps.len()
                && keys.iter().zip(steps).all(|(key, step)| matches!(step, Access::Key(k) if k == key));
            covered.then_some((column.item, keys.len()))
        });
        if let Some((item, used)) = found {
            self.needs.insert(item);
            self.emit(Op::Register(number(item)));
            return self.emit_walk(&steps[used..], scope);
        }
        let aliases = self.columns.iter().filter(|c| c.item < known).filter_map(|c| c.path.first());
        let element = self.element.as_deref();
        let own = if self.events { &events::COLUMNS[..] } else { &[] };
        let names: Vec<&str> = (aliases.map(String::as_str))
            .chain(Column::ALL.iter().map(|(n, _)| *n))
            .chain(own.iter().copied())
            .chain(element)
            .collect();
        let near = nearest(name, names);
        let message = match near {
            Some(near) => format!("unknown column `{name}`; did you mean `{near}`?"),
            None => format!("unknown column `{name}`"),
        };
        let hint = if span.of(self.text).starts_with('"') {
            Some(format!("a string stands in single quotes: '{name}'"))
        } else {
            near.is_none().then(|| format!("a field of the payload is written `payload.{name}`"))
        };
        self.mistake(span, message, hint);
        self.emit_constant(Value::Null);
    }

    /// Whether [`crate::Message::columns`] may have it.
    fn is_extra(&self, name: &str) -> bool {
        self.host.extra_columns.iter().any(|c| c == name) || (self.events && events::COLUMNS.contains(&name))
    }

    fn emit_extra(&mut self, name: &str, steps: &[Access], scope: Scope) {
        let name = self.program.constant(Value::Text(name.to_owned().into()));
        self.emit(Op::Extra(name));
        self.emit_walk(steps, scope);
    }

    fn emit_column(&mut self, column: Column, steps: &[Access], span: Span, scope: Scope) {
        let key = |i: usize| match steps.get(i) {
            Some(Access::Key(key)) => Some(key.as_str()),
            _ => None,
        };
        match column {
            Column::Payload if !steps.is_empty() => self.emit_payload(steps, scope),
            Column::Topic if !steps.is_empty() => {
                match &steps[0] {
                    Access::Index(index) => match i32::try_from(*index) {
                        Ok(index) => drop(self.emit(Op::TopicLevel(index))),
                        Err(_) => self.emit_constant(Value::Null),
                    },
                    Access::Computed(index) => {
                        self.emit_expr(index, scope);
                        self.emit(Op::TopicLevelAt);
                    }
                    Access::Key(_) | Access::Range(..) => {
                        let hint = Some("its levels are `topic[1]`, `topic[2]`, ...".to_owned());
                        self.mistake(span, "`topic` has no fields", hint);
                    }
                }
                self.emit_walk(&steps[1..], scope);
            }
            Column::Flags if key(0) == Some("retain") && steps.len() == 1 && !self.overridden() => {
                self.emit(Op::Column(Column::Retain));
            }
            Column::Flags if key(0) == Some("dup") && steps.len() == 1 && !self.overridden() => {
                self.emit(Op::Column(Column::Dup));
            }
            Column::UserProperties if key(0).is_some() && !self.overridden() => {
                let name = self.program.constant(Value::Text(key(0).unwrap_or("").to_owned().into()));
                self.emit(Op::UserProperty(name));
                self.emit_walk(&steps[1..], scope);
            }
            Column::PubProps if key(0) == Some("User-Property") && key(1).is_some() && !self.overridden() => {
                let name = self.program.constant(Value::Text(key(1).unwrap_or("").to_owned().into()));
                self.emit(Op::UserProperty(name));
                self.emit_walk(&steps[2..], scope);
            }
            Column::Payload | Column::Topic | Column::Flags | Column::UserProperties | Column::PubProps => {
                self.emit(Op::Column(column));
                self.emit_walk(steps, scope);
            }
            scalar => {
                self.emit(Op::Column(scalar));
                if !steps.is_empty() {
                    self.mistake(span, format!("`{}` has no fields", scalar.name()), None);
                }
            }
        }
    }

    /// Whether columns may come from [`crate::Message::columns`] instead: then no short cut round them.
    fn overridden(&self) -> bool {
        self.host.columns_given
    }

    /// A path into the payload: as much as is static by the shared scan, the rest step by step.
    fn emit_payload(&mut self, steps: &[Access], scope: Scope) {
        let mut path = Vec::new();
        let mut words = String::from("payload");
        for step in steps {
            match step {
                Access::Key(key) => {
                    words.push_str(&format!(".{key}"));
                    path.push(PathStep::Key(key.clone()));
                }
                Access::Index(index) => match u32::try_from(index - 1) {
                    Ok(from_zero) => {
                        words.push_str(&format!("[{index}]"));
                        path.push(PathStep::Element(from_zero));
                    }
                    Err(_) => break,
                },
                Access::Computed(_) | Access::Range(..) => break,
            }
        }
        let used = path.len();
        let node: NodeId = self.paths.insert(&path);
        self.emit(Op::Slot(node));
        if !self.program.fields.contains(&words) {
            self.program.fields.push(words);
        }
        self.emit_walk(&steps[used..], scope);
    }

    /// The element of the loop, or what it has down a path: as far as that is static, its own scan finds it.
    fn emit_element(&mut self, steps: &[Access], scope: Scope) {
        let fixed = steps.iter().map_while(|step| match step {
            Access::Key(key) => Some(Walk::Key(key.clone())),
            Access::Index(index) => Some(Walk::Index(*index)),
            Access::Range(..) | Access::Computed(_) => None,
        });
        let walk: Vec<Walk> = fixed.collect();
        let (node, scanned) = self.each.node(&walk);
        if scanned == 0 {
            self.emit(Op::Element);
        } else {
            let walk = self.program.walk(walk[..scanned].to_vec());
            self.emit(Op::ElementSlot { node, walk });
        }
        self.emit_walk(&steps[scanned..], scope);
    }

    /// `steps` into the value on the stack.
    fn emit_walk(&mut self, steps: &[Access], scope: Scope) {
        let mut fixed = Vec::new();
        for step in steps {
            match step {
                Access::Key(key) => fixed.push(Walk::Key(key.clone())),
                Access::Index(index) => fixed.push(Walk::Index(*index)),
                Access::Range(from, to) => fixed.push(Walk::Range(*from, *to)),
                Access::Computed(index) => {
                    self.flush_walk(&mut fixed);
                    self.emit_expr(index, scope);
                    self.emit(Op::Index);
                }
            }
        }
        self.flush_walk(&mut fixed);
    }

    fn flush_walk(&mut self, fixed: &mut Vec<Walk>) {
        if fixed.is_empty() {
            return;
        }
        let walk = self.program.walk(std::mem::take(fixed));
        self.emit(Op::Walk(walk));
    }
}

impl Plans for Planner<'_> {
    fn template(&mut self, text: &str, span: Span, of: &str) -> Template {
        let pieces = match template::parse(text) {
            Ok(pieces) => pieces,
            Err(message) => {
                self.mistake(span, message, None);
                return Template::default();
            }
        };
        let parts = pieces
            .into_iter()
            .map(|piece| match piece {
                Piece::Text(text) => Part::Text(text),
                Piece::Row => Part::Row,
                Piece::Path { root, steps } => match self.in_row(&root, &steps) {
                    Some(Err(path)) => Part::Object(path),
                    Some(Ok((item, used))) => {
                        let start = self.here();
                        self.emit(Op::Register(number(item)));
                        self.emit_walk(&steps[used..], Scope::Template);
                        Part::Value(start..self.here())
                    }
                    None => {
                        let start = self.here();
                        self.template_name(&root, &steps, span, of);
                        Part::Value(start..self.here())
                    }
                },
            })
            .collect();
        Template { parts }
    }

    fn has_star(&self) -> bool {
        self.star
    }

    fn row_columns(&self) -> Vec<(&str, Span)> {
        self.columns.iter().filter_map(|c| Some((c.path.first()?.as_str(), c.span))).collect()
    }

    fn finish(mut self: Box<Self>) -> (Program, Vec<Mistake>) {
        self.program.row.seal();
        if self.element.is_some() {
            self.program.each = Some(Box::new(std::mem::take(&mut self.each)));
        }
        let program = &self.program;
        let sources = program.items.iter().enumerate().map(|(item, code)| {
            let is_read = program.before.contains(&item) || program.row.reads(item);
            program.source(code, item).filter(|_| !is_read)
        });
        self.program.sources = sources.collect();
        (self.program, self.mistakes)
    }
}

/// What is said of a name that no function has: there are too many to list.
fn unknown_function(name: &str) -> (String, String) {
    let page = "all functions: docs/rules-functions.md";
    if let Some(here) = functions::instead_of(name) {
        return (format!("unknown function `{name}`; write `{here}`"), page.to_owned());
    }
    let near = nearest_few(name, functions::function_names());
    let message = match near.first() {
        Some(near) => format!("unknown function `{name}`; did you mean `{near}`?"),
        None => format!("unknown function `{name}`"),
    };
    let hint = match near.get(1..) {
        Some(more @ [_, ..]) => format!("or `{}`; {page}", more.join("`, `")),
        _ => page.to_owned(),
    };
    (message, hint)
}

/// The keys of an alias; the default dialect has no others.
fn keys(path: &[Put]) -> Vec<String> {
    path.iter().filter_map(|step| if let Put::Key(key) = step { Some(key.clone()) } else { None }).collect()
}

fn literal(kind: &ExprKind) -> Option<Value<'static>> {
    Some(match kind {
        ExprKind::Null => Value::Null,
        ExprKind::Bool(b) => Value::Bool(*b),
        ExprKind::Int(i) => Value::Int(*i),
        ExprKind::Float(f) => Value::Float(*f),
        ExprKind::Text(s) => Value::Text(s.clone().into()),
        _ => return None,
    })
}

/// Puts an item into the row at a path; `false` when a value already stands there.
fn put(layout: &mut Layout, path: &[String], item: ItemId, raw_payload: &dyn Fn(ItemId) -> bool) -> bool {
    let Some((name, rest)) = path.split_first() else { return false };
    let at = layout.children.iter().position(|(n, _)| n == name);
    if rest.is_empty() {
        if at.is_some() {
            return false;
        }
        layout.children.push((name.clone(), Node::Register(item)));
        return true;
    }
    let at = at.unwrap_or_else(|| {
        layout.children.push((name.clone(), Node::Object(Layout::default())));
        layout.children.len() - 1
    });
    let node = &mut layout.children[at].1;
    if let Node::Register(whole) = *node {
        // `payload, 1 AS payload.x`: the whole value first, then a part of it is set.
        let base = Base::Register { item: whole, decode: raw_payload(whole) };
        *node = Node::Object(Layout { base, ..Layout::default() });
    }
    match node {
        Node::Object(inner) => put(inner, rest, item, raw_payload),
        Node::Register(_) => false,
    }
}

/// What an expression certainly is, when that is no condition.
fn never_true(expr: &Expr) -> Option<&'static str> {
    match &expr.kind {
        ExprKind::Int(_) | ExprKind::Float(_) | ExprKind::Negate(_) => Some("a number"),
        ExprKind::Binary(op, ..) if !op.is_comparison() => Some("a calculation"),
        ExprKind::Text(_) => Some("a string"),
        ExprKind::Array(_) => Some("an array"),
        _ => None,
    }
}

/// What a condition reads: columns, paths and calls, outermost first. Bounded by the expression's depth.
pub(crate) fn leaves_of<'e>(expr: &'e Expr, out: &mut Vec<&'e Expr>) {
    if out.len() >= 16 {
        return;
    }
    match &expr.kind {
        ExprKind::Null
        | ExprKind::Bool(_)
        | ExprKind::Int(_)
        | ExprKind::Float(_)
        | ExprKind::Big(_)
        | ExprKind::Range(..)
        | ExprKind::Text(_) => {}
        ExprKind::Column(_) | ExprKind::Access(..) | ExprKind::Call { .. } => out.push(expr),
        ExprKind::Negate(e) | ExprKind::Not(e) | ExprKind::IsNull { of: e, .. } => leaves_of(e, out),
        ExprKind::And(es) | ExprKind::Or(es) | ExprKind::Array(es) => {
            es.iter().for_each(|e| leaves_of(e, out));
        }
        ExprKind::Binary(_, a, b) => {
            leaves_of(a, out);
            leaves_of(b, out);
        }
        ExprKind::In { of, items, .. } => {
            leaves_of(of, out);
            items.iter().for_each(|e| leaves_of(e, out));
        }
        ExprKind::Between { of, low, high, .. } => {
            leaves_of(of, out);
            leaves_of(low, out);
            leaves_of(high, out);
        }
        ExprKind::Case { of, whens, otherwise } => {
            of.iter().for_each(|e| leaves_of(e, out));
            for (when, then) in whens {
                leaves_of(when, out);
                leaves_of(then, out);
            }
            otherwise.iter().for_each(|e| leaves_of(e, out));
        }
    }
}
