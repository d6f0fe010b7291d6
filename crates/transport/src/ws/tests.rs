#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{self, Read, Write};

use proptest::prelude::*;
use tungstenite::protocol::frame::coding::{Data, OpCode};
use tungstenite::protocol::frame::{CloseFrame, Frame};
use tungstenite::protocol::{Role as TheirRole, WebSocketConfig};
use tungstenite::{Error, Message};

use super::*;

/// One side, fed as a socket would.
struct Side {
    ws: WebSocket,
    left: Vec<u8>,
    plain: Vec<u8>,
    out: Vec<u8>,
    error: Option<WsError>,
}

impl Side {
    fn new(role: Role) -> Self {
        Self { ws: WebSocket::new(role, 7), left: vec![], plain: vec![], out: vec![], error: None }
    }

    #[track_caller]
    fn feed(&mut self, bytes: &[u8]) {
        self.left.extend_from_slice(bytes);
        match self.ws.receive(&self.left, &mut self.plain, &mut self.out) {
            Ok(used) => drop(self.left.drain(..used)),
            Err(error) => {
                assert!(self.ws.is_ended());
                self.error = Some(error);
                self.left.clear();
            }
        }
        assert!(self.left.len() <= 130, "{} bytes are left", self.left.len());
    }

    fn result(self) -> (Vec<u8>, Vec<u8>, Option<WsError>, Vec<u8>, bool) {
        (self.plain, self.out, self.error, self.left, self.ws.is_ended())
    }
}

fn opposite(role: Role) -> Role {
    if role == Role::Server { Role::Client } else { Role::Server }
}

const MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];

/// The plainest writing of a frame that `to` takes.
fn frame(to: Role, first: u8, payload: &[u8]) -> Vec<u8> {
    let masked = if to == Role::Server { 0x80 } else { 0 };
    let mut bytes = vec![first];
    match payload.len() {
        len @ 0..126 => bytes.push(masked | u8::try_from(len).unwrap()),
        len @ 126..65_536 => {
            bytes.push(masked | 126);
            bytes.extend(u16::try_from(len).unwrap().to_be_bytes());
        }
        len => {
            bytes.push(masked | 127);
            bytes.extend((len as u64).to_be_bytes());
        }
    }
    if to == Role::Server {
        bytes.extend(MASK);
        bytes.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ MASK[at % 4]));
    } else {
        bytes.extend(payload);
    }
    bytes
}

/// Of a close frame that a server sent: its code.
fn closed_with(out: &[u8]) -> Option<u16> {
    match out {
        [0x88, len, high, low, reason @ ..] => {
            assert_eq!(usize::from(*len), 2 + reason.len());
            assert!(*len < 126 && std::str::from_utf8(reason).is_ok());
            Some(u16::from_be_bytes([*high, *low]))
        }
        _ => None,
    }
}

/// RFC 6455, 5.7, with binary in the place of text.
#[test]
fn examples_of_the_rfc() {
    let hello_masked = [0x82, 0x85, 0x37, 0xFA, 0x21, 0x3D, 0x7F, 0x9F, 0x4D, 0x51, 0x58];
    let mut server = Side::new(Role::Server);
    server.feed(&hello_masked);
    assert_eq!(server.plain, b"Hello");
    let mut client = Side::new(Role::Client);
    client.feed(&[0x82, 0x05, 0x48, 0x65, 0x6C, 0x6C, 0x6F]);
    client.feed(&[0x02, 0x03, 0x48, 0x65, 0x6C, 0x80, 0x02, 0x6C, 0x6F]);
    assert_eq!(client.plain, b"HelloHello");
    // A ping and its answer.
    let mut server = Side::new(Role::Server);
    server.feed(&[0x89, 0x85, 0x37, 0xFA, 0x21, 0x3D, 0x7F, 0x9F, 0x4D, 0x51, 0x58]);
    assert_eq!(server.out, [0x8A, 0x05, 0x48, 0x65, 0x6C, 0x6C, 0x6F]);
    // Lengths.
    let mut out = Vec::new();
    let mut server = WebSocket::new(Role::Server, 0);
    for (len, head) in [
        (1, &[0x82, 1][..]),
        (125, &[0x82, 125]),
        (126, &[0x82, 0x7E, 0, 126]),
        (256, &[0x82, 0x7E, 1, 0]),
        (65_535, &[0x82, 0x7E, 0xFF, 0xFF]),
        (65_536, &[0x82, 0x7F, 0, 0, 0, 0, 0, 1, 0, 0]),
    ] {
        out.clear();
        server.send(&vec![7; len], &mut out);
        assert_eq!((&out[..head.len()], out.len()), (head, head.len() + len));
    }
    out.clear();
    server.send(&[], &mut out);
    assert!(out.is_empty());
}

#[test]
fn refusals() {
    use Role::{Client, Server};
    let good = frame(Server, 0x82, b"good");
    for (role, bytes, code) in [
        (Server, frame(Server, 0x81, b"Hello"), 1003),
        (Client, frame(Client, 0x81, b"Hello"), 1003),
        (Server, frame(Server, 0x01, b""), 1003),
        (Server, frame(Server, 0xC2, b"x"), 1002),
        (Server, frame(Server, 0xA2, b"x"), 1002),
        (Server, frame(Server, 0x92, b"x"), 1002),
        (Server, frame(Server, 0xC9, b"x"), 1002),
        (Server, frame(Client, 0x82, b"x"), 1002),
        (Client, frame(Server, 0x82, b"x"), 1002),
        (Server, frame(Client, 0x89, b""), 1002),
        (Server, frame(Server, 0x83, b"x"), 1002),
        (Server, frame(Server, 0x87, b"x"), 1002),
        (Server, frame(Server, 0x8B, b"x"), 1002),
        (Server, frame(Server, 0x8F, b"x"), 1002),
        (Server, frame(Server, 0x09, b"x"), 1002),
        (Server, frame(Server, 0x08, &[3, 232]), 1002),
        (Server, frame(Server, 0x89, &[0; 126]), 1002),
        (Server, frame(Server, 0x88, &[0; 70_000]), 1002),
        (Server, frame(Server, 0x80, b"x"), 1002),
        (Server, frame(Server, 0x00, b"x"), 1002),
        (Server, [frame(Server, 0x02, b"x"), frame(Server, 0x82, b"x")].concat(), 1002),
        (Server, [frame(Server, 0x02, b""), frame(Server, 0x81, b"x")].concat(), 1003),
        (
            Server,
            [frame(Server, 0x02, b"x"), frame(Server, 0x80, b"x"), frame(Server, 0x80, b"")].concat(),
            1002,
        ),
        (Server, vec![0x82, 0xFE, 0, 125], 1002),
        (Server, vec![0x82, 0xFF, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF], 1002),
        (Server, vec![0x82, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0], 1002),
        (Server, frame(Server, 0x88, &[3]), 1002),
        (Server, frame(Server, 0x88, &999_u16.to_be_bytes()), 1002),
        (Server, frame(Server, 0x88, &1004_u16.to_be_bytes()), 1002),
        (Server, frame(Server, 0x88, &1005_u16.to_be_bytes()), 1002),
        (Server, frame(Server, 0x88, &1006_u16.to_be_bytes()), 1002),
        (Server, frame(Server, 0x88, &1015_u16.to_be_bytes()), 1002),
        (Server, frame(Server, 0x88, &2999_u16.to_be_bytes()), 1002),
        (Server, frame(Server, 0x88, &5000_u16.to_be_bytes()), 1002),
        (Server, frame(Server, 0x88, b"\x03\xE8\xFF"), 1007),
    ] {
        let mut side = Side::new(role);
        let before = if role == Server { good.clone() } else { frame(Client, 0x82, b"good") };
        // And what comes behind it is not looked at.
        side.feed(&[&before[..], &bytes, &before].concat());
        let error = side.error.unwrap_or_else(|| panic!("taken: {bytes:02x?}"));
        assert_eq!(error.code(), code, "{error}: {bytes:02x?}");
        assert!(side.plain.starts_with(b"good") && !side.plain.ends_with(b"good") || side.plain == b"good");
        if role == Server {
            assert_eq!(closed_with(&side.out), Some(code), "{:02x?}", side.out);
        } else {
            let mut peer = Side::new(Server);
            peer.feed(&side.out);
            assert_eq!(closed_with(&peer.out), Some(code));
        }
        let sent = side.out.clone();
        side.feed(&before);
        side.ws.send(b"x", &mut side.out);
        side.ws.close(1000, &mut side.out);
        assert_eq!(side.out, sent, "nothing is sent after a close frame");
    }
}

/// The two bytes of a head are enough to refuse a frame that will be long in coming.
#[test]
fn refusals_are_early() {
    for bytes in [[0x81, 0xFF], [0xC2, 0xFF], [0x82, 0x7F], [0x80, 0xFF], [0x89, 0xFE], [0x83, 0x80]] {
        let mut side = Side::new(Role::Server);
        side.feed(&bytes);
        assert!(side.error.is_some(), "{bytes:02x?}");
    }
}

#[test]
fn closing() {
    // The peer closes: answered with its code, without one if it gave none.
    for (payload, answer) in [
        (&b""[..], &[0x88, 0][..]),
        (b"\x03\xE8", &[0x88, 2, 3, 0xE8]),
        (b"\x03\xE9going away", &[0x88, 2, 3, 0xE9]),
        (b"\x13\x87", &[0x88, 2, 0x13, 0x87]),
    ] {
        let mut side = Side::new(Role::Server);
        side.feed(
            &[
                frame(Role::Server, 0x82, b"last"),
                frame(Role::Server, 0x88, payload),
                frame(Role::Server, 0x82, b"x"),
            ]
            .concat(),
        );
        assert_eq!((&side.plain[..], &side.out[..], side.error), (&b"last"[..], answer, None));
        assert!(side.ws.is_ended() && side.left.is_empty());
        side.feed(&frame(Role::Server, 0x89, b"ping"));
        side.ws.send(b"x", &mut side.out);
        assert_eq!(side.out, answer);
    }
    // We close: the rest is dropped, the answer ends it and is not answered.
    let mut side = Side::new(Role::Server);
    side.ws.close(1001, &mut side.out);
    side.ws.close(1002, &mut side.out);
    side.ws.send(b"x", &mut side.out);
    assert_eq!(side.out, [0x88, 2, 3, 0xE9]);
    side.feed(&[frame(Role::Server, 0x82, b"x"), frame(Role::Server, 0x89, b"ping")].concat());
    assert!(side.plain.is_empty() && side.out.len() == 4 && !side.ws.is_ended());
    side.feed(&frame(Role::Server, 0x88, &[3, 0xE9]));
    assert!(side.ws.is_ended() && side.out.len() == 4);
    // The two roles with each other.
    let (mut client, mut server) = (Side::new(Role::Client), Side::new(Role::Server));
    let mut wire = Vec::new();
    client.ws.close(1000, &mut wire);
    server.feed(&wire);
    client.feed(&server.out);
    assert!(client.ws.is_ended() && server.ws.is_ended());
    assert_eq!((client.error, server.error), (None, None));
}

#[test]
fn fragments_without_payload() {
    let flood = |count: u16| frame(Role::Server, 0x00, b"").repeat(usize::from(count));
    let start = frame(Role::Server, 0x02, b"x");
    let mut side = Side::new(Role::Server);
    side.feed(&start);
    for _ in 0..3 {
        side.feed(&flood(EMPTY_FRAMES_MAX));
        side.feed(&frame(Role::Server, 0x89, b""));
        assert_eq!(side.error, None);
        side.feed(&frame(Role::Server, 0x00, b"y"));
    }
    side.out.clear();
    side.feed(&flood(EMPTY_FRAMES_MAX));
    // A ping is no payload.
    side.feed(&frame(Role::Server, 0x8A, b"pong"));
    assert_eq!(side.error, None);
    side.feed(&flood(1));
    assert_eq!((side.error, closed_with(&side.out)), (Some(WsError::Empty), Some(1008)));
    assert_eq!(side.plain, b"xyyy");
    // Whole messages without payload are no better.
    let mut side = Side::new(Role::Server);
    side.feed(&frame(Role::Server, 0x82, b"").repeat(usize::from(EMPTY_FRAMES_MAX) + 1));
    assert_eq!(side.error, Some(WsError::Empty));
    assert!(EMPTY.contains("1,024") && EMPTY_FRAMES_MAX == 1_024);
}

/// A length alone costs nothing.
#[test]
fn the_longest_frame() {
    let mut side = Side::new(Role::Server);
    side.feed(&[&[0x82, 0xFF][..], &(u64::MAX >> 1).to_be_bytes(), &[0; 4], b"payload"].concat());
    assert_eq!((&side.plain[..], side.error), (&b"payload"[..], None));
    assert!(side.plain.capacity() < 100 && side.left.capacity() < 100);
}

#[test]
fn masks() {
    let masks = |seed: u64| -> Vec<[u8; 4]> {
        let mut client = WebSocket::new(Role::Client, seed);
        let frame = |_| {
            let mut out = Vec::new();
            client.send(b"....", &mut out);
            *out[2..].first_chunk().unwrap()
        };
        (0..100).map(frame).collect()
    };
    assert_eq!(masks(1), masks(1));
    let mut all = [masks(1), masks(u64::MAX - 200), masks(1 << 40)].concat();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 300, "no mask comes twice here");
}

#[test]
fn xor_by_bytes() {
    let bytes: Vec<u8> = (0..=255).cycle().take(300).collect();
    for start in 0..20 {
        for end in start..start + 70 {
            let mut fast = bytes.clone();
            xor(&mut fast[start..end], MASK);
            let slow: Vec<u8> =
                bytes[start..end].iter().enumerate().map(|(at, byte)| byte ^ MASK[at % 4]).collect();
            assert_eq!(
                (&fast[..start], &fast[start..end], &fast[end..]),
                (&bytes[..start], &slow[..], &bytes[end..])
            );
        }
    }
}

// === any split ===

/// Frames as a peer may send them: data in fragments with control frames in between, and now and then something wrong.
fn frames(to: Role) -> impl Strategy<Value = Vec<u8>> {
    let data = (0..400_usize, any::<bool>()).prop_map(|(len, fin)| (None, fin, len));
    let control =
        (prop::sample::select(vec![0x89, 0x8A]), 0..=125_usize).prop_map(|(op, len)| (Some(op), true, len));
    let wrong = (prop::sample::select(vec![0x88, 0x81, 0xC2, 0x8B]), 0..3_usize)
        .prop_map(|(op, len)| (Some(op), true, len));
    prop::collection::vec(prop_oneof![8 => data, 4 => control, 1 => wrong], 0..20).prop_map(move |frames| {
        let (mut bytes, mut within, mut next) = (Vec::new(), false, 0_u8);
        for (op, fin, len) in frames {
            let payload: Vec<u8> = (0..len).map(|at| next.wrapping_add(at as u8)).collect();
            next = next.wrapping_add(17);
            let first = op.unwrap_or(u8::from(fin) << 7 | if within { 0 } else { 2 });
            within = if op.is_none() { !fin } else { within };
            bytes.extend(frame(to, first, &payload));
        }
        bytes
    })
}

fn roles() -> impl Strategy<Value = Role> {
    prop::sample::select(vec![Role::Server, Role::Client])
}

proptest! {
    #[test]
    fn any_split(
        (role, bytes) in roles().prop_flat_map(|role| (Just(role), prop_oneof![
            4 => frames(role),
            1 => prop::collection::vec(any::<u8>(), 0..300),
        ])),
        sizes in prop::collection::vec(1..60_usize, 1..20),
    ) {
        let mut whole = Side::new(role);
        whole.feed(&bytes);
        let mut parts = Side::new(role);
        let (mut rest, mut sizes) = (&bytes[..], sizes.iter().cycle());
        while !rest.is_empty() && parts.error.is_none() {
            let (part, after) = rest.split_at(rest.len().min(*sizes.next().unwrap()));
            parts.feed(part);
            rest = after;
        }
        prop_assert!(whole.plain.len() <= bytes.len());
        // Pongs and at most one close frame.
        prop_assert!(whole.out.len() <= 3 * bytes.len() + 131);
        // What is answered is what the other role takes.
        let mut peer = Side::new(opposite(role));
        peer.feed(&whole.out);
        prop_assert_eq!(peer.error, None);
        prop_assert!(peer.left.is_empty() && peer.plain.is_empty());
        prop_assert_eq!(peer.ws.is_ended(), whole.ws.is_ended());
        prop_assert_eq!(whole.result(), parts.result());
    }

    #[test]
    fn between_the_roles(
        role in roles(),
        messages in prop::collection::vec(prop_oneof![
            prop::collection::vec(any::<u8>(), 0..300),
            (125..127_usize).prop_map(|len| vec![1; len]),
            (65_534..65_538_usize).prop_map(|len| vec![2; len]),
        ], 0..8),
        size in 1..70_000_usize,
    ) {
        let mut sender = WebSocket::new(role, 3);
        let mut wire = Vec::new();
        for message in &messages {
            sender.send(message, &mut wire);
        }
        let mut receiver = Side::new(opposite(role));
        for part in wire.chunks(size) {
            receiver.feed(part);
        }
        prop_assert_eq!(receiver.error, None);
        prop_assert_eq!(receiver.plain, messages.concat());
        prop_assert!(receiver.left.is_empty() && receiver.out.is_empty());
    }
}

// === against tungstenite ===

/// A pipe's two ends in memory.
#[derive(Default)]
struct Pipe {
    to_them: Vec<u8>,
    from_them: Vec<u8>,
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.to_them.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let len = buffer.len().min(self.to_them.len());
        buffer[..len].copy_from_slice(&self.to_them[..len]);
        self.to_them.drain(..len);
        Ok(len)
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.from_them.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type Them = tungstenite::WebSocket<Pipe>;

fn them(ours: Role) -> Them {
    let role = if ours == Role::Server { TheirRole::Client } else { TheirRole::Server };
    Them::from_raw_socket(Pipe::default(), role, Some(WebSocketConfig::default()))
}

/// What they make of `bytes`, until they want more.
fn they_read(them: &mut Them, bytes: &[u8]) -> Vec<Message> {
    them.get_mut().to_them.extend_from_slice(bytes);
    let mut messages = Vec::new();
    loop {
        match them.read() {
            Ok(message) => messages.push(message),
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return messages,
            Err(Error::ConnectionClosed) => return messages,
            Err(error) => panic!("{error}"),
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// A message of theirs in fragments of this many bytes, with a ping after each if so.
    Theirs(Vec<u8>, usize, bool),
    Ours(Vec<u8>),
    Ping(Vec<u8>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let bytes = || prop::collection::vec(any::<u8>(), 1..500);
    prop::collection::vec(
        prop_oneof![
            (bytes(), 1..200_usize, any::<bool>())
                .prop_map(|(bytes, size, pings)| Step::Theirs(bytes, size, pings)),
            bytes().prop_map(Step::Ours),
            (65_500..65_600_usize).prop_map(|len| Step::Ours(vec![9; len])),
            prop::collection::vec(any::<u8>(), 0..=125).prop_map(Step::Ping),
        ],
        0..10,
    )
}

proptest! {
    #[test]
    fn against_tungstenite(role in roles(), steps in steps(), size in 1..2_000_usize) {
        let (mut us, mut them) = (Side::new(role), them(role));
        let mut theirs = Vec::new();
        for step in steps {
            let mut pongs = Vec::new();
            match step {
                Step::Theirs(bytes, size, pings) => {
                    let count = bytes.chunks(size).count();
                    for (at, part) in bytes.chunks(size).enumerate() {
                        let opcode = if at == 0 { Data::Binary } else { Data::Continue };
                        let frame = Frame::message(part.to_vec(), OpCode::Data(opcode), at + 1 == count);
                        them.write(Message::Frame(frame)).unwrap();
                        if pings {
                            them.write(Message::Ping(part[..part.len().min(125)].to_vec().into())).unwrap();
                            pongs.push(Message::Pong(part[..part.len().min(125)].to_vec().into()));
                        }
                    }
                    theirs.extend(bytes);
                }
                Step::Ours(bytes) => {
                    let mut wire = Vec::new();
                    us.ws.send(&bytes, &mut wire);
                    prop_assert_eq!(they_read(&mut them, &wire), [Message::Binary(bytes.into())]);
                }
                Step::Ping(bytes) => {
                    them.write(Message::Ping(bytes.clone().into())).unwrap();
                    pongs.push(Message::Pong(bytes.into()));
                }
            }
            them.flush().unwrap();
            for part in std::mem::take(&mut them.get_mut().from_them).chunks(size) {
                us.feed(part);
            }
            prop_assert_eq!(us.error, None);
            prop_assert_eq!(&us.plain, &theirs);
            prop_assert_eq!(they_read(&mut them, &std::mem::take(&mut us.out)), pongs);
        }
        // They close; we answer; they are content.
        them.close(Some(CloseFrame { code: 4_000.into(), reason: "done".into() })).unwrap();
        us.feed(&std::mem::take(&mut them.get_mut().from_them));
        prop_assert!(us.ws.is_ended() && us.error.is_none());
        let last = they_read(&mut them, &us.out);
        prop_assert!(matches!(&last[..], [Message::Close(Some(frame))] if u16::from(frame.code) == 4_000), "{:?}", last);
        prop_assert!(!them.can_read());
    }
}

#[test]
fn tungstenite_is_closed() {
    for role in [Role::Server, Role::Client] {
        let (mut us, mut them) = (Side::new(role), them(role));
        us.ws.close(1001, &mut us.out);
        let read = they_read(&mut them, &us.out);
        assert!(
            matches!(&read[..], [Message::Close(Some(frame))] if u16::from(frame.code) == 1001),
            "{read:?}"
        );
        let _ = them.flush();
        us.feed(&std::mem::take(&mut them.get_mut().from_them));
        assert!(us.ws.is_ended() && us.error.is_none());
    }
}

/// A refusal says why in words.
#[test]
fn tungstenite_is_told_why() {
    for role in [Role::Server, Role::Client] {
        let (mut us, mut them) = (Side::new(role), them(role));
        us.feed(&frame(role, 0x81, b"text"));
        let read = they_read(&mut them, &us.out);
        let [Message::Close(Some(close))] = &read[..] else { panic!("{read:?}") };
        assert_eq!((u16::from(close.code), close.reason.as_str()), (1003, TEXT));
    }
}
