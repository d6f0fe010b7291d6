//! The command line of both binaries.
//!
//! A binary is a [`Flavor`] and a `main` that calls [`main`]: the commands, their texts and their exit codes are one.
//! This is the only module that reads the process's arguments and environment.
//!
//! Exit codes: 0 done; 1 a mistake found or an operation that failed; 2 wrong usage, or a file that cannot be read.

mod cert;
mod check;
mod client;
mod cluster;
mod import;
mod init;
mod outbox;
mod passwd;
mod status;
mod store;

use crate::cluster::Cluster;
use crate::config::changes::Whole;
use crate::config::{BrokerConfig, CloudConfig, ConfigErrors, EdgeConfig, Overrides, Source, StoreConfig};
use crate::connectors::{self, Connectors};
use crate::control::{self, Status};
use crate::listen;
use crate::store::Backend;
use crate::telemetry;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use ferrule_rules::Host;
use ferrule_rules::cli::{self as rules, Format, TestMessage};
use serde_json::{Value, json};
use std::error::Error;
use std::ffi::OsString;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Where a broker without a configuration file listens.
const LISTEN_PLAIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 1883);

/// Where it keeps its state: in sight of whoever tries it out, and writable for him.
const DATA_DIR_PLAIN: &str = "ferrule-data";

/// Which binary this is.
#[derive(Debug, Clone, Copy)]
pub struct Flavor {
    /// `"ferrule-edge"`.
    pub name: &'static str,
    /// Of the binary.
    pub version: &'static str,
    /// One line for `--help`.
    pub about: &'static str,
    /// What `CREATE SINK` may name.
    pub connectors: fn() -> Connectors,
    /// Where its store may be but in a file.
    pub store: Option<Backend>,
    /// What makes its nodes able to be one of several.
    pub cluster: Option<Cluster>,
    /// How it runs.
    pub run: Run,
}

/// How a binary runs: until it is told to stop.
#[derive(Debug, Clone, Copy)]
pub enum Run {
    /// With an edge's configuration.
    Edge(fn(Whole, Context) -> Result<(), Box<dyn Error>>),
    /// With a cloud node's.
    Cloud(fn(Whole, Context) -> Result<(), Box<dyn Error>>),
}

/// What the configuration was read from.
#[derive(Debug, Clone)]
pub struct Context {
    /// Which binary this is.
    pub flavor: Flavor,
    /// The file, if there is one.
    pub config_file: Option<PathBuf>,
    /// What was laid over it.
    pub overrides: Overrides,
    /// Where a broker without a file listens.
    pub listen: SocketAddr,
}

impl Context {
    /// Reads the configuration again, as it was read.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn read(&self) -> Result<Whole, ConfigErrors> {
        let (file, overrides) = (self.config_file.as_deref(), &self.overrides);
        let data_dir = Path::new(DATA_DIR_PLAIN);
        Ok(match self.flavor.run {
            Run::Edge(_) => {
                let config = match file {
                    Some(file) => EdgeConfig::load(file, overrides),
                    None => EdgeConfig::plain_with(self.listen, data_dir, overrides),
                }?;
                Whole { broker: config.broker, uplink: config.uplink }
            }
            Run::Cloud(_) => {
                let config = match file {
                    Some(file) => CloudConfig::load(file, overrides),
                    None => CloudConfig::plain_with(self.listen, data_dir, overrides),
                }?;
                Whole { broker: config.broker, uplink: None }
            }
        })
    }
}

/// Documentation of commands and options is what `--help` prints.
#[derive(Debug, Parser)]
#[command(disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a configuration, rules and passwords to begin with, and say what to type next
    Init(init::InitArgs),
    /// Run the broker
    Run(RunArgs),
    /// Check the configuration file and its rules, and show which source set each value
    Check(CheckArgs),
    /// Show what a running broker does
    Status(StatusArgs),
    /// Have a running broker take over its configuration, rules and passwords anew: all of it, or with a mistake nothing
    Reload(AskArgs),
    /// Move clients off a node that is one of several, have it leave, and show the members
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Check, try out, explain, format and import rules
    #[command(subcommand)]
    Rules(RulesCommand),
    /// Print mosquitto's or NanoMQ's configuration as one of this program's, and tell what could not be taken over
    Import(import::ImportArgs),
    /// Publish messages, with mosquitto_pub's flags
    Pub(Box<client::PubArgs>),
    /// Subscribe and print messages, with mosquitto_sub's flags
    Sub(Box<client::SubArgs>),
    /// Show, export and give up what waits for destinations
    #[command(subcommand)]
    Outbox(outbox::OutboxCommand),
    /// Look through what a broker has stored, running or not
    #[command(subcommand)]
    Store(store::StoreCommand),
    /// Read a password and print its hash, for `password` in the configuration file
    Passwd(passwd::PasswdArgs),
    /// Make an authority, certificates of the server and of clients, and revoke them
    Cert(cert::CertArgs),
}

#[derive(Debug, Args)]
struct RunArgs {
    /// The configuration file; without it, a plain broker for clients on this machine
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to listen, instead of the first listener's `bind` [default without a file: 127.0.0.1:1883]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Where to keep state, instead of `data_dir` [default without a file: ./ferrule-data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// What to log, instead of the file's `log`: error, warn, info, debug, trace, or directives like info,ferrule_link=debug
    #[arg(long, value_name = "LEVEL", env = "FERRULE_LOG")]
    log: Option<String>,
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// The configuration file
    #[arg(long, short, value_name = "FILE")]
    config: PathBuf,
    /// Show defaults too
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Args)]
struct StatusArgs {
    #[command(flatten)]
    ask: AskArgs,
    /// Show every setting that is in force, and who set it
    #[arg(long)]
    settings: bool,
}

/// Whom to ask over the control socket, and how to show the answer.
#[derive(Debug, Args)]
struct AskArgs {
    /// The data folder of the broker
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    data_dir: Option<PathBuf>,
    /// Its configuration file, which names the data folder
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the JSON of the control socket
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum RulesCommand {
    /// Show every mistake
    Check {
        /// Files of rules, or folders of them
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// How to print mistakes
        #[arg(long, value_enum, default_value = "text")]
        format: FormatArg,
    },
    /// Run one message through the rules: which match, why not, and what comes out
    Test(Box<TestArgs>),
    /// Read cases as JSON Lines on standard input and write their results
    Eval,
    /// Write rules files anew in one shape; `-` is standard input
    Fmt {
        /// Files of rules, or folders of them
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Only tell which would change
        #[arg(long)]
        check: bool,
    },
    /// Print the rules of EMQX or NanoMQ as a rules file
    Import {
        /// EMQX's data export or `cluster.hocon`, what its API gives for `GET /api/v5/rules`, NanoMQ's configuration
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Show what each rule subscribes to, reads and keeps
    Explain {
        /// Files of rules, or folders of them
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// How to print it
        #[arg(long, value_enum, default_value = "text")]
        format: FormatArg,
    },
}

#[derive(Debug, Args)]
struct TestArgs {
    /// Files of rules, or folders of them
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The message's topic
    #[arg(long, default_value = "", required_unless_present_any = ["message", "messages"])]
    topic: String,
    /// A message as JSON: {"topic":"a/b","payload":{"temp":81.5},"clientid":"press-7","at":"+10s"}; may be given several
    /// times, for rules that remember. What it leaves out is as the other flags say
    #[arg(long, value_name = "JSON", conflicts_with = "messages")]
    message: Vec<String>,
    /// Messages from a file, one a line as JSON; `-` reads them from standard input
    #[arg(long, value_name = "FILE")]
    messages: Option<PathBuf>,
    /// Its payload; `@FILE` reads it from a file
    #[arg(long, default_value = "")]
    payload: OsString,
    /// Its QoS
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=2))]
    qos: u8,
    /// Whether it is retained
    #[arg(long)]
    retain: bool,
    /// The client id of its publisher
    #[arg(long, default_value = "test")]
    clientid: String,
    /// The user name of its publisher
    #[arg(long)]
    username: Option<String>,
    /// The edge that forwarded it
    #[arg(long)]
    edge: Option<String>,
    /// A user property of it; may be given several times
    #[arg(long = "user-property", value_name = "NAME=VALUE", value_parser = pair)]
    user_properties: Vec<(String, String)>,
    /// When it was received, in ms since 1970 [default: now]
    #[arg(long, value_name = "MS", allow_negative_numbers = true)]
    timestamp: Option<i64>,
    /// How to print what came of it
    #[arg(long, value_enum, default_value = "text")]
    format: FormatArg,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum FormatArg {
    /// For people
    Text,
    /// For programs: one JSON object a line
    Json,
}

/// A failure that was not printed yet.
enum Failure {
    /// One line.
    Text(String),
    /// Mistakes in the configuration.
    Config(ConfigErrors),
    /// An error and its causes.
    Other(Box<dyn Error>),
}

/// Runs the program: `main`'s whole body.
pub fn main(flavor: &Flavor) -> ExitCode {
    ferrule_rules::jq::enter();
    let command = Cli::command().name(flavor.name).bin_name(flavor.name).about(flavor.about);
    let command = command.version(flavor.version);
    let command = command.mut_subcommand("cluster", |cluster| cluster.hide(flavor.cluster.is_none()));
    let cli = match command.try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        // Help and version come this way too, with exit code 0.
        Err(error) => {
            let _ = error.print();
            let code = u8::try_from(error.exit_code()).unwrap_or(2);
            // Scripts that were written for mosquitto's clients know theirs.
            let client = std::env::args_os().nth(1).is_some_and(|word| word == "pub" || word == "sub");
            return ExitCode::from(if client && code != 0 { client::FAILED } else { code });
        }
    };
    let result = match cli.command {
        Command::Init(args) => init::run(flavor, &args, &mut io::stdout().lock()),
        Command::Run(args) => run(flavor, args),
        Command::Check(args) => check(flavor, &args),
        Command::Status(args) => show_status(flavor, &args),
        Command::Reload(args) => reload(flavor, &args),
        Command::Cluster(command) => cluster::run(flavor, &command),
        Command::Rules(command) => rules(flavor, command),
        Command::Cert(args) => cert::run(&args, &mut io::stdout().lock()).map(|()| 0).map_err(Failure::Text),
        Command::Import(args) => import::run(flavor, &args),
        Command::Pub(args) => Ok(client::publish(&args)),
        Command::Sub(args) => Ok(client::subscribe(&args)),
        Command::Outbox(command) => outbox::run(flavor, &command),
        Command::Store(command) => store::run(flavor, &command),
        Command::Passwd(args) => passwd::run(&args).map(|()| 0).map_err(Failure::Text),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            let _ = report(flavor, &failure);
            ExitCode::FAILURE
        }
    }
}

fn report(flavor: &Flavor, failure: &Failure) -> io::Result<()> {
    let mut err = io::stderr().lock();
    match failure {
        Failure::Text(text) => writeln!(err, "{}: {text}", flavor.name),
        Failure::Config(errors) => write!(err, "{errors}"),
        Failure::Other(error) => {
            write!(err, "{}: {error}", flavor.name)?;
            let mut said = error.to_string();
            let mut cause = error.source();
            while let Some(error) = cause {
                // Many errors end with their cause's text already.
                let text = error.to_string();
                if !said.contains(&text) {
                    write!(err, ": {text}")?;
                    said = text;
                }
                cause = error.source();
            }
            writeln!(err)
        }
    }
}

fn run(flavor: &Flavor, args: RunArgs) -> Result<u8, Failure> {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let mut overrides = Overrides::from_env(std::env::vars_os());
    let head = flavor.head();
    if let Some(dir) = &args.data_dir {
        // A path that is not UTF-8 has no place in a TOML file either.
        let dir = dir.to_str().ok_or_else(|| Failure::Text("--data-dir is not UTF-8 text".to_owned()))?;
        overrides.option("--data-dir", &[head, "data_dir"], dir);
    }
    if let Some(log) = &args.log {
        overrides.option("--log", &[head, "log"], log);
    }
    if let (Some(listen), Some(_)) = (args.listen, &args.config) {
        overrides.option("--listen", &["listener", "0", "bind"], listen.to_string());
    }
    let listen = args.listen.unwrap_or(LISTEN_PLAIN);
    let context = Context { flavor: *flavor, config_file: args.config, overrides, listen };
    let config = context.read().map_err(Failure::Config)?;
    let log = &config.broker.node.log;
    telemetry::init(log, no_color).map_err(|e| Failure::Text(format!("`log` = {log:?}: {e}")))?;
    let (Run::Edge(run) | Run::Cloud(run)) = flavor.run;
    run(config, context).map_err(Failure::Other)?;
    Ok(0)
}

fn load(flavor: &Flavor, file: &Path) -> Result<BrokerConfig, Failure> {
    let overrides = Overrides::from_env(std::env::vars_os());
    let broker = match flavor.run {
        Run::Edge(_) => EdgeConfig::load(file, &overrides).map(|c| c.broker),
        Run::Cloud(_) => CloudConfig::load(file, &overrides).map(|c| c.broker),
    };
    broker.map_err(Failure::Config)
}

fn check(flavor: &Flavor, args: &CheckArgs) -> Result<u8, Failure> {
    let broker = load(flavor, &args.config)?;
    let mut out = io::stdout().lock();
    let (code, sinks) = match &broker.node.rules {
        Some(path) => {
            let files = rule_files(std::slice::from_ref(path))?;
            check::rules(flavor, &files, Format::Text, &mut out).map_err(failed)?
        }
        None => (0, 0),
    };
    if let (StoreConfig::Postgres(store), Some(backend)) = (&broker.store, flavor.store) {
        let wrong = (backend.check)(store);
        let wrong: Vec<String> = wrong.iter().map(|(key, why)| format!("`store.{key}`: {why}")).collect();
        if !wrong.is_empty() {
            return Err(Failure::Text(format!("{}: {}", args.config.display(), wrong.join("; "))));
        }
    }
    if let (Some(config), Some(cluster)) = (&broker.cluster, flavor.cluster) {
        (cluster.check)(config).map_err(|why| Failure::Text(format!("{}: {why}", args.config.display())))?;
    }
    for listener in &broker.listeners {
        let loaded = listen::layers(listener);
        let (_, certificates) = loaded.map_err(|error| Failure::Text(error.to_string()))?;
        for warning in listen::warnings(&certificates) {
            writeln!(out, "{}: warning: {warning}", args.config.display()).map_err(failed)?;
        }
    }
    for warning in &broker.warnings {
        writeln!(out, "{}: warning: {warning}", args.config.display()).map_err(failed)?;
    }
    for note in &broker.notes {
        writeln!(out, "{}: note: {note}", args.config.display()).map_err(failed)?;
    }
    for line in settings(&broker, args) {
        writeln!(out, "{line}").map_err(failed)?;
    }
    if args.all {
        let edge = matches!(flavor.run, Run::Edge(_));
        writeln!(out, "# memory: {}", crate::run::worst_case(edge, &broker, sinks)).map_err(failed)?;
    }
    Ok(exit_code(code))
}

/// Each setting and its source, in aligned columns.
fn settings(broker: &BrokerConfig, args: &CheckArgs) -> Vec<String> {
    let shown: Vec<(String, String)> = broker
        .settings
        .iter()
        .filter(|s| args.all || s.source != Source::Default)
        .map(|s| {
            let value = s.value.as_deref().unwrap_or("(not set)");
            let source = match &s.source {
                Source::File { line } => format!("{}:{line}", args.config.display()),
                other => other.to_string(),
            };
            (format!("{} = {value}", s.path), source)
        })
        .collect();
    aligned(&shown)
}

/// Settings, and who set them behind.
fn aligned(shown: &[(String, String)]) -> Vec<String> {
    // A long list of topics must not push the sources off the screen.
    let width = shown.iter().map(|(s, _)| s.chars().count()).max().unwrap_or(0).min(60);
    shown.iter().map(|(setting, source)| format!("{setting:<width$}  # {source}")).collect()
}

/// Which broker.
#[derive(Debug, Args)]
struct Where {
    /// The data folder of the broker
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    data_dir: Option<PathBuf>,
    /// Its configuration file, which names the data folder
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// The data folder that is meant.
fn data_dir(flavor: &Flavor, dir: Option<&PathBuf>, config: Option<&PathBuf>) -> Result<PathBuf, Failure> {
    Ok(match (dir, config) {
        (Some(dir), _) => dir.clone(),
        (None, Some(file)) => load(flavor, file)?.node.data_dir,
        // Where `run` without a file keeps its state, if it did so here.
        (None, None) if Path::new(DATA_DIR_PLAIN).is_dir() => PathBuf::from(DATA_DIR_PLAIN),
        (None, None) => PathBuf::from(crate::config::DATA_DIR_DEFAULT),
    })
}

impl AskArgs {
    fn ask(&self, flavor: &Flavor, what: &str) -> Result<Value, Failure> {
        let data_dir = data_dir(flavor, self.data_dir.as_ref(), self.config.as_ref())?;
        control::ask(&data_dir, flavor.name, &json!({ "do": what })).map_err(|e| Failure::Text(e.to_string()))
    }
}

fn show_status(flavor: &Flavor, args: &StatusArgs) -> Result<u8, Failure> {
    let answer = args.ask.ask(flavor, if args.settings { "settings" } else { "status" })?;
    let mut out = io::stdout().lock();
    if args.ask.json {
        writeln!(out, "{answer:#}").map_err(failed)?;
    } else if args.settings {
        let text = |setting: &Value, key: &str| setting[key].as_str().unwrap_or("(not set)").to_owned();
        let shown = answer["settings"].as_array().into_iter().flatten();
        let shown = shown.map(|s| (format!("{} = {}", text(s, "path"), text(s, "value")), text(s, "source")));
        for line in aligned(&shown.collect::<Vec<_>>()) {
            writeln!(out, "{line}").map_err(failed)?;
        }
    } else {
        let status: Status = serde_json::from_value(answer).map_err(|e| {
            Failure::Text(format!("its status is of an unknown form ({e}); `--json` shows it"))
        })?;
        write!(out, "{}", status::render(&status)).map_err(failed)?;
    }
    Ok(0)
}

fn reload(flavor: &Flavor, args: &AskArgs) -> Result<u8, Failure> {
    let answer = args.ask(flavor, "reload")?;
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{answer:#}").map_err(failed)?;
        return Ok(0);
    }
    let lines = |key: &str| answer[key].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let (changed, restart): (Vec<&str>, Vec<&str>) = (lines("changed"), lines("needs_restart"));
    for line in &changed {
        writeln!(out, "in force now: {line}").map_err(failed)?;
    }
    for line in &restart {
        writeln!(out, "not in force: {line}").map_err(failed)?;
    }
    match answer["disconnected"].as_u64() {
        None | Some(0) => {}
        Some(1) => writeln!(out, "1 client was disconnected").map_err(failed)?,
        Some(gone) => writeln!(out, "{gone} clients were disconnected").map_err(failed)?,
    }
    if changed.is_empty() && restart.is_empty() {
        writeln!(out, "the configuration is the same; rules and certificates were read anew")
            .map_err(failed)?;
    }
    Ok(0)
}

fn rules(flavor: &Flavor, command: RulesCommand) -> Result<u8, Failure> {
    let host = flavor.host();
    let mut out = io::BufWriter::new(io::stdout().lock());
    let code = match command {
        RulesCommand::Check { files, format } => {
            check::rules(flavor, &rule_files(&files)?, format.into(), &mut out).map(|(code, _)| code)
        }
        RulesCommand::Test(args) => {
            let files = rule_files(&args.files)?;
            let format = args.format.into();
            rules::test(&files, &host, &messages(*args)?, format, &mut out)
        }
        RulesCommand::Eval => rules::eval(&mut io::stdin().lock(), &mut out),
        RulesCommand::Fmt { files, check } => {
            rules::fmt(&files, check, &mut io::stdin().lock(), &mut out, &mut io::stderr().lock())
        }
        RulesCommand::Import { files } => rules::import(&files, &host, &mut out, &mut io::stderr().lock()),
        RulesCommand::Explain { files, format } => {
            rules::explain(&rule_files(&files)?, &host, format.into(), &mut out)
        }
    };
    let code = code.and_then(|code| out.flush().map(|()| code)).map_err(failed)?;
    Ok(exit_code(code))
}

/// The messages of `rules test`: those given as JSON, or else the one that the flags are.
fn messages(mut args: TestArgs) -> Result<Vec<TestMessage>, Failure> {
    let given = std::mem::take(&mut args.message);
    let file = args.messages.take();
    let base = message(args)?;
    if let Some(file) = file {
        let text = if file.as_os_str() == "-" {
            io::read_to_string(io::stdin().lock())
        } else {
            std::fs::read_to_string(&file)
        };
        let text = text.map_err(|e| Failure::Text(format!("cannot read {}: {e}", file.display())))?;
        let place = |n: usize| format!("{}:{}", file.display(), n + 1);
        let lines = text.lines().enumerate().map(|(n, line)| (place(n), line));
        return rules::messages(lines, &base).map_err(Failure::Text);
    }
    if given.is_empty() {
        return Ok(vec![base]);
    }
    let lines = given.iter().enumerate().map(|(n, line)| (format!("--message {}", n + 1), line.as_str()));
    rules::messages(lines, &base).map_err(Failure::Text)
}

fn message(args: TestArgs) -> Result<TestMessage, Failure> {
    use std::os::unix::ffi::OsStringExt;
    let payload = match args.payload.to_str().and_then(|text| text.strip_prefix('@')) {
        Some(file) => std::fs::read(file).map_err(|e| Failure::Text(format!("cannot read {file}: {e}")))?,
        None => args.payload.into_vec(),
    };
    Ok(TestMessage {
        topic: args.topic,
        payload,
        qos: args.qos,
        retain: args.retain,
        clientid: args.clientid,
        username: args.username,
        edge: args.edge,
        user_properties: args.user_properties,
        timestamp_ms: args.timestamp.unwrap_or_else(ferrule_clock::wall_ms),
        columns: None,
    })
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Folders become their files.
fn rule_files(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut files = Vec::new();
    for path in paths {
        let more = rules::rule_files(path);
        files.extend(more.map_err(|e| Failure::Text(format!("cannot read {}: {e}", path.display())))?);
    }
    Ok(files)
}

fn failed(error: io::Error) -> Failure {
    Failure::Other(Box::new(error))
}

fn exit_code(code: i32) -> u8 {
    u8::try_from(code).unwrap_or(1)
}

impl From<FormatArg> for Format {
    fn from(format: FormatArg) -> Format {
        match format {
            FormatArg::Text => Format::Text,
            FormatArg::Json => Format::Json,
        }
    }
}

// === impl Flavor ===

impl Flavor {
    /// The section of the file with `id` and `data_dir`.
    fn head(&self) -> &'static str {
        match self.run {
            Run::Edge(_) => "edge",
            Run::Cloud(_) => "node",
        }
    }

    /// What rules may name.
    fn host(&self) -> Host {
        connectors::host(matches!(self.run, Run::Edge(_)), &(self.connectors)())
    }
}

#[cfg(test)]
mod tests;
