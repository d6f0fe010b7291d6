//! The file that `make cross` made, elsewhere than on Debian: started by OpenWrt's script under busybox, and in the image of the container file.
//!
//! No router and no container engine: procd's functions are `scripts/rc.common`, which writes down what it is called with, and this file does
//! with it what procd does; the image is really built (by buildah, which needs no daemon), and its command runs in its files by chroot, as its
//! user. What is not tried so: procd itself, engines' namespaces and volumes, other architectures (`emulated.rs`).
//!
//! Skipped, with what to type, where there is no file, no root, no busybox or no buildah.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use ferrule_mqtt::QoS;
use ferrule_testkit::proc::{Launch, Process, output};
use ferrule_testkit::wire::Options;
use ferrule_testkit::{Client, is_root, port, until};
use ferrule_tests::skipped;
use serde_json::Value;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);
const TARGET: &str = "x86_64-unknown-linux-musl";

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Whether everything is there: the file, root, and `program` of Debian's `package`.
fn ready(program: &str, package: &str) -> bool {
    let binary = checkout().join("dist").join(TARGET).join("ferrule-edge");
    let installed = ["/usr/bin", "/bin"].iter().any(|folder| Path::new(folder).join(program).is_file());
    let why = match (binary.is_file(), is_root(), installed) {
        (false, ..) => format!("{} is not there; type: make cross", binary.display()),
        (_, false, _) => "needs root".to_owned(),
        (.., false) => format!("no {program}; type: apt-get install -y {package}"),
        (true, true, true) => return true,
    };
    skipped(&why);
    false
}

/// A configuration that listens where nobody does yet.
fn configuration(data_dir: &str) -> (std::net::SocketAddr, String) {
    let listen = port::free_addr();
    let text = format!(
        "[edge]\nid = \"gw\"\ndata_dir = \"{data_dir}\"\nrules = \"rules\"\n[[listener]]\nbind = \"{listen}\"\nanonymous = true\n"
    );
    (listen, text)
}

fn write(root: &Path, path: &str, text: &str, mode: u32) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// `argv` in the file system `root`, as `user` (`uid:gid`), with this environment and no other.
fn run(root: &Path, log: &Path, user: &str, env: &[&str], argv: &[&str]) -> Process {
    Launch::new(argv[0], "env", log)
        .arg("-i")
        .args(env)
        .args(["/usr/sbin/chroot", "--userspec", user, &root.display().to_string()])
        .args(argv)
        .with_children()
        .start()
}

/// Ends it as a supervisor does; it must end well.
fn terminate(mut process: Process) {
    let status = process.terminate(PATIENCE);
    assert!(status.success(), "{status}: {}", process.tail(20));
}

fn serves(process: &mut Process, listen: std::net::SocketAddr) -> Client {
    until(PATIENCE, "it serves", || {
        assert!(process.exited().is_none(), "it ended: {}", process.tail(20));
        Client::try_connect(listen, &Options::v5("device")).ok().map(|(client, _)| client)
    })
}

/// A retained message is there.
fn kept(client: &mut Client) {
    client.subscribe("kept", QoS::AtLeastOnce);
    assert_eq!(client.expect_message().text(), "1");
}

/// A router's file system.
struct Router {
    root: TempDir,
}

impl Router {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        // Its users' homes and the like are there; a folder of mode 0700 would keep the service's user out.
        std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        for folder in ["bin", "usr/bin", "etc/init.d", "tmp"] {
            std::fs::create_dir_all(at(folder)).unwrap();
        }
        let busybox = ["/usr/bin/busybox", "/bin/busybox"].into_iter().find(|path| Path::new(path).is_file());
        std::fs::copy(busybox.unwrap(), at("bin/busybox")).unwrap();
        for applet in ["sh", "mkdir", "chmod", "chown", "grep", "logger", "cat"] {
            symlink("busybox", at("bin").join(applet)).unwrap();
        }
        let sources = checkout();
        std::fs::copy(sources.join("tests/scripts/rc.common"), at("etc/rc.common")).unwrap();
        std::fs::copy(sources.join("cross/openwrt/ferrule-edge.init"), at("etc/init.d/ferrule-edge"))
            .unwrap();
        std::fs::set_permissions(at("etc/init.d/ferrule-edge"), std::fs::Permissions::from_mode(0o755))
            .unwrap();
        std::fs::set_permissions(at("etc/rc.common"), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::copy(sources.join("dist").join(TARGET).join("ferrule-edge"), at("usr/bin/ferrule-edge"))
            .unwrap();
        write(root.path(), "etc/passwd", "root:x:0:0:root:/root:/bin/sh\n", 0o644);
        Self { root }
    }

    /// `/etc/init.d/ferrule-edge ACTION`, as people and the router's start type it.
    fn init(&self, action: &str) -> Output {
        Command::new("/usr/sbin/chroot")
            .arg(self.root.path())
            .args(["/etc/init.d/ferrule-edge", action])
            .env_clear()
            .env("PATH", "/bin:/usr/bin")
            .output()
            .unwrap()
    }

    /// The same, which works; what procd was told.
    fn told(&self, action: &str) -> Vec<Vec<String>> {
        let ended = self.init(action);
        assert!(ended.status.success(), "{action}: {ended:?}");
        assert!(ended.stderr.is_empty(), "{action}: {ended:?}");
        self.calls()
    }

    /// What procd was told since the last time.
    fn calls(&self) -> Vec<Vec<String>> {
        let file = self.root.path().join("calls");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::remove_file(file).unwrap();
        let words = |line: &str| {
            let line = line.strip_prefix('[').unwrap().strip_suffix(']').unwrap();
            line.split("][").map(str::to_owned).collect()
        };
        text.lines().map(words).collect()
    }
}

/// The words that begin with `name`, without it.
fn param<'a>(calls: &'a [Vec<String>], name: &str) -> Option<Vec<&'a str>> {
    let call = calls.iter().find(|call| call[0] == name)?;
    Some(call[1..].iter().map(String::as_str).collect())
}

#[test]
fn on_openwrt_the_script_starts_reloads_and_stops_it() {
    if !ready("busybox", "busybox-static") {
        return;
    }
    let router = Router::new();
    // Without a configuration: told, and nothing for procd to start for ever.
    let ended = router.init("start");
    assert!(!ended.status.success(), "{ended:?}");
    assert_eq!(router.calls(), [["set", "ferrule-edge"]]);

    let (listen, text) = configuration("/srv/ferrule");
    write(router.root.path(), "etc/ferrule/edge.toml", &text, 0o644);
    write(
        router.root.path(),
        "etc/ferrule/rules/edge.sql",
        "CREATE RULE r AS INSERT INTO cloud SELECT * FROM \"a/#\";\n",
        0o644,
    );
    assert_eq!(router.told("enable"), [["S95", "K10"]]);
    let calls = router.told("start");
    let order: Vec<&str> = [0, calls.len() - 2, calls.len() - 1].map(|n| calls[n][0].as_str()).into();
    assert_eq!(order, ["open_instance", "close_instance", "set"]);
    let command = param(&calls, "command").unwrap();
    assert_eq!(command, ["/usr/bin/ferrule-edge", "run", "--config", "/etc/ferrule/edge.toml"]);
    assert_eq!(param(&calls, "env").unwrap(), ["FERRULE__EDGE__DATA_DIR=/srv/ferrule"]);
    // It may end as often as it likes within an hour, 5 s apart, and is started again for ever.
    assert_eq!(param(&calls, "respawn").unwrap(), ["3600", "5", "0"]);
    assert_eq!(param(&calls, "limits").unwrap(), ["nofile=4096 4096"]);
    assert_eq!(param(&calls, "file").unwrap(), ["/etc/ferrule/edge.toml"]);
    assert_eq!(
        (param(&calls, "stderr").unwrap(), param(&calls, "no_new_privs").unwrap()),
        (vec!["1"], vec!["1"])
    );
    assert_eq!((param(&calls, "term_timeout").unwrap(), param(&calls, "user")), (vec!["30"], None));

    // With a user of its own, whose the state becomes, also what root's run had left there.
    write(router.root.path(), "srv/ferrule/left", "", 0o600);
    write(
        router.root.path(),
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nferrule:x:1500:1500::/srv/ferrule:/bin/false\n",
        0o644,
    );
    let calls = router.told("start");
    assert_eq!(param(&calls, "user").unwrap(), ["ferrule"]);
    let state = router.root.path().join("srv/ferrule");
    let (folder, left) = (state.metadata().unwrap(), state.join("left").metadata().unwrap());
    assert_eq!((folder.mode() & 0o777, folder.uid(), left.uid()), (0o700, 1500, 1500));

    // What procd does with it.
    let log = router.root.path().join("log");
    let (env, command) = (param(&calls, "env").unwrap(), param(&calls, "command").unwrap());
    let start = || run(router.root.path(), &log, "1500:1500", &env, &command);
    let mut process = start();
    let mut client = serves(&mut process, listen);
    client.publish("kept", b"1", QoS::AtLeastOnce, true);
    assert!(state.join("ferrule.db").is_file());
    write(
        router.root.path(),
        "etc/ferrule/edge.toml",
        &format!("{text}[mqtt]\nsession_expiry_max = \"1h\"\n"),
        0o644,
    );
    assert_eq!(router.told("reload"), [["send_signal", "ferrule-edge", "*", "HUP"]]);
    process.signal("HUP");
    until(PATIENCE, "it is reloaded", || process.tail(50).contains("reloaded").then_some(()));
    assert_eq!(router.told("stop"), [["delete", "ferrule-edge"]]);
    terminate(process);
    let mut process = start();
    kept(&mut serves(&mut process, listen));
    terminate(process);
}

/// buildah with a store of its own, which is gone with the test.
struct Buildah(TempDir);

impl Buildah {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("buildah");
        command
            .arg("--root")
            .arg(self.0.path().join("store"))
            .arg("--runroot")
            .arg(self.0.path().join("run"));
        command.args(["--storage-driver", "vfs"]).args(args);
        command.current_dir(checkout());
        command
    }

    fn run(&self, args: &[&str]) -> String {
        output(&mut self.command(args)).trim().to_owned()
    }
}

#[test]
fn the_image_of_the_container_file_serves_as_its_user_keeps_its_state_and_knows_its_health() {
    if !ready("buildah", "buildah") {
        return;
    }
    let buildah = Buildah(tempfile::tempdir().unwrap());
    std::fs::set_permissions(buildah.0.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    // As its first lines say; docker's format is what has a HEALTHCHECK.
    let target = format!("TARGET={TARGET}");
    let file = "cross/container/Containerfile";
    let build = ["bud", "--quiet", "--format", "docker", "--isolation", "chroot", "--build-arg", &target];
    buildah.run(&[&build[..], &["-f", file, "-t", "ferrule-edge", "."]].concat());
    let image: Value =
        serde_json::from_str(&buildah.run(&["inspect", "--type", "image", "ferrule-edge"])).unwrap();
    let config = &image["Docker"]["config"];
    let container = buildah.run(&["from", "--pull-never", "ferrule-edge"]);
    let root = PathBuf::from(buildah.run(&["mount", &container]));
    for folder in root.ancestors().take_while(|folder| folder.starts_with(buildah.0.path())) {
        // An engine's own folders are root's alone; in a container that is not seen.
        let mode = folder.metadata().unwrap().mode();
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(mode | 0o055)).unwrap();
    }

    let words = |value: &Value| -> Vec<String> {
        value.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
    };
    let user = config["User"].as_str().unwrap();
    assert_eq!((user, config["StopSignal"].as_str()), ("65532:65532", Some("SIGTERM")));
    let argv = [words(&config["Entrypoint"]), words(&config["Cmd"])].concat();
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    assert_eq!(argv, ["/usr/bin/ferrule-edge", "run", "--config", "/etc/ferrule/edge.toml"]);
    let health = words(&config["Healthcheck"]["Test"]);
    assert_eq!(health[0], "CMD");

    // What is mounted there: the configuration, and a volume with owner and mode of the image's folder.
    let (listen, text) = configuration("/var/lib/ferrule");
    write(&root, "etc/ferrule/edge.toml", &text, 0o644);
    write(
        &root,
        "etc/ferrule/rules/edge.sql",
        "CREATE RULE r AS INSERT INTO cloud SELECT * FROM \"a/#\";\n",
        0o644,
    );
    let state = root.join("var/lib/ferrule");
    assert_eq!((state.metadata().unwrap().uid(), state.metadata().unwrap().gid()), (65532, 65532));
    let log = buildah.0.path().join("log");
    let healthy = || {
        let health: Vec<&str> = health[1..].iter().map(String::as_str).collect();
        let mut process = run(&root, &buildah.0.path().join("health"), user, &[], &health);
        until(PATIENCE, "the health check ends", || process.exited()).success()
    };
    assert!(!healthy(), "it does not run yet");
    for first in [true, false] {
        let mut process = run(&root, &log, user, &[], &argv);
        let mut client = serves(&mut process, listen);
        if first {
            client.publish("kept", b"1", QoS::AtLeastOnce, true);
        }
        kept(&mut client);
        assert!(healthy(), "{}", process.tail(20));
        terminate(process);
    }
    assert!(state.join("ferrule.db").is_file());
}
