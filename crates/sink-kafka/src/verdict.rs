//! What a failed record means, by librdkafka's code, never by text.

use ferrule_sinks::Reason;
use rdkafka::types::RDKafkaErrorCode as Code;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The record is at fault, or another one in its batch: send it alone; if it was alone, discard it.
    Suspect(Reason),
    /// Send it again, in order.
    Again,
    /// It can never be sent.
    Discard(Reason),
    /// The topic cannot be used for now: why, for people.
    Topic(String),
    /// The producer is of no use any more.
    Fatal,
}

/// Judges a delivery report, or the refusal to take a record.
pub(crate) fn of(code: Code, topic: &str, brokers: &str) -> Verdict {
    match code {
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidMessageSize => {
            Verdict::Suspect(Reason::TooLarge)
        }
        Code::InvalidRecord
        | Code::InvalidMessage
        | Code::InvalidTimestamp
        | Code::PolicyViolation
        | Code::UnsupportedForMessageFormat => Verdict::Suspect(Reason::Refused),
        // KIP-467: the broker named another record of the batch.
        Code::InvalidDifferentRecord | Code::MessageTimedOut | Code::Retry => Verdict::Again,
        Code::InvalidTopic | Code::InvalidArgument => Verdict::Discard(Reason::Target),
        Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition => {
            Verdict::Topic(format!(
                "Kafka at {brokers} has no topic {topic}: create it: kafka-topics --bootstrap-server {brokers} --create --topic {topic}"
            ))
        }
        Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed => Verdict::Topic(format!(
            "Kafka at {brokers} does not permit writing to topic {topic}: give the user WRITE and DESCRIBE on it, and \
             IDEMPOTENT_WRITE on the cluster"
        )),
        Code::Fatal
        | Code::GaplessGuarantee
        | Code::Fenced
        | Code::ProducerFenced
        | Code::InvalidProducerEpoch
        | Code::InvalidProducerIdMapping
        | Code::UnknownProducerId
        | Code::OutOfOrderSequenceNumber
        | Code::DuplicateSequenceNumber
        | Code::PurgeQueue
        | Code::PurgeInflight
        | Code::DestroyBroker => Verdict::Fatal,
        other => Verdict::Topic(format!("Kafka at {brokers}, topic {topic}: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_a_meaning() {
        for (code, verdict) in [
            (Code::MessageSizeTooLarge, Verdict::Suspect(Reason::TooLarge)),
            (Code::InvalidRecord, Verdict::Suspect(Reason::Refused)),
            (Code::InvalidDifferentRecord, Verdict::Again),
            (Code::InvalidTopic, Verdict::Discard(Reason::Target)),
            (Code::Fatal, Verdict::Fatal),
        ] {
            assert_eq!(of(code, "t", "b"), verdict, "{code}");
        }
        assert!(
            matches!(of(Code::UnknownTopic, "t", "b:1"), Verdict::Topic(why) if why.contains("--create --topic t"))
        );
        assert!(matches!(of(Code::NotEnoughReplicas, "t", "b:1"), Verdict::Topic(_)));
    }
}
