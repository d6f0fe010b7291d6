//! The demo behind `ferrule-demo` (see [`demo`]), in parts that can be tested without a node.
#![forbid(unsafe_code)]

pub mod demo;
pub mod devices;
pub mod figures;
pub mod kafka;
pub mod ledger;
pub mod node;
pub mod store;
pub mod view;
