//! `ferrule-cloud`: an MQTT broker with SQL rules and sinks: those of the edge, Kafka, PostgreSQL.
//!
//! What it is made of: `crates/node`. What makes it the cloud: the heavy sinks, and a store that may be in PostgreSQL.

#![forbid(unsafe_code)]

mod cluster;

use ferrule_node::cli::{self, Context, Flavor, Run};
use ferrule_node::config::PostgresConfig;
use ferrule_node::config::changes::Whole;
use ferrule_node::connectors::Connectors;
use ferrule_node::run::{Product, run};
use ferrule_node::store::{Backend, Elsewhere};
use ferrule_store_postgres::Options;
use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;

const NAME: &str = "ferrule-cloud";

fn main() -> ExitCode {
    cli::main(&Flavor {
        name: NAME,
        version: env!("CARGO_PKG_VERSION"),
        about: "MQTT broker with SQL rules and sinks",
        connectors: sinks,
        store: Some(POSTGRES),
        cluster: Some(cluster::CLUSTER),
        run: Run::Cloud(start),
    })
}

/// A store that is not in a file.
const POSTGRES: Backend = Backend { check: check_store, open: open_store };

fn options(config: &PostgresConfig) -> Options {
    Options {
        password: config.password.as_ref().map(|password| password.as_str().to_owned()),
        schema: config.schema.clone(),
        settle: config.spread_rules_after,
        timeout: config.timeout,
        ..Options::new(config.url.as_str(), &config.node)
    }
}

fn check_store(config: &PostgresConfig) -> Vec<(&'static str, String)> {
    options(config).check().err().unwrap_or_default()
}

fn open_store(config: &PostgresConfig) -> Result<Elsewhere, String> {
    let opened = ferrule_store_postgres::open(options(config)).map_err(|error| error.to_string())?;
    let place = opened.writer.shown().to_owned();
    Ok(Elsewhere { writer: Box::new(opened.writer), restored: opened.restored, place })
}

fn sinks() -> Connectors {
    let mut sinks = ferrule_sinks::light();
    sinks.push(Arc::new(ferrule_sink_postgres::Postgres));
    sinks.push(Arc::new(ferrule_sink_kafka::Kafka));
    sinks
}

fn start(config: Whole, context: Context) -> Result<(), Box<dyn Error>> {
    let product = Product {
        name: NAME,
        edge: false,
        connectors: sinks(),
        store: Some(POSTGRES),
        cluster: Some(cluster::CLUSTER),
    };
    Ok(run(&product, config, Arc::new(move || context.read()))?)
}
