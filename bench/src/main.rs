//! The command line of the benchmarks.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "tables on standard output are what this program is for")]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ferrule_bench::load;

#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Loads any broker and prints one JSON object.
    Load(load::Plan),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Load(plan) => load::run(&plan)
            .map_err(|e| e.to_string())
            .map(|outcome| println!("{}", serde_json::to_string(&outcome).unwrap_or_default())),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ferrule-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
