//! Batches: what is encoded is decoded, what is damaged is refused, and what it saves.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests, and what they measure")]

use ferrule_batch::{
    Batch, DecodeError, Decoder, Encoder, Item, MESSAGES_MAX, PLAIN_MAX, TEXTS_MAX, dictionary,
};
use ferrule_mqtt::{Properties, PropertiesBuf, Property, PublishFlags, QoS, Version, encode_publish};
use ferrule_store::{Boot, MessageId};
use proptest::prelude::*;

/// As [`Item`], with texts of its own.
#[derive(Debug, Clone)]
struct Owned {
    acknowledged: bool,
    retain: bool,
    topic: String,
    id: (u64, u16, u64),
    client_id: String,
    username: Option<String>,
    at_ms: i64,
    synced: bool,
    age_ms: u64,
    hops: u8,
    late: bool,
    user_properties: Vec<(String, String)>,
    payload: Vec<u8>,
}

impl Owned {
    fn properties(&self) -> PropertiesBuf {
        let mut properties = PropertiesBuf::new();
        for (name, value) in &self.user_properties {
            properties.push(Property::UserProperty(name, value)).unwrap();
        }
        properties
    }

    fn item<'a>(&'a self, properties: &'a PropertiesBuf) -> Item<'a> {
        let (boot, class, seq) = self.id;
        Item {
            acknowledged: self.acknowledged,
            retain: self.retain,
            topic: &self.topic,
            id: MessageId { boot: Boot::new(boot), class, seq },
            client_id: &self.client_id,
            username: self.username.as_deref(),
            at_ms: self.at_ms,
            synced: self.synced,
            age_ms: self.age_ms,
            hops: self.hops,
            late: self.late,
            properties: properties.as_properties(),
            payload: &self.payload,
        }
    }
}

fn owned() -> impl Strategy<Value = Owned> {
    let topic = prop_oneof![Just("a".to_owned()), "[a-c/é]{1,6}"];
    let device = prop_oneof![Just(String::new()), "[a-b]{0,3}"];
    let names = proptest::collection::vec(("[a-d]{0,3}", "[a-d]{0,3}"), 0..2);
    let numbers = (0..3u64, prop_oneof![Just(0u16), 0..=i16::MAX as u16], 0..=i64::MAX as u64, any::<i64>());
    let hops = any::<(u8, bool)>();
    let rest = (any::<bool>(), any::<u64>(), hops, proptest::collection::vec(any::<u8>(), 0..40));
    (any::<(bool, bool)>(), topic, device, proptest::option::of("[a-b]{0,2}"), numbers, names, rest).prop_map(
        |(flags, topic, client_id, username, (boot, class, seq, at_ms), user_properties, rest)| Owned {
            acknowledged: flags.0,
            retain: flags.1,
            topic,
            id: (boot, class, seq),
            client_id,
            username,
            at_ms,
            synced: rest.0,
            age_ms: rest.1,
            hops: rest.2.0,
            late: rest.2.1,
            user_properties,
            payload: rest.3,
        },
    )
}

fn assert_same(batch: Batch<'_>, items: &[Item<'_>]) {
    assert_eq!(batch.items().collect::<Vec<_>>(), items);
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(messages in proptest::collection::vec(owned(), 1..20), compressed: bool) {
        let mut encoder = Encoder::new(usize::MAX, compressed).unwrap();
        let properties: Vec<_> = messages.iter().map(Owned::properties).collect();
        let items: Vec<_> = messages.iter().zip(&properties).map(|(m, p)| m.item(p)).collect();
        // Twice: nothing of a batch is in the next.
        for _ in 0..2 {
            for item in &items {
                prop_assert!(encoder.push(item));
            }
            prop_assert_eq!(encoder.is_acknowledged(), items.iter().any(|item| item.acknowledged));
            let payload = encoder.finish().to_vec();
            let mut decoder = Decoder::new();
            assert_same(decoder.decode(&payload).unwrap(), &items);
        }
    }

    #[test]
    fn what_is_damaged_never_panics(
        messages in proptest::collection::vec(owned(), 1..8),
        compressed: bool,
        place: proptest::sample::Index,
        byte: u8,
        cut: bool,
    ) {
        let mut encoder = Encoder::new(usize::MAX, compressed).unwrap();
        for message in &messages {
            prop_assert!(encoder.push(&message.item(&message.properties())));
        }
        let mut payload = encoder.finish().to_vec();
        let place = place.index(payload.len());
        if cut {
            payload.truncate(place);
            prop_assert!(Decoder::new().decode(&payload).is_err());
        } else {
            payload[place] = byte;
            // Some bytes may have any value: what then comes out are messages that could have come alone.
            if let Ok(batch) = Decoder::new().decode(&payload) {
                for item in batch.items() {
                    prop_assert!(ferrule_mqtt::topic::validate_name(item.topic).is_ok());
                }
            }
        }
    }
}

fn message(topic: &str, payload: &[u8]) -> Owned {
    Owned {
        acknowledged: true,
        retain: false,
        topic: topic.into(),
        id: (1, 0, 1),
        client_id: "c".into(),
        username: None,
        at_ms: 0,
        synced: true,
        age_ms: 0,
        hops: 1,
        late: false,
        user_properties: Vec::new(),
        payload: payload.into(),
    }
}

#[test]
fn bounds() {
    let none = PropertiesBuf::new();
    // Of a body.
    let mut encoder = Encoder::new(usize::MAX, true).unwrap();
    let too_large = message("t", &vec![0; PLAIN_MAX]);
    assert!(!encoder.push(&too_large.item(&none)));
    let large = message("t", &vec![0; PLAIN_MAX - 64]);
    assert!(encoder.push(&large.item(&none)));
    assert!(!encoder.push(&message("t", &[0; 64]).item(&none)));
    let payload = encoder.finish().to_vec();
    assert!(payload.len() < 256, "zeros: {} bytes", payload.len());
    assert_same(Decoder::new().decode(&payload).unwrap(), &[large.item(&none)]);
    // Of messages.
    let small = message("t", b"");
    let fitted = (0..).take_while(|_| encoder.push(&small.item(&none))).count();
    assert_eq!(fitted, MESSAGES_MAX);
    let payload = encoder.finish().to_vec();
    assert_eq!(Decoder::new().decode(&payload).unwrap().len(), MESSAGES_MAX);
    // Of texts written out: each message says two bytes of its topic again.
    let topics = ["x".repeat(40_000), "x".repeat(40_000) + "y"].map(|topic| message(&topic, b""));
    let fitted = (0..).take_while(|i| encoder.push(&topics[i % 2].item(&none))).count();
    assert_eq!(fitted, TEXTS_MAX / 40_003);
    let payload = encoder.finish().to_vec();
    assert_eq!(Decoder::new().decode(&payload).unwrap().len(), fitted);
    // Of the peer's packet.
    let mut encoder = Encoder::new(100, true).unwrap();
    while encoder.push(&message("t", b"0123456789").item(&none)) {}
    assert!(encoder.count() > 1);
    assert!(encoder.finish().len() <= 100);
    // What MQTT cannot say.
    assert!(!encoder.push(&message("a/+", b"").item(&none)));
    assert!(!encoder.push(&message("", b"").item(&none)));
}

#[test]
fn what_arrives_is_compared_with_its_bounds_first() {
    let check = dictionary::CHECK.to_le_bytes();
    let mut decoder = Decoder::new();
    let mut refused = |payload: &[u8]| decoder.decode(payload).unwrap_err();
    let damaged = |error| matches!(error, DecodeError::Damaged(_));
    assert!(damaged(refused(b"")));
    assert!(damaged(refused(&[1])));
    assert_eq!(refused(&[2, 0]), DecodeError::Version(2));
    assert_eq!(refused(&[1, 9, 0, 0, 0, 0]), DecodeError::Dictionary(9));
    assert_eq!(refused(&[1, 1, 0, 0, 0, 0]), DecodeError::Dictionary(1));
    assert_eq!(refused(&vec![1; PLAIN_MAX + 3][..]), DecodeError::Dictionary(1));
    assert_eq!(refused(&[&[1, 0][..], &vec![0; PLAIN_MAX + 1]].concat()), DecodeError::TooLarge);
    // A frame that says 4 GiB of itself, and has 1 byte.
    let frame = [0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0, 0, 0, 0, 1, 0, 0, 0, 1];
    assert_eq!(refused(&[&[1, 1][..], &check, &frame].concat()), DecodeError::TooLarge);
    // A frame that holds more than it says.
    let mut lie = zstd::bulk::compress(&[7; 300], 1).unwrap();
    assert_eq!(lie[4] & 0xc0, 0x40, "a size of two bytes, less 256");
    lie[5] = 0;
    assert!(damaged(refused(&[&[1, 1][..], &check, &lie].concat())));
    // No message, too many of them, lengths beyond the end.
    assert!(damaged(refused(&[1, 0, 0, 0])));
    assert_eq!(refused(&[1, 0, 0x81, 0x08, 0]), DecodeError::TooLarge);
    assert!(damaged(refused(&[1, 0, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1])));
    // Everything as before, and there is nothing before.
    assert!(damaged(refused(&[1, 0, 1, 6, 0xff, 0, 0, 0, 0, 0])));
    // Properties that are no message's, or that only the fields say.
    for property in [Property::TopicAlias(1), Property::UserProperty("ferrule-id", "1.0.1")] {
        let mut properties = PropertiesBuf::new();
        properties.push(property).unwrap();
        let mut encoder = Encoder::new(usize::MAX, false).unwrap();
        assert!(encoder.push(&message("t", b"").item(&properties)));
        assert!(damaged(refused(encoder.finish())), "{property:?}");
    }
}

#[test]
fn the_dictionary_is_the_one_that_its_number_names() {
    let bytes = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/dictionaries/1.zdict")).unwrap();
    assert_eq!(dictionary::check(&bytes), dictionary::CHECK);
    assert_eq!(dictionary::name(), "1-c55a8778");
}

/// A reading of 200 bytes as a device of no gateway that the dictionary was learned from sends it.
fn reading(number: u64) -> Vec<u8> {
    let noise = number.wrapping_mul(2_654_435_761) % 10_007;
    let text = format!(
        "{{\"machine\":\"press-7\",\"seq\":{number},\"ts\":\"2027-03-01T08:{:02}:{:02}.{:03}Z\",\"temperature\":{:.2},\"pressure\":{:.3},\"vibration\":{:.4},\"state\":\"running\",\"operator\":\"shift-b\",\"program\":\"P{:04}\",",
        number / 60 % 60,
        number % 60,
        noise % 1_000,
        60.0 + noise as f64 / 500.0,
        1.0 + noise as f64 / 20_000.0,
        noise as f64 / 50_000.0,
        noise % 37,
    );
    format!("{text}\"_\":\"{}\"}}", "x".repeat(200 - 8 - text.len())).into_bytes()
}

/// Bytes of a message alone, with MQTT around them; and, of a batch of `count`, for each.
fn sizes(count: usize) -> (usize, usize) {
    let none = PropertiesBuf::new();
    let mut encoder = Encoder::new(usize::MAX, true).unwrap();
    let mut alone = Vec::new();
    for number in 0..count as u64 {
        let mut message = message("factory/hall-3/press-7/reading", &reading(number));
        message.id = (0x1234_5678_9abc, 0, number + 77);
        message.client_id = "press-7".into();
        (message.at_ms, message.age_ms) = (1_800_000_000_000 + number as i64 * 10, 3);
        let item = message.item(&none);
        assert!(encoder.push(&item));
        let mut properties = PropertiesBuf::new();
        item.say(&mut String::new(), &mut properties);
        let flags = PublishFlags { dup: false, qos: QoS::AtLeastOnce, retain: false };
        let parts: &[Properties<'_>] = &[properties.as_properties()];
        encode_publish(&mut alone, Version::V5, flags, item.topic, 1, parts, item.payload).unwrap();
    }
    (alone.len() / count, encoder.finish().len() / count)
}

#[test]
fn a_batch_is_smaller() {
    for (count, share) in [(1, 0.5), (10, 0.2), (100, 0.15)] {
        let (alone, each) = sizes(count);
        println!("{count} in a batch: {each} bytes each, alone {alone}");
        assert!(each as f64 <= share * alone as f64, "{count} in a batch: {each} bytes each, alone {alone}");
    }
}
