//! `ferrule-edge`: an MQTT broker with SQL rules and a store-and-forward queue, for gateways.
//!
//! What it is made of: `crates/node`. What makes it the edge: an uplink, and light sinks alone.

#![forbid(unsafe_code)]

use ferrule_node::cli::{self, Context, Flavor, Run};
use ferrule_node::config::changes::Whole;
use ferrule_node::connectors::Connectors;
use ferrule_node::run::{Product, run};
use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;

/// The C library of static builds has an allocator made for many threads: it takes each size for the next power of two and gives little back, which
/// costs a gateway with one worker megabytes. This one packs, and gives back.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

const NAME: &str = "ferrule-edge";

fn main() -> ExitCode {
    cli::main(&Flavor {
        name: NAME,
        version: env!("CARGO_PKG_VERSION"),
        about: "MQTT broker with SQL rules and a store-and-forward queue",
        connectors: sinks,
        store: None,
        cluster: None,
        run: Run::Edge(start),
    })
}

fn sinks() -> Connectors {
    ferrule_sinks::light()
}

fn start(config: Whole, context: Context) -> Result<(), Box<dyn Error>> {
    let product = Product { name: NAME, edge: true, connectors: sinks(), store: None, cluster: None };
    Ok(run(&product, config, Arc::new(move || context.read()))?)
}
