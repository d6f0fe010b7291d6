//! Enhanced authentication [MQTT 5, 4.12]: AUTH packets before the CONNACK, and later.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
use common::check;

#[test]
fn a_client_is_admitted_when_it_has_proved_who_it_is() {
    check(
        "
        a> connect id=a v=5 auth=STEPS data=one
        a< auth 18 auth=STEPS data=and?
        a< -
        a> auth 18 auth=STEPS data=ann
        a< connack sp=0 auth=STEPS data=welcome
        a> subscribe id=1 f=t
        a< suback 1 00
        a> publish t=t p=x
        a< publish t q0 x
        ",
    );
}

#[test]
fn whoever_does_not_prove_it_gets_a_connack_that_says_so() {
    for (packet, answer) in [
        ("auth 18 auth=STEPS data=wrong", "connack 86"),
        // Nothing but AUTH and DISCONNECT [MQTT-3.1.2-30].
        ("ping", "connack 82"),
        ("publish t=t p=x", "connack 82"),
        ("connect id=a v=5", "connack 82"),
        // Another method, none, and what is for an open connection.
        ("auth 18 auth=OTHER data=ann", "connack 82"),
        ("auth 00", "connack 82"),
        ("auth 19 auth=STEPS data=one", "connack 82"),
        ("raw ff ff", "connack 81"),
    ] {
        check(&format!(
            "
            w> connect id=w v=5
            w< connack sp=0
            w> subscribe id=1 f=#
            w< suback 1 00
            a> connect id=a v=5 auth=STEPS data=one
            a< auth 18 auth=STEPS data=and?
            a> {packet}
            a< {answer}
            a! closed
            w< -
            "
        ));
    }
    check(
        "
        a> connect id=a v=5 auth=STEPS data=zero
        a< connack 86
        a! closed
        b> connect id=b v=5 auth=OTHER data=one
        b< connack 8c
        b! closed
        c> connect id=c v=5 auth=STEPS data=one
        c< auth 18 auth=STEPS data=and?
        c> disconnect
        c! closed
        count refused 2
        ",
    );
}

#[test]
fn whoever_never_answers_is_not_waited_for() {
    check(
        "
        a> connect id=a v=5 auth=STEPS data=one
        a< auth 18 auth=STEPS data=and?
        wait 11000
        a< connack 87
        a! closed
        count connect_timeouts 1
        ",
    );
}

#[test]
fn an_open_connection_may_prove_it_again() {
    check(
        "
        a> connect id=a v=5 auth=STEPS data=one
        a< auth 18 auth=STEPS data=and?
        a> auth 18 auth=STEPS data=ann
        a< connack sp=0 auth=STEPS data=welcome
        deny publish t
        a> auth 19 auth=STEPS data=one
        a< auth 18 auth=STEPS data=and?
        a> publish q=1 id=1 t=t
        a< puback 1 10
        a> auth 18 auth=STEPS data=ann
        a< auth 00 auth=STEPS data=welcome
        a> publish q=1 id=2 t=t
        a< puback 2 87
        a> auth 19 auth=STEPS data=one
        a< auth 18 auth=STEPS data=and?
        a> auth 18 auth=STEPS data=wrong
        a< disconnect 87
        a! closed
        ",
    );
}

#[test]
fn who_proves_to_be_another_or_never_named_a_method_is_gone() {
    for (connect, auth, answer) in [
        // [MQTT-4.12.0-7], [MQTT-4.12.1-1].
        ("connect id=a v=5", "auth 19 auth=STEPS data=one", "disconnect 82"),
        ("connect id=a v=5 auth=STEPS data=one", "auth 19 auth=OTHER data=one", "disconnect 82"),
        ("connect id=a v=5 auth=STEPS data=one", "auth 18 auth=STEPS data=one", "disconnect 82"),
    ] {
        let prove = if connect.contains("auth") {
            "
            a< auth 18 auth=STEPS data=and?
            a> auth 18 auth=STEPS data=ann
            a< connack sp=0 auth=STEPS data=welcome"
        } else {
            "a< connack sp=0"
        };
        check(&format!("a> {connect}\n{prove}\na> {auth}\na< {answer}\na! closed"));
    }
    check(
        "
        a> connect id=a v=5 auth=STEPS data=one
        a< auth 18 auth=STEPS data=and?
        a> auth 18 auth=STEPS data=ann
        a< connack sp=0 auth=STEPS data=welcome
        a> auth 19 auth=STEPS data=one
        a< auth 18 auth=STEPS data=and?
        a> auth 18 auth=STEPS data=bob
        a< disconnect 87
        a! closed
        ",
    );
}
