//! The writer against the model, under kills, and before servers that fail.

#![allow(clippy::unwrap_used, reason = "tests")]

mod faults;
mod fence;
mod keepers;
mod kill;
mod members;
mod model;
mod owners;
mod start;
mod support;
mod writer;
