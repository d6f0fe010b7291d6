//! A whole shard under a script: the only file here that knows the broker's interface.
//!
//! An input is two bytes of settings and then steps, each a byte that says what and one that says to which of six connections,
//! followed by what the step needs. Steps are what a worker, a store, a gate, a hook and the network can do; the shard is driven as
//! the worker drives it (input, store events, commands, end of turn, commands, output), so that what breaks here can break
//! there.
//!
//! | after | invariant |
//! |---|---|
//! | every call | no panic; overflow checks are on |
//! | every turn | each client sees what it may ([`crate::monitor`]); no end is lost; sizes and output are within the limits; the shard comes to rest |
//! | the whole script | with all connections gone, all ends said and all committed: no receipt is open; sessions, subscriptions and retained messages in the store are those in memory; a restart finds the same; what has an expiry is gone when it is over |

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ferrule_broker::shard::Parts;
use ferrule_broker::{
    Access, ClientLimits, Command, ConnId, ConnectRequest, Ends, Gate, Grant, Hook, Limits, LocalPublish,
    Message, Place, Publisher, Refusal, Role, Shard, Which,
};
use ferrule_mqtt::{PropertiesBuf, QoS, ReasonCode, Version, topic};
use ferrule_outbox::{End, Outcome, Policy, Reason};
use ferrule_store::{MemoryStore, Now, Op, QueueId, Restored, Store, StoreEvent, StoredRow, Ticket};

use crate::Input;
use crate::monitor::Monitor;
use crate::packets::{self, FILTERS, TOPICS};

/// Connections at a time.
const LINKS: usize = 6;
/// Turns after which a shard that still wants another one at once spins.
const REST: usize = 300;
/// A day, the longest life of a session unless it is for ever.
const DAY_S: u32 = 86_400;
/// What a reader takes of its output in one turn, when it is a slow one.
const TRICKLE: usize = 16;

// === what hangs on the shard ===

#[derive(Debug, Clone, Default)]
struct SharedStore(Rc<RefCell<StoreState>>);

#[derive(Debug, Default)]
struct StoreState {
    memory: MemoryStore,
    /// Prints what is submitted.
    show: bool,
    /// Commits nothing.
    failing: bool,
    low_on_space: bool,
}

impl Store for SharedStore {
    fn submit(&mut self, ops: Vec<Op>) -> Ticket {
        let mut store = self.0.borrow_mut();
        if store.show {
            eprintln!("  store {ops:?}");
        }
        store.memory.submit(ops)
    }
    fn read(&mut self, queue: QueueId, from: u64, max_rows: u32, max_bytes: u32) {
        // Few rows at a time, so that a backlog of some takes several reads.
        self.0.borrow_mut().memory.read(queue, from, max_rows.min(3), max_bytes);
    }
    fn pending_bytes(&self) -> usize {
        self.0.borrow().memory.pending_bytes()
    }
    fn low_on_space(&self) -> bool {
        self.0.borrow().low_on_space
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Does {
    #[default]
    Pass,
    Hold,
    Say(Outcome),
}

#[derive(Debug, Default)]
struct HookState {
    does: Does,
    held: VecDeque<End>,
    said: Vec<(End, Outcome)>,
    local: VecDeque<LocalPublish>,
}

#[derive(Debug, Clone, Default)]
struct ScriptedHook(Rc<RefCell<HookState>>);

impl Hook for ScriptedHook {
    fn publish(&mut self, _: &Message<'_>, matched: &[u32], ends: &mut Ends<'_>, _: Now) {
        let mut state = self.0.borrow_mut();
        for _ in matched {
            match state.does {
                Does::Pass => {}
                Does::Hold => state.held.extend(ends.end()),
                Does::Say(outcome) => ends.discard(outcome),
            }
        }
    }
    fn next_local(&mut self) -> Option<LocalPublish> {
        self.0.borrow_mut().local.pop_front()
    }
    fn has_local(&self) -> bool {
        !self.0.borrow().local.is_empty()
    }
    fn due(&self, _: Now, _: bool, _: Duration) -> bool {
        false
    }
    fn next_due_us(&self, _: bool, _: Duration) -> Option<u64> {
        None
    }
    fn write(&mut self, _: Now, _: Which, _: &mut Vec<Op>) {}
    fn submitted(&mut self, _: Ticket) {}
    fn committed(&mut self, _: Ticket, _: &mut Vec<(End, Outcome)>) {}
    fn rows(&mut self, _: QueueId, _: Vec<StoredRow>, _: Now) {}
    fn turn(&mut self, _: Now, ended: &mut Vec<(End, Outcome)>, _: &mut Vec<(QueueId, u64)>) {
        ended.append(&mut self.0.borrow_mut().said);
    }
}

/// What a client may do: all, or nothing of what begins with `private`.
#[derive(Debug, Clone, Copy, Default)]
struct Rights {
    publish: bool,
    subscribe: bool,
    receive: bool,
}

impl Access for Rights {
    fn publish(&self, topic: &str) -> bool {
        !topic.starts_with('$') && (self.publish || !topic.starts_with("private"))
    }
    fn subscribe(&self, filter: &str) -> bool {
        self.subscribe || !filter.starts_with("private")
    }
    fn receive(&self, topic: &str) -> bool {
        self.receive || !topic.starts_with("private")
    }
    fn reads(&self, topic: &str) -> bool {
        self.subscribe || !topic.starts_with("private")
    }
}

#[derive(Debug, Default)]
struct GateState {
    later: bool,
    refuse: bool,
    edge: bool,
    rights: Rights,
    life: Option<u8>,
    /// Asked and not answered.
    asked: VecDeque<(ConnId, Option<Arc<str>>)>,
}

impl GateState {
    fn verdict(&self, username: Option<Arc<str>>) -> Result<Grant, Refusal> {
        if self.refuse {
            return Err(Refusal { reason: ReasonCode::NOT_AUTHORIZED, message: "no".into() });
        }
        Ok(Grant {
            role: if self.edge { Role::Edge("edge".into()) } else { Role::Device },
            username,
            access: Arc::new(self.rights),
            properties: PropertiesBuf::new(),
            life: self.life.map(|life| life.to_string().into()),
        })
    }
}

#[derive(Debug, Clone, Default)]
struct ScriptedGate(Arc<Mutex<GateState>>);

impl Gate for ScriptedGate {
    fn admit(&mut self, conn: ConnId, request: &ConnectRequest<'_>) -> Option<Result<Grant, Refusal>> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let username = request.username.map(Into::into);
        if state.later {
            state.asked.push_back((conn, username));
            return None;
        }
        Some(state.verdict(username))
    }
}

// === the script's stage ===

/// How a client reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Reads {
    #[default]
    All,
    Little,
    Nothing,
}

#[derive(Debug)]
struct Link {
    conn: ConnId,
    client: Monitor,
    /// The version of the packets that are made for it: of its last CONNECT, taken or not.
    version: Version,
    /// Sent by the client, not arrived.
    wire: Vec<u8>,
    /// Arrived, not taken by the shard.
    partial: Vec<u8>,
    /// Bytes taken by the shard.
    taken: usize,
    reads: Reads,
    next_id: u16,
}

struct Stage {
    shard: Shard<ScriptedHook, SharedStore>,
    store: SharedStore,
    hook: ScriptedHook,
    gate: ScriptedGate,
    limits: Limits,
    policy: Policy,
    seed: u64,
    now: Now,
    links: [Option<Link>; LINKS],
    rules: Vec<&'static str>,
    /// Sessions found at the start.
    restored: usize,
    show: bool,
}

fn limits(settings: u8) -> Limits {
    let mut clients = ClientLimits {
        packet_bytes: 2_048,
        receive_max: 8,
        waiting_max: 12,
        keep_alive_max: None,
        session_expiry_max_s: if settings & 4 != 0 { u32::MAX } else { DAY_S },
        topic_alias_max: 4,
        inflight_max: 16,
        queue_messages: 1_000,
        pending_bytes: 4_096,
        output_bytes: 4_096,
        subscriptions: 6,
        ..ClientLimits::default()
    };
    let mut buffer_bytes = 1 << 20;
    if settings & 1 != 0 {
        clients = ClientLimits {
            receive_max: 2,
            waiting_max: 2,
            keep_alive_max: Some(10),
            inflight_max: 2,
            queue_messages: 4,
            queue_bytes: 2_048,
            pending_bytes: 64,
            output_bytes: 64,
            subscriptions: 2,
            topic_levels: 3,
            publish_rate: 5,
            publish_bytes: 500,
            ..clients
        };
        buffer_bytes = 8_192;
    }
    Limits {
        retained_messages: 5,
        retained_bytes: 4_096,
        connections: LINKS - 1,
        sessions: 4,
        buffer_bytes,
        ..clients.into()
    }
}

fn policy(settings: u8) -> Policy {
    if settings & 2 == 0 {
        return Policy::EDGE;
    }
    // Bounds that a script of some hundred bytes meets.
    Policy {
        head_bytes: 1_024,
        unwritten_bytes: 1_024,
        refuse_bytes: 4_096,
        disk_bytes: 8_192,
        ..Policy::EDGE
    }
}

fn make(
    (store, hook, gate): (&SharedStore, &ScriptedHook, &ScriptedGate),
    limits: &Limits,
    policy: Policy,
    seed: u64,
    restored: &Restored,
    now: Now,
) -> Shard<ScriptedHook, SharedStore> {
    let (hook, store, gate) = (hook.clone(), store.clone(), Box::new(gate.clone()));
    let limits = limits.clone();
    Shard::new(
        Parts { hook, store, gate, limits, features: Arc::default(), policy, seed, place: Place::ALONE },
        restored,
        now,
    )
}

/// The target.
///
/// # Panics
/// When an invariant is broken.
pub fn shard(data: &[u8]) {
    let mut input = Input::new(data);
    let settings = input.byte();
    let mut stage = Stage::new(settings, u64::from(input.byte()));
    while !input.is_over() {
        stage.step(&mut input);
    }
    stage.finish(settings & 4 != 0);
}

impl Stage {
    fn new(settings: u8, seed: u64) -> Self {
        let (store, hook, gate) = (SharedStore::default(), ScriptedHook::default(), ScriptedGate::default());
        let now = Now { mono_us: 1_000_000, wall_ms: 1_700_000_000_000 };
        let (limits, policy) = (limits(settings), policy(settings));
        let shard = make((&store, &hook, &gate), &limits, policy, seed, &Restored::default(), now);
        let show = std::env::var_os("FERRULE_FUZZ_SHOW").is_some();
        store.0.borrow_mut().show = show;
        let links = [const { None }; LINKS];
        Self {
            shard,
            store,
            hook,
            gate,
            limits,
            policy,
            seed,
            now,
            links,
            rules: Vec::new(),
            restored: 0,
            show,
        }
    }

    /// One step of the script.
    fn step(&mut self, input: &mut Input<'_>) {
        let what = input.byte() % 30;
        let which = input.byte();
        let at = usize::from(which) % LINKS;
        // Whether what is sent arrives at once.
        let arrives = which < 0xC0;
        if self.show {
            eprintln!("step {what} connection {at} arrives {arrives} rest {} bytes", input.0.len());
        }
        match what {
            0 => {
                let (bytes, version) = packets::connect(input);
                if let Some(link) = self.link(at) {
                    link.version = version;
                }
                self.send(at, &bytes, arrives);
            }
            1 => {
                let len = input.below(64);
                let bytes = input.bytes(len);
                self.send(at, bytes, arrives);
            }
            2 => {
                let id = packets::packet_id(input);
                self.send_made(at, arrives, |version| packets::publish(input, version, id));
            }
            3 => {
                let id = packets::packet_id(input);
                self.send_made(at, arrives, |version| packets::subscribe(input, version, id));
            }
            4 => {
                let id = packets::packet_id(input);
                self.send_made(at, arrives, |version| packets::unsubscribe(input, version, id));
            }
            5 => self.send_made(at, arrives, |version| packets::any_ack(input, version)),
            6 | 7 => self.answer(at, 1 + input.below(4), what == 7, arrives),
            8 => self.send_made(at, arrives, |_| ferrule_mqtt::PINGREQ.to_vec()),
            9 => self.send_made(at, arrives, |version| packets::disconnect(input, version)),
            10 => self.break_link(at),
            11 => self.turn(),
            12 | 13 => self.rest(),
            14 => self.commit(),
            15 => {
                let ms = input.pick(&[0, 1, 2, 51, 400, 801, 1_001, 10_001, 31_000, 3_600_000, 90_000_000]);
                self.pass(ms);
            }
            16 => {
                if let Some(link) = &mut self.links[at] {
                    link.reads = input.pick(&[Reads::All, Reads::Little, Reads::Nothing]);
                }
            }
            17 => {
                let most = 1 + input.below(32);
                self.arrive(at, most);
            }
            18 => {
                let (place, with) = (usize::from(input.byte()), input.byte());
                if let Some(link) = &mut self.links[at]
                    && !link.wire.is_empty()
                {
                    let place = place % link.wire.len();
                    link.wire[place] ^= with;
                }
            }
            19 => {
                let does = [
                    Does::Pass,
                    Does::Hold,
                    Does::Say(Outcome::Delivered),
                    Does::Say(Outcome::Discarded(Reason::Refused)),
                    Does::Say(Outcome::Retry),
                ];
                self.hook.0.borrow_mut().does = input.pick(&does);
            }
            20 => self.say(input),
            21 => self.gate(input),
            22 => self.late_verdict(input),
            23 => self.trouble(input),
            24 => {
                let filter = input.pick(&FILTERS[..12]);
                match self.rules.iter().position(|known| *known == filter) {
                    Some(hook) => {
                        self.shard.remove_hook_filter(filter, hook as u32);
                        self.rules[hook] = "";
                    }
                    None => {
                        self.shard.add_hook_filter(filter, self.rules.len() as u32);
                        self.rules.push(filter);
                    }
                }
            }
            25 => self.local(input),
            26 => self.crash(),
            27 => self.burst(input, at, arrives),
            28 => {
                // What a quiet minute brings: everyone answers, everything is committed.
                self.commit();
                (0..LINKS).for_each(|at| self.answer(at, 8, false, true));
                self.commit();
            }
            _ => {
                let jump = input.pick(&[-86_400_000, -1_000, 1_000, 86_400_000]);
                self.now.wall_ms += jump;
            }
        }
    }

    // --- clients ---

    /// The connection, opened if there is none; none when there are too many.
    fn link(&mut self, at: usize) -> Option<&mut Link> {
        if self.links[at].is_none() {
            let peer = [127, 0, 0, 1].into();
            let conn = self.shard.open(peer, 0, self.now)?;
            self.links[at] = Some(Link {
                conn,
                client: Monitor::new(),
                version: Version::V3_1_1,
                wire: Vec::new(),
                partial: Vec::new(),
                taken: 0,
                reads: Reads::All,
                next_id: 0,
            });
        }
        self.links[at].as_mut()
    }

    fn send_made(&mut self, at: usize, arrives: bool, make: impl FnOnce(Version) -> Vec<u8>) {
        // Also without a connection, so that the input is read in the same way whatever the shard does.
        let version = self.links[at].as_ref().map_or(Version::V3_1_1, |link| link.version);
        let bytes = make(version);
        self.send(at, &bytes, arrives);
    }

    fn send(&mut self, at: usize, bytes: &[u8], arrives: bool) {
        let Some(link) = self.link(at) else { return };
        link.wire.extend_from_slice(bytes);
        if arrives {
            self.arrive(at, usize::MAX);
        }
    }

    fn arrive(&mut self, at: usize, most: usize) {
        if let Some(link) = &mut self.links[at] {
            let count = most.min(link.wire.len());
            link.partial.extend(link.wire.drain(..count));
            self.offer(at);
        }
    }

    /// Offers what has arrived, as the worker does after a read and when it is told to resume.
    fn offer(&mut self, at: usize) {
        let Some(link) = &mut self.links[at] else { return };
        let taken = self.shard.receive(link.conn, &link.partial, self.now);
        if self.show {
            eprintln!("  {at} takes {taken} of {:02x?}", link.partial);
        }
        assert!(taken <= link.partial.len(), "took more than there is");
        link.client.taken(&link.partial[..taken]);
        link.partial.drain(..taken);
        link.taken += taken;
    }

    /// Answers the server, as a client that keeps to the rules.
    fn answer(&mut self, at: usize, most: usize, newest: bool, arrives: bool) {
        for _ in 0..most {
            let Some(link) = &mut self.links[at] else { return };
            let Some((kind, id)) = link.client.take_due(newest) else { return };
            let bytes = packets::ack(kind, id, ReasonCode::SUCCESS, link.version);
            self.send(at, &bytes, arrives);
        }
    }

    /// Many publishes under ascending packet ids.
    fn burst(&mut self, input: &mut Input<'_>, at: usize, arrives: bool) {
        let count = 1 + input.below(24);
        let same = *input;
        for _ in 0..count {
            let mut again = same;
            let Some(link) = self.link(at) else { break };
            link.next_id = link.next_id % 200 + 1;
            let bytes = packets::publish(&mut again, link.version, link.next_id);
            self.send(at, &bytes, arrives);
        }
        let version = self.links[at].as_ref().map_or(Version::V3_1_1, |link| link.version);
        let _ = packets::publish(input, version, 1);
    }

    fn break_link(&mut self, at: usize) {
        if let Some(link) = self.links[at].take() {
            self.shard.closed(link.conn, self.now);
        }
    }

    // --- the others ---

    fn say(&mut self, input: &mut Input<'_>) {
        let choice = input.byte();
        let outcome = [Outcome::Delivered, Outcome::Discarded(Reason::Refused), Outcome::Retry]
            [usize::from(choice) % 3];
        let mut hook = self.hook.0.borrow_mut();
        for _ in 0..=choice >> 5 {
            let end = if choice & 16 == 0 { hook.held.pop_front() } else { hook.held.pop_back() };
            hook.said.extend(end.map(|end| (end, outcome)));
        }
    }

    fn gate(&self, input: &mut Input<'_>) {
        let flags = input.byte();
        let mut gate = self.gate.0.lock().unwrap_or_else(PoisonError::into_inner);
        gate.later = flags & 3 == 1;
        gate.refuse = flags & 3 == 2;
        gate.edge = flags & 4 != 0;
        gate.rights =
            Rights { publish: flags & 8 != 0, subscribe: flags & 16 != 0, receive: flags & 32 != 0 };
        gate.life = (flags & 64 != 0).then_some(flags >> 7);
    }

    fn late_verdict(&mut self, input: &mut Input<'_>) {
        let flags = input.byte();
        let mut gate = self.gate.0.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = if flags & 1 == 0 { gate.asked.pop_front() } else { gate.asked.pop_back() };
        let Some((conn, username)) = asked else { return };
        let verdict = gate.verdict(username);
        drop(gate);
        self.shard.admitted(conn, verdict, self.now);
    }

    fn trouble(&mut self, input: &mut Input<'_>) {
        let flags = input.byte();
        let mut store = self.store.0.borrow_mut();
        let failing = flags & 1 != 0;
        store.low_on_space = flags & 2 != 0;
        let changed = std::mem::replace(&mut store.failing, failing) != failing;
        drop(store);
        if changed {
            let event =
                if failing { StoreEvent::Failing { message: "full".into() } } else { StoreEvent::Recovered };
            self.shard.store_event(event, self.now);
        }
    }

    fn local(&mut self, input: &mut Input<'_>) {
        let flags = input.byte();
        let len = input.below(40);
        let mut hook = self.hook.0.borrow_mut();
        let end = if flags & 4 != 0 { hook.held.pop_front() } else { None };
        hook.local.push_back(LocalPublish {
            // A hook's topics are valid; one of these is too deep.
            topic: (*input.pick(&TOPICS[..6])).into(),
            payload: vec![b'l'; len].into(),
            qos: [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce][usize::from(flags) % 3],
            retain: flags & 8 != 0,
            properties: PropertiesBuf::new(),
            publisher: Arc::new(Publisher {
                client_id: "rule".into(),
                username: None,
                host: None,
                role: Role::Device,
            }),
            received: self.now.stamp(),
            hops: flags >> 4,
            path: 0,
            attachment: None,
            hold: flags & 1 != 0,
            end,
        });
    }

    fn pass(&mut self, ms: u64) {
        self.now.mono_us += ms * 1_000;
        self.now.wall_ms += ms as i64;
        self.turn();
    }

    fn commit(&mut self) {
        self.rest();
        let mut store = self.store.0.borrow_mut();
        if !store.failing {
            store.memory.commit();
        }
        drop(store);
        self.rest();
    }

    /// Power cut and restart: connections, ends and what was not committed are gone.
    fn crash(&mut self) {
        self.check();
        self.store.0.borrow_mut().failing = false;
        let restored = self.store.0.borrow_mut().memory.crash();
        self.links = [const { None }; LINKS];
        self.hook = ScriptedHook::default();
        self.gate.0.lock().unwrap_or_else(PoisonError::into_inner).asked.clear();
        self.seed += 1;
        // The monotonic clock starts anew.
        self.now.mono_us = 5_000;
        self.restored = restored.sessions.len();
        let parts = (&self.store, &self.hook, &self.gate);
        self.shard = make(parts, &self.limits, self.policy, self.seed, &restored, self.now);
        for (hook, filter) in self.rules.iter().enumerate().filter(|(_, filter)| !filter.is_empty()) {
            self.shard.add_hook_filter(filter, hook as u32);
        }
        self.rest();
    }

    // --- the worker ---

    /// One turn, as the worker makes it.
    fn turn(&mut self) {
        let events = self.store.0.borrow_mut().memory.take_events();
        for event in events {
            self.shard.store_event(event, self.now);
        }
        self.obey();
        self.shard.end_turn(self.now);
        self.obey();
        let mut dirty = Vec::new();
        self.shard.take_dirty(&mut dirty);
        // Those with output left over are writable again when their client reads.
        for at in 0..LINKS {
            self.write(at);
        }
        for conn in dirty {
            assert!(self.at(conn).is_some(), "output of a connection that has gone");
        }
        self.check();
    }

    /// Turns until the shard wants none at once.
    fn rest(&mut self) {
        for _ in 0..REST {
            self.turn();
            let events = self.store.0.borrow_mut().memory.take_events();
            let idle = events.is_empty();
            for event in events {
                self.shard.store_event(event, self.now);
            }
            if idle && self.shard.next_wake_us().is_none_or(|at| at > self.now.mono_us) {
                return;
            }
        }
        panic!("the shard never rests: it wants a turn at {:?} of {:?}", self.shard.next_wake_us(), self.now);
    }

    fn at(&self, conn: ConnId) -> Option<usize> {
        self.links.iter().position(|link| link.as_ref().is_some_and(|link| link.conn == conn))
    }

    fn obey(&mut self) {
        for command in self.shard.take_commands() {
            let (Command::Resume(conn) | Command::Close(conn) | Command::Move(conn, _)) = command;
            let Some(at) = self.at(conn) else { continue };
            match command {
                Command::Resume(_) => self.offer(at),
                Command::Move(..) => unreachable!("there is one shard"),
                Command::Close(_) => {
                    self.write(at);
                    self.shard.closed(conn, self.now);
                    if let Some(link) = self.links[at].take()
                        && link.reads == Reads::All
                    {
                        link.client.ended();
                    }
                }
            }
        }
    }

    fn write(&mut self, at: usize) {
        let Some(link) = &mut self.links[at] else { return };
        let Some(out) = self.shard.output(link.conn) else { return };
        let count = match link.reads {
            Reads::All => out.len(),
            Reads::Little => out.len().min(TRICKLE),
            Reads::Nothing => 0,
        };
        if count > 0 {
            if self.show {
                eprintln!("  {at} is written {:02x?}", &out[..count]);
            }
            link.client.wrote(&out[..count]);
            out.drain(..count);
            self.shard.wrote(link.conn, self.now);
        }
    }

    /// What holds after every turn.
    fn check(&mut self) {
        let [conns, sessions, filters, retained, receipts, lost] = self.shard.sizes();
        let stats = self.shard.stats();
        let limits = &self.limits;
        let rules = self.rules.iter().filter(|rule| !rule.is_empty()).count();
        assert_eq!(lost, 0, "lost ends");
        let open = self.links.iter().flatten().count();
        assert_eq!(conns, open, "connections of the shard and of the worker");
        assert!(conns <= limits.connections);
        assert!(conns > 0 || self.shard.buffered() == 0, "{} bytes of nobody", self.shard.buffered());
        // Those that were found at the start, and one for each connection since.
        let most = self.restored + usize::try_from(stats.connected).unwrap_or(usize::MAX);
        assert!(sessions <= most, "{sessions} sessions");
        assert!(
            filters <= sessions * limits.clients[0].subscriptions + rules,
            "{filters} filters, {sessions} sessions"
        );
        assert!(retained <= limits.retained_messages, "{retained} retained");
        // One a message received, and one a will: what a will becomes is committed together.
        assert!(receipts as u64 <= stats.received + most as u64, "{receipts} receipts");
        for link in self.links.iter().flatten() {
            // Beyond twice the limit nothing more of it is heard; one packet may have gone beyond, and what a resumed session is
            // sent again.
            let most = 2 * limits.clients[0].output_bytes
                + limits.clients[0].packet_bytes * 2
                + usize::from(limits.clients[0].inflight_max) * 8
                + 256;
            let bytes = self.shard.output(link.conn).map_or(0, |out| out.len());
            assert!(bytes <= most, "{bytes} bytes of output");
        }
    }

    /// All goes, all is committed, all expires.
    fn finish(mut self, for_ever: bool) {
        self.rest();
        {
            let mut store = self.store.0.borrow_mut();
            (store.failing, store.low_on_space) = (false, false);
        }
        for at in 0..LINKS {
            if let Some(link) = &mut self.links[at] {
                link.reads = Reads::All;
            }
        }
        self.commit();
        (0..LINKS).for_each(|at| self.break_link(at));
        let settle = |stage: &mut Self| {
            for _ in 0..4 {
                let mut hook = stage.hook.0.borrow_mut();
                let held = std::mem::take(&mut hook.held);
                hook.said.extend(held.into_iter().map(|end| (end, Outcome::Delivered)));
                drop(hook);
                stage.commit();
                stage.pass(1_001);
                stage.commit();
            }
        };
        settle(&mut self);
        self.same_in_store();
        self.crash();
        settle(&mut self);
        self.same_in_store();
        if for_ever {
            return;
        }
        // Twice the longest life: one for the session, one for a will that outlives it by nothing.
        for _ in 0..2 {
            self.pass(u64::from(DAY_S) * 1_000 + 1);
            settle(&mut self);
        }
        self.same_in_store();
        let [conns, sessions, filters, _, receipts, lost] = self.shard.sizes();
        let rules = self.rules.iter().filter(|rule| !rule.is_empty()).count();
        assert_eq!(
            (conns, sessions, filters, receipts, lost),
            (0, 0, rules, 0, 0),
            "left when all has expired"
        );
        let store = self.store.0.borrow();
        let restored = store.memory.restored();
        assert!(restored.inflight.is_empty(), "packet ids of nobody: {:?}", restored.inflight);
        assert!(restored.queues.is_empty(), "queues of nobody: {:?}", restored.queues);
        assert_eq!(store.memory.shared_bodies(), 0, "bodies of nobody");
    }

    /// The store holds what memory holds.
    fn same_in_store(&mut self) {
        let [_, sessions, filters, retained, ..] = self.shard.sizes();
        let rules = self.rules.iter().filter(|rule| !rule.is_empty()).count();
        let restored = self.store.0.borrow().memory.restored();
        assert_eq!(restored.sessions.len(), sessions, "sessions in the store and in memory");
        // A plain and an exclusive subscription of a session to one filter lead the same way; to a group of a shared one all its
        // members do.
        let way = |id, filter: &str| match topic::shared(filter) {
            Some(_) => (None, filter.to_owned()),
            None => (Some(id), topic::plain(filter).to_owned()),
        };
        let ways: BTreeSet<_> =
            restored.subscriptions.iter().map(|(id, filter, _)| way(*id, filter)).collect();
        assert_eq!(ways.len() + rules, filters, "subscriptions in the store and in memory");
        // What was cleared is remembered, for other nodes.
        let kept = restored.retained.iter().filter(|(_, _, record)| !record.is_empty()).count();
        assert_eq!(kept, retained, "retained messages in the store and in memory");
        let known = |id| restored.sessions.iter().any(|(session, _)| *session == id);
        assert!(restored.inflight.iter().all(|(id, ..)| known(*id)), "a packet id of nobody");
        let is_known = |queue: QueueId| queue.as_delayed().is_some() || queue.as_session().is_some_and(known);
        assert!(restored.queues.iter().all(|q| is_known(q.queue)), "a queue of nobody");
    }
}
