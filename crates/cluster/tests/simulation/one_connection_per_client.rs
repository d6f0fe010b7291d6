//! Promise 2 for connections: a client that connects to one node after the other is connected to one of them.

use crate::world::World;

/// Several times as long as it takes to tell.
const SOON_US: u64 = 1_000_000;

/// Everything has been well for a while. A client that has moved in the last moments may be told so still.
pub(crate) fn holds(world: &World) {
    for (nodes, since_us) in world.roamers() {
        let has_moved = world.now_us - since_us < SOON_US;
        assert!(
            nodes <= 1 + usize::from(has_moved),
            "at {nodes} nodes, {} us after it moved",
            world.now_us - since_us
        );
    }
}
