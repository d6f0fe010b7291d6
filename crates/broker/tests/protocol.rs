//! The rules of MQTT 3.1.1 and 5 that a session needs, clause by clause.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
use common::{Rig, check, check_with, limits, run};
use ferrule_broker::{ClientLimits, Limits};

#[test]
fn client_ids_that_are_empty() {
    check(
        "a> connect v=4 clean=1
         a< connack sp=0
         b> connect v=4 clean=0
         b< connack 85
         b! closed
         c> connect v=5 clean=1
         c< connack sp=0 assigned
         d> connect v=5 clean=0
         d< connack sp=0 assigned
         e> connect v=3 clean=1
         e< connack 85
         e! closed",
    );
}

#[test]
fn session_present_is_told_when_there_was_one() {
    check(
        "a> connect id=a v=4 clean=0
         commit
         a< connack sp=0
         drop a
         a> connect id=a v=4 clean=0
         a< connack sp=1
         drop a
         a> connect id=a v=4 clean=1
         commit
         a< connack sp=0
         drop a
         a> connect id=a v=4 clean=0
         commit
         a< connack sp=0  -- the clean one ended with its connection",
    );
}

#[test]
fn a_session_of_mqtt_5_lives_as_long_as_it_says() {
    check(
        "a> connect id=a v=5 clean=0 expiry=10
         commit
         a< connack sp=0
         drop a
         wait 9000
         a> connect id=a v=5 clean=0 expiry=10
         a< connack sp=1
         wait 60000
         drop a
         wait 10500
         a> connect id=a v=5 clean=0 expiry=10
         commit
         a< connack sp=0
         a> disconnect expiry=0
         a! closed
         a> connect id=a v=5 clean=0 expiry=10
         commit
         a< connack sp=0
         a> disconnect expiry=100
         a! closed
         wait 90000
         a> connect id=a v=5 clean=0 expiry=10
         commit
         a< connack sp=1",
    );
}

#[test]
fn a_session_that_was_to_end_cannot_be_kept_by_disconnect() {
    check(
        "w> connect id=w
         w< connack sp=0
         w> subscribe id=1 f=w
         w< suback 1 00
         a> connect id=a v=5 will=w
         a< connack sp=0
         a> disconnect expiry=10
         a< disconnect 82
         a! closed
         w< publish w q0 will",
    );
}

#[test]
fn a_lifetime_over_the_bound_is_cut_and_told() {
    check_with(
        ClientLimits { session_expiry_max_s: 50, keep_alive_max: Some(30), ..limits() },
        "a> connect id=a v=5 clean=0 expiry=100 ka=60
         commit
         a< connack sp=0 expiry=50 ka=30
         b> connect id=b v=5 ka=0
         b< connack sp=0 ka=30",
    );
}

#[test]
fn the_second_connection_of_a_client_takes_over() {
    check(
        "w> connect id=w
         w< connack sp=0
         w> subscribe id=1 f=will
         w< suback 1 00
         a> connect id=x v=5 clean=0 expiry=100 will=will
         commit
         a< connack sp=0
         b> connect id=x v=5 clean=0 expiry=100
         a< disconnect 8e
         a! closed
         w< publish will q0 will
         commit  -- its will is gone from the disk
         b< connack sp=1
         c> connect id=x v=4 clean=0
         b< disconnect 8e
         b! closed
         commit
         c< connack sp=1
         d> connect id=x v=4 clean=0
         c! closed
         d< connack sp=1",
    );
}

#[test]
fn another_users_session_is_not_taken_over() {
    check(
        "a> connect id=x clean=0 user=ann
         commit
         a< connack sp=0
         a> subscribe id=1 f=t:1
         commit
         a< suback 1 01
         drop a
         b> connect id=x clean=0 user=bob
         commit
         b< connack sp=0
         p> connect id=p v=5
         p< connack sp=0
         p> publish t=t q=1 id=1
         p< puback 1 10",
    );
}

#[test]
fn the_will_is_published_unless_the_client_says_goodbye() {
    let script = |end: &str, will: &str| {
        check(&format!(
            "w> connect id=w
             w< connack sp=0
             w> subscribe id=1 f=w:1
             w< suback 1 01
             a> connect id=a v=5 will=w wq=1 ka=2
             a< connack sp=0
             {end}
             {will}"
        ));
    };
    let will = "w< publish w q1 id=1 will";
    script("a> disconnect\na! closed", "");
    script("a> disconnect reason=04\na! closed", will);
    script("drop a", will);
    script("a> raw 00\na< disconnect 81\na! closed", will);
    script("wait 2500\na> ping\na< pong\nwait 2900\nwait 400\na< disconnect 8d\na! closed", will);
}

#[test]
fn a_late_will_waits_for_its_delay_or_the_end_of_its_session() {
    let script = |expiry: u32, delay: u32, rest: &str| {
        check(&format!(
            "w> connect id=w
             w< connack sp=0
             w> subscribe id=1 f=w
             w< suback 1 00
             a> connect id=a v=5 clean=0 expiry={expiry} will=w delay={delay}
             commit
             a< connack sp=0
             drop a
             w< -
             {rest}"
        ));
    };
    script(100, 5, "wait 4900\nw< -\nwait 500\nw< publish w q0 will\nwait 100000\nw< -");
    script(5, 100, "wait 4900\nw< -\nwait 500\nw< publish w q0 will");
    script(100, 5, "a> connect id=a v=5 clean=0 expiry=100\na< connack sp=1\nwait 10000\nw< -");
    script(100, 5, "a> connect id=a v=5 clean=1 expiry=100\nw< publish w q0 will\ncommit\na< connack sp=0");
}

#[test]
fn a_will_that_may_not_be_published_is_refused_at_once() {
    check(
        "deny publish w
         a> connect id=a v=5 will=w
         a< connack 87
         a! closed
         b> connect id=b v=4 will=$SYS/x
         b< connack 87
         b! closed",
    );
}

#[test]
fn a_retained_will_is_kept() {
    check(
        "a> connect id=a will=w wq=1 wr=1
         a< connack sp=0
         drop a
         commit
         crash
         b> connect id=b
         b< connack sp=0
         b> subscribe id=1 f=w:1
         b< suback 1 01
         b< publish w q1 id=1 r will",
    );
}

#[test]
fn keep_alive_is_one_and_a_half_times_what_was_said() {
    check(
        "a> connect id=a v=5 ka=10
         a< connack sp=0
         wait 14000
         a> ping
         a< pong
         wait 14900
         a< -
         wait 400
         a< disconnect 8d
         a! closed
         b> connect id=b ka=0
         b< connack sp=0
         wait 10000000
         b> ping
         b< pong",
    );
}

#[test]
fn a_connection_must_say_connect_in_time_and_first() {
    check(
        "a> raw 10
         wait 10300
         a! closed
         b> ping
         b! closed
         c> publish t=x
         c! closed
         d> connect id=d v=5
         d< connack sp=0
         d> connect id=d v=5
         d< disconnect 82
         d! closed",
    );
}

#[test]
fn a_connect_that_is_wrong_is_answered_in_words_its_sender_knows() {
    check(
        // Level 6 and level 2; a reserved flag in 5 and in 3.1.1.
        "a> raw 10 0d 00 04 4d 51 54 54 06 02 00 3c 00 00 00 00 v=5
         a< connack 84
         a! closed
         b> raw 10 0c 00 04 4d 51 54 54 02 02 00 3c 00 00
         b< connack 84
         b! closed
         c> raw 10 0d 00 04 4d 51 54 54 04 03 00 3c 00 01 61
         c! closed
         d> raw 10 10 00 04 4d 51 54 54 05 02 00 00 03 23 00 00 00 00 v=5  -- a topic alias
         d< connack 82
         d! closed
         e> connect id=e v=5 auth=SCRAM
         e< connack 8c
         e! closed",
    );
}

#[test]
fn packets_that_only_a_server_sends_are_errors() {
    for raw in ["20 03 00 00 00", "90 04 00 01 00 00", "b0 04 00 01 00 00", "d0 00", "f0 00"] {
        check(&format!(
            "a> connect id=a v=5
             a< connack sp=0
             a> raw {raw}
             a< disconnect 82
             a! closed"
        ));
    }
    check(
        "a> connect id=a v=5
         a< connack sp=0
         a> publish t=x sid=3
         a< disconnect 82
         a! closed",
    );
}

#[test]
fn a_gate_that_answers_late() {
    check(
        "gate later
         a> connect id=a
         a> subscribe id=1 f=x
         a< -
         admit a
         a< connack sp=0
         a< suback 1 00
         b> connect id=b v=5
         refuse b
         b< connack 87
         b! closed
         c> connect id=c
         wait 10300
         c< connack 88
         c! closed
         d> connect id=d
         drop d",
    );
    check("gate refuse\na> connect id=a\na< connack 87\na! closed");
}

#[test]
fn denied_publishes_and_subscriptions() {
    check(
        "deny publish no
         deny subscribe no
         rule #
         a> connect id=a v=5
         a< connack sp=0
         a> subscribe id=1 f=no f=yes:1 f=$share/g/x f=a/#/b
         a< suback 1 87 01 00 8f
         a> publish t=no
         a> publish t=no q=1 id=1
         a< puback 1 87
         a> publish t=no q=2 id=2
         a< pubrec 2 87
         a> publish t=yes q=2 id=2
         a< publish yes q1 id=1
         a< pubrec 2  -- the id was free again
         b> connect id=b v=4
         b< connack sp=0
         b> subscribe id=1 f=no f=yes:1 f=$share/g/no
         b< suback 1 80 01 80
         b> publish t=no q=1 id=1
         b< puback 1
         b> publish t=no q=2 id=2
         b< pubrec 2
         b> pubrel 2
         b< pubcomp 2
         b> publish t=$SYS/x q=1 id=3
         b< puback 3",
    );
}

#[test]
fn a_message_that_may_not_be_received_is_not_sent() {
    check(
        "deny receive x/2
         s> connect id=s clean=0
         commit
         s< connack sp=0
         s> subscribe id=1 f=x/#:1
         commit
         s< suback 1 01
         drop s
         p> connect id=p
         p< connack sp=0
         p> publish t=x/1 q=1 id=1
         p> publish t=x/2 q=1 id=2
         p> publish t=x/3 q=1 id=3
         s> connect id=s clean=0
         s< connack sp=1
         s< publish x/1 q1 id=1
         s< publish x/3 q1 id=3
         s> puback 1
         s> puback 3
         p< puback 1
         p< puback 2
         p< puback 3",
    );
}

#[test]
fn too_many_levels_are_no_topic() {
    let deep = ["a"; 129].join("/");
    check(&format!(
        "a> connect id=a v=5
         a< connack sp=0
         a> publish t={deep} q=1 id=1
         a< puback 1 90
         a> subscribe id=1 f={deep}
         a< suback 1 8f"
    ));
}

#[test]
fn subscriptions_are_bounded() {
    check_with(
        ClientLimits { subscriptions: 2, ..limits() },
        "a> connect id=a v=5
         a< connack sp=0
         a> subscribe id=1 f=1 f=2 f=3 f=1:1
         a< suback 1 00 00 97 01",
    );
}

#[test]
fn topic_aliases_of_the_client() {
    check(
        "a> connect id=a v=5
         a< connack sp=0
         a> subscribe id=1 f=#
         a< suback 1 00
         a> publish t=x alias=1 p=1
         a< publish x q0 1
         a> publish alias=1 p=2
         a< publish x q0 2
         a> publish t=y alias=1 p=3
         a< publish y q0 3
         a> publish alias=1 p=4 ct=text
         a< publish y q0 ct=text 4
         a> publish alias=2 p=5
         a< disconnect 82
         a! closed
         a> connect id=a v=5
         a< connack sp=0
         a> publish alias=1 p=6
         a< disconnect 82
         a! closed
         a> connect id=a v=5
         a< connack sp=0
         a> publish t=x alias=33
         a< disconnect 94
         a! closed",
    );
}

#[test]
fn overlapping_subscriptions_deliver_once_with_all_identifiers() {
    check(
        "a> connect id=a v=5
         a< connack sp=0
         a> subscribe id=1 f=x/#:0 sid=1
         a< suback 1 00
         a> subscribe id=2 f=x/+:2 sid=2
         a< suback 2 02
         a> subscribe id=3 f=x/1:1
         a< suback 3 01
         b> connect id=b
         b< connack sp=0
         b> publish t=x/1 q=1 id=1 p=m
         b< puback 1
         a< publish x/1 q1 id=1 sid=1 sid=2 m
         b> publish t=x p=n
         a< publish x q0 sid=1 n",
    );
}

#[test]
fn a_subscription_again_replaces_the_old_one() {
    check(
        "a> connect id=a v=5
         a< connack sp=0
         a> subscribe id=1 f=x:0 sid=1
         a< suback 1 00
         a> subscribe id=2 f=x:1 sid=2
         a< suback 2 01
         a> publish t=x q=1 id=1
         a< publish x q1 id=1 sid=2
         a< puback 1
         a> unsubscribe id=3 f=x f=x
         a< unsuback 3 00 11
         a> publish t=x q=1 id=1
         a< puback 1 10",
    );
}

#[test]
fn no_local_keeps_a_clients_own_messages_away() {
    check(
        "a> connect id=a v=5
         a< connack sp=0
         a> subscribe id=1 f=x:0:nl
         a< suback 1 00
         a> publish t=x p=own
         b> connect id=b v=5
         b< connack sp=0
         b> publish t=x p=other
         a< publish x q0 other",
    );
}

#[test]
fn the_qos_is_the_lower_of_published_and_granted() {
    let mut script = String::from("a> connect id=a\na< connack sp=0\np> connect id=p\np< connack sp=0\n");
    let mut id = 0;
    for granted in 0..=2 {
        script += &format!("a> subscribe id=1 f=x:{granted}\na< suback 1 0{granted}\n");
        for published in 0..=2 {
            let qos = granted.min(published);
            script += &format!("p> publish t=x q={published} id={}\n", published * 10 + granted + 1);
            if qos > 0 {
                id += 1;
                script += &format!("a< publish x q{qos} id={id}\n");
            } else {
                script += "a< publish x q0\n";
            }
            let reply = ["p< -", "p< puback", "p< pubrec"][published];
            script += &if published == 0 {
                String::from("p< -\n")
            } else {
                format!("{reply} {}\n", published * 10 + granted + 1)
            };
        }
    }
    check_with(ClientLimits { waiting_max: 10, ..limits() }, &script);
}

#[test]
fn a_clients_receive_maximum_is_kept_in_order() {
    check(
        "s> connect id=s v=5 rmax=2
         s< connack sp=0
         s> subscribe id=1 f=x:2
         s< suback 1 02
         p> connect id=p
         p< connack sp=0
         p> publish t=x q=1 id=1 p=1
         p> publish t=x q=2 id=2 p=2
         p> publish t=x q=1 id=3 p=3
         p> publish t=x q=0 p=0
         p> publish t=x q=1 id=4 p=4
         p< puback 1
         p< pubrec 2
         p< puback 3
         p< puback 4
         s< publish x q1 id=1 1
         s< publish x q2 id=2 2
         s< publish x q0 0
         s> puback 1
         s< publish x q1 id=3 3
         s> pubrec 2
         s< pubrel 2
         s> puback 3
         s< publish x q1 id=4 4
         s> pubcomp 2
         s< -",
    );
}

#[test]
fn a_refused_delivery_frees_its_packet_id() {
    check(
        "s> connect id=s v=5 rmax=1
         s< connack sp=0
         s> subscribe id=1 f=x:2
         s< suback 1 02
         p> connect id=p
         p< connack sp=0
         p> publish t=x q=2 id=1 p=1
         p> publish t=x q=2 id=2 p=2
         p< pubrec 1
         p< pubrec 2
         s< publish x q2 id=1 1
         s> pubrec 1 reason=80
         s< publish x q2 id=2 2
         s> pubrec 9
         s< pubrel 9 92",
    );
}

#[test]
fn packets_over_the_clients_maximum_are_not_sent() {
    check(
        "s> connect id=s v=5 psize=20
         s< connack sp=0
         s> subscribe id=1 f=x:1
         s< suback 1 01
         p> connect id=p
         p< connack sp=0
         p> publish t=x q=1 id=1 p=123456789012345
         p< puback 1
         p> publish t=x q=0 p=123456789012345
         p> publish t=x q=1 id=2 p=1
         s< publish x q1 id=2 1
         p< puback 2
         c> connect id=c v=5 psize=20 clean=0 expiry=9
         commit
         c< connack sp=0
         c> subscribe id=1 f=y:2
         commit
         c< suback 1 02
         p> publish t=y q=1 id=1 p=123456789012345
         p< puback 1
         p> publish t=y q=2 id=2 p=123456789012345
         commit
         p< pubrec 2
         open 0",
    );
}

#[test]
fn packets_over_our_maximum_are_refused() {
    check_with(
        ClientLimits { packet_bytes: 100, ..limits() },
        "a> connect id=a v=5
         a< connack sp=0
         a> raw 30 80 01
         a< disconnect 95
         a! closed",
    );
}

#[test]
fn retained_messages_are_sent_as_the_subscription_says() {
    check(
        "p> connect id=p v=5
         p< connack sp=0
         p> publish t=x/1 r=1 p=1
         p> publish t=x/2 r=1 p=2 q=1 id=1 ct=text
         commit
         p< puback 1
         p> publish t=$y r=1 p=3
         a> connect id=a v=5
         a< connack sp=0
         a> subscribe id=1 f=x/1:1
         a< suback 1 01
         a< publish x/1 q0 r 1
         a> subscribe id=2 f=x/2:1:rh1 sid=9
         a< suback 2 01
         a< publish x/2 q1 id=1 r ct=text sid=9 2
         a> subscribe id=3 f=x/2:1:rh1
         a< suback 3 01  -- not new
         a> subscribe id=4 f=x/2:0
         a< suback 4 00
         a< publish x/2 q0 r ct=text 2
         a> subscribe id=5 f=x/1:0:rh2
         a< suback 5 00
         a> unsubscribe id=6 f=x/1 f=x/2
         a< unsuback 6 00 00
         p> publish t=x/1 r=1
         a> subscribe id=7 f=#
         a< suback 7 00
         a< publish x/2 q0 r ct=text 2",
    );
}

#[test]
fn the_retain_flag_is_cleared_or_kept_as_published() {
    check(
        "a> connect id=a v=5
         a< connack sp=0
         a> subscribe id=1 f=x:0
         a< suback 1 00
         b> connect id=b v=5
         b< connack sp=0
         b> subscribe id=1 f=x:0:rap
         b< suback 1 00
         p> connect id=p
         p< connack sp=0
         p> publish t=x r=1 p=1
         a< publish x q0 1
         b< publish x q0 r 1
         p> publish t=x r=1
         a< publish x q0
         b< publish x q0 r",
    );
}

#[test]
fn retained_messages_expire() {
    check(
        "p> connect id=p v=5
         p< connack sp=0
         p> publish t=x r=1 p=1 expiry=10 q=1 id=1
         commit
         p< puback 1
         wait 4000
         a> connect id=a v=5
         a< connack sp=0
         a> subscribe id=1 f=x
         a< suback 1 00
         a< publish x q0 r expiry=6 1
         wait 7000
         b> connect id=b v=5
         b< connack sp=0
         b> subscribe id=1 f=x
         b< suback 1 00
         wait 1100
         commit
         crash
         b> connect id=b v=5
         b< connack sp=0
         b> subscribe id=1 f=x
         b< suback 1 00",
    );
}

#[test]
fn retained_messages_are_bounded() {
    check_with(
        Limits { retained_messages: 1, ..limits().into() },
        "p> connect id=p v=5
         p< connack sp=0
         p> publish t=x r=1 p=1
         p> publish t=y r=1 p=1 q=1 id=1
         p< puback 1 97
         p> publish t=x r=1 p=2 q=1 id=2
         p< -
         commit
         p< puback 2",
    );
}

#[test]
fn messages_expire_in_queues() {
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
         p> publish t=x q=1 id=1 p=1 expiry=5
         p> publish t=x q=1 id=2 p=2 expiry=50
         p> publish t=x q=1 id=3 p=3
         commit
         p< puback 1
         p< puback 2
         p< puback 3
         wait 10000
         s> connect id=s v=5 clean=0 expiry=1000
         s< connack sp=1
         s< publish x q1 id=2 expiry=40 2
         s< publish x q1 id=3 3",
    );
}

#[test]
fn what_was_in_flight_goes_again_under_its_packet_id_in_order() {
    check(
        "s> connect id=s v=5 clean=0 expiry=1000 rmax=3
         commit
         s< connack sp=0
         s> subscribe id=1 f=x:2
         commit
         s< suback 1 02
         p> connect id=p
         p< connack sp=0
         p> publish t=x q=1 id=1 p=1
         p> publish t=x q=2 id=2 p=2
         p> publish t=x q=2 id=3 p=3
         p> publish t=x q=1 id=4 p=4
         commit
         s< publish x q1 id=1 1
         s< publish x q2 id=2 2
         s< publish x q2 id=3 3
         p< puback 1
         p< pubrec 2
         p< pubrec 3
         wait 60
         commit
         p< puback 4
         s> pubrec 2
         commit
         s< pubrel 2
         drop s
         s> connect id=s v=5 clean=0 expiry=1000 rmax=3
         s< connack sp=1
         s< pubrel 2
         s< publish x q1 id=1 dup 1
         s< publish x q2 id=3 dup 3
         s> pubcomp 2
         s< publish x q1 id=4 4
         drop s
         s> connect id=s v=5 clean=0 expiry=1000 rmax=1
         s< connack sp=1
         s< publish x q1 id=1 dup 1
         s> puback 1
         s< publish x q2 id=3 dup 3",
    );
}

#[test]
fn a_message_in_flight_does_not_expire() {
    check(
        "s> connect id=s v=5 clean=0 expiry=1000
         commit
         s< connack sp=0
         s> subscribe id=1 f=x:1
         commit
         s< suback 1 01
         p> connect id=p v=5
         p< connack sp=0
         p> publish t=x q=1 id=1 p=1 expiry=5
         s< publish x q1 id=1 expiry=5 1
         drop s
         wait 10000
         s> connect id=s v=5 clean=0 expiry=1000
         s< connack sp=1
         s< publish x q1 id=1 dup expiry=0 1
         s> puback 1
         p< puback 1",
    );
}

#[test]
fn qos_0_is_not_kept_for_the_absent() {
    check(
        "s> connect id=s clean=0
         commit
         s< connack sp=0
         s> subscribe id=1 f=x:2
         commit
         s< suback 1 02
         drop s
         p> connect id=p
         p< connack sp=0
         p> publish t=x p=1
         s> connect id=s clean=0
         s< connack sp=1",
    );
}

#[test]
fn wildcards_do_not_reach_dollar_topics() {
    let mut rig = Rig::new(limits());
    run(
        &mut rig,
        "a> connect id=a
         a< connack sp=0
         a> subscribe id=1 f=# f=+/x f=$SYS/#
         a< suback 1 00 00 00
         b> connect id=b
         b< connack sp=0
         b> publish t=$SYS/x p=1",
    );
}

#[test]
fn a_client_that_reads_and_never_acknowledges_is_disconnected_when_others_wait() {
    check_with(
        ClientLimits { pending_bytes: 300, ..limits() },
        "s> connect id=s v=5 rmax=1
         s< connack sp=0
         s> subscribe id=1 f=x:1
         s< suback 1 01
         p> connect id=p
         p< connack sp=0
         p> publish t=x q=1 id=1 p=1
         p> publish t=x q=1 id=2 p=2
         p> publish t=x q=1 id=3 p=3
         p> publish t=x q=1 id=4 p=4
         s< publish x q1 id=1 1
         p< puback 1
         p< puback 2
         p< puback 3
         p< -
         s> puback 1
         s< publish x q1 id=2 2
         wait 29000
         s> ping
         s< pong
         wait 32000
         s< disconnect 97
         s! closed
         p< puback 4
         open 0",
    );
}

#[test]
fn nothing_follows_a_disconnect() {
    check(
        "a> connect id=a v=5
         a< connack sp=0
         a> subscribe id=1 f=x
         a< suback 1 00
         a> raw 30 04 00 01 78 00 e0 00 30 04 00 01 78 00
         a< publish x q0
         a! closed",
    );
}

#[test]
fn a_client_that_leaves_for_a_reason_leaves_its_will() {
    for (reason, is_published) in [("00", false), ("04", true), ("80", true), ("81", true), ("93", true)] {
        let expected = if is_published { "s< publish gone q0 will" } else { "s< -" };
        check(&format!(
            "s> connect id=s
             s< connack sp=0
             s> subscribe id=1 f=gone
             s< suback 1 00
             w> connect id=w v=5 will=gone
             w< connack sp=0
             w> raw e0 01 {reason}
             w! closed
             {expected}"
        ));
    }
}

#[test]
fn no_local_holds_for_a_clients_own_will() {
    check(
        "w> connect id=w v=5 clean=0 expiry=100 will=gone wq=1
         commit
         w< connack sp=0
         w> subscribe id=1 f=gone:1:nl
         commit
         w< suback 1 01
         drop w
         wait 2000
         commit
         w> connect id=w v=5 clean=0 expiry=100
         commit
         w< connack sp=1
         w< -",
    );
}

#[test]
fn nothing_is_sent_that_is_larger_than_its_receiver_takes() {
    // A SUBACK of 24 bytes to one that takes 20.
    let filters: String = (0..18).map(|n| format!(" f=a/{n}")).collect();
    check(&format!(
        "a> connect id=a v=5 psize=40
         a< connack sp=0
         a> subscribe id=1{filters}
         a< suback 1{}
         b> connect id=b v=5 psize=12
         b< -
         b! closed",
        " 00".repeat(18)
    ));
}

#[test]
fn releases_go_in_the_order_of_their_pubrecs() {
    check(
        "s> connect id=s v=5 clean=0 expiry=100
         commit
         s< connack sp=0
         s> subscribe id=1 f=x:2
         commit
         s< suback 1 02
         p> connect id=p v=5
         p< connack sp=0
         p> publish t=x q=1 id=9 p=0
         s< publish x q1 id=1 0
         s> puback 1
         p< puback 9
         p> publish t=x q=2 id=1 p=1
         p> publish t=x q=2 id=2 p=2
         commit
         p< pubrec 1
         p< pubrec 2
         s< publish x q2 id=2 1
         s< publish x q2 id=3 2
         s> pubrec 3
         s> pubrec 2
         commit
         s< pubrel 3
         s< pubrel 2
         drop s
         s> connect id=s v=5 clean=0 expiry=100
         commit
         s< connack sp=1
         s< pubrel 3
         s< pubrel 2",
    );
}

#[test]
fn the_window_counts_what_waits_for_puback_and_for_pubrel() {
    check(
        "rule #
         hold
         a> connect id=a v=5
         a< connack sp=0
         a> publish t=x q=1 id=1
         a> publish t=x q=1 id=2
         pass
         a> publish t=y q=2 id=3
         a< -
         a> publish t=y q=2 id=4
         a> publish t=y q=2 id=5
         a< disconnect 93
         a! closed",
    );
}

#[test]
fn topics_are_named_once_to_a_client_that_takes_aliases() {
    check(
        "s> connect id=s v=5 clean=0 expiry=100 amax=2
         commit
         s< connack sp=0
         s> subscribe id=1 f=#:1
         commit
         s< suback 1 01
         o> connect id=o v=5
         o< connack sp=0
         o> subscribe id=1 f=#
         o< suback 1 00
         p> connect id=p v=5
         p< connack sp=0
         p> publish t=a/long/topic p=1
         p> publish t=a/long/topic p=2
         p> publish t=b p=3
         p> publish t=c p=4
         p> publish t=b p=5
         s< publish a/long/topic q0 alias=1 1
         s< publish - q0 alias=1 2
         s< publish b q0 alias=2 3
         s< publish c q0 alias=1 4
         s< publish - q0 alias=2 5
         o< publish a/long/topic q0 1
         o< publish a/long/topic q0 2
         o< publish b q0 3
         o< publish c q0 4
         o< publish b q0 5
         p> publish t=c q=1 id=1 p=6
         s< publish - q1 id=1 alias=1 6
         o< publish c q0 6
         wait 2000
         commit
         p< puback 1
         drop s
         s> connect id=s v=5 clean=0 expiry=100 amax=2  -- aliases end with their connection
         commit
         s< connack sp=1
         s< publish c q1 id=1 dup alias=1 6",
    );
}

#[test]
fn an_alias_whose_packet_was_too_large_is_not_set() {
    let large = "x".repeat(100);
    check(&format!(
        "s> connect id=s v=5 amax=4 psize=60
         s< connack sp=0
         s> subscribe id=1 f=#
         s< suback 1 00
         p> connect id=p v=5
         p< connack sp=0
         p> publish t=a p={large}
         p> publish t=a p=1
         p> publish t=a p=2
         s< publish a q0 alias=1 1
         s< publish - q0 alias=1 2
         count dropped_too_large 1"
    ));
}
