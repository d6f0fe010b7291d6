//! Power cuts between every pair of steps: what was acknowledged is there.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
use common::{Rig, check, check_with, limits, parse, run};
use ferrule_broker::ClientLimits;

#[test]
fn an_acknowledged_session_and_subscription_are_there() {
    check(
        "s> connect id=s clean=0
         commit
         s< connack sp=0
         s> subscribe id=1 f=x:1 f=y:2
         commit
         s< suback 1 01 02
         s> unsubscribe id=2 f=y
         commit
         s< unsuback 2
         crash
         p> connect id=p v=5
         p< connack sp=0
         p> publish t=y q=1 id=1
         p< puback 1 10
         p> publish t=x q=1 id=2 p=m
         p< -
         wait 400
         commit
         p< puback 2
         s> connect id=s clean=0
         s< connack sp=1
         s< publish x q1 id=1 m",
    );
}

#[test]
fn what_was_not_committed_was_not_acknowledged() {
    check(
        "s> connect id=s clean=0
         s< -
         crash
         s> connect id=s clean=0
         commit
         s< connack sp=0
         s> subscribe id=1 f=x:1
         s< -
         crash
         s> connect id=s clean=0
         s< connack sp=1
         p> connect id=p v=5
         p< connack sp=0
         p> publish t=x q=1 id=1
         p< puback 1 10",
    );
}

#[test]
fn acknowledged_messages_for_a_persistent_session_are_there_in_order() {
    check(
        "s> connect id=s clean=0
         commit
         s< connack sp=0
         s> subscribe id=1 f=x:2
         commit
         s< suback 1 02
         s> disconnect
         s! closed
         p> connect id=p
         p< connack sp=0
         p> publish t=x q=1 id=1 p=1
         p> publish t=x q=2 id=2 p=2
         p> publish t=x q=1 id=3 p=3
         commit
         p< puback 1
         p< pubrec 2
         p< puback 3
         crash
         crash
         s> connect id=s clean=0
         s< connack sp=1
         s< publish x q1 id=1 1
         commit
         s< publish x q1 id=3 3
         s< publish x q2 id=2 2",
    );
}

#[test]
fn retained_messages_are_there() {
    check(
        "p> connect id=p
         p< connack sp=0
         p> publish t=x q=1 id=1 r=1 p=1
         p> publish t=y q=1 id=2 r=1 p=2
         p> publish t=z r=1 p=3
         commit
         p< puback 1
         p< puback 2
         p> publish t=y q=1 id=3 r=1
         commit
         p< puback 3
         p> publish t=x q=1 id=4 r=1 p=lost
         wait 1100
         crash
         a> connect id=a
         a< connack sp=0
         a> subscribe id=1 f=x f=y f=z
         a< suback 1 00 00 00
         a< publish x q0 r 1
         a< publish z q0 r 3  -- went with the commit of the others",
    );
}

#[test]
fn retained_at_qos_0_is_written_within_a_second() {
    check(
        "p> connect id=p
         p< connack sp=0
         p> publish t=x r=1 p=1
         p> publish t=x r=1 p=2
         wait 1100
         commit
         crash
         a> connect id=a
         a< connack sp=0
         a> subscribe id=1 f=x
         a< suback 1 00
         a< publish x q0 r 2",
    );
}

#[test]
fn inbound_qos_2_ids_are_there_until_their_release() {
    check(
        "rule x
         p> connect id=p clean=0 v=5 expiry=100
         commit
         p< connack sp=0
         p> publish t=x q=2 id=7
         commit
         p< pubrec 7
         crash
         p> connect id=p clean=0 v=5 expiry=100
         p< connack sp=1
         hold
         p> publish t=x q=2 id=7 dup=1
         p< pubrec 7
         open 0
         p> pubrel 7
         crash
         p> connect id=p clean=0 v=5 expiry=100
         p< connack sp=1
         p> pubrel 7
         commit
         p< pubcomp 7
         crash
         p> connect id=p clean=0 v=5 expiry=100
         p< connack sp=1
         hold
         p> publish t=x q=2 id=7
         commit
         open 1
         resolve delivered
         p< pubrec 7",
    );
}

#[test]
fn an_inbound_qos_2_publish_that_was_not_committed_is_routed_again() {
    check(
        "rule x
         p> connect id=p clean=0 v=5 expiry=100
         commit
         p< connack sp=0
         p> publish t=x q=2 id=7
         p< -
         crash
         p> connect id=p clean=0 v=5 expiry=100
         p< connack sp=1
         hold
         p> publish t=x q=2 id=7 dup=1
         open 1
         commit
         resolve delivered
         p< pubrec 7",
    );
}

/// A QoS 2 delivery to a persistent session, cut after each of its steps.
#[test]
fn outbound_qos_2_goes_on_where_it_was() {
    let steps = [
        "s> connect id=s clean=0\ncommit\ns< connack sp=0\ns> subscribe id=1 f=x:2\ncommit\ns< suback 1 02
         p> connect id=p\np< connack sp=0\np> publish t=x q=2 id=1 p=m",
        "commit\np< pubrec 1\ns< publish x q2 id=1 m",
        "s> pubrec 1",
        "commit\ns< pubrel 1",
        "s> pubcomp 1",
    ];
    let again = |rest: &str| format!("s> connect id=s clean=0\ns< connack sp=1\n{rest}");
    let after = [
        String::new(), // Not acknowledged: the publisher has it.
        again("s< publish x q2 id=1 dup m\ns> pubrec 1\ncommit\ns< pubrel 1\ns> pubcomp 1"),
        again("s< publish x q2 id=1 dup m\ns> pubrec 1\ncommit\ns< pubrel 1\ns> pubcomp 1"),
        again("s< pubrel 1\ns> pubcomp 1"),
        again("s< pubrel 1\ns> pubcomp 1"),
    ];
    for cut in 0..steps.len() {
        let before = steps[..=cut].join("\n");
        check(&format!("{before}\ncrash\n{}\nwait 2000\ncommit\ncrash\n{}", after[cut], again("")));
    }
}

#[test]
fn a_new_message_never_takes_a_packet_id_that_the_client_still_holds() {
    check(
        "s> connect id=s clean=0
         commit
         s< connack sp=0
         s> subscribe id=1 f=x:2
         commit
         s< suback 1 02
         p> connect id=p
         p< connack sp=0
         p> publish t=x q=2 id=1 p=old
         commit
         p< pubrec 1
         s< publish x q2 id=1 old
         crash
         s> connect id=s clean=0
         s< connack sp=1
         s< publish x q2 id=1 dup old
         p> connect id=p
         p< connack sp=0
         p> publish t=x q=1 id=1 p=new
         s< publish x q1 id=2 new
         s> puback 2
         p< puback 1",
    );
}

#[test]
fn a_delivery_whose_connection_breaks_before_its_commit_goes_out_later() {
    check(
        "s> connect id=s clean=0
         commit
         s< connack sp=0
         s> subscribe id=1 f=x:2
         commit
         s< suback 1 02
         p> connect id=p
         p< connack sp=0
         p> publish t=x q=2 id=1 p=1
         drop s
         commit
         p< pubrec 1
         p> publish t=x q=2 id=2 p=2
         s> connect id=s clean=0
         s< connack sp=1
         s< publish x q2 id=1 1
         commit
         p< pubrec 2
         s< publish x q2 id=2 2",
    );
}

#[test]
fn a_session_ends_while_the_process_is_down() {
    check(
        "s> connect id=s clean=0 v=5 expiry=10
         commit
         s< connack sp=0
         s> subscribe id=1 f=x:1
         commit
         s< suback 1 01
         drop s
         wait 1100
         commit
         crash
         s> connect id=s clean=0 v=5 expiry=10
         s< connack sp=1
         drop s
         wait 11000
         crash
         wait 1100
         s> connect id=s clean=0 v=5 expiry=10
         commit
         s< connack sp=0",
    );
}

const BEFORE: &str = "s> connect id=s clean=0 v=5 expiry=100
     commit
     s< connack sp=0
     s> subscribe id=1 f=x:1
     commit
     s< suback 1 01
     p> connect id=p v=5
     p< connack sp=0
     wait 60000
     drop s
     p> publish t=x q=1 id=1 expiry=100 p=1
     p> publish t=r q=1 id=2 r=1 expiry=100 p=2
     wait 1000
     commit
     p< puback 1
     p< puback 2
     drop p
";
const AFTER: &str = "s> connect id=s clean=0 v=5 expiry=100
     s< connack sp=1
     s< publish x q1 id=1 expiry=LEFT 1
     s> puback 1
     o> connect id=o v=5
     o< connack sp=0
     o> subscribe id=1 f=r:0
     o< suback 1 00
     o< publish r q0 r expiry=LEFT 2
     wait 80000
     q> connect id=q v=5
     q< connack sp=0
     q> subscribe id=1 f=r:0
     q< suback 1 00
     q< -
     drop s
     commit
     wait 101000
     commit
     s> connect id=s clean=0 v=5 expiry=100
     commit
     s< connack sp=0";

/// Seven days either way, and 1970: a life of 100 s is one, of a session, a message that waits, a retained one.
#[test]
fn a_wall_clock_that_jumps_ends_nothing_early_or_late() {
    for jump in ["604800000", "-604800000", "-1700000000000"] {
        let after = AFTER.replace("LEFT", "79");
        check(&format!("{BEFORE}\nclock {jump}\nwait 20000\n{after}"));
    }
}

/// A gateway without a clock of its own starts in the past: the time goes on where the store had it.
#[test]
fn a_start_in_the_past_ends_nothing_early_or_late() {
    for jump in ["-604800000", "-1700000000000"] {
        // The second since it was written is not known.
        let after = AFTER.replace("LEFT", "80");
        check(&format!("{BEFORE}\nclock {jump}\ncrash\nwait 20000\n{after}"));
    }
}

#[test]
fn a_discarded_session_does_not_come_back() {
    check(
        "s> connect id=s clean=0
         commit
         s< connack sp=0
         s> subscribe id=1 f=x:1
         commit
         s< suback 1 01
         s> disconnect
         s! closed
         s> connect id=s clean=1
         s< -
         commit
         s< connack sp=0
         crash
         s> connect id=s clean=0
         commit
         s< connack sp=0
         p> connect id=p v=5
         p< connack sp=0
         p> publish t=x q=1 id=1
         p< puback 1 10",
    );
}

#[test]
fn a_backlog_larger_than_memory_comes_back_in_order() {
    let mut script = String::from(
        "s> connect id=s clean=0
         commit
         s< connack sp=0
         s> subscribe id=1 f=x:1
         commit
         s< suback 1 01
         s> disconnect
         s! closed
         p> connect id=p
         p< connack sp=0\n",
    );
    let big = "m".repeat(20_000);
    for n in 1..=300 {
        script += &format!("p> publish t=x q=1 id={n} p={n}{big}\nwait 400\ncommit\np< puback {n}\n");
    }
    script += "crash\ns> connect id=s clean=0\ns< connack sp=1\n";
    for n in 1..=300 {
        script += &format!("s< publish x q1 id={n} {n}{big}\ns> puback {n}\n");
    }
    check_with(ClientLimits { inflight_max: 16, ..limits() }, &script);
}

#[test]
fn a_qos_2_id_whose_message_found_no_room_is_not_written_before_it() {
    let mut rig = Rig::new(limits());
    rig.policy.disk_bytes = 200; // One row.
    rig.crash();
    run(
        &mut rig,
        "s> connect id=s clean=0
         commit
         s< connack sp=0
         s> subscribe id=1 f=x:1
         commit
         s< suback 1 01
         s> disconnect
         s! closed
         p> connect id=p clean=0
         commit
         p< connack sp=0
         p> publish t=x q=2 id=1 p=1
         commit
         p< pubrec 1
         p> publish t=x q=2 id=2 p=2
         p> publish t=y q=2 id=3 p=3  -- not concerned
         commit
         p< -
         wait 1100
         commit
         wait 1100
         commit
         crash
         p> connect id=p clean=0
         p< connack sp=1
         p> publish t=x q=2 id=2 p=2 dup=1
         commit
         p< pubrec 2  -- there is room again: what is counted after a start is smaller
         s> connect id=s clean=0
         s< connack sp=1
         s< publish x q1 id=1 1
         s< publish x q1 id=2 2
         s> puback 1
         s> puback 2
         wait 20000
         commit
         open 0",
    );
}

/// A power cut between any two turns and commits of the shards: the message is there once, also when its publisher, who has no
/// answer, sends it again.
#[test]
fn a_qos_2_message_to_another_shard_is_there_once() {
    // Reader and writer on the same shard and on different ones.
    for reader in ["r1", "r2", "r3", "r4", "r5"] {
        for cut in 0..14 {
            let mut rig = Rig::of(limits(), 3);
            run(
                &mut rig,
                &format!(
                    "s> connect id={reader} clean=0
                     commit
                     s< connack sp=0
                     s> subscribe id=1 f=x:2
                     commit
                     s< suback 1 02
                     drop s
                     commit
                     p> connect id=w clean=0
                     commit
                     p< connack sp=0"
                ),
            );
            let publish = |dup: u8| format!("publish t=x q=2 id=7 p=once dup={dup}");
            let (bytes, _) = parse(&publish(0), None);
            rig.bytes("p", &bytes);
            for step in 0..cut {
                rig.turn_one(step % 3);
                rig.commit_only();
            }
            rig.crash();
            run(
                &mut rig,
                &format!(
                    "p> connect id=w clean=0
                     p< connack sp=1
                     p> {}
                     commit
                     commit
                     p< pubrec 7
                     p> pubrel 7
                     commit
                     p< pubcomp 7",
                    publish(1)
                ),
            );
            rig.send("s", &format!("connect id={reader} clean=0"));
            rig.commit();
            rig.commit();
            let packets = std::mem::take(&mut rig.peer("s").packets);
            let messages = packets.iter().filter(|packet| packet.starts_with("publish x")).count();
            assert_eq!(messages, 1, "{reader}, cut after {cut}: {packets:?}");
        }
    }
}

#[test]
fn what_was_sent_before_a_kill_may_be_a_repetition_and_what_was_not_is_none() {
    check(
        "s> connect id=s clean=0
         commit
         s< connack sp=0
         s> subscribe id=1 f=x:1
         commit
         s< suback 1 01
         p> connect id=p
         p< connack sp=0
         p> publish t=x q=1 id=1 p=1
         s< publish x q1 id=1 1
         wait 2000
         commit
         p< puback 1
         drop s
         p> publish t=x q=1 id=2 p=2
         wait 2000
         commit
         p< puback 2
         crash
         s> connect id=s clean=0
         s< connack sp=1
         s< publish x q1 id=1 dup 1
         s< publish x q1 id=2 2
         p> connect id=p
         p< connack sp=0
         p> publish t=x q=1 id=3 p=3
         wait 2000
         commit
         p< puback 3
         s< publish x q1 id=3 3
         crash
         s> connect id=s clean=0
         s< connack sp=1
         s< publish x q1 id=1 dup 1
         s< publish x q1 id=2 dup 2  -- it was connected: nobody knows
         s< publish x q1 id=3 dup 3",
    );
}

#[test]
fn what_expired_on_disk_is_not_delivered() {
    check(
        "s> connect id=s v=5 clean=0 expiry=1000
         commit
         s< connack sp=0
         s> subscribe id=1 f=x:1
         commit
         s< suback 1 01
         drop s
         p> connect id=p v=5
         p< connack sp=0
         p> publish t=x q=1 id=1 expiry=10 p=1
         p> publish t=x q=1 id=2 expiry=100 p=2
         wait 2000
         commit
         p< puback 1
         p< puback 2
         crash
         wait 20000
         s> connect id=s v=5 clean=0 expiry=1000
         s< connack sp=1
         s< publish x q1 id=2 expiry=78 2
         count dropped_expired 1",
    );
}

#[test]
fn a_will_survives_a_kill() {
    check(
        "w> connect id=w clean=0 ka=60 will=gone wq=1 wp=bye
         commit
         w< connack sp=0
         s> connect id=s clean=0
         commit
         s< connack sp=0
         s> subscribe id=1 f=gone:1
         commit
         s< suback 1 01
         crash
         wait 300
         commit
         s> connect id=s clean=0
         s< connack sp=1
         s< publish gone q1 id=1 bye
         s> puback 1
         wait 2000
         commit
         crash
         wait 1000
         s> connect id=s clean=0
         s< connack sp=1
         s< -  -- once",
    );
}

/// Its connection has ended, and no delay was asked for: the return comes after that.
#[test]
fn a_will_without_a_delay_survives_a_kill_however_fast_its_owner_returns() {
    check(
        "s> connect id=s clean=0
         commit
         s< connack sp=0
         s> subscribe id=1 f=gone:1
         commit
         s< suback 1 01
         w> connect id=w clean=0 will=gone wq=1 wp=bye
         commit
         w< connack sp=0
         crash
         w> connect id=w clean=0
         commit
         w< connack sp=1
         s> connect id=s clean=0
         s< connack sp=1
         s< publish gone q1 id=1 bye",
    );
}

#[test]
fn a_late_will_survives_a_kill_and_its_owner_takes_it_back() {
    check(
        "s> connect id=s clean=0
         commit
         s< connack sp=0
         s> subscribe id=1 f=gone/+:1
         commit
         s< suback 1 01
         a> connect id=a v=5 clean=0 expiry=100 will=gone/a wq=1 delay=30
         commit
         a< connack sp=0
         b> connect id=b v=5 clean=0 expiry=100 will=gone/b wq=1 delay=30
         commit
         b< connack sp=0
         c> connect id=c v=5 clean=0 expiry=100 will=gone/c wq=1 delay=30
         commit
         c< connack sp=0
         drop a
         drop b
         c> disconnect
         c! closed
         commit
         wait 10000
         crash
         s> connect id=s clean=0
         s< connack sp=1
         wait 10000
         b> connect id=b v=5 clean=0 expiry=100
         commit
         b< connack sp=1
         s< -
         wait 10300
         s< publish gone/a q1 id=1 will
         s> puback 1
         wait 30000
         commit
         s< -",
    );
}

#[test]
fn a_session_that_ended_while_nobody_was_there_leaves_its_will() {
    check(
        "s> connect id=s clean=0
         commit
         s< connack sp=0
         s> subscribe id=1 f=gone:1
         commit
         s< suback 1 01
         a> connect id=a v=5 clean=0 expiry=20 will=gone wq=1 delay=30
         commit
         a< connack sp=0
         drop a
         s> disconnect
         s! closed
         wait 2000
         commit
         wait 60000
         crash
         wait 300
         commit
         s> connect id=s clean=0
         s< connack sp=1
         s< publish gone q1 id=1 will
         s> puback 1
         a> connect id=a v=5 clean=0 expiry=20
         commit
         a< connack sp=0",
    );
}

#[test]
fn a_will_is_there_once_wherever_its_subscribers_are_and_whenever_the_power_is_cut() {
    // The end of the will and what it becomes in other shards are one commit: with each number of commits and turns of shards before
    // the cut. The subscribers are many, so that each shard has some.
    let names: Vec<String> = (0..6).map(|n| format!("s{n}")).collect();
    for (of, delay) in [(1, 0), (3, 0), (3, 2), (5, 0)] {
        for cut in 0..24 {
            for leaves in ["drop", "expires", "clean"] {
                let mut rig = Rig::of(limits(), of);
                for name in &names {
                    rig.send(name, &format!("connect id={name} v=5 clean=0 expiry=1000"));
                    rig.send(name, "subscribe id=1 f=w:2");
                }
                let expiry = if leaves == "expires" { 1 } else { 1000 };
                let delay = if leaves == "drop" { delay } else { 50 };
                rig.send("p", &format!("connect id=p v=5 clean=0 expiry={expiry} will=w wq=2 delay={delay}"));
                rig.commit();
                rig.commit();
                for name in &names {
                    rig.drop_peer(name);
                }
                rig.commit();
                rig.commit();
                // Turns one by one, with commits between them.
                let steps = |rig: &mut Rig| {
                    for step in 0..cut {
                        match step % 4 {
                            3 => rig.commit_only(),
                            at => rig.turn_one((at + step / 4) as u16 % of),
                        }
                    }
                };
                match leaves {
                    "drop" => rig.cut_peer("p"),
                    "expires" => {
                        rig.cut_peer("p");
                        rig.wait_only(1_300);
                    }
                    _ => {
                        rig.cut_peer("p");
                        let (bytes, version) = parse("connect id=p v=5 clean=1", None);
                        rig.bytes("q", &bytes);
                        rig.peer("q").version = Some(version);
                    }
                }
                if delay > 0 && leaves == "drop" {
                    rig.wait_only(2_300);
                }
                steps(&mut rig);
                // Timers come up in the first turn.
                rig.making_ms = 250;
                rig.crash();
                rig.commit();
                // Whatever is left of it has its time.
                rig.wait(60_000);
                rig.commit();
                rig.commit();
                for name in &names {
                    rig.send(name, &format!("connect id={name} v=5 clean=0 expiry=1000"));
                    rig.commit();
                    rig.commit();
                    let packets = std::mem::take(&mut rig.peer(name).packets);
                    let got = packets.iter().filter(|p| p.contains("publish w q2")).count();
                    assert_eq!(
                        got, 1,
                        "{name}, {of} shards, delay {delay}, {leaves}, cut at {cut}: {packets:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_qos_2_message_leaves_for_a_clean_subscriber_when_its_packet_id_is_durable() {
    // A publisher that read no PUBREC sends again after a kill: the subscriber, which has a new session then, must not have had it.
    check(
        "s> connect id=s v=5
         s< connack sp=0
         s> subscribe id=1 f=x:2
         s< suback 1 02
         p> connect id=p v=5 clean=0 expiry=100
         commit
         p< connack sp=0
         p> publish q=2 id=1 t=x p=one
         p> publish q=2 id=2 t=x p=two
         p> publish q=1 id=3 t=x p=three
         s< -
         p< -
         commit
         s< publish x q2 id=1 one
         s< publish x q2 id=2 two
         s< publish x q1 id=3 three
         p< pubrec 1
         p< pubrec 2
         p< puback 3
         p> publish q=2 id=4 t=x p=four
         s< -
         crash
         s> connect id=s v=5
         s< connack sp=0
         s> subscribe id=1 f=x:2
         s< suback 1 02
         p> connect id=p v=5 clean=0 expiry=100
         p< connack sp=1
         p> publish q=2 id=4 t=x p=four dup=1
         s< -
         commit
         s< publish x q2 id=1 four
         p< pubrec 4",
    );
}
