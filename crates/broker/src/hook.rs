//! What hangs on a shard: rules and their outboxes ([`Hook`]), who may connect ([`Gate`]) and what they may do
//! ([`Access`]).

use crate::ConnId;
use crate::events::Event;
use crate::peers::Owner;
use bytes::Bytes;
use ferrule_mqtt::{Properties, PropertiesBuf, QoS, ReasonCode, Version, topic};
use ferrule_outbox::{End, Outcome, ReceiptId, Receipts};
use ferrule_store::{Inherited, Kept, Now, Op, QueueId, Stamp, StoredRow, Ticket};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// Who published.
#[derive(Debug, Clone)]
pub struct Publisher {
    /// Client id; for what a rule publishes, the rule's name.
    pub client_id: Arc<str>,
    /// User name.
    pub username: Option<Arc<str>>,
    /// IP address of the peer, as text: made once a connection, since rules may show it for each message.
    pub host: Option<Arc<str>>,
    /// What the connection may claim.
    pub role: Role,
}

/// What a connection may claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Its own messages.
    Device,
    /// Messages of devices, with their identity: a gateway of this id.
    Edge(Arc<str>),
}

/// One publish on its way, borrowed from the receive buffer.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// Topic name.
    pub topic: &'a str,
    /// Payload.
    pub payload: &'a [u8],
    /// As published.
    pub qos: QoS,
    /// As published.
    pub retain: bool,
    /// As published.
    pub dup: bool,
    /// As published, without topic alias.
    pub properties: Properties<'a>,
    /// Who published.
    pub publisher: &'a Publisher,
    /// When it was received.
    pub received: Stamp,
    /// How many brokers and rules of this node it has passed.
    pub hops: u8,
    /// Hash over the (rule, row) steps of this node behind it; 0 for a client's own.
    pub path: u64,
    /// What the hook attached to a publish of its own; opaque here.
    pub attachment: Option<&'a Attachment>,
    /// A QoS 2 publish whose packet id survives a kill: what is made of it must not leave for any destination before this
    /// turn's batch is durable (`Queue::hold`), or a repetition would leave again.
    pub hold: bool,
}

impl<'a> Message<'a> {
    /// One that nobody sent as a packet: QoS 0, not retained, without properties, received now.
    pub(crate) fn new(topic: &'a str, payload: &'a [u8], publisher: &'a Publisher, now: Now) -> Self {
        Self {
            topic,
            payload,
            qos: QoS::AtMostOnce,
            retain: false,
            dup: false,
            properties: Properties::EMPTY,
            publisher,
            received: now.stamp(),
            hops: 0,
            path: 0,
            attachment: None,
            hold: false,
        }
    }
}

/// Hands out the ends of the receipt of one publish. The receipt is opened by the first end, so that a publish for which
/// nobody has to wait never has one.
#[derive(Debug)]
pub struct Ends<'a> {
    receipts: &'a mut Receipts<Owner>,
    /// None when nobody waits (QoS 0, wills).
    owner: Option<Owner>,
    receipt: Option<ReceiptId>,
    /// The shard's own end while routing goes on: the receipt cannot complete before.
    guard: Option<End>,
}

impl<'a> Ends<'a> {
    pub(crate) fn new(receipts: &'a mut Receipts<Owner>, owner: Option<Owner>) -> Self {
        Self { receipts, owner, receipt: None, guard: None }
    }

    /// Ends for a publish that another one's row became: they count for that one's receipt.
    pub(crate) fn joined(receipts: &'a mut Receipts<Owner>, of: Option<&End>) -> Self {
        Self { receipts, owner: None, receipt: of.map(End::receipt), guard: None }
    }

    /// One more destination that must say how it ended; none when nobody waits.
    pub fn end(&mut self) -> Option<End> {
        match (self.receipt, self.owner) {
            (Some(receipt), _) => Some(self.receipts.add_end(receipt)),
            (None, Some(owner)) => {
                let guard = self.receipts.open(owner);
                let receipt = guard.receipt();
                self.guard = Some(guard);
                self.receipt = Some(receipt);
                Some(self.receipts.add_end(receipt))
            }
            (None, None) => None,
        }
    }

    /// Gives back an end whose destination could not take the message.
    pub fn resolve(&mut self, end: Option<End>, outcome: Outcome) {
        if let Some(end) = end {
            // The guard is open: this cannot complete the receipt.
            let _ = self.receipts.resolve(end, outcome);
        }
    }

    /// Says at once how a destination ended that took no end: for what is discarded while routing.
    pub fn discard(&mut self, outcome: Outcome) {
        let end = self.end();
        self.resolve(end, outcome);
    }

    /// The receipt, if one was opened, and the guard to resolve when routing is over.
    pub(crate) fn finish(self) -> Option<(ReceiptId, Option<End>)> {
        self.receipt.map(|receipt| (receipt, self.guard))
    }
}

/// Something of the hook's that goes with its publishes.
pub type Attachment = Arc<dyn std::any::Any + Send + Sync>;

/// What a node says of itself (`$SYS`).
#[derive(Debug)]
pub struct SysTopic {
    /// Its name.
    pub topic: Arc<str>,
    /// Its value.
    pub value: Bytes,
    /// It names its node: subscribers at other nodes are told, too.
    pub everywhere: bool,
}

/// A publish that a rule makes in this broker.
#[derive(Debug)]
pub struct LocalPublish {
    /// Topic name, valid.
    pub topic: Arc<str>,
    /// Payload.
    pub payload: Bytes,
    /// Quality of service.
    pub qos: QoS,
    /// Retain flag.
    pub retain: bool,
    /// MQTT 5 properties to forward.
    pub properties: PropertiesBuf,
    /// The rule, as a publisher.
    pub publisher: Arc<Publisher>,
    /// When the message behind it was received.
    pub received: Stamp,
    /// One more than that message's.
    pub hops: u8,
    /// Hash over the (rule, row) steps behind it.
    pub path: u64,
    /// For the hook itself, when this publish comes back to it.
    pub attachment: Option<Attachment>,
    /// As that message's.
    pub hold: bool,
    /// The end to resolve when this publish has gone where it must.
    pub end: Option<End>,
}

/// A row for an outbox that another shard owns.
#[derive(Debug)]
pub struct RowElsewhere {
    /// The owner.
    pub shard: u16,
    /// For the hook there.
    pub row: Vec<u8>,
    /// As the message's.
    pub hold: bool,
    /// Who waits for it.
    pub end: Option<End>,
}

/// Which of a hook's rows a batch takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// All that wait: something in the batch must not be on disk without what it became, or the process ends.
    All,
    /// Those of queues that are due by these measures, or that will be written whatever happens: of others the destination may still
    /// answer in time, and then they need not be.
    Due {
        /// As in [`Hook::due`].
        urgent: bool,
        /// As in [`Hook::due`].
        smoothed_commit: Duration,
    },
}

/// Rules and outboxes: what the shard calls while it routes, and around the store's batch.
pub trait Hook {
    /// A publish that matches the filters of `matched`, each hook once. Called while it is routed: nothing here may block.
    fn publish(&mut self, message: &Message<'_>, matched: &[u32], ends: &mut Ends<'_>, now: Now);

    /// Something that the hook asked for ([`crate::Shard::set_events`]) has happened in this turn. Nobody waits for what comes of it.
    fn event(&mut self, event: &Event, ends: &mut Ends<'_>, now: Now) {
        let _ = (event, ends, now);
    }

    /// The last end of a message was said that came by [`crate::Shard::publish_from_link`].
    fn said(&mut self, number: u64, outcome: Outcome) {
        let _ = (number, outcome);
    }

    /// Takes the first of the publishes that rules made: it is routed at once, or when the turn ends.
    fn next_local(&mut self) -> Option<LocalPublish>;

    /// Whether there is one.
    fn has_local(&self) -> bool;

    /// Whether something that the hook keeps must be written in this turn.
    fn due(&self, now: Now, urgent: bool, smoothed_commit: Duration) -> bool;

    /// When it next must, in microseconds of the monotonic clock.
    fn next_due_us(&self, urgent: bool, smoothed_commit: Duration) -> Option<u64>;

    /// Whether the medium takes new rows (`Queue::set_admitted`). Called before `due` and `write` when it changes.
    fn set_admitted(&mut self, admitted: bool) {
        let _ = admitted;
    }

    /// Adds what waits to the turn's batch, as `which` says.
    fn write(&mut self, now: Now, which: Which, batch: &mut Vec<Op>);

    /// Whether rows are left that the last `write` could not add, since their queue is full (`Queue::is_withholding`).
    fn withholds(&self) -> bool {
        false
    }

    /// The batch has this ticket.
    fn submitted(&mut self, ticket: Ticket);

    /// Everything up to the ticket is durable.
    fn committed(&mut self, ticket: Ticket, ended: &mut Vec<(End, Outcome)>);

    /// Rows of a queue that is the hook's.
    fn rows(&mut self, queue: QueueId, rows: Vec<StoredRow>, now: Now);

    /// Rows for outboxes that other shards own.
    fn take_rows(&mut self) -> Vec<RowElsewhere> {
        Vec::new()
    }

    /// What has changed of the rules that this node keeps; told to all shards. Ends of what is lost by it are to be tried again.
    fn kept(&mut self, kept: &Kept, ended: &mut Vec<(End, Outcome)>) {
        let _ = (kept, ended);
    }

    /// A rule that this node keeps is to be another's: told to all shards. Nothing more is taken in for it.
    fn giving(&mut self, rule: u64, round: u64) {
        let _ = (rule, round);
    }

    /// The rule that was asked for ([`Hook::giving`]), once, when this shard has it and all that it remembers has been submitted.
    fn given(&mut self) -> Option<(u64, u64)> {
        None
    }

    /// The rules that this shard runs on the messages of all nodes.
    fn keeps(&self) -> Vec<u64> {
        Vec::new()
    }

    /// A shard of another node runs this rule on the messages of all, or does so no more; none: any, no more.
    fn kept_elsewhere(&mut self, peer: u16, rule: Option<(u64, bool)>) {
        let _ = (peer, rule);
    }

    /// The outboxes of nodes that are gone which this node looks after from now on; told to all shards.
    fn inherited(&mut self, inherited: &[Inherited], now: Now) {
        let _ = (inherited, now);
    }

    /// A row that another shard's hook made; `ends` are for whoever waits there.
    fn row(&mut self, row: &[u8], ends: &mut Ends<'_>, now: Now) {
        let _ = (row, now);
        ends.discard(Outcome::Retry);
    }

    /// Called once at the end of each turn: hand rows to consumers, and name queues that want to be read (from a number on).
    fn turn(&mut self, now: Now, ended: &mut Vec<(End, Outcome)>, reads: &mut Vec<(QueueId, u64)>);
}

/// A CONNECT, as the gate sees it.
#[derive(Debug, Clone, Copy)]
pub struct ConnectRequest<'a> {
    /// Protocol version.
    pub version: Version,
    /// Client id, assigned already where it was empty.
    pub client_id: &'a str,
    /// User name.
    pub username: Option<&'a str>,
    /// Password.
    pub password: Option<&'a [u8]>,
    /// Address of the peer.
    pub peer: IpAddr,
    /// Which listener it came to.
    pub listener: usize,
    /// A name of the client's certificate, verified.
    pub certificate: Option<&'a str>,
    /// CONNECT properties.
    pub properties: Properties<'a>,
}

/// What an admitted client is and may do.
#[derive(Debug, Clone)]
pub struct Grant {
    /// Device or gateway.
    pub role: Role,
    /// The user name that rules see.
    pub username: Option<Arc<str>>,
    /// What it may do.
    pub access: Arc<dyn Access>,
    /// User properties for its CONNACK.
    pub properties: PropertiesBuf,
    /// Which process life it says it is. While one life of a client id is connected another is refused (0x97): two
    /// gateways that were cloned from one card would throw each other out for ever.
    pub life: Option<Box<str>>,
}

/// Why a client is not admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// For the CONNACK.
    pub reason: ReasonCode,
    /// For the log.
    pub message: String,
}

/// Who may connect.
pub trait Gate: Send {
    /// Decides, or says none and lets [`crate::Shard::admitted`] be called later.
    fn admit(&mut self, conn: ConnId, request: &ConnectRequest<'_>) -> Option<Result<Grant, Refusal>>;

    /// Begins what a CONNECT, or an AUTH of an open connection, asks for by the name of an authentication method [MQTT 5, 4.12].
    /// None: there is no such method here.
    fn exchange(&mut self, request: &ConnectRequest<'_>, method: &str) -> Option<Box<dyn Exchange>> {
        let _ = (request, method);
        None
    }

    /// What a client that was let in may do by the rules that are in force now, or why it would not be let in any more. None: nothing has
    /// changed for it.
    fn review(&mut self, client: &Standing<'_>) -> Option<Result<Arc<dyn Access>, Refusal>> {
        let _ = client;
        None
    }
}

/// A client that was let in.
#[derive(Debug, Clone, Copy)]
pub struct Standing<'a> {
    /// Client id.
    pub client_id: &'a str,
    /// The user name that it was let in under.
    pub username: Option<&'a str>,
    /// Address of the peer.
    pub peer: IpAddr,
    /// Which listener it came to.
    pub listener: usize,
    /// A name of its certificate, verified.
    pub certificate: Option<&'a str>,
    /// The gateway that it speaks for.
    pub edge: Option<&'a str>,
    /// [`Access::issued`] of what it may do.
    pub issued: u64,
}

/// An authentication by steps, of one client.
pub trait Exchange: Send + std::fmt::Debug {
    /// Takes the client's data. Called on the message's way: nothing here may block. Ends after a few steps, whatever comes.
    fn step(&mut self, data: &[u8]) -> Step;
}

/// What comes of a step.
#[derive(Debug)]
pub enum Step {
    /// The client is asked to go on, with this data.
    Continue(Bytes),
    /// It has proved who it is; data for it, if there is any.
    Done(Box<Grant>, Bytes),
    /// It has not.
    Refused(Refusal),
}

/// What a client may do. Asked on the message's way: no look-ups here.
pub trait Access: Send + Sync + std::fmt::Debug {
    /// Publish to this topic; of a delayed one it is the topic that it is for that counts.
    fn publish(&self, topic: &str) -> bool;
    /// Subscribe to this filter; of a shared subscription `$share/g/f` it is `f` that counts.
    fn subscribe(&self, filter: &str) -> bool;
    /// Receive a message of this topic, subscribed as it is.
    fn receive(&self, topic: &str) -> bool;
    /// Whether a filter that it may subscribe to can match this topic. Asked only of clients that have a subscription that they may not
    /// make any more.
    fn reads(&self, topic: &str) -> bool;
    /// The number of the rules that this came from, where the gate has such numbers.
    fn issued(&self) -> u64 {
        0
    }
}

/// Everything but `$`-topics for publishing; for tests and plain local brokers.
#[derive(Debug, Clone, Copy)]
pub struct Everything;

impl Access for Everything {
    fn publish(&self, topic: &str) -> bool {
        !topic::delayed(topic).map_or(topic, |(_, topic)| topic).starts_with('$')
    }
    fn subscribe(&self, _: &str) -> bool {
        true
    }
    fn receive(&self, _: &str) -> bool {
        true
    }
    fn reads(&self, _: &str) -> bool {
        true
    }
}

/// No rules; for tests and plain local brokers.
#[derive(Debug, Clone, Copy)]
pub struct NoHook;

impl Hook for NoHook {
    fn publish(&mut self, _: &Message<'_>, _: &[u32], _: &mut Ends<'_>, _: Now) {}
    fn next_local(&mut self) -> Option<LocalPublish> {
        None
    }
    fn has_local(&self) -> bool {
        false
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
    fn turn(&mut self, _: Now, _: &mut Vec<(End, Outcome)>, _: &mut Vec<(QueueId, u64)>) {}
}

/// Lets everyone in, as a device that may do [`Everything`]; for tests and plain local brokers.
#[derive(Debug, Clone, Copy)]
pub struct Everyone;

impl Gate for Everyone {
    fn admit(&mut self, _: ConnId, _: &ConnectRequest<'_>) -> Option<Result<Grant, Refusal>> {
        Some(Ok(Grant {
            role: Role::Device,
            username: None,
            access: Arc::new(Everything),
            properties: PropertiesBuf::new(),
            life: None,
        }))
    }
}
