//! Batches of a gateway: each message as if it had come alone, and one acknowledgement for all.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
use common::{Rig, check, check_features, check_with, limits, run};
use ferrule_broker::{Action, ClientLimits, Features, Rewrite, Rewrites};

#[test]
fn messages_come_as_if_alone() {
    check(
        "
        s> connect id=s v=5
        s< connack sp=0
        s> subscribe id=1 f=a/#:1
        s< suback 1 01
        gate edge
        g> connect id=g v=5
        g< connack sp=0
        g> batch q=1 id=7 m=a/1:one m=b/1:not m=a/2:two:0 m=a/1:three
        g< puback 7
        s< publish a/1 q1 id=1 UserProperty(\"ferrule-id\", \"7.0.1\") UserProperty(\"ferrule-client\", \"device\") UserProperty(\"ferrule-at\", \"1700000000000\") UserProperty(\"ferrule-age\", \"5\") UserProperty(\"ferrule-hops\", \"1\") one
        s< publish a/2 q0 UserProperty(\"ferrule-id\", \"7.0.3\") UserProperty(\"ferrule-client\", \"device\") UserProperty(\"ferrule-at\", \"1700000000000\") UserProperty(\"ferrule-age\", \"5\") UserProperty(\"ferrule-hops\", \"1\") two
        s< publish a/1 q1 id=2 UserProperty(\"ferrule-id\", \"7.0.4\") UserProperty(\"ferrule-client\", \"device\") UserProperty(\"ferrule-at\", \"1700000000000\") UserProperty(\"ferrule-age\", \"5\") UserProperty(\"ferrule-hops\", \"1\") three
        count received 4
        count acknowledged 4
        count batches 1
        count unmatched 1
        -- QoS 0 if all of it is.
        g> batch m=c:x:0
        g< -
        count received 5
        ",
    );
}

#[test]
fn the_acknowledgement_waits_for_all_ends() {
    check(
        "
        gate edge
        g> connect id=g v=5
        g< connack sp=0
        rule a/#
        hold
        g> batch q=1 id=1 m=a/1:one m=b:x m=a/2:two m=a/3:three:0
        g> batch q=1 id=2 m=a/4:four
        g< -
        resolve delivered
        g< -
        -- One that was given up is no end of the others.
        resolve discarded
        g< puback 1
        count acked_discarded 1
        resolve delivered
        g< -
        resolve delivered
        g< puback 2
        open 0
        ",
    );
}

#[test]
fn one_that_finds_no_room_sends_all_again() {
    check(
        "
        gate edge
        g> connect id=g v=5
        g< connack sp=0
        rule a/#
        hold
        g> batch q=1 id=1 m=a/1:one m=a/2:two
        resolve delivered
        resolve retry
        g< disconnect 89
        g! closed
        open 0
        ",
    );
}

#[test]
fn what_is_refused_is_named_and_costs_no_other() {
    let script = "
        s> connect id=s v=5
        s< connack sp=0
        s> subscribe id=1 f=a/+
        s< suback 1 00
        deny publish a/secret
        gate edge
        g> connect id=g v=5
        g< connack sp=0
        g> batch q=1 id=3 m=a/secret:x m=a/1:one m=a/1/2/3:deep m=$SYS/x:no m=a/secret:y:0
        g< puback 3 refused=0:135,2:144,3:135,4:135
        count denied 3
        count topics_refused 1
        count acknowledged 1
        -- And a gateway that cannot be told which is told that it was not all.
        h> connect id=h v=5 psize=30
        h< connack sp=0
        h> batch q=1 id=4 m=a/secret:x m=b/1:one
        h< puback 4 83
        ";
    for of in [1, 3] {
        let limits = ClientLimits { topic_levels: 3, ..limits() };
        let mut rig = Rig::of(limits, of);
        common::steps(&mut rig, script);
        let packets = std::mem::take(&mut rig.peer("s").packets);
        assert_eq!(packets.len(), 1);
        assert!(packets[0].ends_with(" one"), "{packets:?}");
        run(&mut rig, "");
    }
}

#[test]
fn what_is_no_batch_is_refused_whole() {
    check(
        "
        rule #
        hold
        gate edge
        g> connect id=g v=5
        g< connack sp=0
        g> batch q=1 id=1 m=a:x m=b:y plain=1 break=cut
        g< puback 1 99
        g> batch q=1 id=1 m=a:x m=b:y break=cut
        g< puback 1 99
        g> batch q=1 id=1 m=a:x m=b:y break=version
        g< puback 1 83
        g> batch m=a:x:0 break=version
        g< -
        g> batch q=2 id=5 m=a:x
        g< pubrec 5 99
        count batches 0
        count batches_refused 5
        count received 5
        open 0
        ",
    );
}

#[test]
fn only_a_gateway_may() {
    check(
        "
        d> connect id=d v=5
        d< connack sp=0
        d> batch q=1 id=1 m=a:x
        d< puback 1 87
        count batches 0
        ",
    );
}

#[test]
fn repeated_while_it_waits_it_joins() {
    check(
        "
        gate edge
        g> connect id=g v=5
        g< connack sp=0
        rule a
        hold
        g> batch q=1 id=1 m=a:x
        g> batch q=1 id=1 m=a:x
        count joined 1
        resolve delivered
        g< puback 1
        g< -
        ",
    );
}

#[test]
fn retained_delayed_and_rewritten_ones_are_what_they_are_alone() {
    let rewrite = Rewrite::new(Action::Publish, "old/#", "^old/(.+)$", "a/$1").unwrap();
    let features = Features { rewrites: Rewrites::new(&[rewrite]), ..Features::default() };
    check_features(
        &features,
        "
        gate edge
        g> connect id=g v=5
        g< connack sp=0
        rule a/#
        hold
        g> batch q=1 id=1 m=old/x:one m=c:kept:1:r m=$delayed/1/a/z:later
        g< -
        resolve delivered
        g< -
        commit
        g< puback 1
        wait 1500
        resolve delivered
        commit
        open 0
        ",
    );
}

#[test]
fn a_batch_takes_one_place_of_the_window() {
    let limits = ClientLimits { receive_max: 1, ..limits() };
    check_with(
        limits,
        "
        gate edge
        g> connect id=g v=5
        g< connack sp=0
        rule a
        hold
        g> batch q=1 id=1 m=a:1 m=a:2 m=a:3
        g< -
        g> batch q=1 id=2 m=a:4
        g< disconnect 93
        g! closed
        resolve delivered
        resolve delivered
        resolve delivered
        open 0
        ",
    );
}
