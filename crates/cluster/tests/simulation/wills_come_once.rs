//! Promise 3 for clients whose sessions end with their connections: a will is published by its node, or by the one that has its copy, never by both (which is
//! looked at whenever one is). Here that hardly any is lost: those whose node and its keeper died at once.

use crate::world::World;

/// Wills that are due, and those of them that never came.
pub(crate) fn due(world: &World) -> (u64, u64) {
    let is_due = |life: &&crate::world::Life| life.is_acknowledged && !life.said_goodbye && !life.is_open;
    let due = world.lived.values().filter(is_due);
    due.fold((0, 0), |(due, lost), life| (due + 1, lost + u64::from(life.wills == 0)))
}
