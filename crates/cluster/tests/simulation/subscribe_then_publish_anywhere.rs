//! Promise 1: once a client has its SUBACK, a publish that starts afterwards and is acknowledged by any node reaches it.

use crate::world::{Publish, World};

/// `publish` has just been acknowledged.
pub(crate) fn holds(world: &World, publish: &Publish) {
    for subscribed in world.subscribed.iter().filter(|subscribed| subscribed.filter == publish.filter) {
        let Some(since_us) = world.counts_since_us(subscribed) else { continue };
        assert!(
            since_us > publish.began_us || world.has_got(subscribed, publish.number),
            "{:.3}: {:?} acknowledges {publish:?}, which {subscribed:?} never got",
            world.now_us as f64 / 1e6,
            publish.at,
        );
    }
}
