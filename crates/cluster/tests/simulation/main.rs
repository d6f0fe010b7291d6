//! A cluster under seeded schedules: links that hold back, reset and heal, nodes that pause, crash and come back, a store that is out of
//! reach, clocks of different rates. Its nodes are real shards with real clients ([`world`]); each promise has a file.
//!
//! `FERRULE_SEEDS=n` for more of them, `FERRULE_SEEDS=a..b` for others, `FERRULE_SEED=s` for one, told step by step.

#![allow(clippy::unwrap_used, reason = "tests")]

mod exclusive_has_one_holder;
mod one_connection_per_client;
mod partition_heals;
mod persistent_sessions_survive;
mod retained_are_the_same_everywhere;
#[path = "../../../broker/tests/common/mod.rs"]
mod rig;
mod subscribe_then_publish_anywhere;
mod wills_come_once;
mod wills_survive_two_deaths;
mod world;

use std::ops::Range;
use world::{Publish, World};

/// Whether a batch of parcels is of the control stream: its first byte tells.
fn is_control(bytes: &[u8]) -> bool {
    // Routes, their confirmations, members of groups, exclusive subscriptions, whose a session is, wills, rules (crates/broker/src/parcel.rs).
    matches!(bytes[0], 1..=3 | 11..=15 | 0x30..=0x36 | 0x39 | 0x46..=0x4a | 0x4c..=0x50)
}

fn seed_of(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|n| n.parse().ok())
}

/// Those that `FERRULE_SEEDS` names.
fn seeds() -> Range<u64> {
    let named = std::env::var("FERRULE_SEEDS").unwrap_or_default();
    let range = named.split_once("..").map(|(first, end)| (first.parse(), end.parse()));
    match (range, named.parse()) {
        (Some((Ok(first), Ok(end))), _) => first..end,
        (_, Ok(end)) => 0..end,
        _ => 0..300,
    }
}

/// What happened in a world, that a test which proves nothing is seen.
#[derive(Debug, Default)]
struct Tally {
    acknowledged: u64,
    withheld: u64,
    subscribers: u64,
    messages: u64,
    /// Of sessions that live on.
    kept: u64,
    /// At what is retained.
    looks: u64,
    granted: u64,
    refused: u64,
    wills: u64,
    /// Exclusive subscriptions that were lost.
    taken: u64,
    wills_lost: u64,
    /// Where two nodes died at once: those that came, and those that were on their way.
    survived: u64,
    excused: u64,
    /// Worlds of deaths in which one that lived was removed: nothing is said of them.
    mistaken: u64,
}

impl Tally {
    fn of(world: &World) -> Self {
        let (wills, wills_lost) = wills_come_once::due(world);
        let (survived, excused) = wills_survive_two_deaths::holds(world);
        Self {
            acknowledged: world.acknowledged,
            withheld: world.withheld,
            subscribers: world.subscribed.len() as u64,
            messages: world.deliveries() as u64,
            kept: world.kept() as u64,
            looks: world.reader.looks,
            granted: world.granted,
            refused: world.refused,
            wills,
            taken: world.taken,
            wills_lost,
            survived,
            excused,
            mistaken: u64::from(world.deaths.as_ref().is_some_and(|deaths| deaths.mistaken > 0)),
        }
    }

    fn counts(&mut self) -> [&mut u64; 14] {
        let Self {
            acknowledged,
            withheld,
            subscribers,
            messages,
            kept,
            looks,
            granted,
            refused,
            wills,
            taken,
            wills_lost,
            survived,
            excused,
            mistaken,
        } = self;
        [
            acknowledged,
            withheld,
            subscribers,
            messages,
            kept,
            looks,
            granted,
            refused,
            wills,
            taken,
            wills_lost,
            survived,
            excused,
            mistaken,
        ]
    }

    fn add(&mut self, mut other: Self) {
        self.counts().into_iter().zip(other.counts()).for_each(|(all, more)| *all += *more);
    }
}

#[test]
fn the_promises_hold_whatever_happens() {
    let one = seed_of("FERRULE_SEED");
    let seeds = one.map_or_else(seeds, |seed| seed..seed + 1);
    let mut all = Tally::default();
    for seed in seeds {
        let ran = std::panic::catch_unwind(|| {
            let judge =
                |world: &World, publish: &Publish| subscribe_then_publish_anywhere::holds(world, publish);
            let mut world = World::new(seed, one.is_some(), judge);
            world.run();
            partition_heals::holds(&world);
            one_connection_per_client::holds(&world);
            persistent_sessions_survive::holds(&world);
            retained_are_the_same_everywhere::holds(&world);
            exclusive_has_one_holder::holds(&world);
            Tally::of(&world)
        });
        all.add(ran.unwrap_or_else(|_| panic!("FERRULE_SEED={seed} shows how it came to this")));
    }
    eprintln!("{all:?}");
    let all_kinds = one.is_some() || all.survived > 0;
    assert!(all_kinds && all.counts()[..9].iter().all(|count| **count > 0), "{all:?}");
}
