//! Text, conversions and tests of types.

use super::emqx;
use crate::functions::Function;

pub(super) static FUNCTIONS: &[Function] = &[];
