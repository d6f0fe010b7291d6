//! The uplink over TLS, WebSocket and a proxy: what arrives, what is said when nothing does, and what becomes of a
//! connection when its certificate is replaced.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::broker::{Broker, DEADLINE, Outbox, Plan, config, large, rows};
use common::front::{Authority, Files, Front, HOUR_S, head, listen, now_s, proxy, websocket};
use ferrule_link::uplink::RENEW_AHEAD_S;
use ferrule_link::{LinkState, Scheme, Server, TlsConfig, UplinkConfig, UplinkSnapshot};
use ferrule_outbox::Delivered;
use ferrule_store::Stamp;
use ferrule_transport::stack::{Scratch, ServerLayers, Stack};
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// `count` rows through `front`: all there, in order.
async fn deliver(
    what: &str,
    front: &Front,
    broker: &Broker,
    count: u64,
    change: impl FnOnce(&mut UplinkConfig),
) {
    let mut config = config(&[&front.server]);
    change(&mut config);
    let mut outbox = Outbox::start(config, rows(count));
    outbox.all(what).await;
    assert!(outbox.answers.values().all(|answer| *answer == Delivered::Yes), "{what}");
    assert_eq!(broker.numbers(), (1..=count).collect(), "{what}");
    broker.check_order();
    outbox.stop().await;
}

/// What the uplink says of `server`, to which it never gets.
async fn told(server: &Server, change: impl FnOnce(&mut UplinkConfig)) -> String {
    let mut config = config(&[server]);
    change(&mut config);
    let mut outbox = Outbox::start(config, rows(1));
    outbox.until("down", |outbox| !outbox.downs.is_empty()).await;
    assert_eq!(outbox.ups, 0, "{server}");
    let error = outbox.downs.remove(0);
    assert!(error.starts_with(&server.to_string()), "{error}");
    error
}

fn check(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
}

/// When the certificate in force ends.
fn expiry(snapshot: &UplinkSnapshot) -> Option<i64> {
    snapshot.certificates.first().map(|info| info.not_after_s)
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let wait = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("{what}"));
}

// === what arrives ===

#[tokio::test]
async fn every_transport_carries_rows_through_losses() {
    let files = Files::new();
    let client = files.client("press-7", now_s() + HOUR_S);
    for (what, layers, tls, peer) in [
        ("mqtts", files.server(|_| ()), files.tls(), None),
        ("mqtts, only 1.3", files.server(|files| files.tls12 = false), files.tls(), None),
        ("mutual mqtts", files.mutual(|_| ()), files.tls_with(client.clone()), Some("press-7")),
        ("ws", websocket(ServerLayers::default()), TlsConfig::default(), None),
        ("wss", websocket(files.server(|_| ())), files.tls(), None),
        ("mutual wss", websocket(files.mutual(|_| ())), files.tls_with(client), Some("press-7")),
    ] {
        let plans = vec![Plan::DropAfter(7), Plan::AckBackwards(3), Plan::Ack];
        let broker = Broker::start(plans, &[]).await;
        let front = Front::start(layers, &broker.server).await;
        deliver(what, &front, &broker, 500, |config| config.tls = tls).await;
        let peers = front.peers();
        assert!(peers.len() >= 2 && peers.iter().all(|p| p.as_deref() == peer), "{what}: {peers:?}");
    }
}

#[tokio::test]
async fn large_rows_and_a_slow_reader() {
    let files = Files::new();
    for layers in [files.server(|_| ()), websocket(files.server(|_| ())), websocket(ServerLayers::default())]
    {
        let broker = Broker::start(vec![Plan::Slow(5_000)], &[]).await;
        let front = Front::start(layers, &broker.server).await;
        let mut config = config(&[&front.server]);
        config.tls = files.tls();
        let mut outbox = Outbox::start(config, (1..=40).map(|seq| large(seq, 200_000)));
        outbox.all("large").await;
        assert_eq!((outbox.ups, outbox.answers.len()), (1, 40), "{}", front.server);
        broker.check_order();
        outbox.stop().await;
        until("DISCONNECT arrives", || broker.seen.lock().unwrap().goodbyes == 1).await;
        assert_eq!(*front.faults.lock().unwrap(), [""; 0]);
    }
}

#[tokio::test]
async fn rows_of_qos_0_are_answered_when_they_are_written() {
    let files = Files::new();
    let broker = Broker::start(vec![Plan::NeverAck(usize::MAX)], &[]).await;
    let front = Front::start(websocket(files.server(|_| ())), &broker.server).await;
    let mut config = config(&[&front.server]);
    config.tls = files.tls();
    let at_most_once = |seq| {
        let mut entry = common::entry(seq, "a");
        entry.qos = 0;
        common::row_of(entry)
    };
    let mut outbox = Outbox::start(config, (1..=100).map(at_most_once));
    outbox.all("QoS 0").await;
    until("all arrive", || broker.numbers().len() == 100).await;
}

#[tokio::test]
async fn a_proxy_is_asked_for_every_transport() {
    let files = Files::new();
    for layers in [files.server(|_| ()), websocket(files.server(|_| ())), websocket(ServerLayers::default())]
    {
        for credentials in [false, true] {
            let broker = Broker::start(vec![Plan::DropAfter(7), Plan::Ack], &[]).await;
            let front = Front::start(layers.clone(), &broker.server).await;
            let asked = Arc::<Mutex<Vec<String>>>::default();
            // me:hunter2
            let authorization = credentials.then_some("Basic bWU6aHVudGVyMg==");
            let port = proxy(front.server.authority(), authorization, Arc::clone(&asked)).await;
            let what = format!("{} through a proxy, credentials: {credentials}", front.server);
            deliver(&what, &front, &broker, 100, |config| {
                config.tls = files.tls();
                let mut proxy: ferrule_link::Proxy = format!("http://127.0.0.1:{port}").parse().unwrap();
                proxy.credentials = credentials.then(|| ("me".to_owned(), "hunter2".to_owned()));
                config.proxy = Some(proxy);
            })
            .await;
            assert_eq!(asked.lock().unwrap().len(), 2, "{what}");
        }
    }
    // And for plain MQTT, which then goes past the layers.
    let broker = Broker::start(vec![Plan::DropAfter(7), Plan::Ack], &[]).await;
    let port = proxy(broker.server.authority(), None, Arc::default()).await;
    let mut config = config(&[&broker.server]);
    config.proxy = Some(format!("http://localhost:{port}").parse().unwrap());
    let mut outbox = Outbox::start(config, rows(100));
    outbox.all("mqtt through a proxy").await;
    assert_eq!(broker.numbers(), (1..=100).collect());
}

// === what is said when nothing arrives ===

#[tokio::test]
async fn certificates_that_do_not_fit_are_told_with_what_to_do() {
    let files = Files::new();
    let (stranger, twin) = (Files::of("Another CA"), Files::new());
    let broker = Broker::start(vec![Plan::Ack], &[]).await;
    let expired = files.pair("old", &files.ca.sign("server", &["localhost"], now_s() - HOUR_S));
    let elsewhere = files.pair("other", &files.ca.sign("server", &["other.example"], now_s() + HOUR_S));
    let own = files.client("press-7", now_s() + HOUR_S);
    let strange = stranger.client("press-7", now_s() + HOUR_S);
    let ended = files.pair("ended", &files.ca.sign("press-7", &[], now_s() - HOUR_S));
    for (layers, tls, parts) in [
        (files.server(|_| ()), stranger.tls(), &["its issuer is not trusted", "`ca`"][..]),
        (files.server(|_| ()), twin.tls(), &["another CA that has the same name", "`ca`"]),
        (
            files.server_with(elsewhere.clone(), |_| ()),
            files.tls(),
            &["localhost", "other.example", "`server_name`"],
        ),
        (files.server_with(expired, |_| ()), files.tls(), &["expired", "clock"]),
        (files.mutual(|_| ()), files.tls(), &["wants a certificate", "`cert` and `key`"]),
        (files.mutual(|f| f.tls12 = false), files.tls(), &["wants a certificate", "`cert` and `key`"]),
        (files.mutual(|_| ()), files.tls_with(strange), &["refused with the TLS alert"]),
        (files.mutual(|_| ()), files.tls_with(ended), &["certificate expired, renew it"]),
    ] {
        for layers in [layers.clone(), websocket(layers)] {
            let front = Front::start(layers, &broker.server).await;
            let error = told(&front.server, |config| config.tls = tls.clone()).await;
            check(&error, parts);
        }
    }
    // The way out of the wrong name.
    let front = Front::start(files.server_with(elsewhere, |_| ()), &broker.server).await;
    deliver("server_name", &front, &broker, 10, |config| {
        let server_name = TlsConfig::server_name("other.example");
        config.tls = TlsConfig { server_name, ..files.tls_with(own) };
    })
    .await;
}

#[tokio::test]
async fn a_peer_that_speaks_something_else_is_told_by_name() {
    let files = Files::new();
    let broker = Broker::start(vec![Plan::Ack], &[]).await;
    let tls = Front::start(files.server(|_| ()), &broker.server).await;
    let answering = |answer: &'static str| async move {
        listen(move |mut stream: TcpStream| async move {
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        })
        .await
    };
    let web = answering("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
    let noise = answering("\u{1}\u{2}\u{3}\u{4}\u{5}\u{6}\u{7}\u{8}").await;
    let redirect = answering("HTTP/1.1 301 Moved Permanently\r\nLocation: /\r\n\r\n").await;
    let silent = answering("").await;
    for (scheme, port, parts) in [
        (Scheme::Mqtt, web, &["speaks HTTP", "'ws://'"][..]),
        (Scheme::Mqtt, silent, &["closed the connection without a word"]),
        (Scheme::Mqtts, web, &["speaks HTTP without TLS"]),
        (Scheme::Mqtts, noise, &["does not speak TLS"]),
        (Scheme::Mqtts, silent, &["closed the connection in the TLS handshake"]),
        (Scheme::Ws, web, &["no WebSocket", "400 Bad Request"]),
        (Scheme::Ws, noise, &["no WebSocket", "another protocol"]),
        (Scheme::Ws, redirect, &["301 Moved", "redirections are not followed"]),
        (Scheme::Ws, silent, &["without an answer to the WebSocket request"]),
    ] {
        let server = Server::with_scheme(scheme, "localhost", port);
        check(&told(&server, |config| config.tls = files.tls()).await, parts);
    }
    // TLS answers what it cannot read with an alert.
    let plain = Server::new("localhost", tls.server.port());
    let error = told(&plain, |_| ()).await;
    assert!(error.contains("speaks TLS") || error.contains("closed the connection"), "{error}");
    // Another path than the broker's.
    let front = Front::start(websocket(ServerLayers::default()), &broker.server).await;
    let url = format!("ws://localhost:{}/other", front.server.port());
    check(&told(&url.parse().unwrap(), |_| ()).await, &["404 Not Found", "/mqtt"]);
}

#[tokio::test]
async fn a_proxy_that_refuses_is_told_with_what_to_do() {
    let files = Files::new();
    let broker = Broker::start(vec![Plan::Ack], &[]).await;
    let server = Server::with_scheme(Scheme::Mqtts, "broker.example", 8883);
    let guarded = proxy("broker.example:8883".to_owned(), Some("Basic eDp5"), Arc::default()).await;
    let strict = proxy("other.example:1".to_owned(), None, Arc::default()).await;
    let dead = listen(|stream| async move { drop(stream) }).await;
    for (port, parts) in [
        (guarded, &["no tunnel through the proxy", "407", "`proxy_username`, `proxy_password_file`"][..]),
        (strict, &["403 Forbidden", "does not allow this destination"]),
        // An MQTT broker: it hangs up.
        (broker.server.port(), &["the proxy closed the connection"]),
        (dead, &["the proxy closed the connection"]),
    ] {
        let error = told(&server, |config| {
            config.tls = files.tls();
            config.proxy = Some(format!("http://127.0.0.1:{port}").parse().unwrap());
        })
        .await;
        assert!(
            parts.iter().all(|part| error.contains(part)) || error.contains("connection broke"),
            "{parts:?}: {error}"
        );
    }
    // A proxy that is not there is named, not the broker.
    let error = told(&server, |config| {
        config.proxy = Some("http://127.0.0.1:1".parse().unwrap());
        config.tls = files.tls();
    })
    .await;
    check(&error, &["the proxy http://127.0.0.1:1", "cannot be reached"]);
}

/// What a peer does that stops in the middle.
#[derive(Debug, Clone, Copy)]
enum Stop {
    /// Says nothing at all.
    AtOnce,
    /// Says this much, then nothing.
    After(&'static str),
    /// Says this again and again, and never enough.
    Drips(&'static str),
}

async fn stopping(stop: Stop) -> u16 {
    listen(move |mut stream| async move {
        match stop {
            Stop::AtOnce => {}
            Stop::After(text) => stream.write_all(text.as_bytes()).await.unwrap(),
            Stop::Drips(text) => {
                while stream.write_all(text.as_bytes()).await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        }
        std::future::pending::<()>().await;
    })
    .await
}

#[tokio::test]
async fn a_peer_that_stops_in_any_step_is_left_in_time() {
    let files = Files::new();
    let bound = "within 150ms (`connect_timeout`)";
    let impatient = |config: &mut UplinkConfig| {
        config.tls = files.tls();
        config.connect_timeout = Duration::from_millis(150);
    };
    // A record's head that announces more than comes.
    let half_record = "\u{16}\u{3}\u{3}\u{10}\u{0}\u{2}\u{0}";
    for (scheme, stop, part) in [
        (Scheme::Mqtts, Stop::AtOnce, "the TLS handshake was not finished"),
        (Scheme::Mqtts, Stop::After(half_record), "the TLS handshake was not finished"),
        (Scheme::Ws, Stop::AtOnce, "the WebSocket request was not answered"),
        (Scheme::Ws, Stop::After("HTTP/1.1 101 Switching"), "the WebSocket request was not answered"),
        (Scheme::Wss, Stop::AtOnce, "the TLS handshake was not finished"),
    ] {
        let server = Server::with_scheme(scheme, "localhost", stopping(stop).await);
        check(&told(&server, impatient).await, &[part, bound]);
    }
    // Bytes keep coming, a step does not become longer by it.
    let server = Server::with_scheme(Scheme::Ws, "localhost", stopping(Stop::Drips("H")).await);
    let error = told(&server, impatient).await;
    assert!(error.contains(bound) || error.contains("no HTTP response"), "{error}");
    let head = "HTTP/1.1 101 Switching Protocols\r\n";
    let dripping = listen(move |mut stream| async move {
        stream.write_all(head.as_bytes()).await.unwrap();
        while stream.write_all(b"A: b\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let server = Server::with_scheme(Scheme::Ws, "localhost", dripping.await);
    check(&told(&server, impatient).await, &["the WebSocket request was not answered", bound]);

    // Through a proxy: in its answer, and behind it.
    for (stop, part) in [
        (Stop::AtOnce, "the proxy did not answer CONNECT"),
        (Stop::After("HTTP/1.1 200 OK\r\n"), "the proxy did not answer CONNECT"),
        (Stop::After("HTTP/1.1 200 OK\r\n\r\n"), "the TLS handshake was not finished"),
    ] {
        let port = stopping(stop).await;
        let server = Server::with_scheme(Scheme::Mqtts, "broker.example", 8883);
        let error = told(&server, |config| {
            impatient(config);
            config.proxy = Some(format!("http://127.0.0.1:{port}").parse().unwrap());
        });
        check(&error.await, &[part, bound]);
    }

    // Behind TLS: in the upgrade, and in CONNACK's place.
    let mute = Broker::start(vec![Plan::Mute], &[]).await;
    let front = Front::start(files.server(|_| ()), &mute.server).await;
    let wss = Server::with_scheme(Scheme::Wss, "localhost", front.server.port());
    let error = told(&wss, impatient).await;
    // The front takes the request for MQTT, and its broker waits for the rest of that or hangs up.
    assert!(error.contains("the WebSocket request"), "{error}");
    for layers in [files.server(|_| ()), websocket(files.server(|_| ()))] {
        let front = Front::start(layers, &mute.server).await;
        check(&told(&front.server, impatient).await, &["the broker did not answer CONNECT"]);
    }
}

#[tokio::test]
async fn a_head_without_end_is_not_read_for_ever() {
    let endless = listen(|mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nA: ").await;
        while stream.write_all(&[b'a'; 4096]).await.is_ok() {}
    })
    .await;
    let server = Server::with_scheme(Scheme::Ws, "localhost", endless);
    check(&told(&server, |_| ()).await, &["no WebSocket", "longer than 16 KiB"]);
    let error = told(&Server::new("broker.example", 1883), |config| {
        config.proxy = Some(format!("http://127.0.0.1:{endless}").parse().unwrap());
    })
    .await;
    check(&error, &["no tunnel through the proxy", "longer than 16 KiB"]);
}

#[tokio::test]
async fn a_peer_that_asks_and_does_not_read_is_cut_off() {
    // Accepts all, then sends pings and takes no pong.
    let port = listen(|mut stream| async move {
        let layers = ServerLayers { websocket: Some("/mqtt".into()), ..ServerLayers::default() };
        let mut stack = Stack::server(&layers).unwrap().unwrap();
        let (mut scratch, mut plain, mut wire) = (Scratch::default(), Vec::new(), Vec::new());
        let mut request = head(&mut stream).await.into_bytes();
        stack.receive(&mut request, &mut scratch, &mut plain, &mut wire).unwrap();
        stack.send(&common::connack(0, &[]), &mut scratch, &mut wire).unwrap();
        stream.write_all(&wire).await.unwrap();
        let ping: Vec<u8> = [0x89, 125].into_iter().chain([0; 125]).collect();
        let pings = ping.repeat(500);
        while stream.write_all(&pings).await.is_ok() {}
    })
    .await;
    let server = Server::with_scheme(Scheme::Ws, "localhost", port);
    let mut outbox = Outbox::start(config(&[&server]), rows(1));
    outbox.until("down", |outbox| !outbox.downs.is_empty()).await;
    check(&outbox.downs[0], &["asks and does not read"]);
}

// === certificates that change ===

/// An uplink whose clock the test sets, through a front with mutual TLS.
struct Rotation {
    files: Files,
    broker: Broker,
    front: Front,
    outbox: Outbox,
    wall_ms: Arc<AtomicI64>,
    expires_s: i64,
}

impl Rotation {
    /// `count` rows are to be sent; the certificate "old" is valid for an hour.
    async fn start(plans: Vec<Plan>, ws: bool, count: u64, change: impl FnOnce(&mut UplinkConfig)) -> Self {
        let files = Files::new();
        let broker = Broker::start(plans, &[]).await;
        let layers = files.mutual(|_| ());
        let layers = if ws { websocket(layers) } else { layers };
        let front = Front::start(layers, &broker.server).await;
        let expires_s = now_s() + HOUR_S;
        let mut config = config(&[&front.server]);
        config.tls = files.tls_with(files.client("old", expires_s));
        let wall_ms = Arc::new(AtomicI64::new(now_s() * 1000));
        let clock = Arc::clone(&wall_ms);
        config.clock = Arc::new(move || Stamp { wall_ms: clock.load(Relaxed), mono_us: 0, synced: true });
        change(&mut config);
        let outbox = Outbox::start(config, rows(count));
        Self { files, broker, front, outbox, wall_ms, expires_s }
    }

    /// Puts `pair` in the files' place, and waits until it is in force.
    async fn replace(&mut self, pair: &(String, String), expires_s: i64) {
        self.files.pair("client", pair);
        let stats = Arc::clone(&self.outbox.stats);
        until("the new certificate is in force", || expiry(&stats.snapshot()) == Some(expires_s)).await;
    }

    /// The old certificate is about to end.
    fn near_the_end(&self) {
        self.wall_ms.store((self.expires_s - RENEW_AHEAD_S + 1) * 1000, Relaxed);
    }

    /// Lets rows flow until `done`, a few at a time.
    async fn flow(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let deadline = tokio::time::Instant::now() + DEADLINE;
        while !done(self) {
            assert!(tokio::time::Instant::now() < deadline, "{what}: {:?}", self.outbox.stats.snapshot());
            self.outbox.hand_out().await;
            while let Ok(event) = self.outbox.events.try_recv() {
                self.outbox.on(event);
            }
            self.outbox.window = self.outbox.window.min(4);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn messages(&self) -> usize {
        self.broker.seen.lock().unwrap().messages.iter().map(Vec::len).sum()
    }

    fn names(&self) -> Vec<String> {
        self.front.peers().into_iter().flatten().collect()
    }
}

#[tokio::test]
async fn a_new_certificate_moves_the_connection_before_the_old_one_ends_and_nothing_is_lost_or_sent_twice() {
    for ws in [false, true] {
        let mut run = Rotation::start(vec![Plan::Ack], ws, 1_000_000, |_| ()).await;
        run.flow("rows flow", |run| run.outbox.answers.len() > 50).await;
        let next_s = run.expires_s + HOUR_S;
        let next = run.files.ca.sign("new", &[], next_s);
        run.replace(&next, next_s).await;
        let before = run.outbox.answers.len();
        run.flow("rows flow on", |run| run.outbox.answers.len() > before + 200).await;
        assert_eq!(run.names(), ["old"], "the connection stays");
        run.near_the_end();
        run.flow("it moves", |run| run.outbox.stats.snapshot().connects == 2).await;
        let before = run.outbox.answers.len();
        run.flow("rows flow again", |run| run.outbox.answers.len() > before + 200).await;
        assert_eq!(run.names(), ["old", "new"]);
        run.outbox.todo.clear();
        run.outbox.all("the last").await;
        let count = run.outbox.answers.len();
        assert!(run.outbox.answers.values().all(|answer| *answer == Delivered::Yes));
        assert_eq!((run.broker.numbers().len(), run.messages()), (count, count), "none lost, none twice");
        assert_eq!(run.outbox.downs, [""; 0]);
        let snapshot = run.outbox.stats.snapshot();
        assert_eq!((snapshot.failures, snapshot.last_error, snapshot.state), (0, None, LinkState::Up));
        run.broker.check_order();
    }
}

#[tokio::test]
async fn files_that_cannot_be_used_leave_the_old_ones_in_force() {
    let mut run = Rotation::start(vec![Plan::Ack], false, 1_000_000, |_| ()).await;
    run.flow("rows flow", |run| run.outbox.answers.len() > 50).await;
    // A key that does not fit: the half of a rotation, or a mistake.
    let next_s = run.expires_s + HOUR_S;
    let next = run.files.ca.sign("new", &[], next_s);
    run.files.write("client.crt", &next.0);
    run.flow("it is told", |run| run.outbox.stats.snapshot().certificate_error.is_some()).await;
    let snapshot = run.outbox.stats.snapshot();
    check(snapshot.certificate_error.as_deref().unwrap(), &["client.key", "does not fit"]);
    assert_eq!(expiry(&snapshot), Some(run.expires_s));
    run.near_the_end();
    let before = run.outbox.answers.len();
    run.flow("rows flow on", |run| run.outbox.answers.len() > before + 50).await;
    assert_eq!((run.names(), snapshot.state), (vec!["old".to_owned()], LinkState::Up));
    // Mended: now there is something to move to.
    run.files.write("client.key", &next.1);
    run.flow("it moves", |run| run.outbox.stats.snapshot().connects == 2).await;
    assert_eq!(run.outbox.stats.snapshot().certificate_error, None);
    assert_eq!(run.names(), ["old", "new"]);
}

#[tokio::test]
async fn a_new_certificate_that_the_broker_refuses_leaves_the_connection() {
    let mut run = Rotation::start(vec![Plan::Ack], false, 1_000_000, |_| ()).await;
    run.flow("rows flow", |run| run.outbox.answers.len() > 50).await;
    let next_s = run.expires_s + HOUR_S;
    run.replace(&Authority::new("Stranger").sign("new", &[], next_s), next_s).await;
    run.near_the_end();
    run.flow("it is told", |run| run.outbox.stats.snapshot().last_error.is_some()).await;
    check(run.outbox.stats.snapshot().last_error.as_deref().unwrap(), &["refused with the TLS alert"]);
    let before = run.outbox.answers.len();
    run.flow("rows flow on", |run| run.outbox.answers.len() > before + 200).await;
    assert_eq!((run.names(), run.outbox.downs.len()), (vec!["old".to_owned()], 0));
    // One that it accepts.
    let last_s = next_s + HOUR_S;
    let last = run.files.ca.sign("last", &[], last_s);
    run.replace(&last, last_s).await;
    run.flow("it moves", |run| run.outbox.stats.snapshot().connects == 2).await;
    assert_eq!(run.names(), ["old", "last"]);
    run.outbox.todo.clear();
    run.outbox.all("the last").await;
    assert_eq!(run.messages(), run.outbox.answers.len(), "none twice");
}

#[tokio::test]
async fn what_the_broker_does_not_acknowledge_in_time_is_sent_again() {
    let plans = vec![Plan::NeverAck(usize::MAX), Plan::Ack];
    let mut run = Rotation::start(plans, false, 100, |config| {
        config.connect_timeout = Duration::from_millis(500);
    })
    .await;
    run.flow("sent", |run| run.messages() == 4).await;
    let next_s = run.expires_s + HOUR_S;
    let next = run.files.ca.sign("new", &[], next_s);
    run.replace(&next, next_s).await;
    assert_eq!(run.names(), ["old"]);
    run.near_the_end();
    run.outbox.all("all are acknowledged").await;
    assert_eq!(run.names(), ["old", "new"]);
    assert_eq!((run.broker.numbers().len(), run.messages(), run.outbox.downs.len()), (100, 104, 0));
    run.broker.check_order();
}

#[tokio::test]
async fn without_usable_files_it_waits_for_them() {
    let files = Files::new();
    let broker = Broker::start(vec![Plan::Ack], &[]).await;
    let front = Front::start(files.mutual(|_| ()), &broker.server).await;
    let mut config = config(&[&front.server]);
    config.tls = files.tls_with((files.path("client.crt"), files.path("client.key")));
    let mut outbox = Outbox::start(config, rows(10));
    outbox.until("down", |outbox| !outbox.downs.is_empty()).await;
    check(&outbox.downs[0], &["client.crt", "No such file"]);
    assert!(outbox.stats.snapshot().certificate_error.is_some());
    files.client("press-7", now_s() + HOUR_S);
    outbox.all("files are there").await;
    assert_eq!(outbox.stats.snapshot().certificate_error, None);
    assert_eq!(broker.numbers().len(), 10);
}

#[tokio::test]
async fn stopping_in_the_middle_of_a_dial_ends_at_once() {
    let files = Files::new();
    let server = Server::with_scheme(Scheme::Mqtts, "localhost", stopping(Stop::AtOnce).await);
    let mut config = config(&[&server]);
    config.tls = files.tls();
    config.connect_timeout = DEADLINE * 10;
    let mut outbox = Outbox::start(config, rows(0));
    until("it dials", || outbox.stats.snapshot().bytes_out > 0).await;
    outbox.stop().await;
}

// === the interface ===

#[tokio::test]
async fn connections_leave_by_the_interface_that_is_named() {
    let broker = Broker::start(vec![Plan::Ack], &[]).await;
    let mut config = config(&[&broker.server]);
    config.interface = Some("lo".to_owned());
    let mut outbox = Outbox::start(config, rows(10));
    outbox.all("lo").await;
    outbox.stop().await;
}

/// A link of the kernel's that leads nowhere. Removed when dropped.
struct Dummy(String);

impl Dummy {
    fn ip(args: &str) -> bool {
        std::process::Command::new("ip").args(args.split(' ')).output().is_ok_and(|out| out.status.success())
    }

    /// None, with a line on standard error, when this process may not.
    fn new(name: &str) -> Option<Self> {
        let made = Self::ip(&format!("link add {name} type dummy")).then(|| Self(name.to_owned()));
        if made.is_none() {
            eprintln!("half skipped: needs root (network interfaces)");
        }
        made.filter(|_| Self::ip(&format!("link set {name} up")))
    }
}

impl Drop for Dummy {
    fn drop(&mut self) {
        Self::ip(&format!("link del {}", self.0));
    }
}

#[tokio::test]
async fn an_interface_that_is_not_there_is_told_by_name_and_waited_for() {
    let name = format!("fl{}", std::process::id());
    let broker = Broker::start(vec![Plan::Ack], &[]).await;
    let mut config = config(&[&broker.server]);
    config.interface = Some(name.clone());
    config.connect_timeout = Duration::from_millis(300);
    let mut outbox = Outbox::start(config, rows(1));
    let stats = Arc::clone(&outbox.stats);
    outbox.until("down", |outbox| !outbox.downs.is_empty()).await;
    check(&outbox.downs[0], &[&format!("this machine has no network interface '{name}'"), "`ip link`"]);
    until("it is tried again", || stats.snapshot().failures >= 2).await;
    if let Some(_there) = Dummy::new(&name) {
        // It leads nowhere, the broker least of all: that this is the error now says that it was asked.
        outbox.until("the next error", |outbox| outbox.downs.len() >= 2).await;
        check(&outbox.downs[1], &["cannot be reached"]);
    }
    outbox.stop().await;
    assert!(outbox.answers.is_empty());
}
