//! What the link to the cloud costs in bytes and in time: `ferrule-bench wire`.
//!
//! # Design
//! ```text
//!  devices --lo--> gateway --first cable (counted)--> cloud, in a network namespace
//!                                                       |
//!  observer <--------second cable (not counted)---------+
//! ```
//! Gateway and cloud are Ferrule's edge and cloud, or two mosquitto of which the first has a bridge. Everything is QoS 1. The kernel's
//! counters of the first cable tell the bytes of both directions; each packet's Ethernet header is taken off. The cable carries
//! packets as a wire does, no larger than 1,500 bytes. Counting begins when the link is up and idle and ends when the
//! observer has all messages and the counters have stood still for [`QUIET`]: acknowledgements are paid for, too, and the handshake is
//! not. There is no TLS, which adds 22 bytes and more a record to all alike.
//!
//! A message is 200 bytes of JSON from one of ten devices. Its keys, topic and values are none that the dictionary of batches was
//! trained on (`crates/batch/examples/train.rs`), and a part of it is noise. It holds the time at which it was due to be sent, which
//! the observer compares with when it came: that is the delay, in the same process by the same clock.
//!
//! For root: network namespaces.

mod report;

pub use report::markdown;

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use clap::Args;
use ferrule_testkit::netns::{NetNs, Traffic};
use ferrule_testkit::node::{EDGE_PASSWORD, uplink_is_up};
use ferrule_testkit::proc::{Launch, Process};
use ferrule_testkit::random::Random;
use ferrule_testkit::{Config, Node, port};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::peer::{Peer, find};
use crate::result::{Machine, ResultError, commit};
use crate::wire::{self, Hello, Incoming, Version};

/// Devices, each with a connection of its own.
const DEVICES: usize = 10;
/// Bytes of a message's payload.
pub const PAYLOAD: usize = 200;
/// Bytes of an Ethernet header.
const ETHERNET: u64 = 14;
/// The counters stand still for so long when all is over: a delayed acknowledgement of TCP comes within 40 ms (200 ms at most).
const QUIET: Duration = Duration::from_millis(500);
/// How long the last message may take: a burst of a link that is paid for has up to a minute.
const LAST: Duration = Duration::from_secs(90);
/// Delays above it count as it: ten minutes.
const DELAY_US_MAX: u64 = 600_000_000;
/// What is aimed at: bytes beside mosquitto's.
pub const BYTES_RATIO: f64 = 0.2;
/// What is aimed at: the median delay beside that of the same without batches, in milliseconds.
pub const DELAY_MS: f64 = 100.0;

/// What to run.
#[derive(Debug, Clone, Args)]
pub struct WireArgs {
    /// Rounds a row.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// A smoke test: one short round a row; the result goes to target.
    #[arg(long)]
    quick: bool,
    /// The folder for the result file; default bench/results/wire of this checkout.
    #[arg(long)]
    out: Option<PathBuf>,
}

/// A whole run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WireRun {
    /// When it began, in RFC 3339, UTC.
    pub at: String,
    /// The commit that was built.
    pub commit: String,
    /// How to have it again.
    pub command: String,
    /// True when it was a smoke test.
    pub quick: bool,
    /// Where.
    pub machine: Machine,
    /// Versions: name and what it says of itself.
    pub versions: Vec<(String, String)>,
    /// One a rate and link.
    pub rows: Vec<WireRow>,
}

/// What a link carried at a rate.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WireRow {
    /// Messages a second.
    pub rate: u32,
    /// Which link.
    pub link: String,
    /// Each round.
    pub rounds: Vec<Round>,
    /// Rounds that failed.
    pub errors: Vec<String>,
}

/// One round.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Round {
    /// Messages that arrived, all of them once.
    pub messages: u64,
    /// Seconds of sending.
    pub seconds: f64,
    /// IP packets to the cloud, and back.
    pub packets: (u64, u64),
    /// Bytes of them, with their headers.
    pub bytes: (u64, u64),
    /// Delay from when a message was due at its device to its arrival at the observer, in microseconds: half of them, and all but one in a hundred.
    pub delay_us: (u64, u64),
}

/// The links side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Mosquitto,
    Alone,
    Batches,
    Metered,
}

impl Link {
    const ALL: [Self; 4] = [Self::Mosquitto, Self::Alone, Self::Batches, Self::Metered];

    fn name(self) -> &'static str {
        match self {
            Self::Mosquitto => "mosquitto, bridge",
            Self::Alone => "ferrule, batch = false",
            Self::Batches => "ferrule",
            Self::Metered => "ferrule, metered = {}",
        }
    }
}

/// Runs all of it, writes the result file and says where it is.
///
/// # Errors
/// When this process is not root, mosquitto is not there or the result cannot be written.
pub fn run(
    args: &WireArgs,
    root: &Path,
    mut said: impl FnMut(&str),
) -> Result<(PathBuf, WireRun), Box<dyn std::error::Error>> {
    let mosquitto = find("mosquitto").ok_or("mosquitto is not installed (apt-get install mosquitto)")?;
    let edge = ferrule_testkit::node::binary("ferrule-edge");
    let version = |program: &Path, name: &str| {
        let mut peer = Peer::floor(program.to_owned());
        name.clone_into(&mut peer.name);
        (name.to_owned(), peer.version())
    };
    let mut run = WireRun {
        at: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        commit: commit(root),
        command: format!("ferrule-bench {}", std::env::args().skip(1).collect::<Vec<_>>().join(" ")),
        quick: args.quick,
        machine: Machine::here(),
        versions: vec![version(&edge, "ferrule"), version(&mosquitto, "mosquitto")],
        rows: Vec::new(),
    };
    let seconds = |rate| match (args.quick, rate) {
        (true, _) => 2,
        (false, 10) => 30,
        (false, _) => 10,
    };
    for rate in [10, 1_000] {
        for link in Link::ALL {
            let mut row =
                WireRow { rate, link: link.name().to_owned(), rounds: Vec::new(), errors: Vec::new() };
            for _ in 0..if args.quick { 1 } else { args.rounds } {
                said(&format!("{rate}/s, {}", link.name()));
                match one(link, &mosquitto, rate, seconds(rate)) {
                    Ok(round) => row.rounds.push(round),
                    Err(error) => row.errors.push(error.to_string()),
                }
            }
            run.rows.push(row);
        }
    }
    let folder = args
        .out
        .clone()
        .unwrap_or_else(|| root.join(if args.quick { "target/wire" } else { "bench/results/wire" }));
    let path = folder.join(format!("{}-{}.json", &run.at[..10], run.commit));
    std::fs::create_dir_all(&folder)?;
    std::fs::write(&path, serde_json::to_string_pretty(&run)? + "\n")?;
    Ok((path, run))
}

/// The run in `folder` that was begun last, and its file's name.
///
/// # Errors
/// [`ResultError`]
pub fn newest(folder: &Path) -> Result<(String, WireRun), ResultError> {
    let failed = |error| ResultError::Io { path: folder.to_owned(), error };
    let mut newest: Option<(String, WireRun)> = None;
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let text = std::fs::read_to_string(&path).map_err(failed)?;
        // One of another version is none of this one's.
        let Ok(run) = serde_json::from_str::<WireRun>(&text) else { continue };
        if !run.quick && newest.as_ref().is_none_or(|(_, other)| other.at < run.at) {
            newest = Some((path.file_name().unwrap_or_default().to_string_lossy().into_owned(), run));
        }
    }
    newest.ok_or_else(|| ResultError::None(folder.to_owned()))
}

// === one round ===

/// Gateway and cloud, as long as they are needed.
enum Running {
    Ferrule { edge: Node, _cloud: Node },
    Mosquitto { _gateway: Process, _cloud: Process, _folder: TempDir },
}

impl Running {
    /// The addresses of the gateway, for devices, and of the cloud, for the observer.
    fn start(link: Link, mosquitto: &Path, netns: &NetNs) -> io::Result<(Self, SocketAddr, SocketAddr)> {
        let observed = netns.second_cable();
        let cloud_port = port::free();
        let any = IpAddr::from([0, 0, 0, 0]);
        if link == Link::Mosquitto {
            let folder = tempfile::tempdir()?;
            let gateway = port::free_addr();
            let start = |name: &str, conf: String| {
                let file = folder.path().join(format!("{name}.conf"));
                std::fs::write(&file, format!("user root\nallow_anonymous true\npersistence false\n{conf}"))?;
                let log = folder.path().join(format!("{name}.log"));
                Ok::<_, io::Error>(Launch::new(name, mosquitto, log).arg("-c").arg(file))
            };
            let cloud = start("cloud", format!("listener {cloud_port} 0.0.0.0\n"))?;
            let cloud = cloud.netns(netns.name()).start();
            // 3.1.1 and no notifications: the least that a bridge of it says.
            let bridge = format!(
                "listener {} 127.0.0.1\nconnection up\naddress {}:{cloud_port}\ntopic # out 1\nbridge_protocol_version mqttv311\nnotifications false\ncleansession false\n",
                gateway.port(),
                netns.addr(),
            );
            let edge = start("gateway", bridge)?.start();
            let running = Self::Mosquitto { _gateway: edge, _cloud: cloud, _folder: folder };
            return Ok((running, gateway, SocketAddr::new(observed, cloud_port)));
        }
        let cloud = Config::cloud()
            .netns(netns.name())
            .listen(SocketAddr::new(any, cloud_port))
            .extra("[[user]]\nname = \"observer\"\npassword_file = \"edge.pass\"\n");
        let cloud = Node::start(&cloud);
        let more = match link {
            Link::Alone => "batch = false\n",
            Link::Metered => "metered = {}\n",
            _ => "",
        };
        let uplink = format!(
            "[uplink]\nurl = \"mqtt://{}:{cloud_port}\"\nusername = \"press-7\"\npassword_file = \"edge.pass\"\n{more}",
            netns.addr(),
        );
        let rules = "CREATE RULE up AS INSERT INTO cloud SELECT * FROM \"#\";\n";
        let edge = Node::start(&Config::edge().rules(rules).extra(&uplink));
        let gateway = edge.addr();
        Ok((Self::Ferrule { edge, _cloud: cloud }, gateway, SocketAddr::new(observed, cloud_port)))
    }

    fn wait_up(&self) {
        if let Self::Ferrule { edge, .. } = self {
            edge.wait_status(Duration::from_secs(20), "the uplink is up", uplink_is_up);
        }
    }
}

fn one(link: Link, mosquitto: &Path, rate: u32, seconds: u32) -> io::Result<Round> {
    let netns = NetNs::new().ok_or_else(|| io::Error::other("network namespaces need root"))?;
    netns.as_on_a_wire();
    let (running, gateway, cloud) = Running::start(link, mosquitto, &netns)?;
    let user = (link != Link::Mosquitto).then_some(("observer", EDGE_PASSWORD));
    let observer = Observer::start(retried(|| login(cloud, "observer", user))?)?;
    let mut devices = Vec::new();
    let over = Arc::new(AtomicBool::new(false));
    for number in 0..DEVICES {
        let socket = retried(|| login(gateway, &sonde(number), None))?;
        drain(socket.try_clone()?, Arc::clone(&over));
        devices.push(socket);
    }
    running.wait_up();
    let mut random = Random(0x1d87_2b41 + u64::from(rate));
    if link != Link::Metered {
        // The whole way works; a message may be the first thing a bridge connects for.
        let frame = publish(0, 0, &message(0, 0, 0, &mut random));
        devices[0].write_all(&frame)?;
        observer.wait(1, Instant::now() + Duration::from_secs(20))?;
    }
    still(&netns, Instant::now() + Duration::from_secs(20))?;
    let (before, had) = (netns.traffic(), observer.state.came.load(Relaxed));
    observer.state.counting.store(true, Relaxed);

    let count = u64::from(rate * seconds);
    let begin = Instant::now();
    let begin_us = observer.state.micros(begin);
    for number in 0..count {
        let after_us = number * 1_000_000 / u64::from(rate);
        let due = begin + Duration::from_micros(after_us);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let device = number as usize % DEVICES;
        let payload = message(device, number, begin_us + after_us, &mut random);
        let packet_id = (number / DEVICES as u64 % 60_000) as u16 + 2;
        devices[device].write_all(&publish(device, packet_id, &payload))?;
    }
    observer.wait(had + count, Instant::now() + LAST)?;
    let after = still(&netns, Instant::now() + LAST)?;
    over.store(true, Relaxed);
    let came = observer.state.came.load(Relaxed) - had;
    if came != count {
        return Err(io::Error::other(format!("{came} messages came of {count}")));
    }
    let (packets_in, packets_out) =
        (after.packets_in - before.packets_in, after.packets_out - before.packets_out);
    let delays = observer.delays()?;
    Ok(Round {
        messages: count,
        seconds: f64::from(seconds),
        packets: (packets_in, packets_out),
        bytes: (
            after.bytes_in - before.bytes_in - ETHERNET * packets_in,
            after.bytes_out - before.bytes_out - ETHERNET * packets_out,
        ),
        delay_us: (delays.value_at_quantile(0.5), delays.value_at_quantile(0.99)),
    })
}

/// Waits until nothing is on the cable any more.
fn still(netns: &NetNs, deadline: Instant) -> io::Result<Traffic> {
    let (mut last, mut since) = (netns.traffic(), Instant::now());
    while since.elapsed() < QUIET {
        if Instant::now() > deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the link does not fall silent"));
        }
        std::thread::sleep(Duration::from_millis(20));
        let now = netns.traffic();
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    Ok(last)
}

// === who sends ===

fn sonde(number: usize) -> String {
    format!("sonde-{number:02}")
}

/// Around `middle`, by up to `spread`.
fn near(random: &mut Random, middle: f64, spread: f64) -> f64 {
    middle + spread * (random.below(20_001) as f64 / 10_000.0 - 1.0)
}

/// What a gauge in a harbour says: [`PAYLOAD`] bytes, the last some of them hexadecimal noise.
fn message(device: usize, number: u64, due_us: u64, random: &mut Random) -> String {
    let place = device as f64;
    let text = format!(
        "{{\"um\":{due_us:016},\"lfd\":{number},\"sonde\":\"{}\",\"pegel_cm\":{:.2},\"wellen\":{{\"h\":{:.2},\"per\":{:.1},\"ri\":{:.0}}},\"boe\":{{\"v\":{:.1},\"ri\":{:.0}}},\"salz\":{:.3},\"truebung\":{:.2},\"akku_mv\":{:.0},\"pruef\":\"",
        sonde(device),
        near(random, 480.0 + 11.0 * place, 2.5),
        near(random, 0.9, 0.4),
        near(random, 4.8, 0.9),
        near(random, 214.0, 9.0),
        near(random, 13.0, 5.0),
        near(random, 229.0, 12.0),
        near(random, 8.2 + 0.1 * place, 0.03),
        near(random, 3.6, 0.5),
        near(random, 12_700.0, 60.0),
    );
    let noise = PAYLOAD.saturating_sub(text.len() + 2);
    let digits = format!("{:016x}{:016x}", random.number(), random.number());
    format!("{text}{}\"}}", &digits[..noise.min(digits.len())])
}

/// A PUBLISH of MQTT 3.1.1 at QoS 1.
fn publish(device: usize, packet_id: u16, payload: &str) -> Vec<u8> {
    let topic = format!("ostsee/mole-2/{}", sonde(device));
    let length = 2 + topic.len() + 2 + payload.len();
    let mut out = vec![0x32, (length & 0x7f) as u8 | 0x80, (length >> 7) as u8];
    out.extend((topic.len() as u16).to_be_bytes());
    out.extend(topic.as_bytes());
    out.extend(packet_id.max(1).to_be_bytes());
    out.extend(payload.as_bytes());
    out
}

/// A connection of MQTT 3.1.1 that is let in.
fn login(addr: SocketAddr, client_id: &str, user: Option<(&str, &str)>) -> io::Result<TcpStream> {
    let mut socket = TcpStream::connect(addr)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut out = Vec::new();
    wire::connect(&mut out, &Hello { version: Version::V3, client_id, clean: true, keep_alive: 0, user });
    socket.write_all(&out)?;
    let mut answer = [0; 4];
    socket.read_exact(&mut answer)?;
    match answer {
        [0x20, 2, _, 0] => Ok(socket),
        other => Err(io::Error::other(format!("{client_id} is not let in: {other:?}"))),
    }
}

/// Until it works, for ten seconds: whoever was just started listens soon.
fn retried<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match attempt() {
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
            done => return done,
        }
    }
}

/// Takes acknowledgements off a device's connection until `over`.
fn drain(mut socket: TcpStream, over: Arc<AtomicBool>) {
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        // Timeouts are no end: a device of a slow row hears nothing for long.
        while !over.load(Relaxed) && !matches!(socket.read(&mut buffer), Ok(0)) {}
    });
}

// === who receives ===

/// What its thread tells.
#[derive(Debug)]
struct State {
    start: Instant,
    came: AtomicU64,
    /// Delays count from now on.
    counting: AtomicBool,
    ended: AtomicBool,
}

impl State {
    /// Of a clock of this process's.
    fn micros(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.start).as_micros()).unwrap_or(u64::MAX)
    }
}

struct Observer {
    state: Arc<State>,
    socket: TcpStream,
    thread: std::thread::JoinHandle<Histogram<u64>>,
}

impl Observer {
    /// Subscribes to everything at QoS 0, and waits until that is so.
    fn start(mut socket: TcpStream) -> io::Result<Self> {
        let mut out = Vec::new();
        wire::subscribe(&mut out, Version::V3, "ostsee/#", 0);
        socket.write_all(&out)?;
        let mut answer = [0; 5];
        socket.read_exact(&mut answer)?;
        socket.set_read_timeout(None)?;
        let state = Arc::new(State {
            start: Instant::now(),
            came: AtomicU64::new(0),
            counting: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        let (mut reader, told) = (socket.try_clone()?, Arc::clone(&state));
        let thread = std::thread::spawn(move || {
            let mut delays = Histogram::new_with_bounds(1, DELAY_US_MAX, 3)
                .unwrap_or_else(|error| unreachable!("constants that fit: {error}"));
            let mut bytes = Vec::new();
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(size @ 1..) = reader.read(&mut buffer) {
                let now_us = told.micros(Instant::now());
                bytes.extend_from_slice(&buffer[..size]);
                let mut used = 0;
                while let Ok(Some((packet, size))) = wire::next(&bytes[used..], Version::V3) {
                    if let Incoming::Publish { payload, .. } = packet {
                        if told.counting.load(Relaxed) {
                            delays.saturating_record(now_us.saturating_sub(due_us(payload)));
                        }
                        told.came.fetch_add(1, Relaxed);
                    }
                    used += size;
                }
                bytes.drain(..used);
            }
            told.ended.store(true, Relaxed);
            delays
        });
        Ok(Self { state, socket, thread })
    }

    /// Until so many messages have come.
    fn wait(&self, count: u64, deadline: Instant) -> io::Result<()> {
        while self.state.came.load(Relaxed) < count {
            if Instant::now() > deadline || self.state.ended.load(Relaxed) {
                let came = self.state.came.load(Relaxed);
                return Err(io::Error::other(format!("{came} messages came of {count}")));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn delays(self) -> io::Result<Histogram<u64>> {
        self.socket.shutdown(std::net::Shutdown::Both)?;
        self.thread.join().map_err(|_| io::Error::other("the observer panicked"))
    }
}

/// When a message was due.
fn due_us(payload: &[u8]) -> u64 {
    let digits = payload.get(6..22).and_then(|digits| std::str::from_utf8(digits).ok());
    digits.and_then(|digits| digits.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn messages_have_their_size_and_say_when_they_were_due() {
        let mut random = Random(7);
        for number in [0, 9, 99, 12_345] {
            let text = message(number as usize % DEVICES, number, 1_000_000 + number, &mut random);
            assert_eq!(text.len(), PAYLOAD, "{text}");
            serde_json::from_str::<serde_json::Value>(&text.replace("\"um\":0", "\"um\":1")).unwrap();
            assert_eq!(due_us(text.as_bytes()), 1_000_000 + number);
        }
        let frame = publish(3, 515, &message(3, 1, 2, &mut random));
        let (packet, size) = wire::next(&frame, Version::V3).unwrap().unwrap();
        assert_eq!(size, frame.len());
        assert!(
            matches!(packet, Incoming::Publish { qos: 1, packet_id: 515, payload } if payload.len() == PAYLOAD)
        );
    }
}
