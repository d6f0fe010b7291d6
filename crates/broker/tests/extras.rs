//! What a shard does beyond the standard: delayed publishes, rewritten topics, subscriptions that clients need not make, and the
//! choices that MQTT 5 leaves.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
use bytes::Bytes;
use common::{Rig, check, check_features, check_with, limits, run, steps};
use ferrule_broker::{Action, AutoSubscription, Features, Limits, Rewrite, Rewrites};
use ferrule_store::record::{self, Record, Subscription};
use ferrule_store::{Body, Inherited, Op, QueueId, QueueSummary, Restored, Store, StoreEvent};
use std::sync::Arc;

#[test]
fn a_delayed_message_comes_when_its_time_has_come() {
    check(
        "
        s> connect id=s v=5
        s< connack sp=0
        s> subscribe id=1 f=#:2 f=$delayed/#:0
        s< suback 1 02 00
        p> connect id=p v=5
        p< connack sp=0
        p> publish q=1 id=1 t=$delayed/2/a/b p=one
        p< -
        s< -
        commit
        p< puback 1
        wait 1800
        s< -
        wait 500
        s< publish a/b q1 id=1 one
        s> puback 1
        p> publish t=$delayed/1/a p=none
        p> publish t=$delayed/0/a p=now
        s< publish a q0 now
        wait 1300
        s< publish a q0 none
        count delayed 2
        count delayed_published 2
        ",
    );
}

#[test]
fn a_time_of_day_is_a_delay_too() {
    // The clock of the rig stands at 1,700,000,000 s at first.
    check(
        "
        s> connect id=s v=5
        s< connack sp=0
        s> subscribe id=1 f=#
        s< suback 1 00
        p> connect id=p v=5
        p< connack sp=0
        p> publish t=$delayed/1700000005/a p=x
        wait 4500
        s< -
        wait 1000
        s< publish a q0 x
        -- Over, too far away, and none at all.
        p> publish q=1 id=1 t=$delayed/1600000000/a
        p< puback 1 90
        p> publish q=1 id=1 t=$delayed/1800000000/a
        p< puback 1 90
        p> publish q=1 id=1 t=$delayed/soon/a
        p< puback 1 90
        p> publish q=1 id=1 t=$delayed/-5/a
        p< puback 1 90
        count delayed 1
        ",
    );
}

#[test]
fn what_is_delayed_survives_a_power_cut_and_more_or_fewer_shards() {
    for (before, after) in [(1, 1), (3, 3), (3, 1), (3, 2), (1, 3)] {
        let mut rig = Rig::of(limits(), before);
        let script = "
            s> connect id=s v=5 clean=0 expiry=1000
            commit
            s< connack sp=0
            s> subscribe id=1 f=a:2
            commit
            s< suback 1 02
            p> connect id=p v=5
            p< connack sp=0
            q> connect id=q1 v=5
            q< connack sp=0
            p> publish q=1 id=1 t=$delayed/100/a r=1 p=one ct=text expiry=7
            q> publish q=2 id=1 t=$delayed/10/a p=two
            p> publish q=1 id=2 t=$delayed/1/a p=three
            commit
            p< puback 1
            p< puback 2
            q< pubrec 1
            -- Not acknowledged, not promised.
            p> publish q=1 id=3 t=$delayed/1/a p=four
            p< -
            q> pubrel 1
            q< pubcomp 1
        ";
        run(&mut rig, script);
        rig.crash_into(after);
        rig.commit();
        steps(
            &mut rig,
            "wait 1500\ncommit\ns> connect id=s v=5 clean=0 expiry=1000\ncommit\ns< connack sp=1",
        );
        assert_eq!(rig.count("delayed_published"), 1, "{before} to {after}");
        steps(&mut rig, "commit\ns< publish a q1 id=1 three\ns> puback 1\nwait 9000\ncommit");
        steps(
            &mut rig,
            "s< publish a q2 id=2 two\ns> pubrec 2\ncommit\ns< pubrel 2\ns> pubcomp 2\ncommit\nwait 90000",
        );
        // Its expiry begins now; a message of its own for whoever asks later.
        run(
            &mut rig,
            "
            s< publish a q1 id=3 ct=text expiry=7 one
            s> puback 3
            commit
            late> connect id=late v=5
            late< connack sp=0
            late> subscribe id=1 f=a
            late< suback 1 00
            late< publish a q0 r ct=text expiry=7 one
            ",
        );
        rig.wait(2_000);
        rig.commit();
        // Nothing is left of any of them.
        rig.crash_into(after);
        assert_eq!(rig.shards.iter().map(|s| s.delayed_count()).sum::<usize>(), 0, "{before} to {after}");
        run(&mut rig, "wait 200000\ncommit");
    }
}

#[test]
fn a_delayed_qos_2_message_is_never_there_twice() {
    // Whatever the moment of the cut: with each number of commits after its time.
    for of in [1, 3] {
        for commits in 0..4 {
            let mut rig = Rig::of(limits(), of);
            run(
                &mut rig,
                "
                s> connect id=s v=5 clean=0 expiry=1000
                commit
                s< connack sp=0
                s> subscribe id=1 f=a:2
                commit
                s< suback 1 02
                p> connect id=p v=5
                p< connack sp=0
                p> publish q=2 id=1 t=$delayed/5/a p=x
                commit
                p< pubrec 1
                drop s
                wait 5500
                ",
            );
            for _ in 0..commits {
                rig.commit_only();
                rig.turn();
            }
            rig.crash();
            steps(&mut rig, "wait 6000\ncommit\ns> connect id=s v=5 clean=0 expiry=1000\ncommit");
            rig.commit();
            let packets = std::mem::take(&mut rig.peer("s").packets);
            let got = packets.iter().filter(|p| p.contains("publish a q2")).count();
            assert_eq!(got, 1, "{of} shards, {commits} commits: {packets:?}");
        }
    }
}

#[test]
fn delays_have_bounds_of_their_own_and_ask_for_the_topic_behind() {
    let few = Limits { delayed_messages: 1, ..limits().into() };
    check_with(
        few,
        "
        deny publish no
        p> connect id=p v=5
        p< connack sp=0
        p> publish q=1 id=1 t=$delayed/5/no
        p< puback 1 87
        p> publish q=1 id=1 t=$delayed/5/$SYS/a
        p< puback 1 87
        p> publish t=$delayed/5/a
        p> publish q=1 id=1 t=$delayed/5/a
        p< puback 1 97
        o> connect id=p v=4
        p< disconnect 8e
        p! closed
        o< connack sp=0
        o> publish q=1 id=1 t=$delayed/5/a
        o! closed
        count delayed_refused 2
        ",
    );
}

#[test]
fn a_will_and_what_a_rule_publishes_may_be_delayed() {
    check(
        "
        s> connect id=s v=5
        s< connack sp=0
        s> subscribe id=1 f=#
        s< suback 1 00
        p> connect id=p v=5 will=$delayed/3/w
        p< connack sp=0
        drop p
        s< -
        wait 3300
        s< publish w q0 will
        -- A number that is none.
        p> connect id=p v=5 will=$delayed/x/w
        p< connack 90
        p! closed
        count topics_refused 1
        ",
    );
}

fn rewrites(rules: &[(Action, &str, &str, &str)]) -> Features {
    let rules: Vec<_> = rules.iter().map(|(a, s, e, d)| Rewrite::new(*a, s, e, d).unwrap()).collect();
    Features { rewrites: Rewrites::new(&rules), ..Features::default() }
}

#[test]
fn topics_are_rewritten() {
    let features = rewrites(&[
        (Action::All, "old/#", "^old/(.+)$", "new/${clientid}/$1"),
        (Action::Publish, "later/#", "^later/(.+)$", "$$delayed/2/$1"),
        (Action::Publish, "bad/#", "^bad/(.*)$", "#/$1"),
    ]);
    check_features(
        &features,
        "
        deny publish new/p/no
        s> connect id=s v=5
        s< connack sp=0
        s> subscribe id=1 f=new/#
        s< suback 1 00
        p> connect id=p v=5
        p< connack sp=0
        p> subscribe id=1 f=old/+ f=$share/g/old/x
        p< suback 1 00 00
        p> publish t=old/x p=1
        s< publish new/p/x q0 1
        p< publish new/p/x q0 1
        p< publish new/p/x q0 1
        p> unsubscribe id=2 f=old/+ f=$share/g/old/x
        p< unsuback 2 00 00
        p> publish t=old/x r=1 p=2
        s< publish new/p/x q0 2
        -- What a client may use is asked of what it named.
        p> publish q=1 id=1 t=old/no p=3
        p< puback 1
        s< publish new/p/no q0 3
        p> publish q=1 id=1 t=bad/x
        p< puback 1 90
        w> connect id=w v=5 will=old/w
        w< connack sp=0
        drop w
        s< publish new/w/w q0 will
        ",
    );
}

#[test]
fn every_client_is_subscribed_to_what_it_must_hear() {
    let subscription =
        |qos| Subscription { qos, no_local: false, retain_as_published: true, retain_handling: 1, id: None };
    let auto = |filter: &str, qos| AutoSubscription { filter: filter.into(), options: subscription(qos) };
    let features = Features {
        auto_subscribe: vec![auto("to/${clientid}", 1), auto("all", 0), auto("of/${username}", 0)],
        ..Features::default()
    };
    check_features(
        &features,
        "
        p> connect id=p v=5
        p< connack sp=0
        p> publish t=to/c r=1 p=kept
        c> connect id=c v=5 clean=0 expiry=100
        commit
        c< connack sp=0
        c< publish to/c q0 r kept
        p> publish q=1 id=1 t=to/c p=1
        c< publish to/c q1 id=1 1
        c> puback 1
        p< puback 1
        p> publish t=all p=2
        c< publish all q0 2
        p< publish all q0 2
        drop c
        commit
        p> publish q=1 id=2 t=to/c p=3
        commit
        p< puback 2
        wait 1000
        commit
        crash
        -- Another user's client: what was kept for the first is not its.
        c> connect id=c v=5 clean=0 expiry=100 user=u
        commit
        c< connack sp=0
        c< publish to/c q0 r kept
        drop c
        commit
        -- It is there already, and stays what it is: nothing is told again.
        c> connect id=c v=5 clean=0 expiry=100 user=u
        c< connack sp=1
        p> connect id=p v=5
        p< connack sp=0
        p> publish t=of/u p=4
        c< publish of/u q0 4
        ",
    );
}

#[test]
fn a_payload_is_what_it_is_said_to_be() {
    let features = Features { check_payload_format: true, ..Features::default() };
    check_features(
        &features,
        "
        p> connect id=p v=5
        p< connack sp=0
        p> subscribe id=1 f=a
        p< suback 1 00
        p> publish q=1 id=1 t=a utf8=1 hex=ff
        p< puback 1 99
        p> publish q=2 id=2 t=a utf8=1 hex=ff
        p< pubrec 2 99
        p> publish t=a utf8=1 hex=ff
        p< -
        p> publish t=a utf8=0 hex=41
        p< publish a q0 PayloadFormatIndicator(false) A
        p> publish t=a utf8=1 p=text
        p< publish a q0 PayloadFormatIndicator(true) text
        count payloads_refused 3
        ",
    );
}

#[test]
fn where_replies_go_and_where_there_is_room() {
    let features = Features {
        response_information: Some("reply/${clientid}".into()),
        server_reference: Some("other.example:1883".into()),
        ..Features::default()
    };
    check_features(
        &features,
        "
        a> connect id=a v=5 response=1
        a< connack sp=0 response=reply/a
        b> connect id=b v=5
        b< connack sp=0
        overload on
        c> connect id=c v=5
        c< connack 9c elsewhere=other.example:1883
        c! closed
        d> connect id=d v=4
        d< connack 88
        d! closed
        -- Nothing that it takes has room for where to go.
        e> connect id=e v=5 psize=20
        e< connack 9c
        e! closed
        ",
    );
    let mut rig = Rig::with(features, 1);
    steps(&mut rig, "a> connect id=a v=5\na< connack sp=0");
    let now = rig.now;
    rig.shard().goodbye(now);
    rig.turn();
    steps(&mut rig, "a< disconnect 9c elsewhere=other.example:1883");
}

#[test]
fn why_is_told_where_it_may_be() {
    let mut rig = Rig::new(limits());
    let last = |rig: &mut Rig, name: &str| rig.peer(name).reasons.pop();
    steps(&mut rig, "deny subscribe x\na> connect id=a v=5\na> subscribe id=1 f=a f=x f=a/#/b");
    assert_eq!(last(&mut rig, "a").as_deref(), Some("x: Not authorized"), "the first");
    steps(&mut rig, "b> connect id=b v=5 problem=0\nb> subscribe id=1 f=x");
    assert_eq!(last(&mut rig, "b"), None, "[MQTT-3.1.2-29]");
    // A suback of 7 bytes and no more: [MQTT-3.9.2-1].
    steps(
        &mut rig,
        "c> connect id=c v=5 psize=50\nc> subscribe id=1 f=a/#/b f=xxxxxxxxxxxxxxxxxxxxxxxxx/#/bb",
    );
    assert!(last(&mut rig, "c").is_some());
    steps(&mut rig, "d> connect id=d v=5 psize=40\nd> subscribe id=1 f=xxxxxxxxxxxxxxxxxxxxxxxxx/#/bb");
    assert_eq!(last(&mut rig, "d"), None);
    steps(&mut rig, "a> connect id=a v=5\nb> raw c0 01 00");
    assert_eq!(
        last(&mut rig, "a").as_deref(),
        Some("protocol error: second CONNECT on a connection [MQTT-3.1.0-2]")
    );
    assert!(last(&mut rig, "b").is_some(), "always in a DISCONNECT");
}

#[test]
fn an_exclusive_subscription_is_one_client_s() {
    check(
        "
        a> connect id=a v=5
        a< connack sp=0
        b> connect id=b v=5
        b< connack sp=0
        o> connect id=o v=4
        o< connack sp=0
        a> subscribe id=1 f=$exclusive/t/1:1 f=x
        a< suback 1 01 00
        b> subscribe id=1 f=$exclusive/t/1 f=$exclusive/t/2 f=t/1
        b< suback 1 97 00 00
        o> subscribe id=1 f=$exclusive/t/1
        o< suback 1 80
        -- Whoever has it may ask again; another filter is another one, whatever it matches.
        a> subscribe id=2 f=$exclusive/t/1:1
        a< suback 2 01
        o> subscribe id=2 f=$exclusive/t/+
        o< suback 2 00
        b> publish t=t/1 p=x
        a< publish t/1 q0 x
        b< publish t/1 q0 x
        o< publish t/1 q0 x
        count exclusive_refused 2
        -- What was given back is free, by UNSUBSCRIBE or with its session.
        a> unsubscribe id=3 f=$exclusive/t/1
        a< unsuback 3 00
        b> subscribe id=2 f=$exclusive/t/1
        b< suback 2 00
        drop b
        a> subscribe id=4 f=$exclusive/t/1
        a< suback 4 00
        ",
    );
}

#[test]
fn an_exclusive_subscription_lies_beside_a_plain_one() {
    check(
        "
        a> connect id=a v=5
        a< connack sp=0
        a> subscribe id=1 f=t:0 f=$exclusive/t:0
        a< suback 1 00 00
        a> publish t=t p=1
        a< publish t q0 1
        a> unsubscribe id=2 f=t
        a< unsuback 2 00
        a> publish t=t p=2
        a< publish t q0 2
        a> subscribe id=3 f=t
        a< suback 3 00
        a> unsubscribe id=4 f=$exclusive/t
        a< unsuback 4 00
        a> publish t=t p=3
        a< publish t q0 3
        a> unsubscribe id=5 f=t
        a< unsuback 5 00
        a> publish t=t p=4
        a< -
        a> subscribe id=6 f=$exclusive/ f=$exclusive/a/#/b
        a< suback 6 8f 8f
        ",
    );
}

#[test]
fn an_exclusive_subscription_survives_with_its_session() {
    for (before, after) in [(1, 1), (3, 3), (3, 2), (1, 3)] {
        let mut rig = Rig::of(limits(), before);
        steps(
            &mut rig,
            "a> connect id=a v=5 clean=0 expiry=100\ncommit\na> subscribe id=1 f=$exclusive/t\ncommit",
        );
        rig.peer("a").packets.clear();
        rig.crash_into(after);
        run(
            &mut rig,
            "
            commit
            b> connect id=b v=5
            b< connack sp=0
            b> subscribe id=1 f=$exclusive/t
            b< suback 1 97
            a> connect id=a v=5 clean=1
            commit
            a< connack sp=0
            b> subscribe id=2 f=$exclusive/t
            b< suback 2 00
            ",
        );
    }
}

#[test]
fn of_many_who_ask_at_once_one_has_it_and_nobody_waits_for_ever() {
    use common::Wire;
    for seed in 0..200 {
        let mut rig = Rig::of(limits(), 3);
        rig.wire = Some(Wire::new(3_000, true, seed));
        let names = ["a", "b", "c", "d", "e"];
        for name in names {
            rig.send(name, &format!("connect id={name} v=5"));
            rig.send(name, "subscribe id=1 f=$exclusive/t f=$exclusive/u");
            // Nothing is lost that comes while it waits.
            rig.send(name, "ping");
        }
        // One leaves while it may still be waiting, and comes again.
        rig.drop_peer("a");
        rig.send("a", "connect id=a v=5");
        rig.send("a", "subscribe id=1 f=$exclusive/t f=$exclusive/u");
        for _ in 0..200 {
            rig.wait_us(1_000);
        }
        let granted = |rig: &mut Rig, at: usize| {
            let has = |rig: &mut Rig, name: &str| {
                let packets = &rig.peer(name).packets;
                let suback = packets.iter().find(|p| p.starts_with("suback 1")).unwrap();
                suback.split_whitespace().nth(2 + at) == Some("00")
            };
            names.iter().filter(|name| has(rig, name)).count()
        };
        assert_eq!((granted(&mut rig, 0), granted(&mut rig, 1)), (1, 1), "seed {seed}");
        for name in &names[1..] {
            assert!(rig.peer(name).packets.iter().any(|p| p == "pong"), "seed {seed}");
        }
        // And when all have gone it is anybody's.
        names.iter().for_each(|name| rig.drop_peer(name));
        for _ in 0..200 {
            rig.wait_us(1_000);
        }
        rig.send("z", "connect id=z v=5");
        rig.send("z", "subscribe id=1 f=$exclusive/t f=$exclusive/u");
        for _ in 0..200 {
            rig.wait_us(1_000);
        }
        assert!(rig.peer("z").packets.iter().any(|p| p == "suback 1 00 00"), "seed {seed}");
    }
}

/// What a node that is gone had delayed is published by its heir, and is that node's again when it is back.
#[test]
fn what_a_node_that_is_gone_had_delayed_is_inherited() {
    for is_back in [false, true] {
        let mut rig = Rig::of(limits(), 2);
        let script = "s> connect id=s v=5\ns< connack sp=0\ns> subscribe id=1 f=#:1\ns< suback 1 01";
        run(&mut rig, script);
        let queue = QueueId::inherited(3);
        let delayed = |seq, delay_s| {
            let kept = record::Delayed {
                topic: format!("t{seq}").into(),
                qos: 1,
                retain: false,
                properties: Bytes::new(),
                client_id: "p".into(),
                username: None,
                host: None,
                edge: None,
                hops: 0,
                path: 0,
                delay_s,
                due_wall_ms: rig.now.wall_ms + i64::from(delay_s) * 1_000,
                payload: Bytes::new(),
            };
            Op::Append { queue, seq, head: kept.to_bytes(), body: Body::Inline("x".into()) }
        };
        rig.store.0.borrow_mut().submit(vec![delayed(5, 1), delayed(6, 100)]);
        rig.commit();
        let told = |rig: &mut Rig, inherited: Vec<Inherited>| {
            let restored = Arc::new(Restored { inherited, ..Restored::default() });
            let now = rig.now;
            for shard in &mut rig.shards {
                let event = StoreEvent::Adopted { view: 1, restored: Arc::clone(&restored), done: true };
                shard.store_event(event, now);
            }
        };
        let summary = QueueSummary { queue, first: 5, last: 6, rows: 2, bytes: 100 };
        let inherited = Inherited { summary, of: QueueId::delayed(0), node: "b".into() };
        told(&mut rig, vec![inherited.clone()]);
        // Told of another view, it is read once.
        told(&mut rig, vec![inherited]);
        steps(
            &mut rig,
            "commit\ncommit\nwait 1500\ncommit\ns< publish t5 q1 id=1 x\ns> puback 1\nwait 1500\ncommit",
        );
        let left = rig.store.0.borrow().rows(queue);
        assert_eq!(left.iter().map(|row| row.seq).collect::<Vec<_>>(), [6], "the other one is removed");
        if is_back {
            told(&mut rig, Vec::new());
            steps(&mut rig, "wait 110000\ncommit\ns< -");
            assert_eq!(rig.store.0.borrow().rows(queue).len(), 1);
        } else {
            steps(&mut rig, "wait 110000\ncommit\ns< publish t6 q1 id=2 x");
        }
        assert_eq!(rig.shards.iter().map(|s| s.delayed_count()).sum::<usize>(), 0);
    }
}
