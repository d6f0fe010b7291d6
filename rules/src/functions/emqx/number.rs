//! Arithmetic, mathematics, bits.

use super::emqx;
use crate::functions::Function;

pub(super) static FUNCTIONS: &[Function] = &[];
