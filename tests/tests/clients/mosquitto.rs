//! mosquitto_pub and mosquitto_sub as clients: each publish and each subscription is a process.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use ferrule_testkit::proc::{Process, output};
use ferrule_testkit::until;
use ferrule_tests::mosquitto::Reach;
use serde_json::Value;
use tempfile::TempDir;

use crate::{Broker, Connect, Message, Place, Subject, Tcp, Tls, V3_1, V3_1_1, V5, Version};

/// A process may take this long.
const PATIENCE: Duration = Duration::from_secs(20);

fn version(version: Version) -> &'static str {
    match version {
        V3_1 => "mqttv31",
        V3_1_1 => "mqttv311",
        V5 => "mqttv5",
    }
}

/// Options for a message, or for a `will`: topic, QoS, retain and properties; not the payload.
fn options(message: &Message, will: bool) -> Vec<String> {
    let (prefix, properties) = if will { ("--will-", "will") } else { ("--", "publish") };
    let mut args = vec![
        format!("{prefix}topic"),
        message.topic.clone(),
        format!("{prefix}qos"),
        message.qos.to_string(),
    ];
    if message.retain {
        args.push(format!("{prefix}retain"));
    }
    let mut property = |values: &[&str]| {
        args.extend(["-D", properties].iter().chain(values).map(|&arg| arg.to_owned()));
    };
    for (name, value) in &message.user {
        property(&["user-property", name, value]);
    }
    for (name, value) in [
        ("content-type", message.content_type.clone()),
        ("response-topic", message.response_topic.clone()),
        ("correlation-data", message.correlation.clone()),
        ("message-expiry-interval", message.expiry.map(|expiry| expiry.to_string())),
    ] {
        if let Some(value) = value {
            property(&[name, &value]);
        }
    }
    args
}

/// One client: how it would connect, and its subscriptions.
struct Peer {
    place: Place,
    how: Connect,
    subscriptions: Vec<Process>,
    /// How many messages of each were taken.
    taken: Vec<usize>,
}

impl Peer {
    fn reach(&self) -> Reach {
        let reach = Reach::tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, self.place.port)));
        let reach =
            if self.place.transport == Tls { reach.option("--cafile", &self.place.ca) } else { reach };
        match self.how.login {
            Some((name, password)) => reach.option("-u", name).option("-P", password),
            None => reach,
        }
    }
}

/// The two programs.
#[derive(Default)]
pub(crate) struct Programs {
    peers: BTreeMap<String, Peer>,
    lost: Vec<Peer>,
    folder: Option<TempDir>,
}

impl Programs {
    /// What mosquitto_pub says, with `-d`, of a publish.
    fn said(peer: &Peer, args: &[String]) -> String {
        let mut command = peer.reach().publisher(version(peer.place.version), "-d");
        let output = command.args(args).output().unwrap();
        [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat()
    }

    /// Starts a mosquitto_sub; returns the code of its SUBACK.
    fn start(&mut self, who: &str, peer: &mut Peer, filter: &str, qos: u8) -> u8 {
        let number = peer.subscriptions.len();
        let mut args = format!("-i {who}{number} -F %P|%j -q {qos} -t {filter}");
        if peer.how.persistent {
            args.push_str(if peer.place.version == V5 { " -c -x 600" } else { " -c" });
        }
        if let Some(will) = &peer.how.will {
            let _ = write!(args, " {} --will-payload {}", options(will, true).join(" "), will.payload);
        }
        let folder = self.folder.get_or_insert_with(|| tempfile::tempdir().unwrap());
        let process = peer.reach().subscriber(folder.path(), version(peer.place.version), &args);
        let code = until(PATIENCE, "mosquitto_sub is told", || {
            number_behind(&process.log(), "Subscribed (mid: 1): ")
        });
        peer.subscriptions.push(process);
        peer.taken.push(0);
        code
    }
}

/// The number that follows `text` in `log`.
fn number_behind(log: &str, text: &str) -> Option<u8> {
    let (_, rest) = log.split_once(text)?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    // The line is whole.
    (digits.len() < rest.len()).then(|| digits.parse().unwrap())
}

/// A message as `-F %P|%j` writes it, or nothing: a line of `-d`. (In the JSON the user properties are an object, where
/// no name should be there twice.)
fn message(line: &str) -> Option<Message> {
    let (user, told) = line.split_once("|{")?;
    let told: Value = serde_json::from_str(&format!("{{{told}")).ok()?;
    let of = &told["properties"];
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let number = |value: &Value| value.as_u64().map(|number| u32::try_from(number).unwrap());
    let pairs = user.split_whitespace().map(|pair| pair.split_once(':').unwrap());
    Some(Message {
        topic: text(&told["topic"])?,
        payload: text(&told["payload"]).unwrap_or_default(),
        qos: u8::try_from(told["qos"].as_u64()?).ok()?,
        retain: told["retain"].as_u64()? == 1,
        user: pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        content_type: text(&of["content-type"]),
        response_topic: text(&of["response-topic"]),
        correlation: text(&of["correlation-data"]),
        expiry: number(&of["message-expiry-interval"]),
        alias: None,
        subscriptions: Vec::new(),
    })
}

impl Subject for Programs {
    fn connect(&mut self, who: &str, place: &Place, how: &Connect) -> Result<Option<bool>, u8> {
        let peer =
            Peer { place: place.clone(), how: how.clone(), subscriptions: Vec::new(), taken: Vec::new() };
        // Neither program connects for nothing; whether it is let in a publish tells.
        let code = how.login.and_then(|_| {
            let said = Self::said(
                &peer,
                &options(&Message::new("t/probe", "", 1), false)
                    .into_iter()
                    .chain(["-n".to_owned()])
                    .collect::<Vec<_>>(),
            );
            number_behind(&said, "received CONNACK (")
        });
        match code {
            None | Some(0) => {
                self.peers.insert(who.to_owned(), peer);
                Ok(None)
            }
            Some(code) => Err(code),
        }
    }

    fn connect_to_be_lost(&mut self, who: &str, place: &Place, how: &Connect) {
        let mut peer =
            Peer { place: place.clone(), how: how.clone(), subscriptions: Vec::new(), taken: Vec::new() };
        assert_eq!(self.start(who, &mut peer, "t/other", 0), 0);
        self.lost.push(peer);
    }

    fn lose_them(&mut self) {
        self.lost.drain(..).for_each(|mut peer| peer.subscriptions[0].kill9());
    }

    fn subscribe(&mut self, who: &str, filter: &str, qos: u8, _: Option<u32>) -> u8 {
        let mut peer = self.peers.remove(who).unwrap();
        let code = self.start(who, &mut peer, filter, qos);
        self.peers.insert(who.to_owned(), peer);
        code
    }

    fn publish(&mut self, who: &str, message: &Message) -> u8 {
        let mut args = options(message, false);
        if message.payload.is_empty() {
            args.push("-n".to_owned());
        } else {
            args.extend(["-m".to_owned(), message.payload.clone()]);
        }
        let said = Self::said(&self.peers[who], &args);
        // The code of a PUBREC is told in words.
        if said.contains("Publish 1 failed: Not authorized") {
            return 0x87;
        }
        let answer = match message.qos {
            0 => "sending DISCONNECT",
            1 => "received PUBACK (Mid: 1, RC:0)",
            _ => "received PUBCOMP (Mid: 1, RC:0)",
        };
        assert!(said.contains(answer), "{said}");
        0
    }

    fn take(&mut self, whose: &[&str], count: usize) -> Vec<(String, Message)> {
        let mut got = Vec::new();
        until(PATIENCE, &format!("{count} messages of {whose:?}"), || {
            for who in whose {
                let peer = self.peers.get_mut(*who).unwrap();
                for (process, taken) in peer.subscriptions.iter().zip(&mut peer.taken) {
                    let log = process.log();
                    // The last line may not be whole.
                    let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
                    for message in whole.lines().filter_map(message).skip(*taken).take(count - got.len()) {
                        *taken += 1;
                        got.push(((*who).to_owned(), message));
                    }
                }
            }
            (got.len() == count).then_some(())
        });
        got
    }

    fn disconnect(&mut self, who: &str) {
        for mut process in self.peers.remove(who).unwrap().subscriptions {
            // One whose filter was refused has ended.
            if process.exited().is_none() {
                process.terminate(PATIENCE);
            }
        }
    }
}

#[test]
fn mosquitto_rr_gets_the_response_to_its_request() {
    let broker = Broker::start();
    let mut subject = Programs::default();
    for transport in [Tcp, Tls] {
        for version in Version::ALL {
            let place = broker.place(version, transport);
            let (topic, response) =
                ("t/request", format!("t/response/{}/{}", transport.text(), version.text()));
            let who = format!("{}-{}", transport.text(), version.text());
            subject.connect(&who, &place, &Connect::default()).unwrap();
            assert_eq!(subject.subscribe(&who, topic, 1, None), 1);
            let peer = &subject.peers[&who];
            let args = format!("-W 15 -q 1 -t {topic} -e {response} -m what?");
            let mut command = peer.reach().requester(self::version(version), &args);
            if version == V5 {
                command.args(["-D", "publish", "correlation-data", "the first"]);
            }
            let asked = std::thread::spawn(move || output(&mut command));
            let (_, request) = subject.take(&[&who], 1).pop().unwrap();
            assert_eq!(request.payload, "what?");
            if version == V5 {
                // It is told where the response is to go, and with what.
                let told = (request.response_topic.as_deref(), request.correlation.as_deref());
                assert_eq!(told, (Some(response.as_str()), Some("the first")));
            }
            let answer = Message { correlation: request.correlation, ..Message::new(&response, "that", 1) };
            assert_eq!(subject.publish(&who, &answer), 0);
            assert_eq!(asked.join().unwrap().trim(), "that");
            subject.disconnect(&who);
        }
    }
}
