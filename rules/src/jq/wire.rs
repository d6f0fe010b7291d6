//! What parent and worker say to each other. A frame is its length (u32, little-endian) and so many bytes.
//!
//! | frame | bytes |
//! |---|---|
//! | ready, first of all; begun, when a program is compiled and its input read | none |
//! | request | `C`, program; or `R`, outputs at most (u32), bytes at most (u32), length of the program (u32), program, input |
//! | answer | `O`, JSON array; `M`, place (u32, all ones: unknown), message; `E`, message |

use std::io::{self, Read, Write};

use super::{INPUT_MAX, PROGRAM_MAX};

/// The longest request.
pub(super) const REQUEST_MAX: usize = 16 + PROGRAM_MAX + INPUT_MAX;
/// The longest message of an error.
const MESSAGE_MAX: usize = 512;

/// What the parent asks.
#[derive(Debug, PartialEq)]
pub(super) enum Request<'f> {
    /// Whether a program is one.
    Check { program: &'f str },
    /// Its outputs on an input.
    Run { program: &'f str, input: &'f [u8], outputs_max: u32, bytes_max: u32 },
}

impl<'f> Request<'f> {
    /// As a whole frame.
    pub(super) fn frame(&self) -> Vec<u8> {
        let mut body = Vec::new();
        match self {
            Request::Check { program } => {
                body.push(b'C');
                body.extend_from_slice(program.as_bytes());
            }
            Request::Run { program, input, outputs_max, bytes_max } => {
                body.push(b'R');
                body.extend_from_slice(&outputs_max.to_le_bytes());
                body.extend_from_slice(&bytes_max.to_le_bytes());
                body.extend_from_slice(&length(program.as_bytes()).to_le_bytes());
                body.extend_from_slice(program.as_bytes());
                body.extend_from_slice(input);
            }
        }
        frame(&body)
    }

    pub(super) fn read(body: &'f [u8]) -> Option<Request<'f>> {
        let (kind, rest) = body.split_first()?;
        match kind {
            b'C' => Some(Request::Check { program: std::str::from_utf8(rest).ok()? }),
            b'R' => {
                let (outputs_max, rest) = number(rest)?;
                let (bytes_max, rest) = number(rest)?;
                let (program, rest) = number(rest)?;
                let (program, input) = rest.split_at_checked(usize::try_from(program).ok()?)?;
                let program = std::str::from_utf8(program).ok()?;
                Some(Request::Run { program, input, outputs_max, bytes_max })
            }
            _ => None,
        }
    }

    /// The longest answer that may come.
    pub(super) fn answer_max(&self) -> usize {
        let outputs = match self {
            Request::Check { .. } => 0,
            Request::Run { bytes_max, .. } => usize::try_from(*bytes_max).unwrap_or(usize::MAX),
        };
        outputs.saturating_add(MESSAGE_MAX + 16)
    }
}

/// What the worker answers.
#[derive(Debug, PartialEq)]
pub(super) enum Answer {
    /// A JSON array.
    Outputs(String),
    Mistake {
        at: Option<usize>,
        message: String,
    },
    Raised(String),
}

impl Answer {
    pub(super) fn frame(&self) -> Vec<u8> {
        let mut body = Vec::new();
        match self {
            Answer::Outputs(json) => {
                body.push(b'O');
                body.extend_from_slice(json.as_bytes());
            }
            Answer::Mistake { at, message } => {
                body.push(b'M');
                let at = at.and_then(|at| u32::try_from(at).ok()).unwrap_or(u32::MAX);
                body.extend_from_slice(&at.to_le_bytes());
                body.extend_from_slice(cut(message).as_bytes());
            }
            Answer::Raised(message) => {
                body.push(b'E');
                body.extend_from_slice(cut(message).as_bytes());
            }
        }
        frame(&body)
    }

    pub(super) fn read(body: Vec<u8>) -> Option<Answer> {
        let (kind, rest) = body.split_first()?;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
        match kind {
            b'O' => Some(Answer::Outputs(text(rest)?)),
            b'M' => {
                let (at, message) = number(rest)?;
                let at = if at == u32::MAX { None } else { usize::try_from(at).ok() };
                Some(Answer::Mistake { at, message: text(message)? })
            }
            b'E' => Some(Answer::Raised(text(rest)?)),
            _ => None,
        }
    }
}

fn cut(message: &str) -> &str {
    &message[..message.floor_char_boundary(MESSAGE_MAX)]
}

fn number(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    Some((u32::from_le_bytes(*number), rest))
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

fn frame(body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(4 + body.len());
    frame.extend_from_slice(&length(body).to_le_bytes());
    frame.extend_from_slice(body);
    frame
}

/// Writes the frame without bytes.
pub(super) fn write_empty(out: &mut impl Write) -> io::Result<()> {
    out.write_all(&frame(&[]))
}

/// Reads a frame of at most `max` bytes; `None` at the end.
pub(super) fn read_frame(input: &mut impl Read, max: usize) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match input.read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    if length > max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame is too long"));
    }
    let mut body = vec![0; length];
    input.read_exact(&mut body)?;
    Ok(Some(body))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn requests_and_answers_come_as_they_went() {
        let requests = [
            Request::Check { program: ".a" },
            Request::Run { program: "é", input: b"{}", outputs_max: 7, bytes_max: 9 },
        ];
        for request in requests {
            let frame = request.frame();
            let body = read_frame(&mut &frame[..], REQUEST_MAX).unwrap().unwrap();
            assert_eq!(Request::read(&body), Some(request));
            assert!(read_frame(&mut &frame[..], body.len() - 1).is_err());
            for cut in 0..body.len() {
                // Whatever a broken peer says: no panic.
                let _ = Request::read(&body[..cut]);
            }
        }
        let answers = [
            Answer::Outputs("[1]".into()),
            Answer::Mistake { at: Some(3), message: "m".into() },
            Answer::Mistake { at: None, message: String::new() },
            Answer::Raised("no".into()),
        ];
        for answer in answers {
            let body = answer.frame().split_off(4);
            assert_eq!(Answer::read(body), Some(answer));
        }
        assert!(Answer::Raised("é".repeat(MESSAGE_MAX)).frame().len() <= MESSAGE_MAX + 16);
    }
}
