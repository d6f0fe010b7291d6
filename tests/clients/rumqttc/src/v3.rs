//! MQTT 3.1.1.

use std::sync::mpsc;

use rumqttc::{
    Client as Sender, ConnectionError, Event, LastWill, MqttOptions, Outgoing, Packet, QoS,
    SubscribeReasonCode,
};
use serde_json::{Value, json};

use crate::{Client, Connected, Fault, heard, place, qos, text};

/// As many bytes as a packet may have; the library's own limit is 10 KiB.
const MAX_PACKET: usize = 1 << 20;

struct V3 {
    sender: Sender,
    /// Everything but messages, until the connection's end.
    events: mpsc::Receiver<Event>,
}

fn level(of: &Value) -> QoS {
    rumqttc::qos(qos(of)).expect("a QoS")
}

pub fn connect(name: &str, command: &Value) -> Result<Connected, Fault> {
    let (host, port, transport) = place(command)?;
    let mut options = MqttOptions::new(name, host, port);
    options.set_transport(transport);
    options.set_clean_session(command["clean"] == true);
    options.set_max_packet_size(MAX_PACKET, MAX_PACKET);
    if command["username"].is_string() {
        options.set_credentials(text(command, "username"), text(command, "password"));
    }
    if let will @ Value::Object(_) = &command["will"] {
        let retain = will["retain"] == true;
        options.set_last_will(LastWill::new(text(will, "topic"), text(will, "payload"), level(will), retain));
    }
    let (sender, mut connection) = Sender::new(options, 100);
    let first = connection.iter().next().ok_or("no connection")?;
    let present = match first {
        Ok(Event::Incoming(Packet::ConnAck(ack))) => ack.session_present,
        Ok(other) => return Err(format!("{other:?}").into()),
        Err(ConnectionError::ConnectionRefused(code)) => return Ok(Err(code as u8)),
        Err(error) => return Err(error.into()),
    };
    let (told, events) = mpsc::channel();
    let name = name.to_owned();
    std::thread::spawn(move || {
        // It would connect again after its end.
        for event in connection.iter().map_while(Result::ok) {
            if let Event::Incoming(Packet::Publish(message)) = event {
                let payload = String::from_utf8_lossy(&message.payload);
                let (qos, retain) = (message.qos as u8, message.retain);
                heard(
                    &name,
                    json!({ "topic": message.topic, "payload": payload, "qos": qos, "retain": retain }),
                );
            } else if told.send(event).is_err() {
                break;
            }
        }
    });
    Ok(Ok((Box::new(V3 { sender, events }), present)))
}

impl V3 {
    /// Waits for what `wanted` makes a code of.
    fn wait(&self, wanted: impl Fn(Event) -> Option<u8>) -> Result<u8, Fault> {
        while let Ok(event) = self.events.recv() {
            if let Some(code) = wanted(event) {
                return Ok(code);
            }
        }
        Err("the connection has ended".into())
    }
}

impl Client for V3 {
    fn subscribe(&mut self, command: &Value) -> Result<u8, Fault> {
        self.sender.subscribe(text(command, "filter"), level(command))?;
        self.wait(|event| match event {
            Event::Incoming(Packet::SubAck(ack)) => Some(match ack.return_codes[0] {
                SubscribeReasonCode::Success(qos) => qos as u8,
                SubscribeReasonCode::Failure => 0x80,
            }),
            _ => None,
        })
    }

    fn publish(&mut self, command: &Value) -> Result<u8, Fault> {
        let level = level(command);
        let retain = command["retain"] == true;
        self.sender.publish(text(command, "topic"), level, retain, text(command, "payload"))?;
        self.wait(|event| match (level, event) {
            (QoS::AtMostOnce, Event::Outgoing(Outgoing::Publish(_)))
            | (QoS::AtLeastOnce, Event::Incoming(Packet::PubAck(_)))
            | (QoS::ExactlyOnce, Event::Incoming(Packet::PubComp(_))) => Some(0),
            _ => None,
        })
    }

    fn disconnect(&mut self) -> Result<u8, Fault> {
        self.sender.disconnect()?;
        self.wait(|event| (event == Event::Outgoing(Outgoing::Disconnect)).then_some(0))
    }
}
