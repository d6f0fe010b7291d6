//! `pub` and `sub`: mosquitto_pub's and mosquitto_sub's flags, output and exit codes, on the broker's own codec and transports.
//!
//! # Why not the uplink's client
//! `ferrule_link` sends what an outbox keeps: QoS 0 and 1, no wills, no subscriptions to speak of. These commands need all of the
//! protocol and keep nothing, so they have a small connection of their own ([`connection`]).
//!
//! # Where they differ from mosquitto 2.0's
//! - `pub -l` ends when every message is acknowledged, not when the last one is.
//! - What is not there says so: PSK, SOCKS proxies, OpenSSL's engines and cipher names, `--capath`.
//! - They read no configuration files of mosquitto's.
//!
//! Exit codes: 0; 1 wrong usage or no connection; the CONNACK's code when the broker refuses; 27 when `-W` ran out.

mod args;
mod connection;
mod format;
mod properties;
mod publish;
mod subscribe;
mod wire;

pub(super) use args::{PubArgs, SubArgs};
pub(super) use publish::run as publish;
pub(super) use subscribe::run as subscribe;

use connection::{Connection, Lost, Options, Refused};
use std::io::Write;
use std::time::Duration;

/// Between two attempts to connect again, as libmosquitto's.
const RECONNECT: Duration = Duration::from_secs(1);

/// mosquitto's exit code for wrong usage, and for no connection.
pub(super) const FAILED: u8 = 1;

/// Why a connection could not be made.
enum NoConnection {
    /// The broker says no.
    Refused(Refused),
    /// Nobody answers, or not as a broker does.
    Failed(String),
}

/// What is told on standard error, and on standard output with `-d`.
#[derive(Debug, Clone, Copy)]
struct Tell {
    quiet: bool,
    debug: bool,
}

impl Tell {
    fn error(self, text: &str) {
        if !self.quiet {
            // Nobody is left to tell when that fails.
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }

    fn debug(self, text: impl FnOnce() -> String) {
        if self.debug {
            let _ = writeln!(std::io::stdout(), "{}", text());
        }
    }

    /// Of the first connection: the exit code.
    fn no_connection(self, why: &NoConnection) -> u8 {
        match why {
            NoConnection::Refused(refused) => {
                self.error(&format!("Connection error: {}", refused.text));
                refused.code
            }
            NoConnection::Failed(text) => {
                self.error(&format!("Error: {text}"));
                FAILED
            }
        }
    }
}

/// Connects again after a loss, until it works or the broker says no.
async fn again(options: &Options, tell: Tell, lost: &Lost) -> Result<Connection, NoConnection> {
    if lost.for_good {
        return Err(NoConnection::Failed(lost.to_string()));
    }
    tell.error(&format!("{lost} Connecting again."));
    loop {
        tokio::time::sleep(RECONNECT).await;
        match Connection::open(options, tell).await {
            Err(NoConnection::Failed(text)) => tell.debug(|| text),
            done => return done,
        }
    }
}

/// Runs one command on a runtime of its own.
fn block_on(work: impl Future<Output = u8>) -> u8 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => {
            let code = runtime.block_on(work);
            // A thread that waits for standard input is not waited for.
            runtime.shutdown_background();
            code
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "Error: {error}");
            FAILED
        }
    }
}
