//! What a worker keeps of one connection's socket, and how its bytes pass its layers.

use crate::listener::Seat;
use ferrule_broker::{ConnId, Hook, Shard};
use ferrule_store::{Now, Store};
use ferrule_transport::stack::{Fault, Scratch, Stack};
use mio::net::TcpStream;
use std::io::{self, ErrorKind, Write};

/// Bytes encoded at a time: a frame of a WebSocket, four records of TLS. While the socket does not take them nothing more is encoded, so that
/// the shard sees how much its client has not taken.
const ENCODE_BYTES: usize = 64 * 1024;

/// As small as it can be: there are many.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) stream: TcpStream,
    pub(crate) conn: ConnId,
    /// The front of a packet, or what a held connection sent ahead.
    pub(crate) partial: Option<Box<Partial>>,
    /// What plain MQTT over plain TCP does not need.
    pub(crate) extra: Option<Box<Extra>>,
    /// Has more to read than was read: in the list `again`.
    pub(crate) again: bool,
    /// Not read although there may be more, since it is held.
    pub(crate) paused: bool,
    /// The peer has closed its side: an edge that comes once, so it is read to its end.
    pub(crate) ended: bool,
    /// The shard has closed.
    pub(crate) ending: Ending,
}

#[derive(Debug, Default)]
pub(crate) struct Partial(pub(crate) Vec<u8>);

/// Of a connection with layers under MQTT, or whose listener counts.
#[derive(Debug, Default)]
pub(crate) struct Extra {
    pub(crate) stack: Option<Stack>,
    /// Encoded for the socket, which did not take it yet.
    pub(crate) wire: Vec<u8>,
    pub(crate) seat: Option<Seat>,
}

/// How far a connection is that the shard has closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(crate) enum Ending {
    No,
    /// Its output is on its way, the last packet with the reason.
    Writing,
    /// All of it is with the socket, or the layers' end is.
    Written,
    /// We have ended our direction.
    Shut,
}

/// How writing ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wrote {
    /// All of it, or as much as a turn writes.
    Some,
    /// The socket takes no more for now.
    Blocked,
    /// The socket is gone.
    Failed,
}

impl Socket {
    pub(crate) fn new(stream: TcpStream, conn: ConnId, extra: Option<Box<Extra>>) -> Self {
        Self {
            stream,
            conn,
            partial: None,
            extra,
            again: false,
            paused: false,
            ended: false,
            ending: Ending::No,
        }
    }

    pub(crate) fn stack(&mut self) -> Option<&mut Stack> {
        self.extra.as_mut()?.stack.as_mut()
    }

    /// Whether its bytes are MQTT's as they are.
    pub(crate) fn is_plain(&self) -> bool {
        self.extra.as_ref().is_none_or(|extra| extra.stack.is_none() && extra.wire.is_empty())
    }

    pub(crate) fn is_handshaking(&self) -> bool {
        self.extra.as_ref().is_some_and(|e| e.stack.as_ref().is_some_and(Stack::is_handshaking))
    }

    /// Bytes that its layers have encoded and the socket has not taken.
    pub(crate) fn wire_len(&self) -> usize {
        self.extra.as_ref().map_or(0, |extra| extra.wire.len())
    }

    /// Gives back what a connection that turned out to be plain does not need.
    pub(crate) fn shed(&mut self) {
        if let Some(extra) = &mut self.extra {
            if extra.stack.as_ref().is_some_and(Stack::is_spent) {
                extra.stack = None;
            }
            if extra.stack.is_none() && extra.wire.is_empty() && extra.seat.is_none() {
                self.extra = None;
            }
        }
    }

    /// Writes from the front of `out`, as it is, at most so many bytes. Returns how many went.
    pub(crate) fn write_plain(&mut self, out: &[u8], most: usize) -> (usize, Wrote) {
        let mut written = 0;
        let end = out.len().min(most);
        while written < end {
            match write(&mut self.stream, &out[written..end]) {
                Ok(size) => written += size,
                Err(wrote) => return (written, wrote),
            }
        }
        (written, Wrote::Some)
    }

    /// Writes what the layers had to say, then from the front of `out` what they make of it, until about so many bytes have gone.
    /// Returns how many bytes of `out` were taken and how many went to the socket. `wire` is a buffer that is empty.
    pub(crate) fn write_layered(
        &mut self,
        out: &[u8],
        most: usize,
        scratch: &mut Scratch,
        wire: &mut Vec<u8>,
    ) -> (usize, usize, Wrote) {
        let Some(extra) = self.extra.as_deref_mut() else { return (0, 0, Wrote::Some) };
        let (mut taken, mut sent, mut at) = (0, 0, 0);
        // What was left is continued where it is.
        let mut left = std::mem::take(&mut extra.wire);
        let wire = if left.is_empty() { wire } else { &mut left };
        let wrote = loop {
            if at == wire.len() {
                wire.clear();
                at = 0;
                let Some(stack) = extra.stack.as_mut().filter(|stack| stack.is_open()) else {
                    // Before its layers stand a client has nothing to be told.
                    taken = out.len();
                    break Wrote::Some;
                };
                if taken == out.len() || sent >= most {
                    break Wrote::Some;
                }
                let end = out.len().min(taken + ENCODE_BYTES);
                if stack.send(&out[taken..end], scratch, wire).is_err() {
                    break Wrote::Failed;
                }
                taken = end;
            }
            match write(&mut self.stream, &wire[at..]) {
                Ok(size) => {
                    at += size;
                    sent += size;
                }
                Err(wrote) => break wrote,
            }
        };
        if at < wire.len() {
            extra.wire = wire[at..].to_vec();
            wire.clear();
        }
        (taken, sent, wrote)
    }

    /// Appends the orderly end of its layers to what waits for the socket.
    pub(crate) fn end_layers(&mut self, scratch: &mut Scratch) {
        if let Some(Extra { stack: Some(stack), wire, .. }) = self.extra.as_deref_mut() {
            stack.close(scratch, wire);
        }
    }

    /// What came from the socket becomes MQTT's bytes in `plain`.
    pub(crate) fn receive_layered(
        &mut self,
        bytes: &mut [u8],
        scratch: &mut Scratch,
        plain: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        match self.extra.as_deref_mut() {
            Some(Extra { stack: Some(stack), wire, .. }) => stack.receive(bytes, scratch, plain, wire),
            _ => {
                plain.extend_from_slice(bytes);
                Ok(())
            }
        }
    }

    /// Offers what was left over and what came; keeps what the shard leaves.
    pub(crate) fn offer<H: Hook, S: Store>(&mut self, shard: &mut Shard<H, S>, bytes: &[u8], now: Now) {
        match &mut self.partial {
            None => {
                let taken = shard.receive(self.conn, bytes, now);
                if taken < bytes.len() {
                    self.partial = Some(Box::new(Partial(bytes[taken..].to_vec())));
                }
            }
            Some(partial) => {
                partial.0.extend_from_slice(bytes);
                let taken = shard.receive(self.conn, &partial.0, now);
                if taken == partial.0.len() {
                    self.partial = None;
                } else {
                    partial.0.drain(..taken);
                }
            }
        }
    }
}

/// One write; what ends it is told apart.
fn write(stream: &mut TcpStream, bytes: &[u8]) -> Result<usize, Wrote> {
    loop {
        return match stream.write(bytes) {
            Ok(0) => Err(Wrote::Failed),
            Ok(size) => Ok(size),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Err(Wrote::Blocked),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => Err(Wrote::Failed),
        };
    }
}

/// What a read of a socket says.
pub(crate) enum Read {
    Bytes(usize),
    Ended,
    Nothing,
    Interrupted,
}

/// One read.
pub(crate) fn read(stream: &mut TcpStream, buffer: &mut [u8]) -> Read {
    match io::Read::read(stream, buffer) {
        Ok(0) => Read::Ended,
        Ok(size) => Read::Bytes(size),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Read::Nothing,
        Err(error) if error.kind() == ErrorKind::Interrupted => Read::Interrupted,
        Err(_) => Read::Ended,
    }
}
