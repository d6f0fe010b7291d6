//! A node of a cluster that may not acknowledge, for a while or from the middle of a turn on.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
use common::{Rig, limits, steps};

/// A node of a cluster with so many shards, which may acknowledge.
fn node(of: u16) -> Rig {
    let mut rig = Rig::of(limits(), of);
    rig.may = Some((true, true));
    rig
}

fn on_one_and_three(test: impl Fn(Rig)) {
    for of in [1, 3] {
        test(node(of));
    }
}

#[test]
fn publishes_are_parked_until_it_may_and_the_rest_goes_on() {
    on_one_and_three(|mut rig| {
        steps(
            &mut rig,
            "s> connect id=s v=5\ns< connack sp=0\ns> subscribe id=1 f=a:1\ns< suback 1 01
             p> connect id=p v=5\np< connack sp=0\nq> connect id=q v=5\nq< connack sp=0",
        );
        rig.may = Some((false, false));
        steps(
            &mut rig,
            "q> publish t=a q=0 p=zero\ns< publish a q0 zero
             p> publish t=a q=1 id=1 p=one\np> publish t=a q=0 p=behind\np> publish t=a q=2 id=2 p=two\np< -\ns< -
             q> ping\nq< pong\ncount parked 1",
        );
        assert_eq!(rig.shards.iter().map(|shard| shard.parked()).sum::<usize>(), 1);
        rig.may = Some((true, true));
        steps(
            &mut rig,
            "wait 1\np< puback 1\np< pubrec 2\ns< publish a q1 id=1 one\ns< publish a q0 behind\ns< publish a q1 id=2 two
             p> pubrel 2\np< pubcomp 2\ncount withdrawn 0",
        );
        assert_eq!(rig.receipts(), (0, 0));
    });
}

#[test]
fn who_is_parked_for_long_is_sent_away() {
    on_one_and_three(|mut rig| {
        steps(
            &mut rig,
            "p> connect id=p v=5\np< connack sp=0\nq> connect id=q v=5\nq< connack sp=0
             r> connect id=r v=4\nr< connack sp=0",
        );
        rig.may = Some((false, false));
        steps(&mut rig, "p> publish t=a q=1 id=1 p=one\nr> publish t=a q=1 id=1 p=one\nwait 9000\np< -");
        steps(&mut rig, "wait 1001\np< disconnect 89\np! closed\nr! closed");
        // Whoever comes now does not wait as long.
        steps(&mut rig, "q> publish t=a q=1 id=1 p=one\nwait 1\nq< disconnect 89\nq! closed");
        // It begins anew with the next loss.
        rig.may = Some((true, true));
        steps(
            &mut rig,
            "t> connect id=t v=5\nt< connack sp=0\nt> publish t=a q=1 id=1 p=one\nt< puback 1 10",
        );
        rig.may = Some((false, false));
        steps(&mut rig, "t> publish t=a q=1 id=2 p=two\nwait 9000\nt< -\ncount withdrawn 0");
    });
}

#[test]
fn what_was_routed_in_a_turn_that_may_not_end_so_is_withdrawn() {
    on_one_and_three(|mut rig| {
        steps(
            &mut rig,
            "s> connect id=s v=5\ns< connack sp=0\ns> subscribe id=1 f=a:0\ns< suback 1 00
             p> connect id=p v=5\np< connack sp=0\nq> connect id=q v=5\nq< connack sp=0",
        );
        rig.may = Some((true, false));
        steps(
            &mut rig,
            "p> publish t=a q=1 id=1 p=one\np< disconnect 89\np! closed
             q> publish t=b q=1 id=1 p=one\nq< disconnect 89\nq! closed\ncount withdrawn 2",
        );
        rig.may = Some((true, true));
        steps(
            &mut rig,
            "wait 1\ns< publish a q0 one
             p> connect id=p v=5\np< connack sp=0\np> publish t=a q=1 id=1 dup=1 p=one\np< puback 1\ns< publish a q0 one",
        );
        assert_eq!(rig.receipts().1, 0);
    });
}

#[test]
fn a_withdrawn_qos_2_publish_is_new_when_it_is_sent_again() {
    on_one_and_three(|mut rig| {
        steps(
            &mut rig,
            "s> connect id=s v=5\ns< connack sp=0\ns> subscribe id=1 f=a:0\ns< suback 1 00
             p> connect id=p v=5 clean=0 expiry=100\ncommit\np< connack sp=0",
        );
        rig.may = Some((true, false));
        steps(
            &mut rig,
            "p> publish t=a q=2 id=1 p=one\ncommit\np< disconnect 89\np! closed\ns< publish a q0 one",
        );
        rig.may = Some((true, true));
        steps(
            &mut rig,
            "commit\np> connect id=p v=5 clean=0 expiry=100\ncommit\np< connack sp=1
             p> publish t=a q=2 id=1 dup=1 p=one\ns< publish a q0 one\np< -\ncommit\np< pubrec 1
             p> pubrel 1\ncommit\np< pubcomp 1",
        );
        assert_eq!(rig.receipts(), (0, 0));
        // And after a power cut, too.
        rig.may = Some((true, false));
        steps(&mut rig, "p> publish t=b q=2 id=2 p=two\np< disconnect 89\np! closed\ncommit");
        rig.crash();
        rig.may = Some((true, true));
        rig.rule("b");
        steps(
            &mut rig,
            "hold\np> connect id=p v=5 clean=0 expiry=100\ncommit\np< connack sp=1\np> publish t=b q=2 id=2 dup=1 p=two\ncommit\np< -
             resolve delivered\ncommit\np< pubrec 2",
        );
    });
}

#[test]
fn what_waits_from_earlier_turns_goes_on() {
    on_one_and_three(|mut rig| {
        rig.rule("a");
        steps(&mut rig, "hold\np> connect id=p v=5\np< connack sp=0\np> publish t=a q=1 id=1 p=one\np< -");
        rig.may = Some((true, false));
        steps(&mut rig, "wait 5\np< -\nresolve delivered\np< puback 1\ncount withdrawn 0");
        rig.may = Some((false, false));
        steps(&mut rig, "wait 5\np< -");
        assert_eq!(rig.receipts(), (0, 0));
    });
}
