//! Contract 1: what each acknowledgement waits for.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
use common::{Rig, check, check_with, limits, run};
use ferrule_broker::ClientLimits;

/// A persistent subscriber `s` of `x` at QoS `q`, connected, and a clean publisher `p`.
fn persistent(q: u8, rest: &str) -> String {
    format!(
        "s> connect id=s clean=0
         commit
         s< connack sp=0
         s> subscribe id=1 f=x:{q}
         commit
         s< suback 1 {q:02x}
         p> connect id=p v=5
         p< connack sp=0
         {rest}"
    )
}

#[test]
fn a_publish_that_goes_nowhere_waits_for_nothing() {
    check(
        "p> connect id=p v=5
         p< connack sp=0
         p> publish t=x q=1 id=1
         p< puback 1 10
         p> publish t=x q=2 id=2
         p< pubrec 2 10
         p> pubrel 2
         p< pubcomp 2
         open 0",
    );
}

#[test]
fn a_publish_to_clean_sessions_waits_for_nothing() {
    check(
        "s> connect id=s
         s< connack sp=0
         s> subscribe id=1 f=x:1
         s< suback 1 01
         p> connect id=p
         p< connack sp=0
         p> publish t=x q=1 id=1 p=1
         s< publish x q1 id=1 1
         p< puback 1
         p> publish t=x q=2 id=1 p=2
         s< publish x q1 id=2 2
         p< pubrec 1
         open 0",
    );
}

#[test]
fn to_a_persistent_session_the_subscribers_acknowledgement_is_enough() {
    check(&persistent(
        1,
        "p> publish t=x q=1 id=7 p=1
         s< publish x q1 id=1 1
         p< -
         s> puback 1
         p< puback 7
         open 0",
    ));
}

#[test]
fn to_a_persistent_session_the_commit_is_enough() {
    check(&persistent(
        1,
        "p> publish t=x q=1 id=7 p=1
         s< publish x q1 id=1 1
         commit
         p< -  -- not due yet: the subscriber may answer
         wait 60
         commit
         p< puback 7
         open 0",
    ));
}

#[test]
fn an_absent_subscriber_makes_the_row_due_and_the_commit_answers() {
    check(&persistent(
        1,
        "s> disconnect
         s! closed
         p> publish t=x q=1 id=7 p=1
         p< -
         wait 400
         p< -
         commit
         p< puback 7",
    ));
}

#[test]
fn at_an_effective_qos_of_0_nobody_waits() {
    check(&persistent(
        0,
        "p> publish t=x q=1 id=7 p=1
         s< publish x q0 1
         p< puback 7
         s> disconnect
         s! closed
         p> publish t=x q=1 id=8 p=1
         p< puback 8
         open 0",
    ));
}

#[test]
fn retained_waits_for_the_commit_of_this_turn() {
    check(
        "p> connect id=p
         p< connack sp=0
         p> publish t=x q=1 id=1 r=1 p=1
         p< -
         commit
         p< puback 1
         p> publish t=x q=2 id=2 r=1 p=1
         p< -
         commit
         p< pubrec 2
         p> publish t=x q=1 id=3 r=1
         p< -
         commit
         p< puback 3
         p> publish t=x q=0 r=1 p=1
         open 0",
    );
}

#[test]
fn a_rule_holds_the_acknowledgement_until_its_end_is_said() {
    check(
        "rule x
         hold
         p> connect id=p v=5
         p< connack sp=0
         p> publish t=x q=1 id=1
         p> publish t=x q=2 id=2
         commit
         p< -
         resolve delivered
         p< puback 1
         resolve discarded
         p< pubrec 2
         p> publish t=x q=0
         resolve delivered
         open 0",
    );
}

#[test]
fn the_worst_destination_decides() {
    check(&persistent(
        1,
        "rule x
         hold
         p> publish t=x q=1 id=1 p=1
         s< publish x q1 id=1 1
         s> puback 1
         p< -
         resolve delivered
         p< puback 1
         p> publish t=x q=1 id=2 p=2
         s< publish x q1 id=2 2
         resolve retry
         p< -
         s> puback 2
         p< disconnect 89
         p! closed
         open 0",
    ));
}

#[test]
fn a_retry_closes_the_connection_and_acknowledges_nothing() {
    for (version, goodbye) in [(5, "p< disconnect 89"), (4, "")] {
        for q in [1, 2] {
            check(&format!(
                "rule x
                 retry
                 p> connect id=p v={version}
                 p< connack sp=0
                 p> publish t=x q={q} id=1
                 {goodbye}
                 p! closed
                 open 0"
            ));
        }
    }
}

#[test]
fn a_message_whose_client_has_gone_is_carried_to_its_end() {
    check(
        "rule x
         hold
         p> connect id=p
         p< connack sp=0
         p> publish t=x q=1 id=1
         drop p
         open 1
         resolve delivered
         open 0",
    );
}

#[test]
fn acknowledgements_leave_in_the_order_of_arrival() {
    check(
        "rule x
         hold
         deny publish no
         p> connect id=p v=5
         p< connack sp=0
         p> publish t=x q=1 id=1
         p> publish t=y q=1 id=2
         p> publish t=no q=1 id=3
         p> ping
         p< pong  -- others pass
         p< -
         resolve delivered
         p< puback 1
         p< puback 2 10
         p< puback 3 87",
    );
}

#[test]
fn a_gateways_acknowledgements_leave_as_ends_come() {
    check(
        "rule x
         hold
         gate edge
         p> connect id=p v=5
         p< connack sp=0
         p> publish t=x q=1 id=1
         p> publish t=y q=1 id=2
         p< puback 2 10
         resolve delivered
         p< puback 1",
    );
}

#[test]
fn a_repetition_on_the_same_connection_joins_the_wait() {
    check(
        "rule x
         hold
         p> connect id=p v=5
         p< connack sp=0
         p> publish t=x q=1 id=1 p=a
         p> publish t=y q=1 id=2 p=b
         p> publish t=x q=1 id=1 p=a dup=1
         p> publish t=y q=1 id=2 p=b dup=1
         p< -
         resolve delivered
         p< puback 1
         p< puback 2 10
         p< -",
    );
}

#[test]
fn after_its_acknowledgement_a_repetition_is_a_new_message_whatever_dup_says() {
    // [MQTT-4.3.2-5], decision 0019.
    check(
        "rule x
         hold
         p> connect id=p v=5
         p< connack sp=0
         p> publish t=x q=1 id=1 p=a
         resolve delivered
         p< puback 1
         p> publish t=x q=1 id=1 p=a dup=1
         p< -
         open 1
         resolve delivered
         p< puback 1
         p< -",
    );
}

#[test]
fn another_message_under_a_waiting_packet_id_is_an_error() {
    check(
        "rule x
         hold
         p> connect id=p v=5
         p< connack sp=0
         p> publish t=x q=1 id=1 p=a
         p> publish t=x q=1 id=1 p=b
         p< disconnect 82
         p! closed
         resolve delivered
         open 0",
    );
}

#[test]
fn on_a_new_connection_a_qos_1_repetition_is_a_new_message() {
    check(
        "rule x
         hold
         p> connect id=p clean=0
         commit
         p< connack sp=0
         p> publish t=x q=1 id=1 p=a
         drop p
         p> connect id=p clean=0
         p< connack sp=1
         p> publish t=x q=1 id=1 p=a dup=1
         open 2
         resolve delivered
         p< -
         resolve delivered
         p< puback 1",
    );
}

#[test]
fn past_the_window_the_connection_is_closed() {
    let mut five = String::from("rule x\nhold\np> connect id=p v=5\np< connack sp=0\n");
    (1..=5).for_each(|id| five += &format!("p> publish t=x q=1 id={id}\n"));
    check(&format!("{five} p< disconnect 93\np! closed\n{}", "resolve delivered\n".repeat(4)));
    let mut four = String::from("rule x\nhold\np> connect id=p\np< connack sp=0\n");
    (1..=7).for_each(|id| four += &format!("p> publish t=x q=1 id={id}\n"));
    check(&format!("{four} p! closed\n{}", "resolve delivered\n".repeat(6)));
}

#[test]
fn suback_and_unsuback_of_a_persistent_session_wait_for_the_commit() {
    check(
        "s> connect id=s clean=0
         s< -
         commit
         s< connack sp=0
         s> subscribe id=1 f=x:1
         s< -
         commit
         s< suback 1 01
         s> subscribe id=2 f=x:1
         s< suback 2 01  -- nothing changed
         s> unsubscribe id=3 f=x
         s> unsubscribe id=4 f=x
         s< -
         commit
         s< unsuback 3
         s< unsuback 4
         s> unsubscribe id=5 f=x
         s< unsuback 5",
    );
}

#[test]
fn a_subscription_on_its_way_to_the_store_is_not_acknowledged_by_asking_again() {
    check(
        "s> connect id=s clean=0
         commit
         s< connack sp=0
         s> subscribe id=1 f=x:1
         s> subscribe id=2 f=x:1
         s< -
         commit
         s< suback 1 01
         s< suback 2 01",
    );
}

#[test]
fn connack_of_a_new_changed_or_discarded_persistent_session_waits_for_the_commit() {
    check(
        "a> connect id=a v=5 clean=0 expiry=100
         a< -
         commit
         a< connack sp=0
         a> disconnect
         a! closed
         a> connect id=a v=5 clean=0 expiry=100
         a< connack sp=1  -- nothing changed
         a> disconnect
         a! closed
         a> connect id=a v=5 clean=0 expiry=200
         a< -
         commit
         a< connack sp=1
         a> disconnect
         a! closed
         a> connect id=a v=5 clean=1
         a< -
         commit
         a< connack sp=0",
    );
}

#[test]
fn clean_sessions_wait_for_nothing() {
    check(
        "a> connect id=a v=5
         a< connack sp=0
         a> subscribe id=1 f=x:2
         a< suback 1 02
         a> unsubscribe id=2 f=x f=y
         a< unsuback 2 00 11",
    );
}

#[test]
fn what_a_held_connection_sends_ahead_waits() {
    check(
        "a> connect id=a clean=0
         a> subscribe id=1 f=x
         a> ping
         a< -
         commit
         a< connack sp=0
         a< pong
         commit
         a< suback 1 00",
    );
}

#[test]
fn qos_2_of_a_persistent_publisher_is_committed_before_pubrec_and_pubcomp() {
    check(
        "p> connect id=p clean=0 v=5 expiry=100
         commit
         p< connack sp=0
         p> publish t=x q=2 id=1
         p< -
         commit
         p< pubrec 1
         p> publish t=x q=2 id=1 dup=1
         p< pubrec 1  -- not routed again
         p> pubrel 1
         p< -
         commit
         p< pubcomp 1
         p> pubrel 1
         p< pubcomp 1 92
         open 0",
    );
}

#[test]
fn a_pubrel_again_before_its_commit_waits_too() {
    check(
        "p> connect id=p clean=0 v=5 expiry=100
         commit
         p< connack sp=0
         p> publish t=x q=2 id=1
         commit
         p< pubrec 1
         p> pubrel 1
         drop p
         p> connect id=p clean=0 v=5 expiry=100
         p< -
         commit
         p< connack sp=1
         p> pubrel 1
         p< pubcomp 1 92",
    );
}

#[test]
fn a_qos_2_publish_repeated_on_a_new_connection_joins_the_wait_there() {
    check(
        "rule x
         hold
         p> connect id=p clean=0 v=5 expiry=100
         commit
         p< connack sp=0
         p> publish t=x q=2 id=7
         commit
         p< -
         drop p
         p> connect id=p clean=0 v=5 expiry=100
         p< connack sp=1
         p> publish t=x q=1 id=9  -- has the old one's place in the order of arrival
         p> publish t=x q=2 id=7 dup=1
         open 2
         resolve delivered
         p< pubrec 7
         p< -
         resolve delivered
         p< puback 9
         open 0",
    );
}

#[test]
fn a_qos_2_publish_that_ended_in_between_is_answered_when_it_comes_again() {
    check(
        "rule x
         hold
         p> connect id=p clean=0 v=5 expiry=100
         commit
         p< connack sp=0
         p> publish t=x q=2 id=7
         commit
         drop p
         resolve delivered
         p> connect id=p clean=0 v=5 expiry=100
         p< connack sp=1
         p> publish t=x q=2 id=7 dup=1
         p< pubrec 7
         open 0",
    );
}

#[test]
fn a_qos_2_publish_that_failed_is_routed_again_also_after_a_kill() {
    check(
        "rule x
         retry
         p> connect id=p clean=0 v=5 expiry=100
         commit
         p< connack sp=0
         p> publish t=x q=2 id=7
         commit
         p< disconnect 89
         p! closed
         commit
         crash
         hold
         p> connect id=p clean=0 v=5 expiry=100
         p< connack sp=1
         p> publish t=x q=2 id=7 dup=1
         commit
         open 1
         resolve delivered
         p< pubrec 7",
    );
}

#[test]
fn a_pubrel_before_its_pubrec_is_an_error() {
    check(
        "rule x
         hold
         p> connect id=p v=5
         p< connack sp=0
         p> publish t=x q=2 id=1
         p> pubrel 1
         p< disconnect 82
         p! closed
         resolve delivered
         open 0",
    );
}

#[test]
fn qos_2_to_a_persistent_session_is_committed_before_publish_and_before_pubrel() {
    check(&persistent(
        2,
        "p> publish t=x q=2 id=7 p=1
         s< -
         p< -
         commit
         s< publish x q2 id=1 1
         p< pubrec 7
         s> pubrec 1
         s< -
         s> pubrec 1
         commit
         s< pubrel 1
         s> pubrec 1
         s< pubrel 1
         s> pubcomp 1
         s> pubrec 1
         s< pubrel 1
         open 0",
    ));
}

#[test]
fn a_full_session_is_counted_and_acknowledged() {
    check_with(
        ClientLimits { queue_messages: 2, ..limits() },
        &persistent(
            1,
            "s> disconnect
             s! closed
             p> publish t=x q=1 id=1
             p> publish t=x q=1 id=2
             p> publish t=x q=1 id=3
             wait 500
             commit
             p< puback 1
             p< puback 2
             p< puback 3",
        ),
    );
}

#[test]
fn a_publisher_whose_window_is_full_waits_no_longer_than_50_ms() {
    // Two of four wait: half of its window.
    check(&persistent(
        1,
        "s> disconnect
         s! closed
         commit
         wait 1000
         p> publish t=x q=1 id=1
         p> publish t=x q=1 id=2
         commit
         p< puback 1
         p< puback 2",
    ));
}

#[test]
fn rules_are_told_what_must_not_leave_before_the_commit() {
    let mut rig = Rig::new(limits());
    run(
        &mut rig,
        "rule x
         p> connect id=p clean=0
         commit
         p< connack sp=0
         c> connect id=c clean=1
         c< connack sp=0
         p> publish t=x q=1 id=1
         p< puback 1
         p> publish t=x q=2 id=2
         c> publish t=x q=2 id=2
         c< pubrec 2
         commit
         p< pubrec 2",
    );
    assert_eq!(rig.hook.0.borrow().seen, ["x q1", "x q2 hold", "x q2"]);
}
