//! The command line of the demo.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use ferrule_examples::demo::{self, Options};

/// The main job on this machine's own figures: devices, edge, cloud, SQLite, Kafka.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// Milliseconds between two readings of a device.
    #[arg(long, default_value_t = 250, value_parser = clap::value_parser!(u64).range(1..))]
    interval_ms: u64,
    /// End after so many seconds; default $DEMO_SECONDS, else Ctrl-C ends it.
    #[arg(long)]
    seconds: Option<f64>,
    /// Start no Kafka even where one could be started.
    #[arg(long)]
    no_kafka: bool,
    /// Keep the folder with data, logs and the SQLite file; so does DEMO_KEEP=1.
    #[arg(long)]
    keep: bool,
}

/// A variable that is set and not empty.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn main() -> ExitCode {
    let mut cli = Cli::parse();
    if cli.seconds.is_none()
        && let Some(text) = variable("DEMO_SECONDS")
    {
        match text.parse() {
            Ok(seconds) => cli.seconds = Some(seconds),
            Err(_) => {
                eprintln!("demo: DEMO_SECONDS={text} is not a number");
                return ExitCode::FAILURE;
            }
        }
    }
    cli.keep |= variable("DEMO_KEEP").is_some_and(|value| value != "0");
    let seconds = cli.seconds.map(Duration::try_from_secs_f64);
    let Ok(length) = seconds.transpose() else {
        eprintln!("demo: a length is a number of seconds, not negative");
        return ExitCode::FAILURE;
    };
    let options = Options {
        interval: Duration::from_millis(cli.interval_ms),
        length,
        kafka: !cli.no_kafka,
        keep: cli.keep,
    };
    match demo::run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}
