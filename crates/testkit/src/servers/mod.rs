//! Real servers: Apache Kafka, PostgreSQL 15, mosquitto, nginx and HAProxy, Python's HTTP server, and a real browser; each on ports of its own and in a
//! folder of its own.
//!
//! They are what `tests/servers/install.sh` installs; one that is missing panics with that line to type. All of them survive
//! kill -9 and restart on the same port and data, and none survives its guard.

use std::path::{Path, PathBuf};

mod browser;
mod example;
mod http;
mod kafka;
mod mosquitto;
mod postgres;
mod proxy;
mod rmqttd;

pub use browser::Browser;
pub use example::Example;
pub use http::HttpServer;
pub use kafka::{Kafka, Record};
pub use mosquitto::Mosquitto;
pub use postgres::Postgres;
pub use proxy::Proxy;
pub use rmqttd::Rmqttd;

/// What to do when a server's program is not there.
const INSTALL: &str = "run tests/servers/install.sh";

/// The folder with the scripts of the servers, in the checkout that this crate was built from.
fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/servers")
}

/// The Python of the virtual environment with paho-mqtt, which `install.sh` makes.
///
/// # Panics
/// When it is not there.
#[must_use]
pub fn python() -> PathBuf {
    cached("venv/bin/python")
}

/// A file that `tests/clients/install.sh` has built in `folder`, from the sources that are there now.
///
/// # Panics
/// When it is not there, or was built from others.
#[must_use]
pub fn client(folder: &str, file: &str) -> PathBuf {
    let built = cached(&format!("clients/{folder}/{file}"));
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/clients").join(folder);
    assert_same(&sources, &cached(&format!("clients/{folder}")));
    built
}

/// Every file of `sources` is the same in `copies`.
fn assert_same(sources: &Path, copies: &Path) {
    let entries = std::fs::read_dir(sources).unwrap_or_else(|error| panic!("{}: {error}", sources.display()));
    for entry in entries.flatten() {
        let (source, copy) = (entry.path(), copies.join(entry.file_name()));
        if source.is_dir() {
            assert_same(&source, &copy);
        } else {
            let same = std::fs::read(&source).ok() == std::fs::read(&copy).ok();
            assert!(same, "{} was built from another {}: {INSTALL}", copies.display(), source.display());
        }
    }
}

/// A file that `install.sh` has put into its cache.
fn cached(name: &str) -> PathBuf {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    let cache = variable("FERRULE_TEST_CACHE")
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("ferrule-tests")))
        .or_else(|| Some(variable("HOME")?.join(".cache/ferrule-tests")))
        .expect("HOME is set");
    let path = cache.join(name);
    assert!(path.exists(), "{} is not there: {INSTALL}", path.display());
    path
}
