//! `-D COMMAND NAME VALUE`: properties of packets by mosquitto's names.

use ferrule_mqtt::{PropertiesBuf, Property};

/// The packet that a property is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Connect,
    Publish,
    Subscribe,
    Unsubscribe,
    Disconnect,
    Will,
}

const COMMANDS: [(&str, Command); 6] = [
    ("connect", Command::Connect),
    ("publish", Command::Publish),
    ("subscribe", Command::Subscribe),
    ("unsubscribe", Command::Unsubscribe),
    ("disconnect", Command::Disconnect),
    ("will", Command::Will),
];

/// All that were given.
#[derive(Debug, Default)]
pub(super) struct Given([PropertiesBuf; COMMANDS.len()]);

impl Given {
    /// Words as clap collects them: three for each property, four for a user property.
    ///
    /// # Errors
    /// mosquitto's words for what is wrong.
    pub(super) fn read(words: &[String]) -> Result<Self, String> {
        let mut given = Self::default();
        let mut rest = words;
        while let [command, name, value, more @ ..] = rest {
            let command = COMMANDS.iter().find(|(known, _)| known == command);
            let (_, command) = command.ok_or("Error: Invalid command given in --property argument.")?;
            let properties = &mut given.0[*command as usize];
            if name == "user-property" {
                let [second, more @ ..] = more else {
                    return Err(
                        "Error: --property argument user-property needs a name and a value.".to_owned()
                    );
                };
                properties.push(Property::UserProperty(value, second)).map_err(|e| e.to_string())?;
                rest = more;
            } else {
                push(properties, *command, name, value)?;
                rest = more;
            }
        }
        if rest.is_empty() {
            Ok(given)
        } else {
            Err("Error: --property argument has too few words.".to_owned())
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(PropertiesBuf::is_empty)
    }

    pub(super) fn of(&self, command: Command) -> &PropertiesBuf {
        &self.0[command as usize]
    }
}

fn push(properties: &mut PropertiesBuf, command: Command, name: &str, value: &str) -> Result<(), String> {
    use Command::{Connect, Disconnect, Publish, Subscribe, Will};
    fn number<T: TryFrom<u64>>(name: &str, value: &str) -> Result<T, String> {
        let number = value.parse::<u64>().ok().and_then(|n| T::try_from(n).ok());
        number.ok_or_else(|| format!("Error: Property value ({value}) out of range for property {name}."))
    }
    let flag = || match value {
        "0" => Ok(false),
        "1" => Ok(true),
        _ => Err(format!("Error: Property value ({value}) out of range for property {name}.")),
    };
    let (property, allowed): (Property<'_>, &[Command]) = match name {
        "payload-format-indicator" => (Property::PayloadFormatIndicator(flag()?), &[Publish, Will]),
        "message-expiry-interval" => {
            (Property::MessageExpiryInterval(number(name, value)?), &[Publish, Will])
        }
        "content-type" => (Property::ContentType(value), &[Publish, Will]),
        "response-topic" => (Property::ResponseTopic(value), &[Publish, Will]),
        "correlation-data" => (Property::CorrelationData(value.as_bytes()), &[Publish, Will]),
        "topic-alias" => (Property::TopicAlias(number(name, value)?), &[Publish]),
        "subscription-identifier" => (Property::SubscriptionIdentifier(number(name, value)?), &[Subscribe]),
        "session-expiry-interval" => {
            (Property::SessionExpiryInterval(number(name, value)?), &[Connect, Disconnect])
        }
        "authentication-method" => (Property::AuthenticationMethod(value), &[Connect]),
        "authentication-data" => (Property::AuthenticationData(value.as_bytes()), &[Connect]),
        "request-problem-information" => (Property::RequestProblemInformation(flag()?), &[Connect]),
        "request-response-information" => (Property::RequestResponseInformation(flag()?), &[Connect]),
        "receive-maximum" => (Property::ReceiveMaximum(number(name, value)?), &[Connect]),
        "topic-alias-maximum" => (Property::TopicAliasMaximum(number(name, value)?), &[Connect]),
        "maximum-packet-size" => (Property::MaximumPacketSize(number(name, value)?), &[Connect]),
        "will-delay-interval" => (Property::WillDelayInterval(number(name, value)?), &[Will]),
        _ => return Err(format!("Error: Invalid property name given in --property argument: {name}.")),
    };
    if !allowed.contains(&command) {
        return Err(format!("Error: Property {name} does not belong to that packet in --property argument."));
    }
    // What was promised about aliases is not kept here: none are understood.
    if name == "topic-alias-maximum" && value != "0" {
        return Err(
            "Error: topic aliases from the broker are not understood: leave topic-alias-maximum out."
                .to_owned(),
        );
    }
    properties.push(property).map_err(|e| format!("Error: property {name}: {e}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn words_become_properties() {
        let given = Given::read(&words(
            "publish user-property a b publish content-type x will will-delay-interval 5 publish user-property c d",
        ))
        .unwrap();
        let publish: Vec<_> = given.of(Command::Publish).as_properties().iter().collect();
        let pair = Property::UserProperty;
        assert_eq!(publish, [pair("a", "b"), Property::ContentType("x"), pair("c", "d")]);
        assert_eq!(given.of(Command::Will).as_properties().iter().count(), 1);
        assert!(given.of(Command::Connect).is_empty() && !given.is_empty());
        for wrong in [
            "nonsense x y",
            "publish topic-alias 99999",
            "publish topic-alias 0",
            "publish nonsense 1",
            "connect content-type x",
            "publish user-property a",
            "publish payload-format-indicator 2",
        ] {
            assert!(Given::read(&words(wrong)).is_err(), "{wrong}");
        }
    }
}
