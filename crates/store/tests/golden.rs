//! The bytes of every record version that was ever written. A failing comparison here is a change of the format: give
//! the record a new version with an upgrade, and leave these lines as they are.

#![allow(clippy::unwrap_used, reason = "tests")]

use bytes::Bytes;
use ferrule_store::record::{
    Delayed, Delivery, Entry, Inflight, Record, RecordError, Retained, Session, Subscription, Will,
};
use ferrule_store::{Boot, Identity, QueueId, Stamp};
use proptest::prelude::*;
use std::fmt::Debug;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

/// Today's writer makes these bytes, and today's reader reads them back.
fn check<R: Record + PartialEq + Debug>(record: &R, bytes: &str) {
    assert_eq!(hex(&record.to_bytes()), bytes);
    assert_eq!(R::from_bytes(&unhex(bytes)).as_ref(), Ok(record));
}

fn entry() -> Entry {
    Entry {
        identity: Identity { origin: "edge-1".into(), boot: Boot::new(u64::MAX), class: 2, seq: 300 },
        rule: 5,
        row: 6,
        target: "t/1".into(),
        key: "dev".into(),
        passthrough: true,
        qos: 1,
        retain: false,
        client_id: "dev".into(),
        username: Some("user".into()),
        topic: "a/b".into(),
        edge: Some("edge-1".into()),
        received: Stamp { wall_ms: 1_700_000_000_000, mono_us: 12_345, synced: true },
        hops: 1,
        properties: Bytes::from_static(&[0x26, 0, 1]),
        payload: Bytes::new(),
    }
}

fn delivery() -> Delivery {
    Delivery {
        topic: "a/b".into(),
        qos: 2,
        retain: true,
        expires_wall_ms: Some(-1),
        subscription_ids: vec![1, 268_435_455],
        properties: Bytes::from_static(b"p"),
        payload: Bytes::new(),
        share: Some("$share/g/a/+".into()),
        source: None,
    }
}

fn session() -> Session {
    Session {
        client_id: "dev".into(),
        username: None,
        expiry_s: u32::MAX,
        ended_wall_ms: Some(1_700_000_000_000),
        handed_to: Some(300),
        will: Some(Will {
            topic: "w".into(),
            payload: Bytes::from_static(b"gone"),
            qos: 1,
            retain: true,
            properties: Bytes::new(),
            delay_s: 5,
            due_wall_ms: None,
        }),
    }
}

fn subscription() -> Subscription {
    Subscription { qos: 1, no_local: true, retain_as_published: false, retain_handling: 2, id: Some(300) }
}

fn retained() -> Retained {
    Retained {
        qos: 1,
        expires_wall_ms: None,
        at_wall_ms: 1_700_000_000_000,
        properties: Bytes::new(),
        payload: Bytes::from_static(b"on"),
    }
}

fn delayed() -> Delayed {
    Delayed {
        topic: "a/b".into(),
        qos: 2,
        retain: true,
        properties: Bytes::from_static(b"p"),
        client_id: "dev".into(),
        username: Some("user".into()),
        host: None,
        edge: Some("edge-1".into()),
        hops: 1,
        path: 300,
        delay_s: 60,
        due_wall_ms: 1_700_000_000_000,
        payload: Bytes::new(),
    }
}

#[test]
fn version_1() {
    check(
        &entry(),
        "0106656467652d31ffffffffffffffff7f02ac02050603742f31036465760101000364657601047573657203612f620106656467652d3180a0abfef962b960010103260001",
    );
    let before_shares = Delivery { share: None, ..delivery() };
    assert_eq!(Delivery::from_bytes(&unhex("0103612f62020101010201ffffff7f0170")), Ok(before_shares));
    let before_wills = Session { handed_to: None, will: None, ..session() };
    assert_eq!(Session::from_bytes(&unhex("010364657600ffffffff0f0180a0abfef962")), Ok(before_wills));
    check(&subscription(), "010101000201ac02");
    check(&Inflight::Received, "0100");
    check(&Inflight::Sent(300), "0101ac02");
    check(&Inflight::Released, "0102");
    check(&retained(), "01010080a0abfef96200026f6e");
    check(&delayed(), "0103612f620201017003646576010475736572000106656467652d3101ac023c80a0abfef962");
}

#[test]
fn version_2() {
    check(&delivery(), "0203612f62020101010201ffffff7f0170010c2473686172652f672f612f2b");
    check(&session(), "020364657600ffffffff0f0180a0abfef96201ac0201017704676f6e650101000500");
}

/// Queue ids are kept in the store and in its successors: a changed hash would orphan every outbox.
#[test]
fn outbox_ids() {
    for (sink, class, id) in [
        ("cloud", 0, 4_736_484_798_582_933_166),
        ("cloud", 1, 4_737_441_373_699_287_511),
        ("", 0, 5_202_370_086_247_821_293),
    ] {
        assert_eq!(QueueId::outbox(sink, class).0, id, "{sink} {class}");
    }
}

#[test]
fn payloads_are_not_kept_in_heads() {
    let with = Entry { payload: Bytes::from_static(b"payload"), ..entry() };
    assert_eq!(with.to_bytes(), entry().to_bytes());
    let with = Delivery { payload: Bytes::from_static(b"payload"), ..delivery() };
    assert_eq!(with.to_bytes(), delivery().to_bytes());
}

#[test]
fn what_cannot_be_read_says_why() {
    assert_eq!(Session::from_bytes(&[]), Err(RecordError::Damaged("it is empty")));
    assert_eq!(Session::from_bytes(&[3, 0]), Err(RecordError::Newer(3)));
    assert_eq!(Retained::from_bytes(&[2, 0]), Err(RecordError::Newer(2)));
    assert_eq!(Session::from_bytes(&[1]), Err(RecordError::Damaged("it does not decode")));
    let mut bytes = session().to_bytes().to_vec();
    bytes.push(0);
    assert_eq!(Session::from_bytes(&bytes), Err(RecordError::Damaged("bytes are left over")));
}

/// No prefix of a record is a record.
fn truncated<R: Record + PartialEq + Debug>(record: &R) {
    let bytes = record.to_bytes();
    for length in 0..bytes.len() {
        assert!(R::from_bytes(&bytes[..length]).is_err(), "{record:?} cut to {length}");
    }
}

#[test]
fn truncated_records_are_refused() {
    truncated(&entry());
    truncated(&delivery());
    truncated(&session());
    truncated(&subscription());
    truncated(&Inflight::Sent(300));
    truncated(&retained());
}

fn decode_all(bytes: &[u8]) {
    let _ = Entry::from_bytes(bytes);
    let _ = Delivery::from_bytes(bytes);
    let _ = Session::from_bytes(bytes);
    let _ = Subscription::from_bytes(bytes);
    let _ = Inflight::from_bytes(bytes);
    let _ = Retained::from_bytes(bytes);
}

proptest! {
    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        decode_all(&bytes);
        decode_all(&[&[1], &bytes[..]].concat());
    }

    #[test]
    fn damaged_records_never_panic(at in any::<prop::sample::Index>(), value in any::<u8>()) {
        for bytes in [entry().to_bytes(), delivery().to_bytes(), session().to_bytes(), retained().to_bytes()] {
            let mut bytes = bytes.to_vec();
            let at = at.index(bytes.len());
            bytes[at] = value;
            decode_all(&bytes);
        }
    }

    #[test]
    fn entries_read_what_they_write(
        origin in ".{0,20}", boot in any::<u64>(), class in any::<u16>(), seq in any::<u64>(), rule in any::<u64>(),
        row in any::<u32>(), target in ".{0,40}", username in proptest::option::of(".{0,9}"), wall_ms in any::<i64>(),
        properties in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let written = Entry {
            identity: Identity { origin: origin.into(), boot: Boot::new(boot), class, seq },
            rule,
            row,
            target: target.into(),
            username: username.map(Into::into),
            received: Stamp { wall_ms, mono_us: boot, synced: false },
            properties: properties.into(),
            ..entry()
        };
        prop_assert_eq!(Entry::from_bytes(&written.to_bytes()), Ok(written));
    }
}
