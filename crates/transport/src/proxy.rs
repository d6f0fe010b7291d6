//! The PROXY protocol, versions 1 and 2: where a connection that a load balancer passes on comes from.
//!
//! # Constraints
//! - A header is believed, so the caller asks for one only from addresses that it trusts, and there always: with a header that
//!   may be absent any client could write its own (HAProxy's `proxy-protocol.txt`, 2 and 5).
//! - The header comes first, at once, and is all that is not the connection's own. What cannot become one is refused at the
//!   first byte that shows it, since its sender (a client that came past the proxy, or a proxy that is not told to send the
//!   header) waits for an answer. A header that comes slowly is for the caller's timer.
//!
//! # Form
//! ```text
//! v1  "PROXY " ("TCP4" | "TCP6") " " source " " destination " " port " " port CRLF       at most 107 bytes
//!     "PROXY UNKNOWN" anything CRLF
//! v2   0  12  0D 0A 0D 0A 00 0D 0A 51 55 49 54 0A
//!     12   1  version 2 << 4 | command: 0 LOCAL (the proxy itself, such as a health check), 1 PROXY
//!     13   1  family << 4 | transport: 00 unspecified; 1x IPv4, 2x IPv6, 3x unix; x1 stream, x2 datagram
//!     14   2  length of what follows, big-endian
//!     16   n  addresses, then ports: 12 bytes for IPv4, 36 for IPv6, 216 for unix, none for unspecified
//!          …  TLVs: type 1, length 2, value
//! ```
//! Types are hexadecimal. Of the TLVs two are read. `PP2_TYPE_SSL` (20): flags of the client 1, result of the verification 4
//! (0: good), TLVs of its own, of which 22 is the certificate's common name. `PP2_TYPE_CRC32C` (03): over the whole header with
//! these four bytes as 0.
//!
//! # Invariants
//! - A proper prefix of a header asks for more; what is refused stays refused whatever follows (the fuzz target `proxy`).
//! - A certificate's name is told only if the client's certificate was presented *and* verified. What contradicts itself (two
//!   TLVs of one of these types, a TLV over the end) is refused and not interpreted.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What a header says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Header {
    /// Who connected to the proxy; an IPv4 address within IPv6 is given as IPv4, so that networks match it. `None`: the
    /// connection is the proxy's own (v2 LOCAL), or its source is no IP address (v1 UNKNOWN, v2 unspecified or unix); then the
    /// socket's own address holds.
    pub source: Option<SocketAddr>,
    /// The common name of the client's certificate (v2, `PP2_TYPE_SSL`), if the client presented one and the proxy verified it.
    pub certificate: Option<Box<str>>,
}

/// Why no header was found. In each case the connection is to be closed without an answer: the peer speaks another protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// The connection does not begin with a header, but with this.
    #[error(
        "the connection begins with {0} and not with a PROXY protocol header: either the proxy does not send one (HAProxy: \
         `send-proxy-v2` on the `server` line; nginx: `proxy_protocol on;` in the `server` block), or the client did not \
         come through the proxy: then its address must not be among the listener's trusted proxies"
    )]
    Absent(Opening),
    /// A header that breaks the specification.
    #[error("the PROXY protocol header is malformed: {0}")]
    Malformed(&'static str),
    /// A header over [`HEADER_BYTES_MAX`], of this many bytes.
    #[error(
        "the PROXY protocol header has {0} bytes, of which {HEADER_BYTES_MAX} are taken: let the proxy send fewer TLVs"
    )]
    TooLong(usize),
}

/// What the bytes that open a connection look like: for people who pointed a client at the wrong port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// MQTT itself.
    MqttConnect,
    /// TLS, whatever is in it.
    TlsHello,
    /// A PROXY protocol header.
    ProxyHeader,
    /// HTTP, as it seems: a capital letter.
    HttpRequest,
    /// Something else, or too little to tell.
    Other,
}

impl Opening {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        match bytes {
            [0x10, ..] => Self::MqttConnect,
            [0x16, ..] => Self::TlsHello,
            _ if bytes.starts_with(V1_PREFIX) || bytes.starts_with(SIGNATURE) => Self::ProxyHeader,
            [b'A'..=b'Z', ..] => Self::HttpRequest,
            _ => Self::Other,
        }
    }
}

impl fmt::Display for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MqttConnect => "an MQTT CONNECT",
            Self::TlsHello => "a TLS handshake",
            Self::ProxyHeader => "a PROXY protocol header",
            Self::HttpRequest => "an HTTP request",
            Self::Other => "bytes of another protocol",
        })
    }
}

/// The longest header that is taken, in bytes. v1 ends within 107 by definition. The length of v2 would allow 65,551; what
/// proxies send is addresses (216 at most), a server name (255), a unique id (128) and names of a certificate, and senders are
/// told to fit into one segment (536 bytes). Four times that is ample, and the buffer that a peer can make us keep stays small.
pub const HEADER_BYTES_MAX: usize = 2_048;

/// The longest v1 header with its CRLF, in bytes.
const V1_BYTES_MAX: usize = 107;
const V1_PREFIX: &[u8] = b"PROXY ";
const UNKNOWN: &[u8] = b"UNKNOWN";
const NOT_V1: ProxyError = ProxyError::Malformed(
    "not TCP4 or TCP6, two addresses of that family and two ports, one space between each; and not UNKNOWN",
);
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, command, family and length of v2.
const V2_HEAD: usize = 16;

const COMMAND_LOCAL: u8 = 0x20;
const COMMAND_PROXY: u8 = 0x21;
/// Address families; the transport, stream or datagram, is in the low half.
const UNSPECIFIED: u8 = 0x00;
const INET_STREAM: u8 = 0x11;
const INET_DATAGRAM: u8 = 0x12;
const INET6_STREAM: u8 = 0x21;
const INET6_DATAGRAM: u8 = 0x22;
const UNIX_STREAM: u8 = 0x31;
const UNIX_DATAGRAM: u8 = 0x32;

const TYPE_CRC32C: u8 = 0x03;
const TYPE_SSL: u8 = 0x20;
const SUBTYPE_SSL_CN: u8 = 0x22;
/// The client connected over TLS.
const CLIENT_SSL: u8 = 0x01;
/// It presented a certificate on this connection.
const CLIENT_CERT_CONN: u8 = 0x02;
/// It presented a certificate when the TLS session began that this connection resumes.
const CLIENT_CERT_SESS: u8 = 0x04;

/// Takes a header from the front of `bytes`: what it says and its length. `None` asks for more bytes, at most
/// [`HEADER_BYTES_MAX`] in all.
///
/// # Errors
/// [`ProxyError`], as soon as the bytes can no longer become a header.
pub fn parse(bytes: &[u8]) -> Result<Option<(Header, usize)>, ProxyError> {
    if begins(bytes, SIGNATURE) {
        return if bytes.len() < SIGNATURE.len() { Ok(None) } else { parse_v2(bytes) };
    }
    if begins(bytes, V1_PREFIX) {
        return if bytes.len() < V1_PREFIX.len() { Ok(None) } else { parse_v1(bytes) };
    }
    Err(ProxyError::Absent(Opening::of(bytes)))
}

/// Whether `bytes` starts with `prefix`, as far as it goes.
fn begins(bytes: &[u8], prefix: &[u8]) -> bool {
    let common = bytes.len().min(prefix.len());
    bytes[..common] == prefix[..common]
}

// === version 1 ===

fn parse_v1(bytes: &[u8]) -> Result<Option<(Header, usize)>, ProxyError> {
    let line = &bytes[V1_PREFIX.len()..bytes.len().min(V1_BYTES_MAX)];
    let Some(len) = line.windows(2).position(|pair| pair == b"\r\n") else {
        // A CR that is last may be the half of a CRLF.
        return match line.strip_suffix(b"\r").unwrap_or(line) {
            partial if !begins(partial, UNKNOWN) && !begins_tcp(partial) => Err(NOT_V1),
            _ if bytes.len() >= V1_BYTES_MAX => Err(ProxyError::Malformed("no CRLF within 107 bytes")),
            _ => Ok(None),
        };
    };
    let source = match &line[..len] {
        [b'T', b'C', b'P', b'4', b' ', rest @ ..] => Some(fields::<Ipv4Addr>(rest).ok_or(NOT_V1)?),
        [b'T', b'C', b'P', b'6', b' ', rest @ ..] => Some(fields::<Ipv6Addr>(rest).ok_or(NOT_V1)?),
        // "The receiver must ignore anything presented before the CRLF is found" (2.1).
        text if text.starts_with(UNKNOWN) => None,
        _ => return Err(NOT_V1),
    };
    Ok(Some((Header { source, certificate: None }, V1_PREFIX.len() + len + 2)))
}

/// Whether this can be the beginning of a TCP line, as far as its characters tell.
fn begins_tcp(text: &[u8]) -> bool {
    let address = |byte: &u8| byte.is_ascii_hexdigit() || b":. ".contains(byte);
    (begins(text, b"TCP4 ") || begins(text, b"TCP6 ")) && text.iter().skip(5).all(address)
}

/// `source destination port port`. The library's parsers of addresses are as strict as is asked: no leading zeros in IPv4.
fn fields<A: std::str::FromStr + Into<IpAddr>>(text: &[u8]) -> Option<SocketAddr> {
    let mut fields = std::str::from_utf8(text).ok()?.split(' ');
    let source: A = fields.next()?.parse().ok()?;
    let _destination: A = fields.next()?.parse().ok()?;
    let port = port(fields.next()?)?;
    let _destination_port = self::port(fields.next()?)?;
    fields.next().is_none().then(|| SocketAddr::new(source.into().to_canonical(), port))
}

/// A decimal number up to 65,535 without sign or leading zeros.
fn port(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

// === version 2 ===

fn parse_v2(bytes: &[u8]) -> Result<Option<(Header, usize)>, ProxyError> {
    use ProxyError::Malformed;
    let Some(&command) = bytes.get(12) else { return Ok(None) };
    match command {
        COMMAND_LOCAL | COMMAND_PROXY => {}
        _ if command >> 4 != 2 => return Err(Malformed("the version is not 2")),
        _ => return Err(Malformed("the command is neither LOCAL nor PROXY")),
    }
    let Some(&family) = bytes.get(13) else { return Ok(None) };
    let addresses_len = match family {
        // "The receiver … must discard the protocol block including the family" (2.2).
        _ if command == COMMAND_LOCAL => 0,
        UNSPECIFIED => 0,
        INET_STREAM | INET_DATAGRAM => 12,
        INET6_STREAM | INET6_DATAGRAM => 36,
        UNIX_STREAM | UNIX_DATAGRAM => 216,
        _ => return Err(Malformed("a family of addresses that is not known")),
    };
    let Some(&len) = bytes[14..].first_chunk() else { return Ok(None) };
    let used = V2_HEAD + usize::from(u16::from_be_bytes(len));
    if used > HEADER_BYTES_MAX {
        return Err(ProxyError::TooLong(used));
    }
    if used < V2_HEAD + addresses_len {
        return Err(Malformed("shorter than the addresses of its family"));
    }
    let Some(whole) = bytes.get(..used) else { return Ok(None) };
    if command == COMMAND_LOCAL {
        return Ok(Some((Header::default(), used)));
    }
    let (addresses, tlvs) = whole[V2_HEAD..].split_at(addresses_len);
    Ok(Some((Header { source: source(addresses), certificate: extensions(whole, tlvs)? }, used)))
}

/// Source and destination, then their ports; `None` if the length is that of another family than IPv4 or IPv6.
fn source(addresses: &[u8]) -> Option<SocketAddr> {
    let (ip, ports) = match addresses.len() {
        12 => (IpAddr::from(*addresses.first_chunk::<4>()?), &addresses[8..]),
        36 => (IpAddr::from(*addresses.first_chunk::<16>()?).to_canonical(), &addresses[32..]),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes(*ports.first_chunk()?)))
}

/// Checks the TLVs, which end `whole`; the name of a verified certificate.
fn extensions(whole: &[u8], tlvs: &[u8]) -> Result<Option<Box<str>>, ProxyError> {
    use ProxyError::Malformed;
    let (mut ssl, mut checksum) = (None, None);
    let mut walk = Tlvs(tlvs);
    while let Some(tlv) = walk.next() {
        let (kind, value) = tlv?;
        let end = whole.len() - walk.0.len();
        let before = match kind {
            TYPE_SSL => ssl.replace(value).is_some(),
            TYPE_CRC32C => checksum.replace((value, end)).is_some(),
            _ => false,
        };
        if before {
            return Err(Malformed("a TLV that may be there once is there twice"));
        }
    }
    if let Some((value, end)) = checksum {
        let said: [u8; 4] = value.try_into().map_err(|_| Malformed("a CRC32C that is not 4 bytes"))?;
        let covered = whole[..end - 4].iter().chain(&[0; 4]).chain(&whole[end..]);
        if crc32c(covered) != u32::from_be_bytes(said) {
            return Err(Malformed("its CRC32C is wrong"));
        }
    }
    ssl.map_or(Ok(None), certificate)
}

/// The common name in the value of `PP2_TYPE_SSL`.
fn certificate(ssl: &[u8]) -> Result<Option<Box<str>>, ProxyError> {
    use ProxyError::Malformed;
    let Some((&[client, verify @ ..], tlvs)) = ssl.split_first_chunk::<5>() else {
        return Err(Malformed("a TLV about TLS that is shorter than 5 bytes"));
    };
    let mut name = None;
    for tlv in Tlvs(tlvs) {
        let (kind, value) = tlv?;
        if kind == SUBTYPE_SSL_CN && name.replace(value).is_some() {
            return Err(Malformed("a certificate with two common names"));
        }
    }
    let presented = client & CLIENT_SSL != 0 && client & (CLIENT_CERT_CONN | CLIENT_CERT_SESS) != 0;
    let (true, [0, 0, 0, 0], Some(name)) = (presented, verify, name) else { return Ok(None) };
    let name = std::str::from_utf8(name).map_err(|_| Malformed("a common name that is not UTF-8"))?;
    if name.chars().any(char::is_control) {
        return Err(Malformed("a common name with control characters"));
    }
    Ok(Some(name).filter(|name| !name.is_empty()).map(Box::from))
}

/// Walks type, length, value; ends after the first that is not whole.
struct Tlvs<'a>(&'a [u8]);

impl<'a> Iterator for Tlvs<'a> {
    type Item = Result<(u8, &'a [u8]), ProxyError>;

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = std::mem::take(&mut self.0);
        if bytes.is_empty() {
            return None;
        }
        let tlv = bytes.split_first_chunk::<3>().and_then(|(&[kind, high, low], rest)| {
            let (value, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes([high, low])))?;
            self.0 = rest;
            Some((kind, value))
        });
        Some(tlv.ok_or(ProxyError::Malformed("a TLV that goes beyond the header")))
    }
}

/// CRC-32C (RFC 3720, B.4), bit by bit: 2 KiB at most, once a connection.
fn crc32c<'a>(bytes: impl Iterator<Item = &'a u8>) -> u32 {
    !bytes.fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0x82F6_3B78 & (crc & 1).wrapping_neg()))
    })
}

// === sending ===

/// The longest common name that [`encode_v2`] writes: what the header, IPv6 addresses and the other TLVs leave, in bytes.
const NAME_BYTES_MAX: usize = HEADER_BYTES_MAX - V2_HEAD - 36 - (3 + 4) - (3 + 5 + 3);

/// Appends a v1 header. Addresses of two families are both written as IPv6.
pub fn encode_v1(source: SocketAddr, destination: SocketAddr, out: &mut Vec<u8>) {
    let (family, from, to) = match (source.ip(), destination.ip()) {
        (from @ IpAddr::V4(_), to @ IpAddr::V4(_)) => ("TCP4", from, to),
        (from, to) => ("TCP6", ipv6(from).into(), ipv6(to).into()),
    };
    let line = format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port());
    out.extend_from_slice(line.as_bytes());
}

/// Appends a v2 header with a CRC32C and, if there is one, the common name of the client's verified certificate, which
/// is left out if it is longer than the header may be. Addresses of two families are both written as IPv6.
pub fn encode_v2(source: SocketAddr, destination: SocketAddr, certificate: Option<&str>, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(SIGNATURE);
    out.push(COMMAND_PROXY);
    // Its length is written last.
    let len_at = out.len() + 1;
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            out.extend_from_slice(&[INET_STREAM, 0, 0]);
            out.extend_from_slice(&from.octets());
            out.extend_from_slice(&to.octets());
        }
        (from, to) => {
            out.extend_from_slice(&[INET6_STREAM, 0, 0]);
            out.extend_from_slice(&ipv6(from).octets());
            out.extend_from_slice(&ipv6(to).octets());
        }
    }
    out.extend_from_slice(&source.port().to_be_bytes());
    out.extend_from_slice(&destination.port().to_be_bytes());
    if let Some(name) = certificate.filter(|name| name.len() <= NAME_BYTES_MAX) {
        let mut ssl = vec![CLIENT_SSL | CLIENT_CERT_CONN, 0, 0, 0, 0];
        tlv(SUBTYPE_SSL_CN, name.as_bytes(), &mut ssl);
        tlv(TYPE_SSL, &ssl, out);
    }
    tlv(TYPE_CRC32C, &[0; 4], out);
    let len = length(out.len() - start - V2_HEAD);
    out[len_at..len_at + 2].copy_from_slice(&len);
    let checksum = crc32c(out[start..].iter());
    let at = out.len() - 4;
    out[at..].copy_from_slice(&checksum.to_be_bytes());
}

fn tlv(kind: u8, value: &[u8], out: &mut Vec<u8>) {
    out.push(kind);
    out.extend_from_slice(&length(value.len()));
    out.extend_from_slice(value);
}

fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).expect("no more than HEADER_BYTES_MAX").to_be_bytes()
}

fn ipv6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

#[cfg(test)]
mod tests;
