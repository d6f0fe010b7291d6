//! Hashes, compression, encodings, JSON.

use super::emqx;
use crate::functions::Function;

pub(super) static FUNCTIONS: &[Function] = &[];
