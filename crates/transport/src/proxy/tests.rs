#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::*;

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let mut bytes = SIGNATURE.to_vec();
    bytes.extend_from_slice(&[command, family]);
    bytes.extend_from_slice(&u16::try_from(rest.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(rest);
    bytes
}

/// 192.0.2.1:4660 to 198.51.100.2:1883, then TLVs.
fn v2_tcp4(tlvs: &[u8]) -> Vec<u8> {
    let mut rest = vec![192, 0, 2, 1, 198, 51, 100, 2, 0x12, 0x34, 0x07, 0x5B];
    rest.extend_from_slice(tlvs);
    v2(0x21, 0x11, &rest)
}

fn of(kind: u8, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    tlv(kind, value, &mut bytes);
    bytes
}

fn ssl(client: u8, verify: u32, subs: &[u8]) -> Vec<u8> {
    let mut value = vec![client];
    value.extend_from_slice(&verify.to_be_bytes());
    value.extend_from_slice(subs);
    of(TYPE_SSL, &value)
}

/// A header is taken whole, whatever follows it, and each beginning of it asks for more.
#[track_caller]
fn takes(bytes: &[u8], source: Option<&str>, certificate: Option<&str>) {
    let header = Header { source: source.map(address), certificate: certificate.map(Box::from) };
    for end in 0..bytes.len() {
        assert_eq!(parse(&bytes[..end]), Ok(None), "{end} of {} bytes", bytes.len());
    }
    for follows in [&b""[..], b"\x10\x0C", b"PROXY ", &[0; 3_000]] {
        let all = [bytes, follows].concat();
        assert_eq!(parse(&all), Ok(Some((header.clone(), bytes.len()))));
    }
}

/// Refused when the first `at` bytes are there and not before; what follows changes nothing.
#[track_caller]
fn refuses(bytes: &[u8], at: usize, error: ProxyError) {
    for end in 0..bytes.len() {
        let expected = if end < at { Ok(None) } else { Err(error) };
        assert_eq!(parse(&bytes[..end]), expected, "{end} of {} bytes", bytes.len());
    }
    assert_eq!(parse(bytes), Err(error));
}

#[test]
fn version_1() {
    takes(b"PROXY TCP4 192.0.2.1 198.51.100.2 4660 1883\r\n", Some("192.0.2.1:4660"), None);
    takes(b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", Some("255.255.255.255:65535"), None);
    takes(b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n", Some("0.0.0.0:0"), None);
    takes(b"PROXY TCP6 2001:db8::1 2001:DB8:0:0:0::2 4660 1883\r\n", Some("[2001:db8::1]:4660"), None);
    takes(b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:198.51.100.2 4660 1883\r\n", Some("192.0.2.1:4660"), None);
    // The longest of each that the specification gives.
    let v6 = "ffff:f:f:f:f:f:f:ffff".replace(":f:", ":ffff:").replace(":f:", ":ffff:");
    assert_eq!(v6.len(), 39);
    takes(format!("PROXY TCP6 {v6} {v6} 65535 65535\r\n").as_bytes(), Some(&format!("[{v6}]:65535")), None);
    takes(b"PROXY UNKNOWN\r\n", None, None);
    takes(format!("PROXY UNKNOWN {v6} {v6} 65535 65535\r\n").as_bytes(), None, None);
    takes(b"PROXY UNKNOWN \0\xFF\n\r x\r\n", None, None);
}

#[test]
fn version_1_strictly() {
    let line = |text: &str| format!("PROXY {text}\r\n").into_bytes();
    for (text, at) in [
        // Seen at the byte that is wrong,
        ("TCP5 1.2.3.4 1.2.3.4 1 1", 10),
        ("TCP4  1.2.3.4 1.2.3.4 1 1", 0),
        ("tcp4 1.2.3.4 1.2.3.4 1 1", 7),
        ("UNKNOW", 14),
        (" TCP4 1.2.3.4 1.2.3.4 1 1", 7),
        ("TCP4 1.2.3.4 1.2.3.4 -1 1", 28),
        ("TCP4 1.2.3.4 1.2.3.4 +1 1", 28),
        ("TCP4 1.2.3.4\t1.2.3.4 1 1", 19),
        ("TCP6 fe80::1%eth0 ::1 1 1", 19),
        ("TCP4 1.2.3.4 1.2.3.4 1 1\n", 31),
        ("", 8),
        // or at the end of the line.
        ("TCP4 ", 0),
        ("TCP4 1.2.3.4 1.2.3.4 1", 0),
        ("TCP4 1.2.3.4 1.2.3.4 1 1 ", 0),
        ("TCP4 1.2.3.4 1.2.3.4 1 1 1", 0),
        ("TCP4 1.2.3.4 1.2.3.4  1 1", 0),
        ("TCP4 01.2.3.4 1.2.3.4 1 1", 0),
        ("TCP4 1.2.3 1.2.3.4 1 1", 0),
        ("TCP4 1.2.3.256 1.2.3.4 1 1", 0),
        ("TCP4 1.2.3.4 1.2.3.4.5 1 1", 0),
        ("TCP4 1.2.3.4 1.2.3.4 01 1", 0),
        ("TCP4 1.2.3.4 1.2.3.4 1 00", 0),
        ("TCP4 1.2.3.4 1.2.3.4 65536 1", 0),
        ("TCP4 1.2.3.4 1.2.3.4 1 99999999999999999999", 0),
        ("TCP4 ::1 ::1 1 1", 0),
        ("TCP6 1.2.3.4 1.2.3.4 1 1", 0),
        ("TCP6 ::1 1::2::3 1 1", 0),
        ("TCP6 12345::1 ::1 1 1", 0),
    ] {
        let bytes = line(text);
        let at = if at == 0 { bytes.len() } else { at };
        refuses(&bytes, at, NOT_V1);
    }
    let long = ProxyError::Malformed("no CRLF within 107 bytes");
    refuses(format!("PROXY UNKNOWN{}\r\n", "x".repeat(93)).as_bytes(), 107, long);
    refuses(format!("PROXY TCP4 {}\r\n", "1".repeat(200)).as_bytes(), 107, long);
}

#[test]
fn what_is_no_header_is_refused_at_the_first_byte() {
    refuses(b"\x10\x0C\x00\x04MQTT", 1, ProxyError::Absent(Opening::MqttConnect));
    refuses(b"\x16\x03\x01\x02\x00", 1, ProxyError::Absent(Opening::TlsHello));
    refuses(b"GET /mqtt HTTP/1.1\r\n", 1, ProxyError::Absent(Opening::HttpRequest));
    refuses(b"\0", 1, ProxyError::Absent(Opening::Other));
    refuses(b"PROXX", 5, ProxyError::Absent(Opening::HttpRequest));
    refuses(b"PROXY\t", 6, ProxyError::Absent(Opening::HttpRequest));
    refuses(b"\r\n\r\n\0\r\nQUIT\r", 12, ProxyError::Absent(Opening::Other));
    let text = parse(b"\x10").unwrap_err().to_string();
    assert!(text.contains("an MQTT CONNECT") && text.contains("`send-proxy-v2`"), "{text}");
}

#[test]
fn version_2() {
    takes(&v2_tcp4(&[]), Some("192.0.2.1:4660"), None);
    takes(&v2(0x21, 0x12, &v2_tcp4(&[])[16..]), Some("192.0.2.1:4660"), None);
    // IPv6, also one that is an IPv4 address.
    let v6 = |source: &str| {
        let source: Ipv6Addr = source.parse().unwrap();
        let mut rest = source.octets().to_vec();
        rest.extend_from_slice(&[0; 16]);
        rest.extend_from_slice(&[0x12, 0x34, 0x07, 0x5B]);
        rest
    };
    takes(&v2(0x21, 0x21, &v6("2001:db8::1")), Some("[2001:db8::1]:4660"), None);
    takes(&v2(0x21, 0x22, &v6("::ffff:192.0.2.1")), Some("192.0.2.1:4660"), None);
    takes(&v2(0x21, 0x31, &[7; 216]), None, None);
    takes(&v2(0x21, 0x32, &[7; 216]), None, None);
    takes(&v2(0x21, 0x00, &[]), None, None);
    // LOCAL: whatever is in it.
    takes(&v2(0x20, 0x00, &[]), None, None);
    takes(&v2(0x20, 0x11, &v2_tcp4(&[])[16..]), None, None);
    takes(&v2(0x20, 0xFF, &[1, 2, 3]), None, None);
    takes(&v2(0x20, 0x11, &[TYPE_CRC32C, 0, 4, 0, 0]), None, None);
    // The longest that is taken.
    takes(&v2_tcp4(&of(0xEA, &[0; HEADER_BYTES_MAX - 16 - 12 - 3])), Some("192.0.2.1:4660"), None);
}

#[test]
fn version_2_strictly() {
    use ProxyError::{Malformed, TooLong};
    refuses(&v2(0x11, 0x11, &[0; 12]), 13, Malformed("the version is not 2"));
    refuses(&v2(0x22, 0x11, &[0; 12]), 13, Malformed("the command is neither LOCAL nor PROXY"));
    for family in [0x01, 0x10, 0x13, 0x20, 0x30, 0x41, 0xFF] {
        refuses(&v2(0x21, family, &[0; 216]), 14, Malformed("a family of addresses that is not known"));
    }
    for (family, len) in [(0x11, 11), (0x21, 35), (0x31, 215)] {
        refuses(&v2(0x21, family, &vec![0; len]), 16, Malformed("shorter than the addresses of its family"));
    }
    refuses(&v2(0x21, 0x11, &[0; 2_033]), 16, TooLong(2_049));
    refuses(&v2(0x20, 0x00, &[0; 65_535]), 16, TooLong(65_551));
    let whole = |tlvs: &[u8], why| {
        let bytes = v2_tcp4(tlvs);
        refuses(&bytes, bytes.len(), Malformed(why));
    };
    let beyond = "a TLV that goes beyond the header";
    whole(&[0x04], beyond);
    whole(&[0x04, 0], beyond);
    whole(&[0x04, 0, 1], beyond);
    whole(&[of(0x04, &[0; 8]), vec![0x04, 0xFF, 0xFF]].concat(), beyond);
    whole(&[0x20, 0, 8, 7, 0, 0, 0, 0, 0x22, 0, 1], beyond);
    whole(&of(TYPE_SSL, &[7, 0, 0, 0]), "a TLV about TLS that is shorter than 5 bytes");
    let twice = "a TLV that may be there once is there twice";
    whole(&[ssl(7, 0, &[]), ssl(7, 0, &[])].concat(), twice);
    whole(&[of(TYPE_CRC32C, &[0; 4]), of(TYPE_CRC32C, &[0; 4])].concat(), twice);
    whole(&ssl(7, 0, &[of(0x22, b"a"), of(0x22, b"b")].concat()), "a certificate with two common names");
    whole(&ssl(7, 0, &of(0x22, b"\xC3(")), "a common name that is not UTF-8");
    whole(&ssl(7, 0, &of(0x22, b"a\0b")), "a common name with control characters");
    whole(&of(TYPE_CRC32C, &[0; 4]), "its CRC32C is wrong");
    whole(&of(TYPE_CRC32C, &[0; 3]), "a CRC32C that is not 4 bytes");
}

/// Only what was presented and verified counts.
#[test]
fn names_of_certificates() {
    let cn = of(0x22, "gateway-7 \u{e9}".as_bytes());
    let source = Some("192.0.2.1:4660");
    for (client, verify, subs, certificate) in [
        (0x07, 0, cn.clone(), Some("gateway-7 \u{e9}")),
        (0x03, 0, cn.clone(), Some("gateway-7 \u{e9}")),
        (0x05, 0, cn.clone(), Some("gateway-7 \u{e9}")),
        (0x03, 0, [of(0x21, b"TLSv1.3"), cn.clone(), of(0x23, b"x")].concat(), Some("gateway-7 \u{e9}")),
        (0x01, 0, cn.clone(), None),
        (0x02, 0, cn.clone(), None),
        (0x06, 0, cn.clone(), None),
        (0x00, 0, cn.clone(), None),
        (0x07, 1, cn.clone(), None),
        (0x07, 0x0100_0000, cn.clone(), None),
        (0x07, 0, vec![], None),
        (0x07, 0, of(0x22, b""), None),
    ] {
        takes(&v2_tcp4(&ssl(client, verify, &subs)), source, certificate);
        takes(
            &v2_tcp4(&[of(0x04, b"pad"), ssl(client, verify, &subs), of(0xEA, b"x")].concat()),
            source,
            certificate,
        );
    }
    // Of a connection whose address is unknown.
    takes(&v2(0x21, 0x00, &ssl(7, 0, &cn)), None, Some("gateway-7 \u{e9}"));
}

/// RFC 3720, B.4, and the check value of the catalogue of CRCs.
#[test]
fn checksum() {
    assert_eq!(crc32c([0; 32].iter()), 0x8A91_36AA);
    assert_eq!(crc32c([0xFF; 32].iter()), 0x62A8_AB43);
    assert_eq!(crc32c(b"123456789".iter()), 0xE306_9283);
    // Each bit of a header with a checksum counts, except that the header becomes another kind of thing.
    let mut bytes = Vec::new();
    encode_v2(address("192.0.2.1:4660"), address("198.51.100.2:1883"), Some("cn"), &mut bytes);
    for at in V2_HEAD..bytes.len() - 7 {
        for bit in 0..8 {
            bytes[at] ^= 1 << bit;
            assert!(parse(&bytes).is_err(), "byte {at} bit {bit}");
            bytes[at] ^= 1 << bit;
        }
    }
}

#[test]
fn written_headers() {
    let mut out = b"before".to_vec();
    encode_v1(address("192.0.2.1:4660"), address("198.51.100.2:1883"), &mut out);
    assert_eq!(out, b"beforePROXY TCP4 192.0.2.1 198.51.100.2 4660 1883\r\n");
    let mut out = Vec::new();
    encode_v1(address("192.0.2.1:1"), address("[2001:db8::1]:2"), &mut out);
    assert_eq!(out, b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::1 1 2\r\n");
    // A name that would have to be cut is another name.
    for (len, written) in [(NAME_BYTES_MAX, true), (NAME_BYTES_MAX + 1, false)] {
        let mut out = Vec::new();
        let name = "n".repeat(len);
        encode_v2(address("[2001:db8::1]:1"), address("[2001:db8::2]:2"), Some(&name), &mut out);
        assert!(out.len() <= HEADER_BYTES_MAX);
        takes(&out, Some("[2001:db8::1]:1"), written.then_some(name.as_str()));
    }
}

fn addresses() -> impl Strategy<Value = SocketAddr> {
    let v4 = any::<([u8; 4], u16)>().prop_map(|(ip, port)| SocketAddr::new(Ipv4Addr::from(ip).into(), port));
    let v6 = any::<([u8; 16], u16)>().prop_map(|(ip, port)| SocketAddr::new(Ipv6Addr::from(ip).into(), port));
    prop_oneof![v4, v6]
}

proptest! {
    #[test]
    fn what_is_written_is_read(from in addresses(), to in addresses(), name in "[^\\p{Cc}]{0,40}") {
        let source = Some(SocketAddr::new(from.ip().to_canonical(), from.port()));
        let mut v1 = Vec::new();
        encode_v1(from, to, &mut v1);
        prop_assert!(v1.len() <= V1_BYTES_MAX);
        prop_assert_eq!(parse(&v1), Ok(Some((Header { source, certificate: None }, v1.len()))));
        let mut v2 = Vec::new();
        encode_v2(from, to, Some(&name), &mut v2);
        let certificate = (!name.is_empty()).then(|| Box::from(name.as_str()));
        prop_assert_eq!(parse(&v2), Ok(Some((Header { source, certificate }, v2.len()))));
    }
}
