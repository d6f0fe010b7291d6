#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use crate::control::Status;
use crate::hub::{Hub, Node};
use ferrule_broker::hook::Everyone;
use ferrule_broker::shard::Parts;
use ferrule_broker::{Limits, Place, Shard};
use ferrule_net::{Clock, Links, Listener, Worker};
use ferrule_outbox::Policy;
use ferrule_sinks::{Connector, ConnectorSchema, Declared, OptionKind, OptionSchema, Target};
use ferrule_store::{Boot, QueueId};
use ferrule_store_sqlite::{Handle, Options as StoreOptions, Writer};
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Instant;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

/// Nothing here takes this long; what does has failed.
const DEADLINE: Duration = Duration::from_secs(30);

// === A connector that takes rows and never answers ===

#[derive(Default)]
struct Deaf {
    log: Arc<Mutex<Vec<String>>>,
}

static SCHEMA: ConnectorSchema = ConnectorSchema {
    name: "deaf",
    summary: "Says that it is up, and answers nothing.",
    options: &[option("table", OptionKind::Template, false), option("path", OptionKind::Text, true)],
    passthrough: None,
    target: Target::Name("table"),
    key: None,
};

const fn option(name: &'static str, kind: OptionKind, required: bool) -> OptionSchema {
    OptionSchema { name, kind, required, default: None, help: "For tests." }
}

impl Connector for Deaf {
    fn schema(&self) -> &'static ConnectorSchema {
        &SCHEMA
    }

    fn check(&self, options: &Options) -> Result<Declared, Vec<String>> {
        match options.text("path").ends_with("wrong") {
            true => Err(vec!["this path is wrong".into()]),
            false => Ok(Declared::default()),
        }
    }

    fn start(&self, name: &str, options: &Options, mut context: SinkContext) -> Result<Running, Vec<String>> {
        let path = options.text("path").to_owned();
        if path.ends_with("fails") {
            return Err(vec!["it does not start".into()]);
        }
        let (running, ended) = Running::new();
        let (log, name) = (Arc::clone(&self.log), name.to_owned());
        log.lock().unwrap().push(format!("{name} starts with {path}"));
        (context.events)(ConsumerEvent::Up { window: 100 });
        context.runtime.clone().spawn(async move {
            while context.rows.recv().await.is_some() {}
            log.lock().unwrap().push(format!("{name} ends"));
            let _ = ended.send(());
        });
        Ok(running)
    }
}

// === A node without its command line ===

struct Fixture {
    log: Arc<Mutex<Vec<String>>>,
    loader: Loader,
    inbox: Inbox<HubMessage>,
    address: SocketAddr,
    worker: JoinHandle<std::io::Result<()>>,
    writer: Writer,
    _runtime: Runtime,
}

impl Fixture {
    fn start(data_dir: &Path) -> Self {
        let opened = ferrule_store_sqlite::open(data_dir, StoreOptions::edge()).unwrap();
        let (poll, inbox) = Worker::<Hub, Handle, HubMessage>::poll().unwrap();
        let clock = Clock::start();
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), Arc::default()).unwrap();
        let address = listener.address().tcp().unwrap();
        let node = Node {
            origin: "n".into(),
            boot: Boot::new(1),
            edge: true,
            outboxes: Policy::EDGE.into(),
            clustered: false,
            place: Place::ALONE,
        };
        let stored = opened.restored.queues.clone();
        let posts = inbox.clone();
        let parts = Parts {
            hook: Hub::new(node, stored, &[], 1, clock.now()),
            store: opened.writer.handle(Box::new(move |event| posts.post(Mail::Store(event)))),
            gate: Box::new(Everyone),
            limits: Limits::default(),
            features: Arc::default(),
            policy: Policy::EDGE,
            seed: 1,
            place: Place::ALONE,
        };
        let shard = Shard::new(parts, &opened.restored, clock.now());
        let links = Links::mesh(std::slice::from_ref(&inbox), None).remove(0);
        let worker = Worker::new(poll, inbox.clone(), links, clock, vec![listener], shard).unwrap();
        let worker = std::thread::spawn(move || worker.run(Hub::message));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let deaf = Deaf::default();
        let log = Arc::clone(&deaf.log);
        let loader = Loader::new(
            true,
            vec![Arc::new(deaf)],
            vec![inbox.clone()],
            Place::ALONE,
            runtime.handle().clone(),
        );
        Self { log, loader, inbox, address, worker, writer: opened.writer, _runtime: runtime }
    }

    fn load(&mut self, text: &str) -> Result<(), String> {
        self.loader.load(&[RuleFile { name: "/rules/r.sql".into(), text: text.into() }])
    }

    fn log(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.lock().unwrap())
    }

    fn status(&self) -> Status {
        let (reply, answer) = oneshot::channel();
        self.inbox.post(Mail::App(HubMessage::Status(reply)));
        answer.blocking_recv().unwrap()
    }

    fn wait(&self, what: &str, right: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !right(self) {
            assert!(start.elapsed() < DEADLINE, "{what}: {:#?}", self.status());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// (in flight or queued, window) of an outbox.
    fn outbox(&self, name: &str) -> Option<(u64, u64)> {
        let status = self.status();
        let outbox = status.outboxes.iter().find(|o| o.name == name)?;
        Some((outbox.queued + outbox.in_flight, outbox.window))
    }

    /// One message of QoS 0, as MQTT 3.1.1 writes it.
    fn publish(&self, topic: &str, retain: bool) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.write_all(b"\x10\x0d\0\x04MQTT\x04\x02\0\0\0\x01c").unwrap();
        let mut packet = vec![0x30 | u8::from(retain), topic.len() as u8 + 4, 0, topic.len() as u8];
        packet.extend_from_slice(topic.as_bytes());
        packet.extend_from_slice(b"{}");
        stream.write_all(&packet).unwrap();
        stream
    }

    fn stop(self) {
        self.inbox.post(Mail::Stop);
        self.worker.join().unwrap().unwrap();
        self.writer.shutdown().unwrap();
    }
}

const ONE: &str = "CREATE SINK a WITH (connector = 'deaf', path = 'x', table = 't');
CREATE RULE r AS INSERT INTO a SELECT * FROM \"t\";\n";

#[test]
fn a_reload_touches_what_changed_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Fixture::start(dir.path());
    node.load(ONE).unwrap();
    assert_eq!(node.log(), ["a starts with /rules/x"], "paths are relative to the rules file");
    let generation = node.loader.sinks["a"].generation;
    let stream = node.publish("t", false);
    node.wait("a row", |n| n.outbox("a") == Some((1, 100)));

    // The rule changes, a sink comes, the first sink stays.
    let two = "CREATE SINK b WITH (connector = 'deaf', path = '/y', table = 't');
CREATE SINK a WITH (connector = 'deaf', path = 'x', table = 't');
CREATE RULE other AS INSERT INTO a, b SELECT * FROM \"u\";\n";
    node.load(two).unwrap();
    assert_eq!(node.log(), ["b starts with /y"]);
    assert_eq!(node.loader.sinks["a"].generation, generation);
    assert_eq!(node.outbox("a"), Some((1, 100)));

    // Changed options are a new sink; it gets the rows.
    node.load(&two.replace("'x'", "'z'")).unwrap();
    node.wait("the old one ends", |n| n.log.lock().unwrap().len() == 2);
    assert_eq!(node.log(), ["a starts with /rules/z", "a ends"]);
    assert!(node.loader.sinks["a"].generation > generation);
    node.wait("the new one is up", |n| n.outbox("a") == Some((1, 100)));

    // A sink that is removed ends, its rows stay.
    node.load("").unwrap();
    node.wait("both end", |n| n.log.lock().unwrap().len() == 2);
    assert_eq!(node.outbox("a"), Some((1, 0)));
    assert!(node.loader.sinks.is_empty());
    node.log();
    node.load(ONE).unwrap();
    node.wait("it goes on", |n| n.outbox("a") == Some((1, 100)));
    drop(stream);
    node.stop();
}

#[test]
fn a_bad_reload_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Fixture::start(dir.path());
    node.load(ONE).unwrap();
    node.log();
    let generation = node.loader.sinks["a"].generation;
    let sink = |name: &str, path: &str| {
        format!("CREATE SINK {name} WITH (connector = 'deaf', path = '{path}', table = 't');\n")
    };
    for (text, mistakes) in [
        ("SELECT".to_owned(), &["r.sql:1:7: error"][..]),
        (
            sink("a", "new") + &sink("b", "wrong") + &sink("c", "/wrong"),
            &["r.sql:2:1: error: sink `b`: this path is wrong", "r.sql:3:1: error: sink `c`: this path"],
        ),
    ] {
        let error = node.load(&text).unwrap_err();
        assert!(mistakes.iter().all(|m| error.contains(m)), "{error}");
        assert!(node.log().is_empty(), "nothing is started");
    }
    // One starts, the next does not: the first ends, and the old one, of the same name, goes on.
    let error = node.load(&(sink("a", "new") + &sink("b", "fails"))).unwrap_err();
    assert!(error.contains("/rules/r.sql:2:1: error: sink `b`: it does not start"), "{error}");
    node.wait("the new one ends", |n| n.log.lock().unwrap().len() == 2);
    assert_eq!(node.log(), ["a starts with /rules/new", "a ends"]);
    assert_eq!(node.loader.sinks.len(), 1);
    assert_eq!(node.loader.sinks["a"].generation, generation);
    assert_eq!(node.status().rules.len(), 1, "the old rules are in force");

    // And the same rules again start nothing a second time.
    node.load(ONE).unwrap();
    assert!(node.log().is_empty());
    node.stop();
}

#[test]
fn warnings_are_told_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Fixture::start(dir.path());
    node.load("CREATE RULE r AS INSERT INTO cloud SELECT * FROM \"t\";").unwrap();
    assert_eq!(node.loader.warned, [NO_UPLINK]);
    node.load("").unwrap();
    assert!(node.loader.warned.is_empty());
    node.loader.connect_uplink(1, mpsc::channel(1).0);
    node.load("CREATE RULE r AS INSERT INTO cloud SELECT * FROM \"t\";").unwrap();
    assert!(node.loader.warned.is_empty());
    node.stop();
}

#[test]
fn a_plain_stop_loses_nothing_that_was_taken() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Fixture::start(dir.path());
    node.load(ONE).unwrap();
    // Nobody waits for either: without the stop they would be due in a second.
    let streams = [node.publish("t", false), node.publish("kept", true)];
    node.wait("a row", |n| n.outbox("a").is_some_and(|(rows, _)| rows == 1) && n.status().retained == 1);
    node.stop();
    drop(streams);
    let opened = ferrule_store_sqlite::open(dir.path(), StoreOptions::edge()).unwrap();
    let queues: Vec<_> = opened.restored.queues.iter().map(|q| (q.queue, q.rows)).collect();
    assert_eq!(queues, [(QueueId::outbox("a", 0), 1)]);
    assert_eq!(opened.restored.retained.len(), 1);
    opened.writer.shutdown().unwrap();
}
