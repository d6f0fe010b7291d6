//! Load generator and side-by-side benchmarks.
//!
//! # Map
//! - [`load`] drives a broker and finds what came of it ([`wire`] its MQTT, [`tally`] its counting, [`procfs`] the CPU
//!   time and memory of others). It is a process of its own, `ferrule-bench load`, so that it can be pinned to a core.
//! - [`peer`] says how a broker is started; [`rows`] which work all of them get.
//! - [`run`] does the rounds; [`pipeline`] those that go through edge, cloud and a sink.
//! - [`result`] is what a run leaves in `bench/results/`; [`report`] makes a table and `docs/benchmarks.md` of it.
#![forbid(unsafe_code)]

#[cfg(test)]
mod fake;
pub mod load;
pub mod peer;
pub mod pipeline;
pub mod procfs;
pub mod report;
pub mod result;
pub mod rows;
pub mod run;
pub mod tally;
pub mod wire;
