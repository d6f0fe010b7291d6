//! Promises 2, 3 and 4 for sessions that outlive their connections: wherever its client connects, and whichever nodes die, a session is there, and what was
//! acknowledged for it arrives.

use crate::world::World;

/// Everything has been well for a while, and each client has had the time to take what waits for it. That its session is there is looked at with each of its
/// CONNACKs.
pub(crate) fn holds(world: &World) {
    for (number, keeper) in world.keepers.iter().enumerate() {
        let missing: Vec<&u64> = keeper.owed.difference(&keeper.got).collect();
        assert!(missing.is_empty(), "client {number} never got {missing:?}, which were acknowledged");
        assert_eq!(keeper.again, 0, "client {number} got what it had again and again, with nothing amiss");
    }
}
