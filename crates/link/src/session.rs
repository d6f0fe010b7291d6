//! A connection with MQTT on it: the protocol's client over a [`Channel`].

use crate::address::Server;
use crate::channel::{Broken, Channel, Outgoing, READ_CHUNK};
use crate::client::{Client, Event, Fault};
use crate::dial::{Cause, LinkError};
use crate::downlink::Arrived;
use crate::flow::Flight;
use crate::stats::UplinkStats;
use ferrule_mqtt::ReasonCode;

/// Reads in a row before writing gets its turn.
const READS_MAX: usize = 16;

/// What a buffer of encoded packets keeps when it is empty, in bytes.
const OUT_KEPT: usize = 512 * 1024;

/// A connection.
pub(crate) struct Session {
    pub(crate) server: Server,
    pub(crate) channel: Channel,
    pub(crate) client: Client<Flight>,
    /// Encoded packets.
    pub(crate) out: Outgoing,
    /// When the certificate of ours that it was made with ends, in seconds since 1970.
    pub(crate) expires_s: Option<i64>,
    /// Messages that came with CONNACK.
    pub(crate) arrived: Vec<Arrived>,
}

impl Session {
    /// Bytes encoded and not written.
    pub(crate) fn pending(&self) -> usize {
        self.out.pending() + self.channel.sealed()
    }

    /// Waits until there is something to do at the socket. Cancel-safe.
    pub(crate) async fn ready(&self) -> Result<(), LinkError> {
        self.channel.ready(self.out.pending()).await.map_err(|broken| self.broken(broken))
    }

    /// Reads until the socket is empty, or for one turn's worth.
    pub(crate) fn read(
        &mut self,
        now_us: u64,
        stats: &UplinkStats,
        mut on: impl FnMut(Event<'_, Flight>),
    ) -> Result<(), LinkError> {
        for _ in 0..READS_MAX {
            let got = self.channel.read(stats);
            // What came before the end counts; it may say why.
            let inbox = &mut self.channel.inbox;
            if !inbox.is_empty() && !matches!(got, Ok(0)) {
                match self.client.receive(inbox, now_us, &mut self.out.bytes, &mut on) {
                    Ok(used) => drop(inbox.drain(..used)),
                    Err(fault) => {
                        // A last DISCONNECT that says why; whether it arrives is not ours to wait for.
                        let _ = self.write(stats);
                        return Err(self.fault(fault));
                    }
                }
            }
            if got.map_err(|broken| self.broken(broken))? < READ_CHUNK {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Writes until all is out (true) or the socket is full (false).
    pub(crate) fn write(&mut self, stats: &UplinkStats) -> Result<bool, LinkError> {
        let written = self.channel.write(&mut self.out, stats).map_err(|broken| self.broken(broken))?;
        if written {
            // One huge row must not hold its size for ever.
            self.out.bytes.shrink_to(OUT_KEPT);
        }
        Ok(written)
    }

    /// DISCONNECT and the layers' goodbye, unless they would stand behind half a packet and be read as a part of that.
    pub(crate) fn goodbye(&mut self, stats: &UplinkStats) {
        if self.pending() == 0 {
            self.client.disconnect(ReasonCode::NORMAL_DISCONNECTION, &mut self.out.bytes);
            if let Ok(true) = self.write(stats) {
                self.channel.close(stats);
            }
        }
    }

    /// What to say when the protocol ended the connection.
    pub(crate) fn fault(&self, fault: Fault) -> LinkError {
        let malformed = matches!(fault, Fault::Malformed(_)) && !self.client.was_accepted();
        let cause = match &self.channel.inbox[..] {
            // A handshake's alert [RFC 8446, 5.1].
            [0x15, 3, ..] if malformed => Cause::Speaks("TLS", "mqtts://"),
            [b'H', b'T', b'T', b'P', ..] if malformed => Cause::Speaks("HTTP", "ws://"),
            _ => Cause::Mqtt(fault),
        };
        LinkError::new(&self.server, cause)
    }

    fn broken(&self, broken: Broken) -> LinkError {
        LinkError::new(&self.server, broken.into())
    }
}
