//! MQTT 5.

use std::sync::mpsc;

use rumqttc::Outgoing;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnectReturnCode, LastWill, LastWillProperties, Packet, PubAckReason, PubRecReason, Publish,
    PublishProperties, SubscribeProperties, SubscribeReasonCode,
};
use rumqttc::v5::{Client as Sender, ConnectionError, Event, MqttOptions};
use serde_json::{Value, json};

use crate::{Client, Connected, Fault, heard, number, place, qos, text};

struct V5 {
    sender: Sender,
    /// Everything but messages, until the connection's end.
    events: mpsc::Receiver<Event>,
}

fn level(of: &Value) -> QoS {
    rumqttc::v5::mqttbytes::qos(qos(of)).expect("a QoS")
}

fn user(of: &Value) -> Vec<(String, String)> {
    let pair = |pair: &Value| Some((pair[0].as_str()?.to_owned(), pair[1].as_str()?.to_owned()));
    of["user"].as_array().into_iter().flatten().filter_map(pair).collect()
}

fn optional(of: &Value, name: &str) -> Option<String> {
    of[name].as_str().map(str::to_owned)
}

fn properties(of: &Value) -> PublishProperties {
    PublishProperties {
        message_expiry_interval: number(of, "expiry"),
        topic_alias: number(of, "alias").and_then(|alias| alias.try_into().ok()),
        response_topic: optional(of, "response_topic"),
        correlation_data: optional(of, "correlation").map(Into::into),
        user_properties: user(of),
        content_type: optional(of, "content_type"),
        ..PublishProperties::default()
    }
}

fn told(message: Publish) -> Value {
    let of = message.properties.unwrap_or_default();
    json!({
        "topic": String::from_utf8_lossy(&message.topic),
        "payload": String::from_utf8_lossy(&message.payload),
        "qos": message.qos as u8,
        "retain": message.retain,
        "user": of.user_properties,
        "content_type": of.content_type,
        "response_topic": of.response_topic,
        "correlation": of.correlation_data.map(|data| String::from_utf8_lossy(&data).into_owned()),
        "expiry": of.message_expiry_interval,
        "subscriptions": of.subscription_identifiers,
    })
}

pub fn connect(name: &str, command: &Value) -> Result<Connected, Fault> {
    let (host, port, transport) = place(command)?;
    let mut options = MqttOptions::new(name, host, port);
    options.set_transport(transport);
    options.set_clean_start(command["clean"] == true);
    options.set_session_expiry_interval(number(command, "expiry"));
    // Its own limit is 10 KiB.
    options.set_max_packet_size(Some(1 << 20));
    if let Some(max) = number(command, "alias_max") {
        options.set_topic_alias_max(max.try_into().ok());
    }
    if command["username"].is_string() {
        options.set_credentials(text(command, "username"), text(command, "password"));
    }
    if let will @ Value::Object(_) = &command["will"] {
        let properties = LastWillProperties {
            delay_interval: None,
            payload_format_indicator: None,
            message_expiry_interval: None,
            content_type: None,
            response_topic: None,
            correlation_data: None,
            user_properties: user(will),
        };
        let (topic, payload, retain) = (text(will, "topic"), text(will, "payload"), will["retain"] == true);
        options.set_last_will(LastWill::new(topic, payload, level(will), retain, Some(properties)));
    }
    let (sender, mut connection) = Sender::new(options, 100);
    let first = connection.iter().next().ok_or("no connection")?;
    let present = match first {
        Ok(Event::Incoming(Packet::ConnAck(ack))) => ack.session_present,
        Ok(other) => return Err(format!("{other:?}").into()),
        Err(ConnectionError::ConnectionRefused(ConnectReturnCode::BadUserNamePassword)) => {
            return Ok(Err(0x86));
        }
        Err(error) => return Err(error.into()),
    };
    let (ours, events) = mpsc::channel();
    let name = name.to_owned();
    std::thread::spawn(move || {
        // It would connect again after its end.
        for event in connection.iter().map_while(Result::ok) {
            if let Event::Incoming(Packet::Publish(message)) = event {
                heard(&name, told(message));
            } else if ours.send(event).is_err() {
                break;
            }
        }
    });
    Ok(Ok((Box::new(V5 { sender, events }), present)))
}

impl V5 {
    /// Waits for what `wanted` makes a code of.
    fn wait(&self, wanted: impl Fn(Event) -> Option<Result<u8, String>>) -> Result<u8, Fault> {
        while let Ok(event) = self.events.recv() {
            if let Some(code) = wanted(event) {
                return code.map_err(Into::into);
            }
        }
        Err("the connection has ended".into())
    }
}

impl Client for V5 {
    fn subscribe(&mut self, command: &Value) -> Result<u8, Fault> {
        let (filter, level) = (text(command, "filter"), level(command));
        match number(command, "subscription") {
            Some(id) => {
                let properties = SubscribeProperties { id: id.try_into().ok(), user_properties: Vec::new() };
                self.sender.subscribe_with_properties(filter, level, properties)?;
            }
            None => self.sender.subscribe(filter, level)?,
        }
        self.wait(|event| match event {
            Event::Incoming(Packet::SubAck(ack)) => Some(match ack.return_codes[0] {
                SubscribeReasonCode::Success(qos) => Ok(qos as u8),
                SubscribeReasonCode::NotAuthorized => Ok(0x87),
                other => Err(format!("{other:?}")),
            }),
            _ => None,
        })
    }

    fn publish(&mut self, command: &Value) -> Result<u8, Fault> {
        let (topic, payload, level) = (text(command, "topic"), text(command, "payload"), level(command));
        let retain = command["retain"] == true;
        self.sender.publish_with_properties(topic, level, retain, payload, properties(command))?;
        self.wait(|event| match (level, event) {
            (QoS::AtMostOnce, Event::Outgoing(Outgoing::Publish(_)))
            | (QoS::ExactlyOnce, Event::Incoming(Packet::PubComp(_))) => Some(Ok(0)),
            (QoS::AtLeastOnce, Event::Incoming(Packet::PubAck(ack))) => Some(match ack.reason {
                PubAckReason::Success | PubAckReason::NoMatchingSubscribers => Ok(0),
                PubAckReason::NotAuthorized => Ok(0x87),
                other => Err(format!("{other:?}")),
            }),
            (QoS::ExactlyOnce, Event::Incoming(Packet::PubRec(ack))) => match ack.reason {
                PubRecReason::Success | PubRecReason::NoMatchingSubscribers => None,
                PubRecReason::NotAuthorized => Some(Ok(0x87)),
                other => Some(Err(format!("{other:?}"))),
            },
            _ => None,
        })
    }

    fn disconnect(&mut self) -> Result<u8, Fault> {
        self.sender.disconnect()?;
        self.wait(|event| (event == Event::Outgoing(Outgoing::Disconnect)).then_some(Ok(0)))
    }
}
