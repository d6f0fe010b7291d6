//! The Kafka sink against a real broker, which is killed and paused.
#![allow(clippy::unwrap_used, reason = "tests")]

use ferrule_sink_kafka::Kafka;
use ferrule_sinks::harness::{Harness, YES, entry, row};
use ferrule_sinks::{ConsumerEvent, Delivered, OutRow, Reason};
use ferrule_testkit::Kafka as Broker;
use std::collections::HashMap;
use std::sync::Arc;

fn start(broker: &Broker, options: &[(&str, &str)]) -> Harness {
    let brokers = broker.brokers();
    let own = [("brokers", &*brokers), ("librdkafka.broker.address.family", "v4")];
    Harness::start(&Kafka, &[&own, options].concat())
}

/// Rows `from..to` of 50 devices in turn.
fn rows(from: u64, to: u64) -> Vec<OutRow> {
    let rows = (from..to).map(|n| {
        let mut entry = entry(n, "t", n.to_string());
        entry.key = format!("dev-{}", n % 50).into();
        OutRow { seq: n, entry: Arc::new(entry), again: false, late: false }
    });
    rows.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_killed_and_paused_loses_doubles_and_reorders_nothing() {
    let mut broker = Broker::start();
    broker.create_topic("t", 3);
    let mut sink = start(&broker, &[("topic", "t")]);
    sink.until_up().await;
    let mut sent = 0;
    let step = 500;
    for round in 0..3 {
        for _ in 0..10 {
            sink.send(rows(sent, sent + step)).await;
            sent += step;
        }
        sink.until_answered(sent as usize - 4_000).await;
        match round {
            0 => broker.kill9(),
            1 => broker.pause(),
            _ => {}
        }
        if round < 2 {
            sink.send(rows(sent, sent + step)).await;
            sent += step;
            let error = sink.until_down().await;
            assert!(error.contains(&broker.brokers()), "{error}");
            if round == 0 { broker.restart() } else { broker.resume() }
        }
        sink.until_answered(sent as usize).await;
    }
    assert!(sink.stop().await.values().all(|d| *d == YES));
    let records = broker.read("t");
    assert_eq!(records.len() as u64, sent);
    let mut last: HashMap<String, (u32, i64)> = HashMap::new();
    for record in records {
        let (n, key) = (record.value.parse::<i64>().unwrap(), record.key.unwrap());
        let before = last.insert(key, (record.partition, n));
        if let Some((partition, earlier)) = before {
            assert_eq!(partition, record.partition);
            assert_eq!(n, earlier + 50, "of each device every row, in order");
        }
    }
    assert_eq!(last.len(), 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_and_rows_that_kafka_refuses() {
    let broker = Broker::start();
    broker.create_topic("t", 1);
    a_record_carries_its_identity(&broker).await;
    a_missing_topic_holds_up_its_own_rows_only(&broker).await;
    poison_rows_are_discarded_behind_those_before_them(&broker).await;
    the_configured_topic_is_looked_for_at_the_start(&broker).await;
}

async fn a_record_carries_its_identity(broker: &Broker) {
    let mut sink = start(broker, &[("topic", "t")]);
    let mut keyless = entry(2, "t", "two");
    (keyless.key, keyless.username) = ("".into(), Some("u".into()));
    sink.send(vec![
        row(1, "", "one"),
        OutRow { seq: 2, entry: Arc::new(keyless), again: false, late: false },
    ])
    .await;
    sink.until_answered(2).await;
    assert!(sink.stop().await.values().all(|d| *d == YES));
    let records = broker.read("t");
    let told: Vec<_> = records.iter().map(|r| (r.key.as_deref(), &*r.value, &*r.headers)).collect();
    let headers = "ferrule-origin:edge-1,ferrule-id:7.0.1,ferrule-rule:11,ferrule-row:0,ferrule-at:1764022070123,ferrule-hops:1,\
                   ferrule-client:dev";
    let second = format!("{},ferrule-user:u", headers.replace("7.0.1", "7.0.2"));
    assert_eq!(told, [(Some("dev"), "one", headers), (None, "two", &second)]);
}

async fn a_missing_topic_holds_up_its_own_rows_only(broker: &Broker) {
    let mut sink = start(broker, &[]);
    sink.send((0..20).map(|n| row(n, "later", n.to_string())).collect()).await;
    // A slow start may first be taken for a broker that does not answer.
    while !sink.until_down().await.contains("--create --topic later") {}
    sink.send(vec![row(20, "t", "x"), row(21, "a b", "x"), row(22, "", "x"), row(23, "later", "23")]).await;
    sink.until_answered(3).await;
    let target = Delivered::Discarded(Reason::Target);
    assert_eq!(sink.verdicts(), [YES, target.clone(), target]);
    broker.create_topic("later", 1);
    sink.until_answered(24).await;
    sink.stop().await;
    let values: Vec<u64> = broker.read("later").iter().map(|r| r.value.parse().unwrap()).collect();
    assert_eq!(values, (0..20).chain([23]).collect::<Vec<_>>());
}

async fn poison_rows_are_discarded_behind_those_before_them(broker: &Broker) {
    broker.create_topic("poison", 1);
    let large = |n: u64, bytes: usize| row(n, "poison", "x".repeat(bytes));
    // Refused by the client at once; by the broker, since here the client lets more through.
    for options in [&[][..], &[("librdkafka.message.max.bytes", "9000000"), ("compression", "none")][..]] {
        let mut sink = start(broker, options);
        sink.send(
            (0..300)
                .map(|n| if n % 100 == 50 { large(n, 2_000_000) } else { row(n, "poison", n.to_string()) })
                .collect(),
        )
        .await;
        let mut order = Vec::new();
        while sink.answers.len() < 300 {
            if let ConsumerEvent::Done(answers) = sink.event().await {
                order.extend(answers);
            }
        }
        for (at, (seq, delivered)) in order.iter().enumerate() {
            if seq % 100 == 50 {
                assert_eq!(*delivered, Delivered::Discarded(Reason::TooLarge));
                let earlier = order[..at].iter().filter(|(s, _)| s < seq).count() as u64;
                assert_eq!(earlier, *seq, "all earlier rows are answered before {seq}");
            } else {
                assert_eq!(*delivered, YES, "{seq}");
            }
        }
        sink.stop().await;
    }
    assert_eq!(broker.record_count("poison"), 594);
}

async fn the_configured_topic_is_looked_for_at_the_start(broker: &Broker) {
    let mut sink = start(broker, &[("topic", "nowhere")]);
    let error = sink.until_down().await;
    assert!(error.contains("--create --topic nowhere"), "{error}");
    // Rows for another topic go all the same, also after the first of its own has waited.
    sink.send(vec![row(0, "", "0"), row(1, "t", "1")]).await;
    sink.until_answered(1).await;
    assert_eq!(sink.answers.get(&1), Some(&YES));
    sink.until_down().await;
    sink.send(vec![row(2, "t", "2")]).await;
    sink.until_answered(2).await;
    assert_eq!(sink.answers.get(&2), Some(&YES));
    broker.create_topic("nowhere", 1);
    sink.until_answered(3).await;
    sink.stop().await;
}
