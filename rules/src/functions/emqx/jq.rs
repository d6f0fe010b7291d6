//! `jq()`: the arguments of a call to the worker, and its answer.

use std::time::Duration;

use super::{Given, emqx, take};
use crate::TypeError;
use crate::functions::{Function, Surroundings};
use crate::jq::JqError;
use crate::json;
use crate::value::Value;

pub(super) static FUNCTIONS: &[Function] = &[emqx("jq", 2, 3, jq)];

fn jq<'a>(args: &mut [Value<'a>], around: &mut Surroundings) -> Given<'a> {
    Ok(Value::Json(outputs(args, around)?.into()).open().into_owned())
}

/// The outputs as a JSON array. Text is JSON already; all else is written as JSON.
pub(in crate::functions) fn outputs(
    args: &mut [Value<'_>],
    around: &mut Surroundings,
) -> Result<String, TypeError> {
    let (program, input, wait) = (take(args, 0), take(args, 1), take(args, 2));
    let (Value::Text(program), false) = (program, matches!(input, Value::Bytes(_))) else {
        return Err(TypeError::TypeMismatch);
    };
    let wait = match wait {
        Value::Missing => None,
        Value::Int(ms) => Some(Duration::from_millis(u64::try_from(ms).map_err(|_| TypeError::BadArgument)?)),
        _ => return Err(TypeError::TypeMismatch),
    };
    let mut written = Vec::new();
    let text = match &input {
        Value::Text(text) => text.as_bytes(),
        other => {
            other.write_json(&mut written);
            &written
        }
    };
    // As deep as everything that is read here, so that an input alone cannot end the worker.
    if json::document(text).is_err() {
        around.note = Some("the input is no JSON".to_owned());
        return Err(TypeError::InvalidJson);
    }
    match around.jq.run(&program, text, wait, around.max_text) {
        Ok(outputs) if json::document(outputs.as_bytes()).is_ok() => Ok(outputs),
        Ok(_) => Err(TypeError::JqError),
        Err(error) => {
            around.note = Some(error.message().to_owned());
            Err(match error {
                JqError::Mistake { .. } | JqError::Raised(_) => TypeError::JqError,
                JqError::Stopped(_) | JqError::Unavailable(_) => TypeError::JqStopped,
            })
        }
    }
}
