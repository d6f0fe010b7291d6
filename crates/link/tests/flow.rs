//! Rows in, answers out: order, stalled keys, poison, and what a message looks like.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use bytes::Bytes;
use common::{
    BOOT, Random, SECOND, Seen, client_config, connack, disconnect, entry, puback, publishes, row, row_of,
};
use ferrule_link::batching::Batching;
use ferrule_link::client::{Client, Event, Fault};
use ferrule_link::flow::{Flight, Flow};
use ferrule_link::forward::Forwarder;
use ferrule_link::gathering::{Gathering, Metered};
use ferrule_mqtt::{Ack, Packet, PropertiesBuf, Property, QoS, ReasonCode, Version, decode};
use ferrule_outbox::receipt::Reason;
use ferrule_outbox::{Delivered, OutRow};
use ferrule_store::{Boot, Stamp};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const STALL_MAX: Duration = Duration::from_secs(10);

/// An uplink without a socket.
struct Rig {
    flow: Flow,
    client: Client<Flight>,
    now_us: u64,
    out: Vec<u8>,
}

impl Rig {
    fn new(window: u16) -> Self {
        let mut rig = Self {
            flow: Flow::new(STALL_MAX, 1),
            client: Client::new(client_config()),
            now_us: 0,
            out: Vec::new(),
        };
        rig.reconnect(window, None);
        rig
    }

    fn reconnect(&mut self, window: u16, fault: Option<&Fault>) {
        let mut client = Client::new(client_config());
        client.connect(self.now_us, &mut self.out).unwrap();
        client
            .receive(&connack(0, &[Property::ReceiveMaximum(window)]), self.now_us, &mut self.out, |_| ())
            .unwrap();
        self.out.clear();
        self.flow.lost(std::mem::replace(&mut self.client, client), fault);
    }

    fn push(&mut self, rows: impl IntoIterator<Item = OutRow>) {
        self.flow.push(rows.into_iter().collect(), self.now_us);
    }

    /// What a server gets now.
    fn pump(&mut self) -> Vec<Seen> {
        let mut forwarder = Forwarder::new(Boot::new(BOOT), false);
        let (client, out) = (&mut self.client, &mut self.out);
        self.flow.pump(client, &mut forwarder, self.now_us, &Stamp::default(), out, usize::MAX);
        publishes(out)
    }

    fn numbers(&mut self) -> Vec<u64> {
        self.pump().iter().map(Seen::number).collect()
    }

    fn ack(&mut self, packet_id: u16, reason: u8) -> Result<(), Fault> {
        self.receive(&puback(packet_id, reason))
    }

    fn receive(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let (flow, now_us) = (&mut self.flow, self.now_us);
        self.client
            .receive(bytes, now_us, &mut self.out, |event| match event {
                Event::Acked { item, reason, properties } => flow.acked(item, reason, properties, now_us),
                other => panic!("{other:?}"),
            })
            .map(drop)
    }

    fn answers(&mut self) -> Vec<(u64, Delivered)> {
        self.flow.take_answers()
    }

    /// Time passes until a stalled key is due.
    fn wait(&mut self) {
        self.now_us = self.flow.deadline_us(&self.client).unwrap();
    }
}

fn yes(seqs: &[u64]) -> Vec<(u64, Delivered)> {
    seqs.iter().map(|&seq| (seq, Delivered::Yes)).collect()
}

#[test]
fn acknowledgements_in_any_order_answer_each_row_once() {
    let mut rig = Rig::new(3);
    rig.push((1..=5).map(|seq| row(seq, "a")));
    assert_eq!(rig.numbers(), [1, 2, 3]);
    rig.ack(3, 0).unwrap();
    rig.ack(1, 0x10).unwrap();
    assert_eq!(rig.answers(), yes(&[3, 1]));
    assert_eq!(rig.numbers(), [4, 5]);
    assert_eq!((rig.flow.waiting(), rig.client.in_flight()), (0, 3));
}

#[test]
fn a_lost_connection_sends_again_in_order_and_before_the_rest() {
    let mut rig = Rig::new(4);
    rig.push((1..=6).map(|seq| row(seq, "a")));
    assert_eq!(rig.numbers(), [1, 2, 3, 4]);
    rig.ack(2, 0).unwrap();
    rig.reconnect(3, None);
    // Handed out again by an outbox that heard of the loss: taken once.
    rig.push([1, 3, 4, 5, 6, 7].map(|seq| row(seq, "a")));
    assert_eq!(rig.numbers(), [1, 3, 4]);
    assert_eq!(rig.answers(), yes(&[2]));
    for id in 1..=3 {
        rig.ack(id, 0).unwrap();
    }
    assert_eq!(rig.numbers(), [5, 6, 7]);
    assert_eq!(rig.answers(), yes(&[1, 3, 4]));
}

#[test]
fn the_order_is_the_outboxs_even_when_numbers_do_not_ascend() {
    let mut rig = Rig::new(10);
    rig.push([9, 10, 1, 2].map(|seq| row(seq, "a")));
    assert_eq!(rig.numbers(), [9, 10, 1, 2]);
    rig.reconnect(10, None);
    assert_eq!(rig.numbers(), [9, 10, 1, 2]);
}

#[test]
fn not_now_stalls_the_key_and_nothing_else() {
    let mut rig = Rig::new(10);
    rig.push([row(1, "a"), row(2, "b"), row(3, "a")]);
    assert_eq!(rig.numbers(), [1, 2, 3]);
    rig.ack(1, 0x97).unwrap();
    rig.push([row(4, "a"), row(5, "b")]);
    assert_eq!(rig.numbers(), [5], "4 waits behind 1");
    rig.ack(2, 0).unwrap();
    rig.ack(3, 0x97).unwrap();
    assert_eq!((rig.answers(), rig.flow.waiting(), rig.flow.deferred()), (yes(&[2]), 3, 2));
    // Refused again: the back-off doubles, up to its maximum.
    let mut delays = Vec::new();
    for _ in 0..10 {
        let before = rig.now_us;
        rig.wait();
        delays.push(rig.now_us - before);
        let sent = rig.pump();
        assert_eq!(sent.iter().map(Seen::number).collect::<Vec<_>>(), [1]);
        assert_eq!(rig.flow.deadline_us(&rig.client), None, "1 is in flight");
        rig.ack(sent[0].packet_id, 0x80).unwrap();
    }
    assert!(delays[0] <= 100_000 && delays[9] >= 5 * SECOND, "{delays:?}");
    rig.wait();
    let sent = rig.pump();
    rig.ack(sent[0].packet_id, 0).unwrap();
    assert_eq!(rig.numbers(), [3, 4], "the key goes on in order");
    assert_eq!(rig.answers(), yes(&[1]));
}

#[test]
fn a_stalled_key_goes_on_after_a_refusal_and_after_qos_0() {
    let mut rig = Rig::new(10);
    let at_most_once = {
        let mut entry = entry(2, "a");
        entry.qos = 0;
        row_of(entry)
    };
    rig.push([row(1, "a")]);
    assert_eq!(rig.numbers(), [1]);
    rig.ack(1, 0x83).unwrap();
    rig.push([at_most_once, row(3, "a")]);
    assert_eq!(rig.numbers(), [0; 0]);
    rig.wait();
    let sent = rig.pump();
    rig.ack(sent[0].packet_id, 0x87).unwrap();
    assert_eq!(rig.answers(), [(1, Delivered::Discarded(Reason::Refused))]);
    assert_eq!(rig.numbers(), [2, 3]);
    assert_eq!(rig.answers(), [], "2 is not written yet");
    rig.flow.written();
    assert_eq!(rig.answers(), yes(&[2]));
}

#[test]
fn a_lost_connection_ends_stalls() {
    let mut rig = Rig::new(10);
    rig.push([row(1, "a"), row(2, "a"), row(3, "b")]);
    rig.numbers();
    rig.ack(1, 0x97).unwrap();
    rig.push([row(4, "a")]);
    assert_eq!(rig.numbers(), [0; 0]);
    rig.reconnect(10, None);
    assert_eq!(rig.numbers(), [1, 2, 3, 4]);
}

#[test]
fn what_can_never_be_sent_is_discarded_with_its_reason() {
    let with = |seq, change: &dyn Fn(&mut ferrule_store::record::Entry)| {
        let mut entry = entry(seq, "a");
        change(&mut entry);
        row_of(entry)
    };
    let mut rig = Rig::new(10);
    let mut expiry = PropertiesBuf::new();
    expiry.push(Property::MessageExpiryInterval(1)).unwrap();
    let expiry = Bytes::copy_from_slice(expiry.as_properties().as_bytes());
    rig.push([
        with(1, &|e| e.target = "a/#".into()),
        with(2, &|e| e.target = "".into()),
        with(3, &|e| e.target = "x".repeat(70_000).into()),
        with(4, &|e| e.hops = 8),
        with(5, &|e| {
            e.identity.boot = Boot::new(1);
            e.properties = expiry.clone();
            e.received.wall_ms = -10_000;
        }),
        with(6, &|e| e.hops = 7),
    ]);
    // Clocks that are set on both sides tell the age across boots.
    let stamp = Stamp { wall_ms: 0, mono_us: 0, synced: true };
    let mut forwarder = Forwarder::new(Boot::new(BOOT), false);
    rig.flow.pump(&mut rig.client, &mut forwarder, 0, &stamp, &mut rig.out, usize::MAX);
    assert_eq!(publishes(&mut rig.out).iter().map(Seen::number).collect::<Vec<_>>(), [6]);
    let gone = |seq, reason| (seq, Delivered::Discarded(reason));
    assert_eq!(
        rig.answers(),
        [
            gone(1, Reason::Target),
            gone(2, Reason::Target),
            gone(3, Reason::Target),
            gone(4, Reason::Loop),
            gone(5, Reason::Expired)
        ]
    );

    let mut small = Rig::new(10);
    small.client = Client::new(client_config());
    small.client.connect(0, &mut Vec::new()).unwrap();
    small
        .client
        .receive(&connack(0, &[Property::MaximumPacketSize(50)]), 0, &mut Vec::new(), |_| ())
        .unwrap();
    small.push([with(1, &|e| e.payload = vec![0; 100].into()), row(2, "a")]);
    assert_eq!(small.numbers(), [2]);
    assert_eq!(small.answers(), [gone(1, Reason::TooLarge)]);
}

#[test]
fn one_poison_row_is_found_and_no_other_is_lost() {
    const POISON: u64 = 3;
    for (code, reason) in [(0x95, Reason::TooLarge), (0x99, Reason::Refused), (0x90, Reason::Refused)] {
        let mut rig = Rig::new(4);
        rig.push((1..=8).map(|seq| row(seq, "a")));
        let mut answers = Vec::new();
        let mut delivered = BTreeSet::new();
        for _ in 0..40 {
            let sent = rig.pump();
            let mut fault = None;
            for publish in &sent {
                // The broker takes nothing of what came with the poison, like one that reads in blocks.
                if sent.iter().any(|p| p.number() == POISON) {
                    fault = rig.receive(&disconnect(code, "")).err();
                    break;
                }
                delivered.insert(publish.number());
                rig.ack(publish.packet_id, 0).unwrap();
            }
            answers.extend(rig.answers());
            if fault.is_some() {
                rig.reconnect(4, fault.as_ref());
            }
        }
        answers.sort_by_key(|(seq, _)| *seq);
        let expect: Vec<_> = (1..=8)
            .map(|seq| (seq, if seq == POISON { Delivered::Discarded(reason) } else { Delivered::Yes }))
            .collect();
        assert_eq!(answers, expect, "{code:#x}");
        assert_eq!(delivered.len(), 7);
        assert_eq!((rig.flow.waiting(), rig.client.in_flight()), (0, 0));
    }
}

#[test]
fn a_poison_row_of_qos_0_costs_no_other() {
    let at_most_once = {
        let mut entry = entry(1, "a");
        entry.qos = 0;
        row_of(entry)
    };
    let mut rig = Rig::new(4);
    rig.push([at_most_once, row(2, "a"), row(3, "a")]);
    assert_eq!(rig.numbers(), [1, 2, 3]);
    let fault = rig.receive(&disconnect(0x99, "")).unwrap_err();
    rig.reconnect(4, Some(&fault));
    assert_eq!(rig.answers(), yes(&[1]), "it may have arrived: it is not sent twice");
    assert_eq!(rig.numbers(), [2], "one at a time");
    rig.ack(1, 0).unwrap();
    assert_eq!(rig.numbers(), [3]);
    rig.ack(2, 0).unwrap();
    rig.push([row(4, "a"), row(5, "a")]);
    assert_eq!(rig.numbers(), [4, 5], "no suspicion is left");
    assert_eq!(rig.answers(), yes(&[2, 3]));
}

#[test]
fn a_connection_that_just_breaks_never_costs_a_row() {
    let mut rig = Rig::new(4);
    rig.push([row(1, "a")]);
    for _ in 0..20 {
        assert_eq!(rig.numbers(), [1]);
        let fault = rig.receive(&disconnect(0x87, "")).unwrap_err();
        rig.reconnect(4, Some(&fault));
        assert_eq!(rig.numbers(), [1]);
        rig.reconnect(4, None);
    }
    assert_eq!(rig.answers(), []);
}

/// A broker that acknowledges in any order, refuses now and then, and loses connections: each row is answered once,
/// and at the broker what it accepted first of each key ascends, except after a refusal (flow.rs, "Order").
#[test]
fn seeds() {
    const ROWS: u64 = 300;
    for seed in 1..=200 {
        let mut random = Random(seed);
        let refuses = seed % 2 == 0;
        let mut rig = Rig::new(8);
        let (mut next, mut answered) = (1, BTreeMap::new());
        let mut open: Vec<Seen> = Vec::new();
        let mut arrived: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for step in 0.. {
            assert!(step < 100_000, "seed {seed}: stuck with {} answers", answered.len());
            // The outbox keeps to the window.
            while next <= ROWS && next - 1 - (answered.len() as u64) < 8 && random.below(3) > 0 {
                rig.push([row(next, ["a", "b", "c"][random.below(3)])]);
                next += 1;
            }
            for publish in rig.pump() {
                arrived.entry(publish.topic.clone()).or_default().push(publish.number());
                open.push(publish);
            }
            if open.is_empty() {
                if let Some(due) = rig.flow.deadline_us(&rig.client) {
                    rig.now_us = rig.now_us.max(due);
                }
            } else {
                let publish = open.swap_remove(random.below(open.len()));
                let reason = if refuses && random.below(5) == 0 { 0x97 } else { 0 };
                rig.ack(publish.packet_id, reason).unwrap();
            }
            if random.below(20) == 0 {
                rig.reconnect(1 + random.below(8) as u16, None);
                open.clear();
            }
            for (seq, answer) in rig.answers() {
                assert_eq!(answered.insert(seq, answer), None, "seed {seed}: row {seq} answered twice");
            }
            if answered.len() as u64 == ROWS {
                break;
            }
        }
        assert!(answered.values().all(|answer| *answer == Delivered::Yes));
        assert_eq!((rig.flow.waiting(), rig.client.in_flight()), (0, 0), "seed {seed}");
        let total: BTreeSet<u64> = arrived.values().flatten().copied().collect();
        assert_eq!(total.len() as u64, ROWS, "seed {seed}: lost");
        for (key, numbers) in &arrived {
            let mut highest = 0;
            let mut first = BTreeSet::new();
            for &number in numbers {
                assert!(
                    !first.insert(number) || number > highest,
                    "seed {seed}, {key}: {number} after {highest}"
                );
                highest = highest.max(number);
            }
        }
    }
}

// === batches ===

/// A cloud that knows batches, and takes packets of so many bytes.
fn batching(delay: Duration, window: usize, packet_max: u32) -> (Rig, ferrule_batch::Decoder) {
    let mut rig = Rig::new(4);
    let mut client = Client::new(client_config());
    client.connect(0, &mut rig.out).unwrap();
    let says = [
        Property::ReceiveMaximum(4),
        Property::MaximumPacketSize(packet_max),
        Property::UserProperty("ferrule", "1"),
        Property::UserProperty("ferrule-batch", "1"),
        Property::UserProperty("ferrule-dictionary", &ferrule_batch::dictionary::name()),
    ];
    client.receive(&connack(0, &says), 0, &mut rig.out, |_| ()).unwrap();
    rig.out.clear();
    let accepted = client.accepted().unwrap().clone();
    rig.flow.lost(std::mem::replace(&mut rig.client, client), None);
    rig.flow.set_batching(Batching::new(&accepted, delay, window).unwrap());
    (rig, ferrule_batch::Decoder::new())
}

impl Rig {
    /// What goes out now: of batches the payloads in them, of others `alone:` and theirs.
    fn batches(&mut self, decoder: &mut ferrule_batch::Decoder) -> Vec<Vec<String>> {
        let mut forwarder = Forwarder::new(Boot::new(BOOT), true);
        let (client, out) = (&mut self.client, &mut self.out);
        self.flow.pump(client, &mut forwarder, self.now_us, &Stamp::default(), out, usize::MAX);
        let mut batches = Vec::new();
        let mut at = 0;
        while let Some((packet, size)) = decode(&out[at..], Some(Version::V5), usize::MAX).unwrap() {
            at += size;
            let Packet::Publish(publish) = packet else { panic!("{packet:?}") };
            let text = |payload: &[u8]| String::from_utf8(payload.to_vec()).unwrap();
            if publish.topic == ferrule_batch::TOPIC {
                let batch = decoder.decode(publish.payload).unwrap();
                assert_eq!(batch.items().any(|item| item.acknowledged), publish.qos == QoS::AtLeastOnce);
                batches.push(batch.items().map(|item| text(item.payload)).collect());
            } else {
                batches.push(vec![format!("alone:{}", text(&publish.payload[..1]))]);
            }
        }
        out.clear();
        batches
    }

    fn ack_refusing(&mut self, packet_id: u16, refused: &str) {
        let mut properties = PropertiesBuf::new();
        properties.push(Property::UserProperty(ferrule_batch::REFUSED_NAME, refused)).unwrap();
        let ack = Ack { packet_id, reason: ReasonCode::SUCCESS, properties: properties.as_properties() };
        let mut bytes = Vec::new();
        Packet::Puback(ack).encode(Version::V5, &mut bytes).unwrap();
        self.receive(&bytes).unwrap();
    }
}

const DELAY: Duration = Duration::from_millis(20);

#[test]
fn a_batch_waits_for_its_delay_and_no_longer() {
    let (mut rig, mut decoder) = batching(DELAY, 100, 1 << 20);
    rig.push([row(1, "a"), row(2, "b")]);
    assert!(rig.batches(&mut decoder).is_empty());
    rig.now_us = 19_999;
    rig.push([row(3, "a")]);
    assert!(rig.batches(&mut decoder).is_empty());
    assert_eq!(rig.flow.deadline_us(&rig.client), Some(20_000));
    rig.now_us = 20_000;
    assert_eq!(rig.batches(&mut decoder), [["1", "2", "3"]]);
    assert_eq!(rig.flow.deadline_us(&rig.client), None);
    assert_eq!(rig.answers(), []);
    rig.ack(1, 0).unwrap();
    assert_eq!(rig.answers(), yes(&[1, 2, 3]));
    assert_eq!((rig.flow.sent(), rig.flow.batches(), rig.flow.waiting()), (3, 1, 0));
    // Nobody comes any more.
    rig.push([row(4, "a")]);
    rig.flow.hurry();
    assert_eq!(rig.batches(&mut decoder), [["4"]]);
}

#[test]
fn a_backlog_waits_for_nothing() {
    // All that the outbox may hand out is here.
    let (mut rig, mut decoder) = batching(DELAY, 3, 1 << 20);
    rig.push((1..=3).map(|seq| row(seq, "a")));
    assert_eq!(rig.batches(&mut decoder), [["1", "2", "3"]]);
    // What waits fills a batch, and the rest of it goes with the next.
    let (mut rig, mut decoder) = batching(DELAY, 10_000, 1 << 20);
    let large = |seq: u64| {
        let mut entry = entry(seq, "a");
        entry.payload = format!("{seq:020000}").into();
        row_of(entry)
    };
    rig.push((1..=4).map(large));
    let sizes: Vec<_> = rig.batches(&mut decoder).iter().map(Vec::len).collect();
    assert_eq!(sizes, [3]);
    assert_eq!(rig.flow.waiting(), 1);
    rig.now_us = 20_000;
    assert_eq!(rig.batches(&mut decoder).len(), 1);
}

#[test]
fn what_is_larger_than_a_batch_goes_alone_and_in_its_place() {
    let (mut rig, mut decoder) = batching(Duration::ZERO, 100, 1 << 20);
    let mut large = entry(2, "a");
    large.payload = vec![b'x'; ferrule_batch::PLAIN_MAX].into();
    rig.push([row(1, "a"), row_of(large), row(3, "a"), row(4, "a")]);
    assert_eq!(rig.batches(&mut decoder), [vec!["1"], vec!["alone:x"], vec!["3", "4"]]);
    // To a cloud that takes small packets a batch is one, too.
    let (mut rig, mut decoder) = batching(Duration::ZERO, 100, 120);
    rig.push((1..=20).map(|seq| row(seq, "a")));
    let batches = rig.batches(&mut decoder);
    assert!(batches.len() > 1, "{batches:?}");
    assert_eq!(batches.concat(), (1..=20).map(|seq| seq.to_string()).collect::<Vec<_>>());
}

#[test]
fn a_refused_message_costs_no_other() {
    let (mut rig, mut decoder) = batching(Duration::ZERO, 100, 1 << 20);
    let mut unanswered = entry(1, "a");
    unanswered.qos = 0;
    rig.push([row_of(unanswered), row(2, "a"), row(3, "b"), row(4, "c"), row(5, "d")]);
    assert_eq!(rig.batches(&mut decoder), [["1", "2", "3", "4", "5"]]);
    rig.flow.written();
    assert_eq!(rig.answers(), yes(&[1]));
    // One never, one not now; what makes no sense refuses nothing.
    rig.ack_refusing(1, "1:135,3:151,77:135,x,0:135");
    assert_eq!(
        rig.answers(),
        [(2, Delivered::Discarded(Reason::Refused)), (3, Delivered::Yes), (5, Delivered::Yes)]
    );
    rig.push([row(6, "c"), row(7, "d")]);
    assert_eq!(rig.batches(&mut decoder), [["7"]]);
    rig.ack(2, 0).unwrap();
    rig.wait();
    assert_eq!(rig.batches(&mut decoder), [["alone:4"]]);
    rig.ack(3, 0).unwrap();
    assert_eq!(rig.batches(&mut decoder), [["6"]]);
}

#[test]
fn a_batch_that_is_refused_whole_goes_one_by_one() {
    for reason in [0x83, 0x99, 0x87] {
        let (mut rig, mut decoder) = batching(Duration::ZERO, 100, 1 << 20);
        rig.push([row(1, "a"), row(2, "b")]);
        assert_eq!(rig.batches(&mut decoder), [["1", "2"]]);
        rig.ack(1, reason).unwrap();
        assert_eq!(rig.answers(), []);
        assert_eq!(rig.batches(&mut decoder), [["alone:1"], ["alone:2"]]);
    }
}

#[test]
fn a_lost_connection_sends_a_batchs_rows_again_in_order() {
    let (mut rig, mut decoder) = batching(Duration::ZERO, 100, 1 << 20);
    rig.push([row(1, "a"), row(2, "b")]);
    assert_eq!(rig.batches(&mut decoder).len(), 1);
    rig.push([row(3, "a")]);
    assert_eq!(rig.batches(&mut decoder).len(), 1);
    rig.ack(2, 0).unwrap();
    rig.reconnect(4, None);
    assert_eq!(rig.answers(), yes(&[3]));
    // To a broker that knows none.
    assert_eq!(rig.numbers(), [1, 2]);
}

#[test]
fn what_the_broker_cannot_stand_is_looked_for_alone() {
    let (mut rig, mut decoder) = batching(Duration::ZERO, 100, 1 << 20);
    rig.push([row(1, "a"), row(2, "b")]);
    assert_eq!(rig.batches(&mut decoder).len(), 1);
    let fault = rig.receive(&disconnect(0x99, "")).unwrap_err();
    rig.reconnect(4, Some(&fault));
    assert_eq!(rig.numbers(), [1]);
    rig.ack(1, 0).unwrap();
    assert_eq!(rig.numbers(), [2]);
    let fault = rig.receive(&disconnect(0x99, "")).unwrap_err();
    rig.reconnect(4, Some(&fault));
    assert_eq!(rig.answers(), [(1, Delivered::Yes), (2, Delivered::Discarded(Reason::Refused))]);
}

// === a link that is paid for ===

const METERED: Metered = Metered { bytes: 450, time: Duration::from_secs(60) };

impl Rig {
    fn metered(mut self) -> Self {
        self.flow.set_metered(Some(Gathering::of_metered(&METERED, METERED.window())));
        self
    }
}

#[test]
fn rows_wait_for_the_time_and_leave_in_one_burst_of_as_many_windows_as_it_takes() {
    let mut rig = Rig::new(2).metered();
    rig.push((1..=3).map(|seq| row(seq, "a")));
    assert_eq!(rig.numbers(), [0; 0]);
    assert_eq!(rig.flow.deadline_us(&rig.client), Some(60 * SECOND));
    rig.now_us = 60 * SECOND - 1;
    rig.push([row(4, "a")]);
    assert_eq!(rig.numbers(), [0; 0]);
    rig.now_us += 1;
    assert_eq!(rig.numbers(), [1, 2]);
    // Too late for this burst.
    rig.push([row(5, "a")]);
    for id in [1, 2] {
        rig.ack(id, 0).unwrap();
    }
    assert_eq!(rig.numbers(), [3, 4]);
    for id in [1, 2] {
        rig.ack(id, 0).unwrap();
    }
    assert_eq!(rig.numbers(), [0; 0]);
    assert_eq!(rig.flow.deadline_us(&rig.client), Some(120 * SECOND));
    assert_eq!(rig.answers(), yes(&[1, 2, 3, 4]));
    // Nobody comes any more.
    rig.flow.hurry();
    assert_eq!(rig.numbers(), [5]);
}

#[test]
fn enough_bytes_wait_for_no_time() {
    let mut rig = Rig::new(100).metered();
    // Each counts 41.
    rig.push((1..=9).map(|seq| row(seq, "a")));
    rig.push([row(10, "a")]);
    assert_eq!(rig.numbers(), [0; 0]);
    rig.push([row(11, "a")]);
    assert_eq!(rig.numbers(), (1..=11).collect::<Vec<_>>());
}

#[test]
fn the_number_of_small_rows_never_ends_the_wait_before_their_bytes_do() {
    let mut rig = Rig::new(10).metered();
    let empty = |seq| {
        let mut entry = entry(seq, "a");
        entry.payload = Bytes::new();
        row_of(entry)
    };
    // As many as the outbox hands out, less one.
    rig.push((1..METERED.window() as u64).map(empty));
    assert_eq!(rig.pump().len(), 0);
    rig.push([empty(99)]);
    assert_eq!(rig.pump().len(), 10);
}

#[test]
fn what_was_on_its_way_when_the_connection_was_lost_waits_no_second_time() {
    let mut rig = Rig::new(10).metered();
    rig.push([row(1, "a"), row(2, "a")]);
    rig.now_us = 60 * SECOND;
    assert_eq!(rig.numbers(), [1, 2]);
    rig.push([row(3, "a")]);
    rig.reconnect(10, None);
    assert_eq!(rig.numbers(), [1, 2]);
    assert_eq!(rig.flow.deadline_us(&rig.client), Some(120 * SECOND));
}

#[test]
fn to_a_ferrule_cloud_a_burst_is_batches() {
    let (rig, mut decoder) = batching(DELAY, 100, 1 << 20);
    let mut rig = rig.metered();
    rig.push([row(1, "a"), row(2, "b")]);
    rig.now_us = SECOND;
    rig.push([row(3, "a")]);
    assert!(rig.batches(&mut decoder).is_empty());
    rig.now_us = 60 * SECOND;
    assert_eq!(rig.batches(&mut decoder), [["1", "2", "3"]]);
    // Refused whole: one by one, and still together.
    rig.ack(1, 0x83).unwrap();
    assert_eq!(rig.batches(&mut decoder), [["alone:1"], ["alone:2"], ["alone:3"]]);
    rig.push([row(4, "a")]);
    assert!(rig.batches(&mut decoder).is_empty());
}

#[test]
fn a_key_that_stalls_keeps_no_burst_open() {
    let mut rig = Rig::new(10).metered();
    rig.push([row(1, "a"), row(2, "b")]);
    rig.now_us = 60 * SECOND;
    assert_eq!(rig.numbers(), [1, 2]);
    rig.ack(1, 0x97).unwrap();
    rig.push([row(3, "b"), row(4, "a")]);
    assert_eq!(rig.numbers(), [0; 0]);
    rig.wait();
    assert_eq!(rig.numbers(), [1], "a stalled row is tried when it is due");
}

// === the forwarded message ===

fn forwarded(entry: &ferrule_store::record::Entry, identity: bool, now: Stamp) -> Vec<String> {
    said(entry, identity, false, now)
}

fn said(entry: &ferrule_store::record::Entry, identity: bool, late: bool, now: Stamp) -> Vec<String> {
    let mut forwarder = Forwarder::new(Boot::new(BOOT), identity);
    let properties = forwarder.properties(entry, late, &now).unwrap();
    properties
        .iter()
        .map(|property| match property {
            Property::UserProperty(name, value) => format!("{name}={value}"),
            other => format!("{other:?}"),
        })
        .collect()
}

#[test]
fn a_row_that_others_went_ahead_of_says_so_where_identities_are_said() {
    let entry = row(1, "a").entry;
    let is_late = |said: &[String]| said.iter().any(|property| property == "ferrule-late=1");
    let now = Stamp::default();
    for (identity, late) in [(true, true), (true, false), (false, true)] {
        assert_eq!(is_late(&said(&entry, identity, late, now)), identity && late);
    }
    // In a batch as alone.
    let (mut rig, mut decoder) = batching(Duration::ZERO, 16, 1 << 20);
    let mut rows = [row(1, "a"), row(2, "b")];
    rows[0].late = true;
    rig.push(rows);
    let mut forwarder = Forwarder::new(Boot::new(BOOT), true);
    let (client, out) = (&mut rig.client, &mut rig.out);
    rig.flow.pump(client, &mut forwarder, 0, &now, out, usize::MAX);
    let Some((Packet::Publish(publish), _)) = decode(out, Some(Version::V5), usize::MAX).unwrap() else {
        panic!("no batch")
    };
    let batch = decoder.decode(publish.payload).unwrap();
    assert_eq!(batch.items().map(|item| item.late).collect::<Vec<_>>(), [true, false]);
}

#[test]
fn a_message_carries_the_devices_identity_and_its_own_properties() {
    let mut own = PropertiesBuf::new();
    for property in [
        Property::UserProperty("ferrule-id", "1.0.1"),
        Property::UserProperty("site", "north"),
        Property::ContentType("text/plain"),
        Property::UserProperty("ferrule-client", "someone else"),
        Property::UserProperty("site", "south"),
        Property::TopicAlias(3),
        Property::SubscriptionIdentifier(4),
        Property::MessageExpiryInterval(60),
        Property::CorrelationData(&[0, 1]),
    ] {
        own.push(property).unwrap();
    }
    let mut entry = entry(42, "sensor-1");
    entry.username = Some("sensors".into());
    entry.hops = 1;
    entry.received = Stamp { wall_ms: 1_700_000_000_123, mono_us: 5 * SECOND, synced: false };
    entry.properties = Bytes::copy_from_slice(own.as_properties().as_bytes());
    let now = Stamp { wall_ms: 0, mono_us: 7 * SECOND + 500_999, synced: true };
    let device = [
        "MessageExpiryInterval(58)",
        "site=north",
        "ContentType(\"text/plain\")",
        "site=south",
        "CorrelationData([0, 1])",
    ];
    let identity = [
        "ferrule-id=b007.0.42",
        "ferrule-client=sensor-1",
        "ferrule-user=sensors",
        "ferrule-at=1700000000123?",
        "ferrule-age=2500",
        "ferrule-hops=2",
    ];
    assert_eq!(forwarded(&entry, true, now), [&identity[..], &device[..]].concat());
    assert_eq!(forwarded(&entry, false, now), device);

    entry.username = None;
    entry.received.synced = true;
    entry.properties = Bytes::from_static(&[0xFF, 0xFF]);
    let damaged = forwarded(&entry, true, now);
    assert_eq!(damaged.len(), 5, "the message goes without properties that cannot be read: {damaged:?}");
    assert_eq!(damaged[2], "ferrule-at=1700000000123");
}

#[test]
fn the_age_is_exact_within_a_boot_and_a_lower_bound_across() {
    let stamp = |wall_ms, mono_us, synced| Stamp { wall_ms, mono_us, synced };
    for (same_boot, received, now, age) in [
        (true, stamp(0, 1_000_000, false), stamp(99_999, 3_500_000, true), 2_500),
        (true, stamp(0, 5_000_000, false), stamp(0, 3_000_000, true), 0),
        // Up for 3 s: at least that old.
        (false, stamp(0, 9_000_000, false), stamp(50_000, 3_000_000, true), 3_000),
        (false, stamp(0, 9_000_000, true), stamp(50_000, 3_000_000, false), 3_000),
        (false, stamp(10_000, 9_000_000, true), stamp(50_000, 3_000_000, true), 40_000),
        (false, stamp(90_000, 9_000_000, true), stamp(50_000, 3_000_000, true), 3_000),
    ] {
        let mut entry = entry(1, "a");
        entry.received = received;
        entry.identity.boot = Boot::new(if same_boot { BOOT } else { BOOT + 1 });
        assert_eq!(entry.age_ms(Boot::new(BOOT), &now), age, "{same_boot} {received:?} {now:?}");
    }
}
