//! The writer against the model, under kills, and on media that fail.

#![allow(clippy::unwrap_used, reason = "tests")]

mod changed;
mod faults;
mod kill;
mod model;
mod support;
mod wear;
mod writer;
