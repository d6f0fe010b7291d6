//! `store check` and `store dump`: of a running broker through its control socket, else from the file itself.

use super::{Failure, Flavor, Run, data_dir, failed};
use crate::control::{self, AskError, ControlError, DataDirLock};
use crate::stored::{self, Fault, Told};
use clap::{Args, Subcommand};
use ferrule_store_sqlite::{Look, Options, SCHEMA_VERSION};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// What is done with a store.
#[derive(Debug, Subcommand)]
pub(super) enum StoreCommand {
    /// Read everything in the store and say what is there, and what of it cannot be read or does not fit together
    Check(StoreArgs),
    /// Print everything in the store, one JSON object a line
    Dump(StoreArgs),
}

/// Which store.
#[derive(Debug, Args)]
pub(super) struct StoreArgs {
    /// The data folder of the broker
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    data_dir: Option<PathBuf>,
    /// Its configuration file, which names the data folder
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Where items come from.
enum Source {
    Running(PathBuf, &'static str),
    /// Nobody else may open it meanwhile.
    File {
        look: Box<Look>,
        _lock: DataDirLock,
    },
}

impl Source {
    fn open(flavor: &Flavor, folder: &Path) -> Result<Option<Self>, Failure> {
        let text = |e: String| Failure::Text(e);
        if !folder.is_dir() {
            return Ok(None);
        }
        let lock = match DataDirLock::take(folder) {
            Ok(lock) => lock,
            Err(ControlError::InUse(_)) => return Ok(Some(Self::Running(folder.to_owned(), flavor.name))),
            Err(e) => return Err(text(e.to_string())),
        };
        let options = match flavor.run {
            Run::Edge(_) => Options::edge(),
            Run::Cloud(_) => Options::cloud(),
        };
        let look = Look::open(folder, &options).map_err(|e| {
            text(format!("{e}\nA start moves a damaged file aside, keeps what can be read of it and says what was lost."))
        })?;
        Ok(look.map(|look| Self::File { look: Box::new(look), _lock: lock }))
    }

    /// Some items as JSON, and where to go on.
    fn page(&self, after: &Value) -> Result<(Vec<Value>, Value), Failure> {
        let page = match self {
            Self::Running(folder, program) => {
                let request = json!({ "do": "store.page", "after": after });
                control::ask(folder, program, &request).map_err(|e| match e {
                    AskError::NotRunning { .. } => {
                        Failure::Text("it has stopped meanwhile: try again".to_owned())
                    }
                    e => Failure::Text(e.to_string()),
                })?
            }
            Self::File { look, .. } => {
                let after = stored::cursor(after).map_err(Failure::Text)?;
                stored::page(&look.page(after.as_ref()).map_err(Failure::Text)?)
            }
        };
        let Value::Object(mut page) = page else { return Ok((Vec::new(), Value::Null)) };
        let items = match page.remove("items") {
            Some(Value::Array(items)) => items,
            _ => Vec::new(),
        };
        Ok((items, page.remove("next").unwrap_or(Value::Null)))
    }

    fn each(&self, mut item: impl FnMut(Value) -> io::Result<()>) -> Result<(), Failure> {
        let mut after = Value::Null;
        loop {
            let (items, next) = self.page(&after)?;
            items.into_iter().try_for_each(&mut item).map_err(failed)?;
            if next.is_null() {
                return Ok(());
            }
            after = next;
        }
    }
}

pub(super) fn run(flavor: &Flavor, command: &StoreCommand) -> Result<u8, Failure> {
    let (StoreCommand::Check(args) | StoreCommand::Dump(args)) = command;
    let folder = data_dir(flavor, args.data_dir.as_ref(), args.config.as_ref())?;
    let Some(source) = Source::open(flavor, &folder)? else {
        let told =
            format!("there is no store in {}: `--data-dir` or `--config` says where it is", folder.display());
        return Err(Failure::Text(told));
    };
    let mut out = io::BufWriter::new(io::stdout().lock());
    let code = match command {
        StoreCommand::Dump(_) => {
            source.each(|item| writeln!(out, "{item}"))?;
            0
        }
        StoreCommand::Check(_) => check(&source, &mut out)?,
    };
    out.flush().map_err(failed)?;
    match source {
        Source::File { look, .. } => look.close().map_err(Failure::Text)?,
        Source::Running(..) => {}
    }
    Ok(code)
}

fn check(source: &Source, out: &mut impl Write) -> Result<u8, Failure> {
    let mut told = Told::default();
    let mut faults = BTreeMap::<String, u64>::new();
    source.each(|item| {
        if let Err(Fault(fault)) = told.count(&item) {
            *faults.entry(fault).or_default() += 1;
        }
        Ok(())
    })?;
    writeln!(out, "format {SCHEMA_VERSION}").map_err(failed)?;
    write!(out, "{told}").map_err(failed)?;
    match source {
        Source::File { look, .. } => {
            for fault in look.faults().map_err(Failure::Text)? {
                *faults.entry(fault).or_default() += 1;
            }
        }
        Source::Running(..) => {
            writeln!(out, "it runs: records were read; the file itself is checked when it does not")
                .map_err(failed)?;
        }
    }
    for (fault, times) in &faults {
        let times = if *times > 1 { format!(" ({times} times)") } else { String::new() };
        writeln!(out, "fault: {fault}{times}").map_err(failed)?;
    }
    if faults.is_empty() {
        writeln!(out, "no faults").map_err(failed)?;
    }
    Ok(u8::from(!faults.is_empty()))
}
