//! Shards on a bench: scripts of packets in and packets out, commits and crashes where the script says. Each script
//! runs on one shard and on three.
//!
//! A script is a line a step. Connections are named by a letter or word and exist from their first packet on.
//!
//! ```text
//! a> connect id=a v=5 clean=0 expiry=100     bytes in (v=4 and clean=1 unless said)
//! a< connack sp=0                            the next packet out, exactly
//! a< -                                       nothing more came out
//! a! closed                                  the shard closed the connection, after the packets above
//! commit | wait 500 | crash | drop a         the store commits; milliseconds pass; power cut; the socket breaks
//! rule a/#  | hold | pass | discard | retry  a hook on a filter; what it does with its ends from now on
//! resolve delivered|retry|discarded          the oldest end that the hook holds
//! deny publish|subscribe|receive x           the gate's access rules for clients admitted from now on
//! allow all                                  it denies nothing to them
//! review                                     the gate's rules of now are for those, too, who are connected; `refuse` but for client id `stays`
//! unlisten 1                                 the listener is gone
//! gate later | gate refuse | admit a | refuse a
//! listener a 1                               which listener it comes to from now on; 0 unless said
//! clock -604800000                           somebody sets the wall clock, by so many milliseconds
//! reads a 0 | reads a 100 | reads a all      how many bytes it takes each time that it has output, from now on
//! overload on | overload off                 the process has too little memory
//! count oversized 1                          so often in all shards ([`ferrule_broker::Stats`])
//! ```
//! At the end of a script every packet must have been looked at, and no end may be lost.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]
#![allow(clippy::unwrap_used, reason = "tests")]

use ferrule_batch::{Encoder, Item, REFUSED_NAME};
use ferrule_broker::shard::Parts;
use ferrule_broker::{
    Access, ClientLimits, Command, ConnId, ConnectRequest, Ends, Exchange, Features, Gate, Grant, Hook,
    Limits, LocalPublish, Message, Place, Refusal, Role, RowElsewhere, Shard, Standing, Step, Which,
    introduce,
};
use ferrule_mqtt::{
    Ack, AckType, Auth, Connect, Disconnect, Packet, Properties, PropertiesBuf, Property, Publish, QoS,
    ReasonCode, Subscribe, SubscribeFiltersBuf, SubscribeOptions, Unsubscribe, UnsubscribeFiltersBuf,
    Version, Will, decode, topic,
};
use ferrule_outbox::{End, Outcome, Policy, Reason};
use ferrule_store::{
    Boot, JointPart, MemoryStore, MessageId, Now, Op, QueueId, Restored, SessionId, Store, StoredRow, Ticket,
};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// With what was asked of it about rules that remember something.
#[derive(Clone, Default)]
pub struct SharedStore(pub Rc<RefCell<MemoryStore>>, pub Rc<RefCell<Vec<Asked>>>);

#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    Keep(Vec<u64>),
    Give(u64, u64),
}

impl Store for SharedStore {
    fn submit(&mut self, ops: Vec<Op>) -> Ticket {
        self.0.borrow_mut().submit(ops)
    }
    fn submit_joint(&mut self, ops: Vec<Op>, parts: Vec<JointPart>) -> Ticket {
        self.0.borrow_mut().submit_joint(ops, parts)
    }
    fn read(&mut self, queue: QueueId, from: u64, max_rows: u32, max_bytes: u32) {
        self.0.borrow_mut().read(queue, from, max_rows, max_bytes);
    }
    fn pending_bytes(&self) -> usize {
        self.0.borrow().pending_bytes()
    }
    fn take(
        &mut self,
        client_id: &str,
        given_up: Option<(SessionId, u64)>,
        new: Option<(SessionId, bytes::Bytes)>,
    ) {
        self.0.borrow_mut().take(client_id, given_up, new);
    }
    fn adopt(&mut self, view: u64) {
        self.0.borrow_mut().adopt(view);
    }
    fn keep(&mut self, rules: Vec<u64>) {
        self.1.borrow_mut().push(Asked::Keep(rules));
    }
    fn give(&mut self, rule: u64, round: u64) {
        self.1.borrow_mut().push(Asked::Give(rule, round));
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Does {
    #[default]
    Pass,
    Hold,
    Now(Option<Outcome>),
}

#[derive(Default)]
pub struct HookState {
    pub does: Does,
    /// With the QoS of their publishes and their shard.
    pub held: VecDeque<(QoS, Option<End>, u16)>,
    pub said: Vec<(End, Outcome, u16)>,
    pub local: VecDeque<LocalPublish>,
    /// Each publish seen.
    pub seen: Vec<String>,
    /// Rules that are run here on the messages of all nodes.
    pub keeps: Vec<u64>,
    /// One that is to be given away.
    pub giving: Option<(u64, u64)>,
    /// What was said of such rules elsewhere: by whom, and what.
    pub kept_elsewhere: Vec<(u16, Option<(u64, bool)>)>,
    /// To be sent.
    pub rows: Vec<RowElsewhere>,
    /// Those of others are taken, and not to be tried again.
    pub takes_rows: bool,
}

/// Of a shard; the state is all shards'.
#[derive(Clone, Default)]
pub struct ScriptedHook(pub Rc<RefCell<HookState>>, u16);

impl Hook for ScriptedHook {
    fn publish(&mut self, message: &Message<'_>, _: &[u32], ends: &mut Ends<'_>, _: Now) {
        let mut state = self.0.borrow_mut();
        let hold = if message.hold { " hold" } else { "" };
        state.seen.push(format!("{} q{}{hold}", message.topic, message.qos));
        match state.does {
            Does::Pass => {}
            Does::Hold => state.held.push_back((message.qos, ends.end(), self.1)),
            Does::Now(Some(outcome)) => ends.discard(outcome),
            Does::Now(None) => drop(ends.end()),
        }
    }
    fn next_local(&mut self) -> Option<LocalPublish> {
        self.0.borrow_mut().local.pop_front()
    }
    fn giving(&mut self, rule: u64, round: u64) {
        self.0.borrow_mut().giving = Some((rule, round));
    }
    fn given(&mut self) -> Option<(u64, u64)> {
        self.0.borrow_mut().giving.take()
    }
    fn keeps(&self) -> Vec<u64> {
        self.0.borrow().keeps.clone()
    }
    fn kept_elsewhere(&mut self, peer: u16, rule: Option<(u64, bool)>) {
        self.0.borrow_mut().kept_elsewhere.push((peer, rule));
    }
    fn row(&mut self, _: &[u8], ends: &mut Ends<'_>, _: Now) {
        if !self.0.borrow().takes_rows {
            ends.discard(Outcome::Retry);
        }
    }
    fn take_rows(&mut self) -> Vec<RowElsewhere> {
        std::mem::take(&mut self.0.borrow_mut().rows)
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
        let mut state = self.0.borrow_mut();
        let (own, rest) = std::mem::take(&mut state.said).into_iter().partition(|(.., of)| *of == self.1);
        state.said = rest;
        let own: Vec<_> = own;
        ended.extend(own.into_iter().map(|(end, outcome, _)| (end, outcome)));
    }
}

#[derive(Debug, Clone, Default)]
pub struct Denies {
    publish: Vec<String>,
    subscribe: Vec<String>,
    receive: Vec<String>,
}

impl Access for Denies {
    fn publish(&self, topic: &str) -> bool {
        let topic = topic::delayed(topic).map_or(topic, |(_, topic)| topic);
        !topic.starts_with('$') && !self.publish.iter().any(|t| t == topic)
    }
    fn subscribe(&self, filter: &str) -> bool {
        let filter = topic::plain(filter);
        !self.subscribe.iter().any(|t| t == filter)
    }
    fn receive(&self, topic: &str) -> bool {
        !self.receive.iter().any(|t| t == topic)
    }
    fn reads(&self, topic: &str) -> bool {
        !self.subscribe.iter().any(|t| topic::matches(t, topic))
    }
}

#[derive(Debug, Default)]
pub struct GateState {
    pub later: bool,
    pub refuse: bool,
    pub edge: bool,
    pub denies: Denies,
    users: BTreeMap<At, Option<Arc<str>>>,
}

struct ScriptedGate(Arc<Mutex<GateState>>, u16);

/// A connection: its shard, and its id there.
pub type At = (u16, u64);

impl GateState {
    fn grant(&self, at: At) -> Grant {
        Grant {
            role: if self.edge { Role::Edge("edge-1".into()) } else { Role::Device },
            username: self.users.get(&at).cloned().flatten(),
            access: Arc::new(self.denies.clone()),
            properties: PropertiesBuf::new(),
            life: None,
        }
    }
}

impl Gate for ScriptedGate {
    fn admit(&mut self, conn: ConnId, request: &ConnectRequest<'_>) -> Option<Result<Grant, Refusal>> {
        let mut state = self.0.lock().unwrap();
        let at = (self.1, conn.to_bits());
        state.users.insert(at, request.username.map(Into::into));
        if state.later {
            return None;
        }
        if state.refuse {
            return Some(Err(refusal()));
        }
        Some(Ok(state.grant(at)))
    }

    fn exchange(&mut self, request: &ConnectRequest<'_>, method: &str) -> Option<Box<dyn Exchange>> {
        let from = request.username.map(Into::into);
        (method == "STEPS").then(|| Box::new(Steps { state: Arc::clone(&self.0), steps: 0, from }) as _)
    }

    fn review(&mut self, client: &Standing<'_>) -> Option<Result<Arc<dyn Access>, Refusal>> {
        let state = self.0.lock().unwrap();
        let is_gone = state.refuse && client.client_id != "stays";
        Some(if is_gone { Err(refusal()) } else { Ok(Arc::new(state.denies.clone())) })
    }
}

/// "one", which is answered "and?", then the user's name, which nobody proves.
#[derive(Debug)]
struct Steps {
    state: Arc<Mutex<GateState>>,
    steps: u8,
    from: Option<String>,
}

impl Exchange for Steps {
    fn step(&mut self, data: &[u8]) -> Step {
        self.steps += 1;
        match (self.steps, data) {
            (1, b"one") => Step::Continue("and?".into()),
            (2, name) if name != b"wrong" => {
                assert_eq!(self.from, None);
                let mut grant = self.state.lock().unwrap().grant((0, u64::MAX));
                grant.username = Some(std::str::from_utf8(name).unwrap().into());
                Step::Done(Box::new(grant), "welcome".into())
            }
            // What a CONNACK can say, and a DISCONNECT cannot.
            _ => Step::Refused(Refusal { reason: ReasonCode::BAD_USER_NAME_OR_PASSWORD, ..refusal() }),
        }
    }
}

fn refusal() -> Refusal {
    Refusal { reason: ReasonCode::NOT_AUTHORIZED, message: "no".into() }
}

/// One connection as its peer sees it.
#[derive(Default)]
pub struct Peer {
    pub conn: Option<(u16, ConnId)>,
    pub version: Option<Version>,
    /// Offered and not taken.
    input: Vec<u8>,
    /// Came out and was not decoded.
    output: Vec<u8>,
    pub packets: VecDeque<String>,
    /// Reason Strings, in the order in which they came.
    pub reasons: Vec<String>,
    pub closed: bool,
}

/// When a rig starts, if nothing else is said.
pub const START: Now = Now { mono_us: 1_000_000, wall_ms: 1_700_000_000_000 };

pub type TestShard = Shard<ScriptedHook, SharedStore>;

pub struct Rig {
    pub shards: Vec<TestShard>,
    pub store: SharedStore,
    pub hook: ScriptedHook,
    pub gate: Arc<Mutex<GateState>>,
    pub limits: Limits,
    pub features: Arc<Features>,
    pub policy: Policy,
    pub now: Now,
    pub peers: BTreeMap<String, Peer>,
    /// Shards of which a client has got a packet or lost its connection, for whoever takes them out when it has looked.
    pub spoke: BTreeSet<u16>,
    rules: Vec<String>,
    seed: u64,
    /// Without, parcels arrive at once.
    pub wire: Option<Wire>,
    /// How many shards of other nodes each shard knows of, and what it has for them: from, to, parcels.
    pub abroad: u16,
    pub mail: VecDeque<(u16, u16, Vec<u8>)>,
    /// What shards of this node have for each other is there, too.
    pub mails_all: bool,
    /// Whether the node may acknowledge, at the beginning of turns and at their ends; none: it is alone.
    pub may: Option<(bool, bool)>,
    /// How long its shards are made, before they hear of each other.
    pub making_ms: u64,
    /// Not the first, by connection.
    listeners: BTreeMap<String, u16>,
    /// Not all, by connection.
    reads: BTreeMap<String, usize>,
}

/// Links between shards that take their time: each keeps its order, and what goes over one overtakes what goes over another.
pub struct Wire {
    /// The longest delay; one in eight is ten times as long.
    pub max_us: u64,
    /// Bytes are cut anywhere, as a stream between nodes would.
    pub cut: bool,
    random: u64,
    links: BTreeMap<(u16, u16), Stream>,
}

#[derive(Default)]
struct Stream {
    under_way: VecDeque<(u64, Vec<u8>)>,
    /// Offered and not taken.
    rest: Vec<u8>,
}

impl Wire {
    pub fn new(max_us: u64, cut: bool, seed: u64) -> Self {
        Self { max_us, cut, random: seed, links: BTreeMap::new() }
    }

    /// Splitmix64.
    fn below(&mut self, n: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    fn push(&mut self, from: u16, to: u16, mut batch: Vec<u8>, now_us: u64) {
        while !batch.is_empty() {
            let size = if self.cut { 1 + self.below(batch.len() as u64) as usize } else { batch.len() };
            let rest = batch.split_off(size);
            let scale = if self.below(8) == 0 { 10 } else { 1 };
            let due_us = now_us + scale * self.below(self.max_us + 1);
            let queue = &mut self.links.entry((from, to)).or_default().under_way;
            let due_us = due_us.max(queue.back().map_or(0, |(last_us, _)| *last_us));
            queue.push_back((due_us, std::mem::replace(&mut batch, rest)));
        }
    }

    fn take_due(&mut self, now_us: u64) -> Option<(u16, u16, Vec<u8>)> {
        self.links.iter_mut().find_map(|(&(from, to), stream)| {
            let (_, bytes) = stream.under_way.pop_front_if(|(due_us, _)| *due_us <= now_us)?;
            Some((from, to, bytes))
        })
    }

    /// Nothing is under way, and nothing is incomplete.
    pub fn is_idle(&self) -> bool {
        self.links.values().all(|stream| stream.under_way.is_empty() && stream.rest.is_empty())
    }
}

pub fn limits() -> ClientLimits {
    ClientLimits { receive_max: 4, waiting_max: 6, ..ClientLimits::default() }
}

impl Rig {
    /// So many shards, with what is off by default.
    pub fn with(features: Features, of: u16) -> Self {
        let mut rig = Self::of(limits(), of);
        rig.features = features.into();
        let restored = rig.store.0.borrow().restored();
        rig.start(of, &restored);
        rig
    }

    /// One shard.
    pub fn new(limits: impl Into<Limits>) -> Self {
        Self::of(limits, 1)
    }

    /// So many shards.
    pub fn of(limits: impl Into<Limits>, of: u16) -> Self {
        Self::seeded(limits, of, 1)
    }

    /// So many shards of a process that has drawn this number.
    pub fn seeded(limits: impl Into<Limits>, of: u16, seed: u64) -> Self {
        Self::over(limits, of, seed, MemoryStore::new(), START)
    }

    /// The same, over a store that may hold something.
    pub fn over(limits: impl Into<Limits>, of: u16, seed: u64, store: MemoryStore, now: Now) -> Self {
        let mut rig = Self {
            shards: Vec::new(),
            store: SharedStore(Rc::new(RefCell::new(store)), Rc::default()),
            hook: ScriptedHook::default(),
            gate: Arc::new(Mutex::new(GateState::default())),
            limits: limits.into(),
            features: Arc::default(),
            policy: Policy::EDGE,
            now,
            peers: BTreeMap::new(),
            spoke: BTreeSet::new(),
            rules: Vec::new(),
            seed,
            wire: None,
            abroad: 0,
            mail: VecDeque::new(),
            mails_all: false,
            may: None,
            making_ms: 0,
            listeners: BTreeMap::new(),
            reads: BTreeMap::new(),
        };
        let restored = rig.store.0.borrow().restored();
        rig.start(of, &restored);
        rig
    }

    fn start(&mut self, of: u16, restored: &Restored) {
        let shard = |index| {
            let parts = Parts {
                hook: ScriptedHook(Rc::clone(&self.hook.0), index),
                store: self.store.clone(),
                gate: Box::new(ScriptedGate(Arc::clone(&self.gate), index)),
                limits: self.limits.clone(),
                features: Arc::clone(&self.features),
                policy: self.policy,
                seed: self.seed,
                place: Place { index, of, seed: self.seed },
            };
            Shard::new(parts, restored, self.now)
        };
        self.shards = (0..of).map(shard).collect();
        self.wait_only(self.making_ms);
        introduce(&mut self.shards, self.now).unwrap();
    }

    /// The only shard.
    pub fn shard(&mut self) -> &mut TestShard {
        assert_eq!(self.shards.len(), 1);
        &mut self.shards[0]
    }

    /// Open receipts, ends lost to bugs: of all shards.
    pub fn receipts(&self) -> (usize, usize) {
        let sizes = self.shards.iter().map(TestShard::sizes);
        sizes.fold((0, 0), |(open, lost), [.., o, l]| (open + o, lost + l))
    }

    /// A count of all shards, by its name in [`ferrule_broker::Stats`].
    pub fn count(&self, name: &str) -> u64 {
        let count = |shard: &TestShard| {
            let shown = format!("{:?}", shard.stats());
            let (_, rest) =
                shown.split_once(&format!(" {name}: ")).unwrap_or_else(|| panic!("no count {name}"));
            rest.split([',', ' ']).next().unwrap().parse::<u64>().unwrap()
        };
        self.shards.iter().map(count).sum()
    }

    fn add_rule(&mut self, filter: &str, index: u32) {
        self.shards.iter_mut().for_each(|shard| shard.add_hook_filter(filter, index));
    }

    pub fn rule(&mut self, filter: &str) {
        self.add_rule(filter, self.rules.len() as u32);
        self.rules.push(filter.into());
    }

    /// How client ids are shared out in this life.
    pub fn place(&self) -> Place {
        Place { index: 0, of: self.shards.len() as u16, seed: self.seed }
    }

    /// Power cut and restart: connections, ends and what was not committed are gone.
    pub fn crash(&mut self) {
        self.crash_into(self.shards.len() as u16);
    }

    /// The same, and there are so many shards afterwards.
    pub fn crash_into(&mut self, of: u16) {
        let restored = self.store.0.borrow_mut().crash();
        self.peers.clear();
        self.wire.iter_mut().for_each(|wire| wire.links.clear());
        self.hook = ScriptedHook::default();
        self.seed += 1;
        // The monotonic clock starts anew.
        self.now.mono_us = 5_000;
        self.start(of, &restored);
        for (index, filter) in self.rules.clone().iter().enumerate() {
            self.add_rule(filter, index as u32);
        }
        self.turn();
    }

    pub fn peer(&mut self, name: &str) -> &mut Peer {
        self.peers.entry(name.into()).or_default()
    }

    /// Bytes in; opens the connection if there is none.
    pub fn bytes(&mut self, name: &str, bytes: &[u8]) {
        let now = self.now;
        // Any of them accepts.
        let first = name.len() % self.shards.len();
        let peer = self.peers.entry(name.into()).or_default();
        if peer.conn.is_none() {
            *peer = Peer::default();
            let listener = self.listeners.get(name).copied().unwrap_or(0);
            peer.conn = self.shards[first].open(HOST, listener, now).map(|conn| (first as u16, conn));
            peer.closed = peer.conn.is_none();
            self.spoke.insert(first as u16);
        }
        peer.input.extend_from_slice(bytes);
        self.offer(name);
    }

    fn offer(&mut self, name: &str) {
        self.begin_turns();
        let Some(peer) = self.peers.get_mut(name) else { return };
        let Some((shard, conn)) = peer.conn else { return };
        let taken = self.shards[usize::from(shard)].receive(conn, &peer.input, self.now);
        peer.input.drain(..taken);
    }

    fn begin_turns(&mut self) {
        let Some((may, _)) = self.may else { return };
        self.shards.iter_mut().for_each(|shard| shard.begin_turn(may, self.now.mono_us));
    }

    fn name_of(&self, at: (u16, ConnId)) -> Option<String> {
        self.peers.iter().find(|(_, p)| p.conn == Some(at)).map(|(name, _)| name.clone())
    }

    /// Turns as workers make them, until nothing is left to do.
    pub fn turn(&mut self) {
        for round in 0.. {
            assert!(round < 100, "the shards never rest");
            self.take_events();
            self.hear_wire();
            for index in 0..self.shards.len() as u16 {
                self.turn_one(index);
            }
            let now_us = self.now.mono_us;
            if self.shards.iter().all(|s| s.next_wake_us().is_none_or(|at| at > now_us))
                && !self.take_events()
                && !self.hear_wire()
            {
                return;
            }
        }
    }

    /// What the store says is every shard's; false when it said nothing.
    fn take_events(&mut self) -> bool {
        let events = self.store.0.borrow_mut().take_events();
        for event in &events {
            for shard in &mut self.shards {
                shard.store_event(event.clone(), self.now);
            }
        }
        !events.is_empty()
    }

    /// What has come over the links; false when nothing has.
    fn hear_wire(&mut self) -> bool {
        let mut heard = false;
        let now = self.now;
        let Some(wire) = &mut self.wire else { return false };
        while let Some((from, to, bytes)) = wire.take_due(now.mono_us) {
            heard = true;
            let rest = &mut wire.links.entry((from, to)).or_default().rest;
            rest.extend_from_slice(&bytes);
            let taken = self.shards[usize::from(to)].parcels(from, rest, now).unwrap();
            rest.drain(..taken);
            assert!(wire.cut || rest.is_empty(), "a whole batch is taken whole");
        }
        heard
    }

    /// One turn of one shard.
    pub fn turn_one(&mut self, index: u16) {
        let now = self.now;
        let this = usize::from(index);
        let mut closing = Vec::new();
        if let Some((begins, ends)) = self.may {
            self.shards[this].begin_turn(begins, now.mono_us);
            self.obey(index, &mut closing);
            self.shards[this].end_turn_if(now, || ends);
            self.obey(index, &mut closing);
            self.shards[this].judge(ends);
        } else {
            self.shards[this].end_turn(now);
        }
        self.obey(index, &mut closing);
        for to in 0..self.shards.len() as u16 {
            if let Some(batch) = self.shards[this].take_parcels(to) {
                if self.mails_all {
                    self.mail.push_back((index, to, batch));
                    continue;
                }
                if let Some(wire) = &mut self.wire {
                    wire.push(index, to, batch, now.mono_us);
                    continue;
                }
                let taken = self.shards[usize::from(to)].parcels(index, &batch, now);
                assert_eq!(taken, Ok(batch.len()));
            }
        }
        let here = self.shards.len() as u16;
        for to in here..here + self.abroad {
            let batches = [self.shards[this].take_control(to), self.shards[this].take_parcels(to)];
            self.mail.extend(batches.into_iter().flatten().map(|batch| (index, to, batch)));
        }
        let mut dirty = Vec::new();
        self.shards[this].take_dirty(&mut dirty);
        for conn in dirty {
            self.flush((index, conn), false);
        }
        for conn in closing {
            self.flush((index, conn), true);
            self.shards[this].closed(conn, now);
            if let Some(name) = self.name_of((index, conn)) {
                let peer = self.peer(&name);
                (peer.conn, peer.closed) = (None, true);
                self.spoke.insert(index);
            }
        }
    }

    fn obey(&mut self, index: u16, closing: &mut Vec<ConnId>) {
        let now = self.now;
        let this = usize::from(index);
        for command in self.shards[this].take_commands() {
            match command {
                Command::Resume(conn) => {
                    self.name_of((index, conn)).into_iter().for_each(|name| self.offer(&name))
                }
                Command::Close(conn) => closing.push(conn),
                Command::Move(conn, to) => {
                    // It may have been cut since.
                    let Some((_, listener, _)) = self.shards[this].describe(conn) else { continue };
                    self.shards[this].closed(conn, now);
                    let Some(name) = self.name_of((index, conn)) else { continue };
                    let moved = self.shards[usize::from(to)].open(HOST, listener, now);
                    self.peer(&name).conn = moved.map(|conn| (to, conn));
                    self.offer(&name);
                }
            }
        }
    }

    /// Its peer reads, as much as it does; `last`: all, since nothing more comes.
    fn flush(&mut self, at: (u16, ConnId), last: bool) {
        let Some(name) = self.name_of(at) else { return };
        let reads = self.reads.get(&name).copied().filter(|_| !last).unwrap_or(usize::MAX);
        let shard = &mut self.shards[usize::from(at.0)];
        let Some(out) = shard.output(at.1) else { return };
        let bytes: Vec<u8> = out.drain(..out.len().min(reads)).collect();
        if bytes.is_empty() {
            return;
        }
        shard.wrote(at.1, self.now);
        let peer = self.peers.get_mut(&name).unwrap();
        peer.output.extend_from_slice(&bytes);
        while let Some((packet, size)) =
            decode(&peer.output, Some(peer.version.unwrap_or(Version::V3_1_1)), usize::MAX)
                .unwrap_or_else(|e| panic!("the shard sent {:02x?}: {e}", peer.output))
        {
            packet.check_sender(ferrule_mqtt::Side::Server, peer.version.unwrap_or(Version::V3_1_1)).unwrap();
            let said = match &packet {
                Packet::Suback(p) => p.properties.reason_string(),
                Packet::Connack(p) => p.properties.reason_string(),
                Packet::Disconnect(p) => p.properties.reason_string(),
                _ => None,
            };
            peer.reasons.extend(said.map(str::to_owned));
            let text = show(&packet);
            peer.packets.push_back(text);
            self.spoke.insert(at.0);
            peer.output.drain(..size);
        }
    }

    pub fn wait_us(&mut self, us: u64) {
        self.now.mono_us += us;
        self.now.wall_ms += (us / 1_000) as i64;
        self.turn();
    }

    pub fn wait(&mut self, ms: u64) {
        self.wait_only(ms);
        self.turn();
    }

    pub fn commit(&mut self) {
        // With several shards one commit may lead to the next.
        for _ in 0..self.shards.len() {
            self.store.0.borrow_mut().commit();
            self.turn();
        }
    }

    /// A commit without a turn.
    pub fn commit_only(&mut self) {
        self.store.0.borrow_mut().commit();
        self.take_events();
    }

    /// The socket breaks.
    pub fn drop_peer(&mut self, name: &str) {
        self.cut_peer(name);
        self.turn();
    }

    /// The same, and no turn follows.
    pub fn cut_peer(&mut self, name: &str) {
        if let Some((shard, conn)) = self.peer(name).conn.take() {
            self.shards[usize::from(shard)].closed(conn, self.now);
        }
        self.peers.remove(name);
    }

    /// Time passes, and no turn follows.
    pub fn wait_only(&mut self, ms: u64) {
        self.now.mono_us += ms * 1_000;
        self.now.wall_ms += ms as i64;
    }

    pub fn send(&mut self, name: &str, line: &str) {
        let version = self.peer(name).version;
        let (bytes, version) = parse(line, version);
        self.bytes(name, &bytes);
        self.peer(name).version = Some(version);
        self.now.mono_us += 100;
        self.turn();
    }

    pub fn resolve(&mut self, outcome: Outcome) {
        let mut hook = self.hook.0.borrow_mut();
        let (_, end, shard) = hook.held.pop_front().expect("the hook holds an end");
        hook.said.extend(end.map(|end| (end, outcome, shard)));
        drop(hook);
        self.turn();
    }
}

const HOST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// Runs a script on fresh shards: on one, and on three.
pub fn check(script: &str) {
    check_with(limits(), script);
}

/// Runs a script with other limits.
pub fn check_with(limits: impl Into<Limits>, script: &str) {
    let limits = limits.into();
    for of in [1, 3] {
        run(&mut Rig::of(limits.clone(), of), script);
    }
}

/// Runs a script with what is off by default.
pub fn check_features(features: &Features, script: &str) {
    for of in [1, 3] {
        run(&mut Rig::with(features.clone(), of), script);
    }
}

pub fn run(rig: &mut Rig, script: &str) {
    steps(rig, script);
    let rest: Vec<_> =
        (rig.peers.iter()).filter(|(_, p)| !p.packets.is_empty()).map(|(n, p)| (n, &p.packets)).collect();
    assert!(rest.is_empty(), "packets that the script does not name: {rest:?}");
    assert_eq!(rig.receipts().1, 0, "lost ends");
}

/// The same, and there may be packets that it does not name.
pub fn steps(rig: &mut Rig, script: &str) {
    for (number, line) in script.lines().enumerate() {
        let line = line.split("  --").next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        step(rig, line, number + 1);
    }
}

fn step(rig: &mut Rig, line: &str, number: usize) {
    if let Some((name, packet)) = line.split_once('>').filter(|(name, _)| !name.contains(' ')) {
        rig.send(name, packet.trim());
        return;
    }
    if let Some((name, expected)) = line.split_once('<').filter(|(name, _)| !name.contains(' ')) {
        let expected = expected.trim();
        let packet = rig.peer(name).packets.pop_front();
        assert_eq!(packet.as_deref().unwrap_or("-"), expected, "line {number}: {line}");
        return;
    }
    if let Some((name, _)) = line.split_once('!') {
        let peer = rig.peer(name);
        assert!(peer.closed, "line {number}: {name} is open");
        assert!(peer.packets.is_empty(), "line {number}: {name} has {:?}", peer.packets);
        return;
    }
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        ["commit"] => rig.commit(),
        ["wait", ms] => rig.wait(ms.parse().unwrap()),
        ["crash"] => rig.crash(),
        ["clock", ms] => rig.now.wall_ms += ms.parse::<i64>().unwrap(),
        ["drop", name] => rig.drop_peer(name),
        ["rule", filter] => rig.rule(filter),
        ["hold"] => rig.hook.0.borrow_mut().does = Does::Hold,
        ["pass"] => rig.hook.0.borrow_mut().does = Does::Pass,
        ["discard"] => rig.hook.0.borrow_mut().does = Does::Now(Some(Outcome::Discarded(Reason::Refused))),
        ["retry"] => rig.hook.0.borrow_mut().does = Does::Now(Some(Outcome::Retry)),
        ["resolve", outcome] => rig.resolve(match outcome {
            "delivered" => Outcome::Delivered,
            "retry" => Outcome::Retry,
            "discarded" => Outcome::Discarded(Reason::Refused),
            other => panic!("line {number}: {other}"),
        }),
        ["deny", what, name] => {
            let mut gate = rig.gate.lock().unwrap();
            match what {
                "publish" => gate.denies.publish.push(name.into()),
                "subscribe" => gate.denies.subscribe.push(name.into()),
                "receive" => gate.denies.receive.push(name.into()),
                other => panic!("line {number}: {other}"),
            }
        }
        ["listener", name, listener] => {
            rig.listeners.insert(name.into(), listener.parse().unwrap());
        }
        ["reads", name, bytes] => {
            match bytes {
                "all" => rig.reads.remove(name),
                bytes => rig.reads.insert(name.into(), bytes.parse().unwrap()),
            };
            let at = rig.peer(name).conn.unwrap();
            rig.flush(at, false);
            rig.turn();
        }
        ["allow", "all"] => rig.gate.lock().unwrap().denies = Denies::default(),
        ["review"] => {
            let now = rig.now;
            rig.shards.iter_mut().for_each(|shard| _ = shard.review(now));
            rig.turn();
        }
        ["unlisten", listener] => {
            let (listener, now) = (listener.parse().unwrap(), rig.now);
            rig.shards.iter_mut().for_each(|shard| _ = shard.close_listener(listener, now));
            rig.turn();
        }
        // Moves so many off each shard; or only looks after those that were.
        ["drain", what] => {
            let (most, now) = (what.parse().unwrap_or(0), rig.now);
            for shard in &mut rig.shards {
                shard.set_draining(what != "off");
                shard.drain(most, now);
            }
            rig.turn();
        }
        ["overload", what] => rig.shards.iter_mut().for_each(|shard| shard.set_overloaded(what == "on")),
        ["count", name, expected] => {
            assert_eq!(rig.count(name).to_string(), expected, "line {number}: {line}");
        }
        ["gate", "later"] => rig.gate.lock().unwrap().later = true,
        ["gate", "edge"] => rig.gate.lock().unwrap().edge = true,
        ["gate", "refuse"] => rig.gate.lock().unwrap().refuse = true,
        ["admit", name] => {
            let (shard, conn) = rig.peer(name).conn.unwrap();
            let grant = rig.gate.lock().unwrap().grant((shard, conn.to_bits()));
            rig.shards[usize::from(shard)].admitted(conn, Ok(grant), rig.now);
            rig.turn();
        }
        ["refuse", name] => {
            let (shard, conn) = rig.peer(name).conn.unwrap();
            rig.shards[usize::from(shard)].admitted(conn, Err(refusal()), rig.now);
            rig.turn();
        }
        ["open", expected] => {
            let (open, _) = rig.receipts();
            // Among several shards what one forwards has a receipt on both sides.
            assert!(
                open.to_string() == expected || (open > 0 && expected != "0" && rig.shards.len() > 1),
                "line {number}: {open} receipts are open"
            );
        }
        _ => panic!("line {number}: {line}"),
    }
}

fn qos(text: &str) -> QoS {
    QoS::try_from(text.parse::<u8>().unwrap()).unwrap()
}

/// Text to bytes, and the version they are in.
pub fn parse(line: &str, version: Option<Version>) -> (Vec<u8>, Version) {
    let mut words = line.split_whitespace();
    let kind = words.next().unwrap();
    let words: Vec<&str> = words.collect();
    let get = |key: &str| words.iter().find_map(|w| w.strip_prefix(key).and_then(|w| w.strip_prefix('=')));
    let number = |key: &str| get(key).map(|v| v.parse::<u32>().unwrap());
    let version = match get("v") {
        Some("3") => Version::V3_1,
        Some("5") => Version::V5,
        Some(_) => Version::V3_1_1,
        None => version.unwrap_or(Version::V3_1_1),
    };
    let mut props = PropertiesBuf::new();
    let mut push = |property: Property<'_>| props.push(property).unwrap();
    let mut out = Vec::new();
    let id = get("id").and_then(|id| id.parse().ok()).unwrap_or(0);
    let mut will_props = PropertiesBuf::new();
    let mut payload;
    let mut filters = SubscribeFiltersBuf::new();
    let mut unfilters = UnsubscribeFiltersBuf::new();
    let first = words.first().and_then(|w| w.parse::<u16>().ok());
    let packet = match kind {
        "raw" => {
            out = words
                .iter()
                .filter(|w| !w.contains('='))
                .map(|w| u8::from_str_radix(w, 16).unwrap())
                .collect();
            return (out, version);
        }
        "connect" => {
            number("expiry").into_iter().for_each(|n| push(Property::SessionExpiryInterval(n)));
            number("rmax").into_iter().for_each(|n| push(Property::ReceiveMaximum(n as u16)));
            number("amax").into_iter().for_each(|n| push(Property::TopicAliasMaximum(n as u16)));
            number("psize").into_iter().for_each(|n| push(Property::MaximumPacketSize(n)));
            get("response").into_iter().for_each(|n| push(Property::RequestResponseInformation(n == "1")));
            get("problem").into_iter().for_each(|n| push(Property::RequestProblemInformation(n == "1")));
            get("auth").into_iter().for_each(|m| push(Property::AuthenticationMethod(m)));
            get("data").into_iter().for_each(|d| push(Property::AuthenticationData(d.as_bytes())));
            number("delay")
                .into_iter()
                .for_each(|n| will_props.push(Property::WillDelayInterval(n)).unwrap());
            let will = get("will").map(|topic| Will {
                qos: get("wq").map_or(QoS::AtMostOnce, qos),
                retain: get("wr") == Some("1"),
                properties: will_props.as_properties(),
                topic,
                payload: get("wp").unwrap_or("will").as_bytes(),
            });
            Packet::Connect(Connect {
                version,
                clean_start: get("clean") != Some("0"),
                bridge: false,
                keep_alive: number("ka").unwrap_or(0) as u16,
                properties: props.as_properties(),
                client_id: get("id").unwrap_or(""),
                will,
                username: get("user"),
                password: None,
            })
        }
        "batch" => {
            let mut encoder = Encoder::new(usize::MAX, get("plain") != Some("1")).unwrap();
            for (at, message) in words.iter().filter_map(|w| w.strip_prefix("m=")).enumerate() {
                let mut parts = message.split(':');
                let item = Item {
                    topic: parts.next().unwrap(),
                    payload: parts.next().unwrap().as_bytes(),
                    acknowledged: parts.next() != Some("0"),
                    retain: parts.next() == Some("r"),
                    id: MessageId { boot: Boot::new(7), class: 0, seq: at as u64 + 1 },
                    client_id: "device",
                    username: None,
                    at_ms: 1_700_000_000_000,
                    synced: true,
                    age_ms: 5,
                    hops: 1,
                    late: false,
                    properties: Properties::EMPTY,
                };
                assert!(encoder.push(&item));
            }
            payload = encoder.finish().to_vec();
            match get("break") {
                Some("version") => payload[0] = 9,
                Some("cut") => payload.truncate(payload.len() - 1),
                Some(other) => panic!("{other}"),
                None => {}
            }
            Packet::Publish(Publish {
                dup: false,
                qos: get("q").map_or(QoS::AtMostOnce, qos),
                retain: false,
                topic: ferrule_batch::TOPIC,
                packet_id: id,
                properties: Properties::EMPTY,
                payload: &payload,
            })
        }
        "publish" => {
            number("alias").into_iter().for_each(|n| push(Property::TopicAlias(n as u16)));
            number("expiry").into_iter().for_each(|n| push(Property::MessageExpiryInterval(n)));
            get("utf8").into_iter().for_each(|v| push(Property::PayloadFormatIndicator(v == "1")));
            get("ct").into_iter().for_each(|v| push(Property::ContentType(v)));
            number("sid").into_iter().for_each(|n| push(Property::SubscriptionIdentifier(n)));
            Packet::Publish(Publish {
                dup: get("dup") == Some("1"),
                qos: get("q").map_or(QoS::AtMostOnce, qos),
                retain: get("r") == Some("1"),
                topic: get("t").unwrap_or(""),
                packet_id: id,
                properties: props.as_properties(),
                payload: match get("hex") {
                    Some(text) => &[u8::from_str_radix(text, 16).unwrap()],
                    None => get("p").unwrap_or("").as_bytes(),
                },
            })
        }
        "puback" | "pubrec" | "pubrel" | "pubcomp" => {
            let reason = get("reason").map_or(ReasonCode::SUCCESS, reason);
            let ack = Ack { packet_id: first.unwrap(), reason, properties: Properties::EMPTY };
            match kind {
                "puback" => Packet::Puback(ack),
                "pubrec" => Packet::Pubrec(ack),
                "pubrel" => Packet::Pubrel(ack),
                _ => Packet::Pubcomp(ack),
            }
        }
        "subscribe" => {
            number("sid").into_iter().for_each(|n| push(Property::SubscriptionIdentifier(n)));
            for filter in words.iter().filter_map(|w| w.strip_prefix("f=")) {
                let mut parts = filter.split(':');
                let name = parts.next().unwrap();
                let mut options = SubscribeOptions {
                    qos: parts.next().map_or(QoS::AtMostOnce, qos),
                    no_local: false,
                    retain_as_published: false,
                    retain_handling: 0,
                };
                for part in parts {
                    match part {
                        "nl" => options.no_local = true,
                        "rap" => options.retain_as_published = true,
                        "rh1" => options.retain_handling = 1,
                        "rh2" => options.retain_handling = 2,
                        other => panic!("{other}"),
                    }
                }
                filters.push(name, options).unwrap();
            }
            let filters = filters.as_filters();
            Packet::Subscribe(Subscribe { packet_id: id, properties: props.as_properties(), filters })
        }
        "unsubscribe" => {
            for filter in words.iter().filter_map(|w| w.strip_prefix("f=")) {
                unfilters.push(filter).unwrap();
            }
            let filters = unfilters.as_filters();
            Packet::Unsubscribe(Unsubscribe { packet_id: id, properties: Properties::EMPTY, filters })
        }
        "auth" => {
            get("auth").into_iter().for_each(|m| push(Property::AuthenticationMethod(m)));
            get("data").into_iter().for_each(|d| push(Property::AuthenticationData(d.as_bytes())));
            Packet::Auth(Auth { reason: reason(words[0]), properties: props.as_properties() })
        }
        "ping" => Packet::Pingreq,
        "disconnect" => {
            number("expiry").into_iter().for_each(|n| push(Property::SessionExpiryInterval(n)));
            let reason = get("reason").map_or(ReasonCode::SUCCESS, reason);
            Packet::Disconnect(Disconnect { reason, properties: props.as_properties() })
        }
        other => panic!("{other}"),
    };
    packet.encode(version, &mut out).unwrap();
    (out, version)
}

fn reason(text: &str) -> ReasonCode {
    ReasonCode(u8::from_str_radix(text, 16).unwrap())
}

/// What an authentication by steps says.
fn said(properties: Properties<'_>) -> String {
    let method = properties.authentication_method().map(|m| format!(" auth={m}"));
    let data = properties.authentication_data().map(|d| format!(" data={}", String::from_utf8_lossy(d)));
    method.unwrap_or_default() + &data.unwrap_or_default()
}

/// A packet of the server as text.
pub fn show(packet: &Packet<'_>) -> String {
    let ack = |kind: AckType, ack: &Ack<'_>| {
        let name = match kind {
            AckType::Puback => "puback",
            AckType::Pubrec => "pubrec",
            AckType::Pubrel => "pubrel",
            AckType::Pubcomp => "pubcomp",
        };
        let refused = ack.properties.user_properties().find(|(name, _)| *name == REFUSED_NAME);
        match ack.reason {
            ReasonCode::SUCCESS if refused.is_some() => {
                format!("{name} {} refused={}", ack.packet_id, refused.unwrap_or_default().1)
            }
            ReasonCode::SUCCESS => format!("{name} {}", ack.packet_id),
            reason => format!("{name} {} {:02x}", ack.packet_id, reason.0),
        }
    };
    let mut text;
    match packet {
        Packet::Connack(connack) => {
            let p = connack.properties;
            text = format!("connack sp={}", u8::from(connack.session_present));
            if connack.reason != ReasonCode::SUCCESS {
                text = format!("connack {:02x}", connack.reason.0);
            }
            p.session_expiry_interval().into_iter().for_each(|n| write!(text, " expiry={n}").unwrap());
            p.server_keep_alive().into_iter().for_each(|n| write!(text, " ka={n}").unwrap());
            p.assigned_client_identifier().into_iter().for_each(|_| text += " assigned");
            p.response_information().into_iter().for_each(|v| write!(text, " response={v}").unwrap());
            p.server_reference().into_iter().for_each(|v| write!(text, " elsewhere={v}").unwrap());
            text += &said(p);
        }
        Packet::Auth(auth) => text = format!("auth {:02x}{}", auth.reason.0, said(auth.properties)),
        Packet::Publish(publish) => {
            let topic = if publish.topic.is_empty() { "-" } else { publish.topic };
            text = format!("publish {topic} q{}", publish.qos);
            if publish.packet_id != 0 {
                write!(text, " id={}", publish.packet_id).unwrap();
            }
            if publish.retain {
                text += " r";
            }
            if publish.dup {
                text += " dup";
            }
            for property in publish.properties.iter() {
                match property {
                    Property::SubscriptionIdentifier(n) => write!(text, " sid={n}").unwrap(),
                    Property::MessageExpiryInterval(n) => write!(text, " expiry={n}").unwrap(),
                    Property::TopicAlias(n) => write!(text, " alias={n}").unwrap(),
                    Property::ContentType(v) => write!(text, " ct={v}").unwrap(),
                    other => write!(text, " {other:?}").unwrap(),
                }
            }
            if !publish.payload.is_empty() {
                write!(text, " {}", String::from_utf8_lossy(publish.payload)).unwrap();
            }
        }
        Packet::Puback(a) => text = ack(AckType::Puback, a),
        Packet::Pubrec(a) => text = ack(AckType::Pubrec, a),
        Packet::Pubrel(a) => text = ack(AckType::Pubrel, a),
        Packet::Pubcomp(a) => text = ack(AckType::Pubcomp, a),
        Packet::Suback(s) | Packet::Unsuback(s) => {
            let name = if matches!(packet, Packet::Suback(_)) { "suback" } else { "unsuback" };
            text = format!("{name} {}", s.packet_id);
            s.reasons.iter().for_each(|r| write!(text, " {r:02x}").unwrap());
        }
        Packet::Pingresp => text = "pong".into(),
        Packet::Disconnect(d) => {
            text = format!("disconnect {:02x}", d.reason.0);
            d.properties.server_reference().into_iter().for_each(|v| write!(text, " elsewhere={v}").unwrap());
        }
        other => text = format!("{other:?}"),
    }
    text
}
