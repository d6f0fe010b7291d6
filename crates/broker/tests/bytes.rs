//! Arbitrary bytes in arbitrary pieces: never a panic, and the pieces make no difference.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
use common::{Does, Rig, limits, parse};
use ferrule_mqtt::Version;
use proptest::prelude::*;

/// Packets with their fields all over the place, now and then with a byte changed.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        Just("connect id=a v=5 clean=0 expiry=9 will=a/b delay=1".to_string()),
        Just("connect id=a v=4".to_string()),
        (0..3u8, 1..5u16, 0..3u8, any::<bool>()).prop_map(|(q, id, t, r)| format!(
            "publish t=a/{t} q={q} p=x r={} {}",
            u8::from(r),
            if q > 0 { format!("id={id}") } else { String::new() }
        )),
        (1..5u16, 0..3u8).prop_map(|(id, q)| format!("subscribe id={id} f=a/+:{q} f=#:{q}")),
        (1..5u16).prop_map(|id| format!("unsubscribe id={id} f=a/+")),
        (1..5u16).prop_map(|id| format!("puback {id}")),
        (1..5u16).prop_map(|id| format!("pubrec {id}")),
        (1..5u16).prop_map(|id| format!("pubrel {id}")),
        (1..5u16).prop_map(|id| format!("pubcomp {id}")),
        Just("ping".to_string()),
        Just("disconnect".to_string()),
    ];
    let packets = (any::<bool>(), prop::collection::vec(line, 0..20)).prop_map(|(v5, lines)| {
        let version = if v5 { Version::V5 } else { Version::V3_1_1 };
        let hello = if v5 { "connect id=b v=5" } else { "connect id=b v=4" };
        let mut bytes = parse(hello, None).0;
        lines.iter().for_each(|line| bytes.extend(parse(line, Some(version)).0));
        bytes
    });
    let spoiled = (packets.clone(), prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3))
        .prop_map(|(mut bytes, changes)| {
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes
        });
    prop_oneof![2 => packets, 2 => spoiled, 1 => prop::collection::vec(any::<u8>(), 0..200)]
}

/// What two connections that are fed the same say, whatever the pieces.
fn output(first: &[u8], second: &[u8], pieces: &[usize]) -> (Vec<u8>, bool) {
    let mut rig = Rig::new(limits());
    rig.rule("a/1");
    rig.hook.0.borrow_mut().does = Does::Hold;
    let mut out = Vec::new();
    let mut closed = false;
    for bytes in [first, second] {
        let conn = rig.shards[0].open("127.0.0.1".parse().unwrap(), 0, rig.now).unwrap();
        let mut rest = Vec::new();
        let mut at = 0;
        let mut sizes = pieces.iter().cycle();
        while at < bytes.len() {
            let size = (*sizes.next().unwrap()).min(bytes.len() - at);
            rest.extend_from_slice(&bytes[at..at + size]);
            at += size;
            let taken = rig.shards[0].receive(conn, &rest, rig.now);
            rest.drain(..taken);
            rig.shards[0].end_turn(rig.now);
        }
        // The store answers when all is in, or the pieces would make a difference.
        let mut before = usize::MAX;
        while before != rest.len() {
            before = rest.len();
            rig.commit_only();
            let taken = rig.shards[0].receive(conn, &rest, rig.now);
            rest.drain(..taken);
            rig.shards[0].end_turn(rig.now);
        }
        rig.shards[0].end_turn(rig.now);
        if let Some(said) = rig.shards[0].output(conn) {
            // A CONNECT that is too large is refused before it is whole: whether its version had arrived by then is chance.
            if *said != [0x20, 3, 0, 0x95, 0] {
                out.append(said);
            }
        }
        closed |=
            rig.shards[0].take_commands().iter().any(|c| matches!(c, ferrule_broker::Command::Close(_)));
    }
    rig.wait(20_000);
    while !rig.hook.0.borrow().held.is_empty() {
        rig.resolve(ferrule_outbox::Outcome::Delivered);
    }
    rig.commit();
    rig.wait(60_000);
    rig.commit();
    let [.., open, lost] = rig.shards[0].sizes();
    assert_eq!((open, lost), (0, 0));
    // The order of several retained messages is nobody's business.
    out.sort_unstable();
    (out, closed)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn pieces_make_no_difference_and_nothing_panics(
        first in stream(),
        second in stream(),
        pieces in prop::collection::vec(1usize..40, 1..8),
    ) {
        let whole = output(&first, &second, &[usize::MAX]);
        prop_assert_eq!(whole, output(&first, &second, &pieces));
    }
}
