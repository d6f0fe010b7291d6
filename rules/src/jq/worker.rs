//! The worker: bounds itself, says that it is ready, answers until its parent is gone.

use std::collections::HashMap;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use jaq_core::data::JustLut;
use jaq_core::load::{self, Arena, File, Loader, parse::Def};
use jaq_core::{Compiler, Ctx, Filter, Vars, compile};
use jaq_json::{Num, Val, read};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::wire::{self, Answer, Request};
use crate::json::MAX_DEPTH;

type Data = JustLut<Val>;
type Definitions = Vec<Def<&'static str>>;

/// All memory, the executable's own mappings included.
const MEMORY: u64 = 256 << 20;
/// The stack: what the interpreter recurses on must fit. It grows as it is used.
const STACK: u64 = 64 << 20;
/// Processor time of one question, in seconds; the parent's patience is shorter unless it has died.
const SECONDS: u64 = 2;
/// Compiled programs that are kept; then all are forgotten.
const COMPILED_MAX: usize = 64;

/// Filters that say what the machine is, or end the process.
const FORBIDDEN: [&str; 1] = ["env"];

/// Serves the parent on standard input and ends the process.
pub fn serve() -> ! {
    // Nobody reads what went wrong: the parent sees the end.
    let _ = answer_all();
    std::process::exit(0)
}

fn answer_all() -> io::Result<()> {
    bound()?;
    let mut pipe = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    // No further files from here on.
    limit(Resource::Nofile, 0)?;
    let definitions: Definitions = definitions();
    let mut compiled: HashMap<String, Filter<Data>> = HashMap::new();
    wire::write_empty(&mut pipe)?;
    while let Some(body) = wire::read_frame(&mut pipe, wire::REQUEST_MAX)? {
        let used = u64::try_from(clock_gettime(ClockId::ProcessCPUTime).tv_sec).unwrap_or(0);
        limit(Resource::Cpu, used + SECONDS)?;
        let answer = match Request::read(&body) {
            Some(Request::Check { program }) => match compile(program, &definitions) {
                Ok(_) => Answer::Outputs("[]".to_owned()),
                Err(mistake) => mistake,
            },
            Some(Request::Run { program, input, outputs_max, bytes_max }) => {
                if compiled.len() >= COMPILED_MAX && !compiled.contains_key(program) {
                    compiled.clear();
                }
                let filter = match compiled.get(program) {
                    Some(filter) => Ok(filter),
                    None => compile(program, &definitions)
                        .map(|filter| &*compiled.entry(program.to_owned()).or_insert(filter)),
                };
                match filter {
                    Ok(filter) => match read::parse_single(input) {
                        Ok(input) => {
                            wire::write_empty(&mut pipe)?;
                            match run(filter, input, outputs_max, bytes_max) {
                                Ok(json) => Answer::Outputs(json),
                                Err(message) => Answer::Raised(message),
                            }
                        }
                        Err(error) => Answer::Raised(format!("the input is no JSON: {error}")),
                    },
                    Err(mistake) => mistake,
                }
            }
            None => return Ok(()),
        };
        pipe.write_all(&answer.frame())?;
    }
    Ok(())
}

/// What is to hold before anything is read.
fn bound() -> io::Result<()> {
    // The kernel's first choice when memory is short, before the broker. Not everywhere allowed.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    // A program that never ends must not outlive the broker.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    limit(Resource::Core, 0)?;
    limit(Resource::Fsize, 0)?;
    limit(Resource::Stack, STACK)?;
    limit(Resource::As, MEMORY)
}

/// Sets a limit, or the hard one where that is lower; the hard one stays, so that time can be given again.
fn limit(resource: Resource, to: u64) -> io::Result<()> {
    let maximum = getrlimit(resource).maximum;
    let current = maximum.map_or(to, |maximum| maximum.min(to));
    Ok(setrlimit(resource, Rlimit { current: Some(current), maximum })?)
}

// === programs ===

fn definitions() -> Definitions {
    let all = jaq_core::defs().chain(jaq_std::defs()).chain(jaq_json::defs());
    all.collect()
}

fn compile(program: &str, definitions: &Definitions) -> Result<Filter<Data>, Answer> {
    let arena = Arena::default();
    let mistake = |code: &str, at: &str, message: String| {
        // `at` is a part of `code`.
        let at = (at.as_ptr() as usize).checked_sub(code.as_ptr() as usize).filter(|&at| at <= code.len());
        Answer::Mistake { at, message }
    };
    let unknown = || Answer::Mistake { at: None, message: "this is no jq program".to_owned() };
    let loader = Loader::new(definitions.iter().cloned());
    let modules = loader.load(&arena, File { code: program, path: () }).map_err(|errors| {
        let first = errors.into_iter().next().and_then(|(file, error)| match error {
            load::Error::Io(errors) => {
                let (at, _) = errors.into_iter().next()?;
                Some(mistake(file.code, at, "there are no modules to include".to_owned()))
            }
            load::Error::Lex(errors) => {
                let (expected, at) = errors.into_iter().next()?;
                Some(mistake(file.code, at, format!("expected {}", expected.as_str())))
            }
            load::Error::Parse(errors) => {
                let (expected, at) = errors.into_iter().next()?;
                Some(mistake(file.code, at, format!("expected {}", expected.as_str())))
            }
        });
        first.unwrap_or_else(unknown)
    })?;
    // `import "data" as $x` is no error to the compiler.
    load::import(&modules, |_| Err(String::new())).map_err(|errors| {
        let place = errors.iter().find_map(|(file, error)| match error {
            load::Error::Io(errors) => errors.first().map(|(at, _)| (file.code, *at)),
            _ => None,
        });
        place.map_or_else(unknown, |(code, at)| mistake(code, at, "there are no files to import".to_owned()))
    })?;
    let functions = jaq_core::funs().chain(jaq_std::funs()).chain(jaq_json::funs());
    let functions = functions.filter(|(name, ..)| !FORBIDDEN.contains(name));
    Compiler::default().with_funs(functions).compile(modules).map_err(|errors| {
        let first = errors.into_iter().next().and_then(|(file, errors)| {
            let (at, what) = errors.into_iter().next()?;
            let message = match what {
                compile::Undefined::Filter(arity) => format!("unknown filter `{at}/{arity}`"),
                what => format!("unknown {} `{at}`", what.as_str()),
            };
            Some(mistake(file.code, at, message))
        });
        first.unwrap_or_else(unknown)
    })
}

fn run(filter: &Filter<Data>, input: Val, outputs_max: u32, bytes_max: u32) -> Result<String, String> {
    let context = Ctx::<Data>::new(&filter.lut, Vars::new([]));
    let mut out = Output { text: vec![b'['], bytes_max: usize::try_from(bytes_max).unwrap_or(usize::MAX) };
    for (nth, output) in filter.id.run((context, input)).enumerate() {
        let value = match output {
            Ok(value) => value,
            Err(exception) => match exception.get_err() {
                Ok(error) => return Err(error.to_string()),
                // `halt`: what has come is all.
                Err(_) => break,
            },
        };
        if nth >= usize::try_from(outputs_max).unwrap_or(usize::MAX) {
            return Err(format!("there are more than {outputs_max} outputs"));
        }
        if nth > 0 {
            out.text.push(b',');
        }
        out.value(&value, 1)?;
    }
    out.text.push(b']');
    String::from_utf8(out.text).map_err(|_| "an output is not UTF-8".to_owned())
}

/// JSON as jq writes it: NaN is `null`, infinity the largest float, a float without decimals an integer.
struct Output {
    text: Vec<u8>,
    bytes_max: usize,
}

impl Output {
    fn value(&mut self, value: &Val, depth: usize) -> Result<(), String> {
        if self.text.len() >= self.bytes_max {
            return Err(format!("the outputs have more than {} bytes", self.bytes_max));
        }
        if depth > MAX_DEPTH {
            return Err(format!("an output is nested deeper than {MAX_DEPTH}"));
        }
        match value {
            Val::Null => self.text.extend_from_slice(b"null"),
            Val::Bool(truth) => self.text.extend_from_slice(if *truth { b"true" } else { b"false" }),
            Val::Num(Num::Float(float)) => self.float(*float),
            // As the text of a number it may be larger than any float.
            Val::Num(Num::Dec(digits)) if digits.parse::<f64>().is_ok_and(f64::is_infinite) => {
                self.float(if digits.starts_with('-') { f64::NEG_INFINITY } else { f64::INFINITY });
            }
            Val::Num(Num::Dec(digits)) => self.text.extend_from_slice(digits.as_bytes()),
            Val::Num(number) => self.text.extend_from_slice(number.to_string().as_bytes()),
            Val::TStr(text) => self.string(text),
            Val::BStr(_) => return Err("an output has bytes that are no text".to_owned()),
            Val::Arr(items) => {
                self.text.push(b'[');
                for (at, item) in items.iter().enumerate() {
                    if at > 0 {
                        self.text.push(b',');
                    }
                    self.value(item, depth + 1)?;
                }
                self.text.push(b']');
            }
            Val::Obj(members) => {
                self.text.push(b'{');
                for (at, (key, item)) in members.iter().enumerate() {
                    if at > 0 {
                        self.text.push(b',');
                    }
                    let Val::TStr(key) = key else {
                        return Err("an output has an object with a key that is no string".to_owned());
                    };
                    self.string(key);
                    self.text.push(b':');
                    self.value(item, depth + 1)?;
                }
                self.text.push(b'}');
            }
        }
        Ok(())
    }

    fn string(&mut self, text: &[u8]) {
        crate::value::write_json_text(&String::from_utf8_lossy(text), &mut self.text);
    }

    fn float(&mut self, float: f64) {
        // jq's numbers are floats with 17 digits: up to 1e17 all of them are before the point.
        let text = match float {
            _ if float.is_nan() => "null".to_owned(),
            _ if float.is_infinite() => format!("{:?}", f64::MAX.copysign(float)),
            _ if float.fract() == 0.0 && float.abs() < 1e17 => format!("{float:.0}"),
            _ => format!("{float:?}"),
        };
        self.text.extend_from_slice(text.as_bytes());
    }
}
