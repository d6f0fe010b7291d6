//! Two copies of a will: none of a client whose session ends with its connection is lost when its node and one other die at once, whichever that is. (That none
//! comes twice is looked at whenever one is published.)
//!
//! In worlds in which nothing else happens but that links are slow and break. There a will may be lost in two cases alone: its client had gone without a word a moment
//! before its node died, which had asked for the copies and not published it yet; or had come to a node that was joining, and gone before that one served.

use crate::world::World;

/// How long the former may take, with members that come and go.
const ASKING_US: u64 = 3_000_000;

/// Wills that came though their node and another one had died at once, and those that were lost in a moment in which they may be.
pub(crate) fn holds(world: &World) -> (u64, u64) {
    if world.deaths.as_ref().is_none_or(|deaths| deaths.mistaken > 0) {
        return (0, 0);
    }
    let (mut came, mut excused) = (0, 0);
    for (number, life) in &world.lived {
        if !life.is_acknowledged || life.said_goodbye || life.is_open {
            continue;
        }
        came += u64::from(life.wills == 1 && life.with_another);
        if life.wills == 1 {
            continue;
        }
        // Or the world ended.
        let until_us = life.died_us.unwrap_or(world.now_us);
        let asked = life.broken_us.is_some_and(|broken_us| until_us - broken_us < ASKING_US);
        assert!(asked || !life.of_member, "the will of life {number} never came: {life:?}");
        excused += 1;
    }
    (came, excused)
}
