//! Dead letters: what a destination will never take is published in this broker, where rules, sessions and people find it.
//!
//! The topic is `DEAD_LETTER/OUTBOX/TOPIC`, of `[outbox] dead_letter`, the outbox and the message behind the row; payload and QoS are the
//! row's. User properties tell why (`ferrule-reason`), and where it should have gone (`ferrule-target`).
//!
//! - The row has its last word before: its publisher is not told otherwise, and the letter is a message of QoS 1 like any other from
//!   there on. A kill between the two costs the letter; the row is then tried and refused once more.
//! - A letter has passed one broker more than its row, so rules that send letters where they came from end as all loops do.
//! - What limits give up is no letter: where nothing can be kept, this would keep it.

use std::sync::Arc;

use ferrule_broker::{LocalPublish, Publisher, Role};
use ferrule_mqtt::{PropertiesBuf, Property, QoS, topic};
use ferrule_outbox::Reason;
use ferrule_store::Now;
use ferrule_store::record::Entry;

/// Who writes letters.
pub(super) struct DeadLetters {
    under: Option<Arc<str>>,
    publisher: Arc<Publisher>,
}

impl DeadLetters {
    /// `under`: the first levels of the topic; none: nobody writes.
    pub(super) fn new(under: Option<Arc<str>>) -> Self {
        let publisher =
            Publisher { client_id: "dead-letter".into(), username: None, host: None, role: Role::Device };
        Self { under, publisher: Arc::new(publisher) }
    }

    /// Another topic from now on.
    pub(super) fn set_under(&mut self, under: Option<Arc<str>>) {
        self.under = under;
    }

    /// The letter of a row that `outbox` gave up; none: nobody wants it, or it has no name.
    pub(super) fn letter(
        &self,
        outbox: &str,
        entry: &Entry,
        reason: Reason,
        now: Now,
    ) -> Option<LocalPublish> {
        let under = self.under.as_ref()?;
        let name = format!("{under}/{outbox}/{}", entry.topic);
        topic::validate_name(&name).ok()?;
        let mut properties = PropertiesBuf::new();
        for (key, value) in [("ferrule-reason", reason.as_str()), ("ferrule-target", &entry.target)] {
            // A target that MQTT cannot say is left out.
            let _ = properties.push(Property::UserProperty(key, value));
        }
        Some(LocalPublish {
            topic: name.into(),
            payload: entry.payload.clone(),
            qos: QoS::AtLeastOnce,
            retain: false,
            properties,
            publisher: Arc::clone(&self.publisher),
            received: now.stamp(),
            hops: entry.hops.saturating_add(1),
            path: entry.rule,
            attachment: None,
            hold: false,
            end: None,
        })
    }
}
