//! The driver over real sockets, against a scripted broker: after every fault nothing is lost, every row is answered
//! once, and at the broker what it sees first of each key ascends.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::broker::{Broker, DEADLINE, Outbox, Plan, Seens, WINDOW, config, large, rows, serve};
use common::{entry, row_of};
use ferrule_link::{IdentityMode, Server, UplinkConfig};
use ferrule_mqtt::{Property, Version};
use ferrule_outbox::Delivered;
use ferrule_outbox::receipt::Reason;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::time::timeout;

/// Runs `count` rows through the plans; all must be delivered and in order.
async fn survive(plans: Vec<Plan>, count: u64, change: impl FnOnce(&mut UplinkConfig)) -> (Outbox, Broker) {
    let what = format!("{plans:?}");
    let broker = Broker::start(plans, &[]).await;
    let mut config = config(&[&broker.server]);
    change(&mut config);
    let mut outbox = Outbox::start(config, rows(count));
    outbox.all(&what).await;
    assert_eq!(outbox.answers.len() as u64, count, "{what}");
    assert!(outbox.answers.values().all(|answer| *answer == Delivered::Yes), "{what}");
    assert_eq!(broker.numbers(), (1..=count).collect(), "{what}");
    broker.check_order();
    (outbox, broker)
}

// === tests ===

#[tokio::test]
async fn rows_arrive_in_order_and_many_leave_in_one_write() {
    let (mut outbox, broker) = survive(vec![Plan::Ack], 5_000, |config| config.window_max = 500).await;
    outbox.stop().await;
    let stats = outbox.stats.snapshot();
    assert_eq!((stats.sent, stats.acknowledged, stats.connects, stats.failures), (5_000, 5_000, 1, 0));
    assert_eq!((stats.in_flight, stats.waiting, &stats.last_error), (0, 0, &None));
    assert!(stats.bytes_out > 5_000 * 10 && stats.bytes_in >= 5_000 * 4, "{stats:?}");
    assert!(stats.writes < 2_500, "{} writes for 5000 rows", stats.writes);
    let seen = broker.seen.lock().unwrap();
    let connect = &seen.connects[0];
    assert_eq!((connect.version, connect.clean_start), (Version::V5, true));
    assert_eq!((&*connect.client_id, &connect.username), ("ferrule-press-7", &None));
    let dictionary = ferrule_batch::dictionary::name();
    let user = [
        ("ferrule", "1"),
        ("ferrule-edge", "press-7"),
        ("ferrule-boot", "b007"),
        ("ferrule-batch", "1"),
        ("ferrule-dictionary", &*dictionary),
    ];
    assert_eq!(connect.user, user.map(|(name, value)| (name.to_owned(), value.to_owned())));
    assert!(
        seen.messages[0].iter().all(|m| m.user.is_empty() && m.qos == 1),
        "a plain broker gets no identity"
    );
}

#[tokio::test]
async fn acknowledgements_may_come_in_any_order() {
    survive(vec![Plan::AckBackwards(5)], 300, |_| ()).await;
}

#[tokio::test]
async fn a_connection_lost_in_the_middle_of_a_window_loses_nothing() {
    // Half of them stay open: below two windows, or the broker would wait for ever.
    let plans = (0..45).map(|n| Plan::DropAfter(2 * (n % 15 + 1))).chain([Plan::Ack]).collect();
    let (outbox, _broker) = survive(plans, 1_500, |_| ()).await;
    assert!(outbox.ups > 20, "{} connections", outbox.ups);
}

#[tokio::test]
async fn a_broker_that_never_acknowledges_gets_one_window() {
    let (outbox, broker) = survive(vec![Plan::NeverAck(WINDOW.into()), Plan::Ack], 100, |_| ()).await;
    assert_eq!(broker.seen.lock().unwrap().messages[0].len(), usize::from(WINDOW));
    assert_eq!((outbox.ups, outbox.downs.len()), (2, 1));
    assert!(
        outbox.downs[0].contains("closed the connection") || outbox.downs[0].contains("broke"),
        "{:?}",
        outbox.downs
    );
}

#[tokio::test]
async fn a_blackhole_is_noticed_by_its_silence() {
    // More than the socket buffers hold, so that writing stops too.
    let broker = Broker::start(vec![Plan::Blackhole, Plan::Ack], &[]).await;
    let mut config = config(&[&broker.server]);
    config.keep_alive = Duration::from_secs(1);
    let mut outbox = Outbox::start(config, rows(40));
    outbox.all("blackhole").await;
    assert_eq!(outbox.ups, 2);
    // Ours or the kernel's word, whichever is first.
    assert!(
        outbox.downs[0].contains("silent") || outbox.downs[0].contains("timed out"),
        "{:?}",
        outbox.downs
    );
    assert_eq!(broker.numbers().len(), 40);
    broker.check_order();
}

#[tokio::test]
async fn a_blackhole_with_full_buffers_is_noticed_too() {
    let broker = Broker::start(vec![Plan::Blackhole, Plan::Ack], &[]).await;
    let mut config = config(&[&broker.server]);
    config.keep_alive = Duration::from_secs(1);
    let mut outbox = Outbox::start(config, (1..=40).map(|seq| large(seq, 1_000_000)));
    outbox.all("blackhole, 40 MB").await;
    assert_eq!((outbox.ups, outbox.answers.len()), (2, 40));
    broker.check_order();
}

#[tokio::test]
async fn a_broker_that_reads_little_gets_everything() {
    let broker = Broker::start(vec![Plan::Slow(5_000)], &[]).await;
    let mut outbox = Outbox::start(config(&[&broker.server]), (1..=60).map(|seq| large(seq, 100_000)));
    outbox.all("slow").await;
    assert_eq!((outbox.ups, outbox.answers.len()), (1, 60));
    broker.check_order();
}

#[tokio::test]
async fn refusals_are_told_with_their_reason_and_tried_again() {
    for (code, word) in
        [(0x86, "Bad User Name or Password"), (0x87, "Not authorized"), (0x97, "Quota exceeded")]
    {
        let plans = vec![Plan::Refuse(code), Plan::Refuse(code), Plan::Refuse(code), Plan::Ack];
        let (outbox, broker) = survive(plans, 10, |config| {
            config.username = Some("u".to_owned());
            config.password = Some(b"p".to_vec());
        })
        .await;
        // The same error is told once.
        assert_eq!((outbox.ups, outbox.downs.len()), (1, 1), "{:?}", outbox.downs);
        assert!(
            outbox.downs[0].contains(word) && outbox.downs[0].contains("127.0.0.1"),
            "{:?}",
            outbox.downs
        );
        assert_eq!(outbox.stats.snapshot().failures, 3);
        let seen = broker.seen.lock().unwrap();
        assert_eq!(seen.connects.len(), 4);
        assert_eq!(seen.connects[3].password.as_deref(), Some(&b"p"[..]));
    }
}

#[tokio::test]
async fn silence_and_close_before_connack_are_tried_again() {
    let (outbox, _broker) = survive(vec![Plan::Mute, Plan::Close, Plan::Ack], 10, |config| {
        config.connect_timeout = Duration::from_millis(100);
    })
    .await;
    assert_eq!((outbox.ups, outbox.downs.len()), (1, 2), "{:?}", outbox.downs);
    assert!(outbox.downs[0].contains("did not answer CONNECT"), "{:?}", outbox.downs);
}

#[tokio::test]
async fn the_next_server_is_tried_when_one_fails() {
    let dead = {
        // A port that was just free.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Server::new("127.0.0.1", listener.local_addr().unwrap().port())
    };
    let broker = Broker::start(vec![Plan::Ack], &[]).await;
    let mut outbox = Outbox::start(config(&[&dead, &broker.server]), rows(10));
    outbox.all("second server").await;
    assert_eq!((outbox.ups, outbox.downs.len()), (1, 0), "{:?}", outbox.downs);
}

#[tokio::test]
async fn a_broker_that_comes_late_is_found() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let server = Server::new("localhost", address.port());
    let mut outbox = Outbox::start(config(&[&server]), rows(10));
    outbox.until("down", |outbox| !outbox.downs.is_empty()).await;
    assert!(outbox.downs[0].contains("cannot be reached"), "{:?}", outbox.downs);
    let listener = TcpListener::bind(address).await.unwrap();
    let log = Arc::new(Mutex::new(Seens { messages: vec![Vec::new()], ..Seens::default() }));
    let serving = Arc::clone(&log);
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        serve(stream, Plan::Ack, Vec::new(), serving, 0).await
    });
    outbox.all("late broker").await;
    assert_eq!(log.lock().unwrap().messages[0].len(), 10);
}

#[tokio::test]
async fn not_now_is_tried_until_it_is_taken() {
    for code in [0x97, 0x83, 0x80] {
        let broker = Broker::start(vec![Plan::Nack(code)], &[]).await;
        let mut outbox = Outbox::start(config(&[&broker.server]), rows(6));
        let stats = Arc::clone(&outbox.stats);
        let deferred = || stats.snapshot().deferred >= 20;
        // No event tells it: nothing is answered.
        outbox.until("up", |outbox| outbox.ups == 1 && outbox.todo.is_empty()).await;
        timeout(DEADLINE, async {
            while !deferred() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap();
        outbox.stop().await;
        assert_eq!((outbox.answers.len(), outbox.open.len()), (0, 6), "{code:#x}: kept");
    }
    let (_outbox, broker) = survive(vec![Plan::DropAfter(3), Plan::Nack(0), Plan::Ack], 50, |_| ()).await;
    broker.check_order();
}

#[tokio::test]
async fn a_refused_row_is_discarded_and_counted() {
    for code in [0x87, 0x90, 0x99] {
        let broker = Broker::start(vec![Plan::Nack(code)], &[]).await;
        let mut outbox = Outbox::start(config(&[&broker.server]), rows(20));
        outbox.all("refused").await;
        assert!(outbox.answers.values().all(|answer| *answer == Delivered::Discarded(Reason::Refused)));
        assert_eq!((outbox.stats.snapshot().discarded, outbox.ups), (20, 1));
    }
}

#[tokio::test]
async fn a_poison_row_costs_itself_only() {
    let broker = Broker::start(vec![Plan::DisconnectOn(0x99, 7)], &[]).await;
    let mut outbox = Outbox::start(config(&[&broker.server]), rows(40));
    outbox.all("poison").await;
    let refused: Vec<_> = outbox.answers.iter().filter(|(_, answer)| **answer != Delivered::Yes).collect();
    assert_eq!(refused, [(&7, &Delivered::Discarded(Reason::Refused))]);
    broker.check_order();
}

#[tokio::test]
async fn identity_goes_to_those_who_believe_it() {
    let ferrule = [Property::UserProperty("ferrule", "1")];
    for (connack, mode, sent) in [
        (&ferrule[..], IdentityMode::Negotiated, true),
        (&[][..], IdentityMode::Negotiated, false),
        (&[][..], IdentityMode::Properties, true),
    ] {
        let broker = Broker::start(vec![Plan::Ack], connack).await;
        let mut config = config(&[&broker.server]);
        config.identity = mode;
        let mut outbox = Outbox::start(config, rows(3));
        outbox.all("identity").await;
        let seen = broker.seen.lock().unwrap();
        let message = &seen.messages[0][2];
        assert_eq!(message.property("ferrule-id"), sent.then_some("b007.0.3"));
        assert_eq!(message.property("ferrule-client"), sent.then_some("a"));
        assert_eq!(message.property("ferrule-at"), sent.then_some("1000"));
    }
}

#[tokio::test]
async fn version_3_1_1_works_without_properties() {
    let broker = Broker::start(vec![Plan::DropAfter(4), Plan::Ack], &[]).await;
    let mut config = config(&[&broker.server]);
    config.version = Version::V3_1_1;
    config.identity = IdentityMode::Properties;
    let mut outbox = Outbox::start(config, rows(50));
    outbox.all("3.1.1").await;
    assert_eq!(broker.seen.lock().unwrap().connects[0].version, Version::V3_1_1);
    broker.check_order();
}

#[tokio::test]
async fn qos_0_rows_are_done_when_they_are_written() {
    let broker = Broker::start(vec![Plan::NeverAck(usize::MAX)], &[]).await;
    let at_most_once = |seq| {
        let mut entry = entry(seq, "a");
        entry.qos = 0;
        row_of(entry)
    };
    let mut outbox = Outbox::start(config(&[&broker.server]), (1..=100).map(at_most_once));
    outbox.all("QoS 0").await;
    assert!(outbox.answers.values().all(|answer| *answer == Delivered::Yes));
}

#[tokio::test]
async fn stopping_waits_for_what_is_in_flight_and_says_goodbye() {
    let broker = Broker::start(vec![Plan::AckBackwards(usize::MAX)], &[]).await;
    let mut outbox = Outbox::start(config(&[&broker.server]), rows(10));
    outbox.until("sent", |outbox| outbox.open.len() == 10).await;
    timeout(DEADLINE, async {
        while outbox.stats.snapshot().in_flight < 10 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .unwrap();
    outbox.stop().await;
    assert_eq!(outbox.answers.len(), 10);
    timeout(DEADLINE, async {
        while broker.seen.lock().unwrap().goodbyes == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn it_stops_whatever_it_is_doing() {
    let mute = Broker::start(vec![Plan::Mute], &[]).await;
    let never = Broker::start(vec![Plan::NeverAck(usize::MAX)], &[]).await;
    let hole = Broker::start(vec![Plan::Blackhole], &[]).await;
    let dead = Server::new("127.0.0.1", 1);
    for server in [&mute.server, &never.server, &hole.server, &dead] {
        let mut config = config(&[server]);
        config.drain = Duration::from_millis(10);
        let mut outbox = Outbox::start(config, rows(10));
        if *server != mute.server && *server != dead {
            outbox.until("up", |outbox| outbox.ups == 1).await;
        }
        outbox.stop().await;
        assert_eq!(outbox.answers.len(), 0);
    }
}

#[tokio::test]
async fn mistakes_in_the_configuration_are_told_and_do_not_end_it() {
    type Change = fn(&mut UplinkConfig);
    for (change, word) in [
        ((|config| config.servers.clear()) as Change, "no server"),
        (|config| config.keep_alive = Duration::from_secs(70_000), "keep_alive"),
        (|config| config.keep_alive = Duration::from_millis(10), "keep_alive"),
        (|config| config.username = Some("x".repeat(70_000)), "CONNECT"),
    ] {
        let broker = Broker::start(vec![Plan::Ack], &[]).await;
        let mut config = config(&[&broker.server]);
        change(&mut config);
        let mut outbox = Outbox::start(config, rows(1));
        outbox.until("told", |outbox| !outbox.downs.is_empty()).await;
        assert!(outbox.downs[0].contains(word), "{:?}", outbox.downs);
        outbox.stop().await;
    }
}
