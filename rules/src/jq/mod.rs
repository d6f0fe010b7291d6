//! jq programs, run in a process of their own.
//!
//! # Why a process
//! The interpreter has no bounds: a program can overflow its stack, take all memory or never end, and each of the first two ends the process that
//! it runs in. So it runs in a worker: this executable, started again with one hidden argument, that bounds itself before it reads anything
//! (`worker`), and is killed when it does not answer in time.
//!
//! # Who offers it
//! A program that runs rules calls [`enter`] first in its `main`: in a worker that never returns, elsewhere it says that the executable can be
//! started as one. Where nobody has called it, a rule with `jq()` is refused when it is loaded.
//!
//! The interpreter is the feature `jq`, which small builds leave out: there nothing is offered.
//!
//! # One call
//! ```text
//! Jq::run --request--> worker: program from its cache, or compiled; outputs written as they come --answer--> JSON array, or why not
//!    waits for the beginning, then at most CALL (or what the rule says, at most CALL_MAX); then SIGKILL, wait()
//! ```
//! A worker that somebody else kills over a question is replaced once, and the question put again.
//!
//! Each shard has a worker of its own, from its first call on; dropping `Jq` ends it. Both ends of the pipe are one socket, the worker's standard input, so
//! that whatever writes to standard output there harms nothing.
//!
//! # Bounds
//! Programs `PROGRAM_MAX`, input `INPUT_MAX`, outputs `OUTPUTS_MAX` values and what the caller allows in bytes; the worker's memory, stack,
//! processor time, files by rlimits. A program that was stopped `pauses::PATIENCE` times in a row is not run for a while, see `pauses`.

mod pauses;
mod process;
mod programs;
#[cfg_attr(not(feature = "jq"), allow(dead_code, reason = "the worker's side of it"))]
mod wire;
#[cfg(feature = "jq")]
mod worker;

pub(crate) use process::is_offered;
pub use process::{enter, offer};
#[cfg(feature = "jq")]
pub use worker::serve;

use std::time::{Duration, Instant};

use pauses::Pauses;
use process::{Asked, Process};
use wire::{Answer, Request};

/// How long a call may take where the rule does not say: a shard's connections wait meanwhile.
const CALL: Duration = Duration::from_millis(100);
/// The longest that a rule may ask for.
const CALL_MAX: Duration = Duration::from_secs(1);
/// How long a worker may take until a program runs: compiling it and reading its input are not what a rule has its time for, and the program was
/// compiled once already when its rule was loaded. What takes longer is a machine that is busy, and no fault of the program.
const BEGIN: Duration = Duration::from_secs(2);
/// How long a program may be compiled when rules are loaded, and a worker take to start.
const START: Duration = Duration::from_secs(2);

/// The longest program, in bytes.
const PROGRAM_MAX: usize = 64 << 10;
/// The longest input as JSON, in bytes.
const INPUT_MAX: usize = 1 << 20;
/// The most outputs of one call.
const OUTPUTS_MAX: u32 = 10_000;

/// Why there are no outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum JqError {
    /// The program is none; where in it, in bytes, if that is known.
    Mistake { at: Option<usize>, message: String },
    /// The program raised an error for this input, or input or outputs are beyond their bounds.
    Raised(String),
    /// It did not end in time, needed too much memory or stack, or is not run for a while because of that.
    Stopped(String),
    /// There is no worker to be had.
    Unavailable(String),
}

impl JqError {
    /// In words.
    pub(crate) fn message(&self) -> &str {
        match self {
            JqError::Mistake { message, .. }
            | JqError::Raised(message)
            | JqError::Stopped(message)
            | JqError::Unavailable(message) => message,
        }
    }
}

/// A shard's worker, started when it is first needed.
#[derive(Debug)]
pub(crate) struct Jq {
    /// How long a call may take where the rule does not say.
    wait: Duration,
    process: Option<Process>,
    pauses: Pauses,
}

impl Default for Jq {
    fn default() -> Self {
        Jq { wait: CALL, process: None, pauses: Pauses::default() }
    }
}

impl Jq {
    /// Nobody waits meanwhile: calls that do not say how long they may take have the longest time.
    pub(crate) fn be_patient(&mut self) {
        self.wait = CALL_MAX;
    }

    /// The outputs of `program` on `input`, a JSON text, as a JSON array of at most `bytes_max`.
    pub(crate) fn run(
        &mut self,
        program: &str,
        input: &[u8],
        wait: Option<Duration>,
        bytes_max: usize,
    ) -> Result<String, JqError> {
        if program.len() > PROGRAM_MAX || input.len() > INPUT_MAX {
            let message = format!("a jq program has at most {PROGRAM_MAX} bytes, its input {INPUT_MAX}");
            return Err(JqError::Raised(message));
        }
        if let Some(left) = self.pauses.left(program, Instant::now()) {
            let message = format!("this program was stopped too often and is not run for {left:?}");
            return Err(JqError::Stopped(message));
        }
        let wait = wait.unwrap_or(self.wait).min(CALL_MAX);
        let bytes_max = u32::try_from(bytes_max).unwrap_or(u32::MAX);
        let request = Request::Run { program, input, outputs_max: OUTPUTS_MAX, bytes_max };
        let outputs = self.ask(&request, BEGIN, wait);
        match &outputs {
            Err(JqError::Stopped(_) | JqError::Unavailable(_)) => {
                self.pauses.stopped(program, Instant::now())
            }
            _ => self.pauses.ended(program),
        }
        outputs
    }

    /// Whether `program` is one.
    pub(crate) fn check(&mut self, program: &str) -> Result<(), JqError> {
        if program.len() > PROGRAM_MAX {
            let message = format!("a jq program has at most {PROGRAM_MAX} bytes");
            return Err(JqError::Mistake { at: None, message });
        }
        self.ask(&Request::Check { program }, START, START).map(drop)
    }

    fn ask(&mut self, request: &Request<'_>, begin: Duration, wait: Duration) -> Result<String, JqError> {
        let frame = request.frame();
        // A worker may have been killed since the last call; one that is new is not asked twice. Nor is one that is
        // killed over the question by somebody else, such as a machine that is short of memory: the second time it
        // may be for what the program does.
        let (mut fresh, mut killed) = (self.process.is_none(), false);
        loop {
            let mut process = match self.process.take() {
                Some(process) => process,
                None => Process::start(START).map_err(|e| JqError::Unavailable(e.to_string()))?,
            };
            match process.ask(&frame, begin, wait, request.answer_max()) {
                Ok(answer) => {
                    self.process = Some(process);
                    return match Answer::read(answer) {
                        Some(Answer::Outputs(json)) => Ok(json),
                        Some(Answer::Mistake { at, message }) => Err(JqError::Mistake { at, message }),
                        Some(Answer::Raised(message)) => Err(JqError::Raised(message)),
                        None => Err(JqError::Unavailable("the jq worker gave no answer".to_owned())),
                    };
                }
                Err(Asked::WasGone) if !fresh => fresh = true,
                Err(Asked::Killed) if !killed => (fresh, killed) = (true, true),
                Err(Asked::Killed) => {
                    return Err(JqError::Stopped("its worker was killed twice, not by Ferrule".to_owned()));
                }
                Err(Asked::WasGone | Asked::Died) => {
                    let message = "the program ended its worker: too much memory or too deep".to_owned();
                    return Err(JqError::Stopped(message));
                }
                Err(Asked::Late) => {
                    return Err(JqError::Stopped(format!("the program did not end within {wait:?}")));
                }
                Err(Asked::Io(error)) => return Err(JqError::Unavailable(error.to_string())),
            }
        }
    }
}
