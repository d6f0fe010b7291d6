//! Arbitrary bytes as what comes before MQTT: a PROXY header, the handshake of a WebSocket, its frames.
//!
//! | invariant | check |
//! |---|---|
//! | no panic | every function that takes a peer's bytes is called |
//! | incomplete is not wrong | a beginning of what is taken asks for more |
//! | what is refused stays refused | once a beginning is refused, all that is longer is, and for the same reason |
//! | nothing behind the end is read | with other bytes behind it the result is the same |
//! | a split changes nothing | frames at once, in pieces and byte by byte: the same payload, the same answers, the same end |
//! | bounds | heads are not longer than their bounds; frames leave 130 bytes, and are answered by three times as many and a close frame |
//! | the other side agrees | headers, requests, responses and frames that are written here are taken by the side that reads them |

use ferrule_transport::http::{self, HttpError, Upgrading};
use ferrule_transport::proxy::{self, Header};
use ferrule_transport::ws::{Role, WebSocket, WsError};

use crate::Input;

/// Inputs up to this many bytes are looked at prefix by prefix, which costs their square.
const PREFIXES: usize = 256;
/// What [`WebSocket::receive`] leaves at most.
const LEFT_MAX: usize = 130;
/// The longest control frame.
const CLOSE_MAX: usize = 131;

/// Holds a parser of whole heads against its beginnings and what follows, and gives back what it makes of `bytes`.
fn head<T, E>(
    bytes: &[u8],
    parse: impl Fn(&[u8]) -> Result<Option<(T, usize)>, E>,
) -> Result<Option<(T, usize)>, E>
where
    T: PartialEq + std::fmt::Debug,
    E: PartialEq + std::fmt::Debug,
{
    let result = parse(bytes);
    let end = match &result {
        Ok(Some((_, used))) => {
            assert!(*used > 0 && *used <= bytes.len(), "{used} bytes of {}", bytes.len());
            let alone: Box<[u8]> = bytes[..*used].into();
            assert_eq!(parse(&alone), result, "by what follows");
            *used
        }
        _ => bytes.len(),
    };
    let mut refused = false;
    for len in (0..end).take(PREFIXES).chain(end.saturating_sub(PREFIXES).max(PREFIXES)..end) {
        match parse(&bytes[..len]) {
            Ok(None) => assert!(!refused, "{len} of {end} bytes are no longer refused"),
            early => {
                assert_eq!(early, result, "{len} of {end} bytes");
                assert!(early.is_err(), "{len} of {end} bytes are enough");
                refused = true;
            }
        }
    }
    if !matches!(result, Ok(None)) {
        let followed = [bytes, &[0xFF; 16]].concat();
        assert_eq!(parse(&followed), result, "by what follows");
    }
    result
}

/// The target `proxy`: the bytes are a connection's first.
///
/// # Panics
/// When an invariant of the table above is broken.
pub fn proxy(data: &[u8]) {
    match head(data, proxy::parse) {
        Ok(Some((Header { source: Some(source), certificate }, used))) => {
            assert!(used <= proxy::HEADER_BYTES_MAX);
            let (mut v1, mut v2) = (Vec::new(), Vec::new());
            proxy::encode_v1(source, source, &mut v1);
            let plain = Header { source: Some(source), certificate: None };
            assert_eq!(proxy::parse(&v1), Ok(Some((plain, v1.len()))));
            proxy::encode_v2(source, source, certificate.as_deref(), &mut v2);
            let (header, used) = proxy::parse(&v2).expect("written here").expect("whole");
            assert_eq!((header.source, used), (Some(source), v2.len()));
            // A name that fills the header leaves no room for the checksum, and is left out.
            assert!(header.certificate == certificate || header.certificate.is_none() && used < 100);
        }
        Ok(Some((_, used))) => assert!(used <= proxy::HEADER_BYTES_MAX),
        Ok(None) => assert!(data.len() < proxy::HEADER_BYTES_MAX),
        Err(error) => drop(error.to_string()),
    }
}

/// The target `http`: the first byte says whose head the rest is, a client's, a server's or a proxy's.
///
/// # Panics
/// When an invariant of the table above is broken.
pub fn http(data: &[u8]) {
    let mut input = Input::new(data);
    let side = input.below(3);
    let bytes = input.bytes(data.len());
    let mut sent = Vec::new();
    let key = std::array::from_fn(|at| bytes.get(at).copied().unwrap_or(0));
    let upgrading = Upgrading::request("broker.example", "/mqtt", key, &mut sent);
    match side {
        0 => requests(bytes, &upgrading),
        1 => answers(bytes, |bytes| upgrading.response(bytes)),
        _ => answers(bytes, http::connect_response),
    }
    let mut answer = Vec::new();
    assert_eq!(http::upgrade(&sent, "/mqtt", &mut answer), Ok(Some(sent.len())));
    assert_eq!(upgrading.response(&answer), Ok(Some(answer.len())));
}

fn requests(bytes: &[u8], upgrading: &Upgrading) {
    let result = head(bytes, |bytes| {
        let mut out = b"before".to_vec();
        let result = http::upgrade(bytes, "/mqtt", &mut out);
        let written = out.strip_prefix(b"before").expect("what was there stays");
        match &result {
            Ok(None) => assert!(written.is_empty()),
            // For a key that is not its own.
            Ok(Some(_)) => {
                let answer = upgrading.response(written);
                assert!(matches!(answer, Ok(Some(_)) | Err(HttpError::Handshake(_))), "{answer:?}");
            }
            Err(HttpError::Refused { status, .. }) => match upgrading.response(written) {
                Err(HttpError::Declined { status: said, .. }) => assert_eq!(said, *status),
                answer => panic!("{answer:?}"),
            },
            Err(error) => panic!("{error:?} at a server"),
        }
        result.map(|used| used.map(|used| ((), used)))
    });
    match result {
        Ok(None) => assert!(bytes.len() < http::REQUEST_BYTES_MAX),
        Ok(Some((_, used))) => assert!(used <= http::REQUEST_BYTES_MAX),
        Err(_) => {}
    }
}

fn answers(bytes: &[u8], parse: impl Fn(&[u8]) -> Result<Option<usize>, HttpError>) {
    match head(bytes, |bytes| parse(bytes).map(|used| used.map(|used| ((), used)))) {
        Ok(None) => assert!(bytes.len() < http::RESPONSE_BYTES_MAX),
        Ok(Some((_, used))) => assert!(used <= http::RESPONSE_BYTES_MAX),
        Err(HttpError::Refused { .. }) => panic!("a client refuses nothing"),
        Err(error) => drop(error.to_string()),
    }
}

/// One side of a WebSocket, fed in pieces.
struct Side {
    ws: WebSocket,
    plain: Vec<u8>,
    out: Vec<u8>,
    error: Option<WsError>,
    left: Vec<u8>,
}

impl Side {
    fn new(role: Role, closes: bool) -> Self {
        let mut ws = WebSocket::new(role, 0);
        let mut out = Vec::new();
        if closes {
            ws.close(1001, &mut out);
        }
        Self { ws, plain: Vec::new(), out, error: None, left: Vec::new() }
    }

    fn feed(mut self, bytes: &[u8], size: usize) -> Self {
        for piece in bytes.chunks(size) {
            self.left.extend_from_slice(piece);
            match self.ws.receive(&self.left, &mut self.plain, &mut self.out) {
                Ok(used) => drop(self.left.drain(..used)),
                Err(error) => {
                    let _ = (error.code(), error.to_string());
                    assert!(self.ws.is_ended());
                    self.error = Some(error);
                    self.left.clear();
                    return self;
                }
            }
            assert!(self.left.len() <= LEFT_MAX, "{} bytes are left", self.left.len());
        }
        self
    }

    fn seen(&self) -> (&[u8], &[u8], Option<WsError>, &[u8], bool) {
        (&self.plain, &self.out, self.error, &self.left, self.ws.is_ended())
    }
}

/// The target `websocket`: the first byte says the role and whether this side has sent its close frame, the second a size of
/// pieces; the rest are frames.
///
/// # Panics
/// When an invariant of the table above is broken.
pub fn websocket(data: &[u8]) {
    let mut input = Input::new(data);
    let settings = input.byte();
    let (role, other) =
        if settings & 1 == 0 { (Role::Server, Role::Client) } else { (Role::Client, Role::Server) };
    let closes = settings & 2 != 0;
    let size = input.below(200) + 2;
    let bytes = input.bytes(data.len());

    let whole = Side::new(role, closes).feed(bytes, bytes.len().max(1));
    for size in [size, 1] {
        assert_eq!(Side::new(role, closes).feed(bytes, size).seen(), whole.seen(), "in pieces of {size}");
    }
    assert!(whole.plain.len() <= bytes.len() && (!closes || whole.plain.is_empty()));
    assert!(whole.out.len() <= 3 * bytes.len() + CLOSE_MAX, "{} bytes for {}", whole.out.len(), bytes.len());

    let peer = Side::new(other, false).feed(&whole.out, size);
    assert_eq!((peer.error, &peer.plain[..], &peer.left[..]), (None, &[][..], &[][..]));
    assert_eq!(peer.ws.is_ended(), closes || whole.ws.is_ended());

    let mut wire = Vec::new();
    let mut sender = WebSocket::new(other, 1);
    for part in bytes.chunks(size) {
        sender.send(part, &mut wire);
    }
    let receiver = Side::new(role, false).feed(&wire, size);
    assert_eq!(receiver.seen(), (bytes, &[][..], None, &[][..], false));
}
