//! `pub`.
//!
//! # Operation
//! Messages come from a [`Source`], one at a time; at most `-M` (and the broker's Receive Maximum) of QoS 1 and 2 are in
//! flight. The command ends when the source is dry and everything is acknowledged. A connection that breaks meanwhile is made
//! anew, and what was in flight is sent again.

use super::args::{Plan, PubArgs};
use super::connection::{Connection, Incoming, Lost, Outgoing};
use super::{FAILED, NoConnection, Tell, again, block_on};
use ferrule_mqtt::{AckType, MAX_REMAINING_LENGTH, PropertiesBuf, QoS};
use std::collections::BTreeMap;
use std::io::{self, BufRead, Read};
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// Lines read ahead.
const LINES: usize = 64;

/// Where messages come from.
enum Source {
    /// One, so many times more, and when the next one is due.
    Same { payload: Arc<[u8]>, left: u64, delay: Duration, due: Instant },
    /// Lines of standard input.
    Lines(mpsc::Receiver<io::Result<Vec<u8>>>),
}

impl Source {
    fn open(args: &PubArgs) -> Result<Self, String> {
        if args.stdin_line {
            let (sender, lines) = mpsc::channel(LINES);
            std::thread::spawn(move || read_lines(&mut io::stdin().lock(), &sender));
            return Ok(Self::Lines(lines));
        }
        let payload = if let Some(message) = &args.message {
            message.clone().into_vec()
        } else if let Some(path) = &args.file {
            let file = std::fs::File::open(path);
            let read = file.and_then(read_all);
            read.map_err(|e| format!("Error: Unable to open file \"{}\": {e}", path.display()))?
        } else if args.stdin_file {
            read_all(io::stdin().lock()).map_err(|e| format!("Error: Unable to read standard input: {e}"))?
        } else {
            Vec::new()
        };
        let delay = Duration::from_secs_f64(args.repeat_delay);
        Ok(Self::Same { payload: payload.into(), left: args.repeat, delay, due: Instant::now() })
    }

    /// The next one; none: that was all. Cancel-safe.
    async fn next(&mut self) -> Option<io::Result<Arc<[u8]>>> {
        match self {
            Self::Same { left: 0, .. } => None,
            Self::Same { payload, left, delay, due } => {
                sleep_until(*due).await;
                *left -= 1;
                *due += *delay;
                Some(Ok(Arc::clone(payload)))
            }
            Self::Lines(lines) => lines.recv().await.map(|line| line.map(Into::into)),
        }
    }
}

/// No more than a packet holds.
fn read_all(input: impl Read) -> io::Result<Vec<u8>> {
    let mut payload = Vec::new();
    input.take(MAX_REMAINING_LENGTH as u64 + 1).read_to_end(&mut payload)?;
    if payload.len() > MAX_REMAINING_LENGTH {
        return Err(io::Error::other(format!("it is longer than MQTT's {MAX_REMAINING_LENGTH} bytes")));
    }
    Ok(payload)
}

fn read_lines(input: &mut impl BufRead, lines: &mpsc::Sender<io::Result<Vec<u8>>>) {
    loop {
        let mut line = Vec::new();
        let mut bounded = Read::take(&mut *input, MAX_REMAINING_LENGTH as u64);
        let read = bounded.read_until(b'\n', &mut line);
        let message = match read {
            Ok(0) => return,
            Ok(_) => {
                line.pop_if(|byte| *byte == b'\n');
                Ok(line)
            }
            Err(error) => Err(error),
        };
        let ended = message.is_err();
        // Nobody listens any more: the command has ended.
        if lines.blocking_send(message).is_err() || ended {
            return;
        }
    }
}

/// One that is not acknowledged.
struct InFlight {
    payload: Arc<[u8]>,
    /// QoS 2: PUBREC has come.
    released: bool,
}

struct Publisher {
    plan: Plan,
    topic: String,
    retain: bool,
    properties: PropertiesBuf,
    tell: Tell,
    in_flight: BTreeMap<u16, InFlight>,
}

impl Publisher {
    async fn send(
        &self,
        connection: &mut Connection,
        packet_id: u16,
        payload: &[u8],
        dup: bool,
    ) -> Result<(), Lost> {
        let message = Outgoing {
            topic: &self.topic,
            payload,
            qos: self.plan.qos,
            retain: self.retain,
            dup,
            packet_id,
            properties: self.properties.as_properties(),
        };
        connection.publish(&message).await
    }

    async fn heard(&mut self, connection: &mut Connection, incoming: Incoming) -> Result<(), Lost> {
        let Incoming::Ack(kind, id, reason) = incoming else { return Ok(()) };
        if reason.is_error() {
            self.tell.error(&format!("Warning: Publish {id} failed: {}.", reason.name()));
            self.in_flight.remove(&id);
            return Ok(());
        }
        match kind {
            AckType::Puback | AckType::Pubcomp => drop(self.in_flight.remove(&id)),
            AckType::Pubrec => {
                if let Some(message) = self.in_flight.get_mut(&id) {
                    message.released = true;
                }
                connection.ack(AckType::Pubrel, id).await?;
            }
            AckType::Pubrel => {}
        }
        Ok(())
    }

    /// What was in flight, on a new connection. A message that is released the broker has: without its session there is
    /// nothing left to say about it.
    async fn resend(&mut self, connection: &mut Connection) -> Result<(), Lost> {
        if !connection.session_present {
            self.in_flight.retain(|_, message| !message.released);
        }
        for (&id, message) in &self.in_flight {
            if message.released {
                connection.ack(AckType::Pubrel, id).await?;
            } else {
                self.send(connection, id, &message.payload, connection.session_present).await?;
            }
        }
        Ok(())
    }

    /// An id that is free.
    fn id(&self, connection: &mut Connection) -> u16 {
        loop {
            let id = connection.id();
            if !self.in_flight.contains_key(&id) {
                return id;
            }
        }
    }

    /// Until the source is dry and all is acknowledged. `next` is what could not be sent before.
    async fn turn(
        &mut self,
        connection: &mut Connection,
        source: &mut Option<Source>,
        next: &mut Option<Arc<[u8]>>,
    ) -> Result<Result<(), String>, Lost> {
        self.resend(connection).await?;
        let window = usize::from(self.plan.max_inflight.min(connection.receive_max).max(1));
        loop {
            if self.in_flight.len() < window
                && let Some(payload) = next.take()
            {
                if self.plan.qos == QoS::AtMostOnce {
                    if let Err(lost) = self.send(connection, 0, &payload, false).await {
                        *next = Some(payload);
                        return Err(lost);
                    }
                } else {
                    let id = self.id(connection);
                    // It is in flight before it is sent: what is cut in the middle is sent again.
                    self.in_flight.insert(id, InFlight { payload: Arc::clone(&payload), released: false });
                    self.send(connection, id, &payload, false).await?;
                }
            }
            if source.is_none() && next.is_none() && self.in_flight.is_empty() {
                return Ok(Ok(()));
            }
            let room = next.is_none();
            let more = async {
                match source {
                    Some(source) if room => source.next().await,
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                // Bound by the acknowledgements, not by how fast lines come.
                biased;
                incoming = connection.next() => {
                    let incoming = incoming?;
                    self.heard(connection, incoming).await?;
                }
                more = more => match more {
                    None => *source = None,
                    Some(Ok(payload)) => *next = Some(payload),
                    Some(Err(error)) => return Ok(Err(format!("Error: Unable to read standard input: {error}"))),
                },
            }
        }
    }
}

/// `pub`: the exit code.
pub(in crate::cli) fn run(args: &PubArgs) -> u8 {
    let planned = args.plan().and_then(|planned| Ok((planned, Source::open(args)?)));
    let ((plan, topic, properties), source) = match planned {
        Ok(planned) => planned,
        Err(text) => {
            Tell { quiet: false, debug: false }.error(&text);
            return FAILED;
        }
    };
    let tell = Tell { quiet: plan.quiet, debug: plan.debug };
    let publisher =
        Publisher { plan, topic, retain: args.retain, properties, tell, in_flight: BTreeMap::new() };
    block_on(publish(publisher, source))
}

async fn publish(mut publisher: Publisher, source: Source) -> u8 {
    let tell = publisher.tell;
    let mut connection = match Connection::open(&publisher.plan.options, tell).await {
        Ok(connection) => connection,
        Err(why) => {
            let code = tell.no_connection(&why);
            if matches!(why, NoConnection::Refused(_)) {
                tell.error("Error: The connection was refused.");
            }
            return code;
        }
    };
    let (mut source, mut next) = (Some(source), None);
    loop {
        match publisher.turn(&mut connection, &mut source, &mut next).await {
            Ok(done) => {
                connection.disconnect(&publisher.plan.options.disconnect).await;
                return match done {
                    Ok(()) => 0,
                    Err(text) => {
                        tell.error(&text);
                        FAILED
                    }
                };
            }
            Err(lost) => match again(&publisher.plan.options, tell, &lost).await {
                Ok(new) => connection = new,
                Err(why) => return tell.no_connection(&why),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn lines_are_messages() {
        let (sender, mut lines) = mpsc::channel(8);
        read_lines(&mut &b"a\n\nb c\r\nlast"[..], &sender);
        drop(sender);
        let mut read = Vec::new();
        while let Some(line) = lines.blocking_recv() {
            read.push(line.unwrap());
        }
        assert_eq!(read, [&b"a"[..], b"", b"b c\r", b"last"]);
    }
}
