//! AWS IoT Core, as its documentation says that it behaves: limits of topics, payloads, keep alive and filters, no QoS 2. What it
//! demands of TLS (a client's certificate; ALPN `x-amzn-mqtt-ca` at port 443) is up to what a test puts before it, such as
//! `crates/link/tests/common/front.rs`.

use ferrule_mqtt::{Connect, Publish, QoS};

use crate::fake_cloud::{Fake, Rules};

struct AwsIot;

/// Starts one.
///
/// # Panics
/// When there is no free port.
#[must_use]
pub fn start() -> Fake {
    Fake::start(AwsIot)
}

fn topic(topic: &str) -> Result<(), String> {
    if topic.len() > 256 {
        return Err(format!("a topic of {} bytes, 256 are allowed", topic.len()));
    }
    let slashes = topic.matches('/').count();
    if slashes > 7 {
        return Err(format!("a topic with {slashes} slashes, seven are allowed"));
    }
    Ok(())
}

impl Rules for AwsIot {
    fn connect(&self, connect: &Connect<'_>) -> Result<Option<i64>, String> {
        if connect.client_id.is_empty() || connect.client_id.len() > 128 {
            return Err(format!("a client id of {} bytes", connect.client_id.len()));
        }
        if !(30..=1200).contains(&connect.keep_alive) {
            return Err(format!("a keep alive of {} s, 30 to 1200 are allowed", connect.keep_alive));
        }
        Ok(None)
    }

    fn publish(&self, _: &str, publish: &Publish<'_>) -> Result<(), String> {
        if publish.payload.len() > 128 * 1024 {
            return Err(format!("a payload of {} bytes, 128 KiB are allowed", publish.payload.len()));
        }
        if publish.topic.starts_with('$') && !publish.topic.starts_with("$aws/") {
            return Err(format!("the topic {} is reserved", publish.topic));
        }
        topic(publish.topic)
    }

    fn subscribe(&self, _: &str, filters: &[(String, QoS)]) -> Result<(), String> {
        if filters.len() > 8 {
            return Err(format!("{} filters in a SUBSCRIBE, eight are allowed", filters.len()));
        }
        filters.iter().try_for_each(|(filter, _)| topic(filter))
    }

    fn receive_max(&self) -> u16 {
        100
    }
}
