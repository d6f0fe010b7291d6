//! Those who hold connections, send too much, nonsense, or nothing, and read nothing, on every transport: each is cut off with the
//! reason that is documented (docs/limits.md) and counted, while two honest clients go on exchanging messages.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ferrule_mqtt::{AckType, Packet, QoS, ReasonCode, Version};
use ferrule_testkit::dial::{self, Channel, ClientConfig, ws_close_code, ws_frame, ws_head};
use ferrule_testkit::node::count;
use ferrule_testkit::wire::{Frame, Options, Outgoing, ack};
use ferrule_testkit::{Certs, Client, Config, Dial, Node, until};
use ferrule_tests::{PATIENCE, noise};
use serde_json::Value;

// === the honest ones ===

/// Two clients that exchange messages of QoS 1 the whole time, by the plain listener with its ordinary limits.
struct Honest {
    stop: Arc<AtomicBool>,
    /// Messages that arrived.
    count: Arc<AtomicU32>,
    thread: JoinHandle<()>,
}

/// Between two of their messages: they shall not take a core from the attackers.
const PACE: Duration = Duration::from_millis(2);

impl Honest {
    fn start(node: &Node) -> Self {
        let addr = node.addr();
        let mut reader = Client::connect(addr, &Options::v5("honest-reader"));
        reader.subscribe("honest", QoS::AtLeastOnce);
        let mut writer = Client::connect(addr, &Options::v5("honest-writer"));
        let (stop, count) = (Arc::<AtomicBool>::default(), Arc::<AtomicU32>::default());
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&count));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let n = counted.load(Ordering::Relaxed).to_string();
                writer.publish("honest", n.as_bytes(), QoS::AtLeastOnce, false);
                assert_eq!(reader.expect_message().text(), n, "lost, or twice");
                counted.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(PACE);
            }
            // Neither was thrown out in the end.
            writer.ping();
            reader.ping();
        });
        Self { stop, count, thread }
    }

    /// Nothing was lost, refused or cut off, others than these two have gone, and the node has nothing to complain of.
    fn finish(self, node: &Node) {
        let alone = |status: &Value| status["connections"] == 2;
        node.wait_status(PATIENCE, "all but the honest ones have gone", alone);
        let before = self.count.load(Ordering::Relaxed);
        until(PATIENCE, "the honest ones go on", || {
            let goes_on = self.count.load(Ordering::Relaxed) > before;
            (goes_on || self.thread.is_finished()).then_some(())
        });
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the honest ones are served");
        assert!(!node.log().contains("panicked"), "{}", node.log());
    }
}

// === where they attack ===

/// What a proxy says of a client of this machine.
const PROXY: &[u8] = b"PROXY TCP4 127.0.0.1 127.0.0.1 4711 1883\r\n";

/// An edge with a listener of each kind, all but the first with these limits; and how they are reached.
struct Target {
    node: Node,
    config: Arc<ClientConfig>,
    _certs: Certs,
}

// Its listeners, by number.
const TCP: usize = 1;
const TLS: usize = 2;
const WS: usize = 3;
const WSS: usize = 4;
const PROXIED: usize = 5;

impl Target {
    fn start(limits: &str) -> Self {
        Self::start_with(limits, "")
    }

    /// With more lines of configuration.
    fn start_with(limits: &str, more: &str) -> Self {
        let certs = Certs::local(&[]);
        let mut config = Config::edge().extra(more);
        let (ws, tls) = ("protocol = \"ws\"", certs.tls(""));
        let proxied = "proxy_protocol_from = [\"127.0.0.0/8\"]";
        for keys in ["", &tls, ws, &format!("{ws}\n{tls}"), proxied] {
            config = config.extra(&listener(keys, limits));
        }
        let trust = certs.trust();
        Self { node: Node::start(&config), config: trust.config(), _certs: certs }
    }

    /// To a listener by its number, through all of its layers.
    fn dial(&self, index: usize) -> Dial {
        let dial = Dial::tcp(self.node.listener(index));
        match index {
            TLS => dial.tls(&self.config, "localhost"),
            WS => dial.ws(),
            WSS => dial.tls(&self.config, "localhost").ws(),
            PROXIED => dial.preface(PROXY),
            _ => dial,
        }
    }

    fn dials(&self) -> [Dial; 5] {
        [TCP, TLS, WS, WSS, PROXIED].map(|index| self.dial(index))
    }

    /// A listener's socket alone.
    fn socket(&self, index: usize) -> Box<dyn Channel> {
        Dial::tcp(self.node.listener(index)).open_socket().unwrap()
    }

    /// A WebSocket over plain TCP, whose frames are the attacker's own.
    fn upgraded(&self) -> Box<dyn Channel> {
        let mut socket = self.socket(WS);
        socket.write_all(&dial::upgrade_request("")).unwrap();
        let head = read_head(&mut socket);
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        socket
    }

    fn faults(&self, index: usize) -> u64 {
        count(&self.node.status()["listeners"][index], "faults")
    }

    /// Waits until a counter has this value, and not a greater one.
    fn counted(&self, name: &str, wanted: u64) {
        let seen = |status: &Value| count(&status["counters"], name) >= wanted;
        let status = self.node.wait_status(PATIENCE, &format!("{name} reaches {wanted}"), seen);
        assert_eq!(count(&status["counters"], name), wanted, "{name}");
    }
}

/// One on a free port, for everyone, with these keys and limits.
fn listener(keys: &str, limits: &str) -> String {
    format!("[[listener]]\nbind = \"127.0.0.1:0\"\nanonymous = true\n{keys}\n\n[listener.limits]\n{limits}\n")
}

/// An HTTP response up to its body.
fn read_head(socket: &mut Box<dyn Channel>) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        assert_eq!(socket.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&head));
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// All that comes until the node closes.
fn rest(channel: &mut dyn Channel) -> Vec<u8> {
    drip(channel, &[])
}

/// How long a slow one waits between two bytes.
const DRIP: Duration = Duration::from_millis(20);

/// Writes byte by byte, then nothing, until the node closes: all that it said.
fn drip(channel: &mut dyn Channel, bytes: &[u8]) -> Vec<u8> {
    let (mut said, mut buffer) = (Vec::new(), [0; 4096]);
    let mut bytes = bytes.iter();
    channel.set_read_timeout(Some(DRIP)).unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(byte) = bytes.next()
            && channel.write_all(&[*byte]).and_then(|()| channel.flush()).is_err()
        {
            bytes = [].iter(); // closed: what it said can still be read
        }
        match channel.read(&mut buffer) {
            Ok(0) => return said,
            Ok(size) => said.extend_from_slice(&buffer[..size]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return said,
        }
        assert!(Instant::now() < deadline, "not cut off; it said {said:?}");
    }
}

/// A CONNECT of 5 that takes seconds, byte by byte.
fn long_connect() -> Vec<u8> {
    Options::v5(&"x".repeat(500)).connect().unwrap()
}

/// The first half of a PUBLISH of 100 bytes.
const HALF: &[u8] = b"\x30\x64\x00\x03a/bxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";

// === slowly ===

#[test]
fn the_slow_are_cut_off_in_every_phase() {
    let target = Target::start("connect_timeout = \"1s\"\npacket_timeout = \"500ms\"");
    let honest = Honest::start(&target.node);
    let connect = long_connect();
    let upgrade = dial::upgrade_request(&format!("X-Long: {}\r\n", "x".repeat(500)));
    let proxy2 = [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x02\x00".as_slice(), &[0; 512]].concat();
    let (hello, _) = target.dial(TLS).client_hello();
    let in_tls = |index| -> Box<dyn Channel> {
        Box::new(Dial::tcp(target.node.listener(index)).tls(&target.config, "localhost").open_tls().unwrap())
    };
    let half_shaken = || {
        let (mut socket, last) = target.dial(TLS).stop_before_finished().unwrap();
        socket.write_all(&last[..last.len() / 2]).unwrap();
        socket
    };
    // Up to the CONNECT all of it together may take a second.
    let phases: Vec<(&str, Box<dyn Channel>, &[u8])> = vec![
        ("nothing", target.socket(TCP), b""),
        ("CONNECT", target.socket(TCP), &connect),
        ("no PROXY header", target.socket(PROXIED), b""),
        ("PROXY header 1", target.socket(PROXIED), &PROXY[..PROXY.len() - 2]),
        ("PROXY header 2", target.socket(PROXIED), &proxy2),
        ("nothing behind PROXY", target.dial(PROXIED).open().unwrap(), b""),
        ("CONNECT behind PROXY", target.dial(PROXIED).open().unwrap(), &connect),
        ("no ClientHello", target.socket(TLS), b""),
        ("ClientHello", target.socket(TLS), &hello),
        ("half a handshake", half_shaken(), b""),
        ("nothing in TLS", in_tls(TLS), b""),
        ("CONNECT in TLS", in_tls(TLS), &connect),
        ("no request", target.socket(WS), b""),
        ("request", target.socket(WS), &upgrade),
        ("request in TLS", in_tls(WSS), &upgrade),
        ("no frame", target.upgraded(), b""),
        ("CONNECT in frames", target.dial(WS).open().unwrap(), &connect),
        ("CONNECT in frames in TLS", target.dial(WSS).open().unwrap(), &connect),
    ];
    let frame_heads = [ws_head(0x82, 100), ws_head(0x82, 1 << 40), ws_head(0x89, 5)];
    let in_all = phases.len() + frame_heads.len();
    std::thread::scope(|scope| {
        for (name, mut channel, bytes) in phases {
            scope.spawn(move || {
                let said = drip(&mut *channel, bytes);
                match name {
                    // TLS has begun to answer.
                    "ClientHello" | "half a handshake" => {}
                    // Its own farewell.
                    "no frame" => assert_eq!(ws_close_code(&said), Some(1000)),
                    _ => assert_eq!(said, b"", "{name}"),
                }
            });
        }
        for head in &frame_heads {
            let mut channel = target.upgraded();
            channel.write_all(head).unwrap();
            scope.spawn(move || {
                assert_eq!(ws_close_code(&rest(&mut *channel)), Some(1000), "a frame's head {head:?}")
            });
        }
        // Behind it a packet that has begun may take half a second, whole or in bytes.
        for (number, dial) in target.dials().into_iter().enumerate() {
            for (version, reason) in [(Version::V5, Some(ReasonCode(0x8D))), (Version::V3_1_1, None)] {
                let options = Options { version, ..Options::v5(&format!("slow-{number}-{version:?}")) };
                let mut client = dial.connect(&options);
                client.send_raw(HALF).unwrap();
                scope.spawn(move || assert_eq!(client.expect_closed(), reason, "{options:?}"));
            }
            let mut client = dial.connect(&Options::v5(&format!("drips-{number}")));
            scope.spawn(move || {
                let end = Instant::now() + PATIENCE;
                for byte in HALF.iter().chain(std::iter::repeat_n(&b'x', 40)) {
                    assert!(Instant::now() < end, "not cut off");
                    let _ = client.send_raw(&[*byte]); // closed: the reason can still be read
                    match client.recv(DRIP) {
                        Ok(frame) => {
                            let packet = frame.packet();
                            assert!(matches!(packet, Packet::Disconnect(d) if d.reason == ReasonCode(0x8D)));
                            return;
                        }
                        Err(error) => assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}"),
                    }
                }
                assert_eq!(client.expect_closed(), Some(ReasonCode(0x8D)));
            });
        }
    });
    target.counted("connect_timeouts", in_all as u64);
    target.counted("packet_timeouts", 15);
    honest.finish(&target.node);
}

// === too much ===

#[test]
fn what_is_too_large_is_refused_before_it_is_there() {
    let limits = "max_packet_size = \"4KiB\"\nmax_connect_size = \"1KiB\"\nmax_topic_levels = 8\nmax_topic_length = \"64B\"";
    let target = Target::start(limits);
    let honest = Honest::start(&target.node);
    let too_large = ReasonCode::PACKET_TOO_LARGE;
    let both = [(Version::V5, Some(too_large)), (Version::V3_1_1, None)];
    for dial in target.dials() {
        for (version, reason) in both {
            let options = Options { version, ..Options::v5("large") };
            // Its length alone, of 4 KiB and of 256 MiB.
            for length in [b"\x30\x80\x20".as_slice(), b"\x30\xff\xff\xff\x7f"] {
                let mut client = dial.connect(&options);
                client.send_raw(length).unwrap();
                assert_eq!(client.expect_closed(), reason, "{dial:?} {version:?}");
            }
            let mut client = dial.connect(&options);
            client.send_raw(b"\x30\xff\xff\xff\xff\x7f").unwrap();
            let malformed = reason.map(|_| ReasonCode::MALFORMED_PACKET);
            assert_eq!(client.expect_closed(), malformed, "five bytes of length");
            let long = Options { client_id: "x".repeat(1024), ..options };
            match (dial.try_connect(&long), version) {
                (Ok((_, frame)), Version::V5) => assert_eq!(frame.connack().0, too_large),
                (Err(_), Version::V3_1_1) => {}
                (answer, _) => panic!("{dial:?} {version:?}: {answer:?}"),
            }
        }
    }
    target.counted("oversized", 5 * 2 * 3);
    topics(&target);

    // Each layer has bounds of its own.
    let refused = |index: usize, open: &dyn Fn() -> Box<dyn Channel>, bytes: &[u8]| {
        let before = target.faults(index);
        let mut channel = open();
        let _ = channel.write_all(bytes).and_then(|()| channel.flush()); // refused at its first bytes
        let said = rest(&mut *channel);
        assert_eq!(target.faults(index), before + 1, "{said:?}");
        said
    };
    let header = dial::upgrade_request(&format!("X-Long: {}\r\n", "x".repeat(8 * 1024)));
    let many = dial::upgrade_request(&"X-Many: x\r\n".repeat(65));
    let endless = [b"GET /".as_slice(), &[b'x'; 9 * 1024]].concat();
    for request in [header, many, endless] {
        let said = refused(WS, &|| target.socket(WS), &request);
        assert!(said.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&said));
    }
    let said = refused(WS, &|| target.upgraded(), &ws_head(0x82, 1 << 63));
    assert_eq!(ws_close_code(&said), Some(1002));
    // A ping has 125 bytes at most.
    let said = refused(WS, &|| target.upgraded(), &ws_head(0x89, 126));
    assert_eq!(ws_close_code(&said), Some(1002));
    // A frame of any other length costs nothing: MQTT in it is served as it comes.
    let mut channel = target.upgraded();
    let masked = |bytes: &[u8]| ws_frame(0x82, bytes)[6..].to_vec();
    let connect = Options::v5("long-frame").connect().unwrap();
    channel.write_all(&[ws_head(0x82, 1 << 62), masked(&connect)].concat()).unwrap();
    let mut answer = [0; 4];
    channel.read_exact(&mut answer).unwrap();
    assert_eq!((answer[0], answer[2]), (0x82, 0x20), "a frame with a CONNACK");
    drop(channel);

    let record = b"\x16\x03\x01\xff\xff\x01";
    let said = refused(TLS, &|| target.socket(TLS), record);
    assert!(said.is_empty() || said[0] == 0x15, "an alert or nothing: {said:?}");
    let in_tls = || -> Box<dyn Channel> {
        let dial = Dial::tcp(target.node.listener(TLS)).tls(&target.config, "localhost");
        let mut stream = dial.open_tls().unwrap();
        stream.sock.write_all(b"\x17\x03\x03\xff\xff").unwrap();
        Box::new(stream)
    };
    let said = refused(TLS, &in_tls, b"");
    assert_eq!(said, b"", "nothing of MQTT");
    let header = [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff".as_slice(), &[0; 12]].concat();
    assert_eq!(refused(PROXIED, &|| target.socket(PROXIED), &header), b"");
    let header = [b"PROXY TCP4 ".as_slice(), &[b'1'; 200]].concat();
    assert_eq!(refused(PROXIED, &|| target.socket(PROXIED), &header), b"");
    honest.finish(&target.node);
}

/// Topics with too many levels, and too long ones.
fn topics(target: &Target) {
    let [deep, long] = ["a/b/c/d/e/f/g/h/i".to_owned(), "x".repeat(65)];
    let invalid = ReasonCode::TOPIC_NAME_INVALID;
    for dial in target.dials() {
        let mut client = dial.connect(&Options::v5("topics"));
        for topic in [&deep, &long] {
            client.publish_nowait(topic, b"x", QoS::AtMostOnce, false);
            let id = client.publish_nowait(topic, b"x", QoS::AtLeastOnce, false);
            let frame =
                client.expect("PUBACK", |packet| ack(packet).is_some_and(|(_, ack)| ack.packet_id == id));
            let (kind, answer) = ack(&frame.packet()).unwrap();
            assert_eq!((kind, answer.reason), (AckType::Puback, invalid));
            assert_eq!(client.subscribe(topic, QoS::AtLeastOnce), 0x8F);
            // 3.1.1 has no way to refuse one.
            let mut old = dial.connect(&Options::v4("old-topics"));
            assert_eq!(old.subscribe(topic, QoS::AtLeastOnce), 0x80);
            old.publish_nowait(topic, b"x", QoS::AtLeastOnce, false);
            assert_eq!(old.expect_closed(), None);
        }
        client.ping();
    }
    target.counted("topics_refused", 5 * 2 * 5);
}

// === nonsense ===

#[test]
fn nonsense_is_answered_as_the_standard_says_or_closed() {
    let target = Target::start("connect_timeout = \"3s\"");
    let honest = Honest::start(&target.node);
    // On each kind of listener, at each of its layers.
    let opens: Vec<Box<dyn Fn() -> Box<dyn Channel> + '_>> = vec![
        Box::new(|| target.socket(TCP)),
        Box::new(|| target.socket(TLS)),
        Box::new(|| target.dial(TLS).open().unwrap()),
        Box::new(|| target.socket(WS)),
        Box::new(|| target.upgraded()),
        Box::new(|| target.dial(WS).open().unwrap()),
        Box::new(|| target.dial(WSS).open().unwrap()),
        Box::new(|| target.socket(PROXIED)),
        Box::new(|| target.dial(PROXIED).open().unwrap()),
    ];
    for seed in 0..360 {
        let mut channel = opens[seed as usize % opens.len()]();
        // Half of them look right at first.
        let mut bytes = noise(seed, 300);
        if seed % 2 == 1 {
            let begins: &[&[u8]] = &[b"\x10", b"\x16\x03\x01", b"GET /mqtt HTTP/1.1\r\n", b"PROXY ", b"\x82"];
            bytes.splice(0..0, begins[seed as usize % begins.len()].iter().copied());
        }
        let _ = channel.write_all(&bytes).and_then(|()| channel.flush());
        // Its end is the end, even of what could still become something.
        let _ = channel.shutdown_write();
        rest(&mut *channel);
    }
    // Behind a CONNECT it is answered in MQTT's words, through all layers.
    let (malformed, protocol) = (ReasonCode::MALFORMED_PACKET, ReasonCode::PROTOCOL_ERROR);
    let again = Options::v5("c").connect().unwrap();
    let answers: [(&str, &[u8], ReasonCode); 11] = [
        ("a topic that is not UTF-8", b"\x30\x06\x00\x02\xc3\x28\x00x", malformed),
        ("a topic with NUL", b"\x30\x06\x00\x02a\x00\x00x", malformed),
        ("reserved bits of SUBSCRIBE", b"\x80\x07\x00\x01\x00\x00\x01a\x00", malformed),
        ("reserved bits of PINGREQ", b"\xc1\x00", malformed),
        ("QoS 3", b"\x36\x08\x00\x01a\x00\x01\x00hi", malformed),
        ("type 0", b"\x00\x00", malformed),
        ("packet id 0", b"\x32\x07\x00\x01a\x00\x00\x00x", protocol),
        ("a SUBSCRIBE of nothing", b"\x82\x03\x00\x01\x00", protocol),
        ("a CONNACK from a client", b"\x20\x03\x00\x00\x00", protocol),
        ("a second CONNECT", &again, protocol),
        ("a PUBLISH to a wildcard", b"\x30\x05\x00\x01#\x00x", malformed),
    ];
    let before = count(&target.node.status()["counters"], "protocol_errors");
    for dial in target.dials() {
        for (name, bytes, reason) in &answers {
            let mut client = dial.connect(&Options::v5("c"));
            client.send_raw(bytes).unwrap();
            let got = client.expect_closed();
            assert_eq!(got, Some(*reason), "{name}");
            let mut old = dial.connect(&Options::v4("c"));
            old.send_raw(bytes).unwrap();
            assert_eq!(old.expect_closed(), None, "{name}");
        }
        // Before it nobody is told anything.
        for first in [b"\x30\x05\x00\x01a\x00x".as_slice(), b"\xc0\x00", b"\xe0\x00", b"\x82\x03\x00\x01\x00"]
        {
            let mut channel = dial.open().unwrap();
            channel.write_all(first).and_then(|()| channel.flush()).unwrap();
            assert_eq!(rest(&mut *channel), b"", "{first:?}");
        }
    }
    target.counted("protocol_errors", before + 5 * (2 * 11 + 4));
    honest.finish(&target.node);
}

// === reading nothing ===

/// Small numbers, by which a client that reads nothing is noticed.
const UNREAD: &str = "max_output_bytes = \"64KiB\"\nmax_queued_bytes = \"64KiB\"\nstall_timeout = \"1s\"";
/// The largest packet fits into each bound.
const SMALL_PACKETS: &str = "[mqtt]\nmax_packet_size = \"64KiB\"\n";
/// Of an attacker's socket.
const SMALL: usize = 4 * 1024;
/// What a process may grow by where tens of KiB are allowed to each client: an allocator's slack, threads, and what the kernel counts.
const GROWTH: u64 = 48 << 20;

#[test]
fn subscribers_that_read_nothing_cost_their_bound_and_go() {
    let target = Target::start_with(UNREAD, SMALL_PACKETS);
    let honest = Honest::start(&target.node);
    let mut deaf: Vec<Client> = target
        .dials()
        .into_iter()
        .enumerate()
        .map(|(n, dial)| dial.receive_buffer(SMALL).connect(&Options::v5(&format!("deaf-{n}"))))
        .collect();
    for client in &mut deaf {
        client.subscribe("flood", QoS::AtMostOnce);
    }
    // QoS 0: dropped and counted. 256 MiB for each of them, of which nobody may keep more than the kernel does.
    let before = target.node.resident();
    let mut writer = Client::connect(target.node.addr(), &Options::v4("flood"));
    let payload = vec![b'x'; 64 * 1024 - 100];
    let mut grown = 0;
    for n in 0..4096 {
        writer.publish_nowait("flood", &payload, QoS::AtMostOnce, false);
        if n % 256 == 0 {
            writer.ping();
            grown = grown.max(target.node.resident().saturating_sub(before));
        }
    }
    assert!(grown < GROWTH, "{} MiB more", grown >> 20);
    let status = target.node.status();
    assert!(count(&status["counters"], "dropped_slow") > 0, "{:#}", status["counters"]);
    target.counted("slow_closed", deaf.len() as u64);
    // Their sockets are full, so that the reason does not reach them, but the end does.
    for client in &mut deaf {
        client.recv_where(PATIENCE, |_| false).unwrap_err();
    }
    drop(writer);
    honest.finish(&target.node);
}

#[test]
fn subscribers_that_acknowledge_nothing_are_told_why_they_go() {
    let target = Target::start_with(UNREAD, SMALL_PACKETS);
    let honest = Honest::start(&target.node);
    let payload = vec![b'x'; 8 * 1024];
    for (n, dial) in target.dials().into_iter().enumerate() {
        let mut options = Options::v5(&format!("silent-{n}")).manual_ack();
        options.receive_maximum = Some(1);
        let mut silent = dial.connect(&options);
        silent.subscribe("held", QoS::AtLeastOnce);
        let mut writer = Client::connect(target.node.addr(), &Options::v5("writer"));
        // Held back, until whom they wait for is gone.
        for _ in 0..20 {
            writer.publish("held", &payload, QoS::AtLeastOnce, false);
        }
        assert_eq!(silent.expect_closed(), Some(ReasonCode::QUOTA_EXCEEDED), "{dial:?}");
        writer.disconnect();
    }
    target.counted("slow_closed", 5);
    assert!(count(&target.node.status()["counters"], "held_back") > 0);
    honest.finish(&target.node);
}

#[test]
fn publishers_that_read_no_acknowledgements_are_not_heard_and_go() {
    let target = Target::start_with(UNREAD, SMALL_PACKETS);
    let honest = Honest::start(&target.node);
    let before = target.node.resident();
    let attacks: Vec<_> = [TCP, TLS, WS, WSS, PROXIED]
        .map(|index| target.dial(index).receive_buffer(SMALL))
        .into_iter()
        .enumerate()
        .map(|(n, dial)| {
            std::thread::spawn(move || {
                let mut client = dial.connect(&Options::v5(&format!("deaf-{n}")));
                // A thousand of QoS 1 in one write; each asks for an answer.
                let publish = b"\x32\x06\x00\x01a\x00\x01\x00".repeat(1000);
                let end = Instant::now() + PATIENCE;
                while client.send_raw(&publish).is_ok() {
                    assert!(Instant::now() < end, "heard for ever");
                }
            })
        })
        .collect();
    let mut grown = 0;
    while attacks.iter().any(|attack| !attack.is_finished()) {
        grown = grown.max(target.node.resident().saturating_sub(before));
        std::thread::sleep(DRIP);
    }
    attacks.into_iter().for_each(|attack| attack.join().unwrap());
    assert!(grown < GROWTH, "{} MiB more", grown >> 20);
    target.counted("slow_closed", 5);
    honest.finish(&target.node);
}

// === ahead of CONNACK ===

/// A user whose password takes some 400 ms: Argon2 with 32 passes, of `takes long`.
const SLOW_USER: &str = "[[user]]\nname = \"slow\"\npassword = \"$argon2id$v=19$m=19456,t=32,p=1$MDEyMzQ1Njc4OWFiY2RlZg$UEbwqTQY5xo+uAssvcx04MIA99JaePg+wMqdVOm8dSA\"\n";

#[test]
fn what_comes_ahead_of_connack_is_served_and_bounded() {
    let target = Target::start_with("", SLOW_USER);
    let honest = Honest::start(&target.node);

    // CONNECT, SUBSCRIBE and PUBLISH in one write: without and with a password that takes its time.
    for (n, dial) in target.dials().into_iter().enumerate() {
        for login in [false, true] {
            let options = Options::v5(&format!("ahead-{n}"));
            let options = if login { options.login("slow", "takes long") } else { options };
            let mut bytes = options.connect().unwrap();
            bytes.extend(b"\x82\x08\x00\x01\x00\x00\x02in\x01");
            bytes.extend(b"\x32\x08\x00\x02in\x00\x02\x00x");
            let mut client = dial.client(Version::V5).unwrap();
            client.send_raw(&bytes).unwrap();
            let frame = client.recv(PATIENCE).unwrap();
            assert_eq!(frame.connack().0, ReasonCode::SUCCESS, "{dial:?}");
            client.expect("SUBACK", |packet| matches!(packet, Packet::Suback(_)));
            client.expect_ack(AckType::Puback, 2);
            assert_eq!(client.expect_message().text(), "x");
        }
    }

    // 32 MiB behind each of eight wrong passwords and four right ones: nobody has been let in, and nothing of it is kept.
    const AHEAD: usize = 32 << 20;
    let before = target.node.resident();
    let attacks: Vec<_> = (0..12)
        .map(|n| {
            let dial = target.dial([TCP, TLS, WS, PROXIED][n % 4]);
            std::thread::spawn(move || {
                let password = if n < 8 { "wrong" } else { "takes long" };
                let options = Options::v5(&format!("floods-{n}")).login("slow", password);
                let mut client = dial.client(Version::V5).unwrap();
                client.send_raw(&options.connect().unwrap()).unwrap();
                let payload = vec![b'x'; 64 * 1024];
                let flooded = (0..AHEAD / payload.len()).try_for_each(|_| {
                    client.send_publish(Outgoing {
                        topic: "flood",
                        payload: &payload,
                        qos: QoS::AtMostOnce,
                        retain: false,
                        dup: false,
                        packet_id: 0,
                    })
                });
                if password != "wrong" {
                    flooded.unwrap();
                    assert_eq!(client.recv(PATIENCE).unwrap().connack().0, ReasonCode::SUCCESS);
                    client.publish("flood", b"last", QoS::AtLeastOnce, false);
                }
            })
        })
        .collect();
    let mut grown = 0;
    while attacks.iter().any(|attack| !attack.is_finished()) {
        grown = grown.max(target.node.resident().saturating_sub(before));
        std::thread::sleep(DRIP);
    }
    attacks.into_iter().for_each(|attack| attack.join().unwrap());
    // Two threads verify passwords, each in 19 MiB, however many wrong ones come.
    assert!(grown < GROWTH + (38 << 20), "{} MiB more", grown >> 20);
    honest.finish(&target.node);
}

// === WebSocket ===

#[test]
fn websockets_are_not_compressed_and_fragments_cost_nothing() {
    let target = Target::start("connect_timeout = \"1s\"");
    let honest = Honest::start(&target.node);
    // Compression is not agreed on, and a frame that is compressed all the same ends the connection.
    let mut channel = target.socket(WS);
    let extensions = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";
    channel.write_all(&dial::upgrade_request(extensions)).unwrap();
    let head = read_head(&mut channel);
    assert!(head.starts_with("HTTP/1.1 101") && !head.to_lowercase().contains("extensions"), "{head}");
    channel.write_all(&ws_frame(0xC2, b"\x10")).unwrap();
    assert_eq!(ws_close_code(&rest(&mut *channel)), Some(1002));

    // MQTT in thousands of frames of one byte each, all of one message, is MQTT.
    let mut reader = client_of(&target, "reader");
    reader.subscribe("cut", QoS::AtLeastOnce);
    let publish = [b"\x32\xa7\x1f\x00\x03cut\x00\x07\x00".as_slice(), &[b'x'; 3999]].concat();
    let mut channel = target.upgraded();
    let bytes = [Options::v5("cut").connect().unwrap(), publish].concat();
    let frames: Vec<u8> = bytes
        .iter()
        .enumerate()
        .flat_map(|(n, byte)| ws_frame(if n == 0 { 0x02 } else { 0x00 }, &[*byte]))
        .collect();
    channel.write_all(&frames).unwrap();
    assert_eq!(reader.expect_message().payload.len(), 3999);
    drop(channel);
    drop(reader);

    // Frames without a byte in them, without end.
    let mut channel = target.upgraded();
    let mut empty = ws_frame(0x02, b"");
    empty.extend(ws_frame(0x00, b"").repeat(2000));
    let _ = channel.write_all(&empty); // closed at some frame
    assert_eq!(ws_close_code(&rest(&mut *channel)), Some(1008));

    // Pings are answered, but are nothing that MQTT hears: not before CONNECT, and not for a keep alive.
    let before = target.node.resident();
    let mut pings = 0;
    let mut channel = target.upgraded();
    assert_eq!(ping_on(&mut *channel, &mut pings), Some(1000));
    target.counted("connect_timeouts", 1);
    assert!(pings > 10);
    let mut channel = target.upgraded();
    let options = Options { keep_alive: 1, ..Options::v5("pings") };
    channel.write_all(&ws_frame(0x82, &options.connect().unwrap())).unwrap();
    assert_eq!(ping_on(&mut *channel, &mut pings), Some(1000));
    target.counted("keep_alive_timeouts", 1);

    // Pongs that nobody reads are bounded: the node stops to read pings.
    let dial = Dial::tcp(target.node.listener(WS)).receive_buffer(SMALL);
    let mut channel = dial.open_socket().unwrap();
    channel.write_all(&dial::upgrade_request("")).unwrap();
    assert!(read_head(&mut channel).starts_with("HTTP/1.1 101"));
    channel.write_all(&ws_frame(0x82, &options.connect().unwrap())).unwrap();
    let pings = ws_frame(0x89, &[b'x'; 125]).repeat(100);
    let end = Instant::now() + PATIENCE;
    while channel.write_all(&pings).is_ok() {
        assert!(Instant::now() < end, "heard for ever");
    }
    let grown = target.node.resident().saturating_sub(before);
    assert!(grown < GROWTH, "{} MiB more", grown >> 20);
    target.counted("keep_alive_timeouts", 2);
    honest.finish(&target.node);
}

fn client_of(target: &Target, id: &str) -> Client {
    Client::connect(target.node.addr(), &Options::v5(id))
}

/// Pings, and reads what comes, until the node closes: the code of its close frame.
fn ping_on(channel: &mut dyn Channel, pings: &mut u32) -> Option<u16> {
    let (mut said, mut buffer) = (Vec::new(), [0; 4096]);
    channel.set_read_timeout(Some(DRIP)).unwrap();
    let end = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < end, "not cut off");
        if channel.write_all(&ws_frame(0x89, b"ping")).is_ok() {
            *pings += 1;
        }
        match channel.read(&mut buffer) {
            Ok(0) => return ws_close_code(&said),
            Ok(size) => said.extend_from_slice(&buffer[..size]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return ws_close_code(&said),
        }
    }
}

// === all at once ===

/// Connections of a storm: as many as this process may open files, with room for the rest.
fn storm_size() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let files: usize = line.split_whitespace().nth(3).unwrap().parse().unwrap_or(usize::MAX);
    files.saturating_sub(300).min(2000)
}

/// All sockets, then all CONNECTs, then all answers: the reasons, in the order of the sockets, and the clients.
fn storm(addr: SocketAddr, name: &str) -> Vec<Client> {
    let sockets: Vec<TcpStream> = (0..storm_size()).map(|_| TcpStream::connect(addr).unwrap()).collect();
    let mut clients = Vec::new();
    for (n, socket) in sockets.into_iter().enumerate() {
        let mut client = Client::over(Box::new(socket), Version::V5).unwrap();
        client.send_raw(&Options::v5(&format!("{name}-{n}")).connect().unwrap()).unwrap();
        clients.push(client);
    }
    for client in &mut clients {
        let answer: io::Result<Frame> = client.recv(PATIENCE);
        assert_eq!(answer.unwrap().connack().0, ReasonCode::SUCCESS);
    }
    clients
}

#[test]
fn a_storm_of_connections_passes_and_leaves_nothing() {
    let certs = Certs::local(&[]);
    let node = Node::start(
        &Config::edge()
            .extra(&listener("", ""))
            .extra(&listener("", "max_connect_rate = 1000"))
            .extra(&listener("", "max_connections = 100"))
            .extra(&listener(&certs.tls(""), "")),
    );
    let honest = Honest::start(&node);
    let quiet = node.status();
    let gone = |what: &str| {
        let status = node.wait_status(PATIENCE, what, |status| status["connections"] == 2);
        for name in ["sessions", "subscriptions"] {
            assert_eq!(status[name], quiet[name], "{name} after {what}");
        }
    };
    drop(storm(node.listener(1), "free"));
    gone("a storm is over");
    drop(storm(node.listener(2), "paced"));
    gone("a storm that was paced is over");
    let listeners = node.status()["listeners"].clone();
    assert!(count(&listeners[2], "delayed") > 0 && count(&listeners[1], "delayed") == 0);

    // Where a hundred may be, some are told that there are too many, all others are closed at once.
    let sockets: Vec<TcpStream> =
        (0..storm_size()).map(|_| TcpStream::connect(node.listener(3)).unwrap()).collect();
    let mut answers = [0; 3];
    let mut clients = Vec::new();
    for (n, socket) in sockets.into_iter().enumerate() {
        let mut client = Client::over(Box::new(socket), Version::V5).unwrap();
        let _ = client.send_raw(&Options::v5(&format!("many-{n}")).connect().unwrap()); // closed already
        clients.push(client);
    }
    for client in &mut clients {
        match client.recv(PATIENCE) {
            Ok(frame) if frame.connack().0 == ReasonCode::SUCCESS => answers[0] += 1,
            Ok(frame) => {
                assert_eq!(frame.connack().0, ReasonCode::QUOTA_EXCEEDED);
                answers[1] += 1;
            }
            Err(error) => {
                assert_ne!(error.kind(), ErrorKind::TimedOut);
                answers[2] += 1;
            }
        }
    }
    let [let_in, told, closed] = answers;
    assert!(let_in >= 100 && told > 0 && closed > 0, "{answers:?}");
    assert_eq!(count(&node.status()["listeners"][3], "refused_full"), told + closed);
    drop(clients);
    gone("a storm against a full listener is over");

    // Handshakes of TLS, of those who have gone before they are done, and of those who stay.
    let dial = Dial::tcp(node.listener(4)).tls(&certs.trust().config(), "localhost");
    let (hello, _) = dial.client_hello();
    let halves: Vec<Box<dyn Channel>> = (0..300)
        .map(|_| {
            let mut socket = dial.open_socket().unwrap();
            socket.write_all(&hello).unwrap();
            socket
        })
        .collect();
    dial.connect(&Options::v5("tls")).ping();
    drop(halves);
    gone("a storm of handshakes is over");
    honest.finish(&node);
}
