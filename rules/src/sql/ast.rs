//! One AST for all dialects; every node has a span.

use crate::{Dialect, Span};

/// A name or other text, and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Name {
    pub(crate) text: String,
    pub(crate) span: Span,
}

/// An expression.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Expr {
    pub(crate) kind: ExprKind,
    pub(crate) span: Span,
    /// Levels below and including this one.
    pub(crate) depth: u16,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ExprKind {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    /// The digits of an integer beyond 64 bits (EMQX).
    Big(String),
    Text(String),
    /// A bare or quoted name: a column of the message or an alias.
    Column(String),
    /// `base.key`, `base[index]`, several in a row.
    Access(Box<Expr>, Vec<Access>),
    Negate(Box<Expr>),
    Not(Box<Expr>),
    /// Two or more, flattened.
    And(Vec<Expr>),
    /// Two or more, flattened.
    Or(Vec<Expr>),
    Binary(Binary, Box<Expr>, Box<Expr>),
    IsNull {
        of: Box<Expr>,
        negated: bool,
    },
    In {
        of: Box<Expr>,
        items: Vec<Expr>,
        negated: bool,
    },
    Between {
        of: Box<Expr>,
        low: Box<Expr>,
        high: Box<Expr>,
        negated: bool,
    },
    Case {
        of: Option<Box<Expr>>,
        whens: Vec<(Expr, Expr)>,
        otherwise: Option<Box<Expr>>,
    },
    Call {
        name: Name,
        args: Vec<Expr>,
    },
    Array(Vec<Expr>),
    /// `[1..3]`: the integers, both ends included (EMQX).
    Range(i64, i64),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Access {
    Key(String),
    /// From 1; negative from the end.
    Index(i64),
    Computed(Expr),
    /// `[1..3]`: both ends included (EMQX).
    Range(i64, i64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Binary {
    Add,
    Subtract,
    Multiply,
    Divide,
    IntDivide,
    Modulo,
    Eq,
    NotEq,
    Less,
    LessEq,
    Greater,
    GreaterEq,
    /// `topic =~ filter` (EMQX).
    Match,
}

impl Binary {
    pub(crate) fn is_comparison(self) -> bool {
        use Binary::*;
        matches!(self, Eq | NotEq | Less | LessEq | Greater | GreaterEq | Match)
    }

    pub(crate) fn symbol(self) -> &'static str {
        match self {
            Binary::Add => "+",
            Binary::Subtract => "-",
            Binary::Multiply => "*",
            Binary::Divide => "/",
            Binary::IntDivide => "div",
            Binary::Modulo => "mod",
            Binary::Eq => "=",
            Binary::NotEq => "<>",
            Binary::Less => "<",
            Binary::LessEq => "<=",
            Binary::Greater => ">",
            Binary::GreaterEq => ">=",
            Binary::Match => "=~",
        }
    }
}

impl Expr {
    pub(crate) fn new(kind: ExprKind, span: Span) -> Expr {
        let mut depth = 0;
        let mut see = |e: &Expr| depth = depth.max(e.depth);
        match &kind {
            ExprKind::Null
            | ExprKind::Bool(_)
            | ExprKind::Int(_)
            | ExprKind::Float(_)
            | ExprKind::Big(_)
            | ExprKind::Text(_)
            | ExprKind::Range(..)
            | ExprKind::Column(_) => {}
            ExprKind::Access(base, steps) => {
                see(base);
                for step in steps {
                    if let Access::Computed(e) = step {
                        see(e);
                    }
                }
            }
            ExprKind::Negate(e) | ExprKind::Not(e) | ExprKind::IsNull { of: e, .. } => see(e),
            ExprKind::And(es) | ExprKind::Or(es) | ExprKind::Array(es) | ExprKind::Call { args: es, .. } => {
                es.iter().for_each(see);
            }
            ExprKind::Binary(_, a, b) => {
                see(a);
                see(b);
            }
            ExprKind::In { of, items, .. } => {
                see(of);
                items.iter().for_each(see);
            }
            ExprKind::Between { of, low, high, .. } => {
                see(of);
                see(low);
                see(high);
            }
            ExprKind::Case { of, whens, otherwise } => {
                of.iter().for_each(|e| see(e));
                for (when, then) in whens {
                    see(when);
                    see(then);
                }
                otherwise.iter().for_each(|e| see(e));
            }
        }
        Expr { kind, span, depth: depth.saturating_add(1) }
    }
}

/// `SELECT items FROM sources WHERE condition`, or FOREACH.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Query {
    /// Of FOREACH: what is named before the collection, and the collection itself, the last.
    pub(crate) items: Vec<Item>,
    pub(crate) foreach: Option<Foreach>,
    pub(crate) from: Vec<Name>,
    pub(crate) condition: Option<Expr>,
}

/// `FOREACH items DO make INCASE incase`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Foreach {
    pub(crate) make: Option<Vec<Item>>,
    pub(crate) incase: Option<Expr>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Item {
    Star(Span),
    Expr { expr: Expr, alias: Option<Alias> },
}

impl Item {
    pub(crate) fn span(&self) -> Span {
        match self {
            Item::Star(span) => *span,
            Item::Expr { expr, .. } => expr.span,
        }
    }
}

/// `AS a.b`: where the value is put.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Alias {
    /// The first is a key; in the default dialect all are.
    pub(crate) path: Vec<Put>,
    pub(crate) span: Span,
}

/// A step of the path that a value is put at.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Put {
    Key(String),
    /// `[n]`: in the place of the element there is; from 1, negative from the end.
    At(i64),
    /// `[0]`: before the first element.
    First,
    /// `[-0]`: after the last element.
    Last,
}

/// `key = value` in WITH.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Setting {
    pub(crate) key: Name,
    pub(crate) value: Literal,
    pub(crate) span: Span,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Literal {
    Text(String),
    Int(i64),
    Float(f64),
    Bool(bool),
}

/// `sink."target" WITH (...)`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct InsertInto {
    pub(crate) sink: Name,
    pub(crate) target: Option<Name>,
    pub(crate) settings: Vec<Setting>,
    pub(crate) span: Span,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Statement {
    pub(crate) kind: StatementKind,
    pub(crate) span: Span,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum StatementKind {
    CreateSink {
        name: Name,
        settings: Vec<Setting>,
    },
    CreateSchema {
        name: Name,
        settings: Vec<Setting>,
    },
    CreateRule {
        name: Name,
        settings: Vec<Setting>,
        dialect: Dialect,
        inserts: Vec<InsertInto>,
        query: Query,
    },
    Query(Query),
}
