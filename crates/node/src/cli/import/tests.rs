#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use crate::cli::tests::flavor;
use crate::config::{EdgeConfig, Overrides};

/// The draft of a text, finished; other files by name.
fn draft(text: &str, files: &[(&str, &str)]) -> Draft {
    let read = |path: &Path| match files.iter().find(|(name, _)| Path::new(name) == path) {
        Some((_, text)) => Ok((*text).to_owned()),
        None => Err(io::Error::from(io::ErrorKind::NotFound)),
    };
    let mut draft = match is_hocon(text) {
        true => nanomq::read("b.conf", text).unwrap(),
        false => mosquitto::read("b.conf", text, &read),
    };
    draft.finish(true, "b.conf", "ferrule-edge");
    draft
}

/// What came of it passes `check`, in one file and in two; the configuration without passwords, and what was told.
fn checked(draft: &Draft) -> (String, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let one = draft.one_file(true, "ferrule-edge");
    if let Err(errors) = EdgeConfig::parse("edge.toml", &one, folder.path(), &Overrides::default()) {
        panic!("{errors}\n{one}");
    }
    let dir = folder.path().join("d");
    assert!(write(draft, &dir, true, "ferrule-edge").is_ok());
    assert!(write(draft, &dir, true, "ferrule-edge").is_err(), "it overwrites");
    let args = crate::cli::CheckArgs { config: dir.join("edge.toml"), all: false };
    assert!(matches!(crate::cli::check(&flavor(), &args), Ok(0)), "{one}");
    let lines = one.lines().filter(|line| !line.starts_with("password = ") && !line.starts_with("# From "));
    let shown: Vec<&str> = lines.collect();
    let told = draft.told.iter().map(|told| format!("{}:{}: {}", told.file, told.line, told.text));
    (shown.join("\n"), told.collect())
}

#[test]
fn mosquittos_listeners_users_and_access() {
    let conf = "\
# comment
per_listener_settings false
listener 1883
listener 9001 127.0.0.1
protocol websockets
max_connections 50
listener 0 /run/m.sock
allow_anonymous true
password_file pw
acl_file acl
max_packet_size 20000
max_queued_messages 500
persistent_client_expiration 2w
persistence true
persistence_location /var/lib/mosquitto/
log_dest stdout
mount_point x/
max_keepalive 600
nonsense 5
";
    let acl = "\
topic read public/#
user ann
topic readwrite a/#
topic deny a/secret
pattern write devices/%c/%u/#
topic write b/#
what is this
";
    let draft = draft(conf, &[("pw", "ann:$7$101$x$y\nbob:$7$101$x$y\n"), ("acl", acl)]);
    let (toml, told) = checked(&draft);
    let expected = r#"
[edge]
data_dir = "data"            # a new one: what the other broker has stored is not taken over

[[listener]]
bind = "0.0.0.0:1883"
anonymous = true
anonymous_anywhere = true     # as it was: everyone who reaches the port may come in

[[listener]]
bind = "127.0.0.1:9001"
protocol = "ws"
anonymous = true

[listener.limits]
max_connections = 50

[[listener]]
bind = "unix:/run/m.sock"
anonymous = true

[[user]]
name = "ann"
# nobody knows this password: `ferrule-edge passwd` makes another one
publish = ["a/#", "b/#", "devices/${clientid}/${username}/#"]
subscribe = ["a/#"]
deny = ["a/secret"]

[[user]]
name = "bob"
# nobody knows this password: `ferrule-edge passwd` makes another one
publish = ["devices/${clientid}/${username}/#"]
subscribe = []

[anonymous]
publish = ["devices/${clientid}/${username}/#"]
subscribe = ["public/#"]

[mqtt]
max_packet_size = "20000B"
max_queued_messages = 500
session_expiry_max = "336h"
keep_alive_max = "600s""#;
    assert_eq!(toml, expected);
    let starts = [
        "b.conf:5: protocol websockets: ",
        "pw:1: the password of ann: ",
        "pw:2: the password of bob: ",
        "acl:7: what is this: ",
        "b.conf:17: mount_point: write [[rewrite]]",
        "b.conf:19: nonsense: there is no counterpart",
    ];
    for start in starts {
        assert!(told.iter().any(|line| line.starts_with(start)), "{start}: {told:#?}");
    }
    assert_eq!(told.len(), starts.len(), "{told:#?}");
}

#[test]
fn mosquitto_by_itself_is_for_this_machine() {
    let (toml, told) = checked(&draft("persistence true\n", &[]));
    assert!(
        toml.contains("bind = \"127.0.0.1:1883\"\nanonymous = true\n") || toml.ends_with("anonymous = true")
    );
    assert_eq!(told, Vec::<String>::new());
    let (toml, told) = checked(&draft("port 1884\n", &[]));
    assert!(toml.contains("bind = \"0.0.0.0:1884\"") && !toml.contains("anonymous"), "{toml}");
    assert!(told[0].contains("no client could connect"), "{told:?}");
}

const BRIDGE: &str = "\
listener 1883 127.0.0.1
allow_anonymous true
connection cloud
address broker.example:8883 other.example
bridge_cafile ca.crt
remote_username gw
remote_password s3cr3t
remote_clientid gw-1
keepalive_interval 30
bridge_protocol_version mqttv50
notifications false
topic sensors/#
topic state/# out 1 \"\" plant7/
topic # both 2 local/ remote/
topic \"\" out 1 one/topic its/name
topic cmd/# in 1
topic a/#/b out
connection second
address elsewhere
topic # out
";

#[test]
fn mosquittos_bridge() {
    let draft = draft(BRIDGE, &[]);
    let rules = draft.rules().unwrap();
    assert_eq!(
        rules,
        r#"-- Bridge cloud of b.conf.

CREATE RULE bridge_1 AS
INSERT INTO cloud
SELECT * FROM "sensors/#";

CREATE RULE bridge_2 AS
INSERT INTO cloud."plant7/${topic}"
SELECT * FROM "state/#";

CREATE RULE bridge_3 AS
INSERT INTO cloud."remote/${rest}" WITH (payload = '${payload}')
SELECT substr(topic, 7) AS rest, payload FROM "local/#";

CREATE RULE bridge_4 AS
INSERT INTO cloud."its/name"
SELECT * FROM "one/topic";
"#
    );
    assert_eq!(draft.uplink_password(), Some("s3cr3t"));
    let (toml, told) = checked_without_files(&draft);
    assert!(
        toml.contains("url = [\"mqtts://broker.example:8883\", \"mqtts://other.example:1883\"]"),
        "{toml}"
    );
    assert!(toml.contains("# password_file = ") && !toml.contains("s3cr3t"), "{toml}");
    assert!(toml.contains("keep_alive = \"30s\"") && !toml.contains("version = 4"), "{toml}");
    assert!(told.iter().all(|line| !line.contains("s3cr3t")), "{told:?}");
    for start in [
        "b.conf:7: remote_password: ",
        "b.conf:8: remote_clientid gw-1: ",
        "b.conf:14: topic # both 2 local/ remote/: what comes from",
        "b.conf:14: topic # both 2 local/ remote/: under another prefix",
        "b.conf:16: topic cmd/# in 1: what comes from",
        "b.conf:17: topic a/#/b out: ",
        "b.conf:18: connection second: ",
    ] {
        assert!(told.iter().any(|line| line.starts_with(start)), "{start}: {told:#?}");
    }
    assert_eq!(told.len(), 7, "{told:#?}");
    let checked = loader::check(&[Source { name: "r", text: &rules }], &flavor().host(), &Vec::new());
    assert!(checked.is_ok(), "{checked:?}");
}

/// Without the certificates that the file names.
fn checked_without_files(draft: &Draft) -> (String, Vec<String>) {
    let one = draft.one_file(true, "ferrule-edge");
    let told = draft.told.iter().map(|told| format!("{}:{}: {}", told.file, told.line, told.text));
    (one, told.collect())
}

const NANOMQ: &str = r#"
include "/etc/acl.conf"
mqtt {
  max_packet_size = 10KB
  max_mqueue_len = 2048
  retry_interval = 10s
}
listeners.tcp { bind = "0.0.0.0:1883" }
listeners.ws { bind = "127.0.0.1:8083/ws" }
listeners.quic { bind = "0.0.0.0:14567" }
http_server { port = 8081 }
auth {
  allow_anonymous = false
  no_match = deny
  password = { ann = "pw1", bob = "pw2" }
  acl = { rules = [
    { permit = allow, username = ann, action = publish, topics = ["a/${clientid}/#"] }
    { permit = allow, topics = ["b/#"] }
    { permit = deny, ipaddr = "10.0.0.1", topics = ["c"] }
  ] }
}
bridges.mqtt.emqx1 {
  server = "mqtt-tcp://127.0.0.1:1885"
  proto_ver = 5
  clientid = "bridge"
  username = u
  password = s3cr3t
  keepalive = 60s
  forwards = [
    { remote_topic = "fwd/topic1", local_topic = "topic1", qos = 1 }
    { local_topic = "plain/#" }
    { remote_topic = "x/+", local_topic = "y/+" }
  ]
  subscription = [ { remote_topic = "cmd/#", local_topic = "cmd/#", qos = 1 } ]
}
"#;

#[test]
fn nanomqs_configuration() {
    let draft = draft(NANOMQ, &[]);
    let (toml, told) = checked(&draft);
    for part in [
        "[[listener]]\nbind = \"0.0.0.0:1883\"",
        "bind = \"127.0.0.1:8083\"\nprotocol = \"ws\"\npath = \"/ws\"",
        "name = \"ann\"\npublish = [\"a/${clientid}/#\", \"b/#\"]\nsubscribe = [\"b/#\"]",
        "name = \"bob\"\npublish = [\"b/#\"]\nsubscribe = [\"b/#\"]",
        "[mqtt]\nmax_packet_size = \"10000B\"\nmax_queued_messages = 2048",
        "url = \"mqtt://127.0.0.1:1885\"\nusername = \"u\"\n# password_file",
        "# INSERT INTO cloud.\"fwd/topic1\"\n# SELECT * FROM \"topic1\";",
        "# INSERT INTO cloud\n# SELECT * FROM \"plain/#\";",
    ] {
        assert!(toml.contains(part), "{part}\nin\n{toml}");
    }
    assert!(!toml.contains("s3cr3t") && !toml.contains("pw1") && !toml.contains("anonymous"), "{toml}");
    for start in [
        "b.conf:2: include /etc/acl.conf: ",
        "b.conf:6: mqtt.retry_interval: ",
        "b.conf:10: listeners.quic: ",
        "b.conf:11: http_server: ",
        "b.conf:25: clientid bridge: ",
        "b.conf:27: password: ",
        "b.conf:32: forward of y/+ to x/+: ",
        "b.conf:34: subscription: ",
    ] {
        assert!(told.iter().any(|line| line.starts_with(start)), "{start}: {told:#?}");
    }
    assert!(told.iter().any(|line| line.contains("10.0.0.1")), "{told:#?}");
    assert_eq!(told.len(), 9, "{told:#?}");
}

#[test]
fn whose_file_it_is() {
    for (text, hocon) in [
        ("listener 1883\n", false),
        ("# x = 1\nallow_anonymous true", false),
        ("topic a=b out\n", false),
        ("listeners.tcp {\n", true),
        ("mqtt.max_packet_size = 1KB", true),
        ("a=1", true),
        ("", false),
    ] {
        assert_eq!(is_hocon(text), hocon, "{text:?}");
    }
}

/// Cut off anywhere, or with a character too many anywhere: told or taken over, never a panic.
#[test]
fn damaged_files() {
    for whole in [BRIDGE, NANOMQ] {
        for at in 0..=whole.len() {
            for text in [whole[..at].to_owned(), format!("{}é\"{{{}", &whole[..at], &whole[at..])] {
                let nothing = |_: &Path| Err(io::Error::from(io::ErrorKind::NotFound));
                let read = match is_hocon(&text) {
                    true => nanomq::read("b.conf", &text),
                    false => Ok(mosquitto::read("b.conf", &text, &nothing)),
                };
                if let Ok(mut draft) = read {
                    draft.finish(true, "b.conf", "ferrule-edge");
                    let rules = draft.rules();
                    assert_eq!(
                        rules.is_some(),
                        draft.uplink.is_some_and(|uplink| !uplink.forwards.is_empty())
                    );
                }
            }
        }
    }
}
