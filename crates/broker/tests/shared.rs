//! Shared subscriptions [MQTT 5, 4.8.2]: each message to one member of each group, and to another when that one is gone.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
use common::{Rig, check, check_with, limits};
use ferrule_broker::{Limits, Strategy};
use std::collections::BTreeMap;

/// What each client got since it was asked last: the payloads.
fn got(rig: &mut Rig, names: &[&str]) -> BTreeMap<String, Vec<String>> {
    let of = |rig: &mut Rig, name: &str| {
        let packets = std::mem::take(&mut rig.peer(name).packets);
        packets.into_iter().map(|packet| packet.split_whitespace().last().unwrap().to_owned()).collect()
    };
    names.iter().map(|name| ((*name).to_owned(), of(rig, name))).collect()
}

/// Members of a group, subscribed.
fn join(rig: &mut Rig, names: &[&str], filter: &str) {
    for name in names {
        rig.send(name, &format!("connect id={name} v=5"));
        rig.send(name, &format!("subscribe id=1 f={filter}"));
        rig.peer(name).packets.clear();
    }
}

fn strategy(strategy: Strategy) -> Limits {
    Limits { share: strategy, ..limits().into() }
}

const NAMES: [&str; 4] = ["m-one", "m-two", "m-three", "m-four"];

#[test]
fn every_message_comes_to_one_member_and_in_turn_to_each_alike() {
    for of in [1, 2, 3, 5] {
        let mut rig = Rig::of(strategy(Strategy::RoundRobin), of);
        join(&mut rig, &NAMES, "$share/g/a/+");
        // Beside them one with a plain subscription, and another group.
        join(&mut rig, &["plain"], "a/#");
        join(&mut rig, &["other"], "$share/h/a/b");
        rig.send("p", "connect id=p v=5");
        for n in 0..40 {
            rig.send("p", &format!("publish t=a/b p=n{n}"));
        }
        let got = got(&mut rig, &["m-one", "m-two", "m-three", "m-four", "plain", "other"]);
        for name in NAMES {
            assert_eq!(got[name].len(), 10, "{of} shards: {got:?}");
        }
        assert_eq!((got["plain"].len(), got["other"].len()), (40, 40), "{of} shards");
        let mut all: Vec<&String> = NAMES.iter().flat_map(|name| &got[*name]).collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 40, "{of} shards");
    }
}

#[test]
fn other_strategies() {
    for of in [1, 3] {
        let sent = |which: Strategy, publish: &dyn Fn(usize) -> (String, String)| {
            let mut rig = Rig::of(strategy(which), of);
            join(&mut rig, &NAMES, "$share/g/#");
            for n in 0..60 {
                let (publisher, topic) = publish(n);
                if rig.peer(&publisher).conn.is_none() {
                    rig.send(&publisher, &format!("connect id={publisher} v=5"));
                }
                rig.send(&publisher, &format!("publish t={topic} p={publisher}:{topic}"));
            }
            got(&mut rig, &NAMES)
        };
        let one = |_: usize| ("p".to_owned(), "t".to_owned());
        let several = |n: usize| (format!("p{}", n % 6), format!("t{}", n % 7));
        let busy = |got: &BTreeMap<String, Vec<String>>| got.values().filter(|all| !all.is_empty()).count();

        let random = sent(Strategy::Random, &one);
        assert!(random.values().all(|all| (4..=26).contains(&all.len())), "{of} shards: {random:?}");
        assert_eq!(busy(&sent(Strategy::Sticky, &one)), 1, "{of} shards");
        assert_eq!(sent(Strategy::Local, &one).values().map(Vec::len).sum::<usize>(), 60);
        // The same publisher, or topic, always to the same member; and not all to one.
        for (which, part) in [(Strategy::HashClientId, 0), (Strategy::HashTopic, 1)] {
            let got = sent(which, &several);
            let mut of_key = BTreeMap::new();
            for (name, all) in &got {
                for payload in all {
                    let key = payload.split(':').nth(part).unwrap().to_owned();
                    let before = of_key.insert(key, name);
                    assert!(before.is_none_or(|before| before == name), "{of} shards, {which:?}: {got:?}");
                }
            }
            assert!(busy(&got) > 1, "{of} shards, {which:?}: {got:?}");
        }
    }
}

#[test]
fn what_a_member_left_unacknowledged_goes_to_another() {
    // QoS 1 alone: of QoS 2 the first has seen the packet id, and nobody else may [MQTT-4.8.2-5].
    check_with(
        strategy(Strategy::Sticky),
        "a> connect id=a v=5 rmax=2
         a< connack sp=0
         a> subscribe id=1 f=$share/g/x:2
         a< suback 1 02
         p> connect id=p v=5
         p< connack sp=0
         p> publish t=x q=1 id=1 p=one
         p< puback 1
         p> publish t=x q=2 id=2 p=two
         p< pubrec 2
         p> publish t=x q=1 id=3 p=three
         p< puback 3
         p> publish t=x q=1 id=4 p=four
         p< puback 4
         a< publish x q1 id=1 one
         a< publish x q2 id=2 two
         a> puback 1
         a< publish x q1 id=3 three
         b> connect id=b v=5
         b< connack sp=0
         b> subscribe id=1 f=$share/g/x:2
         b< suback 1 02
         drop a
         b< publish x q1 id=1 three
         b< publish x q1 id=2 four
         b< -
         count shared_again 2
         b> puback 1
         b> puback 2
         drop b
         p> publish t=x q=1 id=5 p=five
         p< puback 5 10
         count shared_again 2
         count dropped_shared 0",
    );
}

#[test]
fn nobody_is_left_for_it() {
    check(
        "a> connect id=a v=5
         a< connack sp=0
         a> subscribe id=1 f=$share/g/x:1
         a< suback 1 01
         p> connect id=p v=5
         p< connack sp=0
         p> publish t=x q=1 id=1 p=one
         p< puback 1
         a< publish x q1 id=1 one
         drop a
         count dropped_shared 1",
    );
}

#[test]
fn a_session_that_lives_on_keeps_what_it_has_until_its_end() {
    check(
        "a> connect id=a v=5 clean=0 expiry=100
         commit
         a< connack sp=0
         a> subscribe id=1 f=$share/g/x:1
         commit
         a< suback 1 01
         b> connect id=b v=5
         b< connack sp=0
         drop a
         p> connect id=p v=5
         p< connack sp=0
         p> publish t=x q=1 id=1 p=one  -- nobody is there: it is for the one that is away
         wait 2000
         commit
         p< puback 1
         b> subscribe id=1 f=$share/g/x:1
         b< suback 1 01
         p> publish t=x q=1 id=2 p=two  -- it is passed over while another is there
         p< puback 2
         b< publish x q1 id=1 two
         b> puback 1
         wait 97000
         b< -
         wait 2000
         b< publish x q1 id=2 one",
    );
}

#[test]
fn a_group_survives_a_kill() {
    check(
        "a> connect id=a v=5 clean=0 expiry=100
         commit
         a< connack sp=0
         a> subscribe id=1 f=$share/g/x/+:1 f=y:1
         commit
         a< suback 1 01 01
         crash
         p> connect id=p v=5
         p< connack sp=0
         p> publish t=x/1 q=1 id=1 p=one
         p> publish t=y q=1 id=2 p=two
         wait 2000
         commit
         p< puback 1
         p< puback 2
         a> connect id=a v=5 clean=0 expiry=100
         a< connack sp=1
         a< publish x/1 q1 id=1 one
         a< publish y q1 id=2 two
         a> puback 1
         a> puback 2
         p> publish t=x/1 q=1 id=3 p=three
         a< publish x/1 q1 id=3 three
         a> puback 3
         p< puback 3
         a> unsubscribe id=4 f=$share/g/x/+
         commit
         a< unsuback 4 00
         p> publish t=x/1 q=1 id=4 p=four
         p< puback 4 10",
    );
}

#[test]
fn members_that_are_full_or_may_not_receive_are_passed_over() {
    check_with(
        strategy(Strategy::Sticky),
        "deny receive secret
         a> connect id=a v=5 rmax=1
         a< connack sp=0
         a> subscribe id=1 f=$share/g/#:1
         a< suback 1 01
         p> connect id=p v=5
         p< connack sp=0
         p> publish t=secret q=1 id=1
         p< puback 1
         p> publish t=x q=1 id=2 p=one
         p< puback 2
         a< publish x q1 id=1 one
         b> connect id=b v=5
         b< connack sp=0
         b> subscribe id=1 f=$share/g/#:1
         b< suback 1 01
         p> publish t=x q=1 id=3 p=two
         p< puback 3
         b< publish x q1 id=1 two",
    );
}

#[test]
fn what_a_client_may_not_ask_for() {
    check(
        "deny subscribe no
         a> connect id=a v=5
         a< connack sp=0
         a> subscribe id=1 f=$share/g/no:1 f=$share/+/x:1 f=$share/g:1 f=$share/g/:1 f=$share//x:1
         a< suback 1 87 8f 8f 8f 8f
         a> raw 82 10 00 02 00 00 0a 24 73 68 61 72 65 2f 67 2f 78 05
         a< disconnect 82
         a! closed",
    );
}

#[test]
fn no_retained_messages_and_both_subscriptions() {
    check(
        "p> connect id=p v=5
         p< connack sp=0
         p> publish t=x r=1 p=kept
         a> connect id=a v=5
         a< connack sp=0
         a> subscribe id=1 f=$share/g/x
         a< suback 1 00
         a< -
         a> subscribe id=2 f=x:0:rh2
         a< suback 2 00
         p> publish t=x p=one
         a< publish x q0 one
         a< publish x q0 one",
    );
}

/// Members come and go on all shards while messages are under way between them: what is acknowledged comes to exactly one member
/// that stays, or to one that left.
#[test]
fn members_that_come_and_go_lose_nothing() {
    for seed in 0..40 {
        let clients = ferrule_broker::ClientLimits { receive_max: 256, ..limits() };
        let mut rig = Rig::of(Limits { share: Strategy::Random, ..clients.into() }, 3);
        rig.wire = Some(common::Wire::new(3_000, seed % 2 == 0, seed));
        let mut sent = 0;
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        // One that never leaves.
        let script = |rig: &mut Rig, name: &str| {
            rig.send(name, &format!("connect id={name} v=5"));
            rig.wait(50);
            rig.send(name, "subscribe id=1 f=$share/g/x:1");
            rig.wait(50);
        };
        script(&mut rig, "stays");
        rig.send("p", "connect id=p v=5");
        let mut random = seed;
        let mut next = move |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        let take = |rig: &mut Rig, name: &str, seen: &mut BTreeMap<String, usize>, answer: bool| {
            let packets: Vec<String> = rig.peer(name).packets.drain(..).collect();
            for packet in packets.iter().filter(|packet| packet.starts_with("publish")) {
                if answer {
                    *seen.entry(packet.split_whitespace().last().unwrap().to_owned()).or_default() += 1;
                    let id = packet.split_whitespace().find_map(|word| word.strip_prefix("id=")).unwrap();
                    rig.send(name, &format!("puback {id}"));
                }
            }
        };
        for _ in 0..120 {
            let name = format!("m{}", next(5));
            match next(5) {
                0 if rig.peers.get(&name).is_none_or(|peer| peer.conn.is_none()) => script(&mut rig, &name),
                // It leaves with what it has not answered.
                1 if rig.peers.get(&name).is_some_and(|peer| peer.conn.is_some()) => {
                    take(&mut rig, &name, &mut seen, next(2) == 0);
                    rig.drop_peer(&name);
                }
                _ => {
                    sent += 1;
                    let id = sent % 60_000 + 1;
                    rig.send("p", &format!("publish t=x q=1 id={id} p=n{sent}"));
                    rig.wait_us(next(4_000));
                    rig.peer("p").packets.clear();
                }
            }
        }
        rig.wait(200);
        for name in ["m0", "m1", "m2", "m3", "m4"] {
            if rig.peers.get(name).is_some_and(|peer| peer.conn.is_some()) {
                take(&mut rig, name, &mut seen, true);
            }
            rig.drop_peer(name);
            rig.wait(200);
        }
        for _ in 0..sent {
            rig.wait(20);
            take(&mut rig, "stays", &mut seen, true);
        }
        for n in 1..=sent {
            assert_eq!(seen.get(&format!("n{n}")), Some(&1), "seed {seed}: n{n}, of {sent}");
        }
        assert_eq!(rig.receipts().1, 0, "seed {seed}: lost ends");
        assert_eq!(rig.count("dropped_shared"), 0, "seed {seed}");
    }
}
