//! `sub`.
//!
//! A message of QoS 2 is printed when it is released, so that it is printed once. A connection that breaks is made anew, with
//! its subscriptions; `-W` counts from the start on. With `--remove-retained` it ends when the broker has acknowledged that what it printed is
//! removed.

use super::args::SubArgs;
use super::connection::{Connection, Incoming, Lost, Message, Options, Outgoing};
use super::format::Format;
use super::properties::{Command, Given};
use super::{FAILED, Tell, again, block_on};
use ferrule_mqtt::topic::matches;
use ferrule_mqtt::{
    AckType, Packet, Properties, QoS, Subscribe, SubscribeFiltersBuf, SubscribeOptions, Unsubscribe,
    UnsubscribeFiltersBuf,
};
use jiff::Zoned;
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Write};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// Retained messages that are removed at a time: mosquitto's window.
const CLEARING: u16 = 20;
/// mosquitto's exit code when `-W` ran out.
const TIMED_OUT: u8 = 27;

struct Subscriber<'a> {
    args: &'a SubArgs,
    options: Options,
    given: Given,
    topics: Vec<String>,
    qos: QoS,
    format: Format,
    tell: Tell,
    printed: u64,
    /// Messages of QoS 2 that are not released.
    unreleased: BTreeMap<u16, Message>,
    /// Topics whose retained messages are being removed,
    clearing: BTreeMap<u16, String>,
    /// and are to be: at most those of all messages that the broker had retained.
    to_clear: VecDeque<String>,
    /// With this exit code it ends when they are, and prints no more.
    over: Option<u8>,
}

/// Whether to go on.
enum Then {
    On,
    /// With this exit code.
    End(u8),
}

/// `sub`: the exit code.
pub(in crate::cli) fn run(args: &SubArgs) -> u8 {
    let line_end = !args.no_line_end;
    let format = match &args.format {
        Some(text) => Format::read(text, line_end, args.pretty),
        None => Ok(Format::plain(args.verbose, line_end)),
    };
    let ((plan, topics), format) = match args.plan().and_then(|plan| Ok((plan, format?))) {
        Ok(planned) => planned,
        Err(text) => {
            Tell { quiet: false, debug: false }.error(&text);
            return FAILED;
        }
    };
    let subscriber = Subscriber {
        args,
        options: plan.options,
        given: plan.given,
        topics,
        qos: plan.qos,
        format,
        tell: Tell { quiet: plan.quiet, debug: plan.debug },
        printed: 0,
        unreleased: BTreeMap::new(),
        clearing: BTreeMap::new(),
        to_clear: VecDeque::new(),
        over: None,
    };
    block_on(subscriber.run())
}

impl Subscriber<'_> {
    async fn run(mut self) -> u8 {
        let deadline = self.args.timeout.map(|seconds| Instant::now() + Duration::from_secs(seconds));
        let tell = self.tell;
        let timed_out = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(timed_out);
        tokio::select! {
            code = self.connected() => code,
            () = &mut timed_out => {
                tell.error("Timed out");
                TIMED_OUT
            }
        }
    }

    async fn connected(&mut self) -> u8 {
        let mut connection = match Connection::open(&self.options, self.tell).await {
            Ok(connection) => connection,
            Err(why) => return self.tell.no_connection(&why),
        };
        loop {
            match self.session(&mut connection).await {
                Ok(code) => {
                    connection.disconnect(&self.options.disconnect).await;
                    return code;
                }
                Err(lost) => match again(&self.options, self.tell, &lost).await {
                    Ok(new) => connection = new,
                    Err(why) => return self.tell.no_connection(&why),
                },
            }
        }
    }

    /// One connection: the exit code, if it is over.
    async fn session(&mut self, connection: &mut Connection) -> Result<u8, Lost> {
        if !connection.session_present {
            self.unreleased.clear();
        }
        // What a broken connection took along is sent again.
        self.to_clear.extend(std::mem::take(&mut self.clearing).into_values());
        self.clear(connection).await?;
        self.subscribe(connection).await?;
        loop {
            let incoming = connection.next().await?;
            if let Then::End(code) = self.heard(connection, incoming).await? {
                return Ok(code);
            }
        }
    }

    async fn subscribe(&self, connection: &mut Connection) -> Result<(), Lost> {
        let options = SubscribeOptions {
            qos: self.qos,
            no_local: false,
            retain_as_published: false,
            retain_handling: 0,
        };
        if !self.topics.is_empty() {
            let mut filters = SubscribeFiltersBuf::default();
            for topic in &self.topics {
                filters.push(topic, options).map_err(Lost::for_good)?;
            }
            let packet_id = connection.id();
            for topic in &self.topics {
                let name = &self.options.client_id;
                let name = if name.is_empty() { "null" } else { name };
                self.tell.debug(|| {
                    format!(
                        "Client {name} sending SUBSCRIBE (Mid: {packet_id}, Topic: {topic}, QoS: {}, Options: 0x00)",
                        self.qos
                    )
                });
            }
            let properties = self.given.of(Command::Subscribe).as_properties();
            let filters = filters.as_filters();
            connection.send(&Packet::Subscribe(Subscribe { packet_id, properties, filters })).await?;
        }
        if !self.args.unsubscribe.is_empty() {
            let mut filters = UnsubscribeFiltersBuf::default();
            for topic in &self.args.unsubscribe {
                filters.push(topic).map_err(Lost::for_good)?;
            }
            let packet_id = connection.id();
            let properties = self.given.of(Command::Unsubscribe).as_properties();
            let filters = filters.as_filters();
            connection.send(&Packet::Unsubscribe(Unsubscribe { packet_id, properties, filters })).await?;
        }
        Ok(())
    }

    async fn heard(&mut self, connection: &mut Connection, incoming: Incoming) -> Result<Then, Lost> {
        match incoming {
            Incoming::Subscribed(id, reasons) => {
                let granted: Vec<String> = reasons.iter().map(ToString::to_string).collect();
                self.tell.debug(|| format!("Subscribed (mid: {id}): {}", granted.join(", ")));
                if reasons.iter().all(|reason| *reason >= 0x80) {
                    self.tell.error("All subscription requests were denied.");
                    return Ok(Then::End(0));
                }
                if self.args.exit_subscribed {
                    return Ok(Then::End(0));
                }
            }
            // With `-U` alone there is nothing to wait for after it.
            Incoming::Unsubscribed if self.topics.is_empty() && self.args.exit_subscribed => {
                return Ok(Then::End(0));
            }
            Incoming::Message(message) => match message.qos {
                QoS::AtMostOnce => return self.message(connection, &message).await,
                QoS::AtLeastOnce => {
                    connection.ack(AckType::Puback, message.packet_id).await?;
                    return self.message(connection, &message).await;
                }
                QoS::ExactlyOnce => {
                    let id = message.packet_id;
                    self.unreleased.entry(id).or_insert(message);
                    connection.ack(AckType::Pubrec, id).await?;
                }
            },
            Incoming::Ack(AckType::Pubrel, id, _) => {
                connection.ack(AckType::Pubcomp, id).await?;
                if let Some(message) = self.unreleased.remove(&id) {
                    return self.message(connection, &message).await;
                }
            }
            Incoming::Ack(AckType::Puback, id, reason) => {
                if let Some(topic) = self.clearing.remove(&id).filter(|_| reason.is_error()) {
                    self.tell.error(&format!("{topic} stays retained: {}", reason.name()));
                }
                self.clear(connection).await?;
                if let Some(code) = self.over {
                    return Ok(self.end(code));
                }
            }
            Incoming::Unsubscribed | Incoming::Ack(..) => {}
        }
        Ok(Then::On)
    }

    async fn message(&mut self, connection: &mut Connection, message: &Message) -> Result<Then, Lost> {
        if self.over.is_some() {
            return Ok(Then::On);
        }
        if self.args.retained_only && !message.retain {
            return Ok(self.end(0));
        }
        if message.retain && self.args.no_retained {
            return Ok(Then::On);
        }
        if self.args.filter_out.iter().any(|filter| matches(filter, &message.topic)) {
            return Ok(Then::On);
        }
        if !drawn(self.args.random_filter) {
            return Ok(Then::On);
        }
        if message.retain && self.args.remove_retained {
            self.to_clear.push_back(message.topic.clone());
            self.clear(connection).await?;
        }
        let mut out = io::stdout().lock();
        let printed = self.format.print(message, &Zoned::now(), &mut out).and_then(|()| out.flush());
        if printed.is_err() {
            // Nobody reads any more.
            return Ok(Then::End(FAILED));
        }
        self.printed += 1;
        Ok(if self.args.count == Some(self.printed) { self.end(0) } else { Then::On })
    }

    /// Removes what may be removed by now.
    async fn clear(&mut self, connection: &mut Connection) -> Result<(), Lost> {
        let window = usize::from(connection.receive_max.clamp(1, CLEARING));
        while self.clearing.len() < window
            && let Some(topic) = self.to_clear.pop_front()
        {
            let packet_id = connection.id();
            let (qos, payload, properties) = (QoS::AtLeastOnce, &[][..], Properties::EMPTY);
            let topic = self.clearing.entry(packet_id).or_insert(topic);
            let clear = Outgoing { topic, payload, qos, retain: true, dup: false, packet_id, properties };
            connection.publish(&clear).await?;
        }
        Ok(())
    }

    /// It has done what it was to do.
    fn end(&mut self, code: u8) -> Then {
        self.over = Some(code);
        if self.clearing.is_empty() && self.to_clear.is_empty() { Then::End(code) } else { Then::On }
    }
}

/// True so many times of a hundred. Without random numbers all are printed.
fn drawn(percent: f64) -> bool {
    let mut bytes = [0; 4];
    percent >= 100.0
        || getrandom::fill(&mut bytes).is_err()
        || f64::from(u32::from_le_bytes(bytes)) < percent / 100.0 * (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::drawn;

    #[test]
    fn some_of_many() {
        assert!((0..100).all(|_| drawn(100.0)));
        // Both sides are off by 12 standard deviations.
        let printed = (0..10_000).filter(|_| drawn(25.0)).count();
        assert!((2_000..3_000).contains(&printed), "{printed} of 10000");
    }
}
