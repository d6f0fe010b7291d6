//! `passwd`: a password in, its hash out.

use crate::auth::PasswordHash;
use crate::scram::{ITERATIONS, SALT_BYTES, Verifier};
use clap::Args;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use std::io::{self, BufRead, IsTerminal, Write};

/// The longest password, in bytes: MQTT's.
const PASSWORD_BYTES_MAX: usize = 65_535;

/// Arguments of `passwd`.
#[derive(Debug, Args)]
pub(super) struct PasswdArgs {
    /// Print what SCRAM-SHA-256 needs instead, for `scram`
    #[arg(long)]
    scram: bool,
}

/// Reads a password, twice and unseen from a terminal, else one line, and prints the hash.
///
/// # Errors
/// What is wrong, for people.
pub(super) fn run(args: &PasswdArgs) -> Result<(), String> {
    let stdin = io::stdin();
    let password = if stdin.is_terminal() {
        let first = prompt("Password: ")?;
        if first != prompt("Again: ")? {
            return Err("the two differ".to_owned());
        }
        first
    } else {
        line(&mut stdin.lock())?
    };
    check(&password)?;
    let hash = if args.scram {
        let mut salt = [0; SALT_BYTES];
        getrandom::fill(&mut salt).map_err(|e| e.to_string())?;
        Verifier::of(&password, &salt, ITERATIONS).reveal()
    } else {
        PasswordHash::of(password.as_bytes())?.reveal()
    };
    writeln!(io::stdout(), "{hash}").map_err(|e| e.to_string())
}

fn check(password: &str) -> Result<(), String> {
    match password.len() {
        0 => Err("the password is empty".to_owned()),
        1..=PASSWORD_BYTES_MAX => Ok(()),
        _ => Err(format!("the password is longer than MQTT's {PASSWORD_BYTES_MAX} bytes")),
    }
}

/// One line, without its end.
fn line(input: &mut impl BufRead) -> Result<String, String> {
    let mut line = String::new();
    let mut bounded = io::Read::take(input, PASSWORD_BYTES_MAX as u64 + 2);
    bounded.read_line(&mut line).map_err(|e| format!("cannot read the password: {e}"))?;
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}

fn prompt(text: &str) -> Result<String, String> {
    let mut stderr = io::stderr();
    write!(stderr, "{text}").and_then(|()| stderr.flush()).map_err(|e| e.to_string())?;
    let echo = Echo::off().map_err(|e| format!("cannot hide what is typed: {e}"))?;
    let password = line(&mut io::stdin().lock());
    drop(echo);
    // The line end that was typed was not shown either.
    let _ = writeln!(stderr);
    password
}

/// Keeps the terminal from showing what is typed, until dropped.
struct Echo(Termios);

impl Echo {
    fn off() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(io::stdin(), OptionalActions::Flush, &silent)?;
        Ok(Self(before))
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        // The shell sets its own modes anyway.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_password() {
        for (input, password) in [("secret\n", "secret"), ("a b \r\nmore", "a b "), ("x", "x"), ("", "")] {
            assert_eq!(line(&mut input.as_bytes()).as_deref(), Ok(password));
        }
        assert!(check("").is_err() && check("x").is_ok() && check(&"x".repeat(65_536)).is_err());
    }
}
