#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use ferrule_broker::ClientLimits;
use ferrule_transport::tls::NameFrom;

mod changes;
mod presets;

const LISTENER: &str = "[[listener]]\nbind = \"127.0.0.1:1883\"\nanonymous = true\n";
/// Of the right form; of no word.
const HASH: &str = "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$7D2ihTn+wgUFRRr9lAB3PHqlIJyInihe0uj8dFmNKG0";

fn env(vars: &[(&str, &str)]) -> Overrides {
    Overrides::from_env(vars.iter().copied())
}

fn edge(text: &str) -> Result<EdgeConfig, ConfigErrors> {
    EdgeConfig::parse("edge.toml", text, Path::new("/etc/ferrule"), &Overrides::default())
}

fn edge_env(text: &str, vars: &[(&str, &str)]) -> Result<EdgeConfig, ConfigErrors> {
    EdgeConfig::parse("edge.toml", text, Path::new("/etc/ferrule"), &env(vars))
}

fn cloud(text: &str) -> Result<CloudConfig, ConfigErrors> {
    CloudConfig::parse("cloud.toml", text, Path::new("/etc/ferrule"), &Overrides::default())
}

/// `text` below a good listener is refused with exactly these messages, in this order.
#[track_caller]
fn refused(text: &str, messages: &[&str]) {
    let errors = edge(&format!("{text}\n{LISTENER}")).unwrap_err().errors;
    let found: Vec<&str> = errors.iter().map(|e| e.message.as_str()).collect();
    assert_eq!(found, messages, "{text}");
}

// === store ===

#[test]
fn a_store_is_a_file_or_a_server() {
    let store = |text: &str| {
        let text = format!("[node]\nid = \"a\"\n[store]\n{text}\n{LISTENER}");
        cloud(&text).map(|config| (config.broker.store, config.broker.warnings))
    };
    assert_eq!(store("").unwrap(), (StoreConfig::Sqlite, vec![]));
    let (config, warnings) = store("url = \"host=h\"\npassword_file = \"x\"").unwrap();
    assert_eq!(config, StoreConfig::Sqlite);
    assert_eq!(warnings, ["[store] `url`, `password_file` is not used: `backend` is \"sqlite\""]);
    let (config, _) = store("backend = \"postgres\"\nurl = \"host=h\"\ntimeout = \"3s\"").unwrap();
    let wanted = PostgresConfig {
        url: Secret::new("host=h".into()),
        password: None,
        schema: "ferrule".into(),
        timeout: Duration::from_secs(3),
        node: "a".into(),
        spread_rules_after: Duration::from_secs(10),
    };
    assert_eq!(config, StoreConfig::Postgres(wanted));
    let mistakes = |text: &str| -> Vec<String> {
        let errors = cloud(&format!("[store]\n{text}\n{LISTENER}")).unwrap_err().errors;
        errors.into_iter().map(|e| e.message).collect()
    };
    assert_eq!(
        mistakes("backend = \"postgres\""),
        [
            "a store in PostgreSQL needs `url`",
            "a store in PostgreSQL needs the node's `id`: its data is kept under that name"
        ]
    );
    refused("[store]\nbackend = \"sqlite\"", &["unknown section `store`"]);
}

// === rendering ===

#[test]
fn every_mistake_is_shown_at_once() {
    let text = r#"[edge]
id = "press 7"
data_dirr = "/var/lib/ferrule"

[mqtt]
	receive_max = "256"   # a tab before it
keep_alive_max = 15
"é" = 1

[[listener]]
bind = "0.0.0.0:1883"
anonymous = true
tls = { cert = "a.pem" }

[uplinkk]
url = "mqtt://cloud"
"#;
    let vars =
        [("FERRULE__OUTBOX__MEM_MAX", "lots"), ("FERRULE__MQTT__RECIEVE_MAX", "1"), ("FERRULE_LOG", "debug")];
    let expected = r#"edge.toml:2:6: error: an id has 1 to 64 letters, digits, `-`, `_` or `.`, found "press 7"
  |
2 | id = "press 7"
  |      ^^^^^^^^^

edge.toml:3:1: error: unknown key `data_dirr` in `edge`
  |
3 | data_dirr = "/var/lib/ferrule"
  | ^^^^^^^^^
  = help: did you mean `data_dir`?

edge.toml:6:16: error: `mqtt.receive_max`: expected a whole number, found "256"
  |
6 | 	receive_max = "256"   # a tab before it
  | 	              ^^^^^
  = help: write it without quotes

edge.toml:7:18: error: `mqtt.keep_alive_max`: expected a time with its unit like "15s", found the number 15
  |
7 | keep_alive_max = 15
  |                  ^^
  = help: units are ms, s, m, h and d

edge.toml:8:1: error: unknown key `é` in `mqtt`
  |
8 | "é" = 1
  | ^^^
  = help: known here: connect_timeout, max_connect_size, packet_timeout, max_packet_size, keep_alive_max, session_expiry_max, max_topic_levels, max_topic_length, topic_alias_max, max_subscriptions, receive_max, max_waiting, max_publish_rate, max_publish_bytes, max_inflight, max_queued_messages, max_stored_bytes, max_queued_bytes, max_output_bytes, stall_timeout, max_sessions, subscriptions_max_bytes, max_buffered_bytes, retained_max_messages, retained_max_bytes, delayed_max_messages, delayed_max_bytes

edge.toml:12:13: error: `anonymous = true` on an address that other machines reach
   |
12 | anonymous = true
   |             ^^^^
   = help: bind to 127.0.0.1, or add `anonymous_anywhere = true` if everyone who reaches the port may come in

edge.toml:13:1: error: `tls` needs `key`: a file in PEM form
   |
13 | tls = { cert = "a.pem" }
   | ^^^
   = help: `cert` makes both: ferrule-edge cert --dir certs --server NAME

edge.toml:15:2: error: unknown section `uplinkk`
   |
15 | [uplinkk]
   |  ^^^^^^^
   = help: did you mean `uplink`?

environment FERRULE__MQTT__RECIEVE_MAX: error: unknown key `recieve_max` in `mqtt`
 = help: did you mean `receive_max`?

environment FERRULE__OUTBOX__MEM_MAX: error: `outbox.mem_max`: expected a size with its unit like "4MiB", found "lots"
 = help: units are B, KiB, MiB, GiB, and KB, MB, GB, TB for powers of 1,000
"#;
    let shown = edge_env(text, &vars).unwrap_err().to_string();
    assert_eq!(shown, expected, "\n{shown}");
}

#[test]
fn mistakes_of_syntax_are_all_shown() {
    let errors = edge("[mqtt\nreceive_max = \nmax_inflight == 2\n").unwrap_err();
    assert_eq!(errors.errors.len(), 3, "{errors}");
    assert!(errors.to_string().starts_with("edge.toml:1:6: error: "), "{errors}");
    let errors = edge("[mqtt]\nreceive_max = 1\nreceive_max = 2\n").unwrap_err();
    assert!(errors.to_string().starts_with("edge.toml:3:1: error: duplicate key"), "{errors}");
}

#[test]
fn an_empty_file_says_what_is_needed() {
    let expected = "edge.toml: error: there is no [[listener]]\n = help: add [[listener]] and below it bind = \"127.0.0.1:1883\"\n";
    assert_eq!(edge("").unwrap_err().to_string(), expected);
}

#[test]
fn a_missing_file_is_named() {
    let errors = EdgeConfig::load(Path::new("/nowhere/edge.toml"), &Overrides::default()).unwrap_err();
    let expected =
        "/nowhere/edge.toml: error: cannot read /nowhere/edge.toml: No such file or directory (os error 2)\n";
    assert_eq!(errors.to_string(), expected);
}

// === mistakes ===

#[test]
fn values_and_relations() {
    refused("[edge]\nid = \"window\"", &["the id \"window\" is taken: rows made by windows carry it"]);
    refused("[edge]\nid = 7", &["`edge.id`: expected text, found the number 7"]);
    refused("edge = 1", &["`edge`: expected a section, found the number 1"]);
    refused("[mqtt]\nreceive_max = 0", &["`mqtt.receive_max` is 0: it must be from 1 to 65535"]);
    refused(
        "[mqtt]\nreceive_max = -1",
        &["`mqtt.receive_max`: expected a whole number, found the number -1"],
    );
    refused(
        "[mqtt]\nreceive_max = 1.5",
        &["`mqtt.receive_max`: expected a whole number, found a number with a fraction"],
    );
    refused("[mqtt]\nmax_inflight = 65536", &["`mqtt.max_inflight` is 65536: it must be from 1 to 65535"]);
    refused(
        "[mqtt]\nkeep_alive_max = \"1500ms\"",
        &["`keep_alive_max` is 1500ms: it must be whole seconds from 0 to 65535"],
    );
    refused(
        "[mqtt]\nmax_packet_size = \"1GiB\"",
        &["`max_packet_size` is 1073741824 bytes: it must be from 128 to 268435460"],
    );
    refused(
        "[mqtt]\nmax_stored_bytes = \"1GiB\"\nmax_packet_size = \"64MiB\"",
        &[
            "`max_queued_bytes` = 4MiB is less than `mqtt.max_packet_size` = 64MiB: the largest packet never fits",
        ],
    );
    refused(
        "[outbox]\nmax_bytes = \"2MiB\"",
        &["`mem_max` = 4MiB is more than `max_bytes` = 2MiB, which counts it in"],
    );
    refused(
        "[outbox]\nack_deadline = \"300ms\"",
        &[
            "`offline_interval` = 400ms is more than `ack_deadline` = 300ms: an acknowledgement waits for the next commit",
        ],
    );
    let expected = "expected on_full \"withhold\", \"drop_oldest\" or \"drop_newest\", found";
    refused("[outbox]\non_full = \"nack\"", &[&format!("{expected} \"nack\"")]);
    refused("[outbox]\non_full = \"explode\"", &[&format!("{expected} \"explode\"")]);
    let expected = "expected order \"in_order\" or \"live_first\", found \"newest_first\"";
    refused("[outbox]\norder = \"newest_first\"", &[expected]);
    refused(
        "[anonymous]\npublish = [\"a/#/b\"]",
        &[
            "`publish`: \"a/#/b\" is no topic filter: multi-level wildcard is not the last level [MQTT-4.7.1-1]",
        ],
    );
    refused(
        "[anonymous]\npublish = [1]",
        &["`anonymous.publish`: expected a list of texts like [\"a/#\", \"b\"], found a list"],
    );
    refused("[node]\nid = \"x\"", &["unknown section `node`"]);
    refused("[sink]\nx = 1", &["unknown section `sink`"]);
}

fn port(bind: &Bind) -> u16 {
    match bind {
        Bind::Tcp(address) => address.port(),
        other => panic!("{other}"),
    }
}

#[test]
fn transports() {
    let read = |text: &str| edge(&format!("[[listener]]\n{text}")).unwrap().broker.listeners.remove(0);
    let listener = read(
        "bind = \"0.0.0.0:8084\"\nprotocol = \"ws\"\ntls = { cert = [\"a.crt\", \"b.crt\"], key = [\"a.key\", \"b.key\"], client_ca = \"ca.crt\", client = \"optional\", tls12 = false }\nusername_from = \"san\"",
    );
    let tls = listener.tls.as_ref().unwrap();
    assert_eq!((listener.protocol(), listener.websocket.as_deref()), ("wss", Some("/mqtt")));
    assert_eq!(tls.certificates[1], ("/etc/ferrule/b.crt".into(), "/etc/ferrule/b.key".into()));
    assert_eq!((tls.client_required, tls.tls12, &*tls.alpn), (false, false, &[b"http/1.1".to_vec()][..]));
    assert_eq!(listener.username_from, Some(NameFrom::San));
    for (client_ca, required) in [("", false), (", client_ca = \"ca.crt\"", true)] {
        let tls =
            read(&format!("bind = \"[::1]:8883\"\ntls = {{ cert = \"a.crt\", key = \"a.key\"{client_ca} }}"))
                .tls
                .unwrap();
        assert_eq!(tls.client_required, required);
    }
    let listener = read("bind = \"unix:m.sock\"\nunix_mode = \"0600\"\nanonymous = true");
    assert_eq!((listener.bind, listener.unix_mode), (Bind::Unix("/etc/ferrule/m.sock".into()), 0o600));
    assert_eq!(listener.anonymous, Anonymous::Loopback);
    let listener = read(
        "bind = \"systemd:mqtt\"\nproxy_protocol_from = [\"10.0.0.0/8\", \"::1\"]\nusername_from = \"cn\"",
    );
    assert_eq!(listener.bind, Bind::Systemd("mqtt".into()));
    assert_eq!(
        listener.proxies.unwrap().iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.0.0.0/8", "::1/128"]
    );
    for (text, mistakes) in [
        ("protocol = \"http\"", &["expected protocol \"mqtt\" or \"ws\", found \"http\""][..]),
        ("path = \"/mqtt\"", &["`path` is for `protocol = \"ws\"`"]),
        ("protocol = \"ws\"\npath = \"mqtt\"", &["a path begins with `/` and has no `?`, `#` or blank"]),
        (
            "tls = { cert = [\"a\", \"b\"], key = \"a\", crl = \"c\" }",
            &[
                "2 in `cert`, 1 in `key`: each certificate has a key",
                "`crl` is about clients' certificates: it needs `client_ca`",
            ],
        ),
        ("username_from = \"cn\"", &["nobody here has a certificate that was checked"]),
        (
            "username_from = \"san\"\nproxy_protocol_from = \"10.0.0.1\"",
            &["a PROXY header carries the certificate's CN alone: \"cn\""],
        ),
        (
            "proxy_protocol_from = \"balancer\"",
            &["expected an address or a network like \"10.0.0.0/8\", found \"balancer\""],
        ),
        ("unix_mode = \"0660\"", &["`unix_mode` is for `bind = \"unix:...\"`"]),
        (
            "users = [\"nobody\"]",
            &["the listener on 127.0.0.1:9 is for \"nobody\", and there is no [[user]] of this name"],
        ),
        ("proxy_protocol = true", &["unknown key `proxy_protocol` in `listener`"]),
    ] {
        refused(&format!("[[listener]]\nbind = \"127.0.0.1:9\"\n{text}"), mistakes);
    }
    refused(
        "[certificate]\npublish = []",
        &["[certificate] is for nobody: no listener takes names from certificates"],
    );
}

#[test]
fn listeners() {
    refused("[[listener]]\nprotocol = \"wss\"", &["a listener needs `bind`", "TLS is a key of its own"]);
    refused(
        "[[listener]]\nbind = \"localhost:1883\"",
        &[
            "`listener.0.bind`: expected an address and a port like \"127.0.0.1:1883\", or \"unix:/path\", found \"localhost:1883\"",
        ],
    );
    refused("[[listener]]\nbind = \"127.0.0.1:1883\"", &["two listeners on 127.0.0.1:1883"]);
    refused(
        "[[listener]]\nbind = \"127.0.0.1:1\"\nanonymous_anywhere = true",
        &["`anonymous_anywhere` without `anonymous = true` does nothing"],
    );
    for (text, anonymous) in [
        ("bind = \"[::1]:1\"\nanonymous = true", Anonymous::Loopback),
        ("bind = \"[::ffff:127.0.0.1]:1\"\nanonymous = true", Anonymous::Loopback),
        ("bind = \"0.0.0.0:1\"\nanonymous = true\nanonymous_anywhere = true", Anonymous::Anyone),
        ("bind = \"0.0.0.0:1\"", Anonymous::Nobody),
    ] {
        let config = edge(&format!("[[listener]]\n{text}")).unwrap();
        assert_eq!(config.broker.listeners[0].anonymous, anonymous, "{text}");
        assert_eq!(config.broker.warnings.len(), usize::from(anonymous == Anonymous::Nobody), "{text}");
    }
    let message = edge("[listener]\nbind = \"127.0.0.1:1\"").unwrap_err().errors[0].message.clone();
    assert_eq!(message, "`listener`: expected a list of sections, found a section");
}

#[test]
fn who_may_come_without_a_name() {
    for (peer, loopback) in [
        ("127.0.0.1", true),
        ("127.9.9.9", true),
        ("::1", true),
        ("::ffff:127.0.0.1", true),
        ("10.0.0.1", false),
    ] {
        let peer = peer.parse().unwrap();
        assert_eq!(Anonymous::Loopback.admits(peer), loopback, "{peer}");
        assert!(Anonymous::Anyone.admits(peer) && !Anonymous::Nobody.admits(peer));
    }
}

#[test]
fn users() {
    let user = |lines: &str| format!("[[user]]\nname = \"u\"\n{lines}");
    refused(
        "[[user]]\npassword_file = \"x\"",
        &["a user needs `name`", "cannot read /etc/ferrule/x: No such file or directory (os error 2)"],
    );
    refused(&user(""), &["a user needs `password`, `password_file` or `scram`"]);
    refused(&user("password = \"secret\""), &["`password` takes a hash, not the password itself"]);
    refused(
        &user("password = \"$2y$05$abcdefghijklmnopqrstuu\""),
        &["the password hash cannot be used: it is not of the form $argon2id$v=19$..."],
    );
    let costly = HASH.replace("m=8,t=1", "m=1048576,t=1");
    refused(
        &user(&format!("password = \"{costly}\"")),
        &[
            "the password hash cannot be used: each try would take 1048576 KiB and 1 passes: at most 262144 and 64 are accepted",
        ],
    );
    let good = user(&format!("password = \"{HASH}\"\n"));
    refused(&format!("{good}password_file = \"x\""), &["`password` and `password_file` are both given"]);
    refused(&format!("{good}{good}"), &["two users are called \"u\""]);
    refused(
        &format!("{good}role = \"edge\""),
        &["role \"edge\" is for ferrule-cloud: an edge has no edges behind it"],
    );
    refused(
        &format!("{good}role = \"admin\""),
        &["`user.0.role`: expected \"device\" or \"edge\", found \"admin\""],
    );
    refused(&format!("{good}edge = \"x\""), &["`edge` needs `role = \"edge\"` beside it"]);
    refused(
        &format!("{good}deny = [\"${{name}}/#\"]"),
        &["`deny`: \"${name}/#\" has a `${...}` other than ${clientid} and ${username}"],
    );

    refused(
        &user("scram = \"SCRAM-SHA-256$1:a$b:c\"\n"),
        &[
            "the SCRAM verifier cannot be used: 1 rounds: RFC 7677 asks for at least 4096, and 10000000 are the most here",
        ],
    );
    let verifier = Verifier::of("secret", b"salt", crate::scram::ITERATIONS);
    let alone = user(&format!("scram = \"{}\"\n", verifier.reveal()));
    let users = edge(&format!("{LISTENER}{alone}")).unwrap().broker.users;
    assert_eq!((&users[0].credential, &users[0].scram), (&Credential::None, &Some(verifier)));

    let shown =
        edge(&format!("{}\n{LISTENER}", user("password = \"secret\""))).unwrap_err().errors[0].hint.clone();
    assert!(shown.unwrap().contains("`ferrule-edge passwd`"));

    let config = cloud(&format!(
        "{LISTENER}{good}role = \"edge\"\nedge = \"press-7\"\npublish = [\"a/${{clientid}}\"]\n[[user]]\nname = \"press-8\"\npassword = \"{HASH}\"\nrole = \"edge\""
    ));
    let users = config.unwrap().broker.users;
    assert_eq!(users[0].role, UserRole::Edge("press-7".into()));
    assert_eq!(users[0].access.publish.as_deref(), Some(&["a/${clientid}".to_owned()][..]));
    assert_eq!(users[1].role, UserRole::Edge("press-8".into()));
    assert!(!format!("{users:?}").contains("argon2"), "hashes are not shown");
    let errors =
        cloud(&format!("{LISTENER}[[user]]\nname = \"a b\"\npassword = \"{HASH}\"\nrole = \"edge\""))
            .unwrap_err();
    assert!(errors.errors[0].message.starts_with("an id has"), "{errors}");
}

#[test]
fn password_files() {
    let dir = tempfile::tempdir().unwrap();
    let parse = |content: &str| {
        std::fs::write(dir.path().join("u.pass"), content).unwrap();
        let text = format!("{LISTENER}[[user]]\nname = \"u\"\npassword_file = \"u.pass\"\n");
        EdgeConfig::parse("edge.toml", &text, dir.path(), &Overrides::default())
            .map(|c| c.broker.users[0].credential.clone())
    };
    let hash = Credential::Hash(PasswordHash::parse(HASH).unwrap());
    assert_eq!(parse(&format!("{HASH}\n")).unwrap(), hash);
    for (content, password) in
        [("secret\n", "secret"), ("secret", "secret"), (" a b \r\n", " a b "), ("$x", "$x")]
    {
        assert_eq!(parse(content).unwrap(), Credential::Plain(Secret::new(password.into())), "{content:?}");
    }
    for (content, part) in [("", "found nothing"), ("\n", "found nothing"), ("a\nb\n", "found several")] {
        assert!(parse(content).unwrap_err().to_string().contains(part), "{content:?}");
    }
    assert!(parse("$argon2id$rubbish").unwrap_err().to_string().contains("cannot be used"));
}

#[test]
fn uplinks() {
    let uplink = |lines: &str| format!("[uplink]\n{lines}");
    refused(&uplink(""), &["[uplink] needs `url`"]);
    refused(&uplink("url = []"), &["[uplink] needs `url`"]);
    refused(
        &uplink("url = 7"),
        &["`uplink.url`: expected a list of texts like [\"a/#\", \"b\"], found the number 7"],
    );
    let several = edge(&format!("{LISTENER}[uplink]\nurl = [\"mqtt://a\", \"mqtts://b\"]")).unwrap();
    assert_eq!(several.uplink.unwrap().servers.len(), 2);
    let url = "url = \"mqtt://cloud\"\n";
    refused(
        &uplink(&format!("{url}keep_alive = \"0s\"")),
        &["`keep_alive` is 0s: it must be whole seconds from 1 to 65535"],
    );
    refused(
        &uplink(&format!("{url}version = 3")),
        &["`version` is 3: it must be 5 (MQTT 5) or 4 (MQTT 3.1.1)"],
    );
    refused(
        &uplink(&format!("{url}version = 4\nidentity = \"properties\"")),
        &["`identity = \"properties\"` needs `version = 5`: MQTT 3.1.1 has no user properties"],
    );
    refused(
        &uplink(&format!("{url}connect_timeout = \"0s\"")),
        &["`connect_timeout` is 0s: no connection would ever be made"],
    );
    let config = edge(&format!("{LISTENER}[uplink]\nurl = [\"mqtt://a\", \"mqtt://[::1]:7\"]"))
        .unwrap()
        .uplink
        .unwrap();
    assert_eq!(config.servers, [Server::new("a", 1883), Server::new("::1", 7)]);
    assert_eq!((config.version, config.keep_alive), (Version::V5, Duration::from_secs(15)));
    let errors = cloud(&format!("{LISTENER}[uplink]\nurl = \"mqtt://a\"")).unwrap_err();
    assert_eq!(errors.errors[0].hint.as_deref(), Some("only ferrule-edge has an uplink"));
}

#[test]
fn downlinks() {
    let down = |lines: &str| format!("[uplink]\nurl = \"mqtt://a\"\n[[downlink]]\n{lines}");
    refused(&down(""), &["[[downlink]] needs `filter`"]);
    refused(
        &down("filter = \"a/#/b\""),
        &["`filter`: \"a/#/b\" is no topic filter (a shared one cannot be asked for)"],
    );
    refused(
        &down("filter = \"a/+\"\ntopic = \"b/$2\""),
        &["`topic` uses $2, and `filter` has 1 of `+` and `#`"],
    );
    refused(&down("filter = \"a\"\nqos = 2"), &["`downlink.0.qos` is 2: it must be from 0 to 1"]);
    refused(
        &down("filter = \"a\"\n[[downlink]]\nfilter = \"a\""),
        &["two [[downlink]] have the filter \"a\""],
    );
    refused("[[downlink]]\nfilter = \"a\"", &["[[downlink]] needs the [uplink] that its messages come by"]);
    let many: String = (0..65).map(|n| format!("[[downlink]]\nfilter = \"a/{n}\"\n")).collect();
    refused(
        &format!("[uplink]\nurl = \"mqtt://a\"\n{many}"),
        &["more than 64 [[downlink]]: use `+` and `#`"],
    );
    let text = down("filter = \"commands/+/#\"\ntopic = \"c/$2\"\nqos = 0\n[[downlink]]\nfilter = \"b\"");
    let uplink = edge(&format!("{LISTENER}{text}")).unwrap().uplink.unwrap();
    let expected = [("commands/+/#", Some("c/$2"), false), ("b", None, true)];
    let expected = expected.map(|(filter, topic, qos)| Downlink::new(filter, topic, qos).unwrap());
    assert_eq!(uplink.downlinks, expected);
    assert_eq!(uplink.session_expiry, Duration::from_secs(7 * 86_400));
    assert!(uplink.batch);
    let batch = |lines: &str| format!("[uplink]\nurl = \"mqtt://a\"\n{lines}");
    refused(
        &batch("interface = \"wwan0/1\""),
        &["`interface`: \"wwan0/1\" is no name of a network interface"],
    );
    let named = edge(&format!("{LISTENER}{}", batch("interface = \"wwan0\""))).unwrap().uplink.unwrap();
    assert_eq!(named.interface.as_deref(), Some("wwan0"));
    let aws = "preset = \"aws-iot-core\"\ntls = { cert = \"c\", key = \"k\" }";
    refused(
        &batch(aws),
        &[
            "`preset = \"aws-iot-core\"` needs TLS, and mqtt://a:1883 is without",
            "`tls` is given, and no `url` is over TLS",
        ],
    );
    refused(
        &batch("preset = \"gcp\""),
        &["`preset` is \"gcp\": it must be \"aws-iot-core\" or \"azure-iot-hub\", or be left out"],
    );
    refused(&batch("client_id = \"\""), &["`client_id` has 0 bytes: it must have from 1 to 256"]);
    refused(&batch("metered = { bytes = \"1MiB\" }"), &["`bytes` is 1MiB: it must be from 1KiB to 256KiB"]);
    refused(
        &batch("metered = { time = \"90ms\" }"),
        &["`time` is 90ms: it must be whole seconds from 1 to 86400"],
    );
    let paid = |lines: &str| edge(&format!("{LISTENER}{}", batch(lines))).unwrap().uplink.unwrap();
    assert_eq!((paid("").metered, paid("").keep_alive), (None, Duration::from_secs(15)));
    let metered = paid("metered = {}");
    assert_eq!((metered.metered, metered.keep_alive), (Some(Metered::default()), Duration::from_secs(300)));
    let metered = paid("metered = { bytes = \"4KiB\", time = \"5m\" }\nkeep_alive = \"60s\"");
    let expected = Metered { bytes: 4096, time: Duration::from_secs(300) };
    assert_eq!((metered.metered, metered.keep_alive), (Some(expected), Duration::from_secs(60)));
    refused(
        &batch("batch_delay = \"1s\""),
        &["`batch_delay` is 1s: it must be at most 500ms, since devices wait for it"],
    );
    refused(
        &batch("batch = false\nbatch_delay = \"1ms\""),
        &["`batch_delay` says nothing beside `batch = false`"],
    );
}

#[test]
fn uplinks_over_tls() {
    let tls = |url: &str, tls: &str| format!("[uplink]\nurl = {url}\ntls = {{ {tls} }}");
    let secure = "\"wss://cloud\"";
    refused(&tls("\"mqtt://a\"", "ca = \"x\""), &["`tls` is given, and no `url` is over TLS"]);
    refused(
        &tls(secure, "cert = \"x\""),
        &["`cert` needs `key` beside it: a client certificate is both files"],
    );
    refused(
        &tls(secure, "key = \"x\""),
        &["`key` needs `cert` beside it: a client certificate is both files"],
    );
    refused(
        &tls(secure, "server_name = \"a b\""),
        &["`server_name`: \"a b\" is neither a DNS name nor an address"],
    );
    refused(&tls(secure, "verify = false"), &["unknown key `verify` in `uplink`"]);
    refused(
        "[uplink]\nurl = \"ssl://a\"",
        &["`url`: 'ssl://' is another client's name for it, write 'mqtts://'"],
    );

    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "{LISTENER}{}",
        tls(
            "[\"mqtts://cloud\", \"ws://b/x\"]",
            "ca = \"ca.crt\", cert = \"c.crt\", key = \"/k.key\", server_name = \"n\""
        )
    );
    let config = EdgeConfig::parse("edge.toml", &text, dir.path(), &Overrides::default()).unwrap();
    let uplink = config.uplink.unwrap();
    let expected = TlsConfig {
        ca: Some(dir.path().join("ca.crt")),
        certificate: Some((dir.path().join("c.crt"), "/k.key".into())),
        server_name: TlsConfig::server_name("n"),
        ..TlsConfig::default()
    };
    assert_eq!((uplink.tls, uplink.proxy), (expected, None));
    assert_eq!(uplink.servers[1].to_string(), "ws://b:80/x");
    let warnings = config.broker.warnings.join("\n");
    for part in ["falls back from TLS to ws://b:80/x", "cannot connect until its files can be used", "ca.crt"]
    {
        assert!(warnings.contains(part), "{part}: {warnings}");
    }
    let variables = [("FERRULE__UPLINK__TLS__CA", "/env.crt")];
    let config = edge_env(&format!("{LISTENER}[uplink]\nurl = {secure}"), &variables).unwrap();
    assert_eq!(config.uplink.unwrap().tls.ca.as_deref(), Some(Path::new("/env.crt")));
}

#[test]
fn uplinks_through_a_proxy() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("proxy.pass"), "hunter2\n").unwrap();
    let parse = |lines: &str| {
        let text = format!("{LISTENER}[uplink]\nurl = \"mqtt://cloud\"\n{lines}");
        EdgeConfig::parse("edge.toml", &text, dir.path(), &Overrides::default())
    };
    let proxy = |lines: &str| parse(lines).unwrap().uplink.unwrap().proxy.unwrap();
    let open = proxy("proxy = \"http://proxy:3128\"");
    assert_eq!((open.host(), open.port(), open.credentials.clone()), ("proxy", 3128, None));
    let all = "proxy = \"http://[::1]:1\"\nproxy_username = \"me\"\nproxy_password_file = \"proxy.pass\"";
    assert_eq!(proxy(all).credentials, Some(("me".to_owned(), "hunter2".to_owned())));
    assert!(!format!("{:?}", parse(all).unwrap()).contains("hunter2"));
    for (lines, messages) in [
        ("proxy = \"http://proxy\"", &["`proxy`: the proxy needs a port, as in 'http://proxy:3128'"][..]),
        (
            "proxy = \"http://me:x@proxy:1\"",
            &[
                "`proxy`: the address holds a user name: write `proxy_username` and `proxy_password_file` beside it instead",
            ],
        ),
        (
            "proxy_username = \"me\"",
            &[
                "`proxy_username` needs `proxy` beside it",
                "`proxy_username` needs `proxy_password_file` beside it",
            ],
        ),
        ("proxy_password_file = \"proxy.pass\"", &["`proxy_password_file` needs `proxy_username` beside it"]),
        (&all.replace("\"me\"", "\"m:e\""), &["`proxy_username`: \"m:e\" holds a colon"]),
    ] {
        let errors = parse(lines).unwrap_err().errors;
        let found: Vec<&str> = errors.iter().map(|e| e.message.as_str()).collect();
        assert_eq!(found, messages, "{lines}");
    }
}

// === sources ===

#[test]
fn the_environment_wins_over_the_file() {
    let text = format!("{LISTENER}[mqtt]\nreceive_max = 10\n");
    let config = edge_env(
        &text,
        &[
            ("FERRULE__MQTT__RECEIVE_MAX", "20"),
            ("FERRULE__EDGE__ID", "7"),
            ("FERRULE__OUTBOX__ACK_DEADLINE", "500ms"),
            ("FERRULE__LISTENER__0__BIND", "127.0.0.1:2"),
            ("FERRULE__LISTENER__1__BIND", "127.0.0.1:3"),
            ("FERRULE__LISTENER__1__ANONYMOUS", "true"),
            ("FERRULE__ANONYMOUS__PUBLISH", "[\"a,b\", 'c']"),
            ("FERRULE__ANONYMOUS__DENY__0", "x"),
            ("FERRULE__ANONYMOUS__DENY__1", "y"),
            ("FERRULE__UPLINK__URL", "mqtt://a"),
            ("PATH", "/bin"),
        ],
    );
    let EdgeConfig { broker, uplink } = config.unwrap();
    assert_eq!(broker.mqtt.clients.receive_max, 20);
    assert_eq!(broker.node.id.as_deref(), Some("7"));
    assert_eq!(broker.outbox.ack_deadline, Duration::from_millis(500));
    let ports: Vec<u16> = broker.listeners.iter().map(|l| port(&l.bind)).collect();
    assert_eq!(ports, [2, 3]);
    assert_eq!(broker.listeners[0].anonymous, Anonymous::Loopback, "from the file");
    assert_eq!(broker.anonymous.publish, Some(vec!["a,b".to_owned(), "c".to_owned()]));
    assert_eq!(broker.anonymous.deny, ["x", "y"]);
    assert_eq!(uplink.unwrap().servers, [Server::new("a", 1883)]);

    let source = |path: &str| broker.settings.iter().find(|s| s.path == path).unwrap().clone();
    let receive_max = source("mqtt.receive_max");
    assert_eq!(receive_max.value.as_deref(), Some("20"));
    assert_eq!(receive_max.source, Source::Env("FERRULE__MQTT__RECEIVE_MAX".into()));
    assert_eq!(source("listener.0.anonymous").source, Source::File { line: 3 });
    assert_eq!(source("mqtt.max_inflight").value.as_deref(), Some("1024"));
    assert_eq!(source("mqtt.max_inflight").source, Source::Default);
    assert_eq!(source("edge.rules").value, None);
}

#[test]
fn elements_are_added_in_order_of_number() {
    let vars: Vec<(String, String)> = (0..12)
        .map(|i| (format!("FERRULE__LISTENER__{i}__BIND"), format!("127.0.0.1:{}", 100 + i)))
        .collect();
    let config = EdgeConfig::parse("e", "", Path::new(""), &Overrides::from_env(vars)).unwrap();
    let ports: Vec<u16> = config.broker.listeners.iter().map(|l| port(&l.bind)).collect();
    assert_eq!(ports, (100..112).collect::<Vec<u16>>());
}

#[test]
fn wrong_variables_are_named() {
    for (name, value, message) in [
        ("FERRULE__LISTENER__5__BIND", "127.0.0.1:2", "there is no number 5: the next one to add is 1"),
        ("FERRULE__LISTENER__X__BIND", "127.0.0.1:2", "expected a number (0 is the first) where `x` is"),
        ("FERRULE__MQTT__RECEIVE_MAX__X", "1", "`x` is looked for inside a value that is no section"),
        ("FERRULE__MQTT", "1", "`mqtt`: expected a section, found \"1\""),
        ("FERRULE__MQTT__", "1", "two underscores part section and key, as in FERRULE__MQTT__RECEIVE_MAX"),
        ("FERRULE__MQTT__RECEIVE_MAX", "ten", "`mqtt.receive_max`: expected a whole number, found \"ten\""),
        (
            "FERRULE__LISTENER__0__ANONYMOUS",
            "yes",
            "`listener.0.anonymous`: expected true or false, found \"yes\"",
        ),
        ("FERRULE__MQQT__RECEIVE_MAX", "1", "unknown section `mqqt`"),
    ] {
        let errors = edge_env(&format!("{LISTENER}[mqtt]\nreceive_max = 1"), &[(name, value)]).unwrap_err();
        assert_eq!(errors.errors[0].message, message, "{name}");
        assert_eq!(errors.errors[0].place, ErrorPlace::Env(name.to_owned()));
        assert_eq!(errors.errors.len(), 1, "{errors}");
    }
}

#[test]
fn options_win_over_the_environment() {
    let mut overrides = env(&[("FERRULE__LISTENER__0__BIND", "127.0.0.1:2")]);
    overrides.option("--listen", &["listener", "0", "bind"], "0.0.0.0:3");
    let errors = EdgeConfig::parse("edge.toml", LISTENER, Path::new(""), &overrides).unwrap_err();
    // The file's `anonymous` was for the file's address.
    assert_eq!(errors.errors[0].message, "`anonymous = true` on an address that other machines reach");
    overrides.option("--data-dir", &["edge", "data_dir"], "here");
    overrides.option("--listen", &["listener", "0", "bind"], "127.0.0.1:4");
    let config = EdgeConfig::parse("edge.toml", LISTENER, Path::new("/etc"), &overrides).unwrap();
    assert_eq!(port(&config.broker.listeners[0].bind), 4);
    assert_eq!(config.broker.node.data_dir, Path::new("here"), "relative to where the process was started");
}

#[test]
fn paths_of_the_file_are_relative_to_it() {
    let text = format!("[edge]\ndata_dir = \"data\"\nrules = \"/abs/rules.sql\"\n{LISTENER}");
    let node = edge(&text).unwrap().broker.node;
    assert_eq!(node.data_dir, Path::new("/etc/ferrule/data"));
    assert_eq!(node.rules.as_deref(), Some(Path::new("/abs/rules.sql")));
}

#[test]
fn without_a_file() {
    let listen: SocketAddr = "0.0.0.0:1883".parse().unwrap();
    let config = EdgeConfig::plain(listen, "/data");
    assert_eq!(config.broker.listeners, [ListenerConfig::plain(listen, ClientLimits::default())]);
    let node = NodeConfig {
        id: None,
        data_dir: "/data".into(),
        rules: None,
        workers: 1,
        worker_delay: Duration::ZERO,
        memory_max: 0,
        sys_interval: Duration::from_secs(10),
        log: "info".into(),
    };
    assert_eq!(config.broker.node, node);
    assert_eq!((config.broker.mqtt, config.uplink), (MqttLimits::edge(), None));
    assert_eq!(CloudConfig::plain(listen, "/data").broker.outbox, OutboxConfig::cloud());

    let overrides = env(&[("FERRULE__EDGE__RULES", "r.sql"), ("FERRULE__MQTT__X", "1")]);
    let errors = EdgeConfig::plain_with(listen, Path::new("d"), &overrides).unwrap_err();
    assert!(
        errors.to_string().starts_with("environment FERRULE__MQTT__X: error: unknown key `x`"),
        "{errors}"
    );
    let overrides = env(&[("FERRULE__EDGE__RULES", "r.sql")]);
    let config = EdgeConfig::plain_with(listen, Path::new("d"), &overrides).unwrap();
    assert_eq!(config.broker.node.rules.as_deref(), Some(Path::new("r.sql")));
}

// === the default files ===

/// The example lines (`#` without a blank behind it) made real.
fn with_examples(file: &str) -> String {
    let line = |line: &str| match line.strip_prefix('#') {
        Some(example) if !example.is_empty() && !example.starts_with(' ') => format!("{example}\n"),
        _ => format!("{line}\n"),
    };
    file.lines().map(line).collect::<String>().replace("$argon2id$v=19$...", HASH)
}

/// `file` says of each setting what its default is, and names them all.
fn compare_settings(file: &str, broker: &BrokerConfig, examples: &BrokerConfig, defaults: &BrokerConfig) {
    for setting in &defaults.settings {
        let find = |config: &BrokerConfig| config.settings.iter().find(|s| s.path == setting.path).cloned();
        if setting.path == "listener.0.bind" {
            continue;
        }
        if setting.value.is_some() {
            // Some defaults stand in a section that is an example as a whole.
            let shown =
                find(broker).filter(|s| s.source != Source::Default).or_else(|| find(examples)).unwrap();
            assert_eq!(shown.value, setting.value, "{}", setting.path);
        }
        assert_ne!(find(examples).unwrap().source, Source::Default, "{} is not in the file", setting.path);
    }
    for line in file.lines() {
        assert!(line.chars().count() <= 120 && line.trim_end() == line, "{line}");
    }
}

/// The examples with what they need beside them: a Unix socket for WebSocket clients without a name, or with a certificate.
fn examples_that_agree(file: &str) -> String {
    let mut text = with_examples(file);
    for (default, needed) in [
        ("anonymous = false", "anonymous = true"),
        ("bind = \"127.0.0.1:1883\"", "bind = \"unix:mqtt.sock\""),
        ("protocol = \"mqtt\"", "protocol = \"ws\""),
        ("username_from = \"password\"", "username_from = \"cn\""),
    ] {
        assert!(text.contains(default), "{default}");
        text = text.replacen(default, needed, 1);
    }
    text
}

#[test]
fn the_default_files_show_every_default() {
    let dir = tempfile::tempdir().unwrap();
    for file in ["uplink.pass", "proxy.pass", "device.key", "user.pass", "cluster.token"] {
        std::fs::write(dir.path().join(file), "secret").unwrap();
    }
    let none = Overrides::default();
    let minimal = "[[listener]]\nbind = \"127.0.0.1:1883\"\n";

    let file = EdgeConfig::parse("f", EDGE_DEFAULT_FILE, dir.path(), &none).unwrap();
    let defaults = EdgeConfig::parse("f", minimal, dir.path(), &none).unwrap();
    let stripped = |mut config: EdgeConfig| {
        config.broker.settings.clear();
        config
    };
    assert_eq!(stripped(file.clone()), stripped(defaults.clone()));
    let text = examples_that_agree(EDGE_DEFAULT_FILE);
    let examples = EdgeConfig::parse("f", &text, dir.path(), &none).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(defaults.broker.mqtt, MqttLimits::edge());
    assert_eq!(defaults.broker.outbox, OutboxConfig::edge());
    compare_settings(EDGE_DEFAULT_FILE, &file.broker, &examples.broker, &defaults.broker);

    let file = CloudConfig::parse("f", CLOUD_DEFAULT_FILE, dir.path(), &none).unwrap();
    let defaults = CloudConfig::parse("f", minimal, dir.path(), &none).unwrap();
    let text = examples_that_agree(CLOUD_DEFAULT_FILE);
    let text = text.replace("role = \"device\"", "role = \"edge\"");
    // A cluster needs it.
    let text = text.replace("backend = \"sqlite\"", "backend = \"postgres\"");
    let examples = CloudConfig::parse("f", &text, dir.path(), &none).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(defaults.broker.mqtt, MqttLimits::cloud());
    assert_eq!(defaults.broker.outbox, OutboxConfig::cloud());
    compare_settings(CLOUD_DEFAULT_FILE, &file.broker, &examples.broker, &defaults.broker);
    let strip = |mut config: CloudConfig| {
        config.broker.settings.clear();
        config
    };
    assert_eq!(strip(file), strip(defaults));
}

#[test]
fn no_text_makes_it_panic() {
    // Cut the default file at every character, and damage it in ways that people do.
    let text = with_examples(EDGE_DEFAULT_FILE);
    for (at, _) in text.char_indices().step_by(7) {
        let _ = edge(&text[..at]);
        let _ = edge(&text[at..]);
        let _ = edge(&format!("{}\u{0}{}", &text[..at], &text[at..]));
    }
    let deep = format!("a = {}{}", "[".repeat(10_000), "]".repeat(10_000));
    assert!(edge(&deep).is_err());
    let _ = edge_env("", &[("FERRULE__A__0__0__0__0__B", &deep)]);
}
