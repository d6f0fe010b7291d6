//! Load generator and side-by-side benchmarks.
#![forbid(unsafe_code)]

#[cfg(test)]
mod fake;
pub mod load;
pub mod procfs;
pub mod tally;
pub mod wire;
