//! Rows into tables of a PostgreSQL database, each exactly once.
//!
//! # Constraints
//! The server may be killed, paused, moved or changed at any time, between any two packets. A commit whose answer did not
//! come may have happened: its rows are sent again and the key makes them one. Nothing waits for ever on a silent peer.
//!
//! # Operation
//! [`ferrule_sinks::sql::engine`] drives a [`Server`]: one connection, one batch at a time. A batch for one table is one
//! statement, its own transaction, one round trip: each column travels as an array of text, and the statement unnests
//! the arrays and casts ([`statement`]). Batches for several tables are pipelined between BEGIN and COMMIT.
//!
//! # Invariants
//! - Values are bound; only quoted identifiers and type names from the server's catalogue are put into SQL.
//! - `synchronous_commit` is never off: an answer means that the row survives the server's crash.
//! - Each call ends within `timeout`: PostgreSQL cancels the statement, or we close the connection.

#![forbid(unsafe_code)]

mod fault;
mod server;
mod statement;

use ferrule_sinks::sql::{BATCH, COLUMNS, DEDUPE_FOR, Settings, TABLE, engine};
use ferrule_sinks::{
    Connector, ConnectorSchema, Declared, OptionKind, OptionSchema, Options, Running, SinkContext, Target,
};
use server::Server;
use std::time::Duration;

/// The connector `postgres`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Postgres;

static SCHEMA: ConnectorSchema = ConnectorSchema {
    name: "postgres",
    summary: "Rows into tables of a PostgreSQL database, each exactly once.",
    options: &[
        OptionSchema {
            name: "url",
            kind: OptionKind::Secret,
            required: true,
            default: None,
            help: "postgres://user:password@host:5432/database; several hosts with commas: the one that takes writes is \
                   used.",
        },
        TABLE,
        COLUMNS,
        OptionSchema {
            name: "timeout",
            kind: OptionKind::Duration,
            required: false,
            default: Some("10s"),
            help: "How long the server may take to answer before the connection is made anew. Longer than its longest \
                   checkpoint stall, shorter than anyone wants to wait for a dead peer.",
        },
        DEDUPE_FOR,
        BATCH,
    ],
    passthrough: None,
    target: Target::Name("table"),
    key: None,
};

impl Connector for Postgres {
    fn schema(&self) -> &'static ConnectorSchema {
        &SCHEMA
    }

    fn check(&self, options: &Options) -> Result<Declared, Vec<String>> {
        let mut mistakes = Vec::new();
        if !options.is_unresolved("url")
            && let Err(why) = ferrule_postgres::config(options.text("url"), timeout(options))
        {
            mistakes.push(format!("option `url`: {why}"));
        }
        if timeout(options).is_zero() {
            mistakes.push("option `timeout` = '0': a server needs some time to answer".into());
        }
        match Settings::read(options) {
            Ok(settings) if mistakes.is_empty() => Ok(settings.declared()),
            Ok(_) => Err(mistakes),
            Err(more) => Err([mistakes, more].concat()),
        }
    }

    fn start(&self, name: &str, options: &Options, context: SinkContext) -> Result<Running, Vec<String>> {
        self.check(options)?;
        let settings = Settings::read(options)?;
        let timeout = timeout(options);
        let config = ferrule_postgres::config(options.text("url"), timeout)
            .map_err(|why| vec![format!("option `url`: {why}")])?;
        let server = Server::new(config, settings.clone(), timeout);
        let (running, ended) = Running::new();
        let (name, runtime) = (name.to_owned(), context.runtime.clone());
        runtime.spawn(async move {
            engine::run(server, &name, settings, context).await;
            let _ = ended.send(());
        });
        Ok(running)
    }
}

fn timeout(options: &Options) -> Duration {
    options.duration("timeout").unwrap_or(Duration::from_secs(10))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn check(pairs: &[(&str, &str)]) -> Result<Declared, Vec<String>> {
        let given: Vec<_> = pairs.iter().map(|&(n, v)| (n.to_owned(), v.to_owned())).collect();
        Postgres.check(&Options::parse(&SCHEMA, &given)?)
    }

    #[test]
    fn urls_are_checked() {
        for (url, wanted) in [
            ("postgres://u:p@h/d", None),
            ("host=h user=u", None),
            ("env:NOT_KNOWN_YET", None),
            ("postgres://u:hunter2@h:x/d", Some("port")),
            ("user=u", Some("no host")),
            ("postgres://u:p@h/d?sslmode=require", Some("TLS")),
        ] {
            match (check(&[("url", url)]), wanted) {
                (Ok(_), None) => {}
                (Err(mistakes), Some(wanted)) => {
                    assert!(mistakes[0].contains(wanted), "{mistakes:?}");
                    assert!(!mistakes[0].contains("hunter2"));
                }
                other => panic!("{url}: {other:?}"),
            }
        }
        assert_eq!(check(&[("url", "host=h"), ("columns", "x"), ("timeout", "0")]).unwrap_err().len(), 2);
    }
}
