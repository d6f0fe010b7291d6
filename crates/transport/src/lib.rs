//! From a socket's bytes to MQTT's and back, sans I/O: what lies between a listener or an uplink and the protocol.
//!
//! ```text
//! socket -> PROXY header -> TLS -> HTTP upgrade -> WebSocket frames -> MQTT     each layer may be there or not
//! ```
//! - Every layer takes bytes from the front of what came and says how many; what is left is offered again, longer. None owns a
//!   socket or a clock: a server's worker and the uplink's task drive the same code.
//! - What a peer can make a layer keep is bounded by that layer, and named there.

#![forbid(unsafe_code)]

pub mod files;
pub mod http;
pub mod proxy;
pub mod stack;
pub mod tls;
pub mod ws;
