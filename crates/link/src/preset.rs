//! Brokers of cloud providers, which end the connection over what MQTT allows. Pure.
//!
//! # Constraints
//! AWS IoT Core and Azure IoT Hub take a part of MQTT. A message that breaks their rules ends the connection, and everything in flight
//! comes again, so it is found here, before it is sent, and given up with its reason. What they demand is from their documentation
//! (AWS: "AWS IoT Core message broker and protocol limits and quotas", "Device communication protocols"; Azure: "Communicate with an IoT hub
//! using the MQTT protocol", "Control access to IoT Hub by using shared access signatures"), not from trials with them.
//!
//! # Azure
//! A device publishes to one topic, `devices/{device}/messages/events/`, behind which comes a bag of properties, encoded as in a URL. A row's own
//! topic goes there (`topic`), its content type (`$.ct`), its retain flag (`mqtt-retain`) and, when its device spoke MQTT 5, its user
//! properties. A row whose topic is such a one stays as it is.
//!
//! A device logs in with a certificate or a token: the hub's name, the device's and a time, signed with the device's key
//! ([`token`]). The hub ends the connection at that time, so the uplink moves to the next one before ([`crate::uplink`], renewal).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ferrule_mqtt::Properties;
use ferrule_outbox::receipt::Reason;
use ferrule_store::record::Entry;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::Duration;

/// How long a token is good for. Whoever reads it has the device until then; each renewal is a new connection.
pub const TOKEN_LIFE: Duration = Duration::from_secs(3600);

/// The version of Azure's protocol that is spoken.
const AZURE_API: &str = "2021-04-12";

/// ALPN by which AWS tells MQTT from HTTPS at port 443.
pub const AWS_ALPN: &[u8] = b"x-amzn-mqtt-ca";

/// Whose broker it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// AWS IoT Core.
    AwsIotCore,
    /// Azure IoT Hub.
    AzureIotHub,
}

impl Preset {
    /// As in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AwsIotCore => "aws-iot-core",
            Self::AzureIotHub => "azure-iot-hub",
        }
    }

    /// The largest payload, in bytes; Azure counts the properties, too.
    #[must_use]
    pub fn payload_max(self) -> usize {
        match self {
            Self::AwsIotCore => 128 * 1024,
            Self::AzureIotHub => 256 * 1024,
        }
    }

    /// The user name that the broker expects, if it expects one.
    #[must_use]
    pub fn username(self, host: &str, device: &str) -> Option<String> {
        match self {
            Self::AwsIotCore => None,
            Self::AzureIotHub => Some(format!("{host}/{device}/?api-version={AZURE_API}")),
        }
    }

    /// The topic of `entry` there, and whether it may be retained; `own` are its properties.
    ///
    /// # Errors
    /// Why it must not be sent.
    pub fn shape<'a>(
        self,
        device: &str,
        entry: &'a Entry,
        own: Properties<'_>,
    ) -> Result<(Cow<'a, str>, bool), Reason> {
        let (topic, retain) = match self {
            Self::AwsIotCore => {
                // "256 bytes of UTF-8", "at most seven forward slashes".
                if entry.target.len() > 256 || entry.target.matches('/').count() > 7 {
                    return Err(Reason::Target);
                }
                (Cow::Borrowed(&*entry.target), entry.retain)
            }
            Self::AzureIotHub => (events_topic(device, entry, own), false),
        };
        let bytes = match self {
            Self::AwsIotCore => entry.payload.len(),
            Self::AzureIotHub => entry.payload.len() + topic.len(),
        };
        if bytes > self.payload_max() {
            return Err(Reason::TooLarge);
        }
        Ok((topic, retain))
    }
}

fn events_topic<'a>(device: &str, entry: &'a Entry, own: Properties<'_>) -> Cow<'a, str> {
    let events = format!("devices/{device}/messages/events/");
    if entry.target.starts_with(&events) {
        return Cow::Borrowed(&entry.target);
    }
    let mut topic = format!("{events}topic={}", escaped(&entry.target));
    if entry.retain {
        topic.push_str("&mqtt-retain=true");
    }
    if let Some(kind) = own.content_type() {
        let _ = write!(topic, "&%24.ct={}", escaped(kind));
    }
    for (name, value) in own.user_properties() {
        let _ = write!(topic, "&{}={}", escaped(name), escaped(value));
    }
    Cow::Owned(topic)
}

/// A token by which `device` logs in at the hub `host` until `until_s` (seconds since 1970).
#[must_use]
pub fn token(host: &str, device: &str, key: &[u8], until_s: i64) -> String {
    let resource = escaped(&format!("{host}/devices/{device}"));
    let mut mac = Hmac::<Sha256>::new_from_slice(key)
        .unwrap_or_else(|error| unreachable!("HMAC takes keys of all lengths: {error}"));
    mac.update(format!("{resource}\n{until_s}").as_bytes());
    let signature = STANDARD.encode(mac.finalize().into_bytes());
    format!("SharedAccessSignature sr={resource}&sig={}&se={until_s}", escaped(&signature))
}

/// A device's key as Azure shows it: base64.
#[must_use]
pub fn key(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text.trim()).ok().filter(|key| !key.is_empty())
}

/// As in a URL (RFC 3986, 2.3): all but unreserved characters as `%` and two digits.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_the_one_that_other_programs_make() {
        // Made by Python's hmac, hashlib and urllib.parse.quote_plus.
        let made = token("hub.azure-devices.net", "press-7", b"0123456789abcdef", 1_800_000_000);
        assert_eq!(
            made,
            "SharedAccessSignature sr=hub.azure-devices.net%2Fdevices%2Fpress-7&sig=dVPKQWwv9zIaQFU%2BTh%2BQb%2FL%2BBxyVjKEfHDCcDy0IESQ%3D&se=1800000000"
        );
        assert_eq!(key("MDEyMzQ1Njc4OWFiY2RlZg==\n"), Some(b"0123456789abcdef".to_vec()));
        assert_eq!((key("no base64!"), key("")), (None, None));
    }
}
