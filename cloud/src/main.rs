//! `ferrule-cloud`: an MQTT broker with SQL rules and sinks: those of the edge, Kafka, PostgreSQL.
//!
//! What it is made of: `crates/node`. What makes it the cloud: the heavy sinks.

#![forbid(unsafe_code)]

use ferrule_node::cli::{self, Context, Flavor, Run};
use ferrule_node::config::changes::Whole;
use ferrule_node::connectors::Connectors;
use ferrule_node::run::{Product, run};
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
        run: Run::Cloud(start),
    })
}

fn sinks() -> Connectors {
    let mut sinks = ferrule_sinks::light();
    sinks.push(Arc::new(ferrule_sink_postgres::Postgres));
    sinks.push(Arc::new(ferrule_sink_kafka::Kafka));
    sinks
}

fn start(config: Whole, context: Context) -> Result<(), Box<dyn Error>> {
    let product = Product { name: NAME, edge: false, connectors: sinks() };
    Ok(run(&product, config, Arc::new(move || context.read()))?)
}
