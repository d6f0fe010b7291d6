//! MQTT client: the edge's uplink to a cloud, and to any other broker.
//!
//! - [`client`]: one connection of the protocol, sans I/O: bytes in, bytes out, `now` an argument.
//! - [`forward`]: what a row of the outbox looks like as a PUBLISH.
//! - [`flow`]: which row goes next, which waits, which is answered: rows in, answers out. Pure. [`batching`]: several in one PUBLISH.
//! - [`gathering`]: rows that wait for others, to leave with them.
//! - [`preset`]: what the brokers of cloud providers demand beyond MQTT.
//! - [`downlink`]: messages from the broker down to here.
//! - [`channel`], [`session`]: the socket with the layers between it and the protocol (TLS, WebSocket), and the client on it.
//! - [`dial`]: from a URL to a connection, and every reason for which there is none; [`credentials`]: the certificates for it.
//! - [`uplink`]: the driver: one task that dials, reads, writes and reports. The only place with a clock.
//!
//! The uplink is a consumer of an outbox like any sink ([`ferrule_outbox::consumer`]): a row is answered once, after
//! the other side took responsibility for it, and never before.

#![forbid(unsafe_code)]

pub mod address;
pub mod backoff;
pub mod batching;
mod channel;
pub mod client;
pub mod config;
mod credentials;
mod dial;
pub mod downlink;
pub mod flow;
pub mod forward;
pub mod gathering;
pub mod preset;
mod session;
pub mod stats;
pub mod uplink;

pub use address::{Proxy, Scheme, Server, UrlError};
pub use config::{Alpn, Clock, IdentityMode, TlsConfig, UplinkConfig};
pub use downlink::Downlink;
pub use gathering::Metered;
pub use preset::Preset;
pub use stats::{LinkState, UplinkSnapshot, UplinkStats};
pub use uplink::{run, run_both};
