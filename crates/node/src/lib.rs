//! What both binaries share: configuration, command line, the hub of rules and outboxes, control socket.
#![forbid(unsafe_code)]

pub mod access;
pub mod auth;
pub mod backlog;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod connectors;
pub mod control;
pub mod drain;
pub mod gate;
pub mod hub;
mod known_time;
pub mod listen;
pub mod loader;
pub mod memory;
pub mod reload;
pub mod run;
pub mod scram;
pub mod store;
pub mod stored;
pub mod sys;
pub mod telemetry;
pub mod watch;
