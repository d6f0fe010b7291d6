//! Bounds on what a client can use: each is met, answered as its version can be, and counted; and what it bounds is
//! really bounded.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
use common::{Rig, check_with, limits, run, steps};
use ferrule_broker::{ClientLimits, Limits};
use std::time::Duration;

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A connected client of each version: `a` speaks 5, `b` 3.1.1.
const TWO: &str = "a> connect id=a v=5
     a< connack sp=0
     b> connect id=b v=4
     b< connack sp=0\n";

// === packets ===

#[test]
fn packets() {
    let limits = ClientLimits { packet_bytes: 100, ..limits() };
    check_with(
        limits,
        &format!(
            "{TWO}
             a> raw 30 62
             a< -
             b> raw 30 80 01
             b! closed
             c> connect id=c v=5
             c< connack sp=0
             c> raw 30 80 01
             c< disconnect 95
             c! closed
             count oversized 2
             count protocol_errors 0"
        ),
    );
}

#[test]
fn a_connect_may_not_be_as_large_as_a_packet() {
    let limits = ClientLimits { connect_bytes: 60, ..limits() };
    let will = "w".repeat(60);
    check_with(
        limits,
        &format!(
            "a> connect id=a v=5 will=t wp={will}
             a< connack 95
             a! closed
             b> connect id=b v=4 will=t wp={will}
             b! closed
             c> raw 10 80 01  -- its version is not known yet
             c< -
             c> raw 00 04 4d 51 54 54 05 00 00 00 00 v=5
             c< connack 95
             c! closed
             d> connect id=d v=5
             d< connack sp=0
             d> publish t=t q=1 id=1 p={will}
             d< puback 1 10
             count oversized 3
             count refused 0"
        ),
    );
}

// === time ===

#[test]
fn time_to_connect() {
    let limits = ClientLimits { connect_timeout: seconds(2), ..limits() };
    check_with(
        limits,
        "a> raw 10 20 00
         wait 1900
         a> raw 04
         wait 400
         a! closed
         gate later
         b> connect id=b v=5
         c> connect id=c v=4
         wait 2300
         b< connack 89
         b! closed
         c< connack 88
         c! closed
         count connect_timeouts 3",
    );
}

#[test]
fn a_packet_that_has_begun_must_grow() {
    let limits = ClientLimits { packet_timeout: seconds(20), stalled: seconds(1_000), ..limits() };
    // A packet of 16,384 bytes; without keep alive, with a short and with a long one.
    check_with(
        limits,
        "a> connect id=a v=5
         a< connack sp=0
         b> connect id=b v=4 ka=1000
         b< connack sp=0
         c> connect id=c v=5 ka=4
         c< connack sp=0
         wait 1000000
         b> ping
         b< pong
         c< disconnect 8d
         c! closed
         c> connect id=c v=5 ka=4
         c< connack sp=0
         a> raw 30 fd 7f
         b> raw 30 fd 7f
         c> raw 30 fd 7f
         wait 6300
         c< disconnect 8d
         c! closed
         wait 13000
         a> raw 00
         b> raw 00
         wait 1300
         a< disconnect 8d
         a! closed
         b! closed
         count packet_timeouts 2
         count keep_alive_timeouts 2",
    );
}

#[test]
fn over_a_slow_link_the_largest_packet_gets_through() {
    let limits = ClientLimits { packet_timeout: seconds(20), ..limits() };
    for of in [1, 3] {
        let mut rig = Rig::of(limits, of);
        run(&mut rig, "a> connect id=a v=5 ka=30\na< connack sp=0");
        // 1 MiB, 1,000 bytes a second: a quarter of an hour and more without a whole packet.
        let size: usize = 1 << 20;
        let mut packet = vec![0x32, 0xfc, 0xff, 0x3f, 0, 1, b't', 0, 7, 0];
        packet.resize(size, b'x');
        for second in packet.chunks(1_000) {
            rig.bytes("a", second);
            rig.wait(1_000);
        }
        run(&mut rig, "a< puback 7 10\na> ping\na< pong\nwait 46000\na< disconnect 8d\na! closed");
        assert!(rig.shards.iter().all(|shard| shard.buffered() == 0));
    }
}

#[test]
fn bytes_are_no_packets_for_the_keep_alive() {
    let mut rig = Rig::new(limits());
    run(&mut rig, "a> connect id=a v=5 ka=10\na< connack sp=0");
    rig.bytes("a", &[0x30, 0x7f]);
    for _ in 0..14 {
        rig.wait(1_000);
        rig.bytes("a", b"x");
    }
    run(&mut rig, "a< -\nwait 1300\na< disconnect 8d\na! closed");
}

// === topics and subscriptions ===

#[test]
fn topics() {
    let limits = ClientLimits { topic_levels: 3, topic_bytes: 10, ..limits() };
    check_with(
        limits,
        &format!(
            "{TWO}
             s> connect id=s v=5
             s< connack sp=0
             s> subscribe id=1 f=a/b/c/d f=a/b/# f=a/b/c/# f=12345678901 f=1234567890
             s< suback 1 8f 00 8f 8f 00
             b> subscribe id=1 f=a/b/c/d f=+/+/+
             b< suback 1 80 00
             a> publish t=a/b/c/d
             a> publish t=a/b/c/d q=1 id=1
             a< puback 1 90
             a> publish t=12345678901 q=2 id=2
             a< pubrec 2 90
             a> publish t=a/b/c alias=1
             s< publish a/b/c q0
             b< publish a/b/c q0
             b> publish t=a/b/c/d
             b< -
             b> publish t=a/b/c/d q=1 id=1
             b! closed
             c> connect id=c v=5 will=a/b/c/d
             c< connack 90
             c! closed
             d> connect id=d v=4 will=a/b/c/d
             d! closed
             count topics_refused 11
             count denied 0"
        ),
    );
}

#[test]
fn subscriptions() {
    let limits = ClientLimits { subscriptions: 2, ..limits() };
    check_with(
        limits,
        &format!(
            "{TWO}
             a> subscribe id=1 f=1 f=2 f=3 f=1:1
             a< suback 1 00 00 97 01
             a> unsubscribe id=2 f=1
             a< unsuback 2 00
             a> subscribe id=3 f=3
             a< suback 3 00
             b> subscribe id=1 f=1 f=2 f=3
             b< suback 1 00 00 80
             count subscriptions_refused 2"
        ),
    );
}

#[test]
fn subscriptions_of_all_clients() {
    let limits = Limits { filter_bytes: 410, ..limits().into() };
    run(
        &mut Rig::new(limits),
        &format!(
            "{TWO}
             a> subscribe id=1 f=1 f=2 f=3 f=1:1
             a< suback 1 00 00 97 01
             b> subscribe id=1 f=1
             b< suback 1 80
             a> unsubscribe id=2 f=1
             a< unsuback 2 00
             b> subscribe id=2 f=1
             b< suback 2 00
             a> subscribe id=3 f=1
             a< suback 3 97
             b> disconnect
             b! closed
             a> subscribe id=4 f=1
             a< suback 4 00
             count subscriptions_refused 3"
        ),
    );
}

// === publishing ===

#[test]
fn publishes_that_wait() {
    check_with(
        ClientLimits { receive_max: 2, waiting_max: 3, ..limits() },
        &format!(
            "{TWO}
             rule t
             hold
             a> publish t=t q=1 id=1
             a> publish t=t q=1 id=2
             a> publish t=t q=1 id=3
             a< disconnect 93
             a! closed
             b> publish t=t q=1 id=1
             b> publish t=t q=1 id=2
             b> publish t=t q=1 id=3
             b> publish t=t q=1 id=4
             b! closed
             count window_exceeded 2
             count protocol_errors 0
             resolve delivered
             resolve delivered
             resolve delivered
             resolve delivered
             resolve delivered"
        ),
    );
}

#[test]
fn a_rate_is_kept_by_not_reading_and_nothing_is_lost() {
    for (limits, size) in [
        (ClientLimits { publish_rate: 10, ..limits() }, 200),
        (ClientLimits { publish_bytes: 10_000, ..limits() }, 1_000),
    ] {
        for (of, version) in [(1, 4), (1, 5), (3, 5)] {
            let mut rig = Rig::of(limits, of);
            let script = format!("a> connect id=a v={version} ka=2\na< connack sp=0\nrule t\nwait 1000");
            run(&mut rig, &script);
            let mut bytes = Vec::new();
            for _ in 0..100 {
                let mut packet = vec![0x30, 0x80 | (size % 128) as u8, (size / 128) as u8, 0, 1, b't', 0];
                packet.resize(size + 3, b'x');
                bytes.extend(packet);
            }
            bytes.extend(ferrule_mqtt::PINGREQ);
            rig.bytes("a", &bytes);
            rig.turn();
            let seen = |rig: &Rig| rig.hook.0.borrow().seen.len();
            // A second's worth at once, then as time goes by; its keep alive of 2 s passes several times.
            assert!((10..=11).contains(&seen(&rig)), "{}", seen(&rig));
            for second in 1..=8 {
                rig.wait(1_000);
                let expected = (second + 1) * 10;
                assert!((expected - 3..=expected + 1).contains(&seen(&rig)), "{} of {expected}", seen(&rig));
            }
            steps(&mut rig, "a< -\nwait 700\nwait 700\na< pong\nwait 2900\na< -\nwait 400");
            assert_eq!((seen(&rig), rig.count("throttled") > 0), (100, true));
            let end = if version == 5 { "a< disconnect 8d\na! closed" } else { "a! closed" };
            run(&mut rig, end);
        }
    }
}

#[test]
fn subscribing_is_paced_like_publishing() {
    check_with(
        ClientLimits { publish_rate: 1, ..limits() },
        "a> connect id=a v=5
         a< connack sp=0
         a> subscribe id=1 f=a
         a< suback 1 00
         a> unsubscribe id=2 f=a
         a< unsuback 2 00
         a> subscribe id=3 f=a
         a< -
         wait 700
         a< -
         wait 600
         a< suback 3 00
         count throttled 1",
    );
}

#[test]
fn retained_messages() {
    check_with(
        Limits { retained_messages: 1, ..limits().into() },
        &format!(
            "{TWO}
             s> connect id=s
             s< connack sp=0
             s> subscribe id=1 f=#
             s< suback 1 00
             a> publish t=x r=1 p=1
             s< publish x q0 1
             a> publish t=y r=1 p=1 q=1 id=1
             a< puback 1 97
             a> publish t=y r=1 p=1 q=2 id=1
             a< pubrec 1 97
             a> publish t=y r=1
             s< publish y q0
             b> publish t=y r=1 p=2 q=1 id=1  -- it cannot be told
             commit
             b< puback 1
             s< publish y q0 2
             count retained_refused 3
             a> publish t=x r=1 p=3 q=1 id=1
             commit
             a< puback 1
             s< publish x q0 3"
        ),
    );
    let size = "x".repeat(300);
    check_with(
        Limits { retained_bytes: 700, ..limits().into() },
        &format!(
            "{TWO}
             a> publish t=x r=1 q=1 id=1 p={size}
             commit
             a< puback 1
             a> publish t=y r=1 q=1 id=2 p={size}
             a< puback 2 97
             count retained_refused 1"
        ),
    );
}

// === receiving ===

#[test]
fn a_session_has_so_many_messages_and_so_many_bytes() {
    let away = "s> connect id=s clean=0
         commit
         s< connack sp=0
         s> subscribe id=1 f=t:1
         commit
         s< suback 1 01
         drop s\n";
    let back = "s> connect id=s clean=0\ncommit\ns< connack sp=1\n";
    check_with(
        ClientLimits { queue_messages: 1, ..limits() },
        &format!(
            "{TWO}{away}
             a> publish t=t q=1 id=1 p=1
             commit
             a< puback 1
             a> publish t=t q=1 id=2 p=2
             wait 500
             commit
             a< puback 2
             count dropped_full 1
             count dropped_full_bytes 0
             {back}
             s< publish t q1 id=1 1"
        ),
    );
    let payload = "x".repeat(1_000);
    check_with(
        ClientLimits { queue_bytes: 2_000, ..limits() },
        &format!(
            "{TWO}{away}
             a> publish t=t q=1 id=1 p={payload}
             commit
             a< puback 1
             wait 500
             a> publish t=t q=1 id=2 p={payload}
             commit
             a< puback 2
             wait 500
             a> publish t=t q=1 id=3 p=3
             commit
             a< puback 3
             count dropped_full 0
             count dropped_full_bytes 1
             {back}
             s< publish t q1 id=1 {payload}
             s< publish t q1 id=2 {payload}"
        ),
    );
}

/// `s` subscribes and takes nothing; `p` publishes `n` times 1,000 bytes.
fn flood(rig: &mut Rig, version: u8, qos: u8, n: usize) {
    run(
        rig,
        &format!(
            "s> connect id=s v={version}
             s< connack sp=0
             s> subscribe id=1 f=t:{qos}
             s< suback 1 0{qos}
             reads s 0
             p> connect id=p v=5
             p< connack sp=0"
        ),
    );
    let payload = "x".repeat(1_000);
    for n in 1..=n {
        rig.send("p", &format!("publish t=t q={qos} id={n} p={payload}"));
    }
}

const SLOW: fn() -> ClientLimits =
    || ClientLimits { output_bytes: 8_000, pending_bytes: 8_000, receive_max: 100, ..limits() };

#[test]
fn a_consumer_that_takes_nothing_loses_qos_0_and_then_its_connection() {
    for (of, version) in [(1, 4), (3, 5)] {
        let mut rig = Rig::of(SLOW(), of);
        flood(&mut rig, version, 0, 20);
        assert_eq!(rig.count("dropped_slow"), 12);
        steps(&mut rig, "wait 29000\ncount slow_closed 0\nwait 32000\ncount slow_closed 1");
        // What its socket still takes.
        let packets = std::mem::take(&mut rig.peer("s").packets);
        let (last, before) = if version == 5 { ("disconnect 97", 8) } else { ("publish", 7) };
        assert!(packets.back().unwrap().starts_with(last) && packets.len() == before + 1, "{packets:?}");
        run(&mut rig, "s! closed");
        assert!(rig.shards.iter().all(|shard| shard.buffered() == 0));
    }
}

#[test]
fn a_trickle_does_not_count_and_a_slow_link_does() {
    let slow = || ClientLimits { output_bytes: 256_000, ..limits() };
    for (bytes, closed) in [(1, 1), (30, 1), (40, 0)] {
        let mut rig = Rig::new(slow());
        flood(&mut rig, 5, 0, 300);
        // Each second for two minutes; a 256th of 256,000 bytes in each 30 s is 34 bytes a second.
        for _ in 0..120 {
            steps(&mut rig, &format!("reads s {bytes}\nreads s 0"));
            rig.wait(1_000);
            if rig.peer("s").closed {
                break;
            }
        }
        assert_eq!(rig.count("slow_closed"), closed, "{bytes}");
        rig.peer("s").packets.clear();
    }
}

#[test]
fn publishers_wait_for_a_consumer_that_takes_nothing_and_not_for_ever() {
    for (of, version) in [(1, 4), (3, 5)] {
        let mut rig = Rig::of(SLOW(), of);
        flood(&mut rig, version, 1, 20);
        // 8 in its output, 7 and some in its queue: then nobody is acknowledged.
        let acknowledged = rig.peer("p").packets.len();
        assert!((14..=16).contains(&acknowledged), "{acknowledged}");
        assert_eq!(rig.count("held_back") as usize, 20 - acknowledged);
        assert_eq!((rig.count("dropped_slow"), rig.receipts().1), (0, 0));
        steps(&mut rig, "wait 29000\ncount slow_closed 0\nwait 32000\ncount slow_closed 1");
        assert_eq!(rig.peer("p").packets.len(), 20);
        for name in ["p", "s"] {
            rig.peer(name).packets.clear();
        }
        run(&mut rig, "s! closed\nopen 0");
        assert!(rig.shards.iter().all(|shard| shard.buffered() == 0));
    }
}

#[test]
fn a_stall_shorter_than_the_time_to_connect_is_seen_in_its_time() {
    let limits = ClientLimits { stalled: seconds(1), connect_timeout: seconds(10), ..SLOW() };
    let mut rig = Rig::new(limits);
    flood(&mut rig, 5, 1, 20);
    steps(&mut rig, "wait 900\ncount slow_closed 0\nwait 1200\ncount slow_closed 1");
    for name in ["p", "s"] {
        rig.peer(name).packets.clear();
    }
    run(&mut rig, "s! closed");
}

#[test]
fn one_acknowledgement_now_and_then_does_not_hold_up_publishers() {
    let limits = ClientLimits { pending_bytes: 256_000, receive_max: 300, ..limits() };
    for (every, closed) in [(25, 1), (5, 0)] {
        let mut rig = Rig::new(limits);
        run(
            &mut rig,
            "s> connect id=s v=5 rmax=1
             s< connack sp=0
             s> subscribe id=1 f=t:1
             s< suback 1 01
             p> connect id=p v=5
             p< connack sp=0",
        );
        let payload = "x".repeat(1_000);
        // 1,160 bytes each with what they cost: the rule wants 1,000 in each 30 s, and half a minute has one look.
        for n in 1..=250 {
            rig.send(
                "p",
                &format!("publish t=t q=1 id={n} p={}", &payload[..if closed == 1 { 100 } else { 1_000 }]),
            );
        }
        if closed == 1 {
            for n in 251..=299 {
                rig.send("p", &format!("publish t=t q=1 id={n} p={}", "x".repeat(5_000)));
            }
        }
        let mut id = 1;
        for second in 1..=130 {
            rig.wait(1_000);
            if second % every == 0 && rig.peer("s").conn.is_some() {
                rig.send("s", &format!("puback {id}"));
                id += 1;
            }
        }
        assert_eq!(rig.count("slow_closed"), closed, "{every}");
        for name in ["p", "s"] {
            rig.peer(name).packets.clear();
        }
    }
}

// === all clients together ===

#[test]
fn the_pool_leaves_something_for_everyone() {
    let limits = Limits { buffer_bytes: 40_000, ..limits().into() };
    let mut rig = Rig::new(limits);
    flood(&mut rig, 5, 0, 60);
    // Half of it for one that takes nothing.
    let had = rig.shard().buffered();
    assert!((19_000..=20_500).contains(&had), "{had}");
    assert_eq!((rig.count("dropped_pool"), rig.count("dropped_slow")), (40, 0));
    // Others have theirs.
    run(
        &mut rig,
        "b> connect id=b v=5
         b< connack sp=0
         b> subscribe id=1 f=u
         b< suback 1 00
         p> publish t=u p=1
         b< publish u q0 1",
    );
    // The beginning of a packet larger than what is left.
    rig.bytes("b", &[0x30, 0xfc, 0xff, 0x3f]);
    rig.bytes("b", &[0; 8_000]);
    rig.turn();
    steps(&mut rig, "b< -\ncount pool_closed 0");
    rig.bytes("b", &[0; 8_000]);
    rig.turn();
    steps(&mut rig, "b< disconnect 97\nb! closed\ncount pool_closed 1");
    assert_eq!(rig.shard().buffered(), had);
    steps(&mut rig, "reads s all");
    assert_eq!(rig.shard().buffered(), 0);
    rig.peer("s").packets.clear();
}

#[test]
fn too_many_connections() {
    check_with(
        Limits { connections: 1, ..limits().into() },
        "a> connect id=a v=5
         a< connack sp=0",
    );
    let mut rig = Rig::new(Limits { connections: 1, ..limits().into() });
    run(
        &mut rig,
        "a> connect id=a\na< connack sp=0\nb> connect id=b\nb! closed\ncount connections_refused 1",
    );
}

#[test]
fn too_many_sessions() {
    let script = "a> connect id=a clean=0 v=4
         commit
         a< connack sp=0
         b> connect id=b v=5 clean=0 expiry=10
         b< connack 97
         b! closed
         c> connect id=c v=4 clean=0
         c< connack 88
         c! closed
         d> connect id=d v=4
         d< connack sp=0
         a> disconnect
         a! closed
         a> connect id=a clean=0 v=4
         a< connack sp=1
         drop a
         a> connect id=a clean=1 v=5 expiry=10
         commit
         a< connack sp=0
         a> disconnect expiry=0
         a! closed
         b> connect id=b v=5 clean=0 expiry=10
         commit
         b< connack sp=0
         count sessions_refused 2";
    run(&mut Rig::new(Limits { sessions: 1, ..limits().into() }), script);
}

#[test]
fn sessions_that_are_there_stay_when_the_bound_is_lowered() {
    let mut rig = Rig::new(limits());
    for name in ["a", "b", "c"] {
        run(&mut rig, &format!("{name}> connect id={name} clean=0\ncommit\n{name}< connack sp=0"));
    }
    rig.limits.sessions = 1;
    rig.crash();
    run(
        &mut rig,
        "a> connect id=a clean=0
         a< connack sp=1
         b> connect id=b clean=0
         b< connack sp=1
         d> connect id=d clean=0
         d< connack 88
         d! closed
         c> connect id=c clean=0
         c< connack sp=1",
    );
}

#[test]
fn a_process_with_too_little_memory_takes_nobody_new() {
    check_with(
        limits(),
        &format!(
            "{TWO}
             overload on
             c> connect id=c v=5
             c< connack 97
             c! closed
             d> connect id=d v=4
             d< connack 88
             d! closed
             count overload_refused 2
             a> subscribe id=1 f=t
             a< suback 1 00
             b> publish t=t p=1
             a< publish t q0 1
             overload off
             c> connect id=c v=5
             c< connack sp=0"
        ),
    );
    let mut rig = Rig::new(limits());
    rig.shard().set_overloaded(true);
    rig.shard().set_overloaded(false);
    flood(&mut rig, 5, 0, 3);
    rig.shard().set_overloaded(true);
    let payload = "x".repeat(1_000);
    for _ in 0..3 {
        rig.send("p", &format!("publish t=t p={payload}"));
    }
    assert_eq!(rig.count("dropped_pool"), 2, "beyond 4 KiB");
    steps(&mut rig, "reads s all");
    rig.peer("s").packets.clear();
}

// === listeners ===

#[test]
fn each_listener_has_its_own() {
    let outside = ClientLimits {
        packet_bytes: 50,
        receive_max: 2,
        topic_levels: 2,
        subscriptions: 1,
        keep_alive_max: Some(10),
        connect_timeout: seconds(1),
        ..limits()
    };
    let limits = Limits { clients: [limits(), outside].into(), ..Limits::default() };
    check_with(
        limits,
        "listener b 1
         listener c 1
         listener d 9  -- there is none: as the first
         a> raw 10
         c> raw 10
         wait 1300
         c! closed
         a> raw 0d 00 04 4d 51 54 54 05 02 00 3c 00 00 00 v=5
         a< connack sp=0 assigned
         drop a
         a> connect id=a v=5 ka=60
         a< connack sp=0
         b> connect id=b v=5 ka=60
         b< connack sp=0 ka=10
         d> connect id=d v=5 ka=60
         d< connack sp=0
         a> subscribe id=1 f=a/b/c f=b f=c
         a< suback 1 00 00 00
         b> subscribe id=1 f=a/b/c f=b f=c
         b< suback 1 8f 00 97
         a> publish t=x p=12345678901234567890123456789012345678901234567890 q=1 id=1
         a< puback 1 10
         b> publish t=x p=12345678901234567890123456789012345678901234567890 q=1 id=1
         b< disconnect 95
         b! closed",
    );
}

#[test]
fn a_session_keeps_what_any_listener_would_until_its_client_is_back() {
    let narrow = ClientLimits { queue_messages: 1, ..limits() };
    let limits = Limits { clients: [narrow, limits()].into(), ..Limits::default() };
    let mut rig = Rig::new(limits);
    run(
        &mut rig,
        "s> connect id=s clean=0
         commit
         s< connack sp=0
         s> subscribe id=1 f=t:1
         commit
         s< suback 1 01",
    );
    rig.crash();
    run(
        &mut rig,
        "p> connect id=p v=5
         p< connack sp=0
         p> publish t=t q=1 id=1 p=1
         p> publish t=t q=1 id=2 p=2
         commit
         p< puback 1
         p< puback 2
         count dropped_full 0",
    );
}
