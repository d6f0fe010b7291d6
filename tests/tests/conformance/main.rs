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

/// What has no test yet, with why: id, version, reason.
#[allow(dead_code, reason = "for the page that is generated")]
const OPEN: [(&str, &str, &str); 3] = [
    (
        "MQTT-4.3.2-2",
        "3.1.1",
        "a PUBLISH with DUP under an identifier acknowledged just now, with the same content, is taken for a repetition \
         when the first had to wait (decision 0009)",
    ),
    ("MQTT-4.3.2-5", "5.0", "as MQTT-4.3.2-2 of 3.1.1"),
    (
        "MQTT-3.1.2-24",
        "5.0",
        "the client's Maximum Packet Size bounds PUBLISH alone, not SUBACK and the like",
    ),
];

mod acks;
mod common;
mod flow;
mod frames;
mod publish;
mod qos;
mod retain;
mod shared;
mod subscribe;
mod topics;
mod unsubscribe;
