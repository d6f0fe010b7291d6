//! The uplink against brokers as strict as those of cloud providers: nothing that it sends ends the connection.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use bytes::Bytes;
use common::broker::{DEADLINE, Outbox, config};
use common::front::{Files, Front, HOUR_S, now_s};
use common::{entry, row_of};
use ferrule_link::preset::token;
use ferrule_link::uplink::RENEW_AHEAD_S;
use ferrule_link::{Alpn, IdentityMode, Preset, Server, UplinkConfig};
use ferrule_mqtt::{PropertiesBuf, Property, Version};
use ferrule_outbox::receipt::Reason;
use ferrule_outbox::{Delivered, OutRow};
use ferrule_store::Stamp;
use ferrule_testkit::fake_cloud::Fake;
use ferrule_testkit::{fake_aws_iot, fake_azure_hub};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

const HUB: &str = "127.0.0.1";
const KEY: &[u8] = b"0123456789abcdef";

fn row(
    seq: u64,
    topic: &str,
    payload: usize,
    change: impl FnOnce(&mut ferrule_store::record::Entry),
) -> OutRow {
    let mut entry = entry(seq, "press-7");
    entry.target = topic.into();
    entry.payload = Bytes::from(vec![b'x'; payload]);
    change(&mut entry);
    row_of(entry)
}

fn preset(server: &Server, preset: Preset, change: impl FnOnce(&mut UplinkConfig)) -> UplinkConfig {
    let mut config = config(&[server]);
    config.preset = Some(preset);
    config.identity = IdentityMode::Never;
    config.keep_alive = Duration::from_secs(60);
    config.clock = Arc::new(|| Stamp { wall_ms: now_s() * 1000, mono_us: 0, synced: true });
    change(&mut config);
    config
}

fn azure(fake: &Fake, change: impl FnOnce(&mut UplinkConfig)) -> UplinkConfig {
    let server = Server::new("127.0.0.1", fake.addr().port());
    preset(&server, Preset::AzureIotHub, |config| {
        config.version = Version::V3_1_1;
        config.shared_key = Some(KEY.to_vec());
        change(config);
    })
}

/// A hub that knows press-7's key.
fn hub() -> Fake {
    let signed = |text: &str, signature: &str| {
        let (_, until) = text.split_once('\n').unwrap();
        let right = token(HUB, "press-7", KEY, until.parse().unwrap());
        let right = right.split('&').find_map(|field| field.strip_prefix("sig=")).unwrap();
        fake_azure_hub::unescaped(right).as_deref() == Some(signature)
    };
    fake_azure_hub::start(HUB, Box::new(signed))
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let wait = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test]
async fn what_aws_would_end_the_connection_over_is_given_up_and_the_rest_arrives() {
    let fake = fake_aws_iot::start();
    let server = Server::new("127.0.0.1", fake.addr().port());
    let eight = "1/2/3/4/5/6/7/8";
    let rows = vec![
        row(1, "plain", 5, |_| ()),
        row(2, eight, 5, |entry| entry.retain = true),
        row(3, &format!("{eight}/9"), 5, |_| ()),
        row(4, &"t".repeat(256), 5, |_| ()),
        row(5, &"t".repeat(257), 5, |_| ()),
        row(6, "large", 128 * 1024, |_| ()),
        row(7, "larger", 128 * 1024 + 1, |_| ()),
        row(8, "twice", 5, |entry| entry.qos = 2),
    ];
    let mut outbox = Outbox::start(preset(&server, Preset::AwsIotCore, |_| ()), rows);
    outbox.all("aws").await;
    let given_up: Vec<_> = outbox.answers.iter().filter(|(_, answer)| **answer != Delivered::Yes).collect();
    let target = Delivered::Discarded(Reason::Target);
    let large = Delivered::Discarded(Reason::TooLarge);
    assert_eq!(given_up, [(&3, &target), (&5, &target), (&7, &large)]);
    let topics: Vec<String> = fake.taken().into_iter().map(|taken| taken.topic).collect();
    assert_eq!(topics, ["plain", eight, &"t".repeat(256), "large", "twice"]);
    assert!(fake.taken()[1].retain, "AWS keeps retained messages");
    assert_eq!((fake.breaches(), fake.connects(), outbox.ups), (Vec::new(), 1, 1));
}

#[tokio::test]
async fn the_fake_ends_the_connection_over_what_the_preset_holds_back() {
    let fake = fake_aws_iot::start();
    let server = Server::new("127.0.0.1", fake.addr().port());
    let rows = vec![row(1, "1/2/3/4/5/6/7/8/9", 5, |_| ())];
    let config = preset(&server, Preset::AwsIotCore, |config| config.preset = None);
    let mut outbox = Outbox::start(config, rows);
    outbox.until("down", |outbox| !outbox.downs.is_empty()).await;
    until("the breach is told", || !fake.breaches().is_empty()).await;
    assert!(fake.breaches()[0].contains("8 slashes"), "{:?}", fake.breaches());
}

#[tokio::test]
async fn at_443_aws_is_asked_for_mqtt_by_its_own_name_with_a_certificate() {
    let fake = fake_aws_iot::start();
    let inner = Server::new("127.0.0.1", fake.addr().port());
    let files = Files::new();
    let layers = files.mutual(|files| files.alpn = vec![b"x-amzn-mqtt-ca".to_vec()]);
    let front = Front::start(layers, &inner).await;
    *front.alpn.lock().unwrap() = Some(b"x-amzn-mqtt-ca");
    let client = files.client("press-7", now_s() + HOUR_S);
    for (alpn, works) in [(Alpn::Named(b"x-amzn-mqtt-ca"), true), (Alpn::Mqtt, false), (Alpn::Off, false)] {
        front.faults.lock().unwrap().clear();
        let mut tls = files.tls_with(client.clone());
        tls.alpn = alpn;
        let config = preset(&front.server, Preset::AwsIotCore, |config| config.tls = tls);
        let mut outbox = Outbox::start(config, vec![row(1, "plain", 5, |_| ())]);
        if works {
            outbox.all("443").await;
        } else {
            outbox.until("down", |outbox| !outbox.downs.is_empty()).await;
            until("it is told why", || !front.faults.lock().unwrap().is_empty()).await;
        }
        let faults = front.faults.lock().unwrap().clone();
        assert_eq!(
            (outbox.ups > 0, faults.is_empty()),
            (works, works),
            "{alpn:?}: {:?} {faults:?}",
            outbox.downs
        );
        assert!(faults.iter().all(|fault| fault == "no ALPN x-amzn-mqtt-ca"), "{faults:?}");
        outbox.stop().await;
    }
    assert!(fake.breaches().is_empty(), "{:?}", fake.breaches());
}

#[tokio::test]
async fn an_iot_hub_gets_everything_as_events_with_the_topic_as_a_property() {
    let fake = hub();
    let mut own = PropertiesBuf::new();
    own.push(Property::ContentType("application/json")).unwrap();
    own.push(Property::UserProperty("shift", "B & C")).unwrap();
    let own = Bytes::copy_from_slice(own.as_properties().as_bytes());
    let rows = vec![
        row(1, "hall/press 7/täglich", 5, |entry| entry.retain = true),
        row(2, "t", 5, |entry| entry.properties = own),
        row(3, "devices/press-7/messages/events/$.ct=a&b=c", 5, |_| ()),
        row(4, "large", 256 * 1024, |_| ()),
    ];
    let mut outbox = Outbox::start(azure(&fake, |_| ()), rows);
    outbox.all("azure").await;
    let topics: Vec<String> = fake.taken().into_iter().map(|taken| taken.topic).collect();
    let events = "devices/press-7/messages/events/";
    assert_eq!(
        topics,
        [
            format!("{events}topic=hall%2Fpress%207%2Ft%C3%A4glich&mqtt-retain=true"),
            format!("{events}topic=t&%24.ct=application%2Fjson&shift=B%20%26%20C"),
            format!("{events}$.ct=a&b=c"),
        ]
    );
    assert_eq!(
        outbox.answers[&4],
        Delivered::Discarded(Reason::TooLarge),
        "with its properties it is too large"
    );
    assert_eq!((fake.breaches(), fake.connects()), (Vec::new(), 1));
}

#[tokio::test]
async fn a_wrong_key_is_refused_and_told() {
    let fake = hub();
    let config = azure(&fake, |config| config.shared_key = Some(b"another".to_vec()));
    let mut outbox = Outbox::start(config, vec![row(1, "t", 5, |_| ())]);
    outbox.until("down", |outbox| !outbox.downs.is_empty()).await;
    assert_eq!((outbox.ups, fake.connects()), (0, 0));
    assert!(outbox.downs[0].contains("Not authorized"), "{:?}", outbox.downs);
    until("the breach is told", || !fake.breaches().is_empty()).await;
    assert!(fake.breaches()[0].contains("another key"), "{:?}", fake.breaches());
}

#[tokio::test]
async fn the_connection_moves_to_a_new_token_before_the_old_one_ends() {
    let fake = hub();
    let config = azure(&fake, |config| {
        config.token_life = Duration::from_secs(u64::try_from(RENEW_AHEAD_S).unwrap() + 2);
    });
    let mut outbox = Outbox::start(config, (1..=3).map(|seq| row(seq, "t", 5, |_| ())));
    outbox.all("first").await;
    until("two more connections", || fake.connects() >= 3).await;
    assert!(outbox.downs.is_empty(), "{:?}", outbox.downs);
    assert_eq!((fake.breaches(), fake.taken().len()), (Vec::new(), 3));
    outbox.stop().await;
}
