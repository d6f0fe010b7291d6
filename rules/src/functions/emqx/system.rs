//! Identity, state that outlives a message, the environment.

use super::emqx;
use crate::functions::Function;

pub(super) static FUNCTIONS: &[Function] = &[];
