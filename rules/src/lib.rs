//! SQL rules: text to checked plan to flat program; a message in, rows out.
//!
//! # What is deliberately not here
//! No I/O, no clock, no randomness, no tokio, no knowledge of any sink: [`Host`] says which sinks and options
//! exist (only `getenv()` of EMQX's dialect reads the environment itself, and only `jq()` starts a process, see [`jq`]), [`Now`] says what time it is, [`Scratch::new`] takes the seed of `uuid()`. Only [`cli`] (the commands
//! `rules check/test/eval/explain` of both binaries) reads files. Nothing here panics on any rules text or any
//! payload; both are hostile input.
//!
//! # From text to rows
//! ```text
//! Source --lex--> tokens --statement/query/expr--> AST (a span on every node) --check--> names, sinks, options
//!        --plan--> Rule { filters, inserts, Program }  +  one PathSet per RuleSet
//! Message --Scratch: lazy scan of the payload--> slots --step: Program--> Rows
//! ```
//! * [`load`] reports every error of every file at once (it resynchronises at `;`) or gives a whole [`RuleSet`]; a
//!   bad reload therefore changes nothing.
//! * The payload paths of all rules of a set form one trie. [`Scratch`] walks the payload at most once per message,
//!   only as far as the rules that ran have asked, and fills slots; numbers are parsed when read, strings are
//!   borrowed unless they contain escapes.
//! * [`step()`] runs one rule on one message. It allocates nothing unless the rule matches.
//!
//! # The default dialect
//! EMQX's data model with SQL's manners:
//!
//! | subject | ferrule |
//! |---|---|
//! | quotes | `'x'` is a string (`''` is one quote), `"x"` an identifier or topic filter |
//! | arrays | count from 1, negative from the end; out of range is NULL, `[0]` where it can be seen a mistake |
//! | missing field | NULL; also a path through a value that is no object or array |
//! | payload | raw text; `payload.a` reads JSON inside it; not JSON: NULL, counted `invalid_json` |
//! | payload that is not JSON | `WITH (format = ...)` (`formats`); not of the format: NULL, counted `invalid_format` |
//! | duplicate keys in an object | the first counts; text after the last value that some rule asked for is not looked at |
//! | logic | three-valued; WHERE keeps a message only when TRUE |
//! | comparison | number with number by value, string with string by bytes, boolean with boolean; unlike types: NULL, counted `type_mismatch` |
//! | `=` on arrays and objects | by value; they have no order |
//! | `IN`, `CASE x WHEN` | three-valued, but unlike types are simply not equal |
//! | `+` | adds numbers, joins two strings; other types: NULL, counted `type_mismatch` |
//! | `/` | always a float; by zero: NULL, counted `division_by_zero` |
//! | `div`, `mod` (`%`) | integers (`mod` floats too), truncating |
//! | integers | 64 bits; overflow: NULL, counted `integer_overflow`; longer ones in a payload pass through untouched |
//! | `*` | the payload; alone it passes through byte for byte, with more columns they are put into its object |
//! | names in SELECT | a column of the message, then an alias to the left |
//! | names in WHERE | a column of the message, then an alias of the SELECT list |
//! | names in a template | a column of the row, then a column of the message, then (with `*`) a field of the payload |
//! | order | WHERE first, so an error in the SELECT list cannot fail a message that WHERE rejects |
//! | NULL in a template | `null` in a payload; in a target the rule fails for that message; in a key or header there is none |
//! | a column without AS | named by its path's last key or its function; else an error |
//!
//! EMQX's dialect is a planner of its own on this engine (`emqx`): the front ends share the AST, `check` decides the
//! dialect, and the evaluator's inner loop never asks for it. eKuiper's is to come.
#![forbid(unsafe_code)]

mod diagnostic;
mod host;
mod message;
mod ruleset;

mod sql;
mod template;

mod big;
mod canonical;
mod check;
mod emqx;
mod events;
mod plan;

mod copies;
mod elements;
mod foreach;
mod formats;

mod functions;
mod guard;
pub mod jq;
mod json;
mod machine;
mod outcome;
mod paths;
mod program;
mod properties;
mod row;
mod shared;
mod state;
mod step;
mod value;
mod why;

pub mod cli;

pub use check::load;
pub use diagnostic::{Diagnostic, Severity, Source, Span};
pub use functions::emqx::{FUNCTIONS_TOML as EMQX_FUNCTIONS_TOML, names as emqx_function_names};
pub use functions::{FUNCTIONS_ELSEWHERE, FUNCTIONS_TOML, function_names};
pub use host::{
    Builtin, ConnectorSchema, Files, Host, OptionKind, OptionSchema, ReadFile, TargetKind, TargetSchema,
};
pub use message::{Message, UserProperties};
pub use outcome::{Counters, Failure, LastFailure, TypeError};
pub use properties::PublishProperty;
pub use row::{Body, OutRow, Rows};
pub use ruleset::{
    Ack, Dialect, Durability, Insert, Keeps, OptionValue, Priority, Qos0, Rule, RuleSet, SinkDecl,
    extend_rule_path, rule_id,
};
pub use step::{Now, RuleState, Scratch, Step, step};
