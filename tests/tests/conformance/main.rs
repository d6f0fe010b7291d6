//! MQTT 3.1.1 and 5.0, clause by clause, over sockets.
#![allow(clippy::unwrap_used, reason = "tests")]

/// A clause's tests, one for each version it holds in.
macro_rules! clause {
    ($name:ident, $id:literal, [$($version:ident),+], $body:expr) => {
        mod $name {
            use super::*;
            $(
                #[test]
                fn $version() {
                    let body: fn(&$crate::common::Broker) = $body;
                    body(&$crate::common::Broker::$version());
                }
            )+
        }
    };
}

/// What is not so, with why: id, version, reason.
const OPEN: [(&str, &str, &str); 0] = [];

mod acks;
mod auth;
mod common;
mod connack;
mod connect;
mod disconnect;
mod errors;
mod flow;
mod frames;
mod framing;
mod list;
mod mqtt31;
mod ping;
mod publish;
mod qos;
mod retain;
mod session;
mod shared;
mod subscribe;
mod topics;
mod unsubscribe;
mod uplink;
mod websocket;
mod will;
