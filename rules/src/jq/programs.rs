//! Programs that stand in a rule: each is compiled when the rule is loaded, whatever its dialect.

use super::{Jq, JqError, is_offered};
use crate::plan::Mistake;
use crate::sql::ast::{Expr, ExprKind, Name};

impl Jq {
    /// What is wrong with a call of `jq()` whatever the message is; `text` is that of the file.
    pub(crate) fn mistake(&mut self, name: &Name, args: &[Expr], text: &str) -> Option<Mistake> {
        if !is_offered() {
            let message = if cfg!(feature = "jq") {
                "`jq` needs a process of its own, which this program cannot start"
            } else {
                "this build has no `jq`, as builds for small machines have not: one with the cargo feature `jq` has"
            };
            return Some((name.span, message.to_owned(), None));
        }
        let Some(Expr { kind: ExprKind::Text(program), span, .. }) = args.first() else { return None };
        let error = self.check(program).err()?;
        let mut span = *span;
        // Into the program, where it stands in the rule as it is.
        if let JqError::Mistake { at: Some(at), .. } = error
            && span.of(text).get(1..).is_some_and(|text| text.starts_with(program))
            && let Ok(at) = u32::try_from(at)
        {
            span.start += 1 + at;
            span.end = span.end.min(span.start + 1);
        }
        Some((span, format!("in this jq program: {}", error.message()), None))
    }
}
