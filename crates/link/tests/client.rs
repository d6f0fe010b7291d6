//! The client's state machine against tables, seeds and random orders of acknowledgement.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{SECOND, client_config, connack, connack_of, disconnect, puback, publishes, suback};
use ferrule_link::client::{Accepted, Client, ClientConfig, Event, Fault, Outgoing, Retry, Sent, Verdict};
use ferrule_mqtt::{
    Packet, Properties, Property, Publish, QoS, ReasonCode, SubscribeFiltersBuf, SubscribeOptions, Version,
    decode,
};
use proptest::prelude::*;

const T0: u64 = 1_000 * SECOND;

fn message(topic: &str) -> Outgoing<'_> {
    Outgoing { qos: QoS::AtLeastOnce, retain: false, topic, properties: &[], payload: b"1" }
}

fn begun(config: ClientConfig) -> Client<u64> {
    let mut client = Client::new(config);
    client.connect(T0, &mut Vec::new()).unwrap();
    client
}

fn up_with(config: ClientConfig, answer: &[u8]) -> (Client<u64>, Accepted) {
    let mut client = begun(config);
    let mut accepted = None;
    let used = client.receive(answer, T0, &mut Vec::new(), |event| {
        let Event::Connected(answer) = event else { panic!("{event:?}") };
        accepted = Some(answer);
    });
    assert_eq!(used, Ok(answer.len()));
    (client, accepted.unwrap())
}

fn up() -> Client<u64> {
    up_with(client_config(), &connack(0, &[])).0
}

fn acks(client: &mut Client<u64>, bytes: &[u8]) -> Result<Vec<(u64, u8)>, Fault> {
    let mut acked = Vec::new();
    client.receive(bytes, T0, &mut Vec::new(), |event| match event {
        Event::Acked { item, reason, .. } => acked.push((item, reason.0)),
        other => panic!("{other:?}"),
    })?;
    Ok(acked)
}

#[test]
fn connect_says_who_we_are() {
    let mut config = client_config();
    config.username = Some("u".to_owned());
    config.password = Some(vec![0, 255]);
    let mut out = Vec::new();
    Client::<u64>::new(config).connect(0, &mut out).unwrap();
    let Ok(Some((Packet::Connect(connect), used))) = decode(&out, None, 1 << 20) else { panic!("{out:?}") };
    assert_eq!(used, out.len());
    assert_eq!((connect.version, connect.clean_start, connect.keep_alive), (Version::V5, true, 10));
    assert_eq!((connect.client_id, connect.username), ("ferrule-press-7", Some("u")));
    assert_eq!(connect.password, Some(&[0, 255][..]));
    assert_eq!(connect.properties.user_properties().collect::<Vec<_>>(), [("ferrule", "1")]);
}

#[test]
fn every_refusal_has_its_answer() {
    use Retry::{Operator, Slowly, Soon};
    for (code, retry) in [
        (0x80, Soon),
        (0x81, Operator),
        (0x82, Operator),
        (0x83, Soon),
        (0x84, Operator),
        (0x85, Operator),
        (0x86, Operator),
        (0x87, Operator),
        (0x88, Soon),
        (0x89, Soon),
        (0x8A, Operator),
        (0x8C, Operator),
        (0x90, Slowly),
        (0x95, Slowly),
        (0x97, Slowly),
        (0x99, Slowly),
        (0x9A, Slowly),
        (0x9B, Slowly),
        (0x9C, Soon),
        (0x9D, Operator),
        (0x9F, Slowly),
    ] {
        let answer = connack(code, &[Property::ReasonString("why"), Property::ServerReference("other:1883")]);
        let fault = begun(client_config()).receive(&answer, T0, &mut Vec::new(), |_| ()).unwrap_err();
        assert_eq!(fault.retry(), retry, "{code:#x}");
        let Fault::Refused(refusal) = &fault else { panic!("{fault:?}") };
        assert_eq!((refusal.reason.0, refusal.text.as_deref()), (code, Some("why")));
        let text = fault.to_string();
        assert!(
            text.contains(ReasonCode(code).name()) && text.contains("why") && text.contains("other:1883"),
            "{text}"
        );
    }
}

#[test]
fn refusals_of_3_1_1_have_theirs() {
    use Retry::{Operator, Soon};
    let mut config = client_config();
    config.version = Version::V3_1_1;
    for (code, retry) in [(1, Operator), (2, Operator), (3, Soon), (4, Operator), (5, Operator)] {
        let answer = [0x20, 2, 0, code];
        let fault = begun(config.clone()).receive(&answer, T0, &mut Vec::new(), |_| ()).unwrap_err();
        assert_eq!(fault.retry(), retry, "{fault}");
        // An old server answers a CONNECT of version 5 in the same words.
        let fault = begun(client_config()).receive(&answer, T0, &mut Vec::new(), |_| ()).unwrap_err();
        assert_eq!(fault.retry(), retry, "{fault}");
    }
    let (client, accepted) = up_with(config, &connack_of(Version::V3_1_1, 0, &[]));
    assert_eq!((accepted.window, client.room()), (100, 100));
}

#[test]
fn connack_properties_are_honoured() {
    let (client, accepted) = up_with(
        client_config(),
        &connack(
            0,
            &[
                Property::ReceiveMaximum(7),
                Property::ServerKeepAlive(3),
                Property::MaximumPacketSize(99),
                Property::RetainAvailable(false),
                Property::UserProperty("ferrule", "1"),
            ],
        ),
    );
    let expect = Accepted {
        session_present: false,
        window: 7,
        keep_alive_s: 3,
        max_packet_size: 99,
        retain_available: false,
        ferrule: true,
        batch: false,
        dictionary: false,
    };
    assert_eq!(accepted, expect);
    assert_eq!(client.accepted(), Some(&expect));

    for (name, value) in [("ferrule", "2"), ("Ferrule", "1"), ("x", "1")] {
        let answer = connack(0, &[Property::UserProperty(name, value)]);
        assert!(!up_with(client_config(), &answer).1.ferrule, "{name}: {value}");
    }
    let fault = begun(client_config())
        .receive(&connack(0, &[Property::MaximumQoS(QoS::AtMostOnce)]), T0, &mut Vec::new(), |_| ())
        .unwrap_err();
    assert_eq!(fault.retry(), Retry::Operator, "{fault}");
}

#[test]
fn what_does_not_belong_ends_the_connection() {
    let publish = |qos, topic| {
        let packet = Publish {
            dup: false,
            qos,
            retain: false,
            topic,
            packet_id: 9,
            properties: Properties::EMPTY,
            payload: b"",
        };
        common::bytes(Packet::Publish(packet), Version::V5)
    };
    for (what, bytes) in [
        ("PUBACK of a free id", puback(1, 0)),
        ("PUBACK of a high id", puback(60_000, 0)),
        ("CONNACK again", connack(0, &[])),
        ("PINGREQ", vec![0xC0, 0]),
        ("AUTH", vec![0xF0, 0]),
        ("garbage", vec![0x00, 0]),
        ("QoS 2", publish(QoS::ExactlyOnce, "a")),
    ] {
        let mut out = Vec::new();
        let mut client = up();
        let fault = client.receive(&bytes, T0, &mut out, |event| panic!("{what}: {event:?}")).unwrap_err();
        assert!(matches!(fault, Fault::Protocol(_) | Fault::Malformed(_)), "{what}: {fault}");
        let last = decode(&out, Some(Version::V5), 1024).unwrap().map(|(packet, _)| packet);
        let Some(Packet::Disconnect(last)) = last else { panic!("{what}: {last:?}") };
        assert!(last.reason.is_error(), "{what}");
        assert_eq!((client.room(), client.deadline_us(), client.accepted()), (0, None, None), "{what}");
    }
    let fault = begun(client_config()).receive(&puback(1, 0), T0, &mut Vec::new(), |_| ()).unwrap_err();
    assert!(matches!(fault, Fault::Protocol(_)), "before CONNACK: {fault}");
}

#[test]
fn an_id_acknowledged_twice_never_answers_for_another_message() {
    let mut client = up_with(client_config(), &connack(0, &[Property::ReceiveMaximum(2)])).0;
    let mut out = Vec::new();
    assert_eq!(client.publish(1, &message("t"), T0, &mut out), Sent::Awaiting);
    assert_eq!(acks(&mut client, &puback(1, 0)), Ok(vec![(1, 0)]));
    assert_eq!(client.publish(2, &message("t"), T0, &mut out), Sent::Awaiting);
    assert!(acks(&mut client, &puback(1, 0)).is_err());
    assert_eq!(client.into_in_flight().collect::<Vec<_>>(), [2]);
}

#[test]
fn verdicts() {
    for (code, verdict) in [
        (0x00, Verdict::Delivered),
        (0x10, Verdict::Delivered),
        (0x80, Verdict::Later),
        (0x83, Verdict::Later),
        (0x97, Verdict::Later),
        (0x91, Verdict::Later),
        (0x87, Verdict::Refused),
        (0x90, Verdict::Refused),
        (0x99, Verdict::Refused),
        (0xFF, Verdict::Later),
    ] {
        assert_eq!(Verdict::of(ReasonCode(code)), verdict, "{code:#x}");
    }
}

#[test]
fn what_the_server_cannot_take_is_not_sent() {
    let mut client = up_with(client_config(), &connack(0, &[Property::MaximumPacketSize(20)])).0;
    let mut out = Vec::new();
    let large = Outgoing { payload: &[b'x'; 12], ..message("topic") };
    assert_eq!(client.publish(1, &large, T0, &mut out), Sent::TooLarge(1));
    assert!(out.is_empty());
    // 2 header + 2 + 5 topic + 2 id + 1 properties + 8 = 20: just fits.
    let fits = Outgoing { payload: &[b'x'; 8], ..message("topic") };
    assert_eq!(client.publish(2, &fits, T0, &mut out), Sent::Awaiting);
    assert_eq!(out.len(), 20);
    for topic in ["", "a/+", "#", "a\0b"] {
        let sent = client.publish(3, &message(topic), T0, &mut out);
        assert!(matches!(sent, Sent::Invalid(3, _)), "{topic:?}: {sent:?}");
    }
    assert_eq!((out.len(), client.in_flight()), (20, 1));
}

#[test]
fn quality_and_retain_are_what_the_server_can_do() {
    let mut client = up_with(client_config(), &connack(0, &[Property::RetainAvailable(false)])).0;
    let mut out = Vec::new();
    let send = |client: &mut Client<u64>, qos, out: &mut Vec<u8>| {
        client.publish(1, &Outgoing { qos, retain: true, ..message("t") }, T0, out)
    };
    assert_eq!(send(&mut client, QoS::AtMostOnce, &mut out), Sent::Unanswered(1));
    assert_eq!(send(&mut client, QoS::ExactlyOnce, &mut out), Sent::Awaiting);
    let seen: Vec<_> = publishes(&mut out).into_iter().map(|p| (p.qos, p.retain, p.packet_id)).collect();
    assert_eq!(seen, [(0, false, 0), (1, false, 1)]);
}

#[test]
fn frames_may_come_in_any_pieces() {
    let mut bytes = connack(0, &[Property::ReceiveMaximum(3)]);
    bytes.extend(suback(0xF000, &[1, 0x87]));
    bytes.extend([0xD0, 0]);
    for cut in 0..bytes.len() {
        let mut client = begun(client_config());
        let mut events = Vec::new();
        let mut tell = |event: Event<'_, u64>| match event {
            Event::Connected(accepted) => events.push(format!("up {}", accepted.window)),
            Event::Subscribed { request, reasons } => events.push(format!("sub {request} {reasons:?}")),
            other => panic!("{other:?}"),
        };
        let used = client.receive(&bytes[..cut], T0, &mut Vec::new(), &mut tell).unwrap();
        let used = used + client.receive(&bytes[used..], T0, &mut Vec::new(), &mut tell).unwrap();
        assert_eq!(used, bytes.len(), "cut at {cut}");
        assert_eq!(events, ["up 3", "sub 61440 [1, 135]"], "cut at {cut}");
    }
}

#[test]
fn messages_from_the_server_are_handed_out_and_acknowledged() {
    let mut client = up();
    let mut out = Vec::new();
    let mut filters = SubscribeFiltersBuf::new();
    filters.push("commands/#", SubscribeOptions::new(QoS::AtLeastOnce)).unwrap();
    let request = client.subscribe(filters.as_filters(), T0, &mut out).unwrap();
    assert!(
        matches!(decode(&out, Some(Version::V5), 1024), Ok(Some((Packet::Subscribe(s), _))) if s.packet_id == request)
    );
    out.clear();
    for (qos, packet_id) in [(QoS::AtMostOnce, 0), (QoS::AtLeastOnce, 77)] {
        let publish = Publish {
            dup: false,
            qos,
            retain: false,
            topic: "commands/x",
            packet_id,
            properties: Properties::EMPTY,
            payload: b"go",
        };
        let bytes = common::bytes(Packet::Publish(publish), Version::V5);
        let mut seen = 0;
        client
            .receive(&bytes, T0, &mut out, |event| match event {
                Event::Message(got) => seen += usize::from(got == publish),
                other => panic!("{other:?}"),
            })
            .unwrap();
        assert_eq!(seen, 1);
    }
    assert_eq!(out, puback(77, 0));
}

#[test]
fn disconnect_of_the_server_tells_why() {
    let fault = up().receive(&disconnect(0x8B, "bye"), T0, &mut Vec::new(), |_| ()).unwrap_err();
    assert_eq!(fault.retry(), Retry::Soon);
    assert_eq!(fault.to_string(), "the broker ended the connection: Server shutting down (0x8B), \"bye\"");
    assert_eq!(fault.blames_a_message(), None);
    let fault = up().receive(&disconnect(0x95, ""), T0, &mut Vec::new(), |_| ()).unwrap_err();
    assert_eq!(fault.blames_a_message(), Some(ReasonCode(0x95)));
}

// === liveness ===

/// Runs `tick` at each deadline up to `until`; at `answer(n)` after the n-th ping the server answers it.
fn timeline(
    client: &mut Client<u64>,
    until: u64,
    answer: impl Fn(usize) -> Option<u64>,
) -> (Vec<u64>, Option<(u64, Fault)>) {
    let mut pings = Vec::new();
    while let Some(now) = client.deadline_us().filter(|&now| now <= until) {
        let mut out = Vec::new();
        if let Err(fault) = client.tick(now, &mut out) {
            return (pings, Some((now, fault)));
        }
        if out == [0xC0, 0] {
            pings.push(now);
            if let Some(after) = answer(pings.len()) {
                client.receive(&[0xD0, 0], now + after, &mut out, |_| ()).unwrap();
            }
        } else {
            assert!(out.is_empty());
        }
    }
    (pings, None)
}

#[test]
fn an_idle_link_is_pinged_every_half_keep_alive() {
    let (pings, end) = timeline(&mut up(), T0 + 21 * SECOND, |_| Some(0));
    assert_eq!((pings, end), ([5, 10, 15, 20].map(|s| T0 + s * SECOND).to_vec(), None));
    let (client, answer) = (client_config(), connack(0, &[Property::ServerKeepAlive(2)]));
    let (pings, _) = timeline(&mut up_with(client, &answer).0, T0 + 3 * SECOND, |_| Some(0));
    assert_eq!(pings, [1, 2, 3].map(|s| T0 + s * SECOND));
}

#[test]
fn a_silent_link_is_dead_after_one_and_a_half_keep_alives() {
    let (pings, end) = timeline(&mut up(), u64::MAX, |_| None);
    assert_eq!(pings, [T0 + 5 * SECOND]);
    let (at, fault) = end.unwrap();
    assert_eq!(at, T0 + 15 * SECOND);
    assert_eq!(fault, Fault::Silent { silent_s: 15, keep_alive_s: 10 });
    assert_eq!(fault.retry(), Retry::Soon);
    // Answers that are late, but in time, keep it alive.
    let (pings, end) = timeline(&mut up(), T0 + 100 * SECOND, |_| Some(10 * SECOND - 1));
    assert!(pings.len() > 5 && end.is_none());
}

#[test]
fn sending_does_not_count_as_life() {
    let mut client = up();
    for second in 1..15 {
        let now = T0 + second * SECOND;
        client.tick(now, &mut Vec::new()).unwrap();
        assert_eq!(client.publish(second, &message("t"), now, &mut Vec::new()), Sent::Awaiting);
    }
    assert!(matches!(client.tick(T0 + 15 * SECOND, &mut Vec::new()), Err(Fault::Silent { .. })));
}

#[test]
fn a_machine_that_slept_asks_before_it_gives_up() {
    let mut client = up();
    let mut out = Vec::new();
    let woken = T0 + 8 * 3600 * SECOND;
    client.tick(woken, &mut out).unwrap();
    assert_eq!(out, [0xC0, 0]);
    client.tick(woken + SECOND, &mut out).unwrap();
    assert!(client.tick(woken + 10 * SECOND, &mut out).is_err());
}

#[test]
fn no_keep_alive_no_pings_and_no_connack_no_connection() {
    let mut config = client_config();
    config.keep_alive_s = 0;
    assert_eq!(up_with(config, &connack(0, &[])).0.deadline_us(), None);
    let mut client = begun(client_config());
    assert_eq!(client.deadline_us(), Some(T0 + 5 * SECOND));
    client.tick(T0 + 5 * SECOND - 1, &mut Vec::new()).unwrap();
    assert_eq!(client.tick(T0 + 5 * SECOND, &mut Vec::new()), Err(Fault::NoConnack));
    let mut out = Vec::new();
    client.disconnect(ReasonCode::NORMAL_DISCONNECTION, &mut out);
    assert!(out.is_empty(), "no DISCONNECT before CONNACK");
}

proptest! {
    /// Whatever the window, the bound and the order of acknowledgements: never more in flight than the server
    /// allows, every id in flight once, every message answered once.
    #[test]
    fn the_window_is_never_exceeded(
        receive_maximum in 1_u16..40,
        window_max in 1_u16..40,
        steps in proptest::collection::vec(any::<(bool, u16)>(), 0..400),
    ) {
        let config = ClientConfig { window_max, ..client_config() };
        let (mut client, accepted) = up_with(config, &connack(0, &[Property::ReceiveMaximum(receive_maximum)]));
        prop_assert_eq!(accepted.window, receive_maximum.min(window_max));
        // What the server holds: (packet id, number).
        let mut held: Vec<(u16, u64)> = Vec::new();
        let (mut sent, mut answered) = (0_u64, std::collections::BTreeSet::new());
        for (send, pick) in steps {
            let mut out = Vec::new();
            if send {
                match client.publish(sent, &message("t"), T0, &mut out) {
                    Sent::Awaiting => {
                        let id = publishes(&mut out)[0].packet_id;
                        prop_assert!(id > 0 && held.iter().all(|(other, _)| *other != id));
                        held.push((id, sent));
                        sent += 1;
                    }
                    refused => {
                        prop_assert_eq!(refused, Sent::NoRoom(sent));
                        prop_assert_eq!(held.len(), usize::from(accepted.window));
                        prop_assert!(out.is_empty());
                    }
                }
            } else if !held.is_empty() {
                let (id, number) = held.swap_remove(usize::from(pick) % held.len());
                prop_assert_eq!(acks(&mut client, &puback(id, 0)).unwrap(), [(number, 0)]);
                prop_assert!(answered.insert(number));
            }
            prop_assert!(held.len() <= usize::from(accepted.window));
            prop_assert_eq!(client.in_flight(), held.len());
            prop_assert_eq!(client.room(), usize::from(accepted.window) - held.len());
        }
        let mut left: Vec<u64> = client.into_in_flight().collect();
        left.sort_unstable();
        let mut expect: Vec<u64> = held.into_iter().map(|(_, number)| number).collect();
        expect.sort_unstable();
        prop_assert_eq!(left, expect);
    }
}
