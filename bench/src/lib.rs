//! Load generator and side-by-side benchmarks.
//!
//! # Map
//! - [`load`] drives a broker and finds what came of it ([`wire`] its MQTT, [`tally`] its counting, [`procfs`] the CPU
//!   time and memory of others). It is a process of its own, `ferrule-bench load`, so that it can be pinned to a core.
//! - [`crowd`] is the other generator, for very many clients that do little.
//! - [`carrier`] is what lies between the two generators and TCP: TLS, WebSocket.
//! - [`peer`] says how a broker is started, [`floor`] is one of them: the physical bound; [`rows`] which work all of them get.
//! - [`run`] does the rounds; [`idle`] the rows of idle connections; [`handshakes`] those of TLS
//!   handshakes, [`storm`] what others notice of very many at once; [`scale`] what one process without sockets can
//!   hold; [`pipeline`] the rows that go through edge, cloud and a sink.
//! - [`volume`] is another program: what the link to the cloud costs in bytes and in time.
//! - [`backlog`] another: what a gateway without its cloud costs, and how fast a backlog leaves.
//! - [`cluster`] another: what several nodes cost, and how soon sessions of a dead one are back.
//! - [`result`] is what a run leaves in `bench/results/`; [`report`] makes a table and `docs/benchmarks.md` of it.
#![forbid(unsafe_code)]

pub mod backlog;
pub mod carrier;
pub mod cluster;
pub mod crowd;
#[cfg(test)]
mod fake;
pub mod floor;
pub mod handshakes;
pub mod idle;
pub mod load;
pub mod peer;
pub mod pipeline;
pub mod procfs;
pub mod report;
pub mod result;
pub mod rows;
pub mod rules;
pub mod run;
pub mod scale;
mod shard;
pub mod stored;
pub mod storm;
pub mod tally;
pub mod volume;
pub mod wire;
