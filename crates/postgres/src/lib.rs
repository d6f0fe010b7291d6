//! How Ferrule reaches a PostgreSQL server: what its sink and its store share.
//!
//! # Invariants
//! Nothing that is made for people here holds a password. No connection waits for ever on a silent peer.

#![forbid(unsafe_code)]

use std::error::Error as _;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};
use tokio_postgres::{Config, Error};

/// What the URL says, and bounds where it says nothing.
///
/// # Errors
/// What is wrong with it, for people; never the password.
pub fn config(url: &str, timeout: Duration) -> Result<Config, String> {
    // The parser's own words name what is wrong, never the password.
    let mut config: Config = url.parse().map_err(|e: Error| chain(&e))?;
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        return Err("it names no host".into());
    }
    if config.get_ssl_mode() == SslMode::Require {
        return Err("sslmode=require: this version cannot speak TLS to PostgreSQL; use sslmode=prefer or disable over a \
                    network that you trust, or a local proxy such as stunnel"
            .into());
    }
    if config.get_application_name().is_none() {
        config.application_name("ferrule");
    }
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(timeout);
    }
    if config.get_tcp_user_timeout().is_none() {
        config.tcp_user_timeout(timeout);
    }
    // An idle connection through a firewall that forgot it, or to a machine that is gone, is noticed within half a minute.
    config.keepalives_idle(Duration::from_secs(15));
    if config.get_keepalives_interval().is_none() {
        config.keepalives_interval(Duration::from_secs(5));
    }
    if config.get_keepalives_retries().is_none() {
        config.keepalives_retries(3);
    }
    // After a failover the old primary may come back as a standby, which takes connections but no rows.
    let several = config.get_hosts().len().max(config.get_hostaddrs().len()) > 1;
    if several && config.get_target_session_attrs() == TargetSessionAttrs::Any {
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
    }
    Ok(config)
}

/// The server for people: hosts and database, no password.
#[must_use]
pub fn shown(config: &Config) -> String {
    let hosts = config.get_hosts().iter().enumerate().map(|(i, host)| {
        let ports = config.get_ports();
        let port = ports.get(i).or(ports.first()).copied().unwrap_or(5432);
        match host {
            Host::Tcp(name) => format!("{name}:{port}"),
            Host::Unix(path) => format!("{}:{port}", path.display()),
        }
    });
    let hosts: Vec<String> = hosts.chain(config.get_hostaddrs().iter().map(ToString::to_string)).collect();
    format!("PostgreSQL at {}, database {}", hosts.join(","), config.get_dbname().unwrap_or("(default)"))
}

/// An error with its causes, which its own text leaves out.
#[must_use]
pub fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let next_text = next.to_string();
        if !text.contains(&next_text) {
            text.push_str(": ");
            text.push_str(&next_text);
        }
        cause = next.source();
    }
    text
}

/// Something that is asked of a server.
pub type Call<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

/// Waits for all. Each is polled once in order first, which sends it: all of them are on their way before an answer comes.
pub async fn all<T>(mut calls: Vec<Call<'_, T>>) -> Vec<Result<T, Error>> {
    let mut results: Vec<Option<Result<T, Error>>> = calls.iter().map(|_| None).collect();
    poll_fn(|cx| {
        let mut open = false;
        for (call, result) in calls.iter_mut().zip(&mut results) {
            if result.is_none() {
                match call.as_mut().poll(cx) {
                    Poll::Ready(done) => *result = Some(done),
                    Poll::Pending => open = true,
                }
            }
        }
        if open { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    results.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_server_is_shown_without_its_password() {
        let config = config("postgres://u:hunter2@a,b:1/d", Duration::from_secs(1)).unwrap();
        assert_eq!(config.get_target_session_attrs(), TargetSessionAttrs::ReadWrite);
        assert_eq!(shown(&config), "PostgreSQL at a:5432,b:1, database d");
    }
}
