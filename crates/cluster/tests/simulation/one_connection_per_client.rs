//! Promise 2 for connections: a client that connects to one node after the other is connected to one of them.

use crate::world::World;

/// Everything has been well for a while. A client that has moved in the last moments may be told so still.
pub(crate) fn holds(world: &World) {
    let doubled: Vec<usize> = world.roamers().into_iter().filter(|nodes| *nodes > 1).collect();
    assert!(doubled.len() <= 1 && doubled.iter().all(|nodes| *nodes == 2), "at so many nodes: {doubled:?}");
}
