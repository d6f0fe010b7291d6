//! mosquitto_pub, mosquitto_sub and mosquitto_rr, over every transport that they have.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ferrule_testkit::proc::{Launch, Process, output};
use ferrule_testkit::{Certs, until};

/// How they reach a broker: options of all, and variables of their environment.
#[derive(Debug, Clone)]
pub struct Reach {
    args: Vec<OsString>,
    env: Vec<(&'static str, OsString)>,
}

impl Reach {
    /// TCP.
    #[must_use]
    pub fn tcp(addr: SocketAddr) -> Self {
        Self::at(&addr.ip().to_string(), addr.port())
    }

    fn at(host: &str, port: u16) -> Self {
        Self { args: ["-h", host, "-p", &port.to_string()].map(OsString::from).into(), env: Vec::new() }
    }

    /// A Unix socket.
    #[must_use]
    pub fn unix(path: &Path) -> Self {
        Self { args: vec!["--unix".into(), path.into()], env: Vec::new() }
    }

    /// TLS with a server of these certificates, by its name `localhost`.
    #[must_use]
    pub fn tls(port: u16, certs: &Certs) -> Self {
        Self::at("localhost", port).option("--cafile", certs.path("ca.crt"))
    }

    /// Shows the certificate of this client.
    #[must_use]
    pub fn identity(self, certs: &Certs, client: &str) -> Self {
        self.option("--cert", certs.path(&format!("{client}.crt")))
            .option("--key", certs.path(&format!("{client}.key")))
    }

    /// One more option of both.
    #[must_use]
    pub fn option(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.args.extend([name.into(), value.into()]);
        self
    }

    /// At most TLS 1.2: the clients' own `--tls-version` is the lowest one that they take. `folder` gets OpenSSL's configuration.
    ///
    /// # Panics
    /// When that cannot be written.
    #[must_use]
    pub fn at_most_tls12(mut self, folder: &Path) -> Self {
        let file = folder.join("openssl.cnf");
        let text = "openssl_conf = all\n[all]\nssl_conf = ssl\n[ssl]\nsystem_default = it\n[it]\nMaxProtocol = TLSv1.2\n";
        std::fs::write(&file, text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        self.env.push(("OPENSSL_CONF", file.into()));
        self
    }

    fn line(&self, version: &str, args: &str) -> Vec<OsString> {
        let args = ["-V", version].into_iter().chain(args.split_whitespace()).map(OsString::from);
        self.args.iter().cloned().chain(args).collect()
    }

    /// A mosquitto_pub, to be run.
    #[must_use]
    pub fn publisher(&self, version: &str, args: &str) -> Command {
        self.command("mosquitto_pub", version, args)
    }

    /// A mosquitto_rr, to be run.
    #[must_use]
    pub fn requester(&self, version: &str, args: &str) -> Command {
        self.command("mosquitto_rr", version, args)
    }

    fn command(&self, program: &str, version: &str, args: &str) -> Command {
        // A broker that never answers ends the test, and the program too.
        let mut command = Command::new("timeout");
        command.args(["30", program]).args(self.line(version, args)).envs(self.env.iter().cloned());
        command
    }

    /// Runs mosquitto_pub to its end, which must be a good one.
    pub fn publish(&self, version: &str, args: &str) {
        output(&mut self.publisher(version, args));
    }

    /// A mosquitto_sub that is subscribed: it says so with `-d` (line by line, by `stdbuf`, though to a file).
    ///
    /// # Panics
    /// When it is not.
    #[must_use]
    pub fn subscribe(&self, folder: &Path, version: &str, args: &str) -> Process {
        let mut process = self.subscriber(folder, version, args);
        until(Duration::from_secs(10), "mosquitto_sub is subscribed", || {
            assert!(process.exited().is_none(), "mosquitto_sub ended:\n{}", process.log());
            process.log().contains("Subscribed (mid: 1)").then_some(())
        });
        process
    }

    /// A mosquitto_sub that says with `-d` what it does.
    #[must_use]
    pub fn subscriber(&self, folder: &Path, version: &str, args: &str) -> Process {
        self.start("stdbuf", &["-oL", "mosquitto_sub", "-d"], folder, version, args)
    }

    /// One that may end before it could be seen to be subscribed: its message is there already.
    #[must_use]
    pub fn subscribe_now(&self, folder: &Path, version: &str, args: &str) -> Process {
        self.start("mosquitto_sub", &[], folder, version, args)
    }

    fn start(&self, program: &str, first: &[&str], folder: &Path, version: &str, args: &str) -> Process {
        let log = folder.join(format!("sub-{}.log", args.replace(['/', ' ', '#'], "_")));
        let _ = std::fs::remove_file(&log); // of a subscriber before
        let launch = Launch::new("mosquitto_sub", program, log).args(first).args(self.line(version, args));
        self.env.iter().fold(launch, |launch, (name, value)| launch.env(name, value)).start()
    }
}

/// The lines of a subscriber's output that begin with `t/`: its messages (`-v`), without the debug lines.
///
/// # Panics
/// When it does not end within 20 s, or not well.
pub fn messages(subscriber: &mut Process) -> Vec<String> {
    assert!(subscriber.wait(Duration::from_secs(20)).success(), "{}", subscriber.log());
    subscriber.log().lines().filter(|line| line.starts_with("t/")).map(str::to_owned).collect()
}
