//! The Kafka sink against librdkafka's own mock cluster, which answers with the errors that a healthy broker never gives.
#![allow(clippy::unwrap_used, reason = "tests")]

use ferrule_sink_kafka::Kafka;
use ferrule_sinks::harness::{Harness, REFUSED, YES, row};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

fn cluster() -> MockCluster<'static, DefaultProducerContext> {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("t", 1, 1).unwrap();
    cluster
}

fn start(cluster: &MockCluster<'_, DefaultProducerContext>) -> Harness {
    Harness::start(&Kafka, &[("brokers", &cluster.bootstrap_servers()), ("topic", "t")])
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_fatal_error_a_new_producer_sends_all_again() {
    let cluster = cluster();
    let mut sink = start(&cluster);
    sink.send(vec![row(0, "", "0")]).await;
    sink.until_answered(1).await;
    // Said of the very next sequence number, it means that broker and producer no longer agree on what was written.
    let error = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
    cluster.request_errors(RDKafkaApiKey::Produce, &[error]);
    sink.send((1..100).map(|n| row(n, "", n.to_string())).collect()).await;
    sink.until_answered(100).await;
    assert_eq!(sink.downs.len(), 1, "{:?}", sink.downs);
    assert!(sink.stop().await.values().all(|d| *d == YES));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_blamed_is_tried_row_by_row() {
    let cluster = cluster();
    let mut sink = start(&cluster);
    sink.send(vec![row(0, "", "0")]).await;
    sink.until_answered(1).await;
    // The batch, then the first row alone; the others are innocent.
    let error = RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_RECORD;
    cluster.request_errors(RDKafkaApiKey::Produce, &[error, error]);
    sink.send((1..10).map(|n| row(n, "", n.to_string())).collect()).await;
    sink.until_answered(10).await;
    let refused: Vec<_> = sink.answers.iter().filter(|(_, d)| **d == REFUSED).map(|(seq, _)| *seq).collect();
    assert_eq!(refused, [1]);
    assert!(sink.downs.is_empty(), "{:?}", sink.downs);
    sink.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_not_permitted_waits_for_the_permission() {
    let cluster = cluster();
    let mut sink = start(&cluster);
    sink.until_up().await;
    let error = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    cluster.request_errors(RDKafkaApiKey::Produce, &[error, error]);
    sink.send((0..10).map(|n| row(n, "", n.to_string())).collect()).await;
    let error = sink.until_down().await;
    assert!(error.contains("does not permit"), "{error}");
    sink.until_answered(10).await;
    assert!(sink.stop().await.values().all(|d| *d == YES));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_taken_beyond_the_window_while_no_broker_is_there() {
    // A port that was free a moment ago: refused, or silent, but no Kafka.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut sink = Harness::start(&Kafka, &[("brokers", &*format!("127.0.0.1:{port}")), ("topic", "t")]);
    for batch in 0..12 {
        sink.send((0..1_000).map(|n| row(batch * 1_000 + n, "", "x")).collect()).await;
    }
    sink.until_down().await;
    while sink.untaken() != 2 {
        tokio::task::yield_now().await;
    }
    assert!(sink.answers.is_empty());
    sink.abandon();
}
