//! An exclusive subscription is one client's, on whichever node: two have it only by the word of nodes that were parted, and then one of them is told that he has it
//! no more; when all has healed one has it at the most, and whoever asks is answered.

use crate::world::World;

/// `holders` have had it, more than one at a time, since then.
pub(crate) fn holds_since(world: &World, since_us: u64, most_us: u64, holders: &[u64]) {
    let now_us = world.now_us;
    let (now_s, since_s) = (now_us as f64 / 1e6, since_us as f64 / 1e6);
    assert!(now_us - since_us < most_us, "{now_s:.3}: {holders:?} have it, and others since {since_s:.3}");
}

/// Everything has been well for a while.
pub(crate) fn holds(world: &World) {
    assert!(world.holders().len() < 2, "{:?} have it", world.holders());
    assert!(world.claims_wait_us() < 2_000_000, "a claim is not answered");
}
