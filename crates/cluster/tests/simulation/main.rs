//! A cluster under seeded schedules: links that hold back, reset and heal, nodes that pause, crash and come back, a store that is out of
//! reach, clocks of different rates. Its nodes are real shards with real clients ([`world`]); each promise has a file.
//!
//! `FERRULE_SEEDS=n` for more of them, `FERRULE_SEED=s` for one, told step by step.

#![allow(clippy::unwrap_used, reason = "tests")]

mod one_connection_per_client;
mod partition_heals;
mod persistent_sessions_survive;
mod retained_are_the_same_everywhere;
#[path = "../../../broker/tests/common/mod.rs"]
mod rig;
mod subscribe_then_publish_anywhere;
mod world;

use world::{Publish, World};

/// Whether a batch of parcels is of the control stream: its first byte tells.
fn is_control(bytes: &[u8]) -> bool {
    // Routes, their confirmations, members of groups, exclusive subscriptions, whose a session is (crates/broker/src/parcel.rs).
    matches!(bytes[0], 1..=3 | 11..=15 | 0x30..=0x36 | 0x39 | 0x3a)
}

fn seed_of(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|n| n.parse().ok())
}

#[test]
fn the_promises_hold_whatever_happens() {
    let one = seed_of("FERRULE_SEED");
    let seeds = one.map_or(0..seed_of("FERRULE_SEEDS").unwrap_or(300), |seed| seed..seed + 1);
    let (mut acknowledged, mut withheld, mut subscribed, mut delivered, mut kept, mut looks) =
        (0, 0, 0, 0, 0, 0);
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
            (
                world.acknowledged,
                world.withheld,
                world.subscribed.len(),
                world.deliveries(),
                world.kept(),
                world.reader.looks,
            )
        });
        let Ok(ran) = ran else { panic!("FERRULE_SEED={seed} shows how it came to this") };
        acknowledged += ran.0;
        withheld += ran.1;
        subscribed += ran.2;
        delivered += ran.3;
        kept += ran.4;
        looks += ran.5;
    }
    eprintln!(
        "{acknowledged} publishes acknowledged, {withheld} withheld, {subscribed} subscribers, {delivered} messages, {kept} of persistent sessions, {looks} looks at what is retained"
    );
    assert!(acknowledged > 0 && withheld > 0 && subscribed > 0 && delivered > 0 && kept > 0 && looks > 0);
}
