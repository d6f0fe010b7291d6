//! The Debian package for amd64 in a Debian of its own, booted with its own systemd: installed, started, hardened, watched, upgraded, removed,
//! purged; and `cross/deploy.sh`, with an ssh that goes nowhere else.
//!
//! Skipped, with what to type, where there is no package (`make cross`), no root, or no Debian to boot (`tests/servers/debian.sh`).
#![allow(clippy::unwrap_used, reason = "tests")]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use ferrule_mqtt::QoS;
use ferrule_testkit::proc::{Launch, Process, children, output};
use ferrule_testkit::wire::Options;
use ferrule_testkit::{Client, is_root, port, until};
use ferrule_tests::skipped;
use tempfile::TempDir;

/// How long a machine may take to boot and a service to come back, on a busy one.
const PATIENCE: Duration = Duration::from_secs(90);
const TARGET: &str = "x86_64-unknown-linux-musl";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A machine that boots; what is written on it is gone with it.
struct Machine {
    process: Process,
    /// Its first process, as this machine numbers it.
    init: u32,
    folder: TempDir,
}

impl Machine {
    /// None: with a message.
    fn boot() -> Option<Self> {
        let binary = root().join("dist").join(TARGET).join("ferrule-edge");
        if !binary.is_file() {
            skipped(&format!("{} is not there; type: make cross", binary.display()));
            return None;
        }
        if !is_root() {
            skipped("needs root");
            return None;
        }
        for (program, package) in [("debootstrap", "debootstrap"), ("systemd-nspawn", "systemd-container")] {
            let found =
                ["/usr/sbin", "/usr/bin"].iter().any(|folder| Path::new(folder).join(program).is_file());
            if !found {
                skipped(&format!("no {program}; type: apt-get install -y {package}"));
                return None;
            }
        }
        let debian = output(&mut Command::new(root().join("tests/servers/debian.sh")));
        let folder = tempfile::tempdir().unwrap();
        // In a namespace of processes that ends with its first one: a machine outlives a systemd-nspawn that is killed.
        let process = Launch::new("debian", "unshare", folder.path().join("console.log"))
            .args(["--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--", "systemd-nspawn"])
            .args(["--quiet", "--register=no", "--keep-unit", "--volatile=overlay", "--console=pipe"])
            .args(["--boot", "--machine=ferrule-test", "--directory", debian.trim()])
            .start();
        let mut machine = Self { process, init: 0, folder };
        until(PATIENCE, "the machine boots", || {
            assert!(machine.process.exited().is_none(), "it ended: {}", machine.process.tail(20));
            let nspawn = *children(machine.process.pid()).first()?;
            machine.init = *children(nspawn).first()?;
            let said = machine.command("systemctl is-system-running").output().ok()?;
            let said = String::from_utf8_lossy(&said.stdout).trim().to_owned();
            ["running", "degraded"].contains(&said.as_str()).then_some(())
        });
        Some(machine)
    }

    /// A command on it, by its shell.
    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--all", "--target", &self.init.to_string(), "--", "/bin/sh", "-c", line]);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdin(Stdio::null());
        command
    }

    fn try_run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    /// What it prints; a failure is the test's.
    fn run(&self, line: &str) -> String {
        let ended = self.try_run(line);
        let said = String::from_utf8_lossy(&ended.stdout).into_owned();
        if !ended.status.success() {
            let log = self.try_run("journalctl --no-pager -n 30 -u ferrule-edge");
            panic!(
                "{line}: {}\n{said}{}\n{}",
                ended.status,
                String::from_utf8_lossy(&ended.stderr),
                String::from_utf8_lossy(&log.stdout)
            );
        }
        said.trim().to_owned()
    }

    /// A file of its, seen from outside.
    fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.init))
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn property(&self, name: &str) -> String {
        self.run(&format!("systemctl show --value -p {name} ferrule-edge"))
    }

    /// Waits until the service serves, in a process that is none of these.
    fn serves(&self, what: &str, not: &[String]) -> String {
        until(PATIENCE, what, || {
            let pid = self.property("MainPID");
            let serves = self.try_run("ferrule-edge status --config /etc/ferrule/edge.toml").status.success();
            (serves && pid != "0" && !not.contains(&pid)).then_some(pid)
        })
    }

    /// Makes a package of a version and puts it on the machine.
    fn package(&self, version: &str) -> String {
        let dist = self.folder.path().join(version);
        output(
            Command::new(root().join("cross/package.sh"))
                .arg("amd64")
                .env("VERSION", version)
                .env("DIST", &dist),
        );
        let name = format!("ferrule-edge_{version}_amd64.deb");
        std::fs::copy(dist.join(&name), self.path(&format!("/root/{name}"))).unwrap();
        format!("/root/{name}")
    }
}

#[test]
fn the_package_from_its_installation_to_its_purge() {
    let Some(machine) = Machine::boot() else { return };
    let listen = port::free_addr();
    // Somebody's configuration is there already: the package keeps it.
    let config = format!(
        "[edge]\nid = \"gw\"\nrules = \"rules\"\n[[listener]]\nbind = \"{listen}\"\nanonymous = true\n[uplink]\nurl = \"mqtt://127.0.0.1:9\"\nusername = \"gw\"\npassword_file = \"/run/credentials/ferrule-edge.service/secrets_uplink.pass\"\n"
    );
    machine.write("/etc/ferrule/edge.toml", &config);
    machine.write("/etc/ferrule/secrets/uplink.pass", "secret");
    machine.run("chmod 700 /etc/ferrule/secrets; chmod 600 /etc/ferrule/secrets/uplink.pass");
    let first = machine.package("0.1.0");
    machine.run(&format!("dpkg --force-confold -i {first}"));
    let pid = machine.serves("the service serves after its installation", &[]);
    assert_eq!(machine.run("systemctl is-enabled ferrule-edge"), "enabled");
    assert_eq!(std::fs::read_to_string(machine.path("/etc/ferrule/edge.toml")).unwrap(), config);

    // Its user is nobody's, its state is its own, and it may write nowhere else.
    let uid: u32 = machine.run(&format!("stat -c %u /proc/{pid}")).parse().unwrap();
    assert!((61_184..=65_519).contains(&uid), "no dynamic user: {uid}");
    let state = machine.run("stat -c '%a %u' /var/lib/private/ferrule");
    assert_eq!(state, format!("700 {uid}"));
    assert!(machine.path("/var/lib/private/ferrule/ferrule.db").is_file());
    assert_eq!(machine.run(&format!("grep CapEff /proc/{pid}/status | cut -f 2")), "0000000000000000");
    let exposure = machine.run("systemd-analyze security --no-pager ferrule-edge | tail -n 1");
    let exposure: f64 = exposure.split_whitespace().find_map(|word| word.parse().ok()).unwrap();
    assert!(exposure < 2.0, "systemd-analyze security: {exposure}");

    // A retained message is there after each of the next steps.
    let options = Options::v5("device");
    Client::connect(listen, &options).publish("kept", b"1", QoS::AtLeastOnce, true);
    let kept = || {
        let mut client = Client::connect(listen, &options);
        client.subscribe("kept", QoS::AtLeastOnce);
        assert_eq!(client.expect_message().text(), "1");
    };

    // It is started again when it is killed, and when it hangs; with a watchdog that waits less than the package's.
    machine.write(
        "/run/systemd/system/ferrule-edge.service.d/test.conf",
        "[Service]\nWatchdogSec=2\nTimeoutAbortSec=2\n",
    );
    assert_eq!(machine.property("WatchdogUSec"), "30s");
    machine.run("systemctl daemon-reload; systemctl restart ferrule-edge");
    let mut pids = vec![pid];
    pids.push(machine.serves("the service serves after a restart", &pids));
    machine.run(&format!("kill -9 {}", pids[1]));
    pids.push(machine.serves("the service serves after kill -9", &pids));
    kept();
    machine.run(&format!("kill -STOP {}", pids[2]));
    pids.push(machine.serves("the service serves after it has hung", &pids));
    kept();
    let log = machine.run("journalctl --no-pager -u ferrule-edge");
    assert!(log.to_lowercase().contains("watchdog timeout"), "{log}");

    let second = machine.package("0.1.1~test");
    machine.run(&format!("dpkg --force-confold -i {second}"));
    machine.serves("the service serves after the upgrade", &pids);
    assert_eq!(machine.run("dpkg-query -W -f '${Version}' ferrule-edge"), "0.1.1~test");
    assert_eq!(std::fs::read_to_string(machine.path("/etc/ferrule/edge.toml")).unwrap(), config);
    kept();

    // Somebody who has disabled it finds it disabled after an upgrade.
    machine.run("systemctl disable --now ferrule-edge");
    machine.run(&format!("dpkg --force-confold -i {first}"));
    assert_eq!(machine.property("ActiveState"), "inactive");
    machine.run("systemctl enable --now ferrule-edge");
    kept();

    machine.run("dpkg -r ferrule-edge");
    assert!(!machine.path("/usr/bin/ferrule-edge").exists());
    assert!(!machine.try_run("systemctl is-active ferrule-edge").status.success());
    assert!(machine.path("/var/lib/private/ferrule/ferrule.db").is_file(), "a removal keeps the state");
    machine.run(&format!("dpkg --force-confold -i {first}"));
    machine.serves("the service serves after it is installed again", &pids);
    kept();
    machine.run("dpkg -P ferrule-edge");
    for gone in
        ["/var/lib/private/ferrule", "/var/lib/ferrule", "/etc/ferrule/edge.toml", "/etc/ferrule/secrets"]
    {
        assert!(!machine.path(gone).exists(), "{gone} is there after a purge");
    }
}

#[test]
fn deploy_copies_installs_starts_and_checks() {
    let Some(machine) = Machine::boot() else { return };
    let listen = port::free_addr();
    // ssh and scp that know one host.
    let bin = machine.folder.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    let enter = format!("nsenter --all --target {} -- /bin/sh -c", machine.init);
    let script = |name: &str, text: String| {
        let path = bin.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    script("ssh", format!("[ \"$1\" = pi@gateway ] || exit 255\nexec {enter} \"$2\""));
    let inside = machine.path("");
    script(
        "scp",
        format!(
            "while [ $# -gt 2 ]; do case $1 in -r) r=-R ;; -q) ;; *) break ;; esac; shift; done\nexec cp $r \"$1\" \"{}${{2#pi@gateway:}}\"",
            inside.display()
        ),
    );
    let config = machine.folder.path().join("gateway");
    std::fs::create_dir_all(config.join("rules")).unwrap();
    std::fs::create_dir_all(config.join("secrets")).unwrap();
    let toml = format!(
        "[edge]\nid = \"gw\"\nrules = \"rules\"\n[[listener]]\nbind = \"{listen}\"\nanonymous = true\n[uplink]\nurl = \"mqtt://127.0.0.1:9\"\nusername = \"gw\"\npassword_file = \"/run/credentials/ferrule-edge.service/secrets_uplink.pass\"\n"
    );
    std::fs::write(config.join("edge.toml"), &toml).unwrap();
    std::fs::write(config.join("rules/r.sql"), "CREATE RULE r AS INSERT INTO log SELECT * FROM \"a/#\";\n")
        .unwrap();
    std::fs::write(config.join("secrets/uplink.pass"), "secret\n").unwrap();
    let package = machine.package("0.1.0");
    let package = machine.folder.path().join("0.1.0").join(Path::new(&package).file_name().unwrap());
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let deploy = || {
        let mut command = Command::new(root().join("cross/deploy.sh"));
        command.arg("pi@gateway").arg("--config").arg(&config).arg("--deb").arg(&package).env("PATH", &path);
        command.output().unwrap()
    };
    let text = |output: &Output| {
        String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
    };
    let ended = deploy();
    assert!(ended.status.success(), "{}", text(&ended));
    assert!(text(&ended).contains("active"), "{}", text(&ended));
    assert_eq!(machine.run("stat -c '%a %U' /etc/ferrule/secrets/uplink.pass"), "600 root");
    Client::connect(listen, &Options::v5("device")).publish("kept", b"1", QoS::AtLeastOnce, true);

    // A configuration with a mistake changes nothing.
    std::fs::write(config.join("edge.toml"), "[edge]\nidd = \"gw\"\n").unwrap();
    let ended = deploy();
    assert!(!ended.status.success() && text(&ended).contains("idd"), "{}", text(&ended));
    assert_eq!(std::fs::read_to_string(machine.path("/etc/ferrule/edge.toml")).unwrap(), toml);
    Client::connect(listen, &Options::v5("device")).publish("kept", b"2", QoS::AtLeastOnce, true);
}
