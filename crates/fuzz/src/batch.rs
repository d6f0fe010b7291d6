//! Arbitrary bytes as a batch of a gateway.
//!
//! | invariant | check |
//! |---|---|
//! | no panic, and no more memory than a batch may take | what is read is within the bounds |
//! | each message could have come alone | its topic is a topic name |
//! | there and back | what is read is written, compressed and not, and read again as the same |

use ferrule_batch::{Decoder, Encoder, Item, MESSAGES_MAX, PLAIN_MAX, TEXTS_MAX};
use ferrule_mqtt::topic;

/// Reads `bytes` as a batch.
///
/// # Panics
/// When an invariant is broken.
pub fn batch(bytes: &[u8]) {
    let mut decoder = Decoder::new();
    let Ok(batch) = decoder.decode(bytes) else { return };
    let items: Vec<Item<'_>> = batch.items().collect();
    assert!((1..=MESSAGES_MAX).contains(&items.len()));
    assert!(items.iter().map(|item| item.payload.len()).sum::<usize>() <= PLAIN_MAX);
    for item in &items {
        assert!(topic::validate_name(item.topic).is_ok(), "{item:?}");
        assert!(item.topic.len() + item.client_id.len() + item.properties.as_bytes().len() <= TEXTS_MAX);
    }
    for compressed in [false, true] {
        let Ok(mut encoder) = Encoder::new(usize::MAX, compressed) else { panic!("no memory") };
        // What is written here has other sizes than what was read: not all of it has room in one.
        let count = items.iter().take_while(|item| encoder.push(item)).count();
        if count > 0 {
            let payload = encoder.finish().to_vec();
            let mut decoder = Decoder::new();
            match decoder.decode(&payload) {
                Ok(again) => assert!(again.items().eq(items.iter().take(count).copied())),
                Err(error) => panic!("{error}: {payload:02x?}"),
            }
        }
    }
}
