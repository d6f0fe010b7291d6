//! What passes between shards (contract 4), as bytes.
//!
//! # Constraints
//! One protocol for shards of one process and for shards of different nodes, so there is one form: between threads a batch of
//! bytes rides a ring, between nodes the same bytes a stream. A batch costs one allocation however many messages are in
//! it, and the receiver reads topics and payloads where they lie.
//!
//! # Form
//! A parcel is a tag, then its fields. Numbers are LEB128, texts and bytes have their length before them. Parcels tell their own
//! length, so that a stream may be cut anywhere: what is incomplete is offered again, longer, as in [`crate::Shard::receive`].
//!
//! # Order
//! From one shard to another parcels keep their order; everything below rests on that and on nothing else.

use crate::presence::Since;
use ferrule_mqtt::QoS;
use ferrule_outbox::{Outcome, Reason};
use std::fmt;

/// Names what an [`Parcel::Ack`] is for. 0: nobody waits.
pub(crate) type Number = u64;

/// One thing that a shard tells another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parcel<'a> {
    /// The sender has its first subscription to a filter, or lost its last.
    RouteDelta {
        /// Of the sender's filters, after this change.
        version: u64,
        add: bool,
        filter: &'a str,
    },
    /// All that the sender has of filters and members of shared subscriptions follows, as changes, in pieces that are numbered instead of versions
    /// ([`crate::telling`]): it takes the place of what the receiver knows once it has ended. `name`: the sender's ([`crate::Place::name`]).
    RoutesBegin { name: u64 },
    /// That was all, as of this version.
    RoutesEnd { version: u64 },
    /// The sender forwards what matches the receiver's filters of this version.
    RouteAck { version: u64 },
    /// How many members the sender has of a shared subscription, by its whole text: none, and it has lost its last.
    ShareDelta { version: u64, text: &'a str, online: u32, away: u32 },
    /// A client is connected to the sender, since then ([`crate::presence`]).
    Present { version: u64, since: Since, client_id: &'a str },
    /// The will of a connection of the sender's, by the number of that: to be published if the sender is gone ([`crate::wills`]).
    WillCopy { number: Number, record: &'a [u8] },
    /// The same, of which there may be another copy: of the first of two, which is the receiver's if `first` is 0, and else that of the shard of this name.
    WillPair { number: Number, first: u64, record: &'a [u8] },
    /// The receiver is to forget what it has behind the sender of wills of the shard of this name, which is gone in the view of this number. Answered when the
    /// receiver knows that view.
    WillsAsk { number: Number, view: u64, owner: u64 },
    /// It has.
    WillsYield { number: Number },
    /// The connection has ended, and the copy with it; `answer`: with [`Parcel::WillGone`].
    WillEnded { number: Number, answer: bool },
    /// There is none any more.
    WillGone { number: Number },
    /// The sender has the session of a client that is present elsewhere, with this epoch, and is about to give it up ([`crate::owners`]).
    Owns { session: u64, epoch: u64, client_id: &'a str },
    /// All that it had to say of it is durable: it may be taken.
    Yours { epoch: u64, client_id: &'a str },
    /// The sender has taken it, with this epoch, from the shard of this name, and is routed what is for it; `gone`: it has ended it.
    Moved { owner: u64, session: u64, epoch: u64, gone: bool, client_id: &'a str },
    /// What follows on this stream of the sender's was routed by one who knows that.
    Passed { session: u64, epoch: u64, client_id: &'a str },
    /// A message for it that its owner has not stored. `number` as in [`Forward`]; `head` and `payload` as in its queue.
    Relay { number: Number, client_id: &'a str, head: &'a [u8], payload: &'a [u8] },
    /// In the view of this number the sender has adopted its share of the sessions that there were to be adopted, and has told their routes.
    Adopted { view: u64 },
    /// In it the sender has had that word of all members. Behind what it routed before, so not on the stream of that word.
    Settled { view: u64 },
    /// A publish, for the receiver's sessions alone.
    Forward(Forward<'a>),
    /// A publish for one member of a shared subscription: the one whose place is given, or the next that can take it.
    Share(Forward<'a>, Share<'a>),
    /// A retained message was set or, with an empty record, cleared. The highest stamp wins.
    RetainedPut {
        number: Number,
        /// As in [`Forward`].
        hold: bool,
        stamp: u64,
        topic: &'a str,
        /// `Retained::to_bytes`.
        record: &'a [u8],
    },
    /// The same, of another node, which writes it itself; answered by [`Parcel::RetainedAck`], within a process by [`Parcel::Ack`].
    RetainedCopy { number: Number, stamp: u64, topic: &'a str, record: &'a [u8] },
    /// The end of a batch of retained messages that the receiver may have missed; `done`: of all of them. Answered as above.
    RetainedMark { number: Number, done: bool },
    /// The sender's node has what has this number, and all before it.
    RetainedAck { number: Number },
    /// The digest of the sender's retained messages whose stamps are in a bucket.
    RetainedRange { bucket: u64, digest: u64 },
    /// In all other buckets it has none.
    RetainedRanges,
    /// For the receiver's hook. `hold` as in [`Forward`].
    RuleRow { number: Number, hold: bool, row: &'a [u8] },
    /// ForwardAck and RuleAck: all that a parcel led to has ended, thus.
    Ack { number: Number, outcome: Outcome },
    /// What a parcel that must not be known twice led to is in the sender's batch, which waits for the one that closes this
    /// joint commit.
    Joined { number: Number },
    /// A client of the sender's asks for an exclusive subscription, by its whole text; number 0: it has had it.
    Claim { number: u64, filter: &'a str, client_id: &'a str },
    /// Whether it has it now.
    ClaimAck { number: u64, granted: bool },
    /// It has it no more.
    Release { filter: &'a str, client_id: &'a str },
    /// A client of the sender's node has an exclusive subscription or claims it, since then ([`crate::exclusive`]).
    Holds { version: u64, since: Since, filter: &'a str, client_id: &'a str },
    /// A client of the receiver's has one no more.
    ClaimLost { filter: &'a str, client_id: &'a str },
    /// The sender runs this rule, which remembers something, on the messages of all nodes, or does so no more.
    Keeps { rule: u64, keeps: bool },
    /// Publishers with a full window wait for what the sender sent.
    Hurry,
}

/// A publish on its way to another shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Forward<'a> {
    pub(crate) number: Number,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    /// What is made of it must not leave before it is durable, together with the packet id that it came under.
    pub(crate) hold: bool,
    pub(crate) received_wall_ms: i64,
    pub(crate) topic: &'a str,
    /// As published, without topic alias.
    pub(crate) properties: &'a [u8],
    pub(crate) payload: &'a [u8],
}

/// Which member a publish is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share<'a> {
    /// The subscription's whole text.
    pub(crate) text: &'a str,
    /// Among the receiver's members.
    pub(crate) place: u32,
    /// How many shards it has been sent on by, since their members had just left.
    pub(crate) again: u8,
}

/// Bytes that are no parcel: the sender speaks another version, or has a bug. The link is of no use any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParcelError;

impl fmt::Display for ParcelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a parcel of another shard cannot be read")
    }
}

impl std::error::Error for ParcelError {}

const ROUTE_ADD: u8 = 1;
const ROUTE_REMOVE: u8 = 2;
const ROUTE_ACK: u8 = 3;
const RETAINED_PUT: u8 = 4;
const RULE_ROW: u8 = 5;
const RETAINED_PUT_HELD: u8 = 10;
const RULE_ROW_HELD: u8 = 8;
const JOINED: u8 = 9;
const ACK: u8 = 6;
const HURRY: u8 = 7;
const SHARE_DELTA: u8 = 11;
const CLAIM: u8 = 12;
const CLAIM_GRANTED: u8 = 13;
const CLAIM_REFUSED: u8 = 14;
const RELEASE: u8 = 15;
/// From here on what only a cluster has.
const ROUTES_BEGIN: u8 = 0x30;
const ROUTES_END: u8 = 0x31;
const PRESENT: u8 = 0x32;
const OWNS: u8 = 0x33;
const YOURS: u8 = 0x34;
const MOVED: u8 = 0x35;
const MOVED_GONE: u8 = 0x36;
const PASSED: u8 = 0x37;
const RELAY: u8 = 0x38;
const ADOPTED: u8 = 0x39;
const SETTLED: u8 = 0x3a;
/// Since version 2.
const RETAINED_COPY: u8 = 0x40;
const RETAINED_MARK: u8 = 0x41;
const RETAINED_MARK_DONE: u8 = 0x42;
const RETAINED_ACK: u8 = 0x43;
const RETAINED_RANGE: u8 = 0x44;
const RETAINED_RANGES: u8 = 0x45;
const WILL_COPY: u8 = 0x46;
const WILL_ENDED: u8 = 0x47;
const WILL_ENDED_ANSWER: u8 = 0x48;
const WILL_GONE: u8 = 0x49;
/// Since version 3.
const HOLDS: u8 = 0x4a;
const CLAIM_LOST: u8 = 0x4b;
const KEEPS: u8 = 0x4c;
const KEEPS_NOT: u8 = 0x4d;
/// Since version 4.
const WILL_PAIR: u8 = 0x4e;
const WILLS_ASK: u8 = 0x4f;
const WILLS_YIELD: u8 = 0x50;
/// Its low four bits are QoS (two), retain and hold.
const FORWARD: u8 = 0x10;
/// The same, for one member of a shared subscription.
const SHARE: u8 = 0x20;

const RETAIN: u8 = 4;
const HOLD: u8 = 8;

impl<'a> Parcel<'a> {
    /// Whether it is about routes: small, and waited for by clients that subscribe.
    pub(crate) fn is_control(&self) -> bool {
        matches!(
            self,
            Self::RouteDelta { .. }
                | Self::RoutesBegin { .. }
                | Self::RoutesEnd { .. }
                | Self::RouteAck { .. }
                | Self::ShareDelta { .. }
                | Self::Present { .. }
                | Self::WillCopy { .. }
                | Self::WillPair { .. }
                | Self::WillsAsk { .. }
                | Self::WillsYield { .. }
                | Self::WillEnded { .. }
                | Self::WillGone { .. }
                | Self::Owns { .. }
                | Self::Yours { .. }
                | Self::Moved { .. }
                | Self::Adopted { .. }
                | Self::Claim { .. }
                | Self::ClaimAck { .. }
                | Self::Release { .. }
                | Self::Holds { .. }
                | Self::Keeps { .. }
        )
    }

    /// The same with another number in the place of the version.
    pub(crate) fn numbered(self, version: u64) -> Self {
        match self {
            Self::RouteDelta { add, filter, .. } => Self::RouteDelta { version, add, filter },
            Self::ShareDelta { text, online, away, .. } => Self::ShareDelta { version, text, online, away },
            Self::Present { since, client_id, .. } => Self::Present { version, since, client_id },
            Self::Holds { since, filter, client_id, .. } => Self::Holds { version, since, filter, client_id },
            other => other,
        }
    }

    /// Appends it.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Self::RouteDelta { version, add, filter } => {
                out.push(if add { ROUTE_ADD } else { ROUTE_REMOVE });
                put_number(out, version);
                put_bytes(out, filter.as_bytes());
            }
            Self::RoutesBegin { name } => {
                out.push(ROUTES_BEGIN);
                put_number(out, name);
            }
            Self::RoutesEnd { version } => {
                out.push(ROUTES_END);
                put_number(out, version);
            }
            Self::RouteAck { version } => {
                out.push(ROUTE_ACK);
                put_number(out, version);
            }
            Self::ShareDelta { version, text, online, away } => {
                out.push(SHARE_DELTA);
                put_number(out, version);
                put_bytes(out, text.as_bytes());
                put_number(out, online.into());
                put_number(out, away.into());
            }
            Self::Present { version, since: (stamp, shard), client_id } => {
                out.push(PRESENT);
                put_number(out, version);
                put_number(out, stamp);
                put_number(out, shard);
                put_bytes(out, client_id.as_bytes());
            }
            Self::WillCopy { number, record } => {
                out.push(WILL_COPY);
                put_number(out, number);
                put_bytes(out, record);
            }
            Self::WillPair { number, first, record } => {
                out.push(WILL_PAIR);
                put_number(out, number);
                put_number(out, first);
                put_bytes(out, record);
            }
            Self::WillsAsk { number, view, owner } => {
                out.push(WILLS_ASK);
                put_number(out, number);
                put_number(out, view);
                put_number(out, owner);
            }
            Self::WillsYield { number } => {
                out.push(WILLS_YIELD);
                put_number(out, number);
            }
            Self::WillEnded { number, answer } => {
                out.push(if answer { WILL_ENDED_ANSWER } else { WILL_ENDED });
                put_number(out, number);
            }
            Self::WillGone { number } => {
                out.push(WILL_GONE);
                put_number(out, number);
            }
            Self::Owns { session, epoch, client_id } => {
                out.push(OWNS);
                put_number(out, session);
                put_number(out, epoch);
                put_bytes(out, client_id.as_bytes());
            }
            Self::Yours { epoch, client_id } => {
                out.push(YOURS);
                put_number(out, epoch);
                put_bytes(out, client_id.as_bytes());
            }
            Self::Moved { owner, session, epoch, gone, client_id } => {
                out.push(if gone { MOVED_GONE } else { MOVED });
                put_number(out, owner);
                put_number(out, session);
                put_number(out, epoch);
                put_bytes(out, client_id.as_bytes());
            }
            Self::Passed { session, epoch, client_id } => {
                out.push(PASSED);
                put_number(out, session);
                put_number(out, epoch);
                put_bytes(out, client_id.as_bytes());
            }
            Self::Relay { number, client_id, head, payload } => {
                out.push(RELAY);
                put_number(out, number);
                put_bytes(out, client_id.as_bytes());
                put_bytes(out, head);
                put_bytes(out, payload);
            }
            Self::Adopted { view } => {
                out.push(ADOPTED);
                put_number(out, view);
            }
            Self::Settled { view } => {
                out.push(SETTLED);
                put_number(out, view);
            }
            Self::Forward(forward) => forward.encode(FORWARD, out),
            Self::Share(forward, share) => {
                forward.encode(SHARE, out);
                put_bytes(out, share.text.as_bytes());
                put_number(out, share.place.into());
                out.push(share.again);
            }
            Self::RetainedPut { number, hold, stamp, topic, record } => {
                out.push(if hold { RETAINED_PUT_HELD } else { RETAINED_PUT });
                put_number(out, number);
                put_number(out, stamp);
                put_bytes(out, topic.as_bytes());
                put_bytes(out, record);
            }
            Self::RetainedCopy { number, stamp, topic, record } => {
                out.push(RETAINED_COPY);
                put_number(out, number);
                put_number(out, stamp);
                put_bytes(out, topic.as_bytes());
                put_bytes(out, record);
            }
            Self::RetainedMark { number, done } => {
                out.push(if done { RETAINED_MARK_DONE } else { RETAINED_MARK });
                put_number(out, number);
            }
            Self::RetainedAck { number } => {
                out.push(RETAINED_ACK);
                put_number(out, number);
            }
            Self::RetainedRange { bucket, digest } => {
                out.push(RETAINED_RANGE);
                put_number(out, bucket);
                put_number(out, digest);
            }
            Self::RetainedRanges => out.push(RETAINED_RANGES),
            Self::Joined { number } => {
                out.push(JOINED);
                put_number(out, number);
            }
            Self::RuleRow { number, hold, row } => {
                out.push(if hold { RULE_ROW_HELD } else { RULE_ROW });
                put_number(out, number);
                put_bytes(out, row);
            }
            Self::Ack { number, outcome } => {
                out.push(ACK);
                put_number(out, number);
                out.push(outcome_to_byte(outcome));
            }
            Self::Claim { number, filter, client_id } => {
                out.push(CLAIM);
                put_number(out, number);
                put_bytes(out, filter.as_bytes());
                put_bytes(out, client_id.as_bytes());
            }
            Self::Holds { version, since: (stamp, shard), filter, client_id } => {
                out.push(HOLDS);
                put_number(out, version);
                put_number(out, stamp);
                put_number(out, shard);
                put_bytes(out, filter.as_bytes());
                put_bytes(out, client_id.as_bytes());
            }
            Self::Keeps { rule, keeps } => {
                out.push(if keeps { KEEPS } else { KEEPS_NOT });
                put_number(out, rule);
            }
            Self::ClaimLost { filter, client_id } => {
                out.push(CLAIM_LOST);
                put_bytes(out, filter.as_bytes());
                put_bytes(out, client_id.as_bytes());
            }
            Self::ClaimAck { number, granted } => {
                out.push(if granted { CLAIM_GRANTED } else { CLAIM_REFUSED });
                put_number(out, number);
            }
            Self::Release { filter, client_id } => {
                out.push(RELEASE);
                put_bytes(out, filter.as_bytes());
                put_bytes(out, client_id.as_bytes());
            }
            Self::Hurry => out.push(HURRY),
        }
    }

    /// The first parcel of `bytes` and its length; none when it is incomplete.
    pub(crate) fn decode(bytes: &'a [u8]) -> Result<Option<(Self, usize)>, ParcelError> {
        let mut reader = Reader { bytes, at: 0 };
        match reader.parcel() {
            Ok(parcel) => Ok(Some((parcel, reader.at))),
            Err(Stop::Incomplete) => Ok(None),
            Err(Stop::Wrong) => Err(ParcelError),
        }
    }
}

impl Parcel<'_> {
    /// The first parcel if it is a whole [`Parcel::Ack`], of which there is one for each publish: number, outcome and length.
    pub(crate) fn ack(bytes: &[u8]) -> Option<(Number, Outcome, usize)> {
        if *bytes.first()? != ACK {
            return None;
        }
        let mut reader = Reader { bytes, at: 1 };
        let number = reader.number().ok()?;
        Some((number, outcome_from_byte(reader.byte().ok()?)?, reader.at))
    }
}

impl Forward<'_> {
    fn encode(&self, tag: u8, out: &mut Vec<u8>) {
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        let qos: u8 = self.qos.into();
        out.push(tag | qos | flag(self.retain, RETAIN) | flag(self.hold, HOLD));
        put_number(out, self.number);
        put_number(out, self.received_wall_ms as u64);
        put_bytes(out, self.topic.as_bytes());
        put_bytes(out, self.properties);
        put_bytes(out, self.payload);
    }
}

/// How an outcome travels: 0 delivered, 1 retry, from 2 on a reason for discarding.
fn outcome_to_byte(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Delivered => 0,
        Outcome::Retry => 1,
        Outcome::Discarded(reason) => {
            2 + Reason::ALL.iter().position(|known| *known == reason).unwrap_or_default() as u8
        }
    }
}

fn outcome_from_byte(byte: u8) -> Option<Outcome> {
    match byte {
        0 => Some(Outcome::Delivered),
        1 => Some(Outcome::Retry),
        byte => Reason::ALL.get(usize::from(byte) - 2).map(|reason| Outcome::Discarded(*reason)),
    }
}

fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

enum Stop {
    Incomplete,
    Wrong,
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Result<u8, Stop> {
        let byte = *self.bytes.get(self.at).ok_or(Stop::Incomplete)?;
        self.at += 1;
        Ok(byte)
    }

    fn number(&mut self) -> Result<u64, Stop> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(Stop::Wrong)
    }

    fn bytes(&mut self) -> Result<&'a [u8], Stop> {
        let len = usize::try_from(self.number()?).map_err(|_| Stop::Wrong)?;
        let end = self.at.checked_add(len).ok_or(Stop::Wrong)?;
        let bytes = self.bytes.get(self.at..end).ok_or(Stop::Incomplete)?;
        self.at = end;
        Ok(bytes)
    }

    fn text(&mut self) -> Result<&'a str, Stop> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Stop::Wrong)
    }

    fn small(&mut self) -> Result<u32, Stop> {
        u32::try_from(self.number()?).map_err(|_| Stop::Wrong)
    }

    fn forward(&mut self, tag: u8) -> Result<Forward<'a>, Stop> {
        Ok(Forward {
            qos: QoS::try_from(tag & 3).map_err(|_| Stop::Wrong)?,
            retain: tag & RETAIN != 0,
            hold: tag & HOLD != 0,
            number: self.number()?,
            received_wall_ms: self.number()? as i64,
            topic: self.text()?,
            properties: self.bytes()?,
            payload: self.bytes()?,
        })
    }

    fn parcel(&mut self) -> Result<Parcel<'a>, Stop> {
        let tag = self.byte()?;
        Ok(match tag {
            ROUTE_ADD | ROUTE_REMOVE => {
                Parcel::RouteDelta { version: self.number()?, add: tag == ROUTE_ADD, filter: self.text()? }
            }
            ROUTE_ACK => Parcel::RouteAck { version: self.number()? },
            ROUTES_BEGIN => Parcel::RoutesBegin { name: self.number()? },
            WILL_COPY => Parcel::WillCopy { number: self.number()?, record: self.bytes()? },
            WILL_PAIR => {
                Parcel::WillPair { number: self.number()?, first: self.number()?, record: self.bytes()? }
            }
            WILLS_ASK => {
                Parcel::WillsAsk { number: self.number()?, view: self.number()?, owner: self.number()? }
            }
            WILLS_YIELD => Parcel::WillsYield { number: self.number()? },
            WILL_ENDED | WILL_ENDED_ANSWER => {
                Parcel::WillEnded { number: self.number()?, answer: tag == WILL_ENDED_ANSWER }
            }
            WILL_GONE => Parcel::WillGone { number: self.number()? },
            OWNS => Parcel::Owns { session: self.number()?, epoch: self.number()?, client_id: self.text()? },
            YOURS => Parcel::Yours { epoch: self.number()?, client_id: self.text()? },
            MOVED | MOVED_GONE => {
                let gone = tag == MOVED_GONE;
                Parcel::Moved {
                    owner: self.number()?,
                    session: self.number()?,
                    epoch: self.number()?,
                    gone,
                    client_id: self.text()?,
                }
            }
            PASSED => {
                Parcel::Passed { session: self.number()?, epoch: self.number()?, client_id: self.text()? }
            }
            RELAY => Parcel::Relay {
                number: self.number()?,
                client_id: self.text()?,
                head: self.bytes()?,
                payload: self.bytes()?,
            },
            ADOPTED => Parcel::Adopted { view: self.number()? },
            SETTLED => Parcel::Settled { view: self.number()? },
            PRESENT => Parcel::Present {
                version: self.number()?,
                since: (self.number()?, self.number()?),
                client_id: self.text()?,
            },
            ROUTES_END => Parcel::RoutesEnd { version: self.number()? },
            RETAINED_PUT | RETAINED_PUT_HELD => Parcel::RetainedPut {
                hold: tag == RETAINED_PUT_HELD,
                number: self.number()?,
                stamp: self.number()?,
                topic: self.text()?,
                record: self.bytes()?,
            },
            RETAINED_COPY => Parcel::RetainedCopy {
                number: self.number()?,
                stamp: self.number()?,
                topic: self.text()?,
                record: self.bytes()?,
            },
            RETAINED_MARK | RETAINED_MARK_DONE => {
                Parcel::RetainedMark { number: self.number()?, done: tag == RETAINED_MARK_DONE }
            }
            RETAINED_ACK => Parcel::RetainedAck { number: self.number()? },
            RETAINED_RANGE => Parcel::RetainedRange { bucket: self.number()?, digest: self.number()? },
            RETAINED_RANGES => Parcel::RetainedRanges,
            RULE_ROW | RULE_ROW_HELD => {
                let hold = tag == RULE_ROW_HELD;
                Parcel::RuleRow { number: self.number()?, hold, row: self.bytes()? }
            }
            JOINED => Parcel::Joined { number: self.number()? },
            ACK => Parcel::Ack {
                number: self.number()?,
                outcome: outcome_from_byte(self.byte()?).ok_or(Stop::Wrong)?,
            },
            HOLDS => Parcel::Holds {
                version: self.number()?,
                since: (self.number()?, self.number()?),
                filter: self.text()?,
                client_id: self.text()?,
            },
            KEEPS | KEEPS_NOT => Parcel::Keeps { rule: self.number()?, keeps: tag == KEEPS },
            CLAIM_LOST => Parcel::ClaimLost { filter: self.text()?, client_id: self.text()? },
            CLAIM => Parcel::Claim { number: self.number()?, filter: self.text()?, client_id: self.text()? },
            CLAIM_GRANTED | CLAIM_REFUSED => {
                Parcel::ClaimAck { number: self.number()?, granted: tag == CLAIM_GRANTED }
            }
            RELEASE => Parcel::Release { filter: self.text()?, client_id: self.text()? },
            HURRY => Parcel::Hurry,
            SHARE_DELTA => Parcel::ShareDelta {
                version: self.number()?,
                text: self.text()?,
                online: self.small()?,
                away: self.small()?,
            },
            FORWARD..SHARE => Parcel::Forward(self.forward(tag)?),
            SHARE..0x30 => {
                let forward = self.forward(tag)?;
                let share = Share { text: self.text()?, place: self.small()?, again: self.byte()? };
                Parcel::Share(forward, share)
            }
            _ => return Err(Stop::Wrong),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// It is behind what was routed by who did not know yet.
    #[test]
    fn settled_is_said_on_data_and_adopted_on_control() {
        assert!(Parcel::Adopted { view: 3 }.is_control());
        assert!(!Parcel::Settled { view: 3 }.is_control());
    }

    #[test]
    fn every_parcel_survives_and_every_cut_of_it_is_incomplete() {
        let forward = Forward {
            number: u64::MAX,
            qos: QoS::ExactlyOnce,
            retain: true,
            hold: false,
            received_wall_ms: -1,
            topic: "a/b",
            properties: &[38, 0, 1, b'k', 0, 1, b'v'],
            payload: &[0; 200],
        };
        let mut parcels = vec![
            Parcel::RouteDelta { version: 300, add: true, filter: "a/+/#" },
            Parcel::RouteDelta { version: 0, add: false, filter: "" },
            Parcel::RouteAck { version: u64::MAX },
            Parcel::RoutesBegin { name: u64::MAX },
            Parcel::WillCopy { number: u64::MAX, record: b"record" },
            Parcel::WillPair { number: 1, first: 0, record: b"record" },
            Parcel::WillPair { number: 300, first: u64::MAX, record: b"" },
            Parcel::WillsAsk { number: 1, view: 300, owner: u64::MAX },
            Parcel::WillsYield { number: 300 },
            Parcel::WillEnded { number: 1, answer: false },
            Parcel::WillEnded { number: 300, answer: true },
            Parcel::WillGone { number: 1 },
            Parcel::Owns { session: 9, epoch: 1, client_id: "x" },
            Parcel::Yours { epoch: 1, client_id: "x" },
            Parcel::Moved { owner: 7, session: 1 << 40, epoch: 300, gone: false, client_id: "x" },
            Parcel::Moved { owner: 7, session: 3, epoch: 1, gone: true, client_id: "" },
            Parcel::Passed { session: 3, epoch: 2, client_id: "x" },
            Parcel::Relay { number: 300, client_id: "x", head: b"head", payload: b"payload" },
            Parcel::Adopted { view: 300 },
            Parcel::Settled { view: 3 },
            Parcel::RoutesEnd { version: 300 },
            Parcel::Present { version: 1, since: (u64::MAX, 300), client_id: "c" },
            Parcel::ShareDelta { version: 1, text: "$share/g/a", online: u32::MAX, away: 0 },
            Parcel::Share(forward, Share { text: "$share/g/a/+/#", place: 300, again: 2 }),
            Parcel::Forward(forward),
            Parcel::Forward(Forward {
                qos: QoS::AtMostOnce,
                retain: false,
                hold: true,
                number: 0,
                ..forward
            }),
            Parcel::RetainedPut { number: 7, hold: false, stamp: 1 << 63, topic: "t", record: &[] },
            Parcel::RetainedPut { number: 7, hold: true, stamp: 0, topic: "t", record: &[1] },
            Parcel::RetainedCopy { number: 0, stamp: u64::MAX, topic: "t", record: &[1, 2] },
            Parcel::RetainedMark { number: 300, done: false },
            Parcel::RetainedMark { number: 1, done: true },
            Parcel::RetainedAck { number: 300 },
            Parcel::RetainedRange { bucket: 1 << 21, digest: u64::MAX },
            Parcel::RetainedRanges,
            Parcel::RuleRow { number: 1, hold: false, row: b"row" },
            Parcel::RuleRow { number: 2, hold: true, row: b"" },
            Parcel::Joined { number: 3 },
            Parcel::Claim { number: 300, filter: "$exclusive/a", client_id: "c" },
            Parcel::Holds { version: 300, since: (u64::MAX, 1), filter: "$exclusive/a", client_id: "c" },
            Parcel::ClaimLost { filter: "$exclusive/a", client_id: "c" },
            Parcel::Keeps { rule: u64::MAX, keeps: true },
            Parcel::Keeps { rule: 0, keeps: false },
            Parcel::ClaimAck { number: 300, granted: true },
            Parcel::ClaimAck { number: 0, granted: false },
            Parcel::Release { filter: "", client_id: "c" },
            Parcel::Hurry,
        ];
        let outcomes = Reason::ALL.iter().map(|r| Outcome::Discarded(*r));
        let outcomes = outcomes.chain([Outcome::Delivered, Outcome::Retry]);
        parcels.extend(outcomes.map(|outcome| Parcel::Ack { number: 5, outcome }));
        for parcel in parcels {
            let mut bytes = Vec::new();
            parcel.encode(&mut bytes);
            for cut in 0..bytes.len() {
                assert_eq!(Parcel::decode(&bytes[..cut]), Ok(None), "{parcel:?}");
            }
            let len = bytes.len();
            bytes.push(99);
            assert_eq!(Parcel::decode(&bytes).unwrap(), Some((parcel, len)));
        }
    }

    #[test]
    fn what_is_no_parcel_is_an_error() {
        for bytes in [
            &[0][..],
            &[0x13, 0],
            &[0x3f],
            &[11, 1, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0],
            &[6, 1, 99],
            &[3, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255],
        ] {
            assert_eq!(Parcel::decode(bytes), Err(ParcelError), "{bytes:?}");
        }
        assert_eq!(Parcel::decode(&[1, 1, 1, 0xff]), Err(ParcelError), "not UTF-8");
    }
}
