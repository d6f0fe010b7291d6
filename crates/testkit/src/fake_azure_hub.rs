//! Azure IoT Hub, as its documentation says that it behaves: MQTT 3.1.1 only, a user name of its own form, a token that ends and with it
//! the connection, one topic to publish to, two kinds of filters, no QoS 2. A retain flag, which it would take as a property, is
//! a breach here: that the property is named is on us.

use ferrule_mqtt::{Connect, Publish, QoS, Version};

use crate::fake_cloud::{Fake, Rules};

/// Tells whether the signature of a text, in base64, is right.
pub type Signed = Box<dyn Fn(&str, &str) -> bool + Send + Sync>;

struct AzureHub {
    host: String,
    signed: Signed,
}

/// Starts the hub that calls itself `host`.
///
/// # Panics
/// When there is no free port.
#[must_use]
pub fn start(host: &str, signed: Signed) -> Fake {
    Fake::start(AzureHub { host: host.to_owned(), signed })
}

/// Undoes `%XX`; none when it is damaged.
#[must_use]
pub fn unescaped(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

impl Rules for AzureHub {
    fn connect(&self, connect: &Connect<'_>) -> Result<Option<i64>, String> {
        if connect.version != Version::V3_1_1 {
            return Err(format!("{:?}, only 3.1.1 is spoken", connect.version));
        }
        if connect.keep_alive > 1767 {
            return Err(format!("a keep alive of {} s", connect.keep_alive));
        }
        let device = connect.client_id;
        let expected = format!("{}/{device}/?api-version=2021-04-12", self.host);
        if connect.username != Some(&*expected) {
            return Err(format!("the user name {:?}, expected {expected:?}", connect.username));
        }
        let password = connect.password.and_then(|password| std::str::from_utf8(password).ok());
        let token = password.and_then(|password| password.strip_prefix("SharedAccessSignature "));
        let field = |name: &str| {
            let fields = token?.split('&').filter_map(|field| field.split_once('='));
            fields.into_iter().find(|(found, _)| *found == name).map(|(_, value)| value)
        };
        let (Some(resource), Some(signature), Some(until)) = (field("sr"), field("sig"), field("se")) else {
            return Err("no token".to_owned());
        };
        if unescaped(resource) != Some(format!("{}/devices/{device}", self.host)) {
            return Err(format!("a token for {resource}"));
        }
        let signature = unescaped(signature).ok_or("a damaged signature")?;
        if !(self.signed)(&format!("{resource}\n{until}"), &signature) {
            return Err("a token that is signed with another key".to_owned());
        }
        until.parse().map(Some).map_err(|_| format!("a token until {until:?}"))
    }

    fn publish(&self, client_id: &str, publish: &Publish<'_>) -> Result<(), String> {
        let bag = publish.topic.strip_prefix(&format!("devices/{client_id}/messages/events/"));
        let Some(bag) = bag else { return Err(format!("a message to {}", publish.topic)) };
        let whole = |part: &str| {
            part.split_once('=').is_some_and(|(name, value)| {
                !name.is_empty() && unescaped(name).is_some() && unescaped(value).is_some()
            })
        };
        if !bag.is_empty() && !bag.split('&').all(whole) || bag.contains('/') {
            return Err(format!("the properties {bag}"));
        }
        if publish.retain {
            return Err("a retain flag".to_owned());
        }
        if publish.payload.len() + publish.topic.len() > 256 * 1024 {
            return Err(format!("a message of {} bytes", publish.payload.len()));
        }
        Ok(())
    }

    fn subscribe(&self, client_id: &str, filters: &[(String, QoS)]) -> Result<(), String> {
        let own = format!("devices/{client_id}/messages/devicebound/#");
        match filters.iter().find(|(filter, _)| *filter != own && !filter.starts_with("$iothub/")) {
            Some((filter, _)) => Err(format!("the filter {filter}")),
            None => Ok(()),
        }
    }

    fn receive_max(&self) -> u16 {
        u16::MAX
    }
}
