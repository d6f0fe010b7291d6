//! `pub` and `sub` beside mosquitto_pub and mosquitto_sub: the same command line, the same broker, the same output and exit code.
#![allow(clippy::unwrap_used, reason = "tests")]

use ferrule_mqtt::QoS;
use ferrule_testkit::node::binary;
use ferrule_testkit::wire::Options;
use ferrule_testkit::{Certs, Client, Config, Node, port};
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{Command, Output, Stdio};

/// Whose program it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Ours,
    Mosquittos,
}

const BOTH: [Whose; 2] = [Whose::Mosquittos, Whose::Ours];

impl Whose {
    fn command(self, which: &str) -> Command {
        match self {
            Self::Ours => {
                let mut command = Command::new(binary("ferrule-edge"));
                command.arg(which);
                command
            }
            Self::Mosquittos => Command::new(format!("mosquitto_{which}")),
        }
    }

    fn run(self, which: &str, addr: SocketAddr, args: &[&str], input: &str) -> Output {
        let mut command = self.command(which);
        command.args(["-h", "127.0.0.1", "-p", &addr.port().to_string()]).args(args);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // One that ends without reading breaks the pipe.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a subscriber of everything gets of one command line, and its exit code.
fn published(whose: Whose, node: &Node, args: &[&str], input: &str) -> String {
    let mut reader = Client::connect(node.addr(), &Options::v5("reader"));
    reader.subscribe("#", QoS::ExactlyOnce);
    let ended = whose.run("pub", node.addr(), args, input);
    let mut said = format!("exit {:?}\n", ended.status.code());
    Client::connect(node.addr(), &Options::v5("fence")).publish("fence", b"", QoS::AtMostOnce, false);
    for m in reader.messages_until("fence") {
        let _ = writeln!(said, "{} {:?} q{} r{}", m.topic, text(&m.payload), m.qos, u8::from(m.retain));
    }
    said
}

#[test]
fn a_publisher_says_the_same() {
    // One worker: between several, what one client publishes at QoS 0 may pass what another one did before.
    let node = Node::start(&Config::edge().env("FERRULE__EDGE__WORKERS", "1"));
    let file = node.folder().join("payload");
    std::fs::write(&file, "from a file\n").unwrap();
    let file = file.to_str().unwrap();
    let url = format!("mqtt://{}/by/url", node.addr());
    for (args, input) in [
        (&["-t", "a/b", "-m", "x"][..], ""),
        (&["-t", "a/b", "-m", "x", "-q", "1"], ""),
        (&["-t", "a/b", "-m", "x", "-q", "2", "-V", "5"], ""),
        (&["-t", "a/b", "-m", "-1", "-V", "mqttv31"], ""),
        (&["-t", "a/b", "-n", "-q", "1"], ""),
        (&["-t", "a/b", "-f", file], ""),
        (&["-t", "a/b", "-f", "/nowhere"], ""),
        (&["-t", "a/b", "-s"], "all of\nit\n"),
        (&["-t", "a/b", "-l", "-q", "2"], "one\n\nthree\nfour"),
        (&["-t", "a/b", "-l"], ""),
        (&["-t", "a/b", "-m", "again", "--repeat", "3", "--repeat-delay", "0.01", "-q", "1"], ""),
        (&["-L", &url, "-m", "x"], ""),
        (&["-t", "a/b", "-m", "x", "-i", "me", "-c", "-k", "10", "-q", "1"], ""),
        (&["-t", "a/b", "-m", "x", "-V", "5", "-D", "publish", "user-property", "k", "v", "-x", "5"], ""),
        (&["-t", "a/#", "-m", "x"], ""),
        (&["-t", "a", "-m", "x", "-q", "3"], ""),
        (&["-t", "a", "-m", "x", "-n"], ""),
        (&["-t", "a"], ""),
        (&["-m", "a"], ""),
        (&["-t", "a", "-m", "x", "-c"], ""),
        (&["-t", "a", "-m", "x", "--nonsense"], ""),
        (&["-t", "a", "-m", "x", "-V", "6"], ""),
    ] {
        let [theirs, ours] = BOTH.map(|whose| published(whose, &node, args, input));
        assert_eq!(ours, theirs, "{args:?}");
    }
}

#[test]
fn a_subscriber_prints_the_same() {
    let node = Node::start(&Config::edge());
    let mut device = Client::connect(node.addr(), &Options::v5("device"));
    device.publish("kept/json", br#"{"a":[1,"x"]}"#, QoS::AtLeastOnce, true);
    device.publish("kept/binary", b"\x00\xff\n", QoS::AtLeastOnce, true);
    device.publish("kept/text", b"text", QoS::ExactlyOnce, true);
    for args in [
        &["-t", "kept/text", "-C", "1"][..],
        &["-t", "kept/#", "-C", "3"],
        &["-t", "kept/#", "-C", "3", "-v", "-q", "2"],
        &["-t", "kept/json", "-t", "kept/text", "-C", "1", "-N", "-q", "1", "-V", "5", "-T", "kept/json"],
        &["-t", "kept/text", "-t", "kept/json", "-C", "2", "-v", "-V", "31"],
        &["-t", "kept/#", "-T", "kept/json", "-T", "kept/binary", "-C", "1"],
        &["-t", "kept/json", "-C", "1", "-F", r"%t|%p|%q|%r|%l|%m|%x|%X|%%|@@\t"],
        &["-t", "kept/text", "-C", "1", "-F", "%C%E%F%R%S.", "-V", "5"],
        &["-t", "kept/#", "-W", "1", "-R"],
        &["-t", "kept/#", "-W", "1", "--retained-only", "-v"],
        &["-t", "nothing", "-W", "1"],
        &["-t", "kept/text", "-E", "-i", "me", "-c"],
        &["-U", "kept/text", "-t", "kept/json", "-C", "1"],
        &["-t", "kept/#", "-F", "%z"],
        &["-t", "kept/#", "-F", "%"],
        &["-t", "a/#/b"],
        &["-t", "a", "-c"],
        &["-t", "a", "-D", "nonsense", "x", "y"],
        &[],
    ] {
        let [theirs, ours] = BOTH.map(|whose| {
            let ended = whose.run("sub", node.addr(), args, "");
            // Retained messages come in no order.
            let said = text(&ended.stdout);
            let mut lines: Vec<String> = said.split_inclusive('\n').map(str::to_owned).collect();
            lines.sort();
            (ended.status.code(), lines)
        });
        // Help is everybody's own.
        if ours.0 == Some(1) {
            assert_eq!(theirs.0, Some(1), "{args:?}");
        } else {
            assert_eq!(ours, theirs, "{args:?}");
        }
    }
    // JSON differs by the time alone.
    for args in [&["-F", "%j"][..], &["-F", "%J"], &["-F", "%j", "-q", "1", "-V", "5"]] {
        let [theirs, ours] = BOTH.map(|whose| {
            let args = [args, &["-t", "kept/json", "-C", "1"]].concat();
            let said = text(&whose.run("sub", node.addr(), &args, "").stdout);
            let mut value: serde_json::Value = serde_json::from_str(&said).unwrap();
            let at = value["tst"].take();
            assert_eq!(at.as_str().unwrap().len(), "2026-11-29T12:44:24.198177Z+0000".len(), "{at}");
            value.to_string()
        });
        assert_eq!(ours, theirs, "{args:?}");
    }
    // The retained messages go, and nothing else is left to say.
    let args = ["-t", "kept/#", "--remove-retained", "-C", "3", "-F", "%t"];
    assert_eq!(text(&Whose::Ours.run("sub", node.addr(), &args, "").stdout).lines().count(), 3);
    assert_eq!(Whose::Ours.run("sub", node.addr(), &["-t", "kept/#", "-W", "1"], "").stdout, b"");
}

#[test]
fn a_refusal_has_its_code() {
    let users = "[[user]]\nname = \"u\"\npassword_file = \"edge.pass\"\nsubscribe = [\"mine/#\"]";
    let node = Node::start(&Config::edge().closed().extra(users));
    let nobody = port::free_addr();
    for (which, addr, args) in [
        ("pub", node.addr(), &["-t", "a", "-m", "x"][..]),
        ("pub", node.addr(), &["-t", "a", "-m", "x", "-V", "5", "-u", "u", "-P", "wrong"]),
        ("pub", node.addr(), &["-t", "a", "-m", "x", "-u", "u", "-P", ferrule_testkit::node::EDGE_PASSWORD]),
        ("sub", node.addr(), &["-t", "a", "-V", "5"]),
        (
            "sub",
            node.addr(),
            &["-t", "mine/a", "-u", "u", "-P", ferrule_testkit::node::EDGE_PASSWORD, "-W", "1"],
        ),
        (
            "sub",
            node.addr(),
            &["-t", "other", "-u", "u", "-P", ferrule_testkit::node::EDGE_PASSWORD, "-W", "9"],
        ),
        ("pub", nobody, &["-t", "a", "-m", "x"]),
        ("sub", nobody, &["-t", "a", "-W", "5"]),
    ] {
        let [theirs, ours] = BOTH.map(|whose| whose.run(which, addr, args, ""));
        assert_eq!(ours.status.code(), theirs.status.code(), "{which} {args:?}: {}", text(&ours.stderr));
        let first = |output: &Output| text(&output.stderr).lines().next().map(str::to_owned);
        assert_eq!(first(&ours), first(&theirs), "{which} {args:?}");
        assert_eq!(Whose::Ours.run(which, nobody, &[args, &["--quiet"]].concat(), "").stderr, b"");
    }
}

/// A subscriber of ours survives a restart of the broker, which its session does too, and prints what was published meanwhile.
#[test]
fn a_subscriber_connects_again() {
    let mut node = Node::start(&Config::edge());
    let session = ["-t", "t", "-i", "s", "-c", "-q", "2"];
    // The session first, so that nothing is published before it is there.
    assert!(Whose::Ours.run("sub", node.addr(), &[&session[..], &["-E"]].concat(), "").status.success());
    let mut command = Whose::Ours.command("sub");
    let port = node.addr().port().to_string();
    command.args(["-h", "127.0.0.1", "-p", &port, "-C", "2", "--quiet"]).args(session);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let publish = |node: &Node, payload: &str| {
        let args = ["-t", "t", "-m", payload, "-q", "2", "-i", "p"];
        assert!(Whose::Ours.run("pub", node.addr(), &args, "").status.success());
    };
    publish(&node, "before");
    assert_eq!(lines.next().unwrap().unwrap(), "before");
    node.kill9();
    node.restart();
    publish(&node, "after");
    // What was printed and not yet known to be may come once more.
    let after = lines.next().unwrap().unwrap();
    assert!(["before", "after"].contains(&after.as_str()), "{after}");
    assert!(child.wait().unwrap().success());
}

#[test]
fn over_tls() {
    // A certificate for another name than the one that is dialled.
    let certs = Certs::make(&["--server", "elsewhere.example", "--client", "press-7"]);
    let tls = certs.mutual_tls("");
    let listener = format!("[[listener]]\nbind = \"127.0.0.1:0\"\nanonymous = true\n{tls}");
    let node = Node::start(&Config::edge().extra(&listener));
    let addr = node.listener(1);
    let path = |name: &str| certs.path(name).to_str().unwrap().to_owned();
    let (ca, cert, key) = (path("ca.crt"), path("press-7.crt"), path("press-7.key"));
    let named = ["-t", "t", "-m", "x", "-q", "1", "--cafile", &ca, "--cert", &cert, "--key", &key];
    let wrong_name = Whose::Ours.run("pub", addr, &named, "");
    assert_eq!(wrong_name.status.code(), Some(1));
    assert!(text(&wrong_name.stderr).contains("elsewhere.example"), "{}", text(&wrong_name.stderr));
    for (more, code) in
        [(&["--insecure"][..], 0), (&["--insecure", "-V", "5", "--tls-version", "tlsv1.3"], 0)]
    {
        let ended = Whose::Ours.run("pub", addr, &[&named, more].concat(), "");
        assert_eq!(ended.status.code(), Some(code), "{more:?}: {}", text(&ended.stderr));
    }
    // Another authority's is not believed, whatever its name; and the broker wants a certificate.
    let others = Certs::local(&[]);
    let other_ca = others.path("ca.crt");
    let strange = ["-t", "t", "-m", "x", "--insecure", "--cafile", other_ca.to_str().unwrap()];
    assert_eq!(Whose::Ours.run("pub", addr, &strange, "").status.code(), Some(1));
    let nameless = ["-t", "t", "-m", "x", "--insecure", "--cafile", &ca];
    assert_eq!(Whose::Ours.run("pub", addr, &nameless, "").status.code(), Some(1));
}
