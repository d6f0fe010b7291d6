#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::*;

/// RFC 6455, 1.2.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

const GOOD: [&str; 6] = [
    "Host: server.example.com",
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Protocol: mqtt",
    "Sec-WebSocket-Version: 13",
];

fn request(line: &str, fields: &[&str]) -> Vec<u8> {
    format!("{line}\r\n{}\r\n\r\n", fields.join("\r\n")).into_bytes()
}

/// The good request with the fields of this name replaced.
fn with(name: &str, fields: &[&str]) -> Vec<u8> {
    let kept =
        GOOD.iter().filter(|field| !field.to_lowercase().starts_with(&format!("{}:", name.to_lowercase())));
    let all: Vec<&str> = kept.chain(fields).copied().collect();
    request("GET /mqtt HTTP/1.1", &all)
}

/// Taken when it is whole, and not before.
#[track_caller]
fn upgrades(bytes: &[u8]) -> String {
    let mut out = Vec::new();
    for end in 0..bytes.len() {
        assert_eq!(upgrade(&bytes[..end], "/mqtt", &mut out), Ok(None), "{end} bytes");
        assert!(out.is_empty());
    }
    let all = [bytes, b"\x82\x80mask"].concat();
    assert_eq!(upgrade(&all, "/mqtt", &mut out), Ok(Some(bytes.len())));
    String::from_utf8(out).unwrap()
}

/// Refused with this status; the response.
#[track_caller]
fn refused(bytes: &[u8], status: u16) -> String {
    let mut out = Vec::new();
    let result = upgrade(bytes, "/mqtt", &mut out);
    let text = String::from_utf8(out).unwrap();
    let Err(HttpError::Refused { status: said, why }) = result else { panic!("{result:?}: {text}") };
    assert_eq!(said, status, "{text}");
    assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{text}");
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert_eq!(body, format!("{why}\n"));
    assert!(head.contains(&format!("\r\nContent-Length: {}", body.len())), "{head}");
    assert!(head.contains("\r\nContent-Type: text/plain") && head.contains("close\r\n"), "{head}");
    text
}

#[test]
fn the_upgrade() {
    let expected = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n";
    assert_eq!(upgrades(&request("GET /mqtt HTTP/1.1", &GOOD)), expected);
    for same in [
        request("GET /mqtt?token=a/b?c HTTP/1.1", &GOOD),
        request("GET http://server.example.com/mqtt?x HTTP/1.1", &GOOD),
        with("Upgrade", &["UPGRADE: h2c", "upgrade: foo/1,\t WebSocket ,"]),
        with("Connection", &["Connection: keep-alive, upgrade", "Connection: TE"]),
        with("Sec-WebSocket-Protocol", &["Sec-WebSocket-Protocol: mqttv3.1 , mqtt"]),
        with("Sec-WebSocket-Protocol", &["Sec-WebSocket-Protocol: amqp", "sec-websocket-protocol: mqtt"]),
        // Nothing is compressed.
        with("x", &["Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"]),
        with("x", &["Content-Length: 0", "Origin: https://elsewhere.example", "Cookie: a=b"]),
    ] {
        assert_eq!(upgrades(&same), expected, "{}", String::from_utf8_lossy(&same));
    }
    let old = upgrades(&with("Sec-WebSocket-Protocol", &["Sec-WebSocket-Protocol: mqttv3.1"]));
    assert!(old.contains("\r\nSec-WebSocket-Protocol: mqttv3.1\r\n"), "{old}");
    // A key of which only the text counts.
    upgrades(&with("Sec-WebSocket-Key", &["Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAB=="]));
}

#[test]
fn refusals() {
    for bytes in [
        with("Host", &[]),
        with("Host", &["Host: a", "Host: a"]),
        with("x", &["Content-Length: 1"]),
        with("x", &["Content-Length: 0", "Content-Length: 7"]),
        with("x", &["Transfer-Encoding: chunked"]),
        with("Sec-WebSocket-Key", &[]),
        with("Sec-WebSocket-Key", &["Sec-WebSocket-Key: "]),
        with("Sec-WebSocket-Key", &["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j"]),
        with("Sec-WebSocket-Key", &["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZSE="]),
        with("Sec-WebSocket-Key", &["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ"]),
        with("Sec-WebSocket-Key", &["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZ*=="]),
        with("x", &[&format!("Sec-WebSocket-Key: {KEY}")]),
    ] {
        refused(&bytes, 400);
    }
    for fields in [&[][..], &["Sec-WebSocket-Protocol: "], &["Sec-WebSocket-Protocol: amqp, MQTT, mqtt5"]] {
        let text = refused(&with("Sec-WebSocket-Protocol", fields), 400);
        assert!(text.contains("Sec-WebSocket-Protocol: mqtt"), "{text}");
    }
    for target in [
        "/",
        "/mqtt/",
        "/MQTT",
        "/mqt%74",
        "/x?/mqtt",
        "/x?a=http://b/mqtt",
        "http://host",
        "http://host?/mqtt",
        "*",
    ] {
        let text = refused(&request(&format!("GET {target} HTTP/1.1"), &GOOD), 404);
        assert!(text.contains(" /mqtt "), "{text}");
    }
    for method in ["POST", "HEAD", "get", "CONNECT", "PRI"] {
        let text = refused(&request(&format!("{method} /mqtt HTTP/1.1"), &GOOD), 405);
        assert!(text.contains("\r\nAllow: GET\r\n"), "{text}");
    }
    for bytes in [
        with("Upgrade", &[]),
        with("Upgrade", &["Upgrade: h2c"]),
        with("Connection", &["Connection: close"]),
        with("Sec-WebSocket-Version", &[]),
        with("Sec-WebSocket-Version", &["Sec-WebSocket-Version: 8"]),
        with("Sec-WebSocket-Version", &["Sec-WebSocket-Version: 013"]),
    ] {
        let text = refused(&bytes, 426);
        assert!(text.contains("\r\nSec-WebSocket-Version: 13\r\n"), "{text}");
        assert!(
            text.contains("\r\nUpgrade: websocket\r\n")
                && text.contains("\r\nConnection: Upgrade, close\r\n"),
            "{text}"
        );
    }
    refused(&request("GET /mqtt HTTP/1.0", &GOOD), 505);
    refused(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505);
    refused(b"GET /mqtt HTTP/1.1\r\nHost : a\r\n", 400);
    refused(b"GET /mqtt HTTP/1.1\r\nHost: a\r\n folded\r\n", 400);
}

#[test]
fn bounds_of_a_request() {
    let padded = |len: usize| {
        let bare = with("x", &["X: "]).len();
        with("x", &[&format!("X: {}", "x".repeat(len - bare))])
    };
    let mut out = Vec::new();
    assert_eq!(upgrade(&padded(REQUEST_BYTES_MAX), "/mqtt", &mut out), Ok(Some(REQUEST_BYTES_MAX)));
    let long = padded(REQUEST_BYTES_MAX + 1);
    assert_eq!(upgrade(&long[..REQUEST_BYTES_MAX - 1], "/mqtt", &mut Vec::new()), Ok(None));
    refused(&long[..REQUEST_BYTES_MAX], 431);
    refused(&long, 431);
    refused(&b"\r\n".repeat(REQUEST_BYTES_MAX), 431);
    let many = |count: usize| with("x", &vec!["X: x"; count - GOOD.len()]);
    upgrades(&many(HEADERS_MAX));
    refused(&many(HEADERS_MAX + 1), 431);
}

/// What another protocol sends is refused at its first byte, and told what it is.
#[test]
fn other_protocols() {
    for (bytes, says) in [
        (&b"\x16"[..], "a TLS handshake"),
        (b"\x10", "an MQTT CONNECT"),
        (b"\r\n\r\n\0\r\nQUIT\n", "trusted proxies"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 1\r\n", "trusted proxies"),
        (b"\0", "not HTTP/1.1"),
    ] {
        let text = refused(bytes, 400);
        assert!(text.contains(says), "{text}");
    }
}

const BYTES: [u8; 16] = *b"the sample nonce";

fn upgrading() -> (Upgrading, Vec<u8>) {
    let mut out = Vec::new();
    let upgrading = Upgrading::request("broker.example:8083", "/mqtt", BYTES, &mut out);
    (upgrading, out)
}

#[test]
fn a_client_and_a_server() {
    let (upgrading, sent) = upgrading();
    let answer = upgrades(&sent);
    for end in 0..answer.len() {
        assert_eq!(upgrading.response(&answer.as_bytes()[..end]), Ok(None));
    }
    assert_eq!(upgrading.response(format!("{answer}\u{2}").as_bytes()), Ok(Some(answer.len())));
    // And when the server declines.
    let mut out = Vec::new();
    upgrade(&sent, "/elsewhere", &mut out).unwrap_err();
    let error = upgrading.response(&out).unwrap_err();
    assert_eq!(error, HttpError::Declined { status: 404, line: "404 Not Found".into() });
    assert!(error.to_string().contains("`404 Not Found`") && error.to_string().contains("/mqtt"), "{error}");
}

#[test]
fn a_client_checks() {
    let (upgrading, _) = upgrading();
    let good = [
        "upgrade: WebSocket",
        "connection: upgrade",
        "sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
        "sec-websocket-protocol: mqtt",
    ];
    let response = |skip: usize, fields: &[&str]| {
        let kept = good.iter().enumerate().filter(|&(at, _)| at != skip).map(|(_, field)| *field);
        let all: Vec<&str> = kept.chain(fields.iter().copied()).collect();
        upgrading.response(&request("HTTP/1.1 101 Switching Protocols", &all))
    };
    assert!(matches!(response(9, &["Server: x"]), Ok(Some(_))));
    for (skip, fields) in [
        (0, &[][..]),
        (0, &["Upgrade: h2c"]),
        (1, &["Connection: close"]),
        (2, &[]),
        (2, &["Sec-WebSocket-Accept: S3pPLMBiTxaQ9kYGzzhZRbK+xOo="]),
        (9, &["Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="]),
        (3, &[]),
        (3, &["Sec-WebSocket-Protocol: mqttv3.1"]),
        (9, &["Sec-WebSocket-Extensions: permessage-deflate"]),
    ] {
        let result = response(skip, fields);
        assert!(matches!(result, Err(HttpError::Handshake(_))), "{skip} {fields:?}: {result:?}");
    }
    for (bytes, says) in [
        (&b"HTTP/1.1 200 OK\r\n\r\n"[..], "`200 OK`"),
        (b"HTTP/1.1 302 Found\r\nLocation: /x\r\n\r\n", "redirections"),
        (b"HTTP/1.1 401 \xFF\r\n\r\n", "`401 `"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "TLS"),
        (b"\x20\x02\x00\x00", "another protocol"),
    ] {
        let error = upgrading.response(bytes).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
    let endless = [b"HTTP/1.1 101 x\r\nX: ".to_vec(), vec![b'x'; RESPONSE_BYTES_MAX]].concat();
    assert_eq!(upgrading.response(&endless[..RESPONSE_BYTES_MAX - 1]), Ok(None));
    assert!(matches!(upgrading.response(&endless), Err(HttpError::NotHttp(_))));
    let long = format!("HTTP/1.1 500 {}\r\n\r\n", "x".repeat(1_000));
    let Err(HttpError::Declined { line, .. }) = upgrading.response(long.as_bytes()) else { panic!("taken") };
    assert_eq!(line.len(), "500 ".len() + QUOTE_CHARS_MAX);
}

#[test]
fn a_tunnel() {
    let mut out = Vec::new();
    connect_request("broker.example:8883", None, &mut out);
    assert_eq!(out, b"CONNECT broker.example:8883 HTTP/1.1\r\nHost: broker.example:8883\r\n\r\n");
    let mut out = Vec::new();
    // RFC 7617, 2.
    connect_request("[::1]:1", Some(("Aladdin", "open sesame")), &mut out);
    let text = String::from_utf8(out).unwrap();
    assert!(text.contains("\r\nProxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n"), "{text}");

    let good = b"HTTP/1.0 200 Connection established\r\nContent-Length: 9\r\n\r\n";
    for end in 0..good.len() {
        assert_eq!(connect_response(&good[..end]), Ok(None));
    }
    assert_eq!(connect_response(&[&good[..], b"\x16\x03"].concat()), Ok(Some(good.len())));
    for (status, says) in
        [(407, "password"), (403, "443"), (502, "reach"), (404, "CONNECT"), (101, "CONNECT")]
    {
        let error = connect_response(format!("HTTP/1.1 {status} No\r\n\r\n").as_bytes()).unwrap_err();
        assert_eq!(error, HttpError::NoTunnel { status, line: format!("{status} No") });
        assert!(error.to_string().contains(says), "{error}");
    }
    assert!(connect_response(b"SSH-2.0-x\r\n").is_err());
}

proptest! {
    /// Whatever comes: the same whether it comes at once or byte by byte, and what is refused stays refused.
    #[test]
    fn any_split(
        line in prop::sample::select(vec!["GET /mqtt HTTP/1.1", "GET /x HTTP/1.1", "PUT /mqtt HTTP/1.1", "GET"]),
        fields in prop::collection::vec(prop::sample::select(GOOD.to_vec()), 0..9),
        noise in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..2),
    ) {
        let mut bytes = request(line, &fields);
        for (at, byte) in noise {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let (mut whole, mut parts) = (Vec::new(), Vec::new());
        let expected = upgrade(&bytes, "/mqtt", &mut whole);
        let first = (1..=bytes.len()).map(|end| upgrade(&bytes[..end], "/mqtt", &mut parts)).find(|result| *result != Ok(None));
        match (expected, first) {
            (Ok(None), None) => {}
            (Ok(expected), Some(Ok(first))) => prop_assert_eq!(expected, first),
            (Err(expected), Some(Err(first))) => {
                prop_assert_eq!(expected, first);
                prop_assert_eq!(whole, parts);
            }
            (expected, first) => prop_assert!(false, "at once {expected:?}, in parts {first:?}"),
        }
    }
}
