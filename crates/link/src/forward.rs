//! What a row of the outbox looks like on the uplink: a forwarded message.
//!
//! The MQTT client of an uplink is the gateway, so the device's identity travels in user properties. They come
//! first, then what the device itself had set. A device's own user properties named `ferrule-*` never leave: behind
//! them a device could pass for another one.

use ferrule_batch::Item;
use ferrule_mqtt::{PacketType, Properties, PropertiesBuf, Property, PropertyId, PropertyScope};
use ferrule_outbox::receipt::Reason;
use ferrule_store::record::Entry;
use ferrule_store::{Boot, Stamp};
use std::time::Duration;

/// A message that has passed more brokers than this runs in a circle.
pub const HOPS_MAX: u8 = 8;

/// Builds the properties of one PUBLISH after another in buffers that it keeps.
#[derive(Debug)]
pub struct Forwarder {
    boot: Boot,
    /// Whether identity properties are sent on this connection.
    identity: bool,
    age_max_ms: u64,
    properties: PropertiesBuf,
    /// What the device itself had set.
    own: PropertiesBuf,
    text: String,
}

impl Forwarder {
    /// `boot` is this process life; `identity` whether the receiver gets identity properties.
    #[must_use]
    pub fn new(boot: Boot, identity: bool) -> Self {
        Self {
            boot,
            identity,
            age_max_ms: u64::MAX,
            properties: PropertiesBuf::new(),
            own: PropertiesBuf::new(),
            text: String::new(),
        }
    }

    /// Rows that have waited longer are not sent.
    #[must_use]
    pub fn with_age_max(mut self, age_max: Option<Duration>) -> Self {
        self.age_max_ms = age_max.map_or(u64::MAX, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        self
    }

    /// The properties of `entry`, sent at `now`; `late`: ahead of it rows went that came after it.
    ///
    /// # Errors
    /// Why it must not be sent: [`Reason::Loop`], [`Reason::Expired`], [`Reason::Age`].
    pub fn properties(&mut self, entry: &Entry, late: bool, now: &Stamp) -> Result<Properties<'_>, Reason> {
        let (hops, age_ms) = self.admit(entry, now)?;
        self.properties.clear();
        if self.identity {
            item(entry, late, hops, age_ms, &self.own).say(&mut self.text, &mut self.properties);
        }
        self.properties.extend(self.own.as_properties(), |_| true);
        Ok(self.properties.as_properties())
    }

    /// `entry`, sent at `now`, as a message of a batch.
    ///
    /// # Errors
    /// As [`Forwarder::properties`].
    pub fn item<'a>(&'a mut self, entry: &'a Entry, late: bool, now: &Stamp) -> Result<Item<'a>, Reason> {
        let (hops, age_ms) = self.admit(entry, now)?;
        Ok(item(entry, late, hops, age_ms, &self.own))
    }

    /// Brokers passed and age, if it may be sent; what the device itself had set is in `own` then.
    fn admit(&mut self, entry: &Entry, now: &Stamp) -> Result<(u8, u64), Reason> {
        // The entry counts the brokers before this one, the wire the brokers before the receiver.
        let hops = entry.hops.saturating_add(1);
        if hops > HOPS_MAX {
            return Err(Reason::Loop);
        }
        let age_ms = entry.age_ms(self.boot, now);
        if age_ms > self.age_max_ms {
            return Err(Reason::Age);
        }
        self.own.clear();
        // Encoded by us when the row was made. Should they be damaged, the message is worth more than they are.
        let own = Properties::checked(&entry.properties, PropertyScope::Packet(PacketType::Publish));
        let own = own.unwrap_or(Properties::EMPTY);
        if let Some(expiry_s) = own.message_expiry_interval() {
            // [MQTT-3.3.2-6], by the lower bound of the age: never too early.
            let left_s = u64::from(expiry_s).saturating_sub(age_ms / 1000);
            if left_s == 0 && expiry_s > 0 {
                return Err(Reason::Expired);
            }
            self.put(Property::MessageExpiryInterval(u32::try_from(left_s).unwrap_or(u32::MAX)));
        }
        for property in own.iter() {
            match property {
                Property::UserProperty(name, _) if name.starts_with("ferrule-") => {}
                Property::PayloadFormatIndicator(_)
                | Property::ContentType(_)
                | Property::ResponseTopic(_)
                | Property::CorrelationData(_)
                | Property::UserProperty(..) => self.put(property),
                // Of one hop only: TopicAlias, SubscriptionIdentifier; written above: MessageExpiryInterval.
                _ => debug_assert!(
                    matches!(
                        property.id(),
                        PropertyId::TopicAlias
                            | PropertyId::SubscriptionIdentifier
                            | PropertyId::MessageExpiryInterval
                    ),
                    "{property:?} passed the check of a PUBLISH"
                ),
            }
        }
        Ok((hops, age_ms))
    }

    fn put(&mut self, property: Property<'_>) {
        // They came in as MQTT's: none is too long to go out as one.
        let _ = self.own.push(property);
    }
}

fn item<'a>(entry: &'a Entry, late: bool, hops: u8, age_ms: u64, own: &'a PropertiesBuf) -> Item<'a> {
    Item {
        acknowledged: entry.qos > 0,
        retain: entry.retain,
        topic: &entry.target,
        id: entry.identity.id(),
        client_id: &entry.client_id,
        username: entry.username.as_deref(),
        at_ms: entry.received.wall_ms,
        synced: entry.received.synced,
        age_ms,
        hops,
        late,
        properties: own.as_properties(),
        payload: &entry.payload,
    }
}
