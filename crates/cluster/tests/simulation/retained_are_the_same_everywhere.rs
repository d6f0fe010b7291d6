//! Promise 5: whoever subscribes finds what was retained and acknowledged before, on whichever node (which is looked at whenever somebody does); and when all has
//! healed all nodes have the same.

use crate::world::World;

pub(crate) fn holds(world: &World) {
    let found = &world.reader.found;
    let Some((_, first)) = found.first() else { panic!("nobody looked at the end") };
    let other = found.iter().find(|(_, other)| other != first);
    assert_eq!(other, None, "{first:?} was found elsewhere");
}
