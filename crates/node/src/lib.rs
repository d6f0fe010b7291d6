//! What both binaries share: configuration, command line, the hub of rules and outboxes, control socket.
#![forbid(unsafe_code)]

pub mod access;
pub mod auth;
pub mod config;
pub mod telemetry;
pub mod watch;
