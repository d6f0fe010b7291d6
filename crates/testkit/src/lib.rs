//! Wire client, processes, real servers and faults for the tests.
//!
//! # Design
//! - **Real things.** A node is the released binary in a process of its own, Kafka is Kafka, PostgreSQL is PostgreSQL.
//!   Nothing here simulates a server; what is simulated is the fault between two of them ([`relay`], [`netns`]) and the
//!   devices in front ([`fleet`], [`churn`]).
//! - **Nothing outlives the test.** Every child is a guard that kills on drop, and runs under
//!   `setpriv --pdeathsig KILL`, so that it also ends when the test process is killed. That signal fires when the
//!   *thread* that spawned the child ends, hence one long-lived thread spawns all of them ([`proc`]).
//! - **No sleeping for luck.** Whoever waits names a condition and a deadline ([`until`]); a deadline is there to end a
//!   hang, never to measure.
//! - **The ledger decides.** A publisher writes down, per device and sequence number, how often it sent a message and
//!   whether that was acknowledged; what stands at the destination is checked against it ([`oracle`]), never against
//!   what the nodes say of themselves. Over kills and power cuts ([`power`]) the broker's own clients do the same ([`promises`]).
//!
//! # Panics
//! These are test helpers: a set-up that fails (a binary that is not built, a server that does not start) panics with
//! what was wanted, what happened and the last lines of the process concerned. [`node::run_to_exit`] alone hands back a failure,
//! because there the failure is what is tested.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

pub mod certs;
pub mod churn;
pub mod clock;
pub mod dial;
pub mod disk;
pub mod fake_aws_iot;
pub mod fake_azure_hub;
pub mod fake_cloud;
pub mod faults;
pub mod flash;
pub mod fleet;
pub mod netns;
pub mod node;
pub mod oracle;
pub mod port;
pub mod power;
pub mod proc;
pub mod promises;
pub mod random;
pub mod relay;
pub mod servers;
pub mod sessions;
pub mod soak;
pub mod wire;

pub use certs::Certs;
pub use dial::Dial;
pub use fleet::{Fleet, Plan};
pub use node::{Config, Node};
pub use relay::Relay;
pub use servers::{Browser, Example, HttpServer, Kafka, Mosquitto, Postgres, Proxy, Rmqttd};
pub use sessions::Sessions;
pub use wire::Client;

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Waits until `condition` yields a value, looking at it every 20 ms.
///
/// # Panics
/// When `limit` has passed: with `what` was waited for.
pub fn until<T>(limit: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} in vain: {what}");
        std::thread::sleep(POLL);
    }
}

/// Whether this process is root, which network namespaces and mounts need.
///
/// A test that needs it prints `skipped: needs root` and returns when it is not.
#[must_use]
pub fn is_root() -> bool {
    std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let line = status.lines().find(|line| line.starts_with("Uid:"))?;
            Some(line.split_whitespace().nth(2)? == "0")
        })
        .unwrap_or(false)
}
