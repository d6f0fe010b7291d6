//! Access rules and listeners that change under clients that are connected.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
use common::{check, check_features};
use ferrule_broker::{Action, AutoSubscription, Features, Rewrite, Rewrites};
use ferrule_store::record::Subscription;

#[test]
fn publishes_and_subscriptions_are_judged_by_the_new_rules() {
    check(
        "a> connect id=a v=5
         a< connack sp=0
         a> publish t=x q=1 id=1
         a< puback 1 10
         deny publish x
         deny subscribe y
         a> publish t=x q=1 id=2
         a< puback 2 10
         review
         a> publish t=x q=1 id=3
         a< puback 3 87
         a> publish t=other q=1 id=4
         a< puback 4 10
         a> subscribe id=5 f=y f=z
         a< suback 5 87 00
         allow all
         review
         a> publish t=x q=1 id=6
         a< puback 6 10
         count denied 2",
    );
}

#[test]
fn what_a_subscription_brings_is_withheld_until_it_may_be_read_again() {
    for (filter, named) in [("x", "x"), ("$share/g/x", "x"), ("$exclusive/x", "x")] {
        check(&format!(
            "s> connect id=s v=5
             s< connack sp=0
             s> subscribe id=1 f={filter}:1 f=other:1
             s< suback 1 01 01
             p> connect id=p v=5
             p< connack sp=0
             p> publish t={named} q=1 id=1 p=1
             s< publish {named} q1 id=1 1
             s> puback 1
             p< puback 1
             deny subscribe {named}
             review
             p> publish t={named} q=0 p=2
             p> publish t={named} q=1 id=2 p=3
             p> publish t=other q=1 id=3 p=4
             s< publish other q1 id=2 4
             s> puback 2
             p< puback 2
             p< puback 3
             allow all
             review
             p> publish t={named} q=1 id=4 p=5
             s< publish {named} q1 id=3 5
             s> puback 3
             p< puback 4"
        ));
    }
}

#[test]
fn what_another_subscription_may_bring_is_not_withheld() {
    // The wide filter is lost; what the client may still read of it comes.
    check(
        "s> connect id=s v=5
         s< connack sp=0
         s> subscribe id=1 f=#
         s< suback 1 00
         p> connect id=p v=5
         p< connack sp=0
         deny subscribe x/#
         review
         p> publish t=x/1 p=1
         p> publish t=y p=2
         s< publish x/1 q0 1
         s< publish y q0 2
         s> subscribe id=2 f=x/#
         s< suback 2 87",
    );
    check(
        "s> connect id=s v=5
         s< connack sp=0
         s> subscribe id=1 f=x/# f=x/1
         s< suback 1 00 00
         p> connect id=p v=5
         p< connack sp=0
         deny subscribe x/#
         review
         p> publish t=x/1 p=1
         p> publish t=x/2 p=2
         p> publish t=y p=3
         s< -",
    );
}

#[test]
fn a_session_that_is_resumed_is_narrowed_too() {
    check(
        "s> connect id=s v=5 clean=0 expiry=100
         commit
         s< connack sp=0
         s> subscribe id=1 f=x:1 f=y:1
         commit
         s< suback 1 01 01
         drop s
         commit
         p> connect id=p v=5
         p< connack sp=0
         p> publish t=x q=1 id=1 p=1
         p> publish t=y q=1 id=2 p=2
         commit
         p< puback 1
         p< puback 2
         deny subscribe x
         s> connect id=s v=5 clean=0 expiry=100
         commit
         s< connack sp=1
         s< publish y q1 id=2 2
         s> puback 2
         p> publish t=x q=1 id=3 p=3
         p> publish t=y q=1 id=4 p=4
         s< publish y q1 id=3 4
         s> puback 3
         p< puback 3
         p< puback 4",
    );
}

#[test]
fn who_would_not_be_let_in_any_more_has_to_go() {
    check(
        "w> connect id=stays v=5
         w< connack sp=0
         w> subscribe id=1 f=will
         w< suback 1 00
         a> connect id=a v=5 will=will
         a< connack sp=0
         b> connect id=b v=4
         b< connack sp=0
         c> connect id=c v=5 clean=0 expiry=100
         gate refuse
         review
         a< disconnect 87
         a! closed
         b! closed
         c< connack 87
         c! closed
         w< publish will q0 will
         commit
         w> ping
         w< pong",
    );
}

#[test]
fn a_will_that_may_not_be_published_any_more_is_not() {
    check(
        "w> connect id=w v=5
         w< connack sp=0
         w> subscribe id=1 f=no f=yes
         w< suback 1 00 00
         a> connect id=a v=5 will=no
         a< connack sp=0
         b> connect id=b v=5 will=yes
         b< connack sp=0
         c> connect id=c v=5 clean=0 expiry=100 will=no delay=1
         commit
         c< connack sp=0
         deny publish no
         review
         drop a
         drop b
         drop c
         w< publish yes q0 will
         commit
         crash
         wait 5000
         w> connect id=w v=5
         w< connack sp=0
         w> subscribe id=1 f=no
         w< suback 1 00
         wait 5000
         w< -",
    );
}

#[test]
fn a_listener_that_goes_takes_its_connections_with_it() {
    check(
        "listener b 1
         listener c 1
         a> connect id=a v=5
         a< connack sp=0
         b> connect id=b v=5
         b< connack sp=0
         c> connect id=c v=4
         c< connack sp=0
         unlisten 1
         b< disconnect 98
         b! closed
         c! closed
         a> ping
         a< pong",
    );
}

#[test]
fn what_a_client_did_not_ask_for_is_not_lost() {
    let options =
        Subscription { qos: 0, no_local: false, retain_as_published: true, retain_handling: 2, id: None };
    let features = Features {
        auto_subscribe: vec![AutoSubscription { filter: "to/${clientid}".into(), options }],
        rewrites: Rewrites::new(&[Rewrite::new(Action::Subscribe, "old/#", "^old/(.+)$", "new/$1").unwrap()]),
        ..Features::default()
    };
    check_features(
        &features,
        "s> connect id=s v=5
         s< connack sp=0
         s> subscribe id=1 f=old/1 f=x
         s< suback 1 00 00
         p> connect id=p v=5
         p< connack sp=0
         deny subscribe to/s
         deny subscribe new/1
         deny subscribe x
         review
         p> publish t=to/s p=1
         p> publish t=new/1 p=2
         p> publish t=x p=3
         s< publish to/s q0 1
         s< publish new/1 q0 2
         s< -",
    );
}
