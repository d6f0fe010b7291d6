//! A program of `tests/clients`: `tests/clients/README.md` says how one is talked to.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::process::ChildStdin;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ferrule_testkit::proc::{Launch, Process};
use serde_json::{Value, json};

use crate::{Connect, Message, Place, Subject, Tcp, Tls, V5, Ws, Wss};

/// An answer or a message may take this long.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a session is kept.
const EXPIRY: u32 = 600;

/// A running driver.
struct Driver {
    // Before the folder, which its log is in.
    _process: Process,
    input: ChildStdin,
    output: mpsc::Receiver<Value>,
    sent: u64,
    /// (client, message) that nobody has taken.
    messages: VecDeque<(String, Message)>,
    _folder: tempfile::TempDir,
}

impl Driver {
    fn start(launch: &dyn Fn(Launch) -> Launch) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // The program is named by `launch`.
        let (process, input, output) =
            launch(Launch::new("driver", "env", folder.path().join("log"))).start_talking();
        let (lines, queue) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let value = serde_json::from_str(&line).unwrap_or_else(|_| json!({ "said": line }));
                if lines.send(value).is_err() {
                    break;
                }
            }
        });
        Self { _process: process, input, output: queue, sent: 0, messages: VecDeque::new(), _folder: folder }
    }

    /// The next line, when it is no message.
    fn next(&mut self, what: &str) -> Option<Value> {
        let line = self.output.recv_timeout(PATIENCE);
        let line = line.unwrap_or_else(|error| panic!("waited in vain: {what}: {error}"));
        if line["message"].is_object() {
            let client = line["client"].as_str().unwrap().to_owned();
            self.messages.push_back((client, Message::from_json(&line["message"])));
            return None;
        }
        Some(line)
    }

    /// Gives a command and waits for its answer.
    fn ask(&mut self, who: &str, what: &str, mut command: serde_json::Map<String, Value>) -> Value {
        self.sent += 1;
        command.extend([("id", json!(self.sent)), ("do", json!(what)), ("client", json!(who))].map(own));
        writeln!(self.input, "{}", Value::Object(command)).unwrap();
        let asked = format!("{who}: {what}");
        let end = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < end, "waited in vain: {asked}");
            match self.next(&asked) {
                Some(line) if line["id"] == self.sent => return line,
                Some(line) => eprintln!("{line}"),
                None => {}
            }
        }
    }

    /// The answer's code.
    fn code(&mut self, who: &str, what: &str, command: serde_json::Map<String, Value>) -> u8 {
        let answer = self.ask(who, what, command);
        let code = answer["code"].as_u64().and_then(|code| code.try_into().ok());
        code.unwrap_or_else(|| panic!("{who}: {what}: {answer}"))
    }

    fn connect(&mut self, who: &str, place: &Place, how: &Connect) -> Result<Option<bool>, u8> {
        let (scheme, path) = match place.transport {
            Tcp => ("mqtt", ""),
            Tls => ("mqtts", ""),
            Ws => ("ws", "/mqtt"),
            Wss => ("wss", "/mqtt"),
        };
        // The certificate is for that name.
        let url = format!("{scheme}://localhost:{}{path}", place.port);
        let mut command = vec![
            ("url", json!(url)),
            ("version", json!(place.version.text())),
            ("clean", json!(!how.persistent)),
        ];
        if matches!(place.transport, Tls | Wss) {
            command.push(("ca", json!(place.ca)));
        }
        if place.version == V5 && how.persistent {
            command.push(("expiry", json!(EXPIRY)));
        }
        if let Some(max) = how.alias_max {
            command.push(("alias_max", json!(max)));
        }
        if let Some((name, password)) = how.login {
            command.extend([("username", json!(name)), ("password", json!(password))]);
        }
        if let Some(will) = &how.will {
            command.push(("will", will.to_json().into()));
        }
        let answer = self.ask(who, "connect", command.into_iter().map(own).collect());
        match answer["code"].as_u64() {
            Some(0) => Ok(Some(answer["session_present"].as_bool().unwrap())),
            Some(code) => Err(code.try_into().unwrap()),
            None => panic!("{who}: {answer}"),
        }
    }
}

fn own((name, value): (&str, Value)) -> (String, Value) {
    (name.to_owned(), value)
}

/// A library, by its driver.
pub(crate) struct Library {
    launch: Box<dyn Fn(Launch) -> Launch>,
    driver: Driver,
    /// The process of the clients that are to be lost.
    lost: Option<Driver>,
}

impl Library {
    /// `launch` makes a driver's command line of that of `env`.
    pub(crate) fn start(launch: Box<dyn Fn(Launch) -> Launch>) -> Self {
        Self { driver: Driver::start(&launch), launch, lost: None }
    }
}

impl Subject for Library {
    fn connect(&mut self, who: &str, place: &Place, how: &Connect) -> Result<Option<bool>, u8> {
        self.driver.connect(who, place, how)
    }

    fn connect_to_be_lost(&mut self, who: &str, place: &Place, how: &Connect) {
        let launch = &self.launch;
        let lost = self.lost.get_or_insert_with(|| Driver::start(launch));
        lost.connect(who, place, how).unwrap_or_else(|code| panic!("{who}: refused with {code}"));
    }

    fn lose_them(&mut self) {
        // Dropped: killed.
        self.lost.take().expect("somebody to lose");
    }

    fn subscribe(&mut self, who: &str, filter: &str, qos: u8, identifier: Option<u32>) -> u8 {
        let mut command = vec![("filter", json!(filter)), ("qos", json!(qos))];
        command.extend(identifier.map(|identifier| ("subscription", json!(identifier))));
        self.driver.code(who, "subscribe", command.into_iter().map(own).collect())
    }

    fn publish(&mut self, who: &str, message: &Message) -> u8 {
        self.driver.code(who, "publish", message.to_json())
    }

    fn take(&mut self, whose: &[&str], count: usize) -> Vec<(String, Message)> {
        let mut taken = Vec::new();
        let what = format!("{count} messages of {whose:?}");
        loop {
            while let Some(at) =
                self.driver.messages.iter().position(|(who, _)| whose.contains(&who.as_str()))
            {
                taken.extend(self.driver.messages.remove(at));
                if taken.len() == count {
                    return taken;
                }
            }
            if let Some(line) = self.driver.next(&format!("{what}, got {taken:?}")) {
                eprintln!("{line}");
            }
        }
    }

    fn disconnect(&mut self, who: &str) {
        assert_eq!(self.driver.code(who, "disconnect", serde_json::Map::new()), 0);
    }
}
