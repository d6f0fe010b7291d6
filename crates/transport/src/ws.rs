//! WebSocket frames (RFC 6455), both roles, streamed: no message is ever put together.
//!
//! # Constraints
//! - MQTT packets need not be aligned with frames [MQTT-6.0.0-2], so where a frame or a message ends means nothing to what
//!   is above: the payloads of binary frames are one stream of bytes, passed on as they come.
//! - There are many connections, most of them idle: the state is 32 bytes, and no buffer.
//!
//! # Data
//! ```text
//! byte 0: FIN 1, RSV 3, opcode 4 bits   1: masked 1, length 7 bits   length 0, 2 or 8   mask 0 or 4   payload
//! ```
//! The state is where in this the next byte lies: the payload that is still to come of a data frame, the mask turned to the
//! next byte's phase, and whether a message is unfinished. Heads and control frames are taken whole, so what is left of `bytes`
//! is at most 130 bytes (a control frame of 2 + 4 + 125, less one).
//!
//! # Bounds
//! - A length costs nothing until its bytes are there; a message of endless fragments never costs anything. Fragments without
//!   payload are the one thing that costs time and brings nothing: [`EMPTY_FRAMES_MAX`] in a row end the connection.
//! - `plain` grows by less than came in. `out` grows by less than came in for a server, and by at most three times that for a
//!   client (an empty ping, 2 bytes, is answered by 6), and by one close frame. A peer that pings and does not read is ended by
//!   the caller's bound on what waits to be written.
//!
//! # Refusals
//! | close code | what came |
//! |---|---|
//! | 1002 | reserved bits or opcodes, a mask from a server or none from a client, a length that is not minimal |
//! | 1002 | a control frame that is long or fragmented, fragments out of order |
//! | 1002 | a close frame of one byte, or with a code that may not be sent |
//! | 1003 | a text frame [MQTT-6.0.0-1] |
//! | 1007 | a close frame's reason that is not UTF-8 |
//! | 1008 | too many empty frames |
//!
//! After a refusal, or once the peer's close frame has come, nothing is passed on and nothing is sent.

use sha1::{Digest as _, Sha1};

/// Data frames without payload that may follow one another. Senders that end a message with an empty fragment make one at a time.
pub const EMPTY_FRAMES_MAX: u16 = 1_024;

/// Which side of the connection this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Takes masked frames and sends them unmasked.
    Server,
    /// The reverse (RFC 6455, 5.1).
    Client,
}

/// Why the peer's bytes are not taken any longer. Flush `out`, which ends in a close frame that says so, and close.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WsError {
    /// Not what the RFC allows.
    #[error("the WebSocket frame is malformed: {0}")]
    Malformed(&'static str),
    /// A text frame.
    #[error("{TEXT}")]
    Text,
    /// The reason in a close frame is not text.
    #[error("{REASON}")]
    Reason,
    /// Too many frames without payload.
    #[error("{EMPTY}")]
    Empty,
}

const TEXT: &str = "a text frame came, and MQTT is sent in binary frames";
const REASON: &str = "the reason in a WebSocket close frame is not UTF-8";
const EMPTY: &str = "more than 1,024 WebSocket frames without payload came in a row";

impl WsError {
    /// The code of the close frame that was sent (RFC 6455, 7.4.1).
    #[must_use]
    pub const fn code(self) -> u16 {
        match self {
            Self::Malformed(_) => 1002,
            Self::Text => 1003,
            Self::Reason => 1007,
            Self::Empty => 1008,
        }
    }

    /// The reason in it.
    const fn why(self) -> &'static str {
        match self {
            Self::Malformed(why) => why,
            Self::Text => TEXT,
            Self::Reason => REASON,
            Self::Empty => EMPTY,
        }
    }
}

const FIN: u8 = 0x80;
const RSV: u8 = 0x70;
const MASKED: u8 = 0x80;
const CONTINUATION: u8 = 0x0;
const TEXT_FRAME: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xA;
/// The longest payload of a control frame, and the longest whose length is in the second byte.
const SHORT_MAX: usize = 125;

/// The frames of one connection.
#[derive(Debug)]
pub struct WebSocket {
    /// Payload of the current data frame that has not come, in bytes.
    remaining: u64,
    /// The seed of a client's masks, and one more for each frame that it has sent.
    masks: u64,
    /// Of the current data frame, turned so that the first byte is for the next one that comes.
    mask: [u8; 4],
    /// Data frames without payload since the last payload.
    empty: u16,
    role: Role,
    /// A message of which the last fragment has not come.
    fragmented: bool,
    /// What of the closing handshake has been.
    closing: Closing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Closing {
    /// Nothing.
    Open,
    /// Our close frame is sent, and the peer's has not come.
    Sent,
    /// Nothing more is taken or sent.
    Ended,
}

/// What the first bytes of a frame say.
struct Head {
    fin: bool,
    opcode: u8,
    len: u64,
    mask: [u8; 4],
    /// Its length in bytes.
    size: usize,
}

impl WebSocket {
    /// After the handshake. `seed` comes from the operating system's random numbers; a server needs none.
    ///
    /// A client's masks have to be unpredictable for who chooses the payload (RFC 6455, 10.3), even to one who sees the masks
    /// that were sent: else a device's message could be made to look like HTTP to a cache on the way. Each is SHA-1 of a number
    /// that counts on from the seed: the handshake has brought the function, a hash is little beside the system call that a frame
    /// costs, and to foretell the next mask is to find that number among 2^64.
    #[must_use]
    pub const fn new(role: Role, seed: u64) -> Self {
        Self {
            remaining: 0,
            masks: seed,
            mask: [0; 4],
            empty: 0,
            role,
            fragmented: false,
            closing: Closing::Open,
        }
    }

    /// Takes frames from the front of `bytes`: appends what binary frames carry to `plain`, and answers (pong, close) to `out`.
    /// Returns how many bytes were used; what is left, at most 130 bytes, is offered again in front of what comes next.
    ///
    /// # Errors
    /// [`WsError`]: the close frame was appended to `out`; flush it and close. `plain` has what came before the fault.
    pub fn receive(
        &mut self,
        bytes: &[u8],
        plain: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<usize, WsError> {
        let mut used = 0;
        while self.closing != Closing::Ended {
            used += self.payload(&bytes[used..], plain);
            match self.frame(&bytes[used..], out) {
                Ok(0) => return Ok(used),
                Ok(size) => used += size,
                Err(error) => {
                    self.end(error.code(), error.why(), out);
                    return Err(error);
                }
            }
        }
        Ok(bytes.len())
    }

    /// Appends `plain` to `out` as one binary frame; nothing, if it is empty or the closing handshake has begun.
    pub fn send(&mut self, plain: &[u8], out: &mut Vec<u8>) {
        if !plain.is_empty() && self.closing == Closing::Open {
            self.write(BINARY, &[plain], out);
        }
    }

    /// Appends a close frame to `out`, unless one was sent. What still comes from the peer is then dropped.
    pub fn close(&mut self, code: u16, out: &mut Vec<u8>) {
        if self.closing == Closing::Open {
            self.write(CLOSE, &[&code.to_be_bytes()], out);
            self.closing = Closing::Sent;
        }
    }

    /// Whether the peer's close frame has come (its answer was appended to `out`), or an error: flush and close.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.closing == Closing::Ended
    }

    // === receiving ===

    /// Takes what is there of the current data frame's payload.
    fn payload(&mut self, bytes: &[u8], plain: &mut Vec<u8>) -> usize {
        let len = usize::try_from(self.remaining).map_or(bytes.len(), |remaining| remaining.min(bytes.len()));
        if len == 0 {
            return 0;
        }
        self.empty = 0;
        self.remaining -= len as u64;
        if self.closing == Closing::Open {
            let start = plain.len();
            plain.extend_from_slice(&bytes[..len]);
            if self.role == Role::Server {
                xor(&mut plain[start..], self.mask);
            }
        }
        self.mask.rotate_left(len % 4);
        len
    }

    /// Takes the head of a data frame, or a whole control frame: its size, or 0 if it is not all there.
    fn frame(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<usize, WsError> {
        let Some(head) = self.head(bytes)? else { return Ok(0) };
        if head.opcode < CLOSE {
            self.fragmented = !head.fin;
            self.remaining = head.len;
            self.mask = head.mask;
            if head.len == 0 {
                self.empty += 1;
                if self.empty > EMPTY_FRAMES_MAX {
                    return Err(WsError::Empty);
                }
            }
            return Ok(head.size);
        }
        // A control frame has 125 bytes at most.
        let len = head.len as usize;
        let Some(payload) = bytes[head.size..].get(..len) else { return Ok(0) };
        let mut buffer = [0; SHORT_MAX];
        let payload = {
            buffer[..len].copy_from_slice(payload);
            xor(&mut buffer[..len], head.mask);
            &buffer[..len]
        };
        match head.opcode {
            CLOSE => self.closed(payload, out)?,
            PING if self.closing == Closing::Open => self.write(PONG, &[payload], out),
            // A pong that nobody asked for is allowed (5.5.3), and we ask for none.
            _ => {}
        }
        Ok(head.size + len)
    }

    /// Reads a head, with a mask of 0 if there is none. `None`: it is not all there.
    fn head(&self, bytes: &[u8]) -> Result<Option<Head>, WsError> {
        use WsError::Malformed;
        let &[first, second, ref rest @ ..] = bytes else { return Ok(None) };
        let (fin, opcode, masked, short) =
            (first & FIN != 0, first & 0x0F, second & MASKED != 0, second & !MASKED);
        if first & RSV != 0 {
            return Err(Malformed("a reserved bit is set; no extension was agreed on"));
        }
        match (opcode, self.fragmented) {
            (TEXT_FRAME, _) => return Err(WsError::Text),
            (CONTINUATION, false) => return Err(Malformed("a continuation without a message to continue")),
            (BINARY, true) => return Err(Malformed("a new message within a message")),
            (CONTINUATION | BINARY, _) => {}
            (CLOSE | PING | PONG, _) if !fin => return Err(Malformed("a control frame in fragments")),
            (CLOSE | PING | PONG, _) if usize::from(short) > SHORT_MAX => {
                return Err(Malformed("a control frame with more than 125 bytes"));
            }
            (CLOSE | PING | PONG, _) => {}
            _ => return Err(Malformed("a reserved opcode")),
        }
        match self.role {
            Role::Server if !masked => return Err(Malformed("a client's frame without a mask")),
            Role::Client if masked => return Err(Malformed("a server's frame with a mask")),
            _ => {}
        }
        let (len, rest) = match short {
            126 => match rest.split_first_chunk() {
                Some((&len, rest)) => (u64::from(u16::from_be_bytes(len)), rest),
                None => return Ok(None),
            },
            127 => match rest.split_first_chunk() {
                Some((&len, rest)) => (u64::from_be_bytes(len), rest),
                None => return Ok(None),
            },
            short => (u64::from(short), rest),
        };
        if (short == 126 && len <= SHORT_MAX as u64) || (short == 127 && len <= u64::from(u16::MAX)) {
            return Err(Malformed("a length in more bytes than it needs"));
        }
        if len >> 63 != 0 {
            return Err(Malformed("a length with its highest bit set"));
        }
        let (mask, rest) = match (masked, rest.split_first_chunk()) {
            (false, _) => ([0; 4], rest),
            (true, Some((&mask, rest))) => (mask, rest),
            (true, None) => return Ok(None),
        };
        Ok(Some(Head { fin, opcode, len, mask, size: bytes.len() - rest.len() }))
    }

    /// Answers the peer's close frame, unless it is itself the answer to ours (5.5.1).
    fn closed(&mut self, payload: &[u8], out: &mut Vec<u8>) -> Result<(), WsError> {
        let code = match payload {
            [] => None,
            [_] => return Err(WsError::Malformed("a close frame of one byte")),
            &[high, low, ref reason @ ..] => {
                let code = u16::from_be_bytes([high, low]);
                // Those that are registered for frames, and the ranges for applications (7.4).
                if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
                    return Err(WsError::Malformed("a close frame with a code that may not be sent"));
                }
                if std::str::from_utf8(reason).is_err() {
                    return Err(WsError::Reason);
                }
                Some([high, low])
            }
        };
        if self.closing == Closing::Open {
            self.write(CLOSE, &[code.as_ref().map_or(&[], |code| &code[..])], out);
        }
        self.closing = Closing::Ended;
        Ok(())
    }

    fn end(&mut self, code: u16, why: &str, out: &mut Vec<u8>) {
        if self.closing == Closing::Open {
            self.write(CLOSE, &[&code.to_be_bytes(), why.as_bytes()], out);
        }
        self.closing = Closing::Ended;
    }

    // === sending ===

    /// Appends a whole frame, with its length in as few bytes as it needs. The payload is in parts.
    fn write(&mut self, opcode: u8, payload: &[&[u8]], out: &mut Vec<u8>) {
        let len: usize = payload.iter().map(|part| part.len()).sum();
        let masked = if self.role == Role::Client { MASKED } else { 0 };
        out.reserve(14 + len);
        out.push(FIN | opcode);
        match len {
            0..=SHORT_MAX => out.push(masked | len as u8),
            _ => match u16::try_from(len) {
                Ok(len) => {
                    out.push(masked | 126);
                    out.extend_from_slice(&len.to_be_bytes());
                }
                Err(_) => {
                    out.push(masked | 127);
                    out.extend_from_slice(&(len as u64).to_be_bytes());
                }
            },
        }
        let mask = self.next_mask();
        if let Some(mask) = mask {
            out.extend_from_slice(&mask);
        }
        let start = out.len();
        for part in payload {
            out.extend_from_slice(part);
        }
        if let Some(mask) = mask {
            xor(&mut out[start..], mask);
        }
    }

    /// A client's next mask.
    fn next_mask(&mut self) -> Option<[u8; 4]> {
        if self.role == Role::Server {
            return None;
        }
        let digest: [u8; 20] = Sha1::digest(self.masks.to_le_bytes()).into();
        self.masks = self.masks.wrapping_add(1);
        digest.first_chunk().copied()
    }
}

/// Masks or unmasks in place, `mask[0]` first (RFC 6455, 5.3). Sixteen bytes at a time: one register wide.
fn xor(bytes: &mut [u8], mask: [u8; 4]) {
    let wide = u128::from_ne_bytes(std::array::from_fn(|at| mask[at % 4]));
    let (chunks, rest) = bytes.as_chunks_mut();
    for chunk in chunks {
        *chunk = (u128::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

const _: () = assert!(size_of::<WebSocket>() <= 32, "there are many");

#[cfg(test)]
mod tests;
