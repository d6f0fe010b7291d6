//! The command line of the benchmarks.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "tables on standard output are what this program is for")]

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use ferrule_bench::peer::Peer;
use ferrule_bench::result::Run;
use ferrule_bench::{
    backlog, carrier::Over, cluster, crowd, floor, handshakes, idle, load, pipeline, report, rows, rules,
    run, scale, stored, storm, volume,
};

/// Load generator and side-by-side benchmarks. Without a command: `run`.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs all rows, prints a table and writes a result file.
    Run(RunArgs),
    /// Loads any broker and prints what came of it as one JSON object.
    Load(load::Plan),
    /// The least that a broker can do: the peer `floor` of the tables.
    Floor(floor::FloorArgs),
    /// Very many clients that keep alive until a message reaches all; prints what came of it as one JSON object.
    Crowd(crowd::CrowdPlan),
    /// TLS handshakes, one after the other on many connections; prints what came of it as one JSON object.
    Handshakes(handshakes::HandshakesPlan),
    /// The least that a TLS server can do: the peer `bare rustls` of the tables.
    Acceptor(handshakes::AcceptorArgs),
    /// A shard of the broker without sockets: how memory and time grow with sessions and filters.
    Scale(scale::ScaleArgs),
    /// What rules cost, without sockets; prints what one round found.
    Rules(rules::RulesArgs),
    /// The link to the cloud, beside mosquitto's bridge: bytes of IP packets and delay a message (root); writes a result file.
    Wire(volume::WireArgs),
    /// A gateway without its cloud, and the backlog afterwards; writes a result file.
    Backlog(backlog::BacklogArgs),
    /// Several nodes: CPU a delivery, a subscribe's barrier, a route's memory, the link, sessions of a dead node; writes a result file.
    Cluster(cluster::ClusterArgs),
    /// Writes docs/wire.md from the newest result file of `wire`.
    WireReport,
    /// Writes docs/benchmarks.md from the newest result file.
    Report(ReportArgs),
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Rounds a row.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// A smoke test: one short round a row, few clients, its result not used by `report`.
    #[arg(long)]
    quick: bool,
    /// Only rows whose name contains this; like a smoke test's, its result is not used by `report`.
    #[arg(long)]
    only: Option<String>,
    /// Leave out the rows through edge, cloud and sink.
    #[arg(long)]
    no_pipeline: bool,
    /// The folder for the result file; default bench/results of this checkout, of a part target.
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ReportArgs {
    /// The folder of result files; default bench/results of this checkout.
    #[arg(long)]
    results: Option<PathBuf>,
    /// The file to write; default docs/benchmarks.md of this checkout.
    #[arg(long)]
    out: Option<PathBuf>,
}

/// The checkout that this program was built in.
fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn main() -> ExitCode {
    let default =
        Command::Run(RunArgs { rounds: 3, quick: false, only: None, no_pipeline: false, out: None });
    let result = match Cli::parse().command.unwrap_or(default) {
        Command::Run(args) => all(&args),
        Command::Load(plan) => one_load(&plan),
        Command::Floor(args) => floor::serve(&args).map_err(Into::into),
        Command::Crowd(plan) => one_crowd(&plan),
        Command::Handshakes(plan) => some_handshakes(&plan),
        Command::Acceptor(args) => handshakes::accept(&args).map_err(Into::into),
        Command::Scale(args) => one_scale(&args),
        Command::Rules(args) => one_round_of_rules(&args),
        Command::Wire(args) => the_link(&args),
        Command::Backlog(args) => the_backlog(&args),
        Command::Cluster(args) => several_nodes(&args),
        Command::WireReport => write_wire_report(),
        Command::Report(args) => write_report(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ferrule-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn one_load(plan: &load::Plan) -> Result<(), Box<dyn Error>> {
    println!("{}", serde_json::to_string(&load::run(plan)?)?);
    Ok(())
}

fn one_crowd(plan: &crowd::CrowdPlan) -> Result<(), Box<dyn Error>> {
    let outcome = crowd::run(plan, |what| eprintln!("  {what}"))?;
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

fn some_handshakes(plan: &handshakes::HandshakesPlan) -> Result<(), Box<dyn Error>> {
    println!("{}", serde_json::to_string(&handshakes::run(plan)?)?);
    Ok(())
}

fn one_scale(args: &scale::ScaleArgs) -> Result<(), Box<dyn Error>> {
    match (args.sessions, args.filters.zip(args.topics)) {
        (Some(sessions), _) => println!("{}", serde_json::to_string(&scale::measure_sessions(sessions)?)?),
        (None, Some((filters, topics))) => {
            println!("{}", serde_json::to_string(&scale::measure_filters(filters, topics)?)?);
        }
        (None, None) => {
            let options = run::Options {
                rounds: if args.quick { 1 } else { 3 },
                quick: args.quick,
                only: None,
                generator: std::env::current_exe()?,
            };
            let mut result = run::begin(&options, &[], &root());
            scale_rows(&options, &mut result);
            print!("{}", report::plain(&result));
        }
    }
    Ok(())
}

fn one_round_of_rules(args: &rules::RulesArgs) -> Result<(), Box<dyn Error>> {
    println!("{}", serde_json::to_string(&rules::measure(args.quick, &args.only)?)?);
    Ok(())
}

/// The rows of one process without sockets.
fn scale_rows(options: &run::Options, result: &mut Run) {
    let core = result.machine.broker_core;
    let said = |what: &str| eprintln!("  {what}");
    result.sessions = scale::sessions(options, core, said);
    result.filters = scale::filters(options, core, said);
    result.rules = rules::rounds(options, core, said);
}

fn write_report(args: &ReportArgs) -> Result<(), Box<dyn Error>> {
    let results = args.results.clone().unwrap_or_else(|| root().join("bench/results"));
    let out = args.out.clone().unwrap_or_else(|| root().join("docs/benchmarks.md"));
    let (path, run) = Run::newest(&results)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut page = report::markdown(&run, &name);
    if let Some((source, cluster)) = cluster::ClusterRun::newest(&results.join("cluster")) {
        page.push_str(&cluster.section(&source));
    }
    std::fs::write(&out, page)?;
    println!("{} from {name}", out.display());
    Ok(())
}

fn several_nodes(args: &cluster::ClusterArgs) -> Result<(), Box<dyn Error>> {
    let generator = std::env::current_exe()?;
    let (path, run) = cluster::run(args, generator, &root(), |what| eprintln!("  {what}"))?;
    println!("{}\nwritten: {}", run.table(), path.display());
    if run.errors.is_empty() { Ok(()) } else { Err(run.errors.join("; ").into()) }
}

fn the_link(args: &volume::WireArgs) -> Result<(), Box<dyn Error>> {
    let (path, run) = volume::run(args, &root(), |what| eprintln!("  {what}"))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    println!("{}\nwritten: {}", volume::markdown(&run, &name), path.display());
    let failed: Vec<&str> = run.rows.iter().flat_map(|row| &row.errors).map(String::as_str).collect();
    if failed.is_empty() { Ok(()) } else { Err(failed.join("; ").into()) }
}

fn the_backlog(args: &backlog::BacklogArgs) -> Result<(), Box<dyn Error>> {
    let (path, found) = backlog::run(args, &root(), |what| eprintln!("  {what}"))?;
    println!("{}written: {}", found.table(), path.display());
    Ok(())
}

fn write_wire_report() -> Result<(), Box<dyn Error>> {
    let (name, run) = volume::newest(&root().join("bench/results/wire"))?;
    let out = root().join("docs/wire.md");
    std::fs::write(&out, volume::markdown(&run, &name))?;
    println!("{} from {name}", out.display());
    Ok(())
}

fn all(args: &RunArgs) -> Result<(), Box<dyn Error>> {
    let generator = std::env::current_exe()?;
    let mut peers = Vec::new();
    let edge = std::env::var_os("FERRULE_BIN_DIR").map_or_else(
        || generator.with_file_name("ferrule-edge"),
        |folder| PathBuf::from(folder).join("ferrule-edge"),
    );
    let ours = edge.is_file();
    if ours {
        peers.push(Peer::ferrule_edge(edge.clone()));
    } else {
        eprintln!("{} is not there (`make build` makes it): no row of ours", edge.display());
    }
    match Peer::mosquitto() {
        Some(peer) => peers.push(peer),
        None => eprintln!("mosquitto is not installed (apt-get install mosquitto): no ratios"),
    }
    peers.push(Peer::floor(generator.clone()));
    let options = run::Options {
        rounds: if args.quick { 1 } else { args.rounds },
        quick: args.quick,
        only: args.only.clone(),
        generator,
    };
    let mut result = run::begin(&options, &peers, &root());
    // What is only a part, or a smoke test, must not become the newest result that `report` finds.
    let partial = args.quick || args.only.is_some();
    let folder =
        args.out.clone().unwrap_or_else(|| root().join(if partial { "target" } else { "bench/results" }));
    let said = |what: &str| eprintln!("  {what}");
    let machine = result.machine.clone();
    result.rows = run::rounds(&options, &machine, &rows::side_by_side(args.quick, &peers), said);
    // Who can do what carries MQTT: the floor has neither TLS nor WebSocket.
    let carried = |over: Over| {
        let ferrule = ours.then(|| Peer::ferrule_over(edge.clone(), over));
        let floor = peers.last().filter(|_| over == Over::Tcp).cloned();
        ferrule.into_iter().chain(Peer::mosquitto_over(over)).chain(floor).collect::<Vec<_>>()
    };
    result.carried = run::rounds(&options, &machine, &rows::carried(args.quick, carried), said);
    result.write(&folder)?; // minutes of work, before the next part can fail
    if ours {
        result.variants = run::rounds(
            &options,
            &machine,
            &[rows::variants(args.quick, &edge), rows::republish(args.quick, &edge)],
            said,
        );
        result.workers = run::rounds(&options, &machine, &[rows::workers(args.quick, &edge)], said);
    }
    let proxied = ours.then(|| Peer::ferrule_proxied(edge.clone()));
    result.idle = idle::run(&options, &machine, carried, proxied, said);
    let mut servers = carried(Over::Tls);
    servers.push(Peer::acceptor(options.generator.clone()));
    result.handshakes = handshakes::rows(&options, &machine, &servers, said);
    // The floor would be no measure: it promises nobody anything.
    let others = |over: Over| carried(over).into_iter().filter(|peer| peer.name != "floor").collect();
    result.storms = storm::run(&options, &machine, others, said);
    scale_rows(&options, &mut result);
    if ours {
        result.stored = stored::run(&options, &edge, said);
    }
    result.write(&folder)?;
    if !args.no_pipeline {
        result.pipeline = pipeline::run(&options, said);
    }
    print!("{}", report::plain(&result));
    println!("\nwritten: {}", result.write(&folder)?.display());
    Ok(())
}
