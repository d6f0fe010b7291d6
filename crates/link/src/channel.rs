//! One connection's bytes: the socket, and the layers between it and MQTT ([`Stack`]): HTTP proxy, TLS, WebSocket.
//!
//! # Operation
//! ```text
//! socket --try_read--> raw --Stack::receive--> inbox (MQTT)        plain TCP: socket --try_read--> inbox
//! socket <-try_write-- wire <----Stack::send-- out (MQTT)          plain TCP: socket <-try_write-- out
//! ```
//! Plain TCP goes past the layers without a copy.
//!
//! # Bounds
//! The next part of `out` is sealed when the socket has taken the last: so `wire` holds [`SEAL_MAX`] and its framing, "written" means
//! handed to the kernel, and what waits is counted once. Beside that only answers of the layers go to `wire` (pongs, key updates): a
//! peer that asks for them and does not read them is cut off at [`UNREAD_MAX`].

use crate::stats::UplinkStats;
use ferrule_transport::stack::{Fault, Scratch, Stack, Step};
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Bytes asked of the socket at once: a thousand acknowledgements are 4 KiB, a TLS record at most 16 KiB.
pub(crate) const READ_CHUNK: usize = 16 * 1024;

/// Plaintext sealed at once: four of TLS's largest records, in one WebSocket frame.
const SEAL_MAX: usize = 64 * 1024;

/// Answers that the peer asks for and does not read.
const UNREAD_MAX: usize = 256 * 1024;

/// What has to be written.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    /// To append to.
    pub(crate) bytes: Vec<u8>,
    /// What is before is written.
    at: usize,
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Channel {
    stream: TcpStream,
    layers: Option<Box<Layers>>,
    /// MQTT's bytes, not decoded: the head of a packet.
    pub(crate) inbox: Vec<u8>,
}

#[derive(Debug)]
struct Layers {
    stack: Stack,
    scratch: Scratch,
    raw: Vec<u8>,
    wire: Outgoing,
}

/// Why a connection ended.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The socket broke.
    Socket(io::Error),
    /// The peer has ended it.
    Closed(Step),
    /// A layer refuses what came, or the peer refused in a layer's words.
    Layer(Step, Fault),
    /// [`UNREAD_MAX`].
    Unread,
}

// === impl Outgoing ===

impl Outgoing {
    /// Bytes not written.
    pub(crate) fn pending(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The length of `bytes` at which `pending` more wait.
    pub(crate) fn limit(&self, pending: usize) -> usize {
        self.at + pending
    }

    fn unwritten(&self) -> &[u8] {
        &self.bytes[self.at..]
    }

    fn wrote(&mut self, bytes: usize) {
        self.at += bytes;
        if self.at == self.bytes.len() {
            self.bytes.clear();
            self.at = 0;
        } else if self.at > self.bytes.len() / 2 {
            // The written head goes when it is the larger part: each byte is then moved at most once.
            self.bytes.drain(..self.at);
            self.at = 0;
        }
    }
}

// === impl Channel ===

impl Channel {
    /// `stack` is none for plain TCP; `wire` opens the connection.
    pub(crate) fn new(stream: TcpStream, stack: Option<Stack>, wire: Vec<u8>) -> Self {
        let layers = stack.map(|stack| {
            let wire = Outgoing { bytes: wire, at: 0 };
            Box::new(Layers { stack, scratch: Scratch::default(), raw: Vec::new(), wire })
        });
        Self { stream, layers, inbox: Vec::new() }
    }

    /// What the layers wait for.
    pub(crate) fn step(&self) -> Step {
        self.layers.as_ref().map_or(Step::Open, |layers| layers.stack.step())
    }

    /// Waits until `step` is behind, or, of the last one, until what it said is written. Cancel-safe, but then of no more
    /// use: a caller that gives up drops the channel.
    pub(crate) async fn pass(&mut self, step: Step, stats: &UplinkStats) -> Result<(), Broken> {
        while let Some(layers) = &self.layers {
            let passed = layers.stack.step() != step;
            let written = layers.wire.pending() == 0;
            if passed || (step == Step::Open && written) {
                if layers.stack.is_spent() && written {
                    self.layers = None;
                }
                return Ok(());
            }
            self.write(&mut Outgoing::default(), stats)?;
            self.ready(0).await?;
            self.read(stats)?;
        }
        Ok(())
    }

    /// Waits until there is something to read, or to write when `out` bytes of MQTT or the layers' own wait. Cancel-safe.
    pub(crate) async fn ready(&self, out: usize) -> Result<(), Broken> {
        let interest = if out + self.sealed() > 0 {
            Interest::READABLE | Interest::WRITABLE
        } else {
            Interest::READABLE
        };
        self.stream.ready(interest).await.map(drop).map_err(Broken::Socket)
    }

    /// Bytes sealed and not written.
    pub(crate) fn sealed(&self) -> usize {
        self.layers.as_ref().map_or(0, |layers| layers.wire.pending())
    }

    /// Reads once into [`Channel::inbox`]. Returns how many bytes the socket gave: 0 when it is empty.
    pub(crate) fn read(&mut self, stats: &UplinkStats) -> Result<usize, Broken> {
        let Self { stream, layers, inbox } = self;
        let Some(layers) = layers else { return fill(stream, inbox, stats) };
        let Layers { stack, scratch, raw, wire } = &mut **layers;
        if stack.is_ended() {
            return Err(Broken::Closed(stack.step()));
        }
        raw.clear();
        let got = fill(stream, raw, stats).map_err(|broken| match broken {
            Broken::Closed(_) => Broken::Closed(stack.step()),
            broken => broken,
        })?;
        if let Err(fault) = stack.receive(raw, scratch, inbox, &mut wire.bytes) {
            let step = stack.step();
            // What it says to the peer; whether it arrives is not ours to wait for.
            let _ = flush(stream, wire, stats);
            return Err(Broken::Layer(step, fault));
        }
        if wire.pending() > UNREAD_MAX {
            return Err(Broken::Unread);
        }
        Ok(got)
    }

    /// Writes until all of `out` is handed to the kernel (true) or the socket is full (false).
    pub(crate) fn write(&mut self, out: &mut Outgoing, stats: &UplinkStats) -> Result<bool, Broken> {
        self.write_all(out, stats).map_err(|broken| match (&broken, self.read(stats)) {
            // Who refuses says why before closing: an alert is worth more than the broken pipe that it leaves.
            (Broken::Socket(_), Err(last_words @ Broken::Layer(..))) => last_words,
            _ => broken,
        })
    }

    fn write_all(&mut self, out: &mut Outgoing, stats: &UplinkStats) -> Result<bool, Broken> {
        let Some(layers) = &mut self.layers else { return flush(&self.stream, out, stats) };
        let Layers { stack, scratch, wire, .. } = &mut **layers;
        loop {
            if !flush(&self.stream, wire, stats)? {
                return Ok(false);
            }
            if out.pending() == 0 {
                wire.bytes.shrink_to(2 * SEAL_MAX);
                return Ok(true);
            }
            let part = &out.unwritten()[..out.pending().min(SEAL_MAX)];
            let size = part.len();
            stack.send(part, scratch, &mut wire.bytes).map_err(|fault| Broken::Layer(Step::Open, fault))?;
            out.wrote(size);
        }
    }

    /// The layers' goodbye, behind MQTT's.
    pub(crate) fn close(&mut self, stats: &UplinkStats) {
        if let Some(layers) = &mut self.layers {
            layers.stack.close(&mut layers.scratch, &mut layers.wire.bytes);
            let _ = self.write(&mut Outgoing::default(), stats);
        }
    }
}

/// Appends what the socket has, one chunk at most.
fn fill(stream: &TcpStream, into: &mut Vec<u8>, stats: &UplinkStats) -> Result<usize, Broken> {
    let start = into.len();
    into.resize(start + READ_CHUNK, 0);
    let got = loop {
        match stream.try_read(&mut into[start..]) {
            Ok(0) => break Err(Broken::Closed(Step::Open)),
            Ok(bytes) => break Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break Err(Broken::Socket(error)),
        }
    };
    let bytes = *got.as_ref().unwrap_or(&0);
    into.truncate(start + bytes);
    stats.bytes_in.fetch_add(bytes as u64, Relaxed);
    got
}

fn flush(stream: &TcpStream, out: &mut Outgoing, stats: &UplinkStats) -> Result<bool, Broken> {
    while out.pending() > 0 {
        match stream.try_write(out.unwritten()) {
            Ok(bytes) => {
                stats.bytes_out.fetch_add(bytes as u64, Relaxed);
                stats.writes.fetch_add(1, Relaxed);
                out.wrote(bytes);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Broken::Socket(error)),
        }
    }
    Ok(true)
}
